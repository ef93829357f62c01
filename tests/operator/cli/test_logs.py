"""`limbeck logs`: which pods and containers, through a real API server to a kubelet that is played."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from limbeck.cli.kinds import PODS
from limbeck.kube.transport import Resource, Transport

JOBS = "/apis/limbeck.dev/v1alpha1/namespaces/vision/compressionjobs"
POD_LIST = "/api/v1/namespaces/vision/pods"
NODES = Resource("", "v1", "nodes", False)
Object = dict[str, Any]


def pod(
    name: str, pool: str = "head", *, containers: tuple[str, ...] = ("ray-head", "ray-job-submitter"), **state: Object
) -> Object:
    started = state or {"running": {"startedAt": "2026-11-24T11:00:00Z"}}
    return {
        "metadata": {
            "name": name,
            "labels": {
                "limbeck.dev/job": "emoji",
                "limbeck.dev/attempt": "1",
                "app.kubernetes.io/component": pool,
            },
        },
        "spec": {"containers": [{"name": container, "image": "x"} for container in containers]},
        "status": {"containerStatuses": [{"name": container, "state": started} for container in containers]},
    }


@pytest.fixture
def serve_pods(api, answer, build_stored) -> Callable[..., None]:
    """A running job, and lists of its pods, one after the other."""

    def serve(*lists: list[Object], phase: str = "Running") -> None:
        api.job(build_stored(phase))
        for pods in lists:
            page = {"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": pods}
            api.tell(POD_LIST, answer(body=page))

    return serve


def test_the_driver_is_heard_in_the_container_that_submits_it(api, limbeck, answer, serve_pods) -> None:
    serve_pods([pod("emoji-1-head")])
    api.tell(f"{POD_LIST}/emoji-1-head/log", answer(body=b"one\ntwo\n"))
    result = limbeck("logs", "emoji", "--tail", "5", kubeconfig=api.kubeconfig)
    assert (result.exit_code, result.stdout) == (0, "one\ntwo\n")
    selection, log = api.requests[-2:]
    assert selection.query["labelSelector"] == (
        "limbeck.dev/job=emoji,limbeck.dev/attempt=1,app.kubernetes.io/component=head"
    )
    assert log.query == {"container": "ray-job-submitter", "tailLines": "5"}


def test_another_container_can_be_chosen_and_an_unknown_one_is_refused(api, limbeck, answer, serve_pods) -> None:
    serve_pods([pod("emoji-1-head")])
    api.tell(f"{POD_LIST}/emoji-1-head/log", answer(body=b"ray\n"))
    limbeck("logs", "emoji", "-c", "ray-head", kubeconfig=api.kubeconfig)
    assert api.requests[-1].query == {"container": "ray-head"}
    result = limbeck("logs", "emoji", "-c", "nope", kubeconfig=api.kubeconfig)
    assert result.exit_code == 2
    assert "pod emoji-1-head has no container nope; it has ray-head, ray-job-submitter" in result.stderr


@pytest.mark.parametrize("more", [(), ("-f",)])
def test_lines_of_several_pods_say_whose_they_are(api, limbeck, answer, serve_pods, more) -> None:
    workers = [pod(f"emoji-1-student-{letter}", "student", containers=("ray-worker",)) for letter in "ba"]
    serve_pods(workers)
    for letter in "ab":
        api.tell(f"{POD_LIST}/emoji-1-student-{letter}/log", answer(body=f"from {letter}\n".encode()))
    result = limbeck("logs", "emoji", "--pool", "student", *more, kubeconfig=api.kubeconfig)
    assert result.exit_code == 0
    lines = ["[emoji-1-student-a] from a", "[emoji-1-student-b] from b"]
    assert (sorted(result.stdout.splitlines()) if more else result.stdout.splitlines()) == lines


def test_following_waits_for_a_pod_to_start(api, limbeck, answer, serve_pods) -> None:
    waiting = pod("emoji-1-head", waiting={"reason": "ContainerCreating"})
    serve_pods([waiting], [pod("emoji-1-head")])
    api.watch(POD_LIST, ("MODIFIED", waiting))
    api.tell(f"{POD_LIST}/emoji-1-head/log", answer(body=b"at last\n"))
    result = limbeck("logs", "emoji", "-f", kubeconfig=api.kubeconfig)
    assert (result.exit_code, result.stdout) == (0, "at last\n")
    assert result.stderr == "waiting for the head pod of attempt 1 of emoji to start\n"


@pytest.mark.parametrize(
    ("pods", "phase", "words"),
    [
        ([], "Running", "there is no head pod of attempt 1 of emoji: Running"),
        ([], "Complete", "is gone: Complete: the result reaches the target; `limbeck describe emoji`"),
        (
            [pod("p", waiting={"reason": "ImagePullBackOff", "message": "no such image"})],
            "Running",
            "has not started: ImagePullBackOff (no such image); give -f to wait for it",
        ),
    ],
)
def test_where_there_is_no_log_yet_or_any_more_it_says_why(api, limbeck, serve_pods, pods, phase, words) -> None:
    serve_pods(pods, phase=phase)
    result = limbeck("logs", "emoji", kubeconfig=api.kubeconfig)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr


def test_following_does_not_wait_for_pods_that_can_never_come(api, limbeck, serve_pods) -> None:
    serve_pods([], phase="Complete")
    result = limbeck("logs", "emoji", "-f", kubeconfig=api.kubeconfig)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: the head pod of attempt 1 of emoji is gone: Complete")


def test_a_job_without_an_attempt_has_no_logs(api, limbeck, build_stored) -> None:
    api.job(build_stored("Pending"))
    result = limbeck("logs", "emoji", kubeconfig=api.kubeconfig)
    assert result.exit_code == 2
    assert "emoji has had no attempt yet: Pending (SecretNotFound)" in result.stderr


def test_a_log_that_is_cut_off_is_shown_as_far_as_it_came(api, limbeck, answer, serve_pods) -> None:
    serve_pods([pod("emoji-1-head")])
    api.tell(f"{POD_LIST}/emoji-1-head/log", answer(events=[b"half\n"], end="cut"))
    result = limbeck("logs", "emoji", "-f", kubeconfig=api.kubeconfig)
    assert (result.exit_code, result.stdout) == (3, "half\n")
    assert "the API server does not answer" in result.stderr


@pytest.fixture
def kubelet(control_plane) -> Iterator[list[str]]:
    """Serves logs of the node `played`; what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            tail = int(parse_qs(urlsplit(self.path).query).get("tailLines", ["3"])[0])
            for line in [b"first\n", b"second\n", b"third\n"][-tail:]:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(control_plane.certificate, control_plane.certificate.with_suffix(".key"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    transport = Transport(control_plane.client())
    transport.create(NODES, {"metadata": {"name": "played"}})
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": server.server_port}},
    }
    transport.patch(NODES, "played", {"status": status}, subresource="status")
    yield asked
    transport.delete(NODES, "played")
    server.shutdown()
    server.server_close()


@pytest.mark.controlplane
def test_logs_come_from_the_kubelet_through_the_api_server(control_plane, namespace, kubelet) -> None:
    transport = Transport(control_plane.client())
    body = pod("emoji-1-head")
    body["spec"] |= {"nodeName": "played", "automountServiceAccountToken": False}
    transport.create(PODS, body, namespace)
    with transport.logs("emoji-1-head", namespace, container="ray-head", follow=True, tail_lines=2) as stream:
        assert list(stream) == [b"second", b"third"]
    assert urlsplit(kubelet[0]).path == f"/containerLogs/{namespace}/emoji-1-head/ray-head"
    assert parse_qs(urlsplit(kubelet[0]).query) == {"follow": ["true"], "tailLines": ["2"]}
