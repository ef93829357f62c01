"""What a student can learn from a teacher: signals matched to the outputs that both really give.

Both models are asked for two samples; their answers' shapes decide what is stored, and the loss of these two is
computed, so that what cannot be compared is refused before anything starts.
Left out: the formulas (losses/) and the capture (teacher/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.training import Distil, OutputCodec, Signal, TeacherOutputs
from limbeck_runtime.inputs import Inputs
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.models.preprocessing import Preprocessing
from limbeck_runtime.steps.objective import (
    CONTRASTIVE,
    DIVERGENCES,
    EMBEDDINGS,
    TOKEN_TASKS,
    Match,
    Objective,
    Term,
    labels_of,
)
from limbeck_runtime.steps.outputs import FEATURE_PREFIX, example_of, paths_of
from limbeck_runtime.steps.rehearsal import rehearse
from limbeck_runtime.store import Codec, EmbeddingCodec, FeatureCodec, SampledCodec, TopKCodec

_DEFAULT_HARD_LABEL_PERCENT = 30
_DEFAULT_TEMPERATURE = 1.0
# Of so many classes, what is stored takes half a KiB in full.
_FEW_CLASSES = 256


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
    if task in TOKEN_TASKS:
        check_same_tokens(teacher.preprocessing, student.preprocessing)
    layers = [_layers(signal, teacher, student) for signal in settings.signals]
    of_teacher = example_of(teacher, job.train, sorted({pair[1] for pairs in layers for pair in pairs}))
    of_student = example_of(
        student, job.train, sorted({pair[0] for pairs in layers for pair in pairs}), labels_of(task)
    )
    ours, theirs = of_student.outputs, of_teacher.outputs
    hard = (_DEFAULT_HARD_LABEL_PERCENT if settings.hard_label_percent is None else settings.hard_label_percent) / 100
    terms: list[Term] = []
    codecs: dict[str, Codec] = {}
    for signal, pairs in zip(settings.signals, layers, strict=True):
        matches: tuple[Match, ...] = ()
        if signal.kind in DIVERGENCES:
            codecs["logits"] = _logits_codec(settings.teacher_outputs, ours["logits"], theirs["logits"])
        elif signal.kind in CONTRASTIVE or not pairs:
            if task not in EMBEDDINGS:
                raise ValueError(
                    f"`studentLayers` and `teacherLayers` of {signal.kind.value} must name layers for {task.value}, "
                    "which has no embedding to compare; name one of each"
                )
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
    rehearse(objective, job.train, of_student, of_teacher, codecs)
    return Lesson(objective, codecs)


def check_same_tokens(teacher: Preprocessing, student: Preprocessing) -> None:
    """Raises ValueError where a place in the teacher's output and in the student's need not be of the same token."""
    theirs, ours = teacher.text, student.text
    assert theirs is not None
    assert ours is not None
    for field, name in (("max_length", "maxTextLength"), ("num_image_tokens", "number of image tokens")):
        if getattr(theirs, field) != getattr(ours, field):
            raise ValueError(
                f"teacher and student must have the same {name}, got {getattr(theirs, field)} and "
                f"{getattr(ours, field)}; the teacher's outputs are compared token by token"
            )
    if theirs.tokenizer_json == ours.tokenizer_json:
        return
    words_of = [
        {identifier: word for word, identifier in text.build_tokenizer().get_vocab(with_added_tokens=True).items()}
        for text in (theirs, ours)
    ]
    different = sorted(
        token for token in words_of[0].keys() & words_of[1].keys() if words_of[0][token] != words_of[1][token]
    )
    if different:
        raise ValueError(
            f"teacher and student must have one vocabulary (it may be padded differently), but token {different[0]} is "
            f"{words_of[0][different[0]]!r} for the teacher and {words_of[1][different[0]]!r} for the student; "
            "give both the same tokenizer"
        )


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
    # All of few classes are small in full, cheap to learn from, and serve any divergence and temperature.
    few = vocabulary <= _FEW_CLASSES if outputs.codec is None else outputs.count >= vocabulary
    if outputs.codec is OutputCodec.FULL or few:
        return FeatureCodec()
    return TopKCodec(outputs.count, vocabulary)
