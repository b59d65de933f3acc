"""Measure what `annotate run` costs, beside its peers, and write docs/performance.md from the figures.

    python benchmarks/speed.py                                  every part, on composed music
    python benchmarks/speed.py --data ../shared/data/emotify-mp3        on a folder of music
    python benchmarks/speed.py --parts run peers                these parts anew; the others' last figures stay
    python benchmarks/speed.py --page                           measure nothing, write the page from the last figures

Each part can run alone; figures are kept by part in docs/performance.json, with the load of the machine at that time, and the
page, its figure and its verdicts follow from them. CPU seconds are of a process and all that it started, user and system.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
FIGURES, PAGE, PLOT, REMARKS = (DOCS / f"performance{end}" for end in (".json", ".md", ".svg", "_remarks.md"))
BIN = Path(sys.executable).parent
SUFFIXES = (".mp3", ".wav", ".flac", ".ogg", ".opus")
SUBREAPER = 36  # prctl: what a child leaves behind becomes ours, so that its CPU time is counted
DOCUMENTS_FILES = 4  # files that the founding documents' way is timed on
SCALES = (25, 100, 400)  # tracks of 6 s
LONG_MINUTES = (20, 60)

Figures = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    cpu_s: float
    wall_s: float


@dataclass(frozen=True)
class Bench:
    """What every part works on."""

    files: tuple[Path, ...]  # links or copies with distinct names
    minutes: float
    folder: Path  # for what the commands write
    bundle: str


def measure(command: Sequence[object], **environment: str) -> Cost:
    """Run a command; stop with what it said where it fails."""
    before, began = _children_s(), time.monotonic()
    environ = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environ,
        start_new_session=True,
    )
    said = process.communicate()[1]
    wall_s = time.monotonic() - began
    while True:  # what it left behind
        try:
            os.waitpid(-process.pid, 0)
        except ChildProcessError:
            break
    if process.returncode:
        raise SystemExit(f"{command[0]} failed ({process.returncode}): {said[-2000:]}")
    return Cost(_children_s() - before, wall_s)


def _children_s() -> float:
    times = os.times()
    return times.children_user + times.children_system


def annotate(bench: Bench, audio: Sequence[Path], *more: object) -> Cost:
    """Cost of `annotate run` into a table that does not exist yet."""
    out = Path(tempfile.mkdtemp(dir=bench.folder)) / "t.parquet"
    return measure([BIN / "annotate", "run", *audio, "--out", out, "--quiet", "--bundle", bench.bundle, "--device", "cpu", *more])


def startup(bench: Bench) -> Figures:
    """One second of audio: almost all of it is start-up."""
    import numpy as np
    import soundfile

    path = bench.folder / "second.wav"
    tone = 0.3 * np.sin(np.arange(22_050) * 0.05) * np.linspace(1, 0.1, 22_050)
    soundfile.write(path, tone, 22_050)
    command = annotate(bench, [path], "--jobs", "1", "--no-cache")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom annotate.tracks import Track\nfrom annotate.worker import Job, process\n"
        "from models.bundle import load, FAMILIES\nfrom models.inference import required\n"
        "bundle = load(sys.argv[1])\nfolder = Path(sys.argv[3])\n(folder / 'parts').mkdir(parents=True)\n"
        "families = required([f for f in FAMILIES if f in bundle.families], bundle)\n"
        "job = Job(str(bundle.folder), families, folder, None, 0, None, False, 600.0, None)\n"
        "status = os.stat(sys.argv[2])\n"
        "track = Track(Path(sys.argv[2]), 'a.wav', 'folder', 'a.wav', None, None, status.st_size, status.st_mtime_ns)\n"
        "assert [one.status for one in process([track], job)] == ['ok']\n"
        "assert 'tensorflow' not in sys.modules"
    )
    out = Path(tempfile.mkdtemp(dir=bench.folder)) / "run"
    worker = measure([sys.executable, "-c", code, bench.bundle, path, out], OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    return {"command_cpu_s": command.cpu_s, "worker_cpu_s": worker.cpu_s}


def run(bench: Bench) -> Figures:
    """Every family, every window, nothing cached, one and two worker processes."""
    found: Figures = {"minutes": bench.minutes, "files": len(bench.files)}
    for jobs in (1, 2):
        cost = annotate(bench, bench.files, "--jobs", jobs, "--no-cache")
        found[f"jobs_{jobs}"] = {"cpu_s": cost.cpu_s, "wall_s": cost.wall_s}
    return found


PEERS = {
    "basic-pitch": ("basic_pitch", "notes", None),
    "openSMILE eGeMAPS": (
        "opensmile",
        "88 values",
        "import sys, opensmile\n"
        "smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)\n"
        "print([smile.process_file(path).shape for path in sys.argv[1:]])",
    ),
    "Essentia MusicExtractor": (
        "essentia",
        "169 values and more",
        "import sys, essentia\nessentia.log.infoActive = essentia.log.warningActive = False\n"
        "from essentia.standard import MusicExtractor\n"
        "print([len(MusicExtractor()(path)[0].descriptorNames()) for path in sys.argv[1:]])",
    ),
}


def peers(bench: Bench) -> Figures:
    """Each peer that is installed, as a process of its own on the same files; `annotate run` again beside them."""
    own = annotate(bench, bench.files, "--no-cache")
    found: Figures = {"minutes": bench.minutes, "annotate": {"cpu_s": own.cpu_s, "gives": "every family"}}
    for name, (module, gives, code) in PEERS.items():
        if importlib.util.find_spec(module) is None:
            found[name] = {"missing": f"{module} is not installed (extra bench)"}
            continue
        if code is None:
            out = Path(tempfile.mkdtemp(dir=bench.folder))
            cost = measure([BIN / "basic-pitch", out, *bench.files, "--save-midi", "--model-serialization", "onnx"])
        else:
            cost = measure([sys.executable, "-c", code, *bench.files])
        found[name] = {"cpu_s": cost.cpu_s, "gives": gives}
    return found


DOCUMENTS = """
import sys, time
import librosa, numpy as np
from pathlib import Path
import basic_pitch
from basic_pitch.inference import predict
from models import inference
from models.bundle import load, load_network
bundle = load(sys.argv[1])
notes_model = str(Path(basic_pitch.__file__).parent / "saved_models/icassp_2022/nmp.onnx")
for family in ("midlevel", "probe", "joint", "emotion", "crnn"):  # each one a program of its own in its document
    front = bundle.families["midlevel" if family == "probe" else family]
    network = load_network(bundle, front.name)
    head = load_network(bundle, "probe") if family == "probe" else None
    for path in sys.argv[2:]:
        rate = inference.spec_of(front).sample_rate
        signal, _ = librosa.load(path, sr=rate)
        for window in inference.windows_of(front, {rate: signal}):
            values = network.predict(window[None, ..., None], verbose=0)
            if head is not None:
                head.predict(values["salience"], verbose=0)
from features.notes import note_statistics, note_sequence
from features.transcription import NoteEvents
for family in ("va", "vaseq"):
    network = load_network(bundle, family)
    for path in sys.argv[2:]:
        events = predict(path, notes_model)[2]
        start, stop, pitch, amplitude = (np.array([event[k] for event in events]) for k in range(4))
        notes = NoteEvents.from_unsorted(start, stop, pitch, amplitude)
        one = note_statistics(notes, librosa.get_duration(path=path)) if family == "va" else note_sequence(notes)
        network.predict(np.nan_to_num(one)[None], verbose=0)
"""


def documents(bench: Bench) -> Figures:
    """The founding documents' own way: each model loads and resamples each file, `model.predict` one by one; no descriptors."""
    files = bench.files[:DOCUMENTS_FILES]
    cost = measure([sys.executable, "-c", DOCUMENTS, bench.bundle, *files])
    own = annotate(bench, files, "--no-cache")
    return {"minutes": minutes_of(files), "files": len(files), "cpu_s": cost.cpu_s, "annotate_cpu_s": own.cpu_s}


def stages(bench: Bench) -> Figures:
    """CPU seconds of each stage in one thread of this process, start-up left out."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    from annotate.audio import decode
    from features.descriptors import describe
    from features.notes import note_features, note_sequence, note_statistics
    from features.transcription import note_posteriors, notes_from_posteriors
    from models import inference
    from models.bundle import load, run_engine

    bundle = load(bench.bundle)
    spent: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        began = time.process_time()
        result = function(*arguments)
        spent[name] = spent.get(name, 0.0) + time.process_time() - began
        return result

    notes_spec = inference.spec_of(bundle.families["notes"])
    descriptor_family = bundle.families["descriptors"]
    descriptor_spec = inference.spec_of(descriptor_family)
    windowed = inference.spectrogram_families(bundle, bundle.families)
    specs = [descriptor_spec, *(inference.spec_of(bundle.families[name]) for name in windowed)]
    rates = sorted({22_050} | {spec.sample_rate for spec in specs})
    minutes = 0.0
    threadpool_limits(1)  # as in a worker: idle threads of the linear algebra would spin
    for number, path in enumerate((bench.files[0], *bench.files[:6])):
        if number == 1:
            spent.clear()  # the first round only warms
            minutes = 0.0
        decoded = timed("decode and resample", lambda path=path: decode(path, rates=rates))
        minutes += decoded.duration_s / 60
        signal = decoded.signals[22_050]
        posteriors = timed("Basic Pitch", note_posteriors, signal, notes_spec)
        events = timed("notes from posteriors", notes_from_posteriors, *posteriors, notes_spec)
        timed("note statistics", note_statistics, events, decoded.duration_s)
        timed("note statistics", note_sequence, events)
        extra = timed("note statistics", note_features, events, decoded.duration_s)
        described = timed("descriptors", describe, decoded.signals[descriptor_spec.sample_rate], descriptor_spec)
        numbers = np.concatenate([described, extra])
        for engine in descriptor_family.details["engines"].values():
            timed("descriptor model", run_engine, bundle.file(engine), numbers[None])
        for name in windowed:
            family = bundle.families[name]
            windows = timed(f"{name}: windows", lambda f=family, d=decoded: list(inference.windows_of(f, d.signals)))
            predict = inference.onnx_predict(bundle, name)
            batches = [(0, window) for window in windows]
            outputs = timed(f"{name}: network", inference.infer, predict, batches, inference.CPU_BATCH[name])
            if name == "best":
                numbers = timed("best: model", inference.best_numbers, numbers, outputs[0])
                for engine in family.details["engines"].values():
                    timed("best: model", run_engine, bundle.file(engine), numbers[None])
    return {"minutes": minutes, "cpu_s": spent}


def scaling(bench: Bench) -> Figures:
    """More tracks: 25, 100 and 400 composed ones of 6 s."""
    from annotate.demo import write_corpus

    source = bench.folder / "composed"
    write_corpus(source, tracks_per_genre=2, duration_s=6.0)
    composed = sorted(source.rglob("*.mp3"))
    found: Figures = {"track_s": 6.0, "tracks": {}}
    for count in SCALES:
        folder = bench.folder / f"{count} tracks"
        folder.mkdir()
        for number in range(count):
            shutil.copyfile(composed[number % len(composed)], folder / f"piece {number}.mp3")
        cost = annotate(bench, [folder], "--no-cache")
        found["tracks"][str(count)] = {"cpu_s": cost.cpu_s, "wall_s": cost.wall_s}
    return found


def cache(bench: Bench) -> Figures:
    """The same files again with what the cache keeps: with another version of the bundle, and with other networks throughout."""
    folder = bench.folder / "cache"
    found: Figures = {"minutes": bench.minutes, "cold_cpu_s": annotate(bench, bench.files, "--cache", folder).cpu_s}
    for name, networks in (("same_networks", False), ("other_networks", True)):
        other = another_bundle(bench, bench.folder / name, networks=networks)
        out = bench.folder / f"{name}.parquet"
        command = [BIN / "annotate", "run", *bench.files, "--out", out, "--quiet", "--bundle", other, "--device", "cpu"]
        found[f"{name}_cpu_s"] = measure([*command, "--cache", folder]).cpu_s
    return found


def another_bundle(bench: Bench, folder: Path, *, networks: bool) -> Path:
    """Copy the bundle under another version; with `networks`, every ONNX file has other bytes, and so another digest."""
    import hashlib

    import onnx

    from models.bundle import load

    shutil.copytree(load(bench.bundle).folder, folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    if networks:
        for path in folder.rglob("*.onnx"):
            graph = onnx.load(path)
            graph.metadata_props.add(key="another", value="file")
            onnx.save(graph, path)
            manifest["files"][path.relative_to(folder).as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / "bundle.json").write_text(json.dumps(manifest | {"version": f"{manifest['version']}.0-copy"}))
    return folder


def long(bench: Bench) -> Figures:
    """One long file, one worker: cost must be linear in length."""
    import numpy as np
    import soundfile

    from annotate.audio import decode

    minute = decode(bench.files[0], rates=(22_050,)).signals[22_050][: 60 * 22_050]
    found: Figures = {}
    for minutes in LONG_MINUTES:
        path = bench.folder / f"{minutes} minutes.flac"
        signal = np.tile(minute, int(np.ceil(minutes * 60 * 22_050 / len(minute))))[: minutes * 60 * 22_050]
        soundfile.write(path, signal, 22_050)
        cost = annotate(bench, [path], "--no-cache", "--jobs", "1")
        found[str(minutes)] = {"cpu_s": cost.cpu_s, "wall_s": cost.wall_s}
    return found


PARTS: Mapping[str, Callable[[Bench], Figures]] = {
    "startup": startup,
    "run": run,
    "peers": peers,
    "documents": documents,
    "stages": stages,
    "scaling": scaling,
    "cache": cache,
    "long": long,
}


def minutes_of(files: Sequence[Path]) -> float:
    """Length of audio files in minutes."""
    from annotate.audio import decode

    return sum(decode(path, rates=()).duration_s for path in files) / 60


def prepare(folder: Path, data: Path | None, bundle: str) -> Bench:
    """Link the music under distinct names, as the basic-pitch command wants them; compose some where none is given."""
    if data is None:
        from annotate.demo import write_corpus

        data = folder / "music"
        write_corpus(data, tracks_per_genre=2, duration_s=60.0)
    found = sorted(path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SystemExit(f"{data} holds no audio ({', '.join(SUFFIXES)})")
    place = folder / "files"
    place.mkdir()
    files = []
    for path in found:
        files.append(place / "_".join(path.relative_to(data).parts))
        files[-1].symlink_to(path.resolve())
    return Bench(tuple(files), minutes_of(files), folder, bundle)


def rows_of(figures: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Targets: what, measured, target, verdict; those whose part was not measured are left out."""
    rows: list[tuple[str, str, str, str]] = []

    def row(what: str, value: float, target: float, text: str, *, most: bool) -> None:
        met = value <= target if most else value >= target
        rows.append((what, text, f"{'≤' if most else '≥'} {target:g}", "met" if met else "missed"))

    one, start, others = figures.get("run"), figures.get("startup"), figures.get("peers")
    if one:
        start_s = start["command_cpu_s"] if start else 0.0
        rate = (one["jobs_1"]["cpu_s"] - start_s) / one["minutes"]
        row("whole job, CPU s an audio minute, start-up apart", rate, 2.2, f"{rate:.2f}", most=True)
        two = one["jobs_2"]
        busy = two["cpu_s"] / 2 / two["wall_s"]
        row("CPU time / 2 against wall clock, two workers", busy, 0.9, f"{busy:.2f}", most=False)
    if others and "cpu_s" in others.get("basic-pitch", {}):
        ratio = others["annotate"]["cpu_s"] / others["basic-pitch"]["cpu_s"]
        row("CPU time against the basic-pitch command alone", ratio, 1.2, f"{ratio:.2f}", most=True)
    if "documents" in figures:
        part = figures["documents"]
        ratio = part["cpu_s"] / part["annotate_cpu_s"]
        row("the founding documents' way against ours, CPU time", ratio, 4.0, f"{ratio:.1f}", most=False)
    if start:
        row("start-up to first row of a worker, CPU s", start["worker_cpu_s"], 3.0, f"{start['worker_cpu_s']:.1f}", most=True)
    if "long" in figures:
        a, b = (figures["long"][str(minutes)]["cpu_s"] for minutes in LONG_MINUTES)
        ratio = b / a / (LONG_MINUTES[1] / LONG_MINUTES[0])
        row("60-minute file against three of 20 minutes", ratio, 1.1, f"{ratio:.2f}", most=True)
    if "cache" in figures:
        part = figures["cache"]
        for what, name in (("another version of the bundle", "same_networks"), ("other networks throughout", "other_networks")):
            ratio = part["cold_cpu_s"] / part[f"{name}_cpu_s"]
            row(f"cold against warm cache and {what}, CPU time", ratio, 2.0, f"{ratio:.1f}", most=False)
    return rows


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows), ""]


def page(figures: Mapping[str, Any]) -> str:
    """The text of docs/performance.md."""
    lines = [
        "# Performance",
        "",
        "Written by `make bench` from docs/performance.json; remarks from docs/performance_remarks.md.",
        "",
    ]
    rows = rows_of(figures)
    if rows:
        lines += table(("what", "measured", "target", ""), rows)
    if "peers" in figures:
        part = figures["peers"]
        lines += ["## Beside its peers", "", "The same files, one command each, start-up included.", ""]
        body = [
            (name, one["gives"], f"{one['cpu_s']:.1f}", f"{one['cpu_s'] / part['minutes']:.2f}")
            for name, one in part.items()
            if isinstance(one, dict) and "cpu_s" in one
        ]
        lines += table(("command", "gives", "CPU s", "CPU s an audio minute"), body)
        lines += [f"- {name}: {one['missing']}" for name, one in part.items() if isinstance(one, dict) and "missing" in one]
    if "stages" in figures:
        part = figures["stages"]
        total = sum(part["cpu_s"].values())
        lines += ["", "## Cost by stage", "", f"One thread, {part['minutes']:.1f} minutes of audio, start-up left out.", ""]
        body = [
            (name, f"{value / part['minutes']:.3f}", f"{100 * value / total:.0f} %")
            for name, value in sorted(part["cpu_s"].items(), key=lambda item: -item[1])
        ]
        lines += table(("stage", "CPU s an audio minute", "share"), [*body, ("sum", f"{total / part['minutes']:.2f}", "")])
        lines += [f"![cost by stage]({PLOT.name})", ""]
    if "run" in figures:
        part = figures["run"]
        lines += ["## Workers", ""]
        body = [(str(j), f"{part[f'jobs_{j}']['cpu_s']:.1f}", f"{part[f'jobs_{j}']['wall_s']:.1f}") for j in (1, 2)]
        lines += table(("workers", "CPU s", "wall s"), body)
    if "scaling" in figures:
        lines += ["## More tracks", "", f"Composed tracks of {figures['scaling']['track_s']:g} s.", ""]
        body = [
            (count, f"{one['cpu_s']:.1f}", f"{one['wall_s']:.1f}", f"{one['cpu_s'] / int(count):.2f}")
            for count, one in figures["scaling"]["tracks"].items()
        ]
        lines += table(("tracks", "CPU s", "wall s", "CPU s a track"), body)
    if "long" in figures:
        lines += ["## Long files", ""]
        lines += table(
            ("minutes", "CPU s", "CPU s an audio minute"),
            [(minutes, f"{one['cpu_s']:.1f}", f"{one['cpu_s'] / int(minutes):.2f}") for minutes, one in figures["long"].items()],
        )
    lines += floor_of_cache(figures)
    if figures.get("measured"):
        lines += [
            "## When",
            "",
            "A load above the number of cores means that others worked on the machine; wall clocks suffer.",
            "",
        ]
        body = [
            (part, one["utc"], one["bundle"], f"{one['load']:.1f}", str(one["cores"]))
            for part, one in figures["measured"].items()
        ]
        lines += table(("part", "UTC", "bundle", "load", "cores"), body)
    if REMARKS.exists():
        lines += ["## Remarks", "", REMARKS.read_text(encoding="utf-8").strip(), ""]
    return "\n".join(lines)


def floor_of_cache(figures: Mapping[str, Any]) -> list[str]:
    """Say how much a warm cache can save where every network is another one: nothing of what reads the signal."""
    if not {"cache", "stages", "startup"} <= figures.keys():
        return []
    stages_s, minutes = figures["stages"]["cpu_s"], figures["stages"]["minutes"]
    again = sum(value for name, value in stages_s.items() if name.endswith((": network", ": windows")) or "decode" in name)
    total, start = sum(stages_s.values()) / minutes, figures["startup"]["command_cpu_s"]
    rate, audio_min = again / minutes, figures["cache"]["minutes"]
    best = (start + total * audio_min) / (start + rate * audio_min)
    return [
        "## What the cache can save",
        "",
        "It keeps what is small: notes, descriptors, and what each network said. Signals at three rates would take 14 times as",
        "much as an MP3 at 192 kbit/s. Where every network is another one, decoding, windows and networks are done again:",
        f"{rate:.2f} of {total:.2f} CPU s an audio minute. With {start:.1f} s to start and {audio_min:.0f} minutes of audio",
        f"({start:.1f} + {total:.2f} × {audio_min:.0f}) / ({start:.1f} + {rate:.2f} × {audio_min:.0f}) = {best:.1f} "
        "is about what can be reached.",
        "",
    ]


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Cost by stage as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    part = figures["stages"]
    stages_s = sorted(((value / part["minutes"], name) for name, value in part["cpu_s"].items()))
    plt.rcParams |= {"svg.hashsalt": "annotate"}
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(stages_s) + 1), layout="constrained")
    axes.barh([name for _, name in stages_s], [value for value, _ in stages_s], color="#4477aa")
    axes.set_xlabel("CPU s an audio minute")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of music; default: composed music")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--page", action="store_true", help="only write the page")
    options = parser.parse_args()
    figures: Figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if not options.page:
        from models.bundle import load

        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
        bundle = load(options.bundle)
        with tempfile.TemporaryDirectory(prefix="bench.") as name:
            bench = prepare(Path(name), options.data, options.bundle)
            for part in options.parts:
                print(f"{part} …", file=sys.stderr, flush=True)
                load_before = os.getloadavg()[0]
                figures[part] = PARTS[part](bench)
                figures.setdefault("measured", {})[part] = {
                    "utc": datetime.now(UTC).isoformat(timespec="minutes"),
                    "bundle": f"{bundle.name} {bundle.version}",
                    "load": load_before,
                    "cores": len(os.sched_getaffinity(0)),
                }
                FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    if "stages" in figures:
        plot(figures, PLOT)
    PAGE.write_text(page(figures), encoding="utf-8")
    print("\n".join(" | ".join(row) for row in rows_of(figures)))
    print(f"the page: {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
