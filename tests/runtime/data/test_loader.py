"""Batches by position: what they hold, and that nothing but positions, view and settings decides it."""

from __future__ import annotations

import numpy as np
import torch

from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.models.preprocessing import Preprocessing


def test_a_batch_holds_pixels_tokens_and_labels_of_the_samples_asked_for(tars, preprocessing: Preprocessing) -> None:
    index = tars.index()
    with BatchLoader(index, preprocessing) as loader:
        batch = loader.batch(np.array([[2, 6], [0, 3], [0, 3]]))
    assert batch.keys == ("s046", "s003", "s003")
    assert batch.inputs["pixel_values"].shape == (3, 3, 8, 8)
    assert batch.inputs["labels"].tolist() == [46 % 3, 0, 0]
    # [CLS] word4 thing1 [SEP], by the builders' vocabulary.
    assert batch.inputs["input_ids"][0].tolist() == [1, 5 + 46 % 7, 12 + 46 % 5, 2]
    assert torch.equal(batch.inputs["pixel_values"][1], batch.inputs["pixel_values"][2])
