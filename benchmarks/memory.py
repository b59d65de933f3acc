"""Measures the peak memory of training and evaluating each family on rated corpora, into benchmarks/memory.json.

    python benchmarks/memory.py --data ../shared/data                    every family, and the front ends
    python benchmarks/memory.py --data ../shared/data --parts crnn va    these anew
    make evaluation                                                      shows the figures in docs/evaluation.md

Each part is one command in a process of its own, sampled five times a second with all that it starts: a family is trained on one
of four grouped folds of all three corpora, for one epoch on its longest crops, and evaluated. Memory needed does not grow with
further epochs or folds: each epoch's crops take the place of the last ones. Two figures: what the processes hold by themselves
(`own_gb`: anonymous and shared memory), which must fit, and with it the pages of files that are mapped (`peak_gb`), which the
system takes back when it needs them. Shared pages count once (PSS of /proc/PID/smaps_rollup); GB are 10⁹ bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).with_name("memory.json")
CORPORA = ("soundtracks", "musifeast17", "emotify")
CROPPED = ("midlevel", "joint", "a2e", "a2mid2e")
NETWORKS = (*CROPPED, "emotion", "crnn")
FAMILIES = (*NETWORKS, "va", "vaseq", "vatransfer", "descriptors", "best", "probe")
FRONT_ENDS = "front ends"
EVERY_S = 0.2  # seconds between two samples


def smaps(pid: int) -> dict[str, int]:
    """Bytes of a process by kind, as the kernel adds them up."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


class Peak:
    """Samples a process and all below it until it ends: the largest sums."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.root, self.total, self.own, self.processes = psutil.Process(process.pid), 0, 0, 0
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while True:
            try:
                found = [self.root, *self.root.children(recursive=True)]
            except psutil.Error:
                return
            total = own = 0
            for process in found:
                try:
                    held = smaps(process.pid)
                except (OSError, IndexError, ValueError):  # it has ended
                    continue
                total += held.get("Pss", 0)
                own += held.get("Pss_Anon", 0) + held.get("Pss_Shmem", 0)
            self.total, self.own = max(self.total, total), max(self.own, own)
            self.processes = max(self.processes, len(found))
            time.sleep(EVERY_S)


def measured(arguments: Sequence[str]) -> dict[str, Any]:
    """Run `annotate` with some arguments to its end."""
    command = [str(Path(sys.executable).with_name("annotate")), *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        peak = Peak(process)
        said, _ = process.communicate()
    peak.thread.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {process.returncode}:\n{said}")
    return {
        "peak_gb": round(peak.total / 1e9, 2),
        "own_gb": round(peak.own / 1e9, 2),
        "processes": peak.processes,
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
    }


def arguments_of(part: str, data: Path, work: Path, out: Path) -> list[str]:
    """Arguments of the command that measures a part."""
    names = ("emotify-mp3",) if part == FRONT_ENDS else CORPORA
    corpora = [str(data / name) for name in names]
    family = "descriptors" if part == FRONT_ENDS else part
    command = ["evaluate", "default", *corpora, "--models", family, "--work", str(work), "--out", str(out), "--jobs", "2"]
    if part == FRONT_ENDS:
        return [*command, "--folds", "2"]
    command += ["--folds", "4", "--folds-run", "1", "--resamples", "100"]
    if part == "crnn":
        command += ["--word-norms", str(data / "muse" / "warriner_vad_gems_words.csv")]
    if part not in ("descriptors", "best", "probe"):
        command += ["--epochs", "1"]
    if part in NETWORKS:
        command += ["--recalibration-batches", "3"]
    if part in CROPPED:
        command += ["--short-epochs", "0"]
    return command


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the peak memory of training and evaluating each family.")
    parser.add_argument("--data", type=Path, required=True, help="folder with soundtracks/, musifeast17/, emotify/ and muse/")
    parser.add_argument("--parts", nargs="*", default=[FRONT_ENDS, *FAMILIES], help="families, or 'front ends'")
    parser.add_argument("--arrays", type=Path, help="arrays/ of a working folder, where their front ends are computed already")
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(prefix="memory.") as name:
        work = Path(name) / "work"
        work.mkdir()
        if options.arrays is not None:
            (work / "arrays").symlink_to(options.arrays.resolve())
        for part in options.parts:
            place = Path(name) / "fresh" if part == FRONT_ENDS else work
            found = measured(arguments_of(part, options.data, place, Path(name) / f"eval {part}"))
            results[part] = {**found, "cores": os.cpu_count()}
            temporary = RESULTS.with_suffix(".tmp")
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, RESULTS)
            print(part, found, flush=True)


if __name__ == "__main__":
    main()
