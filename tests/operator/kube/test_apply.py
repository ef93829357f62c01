from __future__ import annotations

import pytest

from limbeck.kube.apply import NotOursError, apply, controller_uid, create_owned, owner_reference
from limbeck.kube.errors import ConflictError
from limbeck.kube.transport import Resource, Transport

CONFIG_MAPS = Resource("", "v1", "configmaps")
MISSING = {"apiVersion": "v1", "kind": "ConfigMap"}


def config_map(name: str, namespace: str, **data: object) -> dict[str, object]:
    return MISSING | {"metadata": {"name": name, "namespace": namespace}, "data": data}


@pytest.fixture
def transport(control_plane) -> Transport:
    return Transport(control_plane.client())


@pytest.mark.controlplane
def test_an_apply_creates_changes_and_removes_what_its_manager_owns(transport, namespace) -> None:
    apply(transport, CONFIG_MAPS, config_map("a", namespace, x="1", y="1"), manager="me")
    applied = apply(transport, CONFIG_MAPS, config_map("a", namespace, x="2"), manager="me")
    assert applied["data"] == {"x": "2"}


@pytest.mark.controlplane
def test_a_field_of_another_manager_is_a_conflict_unless_forced(transport, namespace) -> None:
    apply(transport, CONFIG_MAPS, config_map("a", namespace, x="1"), manager="me")
    with pytest.raises(ConflictError, match='conflict with "me"'):
        apply(transport, CONFIG_MAPS, config_map("a", namespace, x="2"), manager="you")
    taken = apply(transport, CONFIG_MAPS, config_map("a", namespace, x="2"), manager="you", force=True)
    assert taken["data"] == {"x": "2"}


@pytest.mark.controlplane
def test_none_is_no_claim_to_a_field(transport, namespace) -> None:
    apply(transport, CONFIG_MAPS, config_map("a", namespace, x="1"), manager="me")
    both = apply(transport, CONFIG_MAPS, config_map("a", namespace, x=None, y="2"), manager="you")
    assert both["data"] == {"x": "1", "y": "2"}


@pytest.mark.controlplane
def test_an_apply_at_an_old_version_is_a_conflict(transport, namespace) -> None:
    first = apply(transport, CONFIG_MAPS, config_map("a", namespace, x="1"), manager="me")
    apply(transport, CONFIG_MAPS, config_map("a", namespace, x="2"), manager="me")
    late = config_map("a", namespace, x="3")
    late["metadata"]["resourceVersion"] = first["metadata"]["resourceVersion"]
    with pytest.raises(ConflictError, match="has been modified"):
        apply(transport, CONFIG_MAPS, late, manager="me")


@pytest.mark.controlplane
def test_a_child_is_created_once_and_found_again_by_its_owner(transport, namespace) -> None:
    owner = transport.create(CONFIG_MAPS, config_map("owner", namespace), namespace)
    first = create_owned(transport, CONFIG_MAPS, config_map("child", namespace, x="1"), owner)
    again = create_owned(transport, CONFIG_MAPS, config_map("child", namespace, x="2"), owner)
    assert again["metadata"]["uid"] == first["metadata"]["uid"]
    assert again["data"] == {"x": "1"}
    assert controller_uid(again) == owner["metadata"]["uid"]


@pytest.mark.controlplane
def test_a_child_of_an_earlier_owner_of_the_same_name_is_not_ours(transport, namespace) -> None:
    owner = transport.create(CONFIG_MAPS, config_map("owner", namespace), namespace)
    create_owned(transport, CONFIG_MAPS, config_map("child", namespace), owner)
    transport.delete(CONFIG_MAPS, "owner", namespace, uid=owner["metadata"]["uid"])
    reborn = transport.create(CONFIG_MAPS, config_map("owner", namespace), namespace)
    with pytest.raises(NotOursError, match=r"'child' exists and is controlled by .*; delete it or choose another name"):
        create_owned(transport, CONFIG_MAPS, config_map("child", namespace), reborn)


@pytest.mark.controlplane
def test_a_deletion_by_uid_leaves_a_later_object_of_that_name_alone(transport, namespace) -> None:
    first = transport.create(CONFIG_MAPS, config_map("a", namespace), namespace)
    transport.delete(CONFIG_MAPS, "a", namespace)
    transport.create(CONFIG_MAPS, config_map("a", namespace), namespace)
    with pytest.raises(ConflictError):
        transport.delete(CONFIG_MAPS, "a", namespace, uid=first["metadata"]["uid"])


def test_an_apply_that_does_not_say_what_it_applies_is_refused(server) -> None:
    with pytest.raises(ValueError, match="kind must be set"):
        apply(server.transport(), CONFIG_MAPS, {"apiVersion": "v1", "metadata": {"name": "a"}}, manager="me")
    assert server.requests == []


def test_none_is_left_out_at_any_depth(server) -> None:
    body = MISSING | {"metadata": {"name": "a", "namespace": "shop", "labels": None}, "list": [{"x": None, "y": 0}]}
    apply(server.transport(), CONFIG_MAPS, body, manager="me")
    assert server.requests[0].body == MISSING | {"metadata": {"name": "a", "namespace": "shop"}, "list": [{"y": 0}]}


def test_the_owner_that_does_not_control_is_not_the_controller(serve) -> None:
    parent, child = serve.item("parent", 1), serve.item("child", 2)
    child["metadata"]["ownerReferences"] = [owner_reference(parent) | {"controller": False, "uid": "other"}]
    assert controller_uid(child) is None
    child["metadata"]["ownerReferences"].append(owner_reference(parent))
    assert controller_uid(child) == "uid-of-parent"
