"""Training every model family on rated corpora: `annotate train`.

One working folder holds everything between the audio and the bundle, and every stage in it is kept, so that a run that was
killed goes on:

    WORK/arrays/            front-end arrays of each file (annotate.training_data)
    WORK/FAMILY/fold2/      checkpoint, history and out-of-fold predictions of one held-out fold
    WORK/FAMILY/final/      the same for the model that saw every rated track, and its weights

Splits are by artist (Emotify, MUSIFEAST) or album (Soundtracks). Cheap families are scored on `FOLDS` grouped folds, networks on
`NETWORK_FOLDS`, of which the first `--folds-run` are trained. A teacher for pseudo-labels is fitted anew for every fold, on the
tracks that the fold trains on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annotate import training_data
from annotate.corpora import read_tags, scan, split_groups
from models.labels import FILM, GEMS, GENRES, MIDLEVEL

Array = NDArray[np.float32]

FOLDS = 10  # of the families that train in seconds
NETWORK_FOLDS = 4  # of the spectrogram networks and the note-sequence network
VA = ("valence_mean", "valence_std", "arousal_mean", "arousal_std")
ORDER = ("descriptors", "va", "joint", "midlevel", "crnn", "emotion", "vaseq", "probe")
DESCRIPTOR_OUTPUTS = ("midlevel", "film", "gems", "va")


@dataclass(frozen=True)
class Rated:
    """Rated tracks of all corpora, one row each, and where their arrays lie."""

    table: pd.DataFrame
    arrays: Path
    listeners: pd.DataFrame | None

    def stack(self, name: str) -> Array:
        """One small array of every track, stacked: (track, …)."""
        return np.stack([training_data.load(self.arrays, digest, name) for digest in self.table["sha256"]]).astype(np.float32)

    def open(self, name: str, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """One large array of each of some tracks, by memory map."""
        return [training_data.load(self.arrays, digest, name) for digest in self.table["sha256"].iloc[rows]]


def gather(corpora: Sequence[Path], work: Path, *, word_norms: Path | None, jobs: int) -> Rated:
    """Scan corpora, compute the arrays of their tracks, and line up the ratings of each track.

    Columns of the table: corpus, track_key, genre, artist, title, sha256, split_group, and the targets: `midlevel_<7>` (1-10),
    `film_<8>` (1-9), `gems_<9>` (share), `va_<4>` (1-9), `vad_<3>` (1-9, word norms), NaN where a track has none.
    """
    tables, listeners = [], []
    for path in corpora:
        corpus = scan([path])
        tags = {track.track: read_tags(track.path) for track in corpus.tracks}
        groups = split_groups(corpus, tags)
        if groups.isna().any():
            unknown = list(groups.index[groups.isna()][:5])
            print(
                f"{corpus.name}: {int(groups.isna().sum())} tracks have no artist or album ({', '.join(unknown)}, …): "
                "each is a group of its own"
            )
            groups = groups.where(groups.notna(), pd.Series(groups.index, groups.index))
        digests = training_data.extract_all([track.path for track in corpus.tracks], work / "arrays", jobs=jobs)
        table = pd.DataFrame(
            {
                "corpus": [track.corpus for track in corpus.tracks],
                "track_key": [track.track_key for track in corpus.tracks],
                "genre": [track.group for track in corpus.tracks],
                "artist": [track.artist or tags[track.track].artist for track in corpus.tracks],
                "title": [track.title or tags[track.track].title for track in corpus.tracks],
                "sha256": digests,
                "split_group": [f"{corpus.name}:{group}" for group in groups],
            }
        )
        tables.append(pd.concat([table, _targets(corpus.name, table, corpus.ratings, word_norms)], axis=1))
        if corpus.listeners is not None:
            listeners.append(corpus.listeners)
    return Rated(
        pd.concat(tables, ignore_index=True),
        work / "arrays",
        pd.concat(listeners, ignore_index=True) if listeners else None,
    )


def _targets(corpus: str, table: pd.DataFrame, ratings: pd.DataFrame, word_norms: Path | None) -> pd.DataFrame:
    rated = ratings.reindex(table["track_key"]).reset_index(drop=True)
    columns: dict[str, Any] = {}

    def take(target: str, rating: str, slope: float = 1.0, offset: float = 0.0) -> None:
        if f"rated_{rating}" in rated:
            columns[target] = rated[f"rated_{rating}"].astype(float) * slope + offset

    for label in MIDLEVEL.labels:
        take(f"midlevel_{label}", label)
    if corpus == "soundtracks":
        for label in FILM.labels:
            take(f"film_{label}", label)
        take("va_valence_mean", "valence")
        take("va_arousal_mean", "energy")
    elif corpus == "musifeast":  # 1-5 to 1-9
        for label in ("valence", "arousal"):
            take(f"va_{label}_mean", label, 2.0, -1.0)
            take(f"va_{label}_std", f"{label}_std", 2.0)
    elif corpus in ("deam", "muse"):
        for label in ("valence", "arousal"):
            take(f"va_{label}_mean", label)
            take(f"va_{label}_std", f"{label}_std")
    if corpus == "emotify":
        for label in GEMS.labels:
            take(f"gems_{label}", label)
        if word_norms is not None and columns:
            shares = np.stack([columns[f"gems_{label}"] for label in GEMS.labels], axis=1)
            weights = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-9)
            for number, label in enumerate(("valence", "arousal", "dominance")):
                columns[f"vad_{label}"] = weights @ read_word_norms(word_norms)[:, number]
    elif corpus == "muse":
        for label in ("valence", "arousal", "dominance"):
            take(f"vad_{label}", label)
    return pd.DataFrame(columns, index=table.index)


def read_word_norms(path: Path) -> Array:
    """Valence, arousal and dominance (1-9) of the nine GEMS words, shape (9, 3), from a table of Warriner's norms."""
    norms = pd.read_csv(path).rename(columns=str.strip)
    wanted = ["Word", "V.Mean.Sum", "A.Mean.Sum", "D.Mean.Sum"]
    lacking = [column for column in wanted if column not in norms]
    if lacking:
        raise ValueError(f"{path} lacks the columns {', '.join(lacking)} of Warriner's norms")
    norms = norms.set_index("Word")[wanted[1:]]
    words = [{"solemnity": "solemn", "calmness": "calm", "joyful_activation": "joyful"}.get(w, w) for w in GEMS.labels]
    missing = [word for word in words if word not in norms.index]
    if missing:
        raise ValueError(f"{path} has no norms for {', '.join(missing)}")
    return norms.loc[words].to_numpy(np.float32)


def columns_of(target: str) -> list[str]:
    """Target columns of `Rated.table`, in the order of a model's output."""
    labels = {
        "midlevel": MIDLEVEL.labels,
        "film": FILM.labels,
        "gems": GEMS.labels,
        "va": VA,
        "vad": ("valence", "arousal", "dominance"),
    }[target]
    return [f"{target}_{label}" for label in labels]


def values_of(rated: Rated, target: str) -> Array:
    """Targets, shape (track, label), NaN where a track or a corpus has none."""
    return rated.table.reindex(columns=columns_of(target)).to_numpy(np.float32)


TARGET_OF = {
    "midlevel": "midlevel",
    "joint": "film",
    "emotion": "gems",
    "probe": "gems",
    "crnn": "vad",
    "va": "va",
    "vaseq": "va",
}


def check_targets(rated: Rated, families: Sequence[str], work: Path) -> None:
    """Refuse, before hours of training, families that the corpora have no ratings for.

    Raises
    ------
    ValueError
        Naming the family and what it lacks.
    """
    for family in families:
        targets = [TARGET_OF[family]] if family in TARGET_OF else list(DESCRIPTOR_OUTPUTS)
        if not any(np.isfinite(values_of(rated, target)[:, [0, 2]]).all(axis=1).any() for target in targets):
            hint = "; Emotify needs --word-norms, a table of Warriner's norms" if family == "crnn" else ""
            columns = ", ".join(columns_of(targets[0]))
            raise ValueError(
                f"no track of {', '.join(rated.table['corpus'].unique())} has what {family} learns ({columns}){hint}"
            )
    if "probe" in families and "midlevel" not in families and not (work / "midlevel" / "final" / "record.json").exists():
        raise ValueError("the probe reads the mid-level network: train midlevel as well")


def fold_of(rated: Rated, rows: NDArray[Any], folds: int) -> NDArray[Any]:
    """Fold number of each of `rows`: no artist or album on two sides, each corpus and genre spread evenly.

    Raises
    ------
    ValueError
        With fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    table = rated.table.iloc[rows]
    groups = table["split_group"].to_numpy()
    if len(set(groups)) < folds:
        raise ValueError(f"{len(set(groups))} artists or albums cannot be split into {folds} folds")
    strata = table["corpus"] + ":" + table["genre"].fillna("").where(table["corpus"].eq("emotify"), "")
    numbers = np.full(len(rows), -1)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for fold, (_, test) in enumerate(splitter.split(np.zeros(len(rows)), strata, groups)):
        numbers[test] = fold
    for fold in range(folds):
        leaked = set(groups[numbers == fold]) & set(groups[numbers != fold])
        if leaked:
            raise AssertionError(f"fold {fold} shares {sorted(leaked)[:3]} with its training part")
    return numbers


def _save_predictions(path: Path, rated: Rated, rows: NDArray[Any], fold: NDArray[Any] | int, columns: dict[str, Any]) -> None:
    table = rated.table.iloc[rows][["corpus", "track_key", "sha256"]].reset_index(drop=True)
    table["fold"] = fold
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat([table, pd.DataFrame(columns)], axis=1).to_parquet(path, index=False)


def _named(columns: Sequence[str], values: Array) -> dict[str, Any]:
    return {column: values[:, number] for number, column in enumerate(columns)}


def stage_done(place: Path, rated: Rated, rows: NDArray[Any], targets: Array) -> bool:
    """Whether a stage has been finished on just these tracks and ratings.

    Raises
    ------
    ValueError
        If it was finished on others.
    """
    path = place / "record.json"
    if not path.exists():
        return False
    if json.loads(path.read_text())["tracks_sha256"] != tracks_digest(rated, rows, targets):
        raise ValueError(f"{place} was trained on other tracks or ratings: choose another --work folder, or remove it")
    return True


def tracks_digest(rated: Rated, rows: NDArray[Any], targets: Array) -> str:
    """Digest of the tracks, their ratings and the front ends that a stage learns from."""
    digest = hashlib.sha256(training_data.specs_digest().encode())
    digest.update("\n".join(rated.table["sha256"].iloc[rows]).encode())
    digest.update(np.ascontiguousarray(targets[rows]).tobytes())
    return digest.hexdigest()


def finish_stage(place: Path, rated: Rated, rows: NDArray[Any], targets: Array) -> None:
    """Say that a stage is finished: the last thing that is written, atomically."""
    keys = rated.table.iloc[rows][["corpus", "track_key"]]
    record = {"tracks_sha256": tracks_digest(rated, rows, targets), "trained_on": keys.to_numpy().tolist()}
    temporary = place / "record.json.tmp"
    temporary.write_text(json.dumps(record))
    os.replace(temporary, place / "record.json")


# --- the families -------------------------------------------------------------------------------------------------------------


def descriptor_inputs(rated: Rated) -> Array:
    """Descriptors and note features side by side, shape (track, 589)."""
    return np.concatenate([rated.stack("descriptors"), rated.stack("features")], axis=1)


def descriptor_targets(rated: Rated, target: str) -> tuple[list[str], Array]:
    """Columns and targets that the descriptor model learns for one output."""
    columns = ["va_valence_mean", "va_arousal_mean"] if target == "va" else columns_of(target)
    return columns, rated.table.reindex(columns=columns).to_numpy(np.float32)


def train_descriptors(rated: Rated, work: Path, *, jobs: int) -> None:
    """Descriptor models of the four outputs: out-of-fold predictions and ONNX files."""
    from models import descriptors

    recipe = descriptors.DescriptorRecipe(jobs=jobs)
    inputs = descriptor_inputs(rated)
    for target in DESCRIPTOR_OUTPUTS:
        columns, targets = descriptor_targets(rated, target)
        place = work / "descriptors" / target
        rows = np.flatnonzero(np.isfinite(targets).all(axis=1))
        if not len(rows) or stage_done(place, rated, rows, targets):
            continue
        numbers = fold_of(rated, rows, FOLDS)
        predicted = np.zeros((len(rows), len(columns)), np.float32)
        for fold in range(FOLDS):
            test = numbers == fold
            model = descriptors.fit(inputs[rows[~test]], targets[rows[~test]], recipe)
            predicted[test] = model.predict(inputs[rows[test]])
        _save_predictions(place / "oof.parquet", rated, rows, numbers, _named([f"desc_{c}" for c in columns], predicted))
        final = descriptors.fit(inputs[rows], targets[rows], recipe)
        (place / "model.onnx").write_bytes(descriptors.to_onnx(final))
        finish_stage(place, rated, rows, targets)
        print(f"descriptors: {target} done, {len(rows)} tracks", flush=True)


def _teacher(rated: Rated, target: str, rows: NDArray[Any], jobs: int) -> Array:
    """Predictions of a descriptor model for every track, fitted on `rows` only."""
    from models import descriptors

    inputs = descriptor_inputs(rated)
    model = descriptors.fit(inputs[rows], values_of(rated, target)[rows], descriptors.DescriptorRecipe(jobs=jobs))
    return model.predict(inputs)


def train_network(rated: Rated, work: Path, family: str, *, folds_run: int, jobs: int) -> None:
    """Train one spectrogram network: the first `folds_run` held-out folds, and the final model on every rated track."""
    from models import networks

    recipe = {
        "midlevel": networks.MIDLEVEL_RECIPE,
        "joint": networks.JOINT_RECIPE,
        "emotion": networks.EMOTION_RECIPE,
        "crnn": networks.CRNN_RECIPE,
    }[family]
    main_target = TARGET_OF[family]
    targets = values_of(rated, main_target)
    rows = np.flatnonzero(np.isfinite(targets).all(axis=1))
    if not len(rows):
        raise ValueError(f"no track has the ratings that {family} learns ({', '.join(columns_of(main_target))})")
    numbers = fold_of(rated, rows, NETWORK_FOLDS)
    for fold in [*range(min(folds_run, 1)), None, *range(1, folds_run)]:
        place = work / family / ("final" if fold is None else f"fold{fold}")
        train = rows if fold is None else rows[numbers != fold]
        if stage_done(place, rated, train, targets):
            continue
        model = _train_network(rated, family, train, recipe, place, jobs)
        if fold is not None:
            test = rows[numbers == fold]
            _save_predictions(place / "oof.parquet", rated, test, fold, predict_network(rated, family, model, test))
        model.save(place / "model.keras")
        finish_stage(place, rated, train, targets)


def _train_network(rated: Rated, family: str, train: NDArray[Any], recipe: Any, place: Path, jobs: int) -> Any:
    from models import networks

    if family in ("midlevel", "joint"):
        # human ratings of the training part, and every other corpus by a teacher that saw that part only
        human = np.zeros(len(rated.table), bool)
        human[train] = True
        others = ~np.isfinite(values_of(rated, "midlevel" if family == "midlevel" else "film")).all(axis=1)
        rows = np.flatnonzero(human | others)
        weights = np.where(human[rows], 1.0, recipe.pseudo_weight).astype(np.float32)
        targets = {}
        for target in ("midlevel", "film"):
            known = values_of(rated, target)
            targets[target] = np.where(human[:, None], known, _teacher(rated, target, train, jobs))[rows]
        if family == "joint":
            tracks = networks.Tracks(rated.open("log_frequency", rows), targets, weights)
            return networks.train_joint(tracks, recipe, place)
        ratings = targets["midlevel"]
        salience = np.where(human[rows][:, None], networks.salience_targets(ratings), np.nan).astype(np.float32)
        tracks = networks.Tracks(rated.open("stft", rows), {"rating": ratings, "salience": salience}, weights)
        return networks.train_midlevel(tracks, recipe, place)
    weights = np.ones(len(train), np.float32)
    if family == "emotion":
        tracks = networks.Tracks(rated.open("segments", train), {"emotion": values_of(rated, "gems")[train]}, weights)
        return networks.train_emotion(tracks, recipe, place)
    targets = {
        "reg_output": (values_of(rated, "vad")[train] - 1) / 8,
        "class_output": networks.genre_targets(rated.table["genre"].iloc[train].tolist()),
    }
    return networks.train_crnn(networks.Tracks(rated.open("mel", train), targets, weights), recipe, place)


def network_windows(rated: Rated, family: str, rows: NDArray[Any]) -> list[list[Array]]:
    """Windows of each track as inference sees them, from the stored arrays."""
    from models import networks

    if family == "emotion":
        return [list(segments) for segments in rated.open("segments", rows)]
    if family == "crnn":
        return [
            [np.asarray(chunk) for chunk in networks.PaddedChunks(chunks[:: training_data.CHUNK_OVERLAP])]
            for chunks in rated.open("mel", rows)
        ]
    lengths = [int(length) for length in rated.open("length", rows)]
    cut, name = {
        "midlevel": (networks.stft_track_windows, "stft"),
        "joint": (networks.log_frequency_track_windows, "log_frequency"),
    }[family]
    return [list(cut(array, length)) for array, length in zip(rated.open(name, rows), lengths, strict=True)]


def predict_network(rated: Rated, family: str, model: Any, rows: NDArray[Any]) -> dict[str, Any]:
    """Track-level predictions in the table's units, by column name."""
    from models import networks

    heads: dict[str, list[Array]] = {}
    for start in range(0, len(rows), 32):  # a few tracks at a time: windows are large
        part = networks.predict_tracks(model, network_windows(rated, family, rows[start : start + 32]))
        for head, values in part.items():
            heads.setdefault(head, []).append(values)
    outputs = {head: np.concatenate(parts) for head, parts in heads.items()}
    if family == "midlevel":
        return _named([f"midlevel_{label}" for label in MIDLEVEL.labels], outputs["rating"] * 10) | _named(
            [f"salient_{label}" for label in MIDLEVEL.labels], outputs["salience"]
        )
    if family == "joint":
        return _named([f"film_{label}" for label in FILM.labels], outputs["film"] * 10) | _named(
            [f"joint_{label}" for label in MIDLEVEL.labels], outputs["midlevel"] * 10
        )
    if family == "emotion":
        return _named([f"emotion_{label}" for label in GEMS.labels], outputs["emotion"])
    return _named([f"crnn_{label}" for label in ("valence", "arousal", "dominance")], outputs["reg_output"] * 8 + 1) | _named(
        [f"genre_p_{label}" for label in GENRES.labels], outputs["class_output"]
    )


def train_notes(rated: Rated, work: Path, family: str, *, folds_run: int) -> None:
    """Train `va` (note statistics) or `vaseq` (note sequence): grouped folds, and the final model."""
    from models import networks

    recipe = {"va": networks.VA_RECIPE, "vaseq": networks.VASEQ_RECIPE}[family]
    targets = values_of(rated, "va")
    rows = np.flatnonzero(np.isfinite(targets[:, [0, 2]]).all(axis=1))
    if not len(rows):
        raise ValueError(f"no track has valence and arousal ratings, {family} has nothing to learn from")
    inputs = rated.stack({"va": "statistics", "vaseq": "sequence"}[family])
    train = {"va": networks.train_va, "vaseq": networks.train_vaseq}[family]
    folds = FOLDS if family == "va" else NETWORK_FOLDS
    numbers = fold_of(rated, rows, folds)
    for fold in [*range(folds if family == "va" else folds_run), None]:
        place = work / family / ("final" if fold is None else f"fold{fold}")
        kept = rows if fold is None else rows[numbers != fold]
        if stage_done(place, rated, kept, targets):
            continue
        model = train(inputs[kept], targets[kept], recipe, place)
        if fold is not None:
            test = rows[numbers == fold]
            predicted = model.predict(np.nan_to_num(inputs[test]), verbose=0)["va"]
            _save_predictions(place / "oof.parquet", rated, test, fold, _named([f"{family}_{c}" for c in VA], predicted))
        model.save(place / "model.keras")
        finish_stage(place, rated, kept, targets)


def train_probe(rated: Rated, work: Path) -> None:
    """Fit the probe on the frozen final mid-level network's salience: grouped folds, and the final map."""
    import keras

    from models import networks

    place = work / "probe"
    rows = np.flatnonzero(np.isfinite(values_of(rated, "gems")).all(axis=1))
    if not len(rows):
        raise ValueError("no track has GEMS ratings, the probe has nothing to learn from")
    path = work / "midlevel" / "final" / "model.keras"
    if not path.exists():
        raise ValueError("the probe reads the mid-level network: train midlevel first")
    if stage_done(place, rated, rows, values_of(rated, "gems")):
        return
    salience_file = place / "salience.npy"
    place.mkdir(parents=True, exist_ok=True)
    if not salience_file.exists() or salience_file.stat().st_mtime < path.stat().st_mtime:
        with networks.policy("mixed_bfloat16"):
            from models import midlevel

            network = midlevel.build()
        network.set_weights(keras.saving.load_model(path, compile=False).get_weights())
        columns = predict_network(rated, "midlevel", network, rows)
        temporary = place / "salience.tmp.npy"
        np.save(temporary, np.stack([columns[f"salient_{label}"] for label in MIDLEVEL.labels], axis=1))
        os.replace(temporary, salience_file)
    salience, shares = np.load(salience_file), values_of(rated, "gems")[rows]
    numbers = fold_of(rated, rows, FOLDS)
    predicted = np.zeros_like(shares)
    for fold in range(FOLDS):
        test = numbers == fold
        predicted[test] = networks.fit_probe(salience[~test], shares[~test]).predict(salience[test], verbose=0)["gems"]
    _save_predictions(place / "oof.parquet", rated, rows, numbers, _named(columns_of("gems"), predicted))
    (place / "final").mkdir(exist_ok=True)
    networks.fit_probe(salience, shares).save(place / "final" / "model.keras")
    finish_stage(place, rated, rows, values_of(rated, "gems"))


def train(rated: Rated, work: Path, families: Sequence[str], *, folds_run: int, jobs: int) -> None:
    """Train some families, in an order in which each finds what it builds on."""
    for family in (family for family in ORDER if family in families):
        print(f"training {family}", flush=True)
        if family == "descriptors":
            train_descriptors(rated, work, jobs=jobs)
        elif family in ("va", "vaseq"):
            train_notes(rated, work, family, folds_run=folds_run)
        elif family == "probe":
            train_probe(rated, work)
        else:
            train_network(rated, work, family, folds_run=folds_run, jobs=jobs)
