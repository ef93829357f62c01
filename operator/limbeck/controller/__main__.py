"""Run the operator: `python -m limbeck.controller`, configured by LIMBECK_OPERATOR_* (`settings.py` lists them).

Exit codes: 0 after SIGTERM or SIGINT, 2 where it cannot start, 75 when it lost the lease: start it again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import uuid

import structlog
from pydantic import ValidationError

from limbeck.controller.endpoint import Endpoint
from limbeck.controller.names import ENV_PREFIX
from limbeck.controller.operator import Operator
from limbeck.controller.settings import ProcessSettings, Settings
from limbeck.kube.connection import NoClusterError, load_client
from limbeck.kube.lease import Lease, lead
from limbeck.kube.transport import Transport


def main() -> int:
    """Until SIGTERM or SIGINT. Returns the exit code."""
    stop = _stopped_by_a_signal()
    try:
        process = ProcessSettings()
        settings = _settings(process)
        _log_as(process.log_format)
        transport = Transport(load_client())
        # A restarted container must not take itself for its predecessor.
        identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        operator = Operator(transport, settings, process, identity)
        endpoint = Endpoint(process.host, process.port, operator.metrics.registry, operator)
    except ValidationError as error:
        for each in error.errors(include_url=False, include_input=False):
            print(f"limbeck operator: {ENV_PREFIX}{str(each['loc'][0]).upper()}: {each['msg']}", file=sys.stderr)
        return 2
    except (NoClusterError, OSError) as error:
        print(f"limbeck operator: {error}", file=sys.stderr)
        return 2
    structlog.get_logger(__name__).info("started", identity=identity, port=endpoint.port)
    operator.watch()
    if operator.wait_until_ready(stop):
        lease = Lease(transport, settings.limbeck_namespace, process.lease_name, identity)
        lead(lease, operator.act, stop, wind_down=operator.wind_down)
    operator.stop_watching()
    endpoint.close()
    return 0


def _stopped_by_a_signal() -> threading.Event:
    """A thread waits for the signal: a handler would run in the middle of whatever the main thread does with a lock.

    To be called before any other thread starts, for threads inherit what is blocked. A second signal ends at once.
    """
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    stop = threading.Event()

    def wait() -> None:
        signal.sigwait(signals)
        stop.set()
        os._exit(128 + signal.sigwait(signals))

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop


def _settings(process: ProcessSettings) -> Settings:
    settings = Settings()
    if process.server_ca_file is None:
        return settings
    return settings.model_copy(update={"server_ca_pem": process.server_ca_file.read_text(encoding="utf-8")})


def _log_as(form: str) -> None:
    """One line an event on standard error, from INFO up."""
    render = structlog.processors.JSONRenderer() if form == "Json" else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(main())
