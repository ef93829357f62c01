"""`limbeck report`: where a job's report lies, and the report itself.

Reads local files and HTTP; object stores through obstore, with the credentials of the environment, where it is
installed. Left out: writing anywhere but to a local file.
"""

from __future__ import annotations

import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from limbeck.cli.cluster import Cluster
from limbeck.cli.exits import OK, UNREACHABLE
from limbeck.cli.failures import CommandError
from limbeck.cli.jobs import outcome, status_of
from limbeck.cli.printable import printable
from limbeck.cli.status_events import result_table
from limbeck.cli.tables import table

_OBJECT_STORES: Final = ("s3", "s3a", "gs", "az", "abfs", "abfss")


def report(cluster: Cluster, name: str, *, open_it: bool, file: str | None) -> int:
    """Say what came out and where the report lies; write it to `file`, or show it in a browser."""
    job = cluster.job(name)
    result = status_of(job).get("result") or {}
    uri = str(result.get("reportUri") or "")
    if not uri:
        raise CommandError(f"{name} has no report yet: {outcome(job)}; `limbeck wait {name}` waits for its end")
    if file is None and not open_it:
        head, *rows = result_table(result)
        for line in table(head, rows):
            print(line)
        print(printable(f"report: {uri}"))
        if result.get("modelUri"):
            print(printable(f"model: {result['modelUri']}"))
        return OK
    content = read(uri)
    if file == "-":
        sys.stdout.buffer.write(content)
        return OK
    place = Path(file) if file else _scratch_file(name)
    try:
        place.write_bytes(content)
    except OSError as error:
        raise CommandError(f"cannot write {place}: {error.strerror}; name another file with -o") from error
    print(printable(str(place)))
    if open_it and not webbrowser.open(place.resolve().as_uri()):
        raise CommandError(f"there is no browser here; open {place} yourself")
    return OK


def read(uri: str) -> bytes:
    """The report's bytes. Raises CommandError."""
    scheme = urlsplit(uri).scheme
    if scheme in _OBJECT_STORES:
        return _from_object_store(uri)
    if scheme in ("http", "https"):
        return _from_web(uri)
    path = Path(unquote(urlsplit(uri).path) if scheme == "file" else uri)
    try:
        return path.read_bytes()
    except OSError as error:
        why = error.strerror or str(error)
        advice = "it is a path inside the job's pods; copy it from the volume that was mounted there"
        raise CommandError(f"the report {uri} cannot be read from this machine: {why}; {advice}") from error


def _from_object_store(uri: str) -> bytes:
    try:
        import obstore
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ModuleNotFoundError as error:
        message = f"reading {uri} needs obstore; run `pip install obstore`, or fetch it with your cloud's own tool"
        raise CommandError(message) from error
    folder, _, name = uri.rpartition("/")
    try:
        return obstore.get(from_url(folder), name).bytes().to_bytes()
    except FileNotFoundError as error:
        raise CommandError(f"there is no report at {uri}; was it moved or deleted?") from error
    except (BaseError, OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        advice = "set the credentials, endpoint and region as your cloud's own tools read them"
        raise CommandError(f"{uri} cannot be read: {first_line}; {advice}", UNREACHABLE) from error


def _from_web(uri: str) -> bytes:
    import urllib3

    try:
        with urllib3.PoolManager(retries=False, timeout=30.0) as pool:
            answer = pool.request("GET", uri)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise CommandError(f"{uri} does not answer: {error}; try again later", UNREACHABLE) from error
    if answer.status != 200:
        raise CommandError(f"{uri} answers {answer.status}; is it there, and are you allowed to read it?")
    return answer.data


def _scratch_file(name: str) -> Path:
    """A file that outlives us: the browser reads it later."""
    return Path(tempfile.mkdtemp(prefix="limbeck-")) / f"{name}-report.html"
