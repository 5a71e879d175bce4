"""The loss of an adaptation: distance to images that fit the data better, or the log-likelihood itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ...engines.autograd import log_likelihood
from ...engines.objective import Objective
from ...models.coverage import budget_bytes, clock
from ..diffusion.consistency import DataConsistency, DiffusionStep, smooth_direction
from ..diffusion.hqs import PenalisedEM

if TYPE_CHECKING:
    from ...models.score_model import ScoreModel


class Coupling(ABC):
    """Losses of a network's denoised images against the measured data.

    Parameters
    ----------
    em
        Admissible images, the weight of the denoised image and, for EM targets, the updates.
    smoothing
        Smoothness of the change that those make, mm; 0 leaves it as it is.
    """

    name: ClassVar[str] = ""

    def __init__(self, em: PenalisedEM, smoothing: float) -> None:
        self.em, self.smoothing = em, smoothing
        #: The log-likelihood at which there is nothing left to learn; None if there is no such limit.
        self.target: float | None = None

    def set_up(self, objective: Objective, data_step: DataConsistency | None, intensity_scale: float) -> None:
        """Take what stays fixed."""
        self.objective, self.data_step = objective, data_step
        self.em.set_up(objective)
        self.em.set_scale(intensity_scale)
        self._prepare()

    def _prepare(self) -> None:  # noqa: B027
        """The part of :meth:`set_up` that only this coupling needs."""

    @abstractmethod
    def losses(
        self, model: ScoreModel, u: Tensor, step: DiffusionStep, num_updates: int, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Losses, one for each update of the weights, with the denoised latent images that they belong to.

        Whoever iterates updates the weights before asking for the next. None at all if the data are fitted already.
        """

    def projection_pairs(self, num_updates: int) -> float:
        """About how many forward and back projections of a sample these updates need."""
        return self.em.num_inner / self.objective.num_subsets


class _ImageTarget(Coupling):
    """Fit the denoised images to images that fit the data better; no gradient passes the projector."""

    def losses(
        self, model: ScoreModel, u: Tensor, step: DiffusionStep, num_updates: int, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        target: Tensor | None = None
        for _ in range(num_updates):
            u0, _ = model.predict_with_gradient(u, step.t)
            if target is None:
                target = self.latent_target(model, u0.detach(), step, batch_size)
                if target is None:
                    return
            yield (u0 - target).square().mean(), u0

    def latent_target(self, model: ScoreModel, u0: Tensor, step: DiffusionStep, batch_size: int) -> Tensor | None:
        """Latent images that fit the data better; None if these fit them already."""
        image = model.to_image(u0).to(self.em.sensitivity)
        x, fits = zip(*(self.image_target(group, step) for group in image.split(batch_size)), strict=True)
        if self.target is not None and float(torch.cat(fits).mean()) >= self.target:
            return None
        # The change, not the image: a resampled image would lose detail that only the network's grid holds.
        return u0 + model.to_latent(torch.cat(x) - image).to(u0)

    @abstractmethod
    def image_target(self, images: Tensor, step: DiffusionStep) -> tuple[Tensor, Tensor]:
        """Images that fit the data better, and the log-likelihoods before (empty if there is no limit to them)."""


class EMTarget(_ImageTarget):
    """Penalised EM updates of the denoised images."""

    name: ClassVar[str] = "hqs"

    def image_target(self, images: Tensor, step: DiffusionStep) -> tuple[Tensor, Tensor]:
        """The EM images; images that fit already are spared them."""
        if self.target is None:
            return self._smooth(images, self.em(images, step).x, step), torch.zeros(0)
        evaluation = self.objective.at(self.em.admissible(images))
        fits = evaluation.value.cpu()
        if float(fits.mean()) >= self.target:
            return images, fits
        return self._smooth(images, self.em(images, step, evaluation=evaluation).x, step), fits

    def _smooth(self, images: Tensor, x: Tensor, step: DiffusionStep) -> Tensor:
        if self.smoothing == 0:
            return x
        start = self.em.admissible(images)
        gradient = torch.where(self.em.inside, (x - start) / start, torch.zeros_like(x))
        return start + smooth_direction(start, gradient, self.objective.geometry, self.smoothing, step.sigma)


class DataStepTarget(_ImageTarget):
    """What the reconstructor's own data step makes of the denoised images."""

    name: ClassVar[str] = "data-step"

    def _prepare(self) -> None:
        if self.data_step is None:
            raise ValueError("coupling='data-step' needs a reconstructor with a data step, such as lisch, dds or hqs")

    def image_target(self, images: Tensor, step: DiffusionStep) -> tuple[Tensor, Tensor]:
        """The data step's images; their likelihoods are projected only if the step does not know them."""
        found = self.data_step(images, step)
        if found.before is not None:
            return found.x, torch.tensor(found.before, dtype=torch.float64)
        if self.target is None:
            return found.x, torch.zeros(0)
        return found.x, self.objective.value(self.em.admissible(images)).cpu()


class ThroughProjector(Coupling):
    """The likelihood of the denoised images, with a pull to those before the first update; projects for each update."""

    name: ClassVar[str] = "projector"

    def _prepare(self) -> None:
        self._net_counts = float((self.objective.uniform_image() * self.em.sensitivity).sum(dtype=torch.float64))

    def losses(
        self, model: ScoreModel, u: Tensor, step: DiffusionStep, num_updates: int, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The loss divided by the net counts, which makes it a number without unit."""
        rho = self.em.pull(step)
        anchor: Tensor | None = None
        for _ in range(num_updates):
            u0, _ = model.predict_with_gradient(u, step.t)
            anchor = u0.detach() if anchor is None else anchor
            values, slope = self._likelihood(model, u0, batch_size)
            if self.target is not None and float(values.mean()) >= self.target:
                return
            # Its value is the loss, and its gradient that of the likelihood, which is projected group by group.
            loss = (slope * u0).sum()
            loss = loss + (-values.mean() / self._net_counts - loss).detach()
            pull = 0.5 * rho * model.to_image(u0 - anchor).square().sum() / (len(u0) * self._net_counts)
            yield loss + pull, u0

    def _likelihood(self, model: ScoreModel, u0: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """Log-likelihoods ``[samples]``, and the gradient of the loss with respect to ``u0``."""
        v = u0.detach().requires_grad_()
        x = self.em.admissible(model.to_image(v).to(self.em.sensitivity))
        values = torch.cat([log_likelihood(self.objective, group) for group in x.split(batch_size)])
        (slope,) = torch.autograd.grad(-values.mean() / self._net_counts, v)
        return values.detach(), slope

    def projection_pairs(self, num_updates: int) -> float:
        """One for each update."""
        return num_updates


COUPLINGS: dict[str, type[Coupling]] = {
    coupling.name: coupling for coupling in (EMTarget, DataStepTarget, ThroughProjector)
}


# Slices whose activations are not kept are computed twice: forward, and forward and backward again.
_RECOMPUTED = 4 / 3


@dataclass(frozen=True)
class NetworkCost:
    """Slices per call, memory of the activations of one such call, and seconds of an update for one image or volume."""

    batch: int
    bytes_of_batch: float
    seconds_of_update: float
    device: str


def probe(model: ScoreModel, parameters: Sequence[nn.Parameter]) -> NetworkCost:
    """Run the network forward and backward on one empty slice; weights, gradients and counters stay as they are.

    ``parameters`` are those that gradients are taken for.
    """
    shape, number = model.network_input
    weight = parameters[0]
    images = torch.zeros(1, *shape, dtype=weight.dtype, device=weight.device)
    times, labels = images.new_zeros(1), torch.zeros(1, dtype=torch.long, device=weight.device)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for _ in range(2):  # the first call warms up
        began = clock(weight.device)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = model.network(images, times, class_labels=labels).sum()
        torch.autograd.grad(total, parameters, allow_unused=True)
        seconds = clock(weight.device) - began
        of_weights = {p.untyped_storage().data_ptr() for p in model.network.parameters()}
        needed = max(sum(size for where, size in kept.items() if where not in of_weights), 1)
        kept.clear()
    batch = max(1, min(int(budget_bytes(weight.device) / needed), round(number)))
    recomputed = _RECOMPUTED if number > batch or model.planes != "transverse" else 1.0
    return NetworkCost(batch, float(batch * needed), seconds * number * recomputed, str(weight.device))
