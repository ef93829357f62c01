"""The loss of a training step against the plain formulas, signal by signal and put together."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss, normalize

from limbeck.api.v1alpha1.job import Task
from limbeck.api.v1alpha1.training import SignalKind
from limbeck_runtime.data.batch import IGNORED_LABEL, Labels
from limbeck_runtime.losses import contrastive
from limbeck_runtime.losses.feature import feature_cosine, feature_mse
from limbeck_runtime.steps.objective import HARD, Match, Objective, Term
from limbeck_runtime.student.collectives import RowGather

# B samples, C classes, T tokens, V vocabulary, D the student's and E the teacher's width.
B, C, T, V, D, E = 6, 5, 4, 9, 3, 7


@dataclass(frozen=True)
class Taught:
    """The parts of a batch that a loss looks at."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    teacher: dict[str, Tensor] = field(default_factory=dict)


def _random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _terms(objective: Objective, outputs: dict[str, Tensor], batch: Taught) -> dict[str, Tensor]:
    return objective.build(RowGather())(outputs, batch)


def _close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def _divergence(kind: SignalKind, student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows, from logits at the temperature at which they are."""
    ours, theirs = student.double().log_softmax(-1), teacher.double().log_softmax(-1)

    def kl(p: Tensor, q: Tensor) -> Tensor:
        return (p.exp() * (p - q)).sum(-1)

    if kind is SignalKind.FORWARD_KL:
        return kl(theirs, ours).mean().float()
    if kind is SignalKind.REVERSE_KL:
        return kl(ours, theirs).mean().float()
    mixture = torch.log((ours.exp() + theirs.exp()) / 2)
    return ((kl(ours, mixture) + kl(theirs, mixture)) / 2).mean().float()


DIVERGENCES = [SignalKind.FORWARD_KL, SignalKind.REVERSE_KL, SignalKind.JENSEN_SHANNON]


@pytest.fixture
def classified() -> tuple[dict[str, Tensor], Taught]:
    """A student's logits over classes, the labels, and a teacher's logits."""
    outputs = {"logits": _random(B, C, seed=1).requires_grad_()}
    return outputs, Taught({"labels": torch.arange(B) % C}, {"logits": _random(B, C, seed=2)})


@pytest.mark.parametrize("hard", [0.0, 0.3])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_a_divergence_and_hard_labels_are_their_formulas(
    kind: SignalKind, hard: float, classified: tuple[dict[str, Tensor], Taught]
) -> None:
    outputs, batch = classified
    temperature = 2.0
    objective = Objective(
        Task.IMAGE_CLASSIFICATION, hard, (Term(kind, 1 - hard),), temperature=temperature, sampled=False
    )
    terms = _terms(objective, outputs, batch)
    soft = temperature**2 * _divergence(kind, outputs["logits"] / temperature, batch.teacher["logits"] / temperature)
    _close(terms[kind.value], (1 - hard) * soft)
    if hard:
        _close(terms[HARD], hard * cross_entropy(outputs["logits"], batch.inputs["labels"]))
    assert set(terms) == ({kind.value, HARD} if hard else {kind.value})


def test_several_divergences_have_their_own_weights_beside_hard_labels(
    classified: tuple[dict[str, Tensor], Taught],
) -> None:
    outputs, batch = classified
    signals = (Term(SignalKind.FORWARD_KL, 0.7), Term(SignalKind.REVERSE_KL, 1.4), Term(SignalKind.FORWARD_KL, 0.1))
    terms = _terms(Objective(Task.IMAGE_CLASSIFICATION, 0.3, signals), outputs, batch)
    forward = _divergence(SignalKind.FORWARD_KL, outputs["logits"], batch.teacher["logits"])
    _close(terms["ForwardKL"], 0.8 * forward)
    _close(terms["ReverseKL"], 1.4 * _divergence(SignalKind.REVERSE_KL, outputs["logits"], batch.teacher["logits"]))
    _close(terms[HARD], 0.3 * cross_entropy(outputs["logits"], batch.inputs["labels"]))


def test_a_signal_that_weighs_more_than_hard_labels_leave_keeps_its_weight(
    classified: tuple[dict[str, Tensor], Taught],
) -> None:
    outputs, batch = classified
    terms = _terms(Objective(Task.IMAGE_CLASSIFICATION, 0.3, (Term(SignalKind.FORWARD_KL, 2.1),)), outputs, batch)
    _close(terms["ForwardKL"], 2.1 * _divergence(SignalKind.FORWARD_KL, outputs["logits"], batch.teacher["logits"]))
    _close(terms[HARD], 0.3 * cross_entropy(outputs["logits"], batch.inputs["labels"]))


def test_label_smoothing_reaches_the_loss(classified: tuple[dict[str, Tensor], Taught]) -> None:
    outputs, batch = classified
    terms = _terms(Objective(Task.IMAGE_CLASSIFICATION, 1.0, label_smoothing=0.2), outputs, batch)
    _close(terms[HARD], cross_entropy(outputs["logits"], batch.inputs["labels"], label_smoothing=0.2))


def test_stored_top_k_of_all_classes_is_the_whole_distribution(classified: tuple[dict[str, Tensor], Taught]) -> None:
    outputs, batch = classified
    log_probs = batch.teacher["logits"].log_softmax(-1)
    stored = {
        "logits.indices": torch.arange(C, dtype=torch.int32).expand(B, C),
        "logits.log_probs": log_probs,
        "logits.tail_log_mass": torch.full((B,), -1e4),
    }
    terms = _terms(
        Objective(Task.IMAGE_CLASSIFICATION, 0.0, (Term(SignalKind.REVERSE_KL, 1.0),)),
        outputs,
        Taught(batch.inputs, stored),
    )
    _close(terms["ReverseKL"], _divergence(SignalKind.REVERSE_KL, outputs["logits"], batch.teacher["logits"]))


def test_stored_draws_are_weighted_by_their_share(classified: tuple[dict[str, Tensor], Taught]) -> None:
    outputs, batch = classified
    shares = torch.tensor([[0.75, 0.25]]).expand(B, 2)
    chosen = torch.tensor([[0, 3]], dtype=torch.int32).expand(B, 2)
    stored = {
        "logits.indices": chosen,
        "logits.log_probs": shares.log(),
        "logits.tail_log_mass": torch.full((B,), -1e4),
    }
    objective = Objective(Task.IMAGE_CLASSIFICATION, 0.0, (Term(SignalKind.FORWARD_KL, 1.0),), sampled=True)
    terms = _terms(objective, outputs, Taught(batch.inputs, stored))
    ours = outputs["logits"].log_softmax(-1).gather(1, chosen.long())
    _close(terms["ForwardKL"], (shares * (shares.log() - ours)).sum(-1).mean())


# Three texts of four, three and two tokens; the first two tokens of each are of the image.
IMAGE_TOKEN = 8
IDS_BT = torch.tensor([[IMAGE_TOKEN, 5, 6, 7], [IMAGE_TOKEN, 4, 3, 0], [IMAGE_TOKEN, 2, 0, 0]])
MASK_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])


def _token_inputs() -> dict[str, Tensor]:
    labels = IDS_BT.masked_fill((MASK_BT == 0) | (IDS_BT == IMAGE_TOKEN), IGNORED_LABEL)
    return {"input_ids": IDS_BT, "attention_mask": MASK_BT, "labels": labels}


# Positions that have a next token of text, and that token.
PREDICTED = [(0, 0, 5), (0, 1, 6), (0, 2, 7), (1, 0, 4), (1, 1, 3), (2, 0, 2)]


@pytest.mark.parametrize("hard", [0.0, 0.3])
def test_only_text_that_follows_is_learnt_and_counted(hard: float) -> None:
    logits, teacher = _random(3, T, V, seed=3), _random(3, T, V, seed=4)
    batch = Taught(_token_inputs(), {"logits": teacher, "logits.lengths": torch.tensor([4, 3, 2], dtype=torch.int32)})
    objective = Objective(Task.CAUSAL_LM, hard, (Term(SignalKind.FORWARD_KL, 1 - hard),))
    terms = _terms(objective, {"logits": logits}, batch)
    rows = [(sample, place) for sample, place, _ in PREDICTED]
    ours = torch.stack([logits[row] for row in rows])
    theirs = torch.stack([teacher[row] for row in rows])
    _close(terms["ForwardKL"], (1 - hard) * _divergence(SignalKind.FORWARD_KL, ours, theirs))
    if hard:
        _close(terms[HARD], hard * cross_entropy(ours, torch.tensor([token for _, _, token in PREDICTED])))
    assert objective.labels is Labels.TOKENS
    assert objective.count is not None
    assert objective.count(batch) == len(PREDICTED)


def test_image_tokens_are_not_learnt() -> None:
    inputs = _token_inputs()
    with_more = {
        **inputs,
        "input_ids": torch.cat([torch.full((3, 2), IMAGE_TOKEN), IDS_BT], 1),
        "attention_mask": torch.cat([torch.ones(3, 2, dtype=torch.long), MASK_BT], 1),
        "labels": torch.cat([torch.full((3, 2), IGNORED_LABEL), inputs["labels"]], 1),
    }
    logits = _random(3, T, V, seed=3)
    longer = torch.cat([_random(3, 2, V, seed=9), logits], 1)
    objective = Objective(Task.CAUSAL_LM, 1.0)
    _close(
        _terms(objective, {"logits": longer}, Taught(with_more))[HARD],
        _terms(objective, {"logits": logits}, Taught(inputs))[HARD],
    )


def test_stored_tokens_that_are_padded_less_than_the_batch_are_filled_up() -> None:
    logits, teacher = _random(3, T, V, seed=3), _random(3, T, V, seed=4)
    lengths = torch.tensor([3, 3, 2], dtype=torch.int32)
    inputs = _token_inputs()
    inputs["attention_mask"] = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0]])
    objective = Objective(Task.CAUSAL_LM, 0.0, (Term(SignalKind.FORWARD_KL, 1.0),))
    of_batch = _terms(objective, {"logits": logits}, Taught(inputs, {"logits": teacher, "logits.lengths": lengths}))
    shorter = {"logits": teacher[:, :3], "logits.lengths": lengths}
    _close(_terms(objective, {"logits": logits}, Taught(inputs, shorter))["ForwardKL"], of_batch["ForwardKL"])


def test_texts_of_a_single_token_teach_nothing_and_break_nothing() -> None:
    inputs = {
        "input_ids": IDS_BT[:, :2],
        "attention_mask": torch.tensor([[1, 0]] * 3),
        "labels": torch.full((3, 2), IGNORED_LABEL),
    }
    logits = _random(3, 2, V, seed=3).requires_grad_()
    terms = _terms(Objective(Task.CAUSAL_LM, 1.0), {"logits": logits}, Taught(inputs))
    terms[HARD].backward()
    assert terms[HARD].item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_texts_that_the_teacher_cut_into_other_tokens_are_refused() -> None:
    stored = {"logits": _random(3, T, V, seed=4), "logits.lengths": torch.tensor([4, 4, 2], dtype=torch.int32)}
    objective = Objective(Task.CAUSAL_LM, 0.0, (Term(SignalKind.FORWARD_KL, 1.0),))
    with pytest.raises(ValueError, match="same tokens, got \\[4, 4, 2\\] and \\[4, 3, 2\\]"):
        _terms(objective, {"logits": _random(3, T, V, seed=3)}, Taught(_token_inputs(), stored))


@pytest.fixture
def paired() -> tuple[dict[str, Tensor], Taught]:
    """Student and teacher embeddings of image-text pairs, of different widths."""
    outputs = {
        "image_embedding": normalize(_random(B, D, seed=5), dim=-1).requires_grad_(),
        "text_embedding": normalize(_random(B, D, seed=6), dim=-1).requires_grad_(),
        "logit_scale": torch.tensor(9.0, requires_grad=True),
    }
    teacher = {
        "image_embedding": normalize(_random(B, E, seed=7), dim=-1),
        "text_embedding": normalize(_random(B, E, seed=8), dim=-1),
    }
    return outputs, Taught(teacher=teacher)


def _pairs(outputs: dict[str, Tensor], batch: Taught, scale: float) -> tuple[contrastive.Pair, contrastive.Pair]:
    ours = contrastive.Pair(outputs["image_embedding"], outputs["text_embedding"], outputs["logit_scale"])
    return ours, contrastive.Pair(batch.teacher["image_embedding"], batch.teacher["text_embedding"], scale)


def test_contrastive_signals_are_their_formulas_each_with_its_weight(paired: tuple[dict[str, Tensor], Taught]) -> None:
    outputs, batch = paired
    objective = Objective(
        Task.IMAGE_TEXT,
        0.2,
        (
            Term(SignalKind.CONTRASTIVE_AFFINITY, 0.8),
            Term(SignalKind.CONTRASTIVE_FEATURE, 8.0),
            Term(SignalKind.CONTRASTIVE_INTERACTIVE, 0.4),
        ),
        temperature=2.0,
        teacher_scale=20.0,
        widths=(D, E),
    )
    loss = objective.build(RowGather())
    terms = loss(outputs, batch)
    ours, theirs = _pairs(outputs, batch, 20.0)
    assert loss.to_teacher_space is not None
    _close(terms["ContrastiveAffinity"], 0.8 * contrastive.affinity_mimicking(ours, theirs, temperature=2.0))
    _close(
        terms["ContrastiveInteractive"],
        0.4 * contrastive.interactive_contrastive(ours, theirs, project=loss.to_teacher_space),
    )
    projected = [normalize(loss.to_teacher_space(part), dim=-1) for part in (ours.image, ours.text)]
    distances = [
        (own - its).square().sum(-1).mean() for own, its in zip(projected, (theirs.image, theirs.text), strict=True)
    ]
    _close(terms["ContrastiveFeature"], 8.0 * (distances[0] + distances[1]) / 2)
    _close(terms[HARD], 0.2 * contrastive.info_nce(ours))
    assert objective.couples_samples


def test_gradients_reach_the_student_and_the_projection_and_not_the_teacher(
    paired: tuple[dict[str, Tensor], Taught],
) -> None:
    outputs, batch = paired
    for tensor in batch.teacher.values():
        tensor.requires_grad_()
    objective = Objective(Task.IMAGE_TEXT, 0.2, (Term(SignalKind.CONTRASTIVE_FEATURE, 0.8),), widths=(D, E))
    loss = objective.build(RowGather())
    torch.stack(list(loss(outputs, batch).values())).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in outputs.values())
    assert loss.to_teacher_space is not None
    assert loss.to_teacher_space.weight.grad is not None
    assert loss.to_teacher_space.weight.grad.any()
    assert all(tensor.grad is None for tensor in batch.teacher.values())


def test_equal_widths_have_no_projection() -> None:
    loss = Objective(Task.IMAGE_TEXT, 0.0, (Term(SignalKind.CONTRASTIVE_FEATURE, 1.0),), widths=(D, D)).build(
        RowGather()
    )
    assert loss.to_teacher_space is None
    assert list(loss.parameters()) == []


def test_features_are_compared_pair_by_pair_with_a_projection_where_widths_differ() -> None:
    outputs = {"text_embedding": _random(B, E, seed=1), "features.a": _random(B, D, seed=2)}
    teacher = {"text_embedding": _random(B, E, seed=3), "features.b": _random(B, E, seed=4)}
    matches = (Match("text_embedding", "text_embedding", E, E), Match("features.a", "features.b", D, E))
    objective = Objective(
        Task.TEXT_EMBEDDING,
        0.0,
        (Term(SignalKind.FEATURE_MSE, 2.0, matches), Term(SignalKind.FEATURE_COSINE, 1.0, matches[:1])),
    )
    loss = objective.build(RowGather())
    terms = loss(outputs, Taught(teacher=teacher))
    (projection,) = loss.projections.values()
    first = mse_loss(outputs["text_embedding"], teacher["text_embedding"])
    second = mse_loss(projection(outputs["features.a"]), teacher["features.b"])
    _close(terms["FeatureMSE"], 2.0 * (first + second) / 2)
    _close(terms["FeatureCosine"], feature_cosine(outputs["text_embedding"], teacher["text_embedding"]))
    assert objective.student_layers == ("a",)


def test_two_signals_of_one_kind_add_up_and_have_projections_of_their_own() -> None:
    outputs = {"features.a": _random(B, D, seed=2)}
    teacher = {"features.b": _random(B, E, seed=4), "features.c": _random(B, E + 1, seed=5)}
    signals = tuple(
        Term(SignalKind.FEATURE_MSE, 1.0, (Match("features.a", name, D, width),))
        for name, width in (("features.b", E), ("features.c", E + 1))
    )
    loss = Objective(Task.IMAGE_CLASSIFICATION, 0.0, signals).build(RowGather())
    terms = loss(outputs, Taught(teacher=teacher))
    to_b, to_c = loss.projections.values()
    wanted = mse_loss(to_b(outputs["features.a"]), teacher["features.b"]) + mse_loss(
        to_c(outputs["features.a"]), teacher["features.c"]
    )
    _close(terms["FeatureMSE"], wanted)


def test_padding_does_not_count_in_features_of_tokens() -> None:
    student, teacher = _random(3, T, D, seed=1), _random(3, T, D, seed=2)
    lengths = torch.tensor([4, 3, 2], dtype=torch.int32)
    batch = Taught({"attention_mask": MASK_BT}, {"features.b": teacher, "features.b.lengths": lengths})
    match = Match("features.a", "features.b", D, D)
    objective = Objective(Task.IMAGE_TEXT, 0.0, (Term(SignalKind.FEATURE_MSE, 1.0, (match,)),))
    terms = _terms(objective, {"features.a": student}, batch)
    _close(terms["FeatureMSE"], feature_mse(student, teacher, valid_BT=MASK_BT != 0))
    of_patches = Taught({"attention_mask": MASK_BT}, {"features.b": teacher})
    _close(_terms(objective, {"features.a": student}, of_patches)["FeatureMSE"], mse_loss(student, teacher))
