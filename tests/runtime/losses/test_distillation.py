"""`distil_logits` and `distil_head` against a naive reference: value, gradient, masks, padded vocabularies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from limbeck_runtime.losses.distillation import Distilled, distil_head, distil_logits, next_token_labels
from limbeck_runtime.losses.divergence import Divergence, Mix
from limbeck_runtime.losses.teachers import TeacherHead, TeacherLogits

Reference = Callable[..., Tensor]
ROWS, OUTCOMES, WIDTH, TEACHER_WIDTH = 300, 11, 5, 6
SMALL_CHUNK = 1  # bytes; the smallest chunk is 128 rows, so 300 rows make three, the last one short

MIXES = [
    Mix(kind, temperature, share)
    for kind in Divergence
    for temperature, share in ((1.0, 0.0), (2.5, 0.0), (2.0, 0.3), (1.0, 0.5))
]


class Case:
    """Random float64 tensors of one problem."""

    def __init__(self, generator: torch.Generator, rows: int = ROWS, teacher_outcomes: int = OUTCOMES) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.hidden = normal(rows, WIDTH).requires_grad_()
        self.weight = normal(OUTCOMES, WIDTH).requires_grad_()
        self.bias = normal(OUTCOMES).requires_grad_()
        self.teacher_head = TeacherHead(
            normal(rows, TEACHER_WIDTH), normal(teacher_outcomes, TEACHER_WIDTH), normal(teacher_outcomes)
        )
        self.labels = torch.randint(min(OUTCOMES, teacher_outcomes), (rows,), generator=generator)

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hidden, self.weight, self.bias

    @property
    def logits(self) -> Tensor:
        return self.hidden @ self.weight.t() + self.bias

    @property
    def teacher_logits(self) -> Tensor:
        head = self.teacher_head
        assert head.bias is not None
        return head.hidden @ head.weight.t() + head.bias

    def reference(
        self, naive: Reference, mix: Mix, rows: Tensor | slice = slice(None), shared: int = OUTCOMES
    ) -> Tensor:
        return naive(
            self.logits[rows, :shared],
            self.teacher_logits[rows, :shared],
            self.labels[rows],
            mix.divergence.value,
            mix.temperature,
            mix.hard_label_share,
        )


def assert_same_with_gradients(case: Case, loss: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    ours = torch.autograd.grad(loss, case.leaves)
    theirs = torch.autograd.grad(expected, case.leaves)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_the_chunked_head_equals_the_naive_loss_and_its_gradients(
    mix: Mix, generator: torch.Generator, naive_distillation: Reference
) -> None:
    case = Case(generator)
    result = distil_head(
        case.hidden,
        case.weight,
        case.teacher_head,
        mix,
        bias_V=case.bias,
        labels_N=case.labels,
        chunk_bytes=SMALL_CHUNK,
    )
    assert_same_with_gradients(case, result.loss, case.reference(naive_distillation, mix))


@pytest.mark.parametrize("mix", MIXES, ids=str)
def test_chunked_logits_equal_the_naive_loss_and_its_gradients(
    mix: Mix, generator: torch.Generator, naive_distillation: Reference
) -> None:
    case = Case(generator)
    teacher = TeacherLogits(case.teacher_logits)
    result = distil_logits(case.logits, teacher, mix, labels_N=case.labels, chunk_bytes=SMALL_CHUNK)
    assert_same_with_gradients(case, result.loss, case.reference(naive_distillation, mix))


@pytest.mark.parametrize("kind", list(Divergence))
def test_gradients_pass_gradcheck(kind: Divergence, generator: torch.Generator) -> None:
    case = Case(generator, rows=4)
    mix = Mix(kind, 1.7, 0.4)

    def head_loss(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return distil_head(hidden, weight, case.teacher_head, mix, bias_V=bias, labels_N=case.labels).loss

    def logits_loss(logits: Tensor) -> Tensor:
        return distil_logits(logits, TeacherLogits(case.teacher_logits), mix, labels_N=case.labels).loss

    assert torch.autograd.gradcheck(head_loss, case.leaves)
    assert torch.autograd.gradcheck(logits_loss, (case.logits.detach().requires_grad_(),))


def test_a_scaled_loss_has_a_scaled_gradient_as_often_as_it_is_asked(generator: torch.Generator) -> None:
    case = Case(generator)
    loss = distil_head(case.hidden, case.weight, case.teacher_head, Mix()).loss
    once = torch.autograd.grad(loss, case.hidden, retain_graph=True)[0].clone()
    third = torch.autograd.grad(loss / 3, case.hidden, retain_graph=True)[0]
    torch.testing.assert_close(third, once / 3)
    torch.testing.assert_close(torch.autograd.grad(loss, case.hidden)[0], once)


def test_a_head_teacher_and_its_logits_give_the_same_loss_to_a_student_of_logits(generator: torch.Generator) -> None:
    case = Case(generator)
    losses = [
        distil_logits(case.logits, teacher, Mix(temperature=2.0)).loss
        for teacher in (case.teacher_head, TeacherLogits(case.teacher_logits))
    ]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("student_is_wider", [True, False])
def test_a_vocabulary_padded_differently_is_compared_over_the_shared_part(
    student_is_wider: bool, generator: torch.Generator, naive_distillation: Reference
) -> None:
    shared = OUTCOMES - 3 if student_is_wider else OUTCOMES
    case = Case(generator, teacher_outcomes=shared if student_is_wider else OUTCOMES + 3)
    mix = Mix(Divergence.FORWARD_KL, 2.0, 0.3)
    expected = case.reference(naive_distillation, mix, shared=shared)
    by_head = distil_head(case.hidden, case.weight, case.teacher_head, mix, bias_V=case.bias, labels_N=case.labels)
    assert_same_with_gradients(case, by_head.loss, expected)
    by_logits = distil_logits(case.logits, TeacherLogits(case.teacher_logits), mix, labels_N=case.labels)
    assert_same_with_gradients(case, by_logits.loss, case.reference(naive_distillation, mix, shared=shared))


def test_ignored_labels_and_invalid_rows_count_for_nothing(
    generator: torch.Generator, naive_distillation: Reference
) -> None:
    case = Case(generator)
    mix = Mix(Divergence.REVERSE_KL, 2.0, 0.5)
    valid = torch.rand(ROWS, generator=generator) > 0.3
    labels = torch.where(torch.rand(ROWS, generator=generator) > 0.3, case.labels, mix.ignore_index)
    rows = (valid & (labels != mix.ignore_index)).nonzero()[:, 0]
    expected = case.reference(naive_distillation, mix, rows)
    by_head = distil_head(
        case.hidden,
        case.weight,
        case.teacher_head,
        mix,
        bias_V=case.bias,
        labels_N=labels,
        valid_N=valid,
        chunk_bytes=SMALL_CHUNK,
    )
    assert_same_with_gradients(case, by_head.loss, expected)
    teacher = TeacherLogits(case.teacher_logits)
    by_logits = distil_logits(case.logits, teacher, mix, labels_N=labels, valid_N=valid, chunk_bytes=SMALL_CHUNK)
    assert_same_with_gradients(case, by_logits.loss, case.reference(naive_distillation, mix, rows))


def test_a_batch_without_a_valid_row_costs_nothing_and_moves_nothing(generator: torch.Generator) -> None:
    case = Case(generator)
    nothing = torch.zeros(ROWS, dtype=torch.bool)
    result = distil_head(case.hidden, case.weight, case.teacher_head, Mix(), valid_N=nothing)
    result.loss.backward()
    assert result.loss == 0
    assert case.hidden.grad is not None
    assert not case.hidden.grad.any()


def test_a_divisor_lets_ranks_with_fewer_rows_weigh_less(generator: torch.Generator) -> None:
    case = Case(generator)
    teacher, mix, cut = case.teacher_logits, Mix(temperature=2.0), 100

    def part(rows: slice) -> Distilled:
        return distil_logits(case.logits[rows], TeacherLogits(teacher[rows]), mix, divisor=ROWS / 2)

    whole = distil_logits(case.logits, TeacherLogits(teacher), mix).loss
    torch.testing.assert_close((part(slice(0, cut)).loss + part(slice(cut, ROWS)).loss) / 2, whole)


def test_sequences_keep_their_leading_dimensions(generator: torch.Generator) -> None:
    case = Case(generator)
    mix = Mix(temperature=2.0, hard_label_share=0.2)
    flat = distil_logits(case.logits, TeacherLogits(case.teacher_logits), mix, labels_N=case.labels)
    shape = (3, ROWS // 3)
    folded = distil_logits(
        case.logits.unflatten(0, shape),
        TeacherLogits(case.teacher_logits.unflatten(0, shape)),
        mix,
        labels_N=case.labels.unflatten(0, shape),
    )
    torch.testing.assert_close(folded.loss, flat.loss)


def test_the_terms_sum_to_the_loss_and_carry_its_gradient(generator: torch.Generator) -> None:
    case = Case(generator)
    result = distil_head(case.hidden, case.weight, case.teacher_head, Mix(hard_label_share=0.4), labels_N=case.labels)
    terms = result.terms()
    torch.testing.assert_close(terms["soft"], result.soft)
    torch.testing.assert_close(terms["hard"], result.hard)
    from_terms = torch.autograd.grad(sum(terms.values()), case.hidden, retain_graph=True)
    torch.testing.assert_close(from_terms, torch.autograd.grad(result.loss, case.hidden))


def test_bfloat16_products_move_the_gradient_by_less_than_a_percent(generator: torch.Generator) -> None:
    hidden, weight, teacher_weight = (torch.randn(size, 32, generator=generator) for size in (256, 500, 500))
    hidden.requires_grad_()
    teacher = TeacherHead(hidden.detach(), teacher_weight)
    exact, rounded = (
        distil_head(hidden, weight, teacher, Mix(temperature=2.0), gradient_dtype=dtype).loss
        for dtype in (None, torch.bfloat16)
    )
    assert rounded == exact
    exact_gradient, rounded_gradient = (torch.autograd.grad(loss, hidden)[0] for loss in (exact, rounded))
    error = (rounded_gradient - exact_gradient).norm() / exact_gradient.norm()
    assert 0 < error < 0.01


def test_under_autocast_products_are_narrow_but_the_loss_is_float32(generator: torch.Generator) -> None:
    hidden, weight = (torch.randn(size, 32, generator=generator).requires_grad_() for size in (64, 100))
    teacher = TeacherHead(torch.randn(64, 32, generator=generator), torch.randn(100, 32, generator=generator))
    exact = distil_head(hidden, weight, teacher, Mix()).loss
    with torch.autocast("cpu", torch.bfloat16):
        narrow = distil_head(hidden, weight, teacher, Mix()).loss
    assert narrow.dtype is torch.float32
    torch.testing.assert_close(narrow, exact, rtol=0.02, atol=0.0)
    (gradient,) = torch.autograd.grad(narrow, weight)
    assert gradient.dtype is weight.dtype


@pytest.mark.parametrize("kind", list(Divergence))
def test_large_logits_neither_overflow_nor_lose_the_loss(kind: Divergence, generator: torch.Generator) -> None:
    student, teacher = (torch.randn(8, 50, generator=generator) * 200 for _ in range(2))
    student.requires_grad_()
    log_q, log_p = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    log_m = torch.logaddexp(log_q, log_p) - torch.tensor(2.0).log()
    expected = {
        Divergence.FORWARD_KL: (log_p.exp() * (log_p - log_q)).sum(-1),
        Divergence.REVERSE_KL: (log_q.exp() * (log_q - log_p)).sum(-1),
        Divergence.JENSEN_SHANNON: (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2,
    }[kind].mean()
    loss = distil_logits(student, TeacherLogits(teacher), Mix(kind)).loss
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-4)
    (gradient,) = torch.autograd.grad(loss, student)
    assert torch.isfinite(gradient).all()


def test_validation_needs_no_gradient(generator: torch.Generator) -> None:
    case = Case(generator)
    with torch.no_grad():
        assert not distil_head(case.hidden, case.weight, case.teacher_head, Mix()).loss.requires_grad
        assert not distil_logits(case.logits, case.teacher_head, Mix()).loss.requires_grad


def test_next_token_labels_leave_out_padding_and_the_last_position() -> None:
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 3, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    expected = [[6, 7, -100, -100], [9, 3, 4, -100]]
    assert next_token_labels(ids, mask).tolist() == expected


def test_left_padding_predicts_nothing_from_a_pad() -> None:
    labels = next_token_labels(torch.tensor([[0, 5, 6]]), torch.tensor([[0, 1, 1]]))
    assert labels.tolist() == [[-100, 6, -100]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, t: distil_logits(x, t, Mix(hard_label_share=0.5)), "there are no labels"),
        (lambda x, t: distil_logits(x[:2], t, Mix()), "same rows"),
        (lambda x, t: distil_logits(x, t, Mix(), labels_N=torch.zeros(2, dtype=torch.long)), "`labels`"),
        (lambda x, t: distil_logits(x, t, Mix(), valid_N=torch.ones(2, dtype=torch.bool)), "`valid`"),
        (lambda x, t: Mix(temperature=0.0), "`temperature`"),
        (lambda x, t: Mix(hard_label_share=1.5), "`hard_label_share`"),
        (lambda x, t: Mix(beta=1.0), "`beta`"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(call: Callable[..., object], message: str) -> None:
    logits = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=message):
        call(logits, TeacherLogits(logits))
