"""What each account of a release may do: exactly what its process asks for, and only where jobs are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from limbeck.kube.errors import ForbiddenError
from limbeck.kube.transport import Resource, Transport

if TYPE_CHECKING:
    from controlplane import ControlPlane

Object = dict[str, Any]
Right = tuple[str, str, str, str]  # verb, API group, resource, name ("" for any)

pytestmark = pytest.mark.controlplane

NAMESPACE = "limbeck-system"
RULES_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectrulesreviews", False)
ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", False)
NAMESPACES = Resource("", "v1", "namespaces", False)


def rights(group: str, resource: str, verbs: str, name: str = "") -> set[Right]:
    return {(verb, group, resource, name) for verb in verbs.split()}


OPERATOR = (
    rights("limbeck.dev", "compressionjobs", "get list watch delete")
    | rights("limbeck.dev", "compressionjobs/status", "patch")
    | rights("ray.io", "rayjobs", "get list watch create delete")
    | rights("", "configmaps", "get create patch")
    | rights("networking.k8s.io", "networkpolicies", "get create")
    | rights("", "pods", "get list watch")
    | rights("events.k8s.io", "events", "create patch")
    | rights("", "secrets", "get")
)
LEASE = rights("coordination.k8s.io", "leases", "create") | rights(
    "coordination.k8s.io", "leases", "get patch", "limbeck-operator"
)
SERVER = (
    rights("", "pods", "get")
    | rights("limbeck.dev", "compressionjobs", "get")
    | rights("limbeck.dev", "compressionjobs/status", "patch")
    | rights("events.k8s.io", "events", "create")
)
TOKENS = rights("authentication.k8s.io", "tokenreviews", "create")
VALUES: dict[str, Object] = {
    "everywhere": {},
    "in team-a": {"watchNamespaces": ["team-a"]},
    "without secrets": {"rbac": {"readSecrets": False}},
    "without the server": {"server": {"enabled": False}},
}
# By (component, namespace asked about).
EXPECTED: dict[str, dict[tuple[str, str], set[Right]]] = {
    "everywhere": {
        ("operator", "team-a"): OPERATOR,
        ("operator", NAMESPACE): OPERATOR | LEASE,
        ("server", "team-a"): SERVER | TOKENS,
        ("server", NAMESPACE): SERVER | TOKENS,
    },
    "in team-a": {
        ("operator", "team-a"): OPERATOR,
        ("operator", "team-b"): set(),
        ("operator", NAMESPACE): LEASE,
        ("server", "team-a"): SERVER | TOKENS,
        ("server", "team-b"): TOKENS,
    },
    "without secrets": {("operator", "team-a"): OPERATOR - rights("", "secrets", "get")},
    "without the server": {("server", "team-a"): set(), ("operator", "team-a"): OPERATOR},
}
# Whether a component may do a thing; the things that would do the most harm.
CLAIMS = [
    ("operator", "get", "", "secrets", True),
    ("operator", "list", "", "secrets", False),
    ("operator", "watch", "", "secrets", False),
    ("operator", "create", "", "secrets", False),
    ("operator", "create", "", "pods", False),
    ("operator", "create", "", "pods/exec", False),
    ("operator", "create", "", "serviceaccounts/token", False),
    ("operator", "patch", "limbeck.dev", "compressionjobs", False),
    ("operator", "update", "limbeck.dev", "compressionjobs/status", False),
    ("operator", "patch", "ray.io", "rayjobs", False),
    ("operator", "delete", "networking.k8s.io", "networkpolicies", False),
    ("operator", "create", "rbac.authorization.k8s.io", "rolebindings", False),
    ("operator", "create", "authentication.k8s.io", "tokenreviews", False),
    ("server", "create", "authentication.k8s.io", "tokenreviews", True),
    ("server", "create", "", "pods", False),
    ("server", "list", "", "pods", False),
    ("server", "get", "", "secrets", False),
    ("server", "list", "limbeck.dev", "compressionjobs", False),
    ("server", "patch", "limbeck.dev", "compressionjobs", False),
    ("server", "get", "coordination.k8s.io", "leases", False),
]


@pytest.fixture
def admin(own_plane: ControlPlane) -> Transport:
    """With the namespaces that the releases watch."""
    transport = Transport(own_plane.client())
    for name in ("team-a", "team-b"):
        if name not in {each["metadata"]["name"] for each in transport.list(NAMESPACES)["items"]}:
            transport.create(NAMESPACES, {"metadata": {"name": name}})
    return transport


@pytest.fixture
def release(request: pytest.FixtureRequest, cluster_helm: Any, admin: Transport) -> Iterator[str]:
    """The name of the values that it was installed with."""
    values: str = getattr(request, "param", "everywhere")
    cluster_helm.install("limbeck", {"crds": {"keep": False}, **VALUES[values]})
    yield values
    cluster_helm.run("uninstall", "limbeck", "--namespace", NAMESPACE)


@pytest.mark.parametrize("release", VALUES, indirect=True)
def test_an_account_has_exactly_the_rights_that_its_process_uses(release: str, own_plane: ControlPlane) -> None:
    for (component, namespace), wanted in EXPECTED[release].items():
        anybody = rights_of(own_plane, "nobody-special", namespace)
        assert rights_of(own_plane, f"limbeck-{component}", namespace) - anybody == wanted, (component, namespace)


def test_the_view_that_the_table_takes_is_complete(release: str, own_plane: ControlPlane) -> None:
    """The review leaves nothing out where RBAC alone decides, and says that it does not."""
    review = as_account(own_plane, "limbeck-operator").create(RULES_REVIEWS, {"spec": {"namespace": "team-a"}})
    assert release
    assert review["status"]["incomplete"] is False


def test_the_api_server_says_so_too(release: str, own_plane: ControlPlane) -> None:
    assert release
    for component, verb, group, resource, may in CLAIMS:
        kind, _, subresource = resource.partition("/")
        asked = {"namespace": "team-a", "verb": verb, "group": group, "resource": kind, "subresource": subresource}
        account = as_account(own_plane, f"limbeck-{component}")
        review = account.create(ACCESS_REVIEWS, {"spec": {"resourceAttributes": asked}})
        assert review["status"]["allowed"] is may, (component, asked)


def test_a_request_beyond_the_rights_is_forbidden(release: str, own_plane: ControlPlane) -> None:
    assert release
    secrets, pods = Resource("", "v1", "secrets"), Resource("", "v1", "pods")
    with pytest.raises(ForbiddenError, match="limbeck-operator"):
        as_account(own_plane, "limbeck-operator").list(secrets, "team-a")
    with pytest.raises(ForbiddenError, match="limbeck-server"):
        as_account(own_plane, "limbeck-server").create(pods, {"metadata": {"name": "a"}}, "team-a")


def test_users_roles_carry_the_rights_over_jobs_by_aggregation(release: str, admin: Transport) -> None:
    """What the controller-manager, which is not here, puts into `view`, `edit` and `admin`."""
    assert release
    roles = admin.list(Resource("rbac.authorization.k8s.io", "v1", "clusterroles", False))["items"]
    gathered: dict[str, set[Right]] = {}
    for builtin in ("view", "edit", "admin"):
        label = f"rbac.authorization.k8s.io/aggregate-to-{builtin}"
        ours = [role for role in roles if role["metadata"].get("labels", {}).get(label) == "true"]
        rules = [rule for role in ours if role["metadata"]["name"].startswith("limbeck-") for rule in role["rules"]]
        gathered[builtin] = flattened(rules)
    viewed = rights("limbeck.dev", "compressionjobs", "get list watch") | rights(
        "limbeck.dev", "compressionjobs/status", "get"
    )
    edited = rights("limbeck.dev", "compressionjobs", "create update patch delete deletecollection")
    assert gathered == {"view": viewed, "edit": viewed | edited, "admin": viewed | edited}


def rights_of(plane: ControlPlane, account: str, namespace: str) -> set[Right]:
    review = as_account(plane, account).create(RULES_REVIEWS, {"spec": {"namespace": namespace}})
    return flattened(review["status"]["resourceRules"])


def flattened(rules: list[Object]) -> set[Right]:
    return {
        (verb, group, resource, name)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""]
    }


def as_account(plane: ControlPlane, account: str) -> Transport:
    """The account of that name beside the release, as the administrator impersonates it."""
    return Transport(plane.client(f"system:serviceaccount:{NAMESPACE}:{account}"))
