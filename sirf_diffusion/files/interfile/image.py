"""Images in STIR Interfile (``.hv`` and ``.v``)."""

from __future__ import annotations

import math
import os

import numpy as np
import torch

from ...geometry.exam import ExamInfo
from ...geometry.images import ImageGeometry
from .exam import exam_lines, frame_lines
from .foreign import image_header
from .header import Header
from .keys import DATA_TYPES
from .values import check_finite, encoded, output_paths, read_values, scale_factors, write_pair

_AXES = ("x", "y", "z")


def read_image(path: str | os.PathLike[str]) -> tuple[torch.Tensor, ImageGeometry]:
    """Read one image: ``float32`` ``[z, y, x]``, and its grid.

    ``NAME#2`` is the second time frame of a dynamic image. The header (``.hv`` or any name) is one that STIR reads,
    which gives STIR's values, one of Siemens (``.v.hdr``), or a single image in Interfile 3.3 (``.h33``); integers of 1
    to 8 bytes and floats of 4 or 8, either byte order. The centre of the first voxel lies at the header's 'first pixel
    offset (mm)' (up to the header's rounding); without that of z the origin is 0.

    Raises InterfileError if a key is missing or has no meaning, the data file is missing or short, or values are not
    finite, and UnsupportedError if there are several time frames and none is chosen, several image data types, or the
    axes are not x, y, z.
    """
    header = image_header(path)
    _check_single_image(header)
    shape = (header.size("matrix size", 3), header.size("matrix size", 2), header.size("matrix size", 1))
    voxel_size = _zyx(header, "scaling factor (mm/pixel)")
    origin = (0.0, 0.0, 0.0)
    if header.text("first pixel offset (mm)", "", index=3):
        first, before = _zyx(header, "first pixel offset (mm)"), _voxels_before_centre(shape)
        z, y, x = map(_origin, first, before, voxel_size)
        origin = (z, y, x)
    try:
        geometry = ImageGeometry(shape, voxel_size, origin)
    except ValueError as problem:
        raise header.error(str(problem)) from problem
    scale = scale_factors(header, shape[0], header.frame)
    values = read_values(header, math.prod(shape)).reshape(shape)
    with np.errstate(over="ignore", invalid="ignore"):
        image = values.astype(np.float32) * scale[:, None, None]
    check_finite(header, image)
    header.warn_of_unread_keys()
    return torch.from_numpy(image), geometry


def write_image(
    path: str | os.PathLike[str],
    image: torch.Tensor,
    geometry: ImageGeometry,
    number_format: str = "float",
    exam: ExamInfo | None = None,
) -> None:
    """Write one image as STIR does: little-endian, ``.hv`` and ``.v``; existing files are replaced, both or none.

    The name ends in ``.hv`` or has no suffix; the image is ``[z, y, x]``, finite. ``number_format`` is ``"float"``, or
    ``"short"`` for half the size (see `encoded` for its precision); ``exam`` is exam information to keep with the
    image, usually that of the prompts (see `read_exam_info`). Raises InterfileError if the shape does not match, a
    value is not finite or the files cannot be written.
    """
    header, data = output_paths(path, ".hv")
    array = image.detach().to("cpu", torch.float32).numpy()
    values, dtype, format_lines, scale = encoded(array, geometry.shape, number_format)
    before = _voxels_before_centre(geometry.shape)
    first = [o - n * d for o, n, d in zip(geometry.origin, before, geometry.voxel_size, strict=True)]
    lines = [
        "!INTERFILE  :=",
        f"name of data file := {data.name}",
        "!version of keys := STIR6.0",
        "!GENERAL DATA :=",
        *exam_lines(exam or ExamInfo(), image=True),
        "!GENERAL IMAGE DATA :=",
        "!type of data := PET",
        "imagedata byte order := LITTLEENDIAN",
        "!PET STUDY (General) :=",
        "!PET data type := Image",
        "process status := Reconstructed",
        *format_lines,
        "number of dimensions := 3",
    ]
    for k, axis in enumerate(_AXES, start=1):
        lines += [
            f"matrix axis label [{k}] := {axis}",
            f"!matrix size [{k}] := {geometry.shape[3 - k]}",
            f"scaling factor (mm/pixel) [{k}] := {geometry.voxel_size[3 - k]:.9g}",
        ]
    lines += [f"first pixel offset (mm) [{k}] := {first[3 - k]:.9g}" for k in (1, 2, 3)]
    lines += [*frame_lines(exam or ExamInfo()), f"image scaling factor[1] := {scale:.9g}", "!END OF INTERFILE :="]
    write_pair(header, data, lines, [values], dtype)


def _voxels_before_centre(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    # STIR counts planes from 0 and centres the other two index ranges.
    return (0, shape[1] // 2, shape[2] // 2)


def _zyx(header: Header, key: str) -> tuple[float, float, float]:
    return header.number(key, index=3), header.number(key, index=2), header.number(key, index=1)


def _origin(first: float, num_before: int, voxel_size: float) -> float:
    origin = first + num_before * voxel_size
    # Headers hold six digits: what may be their rounding is no shift.
    return 0.0 if abs(origin) <= 1e-5 * abs(first) else origin


def _check_single_image(header: Header) -> None:
    if (kind := header.choice("PET data type", DATA_TYPES, "Image")) != "Image":
        raise header.error(f"'PET data type := {kind}' is no image (projection data are read by read_projection_data)")
    if (num := header.integer("number of image data types", 1, minimum=1)) > 1:
        raise header.unsupported(f"'number of image data types := {num}'", "STIR or SIRF to extract one of them")
    dimensions = header.integer("number of dimensions", 2)
    if dimensions != 3:
        raise header.error(f"key 'number of dimensions' must be 3 for an image, found {dimensions}")
    labels = tuple(header.text("matrix axis label", "", index=k) for k in (1, 2, 3))
    if labels[0] and labels != _AXES:
        raise header.unsupported(f"'matrix axis label' [1] to [3] := {', '.join(labels)} instead of x, y, z")
