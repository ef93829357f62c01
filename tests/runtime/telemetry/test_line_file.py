from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from limbeck_runtime.local_files import LocalFiles
from limbeck_runtime.storage import OutOfSpaceError
from limbeck_runtime.telemetry.line_file import LineFile


class FillingFiles(LocalFiles):
    """After so many writes, one stops in the middle."""

    def __init__(self, room: int, code: int = errno.ENOSPC) -> None:
        super().__init__(durable=False)
        self.room, self.code = room, code

    def write(self, descriptor: int, data: memoryview) -> None:
        self.room -= 1
        if self.room == -1:
            os.write(descriptor, data[: len(data) // 2])
            raise OSError(self.code, os.strerror(self.code))
        super().write(descriptor, data)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_line_that_finds_no_room_leaves_nothing_and_the_next_one_is_whole(tmp_path: Path, code: int) -> None:
    path = tmp_path / "events.jsonl"
    lines = LineFile(path, FillingFiles(1, code))
    lines.append(b"first\n")
    with pytest.raises(OutOfSpaceError, match=r"cannot append to .*events\.jsonl: the disk or quota is full; free"):
        lines.append(b"second\n")
    assert path.read_bytes() == b"first\n"
    lines.append(b"third\n")
    lines.close()
    assert path.read_bytes() == b"first\nthird\n"


def test_an_error_that_is_not_about_room_is_raised_as_it_is(tmp_path: Path) -> None:
    lines = LineFile(tmp_path / "events.jsonl", FillingFiles(0, errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        lines.append(b"line\n")
    lines.close()


@pytest.mark.parametrize(("left", "kept"), [(b"one\ntw", b"one\n"), (b"tw", b""), (b"one\n", b"one\n"), (b"", b"")])
def test_what_a_crash_left_of_a_line_is_dropped(tmp_path: Path, left: bytes, kept: bytes) -> None:
    path = tmp_path / "new" / "events.jsonl"
    path.parent.mkdir()
    path.write_bytes(left)
    lines = LineFile(path)
    assert lines.size == len(kept)
    lines.append(b"next\n")
    assert lines.read() == kept + b"next\n"
    assert lines.read(len(kept)) == b"next\n"
    lines.close()
    lines.close()
    assert path.read_bytes() == kept + b"next\n"


def test_lines_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    lines = LineFile(tmp_path / "events.jsonl")
    threads = [
        threading.Thread(target=lambda letter=letter: [lines.append(letter * 300 + b"\n") for _ in range(50)])
        for letter in (b"a", b"b", b"c")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = lines.read().splitlines()
    lines.close()
    assert sorted(found) == sorted([b"a" * 300, b"b" * 300, b"c" * 300] * 50)
