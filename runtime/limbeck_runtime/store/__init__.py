"""The teacher-output store: codecs, the shape of a shard, writing and reading.

Start reading at teacher_store.py. `selection` (needs torch) reduces logits on the teacher's device and is imported by
those who capture.
"""

from limbeck_runtime.store.codec import (
    LOG_ZERO,
    Codec,
    EmbeddingCodec,
    FeatureCodec,
    SampledCodec,
    TopKCodec,
    codec_from_json,
    codec_to_json,
)
from limbeck_runtime.store.layout import CorruptShardError, shard_id
from limbeck_runtime.store.ragged import Ragged
from limbeck_runtime.store.reader import ShardReader, read_batch
from limbeck_runtime.store.teacher_store import TeacherStore, WriteResult

__all__ = [
    "LOG_ZERO",
    "Codec",
    "CorruptShardError",
    "EmbeddingCodec",
    "FeatureCodec",
    "Ragged",
    "SampledCodec",
    "ShardReader",
    "TeacherStore",
    "TopKCodec",
    "WriteResult",
    "codec_from_json",
    "codec_to_json",
    "read_batch",
    "shard_id",
]
