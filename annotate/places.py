"""Audio that does not lie on this machine: corpora on anything that fsspec opens, and mounts that are lost.

    annotate run s3://bucket/music/ --out T.parquet
    annotate run http://host/music/ --out T.parquet

Conventions
-----------
- A corpus is recognised as a local one is: its tree is rebuilt in a temporary folder, label files (CSV) with their content, audio
  files as holes of the right size, and that is scanned. Identities, ids and ratings are those of a local copy.
- A worker fetches one file at a time into a temporary file, and removes it when it has been decoded.
- A changed file is told by its size and by what the server says of it (time, ETag): `Track.mtime_ns` is a digest of that.
- ``memory://`` is seen by one process only, so its files are copied into a temporary folder for the length of the process.
- A file that is gone, or that the server refuses, is a failed row; a server or mount that is gone ends the run, so that a
  network's bad night does not become ten thousand failed rows.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from annotate.tracks import AUDIO_EXTENSIONS, Track, path_of

if TYPE_CHECKING:
    from annotate.corpora import Corpus

URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
QUOTED: Final = ("http", "https")  # protocols whose names are percent-encoded
IN_THIS_PROCESS: Final = ("memory",)  # protocols that no other process sees
LABEL_EXTENSIONS: Final = frozenset((".csv",))
STAMPS: Final = ("ETag", "etag", "Last-Modified", "LastModified", "updated", "mtime", "created", "last_modified")
PAUSES_S: Final = (0.5, 2.0)  # before the second and the third try
LOOKUPS: Final = 16  # at a time


class PlaceError(ValueError):
    """A place that cannot be opened; the message is one line."""


class PlaceLost(Exception):
    """A server or mount that is gone while its files are being annotated; the message is one line."""


class FetchError(Exception):
    """One file that cannot be fetched, from a place that answers."""


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a URL, ``protocol://…``."""
    return URL.match(os.fspath(path)) is not None


def scan_anywhere(
    paths: Sequence[str],
    *,
    corpus: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    correct_deam: bool = True,
) -> Corpus:
    """Find the audio under files, folders or URLs; as `annotate.corpora.scan`.

    Raises
    ------
    PlaceError
        Local paths and URLs, or several protocols, in one scan; a protocol that is unknown or whose package is missing; a server
        that does not answer.
    """
    from annotate.corpora import scan

    if not any(is_url(path) for path in paths):
        return scan(paths, corpus=corpus, include=include, exclude=exclude, correct_deam=correct_deam)
    protocols = {path.partition("://")[0] if is_url(path) else "local" for path in paths}
    if len(protocols) > 1:
        raise PlaceError(f"audio in several kinds of places ({', '.join(sorted(protocols))}): give each a run of its own")
    protocol = protocols.pop()
    filesystem = open_filesystem(paths[0])
    keep = protocol in IN_THIS_PROCESS
    folder = Path(tempfile.mkdtemp(prefix="annotate-scan-"))
    if keep:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        root = folder / "root"
        root.mkdir()
        urls, starts = _rebuild(filesystem, protocol, paths, root, with_audio=keep)
        found = scan(starts, corpus=corpus, include=include, exclude=exclude, correct_deam=correct_deam)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    tracks = []
    for track in found.tracks:
        url, stamp = urls[os.path.relpath(track.path, root)]
        here = {} if keep else {"path": Path(path_of(track.track)), "url": url}
        tracks.append(replace(track, mtime_ns=stamp, **here))  # type: ignore[arg-type]
    return replace(found, tracks=tuple(tracks), root=found.root if keep else Path(paths[0]))


def open_filesystem(url: str) -> Any:
    """Open the fsspec file system of a URL.

    Raises
    ------
    PlaceError
        An unknown protocol, or one whose package is missing.
    """
    import fsspec

    protocol = url.partition("://")[0]
    try:
        filesystem, _ = fsspec.core.url_to_fs(url)
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        raise PlaceError(
            f"{url}: {protocol}:// needs a package that is not installed ({reason}): install the extra 'remote'"
        ) from None
    except ValueError as error:
        raise PlaceError(f"{url}: {' '.join(str(error).split())[:200]}") from None
    return filesystem


def _rebuild(
    filesystem: Any, protocol: str, paths: Sequence[str], root: Path, *, with_audio: bool
) -> tuple[dict[str, tuple[str, int]], list[Path]]:
    """Rebuild remote trees below `root`: path below it -> URL and stamp; and where each of `paths` lies there."""
    listed = [_listing(filesystem, path) for path in paths]
    above = os.path.commonpath([PurePosixPath(top if is_folder else top.rpartition("/")[0]) for top, is_folder, _ in listed])
    urls: dict[str, tuple[str, int]] = {}
    names = {name for _, _, files in listed for name in files}

    def look_up(name: str) -> Mapping[str, Any]:
        return dict(filesystem.info(name)) if PurePosixPath(name).suffix.lower() in AUDIO_EXTENSIONS else {}

    with ThreadPoolExecutor(LOOKUPS) as pool:
        infos = dict(zip(sorted(names), pool.map(look_up, sorted(names)), strict=True))
    for name, info in infos.items():
        below = _below(name, above, protocol)
        place = root / below
        place.parent.mkdir(parents=True, exist_ok=True)
        suffix = place.suffix.lower()
        if suffix in LABEL_EXTENSIONS or (with_audio and suffix in AUDIO_EXTENSIONS):
            filesystem.get_file(name, str(place))
        else:
            place.touch()
            os.truncate(place, int(info.get("size") or 0))
        urls[below] = (filesystem.unstrip_protocol(name), _stamp(info))
    starts = [root / _below(top, above, protocol) if top.rstrip("/") != above else root for top, _, _ in listed]
    return urls, starts


def _listing(filesystem: Any, url: str) -> tuple[str, bool, list[str]]:
    """The top of a remote tree as fsspec names it, whether it is a folder, and the files below it."""
    top = str(filesystem._strip_protocol(url)).rstrip("/")
    try:
        if PurePosixPath(top).suffix.lower() in AUDIO_EXTENSIONS and filesystem.isfile(top):
            return top, False, [top]
        walk = {"on_error": "raise"} if url.partition("://")[0] in QUOTED else {}  # else a folder that fails is left out silently
        files = [str(name) for name in filesystem.find(top, **walk)]
        if not files:
            filesystem.ls(top, refresh=True)  # says why
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file or folder: {url}") from None
    except Exception as error:  # each file system raises its own
        raise PlaceError(f"{url} cannot be read: {_reason(error)}") from None
    return top, True, [name for name in files if name.startswith(f"{top}/") and not name.endswith("/")]


def _below(name: str, above: str, protocol: str) -> str:
    relative = os.path.relpath(str(PurePosixPath(name)), above)
    return unquote(relative.partition("?")[0]) if protocol in QUOTED else relative


def _stamp(info: Mapping[str, Any]) -> int:
    said = [f"{key} {info[key]}" for key in STAMPS if info.get(key) is not None]
    return int.from_bytes(hashlib.sha256("\n".join(said).encode()).digest()[:7], "big") if said else 0


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextlib.contextmanager
def fetched(track: Track) -> Iterator[Track]:
    """Give a track with a local copy of its file, which is removed at the end; a local track as it is.

    Raises
    ------
    FetchError
        The file is gone or refused.
    PlaceLost
        The server does not answer.
    """
    if track.url is None:
        yield track
        return
    with tempfile.TemporaryDirectory(prefix="annotate-fetch-") as folder:
        path = Path(folder, "audio" + PurePosixPath(track.track).suffix.lower())
        filesystem = open_filesystem(track.url)
        for pause_s in (*PAUSES_S, None):
            try:
                filesystem.get_file(filesystem._strip_protocol(track.url), str(path))
                break
            except FileNotFoundError:
                raise FetchError("does not exist") from None
            except Exception as error:
                if isinstance(error, OSError) and error.filename is not None and str(error.filename).startswith(folder):
                    raise  # this machine's disk
                if pause_s is not None:
                    time.sleep(pause_s)
                    continue
                if not _answers(filesystem, track.url):
                    raise PlaceLost(
                        f"{track.url} is out of reach ({_reason(error)}): run again to go on when it is back"
                    ) from None
                raise FetchError(f"cannot be fetched: {_reason(error)}") from None
        yield replace(track, path=path, url=None)


def _answers(filesystem: Any, url: str) -> bool:
    try:
        filesystem.ls(filesystem._strip_protocol(url.rpartition("/")[0]) + "/", refresh=True)
    except FileNotFoundError:
        return True
    except Exception:
        return False
    return True


def check_mount(track: Track) -> None:
    """Refuse to go on where not one file but the whole root of a corpus is gone.

    Raises
    ------
    PlaceLost
        The root does not exist, cannot be listed, or is empty, as a mount point is without its mount.
    """
    depth = path_of(track.track).count("/")
    if os.path.exists(track.path) or depth >= len(track.path.parents):
        return
    root = track.path.parents[depth]
    try:
        if any(root.iterdir()):
            return
    except OSError:
        pass
    raise PlaceLost(f"{root} is gone or empty: was its mount lost? what was done is kept; run again when it is back")
