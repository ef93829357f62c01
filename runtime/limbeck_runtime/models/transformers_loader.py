"""Loader Transformers: any directory with config.json and safetensors, for the task that the job names.

Left out on purpose: models with remote code, processors as code, and several images for each text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.models import names
from limbeck_runtime.models.adapters import (
    CausalLanguageModel,
    SpeechRecogniser,
    TextEmbedder,
    TransformersClassifier,
)
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.dual_encoder import DualEncoder, dual_encoder_record
from limbeck_runtime.models.errors import ModelFilesError, TaskError
from limbeck_runtime.models.networks import Record, transformers_record
from limbeck_runtime.models.preprocessing import Padding, Preprocessing
from limbeck_runtime.models.sentence_pooling import sentence_pooling
from limbeck_runtime.models.towers import (
    ImageTower,
    TextTower,
    image_tower_record,
    text_tower_record,
)
from limbeck_runtime.models.transformers_networks import read_config, read_network
from limbeck_runtime.models.transformers_preprocessing import (
    audio_preprocessing,
    image_preprocessing,
    text_preprocessing,
)


@dataclass(frozen=True)
class Source:
    """A directory and what the job says about the model in it; `field` is where the job says it."""

    directory: Path
    field: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image_size: int | None = None
    max_text_length: int | None = None


# Text networks whose last hidden states are pooled to one vector; mean unless their files say otherwise.
TEXT_ENCODERS = (
    "albert",
    "bert",
    "camembert",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
# Image networks and how their output becomes one vector.
IMAGE_ENCODERS = {
    "clip_vision_model": "Pooler",
    "convnext": "Pooler",
    "convnextv2": "Pooler",
    "deit": "First",
    "dinov2": "Pooler",
    "resnet": "Pooler",
    "siglip_vision_model": "Pooler",
    "swin": "Pooler",
    "vit": "First",
}
DUAL_ENCODERS = ("clip", "siglip")
IMAGE_TEXT_LANGUAGE_MODELS = ("llava",)
SPEECH_MODELS = ("whisper",)
# Their pooling layer is not used here: it would be weights that nothing reads and no gradient reaches.
_WITH_POOLING_LAYER = frozenset({"albert", "bert", "camembert", "mpnet", "roberta", "xlm-roberta", "vit", "deit"})


def read_transformers(source: Source, task: Task) -> ModelBundle:
    """The bundle of a directory. Raises ModelFilesError, WeightsError or TaskError."""
    config = read_config(source.directory, source.settings, field=source.field)
    fitting = [name for name, (_, types) in READERS.items() if config.model_type in types()]
    if task not in fitting:
        able = f"does {' or '.join(fitting)}" if fitting else "is of no kind that limbeck reads"
        raise TaskError(
            f"`spec.task` is {task}, but the model of `{source.field}` is a {config.model_type}, which {able}; "
            "change the task or the model"
        )
    return READERS[task][0](source, config)


def _read_dual_encoder(source: Source, config: Any) -> ModelBundle:
    network, _ = read_network(source.directory, "Encoder", config)
    network = _as_any(network)
    vision, text = network.config.vision_config, network.config.text_config
    projects = config.model_type == "clip"
    embed_dim = config.projection_dim if projects else vision.hidden_size
    image_record = image_tower_record(transformers_record("Encoder", vision), "Pooler", vision.hidden_size)
    text_head = "Encoder" if projects else "SiglipText"
    text_width = text.hidden_size if projects else text.projection_size
    text_record = text_tower_record(transformers_record(text_head, text), "Pooler", text_width, masked=projects)
    projected = ("image", "text") if projects else ()
    module = DualEncoder(
        ImageTower(network.vision_model, "Pooler", vision.hidden_size),
        TextTower(network.text_model, "Pooler", text_width, masked=projects),
        embed_dim,
        projected=projected,
        has_logit_bias=not projects,
    )
    if projects:
        module.image_projection = network.visual_projection
        module.text_projection = network.text_projection
    module.log_scale.data.copy_(network.logit_scale.detach().reshape(()))
    if module.logit_bias is not None:
        module.logit_bias.data.copy_(network.logit_bias.detach().reshape(()))
    settings = dual_encoder_record(
        image_record, text_record, embed_dim, projected=projected, has_logit_bias=not projects
    )
    preprocessing = Preprocessing(
        image=image_preprocessing(source.directory, config.model_type, _own_image_size(vision, source)),
        text=text_preprocessing(
            source.directory,
            text,
            source.max_text_length,
            padding=Padding.LONGEST if projects else Padding.MAX_LENGTH,
        ),
    )
    return ModelBundle(module.eval(), Architecture(names.DUAL_ENCODER, settings), preprocessing, Task.IMAGE_TEXT)


def _read_text_embedder(source: Source, config: Any) -> ModelBundle:
    tower, record, preprocessing = read_text_tower(source, config)
    module = TextEmbedder(tower, tower.width, projected=False).eval()
    settings = {"text": record, "embed_dim": tower.width, "projected": False}
    return ModelBundle(module, Architecture(names.TEXT_EMBEDDER, settings), preprocessing, Task.TEXT_EMBEDDING)


def read_text_tower(source: Source, config: Any | None = None) -> tuple[TextTower, Record, Preprocessing]:
    """The text tower of a directory: a text encoder, or the text side of a dual encoder."""
    config = config or read_config(source.directory, source.settings, field=source.field)
    if config.model_type in DUAL_ENCODERS:
        bundle = _read_dual_encoder(source, config)
        module: Any = bundle.module
        return module.text, bundle.architecture.settings["text"], Preprocessing(text=bundle.preprocessing.text)
    _check_type(config, (*TEXT_ENCODERS, "clip_text_model"), source, "text")
    pooling = "Pooler" if config.model_type == "clip_text_model" else sentence_pooling(source.directory)
    network, record = read_network(source.directory, "Encoder", config, arguments=_without_pooling_layer(config))
    tower = TextTower(network, pooling, config.hidden_size).eval()
    text = text_preprocessing(source.directory, config, source.max_text_length)
    return tower, text_tower_record(record, pooling, tower.width), Preprocessing(text=text)


def read_image_tower(source: Source) -> tuple[ImageTower, Record, Preprocessing]:
    """The image tower of a directory: an image encoder, or the image side of a dual encoder."""
    config = read_config(source.directory, source.settings, field=source.field)
    if config.model_type in DUAL_ENCODERS:
        bundle = _read_dual_encoder(source, config)
        module: Any = bundle.module
        settings = bundle.architecture.settings
        return module.image, settings["image"], Preprocessing(image=bundle.preprocessing.image)
    _check_type(config, tuple(IMAGE_ENCODERS), source, "image")
    pooling = IMAGE_ENCODERS[config.model_type]
    network, record = read_network(source.directory, "Encoder", config, arguments=_without_pooling_layer(config))
    width = config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size
    tower = ImageTower(network, pooling, width).eval()
    image = image_preprocessing(source.directory, config.model_type, _own_image_size(config, source))
    return tower, image_tower_record(record, pooling, width), Preprocessing(image=image)


def _read_classifier(source: Source, config: Any) -> ModelBundle:
    network, record = read_network(source.directory, "ImageClassification", config)
    image = image_preprocessing(source.directory, config.model_type, _own_image_size(config, source))
    architecture = Architecture(names.TRANSFORMERS_CLASSIFIER, {"network": record})
    module = TransformersClassifier(network).eval()
    return ModelBundle(module, architecture, Preprocessing(image=image), Task.IMAGE_CLASSIFICATION)


def _read_language_model(source: Source, config: Any) -> ModelBundle:
    sees = config.model_type in IMAGE_TEXT_LANGUAGE_MODELS
    network, record = read_network(source.directory, "ImageTextToText" if sees else "CausalLM", config)
    text = text_preprocessing(source.directory, config.get_text_config(), source.max_text_length, ends=True)
    image = None
    if sees:
        vision = config.vision_config
        image = image_preprocessing(source.directory, config.model_type, _own_image_size(vision, source))
        text = type(text).model_validate({**text.model_dump(), **_image_tokens(text, config, source)})
    architecture = Architecture(names.CAUSAL_LANGUAGE_MODEL, {"network": record})
    module = CausalLanguageModel(network).eval()
    return ModelBundle(module, architecture, Preprocessing(image=image, text=text), Task.CAUSAL_LM)


def _image_tokens(text: Any, config: Any, source: Source) -> dict[str, Any]:
    """One token for each patch of the image; "full" keeps the class token too."""
    identifier = config.image_token_id if hasattr(config, "image_token_id") else config.image_token_index
    token = text.build_tokenizer().id_to_token(identifier)
    if token is None:
        raise ModelFilesError(
            f"{source.directory}: its tokenizer has no token {identifier}, the configuration's image token; "
            "add it to the tokenizer"
        )
    vision = config.vision_config
    patches: int = (vision.image_size // vision.patch_size) ** 2
    whole = config.vision_feature_select_strategy == "full"
    return {"image_token": token, "image_token_id": identifier, "num_image_tokens": patches + whole}


def _read_speech_model(source: Source, config: Any) -> ModelBundle:
    network, record = read_network(source.directory, "SpeechSeq2Seq", config)
    positions = config.max_target_positions
    text = text_preprocessing(source.directory, config, source.max_text_length or positions, ends=True)
    preprocessing = Preprocessing(text=text, audio=audio_preprocessing(source.directory))
    architecture = Architecture(names.SPEECH_RECOGNISER, {"network": record})
    return ModelBundle(SpeechRecogniser(network).eval(), architecture, preprocessing, Task.SPEECH)


def _causal_types() -> tuple[str, ...]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    encoders = {*TEXT_ENCODERS, *SPEECH_MODELS}  # transformers can run these as decoders too; we do not
    return (*(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - encoders), *IMAGE_TEXT_LANGUAGE_MODELS)


def _classifier_types() -> tuple[str, ...]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

    return tuple(set(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES) - set(DUAL_ENCODERS))


Reader = Callable[[Source, Any], ModelBundle]
# Task -> how it is read, and the model types that can do it.
READERS: dict[Task, tuple[Reader, Callable[[], tuple[str, ...]]]] = {
    Task.IMAGE_TEXT: (_read_dual_encoder, lambda: DUAL_ENCODERS),
    Task.TEXT_EMBEDDING: (_read_text_embedder, lambda: TEXT_ENCODERS),
    Task.IMAGE_CLASSIFICATION: (_read_classifier, _classifier_types),
    Task.CAUSAL_LM: (_read_language_model, _causal_types),
    Task.SPEECH: (_read_speech_model, lambda: SPEECH_MODELS),
}


def _check_type(config: Any, types: tuple[str, ...], source: Source, side: str) -> None:
    if config.model_type not in types:
        raise TaskError(
            f"`{source.field}` must be a model that encodes {side}s ({', '.join((*types, *DUAL_ENCODERS))}), "
            f"got a {config.model_type}"
        )


def _without_pooling_layer(config: Any) -> dict[str, bool]:
    return {"add_pooling_layer": False} if config.model_type in _WITH_POOLING_LAYER else {}


def _own_image_size(vision: Any, source: Source) -> int | None:
    """The side that the network's position table is made for, else the user's, else what the files say."""
    own = getattr(vision, "image_size", None)
    if own is None or vision.model_type in ("convnext", "convnextv2", "resnet", "swin"):
        return source.image_size
    if source.image_size not in (None, own):
        raise ModelFilesError(
            f"`{source.field}.imageSize` must be {own}, as {source.directory} was made for, got {source.image_size}"
        )
    return int(own)


def _as_any(network: nn.Module) -> Any:
    return network
