"""The oracle of one leader at a time, asked about logs that it must tell apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import auditlog
import pytest

ACCOUNT = "limbeck-system:limbeck-operator"


@pytest.fixture
def log(tmp_path: Path) -> Any:
    """`log((pod, resource), ...)`: an audit log in which they wrote in this order, one a second."""

    def write(*writes: tuple[str, str], code: int = 200, end: str = "\n") -> Path:
        lines = []
        for second, (pod, resource) in enumerate(writes):
            lines.append(
                {
                    "verb": "patch",
                    "user": {
                        "username": f"system:serviceaccount:{ACCOUNT}",
                        "extra": {"authentication.kubernetes.io/pod-name": [pod]},
                    },
                    "objectRef": {"resource": resource, "namespace": "n", "name": "x"},
                    "responseStatus": {"code": code},
                    "requestReceivedTimestamp": f"2026-11-24T06:00:{second:02}.000000Z",
                }
            )
        path = tmp_path / "audit.log"
        path.write_text("\n".join(map(json.dumps, reversed(lines))) + end, encoding="utf-8")
        return path

    return write


CALM = [("a", "leases"), ("a", "rayjobs"), ("b", "leases"), ("b", "configmaps")]


def test_writes_of_the_holder_are_right_also_after_a_change(log: Any) -> None:
    writes = auditlog.writes_of(log(*CALM), ACCOUNT)
    assert [(write.pod, write.resource) for write in writes] == CALM
    assert auditlog.without_the_lease(writes, "x") == []


def test_a_write_of_the_holder_of_before_is_wrong(log: Any) -> None:
    writes = auditlog.writes_of(log(*CALM, ("a", "rayjobs")), ACCOUNT)
    assert [(write.pod, write.resource) for write in auditlog.without_the_lease(writes, "x")] == [("a", "rayjobs")]


def test_what_was_refused_and_what_others_wrote_is_not_looked_at(log: Any) -> None:
    assert auditlog.writes_of(log(*CALM, code=409), ACCOUNT) == []
    assert auditlog.writes_of(log(*CALM), "limbeck-system:another") == []


def test_a_line_that_is_still_written_waits(log: Any) -> None:
    assert len(auditlog.writes_of(log(*CALM, end=""), ACCOUNT)) == len(CALM) - 1
