import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import notes
from features.notes import (
    NOTE_FEATURES,
    NOTE_STATISTICS,
    note_features,
    note_sequence,
    note_statistics,
    tempo_bpm,
    to_midi,
)
from features.transcription import NoteEvents

FRAME_S = 256 / 22050  # Basic Pitch places onsets on frames


def make_events(*played: tuple[float, float, int, float]) -> NoteEvents:
    """Notes from (onset in s, duration in s, MIDI pitch, amplitude)."""
    onset_s, duration_s, pitch, amplitude = np.array(played, dtype=np.float64).reshape(-1, 4).T
    return NoteEvents.from_unsorted(onset_s, onset_s + duration_s, pitch, amplitude)


def steady_series(bpm: float, n: int, per_beat: int = 1, accent: float = 0.0, jitter_s: float = 0.0) -> NoteEvents:
    rng = np.random.default_rng(0)
    onset_s = 0.3 + np.arange(n) * 60 / bpm / per_beat + jitter_s * rng.standard_normal(n)
    onset_s = np.round(np.sort(onset_s) / FRAME_S) * FRAME_S
    amplitude = 0.4 + accent * (np.arange(n) % per_beat == 0)
    return NoteEvents.from_unsorted(onset_s, onset_s + 0.2, np.full(n, 60), amplitude)


NOTHING = make_events()
ONE = make_events((0.5, 2.0, 69, 0.5))
# C major chord, then G alone, then C' above a held G
PIECE = make_events((0.0, 1.0, 60, 0.8), (0.0, 1.0, 64, 0.6), (0.0, 1.0, 67, 0.6), (1.0, 2.0, 67, 0.4), (2.0, 1.0, 72, 0.2))


@st.composite
def note_lists(draw: st.DrawFn) -> NoteEvents:
    # 64ths of a second: sums and differences are exact, so that ties stay ties
    note = st.tuples(
        st.integers(0, 300).map(lambda step: step / 64),
        st.integers(1, 150).map(lambda steps: steps / 64),
        st.integers(40, 80),
        st.floats(0.1, 1.0),
    )
    return make_events(*draw(st.lists(note, min_size=1, max_size=30)))


def named(values: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))


def transposed(events: NoteEvents, semitones: int) -> NoteEvents:
    return NoteEvents(events.onset_s, events.offset_s, events.pitch + np.int16(semitones), events.amplitude)


def test_names() -> None:
    assert len(NOTE_STATISTICS) == len(set(NOTE_STATISTICS)) == 22
    assert len(NOTE_FEATURES) == len(set(NOTE_FEATURES)) == 54
    assert NOTE_STATISTICS[8:12] == ("tempo_bpm", "note_density", "pc_c", "pc_cs")


def test_statistics_against_values_by_hand() -> None:
    values = note_statistics(PIECE, 4.0)
    assert values.shape == (22,)
    assert values.dtype == np.float32
    got = named(values, NOTE_STATISTICS)
    assert got["pitch_mean"] == 66.0
    assert got["pitch_std"] == pytest.approx(math.sqrt((36 + 4 + 1 + 1 + 36) / 5))
    assert got["duration_mean"] == pytest.approx(1.2)
    assert got["duration_std"] == pytest.approx(0.4)
    velocity = [102, 76, 76, 51, 25]  # 101.6, 76.2, 76.2, 50.8, 25.4
    assert got["velocity_mean"] == pytest.approx(66.0)
    assert got["velocity_std"] == pytest.approx(np.std(velocity))
    assert got["interval_mean"] == pytest.approx(3.0)  # 4, 3, 0, 5
    assert got["interval_std"] == pytest.approx(np.std([4, 3, 0, 5]))
    assert got["tempo_bpm"] == pytest.approx(60.0, rel=0.01)
    assert got["note_density"] == 1.25
    assert [got[name] for name in ("pc_c", "pc_e", "pc_g")] == pytest.approx([0.4, 0.2, 0.4])
    assert values[10:].sum() == pytest.approx(1.0)


def test_pitch_classes_are_those_of_pretty_midi() -> None:
    rng = np.random.default_rng(2)
    events = make_events(*((t, rng.uniform(0.1, 2), p, 0.5) for t, p in enumerate(rng.integers(21, 109, 40))))
    expected = to_midi(events).get_pitch_class_histogram(normalize=True)
    np.testing.assert_allclose(note_statistics(events, 50.0)[10:], expected, rtol=1e-6)


def test_features_against_values_by_hand() -> None:
    values = note_features(PIECE, 4.0)
    assert values.shape == (54,)
    assert values.dtype == np.float32
    got = named(values, NOTE_FEATURES)
    assert got["pitch_mean"] == 66.0
    assert got["duration_std"] == pytest.approx(0.4)
    assert got["amplitude_mean"] == pytest.approx(0.52)
    assert got["amplitude_std"] == pytest.approx(np.std([0.8, 0.6, 0.6, 0.4, 0.2]))
    assert got["interval_abs_mean"] == pytest.approx(3.0)
    assert got["note_density"] == 1.25
    assert got["onset_interval_mean"] == pytest.approx(0.5)  # 0, 0, 1, 1
    assert got["onset_interval_std"] == pytest.approx(0.5)
    assert got["pitch_p10"] == pytest.approx(61.6)  # sorted 60 64 67 67 72, at 0.4 and 3.6 of 0-4
    assert got["pitch_p90"] == pytest.approx(70.0)
    assert got["log_n_notes"] == pytest.approx(math.log(6))
    assert got["polyphony"] == pytest.approx(6 / 4)
    by_class = [values[NOTE_FEATURES.index(f"pc_duration_{name}")] for name in ("c", "e", "g")]
    assert by_class == pytest.approx([2 / 6, 1 / 6, 3 / 6])
    rolled = values[28:40]
    assert rolled[[0, 5, 9]] == pytest.approx([3 / 6, 2 / 6, 1 / 6])  # from G: G, C, E
    # at 0.05 s: E-C 4, G-E 3, G-C 7; at 1.05 s G alone; at 2.05 s C'-G 5
    classes = values[40:52]
    assert classes[[3, 4, 5, 7]] == pytest.approx([0.25] * 4)
    assert classes.sum() == pytest.approx(1.0)
    assert got["intervals_per_note"] == pytest.approx(4 / 5)
    assert got["distinct_pitches_per_note"] == pytest.approx(4 / 5)


def test_falling_intervals_are_negative() -> None:
    got = named(note_features(make_events((0, 1, 70, 0.5), (1, 1, 60, 0.5)), 2.0), NOTE_FEATURES)
    assert (got["interval_mean"], got["interval_abs_mean"]) == (-10.0, 10.0)


def test_unison_is_left_out_and_octaves_count_in_class_0() -> None:
    unison = make_events((0.0, 2.0, 60, 0.5), (0.5, 1.0, 60, 0.5))
    assert not note_features(unison, 2.0)[40:53].any()
    octaves = named(note_features(make_events((0.0, 1.0, 48, 0.5), (0.0, 1.0, 60, 0.5), (0.0, 1.0, 84, 0.5)), 2.0), NOTE_FEATURES)
    assert octaves["interval_class_0"] == 1.0
    assert octaves["intervals_per_note"] == 1.0


def test_notes_sound_together_only_50_ms_after_an_onset() -> None:
    def pairs(*played: tuple[float, float, int, float]) -> float:
        return round(named(note_features(make_events(*played), 2.0), NOTE_FEATURES)["intervals_per_note"] * len(played))

    assert pairs((0.0, 0.54, 60, 0.5), (0.5, 1.0, 64, 0.5)) == 0  # ends 40 ms after the second begins
    assert pairs((0.0, 0.56, 60, 0.5), (0.5, 1.0, 64, 0.5)) == 1
    assert pairs((0.0, 1.0, 60, 0.5), (0.04, 1.0, 64, 0.5)) == 2  # seen after both onsets


def test_interval_classes_equal_a_count_pair_by_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "_SOUNDING_BLOCK", 16)
    rng = np.random.default_rng(5)
    onset_s = rng.integers(0, 900, 300) * FRAME_S
    events = NoteEvents.from_unsorted(
        onset_s, onset_s + rng.uniform(0.03, 2, 300), rng.integers(30, 90, 300), rng.uniform(0, 1, 300)
    )
    counts = np.zeros(12)
    for moment_s in np.unique(events.onset_s) + 0.05:
        sounding = events.pitch[(events.onset_s <= moment_s) & (events.offset_s > moment_s)].tolist()
        for at, pitch in enumerate(sounding):
            for other in sounding[:at]:
                counts[abs(pitch - other) % 12] += pitch != other
    got = note_features(events, 12.0)
    np.testing.assert_allclose(got[40:52], counts / counts.sum(), rtol=1e-6)
    assert got[52] == pytest.approx(counts.sum() / 300)


def test_without_notes_all_is_zero_but_an_unknown_tempo() -> None:
    statistics = note_statistics(NOTHING, 10.0)
    assert math.isnan(statistics[8])
    assert not np.delete(statistics, 8).any()
    features = note_features(NOTHING, 10.0)
    assert features.shape == (54,)
    assert not features.any()
    assert not note_sequence(NOTHING).any()


def test_one_note_has_no_interval_and_no_tempo() -> None:
    statistics = named(note_statistics(ONE, 4.0), NOTE_STATISTICS)
    assert math.isnan(statistics["tempo_bpm"])
    assert (statistics["interval_mean"], statistics["interval_std"], statistics["note_density"]) == (0.0, 0.0, 0.25)
    assert (statistics["pitch_mean"], statistics["pc_a"], statistics["velocity_mean"]) == (69.0, 1.0, 64.0)
    features = named(note_features(ONE, 4.0), NOTE_FEATURES)
    assert features["onset_interval_mean"] == features["intervals_per_note"] == features["interval_abs_mean"] == 0
    assert features["pc_duration_rolled_0"] == features["distinct_pitches_per_note"] == 1
    assert features["polyphony"] == 0.5


@pytest.mark.parametrize("bpm", [70, 90, 100, 120, 140, 160])
@pytest.mark.parametrize("jitter_s", [0.0, 0.01])
def test_tempo_of_a_steady_series(bpm: float, jitter_s: float) -> None:
    assert tempo_bpm(steady_series(bpm, 64, jitter_s=jitter_s)) == pytest.approx(bpm, rel=0.01)


@pytest.mark.parametrize("bpm", [80, 90, 120, 140])
@pytest.mark.parametrize("per_beat", [2, 3, 4])
def test_tempo_follows_the_accents(bpm: float, per_beat: int) -> None:
    assert tempo_bpm(steady_series(bpm, 64 * per_beat, per_beat, accent=0.6)) == pytest.approx(bpm, rel=0.01)


@pytest.mark.parametrize(("onsets_per_minute", "bpm"), [(60, 60), (200, 100), (220, 110), (240, 120)])
def test_of_two_octaves_the_one_near_120_is_taken(onsets_per_minute: float, bpm: float) -> None:
    assert tempo_bpm(steady_series(onsets_per_minute, 64)) == pytest.approx(bpm, rel=0.01)


def test_chords_have_no_tempo_of_their_own() -> None:
    chord = make_events(*((0.0, 1.0, pitch, 0.5) for pitch in (60, 64, 67)))
    assert math.isnan(tempo_bpm(chord))


@pytest.mark.parametrize("gap_s", [6.2, 7.3, 20.0, 300.0])
@pytest.mark.parametrize("n", [2, 3, 10])
def test_onsets_far_apart_have_no_tempo(gap_s: float, n: int) -> None:
    assert math.isnan(tempo_bpm(make_events(*((k * gap_s, 1.0, 60, 0.5) for k in range(n)))))


def test_tempo_counts_silent_notes() -> None:
    assert tempo_bpm(make_events(*((k * 0.5, 0.2, 60, 0.0) for k in range(20)))) == pytest.approx(120, rel=0.01)


def test_sequence_rows() -> None:
    sequence = note_sequence(PIECE, 7)
    assert sequence.shape == (7, 4)
    assert sequence.dtype == np.float32
    expected = [[60, 0, 1, 102], [64, 0, 1, 76], [67, 0, 1, 76], [67, 1, 2, 51], [72, 1, 1, 25], [0] * 4, [0] * 4]
    np.testing.assert_allclose(sequence, expected, rtol=1e-6)


def test_sequence_keeps_the_first_notes() -> None:
    np.testing.assert_array_equal(note_sequence(PIECE, 2), note_sequence(PIECE)[:2])
    assert note_sequence(PIECE).shape == (512, 4)


def test_a_silent_lowest_note_is_not_masked() -> None:
    assert note_sequence(make_events((0.0, 0.5, 0, 0.0)))[0].any()


def test_midi_file() -> None:
    midi = to_midi(make_events(*((k * 2 / 3, 0.2, 60 + k, 0.001 if k == 0 else 1.0) for k in range(12))))
    (instrument,) = midi.instruments
    assert instrument.program == 0
    assert [note.pitch for note in instrument.notes] == list(range(60, 72))
    assert [note.velocity for note in instrument.notes] == [1] + [127] * 11
    assert (instrument.notes[3].start, instrument.notes[3].end) == pytest.approx((2.0, 2.2))
    assert midi.get_tempo_changes()[1] == pytest.approx([90.0], rel=0.01)
    assert to_midi(NOTHING).get_tempo_changes()[1] == pytest.approx([120.0])


@given(note_lists(), st.integers(-12, 12))
def test_transposition_shifts_pitch_and_turns_the_histogram(events: NoteEvents, semitones: int) -> None:
    here, there = note_statistics(events, 10.0), note_statistics(transposed(events, semitones), 10.0)
    assert there[0] - here[0] == pytest.approx(semitones, abs=1e-4)
    np.testing.assert_allclose(there[1:10], here[1:10], atol=1e-5)
    np.testing.assert_allclose(there[10:], np.roll(here[10:], semitones), atol=1e-6)

    before, after = note_features(events, 10.0), note_features(transposed(events, semitones), 10.0)
    shifted = [NOTE_FEATURES.index(name) for name in ("pitch_mean", "pitch_p10", "pitch_p90")]
    np.testing.assert_allclose(after[shifted] - before[shifted], semitones, atol=1e-4)
    np.testing.assert_allclose(after[16:28], np.roll(before[16:28], semitones), atol=1e-6)
    np.testing.assert_allclose(after[40:], before[40:], atol=1e-6)
    histogram = np.sort(before[16:28])
    if histogram[-1] - histogram[-2] > 1e-6:  # with tied peaks the first from C is taken, which depends on the key
        np.testing.assert_allclose(after[28:40], before[28:40], atol=1e-6)


@given(note_lists(), st.integers(0, 6400).map(lambda step: step / 64))
def test_a_later_start_changes_no_feature(events: NoteEvents, delay_s: float) -> None:
    later = NoteEvents(events.onset_s + delay_s, events.offset_s + delay_s, events.pitch, events.amplitude)
    np.testing.assert_allclose(note_features(later, 10.0), note_features(events, 10.0), rtol=1e-6)
    np.testing.assert_allclose(note_statistics(later, 10.0), note_statistics(events, 10.0), rtol=1e-6)


@given(note_lists())
def test_features_are_finite(events: NoteEvents) -> None:
    assert np.isfinite(note_features(events, 10.0)).all()
    assert np.isfinite(np.delete(note_statistics(events, 10.0), 8)).all()


@pytest.mark.parametrize("duration_s", [0.0, -1.0, math.nan, math.inf])
def test_bad_duration_is_refused(duration_s: float) -> None:
    with pytest.raises(ValueError, match=f"duration_s={duration_s} must be finite and > 0"):
        note_statistics(PIECE, duration_s)
    with pytest.raises(ValueError, match=f"duration_s={duration_s} must be finite and > 0"):
        note_features(NOTHING, duration_s)


def test_bad_length_is_refused() -> None:
    with pytest.raises(ValueError, match="length=0 must be >= 1"):
        note_sequence(PIECE, 0)
