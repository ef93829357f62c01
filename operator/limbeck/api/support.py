"""What this version's runtime can run; the rest of the API is refused by name before anything starts.

Both `limbeck validate` and the driver ask here. A line goes when the feature lands.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from limbeck.api.v1alpha1.compression import Activations, Granularity, Prune, Quantize, Scheme
from limbeck.api.v1alpha1.job import Spec, Step, Task
from limbeck.api.v1alpha1.model import Loader, Model
from limbeck.api.v1alpha1.outcome import ExportFormat
from limbeck.api.v1alpha1.training import Adapter, Distil, DistilMode, Finetune, FinetuneObjective, SignalKind

_LOADERS = (Loader.TRANSFORMERS, Loader.TIMM, Loader.DUAL_ENCODER, Loader.PYTHON, Loader.LIMBECK)
_EXPORTS = (ExportFormat.SAFETENSORS, ExportFormat.ONNX)
_SIGNALS_BY_TASK: dict[Task, tuple[SignalKind, ...]] = {
    Task.IMAGE_TEXT: (
        SignalKind.CONTRASTIVE_AFFINITY,
        SignalKind.CONTRASTIVE_FEATURE,
        SignalKind.CONTRASTIVE_INTERACTIVE,
        SignalKind.FEATURE_MSE,
        SignalKind.FEATURE_COSINE,
    ),
    Task.IMAGE_CLASSIFICATION: (
        SignalKind.FORWARD_KL,
        SignalKind.REVERSE_KL,
        SignalKind.JENSEN_SHANNON,
        SignalKind.FEATURE_MSE,
        SignalKind.FEATURE_COSINE,
    ),
    Task.CAUSAL_LM: (SignalKind.FORWARD_KL, SignalKind.REVERSE_KL, SignalKind.JENSEN_SHANNON),
    Task.TEXT_EMBEDDING: (SignalKind.FEATURE_MSE, SignalKind.FEATURE_COSINE),
}


_FEATURES = (SignalKind.FEATURE_MSE, SignalKind.FEATURE_COSINE)
# Tasks whose data has neither labels nor pairs to learn from: only a teacher can teach them.
_WITHOUT_LABELS = (Task.TEXT_EMBEDDING,)
# What the report and the run call their own; a step of the same name would be taken for it.
_RESERVED_NAMES = ("baseline", "data", "result", "teacher")


@dataclass(frozen=True)
class Refusal:
    """One setting that cannot be run yet."""

    field: str
    got: str
    allowed: str

    def __str__(self) -> str:
        return f"`{self.field}` must be {self.allowed} in this version, got {self.got}; change it"


def unsupported(spec: Spec) -> list[Refusal]:
    """Every setting of `spec` that this version cannot run, in the order of the fields."""
    return list(_refusals(spec))


def _refusals(spec: Spec) -> Iterator[Refusal]:
    if spec.task not in _SIGNALS_BY_TASK:
        yield Refusal("spec.task", spec.task.value, _one_of(_SIGNALS_BY_TASK))
        return
    if spec.teacher is not None:
        yield from _model_refusals(spec.teacher.model, "spec.teacher.model")
        if spec.teacher.ensemble:
            yield Refusal("spec.teacher.ensemble", f"{len(spec.teacher.ensemble)} more teachers", "empty")
    if spec.student is not None and spec.student.model is not None:
        yield from _model_refusals(spec.student.model, "spec.student.model")
    for index, step in enumerate(spec.pipeline):
        yield from _step_refusals(step, spec, f"spec.pipeline[{index}].{step.method_name}")
    yield from _outcome_refusals(spec)


def _step_refusals(step: Step, spec: Spec, path: str) -> Iterator[Refusal]:
    if step.name in _RESERVED_NAMES:
        reserved = ", ".join(_RESERVED_NAMES)
        yield Refusal(
            f"{path.rpartition('.')[0]}.name", step.name, f"another than {reserved}, which limbeck uses itself,"
        )
    if step.distil is not None:
        yield from _distil_refusals(step.distil, spec, path)
    elif step.finetune is not None:
        yield from _finetune_refusals(step.finetune, spec.task, path)
    elif step.prune is not None:
        yield from _prune_refusals(step.prune, step, spec, path)
    elif step.low_rank is not None:
        yield from _order_refusals(step, spec, path, "be factorised")
    elif step.quantize is not None:
        yield from _quantize_refusals(step.quantize, path)


def _outcome_refusals(spec: Spec) -> Iterator[Refusal]:
    if spec.evaluation.baseline and spec.task in _WITHOUT_LABELS:
        yield Refusal("spec.evaluation.baseline", "true", f"false for {spec.task.value}, whose data has no labels,")
    elif spec.evaluation.baseline and not any(step.distil for step in spec.pipeline):
        yield Refusal("spec.evaluation.baseline", "true", "false without a step that distils")
    if spec.evaluation.explain:
        yield Refusal("spec.evaluation.explain", "true", "false")
    for index, form in enumerate(spec.export.formats):
        if form not in _EXPORTS:
            yield Refusal(f"spec.export.formats[{index}]", form.value, _one_of(_EXPORTS))
    for name, value in (("mlflow", spec.tracking.mlflow), ("wandb", spec.tracking.wandb)):
        if value is not None:
            yield Refusal(f"spec.tracking.{name}", "settings", "absent")


def _model_refusals(model: Model, path: str) -> Iterator[Refusal]:
    if model.loader not in _LOADERS:
        yield Refusal(f"{path}.loader", model.loader.value, _one_of(_LOADERS))


def _distil_refusals(distil: Distil, spec: Spec, path: str) -> Iterator[Refusal]:
    if spec.teacher is None:
        yield Refusal("spec.teacher", "nothing", f"given, since `{path}` learns from it,")
    if distil.mode is not DistilMode.ONE_WAY:
        yield Refusal(f"{path}.mode", distil.mode.value, DistilMode.ONE_WAY.value)
    if distil.assistants:
        yield Refusal(f"{path}.assistants", ", ".join(distil.assistants), "empty")
    for name, schedule in (
        ("temperatureSchedule", distil.temperature_schedule),
        ("hardLabelSchedule", distil.hard_label_schedule),
    ):
        if schedule is not None:
            yield Refusal(f"{path}.{name}", schedule.shape.value, "absent")
    if distil.hard_label_percent and spec.task in _WITHOUT_LABELS:
        wanted = f"0 for {spec.task.value}, whose data has no labels,"
        yield Refusal(f"{path}.hardLabelPercent", str(distil.hard_label_percent), wanted)
    allowed = _SIGNALS_BY_TASK[spec.task]
    for index, signal in enumerate(distil.signals):
        if signal.kind not in allowed:
            yield Refusal(f"{path}.signals[{index}].kind", signal.kind.value, _one_of(allowed))
        if signal.standardize:
            yield Refusal(f"{path}.signals[{index}].standardize", "true", "false")
        if (signal.student_layers or signal.teacher_layers) and signal.kind not in _FEATURES:
            yield Refusal(
                f"{path}.signals[{index}]", f"layers for {signal.kind.value}", "without layers unless of features"
            )
    if distil.teacher_outputs.embedding_bits not in (8, 16):
        yield Refusal(f"{path}.teacherOutputs.embeddingBits", str(distil.teacher_outputs.embedding_bits), "8 or 16")


def _finetune_refusals(finetune: Finetune, task: Task, path: str) -> Iterator[Refusal]:
    if task in _WITHOUT_LABELS:
        yield Refusal(path, "finetune", f"distil for {task.value}, whose data has no labels,")
        return
    contrasts = task is Task.IMAGE_TEXT
    objective = FinetuneObjective.CONTRASTIVE if contrasts else FinetuneObjective.SUPERVISED
    if finetune.objective not in (None, objective):
        yield Refusal(f"{path}.objective", finetune.objective.value, f"{objective.value} for {task.value}")
    if finetune.label_smoothing_percent and contrasts:
        yield Refusal(f"{path}.labelSmoothingPercent", str(finetune.label_smoothing_percent), f"0 for {task.value}")
    if finetune.adapter is not Adapter.FULL:
        yield Refusal(f"{path}.adapter", finetune.adapter.value, Adapter.FULL.value)


def _order_refusals(step: Step, spec: Spec, path: str, what: str) -> Iterator[Refusal]:
    before = next(place for place, other in enumerate(spec.pipeline) if other is step)
    if any(other.quantize is not None for other in spec.pipeline[:before]):
        yield Refusal(path, "a place after quantize", f"before quantization, whose integers cannot {what},")


def _prune_refusals(prune: Prune, step: Step, spec: Spec, path: str) -> Iterator[Refusal]:
    yield from _order_refusals(step, spec, path, "be ranked")
    before = next(place for place, other in enumerate(spec.pipeline) if other is step)
    if prune.granularity is Granularity.STRUCTURED and any(other.low_rank for other in spec.pipeline[:before]):
        yield Refusal(
            f"{path}.granularity", "Structured after lowRank", "Unstructured or TwoFour on factors, or come before,"
        )
    if prune.recover is None:
        return
    if prune.recover.distil is not None:
        yield from _distil_refusals(prune.recover.distil, spec, f"{path}.recover.distil")
    if prune.recover.finetune is not None:
        yield from _finetune_refusals(prune.recover.finetune, spec.task, f"{path}.recover.finetune")


def _quantize_refusals(quantize: Quantize, path: str) -> Iterator[Refusal]:
    if quantize.scheme is not Scheme.INT8:
        yield Refusal(f"{path}.scheme", quantize.scheme.value, Scheme.INT8.value)
    if quantize.aware:
        yield Refusal(f"{path}.aware", "true", "false")
    if quantize.min_agreement_percent is not None:
        yield Refusal(f"{path}.minAgreementPercent", str(quantize.min_agreement_percent), "absent")
    if quantize.activations is not Activations.STATIC and "calibration" in quantize.model_fields_set:
        yield Refusal(f"{path}.calibration", quantize.calibration.value, "absent unless `activations` is Static")


def _one_of(values: object) -> str:
    names = [value.value for value in values]  # type: ignore[attr-defined]
    return "one of " + ", ".join(names)
