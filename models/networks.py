"""The networks as training tasks: which graph, which heads, which crops, and how the result is finished.

A task trains on whole-track arrays and gives back the plain graph of its founding document: input and target scales are folded
into the first and last layers (exact), batch normalisation is the plain layer, dtype float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.spectrogram import LogFrequencySpec, StftSpec
from models import crnn, emotion, joint, midlevel, probe, va
from models.labels import GENRES
from models.training import (
    Examples,
    Head,
    Recipe,
    fit,
    fold_input_scale,
    fused_batch_normalization,
    rescale_input,
    unscale,
)

Array = NDArray[np.float32]

MIDLEVEL_RECIPE = Recipe(epochs=14, crop_frames=323, time_mask_frames=32, frequency_mask_bins=24, gain_db=6.0, learning_rate=8e-4)
JOINT_RECIPE = Recipe(epochs=24, crop_frames=313, time_mask_frames=32, frequency_mask_bins=14, roll_bins=2)
EMOTION_RECIPE = Recipe(
    epochs=6,
    crops_per_track=4,
    learning_rate=5e-4,
    batch_size=32,
    time_mask_frames=24,
    frequency_mask_bins=12,
    mixup_alpha=0.4,
)
CRNN_RECIPE = Recipe(epochs=26, crops_per_track=2, learning_rate=1e-3, time_mask_frames=24, frequency_mask_bins=16)
# Lighter dropout than the founding document's (.3, .3, .2, .4): with its rates 460 steps left the genre loss at chance.
# Dropout changes no layer of the finished network.
CRNN_TRAINING = crnn.CrnnArchitecture(convolution_dropout=0.1, lstm_dropout=0.1, recurrent_dropout=0.0, dense_dropout=0.2)
VA_RECIPE = Recipe(
    epochs=100, batch_size=32, learning_rate=2e-3, weight_decay=2e-2, time_masks=0, frequency_masks=0, dtype="float32"
)
VASEQ_RECIPE = Recipe(
    epochs=6, batch_size=16, learning_rate=2e-3, weight_decay=1e-3, time_masks=0, frequency_masks=0, dtype="float32"
)


@dataclass(frozen=True)
class Tracks:
    """Rated tracks of one task: their arrays, targets a head (NaN: no rating), and weights."""

    arrays: Sequence[NDArray[Any]]
    targets: Mapping[str, Array]
    weights: Array


def salience_targets(ratings: Array) -> Array:
    """Multi-hot salience of mid-level ratings, shape (track, 7): the N highest are marked, N = round(SD of the seven).

    The standard deviation is the population's; rows with NaN stay NaN. Source: founding document 000 and its authors' code.
    """
    targets = np.full(ratings.shape, np.nan, np.float32)
    for row, values in enumerate(ratings):
        if np.isfinite(values).all():
            marked = np.argsort(-values, kind="stable")[: round(float(values.std()))]
            targets[row] = 0.0
            targets[row, marked] = 1.0
    return targets


def _scale(values: Array) -> tuple[Array, Array]:
    return np.nanmean(values, axis=0).astype(np.float32), np.nanstd(values, axis=0).astype(np.float32)


def _input_scale(arrays: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Mean and standard deviation over all values of up to 100 evenly chosen tracks."""
    chosen = [np.asarray(arrays[k], np.float64) for k in np.unique(np.linspace(0, len(arrays) - 1, 100).astype(int))]
    size = sum(array.size for array in chosen)
    mean = sum(float(array.sum()) for array in chosen) / size
    variance = sum(float(((array - mean) ** 2).sum()) for array in chosen) / size
    return mean, variance**0.5


class policy:
    """Sets Keras's global dtype policy for a block, with a fresh session."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        import keras

        keras.backend.clear_session()
        self.before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.name)

    def __exit__(self, *_: object) -> None:
        import keras

        keras.config.set_dtype_policy(self.before)


def _plain(trained: Any, build: Any) -> Any:
    with policy("float32"):
        plain = build()
    plain.set_weights(trained.get_weights())
    return plain


def _first_convolution(model: Any) -> Any:
    return next(layer for layer in model.layers if type(layer).__name__ == "Conv2D")


def train_midlevel(tracks: Tracks, recipe: Recipe, folder: Path) -> Any:
    """Train the mid-level network on dB STFTs (bin, frame); `targets`: `rating` (track, 7) in 1-10, and `salience`."""
    import keras

    mean, spread = _scale(tracks.targets["rating"])
    input_mean, input_spread = _input_scale(tracks.arrays)
    heads = {"rating": Head("mse", mean, spread), "salience": Head("bce")}
    examples = Examples(tracks.arrays, tracks.targets, tracks.weights, 1, StftSpec().top_db, input_mean, input_spread)
    keras.utils.set_random_seed(recipe.seed)
    with policy(recipe.dtype):
        network = midlevel.build(
            midlevel.MidlevelArchitecture(frames=recipe.crop_frames), normalization=fused_batch_normalization()
        )
    fit(network, heads, examples, recipe, folder)
    fold_input_scale(_first_convolution(network), mean=input_mean, spread=input_spread)
    unscale(network.get_layer("rating"), mean=np.float32(0.1) * mean, spread=np.float32(0.1) * spread)
    return _plain(network, midlevel.build)


def train_joint(tracks: Tracks, recipe: Recipe, folder: Path) -> Any:
    """Train A2Mid2E-Joint on log-frequency spectrograms (frame, band); `targets`: `midlevel` in 1-10, `film` in 1-9."""
    import keras

    scales = {name: _scale(values) for name, values in tracks.targets.items()}
    input_mean, input_spread = _input_scale(tracks.arrays)
    heads = {name: Head("mse", *scales[name]) for name in ("midlevel", "film")}
    examples = Examples(tracks.arrays, tracks.targets, tracks.weights, 0, None, input_mean, input_spread)
    keras.utils.set_random_seed(recipe.seed)
    with policy(recipe.dtype):
        network = joint.build_joint(joint.JointArchitecture(frames=recipe.crop_frames), normalization=fused_batch_normalization())
    fit(network, heads, examples, recipe, folder)
    fold_input_scale(_first_convolution(network), mean=input_mean, spread=input_spread)
    mean, spread = (np.float32(0.1) * scale for scale in scales["midlevel"])
    unscale(network.get_layer("midlevel"), mean=mean, spread=spread)
    rescale_input(network.get_layer("film"), mean=mean, spread=spread)
    mean, spread = (np.float32(0.1) * scale for scale in scales["film"])
    unscale(network.get_layer("film"), mean=mean, spread=spread)
    return _plain(network, joint.build_joint)


def train_emotion(tracks: Tracks, recipe: Recipe, folder: Path) -> Any:
    """Train the emotion CNN on segments (segment, row, frame); `targets`: `emotion` (track, 9), shares of listeners."""
    import keras

    input_mean, input_spread = _input_scale(tracks.arrays)
    architecture = emotion.EmotionArchitecture(mean=input_mean, standard_deviation=input_spread)
    examples = Examples(tracks.arrays, tracks.targets, tracks.weights, time_axis=1)
    keras.utils.set_random_seed(recipe.seed)
    with policy(recipe.dtype):
        network = emotion.build(architecture, normalization=fused_batch_normalization())
    fit(network, {"emotion": Head("bce")}, examples, recipe, folder)
    plain = _plain(network, lambda: emotion.build(architecture))
    set_level(plain, tracks.arrays, tracks.targets["emotion"])
    return plain


def set_level(network: Any, arrays: Sequence[NDArray[Any]], shares: Array, *, windows: int = 4) -> None:
    """Shift the biases of the sigmoid head until the mean prediction over training tracks is their mean rated share.

    A network that was stopped early is still on its way down from 0.5; the shift changes no order of tracks by much, and its
    level by a lot. Solved by Newton's method on the logits of `windows` evenly spread windows a track.
    """
    import keras

    head = network.get_layer("emotion")
    logits_of = keras.Model(network.input, head.input)
    chosen = [array[int(k)] for array in arrays for k in np.linspace(0, len(array) - 1, windows)]
    hidden = np.concatenate(
        [
            np.asarray(logits_of.predict_on_batch(np.stack(chosen[k : k + 32])[..., None].astype(np.float32)))
            for k in range(0, len(chosen), 32)
        ]
    )
    kernel, bias = head.get_weights()
    logits = hidden @ kernel + bias
    wanted = shares.mean(axis=0)
    shift = np.zeros_like(bias)
    for _ in range(30):
        predicted = 1 / (1 + np.exp(-(logits + shift)))
        slope = (predicted * (1 - predicted)).mean(axis=0)
        shift -= np.clip((predicted.mean(axis=0) - wanted) / np.maximum(slope, 1e-4), -1, 1)
    head.set_weights([kernel, bias + shift])


def train_crnn(tracks: Tracks, recipe: Recipe, folder: Path) -> Any:
    """Train the CRNN on mel chunks (chunk, band, frame); `targets`: `reg_output` (track, 3) in 0-1, `class_output`."""
    import keras

    heads = {"reg_output": Head("mse"), "class_output": Head("cce")}
    padded = [PaddedChunks(array) for array in tracks.arrays]
    examples = Examples(padded, tracks.targets, tracks.weights, time_axis=1)
    keras.utils.set_random_seed(recipe.seed)
    with policy(recipe.dtype):
        network = crnn.build(CRNN_TRAINING, normalization=fused_batch_normalization())
    fit(network, heads, examples, recipe, folder)
    return _plain(network, lambda: crnn.build(replace(crnn.CrnnArchitecture(), recurrent_dropout=0.0)))


def train_va(statistics: Array, targets: Array, recipe: Recipe, folder: Path) -> Any:
    """Train the dense network on note statistics (track, 22); targets (track, 4) on 1-9, NaN where there is none."""
    import keras

    finite = np.nan_to_num(statistics)
    spread = finite.std(axis=0)
    architecture = va.DenseArchitecture(
        mean=tuple(finite.mean(axis=0).tolist()),
        standard_deviation=tuple(np.where(spread > 0, spread, 1.0).tolist()),
        output_bias=_centre(targets),
    )
    keras.utils.set_random_seed(recipe.seed)
    keras.backend.clear_session()
    network = va.build_dense(architecture)
    examples = Examples([row[None] for row in finite], {"va": targets}, np.ones(len(finite), np.float32), channel=False)
    fit(network, {"va": Head("mse")}, examples, recipe, folder)
    return network


def train_vaseq(sequences: Array, targets: Array, recipe: Recipe, folder: Path) -> Any:
    """Train the sequence network on notes (track, 512, 4), zero rows behind; targets as for `train_va`."""
    import keras

    notes = sequences[(sequences != 0).any(axis=2)]
    architecture = va.SequenceArchitecture(
        mean=tuple(notes.mean(axis=0).tolist()),
        standard_deviation=tuple(notes.std(axis=0).tolist()),
        output_bias=_centre(targets),
    )
    keras.utils.set_random_seed(recipe.seed)
    keras.backend.clear_session()
    network = va.build_sequence(architecture)
    examples = Examples([row[None] for row in sequences], {"va": targets}, np.ones(len(sequences), np.float32), channel=False)
    fit(network, {"va": Head("mse")}, examples, recipe, folder)
    return network


def _centre(targets: Array) -> tuple[float, ...]:
    """Mean of each target; the document's middle of the scale where a column has no rating at all."""
    known = np.isfinite(targets)
    sums = np.where(known, targets, 0).sum(axis=0)
    return tuple(np.where(known.any(axis=0), sums / np.maximum(known.sum(axis=0), 1), (5.0, 1.5, 5.0, 1.5)).tolist())


def fit_probe(salience: Array, shares: Array) -> Any:
    """Fit the linear probe, salience (track, 7) to shares of listeners (track, 9), by maximum likelihood.

    Each share enters as that weight of a 1 and the rest of a 0: binary cross-entropy with soft targets, solved by scikit-learn.
    """
    import keras
    from sklearn.linear_model import LogisticRegression

    kernel, bias = [], []
    inputs = np.concatenate([salience, salience])
    for share in shares.T:
        weights = np.concatenate([share, 1 - share])
        model = LogisticRegression(C=1e3, max_iter=2000)
        model.fit(inputs, np.repeat([1, 0], len(share)), sample_weight=weights)
        kernel.append(model.coef_[0])
        bias.append(model.intercept_[0])
    keras.backend.clear_session()
    network = probe.build()
    network.set_weights([np.stack(kernel, axis=1), np.array(bias)])
    return network


class PaddedChunks:
    """Mel chunks without their padding, read as the network wants them: 300 frames, zeros behind."""

    def __init__(self, chunks: NDArray[Any]) -> None:
        self.chunks = chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Array]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Array:
        chunk = np.asarray(self.chunks[index], np.float32)
        return np.pad(chunk, ((0, 0), (0, crnn.FRAMES - chunk.shape[1])))


def genre_targets(genres: Sequence[str]) -> Array:
    """One-hot genre, shape (track, 4); a row of NaN where the genre is none of ours."""
    targets = np.full((len(genres), len(GENRES.labels)), np.nan, np.float32)
    for row, genre in enumerate(genres):
        if genre in GENRES.labels:
            targets[row] = 0.0
            targets[row, GENRES.labels.index(genre)] = 1.0
    return targets


def stft_track_windows(stft: NDArray[Any], n_samples: int) -> Iterator[Array]:
    """Cut a whole-track dB STFT (bin, frame) into the windows that inference sees, each (256, 1292)."""
    from features.windows import plan_windows

    spec = StftSpec()
    for index in range(plan_windows(n_samples, spec.window_length).count):
        start = round(index * spec.window_length / spec.hop_length)
        window = np.full((spec.n_bins, spec.n_frames), 20 * np.log10(spec.amin), np.float32)
        part = stft[:, start : start + spec.n_frames]
        window[:, : part.shape[1]] = part
        yield np.maximum(window, window.max() - spec.top_db)


def log_frequency_track_windows(frames: NDArray[Any], n_samples: int) -> Iterator[Array]:
    """Cut a whole-track log-frequency spectrogram (frame, band) into the windows that inference sees, each (313, 149)."""
    from features.windows import plan_windows

    spec = LogFrequencySpec()
    for index in range(plan_windows(n_samples, spec.window_length).count):
        start = round(index * spec.window_length * spec.frame_rate / spec.sample_rate)
        window = np.zeros((spec.n_frames, frames.shape[1]), np.float32)
        part = frames[start : start + spec.n_frames]
        window[: len(part)] = part
        yield window


def predict_tracks(model: Any, windows: Sequence[Sequence[Array]], *, batch_size: int = 16) -> dict[str, Array]:
    """Run a network over the windows of each track and average: head -> (track, label)."""
    owner = np.repeat(np.arange(len(windows)), [len(track) for track in windows])
    flat = [window for track in windows for window in track]
    outputs: dict[str, list[Array]] = {}
    for start in range(0, len(flat), batch_size):
        batch = model.predict_on_batch(np.stack(flat[start : start + batch_size])[..., None].astype(np.float32))
        for head, values in batch.items():
            outputs.setdefault(head, []).append(np.asarray(values))
    pooled = {}
    for head, parts in outputs.items():
        values = np.concatenate(parts)
        sums = np.zeros((len(windows), values.shape[1]))
        np.add.at(sums, owner, values)
        pooled[head] = (sums / np.bincount(owner, minlength=len(windows))[:, None]).astype(np.float32)
    return pooled
