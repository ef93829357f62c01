"""`limbeck prune-record`: read what a pruning step removed, compare two of them, bring the model back.

A place is a prune.json, a folder that holds one, or the output of a job on this machine (with the step's name where
several steps pruned). Undoing needs the runtime, which runs in a child process; it takes any output, in a bucket too.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.api.prune_record import PrunedLayer, PrunedSpace, PruneRecord

app = typer.Typer(name="prune-record", help="Show, compare and undo what pruning removed.", no_args_is_help=True)

# Units or layers named one by one in a line.
_MOST_NAMED = 12

Place = Annotated[str, typer.Argument(help="prune.json, its folder, or a job's output.", show_default=False)]
StepOption = Annotated[
    str | None, typer.Option("--step", help="Name of the step, where several pruned.", show_default=False)
]


class RecordError(ValueError):
    """A record that cannot be found or read."""


@app.command()
def show(
    place: Place,
    step: StepOption = None,
    output: Annotated[str, typer.Option("-o", "--output", help="table or json.")] = "table",
) -> None:
    """Show what went: by layer, and by unit with its scores."""
    if output not in ("table", "json"):
        raise typer.BadParameter(f"-o must be table or json, got {output}")
    record = _read(place, step)
    print(record.to_json() if output == "json" else "\n".join(_shown(record)))


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="One record, as for show.", show_default=False)],
    second: Annotated[str, typer.Argument(help="The other one.", show_default=False)],
    first_step: Annotated[str | None, typer.Option("--step", help="Step of the first.", show_default=False)] = None,
    second_step: Annotated[
        str | None, typer.Option("--other-step", help="Step of the second.", show_default=False)
    ] = None,
) -> None:
    """Compare two records: settings, shares by layer, and units that only one removed."""
    lines = _differences(_read(first, first_step), _read(second, second_step))
    print("\n".join(lines) if lines else "both removed the same")


@app.command()
def undo(
    output: Annotated[str, typer.Argument(help="Output of the job, a folder or a URI.", show_default=False)],
    to: Annotated[Path, typer.Option("--to", help="Folder for the model as it was before.", show_default=False)],
    step: Annotated[str, typer.Option("--step", help="Name of the step that pruned.")] = "prune",
) -> None:
    """Bring back the model that a pruning step began with, bit for bit."""
    command = [sys.executable, "-m", "limbeck_runtime.pruning.undo"]
    child = subprocess.run([*command, "--output", output, "--step", step, "--to", str(to)], check=False)
    raise typer.Exit(child.returncode)


def _read(place: str, step: str | None) -> PruneRecord:
    """The record at a place; ends the command with what is wrong."""
    from pydantic import ValidationError

    from limbeck.api.prune_record import PruneRecord
    from limbeck.cli.exits import USAGE

    try:
        path = find_record(Path(place), step)
        return PruneRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        print(f"{place} is not a pruning record: {error.errors()[0]['msg']}", file=sys.stderr)
    except (OSError, RecordError) as error:
        print(error, file=sys.stderr)
    raise typer.Exit(USAGE)


def find_record(place: Path, step: str | None) -> Path:
    """The one prune.json that is meant. Raises RecordError."""
    from limbeck.api.prune_record import RECORD_FILE

    if place.is_file():
        return place
    if (place / RECORD_FILE).is_file():
        return place / RECORD_FILE
    found = {path.parent.name: path for path in sorted(place.glob(f"records/*/{RECORD_FILE}"))}
    if step is not None and step in found:
        return found[step]
    if step is None and len(found) == 1:
        return next(iter(found.values()))
    wanted = f"of step {step}" if step is not None else "of one step"
    raise RecordError(
        f"{place} must hold the pruning record {wanted}, found {', '.join(found) or 'none'}; name the step with --step"
    )


def _shown(record: PruneRecord) -> list[str]:
    lines = [
        f"step {record.step}: {record.granularity.value} by {record.method.value}, ranked by {record.scope.value}",
        f"parameters {record.parameters_before:,} -> {record.parameters_after:,}"
        + (f", of which {record.zeros_after:,} are held at zero" if record.zeros_after else ""),
        f"multiply-accumulates {record.macs_before:,} -> {record.macs_after:,}",
        "rounds: " + ", ".join(f"{entry.sparsity_percent:.1f} %" for entry in record.rounds),
        "",
    ]
    lines += [_layer_line(layer) for layer in record.layers]
    if record.spaces:
        lines.append("")
        lines += [_space_line(space) for space in record.spaces]
    if record.kept:
        lines += ["", "stayed whole:"]
        lines += [f"  {path}: {reason}" for path, reason in record.kept.items()]
    return lines


def _layer_line(layer: PrunedLayer) -> str:
    threshold = "" if layer.threshold is None else f"  scores up to {layer.threshold:.4g}"
    return f"{layer.sparsity_percent:6.1f} %  {layer.removed:>12,} of {layer.weights:>12,}  {layer.name}{threshold}"


def _space_line(space: PrunedSpace) -> str:
    went = [f"{unit} ({space.scores[unit]:.3g})" for unit in space.removed]
    return f"{len(space.removed):>5} of {space.units:>5} {space.kind.value:<13} {space.name}: {_some(went)}"


def _differences(first: PruneRecord, second: PruneRecord) -> list[str]:
    lines = []
    for name in ("method", "granularity", "scope", "parameters_after", "zeros_after", "macs_after"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            lines.append(f"{name.replace('_', ' ')}: {one} -> {other}")
    if first.weights_before != second.weights_before:
        lines.append("they began with different weights")
    layers = {layer.name: layer for layer in first.layers}, {layer.name: layer for layer in second.layers}
    for name in dict.fromkeys((*layers[0], *layers[1])):
        shares = [of_record[name].sparsity_percent if name in of_record else 0.0 for of_record in layers]
        if shares[0] != shares[1]:
            lines.append(f"{shares[0]:6.1f} % -> {shares[1]:6.1f} %  {name}")
    spaces = {space.name: space for space in first.spaces}, {space.name: space for space in second.spaces}
    for name in dict.fromkeys((*spaces[0], *spaces[1])):
        gone = [set(of_record[name].removed) if name in of_record else set() for of_record in spaces]
        if gone[0] != gone[1]:
            only = [_some([str(unit) for unit in sorted(mine - theirs)]) for mine, theirs in (gone, gone[::-1])]
            lines.append(f"{name}: only the first removed {only[0]}; only the second {only[1]}")
    return lines


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return (", ".join(texts[:_MOST_NAMED]) or "none") + more
