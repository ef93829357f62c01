"""One kind of object, kept in caches by reflectors: over the whole cluster, or over some namespaces.

Left out: what to do when something changes, which the `on_change` that is passed in decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from limbeck.kube.cache import Cache, Change, Index
from limbeck.kube.errors import KubeError, NotFoundError
from limbeck.kube.reflector import Patience, Reflector
from limbeck.kube.transport import Object, Resource, Transport

ALL_NAMESPACES: Final = ""


class Informer:
    """A cache and a reflector for each of `namespaces`; none named: one for all of them."""

    def __init__(
        self,
        transport: Transport,
        resource: Resource,
        on_change: Callable[[Change], None],
        *,
        namespaces: Iterable[str] = (),
        label_selector: str | None = None,
        indexes: Mapping[str, Index] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.resource = resource
        self._caches = {namespace: Cache(indexes) for namespace in sorted(set(namespaces)) or [ALL_NAMESPACES]}
        self._reflectors = [
            Reflector(
                transport,
                resource,
                cache,
                on_change,
                namespace=namespace or None,
                label_selector=label_selector,
                patience=patience,
            )
            for namespace, cache in self._caches.items()
        ]

    def start(self) -> None:
        for reflector in self._reflectors:
            reflector.start()

    def stop(self) -> None:
        for reflector in self._reflectors:
            reflector.stop()

    @property
    def has_synced(self) -> bool:
        """Whether the caches have once held all that there was."""
        return all(reflector.synced.is_set() for reflector in self._reflectors)

    @property
    def is_served(self) -> bool:
        """False as long as the API server does not know the kind."""
        return not any(isinstance(problem, NotFoundError) for problem in self.problems)

    @property
    def is_alive(self) -> bool:
        """Whether all of its threads run."""
        return all(reflector.is_alive for reflector in self._reflectors)

    @property
    def problems(self) -> list[KubeError]:
        """Why it is not in step with the API server just now; empty where it is."""
        return [reflector.problem for reflector in self._reflectors if reflector.problem is not None]

    def get(self, namespace: str, name: str) -> Object | None:
        """A copy of the last known state; None where there is none, or `namespace` is not looked at."""
        cache = self._cache(namespace)
        return None if cache is None else cache.get(namespace, name)

    def by_index(self, index: str, namespace: str, value: str) -> list[Object]:
        """Those of one namespace that the index finds under the value, in order of their names."""
        cache = self._cache(namespace)
        found = [] if cache is None else cache.by_index(index, value)
        return [item for item in found if item["metadata"].get("namespace") == namespace]

    def __len__(self) -> int:
        return sum(len(cache) for cache in self._caches.values())

    def _cache(self, namespace: str) -> Cache | None:
        return self._caches.get(ALL_NAMESPACES) or self._caches.get(namespace)
