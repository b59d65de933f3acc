"""The floor that an agreement stands on: the family's own model, fitted to ratings that were shuffled among the tracks.

The ratings of the tracks that a fold learns from are dealt out anew among the tracks of the same corpus, all labels of a track
together, so that nothing is left but the labels' level, spread and correlations; the fold's held-out tracks keep their own. What
such a model agrees with people is what splits and scoring give away by themselves. Only families that train in seconds are
fitted once more (`FITTED`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from annotate import training
from annotate.training import Part, Plan, Rated, columns_of, values_of

FITTED = ("descriptors", "best", "va", "probe")


def shuffled(rated: Rated, rows: NDArray[np.intp], targets: Sequence[str], seed: int) -> Rated:
    """The same tracks, the ratings of `rows` for some targets dealt out anew among the tracks of each corpus."""
    rng = np.random.default_rng(seed)
    table = rated.table.copy()
    held = [column for target in targets for column in columns_of(target) if column in table]
    for corpus in table["corpus"].iloc[rows].unique():
        own = np.sort(rows[(table["corpus"].iloc[rows] == corpus).to_numpy()])
        table.loc[table.index[own], held] = table[held].iloc[rng.permutation(own)].to_numpy()
    return replace(rated, table=table)


def shuffled_predictions(
    rated: Rated, family: str, target: str, part: Part, plan: Plan, work: Path, seed: int
) -> pd.DataFrame | None:
    """What a model of one of `FITTED` tells of a part's test tracks after shuffled ratings, by column; None of other families.

    Kept in the folder of the fold, beside what the true ratings gave.
    """
    if family not in FITTED:
        return None
    place = work / family / (target if family in training.RATING_PREFIX else part.name) / "shuffled"
    kept = place / f"{part.name}-{seed}.parquet"
    if not kept.exists():
        place.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(_fit(rated, family, target, part, plan, work, place, seed))
        temporary = kept.with_suffix(".tmp")
        table.to_parquet(temporary, index=False)
        os.replace(temporary, kept)
    return pd.read_parquet(kept)


def _fit(rated: Rated, family: str, target: str, part: Part, plan: Plan, work: Path, place: Path, seed: int) -> dict[str, Any]:
    dealt = shuffled(rated, part.train, [target], seed + (part.fold or 0))
    if family in training.RATING_PREFIX:
        columns, _ = training.descriptor_targets(rated, target)
        model = training.fit_ratings(dealt, family, target, part.train, plan.recipe(family))
        predicted = model.predict(training.rating_inputs(rated, family)[part.test])
        return {f"{training.RATING_PREFIX[family]}_{name}": values for name, values in zip(columns, predicted.T, strict=True)}
    if family == "probe":
        from models import networks

        rows = training.rated_rows(rated, "probe")
        salience = np.full((len(rated.table), 7), np.nan, np.float32)
        salience[rows] = training.salience_of(rated, work, rows, plan.frozen)
        network = networks.fit_probe(salience[part.train], values_of(dealt, "gems")[part.train], plan.recipe("probe"))
        predicted = network.predict(salience[part.test], verbose=0)["gems"]
        return dict(zip(columns_of("gems"), predicted.T, strict=True))
    model = training.train_part(dealt, family, part, plan.recipe(family), place, plan, work)
    return training.predict_network(rated, family, model, part.test)
