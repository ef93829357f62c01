"""A real one-node Kubernetes on this machine, with KubeRay, S3 and Prometheus: `python tests/cluster/testbed.py up`.

    up             start it, or do nothing if it runs; prints the settings to use it, for `eval`
    down           end it; nothing stays but caches and logs
    purge          down, and throw the image store away too
    status         what runs, with its memory, and the pods
    load ARCHIVE   give it an image (docker-archive or OCI), unless it has just that one
    images         build the operator's and the runtime's image, and give it what it lacks of them

With KUBECONFIG set to another cluster, `up` takes that one as it is and starts nothing. Needs root, Debian and Go.
Left out on purpose: a second node, NetworkPolicy, load balancers, dynamic volumes, a registry.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import clusterdns
import containerd
import controldaemons
import debian
import gotools
import images
import kuberay
import mounts
import network
import node
import prometheus
import s3server
from containerd import Containerd
from imagearchive import Image
from kubectl import Kubectl, KubectlError
from layout import API_SERVICE_ADDRESS, CLUSTER_DOMAIN, NODE, Layout
from processes import Daemons
from progress import step
from prometheus import Prometheus
from s3server import S3Access

TOOLS = (
    *controldaemons.TOOLS,
    *node.TOOLS,
    gotools.KUBECTL,
    gotools.KUSTOMIZE,
    gotools.COREDNS,
    gotools.KUBERAY,
    gotools.VERSITYGW,
    gotools.PROMETHEUS,
)
# What writes to the cluster or starts pods ends first.
_STOP_ORDER = (
    node.KUBELET,
    node.KUBE_PROXY,
    controldaemons.SCHEDULER,
    controldaemons.CONTROLLER_MANAGER,
    controldaemons.API_SERVER,
    controldaemons.ETCD,
    s3server.NAME,
    prometheus.NAME,
)
_NODE_SECONDS = _DNS_SECONDS = 90.0
_BUSYBOX = "busybox-static"
_BUSYBOX_NAMES = ("sh", "cat", "echo", "nc", "nslookup", "sleep", "wget")


def busybox_image() -> Image:
    """Every pod's pause container; with a shell, wget and nslookup it serves tests in pods too."""
    files = {"/bin/busybox": debian.unpack(_BUSYBOX) / "bin" / "busybox"}
    links = {f"/bin/{name}": "busybox" for name in _BUSYBOX_NAMES}
    return Image("localhost/busybox:testbed", files, command=["/bin/sleep", "1000000000"], links=links)


class Testbed:
    """One cluster of this machine, up or not."""

    __test__ = False  # no test, whatever pytest reads out of the name

    def __init__(self, layout: Layout | None = None) -> None:
        self.layout = layout or Layout()
        self.daemons = Daemons(self.layout.pids, self.layout.logs)
        self.containerd = Containerd(self.layout, self.daemons)
        self.s3 = S3Access()
        self.prometheus = Prometheus()

    @property
    def kubeconfig(self) -> Path:
        return self.layout.kubeconfig()

    @property
    def audit_log(self) -> Path:
        """Every write to the API server, one JSON object a line."""
        return self.layout.audit_log

    def kubectl(self) -> Kubectl:
        return Kubectl(self.kubeconfig)

    def settings(self) -> dict[str, str]:
        """Environment variables by which it is used."""
        return {
            "KUBECONFIG": str(self.kubeconfig),
            **self.s3.environment(),
            "LIMBECK_TESTBED_BUCKET": self.s3.bucket,
            "LIMBECK_TESTBED_PROMETHEUS": prometheus.ADDRESS,
        }

    def is_up(self) -> bool:
        return {*_STOP_ORDER, containerd.PROGRAM} <= {*self.daemons.running()} and controldaemons.is_ready(self.layout)

    def up(self) -> None:
        """Returns when node, DNS, KubeRay, S3 and Prometheus answer. One that was cut short is thrown away first."""
        with self._alone():
            if self.is_up():
                return
            self._throw_away()
            prepare()
            shutil.rmtree(self.layout.logs, ignore_errors=True)
            for folder in (self.layout.run, self.layout.logs, self.layout.images):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                self._start()
            except BaseException:
                self._write_down_what_is_there()
                self._throw_away()
                raise

    def down(self) -> None:
        with self._alone():
            self._throw_away()

    def purge(self) -> None:
        with self._alone():
            self._throw_away()
            shutil.rmtree(self.layout.images, ignore_errors=True)

    def load(self, archive: Path) -> list[str]:
        """The names that were imported; none if the cluster has just these already."""
        return self.containerd.load(archive)

    def load_built(self, target: images.Target) -> int:
        """The image of the checkout as it is now, built if need be; the bytes that had to be copied."""
        return images.build(target).load(self.containerd.ctr, self.layout.images)

    def remains(self) -> list[str]:
        """All that `down` must have removed and has not."""
        found = [f"process {name} ({pid})" for name, pid in self.daemons.running().items()]
        found += [f"container's keeper ({pid})" for pid in self.containerd.shims()]
        found += [f"mount {point}" for point in mounts.below(self.layout.home)]
        found += network.remains()
        found += [f"cgroup {folder}" for folder in node.cgroups()]
        found += [f"folder {self.layout.run}"] if self.layout.run.exists() else []
        return found

    def memory(self) -> dict[str, float]:
        """Resident MiB of each process; all containers' keepers as one."""
        sizes = {name: _resident_mib(pid) for name, pid in self.daemons.running().items()}
        return sizes | {"containerd-shim": sum(map(_resident_mib, self.containerd.shims()))}

    def _start(self) -> None:
        busybox = busybox_image()
        with step("Certificates, network"):
            controldaemons.write_certificates(self.layout)
            network.up(self.layout)
        with step("containerd"):
            self.containerd.start(busybox.name)
        for image in (busybox, clusterdns.image(), kuberay.image()):
            if not self.containerd.has(image):
                with step(f"Image {image.name}"):
                    self.containerd.make(image)
        with step("Control plane"):
            controldaemons.start(self.layout, self.daemons)
        node.start(self.layout, self.daemons)
        kubectl = self.kubectl()
        kubectl.apply([*clusterdns.objects(), *s3server.objects(), *prometheus.objects()])
        with step("S3, Prometheus"):
            s3server.start(self.layout, self.daemons, self.s3)
            prometheus.start(self.layout, self.daemons, self.layout.kubeconfig("prometheus"))
        with step("Node"):
            ready = ["get", "node", NODE, "--output=jsonpath={.status.conditions[?(@.type=='Ready')].status}"]
            self.daemons.wait(node.KUBELET, _NODE_SECONDS, "Ready node", lambda: _says(kubectl, ready) == "True")
        with step("KubeRay"):
            kuberay.install(kubectl)
        with step("DNS"):
            host = f"kubernetes.default.svc.{CLUSTER_DOMAIN}"
            self.daemons.wait(
                node.KUBE_PROXY, _DNS_SECONDS, "answer of DNS", lambda: clusterdns.resolve(host) == API_SERVICE_ADDRESS
            )

    def _throw_away(self) -> None:
        """Ends what runs and removes what it left; also after half an `up`, or none. The state is thrown away, so no
        process needs to end by itself."""
        for name in _STOP_ORDER:
            self.daemons.stop(name)
        self.containerd.stop()
        mounts.unmount_below(self.layout.run)
        network.down(self.layout)
        node.remove_cgroups()
        node.remove_traces(self.layout)
        shutil.rmtree(self.layout.run, ignore_errors=True)

    def _write_down_what_is_there(self) -> None:
        """Beside the logs, for whoever looks for the reason of a start that failed."""
        with suppress(KubectlError, OSError):
            text = self.kubectl().run("describe", "nodes,pods", "--all-namespaces")
            (self.layout.logs / "failed-start.txt").write_text(text, encoding="utf-8")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time, the others wait."""
        if os.geteuid() != 0:
            raise PermissionError("the test cluster needs root: namespaces, mounts and network interfaces")
        self.layout.home.mkdir(parents=True, exist_ok=True)
        with self.layout.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def prepare() -> None:
    """All that takes long the first time, and nothing that runs: Debian's packages, Go's programs."""
    lacking = debian.missing()
    if lacking:
        with step(f"Install Debian packages: {' '.join(lacking)}"):
            debian.install(lacking)
    if not debian.unpacked_folder(_BUSYBOX).exists():
        with step(f"Unpack Debian package {_BUSYBOX}"):
            debian.unpack(_BUSYBOX)
    for tool in TOOLS:
        if not tool.is_built():
            with step(f"Build {tool.program} {tool.version()}"):
                tool.build()


def _says(kubectl: Kubectl, arguments: list[str]) -> str:
    try:
        return kubectl.run(*arguments)
    except KubectlError:
        return ""


def _resident_mib(pid: int) -> float:
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _another_cluster(testbed: Testbed) -> str | None:
    """The KUBECONFIG that somebody set, unless it is ours."""
    named = os.environ.get("KUBECONFIG")
    return named if named and Path(named) != testbed.kubeconfig else None


def _print_status(testbed: Testbed) -> None:
    for name, pid in testbed.daemons.running().items():
        print(f"{name:26} pid {pid:<8} {testbed.memory()[name]:7.1f} MiB")
    print(f"{'containerd-shim':26} {'':12} {testbed.memory()['containerd-shim']:7.1f} MiB")
    if testbed.is_up():
        print(testbed.kubectl().run("get", "nodes,pods", "--all-namespaces", "--output=wide"), end="")
    else:
        print("down" + "".join(f"\n  left over: {thing}" for thing in testbed.remains()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["up", "down", "purge", "status", "load", "images"])
    parser.add_argument("archive", nargs="?", type=Path)
    arguments = parser.parse_args()
    if (arguments.command == "load") != (arguments.archive is not None):
        parser.error("load, and only load, takes an archive")
    testbed = Testbed()
    match arguments.command:
        case "up":
            _up(testbed)
        case "down" | "purge":
            with step("Down"):
                testbed.down() if arguments.command == "down" else testbed.purge()
        case "status":
            _print_status(testbed)
        case "load":
            with step(f"Load {arguments.archive}"):
                names = testbed.load(arguments.archive)
            print(f"imported {' '.join(names)}" if names else "nothing to do: it is the one that the cluster has")
        case "images":
            for target in images.TARGETS:
                with step(f"Image {images.image_name(target)}"):
                    testbed.load_built(target)


def _up(testbed: Testbed) -> None:
    named = _another_cluster(testbed)
    if named:
        version = Kubectl(Path(named)).run("version", seconds=20).splitlines()[-1]
        print(f"KUBECONFIG names another cluster, which is taken as it is: {version}", file=sys.stderr)
        print(f"export KUBECONFIG={named}")
        return
    testbed.up()
    for name, value in testbed.settings().items():
        print(f"export {name}={value}")


if __name__ == "__main__":
    main()
