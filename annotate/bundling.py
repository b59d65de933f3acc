"""From a training folder to a bundle: weights, inference graphs, thresholds, scores, card.

Everything measured here is measured on tracks that the scored model did not see: grouped folds of the working folder
(annotate.training). The networks that are shipped were then trained on all rated tracks; their scores are those of the held-out
folds.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annotate import training, training_data
from annotate.card import card
from annotate.schema import title_key
from annotate.training import Rated, values_of
from models import bundle as bundles
from models import export, inference, tagger
from models.inference import FRONT_END_OF as FRONT_END
from models.labels import FILM, GEMS, GENRES, MIDLEVEL

Array = NDArray[np.float32]

CALIBRATION_WINDOWS = 100
AGREEMENT_WINDOWS = 80  # other windows than those of the calibration
REFERENCE_WINDOWS = 2
SALIENCE_THRESHOLD = 0.4  # founding document 000
THRESHOLD_GRID = np.arange(0.05, 0.71, 0.01)  # predicted shares seldom reach the document's .30-.70
FEWEST_POSITIVES = 5
LARGE_KERNEL = 2**22  # numbers
LICENCE = "weights MIT; trained on audio and ratings that are for research use"
ARCHITECTURE = {
    "midlevel": "midlevel",
    "probe": "probe",
    "joint": "joint",
    "a2e": "a2e",
    "a2mid2e": "joint",  # the same graph, trained in two stages
    "emotion": "emotion",
    "crnn": "crnn",
    "va": "va_dense",
    "vaseq": "va_sequence",
    "vatransfer": "va_transferred",
}
POOLING = "mean over windows"
SPLIT = "grouped by artist (Emotify, MUSIFEAST-17) or album (Soundtracks), no group on both sides"
# what each rated output is scored on: predicted columns, rated targets, corpora
SCORED = {
    "midlevel": (("midlevel", "midlevel"),),
    "joint": (("film", "film"), ("joint", "midlevel")),
    "a2e": (("a2e_film", "film"),),
    "a2mid2e": (("a2mid2e_film", "film"), ("a2mid2e_mid", "midlevel")),
    "probe": (("gems", "gems"),),
    "emotion": (("emotion", "gems"),),
    "va": (("va", "va mean"), ("va", "va std")),
    "vaseq": (("vaseq", "va mean"), ("vaseq", "va std")),
    "vatransfer": (("vatransfer", "va mean"), ("vatransfer", "va std")),
    "crnn": (("crnn", "vad"),),
    "descriptors": (("desc_midlevel", "midlevel"), ("desc_film", "film"), ("desc_gems", "gems"), ("desc_va", "va mean")),
    "best": (("best_midlevel", "midlevel"), ("best_film", "film"), ("best_gems", "gems"), ("best_va", "va mean")),
}
BEST_LABELS = {
    "midlevel": MIDLEVEL.labels,
    "film": FILM.labels,
    "gems": GEMS.labels,
    "va": ("valence_mean", "arousal_mean"),
}


def write_bundle(
    rated: Rated, work: Path, out: Path, families: Sequence[str], *, name: str, version: str, frozen: str | None = None
) -> None:
    """Make a bundle of the trained families in a working folder.

    `frozen` names the bundle whose mid-level network the probe was fitted on: it goes into this one as it is.

    Raises
    ------
    ValueError
        If `out` holds a bundle already: a published version never changes.
    """
    check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
    try:
        _fill(temporary, rated, work, families, name=name, version=version, frozen=frozen)
        bundles.load(str(temporary))
        temporary.chmod(0o755)
        os.replace(temporary, out)  # replaces an empty folder, nothing else
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _fill(
    temporary: Path, rated: Rated, work: Path, families: Sequence[str], *, name: str, version: str, frozen: str | None
) -> None:
    predictions = out_of_fold(rated, work, families)
    reference: dict[str, Array] = {}
    entries: dict[str, Any] = {}
    explanation: dict[str, Any] = {}
    for family in bundles.FAMILIES:
        if family == "midlevel" and "probe" in families and family not in families and frozen is not None:
            entries[family] = _frozen_entry(frozen, temporary, reference)
        elif family in families and family in ARCHITECTURE:
            print(f"packing {family}", flush=True)
            entries[family] = _network_entry(rated, work, family, temporary, reference, explanation)
        elif family == "descriptors" and family in families:
            entries[family] = _rating_models(rated, work, family, temporary, reference)
        elif family == "best" and family in families:
            entries[family] = _best_entry(rated, work, temporary, reference)
        elif family == "notes":
            entries[family] = {
                "architecture": "none",
                "front_end": "TranscriptionSpec",
                "spec": asdict(_spec("TranscriptionSpec")),
                "pooling": "whole track",
                "outputs": [],
            }
    if "emotion" in entries:
        _set_emotion_thresholds(entries["emotion"], rated, predictions)
    scores = score(rated, predictions)
    ceiling = _ceiling(rated)
    for family, entry in entries.items():
        own = {f"{prefix} on {corpus}": table for (owner, prefix, corpus), table in scores.items() if owner == family}
        entry["scores"] = own
    if "genres" in entries.get("crnn", {}) and f"genre_p_{GENRES.labels[0]}" in predictions:
        entries["crnn"]["genre"] = _genre_scores(rated, predictions)
    arrays: dict[str, Any] = dict(reference)
    np.savez_compressed(temporary / "reference.npz", **arrays)
    predictions.drop(columns=["row"]).to_parquet(temporary / "oof.parquet", index=False)
    manifest = {
        "name": name,
        "version": version,
        "licence": LICENCE,
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "written_by": {
            package: metadata.version(package)
            for package in ("annotate", "keras", "tensorflow", "scikit-learn", "onnx", "onnxruntime")
        },
        "split": SPLIT,
        "tracks": {corpus: int(count) for corpus, count in rated.table["corpus"].value_counts().items()},
        "ceiling_gems": ceiling,
        "explanation": explanation,
        "families": entries,
    }
    (temporary / "README.md").write_text(card(manifest), encoding="utf-8")
    bundles.write_manifest(temporary, manifest)


def check_request(out: Path, work: Path) -> None:
    """Refuse, before any training, what could not be finished.

    Raises
    ------
    ValueError
        If the extra `train` is not installed, `out` is taken, or the working folder lies in it.
    """
    missing = [package for package in ("onnx", "tf2onnx") if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(f"training needs {' and '.join(missing)}: install the extra 'train' (uv sync --extra train)")
    if out.resolve() == work.resolve() or out.resolve() in work.resolve().parents:
        raise ValueError(f"--work {work} lies in --out {out}: choose a folder outside of the bundle")
    check_out(out)


def check_out(out: Path) -> None:
    """Refuse to write a bundle over anything.

    Raises
    ------
    ValueError
        If `out` exists and is not an empty folder.
    """
    if (out / "bundle.json").exists():
        raise ValueError(f"{out} holds a bundle already: a published version never changes, choose another folder")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ValueError(f"{out} exists and is not an empty folder, choose another for the bundle")


def _spec(name: str) -> Any:
    return next(spec for spec in training_data.SPECS if type(spec).__name__ == name)


def _block(head: str, prefix: str, labels: Sequence[str], text: str, unit: str, low: float, high: float) -> dict[str, Any]:
    """Describe columns ``prefix_label`` that read one head."""
    columns = [f"{prefix}_{label}" for label in labels]
    return {
        "head": head,
        "columns": columns,
        "labels": list(labels),
        "description": text,
        "unit": unit,
        "low": low,
        "high": high,
    }


# unit, range and text of what the descriptor model and `best` predict
RATINGS = {
    "midlevel": ("perceived {}", "rating 1-10", 1.0, 10.0),
    "film": ("film-music emotion {}", "rating 1-9", 1.0, 9.0),
    "gems": ("expected share of listeners who feel {}", "share", 0.0, 1.0),
    "va": ("{} of listeners' ratings", "rating 1-9", 1.0, 9.0),
}


def _outputs(family: str) -> list[dict[str, Any]]:
    def block(
        head: str, prefix: str, labels: Sequence[str], text: str, unit: str, low: float, high: float, **more: Any
    ) -> dict[str, Any]:
        return _block(head, prefix, labels, text, unit, low, high) | more

    def film(prefix: str) -> dict[str, Any]:
        return block("film", prefix, FILM.labels, "film-music emotion {}", "rating 1-9", 1.0, 9.0, scale=10.0)

    def on_the_way(prefix: str) -> dict[str, Any]:
        text = "perceived {}, as the film emotions went through it"
        return block("midlevel", prefix, MIDLEVEL.labels, text, "rating 1-10", 1.0, 10.0, scale=10.0)

    def va(prefix: str) -> list[dict[str, Any]]:
        means = block(
            "va", prefix, ("valence_mean", "arousal_mean"), "{} of listeners' ratings, from the notes", "rating 1-9", 1.0, 9.0
        )
        text = "{}: standard deviation between listeners, from the notes"
        spreads = block("va", prefix, ("valence_std", "arousal_std"), text, "rating 1-9", 0.3, 3.0)
        return [means | {"index": [0, 2]}, spreads | {"index": [1, 3]}]

    return {
        "midlevel": [
            block("rating", "midlevel", MIDLEVEL.labels, "perceived {}", "rating 1-10", 1.0, 10.0, scale=10.0, spread=True),
            block(
                "salience",
                "salient",
                MIDLEVEL.labels,
                "salience of the feature among the seven: {}",
                "probability",
                0.0,
                1.0,
                thresholds=[SALIENCE_THRESHOLD] * len(MIDLEVEL.labels),
            ),
        ],
        "probe": [
            block("gems", "gems", GEMS.labels, "expected share of listeners, linear in mid-level salience: {}", "share", 0.0, 1.0)
        ],
        "joint": [film("film"), on_the_way("joint")],
        "a2e": [film("a2e_film")],
        "a2mid2e": [film("a2mid2e_film"), on_the_way("a2mid2e_mid")],
        "emotion": [block("emotion", "emotion", GEMS.labels, "expected share of listeners who feel {}", "share", 0.0, 1.0)],
        "va": va("va"),
        "vaseq": va("vaseq"),
        "vatransfer": va("vatransfer"),
        "crnn": [
            block(
                "reg_output",
                "crnn",
                ("valence", "arousal", "dominance"),
                "{} by word norms of the emotion words, not by listeners' ratings of the music",
                "rating 1-9",
                1.0,
                9.0,
                scale=8.0,
                offset=1.0,
            )
        ],
    }[family]


def _network_entry(
    rated: Rated, work: Path, family: str, folder: Path, reference: dict[str, Array], explanation: dict[str, Any]
) -> dict[str, Any]:
    import keras

    from models import va

    va.register()
    trained = keras.saving.load_model(work / family / "final" / "model.keras", compile=False)
    arguments = _arguments(family, trained)
    entry = network_base(family, arguments) | {"engine": f"{family}.onnx", "training": _training_record(rated, work, family)}
    if family == "crnn" and not rated.table["genre"].iloc[training.rated_rows(rated, family)].isin(GENRES.labels).any():
        del entry["genres"]  # its head for them learned nothing
    shell = bundles._family(family, entry)
    graph = bundles.build_graph(shell)
    trained.set_weights([rounded(weight) for weight in trained.get_weights()])
    bundles.save_network(trained, folder / f"{family}.keras", lambda: bundles.build_graph(shell))
    # what is shipped has float16 weights: everything derived starts from them
    graph.set_weights([np.asarray(w, np.float16).astype(np.float32) for w in trained.get_weights()])
    if family in FRONT_END:
        rows = _spread_rows(rated)
        windows = [window for track in training.network_windows(rated, family, rows) for window in track]
        picked = np.random.default_rng(0).permutation(len(windows))
        # of few windows half; where that is too little to calibrate on, all are for the check
        count = min(CALIBRATION_WINDOWS, len(windows) // 2) if len(windows) >= 2 * export.FEWEST_WINDOWS else 0
        calibration = [windows[k] for k in picked[:count]]
        checked = [windows[k] for k in picked[count : count + AGREEMENT_WINDOWS]]
        engine, record = export.engine(graph, family, calibration, checked)
        entry["engine_agreement"] = record
        inputs = np.stack(checked[:REFERENCE_WINDOWS])[..., None].astype(np.float16).astype(np.float32)
    else:
        engine = export.sequence_graph(graph) if family in ("vaseq", "vatransfer") else export.float_graph(graph)
        inputs = _small_inputs(rated, work, family)
    (folder / f"{family}.onnx").write_bytes(engine)
    reference[f"{family}/input"] = inputs.astype(np.float16) if family in FRONT_END else inputs
    for head, values in graph.predict_on_batch(inputs).items():
        reference[f"{family}/keras/{head}"] = np.asarray(values)
    for head, values in bundles.run_engine(folder / f"{family}.onnx", inputs).items():
        reference[f"{family}/onnx/{head}"] = values
    if family in ("probe", "joint"):
        explanation[family] = explanation_of(family, graph)
    return entry


def _frozen_entry(source: str, folder: Path, reference: dict[str, Array]) -> dict[str, Any]:
    """Mid-level network of another bundle, file by file; its scores stay with that bundle."""
    bundle = bundles.load(source)
    held = bundle.families["midlevel"]
    for name in (held.weights, held.engine):
        if name is not None:
            shutil.copyfile(bundle.file(name), folder / name)
    with np.load(bundle.file("reference.npz"), allow_pickle=False) as arrays:
        reference |= {key: arrays[key] for key in arrays.files if key.startswith("midlevel/")}
    entry: dict[str, Any] = dict(bundle.manifest["families"]["midlevel"])
    entry.pop("scores", None)
    return entry | {"taken_from": {"name": bundle.name, "version": bundle.version, "digest": bundle.digest}}


def network_base(family: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What bundle.json says of any network of ours, whoever trained it."""
    no_window = {
        "va": "22 note statistics",
        "vaseq": "note sequence",
        "vatransfer": "note sequence",
        "probe": "salience",
    }
    entry: dict[str, Any] = {
        "architecture": ARCHITECTURE[family],
        "arguments": arguments,
        "front_end": FRONT_END.get(family) or no_window[family],
        "spec": asdict(_spec(FRONT_END[family])) if family in FRONT_END else asdict(_spec("TranscriptionSpec")),
        "window_s": _window_s(family),
        "pooling": POOLING if family in FRONT_END else "the mean salience of the track" if family == "probe" else "whole track",
        "outputs": _outputs(family),
        "weights": f"{family}.keras",
    }
    if family == "crnn":
        entry["genres"] = list(GENRES.labels)
    return entry


def explanation_of(family: str, graph: Any) -> dict[str, Any]:
    """Weights and biases of a linear head, as `annotate explain` reads them: the probe's in log-odds, joint's in ratings."""
    head, reads, writes, labels = {
        "probe": ("gems", "salient", "gems", GEMS.labels),
        "joint": ("film", "joint", "film", FILM.labels),
    }[family]
    kernel, bias = graph.get_layer(head).get_weights()
    return {
        "inputs": [f"{reads}_{label}" for label in MIDLEVEL.labels],
        "outputs": [f"{writes}_{label}" for label in labels],
        "scale": "log-odds" if family == "probe" else "rating",
        "weights": kernel.T.round(6).tolist(),
        "bias": ((1 if family == "probe" else 10) * bias).round(6).tolist(),
    }


def rounded(weight: Array) -> Array:
    """Round a very large kernel to steps of a power of two, forty a standard deviation; others stay.

    The emotion network's dense layer holds 16.7 million numbers; in float16 as they are, they hardly compress. The engine and all
    figures follow from the rounded ones.
    """
    if weight.size < LARGE_KERNEL:
        return weight
    step = 2.0 ** np.floor(np.log2(float(weight.std()) / 40))
    steps: Array = (np.round(weight / step) * step).astype(np.float32)
    return steps


def _arguments(family: str, trained: Any) -> dict[str, Any]:
    """Architecture arguments of a trained network that its weights do not hold."""
    if family == "emotion":
        config = next(layer for layer in trained.layers if type(layer).__name__ == "Rescaling").get_config()
        return {"mean": -config["offset"] / config["scale"], "standard_deviation": 1 / config["scale"]}
    if family == "crnn":
        return {"recurrent_dropout": 0.0}
    if family == "va":
        config = next(layer for layer in trained.layers if type(layer).__name__ == "Rescaling").get_config()
        scale, offset = np.array(config["scale"]), np.array(config["offset"])
        return {"mean": (-offset / scale).tolist(), "standard_deviation": (1 / scale).tolist()}
    if family == "vatransfer":
        notes = next(layer for layer in trained.layers if hasattr(layer, "standard_deviation"))
        config = next(layer for layer in trained.layers if type(layer).__name__ == "Rescaling").get_config()
        scale, offset = np.array(config["scale"]), np.array(config["offset"])
        return {
            "note_mean": list(notes.mean),
            "note_standard_deviation": list(notes.standard_deviation),
            "mean": (-offset / scale).tolist(),
            "standard_deviation": (1 / scale).tolist(),
        }
    if family == "vaseq":
        layer = next(layer for layer in trained.layers if hasattr(layer, "standard_deviation"))
        return {"mean": list(layer.mean), "standard_deviation": list(layer.standard_deviation)}
    return {}


def _window_s(family: str) -> float | None:
    if family not in FRONT_END:
        return None
    spec = _spec(FRONT_END[family])
    return float(spec.window_length / spec.sample_rate)


def _spread_rows(rated: Rated) -> NDArray[Any]:
    """Tracks of every corpus, evenly chosen, for calibration and agreement."""
    rows = [np.flatnonzero(rated.table["corpus"].eq(corpus)) for corpus in rated.table["corpus"].unique()]
    return np.concatenate([part[np.unique(np.linspace(0, len(part) - 1, 40).astype(int))] for part in rows])


def _small_inputs(rated: Rated, work: Path, family: str) -> Array:
    if family == "probe":
        salience: Array = np.load(work / "probe" / "salience.npy")[:4].astype(np.float32)
        return salience
    return np.nan_to_num(rated.stack("statistics" if family == "va" else "sequence")[:4])


def _training_record(rated: Rated, work: Path, family: str) -> dict[str, Any]:
    """Which rated tracks a family learned from: ids by corpus, digests, artist and title."""
    known = np.zeros(len(rated.table), bool)
    known[training.rated_rows(rated, family)] = True
    finished = work / family / "final" / "record.json"
    if finished.exists():  # the shipped model may have seen fewer
        keys = pd.MultiIndex.from_frame(rated.table[["corpus", "track_key"]])
        known &= keys.isin([tuple(key) for key in json.loads(finished.read_text())["trained_on"]])
    record = _tracks_record(rated, known) | {"configurations_tried": training.number_tried(work, family)}
    path = work / family / "final" / "recipe.json"
    if path.exists():
        record["recipe"] = json.loads(path.read_text())
    elif (work / family / "record.json").exists():
        how = json.loads((work / family / "record.json").read_text())["how"]
        record["recipe"] = {"recipe": {name: value for name, value in how.items() if name != "frozen"}}
    if family in training.SPECTROGRAMS and record.get("recipe", {}).get("recipe", {}).get("pseudo_weight", 0) > 0:
        others = rated.table["corpus"].drop(training.rated_rows(rated, family))
        record["pseudo_labelled"] = {str(corpus): int(count) for corpus, count in others.value_counts().items()}
    return record


def _tracks_record(rated: Rated, known: NDArray[Any]) -> dict[str, Any]:
    table = rated.table[known]
    tagged = table[table["corpus"].ne("soundtracks")]  # whose tags name one artist and one album for all
    titles = {title_key(artist, title) for artist, title in zip(tagged["artist"], tagged["title"], strict=True)}
    return {
        "ids": {str(corpus): group["track_key"].tolist() for corpus, group in table.groupby("corpus")},
        "sha256": table["sha256"].tolist(),
        "titles": sorted(title for title in titles if title),
    }


def _rating_models(rated: Rated, work: Path, family: str, folder: Path, reference: dict[str, Array]) -> dict[str, Any]:
    """Pack the models of `descriptors` or `best`, an ONNX graph an output."""
    outputs, engines, recipe, known = [], {}, {}, np.zeros(len(rated.table), bool)
    prefix = {"descriptors": "desc", "best": "best"}[family]
    inputs = training.rating_inputs(rated, family)[:: max(len(rated.table) // 8, 1)][:8]
    reference[f"{family}/input"] = inputs
    for target in training.DESCRIPTOR_OUTPUTS:
        model = work / family / target / "model.onnx"
        if not model.exists():
            continue
        _, targets = training.descriptor_targets(rated, target)
        known |= np.isfinite(targets).all(axis=1)
        recipe = json.loads((work / family / target / "record.json").read_text())["how"]
        engines[target] = f"{family}_{target}.onnx"
        shutil.copyfile(model, folder / engines[target])
        outputs.append(_block(target, f"{prefix}_{target}", BEST_LABELS[target], *RATINGS[target]))
        reference[f"{family}/onnx/{target}"] = bundles.run_engine(folder / engines[target], inputs)["ratings"]
    return {
        "architecture": "ridge and RBF support-vector machines on blocks of descriptors, averaged",
        "front_end": "DescriptorSpec",
        "spec": asdict(_spec("DescriptorSpec")),
        "pooling": "whole track",
        "outputs": outputs,
        "engines": engines,
        "training": _tracks_record(rated, known)
        | {"configurations_tried": training.number_tried(work, family), "recipe": {"recipe": recipe}},
    }


def _best_entry(rated: Rated, work: Path, folder: Path, reference: dict[str, Array]) -> dict[str, Any]:
    """Models on descriptors, note features and the tagging network's embedding; the frozen network is packed with them."""
    entry = _rating_models(rated, work, "best", folder, reference)
    network = tagger.load_published()
    bundles.save_network(network, folder / "best.keras", tagger.build)
    network.set_weights([np.asarray(weight, np.float16).astype(np.float32) for weight in network.get_weights()])
    rows = _spread_rows(rated)
    tracks = training.network_windows(rated, "best", rows)
    random = np.random.default_rng(0)
    calibration = [track[random.integers(len(track))] for track in tracks[::2] for _ in range(2)][:CALIBRATION_WINDOWS]
    described = training.rating_inputs(rated, "descriptors")[rows[1::2]]

    def rate(number: int, outputs: dict[str, Array]) -> dict[str, Array]:
        numbers = inference.best_numbers(described[number], outputs)[None].astype(np.float32)
        return {target: bundles.run_engine(folder / name, numbers)["ratings"][0] for target, name in entry["engines"].items()}

    ranges = {target: RATINGS[target][3] - RATINGS[target][2] for target in entry["engines"]}
    derived, record = export.tagger_engine(network, calibration, tracks[1::2], rate, ranges)
    (folder / "best.onnx").write_bytes(derived)
    reference["best/numbers"] = reference.pop("best/input")
    reference["best/input"] = np.stack(calibration[:REFERENCE_WINDOWS])[..., None].astype(np.float32)
    for head, values in network.predict_on_batch(reference["best/input"]).items():
        reference[f"best/keras/{head}"] = np.asarray(values)
    for head, values in bundles.run_engine(folder / "best.onnx", reference["best/input"]).items():
        reference[f"best/onnx/{head}"] = values
    spec = _spec("TaggerMelSpec")
    return entry | {
        "architecture": "musicnn",
        "front_end": "TaggerMelSpec",
        "spec": asdict(spec),
        "window_s": float(spec.window_length / spec.sample_rate),
        "pooling": "mean and standard deviation over windows, then the rating models on the whole track",
        "weights": "best.keras",
        "engine": "best.onnx",
        "engine_agreement": record,
        "notice": tagger.LICENCE,
    }


def out_of_fold(rated: Rated, work: Path, families: Sequence[str]) -> pd.DataFrame:
    """All out-of-fold predictions side by side, a row a rated track; null where no held-out fold has the track."""
    table = rated.table[["corpus", "track_key", "sha256"]].copy()
    table["row"] = np.arange(len(table))
    found: dict[str, Array] = {}
    for family in families:
        for path in sorted((work / family).glob("**/oof.parquet")):
            part = pd.read_parquet(path).drop(columns=["sha256", "fold"])
            columns = [column for column in part.columns if column not in ("corpus", "track_key")]
            values = part.set_index(["corpus", "track_key"])[columns]
            keys = pd.MultiIndex.from_frame(table[["corpus", "track_key"]])
            aligned = values.reindex(keys)
            for column in columns:
                own = aligned[column].to_numpy(np.float32)
                found[column] = np.where(np.isfinite(own), own, found[column]) if column in found else own
    return pd.concat([table, pd.DataFrame(found, index=table.index)], axis=1)


def score(rated: Rated, predictions: pd.DataFrame) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Agreement with human ratings of every output on every corpus, beside the descriptor model on the same tracks."""
    from outputs.metrics import agreement, mean_r

    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for family, blocks in SCORED.items():
        for prefix, target in blocks:
            kind, _, part = target.partition(" ")
            names = [name.removeprefix(f"{kind}_") for name in training.columns_of(kind)]
            if part:
                names = [name for name in names if name.endswith(part)]
            labels = [label for label in names if f"{prefix}_{label}" in predictions]
            if not labels:
                continue
            predicted = predictions[[f"{prefix}_{label}" for label in labels]].to_numpy(float)
            people = rated.table.reindex(columns=[f"{kind}_{label}" for label in labels]).to_numpy(float)
            for corpus in rated.table["corpus"].unique():
                rows = rated.table["corpus"].eq(corpus).to_numpy()
                held = [k for k in range(len(labels)) if np.isfinite(people[rows, k] + predicted[rows, k]).sum() >= 10]
                if not held:
                    continue
                keep = rows & np.isfinite(people[:, held] + predicted[:, held]).all(axis=1)
                kept_labels = [labels[k] for k in held]
                per_label = agreement(people[keep][:, held], predicted[keep][:, held], kept_labels)
                overall = mean_r(people[keep][:, held], predicted[keep][:, held])
                entry: dict[str, Any] = {
                    "tracks": int(keep.sum()),
                    "mean_r": round(float(overall.r), 3),
                    "mean_r_interval": [round(float(overall.r_low), 3), round(float(overall.r_high), 3)],
                    "mean_r2": round(float(per_label["r2"].mean()), 3),
                    "bias": {
                        label: round(float(value), 3)
                        for label, value in zip(kept_labels, (predicted - people)[keep][:, held].mean(axis=0), strict=True)
                    },
                    "r": {str(label): round(float(r), 3) for label, r in per_label["r"].items()},
                }
                baseline = [f"desc_{kind}_{label}" for label in kept_labels]
                if family not in ("descriptors", "crnn") and all(column in predictions for column in baseline):
                    plain = predictions[baseline].to_numpy(float)[keep]
                    if np.isfinite(plain).all():
                        entry["descriptor_baseline_mean_r"] = round(float(mean_r(people[keep][:, held], plain).r), 3)
                found[family, f"{prefix} {part}".strip(), corpus] = entry
    return found


def _set_emotion_thresholds(entry: dict[str, Any], rated: Rated, predictions: pd.DataFrame) -> None:
    """Choose per-emotion thresholds by F1 on out-of-fold predictions; labels by the rule of founding document 003.

    Where fewer than `FEWEST_POSITIVES` held-out tracks have an emotion, F1 decides nothing: the label rule's own share is used.
    """
    from outputs.metrics import best_thresholds

    shares = values_of(rated, "gems")
    known = shares[np.isfinite(shares).all(axis=1)]
    cut = np.where(known.std(axis=0) > 0.2, np.median(known, axis=0), 0.4)
    thresholds, positives = cut.copy(), np.zeros(len(cut), int)
    columns = [f"emotion_{label}" for label in GEMS.labels]
    if set(columns) <= set(predictions.columns):
        probability = predictions[columns].to_numpy(float)
        rows = np.isfinite(shares).all(axis=1) & np.isfinite(probability).all(axis=1)
        positives = (shares[rows] > cut).sum(axis=0)
        chosen = best_thresholds(shares[rows] > cut, probability[rows], THRESHOLD_GRID)
        thresholds = np.where(positives >= FEWEST_POSITIVES, chosen, cut)
    entry["outputs"][0]["thresholds"] = [round(float(value), 3) for value in thresholds]
    entry["label_rule"] = {
        "share_above": [round(float(value), 3) for value in cut],
        "held_out_positives": positives.tolist(),
        "chosen_by": f"F1 on out-of-fold predictions; with fewer than {FEWEST_POSITIVES} positives the share itself",
    }


def _genre_scores(rated: Rated, predictions: pd.DataFrame) -> dict[str, Any]:
    from outputs.metrics import genre_scores

    columns = [f"genre_p_{label}" for label in GENRES.labels]
    rows = predictions[columns[0]].notna().to_numpy() & rated.table["genre"].isin(GENRES.labels).to_numpy()
    found = genre_scores(rated.table.loc[rows, "genre"].tolist(), predictions.loc[rows, columns].to_numpy(float), GENRES.labels)
    return {
        "tracks": int(rows.sum()),
        "accuracy": round(found.accuracy, 3),
        "top_3": round(found.top3, 3),
        "confusion": found.confusion.to_dict(),
    }


def _ceiling(rated: Rated) -> dict[str, float] | None:
    from outputs.metrics import split_half_ceiling

    if rated.listeners is None:
        return None
    return {str(label): round(float(value), 3) for label, value in split_half_ceiling(rated.listeners).items()}
