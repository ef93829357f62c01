"""An answer of the API server that is read line by line, as it comes: a watch, or a log.

Left out on purpose: what the lines mean.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Self

import urllib3
from kubernetes.client.exceptions import ApiException

from limbeck.kube.errors import UnreachableError


class LineStream:
    """Lines without their ends. Use it in a `with`; `close` ends the iteration from any thread, and is no error.

    The iteration raises UnreachableError when it is cut off, or silent for longer than the request allows.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, asked: str) -> None:
        self.asked = asked
        self._response = response
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._response.close()

    def close(self) -> None:
        """Wakes the reader, who then releases the connection; closing it here would wait for him."""
        self._closed.set()
        with contextlib.suppress(RuntimeError, ValueError, OSError):  # released already
            self._response.shutdown()

    def __iter__(self) -> Iterator[bytes]:
        pending = b""
        try:
            with failures_named(self.asked):
                for chunk in self._response.stream():
                    *lines, pending = (pending + chunk).split(b"\n")
                    for line in lines:
                        if self._closed.is_set():
                            return
                        yield line
        except UnreachableError:
            if self._closed.is_set():
                return
            raise
        if pending and not self._closed.is_set():
            yield pending


@contextlib.contextmanager
def failures_named(asked: str) -> Iterator[None]:
    """Whatever the client's layers raise when no answer comes, as one error."""
    try:
        yield
    except urllib3.exceptions.ReadTimeoutError:
        raise UnreachableError("no word within the time allowed", asked=asked) from None
    except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
        raise UnreachableError(f"{type(error).__name__}: {error}", asked=asked) from error
