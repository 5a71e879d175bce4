r"""Supervised rivals of the h-transform, trained on the same scans: FBSEM-net and a post-processing UNet.

::

    python -m benchmarks.rivals train fbsem --data fdg.h5 --scanner template.hs --counts 2e4:2e6 --steps 2000 \
        --out fbsem.safetensors

``fbsem``: 8 modules of one CNN each on the image, and of EM updates that its image regularises, trained end to end
through the projector (Mehranian and Reader 2021, doi:10.1109/TRPMS.2020.3004408). ``unet``: five epochs of OSEM go in,
what the last one lacks comes out. Both are told the count level; the training is that of `train --supervised`, and is
resumed by the same command.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sirf_diffusion.engines.em import inside, penalised_em_step
from sirf_diffusion.engines.embedded.poisson import PoissonObjective
from sirf_diffusion.engines.embedded.scans import OrderedSubsets, Scans
from sirf_diffusion.engines.embedded.subsets import largest_num_subsets
from sirf_diffusion.files.stopping import Stopped
from sirf_diffusion.files.weights import WeightsFormat, filled
from sirf_diffusion.geometry.checks import check_choice
from sirf_diffusion.models.h_transform import counts_per_voxel
from sirf_diffusion.models.intensity import intensity_scale, object_box
from sirf_diffusion.models.networks import NetworkConfig, build_network
from sirf_diffusion.training import train
from sirf_diffusion.training.data.scans import ScanOptions
from sirf_diffusion.training.loop import RunOptions
from sirf_diffusion.training.recipes import Recipe
from sirf_diffusion.training.supervised import SLICES, SupervisedLoop, Supervision
from sirf_diffusion.training.views import View, Window

NUM_SUBSETS, MODULES, UPDATES = 7, 8, 2
_FORMAT = WeightsFormat("a rival of the benchmark", "sirf_diffusion_rival", "train it again")
#: Weight of an image in the loss: its counts per voxel, relative to these, to this power. So all count levels count.
_COUNTS, _POWER, _LEAST = 30.0, 0.3, 1e-3


class ResidualCNN(nn.Module):
    """Convolutions on blocks of 2 x 2 pixels, told the level of counts and the number of the module."""

    def __init__(self, width: int = 48, depth: int = 6) -> None:
        super().__init__()
        sizes = [4, *[width] * (depth - 1), 4]
        self.layers = nn.ModuleList(nn.Conv2d(m, n, 3, padding=1) for m, n in itertools.pairwise(sizes))
        self.told = nn.ModuleList(nn.Linear(2, 2 * width) for _ in range(depth - 1))
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)  # untrained, it changes nothing

    def forward(self, image: Tensor, told: Tensor) -> Tensor:
        """What is added to the image."""
        x = nn.functional.pixel_unshuffle(image, 2)
        for k, layer in enumerate(self.layers[:-1]):
            factor, shift = self.told[k](told)[..., None, None].chunk(2, 1)
            x = nn.functional.silu(layer(x) * (1 + factor) + shift) + (x if k else 0)
        return nn.functional.pixel_shuffle(self.layers[-1](x), 2)


class Rival(nn.Module):
    """Windows ``[B, 1, y, x]`` of images in network units, of scans and the windows that hold their objects."""

    epochs = 3

    def start(self, scans: Scans) -> tuple[OrderedSubsets, Tensor, list[Tensor], Tensor]:
        """Subsets, the field of view, OSEM images after each epoch, and the counts per voxel of mean activity."""
        with torch.autocast(scans.prompts.device.type, enabled=False):
            number = largest_num_subsets(scans.projector.basic_views, NUM_SUBSETS)
            subsets, seen = OrderedSubsets(scans, number), inside(scans.sensitivity)
            images = [subsets.uniform_images(seen)]
            for _ in range(self.epochs):
                images.append(subsets.epoch(images[-1]))
        counts = [*map(counts_per_voxel, scans.sensitivity, images[-1])]
        return subsets, seen, images[1:], torch.tensor(counts, device=seen.device)


class UNet(Rival):
    """What the last of five OSEM images lacks, found from all of them."""

    epochs = 5

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.cnn = build_network(config)

    def forward(self, scans: Scans, cut: Window, num_modules: int = 1) -> Tensor:
        """The estimate."""
        _, _, images, counts = self.start(scans)
        shown = torch.cat([cut(x) for x in images], 1)
        return shown[:, -1:] + self.cnn(shown, 250 * torch.log10(counts)).float()


class FBSEMNet(Rival):
    r"""Modules of a residual CNN, and EM updates of a few subsets that its image regularises.

    :math:`x_{k+1} = \arg\max Q(x; x_k) - \tfrac{\rho}{2} |x - R(x_k)|^2` with EM's surrogate ``Q``. The strength
    ``rho`` is learnt, as a power of the counts and for each module; the CNN is one for all modules.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.cnn = ResidualCNN()
        self.strength = nn.Parameter(torch.tensor([math.log(_COUNTS) / 10, 0.05, *[0.0] * MODULES]))

    def forward(self, scans: Scans, cut: Window, num_modules: int = MODULES) -> Tensor:
        """The estimate."""
        subsets, seen, images, counts = self.start(scans)
        x, level, num_subsets = images[-1], torch.log(counts / _COUNTS), len(subsets.sensitivities)
        for k in range(num_modules):
            shown = cut(x)
            told = torch.stack([level / 2, torch.full_like(level, k / MODULES)], 1)
            target = cut.back(shown + self.cnn(shown, told).float())
            with torch.autocast(x.device.type, enabled=False):
                rho = torch.exp(10 * (self.strength[0] + self.strength[1] * level + self.strength[2 + k]))
                for subset in ((UPDATES * k + j) % num_subsets for j in range(UPDATES)):
                    sensitivity = subsets.sensitivities[subset].clamp(min=_LEAST)
                    share = rho.view(-1, 1, 1, 1) / num_subsets
                    x = penalised_em_step(subsets.update(x, subset), sensitivity, target, share) * seen
        return cut(x)


RIVALS = {"fbsem": FBSEMNet, "unet": UNet}


@dataclass(frozen=True)
class Scanned:
    """Scans and the images that are wanted of them."""

    scans: Scans
    cut: Window
    truth: Tensor
    weight: Tensor
    num_modules: int = MODULES

    def predicted_by(self, network: nn.Module) -> Tensor:
        """The network's estimate."""
        return network(self.scans, self.cut, self.num_modules)

    def loss(self, predicted: Tensor) -> Tensor:
        """Weighted mean squared error."""
        return ((predicted.float() - self.truth).square().mean((1, 2, 3)) * self.weight).mean()


@dataclass(frozen=True)
class RivalTraining(Supervision):
    """As of an h-transform for slices, whose score model only gives the grid."""

    kind: str = "unet"

    def checked(self, recipe: Recipe) -> Recipe:
        """The recipe as it is; ValueError if the scanner has more planes than one."""
        if self.planes > 1:
            raise ValueError(f"{self.scanner} has {self.planes} planes: the rivals are for slices, of one sinogram")
        return recipe

    def provenance(self) -> dict[str, Any]:
        """And the kind."""
        return super().provenance() | {"kind": self.kind}

    def network(self, recipe: Recipe) -> Rival:
        """An untrained one."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(recipe.seed)
            return RIVALS[self.kind](recipe.architecture)

    def loop(self, *arguments: Any) -> RivalLoop:
        """Its training."""
        return RivalLoop(self, *arguments)


class RivalLoop(SupervisedLoop):
    """Scans without noise levels."""

    def _example(self, step: int) -> Scanned:
        # Short chains first: the CNN is learnt where it is cheap.
        modules = min(2 + 2 * MODULES * step // self.recipe.num_steps, MODULES)
        return replace(super()._example(step), num_modules=modules)  # type: ignore[type-var]

    def _seen(self, images: Tensor, t: Tensor, generator: torch.Generator, factor: float = 1.0, *_: Any) -> View:
        emission, attenuation = images.float().clamp(min=0)
        truth = emission / (factor * intensity_scale(emission, self.simulator.geometry))
        return View(truth, attenuation, truth, truth, t)

    def _shown(self, views: Sequence[View], scans: Scans, chosen: Any = None) -> Scanned:  # type: ignore[override]
        truth = torch.stack([view.truth for view in views]).to(scans.prompts.device)
        cut = Window.around(truth, self.recipe.architecture.multiple)
        counts = torch.tensor([*map(counts_per_voxel, scans.sensitivity, truth)], device=truth.device)
        return Scanned(scans, cut, cut(truth), (counts / _COUNTS) ** _POWER)

    def _errors(self, network: nn.Module | None) -> dict[float, float]:
        errors = {}
        for counts, (example,) in self._validation_examples.items():
            with torch.inference_mode():
                found = example.predicted_by(network) if network else example.cut(Rival().start(example.scans)[2][0])
                errors[counts] = float((found.clamp(min=0) - example.truth).square().mean().sqrt())
        return errors

    def _save_model(self, path: Path) -> None:
        document = {"kind": self.supervision.kind, "architecture": self.recipe.architecture.to_dict()}
        _FORMAT.write(path, self.state.average.module.state_dict(), document | {"training": self._provenance()})


def load(path: Path) -> Rival:
    """A trained rival."""
    document, tensors, _ = _FORMAT.read(path)
    with _FORMAT.guarded(path):
        kind = check_choice("kind", document["kind"], tuple(RIVALS))
        return filled(RIVALS[kind](NetworkConfig.from_dict(document["architecture"])), tensors)


@torch.inference_mode()
def reconstruct(network: Rival, objective: PoissonObjective) -> Tensor:
    """Image of one slice's data, image units."""
    model, early = objective.model, objective.early_image()
    scale, (_, *sides) = intensity_scale(early, model.geometry), object_box(early, model.geometry)
    object_ = torch.zeros_like(early)
    object_[:, slice(*sides[0]), slice(*sides[1])] = 1
    background = torch.zeros(()) if model.constant_term is None else model.constant_term[None]
    scans = Scans(model.projector, objective.prompts[None], scale * model.multiplicative_factors[None], background)
    cut = Window.around(object_[None], _MULTIPLE)
    return scale * cut.back(network(scans, cut).clamp(min=0))[0]


_MULTIPLE = 8
_NETWORK = NetworkConfig(
    channels=(16, 32, 64), attention_levels=(False,) * 3, num_head_channels=32, num_class_embeds=0, patch_size=2
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train",))
    parser.add_argument("kind", choices=tuple(RIVALS))
    parser.add_argument("--data", type=Path, required=True, metavar="F.h5")
    parser.add_argument("--scanner", type=Path, required=True, metavar="T.hs")
    parser.add_argument("--counts", default="2e4:2e6", metavar="LOW:HIGH")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--max-steps", type=int, help="end after this many, and go on there another time")
    parser.add_argument("--out", type=Path, required=True, metavar="F.safetensors")
    options = parser.parse_args()
    low, high = map(float, options.counts.split(":"))
    inputs = UNet.epochs if options.kind == "unet" else 1
    recipe = replace(
        SLICES, name=options.kind, architecture=replace(_NETWORK, in_channels=inputs), cycles=(options.steps,),
        batch_size=options.batch, learning_rate=options.learning_rate, validate_every=max(options.steps // 5, 1),
    )  # fmt: skip
    supervision = RivalTraining("brain-fdg", options.scanner, ScanOptions(counts=(low, high)), kind=options.kind)
    try:
        train(recipe, options.out, data=options.data, threads=1, max_steps=options.max_steps,
              options=RunOptions(checkpoint_every=50), supervision=supervision)  # fmt: skip
    except Stopped as stopped:
        raise SystemExit(stopped.exit_code) from None


if __name__ == "__main__":
    main()
