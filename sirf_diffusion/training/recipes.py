"""Recipes: everything that decides what a training makes, for bundled models and for a user's own."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

from ..geometry.checks import check_choice, check_real
from ..models.h_transform import NUM_INPUTS, num_inputs
from ..models.networks import TIME_INPUTS, NetworkConfig, check_time_input
from ..models.schedules import PREDICTIONS, NoiseSchedule, VPSchedule
from .data.augmentation import Augmentation
from .data.phantom_data import PhantomOptions


def setting(default: Any, table: str, text: str, *allowed: Any, name: str = "") -> Any:
    """A field that a configuration file sets: in which table, what it says about it, and what is allowed.

    ``allowed`` are the words, or the lowest and the highest number. ``name`` is its key if that is not the field's.
    """
    return field(default=default, metadata={"table": table, "text": text, "allowed": allowed, "key": name})


def check_settings(owner: Any) -> None:
    """Refuse values that a `setting` does not allow."""
    for item in fields(owner):
        value, allowed = getattr(owner, item.name), item.metadata.get("allowed", ())
        if allowed and isinstance(allowed[0], str):
            check_choice(item.name, value, allowed)
        elif allowed:
            check_real(item.name, value, *allowed)


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

    name: str = setting(MISSING, "", "name of the training, kept in the model file")
    tracer: str = setting("", "", "tracer and body region in words; empty: as the data file says")
    architecture: NetworkConfig = field(default_factory=NetworkConfig)
    schedule: NoiseSchedule = field(default_factory=VPSchedule)
    crops: tuple[int, ...] = setting(
        (96, 96, 96, 128), "data",
        "sides of the square crops (cubes with spatial_dims = 3) in pixels, one for each batch",
    )  # fmt: skip
    batch_size: int = setting(8, "optimiser", "slices of a step, over all processes", 1, 2**20)
    cycles: tuple[int, ...] = setting((10_000,), "optimiser", "steps of each learning-rate cycle")
    learning_rate: float = setting(6e-4, "optimiser", "highest learning rate of Adam", 0, 1)
    warmup_steps: int = setting(200, "optimiser", "linear warm-up of each cycle", 0, 2**40)
    ema_decay: float = setting(
        0.999, "optimiser", "decay of the running average of the weights that the model file gets", 0, 1
    )
    log_sigma_mean: float = setting(-0.8, "noise", "mean of ln(noise level)", -50, 50)
    log_sigma_sd: float = setting(1.3, "noise", "its standard deviation", 0, 50)
    seed: int = setting(0, "", "seed of weights, batches and noise", 0, 2**40)
    # Fields from here on came later: `to_dict` leaves them out where they have their defaults, so that what files
    # made before say of their recipe stays comparable.
    prediction: str = setting(
        "v", "noise", "v, eps, x0 or score; edm: v with Karras' weights and noise levels", *PREDICTIONS
    )
    time_input: str = setting("log_sigma", "noise", "what the network is told: log_sigma or t", *TIME_INPUTS)
    weighting: str = setting("uniform", "noise", "uniform, or edm", "uniform", "edm")
    sigma_data: float = setting(0.5, "noise", "root mean square of the training images, for weighting edm", 1e-3, 1e3)
    uniform_share: float = setting(
        0.1, "noise", "share of noise levels drawn log-uniformly over the whole schedule", 0, 1
    )
    condition_dropout: float = setting(0.1, "noise", "share of images whose anatomical image is hidden", 0, 1)
    planes: tuple[int, ...] = setting((0, 1, 2), "data", "slice orientations: 0 transverse, 1 coronal, 2 sagittal")
    augmentation: Augmentation = field(default_factory=Augmentation)
    decay: str = setting(
        "linear", "optimiser", "cosine, or linear (over the last quarter of each cycle)", "linear", "cosine"
    )
    gradient_clip: float = setting(1.0, "optimiser", "largest norm of a gradient; 0: any", 0, 1e9)
    accumulation: int = setting(1, "optimiser", "parts in which a batch is computed, to save memory", 1, 2**20)
    precision: str = setting(
        "auto", "optimiser", "bfloat16 (weights stay float32), float32, or auto: bfloat16 on devices made for it",
        "auto", "bfloat16", "float32",
    )
    phantoms: PhantomOptions | None = None
    init: str = ""
    grow: bool = setting(
        False, "", "with --init: keep [network], which has the model's levels and more below, or more attention"
    )
    validate_every: int = setting(1000, "validation", "steps between validations", 1, 2**40, name="every")
    rank: int = setting(0, "optimiser", "with --init: rank of the weights' changes (LoRA); 0: all weights", 0, 4096)
    patience: int = setting(
        0, "validation", "validations without improvement before an early stop; 0: no early stop", 0, 2**40
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.prediction == "v" and not self.schedule.variance_preserving:
            raise ValueError(
                f"prediction 'v' needs a variance-preserving schedule, found {self.schedule.name!r}: use eps or x0"
            )
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
        if not (self.architecture.in_channels in (1, 2) or self.supervised):
            raise ValueError(
                f"a network in training takes 1 (noisy) or 2 (noisy, anatomical) images, {NUM_INPUTS} or more with "
                "--supervised"
            )

    #: Slices on each side that are drawn with each.
    neighbours: ClassVar[int] = 0
    #: Names of fields that mean nothing to this kind of training, and whether it is of an enhancement model.
    unused: ClassVar[frozenset[str]] = frozenset()
    enhances: ClassVar[bool] = False

    @property
    def supervised(self) -> bool:
        """Whether the network is shown data."""
        return self.architecture.in_channels in (num_inputs(False), num_inputs(True))

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
        _leave_out_defaults(content, self, "prediction")
        _leave_out_defaults(content.get("augmentation", {}), self.augmentation, "uptake_share")
        return content


def _leave_out_defaults(content: dict[str, Any], part: Any, first: str) -> None:
    """Of the fields from ``first`` on."""
    names = [item.name for item in fields(part)]
    for item in fields(part)[names.index(first) :]:
        default = item.default if item.default is not MISSING else item.default_factory()  # type: ignore[misc]
        if getattr(part, item.name) == default:
            content.pop(item.name, None)


_HEAD = NetworkConfig(
    channels=(32, 64, 128),
    attention_levels=(False, False, False),
    num_res_blocks=2,
    num_head_channels=32,
    patch_size=2,
)
_LARGE_HEAD = replace(_HEAD, channels=(32, 64, 128, 128), attention_levels=(False, False, True, True))
_CONTINUED: dict[str, Any] = {"learning_rate": 4e-4, "warmup_steps": 300, "decay": "cosine"}
#: Of a companion, which has voxels of twice the size: half the crops, and the noise levels that it is asked at.
_COARSE = _CONTINUED | {
    "crops": (48, 48, 64), "log_sigma_mean": -0.1, "log_sigma_sd": 1.0, "ema_decay": 0.998, "validate_every": 500
}  # fmt: skip
_FDG = PhantomOptions("fdg", subjects=72, draws=2, fractions=(0.9, 0.1, 0.0))
_COARSE_FDG = replace(_FDG, subjects=96, voxel_size=4.0, fractions=(0.95, 0.05, 0.0))
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
        Recipe(  # the companion of brain
            "brain-coarse", "many tracers, head", _LARGE_HEAD,
            phantoms=replace(_VARIOUS, subjects=144, voxel_size=4.0, fractions=(0.95, 0.05, 0.0)),
            init="brain", cycles=(3000,), **_COARSE,
        ),
        Recipe(
            "brain-fdg", "[18F]FDG, head", _LARGE_HEAD,
            phantoms=_FDG, init="brain", cycles=(3000,), log_sigma_mean=-0.4, **_CONTINUED,
        ),
        Recipe(
            "brain-fdg-coarse", "[18F]FDG, head", _LARGE_HEAD,
            phantoms=_COARSE_FDG, init="brain-fdg", cycles=(1500,), **_COARSE,
        ),
        Recipe(
            "brain-fdg-mr", "[18F]FDG, head", replace(_HEAD, in_channels=2),
            phantoms=_FDG, init="fdg-start", cycles=(8000,), **_CONTINUED,
        ),
        Recipe(
            "brain-fdg-mr-coarse", "[18F]FDG, head", replace(_HEAD, in_channels=2),
            phantoms=_COARSE_FDG, init="brain-fdg-mr", cycles=(2500,), **_COARSE,
        ),
    )
}  # fmt: skip
