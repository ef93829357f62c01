"""What each codec loses, against float64; what it refuses; that its record brings it back.

Legend: R rows, V vocabulary, k kept.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from limbeck_runtime.store import (
    LOG_ZERO,
    Codec,
    EmbeddingCodec,
    FeatureCodec,
    SampledCodec,
    TopKCodec,
    codec_from_json,
    codec_to_json,
)
from limbeck_runtime.store.selection import sample_logits, top_k_logits

CODECS: list[Codec] = [
    EmbeddingCodec(),
    EmbeddingCodec("int8"),
    FeatureCodec("float32"),
    TopKCodec(20, 131_072),
    TopKCodec(3, 10, value_bits=16),
    SampledCodec(50, 32_000),
]


def _logits(num_rows: int, vocabulary: int, sharpness: float) -> torch.Tensor:
    """Like a language model's: a few frequent classes on top of a long tail, more or less sure of itself."""
    generator = torch.Generator().manual_seed(vocabulary)
    frequency_V = -torch.log(torch.arange(1.0, vocabulary + 1))[torch.randperm(vocabulary, generator=generator)]
    return frequency_V + sharpness * torch.randn(num_rows, vocabulary, generator=generator)


def _numpy(parts: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: part.numpy() for name, part in parts.items()}


def _kl_of_storing(logits_RV: torch.Tensor, codec: TopKCodec) -> np.ndarray:
    """KL in nats a row, from the float64 distribution over k classes and the rest to what comes back."""
    parts = _numpy(top_k_logits(logits_RV, codec.k))
    decoded = codec.decode(codec.encode(parts), ())
    assert np.array_equal(decoded["indices"], parts["indices"])
    log_p_RV = logits_RV.double().log_softmax(dim=-1).numpy()
    log_p_Rk = np.take_along_axis(log_p_RV, parts["indices"].astype(np.int64), axis=1)
    tail_R = 1 - np.exp(log_p_Rk).sum(axis=1)
    kl_R = (np.exp(log_p_Rk) * (log_p_Rk - decoded["log_probs"])).sum(axis=1)
    is_there_R = tail_R > 1e-12
    kl_R[is_there_R] += tail_R[is_there_R] * (np.log(tail_R[is_there_R]) - decoded["tail_log_mass"][is_there_R])
    return kl_R


@pytest.mark.parametrize("sharpness", [0.5, 1.5, 4.0, 8.0])
@pytest.mark.parametrize("vocabulary", [50, 32_000, 131_072])
def test_eight_bits_a_value_keep_the_distribution(vocabulary: int, sharpness: float) -> None:
    kl_R = _kl_of_storing(_logits(32, vocabulary, sharpness), TopKCodec(20, vocabulary))

    assert kl_R.min() > -1e-6, "no distance is negative: the reference is wrong"
    assert kl_R.max() < 2e-4


@pytest.mark.parametrize(("value_bits", "most"), [(4, 2e-2), (5, 5e-3), (6, 1e-3), (7, 3e-4), (16, 1e-6)])
def test_fewer_bits_lose_more_and_no_more_than_said(value_bits: int, most: float) -> None:
    kl_R = _kl_of_storing(_logits(32, 5_000, 4.0), TopKCodec(20, 5_000, value_bits))

    assert kl_R.max() < most


def test_twenty_of_a_large_vocabulary_take_67_bytes() -> None:
    codec = TopKCodec(20, 131_072)
    encoded = codec.encode(_numpy(top_k_logits(_logits(10, 131_072, 1.5), 20)))

    assert sum(column.nbytes for column in encoded.columns.values()) == 10 * 67


def test_all_classes_may_be_kept_and_then_there_is_no_tail() -> None:
    logits_RV = _logits(8, 10, 2.0)
    codec = TopKCodec(10, 10)

    decoded = codec.decode(codec.encode(_numpy(top_k_logits(logits_RV, 10))), ())

    expected_RV = logits_RV.double().log_softmax(dim=-1).numpy()
    expected_Rk = np.take_along_axis(expected_RV, decoded["indices"].astype(np.int64), axis=1)
    assert np.abs(decoded["log_probs"] - expected_Rk).max() < 0.05
    assert (decoded["tail_log_mass"] == LOG_ZERO).all()


@pytest.mark.parametrize("value_bits", [8, 16])
def test_a_masked_class_keeps_probability_zero_and_spoils_no_other(value_bits: int) -> None:
    logits_RV = torch.tensor([[2.0, 1.0, 0.5, -torch.inf, -torch.inf]])
    codec = TopKCodec(4, 5, value_bits)

    decoded = codec.decode(codec.encode(_numpy(top_k_logits(logits_RV, 4))), ())

    assert decoded["log_probs"][0, 3] == LOG_ZERO
    expected = logits_RV[0, :3].log_softmax(dim=-1).numpy()
    assert np.abs(decoded["log_probs"][0, :3] - expected).max() < 0.01


def test_a_certain_teacher_is_kept_certain() -> None:
    logits_RV = torch.tensor([[50.0, 0.0, -1.0, -2.0]])
    codec = TopKCodec(2, 4)

    decoded = codec.decode(codec.encode(_numpy(top_k_logits(logits_RV, 2))), ())

    assert decoded["log_probs"][0, 0] == pytest.approx(0.0, abs=1e-6)
    assert decoded["log_probs"][0, 1] == pytest.approx(-50.0, rel=1e-3)


def test_every_decoded_row_adds_up_to_one() -> None:
    for codec in (TopKCodec(5, 100, 4), TopKCodec(5, 100), TopKCodec(5, 100, 16)):
        decoded = codec.decode(codec.encode(_numpy(top_k_logits(_logits(50, 100, 2.0), 5))), ())
        total_R = np.exp(decoded["log_probs"]).sum(axis=1) + np.exp(decoded["tail_log_mass"])
        assert np.abs(total_R - 1).max() < 1e-5


def test_encoding_what_was_decoded_changes_nothing() -> None:
    codec = TopKCodec(5, 100)
    once = codec.decode(codec.encode(_numpy(top_k_logits(_logits(50, 100, 2.0), 5))), ())

    twice = codec.decode(codec.encode(once), ())

    assert np.array_equal(twice["indices"], once["indices"])
    assert np.abs(twice["log_probs"] - once["log_probs"]).max() < 1e-3


@pytest.mark.parametrize(("dtype", "most"), [("float16", 5e-4), ("int8", 4.1e-3)])
def test_an_embedding_loses_at_most_half_a_step(dtype: str, most: float) -> None:
    """Half of float16's last place; half of 1/127 of the row's largest value."""
    values_RD = np.random.default_rng(0).standard_normal((20, 64)) * np.logspace(-3, 3, 20)[:, None]
    codec = EmbeddingCodec(dtype)

    decoded_RD = codec.decode(codec.encode({"": values_RD}), (64,))[""]

    largest_R = np.abs(values_RD).max(axis=1, keepdims=True)
    assert (np.abs(decoded_RD - values_RD) / largest_R).max() < most
    assert decoded_RD.dtype == np.float32


def test_many_numbers_are_converted_in_pieces_and_the_seams_do_not_show() -> None:
    values_RD = np.random.default_rng(0).standard_normal((300, 384)).astype(np.float32)
    values_RD.flags.writeable = False
    codec = EmbeddingCodec()

    encoded = codec.encode({"": values_RD})

    assert np.array_equal(encoded.columns["values"], values_RD.astype(np.float16))
    assert np.array_equal(codec.decode(encoded, (384,))[""], values_RD.astype(np.float16).astype(np.float32))


def test_rows_of_zeros_stay_zeros() -> None:
    codec = EmbeddingCodec("int8")
    assert not codec.decode(codec.encode({"": np.zeros((3, 4))}), (4,))[""].any()


def test_features_keep_their_shape() -> None:
    values = np.random.default_rng(0).standard_normal((3, 2, 4, 5)).astype(np.float32)
    codec = FeatureCodec("float32")

    assert np.array_equal(codec.decode(codec.encode({"": values}), (2, 4, 5))[""], values)


@pytest.mark.parametrize("codec", [EmbeddingCodec(), EmbeddingCodec("int8"), FeatureCodec("float32")])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_refused(codec: Codec, bad: float) -> None:
    values = np.ones((3, 4), np.float32)
    values[1, 2] = bad
    with pytest.raises(ValueError, match="finite"):
        codec.encode({"": values})


def test_a_value_that_overflows_half_precision_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="float32"):
        FeatureCodec("float16").encode({"": np.full((1, 2), 1e5)})


def test_broken_log_probabilities_are_refused() -> None:
    codec = TopKCodec(2, 10)
    good = {"indices": np.array([[1, 2]]), "log_probs": np.log([[0.5, 0.3]]), "tail_log_mass": np.log([0.2])}
    codec.encode(good)
    for change, message in (
        ({"log_probs": np.array([[np.nan, -1.0]])}, "NaN"),
        ({"tail_log_mass": np.array([np.nan])}, "NaN"),
        ({"log_probs": np.full((1, 2), LOG_ZERO)}, "above zero"),
        ({"indices": np.array([[1, 10]])}, "below the vocabulary of 10"),
        ({"indices": np.array([[-1, 1]])}, "below the vocabulary of 10"),
        ({"indices": np.array([[1, 2, 3]])}, "k = 2"),
    ):
        with pytest.raises(ValueError, match=message):
            codec.encode(good | change)


def test_samples_come_back_exactly_and_take_room_only_where_drawn() -> None:
    codec = SampledCodec(50, 131_072)
    parts = _numpy(sample_logits(_logits(40, 131_072, 4.0), 50, torch.Generator().manual_seed(1)))

    encoded = codec.encode(parts)
    decoded = codec.decode(encoded, ())

    assert np.array_equal(decoded["indices"], parts["indices"])
    assert np.abs(decoded["log_probs"] - parts["log_probs"]).max() < 1e-6
    assert (decoded["tail_log_mass"] == LOG_ZERO).all()
    assert encoded.slots is not None
    drawn = int((parts["log_probs"] > LOG_ZERO).sum())
    assert encoded.slots.shape == (drawn, 3), "17 bits of index and 6 of count"


def test_shares_that_are_not_of_so_many_draws_are_refused() -> None:
    parts = {"indices": np.array([[1, 2]]), "log_probs": np.log([[0.5, 0.3]]), "tail_log_mass": np.array([LOG_ZERO])}
    with pytest.raises(ValueError, match="10 draws"):
        SampledCodec(10, 100).encode(parts)


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_comes_back_from_its_record(codec: Codec) -> None:
    assert codec_from_json(json.loads(json.dumps(codec_to_json(codec)))) == codec


def test_records_of_different_settings_differ() -> None:
    records = {json.dumps(codec_to_json(codec)) for codec in CODECS}
    assert len(records) == len(CODECS)


@pytest.mark.parametrize("record", [{}, {"kind": "embedding"}, {"kind": "embedding", "version": 99}, {"kind": "zip"}])
def test_an_unknown_record_is_refused(record: dict) -> None:
    with pytest.raises(ValueError, match="known version"):
        codec_from_json(record)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EmbeddingCodec("int4"), "float16 or int8"),
        (lambda: FeatureCodec("bfloat16"), "float16, float32 or int8"),
        (lambda: TopKCodec(0, 10), "k must be"),
        (lambda: TopKCodec(11, 10), r"min\(k, vocabulary\)"),
        (lambda: TopKCodec(2, 2**31), "vocabulary"),
        (lambda: TopKCodec(2, 10, 3), "value_bits"),
        (lambda: SampledCodec(0, 10), "num_samples"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
