from __future__ import annotations

import platform
from pathlib import Path

from limbeck_runtime.report.environment import environment


def test_the_processor_is_named_as_linux_names_it(tmp_path: Path) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text("processor\t: 0\nmodel name\t: AMD EPYC 7B13\nprocessor\t: 1\nmodel name\t: AMD EPYC 7B13\n")
    assert environment("cpu", 2, cpu_info).cpu == "AMD EPYC 7B13"


def test_a_machine_without_a_named_processor_still_has_an_environment(tmp_path: Path) -> None:
    found = environment("cpu", 1, tmp_path / "absent")
    assert found.cpu
    assert found.num_cores >= 1
    assert found.versions["python"] == platform.python_version()
    assert "torch" in found.versions
