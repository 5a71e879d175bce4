"""A sparse matrix in compressed rows, and independent pieces of work in threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class SparseMatrix:
    """Compressed rows. ``embedding_bag`` is the product with few columns that runs on every device and any CPU."""

    offsets: Tensor
    columns: Tensor
    weights: Tensor
    num_columns: int

    @classmethod
    def from_sorted(cls, rows: Tensor, columns: Tensor, weights: Tensor, shape: tuple[int, int]) -> SparseMatrix:
        counts = torch.bincount(rows, minlength=shape[0])
        offsets = torch.cat((counts.new_zeros(1), counts.cumsum(0))).to(torch.int32)
        return cls(offsets, columns, weights, shape[1])

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.offsets, self.columns, self.weights))

    def times(self, dense: Tensor) -> Tensor:
        dense = dense.reshape(-1).view(dense.shape)  # a single column may have an odd stride, which is slow
        return functional.embedding_bag(
            self.columns, dense, self.offsets, mode="sum", per_sample_weights=self.weights, include_last_offset=True
        )

    def transposed(self) -> SparseMatrix:
        num_rows = self.offsets.numel() - 1
        rows = torch.repeat_interleave(
            torch.arange(num_rows, dtype=torch.int32, device=self.columns.device), self.offsets.diff()
        )
        columns, order = torch.sort(self.columns, stable=True)
        return SparseMatrix.from_sorted(columns, rows[order], self.weights[order], (self.num_columns, num_rows))


def map_threaded(function: Callable[[int], list], count: int, device: torch.device) -> list:
    """``function`` of ``0 .. count - 1``, on a CPU in as many threads as torch has, each of which computes alone.

    The many small operations that make up one view would otherwise wait for all threads a hundred times.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu":
        return [function(i) for i in range(count)]

    def start() -> None:
        torch.set_num_threads(1)

    def run(i: int) -> list:
        # The modes of autograd belong to a thread.
        with torch.inference_mode(False), torch.no_grad():
            return function(i)

    try:
        with ThreadPoolExecutor(threads, initializer=start) as pool:
            return list(pool.map(run, range(count)))
    finally:
        torch.set_num_threads(threads)
