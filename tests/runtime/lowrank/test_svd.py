"""Factors and ranks against numpy's SVD, the closed form of the weighted problem, and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck_runtime.lowrank.svd import Spectrum, rank_for_energy, ranks_for_budget, spectrum

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))


def _matrix(shape: tuple[int, int], seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _error(of: Spectrum, rank: int, inputs_MK: torch.Tensor | None = None) -> float:
    first, second = of.factors(rank)
    lost = of.matrix - second @ first
    return float((lost if inputs_MK is None else inputs_MK @ lost.T).square().sum())


@given(SHAPES, st.integers(1, 12), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_plain_factors_reach_the_least_error_that_any_rank_can(shape: tuple[int, int], rank: int, seed: int) -> None:
    matrix = _matrix(shape, seed)
    sizes = np.linalg.svd(matrix.numpy(), compute_uv=False)
    found = spectrum(matrix)
    assert _error(found, rank) == pytest.approx(float((sizes[rank:] ** 2).sum()), abs=1e-18 + 1e-12 * (sizes**2).sum())
    assert found.kept(rank) == pytest.approx(float((sizes[:rank] ** 2).sum() / (sizes**2).sum()), abs=1e-12)


@given(SHAPES, st.integers(1, 12), st.integers(1, 30), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_weighted_factors_reach_the_closed_form_and_are_no_worse_than_plain_ones(
    shape: tuple[int, int], rank: int, num_rows: int, seed: int
) -> None:
    """The least error of X (W - V)' over V of a rank is what the SVD of the outputs X W' leaves (Eckart and Young)."""
    matrix = _matrix(shape, seed)
    inputs = _matrix((num_rows, shape[1]), seed + 1) * torch.linspace(0.01, 3, shape[1], dtype=torch.float64)
    outputs = (inputs @ matrix.T).numpy()
    least = float((np.linalg.svd(outputs, compute_uv=False)[rank:] ** 2).sum())
    slack = 1e-6 * float((outputs**2).sum()) + 1e-15
    weighted = _error(spectrum(matrix, inputs.T @ inputs), rank, inputs)
    assert weighted == pytest.approx(least, abs=slack)
    assert weighted <= _error(spectrum(matrix), rank, inputs) + slack


def test_with_inputs_that_are_all_alike_both_ways_are_the_same() -> None:
    matrix = _matrix((6, 9), 3)
    plain, weighted = spectrum(matrix), spectrum(matrix, 5 * torch.eye(9, dtype=torch.float64))
    for rank in range(1, 7):
        one, other = plain.factors(rank), weighted.factors(rank)
        torch.testing.assert_close(one[1] @ one[0], other[1] @ other[0])


def test_inputs_that_never_came_or_are_all_zero_leave_finite_factors_near_the_weight() -> None:
    matrix = _matrix((5, 8), 4)
    nothing = spectrum(matrix, torch.zeros(8, 8, dtype=torch.float64))
    assert all(torch.isfinite(factor).all() for factor in nothing.factors(2))
    seen_once = torch.zeros(8, 8, dtype=torch.float64)
    seen_once[0, 0] = 1.0
    first, second = spectrum(matrix, seen_once).factors(5)
    torch.testing.assert_close(second @ first, matrix)  # all directions are there, so the weight is


def test_the_factors_share_the_scale_evenly() -> None:
    first, second = spectrum(_matrix((7, 5), 5), torch.diag(torch.arange(1.0, 6.0).double())).factors(3)
    torch.testing.assert_close(first.norm(dim=1), second.norm(dim=0))


@given(SHAPES, st.integers(1, 100), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_the_rank_for_an_energy_is_the_lowest_that_keeps_it(shape: tuple[int, int], percent: int, seed: int) -> None:
    matrix = _matrix(shape, seed)
    squares = np.linalg.svd(matrix.numpy(), compute_uv=False) ** 2
    shares = squares.cumsum() / squares.sum()
    expected = next(rank for rank, share in enumerate(shares, 1) if share >= percent / 100 - 1e-9)
    assert rank_for_energy(spectrum(matrix), percent / 100) == expected


@given(st.lists(SHAPES, min_size=1, max_size=5), st.integers(0, 100), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_a_budget_is_kept_and_what_is_left_is_less_than_any_step(
    shapes: list[tuple[int, int]], percent: int, seed: int
) -> None:
    spectra = {str(place): spectrum(_matrix(shape, seed + place)) for place, shape in enumerate(shapes)
               if sum(shape) < shape[0] * shape[1]}  # fmt: skip
    whole = {name: found.matrix.numel() for name, found in spectra.items()}
    costs = {name: sum(found.matrix.shape) for name, found in spectra.items()}
    budget = sum(whole.values()) * percent // 100
    if sum(costs.values()) > budget:
        with pytest.raises(ValueError, match=f"^{sum(costs.values())}$"):
            ranks_for_budget(spectra, whole, budget)
        return
    ranks = ranks_for_budget(spectra, whole, budget)
    spent = sum(whole[name] if rank is None else rank * costs[name] for name, rank in ranks.items())
    steps = [min(costs[name], whole[name] - rank * costs[name]) for name, rank in ranks.items() if rank is not None]
    assert spent <= budget
    assert all(budget - spent < step for step in steps)
    assert all(rank is None or rank * costs[name] < whole[name] for name, rank in ranks.items())


def test_where_layers_are_of_one_shape_a_budget_keeps_the_most_energy_that_can_be_kept() -> None:
    spectra = {name: spectrum(_matrix((6, 7), seed) @ torch.diag(torch.linspace(1, tail, 7).double()))
               for name, seed, tail in (("a", 1, 0.01), ("b", 2, 1.0), ("c", 3, 3.0))}  # fmt: skip
    whole = dict.fromkeys(spectra, 1000)  # no layer stays whole
    ranks = ranks_for_budget(spectra, whole, 8 * 13)
    kept = sum(spectra[name].kept(rank) for name, rank in ranks.items() if rank is not None)
    best = max(
        sum(found.kept(rank) for found, rank in zip(spectra.values(), chosen, strict=True))
        for chosen in itertools.product(range(1, 7), repeat=3)
        if sum(chosen) <= 8
    )
    assert kept == pytest.approx(best)
    assert ranks["a"] < ranks["c"]  # type: ignore[operator]
