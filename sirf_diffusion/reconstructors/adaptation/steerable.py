"""Steerable sampling: likelihood-scheduled sampling with a network that low-rank changes steer towards the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...engines.objective import Objective
from ..diffusion.lisch import LikelihoodScheduledReconstructor
from .network_adaptation import NetworkAdaptation

if TYPE_CHECKING:
    from ...models.score_model import ScoreModel


class SteerableAdaptation(NetworkAdaptation):
    """Low-rank changes of the network that bring the denoised image nearer to what the data step makes of it.

    Steerable conditional diffusion (Barbano et al. 2025, IEEE TMI 44(5):2093, arXiv:2308.14409; for PET Webber et al.
    2025, arXiv:2510.13441), with a limit to how closely the data are fitted. The original takes gradients through its
    data step; here, the data step's image is a constant. ``coupling="projector"`` takes the Poisson likelihood of the
    denoised image, divided by the net counts, as the loss instead. Its parameters are those of
    :class:`~sirf_diffusion.reconstructors.adaptation.network_adaptation.NetworkAdaptation`, four of them with other
    defaults.
    """

    name: ClassVar[str] = "steerable"

    def __init__(
        self,
        *,
        coupling: str = "data-step",
        learning_rate: float = 2e-3,
        num_updates: int = 3,
        carry_optimiser: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(
            coupling=coupling,
            learning_rate=learning_rate,
            num_updates=num_updates,
            carry_optimiser=carry_optimiser,
            **settings,
        )


class SteerableReconstructor(LikelihoodScheduledReconstructor):
    """PET-LiSch with :class:`SteerableAdaptation` before each denoising.

    The parameters not listed are those of
    :class:`~sirf_diffusion.reconstructors.diffusion.lisch.LikelihoodScheduledReconstructor`.

    Parameters
    ----------
    adaptation
        How the network is steered; :class:`SteerableAdaptation` with its defaults if omitted.
    """

    method: ClassVar[str] = "steerable"

    def __init__(
        self,
        objective: Objective,
        model: ScoreModel,
        *,
        adaptation: NetworkAdaptation | None = None,
        **options: Any,
    ) -> None:
        adaptation = SteerableAdaptation() if adaptation is None else adaptation
        super().__init__(objective, model, adaptation=adaptation, **options)
