"""The five spectrogram front ends of the networks.

Conventions
-----------
A front end is a frozen spec (units in the comments) and a pure generator `(signal, spec) -> windows`: the signal is mono float32
at `spec.sample_rate`; each window is one float32 array whose axes are written in the docstring; windows lie as `features.windows`
says. Nothing is resampled here.

Sources: the founding documents of the models (mid-level salience network; Chowdhury et al., ISMIR 2019; emotion CNN; multi-task
CRNN); Böck et al., "madmom", 2016, for the logarithmic filterbank; Pons & Serra, "musicnn", 2019, for the tagger's mel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import librosa
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from features.windows import Signal, check_signal, cut, leveled, plan_windows

Array = NDArray[np.float32]


@dataclass(frozen=True)
class StftSpec:
    """Decibel STFT of the mid-level network: 15-s windows of 256 bins × 1292 frames."""

    version: int = 1  # of the code: raised whenever it changes a result
    sample_rate: int = 22_050  # Hz
    window_length: int = 330_750  # samples: 15 s
    n_fft: int = 512  # samples, Hann
    hop_length: int = 256  # samples, frames centred, zeros beyond the window's edges
    n_bins: int = 256  # of 257: the Nyquist bin is dropped
    reference: float = 1.0  # amplitude of 0 dB
    amin: float = 1e-5  # amplitude floor: -100 dB
    top_db: float = 80.0  # dB below the window's maximum

    @property
    def n_frames(self) -> int:
        """Frames a window."""
        return 1 + self.window_length // self.hop_length


@dataclass(frozen=True)
class LogFrequencySpec:
    """Logarithmic-frequency spectrogram of the film-emotion networks: 10-s windows of 313 frames × 149 bands."""

    version: int = 1  # of the code: raised whenever it changes a result
    sample_rate: int = 22_050  # Hz
    window_length: int = 220_500  # samples: 10 s
    frame_length: int = 2_048  # samples, Hann
    frame_rate: float = 31.25  # frames a second: a hop of 705.6 samples, frame centres rounded to whole samples
    n_frames: int = 313  # a window
    f_min: float = 20.0  # Hz
    f_max: float = 16_000.0  # Hz: upper end of the centre frequencies before they are mapped to bins below Nyquist
    bands_per_octave: int = 24
    reference_hz: float = 440.0
    normalization: str = "track peak"  # the signal is divided by its largest magnitude


@dataclass(frozen=True)
class MelSpec:
    """Mel spectrogram of the CRNN: 5-s chunks of 128 bands × 216 frames, z-scored, padded to 300 frames."""

    version: int = 1  # of the code: raised whenever it changes a result
    sample_rate: int = 22_050  # Hz
    window_length: int = 110_250  # samples: 5 s
    n_fft: int = 2_048  # samples, Hann, centred
    hop_length: int = 512  # samples
    n_mels: int = 128  # Slaney, 0 Hz to Nyquist
    top_db: float = 80.0  # dB below the chunk's maximum
    padded_frames: int = 300  # zeros (the chunk's mean) behind the chunk's own frames


@dataclass(frozen=True)
class MelMfccContrastSpec:
    """Log-mel, MFCC and spectral contrast of the emotion CNN: 3-s segments of 155 rows × 259 frames."""

    version: int = 1  # of the code: raised whenever it changes a result
    sample_rate: int = 44_100  # Hz
    window_length: int = 132_300  # samples: 3 s
    n_fft: int = 2_048  # samples, Hann, centred
    hop_length: int = 512  # samples
    n_mels: int = 128  # rows 0..127: 20-8000 Hz, dB re the segment's maximum
    f_min: float = 20.0  # Hz
    f_max: float = 8_000.0  # Hz
    n_mfcc: int = 20  # rows 128..147: from 128 mel bands up to Nyquist, dB re 1
    n_contrast: int = 7  # rows 148..154: six octaves from 200 Hz and the rest below
    top_db: float = 80.0  # dB below the segment's maximum


@dataclass(frozen=True)
class TaggerMelSpec:
    """Log-mel of the tagging network behind `best`: 3-s windows of 187 frames × 96 bands."""

    version: int = 1  # of the code: raised whenever it changes a result
    sample_rate: int = 16_000  # Hz
    window_length: int = 47_872  # samples: 187 hops
    n_fft: int = 512  # samples, Hann, centred, zeros beyond the track's ends
    hop_length: int = 256  # samples
    n_frames: int = 187  # a window
    n_mels: int = 96  # Slaney, 0 Hz to Nyquist
    compression: float = 10_000.0  # log10(1 + compression · power)
    rms: float = 0.1  # root mean square that the track is brought to: a gain changes nothing


def stft_windows(signal: Signal, spec: StftSpec) -> Iterator[Array]:
    """Yield the decibel STFT of each window, shape (bin, frame) = (256, 1292), dB re amplitude 1.

    ``S = max(20 log10(max(|X|, amin) / reference), max(S) - top_db)``, without the Nyquist bin.
    """
    check_signal(signal)
    plan = plan_windows(len(signal), spec.window_length)
    for index in range(plan.count):
        window = cut(signal, index * spec.window_length, spec.window_length)
        decibel = stft_decibel(window, spec)
        yield np.maximum(decibel, decibel.max() - np.float32(spec.top_db))


def stft_decibel(signal: Signal, spec: StftSpec) -> Array:
    """Decibel STFT of a whole signal, shape (bin, frame), before the `top_db` limit (which belongs to a window)."""
    magnitude = np.abs(librosa.stft(signal, n_fft=spec.n_fft, hop_length=spec.hop_length)[: spec.n_bins])
    np.maximum(magnitude, spec.amin, out=magnitude)
    decibel: Array = 20.0 * np.log10(magnitude / np.float32(spec.reference))
    return decibel


@lru_cache(maxsize=4)
def logarithmic_filterbank(spec: LogFrequencySpec) -> Array:
    """Triangular filters with unit area on a logarithmic axis, shape (FFT bin, band) = (1024, 149).

    The centres ``440 · 2^(k/24)`` between `f_min` and `f_max` are mapped to the nearest of the FFT bins 0..1023; duplicates are
    dropped; each band rises from one centre to the next and falls to the one after.
    """
    n_bins = spec.frame_length // 2
    lowest = np.ceil(np.log2(spec.f_min / spec.reference_hz) * spec.bands_per_octave)
    highest = np.floor(np.log2(spec.f_max / spec.reference_hz) * spec.bands_per_octave)
    centres = spec.reference_hz * 2.0 ** (np.arange(lowest, highest + 1) / spec.bands_per_octave)
    bin_hz = spec.sample_rate / spec.frame_length
    edges = np.unique(np.clip(np.round(centres / bin_hz), 0, n_bins - 1).astype(int))
    filters = np.zeros((n_bins, len(edges) - 2), np.float32)
    for band, (low, centre, high) in enumerate(zip(edges[:-2], edges[1:-1], edges[2:], strict=True)):
        filters[low : centre + 1, band] = np.linspace(0, 1, centre - low + 1)
        filters[centre:high, band] = np.linspace(1, 0, high - centre + 1)[:-1]
    normalized: Array = filters / filters.sum(axis=0)
    return normalized


def log_frequency_frames(signal: Signal, spec: LogFrequencySpec, *, start: int, count: int, peak: float) -> Array:
    """Frames `start` to `start + count` of a signal's logarithmic-frequency spectrogram, shape (frame, band).

    ``log10(1 + filterbank · |X|)`` of the signal divided by `peak`; frame t is centred on sample ``round(t · 705.6)``, zeros
    beyond the ends of the signal.
    """
    hop = spec.sample_rate / spec.frame_rate
    centres = np.round((start + np.arange(count)) * hop).astype(int)
    first = int(centres[0]) - spec.frame_length // 2
    stretch = cut(signal, first, int(centres[-1] - centres[0]) + spec.frame_length)
    frames = np.lib.stride_tricks.sliding_window_view(stretch, spec.frame_length)[centres - centres[0]]
    window = np.hanning(spec.frame_length).astype(np.float32) / np.float32(max(peak, 1e-30))
    magnitude = np.abs(scipy.fft.rfft(frames * window, axis=1)[:, : spec.frame_length // 2])
    spectrogram: Array = np.log10(1.0 + magnitude @ logarithmic_filterbank(spec))
    return spectrogram


def log_frequency_windows(signal: Signal, spec: LogFrequencySpec) -> Iterator[Array]:
    """Yield the logarithmic-frequency spectrogram of each 10-s window, shape (frame, band) = (313, 149)."""
    check_signal(signal)
    plan = plan_windows(len(signal), spec.window_length)
    peak = float(np.abs(signal).max())
    for index in range(plan.count):
        start = round(index * spec.window_length * spec.frame_rate / spec.sample_rate)
        yield log_frequency_frames(signal, spec, start=start, count=spec.n_frames, peak=peak)


@lru_cache(maxsize=8)
def _mel_filters(sample_rate: int, n_fft: int, n_mels: int, f_min: float, f_max: float | None) -> Array:
    from librosa.filters import mel as mel_filterbank  # late: see features.descriptors

    filters: Array = mel_filterbank(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=f_max)
    return filters


def mel_windows(signal: Signal, spec: MelSpec) -> Iterator[Array]:
    """Yield the z-scored decibel mel spectrogram of each 5-s chunk, shape (band, frame) = (128, 300)."""
    check_signal(signal)
    plan = plan_windows(len(signal), spec.window_length)
    for index in range(plan.count):
        yield mel_chunk(cut(signal, index * spec.window_length, spec.window_length), spec)


def mel_chunk(chunk: Signal, spec: MelSpec) -> Array:
    """Z-scored decibel mel spectrogram of one chunk, shape (band, frame) = (128, 300); 0 is the chunk's mean."""
    power = np.abs(librosa.stft(chunk, n_fft=spec.n_fft, hop_length=spec.hop_length)) ** 2
    mel = _mel_filters(spec.sample_rate, spec.n_fft, spec.n_mels, 0.0, None) @ power
    decibel = librosa.power_to_db(mel, ref=np.max, top_db=spec.top_db)
    window = np.zeros((spec.n_mels, spec.padded_frames), np.float32)
    window[:, : decibel.shape[1]] = (decibel - decibel.mean()) / max(float(decibel.std()), 1e-6)
    return window


def mel_mfcc_contrast_windows(signal: Signal, spec: MelMfccContrastSpec) -> Iterator[Array]:
    """Yield log-mel, MFCC and spectral contrast of each 3-s segment, stacked: shape (row, frame) = (155, 259)."""
    check_signal(signal)
    plan = plan_windows(len(signal), spec.window_length)
    for index in range(plan.count):
        yield mel_mfcc_contrast(cut(signal, index * spec.window_length, spec.window_length), spec)


def mel_mfcc_contrast(segment: Signal, spec: MelMfccContrastSpec) -> Array:
    """Log-mel (dB re the segment's maximum), MFCC and spectral contrast (dB) of one segment, shape (row, frame)."""
    magnitude = np.abs(librosa.stft(segment, n_fft=spec.n_fft, hop_length=spec.hop_length))
    power = magnitude**2
    mel = _mel_filters(spec.sample_rate, spec.n_fft, spec.n_mels, spec.f_min, spec.f_max) @ power
    full_mel = _mel_filters(spec.sample_rate, spec.n_fft, spec.n_mels, 0.0, None) @ power
    rows = (
        librosa.power_to_db(mel, ref=np.max, top_db=spec.top_db),
        librosa.feature.mfcc(S=librosa.power_to_db(full_mel, top_db=spec.top_db), n_mfcc=spec.n_mfcc),
        librosa.feature.spectral_contrast(S=magnitude, sr=spec.sample_rate, n_bands=spec.n_contrast - 1),
    )
    return np.concatenate(rows).astype(np.float32, copy=False)


@lru_cache(maxsize=4)
def _tagger_filterbank(spec: TaggerMelSpec) -> Array:
    from librosa.filters import mel as mel_filterbank

    filters: Array = mel_filterbank(sr=spec.sample_rate, n_fft=spec.n_fft, n_mels=spec.n_mels)
    return filters


def tagger_mel_windows(signal: Signal, spec: TaggerMelSpec) -> Iterator[Array]:
    """Yield the log-mel of each window, shape (frame, band) = (187, 96): ``log10(1 + 10000 · M |X|²)``.

    Frames are those of the whole track: a window's first and last frames reach into its neighbours. A remainder is dropped,
    however long, unless it is the only window: half a window of silence would say more than the music in the other half.
    """
    check_signal(signal)
    level = leveled(signal, spec.rms)
    reach = (spec.n_frames - 1) * spec.hop_length + spec.n_fft
    for index in range(max(len(signal) // spec.window_length, 1)):
        stretch = cut(level, index * spec.window_length - spec.n_fft // 2, reach)
        spectrum = librosa.stft(stretch, n_fft=spec.n_fft, hop_length=spec.hop_length, center=False)
        power = _tagger_filterbank(spec) @ (spectrum.real**2 + spectrum.imag**2)
        yield np.log10(1 + np.float32(spec.compression) * power).T.astype(np.float32)
