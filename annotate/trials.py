"""Trials of a bundle that need no ratings: twins, robustness, and what comes out where nobody was asked.

Conventions
-----------
- A *column* is a number that a family writes (`midlevel_minorness`); an *output* is a block of columns, named by their prefix.
- The *spread* of a column is its SD between the unchanged tracks; changes and positions are in spreads.
- Everything is annotated by `annotate.pipeline`, on the CPU with the bundle's graphs, as a user's own files would be.

The working folder, removed at the end unless it is named::

    work/
      plan.json                  what was asked for: another plan in the same folder is refused
      audio/twins/<cue>/<pair>-<low|high>.flac
      audio/music/<track>/plain.flac mp3.mp3 opus.opus gain.flac bandwidth.flac first-<seconds>.flac
      audio/other/<kind>/<clip>.flac
      trials.parquet             a row a file, made resumably
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.signal
import soundfile
import soxr
from numpy.typing import NDArray

from annotate.audio import AudioError, decode
from annotate.card import failures_lines, models_digest, portable, robustness_lines, twins_lines
from annotate.corpora import Track, scan
from annotate.demo import Cues, compose, render, twin
from annotate.pipeline import RunOptions, run
from models.bundle import Bundle, load
from models.labels import MIDLEVEL

Signal = NDArray[np.float32]
log = logging.getLogger("annotate")

SCHEMA_VERSION = 1
RULE = 0.25  # spreads that a prediction may move by when the music stays as it is
SAMPLE_RATE = 44_100  # Hz, of every clip but Opus, which has 48 000
OPUS_RATE = 48_000
GAIN_DB = -12.0
BANDWIDTH_HZ = 8_000.0
FIRST_S = (0.6, 1.0, 3.0, 10.0)  # lengths of beginnings
TOO_SHORT_S = 0.4
N_CUT = 12  # tracks, where there are as many, whose beginnings are annotated: a padded window costs as much as a full one
CONSTANT = 1e-9  # spread under which a column says nothing


@dataclass(frozen=True)
class Cue:
    """One cue, and the mid-level label that a listener would rate higher at its high end."""

    name: str
    label: str
    low: str  # in words
    high: str
    at_low: Mapping[str, Any]  # cues of annotate.demo
    at_high: Mapping[str, Any]


CUES = (
    Cue("mode", "minorness", "major", "minor", {"mode": "major"}, {"mode": "minor"}),
    Cue("articulation", "articulation", "legato", "staccato", {"articulation": 0.0}, {"articulation": 0.9}),
    Cue("dissonance", "dissonance", "consonant", "dissonant", {"dissonance": 0.0}, {"dissonance": 0.8}),
    Cue("regularity", "rhythmic_stability", "irregular", "steady", {"regularity": 0.0}, {"regularity": 1.0}),
    Cue("layers", "rhythmic_complexity", "2 rhythms at once", "5 rhythms at once", {"layers": 2}, {"layers": 5}),
    Cue("chromaticism", "tonal_stability", "chromatic", "diatonic", {"chromaticism": 0.8}, {"chromaticism": 0.0}),
)
# what the two pieces of a pair share; pair k is composed with seed k
BASES = (
    Cues(mode="major", tonic=60, tempo_bpm=72, articulation=0.2, layers=3, timbre="piano", loudness_db=-22),
    Cues(mode="minor", tonic=62, tempo_bpm=84, articulation=0.1, layers=3, timbre="strings", loudness_db=-20),
    Cues(mode="major", tonic=57, tempo_bpm=104, articulation=0.4, layers=4, timbre="guitar", loudness_db=-20),
    Cues(mode="minor", tonic=64, tempo_bpm=120, articulation=0.5, layers=4, timbre="synth", loudness_db=-18),
    Cues(mode="minor", tonic=55, tempo_bpm=132, articulation=0.3, layers=4, timbre="distorted", loudness_db=-18),
    Cues(mode="major", tonic=67, tempo_bpm=92, articulation=0.3, layers=2, timbre="strings", loudness_db=-22),
    Cues(mode="minor", tonic=59, tempo_bpm=66, articulation=0.2, layers=2, timbre="piano", loudness_db=-22),
    Cues(mode="major", tonic=65, tempo_bpm=112, articulation=0.4, layers=3, timbre="synth", loudness_db=-20),
    Cues(mode="minor", tonic=57, tempo_bpm=96, articulation=0.4, layers=3, timbre="guitar", loudness_db=-20),
    Cues(mode="major", tonic=62, tempo_bpm=126, articulation=0.3, layers=4, timbre="piano", loudness_db=-20),
    Cues(mode="major", tonic=60, tempo_bpm=78, articulation=0.1, layers=4, timbre="strings", loudness_db=-18),
    Cues(mode="minor", tonic=66, tempo_bpm=108, articulation=0.5, layers=3, timbre="synth", loudness_db=-20),
)
CHANGES = {
    "mp3": "MP3, 128 kbit/s, mono",
    "opus": "Opus, about 56 kbit/s, mono",
    "gain": "-12 dB",
    "bandwidth": "nothing above 8 kHz",
}
KINDS = {
    "piano": "solo piano (composed and synthesised, melody and chords)",
    "speech": "speech-like (synthesised: a voice source through vowel formants, four syllables a second; no recorded speech)",
    "noise": "noise, white and pink, -20 dBFS",
    "quiet": "almost silent: white noise that peaks at -76 dBFS",
    "silence": "silence: all samples zero",
    "too_short": f"beginnings of music, {TOO_SHORT_S:g} s",
}


@dataclass(frozen=True)
class TrialOptions:
    """What to try, as the command states it."""

    bundle: str
    music: Path
    out: Path
    models: tuple[str, ...] | None = None  # families; None: all of the bundle
    tracks: int = 50  # of the music
    seconds: float = 20.0  # of each track, from its middle: one window of the slowest network
    pairs: int = 12  # of each cue
    twin_s: float = 20.0  # length of a composed piece
    clips: int = 6  # of each kind of sound where the models may fail
    jobs: int = 0  # worker processes; 0: one a core
    work: Path | None = None  # kept; None: a temporary folder
    progress: bool = False
    command_line: str = ""


def try_bundle(options: TrialOptions) -> dict[str, Any]:
    """Make all trials of a bundle and write them as JSON.

    Raises
    ------
    FileNotFoundError, NoAudioFound, BundleError
        If the bundle or the music is not there.
    ValueError
        If fewer than 3 tracks can be used, or the working folder is another plan's.
    """
    bundle = load(options.bundle)
    music_corpus = scan([options.music])
    with contextlib.ExitStack() as stack:
        if options.work is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="annotate-trials-")))
        else:
            place = options.work
            place.mkdir(parents=True, exist_ok=True)
        plan = {
            "models_sha256": models_digest(bundle),
            "music": str(options.music.resolve()),
            **{name: getattr(options, name) for name in ("models", "tracks", "seconds", "pairs", "twin_s", "clips")},
        }
        _check_plan(place / "plan.json", plan)
        names = write_music(place / "audio" / "music", music_corpus.tracks, options)
        write_twins(place / "audio" / "twins", options.pairs, options.twin_s)
        write_others(place / "audio" / "other", place / "audio" / "music", names, options)
        run(
            RunOptions(
                audio=(str(place / "audio"),),
                out=place / "trials.parquet",
                bundle=str(bundle.folder),
                models=options.models,
                corpus="folder",
                jobs=options.jobs,
                device="cpu",
                use_cache=False,
                progress=options.progress,
                command_line=options.command_line,
            )
        )
        table = pd.read_parquet(place / "trials.parquet").set_index("track")
    columns = value_columns(bundle, table)
    music = music_table(table, names, "plain")
    unused = [name for name in names if table.loc[_music_track(name, "plain"), "status"] != "ok"]
    if len(music) < 3:
        raise ValueError(f"{options.music}: {len(music)} tracks could be annotated, trials need 3")
    trials = {
        "schema_version": SCHEMA_VERSION,
        "kind": "trials",
        "tool": f"annotate {metadata.version('annotate')}",
        "bundle": {"name": bundle.name, "version": bundle.version, "models_sha256": plan["models_sha256"]},
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": portable(options.command_line),
        "twins": twins(table, bundle, options),
        "robustness": {"music": music_corpus.name} | robustness(table, names, columns, options) | {"unused": unused},
        "failures": failures(table, names, columns),
    }
    write_json(options.out, trials)
    return trials


def summary(trials: Mapping[str, Any]) -> list[str]:
    """Write trials as the lines that the card has of them."""
    parts = (twins_lines(trials["twins"]), robustness_lines(trials["robustness"]), failures_lines(trials["failures"]))
    return [line for part in parts for line in (*part, "")]


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN is refused, missing is null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _check_plan(path: Path, plan: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(plan))
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != wanted:
            other = ", ".join(sorted(name for name in wanted if wanted[name] != found.get(name)))
            raise ValueError(f"{path.parent} holds other trials ({other}); choose another folder for --work, or remove it")
    else:
        write_json(path, wanted)


# ---------------------------------------------------------------------------------------------------------------------
# Sounds. Files that are there already are left, so that a run that was ended goes on.


def write_audio(path: Path, signal: Signal, sample_rate: int = SAMPLE_RATE) -> None:
    """Write a mono signal in the format of the path's suffix, unless it is there."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    if path.suffix == ".mp3":
        level = 2 / 3  # 320 - level · 288 = 128 kbit/s
        mp3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": level}
        soundfile.write(temporary, signal, sample_rate, **mp3)
    elif path.suffix == ".opus":
        soundfile.write(temporary, signal, sample_rate, format="OGG", subtype="OPUS", compression_level=0.8)
    else:
        soundfile.write(temporary, signal, sample_rate, format="FLAC", subtype="PCM_24")
    os.replace(temporary, path)


def pair_of(cue: Cue, number: int) -> tuple[Cues, Cues]:
    """Cues of the two pieces of a pair, low end first; all but the cue is shared."""
    base = BASES[number % len(BASES)]
    return twin(base, **cue.at_low), twin(base, **cue.at_high)


def write_twins(folder: Path, pairs: int, duration_s: float) -> None:
    """Compose and render the pairs of every cue."""
    for cue in CUES:
        for number in range(pairs):
            for end, cues in zip(("low", "high"), pair_of(cue, number), strict=True):
                path = folder / cue.name / f"{number:02d}-{end}.flac"
                if not path.exists():
                    notes = compose(cues, duration_s=duration_s, seed=number)
                    write_audio(path, render(notes, duration_s=duration_s, loudness_db=cues.loudness_db))


def write_music(folder: Path, tracks: Sequence[Track], options: TrialOptions) -> list[str]:
    """Write an excerpt of evenly chosen tracks, unchanged, changed, and cut short; names of the tracks in the folder.

    A track that cannot be decoded is left out with a word.
    """
    chosen = np.unique(np.linspace(0, len(tracks) - 1, options.tracks).round().astype(int))
    names = []
    for number in chosen:
        name = f"{number:05d}"
        if not (folder / name / "done").exists():
            try:
                decoded = decode(tracks[number].path, rates=[SAMPLE_RATE])
            except AudioError as error:
                log.warning("%s left out: %s", tracks[number].track, error)
                continue
            write_changes(folder / name, middle(decoded.signals[SAMPLE_RATE], options.seconds))
            (folder / name / "done").touch()
        names.append(name)
    for name in names[:: max(1, len(names) // N_CUT)]:
        write_beginnings(folder / name)
    return names


def middle(signal: Signal, seconds: float) -> Signal:
    """Cut an excerpt from the middle of a signal at SAMPLE_RATE; all of it where it is shorter."""
    length = min(len(signal), round(seconds * SAMPLE_RATE))
    start = (len(signal) - length) // 2
    return signal[start : start + length]


def write_changes(folder: Path, plain: Signal) -> None:
    """Write an excerpt as it is and under each of CHANGES."""
    write_audio(folder / "plain.flac", plain)
    write_audio(folder / "mp3.mp3", plain)
    write_audio(folder / "opus.opus", soxr.resample(plain, SAMPLE_RATE, OPUS_RATE, quality="HQ"), OPUS_RATE)
    write_audio(folder / "gain.flac", plain * np.float32(10 ** (GAIN_DB / 20)))
    write_audio(folder / "bandwidth.flac", low_pass(plain))


def write_beginnings(folder: Path) -> None:
    """Write the beginnings of an excerpt that are shorter than it is."""
    plain, _ = soundfile.read(folder / "plain.flac", dtype="float32")
    for seconds in FIRST_S:
        if len(plain) > round(seconds * SAMPLE_RATE):
            write_audio(folder / f"first-{seconds:g}.flac", plain[: round(seconds * SAMPLE_RATE)])


def low_pass(signal: Signal) -> Signal:
    """Take away what lies above BANDWIDTH_HZ, without delay: two passes of a 10th-order Butterworth filter, -6 dB there."""
    filtered = scipy.signal.sosfiltfilt(scipy.signal.butter(10, BANDWIDTH_HZ, fs=SAMPLE_RATE, output="sos"), signal)
    return np.asarray(filtered, np.float32)


def write_others(folder: Path, music: Path, names: Sequence[str], options: TrialOptions) -> None:
    """Write clips of every kind that is no music, or not enough of it."""
    for number in range(options.clips):
        for kind, make in OTHERS.items():
            path = folder / kind / f"{number:02d}.flac"
            if not path.exists():
                write_audio(path, make(number, options.twin_s))
    for number, name in enumerate(names[: options.clips]):
        path = folder / "too_short" / f"{number:02d}.flac"
        if not path.exists():
            beginning, _ = soundfile.read(music / name / "plain.flac", frames=round(TOO_SHORT_S * SAMPLE_RATE), dtype="float32")
            write_audio(path, beginning)


def _piano(number: int, duration_s: float) -> Signal:
    cues = Cues(
        mode=("major", "minor")[number % 2],
        tonic=(60, 65, 57, 62, 67, 59)[number % 6],
        tempo_bpm=(60.0, 126.0, 84.0, 100.0, 72.0, 144.0)[number % 6],
        articulation=(0.1, 0.5, 0.2, 0.7, 0.0, 0.4)[number % 6],
        layers=2,
        timbre="piano",
        loudness_db=-22.0,
    )
    return render(compose(cues, duration_s=duration_s, seed=100 + number), duration_s=duration_s, loudness_db=cues.loudness_db)


# first three formants of vowels, Hz (Peterson & Barney 1952, men)
_VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (530, 1840, 2480), (570, 840, 2410), (300, 870, 2240))


def _speech(number: int, duration_s: float) -> Signal:
    """Voice source of falling pitch through vowel formants, four syllables a second, hissed onsets, a pause after eight."""
    rng = np.random.default_rng([7, number])
    n_samples = round(duration_s * SAMPLE_RATE)
    out = np.zeros(n_samples)
    lowest_hz = 95.0 * 1.16**number
    start, syllable = 0, 0
    while start < n_samples:
        length = round(rng.uniform(0.17, 0.33) * SAMPLE_RATE)
        position = syllable % 9
        if position < 8:  # the ninth is a pause
            t = np.arange(length) / SAMPLE_RATE
            pitch_hz = lowest_hz * (1.6 - 0.06 * position + 0.12 * rng.standard_normal()) * (1 - 0.15 * t / t[-1])
            phase = np.cumsum(pitch_hz) / SAMPLE_RATE
            voice = scipy.signal.lfilter([1.0], [1.0, -0.97], np.diff(np.floor(phase), prepend=0.0))
            for formant_hz, width_hz in zip(_VOWELS[rng.integers(len(_VOWELS))], (80, 100, 140), strict=True):
                radius = np.exp(-np.pi * width_hz / SAMPLE_RATE)
                poles = [1.0, -2 * radius * np.cos(2 * np.pi * formant_hz / SAMPLE_RATE), radius**2]
                voice = scipy.signal.lfilter([sum(poles)], poles, voice)
            hiss = 0.15 * np.diff(rng.standard_normal(length), prepend=0.0) * np.exp(-t / 0.03)
            envelope = np.sin(np.pi * np.clip(t / t[-1], 0, 1)) ** 0.5
            sound = (voice / max(np.abs(voice).max(), 1e-9) * envelope + hiss)[: n_samples - start]
            out[start : start + len(sound)] += sound
        start += length
        syllable += 1
    return _at_rms(out, -22.0)


def _noise(number: int, duration_s: float) -> Signal:
    white = np.random.default_rng([8, number]).standard_normal(round(duration_s * SAMPLE_RATE))
    if number % 2 == 0:
        return _at_rms(white, -20.0)
    spectrum = np.fft.rfft(white)
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    spectrum[0] = 0
    return _at_rms(np.fft.irfft(spectrum, len(white)), -20.0)


def _quiet(number: int, duration_s: float) -> Signal:
    noise = np.random.default_rng([9, number]).uniform(-1, 1, round(duration_s * SAMPLE_RATE))
    return np.asarray(noise * 10 ** (-76 / 20), np.float32)


def _silence(number: int, duration_s: float) -> Signal:
    return np.zeros(round(duration_s * SAMPLE_RATE) + number, np.float32)


def _at_rms(signal: NDArray[np.float64], level_db: float) -> Signal:
    scaled = signal * 10 ** (level_db / 20) / np.sqrt(np.mean(signal**2))
    return np.asarray(np.clip(scaled, -1, 1), np.float32)


OTHERS: Mapping[str, Callable[[int, float], Signal]] = {
    "piano": _piano,
    "speech": _speech,
    "noise": _noise,
    "quiet": _quiet,
    "silence": _silence,
}


# ---------------------------------------------------------------------------------------------------------------------
# Measurements: from the table of the run.


def value_columns(bundle: Bundle, table: pd.DataFrame) -> dict[str, list[str]]:
    """Columns of each family that are in a table, in the bundle's order."""
    columns = {
        name: [column for output in family.outputs for column in output.columns if column in table.columns]
        for name, family in bundle.families.items()
    }
    return {name: held for name, held in columns.items() if held}


def music_table(table: pd.DataFrame, names: Sequence[str], change: str) -> pd.DataFrame:
    """Rows of the music under one change (or `plain`), indexed by track; failed ones left out."""
    rows = table.reindex([_music_track(name, change) for name in names]).set_axis(pd.Index(names))
    return rows[rows["status"].eq("ok")]


def _music_track(name: str, change: str) -> str:
    return f"music/{name}/{change}{'.mp3' if change == 'mp3' else '.opus' if change == 'opus' else '.flac'}"


def spread_of(plain: pd.DataFrame, column: str) -> float | None:
    """SD of a column between tracks; None where it hardly varies."""
    spread = float(plain[column].astype(float).std(ddof=1))
    return spread if np.isfinite(spread) and spread > CONSTANT else None


def twins(table: pd.DataFrame, bundle: Bundle, options: TrialOptions) -> dict[str, Any]:
    """Count, for every output that rates the seven mid-level features, the pairs that it orders as a listener would."""
    outputs = [
        (family.name, output.columns)
        for family in bundle.families.values()
        for output in family.outputs
        if output.labels == MIDLEVEL.labels and output.unit.startswith("rating") and output.columns[0] in table.columns
    ]
    scores = []
    for family, columns in outputs:
        for cue in CUES:
            column = columns[MIDLEVEL.labels.index(cue.label)]
            low, high = (
                table.loc[[f"twins/{cue.name}/{k:02d}-{end}.flac" for k in range(options.pairs)], column].to_numpy(float)
                for end in ("low", "high")
            )
            scores.append(
                {
                    "family": family,
                    "output": columns[0].removesuffix(f"_{MIDLEVEL.labels[0]}"),
                    "column": column,
                    "cue": cue.name,
                    "pairs": options.pairs,
                    "ordered": int((high > low).sum()),
                    "mean_difference": _rounded(float(np.mean(high - low))),
                }
            )
    return {
        "pairs": options.pairs,
        "duration_s": options.twin_s,
        "cues": {cue.name: {"low": cue.low, "high": cue.high, "label": cue.label} for cue in CUES},
        "bases": [asdict(base) for base in BASES[: options.pairs]],
        "scores": scores,
    }


def robustness(
    table: pd.DataFrame, names: Sequence[str], columns: Mapping[str, Sequence[str]], options: TrialOptions
) -> dict[str, Any]:
    """Measure by how much each column moves under each change, in its spread between the unchanged tracks."""
    plain = music_table(table, names, "plain")
    rows, kept = [], {}
    for change in CHANGES:
        changed = music_table(table, names, change)
        rows += list(change_rows(plain, changed, columns, change))
        if "genre" in table:
            both = plain.index.intersection(changed.index)
            kept[change] = _rounded(float((plain.loc[both, "genre"] == changed.loc[both, "genre"]).mean()))
    return {
        "tracks": len(plain),
        "seconds": options.seconds,
        "rule": RULE,
        "changes": CHANGES,
        "genre_kept": kept,
        "labels": rows,
    }


def change_rows(
    plain: pd.DataFrame, changed: pd.DataFrame, columns: Mapping[str, Sequence[str]], change: str
) -> Iterator[dict[str, Any]]:
    """Yield, a column at a time, what a change does to it: mean and 90th percentile of |change|, mean change, share within RULE.

    All in spreads; null where the column does not vary between the unchanged tracks.
    """
    both = plain.index.intersection(changed.index)
    for family, held in columns.items():
        for column in held:
            spread = spread_of(plain, column)
            moved = (changed.loc[both, column] - plain.loc[both, column]).astype(float).dropna().to_numpy()
            row: dict[str, Any] = {"family": family, "column": column, "change": change, "tracks": len(moved)}
            if spread is None or not len(moved):
                yield row | {"spread": None, "mean": None, "p90": None, "shift": None, "within": None}
                continue
            moved = moved / spread
            yield row | {
                "spread": _rounded(spread),
                "mean": _rounded(float(np.abs(moved).mean())),
                "p90": _rounded(float(np.quantile(np.abs(moved), 0.9))),
                "shift": _rounded(float(moved.mean())),
                "within": _rounded(float((np.abs(moved) < RULE).mean())),
            }


def failures(table: pd.DataFrame, names: Sequence[str], columns: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What the models say of sounds that are no music, in spreads from the music's mean, and of beginnings of tracks."""
    plain = music_table(table, names, "plain")
    clips, outputs, short = [], [], []
    for kind in KINDS:
        rows = table[table.index.str.startswith(f"other/{kind}/")]
        for track, row in rows.iterrows():
            said = {name: _text(row.get(name)) for name in ("status", "error", "warning", "genre")}
            clips.append({"kind": kind, "clip": str(track), **said})
        usable = rows[rows["status"].eq("ok")]
        for family, held in columns.items() if len(usable) else ():
            for column in held:
                values, spread = usable[column].astype(float).dropna(), spread_of(plain, column)
                if len(values):
                    away = None if spread is None else _rounded(float((values.mean() - plain[column].mean()) / spread))
                    between = None if spread is None or len(values) < 2 else _rounded(float(values.std(ddof=1)) / spread)
                    mean = _rounded(float(values.mean()))
                    outputs.append(
                        {"kind": kind, "family": family, "column": column, "mean": mean, "position": away, "spread": between}
                    )
    for seconds in FIRST_S:
        for one in change_rows(plain, music_table(table, names, f"first-{seconds:g}"), columns, "first"):
            if one["mean"] is not None:
                short.append({name: one[name] for name in ("family", "column", "tracks", "mean")} | {"seconds": seconds})
    return {"kinds": KINDS, "clips": clips, "outputs": outputs, "short": short}


def _text(value: Any) -> str | None:
    return None if value is None or pd.isna(value) else str(value)


def _rounded(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
