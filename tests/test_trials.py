"""Trials of a bundle: what is tried, how it is measured, and the command from music to a completed card."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
from click.testing import Result

from annotate import card, trials
from annotate.demo import compose
from models import bundle
from models.labels import MIDLEVEL


@pytest.mark.parametrize("cue", trials.CUES, ids=lambda cue: cue.name)
def test_the_pieces_of_a_pair_differ_in_their_cue_alone(cue: trials.Cue) -> None:
    for number in range(len(trials.BASES)):
        low, high = trials.pair_of(cue, number)
        differing = {name for name, value in asdict(low).items() if value != asdict(high)[name]}
        assert differing == {cue.name}
        assert cue.label in MIDLEVEL.labels
        few, many = (compose(cues, duration_s=8.0, seed=number) for cues in (low, high))
        lines = [[note.pitch for note in notes if note.layer == "melody"] for notes in (few, many)]
        if cue.name in ("articulation", "dissonance", "layers"):
            assert lines[0] == lines[1]
        if cue.name in ("mode", "articulation", "chromaticism"):
            assert [note.onset_s for note in few] == [note.onset_s for note in many]


def test_the_changes_are_what_they_are_called(tmp_path: Path) -> None:
    t = np.arange(2 * trials.SAMPLE_RATE) / trials.SAMPLE_RATE
    plain = (0.2 * np.sin(2 * np.pi * 1000 * t) + 0.2 * np.sin(2 * np.pi * 12_000 * t)).astype(np.float32)
    trials.write_changes(tmp_path, plain)
    trials.write_beginnings(tmp_path)
    read = {path.stem: soundfile.read(path, dtype="float32") for path in tmp_path.iterdir()}
    assert set(read) == {"plain", "mp3", "opus", "gain", "bandwidth", "first-0.6", "first-1"}  # no beginning as long as the whole

    def level_db(name: str, hertz: float) -> float:
        signal, rate = read[name]
        middle = signal[rate // 2 : rate // 2 + rate]
        return float(20 * np.log10(np.abs(np.fft.rfft(middle)[round(hertz)]) / (rate / 2) / 0.2))

    for name in ("plain", "mp3", "opus"):
        assert level_db(name, 1000) == pytest.approx(0, abs=0.5)
    assert level_db("gain", 1000) == pytest.approx(-12, abs=0.01)
    assert level_db("bandwidth", 1000) == pytest.approx(0, abs=0.01)
    assert level_db("bandwidth", 12_000) < -60
    assert len(read["first-0.6"][0]) == 0.6 * trials.SAMPLE_RATE
    seconds = soundfile.info(tmp_path / "mp3.mp3").duration
    assert (tmp_path / "mp3.mp3").stat().st_size * 8 / seconds == pytest.approx(128_000, rel=0.05)
    assert soundfile.info(tmp_path / "opus.opus").subtype == "OPUS"


def test_a_change_is_measured_in_spreads_between_tracks() -> None:
    plain = pd.DataFrame({"x": [1.0, 2.0, 3.0, 4.0], "same": 5.0}, index=list("abcd"))
    spread = np.std([1, 2, 3, 4], ddof=1)
    changed = pd.DataFrame({"x": [1.0, 2.5, 2.5], "same": 5.0}, index=list("abc"))  # d could not be annotated
    moved, constant = trials.change_rows(plain, changed, {"f": ["x", "same"]}, "mp3")
    assert moved["tracks"] == 3
    assert moved["spread"] == pytest.approx(spread, abs=1e-4)
    assert moved["mean"] == pytest.approx((0 + 0.5 + 0.5) / 3 / spread, abs=1e-4)
    assert moved["shift"] == pytest.approx(0.0, abs=1e-4)
    assert moved["within"] == pytest.approx(1 / 3, abs=1e-4)
    assert constant["mean"] is None


def test_pairs_count_as_ordered_only_where_the_higher_end_is_higher() -> None:
    columns = tuple(f"m_{label}" for label in MIDLEVEL.labels)
    output = SimpleNamespace(labels=MIDLEVEL.labels, unit="rating 1-10", columns=columns)
    salience = SimpleNamespace(labels=MIDLEVEL.labels, unit="probability", columns=columns)
    held = SimpleNamespace(families={"m": SimpleNamespace(name="m", outputs=(output, salience))})
    rows = {
        f"twins/{cue.name}/{number:02d}-{end}.flac": dict.fromkeys(columns, 5.0)
        for cue in trials.CUES
        for number in range(3)
        for end in ("low", "high")
    }
    rows["twins/mode/00-high.flac"]["m_minorness"] = 6.0
    rows["twins/mode/01-high.flac"]["m_minorness"] = 4.0
    rows["twins/mode/02-high.flac"]["m_dissonance"] = 9.0  # not the cue's label
    table = pd.DataFrame.from_dict(rows, orient="index")
    found = trials.twins(table, held, trials.TrialOptions("x", Path("x"), Path("x"), pairs=3))
    ordered = {one["cue"]: one["ordered"] for one in found["scores"]}
    assert ordered == {"mode": 1, "articulation": 0, "dissonance": 0, "regularity": 0, "layers": 0, "chromaticism": 0}
    assert {one["output"] for one in found["scores"]} == {"m"}
    assert len(found["scores"]) == len(trials.CUES)  # the salience of the features rates nothing


def test_the_sounds_that_are_no_music_are_what_they_are_called() -> None:
    made = {kind: make(0, 3.0) for kind, make in trials.OTHERS.items()}
    assert np.abs(made["silence"]).max() == 0
    assert -78 < 20 * np.log10(np.abs(made["quiet"]).max()) < -75
    assert 20 * np.log10(np.sqrt(np.mean(made["noise"] ** 2))) == pytest.approx(-20, abs=0.2)
    spectrum = np.abs(np.fft.rfft(trials.OTHERS["noise"](1, 3.0))) ** 2  # pink: an octave holds as much power as the next
    assert spectrum[300:600].sum() == pytest.approx(spectrum[3000:6000].sum(), rel=0.3)
    envelope = np.abs(made["speech"]).reshape(-1, 441).max(axis=1)
    assert (envelope < 0.05 * envelope.max()).mean() > 0.03  # pauses
    assert all(np.isfinite(signal).all() and signal.dtype == np.float32 for signal in made.values())
    assert set(trials.KINDS) == {*trials.OTHERS, "too_short"}


@pytest.fixture(scope="module")
def tried(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trials of the built-in descriptor model: the smallest there are."""
    folder = tmp_path_factory.mktemp("trials")
    small = {"tracks": 3, "seconds": 2.0, "pairs": 1, "twin_s": 2.0, "clips": 1, "jobs": 1, "models": ("descriptors",)}
    options = trials.TrialOptions("default", demo_corpus, folder / "trials.json", work=folder / "work", **small)
    trials.try_bundle(options)
    more = trials.TrialOptions("default", demo_corpus, folder / "x.json", work=folder / "work", **small | {"pairs": 2})
    with pytest.raises(ValueError, match=r"holds other trials \(pairs\); choose another folder"):
        trials.try_bundle(more)
    return folder / "trials.json"


def test_trials_are_made_of_real_runs(tried: Path) -> None:
    found = json.loads(tried.read_text())
    table = pd.read_parquet(tried.with_name("work") / "trials.parquet").set_index("track")
    assert found["bundle"]["models_sha256"] == card.models_digest(bundle.load("default"))
    one = next(one for one in found["twins"]["scores"] if one["cue"] == "mode")
    low, high = (table.loc[f"twins/mode/00-{end}.flac", "desc_midlevel_minorness"] for end in ("low", "high"))
    assert one["ordered"] == int(high > low)
    assert one["mean_difference"] == pytest.approx(high - low, abs=1e-3)
    labels = found["robustness"]["labels"]
    assert {one["change"] for one in labels} == set(trials.CHANGES)
    assert {one["family"] for one in labels} == {"descriptors"}
    gain = next(one for one in labels if one["column"] == "desc_film_energy" and one["change"] == "gain")
    plain, changed = (
        table.loc[sorted(t for t in table.index if t.endswith(name)), "desc_film_energy"].to_numpy()
        for name in ("/plain.flac", "/gain.flac")
    )
    assert gain["tracks"] == len(plain) == 3
    assert gain["shift"] == pytest.approx((changed - plain).mean() / plain.std(ddof=1), rel=1e-3)
    clips = {clip["kind"]: clip for clip in found["failures"]["clips"]}
    assert clips["silence"]["status"] == clips["too_short"]["status"] == "failed"
    assert clips["noise"]["status"] == "ok"
    assert {one["seconds"] for one in found["failures"]["short"]} == {0.6, 1.0}
    assert trials.summary(found)


@pytest.fixture
def small_bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "README.md").write_text("old card")
    (folder / "weights").write_text("w")
    entry = {"architecture": "none", "front_end": "TranscriptionSpec", "spec": {}, "pooling": "whole track", "outputs": []}
    about = {"name": "n", "version": "1", "licence": "MIT", "split": "by artist", "created_utc": "now", "tracks": {"emotify": 2}}
    bundle.write_manifest(folder, about | {"families": {"notes": entry}})
    return folder


def test_a_bundle_is_completed_with_its_own_trials(small_bundle: Path, tried: Path, tmp_path: Path) -> None:
    found = json.loads(tried.read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="trials of other models"):
        card.complete(small_bundle, other)
    assert (small_bundle / "README.md").read_text() == "old card"
    before = bundle.load(str(small_bundle))
    found["bundle"]["models_sha256"] = card.models_digest(before)
    ours = tmp_path / "ours.json"
    ours.write_text(json.dumps(found))
    for _ in range(2):  # again changes nothing
        card.complete(small_bundle, ours)
        after = bundle.load(str(small_bundle))
        assert json.loads(after.file("trials.json").read_text()) == found
        assert "`desc_midlevel`" in after.file("README.md").read_text()
        assert card.models_digest(after) == card.models_digest(before)
        assert after.digest != before.digest
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(ValueError, match="not the trials of a bundle"):
        card.complete(small_bundle, tmp_path / "no.json")


def test_the_command_refuses_what_it_cannot_do(in_process: Callable[..., Result], tmp_path: Path) -> None:
    done = in_process("bundle", "trials", "default", tmp_path / "none", "--out", tmp_path / "t.json")
    assert done.exit_code == 2
    assert "none" in done.output
    done = in_process("bundle", "trials", "nobundle", tmp_path, "--out", tmp_path / "t.json")
    assert done.exit_code == 2
    assert "no bundle 'nobundle'" in done.output
    assert "annotate bundle trials default" in in_process("bundle", "trials", "--help").output
