"""Run the server: `python -m limbeck.server`, configured by LIMBECK_SERVER_* (`settings.py` lists them)."""

from __future__ import annotations

import sys

import uvicorn
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from limbeck.kube.connection import NoClusterError, load_client
from limbeck.kube.transport import Transport
from limbeck.server.app import create_app
from limbeck.server.schema import SchemaError
from limbeck.server.settings import Settings

# A client that posts waits for the API server's answer, and it will come again.
_REQUEST_SECONDS = 5.0
_STOP_SECONDS = 5


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code."""
    try:
        settings = Settings()
        app = create_app(settings, Transport(load_client(), timeout_seconds=_REQUEST_SECONDS))
    except (ValidationError, NoClusterError, SchemaError, SQLAlchemyError) as error:
        print(f"limbeck server: {error}", file=sys.stderr)
        return 2
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    uvicorn.Server(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
