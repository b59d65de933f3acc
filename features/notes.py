"""What a transcription says of its music: statistics, features, a sequence and a MIDI file, all from note events.

Conventions
-----------
Notes are `features.transcription.NoteEvents`: sorted by onset, then pitch. Successive notes are
successive in that order. Times are seconds, pitches MIDI numbers, pitch classes 0 = C to 11 = B, velocity = round(127
* amplitude). Standard deviations are those of the population (divided by n).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from features.transcription import NoteEvents

if TYPE_CHECKING:
    import pretty_midi

PITCH_CLASSES: tuple[str, ...] = ("c", "cs", "d", "ds", "e", "f", "fs", "g", "gs", "a", "as", "b")

NOTE_STATISTICS: tuple[str, ...] = (
    "pitch_mean",
    "pitch_std",
    "duration_mean",
    "duration_std",
    "velocity_mean",
    "velocity_std",
    "interval_mean",
    "interval_std",
    "tempo_bpm",
    "note_density",
    *(f"pc_{name}" for name in PITCH_CLASSES),
)

NOTE_FEATURES: tuple[str, ...] = (
    "pitch_mean",
    "pitch_std",
    "duration_mean",
    "duration_std",
    "amplitude_mean",
    "amplitude_std",
    "interval_mean",
    "interval_std",
    "interval_abs_mean",
    "note_density",
    "onset_interval_mean",
    "onset_interval_std",
    "pitch_p10",
    "pitch_p90",
    "log_n_notes",
    "polyphony",
    *(f"pc_duration_{name}" for name in PITCH_CLASSES),
    *(f"pc_duration_rolled_{step}" for step in range(12)),
    *(f"interval_class_{step}" for step in range(12)),
    "intervals_per_note",
    "distinct_pitches_per_note",
)

TEMPO_MIN_BPM = 40.0
TEMPO_MAX_BPM = 220.0
TEMPO_CENTRE_BPM = 120.0  # mode of the log-normal prior
TEMPO_SPREAD_OCTAVES = 1.0  # its standard deviation

_SOUNDING_DELAY_S = 0.05  # after an onset: when the notes that sound together are looked at
_SOUNDING_BLOCK = 8192  # moments whose notes are counted at once
_TEMPO_BIN_S = 0.005
_TEMPO_BLUR_S = 0.015  # standard deviation: frames of 12 ms and uneven playing
_TEMPO_MULTIPLES = 4  # beats over which onsets should repeat


def note_statistics(events: NoteEvents, duration_s: float) -> NDArray[np.float32]:
    """Return the 22 statistics of the note model, in the order of `NOTE_STATISTICS`.

    Pitch in semitones (MIDI number), duration in seconds, velocity 0-127, interval = signed difference of successive
    pitches in semitones (0 for a single note), tempo in beats a minute (`tempo_bpm`), density in notes per second of
    audio, and the share of notes in each pitch class: counts that sum to 1, not weighted by duration, as
    pretty_midi's ``get_pitch_class_histogram`` has it.

    Parameters
    ----------
    events
        The notes of a track.
    duration_s
        Duration of its audio, seconds.

    Returns
    -------
    numpy.ndarray
        Shape (22,), float32. Without notes all zeros, but for a tempo of NaN.

    Raises
    ------
    ValueError
        If ``duration_s`` is not finite and > 0.
    """
    _check_duration(duration_s)
    if len(events) == 0:
        statistics = np.zeros(len(NOTE_STATISTICS), dtype=np.float32)
        statistics[NOTE_STATISTICS.index("tempo_bpm")] = np.nan
        return statistics
    pitch = events.pitch.astype(np.float64)
    duration = events.offset_s - events.onset_s
    velocity = note_velocity(events).astype(np.float64)
    interval = _intervals(pitch)
    values = [
        *(pitch.mean(), pitch.std()),
        *(duration.mean(), duration.std()),
        *(velocity.mean(), velocity.std()),
        *(interval.mean(), interval.std()),
        tempo_bpm(events),
        len(events) / duration_s,
        *np.bincount(events.pitch % 12, minlength=12) / len(events),
    ]
    return np.array(values, dtype=np.float32)


def note_features(events: NoteEvents, duration_s: float) -> NDArray[np.float32]:
    """Return the 54 note features that the descriptor model takes, in the order of `NOTE_FEATURES`.

    - mean and SD of pitch (MIDI number), duration (s), amplitude (0-1); mean, SD and mean magnitude of the interval
      between successive notes (semitones); notes per second of audio; mean and SD of the time between successive
      onsets (s; 0 within a chord); 10th and 90th percentile of pitch; log(1 + n); polyphony = summed durations /
      ``duration_s``;
    - the pitch-class histogram, weighted by duration, sum 1: from C, and rolled so that its peak (the first, if tied)
      comes first;
    - interval classes: at each distinct onset + 50 ms every pair among the notes that sound then is counted in class
      |difference of pitches| mod 12, pairs of one pitch left out (octaves count, in class 0); the 12 counts are
      divided by their sum, and their sum by n follows;
    - number of distinct pitches / n.

    Parameters
    ----------
    events
        The notes of a track.
    duration_s
        Duration of its audio, seconds.

    Returns
    -------
    numpy.ndarray
        Shape (54,), float32; all zeros without notes. A single note has intervals of 0.

    Raises
    ------
    ValueError
        If ``duration_s`` is not finite and > 0.
    """
    _check_duration(duration_s)
    n = len(events)
    if n == 0:
        return np.zeros(len(NOTE_FEATURES), dtype=np.float32)
    pitch = events.pitch.astype(np.float64)
    duration = events.offset_s - events.onset_s
    amplitude = events.amplitude.astype(np.float64)
    interval = _intervals(pitch)
    onset_interval = np.diff(events.onset_s) if n > 1 else np.zeros(1)
    by_class = np.bincount(events.pitch % 12, weights=duration, minlength=12) / duration.sum()
    together = _interval_class_counts(events)
    values = [
        *(pitch.mean(), pitch.std()),
        *(duration.mean(), duration.std()),
        *(amplitude.mean(), amplitude.std()),
        *(interval.mean(), interval.std(), np.abs(interval).mean()),
        n / duration_s,
        *(onset_interval.mean(), onset_interval.std()),
        *np.percentile(pitch, [10, 90]),
        math.log1p(n),
        duration.sum() / duration_s,
        *by_class,
        *np.roll(by_class, -int(np.argmax(by_class))),
        *together / max(together.sum(), 1.0),
        together.sum() / n,
        len(np.unique(events.pitch)) / n,
    ]
    return np.array(values, dtype=np.float32)


def note_sequence(events: NoteEvents, length: int = 512) -> NDArray[np.float32]:
    """Return the first notes as rows (pitch, onset interval, duration, velocity), padded with rows of zeros at the end.

    Parameters
    ----------
    events
        The notes of a track.
    length
        Rows of the result.

    Returns
    -------
    numpy.ndarray
        Shape (length, 4), float32: MIDI number; seconds since the previous onset, 0 for the first note; seconds;
        0-127. The duration of a note is > 0, so a row of a note is never all zeros and masking on 0 hides the padding
        alone.

    Raises
    ------
    ValueError
        If ``length`` < 1.
    """
    if length < 1:
        raise ValueError(f"length={length} must be >= 1")
    sequence = np.zeros((length, 4), dtype=np.float32)
    n = min(len(events), length)
    sequence[:n, 0] = events.pitch[:n]
    sequence[1:n, 1] = np.diff(events.onset_s[:n])
    sequence[:n, 2] = (events.offset_s - events.onset_s)[:n]
    sequence[:n, 3] = note_velocity(events)[:n]
    return sequence


def note_velocity(events: NoteEvents) -> NDArray[np.int16]:
    """Return the MIDI velocity of each note, round(127 * amplitude), shape (n,), 0-127, as Basic Pitch writes it."""
    return np.round(127 * events.amplitude).astype(np.int16)


def tempo_bpm(events: NoteEvents) -> float:
    """Estimate one tempo from the onsets; NaN where they do not repeat within a beat's reach.

    The amplitudes of the notes, laid on a time line at their onsets, blurred and freed of their mean, are correlated
    with themselves. A tempo scores the correlation at 1, 2, 3 and 4 of its beats, weighted 1, 1/2, 1/3, 1/4, times a
    log-normal prior (mode 120 beats a minute, SD one octave; its form is that of Ellis 2007, "Beat tracking by dynamic
    programming"), which settles the octave. The best tempo in 40-220 wins.

    Parameters
    ----------
    events
        The notes of a track.

    Returns
    -------
    float
        Beats a minute, 40-220; NaN with fewer than two distinct onsets, or where no two lie within 6 s of each other.
    """
    longest_s = _TEMPO_MULTIPLES * 60 / TEMPO_MIN_BPM
    if len(events) < 2 or events.onset_s[-1] == events.onset_s[0]:
        return math.nan
    position = np.round((events.onset_s - events.onset_s[0]) / _TEMPO_BIN_S).astype(np.int64)
    n_bins = int(position[-1]) + 1
    onsets = np.bincount(position, weights=np.maximum(events.amplitude, 1e-3), minlength=n_bins)
    onsets -= onsets.mean()

    n_lags = math.ceil(longest_s / _TEMPO_BIN_S) + 2
    size = 1 << (n_bins + n_lags).bit_length()
    frequency_hz = np.fft.rfftfreq(size, _TEMPO_BIN_S)
    # The blur, in the frequency domain: a Gaussian over each of the two copies that are correlated.
    blur = np.exp(-((2 * np.pi * frequency_hz * _TEMPO_BLUR_S) ** 2))
    correlation = np.fft.irfft(np.abs(np.fft.rfft(onsets, size)) ** 2 * blur, size)[:n_lags]

    steps = math.ceil(math.log2(TEMPO_MAX_BPM / TEMPO_MIN_BPM) * 400)
    tempo = np.geomspace(TEMPO_MIN_BPM, TEMPO_MAX_BPM, steps)
    lag_s = np.arange(n_lags) * _TEMPO_BIN_S
    score = np.zeros(steps)
    for beats in range(1, _TEMPO_MULTIPLES + 1):
        score += np.interp(beats * 60 / tempo, lag_s, correlation) / beats
    prior = np.exp(-0.5 * (np.log2(tempo / TEMPO_CENTRE_BPM) / TEMPO_SPREAD_OCTAVES) ** 2)
    # Negative scores are raised to 0 first: the prior would favour the unlikeliest of them.
    weighted = np.maximum(score, 0) * prior
    best = int(np.argmax(weighted))
    return float(tempo[best]) if weighted[best] > 0 else math.nan


def to_midi(events: NoteEvents) -> pretty_midi.PrettyMIDI:
    """Return the notes as a MIDI file of one instrument (program 0), its initial tempo the estimated one, else 120.

    Parameters
    ----------
    events
        The notes of a track.

    Returns
    -------
    pretty_midi.PrettyMIDI
        Velocities are at least 1, since a velocity of 0 ends a note.
    """
    import pretty_midi

    tempo = tempo_bpm(events)
    midi = pretty_midi.PrettyMIDI(initial_tempo=120.0 if math.isnan(tempo) else tempo)
    instrument = pretty_midi.Instrument(program=0)
    velocity = np.clip(note_velocity(events), 1, 127)
    columns: list[list[Any]] = [a.tolist() for a in (velocity, events.pitch, events.onset_s, events.offset_s)]
    instrument.notes = [
        pretty_midi.Note(velocity=loudness, pitch=pitch, start=start, end=end)
        for loudness, pitch, start, end in zip(*columns, strict=True)
    ]
    midi.instruments.append(instrument)
    return midi


def _check_duration(duration_s: float) -> None:
    if not (math.isfinite(duration_s) and duration_s > 0):
        raise ValueError(f"duration_s={duration_s} must be finite and > 0")


def _intervals(pitch: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.diff(pitch) if len(pitch) > 1 else np.zeros(1)


def _interval_class_counts(events: NoteEvents) -> NDArray[np.float64]:
    """Pairs sounding 50 ms after each distinct onset, by |difference of pitches| mod 12, unison left out, shape (12,).

    With C the notes of each pitch at each moment, the entry (p, q) of CᵀC counts the pairs of pitches p and q over
    all moments.
    """
    moment_s = np.unique(events.onset_s) + _SOUNDING_DELAY_S
    first = np.searchsorted(moment_s, events.onset_s, side="left")
    stop = np.searchsorted(moment_s, events.offset_s, side="left")
    lowest = int(events.pitch.min())
    row = events.pitch.astype(np.int64) - lowest
    n_rows = int(row.max()) + 1
    pairs = np.zeros((n_rows, n_rows))
    for begin in range(0, len(moment_s), _SOUNDING_BLOCK):
        end = min(begin + _SOUNDING_BLOCK, len(moment_s))
        inside = (first < end) & (stop > begin)
        change = np.zeros((end - begin + 1, n_rows))
        np.add.at(change, (np.maximum(first[inside] - begin, 0), row[inside]), 1)
        np.add.at(change, (np.minimum(stop[inside], end) - begin, row[inside]), -1)
        sounding = np.cumsum(change[:-1], axis=0)
        pairs += sounding.T @ sounding
    counts = np.zeros(12)
    for step in range(1, n_rows):
        counts[step % 12] += np.trace(pairs, offset=step)
    return counts
