"""The data and the acquisition model behind a SIRF objective function, where they are known."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..embedded.poisson import poisson_divergence
from .convert import fill, to_tensor, values_of

# STIR bounds quotients of measured and expected counts by this, in the likelihood and in its gradient.
LARGEST_QUOTIENT = 1e4
CHUNK = 1 << 22


class KnownData:
    r"""Likelihood from expected counts: value and gradient out of one forward projection.

    .. math:: L(x) = \sum_i y_i \log q_i - q_i, \qquad q = \max(m (G x + a) + b', y / 10^4)

    as STIR computes it. What back-projection needs is ``y / q``; of a subset only the rows (one sinogram, one view)
    are kept that belong to it. STIR assigns views to subsets together with those that its projector's symmetries
    relate, so the rows are found by projecting: where the projection of a constant is not zero.

    Parameters
    ----------
    prompts
        ``sirf.STIR.AcquisitionData``; viewed, not copied, in the storage scheme 'memory'.
    model
        ``sirf.STIR.AcquisitionModel`` that has been set up.
    num_subsets
        Number of subsets of the objective function.
    """

    def __init__(self, prompts: Any, model: Any, num_subsets: int) -> None:
        self.model, self.num_subsets = model, num_subsets
        self.prompts = prompts  # keeps the viewed memory alive
        self._counts = values_of(prompts)[0]
        self._scratch = prompts.get_uniform_copy(0)
        self._owners: Tensor | None = None

    @property
    def counts_by_bin(self) -> Tensor:
        """The prompts."""
        return self._counts

    @property
    def counts(self) -> float:
        """Sum of the prompts."""
        return float(self._counts.sum(dtype=torch.float64))

    @property
    def bytes_of_quotient(self) -> int:
        """Memory of the kept quotient of all data."""
        return 4 * self._counts.numel()

    def expected(self, image: Any, subset: int | None = None) -> Tensor:
        """Expected counts ``q`` of all bins; outside ``subset`` they mean nothing. Valid until the next call."""
        number, of = (0, 1) if subset is None else (subset, self.num_subsets)
        self.model.forward(image, number, of, out=self._scratch)
        return self._values_of_scratch()

    def likelihood(self, image: Any, subset: int | None = None, keep: bool = True) -> tuple[float, Tensor | None]:
        """``L`` and the quotient ``y / q`` (zero where ``y`` is), rows of the subset only; None unless ``keep``."""
        if subset is None:
            return self.likelihood_of(self.expected(image), self._counts, keep)
        rows = self.owners(image) == subset
        return self.likelihood_of(self.expected(image, subset)[rows], self._counts[rows], keep)

    @staticmethod
    def likelihood_of(expected: Tensor, prompts: Tensor, keep: bool) -> tuple[float, Tensor | None]:
        """The same from expected and measured counts of the same bins."""
        value, quotients = 0.0, []
        for q, y in zip(_pieces(expected), _pieces(prompts), strict=True):
            q = torch.maximum(q, y / LARGEST_QUOTIENT)
            value += float((torch.xlogy(y, q) - q).sum(dtype=torch.float64))
            if keep:
                quotients.append(torch.where(y > 0, y / q, torch.zeros_like(q)))
        return value, torch.cat(quotients).view(prompts.shape) if keep else None

    def back_project(self, quotient: Tensor, subset: int | None, out: Any) -> None:
        """``A^T`` of what :meth:`likelihood` kept, into the image ``out``."""
        if subset is None:
            fill(self._scratch, quotient)
            self.model.backward(self._scratch, 0, 1, out=out)
            return
        spread = torch.zeros_like(self._counts)
        spread[self._owners == subset] = quotient
        fill(self._scratch, spread)
        self.model.backward(self._scratch, subset, self.num_subsets, out=out)

    def sensitivity(self, subset: int | None, out: Any) -> Tensor:
        """``A^T 1``, as the model has it now; by way of the image ``out``."""
        self._scratch.fill(1.0)
        number, of = (0, 1) if subset is None else (subset, self.num_subsets)
        self.model.backward(self._scratch, number, of, out=out)
        return to_tensor(out)

    def expected_log_likelihood(self, image: Any) -> tuple[float, float]:
        """Mean and standard deviation over noise of the truth's ``L``, if it predicts the counts as ``image`` does."""
        mean, variance = 0.0, 0.0
        for counts, q in zip(_pieces(self._counts), _pieces(self.expected(image)), strict=True):
            counts = counts.double()
            expectation, spread = poisson_divergence(q.double())
            mean += float((torch.xlogy(counts, counts) - counts - expectation).sum())
            variance += float(spread.sum())
        return mean, math.sqrt(variance)

    def check_at(self, image: Any) -> tuple[float, float, int]:
        """``L``, sum of the expected counts, and the number of bins with counts where none are expected."""
        q = self.expected(image)
        value = self.likelihood_of(q, self._counts, keep=False)[0]
        return value, float(q.sum(dtype=torch.float64)), int(((q <= 0) & (self._counts > 0)).sum())

    def owners(self, image: Any) -> Tensor:
        """Subset of each row ``[TOF bin, sinogram, view]``; costs one forward projection of all data, once."""
        if self._owners is None:
            ones = image.get_uniform_copy(1)
            owners = torch.full(self._counts.shape[:-1], -1, dtype=torch.int16)
            linear = self.model.get_linear_acquisition_model()
            for subset in range(self.num_subsets):
                linear.forward(ones, subset, self.num_subsets, out=self._scratch)
                owners[self._values_of_scratch().ne(0).any(-1)] = subset
            _complete(owners, self.num_subsets)
            self._owners = owners
        return self._owners

    def _values_of_scratch(self) -> Tensor:
        return values_of(self._scratch)[0]


def _complete(owners: Tensor, num_subsets: int) -> None:
    """Rows that see nothing (all bins dead): any subset will do, as long as it is one; take that of the view."""
    views = owners.shape[-1]
    for view in range(views):
        column = owners[..., view]
        found = column[column >= 0]
        column[column < 0] = int(found.mode().values) if found.numel() else view % num_subsets


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    """Views of contiguous data that are small enough for temporaries not to matter."""
    return x.view(-1).split(CHUNK)
