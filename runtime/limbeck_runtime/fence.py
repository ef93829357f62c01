"""The claim that lets one driver at a time commit; see commitlog.py for how the log enforces it.

Also the small JSON objects that fences and commits are: each carries its own hash, and a token that tells its writer
that it was he who created it. A request may be repeated after an error although its first try had succeeded.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck_runtime.storage import AlreadyExistsError, NotFoundError, Storage, StorageError

_FENCES = "fence"


class FencedError(StorageError):
    """A newer driver has taken over; this one must stop without writing anything more."""


class CorruptObjectError(StorageError):
    """A JSON object is not what was written."""


@dataclass(frozen=True)
class Fence:
    """The right to commit below `storage`, held until somebody claims a higher epoch."""

    storage: Storage
    epoch: int
    owner: Mapping[str, Any]

    @classmethod
    def claim(cls, storage: Storage, owner: Mapping[str, Any]) -> Fence:
        """Take the next epoch. `owner` tells people who did (job UID, attempt, pod, host, pid)."""
        token = uuid.uuid4().hex
        while True:
            epoch = 1 + max((number_of(info.path) for info in storage.list(_FENCES)), default=0)
            body = {"epoch": epoch, "owner": json.loads(json.dumps(owner)), "token": token}
            if create_owned(storage, numbered_path(_FENCES, epoch), body):
                return cls(storage, epoch, owner)

    def check(self) -> None:
        """Raise FencedError if there is a newer holder. Epochs have no gaps, so looking for the next one suffices."""
        if self.storage.head(numbered_path(_FENCES, self.epoch + 1)) is not None:
            raise FencedError(
                f"epoch {self.epoch} of {self.storage.uri} is over: another driver has taken over; this one stops"
            )


def numbered_path(folder: str, number: int) -> str:
    """The object that holds number `number` of a series."""
    return f"{folder}/{number:08d}.json"


def number_of(path: str) -> int:
    """The number that a name below fence/, commits/ or data/ starts with; 0 for a file that is not ours."""
    match = re.match(r"\d+", path.rpartition("/")[2])
    return int(match.group()) if match else 0


def create_owned(storage: Storage, path: str, body: Mapping[str, Any]) -> bool:
    """Create a JSON object that carries its own hash; False if the name was taken by somebody else.

    A request that was answered by an error and repeated may have succeeded the first time: the token in the body tells.
    """
    text = json.dumps({**body, "sha256": _hash(body)}, indent=1, sort_keys=True)
    try:
        storage.create(path, text.encode())
        return True
    except AlreadyExistsError:
        try:
            return bool(read_object(storage, path).get("token") == body["token"])
        except (CorruptObjectError, NotFoundError):
            return False


def read_object(storage: Storage, path: str) -> dict[str, Any]:
    """An object that `create_owned` wrote. Raises NotFoundError, CorruptObjectError."""
    try:
        body = json.loads(storage.get(path))
        recorded = body.pop("sha256")
    except (ValueError, KeyError, AttributeError) as error:
        raise CorruptObjectError(f"{path} in {storage.uri} is not readable") from error
    if recorded != _hash(body):
        raise CorruptObjectError(f"{path} in {storage.uri} has another hash than when it was written")
    return dict(body)


def _hash(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
