"""Evaluation against people: `annotate evaluate`.

    DIR/scores.json             headline figures of every family beside baseline, group mean, floor and ceiling
    DIR/predictions.parquet     one row a track, family and label, each predicted by a model that did not see the track's group
    DIR/embeddings.parquet      penultimate layer of each network, mean over windows
    DIR/histories/              losses of every epoch, a file a family and fold
    DIR/scores/*.csv            agreement, classification, label_sets, threshold_sweep, self_agreement

With folds, every family is trained anew on grouped folds by the bundle's recipes; without, the bundle itself is scored on the
tracks of artists or albums that it was not trained on. Choices by looking (thresholds) are made on validation parts inside the
training folds. What is measured against labels that a model of ours wrote is *self-agreement* and stands apart.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annotate import training, training_data
from annotate.console import log
from annotate.evaluation_floor import FITTED, shuffled_predictions
from annotate.training import Part, Plan, Rated, columns_of, values_of
from annotate.training_labels import LabelFile, some
from annotate.training_teacher import bundle_predictions, groups_seen
from models import bundle as bundles
from models.labels import GENRES, MIDLEVEL

Array = NDArray[np.float32]

SCHEMA_VERSION = 1
# target and prefix of the columns of each output of a family
OUTPUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "midlevel": (("midlevel", "midlevel"), ("salience", "salient")),
    "probe": (("gems", "gems"),),
    "joint": (("film", "film"), ("midlevel", "joint")),
    "a2e": (("film", "a2e_film"),),
    "a2mid2e": (("film", "a2mid2e_film"), ("midlevel", "a2mid2e_mid")),
    "emotion": (("gems", "emotion"),),
    "va": (("va", "va"),),
    "vaseq": (("va", "vaseq"),),
    "vatransfer": (("va", "vatransfer"),),
    "crnn": (("vad", "crnn"),),
    "descriptors": (("midlevel", "desc_midlevel"), ("film", "desc_film"), ("gems", "desc_gems"), ("va", "desc_va")),
    "best": (("midlevel", "best_midlevel"), ("film", "best_film"), ("gems", "best_gems"), ("va", "best_va")),
}
LABELLED = ("gems", "salience")  # targets that are also decided on
SALIENCE_THRESHOLD = 0.4  # founding document 000
THRESHOLD_GRID = np.arange(0.05, 0.71, 0.01)  # predicted shares seldom reach the document's .30-.70
SWEEP_GRID = np.round(np.arange(0.05, 0.96, 0.05), 2)
SELF_THRESHOLDS = (0.3, 0.4, 0.5, 0.6)
FEWEST_TRACKS = 10  # under which nothing is scored


@dataclass(frozen=True)
class EvaluationOptions:
    """What is evaluated, on what, and how."""

    bundle: str
    corpora: tuple[Path, ...]
    out: Path
    work: Path
    folds: int | None = None  # None: the bundle itself, on tracks that it did not see
    folds_run: int | None = None  # of a network; None: all
    families: tuple[str, ...] | None = None  # None: all of the bundle that these ratings can score
    recipes: Mapping[str, Any] = field(default_factory=dict)
    word_norms: Path | None = None
    labels: LabelFile | None = None
    labels_by_model: bool = False  # whether a model wrote the labels: self-agreement
    teacher: str | None = None
    split: Any = None
    resamples: int = 1000
    seed: int = 0
    jobs: int = 2
    command_line: str = ""


@dataclass(frozen=True)
class Tested:
    """Predictions of one output of one family for tracks that its model did not see."""

    family: str
    target: str
    labels: tuple[str, ...]  # without the target
    rows: NDArray[np.intp]
    folds: NDArray[np.intp]  # -1 without folds
    rated: NDArray[np.float64]  # (track, label)
    predicted: NDArray[np.float64]
    baseline: NDArray[np.float64]
    group_mean: NDArray[np.float64]
    shuffled: NDArray[np.float64] | None = None  # after shuffled ratings, of families that are fitted to them
    truth: NDArray[np.float64] | None = None  # 0/1 labels, of targets that are decided on
    thresholds: NDArray[np.float64] | None = None  # (track, label)
    chosen_on: str = ""  # what the thresholds were chosen on

    @property
    def columns(self) -> list[str]:
        """Labels with their target in front."""
        return [f"{self.target}_{label}" for label in self.labels]

    @property
    def name(self) -> str:
        """Target, and whether these are the listeners' spreads instead of their means."""
        return f"{self.target}_spread" if all(label.endswith("_std") for label in self.labels) else self.target


def evaluate(options: EvaluationOptions) -> dict[str, Any]:
    """Evaluate and write the folder; returns the content of ``scores.json``.

    Raises
    ------
    ValueError
        If nothing can be scored: no human ratings for any family, or every track's artist or album was in the training.
    """
    _check_out(options.out)
    bundle = bundles.load(options.bundle)
    rated = training.gather(
        options.corpora,
        options.work,
        word_norms=options.word_norms,
        jobs=options.jobs,
        labels=options.labels,
        tagger_engine=_tagger_engine(bundle, options),
    )
    families = _families(rated, bundle, options)
    if options.folds is None and options.split is None:
        tested, genres, embeddings = _unseen(rated, bundle, families, options)
        plan = None
    else:
        plan = Plan(
            recipes=_recipes(bundle, families, options),
            folds=options.folds,
            folds_run=options.folds_run or options.folds or 1,
            final=False,
            teacher=options.teacher,
            frozen=options.bundle if "probe" in families else None,
            split=options.split,
            jobs=options.jobs,
        )
        training.check_targets(rated, families, options.work, plan)
        training.train(rated, options.work, families, plan)
        tested, genres, embeddings = _held_out(rated, families, plan, options)
    if not tested:
        raise ValueError("nothing could be scored")
    scores = _scores(rated, bundle, tested, genres, embeddings, options, plan)
    _write(rated, scores, tested, genres, embeddings, families, options)
    return scores


def _tagger_engine(bundle: bundles.Bundle, options: EvaluationOptions) -> Path | None:
    """Graph of the tagging network: the bundle's, or the published one where a recipe learns from it; None where nothing does."""
    if "best" in bundle.families:
        return bundle.file(str(bundle.families["best"].engine))
    if options.folds is None and options.split is None:
        return None
    families = [family for family in options.families or bundle.families if family in OUTPUTS]
    recipes = _recipes(bundle, families, options)
    wanted = any(training.wants_tagger(family, recipes[family]) for family in families)
    return training_data.tagger_engine(options.work) if wanted else None


def _families(rated: Rated, bundle: bundles.Bundle, options: EvaluationOptions) -> list[str]:
    folds = options.folds is not None or options.split is not None
    held = [family for family in bundles.FAMILIES if family in OUTPUTS and (family in bundle.families)]
    if options.families is not None:
        known = list(training.ORDER) if folds else held
        unknown = [family for family in options.families if family not in known]
        if unknown:
            raise ValueError(f"--models {', '.join(unknown)}: choose from {', '.join(known)}")
        held = [family for family in OUTPUTS if family in options.families]
    kept = []
    for family in held:
        targets = {target for target, _ in OUTPUTS[family]} - {"salience"}
        if any(len(_complete_rows(rated, target)) >= FEWEST_TRACKS for target in targets) and (
            family in ("descriptors", "best") or len(training.rated_rows(rated, family)) >= FEWEST_TRACKS
        ):
            kept.append(family)
        elif options.families is not None:
            raise ValueError(f"{family} cannot be scored: fewer than {FEWEST_TRACKS} tracks have its ratings ({some(targets)})")
    if not kept:
        raise ValueError(
            f"no family of {bundle.name!r} can be scored: fewer than {FEWEST_TRACKS} tracks have human ratings of "
            f"{', '.join(sorted({target for family in held for target, _ in OUTPUTS[family]}))}"
        )
    left_out = [family for family in held if family not in kept]
    if left_out:
        log.info("not scored, as these corpora have no ratings for them: %s", ", ".join(left_out))
    return kept


def _recipes(bundle: bundles.Bundle, families: Sequence[str], options: EvaluationOptions) -> dict[str, Any]:
    """Recipes of the bundle where it records them, else ours; those of the options go first."""
    from models.networks import RECIPES

    recipes = {}
    for family in (*families, *(("vaseq",) if "vatransfer" in families else ())):
        stored: dict[str, Any] = {}
        if family in bundle.families:
            training_record = bundle.families[family].details.get("training", {})
            stored = training_record.get("recipe", {}).get("recipe", {})
        known = {name: _tuples(value) for name, value in stored.items() if hasattr(RECIPES[family], name)}
        recipes[family] = options.recipes.get(family) or type(RECIPES[family])(**known)
        if not known and family not in options.recipes:
            recipes[family] = RECIPES[family]
    return recipes


def _tuples(value: Any) -> Any:
    """Lists of a JSON file as the tuples of a recipe."""
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def _complete_rows(rated: Rated, target: str) -> NDArray[np.intp]:
    values = values_of(rated, target)
    return np.flatnonzero(np.isfinite(values[:, [0, 2]] if target == "va" else values).all(axis=1))


# --- with folds ---------------------------------------------------------------------------------------------------------------


def _parts(rated: Rated, family: str, target: str, plan: Plan) -> list[Part]:
    if family in training.RATING_PREFIX:
        _, values = training.descriptor_targets(rated, target)
        rows = np.flatnonzero(np.isfinite(values).all(axis=1))
    else:
        rows = training.rated_rows(rated, family)
    return training.parts_to_train(rated, rows, family, plan) if len(rows) else []


def _held_out(
    rated: Rated, families: Sequence[str], plan: Plan, options: EvaluationOptions
) -> tuple[list[Tested], dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    tested: list[Tested] = []
    genres: dict[str, pd.DataFrame] = {}
    embeddings: dict[str, pd.DataFrame] = {}
    for family in families:
        place = options.work / family
        for target, prefix in OUTPUTS[family]:
            parts = _parts(rated, family, "midlevel" if target == "salience" else target, plan)
            pieces = []
            for part in parts:
                folder = place / target if family in training.RATING_PREFIX else place / part.name
                predicted = _aligned(pd.read_parquet(folder / "oof.parquet"), rated, part.test)
                held = folder / "validation.parquet"
                pieces.append((part, predicted, pd.read_parquet(held) if held.exists() else None))
            for labels in _blocks(target, _labels_of(target, list(pieces[0][1].columns), prefix)) if pieces else ():
                if len(_known_rows(rated, target, labels, pieces)) >= FEWEST_TRACKS:
                    tested.append(_of_folds(rated, family, target, prefix, labels, pieces, plan, options))
            if family == "crnn":
                genres[family] = _genres(rated, pieces)
            if family not in training.RATING_PREFIX and pieces and family not in embeddings:
                stored = [np.load(place / part.name / "embeddings.npy") for part in parts]
                embeddings[family] = pd.DataFrame(
                    np.concatenate(stored), index=np.concatenate([part.test for part in parts])
                ).astype("float32")
    return tested, genres, embeddings


def _blocks(target: str, labels: Sequence[str]) -> list[list[str]]:
    """Labels that are averaged over: means of listeners' ratings and spreads between listeners stand apart."""
    if target != "va":
        return [list(labels)]
    blocks = [[label for label in labels if label.endswith(suffix)] for suffix in ("_mean", "_std")]
    return [block for block in blocks if block]


def _known_rows(
    rated: Rated, target: str, labels: Sequence[str], pieces: Sequence[tuple[Part, pd.DataFrame, pd.DataFrame | None]]
) -> NDArray[np.intp]:
    rows = np.concatenate([part.test for part, _, _ in pieces])
    known = np.asarray(np.isfinite(people(rated, target)[list(labels)].to_numpy(float)[rows]).any(axis=1))
    return np.asarray(rows[known], np.intp)


def _aligned(stored: pd.DataFrame, rated: Rated, rows: NDArray[np.intp]) -> pd.DataFrame:
    keys = pd.MultiIndex.from_frame(rated.table.iloc[rows][["corpus", "track_key", "sha256"]])
    return stored.set_index(["corpus", "track_key", "sha256"]).loc[keys].reset_index(drop=True)


def _labels_of(target: str, columns: Sequence[str], prefix: str) -> list[str]:
    names = [column.removeprefix(f"{target}_") for column in columns_of("midlevel" if target == "salience" else target)]
    if target == "salience":
        names = list(MIDLEVEL.labels)
    return [name for name in names if f"{prefix}_{name}" in columns]


def people(rated: Rated, target: str) -> pd.DataFrame:
    """Ratings of every track for one target, a column a label; salience is the multi-hot of the mid-level ratings."""
    from models.networks import salience_targets

    if target == "salience":
        return pd.DataFrame(salience_targets(values_of(rated, "midlevel")), columns=list(MIDLEVEL.labels))
    columns = columns_of(target)
    values = rated.table.reindex(columns=columns).astype(float)
    return values.rename(columns={column: column.removeprefix(f"{target}_") for column in columns})


def _of_folds(
    rated: Rated,
    family: str,
    target: str,
    prefix: str,
    labels: Sequence[str],
    pieces: Sequence[tuple[Part, pd.DataFrame, pd.DataFrame | None]],
    plan: Plan,
    options: EvaluationOptions,
) -> Tested:
    known = people(rated, target)[list(labels)].to_numpy(float)
    rows = np.concatenate([part.test for part, _, _ in pieces])
    folds = np.concatenate([np.full(len(part.test), part.fold) for part, _, _ in pieces]).astype(np.intp)
    predicted = np.concatenate([table[[f"{prefix}_{label}" for label in labels]].to_numpy(float) for _, table, _ in pieces])
    baseline = np.concatenate([_baseline(rated, known, part, options) for part, _, _ in pieces])
    means = np.concatenate([_group_means(rated, known, part) for part, _, _ in pieces])
    if family == "descriptors":
        baseline = np.full_like(predicted, np.nan)
    dealt = [shuffled_predictions(rated, family, target, part, plan, options.work, options.seed) for part, _, _ in pieces]
    floor = [table[[f"{prefix}_{label}" for label in labels]].to_numpy(float) for table in dealt if table is not None]
    order = np.argsort(rows)
    truth, thresholds, chosen_on = _decisions(rated, family, target, prefix, labels, pieces)
    return Tested(
        family,
        target,
        tuple(labels),
        rows[order],
        folds[order],
        known[rows[order]],
        predicted[order],
        baseline[order],
        means[order],
        np.concatenate(floor)[order] if floor else None,
        None if truth is None else truth[order],
        None if thresholds is None else thresholds[order],
        chosen_on,
    )


def _truth(target: str, family: str, values: NDArray[np.float64], learned: NDArray[np.float64]) -> NDArray[np.float64]:
    """0/1 labels of rated values: salience as it is; the probe's multi-hot; shares above the rule of the training part."""
    from models.networks import emotion_cut, multi_hot

    if target == "salience":
        return values
    if family == "probe":
        return multi_hot(values.astype(np.float32)).astype(float)
    return (values > emotion_cut(learned.astype(np.float32))).astype(float)


def _decisions(
    rated: Rated,
    family: str,
    target: str,
    prefix: str,
    labels: Sequence[str],
    pieces: Sequence[tuple[Part, pd.DataFrame, pd.DataFrame | None]],
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None, str]:
    """Labels of the tested tracks and the thresholds of their fold, chosen without a look at the fold."""
    from outputs.metrics import best_thresholds

    if target not in LABELLED:
        return None, None, ""
    known = people(rated, target)[list(labels)].to_numpy(float)
    columns = [f"{prefix}_{label}" for label in labels]
    truths, limits = [], []
    chosen_on = "validation part of each fold"
    for number, (part, _, held) in enumerate(pieces):
        learned = known[part.train]
        truths.append(_truth(target, family, known[part.test], learned))
        if target == "salience":
            chosen, chosen_on = np.full(len(labels), SALIENCE_THRESHOLD), "fixed by the founding document"
        elif held is not None:
            keys = pd.MultiIndex.from_frame(rated.table[["corpus", "track_key", "sha256"]])
            at = keys.get_indexer(pd.MultiIndex.from_frame(held[["corpus", "track_key", "sha256"]]))
            chosen = best_thresholds(_truth(target, family, known[at], learned), held[columns].to_numpy(float), THRESHOLD_GRID)
        elif len(pieces) > 1:
            others = [piece for other, piece in enumerate(pieces) if other != number]
            values = np.concatenate([known[piece[0].test] for piece in others])
            guesses = np.concatenate([piece[1][columns].to_numpy(float) for piece in others])
            chosen = best_thresholds(_truth(target, family, values, learned), guesses, THRESHOLD_GRID)
            chosen_on = "held-out predictions of the other folds"
        else:
            chosen, chosen_on = learned.mean(axis=0), "mean rated share of the training part"
        limits.append(np.tile(chosen, (len(part.test), 1)))
    return np.concatenate(truths), np.concatenate(limits), chosen_on


def _baseline(rated: Rated, known: NDArray[np.float64], part: Part, options: EvaluationOptions) -> NDArray[np.float64]:
    """Descriptor model on just this part: fitted on what the family's model knew of, shape (test track, label)."""
    from models import descriptors

    found = np.full((len(part.test), known.shape[1]), np.nan)
    usable: NDArray[np.bool_] = np.asarray(np.isfinite(known[part.train]).any(axis=0))
    train = part.train[np.isfinite(known[part.train][:, usable]).all(axis=1)]
    if not len(train) or not usable.any():
        return found
    usable &= np.ptp(np.nan_to_num(known[train]), axis=0) > 0
    learned = np.ascontiguousarray(known[train][:, usable], np.float32)
    if not usable.any():
        return found
    recipe = options.recipes.get("descriptors") or descriptors.PLAIN
    parts = (learned.tobytes(), repr(recipe).encode(), "".join(rated.table["sha256"].iloc[train]).encode())
    digest = hashlib.sha256(b"|".join(parts))
    digest.update("".join(rated.table["sha256"].iloc[part.test]).encode())
    kept = options.work / "baseline" / f"{digest.hexdigest()[:20]}.npy"
    if not kept.exists():
        inputs = training.rating_inputs(rated)
        model = descriptors.fit(inputs[train], learned, training.rating_layout(rated, "descriptors"), recipe)
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f"{kept.stem}.tmp.npy")
        np.save(temporary, model.predict(inputs[part.test]))
        os.replace(temporary, kept)
    found[:, usable] = np.load(kept)
    return found


def _group_means(rated: Rated, known: NDArray[np.float64], part: Part) -> NDArray[np.float64]:
    """Mean rating of the track's genre over the training part; NaN where tracks have no genre."""
    genre = rated.table["genre"].to_numpy(object)
    learned = pd.DataFrame(known[part.train]).groupby(pd.Series(genre[part.train])).mean()
    return learned.reindex(genre[part.test]).to_numpy(float)


def _genres(rated: Rated, pieces: Sequence[tuple[Part, pd.DataFrame, pd.DataFrame | None]]) -> pd.DataFrame:
    """Tested tracks with a genre of ours: rated and predicted class, probabilities, and the baseline's class."""
    tables = []
    for part, table, _ in pieces:
        found = table[[f"genre_p_{label}" for label in GENRES.labels]].set_index(part.test)
        found.columns = pd.Index([f"p_{label}" for label in GENRES.labels])
        found["fold"] = part.fold
        found["baseline_class"] = _genre_baseline(rated, part)
        tables.append(found)
    return _with_classes(rated, pd.concat(tables).sort_index())


def _with_classes(rated: Rated, found: pd.DataFrame) -> pd.DataFrame:
    found["rated_class"] = rated.table["genre"].to_numpy(object)[found.index]
    found = found[found["rated_class"].isin(GENRES.labels)].copy()
    best = found[[f"p_{label}" for label in GENRES.labels]].to_numpy().argmax(axis=1)
    found["predicted_class"] = np.array(GENRES.labels, object)[best]
    return found


def _genre_baseline(rated: Rated, part: Part) -> NDArray[Any]:
    """Genre by logistic regression on the descriptors and note features of the same training part."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    genre = rated.table["genre"].to_numpy(object)
    learned = part.train[np.isin(genre[part.train].astype(str), GENRES.labels)]
    if len(set(genre[learned])) < 2:
        return np.full(len(part.test), None, object)
    inputs = training.rating_inputs(rated)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    model.fit(inputs[learned], genre[learned].astype(str))
    predicted: NDArray[Any] = model.predict(inputs[part.test]).astype(object)
    return predicted


# --- tracks that the bundle did not see ---------------------------------------------------------------------------------------


def _unseen(
    rated: Rated, bundle: bundles.Bundle, families: Sequence[str], options: EvaluationOptions
) -> tuple[list[Tested], dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    groups = rated.table["split_group"]
    tested: list[Tested] = []
    genres: dict[str, pd.DataFrame] = {}
    embeddings: dict[str, pd.DataFrame] = {}
    seen_everywhere: list[str] = []
    seen_by = {family: groups_seen(rated, bundle, family) for family in bundle.families}
    for family in families:
        seen = set().union(*(seen_by[base] for base in _built_on(bundle, family)))
        new = ~groups.isin(seen).to_numpy()
        predictions = bundle_predictions(rated, bundle, family, options.work)
        scored = False
        for target, prefix in OUTPUTS[family]:
            known = people(rated, target)
            labels = [
                label
                for label in _labels_of(target, list(predictions.columns), prefix)
                if np.isfinite(known.loc[new, label]).sum() >= FEWEST_TRACKS
            ]
            for block in _blocks(target, labels) if labels else ():
                tested.append(_of_bundle(rated, bundle, family, target, prefix, block, predictions, new, seen_by, options))
                scored = True
        if family == "crnn" and new.any():
            found = predictions[[f"genre_p_{label}" for label in GENRES.labels]].iloc[np.flatnonzero(new)]
            found.columns = pd.Index([f"p_{label}" for label in GENRES.labels])
            classes = _with_classes(rated, found.assign(fold=-1, baseline_class=None))
            if len(classes) >= FEWEST_TRACKS:
                genres[family] = classes
        if scored:
            columns = _embedding_columns(predictions)
            if columns:
                found = predictions.loc[np.flatnonzero(new), columns].astype("float32")
                embeddings[family] = found.set_axis(range(len(columns)), axis=1)
        else:
            seen_everywhere.append(f"{family} ({int((~new).sum())} of {len(new)} tracks)")
    if not tested:
        raise ValueError(
            f"bundle {bundle.name!r} was trained on the artists or albums of these tracks: {', '.join(seen_everywhere)}; fewer "
            f"than {FEWEST_TRACKS} rated tracks are new to it. Say --folds 5 to score its recipes on grouped folds instead"
        )
    if seen_everywhere:
        log.warning("left out, trained on the artists or albums of these tracks: %s", ", ".join(seen_everywhere))
    return tested, genres, embeddings


def _of_bundle(
    rated: Rated,
    bundle: bundles.Bundle,
    family: str,
    target: str,
    prefix: str,
    labels: Sequence[str],
    predictions: pd.DataFrame,
    new: NDArray[np.bool_],
    seen_by: Mapping[str, set[str]],
    options: EvaluationOptions,
) -> Tested:
    values = people(rated, target)[list(labels)].to_numpy(float)
    rows = np.flatnonzero(new & np.asarray(np.isfinite(values).any(axis=1)))
    predicted = predictions[[f"{prefix}_{label}" for label in labels]].to_numpy(float)[rows]
    baseline = np.full(predicted.shape, np.nan)
    told = family not in ("descriptors", "best") and target in training.DESCRIPTOR_OUTPUTS
    if told and "descriptors" in bundle.families:
        plain = bundle_predictions(rated, bundle, "descriptors", options.work).reindex(
            columns=[f"desc_{target}_{label}" for label in labels]
        )
        fresh = ~rated.table["split_group"].iloc[rows].isin(seen_by["descriptors"]).to_numpy()
        baseline[fresh] = plain.to_numpy(float)[rows][fresh]
    truth, limits, chosen_on = _bundle_decisions(bundle, family, target, labels, values, rows)
    nobody = np.full(len(rows), -1, np.intp)
    means = _means_of_other_groups(rated, values, rows)
    return Tested(
        family, target, tuple(labels), rows, nobody, values[rows], predicted, baseline, means, None, truth, limits, chosen_on
    )


def _embedding_columns(table: pd.DataFrame) -> list[str]:
    return [str(column) for column in table.columns if str(column)[0] == "e" and str(column)[1:].isdigit()]


def _built_on(bundle: bundles.Bundle, family: str) -> set[str]:
    """Families whose training a family's values rest on, itself included."""
    if family == "probe":
        return {"probe", "midlevel"} & set(bundle.families)
    return {family}


def _bundle_decisions(
    bundle: bundles.Bundle,
    family: str,
    target: str,
    labels: Sequence[str],
    values: NDArray[np.float64],
    rows: NDArray[np.intp],
) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None, str]:
    if target not in LABELLED or family not in bundle.families:
        return None, None, ""
    if family == "probe" and np.isfinite(values[rows]).all():
        fixed = np.full((len(rows), len(labels)), SALIENCE_THRESHOLD)
        return _truth(target, family, values[rows], values[rows]), fixed, "fixed by the founding document"
    held = bundle.families[family]
    limits = {
        label: limit
        for output in held.outputs
        if output.thresholds is not None
        for label, limit in zip(output.labels, output.thresholds, strict=True)
    }
    if not set(labels) <= set(limits) or not np.isfinite(values[rows]).all():
        return None, None, ""
    cut = held.details.get("label_rule", {}).get("share_above")
    if target == "salience" or cut is None:
        truth = _truth(target, family, values[rows], values[rows])
    else:
        rule = dict(zip(next(output.labels for output in held.outputs if output.thresholds is not None), cut, strict=True))
        truth = (values[rows] > np.array([rule[label] for label in labels])).astype(float)
    return truth, np.tile([limits[label] for label in labels], (len(rows), 1)), "the bundle's own"


def _means_of_other_groups(rated: Rated, values: NDArray[np.float64], rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Mean rating of the track's genre over the tracks of other artists or albums; NaN without a genre."""
    if rated.table["genre"].iloc[rows].isna().all():
        return np.full((len(rows), values.shape[1]), np.nan)
    table = pd.DataFrame(values[rows])
    genre = rated.table["genre"].iloc[rows].reset_index(drop=True)
    group = rated.table["split_group"].iloc[rows].reset_index(drop=True)
    total, count = table.groupby(genre).transform("sum"), table.groupby(genre).transform("count")
    own_total, own_count = table.groupby([genre, group]).transform("sum"), table.groupby([genre, group]).transform("count")
    left = (count - own_count).where(lambda n: n > 0)
    means: NDArray[np.float64] = ((total - own_total) / left).reindex(table.index).to_numpy(float)
    return means


# --- figures ------------------------------------------------------------------------------------------------------------------


def _corpora_of(rated: Rated, rows: NDArray[np.intp]) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    names = rated.table["corpus"].to_numpy(object)[rows]
    for name in dict.fromkeys(names):
        yield str(name), names == name


def _mean_r(rated_values: NDArray[np.float64], guesses: NDArray[np.float64]) -> float | None:
    from outputs.metrics import mean_r

    if not (np.isfinite(rated_values) & np.isfinite(guesses)).any():
        return None
    found = mean_r(rated_values, guesses, resamples=1).r
    return float(found) if math.isfinite(found) else None


def _ceiling(rated: Rated, target: str, labels: Sequence[str], corpus: str, rows: NDArray[np.intp]) -> float | None:
    from outputs.metrics import split_half_ceiling

    if rated.listeners is None or target != "gems" or corpus != "emotify":
        return None
    keys = set(rated.table["track_key"].iloc[rows])
    listeners = rated.listeners[rated.listeners["track_key"].isin(keys)]
    found = split_half_ceiling(listeners)[list(labels)].mean()
    return float(found) if math.isfinite(found) else None


def _scores(
    rated: Rated,
    bundle: bundles.Bundle,
    tested: Sequence[Tested],
    genres: Mapping[str, pd.DataFrame],
    embeddings: Mapping[str, pd.DataFrame],
    options: EvaluationOptions,
    plan: Plan | None,
) -> dict[str, Any]:
    from outputs.metrics import genre_scores

    families: dict[str, Any] = {}
    for one in tested:
        entry = families.setdefault(one.family, {"configurations_tried": 1, "outputs": [], "thresholds": {}})
        if plan is not None:
            entry["configurations_tried"] = training.note_tried(options.work, one.family, plan.recipe(one.family), plan)
        else:
            tried = bundle.families[one.family].details.get("training", {}).get("configurations_tried")
            entry["configurations_tried"] = tried  # null where the bundle does not say
        for corpus, held in _corpora_of(rated, one.rows):
            if held.sum() >= FEWEST_TRACKS and np.isfinite(one.rated[held]).any():
                entry["outputs"].append(_output_entry(rated, one, corpus, held, options))
        if one.thresholds is not None:
            means = one.thresholds.mean(axis=0)
            entry["thresholds"] |= {label: float(value) for label, value in zip(one.labels, means, strict=True)}
            entry["thresholds_chosen_on"] = one.chosen_on
        if one.family in genres and "genre" not in entry:
            classes = genres[one.family]
            found = genre_scores(
                classes["rated_class"].tolist(), classes[[f"p_{label}" for label in GENRES.labels]].to_numpy(), GENRES.labels
            )
            told = classes["baseline_class"].notna()
            same = classes["baseline_class"] == classes["rated_class"]
            entry["genre"] = {
                "n": found.n,
                "accuracy": found.accuracy,
                "top3": found.top3,
                "labels": list(GENRES.labels),
                "confusion": found.confusion.to_numpy().tolist(),
                "baseline_accuracy": float(same[told].mean()) if told.any() else None,
            }
    corpora = [
        {
            "name": str(name),
            "tracks": len(table),
            "groups": int(table["split_group"].nunique()),
            "grouped_by": None if not table["grouped"].any() else "album" if name == "soundtracks" else "artist",
            "messages": list(rated.messages.get(str(name), ())),
        }
        for name, table in rated.table.groupby("corpus", sort=False)
    ]
    content = {
        "schema_version": SCHEMA_VERSION,
        "kind": "evaluation",
        "tool": f"annotate {metadata.version('annotate')}",
        "bundle": {"name": bundle.name, "version": bundle.version, "digest": bundle.digest},
        "mode": "folds" if plan is not None else "unseen",
        "folds": options.folds if plan is not None else None,
        "folds_run": plan.folds_run if plan is not None and options.folds is not None else None,  # of a network
        "split": None if options.split is None else str(options.split.test),
        "seed": options.seed,
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": options.command_line,
        "corpora": corpora,
        "families": {} if options.labels_by_model else families,
        "weights": _weights(tested, embeddings),
        "about": {
            "baseline_r": "descriptor model (descriptors and note features) fitted on the same training parts",
            "group_mean_r": "mean rating of the track's genre over tracks of other artists or albums",
            "group_mean_here_r": "mean rating of the genre over the scored tracks themselves, whose ratings it knows: means of "
            "other tracks fall where the own rating rises, which lowers group_mean_r",
            "shuffled_r": "the same model fitted to ratings that were shuffled among the tracks of each training part, once; "
            f"only of {', '.join(FITTED)}",
            "chance_r": "mean r that 95 % of random pairings of ratings and predictions stay under",
            "ceiling_r": "square root of the split-half reliability of the listeners (Spearman-Brown)",
        },
    }
    if options.labels_by_model:
        content["self_agreement"] = families
    plain: dict[str, Any] = _json_ready(content)
    return plain


def _output_entry(rated: Rated, one: Tested, corpus: str, held: NDArray[np.bool_], options: EvaluationOptions) -> dict[str, Any]:
    from outputs.metrics import agreement, chance_r, decision_scores, mean_r

    ratings, predicted = one.rated[held], one.predicted[held]
    overall = mean_r(ratings, predicted, resamples=options.resamples, seed=options.seed)
    each = agreement(ratings, predicted, one.labels, resamples=1, seed=options.seed)
    headline: dict[str, float | None] = {
        "r": overall.r,
        "r_low": overall.r_low,
        "r_high": overall.r_high,
        "r2": float(each["r2"].mean()),
        "auroc": None,
        "f1": None,
    }
    if one.truth is not None and one.thresholds is not None:
        decided = decision_scores(one.truth[held], one.predicted[held], one.thresholds[held], one.labels)
        headline |= {"auroc": float(decided["auroc"].mean()), "f1": float(decided["f1"].mean())}
    return {
        "target": one.name,
        "columns": one.columns,
        "corpus": corpus,
        "n": int(held.sum()),
        "headline": headline,
        "baseline_r": _mean_r(ratings, one.baseline[held]),
        "group_mean_r": _mean_r(ratings, one.group_mean[held]),
        "group_mean_here_r": _mean_r(ratings, _means_here(rated, one.rows[held], ratings)),
        "shuffled_r": None if one.shuffled is None else _mean_r(ratings, one.shuffled[held]),
        "chance_r": chance_r(ratings, predicted, seed=options.seed),
        "ceiling_r": _ceiling(rated, one.target, one.labels, corpus, one.rows[held]),
    }


def _means_here(rated: Rated, rows: NDArray[np.intp], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean rating of each track's genre over the same tracks; NaN where there are not two genres."""
    genre = rated.table["genre"].iloc[rows].reset_index(drop=True)
    if genre.nunique() < 2:
        return np.full(values.shape, np.nan)
    means: NDArray[np.float64] = pd.DataFrame(values).groupby(genre).transform("mean").reindex(genre.index).to_numpy(float)
    return means


def _weights(tested: Sequence[Tested], embeddings: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Coefficients of the linear maps, fitted to people's ratings on what frozen or held-out networks predicted."""
    from outputs.coefficients import standardised_coefficients

    found: dict[str, Any] = {}
    by = {(one.family, one.target): one for one in tested}
    for family, target, features in (("joint", "film", "midlevel"), ("a2mid2e", "film", "midlevel")):
        if (family, target) in by and (family, features) in by:
            emotions, inputs = by[family, target], by[family, features]
            both = np.intersect1d(emotions.rows, inputs.rows)
            if len(both) >= len(inputs.labels) + FEWEST_TRACKS:
                x = pd.DataFrame(inputs.predicted, index=inputs.rows, columns=list(inputs.labels)).loc[both]
                y = pd.DataFrame(emotions.rated, index=emotions.rows, columns=list(emotions.labels)).loc[both]
                found[family] = standardised_coefficients(x, y).to_dict("records")
    if ("probe", "gems") in by and "probe" in embeddings:
        emotions = by["probe", "gems"]
        x = embeddings["probe"].set_axis(list(MIDLEVEL.labels), axis=1)
        y = pd.DataFrame(emotions.rated, index=emotions.rows, columns=list(emotions.labels)).reindex(x.index).dropna()
        if len(y) >= x.shape[1] + FEWEST_TRACKS:
            found["probe"] = standardised_coefficients(x.loc[y.index], y, shares=True).to_dict("records")
    return found


def _json_ready(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_ready(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


# --- the folder ---------------------------------------------------------------------------------------------------------------


def _check_out(out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    scores = out / "scores.json"
    if scores.is_file() and json.loads(scores.read_text()).get("kind") == "evaluation":
        return  # an earlier evaluation, which is replaced
    raise ValueError(f"{out} exists and holds no evaluation, choose another folder")


def _identity(rated: Rated, rows: NDArray[np.intp]) -> pd.DataFrame:
    table = rated.table.iloc[rows][["track", "track_key", "corpus", "genre", "split_group"]]
    return table.rename(columns={"genre": "group"}).reset_index(drop=True)


def long_table(rated: Rated, tested: Sequence[Tested], genres: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All predictions, one row a track, family and label."""
    parts = []
    for one in tested:
        for number, column in enumerate(one.columns):
            part = _identity(rated, one.rows)
            part["fold"] = one.folds
            part["family"], part["target"] = one.family, column
            part["rated"], part["predicted"] = one.rated[:, number], one.predicted[:, number]
            part["baseline"], part["group_mean"] = one.baseline[:, number], one.group_mean[:, number]
            part["rated_label"] = np.nan if one.truth is None else one.truth[:, number]
            part["threshold"] = np.nan if one.thresholds is None else one.thresholds[:, number]
            parts.append(part[np.isfinite(one.rated[:, number])])
    for family, classes in genres.items():
        part = _identity(rated, classes.index.to_numpy())
        part["family"], part["target"] = family, "genre"
        for name in ("fold", "rated_class", "predicted_class", "baseline_class", *(f"p_{label}" for label in GENRES.labels)):
            part[name] = classes[name].to_numpy()
        parts.append(part)
    table = pd.concat([part.dropna(axis=1, how="all") for part in parts], ignore_index=True)
    for name in ("rated", "predicted", "baseline", "group_mean", "rated_label", "threshold", *(f"p_{x}" for x in GENRES.labels)):
        table[name] = table[name].astype("float64") if name in table else np.nan
    for name in ("group", "rated_class", "predicted_class", "baseline_class"):
        table[name] = table[name].astype("str").where(table[name].notna(), None) if name in table else None
        table[name] = table[name].astype("string")
    return table.astype({"fold": "int64"})


def _write(
    rated: Rated,
    scores: Mapping[str, Any],
    tested: Sequence[Tested],
    genres: Mapping[str, pd.DataFrame],
    embeddings: Mapping[str, pd.DataFrame],
    families: Sequence[str],
    options: EvaluationOptions,
) -> None:
    options.out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{options.out.name}.", dir=options.out.parent))
    try:
        long_table(rated, tested, genres).to_parquet(folder / "predictions.parquet", index=False)
        _embedding_table(rated, embeddings).to_parquet(folder / "embeddings.parquet", index=False)
        (folder / "histories").mkdir()
        for family in families:
            for path in sorted((options.work / family).glob("fold*/history.json")) if scores["mode"] == "folds" else ():
                shutil.copyfile(path, folder / "histories" / f"{family}.{path.parent.name}.json")
        tables = folder / "scores"
        tables.mkdir()
        for name, table in score_tables(rated, tested, options).items():
            prefix = "self_agreement_" if options.labels_by_model and name != "self_agreement" else ""
            table.to_csv(tables / f"{prefix}{name}.csv", index=False)
        (folder / "scores.json").write_text(json.dumps(scores, indent=1))
        folder.chmod(0o755)
        if options.out.exists():
            shutil.rmtree(options.out)
        os.replace(folder, options.out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _embedding_table(rated: Rated, embeddings: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    parts = []
    for family, values in embeddings.items():
        part = _identity(rated, values.index.to_numpy())[["track", "corpus", "group"]]
        part["family"] = family
        named = values.reset_index(drop=True).rename(columns=lambda number: f"e{int(number):03d}")
        parts.append(pd.concat([part, named], axis=1))
    if not parts:
        return pd.DataFrame(columns=["track", "corpus", "group", "family"], dtype="str")
    table = pd.concat(parts, ignore_index=True)
    table["group"] = table["group"].astype("string")
    return table


def score_tables(rated: Rated, tested: Sequence[Tested], options: EvaluationOptions) -> dict[str, pd.DataFrame]:
    """The CSV tables, by file name."""
    from outputs.metrics import agreement, decision_scores, label_set_scores, threshold_sweep

    tables: dict[str, list[pd.DataFrame]] = {}

    def keep(name: str, one: Tested, corpus: str, table: pd.DataFrame) -> None:
        for position, (column, value) in enumerate((("family", one.family), ("target", one.name), ("corpus", corpus))):
            table.insert(position, column, value)
        tables.setdefault(name, []).append(table)

    for one in tested:
        for corpus, held in _corpora_of(rated, one.rows):
            if held.sum() < FEWEST_TRACKS or not np.isfinite(one.rated[held]).any():
                continue
            ratings, predicted = one.rated[held], one.predicted[held]
            each = agreement(ratings, predicted, one.labels, resamples=options.resamples, seed=options.seed)
            each = each.rename(columns={"r": "pearson", "r_low": "low", "r_high": "high"})
            plain = agreement(ratings, one.baseline[held], one.labels, resamples=1)["r"]
            by_group = agreement(ratings, one.group_mean[held], one.labels, resamples=1)["r"]
            keep("agreement", one, corpus, each.assign(baseline_pearson=plain, group_mean_pearson=by_group).reset_index())
            if one.truth is None or one.thresholds is None:
                continue
            truth, limits = one.truth[held], one.thresholds[held]
            keep("classification", one, corpus, decision_scores(truth, predicted, limits, one.labels).reset_index())
            keep("label_sets", one, corpus, pd.DataFrame([label_set_scores(truth, predicted >= limits)]))
            keep("threshold_sweep", one, corpus, threshold_sweep(truth, predicted, one.labels, SWEEP_GRID))
            own = (predicted >= SALIENCE_THRESHOLD).astype(float)
            keep("self_agreement", one, corpus, threshold_sweep(own, predicted, one.labels, SELF_THRESHOLDS))
    if "self_agreement" in tables:
        for table in tables["self_agreement"]:
            table["measured_against"] = f"labels that the model itself wrote at threshold {SALIENCE_THRESHOLD}"
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
