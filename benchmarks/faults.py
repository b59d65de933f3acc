"""The fault test: what a nightly batch meets, done on purpose, counted, and written into docs/reliability.md.

    python benchmarks/faults.py                  every experiment that has no result yet (hours)
    python benchmarks/faults.py kills memory     these, anew
    python benchmarks/faults.py --short kills    in seconds; writes neither results nor document unless told where

Each experiment makes its own audio, runs the installed command as a user would, and raises `Broken` where a promise is not kept.
Its figures go into the results file as soon as it ends; `kills` also keeps every kill, so that an interrupted session goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import soundfile

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
RESULTS = HERE / "faults.json"
DOCUMENT = HERE.parent / "docs" / "reliability.md"
ANNOTATE = Path(sys.executable).with_name("annotate")
RATE = 22_050  # Hz, of the audio that is made here
END_S = 3600.0  # after which a run is taken to hang


class Broken(AssertionError):
    """A promise that was not kept."""


@dataclass(frozen=True)
class Size:
    """How much an experiment does."""

    kills: int
    kill_tracks: int
    kill_families: str
    memory_tracks: tuple[int, int]
    broad_tracks: int  # of 30 s, all families
    long_minutes: int
    long_families: str | None  # None: all
    names: int
    mutants: int
    fuzz: int  # times the inputs of the test suite
    worker_kills: int


LONG = Size(30, 60, "notes,joint", (200, 2000), 24, 60, None, 100_000, 500, 5, 5)
SHORT = Size(2, 6, "notes", (4, 12), 0, 1, "notes", 500, 30, 1, 1)


# --- audio ---


def write_tracks(folder: Path, count: int, *, seconds: float, suffix: str = ".wav") -> Path:
    """Write tracks of a few notes each, every one different, in folders of a hundred; a folder that is there is kept."""
    done = folder / ".written"
    if done.exists() and done.read_text() == f"{count} {seconds} {suffix}":
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    t = np.arange(round(seconds * RATE)) / RATE
    for number in range(count):
        rng = np.random.default_rng(number)
        pitches = 110 * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 11, 12, 14, 16], size=max(2, round(3 * seconds))) / 12)
        note = np.minimum((t / seconds * len(pitches)).astype(int), len(pitches) - 1)
        phase = 2 * np.pi * np.cumsum(pitches[note]) / RATE
        fade = 1 - (t / seconds * len(pitches)) % 1
        signal_ = 0.3 * fade * sum(np.sin(phase * k) / k for k in (1, 2, 3)) + 0.002 * rng.standard_normal(len(t))
        path = folder / f"album {number // 100:03d}" / f"track {number % 100:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, signal_.astype(np.float32), RATE, format=CONTAINERS.get(suffix))
    done.write_text(f"{count} {seconds} {suffix}")
    return folder


CONTAINERS = {".opus": "OGG", ".ogg": "OGG", ".mp3": "MP3"}
FORMATS = ((".wav", None), (".flac", None), (".ogg", "VORBIS"), (".opus", "OPUS"), (".mp3", "MPEG_LAYER_III"), (".aiff", None))


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Damage a file in one of the ways in which files are damaged, or attacked."""
    bad = bytearray(content)
    kind = rng.randrange(9)
    start = rng.randrange(len(bad)) if rng.random() < 0.5 else rng.randrange(min(len(bad), 200))
    length = rng.choice([1, 4, 64, 2000])
    if kind == 0:
        for _ in range(rng.choice([1, 3, 50])):
            bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del bad[max(start, 1) :]
    elif kind == 2:
        del bad[start : start + length]
    elif kind == 3:
        bad[start:start] = rng.randbytes(length)
    elif kind == 4:
        bad[start : start + length] = bytes(length)
    elif kind == 5:
        bad[start : start + length] = b"\xff" * length
    elif kind == 6:  # a size or rate in the header that lies
        at = rng.randrange(0, min(len(bad) - 4, 120))
        bad[at : at + 4] = rng.choice(
            [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", bytes(4), b"\x00\x00\x00\x80", b"\x01\x00\x00\x00"]
        )
    elif kind == 7:
        half = len(bad) // 2
        bad = bad[half:] + bad[:half]
    else:
        bad[: min(start, 64)] = rng.randbytes(min(start, 64))
    return bytes(bad)


# --- runs ---


def command(music: Path, out: Path, *more: str) -> list[str]:
    return [str(ANNOTATE), "run", str(music), "--out", str(out), *more]


def environment(work: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(work / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}


def run(work: Path, *arguments: str, expect: Sequence[int] = (0,)) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    done = subprocess.run(
        arguments, env=environment(work), capture_output=True, text=True, errors="replace", timeout=END_S, check=False
    )
    if done.returncode not in expect or "Traceback" in done.stderr:
        raise Broken(f"exit status {done.returncode}, expected {expect}: {done.stderr[-2000:]}")
    return done


@contextmanager
def started(work: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start the command as a process group of its own, of which nothing is left in the end."""
    process = subprocess.Popen(
        arguments,
        env=environment(work),
        stdout=subprocess.DEVNULL,
        stderr=(work / "stderr.txt").open("w"),
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        end_group(process, signal.SIGKILL)


def end_group(process: subprocess.Popen[str], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait()


def finished_parts(out: Path) -> int:
    return sum(1 for _ in out.with_name(f"{out.name}.run").glob("parts/?/?/[0-9a-f]*.json"))


def fresh(out: Path) -> None:
    """Remove a table and its run folder."""
    out.unlink(missing_ok=True)
    shutil.rmtree(out.with_name(f"{out.name}.run"), ignore_errors=True)


def compare(ours: Path, theirs: Path, *, only: set[str] | None = None) -> int:
    """Check that two tables hold the same, row for row, floats within 1e-5 of their size; the number of rows."""
    a, b = pq.read_table(ours), pq.read_table(theirs)
    if [(field.name, field.type, field.metadata) for field in a.schema] != [
        (field.name, field.type, field.metadata) for field in b.schema
    ]:
        raise Broken(f"{ours}: other columns than {theirs}")
    rows, others = a.to_pylist(), b.to_pylist()
    if only is not None:
        rows, others = ([row for row in some if row["track"] in only] for some in (rows, others))
    if [row["track"] for row in rows] != [row["track"] for row in others]:
        raise Broken(f"{ours}: other rows than {theirs}, or in another order")
    for row, other in zip(rows, others, strict=True):
        for name, value in row.items():
            same = (
                abs(value - other[name]) <= 1e-5 * max(1.0, abs(other[name]))
                if isinstance(value, float) and isinstance(other[name], float)
                else value == other[name]
            )
            if not same:
                raise Broken(f"{ours}: {row['track']}: {name} is {value!r}, uninterrupted {other[name]!r}")
    return len(rows)


def uninterrupted(work: Path, music: Path, families: str) -> Path:
    """Table of a run that nobody disturbs; made once."""
    out = work / f"uninterrupted {families}.parquet"
    if not out.exists():
        run(work, *command(music, out, "--models", families, "--jobs", "2"))
    return out


class Peak:
    """Samples the resident memory of a process and all below it: the largest sum, and the largest process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.total, self.one = psutil.Process(process.pid), 0, 0
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while True:
            try:
                found = [self.process, *self.process.children(recursive=True)]
            except psutil.Error:
                return
            sizes = []
            for process in found:
                try:
                    sizes.append(process.memory_info().rss)
                except psutil.Error:
                    continue
            self.total = max(self.total, sum(sizes))
            self.one = max(self.one, *sizes, 0)
            time.sleep(0.1)


def measured(work: Path, *arguments: str, expect: Sequence[int] = (0,)) -> dict[str, float]:
    """Run the command to its end: peak memory in GB (10⁹ bytes), CPU seconds."""
    before = os.times()
    with started(work, *arguments) as process:
        peak = Peak(process)
        status = process.wait(timeout=END_S)
    peak.thread.join()
    after = os.times()
    if status not in expect:
        raise Broken(f"exit status {status}: {(work / 'stderr.txt').read_text()[-2000:]}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {"peak_gb": round(peak.total / 1e9, 3), "largest_process_gb": round(peak.one / 1e9, 3), "cpu_s": round(cpu_s, 1)}


# --- experiments ---


def kills(work: Path, size: Size) -> dict[str, Any]:
    """Kill a run at random instants, go on each time from what it left, and compare the table that comes out in the end."""
    music = write_tracks(work / "music", size.kill_tracks, seconds=3.0)
    reference = uninterrupted(work, music, size.kill_families)
    state_file, out = work / "kills.json", work / "killed.parquet"
    state: dict[str, Any] = {"kills": [], "tables": 0, "rows": 0}
    if state_file.exists():
        state = json.loads(state_file.read_text())
    rng = random.Random(len(state["kills"]))
    arguments = command(music, out, "--models", size.kill_families, "--jobs", "2")
    while len(state["kills"]) < size.kills:
        number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
        before = finished_parts(out)
        target = before + rng.randrange(0, 7)
        delay = rng.uniform(0, 6.0) if target == before else rng.uniform(0, 0.3)
        with started(work, *arguments) as process:
            while process.poll() is None and finished_parts(out) < min(target, size.kill_tracks):
                time.sleep(0.01)
            deadline = time.monotonic() + delay
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            alive = process.poll() is None
            if number == signal.SIGKILL:
                end_group(process, number)  # as a power cut: all processes at once
            elif alive:
                process.send_signal(number)
                process.wait(timeout=300)
        if alive and process.returncode not in (0, -signal.SIGKILL, 130, -number):
            raise Broken(f"{signal.Signals(number).name}: exit status {process.returncode}: {(work / 'stderr.txt').read_text()}")
        if alive and process.returncode != 0:
            state["kills"].append({"signal": signal.Signals(number).name, "parts_before": before, "parts": finished_parts(out)})
        if out.exists():  # this one came to its end
            state["rows"] += compare(out, reference)
            state["tables"] += 1
            fresh(out)
        state_file.write_text(json.dumps(state))
    run(work, *arguments)
    state["rows"] += compare(out, reference)
    left = list(work.rglob(".annotate-tmp-*"))
    if left:
        raise Broken(f"left behind: {left}")
    state_file.unlink()
    return {
        "kills": len(state["kills"]),
        "by_signal": dict(Counter(kill["signal"] for kill in state["kills"])),
        "with_parts_done": sorted(kill["parts"] for kill in state["kills"]),
        "tracks": size.kill_tracks,
        "families": size.kill_families,
        "tables_compared": state["tables"] + 1,
        "rows_compared": state["rows"],
        "rows_that_differ": 0,
    }


def workers(work: Path, size: Size) -> dict[str, Any]:
    """Kill worker processes, as the kernel does when memory runs out: the run goes on and the table is the same."""
    music = write_tracks(work / "music", size.kill_tracks, seconds=3.0)
    reference = uninterrupted(work, music, size.kill_families)
    rng = random.Random(1)
    out = work / "workers.parquet"
    fresh(out)
    killed = 0
    with started(work, *command(music, out, "--models", size.kill_families, "--jobs", "2", "--no-cache")) as process:
        while process.poll() is None:
            marks = list(out.with_name(f"{out.name}.run").glob("started/*.json"))
            if (
                killed < size.worker_kills
                and finished_parts(out) >= killed * size.kill_tracks // (size.worker_kills + 1)
                and marks
            ):
                try:
                    os.kill(int(rng.choice(marks).stem), signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    continue
                seen = finished_parts(out)
                while process.poll() is None and finished_parts(out) <= seen:
                    time.sleep(0.02)
            time.sleep(0.002)
    if process.returncode != 0 or killed == 0:
        raise Broken(f"exit status {process.returncode} after {killed} kills: {(work / 'stderr.txt').read_text()}")
    return {"worker_kills": killed, "rows_compared": compare(out, reference), "rows_that_differ": 0}


def memory(work: Path, size: Size) -> dict[str, Any]:
    """Peak memory with two jobs: it must not grow with the number of tracks."""
    few, many = size.memory_tracks
    found: dict[str, Any] = {"families": "notes,joint", "seconds_a_track": 1.5}
    for count in (few, many):
        music = write_tracks(work / f"music {count}", count, seconds=1.5)
        out = work / f"memory {count}.parquet"
        fresh(out)
        models = ("--models", "notes,joint", "--jobs", "2", "--no-cache")
        found[str(count)] = measured(work, *command(music, out, *models))
    if size.broad_tracks:
        music = write_tracks(work / "music broad", size.broad_tracks, seconds=30.0)
        out = work / "memory broad.parquet"
        fresh(out)
        found["all families"] = {
            "tracks": size.broad_tracks,
            "seconds_a_track": 30.0,
            **measured(work, *command(music, out, "--jobs", "2", "--no-cache")),
        }
    found["growth"] = round(found[str(many)]["peak_gb"] / found[str(few)]["peak_gb"], 3)
    if found["growth"] > 1.15 or max(part["peak_gb"] for part in found.values() if isinstance(part, dict)) >= 3.0:
        raise Broken(f"memory is not flat, or above 3 GB: {found}")
    return found


def long(work: Path, size: Size) -> dict[str, Any]:
    """Annotate one file of an hour: memory in proportion."""
    path = work / "music long" / "hour.flac"
    path.parent.mkdir(exist_ok=True)
    source = write_tracks(work / "music minute", 1, seconds=60.0)
    minute = soundfile.read(next(source.rglob("*.wav")), dtype="float32")[0]
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for number in range(size.long_minutes):
            file.write(np.roll(minute, number * RATE))
    out = work / "long.parquet"
    fresh(out)
    models = ("--models", size.long_families) if size.long_families else ()
    found = measured(work, *command(path.parent, out, "--no-cache", "--jobs", "2", *models))
    if found["peak_gb"] >= 2.5:
        raise Broken(f"a file of {size.long_minutes} minutes takes too much: {found}")
    return {"minutes": size.long_minutes, "families": size.long_families or "all", **found}


def names(work: Path, size: Size) -> dict[str, Any]:
    """Scan many file names: how soon the first track is in work."""
    music = work / "music names"
    if not music.exists():
        for number in range(size.names):
            path = music / f"album {number // 1000:04d}" / f"track {number % 1000:04d}.mp3"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    out = work / "names.parquet"
    fresh(out)
    began = time.monotonic()
    with started(work, *command(music, out, "--models", "notes", "--jobs", "2")) as process:
        main = psutil.Process(process.pid)
        told = None
        while process.poll() is None:
            times = main.cpu_times()
            cpu_s, wall_s = times.user + times.system, time.monotonic() - began
            if told is None and f"of {size.names} tracks to annotate" in (work / "stderr.txt").read_text():
                told = cpu_s, wall_s
            if finished_parts(out):
                break
            time.sleep(0.05)
        else:
            raise Broken(f"ended before it began: {(work / 'stderr.txt').read_text()[-2000:]}")
    load = os.getloadavg()[0]
    if told is None:
        raise Broken("it did not say how many tracks there are to annotate")
    return {
        "names": size.names,
        "cpu_s_until_work_is_given_out": round(told[0], 1),
        "wall_s_until_work_is_given_out": round(told[1], 1),
        "wall_s_until_the_first_part": round(wall_s, 1),
        "load_of_the_machine": round(load, 1),
    }


def mutants(work: Path, size: Size) -> dict[str, Any]:
    """Annotate damaged files of the demo corpus: each costs one row at most, and none an unforeseen error."""
    music = work / "music mutants"
    shutil.rmtree(music, ignore_errors=True)
    music.mkdir()
    if not (work / "demo").exists():
        from annotate.demo import write_corpus

        write_corpus(work / "demo", tracks_per_genre=1, duration_s=2.0, file_format="wav")
    rng = random.Random(6)
    sources = [soundfile.read(path, dtype="float32") for path in sorted((work / "demo").rglob("*.wav"))]
    whole = []
    for suffix, subtype in FORMATS:
        for number, (samples, rate) in enumerate(sources):
            path = work / f"whole {number}{suffix}"
            rate = 48_000 if suffix == ".opus" else rate
            soundfile.write(path, samples, rate, format=CONTAINERS.get(suffix), subtype=subtype)
            whole.append((suffix, path.read_bytes()))
    for number in range(size.mutants):
        suffix, content = whole[number % len(whole)]
        for _ in range(rng.choice([1, 1, 2])):
            content = mutate(content, rng)
        (music / f"{number:04d}{suffix}").write_bytes(content)
    out = work / "mutants.parquet"
    fresh(out)
    run(work, *command(music, out, "--models", "notes", "--jobs", "2", "--no-cache", "--timeout", "300"), expect=(0, 3))
    rows = pq.read_table(out).to_pylist()
    if len(rows) != size.mutants:
        raise Broken(f"{len(rows)} rows for {size.mutants} files")
    unforeseen = [(row["track"], row["error"]) for row in rows if "unexpected error" in (row["error"] or "")]
    if unforeseen:
        raise Broken(f"unforeseen errors: {unforeseen}")
    status = Counter(row["status"] for row in rows)
    reasons = Counter(re.sub(r"\d+(\.\d+)?", "N", (row["error"]).partition(":")[0]) for row in rows if row["error"])
    return {
        "files": size.mutants,
        "annotated": status["ok"],
        "of_them_with_a_warning": sum(row["status"] == "ok" and row["warning"] is not None for row in rows),
        "failed_rows": status["failed"],
        "reasons": dict(reasons.most_common()),
        "workers_killed": sum("killed its worker" in (row["error"] or "") for row in rows),
        "timed_out": sum("time-out" in (row["error"] or "") for row in rows),
        "unforeseen_errors": 0,
    }


def inputs(work: Path, size: Size) -> dict[str, Any]:
    """Read mutated label files and tables, by the tests of the suite: each is read, or refused by one line that names it."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--hypothesis-show-statistics",
            TESTS / "test_hostile.py",
        ],
        env=environment(work) | {"ANNOTATE_TEST_FUZZ": str(size.fuzz)},
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
    )
    if done.returncode:
        raise Broken(done.stdout[-9000:])
    tried = {
        test.removeprefix("test_").replace("_", " "): int(count)
        for test, count in re.findall(r"test_hostile\.py::(\w+):\n.*?(\d+) passing,", done.stdout, re.DOTALL)
    }
    return tried | {"inputs tried": sum(tried.values()), "other_outcomes": 0}


def disk(work: Path, size: Size) -> dict[str, Any]:
    """A disk that fills up, one that may not be written, and a cache on a full disk; needs the right to mount."""
    place = work / "small disk"
    place.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "annotate-faults", place], capture_output=True).returncode:
        return {"not_tried": "no right to mount a file system here"}
    try:
        music = write_tracks(work / "music", size.kill_tracks, seconds=3.0)
        reference = uninterrupted(work, music, size.kill_families)
        out = place / "t.parquet"
        arguments = command(music, out, "--models", size.kill_families, "--jobs", "2")
        said = run(work, *arguments, expect=(1,)).stderr
        parts = finished_parts(out)
        if "disk full" not in said or out.exists() or not parts:
            raise Broken(f"a full disk: {parts} parts, {said}")
        subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
        run(work, *arguments)
        rows = compare(out, reference)
        content = out.read_bytes()
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        read_only = run(work, *arguments, "--restart", expect=(1,)).stderr
        if "read-only file system" not in read_only or out.read_bytes() != content:
            raise Broken(f"a read-only disk: {read_only}")
        subprocess.run(["mount", "-o", "remount,rw,size=64m", place], check=True)
        (place / "ballast").write_bytes(bytes(63 * 2**20))
        full_cache = work / "t.parquet"
        fresh(full_cache)
        more = ("--models", size.kill_families, "--jobs", "2", "--cache", str(place / "cache"))
        subprocess.run(["mount", "-o", "remount,size=63m", place], check=False)
        run(work, *command(music, full_cache, *more))
        compare(full_cache, reference)
    finally:
        subprocess.run(["umount", place], check=False)
    return {
        "disk_full": "disk full: " + said.rpartition("disk full: ")[2].strip().replace(str(place), "…"),
        "parts_kept_at_the_full_disk": parts,
        "rows_compared_after_more_space": rows,
        "rows_that_differ": 0,
        "read_only": "refused with one line, table untouched",
        "cache_on_a_full_disk": "the same table",
        "other_file_system": "table and run folder were on another file system than audio and cache",
    }


def cache(work: Path, size: Size) -> dict[str, Any]:
    """Damage and delete the cache while a run uses it."""
    music = write_tracks(work / "music", size.kill_tracks, seconds=3.0)
    reference = uninterrupted(work, music, size.kill_families)
    place = work / "bad cache"
    rng = random.Random(2)
    arguments = ("--models", size.kill_families, "--jobs", "2", "--cache", str(place))
    fresh(work / "cache.parquet")
    run(work, *command(music, work / "cache.parquet", *arguments))
    entries = sorted(place.rglob("*.npz"))
    for path in entries[::2]:
        content = bytearray(path.read_bytes())
        content[rng.randrange(len(content))] ^= 0xFF
        path.write_bytes(content)
    fresh(work / "cache.parquet")
    deleted = 0
    with started(work, *command(music, work / "cache.parquet", *arguments)) as process:
        while process.poll() is None:
            if finished_parts(work / "cache.parquet") > size.kill_tracks // 3 and not deleted:
                shutil.rmtree(place, ignore_errors=True)
                deleted = 1
            time.sleep(0.01)
    if process.returncode:
        raise Broken(f"exit status {process.returncode}: {(work / 'stderr.txt').read_text()}")
    rows = compare(work / "cache.parquet", reference)
    return {"entries_damaged": len(entries[::2]), "deleted_mid_run": deleted, "rows_compared": rows, "rows_that_differ": 0}


def clock(work: Path, size: Size) -> dict[str, Any]:
    """Kill a run, set the clock of the next one back by a day, and go on."""
    music = write_tracks(work / "music", size.kill_tracks, seconds=3.0)
    reference = uninterrupted(work, music, size.kill_families)
    out = work / "clock.parquet"
    fresh(out)
    arguments = command(music, out, "--models", size.kill_families, "--jobs", "2")
    with started(work, *arguments) as process:
        while process.poll() is None and finished_parts(out) < size.kill_tracks // 3:
            time.sleep(0.01)
    back = "import sys, time; now = time.time; time.time = lambda: now() - 86400; from annotate.cli import main; main()"
    run(work, sys.executable, "-c", back, *arguments[1:])
    return {"set_back_s": 86400, "rows_compared": compare(out, reference), "rows_that_differ": 0}


def two(work: Path, size: Size) -> dict[str, Any]:
    """Two runs on one table: the second is told who is there; when the first was killed, its lock is free."""
    music = write_tracks(work / "music", size.kill_tracks, seconds=3.0)
    reference = uninterrupted(work, music, size.kill_families)
    out = work / "two.parquet"
    fresh(out)
    arguments = command(music, out, "--models", size.kill_families, "--jobs", "2")
    with started(work, *arguments) as process:
        while process.poll() is None and not (out.with_name(f"{out.name}.run") / "lock.holder").exists():
            time.sleep(0.005)
        said = run(work, *arguments, expect=(1,)).stderr
        if f"pid {process.pid} " not in said:
            raise Broken(f"the second run does not say who is there: {said}")
    run(work, *arguments)
    last = said.replace(str(work), "…").strip().splitlines()[-1]
    said = re.sub(r"pid \d+ on \S+ since .*?;", "pid … on … since …;", last)
    return {"second_run": said, "lock_of_the_killed_run": "taken over", "rows_compared": compare(out, reference)}


EXPERIMENTS: dict[str, Callable[[Path, Size], dict[str, Any]]] = {
    "two": two,
    "clock": clock,
    "cache": cache,
    "disk": disk,
    "names": names,
    "mutants": mutants,
    "inputs": inputs,
    "workers": workers,
    "kills": kills,
    "memory": memory,
    "long": long,
}


# --- the document ---


def document(results: dict[str, Any]) -> str:
    """Write docs/reliability.md: what each experiment did and the figures it gave."""
    lines = [
        "# Reliability",
        "",
        "Written by `make faults` (`benchmarks/faults.py`) from `benchmarks/faults.json`; every figure was measured by the",
        "experiment above it, on audio that it makes itself, with the installed command.",
        "An experiment that finds a difference, a traceback or another exit status stops with an error and leaves no figures.",
        "",
    ]
    for name, experiment in EXPERIMENTS.items():
        lines += [f"## {name}", "", (experiment.__doc__ or "").strip(), ""]
        if name not in results:
            lines += [f'Not run yet: `make faults EXPERIMENTS="{name}"`.', ""]
            continue
        result = results[name]
        lines += ["| | |", "|---|---|"]
        lines += [f"| {key.replace('_', ' ')} | {cell(value)} |" for key, value in result["figures"].items()]
        lines += ["", f"{result['time_utc']}, {result['machine']}, load {result['load']} at the end.", ""]
    return "\n".join(lines)


def cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {cell(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list):
        return " ".join(str(part) for part in value)
    return str(value).replace("|", "\\|").replace("<", "&lt;")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help=f"of {', '.join(EXPERIMENTS)}; default: all that have no result yet")
    parser.add_argument("--short", action="store_true", help="few kills, few files: seconds")
    parser.add_argument("--work", type=Path, default=HERE.parent / "faults.work", help="folder for audio and tables")
    parser.add_argument("--results", type=Path, help="default: benchmarks/faults.json in the long form, none in the short one")
    parser.add_argument("--document", type=Path, help="default: docs/reliability.md in the long form, none in the short one")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.experiments if name not in EXPERIMENTS]
    if unknown:
        parser.error(f"no experiment {', '.join(unknown)}; choose from {', '.join(EXPERIMENTS)}")
    results_file = options.results or (None if options.short else RESULTS)
    document_file = options.document or (None if options.short else DOCUMENT)
    results: dict[str, Any] = {}
    if results_file is not None and results_file.exists():
        results = json.loads(results_file.read_text())
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.experiments or [name for name in EXPERIMENTS if name not in results]:
        print(f"{name}: {EXPERIMENTS[name].__doc__}", flush=True)
        figures = EXPERIMENTS[name](options.work.resolve(), SHORT if options.short else LONG)
        print(json.dumps(figures, indent=1, ensure_ascii=False), flush=True)
        results[name] = {
            "figures": figures,
            "form": "short" if options.short else "long",
            "time_utc": datetime.now(UTC).isoformat(timespec="minutes"),
            "machine": f"{len(os.sched_getaffinity(0))} cores",
            "load": round(os.getloadavg()[0], 1),
        }
        if results_file is not None:
            results_file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        if document_file is not None:
            document_file.parent.mkdir(exist_ok=True)
            document_file.write_text(document(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
