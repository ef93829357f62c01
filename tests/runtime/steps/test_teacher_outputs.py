"""The teacher's outputs as a student meets them: waited for, matched by sample, thrown away where they are corrupt."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck_runtime.data.batch import Batch
from limbeck_runtime.steps.teacher_outputs import TeacherLostError, TeacherOutputs
from limbeck_runtime.storage import LocalFiles, Storage
from limbeck_runtime.store import FeatureCodec, TeacherStore
from limbeck_runtime.store.layout import shard_path
from limbeck_runtime.teacher.sign import Sign

IDENTITIES = {(shard, view): f"{shard}{view}".rjust(64, "0") for shard in (0, 1) for view in (0, 1)}


def _values(shard: int, view: int) -> np.ndarray:
    return (np.arange(6, dtype=np.float32).reshape(3, 2) + 100 * shard + 10 * view).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> TeacherStore:
    storage = Storage.open(str(tmp_path / "store"), files=LocalFiles(durable=False))
    return TeacherStore(storage, tmp_path / "cache", {"logits": FeatureCodec("float32")})


@pytest.fixture
def write(store: TeacherStore) -> Callable[[int, int], Path]:
    """Captures one shard and view; the file of the shard."""

    def write_one(shard: int, view: int) -> Path:
        keys = [f"{shard}/{row}" for row in range(3)]
        identity = IDENTITIES[shard, view]
        store.write(identity, keys, {"logits": _values(shard, view)}, {})
        path = store.storage.local_path(shard_path(identity))
        assert path is not None
        return path

    return write_one


@pytest.fixture
def sign(tmp_path: Path) -> Sign:
    return Sign.put_up(Storage.open(str(tmp_path / "out"), files=LocalFiles(durable=False)), 1)


@pytest.fixture
def outputs(store: TeacherStore, sign: Sign) -> TeacherOutputs:
    return TeacherOutputs(store, IDENTITIES, ("logits",), sign)


def _batch(view: int) -> Batch:
    shards, rows = np.array([1, 0, 1]), np.array([2, 0, 0])
    keys = tuple(f"{shard}/{row}" for shard, row in zip(shards, rows, strict=True))
    return Batch({"pixel_values": torch.zeros(3, 1)}, keys, shards, rows, view)


def test_each_sample_gets_what_was_said_of_it_in_its_view(
    outputs: TeacherOutputs, write: Callable[[int, int], Path]
) -> None:
    for place in IDENTITIES:
        write(*place)
    for view in (0, 1):
        taught = outputs.attach(_batch(view))
        wanted = np.stack([_values(1, view)[2], _values(0, view)[0], _values(1, view)[0]])
        assert np.array_equal(taught.teacher["logits"].numpy(), wanted)
        assert taught.keys == _batch(view).keys


def test_waiting_ends_when_the_shard_is_there(outputs: TeacherOutputs, write: Callable[[int, int], Path]) -> None:
    waiting = threading.Thread(target=outputs.wait_for, args=(0, 1))
    waiting.start()
    write(0, 1)
    waiting.join(10)
    assert not waiting.is_alive()


def test_waiting_ends_when_the_teacher_has_given_up(outputs: TeacherOutputs, sign: Sign) -> None:
    sign.take_down()
    with pytest.raises(TeacherLostError):
        outputs.wait_for(0, 0)


def test_what_was_captured_before_the_teacher_gave_up_can_be_read(
    outputs: TeacherOutputs, sign: Sign, write: Callable[[int, int], Path]
) -> None:
    write(0, 0)
    sign.take_down()
    outputs.wait_for(0, 0)


def _flip(path: Path) -> None:
    """One bit in the middle. The file is replaced, as a disk's corruption does not wait for readers."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_a_corrupt_shard_is_thrown_away_and_waited_for(
    outputs: TeacherOutputs, store: TeacherStore, write: Callable[[int, int], Path]
) -> None:
    _flip(write(0, 0))
    waiting = threading.Thread(target=outputs.wait_for, args=(0, 0))
    waiting.start()
    while store.has(IDENTITIES[0, 0]):
        assert waiting.is_alive(), "a corrupt shard was taken for a whole one"
    write(0, 0)
    waiting.join(10)
    assert not waiting.is_alive()
    write(1, 0)
    assert np.array_equal(outputs.attach(_batch(0)).teacher["logits"].numpy()[1], _values(0, 0)[0])


def test_a_shard_that_is_found_corrupt_by_a_batch_is_waited_for_too(
    outputs: TeacherOutputs, store: TeacherStore, write: Callable[[int, int], Path]
) -> None:
    write(0, 0)
    damaged = write(1, 0)
    for shard in (0, 1):
        outputs.wait_for(shard, 0)
    _flip(damaged)
    # Another process opens the store anew, and with it the shard.
    elsewhere = pickle.loads(pickle.dumps(outputs))
    taught = []
    reading = threading.Thread(target=lambda: taught.append(elsewhere.attach(_batch(0))))
    reading.start()
    while store.has(IDENTITIES[1, 0]):
        assert reading.is_alive(), "a corrupt shard was read"
    write(1, 0)
    reading.join(10)
    assert np.array_equal(taught[0].teacher["logits"].numpy()[0], _values(1, 0)[2])
