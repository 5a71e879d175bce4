"""The one reverse-diffusion loop: denoise, make consistent with the data, renoise. A sampler is a choice of parts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...engines import PROJECTORS, as_objective
from ...engines.objective import NativeImages, Objective
from ...geometry.checks import check_count, check_real, check_seed
from ...models.grid import checked_box
from ..records import Cost, StepRecord
from ..settings import Settings, kinds_of_default, make
from ..view import as_score_model, bound, check_bound, seen_as_volume
from .chain import Chain, posterior_sd
from .consistency import Adaptation, DataConsistency, DataStepResult, DiffusionStep, orientation_of_step
from .resuming import ResumableReconstructor
from .sampling import Sampling, renoised, reverse_times

if TYPE_CHECKING:
    from typing_extensions import Self

    from ...models.score_model import ScoreModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Denoised:
    """What the network found in a chain's noisy images: clean images and noise ``u0``, ``eps`` on its own grid in
    network units, and the clean images ``image [samples, z, y, x]`` in image units.
    """

    step: DiffusionStep
    u0: Tensor
    eps: Tensor
    image: Tensor


class DiffusionReconstructor(ResumableReconstructor):
    r"""Posterior samples by reverse diffusion with a data step at every noise level.

    With :math:`u` in network units, :math:`x = c\,u`, and noise levels :math:`t_1 > \dots > t_K`:

    .. math::
        \mathrm{model} &\leftarrow \mathrm{adaptation}(\mathrm{model}, u) \\
        (u_0, \epsilon) &= \mathrm{model}(u, t_k) \\
        x &= \mathrm{consistency}(c\,u_0) \\
        u &\leftarrow \gamma' (u_0 + \Delta) + \sqrt{\nu'^2 - (\eta b)^2}\, \epsilon + \eta b\, z

    where :math:`\Delta` is what the data step changed, on the network's grid, and :math:`\epsilon` is the noise found
    *before* it. The chain :math:`u` is never clipped. The result is the data-consistent image of the last step. What
    the scanner cannot see is set to zero; where the network's grid is larger than the image, the chain follows the
    prior.

    Sampler: Song et al. 2021, arXiv:2010.02502. Decomposition into denoising and data steps: Chung et al. 2024,
    arXiv:2303.05754; for PET Singh et al. 2024, MELBA 2:547.

    Parameters
    ----------
    objective
        Poisson log-likelihood of the acquisition.
    model
        Score model, or its name or file. One that is not bound to an image grid is bound in :meth:`set_up`
        (``model.for_data``).
    consistency
        The data step; if omitted, that of the class with its settings, or none, which samples the prior.
    num_samples
        Samples; they advance together.
    seed
        Decides all noise, whatever the device and however the samples are grouped.
    adaptation
        Fits the model to the data before it denoises, see
        :class:`~sirf_diffusion.reconstructors.diffusion.consistency.Adaptation`; that of the class if omitted. With
        one, samples are no longer independent.
    batch_size
        Samples that are projected at once; all if omitted. Limits the projector's memory.
    speed, projector
        ``"accurate"``, ``"balanced"`` (the default) or ``"fast"``: which defaults the settings have. Whose projector is
        used of data of SIRF or STIR, see `sirf_diffusion.as_objective`.
    resume_from
        File written by ``CheckpointCallback``; everything else must be as in the run that wrote it.
    callbacks
        Called once per step. ``StopIteration`` ends the run with that step's images.
    settings
        Those listed below; defaults are the recommended ones, in volumes other ones than in slices. See also
        :meth:`published`.

    Raises
    ------
    ValueError
        If a setting is unknown or out of range, the model is bound to another grid, or the checkpoint belongs to
        another run.
    FloatingPointError
        If the chain stops being finite.
    """

    method: ClassVar[str] = "diffusion"
    uses_model: ClassVar[bool] = True
    samples: ClassVar[bool] = True
    sampling: ClassVar[type[Sampling]] = Sampling
    data_step: ClassVar[type[DataConsistency] | None] = None

    @classmethod
    def parts(cls) -> tuple[type[Settings], ...]:
        return (cls.sampling,) if cls.data_step is None else (cls.sampling, cls.data_step)

    def __init__(
        self,
        objective: Objective,
        model: ScoreModel | str | Path,
        consistency: DataConsistency | None = None,
        *,
        num_samples: int = 1,
        seed: int = 0,
        adaptation: Adaptation | None = None,
        batch_size: int | None = None,
        speed: str | None = None,
        projector: str = PROJECTORS[0],
        resume_from: str | Path | None = None,
        callbacks: Iterable[Callable[[StepRecord], None]] = (),
        **settings: Any,
    ) -> None:
        super().__init__(as_objective(objective, projector=projector), callbacks=callbacks)
        model = as_score_model(model, getattr(self.objective, "device", "cpu"))
        parts = self.parts() if consistency is None else (self.sampling,)
        volume = seen_as_volume(model, self.objective, settings.get("planes"))
        kinds = kinds_of_default(self.speed_of(speed, adapted=adaptation is not None), volume=volume)
        chosen, *data_step = make(parts, settings, self.method, *kinds)
        self.model, self.sampling_settings = model, chosen
        self.consistency: DataConsistency | None = data_step[0] if data_step else consistency
        self.adaptation = self.own_adaptation() if adaptation is None and self.own_adaptation else adaptation
        self.num_steps, self.eta, self.noise = chosen.num_steps, chosen.eta, chosen.noise
        self.num_samples = check_count("num_samples", num_samples)
        self.seed = check_seed("seed", seed)
        self.batch_size = self.num_samples if batch_size is None else check_count("batch_size", batch_size)
        self.resume_from = resume_from
        start, end = chosen.starting_noise_level, chosen.final_noise_level
        self.times = reverse_times(model.schedule, self.num_steps, end, chosen.spacing, start)
        self.settings = {
            **chosen.settings,
            "num_samples": self.num_samples,
            "seed": self.seed,
            **({} if self.consistency is None else self.consistency.settings),
            **({} if self.adaptation is None else {"adaptation": self.adaptation.settings}),
        }
        asked = chosen.crop and (speed is not None or "crop" in settings)
        check_bound(model, self.objective, chosen.planes, chosen.extent, asked)
        self._samples: Tensor | None = None
        self._preparation = Cost()

    @classmethod
    def published(cls, objective: Objective, model: ScoreModel, **options: Any) -> Self:
        """The reconstructor with the settings of the method's paper, where ``options`` give no others."""
        return cls(objective, model, **(cls.defaults("published") | options))

    def restrict_to(self, members: Sequence[int]) -> None:
        """Make only these of the samples ``0`` to ``num_samples - 1``, each as a run of all of them makes it.

        For runs that share the samples of one reconstruction. To be called before :meth:`set_up`; mean and standard
        deviation are then those of the samples made here.
        """
        if self.adaptation is not None:
            raise ValueError(
                f"{self.method}: all samples adapt one network together, so that they cannot be shared out"
            )
        chosen = tuple(members)
        if not chosen or sorted({*chosen} & {*range(self.num_samples)}) != sorted(chosen):
            raise ValueError(f"members must be different samples of 0 to {self.num_samples - 1}, found {chosen}")
        self.members = chosen
        self.settings["members"] = list(chosen)

    def set_up(self, initial_image: Any = None) -> None:
        """Prepare the data step and bind the model; the record counts what this costs.

        Parameters
        ----------
        initial_image
            Image ``[z, y, x]``, such as an early OSEM image; the chain starts from it with the noise of the first
            noise level.
        """
        start, began = self._spent(), time.perf_counter()
        super().set_up(initial_image)
        self._samples, self._given = None, initial_image is not None
        self._set_up_data_step()
        if self.model.geometry is None:
            resumed = self._kept("intensity_scale", partial(check_real, "intensity_scale", minimum=1e-12, maximum=1e12))
            chosen = self.sampling_settings
            box = (self._kept("box", checked_box) or "object") if chosen.crop else None
            self.model = bound(
                self.model, self.objective, chosen.planes, chosen.extent, sampling=True, intensity_scale=resumed,
                box=box, coarse_above=chosen.coarse_above,
            )  # fmt: skip
            start.evaluations, start.network = 0, 0.0  # a bound copy counts for itself
        if self.consistency is not None:
            self.consistency.set_scale(self.model.intensity_scale, self.model.covered)
        self._set_up_adaptation()
        self._preparation = self._spent() - start
        self._preparation.total = time.perf_counter() - began
        if self._resumed is not None:
            self._resumed.check(self._fingerprint())
            self._preparation = self._kept("preparation", Cost.of)

    def process(self) -> DiffusionReconstructor:
        """Run the chain; returns the reconstructor itself."""
        super().process()
        early = {"preparation_forward": self._preparation.forward, "preparation_back": self._preparation.back}
        self.record["projections"] |= early
        self.record["model"] = self._of_model()
        if self.consistency is not None:
            self.record.update(self.consistency.summary())
        if self.adaptation is not None:
            self.record["adaptation"] = self.adaptation.summary()
        return self

    def get_samples(self) -> Any:
        """All samples: a list of images of the objective's engine if that has images, else ``[samples, z, y, x]``."""
        samples = self._known_samples()
        if isinstance(self.objective, NativeImages):
            return [self.objective.to_image(sample) for sample in samples]
        return samples.clone()

    def get_uncertainty(self) -> Any:
        """Standard deviation of the posterior, from the samples; an image as :meth:`get_output` gives.

        Not calibrated, as that of `sirf_diffusion.reconstruct` is. None, with a logged reason, for one sample.
        """
        samples = self._known_samples()
        if len(samples) == 1:
            logger.warning("one sample has no standard deviation: ask for num_samples >= 2 to get an uncertainty image")
            return None
        return self._handed_out(posterior_sd(samples, self.noise))

    def _known_samples(self) -> Tensor:
        if self._samples is None:
            raise RuntimeError(f"{type(self).__name__} has no output yet: call process() first")
        return self._samples

    def _run(self) -> Tensor:
        self._earlier = self._preparation
        self._listening = 0.0
        model = self.model
        if self.adaptation is not None:
            model = self.adaptation.begin(model, self.num_samples, self.batch_size)
        chain = self.begin() if self._resumed is None else self._resume(self._resumed)
        while chain.step < self.num_steps:
            if self.adaptation is not None:
                model = self.adaptation(model, chain.u, self._level(chain)) or model
            denoised = self.denoise(chain, model)
            step = denoised.step
            data = self._consistent(chain, denoised.image, step)
            chain.x, chain.step = data.x, step.index + 1
            if chain.step < self.num_steps:
                self.renoise(chain, denoised, model)
            if not bool(torch.isfinite(chain.u.sum() + chain.x.sum())):
                raise FloatingPointError(f"{self.method} step {chain.step} of {self.num_steps} is not finite")
            if self._report(chain, step, data):
                break
        self._samples = chain.x
        return chain.x.mean(0)

    def _consistent(self, chain: Chain, prior_image: Tensor, step: DiffusionStep) -> DataStepResult:
        if self.consistency is None:
            return DataStepResult(prior_image.clamp(min=0))
        correction, chain.correction = chain.correction, None
        if correction is not None:
            return DataStepResult(self.consistency.admissible(prior_image + correction))
        groups = prior_image.split(self.batch_size)
        result = DataStepResult.joined([self.consistency(group, step) for group in groups])
        if self.sampling_settings.serves_next(step):
            chain.correction = result.x - prior_image
        return result

    def begin(self) -> Chain:
        """The state before the first step, no pure noise: a missing mean would bias samples; needs :meth:`set_up`."""
        model, schedule, t = self.model, self.model.schedule, self.times[0]
        mean = float(schedule.gamma(t)) * model.to_latent(self._starting_image().to(model.device))
        nu = float(schedule.nu(t))
        return Chain.start(mean, nu, self.num_samples, self.seed, self.noise, self.members, model.window)

    def denoise(self, chain: Chain, model: ScoreModel) -> Denoised:
        """First part of a step: what the model finds in the chain's noisy images."""
        step = self._level(chain)
        u0, eps = model.predict(chain.u, step.t, orientation_of_step(step.index, self.num_steps))
        return Denoised(step, u0, eps, model.to_image(u0).to(self.objective.sensitivity()))

    def _level(self, chain: Chain) -> DiffusionStep:
        sigmas = [float(self.model.schedule.sigma(t)) for t in self.times[chain.step : chain.step + 2]]
        return DiffusionStep(chain.step, self.num_steps, self.times[chain.step], *sigmas)

    def renoise(self, chain: Chain, denoised: Denoised, model: ScoreModel) -> None:
        """Last part of a step: the noisy images of the next noise level, from the data-consistent ones ``chain.x``."""
        u0 = denoised.u0
        if self.consistency is not None:
            # The change, not the image: a resampled image would lose detail that only the network's grid holds.
            u0 = u0 + model.to_latent(chain.x - denoised.image).to(u0)
        times = self.times[max(chain.step - 2, 0) : chain.step + 1]
        chain.u = renoised(chain, model.schedule, times, u0, denoised.eps, self.sampling_settings.solver, self.eta)

    def _report(self, chain: Chain, step: DiffusionStep, data: DataStepResult) -> bool:
        cost = self._cost()
        record = StepRecord(
            self.method,
            chain.step,
            self.num_steps,
            chain.x,
            t=step.t,
            sigma=step.sigma,
            log_likelihood_before=data.before,
            log_likelihood_after=data.after,
            target=data.target,
            num_inner=data.num_inner,
            loss=None if self.adaptation is None else self.adaptation.loss,
            forward=cost.forward,
            back=cost.back,
            network_evaluations=cost.evaluations,
            seconds=cost.total,
            checkpoint=lambda: self._checkpoint(chain),
        )
        if data.after is not None:
            self._trace.append(sum(data.after) / len(data.after))
        began, stop = time.perf_counter(), self._notify(record)
        self._listening += time.perf_counter() - began
        return stop

    def _cost(self) -> Cost:
        """Everything so far: preparation, the run that was interrupted, and this one."""
        cost = super()._cost()
        cost.callbacks += self._listening
        return cost

    def _spent(self) -> Cost:
        return Cost.now(self.objective, self.model)

    def _starting_image(self) -> Tensor:
        """The image given to :meth:`set_up`, else an EM image that the data step has, else the uniform image."""
        early = None if self._given or self.consistency is None else self.consistency.early_image()
        return self._initial if early is None else early
