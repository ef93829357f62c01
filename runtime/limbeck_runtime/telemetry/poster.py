"""Posts a run's progress to the server of the cluster, in the background, and hears whether the run is to stop.

A run never waits for the server and never fails with it: while it is away, what happens is kept (within bounds) and
sent when it is back, each post with the same number until it is taken. A reply may ask for a checkpoint; the run is
then asked to stop as by a signal. Left out: the whole history, which lies beside the checkpoints.
"""

from __future__ import annotations

import math
import random
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from limbeck import names
from limbeck.api.posts import ProgressPost, ProgressReply, Wanted
from limbeck_runtime.telemetry.backlog import Backlog
from limbeck_runtime.telemetry.events import EventLog
from limbeck_runtime.telemetry.progress import ProgressLog

if TYPE_CHECKING:
    import httpx

INTERVAL_SECONDS = 2.0
_TIMEOUT_SECONDS = 5.0
_MAX_PAUSE_SECONDS = 30.0
# How long the end of a run waits for its last words to be taken.
_CLOSE_SECONDS = 5.0
_CLOSING_PAUSE_SECONDS = 0.5
_MANY_FAILURES = 3
# The same post would be refused again: it is too large, or of another version.
_NEVER = frozenset({400, 413, 422})
_STALE = 409
_MAX_TEXT = 200


@dataclass(frozen=True)
class Target:
    """Where to post, and with what."""

    url: str
    token_file: Path
    ca_file: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Target | None:
        """What the operator has set; None where it set nothing. Raises ValueError where it cannot be used."""
        url = environment.get(names.ENV_PROGRESS_URL)
        if not url:
            return None
        token_file = environment.get(names.ENV_PROGRESS_TOKEN_FILE)
        if not token_file:
            raise ValueError(f"`{names.ENV_PROGRESS_TOKEN_FILE}` must name a file with a token, got none; set it")
        parts = urlsplit(url)
        is_local = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "::1", "localhost")
        if not parts.hostname or not (parts.scheme == "https" or is_local):
            raise ValueError(
                f"`{names.ENV_PROGRESS_URL}` must begin with https://, for a token goes there, got {url[:_MAX_TEXT]!r}"
            )
        ca_file = environment.get(names.ENV_PROGRESS_CA_FILE)
        return cls(url, Path(token_file), Path(ca_file) if ca_file else None)


class ProgressPoster:
    """Posts from a thread of its own between `start` and `close`."""

    def __init__(
        self,
        target: Target,
        progress: ProgressLog,
        *,
        epoch: int,
        attempt: int,
        ask_to_stop: Callable[[], None],
        warn: Callable[[str], None],
        interval_seconds: float = INTERVAL_SECONDS,
        close_seconds: float = _CLOSE_SECONDS,
    ) -> None:
        """Nothing else may drain `progress`. `ask_to_stop` and `warn` are called from the poster's thread."""
        self._target, self._progress = target, progress
        self._epoch, self._attempt = epoch, attempt
        self._ask_to_stop, self._warn = ask_to_stop, warn
        self._interval_seconds, self._close_seconds = interval_seconds, close_seconds
        self.backlog = Backlog()
        self._run = uuid.uuid4().hex
        self._sequence = 0
        self._pending: ProgressPost | None = None
        self._client: httpx.Client | None = None
        self._failures = 0
        self._is_over = self._has_asked = self._has_told_refusal = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name="progress-poster", daemon=True)

    def start(self) -> None:
        """Begin to post."""
        self._thread.start()

    def close(self) -> None:
        """Try for a few seconds to get the last words through, then end."""
        self._closing.set()
        self._thread.join(self._close_seconds)

    def _work(self) -> None:
        pause_seconds = 0.0  # the first post tells at once whether the run is wanted at all
        while not self._closing.wait(pause_seconds):
            pause_seconds = self._turn()
        # A server that was away for a while gets one more chance, one that has just failed the whole time.
        deadline = time.monotonic() + (self._close_seconds if self._failures < _MANY_FAILURES else 0.0)
        while (self._failures or self._has_more()) and not self._is_over:
            pause_seconds = self._turn()
            if time.monotonic() >= deadline:
                break
            if self._failures:
                time.sleep(min(pause_seconds, _CLOSING_PAUSE_SECONDS))
        self._disconnect()

    def _has_more(self) -> bool:
        self._collect()
        return bool(self.backlog)

    def _turn(self) -> float:
        """One post, or the one before once more. Returns the seconds until the next."""
        self._collect()
        if self._is_over:
            return _MAX_PAUSE_SECONDS
        try:
            self._pending = self._pending or self._next_post()
            asked_to_wait = self._send(self._pending)
        except Exception as error:  # whatever it is, the run must not feel it
            self._disconnect()
            return self._failed(f"{type(error).__name__}: {error}", 0.0)
        if asked_to_wait is not None:
            return asked_to_wait
        self._failures = 0
        # While there is a backlog to be worked off, the server's limit sets the pace.
        return self._interval_seconds

    def _collect(self) -> None:
        try:
            self.backlog.add_lines(self._progress.drain())
        except (OSError, ValueError):  # the file cannot be read, or was closed: whoever writes it says so
            return

    def _next_post(self) -> ProgressPost:
        self._sequence += 1
        batch = self.backlog.take()
        return ProgressPost(
            run=self._run,
            epoch=self._epoch,
            attempt=self._attempt,
            sequence=self._sequence,
            dropped=batch.dropped,
            events=batch.events,
            records=batch.records,
        )

    def _send(self, post: ProgressPost) -> float | None:
        """Send a post. None when it is dealt with, else the seconds to wait before it is sent once more."""
        client = self._connected()
        # Read each time: the kubelet puts a new one there long before the old one expires.
        token = self._target.token_file.read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        answer = client.post(self._target.url, content=post.model_dump_json(), headers=headers)
        if answer.status_code == 200:
            reply = ProgressReply.model_validate_json(answer.content)
            self._pending = None
            self._heard(reply)
            return None
        said = f"{answer.status_code} {answer.text[:_MAX_TEXT]}"
        if answer.status_code == _STALE:
            self._is_over = True
            self._warn(f"the server takes no more progress of this run: {said}")
            return None
        if answer.status_code in _NEVER:
            self._pending = None
            self.backlog.count_dropped(len(post.events) + len(post.records))
            if not self._has_told_refusal:  # this warning is an event too: told each time, there would be no end to it
                self._has_told_refusal = True
                self._warn(f"the server refuses progress of this run, which goes on: {said}")
            return None
        return self._failed(said, _seconds(answer.headers.get("Retry-After")))

    def _heard(self, reply: ProgressReply) -> None:
        if reply.wanted is Wanted.CHECKPOINT and not self._has_asked:
            self._has_asked = True
            self._ask_to_stop()

    def _failed(self, why: str, retry_after_seconds: float) -> float:
        """Count a failure; the first of a row is told. Returns how long to wait: longer each time, not all in step."""
        if not self._failures:
            self._warn(f"progress does not reach the server ({why[:_MAX_TEXT]}); the run goes on and tries again")
        self._failures += 1
        longest = min(_MAX_PAUSE_SECONDS, self._interval_seconds * 2.0 ** min(self._failures, 20))
        return max(longest * random.uniform(0.6, 1.0), min(retry_after_seconds, _MAX_PAUSE_SECONDS))

    def _connected(self) -> httpx.Client:
        if self._client is None:
            import httpx

            # The authority's file is read anew after each failure, for it may have been replaced. Proxies of the
            # environment are for the internet; the token must not go there.
            context = ssl.create_default_context(cafile=self._target.ca_file)
            self._client = httpx.Client(verify=context, trust_env=False, timeout=_TIMEOUT_SECONDS)
        return self._client

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


@contextmanager
def post_progress(
    environment: Mapping[str, str],
    events: EventLog,
    progress: ProgressLog,
    stop: threading.Event,
    *,
    epoch: int,
    attempt: int,
) -> Iterator[None]:
    """Post what the run tells while this is open, if the operator has said where; `stop` is set when it is to stop."""

    def warn(message: str) -> None:
        events.emit("warning", message=message)

    try:
        target = Target.from_environment(environment)
    except ValueError as error:
        warn(f"no progress is posted: {error}")
        target = None
    if target is None:
        yield
        return
    poster = ProgressPoster(target, progress, epoch=epoch, attempt=attempt, ask_to_stop=stop.set, warn=warn)
    with events.heard_by(poster.backlog.add):
        poster.start()
        try:
            yield
        finally:
            poster.close()


def _seconds(header: str | None) -> float:
    """`Retry-After` in seconds; 0 for what is none, such as its other form, a date."""
    try:
        seconds = float(header or 0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0
