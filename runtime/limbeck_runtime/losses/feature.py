"""Losses on hidden features: the student's layer is to look like the teacher's.

Vectors (B, C), sequences (B, T, C) and maps (B, C, H, W) are taken. Widths may differ, then a learned projection goes
between; map sizes may differ, then both are averaged down to the smaller. Sequences must have the same tokens.
Left out on purpose: attention maps and relations between samples, until a step offers them.

Shapes: B samples, C channels, T tokens, H x W places, F feature vectors of a batch (B, B * T or B * H * W).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class FeatureProjection(nn.Module):
    """Linear map of the student's channels to the teacher's; trained with the student, thrown away after."""

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(student_channels, teacher_channels)

    def forward(self, features: Tensor) -> Tensor:
        """Features of any of the three layouts, with the teacher's number of channels."""
        is_map = features.ndim == 4
        projected: Tensor = self.linear(features.movedim(1, -1) if is_map else features)
        return projected.movedim(-1, 1) if is_map else projected


def feature_mse(
    student: Tensor,
    teacher: Tensor,
    *,
    projection: nn.Module | None = None,
    valid_BT: Tensor | None = None,
) -> Tensor:
    """Mean squared difference of the channels, over all feature vectors (FitNets; Romero et al., 2015).

    `valid_BT` (bool) leaves tokens out, such as padding. Raises ValueError where shapes cannot be matched.
    """
    student_FC, teacher_FC = _matched(student, teacher, projection, valid_BT)
    return _mean_over_vectors((student_FC - teacher_FC).square().mean(-1))


def feature_cosine(
    student: Tensor,
    teacher: Tensor,
    *,
    projection: nn.Module | None = None,
    valid_BT: Tensor | None = None,
) -> Tensor:
    """Mean of 1 - cosine between the student's and the teacher's feature vectors; as `feature_mse` otherwise."""
    student_FC, teacher_FC = _matched(student, teacher, projection, valid_BT)
    return _mean_over_vectors(1 - functional.cosine_similarity(student_FC, teacher_FC, dim=-1))


def _mean_over_vectors(loss_F: Tensor) -> Tensor:
    return loss_F.sum() / max(loss_F.shape[0], 1)


def _matched(
    student: Tensor, teacher: Tensor, projection: nn.Module | None, valid_BT: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both as (F, C), in float32 or wider, the teacher outside of autograd."""
    teacher = teacher.detach()
    if projection is not None:
        student = projection(student)
    if student.ndim != teacher.ndim or not 2 <= student.ndim <= 4:
        raise ValueError(
            "features must both be (B, C), (B, T, C) or (B, C, H, W), "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}; tap layers of the same kind"
        )
    if student.ndim == 4:
        student, teacher = _same_places(student, teacher)
        student, teacher = student.movedim(1, -1), teacher.movedim(1, -1)
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's features {tuple(student.shape)} must match the teacher's {tuple(teacher.shape)}; "
            "give a FeatureProjection where only the channels differ"
        )
    if valid_BT is not None:
        if valid_BT.shape != student.shape[:-1]:
            raise ValueError(f"`valid` must be {tuple(student.shape[:-1])}, got {tuple(valid_BT.shape)}")
        student, teacher = student[valid_BT], teacher[valid_BT]
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.flatten(0, -2).to(dtype), teacher.flatten(0, -2).to(dtype)


def _same_places(student_BCHW: Tensor, teacher_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    height = min(student_BCHW.shape[-2], teacher_BCHW.shape[-2])
    width = min(student_BCHW.shape[-1], teacher_BCHW.shape[-1])
    return functional.adaptive_avg_pool2d(student_BCHW, (height, width)), functional.adaptive_avg_pool2d(
        teacher_BCHW, (height, width)
    )
