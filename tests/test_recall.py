"""A second run computes only what the cache does not hold; what it holds gives the same rows."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from annotate import worker
from annotate.corpora import Track, scan
from annotate.recall import network_of
from models import inference
from models.bundle import Bundle, load

FAMILIES = ("notes", "va", "joint", "crnn", "descriptors")


@pytest.fixture(scope="module")
def tracks(demo_corpus: Path) -> tuple[Track, ...]:
    return scan([str(demo_corpus / "rock")]).tracks


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each expensive step ran; rates of decoded signals are counted, too."""
    counts: Counter[str] = Counter()
    decode, windows_of = worker.decode, inference.windows_of

    def counted_decode(path, *, rates):
        counts["decoded"] += 1
        counts.update(f"{rate} Hz" for rate in rates)
        return decode(path, rates=rates)

    def counted_windows(family, signals):
        counts[family.name] += 1
        return windows_of(family, signals)

    monkeypatch.setattr(worker, "decode", counted_decode)
    monkeypatch.setattr(inference, "windows_of", counted_windows)
    return counts


def annotate(tracks: tuple[Track, ...], folder: Path, cache: Path, bundle: Bundle | None = None) -> list[dict]:
    """Rows of tracks, in their order, by a worker in this process."""
    used = bundle or load("default")
    (folder / "parts").mkdir(parents=True)
    job = worker.Job(str(used.folder), FAMILIES, folder, cache, 2**30, None, True, 600.0, None)
    worker.process(tracks, job)
    found = [json.loads(path.read_text()) for path in (folder / "parts").glob("?/?/*.json")]
    assert len(found) == len(tracks) == 2
    return sorted(({"windows": part["windows"]} | part["row"] for part in found), key=lambda row: row["track"])


def test_a_second_run_neither_decodes_nor_infers_and_gives_the_same_rows(tracks, computed, tmp_path):
    cold = annotate(tracks, tmp_path / "cold", tmp_path / "cache")
    assert computed["decoded"] == computed["joint"] == computed["crnn"] == 2
    computed.clear()
    assert annotate(tracks, tmp_path / "warm", tmp_path / "cache") == cold
    assert not computed
    assert cold[0]["windows"]
    assert cold[0]["crnn_valence"] != cold[1]["crnn_valence"]


def test_another_network_is_run_and_the_others_are_not(tracks, computed, tmp_path, monkeypatch):
    cold = annotate(tracks, tmp_path / "cold", tmp_path / "cache")
    computed.clear()
    bundle = load("default")
    files = bundle.manifest["files"] | {bundle.families["crnn"].engine: "0" * 64}
    other = dataclasses.replace(bundle, manifest=bundle.manifest | {"files": files})
    monkeypatch.setattr(worker, "_bundle", lambda _: other)
    assert annotate(tracks, tmp_path / "warm", tmp_path / "cache") == cold
    assert computed == {"decoded": 2, "crnn": 2, "22050 Hz": 2}  # and no other rate


def test_another_front_end_is_another_entry():
    bundle = load("default")
    joint = bundle.families["joint"]
    changed = dataclasses.replace(joint, spec=dict(joint.spec) | {"f_min": 30.0})
    other = dataclasses.replace(bundle, families=dict(bundle.families) | {"joint": changed})
    assert network_of(bundle, "joint") != network_of(other, "joint")
    assert network_of(bundle, "crnn") == network_of(other, "crnn")


def test_a_damaged_entry_is_computed_anew(tracks, computed, tmp_path):
    cold = annotate(tracks, tmp_path / "cold", tmp_path / "cache")
    computed.clear()
    entries = sorted((tmp_path / "cache").glob("??/*.npz"))
    assert len(entries) == 2 * 5  # properties, notes, descriptors, two networks
    for path in entries:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    assert annotate(tracks, tmp_path / "warm", tmp_path / "cache") == cold
    assert computed["decoded"] == computed["joint"] == computed["crnn"] == 2


def test_a_file_that_changes_between_digest_and_decoding_is_a_failed_row(tracks, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "digest", lambda path: "0" * 64)
    rows = annotate(tracks, tmp_path / "run", tmp_path / "cache")
    assert {row["error"] for row in rows} == {"was changed while it was being read"}
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_a_truncated_file_says_so_the_second_time_too(demo_corpus, computed, tmp_path):
    whole = next((demo_corpus / "rock").glob("*.wav")).read_bytes()
    music = tmp_path / "music"
    music.mkdir()
    for number in (1, 2):
        (music / f"{number}.wav").write_bytes(whole[: len(whole) * (3 + number) // 6])
    cut = scan([str(music)]).tracks
    first = annotate(cut, tmp_path / "cold", tmp_path / "cache")
    computed.clear()
    second = annotate(cut, tmp_path / "warm", tmp_path / "cache")
    assert not computed
    assert "truncated: the header promises 6.00 s" in first[0]["warning"]
    assert second == first
    assert np.isclose(first[0]["duration_s"], 4.0, atol=0.1)


def test_a_worker_starts_without_what_only_the_main_process_needs():
    code = (
        "import sys, annotate.worker; print(sorted({'pandas', 'pyarrow', 'tensorflow', 'sklearn', 'joblib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
