"""The training arrays of rated tracks, computed once and kept on disk.

One folder a file, named by the digest of its bytes, beneath a folder named by the digest of all front-end specs; inside, one
`.npy` an array (float16 spectrograms, read by memory map). Safe to delete; an interrupted computation goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annotate.audio import AudioError, decode
from annotate.training_labels import some
from annotate.worker import replaced_quietly
from features.descriptors import DescriptorSpec, describe
from features.notes import note_features, note_sequence, note_statistics
from features.spectrogram import (
    LogFrequencySpec,
    MelMfccContrastSpec,
    MelSpec,
    StftSpec,
    TaggerMelSpec,
    log_frequency_frames,
    mel_chunk,
    mel_mfcc_contrast_windows,
    stft_decibel,
    tagger_mel_windows,
)
from features.transcription import TranscriptionSpec, transcribe
from features.windows import cut
from models import tagger
from models.bundle import run_engine

DESCRIPTORS = DescriptorSpec(sample_rate=16_000, rms=0.1)  # no level, and nothing above 8 kHz, where recordings differ most
TAGGER = TaggerMelSpec()
SPECS = (
    StftSpec(),
    LogFrequencySpec(),
    MelSpec(),
    MelMfccContrastSpec(),
    DESCRIPTORS,
    TranscriptionSpec(),
    TAGGER,
)
CHUNK_OVERLAP = 2  # CRNN chunks start every half chunk
TAGGER_BATCH = 8  # windows


def specs_digest() -> str:
    """Digest of every front-end spec: the name of the folder that the arrays lie in."""
    text = json.dumps([[type(spec).__name__, asdict(spec)] for spec in SPECS], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def extract(path: Path, folder: Path, tagger_engine: Path | None = None) -> str:
    """Compute and store the training arrays of one file; return the digest of its bytes.

    Stored: `stft` (bin, frame) dB float16 and `log_frequency` (frame, band) float16 of the whole track; `mel` (chunk, band,
    frame) of half-overlapping 5-s chunks without their padding; `segments` (segment, row, frame); the descriptors, note
    statistics, note features and the note sequence; `length` (samples at 22 050 Hz); with an engine of the tagging network, its
    windows `tagger_mel`, its `embedding_windows` (window, 200), and its pooled outputs `embedding` (400,) and `pooled` (1506,).
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    place = folder / specs_digest() / digest
    if place.is_dir() and (tagger_engine is None or (place / "pooled.npy").exists()):
        return digest
    if place.is_dir() and tagger_engine is not None:
        _store(place, tagger_arrays(decode(path, rates=(16_000,)).signals[16_000], tagger_engine))
        return digest
    stft, log_frequency, mel, segment, descriptor, transcription, _ = SPECS
    decoded = decode(path, rates=(16_000, 22_050, 44_100))
    signal = decoded.signals[22_050]
    events = transcribe(signal, transcription)
    n_frames = round(len(signal) * log_frequency.frame_rate / log_frequency.sample_rate)
    peak = float(np.abs(signal).max())
    step = mel.window_length // CHUNK_OVERLAP
    starts = range(0, max(len(signal) - mel.window_length, 0) + 1, step)
    arrays: dict[str, NDArray[Any]] = {
        "stft": stft_decibel(signal, stft).astype(np.float16),
        "log_frequency": log_frequency_frames(signal, log_frequency, start=0, count=n_frames, peak=peak).astype(np.float16),
        "mel": np.stack([mel_chunk(cut(signal, start, mel.window_length), mel)[:, :216] for start in starts]).astype(np.float16),
        "segments": np.stack(list(mel_mfcc_contrast_windows(decoded.signals[44_100], segment))).astype(np.float16),
        "descriptors": describe(decoded.signals[descriptor.sample_rate], descriptor),
        "statistics": note_statistics(events, decoded.duration_s),
        "features": note_features(events, decoded.duration_s),
        "sequence": note_sequence(events),
        "length": np.array(len(signal)),
    }
    if tagger_engine is not None:
        arrays |= tagger_arrays(decoded.signals[16_000], tagger_engine)
    temporary = place.with_name(f"{digest}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    _store(temporary, arrays)
    os.replace(temporary, place)
    return digest


def _store(place: Path, arrays: dict[str, NDArray[Any]]) -> None:
    for name, array in arrays.items():
        temporary = place / f"{name}.{os.getpid()}.tmp.npy"
        np.save(temporary, array, allow_pickle=False)
        os.replace(temporary, place / f"{name}.npy")


def tagger_engine(work: Path) -> Path:
    """Engine of the published tagging network, made once a working folder.

    Raises
    ------
    ValueError
        If the package that holds its weights is not installed.
    """
    from models import export

    path = work / "tagger.onnx"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        network = tagger.load_published()
        network.set_weights([np.asarray(weight, np.float16).astype(np.float32) for weight in network.get_weights()])  # as packed
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(export.float_graph(network))
        os.replace(temporary, path)
    return path


def tagger_arrays(signal: NDArray[np.float32], engine: Path) -> dict[str, NDArray[Any]]:
    """The tagging network's windows, and mean and standard deviation over them of its outputs."""
    windows = list(tagger_mel_windows(signal, TAGGER))
    batches = [
        run_engine(engine, np.stack(windows[start : start + TAGGER_BATCH])[..., None])
        for start in range(0, len(windows), TAGGER_BATCH)
    ]
    outputs = {head: np.concatenate([batch[head] for batch in batches]) for head in batches[0]}
    embedding, pooled = tagger.pool(outputs)
    return {
        "tagger_mel": np.stack(windows).astype(np.float16),
        "embedding_windows": outputs["embedding"].astype(np.float16),
        "embedding": embedding,
        "pooled": pooled,
    }


def extract_all(paths: Iterable[Path], folder: Path, *, jobs: int, tagger_engine: Path | None = None) -> list[str]:
    """Run `extract` over many files with `jobs` processes and a progress bar; return their digests in order.

    Raises
    ------
    AudioError
        After all the others are done, for files that cannot be decoded, naming them.
    """
    from joblib import Parallel, delayed
    from tqdm import tqdm

    work = list(paths)
    with replaced_quietly():
        results = Parallel(n_jobs=jobs, return_as="generator")(
            delayed(_try_extract)(path, folder, tagger_engine) for path in work
        )
        found = list(tqdm(results, total=len(work), unit="track", desc="front ends", disable=None))
    failed = [f"{path} ({error})" for path, (_, error) in zip(work, found, strict=True) if error]
    if failed:
        raise AudioError(f"{len(failed)} files cannot be read: {some(failed, 10)}; mend them, or take them out of the corpus")
    return [digest for digest, _ in found]


def _try_extract(path: Path, folder: Path, tagger_engine: Path | None) -> tuple[str, str]:
    try:
        return extract(path, folder, tagger_engine), ""
    except (AudioError, OSError) as error:
        return "", str(error)


@dataclass(frozen=True)
class WaveformChange:
    """How copies of a waveform are changed before the CRNN's front end, each by its own draw."""

    stretch: float  # longest change of the tempo, both ways, as a share
    pitch_semitones: float  # largest shift, both ways
    noise_db: float  # white noise this far below the signal
    seed: int


def change(path: Path, digest: str, folder: Path, how: WaveformChange, copy: int) -> Path:
    """Compute and store the mel chunks (chunk, band, frame) of one changed copy of a file: stretched, shifted, with noise.

    The draw follows from the file's digest, the seed and the number of the copy.
    """
    from librosa.effects import pitch_shift, time_stretch

    text = json.dumps([asdict(how), asdict(MelSpec()), copy], sort_keys=True)
    place = folder / hashlib.sha256(text.encode()).hexdigest()[:16] / f"{digest}.npy"
    if place.exists():
        return place
    mel = MelSpec()
    rng = np.random.default_rng([how.seed, copy, int(digest[:12], 16)])
    signal = decode(path, rates=(mel.sample_rate,)).signals[mel.sample_rate]
    rate, shift = 1 + rng.uniform(-how.stretch, how.stretch), rng.uniform(-how.pitch_semitones, how.pitch_semitones)
    signal = time_stretch(signal, rate=rate)
    signal = pitch_shift(signal, sr=mel.sample_rate, n_steps=shift)
    noise = rng.standard_normal(len(signal)) * np.sqrt(np.mean(signal**2)) * 10 ** (-how.noise_db / 20)
    signal = (signal + noise).astype(np.float32)
    starts = range(0, max(len(signal) - mel.window_length, 0) + 1, mel.window_length)
    chunks = np.stack([mel_chunk(cut(signal, start, mel.window_length), mel)[:, :216] for start in starts]).astype(np.float16)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f"{digest}.{os.getpid()}.tmp.npy")
    np.save(temporary, chunks, allow_pickle=False)
    os.replace(temporary, place)
    return place


def change_all(
    files: Sequence[tuple[Path, str]], folder: Path, how: WaveformChange, copies: int, *, jobs: int
) -> list[list[NDArray[Any]]]:
    """Run `change` for each (path, digest) and copy with `jobs` processes; the chunks by file and copy, by memory map."""
    from joblib import Parallel, delayed
    from tqdm import tqdm

    work = [(path, digest, copy) for path, digest in files for copy in range(copies)]
    with replaced_quietly():
        results = Parallel(n_jobs=jobs, return_as="generator")(
            delayed(change)(path, digest, folder, how, copy) for path, digest, copy in work
        )
        places = list(tqdm(results, total=len(work), unit="copy", desc="changed waveforms", disable=None))
    arrays = [np.load(place, mmap_mode="r", allow_pickle=False) for place in places]
    return [arrays[k : k + copies] for k in range(0, len(arrays), copies)]


def has_tagger(folder: Path, digests: Iterable[str]) -> bool:
    """Whether the tagging network's outputs are stored for every one of some files."""
    return all((folder / specs_digest() / digest / "pooled.npy").exists() for digest in digests)


Predict = Callable[[NDArray[np.intp]], dict[str, Any]]  # places of some tracks -> columns, a value a track
KEPT_AT_A_TIME = 16  # tracks between two writes of `kept_rows`: what a stop can cost


def kept_rows(
    path: Path,
    digests: Sequence[str] | pd.Series[str],
    start: Callable[[], Predict],
    *,
    what: str,
    at_a_time: int = KEPT_AT_A_TIME,
) -> pd.DataFrame:
    """What a model tells of some files, a row each in their order, kept by the digest of their bytes in a Parquet file.

    Only what is missing is predicted, and the file is written every `at_a_time` tracks, so that a computation that was stopped
    goes on. `start` makes the model ready, and is called where something is missing.
    """
    from tqdm import tqdm

    wanted = pd.Index(digests, name="sha256")
    known = pd.read_parquet(path) if path.exists() else pd.DataFrame(index=pd.Index([], name="sha256"))
    missing = np.flatnonzero(~wanted.isin(known.index) & ~wanted.duplicated())
    if len(missing):
        tell = start()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with tqdm(total=len(missing), unit="track", desc=what, disable=None) as bar:
            for first in range(0, len(missing), at_a_time):
                some = missing[first : first + at_a_time]
                known = pd.concat([known, pd.DataFrame(tell(some), index=wanted[some])])
                known.to_parquet(temporary)
                os.replace(temporary, path)
                bar.update(len(some))
    return known.loc[wanted]


def load(folder: Path, digest: str, name: str) -> NDArray[Any]:
    """Open one stored array by memory map."""
    array: NDArray[Any] = np.load(folder / specs_digest() / digest / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array
