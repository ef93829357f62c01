"""Ray, as this run uses it: the cluster that it runs in, or a small one on this machine for as long as it runs.

Ray starts when something first needs it (about four seconds), never before.
"""

from __future__ import annotations

import logging
import os
import threading

_LOCK = threading.Lock()


def connect() -> None:
    """Be connected to Ray when this returns; the first call starts or joins a cluster. May be called by any thread.

    Raises what `ray.init` raises.
    """
    # Ray 2.59 and later turn token authentication on for a local cluster and write a token into the home folder.
    # On a cluster the operator has set the mode and the token.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    with _LOCK:
        if ray.is_initialized():
            return
        address = os.environ.get("RAY_ADDRESS")
        if address:
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
        else:
            ray.init(include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)


def disconnect() -> None:
    """Leave the cluster, or end the one that `connect` started."""
    import ray

    with _LOCK:
        if ray.is_initialized():
            ray.shutdown()
