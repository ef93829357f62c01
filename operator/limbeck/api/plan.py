"""From the one dial to a whole plan: what the user left out is derived, each value with its reason.

Pure: takes a spec, returns the resolved spec and the list of what was derived. `limbeck plan`, the operator and
the driver call the same function, so all three agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from limbeck.api.status import PlanEntry
from limbeck.api.v1alpha1.job import Spec, Step, Task
from limbeck.api.v1alpha1.training import Distil, FinetuneObjective, SignalKind

# What int8 weights with their scales are worth against float32 on real models (amendment 9).
INT8_SIZE_RATIO = 3.8
# Below this depth a student loses more than the int8 step saves.
SMALLEST_WIDTH_PERCENT = 10

_DEFAULT_SIGNALS: dict[Task, tuple[tuple[SignalKind, float], ...]] = {
    Task.IMAGE_TEXT: (
        (SignalKind.CONTRASTIVE_AFFINITY, 1.0),
        (SignalKind.CONTRASTIVE_FEATURE, 10.0),
        (SignalKind.CONTRASTIVE_INTERACTIVE, 1.0),
    ),
    Task.IMAGE_CLASSIFICATION: ((SignalKind.FORWARD_KL, 1.0),),
    Task.CAUSAL_LM: ((SignalKind.FORWARD_KL, 1.0),),
    Task.SPEECH: ((SignalKind.FORWARD_KL, 1.0),),
    Task.TEXT_EMBEDDING: ((SignalKind.FEATURE_COSINE, 1.0),),
    Task.AUDIO_EMBEDDING: ((SignalKind.FEATURE_COSINE, 1.0),),
}
_DEFAULT_TEMPERATURE: dict[Task, float] = {
    Task.IMAGE_CLASSIFICATION: 2.0,
    Task.CAUSAL_LM: 1.0,
    Task.SPEECH: 1.0,
}
_CONTRASTIVE_TASKS = (Task.IMAGE_TEXT,)
MAIN_METRIC: dict[Task, str] = {
    Task.IMAGE_TEXT: "mean_recall@10",
    Task.IMAGE_CLASSIFICATION: "accuracy",
    Task.TEXT_EMBEDDING: "recall@1",
    Task.CAUSAL_LM: "perplexity",
    Task.AUDIO_EMBEDDING: "recall@1",
    Task.SPEECH: "word_error_rate",
}


@dataclass(frozen=True)
class Plan:
    """A spec with nothing left to derive, and what was derived."""

    spec: Spec
    entries: tuple[PlanEntry, ...]


def derive_plan(spec: Spec) -> Plan:
    """Fill what `spec` leaves open.

    Raises:
        ValueError: the target cannot be planned for; the message names the field.
    """
    entries: list[PlanEntry] = []
    raw = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if not spec.pipeline:
        _derive_pipeline(spec, raw, entries)
    for index, step in enumerate(raw.get("pipeline", [])):
        _derive_training_defaults(spec.task, step, f"spec.pipeline[{index}]", entries)
    _derive_main_metric(spec, raw, entries)
    return Plan(spec=Spec.model_validate(raw), entries=tuple(entries))


def _derive_pipeline(spec: Spec, raw: dict[str, Any], entries: list[PlanEntry]) -> None:
    if spec.target is None or spec.teacher is None:
        raise ValueError("`spec.pipeline` must be given when there is no `target` with a `teacher`; add the steps")
    wanted = spec.target.size_ratio
    latency = spec.target.max_latency_percent
    steps: list[dict[str, Any]] = []
    needs_student = wanted > INT8_SIZE_RATIO or (latency is not None and latency < 50)
    if spec.student is not None or needs_student:
        if spec.student is None:
            raw["student"] = {"shrink": _derive_shrink(wanted, latency, entries)}
        steps.append({"name": "distil", "distil": {}})
        entries.append(_entry("spec.pipeline[0]", "distil", "a smaller student learns from the teacher first"))
    if wanted > 1 and (spec.student is None or wanted > 1.5):
        entries.append(
            _entry(
                f"spec.pipeline[{len(steps)}]",
                "quantize Int8, dynamic activations",
                f"int8 is worth {INT8_SIZE_RATIO}x of the wanted {wanted:g}x and needs no calibration data",
            )
        )
        steps.append({"name": "int8", "quantize": {"scheme": "Int8", "activations": "Dynamic"}})
    if not steps:
        raise ValueError(
            f"`spec.target.sizeRatio` must ask for something to do, got {wanted:g} without a student; "
            "raise it or list steps in `spec.pipeline`"
        )
    raw["pipeline"] = steps


def _derive_shrink(wanted: float, latency: int | None, entries: list[PlanEntry]) -> dict[str, int]:
    """Share of depth and width that leaves `wanted / 3.8` of the parameters, the rest being int8's."""
    rest = max(wanted / INT8_SIZE_RATIO, 1.0)
    shrink: dict[str, int] = {}
    if latency is not None and latency < 50:
        shrink["depthPercent"] = 50
        entries.append(
            _entry(
                "spec.student.shrink.depthPercent",
                50,
                "depth is the faster cut at equal size, for the latency asked",
            )
        )
        rest = max(rest / 2, 1.0)
    if rest > 1.0:
        # Parameters of a layer go with the square of its width.
        width = max(math.floor(100 / math.sqrt(rest)), 1)
        if width < SMALLEST_WIDTH_PERCENT:
            raise ValueError(
                f"`spec.target.sizeRatio` must leave a student of at least {SMALLEST_WIDTH_PERCENT} % width, "
                f"got a ratio of {wanted:g} that leaves {width} %; lower it or give `spec.student` yourself"
            )
        shrink["widthPercent"] = width
        entries.append(
            _entry(
                "spec.student.shrink.widthPercent",
                width,
                f"int8 brings {INT8_SIZE_RATIO}x, the other {rest:.2f}x come from width, squared in parameters",
            )
        )
    if not shrink:
        raise AssertionError("a student is derived only where something is to be cut")
    return shrink


def _derive_training_defaults(task: Task, step: dict[str, Any], path: str, entries: list[PlanEntry]) -> None:
    if "distil" in step:
        _derive_distil(task, step["distil"], f"{path}.distil", entries)
    recover = step.get("prune", {}).get("recover") or {}
    if recover.get("distil") is not None:
        _derive_distil(task, recover["distil"], f"{path}.prune.recover.distil", entries)
    if "finetune" in step and "objective" not in step["finetune"]:
        objective = FinetuneObjective.CONTRASTIVE if task in _CONTRASTIVE_TASKS else FinetuneObjective.SUPERVISED
        step["finetune"]["objective"] = objective.value
        entries.append(_entry(f"{path}.finetune.objective", objective.value, f"what suits {task.value}"))


def _derive_distil(task: Task, distil: dict[str, Any], path: str, entries: list[PlanEntry]) -> None:
    if not distil.get("signals"):
        chosen = _DEFAULT_SIGNALS[task]
        distil["signals"] = [{"kind": kind.value, "weight": weight} for kind, weight in chosen]
        text = ", ".join(f"{kind.value} x{weight:g}" for kind, weight in chosen)
        entries.append(_entry(f"{path}.signals", text, f"what suits {task.value}"))
    if "temperature" not in distil and "temperatureSchedule" not in distil and task in _DEFAULT_TEMPERATURE:
        distil["temperature"] = _DEFAULT_TEMPERATURE[task]
        entries.append(_entry(f"{path}.temperature", distil["temperature"], f"what suits {task.value}"))
    if "hardLabelPercent" not in distil and "hardLabelSchedule" not in distil:
        # Embedding tasks have no labels of their own: the teacher is the only signal.
        has_labels = task not in (Task.TEXT_EMBEDDING, Task.AUDIO_EMBEDDING)
        distil["hardLabelPercent"] = 30 if has_labels else 0
        reason = "the data's own labels keep the student honest" if has_labels else f"{task.value} has no labels"
        entries.append(_entry(f"{path}.hardLabelPercent", distil["hardLabelPercent"], reason))
    # Raises early, with the field's name, on settings that do not go together.
    Distil.model_validate(distil)


def _derive_main_metric(spec: Spec, raw: dict[str, Any], entries: list[PlanEntry]) -> None:
    if spec.evaluation.metrics:
        return
    metric = MAIN_METRIC[spec.task]
    raw.setdefault("evaluation", {})["metrics"] = [metric]
    entries.append(_entry("spec.evaluation.metrics[0]", metric, f"the main metric of {spec.task.value}"))


def _entry(field: str, value: object, reason: str) -> PlanEntry:
    return PlanEntry(field=field, value=str(value), reason=reason)


def step_path(spec: Spec, step: Step) -> str:
    """The path of `step` in messages, e.g. `spec.pipeline[1].distil`."""
    return f"spec.pipeline[{spec.pipeline.index(step)}].{step.method_name}"
