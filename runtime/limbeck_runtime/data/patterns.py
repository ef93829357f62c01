"""Brace patterns in data URIs: `{000..127}`, `{a,b}`, nested and side by side, as a shell expands them.

Left out on purpose: letters as ranges, escapes, and the shell's habit of leaving a pattern it does not
understand as it is: here that is an error, because a file of that name hardly exists.
"""

from __future__ import annotations

import re
from itertools import product

MAX_EXPANSIONS = 100_000
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")


def expand_braces(pattern: str) -> list[str]:
    """All names that a pattern stands for, in its order.

    Raises:
        ValueError: a brace without partner, a group that is neither a list nor a range, a step of 0, or more
            than 100,000 names.
    """
    names, end = _sequence(pattern, 0, pattern, depth=0)
    assert end == len(pattern)
    return names


def fixed_folder(pattern: str) -> str:
    """The folder that all names of the pattern have in common by their spelling, with its '/'; may be empty."""
    return pattern[: pattern.partition("{")[0].rfind("/") + 1]


def _sequence(text: str, start: int, pattern: str, depth: int) -> tuple[list[str], int]:
    """Expand from `start` up to the ',' or '}' that ends this alternative (or the text, at depth 0)."""
    pieces: list[list[str]] = []
    literal_start = at = start
    while at < len(text) and not (depth and text[at] in ",}"):
        if text[at] == "}":
            raise _refusal(pattern, "a '}' without '{'")
        if text[at] == "{":
            pieces.append([text[literal_start:at]])
            group, at = _group(text, at + 1, pattern, depth + 1)
            pieces.append(group)
            literal_start = at
        else:
            at += 1
    pieces.append([text[literal_start:at]])
    num_names = 1
    for piece in pieces:
        num_names *= len(piece)
    if num_names > MAX_EXPANSIONS:
        raise _refusal(pattern, f"more than {MAX_EXPANSIONS} names")
    return ["".join(parts) for parts in product(*pieces)], at


def _group(text: str, start: int, pattern: str, depth: int) -> tuple[list[str], int]:
    """Expand the group whose '{' lies just before `start`; also give the place behind its '}'."""
    matched = _RANGE.match(text, start)
    if matched and text[matched.end() : matched.end() + 1] == "}":
        return _numbers(matched, pattern), matched.end() + 1
    names: list[str] = []
    num_alternatives = 0
    at = start
    while True:
        alternative, at = _sequence(text, at, pattern, depth)
        names += alternative
        num_alternatives += 1
        if len(names) > MAX_EXPANSIONS:
            raise _refusal(pattern, f"more than {MAX_EXPANSIONS} names")
        if at == len(text):
            raise _refusal(pattern, "a '{' without '}'")
        at += 1
        if text[at - 1] == "}":
            break
    if num_alternatives == 1:
        raise _refusal(pattern, f"'{{{text[start : at - 1]}}}', which is neither a list nor a range")
    return names, at


def _numbers(matched: re.Match[str], pattern: str) -> list[str]:
    first, last = int(matched[1]), int(matched[2])
    step = abs(int(matched[3] or 1))
    if step == 0:
        raise _refusal(pattern, "a range with step 0")
    if abs(last - first) // step >= MAX_EXPANSIONS:
        raise _refusal(pattern, f"more than {MAX_EXPANSIONS} names")
    padded = any(re.match(r"-?0\d", end) for end in (matched[1], matched[2]))
    width = max(len(matched[1]), len(matched[2])) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return [f"{number:0{width}d}" for number in numbers]


def _refusal(pattern: str, found: str) -> ValueError:
    return ValueError(
        f"`uri` must hold brace patterns like {{000..127}} or {{a,b}}, got {found} in '{pattern[:200]}'; correct it"
    )
