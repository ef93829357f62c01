from __future__ import annotations

from pathlib import Path

import pytest

from limbeck_runtime.telemetry.progress import ProgressRecord
from limbeck_runtime.telemetry.tensorboard import TensorBoardWriter, require_tensorboard


def test_the_curves_of_a_step_are_read_back_by_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = TensorBoardWriter(tmp_path, "distil")
    for update, loss in ((1, 1.0), (2, 0.5)):
        writer.write(ProgressRecord("distil", update, 0.1, loss, {"kl": loss / 2}, learning_rate=1e-3))
    writer.close()
    events = accumulator.EventAccumulator(str(tmp_path / "distil"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"loss/total", "loss/kl", "learning_rate"}
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("loss/total")] == [(1, 1.0), (2, 0.5)]


def test_asking_for_tensorboard_where_it_is_not_installed_names_the_field_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`spec\.tracking\.tensorBoard`.*pip install 'limbeck\[tensorboard\]'"):
        require_tensorboard(package="tensorboard_that_nobody_has")
