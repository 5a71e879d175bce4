"""The one reverse-diffusion loop: denoise, make consistent with the data, renoise. A sampler is a choice of parts."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...engines.objective import NativeImages, Objective
from ...geometry.checks import check_count, check_real
from ..base import Reconstructor
from ..cost import Cost
from ..records import StepRecord
from .adaptation import Adaptation
from .chain import NOISES, Chain, posterior_sd
from .checkpoint import Checkpoint
from .consistency import DataConsistency, DataStepResult, DiffusionStep, orientation_of_step

if TYPE_CHECKING:
    from ...models.score_model import ScoreModel

logger = logging.getLogger(__name__)

SIGMA_END = 0.05
_ADAPTED = "adaptation."


@dataclass(frozen=True)
class Denoised:
    """What the network found in a chain's noisy images: clean images and noise ``u0``, ``eps`` on its own grid in
    network units, and the clean images ``image [samples, z, y, x]`` in image units.
    """

    step: DiffusionStep
    u0: Tensor
    eps: Tensor
    image: Tensor


class DiffusionReconstructor(Reconstructor):
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
        Score model. One that is not bound to an image grid is bound in :meth:`set_up` (``model.for_data``).
    consistency
        The data step; None samples the prior.
    num_steps
        Noise levels ``K`` at which the network is asked.
    num_samples
        Samples; they advance together.
    seed
        Decides all noise, whatever the device and however the samples are grouped.
    eta
        Share of fresh noise in [0, 1]; 0 is deterministic given the starting noise.
    noise
        ``"balanced"``: the noises of the samples add up to zero, so that the mean of a few samples comes near that of
        many, and each sample by itself is as before (see
        :func:`~sirf_diffusion.reconstructors.diffusion.chain.balanced`).
        ``"independent"``: sample ``k`` of a seed is the same however many samples there are.
    t_end
        Time of the last network evaluation; where sigma is 0.05 if omitted.
    spacing
        Spacing of the times, see ``NoiseSchedule.timesteps``.
    adaptation
        Fits the model to the data before it denoises, see
        :class:`~sirf_diffusion.reconstructors.diffusion.adaptation.Adaptation`; with one, samples are no longer
        independent.
    batch_size
        Samples that are projected at once; all if omitted. Limits the projector's memory.
    resume_from
        File written by ``CheckpointCallback``; everything else must be as in the run that wrote it.
    callbacks
        Called once per step. ``StopIteration`` ends the run with that step's images.

    Raises
    ------
    ValueError
        If a setting is out of range, the model is bound to another grid, or the checkpoint belongs to another run.
    FloatingPointError
        If the chain stops being finite.
    """

    method: ClassVar[str] = "diffusion"

    def __init__(
        self,
        objective: Objective,
        model: ScoreModel,
        consistency: DataConsistency | None = None,
        *,
        num_steps: int = 40,
        num_samples: int = 1,
        seed: int = 0,
        eta: float = 0.85,
        noise: str = "balanced",
        t_end: float | None = None,
        spacing: str = "t",
        adaptation: Adaptation | None = None,
        batch_size: int | None = None,
        resume_from: str | Path | None = None,
        callbacks: Iterable[Callable[[StepRecord], None]] = (),
    ) -> None:
        super().__init__(objective, callbacks=callbacks)
        self.model = model
        self.consistency = consistency
        self.adaptation = adaptation
        self.num_steps = check_count("num_steps", num_steps)
        self.num_samples = check_count("num_samples", num_samples)
        self.seed = check_count("seed", seed, minimum=0)
        self.eta = check_real("eta", eta, 0.0, 1.0)
        if noise not in NOISES:
            raise ValueError(f"noise must be one of {', '.join(NOISES)}, found {noise!r}")
        self.noise = noise
        self.batch_size = self.num_samples if batch_size is None else check_count("batch_size", batch_size)
        self.resume_from = resume_from
        self.times = reverse_times(model.schedule, self.num_steps, t_end, spacing)
        self.settings = {
            "num_steps": self.num_steps,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "eta": self.eta,
            "noise": self.noise,
            "t_end": self.times[-1],
            "spacing": spacing,
            **({} if consistency is None else consistency.settings),
        }
        if adaptation is not None:
            self.settings["adaptation"] = adaptation.settings
        if model.geometry is not None:
            _check_grid(model, objective)
        self.members: tuple[int, ...] | None = None
        self._samples: Tensor | None = None
        self._resumed: Checkpoint | None = None
        self._preparation = Cost()

    def restrict_to(self, members: Sequence[int]) -> None:
        """Make only these of the samples ``0 ... num_samples - 1``, each as a run of all of them makes it.

        For runs that share the samples of one reconstruction. To be called before :meth:`set_up`; mean and standard
        deviation are then those of the samples made here.

        Raises
        ------
        ValueError
            If there are no such samples, or the network is adapted, which all samples have a part in.
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
        start, began = Cost.now(self.objective, self.model), time.perf_counter()
        super().set_up(initial_image)
        self._samples, self._given = None, initial_image is not None
        self._resumed = None if self.resume_from is None else Checkpoint.load(self.resume_from)
        if self.consistency is not None:
            if self._resumed is None:
                self.consistency.set_up(self.objective)
            else:
                self.consistency.restore(self.objective, self._resumed.metadata["consistency"])
        if self.model.geometry is None:
            resumed = self._resumed and float(self._resumed.metadata["intensity_scale"])
            self.model = self.model.for_data(self.objective, sampling=True, intensity_scale=resumed)
            start.evaluations, start.network = 0, 0.0  # a bound copy counts for itself
        if self.consistency is not None:
            self.consistency.set_scale(self.model.intensity_scale)
        if self.adaptation is not None:
            self._set_up_adaptation(self.adaptation)
        self._preparation = Cost.now(self.objective, self.model) - start
        self._preparation.total = time.perf_counter() - began
        if self._resumed is not None:
            self._resumed.check(self.resume_from, self._fingerprint())
            self._preparation = Cost(**self._resumed.metadata["preparation"])

    def _set_up_adaptation(self, adaptation: Adaptation) -> None:
        fixed = (self.objective, self.model, self.consistency, self.num_steps)
        if self._resumed is None:
            adaptation.set_up(*fixed)
        else:
            adaptation.restore(*fixed, self._resumed.metadata["adaptation"])
        self.settings["adaptation"] = adaptation.settings

    def process(self) -> DiffusionReconstructor:
        """Run the chain; returns the reconstructor itself."""
        super().process()
        cost, preparation = self._cost(), self._preparation
        self.record["projections"] = {
            "forward": cost.forward,
            "back": cost.back,
            "preparation_forward": preparation.forward,
            "preparation_back": preparation.back,
        }
        self.record["network_evaluations"] = cost.evaluations
        self.record["seconds"] = {
            "total": cost.total,
            "projector": cost.projector,
            "network": cost.network,
            "callbacks": cost.callbacks,
            "other": max(cost.total - cost.projector - cost.network - cost.callbacks, 0.0),
        }
        self.record["model"] = {
            "hash": self.model.hash,
            "conditioning": self.model.conditioning,
            "precision": self.model.precision,
            "intensity_scale": float(self.model.intensity_scale),
        }
        self.record["trace"] = [dict(entry) for entry in self._steps]
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

        None, with a logged reason, for one sample.
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
        self._steps: list[dict[str, Any]] = []
        self._counted = Cost.now(self.objective, self.model)
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
            data = self._consistent(denoised.image, step)
            chain.x, chain.step = data.x, step.index + 1
            if chain.step < self.num_steps:
                self.renoise(chain, denoised, model)
            if not bool(torch.isfinite(chain.u.sum() + chain.x.sum())):
                raise FloatingPointError(f"{self.method} step {chain.step} of {self.num_steps} is not finite")
            if self._report(chain, step, data):
                break
        self._samples = chain.x
        return chain.x.mean(0)

    def _consistent(self, prior_image: Tensor, step: DiffusionStep) -> DataStepResult:
        if self.consistency is None:
            return DataStepResult(prior_image.clamp(min=0))
        groups = prior_image.split(self.batch_size)
        return DataStepResult.joined([self.consistency(group, step) for group in groups])

    def begin(self) -> Chain:
        """The state of a run before its first step; needs :meth:`set_up`."""
        # Not from pure noise: at a finite noise level the missing mean would bias every sample.
        schedule, t = self.model.schedule, self.times[0]
        mean = float(schedule.gamma(t)) * self.model.to_latent(self._starting_image().to(self.model.device))
        return Chain.start(mean, float(schedule.nu(t)), self.num_samples, self.seed, self.noise, self.members)

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
        noise = chain.noise() if self.eta > 0 else None
        t_next = self.times[chain.step]
        chain.u = model.schedule.ddim_step(u0, denoised.eps, denoised.step.t, t_next, self.eta, noise)

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
        self._steps.append(record.to_dict())
        if data.after is not None:
            self._trace.append(sum(data.after) / len(data.after))
        began = time.perf_counter()
        stop = self._notify(record)
        self._listening += time.perf_counter() - began
        return stop

    def _cost(self) -> Cost:
        """Everything so far: preparation, the run that was interrupted, and this one."""
        cost = Cost.now(self.objective, self.model) - self._counted + self._earlier
        cost.callbacks += self._listening
        cost.total += time.perf_counter() - self._start
        return cost

    def _checkpoint(self, chain: Chain) -> Checkpoint:
        adapted: dict[str, Tensor] = {}
        if self.adaptation is not None:
            adapted = {f"{_ADAPTED}{name}": tensor for name, tensor in self.adaptation.tensors().items()}
        return Checkpoint(
            chain.tensors() | adapted,
            {
                "fingerprint": self._fingerprint(),
                "intensity_scale": float(self.model.intensity_scale),
                "consistency": {} if self.consistency is None else self.consistency.state(),
                "adaptation": None if self.adaptation is None else self.adaptation.state(),
                "preparation": asdict(self._preparation),
                "cost": asdict(self._cost()),
                "step": chain.step,
                "steps": self._steps,
                "log_likelihood": self._trace,
            },
        )

    def _resume(self, checkpoint: Checkpoint) -> Chain:
        self._earlier = Cost(**checkpoint.metadata["cost"])
        self._steps = [dict(entry) for entry in checkpoint.metadata["steps"]]
        self._trace = list(checkpoint.metadata["log_likelihood"])
        if self.adaptation is not None:
            kept = {n.removeprefix(_ADAPTED): t for n, t in checkpoint.tensors.items() if n.startswith(_ADAPTED)}
            self.adaptation.resume(kept, checkpoint.metadata["adaptation"])
        device = self.objective.sensitivity().device
        metadata = checkpoint.metadata
        return Chain.of(checkpoint.tensors, metadata["step"], self.model.device, device, self.noise, self.members)

    def _fingerprint(self) -> dict[str, Any]:
        fingerprint = {
            "method": self.method,
            "model": self.model.hash,
            "conditioning": self.model.conditioning,
            "precision": self.model.precision,
            "intensity_scale": float(self.model.intensity_scale),
            "image_shape": list(self.objective.geometry.shape),
            "sensitivity": float(self.objective.sensitivity().double().sum()),
            "mean_activity": float(self.objective.uniform_image().max()),
            **self.settings,
        }
        return json.loads(json.dumps(fingerprint))

    def _starting_image(self) -> Tensor:
        """The image given to :meth:`set_up`, else an EM image that the data step has, else the uniform image."""
        early = None if self._given else self._early_image()
        return self._initial if early is None else early

    def _early_image(self) -> Tensor | None:
        return None if self.consistency is None else self.consistency.early_image()

    def _network_counter(self) -> Any:
        return self.model.counter


def reverse_times(
    schedule: Any, num_steps: int, t_end: float | None, spacing: str, t_start: float | None = None
) -> list[float]:
    """Times at which the network is asked, descending; the last one is ``t_end``, where sigma is 0.05 if omitted."""
    if t_end is None:
        t_end = float(schedule.t_of_sigma(SIGMA_END))
    if num_steps == 1:
        return [float(schedule.t_max if t_start is None else t_start)]
    return [float(t) for t in schedule.timesteps(num_steps - 1, t_end, spacing, t_start)]


def _check_grid(model: ScoreModel, objective: Objective) -> None:
    if model.geometry != objective.geometry:
        raise ValueError(
            f"the model is bound to {model.geometry}, the data need {objective.geometry}; "
            "bind it with model.for_data(objective)"
        )
