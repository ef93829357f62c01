"""Measures one model on validation data: the metrics of its task, agreement with the teacher, slices, intervals.

Left out on purpose: cost (cost.py), and what follows from the figures (limbeck_runtime.report).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch

from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.data.batch import Batch
from limbeck_runtime.evaluation import embedding, image_classification, image_text, language
from limbeck_runtime.evaluation.evaluation import Answers, Evaluation, SliceMetrics
from limbeck_runtime.evaluation.findings import Findings
from limbeck_runtime.evaluation.names import LOWER_IS_BETTER, MAIN_METRIC
from limbeck_runtime.evaluation.scores import Interval, SampleScores, recovery_interval
from limbeck_runtime.models.bundle import ModelBundle

Progress = Callable[[int], None]


def evaluate(
    bundle: ModelBundle,
    batches: Iterable[Batch],
    *,
    classes: Sequence[str] = (),
    slices: Mapping[str, Sequence[str]] | None = None,
    teacher: Evaluation | None = None,
    main_metric: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Evaluation:
    """All figures of one model over `batches`, which must come in the same order for the teacher.

    `classes` are the names of the classes that labels stand for. `slices` gives for each column each sample's value,
    in the batches' order; samples without one ("") are left out. `progress` gets the samples done so far.

    Raises ValueError where the data cannot measure the task, or `main_metric` is not among what was measured.
    """
    task = Task(bundle.task)
    keys: list[str] = []
    was_training = bundle.module.training
    bundle.module.eval()
    try:
        with torch.inference_mode():
            findings = _MEASURES[task](bundle, _noting(batches, keys, progress), classes, teacher, device)
    finally:
        bundle.module.train(was_training)
    metrics = {name: score.value() for name, score in findings.scores.items()} | dict(findings.figures)
    main = main_metric or MAIN_METRIC[task]
    if main not in metrics:
        raise ValueError(
            f"`spec.evaluation.metrics[0]` must be a metric that {task.value} has on this data, got {main!r}; "
            f"take one of {', '.join(metrics)}"
        )
    unmeasured = dict(findings.unmeasured)
    agreement = None
    if teacher is not None:
        agreement, reason = agreement_percent(findings.answers, teacher.answers)
        if reason:
            unmeasured["agreementPercent"] = reason
    return Evaluation(
        metrics=metrics,
        main_metric=main,
        answers=findings.answers,
        scores=findings.scores,
        keys=tuple(keys),
        ece=findings.ece,
        agreement_percent=agreement,
        recovery_interval=_interval(findings, teacher, main),
        slices=slice_metrics(findings.scores, slices or {}),
        embeddings=findings.embeddings,
        unmeasured=unmeasured,
    )


def agreement_percent(mine: Answers, theirs: Answers) -> tuple[float | None, str]:
    """How often both give the same first answer, in percent; else None and the reason."""
    if len(mine.ids) != len(theirs.ids):
        return None, f"the teacher answered {len(theirs.ids)} questions, this model {len(mine.ids)}"
    if not len(mine.ids):
        return None, "there was no question"
    return 100 * float((mine.ids == theirs.ids).mean()), ""


def slice_metrics(
    scores: Mapping[str, SampleScores], slices: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, SliceMetrics]]:
    """The metrics over the samples of each value of each column; a value's count is of its samples.

    Candidates are those of the whole: an image of a flag must find its text among all texts, not among flags.
    """
    found: dict[str, dict[str, SliceMetrics]] = {}
    for column, values in slices.items():
        array = np.array(values, dtype=object)
        found[column] = {}
        for value in sorted(set(values) - {""}):
            rows = np.flatnonzero(array == value)
            taken = {name: score.value(rows) for name, score in scores.items()}
            metrics = {name: figure for name, figure in taken.items() if np.isfinite(figure)}
            found[column][value] = SliceMetrics(len(rows), metrics)
    return found


def _interval(findings: Findings, teacher: Evaluation | None, main: str) -> Interval | None:
    if teacher is None or main not in findings.scores or main not in teacher.scores:
        return None
    return recovery_interval(findings.scores[main], teacher.scores[main], higher_is_better=main not in LOWER_IS_BETTER)


def _noting(batches: Iterable[Batch], keys: list[str], progress: Progress | None) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        keys.extend(batch.keys)
        if progress is not None:
            progress(len(keys))


Measure = Callable[[ModelBundle, Iterable[Batch], Sequence[str], Evaluation | None, str], Findings]


def _without_teacher(
    measure: Callable[[ModelBundle, Iterable[Batch], Sequence[str], str], Findings],
) -> Measure:
    return lambda bundle, batches, classes, _teacher, device: measure(bundle, batches, classes, device)


def _vectors(output: str) -> Measure:
    def measure(
        bundle: ModelBundle,
        batches: Iterable[Batch],
        _classes: Sequence[str],
        teacher: Evaluation | None,
        device: str,
    ) -> Findings:
        theirs = None if teacher is None else teacher.embeddings
        return embedding.measure(bundle, batches, output, theirs, device)

    return measure


_MEASURES: dict[Task, Measure] = {
    Task.IMAGE_TEXT: _without_teacher(image_text.measure),
    Task.IMAGE_CLASSIFICATION: _without_teacher(image_classification.measure),
    Task.TEXT_EMBEDDING: _vectors("text_embedding"),
    Task.AUDIO_EMBEDDING: _vectors("audio_embedding"),
    Task.CAUSAL_LM: _without_teacher(language.measure),
    Task.SPEECH: _without_teacher(language.measure),
}
