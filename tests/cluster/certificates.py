"""One certificate authority and a certificate for each component, named as RBAC's default bindings expect."""

from __future__ import annotations

import datetime
import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_LIFE = datetime.timedelta(days=30)
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


class Authority:
    """Signs; its certificate is `ca.crt` in `folder`, and each one that it issues is NAME.crt with NAME.key."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("limbeck testbed", "limbeck")
        certificate = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage("digital_signature", "key_cert_sign", "crl_sign"), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self._write("ca", certificate, self._key)

    def issue(self, name: str, user: str, group: str, addresses: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
        """For a client `user` of `group`; with addresses or hosts, for a server as well."""
        key = ec.generate_private_key(ec.SECP256R1())
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = _builder(_name(user, group), self._name, key.public_key())
        if addresses or hosts:
            names = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
            builder = builder.add_extension(
                x509.SubjectAlternativeName([*names, *(x509.DNSName(host) for host in hosts)]), critical=False
            )
            purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(_usage("digital_signature"), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        self._write(name, builder.sign(self._key, hashes.SHA256()), key)

    def _write(self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        (self.folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        write_key(self.folder / f"{name}.key", key)


def write_key(path: Path, key: ec.EllipticCurvePrivateKey | None = None) -> None:
    """A private key for its owner's eyes only; a new one if none is given."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )


def write_kubeconfig(path: Path, server: str, folder: Path, user: str) -> None:
    """A kubeconfig that speaks for the client certificate `user` in `folder`."""
    named = {
        "clusters": {"server": server, "certificate-authority": str(folder / "ca.crt")},
        "users": {"client-certificate": str(folder / f"{user}.crt"), "client-key": str(folder / f"{user}.key")},
        "contexts": {"cluster": "testbed", "user": "testbed"},
    }
    content = {"apiVersion": "v1", "kind": "Config", "current-context": "testbed"} | {
        plural: [{"name": "testbed", plural.removesuffix("s"): values}] for plural, values in named.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(json.dumps(content), encoding="utf-8")


def _name(user: str, group: str) -> x509.Name:
    attributes = [(NameOID.ORGANIZATION_NAME, group), (NameOID.COMMON_NAME, user)]
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + _LIFE)
    )


def _usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in names for usage in _USAGES})
