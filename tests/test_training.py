"""Training: what an epoch is, what a loss leaves out, what survives a stop, and the exact foldings of scales into weights."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from annotate import training as training_of
from models import descriptors, training
from models.labels import GEMS
from models.networks import PaddedChunks, genre_targets, log_frequency_track_windows, salience_targets, stft_track_windows
from models.training import (
    Examples,
    Head,
    Recipe,
    _masked,
    draw_epoch,
    fit,
    fold_input_scale,
    fused_batch_normalization,
    recalibrate,
    rescale_input,
    unscale,
)

RECIPE = Recipe(epochs=4, batch_size=4, crop_frames=12, learning_rate=1e-2, recalibration_batches=3, time_masks=1,
                time_mask_frames=3, frequency_masks=1, frequency_mask_bins=2, dtype="float32")  # fmt: skip


def examples(count: int = 10, *, seed: int = 3) -> Examples:
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(int(rng.integers(8, 30)), 6)).astype(np.float32) for _ in range(count)]
    targets = {
        "rating": rng.normal(5, 2, (count, 2)).astype(np.float32),
        "salience": rng.integers(0, 2, (count, 3)).astype(np.float32),
    }
    targets["rating"][0, 0] = np.nan
    targets["salience"][1:4] = np.nan
    return Examples(arrays, targets, rng.uniform(0.5, 1, count).astype(np.float32))


HEADS = {"rating": Head("mse", np.array([5.0, 5.0], np.float32), np.array([2.0, 2.0], np.float32)), "salience": Head("bce")}


def toy() -> Any:
    """A convolution, a batch norm, a dropout and two heads."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((12, 6, 1))
    x = layers.BatchNormalization(momentum=0.9)(layers.Conv2D(3, 3, activation="relu")(x))
    x = layers.GlobalAveragePooling2D()(layers.Dropout(0.3)(x))
    return keras.Model(inputs, {"rating": layers.Dense(2, name="rating")(x),
                                "salience": layers.Dense(3, activation="sigmoid", name="salience")(x)})  # fmt: skip


# --- epochs ---


def assert_same_epoch(a: Any, b: Any) -> None:
    np.testing.assert_array_equal(a[0], b[0])
    np.testing.assert_array_equal(a[2], b[2])
    for head in a[1]:
        np.testing.assert_array_equal(a[1][head], b[1][head])


@pytest.mark.parametrize("changes", [{}, {"mixup_alpha": 0.4}, {"gain_db": 3.0, "roll_bins": 2, "crops_per_track": 2}])
def test_an_epoch_follows_from_seed_and_number_alone(changes: dict[str, Any]) -> None:
    recipe = replace(RECIPE, **changes)
    first = draw_epoch(examples(), recipe, 5)
    draw_epoch(examples(), recipe, 6)
    assert_same_epoch(first, draw_epoch(examples(), recipe, 5))
    assert first[0].shape == (10 * recipe.crops_per_track, 12, 6, 1)
    assert first[0].dtype == np.float32
    for other in (draw_epoch(examples(), recipe, 4), draw_epoch(examples(), replace(recipe, seed=1), 5)):
        assert (first[0] != other[0]).any()


def test_every_track_is_drawn_as_often_with_its_own_target_and_weight() -> None:
    count = 7
    held = Examples([np.full((5, 4), k, np.float32) for k in range(count)], {"x": np.arange(count, dtype=np.float32)[:, None]},
                    np.arange(count, dtype=np.float32))  # fmt: skip
    recipe = replace(RECIPE, crop_frames=5, crops_per_track=3, time_masks=0, frequency_masks=0)
    crops, targets, weights = draw_epoch(held, recipe, 0)
    assert sorted(weights.tolist()) == sorted(list(range(count)) * 3)
    np.testing.assert_array_equal(crops[:, 0, 0, 0], weights)
    np.testing.assert_array_equal(targets["x"][:, 0], weights)


def test_a_short_track_is_padded_with_its_minimum_and_a_crop_is_limited_and_scaled() -> None:
    plain = replace(RECIPE, crop_frames=4, time_masks=0, frequency_masks=0)
    held = Examples([np.array([[-50.0, 0.0], [-90.0, -10.0]], np.float32)], {"x": np.zeros((1, 1), np.float32)},
                    np.ones(1, np.float32), 0, 80.0, -40.0, 20.0)  # fmt: skip
    crop = draw_epoch(held, plain, 0)[0][0, ..., 0]
    np.testing.assert_allclose(crop, (np.array([[-50, 0], [-80, -10], [-80, -80], [-80, -80]]) + 40) / 20)


def test_mixup_mixes_only_pairs_with_the_same_known_labels() -> None:
    recipe = replace(RECIPE, mixup_alpha=0.4, time_masks=0, frequency_masks=0)
    held = examples(40)
    plain, mixed = (draw_epoch(held, replace(recipe, mixup_alpha=alpha), 2) for alpha in (0.0, 0.4))
    for head in plain[1]:
        np.testing.assert_array_equal(np.isnan(plain[1][head]), np.isnan(mixed[1][head]))
    changed = (plain[0] != mixed[0]).any(axis=(1, 2, 3))
    assert changed.any()
    unmixed = np.isclose(plain[1]["rating"], mixed[1]["rating"], equal_nan=True).all(axis=1)
    assert unmixed[~changed].all()


def test_a_recipe_refuses_what_is_not_positive() -> None:
    with pytest.raises(ValueError, match="epochs=0 must be > 0"):
        Recipe(epochs=0)


# --- losses ---


@pytest.mark.parametrize("loss", ["mse", "bce", "cce"])
def test_a_masked_loss_ignores_nan_and_so_does_its_gradient(loss: str) -> None:
    import keras
    import tensorflow as tf

    truth = np.array([[1.0, np.nan, 0.0, 1.0], [np.nan] * 4], np.float32)
    predicted = tf.Variable([[0.7, 0.2, 0.4, 0.9], [0.1, 0.2, 0.3, 0.4]])
    with tf.GradientTape() as tape:
        values = _masked(loss)(keras.ops.convert_to_tensor(truth), predicted)
        total = tf.reduce_sum(values)
    p = np.array([0.7, 0.4, 0.9])
    t = np.array([1.0, 0.0, 1.0])
    expected = {"mse": (t - p) ** 2, "bce": -t * np.log(p) - (1 - t) * np.log(1 - p), "cce": -t * np.log(p)}[loss]
    np.testing.assert_allclose(values.numpy(), [expected.sum() / 4, 0.0], rtol=1e-5)
    gradient = tape.gradient(total, predicted).numpy()
    assert np.isfinite(gradient).all()
    assert (gradient[1] == 0).all()
    assert gradient[0, 1] == 0
    assert gradient[0, 0] < 0


# --- fitting ---


class Stopped(Exception):
    pass


def trained(folder: Path, recipe: Recipe = RECIPE) -> tuple[list[dict[str, float]], list[Any]]:
    model = toy()
    history = fit(model, HEADS, examples(), recipe, folder)
    return history, model.get_weights()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, float]], list[Any]]:
    """History and weights of a training run that nothing stopped."""
    return trained(tmp_path_factory.mktemp("training") / "whole")


@pytest.mark.parametrize("epoch", [1, 3])
def test_fit_goes_on_where_it_was_stopped(
    whole: tuple[list[dict[str, float]], list[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    import models.training

    def stop(*arguments: Any) -> Any:
        if arguments[2] == epoch:
            raise Stopped
        return draw_epoch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(models.training, "draw_epoch", stop)
        with pytest.raises(Stopped):
            trained(tmp_path)
    assert len(json.loads((tmp_path / "history.json").read_text())) == epoch
    history, weights = trained(tmp_path)
    assert [set(entry) for entry in history] == [set(entry) for entry in whole[0]]
    for ours, theirs in zip(history, whole[0], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for ours, theirs in zip(weights, whole[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_finished_fit_is_not_trained_again(tmp_path: Path) -> None:
    first = trained(tmp_path)
    again = trained(tmp_path)
    assert again[0] == first[0]
    for ours, theirs in zip(again[1], first[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert any((ours != start).any() for ours, start in zip(again[1], toy().get_weights(), strict=True))


def test_memory_holds_the_crops_of_one_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[weakref.ref[Any]] = []

    def draw(*arguments: Any) -> Any:
        gc.collect()
        assert not [earlier for earlier in drawn if earlier() is not None]
        found = draw_epoch(*arguments)
        drawn.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(training, "draw_epoch", draw)
    fit(toy(), HEADS, examples(), replace(RECIPE, epochs=3), tmp_path)
    assert len(drawn) >= 3


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    short = replace(RECIPE, epochs=1)
    trained(tmp_path, short)
    before = (tmp_path / "checkpoint.npz").read_bytes()
    with pytest.raises(ValueError, match="holds the checkpoint of another recipe"):
        trained(tmp_path, replace(short, learning_rate=1e-3))
    assert (tmp_path / "checkpoint.npz").read_bytes() == before


# --- scales folded into weights ---


def test_fold_input_scale_is_exact() -> None:
    import keras

    layer = keras.layers.Conv2D(4, (3, 2))
    x = np.random.default_rng(0).normal(-40, 20, (2, 9, 8, 1)).astype(np.float32)
    layer.build(x.shape)
    before = np.asarray(layer((x + 40) / 20))
    fold_input_scale(layer, mean=-40.0, spread=20.0)
    np.testing.assert_allclose(np.asarray(layer(x)), before, atol=1e-4)


def test_unscale_and_rescale_input_are_exact() -> None:
    import keras

    rng = np.random.default_rng(0)
    mean, spread = rng.normal(5, 1, 3).astype(np.float32), rng.uniform(0.5, 2, 3).astype(np.float32)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    layer = keras.layers.Dense(3)
    layer.build(x.shape)
    layer.set_weights([rng.normal(size=(3, 3)), rng.normal(size=3)])
    before = np.asarray(layer(x))
    unscale(layer, mean=mean, spread=spread)
    np.testing.assert_allclose(np.asarray(layer(x)), before * spread + mean, rtol=1e-5, atol=1e-5)
    layer.set_weights([rng.normal(size=(3, 3)), rng.normal(size=3)])
    before = np.asarray(layer(x))
    rescale_input(layer, mean=mean, spread=spread)
    np.testing.assert_allclose(np.asarray(layer(x * spread + mean)), before, rtol=1e-4, atol=1e-5)


def test_fused_batch_normalization_is_the_plain_layer() -> None:
    import keras

    fused_class = fused_batch_normalization()
    if fused_class is None:
        pytest.skip("not the TensorFlow backend")
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (8, 5, 4, 6)).astype(np.float32)
    plain, fused = keras.layers.BatchNormalization(momentum=0.9), fused_class(momentum=0.9)
    for layer in (plain, fused):
        layer.build(x.shape)
        layer.set_weights([np.linspace(0.5, 2, 6), np.linspace(-1, 1, 6), np.zeros(6), np.ones(6)])
    np.testing.assert_allclose(np.asarray(fused(x, training=True)), np.asarray(plain(x, training=True)), atol=1e-4)
    n = x.size / x.shape[-1]  # the fused kernel's moving variance is the sample's, n / (n - 1) of the population's
    for ours, theirs in zip(fused.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2 / n, atol=1e-5)
    assert (plain.get_weights()[2] != 0).all()
    plain.set_weights(fused.get_weights())
    np.testing.assert_allclose(np.asarray(fused(x, training=False)), np.asarray(plain(x, training=False)), atol=1e-5)


# --- targets ---


def test_salience_by_hand() -> None:
    ratings = np.array(
        [
            [5, 5, 5, 5, 5, 5, 5],  # no spread: none
            [9, 1, 5, 5, 5, 5, 5],  # SD 2.14: the two highest, the first of equals
            [8, 2, 3, 4, 5, 6, 7],  # SD 2: two
            [5, 5, 5, 5, 5, 5, 7],  # SD 0.7: one
            [1, 10, 1, 10, 1, 10, 1],  # SD 4.45: four
            [1, 2, 3, 4, 5, 6, np.nan],
        ],
        np.float32,
    )
    expected = [[0, 0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1], [1, 1, 0, 1, 0, 1, 0]]
    found = salience_targets(ratings)
    np.testing.assert_array_equal(found[:5], expected)
    assert np.isnan(found[5]).all()


def test_genre_targets_and_padded_chunks() -> None:
    found = genre_targets(["rock", "classical", "polka"])
    assert found[0].tolist() == [0, 0, 0, 1]
    assert found[1].tolist() == [1, 0, 0, 0]
    assert np.isnan(found[2]).all()
    chunks = PaddedChunks(np.ones((2, 128, 216), np.float16))
    assert len(chunks) == 2
    assert chunks[1].shape == (128, 300)
    assert chunks[1].dtype == np.float32
    assert chunks[0].sum() == 128 * 216


def test_track_windows_are_those_of_inference() -> None:
    from features.spectrogram import (
        LogFrequencySpec,
        StftSpec,
        log_frequency_frames,
        log_frequency_windows,
        stft_decibel,
        stft_windows,
    )

    rng = np.random.default_rng(0)
    signal = (rng.normal(size=24 * 22_050) * np.linspace(0.01, 0.3, 24 * 22_050)).astype(np.float32)
    ours = list(stft_track_windows(stft_decibel(signal, StftSpec()), len(signal)))
    theirs = list(stft_windows(signal, StftSpec()))
    assert [window.shape for window in ours] == [window.shape for window in theirs] == [(256, 1292)] * 2
    np.testing.assert_allclose(ours[0][:, :-2], theirs[0][:, :-2], atol=1e-3)  # the last frames reach into the next window
    assert np.abs(ours[1] - theirs[1])[:, 2:-2].mean() < 1.0  # dB; a window need not begin where a frame does
    spec, count = LogFrequencySpec(), round(24 * LogFrequencySpec().frame_rate)
    frames = log_frequency_frames(signal, spec, start=0, count=count, peak=float(np.abs(signal).max()))
    ours, theirs = list(log_frequency_track_windows(frames, len(signal))), list(log_frequency_windows(signal, spec))
    assert [window.shape for window in ours] == [window.shape for window in theirs] == [(313, 149)] * 2
    np.testing.assert_allclose(ours[0][:-2], theirs[0][:-2], atol=1e-4)
    assert np.abs(ours[1] - theirs[1])[2:-2].mean() < 0.1 * theirs[1].std()


@given(
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["emotify", "soundtracks"])), min_size=8, max_size=40),
    st.integers(2, 4),
)
@settings(max_examples=40, deadline=None)
def test_a_group_is_never_split(tracks: list[tuple[int, str]], folds: int) -> None:
    groups = [f"{corpus}:{number}" for number, corpus in tracks]
    corpora = [corpus for _, corpus in tracks]
    assume(len(set(groups)) >= folds)
    assume(min(corpora.count(corpus) for corpus in corpora) >= folds)  # else scikit-learn warns of the strata
    numbers = training_of.fold_of(rated(groups, corpora), np.arange(len(tracks)), folds)
    assert set(numbers) == set(range(folds))
    for group in set(groups):
        assert len({numbers[k] for k, held in enumerate(groups) if held == group}) == 1


def rated(groups: Sequence[str], corpora: Sequence[str]) -> training_of.Rated:
    table = pd.DataFrame(
        {"corpus": corpora, "genre": None, "split_group": groups, "track_key": [str(k) for k in range(len(groups))]}
    )
    return training_of.Rated(table, Path("nowhere"), None)


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="2 artists or albums cannot be split into 3 folds"):
        training_of.fold_of(rated(["a", "b"] * 5, ["soundtracks"] * 10), np.arange(10), 3)


def test_word_norms(tmp_path: Path) -> None:
    words = ["amazement", "solemn", "tenderness", "nostalgia", "calm", "power", "joyful", "tension", "sadness"]
    lines = [f"{k},{word},{k + 1},{k + 2},{k + 3}" for k, word in enumerate(["cat", *words])]
    path = tmp_path / "norms.csv"
    path.write_text("\n".join(["id, Word,V.Mean.Sum,A.Mean.Sum,D.Mean.Sum", *reversed(lines)]))
    norms = training_of.read_word_norms(path)
    assert norms.tolist() == [[k + 1, k + 2, k + 3] for k in range(1, 10)]
    path.write_text("\n".join(["Word,V.Mean.Sum,A.Mean.Sum,D.Mean.Sum", "calm,1,2,3"]))
    with pytest.raises(ValueError, match=r"no norms for amazement, solemn"):
        training_of.read_word_norms(path)


def test_targets_of_each_corpus_are_on_one_scale(tmp_path: Path) -> None:
    table = pd.DataFrame({"track_key": ["a", "b", "c"]})
    ratings = pd.DataFrame(
        {
            "rated_valence": [1.0, 5.0],
            "rated_arousal": [3.0, 2.0],
            "rated_valence_std": [0.5, 1.0],
            "rated_arousal_std": [1.0, 0.0],
        },
        index=["b", "a"],
    )
    found = training_of._targets("musifeast", table, ratings, None)
    assert found["va_valence_mean"].tolist() == pytest.approx([9.0, 1.0, np.nan], nan_ok=True)  # 1-5 to 1-9
    assert found["va_arousal_mean"].tolist() == pytest.approx([3.0, 5.0, np.nan], nan_ok=True)
    assert found["va_valence_std"].tolist() == pytest.approx([2.0, 1.0, np.nan], nan_ok=True)
    found = training_of._targets("deam", table, ratings, None)
    assert found["va_valence_mean"].tolist() == pytest.approx([5.0, 1.0, np.nan], nan_ok=True)
    emotify = pd.DataFrame({f"rated_{label}": [float(label == "calmness")] for label in GEMS.labels}, index=["a"])
    norms = tmp_path / "norms.csv"
    words = ["amazement", "solemn", "tenderness", "nostalgia", "calm", "power", "joyful", "tension", "sadness"]
    norms.write_text("\n".join(["Word,V.Mean.Sum,A.Mean.Sum,D.Mean.Sum", *(f"{w},{k},{k},{k}" for k, w in enumerate(words))]))
    found = training_of._targets("emotify", table, emotify, norms)
    assert found["vad_valence"].tolist() == pytest.approx([4.0, np.nan, np.nan], nan_ok=True)  # calm alone
    assert found["gems_calmness"].tolist() == pytest.approx([1.0, np.nan, np.nan], nan_ok=True)


# --- the descriptor model ---


def numbers(tracks: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(tracks, 20)).astype(np.float32) * np.geomspace(1e-2, 1e3, 20).astype(np.float32)
    inputs[:, 7] = 2.0  # a constant descriptor
    ratings = np.stack([inputs[:, k] / inputs[:, k].std() + rng.normal(size=tracks) * 0.1 + 5 for k in range(3)], axis=1)
    return inputs, ratings.astype(np.float32)


LAYOUT = (("descriptors", 12), ("notes", 8))
SMALL = descriptors.DescriptorRecipe(components=6)


def test_a_weight_moves_the_descriptor_model_towards_its_track() -> None:
    inputs, ratings = numbers(40)
    ratings[0] += 5
    weights = np.ones(40, np.float32)
    plain = descriptors.fit(inputs, ratings, LAYOUT, SMALL, weights=weights).predict(inputs[:1])
    weights[0] = 20.0
    heavy = descriptors.fit(inputs, ratings, LAYOUT, SMALL, weights=weights).predict(inputs[:1])
    assert (np.abs(heavy - ratings[:1]) < np.abs(plain - ratings[:1])).all()


def test_members_read_their_own_blocks_alone() -> None:
    inputs, ratings = numbers(40)
    recipe = descriptors.DescriptorRecipe(machines=(("notes",),), ridges=(), components=6)
    model = descriptors.fit(inputs, ratings, LAYOUT, recipe)
    expected = model.predict(inputs)
    inputs[:, :12] = 0
    np.testing.assert_array_equal(model.predict(inputs), expected)
    with pytest.raises(ValueError, match="no block embedding, pooled; there are descriptors, notes"):
        descriptors.fit(inputs, ratings, LAYOUT, descriptors.BEST)


def test_the_descriptor_graph_is_the_descriptor_model() -> None:
    import onnxruntime

    inputs, ratings = numbers(80)
    weights = np.linspace(0.5, 1.5, 60).astype(np.float32)
    model = descriptors.fit(inputs[:60], ratings[:60], LAYOUT, SMALL, weights=weights)
    inputs[70, 3] = 1e6  # unlike anything in training: limited, not followed
    inputs[71, 7] = 3.0  # a descriptor that never changed in training says nothing
    expected = model.predict(inputs)
    assert abs(expected[70] - ratings.mean(axis=0)).max() < 6 * ratings.std()
    inputs[71, 7] = 2.0
    np.testing.assert_array_equal(model.predict(inputs)[71], expected[71])
    assert np.corrcoef(expected[60:, 0], ratings[60:, 0])[0, 1] > 0.8
    graph = onnxruntime.InferenceSession(descriptors.to_onnx(model), providers=["CPUExecutionProvider"])
    (found,) = graph.run(["ratings"], {"descriptors": inputs})
    assert found.shape == (80, 3)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def constant(inputs: Any, ratings: Any) -> tuple[Any, Any]:
    ratings[:, 1] = 4.0
    return inputs, ratings


def unknown_input(inputs: Any, ratings: Any) -> tuple[Any, Any]:
    inputs[3, 3] = np.nan
    return inputs, ratings


def unknown_rating(inputs: Any, ratings: Any) -> tuple[Any, Any]:
    ratings[3, 0] = np.inf
    return inputs, ratings


def uneven(inputs: Any, ratings: Any) -> tuple[Any, Any]:
    return inputs[:-1], ratings


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (constant, "label 1 is constant"),
        (unknown_input, "must be finite"),
        (unknown_rating, "must be finite"),
        (uneven, r"descriptors \(9, 20\) and ratings \(10, 3\)"),
    ],
)
def test_the_descriptor_model_refuses(spoil: Callable[[Any, Any], tuple[Any, Any]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        descriptors.fit(*spoil(*numbers(10)), LAYOUT)


def test_recalibrated_statistics_are_those_of_the_network_that_predicts() -> None:
    import keras
    from keras import layers

    inputs = keras.Input((6, 8, 1))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    x = layers.Dropout(0.5)(x)
    x = layers.Conv2D(4, 3, activation="relu")(x)
    normalization = layers.BatchNormalization(momentum=0.9)
    x = layers.GlobalAveragePooling2D()(normalization(x))
    network = keras.Model(inputs, {"rating": layers.Dense(2)(x)})
    rng = np.random.default_rng(0)
    held = Examples(
        [rng.normal(1, 1, (6, 8)).astype(np.float32) for _ in range(8)],
        {"rating": np.zeros((8, 2), np.float32)},
        np.ones(8, np.float32),
    )
    recipe = Recipe(batch_size=8, crop_frames=6, time_masks=3, time_mask_frames=5, recalibration_batches=3, gain_db=20.0)
    recalibrate(network, held, recipe)
    before = keras.Model(network.input, normalization.input)
    maps = np.asarray(before(np.stack(held.arrays)[..., None], training=False))
    np.testing.assert_allclose(np.asarray(normalization.moving_mean), maps.mean(axis=(0, 1, 2)), rtol=1e-4)
    assert normalization.momentum == 0.9
    assert [layer.rate for layer in network.layers if isinstance(layer, layers.Dropout)] == [0.5]
