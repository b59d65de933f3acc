"""The networks as training tasks: which graph, which heads, which crops, and how the result is finished.

A task trains on whole-track arrays and gives back the plain graph of its founding document: input and target scales are folded
into the first and last layers (exact), batch normalisation is the plain layer, dtype float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from features.spectrogram import LogFrequencySpec, StftSpec
from models import crnn, descriptors, emotion, joint, midlevel, probe, va
from models.labels import GEMS, GENRES
from models.training import (
    Course,
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


@dataclass(frozen=True)
class EmotionRecipe(Recipe):
    """How the emotion CNN is trained."""

    labels: Literal["shares", "binary"] = "shares"  # soft targets, or 1 where the share is above the rule of document 003
    smote_ratio: float = 0.4  # binary labels: positives are synthesised up to this share of the negatives; 0: none
    smote_segments: int = 4  # segments a track that SMOTE starts from

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.smote_ratio <= 1:
            raise ValueError(f"smote_ratio={self.smote_ratio} must be in 0-1")
        if self.smote_segments < 1:
            raise ValueError(f"smote_segments={self.smote_segments} must be >= 1")


@dataclass(frozen=True)
class CrnnRecipe(Recipe):
    """How the CRNN is trained.

    Dropout is lighter than the founding document's (.3, .3, .2, .4): with its rates 460 steps left the genre loss at chance.
    It changes no layer of the finished network.
    """

    waveform_copies: int = 0  # of each track, with its waveform changed as below
    stretch: float = 0.1  # longest change of the tempo, both ways, as a share
    pitch_semitones: float = 2.0  # largest shift, both ways
    noise_db: float = 30.0  # white noise this far below the signal
    convolution_dropout: float = 0.1
    lstm_dropout: float = 0.1
    recurrent_dropout: float = 0.0
    dense_dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.waveform_copies < 0:
            raise ValueError(f"waveform_copies={self.waveform_copies} must be >= 0")
        if not 0 <= self.stretch < 0.5:
            raise ValueError(f"stretch={self.stretch} must be in 0-0.5")


@dataclass(frozen=True)
class ProbeRecipe:
    """How the probe is fitted: maximum likelihood, so there is no schedule."""

    labels: Literal["shares", "binary"] = "shares"  # soft targets, or the N highest shares, N = ceil(10 · SD of the nine)
    cost: float = 1e3  # C of the logistic regression: the inverse of its penalty
    iterations: int = 2000

    def __post_init__(self) -> None:
        for name in ("cost", "iterations"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be > 0")


_TAUGHT: dict[str, Any] = {"hint_weight": 0.5, "course_share": 0.7, "learning_rate": 1e-3}
# No hints, no short crops: with them, from the joint network's trunk, it agreed with people less (mean r .42 to .43 against .46).
MIDLEVEL_RECIPE = Recipe(epochs=14, crop_frames=323, time_mask_frames=32, frequency_mask_bins=24, gain_db=6.0, learning_rate=8e-4)
JOINT_RECIPE = Recipe(
    epochs=17, crop_frames=313, short_epochs=12, short_frames=156, frequency_mask_bins=12, roll_bins=2, final_epochs=2, **_TAUGHT
)
A2E_RECIPE = replace(JOINT_RECIPE, epochs=11, short_epochs=8)
EMOTION_RECIPE = EmotionRecipe(
    epochs=14,
    crops_per_track=2,
    batch_size=32,
    frequency_mask_bins=10,
    final_epochs=3,
    **(_TAUGHT | {"learning_rate": 7e-4}),
)
# no hints: with them 405 steps left the genre at chance
CRNN_RECIPE = CrnnRecipe(
    epochs=26, crops_per_track=2, learning_rate=1e-3, time_mask_frames=24, frequency_mask_bins=16, pseudo_weight=0.0
)
VA_RECIPE = Recipe(
    epochs=100, batch_size=32, learning_rate=2e-3, weight_decay=2e-2, time_masks=0, frequency_masks=0, dtype="float32"
)
VASEQ_RECIPE = Recipe(
    epochs=6, batch_size=16, learning_rate=2e-3, weight_decay=1e-3, time_masks=0, frequency_masks=0, dtype="float32"
)
PROBE_RECIPE = ProbeRecipe()

RECIPES: dict[str, Any] = {
    "midlevel": MIDLEVEL_RECIPE,
    "probe": PROBE_RECIPE,
    "a2e": A2E_RECIPE,
    "a2mid2e": A2E_RECIPE,
    "joint": JOINT_RECIPE,
    "emotion": EMOTION_RECIPE,
    "va": VA_RECIPE,
    "vatransfer": VA_RECIPE,
    "vaseq": VASEQ_RECIPE,
    "crnn": CRNN_RECIPE,
    "descriptors": descriptors.PLAIN,
    "best": descriptors.BEST,
}


# what each family learns, and by which loss
TASKS: dict[str, str] = {
    "midlevel": "ratings 1-10, z-scored, mean squared error; multi-hot salience, binary cross-entropy",
    "probe": "shares of listeners from seven frozen saliences, binary cross-entropy (maximum likelihood)",
    "a2e": "eight film emotions 1-9, z-scored, mean squared error",
    "a2mid2e": "seven mid-level ratings 1-10, z-scored, mean squared error; then linear regression to eight film emotions",
    "joint": "seven mid-level ratings and through them eight film emotions, z-scored, sum of mean squared errors",
    "emotion": "shares of listeners (or binary labels), binary cross-entropy",
    "va": "valence and arousal, mean and spread, from 22 note statistics, mean squared error",
    "vatransfer": "the same from the features of the sequence network, which is trained first",
    "vaseq": "the same from the first 512 notes",
    "crnn": "valence, arousal, dominance in 0-1, mean squared error; genre, categorical cross-entropy",
    "descriptors": "each set of ratings from 535 descriptors and 54 note features: support vectors and ridge, averaged",
    "best": "each set of ratings from descriptors, note features and the embedding of a frozen tagging network, likewise",
}


def _by_the_document(recipe: Recipe, **changes: Any) -> Recipe:
    plain: dict[str, Any] = {
        "optimizer": "adam",
        "schedule": "constant",
        "learning_rate": 5e-4,
        "batch_size": 8,
        "validation_share": 0.15,
        "time_masks": 0,
        "frequency_masks": 0,
        "roll_bins": 0,
        "gain_db": 0.0,
        "mixup_alpha": 0.0,
        "pseudo_weight": 0.0,
        "dtype": "float32",
        "short_epochs": 0,
        "hint_weight": 0.0,
        "course_share": 0.0,
        "final_epochs": 0,
        "trunk_from": "",
    }
    return replace(recipe, **(plain | changes))


_LONG = {"epochs": 500, "patience": 50}
# The founding documents' own recipes; where a document leaves a number out, the published paper's or ours stands.
DOCUMENT_RECIPES: dict[str, Any] = RECIPES | {
    "midlevel": _by_the_document(MIDLEVEL_RECIPE, crop_frames=1292, dtype="mixed_float16", **_LONG),
    "a2e": _by_the_document(JOINT_RECIPE, **_LONG),
    "a2mid2e": _by_the_document(JOINT_RECIPE, **_LONG),
    "joint": _by_the_document(JOINT_RECIPE, **_LONG),
    "emotion": _by_the_document(
        EMOTION_RECIPE,
        labels="binary",
        learning_rate=5e-5,
        batch_size=32,
        epochs=100,
        patience=10,
        plateau_patience=5,
    ),
    "crnn": _by_the_document(
        CRNN_RECIPE,
        schedule="exponential",
        learning_rate=1e-3,
        batch_size=32,
        epochs=100,
        patience=10,
        plateau_patience=4,
        time_masks=2,
        frequency_masks=2,
        waveform_copies=2,
        convolution_dropout=0.3,
        lstm_dropout=0.3,
        recurrent_dropout=0.2,
        dense_dropout=0.4,
    ),
    "va": _by_the_document(VA_RECIPE, learning_rate=1e-3, batch_size=32, epochs=100, patience=10),
    "vatransfer": _by_the_document(VA_RECIPE, learning_rate=1e-3, batch_size=32, epochs=100, patience=10),
    "vaseq": _by_the_document(VASEQ_RECIPE, learning_rate=1e-3, batch_size=32, epochs=50, patience=10),
}


@dataclass(frozen=True)
class Tracks:
    """Rated tracks of one task: their arrays, targets a head (NaN: no rating), and weights."""

    arrays: Sequence[Any]
    targets: Mapping[str, Array]
    weights: Array
    course: Course | None = None


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
    count, total, squares = 0, 0.0, 0.0
    for k in np.unique(np.linspace(0, len(arrays) - 1, 100).astype(int)):  # one at a time: a whole track is large
        array = np.asarray(arrays[k], np.float64)
        count, total, squares = count + array.size, total + float(array.sum()), squares + float((array**2).sum())
    mean = total / count
    return mean, max(squares / count - mean**2, 0.0) ** 0.5


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


def _frames(recipe: Recipe) -> int | None:
    """Input length of a network in training: any, where crops have two lengths."""
    return None if recipe.short_epochs else recipe.crop_frames


def _first_convolution(model: Any) -> Any:
    return next(layer for layer in model.layers if type(layer).__name__ == "Conv2D")


def train_midlevel(
    tracks: Tracks, recipe: Recipe, folder: Path, validation: Tracks | None = None, start: Path | None = None
) -> Any:
    """Train the mid-level network on dB STFTs (bin, frame); `targets`: `rating` (track, 7) in 1-10, and `salience`."""
    import keras

    mean, spread = _scale(tracks.targets["rating"])
    input_mean, input_spread = _input_scale(tracks.arrays)
    heads = {"rating": Head("mse", mean, spread), "salience": Head("bce", weight=0.5)}

    def examples(of: Tracks) -> Examples:
        spec = StftSpec()
        return Examples(
            of.arrays,
            of.targets,
            of.weights,
            1,
            spec.top_db,
            input_mean,
            input_spread,
            course=of.course,
            step_s=spec.hop_length / spec.sample_rate,
        )

    keras.utils.set_random_seed(recipe.seed)
    with policy(recipe.dtype):
        network = midlevel.build(midlevel.MidlevelArchitecture(frames=_frames(recipe)), normalization=fused_batch_normalization())
    fit(network, heads, examples(tracks), recipe, folder, None if validation is None else examples(validation), start=start)
    fold_input_scale(_first_convolution(network), mean=input_mean, spread=input_spread)
    unscale(network.get_layer("rating"), mean=np.float32(0.1) * mean, spread=np.float32(0.1) * spread)
    return _plain(network, midlevel.build)


def train_joint(tracks: Tracks, recipe: Recipe, folder: Path, validation: Tracks | None = None, start: Path | None = None) -> Any:
    """Train A2Mid2E-Joint on log-frequency spectrograms (frame, band); `targets`: `midlevel` in 1-10, `film` in 1-9."""
    network, scales = _train_log_frequency(joint.build_joint, ("midlevel", "film"), tracks, recipe, folder, validation, start)
    mean, spread = (np.float32(0.1) * scale for scale in scales["midlevel"])
    unscale(network.get_layer("midlevel"), mean=mean, spread=spread)
    rescale_input(network.get_layer("film"), mean=mean, spread=spread)
    mean, spread = (np.float32(0.1) * scale for scale in scales["film"])
    unscale(network.get_layer("film"), mean=mean, spread=spread)
    return _plain(network, joint.build_joint)


def train_a2e(tracks: Tracks, recipe: Recipe, folder: Path, validation: Tracks | None = None, start: Path | None = None) -> Any:
    """Train A2E, audio straight to emotions; arrays and `targets` (`film`, 1-9) as for `train_joint`."""
    network, scales = _train_log_frequency(joint.build_a2e, ("film",), tracks, recipe, folder, validation, start)
    mean, spread = (np.float32(0.1) * scale for scale in scales["film"])
    unscale(network.get_layer("film"), mean=mean, spread=spread)
    return _plain(network, joint.build_a2e)


def train_a2mid2e(
    tracks: Tracks, recipe: Recipe, folder: Path, validation: Tracks | None = None, start: Path | None = None
) -> Any:
    """Train A2Mid2E: the network to mid-level features alone; `fit_second_stage` then adds the emotions.

    Arrays and `targets` (`midlevel`, 1-10) as for `train_joint`. The result is the Joint graph, whose last layer is still to be
    fitted.
    """
    network, scales = _train_log_frequency(joint.build_a2mid2e, ("midlevel",), tracks, recipe, folder, validation, start)
    mean, spread = (np.float32(0.1) * scale for scale in scales["midlevel"])
    unscale(network.get_layer("midlevel"), mean=mean, spread=spread)
    with policy("float32"):
        plain = joint.build_joint()
    weights = network.get_weights()
    plain.set_weights([*weights, *plain.get_weights()[len(weights) :]])
    return plain


def fit_second_stage(network: Any, midlevel_ratings: Array, film: Array) -> None:
    """Fit A2Mid2E's second stage, linear regression from mid-level ratings (track, 7) to emotions (track, 8), into `network`.

    The regression learns from the ratings that people gave, as in the founding document, not from the network's predictions.
    """
    from sklearn.linear_model import LinearRegression

    regression = LinearRegression().fit(midlevel_ratings / 10, film / 10)
    network.get_layer("film").set_weights([regression.coef_.T, regression.intercept_])


def _train_log_frequency(
    build: Any,
    heads: Sequence[str],
    tracks: Tracks,
    recipe: Recipe,
    folder: Path,
    validation: Tracks | None,
    start: Path | None,
) -> tuple[Any, dict[str, tuple[Array, Array]]]:
    """Train one of the three film-emotion networks; scaled heads, input scale folded in. Returns the scales of the heads."""
    import keras

    scales = {name: _scale(tracks.targets[name]) for name in heads}
    input_mean, input_spread = _input_scale(tracks.arrays)

    def examples(of: Tracks) -> Examples:
        targets = {name: of.targets[name] for name in heads}
        step_s = 1 / LogFrequencySpec().frame_rate
        return Examples(of.arrays, targets, of.weights, 0, None, input_mean, input_spread, course=of.course, step_s=step_s)

    keras.utils.set_random_seed(recipe.seed)
    with policy(recipe.dtype):
        network = build(joint.JointArchitecture(frames=_frames(recipe)), normalization=fused_batch_normalization())
    described = {name: Head("mse", *scales[name]) for name in heads}
    fit(network, described, examples(tracks), recipe, folder, None if validation is None else examples(validation), start=start)
    fold_input_scale(_first_convolution(network), mean=input_mean, spread=input_spread)
    return network, scales


def train_emotion(
    tracks: Tracks, recipe: EmotionRecipe, folder: Path, validation: Tracks | None = None, start: Path | None = None
) -> Any:
    """Train the emotion CNN on segments (segment, row, frame); `targets`: `emotion` (track, 9), shares of listeners.

    With binary labels the shares are cut by `emotion_cut` of the training part, and rare emotions are synthesised by SMOTE, in
    the training part alone.
    """
    import keras

    input_mean, input_spread = _input_scale(tracks.arrays)
    architecture = emotion.EmotionArchitecture(mean=input_mean, standard_deviation=input_spread)
    cut = emotion_cut(tracks.targets["emotion"])

    def examples(of: Tracks) -> Examples:
        shares = of.targets["emotion"]
        labels = shares if recipe.labels == "shares" else np.where(np.isnan(shares), np.nan, shares > cut).astype(np.float32)
        return Examples(of.arrays, {"emotion": labels}, of.weights, time_axis=1, course=of.course, step_s=3.0, length_s=3.0)

    learned = examples(tracks)
    if recipe.labels == "binary" and recipe.smote_ratio:
        learned = balanced(learned, recipe)
    keras.utils.set_random_seed(recipe.seed)
    with policy(recipe.dtype):
        network = emotion.build(architecture, normalization=fused_batch_normalization())
    fit(
        network,
        {"emotion": Head("bce")},
        learned,
        recipe,
        folder,
        None if validation is None else examples(validation),
        start=start,
    )
    plain = _plain(network, lambda: emotion.build(architecture))
    if recipe.labels == "shares":
        set_level(plain, tracks.arrays, tracks.targets["emotion"])
    return plain


def emotion_cut(shares: Array) -> Array:
    """Share above which an emotion counts as a track's label, by the rule of founding document 003, shape (9,).

    The median over tracks where the standard deviation of the shares exceeds 0.2, elsewhere 0.4.
    """
    spread, median = np.nanstd(shares, axis=0), np.nanmedian(shares, axis=0)
    cut: Array = np.where(spread > 0.2, median, 0.4).astype(np.float32)
    return cut


def multi_hot(shares: Array) -> Array:
    """Multi-hot emotions of founding document 000, shape (track, 9): the N highest shares, N = ceil(10 · SD of the nine)."""
    targets = np.zeros(shares.shape, np.float32)
    for row, values in enumerate(shares):
        targets[row, np.argsort(-values, kind="stable")[: int(np.ceil(10 * float(values.std())))]] = 1.0
    return targets


def balanced(examples: Examples, recipe: EmotionRecipe) -> Examples:
    """Add segments that SMOTE synthesises, so that each emotion has `smote_ratio` positives a negative.

    SMOTE (imbalanced-learn) works on `smote_segments` evenly spread segments a track, one emotion at a time; the other emotions
    of a synthesised segment are the majority of its three nearest neighbours. An emotion with fewer than two positives is left.
    """
    from imblearn.over_sampling import SMOTE
    from sklearn.neighbors import NearestNeighbors

    segments, owners = [], []
    for number, array in enumerate(examples.arrays):
        for index in np.unique(np.linspace(0, len(array) - 1, recipe.smote_segments).astype(int)):
            segments.append(np.asarray(array[index], np.float32))
            owners.append(number)
    flat = np.stack(segments).reshape(len(segments), -1)
    labels = examples.targets["emotion"][owners]
    neighbours = NearestNeighbors(n_neighbors=min(3, len(flat))).fit(flat)
    arrays, targets = list(examples.arrays), [examples.targets["emotion"]]
    for emotion_number, column in enumerate(labels.T):
        positives = int(column.sum())
        if positives < 2 or positives >= recipe.smote_ratio * (len(column) - positives):
            continue
        sampler = SMOTE(
            sampling_strategy=recipe.smote_ratio, k_neighbors=min(5, positives - 1), random_state=recipe.seed + emotion_number
        )
        resampled, _ = sampler.fit_resample(flat, column.astype(int))
        synthesised = resampled[len(flat) :]
        near = neighbours.kneighbors(synthesised, return_distance=False)
        others = (labels[near].mean(axis=1) > 0.5).astype(np.float32)
        others[:, emotion_number] = 1.0
        arrays += list(synthesised.reshape(-1, 1, *segments[0].shape).astype(np.float16))
        targets.append(others)
    labels = np.concatenate(targets)
    weights = np.concatenate([examples.weights, np.ones(len(labels) - len(examples.weights), np.float32)])
    return replace(examples, arrays=arrays, targets={"emotion": labels}, weights=weights)


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


def train_crnn(
    tracks: Tracks, recipe: CrnnRecipe, folder: Path, validation: Tracks | None = None, start: Path | None = None
) -> Any:
    """Train the CRNN on mel chunks (chunk, band, frame); `targets`: `reg_output` (track, 3) in 0-1, `class_output`."""
    import keras

    heads = {"class_output": Head("cce", weight=0.5), "reg_output": Head("mse", weight=20.0)}

    def examples(of: Tracks) -> Examples:
        arrays = [PaddedChunks(array) for array in of.arrays]
        return Examples(arrays, of.targets, of.weights, time_axis=1, course=of.course, step_s=2.5, length_s=5.0)

    architecture = crnn.CrnnArchitecture(
        convolution_dropout=recipe.convolution_dropout,
        lstm_dropout=recipe.lstm_dropout,
        recurrent_dropout=recipe.recurrent_dropout,
        dense_dropout=recipe.dense_dropout,
    )
    keras.utils.set_random_seed(recipe.seed)
    with policy(recipe.dtype):
        network = crnn.build(architecture, normalization=fused_batch_normalization())
    fit(network, heads, examples(tracks), recipe, folder, None if validation is None else examples(validation), start=start)
    return _plain(network, lambda: crnn.build(replace(crnn.CrnnArchitecture(), recurrent_dropout=0.0)))


@dataclass(frozen=True)
class Notes:
    """Rated tracks of a note task: inputs (track, …), targets (track, 4) on 1-9, NaN where there is none, and weights."""

    inputs: Array
    targets: Array
    weights: Array | None = None  # None: 1 each


def train_va(notes: Notes, recipe: Recipe, folder: Path, validation: Notes | None = None) -> Any:
    """Train the dense network; inputs are note statistics (track, 22)."""
    mean, spread = _standard(np.nan_to_num(notes.inputs))
    architecture = va.DenseArchitecture(mean=mean, standard_deviation=spread, output_bias=_centre(notes.targets))
    return _train_notes(lambda: va.build_dense(architecture), notes, recipe, folder, validation)


def train_vaseq(notes: Notes, recipe: Recipe, folder: Path, validation: Notes | None = None) -> Any:
    """Train the sequence network; inputs are notes (track, 512, 4), zero rows behind."""
    mean, spread = _standard(notes.inputs[(notes.inputs != 0).any(axis=2)])
    architecture = va.SequenceArchitecture(mean=mean, standard_deviation=spread, output_bias=_centre(notes.targets))
    return _train_notes(lambda: va.build_sequence(architecture), notes, recipe, folder, validation)


def train_vatransfer(
    notes: Notes,
    recipe: Recipe,
    folder: Path,
    validation: Notes | None = None,
    *,
    sequence_recipe: Recipe = VASEQ_RECIPE,
) -> Any:
    """Train the dense network on the features of a sequence network that is trained first, on the same tracks.

    Inputs as for `train_vaseq`. The result is one graph, notes to the four outputs.
    """
    sequence = train_vaseq(notes, sequence_recipe, folder / "sequence", validation if sequence_recipe.validation_share else None)
    extractor = va.feature_extractor(sequence)

    def features(of: Notes) -> Notes:
        values = np.asarray(extractor.predict(of.inputs, verbose=0)["sequence_features"], np.float32)
        return replace(of, inputs=values)

    inner, held = features(notes), None if validation is None else features(validation)
    layer = next(layer for layer in sequence.layers if hasattr(layer, "standard_deviation"))
    first = va.SequenceArchitecture(mean=tuple(layer.mean), standard_deviation=tuple(layer.standard_deviation))
    learned = sequence.get_weights()
    mean, spread = _standard(inner.inputs)
    second = va.TransferArchitecture(mean=mean, standard_deviation=spread, output_bias=_centre(notes.targets))
    head = _train_notes(lambda: va.build_transfer(second), inner, recipe, folder, held).get_weights()
    joined = va.build_transferred(va.TransferredArchitecture.of(first, second))
    joined.set_weights([*learned[: len(joined.weights) - len(head)], *head])
    return joined


def _standard(inputs: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    spread = inputs.std(axis=0)
    return tuple(inputs.mean(axis=0).tolist()), tuple(np.where(spread > 0, spread, 1.0).tolist())


def _train_notes(build: Any, notes: Notes, recipe: Recipe, folder: Path, validation: Notes | None) -> Any:
    import keras

    def examples(of: Notes) -> Examples:
        finite = np.nan_to_num(of.inputs)
        weights = np.ones(len(finite), np.float32) if of.weights is None else of.weights
        return Examples([row[None] for row in finite], {"va": of.targets}, weights, channel=False)

    keras.utils.set_random_seed(recipe.seed)
    keras.backend.clear_session()
    network = build()
    fit(
        network,
        {"va": Head("mse")},
        examples(notes),
        recipe,
        folder,
        None if validation is None else examples(validation),
    )
    return network


def _centre(targets: Array) -> tuple[float, ...]:
    """Mean of each target; the document's middle of the scale where a column has no rating at all."""
    known = np.isfinite(targets)
    sums = np.where(known, targets, 0).sum(axis=0)
    return tuple(np.where(known.any(axis=0), sums / np.maximum(known.sum(axis=0), 1), (5.0, 1.5, 5.0, 1.5)).tolist())


def fit_probe(salience: Array, shares: Array, recipe: ProbeRecipe = PROBE_RECIPE) -> Any:
    """Fit the linear probe, salience (track, 7) to shares of listeners (track, 9), by maximum likelihood.

    Each share enters as that weight of a 1 and the rest of a 0: binary cross-entropy with soft targets, solved by scikit-learn.
    With binary labels the shares are first made multi-hot (`multi_hot`).

    Raises
    ------
    ValueError
        If an emotion has one class only.
    """
    import keras
    from sklearn.linear_model import LogisticRegression

    kernel, bias = [], []
    inputs = np.concatenate([salience, salience])
    targets = multi_hot(shares) if recipe.labels == "binary" else shares
    for label, share in zip(GEMS.labels, targets.T, strict=True):
        if not 0 < share.mean() < 1:
            raise ValueError(f"{label} has one class only in these {len(share)} tracks: the probe cannot learn it")
        weights = np.concatenate([share, 1 - share])
        model = LogisticRegression(C=recipe.cost, max_iter=recipe.iterations)
        model.fit(inputs, np.repeat([1, 0], len(share)), sample_weight=weights)
        kernel.append(model.coef_[0])
        bias.append(model.intercept_[0])
    keras.backend.clear_session()
    network = probe.build()
    network.set_weights([np.stack(kernel, axis=1), np.array(bias)])
    return network


class PaddedChunks:
    """Mel chunks without their padding, read as the network wants them: 300 frames, zeros behind."""

    def __init__(self, chunks: NDArray[Any] | JoinedChunks) -> None:
        self.chunks = chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Array]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Array:
        chunk = np.asarray(self.chunks[index], np.float32)
        return np.pad(chunk, ((0, 0), (0, crnn.FRAMES - chunk.shape[1])))


class JoinedChunks:
    """Chunks of several arrays, one behind the other, without copying them."""

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> NDArray[Any]:
        for part in self.parts:
            if index < len(part):
                chunk: NDArray[Any] = part[index]
                return chunk
            index -= len(part)
        raise IndexError(index)


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


def with_embedding(model: Any) -> Any:
    """Give a network the head `embedding`: the input of its outputs' layer or layers, its penultimate layer."""
    import keras

    names = {layer.name for layer in model.layers}
    for name in ("Dense1", "second_rnn", "dense_features"):
        if name in names and ("dense_features" not in names or name == "dense_features"):
            inner = model.get_layer(name).output
            break
    else:
        inner = model.get_layer(next(head for head in ("emotion", "reg_output", "gems") if head in names)).input
    return keras.Model(model.input, {**model.output, "embedding": inner})


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
