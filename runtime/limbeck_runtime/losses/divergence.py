"""Divergences between two distributions, as plain formulas on log-probabilities, and the settings of a soft loss.

The formulas hold everything in memory and are differentiated by autograd; they serve small supports (classes, or the
k + 1 outcomes of stored top-k). Large vocabularies go through `dense_teacher`, which has the gradients written out.
Left out on purpose: total variation and other f-divergences, until a step offers them.

Shapes: N rows, V outcomes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Divergence(StrEnum):
    """Which way the student is compared with the teacher."""

    FORWARD_KL = "ForwardKL"  # KL(teacher || student): the student covers all that the teacher does
    REVERSE_KL = "ReverseKL"  # KL(student || teacher): the student stays where the teacher is sure
    JENSEN_SHANNON = "JensenShannon"  # both against their mixture; bounded


@dataclass(frozen=True)
class Mix:
    """How soft and hard targets make one loss: (1 - share) * temperature^2 * divergence + share * cross-entropy.

    The factor temperature^2 keeps the gradient's size when the temperature moves (Hinton et al., 2015). Hard labels
    are always compared at temperature 1. `beta` is the teacher's weight in the mixture of JENSEN_SHANNON.
    """

    divergence: Divergence = Divergence.FORWARD_KL
    temperature: float = 1.0
    hard_label_share: float = 0.0
    beta: float = 0.5
    ignore_index: int = -100

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"`temperature` must be a positive number, got {self.temperature}; try 1 to 4")
        if not 0 <= self.hard_label_share <= 1:
            raise ValueError(f"`hard_label_share` must lie in [0, 1], got {self.hard_label_share}")
        if not 0 < self.beta < 1:
            raise ValueError(
                f"`beta` must lie strictly between 0 and 1, got {self.beta}; its ends are ForwardKL and ReverseKL"
            )


def divergence_of_log_probs(
    kind: Divergence, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor, *, beta: float = 0.5
) -> Tensor:
    """Divergence of each row, (N,). Impossible outcomes need a large negative log-probability, not -inf."""
    if kind is Divergence.FORWARD_KL:
        return _kl(teacher_log_probs_NV, student_log_probs_NV)
    if kind is Divergence.REVERSE_KL:
        return _kl(student_log_probs_NV, teacher_log_probs_NV)
    mixture_NV = torch.logaddexp(teacher_log_probs_NV + math.log(beta), student_log_probs_NV + math.log1p(-beta))
    return beta * _kl(teacher_log_probs_NV, mixture_NV) + (1 - beta) * _kl(student_log_probs_NV, mixture_NV)


def _kl(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)
