"""What a worker process does with a few tracks: decode, extract, infer, write a part each.

On a CPU everything happens here, with the bundle's ONNX graphs; TensorFlow is never imported. Where the main process runs the
networks (`--exact`, a GPU), `prepare_windows` is what happens here and `finish` what the main process does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import logging
import os
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from annotate.audio import AudioError, Decoded, decode, digest, stated_duration_s
from annotate.places import FetchError, PlaceLost, check_mount, fetched
from annotate.recall import Arrays, Recall, descriptors_of, feature_cache, network_of, transcription_of
from annotate.store import CAUSES, FileState, Part, StoreError, host, replace_atomically, write_part
from annotate.tracks import Track, read_tags
from models import inference
from models.bundle import Bundle, BundleError, Family, run_engine
from models.bundle import load as load_bundle

Array = NDArray[np.float32]
log = logging.getLogger("annotate")

MAX_NAME_BYTES = 255  # of a file name, on most file systems
LONG_S = 600.0  # seconds of audio from which a track is in work alone: an hour needs up to 2.5 GB
OWNER_S = 1.0  # between two looks whether the process that started this one is there
LONG_BYTES = 2**20  # smaller files are not opened to see how long they are

NOTE_FIELDS = ("onset_s", "offset_s", "pitch", "amplitude")
NOTE_COLUMNS = {
    "midi_note_density": "note_density",
    "midi_tempo_bpm": "tempo_bpm",
    **{
        f"midi_{what}_{how}": f"{what}_{how}" for what in ("pitch", "duration", "velocity", "interval") for how in ("mean", "std")
    },
    **{f"midi_{name}": name for name in (f"pc_{p}" for p in ("c", "cs", "d", "ds", "e", "f", "fs", "g", "gs", "a", "as", "b"))},
}


@dataclass(frozen=True)
class Job:
    """What every worker must know; picklable."""

    bundle: str  # folder
    families: tuple[str, ...]  # that run, in table order
    run_folder: Path
    cache: Path | None
    cache_bytes: int
    midi: Path | None  # folder for MIDI files
    windows: bool  # whether a row a window is kept
    timeout_s: float
    batch_size: int | None  # None: each network's own
    marks: str = "started"  # folder below the run folder for the marks of tracks at hand; each shard has its own
    owner: int | None = None  # process that started the workers on this machine, with which they end


@dataclass(frozen=True, eq=False)
class Prepared:
    """A track with everything but the networks' outputs."""

    track: Track
    state: FileState
    row: dict[str, Any]
    signals: dict[int, Array] = field(default_factory=dict)  # Hz -> samples, where something is to be computed from them
    inputs: dict[str, Array] = field(default_factory=dict)  # note statistics, note sequence, descriptors
    known: dict[str, dict[str, Array]] = field(default_factory=dict)  # family -> outputs that the cache held
    windows: dict[str, list[Array]] = field(default_factory=dict)  # family -> windows, where the main process infers
    seconds: float = 0.0


@dataclass(frozen=True)
class Done:
    """What the main process hears of a track."""

    track: str
    status: str
    error: str | None
    audio_s: float
    seconds: float


@lru_cache(maxsize=2)
def _bundle(folder: str) -> Bundle:
    return load_bundle(folder)


def process(tracks: Sequence[Track], job: Job) -> list[Done]:
    """Annotate a few tracks from file to part; a track that raises what nobody foresaw becomes a failed row.

    Raises
    ------
    StoreError, BundleError, PlaceLost
        What no other track would survive either.
    """
    try:
        return _process(tracks, job)
    except (StoreError, BundleError, PlaceLost):
        raise
    except OSError as error:
        refuse_full_disk(error, job)
        return _one_by_one(tracks, job, error)
    except Exception as error:
        return _one_by_one(tracks, job, error)


def _one_by_one(tracks: Sequence[Track], job: Job, error: Exception) -> list[Done]:
    """Find out which of a few tracks raised `error`; the others are annotated."""
    if len(tracks) > 1:
        return [done for track in tracks for done in process([track], job)]
    return [fail(tracks[0], unforeseen(error), job)]


def refuse_full_disk(error: OSError, job: Job) -> None:
    """Raise the `StoreError` of a disk that is full or may not be written: no other track would fare better."""
    if error.errno in CAUSES:
        cause, next_step = CAUSES[error.errno]
        where = error.filename or job.run_folder
        raise StoreError(f"{cause}: {where}; what was done is kept in {job.run_folder}; {next_step}") from error


def unforeseen(error: Exception) -> str:
    """Reason of a failed row that no check gave: the error, and where it came from."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())[:300]
    what = "not enough memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {text}"
    return f"unexpected error, please report it: {what} ({Path(place.filename).name}:{place.lineno})"


def failed_row(track: Track, reason: str) -> dict[str, Any]:
    """Row of a track that could not be annotated."""
    return {
        "track": track.track,
        "track_key": track.track_key,
        "track_id": track.track_id,
        "corpus": track.corpus,
        "group": track.group,
        "status": "failed",
        "error": reason,
    }


def fail(track: Track, reason: str, job: Job) -> Done:
    """Write the part of a track that could not be annotated."""
    state = FileState(track.size, track.mtime_ns, None)
    write_part(job.run_folder / "parts", Part(track.track, state, "failed", failed_row(track, reason), []))
    return Done(track.track, "failed", reason, 0.0, 0.0)


def _process(tracks: Sequence[Track], job: Job) -> list[Done]:
    done: list[Done] = []
    batch: list[Prepared] = []
    with Watch(job) as watch:
        for track in tracks:
            if is_long(track):
                done += _infer(batch, job, watch)  # lets go of their signals first
                batch = []
                with watch.alone(track):
                    done += _infer([prepare(track, job)], job, watch)
                continue
            watch.now(track)
            batch.append(prepare(track, job))
            if sum(one.row.get("duration_s") or 0.0 for one in batch) > LONG_S:
                done += _infer(batch, job, watch)
                batch = []
        return done + _infer(batch, job, watch)


def is_long(track: Track) -> bool:
    """Whether a track takes so much memory that only one such may be in work on a machine."""
    return track.size > LONG_BYTES and (stated_duration_s(track.path) or 0.0) > LONG_S


def _infer(prepared: Sequence[Prepared], job: Job, watch: Watch) -> list[Done]:
    """Run the networks on what was prepared, and write the parts."""
    if not prepared:
        return []
    bundle = _bundle(job.bundle)
    started = time.monotonic()
    networks = [family for family in job.families if bundle.families[family].weights is not None]
    predict = {family: inference.onnx_predict(bundle, family) for family in networks}
    outputs: dict[str, dict[int, dict[str, Array]]] = {}
    families = inference.spectrogram_families(bundle, job.families)
    rate_of = {family: inference.spec_of(bundle.families[family]).sample_rate for family in families}
    families = tuple(sorted(families, key=lambda family: rate_of[family], reverse=True))  # the largest signals go first
    for place, family in enumerate(families):
        _let_go(prepared, {rate_of[later] for later in families[place:]})
        size = job.batch_size or inference.CPU_BATCH[family]
        computed = inference.infer(predict[family], _windows(bundle, family, prepared, watch), size)
        for number, heads in computed.items():
            _recall(prepared[number].state.sha256, job).put(network_of(bundle, family), heads)
        outputs[family] = {n: one.known[family] for n, one in enumerate(prepared) if family in one.known} | computed
    shared = (time.monotonic() - started) / len(prepared)
    return [finish(one, number, outputs, predict, bundle, job, shared) for number, one in enumerate(prepared)]


def _let_go(prepared: Sequence[Prepared], rates: Set[int]) -> None:
    """Drop the signals that no network to come reads: those of an hour are more than a gigabyte."""
    for one in prepared:
        for rate in one.signals.keys() - rates:
            del one.signals[rate]


def prepare_windows(tracks: Sequence[Track], job: Job) -> list[Prepared]:
    """Decode a few tracks and compute all that the main process needs to run the networks itself."""
    bundle = _bundle(job.bundle)
    prepared = []
    with Watch(job) as watch:
        for track in tracks:
            try:
                with watch.alone(track) if is_long(track) else watch.on(track):
                    one = prepare(track, job, networks=False)
                    windows = {
                        family: list(inference.windows_of(bundle.families[family], one.signals))
                        for family in inference.spectrogram_families(bundle, job.families)
                        if one.row["status"] == "ok"
                    }
            except (StoreError, BundleError, PlaceLost):
                raise
            except Exception as error:
                if isinstance(error, OSError):
                    refuse_full_disk(error, job)
                state = FileState(track.size, track.mtime_ns, None)
                prepared.append(Prepared(track, state, failed_row(track, unforeseen(error))))
            else:
                prepared.append(replace(one, signals={}, windows=windows))
    return prepared


def _recall(sha256: str | None, job: Job) -> Recall:
    return Recall(feature_cache(job.cache, job.cache_bytes) if job.cache else None, sha256)


def _windows(bundle: Bundle, family: str, prepared: Sequence[Prepared], watch: Watch) -> Iterator[tuple[int, Array]]:
    for number, one in enumerate(prepared):
        if one.row["status"] == "ok" and family not in one.known:
            watch.now(one.track)
            for window in inference.windows_of(bundle.families[family], one.signals):
                yield number, window


def prepare(track: Track, job: Job, *, networks: bool = True) -> Prepared:
    """Decode a track and compute everything that needs no spectrogram network.

    What the cache holds is taken from there, the networks' outputs, too, unless `networks` is false; a track of which it holds
    everything is not decoded.
    """
    if track.url is not None:
        try:
            with fetched(track) as local:
                return replace(prepare(local, job, networks=networks), track=track)
        except FetchError as error:
            return Prepared(track, FileState(track.size, track.mtime_ns, None), failed_row(track, str(error)))
    started = time.monotonic()
    tags = read_tags(track.path)
    row: dict[str, Any] = {
        "track": track.track,
        "track_key": track.track_key,
        "track_id": track.track_id,
        "corpus": track.corpus,
        "group": track.group,
        "artist": track.artist or tags.artist,
        "album": track.album or tags.album,
        "title": track.title or tags.title,
    }
    state = FileState(track.size, track.mtime_ns, None)
    bundle = _bundle(job.bundle)
    try:
        recall = _recall(digest(track.path) if job.cache else None, job)
        held = _held(recall, bundle, job, networks=networks)
        decoded = held.properties if held.properties and not held.rates else decode(track.path, rates=sorted(held.rates))
        if recall.sha256 not in (None, decoded.sha256):
            raise AudioError("was changed while it was being read")
    except AudioError as error:
        check_mount(track)
        return Prepared(track, state, row | {"status": "failed", "error": str(error)}, seconds=time.monotonic() - started)
    if decoded is not held.properties:
        recall.put_properties(decoded)
    state = FileState(track.size, track.mtime_ns, decoded.sha256)
    row |= {
        "duration_s": decoded.duration_s,
        "sample_rate_hz": decoded.sample_rate,
        "channels": decoded.channels,
        "audio_sha256": decoded.sha256,
        "status": "ok",
        "error": None,
    }
    warnings = [decoded.truncated] if decoded.truncated else []
    inputs: dict[str, Array] = {}
    if _needs_notes(job):
        inputs, note_row = _notes(track, decoded, held, recall, job)
        row |= note_row
        if note_row["midi_n_notes"] == 0:
            warnings.append("no notes found")
    padded = _padded(bundle, job, decoded)
    if padded:
        warnings.append(padded)
    row["warning"] = "; ".join(warnings) or None
    return Prepared(track, state, row, decoded.signals, inputs, held.outputs, seconds=time.monotonic() - started)


@dataclass(frozen=True)
class _Held:
    """What the cache holds of a track, and the sample rates of what must be computed."""

    properties: Decoded | None
    events: Arrays | None
    descriptors: Arrays | None
    outputs: dict[str, Arrays]  # by family
    rates: frozenset[int]  # Hz


def _held(recall: Recall, bundle: Bundle, job: Job, *, networks: bool) -> _Held:
    families = inference.spectrogram_families(bundle, job.families)
    kept = {family: recall.get(network_of(bundle, family)) for family in families} if networks else {}
    outputs = {family: heads for family, heads in kept.items() if heads is not None}
    rates = {inference.spec_of(bundle.families[family]).sample_rate for family in families if family not in outputs}
    events = descriptors = None
    if _needs_notes(job):
        events = recall.get(transcription_of(bundle))
        rates |= {22_050} if events is None else set()
    if _needs_descriptors(job):
        descriptors = recall.get(descriptors_of(bundle))
        rates |= {inference.spec_of(bundle.families["descriptors"]).sample_rate} if descriptors is None else set()
    return _Held(recall.properties(), events, descriptors, outputs, frozenset(rates))


def _needs_notes(job: Job) -> bool:
    return job.midi is not None or any(family in job.families for family in inference.NOTE_FAMILIES)


def _needs_descriptors(job: Job) -> bool:
    return any(family in job.families for family in inference.DESCRIPTOR_FAMILIES)


def _padded(bundle: Bundle, job: Job, decoded: Decoded) -> str | None:
    """Say which networks saw a track that is shorter than their only window."""
    short = [
        f"{family} {bundle.families[family].window_s:g} s"
        for family in inference.spectrogram_families(bundle, job.families)
        if decoded.duration_s < (bundle.families[family].window_s or 0.0)
    ]
    return f"shorter than one window, padded with silence: {', '.join(short)}" if short else None


def _notes(track: Track, decoded: Decoded, held: _Held, recall: Recall, job: Job) -> tuple[dict[str, Array], dict[str, Any]]:
    """Note events, statistics, sequence and descriptors of a track: as the cache held them, or computed and kept there."""
    from features.descriptors import describe
    from features.notes import NOTE_STATISTICS, note_features, note_sequence, note_statistics, to_midi
    from features.transcription import NoteEvents, transcribe

    bundle = _bundle(job.bundle)
    if held.events is not None:
        events = NoteEvents(**{name: held.events[name] for name in NOTE_FIELDS})
    else:
        events = transcribe(decoded.signals[22_050], inference.spec_of(bundle.families["notes"]))
        recall.put(transcription_of(bundle), {name: getattr(events, name) for name in NOTE_FIELDS})
    statistics = note_statistics(events, decoded.duration_s)
    inputs: dict[str, Array] = {"va": statistics}
    if "vaseq" in job.families or "vatransfer" in job.families:
        inputs["vaseq"] = inputs["vatransfer"] = note_sequence(events)
    if _needs_descriptors(job):
        descriptors = held.descriptors
        if descriptors is None:
            spec = inference.spec_of(bundle.families["descriptors"])
            descriptors = {"descriptors": describe(decoded.signals[spec.sample_rate], spec)}
            recall.put(descriptors_of(bundle), descriptors)
        inputs["descriptors"] = np.concatenate([descriptors["descriptors"], note_features(events, decoded.duration_s)])
    named = dict(zip(NOTE_STATISTICS, (float(value) for value in statistics), strict=True))
    row: dict[str, Any] = {"midi_n_notes": len(events)}
    for column, name in NOTE_COLUMNS.items():
        row[column] = None if np.isnan(named[name]) or (len(events) == 0 and name != "note_density") else named[name]
    if job.midi is not None:
        path = midi_path(job.midi, track)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_atomically(path, lambda temporary: to_midi(events).write(str(temporary)), kept=job.run_folder)
    return inputs, row


def midi_path(folder: Path, track: Track) -> Path:
    """Where `--midi` puts the transcription of a track: its identity, whole, so that no two tracks share a file.

    A name that is too long for a file system ends in a digest instead.
    """
    return beside(folder, track.track, ".mid")


def beside(folder: Path, identity: str, suffix: str) -> Path:
    """Where a file about a track lies in a folder of such files: under the track's whole identity, so that no two share one."""
    *above, name = identity.split("/")
    return folder.joinpath(*(_short(part, "") for part in above), _short(name, suffix))


def _short(name: str, suffix: str) -> str:
    content = name.encode()
    if len(content) + len(suffix) <= MAX_NAME_BYTES:
        return name + suffix
    return f"{content[:200].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:16]}{suffix}"


def finish(
    one: Prepared,
    number: int,
    outputs: Mapping[str, Mapping[int, Mapping[str, Array]]],
    predict: Mapping[str, inference.Predict],
    bundle: Bundle,
    job: Job,
    seconds: float,
) -> Done:
    """Fill in the columns of every family and write the track's part."""
    row = dict(one.row)
    window_rows: list[dict[str, Any]] = []
    if row["status"] == "ok":
        for name in job.families:
            family = bundle.families[name]
            if name == "best":
                row |= _ratings(family, inference.best_numbers(one.inputs["descriptors"], outputs[name][number]), bundle)
            elif name in inference.WINDOW_FAMILIES:
                columns, windows = inference.network_columns(family, outputs[name][number])
                row |= columns
                if job.windows:
                    window_rows += [
                        {"family": name, "window": index, "start_s": index * float(family.window_s or 0.0), **values}
                        for index, values in enumerate(windows)
                    ]
            elif name == "probe":
                salience = next(o.columns for o in bundle.families["midlevel"].outputs if o.head == "salience")
                row |= inference.probe_columns(family, predict[name], row, salience)
            elif name in ("va", "vaseq", "vatransfer"):
                row |= inference.network_columns(family, predict[name](np.nan_to_num(one.inputs[name])[None]))[0]
            elif name == "descriptors":
                row |= _ratings(family, one.inputs[name], bundle)
    write_part(job.run_folder / "parts", Part(one.track.track, one.state, row["status"], row, window_rows))
    return Done(one.track.track, row["status"], row.get("error"), row.get("duration_s") or 0.0, one.seconds + seconds)


def _ratings(family: Family, numbers: Array, bundle: Bundle) -> dict[str, float]:
    """Columns of the descriptor model or of `best`, an engine an output, from the numbers of a track."""
    row: dict[str, float] = {}
    for output in family.outputs:
        values = run_engine(bundle.file(family.details["engines"][output.head]), numbers[None])["ratings"][0]
        row |= dict(zip(output.columns, inference.within_scale(output, [float(value) for value in values]), strict=True))
    return row


@contextlib.contextmanager
def replaced_quietly() -> Iterator[None]:
    """Say nothing when joblib replaces a worker that has grown: it is done between two tasks, and nothing is lost.

    The warning comes from joblib's own thread; as an error there it would end that thread, and the pool would wait for ever.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        yield


@lru_cache(maxsize=1)
def end_with(owner: int | None) -> None:
    """End this process when the one that started it is gone: a run that was killed leaves no workers."""
    if owner is None or os.getppid() != owner:
        return

    def look() -> None:
        while os.getppid() == owner:
            time.sleep(OWNER_S)
        os._exit(1)

    threading.Thread(target=look, name="owner", daemon=True).start()


class Watch:
    """Leaves a mark of the track at hand, so that a worker's death can be laid to it, and ends a process that hangs.

    The time-out is a track's own: what it took in earlier stages counts. Clocks are monotonic (the same in all processes of a
    machine), so that a clock that is set hurts nobody.
    """

    def __init__(self, job: Job) -> None:
        self.timeout_s, self.owner = job.timeout_s, job.owner
        self.path = job.run_folder / job.marks / f"{os.getpid()}.json"
        self.used: dict[str, float] = {}  # seconds, by track
        self.current: tuple[str, float] | None = None  # track, when its present stage began

    def __enter__(self) -> Watch:
        end_with(self.owner)
        self.path.parent.mkdir(exist_ok=True)
        self.sink = open(os.devnull, "w")
        return self

    def now(self, track: Track) -> None:
        """Say that `track` is being worked on from here, and let its clock run on."""
        self._stop_clock()
        used = self.used.get(track.track, 0.0)
        self.current = (track.track, time.monotonic())
        mark = {"track": track.track, "pid": os.getpid(), "since": time.monotonic() - used}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(mark))
        os.replace(temporary, self.path)  # the process may be killed at any instant
        faulthandler.dump_traceback_later(max(self.timeout_s - used, 0.1), exit=True, file=self.sink)

    @contextlib.contextmanager
    def on(self, track: Track) -> Iterator[None]:
        """Work on a track like any other."""
        self.now(track)
        yield

    @contextlib.contextmanager
    def alone(self, track: Track) -> Iterator[None]:
        """Work on a long track while no other process of this machine does so in the same run; waiting costs it no time."""
        self._stop_clock()
        self.current = None
        faulthandler.cancel_dump_traceback_later()
        self.path.unlink(missing_ok=True)
        with filelock.FileLock(self.path.with_name(f"long-{host()}.lock"), thread_local=False):
            self.now(track)
            yield

    def _stop_clock(self) -> None:
        if self.current is not None:
            track, began = self.current
            self.used[track] = self.used.get(track, 0.0) + time.monotonic() - began

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        self.sink.close()
        self.path.unlink(missing_ok=True)
