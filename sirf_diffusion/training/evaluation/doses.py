"""Error of an enhancement against the dose on held-out slices or cubes, beside the best Gaussian filter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...models.latent import told_time
from .validation import GAUSSIAN_FWHM_PIXELS, ValidationSet, root_mean_square, smoothed_slices

#: Doses at which models are validated.
DOSES = (0.5, 0.25, 0.1, 0.05, 0.02)


class DoseValidation:
    """Fixed noisy images at each dose; made once."""

    def __init__(self, images: ValidationSet, stage: Any) -> None:
        self.images, self.stage = images, stage
        self._noisy: dict[float, list[tuple[Tensor, Tensor, Tensor | None]]] = {}

    def network_errors(self, network: nn.Module, *_: Any) -> dict[float, float]:
        """Root mean squared error of a network at each dose."""
        device = next(network.parameters()).device

        def clean(noisy: Tensor, dose: float, ct: Tensor | None) -> Tensor:
            time = told_time(torch.full((len(noisy),), dose, device=device))
            return self._decoded(network(noisy.to(device), time, None if ct is None else ct.to(device)).cpu())

        return {dose: _error(pairs) for dose, pairs in self._cleaned(clean)}

    def gaussian_errors(self) -> dict[float, float]:
        """Of the best Gaussian filter of a scan at each dose."""
        scans = self._cleaned(lambda noisy, dose, ct: self.stage.middle(self._decoded(noisy), 1))
        return {dose: min(_error(pairs, width) for width in GAUSSIAN_FWHM_PIXELS) for dose, pairs in scans}

    def _decoded(self, values: Tensor) -> Tensor:
        stage = self.stage
        return values if stage.autoencoder is None else stage.autoencoder.decode(values * stage.latent_scale)

    @torch.no_grad()
    def _cleaned(self, clean: Any) -> Iterator[tuple[float, list[tuple[Tensor, Tensor]]]]:
        """Doses, with what is made of their noisy images, and the truth."""
        for dose in (d for d in DOSES if d >= self.stage.recipe.doses.lowest):
            if dose not in self._noisy:
                self._noisy[dose] = list(self._at(dose))
            yield dose, [(clean(noisy, dose, ct), truth) for noisy, truth, ct in self._noisy[dose]]

    def _at(self, dose: float) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        stage = self.stage
        for truth, _, ct, _ in self.images.groups(dose):
            generator = torch.Generator().manual_seed(int(1e6 * dose))
            clean, truth, ct = stage.diffused(truth), stage.middle(truth), stage.middle(ct)
            noisy = stage.low_dose(clean, torch.full((len(truth),), dose), generator)
            yield noisy, truth, ct if stage.recipe.conditional else None


class CleanValidation(DoseValidation):
    """What an autoencoder makes of clean images, beside averaging over the voxels of its latent."""

    def network_errors(self, network: nn.Module, *_: Any) -> dict[float, float]:
        """Of an `AutoencoderAndCritic`, as if of dose 1."""
        device = next(network.parameters()).device
        return self._of(lambda images: network.autoencoder.reconstruct(images.to(device)).cpu())

    def gaussian_errors(self) -> dict[float, float]:
        """Of the averages."""
        factor = self.stage.recipe.enhancement.compression

        def averaged(images: Tensor) -> Tensor:
            pool = functional.avg_pool3d if images.ndim == 5 else functional.avg_pool2d
            return functional.interpolate(pool(images, factor), images.shape[2:])

        return self._of(averaged)

    @torch.no_grad()
    def _of(self, function: Any) -> dict[float, float]:
        return {1.0: _error([(function(truth), truth) for truth, *_ in self.images.groups(1.0)])}


def _error(pairs: list[tuple[Tensor, Tensor]], width: float | None = None) -> float:
    """Root mean squared difference of images from the truth, after a Gaussian filter if its width is given."""
    return root_mean_square(
        (image if width is None else smoothed_slices(image, width)) - truth for image, truth in pairs
    )
