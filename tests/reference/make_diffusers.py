"""Write ``diffusers.safetensors``: a small network of diffusers, and what its schedulers make of it as a denoiser.

Needs diffusers; run as ``python tests/reference/make_diffusers.py``. Each case is a scheduler's configuration, noise
levels and the denoised images, computed by the scheduler's own functions.
"""

import json
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

UNET = {
    "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8, "norm_num_groups": 4,
}  # fmt: skip
ZERO = {"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
UNCLIPPED = {"clip_sample": False}
#: Name -> scheduler class and its arguments.
CASES = {
    "linear": ("DDPMScheduler", UNCLIPPED),
    "scaled-linear": ("DDIMScheduler", {"beta_schedule": "scaled_linear", "beta_end": 0.012, **UNCLIPPED}),
    "cosine-v": (
        "DDIMScheduler",
        {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", **UNCLIPPED},
    ),
    "sigmoid-x0": ("DDPMScheduler", {"beta_schedule": "sigmoid", "prediction_type": "sample", **UNCLIPPED}),
    "zero-snr": ("DDIMScheduler", {"prediction_type": "v_prediction", **ZERO, **UNCLIPPED}),
    "500-steps": ("DDPMScheduler", {"num_train_timesteps": 500, **UNCLIPPED}),
    "euler": ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear"}),
    "heun": ("HeunDiscreteScheduler", {}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "edm": ("EDMEulerScheduler", {}),
    "edm-v": ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_data": 1.5}),
    "angle": ("CosineDPMSolverMultistepScheduler", {}),
    "ipndm": ("IPNDMScheduler", {}),
    "ve": ("ScoreSdeVeScheduler", {}),
}


def build():
    """The network, all of its weights drawn."""
    from diffusers import UNet2DModel

    generator = torch.Generator().manual_seed(0)
    network = UNet2DModel(**UNET).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def images():
    """A clean image and noise, ``[1, 1, 16, 16]``."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 1, 16, 16, generator=generator), torch.randn(1, 1, 16, 16, generator=generator)


def denoised(scheduler, network, index):
    """Noise level, and the denoised image of ``clean + sigma noise``, at one of three noise levels."""
    clean, noise = images()
    kind = type(scheduler).__name__

    def ask(x, t):
        return network(x, torch.as_tensor(t).reshape(1)).sample

    if kind.startswith("FlowMatch"):
        scheduler.set_timesteps(sigmas=[(0.1, 0.4, 0.8)[index]])
        s = scheduler.sigmas[0]
        x = (1 - s) * clean + s * noise
        return float(s / (1 - s)), scheduler.step(ask(x, scheduler.timesteps[0]), scheduler.timesteps[0], x).prev_sample
    if hasattr(scheduler, "precondition_outputs"):
        sigma = torch.tensor([0.4, 1.0, 10.0][index])
        x = clean + sigma * noise
        output = ask(scheduler.precondition_inputs(x, sigma), scheduler.precondition_noise(sigma))
        return float(sigma), scheduler.precondition_outputs(x, output, sigma)
    if kind == "ScoreSdeVeScheduler":
        sigma = torch.tensor([0.05, 0.5, 2.0][index])
        x = clean + sigma * noise
        return float(sigma), x + sigma**2 * ask(x, sigma)  # Tweedie's formula
    if kind == "IPNDMScheduler":
        scheduler.set_timesteps(100)
        k = (90, 60, 20)[index]
        alpha, beta = scheduler.alphas[k], scheduler.betas[k]
        x = alpha * clean + beta * noise
        return float(beta / alpha), alpha * x - beta * ask(x, scheduler.timesteps[k])
    share = scheduler.alphas_cumprod.double()
    t = round((0.05, 0.4, 0.8)[index] * len(share))
    sigma = float(((1 - share[t]) / share[t]).sqrt())
    w = clean + sigma * noise
    scheduler.set_timesteps(len(share))
    if kind.startswith(("Euler", "Heun")):
        return sigma, scheduler.step(ask(w / (1 + sigma**2) ** 0.5, t), torch.tensor(float(t)), w).pred_original_sample
    x = w * float(share[t].sqrt())
    return sigma, scheduler.step(ask(x, t), t, x).pred_original_sample


def reference() -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and what they are."""
    import diffusers

    network = build()
    tensors = {f"unet/{name}": value.contiguous() for name, value in network.state_dict().items()}
    about = {"diffusers": diffusers.__version__, "unet": dict(network.config), "cases": {}}
    for name, (kind, arguments) in CASES.items():
        sigmas = []
        for index in range(3):
            scheduler = getattr(diffusers, kind)(**arguments)
            sigma, tensors[f"{name}/{index}"] = denoised(scheduler, network, index)
            sigmas.append(sigma)
        about["cases"][name] = {"scheduler": {**scheduler.config, "_class_name": kind}, "sigmas": sigmas}
    tensors["clean"], tensors["noise"] = images()
    return tensors, json.loads(json.dumps(about))


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors, about = reference()
    save_file(tensors, Path(__file__).with_name("diffusers.safetensors"), {"about": json.dumps(about)})
