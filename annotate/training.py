"""Training every model family on rated corpora: `annotate train`.

One working folder holds everything between the audio and the bundle, and every stage in it is kept, so that a run that was
killed goes on:

    WORK/arrays/            front-end arrays of each file (annotate.training_data)
    WORK/FAMILY/fold2/      checkpoint, history and out-of-fold predictions of one held-out fold
    WORK/FAMILY/final/      the same for the model that saw every rated track, and its weights
    WORK/tried.json         every recipe that was tried, a family each

Splits are by artist (Emotify, MUSIFEAST) or album (Soundtracks), or published ones. Cheap families are scored on `FOLDS` grouped
folds, networks on `NETWORK_FOLDS`, of which the first `--folds-run` are trained. A teacher for pseudo-labels is fitted anew for
every fold, on the tracks that the fold trains on; a bundle as the teacher must not have seen a group of the held-out fold.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annotate import training_data
from annotate.console import log
from annotate.corpora import read_tags, scan, split_groups
from annotate.training_labels import (
    GROUPS,
    SCALES,
    LabelFile,
    Split,
    check_labels,
    columns_of,
    match_ids,
    parts_of,
    read_label_file,
    some,
)
from models import tagger
from models.labels import FILM, GEMS, GENRES, MIDLEVEL

__all__ = ["columns_of"]

Array = NDArray[np.float32]
Rows = NDArray[np.intp]

FOLDS = 10  # of the families that train in seconds
NETWORK_FOLDS = 4  # of the spectrogram networks and the note-sequence networks
CHEAP = ("descriptors", "best", "va", "probe")
ORDER = ("descriptors", "best", "va", "joint", "midlevel", "a2e", "a2mid2e", "crnn", "emotion", "vaseq", "vatransfer", "probe")
# networks that learn from the descriptor model, or `best`, beside people unless told otherwise
SPECTROGRAMS = ("midlevel", "joint", "a2e", "a2mid2e", "emotion", "crnn")
DESCRIPTOR_OUTPUTS = ("midlevel", "film", "gems", "va")
RATING_PREFIX = {"descriptors": "desc", "best": "best"}  # families that rate a track by the numbers that describe it whole
# blocks of those numbers, by the names of the recipe, and the arrays that hold them
RATING_BLOCKS = {
    "descriptors": {"descriptors": "descriptors", "notes": "features"},
    "best": {"descriptors": "descriptors", "notes": "features", "embedding": "embedding", "pooled": "pooled"},
}
# of corpora whose ratings stand in for valence and arousal (Soundtracks asks for energy) beside corpora that ask for them
PROXIES = ("soundtracks",)
PROXY_WEIGHT = 0.2
TARGET_OF = {
    "midlevel": "midlevel",
    "joint": "film",
    "a2e": "film",
    "a2mid2e": "film",
    "emotion": "gems",
    "probe": "gems",
    "crnn": "vad",
    "va": "va",
    "vaseq": "va",
    "vatransfer": "va",
}
ALSO_LEARNED = {"joint": "midlevel", "a2mid2e": "midlevel"}  # a second target of a family
VALIDATION_SHARE_OF_PROBE = 0.2  # of a fold's training part, on which the probe's thresholds are chosen


@dataclass(frozen=True)
class Rated:
    """Rated tracks of all corpora, one row each, and where their arrays lie."""

    table: pd.DataFrame
    arrays: Path
    listeners: pd.DataFrame | None
    messages: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by corpus: what its readers and splits said

    def stack(self, name: str) -> Array:
        """One small array of every track, stacked: (track, …)."""
        return np.stack([training_data.load(self.arrays, digest, name) for digest in self.table["sha256"]]).astype(np.float32)

    def open(self, name: str, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """One large array of each of some tracks, by memory map."""
        return [training_data.load(self.arrays, digest, name) for digest in self.table["sha256"].iloc[rows]]


@dataclass(frozen=True)
class Plan:
    """How families are trained and held out."""

    recipes: Mapping[str, Any] = field(default_factory=dict)  # by family; a missing one is that of models.networks.RECIPES
    folds: int | None = None  # None: FOLDS of a cheap family, NETWORK_FOLDS of a network
    folds_run: int = 1  # of a network; cheap families run all of them
    final: bool = True  # whether to train on all rated tracks, too
    teacher: str | None = None  # "BUNDLE:MODEL", "descriptors" (fitted for each fold), "none"; None: as the family does by itself
    frozen: str | None = None  # bundle whose mid-level network the probe reads; None: the one trained here
    split: Split | None = None  # a published split instead of folds
    jobs: int = 2

    def recipe(self, family: str) -> Any:
        """Recipe of one family."""
        from models.networks import RECIPES

        return self.recipes.get(family, RECIPES[family])


@dataclass(frozen=True)
class Part:
    """One model to train: its name, and the rows that it learns from, is stopped by, and is scored on."""

    name: str
    fold: int | None  # None: the final model, scored on nothing
    learn: Rows
    validation: Rows
    test: Rows

    @property
    def train(self) -> Rows:
        """All rows that the model knows of, sorted."""
        return np.sort(np.concatenate([self.learn, self.validation]))


def gather(
    corpora: Sequence[Path],
    work: Path,
    *,
    word_norms: Path | None = None,
    jobs: int = 2,
    labels: LabelFile | None = None,
    tagger_engine: Path | None = None,
) -> Rated:
    """Scan corpora, compute the arrays of their tracks, and line up the ratings of each track.

    Columns of the table: corpus, track, track_key, path, genre, artist, title, sha256, split_group, grouped (whether the group is
    an artist or album, not the track itself), and the targets: `midlevel_<7>` (1-10), `film_<8>` (1-9), `gems_<9>` (share),
    `va_<4>` (1-9), `vad_<3>` (1-9, word norms), NaN where a track has none. Labels of a file replace those of the corpora.
    With the engine of the tagging network (`training_data.tagger_engine`), its outputs are stored as well.
    """
    tables, listeners = [], []
    messages: dict[str, tuple[str, ...]] = {}
    for path in corpora:
        corpus = scan([path])
        tags = {track.track: read_tags(track.path) for track in corpus.tracks}
        groups = split_groups(corpus, tags)
        said = list(corpus.messages)
        if corpus.rating_without_audio:
            said.append(f"{len(corpus.rating_without_audio)} rated ids have no audio: {some(corpus.rating_without_audio)}")
        if corpus.audio_without_rating:
            said.append(f"{len(corpus.audio_without_rating)} tracks have no rating: {some(corpus.audio_without_rating)}")
        unknown = groups.isna()
        if unknown.any():
            said.append(
                f"{int(unknown.sum())} tracks have no artist or album ({some(groups.index[unknown])}): each is a group of its "
                "own, so tracks of one artist may stand on both sides of a split"
            )
            groups = groups.where(~unknown, pd.Series(groups.index, groups.index))
        for line in said:
            log.info("%s: %s", corpus.name, line)
        messages[corpus.name] = (*messages.get(corpus.name, ()), *said)
        paths = [track.path for track in corpus.tracks]
        digests = training_data.extract_all(paths, work / "arrays", jobs=jobs, tagger_engine=tagger_engine)
        table = pd.DataFrame(
            {
                "corpus": [track.corpus for track in corpus.tracks],
                "track": [track.track for track in corpus.tracks],
                "track_key": [track.track_key for track in corpus.tracks],
                "path": [str(track.path) for track in corpus.tracks],
                "genre": [track.group for track in corpus.tracks],
                "artist": [track.artist or tags[track.track].artist for track in corpus.tracks],
                "title": [track.title or tags[track.track].title for track in corpus.tracks],
                "sha256": digests,
                "split_group": [f"{corpus.name}:{group}" for group in groups],
                "grouped": ~unknown.to_numpy(),
            }
        )
        tables.append(pd.concat([table, _targets(corpus.name, table, corpus.ratings, word_norms)], axis=1))
        if corpus.listeners is not None:
            listeners.append(corpus.listeners)
    table = pd.concat(tables, ignore_index=True)
    _refuse_twice(table)
    if labels is not None:
        table = _with_labels(table, labels)
    table["split_group"] = _joined_groups(table)
    return Rated(
        table,
        work / "arrays",
        pd.concat(listeners, ignore_index=True) if listeners else None,
        messages,
    )


def _refuse_twice(table: pd.DataFrame) -> None:
    """Refuse ids that several files have: which of them was rated nobody knows, and copies could stand on both sides of a split.

    Raises
    ------
    ValueError
        Naming the ids and the files.
    """
    twice = table[table.duplicated(["corpus", "track_key"], keep=False)]
    if len(twice):
        ids = [f"{corpus} {key} ({', '.join(paths)})" for (corpus, key), paths in twice.groupby(["corpus", "track_key"])["path"]]
        raise ValueError(
            f"{len(ids)} ids belong to more than one file: {some(ids, 3)}; an id must be that of one file: name each corpus "
            "once, and leave out copies"
        )


def _with_labels(table: pd.DataFrame, file: LabelFile) -> pd.DataFrame:
    labels = read_label_file(file)
    rows = match_ids(list(labels.index), table["track_key"].astype(str).tolist(), table["track"].tolist(), str(file.path))
    missing = rows.index[rows < 0]
    if len(missing):
        log.warning("%s: %d of %d ids belong to no track: %s", file.path, len(missing), len(rows), some(missing))
    table = table.copy()
    held = labels[(rows >= 0).to_numpy()]
    at = rows[rows >= 0].to_numpy()
    targets = [str(column) for column in labels if column not in GROUPS]
    replaced = {column.partition("_")[0] for column in targets}
    table = table.drop(columns=[c for target in replaced for c in columns_of(target) if c in table])
    for column in targets:
        values = np.full(len(table), np.nan)
        values[at] = held[column].to_numpy(float)
        table[column] = values
    unlabelled = np.setdiff1d(np.arange(len(table)), at)
    if len(unlabelled):
        log.info("%s: %d tracks have no label in it: %s", file.path, len(unlabelled), some(table["track_key"].iloc[unlabelled]))
    if "genre" in held:
        table.loc[table.index[at], "genre"] = held["genre"].to_numpy()
    for name in ("album", "artist"):
        if name in held:
            known = held[name].notna().to_numpy()
            groups = [f"labels:{' '.join(str(text).split()).casefold()}" for text in held[name][known]]
            table.loc[table.index[at[known]], "split_group"] = groups
            table.loc[table.index[at[known]], "grouped"] = True
    return table


def _joined_groups(table: pd.DataFrame) -> list[str]:
    """Groups, with those that share the bytes of a file made one."""
    leader = {group: group for group in table["split_group"]}

    def find(group: str) -> str:
        while leader[group] != group:
            group = leader[group]
        return group

    for _, groups in table.groupby("sha256")["split_group"]:
        first = find(groups.iloc[0])
        for group in groups.iloc[1:]:
            leader[find(group)] = first
    return [find(group) for group in table["split_group"]]


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
    elif corpus == "deam":
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


def values_of(rated: Rated, target: str) -> Array:
    """Targets, shape (track, label), NaN where a track or a corpus has none."""
    return rated.table.reindex(columns=columns_of(target)).to_numpy(np.float32)


def targets_of(family: str) -> list[str]:
    """Targets that a network learns, the main one first."""
    return [TARGET_OF[family], *([ALSO_LEARNED[family]] if family in ALSO_LEARNED else [])]


def rated_rows(rated: Rated, family: str) -> Rows:
    """Rows of the tracks that a family can learn from: those with all the human ratings that it needs."""
    target = TARGET_OF[family]
    values = values_of(rated, target)
    known = np.isfinite(values[:, [0, 2]] if target == "va" else values).all(axis=1)
    if family in ALSO_LEARNED:
        known &= np.isfinite(values_of(rated, ALSO_LEARNED[family])).all(axis=1)
    return np.flatnonzero(known)


def check_targets(rated: Rated, families: Sequence[str], work: Path, plan: Plan = Plan()) -> None:
    """Refuse, before hours of training, what cannot be learned from these corpora.

    Raises
    ------
    ValueError
        Naming the family and what it lacks: ratings, a label that varies, ratings in range, groups for the folds, classes.
    """
    for family in families:
        targets = [TARGET_OF[family]] if family in TARGET_OF else list(DESCRIPTOR_OUTPUTS)
        if not any(np.isfinite(values_of(rated, target)[:, [0, 2]]).all(axis=1).any() for target in targets):
            hint = "; Emotify needs --word-norms, a table of Warriner's norms" if family == "crnn" else ""
            columns = ", ".join(columns_of(targets[0]))
            raise ValueError(
                f"no track of {', '.join(rated.table['corpus'].unique())} has what {family} learns ({columns}){hint}"
            )
        if family in RATING_PREFIX:
            for target in DESCRIPTOR_OUTPUTS:
                columns_held, values = descriptor_targets(rated, target)
                rows = np.flatnonzero(np.isfinite(values).all(axis=1))
                check_labels(rated.table, columns_held, family, rows.tolist())
                _say_left_out(rated, f"{family}, {target}", rows, values)
                if len(rows):
                    _check_folds(rated, family, rows, plan)
            continue
        rows = rated_rows(rated, family)
        if not len(rows):
            needs = f"{TARGET_OF[family]} and {ALSO_LEARNED[family]}" if family in ALSO_LEARNED else TARGET_OF[family]
            raise ValueError(f"no track has every rating that {family} learns ({needs})")
        for target in targets_of(family):
            check_labels(rated.table, columns_of(target), family, rows.tolist())
        if family == "crnn":
            _check_genres(rated, rows)
        _say_left_out(rated, family, rows, values_of(rated, TARGET_OF[family]))
        _check_folds(rated, family, rows, plan)
    has_midlevel = "midlevel" in families or plan.frozen is not None or (work / "midlevel" / "final" / "record.json").exists()
    if "probe" in families and not has_midlevel:
        raise ValueError(
            "the probe reads the mid-level network: train midlevel as well, or name with --frozen a bundle that has one"
        )


def _check_genres(rated: Rated, rows: Rows) -> None:
    held = rated.table["genre"].iloc[rows].dropna()
    genres = [genre for genre in held.unique() if genre in GENRES.labels]
    if len(genres) == 1:
        raise ValueError(f"crnn learns genres, and all tracks are {genres[0]}: one class only")
    if not genres:
        log.warning(
            "crnn: no track is of a genre that it tells (%s)%s: it learns valence, arousal and dominance alone",
            ", ".join(GENRES.labels),
            f"; these are {some(held.unique())}" if len(held) else "",
        )


def _say_left_out(rated: Rated, what: str, rows: Rows, values: Array) -> None:
    """Name the tracks that have some of the ratings but not all, and so are not learned from."""
    left_out = np.setdiff1d(np.flatnonzero(np.isfinite(values).any(axis=1)), rows)
    if len(left_out):
        keys = rated.table["track_key"].iloc[left_out]
        log.warning("%s: %d tracks lack some of its ratings and are left out: %s", what, len(left_out), some(keys))


def _check_folds(rated: Rated, family: str, rows: Rows, plan: Plan) -> None:
    if plan.split is None:
        fold_of(rated, rows, plan.folds or (FOLDS if family in CHEAP else NETWORK_FOLDS))


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
        raise ValueError(
            f"{len(set(groups))} artists or albums cannot be split into {folds} folds ({some(sorted(set(groups)))}): "
            "ask for fewer folds, or give more music"
        )
    strata = table["corpus"] + ":" + table["genre"].fillna("").where(table["corpus"].eq("emotify"), "")
    counts = strata.map(strata.value_counts())
    strata = strata.where(counts >= folds, "rare")
    if (strata == "rare").sum() < folds:
        strata = strata.replace("rare", strata.mode().iloc[0])
    if strata.nunique() == 1 or strata.value_counts().min() < folds:
        strata = pd.Series("all", index=strata.index)
    numbers = np.full(len(rows), -1)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
    for fold, (_, test) in enumerate(splitter.split(np.zeros(len(rows)), strata, groups)):
        numbers[test] = fold
    for fold in range(folds):
        _check_disjoint(f"fold {fold}", groups[numbers == fold], groups[numbers != fold])
    return numbers


def _check_disjoint(name: str, ours: Sequence[str] | NDArray[Any], theirs: Sequence[str] | NDArray[Any]) -> None:
    shared = set(ours) & set(theirs)
    if shared:
        raise AssertionError(f"{name} shares {some(sorted(shared), 3)} with the tracks that its model learns from")


def without_validation(rated: Rated, rows: Rows, share: float) -> tuple[Rows, Rows]:
    """Split off whole groups of `rows` as a validation part of about `share` of the tracks: (rest, validation).

    Raises
    ------
    ValueError
        With a share of 0.5 or more, or too few groups.
    """
    if not share:
        return rows, np.array([], np.intp)
    numbers = fold_of(rated, rows, max(2, round(1 / share)))
    return rows[numbers != 0], rows[numbers == 0]


def parts_to_train(rated: Rated, rows: Rows, family: str, plan: Plan) -> list[Part]:
    """Models to train for a family: held-out folds, and the one that learns from every row; groups are disjoint.

    Raises
    ------
    AssertionError
        If a group stood on two sides: never, by construction; checked all the same.
    """
    share = float(getattr(plan.recipe(family), "validation_share", 0.0))
    parts: list[Part] = []
    if plan.split is not None:
        parts.append(_published_part(rated, rows, plan.split, share))
    else:
        folds = plan.folds or (FOLDS if family in CHEAP else NETWORK_FOLDS)
        numbers = fold_of(rated, rows, folds)
        for fold in range(folds if family in CHEAP else min(plan.folds_run, folds)):
            learn, validation = without_validation(rated, rows[numbers != fold], share)
            parts.append(Part(f"fold{fold}", fold, learn, validation, rows[numbers == fold]))
        groups = rated.table["split_group"].to_numpy()
        for part in parts:
            _check_disjoint(part.name, groups[part.test], groups[part.train])
            _check_disjoint(f"validation of {part.name}", groups[part.validation], groups[part.learn])
    if plan.final:
        learn, validation = without_validation(rated, rows, share)
        parts.insert(1, Part("final", None, learn, validation, np.array([], np.intp)))
    return parts


def _published_part(rated: Rated, rows: Rows, split: Split, share: float) -> Part:
    part = parts_of(split, rated.table).to_numpy()[rows]
    test, learn, validation = (rows[part == name] for name in ("test", "train", "validation"))
    for name, found in (("test", test), ("train", learn)):
        if not len(found):
            raise ValueError(f"{split.test}: no rated track in the {name} part of the published split")
    unused = int((part == "none").sum())
    if unused:
        log.warning("%s: %d rated tracks are in no part of the published split and are left out", split.test, unused)
    if share and not len(validation):
        learn, validation = without_validation(rated, learn, share)
    groups = rated.table["split_group"].to_numpy()
    shared = sorted(set(groups[test]) & set(groups[np.concatenate([learn, validation])]))
    if shared:
        log.warning(
            "the published split has %d artists or albums on both sides (%s): its figures are comparable with the "
            "publication's, and flatter",
            len(shared),
            some(shared),
        )
    return Part("fold0", 0, learn, validation, test)


def _save_predictions(path: Path, rated: Rated, rows: NDArray[Any], fold: NDArray[Any] | int, columns: dict[str, Any]) -> None:
    table = rated.table.iloc[rows][["corpus", "track_key", "sha256"]].reset_index(drop=True)
    table["fold"] = fold
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat([table, pd.DataFrame(columns)], axis=1).to_parquet(path, index=False)


def _named(columns: Sequence[str], values: Array) -> dict[str, Any]:
    return {column: values[:, number] for number, column in enumerate(columns)}


def stage_done(place: Path, rated: Rated, rows: NDArray[Any], targets: Array, how: Mapping[str, Any] | None = None) -> bool:
    """Whether a stage has been finished on just these tracks and ratings, in just this way.

    Raises
    ------
    ValueError
        If it was finished on others, or by another recipe.
    """
    path = place / "record.json"
    if not path.exists():
        return False
    record = json.loads(path.read_text())
    if record["tracks_sha256"] != tracks_digest(rated, rows, targets):
        raise ValueError(f"{place} was trained on other tracks or ratings: choose another --work folder, or remove it")
    held = record.get("how", {})
    wanted = json.loads(json.dumps(how or {}))
    differing = [
        f"{name} {held[name]!r} there, {wanted.get(name)!r} now" for name in held if name in wanted and held[name] != wanted[name]
    ]
    if differing:
        raise ValueError(
            f"{place} was trained by another recipe ({some(differing)}): choose another --work folder, or remove {place}"
        )
    return True


def tracks_digest(rated: Rated, rows: NDArray[Any], targets: Array) -> str:
    """Digest of the tracks, their ratings and the front ends that a stage learns from."""
    digest = hashlib.sha256(training_data.specs_digest().encode())
    digest.update("\n".join(rated.table["sha256"].iloc[rows]).encode())
    digest.update(np.ascontiguousarray(targets[rows]).tobytes())
    return digest.hexdigest()


def finish_stage(place: Path, rated: Rated, rows: NDArray[Any], targets: Array, how: Mapping[str, Any] | None = None) -> None:
    """Say that a stage is finished: the last thing that is written, atomically."""
    keys = rated.table.iloc[rows][["corpus", "track_key"]]
    record = {"tracks_sha256": tracks_digest(rated, rows, targets), "trained_on": keys.to_numpy().tolist(), "how": how or {}}
    temporary = place / "record.json.tmp"
    temporary.write_text(json.dumps(record))
    os.replace(temporary, place / "record.json")


def wants_tagger(family: str, recipe: Any) -> bool:
    """Whether a family learns from the tagging network's outputs: `best`, and a network with hints or a teacher's course."""
    return family == "best" or bool(getattr(recipe, "hint_weight", 0) or getattr(recipe, "course_share", 0))


def how_trained(recipe: Any, plan: Plan) -> dict[str, Any]:
    """Everything beside the tracks that a finished stage depends on."""
    return {**asdict(recipe), "teacher": plan.teacher}


def note_tried(work: Path, family: str, recipe: Any, plan: Plan) -> int:
    """Write down that a recipe is tried, and return how many were tried for the family in this working folder."""
    path = work / "tried.json"
    tried: dict[str, list[str]] = json.loads(path.read_text()) if path.exists() else {}
    digest = hashlib.sha256(json.dumps(how_trained(recipe, plan), sort_keys=True, default=str).encode()).hexdigest()[:16]
    known = tried.setdefault(family, [])
    if digest not in known:
        known.append(digest)
        work.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(tried, indent=1))
        os.replace(temporary, path)
    return len(known)


def number_tried(work: Path, family: str) -> int:
    """How many recipes were tried for a family in a working folder."""
    path = work / "tried.json"
    return len(json.loads(path.read_text()).get(family, [])) if path.exists() else 0


# --- the families -------------------------------------------------------------------------------------------------------------


def rating_inputs(rated: Rated, family: str = "descriptors") -> Array:
    """Inputs of the descriptor model or of `best`, shape (track, 589) or (track, 2495).

    Raises
    ------
    ValueError
        Where the tagging network's outputs are missing.
    """
    try:
        return np.concatenate([rated.stack(name) for name in RATING_BLOCKS[family].values()], axis=1)
    except FileNotFoundError:
        tagger.load_published()  # says what is not installed
        raise


def rating_layout(rated: Rated, family: str) -> tuple[tuple[str, int], ...]:
    """Names and widths of the blocks of `rating_inputs`."""
    first = rated.table["sha256"].iloc[0]
    return tuple(
        (block, training_data.load(rated.arrays, first, name).shape[-1]) for block, name in RATING_BLOCKS[family].items()
    )


def fit_ratings(rated: Rated, family: str, target: str, rows: Rows, recipe: Any) -> Any:
    """Fit the descriptor model or `best` for one set of ratings, on some tracks.

    Valence and arousal: where corpora that ask for them stand beside proxies, the proxies' ratings are brought to their mean and
    spread, and weigh less.
    """
    from models import descriptors

    _, values = descriptor_targets(rated, target)
    ratings, weights = values[rows].copy(), None
    proxy = rated.table["corpus"].iloc[rows].isin(PROXIES).to_numpy()
    if target == "va" and proxy.any() and not proxy.all():
        centred = (ratings[proxy] - ratings[proxy].mean(axis=0)) / np.maximum(ratings[proxy].std(axis=0), 1e-6)
        ratings[proxy] = centred * ratings[~proxy].std(axis=0) + ratings[~proxy].mean(axis=0)
        weights = np.where(proxy, PROXY_WEIGHT, 1.0).astype(np.float32)
    inputs = rating_inputs(rated, family)[rows]
    return descriptors.fit(inputs, ratings, rating_layout(rated, family), recipe, weights=weights)


def descriptor_targets(rated: Rated, target: str) -> tuple[list[str], Array]:
    """Columns and targets that the descriptor model learns for one output."""
    columns = ["va_valence_mean", "va_arousal_mean"] if target == "va" else columns_of(target)
    return columns, rated.table.reindex(columns=columns).to_numpy(np.float32)


def train_ratings(rated: Rated, work: Path, family: str, plan: Plan) -> None:
    """Descriptor models, or those of `best`, of the four outputs: out-of-fold predictions and ONNX files."""
    from models import descriptors

    recipe = plan.recipe(family)
    how = asdict(recipe)
    inputs = rating_inputs(rated, family)
    for target in DESCRIPTOR_OUTPUTS:
        columns, targets = descriptor_targets(rated, target)
        place = work / family / target
        rows = np.flatnonzero(np.isfinite(targets).all(axis=1))
        if not len(rows) or stage_done(place, rated, rows, targets, how):
            continue
        predictions = []
        for part in parts_to_train(rated, rows, family, plan):
            model = fit_ratings(rated, family, target, part.train, recipe)
            if part.fold is None:
                place.mkdir(parents=True, exist_ok=True)
                (place / "model.onnx").write_bytes(descriptors.to_onnx(model))
            else:
                predictions.append((part, model.predict(inputs[part.test])))
        tested = np.concatenate([part.test for part, _ in predictions])
        folds = np.concatenate([np.full(len(part.test), part.fold) for part, _ in predictions])
        values = np.concatenate([values for _, values in predictions])
        order = np.argsort(tested)
        names = [f"{RATING_PREFIX[family]}_{column}" for column in columns]
        _save_predictions(place / "oof.parquet", rated, tested[order], folds[order], _named(names, values[order]))
        finish_stage(place, rated, rows, targets, how)
        log.info("%s: %s done, %d tracks", family, target, len(rows))


def train_network(rated: Rated, work: Path, family: str, plan: Plan) -> None:
    """Train one network: the held-out folds that are asked for, and the final model on every rated track."""
    from models import networks

    recipe = plan.recipe(family)
    targets = values_of(rated, TARGET_OF[family])
    rows = rated_rows(rated, family)
    if not len(rows):
        raise ValueError(f"no track has the ratings that {family} learns ({', '.join(columns_of(TARGET_OF[family]))})")
    how = how_trained(recipe, plan)
    for part in parts_to_train(rated, rows, family, plan):
        place = work / family / part.name
        if stage_done(place, rated, part.train, targets, how):
            continue
        model = train_part(rated, family, part, recipe, place, plan, work)
        if part.fold is not None:
            columns = predict_network(rated, family, networks.with_embedding(model), part.test)
            np.save(place / "embeddings.npy", columns.pop("embedding"), allow_pickle=False)
            _save_predictions(place / "oof.parquet", rated, part.test, part.fold, columns)
            if len(part.validation):
                held = predict_network(rated, family, model, part.validation)
                _save_predictions(place / "validation.parquet", rated, part.validation, part.fold, held)
        model.save(place / "model.keras")
        finish_stage(place, rated, part.train, targets, how)


def train_part(rated: Rated, family: str, part: Part, recipe: Any, place: Path, plan: Plan, work: Path) -> Any:
    """Train one network on what one part learns from, with its teacher; the finished plain graph. Checkpoints lie in `place`."""
    from models import networks

    teacher = plan.teacher or ("descriptors" if family in SPECTROGRAMS else "none")
    human = np.zeros(len(rated.table), bool)
    human[part.train] = True
    rows = part.learn
    learned = targets_of(family)
    targets = {target: values_of(rated, target).copy() for target in learned}
    taught: dict[str, Array] = {}
    if teacher != "none" and recipe.pseudo_weight > 0:
        from annotate.training_teacher import teach

        # every track that no person rated for this family, by a teacher that saw no group of the held-out part
        unrated = ~np.isfinite(values_of(rated, learned[0])).any(axis=1)
        for target in learned:
            taught[target] = teach(rated, target, part, teacher, work, plan)
            targets[target][unrated] = taught[target][unrated]
        groups = rated.table["split_group"]
        held_out = groups.isin(groups.iloc[np.concatenate([part.test, part.validation])]).to_numpy()
        usable = unrated & ~held_out & np.isfinite(np.concatenate(list(targets.values()), axis=1)).any(axis=1)
        rows = np.flatnonzero(np.isin(np.arange(len(human)), part.learn) | usable)
    weights = np.where(human, 1.0, recipe.pseudo_weight).astype(np.float32)

    if family in ("va", "vaseq", "vatransfer"):
        inputs = rated.stack("statistics" if family == "va" else "sequence")

        def notes(of: Rows) -> networks.Notes:
            return networks.Notes(inputs[of], targets["va"][of], weights[of])

        held_notes = notes(part.validation) if len(part.validation) else None
        if family == "vatransfer":
            sequence = plan.recipe("vaseq")
            return networks.train_vatransfer(notes(rows), recipe, place, held_notes, sequence_recipe=sequence)
        train = networks.train_va if family == "va" else networks.train_vaseq
        return train(notes(rows), recipe, place, held_notes)

    heads = {"midlevel": {"midlevel": "rating"}, "emotion": {"gems": "emotion"}, "crnn": {"vad": "reg_output"}}.get(family, {})
    course = None
    if recipe.hint_weight or recipe.course_share:
        from annotate.training_teacher import course_of

        unit = 1 / 8 if family == "crnn" else 1.0  # of the head, in units of the ratings
        known = {heads.get(target, target): values * unit for target, values in taught.items()}
        course = course_of(rated, rows, part.learn, known)

    def tracks(of: Rows) -> networks.Tracks:
        return replace(_tracks(of), course=course if of is rows else None)

    def _tracks(of: Rows) -> networks.Tracks:
        if family == "midlevel":
            ratings = targets["midlevel"][of]
            salience = np.where(human[of][:, None], networks.salience_targets(ratings), np.nan).astype(np.float32)
            return networks.Tracks(rated.open("stft", of), {"rating": ratings, "salience": salience}, weights[of])
        if family == "emotion":
            return networks.Tracks(rated.open("segments", of), {"emotion": targets["gems"][of]}, weights[of])
        if family == "crnn":
            heads: dict[str, Array] = {
                "reg_output": np.asarray((targets["vad"][of] - 1) / 8, np.float32),
                "class_output": networks.genre_targets(rated.table["genre"].iloc[of].tolist()),
            }
            return networks.Tracks(rated.open("mel", of), heads, weights[of])
        return networks.Tracks(
            rated.open("log_frequency", of), {name: values[of] for name, values in targets.items()}, weights[of]
        )

    learned_tracks = tracks(rows)
    held = tracks(part.validation) if len(part.validation) else None
    if family == "crnn" and recipe.waveform_copies:
        learned_tracks = _with_changed_waveforms(rated, learned_tracks, rows, recipe, work, plan.jobs)
    train_tracks: dict[str, Any] = {
        "midlevel": networks.train_midlevel,
        "joint": networks.train_joint,
        "a2e": networks.train_a2e,
        "a2mid2e": networks.train_a2mid2e,
        "emotion": networks.train_emotion,
        "crnn": networks.train_crnn,
    }
    start = None
    if part.fold is None and recipe.final_epochs and (place.with_name("fold0") / "trunk.npz").exists():
        start = place.with_name("fold0")  # goes on from the model that was scored, now with the held-out tracks, too
        recipe = replace(
            recipe,
            epochs=recipe.final_epochs,
            short_epochs=0,
            warmup_epochs=0.25,
            learning_rate=recipe.final_rate * recipe.learning_rate,
        )
    elif recipe.trunk_from and (work / recipe.trunk_from / part.name / "trunk.npz").exists():
        start = work / recipe.trunk_from / part.name
    model = train_tracks[family](learned_tracks, recipe, place, held, start)
    if family == "a2mid2e":
        networks.fit_second_stage(model, values_of(rated, "midlevel")[part.learn], values_of(rated, "film")[part.learn])
    return model


def _with_changed_waveforms(rated: Rated, tracks: Any, rows: Rows, recipe: Any, work: Path, jobs: int) -> Any:
    """CRNN tracks with the chunks of changed copies of their waveforms behind their own."""
    from models import networks

    change = training_data.WaveformChange(recipe.stretch, recipe.pitch_semitones, recipe.noise_db, recipe.seed)
    table = rated.table.iloc[rows]
    copies = training_data.change_all(
        list(zip(map(Path, table["path"]), table["sha256"], strict=True)),
        work / "changed",
        change,
        recipe.waveform_copies,
        jobs=jobs,
    )
    arrays = [networks.JoinedChunks([own, *changed]) for own, changed in zip(tracks.arrays, copies, strict=True)]
    return replace(tracks, arrays=arrays)


def network_windows(rated: Rated, family: str, rows: NDArray[Any]) -> list[list[Array]]:
    """Windows of each track as inference sees them, from the stored arrays."""
    from models import networks

    if family == "best":
        return [list(windows) for windows in rated.open("tagger_mel", rows)]
    if family == "emotion":
        return [list(segments) for segments in rated.open("segments", rows)]
    if family == "crnn":
        return [
            [np.asarray(chunk) for chunk in networks.PaddedChunks(chunks[:: training_data.CHUNK_OVERLAP])]
            for chunks in rated.open("mel", rows)
        ]
    lengths = [int(length) for length in rated.open("length", rows)]
    if family == "midlevel":
        arrays = rated.open("stft", rows)
        return [list(networks.stft_track_windows(array, length)) for array, length in zip(arrays, lengths, strict=True)]
    arrays = rated.open("log_frequency", rows)
    return [list(networks.log_frequency_track_windows(array, length)) for array, length in zip(arrays, lengths, strict=True)]


def predict_network(rated: Rated, family: str, model: Any, rows: NDArray[Any]) -> dict[str, Any]:
    """Track-level predictions in the table's units, by column name; `embedding` (track, feature) where the model has it."""
    from models import networks

    heads: dict[str, list[Array]] = {}
    for start in range(0, len(rows), 32):  # a few tracks at a time: windows are large
        some_rows = rows[start : start + 32]
        if family in ("va", "vaseq", "vatransfer"):
            inputs = np.stack(rated.open("statistics" if family == "va" else "sequence", some_rows))
            part = {name: np.asarray(values) for name, values in model.predict_on_batch(np.nan_to_num(inputs)).items()}
        else:
            part = networks.predict_tracks(model, network_windows(rated, family, some_rows))
        for head, values in part.items():
            heads.setdefault(head, []).append(values)
    outputs = {head: np.concatenate(parts) for head, parts in heads.items()}
    columns: dict[str, Any] = {}
    if family == "midlevel":
        columns = _named([f"midlevel_{label}" for label in MIDLEVEL.labels], outputs["rating"] * 10)
        columns |= _named([f"salient_{label}" for label in MIDLEVEL.labels], outputs["salience"])
    elif family in ("joint", "a2e", "a2mid2e"):
        prefixes = {"joint": ("film", "joint")}.get(family, (f"{family}_film", f"{family}_mid"))
        columns = _named([f"{prefixes[0]}_{label}" for label in FILM.labels], outputs["film"] * 10)
        if "midlevel" in outputs:
            columns |= _named([f"{prefixes[1]}_{label}" for label in MIDLEVEL.labels], outputs["midlevel"] * 10)
    elif family == "emotion":
        columns = _named([f"emotion_{label}" for label in GEMS.labels], outputs["emotion"])
    elif family == "crnn":
        columns = _named([f"crnn_{label}" for label in SCALES["vad"][0]], outputs["reg_output"] * 8 + 1)
        columns |= _named([f"genre_p_{label}" for label in GENRES.labels], outputs["class_output"])
    else:
        columns = _named([f"{family}_{label}" for label in SCALES["va"][0]], outputs["va"])
    return columns | ({"embedding": outputs["embedding"]} if "embedding" in outputs else {})


def salience_of(rated: Rated, work: Path, rows: Rows, frozen: str | None) -> Array:
    """Saliences of the frozen mid-level network that the probe reads, shape (track, 7), kept in the working folder.

    The network is the one trained here, or that of the bundle `frozen`: there by the graph that `annotate run` uses.
    """
    if frozen is None:
        path = work / "midlevel" / "final" / "model.keras"
        if not path.exists():
            raise ValueError(
                "the probe reads the mid-level network: train midlevel first, or name with --frozen a bundle that has one"
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        from models.bundle import load

        bundle = load(frozen)
        if "midlevel" not in bundle.families:
            raise ValueError(f"bundle {bundle.name!r} has no mid-level network for the probe to read")
        digest = bundle.digest
    columns = [f"salient_{label}" for label in MIDLEVEL.labels]
    kept = training_data.kept_rows(
        work / "probe" / f"salience-{digest[:16]}.parquet",
        rated.table["sha256"].iloc[rows],
        lambda: _salience_here(rated, work, rows) if frozen is None else _salience_frozen(rated, frozen, rows),
        what="saliences",
    )
    return kept[columns].to_numpy(np.float32)


def _salience_here(rated: Rated, work: Path, rows: Rows) -> training_data.Predict:
    """Tell the salience columns of some of `rows`, by the network that was trained in the working folder."""
    import keras

    from models import midlevel, networks

    with networks.policy("mixed_bfloat16"):
        network = midlevel.build()
    trained = keras.saving.load_model(work / "midlevel" / "final" / "model.keras", compile=False)
    network.set_weights(trained.get_weights())
    return lambda some_rows: predict_network(rated, "midlevel", network, rows[some_rows])


def _salience_frozen(rated: Rated, frozen: str, rows: Rows) -> training_data.Predict:
    """Tell the salience columns of some of `rows`, by the graph that `annotate run` uses of a bundle's mid-level network."""
    from models.bundle import load
    from models.inference import CPU_BATCH, infer, keras_predict, network_columns, onnx_predict

    bundle = load(frozen)
    family = bundle.families["midlevel"]
    predict = (keras_predict if family.engine is None else onnx_predict)(bundle, "midlevel")

    def tell(some_rows: Rows) -> dict[str, Any]:
        tracks = network_windows(rated, "midlevel", rows[some_rows])
        owned = ((owner, window) for owner, windows in enumerate(tracks) for window in windows)
        outputs = infer(predict, owned, CPU_BATCH["midlevel"])
        found = [network_columns(family, outputs[owner])[0] for owner in range(len(tracks))]
        return {name: [row[name] for row in found] for name in (f"salient_{label}" for label in MIDLEVEL.labels)}

    return tell


def train_probe(rated: Rated, work: Path, plan: Plan) -> None:
    """Fit the probe on the frozen mid-level network's salience: grouped folds, and the final map."""
    from models import networks

    place = work / "probe"
    recipe = plan.recipe("probe")
    targets = values_of(rated, "gems")
    rows = rated_rows(rated, "probe")
    if not len(rows):
        raise ValueError("no track has GEMS ratings, the probe has nothing to learn from")
    how = {**asdict(recipe), "frozen": plan.frozen}
    if stage_done(place, rated, rows, targets, how):
        return
    salience = np.full((len(rated.table), len(MIDLEVEL.labels)), np.nan, np.float32)
    salience[rows] = salience_of(rated, work, rows, plan.frozen)
    place.mkdir(parents=True, exist_ok=True)
    np.save(place / "salience.npy", salience[rows])
    names = columns_of("gems")
    for part in parts_to_train(rated, rows, "probe", plan):
        network = networks.fit_probe(salience[part.train], targets[part.train], recipe)
        folder = place / part.name
        folder.mkdir(parents=True, exist_ok=True)
        network.save(folder / "model.keras")
        if part.fold is None:
            continue
        predicted = network.predict(salience[part.test], verbose=0)["gems"]
        _save_predictions(folder / "oof.parquet", rated, part.test, part.fold, _named(names, predicted))
        np.save(folder / "embeddings.npy", salience[part.test], allow_pickle=False)
        if len(part.validation):
            learn, held = part.learn, part.validation
        else:
            learn, held = without_validation(rated, part.train, VALIDATION_SHARE_OF_PROBE)
        inner = networks.fit_probe(salience[learn], targets[learn], recipe)
        chosen = _named(names, inner.predict(salience[held], verbose=0)["gems"])
        _save_predictions(folder / "validation.parquet", rated, held, part.fold, chosen)
    finish_stage(place, rated, rows, targets, how)


def train(rated: Rated, work: Path, families: Sequence[str], plan: Plan) -> None:
    """Train some families, in an order in which each finds what it builds on."""
    for family in (family for family in ORDER if family in families):
        log.info("training %s", family)
        note_tried(work, family, plan.recipe(family), plan)
        if family in RATING_PREFIX:
            train_ratings(rated, work, family, plan)
        elif family == "probe":
            train_probe(rated, work, plan)
        else:
            train_network(rated, work, family, plan)
