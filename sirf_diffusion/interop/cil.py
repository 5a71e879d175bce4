"""Priors and likelihoods as functions of the Core Imaging Library (CIL), which minimises.

Where CIL is not installed, the classes offer the same methods, without CIL's algebra of functions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..engines import as_objective
from ..engines.em import em_step, penalised_em_step
from ..engines.objective import Objective
from ..geometry.checks import check_count, check_real
from ..priors import Penalty
from ..priors.base import checked_penalty
from .containers import to_container, to_tensor
from .stepwise import StepwiseObjective

try:
    from cil.optimisation.functions import Function
except ImportError:

    class Function:  # type: ignore[no-redef]
        """The part of CIL's ``Function`` that is used here."""

        def __init__(self, L: float | None = None) -> None:
            self._L = L


logger = logging.getLogger(__name__)

HALVINGS = 30
RELATIVE_FLOOR = 1e-4


class _Iterated(Function):
    """A function whose proximal operator is found by iteration, and whose gradient has a bound only if it is set."""

    def __init__(self, what: str, num_iterations: int, tolerance: float) -> None:
        super().__init__()
        self.num_iterations = check_count("num_iterations", num_iterations)
        self.tolerance = check_real("tolerance", tolerance)
        self._what, self._warned, self._told = what, False, False

    def convex_conjugate(self, x: Any) -> float:
        """Not known: NaN, which is said once. PDHG and SPDHG ask for it to report a dual objective, and for no more."""
        if not self._told:
            logger.warning("the convex conjugate of %s is not known: CIL's dual objective and primal-dual gap are NaN; "
                           "the primal objective and the image are right", self._what)  # fmt: skip
            self._told = True
        return math.nan

    @property
    def L(self) -> float | None:
        """Bound of the gradient's Lipschitz constant; None if there is none everywhere, unless it was set."""
        return self._known_bound() if self._L is None else self._L

    @L.setter
    def L(self, value: float) -> None:
        self._L = check_real("L", value)

    def _known_bound(self) -> float | None:
        return None

    def _iterate(self, update: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        change = math.inf
        for _ in range(self.num_iterations):
            before, z = z, update(z)
            change = float((z - before).norm()) / max(float(z.norm()), torch.finfo(z.dtype).tiny)
            if change <= self.tolerance:
                return z
        if not self._warned:
            logger.warning(
                "the proximal operator of %s still changed the image by %.1e (relative) after %d iterations: raise "
                "num_iterations or tolerance, or use a smaller step",
                self._what,
                change,
                self.num_iterations,
            )
        self._warned = True
        return z


class PriorFunction(_Iterated):
    r"""A penalty as a CIL function: :math:`F(x) = \beta R(x)`, with a proximal operator.

    .. math:: \mathrm{prox}_{\tau F}(x) = \arg\min_{z \ge l} \tfrac12 \lVert z - x \rVert^2 + \tau \beta R(z)

    is found by minimising separable quadratic functions that touch the penalty at the present ``z``,

    .. math:: z \leftarrow \max\left(l,\; z - \frac{z - x + \tau g(z)}{1 + \tau C(z)}\right)

    with gradient ``g`` and curvature ``C``. For the quadratic anchor the first step is the closed form
    :math:`(x + \tau \rho v) / (1 + \tau \rho)`. For a score prior it is half-quadratic splitting with the denoiser,
    :math:`z \leftarrow (x + \tau \rho D(z)) / (1 + \tau \rho)`, :math:`\rho = \beta / (c \sigma)^2` (Lipschitz bound
    1): one network call per iteration; it converges where :math:`I - D` is monotone, as an ideal denoiser's is for
    log-concave images. With ``memory`` its noise begins at zero in each call, so that the same image has the same
    result, while each `gradient` depends on those before. For penalties whose curvature bounds them only nearby
    (relative differences), a step that does not lower the objective is shortened.

    Parameters
    ----------
    prior
        The penalty; changing its penalisation factor or other parameters later takes effect.
    lower
        Smallest value that the proximal operator may return. The relative difference prior needs 0.
    num_iterations
        Most iterations of the proximal operator.
    tolerance
        It ends when a step changes the image by less than this, relative to its norm. Not getting there is logged once.

    Examples
    --------
    >>> from sirf_diffusion.priors import AnchorPenalty
    >>> anchor = PriorFunction(AnchorPenalty(torch.ones(1, 2, 2), penalisation_factor=3.0))
    >>> anchor.proximal(torch.zeros(1, 2, 2), tau=1.0).max().item()
    0.75
    """

    def __init__(
        self, prior: Penalty, *, lower: float = -math.inf, num_iterations: int = 50, tolerance: float = 1e-5
    ) -> None:
        super().__init__(type(checked_penalty(prior)).__name__, num_iterations, tolerance)
        self.prior, self.lower = prior, float(lower)

    def __call__(self, x: Any) -> float:
        r""":math:`\beta R(x)`; for a score prior the path integral of its gradient, which costs 8 network calls."""
        return float(self.prior.value(to_tensor(x)))

    def gradient(self, x: Any, out: Any = None) -> Any:
        r""":math:`\beta \nabla R(x)`, in ``out`` (which may be ``x``) or a new image."""
        return to_container(self.prior.gradient(to_tensor(x)), x, out)

    def proximal(self, x: Any, tau: Any, out: Any = None) -> Any:
        r""":math:`\mathrm{prox}_{\tau F}(x)` for a positive number ``tau``, or one per voxel."""
        image, tau = to_tensor(x), _step(tau)
        if self.prior.has_prox:
            # Separable: the bound may be applied afterwards.
            return to_container(self.prior.prox(image, tau).clamp_min(self.lower), x, out)
        noise, self.prior.noise = self.prior.noise, None
        try:
            z = self._iterate(lambda z: self._descend(z, image, tau), image.clamp_min(self.lower))
        finally:
            self.prior.noise = noise
        return to_container(z, x, out)

    def _known_bound(self) -> float | None:
        if not self.prior.has_majoriser or getattr(self.prior, "intensity_scale", 1.0) is None:
            return None
        return float(self.prior.curvature(self._template()).max())

    def _template(self) -> Tensor:
        geometry = getattr(self.prior, "geometry", None)
        if geometry is not None:
            return torch.zeros(geometry.shape)
        return torch.zeros_like(getattr(self.prior, "anchor", torch.zeros(1, 1, 1)))

    def _descend(self, z: Tensor, x: Tensor, tau: Tensor | float) -> Tensor:
        gradient = self.prior.gradient(z)
        full = (z - x + tau * gradient) / (1 + tau * self.prior.curvature(z))
        if self.prior.has_majoriser:
            return (z - full).clamp_min(self.lower)
        present, share = self._value(z, x, tau), 1.0
        for _ in range(HALVINGS):
            new = (z - share * full).clamp_min(self.lower)
            if self._value(new, x, tau) <= present:
                return new
            share /= 2
        return z  # nothing left to gain but rounding

    def _value(self, z: Tensor, x: Tensor, tau: Tensor | float) -> float:
        distance = ((z - x).double().square() / tau).sum() / 2
        return float(distance + self.prior.value(z))


class NegatedObjective(_Iterated):
    r"""What the reconstructors maximise, with CIL's sign: :math:`F(x) = -L_k(x) + R(x) / n`.

    Parameters
    ----------
    objective
        Log-likelihood (anything that ``sirf_diffusion.as_objective`` takes), or one of the objective functions of
        :mod:`sirf_diffusion.interop.stepwise`.
    prior
        Penalty that is added, penalisation factor included.
    subset
        Number of one of the ``n`` subsets; None for all data (``n = 1``). See :func:`subset_functions`.
    num_iterations, tolerance
        Of the proximal operator, which makes De Pierro's EM updates (one projection pair each) until one changes the
        image by less than ``tolerance`` of its norm. Its result is not negative.
    """

    def __init__(
        self,
        objective: Any,
        prior: Penalty | None = None,
        subset: int | None = None,
        *,
        num_iterations: int = 50,
        tolerance: float = 1e-4,
    ) -> None:
        super().__init__("the log-likelihood", num_iterations, tolerance)
        self.objective = objective if isinstance(objective, StepwiseObjective) else as_objective(objective)
        self.prior, self.subset = None if prior is None else checked_penalty(prior), subset
        number = self.objective.num_subsets
        if subset is not None and not 0 <= subset < number:
            raise ValueError(f"subset must be None or one of 0..{number - 1}, found {subset}")
        self.share = 1.0 if subset is None else 1.0 / number

    def __call__(self, x: Any) -> float:
        """Value of ``F``; one forward projection."""
        image = self._image(x)
        value = -float(self.objective.value(image, self.subset))
        return value if self.prior is None else value + self.share * float(self.prior.value(image))

    def gradient(self, x: Any, out: Any = None) -> Any:
        """Gradient of ``F`` in ``out`` (which may be ``x``) or a new image; one forward and one back projection."""
        image = self._image(x)
        result = -self.objective.gradient(image, self.subset)
        if self.prior is not None:
            result = result + self.share * self.prior.gradient(image)
        return to_container(result, x, out)

    def proximal(self, x: Any, tau: Any, out: Any = None) -> Any:
        r""":math:`\arg\min_{z \ge 0} \tfrac12 \lVert z - x \rVert^2 - \tau L_k(z)`; for a log-likelihood alone."""
        if self.prior is not None or not isinstance(self.objective, Objective):
            raise NotImplementedError(
                "the proximal operator is that of a log-likelihood alone: give the penalty to the algorithm as a "
                "PriorFunction of its own"
            )
        image = self._image(x)
        rho = 1 / _step(tau)
        sensitivity = self.objective.sensitivity(self.subset)

        def update(z: Tensor) -> Tensor:
            x_em = em_step(z, self.objective.gradient(z, self.subset), sensitivity)
            return penalised_em_step(x_em, sensitivity, image, rho)

        # EM updates never leave zero.
        start = torch.maximum(image, RELATIVE_FLOOR * self.objective.uniform_image().max().to(image))
        return to_container(self._iterate(update, start), x, out)

    def _image(self, x: Any) -> Tensor:
        return to_tensor(x).to(self.objective.device)


def subset_functions(objective: Any, prior: Penalty | None = None) -> list[NegatedObjective]:
    """One function per subset, whose sum is the whole: for CIL's ``SGFunction``, ``SVRGFunction`` and the like.

    Each holds ``1 / num_subsets`` of the penalty, so that it must not be added again. A score prior with memory is
    refused with a ValueError: its gradient depends on those before, so that there are no parts of it.
    """
    if getattr(prior, "memory", False):
        raise ValueError(
            "a score prior with memory has no parts for subsets: make it with memory=False, noise_level=0.3 and "
            "penalisation_factor=0.2"
        )
    whole = NegatedObjective(objective, prior)
    return [NegatedObjective(whole.objective, prior, k) for k in range(whole.objective.num_subsets)]


def _step(tau: Any) -> Tensor | float:
    is_number = isinstance(tau, (int, float)) or getattr(tau, "ndim", None) == 0
    step: Tensor | float = float(tau) if is_number else to_tensor(tau)
    smallest = float(step.min()) if isinstance(step, Tensor) else step
    if not 0 < smallest < math.inf:
        raise ValueError(f"tau must be positive and finite, found {smallest:g}")
    return step
