"""`annotate.corpora` and `annotate.ratings`: identities, layouts, ids, ratings and what is said of the odd ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mutagen
import numpy as np
import pandas as pd
import pytest
import soundfile

from annotate import console, corpora
from annotate.corpora import (
    Corpus,
    NoAudioFound,
    Tags,
    describe,
    missing_path_hint,
    path_of,
    path_text,
    read_tags,
    scan,
    split_groups,
)
from annotate.ratings import FILM, GEMS, MIDLEVEL, read_deam, read_emotify, read_muse, read_soundtracks

DATA = Path(__file__).parents[2] / "shared/data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no real music beside the checkout")
GENRES = ("classical", "rock", "electronic", "pop")
EMOTIFY_HEADER = "track id, genre, " + ", ".join(GEMS) + ", mood, liked, disliked, age, gender, mother tongue"


@pytest.fixture(scope="module")
def mp3(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("audio") / "x.mp3"
    soundfile.write(path, 0.1 * np.sin(np.arange(22_050) / 10), 22_050, format="MP3")
    return path.read_bytes()


def place(root: Path, names: Sequence[str], content: bytes) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def emotify_csv(path: Path, rows: Sequence[str]) -> Path:
    path.write_text("\n".join([EMOTIFY_HEADER, *rows]) + "\n")
    return path


def keys(corpus: Corpus) -> dict[str, str]:
    return {track.track: track.track_key for track in corpus.tracks}


EMOTIFY_ROWS = (
    "1,classical,0,1,0,0,0,0,1,1,0,3,1,0,21,1,English",
    "1,classical,1,1,0,0,0,0,0,0,0,3,1,0,22,1,Dutch",
    "101,rock,0,0,0,0,0,1,0,0,0,3,0,1,41,1,Dutch",
    "301,pop,0,0,0,0,0,0,1,0,0,3,0,1,41,1,Dutch",
    "302,pop,0,0,0,0,0,0,1,0,0,3,0,1,41,1,Dutch",
)


# Emotify


@pytest.mark.parametrize("below", ["", "emotifymusic", "Music Data"])
def test_four_folders_that_each_hold_a_1_mp3(below: str, tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path / below, [f"{genre}/1.mp3" for genre in GENRES], mp3)
    emotify_csv(tmp_path / "data.csv", EMOTIFY_ROWS)
    corpus = scan([tmp_path])
    prefix = f"{below}/" if below else ""
    assert corpus.name == "emotify"
    assert [track.track for track in corpus.tracks] == [f"{prefix}{genre}/1.mp3" for genre in sorted(GENRES)]
    assert {track.group: track.track_id for track in corpus.tracks} == {
        "classical": 1,
        "rock": 101,
        "electronic": 201,
        "pop": 301,
    }
    assert all(track.track_key == str(track.track_id) for track in corpus.tracks)
    assert corpus.ratings.loc["1", "rated_solemnity"] == 1.0
    assert corpus.ratings.loc["1", "rated_amazement"] == 0.5
    assert corpus.ratings.loc["1", "rated_n"] == 2
    assert corpus.audio_without_rating == ("201",)
    assert corpus.rating_without_audio == ("302",)
    assert set(corpus.rating_units) == set(corpus.ratings.columns)
    assert corpus.listeners is not None
    assert corpus.listeners.columns.tolist() == ["track_key", *GEMS]
    assert len(corpus.listeners) == len(EMOTIFY_ROWS)


def test_emotify_by_layout_alone_and_one_genre_of_it(tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path, [f"{genre}/{number}.mp3" for genre in GENRES for number in (10, 2)], mp3)
    corpus = scan([tmp_path])
    assert corpus.name == "emotify"
    assert corpus.ratings.empty
    assert any("no data.csv" in message for message in corpus.messages)
    assert keys(scan([tmp_path / "rock"])) == {"2.mp3": "102", "10.mp3": "110"}
    assert list(keys(corpus)) == [f"{genre}/{number}.mp3" for genre in sorted(GENRES) for number in (2, 10)]


def test_emotify_data_csv_one_level_down(tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path, [f"{genre}/1.mp3" for genre in GENRES], mp3)
    (tmp_path / "annotations").mkdir()
    emotify_csv(tmp_path / "annotations" / "data.csv", EMOTIFY_ROWS)
    assert len(scan([tmp_path]).ratings) == 4


def test_renumbered_copies_beside_the_genre_folders_are_skipped(tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path, [*(f"{genre}/1.mp3" for genre in GENRES), "Musics/1.mp3", "Musics/101.mp3"], mp3)
    corpus = scan([tmp_path])
    assert len(corpus.tracks) == 4
    assert any("Musics/ skipped: 2 renumbered copies" in message for message in corpus.messages)


def test_renumbered_copies_alone_are_the_corpus(tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path, ["Musics/1.mp3", "Musics/101.mp3", "Musics/400.mp3"], mp3)
    assert scan([tmp_path]).name == "folder"
    emotify_csv(tmp_path / "data.csv", EMOTIFY_ROWS)
    corpus = scan([tmp_path])
    assert [(track.track_id, track.group) for track in corpus.tracks] == [(1, "classical"), (101, "rock"), (400, "pop")]
    assert corpus.audio_without_rating == ("400",)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("2,classical,0,2,0,0,0,0,1,1,0,3,1,0,21,1,English", r"solemnity must be 0 or 1: line 3 \('2'\)"),
        ("2,classical,0,,0,0,0,0,1,1,0,3,1,0,21,1,English", r"solemnity must be 0 or 1: line 3 \(''\)"),
        ("401,pop,0,0,0,0,0,0,1,1,0,3,1,0,21,1,English", r"track id must be a whole number in 1–400: line 3 \('401'\)"),
        ("x,pop,0,0,0,0,0,0,1,1,0,3,1,0,21,1,English", "track id must be a whole number in 1–400: line 3"),
    ],
)
def test_emotify_rows_that_cannot_be_are_named(row: str, match: str, tmp_path: Path) -> None:
    path = emotify_csv(tmp_path / "data.csv", [EMOTIFY_ROWS[0], row])
    with pytest.raises(ValueError, match=match):
        read_emotify(path)


def test_emotify_columns_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(EMOTIFY_HEADER.replace("power", "might") + "\n")
    with pytest.raises(ValueError, match="no column power"):
        read_emotify(path)
    path.write_text(EMOTIFY_HEADER.replace("mood", "power") + "\n")
    with pytest.raises(ValueError, match="columns there twice: power"):
        read_emotify(path)


def test_emotify_genre_that_contradicts_the_id_is_said(tmp_path: Path) -> None:
    path = emotify_csv(tmp_path / "data.csv", [EMOTIFY_ROWS[0].replace("classical", "pop")])
    assert "line 2" in read_emotify(path).messages[0]


# DEAM


def deam_labels(root: Path, *, exchanged: bool) -> pd.DataFrame:
    """40 songs of 2013 and 30 of 2014, whose static ratings follow the dynamic ones; returns the true ratings."""
    rng = np.random.default_rng(3)
    ids = [*range(2, 42), *range(1001, 1031)]
    truth = pd.DataFrame(rng.uniform(2, 8, (len(ids), 2)).round(2), index=ids, columns=["valence", "arousal"])
    folder = root / "DEAM_Annotations/annotations/annotations averaged per song"
    (folder / "song_level").mkdir(parents=True)
    (folder / "dynamic (per second annotations)").mkdir()
    for name in ("valence", "arousal"):
        noise = rng.normal(0, 0.2, (len(ids), 3))
        dynamic = pd.DataFrame((truth[[name]].to_numpy() - 5) / 4 + noise, index=pd.Index(ids, name="song_id"))
        dynamic.columns = ["sample_15000ms", "sample_15500ms", "sample_16000ms"]
        dynamic.iloc[0, 2] = np.nan
        dynamic.to_csv(folder / "dynamic (per second annotations)" / f"{name}.csv")
    swap = [exchanged and song <= 1000 for song in ids]
    static = pd.DataFrame({"song_id": ids})
    static[" valence_mean"] = np.where(swap, truth["arousal"], truth["valence"])
    static[" valence_std"] = np.where(swap, 2.0, 1.0)
    static[" arousal_mean"] = np.where(swap, truth["valence"], truth["arousal"])
    static[" arousal_std"] = np.where(swap, 1.0, 2.0)
    static.to_csv(folder / "song_level" / "static_annotations_averaged_songs_1_2000.csv", index=False)
    last = "song_id, valence_mean, valence_std, valence_ max_mean, arousal_mean, arousal_std\n2001,3.2,0.98,5.0,6.6,0.8\n"
    (folder / "song_level" / "static_annotations_averaged_songs_2000_2058.csv").write_text(last)
    (root / "metadata").mkdir()
    (root / "metadata/metadata_2013.csv").write_text(
        'song_id,album,artist,title,Genre\n2,"\t2.mp3","Kevin MacLeod\t","\tDD Groove\t","\tBlues\t"\n'
    )
    (root / "metadata/metadata_2014.csv").write_text(
        'song_id,artist,album,title,Genre,,\n1001,The Band,"""An Album.""",A Title,Rock,tag,tag\n'
    )
    (root / "metadata/metadata_2015.csv").write_text("song_id,title,artist,album,Genre,\n2001,Tree,Creepoid,n/a,Rock,\n")
    return truth


def test_deam_exchange_is_found_and_mended(tmp_path: Path) -> None:
    truth = deam_labels(tmp_path, exchanged=True)
    labels = read_deam(tmp_path)
    rated = labels.ratings.loc[truth.index.astype(str)]
    np.testing.assert_allclose(rated[["rated_valence", "rated_arousal"]], truth)
    assert set(rated["rated_valence_std"]) == {1.0}
    assert set(rated["rated_arousal_std"]) == {2.0}
    assert any(
        "are exchanged" in message and "r(static valence, dynamic arousal) = 0.9" in message for message in labels.messages
    )
    left = read_deam(tmp_path, correct=False)
    assert left.ratings.loc["2", "rated_valence"] == truth.loc[2, "arousal"]
    assert left.ratings.loc["1001", "rated_valence"] == truth.loc[1001, "valence"]
    assert any("left as published" in message for message in left.messages)


def test_deam_that_is_right_is_left_alone(tmp_path: Path) -> None:
    truth = deam_labels(tmp_path, exchanged=False)
    labels = read_deam(tmp_path)
    np.testing.assert_allclose(labels.ratings.loc[truth.index.astype(str), ["rated_valence", "rated_arousal"]], truth)
    assert any("are not exchanged" in message for message in labels.messages)


def test_deam_layout_with_audio(tmp_path: Path, mp3: bytes) -> None:
    deam_labels(tmp_path, exchanged=True)
    with pytest.raises(NoAudioFound, match="annotations of 71 songs are there, their audio"):
        scan([tmp_path])
    place(tmp_path, ["MEMD_audio/2.mp3", "MEMD_audio/1001.mp3", "MEMD_audio/2001.mp3", "MEMD_audio/999.mp3"], mp3)
    for root, prefix in ((tmp_path, "MEMD_audio/"), (tmp_path / "MEMD_audio", "")):
        corpus = scan([root])
        assert corpus.name == "deam"
        assert keys(corpus) == {f"{prefix}{song}.mp3": str(song) for song in (2, 999, 1001, 2001)}
        assert corpus.audio_without_rating == ("999",)
        assert len(corpus.rating_without_audio) == 68
    by_id = {track.track_id: track for track in corpus.tracks}
    assert tuple(getattr(by_id[2], name) for name in ("artist", "album", "title", "group")) == (
        "Kevin MacLeod",
        None,
        "DD Groove",
        "Blues",
    )
    assert (by_id[1001].artist, by_id[1001].album, by_id[1001].title) == ("The Band", "An Album.", "A Title")
    assert (by_id[2001].artist, by_id[2001].album, by_id[2001].title) == ("Creepoid", None, "Tree")
    assert any("left as published" in message for message in scan([tmp_path], correct_deam=False).messages)


# Soundtracks, MUSIFEAST-17, MuSe


def soundtracks_labels(root: Path) -> None:
    header = "number," + ",".join(FILM) + ",TARGET"
    rows = ["001,4.83,6.83,3.17,1,1,7.33,1,1,HAPPY", "002,4,6,3,1,1,7,1,1.83,HAPPY", "010,4,6,3,1,1,7,1,1.83,SAD"]
    (root / "mean_ratings_set1.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8-sig")
    (root / "set1_tracklist.csv").write_text("Nro,Emotion,Album name,Track\n001,Happy,Big Fish ,1\n002,Happy,BIG  fish,2\n")


@pytest.mark.parametrize("below", ["audio/", ""])
def test_soundtracks(below: str, tmp_path: Path, mp3: bytes) -> None:
    soundtracks_labels(tmp_path)
    (tmp_path / "midlevel_annotations.csv").write_text(
        "song_id,soundtracks_number, melody,articulation, rhythm_complexity,rhythm_stability,"
        "dissonance,atonality,mode\n"
        "3576,1,7.2,7.1,3.75,8.25,3,8.5,1.8\n"
    )
    place(tmp_path, [f"{below}001.mp3", f"{below}002.mp3", f"{below}003.mp3"], mp3)
    corpus = scan([tmp_path])
    assert corpus.name == "soundtracks"
    assert keys(corpus) == {f"{below}{key}.mp3": key for key in ("001", "002", "003")}
    assert [track.track_id for track in corpus.tracks] == [1, 2, 3]
    assert corpus.ratings.columns.tolist() == [f"rated_{name}" for name in (*FILM, *MIDLEVEL)] + ["rated_n"]
    expected = [7.2, 7.1, 3.75, 8.25, 3, 8.5, 1.8]
    assert corpus.ratings.loc["001", [f"rated_{name}" for name in MIDLEVEL]].tolist() == expected
    assert corpus.ratings.loc["001", "rated_valence"] == 4.83
    assert (corpus.audio_without_rating, corpus.rating_without_audio) == (("003",), ("010",))
    assert corpus.tracks[0].album == "Big Fish"
    assert split_groups(corpus, {}).tolist() == ["big fish", "big fish", None]


def test_midlevel_ids_without_the_soundtracks_number(tmp_path: Path) -> None:
    soundtracks_labels(tmp_path)
    (tmp_path / "midlevel_annotations.csv").write_text(
        "song_id, melody, articulation, rhythm_complexity, rhythm_stability, dissonance, atonality, mode\n"
        "3575,1,1,1,1,1,1,1\n3577,2,3,4,5,6,7,8\n3936,1,1,1,1,1,1,1\n"
    )
    ratings = read_soundtracks(tmp_path).ratings
    assert ratings["rated_melodiousness"].dropna().to_dict() == {"002": 2.0}
    assert ratings.loc["002", "rated_minorness"] == 8.0


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("002,", "001,", r"number must be there once: lines 2, 3"),
        ("7.33", "9.33", r"happy must be in 1–9: line 2 \('9.33'\)"),
        ("7.33", "high", r"happy must be in 1–9: line 2 \('high'\)"),
    ],
)
def test_soundtracks_rows_that_cannot_be_are_named(old: str, new: str, match: str, tmp_path: Path) -> None:
    soundtracks_labels(tmp_path)
    path = tmp_path / "mean_ratings_set1.csv"
    path.write_text(path.read_text(encoding="utf-8-sig").replace(old, new), encoding="utf-8-sig")
    with pytest.raises(ValueError, match=match):
        read_soundtracks(tmp_path)


def musifeast(root: Path, mp3: bytes) -> Path:
    place(root, ["audio/60s_HIGH_01.mp3"], mp3)
    (root / "MUSIFEAST17_all.csv").write_text(
        "Unnamed: 0,CLIP_NAME,GENRE,TRACK_TITLE,ARTIST,valence_M,valence_SD,arousal_M,arousal_SD\n"
        "1,60s_HIGH_01,60s,As We Go Along,The Monkees,3.5,0.9,2.5,0.8\n2,Rock_LOW_12,Rock,X,Y,3.5,0.9,2.5,0.8\n"
    )
    return root


def test_musifeast(tmp_path: Path, mp3: bytes) -> None:
    corpus = scan([musifeast(tmp_path, mp3)])
    (track,) = corpus.tracks
    assert (track.corpus, track.track_key, track.track_id, track.group) == ("musifeast", "60s_HIGH_01", None, "60s")
    assert (track.artist, track.album, track.title) == ("The Monkees", None, "As We Go Along")
    assert corpus.ratings.loc["60s_HIGH_01"].dropna().tolist() == [3.5, 2.5, 0.9, 0.8]
    assert corpus.rating_units["rated_valence"][1:] == ("points", 1.0, 5.0)
    assert corpus.rating_without_audio == ("Rock_LOW_12",)
    assert split_groups(corpus, {track.track: Tags(artist="ignored")}).tolist() == ["the monkees"]


def test_muse(tmp_path: Path, mp3: bytes) -> None:
    ids = ["4xkOaSrkexMciUUogZKVTS", "3fOc9x06lKJBhz435mInlH"]
    (tmp_path / "muse_v3_sample.csv").write_text(
        "lastfm_url,track,artist,seeds,number_of_emotion_tags,valence_tags,arousal_tags,dominance_tags,"
        "mbid,spotify_id,genre\r\n"
        f"u,Song,Someone,['a'],6,4.55,5.27,5.69,m,{ids[0]},rap\r\n"
        f"u,Other,Someone,['a'],6,11.2,5.27,5.69,m,{ids[1]},pop\r\n"
        f"u,Again,Someone,['a'],6,1.2,5.27,5.69,m,{ids[1]},pop\r\n"
        "u, Cut,Short,['a'],pop\r\n\r\n"
    )
    place(tmp_path, [f"audio/{ids[0]}.mp3", f"audio/{ids[1]}.mp3", "audio/notes.mp3"], mp3)
    corpus = scan([tmp_path])
    assert corpus.name == "muse"
    by_key = {track.track_key: track for track in corpus.tracks}
    assert (by_key[ids[0]].group, by_key[ids[0]].title) == ("rap", "Song")
    assert by_key["audio/notes.mp3"].corpus == "folder"
    assert corpus.ratings.loc[ids[0], "rated_dominance"] == 5.69
    assert np.isnan(corpus.ratings.loc[ids[1], "rated_valence"])
    text = "\n".join(read_muse(tmp_path / "muse_v3_sample.csv").messages)
    assert "1 rows without a Spotify id left out (line 5)" in text
    assert "1 rows repeat a Spotify id" in text
    assert "1 values of valence outside 1–9" in text


# plain folders and mixtures


def test_folder_sorts_naturally_and_leaves_out_what_is_no_music(tmp_path: Path, mp3: bytes) -> None:
    kept = ["a/2.mp3", "a/10.MP3", "B.wav", "c.Flac", "d.opus", "e.oga", "f.aifc"]
    place(tmp_path, [*kept, ".x.mp3", ".git/y.mp3", "__MACOSX/z.mp3", "a/n.txt", "a/o.m4a", "p.WMA"], mp3)
    corpus = scan([tmp_path])
    assert [track.track for track in corpus.tracks] == kept
    assert corpus.name == "folder"
    assert corpus.ratings.empty
    assert corpus.ratings.columns.tolist() == []
    assert corpus.audio_without_rating == ()
    assert keys(corpus) == {name: name for name in kept}
    assert corpus.messages == ("2 audio files of unsupported formats left out (1 .m4a, 1 .wma)",)
    assert corpus.tracks[0].size == len(mp3)
    assert corpus.tracks[0].mtime_ns == (tmp_path / "a/2.mp3").stat().st_mtime_ns


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (["*.mp3"], [], ["rock/1.mp3", "rock/2.mp3"]),
        (["rock"], [], ["rock/1.mp3", "rock/2.mp3"]),
        (["rock/1*"], [], ["rock/1.mp3"]),
        ([], ["1.*"], ["jazz/2.wav", "rock/2.mp3"]),
        (["rock/"], ["2.mp3"], ["rock/1.mp3"]),
    ],
)
def test_include_and_exclude(include: list[str], exclude: list[str], expected: list[str], tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path, ["rock/1.mp3", "rock/2.mp3", "jazz/1.wav", "jazz/2.wav"], mp3)
    assert [track.track for track in scan([tmp_path], include=include, exclude=exclude).tracks] == expected


def test_nothing_to_annotate(tmp_path: Path, mp3: bytes) -> None:
    with pytest.raises(NoAudioFound, match="no audio found under"):
        scan([tmp_path])
    place(tmp_path, ["a.mp3"], mp3)
    with pytest.raises(NoAudioFound, match=r"1 audio files .* none left by the include and exclude"):
        scan([tmp_path], include=["*.wav"])
    with pytest.raises(ValueError, match="no deam layout under"):
        scan([tmp_path], corpus="deam")
    with pytest.raises(ValueError, match="corpus='jazz' must be one of auto, emotify"):
        scan([tmp_path], corpus="jazz")


def test_layout_can_be_refused(tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path, [f"{genre}/1.mp3" for genre in GENRES], mp3)
    assert scan([tmp_path], corpus="folder").name == "folder"
    assert {track.track_id for track in scan([tmp_path], corpus="folder").tracks} == {None}


def test_symbolic_links_are_followed_but_not_round_in_circles(tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path / "in", ["z/1.mp3"], mp3)
    place(tmp_path / "out", ["2.mp3"], mp3)
    (tmp_path / "in/z/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/a").symlink_to(tmp_path / "in/z")
    (tmp_path / "in/other").symlink_to(tmp_path / "out")
    (tmp_path / "in/self").symlink_to(tmp_path / "in/self")
    (tmp_path / "in/gone.mp3").symlink_to(tmp_path / "nowhere.mp3")
    corpus = scan([tmp_path / "in"])
    assert [track.track for track in corpus.tracks] == ["other/2.mp3", "z/1.mp3"]
    text = "\n".join(corpus.messages)
    assert "(loops) skipped: a, z/back" in text
    assert "cannot be reached (broken links): gone.mp3" in text


def test_one_file_and_several_roots(tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path, ["a/1.mp3", "a/2.mp3", "b/1.mp3"], mp3)
    assert list(keys(scan([tmp_path / "a/2.mp3"]))) == ["2.mp3"]
    corpus = scan([tmp_path / "b", tmp_path / "a/1.mp3", tmp_path / "a/1.mp3"])
    assert list(keys(corpus)) == ["a/1.mp3", "b/1.mp3"]
    assert corpus.root == tmp_path
    assert list(keys(scan([tmp_path / "a", tmp_path]))) == ["a/1.mp3", "a/2.mp3", "b/1.mp3"]
    assert scan([tmp_path / "a", tmp_path]).messages == ()


def test_mixed_corpora_keep_their_own(tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path / "e", [f"{genre}/1.mp3" for genre in GENRES], mp3)
    emotify_csv(tmp_path / "e/data.csv", EMOTIFY_ROWS)
    place(tmp_path / "s", ["audio/001.mp3"], mp3)
    soundtracks_labels(tmp_path / "s")
    musifeast(tmp_path / "m", mp3)
    for roots in ([tmp_path], [tmp_path / "e", tmp_path / "m", tmp_path / "s"]):
        corpus = scan(roots)
        assert corpus.name == "mixed"
        assert {track.track_key for track in corpus.tracks} == {
            *(f"emotify:{number}" for number in (1, 101, 201, 301)),
            "soundtracks:001",
            "musifeast:60s_HIGH_01",
        }
        assert corpus.ratings.index.is_unique
        assert corpus.ratings.loc["soundtracks:001", "rated_tension"] == 3.17
        assert corpus.listeners is not None
        assert set(corpus.listeners["track_key"]) == {"emotify:1", "emotify:101", "emotify:301", "emotify:302"}
        text = "\n".join(corpus.messages)
        assert "rated_tension is on different scales: emotify 0–1 share, soundtracks 1–9 points" in text
        assert "rated_valence is on different scales: musifeast 1–5 points, soundtracks 1–9 points" in text


def test_two_copies_of_a_corpus_share_their_ids(tmp_path: Path, mp3: bytes) -> None:
    for copy, rows in (("x", EMOTIFY_ROWS[:2]), ("y", (*EMOTIFY_ROWS[:1], *EMOTIFY_ROWS[3:]))):
        place(tmp_path / copy, [f"{genre}/1.mp3" for genre in GENRES], mp3)
        emotify_csv(tmp_path / copy / "data.csv", rows)
    corpus = scan([tmp_path])
    assert corpus.name == "emotify"
    assert corpus.ratings["rated_n"].to_dict() == {"1": 2, "301": 1, "302": 1}
    assert corpus.listeners is not None
    assert corpus.listeners["track_key"].tolist() == ["1", "1", "301", "302"]
    text = "\n".join(corpus.messages)
    assert "4 ids belong to more than one file" in text
    assert "1 ids are rated in two copies" in text


# names, tags, groups


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"a b/c'd.mp3", "a b/c'd.mp3"),
        (b"new\nline.mp3", "new\nline.mp3"),
        (b"\xff\xe9.mp3", "\\xff\\xe9.mp3"),
        (b"\\xff.mp3", "\\\\xff.mp3"),
        (b"\\\xff\\\\x.mp3", "\\\\\\xff\\\\\\\\x.mp3"),
        ("é日.mp3".encode(), "é日.mp3"),
    ],
)
def test_identity_of_any_name_is_text_and_goes_back(name: bytes, text: str, tmp_path: Path, mp3: bytes) -> None:
    assert path_text(os.fsdecode(name)) == text
    assert os.fsencode(path_of(text)) == name
    place(tmp_path, [os.fsdecode(name)], mp3)
    corpus = scan([tmp_path])
    assert list(keys(corpus)) == [text]
    assert corpus.tracks[0].path.exists()
    text.encode()
    describe(corpus).encode()


def test_missing_paths_and_the_hint_to_quote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "My Music Data").mkdir()
    (tmp_path / "Data").mkdir()
    assert missing_path_hint(["x", "My", "Music", "Data"]) == '"My Music Data" exists: quote a path that holds a space'
    assert missing_path_hint(["Data", "nowhere"]) is None
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: My, Music; .My Music Data. exists: quote"):
        scan(["My", "Music", "Data"])
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: nowhere$"):
        scan(["nowhere"])


def tagged(path: Path, **texts: str) -> Path:
    container = {".opus": "OGG", ".mp3": "MP3"}.get(path.suffix)
    subtype = "OPUS" if path.suffix == ".opus" else None
    soundfile.write(path, 0.1 * np.sin(np.arange(24_000) / 10), 24_000, format=container, subtype=subtype)
    audio = mutagen.File(path, easy=path.suffix != ".wav")
    if audio.tags is None:
        audio.add_tags()
    for name, text in texts.items():
        if path.suffix == ".wav":
            frame = {"artist": "TPE1", "album": "TALB", "title": "TIT2"}[name]
            audio.tags.add(getattr(mutagen.id3, frame)(encoding=3, text=[text]))
        else:
            audio[name] = text
    audio.save()
    return path


@pytest.mark.parametrize("name", ["x.mp3", "x.flac", "x.opus", "x.wav"])
def test_tags(name: str, tmp_path: Path) -> None:
    path = tagged(tmp_path / name, artist=" Ärtist ", title="T")
    assert read_tags(path) == Tags(artist="Ärtist", album=None, title="T")


def test_album_artist_stands_in_for_the_artist(tmp_path: Path) -> None:
    assert read_tags(tagged(tmp_path / "x.flac", albumartist="B", album="C")) == Tags(artist="B", album="C")


def test_broken_tags_are_none(tmp_path: Path, mp3: bytes) -> None:
    (tmp_path / "empty.mp3").touch()
    (tmp_path / "noise.flac").write_bytes(b"fLaC" + bytes(range(256)) * 4)
    (tmp_path / "id3.mp3").write_bytes(b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(50))
    (tmp_path / "untagged.mp3").write_bytes(mp3)
    for name in ("empty.mp3", "noise.flac", "id3.mp3", "untagged.mp3", "missing.mp3"):
        assert read_tags(tmp_path / name) == Tags()


def test_split_groups_are_artists_and_else_the_folder(tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path, ["top.mp3", "A/1.mp3", "A/2.mp3", "B/1.mp3"], mp3)
    corpus = scan([tmp_path])
    groups = split_groups(corpus, {"A/1.mp3": Tags(artist="The  Band "), "B/1.mp3": Tags(artist="the band")})
    assert groups.to_dict() == {"A/1.mp3": "the band", "A/2.mp3": "a", "B/1.mp3": "the band", "top.mp3": None}
    emotify = replace(corpus, tracks=tuple(replace(track, corpus="emotify") for track in corpus.tracks))
    assert split_groups(emotify, {}).tolist() == [None] * 4


def test_describe_says_what_was_found(tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path, [f"{genre}/1.mp3" for genre in GENRES], mp3)
    emotify_csv(tmp_path / "data.csv", EMOTIFY_ROWS)
    text = describe(scan([tmp_path]))
    for line in ("layout    emotify", "tracks    4", "       1  rock", "4 ids rated, 3 of them matched with audio"):
        assert line in text
    assert "audio without a rating: 1 (201)" in text
    assert "rating without audio: 1 (302)" in text
    assert "rated_amazement              0 to 0.5 (share, 0–1)" in text


# the real corpora


@needs_data
@pytest.mark.corpus
def test_real_emotify() -> None:
    corpus = scan([DATA / "emotify"])
    assert (corpus.name, len(corpus.tracks), len(corpus.ratings)) == ("emotify", 309, 309)
    assert (corpus.audio_without_rating, corpus.rating_without_audio) == ((), ())
    assert corpus.ratings["rated_n"].agg(["min", "max"]).tolist() == [11, 59]
    assert corpus.listeners is not None
    assert len(corpus.listeners) == corpus.ratings["rated_n"].sum() == 6431


@needs_data
@pytest.mark.corpus
def test_real_soundtracks() -> None:
    corpus = scan([DATA / "soundtracks"])
    rated = corpus.ratings[[f"rated_{name}" for name in (*FILM, *MIDLEVEL)]]
    assert (corpus.name, len(corpus.tracks), rated.shape) == ("soundtracks", 286, (286, 15))
    assert rated.notna().all(axis=None)
    assert split_groups(corpus, {}).nunique() == 35
    assert rated["rated_melodiousness"].corr(rated["rated_dissonance"]) < -0.5
    assert rated["rated_minorness"].corr(rated["rated_happy"]) < -0.3


@needs_data
@pytest.mark.corpus
def test_real_musifeast_and_muse() -> None:
    corpus = scan([DATA / "musifeast17"])
    assert (corpus.name, len(corpus.tracks), len({track.group for track in corpus.tracks})) == ("musifeast", 204, 17)
    assert (corpus.audio_without_rating, corpus.rating_without_audio) == ((), ())
    with pytest.raises(NoAudioFound, match="MuSe's labels"):
        scan([DATA / "muse"])


@needs_data
@pytest.mark.corpus
def test_real_deam_labels() -> None:
    labels = read_deam(DATA / "deam")
    assert len(labels.ratings) == 1802
    assert "r(static valence, dynamic valence) = 0.575, r(static valence, dynamic arousal) = 0.956" in labels.messages[0]
    assert "exchanged back for 744 songs" in labels.messages[1]
    published = read_deam(DATA / "deam", correct=False).ratings
    assert published.loc["2", "rated_valence"] == labels.ratings.loc["2", "rated_arousal"] == 3.1
    assert published.loc["1001":].equals(labels.ratings.loc["1001":])
    with pytest.raises(NoAudioFound, match="annotations of 1802 songs are there"):
        scan([DATA / "deam"])


def test_a_copied_tree_scans_alike(tmp_path: Path, mp3: bytes) -> None:
    place(tmp_path / "one", ["b/1.mp3", "a/1.mp3"], mp3)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert list(keys(scan([tmp_path / "one"]))) == list(keys(scan([tmp_path / "two"])))


def test_the_command_offers_every_layout() -> None:
    """The choices of `--corpus` are written out, so that `annotate --help` need not import the scan."""
    assert ("auto", *corpora.CORPORA) == console.CORPORA
