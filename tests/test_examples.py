"""The fault test in its short form, and the examples for cron, systemd and SLURM, each run once as far as this machine can."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from conftest import ANNOTATE, command_environment

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder with two short tracks in music/."""
    (tmp_path / "music").mkdir()
    for number in (1, 2):
        samples = 0.3 * np.sin(np.arange(8_000) / (2 + number))
        soundfile.write(tmp_path / "music" / f"{number}.wav", samples, 8_000)
    return tmp_path


def environment(home: Path, **more: str) -> dict[str, str]:
    path = f"{ANNOTATE.parent}{os.pathsep}{os.environ['PATH']}"
    return command_environment(home / "cache", HOME=str(home), PATH=path, **more)


def test_the_cron_line(home: Path) -> None:
    """Five fields of time, then a command that sh can run: with the models of this test, twice, the second time for nothing."""
    (line,) = (line for line in (EXAMPLES / "annotate.cron").read_text().splitlines() if not line.startswith("#"))
    *times, command = line.split(maxsplit=5)
    assert len(times) == 5
    assert "%" not in command  # cron would take it for a line break
    for _ in range(2):
        done = subprocess.run(["sh", "-c", f"{command} --models notes"], env=environment(home), capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert pd.read_parquet(home / "music.parquet")["status"].tolist() == ["ok", "ok"]
    log = [json.loads(line) for line in (home / "music.log").read_text().splitlines()]
    assert [line["done"] for line in log if line["event"] == "summary"] == [2, 0]


def test_the_systemd_units(home: Path) -> None:
    """The service's own ExecStart, with systemd's specifier for the home folder; where systemd is there, it checks the files."""
    text = (EXAMPLES / "annotate.service").read_text()
    (start,) = (line.partition("=")[2] for line in text.splitlines() if line.startswith("ExecStart="))
    words = [word.replace("%h", str(home)) for word in start.split()]
    done = subprocess.run([*words, "--models", "notes"], env=environment(home), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_parquet(home / "music.parquet")) == 2
    if shutil.which("systemd-analyze"):
        units = [str(EXAMPLES / name) for name in ("annotate.timer", "annotate.service")]
        checked = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
        ours = [line for line in (checked.stdout + checked.stderr).splitlines() if "examples/annotate" in line]
        assert ours == []


def test_the_slurm_array(home: Path) -> None:
    """Both tasks of an array of two, then the merge, with SLURM's variables set as SLURM sets them."""
    out = home / "music.parquet"
    for task in (1, 2):
        slurm = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
        ours = {"MUSIC": str(home / "music"), "OUT": str(out), "ANNOTATE_OPTIONS": "--models notes"}
        done = subprocess.run(
            ["bash", EXAMPLES / "annotate.slurm"], env=environment(home, **slurm, **ours), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    subprocess.run([ANNOTATE, "merge", f"{out}.run", "--out", out], env=environment(home), check=True, capture_output=True)
    assert pd.read_parquet(out)["track"].tolist() == ["1.wav", "2.wav"]


def test_the_fault_test_in_its_short_form(tmp_path: Path) -> None:
    """Kills, and damaged files; it ends with an error where a promise is broken."""
    arguments = ("--short", "kills", "mutants", "--work", tmp_path / "work", "--results", tmp_path / "faults.json")
    subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "faults.py", *arguments, "--document", tmp_path / "reliability.md"],
        env=command_environment(tmp_path / "cache"),
        check=True,
        capture_output=True,
        timeout=540,
    )
    results = json.loads((tmp_path / "faults.json").read_text())
    assert results["kills"]["figures"]["kills"] == 2
    assert results["kills"]["figures"]["rows_compared"] >= 6
    assert results["mutants"]["figures"]["files"] == 30
    text = (tmp_path / "reliability.md").read_text()
    assert "| files | 30 |" in text
    assert 'Not run yet: `make faults EXPERIMENTS="memory"`.' in text


def test_the_document_says_what_was_measured() -> None:
    """docs/reliability.md is what the script makes of benchmarks/faults.json, nothing else."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import faults
    finally:
        sys.path.pop(0)
    results = json.loads(faults.RESULTS.read_text())
    assert all(result["form"] == "long" for result in results.values())
    assert faults.DOCUMENT.read_text() == faults.document(results)
