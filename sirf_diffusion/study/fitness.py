"""How far a reconstruction is from what its score model was trained on: measurements after a run, and a verdict."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..engines.objective import Objective
from ..geometry.gaussian import gaussian_smooth
from ..geometry.images import ImageGeometry
from ..models.coarse import Coarse
from ..models.expected_image import MOST_OFF_MM, RESEMBLANCE_LEAST, Resemblance, resemblance
from ..models.intensity import object_box

if TYPE_CHECKING:
    from ..models.score_model import ScoreModel

logger = logging.getLogger(__name__)

#: Noise levels at which the model is asked, and with how many pairs of a slice: at high levels few degrees of freedom
#: are left to average. More than one plane is asked with one.
PROBES = {0.1: 1, 0.2: 1, 0.4: 1, 0.8: 2, 1.6: 2, 3.2: 2}
#: Noise levels from this one on show large structures only: the model's companion answers, if there is one.
COARSE = 0.8
#: Ratios of denoising error to what the model expects itself, mean over fine and coarse levels: beyond the first number
#: unusual, beyond the second out of distribution. And to the error of its validation.
FINE_LIMITS, COARSE_LIMITS = (1.12, 1.25), (1.2, 1.35)
#: Coarse ratio below which samples are unusual. An estimate (a MAP image, a mean) has less structure than a sample, the
#: less the noisier the data are, and so have samples of fewer steps than these: of them, nothing follows.
COARSE_LEAST, FEWEST_STEPS = 0.92, 20
TRAINING_LIMITS = (1.75, 2.2)
#: Standard deviations by which the likelihood of a fit may miss that of the truth.
LIKELIHOOD_LIMIT = 6.0

#: Planes of a volume that a model of slices is asked about, so that it costs about what a slice does.
NUM_PLANES = 4

_SEED = 76_513
_EMITTING, _FWHM_MM, _MARGIN_MM = 0.1, 8.0, 16.0
IN, UNUSUAL, OUT = "in distribution", "unusual", "out of distribution"


@dataclass(frozen=True)
class DenoisingCheck:
    """Root mean squared errors of denoising the reconstruction plus noise of level ``sigma``, network units.

    Attributes
    ----------
    companion
        Whether its companion answered, of means of 2 x 2 voxels. All three errors are theirs.
    error
        What the model made of it, against the reconstruction.
    expected
        The error that the model expects itself, from its own derivative.
    training
        Its error on the validation images of its training; None if the model file does not tell.
    """

    sigma: float
    companion: bool
    error: float
    expected: float
    training: float | None

    @property
    def own_ratio(self) -> float:
        """``error / expected``."""
        return self.error / max(self.expected, 1e-6)

    @property
    def training_ratio(self) -> float | None:
        """``error / training``."""
        return None if self.training is None else self.error / self.training


@dataclass(frozen=True)
class LikelihoodCheck:
    """Log-likelihood of the image handed out, and what the true image's would be: mean and standard deviation."""

    achieved: float
    expected: float
    standard_deviation: float

    @property
    def deviations(self) -> float:
        """Standard deviations above what is expected; below zero the data are fitted less well than by the truth."""
        return (self.achieved - self.expected) / self.standard_deviation


@dataclass(frozen=True)
class DistributionCheck:
    """All measurements and what they cost; see :func:`check_distribution`. ``remedy`` is what an unfit model needs."""

    denoising: tuple[DenoisingCheck, ...]
    smooth: bool
    likelihood: LikelihoodCheck | None
    resemblance: Resemblance | None
    remedy: str
    network_evaluations: int
    forward_projections: float
    seconds: float

    @property
    def fine_ratio(self) -> float:
        """Denoising error over the error that the model expects, mean over the low noise levels."""
        return _mean([level.own_ratio for level in self.denoising if level.sigma < COARSE])

    @property
    def coarse_ratio(self) -> float:
        """The same for the high noise levels, where only large structures can be told."""
        return _mean([level.own_ratio for level in self.denoising if level.sigma >= COARSE])

    @property
    def training_ratio(self) -> float | None:
        """Largest ratio of denoising error to that of the validation images; None if unknown."""
        return max((level.training_ratio for level in self.denoising if level.training is not None), default=None)

    @property
    def verdict(self) -> str:
        """``"in distribution"``, ``"unusual"`` or ``"out of distribution"``: as far as can be told from the image."""
        misfit = self.likelihood is not None and not abs(self.likelihood.deviations) <= LIKELIHOOD_LIMIT
        grade = 0 if self.resemblance is None else self.resemblance.grade
        return (IN, UNUSUAL, OUT)[max(self._grade_of_model(), int(misfit), grade)]

    @property
    def recommendation(self) -> str:
        """What to do about it; empty if nothing."""
        if self.verdict == IN:
            return ""
        if self.resemblance is not None and self.resemblance.advice:
            return self.resemblance.advice
        fit = "check scatter, randoms and attenuation, and the strength of the method"
        return fit if self._grade_of_model() == 0 else self.remedy

    @property
    def message(self) -> str:
        """One line for figures and logs."""
        text = f"{self.verdict}: denoising error {_times(self.fine_ratio)} what the model expects"
        less = self.coarse_ratio < COARSE_LEAST and self.smooth
        text += f" (large structures {_times(self.coarse_ratio)}{', as smooth images have' if less else ''})"
        if self.training_ratio is not None:
            text += f", up to {_times(self.training_ratio)} its training's"
        if self.likelihood is not None:
            text += f"; likelihood {self.likelihood.deviations:+.1f} SD from the expected"
        if self.resemblance is not None:
            text += f"; {self.resemblance}"
        return text + (f"; {self.recommendation}" if self.recommendation else "")

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        told = ("verdict", "recommendation", "message", "fine_ratio", "coarse_ratio", "training_ratio")
        cost = ("network_evaluations", "forward_projections", "seconds")
        likelihood = self.likelihood
        return {
            **{name: getattr(self, name) for name in told},
            "resemblance": None if self.resemblance is None else asdict(self.resemblance),
            "smooth": self.smooth,
            "limits": {
                "fine_ratio": FINE_LIMITS,
                "coarse_ratio": (0.0 if self.smooth else COARSE_LEAST, *COARSE_LIMITS),
                "training_ratio": TRAINING_LIMITS,
                "deviations": LIKELIHOOD_LIMIT,
                "resemblance": RESEMBLANCE_LEAST,
                "offset_mm": MOST_OFF_MM,
            },
            "denoising": [
                asdict(d) | {"own_ratio": d.own_ratio, "training_ratio": d.training_ratio} for d in self.denoising
            ],
            "likelihood": None if likelihood is None else asdict(likelihood) | {"deviations": likelihood.deviations},
            "cost": {name: getattr(self, name) for name in cost},
        }

    def _grade_of_model(self) -> int:
        """0 to 2; what is not a number is not within its limits."""
        limited = [(self.fine_ratio, FINE_LIMITS), (self.coarse_ratio, COARSE_LIMITS)]
        if self.training_ratio is not None:
            limited.append((self.training_ratio, TRAINING_LIMITS))
        grades = [sum(not ratio <= limit for limit in limits) for ratio, limits in limited]
        return max(*grades, int(not self.smooth and not self.coarse_ratio >= COARSE_LEAST))


def check_distribution(
    model: ScoreModel,
    image: Tensor,
    *,
    samples: Tensor | None = None,
    smooth: bool | None = None,
    objective: Objective | None = None,
    log_likelihood: float | None = None,
    remedy: str = "adapt the model to the data: --adapt ddip",
    seed: int = 0,
) -> DistributionCheck:
    r"""Compare a reconstruction, and how it fits the data, with what is to be expected if the model is right.

    *Denoising.* Noise of level :math:`\sigma` is added to the reconstruction ``u`` and the model asked to remove it:
    :math:`e^2 = \|D(u + \sigma z) - u\|^2`. If the images are drawn from the distribution that the model has learnt,
    the expectation of :math:`e^2` given the noisy image is :math:`\sigma^2 \operatorname{div} D` (Tweedie's formula for
    the variance, Efron 2011, doi:10.1198/jasa.2011.tm11181): the model says by itself how wrong it expects to be, for
    this very image. Noise is added and subtracted, so that the same two answers give two errors and, by Stein's
    identity :math:`\sigma \operatorname{div} D = \operatorname{E} z^T D(u + \sigma z)`, the divergence. The error is
    compared with the one on the validation images of the training, too; that ratio depends on the contrast of the
    image, and so varies more.

    *Likelihood.* That of the image handed out against mean and standard deviation of the true image's, over the noise
    of the measurement, see :meth:`~sirf_diffusion.engines.objective.Objective.expected_log_likelihood`.

    *Resemblance*, of a model for one patient: that of the data's early image to the image that the model expects, see
    :func:`~sirf_diffusion.models.expected_image.resemblance`.

    A reconstruction by the model resembles what the model knows, whatever was measured: at low counts both checks are
    blind to what the data do not show.

    Parameters
    ----------
    model
        As it was trained (not adapted), bound to the image grid. Of volumes, a model of slices without conditioning
        is asked about four transverse planes, spread over what emits, as the validation was.
    image
        The image handed out ``[z, y, x]``, image units.
    samples
        Posterior samples ``[S, z, y, x]``, or a true image, which are used for the denoising if there are any: their
        mean is smoother than any image that the model knows.
    smooth
        Whether what is judged may have less structure than the model expects: an estimate (MAP, or a mean of samples),
        or samples of few steps. If omitted, what is no sample is.
    objective, log_likelihood
        Likelihood of the data, and that of ``image`` (computed if omitted); without them, and for engines that cannot
        tell the expectation, there is no second part.
    remedy
        What to recommend if the model does not know such images.
    seed
        Of the noise.

    Returns
    -------
    DistributionCheck
        Costs 18 network evaluations of one plane, or 12 of all that are asked about, and one projection (two without
        ``log_likelihood``). A companion makes 12 of the 18, or 6 of the 12.
    """
    began = time.perf_counter()
    images, bound = image[None] if samples is None else samples, model
    if model.planes != "volume" and model.conditioning is None:
        images, planes = some_planes(images, model.geometry, NUM_PLANES)
        box = object_box(images.mean(0).clamp(min=0), planes)
        bound = model.on(planes, model.intensity_scale, box=box)
    evaluations = bound.counter.evaluations
    denoising = _denoising(bound, images, seed)
    evaluations = bound.counter.evaluations - evaluations
    forward = 0.0 if objective is None else objective.counter.forward
    likelihood = None if objective is None else _likelihood(objective, image, log_likelihood)
    projections = 0.0 if objective is None else objective.counter.forward - forward
    smooth = samples is None if smooth is None else smooth
    alike = None
    if model.expected_image is not None:
        # What the model made resembles what it expects, whoever was measured.
        early = image if objective is None else objective.early_image()
        alike = resemblance(model.anatomy, model.to_latent(early), model.latent_geometry)
    cost = evaluations, projections, time.perf_counter() - began
    check = DistributionCheck(tuple(denoising), smooth, likelihood, alike, remedy, *cost)
    (logger.info if check.verdict == IN else logger.warning)("%s", check.message)
    return check


def _denoising(model: ScoreModel, images: Tensor, seed: int) -> list[DenoisingCheck]:
    latent, box = model.to_latent(images), _box(model, images.mean(0))
    coarse = None if model.companion is None else Coarse.of(model, model.companion, COARSE)
    lowest, highest = (model.schedule.sigma(float(t)) for t in (model.schedule.t_min, model.schedule.t_max))
    # Not the noise that a sampler of the same seed started from.
    generator = torch.Generator().manual_seed(_SEED + seed)
    levels = []
    for sigma, pairs in ((s, n) for s, n in PROBES.items() if lowest <= s <= highest):
        asked, u, level, (y, x) = model, latent, sigma, box
        if by_companion := coarse is not None and sigma >= COARSE:
            asked, u, level = coarse.model, coarse.means(latent), sigma * coarse.noise
            y, x = (slice(side.start and side.start // 2, side.stop and side.stop // 2) for side in box)
        number = 2 * pairs if u.shape[1] == 1 else 2
        u = u.repeat(-(-number // len(u)), 1, 1, 1)[:number]
        z = torch.randn(u[: number // 2].shape, generator=generator).to(u).repeat(2, 1, 1, 1)
        z[number // 2 :] *= -1
        t = asked.schedule.t_of_sigma(level)
        denoised, _ = asked.predict(asked.schedule.gamma(t) * (u + level * z), t, 0)
        error, z = ((v[..., y, x]).double() for v in (denoised - u, z))
        rms, expected = (float(v.clamp(min=0).sqrt()) for v in (error.square().mean(), level * (z * error).mean()))
        levels.append(DenoisingCheck(sigma, by_companion, rms, expected, _validation(asked).get(level)))
    return levels


def _validation(model: ScoreModel) -> dict[float, float]:
    """Denoising errors on the validation images of the training, by noise level."""
    errors = model.metadata["training"].get("validation") or {}  # of a student, those of its teacher besides
    return {float(k): float(v) for k, v in errors.items() if not k.startswith("teacher_")}


def some_planes(images: Tensor, geometry: ImageGeometry, number: int) -> tuple[Tensor, ImageGeometry]:
    """As many planes of images ``[S, z, y, x]``, evenly spread over those that emit, and their grid; all if fewer."""
    activity = images.mean(0).clamp(min=0).sum((1, 2))
    emitting = (activity > _EMITTING * activity.max()).nonzero()[:, 0]
    if len(emitting) > number:
        places = torch.linspace(0, len(emitting) - 1, 2 * number + 1)[1::2].round().long()
        emitting = emitting[places.to(emitting.device)]
    elif not len(emitting):
        emitting = torch.arange(min(number, len(activity)))
    return images[:, emitting.to(images.device)], replace(geometry, shape=(len(emitting), *geometry.shape[1:]))


def _times(ratio: float) -> str:
    """A ratio in words; a model that expects hardly any error of itself makes it huge, and its digits meaningless."""
    return f"{ratio:.2f} x" if ratio < 100 else "over 100 x"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 1.0


def _box(model: ScoreModel, image: Tensor) -> tuple[slice, slice]:
    """The part of the latent planes around what emits, with a margin as the training volumes have."""
    smoothed = gaussian_smooth(image, model.geometry, _FWHM_MM)
    emitting = (smoothed > _EMITTING * smoothed.max()).to(image)
    inside = model.to_latent(emitting * model.intensity_scale) > 0.5
    if not bool(inside.any()):
        return slice(None), slice(None)
    box = []
    for axis in (0, 1):
        places = inside.any(0).any(1 - axis).nonzero()
        margin = round(_MARGIN_MM / model.voxel_size[1 + axis])
        box.append(slice(max(int(places.min()) - margin, 0), int(places.max()) + margin + 1))
    return box[0], box[1]


def _likelihood(objective: Objective, image: Tensor, log_likelihood: float | None) -> LikelihoodCheck | None:
    x = image.to(objective.device)
    try:
        expected, deviation = objective.expected_log_likelihood(x)
    except NotImplementedError as error:
        logger.info("the likelihood cannot be compared with what is expected: %s", error)
        return None
    achieved = float(objective.value(x)) if log_likelihood is None else log_likelihood
    return LikelihoodCheck(achieved, expected, deviation)
