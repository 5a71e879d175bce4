"""The h-transform: beside its own score model only, silent until trained, the same at every image unit."""

import json
import struct

import pytest
import torch
from small_scan import write_small_model, write_small_scan
from tiny_model import tiny_model
from toy_objective import make_toy

from sirf_diffusion.cli import main
from sirf_diffusion.data import load_example
from sirf_diffusion.engines import as_objective
from sirf_diffusion.engines.em import em_update
from sirf_diffusion.files.interfile import write_image
from sirf_diffusion.interop.stir.callbacks import make_processor
from sirf_diffusion.models import NetworkConfig, ScoreModel, build_network
from sirf_diffusion.models.h_transform import (
    HTransform,
    HTransformConfig,
    HTransformFileError,
    counts_per_voxel,
    find_h_transform,
    inputs,
    non_negative,
    read_h_transform,
    sharpened,
)
from sirf_diffusion.reconstructors.checkpoint import CheckpointCallback
from sirf_diffusion.reconstructors.diffusion.deft import DEFTReconstructor
from sirf_diffusion.reconstructors.diffusion.loop import DiffusionReconstructor

ARCHITECTURE = NetworkConfig(
    channels=(8, 8), attention_levels=(False, False), norm_num_groups=4, num_head_channels=8, num_class_embeds=0,
    in_channels=5,
)  # fmt: skip
SHAPE = (1, 12, 12)
pytestmark = pytest.mark.usefixtures("undrawn")


def config_for(base, **changes) -> HTransformConfig:
    known = {"architecture": ARCHITECTURE, "base": "tiny", "base_sha256": base.hash, "counts": (1e-6, 1e6)}
    return HTransformConfig(**known | changes)


def h_transform(base, trained: bool = True) -> HTransform:
    network = build_network(ARCHITECTURE, seed=1).requires_grad_(False).eval()
    if trained:
        torch.nn.init.normal_(network.out[2].conv.weight, 0, 0.1, torch.Generator().manual_seed(0))
    return HTransform(network, base, config_for(base))


@pytest.fixture
def base():
    return tiny_model()


def saved(folder, base, trained=True):
    path = folder / f"h{int(trained)}.safetensors"
    h_transform(base, trained).save(path, "float32")
    return path


def bound(base, objective):
    return base.on(objective.geometry, 2.0)


def test_untrained_it_is_the_score_model_to_the_bit(base):
    objective, _ = make_toy(SHAPE, dtype=torch.float32)
    model = bound(base, objective)
    u = torch.randn((3, *model.latent_shape), generator=torch.Generator().manual_seed(0))
    v, eps = model.predict(u, 0.5)
    counts = torch.ones(model.latent_shape)
    assert torch.equal(h_transform(base, False).estimate(model, u, v, 0.5, [0.1 * v], counts), v)
    assert not torch.equal(h_transform(base).estimate(model, u, v, 0.5, [0.1 * v], counts), v)
    clean, noise = non_negative(base.schedule, u, v, 0.5)
    assert float(clean.min()) == 0
    torch.testing.assert_close(base.schedule.gamma(0.5) * clean + base.schedule.nu(0.5) * noise, u)
    inside = v > 0
    torch.testing.assert_close(noise[inside], eps[inside], rtol=1e-3, atol=1e-4)


def test_untrained_it_samples_the_prior(base, tmp_path):
    """As the chain without data does, but that images are never negative."""
    objective, _ = make_toy(SHAPE, dtype=torch.float32)

    class Clipped(DiffusionReconstructor):
        def denoise(self, chain, model):
            found = super().denoise(chain, model)
            u0, eps = non_negative(model.schedule, chain.u, found.u0, found.step.t)
            return type(found)(found.step, u0, eps, model.to_image(u0))

        def _starting_image(self):
            return self.objective.early_image()

    options = {"num_steps": 6, "eta": 0.0, "solver": "ddim", "num_samples": 2, "seed": 4}
    steered = DEFTReconstructor(
        objective, bound(base, objective), h_transform=str(saved(tmp_path, base, False)), **options
    ).process()
    prior = Clipped(objective, bound(base, objective), **options).process()
    assert torch.equal(steered.get_samples(), prior.get_samples())


@pytest.mark.parametrize("factor", [0.01, 300.0])
def test_the_image_unit_does_not_matter(base, tmp_path, factor):
    path = saved(tmp_path, base)
    images = []
    for scale in (1.0, factor):
        objective, _ = make_toy(SHAPE, dtype=torch.float32)
        objective.matrix /= scale
        images.append(
            DEFTReconstructor(objective, base.on(objective.geometry, 2.0 * scale), h_transform=str(path), seed=1)
            .process().get_output() / scale
        )  # fmt: skip
    torch.testing.assert_close(images[1], images[0], rtol=2e-3, atol=1e-4 * float(images[0].max()))


def test_one_forward_and_one_back_projection_a_step(base, tmp_path):
    objective, _ = make_toy(SHAPE, dtype=torch.float32)
    made = DEFTReconstructor(
        objective, bound(base, objective), h_transform=str(saved(tmp_path, base)), num_steps=5, num_samples=3
    ).process()  # fmt: skip
    used = {key: made.record["projections"][key] for key in ("forward", "back")}
    early = {key: made.record["projections"][f"preparation_{key}"] for key in ("forward", "back")}
    assert {key: used[key] - early[key] for key in used} == {"forward": 15, "back": 15}
    assert made.record["network_evaluations"] == 15
    assert made.record["h_transform"]["outside_training"] == []


def test_the_filter_of_parameter_files_makes_the_same_image(base, tmp_path):
    """Between its calls an EM update, as STIR makes it; both crop, and take steps of second order."""
    objective, _ = make_toy(SHAPE, dtype=torch.float32)
    write_image(tmp_path / "s.hv", objective.sensitivity(), objective.geometry)
    base.save(tmp_path / "base.safetensors")
    base, early = ScoreModel.load(tmp_path / "base.safetensors"), objective.early_image()
    keys = {
        "model filename": str(tmp_path / "base.safetensors"), "h-transform filename": str(saved(tmp_path, base)),
        "sensitivity filename": str(tmp_path / "s.hv"), "number of steps": "4", "random seed": "3",
        "final noise level": "0.1",
    }  # fmt: skip
    sampler, x = make_processor("Diffusion Sampler", keys, {}), early.clone()
    sampler.set_up(objective.geometry)
    for k in range(6):
        x = em_update(objective, x) if k else x
        before = x.clone()
        sampler.apply(x.numpy())
    assert torch.equal(x, before), "the chain ended before"
    model = base.for_data(objective.geometry, early, sampling=True, box="object")
    made = DEFTReconstructor(
        objective, model, h_transform=keys["h-transform filename"], num_steps=4, seed=3, final_noise_level=0.1
    )  # fmt: skip
    made.set_up(early)
    torch.testing.assert_close(x, em_update(objective, made.process().get_output()), rtol=1e-4, atol=1e-5)


def test_the_increment_is_an_em_update(base, tmp_path):
    objective, _ = make_toy(SHAPE, dtype=torch.float32)
    made = DEFTReconstructor(objective, bound(base, objective), h_transform=str(saved(tmp_path, base)))
    made.set_up()
    x = objective.uniform_image()[None] * torch.linspace(0.5, 2, 12)
    torch.testing.assert_close(x + made._increments(x)[0], em_update(objective, x))


def test_another_score_model_is_refused(base, tmp_path):
    path = saved(tmp_path, base)
    with pytest.raises(ValueError, match="belongs to the score model 'tiny'"):
        HTransform.load(path, tiny_model(seed=1))
    assert HTransform.load(path, base).config.base_sha256 == base.hash


def test_the_file_comes_back(base, tmp_path):
    path = saved(tmp_path, base)
    again = HTransform.load(path, base)
    for name, value in h_transform(base).network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)
    assert read_h_transform(path) == again.config
    assert again.sha256 == h_transform(base).save(tmp_path / "again.safetensors", "float32")
    with pytest.raises(HTransformFileError, match="neither a bundled h-transform nor a file"):
        find_h_transform("no-such")


def changed(path, out, change):
    """A file whose document is another."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    document = json.loads(header["__metadata__"]["sirf_diffusion_h_transform"])
    change(document)
    header["__metadata__"]["sirf_diffusion_h_transform"] = json.dumps(document)
    text = json.dumps(header).encode()
    out.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), "version"),
        (lambda d: d.update(counts=[2, 1]), "the lower first"),
        (lambda d: d.update(counts=[1]), "must be two numbers"),
        (lambda d: d.update(counts=[1, 1e30]), r"in \(0, 1e\+12\]"),
        (lambda d: d.update(voxel_size=[1, 1, 1e9]), "voxel_size"),
        (lambda d: d.update(extra=1), r"\['extra'\]"),
        (lambda d: d.pop("base"), r"\['base'\]"),
        (lambda d: d["architecture"].update(in_channels=1), "takes 5 images"),
        (lambda d: d["architecture"].update(channels=[8, 8, 8], attention_levels=[False] * 3), "missing"),
        (lambda d: d.update(num_planes=0), "num_planes"),
        (lambda d: d.update(scanner=3), "scanner must be text"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused(base, tmp_path, change, message):
    path = changed(saved(tmp_path, base), tmp_path / "other.safetensors", change)
    with pytest.raises(HTransformFileError, match=message):
        HTransform.load(path, base)


def test_it_tells_what_lies_outside_the_training(base):
    config = config_for(base, counts=(10.0, 100.0), scanner="S", num_planes=1)
    h = HTransform(build_network(ARCHITECTURE), base, config)
    v = torch.ones(1, 4, 4)
    assert h.outside(50 * v, v, 1, "S") == h.outside(50 * v, v, 1, None) == []
    assert "5 counts a voxel" in h.outside(5 * v, v, 1, None)[0]
    assert len(h.outside(500 * v, v, 3, "T")) == 3


def test_the_sharpened_increment_is_what_is_missing():
    """Of a disc whose data are the integrals along all lines, in the limit of much data."""
    y, x = torch.meshgrid(torch.arange(128.0) - 64, torch.arange(128.0) - 64, indexing="ij")
    radius = 40.0
    disc = ((x**2 + y**2).sqrt() < radius).float()
    missing = torch.exp(-((x - 5) ** 2 + (y + 8) ** 2) / 32)
    # G^T G blurs by 1 / (pi r); an EM update divides by the line integral, here that of the disc's middle half.
    distance = (x**2 + y**2).sqrt().clamp(min=0.25)
    kernel = torch.fft.fft2(torch.fft.ifftshift(1 / (torch.pi * distance)))
    blurred = torch.fft.ifft2(torch.fft.fft2(missing) * kernel).real
    increment = disc * blurred / (torch.pi / 2 * radius)
    found = sharpened(increment[None], disc[None])[0]
    near = missing > 0.3
    assert float((found / missing)[near].mean()) == pytest.approx(1.0, abs=0.15)
    assert float(found[disc.bool() & (missing < 1e-3)].abs().mean()) < 0.05


def test_inputs_do_not_depend_on_the_unit_and_survive_no_sensitivity():
    u, v = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8)
    counts = torch.linspace(0, 5, 64).reshape(1, 8, 8)
    shown = inputs(u, v, [0.1 * v], counts)
    assert shown.shape == (2, 5, 1, 8, 8)
    assert bool(torch.isfinite(shown).all())
    assert counts_per_voxel(counts, torch.ones(1, 8, 8)) == pytest.approx(2.5)


def steered(objective, base, path, **options):
    return DEFTReconstructor(objective, bound(base, objective), h_transform=str(path), seed=3, **options)


@pytest.mark.filterwarnings("ignore:step 5 of 5")
def test_final_consistency_ends_at_the_likelihood_of_the_truth(base, tmp_path):
    objective, _ = make_toy(SHAPE, dtype=torch.float32)
    path = saved(tmp_path, base)
    options = {"final_consistency": True, "num_em_iterations": 6.0, "anchor_strength": 0.0, "eta": 0.0}
    made = steered(objective, base, path, **options).process()
    target = made.record["schedule"]["target"]
    assert float(objective.value(made.get_samples()[0])) == pytest.approx(target, rel=1e-3)
    assert "schedule" not in steered(objective, base, path).process().record


def test_an_interrupted_run_goes_on_to_the_same_bits(base, tmp_path):
    objective, _ = make_toy(SHAPE, dtype=torch.float32)
    path, kept = saved(tmp_path, base), tmp_path / "run.safetensors"
    whole = steered(objective, base, path, num_samples=2).process().get_samples()

    def stop(record):
        if record.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steered(objective, base, path, num_samples=2, callbacks=[CheckpointCallback(kept), stop]).process()
    options = {"num_samples": 2, "resume_from": kept}
    assert torch.equal(steered(objective, base, path, **options).process().get_samples(), whole)
    with pytest.raises(ValueError, match="h_transform"):
        steered(objective, base, saved(tmp_path, base, False), **options).process()


def test_the_command_records_what_was_outside_the_training(tmp_path, caplog):
    scan = write_small_scan(tmp_path / "scan")
    model = write_small_model(tmp_path / "model.safetensors")
    base = ScoreModel.load(model)
    h = HTransform(build_network(ARCHITECTURE), base, config_for(base, counts=(1e5, 1e6), num_planes=1, scanner="S"))
    h.save(tmp_path / "h.safetensors")
    words = ["--method", "deft", "--model", str(model), "--set", f"h_transform={tmp_path / 'h.safetensors'}"]
    assert main(["recon", *scan.options, *words, "--samples", "2", "--out", str(tmp_path / "out")]) == 0
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert len(record["h_transform"]["outside_training"]) >= 2
    assert record["h_transform"]["sha256"] == h.sha256
    assert "unlike those that the h-transform was trained with" in caplog.text
    assert main(["recon", *scan.options, *words[:2], "--model", str(model), "--out", str(tmp_path / "other")]) == 2


def native_objective(engine):
    """The bundled slice behind an objective function of STIR or SIRF."""
    if engine == "stir":
        from stir_scan import stir_objective

        yield as_objective(stir_objective(num_subsets=2)[0])
        return
    from sirf_scan import bundled, quiet_sirf

    with quiet_sirf() as pet:
        scan = bundled(pet)
        yield as_objective(scan.objective(pet, 2), acquisition_data=scan.prompts)


@pytest.mark.parametrize("engine", [
    pytest.param("stir", marks=pytest.mark.requires_stir), pytest.param("sirf", marks=pytest.mark.requires_sirf),
])  # fmt: skip
def test_every_engine_gives_the_same_image(engine):
    """The bundled network at its defaults, to a tenth of the difference of the projectors."""
    base = ScoreModel.load("brain-fdg", precision="float32")
    options = {"num_samples": 2, "seed": 1}
    here = DEFTReconstructor(load_example("brain2d").acquisition.objective(2), base, **options).process().get_output()
    for objective in native_objective(engine):
        made = DEFTReconstructor(objective, base, **options).process()
        there = objective.to_tensor(made.get_output())
        assert len(made.get_samples()) == 2
        assert float((there - here).norm() / here.norm()) < 0.003
