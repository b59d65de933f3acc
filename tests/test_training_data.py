from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from numpy.typing import NDArray

from annotate import training, training_data
from annotate.training_data import extract, extract_all, load
from annotate.training_teacher import bundle_predictions
from features.spectrogram import LogFrequencySpec, StftSpec, log_frequency_windows, stft_windows
from models import bundle as bundles
from models.labels import GEMS, MIDLEVEL
from models.networks import log_frequency_track_windows, stft_track_windows


@pytest.fixture
def chirp(tmp_path):
    time = np.arange(17 * 22_050) / 22_050
    signal = (0.3 * np.sin(2 * np.pi * (200 + 40 * time) * time)).astype(np.float32)
    path = tmp_path / "chirp.wav"
    soundfile.write(path, signal, 22_050, subtype="FLOAT")
    return path, signal


def test_arrays_are_kept_and_found_again(chirp, tmp_path):
    path, signal = chirp
    digest = extract(path, tmp_path / "arrays")
    assert int(load(tmp_path / "arrays", digest, "length")) == len(signal)
    path.with_name("again.wav").write_bytes(path.read_bytes())
    assert extract_all([path.with_name("again.wav")], tmp_path / "arrays", jobs=1) == [digest]


def test_windows_cut_from_the_stored_track_are_those_of_inference(chirp, tmp_path):
    path, signal = chirp
    digest = extract(path, tmp_path / "arrays")
    frames = load(tmp_path / "arrays", digest, "log_frequency")
    cut, direct = list(log_frequency_track_windows(frames, len(signal))), list(log_frequency_windows(signal, LogFrequencySpec()))
    assert len(cut) == len(direct) == 2
    for a, b in zip(cut, direct, strict=True):
        np.testing.assert_allclose(a[:200], b[:200], atol=2e-3)
    stft = load(tmp_path / "arrays", digest, "stft")
    cut, direct = list(stft_track_windows(stft, len(signal))), list(stft_windows(signal, StftSpec()))
    assert len(cut) == len(direct) == 1
    assert cut[0].shape == (256, 1292)
    np.testing.assert_allclose(cut[0][:, 10:1200], direct[0][:, 10:1200], atol=0.2)


def test_what_a_model_tells_is_kept_when_the_computation_is_stopped(tmp_path: Path) -> None:
    path = tmp_path / "predicted" / "x.parquet"
    digests = ["a", "b", "a", "c", "d", "e"]
    asked: list[str] = []

    def start(until: int) -> training_data.Predict:
        def tell(rows: NDArray[np.intp]) -> dict[str, Any]:
            if len(asked) >= until:
                raise KeyboardInterrupt
            asked.extend(digests[row] for row in rows)
            return {"value": [float(ord(digests[row])) for row in rows]}

        return tell

    with pytest.raises(KeyboardInterrupt):
        training_data.kept_rows(path, digests, lambda: start(2), what="values", at_a_time=2)
    assert asked == ["a", "b"]
    found = training_data.kept_rows(path, digests, lambda: start(99), what="values", at_a_time=2)
    assert asked == ["a", "b", "c", "d", "e"]  # nothing twice
    assert found["value"].tolist() == [97.0, 98.0, 97.0, 99.0, 100.0, 101.0]
    again = training_data.kept_rows(path, digests[::-1], lambda: pytest.fail("nothing is missing"), what="values")
    assert again["value"].tolist() == [101.0, 100.0, 99.0, 97.0, 98.0, 97.0]


def test_the_probe_is_fitted_on_the_saliences_of_a_run(
    demo_corpus: Path, demo_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rated = training.gather([demo_corpus], tmp_path, jobs=1)
    rows = np.arange(len(rated.table))
    found = training.salience_of(rated, tmp_path, rows, "default")
    table = pd.read_parquet(demo_table).set_index("track").loc[rated.table["track"]]
    columns = [f"salient_{label}" for label in MIDLEVEL.labels]
    off = np.abs(found - table[columns].to_numpy(float))  # stored spectrograms are float16, and the graph rounds to int8
    assert off.max() < 0.01
    assert off.mean() < 1e-3
    monkeypatch.setattr(training, "_salience_frozen", lambda *_: pytest.fail("all is kept"))
    np.testing.assert_array_equal(training.salience_of(rated, tmp_path, rows[::-1], "default"), found[::-1])
    probe = bundle_predictions(rated, bundles.load("default"), "probe", tmp_path)
    gems = [f"gems_{label}" for label in GEMS.labels]
    np.testing.assert_allclose(probe[gems].to_numpy(float), table[gems].to_numpy(float), atol=0.01)
