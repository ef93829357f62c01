"""Loading of transformers directories, compared with the library's own classes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.model import Loader, Model
from limbeck_runtime.models.bundle import ModelBundle, weights_identity
from limbeck_runtime.models.errors import ModelFilesError, TaskError, WeightsError
from limbeck_runtime.models.loading import load_model
from limbeck_runtime.models.preprocessing import Fit, Interpolation, Padding
from limbeck_runtime.models.rebuilding import rebuild

Inputs = Callable[..., dict[str, torch.Tensor]]


def load(directory: Path, task: Task, **fields: Any) -> ModelBundle:
    return load_model(Model(loader=Loader.TRANSFORMERS, uri=str(directory), **fields), task)


def assert_rebuilds(bundle: ModelBundle, inputs: dict[str, torch.Tensor]) -> None:
    """The record alone, through JSON, gives the same module once the weights are loaded."""
    from limbeck_runtime.models.bundle import Architecture

    module = rebuild(Architecture.from_json(bundle.architecture.to_json()))
    module.load_state_dict(bundle.module.state_dict())
    with torch.no_grad():
        ours, again = bundle.module(inputs), module(inputs)
    assert ours.keys() == again.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], again[name], rtol=0, atol=0)
    assert weights_identity(module) == weights_identity(bundle.module)


def test_clip_gives_the_embeddings_of_its_own_class(
    clip_directory: Path, clip_network: Any, make_inputs: Inputs
) -> None:
    bundle = load(clip_directory, Task.IMAGE_TEXT)
    inputs = make_inputs(bundle.preprocessing)
    with torch.no_grad():
        ours, theirs = bundle.module(inputs), clip_network(**inputs)
    torch.testing.assert_close(ours["image_embedding"], theirs.image_embeds)
    torch.testing.assert_close(ours["text_embedding"], theirs.text_embeds)
    logits = ours["logit_scale"] * ours["image_embedding"] @ ours["text_embedding"].T
    torch.testing.assert_close(logits, theirs.logits_per_image)
    assert bundle.task == "ImageText"
    assert not bundle.module.training
    assert_rebuilds(bundle, inputs)


def test_siglip_gives_the_logits_of_its_own_class(
    siglip_directory: Path, siglip_network: Any, make_inputs: Inputs
) -> None:
    bundle = load(siglip_directory, Task.IMAGE_TEXT)
    inputs = make_inputs(bundle.preprocessing)
    with torch.no_grad():
        ours = bundle.module(inputs)
        theirs = siglip_network(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"])
    logits = ours["logit_scale"] * ours["image_embedding"] @ ours["text_embedding"].T + ours["logit_bias"]
    torch.testing.assert_close(logits, theirs.logits_per_image)
    assert bundle.preprocessing.text is not None
    assert bundle.preprocessing.text.padding is Padding.MAX_LENGTH
    assert_rebuilds(bundle, inputs)


def test_a_text_encoder_is_mean_pooled_without_its_padding(
    bert_directory: Path, bert_network: Any, make_inputs: Inputs, captions: tuple[str, ...]
) -> None:
    bundle = load(bert_directory, Task.TEXT_EMBEDDING)
    inputs = make_inputs(bundle.preprocessing)
    assert bundle.preprocessing.text is not None
    tokenizer = bundle.preprocessing.text.build_tokenizer()
    with torch.no_grad():
        ours = bundle.module(inputs)["text_embedding"]
        for row, caption in enumerate(captions):
            alone = torch.tensor([tokenizer.encode(caption).ids])
            states = bert_network(input_ids=alone).last_hidden_state[0]
            mean = torch.nn.functional.normalize(states.mean(0), dim=0)
            torch.testing.assert_close(ours[row], mean, rtol=1e-4, atol=1e-6)
    assert not any("pooler" in name for name, _ in bundle.module.named_parameters())
    assert bundle.module.text.network.config._attn_implementation == "sdpa"
    assert_rebuilds(bundle, inputs)


@pytest.mark.parametrize(
    ("config_name", "model_name", "settings"),
    [
        ("RobertaConfig", "RobertaModel", {"max_position_embeddings": 15}),
        ("DistilBertConfig", "DistilBertModel", {}),
        ("MPNetConfig", "MPNetModel", {"max_position_embeddings": 15}),
        ("ModernBertConfig", "ModernBertModel", {"cls_token_id": 2, "sep_token_id": 3}),
    ],
)
def test_other_text_encoders_are_read_too(
    config_name: str, model_name: str, settings: dict[str, Any], save_model: Callable[..., Path], make_inputs: Inputs
) -> None:
    import transformers

    config = getattr(transformers, config_name)(
        **{
            "hidden_size": 32,
            "dim": 32,
            "hidden_dim": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "n_layers": 2,
            "num_attention_heads": 4,
            "n_heads": 4,
            "vocab_size": 90,
            "max_position_embeddings": 12,
            "pad_token_id": 0,
            "bos_token_id": 2,
            "eos_token_id": 3,
        }
        | settings
    )
    bundle = load(save_model(config.model_type, getattr(transformers, model_name)(config)), Task.TEXT_EMBEDDING)
    inputs = make_inputs(bundle.preprocessing)
    lengths = torch.linalg.vector_norm(bundle.module(inputs)["text_embedding"], dim=-1)
    torch.testing.assert_close(lengths, torch.ones(5))
    assert_rebuilds(bundle, inputs)


def test_an_image_classifier_gives_the_logits_of_its_own_class(vit_directory: Path, make_inputs: Inputs) -> None:
    from transformers import ViTForImageClassification

    bundle = load(vit_directory, Task.IMAGE_CLASSIFICATION)
    inputs = make_inputs(bundle.preprocessing)
    theirs = ViTForImageClassification.from_pretrained(vit_directory, local_files_only=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(bundle.module(inputs)["logits"], theirs(pixel_values=inputs["pixel_values"]).logits)
    assert_rebuilds(bundle, inputs)


def test_a_language_model_gives_the_logits_of_its_own_class(
    llama_directory: Path, llama_network: Any, make_inputs: Inputs
) -> None:
    bundle = load(llama_directory, Task.CAUSAL_LM)
    inputs = make_inputs(bundle.preprocessing)
    with torch.no_grad():
        ours = bundle.module(inputs)["logits"]
        torch.testing.assert_close(ours, llama_network(**inputs).logits)
        assert bundle.module.plain_head
        torch.testing.assert_close(bundle.module.hidden(inputs) @ bundle.module.output_weights.T, ours)
    assert_rebuilds(bundle, inputs)


def test_a_language_model_that_sees_puts_one_token_for_each_patch_before_the_text(
    llava_directory: Path, llava_network: Any, make_inputs: Inputs
) -> None:
    bundle = load(llava_directory, Task.CAUSAL_LM)
    text = bundle.preprocessing.text
    assert text is not None
    assert (text.image_token, text.image_token_id, text.num_image_tokens) == ("<image>", 4, 4)
    ids = text.encode(text.build_tokenizer(), ["a bicycle"])[0]
    assert ids[:6] == [2, 4, 4, 4, 4, ids[5]]
    assert ids[-1] == 3
    inputs = make_inputs(bundle.preprocessing)
    with torch.no_grad():
        ours = bundle.module(inputs)["logits"]
        torch.testing.assert_close(ours, llava_network(**inputs).logits)
        torch.testing.assert_close(bundle.module.hidden(inputs) @ bundle.module.output_weights.T, ours)
    assert_rebuilds(bundle, inputs)


def test_a_speech_model_gives_the_logits_of_its_own_class(
    whisper_directory: Path, whisper_network: Any, make_inputs: Inputs
) -> None:
    bundle = load(whisper_directory, Task.SPEECH)
    inputs = make_inputs(bundle.preprocessing)
    inputs["input_features"] = torch.randn(5, 8, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = whisper_network(input_features=inputs["input_features"], decoder_input_ids=inputs["input_ids"])
        ours = bundle.module(inputs)["logits"]
    seen = inputs["attention_mask"].bool()
    torch.testing.assert_close(ours[seen], theirs.logits[seen])
    assert bundle.preprocessing.audio is not None
    assert bundle.preprocessing.audio.num_mel_bins == 8
    assert_rebuilds(bundle, inputs)


def test_image_preprocessing_follows_the_models_own_file(clip_directory: Path) -> None:
    image = load(clip_directory, Task.IMAGE_TEXT).preprocessing.image
    assert image is not None
    assert image.size == 16
    assert image.resized_size == 20
    assert image.mean == (0.4, 0.5, 0.6)
    assert image.std == (0.2, 0.3, 0.4)
    assert image.interpolation is Interpolation.BICUBIC
    assert image.fit is Fit.CENTER_CROP


def test_text_preprocessing_cuts_where_the_model_ends_or_earlier_if_asked(bert_directory: Path) -> None:
    long = load(bert_directory, Task.TEXT_EMBEDDING).preprocessing.text
    short = load(bert_directory, Task.TEXT_EMBEDDING, max_text_length=5).preprocessing.text
    assert long is not None
    assert short is not None
    assert long.max_length == 12
    assert len(short.encode(short.build_tokenizer(), ["a red apple " * 9])[0]) == 5
    with pytest.raises(ModelFilesError, match="`maxTextLength` must be at most 12"):
        load(bert_directory, Task.TEXT_EMBEDDING, max_text_length=13)


def test_the_record_names_no_directory(bert_directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(bert_directory, copy)
    here, there = (load(place, Task.TEXT_EMBEDDING) for place in (bert_directory, copy))
    assert here.identity() == there.identity()
    assert str(bert_directory) not in here.architecture.to_json()


def test_settings_go_over_the_configuration(bert_directory: Path) -> None:
    bundle = load(bert_directory, Task.TEXT_EMBEDDING, settings={"hidden_dropout_prob": 0.0})
    assert bundle.architecture.settings["text"]["network"]["config"]["hidden_dropout_prob"] == 0.0
    with pytest.raises(ModelFilesError, match=r"`model\.settings\.hidden_droput_prob` must be an entry of config"):
        load(bert_directory, Task.TEXT_EMBEDDING, settings={"hidden_droput_prob": 0.0})


@pytest.mark.parametrize(
    ("directory", "task", "does"),
    [
        ("bert_directory", Task.IMAGE_TEXT, "TextEmbedding"),
        ("bert_directory", Task.CAUSAL_LM, "TextEmbedding"),
        ("clip_directory", Task.CAUSAL_LM, "ImageText"),
        ("llama_directory", Task.TEXT_EMBEDDING, "CausalLM"),
        ("whisper_directory", Task.CAUSAL_LM, "Speech"),
        ("vit_directory", Task.AUDIO_EMBEDDING, "ImageClassification"),
    ],
)
def test_a_wrong_task_says_what_the_model_does(
    directory: str, task: Task, does: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(TaskError, match=rf"`spec\.task` is {task}, but .* which does {does}; change"):
        load(request.getfixturevalue(directory), task)


@pytest.fixture
def copy(bert_directory: Path, tmp_path: Path) -> Path:
    shutil.copytree(bert_directory, tmp_path / "model")
    return tmp_path / "model"


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=r"`model\.uri` must name an existing directory .*nowhere"):
        load(tmp_path / "nowhere", Task.TEXT_EMBEDDING)


def test_a_directory_without_a_configuration_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(ModelFilesError, match=r"must name a directory with config\.json"):
        load(copy, Task.TEXT_EMBEDDING)


def test_an_unknown_model_type_is_named(copy: Path) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": "brontosaurus"}))
    with pytest.raises(ModelFilesError, match=r"names the model type 'brontosaurus', which .* does not know"):
        load(copy, Task.TEXT_EMBEDDING)


def test_a_configuration_that_is_not_json_is_named(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelFilesError, match=r"config\.json is not JSON"):
        load(copy, Task.TEXT_EMBEDDING)


def test_missing_weights_are_said(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"must hold model\.safetensors .* found none"):
        load(copy, Task.TEXT_EMBEDDING)


def test_weights_that_are_cut_short_are_named(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read .* damaged or cut short"):
        load(copy, Task.TEXT_EMBEDDING)


def test_weights_of_another_model_are_not_replaced_by_random_ones(copy: Path, vit_directory: Path) -> None:
    shutil.copy(vit_directory / "model.safetensors", copy / "model.safetensors")
    with pytest.raises(WeightsError, match=r"weight files lack embeddings.* of a BertModel"):
        load(copy, Task.TEXT_EMBEDDING)


def test_weights_of_another_width_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "hidden_size": 16, "intermediate_size": 32}))
    with pytest.raises(WeightsError, match=r"the weights do not fit config\.json"):
        load(copy, Task.TEXT_EMBEDDING)


def test_old_torch_weights_are_read_without_pickle(copy: Path, bert_network: Any, make_inputs: Inputs) -> None:
    before = load(copy, Task.TEXT_EMBEDDING)
    (copy / "model.safetensors").unlink()
    torch.save(bert_network.state_dict(), copy / "pytorch_model.bin")
    assert load(copy, Task.TEXT_EMBEDDING).identity() == before.identity()


class Boom:
    """What a malicious file would hold."""

    def __reduce__(self) -> Any:
        return (exit, (1,))


def test_a_pickle_is_refused_and_not_run(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({"weights": Boom()}, copy / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin is a pickle that holds more than tensors"):
        load(copy, Task.TEXT_EMBEDDING)


def test_weights_cut_into_several_files_are_read_and_a_missing_one_is_named(copy: Path, bert_network: Any) -> None:
    before = load(copy, Task.TEXT_EMBEDDING)
    (copy / "model.safetensors").unlink()
    bert_network.save_pretrained(copy, max_shard_size="20KB")
    parts = sorted(copy.glob("model-*.safetensors"))
    assert len(parts) > 1
    assert load(copy, Task.TEXT_EMBEDDING).identity() == before.identity()
    parts[0].unlink()
    with pytest.raises(WeightsError, match=rf"names {parts[0].name}, which is not beside it"):
        load(copy, Task.TEXT_EMBEDDING)


def test_a_broken_tokenizer_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFilesError, match=r"tokenizer\.json is not a tokenizer"):
        load(copy, Task.TEXT_EMBEDDING)


def test_sentence_transformers_pooling_is_obeyed_and_unknown_stages_are_refused(
    copy: Path, make_inputs: Inputs
) -> None:
    stages = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (copy / "modules.json").write_text(json.dumps(stages))
    (copy / "1_Pooling").mkdir()
    (copy / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    bundle = load(copy, Task.TEXT_EMBEDDING)
    inputs = make_inputs(bundle.preprocessing)
    with torch.no_grad():
        first = bundle.module.text.network(**inputs).last_hidden_state[:, 0]
        torch.testing.assert_close(
            bundle.module(inputs)["text_embedding"], torch.nn.functional.normalize(first, dim=-1)
        )
    (copy / "modules.json").write_text(json.dumps([*stages, {"path": "2_Dense", "type": "x.Dense"}]))
    with pytest.raises(ModelFilesError, match="holds Dense, which is not read"):
        load(copy, Task.TEXT_EMBEDDING)


def test_a_quantized_model_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ModelFilesError, match="is of a quantized model, which cannot be trained"):
        load(copy, Task.TEXT_EMBEDDING)


@pytest.fixture(scope="module")
def connections() -> list[str]:
    """Every look-up of a host and every connection of this process from now on; an audit hook cannot be taken back."""
    seen: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            seen.append(f"{event} {arguments}")

    sys.addaudithook(hook)
    return seen


@pytest.mark.parametrize("has_tokenizer_json", [True, False])
def test_nothing_is_looked_up_on_the_network(
    has_tokenizer_json: bool, copy: Path, connections: list[str], tokenizer_json: str
) -> None:
    vocabulary = json.loads(tokenizer_json)["model"]["vocab"]
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 12, "pad_token": "[PAD]"}
    if not has_tokenizer_json:
        (copy / "tokenizer.json").unlink()
        (copy / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=lambda word: vocabulary[word])))
        (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    connections.clear()
    bundle = load(copy, Task.TEXT_EMBEDDING)
    assert connections == []
    text = bundle.preprocessing.text
    assert text is not None
    expected = [2, vocabulary["a"], 3]
    assert text.encode(text.build_tokenizer(), ["a"]) == [expected]


def test_a_tokenizer_in_no_known_form_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    for content in (None, "["):
        if content is not None:
            (copy / "vocab.json").write_text(content)
        with pytest.raises(ModelFilesError, match=r"json, and its other tokenizer files cannot be converted"):
            load(copy, Task.TEXT_EMBEDDING)
