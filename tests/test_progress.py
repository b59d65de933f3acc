"""How long the rest of a run takes: forecasts on simulated runs whose end is known."""

from __future__ import annotations

import heapq
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from annotate.progress import Progress, TimeLeft, spoken

COST = 0.06  # seconds of work a second of audio
MODELS_S = 5.0  # that the first track of a worker takes longer


@dataclass(frozen=True)
class File:
    track: str
    size: int
    audio_s: float
    error: str | None = None
    seconds: float = 1.0

    @property
    def status(self) -> str:
        return "failed" if self.error else "ok"


def simulate(
    files: list[File], *, jobs: int, start_s: float, chunk: int = 4, seed: int = 0
) -> tuple[TimeLeft, list[float], float]:
    """Run files through a simulated pool that hands in `chunk` at once; the forecast of the end after each, and the end."""
    rng = np.random.default_rng(seed)
    workers = [(start_s + 0.3 * number, number) for number in range(jobs)]
    heapq.heapify(workers)
    handed_in = []
    for first in range(0, len(files), chunk):
        at, number = heapq.heappop(workers)
        some = files[first : first + chunk]
        loads = [MODELS_S] + [0.0] * (len(some) - 1) if first < jobs * chunk else [0.0] * len(some)
        took = [COST * one.audio_s * rng.uniform(0.8, 1.2) + 0.02 + load for one, load in zip(some, loads, strict=True)]
        at += sum(took)
        heapq.heappush(workers, (at, number))
        handed_in.append((at, some, took))
    left = TimeLeft(files, started=0.0, workers=jobs)
    forecasts = []
    for at, some, took in sorted(handed_in, key=lambda item: item[0]):
        for one, took_s in zip(some, took, strict=True):
            left.finish(one.track, one.audio_s if one.status == "ok" else 0.0, at, took_s=took_s)
            forecast = left.seconds(at)
            forecasts.append(np.inf if forecast is None else at + forecast)
    return left, forecasts, max(at for at, _, _ in handed_in)


def corpus(kind: str, count: int = 300) -> list[File]:
    rng = np.random.default_rng(3)
    files = []
    for number in range(count):
        audio_s = {"equal": 60.0, "ascending": 10.0 + 300 * number / count}.get(kind, float(rng.lognormal(4.5, 0.8)))
        suffix, rate = (".wav", 176_400) if kind == "mixed codecs" and number % 3 == 0 else (".mp3", 16_000)
        files.append(File(f"{number}{suffix}", round(audio_s * rate * rng.uniform(0.9, 1.1)), audio_s))
    return files


@pytest.mark.parametrize("kind", ["equal", "ascending", "long tailed", "mixed codecs"])
@pytest.mark.parametrize("jobs", [1, 2, 8])
def test_after_a_tenth_of_the_run_its_end_is_known_within_a_fifth(kind: str, jobs: int) -> None:
    """Workers that need 12 s to start, files of very different length: the time left at every point after a tenth."""
    files = corpus(kind, 150 * max(jobs, 2))  # a tenth must be more than every worker's first handful
    for seed in range(3):
        _, forecasts, end = simulate(files, jobs=jobs, start_s=12.0, seed=seed)
        for done in range(len(files) // 10, len(files)):
            assert abs(forecasts[done] - end) <= 0.2 * end, (done, forecasts[done], end)


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_a_small_run_is_foretold_by_its_first_handful(jobs: int) -> None:
    """48 tracks, of which a tenth is not much more than what one worker hands in first, after its start and its models."""
    files = [File(f"{number}.mp3", 320_000, 20.0) for number in range(48)]
    for seed in range(3):
        _, forecasts, end = simulate(files, jobs=jobs, start_s=10.0, seed=seed)
        for done in range(3, len(files), 4):  # the last of each handful
            assert abs(forecasts[done] - end) <= 0.2 * end, (done, forecasts[done], end)


def test_counting_tracks_would_not_do() -> None:
    """The simulation is hard enough: time by number of tracks misses the end of the ascending corpus by far."""
    files = corpus("ascending")
    at = 12.0 + sum(COST * one.audio_s for one in files[:30])
    end = 12.0 + sum(COST * one.audio_s for one in files)
    assert abs(at / 30 * 300 - end) > 0.5 * end


def test_nothing_done_gives_no_forecast_and_all_done_gives_zero() -> None:
    files = corpus("equal", 8)
    assert TimeLeft(files, started=0.0).seconds(5.0) is None
    left, _, end = simulate(files, jobs=1, start_s=1.0)
    assert left.seconds(end) == 0.0
    assert left.audio_left_s() == 0.0


def test_failed_files_leave_the_work_list_and_tell_nothing_of_the_rate() -> None:
    files = [File("a.mp3", 160_000, 10.0), File("b.mp3", 10**9, 0.0, error="not audio"), File("c.mp3", 160_000, 10.0)]
    left = TimeLeft(files, started=0.0)
    left.finish("a.mp3", 10.0, 2.0)
    left.finish("b.mp3", 0.0, 2.5)
    assert left.audio_left_s() == pytest.approx(10.0)
    assert left.bytes_per_s(".mp3") == 16_000


def test_time_that_passes_since_the_last_track_counts() -> None:
    left = TimeLeft([File("a.mp3", 16_000, 1.0), File("b.mp3", 160_000, 10.0)], started=0.0)
    left.finish("a.mp3", 1.0, 1.0)
    assert left.seconds(1.0) == pytest.approx(10.0)
    assert left.seconds(4.0) == pytest.approx(7.0)
    assert left.seconds(40.0) == 0.0


def test_durations_are_spoken() -> None:
    assert [spoken(seconds) for seconds in (3.4, 89, 90, 3600, 5400, 12_000)] == [
        "3 s", "89 s", "2 min", "60 min", "1 h 30 min", "3 h 20 min",
    ]  # fmt: skip


def test_without_a_terminal_a_line_says_what_is_done_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = iter([0.0, 10.0, 40.0, 41.0])
    monkeypatch.setattr("annotate.progress.time.monotonic", lambda: next(clock))
    monkeypatch.setattr(logging.getLogger("annotate"), "propagate", True)
    files = [File("a.mp3", 16_000, 1.0), File("b.mp3", 16_000, 0.0, error="empty"), File("c.mp3", 80_000, 5.0)]
    with caplog.at_level(logging.INFO, "annotate"), Progress(files, bar=False) as progress:
        assert progress.step(files[0]) == "a.mp3"
        progress.step(files[1])
    assert list(dict.fromkeys(record.getMessage() for record in caplog.records)) == [  # pytest may listen in two places
        "failed: b.mp3: empty",
        "2 of 3 tracks, 1 failed, about 3 min left",
        "2 tracks, 1 of them failed, 0.00 h of audio in 41 s (0.0 times real time) on cpu; 1 × empty",
    ]


def test_the_readme_says_what_was_measured() -> None:
    root = Path(__file__).resolve().parents[1]
    found = json.loads((root / "benchmarks" / "forecast.json").read_text())["composed"]
    text = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    for share, words in (("0.10", "after a tenth"), ("0.50", "after half"), ("0.75", "after three quarters")):
        error = found["time_left"][f"after_{share}"]
        said = f"{abs(100 * error):.0f} % {'too late' if error > 0 else 'too early'}"
        assert f"{said} {words}" in text
    assert f"`--dry-run` said {found['dry_run_s']:.0f} s for a command of {found['command_s']:.0f} s" in text
