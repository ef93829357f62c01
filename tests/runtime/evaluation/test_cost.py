"""Parameters, operations, memory and latency of layers for which all can be counted by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from limbeck.api.report import RowKind
from limbeck.api.v1alpha1.compression import Quantize
from limbeck_runtime.evaluation import Evaluation, measure_cost, to_measurements
from limbeck_runtime.evaluation.cost import count_macs
from limbeck_runtime.evaluation.evaluation import Answers
from limbeck_runtime.evaluation.latency import measure_latencies, take_samples
from limbeck_runtime.evaluation.memory import most_alive
from limbeck_runtime.models.bundle import Architecture, ModelBundle
from limbeck_runtime.models.preprocessing import Preprocessing
from limbeck_runtime.quantization import quantize
from limbeck_runtime.report.build import build_row


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8 * 64, 10)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"logits": self.head(self.depthwise(self.conv(inputs["pixel_values"])).flatten(1))}


MACS = 8 * 64 * 27 + 8 * 64 * 9 + 8 * 64 * 10


@pytest.fixture
def bundle() -> ModelBundle:
    torch.manual_seed(0)
    return ModelBundle(Network().eval(), Architecture("test"), Preprocessing(), "ImageClassification")


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(4, 3, 8, 8)}


@pytest.mark.parametrize("activations", [None, "None", "Dynamic", "Static"])
def test_int8_layers_do_as_many_operations_as_float_ones(
    bundle: ModelBundle, inputs: dict[str, torch.Tensor], activations: str | None
) -> None:
    if activations is not None:
        bundle, _ = quantize(bundle, Quantize.model_validate({"activations": activations}), [inputs])
    assert count_macs(bundle.module, inputs) == MACS


def test_all_costs_of_a_model_come_in_one_call(bundle: ModelBundle, inputs: dict[str, torch.Tensor]) -> None:
    bundle.module.train()
    cost = measure_cost(bundle, inputs, [8, 1], 5)
    assert bundle.module.training
    assert cost.macs == MACS
    assert cost.parameters == 8 * 27 + 8 + 8 * 9 + 8 + 5120 + 10
    activations = 8 * (8 * 64 * 2) * 4  # two maps of eight channels for eight samples
    assert cost.parameters * 4 + activations <= cost.peak_memory_bytes <= cost.parameters * 4 + 2 * activations
    assert [(figure.batch_size, figure.num_calls) for figure in cost.latency] == [(1, 5), (8, 5)]


def test_memory_counts_what_is_alive_at_once_and_no_weights() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(100, 100))

        def forward(self, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            x = batch["x"]
            for _ in range(5):
                x = x @ self.weight.t()
            return {"y": x}

    with torch.inference_mode():
        assert most_alive(Chain(), {"x": torch.randn(10, 100)}) == 2 * 10 * 100 * 4


def test_models_are_timed_in_turns_after_a_warm_up() -> None:
    order: list[str] = []

    def seconds() -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += {"a": 1.0, "b": 3.0}[order[-1]] if order else 0.0
            yield now

    ticks = seconds()
    calls: Any = {label: lambda batch, label=label: order.append(label) for label in ("a", "b")}
    figures = measure_latencies(calls, {"x": torch.zeros(3, 1)}, [2], 6, clock=lambda: next(ticks))
    assert order == ["a", "b"] * 8
    assert figures["a"][0].p50_seconds == 1.0
    assert figures["b"][0].p50_seconds == 3.0
    assert figures["b"][0].p95_seconds == 3.0


def test_a_batch_is_cut_or_repeated_and_loses_padding_that_nobody_needs() -> None:
    inputs = {
        "input_ids": torch.tensor([[5, 6, 0, 0], [7, 8, 9, 1]]),
        "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
        "labels": torch.tensor([0, 1]),
    }
    one = take_samples(inputs, 1)
    assert one["input_ids"].tolist() == [[5, 6]]
    assert set(one) == {"input_ids", "attention_mask"}
    assert take_samples(inputs, 3)["input_ids"].tolist() == [[5, 6, 0, 0], [7, 8, 9, 1], [5, 6, 0, 0]]


def test_padding_on_the_left_is_kept() -> None:
    inputs = {"input_ids": torch.tensor([[0, 0, 5]]), "attention_mask": torch.tensor([[0, 0, 1]])}
    assert take_samples(inputs, 1)["input_ids"].tolist() == [[0, 0, 5]]


def test_figures_go_into_a_row_of_the_report(bundle: ModelBundle, inputs: dict[str, torch.Tensor]) -> None:
    import numpy as np

    nothing = np.zeros(0)
    evaluation = Evaluation({"accuracy": 0.5}, "accuracy", Answers(nothing, nothing, nothing), {}, (), ece=0.1)
    measured = to_measurements(
        evaluation, measure_cost(bundle, inputs, [1], 5), artefact="model.safetensors, torch eager", artefact_bytes=7
    )
    row = build_row("int8", RowKind.STEP, "quantize", measured, "accuracy", None)
    assert (row.macs, row.artefact_bytes, row.ece) == (MACS, 7, 0.1)
