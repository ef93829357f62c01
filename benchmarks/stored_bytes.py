"""P6: what a token of a language model's teacher takes in the store, how wrong it then is, how long it takes to encode.

The teacher's distributions are made up: 131,072 classes by Zipf's law, as the words of a language are, with normal
noise on the logits. The peer is what one would write without a codec: the same 20 indices as int32, log-probabilities
as float32 and the tail, in Parquet with zstd. Published figures of others stand in the details; they are theirs, not
measured here.

Shapes: R tokens, V vocabulary, K kept.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from benchmarks.timing import RUNS, repeat
from limbeck_runtime.store import Ragged, TopKCodec
from limbeck_runtime.store.layout import parse
from limbeck_runtime.store.reader import ShardReader
from limbeck_runtime.store.selection import top_k_logits
from limbeck_runtime.store.writer import encode_shard

SIGNAL = "logits"
# Bytes a token at k = 20, as others' formats have it.
PUBLISHED = {
    "DistillKit, compressed logits": "114 to 300",
    "Ray Data LLM, top log-probabilities as Python objects in Parquet": "732",
}


@dataclass(frozen=True)
class Workload:
    """A shard of token outputs."""

    num_samples: int = 16
    tokens_per_sample: int = 256
    vocabulary: int = 131_072
    k: int = 20
    runs: int = 2 * RUNS

    @property
    def num_tokens(self) -> int:
        """Tokens of the shard."""
        return self.num_samples * self.tokens_per_sample


def measure(workload: Workload = Workload()) -> dict[str, Any]:
    """Bytes a token, error and encoding time."""
    codec = TopKCodec(workload.k, workload.vocabulary)
    exact, tokens = _teacher(workload)
    lengths = np.full(workload.num_samples, workload.tokens_per_sample)
    outputs = {f"{SIGNAL}.{part}": Ragged(array, lengths) for part, array in tokens.items()}
    keys = [str(sample) for sample in range(workload.num_samples)]

    def encode() -> bytes:
        return encode_shard("benchmark", keys, outputs, {SIGNAL: codec}, {}, "none")

    content = encode()
    bytes_per_token = len(content) / workload.num_tokens
    of_parquet = _parquet_bytes(tokens) / workload.num_tokens
    errors = _kl_errors(exact, content, workload)
    return {
        "parquet_bytes": of_parquet / bytes_per_token,
        "bytes_per_token": bytes_per_token,
        "kl_error": float(errors.mean()),
        "encode_us": repeat(encode, runs=workload.runs).scaled(1e6 / workload.num_tokens).to_json(),
        "largest_kl_error": float(errors.max()),
        "parquet_bytes_per_token": of_parquet,
        "published_bytes_per_token": PUBLISHED,
        "workload": f"{workload}",
    }


class _Exact(NamedTuple):
    """The kept classes, (R, K), and the rest, (R,), in float64."""

    log_probs: np.ndarray
    tail: np.ndarray


def _teacher(workload: Workload) -> tuple[_Exact, dict[str, np.ndarray]]:
    """What all distributions are, and what the capture keeps of them."""
    torch.manual_seed(0)
    frequency_V = -1.2 * torch.arange(1, workload.vocabulary + 1).log()[torch.randperm(workload.vocabulary)]
    log_probs, tails, kept = [], [], []
    for _ in range(workload.num_samples):
        logits_RV = frequency_V + 1.5 * torch.randn(workload.tokens_per_sample, workload.vocabulary)
        kept.append({part: values.numpy() for part, values in top_k_logits(logits_RV, workload.k).items()})
        all_RV = logits_RV.double().log_softmax(dim=1)
        indices_RK = torch.from_numpy(kept[-1]["indices"]).long()
        log_probs.append(all_RV.gather(1, indices_RK).numpy())
        tails.append(all_RV.scatter(1, indices_RK, -torch.inf).logsumexp(dim=1).numpy())
    parts = {part: np.concatenate([piece[part] for piece in kept]) for part in kept[0]}
    return _Exact(np.concatenate(log_probs), np.concatenate(tails)), parts


def _kl_errors(exact: _Exact, content: bytes, workload: Workload) -> np.ndarray:
    """KL(teacher || stored) of each distribution over the kept classes and the rest, float64 (R,)."""
    reader = ShardReader(parse(pa.py_buffer(content), "benchmark", "benchmark"), len(content))
    read = reader.read(np.arange(workload.num_samples))
    log_probs_RK = read[f"{SIGNAL}.log_probs"].reshape(-1, workload.k).astype(np.float64)
    tail_R = read[f"{SIGNAL}.tail_log_mass"].reshape(-1).astype(np.float64)
    kept_R = (np.exp(exact.log_probs) * (exact.log_probs - log_probs_RK)).sum(axis=1)
    errors_R: np.ndarray = kept_R + np.exp(exact.tail) * (exact.tail - tail_R)
    return errors_R


def _parquet_bytes(tokens: dict[str, np.ndarray]) -> int:
    columns = {}
    for part, array in tokens.items():
        flat = pa.array(array.reshape(-1))
        columns[part] = flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file, compression="zstd")
    return file.tell()
