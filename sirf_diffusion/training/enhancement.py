"""Training of enhancement models: an autoencoder first, where there is one, then the diffusion UNet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files.outputs import difference
from ..files.weights import WeightsFormat, filled
from ..geometry.images import ImageGeometry
from ..models.enhancement import EnhancementModel, EnhancementModelConfig, noise_measure
from ..models.latent import EnhancementConfig, EnhancementNetwork, build_autoencoder, told_time
from ..models.networks import mend_bfloat16
from ..reconstructors.low_dose import LowDose
from .corruption import Parted, over_images
from .data.slice_stream import SliceStream
from .enhancement_recipes import EnhancementRecipe
from .evaluation.doses import CleanValidation, DoseValidation
from .evaluation.validation import ValidationSet
from .log import Curves
from .loop import TrainingLoop

#: Doses whose images' noise is noted in the model file.
_TABLE = (1.0, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.08, 0.05, 0.03, 0.02)
#: Weights of the autoencoder's losses beside the absolute error: of MONAI's discriminator, and of the latent's spread.
_ADVERSARIAL, _SPREAD = 0.05, 1e-6
_CPU = torch.device("cpu")
_STAGE = WeightsFormat("an autoencoder of a training", "sirf_diffusion_autoencoder", "train it again")


def enhancement_stages(
    recipe: EnhancementRecipe, source: SliceStream, work: Path, out: Path, device: torch.device,
    init: str | os.PathLike[str] | None = None,
) -> Iterator[EnhancementStage]:  # fmt: skip
    """The stages of a training; each is made when the file of the one before is there.

    From a model there is one stage: its autoencoder stays as it is. Raises ValueError if it is of another architecture.
    """
    if init is not None:
        model = EnhancementModel.load(init, "cpu")
        if found := difference(model.config.architecture.to_dict(), recipe.enhancement.to_dict()):
            raise ValueError(f"{init} is another network than this training's: {found}")
        stage = EnhancementStage(recipe, source, work, out, device, model.autoencoder, model.hash)
        stage.network.load_state_dict(model.network.state_dict())
        stage.latent_scale = model.config.latent_scale
        stage.provenance["init"] = {"sha256": model.hash}
        stage.inherited = {"tracer": model.config.tracer, "licence": model.config.licence}
        yield stage
        return
    if recipe.enhancement.compression == 1:
        yield EnhancementStage(recipe, source, work, out, device)
        return
    folder = work / "autoencoder"
    folder.mkdir(exist_ok=True)
    file = folder / "autoencoder.safetensors"
    yield AutoencoderStage(replace(recipe, cycles=(recipe.autoencoder_steps,)), source, folder, file, device)
    _, weights, digest = _STAGE.read(file)
    autoencoder = filled(build_autoencoder(recipe.enhancement), weights)
    yield EnhancementStage(recipe, source, work, out, device, autoencoder, digest)


@dataclass(frozen=True)
class Shown(Parted):
    """Noisy images or latents with their dose and CT, and the clean ones."""

    noisy: Tensor
    time: Tensor
    ct: Tensor | None
    clean: Tensor
    weight: Tensor

    def predicted_by(self, network: nn.Module) -> Tensor:
        """The network's estimate of the clean ones."""
        return network(self.noisy, self.time, self.ct)

    def loss(self, predicted: Tensor) -> Tensor:
        """Weighted mean squared error."""
        return ((predicted.float() - self.clean).square() * over_images(self.weight, predicted)).mean()


class EnhancementStage:
    """The diffusion UNet, on images or the latents of an autoencoder that is there already.

    ``network`` is untrained; ``work`` and ``out`` are the stage's folder and file, ``provenance`` what decides its
    result beside recipe and data.
    """

    def __init__(
        self, recipe: EnhancementRecipe, source: SliceStream, work: Path, out: Path,
        device: torch.device = _CPU, autoencoder: nn.Module | None = None, digest: str = "",
    ) -> None:  # fmt: skip
        self.recipe, self.autoencoder, self.voxel_size = recipe, autoencoder, source.file.voxel_size
        self.work, self.out, self.latent_scale = work, out, 1.0
        self.provenance: dict[str, Any] = {}
        #: Tracer and licence of the model that it starts from.
        self.inherited: dict[str, str] = {}
        if autoencoder is not None:
            images = torch.cat([source.batch(step, recipe.batch_size)[0][:, :1] for step in range(8)])
            with torch.no_grad():
                self.latent_scale = float(torch.cat([autoencoder.encode(part)[0] for part in images.split(4)]).std())
            self.provenance = {"autoencoder": digest, "latent_scale": self.latent_scale}
        with torch.random.fork_rng(devices=[]):  # weights are the same on every device
            torch.default_generator.manual_seed(recipe.seed)
            self.network = self._network().to(device)

    def _network(self) -> nn.Module:
        return EnhancementNetwork(self.recipe.enhancement)

    def example(self, images: Tensor, step: int, device: torch.device, rank: int, world: int) -> Shown:
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
        noisy, clean = self.low_dose(clean, dose, own, width), self.middle(clean, 1)
        ct = self.middle(images[:, 1:]) * over_images(kept, clean) if recipe.conditional else None
        weight = dose.sqrt() / (clean.square().flatten(1).mean(1) + 0.05)
        noisy, ct, clean = self._patches(own, noisy, ct, clean)
        values = (noisy, told_time(dose), ct, clean, weight)
        return Shown(*(None if value is None else value.to(device) for value in values))

    def validation(self, images: ValidationSet) -> DoseValidation:
        """Slices or cubes of the validation subjects, at several doses."""
        return DoseValidation(images, self)

    def save(
        self, path: Path, network: nn.Module, source: SliceStream, training: dict[str, Any], tracer: str, licence: str
    ) -> None:
        """Write the model file."""
        recipe = self.recipe
        config = EnhancementModelConfig(
            recipe.enhancement, recipe.doses, recipe.scan, source.file.voxel_size, self.latent_scale,
            self._noise_by_dose(source), tracer, licence, training,
        )  # fmt: skip
        model = EnhancementModel(config)
        model.network.load_state_dict(network.state_dict())
        if self.autoencoder is not None:
            model.autoencoder.load_state_dict(self.autoencoder.state_dict())
        model.save(path)

    def diffused(self, images: Tensor) -> Tensor:
        """The images themselves, or their latents; of slices with neighbours, all as channels."""
        if self.recipe.neighbours:
            return images[:, 0]
        with torch.no_grad():
            return images if self.autoencoder is None else self.autoencoder.encode(images)[0] / self.latent_scale

    def middle(self, images: Tensor, axis: int = 2) -> Tensor:
        """Of slices with neighbours along an axis the middle ones, ``[n, 1, y, x]``; other images as they are."""
        k = self.recipe.neighbours
        return images.narrow(axis, k, 1).flatten(1, -3) if k else images

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


class AutoencoderStage(EnhancementStage):
    """The autoencoder, with a discriminator that goes when it is trained."""

    def _network(self) -> nn.Module:
        return AutoencoderAndCritic(self.recipe.enhancement)

    def example(self, images: Tensor, step: int, device: torch.device, rank: int, world: int) -> Any:
        """Images, and the noise of their latents."""
        config, images = self.recipe.enhancement, images[:, :1]
        generator = torch.Generator().manual_seed((self.recipe.seed * 1_000_003 + step) * 4099 + rank)
        size = [n // config.compression for n in images.shape[2:]]
        noise = torch.randn((len(images), config.latent_channels, *size), generator=generator)
        return Reconstructed(images.to(device), noise.to(device))

    def validation(self, images: ValidationSet) -> CleanValidation:
        """Clean images."""
        return CleanValidation(images, self)

    def save(
        self, path: Path, network: nn.Module, source: SliceStream, training: dict[str, Any], tracer: str, licence: str
    ) -> None:
        """Write the autoencoder for the next stage."""
        _STAGE.write(path, network.autoencoder.state_dict(), {"training": training})


class AutoencoderAndCritic(nn.Module):
    """What an autoencoder makes of images, and what MONAI's patch discriminator thinks of both."""

    def __init__(self, config: EnhancementConfig) -> None:
        super().__init__()
        from monai.networks.nets.patchgan_discriminator import PatchDiscriminator

        self.autoencoder = build_autoencoder(config)
        self.critic = PatchDiscriminator(config.spatial_dims, 32, 1, num_layers_d=2, norm="INSTANCE")
        mend_bfloat16(self)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        mean, sd = self.autoencoder.encode(images)
        made = self.autoencoder.decode(mean + sd * noise)
        frozen = {name: value.detach() for name, value in self.critic.named_parameters()}
        seen_by_maker = torch.func.functional_call(self.critic, frozen, (made,))[-1]
        return made, mean, sd, seen_by_maker, self.critic(made.detach())[-1], self.critic(images)[-1]


@dataclass(frozen=True)
class Reconstructed(Parted):
    """Clean images for the autoencoder."""

    images: Tensor
    noise: Tensor

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


class EnhancementLoop(TrainingLoop):
    """The loop around a stage."""

    curves = Curves("dose", "dose")
    draws_samples = False

    def __init__(self, stage: EnhancementStage, *parts: Any) -> None:
        self.stage = stage
        super().__init__(*parts)

    @property
    def _inherited(self) -> dict[str, str]:
        return self.stage.inherited

    def _validation_set(self) -> Any:
        found = super()._validation_set()
        return None if found is None else self.stage.validation(found)

    def _example(self, step: int) -> Any:
        rank, world = self.peers.rank, self.peers.world
        images, _ = self.source.batch(step, self.recipe.batch_size, rank, world)
        return self.stage.example(images, step, self.state.device, rank, world)

    def _save_model(self, path: Path) -> None:
        told = self._provenance(), self._tracer, self._licence
        self.stage.save(path, self.state.average.module, self.source, *told)
