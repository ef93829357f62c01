"""WAV files to mono waveforms and log-mel features.

B: batch, N: samples of a waveform, F: frequencies of the transform, M: mel bins, T: frames.

Left out: compressed sound (MP3, FLAC), for which no decoder is among the dependencies.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from limbeck_runtime.data.samples import BadReason, SampleError
from limbeck_runtime.models.preprocessing import AudioPreprocessing

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_MAX_RATE = 192_000
_MAX_CHANNELS = 64
# Taps of the resampling filter to each side of its centre, in samples of the lower rate.
_ZERO_CROSSINGS = 16
# Share of the band that passes; the rest is the filter's slope.
_PASSED_SHARE = 0.97
_MAX_PHASES = 640  # 11,025 Hz to 16,000 Hz
FULL_SCALE = 32767.0  # of decoded sound, int16
# The spectrum of half a minute takes five megabytes.
_SOUNDS_AT_ONCE = 8


@dataclass(frozen=True)
class _Wave:
    rate: int
    samples: np.ndarray  # float32 (N,), mono


def check_audio(data: bytes) -> None:
    """See that a WAV file can be decoded.

    Raises:
        SampleError: it cannot.
    """
    _parse(data)


def decode_audio(data: bytes, target: AudioPreprocessing) -> np.ndarray:
    """Decode to mono int16 (N,) at the target's rate, cut to its chunk."""
    wave = _parse(data)
    longest = round(target.chunk_seconds * target.sampling_rate)
    kept = wave.samples[: math.ceil(target.chunk_seconds * wave.rate) + _ZERO_CROSSINGS]
    resampled = resample(kept, wave.rate, target.sampling_rate)[:longest]
    rounded: np.ndarray = np.round(np.clip(resampled, -1, 1) * FULL_SCALE).astype(np.int16)
    return rounded


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Band-limited resampling (windowed sinc, Hann) of a waveform float32 (N,) to another rate."""
    if rate == wanted:
        return samples
    # The nearest simple ratio: exact for all usual rates, and a strange one in a header cannot ask for a huge filter.
    ratio = Fraction(rate, wanted).limit_denominator(_MAX_PHASES)
    old, new = ratio.numerator, ratio.denominator
    cutoff = min(1.0, new / old) * _PASSED_SHARE
    half = math.ceil(_ZERO_CROSSINGS / cutoff)
    # One filter for each of the `new` phases; output k*new+p lies at input place (k*new+p)*old/new.
    phase_P = np.arange(new) * old / new
    tap_T = np.arange(-half, half + old + 1)
    distance_PT = (tap_T[None, :] - phase_P[:, None]) * cutoff
    angle_PT = np.pi * distance_PT / 2 / _ZERO_CROSSINGS
    window_PT = np.where(np.abs(distance_PT) < _ZERO_CROSSINGS, np.cos(angle_PT) ** 2, 0)
    filters_PT = torch.from_numpy((np.sinc(distance_PT) * window_PT * cutoff).astype(np.float32))
    length = math.ceil(len(samples) * new / old)
    padded = np.pad(samples, (half, half + 2 * old + 1)).astype(np.float32)
    strided = torch.nn.functional.conv1d(torch.from_numpy(padded)[None, None], filters_PT[:, None], stride=old)
    return strided[0].T.reshape(-1)[:length].numpy()


def log_mel(waveforms_BN: torch.Tensor, target: AudioPreprocessing) -> torch.Tensor:
    """Log-mel features float32 (B, M, T) as Whisper wants them (Radford et al., 2022), waveforms in -1..1."""
    starts = range(0, len(waveforms_BN), _SOUNDS_AT_ONCE)
    return torch.cat([_log_mel(waveforms_BN[start : start + _SOUNDS_AT_ONCE], target) for start in starts])


def _log_mel(waveforms_BN: torch.Tensor, target: AudioPreprocessing) -> torch.Tensor:
    window = torch.hann_window(target.fft_size)
    spectrum_BFT = torch.stft(
        waveforms_BN, target.fft_size, target.hop_length, window=window, center=True, return_complex=True
    )
    power_BFT = spectrum_BFT[..., :-1].abs().square()
    mel_BMT = torch.from_numpy(_mel_filters(target)) @ power_BFT
    log_BMT = mel_BMT.clamp(min=1e-10).log10()
    floor_B11 = log_BMT.amax(dim=(1, 2), keepdim=True) - 8.0
    return (torch.maximum(log_BMT, floor_B11) + 4.0) / 4.0


def _mel_filters(target: AudioPreprocessing) -> np.ndarray:
    """Triangles float32 (M, F) evenly spaced on Slaney's mel scale, each of unit area."""
    frequencies_F = np.linspace(0, target.sampling_rate / 2, 1 + target.fft_size // 2)
    highest = _hertz_to_mel(target.sampling_rate / 2)
    edges = _mel_to_hertz(np.linspace(0, highest, target.num_mel_bins + 2))
    slopes = edges[:, None] - frequencies_F[None, :]
    widths = np.diff(edges)
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    triangles = np.maximum(0, np.minimum(rising, falling))
    filters_MF: np.ndarray = (triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)
    return filters_MF


# Slaney's scale: linear up to 1 kHz (15 mel), then logarithmic, 27 mel to a factor of 6.4.
def _hertz_to_mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + math.log(hertz / 1000) * 27 / math.log(6.4)


def _mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    return np.where(mel < 15, 200 * mel / 3, 1000 * np.exp(math.log(6.4) / 27 * (mel - 15)))


def _parse(data: bytes) -> _Wave:
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise SampleError(BadReason.NOT_AUDIO, f"{len(data)} bytes that are no WAV file")
    layout: tuple[int, int, int, int] | None = None
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + size]
        if name == b"fmt " and len(body) >= 16:
            layout = _layout(body)
        elif name == b"data":
            if layout is None:
                break
            if len(body) < size:
                raise SampleError(BadReason.NOT_AUDIO, f"truncated: {len(body)} of {size} bytes of sound")
            return _Wave(layout[1], _mono(body, *layout))
        at += 8 + size + size % 2
    raise SampleError(BadReason.NOT_AUDIO, "a WAV file without format or sound")


def _layout(body: bytes) -> tuple[int, int, int, int]:
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
    if kind == _EXTENSIBLE and len(body) >= 26:
        kind = int.from_bytes(body[24:26], "little")
    known = (kind == _PCM and bits in (8, 16, 24, 32)) or (kind == _FLOAT and bits in (32, 64))
    if not known or not 1 <= channels <= _MAX_CHANNELS or not 1 <= rate <= _MAX_RATE:
        found = f"WAV kind {kind}, {bits} bits, {channels} channels, {rate} Hz"
        raise SampleError(BadReason.NOT_AUDIO, f"{found}: must be PCM or float")
    return kind, rate, channels, bits


def _mono(body: bytes, kind: int, rate: int, channels: int, bits: int) -> np.ndarray:
    frame_bytes = channels * bits // 8
    body = body[: len(body) // frame_bytes * frame_bytes]
    if not body:
        raise SampleError(BadReason.NOT_AUDIO, "a WAV file with no sound in it")
    values: np.ndarray
    if kind == _FLOAT:
        values = np.frombuffer(body, f"<f{bits // 8}").astype(np.float32)
        if not np.isfinite(values).all():
            raise SampleError(BadReason.NOT_AUDIO, "sound with values that are not finite")
    elif bits == 8:
        values = (np.frombuffer(body, np.uint8).astype(np.float32) - 128) / 128
    elif bits == 24:
        bytes_N3 = np.frombuffer(body, np.uint8).reshape(-1, 3).astype(np.int32)
        unsigned = bytes_N3[:, 0] | bytes_N3[:, 1] << 8 | bytes_N3[:, 2] << 16
        values = ((unsigned ^ 0x800000) - 0x800000).astype(np.float32) / 2**23
    else:
        values = np.frombuffer(body, f"<i{bits // 8}").astype(np.float32) / np.float32(2 ** (bits - 1))
    mono: np.ndarray = values.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return mono
