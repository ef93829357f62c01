"""The sign that a teacher pool is at work, for students in other processes: an object that is there or not.

It is put up before the first student waits, and taken down when no more outputs will come. That way round, because a
disk that is full takes nothing new but lets go of what is there: a student must hear of that too.
Left out: why the pool gave up, which its owner knows (`TeacherPool.check`).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from limbeck_runtime.fence import number_of, numbered_path
from limbeck_runtime.storage import AlreadyExistsError, Storage

_SIGNS = "teacher-at-work"


@dataclass(frozen=True)
class Sign:
    """One pool's sign; picklable."""

    storage: Storage
    epoch: int

    @classmethod
    def put_up(cls, storage: Storage, epoch: int) -> Self:
        """The sign of the driver that holds `epoch`; what drivers before it left there is removed.

        Raises StorageError.
        """
        for info in storage.list(_SIGNS):
            if number_of(info.path) < epoch:
                storage.delete(info.path)
        # Nobody else holds this epoch: if it exists, a request succeeded whose answer was lost.
        with suppress(AlreadyExistsError):
            storage.create(numbered_path(_SIGNS, epoch), b"{}")
        return cls(storage, epoch)

    def is_up(self) -> bool:
        """Whether more outputs may come. Raises StorageError."""
        return self.storage.head(numbered_path(_SIGNS, self.epoch)) is not None

    def take_down(self) -> None:
        """No more outputs will come; the second time does nothing. Raises StorageError."""
        self.storage.delete(numbered_path(_SIGNS, self.epoch))
