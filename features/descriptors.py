"""The 535 descriptors of a whole track: what a plain, strong baseline hears.

Frame features (log-mel, MFCC, spectral contrast, centroid, roll-off, flatness, tonnetz, RMS, onset strength) summarised by mean,
standard deviation, 10th and 90th percentile and mean absolute difference of successive frames; the chroma profile rolled to its
peak; key-profile correlations (Krumhansl & Kessler 1982); tempo and its clarity from the onset autocorrelation. Frames are
computed in blocks, so memory grows with the number of frames, not with the size of a spectrogram.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import librosa
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from features.windows import Signal, check_signal, cut, leveled

Array = NDArray[np.float32]

# Krumhansl & Kessler's probe-tone ratings, C major and C minor
MAJOR_PROFILE = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR_PROFILE = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
STATISTICS = ("mean", "std", "p10", "p90", "mad")
AMIN = 1e-10  # power floor of decibels


@dataclass(frozen=True)
class DescriptorSpec:
    """Front end of the descriptor model: 535 numbers a track."""

    version: int = 1  # of the code: raised whenever it changes a result
    sample_rate: int = 22_050  # Hz
    rms: float | None = None  # root mean square that the track is brought to, so that a gain changes nothing; None: as it is
    n_fft: int = 2_048  # samples, Hann, centred, zeros beyond the ends
    hop_length: int = 1_024  # samples
    n_mels: int = 64  # Slaney, 0 Hz to Nyquist
    n_mfcc: int = 20  # from the same bands
    contrast_bands: int = 5  # octaves from 200 Hz; one row more than that
    top_db: float = 80.0  # dB below the track's maximum
    tempo_min: float = 40.0  # BPM
    tempo_max: float = 240.0  # BPM
    tempo_prior: float = 120.0  # BPM: centre of a log-normal weight of one octave SD
    block_frames: int = 1_024  # frames computed at a time; changes no result


def frame_names(spec: DescriptorSpec) -> tuple[str, ...]:
    """Names of the frame features, in the order of `frame_features`."""
    return (
        *(f"mel{k:02d}" for k in range(spec.n_mels)),
        *(f"mfcc{k:02d}" for k in range(spec.n_mfcc)),
        *(f"contrast{k}" for k in range(spec.contrast_bands + 1)),
        "centroid",
        "rolloff",
        "flatness",
        *(f"tonnetz{k}" for k in range(6)),
        "rms",
        "onset",
    )


def descriptor_names(spec: DescriptorSpec) -> tuple[str, ...]:
    """Names of the 535 descriptors, in the order of `describe`."""
    return (
        *(f"{feature}_{statistic}" for statistic in STATISTICS for feature in frame_names(spec)),
        *(f"chroma_rolled{k:02d}" for k in range(12)),
        *(f"chroma_std{k:02d}" for k in range(12)),
        "key_major_r",
        "key_minor_r",
        "key_major_minus_minor",
        "tempo_bpm",
        "tempo_height",
        "tempo_std",
    )


@lru_cache(maxsize=4)
def _filters(spec: DescriptorSpec) -> tuple[Array, Array]:
    # late: it takes a second to import, which a run's main process need not wait for
    from librosa.filters import chroma as chroma_filterbank
    from librosa.filters import mel as mel_filterbank

    mel = mel_filterbank(sr=spec.sample_rate, n_fft=spec.n_fft, n_mels=spec.n_mels)
    chroma = chroma_filterbank(sr=spec.sample_rate, n_fft=spec.n_fft, tuning=0.0)
    return mel, chroma


def frame_features(signal: Signal, spec: DescriptorSpec) -> tuple[Array, Array]:
    """Frame features, shape (frame, feature) in the order of `frame_names`, and chroma, shape (frame, 12).

    Mel, MFCC and contrast in dB, centroid and roll-off in Hz, flatness 0-1, tonnetz -1..1, RMS of the Hann-windowed frame (.612
    of the signal's), onset strength as the half-wave rectified rise of the mel bands in dB a frame.
    """
    check_signal(signal)
    n_frames = 1 + len(signal) // spec.hop_length
    mel_filters, chroma_filters = _filters(spec)
    power_mel: list[Array] = []
    others: list[Array] = []
    chromas: list[Array] = []
    valleys: list[Array] = []
    peaks: list[Array] = []
    for start in range(0, n_frames, spec.block_frames):
        count = min(spec.block_frames, n_frames - start)
        stretch = cut(signal, start * spec.hop_length - spec.n_fft // 2, (count - 1) * spec.hop_length + spec.n_fft)
        magnitude = np.abs(librosa.stft(stretch, n_fft=spec.n_fft, hop_length=spec.hop_length, center=False))
        power = magnitude**2
        power_mel.append((mel_filters @ power).T)
        chroma = chroma_filters @ power
        chroma /= np.maximum(chroma.max(axis=0), np.finfo(np.float32).tiny)
        chromas.append(chroma.T)
        low, high = _valleys_and_peaks(magnitude, spec)
        valleys.append(low.T)
        peaks.append(high.T)
        others.append(
            np.concatenate(
                (
                    librosa.feature.spectral_centroid(S=magnitude, sr=spec.sample_rate),
                    librosa.feature.spectral_rolloff(S=magnitude, sr=spec.sample_rate),
                    librosa.feature.spectral_flatness(S=magnitude),
                    librosa.feature.tonnetz(chroma=chroma, sr=spec.sample_rate),
                    librosa.feature.rms(S=magnitude, frame_length=spec.n_fft),
                )
            ).T.astype(np.float32)
        )
    mel = librosa.power_to_db(np.concatenate(power_mel), amin=AMIN, top_db=spec.top_db)
    mfcc = scipy.fft.dct(mel, axis=1, type=2, norm="ortho")[:, : spec.n_mfcc]
    onset = np.zeros((n_frames, 1), np.float32)
    onset[1:, 0] = np.maximum(np.diff(mel, axis=0), 0).mean(axis=1)
    # as in librosa, peaks and valleys are limited to 80 dB below their maximum: here that of the track, not of a block
    contrast = librosa.power_to_db(np.concatenate(peaks)) - librosa.power_to_db(np.concatenate(valleys))
    features = np.concatenate((mel, mfcc, contrast, np.concatenate(others), onset), axis=1).astype(np.float32)
    return features, np.concatenate(chromas)


def _valleys_and_peaks(magnitude: Array, spec: DescriptorSpec) -> tuple[Array, Array]:
    """Mean of the lowest and of the highest 2 % of the bins of each octave band, shape (band, frame).

    Bands and quantile are those of `librosa.feature.spectral_contrast` (Jiang et al. 2002), which gives only their difference.
    """
    frequencies = np.fft.rfftfreq(spec.n_fft, 1 / spec.sample_rate)
    edges = np.concatenate(([0.0], 200.0 * 2.0 ** np.arange(spec.contrast_bands + 1)))
    low, high = [], []
    for band, (bottom, top) in enumerate(pairwise(edges)):
        inside = np.flatnonzero((frequencies >= bottom) & (frequencies <= top))
        first = max(inside[0] - 1, 0) if band else inside[0]
        last = len(frequencies) - 1 if band == spec.contrast_bands else inside[-1]
        bins = magnitude[first : last + 1]
        # librosa leaves out the highest bin of each band but the last, after it has counted the quantile
        count = max(int(np.rint(0.02 * len(bins))), 1)
        ordered = np.sort(bins if band == spec.contrast_bands else bins[:-1], axis=0)
        low.append(ordered[:count].mean(axis=0))
        high.append(ordered[-count:].mean(axis=0))
    return np.stack(low), np.stack(high)


def key_correlations(chroma: NDArray[np.floating]) -> tuple[float, float]:
    """Best Pearson correlation of a 12-bin profile with the twelve major and the twelve minor key profiles."""
    if np.ptp(chroma) == 0:
        return 0.0, 0.0
    best = [
        max(float(np.corrcoef(chroma, np.roll(profile, shift))[0, 1]) for shift in range(12))
        for profile in (MAJOR_PROFILE, MINOR_PROFILE)
    ]
    return best[0], best[1]


def onset_tempo(onset: Array, spec: DescriptorSpec) -> tuple[float, float, float]:
    """Tempo (BPM), height and standard deviation of the normalised autocorrelation of an onset envelope.

    The tempo is the lag with the highest autocorrelation, weighted by a log-normal prior; tempo and height are 0 where none is
    positive, all three where the envelope is constant or too short.
    """
    frame_rate = spec.sample_rate / spec.hop_length
    centred = onset - onset.mean()
    energy = float(centred @ centred)
    shortest = int(np.ceil(60 * frame_rate / spec.tempo_max))
    longest = min(int(60 * frame_rate / spec.tempo_min), len(onset) - 2)
    if energy <= 0 or longest <= shortest:
        return 0.0, 0.0, 0.0
    length = scipy.fft.next_fast_len(2 * len(centred))
    correlation = scipy.fft.irfft(np.abs(scipy.fft.rfft(centred, length)) ** 2, length)[: longest + 2] / energy
    lags = np.arange(shortest, longest + 1)
    prior = np.exp(-0.5 * np.log2(60 * frame_rate / lags / spec.tempo_prior) ** 2)
    best = int(lags[np.argmax(np.maximum(correlation[lags], 0) * prior)])
    if correlation[best] <= 0:
        return 0.0, 0.0, float(correlation[lags].std())
    left, middle, right = (float(c) for c in correlation[best - 1 : best + 2])
    curvature = left - 2 * middle + right
    lag = best + (0.5 * (left - right) / curvature if curvature < 0 and abs(left - right) < -2 * curvature else 0.0)
    return 60 * frame_rate / lag, float(correlation[best]), float(correlation[lags].std())


def describe(signal: Signal, spec: DescriptorSpec) -> Array:
    """Describe a whole track by 535 numbers, in the order of `descriptor_names`.

    Parameters
    ----------
    signal : numpy.ndarray
        Mono float32, shape (sample,), at ``spec.sample_rate``.
    spec : DescriptorSpec
        Front end.

    Returns
    -------
    numpy.ndarray
        float32, shape (535,).
    """
    frames, chroma = frame_features(signal if spec.rms is None else leveled(signal, spec.rms), spec)
    low, high = np.percentile(frames, [10, 90], axis=0)
    steps = np.abs(np.diff(frames, axis=0)).mean(axis=0) if len(frames) > 1 else np.zeros(frames.shape[1])
    mean_chroma = chroma.mean(axis=0)
    major, minor = key_correlations(mean_chroma)
    return np.concatenate(
        (
            frames.mean(axis=0),
            frames.std(axis=0),
            low,
            high,
            steps,
            np.roll(mean_chroma, -int(np.argmax(mean_chroma))),
            chroma.std(axis=0),
            (major, minor, major - minor),
            onset_tempo(frames[:, -1], spec),
        )
    ).astype(np.float32)
