"""limbeck in a cluster as its users have it: the real helm installs charts/limbeck.

Left out on purpose: what the chart says under other values, which tests/charts asks.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gotools
import kuberay

CHART = Path(__file__).parents[2] / "charts" / "limbeck"
NAME = "limbeck"
NAMESPACE = "limbeck-system"
_SECONDS = 300


def values(operator_image: str, runtime_image: str, pull_policy: str, kuberay_namespace: str) -> dict[str, Any]:
    """Small, on images of one's own, and quick to notice."""
    return {
        "image": _image(operator_image) | {"pullPolicy": pull_policy},
        "runtimeImage": _image(runtime_image) | {"pullPolicy": pull_policy},
        "operator": {
            "resources": {"requests": {"cpu": "20m", "memory": "96Mi"}},
            "settings": {"kuberayNamespace": kuberay_namespace, "probeSeconds": 5, "retryBaseSeconds": 2},
        },
        "server": {"resources": {"requests": {"cpu": "20m", "memory": "96Mi"}}},
    }


def testbed_values() -> dict[str, Any]:
    """For the test cluster, whose images are imported and never pulled."""
    images = [f"localhost/limbeck-{target}:dev" for target in ("operator", "runtime")]
    return values(*images, "Never", kuberay.NAMESPACE)


class Release:
    """One installation; `install` again is an upgrade."""

    def __init__(self, kubeconfig: Path) -> None:
        self._environment = os.environ | {"KUBECONFIG": str(kubeconfig)}

    def install(self, settings: Mapping[str, Any]) -> str:
        """Returns helm's notes when operator and server are ready."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(settings, file)
            file.flush()
            return self._helm(
                "upgrade",
                "--install",
                NAME,
                str(CHART),
                "--create-namespace",
                f"--values={file.name}",
                "--wait",
                f"--timeout={_SECONDS}s",
            )

    def uninstall(self) -> None:
        self._helm("uninstall", NAME, "--ignore-not-found", "--wait")

    def _helm(self, *arguments: str) -> str:
        command = [str(gotools.HELM.build()), "--namespace", NAMESPACE, *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"helm {arguments[0]} failed: {done.stderr.strip()}")
        return done.stdout


def _image(name: str) -> dict[str, str]:
    """`registry/repository:tag` in the chart's fields."""
    repository, _, tag = name.rpartition(":")
    return {"repository": repository, "tag": tag}
