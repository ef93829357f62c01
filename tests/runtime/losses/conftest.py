"""Naive float64 references: everything is held, nothing is clever, and nothing of the product's code is used."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def _divergence(kind: str, student_NV: Tensor, teacher_NV: Tensor, beta: float) -> Tensor:
    """From probabilities."""
    p, q = teacher_NV, student_NV
    m = beta * p + (1 - beta) * q
    if kind == "ForwardKL":
        return torch.special.entr(p).sum(-1).neg() - (p * q.log()).sum(-1)
    if kind == "ReverseKL":
        return torch.special.entr(q).sum(-1).neg() - (q * p.log()).sum(-1)
    return beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)


def _soft_and_hard(
    logits_NV: Tensor, teacher_NV: Tensor, labels_N: Tensor | None, kind: str, temperature: float, share: float
) -> Tensor:
    """Mean over all rows, teacher given as logits."""
    q = (logits_NV.double() / temperature).softmax(-1)
    p = (teacher_NV.double() / temperature).softmax(-1)
    loss_N = (1 - share) * temperature**2 * _divergence(kind, q, p, 0.5)
    if labels_N is not None:
        loss_N = loss_N - share * logits_NV.double().log_softmax(-1)[torch.arange(len(labels_N)), labels_N]
    return loss_N.mean()


@pytest.fixture
def naive_divergence() -> Callable[..., Tensor]:
    return _divergence


@pytest.fixture
def naive_distillation() -> Callable[..., Tensor]:
    return _soft_and_hard


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)
