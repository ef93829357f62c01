"""The prune step's work: score, choose, remove, maybe recover, and record it so that it can be audited and undone.

Left out on purpose: where calibration data and recovery come from (steps/prune.py).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.api.prune_record import PrunedLayer, PrunedSpace, PruneRecord, PruneRound, UndoData
from limbeck.api.v1alpha1.compression import Criterion, Granularity, Prune, PruneUnit
from limbeck_runtime.evaluation.cost import count_macs
from limbeck_runtime.models.bundle import ModelBundle, weights_identity
from limbeck_runtime.models.edits import is_factorised
from limbeck_runtime.pruning import holding, layers, sparsity
from limbeck_runtime.pruning.choosing import lowest, part_by_round, share_for
from limbeck_runtime.pruning.cutting import cut, kept_of, named_tensors
from limbeck_runtime.pruning.discovery import Found, check_patterns, find_spaces
from limbeck_runtime.pruning.errors import PruningError
from limbeck_runtime.pruning.history import History
from limbeck_runtime.pruning.scores import NEEDS_DATA, Evidence, unit_scores, weight_scores
from limbeck_runtime.pruning.spaces import Space

# More than this in one round is hard to recover from (Han et al., 2015; methods that go further recover in between).
_MOST_A_ROUND = 0.34
Recover = Callable[[ModelBundle, int], ModelBundle]


@dataclass(frozen=True)
class Pruned:
    """The smaller model, the record, and what the record needs beside it: names of tensors of prune.safetensors."""

    bundle: ModelBundle
    record: PruneRecord
    removed: Mapping[str, Tensor]


@dataclass
class _Run:
    """What a run of rounds carries along."""

    bundle: ModelBundle
    history: History
    kept: dict[str, str] = field(default_factory=dict)
    rounds: list[PruneRound] = field(default_factory=list)
    spaces: dict[str, PrunedSpace] = field(default_factory=dict)
    alive: dict[str, Tensor] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)

    @property
    def module(self) -> nn.Module:
        return self.bundle.module

    def with_edit(self, edit: Mapping[str, Any]) -> None:
        self.bundle = replace(self.bundle, architecture=self.bundle.architecture.with_edit(edit))


def prune(
    bundle: ModelBundle,
    settings: Prune,
    example: Mapping[str, Tensor],
    evidence: Evidence | None = None,
    *,
    name: str = "prune",
    recover: Recover | None = None,
) -> Pruned:
    """A pruned copy of `bundle`, which is left as it was, in eval mode.

    `example` are a few samples' inputs, on which networks are traced and costs counted; `evidence` is what criteria
    that need data ask. `recover` trains the model after each round; it gets the model and the round from 1.

    Raises PruningError for what cannot be pruned, naming the field or the layer.
    """
    evidence = evidence or Evidence()
    _check(bundle, settings, evidence)
    before = bundle
    bundle = replace(bundle, module=copy.deepcopy(bundle.module).eval())
    run = _Run(bundle, History(bundle.module))
    one_round = _units_round if settings.granularity is Granularity.STRUCTURED else _weights_round
    share = _whole_share(run, settings, example, evidence) if settings.sparsity_percent is None else None
    for number in range(1, settings.rounds + 1):
        whole = settings.sparsity_percent / 100 if settings.sparsity_percent is not None else share
        assert whole is not None
        reached = one_round(run, settings, whole * part_by_round(number, settings.rounds, settings.schedule),
                            example, replace(evidence, seed=evidence.seed + number))  # fmt: skip
        run.rounds.append(PruneRound(sparsity_percent=100 * reached, parameters=run.bundle.num_parameters()))
        if recover is not None:
            run.bundle = recover(run.bundle, number)
    return _finished(run, before, settings, example, name, trained=recover is not None)


def warnings_for(settings: Prune) -> list[str]:
    """What a user should know of before it runs."""
    notes = []
    if settings.sparsity_percent is not None and settings.granularity is Granularity.STRUCTURED:
        parts = [part_by_round(n, settings.rounds, settings.schedule) for n in range(settings.rounds + 1)]
        share = settings.sparsity_percent / 100
        most = max((b - a) * share / (1 - a * share) for a, b in pairwise(parts))
        if most > _MOST_A_ROUND:
            notes.append(
                f"{most:.0%} of what is there goes in one round, of which little comes back; raise `rounds`, with "
                "`recover` in between"
            )
    if settings.rounds > 1 and settings.recover is None:
        notes.append("rounds without `recover` only rank again; add it to train in between")
    if settings.granularity is not Granularity.STRUCTURED:
        notes.append("zeros alone make no model faster or smaller; `Structured` pruning does")
    return notes


def _check(bundle: ModelBundle, settings: Prune, evidence: Evidence) -> None:
    done = [str(edit["kind"]) for edit in bundle.architecture.edits]
    floats = {parameter.dtype for parameter in bundle.module.parameters()}
    if "quantize" in done or not all(dtype.is_floating_point for dtype in floats):
        raise PruningError("`prune` must come before quantization, got a quantized model; change the order")
    if settings.granularity is Granularity.STRUCTURED and is_factorised(bundle.architecture.edits):
        raise PruningError(
            "`prune` with Structured must come before `lowRank`, got a factorised model, whose heads and widths lie "
            "in two layers each; change the order, or prune Unstructured"
        )
    if settings.method in NEEDS_DATA and not evidence.batches:
        raise PruningError(f"`prune.method` {settings.method.value} must have calibration samples, got none")
    check_patterns(bundle.module, settings.ignore)


# --- whole units


def _found(run: _Run, settings: Prune, example: Mapping[str, Tensor]) -> Found:
    units = settings.units
    widths = [unit for unit in units if unit is not PruneUnit.LAYERS]
    found = Found((), {})
    if widths or not units:
        found = find_spaces(run.module, example, widths, settings.ignore)
    if PruneUnit.LAYERS in units:
        stacks = layers.find_stacks(run.module, example, settings.ignore)
        found = Found((*stacks.spaces, *found.spaces), {**found.kept, **stacks.kept})
    if not found.spaces:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in found.kept.items())[:600]
        raise PruningError(f"`prune` must find units to remove, found none ({reasons})")
    return found


def _whole_share(run: _Run, settings: Prune, example: Mapping[str, Tensor], evidence: Evidence) -> float:
    """The share of units whose going leaves the wanted parameters or operations, found by cutting copies."""
    found = _found(run, settings, example)
    scores = _scored(run.module, found.spaces, settings.method, evidence)

    def cost(module: nn.Module) -> int:
        if settings.mac_percent is not None:
            return count_macs(module, example)
        return sum(parameter.numel() for parameter in module.parameters())

    def measure(share: float) -> int:
        module = copy.deepcopy(run.module)
        _remove(module, lowest(scores, share, settings.scope))
        return cost(module)

    kept_percent = settings.mac_percent if settings.mac_percent is not None else settings.parameter_percent
    assert kept_percent is not None
    field_name = "macPercent" if settings.mac_percent is not None else "parameterPercent"
    return share_for(measure, cost(run.module) * kept_percent / 100, field_name)


def _scored(
    module: nn.Module, spaces: Sequence[Space], criterion: Criterion, evidence: Evidence
) -> dict[Space, Tensor]:
    scores = unit_scores(module, spaces, criterion, evidence)
    _check_finite({space.name: values for space, values in scores.items()}, criterion)
    return scores


def _check_finite(scores: Mapping[str, Tensor], criterion: Criterion) -> None:
    for name, values in scores.items():
        if not torch.isfinite(values).all():
            raise PruningError(
                f"`prune.method` {criterion.value} must give finite scores, got others for {name}; train the model "
                "until its loss is finite, or rank by L2"
            )


def _remove(module: nn.Module, removal: Mapping[Space, Tensor]) -> list[dict[str, Any]]:
    """Do it in place: widths first, whose names hold until layers are renumbered. The edits that do the same."""
    widths = {space: units for space, units in removal.items() if space.kind is not PruneUnit.LAYERS}
    stacks = {space: units for space, units in removal.items() if space.kind is PruneUnit.LAYERS}
    edits = [cut(module, widths)] if widths else []
    edits += [layers.drop(module, space, units) for space, units in stacks.items()]
    return edits


def _units_round(run: _Run, settings: Prune, share: float, example: Mapping[str, Tensor], evidence: Evidence) -> float:
    found = _found(run, settings, example)
    run.kept |= found.kept
    scores = _scored(run.module, found.spaces, settings.method, evidence)
    names = {space: _name_before(run, space) for space in found.spaces}
    for space in found.spaces:
        _remember(run, space, names[space], scores[space])
    before = {space: run.spaces[names[space]].units for space in scores}
    removal = lowest(scores, share, settings.scope, before)
    for space, units in removal.items():
        name = names[space]
        record = run.spaces[name]
        gone = sorted({*record.removed, *run.alive[name][units].tolist()})
        run.spaces[name] = record.model_copy(update={"removed": gone})
        stays = torch.ones(space.num_units, dtype=torch.bool)
        stays[units] = False
        run.alive[name] = run.alive[name][stays]
    widths = {space: units for space, units in removal.items() if space.kind is not PruneUnit.LAYERS}
    run.history.cut(kept_of(run.module, widths))
    for edit in _remove(run.module, removal):
        run.with_edit(edit)
        for path, indices in edit["layers"].items():
            run.history.dropped(path, indices)
    gone_units = sum(len(record.removed) for record in run.spaces.values())
    return gone_units / max(1, sum(record.units for record in run.spaces.values()))


def _name_before(run: _Run, space: Space) -> str:
    """The space's name before the step: blocks are renumbered when others go."""
    tensor = space.blocks[0][0] if space.blocks else space.slices[0].tensor
    if not tensor.startswith(f"{space.name}."):
        return space.name
    return ".".join(run.history.names[tensor].split(".")[: space.name.count(".") + 1])


def _remember(run: _Run, space: Space, name: str, scores_U: Tensor) -> None:
    """Scores by the units' places before the step."""
    if name not in run.spaces:
        run.alive[name] = torch.arange(space.num_units)
        run.spaces[name] = PrunedSpace(
            name=name, kind=space.kind, units=space.num_units, removed=[], scores=scores_U.tolist()
        )
        return
    record = run.spaces[name]
    scores = list(record.scores)
    for place, score in zip(run.alive[name].tolist(), scores_U.tolist(), strict=True):
        scores[place] = score
    run.spaces[name] = record.model_copy(update={"scores": scores})


# --- single weights


def _weights_round(
    run: _Run, settings: Prune, share: float, _example: Mapping[str, Tensor], evidence: Evidence
) -> float:
    by_fours = settings.granularity is Granularity.TWO_FOUR
    weights = sparsity.find_weights(run.module, settings.ignore, by_fours=by_fours)
    run.kept |= weights.kept
    if not weights.names:
        raise PruningError(f"`prune` must find weights to remove, found none ({weights.kept})")
    scores = weight_scores(run.module, weights.names, settings.method, evidence)
    _check_finite(scores, settings.method)
    tensors = named_tensors(run.module)
    held = set(holding.held_names(run.bundle.architecture.edits))
    for name in held & scores.keys():  # zeros from before go first
        scores[name] = scores[name].masked_fill(tensors[name].detach() == 0, -1.0)
    if by_fours:
        masks = {
            name: sparsity.two_of_four(values, sparsity.input_dim(run.module.get_submodule(name.rpartition(".")[0])))
            for name, values in scores.items()
        }
    else:
        rows = None
        if sparsity.compares_rows(settings.method):
            rows = {name: 1 - sparsity.input_dim(run.module.get_submodule(name.rpartition(".")[0])) for name in scores}
        masks = sparsity.lowest_weights(scores, share, settings.scope, rows)
    run.thresholds = {name: float(scores[name][mask].max()) for name, mask in masks.items() if mask.any()}
    with torch.no_grad():
        for name, mask in masks.items():
            tensors[name].masked_fill_(mask, 0.0)
    run.history.zeroed(masks)
    if not held >= masks.keys():
        run.with_edit(holding.edit_of([name for name in masks if name not in held]))
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


# --- the end


def _finished(
    run: _Run, before: ModelBundle, settings: Prune, example: Mapping[str, Tensor], name: str, *, trained: bool
) -> Pruned:
    masks = run.history.removed()
    weights = {name for name, _ in before.module.named_parameters()}
    counts = {tensor: int(torch.count_nonzero(mask)) for tensor, mask in masks.items() if mask.dim() > 1}
    touched = {tensor: masks[tensor] for tensor, count in counts.items() if count and tensor in weights}
    module = run.module.eval()
    held = holding.held_names(run.bundle.architecture.edits)
    tensors = named_tensors(module)
    record = PruneRecord(
        step=name,
        method=settings.method,
        granularity=settings.granularity,
        scope=settings.scope,
        rounds=run.rounds,
        layers=[
            PrunedLayer(
                name=tensor,
                weights=mask.numel(),
                removed=counts[tensor],
                threshold=run.thresholds.get(tensor),
            )
            for tensor, mask in touched.items()
        ],
        spaces=list(run.spaces.values()),
        kept=run.kept,
        parameters_before=before.num_parameters(),
        parameters_after=run.bundle.num_parameters(),
        zeros_after=sum(int((tensors[tensor] == 0).sum()) for tensor in held if tensor in tensors),
        macs_before=count_macs(before.module, example),
        macs_after=count_macs(module, example),
        weights_before=weights_identity(before.module),
        weights_after=weights_identity(module),
        architecture_before=json.loads(before.architecture.to_json()),
        renamed=run.history.renamed(),
        undo=UndoData.WHOLE if trained else UndoData.REMOVED,
    )
    return Pruned(run.bundle, record, _way_back(run.history, masks, whole=trained))


def _way_back(history: History, masks: Mapping[str, Tensor], *, whole: bool) -> dict[str, Tensor]:
    if whole:
        return {f"before/{name}": tensor.contiguous() for name, tensor in history.before.items()}
    tensors: dict[str, Tensor] = {}
    for name, mask in masks.items():
        tensors[f"mask/{name}"] = pack_bits(mask)
        tensors[f"removed/{name}"] = history.before[name][mask].contiguous()
    return tensors


def pack_bits(mask: Tensor) -> Tensor:
    """Eight entries to the byte, in the order of the flat tensor, the first in the highest bit."""
    import numpy as np

    return torch.from_numpy(np.packbits(mask.reshape(-1).numpy()))
