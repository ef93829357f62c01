"""From a target to a plan: what is derived, and that each value says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from limbeck.api.plan import derive_plan
from limbeck.api.v1alpha1.job import CompressionJob

Build = Callable[..., dict[str, Any]]

# (sizeRatio, maxLatencyPercent) -> methods in order, shrink
PLANS = [
    (2, None, ["quantize"], None),
    (3.8, None, ["quantize"], None),
    (4, None, ["distil", "quantize"], {"widthPercent": 97}),
    (16, None, ["distil", "quantize"], {"widthPercent": 48}),
    (3, 40, ["distil", "quantize"], {"depthPercent": 50}),
    (16, 40, ["distil", "quantize"], {"depthPercent": 50, "widthPercent": 68}),
]


@pytest.mark.parametrize(("ratio", "latency", "methods", "shrink"), PLANS)
def test_a_target_alone_gets_a_pipeline(
    build_job: Build, ratio: float, latency: int | None, methods: list[str], shrink: dict[str, int] | None
) -> None:
    target = {"sizeRatio": ratio} | ({"maxLatencyPercent": latency} if latency else {})
    plan = derive_plan(CompressionJob.model_validate(build_job(**{"spec.target": target})).spec)
    assert [step.method_name for step in plan.spec.pipeline] == methods
    derived = plan.spec.student.shrink if plan.spec.student else None
    assert (derived.model_dump(by_alias=True, exclude_none=True) if derived else None) == shrink


def test_each_derived_value_names_its_field_and_reason(build_job: Build) -> None:
    plan = derive_plan(CompressionJob.model_validate(build_job(**{"spec.target.sizeRatio": 16})).spec)
    fields = [entry.field for entry in plan.entries]
    assert "spec.student.shrink.widthPercent" in fields
    assert "spec.pipeline[0].distil.signals" in fields
    assert all(entry.reason for entry in plan.entries)


def test_a_derived_plan_has_nothing_left_to_derive(build_job: Build) -> None:
    plan = derive_plan(CompressionJob.model_validate(build_job()).spec)
    again = derive_plan(plan.spec)
    assert again.entries == ()
    assert again.spec == plan.spec


def test_what_the_user_says_is_kept(build_job: Build) -> None:
    step = {"name": "d", "distil": {"hardLabelPercent": 10, "signals": [{"kind": "FeatureCosine"}]}}
    plan = derive_plan(CompressionJob.model_validate(build_job(**{"spec.pipeline": [step]})).spec)
    distil = plan.spec.pipeline[0].distil
    assert distil is not None
    assert distil.hard_label_percent == 10
    assert [signal.kind.value for signal in distil.signals] == ["FeatureCosine"]


def test_a_ratio_that_leaves_no_student_is_refused(build_job: Build) -> None:
    job = CompressionJob.model_validate(build_job(**{"spec.target.sizeRatio": 5000}))
    with pytest.raises(ValueError, match=r"`spec\.target\.sizeRatio` must leave a student"):
        derive_plan(job.spec)
