"""Random numbers and algorithms of a training run, such that a position is all that a resumed run must know.

Each step, worker and part of a batch seeds torch, numpy and random anew from the run's seed. So nothing of their
states is kept in a checkpoint, and a run that goes on elsewhere draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch


def seed_everything(seed: int, step: int, rank: int, part: int) -> None:
    """Seed torch's (CPU, current GPU), numpy's and Python's global generators for one part of one step on a worker."""
    mixed = hashlib.blake2b(struct.pack("<4q", seed, step, rank, part), digest_size=8).digest()
    number = int.from_bytes(mixed, "little")
    # Not torch.manual_seed: for each kind of device that is not there it formats the call stack, every time.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(number)
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """Deterministic algorithms inside; afterwards settings and generators are as they were before.

    On a CPU, torch's algorithms are deterministic for a given number of threads (bit for bit for one).
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), _deterministic_gpu() if device.type == "cuda" else nullcontext():
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


@contextmanager
def _deterministic_gpu() -> Iterator[None]:
    """Not run on a GPU yet. An operation without a deterministic variant warns once and runs."""
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)  # costs seconds: it imports torch's compiler
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
