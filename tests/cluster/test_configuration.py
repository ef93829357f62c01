"""What the test cluster's parts are told, and what its end takes away; nothing is started."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from layout import Layout


@pytest.fixture
def layout() -> Layout:
    """Nothing is written there."""
    from layout import Layout

    return Layout(Path("/nowhere/testbed"))


def test_a_folder_too_long_for_sockets_is_refused_with_what_to_set() -> None:
    from layout import Layout

    with pytest.raises(ValueError, match=r"LIMBECK_CACHE makes the folder .* set it to a shorter path"):
        Layout(Path("/" + "x" * 60))


def test_addresses_of_pods_services_and_node_do_not_overlap() -> None:
    import layout

    assert layout.is_inside(layout.POD_GATEWAY, layout.POD_RANGE)
    for address in (layout.DNS_ADDRESS, layout.API_SERVICE_ADDRESS):
        assert layout.is_inside(address, layout.SERVICE_RANGE)
    for network in (layout.POD_RANGE, layout.SERVICE_RANGE):
        assert not layout.is_inside(layout.NODE_ADDRESS, network)


def test_the_api_server_has_what_a_real_one_has(layout: Layout) -> None:
    import controldaemons

    settings = controldaemons.api_server_settings(layout)
    assert settings["authorization-mode"] == "Node,RBAC"
    assert settings["enable-admission-plugins"] == "NodeRestriction"
    assert "disable-admission-plugins" not in settings
    assert settings["audit-log-path"] == layout.audit_log


def test_kubelet_neither_pulls_nor_throws_away_images_that_no_registry_has(layout: Layout) -> None:
    import node

    configuration = node.kubelet_configuration(layout)
    assert configuration["imageGCHighThresholdPercent"] == 100
    assert configuration["containerRuntimeEndpoint"] == f"unix://{layout.containerd_socket}"


def test_pods_may_reach_each_other_and_nothing_outside() -> None:
    import network

    rules = network.firewall()
    assert 'ip saddr 10.244.0.0/16 oifname != { "limbeck-pods", "limbeck-node", "lo" } counter reject' in rules
    assert "ip daddr { 10.244.0.0/16, 10.96.0.0/16 }" in rules


def test_containerd_keeps_images_apart_from_what_down_throws_away(layout: Layout) -> None:
    import containerd

    text = containerd.configuration(layout, "localhost/pause:1")
    assert f'root = "{layout.images}"' in text
    assert f'state = "{layout.run}/containerd"' in text
    assert not layout.images.is_relative_to(layout.run)


def test_prometheus_scrapes_pods_and_services_that_ask_for_it() -> None:
    import prometheus

    pods, services = prometheus.configuration(Path("/some/kubeconfig"))["scrape_configs"]
    assert pods["kubernetes_sd_configs"] == [{"role": "pod", "kubeconfig_file": "/some/kubeconfig"}]
    assert pods["relabel_configs"][0]["source_labels"] == ["__meta_kubernetes_pod_annotation_prometheus_io_scrape"]
    first = services["relabel_configs"][0]
    assert first["source_labels"] == ["__meta_kubernetes_service_annotation_prometheus_io_scrape"]


def test_every_name_in_a_manifest_is_filled_in() -> None:
    import prometheus
    import s3server

    kinds = [each["kind"] for each in [*s3server.objects(), *prometheus.objects()]]
    assert kinds == ["Namespace", "Service", "EndpointSlice", "ClusterRole", "ClusterRoleBinding"]
    assert "$" not in str([*s3server.objects(), *prometheus.objects()])


def test_a_server_certificate_names_its_addresses_and_a_client_its_user(tmp_path: Path) -> None:
    from certificates import Authority

    authority = Authority(tmp_path / "ca")
    authority.issue("server", "kubelet", "system:nodes", ["10.99.0.1"], ["testbed"])
    certificate = x509.load_pem_x509_certificate((tmp_path / "ca" / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.99.0.1"]
    assert names.get_values_for_type(x509.DNSName) == ["testbed"]
    (group,) = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    assert group.value == "system:nodes"
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate((tmp_path / "ca" / "ca.crt").read_bytes()))


def test_a_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    from certificates import write_key

    write_key(tmp_path / "some.key")
    assert (tmp_path / "some.key").stat().st_mode & 0o777 == 0o600
    load_pem_private_key((tmp_path / "some.key").read_bytes(), None)


def test_mounts_below_a_folder_come_deepest_first(tmp_path: Path) -> None:
    import mounts

    table = tmp_path / "mounts"
    table.write_text("".join(f"tmpfs {path} tmpfs rw 0 0\n" for path in ("/run/a", "/run/a/b\\040c", "/runner", "/")))
    assert mounts.below(Path("/run"), table) == ["/run/a/b c", "/run/a"]


def test_kubelets_cgroups_are_found_in_both_versions(tmp_path: Path) -> None:
    import node

    for name in ("memory/kubepods/pod1", "cpu/kubepods", "memory/user"):
        (tmp_path / name).mkdir(parents=True)
    assert node.cgroups(tmp_path) == [tmp_path / "cpu/kubepods", tmp_path / "memory/kubepods"]
    (tmp_path / "kubepods").mkdir()
    assert tmp_path / "kubepods" in node.cgroups(tmp_path)


def test_what_still_runs_in_a_pods_cgroup_is_ended(tmp_path: Path) -> None:
    import node
    import processes

    pod = tmp_path / "memory" / "kubepods" / "pod1"
    pod.mkdir(parents=True)
    daemons = processes.Daemons(tmp_path / "pids", tmp_path / "logs")
    pid = daemons.start("container", ["sleep", "1000"])
    (pod / "cgroup.procs").write_text(f"0\n{pid}\n")
    node.remove_cgroups(tmp_path)
    assert daemons.running() == {}


def test_the_plugins_notes_on_our_pods_are_removed_and_nobody_elses(tmp_path: Path) -> None:
    import network

    for name in ("testbed-1-eth0", "cni-loopback-1-lo", "cni-loopback-2-lo", "other-2-eth0"):
        (tmp_path / name).touch()
    network.forget_pods(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cni-loopback-2-lo", "other-2-eth0"]


def test_kubelets_traces_are_removed_and_nobody_elses(layout: Layout, tmp_path: Path) -> None:
    import node

    links, plugins = tmp_path / "var/log/containers", tmp_path / "var/lib/kubelet/device-plugins"
    links.mkdir(parents=True)
    plugins.mkdir(parents=True)
    (links / "ours").symlink_to(layout.run / "pod-logs" / "0.log")
    (links / "theirs").symlink_to("/var/log/pods/0.log")
    (plugins / "kubelet.sock").touch()
    node.remove_traces(layout, tmp_path)
    assert [link.name for link in links.iterdir()] == ["theirs"]
    assert not plugins.parent.exists()


def test_debian_packages_that_are_not_installed_are_named() -> None:
    import debian

    assert debian.missing(["dpkg", "no-such-package-of-debian"]) == ["no-such-package-of-debian"]
