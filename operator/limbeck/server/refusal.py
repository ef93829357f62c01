"""Why a request is refused, as an HTTP status, a word for machines and a sentence for people.

Refusal
  (one class; the status tells the kind: 401, 403, 404, 409, 413, 422, 429, 503)
"""

from __future__ import annotations


class Refusal(Exception):  # noqa: N818 - it is an answer, not a fault
    """The answer to a request that is not served."""

    def __init__(self, status: int, reason: str, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message
        self.retry_after_seconds = retry_after_seconds

    def again(self) -> Refusal:
        """The same, to be raised once more: an exception that is raised twice drags both tracebacks along."""
        return Refusal(self.status, self.reason, self.message, self.retry_after_seconds)
