"""A bundle: frozen models with all that they depend on, in one folder.

    bundle.json       name, version, licence; a family each: architecture, front end, labels, thresholds, training, scores;
                      the SHA-256 of every other file
    FAMILY.keras      weights of a network, Keras 3, stored in float16
    FAMILY.onnx       the graph that a CPU runs, with its measured agreement with the Keras model in bundle.json
    oof.parquet       out-of-fold predictions of the tracks that the models were trained on
    reference.npz     inputs and outputs for `verify`
    README.md         the model card

Conventions: a published version never changes; a bundle's digest is the SHA-256 of its bundle.json, which holds the digests of
the rest. Nothing is ever unpickled, no file outside the folder is opened.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import vetting

Array = NDArray[np.float32]

FORMAT = 1
BUILT_IN = Path(__file__).parent / "bundles"
DEFAULT = "default-2"
FAMILIES = (
    "midlevel",
    "probe",
    "joint",
    "a2e",
    "a2mid2e",
    "emotion",
    "va",
    "vaseq",
    "vatransfer",
    "crnn",
    "descriptors",
    "best",
    "notes",
)
NETWORKS = ("midlevel", "probe", "joint", "a2e", "a2mid2e", "emotion", "va", "vaseq", "vatransfer", "crnn")
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_FILES = 1000
MAX_ARGUMENT = 2**16  # of an architecture: frames, labels, length of a list
COLUMN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,79}")
REFERENCE_TOLERANCE = 1e-3  # of `verify`, in the network's own output units


class BundleError(ValueError):
    """A bundle that is not what it says; the message is one line that names the file and the rule."""


class UnknownNameError(BundleError):
    """A bundle or a family that does not exist: a mistake in the command, not in a bundle."""


@dataclass(frozen=True)
class Output:
    """One block of columns that a family writes."""

    head: str  # output of the network
    columns: tuple[str, ...]
    labels: tuple[str, ...]  # of each column, for its description
    index: tuple[int, ...]  # of each column in the head
    description: str  # with {} for the label
    unit: str
    low: float
    high: float
    scale: float = 1.0  # column = head · scale + offset
    offset: float = 0.0
    spread: bool = False  # whether `<column>_sd` over the windows is written too
    thresholds: tuple[float, ...] | None = None  # of `<column>_label`


@dataclass(frozen=True)
class Family:
    """One model family of a bundle."""

    name: str
    architecture: str
    arguments: Mapping[str, Any]
    front_end: str  # class name of the spec
    spec: Mapping[str, Any]
    window_s: float | None  # None: the whole track
    pooling: str
    outputs: tuple[Output, ...]
    weights: str | None  # file name
    engine: str | None  # file name of the ONNX graph
    details: Mapping[str, Any]  # training, scores, agreement of the engine


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked against their digests."""

    folder: Path
    name: str
    version: str
    licence: str
    digest: str
    families: Mapping[str, Family]
    manifest: Mapping[str, Any]

    def file(self, name: str) -> Path:
        """Path of one of the bundle's files."""
        if name not in self.manifest["files"]:
            raise BundleError(f"{self.folder}: {name!r} is not among the bundle's files")
        return self.folder / name

    def trained_on(self, family: str) -> dict[str, frozenset[str]]:
        """Ids of the rated tracks that a family learned from, by corpus."""
        return {
            corpus: frozenset(ids) for corpus, ids in self.families[family].details.get("training", {}).get("ids", {}).items()
        }


def find(name_or_path: str) -> Path:
    """Folder of a bundle, by path or by the name of a built-in one (`default` is the current one).

    Raises
    ------
    BundleError
        If there is no such bundle.
    """
    places = (BUILT_IN / DEFAULT,) if name_or_path == "default" else (Path(name_or_path), BUILT_IN / name_or_path)
    for folder in places:
        if (folder / "bundle.json").is_file():
            return folder
    built_in = ", ".join(path.name for path in built_in_bundles()) or "none"
    raise UnknownNameError(f"no bundle {name_or_path!r}: neither a folder with a bundle.json nor built in ({built_in})")


def built_in_bundles() -> list[Path]:
    """Folders of the bundles that come with the package."""
    return sorted(path.parent for path in BUILT_IN.glob("*/bundle.json"))


def load(name_or_path: str) -> Bundle:
    """Open a bundle and check it: digests of every file, names, label counts, and that no file could run code (`vetting`).

    Raises
    ------
    BundleError
        With what is wrong and where.
    """
    folder = find(name_or_path)
    path = folder / "bundle.json"
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: {path.stat().st_size} bytes, more than {MAX_MANIFEST_BYTES} are no manifest")
    text = path.read_bytes()
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON: {error}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise BundleError(f"{path}: format {found!r}, this version reads {FORMAT}")
    try:
        files: dict[str, str] = dict(manifest["files"])
        families = {name: _family(name, entry) for name, entry in manifest["families"].items()}
        name, version, licence = (str(manifest[key]) for key in ("name", "version", "licence"))
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(f"{path}: {type(error).__name__} {error}: not a bundle's manifest") from None
    if not all(text.isprintable() and 0 < len(text) <= 200 for text in (name, version, licence)):
        raise BundleError(f"{path}: name, version and licence must be printable, up to 200 characters")
    if len(files) > MAX_FILES:
        raise BundleError(f"{path}: {len(files)} files, more than {MAX_FILES} are no bundle")
    for file, digest in files.items():
        if not file.isprintable() or not file:
            raise BundleError(f"{path}: file name {file!r} must be printable")
        plain = PurePosixPath(file)
        if plain.is_absolute() or ".." in plain.parts or "\\" in file or _is_link(folder, plain):
            raise BundleError(f"{path}: file name {file!r} leads out of the bundle")
        if not (folder / file).is_file():
            raise BundleError(f"{folder}: {file} is missing")
        found = _sha256(folder / file)
        if found != digest:
            raise BundleError(f"{folder}: {file} has SHA-256 {found[:12]}…, bundle.json says {str(digest)[:12]}…")
        try:
            vetting.vet_file(folder / file)
        except vetting.Unfit as error:
            raise BundleError(f"{folder}: {file} {error}") from None
    for family in families.values():
        for used in (family.weights, family.engine, *family.details.get("engines", {}).values()):
            if used is not None and used not in files:
                raise BundleError(f"{path}: {family.name} names {used!r}, which has no digest")
    return Bundle(folder, name, version, licence, hashlib.sha256(text).hexdigest(), families, manifest)


def _family(name: str, entry: Mapping[str, Any]) -> Family:
    if name not in FAMILIES:
        raise BundleError(f"unknown family {name!r}, must be one of {', '.join(FAMILIES)}")
    try:
        vetting.vet_spec(entry["spec"])
    except vetting.Unfit as error:
        raise BundleError(f"{name}: spec of {str(entry['front_end'])[:40]}: {error}") from None
    outputs = []
    for block in entry["outputs"]:
        columns = tuple(block["columns"])
        strange = [column for column in columns if not COLUMN_NAME.fullmatch(column)]
        if strange:
            raise BundleError(f"{name}: {strange[0]!r} is no column name (letters, digits, _)")
        thresholds = block.get("thresholds")
        if thresholds is not None and len(thresholds) != len(columns):
            raise BundleError(f"{name}: {len(thresholds)} thresholds for {len(columns)} columns of head {block['head']!r}")
        labels = tuple(block.get("labels", columns))
        index = tuple(int(place) for place in block.get("index", range(len(columns))))
        if any(place < 0 for place in index):
            raise BundleError(f"{name}: a place of head {block['head']!r} is negative")
        if not len(labels) == len(index) == len(columns):
            raise BundleError(
                f"{name}: {len(labels)} labels and {len(index)} places for {len(columns)} columns of {block['head']!r}"
            )
        outputs.append(
            Output(
                head=block["head"],
                columns=columns,
                labels=labels,
                index=index,
                description=block["description"],
                unit=block["unit"],
                low=float(block["low"]),
                high=float(block["high"]),
                scale=float(block.get("scale", 1.0)),
                offset=float(block.get("offset", 0.0)),
                spread=bool(block.get("spread", False)),
                thresholds=None if thresholds is None else tuple(float(t) for t in thresholds),
            )
        )
    if not isinstance(entry.get("engines", {}), dict):
        raise BundleError(f"{name}: 'engines' must map heads to files")
    known = {"architecture", "arguments", "front_end", "spec", "window_s", "pooling", "outputs", "weights", "engine"}
    return Family(
        name=name,
        architecture=entry["architecture"],
        arguments=entry.get("arguments", {}),
        front_end=entry["front_end"],
        spec=entry["spec"],
        window_s=entry.get("window_s"),
        pooling=entry["pooling"],
        outputs=tuple(outputs),
        weights=entry.get("weights"),
        engine=entry.get("engine"),
        details={key: value for key, value in entry.items() if key not in known},
    )


def _is_link(folder: Path, name: PurePosixPath) -> bool:
    """Whether a file of the bundle, or a folder on the way to it, is a symbolic link."""
    return any((folder / part).is_symlink() for part in (name, *name.parents) if part.parts)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write bundle.json with the digests of all files that lie in the folder; the last step of making a bundle."""
    files = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "bundle.json"
    }
    temporary = folder / "bundle.json.tmp"
    temporary.write_text(json.dumps({"format": FORMAT, **manifest, "files": files}, indent=1))
    os.replace(temporary, folder / "bundle.json")


def build_graph(family: Family) -> Any:
    """Build a family's Keras graph from its architecture and arguments, with fresh weights.

    Raises
    ------
    BundleError
        For an architecture that is not ours, or arguments that it does not take.
    """
    from models import crnn, emotion, joint, midlevel, probe, tagger, va

    builders: dict[str, tuple[Any, Any]] = {
        "midlevel": (midlevel.build, midlevel.MidlevelArchitecture),
        "probe": (probe.build, probe.ProbeArchitecture),
        "joint": (joint.build_joint, joint.JointArchitecture),
        "a2e": (joint.build_a2e, joint.JointArchitecture),
        "emotion": (emotion.build, emotion.EmotionArchitecture),
        "crnn": (crnn.build, crnn.CrnnArchitecture),
        "musicnn": (tagger.build, tagger.TaggerArchitecture),
        "va_dense": (va.build_dense, va.DenseArchitecture),
        "va_sequence": (va.build_sequence, va.SequenceArchitecture),
        "va_transferred": (va.build_transferred, va.TransferredArchitecture),
    }
    if family.architecture not in builders:
        raise BundleError(f"{family.name}: unknown architecture {family.architecture!r}")
    for key, value in family.arguments.items():
        size = len(value) if isinstance(value, list | str | dict) else value
        if isinstance(size, int | float) and not abs(size) <= MAX_ARGUMENT:
            raise BundleError(f"{family.name}: {key} of {family.architecture} is more than {MAX_ARGUMENT}")
    build, architecture = builders[family.architecture]
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in family.arguments.items()}
    try:
        return build(architecture(**arguments))
    except (TypeError, ValueError) as error:
        raise BundleError(f"{family.name}: arguments of {family.architecture}: {error}") from None


def load_network(bundle: Bundle, name: str) -> Any:
    """Build a family's graph in float32 and fill it from its `.keras` file.

    The graph is ours; of the file only the numbers are read, its configuration is looked at and never deserialised.

    Raises
    ------
    BundleError
        If a weight's shape is not the graph's, or the file could run code or read another one.
    """
    family = bundle.families[name]
    if family.weights is None:
        raise BundleError(f"{name} has no network")
    graph = build_graph(family)
    try:
        found = vetting.weight_shapes(bundle.file(family.weights))
    except vetting.Unfit as error:
        raise BundleError(f"{bundle.folder}: {family.weights} cannot be loaded: {error}") from None
    expected = sorted(tuple(weight.shape) for weight in graph.weights if "seed_generator" not in weight.path)
    if expected != sorted(found):
        raise BundleError(
            f"{bundle.folder}: {family.weights} differs from the graph of {name}: "
            f"{len(found)} weights with {sum(map(math.prod, found))} numbers, "
            f"the graph has {len(expected)} with {sum(map(math.prod, expected))}"
        )
    try:
        graph.load_weights(bundle.file(family.weights))
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise BundleError(f"{bundle.folder}: {family.weights} cannot be loaded: {str(error).splitlines()[0]}") from None
    heads: dict[str, int] = {}
    for output in family.outputs:
        if output.head in graph.output:
            heads[output.head] = max(heads.get(output.head, 0), 1 + max(output.index))
    for head, count in heads.items():
        if graph.output[head].shape[-1] != count:
            raise BundleError(f"{name}: head {head!r} gives {graph.output[head].shape[-1]} numbers for {count} columns")
    return graph


def save_network(network: Any, path: Path, rebuild: Any) -> None:
    """Store a network's weights in float16 as a plain `.keras` file; `rebuild` builds the same graph anew."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float16")
    try:
        half = rebuild()
    finally:
        keras.config.set_dtype_policy(before)
    half.set_weights([np.asarray(weight, np.float16) for weight in network.get_weights()])
    half.save(path)


@lru_cache(maxsize=32)
def session(path: str, threads: int = 1) -> Any:
    """Open an ONNX file in onnxruntime on the CPU; one session a process and file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a type of its own for each cause, and no common one
        raise BundleError(f"{path}: no graph that can run: {str(error).splitlines()[0][:200]}") from None


def run_engine(path: Path, inputs: Array, threads: int = 1) -> dict[str, Array]:
    """Run an ONNX file on one batch: head -> array."""
    opened = session(str(path), threads)
    names = [output.name for output in opened.get_outputs()]
    values = opened.run(names, {opened.get_inputs()[0].name: np.ascontiguousarray(inputs, np.float32)})
    return dict(zip(names, values, strict=True))


def verify(bundle: Bundle) -> Iterator[str]:
    """Check every model against the bundle's reference inputs and outputs; yield a line each.

    Raises
    ------
    BundleError
        On the first difference above the tolerance.
    """
    with np.load(bundle.file("reference.npz"), allow_pickle=False) as reference:
        arrays = {name: reference[name] for name in reference.files}
    for name, family in bundle.families.items():
        if f"{name}/input" not in arrays:
            if family.weights is not None or family.engine is not None:
                raise BundleError(f"{bundle.folder}: reference.npz has no input for {name}, nothing vouches for it")
            continue
        inputs = arrays[f"{name}/input"]
        ways: dict[str, dict[str, Array]] = {}
        if family.weights is not None:
            graph = load_network(bundle, name)
            ways["keras"] = {head: np.asarray(value) for head, value in graph(inputs, training=False).items()}
        if family.engine is not None:
            ways["onnx"] = run_engine(bundle.file(family.engine), inputs)
        numbers = arrays.get(f"{name}/numbers", inputs)  # what the engines of single outputs read
        for head, engine in family.details.get("engines", {}).items():
            ways[f"onnx {head}"] = {head: run_engine(bundle.file(engine), numbers)["ratings"]}
        for way, outputs in ways.items():
            for head, values in outputs.items():
                if f"{name}/{way.split()[0]}/{head}" not in arrays:
                    continue
                expected = arrays[f"{name}/{way.split()[0]}/{head}"]
                if values.shape != expected.shape:
                    raise BundleError(f"{name} ({way}): {head} has shape {values.shape}, reference {expected.shape}")
                difference = float(np.abs(values - expected).max())
                if not difference <= REFERENCE_TOLERANCE:
                    raise BundleError(f"{name} ({way}): {head} differs from the reference by {difference:.2g}")
                yield f"{name:12s} {way:18s} {head:14s} largest difference {difference:.1e}"
