r"""Folders of music -> tracks with an identity, and the ids and ratings of the corpus that they belong to.

Conventions
-----------
- A track's identity is `Track.track`: its path below the scanned root, ``/`` between parts, a backslash doubled and
  each byte that is not UTF-8 as ``\xNN`` (`path_text`; `path_of` is its inverse). File names alone collide between
  folders.
- The layout is decided for each folder that holds audio, so that a root may be a corpus, stand above several, or be a
  part of one.
- ``track_key`` is the corpus's own id; several files may share one (said in the messages). With corpora mixed under
  one scan it is ``corpus:id``.

    layout       recognised by
    emotify      the folders classical rock electronic pop, or one of them with data.csv; Musics/ with 1..400 and
    data.csv deam         MEMD_audio/, or numbers beside DEAM's annotations
    soundtracks  mean_ratings_set1.csv beside or above NNN.*
    musifeast    MUSIFEAST17_all.csv beside or above
    muse         muse_v3*.csv beside or above files named by Spotify id
    folder       anything else
"""

from __future__ import annotations

import contextlib
import fnmatch
import gc
import os
import re
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, NamedTuple

import pandas as pd

from annotate import ratings as labels_of
from annotate.ratings import EMOTIFY_OFFSETS, Labels, RatingUnit, read_deam
from annotate.tracks import AUDIO_EXTENSIONS, Tags, Track, path_of, path_text, read_tags

__all__ = [
    "CORPORA",
    "Corpus",
    "NoAudioFound",
    "Tags",
    "Track",
    "describe",
    "missing_path_hint",
    "natural_order",
    "path_of",
    "path_text",
    "read_deam",
    "read_tags",
    "scan",
    "split_groups",
]

CORPORA: Final = ("emotify", "deam", "soundtracks", "musifeast", "muse", "folder")
UNSUPPORTED_EXTENSIONS: Final = frozenset(
    (
        ".m4a",
        ".m4b",
        ".mp4",
        ".wma",
        ".aac",
        ".ape",
        ".wv",
        ".mpc",
        ".ra",
        ".amr",
        ".dsf",
        ".dff",
        ".tta",
        ".ac3",
        ".mka",
    )
)

DIGITS: Final = re.compile("([0-9]+)")


class NoAudioFound(ValueError):
    """A scan that found no audio file."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """What a scan found."""

    name: str  # one of CORPORA, or "mixed"
    root: Path  # several roots: their common parent
    tracks: tuple[Track, ...]  # in natural order of `track`
    ratings: pd.DataFrame  # index track_key, columns rated_<label> (float) and rated_n (Int64)
    rating_units: dict[str, RatingUnit]  # column -> description, unit, low, high
    listeners: pd.DataFrame | None  # Emotify: one row a listener, track_key and nine 0/1 columns
    messages: tuple[str, ...]  # one line each
    audio_without_rating: tuple[str, ...]  # track_keys, before include and exclude
    rating_without_audio: tuple[str, ...]


class _File(NamedTuple):
    folder: str
    name: str
    stem: str
    track: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class _Layout:
    corpus: str
    home: str  # folder of the corpus: of its label files, or above its genre folders


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Let the cyclic collector rest: going through all that was found, again and again, takes a third of a large scan."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_collection()
def scan(
    paths: Sequence[str | os.PathLike[str]],
    *,
    corpus: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    correct_deam: bool = True,
) -> Corpus:
    """Find the audio under files and folders, and the ratings that their corpora have.

    Parameters
    ----------
    paths : sequence of paths
        Files and folders; several are taken relative to their common parent.
    corpus : str
        ``auto``, or the one layout to recognise; other files are then left out.
    include, exclude : sequences of str
        Globs on the identity, on the file name, or a folder below the root. An audio file is kept that matches any of
        `include` (or there are none) and none of `exclude`.
    correct_deam : bool
        Whether DEAM's exchange of valence and arousal is corrected (see `read_deam`).

    Raises
    ------
    FileNotFoundError
        A path that does not exist, with a hint where it looks unquoted.
    NoAudioFound
        Nothing to annotate.
    ValueError
        An unknown `corpus`, a layout that is not there, label files that contradict themselves.
    """
    if corpus not in ("auto", *CORPORA):
        raise ValueError(f"corpus={corpus!r} must be one of auto, {', '.join(CORPORA)}")
    if not paths:
        raise ValueError("no path given")
    starts = [os.path.abspath(os.fspath(path)) for path in paths]
    missing = [os.fspath(path) for path, start in zip(paths, starts, strict=True) if not os.path.exists(start)]
    if missing:
        hint = missing_path_hint([os.fspath(path) for path in paths])
        raise FileNotFoundError(
            f"no such file or folder: {', '.join(_plain(m) for m in missing)}" + (f"; {hint}" if hint else "")
        )

    folders = [start if os.path.isdir(start) else os.path.dirname(start) for start in starts]
    root = os.path.commonpath(folders)
    messages: list[str] = []
    files = _find_audio(starts, root, messages)
    layouts = _layouts(files, root, corpus)
    files = _without_renumbered_copies(files, layouts, messages)
    if not files:
        raise NoAudioFound(_nothing_found(folders, messages))

    labels = _read_labels(layouts, files, root, correct_deam, messages)
    tracks = [_track(file, layouts[file.folder], labels) for file in files]
    _say_strays(tracks, layouts, messages)
    if corpus not in ("auto", "folder"):
        tracks = [track for track in tracks if track.corpus == corpus]
        if not tracks:
            raise ValueError(f"no {corpus} layout under {_plain(root)}")
    names = {track.corpus for track in tracks} - {"folder"}
    name = "mixed" if len(names) > 1 else next(iter(names), "folder")
    if name == "mixed":
        tracks = [replace(track, track_key=f"{track.corpus}:{track.track_key}") for track in tracks]
    ratings, units, listeners = _join_labels(labels, messages, mixed=name == "mixed")
    rated, heard = set(ratings.index), {track.track_key for track in tracks}
    _say_shared_keys(tracks, messages)
    kept = tuple(track for track in tracks if _is_kept(track.track, include, exclude))
    if not kept:
        raise NoAudioFound(f"{len(tracks)} audio files under {_plain(root)}, none left by the include and exclude patterns")
    return Corpus(
        name=name,
        root=Path(root),
        tracks=kept,
        ratings=ratings,
        rating_units=units,
        listeners=listeners,
        messages=tuple(messages),
        audio_without_rating=tuple(
            dict.fromkeys(t.track_key for t in tracks if t.track_key not in rated and t.corpus != "folder")
        ),
        rating_without_audio=tuple(key for key in ratings.index if key not in heard),
    )


def missing_path_hint(paths: Sequence[str]) -> str | None:
    """Hint to quote a path that a shell has cut at its spaces; None where that is not what happened."""
    for length in range(2, len(paths) + 1):
        for first in range(len(paths) - length + 1):
            parts = paths[first : first + length]
            joined = " ".join(parts)
            if os.path.exists(joined) and not all(os.path.exists(part) for part in parts):
                return f'"{_plain(joined)}" exists: quote a path that holds a space'
    return None


def split_groups(corpus: Corpus, tags: Mapping[str, Tags]) -> pd.Series[str]:
    """Group of each track for splits that leak nothing: tracks of one group never stand on both sides.

    Parameters
    ----------
    corpus : Corpus
    tags : mapping
        `Track.track` -> `read_tags` of its file; tracks may be missing.

    Returns
    -------
    Series
        Index `Track.track`, values: soundtracks the album; the others the artist, by the corpus's metadata or the
        tags; a plain folder's untagged track its parent folder. Case-folded, white space collapsed; None where unknown.
    """
    groups: list[str | None] = []
    for track in corpus.tracks:
        if track.corpus == "soundtracks":
            text = track.album
        else:
            text = track.artist or tags.get(track.track, Tags()).artist
            if text is None and track.corpus == "folder" and "/" in track.track:
                text = track.track.rpartition("/")[0]
        groups.append(" ".join(text.split()).casefold() or None if text else None)
    index = pd.Index([track.track for track in corpus.tracks], name="track", dtype=object)
    return pd.Series(groups, index=index, name="group", dtype=object)


def describe(corpus: Corpus) -> str:
    """Lines that say what was detected: layout, counts, ratings, unmatched ids both ways, messages."""
    lines = [f"layout    {corpus.name}", f"root      {_plain(str(corpus.root))}", f"tracks    {len(corpus.tracks)}"]
    by_corpus = Counter(track.corpus for track in corpus.tracks)
    if len(by_corpus) > 1:
        lines += [f"  {count:6d}  {name}" for name, count in by_corpus.items()]
    groups = Counter(track.group or "(no group)" for track in corpus.tracks)
    if set(groups) != {"(no group)"}:
        shown = sorted(groups.items(), key=lambda item: (-item[1], item[0]))
        lines.append(f"groups    {len(groups)}")
        lines += [f"  {count:6d}  {_plain(name)}" for name, count in shown[:20]]
        lines += [f"          and {len(shown) - 20} more"] if len(shown) > 20 else []
    if len(corpus.ratings):
        matched = len({track.track_key for track in corpus.tracks} & set(corpus.ratings.index))
        lines.append(f"ratings   {len(corpus.ratings)} ids rated, {matched} of them matched with audio")
        for column in corpus.ratings.columns:
            values = corpus.ratings[column].dropna()
            if len(values):
                description, unit, low, high = corpus.rating_units[column]
                lines.append(
                    f"  {column:28s} {float(values.min()):.4g} to {float(values.max()):.4g} "
                    f"({unit}, {low:g}–{high:g}): {description}"
                )
    else:
        lines.append("ratings   none")
    for name, keys in (
        ("audio without a rating", corpus.audio_without_rating),
        ("rating without audio", corpus.rating_without_audio),
    ):
        lines.append(f"{name}: {len(keys)}" + (f" ({_some(_plain(key) for key in keys)})" if keys else ""))
    lines += [f"note: {message}" for message in corpus.messages]
    return "\n".join(lines)


# finding the files


def _find_audio(starts: Sequence[str], root: str, messages: list[str]) -> list[_File]:
    """Audio files under the starts, each once, in natural order of their identity."""
    found: dict[str, _File] = {}
    unsupported: Counter[str] = Counter()
    broken: list[str] = []
    seen: set[tuple[int, int]] = set()

    def identity(folder: str) -> str:
        """What the identities of a folder's files begin with."""
        return "" if folder == root else path_text(os.path.relpath(folder, root)) + "/"

    def admit(folder: str, above: str, name: str, look: Callable[[], os.stat_result | None]) -> None:
        # `look` only where the name is one of audio
        stem, extension = os.path.splitext(name)
        extension = extension.lower()
        if extension in UNSUPPORTED_EXTENSIONS:
            unsupported[extension] += 1
        elif extension in AUDIO_EXTENSIONS:
            path, status = os.path.join(folder, name), look()
            if status is None:
                broken.append(path)
            elif stat.S_ISREG(status.st_mode):
                found[path] = _File(folder, name, stem, above + path_text(name), status.st_size, status.st_mtime_ns)

    pending: list[str] = []
    for start in starts:
        if os.path.isdir(start):
            pending.append(start)
        else:
            folder, name = os.path.split(start)
            admit(folder, identity(folder), name, partial(os.stat, start))
            if os.path.splitext(start)[1].lower() not in AUDIO_EXTENSIONS | UNSUPPORTED_EXTENSIONS:
                messages.append(f"{_plain(start)} does not have the name of an audio file")
    linked: list[str] = []  # folders behind symbolic links wait until every real one was read
    again: list[str] = []
    unreadable: list[str] = []
    while pending or linked:
        folder = pending.pop() if pending else linked.pop(0)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                if os.path.islink(folder):
                    again.append(folder)
                continue
            seen.add((status.st_dev, status.st_ino))
            above = identity(folder)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    if _leads_to_folder(entry):
                        (linked if entry.is_symlink() else pending).append(entry.path)
                    else:
                        admit(folder, above, entry.name, partial(_stat, entry))
        except OSError:
            unreadable.append(folder)
        if not pending:
            linked.sort()
    if again:
        messages.append(f"symbolic links back to folders that were read already (loops) skipped: {_places(again, root)}")
    if unreadable:
        messages.append(f"folders that cannot be read: {_places(unreadable, root)}")
    if broken:
        messages.append(f"audio files that cannot be reached (broken links): {_places(broken, root)}")
    if unsupported:
        kinds = ", ".join(f"{count} {extension}" for extension, count in sorted(unsupported.items()))
        messages.append(f"{sum(unsupported.values())} audio files of unsupported formats left out ({kinds})")
    return sorted(found.values(), key=lambda file: natural_order(file.track))


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:
        return None


def natural_order(track: str) -> tuple[tuple[tuple[int | str, ...], ...], str]:
    """Sort key of the scan: part by part, 2 before 10; equal but for case or zeros: by the text itself."""
    above, slash, name = track.casefold().rpartition("/")
    return ((*_natural_folders(above), _natural_part(name)) if slash else (_natural_part(name),)), track


@lru_cache(maxsize=1024)
def _natural_folders(path: str) -> tuple[tuple[int | str, ...], ...]:
    return tuple(_natural_part(part) for part in path.split("/"))


def _natural_part(part: str) -> tuple[int | str, ...]:
    pieces: list[int | str] = list(DIGITS.split(part))
    pieces[1::2] = map(int, pieces[1::2])
    return tuple(pieces)


def _is_kept(track: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    return (not include or _matches(track, include)) and not _matches(track, exclude)


def _matches(track: str, patterns: Sequence[str]) -> bool:
    name = track.rpartition("/")[2]
    return any(
        fnmatch.fnmatchcase(track, pattern) or fnmatch.fnmatchcase(name, pattern) or track.startswith(pattern.rstrip("/") + "/")
        for pattern in patterns
    )


# recognising the layout


def _layouts(files: Sequence[_File], root: str, corpus: str) -> dict[str, _Layout]:
    """Layout of each folder that holds audio."""
    stems: dict[str, list[str]] = defaultdict(list)
    for file in files:
        stems[file.folder].append(file.stem)
    listings: dict[str, frozenset[str]] = {}
    wanted = CORPORA if corpus == "auto" else (corpus, "folder")
    return {folder: _layout(folder, names, root, wanted, listings) for folder, names in stems.items()}


def _layout(folder: str, stems: Sequence[str], root: str, wanted: Sequence[str], listings: dict[str, frozenset[str]]) -> _Layout:
    above = os.path.dirname(folder)
    for home in (folder, above):
        names = _names(home, listings)
        if "soundtracks" in wanted and "mean_ratings_set1.csv" in names:
            return _Layout("soundtracks", home)
        if "musifeast" in wanted and "MUSIFEAST17_all.csv" in names:
            return _Layout("musifeast", home)
        if "muse" in wanted and _muse_csv(home, names):
            return _Layout("muse", home)
    if "emotify" in wanted:
        if os.path.basename(folder).casefold() in EMOTIFY_OFFSETS:
            genres = {name.casefold() for name in _names(above, listings)} & set(EMOTIFY_OFFSETS)
            if genres == set(EMOTIFY_OFFSETS) or _emotify_csv(above, root, listings):
                return _Layout("emotify", above)
        if stems and all(_number(stem, 400) is not None for stem in stems):
            beside = any(name.casefold() in EMOTIFY_OFFSETS for name in _names(above, listings))
            if os.path.basename(folder).casefold() == "musics" and beside:
                return _Layout("emotify", above)
            for home in (folder, above):
                if labels_of.is_emotify_csv(Path(home, "data.csv")):
                    return _Layout("emotify", home)
    if "deam" in wanted:
        is_named = os.path.basename(folder) == "MEMD_audio"
        for home in (folder, above, os.path.dirname(above))[: 3 if is_named else 2]:
            if labels_of.find_deam(Path(home)) and any(stem.isdecimal() for stem in stems):
                return _Layout("deam", home)
        if is_named:
            return _Layout("deam", above)
    return _Layout("folder", root)


def _names(folder: str, listings: dict[str, frozenset[str]]) -> frozenset[str]:
    if folder not in listings:
        try:
            listings[folder] = frozenset(os.listdir(folder))
        except OSError:
            listings[folder] = frozenset()
    return listings[folder]


def _emotify_csv(home: str, root: str, listings: dict[str, frozenset[str]]) -> Path | None:
    """Emotify's data.csv: above the genre folders, in the scanned root, one level up, or one level down."""
    below = [os.path.join(home, name) for name in sorted(_names(home, listings)) if not name.startswith(".")]
    for folder in (home, os.path.dirname(home), root, *below):
        path = Path(folder, "data.csv")
        if labels_of.is_emotify_csv(path):
            return path
    return None


def _muse_csv(home: str, names: Iterable[str]) -> Path | None:
    found = sorted(name for name in names if fnmatch.fnmatchcase(name.lower(), "muse_v3*.csv"))
    return Path(home, found[0]) if found else None


def _without_renumbered_copies(files: list[_File], layouts: Mapping[str, _Layout], messages: list[str]) -> list[_File]:
    """Leave out a Musics/ folder of copies where the scan holds the genre folders that it was made from."""
    homes = {
        layout.home
        for folder, layout in layouts.items()
        if layout.corpus == "emotify" and os.path.basename(folder).casefold() in EMOTIFY_OFFSETS
    }
    copies = {
        folder
        for folder, layout in layouts.items()
        if layout.corpus == "emotify" and layout.home in homes and os.path.basename(folder).casefold() == "musics"
    }
    if not copies:
        return files
    kept = [file for file in files if file.folder not in copies]
    messages.append(f"Musics/ skipped: {len(files) - len(kept)} renumbered copies of the files in the genre folders")
    return kept


def _number(stem: str, highest: int) -> int | None:
    return int(stem) if re.fullmatch("[0-9]{1,9}", stem) and 1 <= int(stem) <= highest else None


# joining with the labels


def _read_labels(
    layouts: Mapping[str, _Layout], files: Sequence[_File], root: str, correct_deam: bool, messages: list[str]
) -> dict[_Layout, Labels]:
    """Labels of each corpus that the files belong to."""
    listings: dict[str, frozenset[str]] = {}
    labels: dict[_Layout, Labels] = {}
    for layout in dict.fromkeys(layouts[folder] for folder in dict.fromkeys(file.folder for file in files)):
        home = Path(layout.home)
        if layout.corpus == "emotify":
            path = _emotify_csv(layout.home, root, listings)
            labels[layout] = (
                labels_of.read_emotify(path)
                if path
                else labels_of.no_labels(["Emotify by its layout, but no data.csv: no ratings"])
            )
        elif layout.corpus == "soundtracks":
            labels[layout] = labels_of.read_soundtracks(home)
        elif layout.corpus == "musifeast":
            labels[layout] = labels_of.read_musifeast(home / "MUSIFEAST17_all.csv")
        elif layout.corpus == "muse":
            path = _muse_csv(layout.home, _names(layout.home, listings))
            labels[layout] = labels_of.read_muse(path) if path else labels_of.no_labels()
        elif layout.corpus == "deam":
            labels[layout] = (
                read_deam(home, correct=correct_deam)
                if labels_of.find_deam(home)
                else labels_of.no_labels(["DEAM by its layout, but no annotations beside MEMD_audio: no ratings"])
            )
        else:
            labels[layout] = labels_of.no_labels()
        messages += labels[layout].messages
    return labels


_folder_path = lru_cache(maxsize=1024)(Path)  # many files share a folder, and parsing it costs most of a scan


def _track(file: _File, layout: _Layout, labels: Mapping[_Layout, Labels]) -> Track:
    """Give a file its corpus id; a file that has none in its corpus's folder is a plain track."""
    plain = Track(
        path=_folder_path(file.folder) / file.name,
        track=file.track,
        corpus="folder",
        track_key=file.track,
        track_id=None,
        group=None,
        size=file.size,
        mtime_ns=file.mtime_ns,
    )
    if layout.corpus == "folder":
        return plain
    folder, stem = os.path.basename(file.folder), file.stem
    if layout.corpus == "emotify":
        genre = folder.casefold()
        in_genre = genre in EMOTIFY_OFFSETS
        number = _number(stem, 100 if in_genre else 400)
        if number is None:
            return plain
        track_id = number + EMOTIFY_OFFSETS[genre] if in_genre else number
        return replace(
            plain, corpus="emotify", track_key=str(track_id), track_id=track_id, group=labels_of.emotify_genre(track_id)
        )
    if layout.corpus in ("soundtracks", "deam"):
        number = _number(stem, 360 if layout.corpus == "soundtracks" else 999_999)
        if number is None:
            return plain
        key, track_id_or_none = (f"{number:03d}" if layout.corpus == "soundtracks" else str(number)), number
    else:
        known = labels[layout]
        if layout.corpus == "muse" and stem not in known.ratings.index and not re.fullmatch("[0-9A-Za-z]{22}", stem):
            return plain
        key, track_id_or_none = path_text(stem), None
    texts = labels[layout]
    return replace(
        plain,
        corpus=layout.corpus,
        track_key=key,
        track_id=track_id_or_none,
        group=texts.group.get(key),
        artist=texts.artist.get(key),
        album=texts.album.get(key),
        title=texts.title.get(key),
    )


def _join_labels(
    labels: Mapping[_Layout, Labels], messages: list[str], *, mixed: bool
) -> tuple[pd.DataFrame, dict[str, RatingUnit], pd.DataFrame | None]:
    frames, listeners = [], []
    units: dict[str, RatingUnit] = {}
    scales: dict[str, dict[str, str]] = defaultdict(dict)  # column -> corpus -> scale
    rated: set[str] = set()
    n_twice = 0
    for layout, found in labels.items():
        prefix = f"{layout.corpus}:" if mixed else ""
        ratings = found.ratings.set_axis([f"{prefix}{key}" for key in found.ratings.index])
        is_new = [key not in rated for key in ratings.index]
        n_twice += is_new.count(False)
        if any(is_new):
            frames.append(ratings[is_new])
        if found.listeners is not None:
            keys = prefix + found.listeners["track_key"]
            listeners.append(found.listeners.assign(track_key=keys)[~keys.isin(rated)])
        rated.update(ratings.index)
        for column, unit in found.rating_units.items():
            units[column] = _merged_unit(units[column], unit) if column in units else unit
            scales[column][layout.corpus] = f"{layout.corpus} {unit[2]:g}–{unit[3]:g} {unit[1]}"
    for column, by_corpus in scales.items():
        if column != "rated_n" and len({text.partition(" ")[2] for text in by_corpus.values()}) > 1:
            messages.append(f"{column} is on different scales: {', '.join(by_corpus.values())}")
    if n_twice:
        messages.append(f"{n_twice} ids are rated in two copies of a corpus; the first copy counts")
    if not frames:
        return labels_of.no_labels().ratings, {}, None
    joined = pd.concat(frames).rename_axis("track_key") if len(frames) > 1 else frames[0].rename_axis("track_key")
    return joined, units, pd.concat(listeners, ignore_index=True) if listeners else None


def _merged_unit(first: RatingUnit, second: RatingUnit) -> RatingUnit:
    if first[1:] == second[1:]:
        return first
    joined = [" / ".join(dict.fromkeys(pair)) for pair in ((first[0], second[0]), (first[1], second[1]))]
    return joined[0], joined[1], min(first[2], second[2]), max(first[3], second[3])


# what a scan says


def _say_strays(tracks: Sequence[Track], layouts: Mapping[str, _Layout], messages: list[str]) -> None:
    strays = [track.track for track in tracks if track.corpus == "folder"]
    if strays and len(strays) < len(tracks):
        messages.append(f"{len(strays)} audio files have no id of a corpus: {_some(_plain(stray) for stray in strays)}")
    corpora: dict[str, list[str]] = defaultdict(list)
    for layout in dict.fromkeys(layouts.values()):
        corpora[layout.corpus].append(layout.home)
    for name, homes in corpora.items():
        if name != "folder" and len(homes) > 1:
            messages.append(f"{len(homes)} copies of {name}: {_some(_plain(home) for home in homes)}")


def _say_shared_keys(tracks: Sequence[Track], messages: list[str]) -> None:
    by_key: dict[tuple[str, str], list[str]] = defaultdict(list)
    for track in tracks:
        if track.corpus != "folder":  # there the key is the identity
            by_key[track.corpus, track.track_key].append(track.track)
    shared = [names for names in by_key.values() if len(names) > 1]
    if shared:
        messages.append(f"{len(shared)} ids belong to more than one file, e.g. {_some(map(_plain, shared[0]))}")


def _nothing_found(folders: Sequence[str], messages: Sequence[str]) -> str:
    """Say that there is no audio, and what is there instead."""
    text = f"no audio found under {_some(_plain(folder) for folder in folders)}"
    for folder in map(Path, dict.fromkeys(folders)):
        if labels_of.find_deam(folder):
            songs = len(read_deam(folder).ratings)
            return f"{text}: DEAM's annotations of {songs} songs are there, their audio (MEMD_audio/*.mp3) is not"
        for name, corpus in (
            ("data.csv", "Emotify"),
            ("mean_ratings_set1.csv", "Soundtracks"),
            ("MUSIFEAST17_all.csv", "MUSIFEAST-17"),
        ):
            if (folder / name).is_file() and (corpus != "Emotify" or labels_of.is_emotify_csv(folder / name)):
                return f"{text}: {corpus}'s {name} is there, its audio is not"
        if any(folder.glob("muse_v3*.csv")):
            return f"{text}: MuSe's labels are there, files named by Spotify id are not"
    return "; ".join((text, *messages))


def _plain(text: str) -> str:
    """Text of one printable line."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in path_text(text))


def _places(paths: Sequence[str], root: str) -> str:
    return _some(_plain(os.path.relpath(path, root)) for path in sorted(paths))


def _some(items: Iterable[str], most: int = 5) -> str:
    shown = list(items)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
