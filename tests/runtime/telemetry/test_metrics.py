from __future__ import annotations

import socket
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import generate_latest

from limbeck_runtime.telemetry.metrics import Metrics, MetricsServer

MAX_SCRAPE_BYTES = 20_000


@pytest.fixture
def metrics(clock: Any) -> Metrics:
    return Metrics("emoji", "0.1.0", clock)


@pytest.fixture
def server(metrics: Metrics) -> Iterator[MetricsServer]:
    server = MetricsServer(metrics, port=0)
    yield server
    server.close()


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def fetch(server: MetricsServer) -> str:
    with urllib.request.urlopen(server.url) as response:
        return str(response.read(), "utf-8")


def test_names_types_and_help_are_the_reviewed_ones(metrics: Metrics, golden: Callable[[str, str], None]) -> None:
    text = generate_latest(metrics.registry).decode()
    ours = [line for line in text.splitlines() if line.startswith("# ") and " process_" not in line]
    golden("metrics.txt", "\n".join(ours) + "\n")


def test_a_scrape_shows_the_update_just_made(metrics: Metrics, server: MetricsServer) -> None:
    for update in (1, 2):
        metrics.train_step("distil", update, update / 10, 256, 1.5 / update, {"affinity": 1.0 / update})
        text = fetch(server)
        assert f'limbeck_train_updates_total{{step="distil"}} {update}.0' in text
        assert f'limbeck_train_loss{{step="distil",term="total"}} {1.5 / update}' in text
        assert f'limbeck_train_loss{{step="distil",term="affinity"}} {1.0 / update}' in text


def test_a_loss_is_read_only_when_someone_scrapes(metrics: Metrics) -> None:
    reads = []

    class OnDevice:
        def __float__(self) -> float:
            reads.append(1)
            return 2.0

    metrics.train_step("distil", 1, 0.1, 256, OnDevice())
    assert reads == []
    assert value(metrics, "limbeck_train_loss", step="distil", term="total") == 2.0
    assert reads == [1]


def test_a_step_that_is_over_leaves_no_loss_behind(metrics: Metrics) -> None:
    metrics.train_step("distil", 10, 1.0, 256, 1.0)
    metrics.train_step("recover", 1, 0.1, 256, 0.5)
    assert value(metrics, "limbeck_train_loss", step="distil", term="total") is None
    assert value(metrics, "limbeck_train_loss", step="recover", term="total") == 0.5


def test_speed_is_that_of_the_last_seconds_and_falls_when_training_stalls(metrics: Metrics, clock: Any) -> None:
    for update in range(1, 31):
        metrics.train_step("distil", update, 0.0, 100, 1.0)
        clock.advance(1.0)
    assert value(metrics, "limbeck_samples_per_second", role="student") == pytest.approx(100, rel=0.15)
    clock.advance(60.0)
    assert value(metrics, "limbeck_samples_per_second", role="student") == pytest.approx(0, abs=1e-9)
    assert value(metrics, "limbeck_samples_total", role="student") == 3000


def test_waiting_for_data_is_a_share_of_the_time(metrics: Metrics, clock: Any) -> None:
    metrics.data_waited(0.0)
    for _ in range(20):
        clock.advance(1.0)
        metrics.data_waited(0.25)
    assert value(metrics, "limbeck_data_wait_ratio") == pytest.approx(0.25, rel=0.01)


def test_store_lag_and_hits_follow_the_shards(metrics: Metrics) -> None:
    for _ in range(3):
        metrics.shard_captured(samples=50)
    metrics.shards_reused(1)
    metrics.shard_consumed()
    assert value(metrics, "limbeck_store_lag_shards") == 3
    assert value(metrics, "limbeck_store_hit_ratio") == 0.25
    assert value(metrics, "limbeck_samples_total", role="teacher") == 150


def test_a_shard_that_is_captured_again_does_not_count_as_two_ahead(metrics: Metrics) -> None:
    metrics.shards_reused(2)
    metrics.shards_vanished(1)
    assert value(metrics, "limbeck_store_lag_shards") == 1
    metrics.shard_captured(samples=50)
    assert value(metrics, "limbeck_store_lag_shards") == 2
    assert value(metrics, "limbeck_store_captured_shards_total") == 1


def test_hits_have_no_value_before_a_shard_is_wanted(metrics: Metrics) -> None:
    assert value(metrics, "limbeck_store_hit_ratio") is None


def test_checkpoints_fall_into_buckets_by_their_time(metrics: Metrics) -> None:
    for seconds in (0.1, 0.2, 3.0, 1000.0):
        metrics.checkpoint_saved(seconds)
    name = "limbeck_checkpoint_duration_seconds"
    counts = [value(metrics, f"{name}_bucket", le=bound) for bound in ("0.05", "0.2", "5.0", "+Inf")]
    assert counts == [0, 2, 3, 4]
    assert value(metrics, f"{name}_sum") == pytest.approx(1003.3)
    assert value(metrics, f"{name}_count") == 4


def test_bad_samples_progress_and_recovery_are_told_by_their_label(metrics: Metrics) -> None:
    metrics.bad_sample("TruncatedImage")
    metrics.bad_sample("TruncatedImage", count=2)
    metrics.step_progress("distil", 0.4)
    metrics.recovered("distil", 0.982)
    assert value(metrics, "limbeck_bad_samples_total", reason="TruncatedImage") == 3
    assert value(metrics, "limbeck_step_progress_ratio", step="distil") == 0.4
    assert value(metrics, "limbeck_recovery_ratio", step="distil") == 0.982


def test_the_largest_job_that_the_api_allows_still_fits_a_small_scrape(metrics: Metrics) -> None:
    for index in range(32):
        step = f"step-with-quite-a-long-name-indeed-{index}"
        metrics.step_progress(step, 1.0)
        metrics.recovered(step, 0.98)
        metrics.train_step(step, 1, 0.1, 1, 1.0, {f"term_{term}": 1.0 for term in range(16)})
    for reason in range(16):
        metrics.bad_sample(f"SomeReasonForIt{reason}")
    assert len(generate_latest(metrics.registry)) <= MAX_SCRAPE_BYTES


@pytest.mark.parametrize(("host", "reached"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_only_who_is_let_in_reaches_the_endpoint(metrics: Metrics, host: str, reached: bool) -> None:
    server = MetricsServer(metrics, 0, host)
    try:
        # Another address of this machine than the loopback's own.
        with socket.socket() as client:
            assert (client.connect_ex(("127.0.0.2", server.port)) == 0) is reached
    finally:
        server.close()


def test_an_address_of_another_machine_is_refused_with_the_options_name(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="`--metrics-host` is an address of this machine"):
        MetricsServer(metrics, 0, "192.0.2.1")


def test_a_port_that_is_taken_is_refused_with_the_options_name(metrics: Metrics) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ValueError, match=f"`--metrics-port` must be a port that is free .* got {port}"):
            MetricsServer(metrics, port)
