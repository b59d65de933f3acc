"""A run, from top to bottom: scan, decode, features, infer, table.

    scan      folder -> Tracks                                                annotate.corpora
    work      Tracks -> parts, a few tracks at a time, in worker processes    annotate.worker
    table     parts -> rows in scan order -> one Parquet file                 outputs.table

Memory is bounded by a few tracks a worker, whatever the corpus. What is done lies in the run folder (annotate.store); a run that
was killed goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import platform
import queue
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from annotate import forecast
from annotate.corpora import Corpus, Track, path_of
from annotate.places import FetchError, fetched, is_url, scan_anywhere
from annotate.progress import Progress
from annotate.recall import decoder_version
from annotate.schema import columns_for, known_tracks, was_in_training, window_columns_for
from annotate.shards import Shard, ShardNote, note_as_json, note_of, own_tracks
from annotate.store import Part, RunFolder, default_cache_folder
from annotate.targets import Target
from annotate.worker import Done, Job, Prepared, fail, finish, midi_path, prepare_windows, process, replaced_quietly
from models import inference
from models.bundle import FAMILIES, Bundle
from models.bundle import load as load_bundle
from outputs.table import SCHEMA_VERSION, Column

log = logging.getLogger("annotate")

CHUNK_TRACKS = 4  # tracks that a worker takes at a time
CHUNK_BYTES = 24 * 2**20  # and how many bytes of audio files, unless one file alone is larger
CACHE_BYTES = 4 * 2**30
KERAS_BATCH = 16  # windows, where the main process runs the networks in float32
QUEUED_TRACKS = 8  # that wait for the networks there, for each worker


class RunError(Exception):
    """A run that cannot start; the message is one line."""


@dataclass(frozen=True)
class RunOptions:
    """A run's parameters, as the command states them."""

    audio: tuple[str, ...]
    out: Path
    bundle: str = "default"
    models: tuple[str, ...] | None = None  # families; None: all of the bundle
    corpus: str = "auto"
    windows: Path | None = None
    midi: Path | None = None
    jobs: int = 0  # worker processes; 0: one a core
    device: str = "auto"  # auto | cpu | gpu
    exact: bool = False
    batch_size: int | None = None
    cache: Path | None = None  # None: the user's cache folder
    use_cache: bool = True
    limit: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dry_run: bool = False
    retry_failed: bool = False
    keep_missing: bool = False
    verify: bool = False
    timeout_s: float = 1800.0
    restart: bool = False
    shard: str | None = None  # "2/8"
    scheduler: str | None = None  # of a Dask cluster, tcp://HOST:PORT
    out_is_folder: bool = False  # a dataset of several files; an existing folder always is
    windows_is_folder: bool = False
    correct_deam: bool = True
    progress: bool = False  # a bar on the terminal
    command_line: str = ""


@dataclass(frozen=True)
class RunResult:
    """What a run did."""

    rows: int
    new: int
    failed: int
    written: bool


def run(options: RunOptions) -> RunResult:
    """Annotate a corpus into one Parquet table; goes on where an earlier run of the same table stopped.

    Raises
    ------
    FileNotFoundError, NoAudioFound, BundleError, RunError, RunRefused, RunLocked, StoreError
        Before anything is changed, each with one line that says what, where and what next.
    """
    out = options.out
    check_places(options)
    bundle = load_bundle(options.bundle)
    chosen = options.models or tuple(family for family in FAMILIES if family in bundle.families)
    families = inference.required(chosen, bundle)
    if options.midi is not None and "notes" not in bundle.families:
        raise RunError(f"--midi {options.midi}: bundle {bundle.name!r} holds no transcription (family notes)")
    corpus = scan_anywhere(
        options.audio,
        corpus=options.corpus,
        include=options.include,
        exclude=options.exclude,
        correct_deam=options.correct_deam,
    )
    for message in corpus.messages:
        log.info("%s", message)
    shard = None if options.shard is None else Shard.parse(options.shard)
    whole = corpus
    if shard is not None:
        corpus = own_tracks(corpus, shard)
        log.info("shard %s: %d of %d tracks", shard, len(corpus.tracks), len(whole.tracks))
    device = choose_device(options)
    fingerprint = fingerprint_of(bundle, families, engine_of(options, device))
    if options.dry_run:
        before = RunFolder(out.with_name(f"{out.name}.run"))
        if before.folder.exists() and not options.restart and before.fingerprint() != fingerprint:
            raise RunError(
                f"{before.folder} was made with other models or another decoder: this run would be refused, see --restart"
            )
        todo = list(corpus.tracks) if options.restart else pending_tracks(corpus, before, families, options)
        n_done = len(corpus.tracks) - len(todo)
        todo = todo[: options.limit]
        log.info("dry run: %d tracks would be annotated, %d are done", len(todo), n_done)
        if todo:
            log.info("%s", forecast_of(todo, bundle, families, fingerprint, device, options))
        return RunResult(n_done, 0, 0, written=False)
    with RunFolder.open(out, fingerprint, restart=options.restart, shard=options.shard) as folder:
        pending = pending_tracks(corpus, folder, families, options)
        left = pending[len(pending) if options.limit is None else options.limit :]
        pending = pending[: options.limit]
        if pending:
            log.info("%d of %d tracks to annotate, families %s", len(pending), len(corpus.tracks), ", ".join(families))
        skipped = len(corpus.tracks) - len(pending) - len(left)
        alone = device == "cpu" and not options.exact and options.scheduler is None  # no process but the workers
        workers = jobs_of(options) if alone else None
        with Progress(pending, options.progress, skipped=skipped, device=device, workers=workers) as progress:
            work(pending, bundle, families, folder.folder, device, options, progress)
        wall_s = time.monotonic() - progress.started
        forecast.keep_rate(
            forecast.rate_key(fingerprint, jobs_of(options), options.scheduler or device), progress.left.audio_s, wall_s
        )
        outdated = {track.track for track in left if not is_unchanged(track, folder.read_part(track.track), options)}
        note = None if shard is None else note_of(shard, whole, corpus, len(left), fingerprint)
        return write(corpus, folder, bundle, chosen, device, options, new=len(pending), outdated=outdated, note=note)


def forecast_of(
    todo: Sequence[Track],
    bundle: Bundle,
    families: Sequence[str],
    fingerprint: Mapping[str, Any],
    device: str,
    options: RunOptions,
) -> str:
    """How long a run will take, in words: by the last such run, or by a short measurement where workers run the networks."""
    jobs = jobs_of(options)
    rate = forecast.known_rate(forecast.rate_key(fingerprint, jobs, options.scheduler or device))
    if rate is None and device == "cpu" and not options.exact and options.scheduler is None:
        rate = forecast.measured_rate(job_of(bundle, families, Path(), options), jobs)
    return forecast.say(todo, rate, jobs)


def check_places(options: RunOptions) -> None:
    """Refuse places that cannot be written, or that hold what is none of ours, before anything is done."""
    for target in targets_of(options):
        target.check()
    if options.windows is not None and os.path.realpath(options.windows) == os.path.realpath(options.out):
        raise RunError(f"--windows {options.windows} and --out are the same file; give each a name of its own")
    if options.scheduler is not None:
        from annotate.cluster import check_address

        check_address(options.scheduler)
        if options.exact or options.device == "gpu":
            raise RunError("--scheduler runs the bundle's CPU graphs in its workers: leave out --exact and --device gpu")
    if options.shard is not None and options.restart:
        raise RunError(
            f"--restart with --shard {options.shard} would discard what the other shards have done: "
            f"remove {options.out.with_name(f'{options.out.name}.run')} once, before all shards"
        )
    if options.midi is not None and options.midi.exists() and not options.midi.is_dir():
        raise RunError(f"--midi {options.midi} is not a folder")


def targets_of(options: RunOptions) -> tuple[Target, ...]:
    """Where the table goes, and the table of windows where there is one."""
    out = Target(options.out, options.out_is_folder or options.out.is_dir(), "--out")
    if options.windows is None:
        return (out,)
    return (out, Target(options.windows, options.windows_is_folder or options.windows.is_dir(), "--windows"))


def fingerprint_of(bundle: Bundle, families: Sequence[str], engine: str) -> dict[str, Any]:
    """Everything that changes results."""
    return {
        "schema_version": SCHEMA_VERSION,
        "bundle": {"name": bundle.name, "version": bundle.version, "digest": bundle.digest},
        "families": ", ".join(families),  # what they are, the bundle's digest says
        "engine": engine,
        "decoder": decoder_version(),
    }


def choose_device(options: RunOptions) -> str:
    """`cpu` or `gpu`, as asked for or, by `auto`, as TensorFlow finds it; the log says which and why."""
    if options.scheduler is not None and options.device == "auto":
        log.info("device: CPUs of the cluster's workers")
        return "cpu"
    if options.device == "cpu":
        return "cpu"
    if options.device == "auto" and not Path("/proc/driver/nvidia").exists():
        log.info("device: cpu (auto: this machine has no NVIDIA driver)")
        return "cpu"
    import tensorflow

    found = tensorflow.config.list_physical_devices("GPU")
    if found:
        name = tensorflow.config.experimental.get_device_details(found[0]).get("device_name", found[0].name)
        log.info("device: gpu, %s", name)
        return "gpu"
    if options.device == "gpu":
        raise RunError("--device gpu: TensorFlow sees no GPU; install the extra 'gpu' and a driver, or use --device cpu")
    log.info("device: cpu (auto: there is an NVIDIA driver, but TensorFlow sees no GPU; the extra 'gpu' installs what it needs)")
    return "cpu"


def engine_of(options: RunOptions, device: str) -> str:
    """What computes the networks, as the fingerprint and the provenance name it."""
    if options.exact:
        return "keras float32"
    return "onnx" if device == "cpu" else "keras mixed float16"


def pending_tracks(corpus: Corpus, folder: RunFolder, families: Sequence[str], options: RunOptions) -> list[Track]:
    """Tracks that have no part that still holds, in scan order."""
    needs_windows = options.windows is not None and any(name in inference.WINDOW_FAMILIES for name in families)
    parts = folder.parts_of(track.track for track in corpus.tracks)
    return [
        track
        for track, part in zip(corpus.tracks, parts, strict=True)
        if not is_done(track, part, options, needs_windows=needs_windows)
    ]


def is_done(track: Track, part: Part | None, options: RunOptions, *, needs_windows: bool) -> bool:
    """Whether a part says all that this run wants to know of a track as it is now."""
    if part is None or not is_unchanged(track, part, options):
        return False
    if part.status == "failed":
        return not options.retry_failed
    if needs_windows and not part.windows:
        return False
    return options.midi is None or midi_path(options.midi, track).exists()


def is_unchanged(track: Track, part: Part | None, options: RunOptions) -> bool:
    """Whether a part speaks of the file as it is now."""
    if part is None:
        return False
    if options.verify and part.state.sha256 is not None:
        try:
            with fetched(track) as local:
                return file_digest(local.path) == part.state.sha256
        except (OSError, FetchError):  # gone or unreadable: the worker says so in the track's row
            return False
    return (part.state.size, part.state.mtime_ns) == (track.size, track.mtime_ns)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def chunks(tracks: Sequence[Track]) -> Iterator[list[Track]]:
    """Cut the work list into a few tracks at a time, large files alone."""
    chunk: list[Track] = []
    size = 0
    for track in tracks:
        if chunk and (len(chunk) == CHUNK_TRACKS or size + track.size > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(track)
        size += track.size
    if chunk:
        yield chunk


def work(
    pending: Sequence[Track],
    bundle: Bundle,
    families: Sequence[str],
    run_folder: Path,
    device: str,
    options: RunOptions,
    progress: Progress,
) -> None:
    """Annotate every pending track; when it returns, each has a part."""
    networks_here = not options.exact and device == "cpu"
    job = job_of(bundle, families, run_folder, options)
    if not pending:
        return
    if options.scheduler is not None:
        from annotate.cluster import work_on_cluster

        everywhere = replace(
            job,
            run_folder=run_folder.absolute(),
            cache=job.cache and job.cache.absolute(),
            midi=job.midi and job.midi.absolute(),
        )
        work_on_cluster(
            options.scheduler,
            chunks,
            pending,
            everywhere,
            bundle,
            own_cache=options.cache is None,
            in_flight=options.jobs or None,
            step=progress.step,
        )
    elif networks_here:
        work_in_workers(process, pending, job, jobs_of(options), progress.step, progress)
    else:
        work_in_main(pending, bundle, job, options, progress)


def job_of(bundle: Bundle, families: Sequence[str], run_folder: Path, options: RunOptions) -> Job:
    """State what every worker of a run must know."""
    return Job(
        bundle=str(bundle.folder),
        families=tuple(families),
        run_folder=run_folder,
        cache=(options.cache or default_cache_folder()) if options.use_cache else None,
        cache_bytes=CACHE_BYTES,
        midi=options.midi,
        windows=options.windows is not None,
        timeout_s=options.timeout_s,
        batch_size=options.batch_size,
        marks="started" if options.shard is None else f"started-{options.shard.replace('/', '-of-')}",
        owner=os.getpid(),
    )


def jobs_of(options: RunOptions) -> int:
    """Worker processes: as asked for, or one a usable core."""
    return options.jobs or len(os.sched_getaffinity(0))


class Steps(Protocol):
    """Whoever hears of a track that is done."""

    def step(self, one: Done) -> str:
        """Take one track, and say which it was."""


def work_in_workers(
    function: Callable[[list[Track], Job], list[Any]],
    pending: Sequence[Track],
    job: Job,
    jobs: int,
    take: Callable[[Any], str],
    progress: Steps,
) -> None:
    """Give chunks of tracks to worker processes until each has a result or is a failed row.

    `take` receives each result and says which track it was. When a process dies, joblib gives up on all of them: the tracks that
    were in work then are suspects. Each is tried once more, alone; one that kills its process again, or ran into the time-out,
    becomes a failed row. The rest goes on.
    """
    remaining = list(pending)
    while remaining:
        finished, suspects = run_chunks(function, list(chunks(remaining)), job, jobs, take)
        if suspects is None:
            return
        remaining = [track for track in remaining if track.track not in finished]
        by_identity = {track.track: track for track in remaining}
        for mark in suspects:
            track = by_identity.get(mark["track"])
            if track is None:
                continue
            log.warning("a worker process died at %s", track.track, extra={"track": track.track})
            hung = mark["elapsed"] >= job.timeout_s
            if not hung:
                done, again = run_chunks(function, [[track]], job, 1, take)
                hung = any(one["elapsed"] >= job.timeout_s for one in again or ())
                if track.track in done:
                    remaining.remove(track)
                    continue
            reason = (
                f"took longer than the time-out of {job.timeout_s:g} s"
                if hung
                else "killed its worker process twice: out of memory, or a crash in native code"
            )
            progress.step(fail(track, reason, job))
            remaining.remove(track)


def run_chunks(
    function: Callable[[list[Track], Job], list[Any]],
    plan: Sequence[list[Track]],
    job: Job,
    jobs: int,
    take: Callable[[Any], str],
) -> tuple[set[str], list[dict[str, Any]] | None]:
    """Run a worker function on each chunk; the tracks with a result, and, if a process died, what was in work."""
    marks = job.run_folder / job.marks
    for stale in marks.glob("*.json"):
        stale.unlink()
    finished: set[str] = set()
    try:
        with contextlib.closing(parallel(function, plan, job, jobs)) as chunks_done:  # a pool that is left open ends another's
            for results in chunks_done:
                finished.update(take(one) for one in results)
    except WorkersDied:
        ended = time.monotonic()
        found = []
        for path in sorted(marks.glob("*.json")):
            try:
                mark = json.loads(path.read_text())
            except (OSError, ValueError):  # its process was killed while it wrote the mark
                continue
            found.append({"track": mark["track"], "elapsed": ended - mark["since"]})
        if not found and not finished:
            raise RunError("worker processes die before they start a track: is there memory for them? try --jobs 1") from None
        return finished, found
    return finished, None


class WorkersDied(Exception):
    """At least one worker process is gone."""


def parallel(function: Callable[..., Any], plan: Sequence[Any], job: Job, jobs: int) -> Generator[Any]:
    """Run `function(item, job)` for each item in worker processes; results in the order of completion.

    A single job, too, runs in a process of its own, which joblib would not start.

    Raises
    ------
    WorkersDied
        When the pool has lost a process; results of finished items have been given before.
    """
    from joblib import Parallel, delayed, parallel_config
    from joblib.executor import get_memmapping_executor
    from joblib.externals.loky.process_executor import BrokenProcessPool, TerminatedWorkerError

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["PYTHONSAFEPATH"] = "1"  # a worker must not import from the user's current folder
    try:
        if jobs == 1:
            single = get_memmapping_executor(1, max_nbytes=None)  # loky's own would be found, and not be understood, by joblib
            try:
                for item in plan:
                    yield single.submit(function, item, job).result()
            except BaseException:
                single.shutdown(wait=False, kill_workers=True)
                raise
        else:
            with replaced_quietly(), parallel_config(backend="loky", inner_max_num_threads=1):
                pool = Parallel(n_jobs=jobs, return_as="generator_unordered", batch_size=1)
                yield from pool(delayed(function)(item, job) for item in plan)
    except (BrokenProcessPool, TerminatedWorkerError) as error:
        raise WorkersDied(str(error)) from None


def work_in_main(pending: Sequence[Track], bundle: Bundle, job: Job, options: RunOptions, progress: Progress) -> None:
    """Let workers decode and extract, and run the Keras networks here, while they work, in full batches.

    The workers' tracks wait in a bounded queue: they stop when it is full, and the networks when it is empty.
    """
    networks = [family for family in job.families if bundle.families[family].weights is not None]
    sizes: dict[str, int] = {}
    if options.exact:
        predict = {family: inference.keras_predict(bundle, family) for family in networks}
    else:
        from models.accelerator import find_accelerator, predictors

        predict, sizes, chosen = predictors(bundle, networks, find_accelerator())
        for line in chosen:
            log.info("%s", line)
    jobs = jobs_of(options)
    ready: queue.Queue[Prepared | Done | BaseException | None] = queue.Queue(QUEUED_TRACKS * jobs)
    ended = threading.Event()

    def put(item: Prepared | Done | BaseException | None) -> str:
        while not ended.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.5)
                break
        return item.track.track if isinstance(item, Prepared) else ""

    class Failures:
        """Takes the rows of tracks that killed their workers into the queue, too."""

        def step(self, one: Done) -> str:
            return put(one)

    def feed() -> None:
        try:
            plan = list(chunks(pending))
            for first in range(0, len(plan), 2 * jobs):  # joblib holds what is finished until it is taken: a group at most
                some = [track for chunk in plan[first : first + 2 * jobs] for track in chunk]
                work_in_workers(prepare_windows, some, job, jobs, put, Failures())
            put(None)
        except BaseException as error:
            put(error)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    try:
        more = True
        while more:
            taken = [ready.get()]
            while len(taken) < QUEUED_TRACKS * jobs:
                try:
                    taken.append(ready.get_nowait())
                except queue.Empty:
                    break
            group: list[Prepared] = []
            for item in taken:
                if isinstance(item, BaseException):
                    raise item
                more = more and item is not None
                if isinstance(item, Done):
                    progress.step(item)
                elif item is not None:
                    group.append(item)
            infer_here(group, predict, sizes, bundle, job, options, progress)
    finally:
        ended.set()
    feeder.join()


def infer_here(
    group: Sequence[Prepared],
    predict: Mapping[str, inference.Predict],
    sizes: Mapping[str, int],
    bundle: Bundle,
    job: Job,
    options: RunOptions,
    progress: Progress,
) -> None:
    """Run the networks on a few prepared tracks in full batches, and write their parts."""
    started = time.monotonic()
    outputs = {}
    for family in inference.spectrogram_families(bundle, job.families):
        windows = ((number, window) for number, one in enumerate(group) for window in one.windows.get(family, ()))
        outputs[family] = inference.infer(predict[family], windows, options.batch_size or sizes.get(family, KERAS_BATCH))
    shared = (time.monotonic() - started) / max(len(group), 1)
    for number, one in enumerate(group):
        progress.step(finish(one, number, outputs, predict, bundle, job, shared))


def rows_of(
    corpus: Corpus, folder: RunFolder, bundle: Bundle, columns: Sequence[Column], options: RunOptions, outdated: Set[str]
) -> Iterator[dict[str, Any]]:
    """Rows of the table: scan order without `outdated`, then, with `--keep-missing`, tracks whose files are gone."""
    names = {column.name for column in columns}
    ratings = corpus.ratings.to_dict("index")
    known = known_tracks(bundle)
    present = set()
    parts = (folder.read_part(track.track) for track in corpus.tracks if track.track not in outdated)
    by_identity = {track.track: track for track in corpus.tracks}

    def missing() -> Iterator[Part]:
        if options.keep_missing:
            absent = (part for part in folder.parts() if part.track not in present and part.track not in outdated)
            if options.shard is not None:
                absent = (part for part in absent if Shard.parse(options.shard).holds(part.track))
            gone = (part for part in absent if not os.path.lexists(os.path.join(corpus.root, path_of(part.track))))
            yield from sorted(gone, key=lambda part: part.track)

    for part in itertools.chain(parts, missing()):
        if part is None:
            continue
        present.add(part.track)
        row = {name: value for name, value in part.row.items() if name in names}
        track = by_identity.get(part.track)
        if track is not None:
            row |= {"track_key": track.track_key, "track_id": track.track_id, "corpus": track.corpus, "group": track.group}
        row |= {name: value for name, value in ratings.get(row["track_key"], {}).items() if name in names}
        row["in_training"] = was_in_training(row, known)
        yield row


def write(
    corpus: Corpus,
    folder: RunFolder,
    bundle: Bundle,
    families: Sequence[str],
    device: str,
    options: RunOptions,
    *,
    new: int,
    outdated: Set[str],
    note: ShardNote | None,
) -> RunResult:
    """Write the table from the parts; leaves it as it is when it holds the same rows already.

    A shard's tables go into the run folder, where `annotate merge` finds them.
    """
    columns = columns_for(bundle, families, corpus)
    about_shard = {} if note is None else {"shard": note_as_json(note)}
    digest = hashlib.sha256(json.dumps([[column.name for column in columns], about_shard]).encode())
    rows = failed = 0
    for row in rows_of(corpus, folder, bundle, columns, options, outdated):
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        rows += 1
        failed += row["status"] == "failed"
    contents = digest.hexdigest()
    targets = targets_of(options)
    if note is not None:
        shard = Shard(note.index, note.count)
        paths = (shard.table(folder.folder), shard.windows_table(folder.folder))
        targets = tuple(Target(path, False, one.option) for path, one in zip(paths, targets, strict=False))
        paths[0].parent.mkdir(exist_ok=True)
    out = targets[0].path
    if not new and all((target.held() or {}).get("contents_sha256") == contents for target in targets):
        log.info("nothing to do: %s holds all %d tracks", out, rows)
        return RunResult(rows, new, failed, written=False)
    provenance = provenance_of(bundle, families, corpus, device, options) | {"contents_sha256": contents} | about_shard
    if len(targets) > 1:
        window_columns = window_columns_for(bundle, families)
        names = {column.name for column in window_columns}

        def window_rows() -> Iterator[dict[str, Any]]:
            for track in corpus.tracks:
                part = None if track.track in outdated else folder.read_part(track.track)
                for row in part.windows if part else ():
                    if row["family"] in families:
                        yield {"track": track.track} | {name: value for name, value in row.items() if name in names}

        targets[1].replace(window_rows, window_columns, provenance, kept=folder.folder)
    targets[0].replace(
        lambda: rows_of(corpus, folder, bundle, columns, options, outdated), columns, provenance, kept=folder.folder
    )
    log.info("%s: %d rows, %d of them failed", out, rows, failed)
    if note is not None:
        log.info(
            "when all %d shards have ended: annotate merge %s --out %s", note.count, shlex.quote(str(folder.folder)), options.out
        )
    return RunResult(rows, new, failed, written=True)


def provenance_of(bundle: Bundle, families: Sequence[str], corpus: Corpus, device: str, options: RunOptions) -> dict[str, Any]:
    """Where the numbers came from: what `annotate info` prints and `annotate explain` reads."""
    return {
        "tool": f"annotate {metadata.version('annotate')}",
        "run_id": uuid.uuid4().hex,
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": options.command_line,
        "options": {
            "jobs": jobs_of(options),
            "batch_size": options.batch_size,
            "scheduler": options.scheduler,
            "limit": options.limit,
            "include": list(options.include),
            "exclude": list(options.exclude),
            "keep_missing": options.keep_missing,
            "timeout_s": options.timeout_s,
            "correct_deam": options.correct_deam,
            "cache": options.use_cache,
        },
        "bundle": {"name": bundle.name, "version": bundle.version, "digest": bundle.digest, "licence": bundle.licence},
        "families": list(families),
        "front_ends": {
            name: {
                "name": bundle.families[name].front_end,
                "spec": dict(bundle.families[name].spec),
                "pooling": bundle.families[name].pooling,
            }
            for name in families
        },
        "decoder": decoder_version(),
        "versions": {
            package: metadata.version(package)
            for package in ("numpy", "librosa", "soundfile", "soxr", "onnxruntime", "keras", "tensorflow", "pandas", "pyarrow")
        },
        "python": platform.python_version(),
        "device": device,
        "engine": engine_of(options, device),
        "corpus": {
            "name": corpus.name,
            "root": ", ".join(options.audio) if is_url(options.audio[0]) else str(corpus.root),
            "messages": list(corpus.messages),
        },
        "explanation": bundle.manifest.get("explanation", {}),
    }
