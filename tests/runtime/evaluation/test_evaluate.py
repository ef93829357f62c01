"""Every task's figures on models whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from limbeck_runtime.evaluation.evaluate import evaluate
from limbeck_runtime.evaluation.evaluation import Evaluation
from limbeck_runtime.models.bundle import ModelBundle

TEXTS = ("red apple", "green pear", "blue car", "red car")
Make = Callable[..., Any]


@pytest.fixture
def images(direction: Make) -> torch.Tensor:
    """The first two are right, the third says what the fourth does, the fourth is right."""
    return torch.stack(
        [direction("red", "apple"), direction("green", "pear"), direction("red", "car"), direction("red", "car")]
    )


def test_image_text_models_are_measured_both_ways(dual: Make, batches: Make, images: torch.Tensor) -> None:
    found = evaluate(dual(images), batches(4, TEXTS))
    assert found.main_metric == "mean_recall@10"
    assert found.metrics["image_to_text_recall@1"] == 0.75
    # Images 2 and 3 look the same, so both texts of a car find the right one only as the second.
    assert found.metrics["text_to_image_recall@1"] == 0.5
    assert found.metrics["mean_recall@1"] == pytest.approx(0.625)
    assert found.metrics["mean_recall@10"] == 1.0
    assert found.answers.ids.tolist() == [0, 1, 3, 3]
    assert found.answers.correct.tolist() == [1, 1, 0, 1]
    assert found.keys == tuple(f"sample-{row}" for row in range(4))
    assert "ece" in found.unmeasured


def test_zero_shot_classes_are_found_by_their_names(dual: Make, batches: Make, direction: Make) -> None:
    # The third image looks like a car and is labelled a fruit; the fourth has no label.
    images = torch.stack([direction("red", "apple"), direction("pear"), direction("car"), direction("car")])
    labels = [0, 1, 0, -1]
    found = evaluate(dual(images), batches(4, TEXTS, labels), classes=["red_apple", "green-Pear", "blue car"])
    assert found.metrics["zero_shot_accuracy"] == pytest.approx(2 / 3)
    assert found.ece is not None
    assert 0 < found.ece < 1
    numbers = evaluate(dual(images), batches(4, TEXTS, labels), classes=["0", "1", "2"])
    assert "zero_shot_accuracy" not in numbers.metrics
    assert "numbers" in numbers.unmeasured["ece"]


def test_agreement_is_the_share_of_equal_first_answers(
    dual: Make, batches: Make, images: torch.Tensor, direction: Make
) -> None:
    teacher = evaluate(dual(images), batches(4, TEXTS))
    student_images = images.clone()
    student_images[1] = direction("blue", "car")
    student = evaluate(dual(student_images), batches(4, TEXTS), teacher=teacher)
    assert student.agreement_percent == 75.0
    assert student.recovery_interval is not None
    assert teacher.agreement_percent is None
    other = evaluate(dual(images), batches(2, TEXTS), teacher=teacher)
    assert other.agreement_percent is None
    assert "4 questions, this model 2" in other.unmeasured["agreementPercent"]


def test_slices_hold_the_metrics_of_their_samples_with_counts(dual: Make, batches: Make, images: torch.Tensor) -> None:
    kinds = ("fruit", "fruit", "car", "")
    found = evaluate(dual(images), batches(4, TEXTS), slices={"kind": kinds}).slices["kind"]
    assert {value: part.count for value, part in found.items()} == {"fruit": 2, "car": 1}
    assert found["fruit"].metrics["image_to_text_recall@1"] == 1.0
    assert found["car"].metrics["image_to_text_recall@1"] == 0.0


def test_classifiers_are_measured_by_accuracy_top5_f1_and_calibration(lookup: Make, batches: Make) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 8, generator=generator) * 2
    labels = torch.randint(0, 8, (60,), generator=generator)
    labels[:30] = logits[:30].argmax(1)
    found = evaluate(lookup("ImageClassification", logits=logits), batches(60, labels=labels))
    predicted = logits.argmax(1)
    assert found.metrics["accuracy"] == pytest.approx(float((predicted == labels).float().mean()))
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert found.metrics["top5_accuracy"] == pytest.approx(float((ranks < 5).float().mean()))
    by_class = []
    for label in range(8):
        both = int(((predicted == label) & (labels == label)).sum())
        by_class.append(2 * both / (int((predicted == label).sum()) + int((labels == label).sum())))
    assert found.metrics["f1"] == pytest.approx(np.mean(by_class), rel=1e-5)
    wanted = multiclass_calibration_error(logits.softmax(-1), labels, num_classes=8, n_bins=15, norm="l1")
    assert found.ece == pytest.approx(float(wanted), abs=1e-6)


def test_a_label_that_the_model_does_not_know_is_refused(lookup: Make, batches: Make) -> None:
    bundle = lookup("ImageClassification", logits=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="must know all classes of the data, got 3 for the label 3"):
        evaluate(bundle, batches(2, labels=[0, 3]))


def test_language_models_are_measured_by_perplexity_and_token_agreement(lookup: Make, batches: Make) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 7, (4, 5), generator=generator)
    labels[0, 3:] = -100
    labels[2, :] = -100  # nothing to predict
    found = evaluate(lookup("CausalLM", logits=logits), batches(4, labels=labels))
    losses, right = [], []
    for sample in range(4):
        for position in range(4):
            target = int(labels[sample, position + 1])
            if target >= 0:
                row = logits[sample, position]
                losses.append(-float(row[target] - row.exp().sum().log()))
                right.append(int(row.argmax()) == target)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert found.metrics["token_accuracy"] == pytest.approx(np.mean(right))
    assert len(found.answers.ids) == len(losses)
    changed = logits.clone()
    changed[1, 0] = -changed[1, 0]
    student = evaluate(lookup("CausalLM", logits=changed), batches(4, labels=labels), teacher=found)
    assert student.agreement_percent == pytest.approx(100 * (len(losses) - 1) / len(losses))


def test_a_token_beyond_the_vocabulary_is_refused(lookup: Make, batches: Make) -> None:
    bundle = lookup("CausalLM", logits=torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="must hold the data's tokens, got 4 entries for token 6"):
        evaluate(bundle, batches(2, labels=[[1, 6, 0], [1, 2, 3]]))
    with pytest.raises(ValueError, match="measured on token labels, got none"):
        evaluate(bundle, batches(2))


def unit(count: int, width: int, seed: int) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def test_embeddings_with_labels_are_measured_by_their_neighbours(lookup: Make, batches: Make) -> None:
    vectors = torch.eye(3)[[0, 0, 1, 1, 1, 0]] + 0.01 * torch.arange(6)[:, None]
    vectors = torch.nn.functional.normalize(vectors, dim=-1)
    found = evaluate(lookup("AudioEmbedding", audio_embedding=vectors), batches(6, labels=[7, 7, 8, 8, 8, 8]))
    assert found.metrics["recall@1"] == pytest.approx(5 / 6)


def test_embeddings_without_labels_are_measured_against_the_teachers(lookup: Make, batches: Make) -> None:
    theirs = unit(40, 16, 0)
    teacher = evaluate(lookup("TextEmbedding", text_embedding=theirs), batches(40))
    assert teacher.metrics["recall@1"] == 1.0
    assert teacher.metrics["similarity_correlation"] == pytest.approx(1.0)
    mine = torch.nn.functional.normalize(theirs + 0.1 * unit(40, 16, 1), dim=-1)
    near = evaluate(lookup("TextEmbedding", text_embedding=mine), batches(40), teacher=teacher)
    far = evaluate(lookup("TextEmbedding", text_embedding=unit(40, 16, 2)), batches(40), teacher=teacher)
    assert near.metrics["recall@1"] == 1.0
    assert near.metrics["teacher_cosine"] == pytest.approx(float((mine * theirs).sum(1).mean()), rel=1e-5)
    assert near.metrics["similarity_correlation"] > 0.9 > 0.3 > far.metrics["similarity_correlation"]
    assert far.metrics["recall@1"] < 0.2


def test_embeddings_of_another_width_still_have_a_correlation(lookup: Make, batches: Make) -> None:
    theirs = unit(40, 16, 0)
    teacher = evaluate(lookup("TextEmbedding", text_embedding=theirs), batches(40))
    bundle = lookup("TextEmbedding", text_embedding=torch.nn.functional.normalize(theirs[:, :12], dim=-1))
    found = evaluate(bundle, batches(40), teacher=teacher)
    assert math.isnan(found.metrics["recall@1"])
    assert "16 dimensions, not 12" in found.unmeasured["metrics.recall@1"]
    assert found.metrics["similarity_correlation"] > 0.7


def test_models_are_measured_in_eval_mode_and_left_as_they_were(lookup: Make, batches: Make) -> None:
    bundle: ModelBundle = lookup("ImageClassification", logits=torch.eye(4))
    bundle.module.train()
    told: list[int] = []
    evaluate(bundle, batches(4, labels=[0, 1, 2, 3]), progress=told.append)
    assert bundle.module.seen_training == [False, False]
    assert bundle.module.training
    assert told == [2, 4]


def test_a_main_metric_that_the_task_does_not_have_is_refused_with_those_it_has(lookup: Make, batches: Make) -> None:
    bundle = lookup("ImageClassification", logits=torch.eye(4))
    with pytest.raises(ValueError, match=r"`spec.evaluation.metrics\[0\]` .* got 'bleu'; take one of accuracy, f1"):
        evaluate(bundle, batches(4, labels=[0, 1, 2, 3]), main_metric="bleu")


def test_an_evaluation_survives_a_file(dual: Make, batches: Make, images: torch.Tensor) -> None:
    teacher = evaluate(dual(images), batches(4, TEXTS, [0, 0, 1, 1]), classes=["fruit", "car"])
    found = evaluate(
        dual(images), batches(4, TEXTS, [0, 0, 1, 1]), classes=["fruit", "car"], teacher=teacher, slices={"k": "aabb"}
    )
    again = Evaluation.from_bytes(found.to_bytes())
    assert again.metrics == found.metrics
    assert again.slices == found.slices
    assert again.recovery_interval == found.recovery_interval
    assert again.keys == found.keys
    np.testing.assert_array_equal(again.answers.ids, found.answers.ids)
    for name, score in found.scores.items():
        np.testing.assert_array_equal(again.scores[name].values, score.values)
    with pytest.raises(ValueError, match="not a stored evaluation"):
        Evaluation.from_bytes(b"PK nothing of the kind")
