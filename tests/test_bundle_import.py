"""A user's own Keras files: what is mapped, what is refused and how, and that a bundle comes out as it went in."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from keras import layers

from annotate.bundle_import import ImportOptions, export_bundle, import_bundle
from models import crnn, foreign, inference, joint, midlevel, va
from models.bundle import BundleError, build_graph, load, load_network, run_engine, verify
from models.foreign import Reading, check_labels, map_file
from models.keras_files import open_file
from models.labels import GEMS, MIDLEVEL

Invoke = Callable[..., Result]

pytestmark = pytest.mark.filterwarnings(
    "ignore:In the future `np.object` will be defined:FutureWarning",  # Keras's own export
    "ignore:.*saving your model as an HDF5 file:UserWarning",
)
NOTE_SCALE = {"mean": np.linspace(1, 22, 22).tolist(), "standard_deviation": np.linspace(0.5, 2, 22).tolist()}


def shaken(model: Any) -> Any:
    """Give every weight another value, moving statistics included, so that a permuted or forgotten one shows."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
        elif isinstance(layer, layers.Dense):
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, rng.normal(0, 0.3, bias.shape)])
    return model


def dense_va(*, activation: Any = "linear", units: int = 4, dropout: bool = True) -> Any:
    inputs = keras.Input((22,))
    x = layers.Dense(32, activation="relu")(inputs)
    if dropout:
        x = layers.Dropout(0.2)(x)
    x = layers.Dense(16)(x)
    x = layers.ReLU()(x)
    return shaken(keras.Model(inputs, layers.Dense(units, activation=activation, name="out")(x)))


def custom_activation(x: Any) -> Any:
    return keras.ops.maximum(x, 0.37)


@pytest.fixture
def va_file(tmp_path: Path) -> Path:
    """As founding document 002 says: an activation of the author's own, inputs standardised outside of the file."""
    dense_va(activation=custom_activation).save(tmp_path / "va.keras")
    (tmp_path / "scale.json").write_text(json.dumps(NOTE_SCALE))
    return tmp_path / "va.keras"


def test_a_dense_file_predicts_in_our_graph_what_it_predicts_itself(
    va_file: Path, tmp_path: Path, in_process: Invoke, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    order = "arousal_mean, arousal_std, valence_mean, valence_std"
    done = in_process(
        "bundle", "import", "--va", va_file, "--name", "mine", "--out", tmp_path / "mine",
        "--scale", f"va={tmp_path / 'scale.json'}", "--floored", "custom_activation", "--labels", f"va={order}",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert capfd.readouterr().err == ""  # nothing of TensorFlow's own
    held = load(str(tmp_path / "mine"))
    assert tuple(held.families) == ("va", "notes")
    rng = np.random.default_rng(0)
    raw = (np.array(NOTE_SCALE["mean"]) + 3 * rng.standard_normal((6, 22))).astype(np.float32)
    theirs = keras.saving.load_model(va_file, custom_objects={"custom_activation": custom_activation}).predict_on_batch(
        (raw - np.array(NOTE_SCALE["mean"])) / np.array(NOTE_SCALE["standard_deviation"])
    )
    expected = np.asarray(theirs)[:, [2, 3, 0, 1]]
    assert np.asarray(load_network(held, "va").predict_on_batch(raw)["va"]) == pytest.approx(expected, abs=1e-4)
    assert run_engine(held.file("va.onnx"), raw)["va"] == pytest.approx(expected, abs=1e-4)
    assert len(list(verify(held))) == 2
    card = held.file("README.md").read_text()
    assert "largest difference to the file's own prediction" in card
    assert "Nothing was measured here" in card


def test_an_imported_bundle_annotates(va_file: Path, tmp_path: Path, demo_corpus: Path, in_process: Invoke) -> None:
    options = ImportOptions({"va": va_file}, tmp_path / "mine", "mine", scales={"va": None}, floored=("custom_activation",))
    import_bundle(options)
    done = in_process("run", demo_corpus / "pop", "--bundle", tmp_path / "mine", "--out", tmp_path / "t.parquet")
    assert done.exit_code == 0, done.output
    table = pd.read_parquet(tmp_path / "t.parquet")
    assert table["va_valence_mean"].notna().all()
    assert (table["in_training"] == "").all()


def test_without_the_extra_a_bundle_has_no_cpu_graph_and_says_so(
    va_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("annotate.bundle_import.importlib.util.find_spec", lambda name: None)
    options = ImportOptions({"va": va_file}, tmp_path / "mine", "mine", scales={"va": None}, floored=("custom_activation",))
    done = import_bundle(options)
    assert any("Run this bundle with --exact" in line for line in done.lines)
    held = load(str(tmp_path / "mine"))
    with pytest.raises(BundleError, match="run with --exact"):
        inference.onnx_predict(held, "va")
    assert inference.keras_predict(held, "va")(np.zeros((1, 22), np.float32))["va"].shape == (1, 4)


# --- what is refused ---


def refused(path: Path, family: str, match: str, **reading: Any) -> None:
    with foreign.float32(), pytest.raises(BundleError, match=match):
        map_file(open_file(path, reading.get("floored", ())), family, Reading(**reading))


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    inputs = keras.Input((22,))
    keras.Model(inputs, layers.Lambda(lambda x: x, name="sneaky")(inputs)).save(tmp_path / "lambda.keras")
    refused(tmp_path / "lambda.keras", "va", "layer 'sneaky' is a Lambda: code in a file is never run")

    class Mine(layers.Layer):
        def call(self, x: Any) -> Any:
            trap.touch()
            return x

    keras.Model(inputs, Mine(name="own")(inputs)).save(tmp_path / "own.keras")
    trap.unlink()
    refused(tmp_path / "own.keras", "va", "layer 'own' is of class 'Mine'")
    dense_va(activation=custom_activation).save(tmp_path / "va.keras")
    refused(tmp_path / "va.keras", "va", "layer 'out' uses the function 'custom_activation'.*--floored custom_activation")
    assert not trap.exists()


def test_an_object_of_another_module_is_refused(tmp_path: Path) -> None:
    dense_va().save(tmp_path / "good.keras")
    with zipfile.ZipFile(tmp_path / "good.keras") as good, zipfile.ZipFile(tmp_path / "bad.keras", "w") as bad:
        for name in good.namelist():
            content = good.read(name)
            if name == "config.json":
                config = json.loads(content)
                foreign_object = {"module": "os", "class_name": "system", "config": "x"}
                config["config"]["layers"][1]["config"]["kernel_initializer"] = foreign_object
                content = json.dumps(config).encode()
            bad.writestr(name, content)
    refused(tmp_path / "bad.keras", "va", "needs system of os: custom code is never run")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "neither a .keras nor an HDF5 file"), (b"PK\x05\x06" + bytes(18), "a zip file, but not a Keras model")],
)
def test_junk_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "x.keras").write_bytes(content)
    refused(tmp_path / "x.keras", "va", said)


def test_another_graph_is_refused_by_the_name_of_its_layer(tmp_path: Path) -> None:
    none = {"mean": (0.0,), "standard_deviation": (1.0,)}
    dense_va(units=5).save(tmp_path / "five.keras")
    refused(tmp_path / "five.keras", "va", r"layer 'out' \(Dense units 5\) where va has Dense units 4", **none)
    dense_va().save(tmp_path / "linear.keras")
    refused(tmp_path / "linear.keras", "va", "after layer 'out' comes nothing where va has activation function floored", **none)
    dense_va(activation=custom_activation).save(tmp_path / "va.keras")
    refused(tmp_path / "va.keras", "va", "does not say how its input was standardised", floored=("custom_activation",))
    inputs = keras.Input((21,))
    keras.Model(inputs, layers.Dense(32)(inputs)).save(tmp_path / "narrow.keras")
    refused(tmp_path / "narrow.keras", "va", r"\(input shape \(21,\)\) where va has input shape \(22,\)", **none)
    inputs = keras.Input((313, 149, 1))
    x = layers.GlobalAveragePooling2D(name="early")(layers.Conv2D(64, 5, strides=2, activation="relu", name="first")(inputs))
    keras.Model(inputs, layers.Dense(8)(x)).save(tmp_path / "a2e.keras")
    refused(tmp_path / "a2e.keras", "joint", "layer 'early' .* where joint has BatchNormalization")


def test_labels_are_a_permutation_in_our_spelling() -> None:
    given = ("melody", "articulation", "rhythm complexity", "Rhythm_Stability", "dissonance", "atonality", "mode")
    assert check_labels(given, "midlevel", {}) == MIDLEVEL.labels
    assert check_labels(("tönend", *MIDLEVEL.labels[1:]), "midlevel", {"tönend": "melodiousness"}) == MIDLEVEL.labels
    with pytest.raises(BundleError, match="loudness is unknown, minorness is missing; say --rename"):
        check_labels((*MIDLEVEL.labels[:-1], "loudness"), "midlevel", {})
    with pytest.raises(BundleError, match="one twice is unknown, minorness is missing"):
        check_labels((*MIDLEVEL.labels[:-1], "dissonance"), "midlevel", {})
    assert check_labels(("jazz", "folk"), "crnn", {}) == ("jazz", "folk")


def test_options_that_would_be_ignored_are_refused(tmp_path: Path, in_process: Invoke) -> None:
    for arguments, said in (
        (("--labels", "va=a,b"), "no file to import"),
        (("--va", tmp_path / "none.keras", "--scale", "emotion=none"), "--scale emotion: no file of that family"),
        (("--va", tmp_path / "none.keras", "--scale", "va"), "must have the form NAME=VALUE"),
        (("--va", tmp_path / "none.keras"), "no such file"),
    ):
        done = in_process("bundle", "import", *arguments, "--name", "x", "--out", tmp_path / "x")
        assert done.exit_code in (1, 2)
        assert said in done.output
        assert not (tmp_path / "x").exists()


# --- the families ---


def document_crnn(genres: int) -> Any:
    """As founding document 004 says, heads in the other order."""
    inputs = keras.Input((128, 300, 1))
    x = inputs
    for filters in (64, 128, 128):
        x = layers.Conv2D(filters, (3, 3), padding="same")(x)
        x = layers.BatchNormalization(epsilon=1e-5)(x)
        x = layers.Activation("relu")(x)
        x = layers.MaxPooling2D((2, 2))(x)
        x = layers.Dropout(0.3)(x)
    x = layers.Reshape((37, 16 * 128))(layers.Permute((2, 1, 3))(x))
    x = layers.Bidirectional(layers.LSTM(128, dropout=0.3, recurrent_dropout=0.2))(x)
    x = layers.Dropout(0.4)(layers.Dense(256, activation="relu")(x))
    heads = [
        layers.Dense(genres, activation="softmax", name="class_output")(x),
        layers.Dense(3, activation="linear", name="reg_output")(x),
    ]
    return shaken(keras.Model(inputs, heads))


def test_a_crnn_with_other_genres_and_another_epsilon(tmp_path: Path) -> None:
    document_crnn(6).save(tmp_path / "crnn.keras")
    stored = open_file(tmp_path / "crnn.keras")
    with foreign.float32():
        with pytest.raises(BundleError, match="layer 'class_output' has 6 genres; name them"):
            map_file(stored, "crnn", Reading())
        genres = ("folk", "jazz", "pop", "punk", "rock", "soul")
        mapped, under = map_file(stored, "crnn", Reading(labels=genres))
    assert under is None
    assert mapped.genres == genres
    assert mapped.arguments == {"genres": 6, "recurrent_dropout": 0.0}
    assert mapped.difference is not None
    assert mapped.difference < 1e-4


def test_a_file_of_keras_2_is_put_right_in_a_copy(tmp_path: Path) -> None:
    """An HDF5 file with what Keras 2 writes and Keras 3 refuses: time_major, axes in lists, policies, no modules."""
    path = tmp_path / "crnn.h5"
    document_crnn(4).save(path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])

        def old(value: Any) -> Any:
            if isinstance(value, list):
                return [old(inner) for inner in value]
            if not isinstance(value, dict):
                return value
            new = ("module", "registered_name", "build_config")
            changed = {key: old(inner) for key, inner in value.items() if key not in new}
            if changed.get("class_name") == "DTypePolicy":
                changed["class_name"] = "Policy"
            if changed.get("class_name") == "BatchNormalization":
                changed["config"]["axis"] = [3]
            if changed.get("class_name") == "LSTM":
                changed["config"]["time_major"] = False
            return changed

        file.attrs["model_config"] = json.dumps(old(config))
        file.attrs["keras_version"] = "2.15.0"
    before = path.read_bytes()
    stored = open_file(path)
    assert stored.written_by == "Keras 2.15.0"
    with foreign.float32():
        mapped, _ = map_file(stored, "crnn", Reading())
    assert mapped.difference is not None
    assert mapped.difference < 1e-4
    assert path.read_bytes() == before


def test_weights_of_keras_2_without_a_graph(tmp_path: Path) -> None:
    """The layout of Keras 2's save_weights: a group a layer, names in attributes; heads may come in either order."""
    source = document_crnn(4)
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        held = [layer for layer in source.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in source.layers]
        for layer in source.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/w{number}:0".encode() for number in range(len(layer.weights))]
            group.attrs["weight_names"] = names
            for name, value in zip(names, layer.get_weights(), strict=True):
                group[name.decode()] = value
    stored = open_file(path)
    assert stored.model is None
    assert len(stored.graph.steps) == len(held)
    with foreign.float32():
        mapped, _ = map_file(stored, "crnn", Reading())
    assert mapped.difference is None
    assert any("weights only" in remark for remark in mapped.remarks)
    batch = foreign.example_inputs("crnn")
    genres, vad = (np.asarray(values) for values in source.predict_on_batch(batch))
    ours = mapped.network.predict_on_batch(batch)
    assert np.asarray(ours["class_output"]) == pytest.approx(genres, abs=1e-2)  # epsilon is not in the weights
    assert np.asarray(ours["reg_output"]) == pytest.approx(vad, abs=1e-2)
    with h5py.File(path, "r+") as file:
        place = f"{held[-3].name}/{held[-3].name}/w0:0"
        del file[place]
        file[place] = np.zeros((255, 256), np.float32)
    refused(path, "crnn", f"layer '{held[-3].name}' has weights of")


def document_midlevel() -> Any:
    """As the table of founding document 000 says, in mixed float16, with its Cast layer."""
    inputs = keras.Input((256, 1292, 1))
    x = layers.BatchNormalization()(layers.Conv2D(64, 5, strides=2, activation="relu")(inputs))
    x = layers.BatchNormalization()(layers.Conv2D(64, 3, padding="same", activation="relu")(x))
    x = layers.Dropout(0.3)(layers.MaxPooling2D()(x))
    for _ in range(2):
        x = layers.BatchNormalization()(layers.Conv2D(128, 3, padding="same", activation="relu")(x))
    x = layers.Dropout(0.3)(layers.MaxPooling2D()(x))
    for filters in (256, 256, 384, 512, 256):
        x = layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same", activation="relu")(x))
    x = layers.GlobalAveragePooling2D()(keras.ops.cast(x, "float32"))
    x = layers.Dropout(0.3)(layers.Dense(256, name="Dense1")(x))
    return shaken(keras.Model(inputs, layers.Dense(7, activation="sigmoid", dtype="float32")(x)))


@pytest.fixture(scope="module")
def founding_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files of founding document 000: the frozen mid-level network, and the same with a probe on it."""
    folder = tmp_path_factory.mktemp("founding")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        network = document_midlevel()
        network.trainable = False
        network.save(folder / "Mid-Level Version 1.keras")
        probe = keras.Sequential([network, layers.Dense(9, activation="sigmoid", dtype="float32", name="emotions")])
        probe.build((None, 256, 1292, 1))
        probe.save(folder / "Emotify_Multi-Label.keras")
    finally:
        keras.config.set_dtype_policy(before)
    return folder


def test_the_founding_documents_two_files(founding_files: Path, tmp_path: Path) -> None:
    files = {"midlevel": founding_files / "Mid-Level Version 1.keras", "probe": founding_files / "Emotify_Multi-Label.keras"}
    done = import_bundle(ImportOptions(files, tmp_path / "mine", "mine"))
    said = "\n".join(done.lines)
    assert "policy" in said
    assert "mixed_float16" in said
    assert "cast" in said
    assert "the mid-level network below the probe is the imported one" in said
    held = load(str(tmp_path / "mine"))
    assert tuple(held.families) == ("midlevel", "probe", "notes")
    assert [column for output in held.families["midlevel"].outputs for column in output.columns] == [
        f"salient_{label}" for label in MIDLEVEL.labels
    ]
    stored = keras.saving.load_model(files["probe"], compile=False)
    kernel, bias = stored.layers[-1].get_weights()
    assert np.array(held.manifest["explanation"]["probe"]["weights"]) == pytest.approx(kernel.T, abs=1e-6)
    assert held.manifest["explanation"]["probe"]["outputs"] == [f"gems_{label}" for label in GEMS.labels]
    assert held.manifest["explanation"]["probe"]["bias"] == pytest.approx(bias.tolist(), abs=1e-6)
    assert held.manifest["imported"]["probe"]["file"] == "Emotify_Multi-Label.keras"


def test_a_probe_on_another_network_is_refused(founding_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_compare", lambda *_: None)  # not what is tested, and slow
    other = shaken(midlevel.build(midlevel.MidlevelArchitecture(heads=("salience",))))
    other.save(tmp_path / "other.keras")
    files = {"midlevel": tmp_path / "other.keras", "probe": founding_files / "Emotify_Multi-Label.keras"}
    with pytest.raises(BundleError, match=r"another than that of .*other.keras \(first at a Conv2D layer"):
        import_bundle(ImportOptions(files, tmp_path / "mine", "mine"))
    ratings = midlevel.build(midlevel.MidlevelArchitecture(heads=("rating",)))
    ratings.save(tmp_path / "rating.keras")
    files["midlevel"] = tmp_path / "rating.keras"
    with pytest.raises(BundleError, match="no head of saliences"):
        import_bundle(ImportOptions(files, tmp_path / "mine", "mine"))
    assert not (tmp_path / "mine").exists()


def test_labels_in_another_order_go_through_joint_and_its_film_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_compare", lambda *_: None)
    network = shaken(joint.build_joint())
    network.save(tmp_path / "joint.keras")
    theirs = tuple(reversed(MIDLEVEL.labels))
    with foreign.float32():
        mapped, _ = map_file(open_file(tmp_path / "joint.keras"), "joint", Reading(labels=theirs))
    kernel, bias = network.get_layer("midlevel").get_weights()
    ours = mapped.network.get_layer("midlevel").get_weights()
    assert (ours[0] == kernel[:, ::-1]).all()
    assert (ours[1] == bias[::-1]).all()
    assert (mapped.network.get_layer("film").get_weights()[0] == network.get_layer("film").get_weights()[0][::-1]).all()


# --- out and in again ---


def test_exported_files_open_with_keras_alone_and_come_back_the_same(tmp_path: Path) -> None:
    default = load("default")
    families = ("va", "vaseq", "probe", "crnn", "best")
    export_bundle(default, tmp_path / "plain", families)
    script = (
        "import sys, keras\n"
        "for name in sys.argv[1:]: keras.saving.load_model(name, compile=False, safe_mode=True)\n"
        "assert not {'models', 'annotate', 'features'} & set(sys.modules)\n"
    )
    paths = [str(tmp_path / "plain" / f"{name}.keras") for name in families]
    opened = subprocess.run([sys.executable, "-P", "-c", script, *paths], capture_output=True, text=True, check=False)
    assert opened.returncode == 0, opened.stderr
    with foreign.float32():
        for name in ("va", "vaseq", "probe"):
            mapped, _ = map_file(open_file(tmp_path / "plain" / f"{name}.keras"), name, Reading())
            batch = foreign.example_inputs(name)
            head = next(iter(mapped.network.output))
            before = np.asarray(load_network(default, name).predict_on_batch(batch)[head])
            assert np.asarray(mapped.network.predict_on_batch(batch)[head]) == pytest.approx(before, abs=1e-4)
    labels = json.loads((tmp_path / "plain" / "labels.json").read_text())["families"]
    assert labels["va"]["outputs"]["va"] == list(va.OUTPUTS)
    assert labels["best"]["outputs"] == {}  # an embedding; its rating models are no networks
    assert labels["crnn"]["genres"] == list(default.families["crnn"].details["genres"])
    with pytest.raises(ValueError, match="not an empty folder"):
        export_bundle(default, tmp_path / "plain")
    with pytest.raises(BundleError, match="has no network descriptors"):
        export_bundle(default, tmp_path / "other", ("descriptors",))


def test_every_network_of_the_built_in_bundle_has_inputs_to_compare_its_export_with() -> None:
    default = load("default")
    networks = [family for family in default.families.values() if family.weights is not None]
    assert {family.name for family in networks} == set(default.families) - {"descriptors", "notes"}
    for family in networks:
        batch = foreign.example_inputs(family.name, front_end=family.front_end)
        assert batch.shape[1:] == build_graph(family).input_shape[1:]


def test_the_command_exports_the_families_that_it_is_asked_for(tmp_path: Path, in_process: Invoke) -> None:
    done = in_process("bundle", "export", "default", "--models", "probe, va", "--out", tmp_path / "keras")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "keras").iterdir()) == ["labels.json", "probe.keras", "va.keras"]
    assert "probe.keras: input (7,)" in done.output


def test_a_head_that_is_not_there_is_no_column() -> None:
    with pytest.raises(ValueError, match="heads="):
        midlevel.MidlevelArchitecture(heads=("loudness",))
    assert set(midlevel.build(midlevel.MidlevelArchitecture(heads=("rating",))).output) == {"rating"}
    assert crnn.CrnnArchitecture(genres=6).genres == 6
