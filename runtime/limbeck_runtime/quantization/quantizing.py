"""The quantize step's work: choose layers, calibrate, convert, and record it so that it can be replayed.

Left out on purpose: Int4 and Float8, training with rounding in the loop, and falling back layer by layer, which
`limbeck validate` refuses.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from limbeck.api.v1alpha1.compression import Activations, Calibration, Quantize, Scheme
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.quantization import folding
from limbeck_runtime.quantization.calibration import (
    Inputs,
    Observed,
    Progress,
    conv_rounding,
    linear_rounding,
    observe,
)
from limbeck_runtime.quantization.conversion import LayerPlan, convert
from limbeck_runtime.quantization.errors import QuantizationError
from limbeck_runtime.quantization.kernels import kernel_support
from limbeck_runtime.quantization.layers import WEIGHT_ONLY, InputRounding
from limbeck_runtime.quantization.replay import edit_of
from limbeck_runtime.quantization.selection import LayerKind, Selection, activations_of, select


@dataclass(frozen=True)
class QuantizeRecord:
    """What was done, for the report and the log."""

    num_layers: int
    weight_bits: int
    kept: Mapping[str, str]
    notes: tuple[str, ...]


def quantize(
    bundle: ModelBundle,
    settings: Quantize,
    calibration: Sequence[Inputs] = (),
    *,
    progress: Progress | None = None,
) -> tuple[ModelBundle, QuantizeRecord]:
    """A copy of `bundle` in int8, in eval mode; `bundle` itself is left as it was.

    `calibration` are batches of the model's inputs: needed for Static; for Dynamic they make linear layers more
    precise (a zero point for each layer, outlier channels in float). They also fold batch norms into convolutions.
    `progress` gets (batches done, batches in all).

    Raises QuantizationError for what the scheme cannot do, naming the field.
    """
    _check(bundle.module, settings, calibration)
    selection = select(bundle.module, settings.skip, embeddings=settings.embeddings)
    module = copy.deepcopy(bundle.module).eval()
    folded = _fold(module, selection, calibration)
    kinds = {path: activations_of(module.get_submodule(path), settings.activations) for path in selection.chosen}
    watched = {path: selection.chosen[path] for path, kind in kinds.items() if _is_calibrated(selection, path, kind)}
    observed = observe(module, watched, calibration, progress)
    plans, notes = _plans(selection, kinds, settings.calibration, observed)
    convert(module, plans)
    architecture = bundle.architecture
    if folded:
        architecture = architecture.with_edit(folding.edit_of(folded))
    architecture = architecture.with_edit(edit_of(plans))
    if not kernel_support().integer and settings.activations is not Activations.NONE:
        notes.append(kernel_support().detail)
    record = QuantizeRecord(len(plans), 8, dict(selection.kept), tuple(notes))
    return ModelBundle(module, architecture, bundle.preprocessing, bundle.task), record


def _check(module: nn.Module, settings: Quantize, calibration: Sequence[Inputs]) -> None:
    if settings.scheme is not Scheme.INT8:
        raise QuantizationError(
            f"`quantize.scheme` must be Int8, got {settings.scheme.value}; other schemes are not there yet"
        )
    if settings.aware:
        raise QuantizationError("`quantize.aware` must be false, got true; training with rounding is not there yet")
    if settings.min_agreement_percent is not None:
        raise QuantizationError(
            f"`quantize.minAgreementPercent` must be left out, got {settings.min_agreement_percent}; "
            "use `skip` for layers that must stay in float"
        )
    if settings.activations is Activations.STATIC and not calibration:
        raise QuantizationError(
            "`quantize.activations` must be Dynamic or None without calibration samples, got Static; "
            "give training data to calibrate with"
        )
    wrong = {str(parameter.dtype) for parameter in module.parameters()} - {"torch.float32"}
    if wrong:
        raise QuantizationError(
            f"`quantize` must start from a float32 model, got {', '.join(sorted(wrong))}; quantize once, at the end"
        )


def _fold(module: nn.Module, selection: Selection, calibration: Sequence[Inputs]) -> list[folding.Pair]:
    """Batch norms need a batch to be found."""
    convolutions = [path for path, kind in selection.chosen.items() if kind is LayerKind.CONV]
    return folding.fold_norms(module, convolutions, calibration[0]) if convolutions and calibration else []


def _is_calibrated(selection: Selection, path: str, activations: Activations) -> bool:
    """Dynamic convolutions find their range at each call."""
    if activations is Activations.DYNAMIC:
        return selection.chosen[path] is LayerKind.LINEAR
    return activations is Activations.STATIC


def _plans(
    selection: Selection,
    kinds: Mapping[str, Activations],
    calibration: Calibration,
    observed: Observed,
) -> tuple[list[LayerPlan], list[str]]:
    plans, notes = [], []
    for path, kind in selection.chosen.items():
        if path in observed.rows:
            rounding = linear_rounding(observed.rows[path], kinds[path], calibration)
        elif path in observed.inputs:
            rounding = conv_rounding(observed.inputs[path], observed.outputs[path], calibration)
        elif kinds[path] is Activations.DYNAMIC:
            rounding = InputRounding(Activations.DYNAMIC)
        else:
            rounding = WEIGHT_ONLY
            if kinds[path] is Activations.STATIC:
                notes.append(f"{path}: no calibration sample reaches it, so only its weights are int8")
        plans.append(LayerPlan(path, kind, rounding))
    return plans, notes
