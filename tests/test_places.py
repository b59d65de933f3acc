"""Corpora that do not lie on this machine: HTTP and memory://, servers and mounts that are lost, packages that are missing."""

from __future__ import annotations

import functools
import http.server
import pickle
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result

from annotate.corpora import scan
from annotate.places import FetchError, PlaceError, PlaceLost, check_mount, fetched, is_url, scan_anywhere

pytest.importorskip("aiohttp")
Invoke = Callable[..., Result]
FAST = ("--models", "va,notes")


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Server:
    def __init__(self, folder: Path) -> None:
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def served(demo_corpus: Path, tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    """The demo corpus under a name with a space, on a server of this machine."""
    folder = tmp_path / "served" / "Music Data"
    shutil.copytree(demo_corpus, folder)
    server = Server(folder.parent)
    yield server, folder
    server.stop()


@pytest.fixture
def in_memory(demo_corpus: Path) -> Iterator[str]:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(f"{demo_corpus}/", "/demo/", recursive=True)
    yield "memory://demo"
    memory.rm("/demo", recursive=True)


@pytest.fixture(scope="module")
def local_table(demo_corpus: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    from annotate.pipeline import RunOptions, run

    out = tmp_path_factory.mktemp("local") / "t.parquet"
    run(RunOptions(audio=(str(demo_corpus),), out=out, models=("va", "notes"), cache=shared_cache))
    return pd.read_parquet(out)


def test_a_corpus_on_a_server_is_the_corpus(
    in_process: Invoke, served: tuple[Server, Path], local_table: pd.DataFrame, tmp_path: Path
) -> None:
    server, folder = served
    out = tmp_path / "t.parquet"
    command = ("run", f"{server.url}/Music Data/", "--out", out, *FAST)
    done = in_process(*command)
    assert done.exit_code == 0, done.stderr
    pd.testing.assert_frame_equal(pd.read_parquet(out), local_table)
    assert f"root: {server.url}/Music Data/" in in_process("info", out).stdout
    assert "nothing to do" in in_process(*command).stderr
    # one file changes, one is not there any more when its turn comes
    shutil.copy(folder / "pop" / "1.wav", folder / "pop" / "2.wav")
    found = scan_anywhere([f"{server.url}/Music Data/"])
    assert in_process(*command).exit_code == 0
    table = pd.read_parquet(out).set_index("track")
    assert table.loc["pop/2.wav", "audio_sha256"] == table.loc["pop/1.wav", "audio_sha256"]
    (folder / "rock" / "2.wav").unlink()
    with pytest.raises(FetchError, match="does not exist"), fetched(found.tracks[-1]):
        pass
    server.stop()
    with pytest.raises(PlaceLost, match=r"rock/1\.wav is out of reach .* run again to go on"), fetched(found.tracks[-2]):
        pass
    lost = in_process(*command)
    assert lost.exit_code == 1
    assert "cannot be read" in lost.stderr


def test_a_corpus_in_memory_is_the_corpus(in_process: Invoke, in_memory: str, local_table: pd.DataFrame, tmp_path: Path) -> None:
    out = tmp_path / "t.parquet"
    assert in_process("run", in_memory, "--out", out, *FAST).exit_code == 0
    pd.testing.assert_frame_equal(pd.read_parquet(out), local_table)
    assert "nothing to do" in in_process("run", in_memory, "--out", out, *FAST).stderr
    assert "layout    emotify" in in_process("corpus", in_memory).stdout


def test_identities_ids_and_ratings_are_those_of_a_local_copy(served: tuple[Server, Path], demo_corpus: Path) -> None:
    server, _ = served
    here = scan([demo_corpus])
    there = scan_anywhere([f"{server.url}/Music%20Data"])
    pd.testing.assert_frame_equal(there.ratings, here.ratings)
    for one, other in zip(there.tracks, here.tracks, strict=True):
        assert one.url is not None
        assert one.url.startswith(server.url)
        assert replace(one, path=other.path, url=None, mtime_ns=0) == replace(other, mtime_ns=0)
    some = scan_anywhere([f"{server.url}/Music%20Data/rock", f"{server.url}/Music%20Data/pop/1.wav"])
    assert [track.track for track in some.tracks] == ["pop/1.wav", "rock/1.wav", "rock/2.wav"]


@pytest.mark.parametrize(
    ("paths", "error", "said"),
    [
        (["memory://absent"], FileNotFoundError, "no such file or folder: memory://absent"),
        (["memory://demo", "/tmp"], PlaceError, "several kinds of places"),
        (["telepathy://host/music"], PlaceError, "telepathy"),
        (["http://127.0.0.1:9/music/"], PlaceError, "cannot be read"),
    ],
)
def test_places_that_cannot_be_opened(paths: list[str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        scan_anywhere(paths)


def test_a_missing_package_is_named(in_process: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
    result = in_process("run", "s3://bucket/music", "--out", tmp_path / "t.parquet")
    assert result.exit_code == 1
    assert "s3:// needs a package that is not installed" in result.stderr
    assert "s3fs" in result.stderr
    assert "extra 'remote'" in result.stderr


def test_a_lost_mount_ends_the_run_and_a_lost_file_is_a_row(
    in_process: Invoke, demo_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = Path(shutil.copytree(demo_corpus, tmp_path / "mount"))
    found = scan([mount])
    (mount / "pop" / "1.wav").unlink()
    check_mount(next(track for track in found.tracks if track.track == "pop/1.wav"))
    shutil.rmtree(mount)
    with pytest.raises(PlaceLost, match="is gone or empty: was its mount lost"):
        check_mount(found.tracks[0])
    mount.mkdir()
    with pytest.raises(PlaceLost, match="is gone or empty: was its mount lost"):
        check_mount(found.tracks[0])
    # the same in a run: nothing becomes a row
    monkeypatch.setattr("annotate.pipeline.scan_anywhere", lambda *_, **__: found)
    result = in_process("run", mount, "--out", tmp_path / "t.parquet", *FAST)
    assert result.exit_code == 1
    assert "was its mount lost" in result.stderr
    assert not (tmp_path / "t.parquet").exists()
    assert not list((tmp_path / "t.parquet.run").glob("parts/?/?/*.json"))


def test_what_is_a_url_and_that_errors_cross_processes() -> None:
    assert [is_url(text) for text in ("s3://b/x", "http://h", "C:/x", "/a//b", "Music Data/", "file:x")] == [True, True] + [
        False
    ] * 4
    assert str(pickle.loads(pickle.dumps(PlaceLost("gone")))) == "gone"
