"""Cutting does what torch-pruning does, and a record that does not fit its model is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from limbeck.api.v1alpha1.compression import PruneUnit
from limbeck_runtime.models.edits import apply_edits
from limbeck_runtime.models.errors import ArchitectureError
from limbeck_runtime.pruning.cutting import KIND, cut, edit_of
from limbeck_runtime.pruning.discovery import find_spaces
from limbeck_runtime.pruning.holding import edit_of as hold_edit
from limbeck_runtime.pruning.holding import held_names


def test_the_same_weights_stay_as_when_torch_pruning_cuts(
    make_bundle: Callable[..., Any], make_inputs: Callable[..., Any]
) -> None:
    import torch_pruning

    module, inputs = make_bundle("resnet").module, make_inputs("resnet")
    spaces = find_spaces(module, inputs, [PruneUnit.CHANNELS, PruneUnit.RESIDUAL_WIDTH], []).spaces
    for space in spaces:
        ours, theirs = copy.deepcopy(module), copy.deepcopy(module)
        cut(ours, {space: torch.tensor([0, 3])})
        graph = torch_pruning.DependencyGraph()
        graph.build_dependency(theirs, inputs, forward_fn=lambda network, given: network(given))
        layer = theirs.get_submodule(space.name)
        graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, [0, 3]).prune()
        expected = theirs.state_dict()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, expected[name]), (space.name, name)


@pytest.mark.parametrize(
    "edit",
    [
        {"kind": KIND, "version": 99},
        edit_of({"nothing.weight": (3, 3)}, {}),
        edit_of({}, {"text": {"forward": 3}}),
        edit_of({}, {"text": {"num_heads": 3}}),
        edit_of({}, {}, {"text.network.encoder.layer": [7]}),
        edit_of({}, {}, {"text": [0]}),
        hold_edit(["nothing.weight"]),
    ],
)
def test_a_record_that_does_not_fit_is_refused(edit: dict[str, Any], make_bundle: Callable[..., Any]) -> None:
    with pytest.raises(ArchitectureError):
        apply_edits(make_bundle("bert").module, [edit])


def test_zeros_are_held_under_the_names_that_layers_have_after_others_went() -> None:
    held = hold_edit(["stack.0.weight", "stack.2.weight", "head.weight"])
    dropped = edit_of({}, {}, {"stack": [1, 2]})
    assert held_names([held, dropped]) == ("head.weight", "stack.1.weight")
    assert held_names([]) == ()
