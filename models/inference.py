"""From windows to a track's values: full batches through a network, pooled, and turned into columns.

Windows of many tracks are packed into full batches (`infer`); what belongs to one track is averaged over its windows
(`pool`). The probe reads the pooled salience; `best` reads the pooled embedding of a tagging network beside the descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.descriptors import DescriptorSpec
from features.spectrogram import (
    LogFrequencySpec,
    MelMfccContrastSpec,
    MelSpec,
    StftSpec,
    TaggerMelSpec,
    log_frequency_windows,
    mel_mfcc_contrast_windows,
    mel_windows,
    stft_windows,
    tagger_mel_windows,
)
from features.transcription import TranscriptionSpec
from models import tagger
from models.bundle import Bundle, BundleError, Family, Output, UnknownNameError, load_network, run_engine

Array = NDArray[np.float32]
Predict = Callable[[Array], Mapping[str, Array]]

FRONT_ENDS: dict[str, tuple[type[Any], Callable[[Array, Any], Iterator[Array]]]] = {
    "StftSpec": (StftSpec, stft_windows),
    "LogFrequencySpec": (LogFrequencySpec, log_frequency_windows),
    "MelSpec": (MelSpec, mel_windows),
    "MelMfccContrastSpec": (MelMfccContrastSpec, mel_mfcc_contrast_windows),
    "TaggerMelSpec": (TaggerMelSpec, tagger_mel_windows),
}
TRACK_SPECS: dict[str, type[Any]] = {"TranscriptionSpec": TranscriptionSpec, "DescriptorSpec": DescriptorSpec}
FRONT_END_OF = {
    "midlevel": "StftSpec",
    "joint": "LogFrequencySpec",
    "a2e": "LogFrequencySpec",
    "a2mid2e": "LogFrequencySpec",
    "emotion": "MelMfccContrastSpec",
    "crnn": "MelSpec",
}
WINDOW_FAMILIES = ("midlevel", "joint", "a2e", "a2mid2e", "emotion", "crnn")  # rate every window
REQUIRES: dict[str, tuple[str, ...]] = {
    "probe": ("midlevel",),
}  # families whose values another family reads
BUILT_ON = {
    "probe": "midlevel",
    "va": "notes",
    "vaseq": "notes",
    "vatransfer": "notes",
    "descriptors": "notes",
    "best": "descriptors",
}  # families that a bundle must hold for another one to run
NOTE_FAMILIES = ("notes", "va", "vaseq", "vatransfer", "descriptors", "best")  # families that need the transcription
DESCRIPTOR_FAMILIES = ("descriptors", "best")  # families that read the descriptors of the whole track
CPU_BATCH = {
    "midlevel": 2,
    "joint": 2,
    "a2e": 2,
    "a2mid2e": 2,
    "emotion": 4,
    "crnn": 1,
    "best": 2,
}  # windows; larger ones gain nothing on a CPU and take memory in proportion


def required(families: Iterable[str], bundle: Bundle) -> tuple[str, ...]:
    """Families that must run for `families` to have their values, in the order of the table.

    Raises
    ------
    BundleError
        For a family that the bundle does not hold, or that cannot run without one that it does not hold.
    """
    from models.bundle import FAMILIES

    wanted = set(families)
    for family in list(wanted):
        if family not in bundle.families:
            held = ", ".join(name for name in FAMILIES if name in bundle.families)
            raise UnknownNameError(f"bundle {bundle.name!r} has no family {family!r}; it has {held}")
        base = BUILT_ON.get(family)
        if base is not None and base not in bundle.families:
            raise BundleError(f"bundle {bundle.name!r}: {family} reads {base}, which the bundle does not hold")
        wanted |= {name for name in REQUIRES.get(family, ()) if name in bundle.families}
    return tuple(family for family in FAMILIES if family in wanted)


def spec_of(family: Family) -> Any:
    """Front-end spec of a family, as its bundle states it.

    Raises
    ------
    BundleError
        For a front end that is not ours, fields that it does not have, or another version of its code.
    """
    known = {name: spec for name, (spec, _) in FRONT_ENDS.items()} | TRACK_SPECS
    if family.front_end not in known:
        raise BundleError(f"{family.name}: unknown front end {family.front_end!r}")
    try:
        spec = known[family.front_end](**family.spec)
    except TypeError as error:
        raise BundleError(f"{family.name}: spec of {family.front_end}: {error}") from None
    current = known[family.front_end]().version
    if spec.version != current:
        raise BundleError(f"{family.name}: needs version {spec.version} of {family.front_end}, this program computes {current}")
    return spec


def spectrogram_families(bundle: Bundle, families: Iterable[str]) -> tuple[str, ...]:
    """Those of some families that read windows of a spectrogram."""
    return tuple(name for name in families if bundle.families[name].front_end in FRONT_ENDS)


def windows_of(family: Family, signals: Mapping[int, Array]) -> Iterator[Array]:
    """Yield the windows of a track for one network; `signals` maps a sample rate in Hz to the mono signal."""
    spec = spec_of(family)
    return FRONT_ENDS[family.front_end][1](signals[spec.sample_rate], spec)


def onnx_predict(bundle: Bundle, family: str) -> Predict:
    """Predict with a family's ONNX graph on one CPU thread."""
    engine = bundle.families[family].engine
    if engine is None:
        raise BundleError(
            f"bundle {bundle.name!r}: {family} has no ONNX graph; run with --exact, or import it again with the extra 'train'"
        )
    path = bundle.file(engine)
    return lambda batch: run_engine(path, batch)


def keras_predict(bundle: Bundle, family: str) -> Predict:
    """Predict with a family's Keras model in float32, on whatever device Keras's backend uses."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_tensor_float_32_execution(False)  # float32 means float32 on a GPU, too
    network = load_network(bundle, family)
    return lambda batch: {head: np.asarray(values) for head, values in network.predict_on_batch(batch).items()}


def sees_gpu() -> bool:
    """Whether TensorFlow finds a GPU; imports it."""
    import tensorflow

    return bool(tensorflow.config.list_physical_devices("GPU"))


def packed(windows: Iterable[tuple[int, Array]], batch_size: int) -> Iterator[tuple[list[int], Array]]:
    """Pack (owner, window) pairs of many tracks into full batches; only the last one may be smaller."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be >= 1")
    owners: list[int] = []
    batch: list[Array] = []
    for owner, window in windows:
        owners.append(owner)
        batch.append(window)
        if len(batch) == batch_size:
            yield owners, np.stack(batch)
            owners, batch = [], []
    if batch:
        yield owners, np.stack(batch)


def infer(predict: Predict, windows: Iterable[tuple[int, Array]], batch_size: int) -> dict[int, dict[str, Array]]:
    """Run packed windows through a network; owner -> head -> (window, label), windows in order."""
    collected: dict[int, dict[str, list[Array]]] = {}
    for owners, batch in packed(windows, batch_size):
        for head, values in predict(batch[..., None]).items():
            for owner, row in zip(owners, values, strict=True):
                collected.setdefault(owner, {}).setdefault(head, []).append(row)
    return {owner: {head: np.stack(rows) for head, rows in heads.items()} for owner, heads in collected.items()}


def network_columns(family: Family, outputs: Mapping[str, Array]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Turn a network's outputs, head -> (window, label), into a track's columns and the columns of each window."""
    n_windows = len(next(iter(outputs.values())))
    track: dict[str, Any] = {}
    windows: list[dict[str, Any]] = [{} for _ in range(n_windows)]
    for output in family.outputs:
        if output.head not in outputs:
            continue
        needed = 1 + max(place for block in family.outputs if block.head == output.head for place in block.index)
        if outputs[output.head].shape[1] != needed:
            count = f"{outputs[output.head].shape[1]} numbers for {needed} columns"
            raise BundleError(f"{family.name}: head {output.head!r} gives {count}")
        values = outputs[output.head][:, output.index].astype(np.float64) * output.scale + output.offset
        pooled = values.mean(axis=0)
        spread = values.std(axis=0, ddof=1) if n_windows > 1 else None
        for number, column in enumerate(output.columns):
            track[column] = float(pooled[number])
            if output.spread:
                track[f"{column}_sd"] = None if spread is None else float(spread[number])
            for row, window in zip(windows, values, strict=True):
                row[column] = float(window[number])
        _add_labels(track, output.columns, output.thresholds)
    if "genres" in family.details:
        probabilities = outputs["class_output"].astype(np.float64)
        track |= genre_columns(probabilities.mean(axis=0), family.details["genres"])
        for row, window in zip(windows, probabilities, strict=True):
            row |= {
                key: value
                for key, value in genre_columns(window, family.details["genres"]).items()
                if key in ("genre", "genre_p")
            }
    return track, windows


def _add_labels(row: dict[str, Any], columns: Sequence[str], thresholds: Sequence[float] | None) -> None:
    if thresholds is not None:
        for column, threshold in zip(columns, thresholds, strict=True):
            row[f"{column}_label"] = row[column] >= threshold


def genre_columns(probabilities: NDArray[Any], genres: Sequence[str]) -> dict[str, Any]:
    """The three most probable genres and their probabilities; nulls where a model knows fewer."""
    order = np.argsort(-probabilities, kind="stable")
    row: dict[str, Any] = {}
    for rank, suffix in enumerate(("", "_2", "_3")):
        known = rank < len(order)
        row[f"genre{suffix}"] = genres[order[rank]] if known else None
        row[f"genre{suffix}_p"] = float(probabilities[order[rank]]) if known else None
    return row


def probe_columns(family: Family, predict: Predict, track: Mapping[str, Any], salience: Sequence[str]) -> dict[str, Any]:
    """The probe's columns from a track's pooled salience."""
    inputs = np.array([[track[column] for column in salience]], np.float32)
    return network_columns(family, predict(inputs))[0]


def within_scale(output: Output, values: Sequence[float]) -> list[float]:
    """Limit shares and probabilities to 0-1, which a regression may leave; ratings stay as they are."""
    if output.unit in ("share", "probability"):
        return [min(max(value, output.low), output.high) for value in values]
    return list(values)


def best_numbers(descriptors: Array, outputs: Mapping[str, Array]) -> Array:
    """What `best` reads of a track: descriptors and note features, then the tagging network's pooled outputs.

    `outputs` maps `embedding` to (window, 200) and `pooled` to (window, 753); the result has shape (number,).
    """
    return np.concatenate([descriptors, *tagger.pool(outputs)])
