"""What a run wants of the teacher: one task for each (shard, view), in the order in which it will read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from limbeck.api.v1alpha1.data import Augmentation
from limbeck_runtime.data.augment import is_identity
from limbeck_runtime.data.index import DataIndex
from limbeck_runtime.store import Codec, codec_to_json, shard_id
from limbeck_runtime.student.sampler import shard_order


@dataclass(frozen=True)
class CaptureTask:
    """One shard of teacher outputs: data shard `shard` of the index in view `view`, kept under `identity`."""

    shard: int
    view: int
    identity: str
    num_samples: int


def capture_plan(
    index: DataIndex,
    *,
    teacher_identity: str,
    preprocessing_identity: str,
    augmentation: Augmentation,
    seed: int,
    codecs: Mapping[str, Codec],
    epochs: int,
) -> list[CaptureTask]:
    """All tasks of a run of so many epochs; epoch e sees view e modulo `augmentation.views`."""
    tasks = []
    for epoch in range(min(epochs, augmentation.views)):
        for shard in shard_order(seed, epoch, len(index.shards)).tolist():
            of_shard = index.shards[shard]
            fields = {
                "data": of_shard.identity,
                "teacher": teacher_identity,
                "preprocessing": preprocessing_identity,
                "view": _view(augmentation, seed, epoch),
                "signals": sorted(codecs),
                "codec": {name: codec_to_json(codec) for name, codec in codecs.items()},
            }
            tasks.append(CaptureTask(shard, epoch, shard_id(fields), len(of_shard.keys)))
    return tasks


def _view(augmentation: Augmentation, seed: int, view: int) -> dict[str, object]:
    """What the teacher saw. Without augmentation the seed does not matter, but the wording still follows the view."""
    if is_identity(augmentation):
        return {"view": view}
    return {"view": view, "seed": seed, **augmentation.model_dump(mode="json", exclude={"views"})}
