"""One audio file of a corpus: its identity, where it lies, and what its own tags say.

A worker needs no more than this of a corpus: nothing here imports pandas. Conventions: see `annotate.corpora`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import mutagen

AUDIO_EXTENSIONS: Final = frozenset((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc"))


@dataclass(frozen=True)
class Tags:
    """What a file's own tags say; None where they say nothing."""

    artist: str | None = None
    album: str | None = None
    title: str | None = None


@dataclass(frozen=True)
class Track:
    """One audio file of a corpus."""

    path: Path  # as opened
    track: str  # identity, see the module's conventions
    corpus: str  # one of CORPORA
    track_key: str  # the corpus's own id; folder: == track
    track_id: int | None
    group: str | None  # genre folder, genre
    size: int  # bytes
    mtime_ns: int
    artist: str | None = None  # by the corpus's metadata; None: take the tags
    album: str | None = None
    title: str | None = None
    url: str | None = None  # where the file is fetched from; None: `path` is a file of this machine


def read_tags(path: str | os.PathLike[str]) -> Tags:
    """Artist, album and title by a file's own tags; whatever is broken is None, nothing is raised."""
    try:
        tagged = mutagen.File(os.fspath(path), easy=True)
        tags = tagged.tags if tagged is not None else None
    except Exception:  # mutagen raises what it likes on broken files
        return Tags()
    if tags is None:
        return Tags()
    return Tags(
        artist=_tag(tags, "artist", "TPE1") or _tag(tags, "albumartist", "TPE2"),
        album=_tag(tags, "album", "TALB"),
        title=_tag(tags, "title", "TIT2"),
    )


def path_text(path: str) -> str:
    r"""Text of a path that any file can hold: a backslash doubled, bytes that are not UTF-8 as ``\xNN``."""
    if path.isascii() and "\\" not in path:
        return path
    return os.fsencode(path).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def path_of(track: str) -> str:
    """Path below the root of a track's identity: the inverse of `path_text`."""
    content = re.sub(rb"\\(\\|x([0-9a-f]{2}))", lambda m: bytes.fromhex(m[2].decode()) if m[2] else b"\\", track.encode("utf-8"))
    return os.fsdecode(content)


def _tag(tags: object, easy: str, frame: str) -> str | None:
    """First text of a tag; `frame` is its ID3 name, for WAV and AIFF, whose tags mutagen has no easy form of."""
    for key in (easy, frame):
        try:
            value = tags[key]  # type: ignore[index]
            values = value.text if hasattr(value, "text") else value
            text = "; ".join(str(item) for item in values) if not isinstance(values, str) else values
        except Exception:
            continue
        text = " ".join(text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8").split())
        if text:
            return text
    return None
