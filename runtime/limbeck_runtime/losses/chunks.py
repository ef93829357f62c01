"""Walk over the rows of a distillation loss chunk by chunk, and over each chunk block by block.

A chunk is what one matrix product makes (large enough for the product to run at full speed); a block is a run of its
rows that stays in the processor's cache while the loss makes its passes. On an accelerator a block is the chunk.

Shapes: N rows, M of them count, R rows of a chunk, V outcomes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck_runtime.losses.divergence import Mix
from limbeck_runtime.losses.row_loss import loss_and_gradient_
from limbeck_runtime.losses.scratch import Scratch
from limbeck_runtime.losses.teachers import KnownRows, Rows, Teacher, TeacherHead

CHUNK_BYTES = 128 * 2**20  # 1,048 rows of 32,000 float32 logits: products over more rows are no faster
BLOCK_BYTES = 8 * 2**20  # three such buffers fit in a last-level cache of 32 MiB; fewer, and threads wait more
MIN_CHUNK_ROWS, MAX_CHUNK_ROWS = 128, 8192


@dataclass(frozen=True)
class Task:
    """What a chunked loss needs beside the student's tensors. All rows are flat."""

    teacher: Teacher
    labels: Tensor | None  # N
    valid: Tensor | None  # M, indices of the rows that count; None = all
    mix: Mix
    divisor: float  # the loss is the sum over rows divided by this
    chunk_bytes: int = CHUNK_BYTES
    block_bytes: int = BLOCK_BYTES


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The loss's own arithmetic is in float32, or float64 where its input is."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def times_upstream(gradient: Tensor, upstream: Tensor, dtype: torch.dtype) -> Tensor:
    """The saved gradient as the backward pass hands it on; not copied where the loss itself is minimised.

    On an accelerator the look at `upstream` would wait for all that is queued there, so it multiplies always.
    """
    if upstream.device.type != "cpu" or upstream.item() != 1:
        gradient = gradient * upstream.to(gradient.dtype)
    return gradient.to(dtype)


class Walk:
    """One pass over all rows that count: sizes, buffers, and the sums of the losses so far."""

    def __init__(
        self, task: Task, num_rows: int, num_outcomes: int, device: torch.device, gradient_dtype: torch.dtype
    ) -> None:
        self.task = task
        self.num_valid = num_rows if task.valid is None else task.valid.shape[0]
        row_bytes = 4 * num_outcomes
        chunk_rows = min(max(task.chunk_bytes // row_bytes, MIN_CHUNK_ROWS), MAX_CHUNK_ROWS)
        self.chunk_rows = max(min(chunk_rows, self.num_valid), 1)
        on_cpu = device.type == "cpu"
        self.block_rows = max(min(task.block_bytes // row_bytes, self.chunk_rows), 1) if on_cpu else self.chunk_rows
        self.gradient_dtype = gradient_dtype
        self.chunk = Scratch(self.chunk_rows, num_outcomes, device)
        self.block = Scratch(self.block_rows, num_outcomes, device)
        sums = compute_dtype(gradient_dtype)
        self.soft_sum = torch.zeros((), dtype=sums, device=device)
        self.hard_sum = torch.zeros((), dtype=sums, device=device)

    def run(
        self, student_logits: Callable[[Rows, Scratch], Tensor], take_gradient: Callable[[Rows, Tensor], None]
    ) -> None:
        """For each chunk: its logits from `student_logits` (may be overwritten), its gradient to `take_gradient`."""
        for start in range(0, self.num_valid, self.chunk_rows):
            span = slice(start, min(start + self.chunk_rows, self.num_valid))
            rows = span if self.task.valid is None else self.task.valid[span]
            logits_RV = student_logits(rows, self.chunk)
            teacher = self.task.teacher.rows(rows)
            if isinstance(teacher, TeacherHead):
                teacher = teacher.logits(self.chunk.like("teacher", logits_RV))
            labels_R = None if self.task.labels is None else self.task.labels[rows]
            take_gradient(rows, self._loss_and_gradient(logits_RV, teacher, labels_R))

    def _loss_and_gradient(self, logits_RV: Tensor, teacher: KnownRows, labels_R: Tensor | None) -> Tensor:
        num_rows, dtype = logits_RV.shape[0], compute_dtype(logits_RV.dtype)
        in_place = logits_RV.dtype == dtype == self.gradient_dtype
        gradient_RV = logits_RV if in_place else self.chunk.take("gradient", num_rows, self.gradient_dtype)
        for first in range(0, num_rows, self.block_rows):
            at = slice(first, min(first + self.block_rows, num_rows))
            block_RV = logits_RV[at]
            if block_RV.dtype != dtype:
                block_RV = self.block.take("student", at.stop - first, dtype).copy_(block_RV)
            block_labels_R = None if labels_R is None else labels_R[at]
            soft_R, hard_R = loss_and_gradient_(
                block_RV, teacher.rows(at), block_labels_R, self.task.mix, 1 / self.task.divisor, self.block
            )
            self.soft_sum += soft_R.sum()
            self.hard_sum += hard_R.sum()
            if not in_place:
                gradient_RV[at].copy_(block_RV)
        return gradient_RV

    def weighted_means(self) -> tuple[Tensor, Tensor]:
        """The soft and the hard part of the loss; their sum is the loss."""
        share, divisor = self.task.mix.hard_label_share, self.task.divisor
        return self.soft_sum * ((1 - share) / divisor), self.hard_sum * (share / divisor)
