"""The real kubectl as a function; answers are read as JSON."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gotools


class KubectlError(RuntimeError):
    """kubectl did not do it; its own words."""


class Kubectl:
    """kubectl with the rights of a kubeconfig; `program` is the pinned one unless given."""

    def __init__(self, kubeconfig: Path, program: Path | None = None) -> None:
        self._kubeconfig = kubeconfig
        self._program = program or gotools.KUBECTL.build()

    def run(self, *arguments: str, stdin: str | None = None, seconds: float = 120) -> str:
        done = subprocess.run(
            [str(self._program), *arguments],
            env=os.environ | {"KUBECONFIG": str(self._kubeconfig)},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def succeeds(self, *arguments: str) -> bool:
        try:
            self.run(*arguments)
        except (KubectlError, subprocess.TimeoutExpired):
            return False
        return True

    def get(self, *arguments: str) -> dict[str, Any]:
        """`get("pods", "--all-namespaces")` and the like: the object, or the list of them."""
        answer: dict[str, Any] = json.loads(self.run("get", *arguments, "--output=json"))
        return answer

    def apply(self, objects: Sequence[dict[str, Any]]) -> None:
        """Server-side, as a large CRD needs."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [*objects]})
        self.run("apply", "--server-side", "--force-conflicts", "--field-manager=testbed", "--filename=-", stdin=text)
