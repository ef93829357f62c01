"""`limbeck report`: what came out, and the report from where it lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.cli.failures import CommandError
from limbeck.cli.report import read


@pytest.fixture
def serve_job(api, build_stored):  # type: ignore[no-untyped-def]
    def serve(uri: str) -> None:
        job = build_stored("Complete")
        job["status"]["result"] = {**job["status"]["result"], "reportUri": uri}
        api.job(job)

    return serve


def test_what_came_out_is_shown_with_where_it_lies(api, limbeck, serve_job) -> None:
    serve_job("s3://results/emoji/report/report.html")
    result = limbeck("report", "emoji", kubeconfig=api.kubeconfig)
    assert result.exit_code == 0
    assert result.stdout == (
        "model     smaller   recall@10   recovery\n"
        "teacher   1x        0.612       -\n"
        "result    8.1x      0.601       98.2 %\n"
        "report: s3://results/emoji/report/report.html\n"
        "model: s3://results/emoji/model\n"
    )


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_report_on_this_machine_is_written_where_it_is_wanted(api, limbeck, serve_job, tmp_path, scheme) -> None:
    (tmp_path / "report.html").write_bytes(b"<html>")
    serve_job(f"{scheme}{tmp_path}/report.html")
    result = limbeck("report", "emoji", "-o", str(tmp_path / "copy.html"), kubeconfig=api.kubeconfig)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}/copy.html\n")
    assert (tmp_path / "copy.html").read_bytes() == b"<html>"
    assert limbeck("report", "emoji", "-o", "-", kubeconfig=api.kubeconfig).stdout == "<html>"


def test_a_report_on_the_web_is_fetched(api, limbeck, serve_job, answer) -> None:
    serve_job(f"{api.url}/report.html")
    api.tell("/report.html", answer(body=b"<html>"))
    assert limbeck("report", "emoji", "-o", "-", kubeconfig=api.kubeconfig).stdout == "<html>"


def test_a_report_in_a_bucket_is_read_with_the_environments_credentials(api, limbeck, serve_job, answer) -> None:
    serve_job("s3://results/emoji/report.html")
    api.tell("/results/emoji/report.html", answer(body=b"<html>"))
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": api.url,
        "AWS_ALLOW_HTTP": "true",
    }
    result = limbeck("report", "emoji", "-o", "-", kubeconfig=api.kubeconfig, **environment)
    assert (result.exit_code, result.stdout) == (0, "<html>")


def test_a_job_without_a_report_says_where_it_is(api, limbeck, build_stored) -> None:
    api.job(build_stored("Running"))
    result = limbeck("report", "emoji", kubeconfig=api.kubeconfig)
    assert result.exit_code == 2
    assert "emoji has no report yet: Running" in result.stderr


def test_a_path_inside_the_pods_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"cannot be read from this machine: No such file.*inside the job's pods"):
        read(str(tmp_path / "absent.html"))


def test_a_web_server_that_refuses_or_is_not_there_is_told_apart(api, answer) -> None:
    api.tell("/report.html", answer(403, b"no"))
    with pytest.raises(CommandError, match=r"report.html answers 403") as refused:
        read(f"{api.url}/report.html")
    assert refused.value.code == 2
    with pytest.raises(CommandError, match="does not answer") as gone:
        read("http://127.0.0.1:1/report.html")
    assert gone.value.code == 3


def test_a_file_that_cannot_be_written_is_named(api, limbeck, serve_job, tmp_path) -> None:
    (tmp_path / "report.html").write_bytes(b"<html>")
    serve_job(f"{tmp_path}/report.html")
    result = limbeck("report", "emoji", "-o", str(tmp_path / "no" / "such" / "folder"), kubeconfig=api.kubeconfig)
    assert result.exit_code == 2
    assert "cannot write" in result.stderr
