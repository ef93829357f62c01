"""Each criterion against an independent reference: torch's or torch-pruning's own, or plain float64 arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

from limbeck.api.v1alpha1.compression import Criterion, PruneScope, PruneUnit
from limbeck_runtime.pruning.cutting import named_tensors, silence
from limbeck_runtime.pruning.discovery import find_spaces
from limbeck_runtime.pruning.scores import Evidence, unit_scores, weight_scores
from limbeck_runtime.pruning.sparsity import find_weights, lowest_weights, two_of_four

WIDTHS = [PruneUnit.CHANNELS, PruneUnit.MLP_WIDTH]


def _names(module: nn.Module) -> tuple[str, ...]:
    return find_weights(module, []).names


@pytest.mark.parametrize(("criterion", "power"), [(Criterion.L1, 1), (Criterion.L2, 2)])
@pytest.mark.parametrize("name", ["resnet", "bert"])
def test_magnitudes_of_units_are_torch_pruning_s(
    name: str, criterion: Criterion, power: int, make_bundle: Callable[..., Any], make_inputs: Callable[..., Any]
) -> None:
    import torch_pruning

    module, inputs = make_bundle(name).module, make_inputs(name)
    spaces = find_spaces(module, inputs, WIDTHS, []).spaces
    ours = unit_scores(module, spaces, criterion, Evidence())
    graph = torch_pruning.DependencyGraph()
    graph.build_dependency(module, inputs, forward_fn=lambda network, given: network(given))
    importance = torch_pruning.importance.MagnitudeImportance(p=power)
    for space, scores in ours.items():
        layer: Any = module.get_submodule(space.name)
        function = torch_pruning.prune_conv_out_channels
        if isinstance(layer, nn.Linear):
            function = torch_pruning.prune_linear_out_channels
        group = graph.get_pruning_group(layer, function, list(range(space.num_units)))
        torch.testing.assert_close(scores, importance(group).double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scope", PruneScope)
def test_unstructured_magnitude_takes_what_torch_takes(scope: PruneScope, make_bundle: Callable[..., Any]) -> None:
    module = make_bundle("resnet").module
    names = _names(module)
    masks = lowest_weights(weight_scores(module, names, Criterion.L1, Evidence()), 0.4, scope)
    theirs = copy.deepcopy(module)
    layers = [(theirs.get_submodule(name.removesuffix(".weight")), "weight") for name in names]
    if scope is PruneScope.GLOBAL:
        torch_prune.global_unstructured(layers, pruning_method=torch_prune.L1Unstructured, amount=0.4)
    else:
        for layer, weight in layers:
            torch_prune.l1_unstructured(layer, weight, amount=0.4)
    for name, (layer, _) in zip(names, layers, strict=True):
        assert torch.equal(masks[name], layer.weight_mask == 0), name


def test_two_of_four_keeps_the_two_largest_of_each_four() -> None:
    scores = torch.tensor([[1.0, 4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 9.0]])
    assert two_of_four(scores, 1).tolist() == [[True, False, False, True, False, True, True, False]]
    convolution = torch.rand(3, 8, 2, 2)
    mask = two_of_four(convolution, 1)
    fours = mask.movedim(1, -1).reshape(-1, 4).sum(1)
    assert torch.equal(fours, torch.full_like(fours, 2))


def _gradients(module: nn.Module, evidence: Evidence) -> list[dict[str, torch.Tensor]]:
    """One backward pass for each batch, in float64, by a plain loop."""
    assert evidence.loss is not None
    network = copy.deepcopy(module).double().eval()
    found = []
    for place, batch in enumerate(evidence.batches):
        network.zero_grad()
        given = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
        evidence.loss(network(given), place).backward()
        found.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
    return found


@pytest.mark.parametrize("criterion", [Criterion.TAYLOR, Criterion.FISHER])
def test_gradient_scores_of_weights_are_the_formulas(
    criterion: Criterion, make_bundle: Callable[..., Any], make_evidence: Callable[..., Evidence]
) -> None:
    module, evidence = make_bundle("vit").module, make_evidence("vit")
    names = _names(module)
    scores = weight_scores(module, names, criterion, evidence)
    gradients = _gradients(module, evidence)
    tensors = named_tensors(module)
    for name in names:
        products = [tensors[name].detach().double() * batch[name] for batch in gradients]
        changes = [p.abs() if criterion is Criterion.TAYLOR else p * p / 2 for p in products]
        expected = torch.stack(changes).mean(0)
        torch.testing.assert_close(scores[name].double(), expected, rtol=1e-3, atol=1e-5 * float(expected.max()))


def test_a_unit_s_taylor_score_is_the_slope_of_the_loss_as_it_fades(
    make_bundle: Callable[..., Any], make_inputs: Callable[..., Any], make_evidence: Callable[..., Evidence]
) -> None:
    """Finite differences: scale what reads one unit by 1 - e and look at the loss."""
    module, evidence = make_bundle("bert").module, make_evidence("bert")
    spaces = find_spaces(module, make_inputs("bert"), [PruneUnit.HEADS, PruneUnit.MLP_WIDTH], []).spaces
    scores = unit_scores(module, spaces, Criterion.TAYLOR, evidence)
    assert evidence.loss is not None
    space = spaces[0]
    slopes = []
    for unit in range(space.num_units):
        changes = []
        for place, batch in enumerate(evidence.batches):
            losses = []
            for step in (2e-3, -2e-3):
                network = copy.deepcopy(module).double()
                silent = copy.deepcopy(network)
                silence(silent, {space: torch.tensor([unit])})
                with torch.no_grad():
                    for own, gone in zip(network.parameters(), silent.parameters(), strict=True):
                        own.lerp_(gone, step)
                losses.append(float(evidence.loss(network(dict(batch)), place).detach()))
            changes.append(abs(losses[0] - losses[1]) / 4e-3)
        slopes.append(sum(changes) / len(changes))
    expected = torch.tensor(slopes, dtype=torch.float64)
    torch.testing.assert_close(scores[space], expected / expected.mean(), rtol=2e-2, atol=1e-2)


def test_wanda_is_the_weight_times_the_norm_of_what_it_reads(
    make_bundle: Callable[..., Any], make_evidence: Callable[..., Evidence]
) -> None:
    module, evidence = make_bundle("bert").module, make_evidence("bert")
    name = "text.network.encoder.layer.1.output.dense.weight"
    read: list[torch.Tensor] = []
    layer = module.get_submodule(name.removesuffix(".weight"))
    handle = layer.register_forward_pre_hook(lambda _own, given: read.append(given[0].detach().double()))
    with torch.no_grad():
        for batch in evidence.batches:
            module(dict(batch))
    handle.remove()
    norms = torch.cat([value.reshape(-1, value.shape[-1]) for value in read]).norm(dim=0)
    scores = weight_scores(module, [name], Criterion.WANDA, evidence)[name]
    torch.testing.assert_close(scores.double(), layer.weight.detach().double().abs() * norms, rtol=1e-5, atol=1e-6)
    masks = lowest_weights({name: scores}, 0.5, PruneScope.LAYER, {name: 0})
    rows = masks[name].sum(1)
    assert torch.equal(rows, torch.full_like(rows, 24))


def test_a_depthwise_convolution_reads_its_own_channel_alone() -> None:
    class Depthwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, groups=3, bias=False)

        def forward(self, inputs: Any) -> Any:
            return {"logits": self.conv(inputs["pixel_values"]).mean((2, 3))}

    module = Depthwise()
    batch = {"pixel_values": torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)}
    scores = weight_scores(module, ["conv.weight"], Criterion.WANDA, Evidence([batch]))["conv.weight"]
    expected = module.conv.weight.detach().abs().reshape(-1) * torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(scores.reshape(-1), expected)


def test_random_scores_follow_from_the_seed_alone(make_bundle: Callable[..., Any]) -> None:
    module = make_bundle("resnet").module
    names = _names(module)[:1]
    first, again, other = (
        weight_scores(module, names, Criterion.RANDOM, Evidence(seed=seed))[names[0]] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_collecting_gradients_leaves_the_model_as_it_was(
    make_bundle: Callable[..., Any], make_evidence: Callable[..., Evidence]
) -> None:
    module, evidence = make_bundle("clip").module, make_evidence("clip")
    module.image.requires_grad_(False)
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in module.named_parameters()}
    weight_scores(module, _names(module), Criterion.TAYLOR, evidence)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert (parameter.requires_grad, parameter.grad) == (before[name][1], None)
