"""Validation samples side by side: what teacher and student answer, in words, with the picture.

Left out: which answers count as right (evaluation/) and how it looks (report/).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence

import numpy as np

from limbeck.api.report import Answer, SampleComparison
from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.data.index import DataIndex
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.data.samples import RawSample
from limbeck_runtime.evaluation.evaluation import Evaluation
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.steps.objective import TOKEN_TASKS

# Larger pictures are made smaller: a report with eight of them must stay easy to send.
_LONGEST_SIDE = 256

# Evaluation and place of the sample -> its answer.
AnswerOf = Callable[[Evaluation, int], Answer]


def compare_samples(
    index: DataIndex, bundle: ModelBundle, student: Evaluation, teacher: Evaluation | None, count: int
) -> list[SampleComparison]:
    """`count` samples, evenly spread over the validation data, with both models' answers."""
    positions = index.positions()
    places = np.unique(np.linspace(0, len(positions) - 1, min(count, len(positions))).round().astype(int)).tolist()
    if not places:
        return []
    with BatchLoader(index, bundle.preprocessing, num_threads=1) as loader:
        raw = loader.raw(positions[places])
        answer_of = _answers(index, bundle, loader, [e for e in (student, teacher) if e is not None], places)
    comparisons = []
    for place, sample in zip(places, raw, strict=True):
        ours = answer_of(student, place)
        theirs = None if teacher is None else answer_of(teacher, place)
        comparisons.append(
            SampleComparison(
                key=sample.key,
                image=_data_uri(sample.image),
                question="" if sample.image is not None else _first(sample.texts),
                truth=_truth(Task(bundle.task), sample),
                teacher=theirs,
                student=ours,
                agree=None if theirs is None else theirs.text == ours.text,
            )
        )
    return comparisons


def _answers(
    index: DataIndex, bundle: ModelBundle, loader: BatchLoader, evaluations: Sequence[Evaluation], places: list[int]
) -> AnswerOf:
    """How an answer's number becomes words: a class, a text of the data, or the tokens of a text."""
    if bundle.task in TOKEN_TASKS:
        return _token_answers(bundle)
    if bundle.task == Task.IMAGE_CLASSIFICATION:
        return lambda evaluation, place: _answer(
            evaluation, place, _class_name(index, int(evaluation.answers.ids[place]))
        )
    wanted = sorted({int(evaluation.answers.ids[place]) for evaluation in evaluations for place in places})
    texts = {
        candidate: _first(sample.texts) or sample.key
        for candidate, sample in zip(wanted, loader.raw(index.positions()[wanted]), strict=True)
    }
    return lambda evaluation, place: _answer(evaluation, place, texts[int(evaluation.answers.ids[place])])


def _class_name(index: DataIndex, number: int) -> str:
    """A model may know more classes than the data has."""
    return index.classes[number] if number < len(index.classes) else f"class {number}"


def _answer(evaluation: Evaluation, place: int, text: str) -> Answer:
    answers = evaluation.answers
    correct = int(answers.correct[place])
    return Answer(text=text, score=float(answers.scores[place]), correct=None if correct < 0 else bool(correct))


def _token_answers(bundle: ModelBundle) -> AnswerOf:
    """The most likely token after each token of the true text."""
    assert bundle.preprocessing.text is not None
    tokenizer = bundle.preprocessing.text.build_tokenizer()

    def answer(evaluation: Evaluation, place: int) -> Answer:
        counts = next(iter(evaluation.scores.values())).weights.astype(int)
        start = int(counts[:place].sum())
        tokens = slice(start, start + int(counts[place]))
        right = evaluation.answers.correct[tokens]
        text = tokenizer.decode(evaluation.answers.ids[tokens].tolist())
        return Answer(text=text, score=float((right == 1).mean()) if len(right) else None, correct=None)

    return answer


def _truth(task: Task, sample: RawSample) -> str | None:
    if task is Task.IMAGE_CLASSIFICATION:
        return sample.label
    return _first(sample.texts) or None


def _first(texts: tuple[str, ...]) -> str:
    return texts[0] if texts else ""


def _data_uri(encoded: bytes | None) -> str | None:
    """The picture as a PNG that is not larger than a report needs."""
    if encoded is None:
        return None
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as image:
        small = image.convert("RGBA" if image.mode in ("RGBA", "LA", "P") else "RGB")
        small.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
