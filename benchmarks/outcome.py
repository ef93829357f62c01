"""What came of a row: its figures held against its targets, and the form of that in build/bench.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.rows import Row, Target
from benchmarks.timing import Figure


class MeasurementError(ValueError):
    """A row's module did not give what the table says that it gives."""


@dataclass(frozen=True)
class Check:
    """One figure and whether it is good enough."""

    target: Target
    figure: Figure

    @property
    def met(self) -> bool:
        """Whether the median meets the target."""
        return self.target.met(self.figure.value)

    def to_json(self) -> dict[str, Any]:
        """The check as a part of its row's entry."""
        what = {"figure": self.target.figure, "what": self.target.what, "unit": self.target.unit}
        return {**what, **self.figure.to_json(), "target": str(self.target), "met": self.met}


@dataclass(frozen=True)
class Outcome:
    """A row that ran, or (with `reason` and no checks) one that could not."""

    row_id: str
    row: Row
    checks: tuple[Check, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None

    @property
    def met(self) -> bool:
        """Whether the row ran and all its targets are met."""
        return self.reason is None and all(check.met for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """One entry of the list in build/bench.json."""
        first = self.checks[0].figure if self.checks else None
        return {
            "id": self.row_id,
            "what": self.row.what,
            "peer": self.row.peer,
            "ratio": None if first is None else first.value,
            "target": self.row.target,
            "met": self.met,
            "spread": None if first is None else list(first.spread),
            "runs": 0 if first is None else first.runs,
            "checks": [check.to_json() for check in self.checks],
            "details": dict(self.details),
            "reason": self.reason,
        }


def judge(row_id: str, row: Row, measured: Mapping[str, Any]) -> Outcome:
    """Hold what a row's module measured against the row's targets.

    Raises MeasurementError where a figure is missing or is none.
    """
    names = {target.figure for target in row.targets}
    checks = tuple(Check(target, _figure(row.module, target.figure, measured)) for target in row.targets)
    return Outcome(row_id, row, checks, {name: value for name, value in measured.items() if name not in names})


def _figure(module: str, name: str, measured: Mapping[str, Any]) -> Figure:
    value = measured.get(name)
    try:
        if isinstance(value, Mapping):
            low, high = value["spread"]
            return Figure(float(value["value"]), (float(low), float(high)), int(value["runs"]))
        return Figure.of([float(value)])  # type: ignore[arg-type]  # None is caught below
    except (KeyError, TypeError, ValueError) as error:
        raise MeasurementError(
            f"`{module}.measure()` must give {name} as a number or as value, spread and runs, got {value!r}"
        ) from error
