"""Finding the right one among all candidates by cosine. Pure.

Q queries, C candidates, D dimensions; embeddings have rows of length 1.
Left out on purpose: approximate search; validation sets are small enough to compare all with all.
"""

from __future__ import annotations

import numpy as np

_CHUNK = 1024


def right_ranks(
    queries_QD: np.ndarray, candidates_CD: np.ndarray, query_groups: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """How many wrong candidates come before the best right one, int64 (Q,); 0 is the best.

    A candidate is right where its entry of `groups` (C,) is the query's of `query_groups` (Q,), so that several
    samples with one caption do not count as mistakes. A wrong one of equal similarity comes before, so that a model
    that says the same of everything gets nothing.
    """
    ranks = np.empty(len(queries_QD), np.int64)
    for start in range(0, len(queries_QD), _CHUNK):
        rows = slice(start, start + _CHUNK)
        similarity_QC = queries_QD[rows] @ candidates_CD.T
        right_QC = query_groups[rows, None] == groups[None, :]
        best_Q1 = np.where(right_QC, similarity_QC, -np.inf).max(1, keepdims=True)
        ranks[rows] = ((similarity_QC >= best_Q1) & ~right_QC).sum(1)
    return ranks


def nearest(
    queries_QD: np.ndarray, candidates_CD: np.ndarray, *, but_itself: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Place and cosine of the nearest candidate of each query; `but_itself` leaves out the one at its own place."""
    places = np.empty(len(queries_QD), np.int64)
    cosines = np.empty(len(queries_QD), np.float64)
    for start in range(0, len(queries_QD), _CHUNK):
        rows = slice(start, start + _CHUNK)
        similarity_QC = queries_QD[rows] @ candidates_CD.T
        if but_itself:
            own = np.arange(start, start + len(similarity_QC))
            similarity_QC[own - start, own] = -np.inf
        places[rows] = similarity_QC.argmax(1)
        cosines[rows] = similarity_QC.max(1)
    return places, cosines


def groups_of_rows(rows: list[tuple[int, ...]]) -> np.ndarray:
    """A number for each row, equal where the rows are."""
    numbers: dict[tuple[int, ...], int] = {}
    return np.array([numbers.setdefault(row, len(numbers)) for row in rows], np.int64)
