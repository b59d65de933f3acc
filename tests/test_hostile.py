"""Hostile files that are no audio and no bundle: label files (CSV) and tables (Parquet), mutated every way.

Whatever they hold, the outcome is a result or an error of ours, one line that names the file; never another exception.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from click.testing import Result as Result_
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import annotate
from annotate import ratings as labels_of
from annotate.corpora import describe, scan
from annotate.ratings import FILM, GEMS, Labels
from annotate.reporting import read_plain_ratings
from annotate.schema import IDENTITY
from outputs.table import Column, TableError, write_table

Result = TypeVar("Result")
PHASES = (Phase.explicit, Phase.generate)  # the same examples everywhere, each once


def fuzz(examples: int) -> Callable[[Any], Any]:
    """A fixed number of examples, the same ones on every machine; the long fault test asks for a multiple."""
    examples *= int(os.environ.get("ANNOTATE_TEST_FUZZ", "1"))
    return settings(
        max_examples=examples, deadline=None, derandomize=True, phases=PHASES, suppress_health_check=list(HealthCheck)
    )


# --- label files ---

EMOTIFY = "track id, genre, " + ", ".join(GEMS) + ", mood, liked\n" + "".join(
    f"{track},{genre},{','.join(str((track + k) % 2) for k in range(9))},3,1\n"
    for track, genre in ((1, "classical"), (1, "classical"), (101, "rock"), (301, "pop"))
)  # fmt: skip
SOUNDTRACKS = "\ufeffnumber," + ",".join(FILM) + ",TARGET\n001,4.83,6.83,3.17,1,1,7.33,1,1,HAPPY\n002,4,6,3,1,1,7,1,1.83,SAD\n"
TRACKLIST = "Nro,Emotion,Album name,Track\n001,Happy,Big Fish ,1\n002,Happy,BIG  fish,2\n"
MIDLEVEL = (
    "song_id,soundtracks_number, melody,articulation, rhythm_complexity,rhythm_stability,dissonance,atonality,mode\n"
    "3576,1,7.2,7.1,3.75,8.25,3,8.5,1.8\n3577,2,7.2,7.1,3.75,8.25,3,8.5,1.8\n"
)
MUSIFEAST = (
    "Unnamed: 0,CLIP_NAME,GENRE,TRACK_TITLE,ARTIST,valence_M,valence_SD,arousal_M,arousal_SD\n"
    '1,60s_HIGH_01,60s,As We Go Along,The Monkees,3.5,0.9,2.5,0.8\n2,Rock_LOW_12,Rock,"X, Y",Y,3.5,0.9,2.5,0.8\n'
)
MUSE = (
    "lastfm_url,track,artist,seeds,number_of_emotion_tags,valence_tags,arousal_tags,dominance_tags,mbid,spotify_id,genre\r\n"
    "u,Song,Someone,\"['a', 'b']\",6,4.55,5.27,5.69,m,4xkOaSrkexMciUUogZKVTS,rap\r\n"
    "u,Other,Someone,['a'],6,4.2,5.27,5.69,m,3fOc9x06lKJBhz435mInlH,pop\r\n"
)
STATIC = "song_id, valence_mean, valence_std, arousal_mean, arousal_std\n" + "".join(
    f"{song},{3 + song % 5 / 2},1.1,{4 + song % 3 / 2},0.9\n" for song in range(2, 26)
)
DYNAMIC = "song_id,sample_15000ms,sample_15500ms\n" + "".join(
    f"{song},{song % 5 / 10},{song % 7 / 10}\n" for song in range(2, 26)
)
METADATA = 'song_id,album,artist,title,Genre\n2,"\t2.mp3","Kevin MacLeod\t","\tDD Groove\t","\tBlues\t"\n3,A,B,C,D\n'
PLAIN = "track_key,happy,n\n1,3.5,4\n2,4.5,4\n2,2.5,3\n"

VALENCE = "annotations averaged per song/dynamic (per second annotations)/valence.csv"
# reader -> the files it reads, by path; the first ones are mutated
CORPORA: dict[str, tuple[Callable[[Path], Labels], dict[str, str]]] = {
    "emotify": (lambda root: labels_of.read_emotify(root / "data.csv"), {"data.csv": EMOTIFY}),
    "soundtracks": (
        labels_of.read_soundtracks,
        {"mean_ratings_set1.csv": SOUNDTRACKS, "set1_tracklist.csv": TRACKLIST, "midlevel_annotations.csv": MIDLEVEL},
    ),
    "musifeast": (lambda root: labels_of.read_musifeast(root / "MUSIFEAST17_all.csv"), {"MUSIFEAST17_all.csv": MUSIFEAST}),
    "muse": (lambda root: labels_of.read_muse(root / "muse_v3.csv"), {"muse_v3.csv": MUSE}),
    "deam": (
        labels_of.read_deam,
        {
            "annotations averaged per song/song_level/static_annotations_averaged_songs_1_2000.csv": STATIC,
            VALENCE: DYNAMIC,
            "annotations averaged per song/dynamic (per second annotations)/arousal.csv": DYNAMIC,
            "metadata/metadata_2013.csv": METADATA,
        },
    ),
    "plain": (lambda root: read_plain_ratings(root / "r.csv"), {"r.csv": PLAIN}),
}
AUDIO = {
    "emotify": ("classical/1.mp3", "rock/1.mp3", "electronic/1.mp3", "pop/2.mp3"),
    "soundtracks": ("001.mp3", "003.mp3"),
    "musifeast": ("audio/60s_HIGH_01.mp3",),
    "muse": ("4xkOaSrkexMciUUogZKVTS.mp3",),
    "deam": ("MEMD_audio/2.mp3", "MEMD_audio/99.mp3"),
}
CELLS = (
    "", " ", "nan", "NaN", "NA", "inf", "-inf", "1e400", "1e300", "-1", "0.5", "1e-320", "²", "٣", "1_0", "0x10", "True", "None",
    "9" * 30, "9" * 5000, "x" * 200_000, "<script>alert(1)</script>", "\x1b[2J", "\0", '"', '""', "'", "a\nb", "\r", "=1+1", "é",
    "\ufeff", "\u202e", "1,5", ",,,,", "track id", "2", "401", "1.0", "+1", "1e2", "2026-01-01",
)  # fmt: skip
KINDS = ("cell", "cell", "cell", "head", "drop line", "twice", "cut", "longer", "blank", "column", "swap")


@st.composite
def mutated_text(draw: st.DrawFn, text: str) -> bytes:
    """A CSV file of which cells, lines, columns, the encoding or bytes were changed."""
    lines = [line.split(",") for line in text.splitlines()]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(KINDS))
        if kind in ("cell", "head"):
            line = lines[0 if kind == "head" else at]
            line[draw(st.integers(0, len(line) - 1))] = draw(st.sampled_from(CELLS) | st.text(max_size=6))
        elif kind == "drop line" and len(lines) > 1:
            del lines[at]
        elif kind == "twice":
            lines.insert(at, list(lines[at]))
        elif kind == "cut":
            lines[at] = lines[at][: draw(st.integers(1, len(lines[at])))]
        elif kind == "longer":
            lines[at] = lines[at] + ["9"] * draw(st.integers(1, 3))
        elif kind == "blank":
            lines[at] = [""]
        elif kind == "column":
            column = draw(st.integers(0, 8))
            lines = [line[:column] + line[column + 1 :] or [""] for line in lines]
        elif kind == "swap":
            column = draw(st.integers(0, 8))
            lines = [line[column:] + line[:column] for line in lines]
    end = draw(st.sampled_from(("\n", "\n", "\n", "\r\n", "\r", "\n\n")))
    encoding = draw(st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-7")))
    content = bytearray(end.join(",".join(line) for line in lines).encode(encoding, "replace"))
    for _ in range(draw(st.sampled_from((0, 0, 0, 1, 2)))):
        if not content:
            break
        at = draw(st.integers(0, len(content) - 1))
        kind = draw(st.sampled_from(("flip", "cut", "delete", "insert")))
        if kind == "flip":
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[at:]
        elif kind == "delete":
            del content[at : at + draw(st.integers(1, 40))]
        else:
            content[at:at] = draw(st.binary(min_size=1, max_size=8))
    return bytes(content)


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")


def outcome(what: Callable[[], Result], path: Path) -> Result | None:
    """Result of a reader, or None where it refuses the file by its name (or its folder's)."""
    try:
        return what()
    except ValueError as error:
        refused = error
    assert type(refused) is ValueError, repr(refused)  # none of pandas' own, which name no file
    assert str(path) in str(refused) or str(path.parent) in str(refused)
    return None


def check_labels(labels: Labels) -> None:
    """What every caller relies on: ids that are text and there once, numbers on the scale that is stated."""
    assert labels.ratings.index.is_unique
    assert all(isinstance(key, str) for key in labels.ratings.index)
    rated = {name for name in labels.ratings.columns if not name.endswith("_std") and name != "rated_n"}
    assert set(labels.rating_units) >= rated
    for name in labels.ratings.columns:
        values = labels.ratings[name].dropna().astype(float)
        assert np.isfinite(values).all()
        _, _, low, high = labels.rating_units.get(name, ("", "", 0.0, 0.0))
        if low < high:
            assert values.between(low, high).all()
    for texts in (labels.artist, labels.album, labels.title, labels.group):
        assert all(isinstance(key, str) and isinstance(text, str) and text for key, text in texts.items())


def test_the_label_files_are_right_before_they_are_mutated(tmp_path: Path) -> None:
    for name, (read, files) in CORPORA.items():
        lay(tmp_path / name, files)
        labels = read(tmp_path / name)
        check_labels(labels)
        assert len(labels.ratings) >= 2
        for track in AUDIO.get(name, ()):
            (tmp_path / name / track).parent.mkdir(exist_ok=True)
            (tmp_path / name / track).touch()
        if name in AUDIO:
            assert scan([tmp_path / name]).name == name


@pytest.mark.parametrize(
    ("corpus", "file", "old", "new", "said"),
    [
        ("emotify", "data.csv", ",3,1\n", ",3,1,\n", "more fields than the header has names"),
        ("emotify", "data.csv", EMOTIFY.partition("\n")[2], "", "no listener"),
        ("musifeast", "MUSIFEAST17_all.csv", "3.5,0.9,2.5", "inf,0.9,2.5", "valence_m must be in 1–5: lines 2, 3 ('inf')"),
        ("soundtracks", "mean_ratings_set1.csv", "002,", "1e300,", "number must be a whole number: line 3"),
        (
            "deam",
            "annotations averaged per song/dynamic (per second annotations)/valence.csv",
            "\n3,",
            "\n2,",
            "songs there twice: 2",
        ),
        ("deam", "metadata/metadata_2013.csv", "Kevin", "x" * 200_000, "not a readable CSV file"),
        ("plain", "r.csv", "3.5", "inf", "happy holds numbers beyond 1e+30"),
    ],
)
def test_what_no_label_file_can_hold_is_said(corpus: str, file: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    read, files = CORPORA[corpus]
    assert old in files[file]
    lay(tmp_path, files | {file: files[file].replace(old, new)})
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        read(tmp_path)
    assert str(tmp_path / file) in str(caught.value)


def test_numbers_that_are_digits_of_other_scripts_are_no_ids(tmp_path: Path) -> None:
    read, files = CORPORA["deam"]
    lay(tmp_path, files | {"metadata/metadata_2013.csv": METADATA + "²,E,F,G,H\n"})
    assert set(read(tmp_path).artist) == {"2", "3"}


@fuzz(300)
@given(corpus=st.sampled_from(sorted(CORPORA)), data=st.data())
def test_any_label_file_is_read_or_refused_by_name(corpus: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    root = tmp_path_factory.mktemp("labels")
    read, files = CORPORA[corpus]
    lay(root, files)
    bad = data.draw(st.sampled_from(sorted(files)))
    content = data.draw(mutated_text(files[bad]))
    (root / bad).write_bytes(content)
    labels = outcome(lambda: read(root), root / bad)
    if labels is not None:
        check_labels(labels)


@fuzz(100)
@given(corpus=st.sampled_from(sorted(AUDIO)), data=st.data())
def test_a_scan_beside_any_label_file_finds_the_audio_or_says_why_not(
    corpus: str, data: st.DataObject, tmp_path_factory: Any
) -> None:
    root = tmp_path_factory.mktemp("corpus")
    files = CORPORA[corpus][1]
    lay(root, files)
    bad = data.draw(st.sampled_from(sorted(files)))
    (root / bad).write_bytes(data.draw(mutated_text(files[bad])))
    for track in AUDIO[corpus]:
        (root / track).parent.mkdir(exist_ok=True)
        (root / track).touch()
    found = outcome(lambda: scan([root]), root / bad)
    if found is not None:
        assert len(found.tracks) == len(AUDIO[corpus])
        assert isinstance(found.ratings, pd.DataFrame)
        text = describe(found)
        assert all(line.isprintable() for line in text.splitlines()), text


# --- tables ---

FEATURES = ("melodiousness", "dissonance")
COLUMNS = (
    *IDENTITY,
    Column("rated_tension", "float", "share", "share", 0.0, 1.0, "ratings"),
    Column("rated_n", "int", "listeners", "listeners", 1.0, 40.0, "ratings"),
    *(Column(f"salient_{name}", "float", name, "probability", 0.0, 1.0, "midlevel") for name in FEATURES),
    Column("salient_dissonance_label", "bool", "dissonance", None, None, None, "midlevel"),
    Column("gems_tension", "float", "tension", "share of listeners", 0.0, 1.0, "probe"),
    Column("midi_n_notes", "int", "notes", None, 0.0, None, "notes"),
)
EXPLANATION = {
    "probe": {
        "inputs": [f"salient_{name}" for name in FEATURES],
        "outputs": ["gems_tension"],
        "scale": "log-odds",
        "weights": [[0.5, -1.0]],
        "bias": [0.1],
    }
}
PROVENANCE = {
    "tool": "annotate 0",
    "time_utc": "2026-01-02T03:04:05+00:00",
    "bundle": {"name": "made up", "version": "1", "digest": "ab" * 32},
    "families": ["midlevel", "probe", "notes"],
    "corpus": {"name": "emotify", "messages": []},
    "explanation": EXPLANATION,
}
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.sampled_from(CELLS[:24]) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("bundle", "name", "probe", "inputs", "x")), inner)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def small_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of six tracks, one of them failed; not to be changed."""
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    rows = [
        {
            "track": f"rock/{number}.mp3",
            "track_key": str(number),
            "track_id": number,
            "corpus": "emotify",
            "group": "rock",
            "artist": f"artist {number // 2}",
            "duration_s": 30.0 + number,
            "audio_sha256": f"{number:064x}",
            "status": "ok",
            "in_training": "",
            "rated_tension": number / 10,
            "rated_n": 10 + number,
            "salient_melodiousness": 0.2 + number / 20,
            "salient_dissonance": 0.9 - number / 20,
            "salient_dissonance_label": number < 3,
            "gems_tension": number / 12,
            "midi_n_notes": 20 * number,
        }
        for number in range(5)
    ]
    rows.append({"track": "rock/5.mp3", "track_key": "5", "corpus": "emotify", "status": "failed", "error": "not audio"})
    write_table(rows, COLUMNS, PROVENANCE, path)
    return path


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file of which bytes were changed, left out, added or exchanged; the footer more often than not."""
    bad = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        last = len(bad) - 1
        at = draw(st.integers(max(last - draw(st.sampled_from((40, 2000, last))), 0), last))
        kind = draw(st.sampled_from(("flip", "set", "cut", "delete", "insert", "zeros", "ones")))
        length = draw(st.sampled_from((1, 2, 4, 8, 100)))
        if kind == "flip":
            bad[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set":
            bad[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del bad[max(at, 1) :]
        elif kind == "delete":
            del bad[at : at + length]
        elif kind == "insert":
            bad[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            bad[at : at + length] = (b"\0" if kind == "zeros" else b"\xff") * length
        if not bad:
            return b"P"
    return bytes(bad)


TYPES = (
    pa.string(), pa.large_string(), pa.binary(), pa.int32(), pa.int64(), pa.uint8(), pa.float32(), pa.float64(), pa.bool_(),
    pa.list_(pa.float32()), pa.dictionary(pa.int32(), pa.string()), pa.struct([("a", pa.int8())]), pa.null(), pa.timestamp("s"),
)  # fmt: skip
VALUES = {
    pa.string(): ("", "<script>alert(1)</script>", "\x1b[2J\n", "../../x", "nan", "\u202e", "x" * 5000),
    pa.float32(): (float("inf"), float("-inf"), float("nan"), 3.4e38, -1.0, 0.0, 1e-40),
    pa.int32(): (2**31 - 1, -(2**31), 0),
    pa.int64(): (2**63 - 1, -(2**63), 0),
    pa.bool_(): (True, False),
}
NAMES = (
    "track",
    "status",
    "",
    "a b",
    "../../evil_x",
    "/tmp/evil_x",
    "é",
    "rated_x",
    "midlevel_<b>",
    "best_gems_tension",
    "x" * 300,
)


@st.composite
def mutated_table(draw: st.DrawFn, table: Any) -> Any:
    """A table whose columns were dropped, renamed, retyped or emptied, or whose metadata is another."""
    kinds = ("drop", "drop", "type", "type", "name", "value", "value", "nulls", "rows", "field", "annotate", "annotate", "key")
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(kinds))
        at = draw(st.integers(0, table.num_columns - 1)) if table.num_columns else 0
        metadata = dict(table.schema.metadata or {})
        if kind in ("drop", "type", "name", "value", "nulls", "field") and not table.num_columns:
            continue
        field = table.schema.field(at) if table.num_columns else None
        if kind == "drop":
            table = table.remove_column(at)
        elif kind == "type":
            chosen = draw(st.sampled_from(TYPES))
            table = table.set_column(at, pa.field(field.name, chosen, metadata=field.metadata), pa.nulls(len(table), chosen))
        elif kind == "name":
            table = table.set_column(at, field.with_name(draw(st.sampled_from(NAMES))), table.column(at))
        elif kind == "value" and field.type in VALUES and len(table):
            values = table.column(at).to_pylist()
            values[draw(st.integers(0, len(values) - 1))] = draw(st.sampled_from(VALUES[field.type]))
            table = table.set_column(at, field, pa.array(values, field.type))
        elif kind == "nulls":
            table = table.set_column(at, field, pa.nulls(len(table), field.type))
        elif kind == "rows":
            table = draw(st.sampled_from((table.slice(0, 0), table.slice(2), pa.concat_tables([table, table]))))
        elif kind == "field":
            key = draw(st.sampled_from(("low", "high", "unit", "family", "description")))
            value = draw(st.sampled_from((b"", b"nan", b"inf", b"abc", b"\xff", b"ratings", b"scan", b"midlevel", b"1e999")))
            table = table.set_column(at, field.with_metadata({**(field.metadata or {}), key: value}), table.column(at))
        elif kind == "annotate":
            provenance = dict(PROVENANCE) | {"schema_version": 1}
            key = draw(st.sampled_from((*PROVENANCE, "schema_version", "probe", "weights")))
            if key in ("probe", "weights"):
                inner = EXPLANATION["probe"] | {draw(st.sampled_from(sorted(EXPLANATION["probe"]))): draw(ANYTHING)}
                provenance["explanation"] = {"probe": draw(ANYTHING) if key == "probe" else inner}
            else:
                provenance[key] = draw(ANYTHING)
            whole = json.dumps(provenance).encode()
            no_json = (b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"1" * 5000)
            text = draw(st.sampled_from(no_json)) if draw(st.integers(0, 9)) == 0 else whole
            table = table.replace_schema_metadata(metadata | {b"annotate": text})
        elif kind == "key":
            gone = draw(st.sampled_from((b"annotate", b"pandas")))
            others = draw(st.sampled_from(({}, {b"pandas": b"{"}, {b"pandas": b'{"index_columns": ["nowhere"], "columns": 1}'})))
            table = table.replace_schema_metadata({key: value for key, value in metadata.items() if key != gone} | others)
    return table


def ask(*arguments: object) -> Result_:
    """Run a command in this process: it ends with a status of ours and, where that is an error, one printable line."""
    from annotate.cli import main

    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2)
    lines = result.stderr.splitlines()
    assert all(line.isprintable() for line in (*lines, *result.stdout.splitlines()))
    if result.exit_code:
        assert lines[-1].startswith("annotate: ")
        assert "unexpected" not in lines[-1]
    return result


def try_every_reader(path: Path, folder: Path) -> None:
    """`info`, `read`, `export` and `explain` of one file: what refuses it names it."""
    refused = outcome_of_table(lambda: annotate.read(path), path) is None
    said = ask("info", path)
    assert said.exit_code == 0 or str(path) in said.stderr
    exported = ask("export", path, "--csv", folder / "t.csv")
    assert (exported.exit_code != 0) == refused
    assert exported.exit_code == 0 or str(path) in exported.stderr
    ask("explain", path, "rock/1.mp3")


def outcome_of_table(what: Callable[[], Result], path: Path) -> Result | None:
    try:
        return what()
    except TableError as error:
        refused = str(error)
    assert str(path) in refused
    assert "\n" not in refused
    return None


@fuzz(120)
@given(data=st.data())
def test_any_bytes_of_a_table_are_read_or_refused_by_name(data: st.DataObject, small_table: Path, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    path = folder / "t.parquet"
    path.write_bytes(data.draw(mutated_bytes(small_table.read_bytes())))
    try_every_reader(path, folder)


@fuzz(120)
@given(data=st.data())
def test_any_table_is_read_or_refused_by_name(data: st.DataObject, small_table: Path, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("tables")
    path = folder / "t.parquet"
    pq.write_table(data.draw(mutated_table(pq.read_table(small_table))), path)
    try_every_reader(path, folder)


@fuzz(12)
@given(data=st.data())
def test_a_report_on_any_table_is_made_or_refused(data: st.DataObject, small_table: Path, tmp_path_factory: Any) -> None:
    """And nothing is written beside its folder."""
    folder = tmp_path_factory.mktemp("reports")
    path = folder / "in" / "t.parquet"
    path.parent.mkdir()
    pq.write_table(data.draw(mutated_table(pq.read_table(small_table))), path)
    for arguments in (("report", path), ("compare", path, small_table), ("compare", small_table, path)):
        out = folder / "out"
        made = ask(*arguments, "--out", out, "-q")
        assert sorted(entry.name for entry in folder.iterdir()) in (["in"], ["in", "out"])
        if made.exit_code == 0:
            page = (out / "index.html").read_text()
            assert "<script>alert" not in page
            json.loads((out / "report.json").read_text(), parse_constant=lambda text: pytest.fail(text))
