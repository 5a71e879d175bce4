"""What a model for one patient expects: the mean of other subjects' PETs on that anatomy, which its network is shown.

In a model file it is a tensor of bytes, and its place in the patient part of the provenance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..geometry.exam import POSITIONS
from ..geometry.gaussian import gaussian_smooth
from ..geometry.images import ImageGeometry

if TYPE_CHECKING:
    from ..patient.anatomical import AnatomicalImage
    from ..patient.image import SourceImage

#: Source of such an image: no file.
EXPECTED = "expected by the model"
#: Largest value that is kept, in network units, and largest image, in voxels.
_LARGEST, _MOST_VOXELS = 4.0, 2**25
_KINDS = ("Interfile", "NIfTI", "DICOM", "ECAT7")
#: Both images are smoothed, and contrast is that to the neighbourhood, of these FWHM; noise is the least variance.
#: What exceeds this activity, smoothed, counts. Chosen with one patient's model.
_SMOOTHED_MM, _NEIGHBOURHOOD_MM, _NOISE = 4.0, 20.0, 0.05
_EMITTING, _EMITTING_MM = 0.4, 6.0
#: Below this correlation it is somebody else. How far off along an axis is borne: at 2 mm the error grows by a fifth,
#: at 4 mm it is that of the population's model.
RESEMBLANCE_LEAST, MOST_OFF_MM = 0.13, 3.0
#: How far off it is looked for.
_FARTHEST_MM = 8.0


def place_of(image: SourceImage) -> dict[str, Any]:
    """Where an image lies, ready for JSON."""
    position = None if image.position is None else list(image.position)
    return {"affine": image.affine.tolist(), "format": image.kind, "position": position}


def bytes_of(values: Tensor) -> Tensor:
    """What a file keeps of the values ``[z, y, x]``, network units."""
    return (values.float().clamp(0, _LARGEST) * (255 / _LARGEST)).round().to(torch.uint8)


def expected_image(values: Tensor, training: Mapping[str, Any]) -> AnatomicalImage:
    """The image of a file: of `bytes_of` and, in the provenance, `place_of`; a ValueError if they are none."""
    if values.dtype != torch.uint8 or values.ndim != 3 or min(values.shape) < 8 or values.numel() > _MOST_VOXELS:
        raise ValueError(f"the expected image must be a volume of bytes, found {values.dtype} {tuple(values.shape)}")
    from ..patient.anatomical import AnatomicalImage
    from ..patient.image import SourceImage, check_affine

    made_for = training.get("personalised")
    place = made_for.get("place") if isinstance(made_for, Mapping) else None
    try:
        affine, kind, position = np.asarray(place["affine"], np.float64), place["format"], place["position"]  # type: ignore[index]
        position = None if position is None else tuple(position)
        if affine.shape != (4, 4) or kind not in _KINDS or not (position is None or position in POSITIONS):
            raise ValueError(f"found {place!r}")
        check_affine(affine)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the file does not say where the expected image lies: make it again ({error})") from error
    image = SourceImage((values.float() * (_LARGEST / 255)).numpy(), affine, kind, position=position)
    return AnatomicalImage(image, EXPECTED)


@dataclass(frozen=True)
class Resemblance:
    """Correlation of local contrast in an image and in the expected one at the same place, and how far it lies off.

    ``offset_mm`` is along z, y and x: where the correlation is largest, of whole voxels within 8 mm along each axis.
    """

    correlation: float
    offset_mm: tuple[float, float, float]

    @property
    def off_mm(self) -> float:
        """How far off along the axis where it is most."""
        return max(map(abs, self.offset_mm))

    @property
    def is_somebody_else(self) -> bool:
        """Whether the data are another's, or of a head that lies far off."""
        return self.correlation < RESEMBLANCE_LEAST

    @property
    def is_elsewhere(self) -> bool:
        """Whether the head lies off by more than is borne."""
        return self.off_mm > MOST_OFF_MM

    @property
    def grade(self) -> int:
        """0: as is to be expected; 1: the head lies elsewhere; 2: somebody else's."""
        return 2 if self.is_somebody_else else int(self.is_elsewhere)

    @property
    def advice(self) -> str:
        """What to do about it; empty if nothing."""
        if self.is_somebody_else:
            return (
                "is the model this patient's, and does the head lie where the MR has it? Give the MR (--anatomical) "
                "and --register emission, or use a population's model"
            )
        if self.is_elsewhere:
            return "the head lies elsewhere than the MR has it, and borders are drawn there: --register emission"
        return ""

    def __str__(self) -> str:
        return (
            f"resembles the model's patient by {self.correlation:.2f} (least {RESEMBLANCE_LEAST:g}), "
            f"{self.off_mm:.3g} mm off"
        )


def resemblance(expected: Tensor, image: Tensor, geometry: ImageGeometry) -> Resemblance:
    r"""How far an image resembles the expected one.

    Contrast is normalised by that of the neighbourhood: :math:`(x - \bar x) / \sqrt{\overline{(x - \bar x)^2} + 0.05}`.

    Parameters
    ----------
    expected, image
        ``[z, y, x]``, network units. An image that is not finite resembles nothing: 0.
    geometry
        Their grid.
    """
    images = torch.stack((expected.to(image), image))
    counted = (gaussian_smooth(images, geometry, _EMITTING_MM) > _EMITTING).any(0)
    if not bool(torch.isfinite(image).all() and counted.any()):
        return Resemblance(0.0, (0.0, 0.0, 0.0))
    smooth = gaussian_smooth(images, geometry, _SMOOTHED_MM)
    contrast = smooth - gaussian_smooth(smooth, geometry, _NEIGHBOURHOOD_MM)
    contrast /= (gaussian_smooth(contrast.square(), geometry, _NEIGHBOURHOOD_MM) + _NOISE).sqrt()

    def correlation(voxels: int, axis: int) -> float:
        moved = contrast[0].roll(voxels, axis)[counted], contrast[1][counted]
        return float(torch.corrcoef(torch.stack(moved))[0, 1].nan_to_num())

    offset = []
    for axis, (size, length) in enumerate(zip(geometry.voxel_size, geometry.shape, strict=True)):
        most = min(int(_FARTHEST_MM / size), length // 2)
        offset.append(size * max(range(-most, most + 1), key=lambda n, axis=axis: (correlation(n, axis), -abs(n))))
    return Resemblance(correlation(0, 0), (offset[0], offset[1], offset[2]))
