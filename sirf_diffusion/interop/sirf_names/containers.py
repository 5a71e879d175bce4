"""Containers of values with the arithmetic of ``sirf.STIR``, held in PyTorch tensors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...geometry.exam import ExamInfo

Self = TypeVar("Self", bound="DataContainer")


class error(Exception):
    """What SIRF raises for wrong arguments."""

    @property
    def value(self) -> str:
        return str(self)


class ContiguousError(ValueError):
    """What SIRF raises where a view of the values is wanted and there is none."""


def _unary(function: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    def method(self: DataContainer, out: Any = None) -> Any:
        return self.with_values(function(self.tensor), out)

    return method


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    def method(self: DataContainer, other: Any, out: Any = None) -> Any:
        return self.with_values(function(self.tensor, self._operand(other, "combine")), out)

    return method


def _in_place(method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: method(self, other, self)


def missing(self: Any, name: str) -> Any:
    """``__getattr__`` of a class that has some of the methods of SIRF's class of this name: says what to do instead."""
    advice = "" if name.startswith("_") else " in the embedded engine: use SIRF, by get_engine('sirf')"
    raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'{advice}")


class DataContainer:
    """Values on a grid with vector arithmetic; the base of `ImageData` and `AcquisitionData`.

    ``tensor`` is the float32 data without SIRF's axis of TOF bins, ``geometry`` the grid, ``exam`` what is known of the
    patient and the scan, which goes with the data to what is made of them. Arithmetic combines, value by
    value, with a number, an array of the same shape or a container of the same grid, into ``out`` or a new container.
    """

    # NumPy leaves `number * container` and `array * container` to the container.
    __array_priority__ = 10

    __getattr__ = missing
    _leading: tuple[int, ...] = ()
    supports_array_view = True

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._geometry: Any = None
        self.exam = ExamInfo()

    @classmethod
    def of(cls: type[Self], tensor: Tensor, geometry: Any, exam: ExamInfo | None = None) -> Self:
        """A container around a tensor (not a copy)."""
        made = cls()
        made._tensor, made._geometry = tensor.detach().to("cpu", torch.float32).contiguous(), geometry
        made.exam = exam or made.exam
        return made

    def with_values(self: Self, values: Tensor, out: Self | None = None) -> Self:
        """A container of another tensor with all else that this one knows, or ``out`` overwritten."""
        result = self.of(values, self.geometry, self.exam)
        return result if out is None else out.fill(result)

    @property
    def tensor(self) -> Tensor:
        """The data, shared with the container."""
        self.geometry  # noqa: B018 - raises for an empty container
        return self._tensor  # type: ignore[return-value]

    @property
    def geometry(self) -> Any:
        if self._geometry is None:
            raise error(f"this {type(self).__name__} is empty: read a file or make it from another one")
        return self._geometry

    def clone(self: Self) -> Self:
        return self.with_values(self.tensor.clone())

    copy = clone

    def get_uniform_copy(self: Self, value: float = 1.0) -> Self:
        """A container on the same grid, filled with ``value``."""
        return self.with_values(torch.full(self.geometry.shape, float(value)))

    def allocate(self: Self, value: float | None = 0, **more: Any) -> Self:
        """Same as :meth:`get_uniform_copy`, for CIL."""
        if more or isinstance(value, str):
            raise error(f"allocate({value!r}): this engine allocates one number; fill() the copy with an array")
        return self.get_uniform_copy(value or 0)

    def fill(self: Self, value: Any) -> Self:
        """Overwrite the values with a number, an array of the same shape or another container; returns itself."""
        self.tensor.copy_(self._operand(value, "fill"))
        return self

    def dimensions(self) -> tuple[int, ...]:
        return (*self._leading, *self.geometry.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dimensions()

    @property
    def size(self) -> int:
        return math.prod(self.geometry.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def as_array(self) -> np.ndarray:
        """A copy of the values as a NumPy array."""
        return self.tensor.numpy().reshape(self.dimensions()).copy()

    def asarray(self, xp: Any = np, copy: bool | None = None, **kwargs: Any) -> Any:
        """The values as an array of NumPy (or another module ``xp``), a view of this container where it offers one.

        Raises
        ------
        ContiguousError
            For ``copy=False`` where there is no view: acquisition data in the storage scheme ``"file"``.
        """
        if copy is False and not self.supports_array_view:
            raise ContiguousError("there is no view of these data: use copy=True, or set_storage_scheme('memory')")
        view = self.supports_array_view and not copy
        return xp.asarray(self.tensor.numpy().reshape(self.dimensions()) if view else self.as_array(), **kwargs)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.asarray(copy=copy)
        return array if dtype is None else array.astype(dtype, copy=False)

    def max(self) -> float:
        return float(self.tensor.max())

    def min(self) -> float:
        return float(self.tensor.min())

    def sum(self) -> float:
        """Sum of all values, accumulated in double precision."""
        return float(self.tensor.sum(dtype=torch.float64))

    def norm(self) -> float:
        return math.sqrt(self.dot(self))

    def squared_norm(self) -> float:
        return self.dot(self)

    def dot(self, other: Any) -> float:
        """Inner product, accumulated in double precision."""
        return float((self.tensor.double() * self._operand(other, "combine").double()).sum())

    abs, sign, exp, log, sqrt = (_unary(f) for f in (torch.abs, torch.sign, torch.exp, torch.log, torch.sqrt))
    add, subtract, multiply = _binary(torch.add), _binary(torch.sub), _binary(torch.mul)
    power, maximum, minimum = _binary(torch.pow), _binary(torch.maximum), _binary(torch.minimum)

    def divide(self: Self, other: Any, out: Self | None = None) -> Self:
        """Ratio to a number (not 0), array or container, value by value."""
        if isinstance(other, (Real, np.number)):
            if other == 0:
                raise ZeroDivisionError(f"{type(self).__name__} divided by the number 0")
            return self.multiply(1 / float(other), out)
        return self.with_values(torch.div(self.tensor, self._operand(other, "combine")), out)

    def sapyb(self: Self, a: Any, y: Self, b: Any, out: Self | None = None) -> Self:
        """Linear combination ``a * self + b * y``; ``a`` and ``b`` are numbers or containers."""
        return self.multiply(a).add(y.multiply(b), out)

    __add__ = __radd__ = add
    __sub__ = subtract
    __mul__ = __rmul__ = multiply
    __truediv__ = divide

    def __rsub__(self: Self, other: Any) -> Self:
        warnings.warn(
            "SIRF 3.10 computes `a - image` as `image - a`; here it is what it says. Write `-image + a` for the same "
            "numbers on both",
            stacklevel=2,
        )
        return (-self).add(other)

    def __rtruediv__(self: Self, other: Any) -> Self:
        return self.power(-1).multiply(other)

    def __neg__(self: Self) -> Self:
        return self.multiply(-1)

    __iadd__, __isub__, __imul__ = _in_place(add), _in_place(subtract), _in_place(multiply)
    __itruediv__ = _in_place(divide)

    def _operand(self, other: Any, what: str) -> Tensor:
        """A number, an array of the same shape or a container of the same grid as a tensor."""
        if isinstance(other, DataContainer):
            self._check_same(other)
            return other.tensor
        if isinstance(other, np.ndarray) and other.ndim:
            if other.shape != self.shape:
                raise ValueError(
                    f"cannot {what} {type(self).__name__} of size {self.shape} with data of size {other.shape}"
                )
            return torch.from_numpy(np.array(other, dtype=np.float32, order="C")).reshape(self.tensor.shape)
        if isinstance(other, (Real, np.number, np.ndarray)):
            return torch.tensor(float(other))
        raise TypeError(
            f"cannot {what} {type(self).__name__} with {type(other).__name__}: give a number, array or container"
        )

    def _check_same(self, other: DataContainer) -> None:
        if type(other) is not type(self) or other.shape != self.shape:
            found = f"{type(other).__name__} of size {other.dimensions()}"
            raise error(f"{found} does not match {type(self).__name__} of size {self.dimensions()}")
