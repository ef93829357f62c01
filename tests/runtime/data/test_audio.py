"""WAV files: all their encodings, and features as the transformers library computes them for Whisper."""

from __future__ import annotations

import io
import struct
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.api.v1alpha1.data import Columns, DataFormat
from limbeck_runtime.data.audio import check_audio, decode_audio, log_mel, resample
from limbeck_runtime.data.loader import BatchLoader
from limbeck_runtime.data.samples import BadReason, SampleError
from limbeck_runtime.models.preprocessing import AudioPreprocessing, Preprocessing


def _tone(rate: int, seconds: float = 0.25, hertz: float = 440.0) -> np.ndarray:
    tone: np.ndarray = (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(np.float32)
    return tone


def _wav(samples: np.ndarray, rate: int = 16_000, bits: int = 16, channels: int = 1, kind: int = 1) -> bytes:
    if kind == 3:
        body = samples.astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        body = np.round(samples * 127 + 128).astype(np.uint8).tobytes()
    else:
        whole = np.round(samples.astype(np.float64) * (2 ** (bits - 1) - 1)).astype("<i8")
        body = whole.view(np.uint8).reshape(-1, 8)[:, : bits // 8].tobytes()
    frame = channels * bits // 8
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, channels, rate, rate * frame, frame, bits)
    chunks = b"WAVE" + layout + b"LIST\x03\0\0\0abc\0" + struct.pack("<4sI", b"data", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


@pytest.mark.parametrize(("bits", "kind"), [(8, 1), (16, 1), (24, 1), (32, 1), (32, 3), (64, 3)])
def test_all_encodings_of_a_tone_give_the_same_samples(bits: int, kind: int) -> None:
    tone = _tone(16_000)
    decoded = decode_audio(_wav(tone, bits=bits, kind=kind), AudioPreprocessing())
    assert np.abs(decoded / 32767 - tone).max() < (0.01 if bits == 8 else 1e-4)


def test_a_file_of_the_standard_library_is_read_and_channels_are_averaged() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.writeframes(np.array([[1000, 3000], [-500, 500]], "<i2").tobytes())
    assert decode_audio(file.getvalue(), AudioPreprocessing()).tolist() == [2000, 0]


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 44_101])
def test_resampling_keeps_a_tone(rate: int) -> None:
    found = resample(_tone(rate), rate, 16_000)
    expected = _tone(16_000)
    assert len(found) == pytest.approx(len(expected), abs=2)
    inner = slice(200, 3700)
    assert np.abs(found[inner] - expected[inner]).max() < 5e-3


def test_resampling_takes_away_what_the_lower_rate_cannot_hold() -> None:
    found = resample(_tone(48_000, hertz=12_000), 48_000, 16_000)
    assert np.abs(found[200:-200]).max() < 5e-3


def test_sound_is_cut_to_the_chunk() -> None:
    target = AudioPreprocessing(chunk_seconds=0.1)
    assert len(decode_audio(_wav(_tone(16_000)), target)) == 1600


def test_features_are_those_of_the_transformers_library() -> None:
    from transformers import WhisperFeatureExtractor

    target = AudioPreprocessing(chunk_seconds=1.0)
    waveform = np.zeros((2, 16_000), np.float32)
    waveform[0, :4000] = _tone(16_000)
    waveform[1] = np.random.default_rng(0).normal(0, 0.1, 16_000)
    theirs = WhisperFeatureExtractor(feature_size=80, chunk_length=1)(
        list(waveform), sampling_rate=16_000, return_tensors="np"
    )["input_features"]
    ours = log_mel(torch.from_numpy(waveform), target).numpy()
    assert ours.shape == theirs.shape == (2, 80, 100)
    assert np.abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ID3 some mp3",
        _wav(_tone(16_000))[:-100],
        _wav(np.zeros(0, np.float32)),
        _wav(_tone(16_000), rate=0),
        _wav(_tone(16_000), channels=0),
        _wav(np.full(100, np.nan, np.float32), bits=32, kind=3),
        _wav(_tone(16_000), kind=0x55),
        _wav(_tone(16_000))[:44],
    ],
)
def test_what_is_no_usable_sound_is_refused(data: bytes) -> None:
    with pytest.raises(SampleError) as refusal:
        check_audio(data)
    assert refusal.value.reason is BadReason.NOT_AUDIO


def test_batches_hold_features_padded_to_the_chunk(builders: Any, tmp_path: Path) -> None:
    data_set = builders.data_set(DataFormat.WEB_DATASET)
    data_set.columns = Columns(audio="wav")
    data_set.add(
        "d",
        {
            "k0": {"wav": _wav(_tone(8_000), rate=8_000)},
            "k1": {"wav": _wav(_tone(16_000, seconds=0.5))},
            "k2": {"wav": b"none"},
        },
    )
    index = data_set.index(max_bad_samples_percent=40)
    assert [(bad.key, bad.reason) for bad in index.bad] == [("k2", BadReason.NOT_AUDIO)]
    target = AudioPreprocessing(chunk_seconds=1.0)
    with BatchLoader(index, Preprocessing(audio=target)) as loader:
        features = loader.batch(index.positions()).inputs["input_features"]
    assert features.shape == (2, 80, 100)
    alone = np.zeros((1, 16_000), np.float32)
    alone[0, :8000] = np.round(_tone(16_000, seconds=0.5) * 32767) / 32767
    assert torch.allclose(features[1:], log_mel(torch.from_numpy(alone), target), atol=1e-3)
