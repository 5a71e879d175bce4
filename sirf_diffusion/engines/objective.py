"""The likelihood's interface: what a reconstructor needs to know of an acquisition, and nothing more."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..geometry.exam import ExamInfo
from ..geometry.images import ImageGeometry
from .em import early_em_image

#: Updates of the early image, whatever the subsets: fewer would give too small an intensity scale.
EARLY_UPDATES = 14


@dataclass
class ProjectionCounter:
    """Counts projector work in full-data equivalents: one subset of ``n`` adds ``1 / n``, each image of a batch counts.

    ``seconds`` is the wall time spent in the projector and in the likelihood's own arithmetic.
    """

    forward: float = 0.0
    back: float = 0.0
    seconds: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the wall time of a ``with`` block to ``seconds``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


class Evaluation:
    """The log-likelihood at one image (or batch of images), value and gradient both on demand.

    Where the engine allows it, asking for both costs one forward and one back projection. An engine that has to
    project for the value alone gives a callable, and who does not ask for the value does not pay for it.
    """

    def __init__(self, value: Tensor | Callable[[], Tensor], gradient: Callable[[Tensor | None], Tensor]) -> None:
        self._value, self._gradient = value, gradient

    @cached_property
    def value(self) -> Tensor:
        """``L(x)``, float64, one number per image."""
        return self._value if isinstance(self._value, Tensor) else self._value()

    def gradient(self, active: Tensor | None = None) -> Tensor:
        """Gradient with respect to the image; with ``active`` (bool, one per image of the batch) of those only."""
        return self._gradient(active)


@runtime_checkable
class Objective(Protocol):
    r"""Poisson log-likelihood of one acquisition, in STIR's sign (maximised).

    .. math:: L(x) = \sum_i y_i \log q_i - q_i, \qquad q = A x + b

    with prompts ``y``, the full linear model ``A`` (counts per image unit) and the expected background ``b``
    (counts). Bins with ``y = 0`` contribute ``-q``. The constant ``-\log y_i!`` is omitted. Images are
    ``float32`` tensors ``[z, y, x]`` or ``[samples, z, y, x]`` in the engine's own intensity unit; values are
    ``float64`` tensors of the leading shape. ``gradient(x, subset=k)`` is that of subset ``k`` alone, *not*
    multiplied by ``num_subsets``: ``sum_k gradient(x, k) = gradient(x)``. A class that derives from this one
    inherits ``value`` and ``gradient`` by ``at``, ``with_subsets``, ``early_image``, and what records say: ``engine``,
    ``describe`` and ``exam_info``.
    """

    geometry: ImageGeometry
    num_subsets: int
    device: torch.device
    counter: ProjectionCounter

    def at(self, x: Tensor, subset: int | None = None) -> Evaluation:
        """Value and gradient on demand; where the engine allows it, from one forward projection."""
        ...

    def value(self, x: Tensor, subset: int | None = None) -> Tensor:
        """``L(x)``, float64, one number per image. Engines that have no values of subsets raise NotImplementedError."""
        return self.at(x, subset).value

    def gradient(self, x: Tensor, subset: int | None = None) -> Tensor:
        """``A^T (y / q - 1)``, shape of ``x``."""
        return self.at(x, subset).gradient()

    def sensitivity(self, subset: int | None = None) -> Tensor:
        """``A^T 1``, shape ``[z, y, x]``, computed once and kept; zero outside the scanner's field of view."""
        ...

    def uniform_image(self) -> Tensor:
        """Constant image, where the sensitivity is positive, with as many counts: ``sum(y - b) / sum(s)``."""
        ...

    def expected_log_likelihood(self, x: Tensor) -> tuple[float, float]:
        """Mean and standard deviation of ``L(truth)`` over noise, if ``x`` predicts the counts as the truth does.

        ``mean = L(y; y) - sum_i e(q_i)`` with ``e(q) = E[KL(Y, q)]``, ``Y ~ Poisson(q)``: where a likelihood schedule
        should end. Engines that cannot tell the expected counts raise NotImplementedError.
        """
        ...

    def with_subsets(self, num_subsets: int) -> Objective:
        """The same data in the largest number of subsets up to this one; this objective where they are fixed.

        Both count their projections together.
        """
        return self

    def early_image(self) -> Tensor:
        """An early OSEM image of about 14 updates, from which the intensity scale is estimated; made once."""
        if getattr(self, "_early", None) is None:
            self._early = early_em_image(self.with_subsets(EARLY_UPDATES), EARLY_UPDATES)
        return self._early

    @property
    def engine(self) -> dict[str, str]:
        """Name and version of what computes."""
        return {"name": f"{type(self).__module__}.{type(self).__qualname__}", "version": ""}

    def describe(self) -> dict[str, Any]:
        """The data behind it, for records: JSON values, the image grid among them."""
        grid = self.geometry
        return {"image_shape": grid.shape, "voxel_size_mm": grid.voxel_size, "origin_mm": grid.origin}

    def marks(self) -> dict[str, float]:
        """Numbers that tell these data from others, up to rounding; those that the engine can tell. See `mark`."""
        return {}

    def exam_info(self) -> ExamInfo:
        """Patient position, time frames, radionuclide and calibration of the data, as far as the engine knows them."""
        return ExamInfo()


@runtime_checkable
class NativeImages(Protocol):
    """What an objective of an engine with image objects of its own offers besides: reconstructors then take and give
    those.
    """

    def to_tensor(self, image: Any) -> Tensor:
        """The engine's image as a tensor ``[z, y, x]`` that shares no memory with it."""
        ...

    def to_image(self, x: Tensor) -> Any:
        """A new image of the engine from a tensor ``[z, y, x]``, geometry and patient information as the data's."""
        ...


def mark(x: Tensor) -> float:
    """A weighted sum, by which one array is told from another with the same sum."""
    weights = (torch.arange(x.numel(), dtype=torch.float64) * 0.6180339887498949).frac() + 0.5
    return float((x.detach().to("cpu", torch.float64).reshape(-1) * weights).sum())


def total_sensitivity(objective: Objective) -> float:
    """The sum of the sensitivity; ValueError if it is zero everywhere."""
    total = float(objective.sensitivity().sum(dtype=torch.float64))
    if total <= 0:
        raise ValueError("sensitivity is zero everywhere: no bin with a positive factor sees the image")
    return total


def check_single(x: Tensor) -> None:
    """Raise ValueError for images that are not one ``[z, y, x]``."""
    if x.dim() != 3:
        raise ValueError(f"expected one image [z, y, x], found shape {tuple(x.shape)}")


def exam_info_of_written(write: Callable[[str], Any], name: str = "image.hv") -> ExamInfo:
    """Exam information of an image or of projection data of STIR, from the header that ``write(file name)`` makes."""
    from ..files.interfile import read_exam_info

    with tempfile.TemporaryDirectory() as folder:
        write(f"{folder}/{name}")
        return read_exam_info(f"{folder}/{name}")
