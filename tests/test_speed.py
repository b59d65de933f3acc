"""The page of the benchmark follows from its figures; nothing is timed here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "speed.py"


@pytest.fixture(scope="module")
def speed() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_speed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


FIGURES: dict[str, Any] = {
    "startup": {"command_cpu_s": 4.0, "worker_cpu_s": 2.0},
    "run": {"minutes": 10.0, "files": 10, "jobs_1": {"cpu_s": 24.0, "wall_s": 25.0}, "jobs_2": {"cpu_s": 26.0, "wall_s": 20.0}},
    "peers": {
        "minutes": 10.0,
        "annotate": {"cpu_s": 24.0, "gives": "every family"},
        "basic-pitch": {"cpu_s": 16.0, "gives": "notes"},
        "opensmile": {"missing": "opensmile is not installed (extra bench)"},
    },
    "documents": {"minutes": 4.0, "files": 4, "cpu_s": 60.0, "annotate_cpu_s": 12.0},
    "long": {"20": {"cpu_s": 40.0, "wall_s": 40.0}, "60": {"cpu_s": 121.0, "wall_s": 121.0}},
    "cache": {"minutes": 10.0, "cold_cpu_s": 30.0, "same_networks_cpu_s": 12.0, "other_networks_cpu_s": 20.0},
    "scaling": {"track_s": 6.0, "tracks": {"25": {"cpu_s": 10.0, "wall_s": 6.0}}},
    "stages": {"minutes": 2.0, "cpu_s": {"decode": 0.2, "network": 0.6}},
}


def test_verdicts_follow_from_the_figures(speed: Any) -> None:
    found = [(measured, target, verdict) for _, measured, target, verdict in speed.rows_of(FIGURES)]
    assert found == [
        ("2.00", "≤ 2.2", "met"),  # (24 - 4) / 10
        ("0.65", "≥ 0.9", "missed"),  # 26 / 2 / 20
        ("1.50", "≤ 1.2", "missed"),
        ("5.0", "≥ 4", "met"),
        ("2.0", "≤ 3", "met"),
        ("1.01", "≤ 1.1", "met"),
        ("2.5", "≥ 2", "met"),
        ("1.5", "≥ 2", "missed"),
    ]


def test_the_page_leaves_out_what_was_not_measured(speed: Any) -> None:
    assert speed.rows_of({"stages": FIGURES["stages"]}) == []
    text = speed.page({"stages": FIGURES["stages"]})
    assert "| network | 0.300 | 75 % |" in text
    assert "## Beside its peers" not in text
    whole = speed.page(FIGURES)
    assert "| basic-pitch | notes | 16.0 | 1.60 |" in whole
    assert "- opensmile: opensmile is not installed (extra bench)" in whole
    assert "(4.0 + 0.40 × 10) / (4.0 + 0.10 × 10) = 1.6 is about what can be reached." in whole  # decoding alone is done again
    assert "can be reached" not in text


def test_cpu_time_of_what_a_command_leaves_behind_counts(speed: Any) -> None:
    code = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    assert speed.measure([sys.executable, "-c", code]).cpu_s >= 0.25


def test_a_command_that_fails_stops_the_benchmark(speed: Any) -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        speed.measure([sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_files_get_distinct_names(speed: Any, demo_corpus: Path, tmp_path: Path) -> None:
    bench = speed.prepare(tmp_path, demo_corpus, "default")
    assert len({path.stem for path in bench.files}) == len(bench.files) == 8
    assert bench.minutes == pytest.approx(0.8, rel=0.1)


def test_the_committed_page_follows_from_the_committed_figures(speed: Any) -> None:
    import json

    if speed.FIGURES.exists():
        assert speed.PAGE.read_text(encoding="utf-8") == speed.page(json.loads(speed.FIGURES.read_text()))
    else:
        assert not speed.PAGE.exists()
