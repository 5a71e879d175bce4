"""Training of enhancement models: an autoencoder first, where there is one, then the diffusion UNet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..files.weights import WeightsFormat, check_tensors
from ..geometry.images import ImageGeometry
from ..models.doses import DoseSchedule
from ..models.enhancement import EnhancementModel, EnhancementModelConfig, LowDoseConfig, noise_measure
from ..models.latent import EnhancementConfig, EnhancementNetwork, build_autoencoder, told_time
from ..models.networks import NetworkConfig
from ..reconstructors.low_dose import LowDose
from .corruption import over_images
from .data.augmentation import Augmentation
from .data.phantom_data import PhantomOptions
from .data.slice_stream import SliceStream
from .evaluation.doses import CleanValidation, DoseValidation
from .evaluation.validation import validation_set
from .recipes import Recipe, setting

#: Doses whose images' noise is noted in the model file.
_TABLE = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03, 0.02)
#: Weights of the autoencoder's losses beside the absolute error: of MONAI's discriminator, and of the latent's spread.
_ADVERSARIAL, _SPREAD = 0.05, 1e-6
_STAGE = WeightsFormat("an autoencoder of a training", "sirf_diffusion_autoencoder", "train it again")


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
        "log_sigma_mean", "log_sigma_sd", "prediction", "time_input", "weighting", "sigma_data", "uniform_share",
        "planes", "schedule", "patience", "grow",
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
    def conditional(self) -> bool:
        """Whether the network is shown the CT image."""
        return self.enhancement.ct != "none"


_SLICES = NetworkConfig(
    channels=(32, 64, 96), attention_levels=(False, True, True), num_res_blocks=1, num_head_channels=32,
    num_class_embeds=0, patch_size=2,
)  # fmt: skip
_EXACT = EnhancementConfig(_SLICES, ct="both", noise="binomial", compression=1, patch=64)
_GENTLE = Augmentation(gamma_share=0.2, intensity=(0.8, 1.25), scale=0.1)
_LATENT = EnhancementConfig(
    NetworkConfig(
        channels=(64, 128, 192), attention_levels=(False, True, True), num_res_blocks=1, num_head_channels=32,
        num_class_embeds=0, spatial_dims=3,
    ),
)  # fmt: skip
_SHARED: dict[str, Any] = {"augmentation": _GENTLE, "decay": "cosine", "validate_every": 500}

#: Of the bundled model, and others; ``latent`` is the published method, for a data file.
ENHANCEMENT_RECIPES = {
    recipe.name: recipe
    for recipe in (
        EnhancementRecipe("latent", enhancement=_LATENT, crops=(96,), batch_size=4, cycles=(30_000,), **_SHARED),
        EnhancementRecipe(
            "body-fdg-enhance", "[18F]FDG, trunk", enhancement=_EXACT, doses=DoseSchedule(), cycles=(1000,),
            crops=(112,), learning_rate=8e-4, warmup_steps=100,
            phantoms=PhantomOptions("fdg", "trunk", 72, 2, voxel_size=4.0, fractions=(0.9, 0.1, 0.0)), **_SHARED,
        ),
        EnhancementRecipe(
            "brain-fdg-enhance", "[18F]FDG, head", enhancement=_EXACT, doses=DoseSchedule(), cycles=(1000,),
            crops=(128,), learning_rate=8e-4, warmup_steps=100, scan=LowDoseConfig(counts_per_ml=2e5),
            phantoms=PhantomOptions("fdg", "head-ct", 72, 2, fractions=(0.9, 0.1, 0.0)), **_SHARED,
        ),
    )
}  # fmt: skip


def enhancement_stages(
    recipe: EnhancementRecipe, source: SliceStream, work: Path, out: Path
) -> Iterator[tuple[Any, Path, Path]]:
    """Task, work folder and file of each stage; the next one is made when that of the one before is there."""
    if recipe.enhancement.compression == 1:
        yield EnhancementTask(recipe, source), work, out
        return
    folder = work / "autoencoder"
    folder.mkdir(exist_ok=True)
    first = AutoencoderTask(replace(recipe, cycles=(recipe.autoencoder_steps,)), source)
    yield first, folder, folder / "autoencoder.safetensors"
    _, weights, digest = _STAGE.read(folder / "autoencoder.safetensors")
    autoencoder = build_autoencoder(recipe.enhancement)
    check_tensors(weights, autoencoder.state_dict())
    autoencoder.load_state_dict(weights)
    yield EnhancementTask(recipe, source, autoencoder.eval().requires_grad_(False), digest), work, out


@dataclass(frozen=True)
class Shown:
    """Noisy images or latents with their dose and CT, and the clean ones."""

    noisy: Tensor
    time: Tensor
    ct: Tensor | None
    clean: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.noisy)

    def part(self, index: int, parts: int) -> Shown:
        """One of ``parts`` equal parts."""
        size = len(self) // parts
        values = (self.noisy, self.time, self.ct, self.clean, self.weight)
        return Shown(*(None if v is None else v[index * size : (index + 1) * size] for v in values))

    def predicted_by(self, network: nn.Module) -> Tensor:
        """The network's estimate of the clean ones."""
        return network(self.noisy, self.time, self.ct)

    def loss(self, predicted: Tensor) -> Tensor:
        """Weighted mean squared error."""
        return ((predicted.float() - self.clean).square() * over_images(self.weight, predicted)).mean()


class EnhancementTask:
    """The diffusion UNet, on images or the latents of an autoencoder that is there already."""

    level = "dose"

    def __init__(
        self, recipe: EnhancementRecipe, source: SliceStream, autoencoder: nn.Module | None = None, digest: str = ""
    ) -> None:
        self.recipe, self.autoencoder, self.voxel_size = recipe, autoencoder, source.file.voxel_size
        self.latent_scale = 1.0
        self.provenance: dict[str, Any] = {}
        if autoencoder is not None:
            images = torch.cat([source.batch(step, recipe.batch_size)[0][:, :1] for step in range(8)])
            with torch.no_grad():
                self.latent_scale = float(torch.cat([autoencoder.encode(part)[0] for part in images.split(4)]).std())
            self.provenance = {"autoencoder": digest, "latent_scale": self.latent_scale}

    def build(self, device: torch.device) -> nn.Module:
        """The untrained network; its weights are the same on every device."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.recipe.seed)
            return EnhancementNetwork(self.recipe.enhancement).to(device)

    def example(self, images: Tensor, planes: Tensor, step: int, device: torch.device, rank: int, world: int) -> Shown:
        """Clean images ``[n, 1 or 2, (z,) y, x]`` at doses of their own; a function of the seed and the step.

        Processes draw for the whole batch and keep their share, but for the noise, which follows from each image's own
        number.
        """
        recipe, total = self.recipe, self.recipe.batch_size
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        steps = torch.randint(1, recipe.doses.num_steps + 1, (total,), generator=generator)
        dose = recipe.doses.doses[steps].float()[rank::world]
        width = recipe.scan.max_fwhm * (2 * torch.rand(total, generator=generator) - 1).clamp_min(0)[rank::world]
        kept = (torch.rand(total, generator=generator) >= recipe.condition_dropout)[rank::world]
        own = torch.Generator().manual_seed((recipe.seed * 1_000_003 + step) * 4099 + rank)
        clean = self.diffused(images[:, :1])
        noisy = self.low_dose(clean, dose, own, width)
        ct = images[:, 1:] * over_images(kept, images) if recipe.conditional else None
        weight = dose.sqrt() / (clean.square().flatten(1).mean(1) + 0.05)
        noisy, ct, clean = self._patches(own, noisy, ct, clean)
        values = (noisy, told_time(dose), ct, clean, weight)
        return Shown(*(None if value is None else value.to(device) for value in values))

    def validation(self, path: Path) -> DoseValidation | None:
        """Slices or cubes of the validation subjects, at several doses."""
        found = validation_set(path, self.recipe)
        return None if found is None else DoseValidation(found, self)

    def errors(self, validation: DoseValidation, network: nn.Module) -> dict[float, float]:
        """Root mean squared error at each dose."""
        return validation.errors(network)

    def save(self, path: Path, network: nn.Module, source: SliceStream, training: dict[str, Any]) -> None:
        """Write the model file."""
        recipe = self.recipe
        config = EnhancementModelConfig(
            recipe.enhancement, recipe.doses, recipe.scan, source.file.voxel_size, self.latent_scale,
            self._noise_by_dose(source), recipe.tracer or source.file.tracer,
            "Apache-2.0" if recipe.simulated else "", training,
        )  # fmt: skip
        model = EnhancementModel(config)
        model.network.load_state_dict(network.state_dict())
        if self.autoencoder is not None:
            model.autoencoder.load_state_dict(self.autoencoder.state_dict())
        model.save(path)

    def draw_samples(self, path: Path, network: nn.Module, source: SliceStream) -> None:
        """There is nothing to draw without an image to start from."""
        raise ValueError("an enhancement model has no unconditional samples: leave samples_every at 0")

    def diffused(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            # what is diffused: the images themselves, or their latents
            return images if self.autoencoder is None else self.autoencoder.encode(images)[0] / self.latent_scale

    def _patches(self, generator: torch.Generator, *images: Tensor | None) -> list[Tensor | None]:
        """The same patch of each; the clean images, which come last, say where activity is."""
        side, clean = self.recipe.enhancement.patch, images[-1]
        if self.autoencoder is not None or side == clean.shape[-1]:  # type: ignore[union-attr]
            return list(images)
        size, places = clean.shape[2:], []  # type: ignore[union-attr]
        for image in clean:  # type: ignore[union-attr]
            shares = (image > 0.1 * image.mean()).flatten().float() + 1e-6
            place = int(torch.multinomial(shares, 1, generator=generator))
            places.append([])
            for n in reversed(size):
                place, at = divmod(place, n)
                places[-1].insert(0, slice(low := min(max(at - side // 2, 0), n - side), low + side))
        return [
            None if values is None else torch.stack([v[(slice(None), *p)] for v, p in zip(values, places, strict=True)])
            for values in images
        ]

    @property
    def low_dose(self) -> LowDose:
        """The noise of what is diffused: latents have larger voxels."""
        config = self.recipe.enhancement
        z, y, x = (size * config.compression for size in self.voxel_size)
        return LowDose(self.recipe.scan, config.noise, (z, y, x))

    def _noise_by_dose(self, source: SliceStream) -> tuple[tuple[float, float], ...]:
        """Of images of counts, whatever the noise of the training: users' images are such."""
        images = source.batch(0, 16)[0][:, :1]
        planes = images if images.ndim == 4 else images[:, :, images.shape[2] // 2]
        grid = ImageGeometry((len(planes), *planes.shape[2:]), source.file.voxel_size)
        low_dose, pairs = LowDose(self.recipe.scan, "binomial", source.file.voxel_size), []
        for dose in _TABLE:
            if dose < self.recipe.doses.lowest:
                break
            generator = torch.Generator().manual_seed(1)
            found = noise_measure(low_dose(planes, torch.full((len(planes),), dose), generator)[:, 0], grid)
            if not pairs or found > pairs[-1][1]:
                pairs.append((dose, found))
        return tuple(pairs)


class AutoencoderTask(EnhancementTask):
    """The autoencoder, with a discriminator that goes when it is trained."""

    def build(self, device: torch.device) -> nn.Module:
        """Autoencoder and discriminator as one module."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.recipe.seed)
            return AutoencoderAndCritic(self.recipe.enhancement).to(device)

    def example(self, images: Tensor, planes: Tensor, step: int, device: torch.device, rank: int, world: int) -> Any:
        """Images, and the noise of their latents."""
        config, images = self.recipe.enhancement, images[:, :1]
        generator = torch.Generator().manual_seed((self.recipe.seed * 1_000_003 + step) * 4099 + rank)
        size = [n // config.compression for n in images.shape[2:]]
        noise = torch.randn((len(images), config.latent_channels, *size), generator=generator)
        return Reconstructed(images.to(device), noise.to(device))

    def validation(self, path: Path) -> Any:
        """Clean images."""
        found = validation_set(path, self.recipe)
        return None if found is None else CleanValidation(found, self)

    def save(self, path: Path, network: nn.Module, source: SliceStream, training: dict[str, Any]) -> None:
        """Write the autoencoder for the next stage."""
        _STAGE.write(path, network.autoencoder.state_dict(), {"training": training})


class AutoencoderAndCritic(nn.Module):
    """What an autoencoder makes of images, and what MONAI's patch discriminator thinks of both."""

    def __init__(self, config: EnhancementConfig) -> None:
        super().__init__()
        from monai.networks.nets.patchgan_discriminator import PatchDiscriminator

        self.autoencoder = build_autoencoder(config)
        self.critic = PatchDiscriminator(config.spatial_dims, 32, 1, num_layers_d=2, norm="INSTANCE")

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        mean, sd = self.autoencoder.encode(images)
        made = self.autoencoder.decode(mean + sd * noise)
        frozen = {name: value.detach() for name, value in self.critic.named_parameters()}
        seen_by_maker = torch.func.functional_call(self.critic, frozen, (made,))[-1]
        return made, mean, sd, seen_by_maker, self.critic(made.detach())[-1], self.critic(images)[-1]


@dataclass(frozen=True)
class Reconstructed:
    """Clean images for the autoencoder."""

    images: Tensor
    noise: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def part(self, index: int, parts: int) -> Reconstructed:
        """One of ``parts`` equal parts."""
        chosen = slice(index * (len(self) // parts), (index + 1) * (len(self) // parts))
        return Reconstructed(self.images[chosen], self.noise[chosen])

    def predicted_by(self, network: nn.Module) -> tuple[Tensor, ...]:
        """See `AutoencoderAndCritic`."""
        return network(self.images, self.noise)

    def loss(self, predicted: tuple[Tensor, ...]) -> Tensor:
        """Of the autoencoder and, with gradients of its own, of the discriminator (least squares)."""
        from monai.losses.adversarial_loss import PatchAdversarialLoss

        made, mean, sd, seen_by_maker, made_seen, real_seen = (value.float() for value in predicted)
        judge = PatchAdversarialLoss(criterion="least_squares")
        spread = (mean.square() + sd.square() - 2 * sd.clamp_min(1e-6).log() - 1).mean()
        critic = judge(made_seen, False, for_discriminator=True) + judge(real_seen, True, for_discriminator=True)
        fooled = judge(seen_by_maker, True, for_discriminator=False)
        return (made - self.images).abs().mean() + _SPREAD * spread + _ADVERSARIAL * fooled + critic
