"""Objects behind obstore, for storage.py: S3, Google Cloud, Azure, memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck_runtime.storage_backend import (
    AlreadyExistsError,
    NotFoundError,
    ObjectInfo,
    RetryPolicy,
    StorageError,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

# Above this a file goes up in parts; a conditional upload in parts does not exist in obstore.
MULTIPART_BYTES = 64 * 2**20


class CloudStore:
    """Objects behind obstore: S3, Google Cloud, Azure, memory."""

    def __init__(self, store: ObjectStore, uri: str) -> None:
        self._store = store
        self._uri = uri

    def local_path(self, path: str) -> None:
        return None

    def get(self, path: str) -> bytes:
        import obstore

        with self._explained("read", path):
            return obstore.get(self._store, path).bytes().to_bytes()

    def get_range(self, path: str, start: int, length: int) -> bytes:
        import obstore

        info = self.head(path)
        if info is None:
            raise NotFoundError(f"cannot read {self._uri}/{path}: no such object")
        length = min(length, info.size - start)
        if length <= 0:
            return b""
        with self._explained("read", path):
            return obstore.get_range(self._store, path, start=start, length=length).to_bytes()

    def head(self, path: str) -> ObjectInfo | None:
        import obstore

        try:
            with self._explained("look up", path):
                return _object_info(obstore.head(self._store, path))
        except NotFoundError:
            return None

    def create(self, path: str, data: memoryview) -> None:
        import obstore

        with self._explained("create", path):
            obstore.put(self._store, path, data, mode="create")

    def create_from_file(self, path: str, local: Path) -> None:
        import obstore

        if local.stat().st_size <= MULTIPART_BYTES:
            self.create(path, memoryview(local.read_bytes()))
            return
        if self.head(path) is not None:
            raise AlreadyExistsError(f"cannot create {self._uri}/{path}: it exists already")
        with self._explained("create", path):
            obstore.put(
                self._store, path, local, use_multipart=True, chunk_size=MULTIPART_BYTES // 4, max_concurrency=4
            )

    def list(self, prefix: str) -> list[ObjectInfo]:
        import obstore

        with self._explained("list", prefix):
            return [_object_info(meta) for batch in obstore.list(self._store, prefix or None) for meta in batch]

    def delete(self, path: str) -> None:
        import obstore

        with contextlib.suppress(NotFoundError), self._explained("delete", path):
            obstore.delete(self._store, path)

    def remove_temporary(self, prefix: str) -> int:
        return 0  # a cloud shows no object before all of it arrived

    @contextlib.contextmanager
    def _explained(self, verb: str, path: str) -> Iterator[None]:
        from obstore import exceptions

        target = f"{self._uri}/{path}"
        try:
            yield
        except exceptions.AlreadyExistsError as error:
            raise AlreadyExistsError(f"cannot {verb} {target}: it exists already") from error
        except FileNotFoundError as error:
            if verb == "create":
                raise StorageError(f"cannot create {target}: there is no such bucket; create it first") from error
            raise NotFoundError(f"cannot {verb} {target}: no such object") from error
        except (exceptions.BaseError, OSError) as error:
            raise StorageError(f"cannot {verb} {target}: {_first_line(error)}") from error


def connect(uri: str, options: Mapping[str, str], retry: RetryPolicy) -> ObjectStore:
    from obstore import exceptions
    from obstore.store import from_url

    endpoint = options.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    # The whole-request limit covers the body, so it must allow for a large upload; stalls end by the read limit.
    client: ClientConfig = {
        "timeout": timedelta(seconds=600),
        "read_timeout": timedelta(seconds=60),
        "allow_http": endpoint.startswith("http://"),
    }
    retries: RetryConfig = {
        "max_retries": retry.max_retries,
        "retry_timeout": timedelta(seconds=retry.timeout_seconds),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
    }
    try:
        store: ObjectStore = from_url(uri, config=dict(options), client_options=client, retry_config=retries)  # type: ignore[call-overload]
    except (exceptions.BaseError, ValueError) as error:
        raise ValueError(f"storage {uri} cannot be used: {_first_line(error)}") from error
    return store


# One memory store per name and process, so that all who open memory://NAME see the same objects, as with any other URI.
_MEMORY_STORES: dict[str, ObjectStore] = {}


def memory(name: str) -> ObjectStore:
    from obstore.store import MemoryStore

    return _MEMORY_STORES.setdefault(name, MemoryStore())


def _object_info(meta: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["e_tag"], meta["last_modified"].timestamp())


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
