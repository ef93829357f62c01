"""Metrics of the server, in a registry of its own.

Left out: the numbers of runs, which Prometheus scrapes from their pods.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from limbeck.server import names


class Metrics:
    """What the server counts. Outcomes are words of an enumeration, never names of jobs."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        outcome = (names.LABEL_OUTCOME,)
        self.posts = Counter(names.METRIC_POSTS, "Posts by how they were answered.", outcome, registry=self.registry)
        self.token_reviews = Counter(
            names.METRIC_TOKEN_REVIEWS, "Tokens that the API server was asked about.", outcome, registry=self.registry
        )
        self.status_patches = Counter(
            names.METRIC_STATUS_PATCHES, "Writes to a job's status.", outcome, registry=self.registry
        )
        self.post_seconds = Histogram(
            names.METRIC_POST_SECONDS,
            "Time to answer a post.",
            buckets=(0.005, 0.02, 0.1, 0.5, 2.0, 10.0),
            registry=self.registry,
        )
        self.streams = Gauge(names.METRIC_STREAMS, "Clients that follow progress.", registry=self.registry)
        self.jobs_behind = Gauge(
            names.METRIC_JOBS_BEHIND, "Jobs whose status does not show yet what is known.", registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """What a scrape gets."""
        return generate_latest(self.registry)
