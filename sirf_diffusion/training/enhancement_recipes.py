"""Recipes of enhancement models: everything that decides what their training makes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ..models.doses import DoseSchedule
from ..models.enhancement import LowDoseConfig
from ..models.latent import EnhancementConfig
from ..models.networks import NetworkConfig
from .data.augmentation import Augmentation
from .data.phantom_data import PhantomOptions
from .recipes import Recipe, setting


@dataclass(frozen=True)
class EnhancementRecipe(Recipe):
    """Everything that decides what a training of an enhancement model makes.

    The UNet's loss is the squared error of the standard-dose image (or latent), over that of the image's own mean
    square, times the square root of the dose. Steps of the diffusion are drawn uniformly. The autoencoder's is the
    absolute error, with MONAI's patch discriminator; the published perceptual term needs a network that was trained
    elsewhere, and is left out. Whole slices, or cubes, of side ``crops`` are scanned, and patches of
    ``enhancement.patch`` around activity are shown to the network. Fields are those of `Recipe`, of which noise levels
    and prediction have no meaning.
    """

    architecture: NetworkConfig = field(default_factory=lambda: NetworkConfig(num_class_embeds=0, spatial_dims=3))
    enhancement: EnhancementConfig = field(default_factory=EnhancementConfig)
    doses: DoseSchedule = field(default_factory=lambda: DoseSchedule(law="poisson"))
    scan: LowDoseConfig = field(default_factory=LowDoseConfig)
    autoencoder_steps: int = setting(10_000, "optimiser", "steps of the autoencoder", 1, 2**40)

    enhances: ClassVar[bool] = True
    unused: ClassVar[frozenset[str]] = frozenset((
        "log_sigma_mean", "log_sigma_sd", "rank", "prediction", "time_input", "weighting", "sigma_data",
        "uniform_share", "planes", "schedule", "patience", "grow",
    ))  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "architecture", self.enhancement.network)
        if min(self.crops) < self.enhancement.patch or any(c % self.enhancement.multiple for c in self.crops):
            raise ValueError(
                f"crops, which are scanned, must be at least patch = {self.enhancement.patch}, and multiples of "
                f"{self.enhancement.multiple} for this network; found {self.crops}"
            )
        object.__setattr__(self, "planes", (0,))
        super().__post_init__()
        if self.patience:
            raise ValueError("a training of an enhancement model does not stop early: patience must be 0")

    @property
    def neighbours(self) -> int:  # type: ignore[override]
        """Slices on each side that are drawn with each."""
        return self.enhancement.neighbours

    @property
    def conditional(self) -> bool:
        """Whether the network is shown the CT image."""
        return self.enhancement.ct != "none"


_SLICES = NetworkConfig(
    channels=(32, 64, 96), attention_levels=(False, True, True), num_res_blocks=1, num_head_channels=32,
    num_class_embeds=0, patch_size=2,
)  # fmt: skip
_EXACT = EnhancementConfig(_SLICES, ct="both", noise="binomial", compression=1, patch=64, neighbours=1)
_GENTLE = Augmentation(gamma_share=0.2, intensity=(0.8, 1.25), scale=0.1)
_LATENT = EnhancementConfig(
    NetworkConfig(
        channels=(64, 128, 192), attention_levels=(False, True, True), num_res_blocks=1, num_head_channels=32,
        num_class_embeds=0, spatial_dims=3,
    ),
)  # fmt: skip
_SHARED: dict[str, Any] = {"decay": "cosine", "validate_every": 500}
#: Lesions that CT does not show, and uptake that varies: what the network has not seen, it takes for noise.
_SLICES_OF: dict[str, Any] = {
    "enhancement": _EXACT, "doses": DoseSchedule(), "cycles": (3000,), "learning_rate": 8e-4, "warmup_steps": 100,
    "augmentation": replace(_GENTLE, uptake_share=0.6, uptake_sd=0.2, lesions=8), **_SHARED,
}  # fmt: skip

#: Of the bundled model, and others; ``latent`` is the published method, for a data file.
ENHANCEMENT_RECIPES = {
    recipe.name: recipe
    for recipe in (
        EnhancementRecipe(
            "latent", enhancement=_LATENT, crops=(96,), batch_size=4, cycles=(30_000,), augmentation=_GENTLE, **_SHARED,
        ),
        EnhancementRecipe(
            "body-fdg-enhance", "[18F]FDG, trunk", crops=(112,),
            phantoms=PhantomOptions("fdg", "trunk", 72, 2, voxel_size=4.0, fractions=(0.9, 0.1, 0.0)), **_SLICES_OF,
        ),
        EnhancementRecipe(
            "brain-fdg-enhance", "[18F]FDG, head", crops=(128,), scan=LowDoseConfig(counts_per_ml=2e5),
            phantoms=PhantomOptions("fdg", "head-ct", 72, 2, fractions=(0.9, 0.1, 0.0)), **_SLICES_OF,
        ),
    )
}  # fmt: skip
