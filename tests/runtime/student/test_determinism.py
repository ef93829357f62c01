"""Random numbers of a step: its own, the same each time, and none of the caller's."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from limbeck_runtime.student.determinism import reproducible, seed_everything


def drawn() -> tuple[float, float, float]:
    return float(torch.rand(())), float(np.random.rand()), random.random()


def test_each_seed_step_worker_and_part_draws_its_own_numbers() -> None:
    first = (1, 2, 3, 4)
    places = [first, (9, 2, 3, 4), (1, 9, 3, 4), (1, 2, 9, 4), (1, 2, 3, 9), (2, 1, 3, 4)]
    with reproducible(torch.device("cpu")):
        draws = []
        for place in [*places, first]:
            seed_everything(*place)
            draws.append(drawn())
    for kind in range(3):
        assert len({draw[kind] for draw in draws}) == len(places)
    assert draws[0] == draws[-1]


def test_the_callers_generators_go_on_as_if_nothing_had_been() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    expected = [drawn(), drawn()]
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    found = [drawn()]
    with pytest.raises(KeyError), reproducible(torch.device("cpu")):
        {seed_everything(0, 0, 0, 0): None}["failed"]
    assert [*found, drawn()] == expected
