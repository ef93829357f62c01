"""All that a training run changes, as named tensors: what a checkpoint holds and a resumed run takes in.

Frozen parameters are not part of it: whoever builds the model builds them the same again, which the
fingerprint of a run's settings and inputs stands for. Random numbers are not part of it either: each step seeds
its own from (seed, step, rank), see loop.py, so that a position tells all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from limbeck_runtime.student.image import TensorImage
from limbeck_runtime.student.optimization import WeightAverage


@dataclass(frozen=True)
class TrainingState:
    """Live tensors of a run: trained parameters, buffers, the optimiser's moments, averaged weights."""

    parameters: Mapping[str, nn.Parameter]
    buffers: Mapping[str, torch.Tensor]
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    sharded: bool = False  # whether each worker holds a part of every tensor

    def updated(self) -> dict[str, torch.Tensor]:
        """What an update of the optimiser changes and nothing else does."""
        tensors: dict[str, torch.Tensor] = dict(self.parameters)
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{key}/{name}"] = value
        if self.average is not None:
            tensors |= {f"average/{name}": value for name, value in self.average.tensors.items()}
        return tensors

    def all(self) -> dict[str, torch.Tensor]:
        """Everything: what updates change, and buffers, which the forward pass changes."""
        return {**self.updated(), **self.buffers}

    @torch.no_grad()
    def restore(self, image: TensorImage) -> None:
        """Take in a snapshot of the same form."""
        assign = _assign_shard if self.sharded else torch.Tensor.copy_
        for name, tensor in self.all().items():
            assign(tensor, image.views[name])


def persistent_buffers(module: nn.Module, loss: object) -> dict[str, torch.Tensor]:
    """Buffers that belong to the weights (running statistics and the like), by name as parameters are."""
    owners = {"model": module} | ({"loss": loss} if isinstance(loss, nn.Module) else {})
    buffers: dict[str, torch.Tensor] = {}
    for owner, part in owners.items():
        saved = part.state_dict().keys()
        buffers |= {f"{owner}/{name}": buffer for name, buffer in part.named_buffers() if name in saved}
    return buffers


def whole_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with the parts of sharded tensors put together; all workers must call it at once."""
    from torch.distributed.tensor import DTensor  # costs seconds to import

    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}


def load_weights(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put a run's result (`TrainResult.weights`) into a module built the same way."""
    result = module.load_state_dict(dict(weights), strict=False)
    if result.unexpected_keys:
        raise ValueError(
            f"trained weights must fit the model, got {result.unexpected_keys[:3]} that it does not have; "
            "build it as the workers did"
        )


def _assign_shard(tensor: torch.Tensor, value: torch.Tensor) -> None:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(tensor, DTensor):
        value = value.to(tensor.device)
        # Every worker holds the whole value already: without a source nothing is sent.
        value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)
