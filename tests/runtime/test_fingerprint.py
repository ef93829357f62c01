"""Equal things have equal fingerprints whatever the order of their keys; unequal ones do not."""

from __future__ import annotations

import pytest

from limbeck_runtime.fingerprint import fingerprint


def test_the_order_of_keys_does_not_matter() -> None:
    assert fingerprint({"a": 1, "b": [2, None]}) == fingerprint({"b": [2, None], "a": 1})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a", "b"], ["ab"]),
        (["a", ["b"]], [["a"], "b"]),
        ([1], ["1"]),
        ([None], [""]),
        ([1.0], [1.5]),
        ([["a", "b"]], [["b", "a"]]),
    ],
)
def test_other_parts_have_another_fingerprint(one: list[object], other: list[object]) -> None:
    assert fingerprint(*one) != fingerprint(*other)


def test_what_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint(float("nan"))
