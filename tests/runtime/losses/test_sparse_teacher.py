"""Losses against stored top-k and sampled teacher outputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from limbeck_runtime.losses.distillation import distil_head, distil_logits
from limbeck_runtime.losses.divergence import Divergence, Mix
from limbeck_runtime.losses.teachers import Sampled, TeacherLogits, TopK

ROWS, OUTCOMES, KEPT = 9, 12, 4


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def top_k_of(logits_NV: Tensor, count: int, temperature: float = 1.0) -> TopK:
    probs = (logits_NV / temperature).softmax(-1)
    values, indices = probs.topk(count, dim=-1)
    tail = probs.scatter(1, indices, 0.0).sum(-1)
    return TopK(indices.int(), values.log(), tail.log(), temperature)


def merged(probs_NV: Tensor, indices_NK: Tensor) -> Tensor:
    """Probabilities of the k outcomes and of everything else."""
    kept = probs_NV.gather(1, indices_NK.long())
    return torch.cat((kept, 1 - kept.sum(-1, keepdim=True)), 1)


@pytest.mark.parametrize("kind", list(Divergence))
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_compares_the_kept_outcomes_and_the_tail_as_one(
    kind: Divergence, temperature: float, generator: torch.Generator, naive_divergence: Callable[..., Tensor]
) -> None:
    student = normal(generator, ROWS, OUTCOMES).requires_grad_()
    teacher = normal(generator, ROWS, OUTCOMES) * 2
    stored = top_k_of(teacher, KEPT, temperature)
    loss = distil_logits(student, stored, Mix(kind, temperature)).loss
    q = merged((student / temperature).softmax(-1), stored.indices)
    p = merged((teacher / temperature).softmax(-1), stored.indices)
    expected = naive_divergence(kind.value, q, p, 0.5).mean() * temperature**2
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))


@pytest.mark.parametrize("kind", list(Divergence))
def test_top_k_gradients_pass_gradcheck(kind: Divergence, generator: torch.Generator) -> None:
    stored = top_k_of(normal(generator, 3, OUTCOMES), KEPT, 1.5)
    labels = torch.tensor([int(stored.indices[0, 0]), 5, 11])
    mix = Mix(kind, 1.5, 0.3)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return distil_head(hidden, weight, stored, mix, labels_N=labels).loss

    leaves = normal(generator, 3, 4).requires_grad_(), normal(generator, OUTCOMES, 4).requires_grad_()
    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("kind", [Divergence.FORWARD_KL, Divergence.REVERSE_KL])
def test_another_temperature_than_the_stored_one_splits_kl_by_its_chain_rule(
    kind: Divergence, generator: torch.Generator, naive_divergence: Callable[..., Tensor]
) -> None:
    student = normal(generator, ROWS, OUTCOMES).requires_grad_()
    teacher = normal(generator, ROWS, OUTCOMES)
    stored, temperature = top_k_of(teacher, KEPT), 2.5
    loss = distil_logits(student, stored, Mix(kind, temperature)).loss

    indices = stored.indices.long()
    q, p = (merged(logits.softmax(-1), indices) for logits in (student, teacher))
    coarse_q, coarse_p = (torch.stack((x[:, :-1].sum(-1), x[:, -1]), 1) for x in (q, p))
    fine_q, fine_p = ((logits.gather(1, indices) / temperature).softmax(-1) for logits in (student, teacher))
    kept = (coarse_p if kind is Divergence.FORWARD_KL else coarse_q)[:, 0]
    coarse = naive_divergence(kind.value, coarse_q, coarse_p, 0.5)
    fine = naive_divergence(kind.value, fine_q, fine_p, 0.5)
    expected = (coarse + kept * fine * temperature**2).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))


@pytest.mark.parametrize("kind", list(Divergence))
def test_top_k_of_everything_equals_full_logits(kind: Divergence, generator: torch.Generator) -> None:
    student, teacher = (normal(generator, ROWS, OUTCOMES) for _ in range(2))
    stored = top_k_of(teacher, OUTCOMES)
    full = distil_logits(student, TeacherLogits(teacher), Mix(kind)).loss
    torch.testing.assert_close(distil_logits(student, stored, Mix(kind)).loss, full)


def test_a_matching_student_pays_nothing_and_has_no_gradient(generator: torch.Generator) -> None:
    teacher = normal(generator, ROWS, OUTCOMES)
    student = teacher.clone().requires_grad_()
    loss = distil_logits(student, top_k_of(teacher, KEPT), Mix(temperature=3.0)).loss
    (gradient,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0.0)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("place", [0, KEPT])
def test_a_stored_outcome_that_the_student_lacks_is_dropped_and_the_rest_normalised(
    place: int, generator: torch.Generator
) -> None:
    student = normal(generator, ROWS, OUTCOMES).requires_grad_()
    stored = top_k_of(normal(generator, ROWS, OUTCOMES), KEPT)

    def with_one_more(values_NK: Tensor, value: float) -> Tensor:
        column_N1 = torch.full((ROWS, 1), value, dtype=values_NK.dtype)
        return torch.cat((values_NK[:, :place], column_N1, values_NK[:, place:]), 1)

    unknown = TopK(
        with_one_more(stored.indices, OUTCOMES + 2),
        with_one_more(stored.log_probs + 1e-3, -1.0),
        stored.tail_log_mass + 1e-3,
    )
    losses = [distil_logits(student, teacher, Mix()).loss for teacher in (stored, unknown)]
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student) for loss in losses))


def test_an_empty_tail_stays_finite() -> None:
    stored = TopK(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]).log(), torch.tensor([-torch.inf]))
    student = torch.tensor([[1.0, 1.0, -200.0]], requires_grad=True)
    loss = distil_logits(student, stored, Mix()).loss
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    torch.testing.assert_close(loss.detach(), torch.tensor(0.0), atol=1e-6, rtol=0.0)


def test_sampled_outcomes_are_the_teacher_s_cross_entropy(generator: torch.Generator) -> None:
    student = normal(generator, ROWS, OUTCOMES).requires_grad_()
    indices = torch.stack([torch.randperm(OUTCOMES, generator=generator)[:KEPT] for _ in range(ROWS)])
    weights = torch.rand(ROWS, KEPT, generator=generator, dtype=torch.float64)
    weights[0, 2:] = 0.0
    weights /= weights.sum(-1, keepdim=True)
    mix = Mix(temperature=2.0)
    loss = distil_logits(student, Sampled(indices.int(), weights, 2.0), mix).loss
    log_q = (student / 2.0).log_softmax(-1).gather(1, indices)
    expected = (torch.special.xlogy(weights, weights) - weights * log_q).sum(-1).mean() * 4.0
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, student), torch.autograd.grad(expected, student))


def test_sampled_gradients_pass_gradcheck(generator: torch.Generator) -> None:
    sampled = Sampled(torch.tensor([[0, 3, 20], [5, 1, 2]]), torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0]]))
    mix = Mix(hard_label_share=0.5)

    def loss(logits: Tensor) -> Tensor:
        return distil_logits(logits, sampled, mix, labels_N=torch.tensor([3, 2])).loss

    assert torch.autograd.gradcheck(loss, (normal(generator, 2, OUTCOMES).requires_grad_(),))


def test_the_mean_gradient_of_many_samplings_is_that_of_the_full_teacher(generator: torch.Generator) -> None:
    student = normal(generator, 1, OUTCOMES).requires_grad_()
    teacher = normal(generator, 1, OUTCOMES)
    draws = 4000
    drawn = torch.multinomial(teacher.softmax(-1).expand(draws, -1), 3, replacement=True, generator=generator)
    counts = torch.zeros(draws, OUTCOMES, dtype=torch.float64).scatter_add_(
        1, drawn, torch.ones(drawn.shape, dtype=torch.float64)
    )
    sampled = Sampled(torch.arange(OUTCOMES).expand(draws, -1), counts / 3)
    (mean,) = torch.autograd.grad(distil_logits(student.expand(draws, -1), sampled, Mix()).loss, student)
    (full,) = torch.autograd.grad(distil_logits(student, TeacherLogits(teacher), Mix()).loss, student)
    torch.testing.assert_close(mean, full, atol=0.02, rtol=0.0)


@pytest.mark.parametrize(
    ("teacher", "mix", "message"),
    [
        (Sampled, Mix(Divergence.REVERSE_KL), "ForwardKL only"),
        (Sampled, Mix(temperature=2.0), "temperature 1.0 only"),
        (TopK, Mix(Divergence.JENSEN_SHANNON, 2.0), "JensenShannon"),
    ],
)
def test_what_a_stored_form_cannot_serve_is_refused(
    teacher: type[TopK] | type[Sampled], mix: Mix, message: str
) -> None:
    indices, values = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1)
    stored = TopK(indices, values, values[:, 0]) if teacher is TopK else Sampled(indices, values + 1)
    with pytest.raises(ValueError, match=message):
        distil_logits(torch.zeros(1, 3), stored, mix)
