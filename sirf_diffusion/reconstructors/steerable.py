"""Steerable sampling: likelihood-scheduled sampling with a network that low-rank changes steer towards the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..engines.objective import Objective
from .lisch import LikelihoodScheduledReconstructor
from .network_adaptation import NetworkAdaptation
from .records import StepRecord

if TYPE_CHECKING:
    from ..models.score_model import ScoreModel


class SteerableAdaptation(NetworkAdaptation):
    """Low-rank changes of the network that bring the denoised image nearer to what the data step makes of it.

    Steerable conditional diffusion (Barbano et al. 2025, IEEE TMI 44(5):2093, arXiv:2308.14409; for PET Webber et al.
    2025, arXiv:2510.13441), with a limit to how closely the data are fitted. The original takes gradients through its
    data step; here, the data step's image is a constant. ``coupling="projector"`` takes the Poisson likelihood of the
    denoised image, divided by the net counts, as the loss instead. Its parameters are those of
    :class:`~sirf_diffusion.reconstructors.network_adaptation.NetworkAdaptation`, three of them with other defaults.
    """

    name: ClassVar[str] = "steerable"

    def __init__(
        self,
        *,
        coupling: str = "data-step",
        learning_rate: float = 5e-3,
        sigma_max: float | None = 3.0,
        **settings: Any,
    ) -> None:
        super().__init__(coupling=coupling, learning_rate=learning_rate, sigma_max=sigma_max, **settings)


class SteerableReconstructor(LikelihoodScheduledReconstructor):
    """PET-LiSch with :class:`SteerableAdaptation` before each denoising.

    The parameters not listed are those of
    :class:`~sirf_diffusion.reconstructors.lisch.LikelihoodScheduledReconstructor`.

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
        num_steps: int = 40,
        num_samples: int = 1,
        seed: int = 0,
        eta: float = 0.85,
        target: float | None = None,
        num_em_iterations: float | None = None,
        margin: float = 1.0,
        step_size: float = 1.8,
        num_em_iterations_max: int = 50,
        smoothing: float = 0.0,
        t_end: float | None = None,
        spacing: str = "t",
        batch_size: int | None = None,
        resume_from: str | Path | None = None,
        callbacks: Iterable[Callable[[StepRecord], None]] = (),
    ) -> None:
        super().__init__(
            objective,
            model,
            num_steps=num_steps,
            num_samples=num_samples,
            seed=seed,
            eta=eta,
            target=target,
            num_em_iterations=num_em_iterations,
            margin=margin,
            step_size=step_size,
            num_em_iterations_max=num_em_iterations_max,
            smoothing=smoothing,
            t_end=t_end,
            spacing=spacing,
            adaptation=SteerableAdaptation() if adaptation is None else adaptation,
            batch_size=batch_size,
            resume_from=resume_from,
            callbacks=callbacks,
        )
