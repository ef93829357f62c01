"""Builders of jobs for the operator's tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

_SMALLEST = {
    "apiVersion": "limbeck.dev/v1alpha1",
    "kind": "CompressionJob",
    "metadata": {"name": "emoji"},
    "spec": {
        "target": {"sizeRatio": 4},
        "task": "ImageText",
        "teacher": {"model": {"loader": "Transformers", "uri": "s3://models/clip"}},
        "data": {
            "train": {"uri": "s3://pairs/{000..127}.tar", "format": "WebDataset"},
            "validationPercent": 5,
            "columns": {"image": "png", "text": "txt"},
        },
        "output": {"uri": "s3://results/emoji"},
    },
}


@pytest.fixture
def build_job() -> Callable[..., dict[str, Any]]:
    """`build_job(**{"spec.target.sizeRatio": 8})`: the smallest job with some fields set; None removes one."""

    def build(**changes: Any) -> dict[str, Any]:
        job: dict[str, Any] = copy.deepcopy(_SMALLEST)
        for path, value in changes.items():
            *parents, last = path.split(".")
            node = job
            for parent in parents:
                node = node.setdefault(parent, {})
            if value is None:
                node.pop(last, None)
            else:
                node[last] = value
        return job

    return build
