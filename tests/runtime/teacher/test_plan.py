"""What is wanted, in which order, under which name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from limbeck.api.v1alpha1.data import Augmentation
from limbeck_runtime.store import EmbeddingCodec
from limbeck_runtime.student.sampler import shard_order
from limbeck_runtime.teacher.plan import capture_plan


def plan(index: Any, **changes: Any) -> list[Any]:
    fields: dict[str, Any] = {
        "teacher_identity": "t",
        "preprocessing_identity": "p",
        "augmentation": Augmentation(views=2, flip=True),
        "seed": 5,
        "codecs": {"image_embedding": EmbeddingCodec()},
        "epochs": 3,
    }
    return capture_plan(index, **(fields | changes))


def test_shards_come_in_the_order_in_which_the_student_begins_them(make_capture: Callable[..., Any]) -> None:
    tasks = plan(make_capture(num_shards=6, shard_size=1).index)
    wanted = [(int(shard), epoch) for epoch in range(2) for shard in shard_order(5, epoch, 6)]
    assert [(task.shard, task.view) for task in tasks] == wanted


@pytest.mark.parametrize(
    "change",
    [
        {"teacher_identity": "other"},
        {"preprocessing_identity": "other"},
        {"augmentation": Augmentation(views=2, flip=True, rotation_degrees=5)},
        {"seed": 6},
        {"codecs": {"image_embedding": EmbeddingCodec("int8")}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_outputs_changes_their_name(make_capture: Callable[..., Any], change: Any) -> None:
    index = make_capture().index
    before = {task.identity for task in plan(index)}
    assert not before & {task.identity for task in plan(index, **change)}


def test_more_views_or_epochs_reuse_the_views_that_are_there(make_capture: Callable[..., Any]) -> None:
    index = make_capture().index
    two = {task.identity for task in plan(index)}
    four = {task.identity for task in plan(index, augmentation=Augmentation(views=4, flip=True), epochs=9)}
    assert two < four
    assert len(four) == 2 * len(two)


def test_without_augmentation_the_seed_does_not_matter(make_capture: Callable[..., Any]) -> None:
    index = make_capture().index
    still = Augmentation(views=1)
    named = [{task.identity for task in plan(index, augmentation=still, seed=seed)} for seed in (1, 2)]
    assert named[0] == named[1]
