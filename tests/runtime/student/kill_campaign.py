"""Kills a run before, within and after each operation on the disk, and goes on with it. Not a test: a script.

It imports torch once and forks a child for each kill point. Prints a JSON object: {operations, points, wrong: [...]}.
Run: python kill_campaign.py FOLDER STRIDE EPOCHS SEED   (a stride of 1 takes every kill point)
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType

from limbeck_runtime.local_files import LocalFiles
from limbeck_runtime.storage import Storage
from limbeck_runtime.student.checkpoint import CheckpointPlace
from limbeck_runtime.student.loop import train
from limbeck_runtime.student.parts import Worker
from limbeck_runtime.student.sampler import SamplePlan


class KillingFiles(LocalFiles):
    """A disk whose operation number `at` is the last thing that the process does, or would have done.

    It syncs nothing: a killed process loses nothing that it has handed to the kernel, and the hundreds of runs
    would wait for the disk.
    """

    def __init__(self, at: int, moment: str) -> None:
        super().__init__(durable=False)
        self.at, self.moment = at, moment
        self.operations: list[str] = []

    def _around(self, name: str, *arguments: object) -> object:
        self.operations.append(name)
        now = len(self.operations) == self.at
        if now and self.moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if now and self.moment == "within":
            descriptor, data = arguments
            super().write(descriptor, data[: len(data) // 2])  # type: ignore[arg-type,index]
            os.kill(os.getpid(), signal.SIGKILL)
        result = getattr(super(), name)(*arguments)
        if now and self.moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def open_new(self, path: Path) -> int:
        return self._around("open_new", path)  # type: ignore[return-value]

    def write(self, descriptor: int, data: memoryview) -> None:
        self._around("write", descriptor, data)

    def fsync(self, descriptor: int) -> None:
        self._around("fsync", descriptor)

    def close(self, descriptor: int) -> None:
        self._around("close", descriptor)

    def link(self, source: Path, target: Path) -> None:
        self._around("link", source, target)

    def unlink(self, path: Path) -> None:
        self._around("unlink", path)

    def make_dir(self, path: Path) -> None:
        self._around("make_dir", path)

    def fsync_dir(self, path: Path) -> None:
        self._around("fsync_dir", path)


def run(tiny: ModuleType, plan: SamplePlan, folder: Path, files: LocalFiles) -> str:
    """The tiny run with a checkpoint at every step, dropout and averaging; hash of its weights."""
    place = CheckpointPlace(Storage.open(str(folder), files=files), "fingerprint")
    checkpoints = place.open(0, {"test": "kill campaign"})
    settings = tiny.tiny_settings(plan, ema_decay_percent=90)
    try:
        result = train(tiny.build_tiny(Worker(), plan=plan, dropout=0.3), settings, checkpoints=checkpoints)
    finally:
        checkpoints.close()
    digest = hashlib.sha256()
    for name, tensor in sorted(result.weights.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def main(folder: Path, stride: int, epochs: int, seed: int) -> None:
    specification = importlib.util.spec_from_file_location("tiny", Path(__file__).with_name("conftest.py"))
    assert specification is not None
    assert specification.loader is not None
    tiny = importlib.util.module_from_spec(specification)
    sys.modules["tiny"] = tiny
    specification.loader.exec_module(tiny)
    tiny.torch.set_num_threads(1)
    plan = tiny.tiny_plan(epochs=epochs, batch_size=8, seed=seed)
    counting = KillingFiles(0, "before")
    expected = run(tiny, plan, folder / "undisturbed", counting)
    operations = counting.operations
    points = [
        (at, moment)
        for at, name in enumerate(operations, start=1)
        for moment in (("before", "within", "after") if name == "write" else ("before", "after"))
    ][::stride]
    wrong = [fault for at, moment in points for fault in faults(tiny, plan, folder, expected, at, moment)]
    print(json.dumps({"points": len(points), "operations": len(operations), "wrong": wrong}))


def faults(tiny: ModuleType, plan: SamplePlan, folder: Path, expected: str, at: int, moment: str) -> list[str]:
    """Kill the run at one point, go on with it, and say what is not as it should be then."""
    place = folder / f"{at}-{moment}"
    child = os.fork()
    if not child:
        run(tiny, plan, place, KillingFiles(at, moment))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        return [f"{place.name} was not killed: {status}"]
    found = []
    if run(tiny, plan, place, LocalFiles(durable=False)) != expected:
        found.append(f"{place.name} ended with other weights")
    files = sorted(file.name for file in place.rglob("*") if file.is_file())
    debris = [name for name in files if name.startswith(".tmp-")]
    states = [name for name in files if name.endswith(".safetensors")]
    if debris or len(states) != 2:
        found.append(f"{place.name} left {debris} and the states {states}")
    shutil.rmtree(place)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:5]))
