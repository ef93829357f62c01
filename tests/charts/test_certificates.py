"""Where the server's certificate comes from, and what it is good for."""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Object = dict[str, Any]
Render = Callable[..., dict[tuple[str, str], Object]]

pytestmark = pytest.mark.controlplane  # for the time that helm takes to build

OPERATOR, SERVER = ("Deployment", "limbeck-operator"), ("Deployment", "limbeck-server")


def test_the_generated_certificate_is_good_for_the_address_that_the_operator_hands_out(
    render: Render, tmp_path: Path
) -> None:
    """A real handshake in memory, the client checking chain and name."""
    objects = render()
    data = {key: base64.b64decode(text) for key, text in objects["Secret", "limbeck-server-tls"]["data"].items()}
    for name, content in data.items():
        (tmp_path / name).write_bytes(content)
    (operator,) = objects[OPERATOR]["spec"]["template"]["spec"]["containers"]
    (address,) = [each["value"] for each in operator["env"] if each["name"] == "LIMBECK_OPERATOR_SERVER_URL"]
    host = address.removeprefix("https://").removesuffix(":8443")
    assert handshake(tmp_path, host) is None
    assert "Hostname mismatch" in str(handshake(tmp_path, "elsewhere.svc"))


def handshake(folder: Path, host: str) -> ssl.SSLError | None:
    """Why the client will not talk to the server, whose files are in the folder."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    client = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = ends
    for _ in range(10):
        still = []
        for end in waiting:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                still.append(end)
            except ssl.SSLError as error:
                return error
        waiting = still
    assert not waiting
    return None


def test_both_uses_of_the_generated_certificate_are_of_one_making(render: Render) -> None:
    objects = render()
    data = objects["Secret", "limbeck-server-tls"]["data"]
    wanted = hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    for workload in (OPERATOR, SERVER):
        annotations = objects[workload]["spec"]["template"]["metadata"]["annotations"]
        assert annotations["limbeck.dev/tls-checksum"] == wanted


def test_a_secret_of_ones_own_is_mounted(render: Render) -> None:
    objects = render({"server": {"tls": {"source": "Secret", "secretName": "mine"}}})
    assert not [kind for kind, _ in objects if kind == "Secret"]
    for workload in (OPERATOR, SERVER):
        volumes = {each["name"]: each for each in objects[workload]["spec"]["template"]["spec"]["volumes"]}
        assert volumes["tls"]["secret"]["secretName"] == "mine"


def test_cert_manager_is_asked_for_what_is_mounted(render: Render) -> None:
    objects = render({"server": {"tls": {"source": "CertManager"}}})
    certificate = objects["Certificate", "limbeck-server"]["spec"]
    volumes = {each["name"]: each for each in objects[SERVER]["spec"]["template"]["spec"]["volumes"]}
    assert certificate["secretName"] == volumes["tls"]["secret"]["secretName"]
    assert "limbeck-server.limbeck-system.svc" in certificate["dnsNames"]
    assert ("Issuer", certificate["issuerRef"]["name"]) in objects
    issuer = {"name": "company", "kind": "ClusterIssuer"}
    given = render({"server": {"tls": {"source": "CertManager", "certManager": {"issuerRef": issuer}}}})
    assert given["Certificate", "limbeck-server"]["spec"]["issuerRef"] == issuer
    assert not [kind for kind, _ in given if kind == "Issuer"]
