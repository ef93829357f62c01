"""Feature losses against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck_runtime.losses.feature import FeatureProjection, feature_cosine, feature_mse

LAYOUTS = {"vectors": (4, 6), "sequences": (4, 5, 6), "maps": (4, 6, 3, 2)}


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_values_follow_the_definition_in_every_layout(shape: tuple[int, ...], generator: torch.Generator) -> None:
    student, teacher = normal(generator, *shape), normal(generator, *shape)
    torch.testing.assert_close(feature_mse(student, teacher), ((student - teacher) ** 2).mean())
    axis = 1 if len(shape) == 4 else -1
    cosine = (student * teacher).sum(axis) / (student.norm(dim=axis) * teacher.norm(dim=axis))
    torch.testing.assert_close(feature_cosine(student, teacher), 1 - cosine.mean())


@pytest.mark.parametrize("loss", [feature_mse, feature_cosine])
@pytest.mark.parametrize("shape", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_gradients_pass_gradcheck_through_a_projection(
    loss: type, shape: tuple[int, ...], generator: torch.Generator
) -> None:
    wider = list(shape)
    wider[1 if len(shape) == 4 else -1] = 8
    teacher = normal(generator, *wider)
    projection = FeatureProjection(6, 8).double()
    student = normal(generator, *shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, projection=projection), (student,))


def test_the_teacher_gets_no_gradient_and_the_projection_does(generator: torch.Generator) -> None:
    student, teacher = normal(generator, 3, 4).requires_grad_(), normal(generator, 3, 5).requires_grad_()
    projection = FeatureProjection(4, 5).double()
    feature_mse(student, teacher, projection=projection).backward()
    assert teacher.grad is None
    assert projection.linear.weight.grad is not None


def test_maps_of_other_sizes_are_averaged_down_to_the_smaller(generator: torch.Generator) -> None:
    small, large = normal(generator, 2, 3, 2, 2), normal(generator, 2, 3, 4, 4)
    pooled = large.unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
    for student, teacher in ((small, large), (large, small)):
        torch.testing.assert_close(feature_mse(student, teacher), ((small - pooled) ** 2).mean())


def test_padding_does_not_count(generator: torch.Generator) -> None:
    student, teacher = normal(generator, 2, 3, 4), normal(generator, 2, 3, 4)
    valid = torch.tensor([[True, True, False], [True, False, False]])
    expected = ((student - teacher)[valid] ** 2).mean()
    torch.testing.assert_close(feature_mse(student, teacher, valid_BT=valid), expected)
    assert feature_cosine(student, teacher, valid_BT=torch.zeros_like(valid)) == 0


def test_half_precision_features_are_compared_in_float32() -> None:
    student, teacher = torch.full((2, 3), 300.0, dtype=torch.float16), torch.zeros(2, 3, dtype=torch.float16)
    assert feature_mse(student, teacher) == 90_000


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [((2, 3), (2, 4), "FeatureProjection"), ((2, 3), (2, 3, 4), "same kind"), ((2, 3, 4), (2, 5, 4), "must match")],
)
def test_shapes_that_do_not_fit_are_refused(student: tuple[int, ...], teacher: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        feature_mse(torch.zeros(student), torch.zeros(teacher))
    with pytest.raises(ValueError, match="`valid`"):
        feature_mse(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), valid_BT=torch.ones(2, 2, dtype=torch.bool))
