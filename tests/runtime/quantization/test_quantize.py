"""The quantize step's work on whole models: what becomes int8, what it costs in precision, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.api.v1alpha1.compression import Activations, Quantize
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.quantization import EDITS, QuantizationError, load_edited_weights, quantize
from limbeck_runtime.quantization.calibration import float_channels, observe
from limbeck_runtime.quantization.layers import Int8Conv, Int8Embedding, Int8Layer, Int8Linear
from limbeck_runtime.quantization.selection import LayerKind
from limbeck_runtime.quantization.serving import serving_bytes

Make = Callable[..., dict[str, torch.Tensor]]
Answer = Callable[[ModelBundle, Any], torch.Tensor]


def settings(**values: Any) -> Quantize:
    return Quantize.model_validate(values)


def worst_cosine(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    return float(nn.functional.cosine_similarity(mine, theirs, dim=-1).min())


def state_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


@pytest.mark.parametrize("activations", ["None", "Dynamic", "Static"])
def test_every_kind_of_layer_becomes_int8_and_answers_nearly_the_same(
    mixed: ModelBundle, inputs: Make, answer: Answer, activations: str
) -> None:
    before = copy.deepcopy(mixed.module.state_dict())
    batches = [inputs(seed=seed) for seed in range(3)]
    quantized, record = quantize(mixed, settings(activations=activations), batches)
    kinds = {name: type(layer) for name, layer in quantized.module.named_modules() if isinstance(layer, Int8Layer)}
    convolutions = dict.fromkeys(("stem", "depthwise", "point"), Int8Conv)
    assert kinds == {"words": Int8Embedding, **convolutions, "hidden": Int8Linear, "head": Int8Linear}
    assert record.num_layers == 6
    unseen = inputs(seed=99)
    assert worst_cosine(answer(quantized, unseen), answer(mixed, unseen)) > 0.995
    assert all(before[name].equal(tensor) for name, tensor in mixed.module.state_dict().items())


def test_calibration_makes_dynamic_layers_more_precise(inputs: Make, answer: Answer, wrap: Any, fresh: Any) -> None:
    torch.manual_seed(3)
    module = fresh["mixed"]()
    with torch.no_grad():  # one channel of the hidden layer's inputs dwarfs the others, as in trained language models
        module.words.weight[:, 3] *= 60
        module.hidden.weight[:, 3] /= 60
    bundle = wrap(module)
    unseen = inputs(64, seed=99)
    exact = answer(bundle, unseen)
    blind = answer(quantize(bundle, settings(activations="Dynamic"))[0], unseen)
    seeing = answer(quantize(bundle, settings(activations="Dynamic"), [inputs(seed=1)])[0], unseen)
    assert float((seeing - exact).norm()) < 0.7 * float((blind - exact).norm())


def test_a_large_layer_is_four_times_smaller_and_counts_as_many_parameters(wrap: Any) -> None:
    bundle = wrap(nn.Sequential(nn.Embedding(500, 64), nn.Linear(64, 400)))
    quantized, _ = quantize(bundle, settings(activations="None"))
    assert state_bytes(bundle.module) / state_bytes(quantized.module) > 3.6
    extra = 0  # scales are no parameters
    assert quantized.num_parameters() == bundle.num_parameters() + extra


def test_depthwise_convolutions_keep_float_inputs(mixed: ModelBundle, inputs: Make) -> None:
    quantized, _ = quantize(mixed, settings(activations="Static"), [inputs()])
    kinds = {
        name: layer.rounding.activations
        for name, layer in quantized.module.named_modules()
        if isinstance(layer, Int8Conv)
    }
    assert kinds == {"stem": Activations.STATIC, "depthwise": Activations.NONE, "point": Activations.STATIC}


def test_skipped_layers_and_embeddings_stay_in_float(mixed: ModelBundle, inputs: Make) -> None:
    quantized, record = quantize(mixed, settings(skip=["stem", "h*d"], embeddings=False), [inputs()])
    floats = {
        name for name, layer in quantized.module.named_modules() if type(layer) in (nn.Conv2d, nn.Linear, nn.Embedding)
    }
    assert floats == {"stem", "head", "words"}
    assert record.kept == {
        "stem": "`quantize.skip` names it",
        "head": "`quantize.skip` names it",
        "words": "`quantize.embeddings` is false",
    }


def test_tied_layers_stay_tied_and_each_keeps_its_own_channels_in_float(
    tied: ModelBundle, inputs: Make, answer: Answer
) -> None:
    with torch.no_grad():  # one channel of the head's inputs dwarfs the others
        tied.module.words.weight[:, 3] /= 60
        tied.module.body.weight[3] *= 60
    quantized, _ = quantize(tied, settings(activations="Dynamic"), [inputs()])
    words, head = quantized.module.words, quantized.module.head
    assert words.weight_int8 is head.weight_int8
    assert words.weight_scale is head.weight_scale
    assert head.rounding.float_channels == (3,)
    assert quantized.num_parameters() == tied.num_parameters()
    assert worst_cosine(answer(quantized, inputs()), answer(tied, inputs())) > 0.9


@pytest.mark.parametrize("activations", ["Dynamic", "Static"])
def test_channels_that_dwarf_the_others_stay_in_float(
    wrap: Any, inputs: Make, answer: Answer, activations: str
) -> None:
    class Lopsided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 16)

        def forward(self, batch: Any) -> dict[str, torch.Tensor]:
            x = batch["pixel_values"].flatten(1)[:, :32].clone()
            x[:, [5, 20]] *= 50
            return {"logits": self.layer(x)}

    torch.manual_seed(4)
    bundle = wrap(Lopsided())
    quantized, _ = quantize(bundle, settings(activations=activations), [inputs(64)])
    assert quantized.module.layer.rounding.float_channels == (5, 20)
    rebuilt = Lopsided()
    for edit in quantized.architecture.edits:
        EDITS[edit["kind"]](rebuilt, edit)
    load_edited_weights(rebuilt, dict(quantized.module.state_dict()))
    assert answer(wrap(rebuilt), inputs(seed=2)).equal(answer(quantized, inputs(seed=2)))


@pytest.mark.parametrize(
    ("largest", "wanted"),
    [
        ([1.0] * 7 + [50.0], (7,)),
        ([1.0] * 4 + [50.0], ()),  # too narrow for one channel in eight
        ([1.0] * 14 + [2.9, 2.9], ()),  # not three times the median
        ([1.0] * 100 + [float(size) for size in range(10, 20)], (106, 107, 108, 109)),  # only the largest ones
    ],
)
def test_few_channels_are_outliers(largest: list[float], wanted: tuple[int, ...]) -> None:
    assert float_channels(torch.tensor(largest)) == wanted


def test_padding_says_nothing_about_a_layers_inputs(inputs: Make) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_BTK = torch.randn(4, 6, 8, generator=generator)
    hidden_BTK[:, 3:] *= 1000.0
    module = nn.Sequential(nn.Linear(8, 8))
    is_token_BT = (torch.arange(6) < 3).long().expand(4, 6)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = module

        def forward(self, batch: Any) -> dict[str, torch.Tensor]:
            return {"hidden": self.body(batch["hidden"])}

    observed = observe(Masked(), {"body.0": LayerKind.LINEAR}, [{"hidden": hidden_BTK, "attention_mask": is_token_BT}])
    assert observed.rows["body.0"].largest().equal(hidden_BTK[:, :3].abs().flatten(0, 1).amax(0))


def test_a_tied_layer_stays_float_with_the_layer_that_shares_its_weight(tied: ModelBundle) -> None:
    quantized, record = quantize(tied, settings(embeddings=False))
    assert quantized.module.head.weight is quantized.module.words.weight
    assert record.kept["head"] == "it shares its weight with words, which stays in float"


def test_a_layer_used_twice_is_replaced_in_both_places(wrap: Any) -> None:
    torch.manual_seed(5)
    layer = nn.Linear(8, 8)
    quantized, record = quantize(wrap(nn.Sequential(layer, nn.ReLU(), layer)), settings(activations="None"))
    assert record.num_layers == 1
    assert quantized.module[0] is quantized.module[2]


def test_layers_without_an_int8_form_are_named_with_the_reason(wrap: Any) -> None:
    module = nn.Sequential(
        nn.ConvTranspose2d(4, 4, 2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding_mode="reflect"),
        nn.Conv2d(4, 4, 1),
    )
    _, record = quantize(wrap(module), settings(activations="None"))
    assert record.num_layers == 1
    assert "ConvTranspose2d has no int8 layer" in record.kept["0"]
    assert "(zeros, same)" in record.kept["1"]
    assert "(reflect, " in record.kept["2"]


def test_a_static_layer_that_no_sample_reaches_says_so(wrap: Any, inputs: Make) -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(6, 6)
            self.unused = nn.Linear(6, 6)

        def forward(self, batch: Any) -> dict[str, torch.Tensor]:
            return {"logits": self.used(batch["input_ids"].float())}

    quantized, record = quantize(wrap(Unused()), settings(activations="Static"), [inputs()])
    assert quantized.module.unused.rounding.activations is Activations.NONE
    assert "unused: no calibration sample reaches it" in record.notes[0]


def test_progress_counts_the_batches(mixed: ModelBundle, inputs: Make) -> None:
    told: list[tuple[int, int]] = []
    quantize(mixed, settings(), [inputs(2), inputs(2)], progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_served_memory_counts_what_kernels_keep(mixed: ModelBundle, inputs: Make) -> None:
    state = state_bytes(mixed.module)
    assert serving_bytes(mixed.module) == state
    weights_only, _ = quantize(mixed, settings(activations="None"))
    dynamic, _ = quantize(mixed, settings(activations="Dynamic"), [inputs()])
    assert serving_bytes(weights_only.module) > serving_bytes(dynamic.module)


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"scheme": "Int4"}, "`quantize.scheme` must be Int8, got Int4"),
        ({"aware": True}, "`quantize.aware` must be false"),
        ({"minAgreementPercent": 99}, "`quantize.minAgreementPercent` must be left out, got 99"),
        ({"activations": "Static"}, "`quantize.activations` must be Dynamic or None without calibration"),
        ({"skip": ["nothing.*"]}, "got 'nothing.*', which matches none of words, stem"),
        ({"skip": ["*"]}, "must find a Linear, Conv or Embedding layer"),
    ],
    ids=str,
)
def test_what_the_scheme_cannot_do_is_refused_by_name(mixed: ModelBundle, values: Any, field: str) -> None:
    with pytest.raises(QuantizationError) as error:
        quantize(mixed, settings(**values))
    assert field in str(error.value)


def test_a_model_in_int8_already_is_refused(mixed: ModelBundle) -> None:
    quantized, _ = quantize(mixed, settings(activations="None"))
    with pytest.raises(QuantizationError, match=r"float32 model, got torch.int8; quantize once"):
        quantize(quantized, settings())
