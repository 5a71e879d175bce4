"""SIRF containers as tensors and back: owning copies unless a view is asked for, dtype and geometry under control."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...geometry.exam import HEAD_FIRST_SUPINE, POSITIONS, ExamInfo, Position, position_of
from ...geometry.images import ImageGeometry


def to_tensor(container: Any, copy: bool = True) -> Tensor:
    """Values of a SIRF container as a float32 CPU tensor.

    Parameters
    ----------
    container
        ``sirf.STIR.ImageData`` (result ``[z, y, x]``) or ``AcquisitionData`` (``[TOF bin, sinogram, view, tangential
        position]``).
    copy
        If false, the tensor is a view of SIRF's memory: writing to it changes the container. The tensor keeps the
        Python object alive, but methods that give the object new memory, such as ``read_from_file``, part the two.

    Raises
    ------
    ValueError
        If a view was asked for and SIRF offers none: acquisition data in the storage scheme 'file', or SIRF < 3.9.
    """
    values, shared = values_of(container)
    if not shared and not copy:
        raise ValueError(
            f"SIRF offers no view of this {type(container).__name__} (acquisition data are viewable in the storage "
            "scheme 'memory' only, nothing is before SIRF 3.9): use copy=True"
        )
    return values.clone() if shared and copy else values


def values_of(container: Any) -> tuple[Tensor, bool]:
    """Values of a SIRF container without a copy where that is possible; whether the memory is SIRF's."""
    values, shared = view_of(container)
    return (values, True) if shared else (torch.from_numpy(np.asarray(container.as_array(), dtype=np.float32)), False)


def to_image(x: Tensor, template: Any) -> Any:
    """A new SIRF container with the values ``x`` and everything else (geometry, ExamInfo) as ``template``.

    ``x`` has the template's shape and any dtype and device; a tensor that requires gradients is detached. Works for
    ``ImageData`` and ``AcquisitionData``.
    """
    return fill(template.clone(), x)


def fill(container: Any, x: Tensor) -> Any:
    """Overwrite the values of a SIRF container with those of a tensor, by one copy; returns the container."""
    values, shared = (None, False) if getattr(container, "read_only", False) else view_of(container)
    shape = tuple(int(n) for n in (values if shared else container).shape)
    if tuple(x.shape) != shape:
        raise ValueError(f"cannot fill a {type(container).__name__} of shape {shape} with a tensor of {tuple(x.shape)}")
    if shared:
        values.copy_(x.detach())
    else:
        container.fill(x.detach().to("cpu", torch.float32).contiguous().numpy())
    return container


def image_geometry(image: Any) -> ImageGeometry:
    """Grid of a SIRF image, in STIR's conventions.

    SIRF tells the position of the first voxel in patient coordinates, whose axes are STIR's up to signs that depend on
    the patient's orientation; the signs are undone, so that ``origin`` is what STIR calls the origin of the image.
    """
    shape = tuple(int(n) for n in image.shape)
    # The shortest decimal that gives this float32, so that 2.08626 is the 2.08626 of a header.
    sizes = tuple(float(str(np.float32(size))) for size in image.voxel_sizes())
    matrix = np.asarray(image.transf_matrix(), dtype=np.float64)
    axes = np.round(matrix[:3, :3] / np.linalg.norm(matrix[:3, :3], axis=0))
    z, y, x = (axes.T @ matrix[:3, 3])[::-1]
    first = (z, y + sizes[1] * (shape[1] // 2), x + sizes[2] * (shape[2] // 2))
    # Rounding to 0.1 micrometre takes away what single precision left of the cancelling terms.
    return ImageGeometry(shape, sizes, tuple(round(value, 4) + 0.0 for value in first))


def patient_position(image: Any) -> Position | None:
    """How the patient lies, from the signs of a SIRF image's axes; None if nobody said, or they are of no known one.

    An image without a position has the signs of head first, supine, and so do most of those that SIRF makes of data:
    what it would write tells the difference.
    """
    from ..objective import exam_info_of_written

    matrix = np.asarray(image.transf_matrix(), dtype=np.float64)[:3, :3]
    signs = tuple(int(v) for v in np.sign(np.diag(matrix)))
    if signs == POSITIONS[HEAD_FIRST_SUPINE]:
        return position_of(exam_info_of_written(image.write))
    return next((position for position, known in POSITIONS.items() if known == signs), None)


def exam_of_data(data: Any) -> ExamInfo:
    """How the patient of SIRF's acquisition data lies; nothing else of their exam information."""
    found = re.search(r"^Patient position: (HF|FF)(\w+)", data.get_info(), re.MULTILINE)
    if found is None:
        return ExamInfo()
    rotation = {"S": "supine", "P": "prone", "DL": "left", "DR": "right"}.get(found[2], "other")
    return ExamInfo(orientation="head_in" if found[1] == "HF" else "feet_in", rotation=rotation)


class Scratch:
    """An image of the adaptor's own, whose memory is looked up rarely: that takes longer than to copy a slice.

    SIRF writes into the memory that an image has. When the same place was found a few times in succession this is
    relied upon; where it is not so, the memory is looked up at each use.
    """

    def __init__(self, image: Any) -> None:
        self.image = image
        self._memory: Tensor | None = None
        self._times_found = 0

    def fill(self, x: Tensor) -> Any:
        """Overwrite the values with those of a tensor of the same shape; returns the image."""
        values = self._found()
        if values is None:
            return fill(self.image, x)
        values.copy_(x)
        return self.image

    def values(self) -> tuple[Tensor, bool]:
        """Values without a copy where that is possible; whether the memory is SIRF's."""
        values = self._found()
        return values_of(self.image) if values is None else (values, True)

    def _found(self) -> Tensor | None:
        if self._times_found < _ENOUGH:
            now, shared = view_of(self.image)
            if not shared:
                return None
            same = self._memory is not None and now.data_ptr() == self._memory.data_ptr()
            self._memory, self._times_found = now, self._times_found + 1 if same else 0
        return self._memory


_ENOUGH = 4


def view_of(container: Any) -> tuple[Any, bool]:
    """A view of a SIRF container's memory and True; None and False where SIRF offers none."""
    try:
        return torch.from_numpy(np.asarray(_Memory(container, container.__array_interface__))), True
    except (AttributeError, ValueError):  # before SIRF 3.9, and in the storage scheme 'file'
        return None, False


class _Memory:
    """SIRF's memory for NumPy, asked for once: each question is a call into C++. Keeps the container alive."""

    def __init__(self, container: Any, interface: dict[str, Any]) -> None:
        self.container, self.__array_interface__ = container, interface
