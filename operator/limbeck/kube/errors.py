"""What can go wrong between us and the API server, one class for each thing that a caller treats differently.

KubeError
|-- UnauthorizedError      401  our credentials are refused
|-- ForbiddenError         403  our rights do not cover it
|-- NotFoundError          404  no such object, or its kind is not served
|-- AlreadyExistsError     409  create: the name is taken
|-- ConflictError          409  write: the object changed since it was read, or another manager owns a field
|-- GoneError              410  the resource version is too old: list again
|-- InvalidError           422  the object breaks its schema or a rule
|-- TooManyRequestsError   429  come back after retry_after
|-- ServerError            5xx
|-- UnreachableError       no answer: refused, reset, cut off, timed out
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class KubeError(Exception):
    """An answer that is not a success. `status` is 0 where there was no answer; `retry_after` is in seconds."""

    def __init__(
        self, status: int, reason: str, message: str, retry_after: float | None = None, *, asked: str = ""
    ) -> None:
        said = f"{status} {reason}: {message}" if status else f"{reason}: {message}"
        super().__init__(f"{asked}: {said}" if asked else said)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class UnauthorizedError(KubeError):
    """Our credentials are refused."""


class ForbiddenError(KubeError):
    """Our rights do not cover the request."""


class NotFoundError(KubeError):
    """There is no such object, or the API server does not serve its kind."""


class AlreadyExistsError(KubeError):
    """The name is taken."""


class ConflictError(KubeError):
    """The object changed since it was read, or another field manager owns a field."""


class GoneError(KubeError):
    """The resource version or the continue token is too old; list again."""


class InvalidError(KubeError):
    """The object breaks its schema or one of its rules."""


class TooManyRequestsError(KubeError):
    """The API server sheds load; `retry_after` says for how long."""


class ServerError(KubeError):
    """The API server failed, or something before it."""


class UnreachableError(KubeError):
    """No answer, or only the beginning of one."""

    def __init__(self, message: str, *, asked: str = "") -> None:
        super().__init__(0, "Unreachable", message, asked=asked)


_BY_STATUS: dict[int, type[KubeError]] = {
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
    429: TooManyRequestsError,
}


def error_from_status(status: Mapping[str, Any], *, retry_after: float | None = None, asked: str = "") -> KubeError:
    """The error that a `Status` object of the API describes."""
    code = int(status.get("code") or 500)
    reason = str(status.get("reason") or "Unknown")
    details = status.get("details")
    if retry_after is None and isinstance(details, dict) and details.get("retryAfterSeconds"):
        retry_after = float(details["retryAfterSeconds"])
    kind = _BY_STATUS.get(code, ServerError if code >= 500 else KubeError)
    if code == 409 and reason == "AlreadyExists":
        kind = AlreadyExistsError
    return kind(code, reason, str(status.get("message") or "no message"), retry_after, asked=asked)


def error_from_answer(code: int, body: bytes, headers: Mapping[str, str], *, asked: str = "") -> KubeError:
    """The error in an answer, whether it speaks the API's language or that of some proxy before it."""
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    if not isinstance(status, dict) or status.get("kind") != "Status":
        status = {"reason": "Unknown", "message": body[:300].decode("utf-8", "replace").strip()}
    return error_from_status({**status, "code": code}, retry_after=_seconds(headers.get("Retry-After")), asked=asked)


def _seconds(header: str | None) -> float | None:
    """`Retry-After` in seconds; its other form, a date, is not used by the API server."""
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None
