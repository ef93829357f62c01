"""One worker's training: its trace, resuming at every step, averaging, and how it ends otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from limbeck_runtime.commitlog import CommitLog
from limbeck_runtime.storage import Storage
from limbeck_runtime.student.checkpoint import Checkpoints
from limbeck_runtime.student.image import ImageMismatchError
from limbeck_runtime.student.loop import train
from limbeck_runtime.student.parts import Worker
from limbeck_runtime.student.records import Callbacks, DivergedError, Interrupted, StepRecord

# Everything on: dropout, averaging, clipping, accumulation.
EVERYTHING: dict[str, Any] = {"ema_decay_percent": 90, "gradient_accumulation": 2, "gradient_clip_norm": 0.3}


def checkpoints_in(folder: Path, interval_seconds: float = 0) -> Checkpoints:
    return Checkpoints(CommitLog(Storage.open(str(folder))), fingerprint="f", interval_seconds=interval_seconds)


class KilledError(Exception):
    pass


def test_the_trace_of_a_fixed_model_is_the_golden_one(tiny: Any, pytestconfig: pytest.Config) -> None:
    plan = tiny.plan()
    trace: dict[str, list[float]] = {}
    for name, coupled in (("separate", False), ("coupled", True)):
        records: list[StepRecord] = []
        parts = tiny.build(Worker(), plan=plan, coupled=coupled)
        train(parts, tiny.settings(plan), callbacks=Callbacks(on_step=records.append))
        trace[name] = [record.loss for record in records]
    if pytestconfig.getoption("--update-golden"):
        rounded = {name: [round(loss, 8) for loss in losses] for name, losses in trace.items()}
        tiny.golden_trace.write_text(json.dumps(rounded, indent=1) + "\n")
    golden = json.loads(tiny.golden_trace.read_text())
    assert trace.keys() == golden.keys()
    for name, losses in trace.items():
        assert losses == pytest.approx(golden[name], abs=1e-6)


def test_records_tell_where_the_run_is(tiny: Any) -> None:
    plan = tiny.plan()
    records: list[StepRecord] = []
    train(tiny.build(Worker(), plan=plan), tiny.settings(plan), callbacks=Callbacks(on_step=records.append))
    assert [record.step for record in records] == list(range(1, 9))
    assert [record.epoch for record in records] == [step / 4 for step in range(1, 9)]
    assert [record.num_samples for record in records] == [6, 6, 6, 5] * 2
    assert [round(record.learning_rate, 4) for record in records][:3] == [0.01, 0.02, 0.02]
    for record in records:
        assert record.loss == pytest.approx(record.terms["match"] + record.terms["scale"])
        assert 0 <= record.data_wait_seconds <= record.seconds
        assert record.gradient_norm > 0
        assert record.resolved().loss == record.loss


@pytest.mark.parametrize("coupled", [False, True])
def test_a_run_killed_at_any_step_ends_with_the_same_bits(tiny: Any, tmp_path: Path, coupled: bool) -> None:
    plan = tiny.plan()
    settings = tiny.settings(plan, **EVERYTHING)

    def run(folder: Path, kill_in_step: int | None) -> tuple[dict[str, torch.Tensor], list[float]]:
        records: list[StepRecord] = []
        batches = 0

        def on_batch(batch: Any) -> None:
            nonlocal batches
            batches += 1
            if batches - 1 == kill_in_step:
                raise KilledError

        checkpoints = checkpoints_in(folder)
        try:
            parts = tiny.build(Worker(), plan=plan, coupled=coupled, dropout=0.3, on_batch=on_batch)
            result = train(parts, settings, checkpoints=checkpoints, callbacks=Callbacks(on_step=records.append))
        finally:
            checkpoints.close()
        return dict(result.weights), [record.loss for record in records]

    weights, losses = run(tmp_path / "undisturbed", None)
    for kill_in_step in range(plan.total_steps):
        folder = tmp_path / str(kill_in_step)
        with pytest.raises(KilledError):
            run(folder, kill_in_step)
        resumed, resumed_losses = run(folder, None)
        assert resumed_losses == losses[kill_in_step:]
        for name, tensor in weights.items():
            assert torch.equal(resumed[name], tensor), (kill_in_step, name)


class WithStatistics(torch.nn.Module):
    """The tiny model with a buffer that its forward pass changes, as batch norms do."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("scratch", torch.zeros(6), persistent=False)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self.training:
            self.mean.lerp_(inputs["image_BF"].mean(dim=0), 0.1)
        outputs: dict[str, torch.Tensor] = self.model({**inputs, "image_BF": inputs["image_BF"] - self.mean})
        return outputs


def test_statistics_of_the_forward_pass_are_part_of_the_state(tiny: Any, tmp_path: Path) -> None:
    plan = tiny.plan()

    def run(folder: Path, stops: list[bool]) -> dict[str, torch.Tensor]:
        checkpoints = checkpoints_in(folder, interval_seconds=600)
        parts = tiny.build(Worker(), plan=plan)
        callbacks = Callbacks(should_stop=partial(next, iter(stops), False))
        try:
            with_statistics = replace(parts, module=WithStatistics(parts.module))
            return dict(
                train(with_statistics, tiny.settings(plan), checkpoints=checkpoints, callbacks=callbacks).weights
            )
        finally:
            checkpoints.close()

    undisturbed = run(tmp_path / "undisturbed", [])
    with pytest.raises(Interrupted, match="after step 3"):
        run(tmp_path / "stopped", [False, False, True])
    resumed = run(tmp_path / "stopped", [])
    assert "mean" in undisturbed
    assert "scratch" not in undisturbed
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def test_a_finished_run_is_not_trained_again(tiny: Any, tmp_path: Path) -> None:
    plan = tiny.plan()
    steps: list[list[int]] = [[], []]
    results = []
    for seen in steps:
        checkpoints = checkpoints_in(tmp_path, interval_seconds=600)
        parts = tiny.build(Worker(), plan=plan)
        callbacks = Callbacks(on_step=lambda record, seen=seen: seen.append(record.step))  # type: ignore[misc]
        settings = tiny.settings(plan, ema_decay_percent=90)
        results.append(train(parts, settings, checkpoints=checkpoints, callbacks=callbacks))
        checkpoints.close()
    assert [len(seen) for seen in steps] == [8, 0]
    assert all(torch.equal(results[0].weights[name], results[1].weights[name]) for name in results[0].weights)
    assert len(CommitLog(Storage.open(str(tmp_path))).all()) == 1


def test_stopping_leaves_a_checkpoint_to_go_on_from(
    tiny: Any, tmp_path: Path, golden_losses: dict[str, list[float]]
) -> None:
    plan = tiny.plan()
    losses: list[float] = []
    resumed_at: list[int] = []
    for stop_after in (3, None):
        checkpoints = checkpoints_in(tmp_path, interval_seconds=600)
        callbacks = Callbacks(
            on_step=lambda record: losses.append(record.loss),
            should_stop=lambda stop_after=stop_after: len(losses) + 1 == stop_after,  # type: ignore[misc]
            on_resume=resumed_at.append,
        )
        parts = tiny.build(Worker(), plan=plan)
        if stop_after:
            with pytest.raises(Interrupted, match="after step 3"):
                train(parts, tiny.settings(plan), checkpoints=checkpoints, callbacks=callbacks)
        else:
            train(parts, tiny.settings(plan), checkpoints=checkpoints, callbacks=callbacks)
        checkpoints.close()
    assert resumed_at == [3]
    assert losses == pytest.approx(golden_losses["separate"], abs=1e-6)


def test_a_run_draws_its_own_random_numbers_and_leaves_the_callers_alone(tiny: Any) -> None:
    plan = tiny.plan()
    weights = []
    for seed in (1, 2):
        parts = tiny.build(Worker(), plan=plan, dropout=0.3)
        torch.manual_seed(seed)
        weights.append(train(parts, tiny.settings(plan)).weights)
        drawn = torch.rand(3)
        torch.manual_seed(seed)
        assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_averaged_weights_are_the_result(tiny: Any) -> None:
    plan = tiny.plan()
    plain = tiny.build(Worker(), plan=plan)
    naive: dict[str, torch.Tensor] = {name: p.detach().clone() for name, p in plain.module.named_parameters()}

    def average(record: StepRecord) -> None:
        decay = min(0.5, record.step / (record.step + 10))
        for name, parameter in plain.module.named_parameters():
            naive[name] = decay * naive[name] + (1 - decay) * parameter.detach()

    train(plain, tiny.settings(plan), callbacks=Callbacks(on_step=average))
    averaged = tiny.build(Worker(), plan=plan)
    result = train(averaged, tiny.settings(plan, ema_decay_percent=50))
    for name, parameter in averaged.module.named_parameters():
        torch.testing.assert_close(parameter.detach(), naive[name])
        assert torch.equal(result.weights[name], parameter)
    assert not averaged.module.training


def test_a_loss_that_is_not_a_number_ends_the_run_with_advice(tiny: Any, tmp_path: Path) -> None:
    plan = tiny.plan()
    checkpoints = checkpoints_in(tmp_path)
    parts = tiny.build(Worker(), plan=plan, on_batch=lambda batch: batch.inputs["image_BF"].div_(0))
    with pytest.raises(DivergedError, match=r"`learningRate` must keep the loss finite, got match nan.* at step 1"):
        train(parts, tiny.settings(plan), checkpoints=checkpoints)
    checkpoints.close()
    assert CommitLog(Storage.open(str(tmp_path))).all() == []


def test_a_checkpoint_of_another_model_is_refused(tiny: Any, tmp_path: Path) -> None:
    plan = tiny.plan()
    for average, expected in ((0, None), (90, ImageMismatchError)):
        checkpoints = checkpoints_in(tmp_path)
        settings = tiny.settings(plan, ema_decay_percent=average)
        if expected is None:
            train(tiny.build(Worker(), plan=plan), settings, checkpoints=checkpoints)
        else:
            with pytest.raises(expected, match=r"average/model/image\.0\.bias is absent in the checkpoint"):
                train(tiny.build(Worker(), plan=plan), settings, checkpoints=checkpoints)
        checkpoints.close()


def test_the_stream_is_closed_when_training_ends_or_fails(tiny: Any) -> None:
    plan = tiny.plan()
    closed: list[str] = []

    def watched(name: str, failing: bool, epoch: int, step: int) -> Iterator[Any]:
        try:
            for positions, _ in plan.rank_batches(0, 1):
                yield tiny.batch(positions)
                if failing:
                    raise KilledError
        finally:
            closed.append(name)

    for name, failing in (("ends", False), ("fails", True)):
        stream = partial(watched, name, failing)
        parts = replace(tiny.build(Worker(), plan=plan), stream=stream)
        if failing:
            with pytest.raises(KilledError):
                train(parts, tiny.settings(plan))
        else:
            train(parts, tiny.settings(plan))
    assert closed == ["ends", "fails"]


def test_a_stream_that_ends_early_is_an_error(tiny: Any) -> None:
    plan = tiny.plan()
    one_batch = [tiny.batch(next(plan.batches(0)))]
    parts = replace(tiny.build(Worker(), plan=plan), stream=lambda epoch, step: iter(one_batch))
    with pytest.raises(ValueError, match="stream of batches must reach step 8, got an end at step 1"):
        train(parts, tiny.settings(plan))


def test_bfloat16_trains_on_a_cpu_too(tiny: Any, golden_losses: dict[str, list[float]]) -> None:
    plan = tiny.plan()
    records: list[StepRecord] = []
    parts = tiny.build(Worker(), plan=plan, coupled=True)
    train(parts, tiny.settings(plan, precision="BFloat16"), callbacks=Callbacks(on_step=records.append))
    golden = golden_losses["coupled"]
    assert [record.loss for record in records] == pytest.approx(golden, rel=0.05)
    assert [record.loss for record in records] != pytest.approx(golden, abs=1e-6)
    assert all(parameter.dtype is torch.float32 for parameter in parts.module.parameters())
