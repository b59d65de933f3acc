"""`annotate export`: JAMS, Croissant and CSV of one table, each read back by the package that others would use."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import jams
import numpy as np
import pandas as pd
import pretty_midi
import pytest
from click.testing import Result

from annotate.worker import beside
from models.bundle import load
from outputs.croissant import validate_croissant
from outputs.jams_export import jams_of
from outputs.table import Column, read_columns, write_table

Invoke = Callable[..., Result]

PROVENANCE = {
    "tool": "annotate 0",
    "bundle": {"name": "fake", "version": "1", "digest": "d" * 64},
    "time_utc": "2026-01-01T00:00:00+00:00",
    "corpus": {"name": "emotify"},
}


def columns() -> tuple[Column, ...]:
    """Columns of every kind, from the built-in bundle's own schema."""
    from annotate.schema import IDENTITY, family_columns

    bundle = load("default")
    chosen = ("midlevel", "va", "crnn", "best", "notes")
    return (*IDENTITY, *(column for name in chosen for column in family_columns(bundle.families[name])))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tracks: one with everything, one without notes and tempo, one that failed."""
    folder = tmp_path_factory.mktemp("exported")
    rng = np.random.default_rng(0)
    rows = []
    for number, track in enumerate(("pop/1.mp3", "rock/ü 1.mp3", "rock/broken.mp3")):
        row: dict[str, object] = {
            "track": track,
            "track_key": str(number),
            "corpus": "emotify",
            "status": "ok",
            "duration_s": 30.5,
        }
        if number == 2:
            row |= {"status": "failed", "error": "not audio, or so", "duration_s": None}
        else:
            row |= {c.name: float(rng.random()) for c in columns() if c.type == "float" and c.name not in row}
            row |= {c.name: bool(rng.random() > 0.5) for c in columns() if c.type == "bool"}
            row |= {"title": "One, two", "artist": "A", "genre": "pop", "genre_2": "rock", "genre_3": "classical"}
            row |= {"midi_tempo_bpm": 120.0, "midi_n_notes": 2, "in_training": ""}
        if number == 1:
            row |= {"midi_tempo_bpm": None, "midi_n_notes": 0}
        rows.append(row)
    write_table(rows, columns(), PROVENANCE, folder / "t.parquet")
    score = pretty_midi.PrettyMIDI()
    piano = pretty_midi.Instrument(0)
    piano.notes = [pretty_midi.Note(90, 64, 0.5, 1.0), pretty_midi.Note(60, 60, 0.0, 2.0)]
    score.instruments.append(piano)
    (folder / "midi" / "pop").mkdir(parents=True)
    score.write(str(folder / "midi" / "pop" / "1.mp3.mid"))
    return folder / "t.parquet"


def test_jams_files_are_valid_and_hold_what_the_row_holds(table: Path, tmp_path: Path, in_process: Invoke) -> None:
    done = in_process("export", table, "--jams", tmp_path / "jams", "--midi", table.parent / "midi")
    assert done.exit_code == 0, done.output
    assert "2 JAMS files, none for 1 failed tracks, 1 without notes" in done.output
    files = sorted(path.relative_to(tmp_path / "jams").as_posix() for path in (tmp_path / "jams").rglob("*"))
    assert files == ["pop", "pop/1.mp3.jams", "rock", "rock/ü 1.mp3.jams"]
    row = pd.read_parquet(table).set_index("track").loc["pop/1.mp3"]
    jam = jams.load(str(tmp_path / "jams" / "pop" / "1.mp3.jams"), validate=True, strict=True)
    assert (jam.file_metadata.title, jam.file_metadata.artist, jam.file_metadata.duration) == ("One, two", "A", 30.5)
    assert jam.sandbox.track == "pop/1.mp3"
    moods = {tuple(a.sandbox.columns): a.data[0].value for a in jam.search(namespace="mood_thayer")}
    assert set(moods) == {
        ("va_valence_mean", "va_arousal_mean"),
        ("best_va_valence_mean", "best_va_arousal_mean"),
        ("crnn_valence", "crnn_arousal"),
    }
    assert moods["va_valence_mean", "va_arousal_mean"] == pytest.approx([row["va_valence_mean"], row["va_arousal_mean"]])
    vectors = {a.sandbox.block: a for a in jam.search(namespace="vector")}
    assert set(vectors) == {"midlevel", "salient", "crnn", "best_midlevel", "best_film", "best_gems"}
    assert vectors["midlevel"].data[0].value == pytest.approx([row[name] for name in vectors["midlevel"].sandbox.columns])
    assert [len(vectors[name].data[0].value) for name in ("midlevel", "best_film", "best_gems")] == [7, 8, 9]
    genre, labels = jam.search(namespace="tag_open")
    if genre.sandbox.columns[0] != "genre":
        genre, labels = labels, genre
    assert [(o.value, pytest.approx(o.confidence)) for o in genre.data] == [
        ("pop", row["genre_p"]),
        ("rock", row["genre_2_p"]),
        ("classical", row["genre_3_p"]),
    ]
    set_labels = [name for name in row.index if name.endswith("_label") and row[name]]
    assert [f"{o.value}_label" for o in labels.data] == set_labels
    assert [o.value for o in jam.search(namespace="tempo")[0].data] == [120.0]
    (notes,) = jam.search(namespace="note_midi")
    assert [(o.time, o.value) for o in notes.data] == [(pytest.approx(0.0), 60.0), (pytest.approx(0.5), 64.0)]
    assert [o.duration for o in notes.data] == pytest.approx([2.0, 0.5], abs=0.01)
    assert notes.sandbox.velocities == [60.0, 90.0]
    for annotation in jam.annotations:
        assert annotation.annotation_metadata.data_source == "program"
        assert "fake 1" in annotation.annotation_metadata.version
    other = jams.load(str(tmp_path / "jams" / "rock" / "ü 1.mp3.jams"), validate=True, strict=True)
    assert not other.search(namespace="tempo")
    assert not other.search(namespace="note_midi")


def test_what_is_no_valid_jams_is_not_written() -> None:
    row = {"track": "a", "duration_s": 1.0, "midi_tempo_bpm": -3.0}
    with pytest.raises(jams.exceptions.SchemaError):
        jams_of(row, [Column("midi_tempo_bpm", "float", "tempo", "BPM", None, None, "notes")], PROVENANCE)


def test_the_croissant_description_opens_the_table(table: Path, in_process: Invoke) -> None:
    import mlcroissant

    path = table.with_suffix(".json")
    done = in_process("export", table, "--croissant", path, "--licence", "https://creativecommons.org/licenses/by/4.0/")
    assert done.exit_code == 0, done.output
    assert "valid Croissant 1.1" in done.output
    assert validate_croissant(path) == []  # nothing that mlcroissant recommends is missing
    content = json.loads(path.read_text())
    assert content["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    fields = content["recordSet"][0]["field"]
    assert [field["name"] for field in fields] == [column.name for column in read_columns(table)]
    described = {field["name"]: field["description"] for field in fields}
    assert described["duration_s"] == "length of what was decoded; unit: s; range: 0 to ; from: decode"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        dataset = mlcroissant.Dataset(jsonld=path)
        records = list(dataset.records("tracks"))
    assert [record["tracks/track"].decode() for record in records] == pd.read_parquet(table)["track"].tolist()
    assert records[0]["tracks/midi_tempo_bpm"] == pytest.approx(120.0)


def test_a_description_elsewhere_or_in_place_of_the_table_is_refused(table: Path, tmp_path: Path, in_process: Invoke) -> None:
    done = in_process("export", table, "--croissant", tmp_path / "t.json")
    assert done.exit_code == 1
    assert "must lie beside the table" in done.output
    before = table.read_bytes()
    for option in ("--csv", "--croissant"):
        done = in_process("export", table, option, table)
        assert done.exit_code == 1
        assert "is the table itself" in done.output
    assert table.read_bytes() == before
    done = in_process("export", table)
    assert done.exit_code == 2
    assert "nothing to write" in done.output


def test_csv_is_the_table(table: Path, tmp_path: Path, in_process: Invoke) -> None:
    done = in_process("export", table, "--csv", tmp_path / "t.csv")
    assert done.exit_code == 0, done.output
    expected = pd.read_parquet(table)
    found = pd.read_csv(tmp_path / "t.csv", dtype={"track_key": str})
    assert found["track"].tolist() == expected["track"].tolist()
    assert found.columns.tolist() == expected.columns.tolist()
    assert found["midi_n_notes"].astype("Int32").tolist()[:2] == [2, 0]
    assert found["best_film_happy"].to_numpy(np.float32).tolist()[:2] == expected["best_film_happy"].tolist()[:2]
    assert found.loc[2, "error"] == "not audio, or so"
    assert found.loc[2, "best_film_happy":].isna().all()


def test_files_beside_lie_under_the_whole_identity() -> None:
    assert beside(Path("d"), "rock/1.mp3", ".jams") == Path("d/rock/1.mp3.jams")
    assert len(beside(Path("d"), "x" * 255, ".jams").name) <= 255
