"""The content hash tells apart whatever a model would."""

from __future__ import annotations

from limbeck_runtime.data.content_hash import ContentHash
from limbeck_runtime.data.samples import BadReason, BadSample, RawSample


def _hash(*samples: RawSample | BadSample) -> str:
    content = ContentHash()
    for sample in samples:
        content.add(sample)
    return content.hexdigest()


def test_samples_that_read_alike_when_run_together_have_different_hashes() -> None:
    bad = BadSample(shard="s", key="k", reason=BadReason.EMPTY_TEXT, detail="")
    contents: list[list[RawSample | BadSample]] = [
        [],
        [RawSample("k")],
        [RawSample("k"), RawSample("k")],
        [RawSample("kk")],
        [RawSample("k", texts=("ab", "c"))],
        [RawSample("k", texts=("a", "bc"))],
        [RawSample("k", texts=("abc",))],
        [RawSample("k", image=b"abc")],
        [RawSample("k", audio=b"abc")],
        [RawSample("k", image=b"")],
        [RawSample("ka", image=b"bc")],
        [bad],
        [RawSample("k"), bad],
        [bad, RawSample("k")],
    ]
    assert len({_hash(*samples) for samples in contents}) == len(contents)


def test_labels_slices_and_places_are_not_part_of_the_content() -> None:
    assert _hash(RawSample("k", label="1", slices={"a": "b"})) == _hash(RawSample("k"))
    reasons = {"reason": BadReason.EMPTY_TEXT, "detail": ""}
    assert _hash(BadSample(shard="here", key="k", **reasons)) == _hash(BadSample(shard="there", key="k", **reasons))
