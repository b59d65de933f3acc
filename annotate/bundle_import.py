"""A user's own frozen Keras files become a bundle, and a bundle's networks become plain Keras files.

What a file holds and whether it is one of our graphs is for `models.foreign` to say; here its outputs get their columns, its CPU
graph is derived where the extra `train` is installed, and all of it is written like any bundle: digests, reference outputs, card.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotate import bundling
from annotate.pipeline import file_digest
from features.transcription import TranscriptionSpec
from models import bundle as bundles
from models import export, foreign, keras_files
from models.bundle import BundleError

Array = NDArray[np.float32]

ENGINE_TOLERANCE = 1e-3  # between the derived CPU graph and Keras, on the reference inputs
UNKNOWN_LICENCE = "not stated: it is whatever the owner of the imported files says"


@dataclass(frozen=True)
class ImportOptions:
    """What to import, and what the files do not say of themselves."""

    files: Mapping[str, Path]  # family -> .keras or .h5
    out: Path
    name: str
    version: str = "1.0"
    licence: str = UNKNOWN_LICENCE
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # family -> the file's labels in its order
    renames: Mapping[str, str] = field(default_factory=dict)  # their label -> ours
    scales: Mapping[str, Path | None] = field(default_factory=dict)  # family -> JSON with mean and standard_deviation; None: raw
    floored: tuple[str, ...] = ()  # names of activations that are max(x, 0.37)
    raw_ratings: tuple[str, ...] = ()  # families whose heads predict ratings themselves instead of ratings / 10


@dataclass(frozen=True)
class Imported:
    """What an import found, a line each."""

    folder: Path
    lines: tuple[str, ...]


def import_bundle(options: ImportOptions) -> Imported:
    """Make a bundle of a user's own frozen Keras files.

    Raises
    ------
    FileNotFoundError, BundleError, ValueError
        With the file and its layer, before anything is written.
    """
    if not options.files:
        raise BundleError("no file to import: say --midlevel FILE, --probe FILE or another family")
    bundling.check_out(options.out)
    for what, named in (("--labels", options.labels), ("--scale", options.scales)):
        for family in named:
            if family not in options.files:
                raise BundleError(f"{what} {family}: no file of that family is imported")
    with foreign.float32():
        mapped = _map_all(options)
        return _write(options, mapped)


def _map_all(options: ImportOptions) -> dict[str, foreign.Mapped]:
    labels = {family: foreign.check_labels(names, family, options.renames) for family, names in options.labels.items()}
    mapped: dict[str, foreign.Mapped] = {}
    for family in bundles.NETWORKS:
        if family not in options.files:
            continue
        stored = keras_files.open_file(options.files[family], options.floored)
        mean, deviation = _scale_of(options, family)
        reading = foreign.Reading(labels.get(family), labels.get("midlevel"), mean, deviation, options.floored)
        mapped[family], under = foreign.map_file(stored, family, reading)
        if under is not None:
            _settle_midlevel(mapped, under, options)
    if "probe" in mapped and "midlevel" not in mapped:
        raise BundleError(
            f"{options.files['probe']}: the probe reads the seven saliences of a mid-level network; name its file with --midlevel"
        )
    if "probe" in mapped and "salience" not in mapped["midlevel"].arguments["heads"]:
        raise BundleError(
            f"{options.files['midlevel']}: it predicts ratings, and the probe reads saliences (a head of 7 with sigmoid)"
        )
    return mapped


def _settle_midlevel(mapped: dict[str, foreign.Mapped], under: foreign.Mapped, options: ImportOptions) -> None:
    """Take the mid-level network that a probe's file holds; beside a file of its own it must be the same one."""
    if "midlevel" not in mapped:
        mapped["midlevel"] = under
        return
    if "salience" not in mapped["midlevel"].arguments["heads"]:
        raise BundleError(
            f"{options.files['midlevel']}: it has no head of saliences, which the probe reads; leave --midlevel out"
        )
    own = [layer for layer in mapped["midlevel"].network.layers if layer.name not in ("salience", "rating")]
    below = [layer for layer in under.network.layers if layer.name != "salience"]
    pairs = list(zip(below, own, strict=True))
    pairs.append(tuple(one.network.get_layer("salience") for one in (under, mapped["midlevel"])))
    for mine, other in pairs:
        for a, b in zip(mine.get_weights(), other.get_weights(), strict=True):
            if not np.allclose(a, b, rtol=1e-3, atol=1e-5):
                raise BundleError(
                    f"{options.files['probe']}: the mid-level network below its probe is another than that of "
                    f"{options.files['midlevel']} (first at a {type(mine).__name__} layer, {mine.name!r} in our graph); "
                    "leave --midlevel out to take the probe's own"
                )
    mapped["probe"].remarks.append("the mid-level network below the probe is the imported one")


def _scale_of(options: ImportOptions, family: str) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if family not in options.scales:
        return None, None
    path = options.scales[family]
    if path is None:
        return (0.0,), (1.0,)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = [np.ravel(np.asarray(content[key], float)) for key in ("mean", "standard_deviation")]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise BundleError(
            f'--scale {family}={path}: not JSON of the form {{"mean": […], "standard_deviation": […]}} ({error})'
        ) from None
    return tuple(found[0].tolist()), tuple(found[1].tolist())


def _write(options: ImportOptions, mapped: Mapping[str, foreign.Mapped]) -> Imported:
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{options.out.name}.", dir=options.out.parent))
    try:
        lines = _fill(temporary, options, mapped)
        bundles.load(str(temporary))
        temporary.chmod(0o755)
        os.replace(temporary, options.out)  # replaces an empty folder, nothing else
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Imported(options.out, tuple(lines))


def _fill(folder: Path, options: ImportOptions, mapped: Mapping[str, foreign.Mapped]) -> list[str]:
    lines: list[str] = []
    reference: dict[str, Array] = {}
    entries: dict[str, Any] = {}
    explanation: dict[str, Any] = {}
    missing = [package for package in ("onnx", "tf2onnx") if importlib.util.find_spec(package) is None]
    for family in bundles.FAMILIES:
        if family == "notes":
            entries[family] = {
                "architecture": "none",
                "front_end": "TranscriptionSpec",
                "spec": asdict(TranscriptionSpec()),
                "pooling": "whole track",
                "outputs": [],
            }
        elif family in mapped:
            one = mapped[family]
            entries[family], said = _entry(folder, one, options, reference, derive=not missing)
            lines += said
            if family in ("probe", "joint"):
                explanation[family] = bundling.explanation_of(family, one.network)
    if missing:
        lines.append(
            f"no CPU graph: {' and '.join(missing)} not installed. Run this bundle with --exact, or install the extra 'train' "
            "(uv sync --extra train) and import again"
        )
    arrays: dict[str, Any] = dict(reference)
    np.savez_compressed(folder / "reference.npz", **arrays)
    manifest = {
        "name": options.name,
        "version": options.version,
        "licence": options.licence,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "written_by": {package: metadata.version(package) for package in ("annotate", "keras", "tensorflow")},
        "imported": {family: {"file": path.name, "sha256": file_digest(path)} for family, path in options.files.items()},
        "explanation": explanation,
        "families": entries,
    }
    (folder / "README.md").write_text(_card(manifest, lines), encoding="utf-8")
    bundles.write_manifest(folder, manifest)
    return lines


def _entry(
    folder: Path, one: foreign.Mapped, options: ImportOptions, reference: dict[str, Array], *, derive: bool
) -> tuple[dict[str, Any], list[str]]:
    """Write one family's files; its entry of bundle.json, and what is to be said of it."""
    family = one.family
    entry = bundling.network_base(family, one.arguments)
    heads = set(one.network.output)
    entry["outputs"] = [_columns(block, family, options) for block in entry["outputs"] if block["head"] in heads]
    if one.genres is not None:
        entry["genres"] = list(one.genres)
    one.network.trainable = True  # a frozen layer's weights would be stored in another order
    one.network.save(folder / f"{family}.keras")  # float32: the user's own weights, bit by bit
    inputs = one.inputs if one.inputs is not None else foreign.example_inputs(family)
    expected = {head: np.asarray(values) for head, values in one.network(inputs, training=False).items()}
    reference[f"{family}/input"] = inputs
    reference.update({f"{family}/keras/{head}": values for head, values in expected.items()})
    compared = (
        "not compared with the file's own prediction"
        if one.difference is None
        else f"largest difference to the file's own prediction {one.difference:.1e}"
    )
    lines = [f"{family}: {one.source}, {compared}", *(f"{family}: {remark}" for remark in one.remarks)]
    if not derive:
        return entry | {"engine": None}, lines
    graph = export.sequence_graph(one.network) if family == "vaseq" else export.float_graph(one.network)
    (folder / f"{family}.onnx").write_bytes(graph)
    found = bundles.run_engine(folder / f"{family}.onnx", inputs)
    worst = max(float(np.abs(found[head] - values).max()) for head, values in expected.items())
    if not worst <= ENGINE_TOLERANCE:
        (folder / f"{family}.onnx").unlink()
        return entry | {"engine": None}, [*lines, f"{family}: no CPU graph, the derived one differs by {worst:.1e}; use --exact"]
    reference.update({f"{family}/onnx/{head}": values for head, values in found.items()})
    return entry | {"engine": f"{family}.onnx"}, [*lines, f"{family}: CPU graph derived, largest difference {worst:.1e}"]


def _columns(block: dict[str, Any], family: str, options: ImportOptions) -> dict[str, Any]:
    """Columns of one head; where the file predicts ratings themselves, they are taken as they are."""
    if family in options.raw_ratings:
        return {key: value for key, value in block.items() if key not in ("scale", "offset")}
    return block


def _card(manifest: Mapping[str, Any], lines: list[str]) -> str:
    files = [f"- {family}: {one['file']}, SHA-256 {one['sha256']}" for family, one in manifest["imported"].items()]
    return "\n".join(
        [
            f"# Bundle {manifest['name']} {manifest['version']}",
            "",
            "Imported from Keras files that were trained elsewhere:",
            "",
            *files,
            "",
            f"Licence: {manifest['licence']}.",
            "",
            "## What was found",
            "",
            *(f"- {line}" for line in lines),
            "",
            "## How far to trust it",
            "",
            "Nothing was measured here, and it is not known which tracks the files were trained on: `in_training` of a table is",
            "empty. `annotate evaluate` measures the agreement with a corpus that has ratings; leave out tracks that were",
            "trained on.",
            "",
        ]
    )


def export_bundle(bundle: bundles.Bundle, out: Path, families: tuple[str, ...] = ()) -> list[str]:
    """Write a bundle's networks as plain `.keras` files that Keras opens without this project; a line each.

    Raises
    ------
    BundleError, ValueError
        For a family without a network, and a folder that is not empty.
    """
    bundling.check_out(out)
    held = [name for name, family in bundle.families.items() if family.weights is not None]
    unknown = [name for name in families if name not in held]
    if unknown:
        raise BundleError(f"bundle {bundle.name!r} has no network {', '.join(unknown)}; it has {', '.join(held) or 'none'}")
    temporary = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
    lines = []
    try:
        labels: dict[str, Any] = {}
        with foreign.float32():
            for name in families or held:
                family = bundle.families[name]
                network = bundles.load_network(bundle, name)
                plain = foreign.plain(network, name, family.arguments)
                inputs = foreign.example_inputs(name, front_end=family.front_end)
                ours, theirs = network(inputs, training=False), plain(inputs, training=False)
                worst = max(float(np.abs(np.asarray(ours[head]) - np.asarray(theirs[head])).max()) for head in ours)
                if not worst <= ENGINE_TOLERANCE:
                    raise BundleError(f"{name}: the plain graph differs by {worst:.1e}; please report it")
                plain.save(temporary / f"{name}.keras")
                labels[name] = {
                    "input": {"shape": list(plain.input_shape[1:]), "front_end": family.front_end, "spec": dict(family.spec)},
                    "outputs": {output.head: list(output.labels) for output in family.outputs if output.head in ours}
                    if name not in ("va", "vaseq")
                    else {"va": list(foreign.LABEL_SETS[name, "va"])},
                    **({"genres": family.details["genres"]} if "genres" in family.details else {}),
                }
                lines.append(
                    f"{name}.keras: input {plain.input_shape[1:]}, largest difference to the bundle's network {worst:.1e}"
                )
        (temporary / "labels.json").write_text(
            json.dumps({"bundle": bundle.name, "version": bundle.version, "families": labels}, indent=1)
        )
        temporary.chmod(0o755)
        os.replace(temporary, out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return [*lines, "labels.json: labels of every output in order, and the front end that makes each input"]
