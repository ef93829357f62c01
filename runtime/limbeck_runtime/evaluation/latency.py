"""How long a call takes: median and 95th percentile, several models in turns so that they meet the same noise.

Left out on purpose: throughput under load, which is a server's property.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import torch

from limbeck.api.report import LatencyFigure

Inputs = Mapping[str, torch.Tensor]
Call = Callable[[Inputs], object]

_NUM_WARM_UP = 2


def measure_latency(
    call: Call,
    inputs: Inputs,
    batch_sizes: Sequence[int],
    num_calls: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> list[LatencyFigure]:
    """Latency of one model, for each batch size in ascending order."""
    return measure_latencies({"": call}, inputs, batch_sizes, num_calls, clock=clock)[""]


def measure_latencies(
    calls: Mapping[str, Call],
    inputs: Inputs,
    batch_sizes: Sequence[int],
    num_calls: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[LatencyFigure]]:
    """Latency of each model: `num_calls` timed rounds in which every model is called once, after a warm-up.

    `inputs` holds at least one sample; batches are cut from it, or repeat it where it is too small.
    """
    figures: dict[str, list[LatencyFigure]] = {label: [] for label in calls}
    for batch_size in sorted(batch_sizes):
        batch = take_samples(inputs, batch_size)
        seconds: dict[str, list[float]] = {label: [] for label in calls}
        with torch.inference_mode():
            for round_number in range(_NUM_WARM_UP + num_calls):
                for label, call in calls.items():
                    started = clock()
                    call(batch)
                    if round_number >= _NUM_WARM_UP:
                        seconds[label].append(clock() - started)
        for label, of_label in seconds.items():
            figures[label].append(_figure(batch_size, of_label))
    return figures


def take_samples(inputs: Inputs, count: int) -> dict[str, torch.Tensor]:
    """The first `count` samples, from the start again where there are fewer; padding that none of them needs is cut."""
    available = len(next(iter(inputs.values())))
    rows = torch.arange(count) % available
    taken = {name: tensor[rows].contiguous() for name, tensor in inputs.items() if name != "labels"}
    mask = taken.get("attention_mask")
    if mask is not None and "labels" not in taken:
        longest = int(mask.sum(1).max())
        if bool((mask[:, :longest].sum(1) == mask.sum(1)).all()):  # padding on the right
            width = mask.shape[1]
            for name in ("input_ids", "attention_mask"):
                if name in taken and taken[name].shape[1:] == (width,):
                    taken[name] = taken[name][:, :longest].contiguous()
    return taken


def _figure(batch_size: int, seconds: Sequence[float]) -> LatencyFigure:
    quantiles = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95], dtype=torch.float64))
    median, high = (max(float(value), 1e-9) for value in quantiles)
    return LatencyFigure(batch_size=batch_size, p50_seconds=median, p95_seconds=high, num_calls=len(seconds))
