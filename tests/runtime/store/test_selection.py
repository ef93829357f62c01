"""Dense logits reduced to what is stored, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck_runtime.store import LOG_ZERO
from limbeck_runtime.store.selection import sample_logits, top_k_logits


def test_the_likeliest_and_the_mass_of_the_rest_are_kept() -> None:
    logits_RV = torch.randn(30, 500, generator=torch.Generator().manual_seed(0)) * 3
    parts = top_k_logits(logits_RV.bfloat16(), 7)

    expected_RV = logits_RV.bfloat16().double().log_softmax(dim=-1)
    top_R7 = expected_RV.sort(dim=-1, descending=True).values[:, :7]
    assert torch.allclose(parts["log_probs"].double(), top_R7, atol=1e-5)
    assert torch.equal(expected_RV.gather(1, parts["indices"].long()), top_R7)
    tail_R = torch.log1p(-top_R7.exp().sum(dim=-1))
    assert torch.allclose(parts["tail_log_mass"].double(), tail_R, atol=1e-4)


def test_a_rest_too_small_for_float32_is_as_small_as_float32_can_tell() -> None:
    parts = top_k_logits(torch.tensor([[60.0, 0.0, 0.0]]), 1)
    assert parts["tail_log_mass"].exp().item() == pytest.approx(2**-24)


def test_where_all_classes_are_kept_there_is_no_rest() -> None:
    parts = top_k_logits(torch.tensor([[3.0, 0.0, 0.0]]), 3)
    assert parts["tail_log_mass"].item() == LOG_ZERO


def test_the_mean_of_many_draws_is_the_distribution() -> None:
    logits_V = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 2
    num_rows = 4000
    parts = sample_logits(logits_V.expand(num_rows, 40), 20, torch.Generator().manual_seed(1))

    mean_V = torch.zeros(40).scatter_add_(0, parts["indices"].flatten().long(), parts["log_probs"].exp().flatten())
    mean_V /= num_rows
    expected_V = logits_V.softmax(dim=-1)
    error_V = torch.sqrt(expected_V * (1 - expected_V) / (20 * num_rows))
    assert ((mean_V - expected_V).abs() < 5 * error_V).all()


def test_the_shares_of_a_row_are_those_of_its_draws() -> None:
    logits_RV = torch.randn(25, 100, generator=torch.Generator().manual_seed(0))
    parts = sample_logits(logits_RV, 10, torch.Generator().manual_seed(1))

    counts_RS = parts["log_probs"].exp() * 10
    assert torch.allclose(counts_RS, counts_RS.round(), atol=1e-4)
    assert torch.allclose(counts_RS.sum(dim=-1), torch.full((25,), 10.0))
    for indices, counts in zip(parts["indices"].tolist(), counts_RS.tolist(), strict=True):
        drawn = [index for index, count in zip(indices, counts, strict=True) if count > 0.5]
        assert drawn == sorted(set(drawn))


def test_the_same_seed_draws_the_same() -> None:
    logits_RV = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    first, second = (sample_logits(logits_RV, 10, torch.Generator().manual_seed(7)) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
