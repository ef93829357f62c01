"""Rows of all workers, with gradients: what a loss needs that compares samples with each other.

The gang weighs each worker's mean loss by its share of the samples and sums gradients over workers (see
gradients.py). Any loss L that is the share-weighted sum of the workers' losses then has the right gradient,
whether a worker computes its own rows against all columns, or the whole matrix.
Left out on purpose: sharding the similarity matrix over workers, which pays off for batches above some 32,768.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist

# Legend: R rows of this worker, A rows of all workers, M most rows of any worker, W workers.


class _GatherRows(torch.autograd.Function):
    """All workers' rows in order of rank; the backward sums what all workers say about this worker's rows."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, rows_R: torch.Tensor, counts: Sequence[int], rank: int
    ) -> torch.Tensor:
        ctx.start = sum(counts[:rank])  # type: ignore[attr-defined]
        ctx.stop = ctx.start + counts[rank]  # type: ignore[attr-defined]
        most = max(counts)
        padded_M = rows_R.new_zeros((most, *rows_R.shape[1:]))
        padded_M[: len(rows_R)] = rows_R
        all_WM = rows_R.new_empty((len(counts) * most, *rows_R.shape[1:]))
        dist.all_gather_into_tensor(all_WM, padded_M)
        if most == min(counts):
            return all_WM
        return torch.cat([part[:count] for part, count in zip(torch.split(all_WM, most), counts, strict=True)])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient_A = gradients[0].contiguous()
        if gradient_A is gradients[0]:
            gradient_A = gradient_A.clone()
        dist.all_reduce(gradient_A)
        return gradient_A[ctx.start : ctx.stop], None, None  # type: ignore[attr-defined]


class RowGather:
    """`gather(rows_R)` gives all workers' rows_A, this worker's own from `first_row` on.

    The loop says before each batch how many samples it holds (`expect`), so that no call has to ask the others.
    With one worker, or when a batch is too small to be divided, rows are returned as they are.
    """

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank = rank
        self.world_size = world_size
        self._counts: list[int] = []

    def expect(self, num_samples: int) -> None:
        """Say how many samples the next batch holds over all workers."""
        bounds = [rank * num_samples // self.world_size for rank in range(self.world_size + 1)]
        divided = self.world_size > 1 and num_samples >= self.world_size
        self._counts = [stop - start for start, stop in pairwise(bounds)] if divided else []

    @property
    def first_row(self) -> int:
        """Where this worker's rows start among all."""
        return sum(self._counts[: self.rank])

    def __call__(self, rows_R: torch.Tensor) -> torch.Tensor:
        """All workers' rows, in order of rank; every worker must call it equally often."""
        if not self._counts:
            return rows_R
        if len(rows_R) != self._counts[self.rank]:
            raise ValueError(
                f"a loss that gathers over workers must see its whole batch: worker {self.rank} has "
                f"{self._counts[self.rank]} samples and gathered {len(rows_R)}; set `couples_samples`"
            )
        gathered: torch.Tensor = _GatherRows.apply(rows_R, self._counts, self.rank)
        return gathered
