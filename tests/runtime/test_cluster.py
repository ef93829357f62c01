"""A run that uses Ray keeps what is its own: its signals, and a cluster that lives as long as it does."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.ray


def _run(script: str) -> tuple[str, str]:
    """The last line of what a process of its own prints, and what it writes to standard error."""
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=200
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()[-1], finished.stderr


def test_signals_are_still_the_runs_own_when_another_thread_has_started_ray() -> None:
    last, errors = _run(
        """
        import os, signal, threading
        from limbeck_runtime import cluster

        asked = threading.Event()
        signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
        thread = threading.Thread(target=cluster.connect)
        thread.start()
        thread.join()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(10)
        print("asked")
        """
    )
    assert last == "asked"
    # So says Ray's core before it aborts the process, three seconds later.
    assert "SIGTERM received" not in errors


def test_the_cluster_outlives_the_thread_that_started_it_and_ends_when_asked() -> None:
    last, _ = _run(
        """
        import threading
        from limbeck_runtime import cluster

        assert not cluster.connected()
        thread = threading.Thread(target=cluster.connect)
        thread.start()
        thread.join()
        import ray

        @ray.remote(num_cpus=0)
        def answer():
            return 42

        assert cluster.connected()
        print(ray.get(answer.remote(), timeout=100))
        cluster.disconnect()
        assert not cluster.connected()
        """
    )
    assert last == "42"


def test_a_run_that_left_the_cluster_may_come_back() -> None:
    last, _ = _run(
        """
        from limbeck_runtime import cluster

        cluster.leave()  # nothing to leave
        cluster.connect()
        cluster.leave()
        cluster.connect()
        assert cluster.connected()
        cluster.leave()
        cluster.disconnect()
        assert not cluster.connected()
        print("ended")
        """
    )
    assert last == "ended"
