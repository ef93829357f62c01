"""Names of metrics that other parts must know, and which way is better."""

from __future__ import annotations

from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.evaluation.embedding import RECALL
from limbeck_runtime.evaluation.language import PERPLEXITY
from limbeck_runtime.report.build import LOWER_IS_BETTER as LOWER_IS_BETTER

# The metric of which recovery is taken, unless the job names another; a word error rate needs generation.
MAIN_METRIC: dict[Task, str] = {
    Task.IMAGE_TEXT: "mean_recall@10",
    Task.IMAGE_CLASSIFICATION: "accuracy",
    Task.TEXT_EMBEDDING: RECALL,
    Task.AUDIO_EMBEDDING: RECALL,
    Task.CAUSAL_LM: PERPLEXITY,
    Task.SPEECH: PERPLEXITY,
}
