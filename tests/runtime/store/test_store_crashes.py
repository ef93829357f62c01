"""A teacher that dies at any operation leaves no half-written shard and no debris."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from limbeck_runtime.store import FeatureCodec, TeacherStore


def test_a_shard_is_whole_or_absent_wherever_its_writer_dies(crash_everywhere, tmp_path: Path) -> None:
    keys = [f"key-{row}" for row in range(5)]
    outputs = {shard: np.arange(40, dtype=np.float32).reshape(5, 8) + shard for shard in (1, 2)}
    for number, crash in enumerate(crash_everywhere("shards")):
        store = TeacherStore(crash.storage, tmp_path / f"cache-{number}", {"embedding": FeatureCodec("float32")})

        there = {shard for shard in outputs if store.has(f"{shard:064d}")}

        assert there >= {int(shard) for shard in crash.done}, crash
        assert store.identities() == {f"{shard:064d}" for shard in there}
        for shard in there:
            reader = store.open(f"{shard:064d}")
            assert reader.keys == tuple(keys)
            assert (reader.read(range(5))["embedding"] == outputs[shard]).all(), crash
        store.janitor()
        assert len(crash.left_behind()) == len(there), crash
        for shard, embedding in outputs.items():
            written = store.write(f"{shard:064d}", keys, {"embedding": embedding}, {})
            assert written.already_there == (shard in there)
