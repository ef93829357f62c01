"""A real etcd and kube-apiserver with RBAC, for tests of a controller; `python tests/cluster/controlplane.py` runs one.

Left out on purpose, because nothing of it is there: nodes, the scheduler, the built-in controllers (so no garbage
collection of children, no finished deletion of namespaces) and admission by ServiceAccount, which needs them.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gotools
import urllib3
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration

_ADMIN_TOKEN = "test-admin"
_START_SECONDS = 90.0
# Every write that anybody makes, with who made it; reads are many and change nothing.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}],
}


def control_plane_binaries(assets: str | None = os.environ.get("KUBEBUILDER_ASSETS")) -> dict[str, Path]:
    """Those in the folder `assets`, else the pinned ones, built if need be."""
    if not assets:
        return {tool.program: tool.build() for tool in (gotools.ETCD, gotools.KUBE_APISERVER)}
    binaries = {name: Path(assets) / name for name in ("etcd", "kube-apiserver")}
    for name, path in binaries.items():
        if not path.exists():
            raise FileNotFoundError(f"KUBEBUILDER_ASSETS is {assets!r} and holds no {name}; correct or unset it")
    return binaries


class ControlPlane:
    """One etcd and one API server on free ports, all their files in `folder`."""

    def __init__(self, folder: Path, binaries: dict[str, Path] | None = None) -> None:
        self._folder = folder
        self._binaries = binaries or control_plane_binaries()
        self._etcd: subprocess.Popen[bytes] | None = None
        self._api_server: subprocess.Popen[bytes] | None = None
        etcd_port, peer_port, api_port = _free_ports(3)
        self._etcd_address, self._peer_address = f"http://127.0.0.1:{etcd_port}", f"http://127.0.0.1:{peer_port}"
        self._api_port = api_port
        self.address = f"https://127.0.0.1:{api_port}"
        self.certificate = folder / "certificates" / "apiserver.crt"
        self.audit_log = folder / "audit.log"
        self.kubeconfig = folder / "admin.kubeconfig"

    def start(self) -> None:
        self._write_files()
        self._start_etcd()
        self.start_api_server()

    def stop(self) -> None:
        """At once: nothing of it is kept."""
        self.stop_api_server()
        if self._etcd is not None:
            _end(self._etcd)
            self._etcd = None

    def start_api_server(self) -> None:
        """Also after `stop_api_server`: same address, same objects. Returns when it is ready."""
        process = self._run("kube-apiserver", self._api_server_flags())
        self._api_server = process
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            assert process.poll() is None, f"kube-apiserver ended; see {self._folder / 'kube-apiserver.log'}"
            assert time.monotonic() < deadline, f"kube-apiserver not ready; see {self._folder / 'kube-apiserver.log'}"
            _pause(process)

    def stop_api_server(self) -> None:
        if self._api_server is not None:
            _end(self._api_server)
            self._api_server = None

    def compact(self) -> None:
        """Forgets all history up to now, as the API server has done every five minutes."""
        with urllib3.PoolManager(retries=False, timeout=5.0) as pool:
            newest = pool.request("POST", f"{self._etcd_address}/v3/kv/range", json={"key": "AA=="}).json()
            body = {"revision": newest["header"]["revision"], "physical": True}
            answer = pool.request("POST", f"{self._etcd_address}/v3/kv/compaction", json=body)
            assert answer.status == 200, answer.data

    def pids(self) -> list[int]:
        return [process.pid for process in (self._etcd, self._api_server) if process is not None]

    def configuration(self) -> Configuration:
        """The administrator's."""
        configuration = Configuration(host=self.address)
        configuration.ssl_ca_cert = str(self.certificate)
        configuration.api_key["BearerToken"] = f"Bearer {_ADMIN_TOKEN}"
        configuration.retries = False
        return configuration

    def client(self, user: str | None = None) -> ApiClient:
        """The administrator, or whom he speaks for: a user has no rights but those that RBAC gives him."""
        client = ApiClient(self.configuration())
        client.user_agent = "limbeck-test"
        if user is not None:
            client.set_default_header("Impersonate-User", user)  # type: ignore[no-untyped-call]
        return client

    def _write_files(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "tokens.csv").write_text(f"{_ADMIN_TOKEN},admin,admin,system:masters\n")
        (self._folder / "audit.json").write_text(json.dumps(AUDIT_POLICY))
        key = self._folder / "accounts.key"
        subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)], check=True)
        named = {
            "clusters": {"server": self.address, "certificate-authority": str(self.certificate)},
            "users": {"token": _ADMIN_TOKEN},
            "contexts": {"cluster": "test", "user": "test"},
        }
        kubeconfig = {"apiVersion": "v1", "kind": "Config", "current-context": "test"} | {
            plural: [{"name": "test", plural.removesuffix("s"): content}] for plural, content in named.items()
        }
        self.kubeconfig.write_text(json.dumps(kubeconfig))

    def _start_etcd(self) -> None:
        flags = {
            "name": "test",
            "data-dir": self._folder / "etcd",
            "unsafe-no-fsync": "true",
            "log-level": "warn",
            "listen-client-urls": self._etcd_address,
            "advertise-client-urls": self._etcd_address,
            "listen-peer-urls": self._peer_address,
            "initial-advertise-peer-urls": self._peer_address,
            "initial-cluster": f"test={self._peer_address}",
        }
        self._etcd = self._run("etcd", flags)

    def _api_server_flags(self) -> dict[str, object]:
        key = self._folder / "accounts.key"
        return {
            "etcd-servers": self._etcd_address,
            "bind-address": "127.0.0.1",
            "secure-port": self._api_port,
            "cert-dir": self.certificate.parent,
            "token-auth-file": self._folder / "tokens.csv",
            "authorization-mode": "RBAC",
            "disable-admission-plugins": "ServiceAccount",
            "service-cluster-ip-range": "10.0.0.0/24",
            "endpoint-reconciler-type": "none",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
            "audit-policy-file": self._folder / "audit.json",
            "audit-log-path": self.audit_log,
            "shutdown-delay-duration": "0s",
        }

    def _run(self, program: str, flags: dict[str, object]) -> subprocess.Popen[bytes]:
        """Ends with whoever started it, however he ends."""
        setpriv = shutil.which("setpriv")
        command = [setpriv, "--pdeathsig", "KILL"] if setpriv else []
        command += [str(self._binaries[program]), *(f"--{name}={value}" for name, value in flags.items())]
        with (self._folder / f"{program}.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _is_ready(self) -> bool:
        """Ready by its own word, and past the creation of the namespace that tests use first."""
        if not self.certificate.exists():
            return False
        headers = {"Authorization": f"Bearer {_ADMIN_TOKEN}"}
        try:
            with urllib3.PoolManager(ca_certs=str(self.certificate), retries=False, timeout=5.0) as pool:
                return all(
                    pool.request("GET", self.address + path, headers=headers).status == 200
                    for path in ("/readyz", "/api/v1/namespaces/default")
                )
        except urllib3.exceptions.HTTPError:
            return False


def _free_ports(number: int) -> list[int]:
    """Free just now: all are held until all are known, so that they differ."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _pause(process: subprocess.Popen[bytes]) -> None:
    """A pause that ends early if the process does."""
    try:
        process.wait(0.05)
    except subprocess.TimeoutExpired:
        return


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="limbeck-controlplane-") as folder:
        plane = ControlPlane(Path(folder))
        try:
            plane.start()
            print(f"export KUBECONFIG={plane.kubeconfig}", flush=True)
            sys.stdin.read()  # until its end: Ctrl-D, or the one who started us
        except KeyboardInterrupt:
            pass
        finally:
            plane.stop()


if __name__ == "__main__":
    main()
