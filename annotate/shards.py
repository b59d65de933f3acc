"""One corpus on several machines: which tracks a shard has, the table that each shard leaves, and the table of all of them.

    annotate run music/ --out T.parquet --shard 2/8      on each of eight machines, with one shared folder
    annotate merge T.parquet.run --out T.parquet         anywhere, once

A shard works in the shared run folder under a lock of its own, and leaves a table of its own tracks when it ends::

    T.parquet.run/
      lock-2-of-8                 that shard 2/8 was begun; held while it works
      shards/2-of-8.parquet       its table: rows in scan order, then those whose files are gone (--keep-missing)
      shards/2-of-8.windows.parquet

Conventions
-----------
- A track belongs to the shard that a hash of its identity says, whatever else the corpus holds.
- Every shard scans the whole corpus, and its table says what the whole was (`ShardNote`); shards that saw different
  corpora, or worked with different models, are never put together.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

import filelock

from annotate.corpora import Corpus, natural_order
from annotate.store import RunRefused
from annotate.targets import Target
from outputs.table import TableError, read_columns, read_provenance, read_rows

log = logging.getLogger("annotate")

SHARD: Final = re.compile(r"([0-9]+)/([0-9]+)")
TABLE_NAME: Final = re.compile(r"([1-9][0-9]*)-of-([1-9][0-9]*)\.parquet")
OF_ONE_RUN: Final = ("run_id", "time_utc", "command_line", "device")  # provenance that each shard has of its own
MOST_NAMED: Final = 8  # lost shards in one message


class ShardError(ValueError):
    """Shards that cannot become one table; the message is one line."""


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 1) of `count`."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``"2/8"``.

        Raises
        ------
        ValueError
            Anything but two whole numbers with 1 <= I <= N.
        """
        match = SHARD.fullmatch(text.strip())
        shard = cls(int(match[1]), int(match[2])) if match else None
        if shard is None or not 1 <= shard.index <= shard.count:
            raise ValueError(f"--shard {text!r} must be I/N with 1 <= I <= N, as in 2/8")
        return shard

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def holds(self, track: str) -> bool:
        """Whether a track, by its identity, belongs to this shard."""
        digest = hashlib.sha256(track.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1

    def table(self, run_folder: Path) -> Path:
        """Where the shard leaves its table."""
        return run_folder / "shards" / f"{self.index}-of-{self.count}.parquet"

    def windows_table(self, run_folder: Path) -> Path:
        """Where it leaves the table of windows."""
        return run_folder / "shards" / f"{self.index}-of-{self.count}.windows.parquet"


@dataclass(frozen=True)
class ShardNote:
    """What a shard's table says of itself and of the whole; stored in its provenance under ``shard``."""

    index: int
    count: int
    tracks: int  # of this shard, by the scan
    left: int  # of these, not annotated yet (--limit)
    corpus_tracks: int
    corpus_sha256: str  # of the identities of all tracks
    fingerprint: dict[str, Any]


def own_tracks(corpus: Corpus, shard: Shard) -> Corpus:
    """The corpus with the tracks of one shard alone; ids and ratings stay whole."""
    return replace(corpus, tracks=tuple(track for track in corpus.tracks if shard.holds(track.track)))


def note_of(shard: Shard, whole: Corpus, own: Corpus, left: int, fingerprint: Mapping[str, Any]) -> ShardNote:
    """Describe a shard for its table."""
    digest = hashlib.sha256("\n".join(json.dumps(track.track) for track in whole.tracks).encode())
    return ShardNote(
        shard.index,
        shard.count,
        len(own.tracks),
        left,
        len(whole.tracks),
        digest.hexdigest(),
        json.loads(json.dumps(fingerprint)),
    )


@dataclass(frozen=True)
class ShardTable:
    """A shard's table that was found."""

    table: Path
    run_folder: Path
    note: ShardNote
    provenance: dict[str, Any]


def merge(
    runs: Sequence[Path], out: Target, windows: Target | None = None, *, allow_lost: bool = False, command_line: str = ""
) -> int:
    """Write the table of all shards of a run, and with `windows` that of their windows; the number of rows.

    Raises
    ------
    FileNotFoundError
        A run folder, or the folder above the table, that does not exist.
    ShardError, RunRefused, TargetError
        As `gather` and `Target.check`; the table is untouched.
    """
    for target in (out, windows):
        if target is not None:
            target.check()
    chosen = gather(runs, allow_lost=allow_lost)
    provenance = _provenance(chosen, command_line)
    if windows is not None:
        paths = [Shard(one.note.index, one.note.count).windows_table(one.run_folder) for one in chosen]
        lacking = [one for one, path in zip(chosen, paths, strict=True) if not path.exists()]
        if lacking:
            names = ", ".join(f"{one.note.index}/{one.note.count}" for one in lacking[:MOST_NAMED])
            raise ShardError(f"no table of windows from shards {names}: run them again with --windows")
        streams = [(path, None) for path in paths]
        windows.replace(lambda: _in_order(streams, once=False), read_columns(paths[0]), provenance, kept=chosen[0].run_folder)
    n_rows = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal n_rows
        for row in _in_order([(one.table, one.note.tracks) for one in chosen], once=True):
            n_rows += 1
            yield row

    out.replace(rows, read_columns(chosen[0].table), provenance, kept=chosen[0].run_folder)
    log.info("%s: %d rows of %d shards", out.path, n_rows, len(chosen))
    return n_rows


def gather(runs: Sequence[Path], *, allow_lost: bool = False) -> list[ShardTable]:
    """Find the tables of all shards of a run, in the order of the shards.

    Parameters
    ----------
    runs : sequence of Path
        The shared run folder, or, where machines share none, the run folders of all of them; or the tables beside them.
    allow_lost : bool
        Go on without the shards that are lost or unfinished, with a warning.

    Raises
    ------
    FileNotFoundError
        A run folder that does not exist.
    ShardError
        No shards; shards that are lost, unfinished or at work, by name; shards that saw different corpora.
    RunRefused
        Shards that were made with different fingerprints; the message names each difference.
    """
    folders = [_run_folder(run) for run in runs]
    held = [one for folder in folders for one in _tables(folder)]
    begun = {name for folder in folders for name in _begun(folder)}
    if not held and not begun:
        raise ShardError(f"{folders[0]} holds no shards: a run without --shard writes its table itself")
    count = _count(held, begun)
    mine: dict[int, ShardTable] = {}
    for one in held:
        other = mine.get(one.note.index)
        if one.note.count != count:
            continue
        if other is not None:
            log.info("shard %d/%d is there twice, in %s and %s: counted once", one.note.index, count, other.table, one.table)
        if other is None or (one.note.left == 0, one.provenance["time_utc"]) > (
            other.note.left == 0,
            other.provenance["time_utc"],
        ):
            mine[one.note.index] = one
    lost = _lost(mine, begun, count)
    if lost:
        named = "; ".join(lost[:MOST_NAMED]) + (f"; and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else "")
        if not (allow_lost and mine):
            raise ShardError(f"{len(lost)} of {count} shards are missing or not finished: {named}; run them again, then merge")
        log.warning("the table lacks tracks: %s", named)
    chosen = [mine[index] for index in sorted(mine)]
    _check_same(chosen)
    return chosen


def _provenance(chosen: Sequence[ShardTable], command_line: str) -> dict[str, Any]:
    first = chosen[0].provenance
    return {key: value for key, value in first.items() if key not in ("shard", "contents_sha256")} | {
        "run_id": uuid.uuid4().hex,
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": command_line,
        "device": ", ".join(sorted({str(one.provenance.get("device")) for one in chosen})),
        "shards": [
            {"shard": f"{one.note.index}/{one.note.count}", "tracks": one.note.tracks}
            | {key: one.provenance.get(key) for key in OF_ONE_RUN}
            for one in chosen
        ],
    }


def _run_folder(run: Path) -> Path:
    for folder in (run.with_name(f"{run.name}.run"), run):
        if folder.is_dir() and (folder.name.endswith(".run") or (folder / "shards").is_dir()):
            return folder
    raise FileNotFoundError(f"no run folder {run}: it lies beside the table of the run, as TABLE.run")


def _tables(folder: Path) -> Iterator[ShardTable]:
    places = folder / "shards"
    for path in sorted(places.iterdir()) if places.is_dir() else ():
        if TABLE_NAME.fullmatch(path.name):
            try:
                provenance = read_provenance(path)
                note = ShardNote(**provenance["shard"])
            except (TableError, KeyError, TypeError) as error:
                raise ShardError(f"{path} is not the table of a shard ({error}); remove it and run that shard again") from None
            yield ShardTable(path, folder, note, provenance)


def _begun(folder: Path) -> Iterator[tuple[int, int, bool]]:
    """Shards that have a lock file: index, count, and whether they are at work now."""
    for path in sorted(folder.glob("lock-*-of-*")):
        match = re.fullmatch(r"lock-([0-9]+)-of-([0-9]+)", path.name)
        if match:
            try:
                with filelock.FileLock(path, blocking=False, thread_local=False):
                    at_work = False
            except filelock.Timeout:
                at_work = True
            yield int(match[1]), int(match[2]), at_work


def _count(held: Sequence[ShardTable], begun: set[tuple[int, int, bool]]) -> int:
    """How many shards the run was cut into; of several cuts, the complete one that ended last."""
    counts = {one.note.count for one in held} or {count for _, count, _ in begun}
    complete = [
        count
        for count in counts
        if {one.note.index for one in held if one.note.count == count and one.note.left == 0} == set(range(1, count + 1))
    ]
    if complete:
        return max(complete, key=lambda count: max(one.provenance["time_utc"] for one in held if one.note.count == count))
    if len(counts) > 1:
        raise ShardError(
            f"shards of different cuts ({', '.join(f'I/{count}' for count in sorted(counts))}), none of them complete: "
            "finish the shards of one cut"
        )
    return counts.pop()


def _lost(held: Mapping[int, ShardTable], begun: set[tuple[int, int, bool]], count: int) -> list[str]:
    lost = []
    at_work = {index: busy for index, of, busy in begun if of == count}
    for index in range(1, count + 1):
        if at_work.get(index):
            lost.append(f"{index}/{count} is at work now")
        elif index not in held:
            lost.append(f"{index}/{count} " + ("was begun and did not end" if index in at_work else "was never run"))
        elif held[index].note.left:
            lost.append(f"{index}/{count} has {held[index].note.left} tracks left")
    return lost


def _check_same(chosen: Sequence[ShardTable]) -> None:
    """Refuse shards of different models, corpora or columns."""
    first = chosen[0]
    columns = read_columns(first.table)
    for other in chosen[1:]:
        pair = f"shards {first.note.index}/{first.note.count} and {other.note.index}/{other.note.count}"
        ours, theirs = dict(_leaves(first.note.fingerprint)), dict(_leaves(other.note.fingerprint))
        differing = [
            f"{key}: {ours.get(key)}, {theirs.get(key)}" for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)
        ]
        if differing:
            raise RunRefused(f"{pair} were made with different settings ({'; '.join(differing)}): run them with the same ones")
        if first.note.corpus_sha256 != other.note.corpus_sha256:
            raise ShardError(
                f"{pair} saw different corpora ({first.note.corpus_tracks} and {other.note.corpus_tracks} tracks): was a mount "
                "lost, or a pattern different? run the one that saw too little again"
            )
        if read_columns(other.table) != columns:
            raise ShardError(f"{pair} have different columns: run them with the same --models")


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _in_order(tables: Sequence[tuple[Path, int | None]], *, once: bool) -> Iterator[dict[str, Any]]:
    """Rows of several tables in scan order; a table's rows beyond its number of tracks are of files that are gone: last."""

    def keyed(path: Path, present: int | None) -> Iterator[tuple[Any, dict[str, Any]]]:
        for number, row in enumerate(read_rows(path)):
            gone = present is not None and number >= present
            yield (gone, row["track"] if gone else natural_order(row["track"])), row

    last = None
    streams = [keyed(path, present) for path, present in tables]
    for _, row in heapq.merge(*streams, key=lambda pair: pair[0]):
        if once and row["track"] == last:
            continue
        last = row["track"]
        yield row


def note_as_json(note: ShardNote) -> dict[str, Any]:
    """The note as it stands in the provenance."""
    return asdict(note)
