"""Training of the networks: crops, masks, losses, checkpoints.

A network trains on *examples*: per track one array that crops are drawn from, targets a head (NaN where a track has no such
rating) and a weight. Rating heads learn z-scored targets; `unscale` then folds mean and spread into the last layer, and
`fold_input_scale` folds the input's mean and spread into the first convolution, so that the finished file is the plain graph of
the founding document. An epoch's crops follow from (seed, epoch) alone, and every epoch ends with a checkpoint: a run that was
killed goes on and has the same history. With a validation part, early stopping and the reductions of the learning rate follow
from the history alone, so that they survive a stop, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Lengths are in frames or bins of its input."""

    epochs: int = 24
    batch_size: int = 16
    crops_per_track: int = 1  # an epoch
    crop_frames: int | None = None  # None: the example's arrays are windows already; one is drawn
    learning_rate: float = 8e-4  # AdamW, cosine decay to 0 after a linear warm-up
    warmup_epochs: float = 1.0
    weight_decay: float = 1e-3
    time_masks: int = 2
    time_mask_frames: int = 24  # longest
    frequency_masks: int = 1
    frequency_mask_bins: int = 16  # longest
    roll_bins: int = 0  # random shift along frequency, both ways
    gain_db: float = 0.0  # random gain of a dB input, both ways
    mixup_alpha: float = 0.0  # Beta(alpha, alpha) mixing of pairs; 0: none
    recalibration_batches: int = 45  # training-mode forward passes that set the batch-norm statistics at the end
    pseudo_weight: float = 0.5  # of a track that only a teacher rated
    dtype: Literal["mixed_bfloat16", "mixed_float16", "float32"] = "mixed_bfloat16"
    seed: int = 0
    optimizer: Literal["adamw", "adam"] = "adamw"  # adam: without weight decay
    schedule: Literal["cosine", "exponential", "constant"] = "cosine"  # of the learning rate
    decay: float = 0.96  # factor of the learning rate an epoch, exponential schedule
    validation_share: float = 0.0  # share of the training part, whole groups, that stops and slows the training
    patience: int = 0  # epochs without a lower validation loss until training stops, best weights kept; 0: never
    plateau_patience: int = 0  # epochs without a lower validation loss until the learning rate is reduced; 0: never
    plateau_factor: float = 0.5  # of a reduction
    short_epochs: int = 0  # first epochs, on crops of `short_frames`: cheaper steps while the features are coarse
    short_frames: int | None = None
    hint_weight: float = 0.0  # of the auxiliary loss: a frozen tagging network's embedding of the crop; 0: none
    course_share: float = 0.0  # share of a teacher's course within the track that a crop's ratings follow
    final_epochs: int = 0  # epochs by which the final model goes on from the first held-out fold's weights; 0: trained anew
    final_rate: float = 0.35  # learning rate of those, as a share
    trunk_from: str = ""  # family whose trunk, trained on the same part, this one begins with

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "crops_per_track", "learning_rate", "decay", "plateau_factor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be > 0")
        for name in (
            "weight_decay",
            "time_masks",
            "frequency_masks",
            "mixup_alpha",
            "pseudo_weight",
            "patience",
            "plateau_patience",
            "short_epochs",
            "hint_weight",
            "course_share",
            "final_epochs",
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be >= 0")
        if self.short_epochs and not self.short_frames:
            raise ValueError("short_epochs needs short_frames, the length of their crops")
        if not 0 <= self.validation_share <= 0.5:
            raise ValueError(f"validation_share={self.validation_share} must be in 0-0.5")
        if (self.patience or self.plateau_patience) and not self.validation_share:
            raise ValueError("patience and plateau_patience need a validation part: validation_share=0 must be > 0")
        if self.plateau_patience and self.schedule == "cosine":
            raise ValueError("plateau_patience does not go with the cosine schedule: choose schedule constant or exponential")


@dataclass(frozen=True)
class Head:
    """One output of a network: its loss and the mean and spread that its targets are scaled by."""

    loss: str  # "mse" | "bce" | "cce"
    mean: Array | None = None
    spread: Array | None = None
    weight: float = 1.0  # of its loss in the sum


@dataclass(frozen=True)
class Course:
    """How tracks go on from window to window, as a frozen network hears it: what a crop learns beyond its track's labels.

    Source of the hints: Romero et al., "FitNets: hints for thin deep nets", ICLR 2015.
    """

    window_s: float  # windows lie back to back
    hints: Sequence[Array]  # a track: (window, number), scaled
    ratings: Mapping[str, Sequence[Array]]  # a head, a track: (window, label), a teacher's rating of the window less the track's

    def during(self, windows: Array, start_s: float, stop_s: float) -> Array:
        """Mean over the windows of a track that a crop overlaps, weighed by how long."""
        first = min(max(int(start_s / self.window_s), 0), len(windows) - 1)
        last = min(max(int(np.ceil(stop_s / self.window_s)), first + 1), len(windows))
        places = np.arange(first, last)
        overlap = np.minimum((places + 1) * self.window_s, stop_s) - np.maximum(places * self.window_s, start_s)
        weights = np.maximum(overlap, 1e-3)
        mean: Array = (windows[first:last] * weights[:, None]).sum(axis=0) / weights.sum()
        return mean


@dataclass(frozen=True)
class Examples:
    """What a network trains on: per track an array, targets a head, a weight.

    `arrays[i]` has shape (frame, bin) or (bin, frame) and is cropped along `time_axis`, or, without a crop length, shape
    (window, row, column). `targets[head]` has shape (track, label), NaN where there is no rating.
    """

    arrays: Sequence[Any]
    targets: Mapping[str, Array]
    weights: Array
    time_axis: int = 0
    top_db: float | None = None  # of a dB input: the limit below the crop's maximum
    input_mean: float = 0.0  # the network trains on (crop - mean) / spread
    input_spread: float = 1.0
    channel: bool = True  # whether the network's input has a last axis of length 1
    course: Course | None = None
    step_s: float = 0.0  # seconds from frame to frame; without a crop length, from window to window
    length_s: float = 0.0  # of a window, without a crop length


def _masked(loss: str) -> Callable[[Any, Any], Any]:
    """Build a loss that leaves out NaN targets: the mean over the labels of a sample, shape (sample,)."""
    from keras import ops

    def elementwise(y_true: Any, y_pred: Any) -> Any:
        known = ops.logical_not(ops.isnan(y_true))
        y_true = ops.where(known, y_true, ops.zeros_like(y_true))
        if loss == "mse":
            values = ops.square(y_true - y_pred)
        else:
            y_pred = ops.clip(y_pred, 1e-6, 1 - 1e-6)
            values = -y_true * ops.log(y_pred)
            if loss == "bce":
                values = values - (1 - y_true) * ops.log(1 - y_pred)
        return ops.mean(ops.where(known, values, ops.zeros_like(values)), axis=-1)

    elementwise.__name__ = f"masked_{loss}"
    return elementwise


def fused_batch_normalization() -> Callable[..., Any] | None:
    """Return a batch normalisation for training that uses TensorFlow's fused kernel (twice as fast a step on a CPU).

    Same weights in the same order as `keras.layers.BatchNormalization`. None on Keras's other backends, which means the plain
    layer. Only for training: a finished model is saved with the plain layer.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    class FusedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
        def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            if not training or len(inputs.shape) != 4:
                return super().call(inputs, training=training, mask=mask)
            empty = tf.constant([], tf.float32)
            outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
                x=tf.cast(inputs, self.compute_dtype),
                scale=self.gamma.value,
                offset=self.beta.value,
                mean=empty,
                variance=empty,
                epsilon=self.epsilon,
                is_training=True,
            )
            self.moving_mean.assign(self.moving_mean * self.momentum + mean * (1.0 - self.momentum))
            self.moving_variance.assign(self.moving_variance * self.momentum + variance * (1.0 - self.momentum))
            return outputs

    return FusedBatchNormalization


def draw_epoch(examples: Examples, recipe: Recipe, epoch: int) -> tuple[Array, dict[str, Array], Array]:
    """Draw one epoch's inputs (sample, row, column, 1), targets a head and weights; they follow from (seed, epoch)."""
    rng = np.random.default_rng((recipe.seed, epoch))
    order = rng.permutation(np.repeat(np.arange(len(examples.arrays)), recipe.crops_per_track))
    drawn_crops, spans = zip(*(_draw(examples, int(track), recipe, rng) for track in order), strict=True)
    crops = np.stack(drawn_crops)
    targets = {head: values[order].astype(np.float32) for head, values in examples.targets.items()}
    if examples.course is not None:
        _follow(examples.course, targets, order, spans, recipe)
    weights = examples.weights[order].astype(np.float32)
    if recipe.mixup_alpha:
        # pairs of tracks whose known labels are the same may be mixed; others stay as they are
        partner = rng.permutation(len(order))
        drawn = rng.beta(recipe.mixup_alpha, recipe.mixup_alpha, len(order))
        same = np.ones(len(order), bool)
        for values in targets.values():
            same &= (np.isnan(values) == np.isnan(values[partner])).all(axis=1)
        share = np.where(same, np.maximum(drawn, 1 - drawn), 1.0).astype(np.float32)
        partner = np.where(same, partner, np.arange(len(order)))  # 0 * NaN is NaN
        crops = share[:, None, None] * crops + (1 - share)[:, None, None] * crops[partner]
        targets = {head: share[:, None] * values + (1 - share)[:, None] * values[partner] for head, values in targets.items()}
        weights = share * weights + (1 - share) * weights[partner]
    return (crops[..., None] if examples.channel else crops).astype(np.float32), targets, weights


def _follow(
    course: Course, targets: dict[str, Array], order: NDArray[Any], spans: Sequence[tuple[float, float]], recipe: Recipe
) -> None:
    """Let the targets of each crop follow the course of its track, and add the hints."""
    for head, ratings in course.ratings.items() if recipe.course_share else ():
        moves = [course.during(ratings[track], *span) for track, span in zip(order, spans, strict=True)]
        targets[head] = targets[head] + np.float32(recipe.course_share) * np.stack(moves).astype(np.float32)
    if recipe.hint_weight:
        hints = [course.during(course.hints[track], *span) for track, span in zip(order, spans, strict=True)]
        targets["hint"] = np.stack(hints).astype(np.float32)


def _draw(examples: Examples, track: int, recipe: Recipe, rng: np.random.Generator) -> tuple[Array, tuple[float, float]]:
    """Draw a crop of a track, and where it lies in seconds."""
    source = examples.arrays[track]
    axis = examples.time_axis
    if recipe.crop_frames is None:
        start = int(rng.integers(len(source)))
        crop = np.array(source[start], np.float32)
        span = (start * examples.step_s, start * examples.step_s + examples.length_s)
    else:
        start = int(rng.integers(max(source.shape[axis] - recipe.crop_frames, 0) + 1))
        crop = np.take(source, np.arange(start, min(start + recipe.crop_frames, source.shape[axis])), axis=axis)
        crop = crop.astype(np.float32)
        span = (start * examples.step_s, (start + recipe.crop_frames) * examples.step_s)
        missing = recipe.crop_frames - crop.shape[axis]
        if missing > 0:
            widths = [(0, 0), (0, 0)]
            widths[axis] = (0, missing)
            crop = np.pad(crop, widths, constant_values=float(crop.min()))
    if recipe.gain_db:
        crop += np.float32(rng.uniform(-recipe.gain_db, recipe.gain_db))
    if examples.top_db is not None:
        crop = np.maximum(crop, crop.max() - examples.top_db)
    if recipe.roll_bins:
        crop = np.roll(crop, int(rng.integers(-recipe.roll_bins, recipe.roll_bins + 1)), axis=1 - axis)
    fill = float(crop.mean())
    for masks, longest, along in (
        (recipe.time_masks, recipe.time_mask_frames, axis),
        (recipe.frequency_masks, recipe.frequency_mask_bins, 1 - axis),
    ):
        for _ in range(masks):
            width = int(rng.integers(longest + 1))
            start = int(rng.integers(crop.shape[along] - width + 1))
            crop[(slice(None),) * along + (slice(start, start + width),)] = fill
    return (crop - np.float32(examples.input_mean)) / np.float32(examples.input_spread), span


def fit(
    model: Any,
    heads: Mapping[str, Head],
    examples: Examples,
    recipe: Recipe,
    folder: Path,
    validation: Examples | None = None,
    *,
    start: Path | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place and return its history; goes on from the checkpoint in `folder`, if there is one.

    Parameters
    ----------
    model : keras.Model
        Maps (sample, row, column, 1) to a dictionary of heads.
    heads : Mapping[str, Head]
        One for each key of ``examples.targets``; targets of a head with a mean are z-scored here.
    examples : Examples
        The training part.
    recipe : Recipe
        How.
    folder : Path
        Holds ``checkpoint.npz``, ``best.npz`` (with early stopping), ``history.json`` and ``recipe.json``.
    validation : Examples or None
        Tracks of other groups than the training part's, for early stopping and reductions of the learning rate; their crops are
        the same every epoch, without masks, gain or mixing.
    start : Path or None
        Folder of a finished training whose weights this one begins with: all of them where the graphs are alike, else the trunk.

    Raises
    ------
    ValueError
        If the folder holds a checkpoint of another recipe, the recipe needs a validation part and there is none, or the loss is
        no longer a finite number.
    """
    if validation is None and (recipe.patience or recipe.plateau_patience):
        raise ValueError("patience and plateau_patience need a validation part")
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder / "recipe.json", recipe, examples)
    examples = _z_scored(examples, heads)
    steps = -(-len(examples.arrays) * recipe.crops_per_track // recipe.batch_size)
    losses = {name: _masked(head.loss) for name, head in heads.items()}
    shares = {name: head.weight for name, head in heads.items()}
    if examples.course is not None and recipe.hint_weight:
        model = _with_hint(model, next(iter(heads)), examples.course.hints[0].shape[-1])
        losses["hint"], shares["hint"] = _masked("mse"), recipe.hint_weight
    if start is not None:
        _begin_with(model, start)
    optimizer = _optimizer(recipe, steps)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, losses, loss_weights=shares)
    held = (
        None if validation is None else draw_epoch(_z_scored(validation, heads), _without_augmentation(recipe), VALIDATION_EPOCH)
    )
    history = _restore(folder, model, optimizer)
    with _Progress(folder.name, len(history), recipe.epochs) as progress:
        for epoch in range(len(history), recipe.epochs):
            if _is_over(history, recipe.patience):
                break
            if recipe.schedule != "cosine":
                optimizer.learning_rate = learning_rate_of(history, recipe)
            short = epoch < recipe.short_epochs
            drawn_by = replace(recipe, crop_frames=recipe.short_frames) if short else recipe
            inputs, outputs, weights = draw_epoch(examples, drawn_by, epoch)
            for name, head in heads.items():
                if head.loss == "bce":  # a share that follows its track's course stays a share
                    outputs[name] = np.clip(outputs[name], 0, 1)
            logs = model.fit(
                inputs,
                outputs,
                sample_weight={name: weights for name in outputs},
                batch_size=recipe.batch_size,
                shuffle=False,
                verbose=0,
            ).history
            del inputs, outputs  # before the next epoch is drawn: memory holds the crops of one
            entry = {name: float(values[0]) for name, values in logs.items()}
            if held is not None:
                crops, known, weights = held
                given = {name: weights for name in known}
                if "hint" in losses:  # tells nothing of the task: weight 0
                    known = known | {"hint": np.zeros((len(crops), *model.output["hint"].shape[1:]), np.float32)}
                    given = given | {"hint": np.zeros_like(weights)}
                measured = model.evaluate(crops, known, sample_weight=given, verbose=0, return_dict=True)
                entry |= {f"val_{name}": float(value) for name, value in measured.items()}
            if not np.isfinite(entry["loss"]):
                raise ValueError(
                    f"{folder}: the loss of epoch {epoch + 1} is {entry['loss']}: lower learning_rate or use float32"
                )
            history.append(entry)
            if recipe.patience and _best_epoch(history) == epoch:
                _write_npz(folder / "best.npz", {f"model{k}": _numpy(v) for k, v in enumerate(_variables(model))})
            _save(folder, model, optimizer, history)
            progress.epoch(entry)
    if recipe.patience and (folder / "best.npz").exists():
        with np.load(folder / "best.npz", allow_pickle=False) as best:
            for k, variable in enumerate(_variables(model)):
                variable.assign(best[f"model{k}"])
    recalibrate(model, examples, recipe)
    trunk = [_numpy(variable) for layer in _trunk(model) for variable in layer.variables]
    _write_npz(folder / "trunk.npz", {f"trunk{k}": values for k, values in enumerate(trunk)})
    return history


def _with_hint(model: Any, head: str, size: int) -> Any:
    """Add an output `hint` on what the first head reads; the model's own outputs and weights stay its own."""
    import keras

    hint = keras.layers.Dense(size, name="hint", dtype="float32")(model.get_layer(head).input)
    return keras.Model(model.input, {**{name: model.get_layer(name).output for name in model.output}, "hint": hint})


def _trunk(model: Any) -> list[Any]:
    """Layers that networks of one trunk have in common: convolutions, their normalisations, and the dense layer behind them."""
    import keras

    kinds = (keras.layers.Conv2D, keras.layers.BatchNormalization)
    return [layer for layer in model.layers if isinstance(layer, kinds) or layer.name == "Dense1"]


def _begin_with(model: Any, start: Path) -> None:
    """Give a fresh model the weights of a finished training.

    Raises
    ------
    ValueError
        If neither the whole model nor its trunk has the shapes that were stored.
    """
    with np.load(start / "checkpoint.npz", allow_pickle=False) as stored:
        whole = [stored[name] for name in (f"model{k}" for k in range(len(stored.files))) if name in stored.files]
    with np.load(start / "trunk.npz", allow_pickle=False) as stored:
        trunk = [stored[f"trunk{k}"] for k in range(len(stored.files))]
    for variables, values in (
        (_variables(model), whole),
        ([variable for layer in _trunk(model) for variable in layer.variables], trunk),
    ):
        if [tuple(variable.shape) for variable in variables] == [value.shape for value in values]:
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
            return
    raise ValueError(f"{start} holds the weights of another architecture")


VALIDATION_EPOCH = 2**31  # number of the epoch that the validation crops are drawn as


def _z_scored(examples: Examples, heads: Mapping[str, Head]) -> Examples:
    targets = {
        name: examples.targets[name]
        if head.mean is None or head.spread is None
        else (examples.targets[name] - head.mean) / head.spread
        for name, head in heads.items()
    }
    course = examples.course
    if course is not None:
        ratings = {
            name: moves if (spread := heads[name].spread) is None else [move / spread for move in moves]
            for name, moves in course.ratings.items()
            if name in heads  # A2Mid2E learns mid-level features alone, its teacher tells emotions, too
        }
        course = replace(course, ratings=ratings)
    return replace(examples, targets=targets, course=course)


def _without_augmentation(recipe: Recipe) -> Recipe:
    return replace(recipe, time_masks=0, frequency_masks=0, gain_db=0.0, roll_bins=0, mixup_alpha=0.0)


def _optimizer(recipe: Recipe, steps: int) -> Any:
    import keras

    rate: Any = recipe.learning_rate
    if recipe.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=recipe.learning_rate / 10,
            decay_steps=max(int(steps * (recipe.epochs - recipe.warmup_epochs)), 1),
            warmup_target=recipe.learning_rate,
            warmup_steps=max(int(steps * recipe.warmup_epochs), 1),
        )
    if recipe.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    return keras.optimizers.AdamW(rate, weight_decay=recipe.weight_decay)


def learning_rate_of(history: Sequence[Mapping[str, float]], recipe: Recipe) -> float:
    """Learning rate of the epoch after `history`, exponential or constant schedule, with the reductions on plateaus."""
    rate = recipe.learning_rate * (recipe.decay ** len(history) if recipe.schedule == "exponential" else 1.0)
    if not recipe.plateau_patience:
        return rate
    lowest, waited = np.inf, 0
    for entry in history:
        waited += 1
        if entry["val_loss"] < lowest:
            lowest, waited = entry["val_loss"], 0
        elif waited == recipe.plateau_patience:
            rate, waited = rate * recipe.plateau_factor, 0
    return rate


def _best_epoch(history: Sequence[Mapping[str, float]]) -> int:
    return int(np.argmin([entry["val_loss"] for entry in history]))


def _is_over(history: Sequence[Mapping[str, float]], patience: int) -> bool:
    return bool(patience and history and len(history) - 1 - _best_epoch(history) >= patience)


class _Progress:
    """A bar on a terminal, elsewhere a line an epoch, both on stderr and with the time that is left."""

    def __init__(self, name: str, done: int, epochs: int) -> None:
        from tqdm import tqdm

        self.name, self.done, self.epochs = name, done, epochs
        self.started, self.first = time.monotonic(), done
        self.bar = tqdm(
            desc=name, initial=done, total=epochs, unit="epoch", file=sys.stderr, disable=not sys.stderr.isatty(), leave=True
        )

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def epoch(self, entry: Mapping[str, float]) -> None:
        """Say that one more epoch is done."""
        self.done += 1
        losses = ", ".join(f"{name} {entry[name]:.4f}" for name in ("loss", "val_loss") if name in entry)
        self.bar.set_postfix_str(losses, refresh=False)
        self.bar.update()
        if self.bar.disable:
            spent = (time.monotonic() - self.started) / (self.done - self.first)
            left = spent * (self.epochs - self.done)
            line = f"{self.name}: epoch {self.done}/{self.epochs}, {losses}, {spent:.0f} s an epoch, at most {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)


def recalibrate(model: Any, examples: Examples, recipe: Recipe) -> None:
    """Set the batch-norm statistics to the plain average over training-mode forward passes of the finished weights.

    The passes see what inference sees: crops without masks, gain or mixing, and no dropout. Statistics that were taken with
    dropout on belong to another network, and shift its ratings by a point and more.
    """
    import keras

    normalizations = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    dropouts = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    momenta, rates = [layer.momentum for layer in normalizations], [layer.rate for layer in dropouts]
    clean = _without_augmentation(recipe)
    for layer in dropouts:
        layer.rate = 0.0
    done = 0
    epoch = recipe.epochs
    while normalizations and done < recipe.recalibration_batches:
        inputs, _, _ = draw_epoch(examples, clean, epoch)
        size = min(recipe.batch_size, len(inputs))
        for start in range(0, len(inputs) - size + 1, size):
            for layer in normalizations:
                layer.momentum = done / (done + 1)  # a running mean of all passes so far
            model(inputs[start : start + size], training=True)
            done += 1
            if done == recipe.recalibration_batches:
                break
        del inputs
        epoch += 1
    for layer, momentum in zip(normalizations, momenta, strict=True):
        layer.momentum = momentum
    for layer, rate in zip(dropouts, rates, strict=True):
        layer.rate = rate


def fold_input_scale(convolution: Any, *, mean: float, spread: float) -> None:
    """Let a *valid* first convolution that was trained on ``(x - mean) / spread`` take x itself: exact."""
    kernel, bias = convolution.get_weights()
    kernel = kernel / spread
    convolution.set_weights([kernel, bias - mean * kernel.sum(axis=(0, 1, 2))])


def unscale(dense: Any, *, mean: Array, spread: Array) -> None:
    """Let a linear layer that was trained on z-scored targets give the targets themselves: exact."""
    kernel, bias = dense.get_weights()
    dense.set_weights([kernel * spread, bias * spread + mean])


def rescale_input(dense: Any, *, mean: Array, spread: Array) -> None:
    """Let a linear layer that was trained on z-scored inputs take the unscaled inputs: exact."""
    kernel, bias = dense.get_weights()
    kernel = kernel / spread[:, None]
    dense.set_weights([kernel, bias - mean @ kernel])


def _claim(path: Path, recipe: Recipe, examples: Examples) -> None:
    digest = hashlib.sha256(np.ascontiguousarray(examples.weights).tobytes())
    for head, values in sorted(examples.targets.items()):
        digest.update(head.encode() + np.ascontiguousarray(values).tobytes())
    claim: dict[str, Any] = {"recipe": asdict(recipe), "tracks": len(examples.arrays), "targets_sha256": digest.hexdigest()}
    claim = json.loads(json.dumps(claim))
    if path.exists():
        held = json.loads(path.read_text())
        # a field that is younger than the checkpoint has the value that changes nothing: its default
        held["recipe"] = asdict(Recipe()) | held["recipe"]
        differing = [name for name, value in claim["recipe"].items() if held["recipe"].get(name, value) != value]
        if held | {"recipe": claim["recipe"]} != claim or differing:
            what = f" ({', '.join(differing)})" if differing else ""
            raise ValueError(
                f"{path.parent} holds the checkpoint of another recipe{what} or of other tracks: "
                "choose another folder or remove it"
            )
        return
    path.write_text(json.dumps(claim, indent=1, sort_keys=True))


def _variables(model: Any) -> list[Any]:
    """All that training changes in the layers: weights, batch-norm statistics, and the states of dropout's seeds."""
    return [variable for layer in model.layers for variable in layer.variables]


def _numpy(variable: Any) -> NDArray[Any]:
    import keras

    values: NDArray[Any] = keras.ops.convert_to_numpy(variable.value)
    return values


def _write_npz(path: Path, state: Mapping[str, NDArray[Any]]) -> None:
    temporary = path.with_name(f"{path.stem}.tmp.npz")
    arrays: dict[str, Any] = dict(state)
    np.savez(temporary, **arrays)
    os.replace(temporary, path)


def _save(folder: Path, model: Any, optimizer: Any, history: list[dict[str, float]]) -> None:
    state = {f"model{k}": _numpy(v) for k, v in enumerate(_variables(model))}
    state |= {f"optimizer{k}": _numpy(v) for k, v in enumerate(optimizer.variables)}
    state["history"] = np.frombuffer(json.dumps(history).encode(), np.uint8)
    _write_npz(folder / "checkpoint.npz", state)
    temporary = folder / "history.json.tmp"
    temporary.write_text(json.dumps([{"epoch": k + 1, **entry} for k, entry in enumerate(history)], indent=1))
    os.replace(temporary, folder / "history.json")


def _restore(folder: Path, model: Any, optimizer: Any) -> list[dict[str, float]]:
    path = folder / "checkpoint.npz"
    if not path.exists():
        return []
    with np.load(path, allow_pickle=False) as state:
        for k, variable in enumerate(_variables(model)):
            variable.assign(state[f"model{k}"])
        for k, variable in enumerate(optimizer.variables):
            variable.assign(state[f"optimizer{k}"])
        history: list[dict[str, float]] = json.loads(state["history"].tobytes())
    return history
