"""Priors with the names and semantics of ``sirf.STIR``."""

from __future__ import annotations

from torch import Tensor

from ...priors import Penalty
from ...priors import QuadraticPenalty as Quadratic
from ...priors import RelativeDifferencePenalty as RelativeDifference
from .data import ImageData, error


class Prior:
    """A penalty, subtracted from the log-likelihood by the objective function that it is given to."""

    def __init__(self) -> None:
        self._penalisation_factor = 0.0
        self._kappa: ImageData | None = None
        self._penalty: Penalty | None = None

    def set_penalisation_factor(self, value: float) -> Prior:
        """Factor in front of the penalty (STIR's default: 0)."""
        self._penalisation_factor = float(value)
        if self._penalty is not None:
            self._penalty.penalisation_factor = self._penalisation_factor
        return self

    def get_penalisation_factor(self) -> float:
        """Factor in front of the penalty."""
        return self._penalisation_factor

    def set_kappa(self, image: ImageData) -> None:
        """Image that scales the penalty locally; may be changed after ``set_up``."""
        self._kappa = image
        if self._penalty is not None:
            self._penalty.set_kappa(image.tensor)

    def get_kappa(self) -> ImageData | None:
        """The image given to :meth:`set_kappa`, or None."""
        return self._kappa

    def set_up(self, image: ImageData) -> None:
        """Prepare for images of this geometry."""
        self._penalty = self._make(image, None if self._kappa is None else self._kappa.tensor)

    @property
    def penalty(self) -> Penalty:
        """The penalty as a function of tensors, for this package's reconstructors."""
        if self._penalty is None:
            raise error(f"{type(self).__name__}.set_up() call missing")
        return self._penalty

    def get_value(self, image: ImageData) -> float:
        """Value of the penalty, penalisation factor included."""
        return float(self.penalty.value(image.tensor))

    value = get_value
    __call__ = get_value

    def get_gradient(self, image: ImageData, out: ImageData | None = None) -> ImageData:
        """Gradient of the penalty, penalisation factor included."""
        return into(self.penalty.gradient(image.tensor), image, out)

    gradient = get_gradient

    def accumulate_Hessian_times_input(
        self, current_estimate: ImageData, input_: ImageData, out: ImageData | None = None
    ) -> ImageData:
        """Hessian of the penalty at an image, times another image, added to ``out``."""
        product = self.multiply_with_Hessian(current_estimate, input_)
        return product if out is None else out.add(product, out=out)

    def multiply_with_Hessian(
        self, current_estimate: ImageData, input_: ImageData, out: ImageData | None = None
    ) -> ImageData:
        """Hessian of the penalty at an image, times another image."""
        return into(self.penalty.hessian_times(current_estimate.tensor, input_.tensor), current_estimate, out)

    def _make(self, image: ImageData, kappa: Tensor | None) -> Penalty:
        raise NotImplementedError


class RelativeDifferencePrior(Prior):
    """See :class:`sirf_diffusion.priors.RelativeDifferencePrior`; STIR's defaults (gamma 2, epsilon 0)."""

    def __init__(self) -> None:
        super().__init__()
        self._gamma, self._epsilon = 2.0, 0.0

    def set_gamma(self, v: float) -> None:
        """Edge preservation; takes effect at the next ``set_up``."""
        self._gamma, self._penalty = float(v), None

    def get_gamma(self) -> float:
        """Edge preservation."""
        return self._gamma

    def set_epsilon(self, v: float) -> None:
        """Offset in image units; takes effect at the next ``set_up``."""
        self._epsilon, self._penalty = float(v), None

    def get_epsilon(self) -> float:
        """Offset in image units."""
        return self._epsilon

    def compute_Hessian_diagonal(self, image: ImageData) -> ImageData:
        """Diagonal of the Hessian, penalisation factor included."""
        return into(self.penalty.hessian_diagonal(image.tensor), image, None)

    def _make(self, image: ImageData, kappa: Tensor | None) -> Penalty:
        factor = self._penalisation_factor
        return RelativeDifference(image.geometry, factor, gamma=self._gamma, epsilon=self._epsilon, kappa=kappa)


class QuadraticPrior(Prior):
    """See :class:`sirf_diffusion.priors.QuadraticPrior`."""

    def _make(self, image: ImageData, kappa: Tensor | None) -> Penalty:
        return Quadratic(image.geometry, self._penalisation_factor, kappa=kappa)


def into(tensor: Tensor, like: ImageData, out: ImageData | None) -> ImageData:
    """An image of the grid of ``like``, new or written over ``out``."""
    result = ImageData.of(tensor, like.geometry)
    return result if out is None else out.fill(result)
