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
    "P1": Row(
        what="a training step of two workers",
        peer="torchrun's DDP over gloo",
        targets=(at_most("step_time", "ours / torchrun", 1.03),),
        module="benchmarks.step_time",
        limit_seconds=30 * MINUTE,
    ),
    "P4": Row(
        what="capturing a teacher's outputs of 64 and of 256 batches",
        peer="a bare torch loop that writes the same shards; Ray Data",
        targets=(
            at_most("bare_64", "64 batches, ours / bare loop", 1.15),
            at_most("bare_256", "256 batches, ours / bare loop", 1.05),
            at_least("ray_data_256", "256 batches, Ray Data / ours", 2),
        ),
        module="benchmarks.capture",
        limit_seconds=30 * MINUTE,
    ),
    "P5": Row(
        what="reading teacher outputs: a batch in shuffled order, the first batch, any sample",
        peer="Ray Data iter_torch_batches, materialised, shuffled in a window of the same size",
        targets=(
            at_least("per_batch", "a batch, Ray Data / ours", 10),
            at_most("first_batch_ms", "first batch", 50, "ms"),
            at_most("seek_ms", "seek", 5, "ms"),
        ),
        module="benchmarks.store_reading",
    ),
    "P6": Row(
        what="stored size of a token's teacher output, k = 20 of 131,072, with its error, and the time to encode it",
        peer="the same columns in Parquet with zstd; published: DistillKit 114-300 B, Ray Data LLM 732 B",
        targets=(
            at_least("parquet_bytes", "size, Parquet / ours", 1),
            at_most("bytes_per_token", "size", 90, "B"),
            at_most("kl_error", "KL error", 1e-3, ""),
            at_most("encode_us", "encoding", 1, "us"),
        ),
        module="benchmarks.stored_bytes",
    ),
    "P7": Row(
        what="an epoch of a 16-wide student that learns from a 64-wide teacher's stored outputs",
        peer="the same with hard labels alone; with the teacher asked about every batch",
        targets=(
            at_most("stored_against_hard", "from the store / hard labels", 1.03),
            at_least("online_against_stored", "online teacher / from the store", 4),
        ),
        module="benchmarks.student_epoch",
        limit_seconds=30 * MINUTE,
    ),
    "P8": Row(
        what="a student that trains while its teacher captures",
        peer="the ideal overlap of capture and training, each as fast as beside the other",
        targets=(
            at_least("of_ideal", "speed-up / ideal", 0.97),
            at_most("window_share", "bytes in flight / window", 1),
            at_least("identical_traces", "identical loss traces", 10, ""),
        ),
        module="benchmarks.overlap",
        limit_seconds=30 * MINUTE,
    ),
    "P9": Row(
        what="distillation loss on a large vocabulary: 8,192 rows, 512 -> 32,000, time and peak memory",
        peer="plain torch; Liger's chunked loss",
        targets=(
            at_least("naive_memory", "memory, plain / ours", 9),
            at_least("naive_time", "time, plain / ours", 2),
            at_least("liger_memory", "memory, Liger / ours", 2),
            at_least("liger_time", "time, Liger / ours", 2),
        ),
        module="benchmarks.kd_loss",
        limit_seconds=30 * MINUTE,
    ),
    "P11": Row(
        what="checkpoints: how long they hold up a step, and kill points from which a run goes on bit for bit",
        peer="the step without checkpoints; Ray Train writes them in the step, 0.73 s",
        targets=(
            at_most("stall_percent", "stall of a step", 1, "%"),
            at_least("kill_points", "kill points that resume bit-exact", 1000, ""),
            at_most("kill_points_wrong", "that do not", 0, ""),
        ),
        module="benchmarks.checkpoint",
        limit_seconds=30 * MINUTE,
    ),
    "P13": Row(
        what="MiniLM in int8 as it is served, in torch and in onnxruntime (ExecuTorch is not exported to yet)",
        peer="the float model in the same runtime",
        targets=tuple(
            target
            for runtime in ("torch", "onnxruntime")
            for target in (
                at_least(f"{runtime}_size_ratio", f"{runtime}: size, float / int8", 3.9),
                at_least(f"{runtime}_latency_ratio", f"{runtime}: latency, float / int8", 2.2),
                at_least(f"{runtime}_worst_cosine", f"{runtime}: worst cosine to float", 0.997, ""),
            )
        ),
        module="benchmarks.quantized_minilm",
        limit_seconds=30 * MINUTE,
    ),
    "P14": Row(
        what="the quickstart's compression job on two cores, from the command to the report",
        peer="none",
        targets=(at_most("seconds", "time", 120, "s"),),
        module="benchmarks.quickstart",
        limit_seconds=60 * MINUTE,
    ),
}
