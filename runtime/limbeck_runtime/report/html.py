"""report.html: the report as one file that needs no network, for a screen, a phone and paper.

Everything that comes from the run is escaped. The page carries a content security policy that lets
it load nothing, and run only the two scripts that this module puts in, by their hashes: a script that
got in with the data would not run even if escaping failed.
Left out: what the page says (`page`) and what the charts show (`charts`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from limbeck.api.report import Report, RowKind
from limbeck_runtime.report import charts, page, wording
from limbeck_runtime.report.sparsity import sparsity_sections

# The space between a number and its unit, at which a line must not break.
_BEFORE_UNIT = re.compile(r"(?<=\d) (?=%|(?:[kMGT]?B|[mu]?s|[kMGT])(?!\w))")


def render(report: Report) -> str:
    """The whole page. About 5 MB, nearly all of it plotly's own script, which is there once."""
    trade_off = charts.trade_off(report)
    losses = charts.loss_curves(report)
    slices = charts.slice_bars(report)
    sparsity = sparsity_sections(report)
    drawn = [*([trade_off] if trade_off else []), *losses, *slices, *(section.chart for section in sparsity)]
    verdict, verdict_sentence = page.verdict(report)
    plotly, script = _plotly(), _asset("report.js")
    return _template().render(
        report=report,
        verdict=verdict,
        verdict_sentence=verdict_sentence,
        summary=page.summary(report),
        dials=page.dials(report),
        table=page.table(report),
        trade_off=trade_off,
        losses=losses,
        slices=slices,
        sparsity=sparsity,
        figures={chart.id: chart.figure for chart in drawn},
        load_lines=page.load_lines(report),
        policy=_policy([plotly, script] if drawn else []),
        style=Markup(_asset("report.css")),
        script=Markup(script),
        plotly=Markup(plotly) if drawn else "",
    )


def _policy(scripts: list[str]) -> str:
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'"
    return (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}; "
        "base-uri 'none'; form-action 'none'"
    )


@cache
def _plotly() -> str:
    text: str = get_plotlyjs()
    # Inside a page, this would end the script element.
    assert "</script" not in text.lower()
    return text


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("limbeck_runtime.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": wording.in_bytes,
        "count": wording.in_count,
        "number": wording.in_number,
        "percent": wording.in_percent,
        "duration": wording.in_duration,
        "words": wording.in_words,
        "tied": lambda text: _BEFORE_UNIT.sub("\N{NO-BREAK SPACE}", text),
        "pretty_json": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    }
    environment.globals["RowKind"] = RowKind
    return environment.get_template("report.html.j2")


def _asset(name: str) -> str:
    return files("limbeck_runtime.report").joinpath("templates", name).read_text(encoding="utf-8")
