"""One CompressionJob on a cluster, in a namespace of its own: applied, watched, waited for, and its story told.

Left out on purpose: what is done to it, which is the tests' business.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import imagetext
from obstore.store import S3Store

if TYPE_CHECKING:
    from kubectl import Kubectl

Object = dict[str, Any]

# All that a job may leave behind, in the namespace that it has for itself.
_KINDS = "rayjobs,rayclusters,pods,configmaps,secrets,networkpolicies,services"
_OF_THE_NAMESPACE = {"ConfigMap/kube-root-ca.crt", "Secret/s3"}
_POLL_SECONDS = 0.5


class LiveJob:
    """The sample `smoke` with changes, under the name `name`."""

    def __init__(
        self, kubectl: Kubectl, site: Any, name: str, changes: Mapping[str, Any], security: str = "baseline"
    ) -> None:
        """`site` says where S3 is; `security` is the namespace's level of pod security."""
        self._kubectl = kubectl
        self._site = site
        self.name = name
        self.namespace = f"{name}-{uuid.uuid4().hex[:6]}"
        self._security = security
        job = imagetext.sample("smoke", **changes)
        job["metadata"] |= {"name": name, "namespace": self.namespace}
        job["spec"]["output"]["uri"] = f"s3://limbeck/results/{self.namespace}"
        self.wanted: Object = json.loads(json.dumps(job).replace("s3://limbeck/", f"s3://{site.bucket}/"))

    def apply(self) -> None:
        """Namespace, credentials and job."""
        labels = {"pod-security.kubernetes.io/enforce": self._security}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": labels}}
        self._kubectl.apply([namespace, self.secret("s3")])
        self.run("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
        self.run("apply", "--filename=-", stdin=json.dumps(self.wanted))

    def secret(self, name: str) -> Object:
        meta = {"name": name, "namespace": self.namespace}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": self._site.s3}

    def patch(self, **spec: Any) -> None:
        self.run("patch", "cpj", self.name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        return self._kubectl.run(f"--namespace={self.namespace}", *arguments, stdin=stdin)

    def get(self, *arguments: str) -> Object:
        return self._kubectl.get(*arguments, f"--namespace={self.namespace}")

    def status(self) -> Object:
        found: Object = self.get("cpj", self.name).get("status", {})
        return found

    def condition(self, kind: str) -> Object:
        """Empty where there is none."""
        found = [each for each in self.status().get("conditions", []) if each["type"] == kind]
        return found[0] if found else {}

    def says(self, kind: str, status: str, reason: str) -> bool:
        found = self.condition(kind)
        return (found.get("status"), found.get("reason")) == (status, reason)

    def progress(self, step: str) -> int:
        """Per cent of a step, -1 before it has begun."""
        found = [each for each in self.status().get("steps", []) if each["name"] == step]
        is_under_way = bool(found) and found[0]["state"] != "Pending"
        return int(found[0].get("progressPercent", 0)) if is_under_way else -1

    def pods(self, component: str = "") -> list[Object]:
        """Those that are not about to go; of one component, if named."""
        selector = f"app.kubernetes.io/component={component}" if component else "limbeck.dev/job"
        items = self.get("pods", f"--selector={selector}")["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def pods_that_run(self) -> list[str]:
        """Names of all in which a process may be at work, also of those that are about to go."""
        items = self.get("pods")["items"]
        return [pod["metadata"]["name"] for pod in items if pod["status"]["phase"] not in ("Succeeded", "Failed")]

    def pod(self, component: str) -> Object:
        return self.pods(component)[0]

    def reasons(self) -> list[str]:
        """Of the job's events, each as often as it was recorded."""
        field = f"--field-selector=involvedObject.name={self.name},involvedObject.kind=CompressionJob"
        return [event["reason"] for event in self.get("events", field)["items"]]

    def said(self, kind: str) -> list[Object]:
        """The driver's events of one kind so far, as its head pod logs them."""
        heads = self.pods("head")
        if not heads:
            return []
        name = heads[0]["metadata"]["name"]
        command = ("logs", f"--namespace={self.namespace}", name, "--container=ray-job-submitter")
        return _events(self._kubectl.run(*command) if self._kubectl.succeeds(*command) else "", kind)

    def recorded(self, kind: str) -> list[Object]:
        """The driver's events of one kind, of all attempts, as they lie in the bucket."""
        entries = sorted(name for name in self.objects() if name.startswith("logs/commits/"))
        files = [json.loads(self.read(name))["files"].get("events.jsonl") for name in entries]
        return [event for file in files if file for event in _events(self.read(f"logs/{file['path']}").decode(), kind)]

    def objects(self) -> list[str]:
        """Names of all that the job wrote to the bucket."""
        return [info["path"] for page in self._store().list() for info in page]

    def read(self, name: str) -> bytes:
        return bytes(self._store().get(name).bytes())

    def wait(self, what: str, happened: Callable[[], object], seconds: float = 300) -> float:
        """Seconds that it took. An AssertionError tells what the cluster knows of the job."""
        began = time.monotonic()
        while not happened():
            assert time.monotonic() < began + seconds, f"not within {seconds:g} s: {what}\n{self.story()}"
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - began

    def wait_until_finished(self, kind: str, reason: str, seconds: float = 600) -> Object:
        """The status in the end, which must be this condition for this reason."""

        def is_finished() -> bool:
            return any(self.condition(each).get("status") == "True" for each in ("Complete", "Failed"))

        self.wait("the job is finished", is_finished, seconds)
        assert self.says(kind, "True", reason), self.story()
        return self.status()

    def left(self) -> list[str]:
        """What is in the namespace that was not there before the job."""
        items = self.get(_KINDS)["items"]
        found = {f"{item['kind']}/{item['metadata']['name']}" for item in items}
        return sorted(found - _OF_THE_NAMESPACE)

    def delete(self) -> None:
        """Returns when nothing of the job is left in the cluster."""
        self.run("delete", "cpj", self.name, "--timeout=60s")
        self.wait(f"nothing is left of {self.name}", lambda: not self.left(), 120)

    def forget(self) -> None:
        """The namespace goes in the background."""
        self._kubectl.succeeds("delete", "namespace", self.namespace, "--wait=false")

    def story(self) -> str:
        """For whoever looks for the cause of a failure."""
        told = [self._tell("describe", "cpj,rayjob,pods", f"--namespace={self.namespace}")]
        for pod in self.pods("head"):
            told.append(self._logs(self.namespace, pod["metadata"]["name"], 60))
        for namespace in ("limbeck-system", self._site.values["operator"]["settings"]["kuberayNamespace"]):
            names = self._tell("get", "pods", f"--namespace={namespace}", "--output=name").split()
            told += [self._logs(namespace, name, 40) for name in names]
        return "\n".join(told)

    def _logs(self, namespace: str, pod: str, lines: int) -> str:
        command = ("logs", f"--namespace={namespace}", pod, "--all-containers", f"--tail={lines}")
        return f"--- {pod}\n{self._tell(*command)}"

    def _tell(self, *arguments: str) -> str:
        from kubectl import KubectlError

        try:
            return self._kubectl.run(*arguments)
        except KubectlError as error:
            return str(error)

    def _store(self) -> S3Store:
        s3 = self._site.s3
        return S3Store(
            self._site.bucket,
            prefix=f"results/{self.namespace}",
            endpoint=s3["AWS_ENDPOINT_URL"],
            region=s3["AWS_REGION"],
            access_key_id=s3["AWS_ACCESS_KEY_ID"],
            secret_access_key=s3["AWS_SECRET_ACCESS_KEY"],
            client_options={"allow_http": True},
        )


def _events(text: str, kind: str) -> list[Object]:
    """JSON lines among others."""
    found = []
    for line in text.splitlines():
        start = line.find('{"')
        if start >= 0 and f'"{kind}"' in line:
            try:
                event = json.loads(line[start:])
            except ValueError:
                continue
            if event.get("event") == kind:
                found.append(event)
    return found
