"""Six small drawings with captions and classes, and models of a few lines for each task."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from limbeck.api.v1alpha1.data import Columns, DataFormat, DataSource
from limbeck_runtime.data.index import DataIndex, build_index
from limbeck_runtime.data.sources import resolve_shards
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.preprocessing import ImagePreprocessing, Preprocessing, TextPreprocessing

CAPTIONS = ("a red circle", "a blue square", "a circle", "red", "a large blue square on red", "square")
CLASSES = ("circle", "square", "circle", "none", "square", "square")
COLORS = ((200, 0, 0), (0, 0, 200), (90, 90, 90), (255, 0, 0), (120, 0, 120), (0, 0, 90))
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>", "a", "red", "blue", "circle", "square", "large", "on")


@pytest.fixture(scope="session")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    path = tmp_path_factory.mktemp("data") / "train.tar"
    with tarfile.open(path, "w") as archive:
        for number, (caption, name, color) in enumerate(zip(CAPTIONS, CLASSES, COLORS, strict=True)):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), color).save(buffer, "PNG")
            for ending, content in (("png", buffer.getvalue()), ("txt", caption.encode()), ("cls", name.encode())):
                member = tarfile.TarInfo(f"{number}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="session")
def make_index(tar: Path) -> Callable[..., DataIndex]:
    """The index of the six samples with columns as asked."""

    def make(**columns: Any) -> DataIndex:
        source = DataSource(uri=str(tar), format=DataFormat.WEB_DATASET)
        return build_index(resolve_shards(source), Columns(**columns), source.format)

    return make


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., str]:
    """A tokenizer of whole words as JSON: [CLS] text [SEP]."""

    def make(words: tuple[str, ...] = WORDS) -> str:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors

        tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        return tokenizer.to_str()

    return make


class Classifier(nn.Module):
    """pixel_values -> logits; `body` gives a map, `squeeze` a vector."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, channels, 3)
        self.squeeze = nn.Flatten()
        self.head = nn.Linear(channels, num_classes)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        map_BCHW = self.body(inputs["pixel_values"])
        return {"logits": self.head(self.squeeze(map_BCHW.mean((2, 3))))}


class LanguageModel(nn.Module):
    """input_ids -> logits."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(WORDS), width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"logits": self.head(self.embed(inputs["input_ids"]))}


class Embedder(nn.Module):
    """input_ids, and pixel_values where it has an image part -> normalised embeddings."""

    def __init__(self, width: int, *, images: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(WORDS), width)
        self.image = nn.Linear(3 * 8 * 8, width) if images else None
        self.log_scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens_BTD = self.embed(inputs["input_ids"]) * inputs["attention_mask"][..., None]
        outputs = {"text_embedding": nn.functional.normalize(tokens_BTD.sum(1), dim=-1)}
        if self.image is not None:
            image_BD = self.image(inputs["pixel_values"].flatten(1))
            outputs["image_embedding"] = nn.functional.normalize(image_BD, dim=-1)
            outputs["logit_scale"] = self.log_scale.exp()
        return outputs


MakeBundle = Callable[..., ModelBundle]


@pytest.fixture(scope="session")
def make_bundle(make_tokenizer: Callable[..., str]) -> MakeBundle:
    """`make_bundle(task, width, outputs)`; `outputs` are classes, or entries of the vocabulary."""

    def make(
        task: str,
        width: int = 4,
        outputs: int = len(WORDS),
        *,
        seed: int = 0,
        max_length: int = 8,
        tokenizer: str | None = None,
    ) -> ModelBundle:
        image = ImagePreprocessing(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        text = TextPreprocessing(tokenizer_json=tokenizer or make_tokenizer(), max_length=max_length, pad_id=0)
        torch.manual_seed(seed)
        if task == "ImageClassification":
            return ModelBundle(Classifier(width, outputs), Architecture("toy"), Preprocessing(image=image), task)
        if task == "CausalLM":
            return ModelBundle(LanguageModel(width, outputs), Architecture("toy"), Preprocessing(text=text), task)
        if task == "TextEmbedding":
            return ModelBundle(Embedder(width, images=False), Architecture("toy"), Preprocessing(text=text), task)
        both = Preprocessing(image=image, text=text)
        return ModelBundle(Embedder(width, images=True), Architecture("toy"), both, task)

    return make
