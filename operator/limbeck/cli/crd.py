"""`limbeck crd`: the CustomResourceDefinition as YAML."""

from __future__ import annotations

from limbeck.api.crd import custom_resource_definition
from limbeck.cli.exits import OK
from limbeck.cli.yaml import dump


def crd() -> int:
    """Print the CRD."""
    print(dump(custom_resource_definition()), end="")
    return OK
