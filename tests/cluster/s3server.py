"""versitygw, a real S3 server over a folder, on the node's address: pods and this machine reach it by the same URI."""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gotools
import manifestfiles
from layout import NAMESPACE, NODE_ADDRESS, S3_PORT, Layout
from processes import Daemons

NAME = "s3"
_START_SECONDS = 20.0


@dataclass(frozen=True)
class S3Access:
    endpoint: str = f"http://{NODE_ADDRESS}:{S3_PORT}"
    region: str = "us-east-1"
    bucket: str = "limbeck"
    access_key: str = "testbed"
    secret_key: str = "testbed-secret"

    def environment(self) -> dict[str, str]:
        """As every S3 client reads it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": self.region,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ALLOW_HTTP": "true",
        }


def start(layout: Layout, daemons: Daemons, access: S3Access) -> None:
    """With the bucket in it; again after it was killed, with what was in it."""
    folder = layout.run / "s3"
    (folder / access.bucket).mkdir(parents=True, exist_ok=True)
    command = [str(gotools.VERSITYGW.build()), "--port", f"{NODE_ADDRESS}:{S3_PORT}", "--quiet", "posix", str(folder)]
    keys = {"ROOT_ACCESS_KEY": access.access_key, "ROOT_SECRET_KEY": access.secret_key}
    daemons.start(NAME, command, keys)
    daemons.wait(NAME, _START_SECONDS, "an open port", _listens)


def objects() -> list[dict[str, Any]]:
    return manifestfiles.read("s3.yaml", namespace=NAMESPACE, port=S3_PORT, address=NODE_ADDRESS)


def _listens() -> bool:
    with suppress(OSError), socket.create_connection((NODE_ADDRESS, S3_PORT), timeout=1):
        return True
    return False
