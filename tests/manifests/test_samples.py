"""The samples are jobs that can be planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.controller.planning import resolve
from limbeck.controller.rayjob import desired_rayjob
from limbeck.controller.settings import Settings

SAMPLES = ("image-text", "smoke", "target-only", "suspended", "kueue")
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "01-image-text" / "job.yaml"


@pytest.fixture
def sample(manifests: Path) -> dict[str, Any]:
    """Every sample job by its file's name."""
    found = {}
    for name in SAMPLES:
        found[name] = yaml.safe_load((manifests / "samples" / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_a_job_that_can_be_planned(sample: dict[str, Any], name: str) -> None:
    assert resolve(CompressionJob.model_validate(sample[name]).spec).spec.pipeline


def test_every_file_is_known_here(manifests: Path) -> None:
    assert {path.stem for path in (manifests / "samples").glob("*.yaml")} == {*SAMPLES, "s3-secret"}


def test_the_image_text_sample_is_the_example_brought_to_a_cluster(sample: dict[str, Any]) -> None:
    """The same pipeline, student, target and evaluation; only places and pods differ."""
    there = CompressionJob.model_validate(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))).spec
    here = CompressionJob.model_validate(sample["image-text"]).spec
    for field in ("task", "target", "student", "pipeline", "evaluation", "export"):
        assert getattr(here, field) == getattr(there, field), field
    assert here.data.columns == there.data.columns
    assert here.data.augmentation == there.data.augmentation


def test_the_image_text_sample_has_two_pods_of_each_kind(sample: dict[str, Any]) -> None:
    cluster = CompressionJob.model_validate(sample["image-text"]).spec.cluster
    assert (cluster.teacher.min_replicas, cluster.teacher.max_replicas, cluster.student.replicas) == (2, 2, 2)


def test_the_smoke_sample_fits_a_node_with_two_cores(sample: dict[str, Any]) -> None:
    """What all its pods request together leaves room for limbeck, KubeRay and the system's pods."""
    job = CompressionJob.model_validate(
        {**sample["smoke"], "metadata": {"name": "smoke", "namespace": "team-a", "uid": "u"}}
    )
    cluster = desired_rayjob(job, 1, Settings(image="runtime"))["spec"]["rayClusterSpec"]
    groups = [(1, cluster["headGroupSpec"]["template"])]
    groups += [(group["maxReplicas"], group["template"]) for group in cluster["workerGroupSpecs"]]
    requests = [
        (number, container["resources"]["requests"])
        for number, template in groups
        for container in template["spec"]["containers"]
    ]
    assert sum(number * int(each["cpu"].removesuffix("m")) for number, each in requests) <= 1000
    assert sum(number * _mebibytes(each["memory"]) for number, each in requests) <= 3072


def test_all_samples_take_their_credentials_from_the_sample_secret(sample: dict[str, Any], manifests: Path) -> None:
    secret = yaml.safe_load((manifests / "samples" / "s3-secret.yaml").read_text(encoding="utf-8"))
    for job in sample.values():
        assert job["spec"]["output"]["credentialsSecretRef"] == {"name": secret["metadata"]["name"]}


def _mebibytes(text: str) -> int:
    return int(text.removesuffix("Gi")) * 1024 if text.endswith("Gi") else int(text.removesuffix("Mi"))
