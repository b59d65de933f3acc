"""A run on a Dask cluster: chunks of tracks go to its workers, parts and rows come back.

    dask scheduler                                                  on one machine
    dask worker tcp://HOST:8786 --nthreads 1 --nworkers 16          on each of the others
    annotate run /corpus --out T.parquet --scheduler tcp://HOST:8786

Conventions
-----------
- A worker decodes, extracts and infers whole tracks, and sees the audio where the client does (same path, or a URL). Where it
  sees the run folder, too, it writes the parts itself; elsewhere it hands each part back with its answer, and the client
  writes it. Either way a part means done, so the client may be killed and started again.
- A worker that dies costs the work on one track: the scheduler gives its chunk to another one, which reads in the chunk's
  *diary* what is done and which track was at hand. That one is tried once more, last; when it kills again, it is a failed row.
- One chunk is in work at a time in a worker process, however many threads it has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import platform
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from annotate.recall import decoder_version
from annotate.store import Part, RunFolder, default_cache_folder, replace_atomically, write_part
from annotate.tracks import Track
from annotate.worker import Done, Job, fail, process
from models.bundle import Bundle
from models.bundle import find as find_bundle
from models.bundle import load as load_bundle

log = logging.getLogger("annotate")

CONNECT_S: Final = 5.0  # until a scheduler must have answered
WORKERS_S: Final = 30.0  # until it must have a worker
ADDRESS: Final = re.compile(r"(tcp|tls|ws|wss)://[^/\s]+:[0-9]+")
MISSING_MODULE: Final = re.compile(r"No module named '([\w.]+)'")
SAME_VERSIONS: Final = ("dask", "distributed", "cloudpickle", "msgpack")
DEATHS_OF_A_TRACK: Final = 2  # of its worker, then it is a failed row
DEATHS_OF_A_CHUNK: Final = 2  # then it goes back to the client: a scheduler gives up on a task after four
HUNG_WITHIN_S: Final = 60.0  # after the time-out: how long the scheduler may take to notice

_ONE_AT_A_TIME = threading.Lock()


class ClusterError(Exception):
    """A cluster that cannot do the run, or that is gone; the message is one line."""


@dataclass(frozen=True)
class Task:
    """What every worker of a cluster must know; picklable."""

    job: Job
    run_id: str
    bundle_name: str
    bundle_digest: str
    own_cache: bool  # the worker's cache folder instead of the job's
    first: Path | None  # a track that must be visible; None: they are at URLs


@dataclass(frozen=True)
class Outcome:
    """What the client hears of a chunk."""

    done: tuple[Done, ...]
    parts: tuple[Part, ...]  # of `done`, where the worker does not see the run folder
    left: tuple[Track, ...]  # not done: workers died at this chunk
    gave_up: bool = False  # the scheduler did, not a worker


# in a worker


def annotate_chunk(tracks: Sequence[Track], task: Task) -> Outcome:
    """Annotate a few tracks in a worker process of a cluster; goes on where a worker that died has stopped."""
    with _ONE_AT_A_TIME:
        job, shared = job_here(task)
        diary = Diary.read(_notes(job), tracks, job.timeout_s)
        if diary.deaths > DEATHS_OF_A_CHUNK:
            left = tuple(track for track in tracks if track.track not in diary.done)
        else:
            left = ()
            for track in sorted(tracks, key=lambda track: diary.killed.get(track.track, 0)):
                if track.track in diary.done:
                    continue
                killed = diary.killed.get(track.track, 0)
                if track.track in diary.hung or killed >= DEATHS_OF_A_TRACK:
                    reason = (
                        f"took longer than the time-out of {job.timeout_s:g} s"
                        if track.track in diary.hung
                        else f"killed its worker process {killed} times: out of memory, or a crash in native code"
                    )
                    done = fail(track, reason, job)
                else:
                    diary.begin(track.track)
                    (done,) = process([track], job)
                diary.end(done)
        here = RunFolder(job.run_folder)
        parts = () if shared else tuple(part for name in diary.done if (part := here.read_part(name)) is not None)
        diary.close()
        return Outcome(tuple(diary.done.values()), parts, left)


def job_here(task: Task) -> tuple[Job, bool]:
    """The job as this machine sees it, and whether it sees the client's run folder."""
    shared = _token(task).exists()
    run_folder = task.job.run_folder if shared else Path(tempfile.gettempdir(), f"annotate-{task.run_id}")
    (run_folder / "parts").mkdir(parents=True, exist_ok=True)
    cache = default_cache_folder() if task.own_cache and task.job.cache is not None else task.job.cache
    bundle = _bundle_here(task.job.bundle, task.bundle_name, task.bundle_digest)
    return replace(task.job, run_folder=run_folder, cache=cache, bundle=str(bundle)), shared


@lru_cache(maxsize=4)
def _bundle_here(folder: str, name: str, digest: str) -> Path:
    """Folder of a bundle with this digest: where the client has it, or the built-in one of that name."""
    for place in (folder, Path(folder).name, name):
        with contextlib.suppress(Exception):
            if load_bundle(place).digest == digest:
                return Path(find_bundle(place))
    raise ClusterError(
        f"{socket.gethostname()} has no bundle {name!r} with the digest {digest[:8]}…, neither at {folder} nor built in"
    )


def _notes(job: Job) -> Path:
    """Folder of the chunks' diaries and of the token; each shard has its own."""
    return job.run_folder / f"{job.marks}-on-cluster"


def _token(task: Task) -> Path:
    return _notes(task.job) / f"{task.run_id}.token"


def forget(run_id: str) -> None:
    """Remove what a worker that does not see the run folder kept."""
    shutil.rmtree(Path(tempfile.gettempdir(), f"annotate-{run_id}"), ignore_errors=True)


class Diary:
    """What has become of a chunk's tracks so far; on the disk, so that it outlives the worker.

    Attributes
    ----------
    done : dict
        Identity -> `Done`, by this worker and those before it.
    killed : dict
        Identity -> how many workers died at it.
    hung : set
        Identities of tracks at which a worker ran into the time-out.
    deaths : int
        How many workers died at this chunk.
    """

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        self.done = {name: Done(**done) for name, done in content.get("done", {}).items()}
        self.killed: dict[str, int] = dict(content.get("killed", {}))
        self.hung: set[str] = set(content.get("hung", ()))
        self.deaths: int = content.get("deaths", 0)
        self.current: tuple[str, float] | None = None  # track at hand, since when (time.time)

    @classmethod
    def read(cls, folder: Path, tracks: Sequence[Track], timeout_s: float) -> Diary:
        """Open the diary of a chunk; where a worker left it with a track at hand, that worker is dead."""
        names = "\n".join(json.dumps(track.track) for track in tracks)
        path = folder / f"{hashlib.sha256(names.encode()).hexdigest()[:32]}.json"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return cls(path, {})
        diary = cls(path, content)
        if content.get("current") is not None:
            name, since = content["current"]
            diary.deaths += 1
            diary.killed[name] = diary.killed.get(name, 0) + 1
            if timeout_s <= time.time() - since <= timeout_s + HUNG_WITHIN_S:
                diary.hung.add(name)
            diary._write()
        return diary

    def begin(self, track: str) -> None:
        """Say that a track is at hand."""
        self.current = (track, time.time())
        self._write()

    def end(self, done: Done) -> None:
        """Say that a track is done."""
        self.done[done.track] = done
        self.current = None
        self._write()

    def close(self) -> None:
        """Forget the chunk; its tracks have parts."""
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        content = {
            "done": {name: asdict(done) for name, done in self.done.items()},
            "killed": self.killed,
            "hung": sorted(self.hung),
            "deaths": self.deaths,
            "current": self.current,
        }
        replace_atomically(self.path, lambda temporary: _write_json(temporary, content))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content))


def probe(task: Task) -> dict[str, Any]:
    """What a worker has: versions, the bundle, and whether it sees the audio and the run folder."""
    try:
        _, shared = job_here(task)
        trouble = None
    except ClusterError as error:
        shared, trouble = False, str(error)
    return {
        "annotate": metadata.version("annotate"),
        "decoder": decoder_version(),
        "sees audio": task.first is None or task.first.exists(),
        "sees run folder": shared,
        "trouble": trouble,
    }


# in the client


def work_on_cluster(
    address: str,
    chunks: Callable[[Sequence[Track]], Iterator[list[Track]]],
    pending: Sequence[Track],
    job: Job,
    bundle: Bundle,
    *,
    own_cache: bool,
    in_flight: int | None,
    step: Callable[[Done], object],
) -> None:
    """Have a cluster annotate every pending track; when it returns, each has a part.

    Parameters
    ----------
    address : str
        Of the scheduler, ``tcp://HOST:PORT``.
    chunks : function
        Cuts tracks into what a worker takes at a time.
    own_cache : bool
        Whether workers use their own cache folder instead of the job's.
    in_flight : int or None
        Chunks that the cluster holds at a time; None: twice the number of its threads.
    step : function
        Hears of every track that is done.

    Raises
    ------
    ClusterError
        No scheduler, or of another version; workers that lack something, by name; a scheduler that is gone.
    """
    task = Task(job, uuid.uuid4().hex, bundle.name, bundle.digest, own_cache, None if pending[0].url else pending[0].path)
    token = _token(task)
    token.parent.mkdir(parents=True, exist_ok=True)
    for stale in token.parent.iterdir():  # the lock of the run is ours
        stale.unlink()
    token.touch()
    try:
        with connected(address) as client:
            n_workers = check_cluster(client, address, task)
            log.info("cluster %s: %d workers", address, n_workers)
            remaining = {track.track: track for track in pending}
            gave_up: dict[str, int] = {}
            plan = list(chunks(pending))
            while plan:
                again: list[Track] = []
                for outcome in outcomes(client, address, plan, task, in_flight or 2 * sum(client.ncores().values())):
                    for part in outcome.parts:
                        write_part(job.run_folder / "parts", part)
                    for done in outcome.done:
                        if remaining.pop(done.track, None) is not None:
                            step(done)
                    for track in outcome.left:
                        log.warning("workers died at %s", track.track, extra={"track": track.track})
                        gave_up[track.track] = gave_up.get(track.track, 0) + outcome.gave_up
                        if gave_up[track.track] > DEATHS_OF_A_TRACK and remaining.pop(track.track, None) is not None:
                            step(fail(track, "its worker processes died, whichever it was given to", job))
                        elif track.track in remaining:
                            again.append(track)
                plan = [[track] for track in again]
            with contextlib.suppress(Exception):
                client.run(forget, task.run_id)
            if remaining:
                raise ClusterError(f"cluster {address} returned nothing for {len(remaining)} tracks; run again to go on")
    finally:
        token.unlink(missing_ok=True)


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Connect to a scheduler; the connection is closed at the end, and what it holds of ours is dropped there."""
    check_address(address)
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError("--scheduler needs the packages dask and distributed: install the extra 'cluster'") from None
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # versions that differ: `check_cluster` says so
        try:
            client = Client(address, timeout=CONNECT_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise ClusterError(
                f"no scheduler at {address} within {CONNECT_S:g} s ({reason}): is `dask scheduler` running there, and is the "
                "address right?"
            ) from None
    try:
        yield client
    finally:
        with contextlib.suppress(Exception):
            client.close(timeout=5)


def check_address(address: str) -> None:
    """Refuse what is no address of a scheduler.

    Raises
    ------
    ClusterError
        Anything but ``tcp://HOST:PORT`` (or tls, ws, wss).
    """
    if not ADDRESS.fullmatch(address):
        raise ClusterError(f"--scheduler {address}: must be tcp://HOST:PORT, as `dask scheduler` prints it when it starts")


def check_cluster(client: Any, address: str, task: Task) -> int:
    """Refuse a cluster that cannot do the run or would give other results; the number of its workers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        deadline = time.monotonic() + WORKERS_S
        check_versions(client.get_versions(check=False), address)
        while not client.ncores():
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"the scheduler at {address} has had no worker for {WORKERS_S:g} s: start `dask worker {address}`"
                )
            time.sleep(0.2)
        check_versions(client.get_versions(check=False), address)
        found = client.run(probe, task, on_error="return")
    for worker, answer in sorted(found.items()):
        missing = MISSING_MODULE.search(str(answer)) if isinstance(answer, BaseException) else None
        if missing:  # Dask gives the error as the text of another one
            raise ClusterError(f"worker {worker} lacks the package {missing[1]!r}: install annotate there, the same version")
        if isinstance(answer, BaseException):
            raise ClusterError(f"worker {worker} cannot annotate: {type(answer).__name__}: {' '.join(str(answer).split())[:200]}")
        ours = {"annotate": metadata.version("annotate"), "decoder": decoder_version()}
        for what, wanted in ours.items():
            if answer[what] != wanted:
                raise ClusterError(
                    f"worker {worker} has another {what} ({answer[what]}) than this machine ({wanted}): install the same"
                )
        if answer["trouble"]:
            raise ClusterError(f"worker {worker}: {answer['trouble']}")
        if not answer["sees audio"]:
            raise ClusterError(
                f"worker {worker} does not see {task.first}: mount the corpus there at the same place, or use a URL"
            )
        if task.job.midi is not None and not answer["sees run folder"]:
            raise ClusterError(f"worker {worker} does not see {task.job.run_folder}, and --midi needs a folder that all share")
    return len(found)


def check_versions(versions: Mapping[str, Any], address: str) -> None:
    """Refuse a scheduler or workers with another Python or Dask than this client's.

    Parameters
    ----------
    versions : mapping
        As `distributed.Client.get_versions` gives it.
    address : str
        Of the scheduler, for the message.
    """
    ours = versions["client"]
    places = {f"the scheduler at {address}": versions["scheduler"]}
    places |= {f"worker {worker}": held for worker, held in sorted(versions.get("workers", {}).items())}
    for place, theirs in places.items():
        if theirs is None:
            raise ClusterError(f"{place} does not say its versions: is it of another version of Dask?")
        differing = [
            f"{name} {theirs['packages'].get(name)}, here {ours['packages'].get(name)}"
            for name in SAME_VERSIONS
            if theirs["packages"].get(name) != ours["packages"].get(name)
        ]
        python = str(theirs.get("host", {}).get("python", platform.python_version())).split(".")[:2]
        if python != platform.python_version().split(".")[:2]:
            differing.append(f"Python {'.'.join(python)}, here {platform.python_version()}")
        if differing:
            raise ClusterError(
                f"{place} is of another version ({'; '.join(differing)}): install the same versions on all machines"
            )


def outcomes(client: Any, address: str, plan: Sequence[list[Track]], task: Task, in_flight: int) -> Iterator[Outcome]:
    """Run `annotate_chunk` on every chunk through joblib's Dask backend; answers in the order of completion.

    joblib's own backend never returns from a task that the scheduler gave up, nor from a scheduler that is gone; here the first
    is an `Outcome` with everything left, the second a `ClusterError`.
    """
    from distributed import KilledWorker
    from joblib import Parallel, delayed, parallel_config, register_parallel_backend
    from joblib._dask import DaskDistributedBackend

    lost = ClusterError(f"the scheduler at {address} is gone; what was done is kept in {task.job.run_folder}; run again to go on")

    class Backend(DaskDistributedBackend):  # type: ignore[misc]
        """joblib's Dask backend, which answers for every task."""

        def __init__(self, **arguments: Any) -> None:
            super().__init__(client=client, **arguments)
            self.open: dict[int, Callable[[Any], None]] = {}  # tasks without an answer

        def submit(self, func: Any, callback: Any = None) -> Any:
            (_, (tracks, _), _) = func.items[0]
            number = id(callback)

            def answer(out: Any) -> None:
                if self.open.pop(number, None) is not None:
                    given_up = isinstance(out, KilledWorker)
                    callback([Outcome((), (), tuple(tracks), gave_up=True)] if given_up else out)

            self.open[number] = answer
            return super().submit(func, answer)

        async def _collect(self) -> None:
            import asyncio

            while self._continue:
                async for future, result in self.waiting_futures:
                    self._results.pop(future).set_result(None)
                    self._callbacks.pop(future)(result[1] if future.status == "error" else result)
                await asyncio.sleep(0.01)

        def retrieve_result_callback(self, out: Any) -> Any:
            if isinstance(out, BaseException):
                raise lost if type(out).__name__ in ("CancelledError", "FutureCancelledError") else out
            return super().retrieve_result_callback(out)

    backends: list[Backend] = []

    def make(**arguments: Any) -> Backend:
        backends.append(Backend(**arguments))
        return backends[-1]

    register_parallel_backend("annotate-dask", make)
    ended = threading.Event()

    def watch() -> None:
        quiet_since = time.monotonic()
        while not ended.wait(1.0):
            if client.status in ("closing", "closed"):
                for backend in backends:
                    for answer in list(backend.open.values()):
                        answer(lost)
                return
            if client.scheduler_info()["workers"]:
                quiet_since = time.monotonic()
            elif time.monotonic() - quiet_since > WORKERS_S:
                log.warning("cluster %s has no worker; waiting for one", address)
                quiet_since = time.monotonic()

    threading.Thread(target=watch, daemon=True).start()
    try:
        with parallel_config(backend="annotate-dask"):
            pool = Parallel(n_jobs=-1, return_as="generator_unordered", pre_dispatch=max(in_flight, 1), batch_size=1)
            yield from pool(delayed(annotate_chunk)(chunk, task) for chunk in plan)
    except ModuleNotFoundError as error:
        raise ClusterError(f"a worker lacks the package {error.name!r}: install annotate there, the same version") from None
    finally:
        ended.set()
