"""What test files share: a small composed corpus, caches, and the command, in this process or in one of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from annotate.demo import write_corpus

ANNOTATE = Path(sys.executable).with_name("annotate")
SET_BY_A_RUN = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "PYTHONSAFEPATH", "PYTHONPATH")


@pytest.fixture(scope="session")
def demo_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tracks of 6 s in Emotify's layout, with data.csv; not to be changed."""
    folder = tmp_path_factory.mktemp("corpus") / "demo"
    write_corpus(folder, tracks_per_genre=2, duration_s=6.0, file_format="wav")
    return folder


@pytest.fixture(scope="session")
def demo_table(demo_corpus: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table of the demo corpus with every family of the built-in bundle; not to be changed."""
    folder = tmp_path_factory.mktemp("demo table")
    command = [ANNOTATE, "run", demo_corpus, "--out", folder / "demo.parquet"]
    subprocess.run(command, check=True, env=command_environment(shared_cache), capture_output=True)
    return folder / "demo.parquet"


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache folder of tests whose point is not the cache: each track of the demo corpus is transcribed once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty cache folder of this test alone."""
    folder = tmp_path / "own cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def in_process(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run the command in this process; its worker processes stay for the next run, so that runs are cheap."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))
    environment = dict(os.environ)
    handler = signal.getsignal(signal.SIGTERM)

    def invoke(*arguments: object) -> Result:
        from annotate.cli import main

        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    yield invoke
    signal.signal(signal.SIGTERM, handler)
    for name in SET_BY_A_RUN:
        os.environ.pop(name, None)
        if name in environment:
            os.environ[name] = environment[name]


def command_environment(cache: Path, **more: str) -> dict[str, str]:
    """Environment of a process of its own: nothing of what a run in this process has set."""
    kept = {name: value for name, value in os.environ.items() if name not in SET_BY_A_RUN}
    return kept | {"XDG_CACHE_HOME": str(cache)} | more


@pytest.fixture
def start(shared_cache: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the command as a process group of its own; what still runs when the test ends is killed."""
    started: list[subprocess.Popen[str]] = []

    def popen(*arguments: object, cwd: Path | None = None, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(ANNOTATE), *(str(argument) for argument in arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=cwd,
            env=command_environment(shared_cache, **more),
            start_new_session=True,
        )
        started.append(process)
        return process

    yield popen
    for process in started:
        kill_group(process)
        process.communicate()


def kill_group(process: subprocess.Popen[str]) -> None:
    """SIGKILL a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture
def in_subprocess(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command as a process of its own and wait for its end."""

    def run(*arguments: object, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        process = start(*arguments, cwd=cwd, **more)
        out, error = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    return run


FORTY_FAMILIES = ("va", "notes")


@pytest.fixture(scope="session")
def forty_tracks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty chords of 0.6 s in the folders a/ and b/; not to be changed."""
    import numpy as np
    import soundfile

    folder = tmp_path_factory.mktemp("forty") / "forty"
    time_s = np.arange(round(0.6 * 22_050)) / 22_050
    for number in range(40):
        pitches = 220.0 * 2 ** (np.array([number, number + 4 - number % 2, number + 7]) / 12)
        path = folder / ("a" if number < 20 else "b") / f"{number + 1}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.2 * np.sin(2 * np.pi * pitches[:, None] * time_s).sum(axis=0), 22_050)
    return folder


@pytest.fixture(scope="session")
def forty_table(forty_tracks: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table of the forty tracks by one run on one machine; not to be changed."""
    from annotate.pipeline import RunOptions, run

    out = tmp_path_factory.mktemp("forty table") / "t.parquet"
    run(RunOptions(audio=(str(forty_tracks),), out=out, models=FORTY_FAMILIES, cache=shared_cache, jobs=2))
    return out
