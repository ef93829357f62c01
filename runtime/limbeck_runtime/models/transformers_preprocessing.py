"""What the files beside a transformers model say about images, texts and sounds.

Read as plain JSON, not through AutoProcessor: processors are code, and some look things up on the network.
Left out on purpose: chat templates and everything that generation needs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from limbeck_runtime.models.errors import ModelFilesError
from limbeck_runtime.models.preprocessing import (
    TOKENIZER_FILE,
    AudioPreprocessing,
    Fit,
    ImagePreprocessing,
    Interpolation,
    Padding,
    TextPreprocessing,
)

_LOG = logging.getLogger(__name__)

# PIL's numbers, which preprocessor_config.json uses.
_INTERPOLATIONS = {2: Interpolation.BILINEAR, 3: Interpolation.BICUBIC}
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)
# What transformers' own image processors do where the file does not say; by model type.
_DEFAULTS: dict[str, ImagePreprocessing] = {
    "clip": ImagePreprocessing(size=224, mean=_CLIP_MEAN, std=_CLIP_STD),
    "clip_vision_model": ImagePreprocessing(size=224, mean=_CLIP_MEAN, std=_CLIP_STD),
    "llava": ImagePreprocessing(size=336, mean=_CLIP_MEAN, std=_CLIP_STD),
    "dinov2": ImagePreprocessing(size=224, mean=_IMAGENET_MEAN, std=_IMAGENET_STD),
}
_DEFAULT = ImagePreprocessing(size=224, mean=_HALF, std=_HALF, interpolation=Interpolation.BILINEAR, fit=Fit.STRETCH)
# Positions start after the padding index in these, so two (padding index + 1) entries of the table are unused.
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
# A tokenizer that sets no limit says 1e30.
_NO_LIMIT = 1_000_000


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, {} where the file is absent; ModelFilesError where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelFilesError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelFilesError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content


def image_preprocessing(directory: Path, model_type: str, image_size: int | None) -> ImagePreprocessing:
    """From preprocessor_config.json (or the image part of processor_config.json).

    `image_size` is the network's own input side, or the user's, and wins over the file's.
    """
    config = read_json(directory / "preprocessor_config.json")
    config = config or read_json(directory / "processor_config.json").get("image_processor", {})
    default = _DEFAULTS.get(model_type, _DEFAULT)
    if not config:
        _LOG.warning(
            "%s holds no preprocessor_config.json: images are prepared as %s models usually want it; "
            "put the file there if this model differs",
            directory,
            model_type,
        )
        return default.model_copy(update={"size": image_size or default.size})
    crops = bool(config.get("do_center_crop", False))
    resize = _side(config.get("size"))
    size = _side(config.get("crop_size")) if crops else resize
    size = size or default.size
    crop_percent = 100.0 * size / resize if crops and resize and resize > size else 100.0
    normalises = config.get("do_normalize", True)
    return ImagePreprocessing(
        size=image_size or size,
        mean=_triple(config.get("image_mean", default.mean)) if normalises else (0.0, 0.0, 0.0),
        std=_triple(config.get("image_std", default.std)) if normalises else (1.0, 1.0, 1.0),
        interpolation=_INTERPOLATIONS.get(config.get("resample", -1), default.interpolation),
        fit=Fit.CENTER_CROP if crops else Fit.STRETCH,
        crop_percent=crop_percent,
    )


def _side(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping):
        sides = {int(size[name]) for name in ("height", "width", "shortest_edge") if name in size}
        if len(sides) > 1:
            raise ModelFilesError(f"preprocessor_config.json must name a square image, got {dict(size)}")
        return sides.pop() if sides else None
    return None


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def text_preprocessing(
    directory: Path,
    config: Any,
    max_length: int | None,
    *,
    padding: Padding = Padding.LONGEST,
    ends: bool = False,
) -> TextPreprocessing:
    """From tokenizer.json and the files beside it; `config` is the text network's own configuration.

    `max_length` is the user's and may only be shorter than the model's. `ends` appends the end token where the
    tokenizer does not, which a language model needs to learn when to stop.
    """
    tokenizer_json = _tokenizer_json(directory)
    settings = read_json(directory / "tokenizer_config.json")
    named = {**read_json(directory / "special_tokens_map.json"), **settings}
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise ModelFilesError(f"{directory / TOKENIZER_FILE} is not a tokenizer: {error}") from error
    eos_id = _token_id(tokenizer, named.get("eos_token"), getattr(config, "eos_token_id", None))
    pad_id = _token_id(tokenizer, named.get("pad_token"), getattr(config, "pad_token_id", None))
    ended = tokenizer.encode("a").ids[-1:] == [eos_id]
    return TextPreprocessing(
        tokenizer_json=tokenizer_json,
        max_length=_max_length(directory, config, settings, max_length),
        pad_id=pad_id if pad_id is not None else eos_id if eos_id is not None else 0,
        padding=padding,
        eos_id=eos_id,
        append_eos=ends and eos_id is not None and not ended,
    )


def _tokenizer_json(directory: Path) -> str:
    path = directory / TOKENIZER_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        converted: str = tokenizer.backend_tokenizer.to_str()
        # Where transformers finds no vocabulary it makes a tokenizer without words and says nothing.
        if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
            raise ValueError("there is no vocabulary")
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError) as error:
        raise ModelFilesError(
            f"{directory} must hold {TOKENIZER_FILE}, and its other tokenizer files cannot be converted "
            f"({error}); save the tokenizer with save_pretrained"
        ) from error
    return converted


def _token_id(tokenizer: Any, named: Any, configured: Any) -> int | None:
    """The id of a special token: as the tokenizer's files name it, else as the model's configuration does."""
    content = named.get("content") if isinstance(named, Mapping) else named
    if isinstance(content, str):
        identifier = tokenizer.token_to_id(content)
        if identifier is not None:
            return int(identifier)
    if isinstance(configured, list):  # several end tokens: the first stands for all
        configured = configured[0] if configured else None
    return configured if isinstance(configured, int) and configured >= 0 else None


def _max_length(directory: Path, config: Any, settings: Mapping[str, Any], wanted: int | None) -> int:
    positions = getattr(config, "max_position_embeddings", None)
    limits = []
    if isinstance(positions, int) and positions > 0:
        offset = (config.pad_token_id or 0) + 1 if config.model_type in _OFFSET_POSITIONS else 0
        limits.append(positions - offset)
        if wanted is not None and wanted > limits[0]:
            raise ModelFilesError(
                f"`maxTextLength` must be at most {limits[0]} for the model in {directory}, got {wanted}"
            )
    stated = [
        settings.get("model_max_length"),
        read_json(directory / "sentence_bert_config.json").get("max_seq_length"),
    ]
    limits += [int(value) for value in stated if isinstance(value, int | float) and 0 < value < _NO_LIMIT]
    if wanted is None and not limits:
        raise ModelFilesError(f"the model in {directory} states no longest text; set `maxTextLength`")
    return wanted if wanted is not None else min(limits)


def audio_preprocessing(directory: Path) -> AudioPreprocessing:
    """From preprocessor_config.json (or the sound part of processor_config.json) of a Whisper-like model."""
    config = read_json(directory / "preprocessor_config.json")
    config = config or read_json(directory / "processor_config.json").get("feature_extractor", {})
    default = AudioPreprocessing()
    return AudioPreprocessing(
        sampling_rate=config.get("sampling_rate", default.sampling_rate),
        num_mel_bins=config.get("feature_size", default.num_mel_bins),
        fft_size=config.get("n_fft", default.fft_size),
        hop_length=config.get("hop_length", default.hop_length),
        chunk_seconds=config.get("chunk_length", default.chunk_seconds),
    )
