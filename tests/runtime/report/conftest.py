"""A report with every part filled, as an image-text job makes it; its figures are invented."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from PIL import Image

from limbeck.api.report import (
    Answer,
    BadSampleRecord,
    Environment,
    ExportedFile,
    LatencyFigure,
    MetricValue,
    Report,
    Row,
    RowKind,
    SampleComparison,
    SliceValue,
    StepReport,
)
from limbeck.api.status import PlanEntry
from limbeck.api.v1alpha1.outcome import Target
from limbeck_runtime.report.build import Measurements, build_row, loss_history, summarise_bad_samples
from limbeck_runtime.report.gate import decide
from limbeck_runtime.telemetry.progress import ProgressRecord

MAIN = "image_to_text_recall@10"
CATEGORIES = {
    "Activities": 14, "Animals & Nature": 26, "Component": 3, "Flags": 42, "Food & Drink": 22,
    "Objects": 38, "People & Body": 12, "Smileys & Emotion": 24, "Symbols": 31, "Travel & Places": 34,
}  # fmt: skip
NO_CLASSES = "the task has no classes"


def latency(batch_1: float, batch_32: float) -> list[LatencyFigure]:
    return [
        LatencyFigure(batch_size=size, p50_seconds=p50, p95_seconds=p50 * 1.18, num_calls=20)
        for size, p50 in ((1, batch_1), (32, batch_32))
    ]


def slices(recall: float, worst: float) -> dict[str, dict[str, SliceValue]]:
    names = list(CATEGORIES)
    values = {
        name: SliceValue(
            count=count,
            metrics={MAIN: worst if name == "Symbols" else round(recall + 0.07 * math.sin(names.index(name)), 3)},
        )
        for name, count in CATEGORIES.items()
    }
    return {"category": values}


def measured(recall: float, worst: float, agreement: float | None, **figures: Any) -> Measurements:
    unmeasured = {"ece": NO_CLASSES}
    if figures.get("macs") is None:
        unmeasured["macs"] = "int8 kernels are not counted by torch's flop counter"
    return Measurements(
        metrics={
            MAIN: recall,
            "image_to_text_recall@1": recall * 0.42,
            "text_to_image_recall@10": recall * 0.97,
            "zero_shot_accuracy": recall + 0.11,
            "modality_gap": 0.9 - recall / 2,
        },
        agreement_percent=agreement,
        slices=slices(recall, worst),
        unmeasured=unmeasured,
        **figures,
    )


def make_rows() -> list[Row]:
    teacher = build_row(
        "teacher", RowKind.TEACHER, "",
        measured(0.612, 0.47, None, parameters=33_712_000, macs=1_812_000_000, artefact_bytes=134_900_000,
                 peak_memory_bytes=512_000_000, latency=latency(0.0212, 0.3950), artefact="model.safetensors, torch"),
        MAIN, None,
    )  # fmt: skip
    others = [
        ("baseline", RowKind.BASELINE, "",
         measured(0.508, 0.31, 58.1, parameters=8_401_000, macs=402_000_000, artefact_bytes=33_640_000,
                  peak_memory_bytes=302_000_000, latency=latency(0.0081, 0.1120), artefact="model.safetensors, torch")),
        ("distil", RowKind.STEP, "distil",
         measured(0.604, 0.44, 86.4, parameters=8_401_000, macs=402_000_000, artefact_bytes=33_640_000,
                  peak_memory_bytes=302_000_000, latency=latency(0.0080, 0.1110), artefact="model.safetensors, torch")),
        ("int8", RowKind.STEP, "quantize",
         measured(0.601, 0.41, 85.9, parameters=8_401_000, macs=None, artefact_bytes=8_760_000,
                  peak_memory_bytes=201_000_000, latency=latency(0.0062, 0.0790), artefact="model.onnx, onnxruntime")),
    ]  # fmt: skip
    return [teacher, *(build_row(*row, main_metric=MAIN, teacher=teacher) for row in others)]


def make_history() -> list[ProgressRecord]:
    return [
        ProgressRecord(
            step="distil",
            update=update,
            epoch=update / 60,
            loss=3.1 * math.exp(-update / 180) + 0.9 + 0.05 * math.sin(update * 1.7),
            terms={
                "affinity": 1.9 * math.exp(-update / 170) + 0.5 + 0.03 * math.sin(update * 1.7),
                "contrastive": 1.2 * math.exp(-update / 200) + 0.4 + 0.02 * math.sin(update * 1.7),
            },
        )
        for update in range(1, 601)
    ]


def png(colour: tuple[int, int, int]) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def make_samples(images: list[str]) -> list[SampleComparison]:
    answers = [
        ("red apple", "red apple", "red apple"), ("hot beverage", "hot beverage", "teacup without handle"),
        ("sailboat", "sailboat", "sailboat"), ("hedgehog", "hedgehog", "hedgehog"),
        ("water polo", "swimmer", "swimmer"), ("cloud with rain", "cloud with rain", "cloud with rain"),
        ("violin", "violin", "violin"), ("flag: Norway", "flag: Iceland", "flag: Norway"),
    ]  # fmt: skip
    return [
        SampleComparison(
            key=f"1f3{index:02x}",
            image=images[index % len(images)],
            truth=truth,
            teacher=Answer(text=teacher, score=0.71, correct=teacher == truth),
            student=Answer(text=student, score=0.64, correct=student == truth),
            agree=teacher == student,
        )
        for index, (truth, teacher, student) in enumerate(answers)
    ]


def make_report(images: list[str] | None = None, target: Target | None = None, **changes: Any) -> Report:
    rows = make_rows()
    target = target or Target(size_ratio=12, min_recovery_percent=97, max_latency_percent=50)
    fields: dict[str, Any] = {
        "job": "emoji",
        "task": "ImageText",
        "created_at": datetime(2026, 11, 24, 6, 0, tzinfo=UTC),
        "main_metric": MAIN,
        "environment": Environment(
            device="cpu",
            cpu="AMD EPYC 7B13",
            num_cores=2,
            num_threads=2,
            memory_bytes=8_220_000_000,
            platform="Linux-6.1-x86_64-with-glibc2.36",
            versions={"limbeck": "0.1.0", "python": "3.11.7", "torch": "2.15.0", "transformers": "5.23.0"},
        ),
        "plan": [
            PlanEntry(
                field="spec.student.shrink", value="depth 50 %, width 100 %", reason="12x is 3.8x by int8, 3.2x by size"
            ),
            PlanEntry(field="spec.pipeline[1].quantize.scheme", value="Int8", reason="every export supports it"),
        ],
        "rows": rows,
        "gate": decide(target, MAIN, rows[-1], rows[0]),
        "steps": [
            StepReport(
                name="distil",
                method="distil",
                seconds=71.4,
                settings={"mode": "OneWay", "temperature": 2.0, "epochs": 10, "learningRate": 3e-4},
                history=loss_history(make_history(), "distil"),
            ),
            StepReport(
                name="int8", method="quantize", seconds=6.2, settings={"scheme": "Int8", "activations": "Static"}
            ),
        ],
        "bad_samples": summarise_bad_samples(
            [
                BadSampleRecord(shard="train-003.tar", key="1f9d1", reason="TruncatedImage", detail="it is cut"),
                BadSampleRecord(shard="train-005.tar", key="1f600", reason="EmptyText", detail="the caption is empty"),
            ],
            1743,
        ),
        "samples": make_samples(images or [png((196, 98, 45)), png((61, 90, 128))]),
        "exports": [
            ExportedFile(
                format="Safetensors", path="model/model.safetensors", bytes=8_760_000, num_compared=64,
                max_difference=0.0,
            ),
            ExportedFile(
                format="Onnx", path="model/model.onnx", bytes=8_910_000, num_compared=64,
                max_difference=0.004, min_cosine=0.9991,
            ),
        ],
        "model_uri": "out/emoji/model",
    }  # fmt: skip
    return Report(**(fields | changes))


@pytest.fixture
def row_of() -> Callable[..., Row]:
    """`row_of(value, **figures)`: a row with one metric, `score`, and a reason for all that is not given."""

    def build(value: float | None, *, higher_is_better: bool = True, **figures: Any) -> Row:
        fields = (
            "parameters",
            "macs",
            "artefactBytes",
            "peakMemoryBytes",
            "latency",
            "agreementPercent",
            "ece",
            "worstGap",
        )
        defaults: dict[str, Any] = {
            "label": "int8", "kind": RowKind.STEP, "parameters": None, "macs": None, "artefact_bytes": None,
            "peak_memory_bytes": None, "latency": [],
            "metrics": {"score": MetricValue(value=value, higher_is_better=higher_is_better)},
            "unmeasured": dict.fromkeys((*fields, "metrics.score", "metrics.score.recoveryPercent"), "not of interest"),
        }  # fmt: skip
        return Row(**(defaults | figures))

    return build


@pytest.fixture(scope="session")
def report_of() -> Callable[..., Report]:
    """`report_of(field=value, ...)`: the sample report with some fields replaced."""
    return make_report
