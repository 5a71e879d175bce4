"""DDIP and steerable sampling: the network is fitted to the data while it denoises."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from ..diffusion.consistency import Adaptation, DataConsistency, DataStepResult, DiffusionStep
from ..diffusion.lisch import AscentToSchedule, LikelihoodScheduledReconstructor
from ..diffusion.loop import DiffusionReconstructor
from ..diffusion.sampling import Sampling
from ..settings import choice, count, flag, real
from .couplings import COUPLINGS
from .network_adaptation import AdaptationSettings, NetworkAdaptation


class DDIPAdaptation(NetworkAdaptation):
    """Fine-tuning decoupled from the projector: at every noise level, EM targets and updates towards them.

    After Hashimoto and Gong 2026 (IEEE TMI 45(6):2628, arXiv:2507.15078), who build on Chung et al. 2024
    (arXiv:2407.10641); with the additive term and the intensity scale, which the published code does without, a pull
    that grows as the noise falls in place of a constant one, and a limit to how closely the data are fitted.
    ``coupling="projector"`` takes gradients through the projector instead. The parameters are those of
    :class:`~sirf_diffusion.reconstructors.adaptation.network_adaptation.NetworkAdaptation`.
    """

    name: ClassVar[str] = "ddip"
    about: ClassVar[str] = "EM targets, and the network fitted to them; the projector is not differentiated"
    references: ClassVar[tuple[str, ...]] = ("Hashimoto2026",)


@dataclass(frozen=True)
class DDIPSampling(Sampling):
    """The loop's settings, with DDIP's defaults."""

    eta: float = real(0.85, "share of fresh noise, 0 to 1", maximum=1.0)
    starting_noise_level: float | None = real(
        0.7, "relative noise level at the start; None is the schedule's highest", open_below=True, optional=True
    )


@dataclass(frozen=True)
class LastAscent(AscentToSchedule):
    """The ascent of likelihood-scheduled sampling at the end of the chain; before, images only become admissible."""

    name: ClassVar[str] = "last step only"

    final_step: bool = flag(
        True, "whether the last image ascends to the likelihood expected of the truth, as in `lisch`"
    )
    smoothing: float = real(8.0, "smoothness of the last ascent in mm, see [below](#smooth-steps)", published=0.0)
    # Nothing to choose: one level, and the likelihood is to be met.
    schedule_exponent: float = 1.0
    anchor_strength: float = 0.0

    def __call__(self, prior_image: Tensor, step: DiffusionStep) -> DataStepResult:
        """The ascent at the last noise level."""
        if self.final_step and step.index == step.num_steps - 1:
            return super().__call__(prior_image, step)
        return DataStepResult(self.admissible(prior_image))

    @property
    def at_every_level(self) -> partial[DataStepResult]:
        """The ascent at whatever noise level, for adaptations that learn from it."""
        return partial(AscentToSchedule.__call__, self)


class DDIPReconstructor(DiffusionReconstructor):
    """DDIP: denoising by a network that is fitted to the data at every noise level, from an early image on.

    The chain starts at a middle noise level from an MLEM image: the one whose log-likelihood the truth is expected to
    have, unless an image is given to ``set_up``. There is no data step between denoising and renoising; the data enter
    through the adaptation, :class:`DDIPAdaptation` unless another is given, and once more at the end (``final_step``).
    """

    method: ClassVar[str] = "ddip"
    title: ClassVar[str] = "DDIP"
    about: ClassVar[str] = "the network is fitted to the data while it denoises an MLEM image (--adapt-set)"
    references: ClassVar[tuple[str, ...]] = ("Song2020",)
    sampling: ClassVar[type[Sampling]] = DDIPSampling
    data_step: ClassVar[type[DataConsistency]] = LastAscent
    own_adaptation: ClassVar[type[Adaptation]] = DDIPAdaptation
    num_subsets: ClassVar[int] = 2


@dataclass(frozen=True)
class SteerableSettings(AdaptationSettings):
    """Settings of `SteerableAdaptation`: four defaults are others."""

    coupling: str = choice("data-step", "what the network learns from", tuple(COUPLINGS))
    learning_rate: float = real(2e-3, "of AdamW", open_below=True)
    num_updates: int = count(3, "updates of the weights per target")
    carry_optimiser: bool = flag(True, "whether AdamW's moments are kept from one noise level to the next")


class SteerableAdaptation(NetworkAdaptation):
    """Low-rank changes of the network that bring the denoised image nearer to what the data step makes of it.

    Steerable conditional diffusion (Barbano et al. 2025, IEEE TMI 44(5):2093, arXiv:2308.14409; for PET Webber et al.
    2025, arXiv:2510.13441), with a limit to how closely the data are fitted. The original takes gradients through its
    data step; here, the data step's image is a constant. ``coupling="projector"`` takes the Poisson likelihood of the
    denoised image, divided by the net counts, as the loss instead. The parameters are those of
    :class:`~sirf_diffusion.reconstructors.adaptation.network_adaptation.NetworkAdaptation`.
    """

    name: ClassVar[str] = "steerable"
    about: ClassVar[str] = "low-rank changes towards what the method's data step makes of the denoised image"
    references: ClassVar[tuple[str, ...]] = ("Barbano2025",)
    group: ClassVar[type[AdaptationSettings]] = SteerableSettings


class SteerableReconstructor(LikelihoodScheduledReconstructor):
    """PET-LiSch with :class:`SteerableAdaptation`, unless another adaptation is given, before each denoising."""

    method: ClassVar[str] = "steerable"
    title: ClassVar[str] = "Steerable"
    about: ClassVar[str] = "lisch with a network that is steered towards the data (--adapt-set)"
    references: ClassVar[tuple[str, ...]] = ("Webber2025", "Song2020")
    own_adaptation: ClassVar[type[Adaptation]] = SteerableAdaptation
    has_speeds: ClassVar[bool] = False
