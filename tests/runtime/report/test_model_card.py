from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from limbeck.api.report import Report
from limbeck.api.v1alpha1.job import Task
from limbeck_runtime.report.model_card import CardFacts, model_card

ReportOf = Callable[..., Report]


def test_the_hub_reads_back_licence_base_model_and_metrics(report_of: ReportOf, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    facts = CardFacts(license="apache-2.0", base_model="acme/clip", dataset="OpenMoji, unseen", language="en")
    path.write_text(model_card(report_of(), facts), encoding="utf-8")
    data = ModelCard.load(path).data
    assert (data.license, data.base_model, data.language) == ("apache-2.0", "acme/clip", "en")
    assert (data.library_name, data.pipeline_tag) == ("limbeck", "zero-shot-image-classification")
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results["image_to_text_recall@10"] == 0.601
    assert len(results) == 5
    assert {result.dataset_name for result in data.eval_results} == {"OpenMoji, unseen"}


def test_a_licence_that_is_not_known_is_not_guessed(report_of: ReportOf) -> None:
    card = ModelCard(model_card(report_of(), CardFacts()))
    assert card.data.license is None
    assert "license" not in card.content.split("---")[1]


def test_the_card_says_how_to_load_and_what_was_reached_and_where_it_is_weak(report_of: ReportOf) -> None:
    text = model_card(report_of(), CardFacts())
    assert 'import limbeck_runtime\n\nmodel = limbeck_runtime.load("out/emoji/model")' in text
    assert "| int8 | 8.76 MB | 15.4x | 8.40 M | 0.601 | 98.2 % | 6.20 ms |" in text
    assert "The target was reached." in text
    assert "Weakest on category = Symbols (31 samples): 0.191 behind the whole" in text


@pytest.mark.parametrize("task", list(Task))
def test_every_task_has_a_card(report_of: ReportOf, task: Task) -> None:
    assert ModelCard(model_card(report_of(task=task.value), CardFacts())).data.pipeline_tag


def test_text_from_the_run_is_no_markup_in_the_card(report_of: ReportOf) -> None:
    rows = report_of().rows
    final = rows[-1].model_copy(update={"label": "a|b <script>x</script>\n# not a heading"})
    text = model_card(report_of(rows=[*rows[:-1], final]), CardFacts(base_model="x\n---\n# y", dataset="<b>"))
    assert "<script>" not in text
    assert "\n# not a heading" not in text
    assert "| a\\|b &lt;script&gt;" in text
    assert ModelCard(text).data.base_model == "x\n---\n# y"
