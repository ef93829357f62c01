"""The loss of a block of rows and its gradient in the student's logits, written over those logits.

This is the inner loop of `chunks`: a block is small enough to stay in the processor's
cache while the handful of passes goes over it. Soft and hard targets share the block, and the softmax where they can.

Shapes: R rows of a block, V outcomes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck_runtime.losses.dense_teacher import dense_soft_loss_
from limbeck_runtime.losses.divergence import Mix
from limbeck_runtime.losses.scratch import Scratch, softmax_and_log_normaliser
from limbeck_runtime.losses.sparse_teacher import sampled_soft_loss_, top_k_soft_loss_
from limbeck_runtime.losses.teachers import KnownRows, Sampled, TeacherLogits, TopK


def loss_and_gradient_(
    logits_RV: Tensor, teacher: KnownRows, labels_R: Tensor | None, mix: Mix, scale: float, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """(soft_R, hard_R), unweighted but for temperature^2; `logits_RV` becomes the gradient of the weighted sum.

    The sum is scale * ((1 - share) * soft + share * hard), summed over rows. `logits_RV` is float32 or float64.
    """
    share = mix.hard_label_share
    hard_R, hard_probs_RV = torch.zeros_like(logits_RV[:, 0]), None
    if labels_R is not None and share > 0:
        chosen_R = logits_RV.gather(1, labels_R[:, None])[:, 0]
        hard_probs_RV, log_normaliser_R = softmax_and_log_normaliser(logits_RV, out_RV=scratch.like("hard", logits_RV))
        hard_R = log_normaliser_R - chosen_R
    if share < 1:
        soft_R = _soft_loss_(logits_RV, teacher, mix, scale * (1 - share), scratch)
    else:
        soft_R = torch.zeros_like(hard_R)
        logits_RV.zero_()
    if labels_R is not None and hard_probs_RV is not None:
        logits_RV.add_(hard_probs_RV, alpha=scale * share)
        logits_RV.scatter_add_(1, labels_R[:, None], torch.full_like(hard_R, -scale * share)[:, None])
    return soft_R, hard_R


def _soft_loss_(logits_RV: Tensor, teacher: KnownRows, mix: Mix, weight: float, scratch: Scratch) -> Tensor:
    match teacher:
        case TeacherLogits():
            return dense_soft_loss_(logits_RV, teacher, mix, weight, scratch)
        case TopK():
            return top_k_soft_loss_(logits_RV, teacher, mix, weight)
        case Sampled():
            return sampled_soft_loss_(logits_RV, teacher, mix, weight)
