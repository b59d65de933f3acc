"""`annotate train` from the command line: families of every kind, from audio and a CSV to a bundle that runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from click.testing import Result

from annotate.training_labels import SCALES, columns_of, limits_of
from models import bundle

FAMILIES = ("descriptors", "best", "a2mid2e", "midlevel", "probe", "emotion", "vatransfer")  # one of each kind
TRACKS = 12
QUICK = (
    "--epochs",
    "1",
    "--short-epochs",
    "1",
    "--short-frames",
    "40",
    "--crop-frames",
    "60",
    "--recalibration-batches",
    "1",
    "--final-epochs",
    "1",
)


@pytest.fixture
def rated_folder(tmp_path: Path) -> tuple[Path, Path]:
    """Twelve chords of 3.2 s by an artist each, and a CSV that rates each for everything but word norms."""
    random = np.random.default_rng(0)
    folder, labels = tmp_path / "music", tmp_path / "labels.csv"
    folder.mkdir()
    rows = []
    for number in range(TRACKS):
        time = np.arange(round(3.2 * 22_050)) / 22_050
        pitches = 220 * 2 ** (np.array([number, number + 3 + number % 2, number + 7]) / 12)
        wave = np.sin(2 * np.pi * pitches[:, None] * time).sum(axis=0) * np.exp(-3 * (time * (1 + number % 4) % 1))
        soundfile.write(folder / f"{number}.wav", 0.1 * wave, 22_050)
        row: dict[str, object] = {"id": str(number), "artist": f"artist {number}"}
        for column in (column for target in SCALES if target != "vad" for column in columns_of(target)):
            low, high = limits_of(column)
            row[column] = round(float(random.uniform(low + 0.1 * (high - low), high - 0.1 * (high - low))), 3)
        rows.append(row)
    pd.DataFrame(rows).to_csv(labels, index=False)
    return folder, labels


@pytest.mark.filterwarnings("ignore:In the future .np.object:FutureWarning")  # Keras's patch of tf2onnx
def test_families_from_audio_and_a_csv_to_a_bundle_that_runs(
    in_process: Callable[..., Result], rated_folder: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, labels = rated_folder
    out = tmp_path / "bundle"
    flags = (*QUICK, "--labels", labels, "--folds", "2", "--components", "3", "--jobs", "1")
    done = in_process("train", ",".join(FAMILIES), folder, *flags, "--out", out)
    assert done.exit_code == 0, done.output
    held = bundle.load(str(out))
    assert set(held.families) == {*FAMILIES, "notes"}
    for family in FAMILIES:
        assert held.trained_on(family) == {"folder": frozenset(f"{number}.wav" for number in range(TRACKS))}
        assert held.families[family].details["training"]["configurations_tried"] == 1
    hint = json.loads((tmp_path / "bundle.work" / "a2mid2e" / "fold0" / "history.json").read_text())[0]
    assert hint["hint_loss"] > 0  # the recipe's hints were there to learn from
    predicted = pd.read_parquet(out / "oof.parquet")
    columns = [output.columns[0] for family in FAMILIES for output in held.families[family].outputs if output.head != "salience"]
    assert len(columns) >= len(FAMILIES)
    for column in columns:
        assert predicted[column].notna().sum() in (TRACKS // 2, TRACKS), column  # one fold of two, or both
    assert in_process("bundle", "verify", out).exit_code == 0
    table = tmp_path / "t.parquet"
    ran = in_process("run", folder, "--bundle", out, "--limit", "2", "--jobs", "1", "--out", table)
    assert ran.exit_code == 0, ran.output
    annotated = pd.read_parquet(table)
    assert annotated[columns].notna().all().all()
    assert (annotated["in_training"].str.split(",").map(set) == set(FAMILIES)).all()
