"""A tiny run to train: everything that a test changes is a keyword of `tiny_parts` or `tiny_settings`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.api.v1alpha1.training import Training
from limbeck_runtime.student.parts import TrainParts, Worker
from limbeck_runtime.student.sampler import SamplePlan

GOLDEN_TRACE = Path(__file__).parents[2] / "golden" / "student_trace.json"

# Legend: B samples, F = 6 features, H = 8 hidden, D = 4 outputs.


@dataclass(frozen=True)
class TinyBatch:
    """As much of a batch as training looks at."""

    inputs: dict[str, torch.Tensor]
    keys: tuple[str, ...]
    rows: np.ndarray

    def double(self) -> TinyBatch:
        return replace(self, inputs={name: tensor.double() for name, tensor in self.inputs.items()})


class TinyModel(nn.Module):
    """Two towers of an image-text model in small, with weights that are ramps, not random numbers."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 4))
        self.text = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4))
        self.log_scale = nn.Parameter(torch.tensor(0.5))
        with torch.no_grad():
            for part in self.modules():
                for parameter in part.parameters() if isinstance(part, nn.Linear) else ():
                    parameter.copy_(torch.linspace(-0.8, 0.9, parameter.numel()).sin().view(parameter.shape))

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            "image_embedding": nn.functional.normalize(self.image(inputs["image_BF"]), dim=-1),
            "text_embedding": nn.functional.normalize(self.text(inputs["text_BF"]), dim=-1),
            "logit_scale": self.log_scale.exp(),
        }


def _features(positions: np.ndarray) -> torch.Tensor:
    base = torch.from_numpy(positions[:, 0] * 37.0 + positions[:, 1] * 11.0)[:, None]
    return (base * torch.linspace(0.3, 1.7, 6, dtype=torch.float64)).sin().float()


def tiny_batch(positions: np.ndarray) -> TinyBatch:
    features_BF = _features(positions)
    inputs = {"image_BF": features_BF, "text_BF": features_BF.flip(1) + 0.1 * features_BF}
    return TinyBatch(inputs, tuple(f"{shard}-{row}" for shard, row in positions), positions)


def separate_loss(outputs: dict[str, torch.Tensor], batch: TinyBatch) -> dict[str, torch.Tensor]:
    """A loss of which each sample has its own."""
    image_BD, text_BD = outputs["image_embedding"], outputs["text_embedding"]
    return {
        "match": (1 - (image_BD * text_BD).sum(dim=1)).mean(),
        "scale": 0.1 * (outputs["logit_scale"] * image_BD[:, 0]).square().mean(),
    }


class CoupledLoss:
    """A loss that compares all samples of all workers: this worker's rows against all columns, both ways."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def __call__(self, outputs: dict[str, torch.Tensor], batch: TinyBatch) -> dict[str, torch.Tensor]:
        gather, scale = self.worker.gather, outputs["logit_scale"]
        image_BD, text_BD = outputs["image_embedding"], outputs["text_embedding"]
        all_image, all_text = gather(image_BD), gather(text_BD)
        own = torch.arange(len(image_BD)) + gather.first_row
        return {
            "image_to_text": nn.functional.cross_entropy(scale * image_BD @ all_text.T, own),
            "text_to_image": nn.functional.cross_entropy(scale * text_BD @ all_image.T, own),
        }


def build_tiny(
    worker: Worker,
    *,
    plan: SamplePlan,
    coupled: bool = False,
    dropout: float = 0.0,
    on_batch: Callable[[TinyBatch], None] = lambda batch: None,
) -> TrainParts:
    """Picklable as a partial, as the gang wants it."""

    def stream(epoch: int, step: int) -> Iterator[TinyBatch]:
        for positions, _ in plan.rank_batches(worker.rank, worker.world_size, epoch, step):
            batch = tiny_batch(positions)
            on_batch(batch)
            yield batch

    return TrainParts(
        module=TinyModel(dropout),
        loss=CoupledLoss(worker) if coupled else separate_loss,
        stream=stream,
        plan=plan,
        couples_samples=coupled,
    )


def counted(parts: TrainParts) -> TrainParts:
    """The same with a loss that is a mean over what each sample holds a different number of, as of tokens."""

    def lengths(batch: TinyBatch) -> torch.Tensor:
        return torch.from_numpy(1 + batch.rows[:, 1] % 3).to(batch.inputs["image_BF"].dtype)

    def loss(outputs: dict[str, torch.Tensor], batch: TinyBatch) -> dict[str, torch.Tensor]:
        weights_B = lengths(batch)
        match_B = 1 - (outputs["image_embedding"] * outputs["text_embedding"]).sum(dim=1)
        return {"match": (outputs["logit_scale"] * match_B * weights_B).sum() / weights_B.sum()}

    return replace(parts, loss=loss, count=lambda batch: int(lengths(batch).sum()))


def tiny_plan(**changes: Any) -> SamplePlan:
    settings: dict[str, Any] = {
        "seed": 5,
        "shard_sizes": (7, 5, 9, 2),
        "window_shards": 2,
        "batch_size": 6,
        "epochs": 2,
    }
    return SamplePlan(**(settings | changes))


def tiny_settings(plan: SamplePlan, **changes: Any) -> Training:
    settings: dict[str, Any] = {
        "learning_rate": 0.02,
        "weight_decay": 0.1,
        "warmup_percent": 20,
        "checkpoint_interval_seconds": 0,
    }
    return Training(epochs=plan.epochs, batch_size=plan.batch_size, **(settings | changes))


@dataclass(frozen=True)
class Tiny:
    """The builders above, for tests to take as one fixture."""

    golden_trace = GOLDEN_TRACE
    build = staticmethod(build_tiny)
    plan = staticmethod(tiny_plan)
    settings = staticmethod(tiny_settings)
    batch = staticmethod(tiny_batch)
    model = TinyModel


@pytest.fixture
def golden_losses() -> dict[str, list[float]]:
    """Reviewed losses of the tiny run, step by step; see the test of the trace for how they are compared."""
    losses: dict[str, list[float]] = json.loads(GOLDEN_TRACE.read_text())
    return losses


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    torch.set_num_threads(1)
    return Tiny()
