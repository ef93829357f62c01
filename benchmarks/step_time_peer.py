"""The peer of P1: a plain DDP loop under torchrun, over the same student, batch and optimiser.

    torchrun --nproc-per-node 2 benchmarks/step_time_peer.py WIDTH DEPTH BATCH STEPS UNTIMED

Rank 0 prints the median seconds of a step.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

LEARNING_RATE = 3e-4
CLIP_NORM = 1.0


class Student(nn.Module):
    """Blocks of a linear layer, a norm and an activation."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        blocks = (nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()) for _ in range(depth))
        self.layers = nn.Sequential(*blocks)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"features": self.layers(inputs["features"])}


def main(width: int, depth: int, batch_size: int, num_steps: int, num_untimed: int) -> None:
    """Train and print."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    student = DistributedDataParallel(Student(width, depth))
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, fused=True)
    features = torch.randn(batch_size // dist.get_world_size(), width)
    seconds = []
    for _ in range(num_steps):
        started = time.perf_counter()
        loss = student({"features": features})["features"].square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - started)
    if dist.get_rank() == 0:
        print(statistics.median(seconds[num_untimed:]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:6]))
