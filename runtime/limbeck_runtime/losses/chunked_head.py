"""Distillation loss from the student's last hidden states and its output layer, without the logits of all rows.

A forward pass makes the logits of one chunk, its loss and at once its gradient, which goes on into the gradients of
hidden states, weight and bias; so neither logits nor log-softmax of all rows ever exist, and the backward pass only
scales what is there. It cannot be differentiated twice. With a sharded output layer (FSDP), give the gathered weight.

Shapes: N rows, R rows of a chunk, V outcomes, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck_runtime.losses.chunks import Task, Walk, compute_dtype, times_upstream
from limbeck_runtime.losses.scratch import Scratch
from limbeck_runtime.losses.teachers import Rows, TeacherHead


@dataclass(frozen=True)
class Products:
    """Number formats of the matrix products: of the logits, and of the gradients of hidden states and weight."""

    logits: torch.dtype
    gradients: torch.dtype


class HeadLoss(torch.autograd.Function):
    """(hidden_NH, weight_VH, bias_V, task, products) -> loss, and its soft and hard part, which carry no gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, task: Task, products: Products
    ) -> tuple[Tensor, Tensor, Tensor]:
        # Rows that do not count, and outcomes that the teacher lacks, keep a gradient of 0.
        sums = compute_dtype(products.logits)
        inputs = (hidden_NH, weight_VH, bias_V)
        gradients = tuple(
            torch.zeros_like(tensor, dtype=sums) if tensor is not None and needed else None
            for tensor, needed in zip(inputs, ctx.needs_input_grad[:3], strict=True)
        )
        with torch.autocast(hidden_NH.device.type, enabled=False):
            soft, hard = _walk_head(inputs, gradients, task, products)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = tuple(None if tensor is None else tensor.dtype for tensor in inputs)
        ctx.mark_non_differentiable(soft, hard)
        return soft + hard, soft, hard

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        gradients = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = (None if g is None else times_upstream(g, upstream, dtype) for g, dtype in gradients)
        return (*scaled, None, None)


def _walk_head(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    gradients: tuple[Tensor | None, ...],
    task: Task,
    products: Products,
) -> tuple[Tensor, Tensor]:
    """The loss's two parts; `gradients` are filled on the way."""
    hidden_NH, weight_VH, bias_V = inputs
    hidden_gradient_NH, weight_gradient_VH, bias_gradient_V = gradients
    num_outcomes = task.teacher.shared_outcomes(weight_VH.shape[0])
    weight_VH = weight_VH[:num_outcomes].to(products.logits)
    gradient_weight_VH = weight_VH.to(products.gradients)
    bias_V = None if bias_V is None else bias_V[:num_outcomes].to(products.logits)
    if isinstance(task.teacher, TeacherHead):
        task = replace(task, teacher=task.teacher.to(products.logits))

    def student_logits(rows: Rows, scratch: Scratch) -> Tensor:
        hidden_RH = hidden_NH[rows].to(products.logits)
        out_RV = scratch.take("student", hidden_RH.shape[0], products.logits)
        if bias_V is None:
            return torch.mm(hidden_RH, weight_VH.t(), out=out_RV)
        return torch.addmm(bias_V, hidden_RH, weight_VH.t(), out=out_RV)

    # Where the gradient of the weight is computed in a narrower type than it is summed in.
    is_narrow = weight_gradient_VH is not None and weight_gradient_VH.dtype != products.gradients
    product_VH = torch.empty_like(gradient_weight_VH) if is_narrow else None

    def take_gradient(rows: Rows, gradient_RV: Tensor) -> None:
        if hidden_gradient_NH is not None:
            hidden_gradient_NH[rows] = (gradient_RV @ gradient_weight_VH).to(hidden_gradient_NH.dtype)
        if weight_gradient_VH is not None:
            hidden_RH = hidden_NH[rows].to(gradient_RV.dtype)
            if product_VH is None:
                weight_gradient_VH[:num_outcomes].addmm_(gradient_RV.t(), hidden_RH)
            else:
                weight_gradient_VH[:num_outcomes] += torch.mm(gradient_RV.t(), hidden_RH, out=product_VH)
        if bias_gradient_V is not None:
            bias_gradient_V[:num_outcomes] += gradient_RV.sum(0)

    walk = Walk(task, hidden_NH.shape[0], num_outcomes, hidden_NH.device, products.gradients)
    walk.run(student_logits, take_gradient)
    return walk.weighted_means()
