"""A job that says only how small the result is to be: student, steps and settings are derived and run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def test_a_size_alone_is_enough_for_a_student_its_lessons_and_its_int8(
    make_job: Callable[..., Job],
    save_model: Callable[..., Path],
    vocabulary: int,
    run_in_threads: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
) -> None:
    teacher = save_model("bert", seed=1, width=64, layers=4, vocabulary=vocabulary)
    job = make_job(
        "TextEmbedding",
        tmp_path / "out",
        teacher={"loader": "Transformers", "uri": str(teacher)},
        pipeline=[],
        columns={"text": "txt", "label": "cls"},
        target={"sizeRatio": 6, "minRecoveryPercent": 1},
    )
    run_in_threads(job)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["label"] for row in report["rows"]] == ["teacher", "distil", "int8"]
    teacher_row, distilled, quantized = report["rows"]
    assert quantized["artefactBytes"] < distilled["artefactBytes"] < teacher_row["artefactBytes"]
    derived = {entry["field"] for entry in report["plan"]}
    assert {"spec.student.shrink.widthPercent", "spec.pipeline[0]", "spec.pipeline[1]"} <= derived
    checks = {check["name"]: check for check in report["gate"]["checks"]}
    assert checks["sizeRatio"]["wanted"] == 6
    assert checks["minRecoveryPercent"]["passed"]
