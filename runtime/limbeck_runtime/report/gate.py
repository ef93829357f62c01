"""The gate: whether the result is as small, good and fast as the target says. Pure.

Left out: what follows from the verdict (the driver's exit code) and any measuring.
"""

from __future__ import annotations

import math

from limbeck.api.report import GateCheck, GateVerdict, MetricValue, Row
from limbeck.api.v1alpha1.outcome import Target

NOTHING_TO_COMPARE = "the job has no teacher, and no model from before its compression"


def decide(
    target: Target | None, main_metric: str, final: Row, teacher: Row | None, reference: Row | None = None
) -> GateVerdict:
    """Compare the result with the target.

    Size and latency are taken relative to the teacher, or without one to `reference` (the model before
    it was compressed); recovery is checked only with a teacher. What could not be measured fails its
    check, and the check says so. Without a target there is nothing to check, and the gate passes.
    """
    if target is None:
        return GateVerdict(passed=True, checks=[])
    before = teacher or reference
    checks = [_check_size(float(target.size_ratio), final, before)]
    if teacher is not None:
        checks.append(_check_recovery(target.min_recovery_percent, main_metric, final, teacher))
    if target.max_latency_percent is not None:
        checks.append(_check_latency(target.max_latency_percent, final, before))
    return GateVerdict(passed=all(check.passed for check in checks), checks=checks)


def recovery_percent(value: float | None, before: float | None, *, higher_is_better: bool) -> tuple[float | None, str]:
    """How much of the teacher's value is kept, in percent; else None and the reason.

    Where lower is better the quotient is turned over, so that more is always better. A quotient says
    something only of positive values, so there is none where the teacher's is zero or less.
    """
    if value is None or not math.isfinite(value):
        return None, "the result's metric is not finite"
    if before is None or not math.isfinite(before):
        return None, "the teacher's metric was not measured"
    whole, part = (before, value) if higher_is_better else (value, before)
    if whole <= 0:
        whose = "teacher's" if higher_is_better else "result's"
        return None, f"the {whose} metric is {whole:g}, and a share of that says nothing"
    if part < 0:
        return None, "the two metrics differ in sign, and their quotient says nothing"
    return 100 * part / whole, ""


def _check_size(wanted: float, final: Row, before: Row | None) -> GateCheck:
    reached = None
    detail = NOTHING_TO_COMPARE
    if before is not None:
        detail = f"bytes on disk, {before.label} over {final.label}"
        if before.artefact_bytes is not None and final.artefact_bytes is not None:
            reached = before.artefact_bytes / final.artefact_bytes
        else:
            detail = _reasons("artefactBytes", before, final)
    passed = reached is not None and reached >= wanted
    return GateCheck(name="sizeRatio", wanted=wanted, reached=reached, passed=passed, detail=detail)


def _check_recovery(wanted: float, main_metric: str, final: Row, teacher: Row) -> GateCheck:
    mine = final.metrics.get(main_metric, MetricValue(value=None))
    theirs = teacher.metrics.get(main_metric, MetricValue(value=None))
    higher_is_better = mine.higher_is_better
    reached, reason = recovery_percent(mine.value, theirs.value, higher_is_better=higher_is_better)
    if reached is not None:
        passed = reached >= wanted
        detail = f"{main_metric}, {final.label} over {teacher.label}"
        if not higher_is_better:
            detail = f"{main_metric}, {teacher.label} over {final.label}, for lower is better"
    else:
        # An error of exactly zero cannot be a denominator, yet nothing is better.
        passed = not higher_is_better and mine.value == 0 and theirs.value is not None and theirs.value >= 0
        detail = f"{main_metric}: {reason}"
    return GateCheck(name="minRecoveryPercent", wanted=wanted, reached=reached, passed=passed, detail=detail)


def _check_latency(wanted: float, final: Row, before: Row | None) -> GateCheck:
    """The worst batch size counts: a limit that holds only for some of them does not hold."""
    reached = None
    detail = NOTHING_TO_COMPARE
    if before is not None:
        detail = _reasons("latency", before, final)
        ratios = {
            entry.batch_size: 100 * entry.p50_seconds / slow
            for entry in final.latency
            if (slow := before.p50_seconds(entry.batch_size)) is not None
        }
        if ratios:
            batch_size = max(ratios, key=lambda size: ratios[size])
            reached = ratios[batch_size]
            detail = f"median at batch {batch_size}, {final.label} over {before.label}"
    passed = reached is not None and reached <= wanted
    return GateCheck(
        name="maxLatencyPercent", wanted=wanted, reached=reached, at_most=True, passed=passed, detail=detail
    )


def _reasons(field: str, *rows: Row) -> str:
    reasons = [f"{row.label}: {row.unmeasured[field]}" for row in rows if field in row.unmeasured]
    return "; ".join(reasons) or f"{rows[0].label} and {rows[-1].label} have no `{field}` in common"
