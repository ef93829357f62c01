"""The loss of a training step, put together from the job's signals: plain data here, a loss on each worker.

Every term is weighted as it enters the sum: a signal by its weight and by the share that hard labels leave.
Left out: the formulas (losses/), and moving temperatures and shares, which are refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.training import SignalKind
from limbeck_runtime.data.batch import IGNORED_LABEL, Labels
from limbeck_runtime.losses import contrastive
from limbeck_runtime.losses.distillation import distil_logits, next_token_labels
from limbeck_runtime.losses.divergence import Divergence, Mix
from limbeck_runtime.losses.feature import FeatureProjection, feature_cosine, feature_mse
from limbeck_runtime.losses.teachers import Sampled, Teacher, TeacherLogits, TopK
from limbeck_runtime.steps.outputs import FEATURE_PREFIX
from limbeck_runtime.student.collectives import RowGather

DIVERGENCES = {
    SignalKind.FORWARD_KL: Divergence.FORWARD_KL,
    SignalKind.REVERSE_KL: Divergence.REVERSE_KL,
    SignalKind.JENSEN_SHANNON: Divergence.JENSEN_SHANNON,
}
CONTRASTIVE = (
    SignalKind.CONTRASTIVE_AFFINITY,
    SignalKind.CONTRASTIVE_FEATURE,
    SignalKind.CONTRASTIVE_INTERACTIVE,
)
FEATURE_LOSSES = {SignalKind.FEATURE_MSE: feature_mse, SignalKind.FEATURE_COSINE: feature_cosine}
EMBEDDINGS = {
    Task.IMAGE_TEXT: ("image_embedding", "text_embedding"),
    Task.TEXT_EMBEDDING: ("text_embedding",),
    Task.AUDIO_EMBEDDING: ("audio_embedding",),
}
TOKEN_TASKS = (Task.CAUSAL_LM, Task.SPEECH)
HARD = "hard"

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Match:
    """Two outputs that are to be alike, by name, with their channels: a projection goes between where those differ."""

    student: str
    teacher: str
    student_channels: int
    teacher_channels: int


@dataclass(frozen=True)
class Term:
    """One signal: `weight` includes the share that is left beside hard labels."""

    kind: SignalKind
    weight: float
    matches: tuple[Match, ...] = ()


@dataclass(frozen=True)
class Objective:
    """What a student is to minimise.

    `hard_weight` is the share of the loss on the data's own labels or pairs. `teacher_scale` is the teacher's logit
    scale, and `widths` the embedding widths of student and teacher, for contrastive signals. `sampled`: stored logits
    are draws with their weights, not the top k.
    """

    task: Task
    hard_weight: float
    terms: tuple[Term, ...] = ()
    temperature: float = 1.0
    label_smoothing: float = 0.0
    teacher_scale: float = 1.0
    sampled: bool = False
    widths: tuple[int, int] | None = None

    @property
    def couples_samples(self) -> bool:
        """Whether samples are compared with each other, so that the loss must see the whole batch."""
        return self.task is Task.IMAGE_TEXT

    @property
    def labels(self) -> Labels:
        """What the batches' labels are to be."""
        return labels_of(self.task)

    @property
    def student_layers(self) -> tuple[str, ...]:
        """Inner layers of the student that signals look at."""
        names = [match.student for term in self.terms for match in term.matches]
        return tuple(dict.fromkeys(n.removeprefix(FEATURE_PREFIX) for n in names if n.startswith(FEATURE_PREFIX)))

    @property
    def count(self) -> Callable[[Any], int] | None:
        """Of what the loss is a mean, where not of samples: predicted tokens."""
        return count_predicted_tokens if self.task in TOKEN_TASKS else None

    def build(self, gather: RowGather) -> ObjectiveLoss:
        """The loss of one worker."""
        return ObjectiveLoss(self, gather)


def labels_of(task: Task) -> Labels:
    """What a task learns from the data itself, beside pairs."""
    if task in TOKEN_TASKS:
        return Labels.TOKENS
    return Labels.CLASSES if task is Task.IMAGE_CLASSIFICATION else Labels.NONE


def count_predicted_tokens(batch: Any) -> int:
    """Tokens of text in the batch that follow another token; image tokens and padding are not predicted."""
    return int((_next_tokens(batch) != IGNORED_LABEL).sum())


class ObjectiveLoss(nn.Module):
    """(outputs, batch) -> weighted terms. Holds the projections, which train with the student and are thrown away."""

    def __init__(self, objective: Objective, gather: RowGather) -> None:
        super().__init__()
        self._objective = objective
        self._gather = gather
        self.projections = nn.ModuleDict(
            {
                f"{of_term}-{of_match}": FeatureProjection(match.student_channels, match.teacher_channels)
                for of_term, term in enumerate(objective.terms)
                for of_match, match in enumerate(term.matches)
                if match.student_channels != match.teacher_channels
            }
        )
        widths = objective.widths
        needs_space = any(term.kind in CONTRASTIVE[1:] for term in objective.terms)
        self.to_teacher_space = (
            nn.Linear(*widths, bias=False) if needs_space and widths is not None and widths[0] != widths[1] else None
        )

    def forward(self, outputs: Mapping[str, Tensor], batch: Any) -> Terms:
        """All terms; their sum is the loss."""
        objective = self._objective
        terms: Terms = {}
        divergent = [term for term in objective.terms if term.kind in DIVERGENCES]
        if divergent:
            terms |= self._logit_terms(divergent, outputs, batch)
        elif objective.hard_weight > 0:
            terms[HARD] = objective.hard_weight * self._hard(outputs, batch)
        for place, term in enumerate(objective.terms):
            if term.kind in CONTRASTIVE:
                _add(terms, term, self._contrastive(term.kind, outputs, batch))
            elif term.kind in FEATURE_LOSSES:
                _add(terms, term, self._features(place, outputs, batch))
        return terms

    def _hard(self, outputs: Mapping[str, Tensor], batch: Any) -> Tensor:
        """The loss on the data's own labels or pairs."""
        objective = self._objective
        if objective.task is Task.IMAGE_TEXT:
            return contrastive.info_nce(_pair(outputs), across=self._across())
        logits = outputs["logits"]
        labels = _labels(objective.task, batch)
        total = cross_entropy(
            logits.flatten(0, -2).float(), labels.flatten(), label_smoothing=objective.label_smoothing, reduction="sum"
        )
        # A part of a batch may hold texts of one token only, which predict nothing.
        return total / (labels != IGNORED_LABEL).sum().clamp(min=1)

    def _logit_terms(self, divergent: list[Term], outputs: Mapping[str, Tensor], batch: Any) -> Terms:
        objective = self._objective
        logits = outputs["logits"]
        labels = _labels(objective.task, batch) if objective.task in TOKEN_TASKS or objective.hard_weight else None
        teacher = _teacher(batch, objective.sampled)
        terms: Terms = {}
        for term in divergent:
            # One signal that has all that hard labels leave is computed together with them, in one pass.
            is_whole = len(divergent) == 1 and abs(term.weight + objective.hard_weight - 1) < 1e-9
            mix = Mix(DIVERGENCES[term.kind], objective.temperature, objective.hard_weight if is_whole else 0.0)
            valid = labels != IGNORED_LABEL if labels is not None and objective.task in TOKEN_TASKS else None
            result = distil_logits(logits, teacher, mix, labels_N=labels if is_whole else None, valid_N=valid)
            if is_whole:
                parts = result.terms()
                return (
                    {term.kind.value: parts["soft"], HARD: parts["hard"]}
                    if objective.hard_weight
                    else {term.kind.value: result.loss}
                )
            _add(terms, term, result.loss)
        if objective.hard_weight:
            terms[HARD] = objective.hard_weight * self._hard(outputs, batch)
        return terms

    def _contrastive(self, kind: SignalKind, outputs: Mapping[str, Tensor], batch: Any) -> Tensor:
        student = _pair(outputs)
        teacher = contrastive.Pair(
            batch.teacher["image_embedding"], batch.teacher["text_embedding"], self._objective.teacher_scale
        )
        if kind is SignalKind.CONTRASTIVE_AFFINITY:
            return contrastive.affinity_mimicking(
                student, teacher, temperature=self._objective.temperature, across=self._across()
            )
        if kind is SignalKind.CONTRASTIVE_INTERACTIVE:
            return contrastive.interactive_contrastive(
                student, teacher, project=self.to_teacher_space, across=self._across()
            )
        pairs = ((student.image, teacher.image), (student.text, teacher.text))
        losses = [contrastive.embedding_feature(own, its, project=self.to_teacher_space) for own, its in pairs]
        return (losses[0] + losses[1]) / 2

    def _features(self, place: int, outputs: Mapping[str, Tensor], batch: Any) -> Tensor:
        """Mean over the pairs of layers of the term at `place`."""
        term = self._objective.terms[place]
        projections = dict(self.projections.items())
        losses = [
            FEATURE_LOSSES[term.kind](
                outputs[match.student],
                _by_token(match.teacher, match.teacher, batch),
                projection=projections.get(f"{place}-{of_match}"),
                valid_BT=batch.inputs["attention_mask"] != 0 if _has_lengths(match.teacher, batch) else None,
            )
            for of_match, match in enumerate(term.matches)
        ]
        return torch.stack(losses).mean()

    def _across(self) -> contrastive.Across:
        return contrastive.Across(self._gather, self._gather.first_row)


def _pair(outputs: Mapping[str, Tensor]) -> contrastive.Pair:
    return contrastive.Pair(outputs["image_embedding"], outputs["text_embedding"], outputs["logit_scale"])


def _add(terms: Terms, term: Term, loss: Tensor) -> None:
    """Two signals of one kind are one entry."""
    name = term.kind.value
    terms[name] = term.weight * loss + terms[name] if name in terms else term.weight * loss


def _labels(task: Task, batch: Any) -> Tensor:
    """int64 (B,) classes, or (B, T) next tokens."""
    if task in TOKEN_TASKS:
        return _next_tokens(batch)
    labels: Tensor = batch.inputs["labels"]
    return labels


def _next_tokens(batch: Any) -> Tensor:
    """int64 (B, T): the token of text that follows each, else `IGNORED_LABEL`."""
    return next_token_labels(batch.inputs["labels"], batch.inputs["attention_mask"], IGNORED_LABEL)


def _teacher(batch: Any, sampled: bool) -> Teacher:
    """The teacher's logits in the form in which the store has them."""
    stored = batch.teacher
    if "logits" in stored:
        return TeacherLogits(_by_token("logits", "logits", batch))
    indices, log_probs, tail = (
        _by_token("logits", f"logits.{part}", batch) for part in ("indices", "log_probs", "tail_log_mass")
    )
    if sampled:
        return Sampled(indices, log_probs.exp())
    return TopK(indices, log_probs, tail)


def _has_lengths(signal: str, batch: Any) -> bool:
    return f"{signal}.lengths" in batch.teacher


def _by_token(signal: str, part: str, batch: Any) -> Tensor:
    """A stored part; what came by token is as long as the batch's texts, which may be padded further than stored."""
    values: Tensor = batch.teacher[part]
    if not _has_lengths(signal, batch):
        return values
    mask_BT = batch.inputs["attention_mask"]
    theirs, ours = batch.teacher[f"{signal}.lengths"], mask_BT.sum(1)
    if not torch.equal(theirs.to(ours.dtype), ours):
        raise ValueError(
            f"teacher and student must cut texts into the same tokens, got {theirs.tolist()} and {ours.tolist()} for "
            "the texts of one batch; give both the same tokenizer and `maxTextLength`"
        )
    missing = mask_BT.shape[1] - values.shape[1]
    if missing == 0:
        return values
    return torch.cat([values, values.new_zeros((len(values), missing, *values.shape[2:]))], dim=1)
