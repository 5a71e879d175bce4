"""Cases of the user's own: any image as the truth, or the NEMA image-quality phantom."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.bench.acquisition import mmr_slice
from benchmarks.bench.cases import Case, CaseSpec, case_of, volume_grids
from sirf_diffusion.engines.embedded.acquisition import default_geometry
from sirf_diffusion.files.interfile import read_projection_data_geometry
from sirf_diffusion.geometry.images import ImageGeometry
from sirf_diffusion.geometry.projdata import ProjDataGeometry
from sirf_diffusion.patient.image import SourceImage, UnusableImage
from sirf_diffusion.patient.readers import read_source
from sirf_diffusion.patient.resampling import resample, stir_grid

logger = logging.getLogger(__name__)

NEMA = "nema-iq"
#: 1/cm at 511 keV.
_WATER, _LUNG = 0.096, 0.025
#: Share of the maximum above which the truth is taken for the object, and below which a voxel is its background.
_OBJECT, _MARGIN_MM = 0.02, 20.0
_PIXEL_MM, _SMALLEST = 2.0, 128
#: NEMA NU 2-2018: diameters of the spheres, the circle they stand on, and of the lung insert; wall of nothing else.
_SPHERES, _CIRCLE, _INSERT = (37, 28, 22, 17, 13, 10), 114.4, 50.0
_CONTRAST, _ROI, _NUM_ROIS, _APART = 4.0, 37.0, 12, 15.0


@dataclass(frozen=True)
class Given:
    """Files of a case: the truth (or ``nema-iq``), attenuation in 1/cm, MR image, header of projection data.

    ``contents`` is a hash of all of them: results of other files are others.
    """

    truth: str
    mu: str | None = None
    mr: str | None = None
    template: str | None = None
    contents: str = ""

    @classmethod
    def of(cls, truth: str, mu: str | None = None, mr: str | None = None, template: str | None = None) -> Given:
        """Of file names; OSError if one is not there, ValueError if the truth is no image that can be used."""
        if truth == NEMA and (mu or mr):
            raise ValueError(f"--truth {NEMA} has its own attenuation and no MR image: leave --mu and --mr out")
        digest = hashlib.sha256()
        for name, path in (("truth", truth), ("mu", mu), ("mr", mr)):
            if path is not None and path != NEMA:
                image = _read(path)
                digest.update(repr((name, image.values.shape, image.affine.tolist())).encode())
                digest.update(image.values.tobytes())
        if template is not None:
            digest.update(Path(template).read_bytes())
        return cls(truth, mu, mr, template, digest.hexdigest()[:16])

    @property
    def kind(self) -> str:
        """Name in tables."""
        return re.sub(r"\W+", "-", Path(self.truth).name.split(".")[0])

    def grids(self) -> tuple[ImageGeometry, ProjDataGeometry]:
        """The template's scanner; else a plane, or 23 planes, of a Siemens mMR. In plane 2 mm, around the object."""
        extent, planes = (330.0, 1) if self.truth == NEMA else _extent(_read(self.truth))
        if self.template is not None:
            projdata = read_projection_data_geometry(self.template)
            geometry = default_geometry(projdata, (_PIXEL_MM, _PIXEL_MM))
        else:
            geometry, projdata = mmr_slice() if planes == 1 else volume_grids()
        seen = default_geometry(projdata, (_PIXEL_MM, _PIXEL_MM)).shape[-1]
        size = min(max(_SMALLEST, 16 * int(np.ceil((extent + _MARGIN_MM) / _PIXEL_MM / 16))), seen)
        return ImageGeometry((geometry.shape[0], size, size), (geometry.voxel_size[0], _PIXEL_MM, _PIXEL_MM)), projdata

    def case(self, spec: CaseSpec) -> Case:
        """The case, without counts."""
        geometry, projdata = self.grids()
        if self.truth == NEMA:
            truth, mu, masks, rois = nema_iq(geometry)
            return replace(case_of(spec, geometry, projdata, truth, mu, torch.zeros(geometry.shape), masks), rois=rois)
        source = _read(self.truth)
        grid = stir_grid(geometry)
        shift = _middle(grid.affine, grid.shape) - _middle(source.affine, source.values.shape)

        def placed(path: str | None) -> Tensor:
            if path is None:
                return torch.zeros(geometry.shape)
            image = _read(path)
            affine = image.affine.copy()
            affine[:3, 3] += shift
            return torch.from_numpy(resample(replace(image, affine=affine), grid)).clamp(min=0)

        truth = placed(self.truth)
        body = truth > _OBJECT * float(truth.max())
        mu = placed(self.mu)
        if self.mu is None:
            body = torch.from_numpy(_filled(body.numpy()))
            mu = _WATER * body.float()
            logger.warning("no attenuation image (--mu): water where the truth is above 2 % of its maximum")
        return case_of(spec, geometry, projdata, truth, mu, placed(self.mr), {"head": body})


def nema_iq(geometry: ImageGeometry) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Emission and attenuation (1/cm) of the image-quality phantom, its spheres, and ROIs of its background.

    Six hot spheres, 4 to 1, and a lung insert without activity in a body of water (NEMA NU 2-2018, section 7), 27
    points to a voxel. The ROIs are up to twelve discs of 37 mm, 15 mm from spheres, insert and wall, in the planes of
    the spheres' centres and 10 and 20 mm beside; of smaller spheres' size about the same centres.
    """
    from scipy.ndimage import binary_erosion

    dz, dy, dx = geometry.voxel_size
    activity, water = torch.zeros(geometry.shape), torch.zeros(geometry.shape)
    offsets = (-1 / 3, 0.0, 1 / 3)
    for z, y, x in ((a * dz, b * dy, c * dx) for a in offsets for b in offsets for c in offsets):
        points = _points(geometry, (z, y, x))
        body, insert = _body(*points), _insert(*points)
        activity += (body & ~insert).float() + sum((_CONTRAST - 1) * s.float() for s in _spheres(*points).values())
        water += body.float() + (_LUNG / _WATER - 1) * (body & insert).float()
    points = _points(geometry)
    body, insert, spheres = _body(*points), _insert(*points), _spheres(*points)
    wide = _spheres(*points, margin=_APART)
    occupied = torch.stack(list(wide.values())).any(0).any(0) | _insert(*points, margin=_APART).any(0)
    inner = torch.from_numpy(binary_erosion(body.any(0).numpy(), _disc(_APART, geometry))) & ~occupied
    background = inner & body
    rois = _rois(inner.numpy(), _disc(_ROI / 2, geometry), points)
    masks = {"head": body, "white": background}
    for name, mask in ({"lung insert": insert & body} | spheres).items():
        masks |= {name: mask, f"around {name}": background}
    return activity / 27, _WATER * water / 27, masks, rois


def _body(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Half a disc of 147 mm, and below it two quarters of 77 mm with a rectangle between; the spheres' middle at 0."""
    y = y - 35.0  # y points down: the middle of the half disc lies below the spheres' middle
    above = (y <= 0) & (x**2 + y**2 <= 147.0**2)
    below = (y > 0) & (y <= 77.0) & ((x.abs() <= 70.0) | ((x.abs() - 70.0) ** 2 + y**2 <= 77.0**2))
    return (above | below) & (z.abs() <= 90.0)


def _insert(z: Tensor, y: Tensor, x: Tensor, margin: float = 0.0) -> Tensor:
    return (x**2 + y**2 <= (_INSERT / 2 + margin) ** 2) & (z.abs() <= 90.0)


def _spheres(z: Tensor, y: Tensor, x: Tensor, margin: float = 0.0) -> dict[str, Tensor]:
    found = {}
    for number, diameter in enumerate(_SPHERES):
        angle = np.deg2rad(60.0 * number)
        square = (x - _CIRCLE / 2 * np.cos(angle)) ** 2 + (y - _CIRCLE / 2 * np.sin(angle)) ** 2 + z**2
        found[f"hot, {diameter} mm"] = square <= (diameter / 2 + margin) ** 2
    return found


def _rois(inner: NDArray[np.bool_], disc: NDArray[np.bool_], points: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """By sphere, labels of discs of its size that lie in the background."""
    from scipy.ndimage import binary_erosion

    z, y, x = points
    free = torch.from_numpy(binary_erosion(inner, disc))
    centres: list[tuple[float, float]] = []
    while bool(free.any()) and len(centres) < _NUM_ROIS:
        row, column = (int(v[0]) for v in free.nonzero(as_tuple=True))
        centres.append((float(y[0, row, column]), float(x[0, row, column])))
        free &= torch.hypot(y[0] - centres[-1][0], x[0] - centres[-1][1]) >= _ROI
    half = abs(float(z[1, 0, 0] - z[0, 0, 0])) / 2 if len(z) > 1 else np.inf
    planes = torch.stack([(z - place).abs() <= half for place in (-20, -10, 0, 10, 20)]).any(0)
    found = {}
    for diameter in _SPHERES:
        labels = torch.zeros(z.shape, dtype=torch.int64)
        for number, (row, column) in enumerate(centres, start=1):
            labels[(torch.hypot(y - row, x - column) <= diameter / 2) & planes] = number
        found[f"{diameter} mm"] = labels
    return found


def _disc(radius: float, geometry: ImageGeometry) -> NDArray[np.bool_]:
    """Pixels of a disc, for morphology."""
    y, x = (np.arange(-int(radius / size), int(radius / size) + 1) * size for size in geometry.voxel_size[1:])
    return np.hypot(y[:, None], x) <= radius


def _points(geometry: ImageGeometry, offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> tuple[Tensor, ...]:
    """Coordinates z, y, x in mm from the middle voxel, of points in the voxels."""
    axes = [
        (torch.arange(n, dtype=torch.float64) - n // 2) * size + move
        for n, size, move in zip(geometry.shape, geometry.voxel_size, offset, strict=True)
    ]
    return torch.meshgrid(*axes, indexing="ij")


def _read(path: str | os.PathLike[str]) -> SourceImage:
    try:
        return read_source(Path(path))
    except UnusableImage as error:
        raise ValueError(f"{path} cannot be used: {error}") from error


def _extent(image: SourceImage) -> tuple[float, int]:
    """The larger in-plane size of what is not air in mm, and the number of planes."""
    size = np.abs(image.affine[:3, :3]) @ np.asarray(image.values.shape)
    along = int(np.abs(image.affine[2, :3]).argmax())
    index = np.argwhere(image.values > _OBJECT * image.values.max())
    spans = np.abs(image.affine[:3, :3]) @ (np.ptp(index, axis=0) + 1)
    return float(min(spans[:2].max(), size[:2].max())), image.values.shape[along]


def _middle(affine: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    return (affine @ [*((np.asarray(shape) - 1) / 2), 1.0])[:3]


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_fill_holes

    return np.stack([binary_fill_holes(plane) for plane in mask])
