"""The human ratings that corpora publish: one reader a corpus, each from its label files to `Labels`.

Conventions
-----------
- `Labels.ratings` is indexed by ``track_key`` (the corpus's own id as a string) with float columns ``rated_<label>``
  and the nullable integer ``rated_n`` (listeners; missing where the corpus does not publish it).
- Values stay on the corpus's own scale, which `Labels.rating_units` states: column -> (description, unit, low, high).
- A label file that contradicts itself is refused with the file, the rule and the lines; what a published file is
  known to do wrong is mended and said in `Labels.messages`.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from models import labels as known_labels

GEMS: Final = known_labels.GEMS.labels
FILM: Final = known_labels.FILM.labels
MIDLEVEL: Final = known_labels.MIDLEVEL.labels
# The Mid-level file's own names; its high `atonality` is tonally stable, its high `mode` is minor.
MIDLEVEL_COLUMNS: Final = {
    "melody": "melodiousness",
    "melodiousness": "melodiousness",
    "articulation": "articulation",
    "rhythm_complexity": "rhythmic_complexity",
    "rhythmic_complexity": "rhythmic_complexity",
    "rhythm_stability": "rhythmic_stability",
    "rhythmic_stability": "rhythmic_stability",
    "dissonance": "dissonance",
    "atonality": "tonal_stability",
    "tonal_stability": "tonal_stability",
    "mode": "minorness",
    "minorness": "minorness",
}
EMOTIFY_OFFSETS: Final = {"classical": 0, "rock": 100, "electronic": 200, "pop": 300}  # not the alphabetical order
MIDLEVEL_SOUNDTRACKS_OFFSET: Final = 3575  # Mid-level song ids 3576–3935 are Soundtracks 1–360
DEAM_LAST_ID_OF_2013: Final = 1000
HIGHEST_ID: Final = 2**31 - 1
DEAM_MIN_SONGS: Final = 20  # fewer songs with dynamic annotations decide nothing about an exchange

RatingUnit = tuple[str, str, float, float]  # description, unit, low, high


@dataclass(frozen=True, eq=False)
class Labels:
    """What the label files of one corpus say, keyed by the corpus's own id."""

    ratings: pd.DataFrame
    rating_units: dict[str, RatingUnit]
    messages: tuple[str, ...] = ()
    listeners: pd.DataFrame | None = None  # one row a listener: track_key and the nine 0/1 GEMS columns
    artist: Mapping[str, str] = field(default_factory=dict)
    album: Mapping[str, str] = field(default_factory=dict)
    title: Mapping[str, str] = field(default_factory=dict)
    group: Mapping[str, str] = field(default_factory=dict)


def no_labels(messages: Sequence[str] = ()) -> Labels:
    """Give labels that hold nothing."""
    return Labels(pd.DataFrame(index=pd.Index([], name="track_key", dtype="str")), {}, tuple(messages))


def emotify_genre(track_id: int) -> str:
    """Genre folder of an Emotify track id, 1–400."""
    if not 1 <= track_id <= 400:
        raise ValueError(f"Emotify track id {track_id} is outside 1–400")
    return tuple(EMOTIFY_OFFSETS)[(track_id - 1) // 100]


def is_emotify_csv(path: Path) -> bool:
    """Whether a file's header is that of Emotify's ``data.csv``."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            names = {name.strip().casefold() for name in file.readline(4096).split(",")}
    except OSError:
        return False
    return "track id" in names and set(GEMS) <= names


def read_emotify(path: Path) -> Labels:
    """Read Emotify's ``data.csv``: one row a listener, nine 0/1 GEMS columns (Aljanaki, Wiering & Veltkamp 2016).

    ``rated_<emotion>`` is the share of a track's listeners that chose the emotion, ``rated_n`` their number. Alike
    rows are kept: two listeners may agree.

    Raises
    ------
    ValueError
        No CSV, no row, a column missing or there twice, a track id that is not in 1–400, a value that is not 0 or 1.
    """
    table = _read_csv(path, required=("track id", *GEMS))
    if not len(table):
        raise ValueError(f"{path}: no listener")
    ids = _numbers(table, "track id")
    _refuse(path, table, ~ids.isin(range(1, 401)), "track id", "must be a whole number in 1–400")
    choices = pd.DataFrame({label: _numbers(table, label) for label in GEMS})
    for label in GEMS:
        _refuse(path, table, ~choices[label].isin([0, 1]), label, "must be 0 or 1")
    keys = ids.astype(int).astype("str").rename("track_key")
    shares = choices.groupby(keys, sort=False).mean().add_prefix("rated_")
    shares["rated_n"] = keys.value_counts().reindex(shares.index).astype("Int64")
    messages = []
    if "genre" in table.columns:
        genres = table["genre"].str.strip().str.casefold()
        contrary = genres.isin(list(EMOTIFY_OFFSETS)) & (genres != ids.astype(int).map(emotify_genre))
        if contrary.any():
            messages.append(f"{path.name}: {_lines(contrary)} name a genre that is not the one of the track id; the id counts")
    units: dict[str, RatingUnit] = {
        f"rated_{label}": (f"share of listeners who chose {label.replace('_', ' ')}", "share", 0.0, 1.0) for label in GEMS
    }
    units["rated_n"] = ("listeners who rated the track", "listeners", 1.0, float(shares["rated_n"].max()))
    listeners = pd.concat([keys, choices.astype("int8")], axis=1)
    return Labels(shares, units, tuple(messages), listeners=listeners)


def read_soundtracks(root: Path) -> Labels:
    """Read Soundtracks set 1 (Eerola & Vuoskoski 2011), and the Mid-level ratings of its clips if beside it.

    Raises
    ------
    ValueError
        An id there twice, a film rating outside 1–9, a mid-level rating outside 1–10.
    """
    path = root / "mean_ratings_set1.csv"
    table = _read_csv(path, required=("number", *FILM))
    keys = _ids(path, table, "number").map("{:03d}".format)
    ratings = _rated(path, table, keys, {label: label for label in FILM}, 1, 9)
    units = {f"rated_{label}": (f"mean rating of {label}", "points", 1.0, 9.0) for label in FILM}
    messages: list[str] = []
    midlevel = _read_soundtracks_midlevel(root / "midlevel_annotations.csv")
    if midlevel is None:
        messages.append("no midlevel_annotations.csv beside the film ratings: no mid-level ratings")
    else:
        ratings = ratings.join(midlevel, how="outer")
        units |= {f"rated_{label}": (f"mean rating of {label.replace('_', ' ')}", "points", 1.0, 10.0) for label in MIDLEVEL}
    album: dict[str, str] = {}
    tracklist = root / "set1_tracklist.csv"
    if tracklist.is_file():
        albums = _read_csv(tracklist, required=("nro", "album name"))
        numbers = _ids(tracklist, albums, "nro").map("{:03d}".format)
        album = _texts(numbers, albums["album name"])
    else:
        messages.append("no set1_tracklist.csv: albums unknown, so no split by album")
    return Labels(_without_n(ratings), units | _UNIT_OF_N, tuple(messages), album=album)


def _read_soundtracks_midlevel(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    table = _read_csv(path, required=("song_id",))
    columns = {label: name for name, label in MIDLEVEL_COLUMNS.items() if name in table.columns}
    missing = [label for label in MIDLEVEL if label not in columns]
    if missing:
        raise ValueError(f"{path}: no column for {', '.join(missing)}")
    if "soundtracks_number" in table.columns:
        table = table[table["soundtracks_number"].str.strip() != ""]
        numbers = _ids(path, table, "soundtracks_number")
    else:
        numbers = _ids(path, table, "song_id") - MIDLEVEL_SOUNDTRACKS_OFFSET
        table, numbers = table[numbers.between(1, 360)], numbers[numbers.between(1, 360)]
    return _rated(path, table, numbers.map("{:03d}".format), {label: columns[label] for label in MIDLEVEL}, 1, 10)


def read_musifeast(path: Path) -> Labels:
    """Read ``MUSIFEAST17_all.csv``: valence and arousal, mean and SD, on the corpus's scale of 1–5.

    Raises
    ------
    ValueError
        A clip there twice, a mean outside 1–5, an SD outside 0–4.
    """
    table = _read_csv(
        path,
        required=("clip_name", "genre", "track_title", "artist", "valence_m", "valence_sd", "arousal_m", "arousal_sd"),
    )
    keys = table["clip_name"].str.strip()
    _refuse(path, table, keys.duplicated(keep=False) | (keys == ""), "CLIP_NAME", "must be there once")
    ratings = _rated(path, table, keys, {"valence": "valence_m", "arousal": "arousal_m"}, 1, 5)
    spread = _rated(path, table, keys, {"valence_std": "valence_sd", "arousal_std": "arousal_sd"}, 0, 4)
    return Labels(
        _without_n(ratings.join(spread)),
        _va_units(1.0, 5.0) | _UNIT_OF_N,
        artist=_texts(keys, table["artist"]),
        title=_texts(keys, table["track_title"]),
        group=_texts(keys, table["genre"]),
    )


def read_muse(path: Path) -> Labels:
    """Read a ``muse_v3*.csv`` (MuSe, Akiki & Burghardt 2021): word norms of a track's tags, 1–9, by Spotify id.

    They are means of Warriner's norms over the tags of a track, not ratings by listeners. Rows that are cut short or
    carry no Spotify id are left out, values outside 1–9 become missing, of rows with one id the first counts; each is
    said.
    """
    labels = ("valence", "arousal", "dominance")
    table = _read_csv(path, required=("spotify_id", *(f"{label}_tags" for label in labels)))
    keys = table["spotify_id"].str.strip()
    usable = keys.str.fullmatch(r"[0-9A-Za-z]{15,30}")
    repeated = usable & keys[usable].duplicated().reindex(keys.index, fill_value=False)
    messages = []
    if (~usable).any():
        messages.append(f"{path.name}: {int((~usable).sum())} rows without a Spotify id left out ({_lines(~usable)})")
    if repeated.any():
        messages.append(f"{path.name}: {int(repeated.sum())} rows repeat a Spotify id; the first counts ({_lines(repeated)})")
    table, keys = table[usable & ~repeated], keys[usable & ~repeated]
    ratings = pd.DataFrame(index=pd.Index(keys, name="track_key", dtype="str"))
    for label in labels:
        values = _numbers(table, f"{label}_tags").astype(float)
        outside = values.notna() & ~values.between(1, 9)
        if outside.any():
            messages.append(
                f"{path.name}: {int(outside.sum())} values of {label} outside 1–9 taken as missing ({_lines(outside)})"
            )
        ratings[f"rated_{label}"] = values.mask(outside).to_numpy()
    units: dict[str, RatingUnit] = {
        f"rated_{label}": (f"mean {label} of the track's tags by Warriner's word norms", "points", 1.0, 9.0) for label in labels
    }
    texts = {name: _texts(keys, table[name]) if name in table.columns else {} for name in ("artist", "track", "genre")}
    return Labels(
        _without_n(ratings),
        units | _UNIT_OF_N,
        tuple(messages),
        artist=texts["artist"],
        title=texts["track"],
        group=texts["genre"],
    )


DEAM_ANNOTATIONS: Final = (
    "DEAM_Annotations/annotations/annotations averaged per song",
    "annotations/annotations averaged per song",
    "annotations averaged per song",
    ".",
)


def find_deam(root: Path) -> Path | None:
    """Folder *annotations averaged per song* of a DEAM copy at `root`, or None."""
    for name in DEAM_ANNOTATIONS:
        if any((root / name / "song_level").glob("static_annotations_averaged_songs_*.csv")):
            return root / name
    return None


def read_deam(root: Path, *, correct: bool = True) -> Labels:
    """Read DEAM's static annotations (Aljanaki, Yang & Soleymani 2017), 1–9, and its metadata; no audio is needed.

    The published static file has valence and arousal of the 2013 songs (ids ≤ 1000) exchanged. That is decided here
    by the songs' mean dynamic annotations: exchanged where static valence follows dynamic arousal better than dynamic
    valence, and static arousal the reverse.

    Parameters
    ----------
    root : Path
        Folder that holds ``DEAM_Annotations`` (or ``annotations``), and ``metadata`` if there.
    correct : bool
        Swap the exchanged means and SDs back. The message says what was found either way.

    Raises
    ------
    FileNotFoundError
        No static annotations under `root`.
    ValueError
        A song there twice, a mean outside 1–9, an SD outside 0–4.
    """
    folder = find_deam(root)
    if folder is None:
        raise FileNotFoundError(f"{root}: no DEAM annotations (song_level/static_annotations_averaged_songs_*.csv)")
    means = {"valence": "valence_mean", "arousal": "arousal_mean"}
    spreads = {"valence_std": "valence_std", "arousal_std": "arousal_std"}
    parts, song_ids = [], []
    for path in sorted((folder / "song_level").glob("static_annotations_averaged_songs_*.csv")):
        table = _read_csv(path, required=("song_id", *means.values(), *spreads.values()))
        ids = _ids(path, table, "song_id")
        keys = ids.astype("str")
        parts.append(_rated(path, table, keys, means, 1, 9).join(_rated(path, table, keys, spreads, 0, 4)))
        song_ids.append(ids)
    ratings = pd.concat(parts)
    twice = ratings.index[ratings.index.duplicated()].unique()
    if len(twice):
        raise ValueError(f"{folder / 'song_level'}: songs in more than one file: {_some(twice)}")
    of_2013 = pd.concat(song_ids).to_numpy() <= DEAM_LAST_ID_OF_2013
    exchanged, messages = _deam_exchange(folder, ratings[of_2013])
    if exchanged and correct:
        for suffix in ("", "_std"):
            valence, arousal = f"rated_valence{suffix}", f"rated_arousal{suffix}"
            ratings.loc[of_2013, [valence, arousal]] = ratings.loc[of_2013, [arousal, valence]].to_numpy()
        messages.append(f"DEAM: exchanged back for {int(of_2013.sum())} songs, means and SDs")
    elif exchanged:
        messages.append(f"DEAM: left as published for {int(of_2013.sum())} songs: their valence is arousal and the reverse")
    metadata: dict[str, dict[str, str]] = {"artist": {}, "album": {}, "title": {}, "genre": {}}
    for base in (root, *folder.parents[:3]):
        paths = sorted((base / "metadata").glob("metadata_*.csv"))
        for path in paths:
            for column, texts in _read_deam_metadata(path).items():
                metadata[column] |= texts
        if paths:
            break
    return Labels(
        _without_n(ratings),
        _va_units(1.0, 9.0) | _UNIT_OF_N,
        tuple(messages),
        artist=metadata["artist"],
        album=metadata["album"],
        title=metadata["title"],
        group=metadata["genre"],
    )


def _deam_exchange(folder: Path, static: pd.DataFrame) -> tuple[bool, list[str]]:
    """Whether valence and arousal of these songs are exchanged, and the correlations that say so."""
    means: dict[str, pd.Series[float]] = {}
    for dimension in ("valence", "arousal"):
        path = folder / "dynamic (per second annotations)" / f"{dimension}.csv"
        if not path.is_file():
            return False, [f"DEAM: no dynamic {dimension}.csv: whether valence and arousal of 2013 are exchanged was not checked"]
        dynamic = _read_dynamic(path)
        means[dimension] = dynamic.mean(axis=1)
    table = static.join(pd.DataFrame(means), how="inner").dropna()
    if len(table) < DEAM_MIN_SONGS:
        if len(static) == 0:
            return False, []
        return False, [f"DEAM: {len(table)} songs of 2013 with dynamic annotations, too few to check for an exchange"]
    static_valence, static_arousal = table["rated_valence"], table["rated_arousal"]
    r_vv, r_va = static_valence.corr(table["valence"]), static_valence.corr(table["arousal"])
    r_aa, r_av = static_arousal.corr(table["arousal"]), static_arousal.corr(table["valence"])
    exchanged = r_va > r_vv and r_av > r_aa
    figures = (
        f"r(static valence, dynamic valence) = {r_vv:.3f}, r(static valence, dynamic arousal) = {r_va:.3f}, "
        f"r(static arousal, dynamic arousal) = {r_aa:.3f}, r(static arousal, dynamic valence) = {r_av:.3f}, "
        f"{len(table)} songs"
    )
    verdict = "are exchanged in the static file" if exchanged else "are not exchanged"
    return exchanged, [f"DEAM: valence and arousal of 2013 (ids ≤ {DEAM_LAST_ID_OF_2013}) {verdict}: {figures}"]


def _read_dynamic(path: Path) -> pd.DataFrame:
    """Values every half second by song; what is no number is missing."""
    try:
        table: pd.DataFrame = pd.read_csv(path, index_col=0, encoding_errors="replace", low_memory=False)
    except ValueError as error:
        raise ValueError(f"{path}: not a readable CSV file ({' '.join(str(error).split())})") from None
    table = table.apply(pd.to_numeric, errors="coerce").replace([np.inf, -np.inf], np.nan)
    table.index = table.index.astype("str")
    twice = table.index[table.index.duplicated()].unique()
    if len(twice):
        raise ValueError(f"{path}: songs there twice: {_some(twice)}")
    return table


def _read_deam_metadata(path: Path) -> dict[str, dict[str, str]]:
    """Artist, album, title and genre by song id; by the header, as the three years order their columns differently."""
    found: dict[str, dict[str, str]] = {"artist": {}, "album": {}, "title": {}, "genre": {}}
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            rows = list(csv.reader(file))
        except csv.Error as error:
            raise ValueError(f"{path}: not a readable CSV file ({error})") from None
        header = [name.strip().casefold() for name in rows[0]] if rows else []
        at = {name: header.index(name) for name in found if name in header}
        for row in rows[1:]:
            if not row or not re.fullmatch("[0-9]{1,9}", row[0].strip()):
                continue
            key = str(int(row[0]))
            for name, column in at.items():
                text = " ".join(row[column].split()).strip('" ') if column < len(row) else ""
                is_file_name = name == "album" and re.fullmatch(rf"{key}\.(mp3|wav)", text, re.IGNORECASE)
                if text and text.casefold() != "n/a" and not is_file_name:
                    found[name][key] = text
    return found


_UNIT_OF_N: Final[dict[str, RatingUnit]] = {
    "rated_n": ("listeners who rated the track (not published)", "listeners", 1.0, 1_000_000.0)
}


def _va_units(low: float, high: float) -> dict[str, RatingUnit]:
    units: dict[str, RatingUnit] = {}
    for label in ("valence", "arousal"):
        units[f"rated_{label}"] = (f"mean rating of {label}", "points", low, high)
        units[f"rated_{label}_std"] = (
            f"SD of the ratings of {label} between listeners",
            "points",
            0.0,
            (high - low) / 2,
        )
    return units


def _without_n(ratings: pd.DataFrame) -> pd.DataFrame:
    return ratings.assign(rated_n=pd.array([pd.NA] * len(ratings), dtype="Int64"))


def _read_csv(path: Path, required: Iterable[str]) -> pd.DataFrame:
    """Read a CSV as text, column names stripped and lower-case; row i of the index is line i of the file."""
    table = parse_csv(path, keep_default_na=False, skip_blank_lines=False).fillna("")
    table.columns = [str(name).strip().casefold() for name in table.columns]
    # pandas renames a second `power` to `power.1`
    twice = [name for name in required if f"{name}.1" in table.columns or list(table.columns).count(name) > 1]
    if twice:
        raise ValueError(f"{path}: columns there twice: {', '.join(twice)}")
    missing = [name for name in required if name not in table.columns]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}")
    table.index = pd.RangeIndex(2, len(table) + 2)
    return table[(table != "").any(axis=1)]


def parse_csv(
    path: Path, *, keep_default_na: bool = True, skip_blank_lines: bool = True, skipinitialspace: bool = False
) -> pd.DataFrame:
    """Parse a CSV as text, UTF-8 or else Windows-1252; a first line is the header, and no column becomes the index.

    Raises
    ------
    ValueError
        What is no CSV, and lines that are longer than the header; with the file.
    """

    def parse(encoding: str, encoding_errors: str) -> pd.DataFrame:
        table: pd.DataFrame = pd.read_csv(
            path,
            dtype="str",
            index_col=False,
            encoding=encoding,
            encoding_errors=encoding_errors,
            keep_default_na=keep_default_na,
            skip_blank_lines=skip_blank_lines,
            skipinitialspace=skipinitialspace,
        )
        return table

    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            try:
                return parse("utf-8-sig", "strict")
            except UnicodeDecodeError:
                return parse("cp1252", "replace")
        except pd.errors.ParserWarning:
            raise ValueError(f"{path}: not a readable CSV file (lines with more fields than the header has names)") from None
        except ValueError as error:
            raise ValueError(f"{path}: not a readable CSV file ({' '.join(str(error).split())})") from None


def _numbers(table: pd.DataFrame, column: str) -> pd.Series[float]:
    return pd.to_numeric(table[column].str.strip(), errors="coerce").astype(float)


def _ids(path: Path, table: pd.DataFrame, column: str) -> pd.Series[int]:
    ids = _numbers(table, column)
    _refuse(path, table, ~ids.between(0, HIGHEST_ID) | (ids % 1 != 0), column, "must be a whole number")
    _refuse(path, table, ids.duplicated(keep=False), column, "must be there once")
    return ids.astype(int)


def _rated(
    path: Path, table: pd.DataFrame, keys: pd.Series[str], columns: Mapping[str, str], low: float, high: float
) -> pd.DataFrame:
    """Give ``rated_<label>`` by key; an empty cell is missing, anything else must be a number in low–high."""
    rated = {}
    for label, column in columns.items():
        values = _numbers(table, column)
        filled = ~table[column].str.strip().str.casefold().isin(["", "na", "nan"])
        _refuse(path, table, filled & ~values.between(low, high), column, f"must be in {low}–{high}")
        rated[f"rated_{label}"] = values.astype(float).to_numpy()
    return pd.DataFrame(rated, index=pd.Index(keys.to_numpy(), name="track_key", dtype="str"))


def _refuse(path: Path, table: pd.DataFrame, bad: pd.Series[bool], column: str, rule: str) -> None:
    if bad.any():
        source = column if column in table.columns else column.casefold()
        values = ", ".join(dict.fromkeys(repr(str(value).strip()) for value in table.loc[bad, source].head(3)))
        raise ValueError(f"{path}: {column} {rule}: {_lines(bad)} ({values})")


def _lines(marked: pd.Series[bool]) -> str:
    lines = marked.index[np.asarray(marked, dtype=bool)]
    return f"line{'s' if len(lines) > 1 else ''} {_some(lines)}"


def _some(items: Iterable[object], most: int = 5) -> str:
    """First few of a list, and how many more there are."""
    shown = [str(item) for item in items]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _texts(keys: pd.Series[str], values: pd.Series[str]) -> dict[str, str]:
    cleaned = (" ".join(value.split()) for value in values)
    return {key: text for key, text in zip(keys, cleaned, strict=True) if text}
