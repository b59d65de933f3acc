"""What a night brings: files that vanish, disks that fill up, clocks that are set back, files of an hour, killed runs."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import Result

from annotate import audio, worker
from annotate.audio import AudioError, decode
from annotate.console import JsonLines, set_up_logging
from annotate.corpora import Track, scan
from annotate.store import StoreError
from annotate.worker import Job, Watch, is_long, process
from models.bundle import Family

Invoke = Callable[..., Result]

NOTES = ("--models", "notes")


def tone(path: Path, seconds: float = 1.0, rate: int = 8_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.sin(np.arange(round(seconds * rate)) / 3)
    soundfile.write(path, samples, rate)
    return path


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Notes alone, no cache, parts into an empty run folder."""
    from models.bundle import find

    (tmp_path / "run" / "parts").mkdir(parents=True)
    return Job(
        bundle=str(find("default")),
        families=("notes",),
        run_folder=tmp_path / "run",
        cache=None,
        cache_bytes=1,
        midi=None,
        windows=False,
        timeout_s=600.0,
        batch_size=None,
    )


def tracks_of(folder: Path) -> list[Track]:
    return list(scan([folder]).tracks)


# --- files that do not hold still ---


@pytest.mark.parametrize(
    ("meddle", "said"),
    [
        (lambda path: path.unlink(), "vanished while it was being read"),
        (lambda path: tone(path, 2.0), "was changed while it was being read"),
        (lambda path: os.truncate(path, 4_000), "was changed while it was being read"),
    ],
    ids=["vanishes", "is replaced", "is cut"],
)
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, meddle: Callable[[Path], object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tone(tmp_path / "a.wav")
    digest = audio._digest

    def digest_then_meddle(name: bytes) -> tuple[str, bytes]:
        result = digest(name)
        meddle(path)
        return result

    monkeypatch.setattr(audio, "_digest", digest_then_meddle)
    with pytest.raises(AudioError, match=said):
        decode(path, rates=[8_000])


def test_a_file_that_vanishes_after_the_scan_is_one_row(tmp_path: Path, job: Job) -> None:
    for name in ("a.wav", "b.wav"):
        tone(tmp_path / "music" / name)
    tracks = tracks_of(tmp_path / "music")
    (tmp_path / "music" / "a.wav").unlink()
    gone, fine = process(tracks, job)
    assert (gone.track, gone.status, gone.error) == ("a.wav", "failed", "does not exist")
    assert (fine.track, fine.status) == ("b.wav", "ok")


# --- long files ---


def test_a_long_file_is_in_work_alone(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process of the machine has a long file in work, the next one waits, and its time-out does not run."""
    import filelock

    monkeypatch.setattr(worker, "LONG_S", 1.5)
    monkeypatch.setattr(worker, "LONG_BYTES", 1_000)
    for name, seconds in (("a.wav", 1.0), ("b.wav", 2.0), ("c.wav", 1.0)):
        tone(tmp_path / "music" / name, seconds)
    tracks = tracks_of(tmp_path / "music")
    assert [is_long(track) for track in tracks] == [False, True, False]
    groups: list[list[str]] = []
    infer = worker._infer

    def spy(prepared: list[worker.Prepared], job: Job, watch: Watch) -> list[worker.Done]:
        if prepared:
            groups.append([one.track.track for one in prepared])
        lock = filelock.FileLock(job.run_folder / "started" / f"long-{worker.host()}.lock", thread_local=False)
        if [one.track.track for one in prepared] == ["b.wav"]:
            with pytest.raises(filelock.Timeout):
                lock.acquire(blocking=False)
        else:
            with lock.acquire(blocking=False):
                pass
        return infer(prepared, job, watch)

    monkeypatch.setattr(worker, "_infer", spy)
    assert [one.status for one in process(tracks, job)] == ["ok"] * 3
    assert groups == [["a.wav"], ["b.wav"], ["c.wav"]]


def test_many_files_below_the_bound_are_not_held_together(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "LONG_S", 1.5)
    for name in "abc":
        tone(tmp_path / "music" / f"{name}.wav")
    sizes: list[int] = []
    infer = worker._infer
    monkeypatch.setattr(
        worker, "_infer", lambda prepared, job, watch: (sizes.append(len(prepared)), infer(prepared, job, watch))[1]
    )
    assert len(process(tracks_of(tmp_path / "music"), job)) == 3
    assert sizes == [2, 1]


def test_signals_that_no_network_to_come_reads_are_let_go(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The highest rate goes first; each network still has its own."""
    from models import inference

    tone(tmp_path / "music" / "a.wav", 16.0, 44_100)
    held: list[tuple[int, list[int]]] = []
    windows_of = inference.windows_of

    def spy(family: Family, signals: dict[int, np.ndarray]) -> object:
        held.append((inference.spec_of(family).sample_rate, sorted(signals)))
        return windows_of(family, signals)

    monkeypatch.setattr(inference, "windows_of", spy)
    (done,) = process(
        tracks_of(tmp_path / "music"), replace(job, families=("joint", "emotion", "crnn", "descriptors", "best", "notes"))
    )
    assert done.status == "ok"
    assert held == [
        (44_100, [16_000, 22_050, 44_100]), (22_050, [16_000, 22_050]), (22_050, [16_000, 22_050]), (16_000, [16_000]),
    ]  # fmt: skip


# --- clocks ---


def test_a_clock_that_is_set_back_does_not_touch_the_time_out(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks of workers hold the monotonic clock, which the main process compares with its own."""
    track = Track(Path("a.wav"), "a.wav", "folder", "a.wav", None, None, 1, 1)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    before = time.monotonic()
    with Watch(job) as watch:
        watch.now(track)
        mark = json.loads(watch.path.read_text())
    assert before <= mark["since"] <= time.monotonic()


# --- disks ---


@pytest.mark.parametrize(("number", "cause"), [(errno.ENOSPC, "disk full"), (errno.EROFS, "read-only file system")])
def test_a_mark_that_cannot_be_written_ends_the_run_clearly(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch, number: int, cause: str
) -> None:
    """Not a failed row a track: the disk, not the track, is at fault."""
    tone(tmp_path / "music" / "a.wav")
    write_text = Path.write_text

    def refuse(path: Path, *arguments: object, **more: object) -> int:
        if "started" in path.parts:
            raise OSError(number, os.strerror(number), str(path))
        return write_text(path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(StoreError, match=rf"{cause}: .*what was done is kept in .*run;"):
        process(tracks_of(tmp_path / "music"), job)
    assert not list((tmp_path / "run" / "parts").rglob("*.json"))


# --- logs ---


def test_the_log_for_machines(in_process: Invoke, demo_corpus: Path, tmp_path: Path) -> None:
    """Every line an object; track and seconds where there are any; a summary with all counts; what ended a run is in the log."""
    music = Path(shutil.copytree(demo_corpus / "pop", tmp_path / "music"))
    for name in ("a.wav", "b.wav"):
        (music / name).write_bytes(b"RIFF")
    soundfile.write(music / "c\nd.wav", np.zeros(8_000), 8_000)
    arguments = ("run", music, "--out", tmp_path / "t.parquet", *NOTES, "-v", "--log-format", "json")
    assert in_process(*arguments, "--limit", 1).exit_code == 0
    result = in_process(*arguments, "--log-file", tmp_path / "log")
    assert result.exit_code == 3
    assert "failed: " in result.stderr
    assert not result.stderr.startswith("{")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert all({"time", "level", "event", "message"} <= set(line) for line in lines)
    by_track = {line["track"]: line for line in lines if "track" in line}
    assert {track: line["event"] for track, line in by_track.items()} == {
        "2.wav": "done", "a.wav": "failed", "b.wav": "failed", "c\nd.wav": "failed",
    }  # fmt: skip
    assert by_track["2.wav"]["seconds"] > 0
    assert by_track["2.wav"]["audio_s"] == pytest.approx(6.0)
    (summary,) = (line for line in lines if line["event"] == "summary")
    assert {name: summary[name] for name in ("done", "skipped", "failed", "device")} == {
        "done": 1, "skipped": 1, "failed": 3, "device": "cpu",
    }  # fmt: skip
    assert sorted(summary["failed_by_reason"].values()) == [1, 2]
    assert summary["failed_by_reason"]["silent"] == 1
    assert summary["audio_h"] == pytest.approx(6 / 3600)
    assert summary["real_time_factor"] == pytest.approx(6 / summary["seconds"])
    refused = in_process(*arguments, "--bundle", tmp_path / "nowhere", "--log-file", tmp_path / "log")
    assert refused.exit_code == 2
    last = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert (last["event"], last["level"]) == ("fatal", "error")
    assert "no bundle" in last["message"]
    as_json = in_process(*arguments, "--bundle", tmp_path / "nowhere")
    assert [json.loads(line)["event"] for line in as_json.stderr.splitlines()] == ["fatal"]


def test_a_log_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    set_up_logging(-1, "/dev/full", "json")
    log = logging.getLogger("annotate")
    for number in range(3):
        log.warning("line %d", number)
    said = capsys.readouterr().err
    assert said.count("--log-file /dev/full cannot be written") == 1
    assert "Traceback" not in said
    assert said.count("warning: line") == 3
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    assert JsonLines().format(log.makeRecord("annotate", logging.INFO, "", 0, "\udcff\x1b[2J\n", (), None)).isascii()


NAMES = (
    "<script>alert(1)</script>.mp3",
    "\"quoted\" & 'quoted'.mp3",
    "two\nlines.mp3",
    "\x1b[2J\x1b[31mred.mp3",
    "\r\u2028\u202ecut.mp3",
    "\udcff.mp3",
)


@pytest.mark.parametrize("name", NAMES)
def test_no_name_forges_a_line_of_a_log(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Text: one printable line a record; JSON: one ASCII object a line, from which the name comes back."""
    log = logging.getLogger("annotate")
    for form in ("text", "json"):
        path = tmp_path / form
        set_up_logging(0, str(path), form)
        log.warning("failed: %s: %s", name, f"no {name}", extra={"event": "failed", "track": name, "fields": {"reason": name}})
        lines = path.read_text(encoding="utf-8").split("\n")
        assert len(lines) == 2
        if form == "text":
            assert lines[0].startswith("warning: failed: ")
            assert lines[0].isprintable()
        else:
            assert lines[0].isascii()
            assert [json.loads(lines[0])[key] for key in ("track", "reason")] == [name, name]
    said = capsys.readouterr().err.split("\n")
    assert len(said) == 3
    assert all(line.isprintable() for line in said)
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()


def test_tracks_that_are_done_count_in_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    from annotate.progress import Progress
    from annotate.worker import Done

    track = Track(Path("d.wav"), "d.wav", "folder", "d.wav", None, None, 1, 1)
    with Progress([track], True, skipped=3) as progress:
        assert (progress.bar.n, progress.bar.total) == (3, 4)
        progress.step(Done("d.wav", "ok", None, 1.0, 1.0))
        assert progress.bar.n == 4
    assert "4/4 tracks" in capsys.readouterr().err


# --- interrupts ---


def test_an_interrupt_before_the_work_begins_is_one_line_and_130(
    in_process: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("annotate.cli.set_up_logging", interrupted)
    result = in_process("run", tmp_path, "--out", tmp_path / "t.parquet")
    assert result.exit_code == 130
    assert result.stderr == "annotate: interrupted; run the same command again to go on\n"
