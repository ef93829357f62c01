"""`-o`: what a verb has to show, as a table or sentence for people, or as whole objects for machines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from limbeck import names
from limbeck.cli.jobs import without_managed_fields
from limbeck.cli.yaml import dump

FORMATS: Final = ("table", "wide", "json", "yaml", "name")


def show(items: Sequence[Mapping[str, Any]], output: str, lines: Sequence[str], *, as_list: bool = False) -> None:
    """`lines` for table and wide; else the objects: one by itself, or a List as kubectl writes it."""
    if output in ("table", "wide"):
        for line in lines:
            print(line)
    elif output == "name":
        for item in items:
            print(f"{item['kind'].lower()}.{names.GROUP}/{item['metadata']['name']}")
    else:
        objects = [without_managed_fields(item) for item in items]
        whole = {"apiVersion": "v1", "kind": "List", "items": objects} if as_list or len(objects) != 1 else objects[0]
        show_data(whole, output)


def show_data(data: Any, output: str) -> None:
    """Anything as JSON or YAML."""
    print(json.dumps(data, indent=2) + "\n" if output == "json" else dump(data), end="")
