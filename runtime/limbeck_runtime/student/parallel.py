"""A module as several workers share it: torch's DDP or FSDP2, or as it is for one worker.

FSDP2 is not run on a GPU yet.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from limbeck.api.v1alpha1.training import Parallelism
from limbeck_runtime.student.checkpoint import Snapshot
from limbeck_runtime.student.parts import TrainBatch, TrainParts, Worker, part_of, to_device

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule

_PROBE_SAMPLES = 2


def share_module(parts: TrainParts, worker: Worker, parallelism: Parallelism, first_batch: TrainBatch) -> nn.Module:
    """The module to call in place of `parts.module`; call it on all workers at once.

    DDP must know whether some parameters take no part in the loss (a pooler that nobody reads). So the first
    samples are sent through once, which costs less than looking for such parameters in every step.
    """
    if worker.world_size == 1:
        return parts.module
    if parallelism is Parallelism.FULLY_SHARDED:
        return _sharded(parts.module, worker)
    some_unused = torch.tensor(_some_unused(parts, worker, first_batch), dtype=torch.int32, device=worker.device)
    dist.all_reduce(some_unused, op=dist.ReduceOp.MAX)
    return DistributedDataParallel(
        parts.module,
        device_ids=[worker.device] if worker.device.type == "cuda" else None,
        broadcast_buffers=False,  # rank 0's go into checkpoints and result; the others' are never read
        gradient_as_bucket_view=True,
        find_unused_parameters=bool(some_unused.item()),
    )


def is_sharded(shared: nn.Module) -> bool:
    """Whether FSDP2 has cut the module's parameters."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # to import it costs seconds
    return fsdp is not None and isinstance(shared, fsdp.FSDPModule)


@contextmanager
def gradients_shared(shared: nn.Module, enabled: bool) -> Iterator[None]:
    """Whether backward passes inside exchange gradients; only a batch's last part needs to."""
    if is_sharded(shared):
        cast("FSDPModule", shared).set_requires_gradient_sync(enabled)
        yield
    elif isinstance(shared, DistributedDataParallel) and not enabled:
        with shared.no_sync():
            yield
    else:
        yield


def average_gradients(parameters: Iterable[nn.Parameter], world_size: int) -> None:
    """Mean over workers of gradients that the shared module does not exchange: those of a loss's own weights."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size


def snapshot_of_rank(rank: int, snapshot: Snapshot | None, worker: Worker) -> Snapshot | None:
    """Hand the snapshot that one worker holds, or that it holds none, to all workers."""
    if worker.world_size == 1:
        return snapshot
    mine = snapshot if worker.rank == rank else None
    found = torch.tensor([mine.step, len(mine.data)] if mine else [-1, 0], dtype=torch.int64, device=worker.device)
    dist.broadcast(found, src=rank)
    step, num_bytes = found.tolist()
    if step < 0:
        return None
    data = torch.empty(num_bytes, dtype=torch.uint8, device=worker.device)
    if mine:
        data.copy_(torch.frombuffer(bytearray(mine.data), dtype=torch.uint8))
    dist.broadcast(data, src=rank)
    return mine or Snapshot(step, data.cpu().numpy().tobytes())


def _sharded(module: nn.Module, worker: Worker) -> nn.Module:
    """Shard each block of each list of blocks, then what is left, as FSDP2's documentation says."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(worker.device.type, (worker.world_size,))
    for part in module.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)
    return module


def _some_unused(parts: TrainParts, worker: Worker, batch: TrainBatch) -> bool:
    training_modes = {part: part.training for part in parts.module.modules()}
    parts.module.eval()  # so that no running statistics move
    few = to_device(part_of(batch, 0, min(_PROBE_SAMPLES, len(batch.keys))), worker.device)
    loss = torch.stack([term for term in parts.loss(parts.module(dict(few.inputs)), few).values()]).sum()
    for part, mode in training_modes.items():
        part.training = mode
    parameters = [parameter for parameter in parts.module.parameters() if parameter.requires_grad]
    return any(gradient is None for gradient in torch.autograd.grad(loss, parameters, allow_unused=True))
