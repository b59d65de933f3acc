"""Keras files of other people, opened without running anything that they bring along.

The configuration of a file is read as text first, and refused if it names a layer or a function that is not Keras's own; only
then Keras opens it, in safe mode. What Keras 2 wrote and Keras 3 does not take is put right in a copy.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models import va
from models.bundle import BundleError
from models.steps import IDENTITY, MASK_OPERATIONS, Graph, Step, graph_of

MAX_CONFIG_BYTES = 16 * 2**20
WRAPPED = ("layer", "forward_layer", "backward_layer")  # keys under which a wrapper holds its layers
KNOWN = (
    IDENTITY
    | MASK_OPERATIONS
    | {
        "InputLayer",
        "Functional",
        "Model",
        "Sequential",
        "Conv2D",
        "Dense",
        "BatchNormalization",
        "MaxPooling2D",
        "GlobalAveragePooling2D",
        "Flatten",
        "Reshape",
        "Permute",
        "Activation",
        "ReLU",
        "Softmax",
        "LSTM",
        "Bidirectional",
        "SimpleRNN",
        "Masking",
        "Rescaling",
        "Normalization",
        "Maximum",
        "MaskedStandardize",
    }
)
KERAS_FUNCTIONS = frozenset(
    (
        "linear",
        "relu",
        "sigmoid",
        "softmax",
        "tanh",
        "hard_sigmoid",
        "elu",
        "selu",
        "gelu",
        "softplus",
        "floored",
        "annotate>floored",
    )
)


@dataclass(frozen=True, eq=False)
class Stored:
    """An opened file."""

    path: Path
    model: Any  # None: the file holds weights only
    graph: Graph
    policies: tuple[str, ...]  # dtype policies of its layers
    written_by: str


def open_file(path: Path, floored: Sequence[str] = ()) -> Stored:
    """Open a `.keras` file, or a `.h5` file of Keras 2 or 3; code in it is never run.

    Raises
    ------
    FileNotFoundError, BundleError
        With the layer's name, where it is a layer.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            config = _member(archive, "config.json", path)
            written_by = f"Keras {_member(archive, 'metadata.json', path).get('keras_version', 'unknown')}"
        _check_config(config, path, floored)
        model = _load(path, path, floored)
    else:
        held = _h5_config(path)
        if held is None:
            return _weights_only(path)
        config, written_by = held
        _check_config(config, path, floored)
        model = _load_h5(path, config, floored)
    policies = sorted({layer.dtype_policy.name for layer in model._flatten_layers() if hasattr(layer, "dtype_policy")})
    return Stored(path, model, graph_of(model, path), tuple(policies), written_by)


def _member(archive: zipfile.ZipFile, name: str, path: Path) -> dict[str, Any]:
    try:
        info = archive.getinfo(name)
        if info.file_size > MAX_CONFIG_BYTES:
            raise BundleError(f"{path}: {name} of {info.file_size} bytes is no model's configuration")
        content = json.loads(archive.read(name))
    except (KeyError, ValueError, RecursionError, zipfile.BadZipFile) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path}: a zip file, but not a Keras model ({name}: {str(error) or type(error).__name__})") from None
    if not isinstance(content, dict):
        raise BundleError(f"{path}: {name} is not a JSON object")
    return content


def _h5_config(path: Path) -> tuple[dict[str, Any], str] | None:
    """Model configuration of an HDF5 file and who wrote it; None where it holds weights only."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            attributes = dict(file.attrs)
            if "model_config" not in attributes:
                if "layer_names" in attributes:
                    return None
                raise BundleError(
                    f"{path}: HDF5 without a model and without layer names (weights of Keras 3?); "
                    "save the whole model instead: model.save('model.keras')"
                )
    except OSError as error:
        raise BundleError(f"{path}: neither a .keras nor an HDF5 file ({str(error).splitlines()[0]})") from None
    text = attributes["model_config"]
    try:
        config = json.loads(text.decode() if isinstance(text, bytes) else text)
    except ValueError as error:
        raise BundleError(f"{path}: its model_config is not JSON ({error})") from None
    version = attributes.get("keras_version", "unknown")
    return config, f"Keras {version.decode() if isinstance(version, bytes) else version}"


def _check_config(config: Mapping[str, Any], path: Path, floored: Sequence[str]) -> None:
    """Refuse every layer and function that is not Keras's own, by its name in the file."""
    for entry in _layers(config):
        kind, name = str(entry.get("class_name")), str(entry.get("name") or entry.get("config", {}).get("name"))
        if "Lambda" in kind:
            raise BundleError(f"{path}: layer {name!r} is a {kind}: code in a file is never run; save the model without it")
        if kind not in KNOWN:
            raise BundleError(f"{path}: layer {name!r} is of class {kind!r}, which no family has; custom code is never run")
        inner = {key: value for key, value in entry.get("config", {}).items() if key != "layers"}
        for module, what in _objects({**entry, "config": inner}):
            if not (module is None or module.partition(".")[0] == "keras" or what == "MaskedStandardize"):
                raise BundleError(f"{path}: layer {name!r} needs {what} of {module}: custom code is never run")
        for function in _functions(inner):
            if function not in floored and function not in KERAS_FUNCTIONS:
                raise BundleError(
                    f"{path}: layer {name!r} uses the function {function!r}, which is custom code and never run; "
                    f"if it is max(x, 0.37), say --floored {function}"
                )


def _layers(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Entries of all layers, nested models' as well; a model's own entry first."""
    yield config
    inner = config.get("config")
    for entry in inner.get("layers", ()) if isinstance(inner, dict) else ():
        yield from _layers(entry)
    for key in WRAPPED:
        wrapped = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(wrapped, dict):
            yield from _layers(wrapped)


def _objects(value: Any) -> Iterator[tuple[str | None, str]]:
    """Module and class of every object that a configuration names."""
    if isinstance(value, dict):
        if "class_name" in value and value["class_name"] != "function":
            yield value.get("module"), str(value["class_name"])
        for inner in value.values():
            yield from _objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _objects(inner)


def _functions(value: Any) -> Iterator[str]:
    """Name of every function that a configuration names."""
    if isinstance(value, dict):
        if value.get("class_name") == "function":
            yield str(value.get("config"))
        for key, inner in value.items():
            if key in ("activation", "recurrent_activation") and isinstance(inner, str):
                yield inner
            else:
                yield from _functions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _functions(inner)


def _load(file: Path, path: Path, floored: Sequence[str]) -> Any:
    import keras

    va.register()
    try:
        return keras.saving.load_model(file, custom_objects=dict.fromkeys(floored, va.floored), compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: Keras cannot open it: {(str(error) or type(error).__name__).splitlines()[0]}") from None


def _load_h5(path: Path, config: dict[str, Any], floored: Sequence[str]) -> Any:
    """Open an HDF5 model; what Keras 2 wrote and Keras 3 does not take is put right in a copy."""
    import h5py

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "model.h5"
        shutil.copyfile(path, copy)
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(_modern(config))
        return _load(copy, path, floored)


def _modern(value: Any, *, wrapped: bool = False) -> Any:
    """Configuration of Keras 2 as Keras 3 takes it; the layer in a wrapper must name its modules."""
    if isinstance(value, list):
        return [_modern(inner, wrapped=wrapped) for inner in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _modern(inner, wrapped=wrapped or key in WRAPPED) for key, inner in value.items() if key != "time_major"}
    kind = changed.get("class_name")
    if kind == "Policy":
        kind = changed["class_name"] = "DTypePolicy"
    if kind == "BatchNormalization" and isinstance(changed.get("config", {}).get("axis"), list):
        changed["config"]["axis"] = changed["config"]["axis"][0]
    if wrapped and kind is not None and "module" not in changed:
        layer_or_policy = "keras" if kind == "DTypePolicy" else "keras.layers" if kind in KNOWN else "keras.initializers"
        changed |= {"module": layer_or_policy, "registered_name": None}
    return changed


def _weights_only(path: Path) -> Stored:
    """Open an HDF5 file of Keras 2 that holds weights only: layers in their order, with nothing known of what they compute."""
    import h5py

    steps = []
    with h5py.File(path, "r") as file:
        for name in file.attrs["layer_names"]:
            group = file[name.decode() if isinstance(name, bytes) else name]
            arrays = [np.asarray(group[key], np.float32) for key in group.attrs["weight_names"]]
            if arrays:
                steps.append(Step(Path(group.name).name, "weights", (), tuple(arrays), None))
    if not steps:
        raise BundleError(f"{path}: no layer in it has weights")
    return Stored(path, None, Graph(tuple(steps), (), None, ()), (), "Keras 2, weights only")
