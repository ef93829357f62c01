"""The four forms in which a teacher's opinion on N rows can be at hand, and how each is cut to some of the rows.

A teacher may know more outcomes than the student or fewer (the same tokenizer padded to 151,936 and to 152,064): only
the first `min` of both are compared, and each side is normalised over that shared part. Nothing is padded with zeros,
which would hand probability to outcomes that nobody has.

Shapes: N rows, R some of them, V outcomes, K stored outcomes of a row, H hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

Rows = Tensor | slice


@dataclass(frozen=True)
class TeacherLogits:
    """Raw logits over all outcomes, (..., V)."""

    logits: Tensor  # N, V

    @property
    def num_rows(self) -> int:
        return self.logits.shape[0]

    def flat(self) -> TeacherLogits:
        """With one leading dimension, outside of autograd."""
        return TeacherLogits(self.logits.detach().flatten(0, -2))

    def shared_outcomes(self, num_outcomes: int) -> int:
        """How many outcomes a student of `num_outcomes` shares with this teacher."""
        return min(num_outcomes, self.logits.shape[-1])

    def rows(self, rows_R: Rows) -> TeacherLogits:
        return TeacherLogits(self.logits[rows_R])


@dataclass(frozen=True)
class TeacherHead:
    """The teacher's last hidden states (..., H) and its output layer: logits exist a chunk at a time only."""

    hidden: Tensor  # N, H
    weight: Tensor  # V, H
    bias: Tensor | None = None  # V

    @property
    def num_rows(self) -> int:
        return self.hidden.shape[0]

    def flat(self) -> TeacherHead:
        bias_V = None if self.bias is None else self.bias.detach()
        return TeacherHead(self.hidden.detach().flatten(0, -2), self.weight.detach(), bias_V)

    def shared_outcomes(self, num_outcomes: int) -> int:
        return min(num_outcomes, self.weight.shape[0])

    def rows(self, rows_R: Rows) -> TeacherHead:
        return replace(self, hidden=self.hidden[rows_R])

    def to(self, dtype: torch.dtype) -> TeacherHead:
        bias_V = None if self.bias is None else self.bias.to(dtype)
        return TeacherHead(self.hidden.to(dtype), self.weight.to(dtype), bias_V)

    def logits(self, out_RV: Tensor) -> TeacherLogits:
        """Logits of all rows over as many outcomes as `out_RV` has columns, computed into it, in its dtype."""
        num_outcomes = out_RV.shape[1]
        weight_HV = self.weight[:num_outcomes].t()
        if self.bias is None:
            torch.mm(self.hidden, weight_HV, out=out_RV)
        else:
            torch.addmm(self.bias[:num_outcomes], self.hidden, weight_HV, out=out_RV)
        return TeacherLogits(out_RV)


@dataclass(frozen=True)
class TopK:
    """The k largest log-probabilities of each row, (..., K), and the log of the mass of all others, (...).

    `temperature` is that of the softmax they were taken from. Indices are unique within a row. Entries that the
    student does not know are dropped, and what is left is normalised.
    """

    indices: Tensor  # N, K
    log_probs: Tensor  # N, K
    tail_log_mass: Tensor  # N
    temperature: float = 1.0

    @property
    def num_rows(self) -> int:
        return self.indices.shape[0]

    def flat(self) -> TopK:
        return replace(
            self,
            indices=self.indices.flatten(0, -2),
            log_probs=self.log_probs.detach().flatten(0, -2),
            tail_log_mass=self.tail_log_mass.detach().flatten(),
        )

    def shared_outcomes(self, num_outcomes: int) -> int:
        return num_outcomes

    def rows(self, rows_R: Rows) -> TopK:
        return replace(
            self,
            indices=self.indices[rows_R],
            log_probs=self.log_probs[rows_R],
            tail_log_mass=self.tail_log_mass[rows_R],
        )


@dataclass(frozen=True)
class Sampled:
    """Outcomes drawn from the teacher with their importance weights: an unbiased stand-in for its distribution.

    `weights` (..., K) sum to 1 in each row; a weight of 0 marks an unused place. Indices are unique among the used
    places of a row. Source: Sparse Logit Sampling (Anshumann et al., ACL 2025).
    """

    indices: Tensor  # N, K
    weights: Tensor  # N, K
    temperature: float = 1.0

    @property
    def num_rows(self) -> int:
        return self.indices.shape[0]

    def flat(self) -> Sampled:
        return replace(
            self,
            indices=self.indices.flatten(0, -2),
            weights=self.weights.detach().flatten(0, -2),
        )

    def shared_outcomes(self, num_outcomes: int) -> int:
        return num_outcomes

    def rows(self, rows_R: Rows) -> Sampled:
        return replace(self, indices=self.indices[rows_R], weights=self.weights[rows_R])


KnownRows = TeacherLogits | TopK | Sampled  # what can be compared at once, without a matrix product first
Teacher = KnownRows | TeacherHead
