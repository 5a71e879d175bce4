"""Penalties that learn their grid and their images later, in any order, as scripts set them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ..geometry.images import ImageGeometry
from ..models.conditioning import anatomical_on
from .anchor import AnchorPenalty
from .base import Penalty
from .bowsher import BowsherPenalty

if TYPE_CHECKING:
    from ..patient import AnatomicalImage


class LatePenalty(Penalty):
    """A penalty that is made when it is first needed, and again after something of it has changed.

    Subclasses say how in :meth:`_make`, and call :meth:`renew` when a setting changes.
    """

    def __init__(self, penalisation_factor: float = 1.0) -> None:
        super().__init__(penalisation_factor)
        self.geometry: ImageGeometry | None = None
        self._made: Penalty | None = None

    def set_up(self, geometry: ImageGeometry) -> None:
        """Prepare for images of this grid; what is missing or does not fit is refused here."""
        if geometry != self.geometry:
            self.geometry = geometry
            self.renew()
        self.made()

    def renew(self) -> None:
        """Forget what was made; it is made anew when needed."""
        self._made = None

    def made(self) -> Penalty:
        """The penalty itself."""
        if self.geometry is None:
            raise RuntimeError("set_up() call missing")
        if self._made is None:
            self._made = self._make(self.geometry)
        self._made.penalisation_factor = self.penalisation_factor
        return self._made

    def value(self, x: Tensor) -> Tensor:
        return self.made().value(x)

    def gradient(self, x: Tensor) -> Tensor:
        return self.made().gradient(x)

    def curvature(self, x: Tensor) -> Tensor:
        return self.made().curvature(x)

    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        return self.made().hessian_times(x, v)

    @property
    def settings(self) -> dict[str, Any]:
        return super().settings if self._made is None else {**self.made().settings, "name": type(self).__name__}

    @abstractmethod
    def _make(self, geometry: ImageGeometry) -> Penalty:
        """The penalty of images of a grid, from the present settings."""


class LateAnchorPenalty(LatePenalty):
    """A :class:`~sirf_diffusion.priors.anchor.AnchorPenalty` whose anchor and weight may be set later."""

    has_majoriser: ClassVar[bool] = True

    def __init__(self, penalisation_factor: float = 1.0) -> None:
        super().__init__(penalisation_factor)
        self._anchor: Tensor | None = None
        self._weight: Tensor | None = None

    def set_anchor(self, anchor: Tensor | None) -> None:
        """The image ``[z, y, x]`` to stay close to."""
        self._anchor = anchor
        self.renew()

    def set_weight(self, weight: Tensor | None) -> None:
        """Non-negative weight ``[z, y, x]``; None for 1."""
        self._weight = weight
        self.renew()

    def _make(self, geometry: ImageGeometry) -> Penalty:
        if self._anchor is None:
            raise ValueError("AnchorPrior has no anchor image: call set_anchor_image(image) before set_up()")
        for name, image in (("anchor image", self._anchor), ("weight", self._weight)):
            if image is not None and tuple(image.shape) != geometry.shape:
                raise ValueError(f"the {name} has shape {tuple(image.shape)}, expected {geometry.shape} (z, y, x)")
        return AnchorPenalty(self._anchor, self.penalisation_factor, self._weight)


class LateBowsherPenalty(LatePenalty):
    """A :class:`~sirf_diffusion.priors.bowsher.BowsherPenalty` whose anatomical image may be set later."""

    has_majoriser: ClassVar[bool] = True

    def __init__(self, num_neighbours: int | None = None, penalisation_factor: float = 1.0) -> None:
        super().__init__(penalisation_factor)
        self._num_neighbours = num_neighbours
        self._anatomical: Tensor | AnatomicalImage | None = None
        self._kappa: Tensor | None = None

    def set_anatomical(self, anatomical: Tensor | AnatomicalImage | None) -> None:
        """MR or CT image: ``[z, y, x]`` on the image grid, or in its own space, to be resampled."""
        self._anatomical = anatomical
        self.renew()

    def set_num_neighbours(self, value: int | None) -> None:
        """Neighbours that each voxel keeps; None for the default."""
        self._num_neighbours = value
        self.renew()

    def set_kappa(self, kappa: Tensor | None) -> None:
        """Image ``[z, y, x]`` that scales the penalty locally; None for none."""
        self._kappa = kappa
        if self._made is not None:
            self._made.set_kappa(kappa)

    def _make(self, geometry: ImageGeometry) -> Penalty:
        if self._anatomical is None:
            raise ValueError("BowsherPenalty has no anatomical image: call set_anatomical_image(image) before set_up()")
        anatomical = anatomical_on(self._anatomical, geometry)
        return BowsherPenalty(geometry, self.penalisation_factor, anatomical, self._num_neighbours, self._kappa)
