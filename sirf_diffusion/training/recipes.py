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
    the mean squared error of the prediction, or that of the denoised image with Karras' weights. Learning rate, in each
    of the cycles: linear warm-up, constant, linear decay over the last quarter (or a cosine all the way). A second
    cycle continues from the end of the first.

    Parameters
    ----------
    name
        Name of the recipe; ends up in the model file.
    tracer
        Tracer and body region, in words; empty: what the data file says.
    subjects, validation_subjects
        Seeds of the simulated subjects; empty for a training on a data file.
    contrasts
        Simulated activity distributions per subject.
    architecture
        The network; ``in_channels=2`` makes it one that is conditioned on the anatomical image.
    schedule
        Noise schedule.
    crops
        Side of the square crops, or cubes for a network of volumes, in pixels, multiples of
        ``architecture.multiple``; each batch has one of them.
    batch_size
        Slices, or cubes, of a step, over all processes and accumulated parts together.
    cycles
        Steps of each learning-rate cycle.
    learning_rate, warmup_steps, decay, gradient_clip
        Adam's highest learning rate, its linear warm-up, ``"linear"`` or ``"cosine"`` decay, largest norm of
        a gradient.
    ema_decay
        Decay of the running average of the weights, which is what the model file gets.
    log_sigma_mean, log_sigma_sd, uniform_share
        Distribution of the noise levels.
    prediction, time_input
        What the network predicts and is told, as in `sirf_diffusion.models.ModelConfig`.
    weighting
        ``"uniform"``: mean squared error of the prediction. ``"edm"``: that of the denoised image times
        ``(sigma^2 + s^2) / (sigma s)^2`` with ``s = sigma_data``.
    sigma_data
        Root mean square of the training images (their mean over emitting voxels is about 1).
    condition_dropout
        Share of training images whose anatomical image is replaced by zeros, for guidance without a classifier
        (Ho and Salimans 2022, arXiv:2207.12598).
    planes
        Slice orientations: 0 transverse, 1 coronal, 2 sagittal. Without meaning for a network of volumes.
    augmentation
        Random changes of the images of a data file.
    accumulation
        Parts in which a step's batch is computed, to save memory.
    precision
        ``"bfloat16"`` (weights stay float32) or ``"float32"``.
    phantoms
        Subjects to simulate as a file of training volumes, for recipes that need more of them than their activity;
        ``subjects`` is empty then.
    init
        Bundled model, or another recipe's, to start from; empty for random weights.
    grow
        Whether the network is larger than that of the model it starts from: it has the same levels and more below, or
        more attention.
    validate_every, patience
        Steps between validations; validations without improvement after which training stops early (0: never).
    seed
        Seed of weights, batches and noise.

    Raises
    ------
    ValueError
        If a value is out of range; the message names it.
    """

    name: str
    tracer: str
    subjects: tuple[int, ...]
    validation_subjects: tuple[int, ...]
    contrasts: int = 3
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
            ("batch_size", 1, None), ("warmup_steps", 0, None), ("accumulation", 1, None), ("validate_every", 1, None),
            ("patience", 0, None), ("learning_rate", 0, 1), ("ema_decay", 0, 1), ("log_sigma_sd", 0, None),
            ("sigma_data", 1e-3, 1e3), ("uniform_share", 0, 1), ("condition_dropout", 0, 1), ("gradient_clip", 0, None),
        ):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or value < low or (high is not None and value > high):
                limits = f"at least {low}" if high is None else f"from {low} to {high}"
                raise ValueError(f"{name} must be a number {limits}, found {value!r}")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size = {self.batch_size} must be a multiple of accumulation = {self.accumulation}")
        if not self.cycles or min(self.cycles) < 1:
            raise ValueError(f"cycles must be one or more positive numbers of steps, found {self.cycles}")
        multiple = self.architecture.multiple
        if not self.crops or any(crop < 1 or crop % multiple for crop in self.crops):
            raise ValueError(f"crops must be multiples of {multiple} for this network, found {self.crops}")
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
        return bool(self.subjects) or self.phantoms is not None

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
        return self.learning_rate * self._rate_factor(step)

    def _rate_factor(self, step: int) -> float:
        cycles = list(self.cycles)
        while step >= cycles[0]:
            step -= cycles.pop(0)
        warm = (step + 1) / self.warmup_steps if self.warmup_steps else 1.0
        if self.decay == "cosine":
            return min(warm, 0.5 + 0.5 * math.cos(math.pi * step / cycles[0]))
        return min(warm, 1.0, (cycles[0] - step) / (0.25 * cycles[0]))

    def to_dict(self) -> dict[str, Any]:
        """Provenance for the model file: plain values only."""
        content = asdict(self) | {"architecture": self.architecture.to_dict(), "schedule": self.schedule.to_config()}
        for name in ("subjects", "validation_subjects"):
            numbers = getattr(self, name)
            content[name] = f"simulated, seeds {min(numbers)} to {max(numbers)}" if numbers else "from the data file"
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
_CONTINUED: dict[str, Any] = {
    "subjects": (), "validation_subjects": (), "learning_rate": 4e-4, "warmup_steps": 300, "decay": "cosine",
}  # fmt: skip
_FDG = PhantomOptions("fdg", subjects=72, draws=2, fractions=(0.9, 0.1, 0.0))
_VARIOUS = PhantomOptions("various", subjects=72, draws=3, fractions=(0.9, 0.1, 0.0))

#: Of the bundled models, and of those that they started from (``fdg-start``, ``various-start``).
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="fdg-start",
            tracer="[18F]FDG, head",
            subjects=tuple(range(64)),
            validation_subjects=tuple(range(800, 804)),
            architecture=_HEAD,
        ),
        Recipe(
            name="various-start",
            tracer="many tracers, head",
            architecture=_HEAD,
            phantoms=_VARIOUS,
            init="fdg-start",
            cycles=(7000,),
            **_CONTINUED,
        ),
        Recipe(
            name="brain",
            tracer="many tracers, head",
            architecture=_LARGE_HEAD,
            phantoms=_VARIOUS,
            init="various-start",
            grow=True,
            cycles=(9000,),
            **_CONTINUED | {"learning_rate": 6e-4},
        ),
        Recipe(
            name="brain-fdg",
            tracer="[18F]FDG, head",
            architecture=_LARGE_HEAD,
            phantoms=_FDG,
            init="brain",
            cycles=(3000,),
            log_sigma_mean=-0.4,
            **_CONTINUED,
        ),
        Recipe(
            name="brain-fdg-mr",
            tracer="[18F]FDG, head",
            architecture=replace(_HEAD, in_channels=2),
            phantoms=_FDG,
            init="fdg-start",
            cycles=(8000,),
            **_CONTINUED,
        ),
    )
}
