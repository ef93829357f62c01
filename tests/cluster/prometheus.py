"""A real Prometheus beside the cluster, which finds by itself what to scrape, and questions to it.

It scrapes pods that say `prometheus.io/scrape: "true"` (with prometheus.io/port, path and scheme), and each endpoint of
services that say so. Left out on purpose: PodMonitor and ServiceMonitor, which only Prometheus's own operator reads.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gotools
import manifestfiles
import urllib3
from layout import NODE_ADDRESS, PROMETHEUS_PORT, Layout
from processes import Daemons

NAME = "prometheus"
USER = "testbed:prometheus"
ADDRESS = f"http://{NODE_ADDRESS}:{PROMETHEUS_PORT}"
_START_SECONDS = 30.0
_INTERVAL = "2s"


@dataclass(frozen=True)
class Sample:
    labels: dict[str, str]
    value: float


class Prometheus:
    """Answers questions in PromQL."""

    def __init__(self, address: str = ADDRESS) -> None:
        self._address = address

    def query(self, expression: str) -> list[Sample]:
        """The value of each series now."""
        result = self._get("/api/v1/query", {"query": expression})["result"]
        return [Sample(series["metric"], float(series["value"][1])) for series in result]

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped, each with `labels`, `health` and `lastError`."""
        active: list[dict[str, Any]] = self._get("/api/v1/targets", {"state": "active"})["activeTargets"]
        return active

    def is_ready(self) -> bool:
        try:
            with urllib3.PoolManager(retries=False, timeout=2.0) as pool:
                return pool.request("GET", f"{self._address}/-/ready").status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def _get(self, path: str, fields: dict[str, str]) -> Any:
        with urllib3.PoolManager(retries=False, timeout=10.0) as pool:
            answer = pool.request("GET", self._address + path, fields=fields)
        content = json.loads(answer.data)
        if content["status"] != "success":
            raise ValueError(f"Prometheus refuses {fields}: {content['error']}")
        return content["data"]


def configuration(kubeconfig: Path) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": _INTERVAL, "evaluation_interval": _INTERVAL},
        "scrape_configs": [
            _job("pods", "pod", "pod", kubeconfig, [_pods_that_run()]),
            _job("services", "endpointslice", "service", kubeconfig, []),
        ],
    }


def objects() -> list[dict[str, Any]]:
    return manifestfiles.read("prometheus.yaml", user=USER)


def start(layout: Layout, daemons: Daemons, kubeconfig: Path) -> None:
    file = layout.run / "prometheus.json"
    file.write_text(json.dumps(configuration(kubeconfig), indent=1), encoding="utf-8")  # JSON is YAML too
    command = [
        str(gotools.PROMETHEUS.build()),
        f"--config.file={file}",
        f"--storage.tsdb.path={layout.run / 'prometheus'}",
        f"--web.listen-address={NODE_ADDRESS}:{PROMETHEUS_PORT}",
    ]
    daemons.start(NAME, command)
    daemons.wait(NAME, _START_SECONDS, "readiness of Prometheus", Prometheus().is_ready)


def _job(name: str, role: str, annotated: str, kubeconfig: Path, more: list[dict[str, Any]]) -> dict[str, Any]:
    """Targets of a role whose `annotated` object asks to be scraped, labelled with their namespace, pod and service."""
    annotation = f"__meta_kubernetes_{annotated}_annotation_prometheus_io"
    return {
        "job_name": name,
        "kubernetes_sd_configs": [{"role": role, "kubeconfig_file": str(kubeconfig)}],
        "tls_config": {"insecure_skip_verify": True},  # what is served within the cluster is signed by many
        "relabel_configs": [
            {"action": "keep", "source_labels": [f"{annotation}_scrape"], "regex": "true"},
            *more,
            _copy(f"{annotation}_path", "__metrics_path__"),
            _copy(f"{annotation}_scheme", "__scheme__"),
            {
                "action": "replace",
                "source_labels": ["__address__", f"{annotation}_port"],
                "regex": r"([^:]+)(?::\d+)?;(\d+)",
                "replacement": "$1:$2",
                "target_label": "__address__",
            },
            _copy("__meta_kubernetes_namespace", "namespace"),
            _copy("__meta_kubernetes_pod_name", "pod"),
            _copy("__meta_kubernetes_service_name", "service"),
        ],
    }


def _copy(source: str, target: str) -> dict[str, Any]:
    return {"action": "replace", "source_labels": [source], "regex": "(.+)", "target_label": target}


def _pods_that_run() -> dict[str, Any]:
    return {"action": "keep", "source_labels": ["__meta_kubernetes_pod_phase"], "regex": "Running"}
