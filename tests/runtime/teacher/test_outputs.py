"""What of a teacher's outputs is kept for a shard."""

from __future__ import annotations

import numpy as np
import torch

from limbeck_runtime.store import FeatureCodec, Ragged
from limbeck_runtime.teacher.outputs import ShardOutputs

MASK_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def test_what_comes_by_token_is_kept_without_its_padding() -> None:
    outputs = ShardOutputs("0" * 64, {"features.text": FeatureCodec()})
    states_BTD = torch.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    outputs.add({"features.text": states_BTD}, MASK_BT)
    kept = outputs.joined()["features.text"]
    assert isinstance(kept, Ragged)
    assert kept.lengths.tolist() == [4, 2]
    assert np.array_equal(kept.values, states_BTD[MASK_BT != 0].numpy())


def test_a_map_with_as_many_channels_as_the_texts_have_tokens_is_kept_whole() -> None:
    outputs = ShardOutputs("0" * 64, {"features.image": FeatureCodec()})
    map_BCHW = torch.arange(2 * 4 * 3 * 3.0).reshape(2, 4, 3, 3)
    outputs.add({"features.image": map_BCHW}, MASK_BT)
    kept = outputs.joined()["features.image"]
    assert isinstance(kept, np.ndarray)
    assert np.array_equal(kept, map_BCHW.numpy())
