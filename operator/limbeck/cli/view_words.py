"""Events in words, the same on a terminal and in a log: `41.2 s`, `1,240 samples/s`, one sentence for each event."""

from __future__ import annotations

from limbeck.api import progress
from limbeck.api.progress import Event
from limbeck.cli.printable import printable

# As many metrics as one line holds; all of them are in the report.
MAX_METRICS = 3


def duration(seconds: float) -> str:
    """`41.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def time_left(seconds: float) -> str:
    """`0:34 left`, `1:02:03 left`: as narrow as it can be, for it changes all the time."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} left" if hours else f"{minutes}:{rest:02d} left"


def number(value: float | None) -> str:
    """A loss or a metric; null on the wire means that it was not finite."""
    if value is None:
        return "not finite"
    return f"{value:.3f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.3g}"


def speed(samples_per_second: float) -> str:
    """`1,240 samples/s`, with a decimal where it is slow."""
    digits = 0 if samples_per_second >= 10 else 1
    return f"{samples_per_second:,.{digits}f} samples/s"


def loss_words(event: progress.StepProgress) -> str:
    """`loss 1.250 (affinity 0.900, hard 0.350)`; empty in a phase that does not train."""
    if event.loss is None and not event.terms:
        return ""
    terms = ", ".join(f"{printable(name)} {number(value)}" for name, value in event.terms.items())
    return f"loss {number(event.loss)}" + (f" ({terms})" if len(event.terms) > 1 else "")


def capture_words(event: progress.CaptureProgress) -> str:
    """`12 of 128 shards captured, 4 of them reused, 2 actors, 900 samples/s`."""
    parts = [
        f"{event.done} of {event.total} shards captured" + (f", {event.reused} of them reused" if event.reused else "")
    ]
    if event.done < event.total:
        parts.append(f"{event.replicas} actor" + ("" if event.replicas == 1 else "s"))
        if event.samples_per_second is not None:
            parts.append(speed(event.samples_per_second))
    return ", ".join(parts)


def metrics_words(metrics: dict[str, float | None]) -> str:
    """The first few metrics: `recall@10 0.604, recall@1 0.251`."""
    shown = list(metrics.items())[:MAX_METRICS]
    return ", ".join(f"{printable(name.replace('_', ' '))} {number(value)}" for name, value in shown)


def sentence(event: Event) -> str:
    """What an event says. Not for progress, plan and the end, which take more than a sentence."""
    match event:
        case progress.RunStarted():
            steps = ", ".join(event.steps)
            # A job's status, unlike its run, does not know the epoch.
            epoch = f", epoch {event.epoch}" if event.epoch else ""
            return printable(f"run {event.job}, attempt {event.attempt}{epoch}; steps: {steps}")
        case progress.MetricsServing():
            return printable(f"metrics at {event.url}")
        case progress.StepStarted():
            return printable(f"step {event.index} of {event.total}: {event.step} ({event.method})")
        case progress.StepFinished():
            metrics = metrics_words(event.metrics)
            return printable(f"{event.step} done in {duration(event.seconds)}") + (f": {metrics}" if metrics else "")
        case progress.StepSkipped():
            return printable(f"{event.step} skipped: {event.reason}")
        case progress.Resumed():
            return printable(f"{event.step} goes on from its checkpoint at update {event.at}")
        case progress.CheckpointSaved():
            return printable(f"{event.step}: checkpoint at update {event.at}, written in {duration(event.seconds)}")
        case progress.BadSampleFound():
            detail = f" ({event.detail})" if event.detail else ""
            return printable(f"bad sample {event.key} in {event.shard}: {event.reason}{detail}")
        case progress.Warned():
            return printable(f"warning: {event.message}")
        case _:
            raise ValueError(f"{event.event} is not said in one sentence")


def closing(event: progress.RunFinished) -> str:
    """`Complete`, or `Failed (GateFailed): recovery is ...`."""
    reason = f" ({event.reason})" if event.reason and event.state is not progress.RunState.COMPLETE else ""
    return printable(f"{event.state}{reason}" + (f": {event.message}" if event.message else ""))


def places(event: progress.RunFinished) -> list[tuple[str, str]]:
    """What the run left and where, as far as it left it."""
    named = [("report", event.report), ("model", event.model), ("card", event.card)]
    return [(name, printable(place)) for name, place in named if place]
