"""Deep diffusion image prior: the network is fitted to the data while it denoises, and nothing else makes it fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from ...engines.objective import Objective
from ...geometry.checks import check_real
from ..diffusion.consistency import DataConsistency, DataStepResult, DiffusionStep
from ..diffusion.likelihood_schedule import LikelihoodSchedule
from ..diffusion.lisch import AscentToSchedule
from ..diffusion.loop import DiffusionReconstructor, reverse_times
from .network_adaptation import NetworkAdaptation

if TYPE_CHECKING:
    from ...models.score_model import ScoreModel


class DDIPAdaptation(NetworkAdaptation):
    """Fine-tuning decoupled from the projector: at every noise level, EM targets and updates towards them.

    After Hashimoto and Gong 2026 (IEEE TMI 45(6):2628, arXiv:2507.15078), who build on Chung et al. 2024
    (arXiv:2407.10641); with the additive term and the intensity scale, which the published code does without, a pull
    that grows as the noise falls in place of a constant one, and a limit to how closely the data are fitted.
    ``coupling="projector"`` takes gradients through the projector instead. The parameters are those of
    :class:`~sirf_diffusion.reconstructors.adaptation.network_adaptation.NetworkAdaptation`.
    """

    name: ClassVar[str] = "ddip"


class DDIPReconstructor(DiffusionReconstructor):
    """DDIP: denoising by a network that is fitted to the data at every noise level, from an early image on.

    The chain starts at a middle noise level from an MLEM image: the one whose log-likelihood the truth is expected to
    have, unless an image is given to ``set_up``. There is no data step between denoising and renoising; the data enter
    through :class:`DDIPAdaptation`, and once more at the end (``final_step``). The parameters not listed are those of
    :class:`~sirf_diffusion.reconstructors.diffusion.loop.DiffusionReconstructor`.

    Parameters
    ----------
    adaptation
        How the network is fitted; :class:`DDIPAdaptation` with its defaults if omitted.
    sigma_start
        Relative noise level at the start; None starts from the schedule's highest level.
    final_step
        Whether the last denoised image ascends to the likelihood expected of the truth, as in likelihood-scheduled
        sampling.
    smoothing
        Smoothness of that ascent, mm, see :class:`~sirf_diffusion.reconstructors.diffusion.consistency.SmoothStep`.
    target
        Log-likelihood expected of the truth; estimated from the data if omitted, see
        :class:`~sirf_diffusion.reconstructors.diffusion.likelihood_schedule.LikelihoodSchedule`.
    """

    method: ClassVar[str] = "ddip"

    def __init__(
        self,
        objective: Objective,
        model: ScoreModel,
        *,
        adaptation: NetworkAdaptation | None = None,
        sigma_start: float | None = 0.7,
        final_step: bool = True,
        smoothing: float = 0.0,
        target: float | None = None,
        t_end: float | None = None,
        spacing: str = "t",
        **options: Any,
    ) -> None:
        super().__init__(
            objective,
            model,
            LastStepOnly(AscentToSchedule(target, smoothing=smoothing), final_step),
            t_end=t_end,
            spacing=spacing,
            adaptation=DDIPAdaptation() if adaptation is None else adaptation,
            **options,
        )
        if sigma_start is not None:
            sigma_start = check_real("sigma_start", sigma_start, open_below=True)
            t_start = float(model.schedule.t_of_sigma(sigma_start))
            self.times = reverse_times(model.schedule, self.num_steps, t_end, spacing, t_start)
        self.settings["sigma_start"] = sigma_start


class LastStepOnly(DataConsistency):
    """No data step but, if ``active``, at the end of the chain; before that, images only become admissible."""

    name: ClassVar[str] = "last step only"

    def __init__(self, data_step: AscentToSchedule, active: bool = True) -> None:
        self.data_step, self.active = data_step, bool(active)

    @property
    def schedule(self) -> LikelihoodSchedule | None:
        """The likelihood schedule, where the data step ends."""
        return self.data_step.schedule

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters, ready for JSON."""
        return {"final_step": self.active, **self.data_step.settings}

    def set_up(self, objective: Objective) -> None:
        """Set the data step up, even if it is not active: the schedule gives the first image."""
        super().set_up(objective)
        self.data_step.set_up(objective)

    def restore(self, objective: Objective, state: dict[str, Any]) -> None:
        """Restore the data step."""
        super().set_up(objective)
        self.data_step.restore(objective, state)

    def set_scale(self, intensity_scale: float) -> None:
        """Tell the scale."""
        super().set_scale(intensity_scale)
        self.data_step.set_scale(intensity_scale)

    def __call__(self, prior_image: Tensor, step: DiffusionStep) -> DataStepResult:
        """The data step at the last noise level."""
        if self.active and step.index == step.num_steps - 1:
            return self.data_step(prior_image, step)
        return DataStepResult(self.admissible(prior_image))

    def summary(self) -> dict[str, Any]:
        """What the data step found."""
        return self.data_step.summary()

    def state(self) -> dict[str, Any]:
        """State of the data step."""
        return self.data_step.state()

    def early_image(self) -> Tensor | None:
        """The last MLEM image of the schedule."""
        return self.data_step.early_image()
