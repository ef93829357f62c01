"""What is trained and how: frozen parameters, groups for AdamW, averaged weights.

Parameters with fewer than two dimensions (norms, biases, logit scales) do not decay.
AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
Left out on purpose: other optimisers, and decay of the rate by depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
# In the first steps the average follows the weights more closely, or it would remember the start for long.
_AVERAGE_WARMUP_STEPS = 10


def freeze(module: nn.Module, patterns: Sequence[str]) -> None:
    """Switch off gradients of the parameters whose names match; raises ValueError if a pattern matches none."""
    names = [name for name, _ in module.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"`freeze` must match parameters, got {pattern!r} that matches none of {_some(names)}; correct it"
            )
    for name, parameter in module.named_parameters():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in module.parameters()):
        raise ValueError(f"`freeze` must leave something to train, got {list(patterns)}; remove a pattern")


def enter_training(module: nn.Module) -> None:
    """Training mode, except for parts whose parameters are all frozen: no dropout, no moving statistics there."""
    module.train()
    for part in module.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            part.eval()


def trained_parameters(module: nn.Module, loss: object) -> dict[str, nn.Parameter]:
    """Parameters that train, by name: `model/...`, and `loss/...` where the loss is itself a module."""
    owners = {"model": module} | ({"loss": loss} if isinstance(loss, nn.Module) else {})
    return {
        f"{owner}/{name}": parameter
        for owner, part in owners.items()
        for name, parameter in part.named_parameters()
        if parameter.requires_grad
    }


def adamw(
    parameters: Mapping[str, nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    learning_rates: Sequence[tuple[str, float]] = (),
    *,
    fused: bool,
) -> torch.optim.AdamW:
    """AdamW over groups that share a rate and a decay; `highest_rate` of each group is its own.

    `learning_rates` are (pattern of the model's names, rate), the first match counts, all others take
    `learning_rate`. State exists from the start, so that what a checkpoint holds never changes its form.
    """
    for pattern, _ in learning_rates:
        if not any(fnmatchcase(name, f"model/{pattern}") for name in parameters):
            raise ValueError(
                f"`headLearningRate` must be for parameters that train, got {pattern!r} that matches none of "
                f"{_some([name.removeprefix('model/') for name in parameters])}; remove it from `freeze`"
            )
    groups: dict[tuple[float, float, type], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        matching = (rate for pattern, rate in learning_rates if fnmatchcase(name, f"model/{pattern}"))
        decay = weight_decay if parameter.dim() > 1 else 0.0
        # By type too: torch's loops over many tensors at once cannot mix sharded and whole ones.
        key = (next(matching, learning_rate), decay, type(parameter))
        groups.setdefault(key, []).append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": members, "lr": rate, "highest_rate": rate, "weight_decay": decay}
            for (rate, decay, _), members in groups.items()
        ],
        betas=_BETAS,
        eps=_EPSILON,
        fused=fused,
    )
    for parameter in parameters.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group to its highest rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["highest_rate"] * factor


class WeightAverage:
    """Exponential moving average of parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters.values())
        self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after update number `step` (1 is the first)."""
        decay = min(self._decay, step / (step + _AVERAGE_WARMUP_STEPS))
        if all(type(parameter) is nn.Parameter for parameter in self._parameters):
            torch._foreach_lerp_(list(self.tensors.values()), [p.detach() for p in self._parameters], 1 - decay)
            return
        for average, parameter in zip(self.tensors.values(), self._parameters, strict=True):
            average.lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Make the averages the weights."""
        for parameter, average in zip(self._parameters, self.tensors.values(), strict=True):
            parameter.copy_(average)


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
