"""Brings back the model that a pruning step began with, and proves it by the hash of its weights.

    python -m limbeck_runtime.pruning.undo --output OUTPUT --step STEP --to DIRECTORY

reads what the step has committed under a job's output (any place that limbeck can write to) and writes a model's
directory. Exit codes: 0 done, 2 something that the user can put right.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from limbeck.api.prune_record import RECORD_FILE, REMOVED_FILE, PruneRecord, UndoData
from limbeck_runtime.models.bundle import Architecture, ModelBundle, weights_identity
from limbeck_runtime.pruning.cutting import named_tensors
from limbeck_runtime.pruning.errors import PruningError


def undo(bundle: ModelBundle, record: PruneRecord, removed: Mapping[str, torch.Tensor]) -> ModelBundle:
    """The model before the step of `record`, in eval mode; `bundle` is what the step left, and stays as it was.

    Raises PruningError where the model is not the one that the step left, or what comes out is not the one before.
    """
    from limbeck_runtime.models.rebuilding import rebuild

    if record.undo is UndoData.REMOVED and weights_identity(bundle.module) != record.weights_after:
        raise PruningError(
            f"the model must be as step {record.step} left it, got one that was changed since, whose weights are "
            "not those before; give the model of that step"
        )
    architecture = Architecture.from_plain(record.architecture_before)
    module = rebuild(architecture)
    now = named_tensors(bundle.module)
    saved = module.state_dict().keys()
    with torch.no_grad():
        for name, tensor in named_tensors(module).items():
            if name in saved:
                tensor.copy_(_before(name, tensor, now, record, removed))
    found = weights_identity(module)
    if found != record.weights_before:
        raise PruningError(
            f"the weights must be those before step {record.step} ({record.weights_before[:12]}), got "
            f"{found[:12]}; the record or {REMOVED_FILE} belongs to another run"
        )
    return ModelBundle(module.eval(), architecture, bundle.preprocessing, bundle.task)


def _before(
    name: str,
    tensor: torch.Tensor,
    now: Mapping[str, torch.Tensor],
    record: PruneRecord,
    removed: Mapping[str, torch.Tensor],
) -> torch.Tensor:
    if record.undo is UndoData.WHOLE:
        return removed[f"before/{name}"]
    if f"mask/{name}" not in removed:
        return now[record.renamed.get(name, name)]
    gone = unpack_bits(removed[f"mask/{name}"], tensor.shape)
    whole = torch.empty_like(tensor)
    whole[gone] = removed[f"removed/{name}"]
    left = now.get(record.renamed.get(name, name))
    if left is not None and not bool(gone.all()):
        # What was cut has the entries that stayed in their order, what was zeroed has them in their places.
        whole[~gone] = left[~gone] if left.shape == gone.shape else left.reshape(-1)
    return whole


def unpack_bits(packed: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Inverse of `pack_bits`."""
    import numpy as np

    bits = np.unpackbits(packed.numpy(), count=shape.numel())
    return torch.from_numpy(bits.astype(bool)).reshape(shape)


def undo_step(output: str, step: str, directory: Path) -> PruneRecord:
    """Undo the pruning of a job's step; the model before is in `directory` afterwards. Raises ValueError."""
    from safetensors.torch import load

    from limbeck_runtime.commitlog import CommitLog
    from limbeck_runtime.export.bundle_directory import write_bundle
    from limbeck_runtime.models.limbeck_loader import load_bundle
    from limbeck_runtime.storage import Storage

    commit = CommitLog(Storage.open(output).child(f"stages/{step}")).latest()
    if commit is None:
        raise PruningError(f"{output} must hold the result of a step {step}, found none; check both names")
    if RECORD_FILE not in commit.files:
        raise PruningError(f"step {step} of {output} must be one that prunes, but left no {RECORD_FILE}")
    with tempfile.TemporaryDirectory(prefix="limbeck-undo-") as scratch:
        for name in commit.files:
            (Path(scratch) / name).write_bytes(commit.read(name))
        record = PruneRecord.model_validate_json((Path(scratch) / RECORD_FILE).read_bytes())
        before = undo(load_bundle(Path(scratch)), record, load((Path(scratch) / REMOVED_FILE).read_bytes()))
    write_bundle(before, directory)
    return record


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the process that `limbeck prune-record undo` starts."""
    parser = argparse.ArgumentParser(prog="limbeck_runtime.pruning.undo", description="Undo a pruning step.")
    parser.add_argument("--output", required=True, help="output of the job")
    parser.add_argument("--step", required=True, help="name of the step")
    parser.add_argument("--to", type=Path, required=True, help="directory for the model before")
    options = parser.parse_args(arguments)
    try:
        record = undo_step(options.output, options.step, options.to)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"{options.to} holds the model before step {record.step}: {record.parameters_before} parameters, weights "
        f"{record.weights_before[:12]} bit for bit"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
