"""Models that give one vector for each sample: whether the same things stay close together.

With labels, recall@1 is the share of samples whose nearest neighbour has their label (leaving the sample itself out).
Without labels the teacher's vectors are the truth: recall@1 is the share of samples that are nearest to their own
vector among all of the teacher's; and `similarity_correlation` is Spearman's between all pairwise cosines of model
and teacher, which needs no common width.
N samples, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from limbeck_runtime.data.batch import Batch
from limbeck_runtime.evaluation.evaluation import Answers
from limbeck_runtime.evaluation.findings import Findings
from limbeck_runtime.evaluation.retrieval import nearest, right_ranks
from limbeck_runtime.evaluation.scores import SampleScores
from limbeck_runtime.models.bundle import ModelBundle

RECALL = "recall@1"
COSINE = "teacher_cosine"
CORRELATION = "similarity_correlation"
EMBEDDING = "embedding"
# Pairs whose cosines are ranked; more would cost seconds and say no more.
_MAX_PAIRED = 512


def measure(
    bundle: ModelBundle, batches: Iterable[Batch], output: str, teacher: Mapping[str, np.ndarray] | None, device: str
) -> Findings:
    """Vectors of all samples under `output`, compared by labels where there are any, else with the teacher's."""
    vectors, labels = [], []
    for batch in batches:
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items() if name != "labels"}
        vectors.append(bundle.module(inputs)[output].float().cpu().numpy())
        of_batch = batch.inputs.get("labels")
        has_labels = of_batch is not None and of_batch.ndim == 1
        labels.append(of_batch.numpy() if has_labels and of_batch is not None else np.full(len(batch), -1))
    vectors_ND = np.concatenate(vectors)
    labels_N = np.concatenate(labels)
    neighbours, cosines = nearest(vectors_ND, vectors_ND, but_itself=True)
    theirs_ND = vectors_ND if teacher is None else teacher[EMBEDDING]
    scores, unmeasured = {}, {"ece": "the task has vectors, not classes"}
    correct = np.full(len(vectors_ND), -1, np.int8)
    if (labels_N >= 0).all():
        correct = (labels_N[neighbours] == labels_N).astype(np.int8)
        scores[RECALL] = SampleScores.mean_of(correct)
    if theirs_ND.shape == vectors_ND.shape:
        scores[COSINE] = SampleScores.mean_of((vectors_ND * theirs_ND).sum(1))
        if RECALL not in scores:
            own = np.arange(len(vectors_ND))
            scores[RECALL] = SampleScores.mean_of(right_ranks(vectors_ND, theirs_ND, own, own) == 0)
    elif RECALL not in scores:
        unmeasured[f"metrics.{RECALL}"] = (
            f"without labels it compares vectors, and the teacher's have {theirs_ND.shape[1]} dimensions, not "
            f"{vectors_ND.shape[1]}"
        )
        scores[RECALL] = SampleScores(np.zeros(len(vectors_ND)), np.zeros(len(vectors_ND)))
    figures = {CORRELATION: similarity_correlation(vectors_ND, theirs_ND)}
    return Findings(
        scores,
        Answers(neighbours, cosines, correct),
        figures,
        embeddings={EMBEDDING: vectors_ND},
        unmeasured=unmeasured,
    )


def similarity_correlation(mine_ND: np.ndarray, theirs_ND: np.ndarray) -> float:
    """Spearman's rank correlation between the cosines of all pairs of (the first 512) samples in both spaces."""
    import torch
    from torchmetrics.functional.regression import spearman_corrcoef

    count = min(len(mine_ND), _MAX_PAIRED)
    upper = np.triu_indices(count, 1)
    if len(upper[0]) < 2:
        return float("nan")
    pairs = [torch.from_numpy((part[:count] @ part[:count].T)[upper]).double() for part in (mine_ND, theirs_ND)]
    return float(spearman_corrcoef(*pairs))
