"""What goes wrong between the command and the API server: one sentence, one exit code, no traceback."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

JOBS = "/apis/limbeck.dev/v1alpha1/namespaces/vision/compressionjobs"


@pytest.mark.parametrize(
    ("code", "reason", "exit_code", "words"),
    [
        (401, "Unauthorized", 3, "refuses our credentials"),
        (403, "Forbidden", 2, "not allowed"),
        (409, "Conflict", 2, "somebody else has changed or owns this"),
        (410, "Expired", 2, "refuses this"),
        (422, "Invalid", 2, "refuses this"),
        (429, "TooManyRequests", 3, "has trouble of its own"),
        (500, "InternalError", 3, "has trouble of its own"),
    ],
)
def test_each_refusal_is_a_sentence_that_quotes_it_and_an_exit_code(
    api, limbeck, code, reason, exit_code, words
) -> None:
    api.status(JOBS, code, reason)
    result = limbeck("get", kubeconfig=api.kubeconfig)
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert f"GET {JOBS}: {code} {reason}: told {reason}" in result.stderr


def test_an_unknown_name_says_where_it_was_looked_for_and_what_lists_the_others(api, limbeck) -> None:
    result = limbeck("describe", "emoji", kubeconfig=api.kubeconfig)
    assert result.exit_code == 2
    assert "there is no CompressionJob emoji in namespace vision; `limbeck get -n vision`" in result.stderr


def test_a_cluster_without_limbeck_is_told_apart_from_an_unknown_name(api, limbeck, answer) -> None:
    api.tell(f"{JOBS}/emoji", answer(404, b"404 page not found\n"))
    result = limbeck("describe", "emoji", kubeconfig=api.kubeconfig)
    assert result.exit_code == 2
    assert "the cluster does not serve this" in result.stderr
    assert "limbeck doctor" in result.stderr


def test_a_refused_connection_is_unreachable(api, limbeck, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        config = json.loads(api.kubeconfig.read_text())
        config["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{taken.getsockname()[1]}"
        path = tmp_path / "gone.json"
        path.write_text(json.dumps(config))
        result = limbeck("get", kubeconfig=path)
    assert result.exit_code == 3
    assert "the API server does not answer" in result.stderr
    assert "refused" in result.stderr
    assert "--context" in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "config file is empty"),
        ("a: [", "cannot be used"),
        ("- a\n", "cannot be used"),
        ('{"contexts": [], "clusters": [], "users": []}', "no cluster to talk to"),
    ],
)
def test_a_kubeconfig_that_is_no_good_is_named(limbeck, tmp_path: Path, text, words) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    result = limbeck("get", kubeconfig=path)
    assert result.exit_code == 3
    assert words in result.stderr
    assert str(path) in result.stderr


def test_a_context_that_is_not_there_is_unreachable(api, limbeck) -> None:
    result = limbeck("get", "--context", "nowhere", "--kubeconfig", str(api.kubeconfig))
    assert result.exit_code == 3
    assert "nowhere" in result.stderr


@pytest.mark.parametrize("verb", ["get", "describe", "wait", "suspend", "logs", "report", "watch"])
def test_no_verb_shows_a_traceback_when_the_server_talks_nonsense(api, limbeck, answer, verb) -> None:
    for path in (JOBS, f"{JOBS}/emoji"):
        api.tell(path, answer(200, b"welcome to nginx"))
    result = limbeck(verb, *([] if verb == "get" else ["emoji"]), kubeconfig=api.kubeconfig)
    assert result.exit_code == 3
    assert "no API server" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("get", "-o", "xml"),
        ("get", "emoji", "-l", "a=b"),
        ("wait", "emoji", "--for", "Ready"),
        ("wait", "emoji", "--timeout", "soon"),
        ("logs", "emoji", "--pool", "boss"),
        ("logs", "emoji", "--attempt", "0"),
        ("watch", "emoji", "--log-format", "xml"),
        ("submit",),
        ("submit", "-f", "no/such/file.yaml"),
        ("submit", "-f", "-", "--dry-run", "maybe"),
        ("describe",),
    ],
)
def test_a_wrong_option_is_a_usage_error_before_anything_is_asked(api, limbeck, arguments) -> None:
    assert limbeck(*arguments, kubeconfig=api.kubeconfig).exit_code == 2
    assert api.requests == []


def test_text_from_the_cluster_cannot_steer_the_terminal(api, limbeck, build_stored) -> None:
    job = build_stored("Failed")
    job["status"]["conditions"][0]["message"] = "\x1b]0;title\x07 gone"
    api.job(job)
    for arguments in (("get", "-o", "wide"), ("describe", "emoji"), ("wait", "emoji"), ("watch", "emoji")):
        result = limbeck(*arguments, kubeconfig=api.kubeconfig)
        assert "\x1b" not in result.output
        assert "]0;title? gone" in result.output


def test_what_a_server_says_in_an_error_cannot_either(api, limbeck) -> None:
    api.status(JOBS, 403, "\x1b[2J")
    result = limbeck("get", kubeconfig=api.kubeconfig)
    assert "\x1b" not in result.stderr
    assert "?[2J" in result.stderr
