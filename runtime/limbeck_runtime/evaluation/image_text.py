"""Image-text models: retrieval both ways, and zero-shot classification by the names of the classes.

N samples, C classes, D embedding dimensions.
Left out on purpose: prompt engineering. The templates are few and the same for all models, so that they compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from limbeck_runtime.data.batch import Batch
from limbeck_runtime.evaluation.calibration_error import expected_calibration_error
from limbeck_runtime.evaluation.evaluation import Answers
from limbeck_runtime.evaluation.findings import Findings, Labelled
from limbeck_runtime.evaluation.retrieval import groups_of_rows, nearest, right_ranks
from limbeck_runtime.evaluation.scores import SampleScores
from limbeck_runtime.models.bundle import ModelBundle

CUTOFFS = (1, 10)
TEMPLATES = ("{}", "a picture of {}")
ZERO_SHOT = "zero_shot_accuracy"


def measure(bundle: ModelBundle, batches: Iterable[Batch], classes: Sequence[str], device: str) -> Findings:
    """Recall at 1 and 10 both ways and their means, zero-shot accuracy, and its calibration error."""
    images, texts, token_rows, labels = [], [], [], []
    scale = 1.0
    for batch in batches:
        outputs = bundle.module({name: tensor.to(device) for name, tensor in batch.inputs.items()})
        images.append(outputs["image_embedding"].float().cpu().numpy())
        texts.append(outputs["text_embedding"].float().cpu().numpy())
        scale = float(outputs["logit_scale"])
        token_rows += _token_rows(batch.inputs)
        labels.append(_labels(batch))
    images_ND, texts_ND = np.concatenate(images), np.concatenate(texts)
    groups = groups_of_rows(token_rows)
    scores = _recalls(images_ND, texts_ND, groups)
    places, cosines = nearest(images_ND, texts_ND)
    answers = Answers(places, cosines, (groups[places] == groups).astype(np.int8))
    labelled = Labelled(np.concatenate(labels), classes)
    ece, unmeasured = None, {}
    if reason := _no_zero_shot(labelled):
        unmeasured["ece"] = reason
    else:
        class_vectors_CD = _class_vectors(bundle, classes, device)
        zero_shot, ece = _zero_shot(images_ND, class_vectors_CD, labelled, scale)
        scores[ZERO_SHOT] = zero_shot
    figures = {"modality_gap": float(np.linalg.norm(images_ND.mean(0) - texts_ND.mean(0)))}
    return Findings(scores, answers, figures, ece, unmeasured=unmeasured)


def _recalls(images_ND: np.ndarray, texts_ND: np.ndarray, groups: np.ndarray) -> dict[str, SampleScores]:
    ranks = {
        "image_to_text": right_ranks(images_ND, texts_ND, groups, groups),
        "text_to_image": right_ranks(texts_ND, images_ND, groups, groups),
    }
    scores = {}
    for cutoff in CUTOFFS:
        hits = {way: (of_way < cutoff).astype(np.float64) for way, of_way in ranks.items()}
        for way, of_way in hits.items():
            scores[f"{way}_recall@{cutoff}"] = SampleScores.mean_of(of_way)
        scores[f"mean_recall@{cutoff}"] = SampleScores.mean_of(np.mean(list(hits.values()), axis=0))
    return scores


def _token_rows(inputs: Mapping[str, torch.Tensor]) -> list[tuple[int, ...]]:
    """The tokens of each text without padding: equal rows are equal captions."""
    pairs = zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True)
    return [tuple(token for token, kept in zip(ids, mask, strict=True) if kept) for ids, mask in pairs]


def _labels(batch: Batch) -> np.ndarray:
    labels = batch.inputs.get("labels")
    if labels is None or labels.ndim != 1:
        return np.full(len(batch), -1, np.int64)
    return labels.numpy().astype(np.int64)


def _no_zero_shot(labelled: Labelled) -> str:
    """Why there is no zero-shot accuracy, "" where there is."""
    if not labelled.classes or not (labelled.ids >= 0).any():
        return "the data has no labels"
    if all(name.lstrip("-").isdigit() for name in labelled.classes):
        return "the classes are numbers, which no text describes"
    return ""


def _class_vectors(bundle: ModelBundle, classes: Sequence[str], device: str) -> np.ndarray:
    """One vector of length 1 for each class: the mean over the templates, (C, D)."""
    encode = _text_encoder(bundle, device)
    names = [name.replace("_", " ").replace("-", " ").lower() for name in classes]
    by_template = [encode([template.format(name) for name in names]) for template in TEMPLATES]
    mean_CD = np.mean(by_template, axis=0)
    vectors_CD: np.ndarray = mean_CD / np.maximum(np.linalg.norm(mean_CD, axis=1, keepdims=True), 1e-12)
    return vectors_CD


def _text_encoder(bundle: ModelBundle, device: str) -> Callable[[Sequence[str]], np.ndarray]:
    from limbeck_runtime.evaluation.texts import text_inputs

    text = bundle.preprocessing.text
    assert text is not None, "an image-text model reads texts"
    tokenizer = text.build_tokenizer()
    module: Any = bundle.module

    def encode(texts: Sequence[str]) -> np.ndarray:
        inputs = {name: tensor.to(device) for name, tensor in text_inputs(text, tokenizer, texts).items()}
        vectors: torch.Tensor = module.encode_text(inputs)
        array: np.ndarray = vectors.float().cpu().numpy()
        return array

    return encode


def _zero_shot(
    images_ND: np.ndarray, classes_CD: np.ndarray, labelled: Labelled, scale: float
) -> tuple[SampleScores, float]:
    logits_NC = scale * images_ND.astype(np.float64) @ classes_CD.T
    probabilities_NC = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
    probabilities_NC /= probabilities_NC.sum(1, keepdims=True)
    known = labelled.ids >= 0
    correct = (probabilities_NC.argmax(1) == labelled.ids) & known
    ece = expected_calibration_error(probabilities_NC.max(1)[known], correct[known])
    return SampleScores(correct.astype(np.float64), known.astype(np.float64)), ece
