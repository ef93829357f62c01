"""The control plane of the whole test cluster: etcd, API server, controller-manager, scheduler, as plain processes.

`controlplane.py` is the lighter tier, with the first two alone. Left out on purpose: leader election, encryption at
rest and etcd's own certificates; etcd listens on the loopback, where no pod comes.
"""

from __future__ import annotations

import json
from typing import Any

import gotools
import urllib3
from certificates import Authority, write_key, write_kubeconfig
from controlplane import AUDIT_POLICY
from layout import (
    API_PORT,
    API_SERVICE_ADDRESS,
    CLUSTER_DOMAIN,
    ETCD_PEER_PORT,
    ETCD_PORT,
    NODE,
    NODE_ADDRESS,
    SERVICE_RANGE,
    Layout,
)
from processes import Daemons

ETCD = "etcd"
API_SERVER = "kube-apiserver"
CONTROLLER_MANAGER = "kube-controller-manager"
SCHEDULER = "kube-scheduler"
TOOLS = (gotools.ETCD, gotools.KUBE_APISERVER, gotools.KUBE_CONTROLLER_MANAGER, gotools.KUBE_SCHEDULER)
_START_SECONDS = 90.0
_ETCD_ADDRESS = f"http://127.0.0.1:{ETCD_PORT}"
_PEER_ADDRESS = f"http://127.0.0.1:{ETCD_PEER_PORT}"

# Clients, with the user and the group that RBAC's default bindings know them by.
USERS = {
    "admin": ("admin", "system:masters"),
    CONTROLLER_MANAGER: ("system:kube-controller-manager", "system:controllers"),
    SCHEDULER: ("system:kube-scheduler", "system:controllers"),
    "kube-proxy": ("system:kube-proxy", "system:proxies"),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "prometheus": ("testbed:prometheus", "testbed"),
}


def write_certificates(layout: Layout) -> None:
    """And a kubeconfig for each of USERS."""
    folder = layout.certificates
    authority = Authority(folder)
    hosts = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{CLUSTER_DOMAIN}"]
    addresses = [NODE_ADDRESS, API_SERVICE_ADDRESS, "127.0.0.1"]
    authority.issue("apiserver", "kube-apiserver", "kubernetes", addresses, hosts)
    authority.issue("apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
    authority.issue("front-proxy", "front-proxy-client", "kubernetes")
    for name, (user, group) in USERS.items():
        serves = name == "kubelet"
        authority.issue(name, user, group, [NODE_ADDRESS] if serves else (), [NODE] if serves else ())
        write_kubeconfig(layout.kubeconfig(name), layout.api_server, folder, name)
    write_key(folder / "accounts.key")
    (layout.run / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY), encoding="utf-8")


def start(layout: Layout, daemons: Daemons) -> None:
    """Returns when the API server is ready."""
    daemons.start(ETCD, [gotools.ETCD.build(), *_flags(etcd_settings(layout))])
    start_api_server(layout, daemons)
    settings = controller_manager_settings(layout)
    daemons.start(CONTROLLER_MANAGER, [gotools.KUBE_CONTROLLER_MANAGER.build(), *_flags(settings)])
    daemons.start(SCHEDULER, [gotools.KUBE_SCHEDULER.build(), *_flags(_client_settings(layout, SCHEDULER))])


def start_api_server(layout: Layout, daemons: Daemons) -> None:
    daemons.start(API_SERVER, [gotools.KUBE_APISERVER.build(), *_flags(api_server_settings(layout))])
    daemons.wait(API_SERVER, _START_SECONDS, "readiness of the API server", lambda: is_ready(layout))


def is_ready(layout: Layout) -> bool:
    ours = layout.certificates
    certificates = {"ca_certs": ours / "ca.crt", "cert_file": ours / "admin.crt", "key_file": ours / "admin.key"}
    if not all(file.exists() for file in certificates.values()):
        return False
    keywords: dict[str, Any] = {name: str(file) for name, file in certificates.items()}
    try:
        with urllib3.PoolManager(retries=False, timeout=5.0, **keywords) as pool:
            return pool.request("GET", f"{layout.api_server}/readyz").status == 200
    except urllib3.exceptions.HTTPError:
        return False


def etcd_settings(layout: Layout) -> dict[str, object]:
    return {
        "name": NODE,
        "data-dir": layout.run / "etcd",
        "unsafe-no-fsync": "true",  # what it holds does not outlive `down`
        "log-level": "warn",
        "listen-client-urls": _ETCD_ADDRESS,
        "advertise-client-urls": _ETCD_ADDRESS,
        "listen-peer-urls": _PEER_ADDRESS,
        "initial-advertise-peer-urls": _PEER_ADDRESS,
        "initial-cluster": f"{NODE}={_PEER_ADDRESS}",
    }


def api_server_settings(layout: Layout) -> dict[str, object]:
    """NodeRestriction, and the admission plugins that are on by default, PodSecurity and ServiceAccount among them."""
    ours = layout.certificates
    return {
        "etcd-servers": _ETCD_ADDRESS,
        "bind-address": NODE_ADDRESS,
        "advertise-address": NODE_ADDRESS,
        "secure-port": API_PORT,
        "service-cluster-ip-range": SERVICE_RANGE,
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "client-ca-file": ours / "ca.crt",
        "tls-cert-file": ours / "apiserver.crt",
        "tls-private-key-file": ours / "apiserver.key",
        "kubelet-client-certificate": ours / "apiserver-kubelet-client.crt",
        "kubelet-client-key": ours / "apiserver-kubelet-client.key",
        "kubelet-certificate-authority": ours / "ca.crt",
        "kubelet-preferred-address-types": "InternalIP",
        "requestheader-client-ca-file": ours / "ca.crt",
        "requestheader-allowed-names": "front-proxy-client",
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": ours / "front-proxy.crt",
        "proxy-client-key-file": ours / "front-proxy.key",
        "service-account-issuer": f"https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        "service-account-key-file": ours / "accounts.key",
        "service-account-signing-key-file": ours / "accounts.key",
        "audit-policy-file": layout.run / "audit-policy.json",
        "audit-log-path": layout.audit_log,
        "shutdown-delay-duration": "0s",
    }


def controller_manager_settings(layout: Layout) -> dict[str, object]:
    ours = layout.certificates
    return _client_settings(layout, CONTROLLER_MANAGER) | {
        "use-service-account-credentials": "true",  # each controller with its own rights
        "root-ca-file": ours / "ca.crt",
        "service-account-private-key-file": ours / "accounts.key",
        "cluster-signing-cert-file": ours / "ca.crt",
        "cluster-signing-key-file": ours / "ca.key",
    }


def _client_settings(layout: Layout, name: str) -> dict[str, object]:
    kubeconfig = layout.kubeconfig(name)
    return {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "leader-elect": "false",
    }


def _flags(settings: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]
