from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from limbeck.server.history import History, JobKey, StaleRunError
from limbeck.server.schema import SchemaError

WARNING = ("warning", {"message": "a"})
KEY = JobKey("uid-1", "vision", "emoji")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'history.sqlite'}"
    server: str = request.getfixturevalue("postgres_url")
    schema = f"test_{uuid.uuid4().hex}"
    engine = create_engine(server)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    engine.dispose()
    return f"{server}&options=-csearch_path%3D{schema}"


@pytest.fixture
def open_history(url: str, clock: Any) -> Iterator[Callable[..., History]]:
    opened: list[History] = []

    def open_one(**options: Any) -> History:
        opened.append(History(url, clock, **options))
        return opened[-1]

    yield open_one
    for history in opened:
        history.close()


def updates(history: History, uid: str = "uid-1") -> list[int]:
    return [json.loads(entry.body)["update"] for entry in history.entries(uid, 0, 1000, "record")]


def test_two_posts_of_the_same_sequence_count_once(open_history: Any, record: Any) -> None:
    history = open_history()
    assert record(history, 1, WARNING, records=[("distil", 1)])
    assert not record(history, 1, WARNING, records=[("distil", 1)])
    assert [entry.kind for entry in history.entries("uid-1", 0, 10)] == ["warning", "record"]
    assert history.by_uid("uid-1").revision == 1


def test_a_late_copy_of_an_older_post_does_not_count_either(open_history: Any, record: Any) -> None:
    history = open_history()
    assert [record(history, number, WARNING) for number in (1, 3, 2, 3, 4)] == [True, True, False, False, True]


def test_each_run_counts_its_own_posts(open_history: Any, record: Any) -> None:
    history = open_history()
    assert record(history, 7, run="first-run")
    assert record(history, 1, run="second-run", epoch=2)


def test_a_run_whose_epoch_is_over_is_refused_and_leaves_no_trace(open_history: Any, record: Any) -> None:
    history = open_history()
    record(history, 1, WARNING, run="second-run", epoch=2, attempt=2)
    before = history.by_uid("uid-1")
    with pytest.raises(StaleRunError, match="epoch 1 is over"):
        record(history, 9, WARNING, run="first-run", epoch=1)
    assert history.by_uid("uid-1") == before
    assert len(history.entries("uid-1", 0, 10)) == 1


def test_what_was_taken_is_there_after_opening_again(open_history: Any, record: Any) -> None:
    history = open_history()
    record(history, 1, ("step_started", {"step": "distil", "method": "distil", "index": 1, "total": 1}))
    before = history.by_uid("uid-1")
    history.close()
    again = open_history()
    assert again.by_uid("uid-1") == before
    assert not record(again, 1)


def test_two_replicas_share_one_history(open_history: Any, record: Any) -> None:
    one, other = open_history(), open_history()
    assert record(one, 1, WARNING)
    assert not record(other, 1, WARNING)
    assert record(other, 2, WARNING)
    assert one.by_uid("uid-1").revision == 2


def test_progress_moves_the_standing_but_does_not_fill_the_history(open_history: Any, record: Any) -> None:
    history = open_history()
    started = ("step_started", {"step": "distil", "method": "distil", "index": 1, "total": 1})
    moved = {"step": "distil", "phase": "train", "done": 1, "total": 4, "unit": "batches"}
    record(history, 1, started, ("step_progress", moved))
    assert history.by_uid("uid-1").standing.steps[0].progress_percent == 25
    assert [entry.kind for entry in history.entries("uid-1", 0, 10)] == ["step_started"]


def test_a_post_without_events_changes_no_standing(open_history: Any, record: Any) -> None:
    history = open_history()
    record(history, 1, WARNING)
    record(history, 2)
    record(history, 3, records=[("distil", 1)])
    assert history.by_uid("uid-1").revision == 1


def test_updates_made_again_after_a_crash_replace_those_from_before(open_history: Any, record: Any) -> None:
    history = open_history()
    record(history, 1, records=[("distil", number) for number in (1, 2, 3, 4)] + [("recover", 1)])
    record(history, 1, run="second-run", epoch=2, records=[("distil", 3)])
    assert updates(history) == [1, 2, 1, 3]


def test_of_two_records_of_one_update_in_a_post_the_later_counts(open_history: Any, record: Any) -> None:
    history = open_history()
    record(history, 1, records=[("distil", 1), ("distil", 1)])
    assert updates(history) == [1]


def test_of_too_many_entries_the_oldest_go(open_history: Any, record: Any) -> None:
    history = open_history(max_entries_per_job=3)
    for number in range(1, 6):
        record(history, number, records=[("distil", number)])
    record(history, 1, WARNING, uid="uid-2")
    assert updates(history) == [3, 4, 5]
    assert len(history.entries("uid-2", 0, 10)) == 1


def test_a_reader_goes_on_behind_what_it_has(open_history: Any, record: Any) -> None:
    history = open_history()
    record(history, 1, records=[("distil", number) for number in range(1, 6)])
    first = history.entries("uid-1", 0, 2)
    rest = history.entries("uid-1", first[-1].id, 10)
    assert (len(first), len(rest)) == (2, 3)


def test_the_newest_job_of_a_name_is_the_one_that_is_shown(open_history: Any, record: Any, clock: Any) -> None:
    history = open_history()
    record(history, 1, uid="uid-2")
    clock.advance(10)
    record(history, 1, uid="uid-1")
    assert history.job("vision", "emoji").key.uid == "uid-1"
    assert history.job("vision", "other") is None


def test_jobs_are_paged_by_namespace_and_name(open_history: Any, record: Any) -> None:
    history = open_history()
    for name in ("c", "a", "b"):
        record(history, 1, uid=f"uid-{name}", name=name)
    first = history.jobs(None, None, 2)
    rest = history.jobs("vision", first[-1].key, 2)
    assert [view.key.name for view in [*first, *rest]] == ["a", "b", "c"]
    assert history.jobs("other", None, 2) == []


def test_a_change_is_due_once_for_all_replicas_until_it_is_patched(open_history: Any, record: Any, clock: Any) -> None:
    one, other = open_history(), open_history()
    record(one, 1, WARNING)
    [view] = one.claim_due(5, 10)
    assert other.claim_due(5, 10) == []
    assert one.behind() == 1
    one.patched(view)
    clock.advance(60)
    assert one.claim_due(5, 10) == []
    assert one.behind() == 0


def test_a_claim_that_nobody_made_good_is_due_again(open_history: Any, record: Any, clock: Any) -> None:
    one, other = open_history(), open_history()
    record(one, 1, WARNING)
    one.claim_due(5, 10)
    clock.advance(5)
    assert [view.key for view in other.claim_due(5, 10)] == [KEY]


def test_a_change_during_the_write_is_due_after_it(open_history: Any, record: Any, clock: Any) -> None:
    history = open_history()
    record(history, 1, WARNING)
    [view] = history.claim_due(5, 10)
    record(history, 2, WARNING)
    history.patched(view)
    assert history.claim_due(5, 10) == []
    clock.advance(5)
    assert [view.revision for view in history.claim_due(5, 10)] == [2]


def test_a_postponed_change_waits(open_history: Any, record: Any, clock: Any) -> None:
    history = open_history()
    record(history, 1, WARNING)
    [view] = history.claim_due(5, 10)
    history.postpone(view, 60)
    clock.advance(59)
    assert history.claim_due(5, 10) == []
    clock.advance(1)
    assert len(history.claim_due(5, 10)) == 1


def test_a_job_that_is_not_heard_of_is_forgotten_with_all_it_left(open_history: Any, record: Any, clock: Any) -> None:
    history = open_history()
    record(history, 1, WARNING)
    clock.advance(100)
    record(history, 1, WARNING, uid="uid-2", name="other")
    assert history.forget(50) == 1
    assert history.by_uid("uid-1") is None
    assert history.entries("uid-1", 0, 10) == []
    assert history.by_uid("uid-2") is not None
    assert record(history, 1, WARNING)


def test_the_history_of_a_newer_version_is_refused_and_left_alone(open_history: Any, url: str, record: Any) -> None:
    record(open_history(), 1, WARNING)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE limbeck_schema SET version = 99"))
    with pytest.raises(SchemaError, match=r"version 1 at most, got 99; run the newer limbeck server"):
        open_history()
    with engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM limbeck_jobs")).scalar_one() == 1
    engine.dispose()
