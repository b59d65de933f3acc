"""`annotate doctor`, the shell's completion, and how long a run will take before it starts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
from click.testing import Result
from conftest import ANNOTATE

from annotate import doctor, forecast
from annotate.corpora import scan
from annotate.forecast import Rate, audio_seconds, keep_rate, known_rate, rate_key, say

Invoke = Callable[..., Result]


def test_a_whole_installation_is_well(in_process: Invoke) -> None:
    done = in_process("doctor")
    assert done.exit_code == 0, done.output
    lines = {line[6:22].strip(): line for line in done.output.splitlines()}
    assert "WAV, FLAC, OGG, OPUS, MP3, AIFF" in lines["decoders"]
    assert "columns filled" in lines["self-test"]
    assert "files match their digests" in lines["bundle"]
    assert done.output.rstrip().endswith("all is well")
    assert "\x1b" not in done.output  # colours are for terminals


def test_what_is_wrong_is_said_with_what_to_do(in_process: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    finding = doctor._cache()
    assert finding.state == "wrong"
    assert "--no-cache" in finding.advice
    monkeypatch.setattr(doctor, "FORMATS", {"WAV": "PCM_16", "NEW": "PCM_16"})
    bad, good = doctor._decoders()
    assert bad.state == "wrong"
    assert "NEW" in bad.found
    assert good.found.endswith(": WAV")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_self_test", lambda: doctor.Finding("self-test", "left out"))
    done = in_process("doctor")
    assert done.exit_code == 1
    assert "uv sync --extra standards" in done.output
    assert done.output.rstrip().endswith("something is wrong, see above")


def complete(words: str, position: int) -> list[str]:
    environment = os.environ | {"COMP_WORDS": words, "COMP_CWORD": str(position), "_ANNOTATE_COMPLETE": "bash_complete"}
    found = subprocess.run([ANNOTATE], env=environment, capture_output=True, text=True, check=True)
    return [line.partition(",")[2] for line in found.stdout.splitlines()]


def test_the_tab_key_completes_commands_options_and_choices() -> None:
    assert "run" in complete("annotate r", 1)
    assert {"import", "export", "list"} <= set(complete("annotate bundle ", 2))
    assert "--models" in complete("annotate run --mo", 2)
    assert complete("annotate run --corpus em", 3) == ["emotify"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, in_process: Invoke) -> None:
    done = in_process("completion", shell)
    assert done.exit_code == 0
    assert "_ANNOTATE_COMPLETE" in done.output


# --- how long a run will take ---


def test_rates_are_remembered_by_what_changes_them(isolated_cache: Path) -> None:
    key = rate_key({"families": "va"}, 2, "cpu")
    assert len({key, rate_key({"families": "va"}, 4, "cpu"), rate_key({"families": "va"}, 2, "gpu")}) == 3
    assert known_rate(key) is None
    keep_rate(key, 30.0, 1.0)
    assert known_rate(key) is None  # too short a run to say anything
    keep_rate(key, 600.0, 30.0)
    rate = known_rate(key)
    assert rate is not None
    assert rate.seconds == pytest.approx(0.05)
    for number in range(forecast.KEPT_RATES):
        keep_rate(str(number), 600.0, 30.0)
    assert known_rate(key) is None  # the oldest goes
    (isolated_cache / "annotate" / forecast.RATES).write_text("junk")
    assert known_rate("1") is None


def test_audio_is_counted_by_headers_and_bytes(demo_corpus: Path, tmp_path: Path) -> None:
    tracks = scan([str(demo_corpus)], corpus="auto").tracks
    assert audio_seconds(tracks) == pytest.approx(8 * 6.0, rel=0.01)
    (tmp_path / "broken.wav").write_bytes(b"no audio")
    soundfile.write(tmp_path / "ok.wav", [0.0] * 44_100, 44_100)
    assert audio_seconds(scan([str(tmp_path)], corpus="auto").tracks) == pytest.approx(1.0, rel=0.01)


def test_the_forecast_is_rate_times_audio_and_the_start(demo_corpus: Path) -> None:
    tracks = scan([str(demo_corpus)], corpus="auto").tracks
    assert say(tracks, Rate(1.0, "by hand"), 2).startswith("about 48 s of audio, about 56 s with 2 processes (by hand")
    assert "was never measured" in say(tracks, None, 1)


def test_a_dry_run_measures_where_nothing_is_known(in_process: Invoke, demo_corpus: Path, tmp_path: Path) -> None:
    done = in_process(
        "run", demo_corpus / "pop", "--models", "va,notes", "--out", tmp_path / "t.parquet", "--dry-run", "--jobs", 1
    )
    assert done.exit_code == 0, done.output
    assert "about 12 s of audio, about " in done.stderr
    assert "measured on 15 s of synthetic music" in done.stderr
