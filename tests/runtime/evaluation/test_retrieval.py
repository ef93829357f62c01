"""Ranks against a loop over all candidates."""

from __future__ import annotations

import numpy as np

from limbeck_runtime.evaluation.retrieval import groups_of_rows, nearest, right_ranks


def unit(count: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 6))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_ranks_are_those_of_a_loop() -> None:
    queries, candidates = unit(30, 0), unit(40, 1)
    query_groups, groups = np.arange(30) % 12, np.arange(40) % 12
    ranks = right_ranks(queries, candidates, query_groups, groups)
    for query in range(30):
        ordered = sorted(range(40), key=lambda place: -float(queries[query] @ candidates[place]))
        wanted = next(rank for rank, place in enumerate(ordered) if groups[place] == query_groups[query])
        wrong_before = sum(groups[place] != query_groups[query] for place in ordered[:wanted])
        assert ranks[query] == wrong_before


def test_a_model_that_says_the_same_of_everything_finds_nothing() -> None:
    same = np.ones((20, 4)) / 2
    numbers = np.arange(20)
    assert set(right_ranks(same, same, numbers, numbers)) == {19}


def test_equal_captions_are_no_mistakes() -> None:
    texts = np.eye(3)[[0, 0, 1]]
    groups = groups_of_rows([(5, 6), (5, 6), (7,)])
    assert right_ranks(texts, texts, groups, groups).tolist() == [0, 0, 0]


def test_the_nearest_other_leaves_out_the_sample_itself() -> None:
    rows = unit(1500, 2)  # more than one chunk
    places, cosines = nearest(rows, rows, but_itself=True)
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -2)
    assert (places == similarity.argmax(1)).all()
    np.testing.assert_allclose(cosines, similarity.max(1))
    assert (nearest(rows, rows)[0] == np.arange(1500)).all()
