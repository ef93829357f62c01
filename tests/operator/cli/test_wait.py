"""`limbeck wait`: what ends it while it waits."""

from __future__ import annotations

import json

import pytest


def test_the_end_is_seen_when_it_comes(api, limbeck, build_stored) -> None:
    api.job(build_stored("Running"), ("MODIFIED", build_stored("Complete", version=8)))
    result = limbeck("wait", "emoji", kubeconfig=api.kubeconfig)
    assert (result.exit_code, result.stdout) == (0, "emoji: Complete: the result reaches the target\n")


def test_a_job_that_is_deleted_is_no_endless_wait(api, limbeck, build_stored) -> None:
    api.job(build_stored("Running"), ("DELETED", build_stored("Running", version=8)))
    result = limbeck("wait", "emoji", kubeconfig=api.kubeconfig)
    assert result.exit_code == 1
    assert "emoji was deleted before it was finished: Running (RayJobCreated)" in result.stderr


def test_trouble_that_passes_is_said_and_borne(api, limbeck, build_stored) -> None:
    base = "/apis/limbeck.dev/v1alpha1/namespaces/vision/compressionjobs"
    api.job(build_stored("Running"), end="cut")
    api.watch(base, ("MODIFIED", build_stored("Complete", version=8)))
    result = limbeck("wait", "emoji", kubeconfig=api.kubeconfig)
    assert result.exit_code == 0
    assert result.stderr.startswith("trying again: the API server does not answer: watch compressionjobs")


def test_the_job_is_given_to_machines_as_it_is_in_the_end(api, limbeck, build_stored) -> None:
    api.job(build_stored("Running"), ("MODIFIED", build_stored("Failed", version=8)))
    result = limbeck("wait", "emoji", "-o", "json", kubeconfig=api.kubeconfig)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["status"]["phase"] == "Failed"


@pytest.mark.parametrize("text", ["90", "90s", "15m", "2h", "1d"])
def test_a_time_may_have_a_unit(api, limbeck, build_stored, text) -> None:
    api.job(build_stored("Complete"))
    assert limbeck("wait", "emoji", "--timeout", text, kubeconfig=api.kubeconfig).exit_code == 0
