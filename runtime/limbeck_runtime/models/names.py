"""The kinds of architecture records, and the task that each kind does. Written to disk: never rename one."""

from __future__ import annotations

from limbeck.api.v1alpha1.job import Task

DUAL_ENCODER = "DualEncoder"  # two towers, one space
TEXT_EMBEDDER = "TextEmbedder"  # a text tower alone
TIMM_CLASSIFIER = "TimmClassifier"  # a timm network with its head
TRANSFORMERS_CLASSIFIER = "TransformersClassifier"  # a transformers network with its head
CAUSAL_LANGUAGE_MODEL = "CausalLanguageModel"  # next-token logits from text, or from image and text
SPEECH_RECOGNISER = "SpeechRecogniser"  # transcript logits from sound
PYTHON = "Python"  # the user's own function; its settings hold the task

TASK_OF_KIND: dict[str, Task] = {
    DUAL_ENCODER: Task.IMAGE_TEXT,
    TEXT_EMBEDDER: Task.TEXT_EMBEDDING,
    TIMM_CLASSIFIER: Task.IMAGE_CLASSIFICATION,
    TRANSFORMERS_CLASSIFIER: Task.IMAGE_CLASSIFICATION,
    CAUSAL_LANGUAGE_MODEL: Task.CAUSAL_LM,
    SPEECH_RECOGNISER: Task.SPEECH,
}

# Kinds of edits that more than the part that makes them must know.
EDIT_LOW_RANK = "low_rank"
EDIT_MERGE_LOW_RANK = "merge_low_rank"
