"""Recipes: everything that decides what a training makes, for bundled models and for a user's own."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any

from ..models.networks import TIME_INPUTS, NetworkConfig, check_time_input
from ..models.schedules import PREDICTIONS, NoiseSchedule, VPSchedule
from .data.augmentation import Augmentation
from .data.phantom_data import PhantomOptions

WEIGHTINGS = ("uniform", "edm")
DECAYS = ("linear", "cosine")
PRECISIONS = ("bfloat16", "float32")


@dataclass(frozen=True)
class Recipe:
    """Data, network, noise and optimiser of one training.

    Noise levels are drawn as ``ln sigma ~ N(log_sigma_mean, log_sigma_sd^2)`` within the schedule's range
    (Karras et al. 2022, arXiv:2206.00364), a share of them log-uniform so that no level goes unseen. The loss is
    the mean squared error of the prediction; with ``weighting="edm"`` that of the denoised image times
    ``(sigma^2 + s^2) / (sigma s)^2`` with ``s = sigma_data``. Learning rate, in each of the cycles: linear warm-up,
    constant, linear decay over the last quarter (or a cosine all the way). A second cycle continues from the end of the
    first. For guidance without a classifier (Ho and Salimans 2022, arXiv:2207.12598) the anatomical image is replaced
    by zeros in a share ``condition_dropout`` of the images.

    Each field but the following is a setting that ``sirf-diffusion train --print-config`` explains.

    Parameters
    ----------
    phantoms
        Subjects to simulate as a file of training volumes; None for a training on a data file.
    init
        Bundled model, or another recipe's, to start from; empty for random weights.

    Raises
    ------
    ValueError
        If a value is out of range; the message names it.
    """

    name: str
    tracer: str = ""
    architecture: NetworkConfig = field(default_factory=NetworkConfig)
    schedule: NoiseSchedule = field(default_factory=VPSchedule)
    crops: tuple[int, ...] = (96, 96, 96, 128)
    batch_size: int = 8
    cycles: tuple[int, ...] = (10_000,)
    learning_rate: float = 6e-4
    warmup_steps: int = 200
    ema_decay: float = 0.999
    log_sigma_mean: float = -0.8
    log_sigma_sd: float = 1.3
    seed: int = 0
    # Fields from here on came later: `to_dict` leaves them out where they have their defaults, so that what files
    # made before say of their recipe stays comparable.
    prediction: str = "v"
    time_input: str = "log_sigma"
    weighting: str = "uniform"
    sigma_data: float = 0.5
    uniform_share: float = 0.1
    condition_dropout: float = 0.1
    planes: tuple[int, ...] = (0, 1, 2)
    augmentation: Augmentation = field(default_factory=Augmentation)
    decay: str = "linear"
    gradient_clip: float = 1.0
    accumulation: int = 1
    precision: str = "bfloat16"
    phantoms: PhantomOptions | None = None
    init: str = ""
    grow: bool = False
    validate_every: int = 1000
    patience: int = 0

    def __post_init__(self) -> None:
        for name, choices in (
            ("prediction", PREDICTIONS), ("time_input", TIME_INPUTS), ("weighting", WEIGHTINGS), ("decay", DECAYS),
            ("precision", PRECISIONS),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}")
        if self.prediction == "v" and not self.schedule.variance_preserving:
            raise ValueError(
                f"prediction 'v' needs a variance-preserving schedule, found {self.schedule.name!r}: use eps or x0"
            )
        for name, low, high in (
            ("batch_size", 1, 2**20), ("warmup_steps", 0, 2**40), ("accumulation", 1, 2**20),
            ("validate_every", 1, 2**40), ("patience", 0, 2**40), ("seed", 0, 2**40), ("learning_rate", 0, 1),
            ("ema_decay", 0, 1), ("log_sigma_mean", -50, 50), ("log_sigma_sd", 0, 50), ("sigma_data", 1e-3, 1e3),
            ("uniform_share", 0, 1), ("condition_dropout", 0, 1), ("gradient_clip", 0, 1e9),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"{name} must be a number from {low:g} to {high:g}, found {value!r}")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size = {self.batch_size} must be a multiple of accumulation = {self.accumulation}")
        if not self.cycles or min(self.cycles) < 1 or sum(self.cycles) > 2**40:
            raise ValueError(f"cycles must be one or more positive numbers of steps, found {self.cycles}")
        multiple = self.architecture.multiple
        if not self.crops or any(not 1 <= crop <= 4096 or crop % multiple for crop in self.crops):
            raise ValueError(f"crops must be multiples of {multiple} up to 4096 for this network, found {self.crops}")
        if not self.planes or not set(self.planes) <= {0, 1, 2}:
            raise ValueError(f"planes must be some of 0, 1 and 2, found {self.planes}")
        labels = self.architecture.num_class_embeds
        if labels and max(self.planes) >= labels:
            raise ValueError(f"planes = {self.planes} need a network of 3 orientations, found {labels}")
        if self.architecture.num_networks == 3 and set(self.planes) != {0, 1, 2}:
            raise ValueError(f"planes = {self.planes} leave some of the three networks untrained: use 0, 1 and 2")
        check_time_input(self.architecture, self.time_input)
        if self.architecture.in_channels > 2:
            raise ValueError("a network in training takes 1 (noisy) or 2 (noisy, anatomical) images")

    @property
    def simulated(self) -> bool:
        """Whether the recipe makes its own subjects."""
        return self.phantoms is not None

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return sum(self.cycles)

    @property
    def conditional(self) -> bool:
        """Whether the network is shown the anatomical image."""
        return self.architecture.in_channels == 2

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        cycles = list(self.cycles)
        while step >= cycles[0]:
            step -= cycles.pop(0)
        warm = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        if self.decay == "cosine":
            return self.learning_rate * min(warm, 0.5 + 0.5 * math.cos(math.pi * step / cycles[0]))
        return self.learning_rate * min(warm, 1.0, (cycles[0] - step) / (0.25 * cycles[0]))

    def to_dict(self) -> dict[str, Any]:
        """Provenance for the model file: plain values only."""
        content = asdict(self) | {"architecture": self.architecture.to_dict(), "schedule": self.schedule.to_config()}
        names = [item.name for item in fields(self)]
        for item in fields(self)[names.index("seed") + 1 :]:
            default = item.default if item.default is not MISSING else item.default_factory()  # type: ignore[misc]
            if getattr(self, item.name) == default:
                del content[item.name]
        return content


_HEAD = NetworkConfig(
    channels=(32, 64, 128),
    attention_levels=(False, False, False),
    num_res_blocks=2,
    num_head_channels=32,
    patch_size=2,
)
_LARGE_HEAD = replace(_HEAD, channels=(32, 64, 128, 128), attention_levels=(False, False, True, True))
_CONTINUED: dict[str, Any] = {"learning_rate": 4e-4, "warmup_steps": 300, "decay": "cosine"}
_FDG = PhantomOptions("fdg", subjects=72, draws=2, fractions=(0.9, 0.1, 0.0))
_VARIOUS = PhantomOptions("various", subjects=72, draws=3, fractions=(0.9, 0.1, 0.0))

#: Of the bundled models, and of those that they started from (``fdg-start``, ``various-start``).
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "fdg-start", "[18F]FDG, head", _HEAD,
            phantoms=PhantomOptions("fdg", subjects=68, draws=3, fractions=(64, 4, 0)),
        ),
        Recipe(
            "various-start", "many tracers, head", _HEAD,
            phantoms=_VARIOUS, init="fdg-start", cycles=(7000,), **_CONTINUED,
        ),
        Recipe(
            "brain", "many tracers, head", _LARGE_HEAD,
            phantoms=_VARIOUS, init="various-start", grow=True, cycles=(9000,), **_CONTINUED | {"learning_rate": 6e-4},
        ),
        Recipe(
            "brain-fdg", "[18F]FDG, head", _LARGE_HEAD,
            phantoms=_FDG, init="brain", cycles=(3000,), log_sigma_mean=-0.4, **_CONTINUED,
        ),
        Recipe(
            "brain-fdg-mr", "[18F]FDG, head", replace(_HEAD, in_channels=2),
            phantoms=_FDG, init="fdg-start", cycles=(8000,), **_CONTINUED,
        ),
    )
}  # fmt: skip
