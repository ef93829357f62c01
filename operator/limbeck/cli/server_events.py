"""A run's own events from limbeck's server: its stream says when there is news, its history what the news is.

Left out: the training records, which the web page draws.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from typing import Any, Final, Self
from urllib.parse import quote

import urllib3

# The server pings every 15 seconds; a stream that says nothing for longer has lost its other end.
_SILENCE_SECONDS: Final = 45.0
_CONNECT_SECONDS: Final = 5.0
_PAGE: Final = 1000
_KIND_RECORD: Final = "record"

# `steps`, `progress`, `result` as in a job's status, and `uid`, `attempt`, `ended`.
Standing = dict[str, Any]


class ServerError(Exception):
    """The server gives no answer, or not one that helps; says which and why."""


class NothingYetError(ServerError):
    """No run of the job has posted."""


class ServerEvents:
    """The events of one job, each once, in the order in which they were posted."""

    def __init__(self, url: str, namespace: str, name: str, ca_file: str | None = None) -> None:
        """Raises ServerError where the address or the file is no good."""
        if not url.startswith(("https://", "http://")):
            raise ServerError(f"--server must start with https:// or http://, got {url}; correct it")
        try:
            # One connection for the stream and one for what is asked meanwhile.
            self._pool = urllib3.PoolManager(
                maxsize=2, retries=False, ssl_context=ssl.create_default_context(cafile=ca_file) if ca_file else None
            )
        except OSError as error:
            raise ServerError(f"--server-ca {ca_file} cannot be used: {error}; name a PEM file") from error
        self._url = url.rstrip("/")
        self._job = f"{self._url}/api/v1/namespaces/{quote(namespace, safe='')}/jobs/{quote(name, safe='')}"
        self._seen = 0
        self._uid = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.clear()

    def check(self) -> None:
        """Ask whether the server is ready."""
        self._get(f"{self._url}/readyz")

    def news(self) -> Iterator[Standing | None]:
        """Where the job stands, at once and at each change, and None at each ping of the server.

        Ends when the server ends the stream. Raises NothingYetError, and ServerError where it is lost.
        """
        try:
            response = self._pool.request(
                "GET",
                f"{self._job}/stream",
                headers={"Accept": "text/event-stream"},
                preload_content=False,
                timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=_SILENCE_SECONDS),
            )
            try:
                if response.status != 200:
                    raise _refusal(self._job, response.status, response.read(2000))
                yield from _standings(response)
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ServerError(f"{self._url} does not answer: {type(error).__name__}: {error}") from error

    def fresh(self, uid: str) -> Iterator[dict[str, Any]]:
        """The events of the job with this UID that were not given out before."""
        if self._uid != uid:
            self._uid, self._seen = uid, 0
        while True:
            asked = f"{self._job}/history?after={self._seen}&limit={_PAGE}"
            page = _parsed(self._get(asked), asked)
            if page.get("uid") != uid:
                return
            for item in page["items"]:
                self._seen = item["id"]
                if item["kind"] != _KIND_RECORD:
                    yield item["body"]
            if page.get("next") is None:
                return

    def _get(self, url: str) -> bytes:
        try:
            answer = self._pool.request("GET", url, timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=30.0))
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ServerError(f"{self._url} does not answer: {type(error).__name__}: {error}") from error
        if answer.status != 200:
            raise _refusal(url, answer.status, answer.data)
        return answer.data


def _standings(response: urllib3.BaseHTTPResponse) -> Iterator[Standing | None]:
    """One for each block of the stream; a block ends with an empty line, and a ping is a block of comments."""
    pending = b""
    for chunk in response.stream():
        *blocks, pending = (pending + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in blocks:
            fields = dict(line.partition(b": ")[::2] for line in block.split(b"\n") if not line.startswith(b":"))
            if fields.get(b"event") == b"gone":
                return
            is_news = fields.get(b"event") == b"progress"
            yield _parsed(fields.get(b"data", b""), "the server's stream") if is_news else None


def _parsed(content: bytes, asked: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ServerError(f"{asked}: what answers is not limbeck's server: {content[:100]!r}")
    return found


def _refusal(asked: str, status: int, content: bytes) -> ServerError:
    try:
        said = json.loads(content)["message"]
    except (ValueError, KeyError, TypeError):
        said = content[:200].decode("utf-8", "replace").strip()
    kind = NothingYetError if status == 404 else ServerError
    return kind(f"{asked}: {status}: {said}")
