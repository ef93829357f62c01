"""Field types that the API's models share: numbers, percentages, names, locations, and the base model itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel


class ApiModel(BaseModel):
    """Base of every API object: camelCase on the wire, frozen, and unknown fields are refused rather than ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, use_enum_values=False
    )


def _number_from_text(value: Any) -> Any:
    """Accept `3e-4` as PyYAML hands it over, a string: YAML 1.1 wants a dot in front of the exponent."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


# Schema type "number": people write 3e-4.
Number = Annotated[float, BeforeValidator(_number_from_text)]
PositiveNumber = Annotated[Number, Field(gt=0)]
NonNegativeNumber = Annotated[Number, Field(ge=0)]
# Whole percent, both ends included.
Percent = Annotated[int, Field(ge=0, le=100)]
# A share that is kept or allowed: zero would leave nothing.
KeptPercent = Annotated[int, Field(ge=1, le=100)]
Seconds = Annotated[int, Field(ge=0, le=315_360_000)]
StepName = Annotated[str, Field(min_length=1, max_length=40, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
ShortText = Annotated[str, Field(max_length=256)]
LayerPattern = Annotated[str, Field(min_length=1, max_length=256)]
FreeForm = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


def rule(expression: str, message: str, got: str | None = None) -> dict[str, Any]:
    """One CEL rule for the API server, to be listed under `x-kubernetes-validations`.

    With `got`, a CEL expression for a text of bounded length, the API server says what it got in the place of
    `{got}`.
    """
    if got is None:
        return {"rule": expression, "message": message}
    before, after = (json.dumps(part) for part in message.split("{got}"))
    told = {"message": message.replace(", got {got}", ""), "messageExpression": f"{before} + {got} + {after}"}
    return {"rule": expression, **told}


def with_rules(*rules: dict[str, Any]) -> dict[str, Any]:
    """`json_schema_extra` that carries CEL rules; the model's own validators must say the same."""
    return {"x-kubernetes-validations": list(rules)}


def names_given(fields: Iterable[str]) -> str:
    """A CEL expression: those of `fields` that the object holds, as `[ a b ]`.

    The API server admits only expressions whose result it can bound beforehand, so no list functions and no numbers.
    """
    return "'[' + " + " + ".join(f"(has(self.{field}) ? ' {field}' : '')" for field in fields) + " + ' ]'"


# Credentials inside a URI are refused: no "@" before the path ends.
_LOCATION = r"^((s3|gs|az|file|memory)://[^@\s]+|[^@:\s]+)$"
Location = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1024,
        pattern=_LOCATION,
        # Said in words, without the value: it may hold a secret.
        json_schema_extra=with_rules(
            rule(
                f"self.matches(r'{_LOCATION}')",
                "`uri` must be a path or s3://, gs://, az://, file:// or memory://, without credentials and blanks; "
                "put credentials into a Secret and name it in `credentialsSecretRef`",
            )
        ),
    ),
]
