"""What this version cannot run is refused by its field's name, never ignored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from limbeck.api.plan import derive_plan
from limbeck.api.support import unsupported
from limbeck.api.v1alpha1.job import CompressionJob

Build = Callable[..., dict[str, Any]]

REFUSED = [
    (
        {"spec.pipeline": [{"name": "q", "quantize": {}}, {"name": "p", "prune": {"sparsityPercent": 30}}]},
        "spec.pipeline[1].prune",
    ),
    (
        {"spec.pipeline": [{"name": "p", "prune": {"sparsityPercent": 30, "recover": {"distil": {"mode": "Mutual"}}}}]},
        "spec.pipeline[0].prune.recover.distil.mode",
    ),
    (
        {"spec.pipeline": [{"name": "q", "quantize": {}}, {"name": "l", "lowRank": {"rank": 4}}]},
        "spec.pipeline[1].lowRank",
    ),
    (
        {"spec.pipeline": [{"name": "l", "lowRank": {"rank": 4}}, {"name": "p", "prune": {"sparsityPercent": 30}}]},
        "spec.pipeline[1].prune.granularity",
    ),
    ({"spec.pipeline": [{"name": "d", "distil": {"mode": "Mutual"}}]}, "spec.pipeline[0].distil.mode"),
    ({"spec.pipeline": [{"name": "q", "quantize": {"scheme": "Int4"}}]}, "spec.pipeline[0].quantize.scheme"),
    ({"spec.pipeline": [{"name": "q", "quantize": {"aware": True}}]}, "spec.pipeline[0].quantize.aware"),
    ({"spec.pipeline": [{"name": "f", "finetune": {"adapter": "LoRA"}}]}, "spec.pipeline[0].finetune.adapter"),
    (
        {"spec.pipeline": [{"name": "d", "distil": {"signals": [{"kind": "AttentionMaps"}]}}]},
        "spec.pipeline[0].distil.signals[0].kind",
    ),
    ({"spec.task": "Speech"}, "spec.task"),
    ({"spec.export": {"formats": ["Onnx", "LiteRt"]}}, "spec.export.formats[1]"),
    ({"spec.evaluation.explain": True}, "spec.evaluation.explain"),
    ({"spec.tracking": {"mlflow": {}}}, "spec.tracking.mlflow"),
    (
        {"spec.pipeline": [{"name": "q", "quantize": {}}], "spec.evaluation.baseline": True},
        "spec.evaluation.baseline",
    ),
    ({"spec.teacher.model.loader": "OpenClip"}, "spec.teacher.model.loader"),
    ({"spec.pipeline": [{"name": "teacher", "distil": {}}]}, "spec.pipeline[0].name"),
    (
        {"spec.pipeline": [{"name": "d", "distil": {"teacherOutputs": {"embeddingBits": 12}}}]},
        "spec.pipeline[0].distil.teacherOutputs.embeddingBits",
    ),
    (
        {
            "spec.pipeline": [
                {
                    "name": "d",
                    "distil": {
                        "signals": [{"kind": "ContrastiveAffinity", "studentLayers": ["a"], "teacherLayers": ["a"]}]
                    },
                }
            ]
        },
        "spec.pipeline[0].distil.signals[0]",
    ),
    (
        {"spec.pipeline": [{"name": "f", "finetune": {"objective": "Supervised"}}]},
        "spec.pipeline[0].finetune.objective",
    ),
    (
        {"spec.pipeline": [{"name": "f", "finetune": {"labelSmoothingPercent": 10}}]},
        "spec.pipeline[0].finetune.labelSmoothingPercent",
    ),
    ({"spec.task": "TextEmbedding", "spec.pipeline": [{"name": "f", "finetune": {}}]}, "spec.pipeline[0].finetune"),
    (
        {"spec.task": "TextEmbedding", "spec.pipeline": [{"name": "d", "distil": {"hardLabelPercent": 5}}]},
        "spec.pipeline[0].distil.hardLabelPercent",
    ),
    (
        {
            "spec.task": "TextEmbedding",
            "spec.pipeline": [{"name": "d", "distil": {}}],
            "spec.evaluation.baseline": True,
        },
        "spec.evaluation.baseline",
    ),
]


@pytest.mark.parametrize(("changes", "field"), REFUSED)
def test_a_setting_that_cannot_be_run_yet_is_refused_by_name(
    build_job: Build, changes: dict[str, Any], field: str
) -> None:
    spec = derive_plan(CompressionJob.model_validate(build_job(**changes)).spec).spec
    assert [refusal.field for refusal in unsupported(spec)] == [field]


def test_the_smallest_job_can_be_run(build_job: Build) -> None:
    assert unsupported(derive_plan(CompressionJob.model_validate(build_job()).spec).spec) == []
