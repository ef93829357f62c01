"""KubeRay as a mimic in a process of its own, so that its work is not counted as the operator's.

    python -m benchmarks.operator.play KUBECONFIG succeed

It says "ready", and plays until its standard input ends. `run-on` lets every run go on for ever.
"""

from __future__ import annotations

import sys

from benchmarks.operator.cluster import RUNS_ON, SUCCEEDED, Mimic
from limbeck.kube.connection import load_client
from limbeck.kube.transport import Transport


def main(kubeconfig: str, ending: str) -> None:
    endings = {"succeed": [SUCCEEDED], "run-on": [RUNS_ON]}[ending]
    mimic = Mimic(Transport(load_client(kubeconfig)), lambda _job: endings, num_workers=4, with_workers=False)
    mimic.start()
    print("ready", flush=True)
    sys.stdin.read()
    mimic.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
