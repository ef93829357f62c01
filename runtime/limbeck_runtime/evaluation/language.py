"""Models that predict tokens: perplexity over the tokens that count, and the most likely token at each.

B samples, T tokens, V vocabulary. `logits` at t predict the label at t + 1; labels of -100 do not count.
Left out on purpose: generation and what it needs (word error rate, BLEU); answers are compared token by token, under
the true text, which says more per second of computing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch.nn import functional

from limbeck_runtime.data.batch import IGNORED_LABEL, Batch
from limbeck_runtime.evaluation.evaluation import Answers
from limbeck_runtime.evaluation.findings import Findings
from limbeck_runtime.evaluation.scores import SampleScores
from limbeck_runtime.models.bundle import ModelBundle

PERPLEXITY = "perplexity"
TOKEN_ACCURACY = "token_accuracy"


def measure(bundle: ModelBundle, batches: Iterable[Batch], _classes: Sequence[str], device: str) -> Findings:
    """Raises ValueError where a batch has no token labels, or labels that the vocabulary does not hold."""
    loss_sums, right_sums, counts = [], [], []
    ids, confidences, correct = [], [], []
    for batch in batches:
        labels_BT = batch.inputs.get("labels")
        if labels_BT is None or labels_BT.ndim != 2:
            raise ValueError("a language model is measured on token labels, got none; load with Labels.TOKENS")
        inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items() if name != "labels"}
        logits_BTV = bundle.module(inputs)["logits"][:, :-1].float()
        targets_BT = labels_BT[:, 1:].to(logits_BTV.device)
        counted_BT = targets_BT != IGNORED_LABEL
        if int(targets_BT.max()) >= logits_BTV.shape[-1]:
            raise ValueError(
                f"the model's vocabulary must hold the data's tokens, got {logits_BTV.shape[-1]} entries for token "
                f"{int(targets_BT.max())}; use the tokenizer that belongs to the model"
            )
        loss_BT = functional.cross_entropy(
            logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORED_LABEL, reduction="none"
        )
        best = logits_BTV.max(-1)
        right_BT = (best.indices == targets_BT) & counted_BT
        confidence_BT = (best.values - logits_BTV.logsumexp(-1)).exp()
        loss_sums.append(loss_BT.double().sum(1).cpu().numpy())
        right_sums.append(right_BT.double().sum(1).cpu().numpy())
        counts.append(counted_BT.double().sum(1).cpu().numpy())
        ids.append(best.indices[counted_BT].cpu().numpy())
        confidences.append(confidence_BT[counted_BT].cpu().numpy())
        correct.append(right_BT[counted_BT].cpu().numpy())
    counts_N = np.concatenate(counts)
    scores = {
        PERPLEXITY: SampleScores(np.concatenate(loss_sums), counts_N, exponential=True),
        TOKEN_ACCURACY: SampleScores(np.concatenate(right_sums), counts_N),
    }
    answers = Answers(
        np.concatenate(ids), np.concatenate(confidences).astype(np.float64), np.concatenate(correct).astype(np.int8)
    )
    return Findings(scores, answers, unmeasured={"ece": "the task has tokens, not classes"})
