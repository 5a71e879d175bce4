"""Adaptation of the network: a copy of it is fine-tuned to the measured data at every noise level."""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...engines.objective import Objective
from ...geometry.checks import check_count, check_real, check_seed
from ...models.lora import Adapter, AdapterConfig
from ..diffusion.consistency import Adaptation, DataConsistency, DiffusionStep
from ..diffusion.hqs import PenalisedEM
from ..diffusion.likelihood_schedule import LikelihoodSchedule, split_half_log_likelihood
from ..settings import Settings, choice, count, defaults, flag, make, real, setting
from .couplings import COUPLINGS, NetworkCost, probe

if TYPE_CHECKING:
    from ...models.score_model import ScoreModel

logger = logging.getLogger(__name__)

_GRADIENT_NORM = 1.0
_LAST_STEPS = 4


def _cap(name: str, value: Any) -> bool | float:
    return value if isinstance(value, bool) else check_real(name, value, -math.inf)


def _rank(name: str, value: Any) -> int:
    return check_count(name, value, 0, 4096)


@dataclass(frozen=True)
class AdaptationSettings(Settings):
    """Settings of `NetworkAdaptation`."""

    coupling: str = choice(
        "hqs",
        "what the network learns from: EM targets, the method's own data step, or (`projector`) the likelihood's "
        "gradient through the projector",
        tuple(COUPLINGS),
    )
    rank: int | None = setting(
        4,
        "rank of the low-rank changes; None frees all weights, 0 adapts nothing",
        _rank,
        "integer of at least 0",
        optional=True,
    )
    biases: bool = flag(True, "whether biases change too")
    learning_rate: float = real(
        1e-3, "of AdamW (without weight decay; gradients are clipped to norm 1)", open_below=True
    )
    num_rounds: int = count(1, "targets per noise level; 0 adapts nothing", minimum=0)
    num_inner: int = count(1, "EM updates per target, `hqs` only")
    num_updates: int = count(5, "updates of the weights per target")
    beta: float = real(1.0, "weight of the denoised image against the data, not with `data-step`", open_below=True)
    smoothing: float = real(
        8.0,
        "smoothness of the EM updates' change, mm at noise level 1 as in `dds`, `hqs` only; 0 is the published method",
    )
    total_variation: float = real(0.0, "weight of total variation of the denoised image in the loss")
    every: int = count(2, "adapt at every so many noise levels, and at the last four")
    max_noise_level: float | None = real(
        3.0, "adapt at relative noise levels up to this only; None at all", open_below=True, optional=True
    )
    carry_optimiser: bool = flag(False, "whether AdamW's moments are kept from one noise level to the next")
    cap: bool | float = setting(
        True,
        "stop at the likelihood expected of the truth; False is no limit, a number another one",
        _cap,
        "True, False, number",
    )
    #: Factor of the low-rank changes, and the layers that may change, see `AdapterConfig`.
    scale: float = 1.0
    targets: str = ""


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

    ``coupling="projector"``: ``num_updates`` updates of :math:`\theta` lower the same objective before it is split,
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
    adapter, seed
        File of an adapter to start from, see :meth:`save`, whose rank, scale and layers are used; or the seed of the
        low-rank matrices at the start.
    """

    name: ClassVar[str] = "adaptation"
    about: ClassVar[str] = ""
    references: ClassVar[tuple[str, ...]] = ()
    group: ClassVar[type[AdaptationSettings]] = AdaptationSettings

    def __init__(self, *, adapter: str | os.PathLike[str] | None = None, seed: int = 0, **settings: Any) -> None:
        (self.chosen,) = make((self.group,), settings, f"the adaptation {self.name}")
        chosen = self.chosen
        self.config = AdapterConfig(chosen.rank, chosen.scale, chosen.targets, biases=chosen.biases)
        data_step = PenalisedEM(chosen.num_inner, chosen.beta, reference_steps=0)
        self.coupling = COUPLINGS[chosen.coupling](data_step, chosen.smoothing)
        self.start_file = None if adapter is None else Path(adapter)
        self.seed = check_seed("seed", seed)
        self.adapter: Adapter | None = None
        self._start: Adapter | None = None

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """All settings with their defaults."""
        return defaults((cls.group,))

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters, ready for JSON."""
        config = self.config if self._start is None else self._start.config
        kept = {name: getattr(config, name) for name in ("rank", "scale", "targets", "biases")}
        adapter = None if self._start is None else self._start.hash
        return {"name": self.name, **self.chosen.settings, **kept, "adapter": adapter, "seed": self.seed}

    def set_up(
        self,
        objective: Objective,
        model: ScoreModel,
        consistency: DataConsistency | None,
        num_steps: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        """Find the likelihood to stop at, or take it over."""
        self.objective, self._num_steps = objective, num_steps
        # DDIP's chain has its data step at the end only; here, it is asked at every level.
        data_step = getattr(consistency, "at_every_level", consistency)
        self.coupling.set_up(objective, data_step, model.intensity_scale)
        self._start = None if self.start_file is None else Adapter.load(self.start_file, model)
        self._cost: NetworkCost | None = None
        if state is None:
            self.coupling.target = self._limit(consistency) if self._adapts else None
        else:
            self.coupling.target = state["target"]

    def _limit(self, consistency: DataConsistency | None) -> float | None:
        """The log-likelihood at which there is nothing left to learn; None for no limit."""
        cap, schedule = self.chosen.cap, getattr(consistency, "schedule", None)
        if not isinstance(cap, bool):
            return cap
        if not cap:
            return None
        if schedule is not None:
            return schedule.target
        target = split_half_log_likelihood(self.objective)
        return LikelihoodSchedule.compute(self.objective).target if target is None else target

    @property
    def _adapts(self) -> bool:
        rank = self.config.rank if self._start is None else self._start.config.rank
        return self.chosen.num_rounds > 0 and rank != 0

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
        updates = self.chosen.num_rounds * self.chosen.num_updates
        projector = 0.0
        if (counter := self.objective.counter).forward + counter.back > 0:
            # A data step's number of updates is not known beforehand; the EM updates' stands for it.
            pairs = self.chosen.num_rounds * self.coupling.projection_pairs(self.chosen.num_updates)
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
        return index % self.chosen.every == 0 or num_steps - index <= _LAST_STEPS

    def __call__(self, model: ScoreModel, u: Tensor, step: DiffusionStep) -> ScoreModel | None:
        """Adapt the copy to these noisy images."""
        self._losses.append(None)
        if not self._adapts or not self._is_due(step.index, step.num_steps):
            return None
        if self.chosen.max_noise_level is not None and step.sigma > self.chosen.max_noise_level:
            return None
        if self._optimiser is None or not self.chosen.carry_optimiser:
            self._optimiser = self._new_optimiser()
        with self.adapter.adapting(), torch.enable_grad():
            for _ in range(self.chosen.num_rounds):
                before = self._updates
                for loss, u0 in self.coupling.losses(model, u, step, self.chosen.num_updates, self._batch_size):
                    self._update(model, loss + self._variation(u0))
                if self._updates == before:
                    self._skipped += 1
                    break
        return None

    def _variation(self, u0: Tensor) -> Tensor | float:
        return self.chosen.total_variation * total_variation(u0) if self.chosen.total_variation else 0.0

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
        return torch.optim.AdamW(self.adapter.parameters(), lr=self.chosen.learning_rate, weight_decay=0.0)

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
        """Write the adapter as the last run left it, for ``adapter=`` of other runs with the same model."""
        if self.adapter is None:
            raise RuntimeError("there is no adapter yet: run the reconstruction first")
        return self.adapter.save(path, {key: value for key, value in self.settings.items() if key != "adapter"})

    def state(self) -> dict[str, Any]:
        """Counters and the likelihood to stop at."""
        return {
            "target": self.coupling.target,
            "losses": list(self._losses),
            "updates": self._updates,
            "skipped": self._skipped,
            "optimiser": self._optimiser is not None and self.chosen.carry_optimiser,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Weights, and AdamW's moments if they are carried."""
        found = {f"weight.{name}": tensor for name, tensor in self.adapter.tensors().items()}
        if self._optimiser is not None and self.chosen.carry_optimiser:
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
