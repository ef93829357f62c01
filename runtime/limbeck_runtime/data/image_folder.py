"""Samples as single image files in folders, the first folder being the class (column `folder`).

`cat/01.png` has the key `cat/01.png`; files of the same name with other endings beside it (`cat/01.txt`) are its
other parts. A shard is a share of the files, chosen by the hash of their paths: so each shard holds all classes,
and a new file changes one shard only (but for the rare moment when the number of shards doubles).
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from limbeck.api.v1alpha1.data import Columns
from limbeck_runtime.data.compose import DEFAULT_KEY_COLUMN, FOLDER_COLUMN, IMAGE_ENDINGS, compose_sample, key_from
from limbeck_runtime.data.errors import BrokenShardError
from limbeck_runtime.data.samples import MAX_FIELD_BYTES, BadReason, BadSample, RawSample, SampleError
from limbeck_runtime.data.shard_ref import ShardRef
from limbeck_runtime.storage import NotFoundError, ObjectInfo, Storage

# A shard holds about this many images: enough for one read-ahead, few enough to capture in seconds.
IMAGES_PER_SHARD = 1024
_NUM_READS_AHEAD = 16


def list_image_folder(uris: Sequence[str], base: str, storage_options: Mapping[str, str] | None) -> list[ShardRef]:
    """The shares of all files below the folders `uris`; paths are taken relative to `base` if there are several."""
    folder = uris[0].rstrip("/") if len(uris) == 1 else (base.rstrip("/") or ".")
    files: dict[str, ObjectInfo] = {}
    for uri in uris:
        inside = "" if len(uris) == 1 else uri.removeprefix(base).strip("/") + "/"
        for info in Storage.open(uri, options=storage_options).list():
            path = inside + info.path
            if not any(part.startswith((".", "__MACOSX")) for part in path.split("/")):
                _check_name(path)
                files[path] = info
    num_images = sum(map(_is_image, files))
    num_shares = 1
    while num_shares * IMAGES_PER_SHARD < num_images:
        num_shares *= 2
    shares: list[list[str]] = [[] for _ in range(num_shares)]
    for path in sorted(files):
        digest = hashlib.sha256(_stem(path).encode()).digest()
        shares[int.from_bytes(digest[:8], "big") % num_shares].append(path)
    return [
        _share(folder, number, num_shares, paths, files)
        for number, paths in enumerate(shares)
        if any(map(_is_image, paths))
    ]


def read_image_folder(
    ref: ShardRef, columns: Columns, storage_options: Mapping[str, str] | None = None
) -> Iterator[RawSample | BadSample]:
    """Yield the images of one share in the order of their paths, files being read ahead.

    Raises:
        BrokenShardError: a file that was listed is gone.
    """
    assert ref.folder is not None
    assert columns.image is not None
    storage = Storage.open(ref.folder, options=storage_options)
    image_endings = [ending.strip() for ending in columns.image.lower().split(";")]
    present = frozenset(ref.files)
    images = [path for path in ref.files if _ending(path) in image_endings]

    def read(path: str) -> RawSample | BadSample:
        return _sample(ref, storage, path, present, columns)

    with ThreadPoolExecutor(_NUM_READS_AHEAD, "limbeck-files") as pool:
        ahead: deque[Future[RawSample | BadSample]] = deque()
        try:
            for path in images:
                ahead.append(pool.submit(read, path))
                if len(ahead) == _NUM_READS_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except NotFoundError as error:
            raise BrokenShardError(ref.uri, None, str(error)) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _sample(
    ref: ShardRef, storage: Storage, path: str, present: frozenset[str], columns: Columns
) -> RawSample | BadSample:
    def lookup(column: str) -> object:
        if column == columns.image:
            return _content(storage, path)
        if column == FOLDER_COLUMN:
            return path.split("/")[0] if "/" in path else None
        beside = f"{_stem(path)}.{column}"
        return _content(storage, beside) if beside in present else None

    key = path
    if columns.key != DEFAULT_KEY_COLUMN:
        try:
            key = key_from(lookup(columns.key))
        except SampleError as error:
            return error.of(ref.uri, path)
    return compose_sample(ref.uri, key, lookup, columns, [path])


def _content(storage: Storage, path: str) -> bytes:
    info = storage.head(path)
    if info is not None and info.size > MAX_FIELD_BYTES:
        raise SampleError(BadReason.TOO_MANY_BYTES, f"{info.size} bytes, at most {MAX_FIELD_BYTES}")
    return storage.get(path)


def _share(folder: str, number: int, num_shares: int, paths: list[str], files: Mapping[str, ObjectInfo]) -> ShardRef:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path}\0{files[path].size}\0{files[path].etag}\0".encode())
    name = f"{number:05d}-of-{num_shares:05d}"
    return ShardRef(
        uri=f"{folder}#{name}",
        name=name,
        size=sum(files[path].size for path in paths),
        etag=digest.hexdigest(),
        folder=folder,
        files=tuple(paths),
    )


def _check_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise ValueError(f"names of image files must be UTF-8, got '{shown}'; rename the file") from None


def _is_image(path: str) -> bool:
    return _ending(path) in IMAGE_ENDINGS


def _stem(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def _ending(path: str) -> str:
    return path.rpartition("/")[2].rpartition(".")[2].lower()
