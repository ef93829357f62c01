"""The two entry points of distillation on logits: `distil_logits` and `distil_head`.

Both take the teacher in any of its four forms (`teachers`), compute in chunks, count only valid rows, and return the
loss with its soft and hard part. Sequences come with their own leading dimensions; rows are flattened here.
Left out on purpose: per-sample weights.

Shapes: N rows (any leading dimensions), M of them valid, V outcomes, H hidden width, B sequences of T tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck_runtime.losses.chunked_head import HeadLoss, Products
from limbeck_runtime.losses.chunked_logits import LogitsLoss
from limbeck_runtime.losses.chunks import CHUNK_BYTES, Task
from limbeck_runtime.losses.divergence import Mix
from limbeck_runtime.losses.sparse_teacher import refuse_unsupported
from limbeck_runtime.losses.teachers import Teacher


class Distilled(NamedTuple):
    """`loss` carries the gradient; `soft` and `hard` are its two parts, weighted, for the record."""

    loss: Tensor
    soft: Tensor
    hard: Tensor

    def terms(self) -> dict[str, Tensor]:
        """The parts by name, as a training loop sums them; the whole gradient travels with `soft`."""
        return {"soft": self.loss - self.hard, "hard": self.hard}


def distil_logits(
    logits_NV: Tensor,
    teacher: Teacher,
    mix: Mix,
    *,
    labels_N: Tensor | None = None,
    valid_N: Tensor | None = None,
    divisor: float | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Distilled:
    """Loss of a student that gives logits, (..., V).

    `labels_N` (...) are the data's own; rows whose label is `mix.ignore_index`, or where `valid_N` (bool, ...) is
    false, do not count. The loss is the mean over the rows that count, or their sum divided by `divisor` (say, the
    mean count over all ranks, so that ranks with fewer tokens do not weigh more).

    Raises ValueError where shapes disagree, or the teacher's stored form cannot serve `mix`.
    """
    task = _task(logits_NV.shape, teacher, mix, labels_N, valid_N, divisor, chunk_bytes)
    return Distilled(*LogitsLoss.apply(logits_NV.flatten(0, -2), task))


def distil_head(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    teacher: Teacher,
    mix: Mix,
    *,
    bias_V: Tensor | None = None,
    labels_N: Tensor | None = None,
    valid_N: Tensor | None = None,
    divisor: float | None = None,
    gradient_dtype: torch.dtype | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Distilled:
    """Loss of a student whose logits would be hidden_NH @ weight_VH.T + bias_V, which are never held at once.

    As `distil_logits`. Matrix products run in the inputs' type, or in autocast's where that is on. `gradient_dtype`
    (say, torch.bfloat16) rounds the two products of the gradient to a narrower type and leaves the loss itself as it
    is: on a CPU with bfloat16 instructions this saves a quarter of the time and moves the gradient by about 0.2 %.
    """
    task = _task(hidden_NH.shape, teacher, mix, labels_N, valid_N, divisor, chunk_bytes)
    device = hidden_NH.device.type
    if torch.is_autocast_enabled(device):
        logits_dtype = torch.get_autocast_dtype(device)
    else:
        logits_dtype = torch.promote_types(hidden_NH.dtype, weight_VH.dtype)
    products = Products(logits_dtype, gradient_dtype or logits_dtype)
    return Distilled(*HeadLoss.apply(hidden_NH.flatten(0, -2), weight_VH, bias_V, task, products))


def next_token_labels(input_ids_BT: Tensor, attention_mask_BT: Tensor, ignore_index: int = -100) -> Tensor:
    """Labels (B, T) for logits whose position t predicts token t + 1; padding and the last position are ignored."""
    labels_BT = torch.full_like(input_ids_BT, ignore_index)
    follows_BT = (attention_mask_BT[:, :-1] != 0) & (attention_mask_BT[:, 1:] != 0)
    labels_BT[:, :-1] = torch.where(follows_BT, input_ids_BT[:, 1:], ignore_index)
    return labels_BT


def _task(
    shape: torch.Size,
    teacher: Teacher,
    mix: Mix,
    labels_N: Tensor | None,
    valid_N: Tensor | None,
    divisor: float | None,
    chunk_bytes: int,
) -> Task:
    refuse_unsupported(teacher, mix)
    teacher, leading = teacher.flat(), shape[:-1]
    if teacher.num_rows != leading.numel():
        raise ValueError(
            f"student and teacher must have the same rows, got {tuple(leading)} and {teacher.num_rows} in all; "
            "give the teacher's output of the same samples"
        )
    if labels_N is None and mix.hard_label_share > 0:
        raise ValueError(f"`hard_label_share` is {mix.hard_label_share} but there are no labels; set it to 0")
    for name, tensor in (("labels", labels_N), ("valid", valid_N)):
        if tensor is not None and tensor.shape != leading:
            raise ValueError(f"`{name}` must have the shape {tuple(leading)}, got {tuple(tensor.shape)}")
    counts_N = None if valid_N is None else valid_N.flatten()
    if labels_N is not None:
        labels_N = labels_N.flatten()
        labelled_N = labels_N != mix.ignore_index
        counts_N = labelled_N if counts_N is None else counts_N & labelled_N
    valid_M = None if counts_N is None or bool(counts_N.all()) else counts_N.nonzero()[:, 0]
    num_valid = leading.numel() if valid_M is None else valid_M.shape[0]
    return Task(teacher, labels_N, valid_M, mix, max(num_valid, 1) if divisor is None else divisor, chunk_bytes)
