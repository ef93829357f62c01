"""How a driver ends: its exit code, its last event and its last line say the same."""

from __future__ import annotations

import errno
import json
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from limbeck_runtime import errors
from limbeck_runtime.commitlog import FencedError
from limbeck_runtime.driver import outcome_of
from limbeck_runtime.storage import LocalFiles, OutOfSpaceError, Storage, StorageError

Job = dict[str, Any]
Drive = Callable[..., Any]
Classification = Callable[..., Job]
OpenRun = Callable[..., Any]
RunHere = Callable[..., list[dict[str, Any]]]

OUTCOMES = [
    (errors.InvalidSpecError("why"), 12, "InvalidSpec"),
    (errors.UserCodeError("why"), 11, "UserCodeError"),
    (errors.GateFailedError("why"), 10, "GateFailed"),
    (errors.InterruptedRunError("why"), 130, "Stopped"),
    (FencedError("why"), 1, "Fenced"),
    (StorageError("why"), 1, "StorageError"),
    (OutOfSpaceError("why"), 1, "StorageError"),
]


@pytest.mark.parametrize(("error", "code", "reason"), OUTCOMES)
def test_each_kind_of_error_has_its_code_and_word(error: Exception, code: int, reason: str) -> None:
    outcome = outcome_of(error)
    assert (outcome.exit_code, outcome.reason, outcome.message) == (code, reason, "why")


def test_an_unknown_error_may_be_tried_again_and_names_its_type() -> None:
    outcome = outcome_of(RuntimeError("odd"))
    assert (outcome.exit_code, outcome.reason, outcome.message) == (1, "Error", "RuntimeError: odd")


class FromRustError(Exception):
    """As safetensors says it."""


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/scratch/evaluation.npz"), "/scratch/evaluation.npz"),
        (OSError(errno.ENOSPC, "No space left on device"), tempfile.gettempdir()),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), tempfile.gettempdir()),
        (FromRustError('I/O error: Os { message: "No space left on device" } (os error 28)'), tempfile.gettempdir()),
    ],
)
def test_a_library_that_meets_a_full_disk_is_explained(error: Exception, place: str) -> None:
    wrapped = RuntimeError("the export failed")
    wrapped.__cause__ = error
    for told in (error, wrapped):
        outcome = outcome_of(told)
        assert (outcome.exit_code, outcome.reason) == (1, "StorageError")
        assert place in outcome.message
        assert "free space there, or set TMPDIR" in outcome.message


def _assert_told(ended: Any, code: int, reason: str, message: str) -> None:
    """The process, its last event and its last line agree."""
    assert ended.outcome is not None, ended.errors
    assert message in ended.outcome["message"]
    assert (ended.code, ended.outcome["exit_code"], ended.outcome["reason"]) == (code, code, reason)
    assert ended.events[-1]["event"] == "run_finished"
    assert (ended.events[-1]["reason"], ended.events[-1]["message"]) == (reason, ended.outcome["message"])


def test_a_setting_that_this_version_lacks_ends_the_run_before_it_starts(
    drive: Drive, classification: Classification, tmp_path: Path
) -> None:
    job = classification(tmp_path / "out", export={"formats": ["LiteRt"]})
    _assert_told(drive(job), 12, "InvalidSpec", "`spec.export.formats[0]` must be one of Safetensors, Onnx")
    assert not (tmp_path / "out").exists()


def test_a_job_that_is_none_says_which_field(drive: Drive, classification: Classification, tmp_path: Path) -> None:
    job = classification(tmp_path / "out")
    job["spec"]["data"]["train"]["format"] = "Tar"
    _assert_told(drive(job), 12, "InvalidSpec", "spec.data.train.format")


def test_an_output_that_cannot_be_written_is_named(
    drive: Drive, classification: Classification, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    _assert_told(drive(classification(tmp_path / "file" / "out")), 1, "StorageError", f"{tmp_path}/file")


USER_CODE = """
def broken():
    raise KeyError("weights of mine")
"""


def test_what_a_users_function_raises_is_the_users(
    drive: Drive, classification: Classification, tmp_path: Path
) -> None:
    (tmp_path / "my_models.py").write_text(USER_CODE)
    model = {"loader": "Python", "function": "my_models:broken", "imageSize": 16}
    ended = drive(classification(tmp_path / "out", student=model), environment={"PYTHONPATH": str(tmp_path)})
    _assert_told(
        ended, 11, "UserCodeError", "my_models:broken raised KeyError: 'weights of mine' (my_models.py, line 3)"
    )
    assert 'raise KeyError("weights of mine")' in ended.errors


@pytest.mark.slow
def test_a_missed_target_is_published_and_told(
    drive: Drive, classification: Classification, classifier: Callable[..., Mapping[str, Any]], tmp_path: Path
) -> None:
    job = classification(
        tmp_path / "out",
        teacher=classifier(),
        target={"sizeRatio": 50, "minRecoveryPercent": 1},
        pipeline=[{"name": "int8", "quantize": {"activations": "None"}}],
    )
    del job["spec"]["student"]
    ended = drive(job)
    _assert_told(ended, 10, "GateFailed", "`spec.target.sizeRatio` must be at least 50, got")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["gate"]["passed"] is False
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
    assert ended.events[-1]["model"] == f"{tmp_path}/out/model"
    assert ended.events[-1]["state"] == "Failed"


class FullDisk(LocalFiles):
    """A disk that has no room for one byte more once `full` is set."""

    def __init__(self) -> None:
        super().__init__(durable=False)
        self.full = threading.Event()

    def write(self, descriptor: int, data: memoryview) -> None:
        if self.full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(descriptor, data)


def test_a_full_disk_says_so_and_leaves_nothing_half_written(
    open_run: OpenRun, run_here: RunHere, classification: Classification, tmp_path: Path
) -> None:
    from limbeck_runtime.pipeline import run

    job = classification(tmp_path / "out")
    disk = FullDisk()
    with open_run(job, output=Storage.open(str(tmp_path / "out"), files=disk)) as context:
        disk.full.set()
        with pytest.raises(OutOfSpaceError, match="out") as caught:
            run(context)
    assert outcome_of(caught.value).exit_code == 1
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    assert not (tmp_path / "out" / "result.json").exists()
    run_here(job)
    assert (tmp_path / "out" / "result.json").exists()


def test_a_driver_that_was_taken_over_commits_nothing_more(
    open_run: OpenRun, run_here: RunHere, classification: Classification, tmp_path: Path
) -> None:
    from limbeck_runtime.pipeline import run

    job = classification(tmp_path / "out")
    with open_run(job) as older:
        run_here(job)
        published = {path: path.read_bytes() for path in (tmp_path / "out" / "model").iterdir()}
        with pytest.raises(FencedError, match="another driver has taken over"):
            run(older)
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "model").iterdir()} == published
