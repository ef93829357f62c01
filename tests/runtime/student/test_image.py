"""The file of tensors in memory: what safetensors itself reads from it, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from limbeck_runtime.student.image import ImageMismatchError, TensorImage


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "half": torch.randn(3, 5).bfloat16(),
        "bytes": torch.arange(7, dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "step": torch.tensor(3.0),
        "wide": torch.randn(2, 3, dtype=torch.float64),
        "nothing": torch.empty(0, 4),
        "image": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "turned": torch.randn(4, 6).T,
        "ids": torch.arange(5),
    }


def test_safetensors_reads_what_was_copied() -> None:
    given = tensors()
    image = TensorImage(given)
    image.copy_from(given, given)
    read = load(bytes(image.data))
    assert read.keys() == given.keys()
    for name, tensor in given.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


def test_a_second_copy_replaces_the_first_in_the_same_memory() -> None:
    given = tensors()
    image = TensorImage(given)
    image.copy_from(given, given)
    address = image.buffer.data_ptr()
    image.copy_from({"ids": torch.arange(5) * 2}, ["ids"])
    assert image.buffer.data_ptr() == address
    assert load(bytes(image.data))["ids"].tolist() == [0, 2, 4, 6, 8]


def test_a_file_of_the_same_form_is_taken_in() -> None:
    given = tensors()
    written, read = TensorImage(given), TensorImage(given)
    written.copy_from(given, given)
    read.load(bytes(written.data))
    for name, tensor in given.items():
        assert torch.equal(read.views[name], tensor)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (save({"w": torch.zeros(2, 3)}), r"w is F32 \(2, 3\) in the checkpoint and F32 \(3, 3\) in the model"),
        (save({"w": torch.zeros(3, 3).half()}), r"w is F16 \(3, 3\) in the checkpoint"),
        (save({"w": torch.zeros(3, 3), "x": torch.zeros(1)}), r"x is F32 \(1,\) in the checkpoint and absent"),
        (b"no such file", "not a safetensors file"),
    ],
)
def test_a_file_of_another_form_is_refused_with_the_difference(data: bytes, message: str) -> None:
    with pytest.raises(ImageMismatchError, match=message):
        TensorImage({"w": torch.zeros(3, 3)}).load(data)
