"""Adaptation of the network: a copy of it is fine-tuned to the measured data at every noise level."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...engines.objective import Objective
from ...geometry.checks import check_count, check_real
from ...models.lora import Adapter, AdapterConfig
from ..diffusion.adaptation import Adaptation
from ..diffusion.consistency import DataConsistency, DiffusionStep
from ..diffusion.hqs import PenalisedEM
from ..diffusion.likelihood_schedule import LikelihoodSchedule
from .couplings import COUPLINGS
from .network_cost import NetworkCost, probe

if TYPE_CHECKING:
    from ...models.score_model import ScoreModel

logger = logging.getLogger(__name__)

_GRADIENT_NORM = 1.0
_LAST_STEPS = 4


class NetworkAdaptation(Adaptation):
    r"""Fine-tunes a copy of the network to the measured data, before it denoises.

    At a noise level with noisy images :math:`u_t` and denoised images :math:`D_\theta(u_t)`, ``num_rounds`` times:

    ``coupling="hqs"``: half-quadratic splitting of
    :math:`-L(x) + \frac{\rho}{2} \lVert x - c D_\theta(u_t) \rVert^2` in ``x`` and :math:`\theta`. First ``num_inner``
    closed-form EM updates (:class:`~sirf_diffusion.reconstructors.diffusion.hqs.PenalisedEM`) from and towards the
    denoised image, their change made smooth, give :math:`x^*`, then ``num_updates`` updates of :math:`\theta` lower
    :math:`\mathrm{mean} (D_\theta(u_t) - x^* / c)^2`. No gradient passes the projector.

    ``coupling="data-step"``: the same with the reconstructor's own data step in place of EM. In likelihood-scheduled
    sampling, the schedule then decides how closely the network is to fit the data at each noise level.

    ``coupling="projector"``: ``num_updates`` updates of :math:`\theta` lower
    the same objective before it is split,
    :math:`[-L(\max(c D_\theta(u_t), 0)) + \frac{\rho}{2} \lVert c D_\theta(u_t) - v \rVert^2] / N` with the denoised
    image ``v`` before the first of them, with a forward and a back projection for each; ``N`` are the net counts, which
    makes the loss a number without unit.

    To either loss, ``total_variation`` times the mean size of the gradient of :math:`D_\theta(u_t)` in its planes, per
    voxel and relative to the intensity scale, is added. Updates are AdamW's without weight decay, gradients are clipped
    to norm 1. Adaptation is skipped where the denoised images already fit the data as closely as the true image does on
    the average (``cap``), so that the network does not learn the data's noise.

    Changes add up from one noise level to the next and are forgotten between runs. All samples share the network:
    unlike without adaptation, a sample depends on the others.

    Parameters
    ----------
    coupling
        ``"hqs"``, ``"data-step"`` or ``"projector"``.
    rank
        Rank of the low-rank changes; None frees all weights; 0 adapts nothing.
    scale, targets, biases
        See :class:`~sirf_diffusion.models.lora.AdapterConfig`.
    learning_rate
        Of AdamW; positive.
    num_rounds
        Targets (HQS) or groups of updates per noise level; 0 adapts nothing.
    num_inner
        EM updates per round, HQS only.
    num_updates
        Updates of the weights per round.
    beta
        Weight of the denoised image against the data, not for ``"data-step"``; see
        :class:`~sirf_diffusion.reconstructors.diffusion.hqs.PenalisedEM`.
    smoothing
        HQS only: smoothness of the change that the EM updates make, mm, see
        :class:`~sirf_diffusion.reconstructors.diffusion.consistency.SmoothStep`; 0 leaves their noise in.
    total_variation
        Weight of total variation, >= 0.
    every
        Adapt at every so many noise levels, and at the last four.
    sigma_max
        Adapt only at relative noise levels up to this; None at all.
    carry_optimiser
        Whether AdamW's moments are kept from one noise level to the next.
    cap
        Whether a likelihood as high as the truth's ends adaptation at a noise level; False adapts without limit.
        A number is the log-likelihood to stop at instead of the estimated one.
    adapter
        File of an adapter to start from, see :meth:`save`; its rank, scale and layers are used.
    seed
        Of the low-rank matrices at the start.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    name: ClassVar[str] = "adaptation"

    def __init__(
        self,
        *,
        coupling: str = "hqs",
        rank: int | None = 4,
        scale: float = 1.0,
        targets: str = "",
        biases: bool = True,
        learning_rate: float = 1e-3,
        num_rounds: int = 1,
        num_inner: int = 1,
        num_updates: int = 5,
        beta: float = 1.0,
        smoothing: float = 8.0,
        total_variation: float = 0.0,
        every: int = 2,
        sigma_max: float | None = 3.0,
        carry_optimiser: bool = False,
        cap: bool | float = True,
        adapter: str | os.PathLike[str] | None = None,
        seed: int = 0,
    ) -> None:
        if coupling not in COUPLINGS:
            raise ValueError(f"coupling must be one of {', '.join(COUPLINGS)}, found {coupling!r}")
        self.config = AdapterConfig(rank, scale, targets, biases=biases)
        self.learning_rate = check_real("learning_rate", learning_rate, open_below=True)
        self.num_rounds = check_count("num_rounds", num_rounds, minimum=0)
        self.num_updates = check_count("num_updates", num_updates)
        smoothing = check_real("smoothing", smoothing)
        self.coupling = COUPLINGS[coupling](PenalisedEM(num_inner, beta), smoothing)
        self.total_variation = check_real("total_variation", total_variation)
        self.every = check_count("every", every)
        self.sigma_max = None if sigma_max is None else check_real("sigma_max", sigma_max, open_below=True)
        self.carry_optimiser = bool(carry_optimiser)
        self.cap = cap if isinstance(cap, bool) else check_real("cap", cap, -math.inf)
        self.start_file = None if adapter is None else Path(adapter)
        self.seed = check_count("seed", seed, minimum=0)
        self.adapter: Adapter | None = None
        self._start: Adapter | None = None
        self._offered: float | None = None

    @property
    def needs_target(self) -> bool:
        """Whether the log-likelihood that the truth is expected to have will be asked for."""
        return self.cap is True and self.num_rounds > 0 and self.config.rank != 0

    def offer_target(self, log_likelihood: float | None) -> None:
        """Give that log-likelihood, for data steps that do not know it, instead of having it estimated."""
        self._offered = log_likelihood

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters, ready for JSON."""
        config = self.config if self._start is None else self._start.config
        return {
            "name": self.name,
            "coupling": self.coupling.name,
            "rank": config.rank,
            "scale": config.scale,
            "targets": config.targets,
            "biases": config.biases,
            "learning_rate": self.learning_rate,
            "num_rounds": self.num_rounds,
            "num_inner": self.coupling.em.num_inner,
            "num_updates": self.num_updates,
            "beta": self.coupling.em.beta,
            "smoothing": self.coupling.smoothing,
            "total_variation": self.total_variation,
            "every": self.every,
            "sigma_max": self.sigma_max,
            "carry_optimiser": self.carry_optimiser,
            "cap": self.cap,
            "adapter": None if self._start is None else self._start.hash,
            "seed": self.seed,
        }

    def set_up(
        self, objective: Objective, model: ScoreModel, consistency: DataConsistency | None, num_steps: int
    ) -> None:
        """Find the likelihood to stop at."""
        self._bind(objective, model, consistency, num_steps)
        target: float | None = None
        if self._adapts and self.cap is not False:
            schedule = getattr(consistency, "schedule", None)
            if self.cap is not True:
                target = self.cap
            elif schedule is None and self._offered is not None:
                target = self._offered
            else:
                target = (schedule or LikelihoodSchedule.compute(objective)).target
        self._offered = None  # it is that of one acquisition
        self.coupling.target = target

    def restore(
        self,
        objective: Objective,
        model: ScoreModel,
        consistency: DataConsistency | None,
        num_steps: int,
        state: dict[str, Any],
    ) -> None:
        """Take the likelihood to stop at over."""
        self._bind(objective, model, consistency, num_steps)
        self.coupling.target = state["target"]

    def _bind(
        self, objective: Objective, model: ScoreModel, consistency: DataConsistency | None, num_steps: int
    ) -> None:
        self.objective, self._num_steps = objective, num_steps
        # DDIP's chain has its data step at the end only; here, it is asked at every level.
        self.coupling.set_up(objective, getattr(consistency, "data_step", consistency), model.intensity_scale)
        self._start = None if self.start_file is None else Adapter.load(self.start_file, model)
        self._cost: NetworkCost | None = None

    @property
    def _adapts(self) -> bool:
        rank = self.config.rank if self._start is None else self._start.config.rank
        return self.num_rounds > 0 and rank != 0

    def begin(self, model: ScoreModel, num_samples: int, batch_size: int) -> ScoreModel:
        """A fresh copy of the network, as the base model or as the adapter's file has it."""
        self._batch_size = batch_size
        self.adapter = Adapter(model, self.config if self._start is None else self._start.config, seed=self.seed)
        if self._start is not None:
            self.adapter.load_tensors(self._start.tensors())
        self._optimiser: torch.optim.Optimizer | None = None
        self._losses: list[float | None] = []
        self._updates = self._skipped = 0
        if self._adapts:
            if self._cost is None:
                with self.adapter.adapting():
                    self._cost = probe(self.adapter.model, self.adapter.parameters())
            self.adapter.model.gradient_batch = self._cost.batch
            self._log(self._cost, num_samples)
        return self.adapter.model

    def _log(self, cost: NetworkCost, num_samples: int) -> None:
        levels = sum(self._is_due(k, self._num_steps) for k in range(self._num_steps))
        updates = self.num_rounds * self.num_updates
        projector = 0.0
        if (counter := self.objective.counter).forward + counter.back > 0:
            # A data step's number of updates is not known beforehand; the EM updates' stands for it.
            pairs = self.num_rounds * self.coupling.projection_pairs(self.num_updates)
            projector = 2 * pairs * num_samples * counter.seconds / (counter.forward + counter.back)
        seconds = updates * num_samples * cost.seconds_of_update + projector
        logger.info(
            "adaptation %s: %d numbers of the network may change; at most %.3g s per noise level, %.3g s in all, and "
            "%.0f MiB on %s",
            self.name,
            self.adapter.num_parameters if self.adapter else 0,
            seconds,
            seconds * levels,
            cost.bytes_of_batch / 2**20,
            cost.device,
        )

    def _is_due(self, index: int, num_steps: int) -> bool:
        return index % self.every == 0 or num_steps - index <= _LAST_STEPS

    def __call__(self, model: ScoreModel, u: Tensor, step: DiffusionStep) -> ScoreModel | None:
        """Adapt the copy to these noisy images."""
        self._losses.append(None)
        if not self._adapts or not self._is_due(step.index, step.num_steps):
            return None
        if self.sigma_max is not None and step.sigma > self.sigma_max:
            return None
        if self._optimiser is None or not self.carry_optimiser:
            self._optimiser = self._new_optimiser()
        with self.adapter.adapting(), torch.enable_grad():
            for _ in range(self.num_rounds):
                before = self._updates
                for loss, u0 in self.coupling.losses(model, u, step, self.num_updates, self._batch_size):
                    self._update(model, loss + self._variation(u0))
                if self._updates == before:
                    self._skipped += 1
                    break
        return None

    def _variation(self, u0: Tensor) -> Tensor | float:
        return self.total_variation * total_variation(u0) if self.total_variation else 0.0

    def _update(self, model: ScoreModel, loss: Tensor) -> None:
        began, parameters = time.perf_counter(), self.adapter.parameters()
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM, error_if_nonfinite=True)
        self._optimiser.step()
        self._updates += 1
        if self._losses[-1] is None:
            self._losses[-1] = float(loss.detach())
        model.counter.seconds += time.perf_counter() - began

    def _new_optimiser(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.adapter.parameters(), lr=self.learning_rate, weight_decay=0.0)

    @property
    def loss(self) -> float | None:
        """The loss before the first update of this noise level; None if there was none."""
        return self._losses[-1] if self._losses else None

    def summary(self) -> dict[str, Any]:
        """Settings, what was changed, and the loss of each noise level before its first update."""
        return {
            **self.settings,
            "num_parameters": self.adapter.num_parameters,
            "adapter_hash": self.adapter.hash,
            "target": self.coupling.target,
            "updates": self._updates,
            "levels_at_target": self._skipped,
            "losses": list(self._losses),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the adapter as the last run left it, for ``adapter=`` of other runs with the same model.

        Raises
        ------
        RuntimeError
            If there was no run.
        """
        if self.adapter is None:
            raise RuntimeError("there is no adapter yet: run the reconstruction first")
        return self.adapter.save(path, {key: value for key, value in self.settings.items() if key != "adapter"})

    def state(self) -> dict[str, Any]:
        """Counters and the likelihood to stop at."""
        return {
            "target": self.coupling.target,
            "losses": self._losses,
            "updates": self._updates,
            "skipped": self._skipped,
            "optimiser": self._optimiser is not None and self.carry_optimiser,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Weights, and AdamW's moments if they are carried."""
        found = {f"weight.{name}": tensor for name, tensor in self.adapter.tensors().items()}
        if self._optimiser is not None and self.carry_optimiser:
            for index, entries in self._optimiser.state_dict()["state"].items():
                found |= {f"optimiser.{index}.{key}": value for key, value in entries.items()}
        return found

    def resume(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take weights, moments and counters over."""
        weights = {name.removeprefix("weight."): t for name, t in tensors.items() if name.startswith("weight.")}
        self.adapter.load_tensors(weights)
        self._losses, self._updates, self._skipped = list(state["losses"]), state["updates"], state["skipped"]
        if state["optimiser"]:
            self._optimiser = self._new_optimiser()
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in tensors.items():
                if name.startswith("optimiser."):
                    _, index, key = name.split(".")
                    moments.setdefault(int(index), {})[key] = tensor
            groups = self._optimiser.state_dict()["param_groups"]
            self._optimiser.load_state_dict({"state": moments, "param_groups": groups})


def total_variation(u: Tensor) -> Tensor:
    """Mean over voxels of the size of the in-plane gradient (forward differences, smoothed at zero)."""
    dy = torch.diff(u, dim=-2, append=u[..., -1:, :])
    dx = torch.diff(u, dim=-1, append=u[..., :, -1:])
    return (dx * dx + dy * dy + 1e-6).sqrt().mean()
