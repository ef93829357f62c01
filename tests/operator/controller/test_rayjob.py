"""What the children of a job look like."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from limbeck import names
from limbeck.api.v1alpha1.job import CompressionJob
from limbeck.controller.children import config_map, network_policy
from limbeck.controller.ledger import Ledger
from limbeck.controller.planning import resolve
from limbeck.controller.rayjob import desired_rayjob
from limbeck.controller.settings import Settings

Object = dict[str, Any]
JobModel = Callable[..., CompressionJob]
API_TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"


def cluster_of(ray_job: Object) -> Object:
    return dict(ray_job["spec"]["rayClusterSpec"])


def pod_specs(ray_job: Object) -> Iterator[Object]:
    cluster = cluster_of(ray_job)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]["spec"]


def test_one_ray_job_is_one_try_in_sidecar_mode(job_model: JobModel, settings: Settings) -> None:
    ray_job = desired_rayjob(job_model(), 3, settings)
    assert ray_job["metadata"]["name"] == "emoji-3"
    spec = ray_job["spec"]
    assert (spec["submissionMode"], spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == ("SidecarMode", 0, True)
    assert spec["entrypoint"] == (
        "python -m limbeck_runtime.driver --job /etc/limbeck/job/job.json --attempt 3 "
        # Prometheus is in another pod.
        f"--metrics-port {settings.metrics_port} --metrics-host 0.0.0.0"
        # KubeRay reads how the driver ended only as long as its submitter has not failed.
        " || (sleep 10; exit 1)"
    )
    assert "suspend" not in spec  # Kueue's
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_the_longest_job_name_fits_what_kuberay_allows(job_model: JobModel, settings: Settings) -> None:
    job = job_model(**{"metadata.name": "a" * names.MAX_JOB_NAME_LENGTH})
    assert len(desired_rayjob(job, 999_999, settings)["metadata"]["name"]) <= 47


def test_each_pool_has_the_ray_resource_that_pins_work_to_it(job_model: JobModel, settings: Settings) -> None:
    groups = cluster_of(desired_rayjob(job_model(), 1, settings))["workerGroupSpecs"]
    resources = {group["groupName"]: json.loads(json.loads(group["rayStartParams"]["resources"])) for group in groups}
    assert resources == {"teacher": {"limbeck_teacher": 1}, "student": {"limbeck_student": 1}}
    head = cluster_of(desired_rayjob(job_model(), 1, settings))["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"


def test_no_container_but_the_autoscaler_gets_an_api_token(job_model: JobModel, settings: Settings) -> None:
    ray_job = desired_rayjob(job_model(**{"spec.cluster": {"teacher": {"maxReplicas": 4}}}), 1, settings)
    for spec in pod_specs(ray_job):
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert all(mount["mountPath"] != API_TOKEN_FOLDER for mount in container.get("volumeMounts", []))
    (mount,) = cluster_of(ray_job)["autoscalerOptions"]["volumeMounts"]
    head = next(pod_specs(ray_job))
    assert mount["mountPath"] == API_TOKEN_FOLDER
    assert mount["name"] in {volume["name"] for volume in head["volumes"]}


def test_the_autoscaler_runs_only_where_the_teacher_pool_has_a_range(job_model: JobModel, settings: Settings) -> None:
    scales = desired_rayjob(
        job_model(**{"spec.cluster": {"teacher": {"minReplicas": 2, "maxReplicas": 5}}}), 1, settings
    )
    (teacher, student) = cluster_of(scales)["workerGroupSpecs"]
    assert [teacher[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [2, 2, 5]
    assert [student[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [1, 1, 1]
    assert cluster_of(scales)["enableInTreeAutoscaling"] is True
    assert {spec.get("restartPolicy") for spec in pod_specs(scales)} == {"Never"}
    fixed = cluster_of(desired_rayjob(job_model(), 1, settings))
    assert fixed["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in fixed


def test_a_job_without_a_teacher_has_no_teacher_pods(job_model: JobModel, settings: Settings) -> None:
    changes = {
        "spec.teacher": None,
        "spec.student": {"model": {"loader": "Transformers", "uri": "s3://models/clip"}},
        "spec.pipeline": [{"name": "int8", "quantize": {"scheme": "Int8"}}],
    }
    groups = cluster_of(desired_rayjob(job_model(**changes), 1, settings))["workerGroupSpecs"]
    assert [group["groupName"] for group in groups] == ["student"]


def test_spot_tolerations_are_for_teachers_and_only_on_request(job_model: JobModel, settings: Settings) -> None:
    given = {"key": "gpu", "operator": "Exists"}
    pool = {"spot": True, "template": {"spec": {"tolerations": [given]}}}
    head, teacher, student = pod_specs(desired_rayjob(job_model(**{"spec.cluster": {"teacher": pool}}), 1, settings))
    assert teacher["tolerations"] == [given, *settings.spot_tolerations]
    assert "tolerations" not in head
    assert "tolerations" not in student
    _, unasked, _ = pod_specs(desired_rayjob(job_model(), 1, settings))
    assert "tolerations" not in unasked


def test_all_pods_keep_to_the_restricted_profile(job_model: JobModel, settings: Settings) -> None:
    template = {"spec": {"containers": [{"name": "ray"}, {"name": "sidecar"}], "initContainers": [{"name": "first"}]}}
    for spec in pod_specs(desired_rayjob(job_model(**{"spec.cluster": {"head": {"template": template}}}), 1, settings)):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_a_template_is_merged_its_own_parts_kept_and_ours_added(job_model: JobModel, settings: Settings) -> None:
    template = {
        "metadata": {"labels": {"team": "a", names.LABEL_JOB: "another"}, "annotations": {"note": "b"}},
        "spec": {
            "nodeSelector": {"gpu": "l4"},
            "automountServiceAccountToken": True,
            "volumes": [{"name": "scratch", "emptyDir": {}}],
            "containers": [
                {
                    "image": "mine:2",
                    "resources": {"limits": {"nvidia.com/gpu": 1}},
                    "env": [{"name": "MINE", "value": "1"}, {"name": names.ENV_PROGRESS_URL, "value": "evil"}],
                }
            ],
        },
    }
    ray_job = desired_rayjob(job_model(**{"spec.cluster": {"head": {"template": template}}}), 1, settings)
    merged = cluster_of(ray_job)["headGroupSpec"]["template"]
    assert merged["metadata"]["labels"]["team"] == "a"
    assert merged["metadata"]["labels"][names.LABEL_JOB] == "emoji"
    assert merged["metadata"]["annotations"] == {
        "note": "b",
        "prometheus.io/scrape": "true",
        "prometheus.io/port": "9464",
        "prometheus.io/path": "/metrics",
    }
    spec = merged["spec"]
    assert spec["nodeSelector"] == {"gpu": "l4"}
    assert spec["automountServiceAccountToken"] is False
    (container,) = spec["containers"]
    assert container["image"] == "mine:2"
    assert container["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    env = {each["name"]: each["value"] for each in container["env"]}
    assert env["MINE"] == "1"
    assert env[names.ENV_PROGRESS_URL].endswith("/api/v1/namespaces/team/jobs/emoji/progress")
    assert "limbeck-metrics" in {port["name"] for port in container["ports"]}
    assert {volume["name"] for volume in spec["volumes"]} >= {"scratch", "limbeck-job", "limbeck-server-token"}


def test_the_token_for_the_server_has_its_audience_and_only_the_head_has_it(
    job_model: JobModel, settings: Settings
) -> None:
    head, *workers = pod_specs(desired_rayjob(job_model(), 1, settings))
    (volume,) = [each for each in head["volumes"] if each["name"] == "limbeck-server-token"]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == names.PROGRESS_AUDIENCE
    assert all("volumes" not in worker for worker in workers)
    silent, *_ = pod_specs(desired_rayjob(job_model(), 1, settings.model_copy(update={"server_url": ""})))
    assert "limbeck-server-token" not in {each["name"] for each in silent["volumes"]}


def test_credentials_reach_all_pods_as_a_reference_and_never_as_a_value(
    job_model: JobModel, settings: Settings
) -> None:
    output = {"uri": "s3://results/emoji", "credentialsSecretRef": {"name": "s3"}}
    for spec in pod_specs(desired_rayjob(job_model(**{"spec.output": output}), 1, settings)):
        assert spec["containers"][0]["envFrom"] == [{"secretRef": {"name": "s3"}}]


def test_the_queue_of_kueue_is_passed_on_and_no_other_label(job_model: JobModel, settings: Settings) -> None:
    labels = {"kueue.x-k8s.io/queue-name": "gpus", "team": "a"}
    passed = desired_rayjob(job_model(**{"metadata.labels": labels}), 1, settings)["metadata"]["labels"]
    assert passed["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "team" not in passed


def test_the_config_map_holds_a_job_that_the_driver_reads_with_nothing_left_to_derive(
    job_model: JobModel, settings: Settings
) -> None:
    template = {"spec": {"containers": [{"env": [{"name": "PASSWORD", "value": "confidential"}]}]}}
    job = job_model(
        **{"spec.cluster": {"head": {"template": template}, "student": {"replicas": 2, "template": template}}}
    )
    made = config_map(job, resolve(job.spec), Ledger(), settings.model_copy(update={"server_ca_pem": "PEM"}))
    read = CompressionJob.model_validate_json(made["data"]["job.json"])
    assert resolve(read.spec).entries == ()
    assert read.spec.cluster.student.replicas == 2
    assert "confidential" not in made["data"]["job.json"]
    assert made["data"]["ca.crt"] == "PEM"
    assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-of-the-job"


def test_the_network_policy_lets_in_the_jobs_pods_the_operators_and_scrapers(
    job_model: JobModel, settings: Settings
) -> None:
    policy = network_policy(job_model(), settings)["spec"]
    assert policy["podSelector"] == {"matchLabels": {names.LABEL_JOB: "emoji"}}
    inside, scrapers = policy["ingress"]
    own, kuberay, limbeck = inside["from"]
    assert own == {"podSelector": policy["podSelector"]}
    namespaces = [
        each["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for each in (kuberay, limbeck)
    ]
    assert namespaces == ["kuberay-system", "limbeck-system"]
    assert scrapers["ports"] == [{"protocol": "TCP", "port": "limbeck-metrics"}]


def test_names_of_ports_and_volumes_are_ones_that_kubernetes_takes(job_model: JobModel, settings: Settings) -> None:
    for spec in pod_specs(desired_rayjob(job_model(), 1, settings)):
        for port in spec["containers"][0].get("ports", []):
            assert re.fullmatch(r"[a-z0-9-]{1,15}", port["name"])
