"""Views: a pure function of seed, key and view number, the same for every image size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from limbeck.api.v1alpha1.data import Augmentation
from limbeck_runtime.data.augment import ViewParameters, apply_views, is_identity, view_parameters

_ALL = Augmentation(min_crop_percent=60, flip=True, rotation_degrees=20, color_percent=30)


def _parameters(**given: float) -> ViewParameters:
    values = {"scale": 1.0, "center_x": 0.0, "center_y": 0.0, "flip": 0.0, "angle": 0.0} | given
    values = {"brightness": 0.0, "contrast": 1.0} | values
    return ViewParameters(**{name: np.array([value]) for name, value in values.items()})


def _smooth(size: int) -> torch.Tensor:
    """A picture that is the same function of place at every size, uint8 (1, 3, size, size)."""
    place = (torch.arange(size) + 0.5) / size * 2 - 1
    x, y = place[None, :].expand(size, size), place[:, None].expand(size, size)
    waves = torch.stack([x, y, torch.sin(2 * x + y)])
    return ((waves + 1) * 127.5).to(torch.uint8)[None]


def test_parameters_are_the_same_numbers_in_every_process() -> None:
    found = view_parameters(_ALL, 7, ["cat-01", "dog/2"], 3)
    numbers = {name: [round(float(number), 6) for number in values] for name, values in vars(found).items()}
    assert numbers == {
        "scale": [0.990328, 0.820224],
        "center_x": [-0.000197, -0.079631],
        "center_y": [-0.007134, 0.135518],
        "flip": [0.0, 1.0],
        "angle": [0.252922, -0.343698],
        "brightness": [0.028973, -0.029068],
        "contrast": [0.831268, 1.210793],
    }


@pytest.mark.parametrize(("seed", "key", "view"), [(1, "a", 0), (0, "b", 0), (0, "a", 1)])
def test_seed_key_and_view_each_change_the_view(seed: int, key: str, view: int) -> None:
    base = view_parameters(_ALL, 0, ["a"], 0)
    other = view_parameters(_ALL, seed, [key], view)
    assert base.scale[0] != other.scale[0]
    assert base.angle[0] != other.angle[0]


def test_a_samples_view_does_not_depend_on_its_batch() -> None:
    together = view_parameters(_ALL, 0, ["a", "b", "c"], 2)
    alone = view_parameters(_ALL, 0, ["b"], 2)
    assert np.array_equal(together.affine()[1], alone.affine()[0])
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(apply_views(images, together)[1], apply_views(images[1:2], alone)[0])


def test_parameters_stay_within_the_settings() -> None:
    found = view_parameters(_ALL, 0, [f"k{number}" for number in range(2000)], 0)
    assert 0.6 <= found.scale.min() < 0.62
    assert 0.98 < found.scale.max() <= 1
    assert (np.abs(found.center_x) <= 1 - found.scale).all()
    assert (np.abs(found.center_y) <= 1 - found.scale).all()
    assert 0.45 < found.flip.mean() < 0.55
    assert np.degrees(np.abs(found.angle).max()) == pytest.approx(20, abs=0.1)
    assert np.abs(found.contrast - 1).max() == pytest.approx(0.3, abs=0.01)
    assert np.abs(found.brightness).max() == pytest.approx(0.15, abs=0.01)


def test_settings_that_change_nothing_are_the_identity() -> None:
    assert is_identity(Augmentation(views=8))
    assert not is_identity(Augmentation(flip=True))
    images = torch.randint(0, 256, (2, 3, 9, 9), dtype=torch.uint8)
    unchanged = apply_views(images, view_parameters(Augmentation(), 0, ["a", "b"], 5))
    assert torch.allclose(unchanged, images.float(), atol=1e-3)


def test_teacher_and_student_of_different_image_sizes_see_the_same_view() -> None:
    parameters = view_parameters(_ALL, 3, ["sample"], 1)
    large = apply_views(_smooth(96), parameters)
    small = apply_views(_smooth(32), parameters)
    # Away from the edge, where each size repeats its own outermost pixel.
    shrunk = functional.interpolate(large, size=(32, 32), mode="bilinear", antialias=True)
    assert (shrunk - small)[..., 6:-6, 6:-6].abs().max() < 3.0
    assert (shrunk - functional.interpolate(_smooth(96).float(), size=(32, 32))).abs().max() > 20


def test_a_crop_shows_the_part_that_it_names() -> None:
    image = _smooth(64)
    view = apply_views(image, _parameters(scale=0.5, center_x=0.5, center_y=-0.5))
    # x from 0 to 1, y from -1 to 0.
    assert view[0, 0, 32, 0].item() == pytest.approx(127.5, abs=2)
    assert view[0, 0, 32, -1].item() == pytest.approx(254, abs=2)
    assert view[0, 1, 0, 32].item() == pytest.approx(0, abs=2)
    assert view[0, 1, -1, 32].item() == pytest.approx(126, abs=2)


def test_flip_mirrors_and_a_quarter_turn_turns() -> None:
    image = _smooth(16)
    assert torch.allclose(apply_views(image, _parameters(flip=1.0)), image.flip(-1).float(), atol=1e-2)
    turned = apply_views(image, _parameters(angle=np.pi / 2))
    assert torch.allclose(turned, torch.rot90(image, 1, (-2, -1)).float(), atol=1e-2)


def test_brightness_and_contrast_stay_within_black_and_white() -> None:
    image = torch.tensor([0, 128, 255], dtype=torch.uint8).reshape(1, 1, 1, 3).expand(1, 3, 3, 3)
    view = apply_views(image, _parameters(contrast=0.5, brightness=0.1))
    assert view[0, 0, 0].tolist() == pytest.approx([0.35 * 255, 0.6 * 255, 0.85 * 255], abs=0.5)
    assert apply_views(image, _parameters(contrast=2.0, brightness=0.3)).max() == 255
