"""`annotate run`: what it writes, what it survives, what it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import soundfile
from click.testing import Result
from conftest import kill_group

from annotate import cli
from annotate.demo import write_corpus
from annotate.store import TEMPORARY_PREFIX, RunFolder
from outputs.table import read_provenance

Invoke = Callable[..., Result]
Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., subprocess.Popen[str]]

FAST = ("--models", "va,notes")
TRACKS = [f"{genre}/{number}.wav" for genre in ("classical", "electronic", "pop", "rock") for number in (1, 2)]
PROVENANCE_OF_A_RUN = ("run_id", "time_utc", "command_line", "options", "contents_sha256")


def table_of(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path).set_index("track")


def assert_same_table(ours: Path, theirs: Path, *, tolerance: float = 1e-6, provenance: bool = True) -> None:
    """Same columns, metadata of the columns, rows in the same order and values; run id, time and command line aside."""
    a, b = pq.read_table(ours), pq.read_table(theirs)
    assert [(field.name, field.type, field.metadata) for field in a.schema] == [
        (field.name, field.type, field.metadata) for field in b.schema
    ]
    assert a["track"].to_pylist() == b["track"].to_pylist()
    pd.testing.assert_frame_equal(a.to_pandas(), b.to_pandas(), rtol=tolerance, atol=tolerance)
    if provenance:
        mine, other = ({k: v for k, v in read_provenance(p).items() if k not in PROVENANCE_OF_A_RUN} for p in (ours, theirs))
        assert mine == other


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def parts(table: Path) -> list[Path]:
    return list(table.with_name(f"{table.name}.run").glob("parts/?/?/[0-9a-f]*.json"))  # finished ones: others begin with a dot


def unknown_copy(source: Path, path: Path) -> Path:
    """Copy a sound file with bytes behind its end that no other has, so that the cache of no earlier test knows it."""
    path.write_bytes(source.read_bytes() + uuid.uuid4().bytes)
    return path


def tone(path: str | bytes | Path, *, seconds: float = 1.0, rate: int = 22_050, pitch_hz: float = 440.0) -> None:
    t = np.arange(round(seconds * rate)) / rate
    with open(path, "wb") as file:
        soundfile.write(file, 0.4 * np.sin(2 * np.pi * pitch_hz * t).astype(np.float32), rate, format="WAV")


@pytest.fixture(scope="session")
def uninterrupted(demo_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table of an uninterrupted run over the demo corpus, by a process of its own, families va and notes."""
    from conftest import ANNOTATE, command_environment

    folder = tmp_path_factory.mktemp("uninterrupted")
    subprocess.run(
        [ANNOTATE, "run", demo_corpus, "--out", folder / "t.parquet", *FAST, "--no-cache"],
        check=True,
        env=command_environment(folder / "cache"),
        capture_output=True,
    )
    return folder / "t.parquet"


@pytest.fixture
def corpus(demo_corpus: Path, tmp_path: Path) -> Path:
    """Copy of the demo corpus that a test may change."""
    return Path(shutil.copytree(demo_corpus, tmp_path / "corpus"))


# --- the table ---


def test_one_row_a_track_in_scan_order_with_identity_and_ratings(uninterrupted: Path, demo_corpus: Path) -> None:
    table = pd.read_parquet(uninterrupted)
    assert table["track"].tolist() == TRACKS
    assert table["status"].tolist() == ["ok"] * 8
    assert table["error"].isna().all()
    assert set(table["corpus"]) == {"emotify"}
    assert table["track_id"].tolist() == [1, 2, 201, 202, 301, 302, 101, 102]  # classical rock electronic pop, 100 each
    assert table["track_key"].tolist() == [str(number) for number in table["track_id"]]
    assert table["group"].tolist() == [track.partition("/")[0] for track in TRACKS]
    assert table["artist"].str.startswith("Demo").all()
    assert table["album"].str.startswith("Synthetic").all()
    assert table["title"].str.contains("No. ", regex=False).all()
    assert table["duration_s"].tolist() == pytest.approx([6.0] * 8)
    assert set(table["sample_rate_hz"]) == {44_100}
    assert table["audio_sha256"].str.fullmatch("[0-9a-f]{64}").all()
    raw = pd.read_csv(demo_corpus / "data.csv", skipinitialspace=True)
    shares = raw.groupby("track id")["tension"].mean()
    assert table["rated_tension"].tolist() == pytest.approx(shares.loc[table["track_id"]].tolist())
    assert table["rated_n"].tolist() == raw.groupby("track id").size().loc[table["track_id"]].tolist()
    assert table["va_valence_mean"].notna().all()
    assert not table.columns.str.startswith(("midlevel_", "film_", "genre")).any()


def test_provenance_says_what_was_run(uninterrupted: Path) -> None:
    provenance = read_provenance(uninterrupted)
    assert provenance["families"] == ["va", "notes"]
    assert provenance["device"] == "cpu"
    assert provenance["engine"] == "onnx"
    assert "--no-cache" in provenance["command_line"]
    assert re.fullmatch("[0-9a-f]{32}", provenance["run_id"])
    assert pq.read_schema(uninterrupted).metadata[b"pandas"]


def test_second_run_has_nothing_to_do(in_process: Invoke, demo_corpus: Path, uninterrupted: Path) -> None:
    before = uninterrupted.read_bytes()
    result = in_process("run", demo_corpus, "--out", uninterrupted, *FAST)
    assert result.exit_code == 0
    assert "nothing to do" in result.stderr
    assert uninterrupted.read_bytes() == before


def test_all_families_without_tensorflow(in_subprocess: Run, tmp_path: Path, sabotage: Path) -> None:
    """The full default run, on 25 s and 6 s: no process of it imports TensorFlow or Keras."""
    corpus = two_tracks(tmp_path / "two")
    done = in_subprocess("run", corpus, "--out", tmp_path / "t.parquet", "--windows", tmp_path / "w.parquet", "--device", "cpu",
                         PYTHONPATH=str(sabotage), ANNOTATE_TEST_POISON="everywhere")  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    table, windows = table_of(tmp_path / "t.parquet"), pd.read_parquet(tmp_path / "w.parquet")
    assert table.index.tolist() == ["a.wav", "b.wav"]
    # 25 s and 6 s, back to back; a remainder of half a window or more is kept, as is an only one
    expected = {"midlevel": (2, 1), "joint": (3, 1), "emotion": (8, 2), "crnn": (5, 1)}
    counts = windows.groupby(["family", "track"]).size()
    assert {family: tuple(counts[family]) for family in expected} == expected
    assert windows.groupby(["track", "family"])["window"].apply(lambda n: n.tolist() == list(range(len(n)))).all()
    seconds = {"midlevel": 15.0, "joint": 10.0, "emotion": 3.0, "crnn": 5.0}
    assert windows["start_s"].tolist() == pytest.approx((windows["window"] * windows["family"].map(seconds)).tolist())
    # the track's value is the mean of its windows; a window row holds its own network's columns and no others
    values = [name for name in windows.columns if name in table.columns and pd.api.types.is_float_dtype(windows[name])]
    values = [name for name in values if name != "genre_p"]
    assert len(values) >= 7 + 7 + 8 + 7 + 9 + 3
    pooled = windows.groupby("track")[values].mean()
    pd.testing.assert_frame_equal(pooled, table.loc[pooled.index, values], check_names=False, rtol=1e-5, atol=1e-6)
    for _, rows in windows.groupby("family"):
        held = rows[values].notna().all()
        assert held.any()
        assert (held | rows[values].isna().all()).all()
    # spread over the windows: null for one window
    spread = windows[windows["family"] == "midlevel"].groupby("track")["midlevel_dissonance"].std()
    assert table.loc["a.wav", "midlevel_dissonance_sd"] == pytest.approx(spread["a.wav"], rel=1e-4)
    assert pd.isna(table.loc["b.wav", "midlevel_dissonance_sd"])
    labels = table.loc["a.wav", [name for name in table.columns if name.endswith("_label")]]
    assert len(labels) == 7 + 9
    assert labels.notna().all()
    ranks = table[["genre_p", "genre_2_p", "genre_3_p"]].to_numpy()
    assert (np.diff(ranks, axis=1) <= 0).all()
    assert "shorter than one window" in table.loc["b.wav", "warning"]
    assert pd.isna(table.loc["a.wav", "warning"])


def two_tracks(folder: Path) -> Path:
    """A track of 25 s and one of 6 s."""
    scratch = folder.with_name("scratch")
    write_corpus(scratch, tracks_per_genre=1, duration_s=25.0, file_format="wav")
    folder.mkdir()
    (scratch / "pop" / "1.wav").rename(folder / "a.wav")
    samples, rate = soundfile.read(scratch / "rock" / "1.wav")
    soundfile.write(folder / "b.wav", samples[: 6 * rate], rate)
    return folder


def test_batch_size_changes_nothing(in_process: Invoke, tmp_path: Path) -> None:
    corpus = two_tracks(tmp_path / "two")
    for size in (1, 3, 16):
        result = in_process("run", corpus, "--out", tmp_path / f"{size}.parquet", "--models", "joint", "--batch-size", size)
        assert result.exit_code == 0
    for size in (3, 16):
        assert_same_table(tmp_path / f"{size}.parquet", tmp_path / "1.parquet", tolerance=1e-5)


def test_windows_and_midi_asked_for_later(in_process: Invoke, corpus: Path, tmp_path: Path) -> None:
    """A finished run that lacks what is now wanted computes it, once."""
    out, midi = tmp_path / "t.parquet", tmp_path / "midi"
    arguments = ("run", corpus / "pop", corpus / "rock", "--out", out, "--models", "crnn")
    assert in_process(*arguments).exit_code == 0
    before = table_of(out)
    windows = tmp_path / "w.parquet"
    for _ in range(2):
        result = in_process(*arguments, "--windows", windows, "--midi", midi)
        assert result.exit_code == 0
        assert len(pd.read_parquet(windows)) == 4
        assert sorted(path.relative_to(midi).as_posix() for path in midi.rglob("*") if path.is_file()) == [
            "pop/1.wav.mid", "pop/2.wav.mid", "rock/1.wav.mid", "rock/2.wav.mid",
        ]  # fmt: skip
    assert "nothing to do" in result.stderr
    assert "tracks to annotate" not in result.stderr
    assert "midi_n_notes" not in table_of(out)
    pd.testing.assert_frame_equal(table_of(out), before)


def test_midi_holds_the_notes_that_were_counted(in_process: Invoke, demo_corpus: Path, tmp_path: Path) -> None:
    import pretty_midi

    out, midi = tmp_path / "t.parquet", tmp_path / "midi"
    assert in_process("run", demo_corpus, "--out", out, *FAST, "--midi", midi).exit_code == 0
    for track, row in table_of(out).iterrows():
        written = pretty_midi.PrettyMIDI(str(midi / f"{track}.mid"))
        assert sum(len(instrument.notes) for instrument in written.instruments) == row["midi_n_notes"]


def test_windows_table_is_made_again_when_tracks_change(in_process: Invoke, corpus: Path, tmp_path: Path) -> None:
    arguments = ("run", corpus / "pop", "--out", tmp_path / "t.parquet", "--models", "crnn", "--windows", tmp_path / "w.parquet")
    assert in_process(*arguments).exit_code == 0
    (corpus / "pop" / "2.wav").unlink()
    assert in_process(*arguments[:6]).exit_code == 0  # without --windows: it is out of date from here on
    assert in_process(*arguments).exit_code == 0
    assert pd.read_parquet(tmp_path / "w.parquet")["track"].tolist() == ["1.wav"]


# --- the law: what was done is kept ---


@pytest.mark.parametrize("finished", [0, 1, 5])
def test_killed_and_started_again(
    start: Start, in_process: Invoke, demo_corpus: Path, uninterrupted: Path, tmp_path: Path, finished: int
) -> None:
    out = tmp_path / "t.parquet"
    process = start("run", demo_corpus, "--out", out, *FAST, "--jobs", 1)
    wait_for(lambda: (tmp_path / "t.parquet.run/run.json").exists() and len(parts(out)) >= finished, process)
    kill_group(process)
    process.wait()
    assert not out.exists()
    left = len(parts(out))
    assert left >= finished
    result = in_process("run", demo_corpus, "--out", out, *FAST)
    assert result.exit_code == 0
    assert f"{8 - left} of 8 tracks to annotate" in result.stderr or left == 8
    assert_same_table(out, uninterrupted)
    assert not list(tmp_path.rglob(".annotate-tmp-*"))


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], *, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_any_part_of_the_work_may_be_done_before(
    in_process: Invoke, demo_corpus: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Some tracks by --limit, a part lost, a part broken, a left-over of a killed writer: the table is the same."""
    out = tmp_path / "t.parquet"
    for expected in (3, 6):
        result = in_process("run", demo_corpus, "--out", out, *FAST, "--limit", 3)
        assert result.exit_code == 0
        assert len(pd.read_parquet(out)) == expected == len(parts(out))
    first, second, *_ = sorted(parts(out))
    first.unlink()
    second.write_bytes(second.read_bytes()[:40])
    (out.with_name("t.parquet.run") / "started" / "77.json").write_text('{"track": "pop/1')
    result = in_process("run", demo_corpus, "--out", out, *FAST)
    assert result.exit_code == 0
    assert "4 of 8 tracks to annotate" in result.stderr
    assert_same_table(out, uninterrupted)


def test_workers_end_with_the_process_that_started_them(start: Start, corpus: Path, tmp_path: Path, sabotage: Path) -> None:
    """Killed alone, as the kernel does when memory runs out, a run leaves no process: one hangs here, one has no work."""
    out = tmp_path / "t.parquet"
    unknown_copy(corpus / "rock" / "1.wav", corpus / "rock" / "hang.wav")
    process = start("run", corpus, "--out", out, *FAST, "--jobs", 2, PYTHONPATH=str(sabotage))
    wait_for(lambda: len(parts(out)) >= 8, process)
    process.kill()
    process.wait()
    wait_until_gone(process.pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted(
    start: Start, in_process: Invoke, uninterrupted: Path, corpus: Path, tmp_path: Path, sabotage: Path, number: int
) -> None:
    """Exit 130 with one line, soon, with no process left; SIGINT goes to the whole group, as from a terminal."""
    out = tmp_path / "t.parquet"
    slow = unknown_copy(corpus / "rock" / "1.wav", corpus / "rock" / "hang.wav")
    process = start("run", corpus, "--out", out, *FAST, "--jobs", 1, PYTHONPATH=str(sabotage))
    wait_for(lambda: len(parts(out)) >= 8, process)
    time.sleep(0.5)
    started = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert time.monotonic() - started < 20
    assert "\nannotate: interrupted; run the same command again to go on\n" in error
    assert "Traceback" not in error
    assert not out.exists()
    wait_until_gone(process.pid)
    slow.unlink()
    assert in_process("run", corpus, "--out", out, *FAST).exit_code == 0
    assert_same_table(out, uninterrupted, provenance=False)


@pytest.fixture
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For PYTHONPATH: the process makes the file that ANNOTATE_TEST_MOMENT names at that moment, and stops for good."""
    folder = tmp_path_factory.mktemp("awkward")
    (folder / "sitecustomize.py").write_text("""
import hashlib, importlib.abc, importlib.util, os, sys, time

MOMENT = os.environ.get("ANNOTATE_TEST_MOMENT", "")
IS_WORKER = any("loky" in word for word in sys.orig_argv)


def reach():
    open(os.path.join(os.path.dirname(__file__), MOMENT), "w").close()


def native():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # an hour or so in which no handler runs


def stop(*_, **__):
    reach()
    native() if MOMENT == "native table" else time.sleep(3600)


def patch(module):
    if module.__name__ == "annotate.worker" and MOMENT == "long":
        module.LONG_S, module.LONG_BYTES = 0.1, 1

        alone = module.Watch.alone

        def watched(self, track):
            reach()
            return alone(self, track)

        module.Watch.alone = watched
    if module.__name__ == "annotate.targets" and MOMENT.endswith("table"):
        module.write_table = stop
    if module.__name__ == "annotate.interrupts" and "ANNOTATE_TEST_UNWIND_S" in os.environ:
        module.UNWIND_S = float(os.environ["ANNOTATE_TEST_UNWIND_S"])
    if module.__name__ == "annotate.corpora" and MOMENT == "scan" and not IS_WORKER:
        module.scan = stop


class Awkward(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in ("annotate.worker", "annotate.targets", "annotate.corpora", "annotate.interrupts"):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (execute(module), patch(module))
        return spec


sys.meta_path.insert(0, Awkward())
if MOMENT == "workers start" and IS_WORKER:
    reach()
    time.sleep(3600)
""")
    return folder


@pytest.mark.parametrize("moment", ["scan", "workers start", "long", "table", "native table"])
def test_interrupted_at_an_awkward_moment(
    start: Start, in_process: Invoke, uninterrupted: Path, demo_corpus: Path, tmp_path: Path, awkward: Path, moment: str
) -> None:
    """It ends by itself wherever it stands, even in native code; nothing that was done is lost, no process is left."""
    import filelock

    from annotate.store import host

    out = tmp_path / "t.parquet"
    marks = tmp_path / "t.parquet.run" / "started"
    marks.mkdir(parents=True)
    with filelock.FileLock(marks / f"long-{host()}.lock"):  # another process has a long file in work
        process = start(
            "run", demo_corpus, "--out", out, *FAST, "--jobs", 2, PYTHONPATH=str(awkward), ANNOTATE_TEST_MOMENT=moment
        )
        wait_for(lambda: (awkward / moment).exists(), process)
        done = len(parts(out))
        process.send_signal(signal.SIGTERM)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == 130
        assert error.splitlines()[-1] == "annotate: interrupted; run the same command again to go on"
        assert "Traceback" not in error
        wait_until_gone(process.pid)
    assert not out.exists()
    assert len(parts(out)) >= done == (8 if moment.endswith("table") else 0)
    again = in_process("run", demo_corpus, "--out", out, *FAST)
    assert again.exit_code == 0, again.stderr
    assert_same_table(out, uninterrupted)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(TEMPORARY_PREFIX)]


def test_a_second_signal_does_not_wait(start: Start, demo_corpus: Path, tmp_path: Path, awkward: Path) -> None:
    out, stuck = tmp_path / "t.parquet", "native table"
    environment = {"PYTHONPATH": str(awkward), "ANNOTATE_TEST_MOMENT": stuck, "ANNOTATE_TEST_UNWIND_S": "3600"}
    process = start("run", demo_corpus, "--out", out, *FAST, **environment)
    wait_for(lambda: (awkward / stuck).exists(), process)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert process.returncode == 130


def wait_until_gone(group: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("worker processes outlive the run")


# --- what changes between runs ---


def test_new_changed_and_removed_files(in_process: Invoke, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    arguments = ("run", corpus, "--out", out, *FAST)
    assert in_process(*arguments).exit_code == 0
    before = table_of(out)

    tone(corpus / "pop" / "3.wav", seconds=1.0)  # new
    shutil.copy(corpus / "rock" / "2.wav", corpus / "pop" / "1.wav")  # changed
    (corpus / "rock" / "1.wav").unlink()  # removed
    result = in_process(*arguments)
    assert result.exit_code == 0
    assert "2 of 8 tracks to annotate" in result.stderr
    after = table_of(out)
    assert after.index.tolist() == [*TRACKS[:6], "pop/3.wav", "rock/2.wav"]
    assert after.loc["pop/3.wav", "duration_s"] == pytest.approx(1.0)
    assert after.loc["pop/1.wav", "audio_sha256"] == before.loc["rock/2.wav", "audio_sha256"]
    assert after.loc["pop/1.wav", "va_valence_mean"] == before.loc["rock/2.wav", "va_valence_mean"]
    same = [track for track in TRACKS if track not in ("pop/1.wav", "rock/1.wav")]
    pd.testing.assert_frame_equal(after.loc[same, before.columns], before.loc[same])

    assert in_process(*arguments, "--keep-missing").exit_code == 0
    kept = table_of(out)
    assert kept.index.tolist() == [*after.index, "rock/1.wav"]
    pd.testing.assert_frame_equal(kept.loc[["rock/1.wav"]], before.loc[["rock/1.wav"]])


def test_a_changed_file_leaves_the_table_until_it_is_redone(in_process: Invoke, corpus: Path, tmp_path: Path) -> None:
    """What a part says of bytes that are gone is in no table."""
    out = tmp_path / "t.parquet"
    assert in_process("run", corpus, "--out", out, *FAST).exit_code == 0
    for track in ("pop/1.wav", "pop/2.wav"):
        shutil.copy(corpus / "rock" / "2.wav", corpus / track)
    result = in_process("run", corpus, "--out", out, *FAST, "--limit", 1)
    assert result.exit_code == 0
    table = table_of(out)
    assert table.loc["pop/1.wav", "audio_sha256"] == table.loc["rock/2.wav", "audio_sha256"]
    assert "pop/2.wav" not in table.index


def test_verify_trusts_digests_not_times(in_process: Invoke, corpus: Path, tmp_path: Path) -> None:
    arguments = ("run", corpus, "--out", tmp_path / "t.parquet", *FAST)
    assert in_process(*arguments).exit_code == 0
    touched = corpus / "pop" / "1.wav"
    os.utime(touched, ns=(1, 1))
    assert "nothing to do" in in_process(*arguments, "--verify").stderr
    assert "1 of 8 tracks to annotate" in in_process(*arguments).stderr
    content = bytearray(touched.read_bytes())
    content[-2000] ^= 1
    touched.write_bytes(content)
    os.utime(touched, ns=(1, 1))
    assert "nothing to do" in in_process(*arguments).stderr
    assert "1 of 8 tracks to annotate" in in_process(*arguments, "--verify").stderr


def test_output_on_another_file_system(in_process: Invoke, demo_corpus: Path, uninterrupted: Path, tmp_path: Path) -> None:
    """Nothing is renamed across: temporary files lie beside what they replace."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev or not os.access(memory, os.W_OK):
        pytest.skip("no second file system")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        out = Path(folder, "t.parquet")
        assert in_process("run", demo_corpus, "--out", out, *FAST).exit_code == 0
        assert_same_table(out, uninterrupted)


def test_retry_failed(in_process: Invoke, tmp_path: Path) -> None:
    corpus = tmp_path / "c"
    corpus.mkdir()
    tone(corpus / "a.wav")
    (corpus / "b.wav").write_bytes(b"RIFF")
    arguments = ("run", corpus, "--out", tmp_path / "t.parquet", *FAST)
    assert in_process(*arguments).exit_code == 3
    again = in_process(*arguments)
    assert again.exit_code == 3
    assert "nothing to do" in again.stderr
    assert "1 of 2 tracks to annotate" in in_process(*arguments, "--retry-failed").stderr


def test_include_exclude_and_limit(in_process: Invoke, demo_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    arguments = ("run", demo_corpus, "--out", out, *FAST)
    assert in_process(*arguments, "--include", "pop/*", "--include", "rock", "--exclude", "*/2.wav").exit_code == 0
    assert pd.read_parquet(out)["track"].tolist() == ["pop/1.wav", "rock/1.wav"]
    assert in_process(*arguments, "--limit", 1).exit_code == 0
    assert pd.read_parquet(out)["track"].tolist() == ["classical/1.wav", "pop/1.wav", "rock/1.wav"]
    nothing = in_process(*arguments, "--include", "*.ogg")
    assert nothing.exit_code == 1
    assert "include" in nothing.stderr


def test_dry_run_changes_nothing(in_process: Invoke, demo_corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    dry = in_process("run", demo_corpus, "--out", out, *FAST, "--dry-run")
    assert dry.exit_code == 0
    assert "8 tracks would be annotated, 0 are done" in dry.stderr
    assert snapshot(tmp_path) == {}
    assert in_process("run", demo_corpus, "--out", out, *FAST, "--limit", 3).exit_code == 0
    before = snapshot(tmp_path)
    dry = in_process("run", demo_corpus, "--out", out, *FAST, "--dry-run", "--limit", 2)
    assert "2 tracks would be annotated, 3 are done" in dry.stderr
    assert snapshot(tmp_path) == before


def test_another_fingerprint_is_refused_until_restart(in_process: Invoke, demo_corpus: Path, tmp_path: Path) -> None:
    arguments = ("run", demo_corpus / "pop", "--out", tmp_path / "t.parquet")
    assert in_process(*arguments, "--models", "notes").exit_code == 0
    before = snapshot(tmp_path)
    refused = in_process(*arguments, "--models", "va,notes")
    assert refused.exit_code == 1
    assert "families: had notes, now va, notes" in refused.stderr
    assert "--restart" in refused.stderr
    assert snapshot(tmp_path) == before
    foretold = in_process(*arguments, "--models", "va,notes", "--dry-run")
    assert foretold.exit_code == 1
    assert "would be refused" in foretold.stderr
    assert in_process(*arguments, "--models", "va,notes", "--restart").exit_code == 0
    assert "va_valence_mean" in table_of(tmp_path / "t.parquet")


def test_two_runs_at_once(start: Start, in_process: Invoke, corpus: Path, tmp_path: Path, sabotage: Path) -> None:
    out = tmp_path / "t.parquet"
    shutil.copy(corpus / "rock" / "1.wav", corpus / "hang.wav")
    first = start("run", corpus, "--out", out, *FAST, PYTHONPATH=str(sabotage))
    wait_for(lambda: any((tmp_path / "t.parquet.run").glob("started/*.json")), first)
    second = in_process("run", corpus, "--out", out, *FAST)
    assert second.exit_code == 1
    assert f"pid {first.pid}" in second.stderr
    assert "Traceback" not in second.stderr


# --- bad input ---


def test_bad_files_are_rows_and_harm_nobody(in_process: Invoke, corpus: Path, uninterrupted: Path, tmp_path: Path) -> None:
    bad = corpus / "bad"
    bad.mkdir()
    second = np.sin(np.arange(22_050) / 10).astype(np.float32)
    (bad / "zero.wav").touch()
    (bad / "text.mp3").write_text("not audio at all\n" * 50)
    (bad / "noise.flac").write_bytes(bytes(range(256)) * 40)
    soundfile.write(bad / "silence.wav", np.zeros(44_100), 22_050)
    soundfile.write(bad / "nan.wav", np.where(np.arange(22_050) == 9_999, np.nan, second), 22_050, subtype="FLOAT")
    soundfile.write(bad / "infinite.wav", np.where(np.arange(22_050) == 9_999, np.inf, second), 22_050, subtype="FLOAT")
    soundfile.write(bad / "clip.wav", second[: 22_050 // 5], 22_050)
    soundfile.write(bad / "slow.wav", second, 4_000)
    whole = (corpus / "pop" / "1.wav").read_bytes()
    (bad / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    (bad / "header.wav").write_bytes(whole[:44])
    tone(bad / 'it\'s "quoted" & spaced.wav')
    tone(bad / "two\nlines.wav")
    tone(bad / "<script>.wav")
    tone(bad / f"{'n' * 251}.wav")
    tone(os.fsencode(bad) + b"/caf\xe9.wav")
    (bad / "fold\udce9r").mkdir()
    tone(bad / "fold\udce9r" / "x.wav")
    (bad / "loop").symlink_to(corpus, target_is_directory=True)
    (bad / "itself.wav").symlink_to(bad / "itself.wav")
    (bad / "gone.wav").symlink_to(bad / "nothing")
    (bad / "folder.wav").mkdir()
    os.mkfifo(bad / "pipe.wav")
    out = tmp_path / "t.parquet"
    result = in_process("run", corpus, "--out", out, *FAST, "--midi", tmp_path / "midi")
    assert result.exit_code == 3
    table = table_of(out)
    reasons = {
        "zero.wav": "is empty (0 bytes)",
        "text.mp3": "not audio",
        "noise.flac": "not audio|format|FLAC",
        "silence.wav": "silent",
        "nan.wav": "NaN or infinite",
        "infinite.wav": "NaN or infinite",
        "clip.wav": "0.20 s is under the minimum of 0.5 s",
        "slow.wav": "sample rate 4000 Hz is outside",
        "header.wav": "no samples",
    }
    failed = table[table["status"] == "failed"]
    assert sorted(failed.index) == sorted(f"bad/{name}" for name in reasons)
    for name, reason in reasons.items():
        assert re.search(reason if "|" in reason else re.escape(reason), failed.loc[f"bad/{name}", "error"])
        assert f"bad/{name}" in result.stderr
    assert failed["va_valence_mean"].isna().all()
    assert failed["error"].str.fullmatch(r"[^\n]+").all()
    fine = ["<script>.wav", "caf\\xe9.wav", "fold\\xe9r/x.wav", "it's \"quoted\" & spaced.wav", f"{'n' * 251}.wav",
            "truncated.wav", "two\nlines.wav"]  # fmt: skip
    assert sorted(table.index[table["status"] == "ok"]) == sorted([*TRACKS, *(f"bad/{name}" for name in fine)])
    assert table.loc["bad/truncated.wav", "warning"].startswith("truncated")
    assert table.loc["bad/truncated.wav", "va_valence_mean"] > 0
    for said in ("loops", "broken links"):
        assert said in result.stderr
    assert "two\nlines" not in result.stderr
    # the rest is what it is without them
    theirs = table_of(uninterrupted)
    pd.testing.assert_frame_equal(table.loc[TRACKS, theirs.columns], theirs)


def test_unreadable_file(in_process: Invoke, corpus: Path, tmp_path: Path) -> None:
    (corpus / "pop" / "1.wav").chmod(0)
    if os.access(corpus / "pop" / "1.wav", os.R_OK):
        pytest.skip("this user may read everything")
    assert in_process("run", corpus, "--out", tmp_path / "t.parquet", *FAST).exit_code == 3
    assert "Permission denied" in table_of(tmp_path / "t.parquet").loc["pop/1.wav", "error"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("{corpus}/absent", "--out", "{tmp}/t.parquet"), 2, "no such file or folder"),
        (("{tmp}/Music", "Data", "--out", "{tmp}/t.parquet"), 2, "quote a path that holds a space"),
        (("{tmp}/empty", "--out", "{tmp}/t.parquet"), 1, "no audio"),
        (("{corpus}", "--out", "{tmp}/absent/t.parquet"), 2, "there is no folder"),
        (("{corpus}", "--out", "{corpus}"), 1, "is a folder that holds other things"),
        (("{corpus}", "--out", "{tmp}/letter.txt"), 1, "not an annotation table"),
        (("{corpus}", "--out", "{tmp}/t.parquet", "--windows", "{tmp}/letter.txt"), 1, "not an annotation table"),
        (("{corpus}", "--out", "{tmp}/t.parquet", "--windows", "{tmp}/absent/w.parquet"), 2, "there is no folder"),
        (("{corpus}", "--out", "{tmp}/t.parquet", "--windows", "{tmp}/t.parquet"), 1, "same file"),
        (("{corpus}", "--out", "{tmp}/t.parquet", "--midi", "{tmp}/letter.txt"), 1, "not a folder"),
        (("{corpus}", "--out", "{tmp}/t.parquet", "--models", "telepathy"), 2, "no family 'telepathy'"),
        (("{corpus}", "--out", "{tmp}/t.parquet", "--models", ","), 2, "names no family"),
        (("{corpus}", "--out", "{tmp}/t.parquet", "--bundle", "{tmp}/empty"), 2, "no bundle"),
        (("{corpus}", "--out", "{tmp}/t.parquet", "--corpus", "deam"), 1, "no deam layout"),
        (("{corpus}", "--out", "{tmp}/t.parquet", "--limit", "0"), 2, "0 is not in the range"),
        (("{corpus}", "--out", "{tmp}/t.parquet", "--timeout", "nan"), 2, "nan"),
        (("{corpus}", "--out", "{tmp}/t.parquet", "--log-file", "{tmp}/absent/log"), 2, "No such file"),
    ],
)
def test_what_cannot_start_says_why_and_changes_nothing(
    in_process: Invoke, demo_corpus: Path, tmp_path: Path, arguments: Sequence[str], status: int, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "Music Data").mkdir()
    (tmp_path / "letter.txt").write_text("dear diary")
    before = snapshot(tmp_path)
    result = in_process("run", *(argument.format(corpus=demo_corpus, tmp=tmp_path) for argument in arguments))
    assert result.exit_code == status
    assert said in result.stderr
    assert snapshot(tmp_path) == before


# --- workers that die ---


@pytest.fixture
def sabotage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For PYTHONPATH: files named `kill…` kill the process that decodes them, `hang…` never end; imports can be poisoned."""
    folder = tmp_path_factory.mktemp("sabotage")
    (folder / "sitecustomize.py").write_text("""
import importlib.abc, importlib.util, os, signal, sys, time

IS_WORKER = any("loky" in word for word in sys.orig_argv)


class Sabotage(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        where = os.environ.get("ANNOTATE_TEST_POISON")
        if name in ("tensorflow", "keras") and (where == "everywhere" or where == "workers" and IS_WORKER):
            raise RuntimeError(f"{name} was imported")
        if name != "annotate.audio":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def patched(module):
            execute(module)
            plain = module.decode

            def decode(path, *, rates):
                if os.path.basename(path).startswith("kill"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if os.path.basename(path).startswith("once") and not os.path.exists(str(path) + ".killed"):
                    open(str(path) + ".killed", "w").close()
                    os.kill(os.getpid(), signal.SIGKILL)
                if os.path.basename(path).startswith("hang"):
                    time.sleep(3600)
                return plain(path, rates=rates)

            module.decode = decode

        spec.loader.exec_module = patched
        return spec


sys.meta_path.insert(0, Sabotage())
""")
    return folder


def test_a_worker_that_was_killed_costs_no_row(
    in_subprocess: Run, corpus: Path, uninterrupted: Path, tmp_path: Path, sabotage: Path
) -> None:
    """Its track is done alone, and then two workers go on with the rest."""
    for genre in ("classical", "rock"):
        unknown_copy(corpus / "rock" / "1.wav", corpus / genre / "once.wav")
    out = tmp_path / "t.parquet"
    done = in_subprocess("run", corpus, "--out", out, *FAST, "--jobs", 2, "--no-cache", PYTHONPATH=str(sabotage))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("a worker process died at") >= 2
    theirs = table_of(uninterrupted)
    pd.testing.assert_frame_equal(table_of(out).loc[TRACKS, theirs.columns], theirs)


def test_killed_and_hanging_workers_cost_one_row_each(
    in_subprocess: Run, in_process: Invoke, corpus: Path, uninterrupted: Path, tmp_path: Path, sabotage: Path
) -> None:
    for name in ("rock/kill.wav", "pop/hang.wav"):
        unknown_copy(corpus / "rock" / "1.wav", corpus / name)
    out = tmp_path / "t.parquet"
    done = in_subprocess("run", corpus, "--out", out, *FAST, "--timeout", 12, PYTHONPATH=str(sabotage))
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    table = table_of(out)
    assert table.loc["rock/kill.wav", "error"].startswith("killed its worker process twice")
    assert table.loc["pop/hang.wav", "error"] == "took longer than the time-out of 12 s"
    assert len(table) == 10
    theirs = table_of(uninterrupted)
    pd.testing.assert_frame_equal(table.loc[TRACKS, theirs.columns], theirs)
    # and once the cause is gone
    assert in_process("run", corpus, "--out", out, *FAST, "--retry-failed").exit_code == 0
    assert (table_of(out)["status"] == "ok").all()


def test_exact_agrees_with_the_graphs(
    in_subprocess: Run, corpus: Path, uninterrupted: Path, tmp_path: Path, sabotage: Path
) -> None:
    """Keras in the main process, never in a worker; a worker that dies costs one row here, too."""
    unknown_copy(corpus / "rock" / "1.wav", corpus / "rock" / "kill.wav")
    out = tmp_path / "t.parquet"
    done = in_subprocess("run", corpus, "--out", out, *FAST, "--exact", PYTHONPATH=str(sabotage), ANNOTATE_TEST_POISON="workers")
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    table, theirs = table_of(out), table_of(uninterrupted)
    assert table.loc["rock/kill.wav", "error"].startswith("killed its worker process twice")
    pd.testing.assert_frame_equal(table.loc[TRACKS, theirs.columns], theirs, rtol=1e-4, atol=1e-4)
    assert read_provenance(out)["engine"] == "keras float32"


# --- the command line ---


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]
    for name, command in cli.main.commands.items():
        found.append((name,))
        found += [(name, below) for below in getattr(command, "commands", {})]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_help(in_process: Invoke, command: tuple[str, ...]) -> None:
    result = in_process(*command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage:")


def test_every_option_of_run_is_documented() -> None:
    options = {name: parameter for parameter in cli.run.params for name in parameter.opts if name.startswith("--")}
    assert all(getattr(parameter, "help", None) for parameter in options.values())
    wanted = (
        "--out --bundle --models --corpus --windows --midi --jobs --device --exact --batch-size --cache --no-cache --limit "
        "--include --exclude --dry-run --retry-failed --keep-missing --verify --timeout --restart --log-file --log-format"
    )
    assert set(wanted.split()) <= set(options)


def test_help_imports_nothing_heavy() -> None:
    import sys

    from conftest import ANNOTATE

    seen = subprocess.run([sys.executable, "-X", "importtime", ANNOTATE, "--help"], capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in seen.stderr.splitlines()}
    assert "click" in imported
    assert imported.isdisjoint(
        {"tensorflow", "keras", "librosa", "pandas", "numpy", "scipy", "sklearn", "pyarrow", "onnxruntime"}
    )


def test_json_log(in_process: Invoke, demo_corpus: Path, tmp_path: Path) -> None:
    arguments = ("run", demo_corpus / "pop", "--out", tmp_path / "t.parquet", *FAST, "-v", "--log-format", "json")
    result = in_process(*arguments, "--log-file", tmp_path / "log")
    lines: list[dict[str, Any]] = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {line["track"] for line in lines if "track" in line} == {"1.wav", "2.wav"}
    assert all({"time", "level", "event"} <= set(line) for line in lines)
    assert result.exit_code == 0


def test_run_folder_holds_a_part_a_track(uninterrupted: Path) -> None:
    folder = RunFolder(uninterrupted.with_name("t.parquet.run"))
    assert sorted(part.track for part in folder.parts()) == TRACKS
