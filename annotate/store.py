"""What is on disk between runs: the run folder beside a table, atomic replacement of files, and the feature cache.

What a run keeps, for the table ``T.parquet``::

    T.parquet.run/
      run.json               format version and fingerprint: everything that changes results
      lock  lock-2-of-8      held (flock) by the run, or by one shard of it, while it works
      lock.holder            who holds it, for the message of whoever comes second
      lock.gate              held for a moment while a run opens the folder, so that openings do not overlap
      parts/3/f/3fa4….json   one finished track; the name is the SHA-256 of the track's identity

What all runs share::

    ~/.cache/annotate/
      3f/3fa4….npz           arrays of one `cache_key`, with their digest in the comment of the archive

Conventions
-----------
- Presence of a part means done. A part is written under a temporary name in its own folder, flushed to the disk and
  renamed, so that a kill at any moment leaves the old file or the new one.
- Floats survive exactly. A float that is not finite (NaN, ±inf) is stored as null, which is what a table has where a
  value does not exist; NumPy scalars and arrays come back as Python numbers and lists, tuples as lists.
- Temporary names begin with ``.annotate-tmp-`` and carry host and process id; those of processes that are gone are
  removed when a run opens the folder.
- The cache may lose any entry at any time, by this process or another, and never fails a run.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import secrets
import shutil
import socket
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Self

import filelock
import numpy as np
import psutil
from numpy.typing import NDArray

FORMAT: Final = 1  # of run.json and of the parts
OPENING_TIMEOUT_S: Final = 60.0
TEMPORARY_PREFIX: Final = ".annotate-tmp-"
TEMPORARY_MAX_AGE_S: Final = 24 * 3600.0  # beyond it a temporary file is abandoned, whoever wrote it
CLOCK_TOLERANCE_S: Final = 60.0  # between this machine and a file server
AT_FDCWD: Final = -100  # of linux/fcntl.h
RENAME_EXCHANGE: Final = 2  # of linux/fs.h
EVICTION_TARGET: Final = 0.9  # of max_bytes, after an eviction
EVICTION_INTERVAL: Final = 1 / 32  # of max_bytes: written between two scans of the cache, on average

TEMPORARY_NAME: Final = re.compile(re.escape(TEMPORARY_PREFIX) + r"(?P<host>.+)-(?P<pid>\d+)-[0-9a-f]{16}(\..*)?")
LOCK_NAME: Final = re.compile(r"lock(-\d+-of-\d+)?")
SHARD: Final = re.compile(r"(?P<index>[1-9]\d*)/(?P<count>[1-9]\d*)")
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
PART_NAME: Final = re.compile(r"[0-9a-f]{64}\.json")
ENTRY_NAME: Final = re.compile(r"[0-9a-f]{64}\.npz")

# errno -> (cause, what next)
CAUSES: Final = {
    errno.ENOSPC: ("disk full", "free some space and run again to go on"),
    errno.EDQUOT: ("disk quota used up", "free some space and run again to go on"),
    errno.EROFS: ("read-only file system", "write to another place, or mount it writable and run again"),
    errno.EACCES: ("no permission", "write to another place, or change the permissions and run again"),
    errno.EPERM: ("not permitted", "write to another place, or change the permissions and run again"),
}

Arrays = dict[str, NDArray[Any]]
_MISSING: Final = object()
_log = logging.getLogger(__name__)


class RunRefused(Exception):
    """The run folder was made with another fingerprint; the message names each difference."""


class RunLocked(Exception):
    """Another process works in the run folder; the message says which and since when."""


class StoreError(Exception):
    """A file that cannot be read or written; one line with the path, the cause and what to do next."""


@dataclass(frozen=True)
class FileState:
    """What an audio file was when it was annotated."""

    size: int  # bytes
    mtime_ns: int
    sha256: str | None  # hex, of the file's bytes; None where they could not be read


@dataclass(frozen=True)
class Part:
    """One finished track: its row of the table, and its rows per window where they were asked for."""

    track: str  # identity: path below the scanned root
    state: FileState
    status: Literal["ok", "failed"]
    row: dict[str, Any]
    windows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.status not in ("ok", "failed"):
            raise ValueError(f"status={self.status!r} of {self.track!r} must be 'ok' or 'failed'")


def replace_atomically(path: Path, write: Callable[[Path], None], *, kept: Path | None = None) -> None:
    """Have `write` make a file under a temporary name, and put it in the place of `path` when it is on the disk.

    The temporary file lies in the folder of `path` and has its suffix. Where `path` is a link, what it points to is
    replaced. When anything fails, the temporary file is removed and the old file is untouched.

    Parameters
    ----------
    path
        The file to write or replace; its folder exists.
    write
        Called once with the temporary path.
    kept
        Where finished work lies, for the error message.

    Raises
    ------
    StoreError
        The disk is full, or may not be written.
    """
    path = Path(os.path.realpath(path))
    temporary = _temporary_beside(path)
    with _clear_errors(path, kept):
        try:
            write(temporary)
            _fsync_file(temporary)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _fsync_folder(path.parent)


def replace_folder_atomically(path: Path, write: Callable[[Path], None], *, kept: Path | None = None) -> None:
    """Have `write` fill a new folder, and put it in the place of the folder `path` when its files are on the disk.

    As `replace_atomically`. Where the file system can exchange two folders, a reader finds the old one or the new one at any
    instant; elsewhere there is none for a moment.
    """
    path = Path(os.path.realpath(path))
    temporary = _temporary_beside(path)
    with _clear_errors(path, kept):
        try:
            temporary.mkdir()
            write(temporary)
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    _fsync_file(file)
            _fsync_folder(temporary)
            if not path.exists():
                os.rename(temporary, path)
            elif not _exchange(temporary, path):
                old = _temporary_beside(path)
                os.rename(path, old)
                os.rename(temporary, path)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # after an exchange this is the old folder
        _fsync_folder(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def write_part(parts_folder: Path, part: Part) -> None:
    """Store a finished track, in place of an older part of the same track; for worker processes, which hold no lock.

    Parameters
    ----------
    parts_folder
        `RunFolder.parts_folder`.
    part
        Rows of None, bool, int, float, str, NumPy scalars, and lists or dicts of these.

    Raises
    ------
    StoreError
        The disk is full, or may not be written.
    TypeError
        A value of another type; the message names its column.
    """
    content = {
        "format": FORMAT,
        "track": part.track,
        "state": asdict(part.state),
        "status": part.status,
        "row": part.row,
        "windows": part.windows,
    }
    # ASCII only: a lone surrogate, as in a tag or path that is not UTF-8, survives.
    text = json.dumps(_storable(content, part.track), allow_nan=False) + "\n"
    path = parts_folder / _part_path(part.track)
    if not path.parent.is_dir():
        with _clear_errors(path.parent, parts_folder.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            _fsync_folder(path.parent.parent)
            _fsync_folder(parts_folder)
    replace_atomically(path, lambda temporary: _write_text(temporary, text), kept=parts_folder.parent)


@dataclass(frozen=True)
class RunFolder:
    """The folder ``<table>.run/``. Made by `open` to work in it; made directly, it only reads (no lock)."""

    folder: Path

    @property
    def parts_folder(self) -> Path:
        """Where `write_part` writes."""
        return self.folder / "parts"

    @classmethod
    @contextlib.contextmanager
    def open(cls, table: Path, fingerprint: Mapping[str, Any], *, restart: bool, shard: str | None = None) -> Iterator[Self]:
        """Lock the run folder of `table`, making it where there is none, and check that it may be resumed.

        Shards of one run share the folder, each with a lock of its own; a whole run and a shard exclude each other.
        With `restart` what was done is discarded, which needs every lock of the folder to be free.

        Parameters
        ----------
        table
            The table that the run makes; its folder exists.
        fingerprint
            Everything that changes results: a JSON object, nested as needed.
        restart
            Discard the parts and the fingerprint of before.
        shard
            ``"2/8"`` for the second of eight, None for the whole run.

        Raises
        ------
        RunLocked
            Another process works in the folder.
        RunRefused
            It was made with another fingerprint, or cannot say with which.
        StoreError
            The disk is full, or may not be written.
        """
        run = cls(table.with_name(table.name + ".run"))
        wanted = json.loads(_canonical_json(fingerprint))
        name = _lock_name(shard)
        with _clear_errors(run.folder, None):
            if not table.parent.is_dir():
                raise StoreError(f"no such folder: {table.parent}, where {table.name} is to be written; make it first")
            if run.folder.exists() and not run.folder.is_dir():
                raise StoreError(f"not a folder: {run.folder}, where the run is to be kept; move it away")
            run.folder.mkdir(exist_ok=True)
            _fsync_folder(table.parent)
        with _clear_errors(run.folder, run.folder):
            lock = filelock.FileLock(run.folder / name, thread_local=False)
            try:
                with filelock.FileLock(run.folder / "lock.gate", timeout=OPENING_TIMEOUT_S, thread_local=False):
                    run._take_lock(lock, name, every_lock=restart or shard is None)
                    run._agree(wanted, restart=restart)
                run.parts_folder.mkdir(exist_ok=True)
                _fsync_folder(run.folder)
                run._remove_leftovers(Path(os.path.realpath(table)).parent)
            except filelock.Timeout as error:
                raise RunLocked(
                    f"{run.folder}: another process has been opening it for more than {OPENING_TIMEOUT_S:g} s"
                ) from error
            except BaseException:
                run._let_go(lock, name)
                raise
        try:
            yield run
        finally:
            run._let_go(lock, name)

    def fingerprint(self) -> dict[str, Any]:
        """Return the fingerprint that the parts were made with.

        Raises
        ------
        RunRefused
            ``run.json`` is missing, broken, or of another format version.
        """
        path = self.folder / "run.json"
        try:
            content = json.loads(path.read_bytes())
            version, fingerprint = content["format"], content["fingerprint"]
            if not isinstance(fingerprint, dict):
                raise TypeError("the fingerprint is no object")
        except FileNotFoundError as error:
            raise RunRefused(
                f"{path} is missing: nothing says what the parts beside it were made with; --restart discards them"
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunRefused(
                f"{path} is broken: nothing says what the parts beside it were made with; --restart discards them"
            ) from error
        if version != FORMAT:
            raise RunRefused(f"{path}: format: had {version}, now {FORMAT}; --restart discards what was done")
        return fingerprint

    def write_part(self, part: Part) -> None:
        """Store a finished track (`write_part` with this folder)."""
        write_part(self.parts_folder, part)

    def read_part(self, track: str) -> Part | None:
        """Return the part of a track, or None where it is not done.

        A broken part counts as not done: it is removed, and the log says so.
        """
        return self._read(self.parts_folder / _part_path(track))

    def parts_of(self, tracks: Iterable[str]) -> Iterator[Part | None]:
        """Yield the part of each track, or None (as `read_part`); for many tracks of which few may be done."""
        there = {path.name for path in self._part_files()}
        for track in tracks:
            path = _part_path(track) if there else None
            yield self._read(self.parts_folder / path) if path is not None and path.name in there else None

    def parts(self) -> Iterator[Part]:
        """Yield every finished track, in the order of the part names (not of the scan); broken parts as `read_part`."""
        for path in self._part_files():
            part = self._read(path)
            if part is not None:
                yield part

    def forget(self, track: str) -> None:
        """Make a track count as not done; nothing happens where it is not."""
        path = self.parts_folder / _part_path(track)
        with _clear_errors(path, self.folder):
            path.unlink(missing_ok=True)

    def _read(self, path: Path) -> Part | None:
        with _clear_errors(path, self.folder):
            try:
                part = _parse_part(path.read_bytes())
                if _part_path(part.track).name != path.name:
                    raise ValueError(f"the part of another track, {part.track!r}")
            except FileNotFoundError:
                return None
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                _log.warning("%s is broken (%s): removed, its track will be annotated again", path, error)
                path.unlink(missing_ok=True)
                return None
        return part

    def _part_files(self) -> Iterator[Path]:
        for folder in sorted(self.parts_folder.glob("[0-9a-f]/[0-9a-f]")):
            yield from sorted(path for path in folder.iterdir() if PART_NAME.fullmatch(path.name))

    def _take_lock(self, lock: filelock.BaseFileLock, name: str, *, every_lock: bool) -> None:
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise RunLocked(self._held_by(name)) from error
        names = {path.name for path in self.folder.iterdir() if LOCK_NAME.fullmatch(path.name)}
        for rival in sorted((names if every_lock else names & {"lock"}) - {name}):
            try:
                with filelock.FileLock(self.folder / rival, blocking=False, thread_local=False):
                    pass
            except filelock.Timeout as error:
                raise RunLocked(self._held_by(rival)) from error
        since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        _write_text(self.folder / f"{name}.holder", f"pid {os.getpid()} on {socket.gethostname()} since {since}\n")

    def _held_by(self, name: str) -> str:
        try:
            holder = (self.folder / f"{name}.holder").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            holder = ""
        what = "shard " + name.removeprefix("lock-").replace("-of-", "/") + " of the run" if name != "lock" else "a run"
        return f"{self.folder} is in use by {what}: {holder or 'another process'}; wait for it to end, or end it"

    def _let_go(self, lock: filelock.BaseFileLock, name: str) -> None:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                (self.folder / f"{name}.holder").unlink()
            lock.release()

    def _agree(self, wanted: dict[str, Any], *, restart: bool) -> None:
        run_json = self.folder / "run.json"
        fresh = not run_json.exists() and next(self._part_files(), None) is None
        if restart and self.parts_folder.exists():
            os.rename(self.parts_folder, _temporary_beside(self.parts_folder))
        if restart or fresh:
            text = json.dumps({"format": FORMAT, "fingerprint": wanted}, indent=1, sort_keys=True) + "\n"
            replace_atomically(run_json, lambda temporary: _write_text(temporary, text), kept=self.folder)
            return
        differences = list(_differences(self.fingerprint(), wanted))
        if differences:
            raise RunRefused(
                f"{self.folder} was made with other settings ({'; '.join(differences)}): "
                "use those of before, or another --out; --restart discards what was done"
            )

    def _remove_leftovers(self, table_folder: Path) -> None:
        for folder in (self.folder, table_folder, *self.parts_folder.glob("[0-9a-f]/[0-9a-f]")):
            for path in list(folder.glob(TEMPORARY_PREFIX + "*")):
                if folder == self.folder and path.is_dir():  # parts that --restart discarded
                    shutil.rmtree(path, ignore_errors=True)
                elif _is_abandoned(path):
                    if path.is_dir():  # a dataset that was being written
                        shutil.rmtree(path, ignore_errors=True)
                        continue
                    with contextlib.suppress(OSError):
                        path.unlink()


class FeatureCache:
    """Small arrays that are expensive to compute, shared between runs and processes; safe to delete at any time.

    Entries are thrown away by oldest use. Which `put` looks after the size is decided by its key, so that the cache is
    scanned once for each 1/32 of `max_bytes` written, on average, however many processes write it and however short
    they live; the bound holds to within a few such intervals.

    Parameters
    ----------
    folder
        Made when it is needed, and made again when it was deleted.
    max_bytes
        Bound on the sum of the entries' sizes.
    """

    def __init__(self, folder: Path, *, max_bytes: int = 2 * 2**30) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes={max_bytes} must be > 0")
        self.folder = folder
        self.max_bytes = max_bytes

    def get(self, key: str) -> Arrays | None:
        """Return the arrays stored under a `cache_key`, or None; an entry that does not hold its digest is removed."""
        path = self._path(key)
        try:
            arrays = _unpack(key, path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # damaged bytes raise nearly anything in zipfile and in the .npy parser
            _log.warning("%s is broken (%s): removed from the cache", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return arrays

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Store arrays under a `cache_key`; where that fails nothing is stored, and the log says so once.

        Raises
        ------
        ValueError
            An array of Python objects, or a key that `cache_key` did not make.
        """
        path = self._path(key)
        content = _pack(key, arrays)
        if len(content) > self.max_bytes:
            return
        temporary = _temporary_beside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(content)
            os.replace(temporary, path)  # no fsync: an entry that a power cut spoils does not hold its digest
        except OSError as error:
            _say_once(self.folder, error.strerror or str(error))
            with contextlib.suppress(OSError):
                temporary.unlink()
            return
        if int(key[:12], 16) / 16**12 < len(content) / (EVICTION_INTERVAL * self.max_bytes):
            self.evict()

    def evict(self) -> None:
        """Bring the cache down to 90 % of `max_bytes` where it is over, and remove what dead processes left.

        `put` calls it now and then; call it at the start of a run where `max_bytes` may have become smaller.
        """
        entries = sorted(self._entries())
        total = sum(size for _, _, size in entries)
        if total <= self.max_bytes:
            return
        for _, path, size in entries:
            if total <= EVICTION_TARGET * self.max_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)  # missing: another process evicts the same entries
                total -= size

    def _entries(self) -> Iterator[tuple[int, Path, int]]:
        # Each file may go between listing and stat; a folder too. Files of other names are not ours to count or delete.
        for folder in _listing(self.folder):
            if not re.fullmatch("[0-9a-f]{2}", folder.name):
                continue
            for path in _listing(folder):
                if ENTRY_NAME.fullmatch(path.name):
                    with contextlib.suppress(OSError):
                        status = path.stat()
                        yield status.st_mtime_ns, path, status.st_size
                elif _is_abandoned(path):
                    with contextlib.suppress(OSError):
                        path.unlink()

    def _path(self, key: str) -> Path:
        if not DIGEST.fullmatch(key):
            raise ValueError(f"key={key!r} must be a SHA-256 in hex, as cache_key makes it")
        return self.folder / key[:2] / f"{key}.npz"


def cache_key(file_sha256: str, spec: Mapping[str, Any], decoder: str) -> str:
    """Return the key of what an extractor makes of a file: SHA-256 over canonical JSON.

    Parameters
    ----------
    file_sha256
        Hex digest of the audio file's bytes.
    spec
        The extractor's name, version and every parameter; JSON values, in any order.
    decoder
        Name and version of what decoded and resampled the file.
    """
    content = {"file": file_sha256, "spec": dict(spec), "decoder": decoder}
    return hashlib.sha256(_canonical_json(content).encode()).hexdigest()


def default_cache_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/annotate``, or ``~/.cache/annotate`` where that is unset or not absolute."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "annotate"


# --- parts and fingerprints ---


def _part_path(track: str) -> Path:
    digest = hashlib.sha256(track.encode("utf-8", "surrogatepass")).hexdigest()
    return Path(digest[0], digest[1], f"{digest}.json")


def _parse_part(content: bytes) -> Part:
    fields = json.loads(content)
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']!r}, not {FORMAT}")
    part = Part(fields["track"], FileState(**fields["state"]), fields["status"], fields["row"], fields["windows"])
    if not (
        isinstance(part.track, str)
        and isinstance(part.state.size, int)
        and isinstance(part.state.mtime_ns, int)
        and isinstance(part.state.sha256, str | None)
        and isinstance(part.row, dict)
        and isinstance(part.windows, list)
        and all(isinstance(window, dict) for window in part.windows)
    ):
        raise TypeError("a field of the wrong type")
    return part


def _storable(value: Any, where: str) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return [_storable(item, where) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: the key {key!r} must be a string")
        return {key: _storable(item, f"{where}: {key}") for key, item in value.items()}
    raise TypeError(f"{where}: {value!r} of type {type(value).__name__} cannot be stored")


def _canonical_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_json_of_numpy)


def _json_of_numpy(value: object) -> Any:
    if isinstance(value, np.generic | np.ndarray) and not isinstance(value, np.longdouble):
        return value.tolist()
    raise TypeError(f"{value!r} of type {type(value).__name__} has no JSON form")


def _differences(had: Any, now: Any, key: str = "") -> Iterator[str]:
    """Compare leaf by leaf: ``bundle.digest: had 1a2b3c4d…, now 5e6f7a8b…``."""
    if isinstance(had, dict) and isinstance(now, dict):
        for name in sorted(had.keys() | now.keys()):
            yield from _differences(had.get(name, _MISSING), now.get(name, _MISSING), f"{key}.{name}" if key else name)
    elif had is _MISSING and isinstance(now, dict) and now:
        yield from _differences({}, now, key)
    elif now is _MISSING and isinstance(had, dict) and had:
        yield from _differences(had, {}, key)
    elif had != now:
        # Without quotation marks only where both are text, so that 5 and "5" differ.
        plain = isinstance(had, str) and isinstance(now, str) and had and now
        had_text, now_text = (had, now) if plain else (_leaf_text(had), _leaf_text(now))
        yield f"{key}: had {_shortened(had_text, now_text)}, now {_shortened(now_text, had_text)}"


def _leaf_text(value: Any) -> str:
    return "nothing" if value is _MISSING else json.dumps(value, ensure_ascii=False)


def _shortened(text: str, other: str) -> str:
    length = 8 if DIGEST.fullmatch(text) else 40
    start = 0
    if text[:length] == other[:length]:  # show where they part, with what leads to it
        start = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False)))
        start = max(start - length // 2, 0)
    end = start + length
    return f"{'…' if start else ''}{text[start:end]}{'…' if end < len(text) else ''}".replace("\n", " ")


def _lock_name(shard: str | None) -> str:
    if shard is None:
        return "lock"
    match = SHARD.fullmatch(shard)
    if match is None or int(match["index"]) > int(match["count"]):
        raise ValueError(f"shard={shard!r} must be I/N with 1 <= I <= N")
    return f"lock-{match['index']}-of-{match['count']}"


# --- files ---


@contextlib.contextmanager
def _clear_errors(path: Path, kept: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cause, next_step = CAUSES.get(error.errno or 0, (None, None))
        if cause is None:
            raise
        state = f"what was done is kept in {kept}" if kept else "what was there before is untouched"
        raise StoreError(f"{cause}: {path}; {state}; {next_step}") from error


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_folder(folder: Path) -> None:
    try:
        _fsync_file(folder)
    except OSError as error:
        # Some file systems cannot flush a folder, and one that may not be listed cannot be opened.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):
            raise


def _listing(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def host() -> str:
    """Name of this machine, fit for a file name."""
    return re.sub(r"[^A-Za-z0-9.]", "_", socket.gethostname())[:64] or "_"


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{host()}-{os.getpid()}-{secrets.token_hex(8)}{path.suffix}")


def _is_abandoned(path: Path) -> bool:
    match = TEMPORARY_NAME.fullmatch(path.name)
    if match is None:
        return False
    try:
        written = path.stat().st_mtime
    except OSError:
        return False
    if time.time() - written > TEMPORARY_MAX_AGE_S:
        return True
    if match["host"] != host():
        return False
    try:
        process = psutil.Process(int(match["pid"]))
        # A process that began after the file was written only has the number of the one that wrote it.
        return process.status() == psutil.STATUS_ZOMBIE or process.create_time() > written + CLOCK_TOLERANCE_S
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OverflowError):
        return False


# --- cache entries ---


def _pack(key: str, arrays: Mapping[str, NDArray[Any]]) -> bytes:
    members = {}
    for name, array in arrays.items():
        stream = io.BytesIO()
        np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
        members[f"{name}.npy"] = stream.getvalue()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(name), member)
        archive.comment = _members_digest(key, members)
    return packed.getvalue()


def _unpack(key: str, content: bytes) -> Arrays:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
        if archive.comment != _members_digest(key, members):
            raise ValueError("the digest of its arrays is another")
    return {
        name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(member), allow_pickle=False)
        for name, member in members.items()
    }


def _members_digest(key: str, members: Mapping[str, bytes]) -> bytes:
    digest = hashlib.sha256(key.encode())
    for name, member in sorted(members.items()):
        digest.update(f"{len(name)} {name} {len(member)} ".encode())
        digest.update(member)
    return digest.hexdigest().encode()


@functools.cache
def _say_once(folder: Path, cause: str) -> None:
    _log.warning("%s: features are not cached (%s)", folder, cause)
