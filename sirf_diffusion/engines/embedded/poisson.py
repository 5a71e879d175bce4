"""Poisson log-likelihood of one acquisition, as an :class:`~sirf_diffusion.engines.objective.Objective`."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ... import __version__
from ...geometry.checks import check_finite, check_tensor
from ...geometry.exam import ExamInfo
from ..objective import Evaluation, Objective, ProjectionCounter, check_single, mark, total_sensitivity
from .acquisition_model import AcquisitionModel, check_projection_data
from .subsets import largest_num_subsets, select_views


class PoissonObjective(Objective):
    r"""Log-likelihood :math:`L(x) = \sum_i y_i \log q_i - q_i` with :math:`q = m (G P x + a) + b'`, maximised.

    The constant ``-log y_i!`` is omitted. Gradients of subsets are not multiplied by their number. Raises ValueError if
    the prompts do not fit the model, are negative, not finite, or all zero.

    Parameters
    ----------
    model, prompts
        Acquisition model, which predicts ``q``; measured counts ``y``, non-negative, not all zero.
    num_subsets
        Number of subsets of views, formed as STIR does (see `divide_views`).
    files, exam
        Names of the files of the data, for records; exam information of the prompts.
    """

    def __init__(
        self,
        model: AcquisitionModel,
        prompts: Tensor,
        num_subsets: int = 1,
        *,
        files: Mapping[str, str] | None = None,
        exam: ExamInfo | None = None,
    ) -> None:
        prompts = check_projection_data(prompts, model.projector.projdata, "prompts")
        self.prompts = prompts.to(model.device, torch.float32)
        self.model, self.geometry, self.device = model, model.geometry, model.device
        self.num_subsets = int(num_subsets)
        self._files, self._exam = dict(files or {}), exam or ExamInfo()
        model.projector.subset_views(None, self.num_subsets)
        if not bool((self.prompts > 0).any()):
            raise ValueError("prompts are zero in all bins: there is nothing to reconstruct")
        self.counter = ProjectionCounter()
        self._sensitivities: dict[int | None, Tensor] = {}
        self._early: Tensor | None = None

    def at(self, x: Tensor, subset: int | None = None) -> Evaluation:
        """Project ``x [..., z, y, x]`` once; see :class:`~sirf_diffusion.engines.objective.Evaluation`.

        ``gradient(active)`` with a bool per image returns the gradients of the active images only, stacked. Raises
        ValueError if a bin with counts is predicted to have none, or the image is not finite.
        """
        check_tensor(x, "the image")
        views = self._views(subset)
        share, tiny = self._share(views), torch.finfo(torch.float32).tiny
        with self.counter.timed():
            x = x.to(device=self.device, dtype=torch.float32)
            prompts = select_views(self.prompts, views)
            expected = self.model.forward(x, views)
            self.counter.forward += share * math.prod(x.shape[:-3])
            least, largest = torch.aminmax(expected + (prompts == 0))
            if not bool((least > 0) & torch.isfinite(largest)):  # rarely: also of a bin without counts
                self._explain(x, prompts, expected, views)

        def value() -> Tensor:
            with self.counter.timed():
                terms = expected.clamp_min(tiny).log().mul_(prompts).sub_(expected)
                return terms.sum((-3, -2, -1), dtype=torch.float64)

        def gradient(active: Tensor | None = None) -> Tensor:
            with self.counter.timed():
                q = expected if active is None else expected[active.to(self.device)]
                self.counter.back += share * math.prod(q.shape[:-3])
                # Bins without counts contribute -1 wherever q lies, also where it is 0.
                return self.model.adjoint((prompts / q.clamp_min(tiny)).sub_(1), views)

        return Evaluation(value, gradient)

    def sensitivity(self, subset: int | None = None) -> Tensor:
        """``A^T 1``, ``[z, y, x]``, computed once and kept."""
        if subset not in self._sensitivities:
            if subset is None and self.num_subsets > 1:
                # Always this sum, in this order: a run that goes on elsewhere needs the same bits.
                parts = [self.sensitivity(k) for k in range(self.num_subsets)]
                self._sensitivities[None] = torch.stack(parts).sum(0)
            else:
                views = self._views(subset)
                with self.counter.timed():
                    ones = torch.ones_like(select_views(self.prompts, views))
                    self._sensitivities[subset] = self.model.adjoint(ones, views)
                    self.counter.back += self._share(views)
        return self._sensitivities[subset]

    def uniform_image(self) -> Tensor:
        """Constant where the sensitivity is positive, such that ``sum(A x + b) = sum(y)``; zero elsewhere.

        Raises ValueError if no image bin is seen, or the expected background exceeds the measured counts.
        """
        total, sensitivity = total_sensitivity(self), self.sensitivity()
        counts = self.prompts.sum(dtype=torch.float64)
        background = self.model.constant_term
        if background is not None:
            counts = counts - background.sum(dtype=torch.float64)
        if float(counts) <= 0:
            raise ValueError(
                f"the expected background exceeds the {float(self.prompts.sum(dtype=torch.float64)):g} measured counts "
                f"by {-float(counts):g}. Is the additive term divided by the multiplicative factors, as STIR's is?"
            )
        return torch.where(sensitivity > 0, (counts / total).float(), torch.zeros_like(sensitivity))

    def expected_log_likelihood(self, x: Tensor) -> tuple[float, float]:
        r"""Mean and standard deviation, over noise, of the truth's log-likelihood if ``x`` predicts counts as it does.

        ``L(y; y) - sum_i e(q_i)``, where ``L(y; y)`` is the largest possible value and
        :math:`e(q) = E[Y \log(Y / q) - Y + q]`, ``Y ~ Poisson(q)``, half the expected deviance of a bin: it rises from
        0 to 0.58 near ``q = 1.3`` and falls to 0.5. ``x`` is one image ``[z, y, x]``; costs one forward projection.
        """
        check_single(x)
        with self.counter.timed():
            expected = self.model.forward(x)
            self.counter.forward += 1
            mean, variance = poisson_divergence(expected.double())
            best = torch.xlogy(self.prompts.double(), self.prompts.double()) - self.prompts
            return float(best.sum() - mean.sum()), math.sqrt(float(variance.sum()))

    def with_subsets(self, num_subsets: int) -> PoissonObjective:
        """The same data in the largest number of equal subsets up to this one."""
        number = largest_num_subsets(self.model.projector.basic_views, num_subsets)
        if number == self.num_subsets:
            return self
        other = copy.copy(self)
        other.num_subsets, other.counter, other._sensitivities, other._early = number, ProjectionCounter(), {}, None
        other.sensitivity()  # like that of every objective, made beforehand and not counted
        other.counter = self.counter
        return other

    @property
    def engine(self) -> dict[str, str]:
        """The embedded engine, this package's own."""
        return {"name": "embedded", "version": __version__}

    def describe(self) -> dict[str, Any]:
        """Files, scanner, counts and image grid."""
        projdata = self.model.projector.projdata
        return {
            "files": self._files,
            "scanner": projdata.scanner.name,
            "projection_data_shape": projdata.shape,
            "prompts": float(self.prompts.sum(dtype=torch.float64)),
            **super().describe(),
        }

    def marks(self) -> dict[str, float]:
        background = self.model.constant_term
        return {"prompts_mark": mark(self.prompts), "background_mark": 0.0 if background is None else mark(background)}

    def exam_info(self) -> ExamInfo:
        """That of the prompts."""
        return self._exam

    def _views(self, subset: int | None) -> tuple[int, ...] | None:
        return self.model.projector.subset_views(subset, self.num_subsets)

    def _share(self, views: tuple[int, ...] | None) -> float:
        return 1.0 if views is None else len(views) / self.model.projector.projdata.num_views

    def _explain(self, x: Tensor, prompts: Tensor, expected: Tensor, views: tuple[int, ...] | None) -> None:
        """Raise what is wrong with the expected counts, if anything is."""
        check_finite(x, "the image")
        impossible = (prompts > 0) & ~(expected > 0)
        if not bool(impossible.any()):
            if bool(torch.isfinite(expected).all()):
                return
            raise ValueError("log-likelihood is not finite: the image is too large for float32 projections")
        sinogram, view, bin_num = torch.nonzero(impossible)[0].tolist()[-3:]
        view = view if views is None else views[view]
        factors = self.model.multiplicative_factors
        dead = 0 if factors is None else int((impossible & (select_views(factors, views) == 0)).sum())
        raise ValueError(
            f"{int(impossible.sum())} bins have counts where the model expects none (q <= 0), the first one in "
            f"sinogram {sinogram}, view {view}, tangential position {bin_num}; {dead} of them have multiplicative "
            "factor 0. Start from an image that is positive where the sensitivity is, take fewer subsets, give a "
            "background, or set the prompts of dead bins to 0"
        )


def poisson_divergence(q: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``e(q)`` and variance of ``KL(Y, q) = Y log(Y / q) - Y + q`` for ``Y ~ Poisson(q)``, elementwise.

    Exact Poisson sums on a logarithmic grid of ``q``, interpolated in ``log q``; the asymptotic series above it.
    """
    low, step, table = _divergence_table()
    table = table.to(q.device)
    position = ((q.double().clamp_min(math.exp(low)).log() - low) / step).clamp_max(table.shape[1] - 1.001)
    index = position.floor().long()
    part = position - index
    mean, variance = (row[index] * (1 - part) + row[index + 1] * part for row in table)
    # Below the grid at most one count is likely, and both moments vanish with q.
    scale = (q.double() / math.exp(low)).clamp(0, 1)
    beyond = position >= table.shape[1] - 1.5
    mean = torch.where(beyond, 0.5 + 1 / (12 * q.double().clamp_min(1)), mean * scale)
    variance = torch.where(beyond, torch.full_like(variance, 0.5), variance * scale)
    return mean, variance


@lru_cache(maxsize=1)
def _divergence_table() -> tuple[float, float, Tensor]:
    low, high, num_points = math.log(1e-6), math.log(1e4), 1400
    q = torch.linspace(low, high, num_points, dtype=torch.float64).exp()
    moments = []
    for part in q.split(100):
        half = 10 * float(part[-1]) ** 0.5 + 20
        first = math.floor(max(0.0, float(part[0]) - 10 * float(part[0]) ** 0.5 - 20))
        y = torch.arange(first, math.ceil(float(part[-1]) + half), dtype=torch.float64)
        rate = part[:, None]
        probability = torch.exp(torch.xlogy(y, rate) - rate - torch.lgamma(y + 1))
        divergence = torch.xlogy(y, y / rate) - y + rate
        mean = (probability * divergence).sum(1)
        moments.append(torch.stack((mean, (probability * (divergence - mean[:, None]) ** 2).sum(1))))
    return low, (high - low) / (num_points - 1), torch.cat(moments, 1)
