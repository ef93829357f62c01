"""What the API server's audit log says of who wrote what, pod by pod. Leases decide who may.

A service account's token is bound to its pod, whose name the log has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

_POD = "authentication.kubernetes.io/pod-name"


@dataclass(frozen=True)
class Write:
    """One write that was carried out."""

    at: datetime
    pod: str
    verb: str
    resource: str
    subresource: str
    namespace: str
    name: str


def writes_of(log: Path, account: str) -> list[Write]:
    """Of the pods of one service account, `NAMESPACE:NAME`, in the order of arrival."""
    found = []
    for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or f"system:serviceaccount:{account}" not in line:
            continue  # the last line may be unfinished
        entry = json.loads(line)
        is_its_own = entry["user"]["username"] == f"system:serviceaccount:{account}"
        if is_its_own and entry["responseStatus"]["code"] < 300:
            ref = entry["objectRef"]
            found.append(
                Write(
                    datetime.fromisoformat(entry["requestReceivedTimestamp"]),
                    entry["user"]["extra"][_POD][0],
                    entry["verb"],
                    ref["resource"],
                    ref.get("subresource", ""),
                    ref.get("namespace", ""),
                    ref.get("name", ""),
                )
            )
    return sorted(found, key=lambda write: write.at)


def without_the_lease(writes: Sequence[Write], lease: str) -> list[Write]:
    """Writes other than to `lease` by a pod that was not the last to write it: those of a second leader."""
    holder = ""
    wrong = []
    for write in writes:
        if (write.resource, write.name) == ("leases", lease):
            holder = write.pod
        elif holder and write.pod != holder:
            wrong.append(write)
    return wrong
