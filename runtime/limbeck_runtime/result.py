"""The end of a job: exported files, gate, report and model card, committed as one stage.

Left out: publishing under the names that people look for (publishing.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limbeck.api.report import (
    BadSampleRecord,
    BadSamples,
    ExportedFile,
    LatencyFigure,
    Report,
    Row,
    RowKind,
    StepReport,
)
from limbeck_runtime import names
from limbeck_runtime.comparison import compare_samples
from limbeck_runtime.context import Context
from limbeck_runtime.evaluation.latency import measure_latencies, take_samples
from limbeck_runtime.export.exporting import export_model
from limbeck_runtime.fingerprint import fingerprint
from limbeck_runtime.inputs import Inputs
from limbeck_runtime.judge import Judge, Judged
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.report.build import summarise_bad_samples
from limbeck_runtime.report.environment import environment
from limbeck_runtime.report.gate import decide
from limbeck_runtime.report.html import render
from limbeck_runtime.report.model_card import CardFacts, model_card
from limbeck_runtime.stages import run_stage

RESULT = "result"
# Files of the result that lie beside the model's folder, not in it.
_BESIDE_MODEL = (names.FILE_REPORT_JSON, names.FILE_REPORT_HTML)


@dataclass(frozen=True)
class Finished:
    """All steps are done: the last model, the rows of all, and what the steps did."""

    bundle: ModelBundle
    judged: Judged
    rows: Sequence[Row]
    steps: Sequence[StepReport]
    fingerprint: str


@dataclass(frozen=True)
class JobResult:
    """A committed result: its report, and where each file is to be published."""

    report: Report
    files: Mapping[str, Path]
    fingerprint: str


def make_result(context: Context, judge: Judge, inputs: Inputs, finished: Finished) -> JobResult:
    """Export, decide, report; or find what an earlier run of the same job has committed.

    Raises:
        VerificationError: an exported file does not answer as the model does.
    """
    spec = context.spec

    def work(folder: Path) -> Mapping[str, Any]:
        exports = _export(context, judge, finished.bundle, folder)
        report = _report(context, judge, inputs, finished, exports)
        (folder / names.FILE_REPORT_JSON).write_text(report.to_json(), encoding="utf-8")
        (folder / names.FILE_REPORT_HTML).write_text(render(report), encoding="utf-8")
        (folder / names.FILE_MODEL_CARD).write_text(model_card(report, _card_facts(context)), encoding="utf-8")
        return {}

    known = fingerprint(
        finished.fingerprint,
        judge.identity,
        [row.model_dump(mode="json") for row in finished.rows],
        spec.export.model_dump(mode="json"),
        None if spec.target is None else spec.target.model_dump(mode="json"),
        context.job.metadata.name,
        context.output.uri,
        [entry.model_dump(mode="json") for entry in context.job.status.plan],
    )
    stage = run_stage(context, RESULT, known, work)
    report = Report.model_validate_json((stage.folder / names.FILE_REPORT_JSON).read_bytes())
    files = {
        path.name if path.name in _BESIDE_MODEL else f"{names.FOLDER_MODEL}/{path.name}": path
        for path in sorted(stage.folder.iterdir())
    }
    return JobResult(report, files, stage.fingerprint)


def _export(context: Context, judge: Judge, bundle: ModelBundle, folder: Path) -> list[ExportedFile]:
    """Each format written into `folder`, loaded again and compared before it counts."""
    formats = context.spec.export.formats
    exported: list[ExportedFile] = []
    for done, form in enumerate([*formats, None]):
        context.check_stop()
        context.events.emit("step_progress", step=RESULT, phase="export", done=done, total=len(formats), unit="formats")
        if form is not None:
            exported += export_model(bundle, [form], folder, [judge.example(bundle)])
    return exported


def _report(
    context: Context, judge: Judge, inputs: Inputs, finished: Finished, exports: Sequence[ExportedFile]
) -> Report:
    spec = context.spec
    rows = _with_paired_latency(context, judge, inputs, finished)
    teacher = next((row for row in rows if row.kind is RowKind.TEACHER), None)
    reference = rows[0] if teacher is None and len(rows) > 1 else None
    return Report(
        job=context.job.metadata.name,
        task=spec.task.value,
        created_at=datetime.now(UTC),
        main_metric=judge.main_metric,
        environment=environment(context.device, context.num_threads),
        plan=list(context.job.status.plan),
        rows=list(rows),
        gate=decide(spec.target, judge.main_metric, rows[-1], teacher, reference),
        steps=list(finished.steps),
        bad_samples=_bad_samples(inputs),
        samples=compare_samples(
            inputs.validation,
            finished.bundle,
            finished.judged.evaluation,
            None if judge.teacher is None else judge.teacher.evaluation,
            spec.evaluation.samples,
        ),
        exports=list(exports),
        model_uri=f"{context.output.uri}/{names.FOLDER_MODEL}",
    )


def _with_paired_latency(context: Context, judge: Judge, inputs: Inputs, finished: Finished) -> list[Row]:
    """The rows, teacher and result timed again in turns: what the gate compares must have met the same noise."""
    rows = list(finished.rows)
    if inputs.teacher is None:
        return rows
    settings = context.spec.evaluation.latency
    models = {"teacher": inputs.teacher, "result": finished.bundle}
    examples = {label: judge.example(bundle) for label, bundle in models.items()}
    figures: dict[str, list[LatencyFigure]] = {label: [] for label in models}
    for batch_size in settings.batch_sizes:
        # Each model reads its own inputs, for the two may want different sizes of image.
        calls = {
            label: partial(_call, bundle.module, take_samples(examples[label], batch_size))
            for label, bundle in models.items()
        }
        timed = measure_latencies(calls, examples["teacher"], [batch_size], settings.repeats)
        for label, of_label in timed.items():
            figures[label] += of_label
    rows[0] = rows[0].model_copy(update={"latency": figures["teacher"]})
    rows[-1] = rows[-1].model_copy(update={"latency": figures["result"]})
    return rows


def _call(module: nn.Module, inputs: Mapping[str, Tensor], _ignored: Mapping[str, Tensor]) -> object:
    return module(inputs)


def _bad_samples(inputs: Inputs) -> BadSamples:
    bad = [*inputs.train.bad, *inputs.validation.bad]
    records = [
        BadSampleRecord(shard=sample.shard, key=sample.key, reason=sample.reason.value, detail=sample.detail)
        for sample in bad
    ]
    return summarise_bad_samples(records, inputs.train.num_samples + inputs.validation.num_samples + len(bad))


def _card_facts(context: Context) -> CardFacts:
    teacher = context.spec.teacher
    return CardFacts(base_model=None if teacher is None else teacher.model.uri or teacher.model.architecture)
