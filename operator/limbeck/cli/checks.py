"""What `limbeck doctor` looks at in a cluster; each check is one function from a cluster to one finding.

Left out: changing anything. Access reviews are created, but nothing keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from limbeck import names
from limbeck.api.crd import custom_resource_definition
from limbeck.cli.cluster import Cluster
from limbeck.cli.failures import explained
from limbeck.cli.jobs import moment, outcome, telling_condition
from limbeck.cli.kinds import ACCESS_REVIEWS, CRDS, DEPLOYMENTS, JOBS, LEASES, RAY_JOBS, SECRETS
from limbeck.cli.server_events import ServerError, ServerEvents
from limbeck.kube.errors import ForbiddenError, KubeError, NotFoundError, UnauthorizedError, UnreachableError
from limbeck.kube.transport import Object

# How the operator's and KubeRay's Deployments are found, wherever they are installed.
LIMBECK_SELECTOR: Final = "app.kubernetes.io/name=limbeck,app.kubernetes.io/component="
# The first in its manifests, the second in its chart.
KUBERAY_SELECTOR: Final = "app.kubernetes.io/name in (kuberay,kuberay-operator)"
OPERATOR_LEASE: Final = "limbeck-operator"
# What people do with jobs: verb, group, resource, subresource.
_RIGHTS: Final = (
    *((verb, names.GROUP, names.PLURAL, "") for verb in ("get", "list", "watch", "create", "patch", "delete")),
    ("list", "", "pods", ""),
    ("watch", "", "pods", ""),
    ("get", "", "pods", "log"),
    ("list", "", "events", ""),
    ("get", "", "configmaps", ""),
)


class State(StrEnum):
    """What a check found."""

    OK = "ok"
    WRONG = "wrong"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, what to do."""

    check: str
    state: State
    found: str
    advice: str = ""


def check_api_server(cluster: Cluster) -> Finding:
    """Whether it answers, and which version it is."""
    try:
        return Finding("API server", State.OK, f"Kubernetes {cluster.transport.version()}")
    except (UnreachableError, UnauthorizedError) as error:
        return Finding("API server", State.WRONG, *_parts(error))


def check_crd(cluster: Cluster) -> Finding:
    """Whether it serves CompressionJobs, and with the schema of this version."""
    check = "CompressionJob CRD"
    wanted = custom_resource_definition()
    try:
        found = cluster.transport.get(CRDS, wanted["metadata"]["name"])
    except NotFoundError:
        return Finding(
            check, State.WRONG, "not installed", "run `limbeck crd | kubectl apply -f -`, or install the chart"
        )
    except ForbiddenError:
        return _crd_by_use(cluster, check)
    conditions = (found.get("status") or {}).get("conditions") or []
    if not any(each.get("type") == "Established" and each.get("status") == "True" for each in conditions):
        return Finding(check, State.WRONG, "not established", f"see `kubectl describe crd {found['metadata']['name']}`")
    place = difference(wanted["spec"]["versions"], found["spec"].get("versions"))
    if place is not None:
        return Finding(
            check,
            State.WRONG,
            f"of another version than this `limbeck`, at {place}",
            "upgrade the older of the two; `limbeck crd | kubectl apply -f -` installs the schema of this one",
        )
    return Finding(check, State.OK, f"{names.API_VERSION}, the schema of this version")


def difference(wanted: Any, found: Any, place: str = "versions") -> str | None:
    """Where two schemas first differ. What the API server leaves out when it is zero, false or empty counts so."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in sorted({*wanted, *found}):
            ours, theirs = wanted.get(key), found.get(key)
            if not ours and not theirs:
                continue
            if (inner := difference(ours, theirs, f"{place}.{key}")) is not None:
                return inner
        return None
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = enumerate(zip(wanted, found, strict=True))
        return next((inner for i, (a, b) in pairs if (inner := difference(a, b, f"{place}[{i}]")) is not None), None)
    return None if wanted == found else place


def _crd_by_use(cluster: Cluster, check: str) -> Finding:
    """Without the right to read CRDs: by asking for a job."""
    try:
        cluster.transport.list(JOBS, cluster.namespace, limit=1)
    except NotFoundError:
        return Finding(check, State.WRONG, "not installed", "ask whoever runs the cluster to install limbeck")
    except ForbiddenError:
        return Finding(check, State.UNKNOWN, "not allowed to look", "ask for the right to list CompressionJobs")
    return Finding(check, State.UNKNOWN, "installed; not allowed to compare its version")


def check_operator(cluster: Cluster) -> Finding:
    """Whether a limbeck operator is there and ready."""
    advice = "install the chart: `helm install limbeck charts/limbeck`"
    return _deployment(cluster, "operator", "operator") or Finding(
        "operator", State.WRONG, "no Deployment of it", advice
    )


def _deployment(cluster: Cluster, check: str, component: str) -> Finding | None:
    """How a Deployment of limbeck is, wherever it is installed; None where there is none."""
    try:
        deployments = list(_everywhere(cluster).list_all(DEPLOYMENTS, label_selector=LIMBECK_SELECTOR + component))
    except ForbiddenError:
        return Finding(check, State.UNKNOWN, "not allowed to look", "ask whoever runs the cluster whether it is well")
    if not deployments:
        return None
    best = max(deployments, key=lambda each: (each.get("status") or {}).get("readyReplicas", 0))
    where, status = _place(best), best.get("status") or {}
    if not status.get("readyReplicas"):
        namespace = best["metadata"]["namespace"]
        return Finding(check, State.WRONG, f"{where} has no ready pod", f"see `kubectl -n {namespace} get pods`")
    return Finding(check, State.OK, f"{where}, {status['readyReplicas']} of {status.get('replicas', 0)} ready")


def check_lease(cluster: Cluster) -> Finding:
    """Whether one of the operator's replicas acts."""
    check = "operator's lease"
    try:
        found = list(_everywhere(cluster).list_all(LEASES, field_selector=f"metadata.name={OPERATOR_LEASE}"))
    except ForbiddenError:
        return Finding(check, State.UNKNOWN, "not allowed to look")
    if not found:
        return Finding(check, State.WRONG, "nobody ever held it", "see the operator's log")
    spec = found[0].get("spec") or {}
    renewed, lasts = moment(spec.get("renewTime")), float(spec.get("leaseDurationSeconds") or 15)
    holder = spec.get("holderIdentity")
    if not holder or renewed is None or datetime.now(UTC) - renewed > timedelta(seconds=lasts):
        return Finding(
            check, State.WRONG, f"not held since {spec.get('renewTime') or 'ever'}", "see the operator's log"
        )
    return Finding(check, State.OK, f"held by {holder}")


def check_kuberay(cluster: Cluster) -> Finding:
    """Whether KubeRay is there, and new enough for what we ask of it."""
    check, advice = "KubeRay", "install KubeRay 1.6 or later"
    try:
        crd = cluster.transport.get(CRDS, f"{RAY_JOBS.plural}.{RAY_JOBS.group}")
    except NotFoundError:
        return Finding(check, State.WRONG, "no RayJob CRD", advice)
    except ForbiddenError:
        return Finding(check, State.UNKNOWN, "not allowed to look")
    version = next((each for each in crd["spec"]["versions"] if each["name"] == RAY_JOBS.version), None)
    if version is None or not _dig(version, "schema.openAPIV3Schema.properties.spec.properties.rayClusterSpec"):
        return Finding(check, State.WRONG, f"its CRD serves no RayJob {RAY_JOBS.version}", advice)
    if not _dig(version, _AUTH_OPTIONS):
        return Finding(check, State.WRONG, "too old: its RayJob knows no authOptions", advice)
    image = _kuberay_image(cluster)
    return Finding(check, State.OK, image or "1.6 or later by its CRD; its operator was not found or may not be seen")


_AUTH_OPTIONS: Final = "schema.openAPIV3Schema.properties.spec.properties.rayClusterSpec.properties.authOptions"


def _kuberay_image(cluster: Cluster) -> str:
    try:
        found = list(_everywhere(cluster).list_all(DEPLOYMENTS, label_selector=KUBERAY_SELECTOR))
    except KubeError:
        return ""
    return next((each["spec"]["template"]["spec"]["containers"][0].get("image", "") for each in found), "")


def check_rights(cluster: Cluster) -> Finding:
    """Whether we may do with jobs in this namespace what people do with them."""
    missing = [_words(right) for right in _RIGHTS if not _may(cluster, *right)]
    if missing:
        where = f"in namespace {cluster.namespace}"
        return Finding("your rights", State.WRONG, f"missing {where}: {', '.join(missing)}", "ask for these rights")
    return Finding("your rights", State.OK, f"all that jobs need in namespace {cluster.namespace}")


def _may(cluster: Cluster, verb: str, group: str, resource: str, subresource: str) -> bool:
    asked = {"namespace": cluster.namespace, "verb": verb, "group": group, "resource": resource}
    if subresource:
        asked["subresource"] = subresource
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": asked},
    }
    return bool((cluster.transport.create(ACCESS_REVIEWS, body).get("status") or {}).get("allowed"))


def _words(right: tuple[str, str, str, str]) -> str:
    verb, _, resource, subresource = right
    return f"{verb} {resource}{'/' + subresource if subresource else ''}"


def check_server(cluster: Cluster, url: str | None, ca_file: str | None) -> Finding:
    """Whether limbeck's server answers; without its address, whether its Deployment is ready."""
    check = "limbeck's server"
    if url is None:
        advice = "jobs run without it, but show no progress; give --server to ask one elsewhere"
        found = _deployment(cluster, check, "server")
        return found or Finding(check, State.UNKNOWN, "no Deployment of it", advice)
    try:
        with ServerEvents(url, "", "", ca_file) as server:
            server.check()
    except ServerError as error:
        return Finding(check, State.WRONG, str(error), "jobs run without it, but show no progress; see its log")
    return Finding(check, State.OK, f"{url} is ready")


def check_job(cluster: Cluster, job: Object) -> Finding:
    """What the operator says of one job."""
    name = job["metadata"]["name"]
    if telling_condition(job) is None:
        advice = "see the operator's lines above"
        return Finding(f"job {name}", State.WRONG, "no operator has looked at it", advice)
    wrong = [
        each
        for each in (job.get("status") or {}).get("conditions") or []
        if (each["type"] in ("Failed", "Stalled") and each["status"] == "True")
        or (each["type"] == "Reconciling" and each.get("reason") in _BLOCKED)
    ]
    state = State.WRONG if wrong else State.OK
    said = f"{wrong[0]['reason']}: {wrong[0].get('message', '')}" if wrong else outcome(job)
    return Finding(f"job {name}", state, said, f"see `limbeck describe {name}`" if wrong else "")


# Reasons of Reconciling that somebody has to do something about.
_BLOCKED: Final = frozenset(
    {
        "KubeRayAbsent",
        "SecretNotFound",
        "NameTaken",
        "CreationRefused",
        "ImagePullFailed",
        "ContainerConfigInvalid",
        "Unschedulable",
    }
)


def check_secrets(cluster: Cluster, job: Object) -> list[Finding]:
    """Whether the Secrets are there that the job takes its credentials from."""
    spec, namespace = job["spec"], job["metadata"]["namespace"]
    places = [("spec.output", spec.get("output")), ("spec.store", spec.get("store"))]
    findings = []
    for field, place in places:
        name = ((place or {}).get("credentialsSecretRef") or {}).get("name")
        if not name:
            continue
        check = f"Secret {name}"
        try:
            keys = sorted(cluster.transport.get(SECRETS, name, namespace).get("data") or {})
            said = f"has {', '.join(keys)}" if keys else "is empty"
            findings.append(Finding(check, State.OK if keys else State.WRONG, said, "" if keys else "fill it"))
        except NotFoundError:
            advice = f"create it with the variables that `{field}` needs, e.g. AWS_ACCESS_KEY_ID"
            findings.append(Finding(check, State.WRONG, f"not in namespace {namespace}", advice))
        except ForbiddenError:
            findings.append(Finding(check, State.UNKNOWN, "not allowed to look"))
    return findings


def guarded_check(name: str, check: Callable[[], Finding]) -> Finding:
    """What went wrong while looking is a finding too."""
    try:
        return check()
    except KubeError as error:
        return Finding(name, State.WRONG, *_parts(error))


def _parts(error: KubeError) -> tuple[str, str]:
    """The sentence of an error, and what it advises."""
    said, _, advice = explained(error)[0].rpartition("; ")
    return said, advice


def _everywhere(cluster: Cluster) -> Cluster:
    return Cluster(cluster.transport, cluster.namespace, all_namespaces=True)


def _place(item: Object) -> str:
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}"


def _dig(node: Mapping[str, Any], path: str) -> Any:
    inner: Any = node
    for part in path.split("."):
        inner = (inner or {}).get(part)
    return inner
