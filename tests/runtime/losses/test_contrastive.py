"""Contrastive losses against their definitions, alone and over ranks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from limbeck_runtime.losses.contrastive import (
    Across,
    Pair,
    affinity_mimicking,
    embedding_feature,
    info_nce,
    interactive_contrastive,
)

BATCH, WIDTH, TEACHER_WIDTH = 6, 4, 7


def unit(generator: torch.Generator, width: int) -> Tensor:
    raw = torch.randn(BATCH, width, generator=generator, dtype=torch.float64)
    return (raw / raw.norm(dim=-1, keepdim=True)).requires_grad_()


def pair(generator: torch.Generator, width: int, scale: float) -> Pair:
    return Pair(
        unit(generator, width),
        unit(generator, width),
        torch.tensor(scale, dtype=torch.float64, requires_grad=True),
    )


def cross_entropy(probs: Tensor, logits: Tensor) -> Tensor:
    """Naive: -sum p log q, mean over rows."""
    return -(probs * (logits.exp() / logits.exp().sum(-1, keepdim=True)).log()).sum(-1).mean()


def both_ways(images: Tensor, texts: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    return images @ texts.t() * scale, texts @ images.t() * scale


def test_info_nce_is_the_cross_entropy_of_the_own_partner_both_ways(generator: torch.Generator) -> None:
    student = pair(generator, WIDTH, 5.0)
    to_text, to_image = both_ways(student.image, student.text, student.logit_scale)
    eye = torch.eye(BATCH, dtype=torch.float64)
    expected = (cross_entropy(eye, to_text) + cross_entropy(eye, to_image)) / 2
    torch.testing.assert_close(info_nce(student), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_affinity_mimicking_is_kl_of_both_distributions(temperature: float, generator: torch.Generator) -> None:
    student, teacher = pair(generator, WIDTH, 5.0), pair(generator, TEACHER_WIDTH, 8.0)
    expected = torch.zeros((), dtype=torch.float64)
    for mine, theirs in zip(
        both_ways(student.image, student.text, student.logit_scale / temperature),
        both_ways(teacher.image, teacher.text, teacher.logit_scale / temperature),
        strict=True,
    ):
        probs = theirs.exp() / theirs.exp().sum(-1, keepdim=True)
        entropy = -(probs * probs.log()).sum(-1).mean()
        expected = expected + (cross_entropy(probs, mine) - entropy) * temperature**2 / 2
    torch.testing.assert_close(affinity_mimicking(student, teacher, temperature=temperature), expected)


def test_interactive_contrast_finds_the_teacher_s_other_modality(generator: torch.Generator) -> None:
    student, teacher = pair(generator, WIDTH, 5.0), pair(generator, WIDTH, 8.0)
    eye = torch.eye(BATCH, dtype=torch.float64)
    expected = (
        cross_entropy(eye, student.image @ teacher.text.t() * 5.0)
        + cross_entropy(eye, student.text @ teacher.image.t() * 5.0)
    ) / 2
    torch.testing.assert_close(interactive_contrastive(student, teacher), expected)


def test_embedding_feature_is_the_squared_distance(generator: torch.Generator) -> None:
    student, teacher = unit(generator, WIDTH), unit(generator, WIDTH)
    torch.testing.assert_close(embedding_feature(student, teacher), 2 - 2 * (student * teacher).sum(-1).mean())


def project(embeddings: Tensor) -> Tensor:
    return embeddings @ torch.linspace(-1, 1, WIDTH * TEACHER_WIDTH, dtype=torch.float64).view(WIDTH, TEACHER_WIDTH)


LOSSES: dict[str, Callable[[Pair, Pair, Across | None], Tensor]] = {
    "info_nce": lambda student, teacher, across: info_nce(student, across=across),
    "affinity": lambda student, teacher, across: affinity_mimicking(student, teacher, temperature=1.5, across=across),
    "interactive": lambda student, teacher, across: interactive_contrastive(
        student, teacher, project=project, across=across
    ),
    "feature": lambda student, teacher, across: (
        embedding_feature(student.image, teacher.image, project=project)
        + embedding_feature(student.text, teacher.text, project=project)
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_pass_gradcheck_and_the_teacher_gets_none(name: str, generator: torch.Generator) -> None:
    teacher = pair(generator, TEACHER_WIDTH, 8.0)
    student = pair(generator, WIDTH, 5.0)

    def loss(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        # The feature loss does not use the scale: a zero keeps gradcheck's input connected.
        return LOSSES[name](Pair(image, text, scale), teacher, None) + 0 * scale

    assert torch.autograd.gradcheck(loss, (student.image, student.text, student.logit_scale))
    LOSSES[name](student, teacher, None).backward()
    assert teacher.image.grad is None
    assert teacher.text.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_that_gather_have_the_loss_and_gradient_of_one(name: str, generator: torch.Generator) -> None:
    student, teacher = pair(generator, WIDTH, 5.0), pair(generator, TEACHER_WIDTH, 8.0)
    leaves = (student.image, student.text)
    whole = LOSSES[name](student, teacher, None)

    losses = []
    for rank in range(2):
        rows = slice(rank * 3, rank * 3 + 3)
        mine = Pair(student.image[rows], student.text[rows], student.logit_scale)
        theirs = Pair(teacher.image[rows].detach(), teacher.text[rows].detach(), teacher.logit_scale)
        everything = [student.image, student.text, teacher.image.detach(), teacher.text.detach()]

        def gather(part: Tensor, everything: list[Tensor] = everything, rows: slice = rows) -> Tensor:
            """What all_gather would return: the whole tensor of which `part` is this rank's share."""
            return next(full for full in everything if full[rows].shape == part.shape and full[rows].equal(part))

        losses.append(LOSSES[name](mine, theirs, Across(gather, rows.start)))
    mean = (losses[0] + losses[1]) / 2
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(torch.autograd.grad(mean, leaves), torch.autograd.grad(whole, leaves))


def test_a_teacher_of_another_width_needs_a_projection(generator: torch.Generator) -> None:
    student, teacher = pair(generator, WIDTH, 5.0), pair(generator, TEACHER_WIDTH, 8.0)
    with pytest.raises(ValueError, match="embedding width 4 must be the teacher's 7"):
        interactive_contrastive(student, teacher)
    with pytest.raises(ValueError, match="give a projection"):
        embedding_feature(student.image, teacher.image)
    with pytest.raises(ValueError, match="same width"):
        info_nce(Pair(student.image, teacher.text, 1.0))


def test_autocast_does_not_round_the_similarities(generator: torch.Generator) -> None:
    student = pair(generator, WIDTH, 100.0)
    narrow = Pair(student.image.float(), student.text.float(), 100.0)
    exact = info_nce(narrow)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(info_nce(narrow), exact)
