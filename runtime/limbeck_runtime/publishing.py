"""Puts a committed result where people look for it: report.html, model/, and so on, straight under the output.

The commit is the truth; what lies under these names is a copy of it. Object stores know no overwriting here, so a
changed copy is removed and made again, and `result.json`, which lists all files with their hashes, goes first and
comes back last: a reader that finds it finds everything that it names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from limbeck_runtime import names
from limbeck_runtime.storage import NotFoundError, Storage


@dataclass(frozen=True)
class Published:
    """Where the parts of a result lie."""

    report: str
    model: str
    card: str


def publish(output: Storage, files: Mapping[str, Path], fingerprint: str) -> Published:
    """Make `files` (path under the output -> local file) and the list of them visible.

    Raises StorageError; the same call again then completes what is missing.
    """
    hashes = {name: _sha256(path) for name, path in sorted(files.items())}
    text = json.dumps({"fingerprint": fingerprint, "files": hashes}, indent=1).encode()
    if _content(output, names.FILE_RESULT) != text:
        before = _listed(output)
        output.delete(names.FILE_RESULT)
        for name in sorted(before.keys() - files.keys()):
            output.delete(name)
        for name, path in files.items():
            _copy(output, name, path, hashes[name])
        output.create(names.FILE_RESULT, text)
    model = f"{output.uri}/{names.FOLDER_MODEL}"
    return Published(f"{output.uri}/{names.FILE_REPORT_HTML}", model, f"{model}/{names.FILE_MODEL_CARD}")


def _copy(output: Storage, name: str, path: Path, sha256: str) -> None:
    """One file, unless it is there already as it should be."""
    info = output.head(name)
    if info is not None:
        if info.size == path.stat().st_size and hashlib.sha256(output.get(name)).hexdigest() == sha256:
            return
        output.delete(name)
    output.create_from_file(name, path)


def _content(output: Storage, name: str) -> bytes | None:
    try:
        return output.get(name)
    except NotFoundError:
        return None


def _listed(output: Storage) -> dict[str, str]:
    """The files of an earlier result, so that those of them that are no more can go."""
    content = _content(output, names.FILE_RESULT)
    try:
        return dict(json.loads(content)["files"]) if content is not None else {}
    except (ValueError, KeyError, TypeError):
        return {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
