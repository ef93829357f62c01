"""A run that is killed, stopped or taken over in the middle ends, when it is run again, as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from limbeck_runtime.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.slow]

Job = dict[str, Any]
StartDriver = Callable[..., Any]
# 18 steps, a checkpoint after each; two views of three shards are captured.
STEPS = 18
DISTIL = {"epochs": 6, "batchSize": 12, "learningRate": 1e-3, "checkpointIntervalSeconds": 0, "emaDecayPercent": 90}


@pytest.fixture(scope="module")
def job_at(make_job: Callable[..., Job], save_model: Callable[..., Path], vocabulary: int) -> Callable[[Path], Job]:
    """The same job with its output at one place or another."""
    teacher = save_model("clip", seed=1, width=32, layers=2, vocabulary=vocabulary)
    student = save_model("clip", seed=2, width=16, layers=1, vocabulary=vocabulary, projection=12)

    def make(output: Path) -> Job:
        job = make_job(
            "ImageText",
            output,
            teacher={"loader": "Transformers", "uri": str(teacher)},
            student={"loader": "Transformers", "uri": str(student)},
            columns={"image": "png", "text": "txt"},
            pipeline=[{"name": "distil", "distil": DISTIL}],
        )
        job["spec"]["data"]["augmentation"] = {"views": 2, "minCropPercent": 80, "flip": True, "rotationDegrees": 10}
        return job

    return make


def _weights(output: Path) -> str:
    return hashlib.sha256((output / "model" / "model.safetensors").read_bytes()).hexdigest()


def _shards(output: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every committed shard of teacher outputs."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (output / "store").rglob("*.arrow")}


@pytest.fixture(scope="module")
def undisturbed(
    job_at: Callable[[Path], Job],
    run_in_threads: Callable[..., list[dict[str, Any]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Weights of a run that nobody disturbed, with the teacher in a thread."""
    output = tmp_path_factory.mktemp("undisturbed")
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the drivers have it: sums come out bit for bit the same only then
    events = run_in_threads(job_at(output))
    torch.set_num_threads(num_threads)
    assert [event["at"] for event in events if event["event"] == "checkpoint"][-1] == STEPS
    return _weights(output)


def _run_until(driver: Any, reached: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    event: dict[str, Any]
    for event in driver.events():
        if reached(event):
            return event
    pytest.fail(f"the run ended before its time: {driver.wait().outcome}")


def _kill_and_see_everything_gone(driver: Any) -> None:
    """SIGKILL of the driver's group; Ray's processes must follow it."""
    started = psutil.Process(driver.process.pid).children(recursive=True)
    driver.kill()
    driver.process.wait()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive, [process.cmdline() for process in alive]
    driver.wait()


def _checkpoint_at(step: int) -> Callable[[Mapping[str, Any]], bool]:
    return lambda event: event["event"] == "checkpoint" and event["at"] >= step


def test_runs_killed_at_random_moments_end_with_the_same_weights_and_capture_nothing_twice(
    undisturbed: str, job_at: Callable[[Path], Job], start_driver: StartDriver, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    job = job_at(output)
    moments = sorted(random.Random(7).sample(range(1, STEPS), 2))
    kills: list[Callable[[Mapping[str, Any]], bool]] = [
        lambda event: event["event"] == "capture_progress" and event["done"] > 0,
        *map(_checkpoint_at, moments),
    ]
    stored: dict[str, tuple[int, int]] = {}
    for reached in kills:
        driver = start_driver(job)
        _run_until(driver, reached)
        _kill_and_see_everything_gone(driver)
        found = _shards(output)
        assert stored.items() <= found.items()
        stored = found
        assert not (output / "result.json").exists()
    ended = start_driver(job).wait()
    assert ended.code == 0, ended.errors
    assert _weights(output) == undisturbed
    assert stored.items() <= _shards(output).items()
    (resumed,) = ended.of("resumed")
    assert moments[-1] - 1 <= resumed["at"] < STEPS
    assert not list(output.rglob(".tmp-*"))
    last = ended.of("capture_progress")[-1]
    assert last["reused"] >= len(stored)
    assert last["done"] == last["total"] == 6


def _upload(storage: Storage, prefix: str, folder: Path) -> str:
    """All files of a folder, below a prefix of the store; the address of that."""
    for path in folder.rglob("*"):
        if path.is_file():
            storage.create_from_file(f"{prefix}/{path.relative_to(folder)}", path)
    return f"{storage.uri}/{prefix}"


@pytest.mark.s3
def test_a_run_on_s3_that_is_killed_ends_with_the_weights_of_a_local_one(
    undisturbed: str,
    job_at: Callable[[Path], Job],
    data: Path,
    s3_server: Any,
    start_driver: StartDriver,
    tmp_path: Path,
) -> None:
    storage = s3_server.open()
    job = job_at(tmp_path)
    spec = job["spec"]
    spec["output"]["uri"] = f"{storage.uri}/out"
    of_data = _upload(storage, "data", data)
    spec["data"]["train"]["uri"] = f"{of_data}/train-{{0..2}}.tar"
    spec["data"]["validation"]["uri"] = f"{of_data}/validation.tar"
    for role in ("teacher", "student"):
        spec[role]["model"]["uri"] = _upload(storage, role, Path(spec[role]["model"]["uri"]))
    environment = {f"AWS_{name.upper()}": value for name, value in s3_server.options.items()}
    driver = start_driver(job, environment=environment)
    _run_until(driver, _checkpoint_at(6))
    _kill_and_see_everything_gone(driver)
    stored = {info.path: info.etag for info in storage.list("out/store/shards")}
    ended = start_driver(job, environment=environment).wait()
    assert ended.code == 0, ended.errors
    assert ended.of("resumed")
    assert hashlib.sha256(storage.get("out/model/model.safetensors")).hexdigest() == undisturbed
    assert stored
    assert stored.items() <= {info.path: info.etag for info in storage.list("out/store/shards")}.items()


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_from_there(
    undisturbed: str, job_at: Callable[[Path], Job], start_driver: StartDriver, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    driver = start_driver(job_at(output), "--metrics-port", "0")
    url = _run_until(driver, lambda event: event["event"] == "metrics_serving")["url"]
    _run_until(driver, _checkpoint_at(5))
    metrics = urllib.request.urlopen(url, timeout=10).read().decode()
    driver.process.send_signal(signal.SIGTERM)
    ended = driver.wait()
    assert (ended.code, ended.outcome["reason"]) == (130, "Stopped"), ended.errors
    assert ended.events[-1]["state"] == "Stopped"
    series = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert float(series['limbeck_train_updates_total{step="distil"}']) >= 5
    assert float(series["limbeck_store_captured_shards_total"]) >= 1
    saved = ended.of("checkpoint")[-1]["at"]
    assert f"stopped in step distil after {saved} of {STEPS} batches" in ended.outcome["message"]
    again = start_driver(job_at(output)).wait()
    assert again.code == 0, again.errors
    assert [event["at"] for event in again.of("resumed")] == [saved]
    assert _weights(output) == undisturbed


def test_of_two_drivers_on_one_output_the_older_stops_and_the_result_is_whole(
    undisturbed: str, job_at: Callable[[Path], Job], start_driver: StartDriver, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    older = start_driver(job_at(output))
    _run_until(older, _checkpoint_at(3))
    # As a machine that hangs and comes back.
    older.process.send_signal(signal.SIGSTOP)
    newer = start_driver(job_at(output)).wait()
    older.process.send_signal(signal.SIGCONT)
    ended = older.wait()
    assert newer.code == 0, newer.errors
    assert newer.of("run_started")[0]["epoch"] == 2
    assert (ended.code, ended.outcome["reason"]) == (1, "Fenced"), ended.errors
    assert _weights(output) == undisturbed
    listed = json.loads((output / "result.json").read_text())["files"]
    for name, sha256 in listed.items():
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == sha256
