"""A pruned model is rebuilt exactly, exported, and brought back bit for bit; its record says what went."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limbeck.api.prune_record import PruneRecord
from limbeck.api.v1alpha1.compression import Prune, PruneUnit, Quantize
from limbeck_runtime.evaluation.cost import count_macs
from limbeck_runtime.export.bundle_directory import write_bundle
from limbeck_runtime.models.bundle import ModelBundle, weights_identity
from limbeck_runtime.models.limbeck_loader import load_bundle
from limbeck_runtime.pruning.errors import PruningError
from limbeck_runtime.pruning.holding import held_names
from limbeck_runtime.pruning.pruning import Pruned, prune, warnings_for
from limbeck_runtime.pruning.scores import Evidence
from limbeck_runtime.pruning.undo import undo
from limbeck_runtime.quantization import quantize

EVERYTHING = [unit.value for unit in PruneUnit]
MODELS = ["bert", "clip", "llama", "gpt2", "resnet", "vit", "mobilenet"]


@pytest.fixture
def run(
    make_bundle: Callable[..., ModelBundle],
    make_inputs: Callable[..., Any],
    make_evidence: Callable[..., Evidence],
) -> Callable[..., tuple[ModelBundle, Pruned]]:
    """Prunes the model of a name; gives it as it was and what came out."""

    def run_it(name: str, **wanted: Any) -> tuple[ModelBundle, Pruned]:
        before = make_bundle(name)
        pruned = prune(before, Prune.model_validate(wanted), make_inputs(name), make_evidence(name))
        return before, pruned

    return run_it


def _same(first: ModelBundle, second: ModelBundle, inputs: Any) -> bool:
    with torch.no_grad():
        one, other = first.module(dict(inputs)), second.module(dict(inputs))
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", MODELS)
def test_a_thinner_network_is_rebuilt_from_its_record_and_brought_back(
    name: str, run: Callable[..., tuple[ModelBundle, Pruned]], make_inputs: Callable[..., Any], tmp_path: Path
) -> None:
    before, pruned = run(name, method="Taylor", sparsityPercent=34, rounds=2, units=EVERYTHING)
    assert pruned.bundle.num_parameters() == pruned.record.parameters_after < before.num_parameters()
    write_bundle(pruned.bundle, tmp_path)
    again = load_bundle(tmp_path)
    assert again.identity() == pruned.bundle.identity()
    assert _same(again, pruned.bundle, make_inputs(name))
    record = PruneRecord.model_validate_json(pruned.record.to_json())
    back = undo(again, record, pruned.removed)
    assert weights_identity(back.module) == weights_identity(before.module)
    assert back.architecture == before.architecture
    assert _same(back, before, make_inputs(name))


@pytest.mark.parametrize("wanted", [
    {"granularity": "Unstructured", "sparsityPercent": 60, "rounds": 3, "schedule": "Cubic", "method": "Wanda"},
    {"granularity": "Unstructured", "sparsityPercent": 60, "scope": "Global", "method": "L1"},
    {"granularity": "TwoFour", "sparsityPercent": 50, "method": "Fisher"},
])  # fmt: skip
@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet"])
def test_zeros_are_counted_kept_in_the_file_and_taken_back(
    name: str, wanted: dict[str, Any], run: Callable[..., tuple[ModelBundle, Pruned]], tmp_path: Path
) -> None:
    before, pruned = run(name, **wanted)
    record = pruned.record
    assert record.sparsity_percent == pytest.approx(wanted["sparsityPercent"], abs=2)
    assert record.zeros_after == sum(layer.removed for layer in record.layers)
    assert (record.parameters_after, record.macs_after) == (record.parameters_before, record.macs_before)
    write_bundle(pruned.bundle, tmp_path)
    again = load_bundle(tmp_path)
    assert set(held_names(again.architecture.edits)) == {layer.name for layer in record.layers}
    assert weights_identity(undo(again, record, pruned.removed).module) == weights_identity(before.module)


@pytest.mark.parametrize("scope", ["Layer", "Global"])
@pytest.mark.parametrize("target", ["parameterPercent", "macPercent"])
def test_a_target_in_parameters_or_operations_is_met_and_not_far_exceeded(
    target: str, scope: str, run: Callable[..., tuple[ModelBundle, Pruned]], make_inputs: Callable[..., Any]
) -> None:
    before, pruned = run("resnet", method="L2", scope=scope, units=EVERYTHING, **{target: 60})
    record = pruned.record
    inputs = make_inputs("resnet")
    assert record.macs_after == count_macs(pruned.bundle.module, inputs)
    assert record.macs_before == count_macs(before.module, inputs)
    reached = {
        "parameterPercent": record.parameters_after / record.parameters_before,
        "macPercent": record.macs_after / record.macs_before,
    }[target]
    assert 0.5 < reached <= 0.6


def test_a_target_that_cannot_be_reached_is_refused_by_its_field(run: Callable[..., Any]) -> None:
    with pytest.raises(PruningError, match=r"`prune\.parameterPercent` must be something that removing units can"):
        run("bert", method="L1", parameterPercent=5)


def test_rounds_end_at_the_whole_share_whatever_their_number(run: Callable[..., tuple[ModelBundle, Pruned]]) -> None:
    once = run("bert", method="L1", sparsityPercent=50)[1].record
    often = run("bert", method="L1", sparsityPercent=50, rounds=4)[1].record
    assert [len(space.removed) for space in often.spaces] == [len(space.removed) for space in once.spaces]
    assert [round(entry.sparsity_percent) for entry in often.rounds] == sorted(
        round(entry.sparsity_percent) for entry in often.rounds
    )


def test_the_units_that_went_are_those_with_the_lowest_scores(run: Callable[..., tuple[ModelBundle, Pruned]]) -> None:
    for space in run("vit", method="Fisher", sparsityPercent=30)[1].record.spaces:
        gone = [space.scores[unit] for unit in space.removed]
        stayed = [score for unit, score in enumerate(space.scores) if unit not in space.removed]
        assert not gone or max(gone) <= min(stayed)


def test_training_in_between_is_handed_the_pruned_model_and_can_still_be_undone(
    make_bundle: Callable[..., ModelBundle], make_inputs: Callable[..., Any]
) -> None:
    before, seen = make_bundle("bert"), []

    def recover(bundle: ModelBundle, number: int) -> ModelBundle:
        seen.append((number, bundle.num_parameters()))
        with torch.no_grad():
            for parameter in bundle.module.parameters():
                parameter.mul_(1.1)
        return bundle

    wanted = Prune.model_validate({"method": "L1", "sparsityPercent": 40, "rounds": 2})
    pruned = prune(before, wanted, make_inputs("bert"), recover=recover)
    assert [number for number, _ in seen] == [1, 2]
    assert seen[0][1] > seen[1][1] == pruned.record.parameters_after
    back = undo(pruned.bundle, pruned.record, pruned.removed)
    assert weights_identity(back.module) == weights_identity(before.module)


def test_a_model_that_was_changed_since_is_not_undone(run: Callable[..., tuple[ModelBundle, Pruned]]) -> None:
    _, pruned = run("bert", method="L1", sparsityPercent=30)
    with torch.no_grad():
        next(pruned.bundle.module.parameters()).add_(1)
    with pytest.raises(PruningError, match="must be as step prune left it"):
        undo(pruned.bundle, pruned.record, pruned.removed)


@pytest.mark.parametrize("name", ["bert", "clip", "resnet"])
def test_a_pruned_model_is_quantized_and_rebuilt(
    name: str, run: Callable[..., tuple[ModelBundle, Pruned]], make_inputs: Callable[..., Any], tmp_path: Path
) -> None:
    _, thin = run(name, method="L1", sparsityPercent=30)
    sparse = prune(
        thin.bundle,
        Prune.model_validate({"method": "L1", "granularity": "Unstructured", "sparsityPercent": 50}),
        make_inputs(name),
    )
    int8, _ = quantize(sparse.bundle, Quantize.model_validate({"activations": "None"}))
    write_bundle(int8, tmp_path)
    again = load_bundle(tmp_path)
    assert _same(again, int8, make_inputs(name))
    for layer in sparse.record.layers:
        integers = again.module.get_submodule(layer.name.removesuffix(".weight")).weight_int8
        assert int((integers == 0).sum()) >= layer.removed


def test_a_quantized_model_is_refused(make_bundle: Callable[..., ModelBundle], make_inputs: Callable[..., Any]) -> None:
    int8, _ = quantize(make_bundle("bert"), Quantize.model_validate({"activations": "None"}))
    wanted = Prune.model_validate({"method": "L1", "sparsityPercent": 30})
    with pytest.raises(PruningError, match="must come before quantization"):
        prune(int8, wanted, make_inputs("bert"))


@pytest.mark.parametrize("granularity", ["Structured", "Unstructured"])
def test_scores_that_are_not_numbers_are_refused(
    granularity: str, make_bundle: Callable[..., ModelBundle], make_inputs: Callable[..., Any]
) -> None:
    bundle = make_bundle("embedder")
    evidence = Evidence([make_inputs("embedder")], lambda outputs, _place: outputs["text_embedding"].sum() * torch.nan)
    wanted = Prune.model_validate({"method": "Taylor", "granularity": granularity, "sparsityPercent": 30})
    with pytest.raises(PruningError, match="must give finite scores"):
        prune(bundle, wanted, make_inputs("embedder"), evidence)


def test_zeros_of_a_step_before_stay_zeros_and_count(
    run: Callable[..., tuple[ModelBundle, Pruned]], make_inputs: Callable[..., Any], make_evidence: Callable[..., Any]
) -> None:
    _, first = run("bert", method="L1", granularity="Unstructured", sparsityPercent=40)
    wanted = Prune.model_validate({"method": "Taylor", "granularity": "Unstructured", "sparsityPercent": 60})
    second = prune(first.bundle, wanted, make_inputs("bert"), make_evidence("bert"))
    for layer in first.record.layers:
        before = first.bundle.module.get_parameter(layer.name)
        after = second.bundle.module.get_parameter(layer.name)
        assert bool((after[before == 0] == 0).all())
    assert second.record.sparsity_percent == pytest.approx(60, abs=1)
    assert len(second.bundle.architecture.edits) == 1


def test_a_layer_that_goes_takes_its_place_in_the_list_of_zeros(
    run: Callable[..., tuple[ModelBundle, Pruned]], make_inputs: Callable[..., Any]
) -> None:
    _, sparse = run("bert", method="L1", granularity="Unstructured", sparsityPercent=40)
    wanted = Prune.model_validate({"method": "Random", "sparsityPercent": 34, "units": ["Layers"]})
    shorter = prune(sparse.bundle, wanted, make_inputs("bert"))
    names = held_names(shorter.bundle.architecture.edits)
    parameters = dict(shorter.bundle.module.named_parameters())
    assert {name.split(".")[4] for name in names if "layer" in name} == {"0", "1"}
    assert all((parameters[name] == 0).sum() > 0 for name in names)


def test_what_does_not_recover_or_speed_up_is_said_beforehand() -> None:
    def notes(**wanted: Any) -> str:
        return " ".join(warnings_for(Prune.model_validate({"method": "L1", **wanted})))

    assert "60% of what is there goes in one round" in notes(sparsityPercent=60)
    assert "goes in one round" not in notes(sparsityPercent=50, rounds=2, recover={"finetune": {}})
    assert "no model faster" in notes(granularity="Unstructured", sparsityPercent=30)
    assert "only rank again" in notes(sparsityPercent=30, rounds=2)


@settings(max_examples=12, deadline=None)
@given(share=st.integers(5, 90), rounds=st.integers(1, 3), scope=st.sampled_from(["Layer", "Global"]),
       name=st.sampled_from(["bert", "resnet", "llama"]), method=st.sampled_from(["L1", "L2", "Random"]))  # fmt: skip
def test_any_share_in_any_rounds_can_be_undone(
    share: int, rounds: int, scope: str, name: str, method: str,
    make_bundle: Callable[..., ModelBundle], make_inputs: Callable[..., Any],
) -> None:  # fmt: skip
    before = make_bundle(name)
    wanted = Prune.model_validate(
        {"method": method, "sparsityPercent": share, "rounds": rounds, "scope": scope, "units": EVERYTHING}
    )
    pruned = prune(before, wanted, make_inputs(name))
    back = undo(pruned.bundle, pruned.record, pruned.removed)
    assert weights_identity(back.module) == weights_identity(before.module)
