"""What went wrong, as one sentence and an exit code. The only place that turns an error into either.

Each sentence says what was asked, what came back, and what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from limbeck.cli.exits import INTERRUPTED, UNREACHABLE, USAGE
from limbeck.cli.printable import printable
from limbeck.kube import errors

# The distributions that only talking to a cluster needs; the `operator` extra has them.
_CLUSTER_MODULES = frozenset({"kubernetes", "urllib3", "yaml"})


class CommandError(Exception):
    """A verb cannot do what it was told; the message says why and what to do."""

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


def guarded(verb: Callable[[], int]) -> int:
    """The verb's exit code, or that of what went wrong, which is then said on standard error."""
    try:
        return verb()
    except KeyboardInterrupt:
        return INTERRUPTED
    except CommandError as error:
        return _said(str(error), error.code)
    except errors.KubeError as error:
        return _said(*explained(error))
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _CLUSTER_MODULES:
            raise
        return _said(f"talking to a cluster needs {module}; run `pip install 'limbeck[operator]'`", USAGE)


def explained(error: errors.KubeError) -> tuple[str, int]:
    """A refusal of the API server, or its silence, in a sentence, and the exit code."""
    match error:
        case errors.UnreachableError():
            advice = "check that the cluster runs and that --kubeconfig and --context name it"
            return f"the API server does not answer: {error}; {advice}", UNREACHABLE
        case errors.UnauthorizedError():
            return f"the API server refuses our credentials: {error}; log in again, or see --context", UNREACHABLE
        case errors.ForbiddenError():
            return f"not allowed: {error}; ask for the right, `limbeck doctor` lists those that are missing", USAGE
        case errors.NotFoundError() if error.reason != "NotFound":
            # No Status object with a name in it: the whole kind is unknown there.
            return f"the cluster does not serve this: {error}; install limbeck, see `limbeck doctor`", USAGE
        case errors.NotFoundError():
            return f"there is no such thing: {error}; `limbeck get` lists the jobs, -n says where", USAGE
        case errors.ConflictError():
            advice = "change it where it is managed, or delete the job first"
            return f"somebody else has changed or owns this: {error}; {advice}", USAGE
        case errors.InvalidError():
            return f"the API server refuses this: {error}", USAGE
        case errors.TooManyRequestsError() | errors.ServerError():
            return f"the API server has trouble of its own: {error}; try again later", UNREACHABLE
        case _:
            return f"the API server refuses this: {error}", USAGE


def _said(message: str, code: int) -> int:
    for number, line in enumerate(message.splitlines()):
        print(printable(line if number else f"error: {line}"), file=sys.stderr)
    return code
