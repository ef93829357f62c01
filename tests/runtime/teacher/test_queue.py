"""Leases: order, expiry, failures, look-ahead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck_runtime.teacher.plan import CaptureTask
from limbeck_runtime.teacher.queue import MAX_FAILURES, CaptureFailedError, ShardQueue


def tasks(names: str) -> list[CaptureTask]:
    """One task for each letter."""
    return [CaptureTask(shard, 0, name, 10) for shard, name in enumerate(names)]


def queue(names: str, done: str = "", lookahead: int | None = None) -> ShardQueue:
    return ShardQueue(tasks(names), set(done), lease_seconds=10, lookahead=lookahead)


def leased(of: ShardQueue, worker: str = "w", now: float = 0.0) -> str:
    """All that the worker can get now."""
    names = ""
    while (task := of.lease(worker, now)) is not None:
        names += task.identity
    return names


def test_tasks_are_leased_once_each_in_the_student_s_order() -> None:
    of = queue("abcd")
    assert [leased(of, "w"), leased(of, "v")] == ["abcd", ""]


def test_what_the_store_has_is_not_leased() -> None:
    of = queue("abcd", done="bx")
    assert (of.num_done, of.num_tasks) == (1, 4)
    assert leased(of) == "acd"


def test_equal_shards_are_captured_once() -> None:
    of = queue("abab")
    assert of.num_tasks == 2
    assert leased(of) == "ab"


def test_a_lost_worker_s_tasks_come_before_later_ones() -> None:
    of = queue("abcd")
    of.lease("dying", 0)
    of.lease("w", 0)
    assert [task.identity for task in of.release("dying")] == ["a"]
    assert leased(of, "v") == "acd"


@pytest.mark.parametrize(("heard_at", "silent"), [(1.0, ["w"]), (5.0, [])])
def test_a_worker_is_silent_when_it_was_not_heard_of_for_a_lease(heard_at: float, silent: list[str]) -> None:
    of = queue("ab")
    of.lease("w", 0)
    of.heartbeat("w", heard_at)
    assert of.silent(11.0) == silent


def test_a_worker_that_holds_nothing_yet_can_be_silent_too() -> None:
    of = queue("ab")
    of.heartbeat("loading", 0)
    assert of.silent(10.0) == ["loading"]
    of.release("loading")
    assert of.silent(20.0) == []


def test_a_task_that_fails_is_tried_again_first_and_at_last_ends_the_capture() -> None:
    of = queue("ab")
    for _ in range(MAX_FAILURES - 1):
        task = of.lease("w", 0)
        assert task is not None
        assert task.identity == "a"
        of.fail("a", "no memory")
    of.lease("w", 0)
    with pytest.raises(CaptureFailedError, match=r"3 times on shard 0, view 0.*no memory"):
        of.fail("a", "no memory")


def test_a_result_that_comes_after_the_lease_was_lost_still_counts() -> None:
    of = queue("ab")
    of.lease("slow", 0)
    of.release("slow")
    of.complete("a")
    assert leased(of) == "b"


def test_lookahead_bounds_what_is_captured_before_the_student_begins_it() -> None:
    of = queue("abcdef", lookahead=2)
    assert leased(of) == "ab"
    of.complete("a")
    assert leased(of) == ""
    of.consumed(1)
    assert leased(of) == "c"
    of.consumed(4)
    of.consumed(2)  # told late
    assert leased(of) == "def"


def test_lookahead_counts_equal_shards_once() -> None:
    of = queue("aab" + "cd", lookahead=1)
    assert leased(of) == "a"
    of.consumed(2)  # the student began `a` twice
    assert leased(of) == "b"


def test_lookahead_does_not_count_what_was_there_before() -> None:
    of = queue("abcdefgh", done="bcdg", lookahead=2)
    assert leased(of) == "ae"
    assert of.held_back
    of.consumed(4)
    assert leased(of) == "f"
    of.consumed(5)
    assert not of.held_back
    assert leased(of) == "h"
    assert not of.held_back


def test_tasks_that_workers_have_are_not_held_back() -> None:
    of = queue("ab", lookahead=1)
    assert not of.held_back
    assert leased(of) == "a"
    assert of.held_back
    of.release("w")
    assert not of.held_back


def test_a_lost_shard_is_within_reach_again_however_far_the_student_is() -> None:
    of = queue("abc", lookahead=1)
    for name in "abc":
        of.lease("w", 0)
        of.complete(name)
        of.consumed("abc".index(name) + 1)
    assert of.finished
    assert of.reopen_missing({"b", "c"}) == 1
    assert not of.finished
    assert leased(of) == "a"


def test_a_lookahead_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="`lookahead`"):
        queue("ab", lookahead=0)


@given(st.lists(st.sampled_from(["lease", "complete", "fail", "die", "vanish", "consume"]), max_size=60), st.data())
def test_whatever_happens_no_task_is_lost_or_held_by_two(steps: list[str], data: st.DataObject) -> None:
    of = queue("abcdefgh", lookahead=3)
    held: dict[str, str] = {}
    done: set[str] = set()
    failures: dict[str, int] = {}
    for now, step in enumerate(steps):
        worker = data.draw(st.sampled_from("xyz"))
        mine = sorted(name for name, holder in held.items() if holder == worker)
        if step == "lease":
            task = of.lease(worker, now)
            if task is not None:
                assert task.identity not in held
                assert task.identity not in done
                held[task.identity] = worker
        elif step == "complete" and mine:
            of.complete(mine[0])
            done.add(mine[0])
            del held[mine[0]]
        elif step == "fail" and mine and failures.get(mine[0], 0) < MAX_FAILURES - 1:
            failures[mine[0]] = failures.get(mine[0], 0) + 1
            of.fail(mine[0], "")
            del held[mine[0]]
        elif step == "die":
            assert sorted(task.identity for task in of.release(worker)) == mine
            held = {name: holder for name, holder in held.items() if holder != worker}
        elif step == "vanish" and done:
            done.discard(min(done))
            of.reopen_missing(done)
        elif step == "consume":
            of.consumed(data.draw(st.integers(0, 8)))
        assert of.num_done == len(done)
    of.consumed(8)
    assert set(leased(of, "last")) == set("abcdefgh") - done - set(held)
