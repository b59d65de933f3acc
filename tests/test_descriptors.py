import math
from dataclasses import replace

import librosa
import numpy as np
import pytest

from features.descriptors import (
    MAJOR_PROFILE,
    MINOR_PROFILE,
    STATISTICS,
    DescriptorSpec,
    describe,
    descriptor_names,
    frame_features,
    frame_names,
    key_correlations,
    onset_tempo,
)

SPEC = DescriptorSpec()
RATE = SPEC.sample_rate
NAMES = descriptor_names(SPEC)


def sine(frequency: float, duration_s: float, amplitude: float = 1.0) -> np.ndarray:
    time = np.arange(round(duration_s * RATE)) / RATE
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def noise(duration_s: float, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(duration_s * RATE))).astype(np.float32)


def clicks(tempo_bpm: float, duration_s: float = 20.0) -> np.ndarray:
    signal = np.zeros(round(duration_s * RATE), np.float32)
    tick = (np.sin(2 * np.pi * 1500 * np.arange(600) / RATE) * np.hanning(600)).astype(np.float32)
    for onset_s in np.arange(0, duration_s - 0.1, 60 / tempo_bpm):
        start = int(onset_s * RATE)
        signal[start : start + len(tick)] += tick
    return signal


def scale(pitches: list[int], weights: list[float]) -> np.ndarray:
    notes = [sine(440 * 2 ** ((pitch - 69) / 12), 0.4 * weight, 0.3) for pitch, weight in zip(pitches, weights, strict=True)]
    return np.concatenate(notes)


def described(signal: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, describe(signal, SPEC).tolist(), strict=True))


def test_535_names_once_each():
    assert len(NAMES) == len(set(NAMES)) == 535
    values = describe(noise(2), SPEC)
    assert (values.shape, values.dtype) == ((535,), np.dtype(np.float32))


def test_names_and_values_are_in_the_same_order():
    signal = noise(3) + clicks(100, 3)
    frames, chroma = frame_features(signal, SPEC)
    named = described(signal)
    summaries = {
        "mean": np.mean,
        "std": np.std,
        "p10": lambda x: np.percentile(x, 10),
        "p90": lambda x: np.percentile(x, 90),
        "mad": lambda x: np.abs(np.diff(x)).mean(),
    }
    assert tuple(summaries) == STATISTICS
    assert frames.shape == (1 + len(signal) // 1024, len(frame_names(SPEC)))
    for k, feature in enumerate(frame_names(SPEC)):
        for statistic, summary in summaries.items():
            expected = summary(frames[:, k].astype(float))
            assert named[f"{feature}_{statistic}"] == pytest.approx(expected, rel=1e-3, abs=1e-4), (feature, statistic)
    profile = chroma.mean(axis=0)
    peak = int(np.argmax(profile))
    for k in range(12):
        assert named[f"chroma_rolled{k:02d}"] == pytest.approx(profile[(k + peak) % 12], rel=1e-5)
        assert named[f"chroma_std{k:02d}"] == pytest.approx(chroma[:, k].std(), rel=1e-4)
    assert named["key_major_minus_minor"] == pytest.approx(named["key_major_r"] - named["key_minor_r"], abs=1e-6)
    assert (named["tempo_bpm"], named["tempo_height"], named["tempo_std"]) == pytest.approx(onset_tempo(frames[:, -1], SPEC))


def test_frames_are_those_of_librosa():
    signal = noise(3) + sine(500, 3) * np.linspace(0, 1, 3 * RATE, dtype=np.float32)
    frames, _ = frame_features(signal, SPEC)
    magnitude = np.abs(librosa.stft(signal, n_fft=2048, hop_length=1024))
    mel = librosa.power_to_db(librosa.feature.melspectrogram(S=magnitude**2, sr=RATE, n_mels=64))
    expected = {
        "mel": mel,
        "mfcc": librosa.feature.mfcc(S=mel, n_mfcc=20),
        "contrast": librosa.feature.spectral_contrast(S=magnitude, sr=RATE, n_bands=5),
        "centroid": librosa.feature.spectral_centroid(S=magnitude, sr=RATE),
        "rolloff": librosa.feature.spectral_rolloff(S=magnitude, sr=RATE),
        "flatness": librosa.feature.spectral_flatness(S=magnitude),
        "rms": librosa.feature.rms(S=magnitude),
        "onset": np.pad(np.maximum(np.diff(mel, axis=1), 0).mean(axis=0), (1, 0))[None],
    }
    for family, rows in expected.items():
        columns = [k for k, name in enumerate(frame_names(SPEC)) if name.rstrip("0123456789") == family]
        np.testing.assert_allclose(frames[:, columns].T, rows, rtol=1e-3, atol=1e-2 if family != "rms" else 1e-5)


def test_a_sine_is_heard_where_it_is():
    named = described(sine(1000, 5, 0.5))
    assert named["centroid_mean"] == pytest.approx(1000, rel=0.01)
    assert named["rolloff_mean"] == pytest.approx(1000, abs=2 * RATE / 2048)
    assert named["flatness_mean"] < 1e-4 < described(noise(2))["flatness_mean"]
    bands = [named[f"mel{k:02d}_mean"] for k in range(64)]
    centres = librosa.mel_frequencies(66, fmin=0, fmax=RATE / 2)[1:-1]
    assert int(np.argmax(bands)) == int(np.argmin(np.abs(centres - 1000)))


def test_rms_is_that_of_the_windowed_signal():
    # From the spectrogram: A/√2 times the RMS of a Hann window, √(3/8)
    named = described(sine(1000, 10, 0.5))
    assert named["rms_p10"] == pytest.approx(0.5 / math.sqrt(2) * math.sqrt(3 / 8), rel=1e-3)
    assert named["rms_std"] < 0.05 * named["rms_mean"]
    assert described(sine(1000, 10, 0.25))["rms_mean"] == pytest.approx(named["rms_mean"] / 2, rel=1e-4)


@pytest.mark.parametrize("tempo_bpm", [80, 100, 120, 150])
def test_tempo_of_a_click_track(tempo_bpm):
    named = described(clicks(tempo_bpm))
    assert named["tempo_bpm"] == pytest.approx(tempo_bpm, rel=0.02)
    assert named["tempo_height"] > 0.6


def test_silence_has_no_tempo_and_no_key():
    named = described(np.zeros(5 * RATE, np.float32))
    assert (named["tempo_bpm"], named["tempo_height"], named["tempo_std"]) == (0, 0, 0)
    assert (named["key_major_r"], named["key_minor_r"]) == (0, 0)
    assert named["rms_mean"] == 0


def test_one_impulse_has_no_tempo():
    signal = np.zeros(5 * RATE, np.float32)
    signal[50_000] = 1
    assert described(signal)["tempo_bpm"] == 0


@pytest.mark.parametrize("transposition", [0, 5, 11])
def test_a_major_scale_sounds_major_and_a_minor_scale_minor(transposition):
    long_tonic = [2.0, 1, 1.2, 1, 1.5, 1, 1, 2]
    major = described(scale([p + transposition for p in (60, 62, 64, 65, 67, 69, 71, 72)], long_tonic))
    minor = described(scale([p + transposition for p in (60, 62, 63, 65, 67, 68, 71, 72)], long_tonic))
    assert major["key_major_r"] > major["key_minor_r"]
    assert major["key_major_r"] > 0.7
    assert minor["key_minor_r"] > minor["key_major_r"]


@pytest.mark.parametrize("shift", range(12))
def test_a_key_profile_correlates_with_itself_in_every_key(shift):
    major, minor = key_correlations(np.roll(MAJOR_PROFILE, shift))
    assert major == pytest.approx(1)
    assert minor < 0.99
    assert key_correlations(np.roll(MINOR_PROFILE, shift))[1] == pytest.approx(1)


def test_chroma_is_rolled_to_its_peak():
    for frequency in (261.63, 440.0):
        named = described(sine(frequency, 3))
        rolled = [named[f"chroma_rolled{k:02d}"] for k in range(12)]
        assert rolled[0] == pytest.approx(1, abs=0.01)
        assert max(rolled[2:11]) < 0.2


def assert_blocks_change_nothing(signal: np.ndarray, block_frames: int) -> None:
    whole = describe(signal, replace(SPEC, block_frames=len(signal)))
    blocks = describe(signal, replace(SPEC, block_frames=block_frames))
    np.testing.assert_allclose(blocks, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block_frames", [1, 7, 64])
def test_block_size_changes_nothing(block_frames):
    assert_blocks_change_nothing(np.concatenate((noise(2), noise(2) * np.float32(1e-3), sine(300, 2) + noise(2))), block_frames)


def test_block_size_changes_nothing_between_clean_tones():
    assert_blocks_change_nothing(np.concatenate((noise(2), clicks(120, 2))), 7)


@pytest.mark.parametrize("duration_s", [0.001, 0.5, 3.0])
@pytest.mark.parametrize(
    "shape_of",
    [
        np.zeros_like,
        np.ones_like,  # DC
        lambda t: (np.arange(len(t)) == len(t) // 2).astype(float),  # one impulse
        lambda t: np.sign(np.sin(2 * np.pi * 441 * t) + 1e-9),  # full-scale square wave
        lambda t: (-1.0) ** np.arange(len(t)),  # Nyquist
        lambda t: 1e-42 * np.sin(2 * np.pi * 441 * t),  # denormal
        lambda t: np.where(np.arange(len(t)) < len(t) // 2, np.sin(2 * np.pi * 441 * t), 0),  # falls silent
    ],
    ids=["silence", "dc", "impulse", "square", "nyquist", "denormal", "half_silent"],
)
def test_extreme_signals_give_finite_numbers(shape_of, duration_s):
    signal = shape_of(np.arange(max(1, int(duration_s * RATE))) / RATE).astype(np.float32)
    assert np.isfinite(describe(signal, SPEC)).all()


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (np.zeros((2, 30_000), np.float32), "has 2 dimensions"),
        (np.zeros(0, np.float32), "is empty"),
        (np.full(30_000, np.inf, np.float32), "NaN or infinite"),
    ],
)
def test_bad_signals_are_refused(signal, message):
    with pytest.raises(ValueError, match=message):
        describe(signal, SPEC)


def test_spectral_contrast_is_librosas_within_one_block():
    spec = DescriptorSpec()
    signal = (noise(3) * np.linspace(0.05, 1, 3 * RATE)).astype(np.float32)
    rows = [name.startswith("contrast") for name in frame_names(spec)]
    magnitude = np.abs(librosa.stft(signal, n_fft=spec.n_fft, hop_length=spec.hop_length))
    expected = librosa.feature.spectral_contrast(S=magnitude, sr=RATE, n_bands=spec.contrast_bands)
    np.testing.assert_allclose(frame_features(signal, spec)[0][:, rows].T, expected, atol=1e-3)


def test_a_level_in_the_spec_makes_gain_irrelevant() -> None:
    spec = replace(SPEC, rms=0.1)
    signal = noise(2) + clicks(100, 2)
    np.testing.assert_allclose(describe(signal * np.float32(0.25), spec), describe(signal, spec), rtol=1e-3, atol=1e-3)
    assert np.abs(describe(signal * np.float32(0.25), SPEC) - describe(signal, SPEC)).max() > 10
