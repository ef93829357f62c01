"""Times are taken in turns, and compared within each round."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from benchmarks.timing import Comparison, Figure, alternate, in_turns, repeat


class FakeTime:
    """A clock that only works move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[str] = []

    def clock(self) -> float:
        return self.now

    def work(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.done.append(name)
            self.now += seconds

        return run


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


def test_a_figure_is_the_median_with_its_extremes() -> None:
    assert Figure.of([5.0, 1.0, 2.0]) == Figure(2.0, (1.0, 5.0), 3)


def test_a_figure_changes_its_unit_with_its_spread() -> None:
    assert Figure(0.5, (0.25, 1.0), 5).scaled(1000) == Figure(500, (250, 1000), 5)


def test_two_works_are_compared_by_their_times(time: FakeTime) -> None:
    compared = alternate(time.work("slow", 3.0), time.work("quick", 1.5), runs=5, clock=time.clock)
    assert compared.ratio == Figure(2.0, (2.0, 2.0), 5)
    assert compared.first_seconds.value == 3.0
    assert compared.second_seconds.value == 1.5


def test_a_machine_that_slows_down_between_rounds_does_not_change_the_ratio() -> None:
    compared = Comparison.of([3.0, 6.0, 12.0], [1.5, 3.0, 6.0])
    assert compared.ratio == Figure(2.0, (2.0, 2.0), 3)
    assert compared.first_seconds.spread == (3.0, 12.0)


def test_works_alternate_and_take_turns_to_go_first(time: FakeTime) -> None:
    alternate(time.work("a", 1.0), time.work("b", 1.0), runs=3, warmups=0, clock=time.clock)
    assert time.done == ["a", "b", "b", "a", "a", "b"]


def test_warm_ups_are_not_counted(time: FakeTime) -> None:
    seconds = iter([100.0, 1.0, 2.0, 3.0])

    def work() -> None:
        time.now += next(seconds)

    assert repeat(work, runs=3, warmups=1, clock=time.clock) == Figure(2.0, (1.0, 3.0), 3)


def test_what_works_say_in_turns_is_kept_by_name() -> None:
    values = {"a": iter([9.0, 1.0, 2.0]), "b": iter([9.0, 3.0, 4.0])}
    said = in_turns({name: lambda name=name: next(values[name]) for name in values}, runs=2, warmups=1)
    assert said == {"a": [1.0, 2.0], "b": [3.0, 4.0]}


def test_runs_of_two_works_must_be_equally_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Comparison.of([1.0, 2.0], [1.0])
