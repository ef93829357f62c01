"""Builds pinned Go programs into the cache; each folder in `tools/` is a module with its own go.mod and go.sum.

The cache lies outside the checkout ($LIMBECK_CACHE, else ~/.cache/limbeck); its key is the tool's version, the hash of
go.sum (and of the module's own sources) and the version of Go, so that a change of any builds anew. Left out on
purpose: throwing old builds away.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MODULES = Path(__file__).parent / "tools"


class CannotBuildError(RuntimeError):
    """There is no Go here to build a tool with."""


@dataclass(frozen=True)
class GoTool:
    """One program: `package` of the module in `tools/<module>`, named `program` when built.

    `stamps` are variables that the linker sets: NAME=VALUE, where {version}, {major} and {minor} are the tool's.
    `versioned_by` is the Go module whose version is the tool's; empty = the one that holds the package. `tags` are Go's
    build tags.
    """

    module: str
    package: str
    program: str
    stamps: tuple[str, ...] = ()
    versioned_by: str = ""
    tags: tuple[str, ...] = ()

    def version(self) -> str:
        """What go.mod requires of the module that the package is in."""
        wanted = self.versioned_by or self.package
        required = requirements(self.module)
        versions = [version for name, version in required.items() if f"{wanted}/".startswith(f"{name}/")]
        assert versions, f"tools/{self.module}/go.mod requires nothing that holds {wanted}"
        return versions[0]

    def folder(self) -> Path:
        """Where the build lies in the cache, or will; its name says what went into it."""
        module = MODULES / self.module
        hashed = hashlib.sha256((module / "go.sum").read_bytes())
        for source in sorted(module.glob("*.go")):
            hashed.update(source.read_bytes())
        hashed.update(",".join(self.tags).encode())
        return tool_cache() / f"{self.program}-{self.version()}-{hashed.hexdigest()[:12]}-{_go_version()}"

    def is_built(self) -> bool:
        return shutil.which("go") is not None and (self.folder() / self.program).exists()

    def build(self) -> Path:
        """The program, built unless it is in the cache; minutes the first time. Safe to call from two processes."""
        if shutil.which("go") is None:
            raise CannotBuildError(f"needs Go to build {self.program}")
        folder = self.folder()
        binary = folder / self.program
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not binary.exists():
                self._compile(folder / "unfinished")
                (folder / "unfinished").rename(binary)
        return binary

    def _compile(self, target: Path) -> None:
        flags = " ".join(["-s -w", *(f"-X {stamp}" for stamp in self._filled_stamps())])
        how = ["-trimpath", "-buildvcs=false", f"-tags={','.join(self.tags)}", f"-ldflags={flags}"]
        subprocess.run(
            ["go", "build", *how, "-o", str(target), self.package],
            cwd=MODULES / self.module,
            env=os.environ | {"CGO_ENABLED": "0"},
            check=True,
        )

    def _filled_stamps(self) -> list[str]:
        version = self.version()
        major, minor, _ = version.removeprefix("v").split(".", 2)
        return [stamp.format(version=version, major=major, minor=minor) for stamp in self.stamps]


def requirements(module: str) -> dict[str, str]:
    """Versions by Go module, as `tools/<module>/go.mod` requires them."""
    text = (MODULES / module / "go.mod").read_text(encoding="utf-8")
    return dict(re.findall(r"^(?:require\s+|\t)(\S+) (v\S+)", text, re.MULTILINE))


def source_folder(module: str, name: str) -> Path:
    """The sources of the Go module `name` that `tools/<module>` requires, downloaded unless they are here."""
    if shutil.which("go") is None:
        raise CannotBuildError(f"needs Go to download {name}")
    command = ["go", "mod", "download", "-json", name]
    answer = subprocess.run(command, cwd=MODULES / module, check=True, capture_output=True, text=True)
    return Path(json.loads(answer.stdout)["Dir"])


def cache() -> Path:
    """Where everything is kept that takes long to make and outlives a checkout."""
    return Path(os.environ.get("LIMBECK_CACHE", Path.home() / ".cache" / "limbeck"))


def tool_cache() -> Path:
    return cache() / "tools"


@functools.cache
def _go_version() -> str:
    return subprocess.run(["go", "env", "GOVERSION"], check=True, capture_output=True, text=True).stdout.strip()


# Kubernetes says at run time which version it is, and clients go by it.
_KUBERNETES_STAMPS = tuple(
    f"k8s.io/component-base/version.{stamp}"
    for stamp in ("gitVersion={version}", "gitMajor={major}", "gitMinor={minor}")
)


def _kubernetes(program: str) -> GoTool:
    return GoTool("kubernetes", f"k8s.io/kubernetes/cmd/{program}", program, _KUBERNETES_STAMPS)


ETCD = GoTool("etcd", "go.etcd.io/etcd/server/v3", "etcd")
KUBE_APISERVER = _kubernetes("kube-apiserver")
KUBE_CONTROLLER_MANAGER = _kubernetes("kube-controller-manager")
KUBE_SCHEDULER = _kubernetes("kube-scheduler")
KUBELET = _kubernetes("kubelet")
KUBE_PROXY = _kubernetes("kube-proxy")
KUBECTL = _kubernetes("kubectl")
COREDNS = GoTool("coredns", ".", "coredns", versioned_by="github.com/coredns/coredns")
KUBERAY = GoTool("kuberay", "github.com/ray-project/kuberay/ray-operator", "ray-operator")
# `helm template` takes the cluster to be of the version that it is told here.
HELM = GoTool(
    "helm",
    "helm.sh/helm/v3/cmd/helm",
    "helm",
    (
        "helm.sh/helm/v3/internal/version.version={version}",
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMajor=1",
        "helm.sh/helm/v3/pkg/chartutil.k8sVersionMinor=34",
    ),
)
KUSTOMIZE = GoTool(
    "kustomize",
    "sigs.k8s.io/kustomize/kustomize/v5",
    "kustomize",
    ("sigs.k8s.io/kustomize/api/provenance.version={version}",),
)
VERSITYGW = GoTool("versitygw", "github.com/versity/versitygw/cmd/versitygw", "versitygw", ("main.Version={version}",))
# With nothing to find targets by but Kubernetes: the rest would bring the libraries of every cloud.
PROMETHEUS = GoTool(
    "prometheus",
    "github.com/prometheus/prometheus/cmd/prometheus",
    "prometheus",
    ("github.com/prometheus/common/version.Version={version}",),
    tags=("remove_all_sd", "enable_kubernetes_sd"),
)
KSTATUS = GoTool("kstatus", ".", "kstatus", versioned_by="sigs.k8s.io/cli-utils")
