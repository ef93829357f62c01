"""An API client for a process that dies at a write, and for a network that loses, delays or refuses.

It stands where the official client stands, below `limbeck.kube.transport`, so that all above it is the real code.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from kubernetes.client.api_client import ApiClient

from limbeck.kube.errors import KubeError

Kind = Literal["state", "event"]


class CrashedError(KubeError):
    """The process is dead: nothing that it asks goes out any more."""

    def __init__(self, message: str) -> None:
        super().__init__(0, "Crashed", message)


class Cut(NamedTuple):
    """Die at the `number`-th write of a kind, from 1, before it goes out or after it was carried out."""

    kind: Kind
    number: int
    carried_out: bool


@dataclass
class Faults:
    """What goes wrong; to be changed while the client is in use."""

    cut: Cut | None = None
    # Number of the watch event that gets lost, from 1, over all watches; bookmarks do not count.
    lost_event: int | None = None
    # The next lists are those that were served last, once for each path.
    old_lists: bool = False
    refused: bool = False
    writes_refused: bool = False


@dataclass
class FaultyClient:
    """What `Transport` needs of an ApiClient. Counts what goes out."""

    client: ApiClient
    faults: Faults = field(default_factory=Faults)
    # Requests for these kinds get 404, as for one that is not served.
    unserved: Collection[str] = ()

    def __post_init__(self) -> None:
        self.crashed = threading.Event()
        self.num_requests = 0
        self.num_watch_events = 0
        self.num_old_lists = 0
        self.writes: dict[Kind, list[str]] = {"state": [], "event": []}
        self._lock = threading.Lock()
        self._lists: dict[str, bytes] = {}
        self._old: dict[str, bytes] = {}

    def param_serialize(self, *arguments: Any, **named: Any) -> Any:
        return self.client.param_serialize(*arguments, **named)

    def call_api(self, method: str, url: str, **more: Any) -> Any:
        parts = urlsplit(url)
        with self._lock:
            self.num_requests += 1
        if self.crashed.is_set():
            raise CrashedError("the process is dead")
        if self.faults.refused or (self.faults.writes_refused and method != "GET"):
            return Played.status(403, "Forbidden", "no rights just now")
        if any(f"/{plural}" in parts.path for plural in self.unserved):
            return Played.status(404, "NotFound", "the server could not find the requested resource")
        if method != "GET":
            return self._write(method, parts.path, lambda: self.client.call_api(method, url, **more))
        query = dict(parse_qsl(parts.query))
        answer = self.client.call_api(method, url, **more)
        if query.get("watch"):
            return Played(_Filtered(answer.response, self._passes))
        if "limit" in query:
            return self._list(parts.path, answer)
        return answer

    def remember_lists(self) -> None:
        """The lists that were served last are those to serve again by `old_lists`."""
        with self._lock:
            self._old = dict(self._lists)

    def serve_old_lists_of(self, other: FaultyClient) -> None:
        """As an API server would that lags behind the one which the other talked to."""
        self._old = dict(other._old)
        self.faults.old_lists = True

    def _write(self, method: str, path: str, send: Callable[[], Any]) -> Any:
        kind: Kind = "event" if path.startswith("/apis/events.k8s.io/") else "state"
        with self._lock:
            self.writes[kind].append(f"{method} {path}")
            cut = self.faults.cut
            dies = cut is not None and (cut.kind, cut.number) == (kind, len(self.writes[kind]))
            if dies and cut is not None and not cut.carried_out:
                self.crashed.set()
                raise CrashedError("the process died before its write")
        answer = send()
        if dies:
            answer.response.read()
            answer.response.release_conn()
            self.crashed.set()
            raise CrashedError("the process died after its write")
        return answer

    def _list(self, path: str, answer: Any) -> Any:
        response = answer.response
        content = response.read()
        response.release_conn()
        with self._lock:
            if self.faults.old_lists and path in self._old:
                content = self._old.pop(path)
                self.num_old_lists += 1
            elif response.status == 200:
                self._lists[path] = content
        return Played(_Whole(response.status, content, dict(response.headers)))

    def _passes(self, line: bytes) -> bool:
        """Whether a line of a watch arrives."""
        if b'"type":"BOOKMARK"' in line[:30] or not line.strip():
            return True
        with self._lock:
            self.num_watch_events += 1
            return self.num_watch_events != self.faults.lost_event


@dataclass(frozen=True)
class Played:
    """The outer layer of an answer."""

    response: Any

    @classmethod
    def status(cls, code: int, reason: str, message: str) -> Played:
        body = {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}
        return cls(_Whole(code, json.dumps(body).encode(), {}))


@dataclass(frozen=True)
class _Whole:
    status: int
    content: bytes
    headers: dict[str, str]

    def read(self) -> bytes:
        return self.content

    def release_conn(self) -> None:
        """There is none."""

    def __enter__(self) -> _Whole:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""


class _Filtered:
    """A watch, line by line, without those that get lost."""

    def __init__(self, response: Any, passes: Callable[[bytes], bool]) -> None:
        self._response = response
        self._passes = passes
        self.status = response.status
        self.headers = response.headers

    def stream(self) -> Iterator[bytes]:
        pending = b""
        for chunk in self._response.stream():
            *lines, pending = (pending + chunk).split(b"\n")
            yield b"".join(line + b"\n" for line in lines if self._passes(line))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    def __enter__(self) -> _Filtered:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()
