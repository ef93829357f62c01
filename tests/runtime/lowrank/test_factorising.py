"""Factorised models: as small as asked, rebuilt exactly, merged back, trained, pruned, quantized and exported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from limbeck.api.v1alpha1.compression import LowRank, Prune, Quantize
from limbeck_runtime.evaluation.cost import count_macs
from limbeck_runtime.export.bundle_directory import write_bundle
from limbeck_runtime.lowrank import Factorised, LowRankError, factorise, merge
from limbeck_runtime.lowrank.layers import LowRankConv, LowRankLinear, factorised, fill, matrix_of, merged
from limbeck_runtime.lowrank.moments import second_moments
from limbeck_runtime.lowrank.svd import spectrum
from limbeck_runtime.models.bundle import Architecture, ModelBundle, weights_identity
from limbeck_runtime.models.edits import apply_edits
from limbeck_runtime.models.errors import ArchitectureError
from limbeck_runtime.models.limbeck_loader import load_bundle
from limbeck_runtime.models.preprocessing import Preprocessing
from limbeck_runtime.pruning.errors import PruningError
from limbeck_runtime.pruning.holding import held_names
from limbeck_runtime.pruning.pruning import prune
from limbeck_runtime.quantization import quantize

MODELS = ["bert", "clip", "llama", "gpt2", "resnet", "vit", "mobilenet"]
MakeBundle = Callable[[str], ModelBundle]
MakeInputs = Callable[..., dict[str, torch.Tensor]]
Run = Callable[..., tuple[ModelBundle, Factorised]]


@pytest.fixture
def run(make_bundle: MakeBundle, make_inputs: MakeInputs) -> Run:
    """Factorises the model of a name; gives it as it was and what came out."""

    def run_it(name: str, **wanted: Any) -> tuple[ModelBundle, Factorised]:
        before = make_bundle(name)
        batches = [make_inputs(name, seed=seed) for seed in (3, 4)]
        return before, factorise(before, LowRank.model_validate(wanted), batches)

    return run_it


def _answers(bundle: ModelBundle, inputs: Any) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        outputs: dict[str, torch.Tensor] = bundle.module(dict(inputs))
    return outputs


def _same(first: ModelBundle, second: ModelBundle, inputs: Any) -> bool:
    one, other = _answers(first, inputs), _answers(second, inputs)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wanted", [{"rank": 4}, {"energyPercent": 60}, {"parameterPercent": 60}], ids=str)
def test_a_factorised_network_is_smaller_and_rebuilt_exactly_from_its_record(
    name: str, wanted: dict[str, int], run: Run, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    before, made = run(name, **wanted)
    identity = weights_identity(before.module)
    assert made.bundle.num_parameters() == made.record.parameters_after < made.record.parameters_before
    assert made.record.parameters_before == before.num_parameters()
    saved = sum(layer.parameters_before - layer.parameters_after for layer in made.record.layers)
    assert made.record.parameters_before - made.record.parameters_after == saved
    inputs = make_inputs(name, seed=9)
    assert count_macs(made.bundle.module, inputs) < count_macs(before.module, inputs)
    write_bundle(made.bundle, tmp_path)
    again = load_bundle(tmp_path)
    assert _same(made.bundle, again, inputs)
    assert weights_identity(before.module) == identity


@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet", "vit"])
@pytest.mark.parametrize("aware", [True, False])
def test_factors_of_nearly_full_rank_answer_as_the_network_did(
    name: str, aware: bool, make_bundle: MakeBundle, make_inputs: MakeInputs
) -> None:
    """Weights that are of rank 3 lose nothing at rank 3."""
    bundle = make_bundle(name)
    with torch.no_grad():
        for layer in bundle.module.modules():
            weight = getattr(layer, "weight", None)
            if isinstance(layer, nn.Linear | nn.Conv2d) or type(layer).__name__ == "Conv1D":
                assert isinstance(weight, nn.Parameter)
                flat = weight.reshape(len(weight), -1)
                left, sizes, right = torch.linalg.svd(flat, full_matrices=False)
                weight.copy_(((left[:, :3] * sizes[:3]) @ right[:3]).reshape(weight.shape))
    inputs = make_inputs(name, count=16)
    made = factorise(bundle, LowRank.model_validate({"rank": 3, "dataAware": aware}), [inputs])
    expected = _answers(bundle, inputs)
    for key, value in _answers(made.bundle, inputs).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-3, atol=1e-4)
    assert all(layer.energy_percent > 99.99 for layer in made.record.layers)


@pytest.mark.parametrize("name", ["bert", "resnet", "gpt2", "clip"])
def test_by_data_each_layer_errs_no_more_on_the_samples_than_by_plain_svd(
    name: str, make_bundle: MakeBundle, make_inputs: MakeInputs
) -> None:
    bundle = make_bundle(name)
    batches = [make_inputs(name, seed=seed) for seed in (3, 4)]
    by_data, plain = (
        factorise(bundle, LowRank.model_validate({"rank": 3, "dataAware": aware}), batches).bundle
        for aware in (True, False)
    )
    paths = [path for path, layer in by_data.module.named_modules() if isinstance(layer, LowRankLinear | LowRankConv)]
    moments = second_moments(bundle.module, paths, batches)
    better = 0
    for path in paths:
        weight = matrix_of(bundle.module.get_submodule(path))
        errors = []
        for made in (by_data, plain):
            lost = weight - matrix_of(made.module.get_submodule(path))
            errors.append(float((lost @ moments[path] * lost).sum()))
        whole = float((weight @ moments[path] * weight).sum())
        assert errors[0] <= errors[1] + 1e-6 * whole
        better += errors[0] < 0.99 * errors[1]
    assert better > len(paths) / 2


@pytest.mark.parametrize("percent", [30, 50, 80])
def test_a_budget_is_met_within_one_step_of_a_rank(percent: int, run: Run) -> None:
    before, made = run("bert", parameterPercent=percent)
    skipped = [path for path, why in made.record.kept.items() if "stay whole" in why]
    whole = sum(before.module.get_submodule(path).weight.numel() for path in skipped)  # type: ignore[operator, union-attr]
    had = whole + sum(layer.parameters_before for layer in made.record.layers)
    has = whole + sum(layer.parameters_after for layer in made.record.layers)
    steps = [layer.parameters_after // layer.rank for layer in made.record.layers]
    assert had * percent / 100 - max(steps) <= has <= had * percent / 100


def test_a_budget_below_rank_1_is_refused_with_the_least_one(run: Run) -> None:
    with pytest.raises(LowRankError, match=r"must be at least (\d+) for these layers at rank 1, got 2; raise it"):
        run("bert", parameterPercent=2)


def test_layers_that_would_grow_stay_whole_by_name(run: Run) -> None:
    _, made = run("bert", rank=15)
    (projection,) = [path for path in made.record.kept if path.endswith("projection")]
    assert made.record.kept[projection] == "rank 15 would not make it smaller: 840 numbers instead of 768"
    assert made.record.kept["text.network.embeddings.word_embeddings"] == "it is a Embedding, which is not factorised"
    assert isinstance(made.bundle.module.get_submodule(projection), nn.Linear)
    with pytest.raises(LowRankError, match=r"must find layers that become smaller, found none .*rank 60 would not"):
        run("bert", rank=60)


def test_grouped_convolutions_and_tied_weights_stay_whole_by_name(run: Run) -> None:
    _, made = run("mobilenet", rank=2)
    assert any("groups, each a thin matrix" in why for why in made.record.kept.values())
    _, made = run("gpt2", rank=4)
    (head,) = [path for path in made.record.kept if path.endswith("lm_head")]
    assert made.record.kept[head] == "it shares a weight with another layer"


def test_patterns_choose_layers_and_leave_layers_out(run: Run) -> None:
    _, made = run("bert", rank=4, layers=["*.attention.*"], ignore=["*.attention.output.dense", "*.layer.1.*"])
    assert {layer.name.rpartition(".")[2] for layer in made.record.layers} == {"query", "key", "value"}
    assert all(".layer.0." in layer.name for layer in made.record.layers)
    assert "`lowRank.layers` does not name it" in made.record.kept.values()
    assert "`lowRank.ignore` names it" in made.record.kept.values()
    for field in ("layers", "ignore"):
        with pytest.raises(LowRankError, match=rf"`lowRank.{field}` must hold patterns that match layers, got 'nix'"):
            run("bert", rank=4, **{field: ["nix"]})


@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet", "clip"])
def test_factors_merge_back_into_plain_layers_that_answer_alike(
    name: str, run: Run, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    before, made = run(name, rank=4)
    whole = merge(made.bundle)
    assert whole.num_parameters() == before.num_parameters()
    assert not any(isinstance(layer, LowRankLinear | LowRankConv) for layer in whole.module.modules())
    inputs = make_inputs(name)
    expected = _answers(made.bundle, inputs)
    for key, value in _answers(whole, inputs).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
    write_bundle(whole, tmp_path)
    assert _same(whole, load_bundle(tmp_path), inputs)
    with pytest.raises(LowRankError, match="must have factorised layers to be merged"):
        merge(whole)


def test_a_second_time_factors_are_replaced_and_not_nested(run: Run, make_inputs: MakeInputs, tmp_path: Path) -> None:
    _, made = run("bert", rank=8)
    twice = factorise(made.bundle, LowRank.model_validate({"rank": 3, "dataAware": False}))
    assert {layer.rank for layer in twice.record.layers} == {3}
    assert len([layer for layer in twice.record.layers if layer.name.endswith(("first", "second"))]) == 0
    assert twice.bundle.num_parameters() < made.bundle.num_parameters()
    write_bundle(twice.bundle, tmp_path)
    assert _same(twice.bundle, load_bundle(tmp_path), make_inputs("bert"))
    with pytest.raises(LowRankError, match="rank 8 would not make it smaller"):
        factorise(made.bundle, LowRank.model_validate({"rank": 8, "dataAware": False}))


@pytest.mark.parametrize("name", ["bert", "resnet", "llama"])
def test_factors_can_lose_single_weights_but_no_whole_units(
    name: str, run: Run, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    _, made = run(name, rank=4)
    zeros = {"method": "L1", "granularity": "Unstructured", "sparsityPercent": 50}
    pruned = prune(made.bundle, Prune.model_validate(zeros), make_inputs(name))
    assert any(held.endswith(".first.weight") for held in held_names(pruned.bundle.architecture.edits))
    assert not any(held.endswith(".first.weight") for held in held_names(merge(pruned.bundle).architecture.edits))
    write_bundle(pruned.bundle, tmp_path)
    assert _same(pruned.bundle, load_bundle(tmp_path), make_inputs(name))
    with pytest.raises(PruningError, match="Structured must come before `lowRank`, got a factorised model"):
        prune(made.bundle, Prune.model_validate({"method": "L1", "sparsityPercent": 25}), make_inputs(name))


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_a_pruned_network_can_be_factorised_and_its_zeros_are_told_as_lost(
    name: str, make_bundle: MakeBundle, make_inputs: MakeInputs, tmp_path: Path
) -> None:
    cut = {"method": "L1", "sparsityPercent": 25}
    thin = prune(make_bundle(name), Prune.model_validate(cut), make_inputs(name)).bundle
    zeros = {"method": "L1", "granularity": "Unstructured", "sparsityPercent": 50}
    sparse = prune(thin, Prune.model_validate(zeros), make_inputs(name)).bundle
    made = factorise(sparse, LowRank.model_validate({"rank": 4}), [make_inputs(name)])
    lost = {f"{layer.name}.weight" for layer in made.record.layers}
    assert set(made.record.zeros_lost) == lost
    still = set(held_names(made.bundle.architecture.edits))
    assert still == set(held_names(sparse.architecture.edits)) - lost
    assert still <= {name for name, _ in made.bundle.module.named_parameters()}
    write_bundle(made.bundle, tmp_path)
    assert _same(made.bundle, load_bundle(tmp_path), make_inputs(name))


@pytest.mark.parametrize("name", ["bert", "resnet", "clip"])
def test_the_factors_become_int8(name: str, run: Run, make_inputs: MakeInputs, tmp_path: Path) -> None:
    _, made = run(name, rank=4)
    int8, _ = quantize(made.bundle, Quantize.model_validate({}), [make_inputs(name)])
    first = made.record.layers[0].name
    assert type(int8.module.get_submodule(f"{first}.first")).__name__.startswith("Int8")
    assert type(int8.module.get_submodule(f"{first}.second")).__name__.startswith("Int8")
    write_bundle(int8, tmp_path)
    assert _same(int8, load_bundle(tmp_path), make_inputs(name))
    for act in (merge, lambda bundle: factorise(bundle, LowRank.model_validate({"rank": 2, "dataAware": False}))):
        with pytest.raises(LowRankError, match="before quantization, got a quantized model"):
            act(int8)


def test_gradients_reach_both_factors(run: Run, make_inputs: MakeInputs) -> None:
    _, made = run("clip", rank=4)
    outputs = made.bundle.module(make_inputs("clip"))
    sum(value.square().sum() for value in outputs.values()).backward()
    for layer in made.record.layers:
        for factor in ("first", "second"):
            gradient = made.bundle.module.get_submodule(f"{layer.name}.{factor}").weight.grad
            assert gradient is not None
            assert float(gradient.abs().sum()) > 0  # type: ignore[operator, arg-type]


class _Wrapped(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, inputs: Any) -> Any:
        return {"y": self.conv(inputs["x"])}


CONVS: dict[str, Callable[[], nn.Module]] = {
    "padded": lambda: nn.Conv2d(5, 9, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(5, 9, (3, 2), padding=(2, 1), dilation=(2, 1), bias=False),
    "same": lambda: nn.Conv2d(5, 9, 3, padding="same"),
    "reflected": lambda: nn.Conv2d(5, 9, 3, padding=1, padding_mode="reflect"),
    "one dimension": lambda: nn.Conv1d(5, 9, 4, stride=3, padding=2),
    "three dimensions": lambda: nn.Conv3d(5, 9, 2, stride=(1, 2, 1)),
}


@pytest.mark.parametrize("kind", CONVS)
def test_a_convolution_is_the_matrix_of_its_patches(kind: str) -> None:
    """The moments are those of the patches: W M W' is the second moment of the outputs; factors and merge fit."""
    torch.manual_seed(0)
    conv: Any = CONVS[kind]().double()
    x = torch.randn(4, 5, *[7] * len(conv.kernel_size), dtype=torch.float64)
    moment = second_moments(_Wrapped(conv), ["conv"], [{"x": x}])["conv"]
    outputs = conv(x) if conv.bias is None else conv(x) - conv.bias.reshape(-1, *[1] * len(conv.kernel_size))
    rows = outputs.detach().movedim(1, -1).reshape(-1, 9)
    matrix = matrix_of(conv)
    torch.testing.assert_close(matrix @ moment @ matrix.T, rows.T @ rows)
    found = spectrum(matrix, moment)
    thin = factorised(conv, 9)
    fill(thin, *found.factors(9))
    torch.testing.assert_close(thin(x), conv(x))
    torch.testing.assert_close(merged(thin)(x), conv(x))
    narrow = factorised(conv, 4)
    fill(narrow, *found.factors(4))
    error = (narrow(x) - conv(x)).square().sum()
    torch.testing.assert_close(error, torch.as_tensor(found.energies[4:].sum()), rtol=1e-6, atol=1e-9)


def test_moments_of_a_convolution_are_those_of_unfold() -> None:
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1).double()
    x = torch.randn(6, 3, 8, 8, dtype=torch.float64)
    patches = functional.unfold(x, 3, padding=1, stride=2).movedim(1, 2).reshape(-1, 27)
    found = second_moments(_Wrapped(conv), ["conv"], [{"x": x[:2]}, {"x": x[2:]}])
    torch.testing.assert_close(found["conv"], patches.T @ patches)


def test_padding_is_no_token(make_bundle: MakeBundle, make_inputs: MakeInputs) -> None:
    bundle, inputs = make_bundle("bert"), make_inputs("bert")
    path = "text.network.encoder.layer.0.attention.self.query"
    found = second_moments(bundle.module, [path], [inputs])[path]
    other = {**inputs, "input_ids": inputs["input_ids"].clone()}
    other["input_ids"][0, 5:] = 7  # what stands in the padding
    torch.testing.assert_close(second_moments(bundle.module, [path], [other])[path], found)


def test_what_is_not_finite_is_refused_by_the_layers_name(make_bundle: MakeBundle) -> None:
    bundle = make_bundle("bert")
    path = "text.network.encoder.layer.1.output.dense"
    with torch.no_grad():
        bundle.module.get_submodule(path).weight[0, 0] = float("nan")  # type: ignore[index, operator]
    with pytest.raises(LowRankError, match=f"must have finite weights, got others at {path}"):
        factorise(bundle, LowRank.model_validate({"rank": 2, "dataAware": False}))


def test_by_data_without_data_is_refused(make_bundle: MakeBundle) -> None:
    with pytest.raises(LowRankError, match=r"`lowRank.dataAware` must have calibration samples, got none"):
        factorise(make_bundle("bert"), LowRank.model_validate({"rank": 2}))


class _Half(nn.Module):
    """A network that never uses one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(12, 12)
        self.unused = nn.Linear(12, 12)

    def forward(self, inputs: Any) -> Any:
        return {"logits": self.used(inputs["x"])}


def test_a_layer_that_no_sample_reaches_stays_whole_by_name() -> None:
    bundle = ModelBundle(_Half().eval(), Architecture("test"), Preprocessing(), "ImageClassification")
    made = factorise(bundle, LowRank.model_validate({"rank": 2}), [{"x": torch.randn(5, 12)}])
    assert [layer.name for layer in made.record.layers] == ["used"]
    assert made.record.kept["unused"].startswith("no calibration sample reached it")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"kind": "low_rank", "version": 2, "ranks": {}}, "must have version 1, got 2"),
        ({"kind": "low_rank", "version": 1, "ranks": {"nix": 2}}, "cannot be replayed"),
        ({"kind": "low_rank", "version": 1}, "cannot be replayed"),
        ({"kind": "merge_low_rank", "version": 1, "paths": ["used"]}, "used is no factorised layer"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(edit: dict[str, Any], said: str) -> None:
    with pytest.raises(ArchitectureError, match=said):
        apply_edits(_Half(), [edit])
