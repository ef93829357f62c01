"""A model's files on this machine: local ones where they lie, others copied once into a cache.

Left out on purpose: eviction. The cache is a folder that may be deleted at any time between runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from limbeck_runtime.models.errors import ModelFilesError

if TYPE_CHECKING:
    from limbeck_runtime.storage import ObjectInfo, Storage

_CHUNK_BYTES = 16 * 2**20


def local_model_files(
    uri: str, *, field: str, cache_dir: Path, storage_options: Mapping[str, str] | None = None
) -> Path:
    """The directory or file that `uri` names. Raises ModelFilesError where there is nothing.

    A copy is keyed by the files' sizes and tags, so that changed files are copied anew; it appears under its name
    only when it is whole.
    """
    from limbeck_runtime.storage import Storage

    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        path = Path(rest if separator else uri).expanduser()
        if not path.exists():
            raise ModelFilesError(f"`{field}.uri` must name an existing directory or file, got {uri}; nothing is there")
        return path.resolve()
    storage = Storage.open(uri, options=storage_options)
    objects, is_file = storage.list(), False
    if not objects:  # the URI may name one file rather than a folder
        parent, _, name = uri.rstrip("/").rpartition("/")
        found = Storage.open(parent, options=storage_options)
        info = found.head(name) if parent.partition("://")[2] else None
        if info is None:
            raise ModelFilesError(f"`{field}.uri` must name existing files, got {uri}; nothing is there")
        storage, objects, is_file = found, [info], True
    directory = _cached(storage, objects, cache_dir)
    return directory / objects[0].path if is_file else directory


def default_cache_dir() -> Path:
    """Where copies are kept unless the caller says otherwise."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "limbeck" / "models"


def _cached(storage: Storage, objects: Sequence[ObjectInfo], cache_dir: Path) -> Path:
    listing = json.dumps([storage.uri, *([info.path, info.size, info.etag] for info in objects)])
    target = cache_dir / hashlib.sha256(listing.encode()).hexdigest()
    if target.is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".tmp-") as scratch:
        copy = Path(scratch) / "files"
        for info in objects:
            _copy(storage, info, copy / info.path)
        try:
            copy.rename(target)
        except OSError:
            if not target.is_dir():  # another process may have been faster with the same files
                raise
            shutil.rmtree(copy)
    return target


def _copy(storage: Storage, info: ObjectInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, info.size, _CHUNK_BYTES):
            file.write(storage.get_range(info.path, start, min(_CHUNK_BYTES, info.size - start)))
        if file.tell() != info.size:
            raise ModelFilesError(f"{storage.uri}/{info.path} changed while it was copied; run again")
        file.flush()
        os.fsync(file.fileno())
