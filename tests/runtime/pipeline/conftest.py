"""Whole runs on synthetic drawings: data, tokenizer, tiny models of the real classes, and the driver as a process."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

SHAPES = ("circle", "square", "cross", "bar")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (40, 70, 220),
    "yellow": (230, 210, 40),
    "purple": (150, 50, 180),
    "black": (20, 20, 20),
}
SIZES = {"small": 5, "large": 11}
SIDE = 24
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>")

Sample = dict[str, bytes]


def _drawing(shape: str, color: str, size: str) -> bytes:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (SIDE, SIDE), "white")
    draw, fill, half = ImageDraw.Draw(image), COLORS[color], SIZES[size] // 2 + 1
    middle = SIDE // 2
    box = (middle - half, middle - half, middle + half, middle + half)
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    elif shape == "bar":
        draw.rectangle((2, middle - half // 2, SIDE - 3, middle + half // 2), fill=fill)
    else:
        draw.line((box[0], box[1], box[2], box[3]), fill=fill, width=3)
        draw.line((box[0], box[3], box[2], box[1]), fill=fill, width=3)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def samples() -> dict[str, Sample]:
    """48 drawings by key, in an order that mixes shapes and colours: parts of a WebDataset sample by ending."""
    made = {}
    for size, color, shape in itertools.product(SIZES, COLORS, SHAPES):
        made[f"{shape}-{color}-{size}"] = {
            "png": _drawing(shape, color, size),
            "txt": f"a {size} {color} {shape}".encode(),
            "cls": shape.encode(),
            "color": color.encode(),
        }
    keys = sorted(made, key=lambda key: (hash_of(key), key))
    return {key: made[key] for key in keys}


def hash_of(text: str) -> int:
    """The same in every process, unlike `hash`."""
    import zlib

    return zlib.crc32(text.encode())


@pytest.fixture(scope="session")
def write_tar() -> Callable[[Path, Mapping[str, Sample]], None]:
    """Writes samples as one WebDataset tar."""

    def write(path: Path, of_tar: Mapping[str, Sample]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for key, parts in of_tar.items():
                for ending, content in parts.items():
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))

    return write


@pytest.fixture(scope="session")
def data(
    samples: dict[str, Sample],
    write_tar: Callable[[Path, Mapping[str, Sample]], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """train-0.tar to train-2.tar with 12 samples each, validation.tar with the other 12."""
    folder = tmp_path_factory.mktemp("data")
    names = ["train-0.tar", "train-1.tar", "train-2.tar", "validation.tar"]
    items = list(samples.items())
    for place, name in enumerate(names):
        write_tar(folder / name, dict(items[place * 12 : place * 12 + 12]))
    return folder


@pytest.fixture(scope="session")
def tokenizer_json(samples: dict[str, Sample]) -> str:
    """Word pieces trained on the captions; [CLS] text [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=list(_SPECIAL), show_progress=False)
    captions = [parts["txt"].decode() for parts in samples.values()]
    tokenizer.train_from_iterator(captions, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def vocabulary(tokenizer_json: str) -> int:
    return len(json.loads(tokenizer_json)["model"]["vocab"])


_IMAGES = {
    "do_center_crop": True,
    "crop_size": {"height": 16, "width": 16},
    "size": {"shortest_edge": 16},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
}


def _tower(width: int, layers: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
    }


def _text(width: int, layers: int, vocabulary: int, positions: int = 12) -> dict[str, Any]:
    return {
        **_tower(width, layers),
        "vocab_size": vocabulary,
        "max_position_embeddings": positions,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }


def _vision(width: int, layers: int) -> dict[str, Any]:
    return {**_tower(width, layers), "image_size": 16, "patch_size": 8}


SaveModel = Callable[..., Path]


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> SaveModel:
    """`save_model(kind, seed, width, layers, ...)`: a network of transformers' own class, with all files beside it."""
    import torch

    def save(
        kind: str, *, seed: int, width: int, layers: int, vocabulary: int, projection: int = 16, max_length: int = 12
    ) -> Path:
        torch.manual_seed(seed)
        network = _NETWORKS[kind](width, layers, vocabulary, projection)
        directory = tmp_path_factory.mktemp(f"{kind}-{width}")
        network.save_pretrained(directory)
        (directory / "tokenizer.json").write_text(tokenizer_json)
        settings = {"pad_token": "[PAD]", "eos_token": "[SEP]", "model_max_length": max_length}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        if kind in ("clip", "llava"):
            (directory / "preprocessor_config.json").write_text(json.dumps(_IMAGES))
        return directory

    return save


def _clip(width: int, layers: int, vocabulary: int, projection: int) -> Any:
    from transformers import CLIPConfig, CLIPModel

    return CLIPModel(
        CLIPConfig(
            text_config=_text(width, layers, vocabulary),
            vision_config=_vision(width, layers),
            projection_dim=projection,
        )
    )


def _llama(width: int, layers: int, vocabulary: int, _projection: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_text(width, layers, vocabulary), num_key_value_heads=2))


def _llava(width: int, layers: int, vocabulary: int, _projection: int) -> Any:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text = {**_text(width, layers, vocabulary, 24), "model_type": "llama"}
    vision = {**_vision(width, layers), "model_type": "clip_vision_model"}
    return LlavaForConditionalGeneration(LlavaConfig(text_config=text, vision_config=vision, image_token_index=4))


def _bert(width: int, layers: int, vocabulary: int, _projection: int) -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(**_text(width, layers, vocabulary)))


_NETWORKS: dict[str, Callable[[int, int, int, int], Any]] = {
    "clip": _clip,
    "llama": _llama,
    "llava": _llava,
    "bert": _bert,
}

Job = dict[str, Any]


@pytest.fixture(scope="session")
def make_job(data: Path) -> Callable[..., Job]:
    """`make_job(task, output, teacher=..., student=..., pipeline=[...])`: a job as JSON, on the drawings."""

    def make(
        task: str,
        output: Path,
        *,
        teacher: Mapping[str, Any] | None = None,
        student: Mapping[str, Any] | None = None,
        pipeline: Sequence[Mapping[str, Any]],
        columns: Mapping[str, Any],
        **spec: Any,
    ) -> Job:
        return {
            "metadata": {"name": "drawings"},
            "spec": {
                "task": task,
                **({"teacher": {"model": dict(teacher)}} if teacher else {}),
                **({"student": {"model": dict(student)}} if student else {}),
                "data": {
                    "train": {"uri": f"{data}/train-{{0..2}}.tar", "format": "WebDataset"},
                    "validation": {"uri": f"{data}/validation.tar", "format": "WebDataset"},
                    "columns": dict(columns),
                },
                "pipeline": [dict(step) for step in pipeline],
                "evaluation": {"latency": {"batchSizes": [1], "repeats": 5}, "samples": 2},
                "output": {"uri": str(output)},
                **spec,
            },
        }

    return make


@dataclass(frozen=True)
class Ended:
    """A driver that has ended: its code, events, the object on its last line, and what else it said."""

    code: int
    events: list[dict[str, Any]]
    outcome: dict[str, Any] | None
    errors: str

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Events of one kind."""
        return [event for event in self.events if event["event"] == kind]


class Driver:
    """`python -m limbeck_runtime.driver` on one job, in a process group of its own."""

    def __init__(self, job_file: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "limbeck_runtime.driver", "--job", str(job_file), *arguments]
        self._errors = job_file.with_suffix(".log").open("w+")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(environment or {})},
        )
        self.lines: list[str] = []

    def events(self) -> Iterator[dict[str, Any]]:
        """Events as they come, to the end of the output."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            event = _event(line)
            if event is not None:
                yield event

    def kill(self) -> None:
        """SIGKILL to the whole group, as a machine that loses power would."""
        os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self) -> Ended:
        """Read to the end."""
        for _ in self.events():
            pass
        assert self.process.stdout is not None
        self.process.stdout.close()
        code = self.process.wait(120)
        self._errors.flush()
        self._errors.seek(0)
        errors = self._errors.read()
        self._errors.close()
        found = [event for event in map(_event, self.lines) if event is not None]
        last = self.lines[-1] if self.lines else ""
        outcome = json.loads(last.removeprefix("LIMBECK_OUTCOME ")) if last.startswith("LIMBECK_OUTCOME ") else None
        return Ended(code, found, outcome, errors)


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


StartDriver = Callable[..., Driver]


@pytest.fixture(scope="session")
def start_driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartDriver]:
    """Starts a driver on a job; whatever still runs at the end of the session is killed."""
    started: list[Driver] = []

    def start(job: Job, *arguments: str, environment: Mapping[str, str] | None = None) -> Driver:
        job_file = tmp_path_factory.mktemp("job") / "job.json"
        job_file.write_text(json.dumps(job))
        started.append(Driver(job_file, *arguments, environment=environment))
        return started[-1]

    yield start
    for driver in started:
        if driver.process.poll() is None:
            driver.kill()
            driver.process.wait()


@pytest.fixture(scope="session")
def drive(start_driver: StartDriver) -> Callable[..., Ended]:
    """Runs a job to its end."""
    return lambda job, *arguments, **options: start_driver(job, *arguments, **options).wait()


OpenRun = Callable[..., Any]


@pytest.fixture(scope="session")
def open_run() -> OpenRun:
    """`open_run(job, stream=..., **options)`: the context that a driver opens for a job, in this process."""

    def open_one(job: Job, *, stream: io.StringIO | None = None, **options: Any) -> Any:
        from limbeck.api.v1alpha1.job import CompressionJob
        from limbeck_runtime.context import open_context
        from limbeck_runtime.driver import resolve

        resolved = resolve(CompressionJob.model_validate(job))
        options.setdefault("stop", threading.Event())
        return open_context(resolved, stream=stream or io.StringIO(), attempt=1, **options)

    return open_one


@pytest.fixture(scope="session")
def run_here(open_run: OpenRun) -> Callable[..., list[dict[str, Any]]]:
    """Runs a job's pipeline in this process, which saves the imports; raises what ends it. The run's events."""
    from limbeck_runtime.pipeline import run

    def here(job: Job, **options: Any) -> list[dict[str, Any]]:
        stream = io.StringIO()
        with open_run(job, stream=stream, **options) as context:
            run(context)
        return [json.loads(line) for line in stream.getvalue().splitlines()]

    return here


def _thread_workers(settings: Any) -> Any:
    from limbeck_runtime.teacher.workers import ThreadWorkers

    return ThreadWorkers(settings)


@pytest.fixture(scope="session")
def run_in_threads(run_here: Callable[..., list[dict[str, Any]]]) -> Callable[..., list[dict[str, Any]]]:
    """As `run_here`, with the teacher in threads of this process."""
    return partial(run_here, teacher_workers=_thread_workers)


@pytest.fixture(scope="session")
def classifier() -> Callable[..., dict[str, Any]]:
    """A small ResNet of timm's as a job names it."""

    def model(channels: int = 8, num_classes: int = 4, image_size: int = 16) -> dict[str, Any]:
        settings = {
            "num_classes": num_classes,
            "layers": [1, 1, 1, 1],
            "channels": [channels] * 4,
            "norm_layer": "groupnorm1",
        }
        return {"loader": "Timm", "architecture": "resnet18", "imageSize": image_size, "settings": settings}

    return model


@pytest.fixture(scope="session")
def classification(make_job: Callable[..., Job], classifier: Callable[..., dict[str, Any]]) -> Callable[..., Job]:
    """`classification(output, **changes)`: the smallest job that trains; needs no Ray."""

    def make(output: Path, **changes: Any) -> Job:
        given = {
            "student": classifier(),
            "pipeline": [{"name": "tune", "finetune": {"epochs": 1, "batchSize": 12}}],
            "columns": {"image": "png", "label": "cls"},
            **changes,
        }
        return make_job("ImageClassification", output, **given)

    return make
