"""`annotate.store`: what survives a kill, what is refused, and a cache that may lose anything and fails nothing."""

from __future__ import annotations

import copy
import errno
import json
import logging
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import annotate.store
from annotate.store import (
    TEMPORARY_PREFIX,
    FeatureCache,
    FileState,
    Part,
    RunFolder,
    RunLocked,
    RunRefused,
    StoreError,
    cache_key,
    default_cache_folder,
    replace_atomically,
    write_part,
)

STATE = FileState(size=1234, mtime_ns=1_700_000_000_123_456_789, sha256="ab" * 32)
FINGERPRINT: dict[str, Any] = {
    "schema": 3,
    "bundle": {"name": "built-in", "digest": "1a2b3c4d" * 8},
    "families": ["joint", "notes"],
    "specs": {"mel": {"hop_length": 512, "f_min": 30.0, "log": True}},
    "pooling": "mean",
}


def part_of(track: str, value: float = 0.5) -> Part:
    return Part(track, STATE, "ok", {"track": track, "gems_power": value})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "T.parquet"


@pytest.fixture(autouse=True)
def _say_everything() -> Iterator[None]:
    yield
    annotate.store._say_once.cache_clear()


def changed(**leaves: Any) -> dict[str, Any]:
    fingerprint = copy.deepcopy(FINGERPRINT)
    for dotted, value in leaves.items():
        *folders, leaf = dotted.split("__")
        place = fingerprint
        for folder in folders:
            place = place[folder]
        if value is None:
            del place[leaf]
        else:
            place[leaf] = value
    return fingerprint


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(TEMPORARY_PREFIX)]


def part_file(run: RunFolder, track: str) -> Path:
    return run.parts_folder / annotate.store._part_path(track)


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


# --- parts and resuming ---


def test_a_run_resumes_with_its_parts(table: Path) -> None:
    done = [part_of("rock/1.mp3"), part_of("classical/1.mp3"), Part("x.mp3", STATE, "failed", {"error": "silent"})]
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        assert run.folder == table.with_name("T.parquet.run")
        assert list(run.parts()) == []
        for part in done:
            run.write_part(part)
    with RunFolder.open(table, copy.deepcopy(FINGERPRINT), restart=False) as run:
        assert [run.read_part(part.track) for part in done] == done
        assert run.read_part("rock/2.mp3") is None
        assert sorted(part.track for part in run.parts()) == ["classical/1.mp3", "rock/1.mp3", "x.mp3"]
        run.forget("x.mp3")
        run.forget("x.mp3")
        assert run.read_part("x.mp3") is None
    assert RunFolder(table.with_name("T.parquet.run")).fingerprint() == FINGERPRINT


def test_a_part_is_replaced_and_may_hold_windows(table: Path) -> None:
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        run.write_part(part_of("a", 1.0))
        again = Part("a", FileState(1, 2, None), "ok", {"x": 2.0}, [{"start_s": 0.0}, {"start_s": 30.0}])
        write_part(run.parts_folder, pickle.loads(pickle.dumps(again)))
        assert list(run.parts()) == [again]
        assert temporaries(run.folder) == []


@pytest.mark.parametrize("killed_after", [0, 1, 4])
def test_a_killed_run_goes_on_where_it_was(table: Path, killed_after: int) -> None:
    tracks = [f"rock/{number}.mp3" for number in range(5)]
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from annotate.store import FileState, Part, RunFolder
        with RunFolder.open(Path(sys.argv[1]), {"a": 1}, restart=False) as run:
            for number in range(int(sys.argv[2])):
                track = f"rock/{number}.mp3"
                run.write_part(Part(track, FileState(1, 2, None), "ok", {"x": 0.1 * number}))
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with python(code, str(table), str(killed_after)) as process:
        assert process.wait(timeout=20) == -9
    with RunFolder.open(table, {"a": 1}, restart=False) as run:
        missing = [track for track in tracks if run.read_part(track) is None]
        assert missing == tracks[killed_after:]
        for track in missing:
            run.write_part(Part(track, FileState(1, 2, None), "ok", {"x": 0.1 * tracks.index(track)}))
        assert {part.track: part.row["x"] for part in run.parts()} == {track: 0.1 * number for number, track in enumerate(tracks)}


def damage_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def damage_field(name: str, value: Any) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = json.loads(path.read_text())
        content[name] = value
        path.write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        damage_half,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\0" * 300),
        lambda path: path.write_bytes(b"\xff\xfe{"),
        lambda path: path.write_text("[" * 100_000),
        lambda path: path.write_text("[]"),
        damage_field("format", 0),
        damage_field("status", "well"),
        damage_field("row", [1]),
        damage_field("windows", [1]),
        damage_field("state", {"size": 1}),
        damage_field("track", "another"),
    ],
    ids=["half", "empty", "zeros", "binary", "deep", "list", "format", "status", "row", "windows", "state", "track"],
)
def test_a_broken_part_counts_as_not_done(table: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture) -> None:
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        run.write_part(part_of("good"))
        for read in (lambda: run.read_part("bad"), lambda: next((p for p in run.parts() if p.track == "bad"), None)):
            run.write_part(part_of("bad"))
            damage(part_file(run, "bad"))
            caplog.clear()
            assert read() is None
            assert "is broken" in caplog.text
            assert not part_file(run, "bad").exists()
        assert [part.track for part in run.parts()] == ["good"]


def test_a_part_that_may_not_be_read_is_an_error_and_stays(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        run.write_part(part_of("a"))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", raising(errno.EACCES))
            with pytest.raises(StoreError, match=r"no permission: .*\.json"):
                run.read_part("a")
        assert run.read_part("a") == part_of("a")


def test_many_parts_are_spread_over_folders(table: Path) -> None:
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        for number in range(100):
            run.write_part(part_of(str(number)))
        folders = {path.parent for path in run.parts_folder.rglob("*.json")}
        assert {len(folder.relative_to(run.parts_folder).parts) for folder in folders} == {2}
        assert len(folders) > 60
        assert len(list(run.parts())) == 100


@settings(max_examples=40, deadline=None)
@given(
    floats=st.lists(st.floats(), max_size=20),
    singles=st.lists(st.floats(width=32), max_size=20),
    track=st.text(min_size=1),
    text=st.text(st.characters(exclude_categories=[])),
    integer=st.integers(-(2**70), 2**70),
)
def test_values_survive_exactly(floats: list[float], singles: list[float], track: str, text: str, integer: int) -> None:
    row = {f"f{index}": value for index, value in enumerate(floats)}
    row |= {f"s{index}": np.float32(value) for index, value in enumerate(singles)}
    part = Part(track, STATE, "ok", row | {"text": text, "integer": integer, "none": None})
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder))
        run.write_part(part)
        back = run.read_part(track)
    assert back is not None
    assert back.row.keys() == part.row.keys()
    for name, value in row.items():
        read = back.row[name]
        if math.isfinite(value):
            assert type(read) is float
            assert (
                type(value)(read).tobytes() == value.tobytes() if isinstance(value, np.float32) else (read.hex() == value.hex())
            )
        else:
            assert read is None
    assert (back.row["text"], back.row["integer"], back.row["none"]) == (text, integer, None)


def test_numpy_values_come_back_as_python_values(table: Path) -> None:
    row = {
        "b": np.bool_(True),
        "i": np.int64(-(2**62)),
        "u": np.uint8(7),
        "h": np.float16(0.1),
        "d": np.float64(0.1),
        "nan": np.float32("nan"),
        "inf": -math.inf,
        "s": np.str_("é"),
        "a": np.array([1.5, np.nan], np.float32),
        "t": (1, {"x": np.float32(2)}),
        "surrogate": "\udcff",
    }
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        run.write_part(Part("\udcff", STATE, "ok", row, [{"v": np.float32(0.25)}]))
        back = run.read_part("\udcff")
    assert back is not None
    assert back.row == {
        "b": True,
        "i": -(2**62),
        "u": 7,
        "h": float(np.float16(0.1)),
        "d": 0.1,
        "nan": None,
        "inf": None,
        "s": "é",
        "a": [1.5, None],
        "t": [1, {"x": 2.0}],
        "surrogate": "\udcff",
    }
    assert back.row["b"] is True
    assert back.windows == [{"v": 0.25}]


@pytest.mark.parametrize("value", [object(), b"x", 1j, np.longdouble(1), {1: 2}, {1}, np.datetime64("2020")])
def test_a_value_that_cannot_be_stored_is_refused_by_name(table: Path, value: object) -> None:
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        with pytest.raises(TypeError, match="rock/1: row: tempo"):
            run.write_part(Part("rock/1", STATE, "ok", {"tempo": value}))
        assert run.read_part("rock/1") is None


def test_a_status_is_ok_or_failed() -> None:
    with pytest.raises(ValueError, match="status='done' of 'a' must be"):
        Part("a", STATE, "done", {})  # type: ignore[arg-type]


# --- fingerprint and restart ---


@pytest.mark.parametrize(
    ("fingerprint", "differences"),
    [
        (changed(schema=4), ["schema: had 3, now 4"]),
        (changed(schema="3"), ['schema: had 3, now "3"']),
        (changed(bundle__digest="5e6f7a8b" * 8), ["bundle.digest: had 1a2b3c4d…, now 5e6f7a8b…"]),
        (changed(bundle__digest="1a2b3c4d" * 7 + "1a2b3c4e"), ["bundle.digest: had …b3c4d, now …b3c4e"]),
        (changed(families=["joint"]), ['families: had ["joint", "notes"], now ["joint"]']),
        (changed(specs__mel__hop_length=256), ["specs.mel.hop_length: had 512, now 256"]),
        (changed(specs__mel={}), [f"specs.mel.{name}: had" for name in ("f_min", "hop_length", "log")]),
        (changed(specs__mel=None), [f"specs.mel.{name}: had" for name in ("f_min", "hop_length", "log")]),
        (changed(specs__cqt={"bins": 84}), ["specs.cqt.bins: had nothing, now 84"]),
        (changed(specs__cqt={}), ["specs.cqt: had nothing, now {}"]),
        (changed(pooling=""), ['pooling: had "mean", now ""']),
        (changed(pooling=None, schema=4), ['pooling: had "mean", now nothing', "schema: had 3, now 4"]),
    ],
)
def test_every_difference_is_named(table: Path, fingerprint: dict[str, Any], differences: list[str]) -> None:
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        run.write_part(part_of("a"))
    with pytest.raises(RunRefused) as refused, RunFolder.open(table, fingerprint, restart=False):
        pass
    message = str(refused.value)
    said = re.search(r"made with other settings \((.*)\): .*--restart discards", message)
    assert said is not None, message
    said_differences = said[1].split("; ")
    assert len(said_differences) == len(differences), message
    for one, expected in zip(said_differences, differences, strict=True):
        assert one.startswith(expected), one
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        assert run.read_part("a") == part_of("a")


def test_long_values_are_shortened_to_where_they_differ(table: Path) -> None:
    with RunFolder.open(table, {"labels": ["x"] * 200 + ["end"]}, restart=False):
        pass
    with pytest.raises(RunRefused) as refused, RunFolder.open(table, {"labels": ["x"] * 200 + ["END"]}, restart=False):
        pass
    assert re.search(r'had ….{0,38}"end"\], now ….{0,38}"END"\]\)', str(refused.value))


def test_a_fingerprint_is_compared_as_json(table: Path) -> None:
    with RunFolder.open(table, {"f": (1, 2), "g": np.float32(0.5), "h": {"b": 1, "a": 0.1}}, restart=False):
        pass
    with RunFolder.open(table, {"h": {"a": 0.1, "b": 1}, "g": 0.5, "f": [1, 2]}, restart=False):
        pass
    with pytest.raises(ValueError, match="Out of range float"), RunFolder.open(table, {"f": math.nan}, restart=False):
        pass
    with pytest.raises(TypeError, match="of type Path"), RunFolder.open(table, {"f": type("Path", (), {})()}, restart=False):
        pass


@pytest.mark.parametrize("content", [None, "{", "[]", '{"format": 1}', '{"format": 99, "fingerprint": {}}'])
def test_parts_of_unknown_origin_are_refused(table: Path, content: str | None) -> None:
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        run.write_part(part_of("a"))
        run_json = run.folder / "run.json"
    if content is None:
        run_json.unlink()
    else:
        run_json.write_text(content)
    with pytest.raises(RunRefused, match=r"run.json.*--restart discards"):
        RunFolder.open(table, FINGERPRINT, restart=False).__enter__()
    assert run.read_part("a") == part_of("a")
    with RunFolder.open(table, FINGERPRINT, restart=True) as run:
        assert list(run.parts()) == []


def test_restart_discards_parts_and_fingerprint(table: Path) -> None:
    with RunFolder.open(table, FINGERPRINT, restart=True) as run:
        run.write_part(part_of("a"))
    with RunFolder.open(table, changed(schema=4), restart=True) as run:
        assert list(run.parts()) == []
        assert run.fingerprint()["schema"] == 4
        assert temporaries(run.folder) == []
        run.write_part(part_of("b"))
    with RunFolder.open(table, changed(schema=4), restart=False) as run:
        assert [part.track for part in run.parts()] == ["b"]


def test_discarded_parts_that_a_kill_left_are_removed(table: Path) -> None:
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        run.write_part(part_of("a"))
    os.rename(run.parts_folder, annotate.store._temporary_beside(run.parts_folder))
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        assert list(run.parts()) == []
        assert temporaries(run.folder) == []


# --- locks ---


def test_a_second_run_is_told_who_holds_the_lock(table: Path) -> None:
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        with pytest.raises(RunLocked, match=rf"in use by a run: pid {os.getpid()} on \S+ since 20\d\d-\d\d-\d\d \d\d:"):
            RunFolder.open(table, FINGERPRINT, restart=False).__enter__()
        run.write_part(part_of("a"))
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        assert run.read_part("a") is not None


def test_the_lock_is_free_after_an_error_and_a_refusal(table: Path) -> None:
    with pytest.raises(KeyError), RunFolder.open(table, FINGERPRINT, restart=False):
        raise KeyError
    with pytest.raises(RunRefused) as refused, RunFolder.open(table, {}, restart=False):
        pass
    assert refused.tb is not None  # kept: the frames in it, and so the lock, are not collected
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        assert (run.folder / "lock.holder").exists()
    assert not (run.folder / "lock.holder").exists()


def test_the_lock_of_a_killed_process_is_taken_over(table: Path) -> None:
    code = """if True:
        import sys, time
        from pathlib import Path
        from annotate.store import RunFolder
        with RunFolder.open(Path(sys.argv[1]), {"a": 1}, restart=False):
            print("held", flush=True)
            time.sleep(60)
    """
    with python(code, str(table)) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunLocked, match=f"pid {holder.pid} on "):
            RunFolder.open(table, {"a": 1}, restart=False).__enter__()
        holder.kill()
        holder.wait(timeout=10)
        assert f"pid {holder.pid} " in table.with_name("T.parquet.run").joinpath("lock.holder").read_text()
        with RunFolder.open(table, {"a": 1}, restart=False) as run:
            assert f"pid {os.getpid()} " in (run.folder / "lock.holder").read_text()


def test_shards_share_a_folder_and_exclude_a_whole_run(table: Path) -> None:
    def opened(shard: str | None, *, restart: bool = False) -> Any:
        return RunFolder.open(table, FINGERPRINT, restart=restart, shard=shard)

    with opened("1/2") as first, opened("2/2") as second:
        first.write_part(part_of("a"))
        second.write_part(part_of("b"))
        assert sorted(part.track for part in first.parts()) == ["a", "b"]
        with pytest.raises(RunLocked, match="in use by shard 2/2 of the run: pid"):
            opened("2/2").__enter__()
        with pytest.raises(RunLocked, match="in use by shard 1/2 of the run: pid"):
            opened(None).__enter__()
    with opened("1/2"), pytest.raises(RunLocked, match="in use by shard 1/2"):
        opened("2/2", restart=True).__enter__()
    with opened(None) as run:
        assert len(list(run.parts())) == 2
        with pytest.raises(RunLocked, match="in use by a run"):
            opened("1/2").__enter__()
    with opened("2/2", restart=True) as run:
        assert list(run.parts()) == []


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/2/3", "../1/2", ""])
def test_a_shard_is_one_of_n(table: Path, shard: str) -> None:
    with pytest.raises(ValueError, match="must be I/N"):
        RunFolder.open(table, FINGERPRINT, restart=False, shard=shard).__enter__()
    assert not table.with_name("T.parquet.run").exists()


def test_an_opening_that_takes_too_long_is_said(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotate.store, "OPENING_TIMEOUT_S", 0.1)
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        pass
    with annotate.store.filelock.FileLock(run.folder / "lock.gate"), pytest.raises(RunLocked, match="been opening it"):
        RunFolder.open(table, FINGERPRINT, restart=False).__enter__()


# --- files ---


def raising(number: int) -> Callable[..., Any]:
    def fail(*_arguments: object, **_options: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_failed_replacement_leaves_the_old_file(table: Path, number: int, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table.write_text("old")
    if step != "write":
        monkeypatch.setattr(os, step, raising(number))

    def write(path: Path) -> None:
        path.write_text("half")
        if step == "write":
            raising(number)()

    with pytest.raises(StoreError) as failed:
        replace_atomically(table, write, kept=Path("T.parquet.run"))
    assert re.fullmatch(
        r"(disk full|disk quota used up|read-only file system|no permission): .*T\.parquet; "
        r"what was done is kept in T\.parquet\.run; [^\n]*run again.*",
        str(failed.value),
    )
    assert table.read_text() == "old"
    assert os.listdir(table.parent) == ["T.parquet"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, FileNotFoundError])
def test_any_error_of_the_writer_passes_and_leaves_the_old_file(table: Path, error: type[BaseException]) -> None:
    table.write_text("old")

    def write(path: Path) -> None:
        path.write_text("half")
        raise error("stop")

    with pytest.raises(error, match="stop"):
        replace_atomically(table, write)
    assert table.read_text() == "old"
    assert os.listdir(table.parent) == ["T.parquet"]


def test_a_replacement_is_flushed_before_it_takes_the_place(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        steps.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).suffix or 'folder'}")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        assert source.parent == target.parent
        assert source.suffix == ".parquet"
        steps.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    replace_atomically(table, lambda path: path.write_text("new") and None)
    assert steps == ["fsync .parquet", "replace", "fsync folder"]
    assert table.read_text() == "new"


def test_what_a_link_points_to_is_replaced(tmp_path: Path, table: Path) -> None:
    target = tmp_path / "scratch" / "real.parquet"
    target.parent.mkdir()
    target.write_text("old")
    table.symlink_to(target)
    replace_atomically(table, lambda path: path.write_text("new") and None)
    assert table.is_symlink()
    assert target.read_text() == "new"


def test_a_full_disk_says_where_the_parts_are(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        run.write_part(part_of("a"))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", raising(errno.ENOSPC))
            with pytest.raises(StoreError, match=r"disk full: .*json; what was done is kept in .*T\.parquet\.run; free"):
                run.write_part(part_of("b"))
            patch.setattr(Path, "mkdir", raising(errno.ENOSPC))
            with pytest.raises(StoreError, match="disk full"):
                run.write_part(part_of("c"))
        assert [part.track for part in run.parts()] == ["a"]
        assert temporaries(run.folder) == []


def test_a_folder_that_may_not_be_written_is_said(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        RunFolder.open(table.parent / "absent" / "T.parquet", FINGERPRINT, restart=False).__enter__()
    (table.parent / "U.parquet.run").write_text("")
    with pytest.raises(StoreError, match="not a folder"):
        RunFolder.open(table.parent / "U.parquet", FINGERPRINT, restart=False).__enter__()
    monkeypatch.setattr(Path, "mkdir", raising(errno.EROFS))
    with pytest.raises(StoreError, match=r"read-only file system: .*T\.parquet\.run; what was there before is untouched"):
        RunFolder.open(table, FINGERPRINT, restart=False).__enter__()


def test_leftovers_of_dead_processes_are_removed(table: Path) -> None:
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from annotate.store import replace_atomically
        def half(path):
            path.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        replace_atomically(Path(sys.argv[1]), half)
    """
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        run.write_part(part_of("a"))
        part = part_file(run, "a")
    for path in (table, part, run.folder / "run.json"):
        with python(code, str(path)) as process:
            assert process.wait(timeout=20) == -9
    mine = annotate.store._temporary_beside(table)
    other_host = table.with_name(f"{TEMPORARY_PREFIX}else.where-99999999-0123456789abcdef.parquet")
    other_host_old = table.with_name(f"{TEMPORARY_PREFIX}else.where-2-0123456789abcdef.parquet")
    not_ours = table.with_name(f"{TEMPORARY_PREFIX}notes")
    reused_number = annotate.store._temporary_beside(part)
    for path in (mine, other_host, other_host_old, not_ours, reused_number):
        path.write_text("x")
    os.utime(other_host_old, (time.time() - 2 * 24 * 3600,) * 2)
    os.utime(reused_number, (time.time() - 3600,) * 2)  # this process did not run an hour ago
    assert len(temporaries(table.parent)) == 8
    with RunFolder.open(table, FINGERPRINT, restart=False) as run:
        assert set(temporaries(table.parent)) == {mine, other_host, not_ours}
        assert run.read_part("a") == part_of("a")


# --- cache ---

SPEC = {"name": "mel", "hop_length": 512, "f_min": 30.0}


def key_of(number: int) -> str:
    return cache_key(f"{number:064x}", SPEC, "soundfile 1.2")


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def entry(cache: FeatureCache, key: str) -> Path:
    return cache.folder / key[:2] / f"{key}.npz"


def cache_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.npz"))


def test_the_cache_returns_what_was_put(cache: FeatureCache) -> None:
    arrays = {
        "notes": np.arange(12, dtype=np.float32).reshape(4, 3),
        "file": np.asfortranarray(np.eye(3, dtype=np.float16)),
        "empty": np.zeros((0, 5), np.int64),
        "scalar": np.array(0.1),
        "é/label": np.array(["a", "bc"]),
        "records": np.array([(1, 2.5)], dtype=[("pitch", "i4"), ("onset_s", "f8")]),
    }
    assert cache.get(key_of(1)) is None
    cache.put(key_of(1), arrays)
    back = pickle.loads(pickle.dumps(cache)).get(key_of(1))
    assert back is not None
    assert back.keys() == arrays.keys()
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array, strict=True)
    back["notes"][0] = 1  # writable
    assert cache.get(key_of(2)) is None
    cache.put(key_of(1), {"other": np.ones(1)})
    again = cache.get(key_of(1))
    assert again is not None
    assert list(again) == ["other"]
    with np.load(entry(cache, key_of(1)), allow_pickle=False) as archive:
        assert archive.files == ["other"]


def test_objects_and_foreign_keys_are_refused(cache: FeatureCache) -> None:
    with pytest.raises(ValueError, match="Object arrays"):
        cache.put(key_of(1), {"x": np.array([object()])})
    for key in ("../../etc/passwd", "", "AB" * 32, key_of(1) + "\n"):
        with pytest.raises(ValueError, match="must be a SHA-256"):
            cache.get(key)
        with pytest.raises(ValueError, match="must be a SHA-256"):
            cache.put(key, {})
    with pytest.raises(ValueError, match="max_bytes=0 must be > 0"):
        FeatureCache(cache.folder, max_bytes=0)


def test_any_flipped_or_missing_byte_is_a_miss(cache: FeatureCache, caplog: pytest.LogCaptureFixture) -> None:
    key = key_of(1)
    wanted = np.arange(4, dtype=np.float32)
    cache.put(key, {"x": wanted})
    content = entry(cache, key).read_bytes()
    damaged = [content[:length] for length in range(0, len(content), 7)]
    damaged += [content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :] for at in range(len(content))]
    misses = 0
    for bytes_ in damaged:
        entry(cache, key).write_bytes(bytes_)
        back = cache.get(key)
        if back is None:
            misses += 1
            assert not entry(cache, key).exists()
        else:  # a byte that says nothing of the arrays, such as a date in the archive
            assert list(back) == ["x"]
            np.testing.assert_array_equal(back["x"], wanted, strict=True)
    assert misses > 0.7 * len(damaged)
    assert "removed from the cache" in caplog.text


def test_an_entry_under_the_key_of_another_is_a_miss(cache: FeatureCache) -> None:
    cache.put(key_of(1), {"x": np.ones(3)})
    entry(cache, key_of(2)).parent.mkdir(exist_ok=True)
    shutil.copy(entry(cache, key_of(1)), entry(cache, key_of(2)))
    assert cache.get(key_of(2)) is None
    assert not entry(cache, key_of(2)).exists()
    assert cache.get(key_of(1)) is not None


def test_an_entry_without_a_digest_is_a_miss(cache: FeatureCache) -> None:
    path = entry(cache, key_of(1))
    path.parent.mkdir(parents=True)
    np.savez(path, x=np.ones(3))
    assert cache.get(key_of(1)) is None


def test_what_was_used_last_stays(cache: FeatureCache) -> None:
    keys = [key_of(number) for number in range(20)]
    for age, key in enumerate(keys):
        cache.put(key, {"x": np.zeros(1000, np.uint8)})
        os.utime(entry(cache, key), (1000 + age,) * 2)
    assert cache.get(keys[0]) is not None
    (cache.folder / "ab").mkdir(exist_ok=True)
    (cache.folder / "music").mkdir()
    foreign = [cache.folder / "notes.txt", cache.folder / "ab" / "song.npz", cache.folder / "music" / f"{keys[0]}.npz"]
    for path in foreign:
        path.write_bytes(b"x" * 30_000)
    size = entry(cache, keys[0]).stat().st_size
    cache.max_bytes = 20 * size
    cache.evict()
    assert all(entry(cache, key).exists() for key in keys)
    cache.max_bytes = 10 * size
    cache.evict()
    assert [number for number, key in enumerate(keys) if entry(cache, key).exists()] == [0, *range(12, 20)]
    assert all(path.exists() for path in foreign)


def test_the_cache_stays_near_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(tmp_path, max_bytes=200_000)
    scans = []
    evict = FeatureCache.evict
    monkeypatch.setattr(FeatureCache, "evict", lambda self: scans.append(1) or evict(self))
    sizes = []
    for number in range(1500):
        pickle.loads(pickle.dumps(cache)).put(key_of(number), {"x": np.zeros(200, np.uint8)})  # a cache for each task
        if number % 50 == 0:
            sizes.append(cache_bytes(tmp_path))
    written = 1500 * entry(cache, key_of(1499)).stat().st_size
    assert written > 3 * 200_000
    assert max(sizes) < 1.2 * 200_000
    assert sizes[-1] > 0.8 * 200_000
    assert len(scans) < 3 * written / (200_000 / 32)
    cache.put(key_of(9999), {"x": np.zeros(200_000, np.uint8)})
    assert cache.get(key_of(9999)) is None  # larger than the whole: not worth throwing the rest away
    assert cache_bytes(tmp_path) > 0.8 * 200_000


def test_two_processes_share_a_small_cache(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        import numpy as np
        from annotate.store import FeatureCache, cache_key
        cache = FeatureCache(Path(sys.argv[1]), max_bytes=50_000)
        hits = 0
        for step in range(600):
            number = step * int(sys.argv[2]) % 97
            key = cache_key("0" * 64, {"number": number}, "d")
            found = cache.get(key)
            if found is None:
                cache.put(key, {"x": np.full(1000, number, np.uint8)})
            else:
                assert (found["x"] == number).all()
                hits += 1
        print(hits)
    """
    workers = [python(code, str(tmp_path / "cache"), step) for step in ("5", "7")]
    hits = []
    for worker in workers:
        with worker:
            assert worker.stdout is not None
            hits.append(int(worker.stdout.read()))
        assert worker.returncode == 0
    assert sum(hits) > 0
    assert cache_bytes(tmp_path) < 1.3 * 50_000
    assert temporaries(tmp_path) == []


def test_a_file_that_goes_during_an_eviction_is_no_error(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        cache.put(key_of(number), {"x": np.zeros(1000, np.uint8)})
    cache.max_bytes = 10_000
    stat, calls = Path.stat, []

    def stat_while_another_evicts(path: Path, **options: Any) -> os.stat_result:
        calls.append(path)
        if len(calls) == 10:
            for gone in calls[:3]:
                gone.unlink()
            shutil.rmtree(path.parent)
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", stat_while_another_evicts)
        cache.evict()
    assert cache_bytes(cache.folder) <= 10_000


def test_two_evictions_at_once_remove_no_more_than_one(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        cache.put(key_of(number), {"x": np.zeros(1000, np.uint8)})
    cache.max_bytes = 20_000
    seen = list(cache._entries())
    monkeypatch.setattr(cache, "_entries", lambda: iter(seen))
    cache.evict()
    left = cache_bytes(cache.folder)
    assert 16_000 < left <= 18_000
    cache.evict()  # with the listing of before, as another process has it
    assert cache_bytes(cache.folder) == left


def test_a_deleted_cache_is_made_again(cache: FeatureCache) -> None:
    cache.put(key_of(1), {"x": np.ones(1)})
    shutil.rmtree(cache.folder)
    assert cache.get(key_of(1)) is None
    cache.evict()
    cache.put(key_of(1), {"x": np.ones(1)})
    assert cache.get(key_of(1)) is not None


@pytest.mark.parametrize("step", ["mkdir", "write", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_said_once(
    cache: FeatureCache, step: str, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(key_of(0), {"x": np.ones(1)})
    place: Any = os if step == "replace" else Path
    with monkeypatch.context() as patch:
        patch.setattr(place, "write_bytes" if step == "write" else step, raising(number))
        patch.setattr(os, "utime", raising(number))
        with caplog.at_level(logging.WARNING):
            for attempt in range(1, 4):
                cache.put(key_of(attempt), {"x": np.ones(1)})
        assert cache.get(key_of(0)) is not None
        assert cache.get(key_of(1)) is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{cache.folder}: features are not cached ({os.strerror(number)})"
    ]
    assert temporaries(cache.folder) == []


def test_a_cache_that_is_no_folder_does_not_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = FeatureCache(tmp_path / "file" / "cache")
    cache.put(key_of(1), {"x": np.ones(1)})
    assert cache.get(key_of(1)) is None
    cache.evict()
    assert [record.getMessage() for record in caplog.records] == [f"{cache.folder}: features are not cached (Not a directory)"]


def test_an_entry_that_cannot_be_removed_is_a_miss(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put(key_of(1), {"x": np.ones(1)})
    damage_half(entry(cache, key_of(1)))
    monkeypatch.setattr(Path, "unlink", raising(errno.EROFS))
    assert cache.get(key_of(1)) is None
    cache.max_bytes = 1
    cache.evict()


def test_leftovers_in_the_cache_are_removed(cache: FeatureCache) -> None:
    cache.put(key_of(1), {"x": np.ones(1)})
    leftover = annotate.store._temporary_beside(entry(cache, key_of(1)))
    leftover.write_bytes(b"x")
    cache.evict()
    assert leftover.exists()
    os.utime(leftover, (time.time() - 3600,) * 2)
    cache.evict()
    assert not leftover.exists()


def test_the_key_depends_on_everything_that_matters_and_on_no_order() -> None:
    key = cache_key("ab" * 32, SPEC, "soundfile 1.2")
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert cache_key("ab" * 32, dict(reversed(SPEC.items())), "soundfile 1.2") == key
    assert cache_key("ab" * 32, SPEC | {"hop_length": np.int64(512)}, "soundfile 1.2") == key
    others = {
        cache_key("cd" * 32, SPEC, "soundfile 1.2"),
        cache_key("ab" * 32, SPEC, "soundfile 1.3"),
        cache_key("ab" * 32, SPEC | {"hop_length": 256}, "soundfile 1.2"),
        cache_key("ab" * 32, SPEC | {"f_max": None}, "soundfile 1.2"),
    }
    assert len(others - {key}) == 4
    with pytest.raises(ValueError, match="Out of range float"):
        cache_key("ab" * 32, {"f_min": math.inf}, "d")


def test_the_default_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_folder() == tmp_path / "xdg" / "annotate"
    for base in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        assert default_cache_folder() == tmp_path / ".cache" / "annotate"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_folder() == tmp_path / ".cache" / "annotate"
