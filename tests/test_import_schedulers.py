"""Networks denoise here as the schedulers of MONAI and diffusers make them denoise, or the scheduler is refused."""

import importlib.util
import json
from pathlib import Path

import monai.networks.schedulers as monai_schedulers
import pytest
import torch
from foreign_networks import ARGUMENTS, diffusers_folder, unet
from safetensors import safe_open

from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.models import ScoreModel
from sirf_diffusion.models.importers import UnsupportedNetworkError, import_model
from sirf_diffusion.models.importers.schedulers import of_diffusers, of_monai

REFERENCE = Path(__file__).parent / "reference" / "diffusers.safetensors"
with safe_open(REFERENCE, "pt") as stored:
    ABOUT = json.loads(stored.metadata()["about"])
    TENSORS = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("sirf_diffusion.models.importers.importer.check_denoising", lambda path: {})


def denoised(path, noisy, sigma):
    return (
        ScoreModel.load(path)
        .on(ImageGeometry((1, 16, 16), (2.0,) * 3), 1.0)
        .denoise_at(noisy.reshape(1, 16, 16), sigma)
    )


def assert_close(found, expected):
    assert float((found - expected.reshape(found.shape)).abs().max()) <= 1e-5 * float(expected.abs().max())


WEIGHTS = {key[5:]: value for key, value in TENSORS.items() if key.startswith("unet/")}


@pytest.mark.parametrize(("name", "sines_first"), [*((name, False) for name in ABOUT["cases"]), ("linear", True)])
def test_as_diffusers_denoises(name, sines_first, tmp_path):
    case, weights, config = ABOUT["cases"][name], dict(WEIGHTS), dict(ABOUT["unet"])
    if sines_first:
        halves = weights["time_embedding.linear_1.weight"].chunk(2, 1)
        weights["time_embedding.linear_1.weight"], config["flip_sin_to_cos"] = torch.cat(halves[::-1], 1), False
    folder = diffusers_folder(tmp_path / "ddpm", weights, config, case["scheduler"])
    import_model(folder, tmp_path / "m.safetensors")
    for k, sigma in enumerate(case["sigmas"]):
        noisy = TENSORS["clean"] + sigma * TENSORS["noise"]
        assert_close(denoised(tmp_path / "m.safetensors", noisy, sigma), TENSORS[f"{name}/{k}"])


def test_folders_of_diffusers_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match="--schedule and --prediction"):
        import_model(diffusers_folder(tmp_path, WEIGHTS, ABOUT["unet"]), tmp_path / "m.safetensors")
    for key, value in (("resnet_time_scale_shift", "scale_shift"), ("freq_shift", 1), ("add_attention", False)):
        diffusers_folder(tmp_path, WEIGHTS, ABOUT["unet"] | {key: value}, {"num_train_timesteps": 500})
        with pytest.raises(UnsupportedNetworkError, match=key):
            import_model(tmp_path, tmp_path / "m.safetensors")


@pytest.mark.requires_diffusers
def test_the_stored_images_are_those_of_diffusers():
    path = REFERENCE.with_name("make_diffusers.py")
    spec = importlib.util.spec_from_file_location("make_diffusers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tensors, about = module.reference()
    assert about["cases"].keys() == ABOUT["cases"].keys()
    for name, value in tensors.items():
        assert_close(value, TENSORS[name])


@pytest.mark.parametrize(("config", "message"), [
    ({"_class_name": "CMStochasticIterativeScheduler"}, "CMStochasticIterativeScheduler is not supported"),
    ({"_class_name": "DDPMWuerstchenScheduler"}, "DDPMWuerstchenScheduler is not supported"),
    ({"_class_name": "LCMScheduler"}, "LCMScheduler is not supported"),
    ({"_class_name": "TomorrowsScheduler"}, "TomorrowsScheduler is not supported"),
    ({"_class_name": "DDPMScheduler", "beta_schedule": "laplace"}, "laplace"),
    ({"_class_name": "DDPMScheduler", "trained_betas": [0.1]}, "trained_betas"),
    ({"_class_name": "DDPMScheduler", "prediction_type": "velocity"}, "velocity"),
    ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
])  # fmt: skip
def test_other_schedulers_of_diffusers_are_refused_by_name(config, message):
    with pytest.raises(UnsupportedNetworkError, match=message):
        of_diffusers(config)


def test_networks_of_latent_images_are_refused(tmp_path):
    folder = diffusers_folder(tmp_path / "ldm", WEIGHTS, ABOUT["unet"], {"num_train_timesteps": 500})
    (folder / "vae").mkdir()
    for given in (folder, folder / "unet"):
        with pytest.raises(
            UnsupportedNetworkError, match="has the folder vae: its network denoises what an autoencoder"
        ):
            import_model(given, tmp_path / "m.safetensors")
    torch.save(unet().state_dict(), tmp_path / "unet.pt")
    for other in ({"_target_": "monai.networks.nets.AutoencoderKL"}, {"_target_": "LatentDiffusionInferer"}):
        bundle = {"network_def": {"_target_": "DiffusionModelUNet", **ARGUMENTS}, "parts": {"other": other}}
        with pytest.raises(UnsupportedNetworkError, match=f"has a {other['_target_'].rpartition('.')[2]}: its network"):
            import_model(
                tmp_path / "unet.pt", tmp_path / "m.safetensors", config=bundle, schedule="ddpm", prediction="eps"
            )


MONAI = {
    "linear": ("DDPMScheduler", {}),
    "scaled-linear": ("DDIMScheduler", {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}),
    "sigmoid": ("DDPMScheduler", {"schedule": "sigmoid_beta", "num_train_timesteps": 300}),
    "cosine-v": ("DDPMScheduler", {"schedule": "cosine", "prediction_type": "v_prediction"}),
    "x0": ("DDPMScheduler", {"prediction_type": "sample"}),
    "flow": ("RFlowScheduler", {"use_discrete_timesteps": False, "use_timestep_transform": True}),
}


@pytest.mark.parametrize("name", MONAI)
def test_as_monais_schedulers_denoise(name, tmp_path):
    kind, arguments = MONAI[name]
    network = unet()
    torch.save(network.state_dict(), tmp_path / "unet.pt")
    place = "" if name == "x0" else "monai.networks.schedulers."  # MONAI finds classes by their names alone, too
    scheduler = {"_target_": f"{place}{kind}", **arguments}
    definition = {"_target_": "DiffusionModelUNet", **ARGUMENTS, "channels": "@sizes#channels"}
    bundle = {"sizes": {"channels": [32, 64]}, "network_def": definition, "parts": {"noise_scheduler": scheduler}}
    import_model(tmp_path / "unet.pt", tmp_path / "m.safetensors", config=bundle)
    theirs = getattr(monai_schedulers, kind)(**arguments | ({} if kind == "RFlowScheduler" else {"clip_sample": False}))
    clean, noise = TENSORS["clean"], TENSORS["noise"]
    for t in (20, 150, 280):
        x = theirs.add_noise(clean, noise, torch.tensor([t]))
        if kind == "RFlowScheduler":
            theirs.set_timesteps(10, input_img_size_numel=256)
            gamma = 1 - t / 1000
        else:
            theirs.set_timesteps(theirs.num_train_timesteps)
            gamma = float(theirs.alphas_cumprod[t].double().sqrt())
        sigma = (1 - gamma if kind == "RFlowScheduler" else (1 - gamma**2) ** 0.5) / gamma
        _, expected = theirs.step(network(x, torch.tensor([float(t)])), t, x)
        assert_close(denoised(tmp_path / "m.safetensors", x / gamma, sigma), expected)


def test_configurations_of_monai_that_do_not_tell():
    target = {"_target_": "monai.networks.schedulers.DDPMScheduler"}
    assert of_monai({"network_def": {}, "lr_scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR"}}) is None
    for config, message in (
        ({"s": {"_target_": "monai.networks.schedulers.NewScheduler"}}, "NewScheduler is not supported"),
        ({"s": target | {"beta_start": "@first"}}, "refers to something else"),
        ({"s": target | {"schedule": "cosine", "s": 0.1}}, "s = 0.1"),
        ({"s": target | {"schedule": "mine"}}, "mine"),
        ({"s": target, "t": target | {"schedule": "cosine"}}, "several schedulers"),
    ):
        with pytest.raises(UnsupportedNetworkError, match=message):
            of_monai(config)
