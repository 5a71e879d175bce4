"""What a penalty is: a function of an image with its derivatives, on plain tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..geometry.checks import check_finite, check_image, check_real, check_tensor
from ..geometry.images import ImageGeometry

if TYPE_CHECKING:
    from ..engines.objective import Objective
    from ..patient import AnatomicalImage


class Penalty(ABC):
    r"""A penalty :math:`\beta R(x)`; reconstructors maximise :math:`L(x) - \beta R(x)`.

    STIR's sign and scaling: ``gradient`` points uphill of the penalty, and everything that is returned contains the
    penalisation factor. Images are tensors ``[..., z, y, x]`` in image units; leading dimensions are independent
    images. A penalty that depends on the image grid is made with a grid, or gets it by `set_up`.

    Parameters
    ----------
    penalisation_factor
        :math:`\beta \ge 0`; may be changed at any time.

    Attributes
    ----------
    geometry : ImageGeometry or None
        The image grid, once it is known.
    noise : Tensor or None
        What a penalty with memory keeps from one gradient to the next.
    has_value : bool
        Whether ``value`` is a formula whose derivative ``gradient`` is; a learned penalty only approximates one.
    has_gradient, has_hessian_diagonal, has_kappa : bool
        Whether there are ``gradient``, ``hessian_diagonal`` and ``set_kappa``.
    has_curvature : bool
        Whether ``curvature`` bounds the Hessian at the image it is taken at.
    has_majoriser : bool
        Whether it bounds the Hessian everywhere, so that ``majoriser`` lies above the penalty for all images.
    has_prox : bool
        Whether ``prox`` is known in closed form.
    """

    has_value: bool = True
    has_gradient: bool = True
    has_hessian_diagonal: bool = False
    has_curvature: bool = True
    has_majoriser: bool = False
    has_prox: bool = False
    has_kappa: bool = False

    geometry: ImageGeometry | None = None
    noise: Tensor | None = None
    _kappa: Tensor | None = None
    _grids: Mapping[str, ImageGeometry] = MappingProxyType({})

    def __init__(self, penalisation_factor: float) -> None:
        self.penalisation_factor = penalisation_factor

    @property
    def penalisation_factor(self) -> float:
        r""":math:`\beta`."""
        return self._penalisation_factor

    @penalisation_factor.setter
    def penalisation_factor(self, value: float) -> None:
        self._penalisation_factor = check_real("penalisation_factor", value)

    def set_up(self, geometry: ImageGeometry, objective: Objective | None = None) -> None:
        """Prepare for images of a grid; what is missing or does not fit is refused here.

        ``objective``, the log-likelihood of the data, is for penalties that take the intensity of images from it.
        """
        if geometry == self.geometry:
            return
        if not isinstance(geometry, ImageGeometry):
            raise TypeError(f"geometry must be a sirf_diffusion.ImageGeometry, found {type(geometry).__name__}")
        self.geometry = None
        self._check_places(geometry)
        if self._kappa is not None:
            on_grid("kappa", self._kappa, geometry)
        self._prepare(geometry)
        self.geometry = geometry

    def set_kappa(self, kappa: Tensor | None, grid: ImageGeometry | None = None) -> None:
        """Non-negative image ``[z, y, x]`` that scales the penalty locally; None for none. May change at any time.

        With its ``grid`` it is refused if it lies elsewhere than the images, and not only if its shape is another.
        """
        if kappa is not None and not self.has_kappa:
            raise ValueError(f"{type(self).__name__} takes no kappa")
        self._place("kappa", grid)
        self._kappa = None if kappa is None else on_grid("kappa", kappa, self.geometry, negative=False).clone()

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        r""":math:`\beta R(x)`, float64, one number per image."""

    @abstractmethod
    def gradient(self, x: Tensor) -> Tensor:
        r""":math:`\beta \nabla R(x)`, shape of ``x``."""

    @abstractmethod
    def curvature(self, x: Tensor) -> Tensor:
        r"""Diagonal ``C`` with :math:`\beta \nabla^2 R(x) \preceq \mathrm{diag}(C)`, shape of ``x``."""

    @abstractmethod
    def hessian_times(self, x: Tensor, v: Tensor) -> Tensor:
        r""":math:`\beta \nabla^2 R(x)\, v`, shape of ``x``."""

    def hessian_diagonal(self, x: Tensor) -> Tensor:
        r"""Diagonal of :math:`\beta \nabla^2 R(x)`, shape of ``x``."""
        raise NotImplementedError(f"the diagonal of the Hessian of {type(self).__name__} is not known: see curvature()")

    def prox(self, x: Tensor, tau: Tensor | float) -> Tensor:
        r""":math:`\arg\min_z \tfrac12 \lVert z - x \rVert^2 + \tau \beta R(z)`, shape of ``x``."""
        raise NotImplementedError(f"the proximal operator of {type(self).__name__} is not known in closed form")

    def majoriser(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Anchor and strength of the quadratic :math:`\tfrac12 \sum_j \rho_j (z_j - v_j)^2` that touches the penalty
        at ``x``: :math:`v = x - g / C`, :math:`\rho = C` with gradient ``g`` and curvature ``C``, up to a constant.

        Returns
        -------
        tuple of Tensor
            ``(v, rho)``, of the shape of ``x`` or broadcastable to it; ``rho`` contains the penalisation factor.
        """
        rho = self.curvature(x)
        return x - self.gradient(x) / rho.clamp_min(torch.finfo(rho.dtype).tiny), rho

    def prepare_one_step_late(self, sensitivity: Tensor, factor: float) -> str:
        """Hear that One Step Late (OSMAPOSL) is about to run; why it may diverge, empty if nothing is known.

        ``sensitivity`` is that of all data, ``[z, y, x]``, and ``factor`` the penalisation factor in use.
        """
        return ""

    @property
    def settings(self) -> dict[str, Any]:
        """What a record needs to name this penalty: class, factor and parameters, ready for JSON."""
        own = {"kappa": self._kappa is not None} if self.has_kappa else {}
        return {"name": type(self).__name__, "penalisation_factor": self.penalisation_factor, **own}

    def forget(self) -> None:  # noqa: B027 - most have nothing to forget
        """Begin anew: a penalty that remembers what it was asked forgets it."""

    def _prepare(self, geometry: ImageGeometry) -> None:  # noqa: B027 - most have nothing to prepare
        """Make what depends on the grid and the settings."""

    def _place(self, name: str, grid: ImageGeometry | None) -> None:
        """Keep where an image lies, None if nobody said, for `set_up` to compare; compare it now if that has been."""
        self._grids = {**self._grids, name: grid} if grid else {k: v for k, v in self._grids.items() if k != name}
        self._check_places(self.geometry)

    def _check_places(self, geometry: ImageGeometry | None) -> None:
        for name, grid in self._grids.items():
            if geometry is not None and not grid.is_near(geometry):
                raise ValueError(f"{name} lies on another grid, {grid}: expected {geometry}; resample it")

    def _renew(self) -> None:
        """To be called when a setting has changed: prepare again if the grid is known."""
        if self.geometry is not None:
            self._prepare(self.geometry)

    def _check(self, x: Tensor, name: str = "image") -> None:
        if self.geometry is None:
            raise RuntimeError(f"{type(self).__name__}: set_up(geometry) call missing")
        check_tensor(x, name)
        if tuple(x.shape[-3:]) != self.geometry.shape:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}, expected [..., z, y, x] on a grid of {self.geometry.shape}: a "
                "prior serves the grid that it was set up for last"
            )


def on_grid(
    name: str, image: Tensor, geometry: ImageGeometry | None, *, negative: bool = True, batch: bool = False
) -> Tensor:
    """An image without its history, after its grid (where that is known) and values were checked.

    Raises
    ------
    ValueError
        For another shape (``batch`` allows leading dimensions), values that are not finite, or forbidden negative ones.
    """
    if geometry is None:
        check_finite(image, name)
    else:
        check_image(image, name, geometry.shape, batch)
    if not negative and bool((image < 0).any()):
        raise ValueError(f"{name} must not be negative anywhere, found {float(image.min()):g}")
    return image.detach()


def anatomical_values(owner: str, anatomical: Tensor | AnatomicalImage | None, geometry: ImageGeometry) -> Tensor:
    """The anatomical image of a penalty on its grid, resampled from its own space where it has one."""
    if anatomical is None:
        raise ValueError(
            f"{owner} has no anatomical image: call set_anatomical(image) (in scripts set_anatomical_image) before "
            "set_up()"
        )
    values = anatomical if isinstance(anatomical, Tensor) else anatomical.on(geometry)
    return on_grid("the anatomical image", values, geometry)


def check_anatomical(anatomical: Tensor | AnatomicalImage | None, geometry: ImageGeometry | None) -> None:
    """Refuse an image that is of another grid, or of another place, as soon as the grid is known."""
    if anatomical is not None and geometry is not None:
        anatomical_values("", anatomical, geometry)


def checked_penalty(prior: Any) -> Penalty:
    """A penalty; TypeError, with what to give, for anything else, such as the prior object of a script."""
    if isinstance(prior, Penalty):
        return prior
    advice = ": give its .penalty, after set_up" if hasattr(type(prior), "penalty") else ""
    raise TypeError(f"prior must be a sirf_diffusion.priors.Penalty, found {type(prior).__name__}{advice}")
