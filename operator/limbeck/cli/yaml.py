"""Plain data as YAML text, in block style and in the given order."""

from __future__ import annotations

from io import StringIO
from typing import Any

from ruamel.yaml import YAML


def dump(data: Any) -> str:
    """`data` as one YAML document."""
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 120
    stream = StringIO()
    yaml.dump(data, stream)
    return stream.getvalue()
