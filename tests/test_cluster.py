"""Runs on a real Dask cluster on this machine: the same table, workers and clients that die, and clusters that are refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import FORTY_FAMILIES, command_environment, kill_group
from test_run import assert_same_table, parts

from annotate.cluster import ClusterError, Diary, Task, annotate_chunk, check_address, check_versions
from annotate.corpora import Track, scan
from annotate.store import RunFolder
from annotate.worker import Job
from models.bundle import load

pytest.importorskip("distributed")
Invoke = Callable[..., Result]
Start = Callable[..., subprocess.Popen[str]]
PATIENCE_S = 240.0

# for PYTHONPATH of scheduler and workers: 22.wav stops the first worker that decodes it, until that is killed; annotate can be
# missing; Dask can be of another version
SABOTAGE = """
import importlib.abc, importlib.util, os, sys, time

FLAG, MISSING, VERSION = (os.environ.get(f"ANNOTATE_TEST_{name}") for name in ("FLAG", "MISSING", "VERSION"))


class Sabotage(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if MISSING and name == "annotate":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        wanted = {"annotate.audio": FLAG, "distributed.versions": VERSION}
        if not wanted.get(name):
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def patched(module):
            execute(module)
            if name == "distributed.versions":
                plain_versions = module.get_package_info

                def get_package_info(packages):
                    return plain_versions(packages) | {"distributed": VERSION}

                module.get_package_info = get_package_info
                return
            plain = module.decode

            def decode(path, *, rates):
                if os.path.basename(path) == "22.wav":
                    try:
                        with open(FLAG, "x") as flag:
                            flag.write(str(os.getpid()))
                    except FileExistsError:
                        return plain(path, rates=rates)
                    time.sleep(3600)
                return plain(path, rates=rates)

            module.decode = decode

        spec.loader.exec_module = patched
        return spec


sys.meta_path.insert(0, Sabotage())
"""


class Cluster:
    """A scheduler and workers as processes of their own."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.processes: list[subprocess.Popen[bytes]] = []
        (folder / "sabotage").mkdir()
        (folder / "sabotage" / "sitecustomize.py").write_text(SABOTAGE)
        self.file = folder / "scheduler.json"

    def process(self, *arguments: object, **environment: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *(str(argument) for argument in arguments)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=command_environment(self.cache, PYTHONSAFEPATH="1", PYTHONPATH=str(self.folder / "sabotage"), **environment),
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def scheduler(self, **environment: str) -> str:
        arguments = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", self.file)
        self.process("distributed.cli.dask_scheduler", *arguments, **environment)
        until(self.file.exists, "a scheduler")
        address: str = json.loads(self.file.read_text())["address"]
        return address

    def worker(self, **environment: str) -> subprocess.Popen[bytes]:
        arguments = ("--scheduler-file", self.file, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")
        scratch = self.folder / f"scratch{len(self.processes)}"
        return self.process("distributed.cli.dask_worker", *arguments, "--local-directory", scratch, **environment)

    def kill(self) -> None:
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"no {what} in {PATIENCE_S} s"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[Cluster]:
    """A scheduler and two workers; the last test kills one of them."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), shared_cache)
    try:
        cluster.scheduler()
        for _ in range(2):
            cluster.worker(ANNOTATE_TEST_FLAG=str(cluster.folder / "stopped"))
        yield cluster
    finally:
        cluster.kill()


def test_a_worker_and_the_client_are_killed_and_the_table_is_the_single_one(
    start: Start, in_process: Invoke, cluster: Cluster, forty_tracks: Path, forty_table: Path, tmp_path: Path
) -> None:
    address = json.loads(cluster.file.read_text())["address"]
    out, flag = tmp_path / "t.parquet", cluster.folder / "stopped"
    command = ("run", forty_tracks, "--out", out, "--models", ",".join(FORTY_FAMILIES), "--scheduler", address)
    first = start(*command)
    until(lambda: flag.exists() and flag.read_text() and parts(out), "worker that stops at 22.wav while parts are there")
    kill_group(first)  # the client
    n_parts = len(parts(out))
    assert 0 < n_parts < 40
    victim = next(process for process in cluster.processes if process.pid == int(flag.read_text()))
    second = start(*command, "-v")
    until(lambda: len(parts(out)) > n_parts or second.poll() is not None, "part by the second client")
    os.killpg(victim.pid, signal.SIGKILL)
    _, said = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, said
    assert "40 of 40" not in said.splitlines()[0]  # parts of the first client were kept
    assert_same_table(out, forty_table, tolerance=0)
    # and, by the worker that is left, all forty from the start, from a folder that it does not see
    again = tmp_path / "again.parquet"
    result = in_process(*command[:3], again, *command[4:])
    assert result.exit_code == 0, result.stderr
    assert "1 workers" in result.stderr
    assert "40 of 40 tracks" in result.stderr
    assert_same_table(again, forty_table, tolerance=0)


def test_a_worker_without_the_package_is_named(in_process: Invoke, cluster: Cluster, forty_tracks: Path, tmp_path: Path) -> None:
    address = json.loads(cluster.file.read_text())["address"]
    lacking = cluster.worker(ANNOTATE_TEST_MISSING="1")
    log = cluster.folder / f"{len(cluster.processes) - 1}.log"
    until(lambda: "Registered to" in log.read_text(), "third worker")
    try:
        result = in_process("run", forty_tracks, "--out", tmp_path / "t.parquet", "--scheduler", address)
    finally:
        kill_group(lacking)  # type: ignore[arg-type]
    assert result.exit_code == 1
    assert "lacks the package 'annotate': install annotate there" in result.stderr
    assert not (tmp_path / "t.parquet").exists()


def test_a_scheduler_of_another_version_is_refused(
    in_process: Invoke, shared_cache: Path, forty_tracks: Path, tmp_path: Path
) -> None:
    (tmp_path / "cluster").mkdir()
    other = Cluster(tmp_path / "cluster", shared_cache)
    try:
        address = other.scheduler(ANNOTATE_TEST_VERSION="2020.1.0")
        result = in_process("run", forty_tracks, "--out", tmp_path / "t.parquet", "--scheduler", address)
    finally:
        other.kill()
    assert result.exit_code == 1
    assert f"the scheduler at {address} is of another version (distributed 2020.1.0, here" in result.stderr


def test_no_scheduler_is_one_line(in_process: Invoke, forty_tracks: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = in_process("run", forty_tracks, "--out", tmp_path / "t.parquet", "--scheduler", f"tcp://127.0.0.1:{port}")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"annotate: no scheduler at tcp://127.0.0.1:{port} within 5 s")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("address", ["localhost", "localhost:8786", "tcp://localhost", "http://localhost:8786", ""])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ClusterError, match="must be tcp://HOST:PORT"):
        check_address(address)


@pytest.mark.parametrize("option", [("--exact",), ("--device", "gpu")])
def test_options_that_do_not_go_together(in_process: Invoke, forty_tracks: Path, tmp_path: Path, option: tuple[str, ...]) -> None:
    result = in_process("run", forty_tracks, "--out", tmp_path / "t.parquet", "--scheduler", "tcp://localhost:1", *option)
    assert result.exit_code == 1
    assert "leave out --exact and --device gpu" in result.stderr


def test_another_version_of_a_worker_is_named() -> None:
    packages = {"dask": "1", "distributed": "1", "cloudpickle": "1", "msgpack": "1"}
    held: dict[str, Any] = {"packages": packages, "host": {"python": f"{sys.version_info[0]}.{sys.version_info[1]}.0.final.0"}}
    check_versions({"client": held, "scheduler": held, "workers": {"tcp://a:1": held}}, "tcp://s:1")
    other = {**held, "packages": packages | {"dask": "2"}}
    with pytest.raises(ClusterError, match=r"worker tcp://a:1 is of another version \(dask 2, here 1\)"):
        check_versions({"client": held, "scheduler": held, "workers": {"tcp://a:1": other}}, "tcp://s:1")
    with pytest.raises(ClusterError, match=r"the scheduler at tcp://s:1 .*Python 3\.9"):
        check_versions({"client": held, "scheduler": {**held, "host": {"python": "3.9.1"}}}, "tcp://s:1")


# a worker's part of it


@pytest.fixture
def task(tmp_path: Path, shared_cache: Path) -> Task:
    bundle = load("default")
    job = Job(
        bundle=str(bundle.folder),
        families=FORTY_FAMILIES,
        run_folder=tmp_path / "t.parquet.run",
        cache=shared_cache,
        cache_bytes=2**30,
        midi=None,
        windows=False,
        timeout_s=60.0,
        batch_size=None,
    )
    return Task(job, "0123456789abcdef", bundle.name, bundle.digest, own_cache=False, first=None)


@pytest.fixture
def three(forty_tracks: Path) -> list[Track]:
    return list(scan([forty_tracks]).tracks[:3])


def test_without_the_run_folder_a_worker_hands_its_parts_back(
    task: Task, three: list[Track], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    outcome = annotate_chunk(three, task)
    assert [done.track for done in outcome.done] == [part.track for part in outcome.parts] == ["a/1.wav", "a/2.wav", "a/3.wav"]
    assert not task.job.run_folder.exists()
    token = task.job.run_folder / "started-on-cluster" / f"{task.run_id}.token"
    token.parent.mkdir(parents=True)
    token.touch()
    outcome = annotate_chunk(three, task)
    assert outcome.parts == ()
    assert len(list(RunFolder(task.job.run_folder).parts())) == 3
    assert list(token.parent.iterdir()) == [token]  # the diary is closed


def test_a_track_that_kills_twice_is_a_failed_row_and_the_rest_is_done_once(
    task: Task, three: list[Track], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"annotate-{task.run_id}" / "started-on-cluster"
    worked: list[str] = []

    def process(tracks: list[Track], job: Job) -> list[Any]:
        from annotate import worker

        worked.extend(track.track for track in tracks)
        if tracks[0].track == "a/2.wav":
            raise KeyboardInterrupt  # the end of this process
        return worker.process(tracks, job)

    monkeypatch.setattr("annotate.cluster.process", process)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            annotate_chunk(three, task)
    outcome = annotate_chunk(three, task)
    assert {done.track: done.status for done in outcome.done} == {"a/1.wav": "ok", "a/2.wav": "failed", "a/3.wav": "ok"}
    assert next(done.error for done in outcome.done if done.status == "failed") == (
        "killed its worker process 2 times: out of memory, or a crash in native code"
    )
    assert worked == ["a/1.wav", "a/2.wav", "a/3.wav", "a/2.wav"]  # the suspect waits until the others are done
    assert not list(folder.iterdir())


def test_a_chunk_at_which_workers_keep_dying_goes_back_to_the_client(
    task: Task, three: list[Track], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def dies(tracks: list[Track], job: Job) -> list[Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr("annotate.cluster.process", dies)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            annotate_chunk(three, task)
    outcome = annotate_chunk(three, task)
    assert [track.track for track in outcome.left] == ["a/1.wav", "a/2.wav", "a/3.wav"]
    assert not outcome.gave_up


def test_a_diary_tells_a_track_that_ran_into_the_time_out(
    tmp_path: Path, three: list[Track], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr("annotate.cluster.time.time", lambda: now)
    Diary.read(tmp_path, three, 60.0).begin("a/1.wav")
    now += 65.0
    assert Diary.read(tmp_path, three, 60.0).hung == {"a/1.wav"}


def test_a_bundle_that_a_worker_lacks_is_said(
    task: Task, three: list[Track], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ClusterError, match=r"has no bundle 'default' with the digest 00000000"):
        annotate_chunk(three, replace(task, bundle_digest="0" * 64))
    elsewhere = Path(shutil.copytree(task.job.bundle, tmp_path / "b" / Path(task.job.bundle).name))
    moved = replace(task, job=replace(task.job, bundle=str(elsewhere.with_name("gone") / elsewhere.name)))
    assert len(annotate_chunk(three, moved).done) == 3  # the built-in one of the same name and digest
