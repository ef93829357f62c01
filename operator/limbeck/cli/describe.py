"""`limbeck describe`: all that is known of a job on one page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from limbeck.cli.cluster import Cluster
from limbeck.cli.exits import OK
from limbeck.cli.jobs import Job, age_seconds, is_finished, moment, outcome, phase, status_of, without_managed_fields
from limbeck.cli.kinds import CONFIG_MAPS, EVENTS
from limbeck.cli.output import show, show_data
from limbeck.cli.printable import printable
from limbeck.cli.status_events import result_table
from limbeck.cli.tables import indented, short, table
from limbeck.kube.errors import ForbiddenError, NotFoundError
from limbeck.kube.transport import Object

# Where the operator keeps how earlier attempts ended.
LEDGER_SUFFIX: Final = "-limbeck"
LEDGER_KEY: Final = "attempts.json"
_MAX_EVENTS: Final = 25


def describe(cluster: Cluster, name: str, *, output: str) -> int:
    """Print the page, or the job with its attempts and events as data."""
    job = cluster.job(name)
    attempts, events = _attempts(cluster, job), _events(cluster, job)
    if output in ("json", "yaml"):
        show_data({"job": without_managed_fields(job), "attempts": attempts, "events": events}, output)
        return OK
    show([job], output, page(job, attempts, events, datetime.now(UTC)))
    return OK


def page(
    job: Job, attempts: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]] | None, now: datetime
) -> list[str]:
    """The lines of the page. `events` None: we may not read them."""
    status = status_of(job)
    lines = [*_facts(_head(job, now)), "", "Spec:", *indented(_facts(_spec(job["spec"])))]
    lines += _section("Conditions", ("TYPE", "STATUS", "REASON", "SINCE", "MESSAGE"), _conditions(status, now))
    plan = [(each["field"], each["value"], each["reason"]) for each in status.get("plan") or []]
    lines += _section("Plan", ("FIELD", "VALUE", "REASON"), plan)
    lines += _section("Steps", ("NAME", "STATE", "PROGRESS", "TIME", "MESSAGE"), _steps(status, now))
    lines += _section("Attempts", ("NUMBER", "ENDED", "AGE", "RAN", "MESSAGE"), _attempt_rows(job, attempts, now))
    result = status.get("result") or {}
    if result:
        head, *rows = result_table(result)
        lines += _section("Result", head, rows)
        places = [("report", result.get("reportUri")), ("model", result.get("modelUri"))]
        lines += [f"  {name}: {printable(str(uri))}" for name, uri in places if uri]
    if events is None:
        return [*lines, "", "Events: not allowed to read them; ask for the right to list events"]
    return lines + (_section("Events", ("TYPE", "REASON", "AGE", "MESSAGE"), _event_rows(events, now)) or _NO_EVENTS)


_NO_EVENTS: Final = ["", "Events: none (they are kept for an hour)"]


def _head(job: Job, now: datetime) -> list[tuple[str, str]]:
    metadata, status = job["metadata"], status_of(job)
    labels = ", ".join(f"{key}={value}" for key, value in (metadata.get("labels") or {}).items())
    facts = [
        ("Name", metadata["name"]),
        ("Namespace", str(metadata.get("namespace", ""))),
        ("Labels", labels),
        ("Status", outcome(job)),
        ("Age", short(age_seconds(job, now))),
        ("RayJob", str(status.get("rayJob") or "")),
        ("Ray cluster", str(status.get("rayCluster") or "")),
    ]
    progress = status.get("progress") or {}
    if progress and not is_finished(job):
        eta = progress.get("etaSeconds")
        left = "" if eta is None else f", {short(eta)} left"
        speed = progress.get("samplesPerSecond")
        facts.append(
            ("Progress", f"{progress.get('percent', 0)}%{left}" + (f", {speed:,.0f} samples/s" if speed else ""))
        )
        teacher = progress.get("teacher") or {}
        if teacher.get("shardsTotal"):
            done = f"{teacher.get('shardsDone', 0)} of {teacher['shardsTotal']} shards"
            facts.append(("Teacher", f"{teacher.get('replicas', 0)} actors, {done} captured"))
    if not status_of(job).get("conditions"):
        facts.append(("Note", "no operator has looked at this job yet; `limbeck doctor` says why"))
    return facts


def _spec(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    student = spec.get("student") or {}
    cluster, data = spec.get("cluster") or {}, spec.get("data") or {}
    teacher_pool, validation = cluster.get("teacher") or {}, data.get("validation") or {}
    fewest, most = teacher_pool.get("minReplicas", 1), teacher_pool.get("maxReplicas", 1)
    teachers = f"{fewest} to {most}" if fewest != most else str(fewest)
    limits = [
        f"{name} {spec[name]}"
        for name in ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
        if spec.get(name) is not None
    ]
    return [
        ("Task", str(spec.get("task", ""))),
        ("Target", _pairs(spec.get("target"))),
        ("Teacher", _model((spec.get("teacher") or {}).get("model"))),
        ("Student", _model(student.get("model")) or _pairs(student.get("shrink"))),
        ("Training data", _uri(data.get("train"))),
        ("Validation data", _uri(validation) or f"{data.get('validationPercent', 0)}% of the training data"),
        ("Pipeline", " -> ".join(step["name"] for step in spec.get("pipeline") or []) or "derived from the target"),
        ("Output", _uri(spec.get("output"))),
        ("Store", _uri(spec.get("store")) or "under the output"),
        ("Pods", f"teacher {teachers}{' on spot nodes' if teacher_pool.get('spot') else ''}, "
                 f"student {(cluster.get('student') or {}).get('replicas', 1)}"),
        ("Limits", ", ".join(limits)),
        ("Suspend", "yes" if spec.get("suspend") else ""),
    ]  # fmt: skip


def _pairs(settings: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (settings or {}).items())


def _model(model: Mapping[str, Any] | None) -> str:
    return f"{model.get('uri', '')} ({model.get('loader', '')})" if model else ""


def _uri(place: Mapping[str, Any] | None) -> str:
    return str((place or {}).get("uri") or "")


def _conditions(status: Mapping[str, Any], now: datetime) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for each in status.get("conditions") or []:
        since = _since(each.get("lastTransitionTime"), now)
        rows.append((each["type"], each["status"], each.get("reason", ""), since, each.get("message", "")))
    return rows


def _steps(status: Mapping[str, Any], now: datetime) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for step in status.get("steps") or []:
        begun, ended = moment(step.get("startTime")), moment(step.get("completionTime"))
        took = "" if begun is None else short(((ended or now) - begun).total_seconds())
        percent = f"{step.get('progressPercent', 0)}%"
        rows.append((step["name"], step.get("state", ""), percent, took, step.get("message", "")))
    return rows


def _attempt_rows(job: Job, attempts: Sequence[Mapping[str, Any]], now: datetime) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for each in attempts:
        ran = short(float(each.get("seconds") or 0))
        cells = (str(each.get(key, "")) for key in ("attempt", "ending", "message"))
        number, ending, message = cells
        rows.append((number, ending, _since(each.get("ended"), now), ran, message))
    current = int(status_of(job).get("attempt") or 0)
    if current and all(each.get("attempt") != current for each in attempts):
        rows.append((str(current), phase(job) if is_finished(job) else "", "", "", ""))
    return rows


def _event_rows(events: Sequence[Mapping[str, Any]], now: datetime) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for event in events[-_MAX_EVENTS:]:
        count = (event.get("series") or {}).get("count") or event.get("count") or 1
        times = f" (x{count})" if count > 1 else ""
        rows.append(
            (
                event.get("type", ""),
                event.get("reason", ""),
                _since(_when(event), now) + times,
                event.get("message", ""),
            )
        )
    return rows


def _when(event: Mapping[str, Any]) -> str:
    series = event.get("series") or {}
    return str(
        series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
        or event["metadata"].get("creationTimestamp") or ""
    )  # fmt: skip


def _since(text: str | None, now: datetime) -> str:
    time = moment(text)
    return "" if time is None else short((now - time).total_seconds())


def _facts(facts: Sequence[tuple[str, str]]) -> list[str]:
    """`Name:  value` lines; what has no value is left out."""
    given = [(name, value) for name, value in facts if value]
    width = max(len(name) for name, _ in given) + 1
    return [f"{name + ':':{width}}  {printable(value)}" for name, value in given]


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["", f"{title}:", *indented(table(head, rows))] if rows else []


def _attempts(cluster: Cluster, job: Job) -> list[Object]:
    """What the operator has written down of attempts that are over; nothing where we may not read it."""
    metadata = job["metadata"]
    try:
        found = cluster.transport.get(CONFIG_MAPS, metadata["name"] + LEDGER_SUFFIX, metadata["namespace"])
        owners = found["metadata"].get("ownerReferences") or []
        if all(owner.get("uid") != metadata["uid"] for owner in owners):
            return []
        entries = json.loads((found.get("data") or {}).get(LEDGER_KEY, "[]"))
    except (NotFoundError, ForbiddenError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _events(cluster: Cluster, job: Job) -> list[Object] | None:
    """Events about this job, the newest last; None where we may not read them."""
    selector = f"involvedObject.uid={job['metadata']['uid']}"
    try:
        page = cluster.transport.list(EVENTS, job["metadata"]["namespace"], field_selector=selector)
    except ForbiddenError:
        return None
    return sorted(page["items"], key=_when)
