"""The low-rank step's work: choose layers and ranks, put factors in their places, and merge them back on request.

Left out on purpose: where samples come from (steps/low_rank.py).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from limbeck.api.low_rank_record import FactorisedLayer, LowRankRecord
from limbeck.api.v1alpha1.compression import LowRank as Settings
from limbeck_runtime.lowrank.errors import LowRankError
from limbeck_runtime.lowrank.layers import LowRank, factorised, fill, matrix_of, merged, num_weights
from limbeck_runtime.lowrank.moments import Inputs, Progress, second_moments
from limbeck_runtime.lowrank.replay import edit_of, merge_edit_of, replace_layers
from limbeck_runtime.lowrank.selection import find_layers
from limbeck_runtime.lowrank.svd import Spectrum, rank_for_energy, ranks_for_budget, spectrum
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.pruning.holding import held_names


@dataclass(frozen=True)
class Factorised:
    """The smaller model, and what was done."""

    bundle: ModelBundle
    record: LowRankRecord


def factorise(
    bundle: ModelBundle,
    settings: Settings,
    batches: Sequence[Inputs] = (),
    *,
    name: str = "low-rank",
    progress: Progress | None = None,
) -> Factorised:
    """A factorised copy of `bundle`, which is left as it was, in eval mode. `batches` are samples' inputs, which
    the data-aware variant needs; `progress` gets (batches done, in all).

    Raises LowRankError for what cannot be factorised, naming the field or the layer.
    """
    _check(bundle, settings, batches)
    module = copy.deepcopy(bundle.module).eval()
    candidates = find_layers(module, settings.layers, settings.ignore)
    kept = dict(candidates.kept)
    spectra = _spectra(module, candidates.paths, settings, batches, kept, progress)
    ranks = _ranks(module, spectra, settings, kept)
    if not ranks:
        reasons = "; ".join(f"{path}: {reason}" for path, reason in kept.items())[:600]
        raise LowRankError(f"`lowRank` must find layers that become smaller, found none ({reasons})")
    layers = []
    new = {}
    for path, rank in ranks.items():
        layer = module.get_submodule(path)
        new[path] = factorised(layer, rank)
        fill(new[path], *spectra[path].factors(rank))
        layers.append(
            FactorisedLayer(
                name=path,
                rank=rank,
                full_rank=min(spectra[path].matrix.shape),
                energy_percent=min(100.0, 100 * spectra[path].kept(rank)),
                parameters_before=num_weights(layer),
                parameters_after=num_weights(new[path]),
            )
        )
    replace_layers(module, new)
    held = held_names(bundle.architecture.edits)
    architecture = bundle.architecture.with_edit(edit_of(ranks))
    after = replace(bundle, module=module, architecture=architecture)
    record = LowRankRecord(
        step=name,
        data_aware=settings.data_aware,
        layers=layers,
        kept=kept,
        zeros_lost=sorted(set(held) - set(held_names(architecture.edits))),
        parameters_before=bundle.num_parameters(),
        parameters_after=after.num_parameters(),
    )
    return Factorised(after, record)


def merge(bundle: ModelBundle) -> ModelBundle:
    """A copy of `bundle` in which each pair of factors is one plain layer again, of the rank that it had.

    Raises LowRankError where nothing is factorised, and for quantized factors.
    """
    if any(edit["kind"] == "quantize" for edit in bundle.architecture.edits):
        raise LowRankError("factors must be merged before quantization, got a quantized model; merge, then quantize")
    module = copy.deepcopy(bundle.module).eval()
    new = {path: merged(layer) for path, layer in module.named_modules() if isinstance(layer, LowRank)}
    if not new:
        raise LowRankError("a model must have factorised layers to be merged, got none")
    replace_layers(module, new)
    return replace(bundle, module=module, architecture=bundle.architecture.with_edit(merge_edit_of(list(new))))


def _check(bundle: ModelBundle, settings: Settings, batches: Sequence[Inputs]) -> None:
    done = [str(edit["kind"]) for edit in bundle.architecture.edits]
    if "quantize" in done or not all(parameter.is_floating_point() for parameter in bundle.module.parameters()):
        raise LowRankError("`lowRank` must come before quantization, got a quantized model; change the order")
    if settings.data_aware and not batches:
        raise LowRankError("`lowRank.dataAware` must have calibration samples, got none; give some or set it to false")


def _spectra(
    module: nn.Module,
    paths: Sequence[str],
    settings: Settings,
    batches: Sequence[Inputs],
    kept: dict[str, str],
    progress: Progress | None,
) -> dict[str, Spectrum]:
    moments = second_moments(module, paths, batches, progress) if settings.data_aware else {}
    spectra = {}
    for path in paths:
        if settings.data_aware and path not in moments:
            kept[path] = "no calibration sample reached it; set `lowRank.dataAware` to false to factorise it"
            continue
        matrix_NK = matrix_of(module.get_submodule(path))
        moment_KK = moments.pop(path, None)
        for what, values in (("weights", matrix_NK), ("inputs", moment_KK)):
            if values is not None and not torch.isfinite(values).all():
                raise LowRankError(f"`lowRank` must have finite {what}, got others at {path}; train the model again")
        spectra[path] = spectrum(matrix_NK, moment_KK)
    return spectra


def _ranks(
    module: nn.Module, spectra: Mapping[str, Spectrum], settings: Settings, kept: dict[str, str]
) -> dict[str, int]:
    """Ranks of the layers that become smaller by them; why others do not goes into `kept`."""
    wanted: Mapping[str, int | None]
    if settings.rank is not None:
        wanted = dict.fromkeys(spectra, settings.rank)
    elif settings.energy_percent is not None:
        wanted = {path: rank_for_energy(found, settings.energy_percent / 100) for path, found in spectra.items()}
    else:
        wanted = _within_budget(module, spectra, settings)
    ranks = {}
    for path, rank in wanted.items():
        numbers = num_weights(module.get_submodule(path))
        if rank is None:
            kept[path] = "the budget lets it stay whole"
        elif rank * sum(spectra[path].matrix.shape) >= numbers:
            more = rank * sum(spectra[path].matrix.shape)
            kept[path] = f"rank {rank} would not make it smaller: {more} numbers instead of {numbers}"
        else:
            ranks[path] = rank
    return ranks


def _within_budget(module: nn.Module, spectra: Mapping[str, Spectrum], settings: Settings) -> dict[str, int | None]:
    assert settings.parameter_percent is not None
    whole = {path: num_weights(module.get_submodule(path)) for path in spectra}
    now = sum(whole.values())
    try:
        return ranks_for_budget(spectra, whole, now * settings.parameter_percent // 100)
    except ValueError as error:
        least = -(-100 * error.args[0] // now)
        raise LowRankError(
            f"`lowRank.parameterPercent` must be at least {least} for these layers at rank 1, got "
            f"{settings.parameter_percent}; raise it"
        ) from error
