"""The operator's rights, and accounts that have them: in the audit log each account is somebody of his own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import urllib3

from limbeck.kube.transport import Resource, Transport

if TYPE_CHECKING:
    from controlplane import ControlPlane

ROLE: Final = "limbeck-operator"
_GROUP: Final = "rbac.authorization.k8s.io"
_ROLES: Final = Resource(_GROUP, "v1", "clusterroles", False)
_BINDINGS: Final = Resource(_GROUP, "v1", "clusterrolebindings", False)
# What the operator does, and nothing else; it takes no Secret whose absence it could not do without.
RIGHTS: Final = (
    ("limbeck.dev", "compressionjobs", ("get", "list", "watch", "delete")),
    ("limbeck.dev", "compressionjobs/status", ("patch",)),
    ("ray.io", "rayjobs", ("get", "list", "watch", "create", "delete")),
    ("", "configmaps", ("get", "create", "patch")),
    ("networking.k8s.io", "networkpolicies", ("get", "create")),
    ("", "pods", ("get", "list", "watch")),
    ("events.k8s.io", "events", ("create", "patch")),
    ("coordination.k8s.io", "leases", ("get", "create", "patch")),
)


def make_role(transport: Transport) -> None:
    """The rights, given to nobody yet."""
    rules = [{"apiGroups": [group], "resources": [kind], "verbs": list(verbs)} for group, kind, verbs in RIGHTS]
    transport.create(_ROLES, {"metadata": {"name": ROLE}, "rules": rules})


def bind_user(transport: Transport) -> None:
    """Give the rights to the user who is named as the role."""
    subject = {"apiGroup": _GROUP, "kind": "User", "name": ROLE}
    transport.create(_BINDINGS, _binding(ROLE, subject))


def unbind_user(transport: Transport) -> None:
    transport.delete(_BINDINGS, ROLE)


def new_account(plane: ControlPlane, namespace: str, name: str, folder: Path) -> Path:
    """A service account with the rights in the whole cluster; its kubeconfig, which is good for an hour."""
    admin = Transport(plane.client())
    admin.create(Resource("", "v1", "serviceaccounts"), {"metadata": {"name": name}}, namespace)
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    admin.create(_BINDINGS, _binding(f"{namespace}-{name}", subject))
    configuration = plane.configuration()
    with urllib3.PoolManager(ca_certs=configuration.ssl_ca_cert, retries=False) as pool:
        answer = pool.request(
            "POST",
            f"{plane.address}/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token",
            json={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
            headers={"Authorization": configuration.api_key["BearerToken"]},
        )
        assert answer.status == 201, answer.data
    config = json.loads(plane.kubeconfig.read_text(encoding="utf-8"))
    config["users"][0]["user"] = {"token": answer.json()["status"]["token"]}
    path = folder / f"{namespace}-{name}.kubeconfig"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def user_of(namespace: str, name: str) -> str:
    """How the audit log names an account."""
    return f"system:serviceaccount:{namespace}:{name}"


def _binding(name: str, subject: dict[str, str]) -> dict[str, object]:
    role = {"apiGroup": _GROUP, "kind": "ClusterRole", "name": ROLE}
    return {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]}
