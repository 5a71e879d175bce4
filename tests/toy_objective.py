"""A small Objective with a dense system matrix: exact enough to test algorithms against, fast enough to loop over."""

from __future__ import annotations

import torch
from torch import Tensor

from sirf_diffusion.engines.objective import Evaluation, Objective, ProjectionCounter
from sirf_diffusion.geometry.images import ImageGeometry


class ToyObjective(Objective):
    """Log-likelihood of ``y ~ Poisson(A x + b)``, dense ``A [bins, voxels]``; subset k of n has bins k, k + n, ..."""

    def __init__(self, matrix, prompts, background, shape, num_subsets=1, voxel_size=(2.0, 2.0, 2.0)):
        self.matrix, self.prompts, self.background = matrix, prompts, background
        self.geometry = ImageGeometry(shape, voxel_size)
        self.num_subsets = num_subsets
        self.device = matrix.device
        self.counter = ProjectionCounter()

    def divided(self, num_subsets: int) -> ToyObjective:
        return ToyObjective(
            self.matrix, self.prompts, self.background, self.geometry.shape, num_subsets, self.geometry.voxel_size
        )

    def _bins(self, subset):
        return slice(None) if subset is None else slice(subset, None, self.num_subsets)

    def expected(self, x: Tensor, subset: int | None = None) -> Tensor:
        bins = self._bins(subset)
        return x.flatten(-3) @ self.matrix[bins].T + self.background[bins]

    def at(self, x: Tensor, subset: int | None = None) -> Evaluation:
        share = (1 if subset is None else 1 / self.num_subsets) * (x[..., 0, 0, 0].numel())
        bins = self._bins(subset)
        with self.counter.timed():
            q = self.expected(x, subset)
            y = self.prompts[bins]
            if bool(((y > 0) & (q <= 0)).any()):
                raise ValueError("counts where none are expected")
            value = (torch.xlogy(y.double(), q.double()) - q.double()).sum(-1)
        self.counter.forward += share

        def gradient(active: Tensor | None = None) -> Tensor:
            with self.counter.timed():
                ratio = torch.where(y > 0, y / q.clamp_min(torch.finfo(q.dtype).tiny), torch.zeros_like(q)) - 1
                if active is not None:
                    ratio = ratio[active]
                result = (ratio @ self.matrix[bins]).reshape(*ratio.shape[:-1], *self.geometry.shape)
            self.counter.back += (1 if subset is None else 1 / self.num_subsets) * (ratio[..., 0].numel())
            return result

        return Evaluation(value, gradient)

    def value(self, x: Tensor, subset: int | None = None) -> Tensor:
        return self.at(x, subset).value

    def gradient(self, x: Tensor, subset: int | None = None) -> Tensor:
        return self.at(x, subset).gradient()

    def sensitivity(self, subset: int | None = None) -> Tensor:
        return self.matrix[self._bins(subset)].sum(0).reshape(self.geometry.shape)

    def uniform_image(self) -> Tensor:
        s = self.sensitivity()
        return torch.where(s > 0, (self.prompts - self.background).sum() / s.sum(), torch.zeros_like(s))

    def expected_log_likelihood(self, x: Tensor) -> tuple[float, float]:
        """Exact Poisson sums of the mean and variance of KL(Y, q)."""
        q = self.expected(x).double()
        y = self.prompts.double()
        k = torch.arange(0, int(q.max() + 12 * q.max().sqrt() + 30), dtype=torch.float64)
        log_p = torch.xlogy(k, q[:, None]) - q[:, None] - torch.lgamma(k + 1)
        kl = q[:, None] - k + torch.xlogy(k, k / q[:, None])
        mean = (log_p.exp() * kl).sum(-1)
        variance = (log_p.exp() * kl**2).sum(-1) - mean**2
        return float((torch.xlogy(y, y) - y).sum() - mean.sum()), float(variance.sum().sqrt())


def make_toy(
    shape=(1, 8, 8), num_bins=160, counts=4e3, background=0.3, num_subsets=1, seed=0, dtype=torch.float64,
    blind_voxel=False,
) -> tuple[ToyObjective, Tensor]:  # fmt: skip
    """A random but local system matrix, a blocky truth and Poisson data with ``background`` of the counts; returns
    both.

    ``blind_voxel`` makes the first voxel invisible to the scanner.
    """
    generator = torch.Generator().manual_seed(seed)
    voxels = shape[0] * shape[1] * shape[2]
    matrix = torch.rand(num_bins, voxels, generator=generator, dtype=torch.float64) ** 6
    truth = torch.full(shape, 1.0, dtype=torch.float64)
    truth[:, shape[1] // 4 : shape[1] // 2, shape[2] // 4 : shape[2] // 2] = 4.0
    truth[:, -shape[1] // 3 :, -shape[2] // 3 :] = 0.2
    if blind_voxel:
        matrix[:, 0] = 0
    trues = matrix @ truth.flatten()
    matrix *= counts * (1 - background) / trues.sum()
    expected_background = torch.full((num_bins,), counts * background / num_bins, dtype=torch.float64)
    prompts = torch.poisson(matrix @ truth.flatten() + expected_background, generator=generator)
    objective = ToyObjective(matrix.to(dtype), prompts.to(dtype), expected_background.to(dtype), shape, num_subsets)
    return objective, truth.to(dtype)
