"""KubeRay out of its own Go module: its CRDs, and its operator as the module's `config/default` deploys it.

Left out on purpose: KubeRay's Helm chart, which lies in another repository.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import gotools
import manifestfiles
from imagearchive import Image

if TYPE_CHECKING:
    from kubectl import Kubectl

MODULE = "github.com/ray-project/kuberay/ray-operator"
NAMESPACE = "ray-system"
DEPLOYMENT = "kuberay-operator"
_USER = 65532
_CRD = "CustomResourceDefinition"
_BINDINGS = ("RoleBinding", "ClusterRoleBinding")
_WITHOUT_NAMESPACE = ("Namespace", "ClusterRole", "ClusterRoleBinding")


def crds() -> list[dict[str, Any]]:
    """KubeRay's CustomResourceDefinitions; too large for anything but a server-side apply."""
    folder = gotools.source_folder("kuberay", MODULE) / "config" / "crd" / "bases"
    return [
        crd for path in sorted(folder.glob("*.yaml")) for crd in manifestfiles.parse(path.read_text(encoding="utf-8"))
    ]


def install_crds(kubectl: Kubectl) -> None:
    """Returns when they are served."""
    definitions = crds()
    kubectl.apply(definitions)
    names = [f"crd/{definition['metadata']['name']}" for definition in definitions]
    # Not --for=condition: kubectl takes the conditions that a new CRD does not have yet for an error.
    established = "--for=jsonpath={.status.conditions[?(@.type=='Established')].status}=True"
    kubectl.run("wait", established, "--timeout=60s", *names)


def image() -> Image:
    files = {"/manager": gotools.KUBERAY.build()}
    name = f"localhost/kuberay-operator:{gotools.KUBERAY.version()}"
    return Image(name, files, entrypoint=["/manager"], user=f"{_USER}:{_USER}")


def operator_objects() -> list[dict[str, Any]]:
    """All but the CRDs: our image and namespace, less memory, and ready as soon as it is."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    others = [_moved(each) for each in _upstream_objects() if each["kind"] != "Namespace"]
    (deployment,) = [each for each in others if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    # Kubernetes takes only a number for a user other than root.
    pod.setdefault("securityContext", {})["runAsUser"] = _USER
    container = pod["containers"][0]
    container |= {"image": image().name, "imagePullPolicy": "Never"}
    container["resources"] = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
    container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}
    return [namespace, *others]


def install(kubectl: Kubectl) -> None:
    """Returns when the operator is ready. Its first watch finds the CRDs: they are established before it starts."""
    install_crds(kubectl)
    kubectl.apply(operator_objects())
    kubectl.run(
        "--namespace", NAMESPACE, "rollout", "status", f"deployment/{DEPLOYMENT}", "--timeout=120s", seconds=130
    )


def _upstream_objects() -> list[dict[str, Any]]:
    """As kustomize builds them; kept beside the program, since the CRDs among them take it seconds."""
    kept = gotools.KUBERAY.build().with_name(f"objects-{gotools.KUSTOMIZE.version()}.json")
    if not kept.exists():
        folder = gotools.source_folder("kuberay", MODULE) / "config" / "default"
        command = [str(gotools.KUSTOMIZE.build()), "build", str(folder)]
        built = manifestfiles.parse(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        unfinished = kept.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps([each for each in built if each["kind"] != _CRD]), encoding="utf-8")
        unfinished.rename(kept)
    objects: list[dict[str, Any]] = json.loads(kept.read_text(encoding="utf-8"))
    return objects


def _moved(item: dict[str, Any]) -> dict[str, Any]:
    """The object in our namespace, and whom it names too."""
    if item["kind"] not in _WITHOUT_NAMESPACE:
        item["metadata"]["namespace"] = NAMESPACE
    if item["kind"] in _BINDINGS:
        for subject in item["subjects"]:
            subject["namespace"] = NAMESPACE
    return item
