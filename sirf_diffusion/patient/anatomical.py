"""An MR or CT image from its own space onto the grid of a reconstruction."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files.frames import split_frame
from ..geometry.checks import check_image
from ..geometry.exam import HEAD_FIRST_SUPINE, ExamInfo, Position, position_of
from ..geometry.images import ImageGeometry
from .image import SourceImage, density_of_ct, usable
from .readers import read_source
from .registration import Registration, register
from .resampling import PatientGrid, in_common, resample, share_inside, stir_grid

logger = logging.getLogger(__name__)

#: Least share of the reconstruction's patient that must be covered, and of what two images could have in common.
MIN_COVERAGE = 0.5
#: Less than this gives a warning.
ALL = 0.95
#: No MR image has values below this; air in a CT image has -1000.
_LEAST_CT = -300.0


@dataclass(frozen=True)
class AnatomicalImage:
    """An anatomical image with its place in the patient; `on` puts it onto the grid of a reconstruction.

    ``source`` says where it is from and ``sha256`` is of the file (a DICOM folder: of all its files), or of the values;
    ``registration`` is how it was moved, if it was. ``data_position`` is how the patient lay when the data of the
    reconstruction were taken; unknown (None) stands for head first, supine. Interfile images are in the scanner's
    coordinates, as the reconstruction is, unless both tell this.
    """

    image: SourceImage
    source: str = ""
    sha256: str = ""
    registration: Registration | None = None
    data_position: Position | None = None
    _placed: dict[ImageGeometry, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> AnatomicalImage:
        """From a file or DICOM folder, see `read_source`; a ``ValueError`` that names it if it cannot be used.

        CT images (by their DICOM header, or values below -300) become density relative to water, as for training.
        """
        image = usable(read_source, path, "the anatomical image ")
        digest = _digest(split_frame(path)[0], image)
        if image.modality == "CT" or (not image.modality and float(image.values.min()) < _LEAST_CT):
            logger.info("%s is taken for a CT image in Hounsfield units: converted to density", path)
            image = density_of_ct(image)
        return cls(image, str(path), digest)

    @classmethod
    def of(cls, values: Tensor, geometry: ImageGeometry, source: str = "given in memory") -> AnatomicalImage:
        """From values ``[z, y, x]``, finite, on a grid in the scanner's coordinates."""
        values = values.detach().to("cpu", torch.float32)
        check_image(values, "the anatomical image", geometry.shape)
        array = np.ascontiguousarray(values.numpy())
        image = SourceImage(array, stir_grid(geometry).affine, "Interfile")
        return cls(image, source, hashlib.sha256(array.tobytes()).hexdigest())

    @property
    def identity(self) -> dict[str, str]:
        """What tells this image from others: SHA-256 of the file, and of values and place, which a copy keeps."""
        place = np.round(self.image.affine, 3) + 0.0  # no -0
        values = np.ascontiguousarray(self.image.values, np.float32)
        digest = hashlib.sha256(str(values.shape).encode() + place.tobytes() + values.tobytes())
        return {"mr_sha256": self.sha256, "mr_values_sha256": digest.hexdigest()}

    def grid(self, geometry: ImageGeometry) -> PatientGrid:
        """A reconstruction's grid in the coordinates of the image."""
        return stir_grid(geometry, self._position())

    def on(self, geometry: ImageGeometry) -> Tensor:
        """Values ``[z, y, x]`` float32 on a grid, see `resample`; on its own grid, the same numbers. Logged once.

        Raises ValueError if grid and image overlap by less than a half of what they could, see `in_common`.
        """
        if geometry not in self._placed:
            grid = self.grid(geometry)
            if (common := in_common(self.image, grid)) < MIN_COVERAGE:
                raise ValueError(self._elsewhere(f"and the reconstruction's grid overlap by only {common:.0%}"))
            values = torch.from_numpy(np.array(resample(self.image, grid)))
            if not self.lies_on(geometry):
                known = self.describe(geometry)
                logger.info("the anatomical image %s is resampled: %s to %s", self.source, known["from"], known["to"])
            self._placed[geometry] = values
        return self._placed[geometry].clone()

    def lies_on(self, geometry: ImageGeometry) -> bool:
        """Whether its voxels are those of the grid."""
        grid = self.grid(geometry)
        return self.image.values.shape == grid.shape and bool(np.allclose(self.image.affine, grid.affine, atol=0.01))

    def check_against(self, emission: Tensor, geometry: ImageGeometry) -> float:
        """Share of the patient in an emission image ``[z, y, x]`` that the image covers, in [0, 1].

        The patient is where the emission is above a fifth of its 99.5th percentile. Less than 95 % gives a warning.
        Raises ValueError for less than a half.
        """
        values = emission.detach().cpu().numpy()
        index = np.argwhere(values > 0.2 * np.quantile(values[values > 0], 0.995)).T
        affine = self.grid(geometry).affine
        points = affine[:3, :3] @ index + affine[:3, 3:]
        share = share_inside(points, self.image.affine, self.image.values.shape)
        if share < MIN_COVERAGE:
            raise ValueError(self._elsewhere(f"covers only {share:.0%} of the patient in the emission image"))
        if share < ALL:
            logger.warning(
                "the anatomical image %s covers %.0f %% of the patient in the emission image: the network sees air "
                "elsewhere",
                self.source,
                100 * share,
            )
        return share

    def registered_to(self, fixed: Tensor, geometry: ImageGeometry) -> AnatomicalImage:
        """The image moved rigidly onto an emission or attenuation image ``[z, y, x]``, see `register`."""
        values = np.ascontiguousarray(fixed.detach().cpu().numpy(), np.float32)
        found = register(SourceImage(values, self.grid(geometry).affine, "Interfile"), self.image)
        moved = replace(self.image, affine=found.matrix @ self.image.affine)
        return replace(self, image=moved, registration=found)

    def describe(self, geometry: ImageGeometry) -> dict[str, Any]:
        """Source, hash, grids and registration, ready for JSON."""
        sizes = np.linalg.norm(self.image.affine[:3, :3], axis=0)
        return {
            "file": self.source,
            "sha256": self.sha256,
            "format": self.image.kind,
            "modality": self.image.modality or None,
            "resampled": not self.lies_on(geometry),
            "from": {"shape": list(self.image.values.shape), "voxel_size_mm": [round(float(v), 5) for v in sizes]},
            "to": {"shape": list(geometry.shape), "voxel_size_mm": list(geometry.voxel_size)},
            "patient_position": " ".join(self._position()),
            "registration": None if self.registration is None else self.registration.describe(),
        }

    @property
    def needs_position(self) -> bool:
        """Whether it matters how the patient of the data lies: not if it is in the scanner's coordinates."""
        return self.image.kind != "Interfile" or self.image.position is not None

    @property
    def unplaced(self) -> bool:
        """Whether it matters how the patient of the data lies, and nobody has told."""
        return self.needs_position and self.data_position is None

    def lying_as(self, exam: ExamInfo | None) -> AnatomicalImage:
        """The image for data of this exam; itself if nobody said how the patient lay, or it does not matter.

        Raises ValueError if the patient lay otherwise than head or feet first, supine or prone.
        """
        position = position_of(exam) if self.needs_position else None
        return self if position is None else replace(self, data_position=position)

    def say_if_assumed(self) -> AnatomicalImage:
        """Itself; a warning if it is placed for head first, supine because nobody said how the patient lay."""
        if self.unplaced and self.image.kind != "Interfile":  # which has a position of its own
            logger.warning(
                "nothing says how the patient of the data lies: %s is placed for head first, supine. Headers of data "
                "have 'patient orientation' and 'patient rotation'; SIRF's own objective functions do not tell, those "
                "of sirf_diffusion.get_engine('sirf') ask their data",
                self.source,
            )
        return self

    def _position(self) -> Position:
        """Position for the reconstruction's grid."""
        if self.image.kind != "Interfile":
            return self.data_position or HEAD_FIRST_SUPINE
        if self.image.position is None:
            return HEAD_FIRST_SUPINE
        return self.data_position or self.image.position

    def _elsewhere(self, what: str) -> str:
        return (
            f"the anatomical image {self.source} {what}: is it of another patient, or in the coordinates of another "
            "scanner? Register it (--register), or give one that is aligned"
        )


@dataclass(frozen=True)
class Placed:
    """An anatomical image on a reconstruction's grid: values ``[z, y, x]``, and what a record should say of it."""

    values: Tensor
    record: dict[str, Any]


def load_anatomical(
    anatomical: AnatomicalImage | Tensor | str | os.PathLike[str],
    geometry: ImageGeometry,
    *,
    register_to: tuple[Tensor, ImageGeometry] | None = None,
    emission: Tensor | None = None,
) -> Placed:
    """An anatomical image for a reconstruction on this grid; a ``ValueError`` if it cannot be used or lies elsewhere.

    It is a file (see `AnatomicalImage.read`), an image in its own space, or values ``[z, y, x]`` that are on the grid.
    With ``register_to``, an emission or attenuation image and its grid, it is moved rigidly onto that first; it must
    cover the patient in ``emission``, an early image on the grid.
    """
    image = as_anatomical(anatomical, geometry)
    if register_to is not None:
        image = image.registered_to(*register_to)
    share = None if emission is None else image.check_against(emission, geometry)
    return Placed(image.on(geometry), {**image.describe(geometry), "patient_covered": share})


def as_anatomical(
    anatomical: AnatomicalImage | Tensor | str | os.PathLike[str], geometry: ImageGeometry
) -> AnatomicalImage:
    """The image in its own space: of a file, or of values on this grid."""
    if isinstance(anatomical, AnatomicalImage):
        return anatomical
    if isinstance(anatomical, Tensor):
        return AnatomicalImage.of(anatomical, geometry)
    return AnatomicalImage.read(anatomical)


def _digest(path: Path, image: SourceImage) -> str:
    """SHA-256 of a file, with the values that an Interfile header names; of all files of a folder, by name."""
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    if image.kind == "Interfile":
        digest.update(image.values.tobytes())
    return digest.hexdigest()
