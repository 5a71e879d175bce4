"""Images of other packages as tensors, by what they can do: SIRF's, CIL's and the embedded engine's containers."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Image = TypeVar("Image")

AXES = ("vertical", "horizontal_y", "horizontal_x")


def to_tensor(image: Any) -> Tensor:
    """Values of an image as a float32 tensor ``[z, y, x]``, which shares memory with it where that is possible.

    Parameters
    ----------
    image
        A tensor (returned as it is), or a container with ``asarray`` or ``as_array``: ``sirf.STIR.ImageData``, a CIL
        ``ImageData`` with axes (vertical,) horizontal_y, horizontal_x, an image of the embedded engine.
    """
    if isinstance(image, Tensor):
        return image
    read = getattr(image, "asarray", None) or getattr(image, "as_array", None)
    if read is None or not hasattr(image, "fill"):
        raise TypeError(f"expected an image with as_array() and fill(), or a tensor, found {type(image).__name__}")
    array = np.ascontiguousarray(read(), dtype=np.float32)
    labels = tuple(getattr(image, "dimension_labels", AXES[-array.ndim :]))
    if array.ndim not in (2, 3) or labels != AXES[-array.ndim :]:
        raise ValueError(
            f"expected an image with axes {AXES} or {AXES[1:]}, found {labels} of size {array.shape}; see its reorder()"
        )
    return torch.from_numpy(array if array.ndim == 3 else array[None])


class ObjectiveNames:
    """Other names that ``sirf.STIR.ObjectiveFunction`` has for value and gradient."""

    def get_value(self, image: Any) -> float:
        return self.value(image)

    __call__ = get_value

    def get_gradient(self, image: Any, out: Any = None) -> Any:
        return self.gradient(image, -1, out)

    def get_subset_gradient(self, image: Any, subset: int, out: Any = None) -> Any:
        return self.gradient(image, subset, out)


def to_container(values: Tensor, like: Image, out: Image | None = None) -> Image:
    """Put values into ``out``, or into a new image on the grid of ``like``; returns it.

    Parameters
    ----------
    values
        Tensor ``[z, y, x]``; may share memory with ``out``.
    like
        Image (or tensor) of the wanted kind.
    out
        Image (or tensor) to be overwritten.
    """
    if isinstance(like, Tensor):
        values = values.to(like)
        return values if out is None else out.copy_(values)  # type: ignore[attr-defined,return-value]
    result = like.clone() if out is None else out  # type: ignore[attr-defined]
    shape = tuple(int(n) for n in result.shape)
    result.fill(values.detach().to("cpu", torch.float32).numpy().reshape(shape))
    return result
