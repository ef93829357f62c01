"""Reads the objects in `manifests/*.yaml`, whose $names are filled in."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

FOLDER = Path(__file__).parent / "manifests"
# libyaml reads megabytes of schemas in a second; pure Python takes ten.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(name: str, **values: object) -> list[dict[str, Any]]:
    return parse(string.Template((FOLDER / name).read_text(encoding="utf-8")).substitute(values))


def parse(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.load_all(text, _Loader) if document]
