"""The cluster's network on one machine: an address for the node, a bridge for the pods, and nothing that leaves either.

Left out on purpose: enforcing NetworkPolicy (a plain bridge cannot) and a second node.
"""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import suppress
from pathlib import Path

from layout import (
    FIREWALL_TABLE,
    NODE_ADDRESS,
    NODE_BRIDGE,
    POD_BRIDGE,
    POD_GATEWAY,
    POD_RANGE,
    SERVICE_RANGE,
    Layout,
)

# What pods need to reach each other's services; `down` puts the old values back.
_KERNEL_SETTINGS = {"net/ipv4/ip_forward": "1", "net/bridge/bridge-nf-call-iptables": "1"}
CNI_NETWORK = "testbed"
_KUBE_PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))


def up(layout: Layout) -> None:
    _set_kernel(layout.run / "kernel-settings.json")
    # A bridge without ports, since not every kernel has dummy devices: nothing depends on how the machine is connected.
    if not Path("/sys/class/net", NODE_BRIDGE).exists():
        _run("ip", "link", "add", NODE_BRIDGE, "type", "bridge")
    _run("ip", "address", "replace", f"{NODE_ADDRESS}/32", "dev", NODE_BRIDGE)
    _run("ip", "link", "set", NODE_BRIDGE, "up")
    # Processes of the machine reach services by kube-proxy's rules for outgoing packets, which want a route first.
    _run("ip", "route", "replace", SERVICE_RANGE, "dev", NODE_BRIDGE, "src", NODE_ADDRESS)
    _run("nft", "-f", "-", stdin=firewall())
    folder = layout.run / "cni"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "10-testbed.conflist").write_text(json.dumps(cni_configuration(layout), indent=1), encoding="utf-8")


def down(layout: Layout) -> None:
    """Also after half an `up`, or none."""
    for bridge in (POD_BRIDGE, NODE_BRIDGE):
        if Path("/sys/class/net", bridge).exists():
            _run("ip", "link", "delete", bridge)
    tables = _nft_tables()
    for family, table in (("inet", FIREWALL_TABLE), *_KUBE_PROXY_TABLES):
        if f"table {family} {table}" in tables:
            _run("nft", "delete", "table", family, table)
    forget_pods()
    with suppress(FileNotFoundError):
        for name, value in json.loads((layout.run / "kernel-settings.json").read_text(encoding="utf-8")).items():
            Path("/proc/sys", name).write_text(value, encoding="ascii")


def remains() -> list[str]:
    """Interfaces and tables of ours that are there."""
    tables = _nft_tables()
    links = [f"interface {name}" for name in (POD_BRIDGE, NODE_BRIDGE) if Path("/sys/class/net", name).exists()]
    ours = (("inet", FIREWALL_TABLE), *_KUBE_PROXY_TABLES)
    return links + [f"nft table {family} {name}" for family, name in ours if f"table {family} {name}" in tables]


def firewall() -> str:
    """Rules that keep packets of pods and services on this machine, and may be loaded twice."""
    inside = f'"{POD_BRIDGE}", "{NODE_BRIDGE}", "lo"'
    return f"""
table inet {FIREWALL_TABLE}
delete table inet {FIREWALL_TABLE}
table inet {FIREWALL_TABLE} {{
  chain from_pods {{
    type filter hook forward priority -10;
    ip saddr {POD_RANGE} oifname != {{ {inside} }} counter reject
  }}
  chain astray {{
    type filter hook postrouting priority 50;
    ip daddr {{ {POD_RANGE}, {SERVICE_RANGE} }} oifname != {{ {inside} }} counter drop
  }}
}}
"""


def rejected_packets() -> int:
    """How often a pod tried to leave."""
    rules = _run("nft", "list", "chain", "inet", FIREWALL_TABLE, "from_pods")
    found = re.search(r"counter packets (\d+)", rules)
    assert found, rules
    return int(found[1])


def cni_configuration(layout: Layout) -> dict[str, object]:
    bridge = {
        "type": "bridge",
        "bridge": POD_BRIDGE,
        "isDefaultGateway": True,
        "hairpinMode": True,  # a pod may reach itself by its service
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(layout.run / "pod-addresses"),
            "ranges": [[{"subnet": POD_RANGE, "gateway": POD_GATEWAY}]],
        },
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": CNI_NETWORK, "plugins": [bridge, ports]}


def forget_pods(folder: Path = Path("/var/lib/cni/results")) -> None:
    """The plugins' notes on each pod of ours: its network's, and of the same pod the loopback's."""
    for note in folder.glob(f"{CNI_NETWORK}-*-eth0"):
        pod = note.name.removeprefix(f"{CNI_NETWORK}-").removesuffix("-eth0")
        for file in (note, folder / f"cni-loopback-{pod}-lo"):
            file.unlink(missing_ok=True)


def _set_kernel(record: Path) -> None:
    """Writes down what was there before, once."""
    subprocess.run(["modprobe", "--quiet", "br_netfilter"], check=False)  # built in here and there
    old = {name: Path("/proc/sys", name).read_text(encoding="ascii") for name in _KERNEL_SETTINGS}
    if not record.exists():
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(old), encoding="utf-8")
    for name, value in _KERNEL_SETTINGS.items():
        Path("/proc/sys", name).write_text(value, encoding="ascii")


def _nft_tables() -> set[str]:
    with suppress(FileNotFoundError):
        return set(_run("nft", "list", "tables").splitlines())
    return set()


def _run(*command: str, stdin: str | None = None) -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
