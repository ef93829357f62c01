from __future__ import annotations

import pytest

from limbeck.kube.cache import Cache, Change, Key, owner_uids

KEY = Key("shop", "a")


@pytest.fixture
def cache() -> Cache:
    return Cache({"owner": owner_uids, "colour": lambda item: [item["colour"]] if "colour" in item else []})


def test_a_readers_changes_reach_nobody_else(cache: Cache, serve) -> None:
    cache.put(serve.item("a", 1, spec={"size": 1}))
    mine = cache.get("shop", "a")
    assert mine is not None
    mine["spec"]["size"] = 2
    again = cache.get("shop", "a")
    assert again is not None
    assert again["spec"]["size"] == 1


def test_an_older_or_equal_state_never_replaces_a_newer_one(cache: Cache, serve) -> None:
    cache.put(serve.item("a", 5, colour="red"))
    assert cache.put(serve.item("a", 4, colour="blue")) is None
    assert cache.put(serve.item("a", 5, colour="blue")) is None
    assert [item["colour"] for item in cache.objects()] == ["red"]


def test_an_object_that_came_anew_is_not_removed_by_the_deletion_of_the_old_one(cache: Cache, serve) -> None:
    cache.put(serve.item("a", 9, uid="new"))
    assert cache.remove(KEY, 8) is None
    assert cache.version(KEY) == 9


def test_a_change_tells_what_was_and_what_is(cache: Cache, serve) -> None:
    first, second = serve.item("a", 1), serve.item("a", 2)
    assert cache.put(first) == Change(None, first)
    assert cache.put(second) == Change(first, second)
    gone = cache.remove(KEY, 3)
    assert gone == Change(second, None)
    assert gone.key == KEY
    assert cache.remove(KEY, 3) is None


def test_an_object_is_found_by_its_index_only_as_long_as_it_says_so(cache: Cache, serve) -> None:
    cache.put(serve.item("b", 1, colour="red"))
    cache.put(serve.item("a", 2, colour="red"))
    assert [item["metadata"]["name"] for item in cache.by_index("colour", "red")] == ["a", "b"]
    cache.put(serve.item("a", 3, colour="blue"))
    cache.remove(Key("shop", "b"), 4)
    assert cache.by_index("colour", "red") == []
    assert [item["metadata"]["name"] for item in cache.by_index("colour", "blue")] == ["a"]
    cache.remove(KEY, 5)
    assert (len(cache), cache._indexes) == (0, {"owner": {}, "colour": {}})


def test_children_are_found_by_the_uid_of_their_owner(cache: Cache, serve) -> None:
    child = serve.item("a", 1)
    child["metadata"]["ownerReferences"] = [{"uid": "u-1", "name": "parent"}]
    cache.put(child)
    assert [item["metadata"]["name"] for item in cache.by_index("owner", "u-1")] == ["a"]
    assert cache.by_index("owner", "parent") == []


def test_managed_fields_are_not_kept(cache: Cache, serve) -> None:
    item = serve.item("a", 1)
    item["metadata"]["managedFields"] = [{"manager": "me"}]
    cache.put(item)
    assert "managedFields" not in cache.objects()[0]["metadata"]
