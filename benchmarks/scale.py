# ruff: noqa: E501  the lines of the document stand whole
"""Measures what a track costs here, and writes docs/scale.md: what a million of them cost.

    make scale                                    composed tracks
    make scale DATA=../shared/data/emotify-mp3    music of a folder

Annotates a few tracks and four times as many with nothing cached, and takes the slope: CPU seconds of the processes, not the
clock, so that other work on the machine counts little. Everything in the document is one of these figures or follows from them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

TRACK_MIN = 3.5  # minutes of the track that the document counts with
KBIT_S = 192  # of its MP3
MILLION = 1_000_000
ROWS = 20_000  # of the synthetic table
FILES = 20_000  # of the scanned folder
DURATION_S = 30.0


def cpu_of(command: list[str], environment: dict[str, str]) -> float:
    """CPU seconds of a command and all that it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=environment, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def music_of(folder: Path, data: Path | None) -> tuple[dict[str, list[Path]], str]:
    """A few tracks and four times as many, and what they are, in words."""
    if data is None:
        from annotate.demo import write_corpus

        files = sorted(Path(path) for path in write_corpus(folder / "composed", tracks_per_genre=4, duration_s=DURATION_S))
        said = f"{len(files)} tracks that `annotate demo` composed; real music with more notes a minute costs more"
    else:
        files = sorted(path for path in data.rglob("*") if path.suffix.lower() in (".mp3", ".wav", ".flac", ".ogg", ".opus"))[:48]
        said = f"{len(files)} files of real music ({', '.join(sorted({path.suffix[1:].upper() for path in files}))})"
    if len(files) < 8:
        raise SystemExit(f"{data} holds {len(files)} audio files; 8 are needed")
    return {"few": files[::4], "many": files}, said


def of_tracks(folder: Path, data: Path | None) -> dict[str, Any]:
    """CPU seconds an audio minute and to start, by two runs; sizes of parts, rows and windows."""
    from annotate.audio import decode
    from models.bundle import load

    command = [str(Path(sys.executable).with_name("annotate")), "run"]
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    found = {}
    music, said = music_of(folder, data)
    minutes = {name: sum(decode(path, rates=()).duration_s for path in paths) / 60 for name, paths in music.items()}
    for name, paths in music.items():
        (folder / name).mkdir()
        for number, path in enumerate(paths):
            (folder / name / f"{number}{path.suffix}").symlink_to(path.resolve())
    setups = {
        "every family": None,
        "notes and va": "notes,va",
        "descriptors": "descriptors",
        "networks": "midlevel,joint,emotion,crnn",
    }
    for setup, models in setups.items():
        seconds = {}
        for name in ("few", "many"):
            out = folder / f"{name}-{setup.replace(' ', '-')}.parquet"
            extra = ["--models", models] if models else ["--windows", str(out.with_suffix(".windows.parquet"))]
            arguments = [str(folder / name), "--out", str(out), "--no-cache", "--jobs", "1", "--device", "cpu", *extra]
            seconds[name] = cpu_of([*command, *arguments], environment)
        slope = (seconds["many"] - seconds["few"]) / (minutes["many"] - minutes["few"])
        start = max(seconds["few"] - slope * minutes["few"], 0.0)
        found[setup] = {"cpu_s_per_audio_min": slope, "cpu_s_to_start": start}
    out = folder / "many-every-family.parquet"
    parts = [path.read_bytes() for path in out.with_name(f"{out.name}.run").glob("parts/?/?/*.json")]
    of_windows = sum(len(json.dumps(json.loads(part)["windows"], separators=(",", ":"))) for part in parts)
    windows = out.with_suffix(".windows.parquet")
    import pyarrow.parquet as pq

    counts = {}
    for family in pq.read_table(windows, columns=["family"])["family"].to_pylist():
        counts[family] = counts.get(family, 0) + 1 / minutes["many"]
    return {
        "setups": found,
        "music": said,
        "part_bytes": (sum(map(len, parts)) - of_windows) / len(parts),
        "part_bytes_of_windows_per_audio_min": of_windows / minutes["many"],
        "windows_per_audio_min": counts,
        "window_row_bytes": windows.stat().st_size / pq.ParquetFile(windows).metadata.num_rows,
        "bundle": "{0.name} {0.version}".format(load("default")),
        "table": out,
    }


def of_tables(table: Path, folder: Path) -> dict[str, float]:
    """Bytes a row of a dataset, CPU seconds to write and to merge a row, of jittered values."""
    from annotate.shards import Shard, ShardNote, merge, note_as_json
    from annotate.targets import Target
    from outputs.table import read_columns, read_provenance, read_rows, write_dataset, write_table

    columns, provenance, rows = read_columns(table), read_provenance(table), list(read_rows(table))
    dice = random.Random(0)
    many = []
    for number in range(ROWS):
        row = dict(rows[number % len(rows)]) | {"track": f"{number:07d}.mp3", "audio_sha256": f"{dice.getrandbits(256):064x}"}
        many.append({k: v * dice.uniform(0.9, 1.1) if isinstance(v, float) else v for k, v in row.items()})
    (folder / "dataset").mkdir()
    began = time.process_time()
    write_dataset(many, columns, provenance, folder / "dataset")
    written = time.process_time() - began
    size = sum(path.stat().st_size for path in (folder / "dataset").iterdir())
    run = folder / "t.parquet.run"
    (run / "shards").mkdir(parents=True)
    for index in (1, 2):
        own = [row for row in many if Shard(index, 2).holds(row["track"])]
        note = ShardNote(index, 2, len(own), 0, ROWS, "0" * 64, {})
        write_table(own, columns, provenance | {"shard": note_as_json(note)}, Shard(index, 2).table(run))
    began = time.process_time()
    merge([run], Target.of(folder / "t.parquet", "--out"))
    merged = time.process_time() - began
    return {"row_bytes": size / ROWS, "write_cpu_s": written / ROWS, "merge_cpu_s": merged / ROWS, "columns": len(columns)}


def of_scan(folder: Path) -> dict[str, float]:
    """CPU seconds and bytes of memory a file of a scan."""
    from annotate.corpora import scan

    for number in range(FILES):
        path = folder / "files" / f"{number // 100:04d}" / f"{number}.mp3"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    began = time.process_time()
    scan([folder / "files"])
    seconds = time.process_time() - began
    tracemalloc.start()
    kept = scan([folder / "files"])
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"cpu_s": seconds / FILES, "bytes": held / len(kept.tracks)}


def gflop_of_windows() -> dict[str, float]:
    """Billions of floating-point operations a window, by network."""
    from models.accelerator import gflop_per_window
    from models.bundle import load, load_network

    bundle = load("default")
    return {name: gflop_per_window(load_network(bundle, name)) for name in ("midlevel", "joint", "emotion", "crnn")}


def document(m: dict[str, Any]) -> str:
    """docs/scale.md from the figures."""
    audio_min = MILLION * TRACK_MIN
    lines = []
    say = lines.append
    every = m["tracks"]["setups"]["every family"]
    hours = every["cpu_s_per_audio_min"] * audio_min / 3600
    per_track = {name: n * TRACK_MIN for name, n in m["tracks"]["windows_per_audio_min"].items()}
    tflop = sum(per_track[name] * m["gflop"][name] for name in m["gflop"]) / 1e3
    read = MILLION * TRACK_MIN * 60 * KBIT_S * 1000 / 8
    rows_bytes, part_bytes = m["tables"]["row_bytes"] * MILLION, m["tracks"]["part_bytes"] * MILLION
    window_bytes = m["tracks"]["part_bytes_of_windows_per_audio_min"] * TRACK_MIN
    n_window_rows = sum(per_track.values())
    say("# What a million tracks cost, and where the limits lie")
    say("")
    say(
        "Written by `make scale` (`benchmarks/scale.py`), which measured the figures of the first table on one machine; do not edit. All"
    )
    say(
        f"else follows from them for {MILLION:,} tracks of {TRACK_MIN:g} minutes as MP3 at {KBIT_S} kbit/s. CPU seconds are those of the"
    )
    say("processes, nothing cached.")
    say("")
    say(f"Measured on {m['machine']} with bundle {m['tracks']['bundle']}, {m['date']}, on {m['tracks']['music']}.")
    say("")
    say("## Measured")
    say("")
    say("| what | figure |")
    say("|---|---|")
    for name, held in m["tracks"]["setups"].items():
        say(f"| {name}: CPU seconds an audio minute | {held['cpu_s_per_audio_min']:.2f} |")
    say(f"| start of a run with every family, once: CPU seconds | {every['cpu_s_to_start']:.0f} |")
    say(f"| part file of a track: bytes | {m['tracks']['part_bytes']:,.0f} |")
    say(f"| the same with `--windows`: bytes more an audio minute | {m['tracks']['part_bytes_of_windows_per_audio_min']:,.0f} |")
    say(f"| row of the table, {m['tables']['columns']} columns, in a dataset: bytes | {m['tables']['row_bytes']:,.0f} |")
    say(f"| row of the windows table: bytes | {m['tracks']['window_row_bytes']:,.0f} |")
    say(f"| to write a row: CPU milliseconds | {m['tables']['write_cpu_s'] * 1e3:.2f} |")
    say(f"| to merge a row of shards: CPU milliseconds | {m['tables']['merge_cpu_s'] * 1e3:.2f} |")
    say(
        f"| to scan a file of a plain folder: CPU milliseconds, bytes held | {m['scan']['cpu_s'] * 1e3:.3f}, {m['scan']['bytes']:,.0f} |"
    )
    for name in m["gflop"]:
        say(
            f"| `{name}`: GFLOP a window, windows an audio minute | {m['gflop'][name]:.1f}, {m['tracks']['windows_per_audio_min'][name]:.1f} |"
        )
    say("")
    say(f"## {MILLION:,} tracks")
    say("")
    say("| what | how | result |")
    say("|---|---|---|")
    say(f"| audio | tracks × {TRACK_MIN:g} min | {audio_min / 60:,.0f} h |")
    say(f"| CPU, every family | audio minutes × {every['cpu_s_per_audio_min']:.2f} s | {hours:,.0f} core hours |")
    for name, held in list(m["tracks"]["setups"].items())[1:]:
        say(
            f"| CPU, {name} | audio minutes × {held['cpu_s_per_audio_min']:.2f} s | {held['cpu_s_per_audio_min'] * audio_min / 3600:,.0f} core hours |"
        )
    say(f"| days on N cores | core hours / 24 N | {hours / 24 / 64:,.1f} on 64, {hours / 24 / 1000:,.1f} on 1 000 |")
    rest = m["tracks"]["setups"]["networks"]["cpu_s_per_audio_min"]
    say(
        f"| GPU, networks alone | {tflop:.2f} TFLOP a track × tracks / (P × u × 3600) | {tflop * MILLION / 3600:,.0f} / (P × u) GPU hours |"
    )
    say(
        f"| CPU beside the GPU, at least | (every family − networks) + decoding and front ends | {max(every['cpu_s_per_audio_min'] - rest, 0) * audio_min / 3600:,.0f} core hours and more |"
    )
    say(f"| bytes read | tracks × {TRACK_MIN * 60:g} s × {KBIT_S} kbit/s | {read / 1e12:,.2f} TB |")
    say(f"| table | tracks × {m['tables']['row_bytes']:,.0f} bytes | {rows_bytes / 1e9:,.2f} GB |")
    say(
        f"| windows table | {n_window_rows:,.0f} rows a track | {n_window_rows * MILLION * m['tracks']['window_row_bytes'] / 1e9:,.1f} GB |"
    )
    say(
        f"| run folder | tracks × {m['tracks']['part_bytes']:,.0f} bytes, one file each | {part_bytes / 1e9:,.1f} GB, {MILLION:,} files |"
    )
    say(
        f"| run folder with `--windows` | {window_bytes:,.0f} bytes more a track | {(part_bytes + window_bytes * MILLION) / 1e9:,.1f} GB |"
    )
    say(
        f"| scan | tracks × {m['scan']['cpu_s'] * 1e3:.3f} ms | {m['scan']['cpu_s'] * MILLION:,.0f} s, {m['scan']['bytes'] * MILLION / 1e9:,.1f} GB of memory |"
    )
    say(
        f"| to write the table | tracks × {m['tables']['write_cpu_s'] * 1e3:.2f} ms | {m['tables']['write_cpu_s'] * MILLION / 60:,.0f} CPU minutes |"
    )
    say(
        f"| to merge it from shards | tracks × {m['tables']['merge_cpu_s'] * 1e3:.2f} ms | {m['tables']['merge_cpu_s'] * MILLION / 60:,.0f} CPU minutes |"
    )
    say("")
    say(
        "P is the accelerator's peak in TFLOP/s for the precision that is used, by its data sheet; u the share of it that is reached, which"
    )
    say(
        "`benchmarks/gpu.py` prints on the machine itself. It has been run on CPUs only (Keras on TensorFlow, JAX and torch), and so has"
    )
    say("`--device gpu`: no accelerator was at hand, so P and u are not filled in.")
    say("")
    say("## Dollars")
    say("")
    say(
        "With your provider's list prices: c a core hour, g a GPU hour (with its cores), s a GB and month of storage, e a GB read from it."
    )
    say("")
    say(f"- CPU only: {hours:,.0f} c + {read / 1e9:,.0f} e + {(rows_bytes + part_bytes) / 1e9:,.1f} s")
    say(
        f"- networks on a GPU: {tflop * MILLION / 3600:,.0f} g / (P u) + {max(every['cpu_s_per_audio_min'] - rest, 0) * audio_min / 3600:,.0f} c + {read / 1e9:,.0f} e + {(rows_bytes + part_bytes) / 1e9:,.1f} s"
    )
    say(f"- a GPU pays where g / (P u) < {rest * audio_min / (tflop * MILLION):,.2f} c")
    say("")
    say("## Where each limit lies")
    say("")
    say(
        f"- **Cores.** The work is one track after the other and divides by their number; starting costs {every['cpu_s_to_start']:.0f} CPU seconds a run, so a"
    )
    say(
        f"  shard should hold some {max(round(100 * every['cpu_s_to_start'] / (every['cpu_s_per_audio_min'] * TRACK_MIN)), 1):,} tracks or more for that to be under 1 %."
    )
    say(
        f"- **Reading.** A core asks for {KBIT_S * 60 / 8 / every['cpu_s_per_audio_min']:,.0f} kB/s. A link of 1 Gbit/s feeds {1e9 / 8 / (KBIT_S * 1000 * 60 / 8 / every['cpu_s_per_audio_min']):,.0f} cores with every family."
    )
    say(
        "- **Small files.** A part is a file of its own, in 256 folders: a million of them are 3 906 a folder. File systems that count files"
    )
    say(
        "  (quotas on clusters) need that many, and as many again for a moment where a corpus at a URL is scanned (empty files in TMPDIR)."
    )
    say(
        f"- **The scan.** Each shard scans the whole corpus and holds it: {m['scan']['bytes'] * MILLION / 1e9:,.1f} GB for a million tracks. At URLs each audio file is one request"
    )
    say("  more (16 at a time).")
    say(
        f"- **One Parquet file.** Written row by row, so memory does not grow; readers that load it whole need about {m['tables']['columns'] * 4 * MILLION / 1e9:,.1f} GB. From 100 000 rows"
    )
    say(
        "  on name a folder (`--out T/`): files of 200 000 rows, row groups of 50 000, which DuckDB, Polars and Spark read in parallel."
    )
    say(
        f"- **Writing and merging** are one process: {m['tables']['write_cpu_s'] * MILLION / 60 + m['tables']['merge_cpu_s'] * MILLION / 60:,.0f} CPU minutes together for a million tracks."
    )
    say(
        "- **The Dask scheduler** hears of chunks of up to four tracks, of which twice the number of the workers' threads are with it at a"
    )
    say("  time: its memory does not grow with the corpus.")
    say("")
    return "\n".join(lines)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "scale.md")
    parser.add_argument("--data", type=Path, help="folder of music; default: composed tracks")
    arguments = parser.parse_args()
    import platform

    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured: dict[str, Any] = {"tracks": of_tracks(folder, arguments.data)}
        measured["tables"] = of_tables(measured["tracks"].pop("table"), folder)
        measured["scan"] = of_scan(folder)
    measured["gflop"] = gflop_of_windows()
    measured["machine"] = f"{model or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    measured["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    print(json.dumps(measured, indent=1))
    arguments.out.write_text(document(measured), encoding="utf-8")
    print(f"{arguments.out}")


if __name__ == "__main__":
    main()
