"""Losses on the embeddings of image-text pairs: the data's own pairing, and four ways to follow a teacher.

All take L2-normalised embeddings of the same B samples in the same order, and logit scales that are exponentiated
already. Over several ranks, `across` lets each rank compare its own samples with those of all (with gradient), and its
own rows make its loss: the mean of the ranks' losses is the loss of the whole batch, and so is its gradient.
Products are in float32 or wider also under autocast: a scale of 100 would turn bfloat16's rounding into noise.

Shapes: B samples of this rank, G samples of all ranks, D student width, E teacher width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Across:
    """How this rank sees the other ranks' samples: `gather` turns (B, D) into (G, D) in rank order, with gradient."""

    gather: Callable[[Tensor], Tensor]
    first_row: int  # where this rank's samples begin among the G


@dataclass(frozen=True)
class Pair:
    """Image and text embeddings of the same samples, and the scale of their products."""

    image: Tensor  # B, D
    text: Tensor  # B, D
    logit_scale: Tensor | float


def info_nce(student: Pair, *, across: Across | None = None) -> Tensor:
    """Cross-entropy of finding the own text for an image and the own image for a text (CLIP; Radford et al., 2021)."""
    image_to_text_BG, text_to_image_BG = _similarities(student, across)
    target_B = _own_columns(image_to_text_BG, across)
    return (
        functional.cross_entropy(image_to_text_BG, target_B) + functional.cross_entropy(text_to_image_BG, target_B)
    ) / 2


def affinity_mimicking(
    student: Pair, teacher: Pair, *, temperature: float = 1.0, across: Across | None = None
) -> Tensor:
    """temperature^2 * KL of the teacher's image-to-text and text-to-image distributions to the student's, halved.

    Source: TinyCLIP (Wu et al., 2023), there as a cross-entropy, which differs by the teacher's constant entropy.
    """
    losses = [
        functional.kl_div(
            (student_BG / temperature).log_softmax(-1),
            (teacher_BG / temperature).log_softmax(-1),
            reduction="batchmean",
            log_target=True,
        )
        for student_BG, teacher_BG in zip(
            _similarities(student, across), _similarities(_constant(teacher), across), strict=True
        )
    ]
    return (losses[0] + losses[1]) * (temperature**2 / 2)


def interactive_contrastive(
    student: Pair,
    teacher: Pair,
    *,
    project: Callable[[Tensor], Tensor] | None = None,
    across: Across | None = None,
) -> Tensor:
    """Cross-entropy of finding, for a student's embedding, the teacher's embedding of the other modality.

    With widths that differ, `project` maps the student's embeddings (..., D) to (..., E). The student's scale is used.
    Source: CLIP-KD (Yang et al., 2024), interactive contrastive learning.
    """
    teacher = _constant(teacher)
    image_BE, text_BE = (
        _projected(student.image, teacher.image, project),
        _projected(student.text, teacher.text, project),
    )
    image_BG = _product(image_BE, _all(teacher.text, across), student.logit_scale)
    text_BG = _product(text_BE, _all(teacher.image, across), student.logit_scale)
    target_B = _own_columns(image_BG, across)
    return (functional.cross_entropy(image_BG, target_B) + functional.cross_entropy(text_BG, target_B)) / 2


def embedding_feature(
    student_BD: Tensor, teacher_BE: Tensor, *, project: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Mean over samples of the squared distance between normalised embeddings: 2 - 2 cosine.

    Source: CLIP-KD (Yang et al., 2024), feature distillation. It compares each sample with itself alone, so ranks need
    not see each other.
    """
    student_BE = _wide(_projected(student_BD, teacher_BE, project))
    return (student_BE - _wide(teacher_BE.detach())).square().sum(-1).mean()


def _similarities(pair: Pair, across: Across | None) -> tuple[Tensor, Tensor]:
    """Logits (B, G) of this rank's images against all texts, and of its texts against all images."""
    return (
        _product(pair.image, _all(pair.text, across), pair.logit_scale),
        _product(pair.text, _all(pair.image, across), pair.logit_scale),
    )


def _product(own_BD: Tensor, all_GD: Tensor, logit_scale: Tensor | float) -> Tensor:
    if own_BD.shape[-1] != all_GD.shape[-1]:
        raise ValueError(f"embeddings must have the same width, got {own_BD.shape[-1]} and {all_GD.shape[-1]}")
    with torch.autocast(own_BD.device.type, enabled=False):
        return _wide(own_BD) @ _wide(all_GD).t() * logit_scale


def _all(own_BD: Tensor, across: Across | None) -> Tensor:
    return own_BD if across is None else across.gather(own_BD)


def _own_columns(logits_BG: Tensor, across: Across | None) -> Tensor:
    first = 0 if across is None else across.first_row
    return torch.arange(first, first + logits_BG.shape[0], device=logits_BG.device)


def _projected(student_BD: Tensor, teacher_BE: Tensor, project: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The student's embeddings in the teacher's space, normalised there."""
    if project is not None:
        return functional.normalize(project(student_BD), dim=-1)
    if student_BD.shape[-1] != teacher_BE.shape[-1]:
        raise ValueError(
            f"the student's embedding width {student_BD.shape[-1]} must be the teacher's {teacher_BE.shape[-1]}; "
            "give a projection, or set the student's embedDim"
        )
    return student_BD


def _constant(pair: Pair) -> Pair:
    scale = pair.logit_scale
    return Pair(pair.image.detach(), pair.text.detach(), scale.detach() if isinstance(scale, Tensor) else scale)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype is torch.float64 else tensor.float()
