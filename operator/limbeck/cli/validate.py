"""`limbeck validate`: everything that is wrong with a job file, before anything starts."""

from __future__ import annotations

import sys

from limbeck.api.plan import derive_plan
from limbeck.api.support import unsupported
from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.cli.exits import OK, USAGE
from limbeck.cli.jobfile import JobFileError, Problem, line_of, read_job


def validate(filename: str) -> int:
    """Print `FILE: valid`, or each problem on standard error."""
    try:
        read_runnable_job(filename)
    except JobFileError as error:
        print(error, file=sys.stderr)
        return USAGE
    print(f"{filename}: valid")
    return OK


def read_runnable_job(filename: str) -> CompressionJob:
    """The job in `filename` with its plan derived, when this version can run all of it.

    Raises:
        JobFileError: with file, line and field of each problem.
    """
    job = read_job(filename)
    try:
        plan = derive_plan(job.spec)
    except ValueError as error:
        raise JobFileError([Problem(filename, 1, "", str(error))]) from error
    refusals = unsupported(plan.spec)
    if refusals:
        lines = {refusal: 1 if filename == "-" else line_of(filename, refusal.field) for refusal in refusals}
        raise JobFileError(
            [
                Problem(
                    filename,
                    lines[refusal],
                    refusal.field,
                    f"must be {refusal.allowed} in this version, got {refusal.got}; change it",
                )
                for refusal in refusals
            ]
        )
    return job.model_copy(update={"spec": plan.spec})
