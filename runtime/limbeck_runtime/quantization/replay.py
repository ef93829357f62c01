"""The record of a quantization, and how a rebuilt model takes it on again: shapes first, then the stored weights.

Left out on purpose: other edits (pruning, low rank), which their own packages will replay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from limbeck_runtime.models.errors import ArchitectureError, WeightsError
from limbeck_runtime.models.weights import load_weights
from limbeck_runtime.quantization import folding
from limbeck_runtime.quantization.conversion import LayerPlan, convert
from limbeck_runtime.quantization.errors import QuantizationError

if TYPE_CHECKING:
    import torch
    from torch import nn

KIND = "quantize"
VERSION = 1


def edit_of(plans: Sequence[LayerPlan]) -> dict[str, Any]:
    """The edit that an architecture record holds."""
    return {"kind": KIND, "version": VERSION, "layers": [plan.to_record() for plan in plans]}


def apply_edit(module: nn.Module, edit: Mapping[str, Any]) -> nn.Module:
    """`module` with int8 layers where the edit says, their weights still to be loaded. Raises ArchitectureError."""
    if edit.get("version") != VERSION:
        raise ArchitectureError(
            f"a quantize edit must have version {VERSION}, got {edit.get('version')}; read the model with the "
            "limbeck that wrote it"
        )
    try:
        plans = [LayerPlan.from_record(record) for record in edit["layers"]]
        return convert(module, plans)
    except (KeyError, TypeError, ValueError, QuantizationError) as error:
        raise ArchitectureError(f"a quantize edit cannot be replayed: {error}") from error


def load_edited_weights(module: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Strict load into a module with int8 layers. Raises WeightsError.

    What two layers share need only be there once.
    """
    own = module.state_dict()
    names_of = _names_by_memory(own)
    for names in names_of.values():
        present = next((name for name in names if name in state), None)
        if present is not None:
            state = {**{name: state[present] for name in names}, **state}
    wrong = [
        f"{name} is {state[name].dtype} instead of {tensor.dtype}"
        for name, tensor in own.items()
        if name in state and state[name].dtype != tensor.dtype
    ]
    if wrong:  # copying would round or widen without a word
        raise WeightsError(f"the weights do not fit the architecture: {'; '.join(wrong[:5])}")
    load_weights(module, state, where="the quantized model")


def _names_by_memory(state: Mapping[str, torch.Tensor]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, tensor in state.items():
        if tensor.numel():
            found.setdefault(tensor.data_ptr(), []).append(name)
    return {pointer: names for pointer, names in found.items() if len(names) > 1}


EDITS: dict[str, Callable[[nn.Module, Mapping[str, Any]], nn.Module]] = {
    folding.KIND: folding.apply_edit,
    KIND: apply_edit,
}
