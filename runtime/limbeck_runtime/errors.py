"""How a run can end other than well, each with the word and the exit code that tell what to do about it.

RunError
  InvalidSpecError     the job, its data or its models cannot be used; another attempt would end the same way
  UserCodeError        the user's own function raised
  GateFailedError      all was done, and the result missed its target
  InterruptedRunError  asked to stop, and stopped after a checkpoint
"""

from __future__ import annotations

from typing import ClassVar

from limbeck import names


class RunError(Exception):
    """A run ended; the message is for people, `reason` and `exit_code` for machines."""

    reason: ClassVar[str] = "Error"
    exit_code: ClassVar[int] = 1


class InvalidSpecError(RunError):
    """The job cannot be run as it is."""

    reason = "InvalidSpec"
    exit_code = names.EXIT_INVALID_SPEC


class UserCodeError(RunError):
    """The user's function raised."""

    reason = "UserCodeError"
    exit_code = names.EXIT_USER_CODE_ERROR


class GateFailedError(RunError):
    """The result is not as small, good or fast as asked."""

    reason = "GateFailed"
    exit_code = names.EXIT_GATE_FAILED


class InterruptedRunError(RunError):
    """Stopped on request; what was done is kept."""

    reason = "Stopped"
    exit_code = names.EXIT_INTERRUPTED
