"""How far a run is: a bar on a terminal, elsewhere a line every 30 s, how long the rest takes, and a summary at the end.

Tracks differ in length, so the time left is told by seconds of audio, not by their number. How long a file plays is known only
when it has been decoded; until then its bytes say it, by the bytes a second of the finished files with the same suffix.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import Protocol

log = logging.getLogger("annotate")

REPORT_S = 30.0  # between two lines of progress where stderr is no terminal
NOMINAL_BYTES_PER_S = {".wav": 176_400, ".aif": 176_400, ".aiff": 176_400, ".flac": 100_000, ".opus": 12_000, ".ogg": 20_000}
NOMINAL_OTHER = 24_000  # MP3 at 192 kbit/s
TRACKS_A_WORKER = 64  # done until the line through all of them is trusted more than what each took its worker
SAME_INSTANT_S = 0.05  # a worker hands in a few tracks at once: one measurement


class Listed(Protocol):
    """What is known of a track before it is decoded."""

    @property
    def track(self) -> str:
        """Its identity."""

    @property
    def size(self) -> int:
        """Bytes of its file."""


class Finished(Protocol):
    """What the main process hears of a track."""

    @property
    def track(self) -> str:
        """Its identity."""

    @property
    def status(self) -> str:
        """`ok` or `failed`."""

    @property
    def error(self) -> str | None:
        """Why it failed."""

    @property
    def audio_s(self) -> float:
        """Seconds of audio that were annotated."""

    @property
    def seconds(self) -> float:
        """Seconds that it took its worker."""


class TimeLeft:
    """Forecast of a run's rest from what is finished.

    Time is a straight line over the seconds of audio that are done, fitted by least squares: its intercept is the workers' start,
    which must not be laid to the tracks, and its slope the seconds a second of audio takes. Of few points that is a poor line,
    so before each worker has done some tracks the slope is the median of what a second of audio took a worker (the first track
    loaded the models), by the number of workers.
    """

    def __init__(self, tracks: Iterable[Listed], *, started: float, workers: int | None = None) -> None:
        self.started = started
        self.workers = workers  # that do the whole work of a track; None: not known
        self.rates: list[float] = []  # a worker's seconds for a second of audio, of the first tracks
        self.sizes = {track.track: track.size for track in tracks}
        self.bytes_left: dict[str, int] = {}  # by suffix
        for name, size in self.sizes.items():
            suffix = suffix_of(name)
            self.bytes_left[suffix] = self.bytes_left.get(suffix, 0) + size
        self.measured: dict[str, tuple[int, float]] = {}  # suffix -> bytes and seconds of finished tracks
        self.last: tuple[float, float] | None = None  # seconds of audio done, seconds since the start
        self.sums = [0.0] * 5  # over the points before: 1, x, y, x², xy
        self.audio_s = 0.0

    def finish(self, track: str, audio_s: float, now: float, *, took_s: float = 0.0) -> None:
        """Take in that a track is done, which took its worker `took_s`; `audio_s` is 0 for a failed one."""
        size = self.sizes.pop(track, 0)
        suffix = suffix_of(track)
        self.bytes_left[suffix] = self.bytes_left.get(suffix, 0) - size
        if audio_s > 0:
            held, seconds = self.measured.get(suffix, (0, 0.0))
            self.measured[suffix] = held + size, seconds + audio_s
            if took_s > 0 and self.workers is not None and len(self.rates) < TRACKS_A_WORKER * self.workers:
                self.rates.append(took_s / audio_s)
        self.audio_s += audio_s
        at = now - self.started
        if self.last is not None and at - self.last[1] >= SAME_INSTANT_S:
            self.sums = added(self.sums, *self.last)
        self.last = self.audio_s, at

    def audio_left_s(self) -> float:
        """Seconds of audio in the files that are not done."""
        return sum(size / self.bytes_per_s(suffix) for suffix, size in self.bytes_left.items())

    def bytes_per_s(self, suffix: str) -> float:
        """Bytes of a second of audio in files with this suffix: of the finished ones, or what is usual."""
        held, seconds = self.measured.get(suffix, (0, 0.0))
        return held / seconds if held and seconds else NOMINAL_BYTES_PER_S.get(suffix, NOMINAL_OTHER)

    def seconds(self, now: float) -> float | None:
        """Seconds until the run ends; None before there is anything to judge by."""
        if self.last is None or self.audio_s == 0:
            return None
        done, at = self.last
        slope = at / done
        count, x, y, xx, xy = added(self.sums, done, at)
        if self.workers is not None and 2 <= len(self.rates) < TRACKS_A_WORKER * self.workers:
            slope = median(self.rates) / self.workers
        elif count >= 3 and count * xx > x * x:
            fitted = (count * xy - x * y) / (count * xx - x * x)
            slope = fitted if fitted > 0 else slope
        return max(slope * self.audio_left_s() - (now - self.started - at), 0.0)


def added(sums: list[float], x: float, y: float) -> list[float]:
    """Sums of a straight line's fit with one more point."""
    return [held + more for held, more in zip(sums, (1.0, x, y, x * x, x * y), strict=True)]


def suffix_of(track: str) -> str:
    """Suffix of a track's name, lower case, as files of one codec share it."""
    return os.path.splitext(track)[1].lower()


def spoken(seconds: float) -> str:
    """Duration for people: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def kind_of(reason: str | None) -> str:
    """Reason of a failed track without what is the track's own: numbers, and what follows a colon."""
    return re.sub(r"\d+(\.\d+)?", "N", (reason or "no reason given").partition(":")[0]).strip()


class Progress:
    """A bar on a terminal; elsewhere a line every 30 s, also while no track ends. Counts tracks, failures and hours of audio.

    Parameters
    ----------
    pending
        Tracks to annotate.
    bar
        Whether there is a terminal.
    skipped
        Tracks that were done before; they count in the bar.
    device
        What runs the networks, for the summary.
    workers
        Processes that do the whole work of a track, where that is known; without it the first tracks foretell little.
    """

    def __init__(
        self, pending: Iterable[Listed], bar: bool, *, skipped: int = 0, device: str = "cpu", workers: int | None = None
    ) -> None:
        from tqdm import tqdm

        tracks = list(pending)
        self.total, self.done, self.failed = len(tracks), 0, 0
        self.skipped, self.device = skipped, device
        self.reasons: Counter[str] = Counter()
        self.started = self.reported = time.monotonic()
        self.left = TimeLeft(tracks, started=self.started, workers=workers)
        self.ended = threading.Event()
        self.reporter = threading.Thread(target=self._report_now_and_then, name="progress", daemon=True)
        self.bar = tqdm(
            total=self.total + skipped,
            initial=skipped,
            unit="track",
            disable=not bar,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} tracks, {elapsed}{postfix}",
        )

    def __enter__(self) -> Progress:
        if self.bar.disable:
            self.reporter.start()
        return self

    def _report_now_and_then(self) -> None:
        while not self.ended.wait(REPORT_S):
            now = time.monotonic()
            if now - self.reported >= REPORT_S:
                self.report(now)

    def report(self, now: float) -> None:
        """Say in one line how far the run is."""
        self.reported = now
        left = self.left.seconds(now)
        told = "" if left is None else f", about {spoken(left)} left"
        fields = {"done": self.done, "total": self.total, "skipped": self.skipped, "failed": self.failed, "left_s": left}
        extra = {"event": "progress", "fields": fields}
        log.info("%d of %d tracks, %d failed%s", self.done, self.total, self.failed, told, extra=extra)

    def step(self, one: Finished) -> str:
        """Count one track, and say which it was."""
        now = time.monotonic()
        self.done += 1
        self.left.finish(one.track, one.audio_s, now, took_s=one.seconds)
        left = self.left.seconds(now)
        about = "" if left is None else f"about {spoken(left)} left"
        self.bar.set_postfix_str(about, refresh=False)
        self.bar.update()
        if one.status == "failed":
            self.failed += 1
            self.reasons[kind_of(one.error)] += 1
            extra = {"event": "failed", "track": one.track, "seconds": one.seconds, "fields": {"reason": one.error}}
            log.warning("failed: %s: %s", one.track, one.error, extra=extra)
        else:
            fields = {"audio_s": one.audio_s, "left_s": left}
            extra = {"event": "done", "track": one.track, "seconds": one.seconds, "fields": fields}
            log.debug("%s: %.1f s of audio in %.2f s", one.track, one.audio_s, one.seconds, extra=extra)
        if self.bar.disable and now - self.reported >= REPORT_S:
            self.report(now)
        return one.track

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.bar.close()
        wall = time.monotonic() - self.started
        speed = self.left.audio_s / max(wall, 1e-9)
        skipped = f", {self.skipped} done before" if self.skipped else ""
        reasons = "".join(f"; {count} × {reason}" for reason, count in self.reasons.most_common())
        fields = {
            "done": self.done - self.failed,
            "skipped": self.skipped,
            "failed": self.failed,
            "failed_by_reason": dict(self.reasons.most_common()),
            "audio_h": self.left.audio_s / 3600,
            "real_time_factor": speed,
            "device": self.device,
        }
        if not self.total:
            log.info("no track to annotate%s", skipped, extra={"event": "summary", "seconds": wall, "fields": fields})
            return
        log.info(
            "%d tracks%s, %d of them failed, %.2f h of audio in %.0f s (%.1f times real time) on %s%s",
            self.done,
            skipped,
            self.failed,
            self.left.audio_s / 3600,
            wall,
            speed,
            self.device,
            reasons,
            extra={"event": "summary", "seconds": wall, "fields": fields},
        )
