"""How long a run will take, before it starts: what `--dry-run` says.

The rate is that of the last run on this machine with the same models and number of processes, kept in the cache folder; where
there is none it is measured on a few seconds of synthetic music. How long the files play is read from the headers of a
sample of them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from annotate.progress import TimeLeft, spoken, suffix_of
from annotate.store import default_cache_folder, replace_atomically

if TYPE_CHECKING:
    from annotate.tracks import Track
    from annotate.worker import Job

log = logging.getLogger("annotate")

SAMPLE = 40  # files whose headers are read
WORTH_KEEPING_S = 60.0  # seconds of audio below which a run says nothing of its rate
CALIBRATION_S = 15.0  # seconds of synthetic music, one window of the longest kind
START_S = 8.0  # until workers have imported what they need, once a run
RATES = "rates.json"
KEPT_RATES = 50


@dataclass(frozen=True)
class Rate:
    """Wall seconds that a second of audio takes with all processes of a run, and where that is from."""

    seconds: float
    source: str


def rate_key(fingerprint: Mapping[str, Any], jobs: int, device: str) -> str:
    """Name of a rate: all that changes how fast a run is, but for the machine's load."""
    text = json.dumps([fingerprint, jobs, device], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def keep_rate(key: str, audio_s: float, wall_s: float) -> None:
    """Remember how fast a run was; a folder that cannot be written costs the memory, not the run."""
    if audio_s < WORTH_KEEPING_S:
        return
    path = default_cache_folder() / RATES
    held = _rates(path)
    held.pop(key, None)
    held[key] = {"seconds": wall_s / audio_s, "audio_s": audio_s, "time": time.time()}
    kept = dict(list(held.items())[-KEPT_RATES:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, lambda temporary: _dump(kept, temporary))
    except OSError as error:
        log.debug("the rate of this run is not remembered: %s", error)


def _dump(rates: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(rates), encoding="utf-8")


def _rates(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def known_rate(key: str) -> Rate | None:
    """Rate of the last run with this key, if one is remembered."""
    entry = _rates(default_cache_folder() / RATES).get(key)
    try:
        return Rate(float(entry["seconds"]), "the rate of the last such run on this machine") if entry else None
    except (KeyError, TypeError, ValueError):
        return None


def measured_rate(job: Job, jobs: int) -> Rate:
    """Rate by annotating a few seconds of synthetic music in this process, twice: the first time loads the models."""
    annotate_sample(job, CALIBRATION_S)
    _, seconds = annotate_sample(job, CALIBRATION_S)
    return Rate(seconds / CALIBRATION_S / jobs, f"measured on {CALIBRATION_S:.0f} s of synthetic music, one process")


def annotate_sample(job: Job, duration_s: float) -> tuple[dict[str, Any], float]:
    """Annotate synthetic music in this process, in a folder of its own; its row, and the seconds that it took."""
    import soundfile

    from annotate.demo import Cues, compose, render
    from annotate.store import RunFolder
    from annotate.tracks import Track
    from annotate.worker import process

    cues = Cues()
    signal = render(compose(cues, duration_s=duration_s, seed=0), duration_s=duration_s, loudness_db=cues.loudness_db)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "music.wav"
        soundfile.write(path, signal, 44_100)
        track = Track(path, path.name, "folder", path.name, None, None, path.stat().st_size, path.stat().st_mtime_ns)
        (folder / "run" / "parts").mkdir(parents=True)
        started = time.monotonic()
        process([track], replace(job, run_folder=folder / "run", cache=None, midi=None))
        took = time.monotonic() - started
        part = RunFolder(folder / "run").read_part(track.track)
    if part is None:
        raise ValueError(f"{duration_s:g} s of synthetic music were annotated and left no part")
    return part.row, took


def audio_seconds(tracks: Sequence[Track]) -> float:
    """How long files play, by the headers of a sample of them and the bytes of the rest."""
    import soundfile

    left = TimeLeft(tracks, started=0.0)
    step = max(len(tracks) // SAMPLE, 1)
    for track in tracks[::step]:
        try:
            seconds = soundfile.info(str(track.path)).duration
        except (OSError, RuntimeError):
            continue
        held, known = left.measured.get(suffix_of(track.track), (0, 0.0))
        left.measured[suffix_of(track.track)] = held + track.size, known + seconds
    return left.audio_left_s()


def say(tracks: Sequence[Track], rate: Rate | None, jobs: int) -> str:
    """Say how much audio there is and how long it will take."""
    seconds = audio_seconds(tracks)
    audio = f"about {spoken(seconds)} of audio"
    if rate is None:
        return f"{audio}; how long it takes was never measured for these models on this device"
    wall = START_S + seconds * rate.seconds
    processes = "1 process" if jobs == 1 else f"{jobs} processes"
    return f"{audio}, about {spoken(wall)} with {processes} ({rate.source}; what is in the cache goes faster)"
