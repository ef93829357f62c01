"""Stages: done once, found again by their fingerprint, done again when anything of theirs is lost or changed."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from limbeck.api.v1alpha1.job import CompressionJob
from limbeck_runtime.commitlog import FencedError
from limbeck_runtime.context import Context, open_context
from limbeck_runtime.errors import InterruptedRunError
from limbeck_runtime.stages import is_done, run_stage
from limbeck_runtime.storage import Storage

OpenRun = Callable[[], Any]


@pytest.fixture
def open_run(open_storage: Callable[[], Storage]) -> OpenRun:
    """Opens one run after another on the same output."""
    job = CompressionJob.model_validate(
        {
            "metadata": {"name": "emoji"},
            "spec": {
                "task": "ImageText",
                "student": {"model": {"loader": "Transformers", "uri": "clip"}},
                "data": {"train": {"uri": "a.tar", "format": "WebDataset"}, "validationPercent": 5},
                "pipeline": [{"name": "tune", "finetune": {}}],
                "output": {"uri": "replaced"},
            },
        }
    )

    @contextmanager
    def open_one() -> Iterator[Context]:
        with open_context(
            job, stop=threading.Event(), stream=io.StringIO(), attempt=1, output=open_storage()
        ) as context:
            yield context

    return open_one


class Work:
    """Counts how often it is done."""

    def __init__(self, text: str = "weights") -> None:
        self.times = 0
        self._text = text

    def __call__(self, folder: Path) -> Mapping[str, Any]:
        self.times += 1
        (folder / "model").write_text(self._text)
        return {"row": self.times}


def test_a_stage_is_done_once_and_found_by_the_next_run(open_run: OpenRun) -> None:
    work = Work()
    for reused in (False, True):
        with open_run() as context:
            stage = run_stage(context, "distil", "print", work)
            assert stage.reused is reused
            assert stage.record == {"row": 1}
            assert (stage.folder / "model").read_text() == "weights"
    assert work.times == 1


def test_another_fingerprint_is_another_stage(open_run: OpenRun) -> None:
    work = Work()
    with open_run() as context:
        run_stage(context, "distil", "before", work)
    with open_run() as context:
        assert run_stage(context, "distil", "after", work).record == {"row": 2}


def test_a_stage_whose_file_was_damaged_is_done_again(open_run: OpenRun) -> None:
    work = Work()
    with open_run() as context:
        run_stage(context, "distil", "print", work)
        data = next(info.path for info in context.output.list("stages/distil/data"))
        context.output.delete(data)
        context.output.create(data, b"wrong")
    with open_run() as context:
        assert run_stage(context, "distil", "print", work).reused is False
    assert work.times == 2


def test_work_that_raises_leaves_nothing(open_run: OpenRun) -> None:
    def work(folder: Path) -> Mapping[str, Any]:
        (folder / "model").write_text("half")
        raise RuntimeError("no")

    with open_run() as context, pytest.raises(RuntimeError):
        run_stage(context, "distil", "print", work)
    with open_run() as context:
        assert context.output.list("stages/distil/data") == []


def test_a_run_that_was_taken_over_commits_nothing(open_run: OpenRun) -> None:
    with open_run() as old:
        with open_run() as new:
            run_stage(new, "distil", "print", Work("new"))
        with pytest.raises(FencedError):
            run_stage(old, "distil", "other", Work("old"))
    with open_run() as context:
        assert (run_stage(context, "distil", "print", Work()).folder / "model").read_text() == "new"


def test_no_stage_starts_after_a_request_to_stop(open_run: OpenRun) -> None:
    work = Work()
    with open_run() as context:
        context.stop.set()
        with pytest.raises(InterruptedRunError):
            run_stage(context, "distil", "print", work)
    assert work.times == 0


def test_a_stage_is_done_for_its_own_fingerprint_only(open_run: OpenRun) -> None:
    with open_run() as context:
        assert not is_done(context, "tune", "a")
        run_stage(context, "tune", "a", Work())
        assert is_done(context, "tune", "a")
        assert not is_done(context, "tune", "b")
        assert not is_done(context, "other", "a")
