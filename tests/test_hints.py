"""Hints and courses: what a crop learns beyond its track's labels, short crops first, and trainings that begin with another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.training import Course, Examples, Head, Recipe, draw_epoch, fit

RECIPE = Recipe(
    epochs=3,
    batch_size=4,
    crop_frames=8,
    learning_rate=1e-2,
    recalibration_batches=2,
    time_masks=0,
    frequency_masks=0,
    dtype="float32",
    short_epochs=2,
    short_frames=5,
    hint_weight=0.5,
    course_share=0.5,
)
HEADS = {"rating": Head("mse", np.array([5.0], np.float32), np.array([2.0], np.float32))}


def taught(count: int = 6) -> Examples:
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=(20, 6)).astype(np.float32) for _ in range(count)]
    # windows of 4 s: a teacher hears each track rise by one from window to window
    rising = [np.array([[-1.0], [0.0], [1.0], [2.0], [3.0]], np.float32) for _ in range(count)]
    hints = [np.arange(10, dtype=np.float32).reshape(5, 2) for _ in range(count)]
    course = Course(4.0, hints, {"rating": rising})
    ratings = rng.normal(5, 2, (count, 1)).astype(np.float32)
    return Examples(arrays, {"rating": ratings}, np.ones(count, np.float32), course=course, step_s=1.0)


def toy(frames: int | None) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    inputs = keras.Input((frames, 6, 1))
    x = layers.BatchNormalization(momentum=0.9)(layers.Conv2D(3, 3, activation="relu")(inputs))
    x = layers.Dense(4, name="Dense1")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, {"rating": layers.Dense(1, name="rating")(x)})


def test_a_crop_has_the_mean_of_the_windows_that_it_overlaps() -> None:
    course = taught().course
    assert course is not None
    windows = course.ratings["rating"][0]
    assert course.during(windows, 4.0, 8.0)[0] == 0.0  # just the second
    assert course.during(windows, 6.0, 12.0)[0] == pytest.approx((2 * 0 + 4 * 1) / 6)
    assert course.during(windows, 18.0, 40.0)[0] == 3.0  # beyond the last
    assert course.during(windows, 2.0, 2.0)[0] == -1.0


def test_an_epoch_follows_the_course_and_carries_the_hints() -> None:
    held = taught()
    plain = draw_epoch(replace(held, course=None), replace(RECIPE, seed=4), 0)
    followed = draw_epoch(held, replace(RECIPE, seed=4), 0)
    np.testing.assert_array_equal(plain[0], followed[0])
    moved = followed[1]["rating"] - plain[1]["rating"]
    assert followed[1]["hint"].shape == (6, 2)
    # the first hint is 2k in window k, the teacher's move k - 1: what was drawn agrees
    np.testing.assert_allclose(moved[:, 0], RECIPE.course_share * (followed[1]["hint"][:, 0] / 2 - 1), atol=1e-5)
    assert set(draw_epoch(held, replace(RECIPE, hint_weight=0.0), 0)[1]) == {"rating"}
    still = draw_epoch(held, replace(RECIPE, seed=4, course_share=0.0), 0)
    np.testing.assert_array_equal(still[1]["rating"], plain[1]["rating"])


def test_short_crops_come_first_and_the_hint_leaves_no_trace_in_the_network(tmp_path: Path) -> None:
    network = toy(None)
    before = [weight.shape for weight in network.get_weights()]
    history = fit(network, HEADS, taught(), RECIPE, tmp_path / "a")
    assert len(history) == 3
    assert all(np.isfinite(epoch["hint_loss"]) for epoch in history)
    assert [weight.shape for weight in network.get_weights()] == before
    assert set(network.output) == {"rating"}
    with pytest.raises(ValueError, match="short_epochs needs short_frames"):
        replace(RECIPE, short_frames=None)


def test_a_training_begins_with_the_weights_of_another(tmp_path: Path) -> None:
    network = toy(8)
    first = replace(RECIPE, short_epochs=0, short_frames=None)
    fit(network, HEADS, taught(), first, tmp_path / "a")
    with np.load(tmp_path / "a" / "trunk.npz") as stored:
        trunk = [stored[name] for name in stored.files]
    still = replace(first, epochs=1, learning_rate=1e-12, recalibration_batches=0, seed=2)
    same = toy(8)
    fit(same, HEADS, taught(), still, tmp_path / "b", start=tmp_path / "a")
    for ours, theirs in zip(same.layers[1].get_weights(), network.layers[1].get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(same.get_layer("rating").get_weights()[0], network.get_layer("rating").get_weights()[0], atol=1e-6)
    other = toy(8)  # without the hint the whole graphs differ: the trunk alone is taken
    fit(other, HEADS, taught(), replace(still, hint_weight=0.0), tmp_path / "c", start=tmp_path / "a")
    np.testing.assert_allclose(other.layers[1].get_weights()[0], trunk[0], atol=1e-6)
    assert np.abs(other.get_layer("rating").get_weights()[0] - network.get_layer("rating").get_weights()[0]).max() > 1e-3


def test_a_course_of_ratings_that_no_head_learns_is_left_out(tmp_path: Path) -> None:
    held = taught()
    assert held.course is not None
    course = replace(held.course, ratings={**held.course.ratings, "film": held.course.ratings["rating"]})
    kernels = []
    for name, examples in (("a", replace(held, course=course)), ("b", held)):
        network = toy(None)  # which also sets the seed that the hint's layer starts from
        fit(network, HEADS, examples, RECIPE, tmp_path / name)
        kernels.append(network.get_layer("rating").get_weights()[0])
    np.testing.assert_allclose(*kernels, atol=1e-5)
