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
    """The module to call in place of `parts.module`; call it on all workers at once, with no gradients yet.

    DDP must know whether some parameters take no part in the loss (a pooler that nobody reads). So a few samples
    are sent through once, which costs less than looking for such parameters in every step. They are sent again
    through DDP, because it orders its buckets by the first backward pass: a run that goes on must add up
    gradients in the same order as one that was never stopped, or three workers and more would differ in the
    last bit.
    """
    if worker.world_size == 1:
        return parts.module
    if parallelism is Parallelism.FULLY_SHARDED:
        return _sharded(parts.module, worker)
    worker.gather.expect(0)  # the samples that follow are this worker's own
    few = to_device(part_of(first_batch, 0, min(_PROBE_SAMPLES, len(first_batch.keys))), worker.device)
    trained = [parameter for parameter in parts.module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(_probe(parts, parts.module, few), trained, allow_unused=True)
    unused = torch.tensor(any(gradient is None for gradient in gradients), dtype=torch.int32, device=worker.device)
    dist.all_reduce(unused, op=dist.ReduceOp.MAX)
    shared = DistributedDataParallel(
        parts.module,
        device_ids=[worker.device] if worker.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=bool(unused.item()),
    )
    torch.autograd.backward(_probe(parts, shared, few))
    for parameter in [*trained, *unshared_parameters(shared, parts.loss)]:
        parameter.grad = None
    return shared


def _probe(parts: TrainParts, module: nn.Module, few: TrainBatch) -> torch.Tensor:
    """Loss of a few samples, in eval mode so that no running statistics move."""
    modes = {part: part.training for part in parts.module.modules()}
    parts.module.eval()
    terms = parts.loss(module(dict(few.inputs)), few)
    for part, mode in modes.items():
        part.training = mode
    return torch.stack([term.float() for term in terms.values()]).sum()


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


def unshared_parameters(shared: nn.Module, loss: object) -> list[nn.Parameter]:
    """Parameters whose gradients `shared` does not exchange: a loss's own, and under FSDP2 those that are whole."""
    parameters = list(loss.parameters()) if isinstance(loss, nn.Module) else []
    if is_sharded(shared):
        parameters += [parameter for parameter in shared.parameters() if type(parameter) is nn.Parameter]
    return [parameter for parameter in parameters if parameter.requires_grad]


def average_gradients(parameters: Iterable[nn.Parameter], world_size: int) -> None:
    """Mean over workers of gradients that nothing else exchanges."""
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
    # It cannot cut a scalar (a logit scale); see `unshared_parameters`.
    scalars = {parameter for parameter in module.parameters() if parameter.dim() == 0}
    for part in module.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                fully_shard(block, mesh=mesh, ignored_params=scalars)
    fully_shard(module, mesh=mesh, ignored_params=scalars)
    return module
