"""Hostile files that are no audio and no bundle: label files (CSV) and tables (Parquet), mutated every way.

Whatever they hold, the outcome is a result or an error of ours, one line that names the file; never another exception.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from annotate import ratings as labels_of
from annotate.corpora import describe, scan
from annotate.ratings import FILM, GEMS, Labels
from annotate.reporting import read_plain_ratings

Result = TypeVar("Result")
PHASES = (Phase.explicit, Phase.generate)  # the same examples everywhere, each once


def fuzz(examples: int) -> Callable[[Any], Any]:
    """A fixed number of examples, the same ones on every machine."""
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
        ("plain", "r.csv", "3.5", "inf", "happy holds infinite numbers"),
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
