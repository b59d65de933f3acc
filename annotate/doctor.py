"""Checks of an installation: versions, decoders, device, places, and a self-test of a few seconds from file to table row."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("numpy", "librosa", "soundfile", "soxr", "onnxruntime", "keras", "tensorflow", "pandas", "pyarrow", "basic-pitch")
EXTRAS = {
    "train": ("onnx", "tf2onnx", "imblearn"),
    "cluster": ("dask", "distributed"),
    "remote": ("aiohttp", "gcsfs", "s3fs"),
    "standards": ("jams", "mlcroissant"),
}
FORMATS = {"WAV": "PCM_16", "FLAC": "PCM_16", "OGG": "VORBIS", "OPUS": "OPUS", "MP3": "MPEG_LAYER_III", "AIFF": "PCM_16"}
LEAST_FREE_BYTES = 2**30
SELF_TEST_S = 5.0  # of audio


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, what was found, and what to do where that is not good."""

    what: str
    found: str
    state: str = "ok"  # ok | note | wrong
    advice: str = ""


def examine() -> Iterator[Finding]:
    """Make every check in turn; one that goes wrong keeps none of the others from being made."""
    yield Finding("annotate", f"{metadata.version('annotate')} in {sys.prefix}")
    yield _python()
    yield Finding("packages", ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES))
    for extra, names in EXTRAS.items():
        missing = [name for name in names if find_spec(name) is None]
        if missing:
            yield Finding(f"extra {extra}", f"without {', '.join(missing)}", "note", f"uv sync --extra {extra}, if needed")
        else:
            yield Finding(f"extra {extra}", "installed")
    yield _machine()
    yield _device()
    yield _cache()
    yield from _decoders()
    yield _bundle()
    yield _self_test()


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] != (3, 11):
        return Finding("Python", version, "wrong", "install into an environment with Python 3.11")
    return Finding("Python", f"{version} on {platform.platform()}")


def _machine() -> Finding:
    import psutil

    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory()
    found = f"{cores} usable cores, {memory.total / 2**30:.1f} GiB of memory, {memory.available / 2**30:.1f} GiB free"
    if memory.available < cores * 2**30:
        return Finding(
            "machine", found, "note", f"a worker needs about 1 GiB: use --jobs {max(int(memory.available / 2**30), 1)}"
        )
    return Finding("machine", found)


def _device() -> Finding:
    if not Path("/proc/driver/nvidia").exists():
        return Finding("device", "cpu; no NVIDIA driver")
    import models.inference  # TensorFlow is imported by models alone

    if models.inference.sees_gpu():
        return Finding("device", "gpu")
    return Finding("device", "cpu; there is an NVIDIA driver, but TensorFlow sees no GPU", "note", "uv sync --extra gpu")


def _cache() -> Finding:
    from annotate.store import default_cache_folder

    folder = default_cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(
            "cache", f"{folder}: {error.strerror}", "wrong", "set XDG_CACHE_HOME, or run with --cache DIR or --no-cache"
        )
    if free < LEAST_FREE_BYTES:
        return Finding("cache", f"{folder}: {free / 2**20:.0f} MiB free", "note", "run with --cache DIR on a larger disk")
    return Finding("cache", f"{folder}: {free / 2**30:.1f} GiB free")


def _decoders() -> Iterator[Finding]:
    """Write a second of tone in each format that libsndfile knows, and decode it as a run does."""
    import numpy as np
    import soundfile

    from annotate.audio import AudioError, decode

    tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)).astype(np.float32)
    good: list[str] = []
    bad: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, subtype in FORMATS.items():
            path = Path(folder) / f"tone.{name.lower()}"
            container = "OGG" if name == "OPUS" else name
            try:
                soundfile.write(path, tone, 48_000, format=container, subtype=subtype)
                decoded = decode(path, rates=[22_050])
            except (AudioError, RuntimeError, ValueError, OSError) as error:
                bad.append(f"{name} ({' '.join(str(error).split())})")
                continue
            signal = decoded.signals[22_050]
            spectrum = np.abs(np.fft.rfft(signal))
            pitch = float(np.argmax(spectrum)) * 22_050 / len(signal)
            (good if abs(pitch - 440) < 3 else bad).append(
                name if abs(pitch - 440) < 3 else f"{name} (440 Hz became {pitch:.0f} Hz)"
            )
    library = f"libsndfile {soundfile.__libsndfile_version__}"
    if bad:
        yield Finding("decoders", f"{library}: {'; '.join(bad)}", "wrong", "install the soundfile wheel of this project's lock")
    yield Finding("decoders", f"{library}: {', '.join(good)}")


def _bundle() -> Finding:
    from models.bundle import BundleError, load

    try:
        held = load("default")
    except BundleError as error:
        return Finding("bundle", str(error), "wrong", "install the package again")
    return Finding("bundle", f"{held.name} {held.version}, {len(held.manifest['files'])} files match their digests")


def _self_test() -> Finding:
    """Annotate a few seconds of synthetic music with every family of the built-in bundle, in this process."""
    from annotate.forecast import annotate_sample
    from annotate.pipeline import RunOptions, job_of
    from annotate.schema import family_columns
    from models.bundle import BundleError, load
    from models.inference import required

    try:
        bundle = load("default")
        families = required(bundle.families, bundle)
        job = job_of(bundle, families, Path(), RunOptions(audio=(), out=Path(), use_cache=False))
        row, seconds = annotate_sample(job, SELF_TEST_S)
    except (BundleError, OSError, ValueError, ImportError) as error:
        return Finding(
            "self-test", f"{type(error).__name__}: {' '.join(str(error).split())}", "wrong", "install the package again"
        )
    if row["status"] != "ok":
        return Finding("self-test", f"a track failed: {row['error']}", "wrong", "please report it with this output")
    columns = [column.name for name in families for column in family_columns(bundle.families[name])]
    filled = sum(row.get(name) is not None for name in columns)
    found = f"{SELF_TEST_S:g} s of music in {seconds:.1f} s, {filled} of {len(columns)} columns filled"
    return Finding("self-test", found)


def report(findings: Iterator[Finding]) -> Iterator[tuple[Finding, str]]:
    """Each finding with its line for people."""
    for one in findings:
        mark = {"ok": "ok  ", "note": "note", "wrong": "BAD "}[one.state]
        advice = f" -> {one.advice}" if one.advice else ""
        yield one, f"{mark}  {one.what:16s} {one.found}{advice}"
