import json
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annotate.audio import decode
from features import note_network, transcription
from features.transcription import NoteEvents, TranscriptionSpec, note_posteriors, notes_from_posteriors, transcribe

ROOT = Path(__file__).parents[1]
SPEC = TranscriptionSpec()
# the network takes the logarithm of sums that nearly cancel, and stretches the least and largest over a window to 0-1: in float32
# two orders of adding up differ by some 1e-5 of a posterior, up to 1e-4 in windows with near silence
ROUNDING = 2e-4

# (onset in s, MIDI pitch): a line with a repeated note, a wide leap and a chord at the end
SCORE = [(0.5, 60), (1.0, 64), (1.5, 64), (2.0, 79), (2.6, 48), (3.2, 55), (3.2, 59), (3.2, 62)]
TONE_S = 0.45

# Runs the package's own code on the posteriors or the signal of an .npz file and prints what it finds as JSON.
PACKAGE = """
import json, logging, sys
logging.disable(logging.WARNING)
for name in ("tensorflow", "tflite_runtime", "coremltools"):
    sys.modules[name] = None
import numpy as np
from basic_pitch import note_creation
cases = np.load(sys.argv[1])
settings = json.loads(sys.argv[2])
found = []
if "signal" in cases:
    from basic_pitch import inference
    inference.librosa.load = lambda path, sr, mono: (cases["signal"], sr)
    folder = inference.ICASSP_2022_MODEL_PATH.parent
    output = inference.run_inference("none", folder / "nmp.onnx")
    np.savez(sys.argv[3], frames=output["note"], onsets=output["onset"])
    posteriors = [(output["note"], output["onset"])]
else:
    posteriors = [(cases[f"frames_{i}"], cases[f"onsets_{i}"]) for i in range(len(cases.files) // 2)]
for frames, onsets in posteriors:
    for setting in settings:
        notes = note_creation.output_to_notes_polyphonic(frames.copy(), onsets.copy(), infer_onsets=True, **setting)
        times = note_creation.model_frames_to_time(len(frames))
        found.append(sorted([times[a], times[b], int(p), float(m)] for a, b, p, m in notes))
print(json.dumps(found))
"""


def run_package(posteriors_file: Path, specs: list[TranscriptionSpec], out: Path) -> list[list[list[float]]]:
    settings = [
        {
            "onset_thresh": spec.onset_threshold,
            "frame_thresh": spec.frame_threshold,
            "min_note_len": spec.minimum_note_frames,
            "max_freq": spec.maximum_frequency,
            "min_freq": spec.minimum_frequency,
            "melodia_trick": spec.melodia_trick,
            "energy_tol": spec.energy_tolerance,
        }
        for spec in specs
    ]
    command = [sys.executable, "-W", "ignore", "-c", PACKAGE, str(posteriors_file), json.dumps(settings), str(out)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, cwd=out.parent)
    result: list[list[list[float]]] = json.loads(answer.stdout.splitlines()[-1])
    return result


def rows(events: NoteEvents) -> list[list[float]]:
    columns = (events.onset_s, events.offset_s, events.pitch, events.amplitude)
    return sorted(list(row) for row in zip(*(column.tolist() for column in columns), strict=True))


def synthesise(score: list[tuple[float, int]], duration_s: float) -> np.ndarray:
    signal = np.zeros(int(duration_s * SPEC.sample_rate))
    time_s = np.arange(int(TONE_S * SPEC.sample_rate)) / SPEC.sample_rate
    attack_and_decay = np.minimum(time_s / 0.005, 1) * np.exp(-4 * time_s) * np.minimum((TONE_S - time_s) / 0.02, 1)
    for onset_s, pitch in score:
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        tone = sum(np.sin(2 * np.pi * k * frequency * time_s) / k**1.5 for k in range(1, 8))
        start = round(onset_s * SPEC.sample_rate)
        signal[start : start + len(time_s)] += 0.2 * attack_and_decay * tone
    return signal.astype(np.float32)


def random_posteriors(seed: int, n_frames: int, levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Posteriors that last and overlap; with `levels` they take only so many values, so that ties abound."""
    rng = np.random.default_rng(seed)
    walk = np.zeros((n_frames, 88))
    noise = rng.standard_normal((n_frames, 88))
    for frame in range(n_frames):
        walk[frame] = 0.9 * walk[frame - 1] + noise[frame]
    frames = 1 / (1 + np.exp(1.5 - walk))
    onsets = rng.random((n_frames, 88)) ** 6
    if levels is not None:
        frames, onsets = np.round(frames * levels) / levels, np.round(onsets * levels) / levels
    return frames.astype(np.float32), onsets.astype(np.float32)


@pytest.fixture(scope="module")
def played() -> np.ndarray:
    return synthesise(SCORE, 4.2)


@pytest.fixture(scope="module")
def heard(played: np.ndarray) -> NoteEvents:
    return transcribe(played, SPEC)


def test_each_synthesised_note_is_found_at_its_pitch_and_onset(heard: NoteEvents) -> None:
    assert sorted(heard.pitch.tolist()) == sorted(pitch for _, pitch in SCORE)
    for onset_s, pitch in SCORE:
        distance_s = np.abs(heard.onset_s[heard.pitch == pitch] - onset_s)
        assert distance_s.min() < 0.05, (onset_s, pitch)


def test_types_and_order_of_the_notes(heard: NoteEvents) -> None:
    types = [array.dtype for array in (heard.onset_s, heard.offset_s, heard.pitch, heard.amplitude)]
    assert types == [np.float64, np.float64, np.int16, np.float32]
    assert list(zip(heard.onset_s, heard.pitch, strict=True)) == sorted(zip(heard.onset_s, heard.pitch, strict=True))


def test_posteriors_and_notes_of_a_signal_equal_the_package(played: np.ndarray, heard: NoteEvents, tmp_path: Path) -> None:
    np.savez(tmp_path / "signal.npz", signal=played)
    expected = run_package(tmp_path / "signal.npz", [SPEC], tmp_path / "posteriors.npz")[0]
    frames, onsets = note_posteriors(played, SPEC)
    with np.load(tmp_path / "posteriors.npz") as theirs:
        np.testing.assert_allclose(frames, theirs["frames"], rtol=0, atol=ROUNDING)
        np.testing.assert_allclose(onsets, theirs["onsets"], rtol=0, atol=ROUNDING)
        same_input = notes_from_posteriors(theirs["frames"], theirs["onsets"], SPEC)
    assert rows(same_input) == expected
    assert len(heard) == len(expected) >= len(SCORE)
    np.testing.assert_array_equal(rows_without_amplitude(heard), [row[:3] for row in expected])
    np.testing.assert_allclose(rows(heard), expected, rtol=0, atol=ROUNDING)


def test_notes_of_random_posteriors_equal_the_package_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcription, "_BLOCK_FRAMES", 100)
    specs = [
        SPEC,
        TranscriptionSpec(onset_threshold=0.8, frame_threshold=0.2, minimum_note_length_ms=23, energy_tolerance=3),
        TranscriptionSpec(minimum_note_length_ms=0, energy_tolerance=1, minimum_frequency=60.0, maximum_frequency=2000.0),
        TranscriptionSpec(frame_threshold=0.6, melodia_trick=False),
    ]
    lengths = [1, 2, 3, 14, 100, 101, 250, 400]
    cases = [random_posteriors(seed, n, levels) for seed, n in enumerate(lengths) for levels in (None, 5, 20)]
    still = np.full((60, 88), 0.1, dtype=np.float32)
    still[:, 40] = 0.9  # nothing rises: the package divides 0 by 0 and keeps only what the melodia trick finds
    cases.append((still, np.full((60, 88), 0.7, dtype=np.float32)))
    arrays = {f"frames_{i}": frames for i, (frames, _) in enumerate(cases)}
    arrays |= {f"onsets_{i}": onsets for i, (_, onsets) in enumerate(cases)}
    np.savez(tmp_path / "cases.npz", **arrays)
    expected = run_package(tmp_path / "cases.npz", specs, tmp_path / "unused.npz")
    assert sum(len(notes) for notes in expected) > 10_000
    assert expected[-4:-1] != [[], [], []]
    found = [rows(notes_from_posteriors(frames, onsets, spec)) for frames, onsets in cases for spec in specs]
    assert found == expected


def test_posteriors_are_left_as_they_were() -> None:
    frames, onsets = random_posteriors(1, 200, None)
    before = frames.copy(), onsets.copy()
    notes_from_posteriors(frames, onsets, TranscriptionSpec(minimum_frequency=100.0))
    np.testing.assert_array_equal(frames, before[0])
    np.testing.assert_array_equal(onsets, before[1])


def test_a_long_file_takes_seconds_not_minutes() -> None:
    frames, onsets = random_posteriors(3, 500, None)
    start_s = time.process_time()
    events = notes_from_posteriors(np.tile(frames, (40, 1)), np.tile(onsets, (40, 1)), SPEC)
    assert time.process_time() - start_s < 5  # 0.3 as measured; the quadratic search of the package takes longer
    assert len(events) > 30 * len(notes_from_posteriors(frames, onsets, SPEC))


@pytest.mark.parametrize(("samples", "n_frames"), [(1, 0), (256, 0), (257, 1), (22050, 86), (36164 * 2 + 999, 285)])
def test_number_of_frames_is_the_packages(samples: int, n_frames: int) -> None:
    frames, onsets = note_posteriors(np.zeros(samples, dtype=np.float32), SPEC)
    assert frames.shape == onsets.shape == (n_frames, 88)
    assert frames.dtype == onsets.dtype == np.float32


@pytest.mark.parametrize("samples", [1, 300, 22050])
def test_silence_has_no_notes(samples: int) -> None:
    assert len(transcribe(np.zeros(samples, dtype=np.float32), SPEC)) == 0


def test_threads_do_not_change_the_notes(played: np.ndarray, heard: NoteEvents) -> None:
    np.testing.assert_allclose(rows(transcribe(played, SPEC, threads=2)), rows(heard), rtol=0, atol=1e-5)


def test_tensorflow_is_not_imported() -> None:
    code = (
        "import sys; import numpy as np; from features.transcription import *; "
        "transcribe(np.zeros(22050, dtype=np.float32), TranscriptionSpec()); "
        "print([m for m in ('tensorflow', 'keras', 'basic_pitch', 'pandas', 'librosa') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


def test_nothing_warns() -> None:
    frames, onsets = random_posteriors(2, 50, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        notes_from_posteriors(frames * 0, onsets, SPEC)
        notes_from_posteriors(frames, onsets * 0, SPEC)


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (np.zeros(0, dtype=np.float32), "length 0 must hold at least one sample"),
        (np.zeros((2, 100), dtype=np.float32), r"shape \(2, 100\) must be one-dimensional"),
        (np.zeros(100, dtype=np.int16), "type int16 must be floating point"),
        (np.array([0, 0, np.nan], dtype=np.float32), r"signal\[2\]=nan must be finite"),
        (np.array([0, -np.inf, 0], dtype=np.float32), r"signal\[1\]=-inf must be finite"),
    ],
)
def test_bad_signal_is_refused(signal: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transcribe(signal, SPEC)


def test_bad_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="threads=0 must be >= 1"):
        transcribe(np.zeros(100, dtype=np.float32), SPEC, threads=0)


@pytest.mark.parametrize(
    ("frames_shape", "onsets_shape", "message"),
    [
        ((10, 87), (10, 87), r"frames of shape \(10, 87\) must be \(n, 88\)"),
        ((10, 88), (88,), r"onsets of shape \(88,\) must be \(n, 88\)"),
        ((10, 88), (9, 88), "must have one shape"),
    ],
)
def test_posteriors_of_a_wrong_shape_are_refused(
    frames_shape: tuple[int, ...], onsets_shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        notes_from_posteriors(np.zeros(frames_shape, np.float32), np.zeros(onsets_shape, np.float32), SPEC)


def test_posteriors_that_are_not_finite_are_refused() -> None:
    frames, onsets = random_posteriors(1, 20, None)
    onsets[3, 4] = np.nan
    with pytest.raises(ValueError, match="onsets with range nan to nan must be finite"):
        notes_from_posteriors(frames, onsets, SPEC)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"sample_rate": 44100}, "sample_rate=44100 must be 22050"),
        ({"onset_threshold": 0.0}, "onset_threshold=0.0 must be > 0"),
        ({"frame_threshold": 1.5}, "frame_threshold=1.5 must be > 0 and <= 1"),
        ({"frame_threshold": float("nan")}, "frame_threshold=nan must be"),
        ({"minimum_note_length_ms": -1.0}, "minimum_note_length_ms=-1.0 must be finite and >= 0"),
        ({"energy_tolerance": 0}, "energy_tolerance=0 must be >= 1"),
        ({"minimum_frequency": 10.0}, "minimum_frequency=10.0 must lie in 27.5-4186.01 Hz"),
        ({"maximum_frequency": 9000.0}, "maximum_frequency=9000.0 must lie in"),
    ],
)
def test_bad_setting_is_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TranscriptionSpec(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("onset_s", "offset_s", "pitch", "amplitude", "message"),
    [
        ([0.0, 1.0], [0.5], [60], [0.5], "must be four times"),
        ([1.0, 0.0], [2.0, 2.0], [60, 61], [0.5, 0.5], "sorted by onset_s, then pitch"),
        ([0.0, 0.0], [2.0, 2.0], [61, 60], [0.5, 0.5], "sorted by onset_s, then pitch"),
        ([0.0], [0.0], [60], [0.5], "offset_s=0.0 of note 0 must be > its onset_s=0.0"),
        ([np.nan], [1.0], [60], [0.5], "must be finite"),
        ([0.0], [1.0], [128], [0.5], "pitch 128-128 must lie in 0-127"),
        ([0.0], [1.0], [60], [1.5], "amplitude 1.5-1.5 must lie in 0-1"),
    ],
)
def test_bad_notes_are_refused(
    onset_s: list[float], offset_s: list[float], pitch: list[int], amplitude: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        NoteEvents(np.array(onset_s), np.array(offset_s), np.array(pitch, np.int16), np.array(amplitude, np.float32))


def test_from_unsorted_sorts_by_onset_then_pitch() -> None:
    events = NoteEvents.from_unsorted(
        np.array([1.0, 0.0, 0.0]), np.array([2.0, 1.0, 3.0]), np.array([50, 72, 60]), np.array([0.1, 0.2, 0.3])
    )
    assert events.pitch.tolist() == [60, 72, 50]
    assert events.offset_s.tolist() == [3.0, 1.0, 2.0]
    np.testing.assert_allclose(events.amplitude, [0.3, 0.2, 0.1])


def rows_without_amplitude(events: NoteEvents) -> list[list[float]]:
    return [row[:3] for row in rows(events)]


@pytest.fixture(scope="module")
def published() -> Any:
    """The package's own graph, run window by window in place of ours."""
    import onnxruntime

    class Published:
        session = onnxruntime.InferenceSession(str(transcription.published_network()), providers=["CPUExecutionProvider"])

        def run(self, names: list[str], entries: dict[str, np.ndarray]) -> list[np.ndarray]:
            assert names == ["note", "onset"]
            outputs = [f"StatefulPartitionedCall:{number}" for number in (1, 2)]
            return self.session.run(outputs, {"serving_default_input_2:0": entries["audio"][..., None]})

    return Published()


def with_network(network: Any, signal: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> NoteEvents:
    with monkeypatch.context() as patched:
        patched.setattr(transcription, "_session", lambda threads: network)
        return transcribe(signal, SPEC)


@pytest.mark.parametrize("kind", ["chirps", "noise", "half silent", "still"])
def test_the_rewritten_network_gives_the_notes_of_the_published_one(
    kind: str, published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(7)
    time_s = np.arange(3 * SPEC.sample_rate) / SPEC.sample_rate
    chirps = sum(np.sin(2 * np.pi * (f * time_s + 30 * k * time_s**2)) for k, f in enumerate((55.0, 207.0, 830.0, 3100.0)))
    signal = {
        "chirps": 0.1 * chirps,
        "noise": 0.1 * random.standard_normal(len(time_s)),
        "half silent": 0.1 * chirps * (time_s > 1.9),
        "still": 0 * time_s,
    }[kind].astype(np.float32)
    found, expected = transcribe(signal, SPEC), with_network(published, signal, monkeypatch)
    assert rows_without_amplitude(found) == rows_without_amplitude(expected)
    np.testing.assert_allclose(found.amplitude, expected.amplitude, rtol=0, atol=ROUNDING)


def test_a_file_that_is_not_the_network_is_refused(tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    graph = helper.make_graph([], "empty", [], [], [])
    onnx.save(helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(note_network.Unknown, match=r"other\.onnx: no convolution .* not the network of basic-pitch"):
        note_network.build(tmp_path / "other.onnx")


@pytest.mark.corpus
def test_the_rewritten_network_gives_the_same_notes_on_real_music(published: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = ROOT.parent / "shared" / "data"
    files = sorted((shared / "emotify-mp3").rglob("*.mp3")) + sorted((shared / "soundtracks").rglob("*.opus"))[:20]
    if not files:
        pytest.skip("no corpora beside the project")
    assert len(files) == 36
    for path in files:
        signal = decode(path, rates=(SPEC.sample_rate,)).signals[SPEC.sample_rate]
        found, expected = transcribe(signal, SPEC), with_network(published, signal, monkeypatch)
        assert rows_without_amplitude(found) == rows_without_amplitude(expected), path
        np.testing.assert_allclose(found.amplitude, expected.amplitude, rtol=0, atol=ROUNDING, err_msg=str(path))
