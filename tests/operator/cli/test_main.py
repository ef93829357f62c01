"""The commands from outside: output, exit codes, and that help loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from limbeck.api.crd import custom_resource_definition
from limbeck.cli.yaml import dump

JOB = """\
metadata: {name: emoji}
spec:
  task: ImageText
  target: {sizeRatio: 16}
  teacher: {model: {loader: Transformers, uri: models/clip}}
  data: {train: {uri: data.tar, format: WebDataset}, validationPercent: 5}
  output: {uri: out}
"""


def _limbeck(*arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "limbeck.cli.main", *arguments], input=given, capture_output=True, text=True, check=False
    )


def test_a_valid_job_is_told_so() -> None:
    result = _limbeck("validate", "-f", "-", given=JOB)
    assert (result.returncode, result.stdout) == (0, "-: valid\n")


def test_what_cannot_be_run_yet_is_refused_with_its_line(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB + "  export: {formats: [LiteRt]}\n")
    result = _limbeck("validate", "-f", str(job))
    assert result.returncode == 2
    assert f"{job}:8: `spec.export.formats[0]`: must be one of Safetensors, Onnx" in result.stderr


def test_a_plan_shows_each_value_with_its_reason() -> None:
    result = _limbeck("plan", "-", given=JOB)
    assert result.returncode == 0
    assert "spec.student.shrink.widthPercent" in result.stdout
    assert "pipeline: distil (distil) -> int8 (quantize)" in result.stdout


def test_a_plan_as_yaml_is_a_job_file_again() -> None:
    resolved = _limbeck("plan", "-", "-o", "yaml", given=JOB).stdout
    assert _limbeck("validate", "-f", "-", given=resolved).returncode == 0
    assert "nothing to derive" in _limbeck("plan", "-", given=resolved).stdout


def test_the_crd_is_printed() -> None:
    assert _limbeck("crd").stdout == dump(custom_resource_definition())


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom limbeck.cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'kubernetes', 'numpy', 'pydantic', 'limbeck_runtime'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "HEAVY []"


def test_an_unknown_log_format_is_a_usage_error() -> None:
    assert _limbeck("local", "job.yaml", "--log-format", "xml").returncode == 2
