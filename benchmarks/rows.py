"""What `make bench` measures, against whom, and what counts as met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MINUTE = 60.0


@dataclass(frozen=True)
class Target:
    """What one figure of a row must be; `figure` is its name in what the row's module gives."""

    figure: str
    what: str
    limit: float
    at_most: bool
    unit: str = "x"

    def met(self, value: float) -> bool:
        """Whether a measured value is good enough."""
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{self.what} {'<=' if self.at_most else '>='} {self.limit:g} {self.unit}".rstrip()


@dataclass(frozen=True)
class Row:
    """One line of the table. The row's ratio is the figure of its first target; it is met when all targets are."""

    what: str
    peer: str
    targets: tuple[Target, ...]
    module: str
    limit_seconds: float = 10 * MINUTE

    @property
    def target(self) -> str:
        """All targets in words."""
        return ", ".join(str(target) for target in self.targets)


def at_most(figure: str, what: str, limit: float, unit: str = "x") -> Target:
    """A figure that is better when it is smaller."""
    return Target(figure, what, limit, True, unit)


def at_least(figure: str, what: str, limit: float, unit: str = "x") -> Target:
    """A figure that is better when it is larger."""
    return Target(figure, what, limit, False, unit)


ROWS: Mapping[str, Row] = {
    "P5": Row(
        what="reading teacher outputs: a batch in shuffled order, the first batch, any sample",
        peer="Ray Data iter_torch_batches, materialised, shuffled in a window of the same size",
        targets=(
            at_least("per_batch", "per batch", 10),
            at_most("first_batch_ms", "first batch", 50, "ms"),
            at_most("seek_ms", "seek", 5, "ms"),
        ),
        module="benchmarks.store_reading",
    ),
    "P6": Row(
        what="stored size of a token's teacher output, k = 20 of 131,072, with its error, and the time to encode it",
        peer="the same columns in Parquet with zstd; published: DistillKit 114-300 B, Ray Data LLM 732 B",
        targets=(
            at_least("parquet_bytes", "Parquet's bytes", 1),
            at_most("bytes_per_token", "size", 90, "B"),
            at_most("kl_error", "KL error", 1e-3, ""),
            at_most("encode_us", "encoding", 1, "us"),
        ),
        module="benchmarks.stored_bytes",
    ),
}
