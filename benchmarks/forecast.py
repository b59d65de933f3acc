"""How well a run foretells its end: what --dry-run says before it starts, and the time left that it shows on the way.

    python benchmarks/forecast.py                        100 short tracks that are composed first; benchmarks/forecast.json anew
    python benchmarks/forecast.py --data "Music Data/"    a folder as well

Each run has an empty feature cache. It is the command itself, whose log (--log-file, JSON) holds what it said when each track
was done: `left_s`. A forecast's error is the end that it foretold less the true one, as a share of the run's whole time. It is
measured where a tenth of the tracks is done, a quarter, a half and three quarters, and at its largest from a tenth on; of tracks
that a worker hands in together, at the last, which is what stays on the screen. Other work on the machine that comes or goes
meanwhile is in the figures; the load average before and after says so.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "forecast.json"
ANNOTATE = Path(sys.executable).with_name("annotate")
SHARES = (0.1, 0.25, 0.5, 0.75)
SPOKEN = re.compile(r"of audio, about (?:(\d+) h )?(?:(\d+) min)?(?:(\d+) s)? with")


def spoken_seconds(line: str) -> float:
    """Seconds that a dry run said: `about 12 min`, `about 3 h 20 min`, `about 40 s`."""
    found = SPOKEN.search(line)
    if found is None or not any(found.groups()):
        raise ValueError(f"no duration in {line!r}")
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return 3600.0 * hours + 60.0 * minutes + seconds


def errors(records: list[dict[str, Any]]) -> dict[str, float]:
    """Errors of the forecasts in a run's log, as shares of its whole time; positive: the run ended earlier than foretold."""
    summary = next(record for record in records if record["event"] == "summary")
    took = summary["seconds"]
    began = moment(summary) - took
    done = [record for record in records if record["event"] == "done"]
    last = [
        number for number in range(len(done)) if number + 1 == len(done) or moment(done[number + 1]) - moment(done[number]) > 0.05
    ]
    found = {number: (moment(done[number]) - began + done[number]["left_s"] - took) / took for number in last}
    held = {f"after_{share:.2f}": found[next(n for n in last if n + 1 >= share * len(done))] for share in SHARES}
    late = [error for number, error in found.items() if number + 1 >= len(done) / 10]
    return held | {"largest_from_a_tenth_on": max(late, key=abs)}


def moment(record: dict[str, Any]) -> float:
    """Seconds since 1970 of a record of the log."""
    return datetime.fromisoformat(record["time"]).timestamp()


def measure(audio: Path, work: Path) -> dict[str, Any]:
    """Dry run and run of one folder, with a cache of their own."""
    environment = os.environ | {"XDG_CACHE_HOME": str(work / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [str(ANNOTATE), "run", str(audio), "--out", str(work / "t.parquet")]
    before = os.getloadavg()[0]
    dry = subprocess.run([*command, "--dry-run"], env=environment, check=True, capture_output=True, text=True)
    log = work / "log.jsonl"
    started = time.monotonic()
    subprocess.run([*command, "-v", "--log-file", log, "--log-format", "json"], env=environment, check=True, capture_output=True)
    wall = time.monotonic() - started
    records = [json.loads(line) for line in log.read_text().splitlines()]
    fields = next(record for record in records if record["event"] == "summary")
    foretold = spoken_seconds(dry.stderr)
    again = subprocess.run(
        [*command, "--restart", "--dry-run"], env=environment, check=True, capture_output=True, text=True
    )  # by the rate of the run that just ended
    return {
        "tracks": fields["done"],
        "audio_h": round(fields["audio_h"], 3),
        "run_s": round(fields["seconds"], 1),
        "command_s": round(wall, 1),
        "dry_run_s": foretold,
        "dry_run_error": round(foretold / wall - 1, 3),
        "dry_run_again_s": spoken_seconds(again.stderr),
        "load_average": [round(before, 1), round(os.getloadavg()[0], 1)],
        "time_left": {name: round(error, 3) for name, error in errors(records).items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder of music to measure, too")
    parser.add_argument("--tracks", type=int, default=25, help="composed tracks a genre, of four (default 25)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--keep-logs", type=Path, help="folder for the runs' logs")
    options = parser.parse_args()
    found = json.loads(options.results.read_text()) if options.results.exists() else {}
    with tempfile.TemporaryDirectory() as place:
        music = Path(place, "music")
        subprocess.run([ANNOTATE, "demo", music, "--tracks", str(options.tracks)], check=True, capture_output=True)
        for name, audio in (("composed", music), ("corpus", options.data)):
            if audio is None:
                continue
            work = Path(place, name)
            work.mkdir()
            found[name] = measure(audio, work)
            print(name, json.dumps(found[name], indent=1))
            if options.keep_logs is not None:
                options.keep_logs.mkdir(exist_ok=True)
                (work / "log.jsonl").replace(options.keep_logs / f"{name}.jsonl")
    options.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
