"""What can be wrong with data as a whole; a single broken sample is no exception but a `BadSample`.

DataError (ValueError)
  BrokenShardError         the file itself cannot be read to its end
  DuplicateKeyError        one key names two samples
  TooManyBadSamplesError   more broken samples than `data.maxBadSamplesPercent`
  ShardChangedError        the file is not what it was when the index was built
"""

from __future__ import annotations


class DataError(ValueError):
    """The data cannot be used; the message says which shard and what to do."""


class BrokenShardError(DataError):
    """A file ends early or is damaged in between, so that an unknown number of samples is lost."""

    def __init__(self, shard: str, after: str | None, detail: str) -> None:
        place = "from its start" if after is None else f"past sample '{after}'"
        super().__init__(
            f"shard '{shard}' cannot be read {place}: {detail}; write the shard again or take it out of the data"
        )
        self.shard = shard
        self.after = after


class DuplicateKeyError(DataError):
    """One key names two samples; `first` and `second` are their shards, maybe the same one."""

    def __init__(self, key: str, first: str, second: str) -> None:
        super().__init__(
            f"sample keys must be unique, got '{key}' in shard '{first}' and again in shard '{second}'; "
            "rename one of the samples or set `data.columns.key` to a column that is unique"
        )
        self.key = key
        self.first = first
        self.second = second


class TooManyBadSamplesError(DataError):
    """More samples are broken than may be skipped; `shard` and `key` name the first one."""

    def __init__(self, message: str, shard: str, key: str) -> None:
        super().__init__(message)
        self.shard = shard
        self.key = key


class ShardChangedError(DataError):
    """A shard's samples differ from those that the index was built from."""

    def __init__(self, shard: str) -> None:
        super().__init__(
            f"shard '{shard}' has changed since the run indexed it; "
            "restore the file, or start a new run on the new data"
        )
        self.shard = shard
