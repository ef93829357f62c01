"""The quantize step's work: choose layers, calibrate, convert, and record it so that it can be replayed.

Left out on purpose: Int4 and Float8, training with rounding in the loop, and falling back layer by layer, which
`limbeck validate` refuses.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from limbeck.api.v1alpha1.compression import Activations, Calibration, Quantize, Scheme
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.quantization.calibration import (
    Inputs,
    LinearCalibration,
    Observed,
    Progress,
    calibrate_linear,
    conv_rounding,
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
    precise (smoothing, and a zero point for each layer). `progress` gets (batches done, batches in all).

    Raises QuantizationError for what the scheme cannot do, naming the field.
    """
    _check(bundle.module, settings, calibration)
    selection = select(bundle.module, settings.skip, embeddings=settings.embeddings)
    module = copy.deepcopy(bundle.module).eval()
    kinds = {path: activations_of(module.get_submodule(path), settings.activations) for path in selection.chosen}
    watched = {path: selection.chosen[path] for path, kind in kinds.items() if _is_calibrated(selection, path, kind)}
    observed = observe(module, watched, calibration, progress)
    linear = _linear_calibrations(module, kinds, settings.calibration, observed)
    plans, notes = _plans(selection, kinds, settings.calibration, observed, linear)
    convert(module, plans, {path: found.factor for path, found in linear.items() if found.factor is not None})
    architecture = bundle.architecture.with_edit(edit_of(plans))
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


def _is_calibrated(selection: Selection, path: str, activations: Activations) -> bool:
    """Dynamic convolutions find their range at each call."""
    if activations is Activations.DYNAMIC:
        return selection.chosen[path] is LayerKind.LINEAR
    return activations is Activations.STATIC


def _linear_calibrations(
    module: nn.Module, kinds: Mapping[str, Activations], calibration: Calibration, observed: Observed
) -> dict[str, LinearCalibration]:
    """By path. Layers that share their weight are not smoothed, for the other one has other inputs."""
    return {
        path: calibrate_linear(
            observer,
            _matrix(module.get_submodule(path)).detach(),
            kinds[path],
            calibration,
            smooth=_alone(module, path),
        )
        for path, observer in observed.rows.items()
    }


def _plans(
    selection: Selection,
    kinds: Mapping[str, Activations],
    calibration: Calibration,
    observed: Observed,
    linear: Mapping[str, LinearCalibration],
) -> tuple[list[LayerPlan], list[str]]:
    plans, notes = [], []
    for path, kind in selection.chosen.items():
        smoothed = False
        if path in linear:
            rounding, smoothed = linear[path].rounding, linear[path].factor is not None
        elif path in observed.inputs:
            rounding = conv_rounding(observed.inputs[path], observed.outputs[path], calibration)
        elif kinds[path] is Activations.DYNAMIC:
            rounding = InputRounding(Activations.DYNAMIC)
        else:
            rounding = WEIGHT_ONLY
            if kinds[path] is Activations.STATIC:
                notes.append(f"{path}: no calibration sample reaches it, so only its weights are int8")
        plans.append(LayerPlan(path, kind, rounding, smoothed))
    return plans, notes


def _alone(module: nn.Module, path: str) -> bool:
    weight = module.get_submodule(path).weight
    return sum(parameter is weight for _, parameter in _all_parameters(module)) == 1


def _all_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(remove_duplicate=False)


def _matrix(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight if isinstance(layer, nn.Linear) else weight.t()
