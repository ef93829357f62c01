"""The operator's HTTP endpoint: /metrics, /livez and /readyz.

A follower is ready too: it knows everything and waits. Left out: everything that changes something.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import make_wsgi_app

_StartResponse = Callable[..., Any]
_WsgiApp = Callable[[dict[str, Any], _StartResponse], Iterable[bytes]]


class Health(Protocol):
    """Whom the probes ask."""

    @property
    def is_alive(self) -> bool:
        """False: start the process again."""

    @property
    def is_ready(self) -> bool:
        """False: it does not know yet what there is."""

    @property
    def problems(self) -> list[str]:
        """Why not, for people."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 10.0  # a client that says nothing does not hold its thread for ever

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes and probes are no news."""


class Endpoint:
    """Listens from its making on, in a thread of its own. Raises OSError where the port is taken."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, health: Health) -> None:
        self._health = health
        self._metrics: _WsgiApp = make_wsgi_app(registry)
        self._server = make_server(host, port, self._answer, server_class=_Server, handler_class=_Quiet)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, name="endpoint", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start_response: _StartResponse) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._metrics(environ, start_response)
            case "/livez":
                return _say(start_response, "ok" if self._health.is_alive else "", "a thread has ended")
            case "/readyz":
                why_not = "; ".join(self._health.problems) or "still reading what there is"
                return _say(start_response, "ok" if self._health.is_ready else "", why_not)
            case _:
                return _say(start_response, "", "there are /metrics, /livez and /readyz", "404 Not Found")


def _say(
    start_response: _StartResponse, well: str, otherwise: str, status: str = "503 Service Unavailable"
) -> Iterable[bytes]:
    start_response("200 OK" if well else status, [("Content-Type", "text/plain; charset=utf-8")])
    return [(well or otherwise).encode()]
