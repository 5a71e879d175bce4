"""Test acquisitions: what a scanner with attenuation, uneven efficiencies and background would count of an image."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sirf_diffusion.engines.em import inside
from sirf_diffusion.engines.embedded.acquisition import Acquisition
from sirf_diffusion.engines.embedded.acquisition_model import attenuation_factors
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry, Segment
from sirf_diffusion.geometry.scanners import get_scanner

logger = logging.getLogger(__name__)

#: Share of the activity outside the scanner's field of view that is worth a warning.
_UNSEEN = 0.01
#: Width in bins of the scatter-like part of the background.
_SCATTER_WIDTH = 63


@dataclass(frozen=True)
class Scan:
    """A slice with its data and truth."""

    acquisition: Acquisition
    truth: Tensor


def mmr_slice() -> tuple[ImageGeometry, ProjDataGeometry]:
    """One direct plane of a Siemens mMR: 128 x 128 pixels of 2 mm, 126 views of 344 bins (views mashed by two)."""
    mmr = dataclasses.replace(get_scanner("Siemens mMR"), name="one ring of a Siemens mMR", num_rings=1)
    projdata = ProjDataGeometry(mmr, (Segment(0, 0, 0, 1),), 126, 344)
    return ImageGeometry((1, 128, 128), (mmr.ring_spacing, 2.0, 2.0)), projdata


def mmr_of(planes: int, views: int, oblique: bool = True) -> ProjDataGeometry:
    """Siemens mMR with as many planes (one less, if even), span 11, segments 0, +1, -1 where there is room."""
    mmr, rings = get_scanner("Siemens mMR"), (planes + 1) // 2
    if rings != mmr.num_rings:
        mmr = dataclasses.replace(mmr, name=f"{rings} rings of a Siemens mMR", num_rings=rings)
    reach, most = min(5, rings - 1), 2 * rings - 1
    segments = [Segment(0, -reach, reach, most)]
    if oblique and most > 12:
        segments += [Segment(1, 6, 16, most - 12), Segment(-1, -16, -6, most - 12)]
    return ProjDataGeometry(mmr, tuple(segments), views, 344)


def centred(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Image ``[z, y, x]`` in a larger or smaller field of view, voxel ``n // 2`` kept in its place."""
    pads = []
    for have, want in reversed(list(zip(image.shape[1:], size, strict=True))):
        low = want // 2 - have // 2
        pads += [low, want - have - low]
    return torch.nn.functional.pad(image, pads)


def simulate_acquisition(
    truth: Tensor,
    attenuation: Tensor,
    geometry: ImageGeometry,
    projdata: ProjDataGeometry,
    *,
    prompts: float = 2e5,
    seed: int | tuple[int, ...] = 0,
    background: float = 0.3,
    efficiency_sd: float = 0.1,
    dead_bins: float = 0.002,
) -> Acquisition:
    r"""Poisson counts of :math:`q = m (G x + a)` with the embedded engine's projector.

    ``m`` is attenuation times the efficiencies of the bins times the one factor that makes the sum of ``q`` the number
    of prompts asked for. Half of the background ``m a`` follows the trues, smeared out as scatter is; the other half
    is constant, as randoms nearly are. The efficiencies are those of one scanner: the same for all images and seeds.

    Data and reconstruction by the embedded engine share the projector: what is studied is noise and prior, not the
    system model. The bundled examples were projected by STIR instead.

    Parameters
    ----------
    truth, attenuation
        Emission image ``[z, y, x]``, in the units that the reconstruction shall have; attenuation in 1/cm.
    geometry, projdata
        Grid of both, and layout of the data.
    prompts, seed
        Expected number of counts, > 0; seed of the Poisson noise.
    background
        Share of the prompts in [0, 1) that is background.
    efficiency_sd, dead_bins
        Standard deviation of the efficiencies, and share of the bins that count nothing.

    Raises
    ------
    ValueError
        If a value is out of range, or the image has no activity that the scanner could see.
    """
    if not 0 < prompts < float("inf"):
        raise ValueError(f"prompts must be a positive number of counts, found {prompts}")
    if not 0 <= background < 1:
        raise ValueError(f"background must be a share of the prompts in [0, 1), found {background}")
    projector = _projector(geometry, projdata)
    rng = np.random.default_rng([41, *projdata.shape])
    efficiencies = np.clip(rng.normal(1, efficiency_sd, projdata.shape), 0.3, None)
    efficiencies[rng.random(projdata.shape) < dead_bins] = 0
    projected = projector.forward(truth).double()
    factors = attenuation_factors(attenuation, projector).double() * torch.from_numpy(efficiencies)
    trues = factors * projected
    if not float(trues.sum()) > 0:
        raise ValueError("the image has no activity that the scanner could see")
    _check_field_of_view(truth, projector)
    calibration = (1 - background) * prompts / trues.sum()
    factors, trues = factors * calibration, trues * calibration
    additive = torch.zeros_like(trues)
    if background:
        expected = torch.from_numpy(expected_background(trues.numpy(), background))
        additive = torch.where(factors > 0, expected / factors, additive)
    multiplicative, additive = factors.float(), additive.float()
    mean = multiplicative.double() * (projected + additive.double())
    counts = np.random.default_rng([42, *np.atleast_1d(seed).tolist()]).poisson(mean.numpy())
    return Acquisition(
        torch.from_numpy(counts.astype(np.float32)),
        projdata,
        geometry,
        multiplicative=multiplicative,
        additive=additive,
    )


def _check_field_of_view(truth: Tensor, projector: Projector) -> None:
    seen = inside(projector.adjoint(torch.ones(projector.projdata.shape)))
    unseen = 1 - float(truth[seen].sum(dtype=torch.float64) / truth.sum(dtype=torch.float64))
    if unseen > _UNSEEN:
        logger.warning(
            "%.1f %% of the activity lies outside the field of view, the largest circle in the image that bins cover: "
            "no reconstruction can find it, and its errors include it",
            100 * unseen,
        )


def expected_background(trues: np.ndarray, share: float) -> np.ndarray:
    """Expected background ``[sinograms, views, bins]`` that makes up ``share`` of the prompts, in counts."""
    smooth = torch.from_numpy(trues)[:, None]
    kernel = torch.hann_window(_SCATTER_WIDTH, periodic=False, dtype=smooth.dtype)
    kernel = (kernel / kernel.sum())[None, None, None]
    smooth = torch.nn.functional.conv2d(smooth, kernel, padding=(0, _SCATTER_WIDTH // 2))[:, 0].numpy()
    total = share / (1 - share) * trues.sum(dtype=np.float64)
    return 0.5 * total * (smooth / smooth.sum(dtype=np.float64) + 1 / smooth.size)


def script_model(pet: Any, prompts: Any, factors: Any, additive: Any, image: Any, rays: int) -> Any:
    """The acquisition model of a script with SIRF's names, set up."""
    sensitivity = pet.AcquisitionSensitivityModel(factors)
    sensitivity.set_up(prompts)
    model = pet.AcquisitionModelUsingRayTracingMatrix()
    model.set_num_tangential_LORs(rays)
    model.set_acquisition_sensitivity(sensitivity)
    model.set_additive_term(additive)
    model.set_up(prompts, image)
    return model


@lru_cache(maxsize=2)
def _projector(geometry: ImageGeometry, projdata: ProjDataGeometry) -> Projector:
    return Projector(geometry, projdata)
