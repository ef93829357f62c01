from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

from limbeck_runtime.storage import LocalFiles, Storage
from limbeck_runtime.teacher.sign import Sign


def test_others_see_the_sign_until_it_is_taken_down(storage: Storage) -> None:
    sign = Sign.put_up(storage, 3)
    assert sign.is_up()
    sign.take_down()
    sign.take_down()
    assert not sign.is_up()


def test_a_student_elsewhere_sees_it_too(tmp_path: Path) -> None:
    sign = Sign.put_up(Storage.open(str(tmp_path)), 1)
    elsewhere: Sign = pickle.loads(pickle.dumps(sign))
    assert elsewhere.is_up()
    sign.take_down()
    assert not elsewhere.is_up()


def test_a_new_driver_removes_what_one_that_was_killed_left_and_not_what_a_newer_one_put_up(storage: Storage) -> None:
    killed, newer = Sign.put_up(storage, 1), Sign.put_up(storage, 3)
    ours = Sign.put_up(storage, 2)
    assert [sign.is_up() for sign in (killed, ours, newer)] == [False, True, True]


def test_a_disk_that_is_full_does_not_keep_the_sign_up(tmp_path: Path) -> None:
    class FullFiles(LocalFiles):
        def open_new(self, path: Path) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Sign.put_up(Storage.open(str(tmp_path)), 1)
    sign = Sign(Storage.open(str(tmp_path), files=FullFiles()), 1)
    assert sign.is_up()
    sign.take_down()
    assert not sign.is_up()
