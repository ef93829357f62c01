"""What a job is to do, nothing left open; the driver asks the same functions."""

from __future__ import annotations

from limbeck.api.plan import Plan, derive_plan
from limbeck.api.support import unsupported
from limbeck.api.v1alpha1.job import Spec


def resolve(spec: Spec) -> Plan:
    """The spec with nothing left to derive. Raises ValueError for what cannot be planned or run."""
    plan = derive_plan(spec)
    refusals = unsupported(plan.spec)
    if refusals:
        raise ValueError("; ".join(str(refusal) for refusal in refusals))
    return plan
