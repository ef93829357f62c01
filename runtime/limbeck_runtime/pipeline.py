"""The pipeline of a job from its inputs to the published result. Each piece is a stage: done once, found again.

    data and models -> teacher measured -> [baseline] -> step, measured -> ... -> export, gate, report -> publish

Left out: how a run is started and ended (driver.py), what each step does (steps/), what is measured (judge.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from limbeck.api.low_rank_record import LOW_RANK_FILE, LowRankRecord
from limbeck.api.prune_record import RECORD_FILE, REMOVED_FILE, PruneRecord
from limbeck.api.report import LossHistory, LowRankReport, Pruning, Report, Row, RowKind, StepReport
from limbeck.api.v1alpha1.job import Step
from limbeck.api.v1alpha1.training import Distil
from limbeck_runtime import names
from limbeck_runtime.context import Context
from limbeck_runtime.evaluation.evaluation import Evaluation
from limbeck_runtime.export.bundle_directory import write_bundle
from limbeck_runtime.fingerprint import fingerprint
from limbeck_runtime.inputs import Inputs, load_inputs
from limbeck_runtime.judge import Judge, Judged
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.limbeck_loader import load_bundle
from limbeck_runtime.publishing import Published, publish
from limbeck_runtime.report.build import loss_history
from limbeck_runtime.result import Finished, make_result
from limbeck_runtime.stages import Stage, is_done, run_stage
from limbeck_runtime.steps.finetune import finetune, hard_label_settings
from limbeck_runtime.steps.step import StepInputs, StepResult
from limbeck_runtime.steps.table import STEPS

# What a model said about each validation sample, kept beside the model.
EVALUATION_FILE = "evaluation.npz"
TEACHER = "teacher"
BASELINE = "baseline"


def run(context: Context) -> tuple[Report, Published]:
    """Run the job to its end and publish what came out, also where the gate says no.

    Raises:
        InvalidSpecError, UserCodeError, InterruptedRunError: see errors.py.
        FencedError: a newer driver has taken over.
    """
    spec = context.spec
    inputs = load_inputs(context)
    judge = Judge(context, inputs)
    known = _fingerprints(context, inputs)
    _warm_up(context, judge, known)
    rows: list[Row] = []
    reports: list[StepReport] = []
    records: dict[str, Path] = {}
    if inputs.teacher is not None:
        judge.teacher = _judged_teacher(context, judge, inputs.teacher)
        rows.append(judge.teacher.row)
    current = inputs.student
    for index, step in enumerate(spec.pipeline):
        path, before, done = f"spec.pipeline[{index}].{step.method_name}", known[index], known[index + 1]
        if step.distil is not None and spec.evaluation.baseline and BASELINE not in {row.label for row in rows}:
            rows.append(_baseline_row(context, judge, step.distil, StepInputs(BASELINE, path, current, inputs, before)))
        stage = _run_step(context, judge, step, StepInputs(step.name, path, current, inputs, done), index)
        current, judged = load_bundle(stage.folder), _judged(stage)
        rows.append(judged.row)
        reports.append(_step_report(step, stage))
        records |= _records(step, stage)
        _tell_recovery(context, judge, judged.row)
        context.upload_logs()
    context.end_steps()
    result = make_result(context, judge, inputs, Finished(current, judged, rows, reports, known[-1]))
    context.fence.check()  # what is published is not guarded by a commit
    return result.report, publish(context.output, {**result.files, **records}, result.fingerprint)


def _fingerprints(context: Context, inputs: Inputs) -> list[str]:
    """What goes into each step and, as the last one, into the result: all that came before, and its own settings."""
    spec = context.spec
    augmentation = spec.data.augmentation.model_dump(mode="json")
    known = [fingerprint(inputs.student_fingerprint, inputs.data_identity, augmentation, spec.seed)]
    for step in spec.pipeline:
        teacher = inputs.teacher_fingerprint if _distils(step) else None
        known.append(fingerprint(known[-1], step.model_dump(mode="json"), teacher))
    return known


def _distils(step: Step) -> bool:
    """Whether a step learns from the teacher, by itself or between rounds of pruning."""
    recover = step.prune.recover if step.prune is not None else None
    return step.distil is not None or (recover is not None and recover.distil is not None)


def _warm_up(context: Context, judge: Judge, known: list[str]) -> None:
    """Get the teacher's processes ready while other work goes on, where a step will want them."""
    if context.teacher_workers is not None:
        return
    for step, done in zip(context.spec.pipeline, known[1:], strict=True):
        if _distils(step) and not is_done(context, step.name, fingerprint(done, judge.identity)):
            return context.warm_actors.start(context.spec.cluster.teacher.min_replicas)


def _judged_teacher(context: Context, judge: Judge, teacher: ModelBundle) -> Judged:
    """The yardstick. Its files are not kept: they lie where the job says."""

    def work(folder: Path) -> Mapping[str, Any]:
        directory = context.scratch / "teacher"
        write_bundle(teacher, directory)
        return _record(judge.judge(TEACHER, RowKind.TEACHER, "", teacher, directory), folder)

    return _judged(run_stage(context, TEACHER, judge.identity, work))


def _baseline_row(context: Context, judge: Judge, settings: Distil, inputs: StepInputs) -> Row:
    """The same student at the same budget, taught by the data alone."""
    hard = hard_label_settings(settings)
    known = fingerprint(inputs.fingerprint, BASELINE, hard.model_dump(mode="json"))
    inputs = StepInputs(inputs.name, inputs.path, inputs.bundle, inputs.job, known)
    stage = _measured_stage(
        context, judge, inputs, "finetune", RowKind.BASELINE, lambda: finetune(hard, inputs, context)
    )
    return _judged(stage).row


def _run_step(context: Context, judge: Judge, step: Step, inputs: StepInputs, index: int) -> Stage:
    total = len(context.spec.pipeline)
    context.events.emit("step_started", step=step.name, method=step.method_name, index=index + 1, total=total)
    function = STEPS[step.method_name]
    stage = _measured_stage(
        context, judge, inputs, step.method_name, RowKind.STEP, lambda: function(step.method, inputs, context)
    )
    context.metrics.step_progress(step.name, 1.0)
    return stage


def _measured_stage(
    context: Context,
    judge: Judge,
    inputs: StepInputs,
    method: str,
    kind: RowKind,
    function: Callable[[], StepResult],
) -> Stage:
    """One step and its row in the report, as one stage that holds the model it leaves."""

    def work(folder: Path) -> Mapping[str, Any]:
        result = function()
        bundle = result.bundle
        write_bundle(bundle, folder)
        for name, content in result.files.items():
            (folder / name).write_bytes(content)
        judged = judge.judge(inputs.name, kind, method, bundle, folder)
        history = loss_history(context.history(), inputs.name)
        return {
            **_record(judged, folder),
            "history": None if history is None else history.model_dump(mode="json", by_alias=True),
        }

    stage = run_stage(context, inputs.name, fingerprint(inputs.fingerprint, judge.identity), work)
    if stage.reused:
        context.events.emit(
            "step_skipped", step=inputs.name, reason="its result is there already, from the same inputs"
        )
    else:
        metrics = {name: metric["value"] for name, metric in stage.record["row"]["metrics"].items()}
        context.events.emit("step_finished", step=inputs.name, seconds=stage.seconds, metrics=metrics)
    return stage


def _record(judged: Judged, folder: Path) -> dict[str, Any]:
    """What a stage keeps of a measurement: the row in its record, the answers in a file."""
    (folder / EVALUATION_FILE).write_bytes(judged.evaluation.to_bytes())
    return {"row": judged.row.to_wire()}


def _judged(stage: Stage) -> Judged:
    evaluation = Evaluation.from_bytes((stage.folder / EVALUATION_FILE).read_bytes())
    return Judged(Row.model_validate(stage.record["row"]), evaluation)


def _step_report(step: Step, stage: Stage) -> StepReport:
    history = stage.record.get("history")
    return StepReport(
        name=step.name,
        method=step.method_name,
        seconds=stage.seconds,
        skipped=stage.reused,
        settings=step.method.model_dump(mode="json", by_alias=True, exclude_none=True),
        history=None if history is None else LossHistory.model_validate(history),
        pruning=_pruning(stage),
        low_rank=_low_rank(stage),
    )


def _records(step: Step, stage: Stage) -> dict[str, Path]:
    """Files that a step leaves beside its model for people: where each is published -> where it lies."""
    paths = (stage.folder / name for name in (RECORD_FILE, REMOVED_FILE, LOW_RANK_FILE))
    return {f"{names.FOLDER_RECORDS}/{step.name}/{path.name}": path for path in paths if path.exists()}


def _pruning(stage: Stage) -> Pruning | None:
    """What the record beside the model says, for the report."""
    path = stage.folder / RECORD_FILE
    if not path.exists():
        return None
    record = PruneRecord.model_validate_json(path.read_bytes())
    return Pruning(
        granularity=record.granularity.value,
        parameters_before=record.parameters_before,
        parameters_after=record.parameters_after,
        zeros_after=record.zeros_after,
        layers=record.layers,
    )


def _low_rank(stage: Stage) -> LowRankReport | None:
    path = stage.folder / LOW_RANK_FILE
    if not path.exists():
        return None
    record = LowRankRecord.model_validate_json(path.read_bytes())
    return LowRankReport(
        data_aware=record.data_aware,
        parameters_before=record.parameters_before,
        parameters_after=record.parameters_after,
        layers=record.layers,
    )


def _tell_recovery(context: Context, judge: Judge, row: Row) -> None:
    metric = row.metrics.get(judge.main_metric)
    if metric is not None and metric.recovery_percent is not None:
        context.metrics.recovered(row.label, metric.recovery_percent / 100)
