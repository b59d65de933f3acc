"""Notes from audio: Basic Pitch (Bittner et al. 2022), run with the weights of the package's own ONNX model.

Conventions
-----------
Signals are mono, 22 050 Hz. Posteriors are ``(frame, pitch)`` float32 in 0-1, pitch bin 0 = MIDI 21 (A0,
27.5 Hz), bin 87 = MIDI 108. Times are seconds from the start of the signal. The notes equal those of
``basic_pitch.inference.predict`` with the same settings (amplitudes but for rounding: the network is run as
features.note_network writes it anew); pitch bends are left out. TensorFlow, which ``import basic_pitch`` would load, is
never imported.

Sources: R. M. Bittner, J. J. Bosch, D. Rubinstein, G. Meseguer-Brocal, S. Ewert, "A lightweight instrument-agnostic
model for polyphonic note transcription and multipitch estimation", ICASSP 2022; basic-pitch 0.4.0, ``inference.py``
and ``note_creation.py``.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 22050  # Hz
FFT_HOP = 256  # samples between two frames inside a window
FRAMES_PER_SECOND = SAMPLE_RATE // FFT_HOP  # 86: the package's rounded rate, which truncation and times use
FRAMES_PER_WINDOW = 2 * FRAMES_PER_SECOND  # 172
WINDOW_LENGTH = 2 * SAMPLE_RATE - FFT_HOP  # 43 844 samples
OVERLAP_FRAMES = 30
KEPT_FRAMES = FRAMES_PER_WINDOW - OVERLAP_FRAMES  # 142 of each window's frames
WINDOW_HOP = WINDOW_LENGTH - OVERLAP_FRAMES * FFT_HOP  # 36 164 samples
LEADING_ZEROS = OVERLAP_FRAMES * FFT_HOP // 2  # samples before the signal
N_PITCHES = 88
LOWEST_PITCH = 21  # MIDI number of bin 0
LOWEST_FREQUENCY = 27.5  # Hz
HIGHEST_FREQUENCY = 27.5 * 2.0 ** (87 / 12)  # Hz

_BLOCK_FRAMES = 8192  # frames whose float64 intermediates are held at once
_RISE_SPAN = 2  # frames over which a rise must hold to count as an onset
_WINDOW_OFFSET_S = (FFT_HOP / SAMPLE_RATE) * (FRAMES_PER_WINDOW - WINDOW_LENGTH / FFT_HOP) + 0.0018


@dataclass(frozen=True)
class TranscriptionSpec:
    """Settings of the transcription; the defaults are those of ``basic_pitch.inference.predict``.

    Raises
    ------
    ValueError
        If a setting lies outside its range; the message gives the value and the rule.
    """

    version: int = 1  # of the code, here and in features.notes: raised whenever it changes a result
    sample_rate: int = SAMPLE_RATE  # Hz; the model knows no other
    onset_threshold: float = 0.5  # posterior, 0-1: least onset posterior that starts a note
    frame_threshold: float = 0.3  # posterior, 0-1: least frame posterior that keeps a note on
    minimum_note_length_ms: float = 127.70  # milliseconds; a note is longer than this, rounded to frames
    melodia_trick: bool = True  # also find notes without an onset, from the energy that is left
    energy_tolerance: int = 11  # frames below frame_threshold that end a note
    minimum_frequency: float | None = None  # Hz; pitches below are ignored
    maximum_frequency: float | None = None  # Hz; this pitch and those above are ignored, as in the package

    def __post_init__(self) -> None:
        if self.sample_rate != SAMPLE_RATE:
            raise ValueError(f"sample_rate={self.sample_rate} must be {SAMPLE_RATE}, the rate of the model")
        for name in ("onset_threshold", "frame_threshold"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ValueError(f"{name}={value} must be > 0 and <= 1")
        if not (math.isfinite(self.minimum_note_length_ms) and self.minimum_note_length_ms >= 0):
            raise ValueError(f"minimum_note_length_ms={self.minimum_note_length_ms} must be finite and >= 0")
        if self.energy_tolerance < 1:
            raise ValueError(f"energy_tolerance={self.energy_tolerance} must be >= 1")
        for name in ("minimum_frequency", "maximum_frequency"):
            value = getattr(self, name)
            if value is not None and not LOWEST_FREQUENCY <= value <= HIGHEST_FREQUENCY + 0.01:
                raise ValueError(f"{name}={value} must lie in {LOWEST_FREQUENCY}-{HIGHEST_FREQUENCY:.2f} Hz")

    @property
    def minimum_note_frames(self) -> int:
        """The minimum note length in frames; a note must be longer."""
        return int(np.round(self.minimum_note_length_ms / 1000 * (SAMPLE_RATE / FFT_HOP)))


@dataclass(frozen=True, eq=False)
class NoteEvents:
    """Notes of one track, four arrays of shape (n,), sorted by onset, then pitch.

    Raises
    ------
    ValueError
        If the arrays differ in length or are not sorted, or a value lies outside its range.
    """

    onset_s: NDArray[np.float64]  # seconds
    offset_s: NDArray[np.float64]  # seconds, > onset_s
    pitch: NDArray[np.int16]  # MIDI number, 0-127
    amplitude: NDArray[np.float32]  # 0-1

    def __post_init__(self) -> None:
        shapes = [array.shape for array in (self.onset_s, self.offset_s, self.pitch, self.amplitude)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1:
            raise ValueError(f"shapes {shapes} must be four times (n,)")
        if not len(self):
            return
        if not (np.isfinite(self.onset_s).all() and np.isfinite(self.offset_s).all()):
            raise ValueError("onset_s and offset_s must be finite")
        if not (self.offset_s > self.onset_s).all():
            at = int(np.argmin(self.offset_s > self.onset_s))
            raise ValueError(f"offset_s={self.offset_s[at]} of note {at} must be > its onset_s={self.onset_s[at]}")
        if self.pitch.min() < 0 or self.pitch.max() > 127:
            raise ValueError(f"pitch {self.pitch.min()}-{self.pitch.max()} must lie in 0-127")
        if not (self.amplitude.min() >= 0 and self.amplitude.max() <= 1):
            raise ValueError(f"amplitude {self.amplitude.min()}-{self.amplitude.max()} must lie in 0-1")
        step = np.diff(self.onset_s)
        if (step < 0).any() or ((step == 0) & (np.diff(self.pitch) < 0)).any():
            raise ValueError("notes must be sorted by onset_s, then pitch")

    def __len__(self) -> int:
        return len(self.onset_s)

    @classmethod
    def from_unsorted(
        cls, onset_s: NDArray[Any], offset_s: NDArray[Any], pitch: NDArray[Any], amplitude: NDArray[Any]
    ) -> NoteEvents:
        """Sort notes, four arrays of shape (n,), by onset, pitch and offset, and store them in the fields' types."""
        order = np.lexsort((offset_s, pitch, onset_s))
        return cls(
            onset_s=np.asarray(onset_s, dtype=np.float64)[order],
            offset_s=np.asarray(offset_s, dtype=np.float64)[order],
            pitch=np.asarray(pitch, dtype=np.int16)[order],
            amplitude=np.asarray(amplitude, dtype=np.float32)[order],
        )


def transcribe(signal: NDArray[np.floating[Any]], spec: TranscriptionSpec, threads: int = 1) -> NoteEvents:
    """Transcribe a signal to notes.

    Parameters
    ----------
    signal
        Mono, shape (n,), floating point, at ``spec.sample_rate``.
    spec
        The settings.
    threads
        Threads of the network; they do not change the result.

    Returns
    -------
    NoteEvents
        The notes; none where the signal is shorter than a frame (12 ms).

    Raises
    ------
    ValueError
        If the signal is empty, not one-dimensional, not floating point or not finite.
    """
    frames, onsets = note_posteriors(signal, spec, threads)
    return notes_from_posteriors(frames, onsets, spec)


def note_posteriors(
    signal: NDArray[np.floating[Any]], spec: TranscriptionSpec, threads: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run the network over a signal and return its note and onset posteriors.

    Windows of 43 844 samples overlap by 30 frames of 256 samples, the first begins half an overlap before the signal,
    the last is padded with zeros; half an overlap is cut from both ends of each window's 172 frames, and what is left
    is strung together and cut to n = floor(samples * 86 / 22 050) frames. One window at a time, so beyond the result
    memory does not grow with the signal.

    Parameters
    ----------
    signal
        Mono, shape (samples,), floating point, at ``spec.sample_rate``.
    spec
        The settings (its sample rate; the thresholds play no part here).
    threads
        Threads of the network.

    Returns
    -------
    frames, onsets
        Posteriors 0-1, each of shape (n, 88), float32.

    Raises
    ------
    ValueError
        If the signal is empty, not one-dimensional, not floating point or not finite, or threads < 1.
    """
    _check_signal(signal)
    if threads < 1:
        raise ValueError(f"threads={threads} must be >= 1")
    n_frames = math.floor(len(signal) * (FRAMES_PER_SECOND / spec.sample_rate))
    frames = np.empty((n_frames, N_PITCHES), dtype=np.float32)
    onsets = np.empty((n_frames, N_PITCHES), dtype=np.float32)
    session = _session(threads)
    margin = OVERLAP_FRAMES // 2
    # The package also runs windows whose frames it then cuts off: range() leaves them out.
    for index, first_frame in enumerate(range(0, n_frames, KEPT_FRAMES)):
        window = np.zeros((1, WINDOW_LENGTH), dtype=np.float32)
        start = index * WINDOW_HOP - LEADING_ZEROS
        piece = signal[max(start, 0) : start + WINDOW_LENGTH]
        at = max(-start, 0)
        window[0, at : at + len(piece)] = piece
        note, onset = session.run(["note", "onset"], {"audio": window})
        kept = min(KEPT_FRAMES, n_frames - first_frame)
        frames[first_frame : first_frame + kept] = note[0, margin : margin + kept]
        onsets[first_frame : first_frame + kept] = onset[0, margin : margin + kept]
    return frames, onsets


def notes_from_posteriors(frames: NDArray[np.float32], onsets: NDArray[np.float32], spec: TranscriptionSpec) -> NoteEvents:
    """Turn posteriors into notes, exactly as basic-pitch does, in time linear in their length (bar one sort).

    The network's onsets, joined by sharp rises of the frame posterior, start notes, the last first; a note lasts
    until the frame posterior stays under its threshold for ``energy_tolerance`` frames, and takes the energy of its
    own and of both neighbouring pitches. With ``melodia_trick`` the strongest remaining frame then grows into a note
    in both directions, again and again.

    The package looks for that strongest frame with ``argmax`` over everything, once a note. Energies are only ever
    set to zero, so one stable sort (ties: earliest frame, then lowest pitch, like ``argmax``) that skips what is gone
    finds the same frames in the same order; and the only thing ever asked of an energy is whether it lies under the
    threshold, which one byte a frame and pitch answers, and a byte search finds the run that ends a note.

    Parameters
    ----------
    frames, onsets
        Posteriors 0-1, each of shape (n, 88).
    spec
        The settings.

    Returns
    -------
    NoteEvents
        The notes, amplitude = mean frame posterior over the note.

    Raises
    ------
    ValueError
        If the arrays are not both (n, 88) or hold values that are not finite.
    """
    _check_posteriors(frames, onsets)
    n_frames = len(frames)
    if n_frames == 0:
        return NoteEvents.from_unsorted(np.empty(0), np.empty(0), np.empty(0), np.empty(0))
    frames, onsets = _within_frequencies(frames, onsets, spec)

    # A float64 threshold makes NumPy compare in float64, like the package; a Python float would be rounded to float32.
    frame_threshold = np.float64(spec.frame_threshold)
    below = bytearray(N_PITCHES * n_frames)
    is_below = np.frombuffer(below, dtype=np.bool_).reshape(N_PITCHES, n_frames)
    is_below[:] = (frames < frame_threshold).T
    ending = b"\x01" * spec.energy_tolerance
    # The package never looks at the last frame, nor, going backwards, at the first.
    last = n_frames - 1
    least = spec.minimum_note_frames
    notes: list[tuple[int, int, int]] = []  # first frame, frame after the last, pitch bin

    onset_frame, onset_bin = _onset_peaks(frames, onsets, spec.onset_threshold)
    for start, pitch in zip(onset_frame[::-1].tolist(), onset_bin[::-1].tolist(), strict=True):
        if start >= last:
            continue
        row = pitch * n_frames
        found = below.find(ending, row + start + 1, row + last)
        end = (found if found >= 0 else max(below.rfind(b"\x00", row + start + 1, row + last), row + start) + 1) - row
        if end - start <= least:
            continue
        is_below[max(pitch - 1, 0) : pitch + 2, start:end] = True
        notes.append((start, end, pitch))

    if spec.melodia_trick:
        for middle, pitch in _strongest_first(frames, is_below, frame_threshold):
            row = pitch * n_frames
            if below[row + middle]:
                continue
            below[row + middle] = 1

            found = below.find(ending, row + middle + 1, row + last)
            if found >= 0:
                end = found - row - 1
                reach = found - row + spec.energy_tolerance
            else:
                reach = max(middle + 1, last)
                end = max(below.rfind(b"\x00", row + middle + 1, row + last) - row, middle) if middle < last else last

            found = below.rfind(ending, row + 1, row + middle)
            if found >= 0:
                start = found - row + spec.energy_tolerance
                back = found - row
            else:
                back = min(1, middle)
                first = below.find(b"\x00", row + 1, row + middle)
                start = first - row if first >= 0 else middle

            near = is_below[max(pitch - 1, 0) : pitch + 2]
            near[:, middle + 1 : reach] = True
            near[:, back:middle] = True
            if end - start > least:
                notes.append((start, end, pitch))

    times_s = _frame_times_s(n_frames)
    first_frame = np.array([start for start, _, _ in notes], dtype=np.intp)
    end_frame = np.array([end for _, end, _ in notes], dtype=np.intp)
    return NoteEvents.from_unsorted(
        onset_s=times_s[first_frame],
        offset_s=times_s[end_frame],
        pitch=np.array([pitch + LOWEST_PITCH for _, _, pitch in notes], dtype=np.int16),
        amplitude=np.array([np.mean(frames[start:end, pitch]) for start, end, pitch in notes], dtype=np.float32),
    )


def _check_signal(signal: NDArray[np.floating[Any]]) -> None:
    if signal.ndim != 1:
        raise ValueError(f"signal of shape {signal.shape} must be one-dimensional (mono)")
    if len(signal) == 0:
        raise ValueError("signal of length 0 must hold at least one sample")
    if not np.issubdtype(signal.dtype, np.floating):
        raise ValueError(f"signal of type {signal.dtype} must be floating point")
    # min and max pass NaN on, and need no boolean copy of the signal.
    if not (np.isfinite(signal.min()) and np.isfinite(signal.max())):
        at = int(np.argmin(np.isfinite(signal)))
        raise ValueError(f"signal[{at}]={signal[at]} must be finite")


def _check_posteriors(frames: NDArray[np.float32], onsets: NDArray[np.float32]) -> None:
    for name, array in (("frames", frames), ("onsets", onsets)):
        if array.ndim != 2 or array.shape[1] != N_PITCHES:
            raise ValueError(f"{name} of shape {array.shape} must be (n, {N_PITCHES})")
        if array.size and not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise ValueError(f"{name} with range {array.min()} to {array.max()} must be finite")
    if frames.shape != onsets.shape:
        raise ValueError(f"frames of shape {frames.shape} and onsets of shape {onsets.shape} must have one shape")


@functools.cache
def _session(threads: int) -> Any:
    import onnxruntime

    from features import note_network

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    graph = note_network.build(published_network())
    return onnxruntime.InferenceSession(graph, sess_options=options, providers=["CPUExecutionProvider"])


def published_network() -> Path:
    """The ONNX file that the package `basic_pitch` brings.

    Raises
    ------
    ModuleNotFoundError
        If the package is not installed.
    """
    # find_spec does not run the package, whose __init__ imports TensorFlow.
    package = importlib.util.find_spec("basic_pitch")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("basic_pitch is not installed: its folder holds the ONNX model")
    return Path(package.submodule_search_locations[0]) / "saved_models" / "icassp_2022" / "nmp.onnx"


def _within_frequencies(
    frames: NDArray[np.float32], onsets: NDArray[np.float32], spec: TranscriptionSpec
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    if spec.minimum_frequency is None and spec.maximum_frequency is None:
        return frames, onsets
    silent = np.zeros(N_PITCHES, dtype=np.bool_)
    if spec.minimum_frequency is not None:
        silent[: _pitch_bin(spec.minimum_frequency)] = True
    if spec.maximum_frequency is not None:
        silent[_pitch_bin(spec.maximum_frequency) :] = True
    frames, onsets = frames.copy(), onsets.copy()
    frames[:, silent] = 0
    onsets[:, silent] = 0
    return frames, onsets


def _pitch_bin(frequency: float) -> int:
    return round(12 * (math.log2(frequency) - math.log2(440.0)) + 69 - LOWEST_PITCH)


def _frame_rise(frames: NDArray[np.float32], first: int, stop: int) -> NDArray[np.float64]:
    """Least rise of frames first to stop - 1 over the one and the two frames before, at least 0, (stop - first, 88)."""
    rise = np.zeros((stop - first, N_PITCHES))
    begin = max(first, _RISE_SPAN)
    if begin < stop:
        now = frames[begin:stop].astype(np.float64)
        smallest = np.minimum(now - frames[begin - 1 : stop - 1], now - frames[begin - 2 : stop - 2])
        np.maximum(smallest, 0.0, out=rise[begin - first :])
    return rise


def _blocks(n_frames: int) -> Iterator[tuple[int, int]]:
    for first in range(0, n_frames, _BLOCK_FRAMES):
        yield first, min(first + _BLOCK_FRAMES, n_frames)


def _onset_peaks(
    frames: NDArray[np.float32], onsets: NDArray[np.float32], onset_threshold: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Frame and pitch bin of every strict local maximum in time of the onsets, sorted by frame, then bin.

    Onsets are the larger of the onset posterior and the frame rise, which is scaled to the greatest onset posterior.
    """
    n_frames = len(frames)
    greatest_rise = max(_frame_rise(frames, *block).max() for block in _blocks(n_frames))
    # Where nothing rises the package divides 0 by 0, all its onsets are NaN, and none is a peak.
    if greatest_rise == 0:
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
    greatest_onset = np.float64(onsets.max())
    found_frames, found_bins = [], []
    for block_first, block_stop in _blocks(n_frames):
        first, stop = max(block_first - 1, 0), min(block_stop + 1, n_frames)
        onset = np.maximum(onsets[first:stop], greatest_onset * _frame_rise(frames, first, stop) / greatest_rise)
        middle = onset[1:-1]
        peak = (middle > onset[:-2]) & (middle > onset[2:]) & (middle >= onset_threshold)
        at, pitch = np.nonzero(peak)
        found_frames.append(at + first + 1)
        found_bins.append(pitch)
    return np.concatenate(found_frames), np.concatenate(found_bins)


def _strongest_first(
    frames: NDArray[np.float32], is_below: NDArray[np.bool_], frame_threshold: np.float64
) -> Iterator[tuple[int, int]]:
    """Frame and bin of what is above the threshold and left, by falling posterior, then rising frame and bin."""
    at, pitch = np.nonzero(~is_below.T & (frames > frame_threshold))
    order = np.argsort(-frames[at, pitch], kind="stable")
    for begin in range(0, len(order), 1 << 16):
        part = order[begin : begin + (1 << 16)]
        yield from zip(at[part].tolist(), pitch[part].tolist(), strict=True)


def _frame_times_s(n_frames: int) -> NDArray[np.float64]:
    """Time of each frame, with the package's correction for frames that a window lacks, shape (n_frames,), seconds."""
    frame = np.arange(n_frames)
    times: NDArray[np.float64] = (frame * FFT_HOP) / float(SAMPLE_RATE) - _WINDOW_OFFSET_S * np.floor(frame / FRAMES_PER_WINDOW)
    return times
