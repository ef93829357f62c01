"""Soft loss against stored teacher outputs: the k largest with a tail bucket, or importance-sampled outcomes.

Top-k. The student's outcomes are merged the same way into k + 1, so both sides are proper distributions, and dropping
the tail (which would bias the student) is not needed. Everything depends on the student's k logits and on the
log-sum-exp of the others, so the k + 1 outcomes are differentiated by themselves (the forward KL in closed form, which
takes half the time on a small student, the others by autograd), and the rest is one softmax pass.
If the loss has another temperature than the stored outputs, the tail's mass at the new one cannot be known. Then KL
is split by its chain rule: stored-or-tail is compared at the stored temperature, the choice among the k at the new one.
Jensen-Shannon has no such rule, and is refused.

Sampled. KL(teacher || student) up to the sampled entropy: its gradient is unbiased because it is linear in the
teacher's weights. The other divergences are not linear in them, and are refused; so is another temperature.

Shapes: R rows of a block, V outcomes, K stored ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck_runtime.losses.divergence import Divergence, Mix, divergence_of_log_probs
from limbeck_runtime.losses.scratch import softmax_and_log_normaliser
from limbeck_runtime.losses.teachers import Sampled, Teacher, TopK

# Stands for log(0): far below any log-probability, yet finite, so that 0 * log(0) is 0 and not NaN.
LOG_ZERO = -1e4


def refuse_unsupported(teacher: Teacher, mix: Mix) -> None:
    """Raise ValueError where a stored form cannot serve the divergence or temperature that is asked for."""
    if not isinstance(teacher, TopK | Sampled):
        return
    moved = teacher.temperature != mix.temperature
    if isinstance(teacher, Sampled) and mix.divergence is not Divergence.FORWARD_KL:
        raise ValueError(
            f"sampled teacher outputs are unbiased for ForwardKL only, got {mix.divergence}; "
            "use ForwardKL, or store TopK"
        )
    if isinstance(teacher, Sampled) and moved:
        raise ValueError(
            f"sampled teacher outputs hold the temperature {teacher.temperature} only, got {mix.temperature}; "
            "capture them at the temperature of the loss"
        )
    if isinstance(teacher, TopK) and moved and mix.divergence is Divergence.JENSEN_SHANNON:
        raise ValueError(
            f"JensenShannon on top-k outputs stored at temperature {teacher.temperature} cannot be computed at "
            f"{mix.temperature}; use that temperature, or a KL divergence"
        )


def top_k_soft_loss_(logits_RV: Tensor, teacher: TopK, mix: Mix, weight: float) -> Tensor:
    """temperature^2 * divergence of each row, (R,); `logits_RV` becomes the gradient of weight * its sum."""
    num_outcomes, stored = logits_RV.shape[1], teacher.temperature
    indices_RK = teacher.indices.long()
    known_RK = indices_RK < num_outcomes
    # An entry that the student lacks points where a known one does: overwritten anyway, and its gradient is 0.
    first_known_R1 = known_RK.long().argmax(1, keepdim=True)
    index_RK = torch.where(known_RK, indices_RK, indices_RK.gather(1, first_known_R1))
    index_RK = index_RK.clamp(max=num_outcomes - 1)
    teacher_log_RK = teacher.log_probs.to(logits_RV.dtype).masked_fill(~known_RK, LOG_ZERO)

    kept_RK = logits_RV.gather(1, index_RK)
    logits_RV.scatter_(1, index_RK, LOG_ZERO * stored)
    if stored != 1:
        logits_RV.mul_(1 / stored)
    tail_probs_RV, tail_R = softmax_and_log_normaliser(logits_RV, out_RV=logits_RV)
    student_RK = kept_RK.masked_fill(~known_RK, LOG_ZERO * min(stored, mix.temperature))
    differentiate = _forward_kl if mix.divergence is Divergence.FORWARD_KL else _by_autograd
    value_R, kept_gradient_RK, tail_gradient_R = differentiate(student_RK, tail_R, teacher_log_RK, teacher, mix)
    tail_probs_RV.mul_((tail_gradient_R * (weight / stored))[:, None])
    tail_probs_RV.scatter_add_(1, index_RK, kept_gradient_RK.masked_fill(~known_RK, 0) * weight)
    return value_R


def _forward_kl(
    student_RK: Tensor, student_tail_R: Tensor, teacher_log_RK: Tensor, teacher: TopK, mix: Mix
) -> tuple[Tensor, Tensor, Tensor]:
    """temperature^2 * KL(teacher || student) of each row, and its gradient by the kept logits and by the tail's
    log-sum-exp at the stored temperature: differences of distributions, at each temperature their own."""
    stored, moved = teacher.temperature, mix.temperature
    student_RB, teacher_RB = _buckets(student_RK, student_tail_R, teacher_log_RK, teacher)
    if stored == moved:
        value_R = divergence_of_log_probs(mix.divergence, student_RB, teacher_RB) * stored**2
        gradient_RB = student_RB.exp_() - teacher_RB.exp_()
        return value_R, gradient_RB[:, :-1] * stored, gradient_RB[:, -1] * stored**2
    student_R2, teacher_R2 = _kept_or_tail(student_RB), _kept_or_tail(teacher_RB)
    coarse_R = divergence_of_log_probs(mix.divergence, student_R2, teacher_R2)
    among_kept_RK = (student_RK / moved).log_softmax(-1)
    teacher_among_kept_RK = (teacher_log_RK * (stored / moved)).log_softmax(-1)
    fine_R = divergence_of_log_probs(mix.divergence, among_kept_RK, teacher_among_kept_RK)
    kept_mass_R1 = teacher_R2[:, :1].exp()
    # The teacher's mass on what is kept moves each kept outcome by its share of the student's own.
    coarse_RK = student_RB[:, :-1].exp() - kept_mass_R1 * (student_RB[:, :-1] - student_R2[:, :1]).exp()
    fine_RK = kept_mass_R1 * (among_kept_RK.exp_() - teacher_among_kept_RK.exp_())
    return (
        coarse_R * stored**2 + kept_mass_R1[:, 0] * fine_R * moved**2,
        coarse_RK * stored + fine_RK * moved,
        (student_R2[:, 1].exp() - teacher_R2[:, 1].exp()) * stored**2,
    )


def _by_autograd(
    student_RK: Tensor, student_tail_R: Tensor, teacher_log_RK: Tensor, teacher: TopK, mix: Mix
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_forward_kl`, for the other divergences."""
    with torch.enable_grad():
        student_RK.requires_grad_()
        student_tail_R.requires_grad_()
        value_R = _bucket_divergence(student_RK, student_tail_R, teacher_log_RK, teacher, mix)
        kept_gradient_RK, tail_gradient_R = torch.autograd.grad(value_R.sum(), (student_RK, student_tail_R))
    return value_R.detach(), kept_gradient_RK, tail_gradient_R


def _bucket_divergence(
    student_RK: Tensor, student_tail_R: Tensor, teacher_log_RK: Tensor, teacher: TopK, mix: Mix
) -> Tensor:
    """Reverse KL or Jensen-Shannon, from the student's raw logits, its tail's log-sum-exp at the stored temperature and
    the teacher's log-probabilities."""
    student_RB, teacher_RB = _buckets(student_RK, student_tail_R, teacher_log_RK, teacher)
    if teacher.temperature == mix.temperature:
        value_R = divergence_of_log_probs(mix.divergence, student_RB, teacher_RB, beta=mix.beta)
        return value_R * mix.temperature**2
    coarse_R = divergence_of_log_probs(mix.divergence, _kept_or_tail(student_RB), _kept_or_tail(teacher_RB))
    student_RK = (student_RK / mix.temperature).log_softmax(-1)
    teacher_RK = (teacher_log_RK * (teacher.temperature / mix.temperature)).log_softmax(-1)
    fine_R = divergence_of_log_probs(mix.divergence, student_RK, teacher_RK)
    kept_mass_R = student_RB[:, :-1].logsumexp(-1).exp()
    return coarse_R * teacher.temperature**2 + kept_mass_R * fine_R * mix.temperature**2


def _buckets(
    student_RK: Tensor, student_tail_R: Tensor, teacher_log_RK: Tensor, teacher: TopK
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of both sides over the k stored outcomes and the tail, at the stored temperature."""
    tail_R = teacher.tail_log_mass.to(student_RK.dtype).clamp(min=LOG_ZERO)
    student_RB = torch.cat((student_RK / teacher.temperature, student_tail_R[:, None]), 1).log_softmax(-1)
    return student_RB, torch.cat((teacher_log_RK, tail_R[:, None]), 1).log_softmax(-1)


def _kept_or_tail(log_probs_RB: Tensor) -> Tensor:
    return torch.stack((log_probs_RB[:, :-1].logsumexp(-1), log_probs_RB[:, -1]), 1)


def sampled_soft_loss_(logits_RV: Tensor, teacher: Sampled, mix: Mix, weight: float) -> Tensor:
    """temperature^2 * KL of each row, (R,); `logits_RV` becomes the gradient of weight * its sum."""
    num_outcomes, temperature = logits_RV.shape[1], mix.temperature
    weights_RK = teacher.weights.to(logits_RV.dtype) * (teacher.indices < num_outcomes)
    weights_RK = weights_RK / weights_RK.sum(-1, keepdim=True).clamp(min=torch.finfo(weights_RK.dtype).tiny)
    index_RK = teacher.indices.long().clamp(0, num_outcomes - 1)
    if temperature != 1:
        logits_RV.mul_(1 / temperature)
    chosen_RK = logits_RV.gather(1, index_RK)
    mass_R = weights_RK.sum(-1)
    probs_RV, log_sum_R = softmax_and_log_normaliser(logits_RV, out_RV=logits_RV)
    value_R = (torch.xlogy(weights_RK, weights_RK) - weights_RK * chosen_RK).sum(-1) + mass_R * log_sum_R
    probs_RV.mul_((weight * temperature * mass_R)[:, None])
    probs_RV.scatter_add_(1, index_RK, weights_RK * (-weight * temperature))
    return value_R * temperature**2
