"""What is frozen, what decays, which rate a parameter takes, and the averaged weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from limbeck_runtime.student.optimization import (
    WeightAverage,
    adamw,
    enter_training,
    freeze,
    set_learning_rate,
    trained_parameters,
)


def towers() -> nn.Module:
    return nn.ModuleDict(
        {
            "image": nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Dropout(0.5)),
            "text": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)),
        }
    )


def test_frozen_parameters_do_not_train_and_their_parts_stay_in_eval_mode() -> None:
    module = towers()
    freeze(module, ["text.*"])
    enter_training(module)
    assert set(trained_parameters(module, None)) == {
        f"model/image.{name}" for name in ("0.weight", "0.bias", "1.weight", "1.bias")
    }
    assert module["image"].training
    assert not module["text"].training
    assert not module["text"][1].training
    assert not module["text"][2].training, "dropout of a frozen tower"


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["vision.*"], r"`freeze` must match parameters, got 'vision.\*'.*image.0.weight"),
        (["*"], r"`freeze` must leave something to train"),
    ],
)
def test_a_freeze_that_cannot_be_meant_is_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        freeze(towers(), patterns)


def test_a_loss_with_weights_of_its_own_is_trained_too() -> None:
    module, loss = nn.Linear(2, 2), nn.Linear(2, 1, bias=False)
    assert list(trained_parameters(module, loss)) == ["model/weight", "model/bias", "loss/weight"]


def test_norms_and_biases_do_not_decay_and_heads_take_their_own_rate() -> None:
    parameters = trained_parameters(towers(), None)
    optimizer = adamw(parameters, 0.1, 0.5, [("text.0.*", 0.7), ("text.*", 0.2)], fused=True)
    set_learning_rate(optimizer, 0.5)
    found = {}
    names = {id(parameter): name for name, parameter in parameters.items()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    assert found == {
        "model/image.0.weight": (0.05, 0.5),
        "model/image.0.bias": (0.05, 0.0),
        "model/image.1.weight": (0.05, 0.0),
        "model/image.1.bias": (0.05, 0.0),
        "model/text.0.weight": (0.35, 0.5),
        "model/text.0.bias": (0.35, 0.0),
        "model/text.1.weight": (0.1, 0.0),
        "model/text.1.bias": (0.1, 0.0),
    }


def test_a_rate_for_frozen_parameters_is_refused() -> None:
    module = towers()
    freeze(module, ["text.*"])
    with pytest.raises(ValueError, match=r"`headLearningRate` must be for parameters that train, got 'text.\*'"):
        adamw(trained_parameters(module, None), 0.1, 0.5, [("text.*", 0.2)], fused=True)


@pytest.mark.parametrize("fused", [True, False])
def test_state_made_at_the_start_trains_as_torchs_own_does(fused: bool) -> None:
    weights = []
    for own in (True, False):
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        if own:
            optimizer = adamw(trained_parameters(module, None), 0.1, 0.01, fused=fused)
        else:
            groups = [
                {"params": [module.weight], "weight_decay": 0.01},
                {"params": [module.bias], "weight_decay": 0.0},
            ]
            optimizer = torch.optim.AdamW(groups, lr=0.1, fused=fused)
        for _ in range(3):
            module(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(module.weight.detach().clone())
    assert torch.equal(*weights)


def test_the_average_is_that_of_a_naive_loop() -> None:
    parameters = {"w": nn.Parameter(torch.tensor([1.0, -2.0]))}
    average = WeightAverage(parameters, decay=0.6)
    naive = [1.0, -2.0]
    for step in range(1, 40):
        with torch.no_grad():
            parameters["w"].copy_(torch.tensor([float(step), -0.5 * step]))
        average.update(step)
        decay = min(0.6, step / (step + 10))
        naive = [decay * old + (1 - decay) * new for old, new in zip(naive, (step, -0.5 * step), strict=True)]
        assert average.tensors["w"].tolist() == pytest.approx(naive, rel=1e-5)
    average.copy_to_parameters()
    assert parameters["w"].tolist() == pytest.approx(naive, rel=1e-5)
