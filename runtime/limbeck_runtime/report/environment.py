"""Where the figures were measured: processor, cores, threads, memory and versions."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from limbeck.api.report import Environment

# Libraries whose version can change a figure.
PACKAGES = ("limbeck", "torch", "torchao", "transformers", "timm", "onnxruntime", "ray", "numpy")
CPU_INFO = Path("/proc/cpuinfo")


def environment(device: str, num_threads: int, cpu_info: Path = CPU_INFO) -> Environment:
    """This process's machine; `device` and `num_threads` are those that the models were measured with."""
    return Environment(
        device=device,
        cpu=_cpu_name(cpu_info),
        num_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        num_threads=num_threads,
        memory_bytes=psutil.virtual_memory().total,
        platform=platform.platform(),
        versions={"python": platform.python_version()} | _versions(),
    )


def _cpu_name(cpu_info: Path) -> str:
    """The processor as Linux names it; elsewhere, and on processors without a name, the architecture."""
    try:
        lines = cpu_info.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
