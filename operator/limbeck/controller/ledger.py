"""How each attempt ended, kept in the job's ConfigMap: counts, back-off and the deadline follow from it.

An entry is written once, when its attempt has ended for good, and never changes; writing it again after a crash is
harmless. An attempt without an entry that is not the newest was lost to whoever removed the ConfigMap: it counts as
failed, so that no tampering makes the retries endless.
Left out: endings that finish the job; those go to the status at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Ending(StrEnum):
    """How an attempt ended that another one may follow."""

    FAILED = "Failed"
    PREEMPTED = "Preempted"
    SUSPENDED = "Suspended"


@dataclass(frozen=True)
class Entry:
    """One attempt that is over."""

    attempt: int
    ending: Ending
    ended: datetime
    seconds: float
    message: str = ""


@dataclass(frozen=True)
class Ledger:
    """All entries, one an attempt."""

    entries: tuple[Entry, ...] = ()

    def of(self, attempt: int) -> Entry | None:
        """The entry of an attempt, None while it is open."""
        return next((entry for entry in self.entries if entry.attempt == attempt), None)

    def count(self, ending: Ending, attempt: int) -> int:
        """Attempts before and including `attempt` that ended so."""
        known = sum(entry.ending is ending for entry in self.entries)
        if ending is not Ending.FAILED:
            return known
        return known + max(0, attempt - 1 - sum(entry.attempt < attempt for entry in self.entries))

    @property
    def seconds(self) -> float:
        """Time that the attempts took together."""
        return sum(entry.seconds for entry in self.entries)

    def with_entry(self, entry: Entry) -> Ledger:
        """With one more entry; the first that was written of an attempt stays."""
        if self.of(entry.attempt) is not None:
            return self
        return Ledger((*self.entries, entry))

    def to_json(self) -> str:
        """For the ConfigMap."""
        return json.dumps(
            [
                {
                    "attempt": entry.attempt,
                    "ending": entry.ending.value,
                    "ended": entry.ended.isoformat(),
                    "seconds": round(entry.seconds, 3),
                    "message": entry.message[:500],
                }
                for entry in self.entries
            ]
        )

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """What a ConfigMap holds; entries that cannot be read count as absent."""
        try:
            raw = json.loads(text)
        except ValueError:
            return cls()
        return cls(tuple(_readable(raw if isinstance(raw, list) else ())))


def _readable(raw: Iterable[object]) -> Iterable[Entry]:
    for item in raw:
        if not isinstance(item, Mapping):
            continue
        try:
            yield Entry(
                attempt=int(item["attempt"]),
                ending=Ending(item["ending"]),
                ended=datetime.fromisoformat(item["ended"]),
                seconds=float(item["seconds"]),
                message=str(item.get("message", "")),
            )
        except (KeyError, ValueError, TypeError):
            continue
