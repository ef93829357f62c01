"""Builds pinned Go programs into the cache; each folder in `tools/` is a module with its own go.mod and go.sum.

The cache lies outside the checkout ($LIMBECK_CACHE, else ~/.cache/limbeck); its key is the tool's version, the hash of
go.sum and the version of Go, so that a change of any builds anew. Left out on purpose: throwing old builds away.
"""

from __future__ import annotations

import fcntl
import hashlib
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
    """One program: `package` of the module in `tools/<module>`, named `program` when built."""

    module: str
    package: str
    program: str
    linker_flags: str = "-s -w"

    def version(self) -> str:
        """What go.mod requires of the module that the package is in."""
        text = (MODULES / self.module / "go.mod").read_text(encoding="utf-8")
        required = re.findall(r"^(?:require\s+|\t)(\S+) (v\S+)", text, re.MULTILINE)
        versions = [
            version for name, version in required if self.package == name or self.package.startswith(name + "/")
        ]
        assert versions, f"tools/{self.module}/go.mod requires nothing that holds {self.package}"
        return versions[0]

    def build(self) -> Path:
        """The program, built unless it is in the cache; minutes the first time. Safe to call from two processes."""
        if shutil.which("go") is None:
            raise CannotBuildError(f"needs Go to build {self.program}")
        sums = hashlib.sha256((MODULES / self.module / "go.sum").read_bytes()).hexdigest()[:12]
        go = subprocess.run(["go", "env", "GOVERSION"], check=True, capture_output=True, text=True).stdout.strip()
        folder = tool_cache() / f"{self.program}-{self.version()}-{sums}-{go}"
        binary = folder / self.program
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not binary.exists():
                self._compile(folder / "unfinished")
                (folder / "unfinished").rename(binary)
        return binary

    def _compile(self, target: Path) -> None:
        flags = f"{self.linker_flags} {self._version_flags()}".strip()
        subprocess.run(
            ["go", "build", "-trimpath", "-buildvcs=false", f"-ldflags={flags}", "-o", str(target), self.package],
            cwd=MODULES / self.module,
            env=os.environ | {"CGO_ENABLED": "0"},
            check=True,
        )

    def _version_flags(self) -> str:
        """Kubernetes says at run time which version it is, and clients go by it."""
        if not self.package.startswith("k8s.io/kubernetes/"):
            return ""
        major, minor, _ = self.version().removeprefix("v").split(".", 2)
        where = "-X k8s.io/component-base/version."
        return f"{where}gitVersion={self.version()} {where}gitMajor={major} {where}gitMinor={minor}"


def tool_cache() -> Path:
    return Path(os.environ.get("LIMBECK_CACHE", Path.home() / ".cache" / "limbeck")) / "tools"


ETCD = GoTool("etcd", "go.etcd.io/etcd/server/v3", "etcd")
KUBE_APISERVER = GoTool("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver")
