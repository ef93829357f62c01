"""Buffers that a chunked loss uses again and again, and the one pass that gives a softmax and its normaliser.

Memory fresh from the system costs a page fault for each 4 KiB, which on a CPU takes longer than the arithmetic that is
done on it; so each buffer is allocated once a step. Left out: sharing buffers between steps (they would stay held).

Shapes: R rows of a block, V outcomes.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Named buffers of up to `max_rows` rows of `num_outcomes`, allocated when first asked for."""

    def __init__(self, max_rows: int, num_outcomes: int, device: torch.device) -> None:
        self._shape = (max_rows, num_outcomes)
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, num_rows: int, dtype: torch.dtype) -> Tensor:
        """The first rows of a buffer, with whatever was left in it; a name goes with one dtype."""
        if name not in self._buffers:
            self._buffers[name] = torch.empty(self._shape, dtype=dtype, device=self._device)
        return self._buffers[name][:num_rows]

    def like(self, name: str, block_RV: Tensor) -> Tensor:
        """A buffer of the rows and dtype of a block."""
        return self.take(name, block_RV.shape[0], block_RV.dtype)


def softmax_and_log_normaliser(logits_RV: Tensor, *, out_RV: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax, written to `out_RV` (which may be `logits_RV`), and log(sum(exp(logits))), (R,).

    The largest probability is exp(largest logit) / sum, so the normaliser comes from two maxima (a fortieth of the
    cost of a second exponential pass) at the softmax's own precision.
    """
    largest_R = logits_RV.amax(-1)
    probs_RV = torch.softmax(logits_RV, -1, out=out_RV)
    return probs_RV, largest_R - probs_RV.amax(-1).log()
