"""Brace patterns: as the `braceexpand` library (and the shell) understand them, and refused where they would not."""

from __future__ import annotations

import braceexpand
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck_runtime.data.patterns import expand_braces, fixed_folder

_plain = st.text("ab/._-0", max_size=3)
_ranges = st.builds(
    lambda first, last, width: f"{{{first:0{width}d}..{last:0{width}d}}}",
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 3),
)


def _lists(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(parts, min_size=2, max_size=3).map(lambda alternatives: "{" + ",".join(alternatives) + "}")


_patterns = st.recursive(
    _plain | _ranges,
    lambda inner: _lists(inner) | st.lists(inner, min_size=1, max_size=3).map("".join),
    max_leaves=6,
)


@given(_patterns)
def test_patterns_expand_as_in_the_braceexpand_library(pattern: str) -> None:
    assert expand_braces(pattern) == list(braceexpand.braceexpand(pattern))


@given(st.text("{},.01a", max_size=12))
def test_any_text_expands_or_is_refused_with_the_text_in_the_message(text: str) -> None:
    found = _names_or_refusal(text)
    if isinstance(found, str):
        assert f"'{text}'" in found
    else:
        assert found
        assert not any("{" in name or "}" in name for name in found)


def _names_or_refusal(text: str) -> list[str] | str:
    try:
        return expand_braces(text)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("plain.tar", ["plain.tar"]),
        ("{000..002}", ["000", "001", "002"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{0..6..3}", ["0", "3", "6"]),
        ("{a,b}{1,2}", ["a1", "a2", "b1", "b2"]),
        ("{a,b{1..2}}", ["a", "b1", "b2"]),
        ("x{,y}", ["x", "xy"]),
    ],
)
def test_a_pattern_stands_for_its_names_in_order(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a{0..3", "a '{' without '}'"),
        ("a}", "a '}' without '{'"),
        ("{only}", "neither a list nor a range"),
        ("{}", "neither a list nor a range"),
        ("{1..5..0}", "a range with step 0"),
        ("{0..999999999999}", "more than 100000 names"),
        ("{0..999}{0..999}", "more than 100000 names"),
        ("{{0..60000},{0..60000}}", "more than 100000 names"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused(pattern: str, found: str) -> None:
    with pytest.raises(ValueError, match="`uri` must hold brace patterns") as refusal:
        expand_braces(pattern)
    assert found in str(refusal.value)


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [("s3://b/p/t-{0..9}.tar", "s3://b/p/"), ("s3://b/{x,y}/t.tar", "s3://b/"), ("t.tar", ""), ("d/t.tar", "d/")],
)
def test_the_fixed_folder_is_what_lies_before_the_first_brace(pattern: str, folder: str) -> None:
    assert fixed_folder(pattern) == folder
