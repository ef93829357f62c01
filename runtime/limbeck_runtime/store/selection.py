"""From a teacher's dense logits to the few that are stored; runs where the logits are, so on the teacher's device.

Shapes: R rows (tokens or samples), V vocabulary, K kept, S samples. Results lie on the same device as the logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck_runtime.store.codec import LOG_ZERO


def top_k_logits(logits_RV: Tensor, k: int) -> dict[str, Tensor]:
    """The k likeliest classes with log-probabilities, and the logarithm of the rest's mass, as TopKCodec takes them.

    Classes masked by -inf may be among the k; they get LOG_ZERO.
    """
    logits_RV = logits_RV.float()
    level_R = logits_RV.logsumexp(dim=-1)
    values_RK, indices_RK = logits_RV.topk(k, dim=-1)
    log_probs_RK = values_RK - level_R[:, None]
    # The rest is what is missing from 1. Below float32's resolution of 1 that is rounding; then the resolution is
    # taken, because to call a small probability zero costs a loss far more than to call it 6e-8.
    missing_R = -torch.expm1(log_probs_RK.logsumexp(dim=-1).clamp(max=0.0))
    tail_log_R = missing_R.clamp(min=2**-24).log()
    if k == logits_RV.shape[-1]:
        tail_log_R = torch.full_like(tail_log_R, LOG_ZERO)
    return {
        "indices": indices_RK.int(),
        "log_probs": log_probs_RK.clamp(min=LOG_ZERO),
        "tail_log_mass": tail_log_R,
    }


def sample_logits(logits_RV: Tensor, num_samples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """`num_samples` draws with replacement from each row's distribution, as SampledCodec takes them.

    The expectation of exp(log_probs), summed over draws of one class, is that class's probability. Give a generator
    seeded from the shard's id, so that the same shard gets the same draws whoever computes it.
    """
    probabilities_RV = logits_RV.float().softmax(dim=-1)
    draws_RS = (
        torch.multinomial(probabilities_RV, num_samples, replacement=True, generator=generator).sort(dim=-1).values
    )
    is_first_RS = torch.ones_like(draws_RS, dtype=torch.bool)
    is_first_RS[:, 1:] = draws_RS[:, 1:] != draws_RS[:, :-1]
    # Equal draws lie side by side: number the groups and count their members.
    group_RS = is_first_RS.cumsum(dim=-1) - 1
    counts_RS = torch.zeros_like(draws_RS).scatter_add_(1, group_RS, torch.ones_like(draws_RS))
    indices_RS = torch.zeros_like(draws_RS).scatter_(1, group_RS, draws_RS)
    width = int(group_RS.max()) + 1 if draws_RS.numel() else 1
    log_probs_RS = counts_RS.float().log() - math.log(num_samples)
    return {
        "indices": indices_RS[:, :width].int(),
        "log_probs": log_probs_RS[:, :width].clamp(min=LOG_ZERO),
        "tail_log_mass": torch.full((len(draws_RS),), LOG_ZERO, device=draws_RS.device),
    }
