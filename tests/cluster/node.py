"""The one node: kubelet and kube-proxy, as plain processes.

Left out on purpose: cgroups by systemd, the machine's sysctls (kube-proxy's conntrack values are all 0) and iptables.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import gotools
import processes
from layout import CLUSTER_DOMAIN, DNS_ADDRESS, NODE, NODE_ADDRESS, POD_RANGE, Layout
from processes import Daemons

KUBELET = "kubelet"
KUBE_PROXY = "kube-proxy"
TOOLS = (gotools.KUBELET, gotools.KUBE_PROXY)
_MOST_PODS = 40
_POD_CGROUP = "kubepods"
CGROUPS = Path("/sys/fs/cgroup")


def start(layout: Layout, daemons: Daemons) -> None:
    """Returns at once; the node is ready some seconds later."""
    (layout.run / "resolv.conf").write_text("# pods ask the cluster's DNS, and nobody else\n", encoding="ascii")
    kubelet = _write(layout.run / "kubelet.json", kubelet_configuration(layout))
    proxy = _write(layout.run / "kube-proxy.json", proxy_configuration(layout))
    daemons.start(
        KUBELET,
        [
            gotools.KUBELET.build(),
            f"--config={kubelet}",
            f"--kubeconfig={layout.kubeconfig(KUBELET)}",
            f"--root-dir={layout.run / 'kubelet'}",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}",
        ],
    )
    daemons.start(KUBE_PROXY, [gotools.KUBE_PROXY.build(), f"--config={proxy}"])


def kubelet_configuration(layout: Layout) -> dict[str, object]:
    ours = layout.certificates
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(ours / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(ours / "kubelet.crt"),
        "tlsPrivateKeyFile": str(ours / "kubelet.key"),
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [DNS_ADDRESS],
        "clusterDomain": CLUSTER_DOMAIN,
        "resolvConf": str(layout.run / "resolv.conf"),
        "podLogsDir": str(layout.run / "pod-logs"),
        "volumePluginDir": str(layout.run / "volume-plugins"),
        "makeIPTablesUtilChains": False,
        "maxPods": _MOST_PODS,
        "oomScoreAdj": 0,  # a lower one needs CAP_SYS_RESOURCE
        "nodeStatusUpdateFrequency": "5s",
        # A machine with other work on it: evict late, and never throw an image away that no registry could give back.
        "evictionHard": {
            "memory.available": "256Mi",
            "nodefs.available": "2%",
            "nodefs.inodesFree": "2%",
            "imagefs.available": "2%",
        },
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
    }


def proxy_configuration(layout: Layout) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "hostnameOverride": NODE,
        "clusterCIDR": POD_RANGE,
        "oomScoreAdj": 0,
        "clientConnection": {"kubeconfig": str(layout.kubeconfig(KUBE_PROXY))},
        "metricsBindAddress": "127.0.0.1:10249",
        "healthzBindAddress": "127.0.0.1:10256",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nftables": {"minSyncPeriod": "200ms"},
    }


def remove_cgroups(root: Path = CGROUPS) -> None:
    """And whatever process is still in one: containers outlive a containerd that was killed."""
    for pid in pod_processes(root):
        processes.end(pid)
    for top in cgroups(root):
        for folder, _, _ in os.walk(top, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)


def pod_processes(root: Path = CGROUPS) -> set[int]:
    """All that runs in a container of a pod."""
    found: set[int] = set()
    for top in cgroups(root):
        for file in top.rglob("cgroup.procs"):
            with suppress(OSError):  # it went while we looked
                found.update(map(int, file.read_text(encoding="ascii").split()))
    return found - {0}  # how the kernel writes one that we cannot see


def cgroups(root: Path = CGROUPS) -> list[Path]:
    """Kubelet's own folders, one for each controller of cgroup v1, or the one of v2."""
    return sorted(folder for folder in [root / _POD_CGROUP, *root.glob(f"*/{_POD_CGROUP}")] if folder.is_dir())


def remove_traces(layout: Layout, root: Path = Path("/")) -> None:
    """What kubelet leaves in places that nobody can choose: links to logs, and a socket for plugins."""
    links, plugins = root / "var/log/containers", root / "var/lib/kubelet/device-plugins"
    if links.is_dir():
        for link in links.iterdir():
            if link.is_symlink() and os.readlink(link).startswith(f"{layout.run}/"):
                link.unlink()
    (plugins / "kubelet.sock").unlink(missing_ok=True)
    for folder in (links, plugins, plugins.parent):
        with suppress(OSError):
            folder.rmdir()  # only if nothing of anybody else is in it


def _write(file: Path, content: dict[str, object]) -> Path:
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return file
