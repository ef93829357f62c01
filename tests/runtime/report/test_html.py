from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from limbeck.api.report import Answer, Report, RowKind, SampleComparison, SliceValue
from limbeck.api.status import PlanEntry
from limbeck_runtime.report.html import render

ReportOf = Callable[..., Report]
EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Elements with their attributes, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text += data

    def words(self) -> str:
        """The text that a reader sees, on one line."""
        return " ".join(self.text.split())

    def policy(self) -> str:
        """The content security policy."""
        [content] = [str(attrs["content"]) for tag, attrs in self.elements if "http-equiv" in attrs]
        return content

    def figures(self) -> dict[str, Any]:
        """What the charts are drawn from."""
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found


@pytest.fixture(scope="module")
def whole(report_of: ReportOf) -> Page:
    """The page of the sample report."""
    return Page(render(report_of()))


def test_the_page_loads_nothing_and_links_nowhere_outside(whole: Page) -> None:
    for tag, attributes in whole.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in ("src", "href", "action", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), f"{tag} {name}={value}"
    assert "default-src 'none'" in whole.policy()


def test_plotly_is_in_the_page_once_and_every_script_that_runs_is_allowed_by_its_hash(whole: Page) -> None:
    assert whole.scripts[1:].count(get_plotlyjs()) == 1
    for script in whole.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in whole.policy()
    assert "unsafe-inline" not in whole.policy().split("script-src")[1]


def test_every_chart_has_a_place_and_every_place_a_chart(whole: Page) -> None:
    places = {attributes.get("id") for _, attributes in whole.elements if attributes.get("class") == "chart"}
    assert places == set(whole.figures()) == {"trade-off", "loss-0", "slices-0"}


def test_the_page_shows_verdict_dials_table_samples_plan_and_environment(whole: Page) -> None:
    words = whole.words().replace("\N{NO-BREAK SPACE}", " ")
    for text in (
        "Passed",
        "15.4x smaller",
        "wanted at least 12x smaller",
        "The result, int8, takes 8.76 MB instead of 135 MB (15.4x smaller), keeps 98.2 % of the teacher's image to "
        "text recall@10 (0.601 of 0.612) and answers in 6.20 ms instead of 21.2 ms at batch 1.",
        "Trained without the teacher, the same student reaches 0.508.",
        "Not measured: int8 kernels are not counted by torch's flop counter.",
        "teacup without handle",
        "answers differ",
        "12x is 3.8x by int8, 3.2x by size",
        "1,743 samples were looked at, 2 of them were skipped: 1 TruncatedImage, 1 EmptyText.",
        "AMD EPYC 7B13, 2 cores",
        "cpu, 2 threads a call",
        "torch 2.15.0",
        'model = limbeck_runtime.load("out/emoji/model")',
    ):
        assert text in words
    images = [attributes["src"] for tag, attributes in whole.elements if tag == "img"]
    assert len(images) == 8


def test_text_from_the_run_stays_text_wherever_it_stands(report_of: ReportOf) -> None:
    rows = report_of().rows
    final = rows[-1].model_copy(
        update={
            "label": EVIL,
            "slices": {EVIL: {EVIL: SliceValue(count=9, metrics={"image_to_text_recall@10": 0.1})}},
            "unmeasured": rows[-1].unmeasured | {"macs": EVIL},
            "artefact": EVIL,
        }
    )
    sample = SampleComparison(
        key=EVIL, question=EVIL, truth=EVIL, teacher=Answer(text=EVIL), student=Answer(text=EVIL), agree=False
    )
    clean = Page(render(report_of()))
    dirty = Page(
        render(
            report_of(
                job=EVIL,
                rows=[*rows[:-1], final],
                samples=[sample],
                plan=[PlanEntry(field=EVIL, value=EVIL, reason=EVIL)],
                model_uri=EVIL,
            )
        )
    )
    assert len(dirty.scripts) == len(clean.scripts)
    assert dirty.scripts[1:] == clean.scripts[1:]
    assert not any(name.startswith("on") for _, attributes in dirty.elements for name in attributes)
    assert EVIL in dirty.text
    # plotly reads tags in labels: there the text is escaped once more.
    assert "<script" not in json.dumps(dirty.figures())


def test_without_a_teacher_the_page_promises_no_comparison(report_of: ReportOf) -> None:
    final = report_of().rows[-1].model_copy(update={"slices": {}})
    page = Page(render(report_of(rows=[final], samples=[], steps=[], gate={"passed": True})))
    words = page.words()
    assert "No target" in words
    assert "Before and after" not in words
    assert "The result, int8, takes 8.76" in words
    # Nothing to draw: no plotly, and no script may run.
    assert page.scripts == []
    assert "script-src 'none'" in page.policy()


def test_a_missed_target_is_said_and_which_part_of_it(report_of: ReportOf) -> None:
    check = report_of().gate.checks[0]
    missed = check.model_copy(update={"wanted": 16.0, "passed": False})
    words = Page(render(report_of(gate={"passed": False, "checks": [missed]}))).words()
    assert "Failed" in words
    assert "The target was missed in: size." in words


def test_the_kind_of_each_model_is_told_by_its_column(whole: Page) -> None:
    dots = [
        attributes["class"] for tag, attributes in whole.elements if str(attributes.get("class")).startswith("dot ")
    ]
    assert dots == [f"dot {kind}" for kind in (RowKind.TEACHER, RowKind.BASELINE, RowKind.STEP, RowKind.STEP)]
