import numpy as np
import pytest
import soundfile

from annotate.training_data import extract, extract_all, load
from features.spectrogram import LogFrequencySpec, StftSpec, log_frequency_windows, stft_windows
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
