"""Copies of STIR's own priors that the tests name in parameter files."""

from __future__ import annotations

from sirf_diffusion.interop.stir.views import TensorPrior
from sirf_diffusion.priors import QuadraticPenalty, RelativeDifferencePenalty


class QuadraticCopy(TensorPrior):
    """STIR's quadratic prior, by this package's tensor prior of the same formula."""

    curvature_depends_on_image = False

    def __init__(self):
        pass

    def set_up(self, geometry):
        super().__init__(QuadraticPenalty(geometry, 1.0))


class RDPCopy(TensorPrior):
    """STIR's relative difference prior."""

    def __init__(self, gamma=2.0, epsilon=0.0):
        self.gamma, self.epsilon = gamma, epsilon

    def set_up(self, geometry):
        super().__init__(RelativeDifferencePenalty(geometry, 1.0, self.gamma, self.epsilon))
