"""The command as a process of its own: exit codes, Ctrl-C, a question on a terminal, a reader that leaves."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from limbeck.cli import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
JOBS = "/apis/limbeck.dev/v1alpha1/namespaces/vision/compressionjobs"
PODS = "/api/v1/namespaces/vision/pods"
COMMAND = [sys.executable, "-m", "limbeck.cli.main"]


@pytest.fixture
def start(api) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command on the double; what still runs at the end is killed."""
    running: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **more: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=os.environ | {"KUBECONFIG": str(api.kubeconfig)},
            text=True,
            **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more,  # type: ignore[call-overload]
        )
        running.append(process)
        return process

    yield run
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("phase", "arguments", "code"),
    [
        ("Complete", ("wait", "emoji", "--timeout", "0"), 0),
        ("Failed", ("wait", "emoji"), 1),
        ("Running", ("wait", "other"), 2),
        ("Running", ("wait", "emoji", "--timeout", "0"), 4),
    ],
)
def test_exit_codes_are_those_that_scripts_rely_on(api, start, build_stored, phase, arguments, code) -> None:
    api.job(build_stored(phase))
    process = start(*arguments)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in errors) == (code, False)


def test_no_cluster_is_exit_code_three(start, tmp_path: Path) -> None:
    process = start("get", "--kubeconfig", str(tmp_path / "none"))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert errors.startswith("error: no cluster to talk to")


@pytest.mark.parametrize(
    ("module", "arguments", "advice"),
    [
        ("kubernetes", ("get",), "talking to a cluster needs kubernetes; run `pip install 'limbeck[operator]'`"),
        ("obstore", ("report", "emoji", "-o", "-"), "needs obstore; run `pip install obstore`"),
    ],
)
def test_what_is_not_installed_is_named_with_how_to_install_it(api, build_stored, module, arguments, advice) -> None:
    api.job(build_stored("Complete"))
    script = f"import sys; sys.modules[{module!r}] = None; sys.argv[1:] = {list(arguments)}\n"
    result = subprocess.run(
        [sys.executable, "-c", script + "from limbeck.cli.main import run; run()"],
        env=os.environ | {"KUBECONFIG": str(api.kubeconfig)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert advice in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("verb", ["wait", "watch", "logs"])
def test_ctrl_c_ends_what_waits_with_130_and_no_traceback(api, start, answer, build_stored, verb) -> None:
    api.job(build_stored("Running"))
    pods = {"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": []}
    api.tell(PODS, answer(body=pods))
    api.watch(PODS)
    process = start(verb, "emoji", *(["-f"] if verb == "logs" else []))
    api.wait_for_watch()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    if verb == "watch":
        assert errors == "emoji goes on; `limbeck watch emoji` shows it again\n"
        assert "emoji: Running" in output


@pytest.mark.parametrize(("said", "deletes"), [("y\n", True), ("n\n", False)])
def test_cancel_asks_on_a_terminal(api, start, build_stored, answer, said, deletes) -> None:
    api.job(build_stored("Running"))
    ours, theirs = pty.openpty()
    process = start("cancel", "emoji", stdin=theirs)
    os.close(theirs)
    os.write(ours, said.encode())
    output, errors = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 0
    assert "Delete emoji in namespace vision (Running" in errors
    assert ("emoji is cancelled" in output) is deletes
    assert any(request.method == "DELETE" for request in api.requests) is deletes


def test_a_reader_that_leaves_is_no_traceback(api, start, answer, build_stored) -> None:
    api.job(build_stored("Running"))
    pod = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "ray-head"}]}}
    pod["status"] = {"containerStatuses": [{"name": "ray-head", "state": {"running": {}}}]}
    page = {"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": [pod]}
    api.tell(PODS, answer(body=page))
    api.tell(f"{PODS}/p/log", answer(body=b"a line\n" * 200_000))
    process = start("logs", "emoji")
    assert process.stdout is not None
    assert process.stdout.readline() == "a line\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(60) == 1


def test_kubectl_finds_the_command_as_its_plugin() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["kubectl-limbeck"] == scripts["limbeck"] == f"{main.__name__}:{main.run.__name__}"
