import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import mutagen
import numpy as np
import pandas as pd
import pytest
import soundfile

from annotate import demo
from annotate.demo import Cues, Note, compose, emotion_probabilities, render, twin, write_corpus

SAMPLE_RATE = 22050
PLAIN = Cues(layers=4)
SEEDS = (0, 1, 2)
EMOTIFY_HEADER = (
    "track id, genre, amazement, solemnity, tenderness, nostalgia, calmness, power, joyful_activation, tension,"
    " sadness, mood, liked, disliked, age, gender, mother tongue"
)


def notes_of(cues: Cues, layer: str | None = None, *, seed: int = 0, duration_s: float = 30.0) -> list[Note]:
    return [n for n in compose(cues, duration_s=duration_s, seed=seed) if layer in (None, n.layer)]


def signal_of(cues: Cues, *, seed: int = 0, duration_s: float = 6.0) -> np.ndarray:
    notes = compose(cues, duration_s=duration_s, seed=seed)
    return render(notes, duration_s=duration_s, sample_rate=SAMPLE_RATE, loudness_db=cues.loudness_db)


def rms_db(x: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(x.astype(np.float64)))))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def outside_scale(notes: Sequence[Note], cues: Cues) -> float:
    scale = {"major": {0, 2, 4, 5, 7, 9, 11}, "minor": {0, 2, 3, 5, 7, 8, 10}}[cues.mode]
    return float(np.mean([(n.pitch - cues.tonic) % 12 not in scale for n in notes]))


def pitch_class_energy(x: np.ndarray, semitones: int, tonic: int) -> float:
    """Energy within a quarter tone of a pitch class over four octaves, measured by one long FFT."""
    power = np.abs(np.fft.rfft(x * np.hanning(x.size))) ** 2
    hz = np.fft.rfftfreq(x.size, 1 / SAMPLE_RATE)
    distance = (12 * np.log2(np.maximum(hz, 1.0) / 440) + 69 - tonic - semitones + 6) % 12 - 6
    return float(power[(np.abs(distance) < 0.5) & (hz > 100) & (hz < 1600)].sum())


def harsh_intervals(notes: Sequence[Note]) -> float:
    """Semitones, tritones and major sevenths between notes that begin together, a chord."""
    onsets: dict[float, list[int]] = {}
    for note in notes:
        onsets.setdefault(note.onset_s, []).append(note.pitch)
    classes = [abs(a - b) % 12 for tones in onsets.values() for i, a in enumerate(tones) for b in tones[:i]]
    assert classes
    return sum(c in (1, 6, 11) for c in classes) / len(onsets)


# Known answers in the note list.


def test_notes_are_sorted_and_inside_the_piece():
    notes = notes_of(Cues(layers=5, dissonance=0.5, regularity=0.2), duration_s=12.5)
    onsets = [n.onset_s for n in notes]
    assert onsets == sorted(onsets)
    assert notes[0].onset_s == 0.0
    assert onsets[-1] > 11.5
    assert max(n.offset_s for n in notes) <= 12.5


@pytest.mark.parametrize("layers", range(1, 6))
def test_layers_sound_in_their_order(layers):
    assert {n.layer for n in notes_of(Cues(layers=layers))} == set(demo.LAYERS[:layers])


def test_layers_differ_in_their_rhythms():
    layers = demo.LAYERS
    onsets = [frozenset(round(n.onset_s, 6) for n in notes_of(Cues(layers=5), layer)) for layer in layers]
    assert len(set(onsets)) == len(layers)


@pytest.mark.parametrize("mode", ["major", "minor"])
@pytest.mark.parametrize("seed", SEEDS)
def test_without_chromaticism_every_note_lies_in_the_scale(mode, seed):
    cues = twin(PLAIN, mode=mode, tonic=57)
    assert outside_scale(notes_of(cues, seed=seed), cues) == 0.0


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
@pytest.mark.parametrize("seed", SEEDS)
def test_chromaticism_is_the_share_of_melody_notes_outside_the_scale(share, seed):
    cues = twin(PLAIN, chromaticism=share)
    assert outside_scale(notes_of(cues, "melody", seed=seed), cues) == pytest.approx(share, abs=0.03)


def test_high_chromaticism_modulates_the_chords():
    cues = twin(PLAIN, chromaticism=1.0)
    assert outside_scale(notes_of(twin(cues, chromaticism=0.5), "chords"), cues) == 0.0
    assert outside_scale(notes_of(cues, "chords"), cues) > 0.1


@pytest.mark.parametrize("tempo_bpm", [60.0, 110.0, 173.0])
def test_a_regular_piece_keeps_to_the_grid_of_its_tempo(tempo_bpm):
    slots = np.array([n.onset_s for n in notes_of(twin(PLAIN, tempo_bpm=tempo_bpm))]) / (15 / tempo_bpm)
    np.testing.assert_allclose(slots, np.round(slots), atol=1e-9)
    arpeggio = np.diff([n.onset_s for n in notes_of(twin(PLAIN, tempo_bpm=tempo_bpm), "arpeggio")])
    np.testing.assert_allclose(arpeggio, 15 / tempo_bpm)


@pytest.mark.parametrize("seed", SEEDS)
def test_intervals_between_onsets_spread_as_regularity_falls_and_keep_their_mean(seed):
    def spread(regularity: float) -> float:
        onsets = np.diff([n.onset_s for n in notes_of(twin(PLAIN, regularity=regularity), "arpeggio", seed=seed)])
        assert np.mean(onsets) == pytest.approx(15 / 110, rel=0.05)
        return float(np.std(onsets) / np.mean(onsets))

    steps = [spread(regularity) for regularity in (1.0, 0.7, 0.4, 0.0)]
    assert steps[0] == pytest.approx(0.0, abs=1e-9)
    assert np.all(np.diff(steps) > 0.05)


def test_articulation_sets_the_sounding_share_of_a_slot():
    def share(articulation: float) -> float:
        notes = notes_of(twin(PLAIN, articulation=articulation), "arpeggio")[:-1]
        return float(np.mean([(n.offset_s - n.onset_s) / (15 / 110) for n in notes]))

    assert share(0.0) == pytest.approx(1.06)
    assert share(1.0) == pytest.approx(0.2)
    assert share(0.5) == pytest.approx(0.63)


@pytest.mark.parametrize("seed", SEEDS)
def test_dissonance_fills_chords_with_harsh_intervals(seed):
    def harsh(dissonance: float) -> float:
        cues = twin(PLAIN, layers=2, dissonance=dissonance)
        return harsh_intervals(notes_of(cues, "chords", seed=seed))

    steps = [harsh(dissonance) for dissonance in (0.0, 0.3, 0.6, 1.0)]
    assert steps[0] == 0.0
    assert np.all(np.diff(steps) > 0.5)
    assert steps[-1] > 4


def test_one_layer_can_be_dissonant():
    clashes = notes_of(Cues(layers=1, dissonance=1.0), "clash")
    melody = notes_of(Cues(layers=1, dissonance=1.0), "melody")
    assert [n.onset_s for n in clashes] == [n.onset_s for n in melody]
    assert {m.pitch - c.pitch for m, c in zip(melody, clashes, strict=True)} == {1, 6, 11}


def test_register_moves_the_whole_piece():
    means = [np.mean([n.pitch for n in notes_of(twin(PLAIN, tonic=tonic))]) for tonic in (48, 60, 72)]
    np.testing.assert_allclose(np.diff(means), 12.0, atol=1.0)


# Twins.


def without(notes: Sequence[Note], *names: str) -> list[tuple[object, ...]]:
    return [tuple(v for k, v in vars(n).items() if k not in names) for n in notes]


@pytest.mark.parametrize(
    ("change", "may_differ"),
    [
        ({"mode": "minor"}, ("pitch",)),
        ({"tonic": 65}, ("pitch",)),
        ({"articulation": 0.9}, ("offset_s", "attack_s")),
        ({"regularity": 0.8}, ("onset_s", "offset_s")),
        ({"chromaticism": 0.4}, ("pitch",)),
        ({"loudness_db": -30.0}, ()),
        ({"timbre": "guitar"}, ("timbre",)),
        ({"tempo_bpm": 112.0}, ("onset_s", "offset_s")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_twin_differs_in_the_changed_cue_only(change, may_differ):
    base = twin(PLAIN, regularity=0.9, dissonance=0.3)
    for layer in ("melody", "clash", "chords", "bass", "arpeggio"):
        one, other = notes_of(base, layer), notes_of(twin(base, **change), layer)
        n = min(len(one), len(other))
        assert n >= len(one) - 8  # a note or two may cross the end
        same = sorted if layer == "chords" and "pitch" not in may_differ and "onset_s" not in may_differ else list
        a, b = same(without(one[:n], *may_differ)), same(without(other[:n], *may_differ))
        assert a == b
    if may_differ:
        assert without(notes_of(base)) != without(notes_of(twin(base, **change)))


@pytest.mark.parametrize("change", [{"dissonance": 0.8}, {"layers": 5}])
def test_more_dissonance_or_layers_only_adds_notes(change):
    base = twin(PLAIN, layers=2, regularity=0.5, dissonance=0.2)
    more = set(notes_of(twin(base, **change)))
    assert set(notes_of(base)) < more


def test_a_minor_twin_has_the_same_degrees():
    major, minor = notes_of(PLAIN, "melody"), notes_of(twin(PLAIN, mode="minor"), "melody")
    scales = demo.SCALES
    degrees = [scales["major"].index((n.pitch - 60) % 12) for n in major]
    assert degrees == [scales["minor"].index((n.pitch - 60) % 12) for n in minor]


def test_a_longer_piece_begins_with_the_shorter_one():
    cues = twin(PLAIN, regularity=0.3, dissonance=0.4, chromaticism=0.7, layers=5)
    short = [n for n in notes_of(cues, duration_s=10.0) if n.offset_s < 10.0]
    assert set(short) <= set(notes_of(cues, duration_s=60.0))


def test_seeds_give_different_pieces():
    assert len({tuple(notes_of(PLAIN, seed=seed)) for seed in range(8)}) == 8
    assert notes_of(PLAIN, seed=3) == notes_of(PLAIN, seed=3)


def test_each_purpose_draws_its_own_numbers():
    assert len({demo._random(purpose, 0, (1,))[0] for purpose in demo._PURPOSES}) == len(demo._PURPOSES)


# Known answers in the signal.


@pytest.mark.parametrize("timbre", demo.TIMBRES)
@pytest.mark.parametrize(("pitch", "hz"), [(69, 440.0), (45, 110.0)])
def test_a_rendered_note_has_its_frequency(timbre, pitch, hz):
    x = render([Note(0.0, 2.0, pitch, 1.0, timbre)], duration_s=2.0, sample_rate=SAMPLE_RATE, loudness_db=-20.0)
    power = np.abs(np.fft.rfft(x * np.hanning(x.size)))
    assert np.argmax(power) / 2.0 == pytest.approx(hz, rel=0.005)


@pytest.mark.parametrize("timbre", demo.TIMBRES)
@pytest.mark.parametrize("loudness_db", [-40.0, -20.0, -10.0])
def test_the_signal_has_the_loudness_asked_for_and_does_not_clip(timbre, loudness_db):
    x = signal_of(Cues(timbre=timbre, loudness_db=loudness_db, layers=5, articulation=0.9), duration_s=4.0)
    assert x.dtype == np.float32
    assert x.shape == (4 * SAMPLE_RATE,)
    assert rms_db(x) == pytest.approx(loudness_db, abs=0.01)
    assert np.abs(x).max() <= 0.9


def test_the_end_fades():
    x = signal_of(twin(PLAIN, articulation=0.0))
    level = [np.abs(x[-n : x.size - n + 500]).max() for n in (6000, 1000, 500)]
    assert level[0] > 5 * level[1] > 5 * level[2]
    assert x[-1] == 0.0


@pytest.mark.parametrize("timbre", ["piano", "strings", "synth"])
def test_the_third_is_heard_as_the_mode_says(timbre):
    def thirds_ratio_db(mode: str) -> float:
        cues = Cues(mode=mode, layers=3, tonic=62, timbre=timbre, articulation=0.2)
        x = signal_of(cues, duration_s=10.0)
        return float(10 * np.log10(pitch_class_energy(x, 4, 62) / pitch_class_energy(x, 3, 62)))

    assert thirds_ratio_db("major") > 6
    assert thirds_ratio_db("minor") < -3


def test_staccato_leaves_silence_between_notes():
    def quiet_share(articulation: float) -> float:
        x = signal_of(Cues(layers=2, articulation=articulation), duration_s=8.0)
        frames = np.sqrt(np.mean(np.square(x[: x.size // 441 * 441].reshape(-1, 441)), axis=1))
        return float(np.mean(frames < 0.1 * np.max(frames)))

    assert quiet_share(0.0) < 0.1
    assert quiet_share(1.0) > 0.4


def test_an_onset_is_heard_at_its_time():
    notes = [Note(0.5, 0.9, 60, 1.0, "piano"), Note(1.25, 1.5, 36, 1.0, "percussion", "percussion")]
    x = render(notes, duration_s=2.0, sample_rate=SAMPLE_RATE, loudness_db=-20.0)
    assert np.abs(x[: SAMPLE_RATE // 2]).max() < 1e-12
    before = np.abs(x[int(1.2 * SAMPLE_RATE) : int(1.249 * SAMPLE_RATE)]).max()
    assert np.abs(x[int(1.25 * SAMPLE_RATE) : int(1.27 * SAMPLE_RATE)]).max() > 5 * before


def test_the_order_of_notes_does_not_matter_to_the_ear():
    notes = notes_of(PLAIN, duration_s=3.0)
    x = render(notes, duration_s=3.0, sample_rate=SAMPLE_RATE, loudness_db=-20.0)
    np.testing.assert_allclose(render(notes[::-1], duration_s=3.0, sample_rate=SAMPLE_RATE, loudness_db=-20.0), x, atol=1e-6)


# The corpus.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "corpus"
    paths = write_corpus(folder, duration_s=2.0)
    assert [str(p.relative_to(folder)) for p in paths] == [f"{g}/{n}.mp3" for g in demo.GENRES for n in (1, 2)]
    return folder


def test_the_layout_is_emotifys(corpus):
    files = {f"{genre}/{n}.mp3" for genre in ("classical", "rock", "electronic", "pop") for n in (1, 2)}
    assert set(digests(corpus)) == files | {"data.csv", "cues.csv"}


@pytest.mark.parametrize("file_format", ["mp3", "wav", "flac"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, file_format):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        write_corpus(tmp_path / name, tracks_per_genre=1, duration_s=1.0, seed=seed, file_format=file_format)
    a, b, c = (digests(tmp_path / name) for name in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert all(a[name] != c[name] for name in a)
    assert len(set(a.values())) == len(a) == 6


@pytest.mark.parametrize("file_format", ["mp3", "wav", "flac"])
def test_more_tracks_leave_the_earlier_ones_alone(tmp_path, file_format):
    few = write_corpus(tmp_path / "few", tracks_per_genre=1, duration_s=1.0, file_format=file_format)
    write_corpus(tmp_path / "more", tracks_per_genre=2, duration_s=1.0, file_format=file_format)
    assert len(few) == 4
    for path in few:
        assert path.read_bytes() == (tmp_path / "more" / path.relative_to(tmp_path / "few")).read_bytes()


def test_audio_decodes_to_what_the_cues_say(corpus):
    cues = pd.read_csv(corpus / "cues.csv").set_index("track")
    assert len(cues) == 8
    for track, row in cues.iterrows():
        x, sample_rate = soundfile.read(corpus / str(track))
        assert (sample_rate, x.ndim) == (44100, 1)
        assert x.size / sample_rate == pytest.approx(2.0, abs=0.06)
        assert rms_db(x) == pytest.approx(row["loudness_db"], abs=0.5)


@pytest.mark.parametrize("file_format", ["mp3", "wav", "flac"])
def test_tags(tmp_path, file_format):
    paths = write_corpus(tmp_path / "c", tracks_per_genre=3, duration_s=1.0, file_format=file_format)
    tags = [mutagen.File(path).tags for path in paths]
    keys = ("artist", "album", "title") if file_format == "flac" else ("TPE1", "TALB", "TIT2")
    artists, albums, titles = ([str(tag[key][0]) for tag in tags] for key in keys)
    assert artists[:3] == ["Demo Ensemble A", "Demo Ensemble A", "Demo Ensemble B"]
    assert len(set(artists)) == 8
    assert len(set(albums)) == 4
    assert len(set(titles)) == 12
    assert all(soundfile.info(path).duration == pytest.approx(1.0, abs=0.06) for path in paths)


def test_ratings_read_as_emotifys(corpus):
    text = (corpus / "data.csv").read_text()
    assert text.splitlines()[0] == EMOTIFY_HEADER
    ratings = pd.read_csv(io.StringIO(text))
    ratings.columns = ratings.columns.str.strip()
    assert list(ratings.columns[2:11]) == list(demo.EMOTIONS)
    ids = ratings.groupby("genre")["track id"].unique().map(list).to_dict()
    assert ids == {"classical": [1, 2], "rock": [101, 102], "electronic": [201, 202], "pop": [301, 302]}
    assert (ratings.groupby("track id").size() == 12).all()
    assert set(np.unique(ratings[[*demo.EMOTIONS, "liked", "disliked", "gender"]])) == {0, 1}
    assert ratings["mood"].between(1, 5).all()


def test_cues_are_written_whole(corpus):
    with (corpus / "cues.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [f.name for f in demo.fields(Cues)]
    assert list(rows[0]) == ["track", "track id", "genre", *names]
    assert {row["mode"] for row in rows} == {"major", "minor"}
    assert len({tuple(row[name] for name in names) for row in rows}) == len(rows)
    for row in rows:
        place = demo.GENRES[row["genre"]] + int(Path(row["track"]).stem)
        assert int(row["track id"]) == place


def test_shares_of_listeners_follow_the_rule(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_write_audio", lambda *_: None)
    write_corpus(tmp_path, tracks_per_genre=100)
    ratings = pd.read_csv(tmp_path / "data.csv", skipinitialspace=True).groupby("track id")[list(demo.EMOTIONS)].mean()
    table = pd.read_csv(tmp_path / "cues.csv").set_index("track id")[[f.name for f in demo.fields(Cues)]]
    rule = pd.DataFrame([emotion_probabilities(Cues(**row)) for row in table.to_dict("records")], index=table.index)
    assert len(rule) == 400
    np.testing.assert_allclose(ratings.mean(), rule.mean(), atol=0.03)
    assert ratings.corrwith(rule.loc[ratings.index]).min() > 0.3
    assert rule.mean().between(0.05, 0.5).all()


@pytest.mark.parametrize(
    ("emotion", "more", "less"),
    [
        ("joyful_activation", {"mode": "major", "tempo_bpm": 160.0, "articulation": 0.9}, {"mode": "minor"}),
        ("sadness", {"mode": "minor", "tempo_bpm": 60.0, "articulation": 0.0}, {"tempo_bpm": 150.0}),
        ("tension", {"dissonance": 0.9, "regularity": 0.2}, {"dissonance": 0.0}),
        ("calmness", {"tempo_bpm": 60.0, "dissonance": 0.0, "articulation": 0.0}, {"dissonance": 0.7}),
        ("power", {"loudness_db": -10.0, "layers": 5}, {"layers": 1}),
    ],
)
def test_emotions_follow_their_cues(emotion, more, less):
    high, low = emotion_probabilities(twin(PLAIN, **more)), emotion_probabilities(twin(PLAIN, **less))
    assert high[emotion] > 0.4 > low[emotion]
    assert list(high) == list(demo.EMOTIONS)


# Bad arguments.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "dorian"}, r"mode='dorian' must be one of major, minor"),
        ({"tonic": 20}, r"tonic=20 must be a whole MIDI pitch from 36 to 84"),
        ({"tonic": 60.5}, r"tonic=60\.5 must be a whole MIDI pitch"),
        ({"tempo_bpm": 0.0}, r"tempo_bpm=0\.0 must be from 30 to 240"),
        ({"tempo_bpm": float("nan")}, r"tempo_bpm=nan must be"),
        ({"articulation": 1.1}, r"articulation=1\.1 must be from 0 to 1"),
        ({"dissonance": -0.1}, r"dissonance=-0\.1 must be from 0 to 1"),
        ({"regularity": 2}, r"regularity=2 must be from 0 to 1"),
        ({"chromaticism": "much"}, r"chromaticism='much' must be from 0 to 1"),
        ({"layers": 0}, r"layers=0 must be a whole number from 1 to 5"),
        ({"layers": True}, r"layers=True must be a whole number"),
        ({"loudness_db": 0.0}, r"loudness_db=0\.0 must be from -60 to -6"),
        ({"timbre": "kazoo"}, r"timbre='kazoo' must be one of piano, strings"),
        ({"key": 3}, r"'key' is not a cue: must be one of mode, tonic"),
    ],
)
def test_bad_cues_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        twin(PLAIN, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"onset_s": -0.1}, r"onset_s=-0\.1 must be finite and >= 0"),
        ({"offset_s": 0.0}, r"offset_s=0\.0 must be finite and > 0\.0"),
        ({"pitch": 128}, r"pitch=128 must be a whole number from 0 to 127"),
        ({"amplitude": 0.0}, r"amplitude=0\.0 must be finite and > 0"),
        ({"timbre": "kazoo"}, r"timbre='kazoo' must be one of"),
        ({"timbre": "percussion"}, r"pitch=60 must be one of 36, 38, 42 in percussion"),
        ({"layer": "choir"}, r"layer='choir' must be one of"),
        ({"attack_s": 0.0}, r"attack_s=0\.0 must be finite and > 0"),
    ],
)
def test_bad_notes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Note(**({"onset_s": 0.0, "offset_s": 1.0, "pitch": 60, "amplitude": 1.0, "timbre": "piano"} | change))


@pytest.mark.parametrize("duration_s", [0, -1.0, float("inf"), float("nan")])
def test_a_piece_has_a_length(duration_s):
    with pytest.raises(ValueError, match=rf"duration_s={duration_s} must be > 0"):
        compose(PLAIN, duration_s=duration_s, seed=0)
    with pytest.raises(ValueError, match=rf"duration_s={duration_s} must be > 0"):
        render(notes_of(PLAIN), duration_s=duration_s, loudness_db=-14.0)


@pytest.mark.parametrize("seed", [-1, 0.5])
def test_a_seed_is_a_whole_number(seed, tmp_path):
    with pytest.raises(ValueError, match=rf"seed={seed} must be a whole number >= 0"):
        compose(PLAIN, duration_s=1.0, seed=seed)
    with pytest.raises(ValueError, match=rf"seed={seed} must be a whole number >= 0"):
        write_corpus(tmp_path / "c", seed=seed)


def test_a_signal_needs_sounding_notes_a_rate_and_a_loudness():
    late = Note(2.0, 3.0, 60, 1.0, "piano")
    click = [Note(0.0, 0.01, 60, 1.0, "piano")]
    with pytest.raises(ValueError, match=r"notes='<1 notes>' must be heard within duration_s=1\.0"):
        render([late], duration_s=1.0, loudness_db=-14.0)
    with pytest.raises(ValueError, match="notes must sound"):
        render([late], duration_s=2.0 + 1e-5, loudness_db=-14.0)
    with pytest.raises(ValueError, match="sample_rate=0 must be a whole number from 8000"):
        render(click, duration_s=1.0, sample_rate=0, loudness_db=-14.0)
    with pytest.raises(ValueError, match=r"loudness_db=-1\.0 must be from -60 to -6"):
        render(click, duration_s=1.0, loudness_db=-1.0)
    with pytest.raises(ValueError, match=r"loudness_db=-6\.0 must be lower: these notes are too sparse"):
        render(click, duration_s=1.0, loudness_db=-6.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tracks_per_genre": 0}, "tracks_per_genre=0 must be a whole number from 1 to 100"),
        ({"tracks_per_genre": 101}, "tracks_per_genre=101 must be a whole number from 1 to 100"),
        ({"duration_s": 0.5}, r"duration_s=0\.5 must be from 1 to 3600"),
        ({"file_format": "ogg"}, "file_format='ogg' must be one of mp3, wav, flac"),
    ],
)
def test_a_bad_corpus_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_corpus(tmp_path / "c", **change)
    assert not (tmp_path / "c").exists()


def test_a_folder_with_anything_in_it_is_refused(tmp_path):
    (tmp_path / "data.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"folder='.*' must be absent or an empty folder"):
        write_corpus(tmp_path)
    with pytest.raises(ValueError, match=r"folder='.*data\.csv' must be absent or an empty folder"):
        write_corpus(tmp_path / "data.csv")
    assert (tmp_path / "data.csv").read_text() == "mine"
