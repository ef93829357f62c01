"""Which files a data source means: brace patterns and folders, resolved once, in a stable order."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from limbeck.api.v1alpha1.data import DataFormat, DataSource
from limbeck_runtime.data.image_folder import list_image_folder
from limbeck_runtime.data.patterns import expand_braces, fixed_folder
from limbeck_runtime.data.shard_file import split_uri
from limbeck_runtime.data.shard_ref import ShardRef
from limbeck_runtime.storage import ObjectInfo, Storage

# Which files of a folder count where the source names only the folder.
_ENDINGS = {
    DataFormat.WEB_DATASET: (".tar", ".tar.gz", ".tgz"),
    DataFormat.PARQUET: (".parquet",),
    DataFormat.JSON_LINES: (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
}
_NUM_LOOKUP_THREADS = 16


def resolve_shards(source: DataSource, storage_options: Mapping[str, str] | None = None) -> list[ShardRef]:
    """All shards of a source, each looked up: in the pattern's order, or by name where a folder is given.

    Raises:
        ValueError: a file is missing, named twice, or nothing is found at all.
    """
    uris = expand_braces(source.uri)
    base = _base(source.uri)
    if source.format is DataFormat.IMAGE_FOLDER:
        refs = list_image_folder(uris, base, storage_options)
    else:
        with ThreadPoolExecutor(min(_NUM_LOOKUP_THREADS, len(uris)), "limbeck-lookup") as pool:
            found = pool.map(lambda uri: _files(uri, base, source.format, storage_options), uris)
            refs = [ref for refs_of_uri in found for ref in refs_of_uri]
    if not refs:
        raise ValueError(
            f"`uri` must name {source.format.value} data, got '{source.uri}', where none was found; "
            "correct the place or the format"
        )
    seen: set[str] = set()
    for ref in refs:
        if ref.uri in seen:
            raise ValueError(f"`uri` must name each file once, got '{ref.uri}' twice; correct '{source.uri}'")
        seen.add(ref.uri)
    return refs


def _base(pattern: str) -> str:
    """What is left off a file's place to make its name: the part that moves when the data set is moved."""
    if "{" in pattern or pattern.endswith("/"):
        return fixed_folder(pattern)
    return ""


def _files(uri: str, base: str, data_format: DataFormat, storage_options: Mapping[str, str] | None) -> list[ShardRef]:
    if not uri.endswith("/"):
        folder, name = split_uri(uri)
        storage = Storage.open(folder, options=storage_options)
        local = storage.local_path(name)
        info = storage.head(name)
        if info is not None and not (local is not None and local.is_dir()):
            return [_ref(uri, base or uri[: -len(name)], info)]
    listed = Storage.open(uri, options=storage_options).list()
    refs = [
        _ref(f"{uri.rstrip('/')}/{info.path}", base or f"{uri}/", info)
        for info in listed
        if info.path.endswith(_ENDINGS[data_format]) and not _hidden(info.path)
    ]
    if not refs:
        endings = ", ".join(_ENDINGS[data_format])
        raise ValueError(
            f"`uri` must name existing files, got '{uri}': neither a file nor a folder with files that end in "
            f"{endings}; correct the pattern"
        )
    return refs


def _ref(uri: str, base: str, info: ObjectInfo) -> ShardRef:
    return ShardRef(uri=uri, name=uri.removeprefix(base), size=info.size, etag=info.etag)


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/"))
