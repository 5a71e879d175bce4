"""How a foreign network was trained: what other libraries' schedulers mean in the terms of this package.

A scheduler there mixes the noise of the training, which counts, with the steps of sampling (``clip_sample``,
``timestep_spacing``, ``shift`` ...), which do not. Signs and times:

- MONAI, diffusers and guided-diffusion count times of discrete diffusion from 0; ``v = gamma eps - nu u0``.
- MONAI's rectified flow predicts ``u0 - eps``, diffusers' flow matching ``eps - u0``, both of ``(1 - s) u0 + s eps``;
  both networks are told ``num_train_timesteps * s``.
- diffusers' EDM adds ``c_out F``: ``c_out`` is positive for ``epsilon`` and negative for ``v_prediction``.
- diffusers' ``ScoreSdeVeScheduler``: a score, told ``sigma``. ``IPNDMScheduler``: ``v``, told an angle from 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ...geometry.checks import check_choice
from ..schedules import BETAS, PREDICTIONS, DDPMSchedule, NoiseSchedule, VESchedule, VPSchedule
from .reading import UnsupportedNetworkError, plain_arguments, require

#: Predictions and constants of the networks inside fixed factors.
_FACTORS: dict[Any, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "flow": (("x0-eps", "eps-x0"), ("num_train_steps",)),
    "edm": (("eps", "v"), ("sigma_min", "sigma_max", "data_sd")),
    "angle": (("eps", "v"), ("sigma_min", "sigma_max", "data_sd")),
    "score": (("score",), ("sigma_min", "sigma_max")),
}
#: Schedules that their names alone tell.
NAMED: dict[str, dict[str, Any]] = {
    "ddpm": DDPMSchedule().to_config(), "linear": DDPMSchedule().to_config(), "vp": VPSchedule().to_config(),
    "cosine": DDPMSchedule(betas="cosine").to_config(), "ve": VESchedule().to_config(),
    "flow": {"name": "flow", "num_train_steps": 1000},
}  # fmt: skip
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "eps-x0"}
_BETAS = {
    "linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine", "cosine": "cosine",
    "sigmoid": "sigmoid", "linear_beta": "linear", "scaled_linear_beta": "scaled_linear", "sigmoid_beta": "sigmoid",
}  # fmt: skip
_USUAL, _NARROW = (1e-4, 0.02), (0.00085, 0.012)
#: diffusers' schedulers of discrete diffusion, with the first and last rate that they have unless told otherwise.
_DISCRETE = {
    **dict.fromkeys(
        ("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse", "PNDM", "DEISMultistep", "DPMSolverMultistep",
         "DPMSolverMultistepInverse", "DPMSolverSinglestep", "UniPCMultistep", "SASolver", "EulerDiscrete",
         "EulerAncestralDiscrete", "LMSDiscrete"), _USUAL,
    ),
    **dict.fromkeys(("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE"), _NARROW),
}  # fmt: skip
_MONAI = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "RFlowScheduler")
_SIGMAS = {
    "EDMEuler": (0.002, 80.0), "EDMDPMSolverMultistep": (0.002, 80.0), "CosineDPMSolverMultistep": (0.3, 500.0),
    "ScoreSdeVe": (0.01, 1348.0),
}  # fmt: skip


@dataclass(frozen=True)
class Training:
    """How a network was trained: schedule, prediction and time input as in a model file, and all of it in ``words``.

    ``network`` has the values of `NetworkConfig` that follow; with ``negate`` the network's output has the other sign.
    """

    schedule: NoiseSchedule
    prediction: str
    time_input: str
    words: str
    network: dict[str, Any] = field(default_factory=dict)
    negate: bool = False


def training(schedule: NoiseSchedule | dict[str, Any] | str, prediction: str, time_input: str = "t") -> Training:
    """Training with a schedule and a prediction.

    Raises ValueError if they are not known, or do not suit each other.

    Parameters
    ----------
    schedule
        A schedule; a name in `NAMED`; or a dictionary as `NoiseSchedule.to_config` gives it, where ``name`` may also be
        ``scaled_linear`` or ``sigmoid`` (``num_train_steps``, ``beta_start``, ``beta_end``), ``cosine``
        (``num_train_steps``), ``flow`` (``num_train_steps``), ``edm`` or ``angle`` (``sigma_min``, ``sigma_max``,
        ``data_sd``) or ``score`` (``sigma_min``, ``sigma_max``).
    prediction
        ``eps``, ``x0``, ``v`` or ``score``; of a flow ``x0-eps`` or ``eps-x0``; of ``edm`` and ``angle`` ``eps`` for a
        positive and ``v`` for a negative factor of the output.
    time_input
        ``t`` or ``log_sigma``; what a network of flow, ``edm``, ``angle`` or ``score`` is told is part of these.
    """
    if isinstance(schedule, NoiseSchedule):
        schedule = schedule.to_config()
    if isinstance(schedule, str):
        if schedule not in NAMED:
            raise ValueError(
                f"schedule must be one of {', '.join(NAMED)}, or JSON with all constants of ddpm, "
                f"{', '.join(BETAS[1:])}, vp, ve, flow, edm, angle or score; found {schedule!r}"
            )
        schedule = NAMED[schedule]
    name = schedule.get("name")
    unused = ("name", "beta_start", "beta_end") if schedule.get("betas") == "cosine" else ("name",)
    words = f"{name}, " + ", ".join(f"{key} {value}" for key, value in schedule.items() if key not in unused)
    if name in list(_FACTORS):
        return _preconditioned(schedule, prediction, words)
    check_choice("prediction", prediction, PREDICTIONS)
    if name in BETAS:
        schedule = {key: value for key, value in NAMED["ddpm"].items() if name == "cosine"} | schedule
        schedule |= {"name": "ddpm", "betas": name}
    told = "its time" if time_input == "t" else "the noise level"
    words = f"{words}; predicts {prediction}; is told {told}"
    return Training(NoiseSchedule.from_config(schedule), prediction, time_input, words)


def _preconditioned(schedule: dict[str, Any], prediction: str, words: str) -> Training:
    """A network inside fixed factors: a denoiser at all noise levels of a variance-exploding schedule."""
    kind = schedule["name"]
    allowed, constants = _FACTORS[kind]
    if set(schedule) != {"name", *constants}:
        raise ValueError(f"schedule {kind!r} has the constants {list(constants)}, found {sorted(schedule)}")
    if prediction not in allowed:
        raise ValueError(f"prediction of a {kind} network must be {' or '.join(allowed)}, found {prediction!r}")
    last = max(float(schedule.get("num_train_steps", 2)) - 1, 1.5)
    ends = {"sigma_min": 1 / last, "sigma_max": last} | {k: v for k, v in schedule.items() if k.startswith("sigma_")}
    network = {k: v for k, v in schedule.items() if k in ("num_train_steps", "data_sd")} | {"preconditioning": kind}
    found = NoiseSchedule.from_config({"name": "ve", **ends})
    return Training(found, "x0", "log_sigma", f"{words}; predicts {prediction}", network, prediction in ("eps-x0", "v"))


def of_diffusers(config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Schedule, for `training`, and prediction in a ``scheduler_config.json``.

    Raises UnsupportedNetworkError if the scheduler, or an option that changes what a network means, is not known here.
    """
    told = str(config.get("_class_name", "DDPMScheduler"))
    name, what = told.removesuffix("Scheduler"), f"scheduler {told}"
    require(config, {"trained_betas": (None,), "timestep_type": ("discrete",), "invert_sigmas": (False,)}, what)
    prediction = config.get("prediction_type", "v_prediction" if name.startswith("Cosine") else "epsilon")
    steps = config.get("num_train_timesteps", 1000)
    if name in ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete") or prediction == "flow_prediction":
        return {"name": "flow", "num_train_steps": steps}, "eps-x0"
    require(config, {"use_flow_sigmas": (False,)}, what)
    if prediction not in _PREDICTIONS:
        raise UnsupportedNetworkError(
            f"{what}: prediction_type = {prediction!r} is not one of {', '.join(_PREDICTIONS)}"
        )
    if name == "IPNDM":
        ends = {"sigma_min": math.tan(math.pi / 2000), "sigma_max": 1 / math.tan(math.pi / 2000)}
        return {"name": "angle", **ends, "data_sd": 1.0}, "v"
    if name in _SIGMAS:
        low, high = _SIGMAS[name]
        ends = {"sigma_min": config.get("sigma_min", low), "sigma_max": config.get("sigma_max", high)}
        if name == "ScoreSdeVe":
            return {"name": "score", **ends}, "score"
        kind, data_sd = ("angle", 1.0) if name.startswith("Cosine") else ("edm", 0.5)
        return {"name": kind, **ends, "data_sd": config.get("sigma_data", data_sd)}, _PREDICTIONS[prediction]
    if name not in _DISCRETE:
        raise UnsupportedNetworkError(
            f"{what} is not supported: what its networks predict is not known here. If this one was trained as another "
            "scheduler has it, give --schedule and --prediction"
        )
    first, last = _DISCRETE[name]
    schedule = _discrete(
        config.get("beta_schedule", "linear"),
        steps,
        config.get("beta_start", first),
        config.get("beta_end", last),
        what,
    )
    if config.get("rescale_betas_zero_snr", False):
        schedule["zero_snr"] = True
    return schedule, _PREDICTIONS[prediction]


def of_monai(config: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
    """Schedule and prediction of the scheduler in a bundle's configuration; None if it has none.

    Raises UnsupportedNetworkError if the scheduler is not known here, or there are several different ones.
    """
    meant = []
    for section in _dictionaries(config):
        target = str(section.get("_target_", ""))
        name = target.rpartition(".")[2]
        if "networks.schedulers" in target or target in _MONAI:
            meant.append(_of_monai(name, plain_arguments(section, config, f"scheduler {name}")))
    if any(other != meant[0] for other in meant[1:]):
        raise UnsupportedNetworkError("the configuration has several schedulers that differ: leave the network's own")
    return meant[0] if meant else None


def works_on_latents(config: dict[str, Any]) -> str:
    """The class in a bundle's configuration that says that its network denoises latent images; empty if none does."""
    names = (str(section.get("_target_", "")).rpartition(".")[2] for section in _dictionaries(config))
    return next((n for n in names if any(word in n.lower() for word in ("autoencoder", "vqvae", "latent"))), "")


def _of_monai(name: str, config: dict[str, Any]) -> tuple[dict[str, Any], str]:
    what, steps = f"scheduler {name}", config.get("num_train_timesteps", 1000)
    if name not in _MONAI:
        raise UnsupportedNetworkError(f"{what} is not supported, only {', '.join(_MONAI)}")
    if name == "RFlowScheduler":
        return {"name": "flow", "num_train_steps": steps}, "x0-eps"
    require(config, {"sig_range": (6,), "s": (0.008,), "prediction_type": ("epsilon", "v_prediction", "sample")}, what)
    betas = config.get("schedule", config.get("beta_schedule", "linear_beta"))
    ends = config.get("beta_start", _USUAL[0]), config.get("beta_end", _USUAL[1])
    return _discrete(betas, steps, *ends, what), _PREDICTIONS[config.get("prediction_type", "epsilon")]


def _discrete(betas: Any, steps: Any, first: Any, last: Any, what: str) -> dict[str, Any]:
    if not isinstance(betas, str) or betas not in _BETAS:
        raise UnsupportedNetworkError(f"{what}: beta_schedule = {betas!r} is not supported, only {', '.join(_BETAS)}")
    if _BETAS[betas] == "cosine":
        first, last = _USUAL  # which a cosine schedule has not
    schedule = {"name": "ddpm", "num_train_steps": steps, "beta_start": first, "beta_end": last}
    return schedule if _BETAS[betas] == "linear" else schedule | {"betas": _BETAS[betas]}


def _dictionaries(value: Any, depth: int = 4) -> list[dict[str, Any]]:
    """All dictionaries in nested ones."""
    if not isinstance(value, dict) or depth == 0:
        return []
    return [value, *(inner for item in value.values() for inner in _dictionaries(item, depth - 1))]
