"""The model card: README.md beside the model, as the Hugging Face hub reads it.

What the card cannot know it leaves out: a licence is passed on, never guessed.
"""

from __future__ import annotations

import html
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from limbeck.api.report import Report
from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.report import page, wording
from limbeck_runtime.report.build import short_table

# The hub's own names of what our tasks do.
_HUB_TASKS = {
    Task.IMAGE_TEXT: "zero-shot-image-classification",
    Task.IMAGE_CLASSIFICATION: "image-classification",
    Task.TEXT_EMBEDDING: "sentence-similarity",
    Task.CAUSAL_LM: "text-generation",
    Task.AUDIO_EMBEDDING: "feature-extraction",
    Task.SPEECH: "automatic-speech-recognition",
}
LIBRARY = "limbeck"


@dataclass(frozen=True)
class CardFacts:
    """What the report does not hold: where the model comes from and what may be done with it."""

    license: str | None = None  # SPDX identifier of the weights, lower case as the hub wants it
    base_model: str | None = None  # the teacher, as a hub id or a path
    dataset: str | None = None  # the validation data, in words
    language: str | None = None


def model_card(report: Report, facts: CardFacts) -> str:
    """The card as Markdown with its metadata in front; `ModelCard.load` reads it back."""
    hub_task = _HUB_TASKS[Task(report.task)]
    dataset = facts.dataset or "validation data of the job"
    data = ModelCardData(
        model_name=report.job,
        license=facts.license,
        base_model=facts.base_model,
        language=facts.language,
        library_name=LIBRARY,
        pipeline_tag=hub_task,
        tags=[LIBRARY, "model-compression", *sorted({step.method for step in report.steps})],
        eval_results=[
            EvalResult(
                task_type=hub_task,
                dataset_type="private",
                dataset_name=dataset,
                metric_type=name,
                metric_value=metric.value,
                metric_name=wording.in_words(name),
                verified=False,
            )
            for name, metric in report.final.metrics.items()
            if metric.value is not None
        ],
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(report, facts)}"))


def _body(report: Report, facts: CardFacts) -> str:
    head, *lines = short_table(report)
    table = [_row(head), _row(["---"] * len(head)), *(_row(line) for line in lines)]
    _, verdict = page.verdict(report)
    steps = [f"{index}. {_safe(step.name)} ({_safe(step.method)})" for index, step in enumerate(report.steps, 1)]
    parts = [
        f"# {_safe(report.job)}",
        _safe(page.summary(report)),
        "## Use",
        "```python\n" + page.load_lines(report) + "\n```",
        "## Figures",
        "\n".join(table),
        f"{verdict} Measured on {_safe(report.environment.cpu)}, {report.environment.num_threads} threads. "
        "All figures, by slice and with the reasons for what was not measured, are in report.json.",
        *_limits(report),
        "## How it was made",
        "\n".join(steps) or "See report.json.",
        f"From {_safe(facts.base_model)}." if facts.base_model else "",
        f"Evaluated on {_safe(facts.dataset)}." if facts.dataset else "",
        f"Made with limbeck {_safe(report.environment.versions.get('limbeck', ''))}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _limits(report: Report) -> list[str]:
    gap = report.final.worst_gap
    if gap is None or gap.gap == 0:
        return []
    metric = wording.in_words(report.main_metric)
    return [
        "## Limits",
        f"Weakest on {_safe(gap.slice)} = {_safe(gap.value)} ({gap.count} samples): "
        f"{wording.in_number(gap.gap)} behind the whole in {_safe(metric)}.",
    ]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(_safe(cell).replace("|", "\\|") for cell in cells) + " |"


def _safe(text: str) -> str:
    """Text that can neither be markup nor end the paragraph that it stands in."""
    return html.escape(" ".join(text.split()), quote=False)
