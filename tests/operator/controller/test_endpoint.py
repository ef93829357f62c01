from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import urllib3
from prometheus_client import CollectorRegistry, Gauge

from limbeck.controller.endpoint import Endpoint


@dataclass
class Patient:
    is_alive: bool = True
    is_ready: bool = True
    problems: list[str] = field(default_factory=list)


@pytest.fixture
def patient() -> Patient:
    return Patient()


@pytest.fixture
def get(patient: Patient) -> Iterator[object]:
    registry = CollectorRegistry()
    Gauge("barrels", "In the cellar.", registry=registry).set(7)
    endpoint = Endpoint("127.0.0.1", 0, registry, patient)
    with urllib3.PoolManager(retries=False, timeout=5.0) as pool:

        def ask(path: str) -> tuple[int, str]:
            answer = pool.request("GET", f"http://127.0.0.1:{endpoint.port}{path}")
            return answer.status, answer.data.decode()

        yield ask
    endpoint.close()


def test_a_scrape_gets_the_registry(get) -> None:
    status, text = get("/metrics")
    assert status == 200
    assert "barrels 7.0" in text


def test_one_that_is_well_says_so(get) -> None:
    assert get("/livez") == (200, "ok")
    assert get("/readyz") == (200, "ok")


def test_one_whose_thread_has_ended_is_to_be_started_again(get, patient) -> None:
    patient.is_alive = False
    assert get("/livez") == (503, "a thread has ended")
    assert get("/readyz") == (200, "ok")


def test_one_that_is_not_ready_says_why(get, patient) -> None:
    patient.is_ready = False
    assert get("/readyz") == (503, "still reading what there is")
    patient.problems = ["pods: forbidden", "rayjobs: gone"]
    assert get("/readyz") == (503, "pods: forbidden; rayjobs: gone")


def test_other_paths_are_named_as_such(get) -> None:
    assert get("/") == (404, "there are /metrics, /livez and /readyz")


def test_a_port_that_is_taken_is_an_error(get, patient) -> None:
    registry = CollectorRegistry()
    first = Endpoint("127.0.0.1", 0, registry, patient)
    try:
        with pytest.raises(OSError, match="in use"):
            Endpoint("127.0.0.1", first.port, registry, patient)
    finally:
        first.close()
