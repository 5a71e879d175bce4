"""From an image to expected counts: projector, resolution, attenuation, normalisation and background."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ...geometry.images import ImageGeometry
from ...geometry.projdata import ProjDataGeometry
from .attenuation import check_attenuation_units
from .projector import Projector
from .subsets import select_views

# STIR's kernels end where a Gaussian has fallen to 1e-6, in standard deviations.
_REACH = math.sqrt(-2 * math.log(1e-6))

_logger = logging.getLogger(__name__)


class AcquisitionModel:
    """Expected counts :math:`q = m (G P x + a) + b'` in STIR's and SIRF's convention.

    Raises ValueError if a term has another shape than the projection data, is negative or not finite.

    Parameters
    ----------
    projector, multiplicative_factors
        The geometric projector ``G``; detection efficiency times attenuation factor (and duration, decay, calibration)
        of each bin, ``m``, shape of the projection data, 0 for dead bins. Default 1.
    additive_term, background_term
        ``a``: expected scatter and randoms *divided by* ``m``, as STIR stores its additive term. ``b'``: expected
        background in counts. Default 0.
    psf_fwhm_mm
        Full width at half maximum of the Gaussian ``P`` applied to the image: one number or ``(z, y, x)``, in mm;
        zero or ``None`` for none. Activity that it moves out of the image is lost; one number is not applied across a
        single plane.
    """

    def __init__(
        self,
        projector: Projector,
        multiplicative_factors: Tensor | None = None,
        additive_term: Tensor | None = None,
        background_term: Tensor | None = None,
        psf_fwhm_mm: float | Sequence[float] | None = None,
    ) -> None:
        self.projector, self.geometry, self.device = projector, projector.geometry, projector.device
        scanner, thickness = projector.projdata.scanner, self.geometry.shape[0] * self.geometry.voxel_size[0]
        if scanner.num_rings == 1 and thickness < 0.99 * scanner.ring_spacing:
            _logger.warning(
                "the image is %.4g mm thick, the only ring %.4g mm: rays miss it, and its values come out about %.2g "
                "times the activity, as in STIR, whose own grid is so. Give a plane as thick as the ring (Z zoom)",
                *(thickness, scanner.ring_spacing, scanner.ring_spacing / thickness),
            )
        self.multiplicative_factors = self._check(multiplicative_factors, "multiplicative_factors")
        additive_term = self._check(additive_term, "additive_term")
        #: ``m a + b'`` in counts, None where there is no background.
        self.constant_term = self._check(background_term, "background_term")
        self.psf = GaussianBlur(projector.geometry, psf_fwhm_mm, projector.device)
        if additive_term is not None:
            factors, background = self.multiplicative_factors, self.constant_term
            counts = additive_term if factors is None else additive_term * factors
            self.constant_term = counts if background is None else background + counts

    def forward(self, x: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Expected counts ``[..., sinograms, views, tangential]`` of images ``[..., z, y, x]``."""
        expected = self.linear(x, views)
        return expected if self.constant_term is None else expected + select_views(self.constant_term, views)

    def linear(self, x: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """``m G P x``: the counts that come from the image."""
        projected = self.projector.forward(self.psf(x.to(self.device)), views)
        if self.multiplicative_factors is None:
            return projected
        return projected * select_views(self.multiplicative_factors, views)

    def adjoint(self, p: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """``P^T G^T m p``, the exact adjoint of `linear`."""
        if self.multiplicative_factors is not None:
            p = p.to(self.device) * select_views(self.multiplicative_factors, views)
        return self.psf(self.projector.adjoint(p, views))

    def _check(self, term: Tensor | None, name: str) -> Tensor | None:
        if term is None:
            return None
        return check_projection_data(term, self.projector.projdata, name).to(self.device, torch.float32)


def without_rounding(values: Tensor, name: str) -> Tensor:
    """Values whose rounding negatives, less than a millionth of the mean of the positive ones, are set to 0 and said.

    Interpolation and scatter estimates leave such values where 0 is meant.
    """
    if not isinstance(values, Tensor):
        raise TypeError(f"{name} must be a tensor, found {type(values).__name__}: torch.as_tensor(array) makes one")
    negative = values < 0
    if not bool(negative.any()):
        return values
    least, mean = float(values.min()), float(values[values > 0].mean(dtype=torch.float64))
    if not -1e-6 * mean < least:  # nor where none is positive, and the mean NaN
        return values
    _logger.warning("%s: %d values down to %.3g are rounding and count as 0", name, int(negative.sum()), least)
    return values.clamp_min(0)


def check_projection_data(
    data: Tensor, projdata: ProjDataGeometry, name: str, expected: str = "values of zero or more"
) -> Tensor:
    """The data, see `without_rounding`; ``ValueError`` unless they fit the layout, are finite and not negative."""
    data = without_rounding(data, name)
    if tuple(data.shape) != projdata.shape:
        raise ValueError(
            f"{name} has shape {tuple(data.shape)}, expected (sinograms, views, tangential positions) = "
            f"{projdata.shape}. Do the data come from the same scan and template?"
        )
    for what, bad in (("not finite", ~torch.isfinite(data)), ("negative", data < 0)):
        if bool(bad.any()):
            where = tuple(torch.nonzero(bad)[0].tolist())
            raise ValueError(
                f"{name} has {int(bad.sum())} values that are {what}, the first one in bin {where} (sinogram, view, "
                f"tangential position), {float(data[where]):.4g}; expected {expected}"
            )
    return data


def attenuation_factors(mu_image: Tensor, projector: Projector) -> Tensor:
    """Probability ``exp(-integral of mu)`` that both photons of each bin escape, at most 1, to multiply into ``m``.

    ``mu_image`` holds linear attenuation coefficients at 511 keV in 1/cm (water 0.096), ``[z, y, x]``, non-negative.
    Raises ValueError if values are negative, not finite, or in another unit (see `check_attenuation_units`).
    """
    mu_image = without_rounding(mu_image, "mu_image")
    check_attenuation_units(mu_image, "mu_image")
    # A projection is an integral in mm divided by the voxel size in x.
    cm_per_unit = projector.geometry.voxel_size[2] / 10
    return torch.exp(-cm_per_unit * projector.forward(mu_image))


class GaussianBlur:
    """STIR's separable Gaussian filter, with zeros outside the image: symmetric, hence its own adjoint.

    ``fwhm_mm`` is one number, which leaves a single plane alone, or ``(z, y, x)``. Kernels are normalised over their
    whole length, also where the image is shorter: what they move out of it is lost.
    """

    def __init__(
        self,
        geometry: ImageGeometry,
        fwhm_mm: float | Sequence[float] | None,
        device: torch.device,
        max_sizes: Sequence[int] = (-1, -1, -1),
        normalise: bool = True,
    ) -> None:
        if isinstance(fwhm_mm, (int, float)):
            fwhm_mm = (fwhm_mm if geometry.shape[0] > 1 else min(fwhm_mm, 0.0), fwhm_mm, fwhm_mm)
        widths = tuple(fwhm_mm or (0.0, 0.0, 0.0))
        if len(widths) != 3 or not all(math.isfinite(w) and w >= 0 for w in widths):
            raise ValueError(f"psf_fwhm_mm needs one or three (z, y, x) non-negative widths in mm, found {fwhm_mm}")
        self._kernels: list[tuple[int, Tensor]] = []
        for axis, (width, voxel, size) in enumerate(zip(widths, geometry.voxel_size, geometry.shape, strict=True)):
            sigma = width / voxel / math.sqrt(8 * math.log(2))
            if sigma > 0:
                half = max_sizes[axis] // 2 if max_sizes[axis] > 0 else math.ceil(sigma * _REACH)
                kernel = torch.exp(-0.5 * (torch.arange(-half, half + 1, dtype=torch.float64) / sigma) ** 2)
                kernel /= kernel.sum() if normalise else sigma * math.sqrt(2 * math.pi)
                used = min(half, size - 1)  # more meets only zeros
                self._kernels.append((axis, kernel[half - used : half + used + 1].float().to(device)))

    def __call__(self, x: Tensor) -> Tensor:
        if not self._kernels:
            return x
        out = x.reshape(-1, 1, *x.shape[-3:])
        for axis, kernel in self._kernels:
            shape, padding = [1, 1, 1], [0, 0, 0]
            shape[axis], padding[axis] = kernel.numel(), kernel.numel() // 2
            out = functional.conv3d(out, kernel.view(1, 1, *shape), padding=tuple(padding))
        return out.reshape(x.shape)
