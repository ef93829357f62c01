"""Where the test cluster keeps things, and the addresses that it takes. Nothing here acts.

`run` is thrown away by `down`; `images` (containerd's store) outlives it, so that a second `up` is quick; `logs` stay
until the next `up`, to be read.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

import gotools

NODE = "testbed"
NODE_ADDRESS = "10.99.0.1"
POD_RANGE = "10.244.0.0/16"
POD_GATEWAY = "10.244.0.1"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
DNS_ADDRESS = "10.96.0.10"
CLUSTER_DOMAIN = "cluster.local"
NAMESPACE = "testbed"  # of what the testbed itself adds to the cluster

API_PORT = 6443
ETCD_PORT = 2379
ETCD_PEER_PORT = 2380
S3_PORT = 7070
PROMETHEUS_PORT = 9090

NODE_BRIDGE = "limbeck-node"
POD_BRIDGE = "limbeck-pods"
FIREWALL_TABLE = "limbeck_testbed"

# A socket's path has at most 107 characters, and the longest of kubelet's adds about 50 to ours.
_LONGEST_RUN_FOLDER = 56


@dataclass(frozen=True)
class Layout:
    """The files of one test cluster; a machine has room for one."""

    home: Path = field(default_factory=lambda: gotools.cache() / "testbed")

    def __post_init__(self) -> None:
        if len(str(self.run)) > _LONGEST_RUN_FOLDER:
            raise ValueError(
                f"LIMBECK_CACHE makes the folder {self.run}, longer than the {_LONGEST_RUN_FOLDER} characters that "
                "leave room for the names of sockets; set it to a shorter path"
            )

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def images(self) -> Path:
        return self.home / "images"

    @property
    def lock(self) -> Path:
        return self.home / "lock"

    @property
    def pids(self) -> Path:
        return self.run / "pids"

    @property
    def certificates(self) -> Path:
        return self.run / "certificates"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def audit_log(self) -> Path:
        return self.logs / "audit.log"

    @property
    def api_server(self) -> str:
        return f"https://{NODE_ADDRESS}:{API_PORT}"

    def kubeconfig(self, user: str = "admin") -> Path:
        return self.run / "kubeconfig" / user


def is_inside(address: str, network: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)
