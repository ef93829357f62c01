"""CoreDNS in the cluster, and a question to it."""

from __future__ import annotations

import socket
import struct
from typing import Any

import gotools
import manifestfiles
from imagearchive import Image
from layout import CLUSTER_DOMAIN, DNS_ADDRESS

_QUERY_ID = 7
_TYPE_A, _CLASS_IN, _RECURSION_DESIRED = 1, 1, 0x0100


def image() -> Image:
    files = {"/coredns": gotools.COREDNS.build()}
    return Image(f"localhost/coredns:{gotools.COREDNS.version()}", files, entrypoint=["/coredns"])


def objects() -> list[dict[str, Any]]:
    return manifestfiles.read("coredns.yaml", domain=CLUSTER_DOMAIN, address=DNS_ADDRESS, image=image().name)


def resolve(host: str, server: str = DNS_ADDRESS, timeout_seconds: float = 1.0) -> str | None:
    """The IPv4 address of `host`; None where there is none, or no answer."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in host.rstrip(".").split("."))
    query = struct.pack(">6H", _QUERY_ID, _RECURSION_DESIRED, 1, 0, 0, 0) + labels + b"\0"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(timeout_seconds)
        try:
            connection.sendto(query + struct.pack(">2H", _TYPE_A, _CLASS_IN), (server, 53))
            answer = connection.recv(512)
        except OSError:
            return None
    answers = struct.unpack(">6H", answer[:12])[3]
    return socket.inet_ntoa(answer[-4:]) if answers == 1 else None
