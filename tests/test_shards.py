"""Shards: every track in one of them, their tables together the single one, and what is refused."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import filelock
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from conftest import FORTY_FAMILIES
from test_run import assert_same_table

from annotate.shards import Shard, ShardError, gather
from annotate.store import RunRefused
from outputs.table import read_provenance

Invoke = Callable[..., Result]


@pytest.mark.parametrize("text", ["0/2", "3/2", "-1/2", "1/0", "1", "1/2/3", "a/b", "1.0/2", ""])
def test_a_shard_is_i_of_n(text: str) -> None:
    with pytest.raises(ValueError, match="must be I/N with 1 <= I <= N"):
        Shard.parse(text)


def test_every_track_is_in_exactly_one_shard_whatever_else_there_is() -> None:
    tracks = [f"rock/{number}.mp3" for number in range(1000)] + ["caf\\xe9.wav", "\udce9.wav"]
    for count in (1, 2, 7):
        held = [[track for track in tracks if Shard(index, count).holds(track)] for index in range(1, count + 1)]
        assert sorted(itertools.chain.from_iterable(held)) == sorted(tracks)
        assert all(abs(len(own) - 1002 / count) < 60 for own in held)
    # SHA-256 of "1.wav" begins with 2601ae18888a8082: 2 modulo 8; a run may go on with a later version
    assert [index for index in range(1, 9) if Shard(index, 8).holds("1.wav")] == [3]


@pytest.fixture(scope="module")
def shards(forty_tracks: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table name whose run folder holds three ended shards of the forty tracks; not to be changed."""
    from annotate.pipeline import RunOptions, run

    out = tmp_path_factory.mktemp("shards") / "t.parquet"
    for index in (2, 1, 3):
        run(
            RunOptions(audio=(str(forty_tracks),), out=out, models=FORTY_FAMILIES, shard=f"{index}/3", cache=shared_cache, jobs=2)
        )
    return out


@pytest.fixture
def own_shards(shards: Path, tmp_path: Path) -> Path:
    """A copy of `shards` that a test may change."""
    shutil.copytree(shards.with_name("t.parquet.run"), tmp_path / "t.parquet.run")
    return tmp_path / "t.parquet"


def test_the_tables_of_all_shards_are_the_single_table(
    in_process: Invoke, shards: Path, forty_table: Path, tmp_path: Path
) -> None:
    assert not shards.exists()
    folder = shards.with_name("t.parquet.run")
    held = [pq.read_table(Shard(index, 3).table(folder))["track"].to_pylist() for index in (1, 2, 3)]
    assert sum(len(own) for own in held) == 40
    assert all(held)
    merged = tmp_path / "m.parquet"
    result = in_process("merge", folder, "--out", merged)
    assert (result.exit_code, result.stdout) == (0, "")
    assert_same_table(merged, forty_table, tolerance=0, provenance=False)
    ours, theirs = read_provenance(merged), read_provenance(forty_table)
    assert [shard["shard"] for shard in ours.pop("shards")] == ["1/3", "2/3", "3/3"]
    for name in ("bundle", "families", "front_ends", "decoder", "engine", "corpus"):
        assert ours[name] == theirs[name]
    assert "shards" in in_process("info", merged).stdout


def test_a_shard_run_twice_is_counted_once(in_process: Invoke, own_shards: Path, forty_tracks: Path, forty_table: Path) -> None:
    other = own_shards.with_name("other.parquet")
    for out in (own_shards, other):  # again in the shared folder, and in one of its own
        again = in_process("run", forty_tracks, "--out", out, "--models", ",".join(FORTY_FAMILIES), "--shard", "2/3")
        assert again.exit_code == 0
    result = in_process("merge", f"{own_shards}.run", f"{other}.run", "--out", own_shards)
    assert result.exit_code == 0
    assert "shard 2/3 is there twice" in result.stderr
    assert_same_table(own_shards, forty_table, tolerance=0, provenance=False)


def test_lost_shards_are_named(in_process: Invoke, own_shards: Path, forty_tracks: Path) -> None:
    folder = own_shards.with_name("t.parquet.run")
    Shard(2, 3).table(folder).unlink()
    Shard(3, 3).table(folder).unlink()
    (folder / "lock-3-of-3").unlink()
    result = in_process("merge", folder, "--out", own_shards)
    assert result.exit_code == 1
    assert "2 of 3 shards are missing or not finished: 2/3 was begun and did not end; 3/3 was never run" in result.stderr
    assert not own_shards.exists()
    with filelock.FileLock(folder / "lock-2-of-3"):
        assert "2/3 is at work now" in in_process("merge", folder, "--out", own_shards).stderr
    result = in_process("merge", folder, "--out", own_shards, "--allow-lost")
    assert result.exit_code == 0
    assert "2/3 was begun" in result.stderr
    own = [track for track in tracks_of(forty_tracks) if Shard(1, 3).holds(track)]
    assert sorted(pq.read_table(own_shards)["track"].to_pylist()) == sorted(own)


def tracks_of(corpus: Path) -> list[str]:
    return [path.relative_to(corpus).as_posix() for path in corpus.rglob("*.wav")]


def test_an_unfinished_shard_is_lost_until_it_ends(
    in_process: Invoke, own_shards: Path, forty_tracks: Path, forty_table: Path
) -> None:
    folder = own_shards.with_name("t.parquet.run")
    shutil.rmtree(folder / "parts")  # what is done is done again, four tracks at first
    again = ("run", forty_tracks, "--out", own_shards, "--models", ",".join(FORTY_FAMILIES), "--shard", "1/3")
    assert in_process(*again, "--limit", "4").exit_code == 0
    n_left = len([track for track in tracks_of(forty_tracks) if Shard(1, 3).holds(track)]) - 4
    assert f"1/3 has {n_left} tracks left" in in_process("merge", folder, "--out", own_shards).stderr
    assert in_process(*again).exit_code == 0
    assert in_process("merge", folder, "--out", own_shards).exit_code == 0
    assert_same_table(own_shards, forty_table, tolerance=0, provenance=False)


def test_shards_of_different_models_or_corpora_are_refused(
    in_process: Invoke, own_shards: Path, forty_tracks: Path, tmp_path: Path
) -> None:
    again = ("run", forty_tracks, "--shard", "2/3", "--out")
    refused = in_process(*again, own_shards, "--models", "notes")
    assert refused.exit_code == 1
    assert "families" in refused.stderr
    Shard(2, 3).table(own_shards.with_name("t.parquet.run")).unlink()
    others = tmp_path / "o.parquet"
    assert in_process(*again, others, "--models", "notes").exit_code == 0
    with pytest.raises(RunRefused, match="families: va, notes, notes"):
        gather([own_shards, others])
    shutil.rmtree(f"{others}.run")
    # a mount with some of the tracks was lost while this shard was scanned
    fewer = Path(shutil.copytree(forty_tracks, tmp_path / "fewer"))
    shutil.rmtree(fewer / "b")
    assert in_process("run", fewer, *again[2:], others, "--models", ",".join(FORTY_FAMILIES)).exit_code == 0
    with pytest.raises(ShardError, match=re.escape("saw different corpora (40 and 20 tracks): was a mount lost")):
        gather([own_shards, others])


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("run", "{corpus}", "--out", "{tmp}/t.parquet", "--shard", "5/4"), 2, "must be I/N"),
        (("run", "{corpus}", "--out", "{tmp}/t.parquet", "--shard", "1/4", "--restart"), 1, "discard what the other shards"),
        (("merge", "{tmp}/absent", "--out", "{tmp}/t.parquet"), 2, "no run folder"),
        (("merge", "{tmp}/u.parquet.run", "--out", "{tmp}/t.parquet"), 1, "holds no shards"),
        (("merge", "{tmp}/u.parquet.run", "--out", "{tmp}/absent/t.parquet"), 2, "there is no folder"),
        (("merge", "{tmp}/u.parquet.run", "--out", "{corpus}"), 1, "holds other things"),
    ],
)
def test_what_cannot_start_says_why(
    in_process: Invoke, forty_tracks: Path, tmp_path: Path, arguments: tuple[str, ...], status: int, said: str
) -> None:
    (tmp_path / "u.parquet.run" / "parts").mkdir(parents=True)
    result = in_process(*(argument.format(corpus=forty_tracks, tmp=tmp_path) for argument in arguments))
    assert result.exit_code == status
    assert said in result.stderr
    assert not (tmp_path / "t.parquet").exists()


def test_a_shard_without_tracks_and_many_of_them(in_process: Invoke, forty_tracks: Path, tmp_path: Path) -> None:
    """Two tracks in three shards: at least one of them is empty; windows and a dataset folder, too."""
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a/1.wav", "b/22.wav"):
        shutil.copy(forty_tracks / name, two / name.replace("/", "-"))
    out, windows = tmp_path / "t", tmp_path / "w.parquet"
    for index in (1, 2, 3):
        done = in_process("run", two, "--out", f"{out}/", "--windows", windows, "--models", "emotion", "--shard", f"{index}/3")
        assert done.exit_code == 0, done.stderr
    assert in_process("merge", f"{out}.run", "--out", f"{out}/", "--windows", windows).exit_code == 0
    assert pq.read_table(out)["track"].to_pylist() == ["a-1.wav", "b-22.wav"]
    assert pq.read_table(windows)["track"].to_pylist() == ["a-1.wav", "b-22.wav"]  # one window of three seconds each
    assert "2 rows" in in_process("info", out).stdout
