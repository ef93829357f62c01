"""The last known state of one kind of object, to be read from any thread.

Objects are kept as JSON text and decoded for each reader: what a reader does to his copy changes nothing here, and
ten thousand objects take a tenth of what they would as dicts. `managedFields`, the bulk of many, is dropped.
Left out on purpose: putting in what we have just written. Without the watch's order, an object deleted meanwhile would
come back as a ghost; a reader of an old state is told so by the API server when he writes (ConflictError).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from limbeck.kube.transport import Object

Index = Callable[[Object], Iterable[str]]


class Key(NamedTuple):
    """Where an object lives; the namespace is empty for kinds without one."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Change(NamedTuple):
    """What happened to one object: `old` is None when it appeared, `new` when it went."""

    old: Object | None
    new: Object | None

    @property
    def key(self) -> Key:
        known = self.new if self.new is not None else self.old
        assert known is not None
        return key_of(known)


class _Entry(NamedTuple):
    uid: str
    version: int
    text: bytes
    index_values: dict[str, frozenset[str]]


def key_of(item: Mapping[str, Any]) -> Key:
    metadata = item["metadata"]
    return Key(metadata.get("namespace", ""), metadata["name"])


def version_of(item: Mapping[str, Any]) -> int:
    """The resource version as the number that it is for every kind that the API server keeps in etcd."""
    return int(item["metadata"]["resourceVersion"])


def owner_uids(item: Object) -> list[str]:
    """An index: by the UID of each owner. Names are used again, UIDs never."""
    return [owner["uid"] for owner in item["metadata"].get("ownerReferences", [])]


class Cache:
    """Written by one reflector, read by anybody. `indexes` maps a name to what an object is found under."""

    def __init__(self, indexes: Mapping[str, Index] | None = None) -> None:
        self._index_functions = dict(indexes or {})
        self._lock = threading.RLock()
        self._entries: dict[Key, _Entry] = {}
        self._indexes: dict[str, dict[str, set[Key]]] = {name: {} for name in self._index_functions}

    def get(self, namespace: str, name: str) -> Object | None:
        with self._lock:
            entry = self._entries.get(Key(namespace, name))
        return None if entry is None else json.loads(entry.text)

    def all_keys(self) -> list[Key]:
        with self._lock:
            return list(self._entries)

    def objects(self) -> list[Object]:
        """All of them, decoded: for few objects, or rarely."""
        with self._lock:
            texts = [entry.text for entry in self._entries.values()]
        return [json.loads(text) for text in texts]

    def by_index(self, index: str, value: str) -> list[Object]:
        """In order of namespace and name."""
        with self._lock:
            keys = sorted(self._indexes[index].get(value, ()))
            texts = [self._entries[key].text for key in keys]
        return [json.loads(text) for text in texts]

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def version(self, key: Key) -> int | None:
        """The resource version that is known of the object."""
        with self._lock:
            entry = self._entries.get(key)
        return None if entry is None else entry.version

    def put(self, item: Object) -> Change | None:
        """None if the same or a newer state of the object is known already."""
        key, version = key_of(item), version_of(item)
        item["metadata"].pop("managedFields", None)
        with self._lock:
            known = self._entries.get(key)
            if known is not None and known.version >= version:
                return None
            values = {name: frozenset(function(item)) for name, function in self._index_functions.items()}
            text = json.dumps(item, separators=(",", ":")).encode()
            self._unlink(key, known)
            self._entries[key] = _Entry(item["metadata"]["uid"], version, text, values)
            for name, found_under in values.items():
                for value in found_under:
                    self._indexes[name].setdefault(value, set()).add(key)
        return Change(None if known is None else json.loads(known.text), item)

    def remove(self, key: Key, version: int) -> Change | None:
        """None if it is not there, or there anew since `version`."""
        with self._lock:
            known = self._entries.get(key)
            if known is None or known.version > version:
                return None
            self._unlink(key, known)
            del self._entries[key]
        return Change(json.loads(known.text), None)

    def _unlink(self, key: Key, entry: _Entry | None) -> None:
        for name, found_under in entry.index_values.items() if entry is not None else ():
            for value in found_under:
                keys = self._indexes[name][value]
                keys.discard(key)
                if not keys:
                    del self._indexes[name][value]
