"""Ray, as this run uses it: the cluster that it runs in, or a small one on this machine for as long as it runs.

Ray starts when something first needs it (about four seconds), never before.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

_LOCK = threading.Lock()
# No system's `struct sigaction` is larger.
_SIGACTION_BYTES = 512
# Linux ends the processes that Ray starts when the thread that started them ends. This one lives as long as we do.
_KEEPER = ThreadPoolExecutor(1, "limbeck-ray")


def connect() -> None:
    """Be connected to Ray when this returns; the first call starts or joins a cluster. May be called by any thread.

    Raises what `ray.init` raises.
    """
    with _LOCK:
        _KEEPER.submit(_connect).result()


def connected() -> bool:
    """Whether this process is connected to Ray by now: a `connect` that is under way is not waited for."""
    if not _LOCK.acquire(blocking=False):
        return False
    try:
        return _is_connected()
    finally:
        _LOCK.release()


def leave() -> None:
    """Begin to disconnect and return at once: Ray takes two seconds to end its processes."""
    _KEEPER.submit(_disconnect)


def disconnect() -> None:
    """Leave the cluster, or end the one that `connect` started."""
    with _LOCK:
        _KEEPER.submit(_disconnect).result()


def _connect() -> None:
    # Ray 2.59 and later turn token authentication on for a local cluster and write a token into the home folder.
    # On a cluster the operator has set the mode and the token.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        return
    # Ray remarks that it cannot take over SIGTERM, which is ours.
    logging.getLogger("ray._private.worker").setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS")
    quiet = {"logging_level": logging.WARNING, "log_to_driver": False}
    with _signals_kept():
        if address:
            ray.init(address=address, **quiet)
        else:
            # "local": else Ray joins whatever cluster `ray start` has left on this machine, alive or not.
            ray.init(address="local", include_dashboard=False, **quiet)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Whoever handled SIGINT and SIGTERM before handles them afterwards.

    Ray's core takes SIGTERM for a failure: it prints a stack, calls the handler that was there before, and aborts the
    process three seconds later, in the middle of a checkpoint if that takes longer. Python can set handlers in its main
    thread alone, so this asks the C library.
    """
    sigaction = ctypes.CDLL(None).sigaction
    handlers = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in handlers.items():
        sigaction(int(number), None, handler)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            sigaction(int(number), handler, None)


def _is_connected() -> bool:
    ray = sys.modules.get("ray")  # to import it only to find that nobody used it costs a second
    return ray is not None and bool(ray.is_initialized())


def _disconnect() -> None:
    if _is_connected():
        sys.modules["ray"].shutdown()
