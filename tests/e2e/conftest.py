"""A cluster with limbeck in it, and the image-text example in its bucket.

Which cluster: the one that KUBECONFIG names, with LIMBECK_OPERATOR_IMAGE and LIMBECK_RUNTIME_IMAGE in a registry that
it can pull from, S3's settings (AWS_*) and LIMBECK_TESTBED_BUCKET; else the test cluster of this machine, which is
started and ended here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from livejob import LiveJob

NAMESPACE = "team"
_S3 = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ALLOW_HTTP")


@dataclass(frozen=True)
class Site:
    """All that a test needs to know of where it runs."""

    kubeconfig: Path
    s3: dict[str, str]
    bucket: str
    prometheus: str | None
    values: dict[str, Any]


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    named = os.environ.get("KUBECONFIG")
    if named:
        yield _named_site(Path(named))
        return
    import images
    import obstacles
    import release
    from testbed import Testbed

    found = obstacles.obstacles(has_images=(images.image_cache() / "runtime.json").exists())
    if found:
        pytest.skip(f"the test cluster {'; '.join(found)}")
    bed = Testbed()
    was_up = bed.is_up()
    try:
        bed.up()
        for target in images.TARGETS:
            bed.load_built(target)
        settings = bed.settings()
        s3 = {name: settings[name] for name in _S3}
        yield Site(bed.kubeconfig, s3, bed.s3.bucket, settings["LIMBECK_TESTBED_PROMETHEUS"], release.testbed_values())
    finally:
        if not was_up:
            bed.down()


def _named_site(kubeconfig: Path) -> Site:
    import release

    wanted = ("LIMBECK_OPERATOR_IMAGE", "LIMBECK_RUNTIME_IMAGE", "LIMBECK_TESTBED_BUCKET", *_S3[:4])
    missing = [name for name in wanted if name not in os.environ]
    if missing:
        raise pytest.UsageError(f"with KUBECONFIG set, the end-to-end tests need {', '.join(missing)} too")
    images = os.environ["LIMBECK_OPERATOR_IMAGE"], os.environ["LIMBECK_RUNTIME_IMAGE"]
    kuberay_namespace = os.environ.get("LIMBECK_KUBERAY_NAMESPACE", "kuberay-system")
    return Site(
        kubeconfig,
        {name: os.environ[name] for name in _S3 if name in os.environ},
        os.environ["LIMBECK_TESTBED_BUCKET"],
        os.environ.get("LIMBECK_TESTBED_PROMETHEUS"),
        release.values(*images, "IfNotPresent", kuberay_namespace),
    )


@pytest.fixture(scope="session")
def kubectl(site: Site) -> Any:
    from kubectl import Kubectl

    return Kubectl(site.kubeconfig)


@pytest.fixture(scope="session")
def limbeck(site: Site, kubectl: Any) -> Iterator[str]:
    """helm's notes after it installed limbeck. In the namespace `team` are the credentials of a bucket with data."""
    import imagetext
    from release import NAMESPACE as OWN_NAMESPACE
    from release import Release

    release = Release(site.kubeconfig)
    notes = release.install(site.values)
    imagetext.upload(site.bucket, site.s3)
    secret = {"metadata": {"name": "s3", "namespace": NAMESPACE}, "stringData": site.s3}
    kubectl.apply(
        [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": _BASELINE}},
            {"apiVersion": "v1", "kind": "Secret", **secret},
        ]
    )
    yield notes
    for each in kubectl.get("pods", f"--namespace={OWN_NAMESPACE}")["items"]:
        print(kubectl.run("logs", f"--namespace={OWN_NAMESPACE}", each["metadata"]["name"], "--tail=200"))
    kubectl.run("delete", "compressionjobs", "--all", f"--namespace={NAMESPACE}", "--timeout=60s")
    release.uninstall()


# Not `restricted`: the submitter that KubeRay puts beside the head says nothing about its security.
_BASELINE = {"pod-security.kubernetes.io/enforce": "baseline"}


@pytest.fixture
def eventually() -> Callable[..., None]:
    """`eventually(what, happened, seconds)`: looks again and again; an AssertionError names `what` never came."""

    def wait(what: str, happened: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            time.sleep(0.5)

    return wait


@pytest.fixture(scope="session")
def bed(site: Site) -> Any:
    """The test cluster itself, whose node is this machine: its processes can be killed, its audit log read."""
    from testbed import Testbed

    if os.environ.get("KUBECONFIG"):
        pytest.skip("kills processes of the test cluster's node; unset KUBECONFIG")
    return Testbed()


@pytest.fixture
def start(site: Site, kubectl: Any, limbeck: str) -> Iterator[Callable[..., LiveJob]]:
    """`start(name, changes)`: a LiveJob that was applied; its namespace goes when the test is over."""
    from livejob import LiveJob

    jobs = []

    def begin(name: str, changes: dict[str, Any], **how: str) -> LiveJob:
        jobs.append(LiveJob(kubectl, site, name, changes, **how))
        jobs[-1].apply()
        return jobs[-1]

    yield begin
    for job in jobs:
        job.forget()
