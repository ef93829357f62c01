"""A bounded number of threads that take keys from a queue and reconcile them.

Left out on purpose: what a reconcile means, and leadership; who starts the workers decides about both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import structlog

from limbeck.kube.errors import ConflictError, KubeError
from limbeck.kube.queue import KeyedQueue

Key = TypeVar("Key", bound=Hashable)

_log = structlog.get_logger(__name__)


class Workers(Generic[Key]):
    """`reconcile(key)` returns in how many seconds to look again, or None for "when something changes".

    What it raises is logged and the key is tried again, later each time; it never ends a worker. `on_result` is told
    the key, the seconds and the error of each run, for metrics; it must not raise.
    """

    def __init__(
        self,
        queue: KeyedQueue[Key],
        reconcile: Callable[[Key], float | None],
        *,
        num_workers: int = 4,
        on_result: Callable[[Key, float, Exception | None], None] = lambda _key, _seconds, _error: None,
    ) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}")
        self._queue = queue
        self._reconcile = reconcile
        self._on_result = on_result
        self._threads = [
            threading.Thread(target=self._work, name=f"worker-{number}", daemon=True) for number in range(num_workers)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_seconds: float = 10.0) -> bool:
        """No new key is taken; whether all ended within the time."""
        self._queue.shut_down()
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def is_alive(self) -> bool:
        """Whether all of them run."""
        return all(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (key := self._queue.take()) is not None:
            started = time.monotonic()
            error: Exception | None = None
            try:
                again_in = self._reconcile(key)
            except Exception as raised:
                error = raised
                self._try_again(key, raised)
            else:
                self._queue.forget(key)
                if again_in is not None:
                    self._queue.add_after(key, again_in)
            finally:
                self._queue.done(key)
            self._on_result(key, time.monotonic() - started, error)

    def _try_again(self, key: Key, error: Exception) -> None:
        at_least = error.retry_after if isinstance(error, KubeError) else None
        delay = self._queue.retry(key, at_least=at_least)
        if isinstance(error, ConflictError):  # somebody else wrote first; nothing is wrong
            _log.debug("reconcile met a newer object", key=str(key), again_in_seconds=round(delay, 2))
        elif isinstance(error, KubeError):
            _log.warning("reconcile failed", key=str(key), error=str(error), again_in_seconds=round(delay, 2))
        else:
            _log.error("reconcile raised", key=str(key), again_in_seconds=round(delay, 2), exc_info=error)
