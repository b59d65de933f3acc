import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import librosa
import numpy as np
import pytest

from features.spectrogram import (
    LogFrequencySpec,
    MelMfccContrastSpec,
    MelSpec,
    StftSpec,
    TaggerMelSpec,
    log_frequency_frames,
    log_frequency_windows,
    logarithmic_filterbank,
    mel_mfcc_contrast_windows,
    mel_windows,
    stft_windows,
    tagger_mel_windows,
)
from features.windows import leveled

Signal = np.ndarray


@dataclass(frozen=True)
class FrontEnd:
    windows: Callable[[Signal, Any], Iterator[np.ndarray]]
    spec: Any
    shape: tuple[int, int]


FRONT_ENDS = {
    "stft": FrontEnd(stft_windows, StftSpec(), (256, 1292)),
    "log_frequency": FrontEnd(log_frequency_windows, LogFrequencySpec(), (313, 149)),
    "mel": FrontEnd(mel_windows, MelSpec(), (128, 300)),
    "mel_mfcc_contrast": FrontEnd(mel_mfcc_contrast_windows, MelMfccContrastSpec(), (155, 259)),
}


@pytest.fixture(params=FRONT_ENDS)
def front_end(request) -> FrontEnd:
    return FRONT_ENDS[request.param]


def sine(frequency: float, duration_s: float, sample_rate: int, amplitude: float = 1.0) -> Signal:
    time = np.arange(round(duration_s * sample_rate)) / sample_rate
    return (amplitude * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def noise(n_samples: int, seed: int = 0) -> Signal:
    return (0.1 * np.random.default_rng(seed).standard_normal(n_samples)).astype(np.float32)


def slaney_mel(frequency: float) -> float:
    return 3 * frequency / 200 if frequency < 1000 else 15 + 27 * math.log(frequency / 1000) / math.log(6.4)


def nearest_mel_band(frequency: float, n_mels: int, f_min: float, f_max: float) -> int:
    centres = np.linspace(slaney_mel(f_min), slaney_mel(f_max), n_mels + 2)[1:-1]
    return int(np.argmin(np.abs(centres - slaney_mel(frequency))))


# every front end


def test_shapes_and_windows(front_end):
    length = front_end.spec.window_length
    for n_samples, count in ((length // 3, 1), (length, 1), (length + length // 3, 1), (2 * length - length // 3, 2)):
        windows = list(front_end.windows(noise(n_samples), front_end.spec))
        assert [window.shape for window in windows] == [front_end.shape] * count
        assert {window.dtype for window in windows} == {np.dtype(np.float32)}


def test_a_kept_remainder_is_padded_with_zeros_at_its_end(front_end):
    length = front_end.spec.window_length
    signal = noise(2 * length - length // 3)
    padded = np.concatenate((signal, np.zeros(2 * length - len(signal), np.float32)))
    for window, expected in zip(
        front_end.windows(signal, front_end.spec), front_end.windows(padded, front_end.spec), strict=True
    ):
        np.testing.assert_array_equal(window, expected)


@pytest.mark.parametrize("name", ["stft", "mel", "mel_mfcc_contrast"])
def test_windows_do_not_see_each_other(name):
    front_end = FRONT_ENDS[name]
    length = front_end.spec.window_length
    signal = noise(2 * length)
    together = list(front_end.windows(signal, front_end.spec))
    alone = [*front_end.windows(signal[:length], front_end.spec), *front_end.windows(signal[length:], front_end.spec)]
    np.testing.assert_array_equal(together, alone)


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
@pytest.mark.parametrize("duration_s", [0.001, 0.5, 3.0])
def test_extreme_signals_give_finite_numbers(front_end, shape_of, duration_s):
    n_samples = max(1, int(duration_s * front_end.spec.sample_rate))
    signal = shape_of(np.arange(n_samples) / front_end.spec.sample_rate).astype(np.float32)
    (window,) = front_end.windows(signal, front_end.spec)
    assert np.isfinite(window).all()


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (np.zeros((2, 30_000), np.float32), "has 2 dimensions"),
        (np.zeros(0, np.float32), "is empty"),
        (np.full(30_000, np.nan, np.float32), "NaN or infinite"),
    ],
)
def test_bad_signals_are_refused(front_end, signal, message):
    with pytest.raises(ValueError, match=message):
        list(front_end.windows(signal, front_end.spec))


def test_the_signal_is_left_as_it_was(front_end):
    signal = noise(front_end.spec.window_length)
    before = signal.copy()
    list(front_end.windows(signal, front_end.spec))
    np.testing.assert_array_equal(signal, before)


# decibel STFT of the mid-level network


@pytest.mark.parametrize(("stft_bin", "amplitude"), [(24, 1.0), (100, 0.25)])
def test_stft_puts_a_sine_in_its_bin_at_its_level(stft_bin, amplitude):
    spec = StftSpec()
    (window,) = stft_windows(sine(stft_bin * 22_050 / 512, 15, 22_050, amplitude), spec)
    middle = window[:, 600]
    assert int(np.argmax(middle)) == stft_bin
    # A sine of amplitude A between bins of a Hann window: A · sum(window) / 2 in its bin, half of that beside it
    assert middle[stft_bin] == pytest.approx(20 * math.log10(amplitude * 256 / 2), abs=0.01)
    assert middle[stft_bin + 1] == pytest.approx(middle[stft_bin] - 20 * math.log10(2), abs=0.02)
    assert middle[stft_bin + 10] == pytest.approx(window.max() - 80, abs=0.01)


def test_stft_decibels_are_those_of_librosa():
    signal = noise(330_750)
    signal[200_000:] = 0
    (window,) = stft_windows(signal, StftSpec())
    magnitude = np.abs(librosa.stft(signal, n_fft=512, hop_length=256))[:256]
    expected = librosa.amplitude_to_db(magnitude, ref=1.0, amin=1e-5, top_db=80)
    np.testing.assert_allclose(window, expected, atol=1e-4)
    assert window[:, -1] == pytest.approx(window.max() - 80)


def test_stft_frames_are_centred_on_multiples_of_the_hop():
    signal = np.zeros(330_750, np.float32)
    signal[256 * 1000] = 1
    (window,) = stft_windows(signal, StftSpec())
    assert np.flatnonzero(window[10] > window.min() + 1).tolist() == [1000]  # a Hann window ends a hop away
    assert window[10, 1000] == pytest.approx(0, abs=0.01)


def test_stft_floor_of_silence():
    (window,) = stft_windows(np.zeros(330_750, np.float32), StftSpec())
    np.testing.assert_allclose(window, -100, atol=1e-4)


# logarithmic-frequency spectrogram of the film-emotion networks


def expected_edges() -> list[int]:
    bins = set()
    for k in range(-200, 200):
        centre = 440 * 2 ** (k / 24)
        if 20 <= centre <= 16_000:
            bins.add(min(range(1024), key=lambda b: abs(b * 22_050 / 2048 - centre)))
    return sorted(bins)


def test_filterbank_has_151_edges_and_149_triangles():
    edges = expected_edges()
    filters = logarithmic_filterbank(LogFrequencySpec())
    assert (len(edges), filters.shape) == (151, (1024, 149))
    assert edges[-1] == 1023
    np.testing.assert_allclose(filters.sum(axis=0), 1, rtol=1e-6)
    assert (filters >= 0).all()
    for band, (low, centre, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        assert np.flatnonzero(filters[:, band]).tolist() == list(range(low + 1, high))
        assert np.argmax(filters[:, band]) == centre
        if high - centre > 1:  # the fall is a straight line
            halfway = filters[centre + 1, band] / filters[centre, band]
            assert halfway == pytest.approx(1 - 1 / (high - centre), rel=1e-5)


@pytest.mark.parametrize("frequency", [110.0, 440.0, 3520.0, 9000.0])
def test_log_frequency_puts_a_sine_in_its_band(frequency):
    centres = expected_edges()[1:-1]
    (window,) = log_frequency_windows(sine(frequency, 10, 22_050, 0.3), LogFrequencySpec())
    band = int(np.argmin(np.abs(np.array(centres) - frequency * 2048 / 22_050)))
    assert int(np.argmax(window[150])) == band


def test_log_frequency_against_a_plain_computation():
    signal = noise(100_000)
    (window,) = log_frequency_windows(signal, LogFrequencySpec())
    edges = expected_edges()
    padded = np.pad(signal.astype(float) / np.abs(signal).max(), (1024, 250_000))
    for frame in (0, 1, 77, 141, 200):
        at = round(frame * 22_050 / 31.25)
        magnitude = np.abs(np.fft.rfft(padded[at : at + 2048] * np.hanning(2048)))
        for band in (0, 30, 148):
            low, centre, high = edges[band : band + 3]
            triangle = np.interp(np.arange(1025), [low, centre, high], [0, 1, 0])
            expected = math.log10(1 + magnitude @ triangle / triangle.sum())
            assert window[frame, band] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("offset", [-512, 512])
@pytest.mark.parametrize("frame", [1, 3, 157, 300])
def test_frame_positions_are_rounded_not_the_hop(frame, offset):
    at = round(frame * 705.6) + offset
    signal = np.zeros(220_500, np.float32)
    signal[at] = 0.5
    (window,) = log_frequency_windows(signal, LogFrequencySpec())
    # The spectrum of an impulse is flat: every band of unit area shows the window's value at the impulse
    np.testing.assert_allclose(window[frame], math.log10(1 + np.hanning(2048)[1024 + offset]), atol=2e-6)


@pytest.mark.parametrize("frame", [0, 3, 300, 3000])
def test_an_impulse_peaks_in_its_frame_however_late(frame):
    signal = np.zeros(round(frame * 705.6) + 5000, np.float32)
    signal[round(frame * 705.6)] = 1
    frames = log_frequency_frames(signal, LogFrequencySpec(), start=0, count=frame + 5, peak=1.0)
    assert int(np.argmax(frames[:, 70])) == frame
    np.testing.assert_allclose(frames[frame], math.log10(2), atol=2e-6)


def test_windows_are_slices_of_the_frames_of_the_whole_track():
    spec = LogFrequencySpec()
    signal = noise(round(3.7 * spec.window_length))
    signal[-5] = 0.9  # the peak of the track, in its last window
    frames = log_frequency_frames(signal, spec, start=0, count=1260, peak=0.9)
    windows = list(log_frequency_windows(signal, spec))
    assert len(windows) == 4
    for window, start in zip(windows, (0, 312, 625, 938), strict=True):  # frame at 10 s · 31.25, ties to even
        np.testing.assert_allclose(window, frames[start : start + 313], atol=1e-6)


def test_log_frequency_does_not_depend_on_the_level():
    signal = noise(220_500)
    (window,) = log_frequency_windows(signal, LogFrequencySpec())
    (quiet,) = log_frequency_windows(signal * np.float32(1e-3), LogFrequencySpec())
    np.testing.assert_allclose(quiet, window, atol=1e-5)
    assert not any(w.any() for w in log_frequency_windows(np.zeros(220_500, np.float32), LogFrequencySpec()))


# mel spectrogram of the CRNN


@pytest.mark.parametrize("frequency", [220.0, 1000.0, 5000.0])
def test_mel_puts_a_sine_in_its_band(frequency):
    (window,) = mel_windows(sine(frequency, 5, 22_050, 0.5), MelSpec())
    assert int(np.argmax(window[:, 100])) == nearest_mel_band(frequency, 128, 0, 11_025)


def test_mel_is_z_scored_in_its_frames_and_zero_behind():
    (window,) = mel_windows(noise(110_250), MelSpec())
    assert window[:, :216].mean() == pytest.approx(0, abs=1e-5)
    assert window[:, :216].std() == pytest.approx(1, abs=1e-4)
    assert window[:, 215].any()
    assert not window[:, 216:].any()


def test_mel_against_librosa():
    signal = noise(110_250) + sine(300, 5, 22_050)
    (window,) = mel_windows(signal, MelSpec())
    decibel = librosa.power_to_db(librosa.feature.melspectrogram(y=signal, sr=22_050, n_mels=128), ref=np.max)
    np.testing.assert_allclose(window[:, :216], (decibel - decibel.mean()) / decibel.std(), atol=1e-3)


def test_mel_of_silence_is_zero():
    (window,) = mel_windows(np.zeros(110_250, np.float32), MelSpec())
    assert not window.any()


# log-mel, MFCC and spectral contrast of the emotion CNN


def test_emotion_rows_are_those_of_librosa():
    signal = noise(132_300) + sine(700, 3, 44_100) * np.linspace(0, 1, 132_300, dtype=np.float32)
    (window,) = mel_mfcc_contrast_windows(signal, MelMfccContrastSpec())
    stft = {"n_fft": 2048, "hop_length": 512}
    power = librosa.feature.melspectrogram(y=signal, sr=44_100, n_mels=128, fmin=20, fmax=8000, **stft)
    np.testing.assert_allclose(window[:128], librosa.power_to_db(power, ref=np.max), atol=1e-3)
    mfcc = librosa.feature.mfcc(y=signal, sr=44_100, n_mfcc=20, **stft)
    np.testing.assert_allclose(window[128:148], mfcc, atol=1e-2)
    contrast = librosa.feature.spectral_contrast(y=signal, sr=44_100, **stft)
    np.testing.assert_allclose(window[148:], contrast, atol=1e-3)


def test_emotion_mel_rows_put_a_sine_in_its_band_at_0_db():
    (window,) = mel_mfcc_contrast_windows(sine(1500, 3, 44_100, 0.2), MelMfccContrastSpec())
    assert int(np.argmax(window[:128, 130])) == nearest_mel_band(1500, 128, 20, 8000)
    assert window[:128].max() == pytest.approx(0, abs=1e-4)
    assert window[:128].min() >= -80.001


def test_contrast_is_high_for_a_tone_and_low_for_noise():
    spec = MelMfccContrastSpec()
    (tone,) = mel_mfcc_contrast_windows(sine(600, 3, 44_100) + noise(132_300) * np.float32(1e-3), spec)
    (hiss,) = mel_mfcc_contrast_windows(noise(132_300), spec)
    octave = 148 + 2  # rows: below 200 Hz, 200-400 Hz, 400-800 Hz
    assert tone[octave].mean() > hiss[octave].mean() + 20


def test_tagger_mel_is_that_of_the_whole_leveled_track() -> None:
    spec = TaggerMelSpec()
    signal = (0.02 * np.random.default_rng(0).standard_normal(2 * spec.window_length + 30_000)).astype(np.float32)
    windows = list(tagger_mel_windows(signal, spec))
    assert [window.shape for window in windows] == [(187, 96)] * 2  # the remainder is dropped
    assert len(list(tagger_mel_windows(signal[:20_000], spec))) == 1  # unless it is all there is: padded
    at_level = signal * np.float32(spec.rms / np.sqrt(np.mean(signal.astype(float) ** 2)))
    power = librosa.feature.melspectrogram(y=at_level, sr=16_000, n_fft=512, hop_length=256, n_mels=96)
    np.testing.assert_allclose(np.concatenate(windows), np.log10(1 + 10_000 * power.T[: 2 * 187]), atol=1e-4)
    louder = list(tagger_mel_windows(signal * np.float32(8), spec))
    np.testing.assert_allclose(louder, windows, atol=1e-4)


def test_silence_keeps_its_level() -> None:
    assert not leveled(np.zeros(100, np.float32), 0.1).any()
