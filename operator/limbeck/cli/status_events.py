"""What a job's status tells from one moment to the next, as the events that a run writes. Pure.

So a job on a cluster is shown as one on a laptop is, by the same views. A status knows less than the run: no loss,
no phase of a step, no checkpoint; with limbeck's server at hand `limbeck watch` shows the run's own events instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from limbeck.cli.jobs import Job, condition, holds, is_finished, moment, status_of

Wire = dict[str, Any]

_WORK: Final = re.compile(r"([a-z]+): (\d+) of (\d+) (\w+)(?:, loss (-?[\d.e+-]+))?")


class StatusEvents:
    """Compares each status with the one before it. How the job ended is told by `finished_event`."""

    def __init__(self) -> None:
        self._attempt = 0
        self._states: dict[str, str] = {}
        self._told_plan = False

    def after(self, job: Job, now: datetime) -> list[Wire]:
        """The events between the status before and this one; `now` is for what has no time of its own."""
        events = list(self._events(job, now))
        return [timed(event, now) for event in events]

    def _events(self, job: Job, now: datetime) -> Iterator[Wire]:
        status = status_of(job)
        if status.get("plan") and not self._told_plan:
            self._told_plan = True
            yield {"event": "plan", "entries": list(status["plan"])}
        steps = status.get("steps") or []
        attempt = int(status.get("attempt") or 0)
        if steps and (attempt != self._attempt or not self._states):
            self._attempt = attempt
            names = [step["name"] for step in steps]
            yield {
                "event": "run_started",
                "job": job["metadata"]["name"],
                "steps": names,
                "epoch": 0,
                "attempt": attempt,
            }
            self._states = {}
        for index, step in enumerate(steps):
            yield from self._step(step, index + 1, len(steps), _method(job, step["name"]), now)
        if not is_finished(job):
            yield from progress_events(status)

    def _step(self, step: Mapping[str, Any], index: int, total: int, method: str, now: datetime) -> Iterator[Wire]:
        name, state = step["name"], step.get("state", "Pending")
        before = self._states.get(name, "Pending")
        self._states[name] = state
        if state == before:
            return
        begun, ended = moment(step.get("startTime")), moment(step.get("completionTime"))
        if before == "Pending" and state in ("Running", "Complete") and (begun is not None or state == "Running"):
            yield {
                "time": begun,
                "event": "step_started",
                "step": name,
                "method": method,
                "index": index,
                "total": total,
            }
        if state == "Complete":
            seconds = max(0.0, ((ended or now) - (begun or ended or now)).total_seconds())
            yield {"time": ended, "event": "step_finished", "step": name, "seconds": seconds, "metrics": _metrics(step)}
        elif state == "Skipped":
            reason = str(step.get("message") or "its result was there")
            yield {"time": ended, "event": "step_skipped", "step": name, "reason": reason}


def condition_words(before: Job | None, job: Job) -> list[str]:
    """The conditions that changed, in a line each; of a finished job its end says all."""
    if is_finished(job):
        return []
    lines = []
    for found in status_of(job).get("conditions") or []:
        old = None if before is None else condition(before, found["type"])
        said = (found.get("status"), found.get("reason"), found.get("message"))
        if old is not None and said == (old.get("status"), old.get("reason"), old.get("message")):
            continue
        if found.get("status") == "False" and found["type"] != "Reconciling":
            continue
        lines.append(f"{found.get('reason')}: {found.get('message') or found['type']}")
    return lines


def progress_events(status: Mapping[str, Any]) -> Iterator[Wire]:
    """How far the running step and the teacher pool are, as a status or a standing of the server's says."""
    progress = status.get("progress") or {}
    time = moment(progress.get("lastUpdateTime"))
    running = next((step for step in status.get("steps") or [] if step.get("state") == "Running"), None)
    if running is None:
        return
    yield {
        "time": time,
        "event": "step_progress",
        "step": running["name"],
        **_work(running),
        "samples_per_second": progress.get("samplesPerSecond") or None,
        "eta_seconds": progress.get("etaSeconds"),
    }
    teacher = progress.get("teacher") or {}
    if teacher.get("shardsTotal") and teacher.get("replicas"):
        yield {
            "time": time,
            "event": "capture_progress",
            "step": running["name"],
            "done": teacher.get("shardsDone", 0),
            "total": teacher["shardsTotal"],
            "replicas": teacher.get("replicas", 0),
        }


def _work(step: Mapping[str, Any]) -> Wire:
    """What the server says in `train: 40 of 120 batches, loss 1.25`; else the percentage."""
    found = _WORK.fullmatch(str(step.get("message") or ""))
    if found is None:
        return {"phase": "at work", "done": step.get("progressPercent", 0), "total": 100, "unit": "percent"}
    phase, done, total, unit, loss = found.groups()
    return {
        "phase": phase,
        "done": int(done),
        "total": int(total),
        "unit": unit,
        "loss": None if loss is None else float(loss),
    }


def _metrics(step: Mapping[str, Any]) -> dict[str, float]:
    """The server writes `recall@10 0.604, loss 0.5` about a step that is complete."""
    found = {}
    for part in str(step.get("message") or "").split(", "):
        name, _, value = part.rpartition(" ")
        try:
            found[name] = float(value)
        except ValueError:
            return {}
    return found


def finished_event(job: Job) -> Wire:
    """The end of a job that is over."""
    status = status_of(job)
    result = status.get("result") or {}
    state = "Failed" if holds(job, "Failed") else "Complete"
    found = condition(job, state) or {}
    return {
        "time": moment(status.get("completionTime")),
        "event": "run_finished",
        "state": state,
        "reason": str(found.get("reason") or ""),
        "message": str(found.get("message") or ""),
        "report": result.get("reportUri") or None,
        "model": result.get("modelUri") or None,
        "table": result_table(result),
    }


def result_table(result: Mapping[str, Any]) -> list[list[str]]:
    """Teacher and result side by side, headings first; empty where nothing came out."""
    if not result:
        return []
    metrics: Sequence[Mapping[str, Any]] = (result.get("metrics") or [])[:3]
    recovery = result.get("recoveryPercent")
    pairs = [(_figure(pair.get("teacher")), _figure(pair.get("student"))) for pair in metrics]
    return [
        ["model", "smaller", *(str(pair.get("name")) for pair in metrics), "recovery"],
        ["teacher", "1x", *(teacher for teacher, _ in pairs), "-"],
        [
            "result",
            f"{result.get('sizeRatio', 0):.3g}x",
            *(student for _, student in pairs),
            "-" if recovery is None else f"{recovery:.1f} %",
        ],
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _method(job: Job, name: str) -> str:
    """The method of a step of the spec; a derived step is mostly named after its method."""
    for step in job["spec"].get("pipeline") or []:
        if step.get("name") == name:
            return next((key for key in step if key != "name"), name)
    return name


def timed(event: Wire, now: datetime) -> Wire:
    """The event with its time as text; `now` where it has none."""
    time: datetime = event.get("time") or now
    return {**event, "time": time.astimezone(UTC).isoformat().replace("+00:00", "Z")}
