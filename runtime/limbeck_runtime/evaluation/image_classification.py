"""Classifiers: accuracy, top-5 accuracy, macro F1 and calibration error.

B samples of a batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from limbeck_runtime.data.batch import Batch
from limbeck_runtime.evaluation.calibration_error import expected_calibration_error
from limbeck_runtime.evaluation.evaluation import Answers
from limbeck_runtime.evaluation.findings import Findings
from limbeck_runtime.evaluation.scores import SampleScores
from limbeck_runtime.models.bundle import ModelBundle

NUM_TOP = 5


def measure(bundle: ModelBundle, batches: Iterable[Batch], classes: Sequence[str], device: str) -> Findings:
    """Raises ValueError where the model has fewer classes than the data."""
    from torchmetrics.functional.classification import multiclass_f1_score

    predicted, confidence, top, truth = [], [], [], []
    num_classes = 0
    for batch in batches:
        labels_B = batch.inputs["labels"]
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items() if name != "labels"}
        logits_BC = bundle.module(inputs)["logits"].float().cpu()
        num_classes = logits_BC.shape[1]
        if int(labels_B.max()) >= num_classes:
            raise ValueError(
                f"the model must know all classes of the data, got {num_classes} for the label {int(labels_B.max())} "
                f"of {len(classes)} classes; use a model with a class for each"
            )
        probabilities_BC = logits_BC.softmax(-1)
        confidence_B, predicted_B = probabilities_BC.max(-1)
        best_B5 = logits_BC.topk(min(NUM_TOP, num_classes)).indices
        predicted.append(predicted_B.numpy())
        confidence.append(confidence_B.numpy())
        top.append((best_B5 == labels_B[:, None]).any(-1).numpy())
        truth.append(labels_B.numpy())
    predicted_N, confidence_N, truth_N = map(np.concatenate, (predicted, confidence, truth))
    correct_N = predicted_N == truth_N
    scores = {"accuracy": SampleScores.mean_of(correct_N)}
    if num_classes > NUM_TOP:
        scores[f"top{NUM_TOP}_accuracy"] = SampleScores.mean_of(np.concatenate(top))
    f1 = multiclass_f1_score(
        torch.from_numpy(predicted_N), torch.from_numpy(truth_N), num_classes=num_classes, average="macro"
    )
    return Findings(
        scores,
        Answers(predicted_N, confidence_N.astype(np.float64), correct_N.astype(np.int8)),
        {"f1": float(f1)},
        expected_calibration_error(confidence_N.astype(np.float64), correct_N),
    )
