"""Distillation loss from the student's logits, without a log-softmax of all rows.

For small outputs, or where the model gives nothing but logits. The gradient of the logits is as large as they are and
is the only thing of that size that is made. It cannot be differentiated twice.

Shapes: N rows, R rows of a chunk, V outcomes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck_runtime.losses.chunks import Task, Walk, compute_dtype, times_upstream
from limbeck_runtime.losses.scratch import Scratch
from limbeck_runtime.losses.teachers import Rows, TeacherHead


class LogitsLoss(torch.autograd.Function):
    """(logits_NV, task) -> loss, and its soft and hard part, which carry no gradient."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
        num_outcomes = task.teacher.shared_outcomes(logits_NV.shape[1])
        if isinstance(task.teacher, TeacherHead):
            task = replace(task, teacher=task.teacher.to(compute_dtype(logits_NV.dtype)))
        dtype = compute_dtype(logits_NV.dtype)
        # Rows that do not count, and outcomes that the teacher lacks, keep a gradient of 0.
        is_whole = task.valid is None and num_outcomes == logits_NV.shape[1]
        empty = torch.empty_like if is_whole else torch.zeros_like
        gradient_NV = empty(logits_NV) if ctx.needs_input_grad[0] else None

        def student_logits(rows: Rows, scratch: Scratch) -> Tensor:
            logits_RV = logits_NV[rows, :num_outcomes]
            return scratch.take("student", logits_RV.shape[0], dtype).copy_(logits_RV)

        def take_gradient(rows: Rows, gradient_RV: Tensor) -> None:
            if gradient_NV is not None:
                gradient_NV[rows, :num_outcomes] = gradient_RV.to(gradient_NV.dtype)

        with torch.autocast(logits_NV.device.type, enabled=False):
            walk = Walk(task, logits_NV.shape[0], num_outcomes, logits_NV.device, dtype)
            walk.run(student_logits, take_gradient)
        soft, hard = walk.weighted_means()
        ctx.save_for_backward(gradient_NV)
        ctx.mark_non_differentiable(soft, hard)
        return soft + hard, soft, hard

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, None]:
        (gradient_NV,) = ctx.saved_tensors
        return (None if gradient_NV is None else times_upstream(gradient_NV, upstream, gradient_NV.dtype)), None
