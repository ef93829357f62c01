"""The one module that talks to the API server: plain dicts in, plain dicts and a KubeError out.

Built on the official client's `ApiClient` for its configuration, authentication and TLS; its models are not used, they
change between majors. No request is tried twice in here: a caller that waits in a queue decides better.
Left out on purpose: PUT (a patch with a resource version says the same and names what it changes), exec.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import quote

import urllib3
from kubernetes.client.api_client import ApiClient

from limbeck.kube.errors import UnreachableError, error_from_answer, error_from_status
from limbeck.kube.lines import LineStream, failures_named

Object = dict[str, Any]
Body = Object | list[Object]

MERGE: Final = "application/merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"
JSON_PATCH: Final = "application/json-patch+json"

# A list of 500 large objects takes a busy API server some seconds.
_REQUEST_SECONDS: Final = 30.0
_CONNECT_SECONDS: Final = 5.0
# The API server sends a bookmark about once a minute: a watch that says nothing for longer has lost its other end.
WATCH_SILENCE_SECONDS: Final = 90.0


@dataclass(frozen=True)
class Resource:
    """A kind of object, by its address: `Resource("apps", "v1", "deployments")`; the core group is the empty one."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """Where it is served. Without a namespace, a namespaced kind means all namespaces."""
        if namespace is not None and not self.namespaced:
            raise ValueError(f"{self} is not namespaced, got namespace {namespace!r}; leave the namespace out")
        if name is not None and self.namespaced and namespace is None:
            raise ValueError(f"{self} {name!r} lies in a namespace; say which")
        parts = ["apis", self.group, self.version] if self.group else ["api", self.version]
        if namespace is not None:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        parts += [part for part in (name, subresource) if part is not None]
        return "/" + "/".join(quote(part, safe="") for part in parts)

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


class Transport:
    """Requests to one API server; safe to share between threads."""

    def __init__(self, client: ApiClient, *, timeout_seconds: float = _REQUEST_SECONDS) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds

    def within(self, seconds: float) -> Transport:
        """The same connections, for one who cannot wait: each request ends within about `seconds`."""
        return Transport(self._client, timeout_seconds=seconds)

    def get(self, resource: Resource, name: str, namespace: str | None = None) -> Object:
        return self._ask("GET", resource.path(namespace, name))

    def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str | None = None,
        field_selector: str | None = None,
        limit: int | None = 500,
        continue_: str | None = None,
        resource_version: str | None = None,
    ) -> Object:
        """One page. Without `resource_version` it is the newest state there is; "0" means any that is at hand."""
        query = {
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
            "limit": limit,
            "continue": continue_,
            "resourceVersion": resource_version,
        }
        return self._ask("GET", resource.path(namespace), query)

    def create(self, resource: Resource, body: Object, namespace: str | None = None) -> Object:
        """Raises AlreadyExistsError where the name is taken."""
        return self._ask("POST", resource.path(namespace), body=body)

    def patch(
        self,
        resource: Resource,
        name: str,
        body: Body,
        namespace: str | None = None,
        *,
        subresource: str | None = None,
        content_type: str = MERGE,
        field_manager: str | None = None,
        force: bool = False,
        dry_run: bool = False,
    ) -> Object:
        """`metadata.resourceVersion` in a merge or apply body makes it a compare-and-swap (ConflictError).

        A dry run is judged, defaulted and answered as ever, and changes nothing.
        """
        if content_type == APPLY and field_manager is None:
            raise ValueError(f"apply of {resource} {name!r} needs a field manager; pass field_manager")
        query = {
            "fieldManager": field_manager,
            "force": "true" if force else None,
            "dryRun": "All" if dry_run else None,
        }
        return self._ask("PATCH", resource.path(namespace, name, subresource), query, body, content_type)

    def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        propagation: str = "Background",
        uid: str | None = None,
    ) -> None:
        """With `uid`, another object that took the name since is left alone (ConflictError)."""
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        self._ask("DELETE", resource.path(namespace, name), body=options)

    def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        resource_version: str,
        timeout_seconds: float,
        label_selector: str | None = None,
        field_selector: str | None = None,
        silence_seconds: float = WATCH_SILENCE_SECONDS,
    ) -> WatchStream:
        """What happens after `resource_version`, bookmarks included, until the server ends it by `timeout_seconds`.

        The iteration raises UnreachableError when cut off or silent for `silence_seconds`, and what an ERROR event
        says (mostly GoneError).
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": max(1, round(timeout_seconds)),
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
        }
        return WatchStream(self._open(resource.path(namespace), query, silence_seconds, f"watch {resource}"))

    def logs(
        self,
        pod: str,
        namespace: str,
        *,
        container: str | None = None,
        follow: bool = False,
        tail_lines: int | None = None,
    ) -> LineStream:
        """What a container of a pod has written; with `follow` until it ends, however long it says nothing."""
        query = {
            "container": container,
            "follow": "true" if follow else None,
            "tailLines": tail_lines,
        }
        path = Resource("", "v1", "pods").path(namespace, pod, "log")
        return self._open(path, query, None if follow else self._timeout_seconds, f"GET {path}")

    def version(self) -> str:
        """The API server's own, such as `v1.34.4`."""
        return str(self._ask("GET", "/version").get("gitVersion", "unknown"))

    def _open(self, path: str, query: dict[str, Any], silence_seconds: float | None, asked: str) -> LineStream:
        """An answer that is read as it comes."""
        with failures_named(asked):
            response = self._send("GET", path, query, timeout=(_CONNECT_SECONDS, silence_seconds))
        if response.status != 200:
            with response, failures_named(asked):
                raise error_from_answer(response.status, response.read(), response.headers, asked=asked)
        return LineStream(response, asked)

    def _ask(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
    ) -> Object:
        asked = f"{method} {path}"
        with failures_named(asked):
            response = self._send(method, path, query, body, content_type, timeout=self._timeout_seconds)
            content = response.read()
            response.release_conn()
        if not 200 <= response.status < 300:
            raise error_from_answer(response.status, content, response.headers, asked=asked)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise UnreachableError(f"what answers is no API server: {content[:100]!r}", asked=asked)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None = None,
        body: Body | None = None,
        content_type: str | None = None,
        *,
        timeout: float | tuple[float, float | None],
    ) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": "application/json"}
        if body is not None and content_type is not None:
            headers["Content-Type"] = content_type
        pairs = [(name, value) for name, value in (query or {}).items() if value is not None]
        # The body goes around `param_serialize`, which would walk all of it.
        _, url, headers, _, _ = self._client.param_serialize(
            method, path, query_params=pairs, header_params=headers, auth_settings=["BearerToken"]
        )
        answer = self._client.call_api(method, url, header_params=headers, body=body, _request_timeout=timeout)
        response: urllib3.BaseHTTPResponse = answer.response
        return response


class WatchStream:
    """Events as they come. Use it in a `with`; `close` ends the iteration from any thread, and is no error."""

    def __init__(self, lines: LineStream) -> None:
        self._lines = lines

    def __enter__(self) -> Self:
        self._lines.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.__exit__()

    def close(self) -> None:
        """Wakes the reader, who then releases the connection."""
        self._lines.close()

    def __iter__(self) -> Iterator[Object]:
        for line in self._lines:
            if line.strip():
                yield self._event(line)

    def _event(self, line: bytes) -> Object:
        try:
            event: Object = json.loads(line)
            if event["type"] == "ERROR":
                raise error_from_status(event["object"], asked=self._lines.asked)
        except (ValueError, TypeError, KeyError):
            raise UnreachableError(f"not an event: {line[:100]!r}", asked=self._lines.asked) from None
        return event
