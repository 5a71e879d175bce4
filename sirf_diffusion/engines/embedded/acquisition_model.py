"""From an image to expected counts: projector, resolution, attenuation, normalisation and background."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ...geometry.images import ImageGeometry
from .attenuation import check_attenuation_units
from .projector import Projector
from .subsets import select_views


class AcquisitionModel:
    r"""Expected counts :math:`q = m (G P x + a) + b'` in STIR's and SIRF's convention.

    Parameters
    ----------
    projector
        The geometric projector ``G``.
    multiplicative_factors
        ``m``: detection efficiency times attenuation factor (and duration, decay, calibration) of each bin, shape of
        the projection data; 0 marks dead bins. Default 1.
    additive_term
        ``a``: expected scatter and randoms *divided by* ``m``, as STIR stores its additive term. Default 0.
    background_term
        ``b'``: expected background in counts. Default 0.
    psf_fwhm_mm
        Full width at half maximum of the Gaussian ``P`` applied to the image: one number or ``(z, y, x)``, in mm;
        zero or ``None`` for none. Activity that it moves out of the image is lost. Across a single plane it is not
        applied.

    Raises
    ------
    ValueError
        If a term has another shape than the projection data, is negative or not finite.
    """

    def __init__(
        self,
        projector: Projector,
        multiplicative_factors: Tensor | None = None,
        additive_term: Tensor | None = None,
        background_term: Tensor | None = None,
        psf_fwhm_mm: float | Sequence[float] | None = None,
    ) -> None:
        self.projector = projector
        self.multiplicative_factors = self._check(multiplicative_factors, "multiplicative_factors")
        additive_term = self._check(additive_term, "additive_term")
        self.background_term = self._check(background_term, "background_term")
        self.psf = GaussianBlur(projector.geometry, psf_fwhm_mm, projector.device)
        if additive_term is not None:
            factors, background = self.multiplicative_factors, self.background_term
            counts = additive_term if factors is None else additive_term * factors
            self.background_term = counts if background is None else background + counts

    @property
    def geometry(self) -> ImageGeometry:
        """Image grid."""
        return self.projector.geometry

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self.projector.device

    @property
    def constant_term(self) -> Tensor | None:
        """``m a + b'`` in counts, ``None`` where there is no background."""
        return self.background_term

    def forward(self, x: Tensor, views: Sequence[int] | None = None) -> Tensor:
        """Expected counts ``[..., sinograms, views, tangential]`` of images ``[..., z, y, x]``."""
        expected = self.linear(x, views)
        return expected if self.background_term is None else expected + select_views(self.background_term, views)

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
        check_projection_data(term, self.projector, name)
        return term.to(device=self.device, dtype=torch.float32)


def check_projection_data(data: Tensor, projector: Projector, name: str) -> None:
    """Raise ``ValueError`` unless ``data`` fits the projector and is finite and non-negative."""
    shape = projector.projdata.shape
    if tuple(data.shape) != shape:
        raise ValueError(
            f"{name} has shape {tuple(data.shape)}, expected (sinograms, views, tangential positions) = {shape}. "
            "Do the data come from the same scan and template?"
        )
    for what, bad in (("not finite", ~torch.isfinite(data)), ("negative", data < 0)):
        if bool(bad.any()):
            where = tuple(torch.nonzero(bad)[0].tolist())
            raise ValueError(
                f"{name} has {int(bad.sum())} values that are {what}, the first one in bin {where} "
                "(sinogram, view, tangential position)"
            )


def attenuation_factors(mu_image: Tensor, projector: Projector) -> Tensor:
    """Probability ``exp(-integral of mu)`` that both photons of each bin escape, at most 1, to multiply into ``m``.

    ``mu_image`` holds linear attenuation coefficients at 511 keV in 1/cm (water 0.096), ``[z, y, x]``, non-negative.

    Raises
    ------
    ValueError
        If values are negative, not finite, or in another unit (see `check_attenuation_units`).
    """
    check_attenuation_units(mu_image, "mu_image")
    # A projection is an integral in mm divided by the voxel size in x.
    cm_per_unit = projector.geometry.voxel_size[2] / 10
    return torch.exp(-cm_per_unit * projector.forward(mu_image))


class GaussianBlur:
    """Separable Gaussian with zeros outside the image: symmetric, hence its own adjoint."""

    def __init__(self, geometry: ImageGeometry, fwhm_mm: float | Sequence[float] | None, device: torch.device) -> None:
        widths = (fwhm_mm,) * 3 if isinstance(fwhm_mm, (int, float)) else tuple(fwhm_mm or (0.0, 0.0, 0.0))
        if len(widths) != 3 or not all(math.isfinite(w) and w >= 0 for w in widths):
            raise ValueError(f"psf_fwhm_mm needs one or three (z, y, x) non-negative widths in mm, found {fwhm_mm}")
        self._kernels: list[tuple[int, Tensor]] = []
        for axis, (width, voxel, size) in enumerate(zip(widths, geometry.voxel_size, geometry.shape, strict=True)):
            sigma = width / voxel / math.sqrt(8 * math.log(2))
            if sigma > 0 and size > 1:
                half = min(math.ceil(4 * sigma), size - 1)
                kernel = torch.exp(-0.5 * (torch.arange(-half, half + 1, dtype=torch.float64) / sigma) ** 2)
                self._kernels.append((axis, (kernel / kernel.sum()).float().to(device)))

    def __call__(self, x: Tensor) -> Tensor:
        if not self._kernels:
            return x
        out = x.reshape(-1, 1, *x.shape[-3:])
        for axis, kernel in self._kernels:
            shape, padding = [1, 1, 1], [0, 0, 0]
            shape[axis], padding[axis] = kernel.numel(), kernel.numel() // 2
            out = functional.conv3d(out, kernel.view(1, 1, *shape), padding=tuple(padding))
        return out.reshape(x.shape)
