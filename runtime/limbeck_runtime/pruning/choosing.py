"""Which units go at a given share: the lowest of each space, or of all spaces together; and the share for a target.

Left out on purpose: scores (scores.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from limbeck.api.v1alpha1.compression import PruneSchedule, PruneScope
from limbeck_runtime.pruning.errors import PruningError
from limbeck_runtime.pruning.spaces import Space

# Ranked together, a space may lose nearly all of its units, which no later training makes good.
_LEAST_KEPT = 0.1
_SEARCH_STEPS = 12


def lowest(
    scores: Mapping[Space, Tensor], share: float, scope: PruneScope, before: Mapping[Space, int] | None = None
) -> dict[Space, Tensor]:
    """Units to remove, ascending, so that round(share x units) are gone; of ties the higher goes, one unit stays.

    `before` says how many units there were where rounds before have taken some; their share is part of `share`.
    """
    before = before or {space: space.num_units for space in scores}
    gone = {space: before[space] - space.num_units for space in scores}
    if scope is PruneScope.LAYER:
        counts = {space: max(0, round(share * before[space]) - gone[space]) for space in scores}
    else:
        wanted = max(0, round(share * sum(before.values())) - sum(gone.values()))
        counts = _counts_together(scores, wanted, before)
    chosen = {}
    for space, values in scores.items():
        count = min(counts[space], space.num_units - 1)
        if count > 0:
            order = torch.argsort(values.flip(0), stable=True)
            chosen[space] = (space.num_units - 1 - order[:count]).sort().values
    return chosen


def _counts_together(scores: Mapping[Space, Tensor], left: int, before: Mapping[Space, int]) -> dict[Space, int]:
    everything = torch.cat(list(scores.values()))
    of_space = torch.cat([torch.full((len(values),), place) for place, values in enumerate(scores.values())])
    most = [space.num_units - max(1, round(_LEAST_KEPT * before[space])) for space in scores]
    counts = [0] * len(most)
    for place in of_space[torch.argsort(everything, stable=True)].tolist():
        if left == 0:
            break
        if counts[place] < most[place]:
            counts[place] += 1
            left -= 1
    return dict(zip(scores, counts, strict=True))


def share_for(measure: Callable[[float], int], wanted: float, field: str) -> float:
    """The smallest share, to within 1/4096, at which `measure(share)` is at most `wanted`.

    Raises PruningError where the largest share is not enough.
    """
    low, high = 0.0, 1.0
    least = measure(high)
    if least > wanted:
        raise PruningError(
            f"`prune.{field}` must be something that removing units can reach, got {wanted:.0f} where {least} stay "
            "with all that may go; raise it, add to `prune.units` or remove from `prune.ignore`"
        )
    for _ in range(_SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if measure(middle) <= wanted else (middle, high)
    return high


def part_by_round(round_number: int, num_rounds: int, schedule: PruneSchedule) -> float:
    """The part of the whole removal that is done after round `round_number` of 1 to `num_rounds`."""
    done = round_number / num_rounds
    return done if schedule is PruneSchedule.LINEAR else 1 - (1 - done) ** 3
