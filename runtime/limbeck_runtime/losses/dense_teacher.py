"""Soft loss against a teacher whose logits over all outcomes are at hand, with the gradient written out.

With u = student / temperature, q = softmax(u), p the teacher's softmax and m = beta p + (1 - beta) q:
  forward KL      value sum p (log p - log q)                                   d/du = q - p
  reverse KL      value sum q (log q - log p)                                   d/du = q (log q - log p - value)
  Jensen-Shannon  value beta sum p (log p - log m) + (1 - beta) sum q (log q - log m)
                  d/du = (1 - beta) q (log q - log m - sum q (log q - log m))
Every sum splits into dot products with the logits and log-normalisers, so no log-softmax is ever formed. They are taken
by a product in a buffer that is free by then: a dot product by rows would allocate one each time.

Shapes: R rows of a block, V outcomes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck_runtime.losses.divergence import Divergence, Mix
from limbeck_runtime.losses.scratch import Scratch, softmax_and_log_normaliser
from limbeck_runtime.losses.teachers import TeacherLogits


def dense_soft_loss_(logits_RV: Tensor, teacher: TeacherLogits, mix: Mix, weight: float, scratch: Scratch) -> Tensor:
    """temperature^2 * divergence of each row, (R,); `logits_RV` becomes the gradient of weight * its sum."""
    teacher_RV = scratch.like("teacher", logits_RV)
    torch.mul(teacher.logits[:, : logits_RV.shape[1]], 1 / mix.temperature, out=teacher_RV)
    if mix.temperature != 1:
        logits_RV.mul_(1 / mix.temperature)
    match mix.divergence:
        case Divergence.FORWARD_KL:
            value_R = _forward_kl_(logits_RV, teacher_RV, scratch)
        case Divergence.REVERSE_KL:
            value_R = _reverse_kl_(logits_RV, teacher_RV, scratch)
        case Divergence.JENSEN_SHANNON:
            value_R = _jensen_shannon_(logits_RV, teacher_RV, mix.beta, scratch)
    # The value carries temperature^2, and d/dlogits one factor 1 / temperature.
    logits_RV.mul_(weight * mix.temperature)
    return value_R * mix.temperature**2


def _forward_kl_(student_RV: Tensor, teacher_RV: Tensor, scratch: Scratch) -> Tensor:
    p_RV, teacher_log_sum_R = softmax_and_log_normaliser(teacher_RV, out_RV=scratch.like("p", student_RV))
    gap_R = teacher_RV.sub_(student_RV).mul_(p_RV).sum(-1)
    q_RV, student_log_sum_R = softmax_and_log_normaliser(student_RV, out_RV=teacher_RV)
    torch.sub(q_RV, p_RV, out=student_RV)
    return gap_R - teacher_log_sum_R + student_log_sum_R


def _reverse_kl_(student_RV: Tensor, teacher_RV: Tensor, scratch: Scratch) -> Tensor:
    p_RV, teacher_log_sum_R = softmax_and_log_normaliser(teacher_RV, out_RV=scratch.like("p", student_RV))
    q_RV, student_log_sum_R = softmax_and_log_normaliser(student_RV, out_RV=p_RV)
    gap_RV = student_RV.sub_(teacher_RV)
    gap_R = torch.mul(q_RV, gap_RV, out=teacher_RV).sum(-1)
    gap_RV.sub_(gap_R[:, None]).mul_(q_RV)
    return gap_R + teacher_log_sum_R - student_log_sum_R


def _jensen_shannon_(student_RV: Tensor, teacher_RV: Tensor, beta: float, scratch: Scratch) -> Tensor:
    p_RV, teacher_log_sum_R = softmax_and_log_normaliser(teacher_RV, out_RV=scratch.like("p", student_RV))
    q_RV, student_log_sum_R = softmax_and_log_normaliser(student_RV, out_RV=scratch.like("q", student_RV))
    teacher_part_R = teacher_RV.mul_(p_RV).sum(-1) - teacher_log_sum_R
    # Where both underflow to 0 the mixture's logarithm is multiplied by 0: any finite number will do.
    log_m_RV = torch.lerp(q_RV, p_RV, beta, out=teacher_RV)
    log_m_RV.clamp_(min=torch.finfo(log_m_RV.dtype).tiny).log_()
    teacher_part_R -= p_RV.mul_(log_m_RV).sum(-1)
    gap_RV = student_RV.sub_(log_m_RV)
    gap_R = torch.mul(q_RV, gap_RV, out=p_RV).sum(-1)
    gap_RV.sub_(gap_R[:, None]).mul_(q_RV).mul_(1 - beta)
    return beta * teacher_part_R + (1 - beta) * (gap_R - student_log_sum_R)
