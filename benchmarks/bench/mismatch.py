"""Scans that the reconstruction is told wrongly: ordinary slices with one error of the system model each.

All share truth, efficiencies and counts with the case ``slice`` of their subject; the noise is drawn anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.bench.cases import Case
from sirf_diffusion.engines.embedded.acquisition_model import GaussianBlur, attenuation_factors
from sirf_diffusion.engines.embedded.projector import Projector
from sirf_diffusion.files.interfile import read_projection_data, write_image, write_projection_data
from sirf_diffusion.geometry.detector_pairs import DetectorPairs
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry

_PSF, _WIDER, _MOVED, _SHARE = 4.0, 1.3, 3.0, 0.2
_MISSING, _BLOCK = 0.3, 9
_RAYS, _FINER, _RING, _SINOGRAM_BLUR = 10, 2, 1.01, 2.0


@dataclass(frozen=True)
class Scan:
    """A case with what is true of it: attenuation (1/cm) and the projector."""

    case: Case
    mu: Tensor
    projector: Projector

    def expected(self, truth: Tensor | None = None) -> Tensor:
        """Expected counts of the truth, or of another image."""
        projected = self.projector.forward(self.case.truth if truth is None else truth)
        return self.case.multiplicative * (projected + self.case.additive)

    def factors(self, mu: Tensor) -> Tensor:
        """Those with another attenuation."""
        right, wrong = (attenuation_factors(image, self.projector) for image in (self.mu, mu))
        return self.case.multiplicative * wrong / right

    def told(self, factors: Tensor | None = None, background: Tensor | None = None) -> Case:
        """The true counts, with factors or expected background, in counts, that are not the true ones."""
        factors = self.case.multiplicative if factors is None else factors
        background = self.background if background is None else background
        additive = torch.where(factors > 0, background / factors.clamp(min=1e-30), torch.zeros_like(factors))
        return replace(self.case, multiplicative=factors, additive=additive, expected=self.expected())

    @property
    def background(self) -> Tensor:
        """Expected scatter and randoms, in counts."""
        return self.case.multiplicative * self.case.additive


def _attenuation(scan: Scan) -> Case:
    return scan.told(scan.factors(1.05 * scan.mu))


def _moved(scan: Scan) -> Case:
    pixels = _MOVED / scan.case.geometry.voxel_size[2]
    whole = int(pixels)
    near, far = (torch.roll(scan.mu, by, 2) for by in (whole, whole + 1))
    return scan.told(scan.factors(torch.lerp(near, far, pixels - whole)))


def _scatter(scan: Scan) -> Case:
    # Half of the background is scatter, which is nowhere below nothing; the rest is the same in all bins.
    background = scan.background
    scatter = (background - background.sum() / (2 * background.numel())).clamp(min=0)
    return scan.told(background=background - _SHARE * scatter)


def _background(scan: Scan) -> Case:
    return scan.told(background=(1 - _SHARE) * scan.background)


def _psf(scan: Scan) -> Case:
    more = GaussianBlur(scan.case.geometry, _PSF * (_WIDER**2 - 1) ** 0.5, torch.device("cpu"))
    return replace(scan.case, expected=scan.expected(more(scan.case.truth)))


def _scale(scan: Scan) -> Case:
    return replace(scan.case, scale_error=1 + _SHARE)


def _views(scan: Scan) -> Case:
    factors = scan.case.multiplicative.clone()
    factors[:, : round(_MISSING * factors.shape[1])] = 0
    return replace(scan.case, multiplicative=factors)


def _block(scan: Scan) -> Case:
    case, number = scan.case, scan.case.projdata.scanner.num_detectors_per_ring
    dead, others = np.meshgrid(number // 5 + np.arange(_BLOCK), np.arange(number))
    ring = np.zeros_like(dead)
    bins = DetectorPairs(case.projdata).bins(dead, ring, others, ring)
    expected = scan.expected().flatten()
    expected[np.unique(bins[bins >= 0])] = 0
    return replace(case, expected=expected.reshape(case.projdata.shape))


def _stir(scan: Scan) -> Case:
    """Projected by the real STIR: see the table."""
    case = scan.case
    ring = replace(case.projdata.scanner, inner_ring_radius=_RING * case.projdata.scanner.inner_ring_radius)
    layout = replace(case.projdata, scanner=replace(ring, name="a wider ring of a Siemens mMR"))
    z, y, x = case.geometry.voxel_size
    fine = ImageGeometry((1, *(_FINER * n + 1 for n in case.geometry.shape[1:])), (z, y / _FINER, x / _FINER))
    truth, mu = (_finer(image, fine) for image in (case.truth, scan.mu))
    projected = _blurred(_stirs_projection(truth, fine, layout) / _FINER, case.projdata)
    # Line integrals of attenuation in mm to 1/cm; those of the model are taken out of the factors.
    through = torch.exp(-_stirs_projection(mu, fine, layout) * fine.voxel_size[2] / 10)
    factors = case.multiplicative * through / attenuation_factors(scan.mu, scan.projector)
    return replace(case, expected=factors * projected + scan.background)


def _finer(image: Tensor, fine: ImageGeometry) -> Tensor:
    """The image on finer voxels, its voxel ``n // 2`` in its place."""
    sizes = [_FINER * (n - 1) + 1 for n in image.shape[1:]]
    within = functional.interpolate(image[None], sizes, mode="bilinear", align_corners=True)[0]
    rows, columns = (n - m for n, m in zip(fine.shape[1:], sizes, strict=True))
    return functional.pad(within, (0, columns, 0, rows))


def _blurred(projected: Tensor, projdata: ProjDataGeometry) -> Tensor:
    """Along the tangential positions, by a Gaussian whose width is that of the bins in the middle."""
    from scipy.ndimage import gaussian_filter1d

    scanner = projdata.scanner
    bin_size = np.pi * scanner.inner_ring_radius / scanner.num_detectors_per_ring
    return torch.from_numpy(gaussian_filter1d(projected.numpy(), _SINOGRAM_BLUR / 2.3548 / bin_size, axis=2))


def _stirs_projection(image: Tensor, geometry: ImageGeometry, projdata: ProjDataGeometry) -> Tensor:
    import stir

    stir.Verbosity.set(0)

    with tempfile.TemporaryDirectory() as folder:
        write_projection_data(Path(folder, "template.hs"), torch.zeros(projdata.shape), projdata)
        write_image(Path(folder, "image.hv"), image, geometry)
        template = stir.ProjData.read_from_file(str(Path(folder, "template.hs")))
        density = stir.FloatVoxelsOnCartesianGrid.read_from_file(str(Path(folder, "image.hv")))
        matrix = stir.ProjMatrixByBinUsingRayTracing()
        matrix.set_num_tangential_LORs(_RAYS)
        projector = stir.ForwardProjectorByBinUsingProjMatrixByBin(matrix)
        projector.set_up(template.get_proj_data_info(), density)
        projected = stir.ProjDataInMemory(template.get_exam_info(), template.get_proj_data_info())
        projector.forward_project(projected, density)
        projected.write_to_file(str(Path(folder, "projected.hs")))
        return read_projection_data(Path(folder, "projected.hs"))[0]


@dataclass(frozen=True)
class Mismatch:
    """One error: in words, and how it is made."""

    about: str
    change: Callable[[Scan], Case]


MISMATCHES = {
    "wrong-attenuation": Mismatch("attenuation 5 % too strong in the factors", _attenuation),
    "moved-attenuation": Mismatch("attenuation map 3 mm beside the head", _moved),
    "wrong-scatter": Mismatch("scatter 20 % too low in the background", _scatter),
    "wrong-background": Mismatch("scatter and randoms 20 % too low", _background),
    "wrong-psf": Mismatch("resolution 5.2 mm instead of 4", _psf),
    "wrong-scale": Mismatch("intensity scale of the model 20 % too high", _scale),
    "missing-views": Mismatch("30 % of the views missing, in one wedge; the factors say so", _views),
    "dead-block": Mismatch("a block of nine detectors counts nothing, which the factors do not say", _block),
    "stir-data": Mismatch(
        "projected by STIR: 10 rays, pixels of 1 mm, a ring 1 % wider, blur of 2 mm along the sinogram; needs STIR",
        _stir,
    ),
}


def mismatched(kind: str, case: Case, mu: Tensor) -> Case:
    """The case of ``slice`` with one error."""
    return MISMATCHES[kind].change(Scan(case, mu, Projector(case.geometry, case.projdata)))
