"""The best factors of a matrix, plain or weighted by what it reads, and how many of them a budget affords.

    plain        W = U S V' in float64; the first R terms are the nearest matrix of rank R (Eckart and Young, 1936)
    data-aware   of all maps of rank R the one whose outputs over the samples are nearest: with M = X'X the second
                 moment of the inputs and M = C C', the first R left singular vectors U of W C; the map is U U' W
                 (SVD-LLM, Wang et al., 2024, truncates the same matrix). Nothing is inverted, so that inputs that
                 fill only a part of their space do no harm.

Shapes: K inputs, N outputs, R rank, M rows that were read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

# Of the mean square of the inputs: what no sample has shown counts so much that of two maps that are as good on the
# samples the one nearer to the weight is taken.
_UNSEEN = 1e-9


@dataclass(frozen=True)
class Spectrum:
    """A matrix, the directions of its outputs from strongest to weakest, and the squared size of each."""

    matrix: torch.Tensor  # (N, K)
    directions: torch.Tensor  # (N, Q)
    energies: torch.Tensor  # (Q,)

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, K) and (N, R), balanced: row i of the first is as long as column i of the second."""
        second_NR = self.directions[:, :rank]
        first_RK = second_NR.t() @ self.matrix
        lengths_R = torch.linalg.vector_norm(first_RK, dim=1)
        scale_R = torch.where(lengths_R > 0, lengths_R, torch.ones_like(lengths_R)).sqrt()
        return first_RK / scale_R.unsqueeze(1), second_NR * scale_R

    def kept(self, rank: int) -> float:
        """Share of the energy that the first `rank` directions hold, 0 to 1."""
        total = float(self.energies.sum())
        return 1.0 if total == 0 or rank >= len(self.energies) else float(self.energies[:rank].sum()) / total


def spectrum(matrix_NK: torch.Tensor, moment_KK: torch.Tensor | None = None) -> Spectrum:
    """Of a float64 matrix, weighted by the second moment of its inputs where that is given."""
    weighted_NK = matrix_NK if moment_KK is None else matrix_NK @ _root(moment_KK)
    directions_NQ, sizes_Q, _ = torch.linalg.svd(weighted_NK, full_matrices=False)
    return Spectrum(matrix_NK, directions_NQ, sizes_Q.square())


def _root(moment_KK: torch.Tensor) -> torch.Tensor:
    """C with C C' = M, by Cholesky where rounding lets it."""
    mean = moment_KK.diagonal().mean()
    eye_KK = torch.eye(len(moment_KK), dtype=moment_KK.dtype, device=moment_KK.device)
    steadied_KK = moment_KK + _UNSEEN * mean * eye_KK
    root_KK, failed = torch.linalg.cholesky_ex(steadied_KK)
    if not int(failed):
        return torch.as_tensor(root_KK)
    values_K, vectors_KK = torch.linalg.eigh(steadied_KK)
    return torch.as_tensor(vectors_KK * values_K.clamp(min=0).sqrt())


def rank_for_energy(spectrum: Spectrum, share: float) -> int:
    """The lowest rank that keeps this share of the energy."""
    total = float(spectrum.energies.sum())
    if total == 0:
        return 1
    sums_Q = spectrum.energies.cumsum(0)
    enough = sums_Q >= share * total * (1 - 1e-12)
    return int(torch.nonzero(enough)[0]) + 1 if bool(enough.any()) else len(sums_Q)


def ranks_for_budget(spectra: Mapping[str, Spectrum], whole: Mapping[str, int], budget: int) -> dict[str, int | None]:
    """Ranks whose factors hold at most `budget` numbers together; None for a layer that stays as it is,
    with the numbers of `whole`.

    Every layer has rank 1 at least; then comes, time and again, the direction that brings the largest share of its
    layer's energy for its numbers. What is left over is less than any layer's next step.

    Raises ValueError, with the least budget, where rank 1 is too much already.
    """
    costs = {name: sum(of_layer.matrix.shape) for name, of_layer in spectra.items()}
    spent = sum(costs.values())
    if spent > budget:
        raise ValueError(spent)
    ranks: dict[str, int | None] = dict.fromkeys(spectra, 1)
    closed: set[str] = set()
    for name, place in _by_worth(spectra, costs):
        rank = ranks[name]
        if name in closed or rank is None or place < rank:
            continue
        step = min(costs[name], whole[name] - rank * costs[name])
        if spent + step > budget:
            closed.add(name)
            continue
        spent += step
        ranks[name] = None if (rank + 1) * costs[name] >= whole[name] else rank + 1
    return ranks


def _by_worth(spectra: Mapping[str, Spectrum], costs: Mapping[str, int]) -> list[tuple[str, int]]:
    """(layer, place of the direction), the best bargain first, within a layer in their order."""
    bargains = []
    for number, (name, of_layer) in enumerate(spectra.items()):
        total = float(of_layer.energies.sum()) or 1.0
        bargains += [
            (-energy / total / costs[name], number, place, name)
            for place, energy in enumerate(of_layer.energies.tolist())
        ]
    return [(name, place) for _, _, place, name in sorted(bargains)]
