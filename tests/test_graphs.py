"""The networks against the layer tables of the founding documents, and what must hold for every one of them.

Rows are (layer type, output shape without the batch axis, number of parameters). Weights are random, never trained.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from models import crnn, emotion, joint, labels, midlevel, probe, va

ROOT = Path(__file__).parents[1]
Row = tuple[str, tuple[int, ...], int]

CRNN_INFERENCE = crnn.CrnnArchitecture(recurrent_dropout=0.0)


@dataclass(frozen=True)
class Case:
    """One network at a size that is cheap to run."""

    build: Callable[[], Any]
    input_shape: tuple[int, ...]  # without the batch axis
    outputs: dict[str, int]  # name -> width


CASES = {
    "midlevel": Case(
        lambda: midlevel.build(midlevel.MidlevelArchitecture(frames=None)), (256, 24, 1), {"salience": 7, "rating": 7}
    ),
    "probe": Case(probe.build, (7,), {"gems": 9}),
    "midlevel_probe": Case(
        lambda: probe.on_midlevel(midlevel.build(midlevel.MidlevelArchitecture(frames=None)), probe.build()),
        (256, 24, 1),
        {"gems": 9},
    ),
    "a2e": Case(lambda: joint.build_a2e(joint.JointArchitecture(frames=None)), (30, 149, 1), {"film": 8}),
    "a2mid2e": Case(lambda: joint.build_a2mid2e(joint.JointArchitecture(frames=None)), (30, 149, 1), {"midlevel": 7}),
    "midlevel_to_emotion": Case(joint.build_midlevel_to_emotion, (7,), {"film": 8}),
    "joint": Case(lambda: joint.build_joint(joint.JointArchitecture(frames=None)), (30, 149, 1), {"midlevel": 7, "film": 8}),
    "va_sequence": Case(lambda: va.build_sequence(va.SequenceArchitecture(notes=None)), (12, 4), {"va": 4}),
    "va_dense": Case(va.build_dense, (22,), {"va": 4}),
    "va_transfer": Case(va.build_transfer, (64,), {"va": 4}),
    "emotion": Case(emotion.build, (155, 259, 1), {"emotion": 9}),
    "crnn": Case(lambda: crnn.build(CRNN_INFERENCE), (128, 300, 1), {"reg_output": 3, "class_output": 4}),
}
assert CASES


def trunk_rows(*sizes: tuple[int, int]) -> list[Row]:
    """Rows of the VGG trunk, for the sizes behind the first convolution and behind each pooling."""
    first, second, third = sizes
    return [
        ("Conv2D", (*first, 64), 1_664),
        ("BatchNormalization", (*first, 64), 256),
        ("Conv2D", (*first, 64), 36_928),
        ("BatchNormalization", (*first, 64), 256),
        ("MaxPooling2D", (*second, 64), 0),
        ("Dropout", (*second, 64), 0),
        ("Conv2D", (*second, 128), 73_856),
        ("BatchNormalization", (*second, 128), 512),
        ("Conv2D", (*second, 128), 147_584),
        ("BatchNormalization", (*second, 128), 512),
        ("MaxPooling2D", (*third, 128), 0),
        ("Dropout", (*third, 128), 0),
        ("Conv2D", (*third, 256), 295_168),
        ("BatchNormalization", (*third, 256), 1_024),
        ("Conv2D", (*third, 256), 590_080),
        ("BatchNormalization", (*third, 256), 1_024),
        ("Conv2D", (*third, 384), 885_120),
        ("BatchNormalization", (*third, 384), 1_536),
        ("Conv2D", (*third, 512), 1_769_984),
        ("BatchNormalization", (*third, 512), 2_048),
        ("Conv2D", (*third, 256), 1_179_904),
        ("BatchNormalization", (*third, 256), 1_024),
        ("GlobalAveragePooling2D", (256,), 0),
    ]


# Document 000; its Cast row is the pooling layer's own cast to float32 here
MIDLEVEL_ROWS: list[Row] = [
    ("InputLayer", (256, 1292, 1), 0),
    *trunk_rows((126, 644), (63, 322), (31, 161)),
    ("Dense", (256,), 65_792),
    ("Dropout", (256,), 0),
    ("Dense", (7,), 1_799),
]

FILM_TRUNK_ROWS: list[Row] = [
    ("InputLayer", (313, 149, 1), 0),
    *trunk_rows((155, 73), (77, 36), (38, 18)),
    ("Dense", (256,), 65_792),
]


def crnn_block(size: tuple[int, int], filters: int, convolution: int) -> list[Row]:
    height, width = size
    return [
        ("Conv2D", (height, width, filters), convolution),
        ("BatchNormalization", (height, width, filters), 4 * filters),
        ("ReLU", (height, width, filters), 0),
        ("MaxPooling2D", (height // 2, width // 2, filters), 0),
        ("Dropout", (height // 2, width // 2, filters), 0),
    ]


TABLES: dict[str, tuple[Callable[[], Any], list[Row]]] = {
    "midlevel_salience": (lambda: path_to(midlevel.build(), "salience"), MIDLEVEL_ROWS),
    "midlevel_rating": (lambda: path_to(midlevel.build(), "rating"), MIDLEVEL_ROWS),
    "probe": (probe.build, [("InputLayer", (7,), 0), ("Dense", (9,), 7 * 9 + 9)]),
    "midlevel_probe": (
        lambda: probe.on_midlevel(midlevel.build(), probe.build()),
        [*MIDLEVEL_ROWS, ("Dense", (9,), 7 * 9 + 9)],
    ),
    "a2e": (joint.build_a2e, [*FILM_TRUNK_ROWS, ("Dense", (8,), 256 * 8 + 8)]),
    "a2mid2e": (joint.build_a2mid2e, [*FILM_TRUNK_ROWS, ("Dense", (7,), 256 * 7 + 7)]),
    "joint": (
        joint.build_joint,
        [*FILM_TRUNK_ROWS, ("Dense", (7,), 256 * 7 + 7), ("Dense", (8,), 7 * 8 + 8)],
    ),
    "midlevel_to_emotion": (
        joint.build_midlevel_to_emotion,
        [("InputLayer", (7,), 0), ("Dense", (8,), 7 * 8 + 8)],
    ),
    "va_sequence": (
        va.build_sequence,
        [
            ("InputLayer", (512, 4), 0),
            ("MaskedStandardize", (512, 4), 0),
            ("Masking", (512, 4), 0),
            ("SimpleRNN", (512, 64), 64 * (4 + 64 + 1)),
            ("SimpleRNN", (64,), 64 * (64 + 64 + 1)),
            ("Dense", (4,), 260),
        ],
    ),
    "va_dense": (
        va.build_dense,
        [
            ("InputLayer", (22,), 0),
            ("Rescaling", (22,), 0),
            ("Dense", (32,), 736),
            ("Dense", (16,), 528),
            ("Dense", (4,), 68),
        ],
    ),
    "va_transfer": (
        va.build_transfer,
        [
            ("InputLayer", (64,), 0),
            ("Rescaling", (64,), 0),
            ("Dense", (32,), 2_080),
            ("Dense", (16,), 528),
            ("Dense", (4,), 68),
        ],
    ),
    "emotion": (
        emotion.build,
        [
            ("InputLayer", (155, 259, 1), 0),
            ("Rescaling", (155, 259, 1), 0),
            ("Conv2D", (153, 257, 32), 320),
            ("MaxPooling2D", (76, 128, 32), 0),
            ("BatchNormalization", (76, 128, 32), 128),
            ("Dropout", (76, 128, 32), 0),
            ("Conv2D", (74, 126, 64), 18_496),
            ("MaxPooling2D", (37, 63, 64), 0),
            ("BatchNormalization", (37, 63, 64), 256),
            ("Dropout", (37, 63, 64), 0),
            ("Conv2D", (35, 61, 128), 73_856),
            ("MaxPooling2D", (17, 30, 128), 0),
            ("BatchNormalization", (17, 30, 128), 512),
            ("Dropout", (17, 30, 128), 0),
            ("Flatten", (65_280,), 0),
            ("Dense", (256,), 16_711_936),
            ("BatchNormalization", (256,), 1_024),
            ("Dropout", (256,), 0),
            ("Dense", (9,), 2_313),
        ],
    ),
    "crnn_reg_output": (
        lambda: path_to(crnn.build(), "reg_output"),
        crnn_rows := [
            ("InputLayer", (128, 300, 1), 0),
            *crnn_block((128, 300), 64, 640),
            *crnn_block((64, 150), 128, 73_856),
            *crnn_block((32, 75), 128, 147_584),
            ("Permute", (37, 16, 128), 0),
            ("Reshape", (37, 2_048), 0),
            ("Bidirectional", (256,), 2 * 4 * 128 * (2_048 + 128 + 1)),
            ("Dense", (256,), 65_792),
            ("Dropout", (256,), 0),
            ("Dense", (3,), 771),
        ],
    ),
    "crnn_class_output": (lambda: path_to(crnn.build(), "class_output"), [*crnn_rows[:-1], ("Dense", (4,), 1_028)]),
}

TOTALS = {  # all parameters, trainable ones
    "midlevel_salience": (5_056_071, 5_051_975),
    "midlevel_rating": (5_056_071, 5_051_975),
    "probe": (72, 72),
    "midlevel_probe": (5_056_143, 72),
    "a2e": (5_056_328, 5_052_232),
    "a2mid2e": (5_056_071, 5_051_975),
    "joint": (5_056_135, 5_052_039),
    "midlevel_to_emotion": (64, 64),
    "va_sequence": (12_932, 12_932),
    "va_dense": (1_332, 1_332),
    "va_transfer": (2_676, 2_676),
    "emotion": (16_808_841, 16_807_881),
    "crnn_reg_output": (2_519_171, 2_518_531),
    "crnn_class_output": (2_519_428, 2_518_788),
}


def path_to(model: Any, output: str) -> Any:
    """Return the graph of one output alone."""
    return keras.Model(model.input, model.output[output])


def rows_of(model: Any) -> list[Row]:
    rows = []
    for layer in model.layers:
        shape = layer.batch_shape if isinstance(layer, keras.layers.InputLayer) else layer.output.shape
        rows.append((type(layer).__name__, tuple(shape[1:]), layer.count_params()))
    return rows


def size(weights: list[Any]) -> int:
    return sum(int(np.prod(weight.shape)) for weight in weights)


def disturb(model: Any, seed: int = 0) -> Any:
    """Move every weight off its initial value, so that nothing is an identity; variances stay positive."""
    generator = np.random.default_rng(seed)

    def moved(weight: np.ndarray) -> np.ndarray:
        weight = weight * generator.uniform(0.8, 1.2, weight.shape)
        if weight.ndim == 1:  # biases and normalisation
            weight = weight + generator.uniform(0, 0.05, weight.shape)
        return weight.astype(np.float32)

    model.set_weights([moved(weight) for weight in model.get_weights()])
    return model


def example(shape: tuple[int, ...], batch: int = 3, seed: int = 1) -> np.ndarray:
    """Inputs of some spread; the note and salience networks take them as well as the spectrogram ones."""
    return np.random.default_rng(seed).normal(size=(batch, *shape)).astype(np.float32)


def run(model: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    return {name: ops.convert_to_numpy(y) for name, y in model(x, training=False).items()}


@pytest.fixture(scope="module")
def networks() -> Callable[[str], Any]:
    """Return a function that builds each network of CASES once."""
    built: dict[str, Any] = {}

    def network(name: str) -> Any:
        if name not in built:
            built[name] = disturb(CASES[name].build())
        return built[name]

    return network


@pytest.fixture
def mixed_precision() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


# ---------------------------------------------------------------- the documents' tables


@pytest.mark.parametrize("name", TABLES)
def test_layers_shapes_and_parameters_are_those_of_the_document(name: str) -> None:
    build, rows = TABLES[name]
    model = build()
    assert rows_of(model) == rows
    assert (size(model.weights), size(model.trainable_weights)) == TOTALS[name]
    assert sum(row[2] for row in rows) == TOTALS[name][0]


def test_the_two_heads_of_the_midlevel_network_share_everything_else() -> None:
    model = midlevel.build()
    assert size(model.weights) == 5_056_071 + 1_799
    assert model.get_layer("salience").input is model.get_layer("rating").input


def test_the_trunk_has_4_988_480_parameters() -> None:
    for model in (joint.build_a2e(), joint.build_a2mid2e(), joint.build_joint(), midlevel.build()):
        pooled = [type(layer).__name__ for layer in model.layers].index("GlobalAveragePooling2D")
        assert sum(layer.count_params() for layer in model.layers[: pooled + 1]) == 4_988_480


def test_dense1_is_linear_and_named_as_in_the_document() -> None:
    for model in (midlevel.build(), joint.build_joint()):
        assert model.get_layer("Dense1").activation is keras.activations.linear


@pytest.mark.parametrize(
    ("name", "activations"),
    [
        ("midlevel", {"salience": "sigmoid", "rating": "linear"}),
        ("probe", {"gems": "sigmoid"}),
        ("a2e", {"film": "linear"}),
        ("a2mid2e", {"midlevel": "linear"}),
        ("midlevel_to_emotion", {"film": "linear"}),
        ("joint", {"midlevel": "linear", "film": "linear"}),
        ("va_sequence", {"va": "linear"}),
        ("va_dense", {"va": "floored"}),
        ("va_transfer", {"va": "floored"}),
        ("emotion", {"emotion": "sigmoid"}),
        ("crnn", {"reg_output": "linear", "class_output": "softmax"}),
    ],
)
def test_heads_have_the_documents_activations(name: str, activations: dict[str, str], networks: Callable[[str], Any]) -> None:
    assert {head: networks(name).get_layer(head).activation.__name__ for head in activations} == activations


def test_regularisation_and_dropout_are_the_documents() -> None:
    def rates(model: Any) -> list[float]:
        return [layer.rate for layer in model.layers if isinstance(layer, keras.layers.Dropout)]

    network = emotion.build()
    kernels = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.kernel_regularizer.l2 for layer in kernels] == pytest.approx([1e-3] * 3)
    assert rates(network) == [0.25, 0.25, 0.25, 0.5]
    assert rates(midlevel.build()) == [0.3, 0.3, 0.3]
    assert rates(joint.build_joint()) == [0.3, 0.3]
    network = crnn.build()
    assert rates(network) == [0.3, 0.3, 0.3, 0.4]
    (lstm,) = (layer.forward_layer for layer in network.layers if isinstance(layer, keras.layers.Bidirectional))
    assert (lstm.units, lstm.dropout, lstm.recurrent_dropout, lstm.return_sequences) == (128, 0.3, 0.2, False)


# ---------------------------------------------------------------- what holds for every network


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_named_and_have_the_width_of_their_labels(name: str, networks: Callable[[str], Any]) -> None:
    case = CASES[name]
    outputs = run(networks(name), example(case.input_shape))
    assert {output: y.shape for output, y in outputs.items()} == {output: (3, width) for output, width in case.outputs.items()}
    assert all(np.isfinite(y).all() for y in outputs.values())


@pytest.mark.parametrize("name", CASES)
def test_a_saved_network_loads_in_safe_mode_with_identical_output(
    name: str, networks: Callable[[str], Any], tmp_path: Path
) -> None:
    model, x = networks(name), example(CASES[name].input_shape)
    path = tmp_path / f"{name}.keras"
    model.save(path)
    loaded = keras.saving.load_model(path, safe_mode=True, compile=False)
    expected = run(model, x)
    for output, y in run(loaded, x).items():
        np.testing.assert_array_equal(y, expected[output])


@pytest.mark.parametrize("name", CASES)
def test_a_batch_is_its_items_one_by_one(name: str, networks: Callable[[str], Any]) -> None:
    model, x = networks(name), example(CASES[name].input_shape)
    together = run(model, x)
    apart = [run(model, x[i : i + 1]) for i in range(len(x))]
    for output, y in together.items():
        np.testing.assert_allclose(np.concatenate([one[output] for one in apart]), y, rtol=1e-4, atol=1e-5)
        assert np.ptp(y, axis=0).max() > 0, "the inputs must matter"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("mixed_precision")
def test_outputs_are_float32_under_mixed_precision(name: str) -> None:
    model = CASES[name].build()
    assert {str(y.dtype) for y in model.output.values()} == {"float32"}
    assert {str(weight.dtype) for weight in model.weights} == {"float32"}
    for layer in model.layers:
        if isinstance(layer, keras.layers.GlobalAveragePooling2D):
            assert layer.compute_dtype == "float32"
        if isinstance(layer, keras.layers.Conv2D):
            assert layer.compute_dtype == "bfloat16"


def test_importing_the_models_leaves_keras_and_its_backends_alone() -> None:
    modules = sorted(path.stem for path in (ROOT / "models").glob("*.py") if path.stem != "__init__")
    assert len(modules) >= 8
    code = (
        "import importlib, sys\n"
        f"for name in {modules}: importlib.import_module('models.' + name)\n"
        "print(sorted({'keras', 'tensorflow', 'jax', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- mid-level and probe


@pytest.mark.parametrize(
    ("any_length", "fixed"),
    [
        (
            lambda: midlevel.build(midlevel.MidlevelArchitecture(frames=None)),
            lambda: midlevel.build(midlevel.MidlevelArchitecture(frames=24)),
        ),
        (
            lambda: joint.build_joint(joint.JointArchitecture(frames=None)),
            lambda: joint.build_joint(joint.JointArchitecture(frames=30)),
        ),
    ],
    ids=["midlevel", "joint"],
)
def test_weights_trained_at_any_length_serve_a_fixed_window(any_length: Callable[[], Any], fixed: Callable[[], Any]) -> None:
    trained, inference = disturb(any_length()), fixed()
    inference.set_weights(trained.get_weights())
    x = example(inference.input_shape[1:])
    expected = run(trained, x)
    for output, y in run(inference, x).items():
        np.testing.assert_allclose(y, expected[output], rtol=1e-5, atol=1e-6)


def test_another_normalization_takes_the_same_weights() -> None:
    momenta = []

    class Recorded(keras.layers.BatchNormalization):  # type: ignore[misc]
        def __init__(self, **arguments: Any) -> None:
            momenta.append(arguments["momentum"])
            super().__init__(**arguments)

    for build in (midlevel.build, joint.build_a2e, joint.build_a2mid2e, joint.build_joint):
        momenta.clear()
        model = build(normalization=Recorded)
        assert momenta == [0.9] * 9
        assert sum(type(layer) is Recorded for layer in model.layers) == 9
        assert [weight.shape for weight in model.weights] == [weight.shape for weight in build().weights]


def test_the_probe_is_linear_in_log_odds() -> None:
    model = disturb(probe.build())
    kernel, bias = model.get_weights()
    assert kernel.shape == (7, 9)
    salience = np.random.default_rng(2).uniform(size=(5, 7)).astype(np.float32)
    share = run(model, salience)["gems"].astype(np.float64)
    np.testing.assert_allclose(np.log(share / (1 - share)), salience @ kernel + bias, atol=1e-5)


def test_on_midlevel_is_the_frozen_network_followed_by_the_probe() -> None:
    network = disturb(midlevel.build(midlevel.MidlevelArchitecture(frames=None)))
    head = disturb(probe.build(), seed=3)
    both = probe.on_midlevel(network, head)
    assert not network.trainable_weights
    assert [weight.shape for weight in both.trainable_weights] == [(7, 9), (9,)]
    x = example((256, 24, 1))
    expected = run(head, run(network, x)["salience"])["gems"]
    np.testing.assert_allclose(run(both, x)["gems"], expected, rtol=1e-5)


# ---------------------------------------------------------------- film emotions


def test_joint_emotions_are_a_linear_function_of_its_midlevel_output(networks: Callable[[str], Any]) -> None:
    model = networks("joint")
    kernel, bias = model.get_layer("film").get_weights()
    assert kernel.shape == (7, 8)
    outputs = run(model, example((30, 149, 1)))
    np.testing.assert_allclose(outputs["film"], outputs["midlevel"] @ kernel + bias, rtol=1e-5, atol=1e-5)


def test_the_second_stage_of_a2mid2e_is_a_linear_regression(networks: Callable[[str], Any]) -> None:
    model = networks("midlevel_to_emotion")
    kernel, bias = model.get_weights()
    x = example((7,))
    np.testing.assert_allclose(run(model, x)["film"], x @ kernel + bias, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- valence and arousal from notes


@pytest.mark.parametrize(("build", "inputs"), [(va.build_dense, 22), (va.build_transfer, 64)])
def test_dense_outputs_never_fall_below_the_floor(build: Callable[[], Any], inputs: int) -> None:
    model = build()
    head = model.get_layer("va")
    assert head.bias.numpy().tolist() == [5.0, 1.5, 5.0, 1.5]
    head.bias.assign([-3.0, 0.3, 0.5, 4.0])
    head.kernel.assign(np.zeros((16, 4), np.float32))
    expected = np.array([0.37, 0.37, 0.5, 4.0], np.float32)
    np.testing.assert_array_equal(run(model, example((inputs,)))["va"], np.tile(expected, (3, 1)))


def test_a_new_dense_network_starts_above_the_floor() -> None:
    assert run(va.build_dense(), np.zeros((1, 22), np.float32))["va"].tolist() == [[5.0, 1.5, 5.0, 1.5]]


NOTES = va.SequenceArchitecture(notes=None, mean=(60.0, 0.2, 0.4, 80.0), standard_deviation=(12.0, 0.1, 0.3, 15.0))


def notes(n: int, seed: int = 4) -> np.ndarray:
    generator = np.random.default_rng(seed)
    columns = [generator.uniform(*limits, size=n) for limits in [(30, 90), (0, 1), (0.05, 2), (20, 120)]]
    return np.stack(columns, axis=-1).astype(np.float32)[None]


@pytest.mark.parametrize("padding", [1, 3, 40])
def test_more_padding_does_not_change_the_sequence_output(padding: int) -> None:
    model = disturb(va.build_sequence(NOTES))
    features = va.feature_extractor(model)
    track = notes(9)
    padded = np.pad(track, [(0, 0), (0, padding), (0, 0)])
    np.testing.assert_allclose(run(model, padded)["va"], run(model, track)["va"], rtol=1e-5)
    np.testing.assert_allclose(
        run(features, padded)["sequence_features"], run(features, track)["sequence_features"], rtol=1e-4, atol=1e-6
    )
    assert np.abs(run(model, track[:, :8])["va"] - run(model, track)["va"]).max() > 1e-3, "the last note must matter"


def test_tracks_of_unequal_length_in_one_batch_do_not_touch_each_other() -> None:
    model = disturb(va.build_sequence(NOTES))
    short, long = notes(5, seed=5), notes(11, seed=6)
    batch = np.concatenate([np.pad(short, [(0, 0), (0, 6), (0, 0)]), long])
    expected = np.concatenate([run(model, short)["va"], run(model, long)["va"]])
    np.testing.assert_allclose(run(model, batch)["va"], expected, rtol=1e-5)


def test_a_track_without_notes_gives_the_output_bias() -> None:
    model = va.build_sequence(NOTES)
    assert run(model, np.zeros((1, 6, 4), np.float32))["va"].tolist() == [[5.0, 1.5, 5.0, 1.5]]


def test_the_feature_extractor_is_the_sequence_network_without_its_head() -> None:
    model = disturb(va.build_sequence(NOTES))
    features = run(va.feature_extractor(model), notes(9))["sequence_features"]
    assert features.shape == (1, 64)
    kernel, bias = model.get_layer("va").get_weights()
    np.testing.assert_allclose(features @ kernel + bias, run(model, notes(9))["va"], rtol=1e-5)


def test_files_with_our_layer_and_activation_load_in_a_fresh_process(tmp_path: Path) -> None:
    models = {"sequence": va.build_sequence(NOTES), "dense": va.build_dense()}
    inputs = {"sequence": np.pad(notes(9), [(0, 0), (0, 3), (0, 0)]), "dense": example((22,))}
    expected = {}
    for name, model in models.items():
        model.save(tmp_path / f"{name}.keras")
        expected[name] = run(model, inputs[name])["va"]
    np.savez(tmp_path / "inputs.npz", **inputs)
    code = (
        "import sys, keras, numpy as np\n"
        "from models import va\n"
        "va.register()\n"
        "inputs = np.load('inputs.npz')\n"
        "outputs = {n: keras.saving.load_model(n + '.keras', safe_mode=True)(inputs[n])['va'] for n in inputs}\n"
        "np.savez('outputs.npz', **outputs)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True)
    with np.load(tmp_path / "outputs.npz") as outputs:
        for name, y in expected.items():
            np.testing.assert_allclose(outputs[name], y, rtol=1e-6)


# ---------------------------------------------------------------- standardisation inside the graph


def test_the_graph_standardises_its_raw_input() -> None:
    def same(raw: Any, standard: Any, x: np.ndarray, standardised: np.ndarray) -> None:
        disturb(standard)
        raw.set_weights(standard.get_weights())
        expected = run(standard, standardised)
        for output, y in run(raw, x).items():
            np.testing.assert_allclose(y, expected[output], rtol=1e-3, atol=1e-4)

    generator = np.random.default_rng(7)
    for n, build, architecture in [
        (22, va.build_dense, va.DenseArchitecture),
        (64, va.build_transfer, va.TransferArchitecture),
    ]:
        mean, deviation = generator.uniform(-50, 50, n), generator.uniform(0.1, 20, n)
        x = generator.normal(mean, deviation, (3, n)).astype(np.float32)
        raw = build(architecture(mean=tuple(mean.tolist()), standard_deviation=tuple(deviation.tolist())))
        same(raw, build(), x, ((x - mean) / deviation).astype(np.float32))

    x = notes(9)
    standardised = ((x - NOTES.mean) / NOTES.standard_deviation).astype(np.float32)
    same(va.build_sequence(NOTES), va.build_sequence(va.SequenceArchitecture(notes=None)), x, standardised)

    x = generator.normal(-30.0, 17.0, (1, 155, 259, 1)).astype(np.float32)
    raw = emotion.build(emotion.EmotionArchitecture(mean=-30.0, standard_deviation=17.0))
    same(raw, emotion.build(), x, (x + 30.0) / 17.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: va.DenseArchitecture(mean=(0.0,) * 21), "mean has 21 values.*must have 22"),
        (lambda: va.SequenceArchitecture(standard_deviation=(1.0, 1.0, 0.0, 1.0)), "must be > 0"),
        (lambda: va.TransferArchitecture(output_bias=(5.0,)), "must have 4 values"),
        (lambda: emotion.EmotionArchitecture(standard_deviation=0.0), r"standard_deviation=0\.0 must be > 0"),
        (lambda: crnn.CrnnArchitecture(genres=1), "genres=1 must be >= 2"),
    ],
)
def test_unusable_arguments_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------- CRNN


def test_without_recurrent_dropout_the_same_weights_give_the_same_output(tmp_path: Path) -> None:
    trained, inference = disturb(crnn.build()), crnn.build(CRNN_INFERENCE)
    x = example((128, 300, 1), batch=2)
    expected = run(trained, x)
    inference.set_weights(trained.get_weights())
    by_file = crnn.build(CRNN_INFERENCE)
    trained.save_weights(tmp_path / "crnn.weights.h5")
    by_file.load_weights(tmp_path / "crnn.weights.h5")
    for model in (inference, by_file):
        for output, y in run(model, x).items():
            np.testing.assert_allclose(y, expected[output], rtol=1e-4, atol=1e-5)


def test_genre_probabilities_sum_to_one_for_any_number_of_genres() -> None:
    model = crnn.build(crnn.CrnnArchitecture(genres=17, recurrent_dropout=0.0))
    genres = run(model, example((128, 300, 1), batch=1))["class_output"]
    assert genres.shape == (1, 17)
    assert genres.sum() == pytest.approx(1.0, abs=1e-5)


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("label_set", "count"),
    [(labels.MIDLEVEL, 7), (labels.GEMS, 9), (labels.FILM, 8), (labels.VAD, 3), (labels.GENRES, 4)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_label_sets_are_distinct_names_on_a_real_scale(label_set: labels.LabelSet, count: int) -> None:
    assert len(set(label_set.labels)) == len(label_set.labels) == count
    assert label_set.low < label_set.high
    assert label_set.unit


def test_genres_are_in_alphabetical_order() -> None:
    assert list(labels.GENRES.labels) == sorted(labels.GENRES.labels)
