"""A replica: waits for the lease, then writes a ConfigMap again and again for as long as it may; run by test_lease.py.

python lease_holder.py KUBECONFIG NAMESPACE IDENTITY
"""

from __future__ import annotations

import signal
import sys
import threading
import time

from limbeck.kube.connection import load_client
from limbeck.kube.errors import KubeError
from limbeck.kube.lease import Lease, lead
from limbeck.kube.transport import Resource, Transport

CONFIG_MAPS = Resource("", "v1", "configmaps")


def main() -> None:
    kubeconfig, namespace, identity = sys.argv[1:]
    client = load_client(kubeconfig)
    client.user_agent = identity  # by which the audit log tells the replicas apart
    transport = Transport(client)
    lease = Lease(transport, namespace, "replicas", identity)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda _signal, _frame: stop.set())

    def write() -> None:
        """As a controller does: by what it read last, so that a write held up on its way cannot undo a later one."""
        board = transport.get(CONFIG_MAPS, "board", namespace)
        while not stop.is_set():
            if lease.is_held():
                metadata = {"resourceVersion": board["metadata"]["resourceVersion"]}
                body = {"metadata": metadata, "data": {"last": f"{identity} {time.time()}"}}
                try:
                    board = transport.patch(CONFIG_MAPS, "board", body, namespace)
                except KubeError as error:
                    print(error, file=sys.stderr)
            stop.wait(0.02)

    writer = threading.Thread(target=write)

    def act() -> None:
        writer.start()
        print("acting", flush=True)

    print("waiting", flush=True)
    lead(lease, act, stop, wind_down=writer.join)


if __name__ == "__main__":
    main()
