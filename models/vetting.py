"""What a bundle's files may be before anything of them is loaded: a bundle comes from someone else.

Conventions
-----------
- Nothing here deserialises: archives are listed, headers are parsed, configurations are read as JSON and walked.
- A function raises `Unfit` with one line that names the rule; who calls it adds which file of which bundle.

What is refused, and why
------------------------
    pickles, whatever they are called   they run code when they are loaded
    .keras with Lambda, custom objects, layers that read files or wrap other frameworks, names outside Keras's layers
    weights (HDF5) with links to other files, external or virtual storage, compressed or sparse shapes
    ONNX that refers to files beside it
    arrays of Python objects; shapes, sizes and counts that are not a model's
"""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import math
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

MAX_UNPACKED_BYTES: Final = 2**30  # of an archive
MAX_CONFIG_BYTES: Final = 16 * 2**20
MAX_INTEGER: Final = 2**20  # units, filters, frames … of a Keras configuration
MAX_WEIGHTS: Final = 2**28  # numbers in one network
MAX_H5_NODES: Final = 20_000
MAX_H5_DEPTH: Final = 20

PICKLE: Final = re.compile(rb"\x80[\x02-\x05]")
REFUSED_SUFFIXES: Final = frozenset(
    (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".h5", ".npy", ".py", ".pyc", ".so", ".sh", ".exe", ".dll")
)
MAGIC: Final = {".keras": b"PK\x03\x04", ".npz": b"PK\x03\x04", ".parquet": b"PAR1", ".onnx": b"\x08"}  # 08: the version field
ONNX_EXTERNAL: Final = b"\x0a\x08location\x12"  # a tensor's pointer into another file, as protobuf writes it

KERAS_MODULES: Final = (
    "keras",
    "keras.activations",
    "keras.constraints",
    "keras.initializers",
    "keras.layers",
    "keras.models",
    "keras.regularizers",
    "keras.src.models.functional",
    "keras.src.models.model",
    "keras.src.models.sequential",
    "keras.src.ops.",
    "keras.src.layers.",
)
KERAS_CORE: Final = ("DTypePolicy", "Functional", "Model", "Sequential")  # of the module "keras" itself
FORBIDDEN_CLASSES: Final = frozenset(
    (
        "Lambda",
        "TFSMLayer",
        "TorchModuleWrapper",
        "JaxLayer",
        "FlaxLayer",
        "StringLookup",
        "IntegerLookup",
        "TextVectorization",
        "__lambda__",
        "__typespec__",
        "__class__",
        "__bytes__",
    )
)
OURS: Final = frozenset(("annotate>MaskedStandardize", "annotate>floored"))
OUR_FUNCTIONS: Final = frozenset(("floored", "annotate>floored"))
KERAS_MEMBERS: Final = frozenset(("metadata.json", "config.json", "model.weights.h5"))


class Unfit(ValueError):
    """A file that is not what a bundle may hold; the message is the rule, in one line."""


def vet_file(path: Path) -> None:
    """Check one file of a bundle by its name and its content, without loading it.

    Raises
    ------
    Unfit
        With the rule.
    """
    with _readable():
        _vet_file(path)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """Damaged archives raise many things; all of them are `Unfit`."""
    try:
        yield
    except Unfit:
        raise
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, RuntimeError, KeyError) as error:
        raise Unfit(f"is damaged ({_first_line(error)})") from None
    except (struct.error, OverflowError, SyntaxError, TypeError, MemoryError) as error:
        raise Unfit(f"is damaged ({type(error).__name__})") from None


def _vet_file(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in REFUSED_SUFFIXES:
        raise Unfit(f"files of the kind {suffix} are not loaded from a bundle")
    with path.open("rb") as file:
        head = file.read(16)
    if PICKLE.match(head):
        raise Unfit("is a pickle, which runs code when it is loaded")
    magic = MAGIC.get(suffix)
    if magic is not None and not head.startswith(magic):
        raise Unfit(f"is no {suffix} file by its first bytes")
    if suffix == ".keras":
        vet_keras(path)
    elif suffix == ".npz":
        vet_arrays(path)
    elif suffix == ".onnx":
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(ONNX_EXTERNAL) >= 0:
                raise Unfit("refers to weights in another file")


def vet_keras(path: Path) -> None:
    """Check a `.keras` archive: its members, and every object that its configuration would make.

    Raises
    ------
    Unfit
        A lambda layer, a custom object, a layer that reads files, a giant number; the message names it.
    """
    with _archive(path) as archive:
        names = {member.filename for member in archive.infolist()}
        if not {"config.json", "model.weights.h5"} <= names <= KERAS_MEMBERS:
            raise Unfit(f"holds {', '.join(sorted(names - KERAS_MEMBERS)) or 'no configuration or no weights'}")
        if archive.getinfo("config.json").file_size > MAX_CONFIG_BYTES:
            raise Unfit(f"its configuration is larger than {MAX_CONFIG_BYTES} bytes")
        try:
            config = json.loads(archive.read("config.json"))
            for node in _objects(config):
                _vet_object(node)
            _vet_integers(config)
        except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise Unfit(f"its configuration is no JSON ({type(error).__name__})") from None


def _objects(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "class_name" in node:
            yield node
        for value in node.values():
            yield from _objects(value)
    elif isinstance(node, list):
        for value in node:
            yield from _objects(value)


def _vet_object(node: Mapping[str, Any]) -> None:
    name, module, registered = node.get("class_name"), node.get("module"), node.get("registered_name")
    if not isinstance(name, str) or name in FORBIDDEN_CLASSES or registered in FORBIDDEN_CLASSES:
        raise Unfit(f"its configuration holds a {name} object, which could run code or read files")
    if registered in OURS or (name == "function" and node.get("config") in OUR_FUNCTIONS and module in ("builtins", "models.va")):
        return
    if module is None and name in ("__keras_tensor__", "__tuple__"):
        return
    if name == "function" and module == "keras.activations":
        return
    known = module in KERAS_MODULES or (isinstance(module, str) and module.startswith(("keras.src.ops.", "keras.src.layers.")))
    if not known or name == "function" or (module == "keras" and name not in KERAS_CORE):
        raise Unfit(f"its configuration holds {module}.{name}, which is none of Keras's layers")


def _vet_integers(node: Any, key: str = "") -> None:
    if isinstance(node, dict):
        for name, value in node.items():
            _vet_integers(value, name)
    elif isinstance(node, list):
        for value in node:
            _vet_integers(value, key)
    elif isinstance(node, int | float) and key not in ("seed", "shared_object_id") and not abs(node) <= MAX_INTEGER:
        if isinstance(node, float) and math.isfinite(node):
            return
        raise Unfit(f"its configuration has {key} = {str(node)[:20]}, more than {MAX_INTEGER}")


def weight_shapes(path: Path) -> list[tuple[int, ...]]:
    """Shapes of the weights in a `.keras` archive; nothing of them is read, and no file but this one is opened.

    Raises
    ------
    Unfit
        Links, external, virtual, chunked or compressed storage, numbers that are none, giant shapes.
    """
    import h5py

    vet_keras(path)
    with _readable(), _archive(path) as archive:
        content = io.BytesIO(archive.read("model.weights.h5"))
    try:
        with h5py.File(content, "r") as file:
            return _weight_shapes(file, "", [0])
    except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise Unfit(f"its weights are no HDF5 file ({_first_line(error)})") from None


def _weight_shapes(group: Any, where: str, seen: list[int], depth: int = 0) -> list[tuple[int, ...]]:
    import h5py

    shapes: list[tuple[int, ...]] = []
    for name in group:
        seen[0] += 1
        place = f"{where}/{name}"
        if seen[0] > MAX_H5_NODES or depth > MAX_H5_DEPTH:
            raise Unfit("its weights are nested too deep, or in circles")
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise Unfit(f"its weights link to another place or file at {place}")
        node = group[name]
        if isinstance(node, h5py.Group):
            shapes += _weight_shapes(node, place, seen, depth + 1)
            continue
        if node.external or node.is_virtual:
            raise Unfit(f"its weights read another file at {place}")
        if node.dtype.kind not in "fiu" or node.dtype.hasobject:
            raise Unfit(f"its weights are no numbers at {place}")
        if node.size and node.id.get_storage_size() != node.size * node.dtype.itemsize:
            raise Unfit(f"its weights promise the shape {node.shape} at {place}, which is not there")
        if "seed_generator" not in place and not place.startswith("/optimizer"):
            shapes.append(tuple(node.shape))
    if depth == 0 and sum(math.prod(shape) for shape in shapes) > MAX_WEIGHTS:
        raise Unfit(f"more than {MAX_WEIGHTS} weights are no model of ours")
    return shapes


def vet_arrays(path: Path) -> None:
    """Check an `.npz` archive: plain numbers or text, and no array larger than the bytes that are there.

    Raises
    ------
    Unfit
        Objects, giant shapes, a member that is no array.
    """
    with _archive(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                try:
                    version = np.lib.format.read_magic(stream)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(stream)
                except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
                    raise Unfit(f"{member.filename[:60]!r} is no array ({_first_line(error)})") from None
            if dtype.hasobject:
                raise Unfit(f"{member.filename[:60]!r} holds Python objects")
            if math.prod(shape) * dtype.itemsize > member.file_size:
                raise Unfit(f"{member.filename[:60]!r} promises the shape {shape}, which is not there")


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Unfit(f"is no archive ({_first_line(error)})") from None
    members = archive.infolist()
    bad = None
    if len({member.filename for member in members}) != len(members):
        bad = "holds a name twice"
    elif any(member.flag_bits & 1 for member in members):
        bad = "is encrypted"
    elif any(member.filename.startswith("/") or ".." in member.filename.split("/") for member in members):
        bad = "holds a name that climbs out of it"
    elif sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
        bad = f"unpacks to more than {MAX_UNPACKED_BYTES} bytes"
    if bad:
        archive.close()
        raise Unfit(bad)
    return archive


def vet_spec(spec: Mapping[str, Any]) -> None:
    """Check the sizes of a front end's spec, so that one window of it fits any machine.

    Raises
    ------
    Unfit
        A size that no front end needs.
    """
    limits = {"n_fft": 2**16, "frame_length": 2**16, "n_mels": 2**13, "n_bins": 2**15, "n_mfcc": 2**12, "n_frames": 2**15}
    for name, value in spec.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        limit = limits.get(name, 2**23)
        if not abs(value) <= limit:
            raise Unfit(f"{name} = {str(value)[:20]} is more than {limit}")
        if value <= 0 and name in (*limits, "sample_rate", "hop_length", "window_length", "frame_rate", "bands_per_octave"):
            raise Unfit(f"{name} = {value} must be > 0")
    hop, window = spec.get("hop_length"), spec.get("window_length")
    bins = max((int(spec[name]) for name in limits if isinstance(spec.get(name), int)), default=1)
    if isinstance(hop, int) and isinstance(window, int) and hop > 0 and window / hop * bins > 2**26:
        raise Unfit(f"a window of {window} samples every {hop} of them has too many numbers")


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
