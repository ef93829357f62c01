"""A quantized model comes back from its record and its plain tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from limbeck.api.v1alpha1.compression import Quantize
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.errors import ArchitectureError, WeightsError
from limbeck_runtime.quantization import EDITS, apply_edit, load_edited_weights, quantize

Make = Callable[..., dict[str, torch.Tensor]]


def through_a_file(bundle: ModelBundle) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The edit as JSON has it, and the state as safetensors has it, what is shared only once."""
    state, seen = {}, set()
    for name, tensor in bundle.module.state_dict().items():
        if tensor.data_ptr() not in seen:
            state[name] = tensor.contiguous()
            seen.add(tensor.data_ptr())
    edit: dict[str, Any] = json.loads(json.dumps(bundle.architecture.edits[0]))
    return edit, load(save(state))


@pytest.mark.parametrize("activations", ["None", "Dynamic", "Static"])
@pytest.mark.parametrize("name", ["mixed", "tied"])
def test_a_rebuilt_model_answers_bit_for_bit_the_same(
    request: pytest.FixtureRequest, fresh: Any, inputs: Make, answer: Any, wrap: Any, name: str, activations: str
) -> None:
    bundle: ModelBundle = request.getfixturevalue(name)
    quantized, _ = quantize(bundle, Quantize.model_validate({"activations": activations}), [inputs()])
    edit, state = through_a_file(quantized)
    rebuilt = EDITS[edit["kind"]](fresh[name](), edit)
    load_edited_weights(rebuilt, state)
    assert answer(wrap(rebuilt), inputs(seed=5)).equal(answer(quantized, inputs(seed=5)))


def test_an_edit_of_another_version_or_model_is_refused(mixed: ModelBundle, fresh: Any, inputs: Make) -> None:
    quantized, _ = quantize(mixed, Quantize(), [inputs()])
    edit = dict(quantized.architecture.edits[0])
    with pytest.raises(ArchitectureError, match="must have version 1, got 2"):
        apply_edit(fresh["mixed"](), edit | {"version": 2})
    with pytest.raises(ArchitectureError, match="must exist in its model, got 'stem'"):
        apply_edit(fresh["tied"](), edit | {"layers": [{**edit["layers"][1]}]})
    with pytest.raises(ArchitectureError, match="cannot be replayed"):
        apply_edit(fresh["mixed"](), edit | {"layers": [{"path": "stem"}]})


def test_float_weights_are_not_rounded_into_int8_layers_without_a_word(mixed: ModelBundle, fresh: Any) -> None:
    quantized, _ = quantize(mixed, Quantize.model_validate({"activations": "None"}))
    edit, state = through_a_file(quantized)
    state["head.weight_int8"] = state["head.weight_int8"].float()
    with pytest.raises(WeightsError, match=r"head.weight_int8 is torch.float32 instead of torch.int8"):
        load_edited_weights(apply_edit(fresh["mixed"](), edit), state)
    del state["head.weight_int8"]
    with pytest.raises(WeightsError, match=r"missing head.weight_int8"):
        load_edited_weights(apply_edit(fresh["mixed"](), edit), state)
