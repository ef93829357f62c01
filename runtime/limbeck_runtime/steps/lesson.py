"""What a student can learn from a teacher: signals matched to the outputs that both really give.

Both models are asked for two samples; their answers' shapes decide what is stored, and what is refused before anything
starts. Left out: the formulas (losses/) and the capture (teacher/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.training import Distil, OutputCodec, Signal, TeacherOutputs
from limbeck_runtime.inputs import Inputs
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.steps.objective import CONTRASTIVE, DIVERGENCES, EMBEDDINGS, Match, Objective, Term
from limbeck_runtime.steps.outputs import FEATURE_PREFIX, example_outputs, paths_of
from limbeck_runtime.store import Codec, EmbeddingCodec, FeatureCodec, SampledCodec, TopKCodec

_DEFAULT_HARD_LABEL_PERCENT = 30
_DEFAULT_TEMPERATURE = 1.0


@dataclass(frozen=True)
class Lesson:
    """What is minimised, and what the store must hold for it."""

    objective: Objective
    codecs: Mapping[str, Codec]


def plan_lesson(settings: Distil, teacher: ModelBundle, student: ModelBundle, job: Inputs) -> Lesson:
    """Match the signals of `settings` to both models.

    Raises:
        ValueError: the models cannot be compared as asked; the message says how they differ and what to do.
    """
    task = Task(student.task)
    layers = [_layers(signal, teacher, student) for signal in settings.signals]
    theirs = example_outputs(teacher, job.train, sorted({pair[1] for pairs in layers for pair in pairs}))
    ours = example_outputs(student, job.train, sorted({pair[0] for pairs in layers for pair in pairs}))
    hard = (_DEFAULT_HARD_LABEL_PERCENT if settings.hard_label_percent is None else settings.hard_label_percent) / 100
    terms: list[Term] = []
    codecs: dict[str, Codec] = {}
    for signal, pairs in zip(settings.signals, layers, strict=True):
        matches: tuple[Match, ...] = ()
        if signal.kind in DIVERGENCES:
            codecs["logits"] = _logits_codec(settings.teacher_outputs, ours["logits"], theirs["logits"])
        elif signal.kind in CONTRASTIVE or not pairs:
            codecs |= {name: _embedding_codec(settings.teacher_outputs) for name in EMBEDDINGS[task]}
            if signal.kind not in CONTRASTIVE:
                matches = tuple(_match(name, name, ours, theirs) for name in EMBEDDINGS[task])
        else:
            matches = tuple(_match(FEATURE_PREFIX + own, FEATURE_PREFIX + its, ours, theirs) for own, its in pairs)
            codecs |= {match.teacher: FeatureCodec() for match in matches}
        terms.append(Term(signal.kind, signal.weight * (1 - hard), matches))
    objective = Objective(
        task,
        hard,
        tuple(terms),
        temperature=_DEFAULT_TEMPERATURE if settings.temperature is None else settings.temperature,
        teacher_scale=float(theirs["logit_scale"]) if "logit_scale" in theirs else 1.0,
        sampled=settings.teacher_outputs.codec is OutputCodec.SAMPLED,
        widths=_widths(task, ours, theirs),
    )
    return Lesson(objective, codecs)


def _layers(signal: Signal, teacher: ModelBundle, student: ModelBundle) -> list[tuple[str, str]]:
    """Pairs of layers that a feature signal names: the student's and the teacher's."""
    ours, theirs = paths_of(student, signal.student_layers), paths_of(teacher, signal.teacher_layers)
    if len(ours) != len(theirs):
        raise ValueError(
            f"`studentLayers` and `teacherLayers` of {signal.kind.value} must name equally many layers, got "
            f"{len(ours)} and {len(theirs)}; name them one by one"
        )
    return list(zip(ours, theirs, strict=True))


def _match(own: str, its: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Match:
    return Match(own, its, _channels(ours[own]), _channels(theirs[its]))


def _channels(output: Tensor) -> int:
    """Channels of maps (B, C, H, W) are in the second place, of vectors and sequences in the last."""
    return output.shape[1] if output.ndim == 4 else output.shape[-1]


def _widths(task: Task, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> tuple[int, int] | None:
    if task not in EMBEDDINGS:
        return None
    name = EMBEDDINGS[task][0]
    return ours[name].shape[-1], theirs[name].shape[-1]


def _embedding_codec(outputs: TeacherOutputs) -> EmbeddingCodec:
    return EmbeddingCodec("int8" if outputs.embedding_bits == 8 else "float16")


def _logits_codec(outputs: TeacherOutputs, ours: Tensor, theirs: Tensor) -> Codec:
    """How logits are stored: the classes that both models know, or the few likeliest of them."""
    vocabulary = min(ours.shape[-1], theirs.shape[-1])
    if ours.ndim != theirs.ndim:
        raise ValueError(
            f"teacher and student must both give logits by sample or both by token, got shapes "
            f"{tuple(theirs.shape)} and {tuple(ours.shape)}; choose models of one kind"
        )
    if outputs.codec is OutputCodec.SAMPLED:
        return SampledCodec(outputs.count, vocabulary)
    if outputs.codec is OutputCodec.FULL:
        return FeatureCodec()
    return TopKCodec(min(outputs.count, vocabulary), vocabulary)
