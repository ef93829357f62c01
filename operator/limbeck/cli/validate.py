"""`limbeck validate`: everything that is wrong with a job file, before anything starts."""

from __future__ import annotations

import sys

from limbeck.api.plan import Plan, derive_plan
from limbeck.api.support import unsupported
from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.cli.exits import OK, USAGE
from limbeck.cli.jobfile import JobDocument, JobFileError, Problem, read_document, read_documents


def validate(filename: str) -> int:
    """Print `FILE: valid`, or each problem on standard error."""
    try:
        documents = read_runnable_documents(filename)
    except JobFileError as error:
        print(error, file=sys.stderr)
        return USAGE
    print(f"{filename}: valid" + (f" ({len(documents)} jobs)" if len(documents) > 1 else ""))
    return OK


def read_runnable_job(filename: str) -> CompressionJob:
    """The job in `filename` with its plan derived, when this version can run all of it.

    Raises:
        JobFileError: with file, line and field of each problem.
    """
    document = read_document(filename)
    return document.job.model_copy(update={"spec": _plan(document).spec})


def read_runnable_documents(filename: str) -> list[JobDocument]:
    """All jobs in `filename` as they are written, when this version can run all of them.

    Raises:
        JobFileError: with file, line and field of each problem.
    """
    documents = read_documents(filename)
    problems: list[Problem] = []
    seen: set[tuple[str | None, str]] = set()
    for document in documents:
        metadata = document.job.metadata
        if (metadata.namespace, metadata.name) in seen:
            message = f"must be unique in the file, got {metadata.name!r} again; rename one"
            problems.append(Problem(document.file, document.line_of("metadata.name"), "metadata.name", message))
        seen.add((metadata.namespace, metadata.name))
        try:
            _plan(document)
        except JobFileError as error:
            problems += error.problems
    if problems:
        raise JobFileError(problems)
    return documents


def _plan(document: JobDocument) -> Plan:
    """What is derived from the job; JobFileError where this version cannot run it."""
    try:
        plan = derive_plan(document.job.spec)
    except ValueError as error:
        raise JobFileError([Problem(document.file, document.line_of("spec"), "", str(error))]) from error
    refusals = unsupported(plan.spec)
    if refusals:
        raise JobFileError(
            [
                Problem(
                    document.file,
                    document.line_of(refusal.field),
                    refusal.field,
                    f"must be {refusal.allowed} in this version, got {refusal.got}; change it",
                )
                for refusal in refusals
            ]
        )
    return plan
