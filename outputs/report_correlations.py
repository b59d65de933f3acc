"""Pages about how annotated columns go with human ratings, and how the models explain an emotion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from outputs import figures
from outputs.explain import UNITS, formula, linear_maps
from outputs.metrics import agreement
from outputs.report import Formulas, Heading, Part, Plot, Section, Table, Text
from outputs.report_corpus import block_name, blocks, with_players
from outputs.statistics import (
    ALPHA,
    MIN_TRACKS,
    adjusted_p,
    block_of,
    ceilings,
    correlate,
    honest_values,
    label_of,
    regress,
)
from outputs.table import Column

FEATURES: Final = (
    "melodiousness",
    "articulation",
    "rhythmic_complexity",
    "rhythmic_stability",
    "dissonance",
    "tonal_stability",
    "minorness",
)
HARDEST: Final = 20  # tracks of the error table
SHOWN: Final = (
    "column",
    "rating",
    "n",
    "missing",
    "pearson",
    "pearson_low",
    "pearson_high",
    "pearson_p",
    "pearson_q",
    "spearman",
    "spearman_low",
    "spearman_high",
    "spearman_q",
    "partial_genre",
    "partial_genre_q",
    "within_genre",
    "genres_differ_p",
    "ceiling",
    "share_of_ceiling",
)
SHOWN_GIVEN: Final = (*SHOWN[:15], "given", "partial_given", "partial_given_q", *SHOWN[15:])
MARK: Final = f"* q < {ALPHA:g}".replace("0.", ".")


@dataclass(frozen=True, eq=False)
class Ratings:
    """Human ratings of the tracks of one corpus."""

    corpus: str
    source: str  # where they came from, in words
    values: pd.DataFrame  # index as the table's; rated_<label>, rated_n
    units: Mapping[str, tuple[str, float, float]]  # rating -> unit, low, high
    listeners: pd.DataFrame | None = None  # one row a listener


@dataclass(frozen=True, eq=False)
class Correlated:
    """Sections about one corpus's ratings, and what the page says at its head."""

    sections: tuple[Section, ...]
    messages: tuple[str, ...]
    details: Mapping[str, Any]


def correlation_sections(
    table: pd.DataFrame,
    columns: Sequence[Column],
    ratings: Ratings,
    oof: pd.DataFrame | None,
    artist: pd.Series[str] | None,
    audio: Mapping[str, str] | None,
    *,
    suffix: str = "",
) -> Correlated:
    """Make the sections about one corpus's ratings; `suffix` tells its names from those of another corpus.

    Parameters
    ----------
    table : pandas.DataFrame
        The annotated tracks of the corpus.
    columns : sequence of Column
        What its columns mean.
    ratings : Ratings
        The same index as the table's.
    oof : pandas.DataFrame, optional
        The bundle's out-of-fold predictions.
    artist : pandas.Series, optional
        What cross-validation keeps together, by track.
    audio : mapping, optional
        Track -> address of its file, for players.
    """
    ok = (table["status"] == "ok").to_numpy()
    table, rated_all = table[ok], ratings.values[ok]
    rated = rated_all.drop(columns="rated_n", errors="ignore").astype(float)
    rated = rated.loc[:, rated.notna().any()]
    both = int(rated.notna().any(axis=1).sum())
    place = f" of {ratings.corpus}" if suffix else ""
    messages: list[str] = []
    grouped = blocks(columns)
    families = {column.name: column.family for members in grouped.values() for column in members}
    details: dict[str, Any] = {"corpus": ratings.corpus, "source": ratings.source, "tracks_with_ratings": both}
    if both < MIN_TRACKS or not families:
        why = "the table has no column that a model wrote" if not families else f"{both} annotated tracks have a rating"
        messages.append(f"no correlations{place}: {why}" + ("" if not families else f", {MIN_TRACKS} are needed"))
        return Correlated((), tuple(messages), details)
    constant = [name for name in rated if rated[name].nunique() == 1]
    if constant:
        messages.append(f"ratings with one value only cannot be correlated: {', '.join(map(str, constant))}")
    is_rated = rated.notna().any(axis=1)
    honest = honest_values(table[is_rated], families, oof)
    values, rated, table = honest.values, rated[is_rated], table[is_rated]
    genre = table["group"].astype(object).where(table["group"].notna()) if table["group"].nunique() > 1 else None
    counts = rated_all.loc[is_rated, "rated_n"].astype(float) if "rated_n" in rated_all else None
    shares = bool(ratings.units) and all(unit == "share" for unit, _, _ in ratings.units.values())
    bounds, how = ceilings(rated, n_raters=counts, listeners=ratings.listeners, shares=shares)
    found = correlate(values, rated, genre=genre, ceilings=bounds)
    training, said = _training(honest.counts, grouped, len(table), oof is not None, suffix)
    messages += said
    families_of_tests = found[["block", "family_size"]].drop_duplicates()
    details |= {
        "families_of_tests": dict(
            zip(families_of_tests["block"], families_of_tests["family_size"].astype(int).tolist(), strict=True)
        ),
        "q": "Benjamini-Hochberg, one family of tests a block of columns",
        "ceilings": how,
        "genres": sorted(map(str, genre.dropna().unique())) if genre is not None else [],
    }
    artists = None if artist is None else artist[table.index]
    sections = [
        Section(f"correlations{suffix}", f"Correlations with ratings{place}", tuple(_correlations(found, grouped, how, suffix))),
        Section(f"training{suffix}", f"Tracks that models were trained on{place}", training),
        *_agreement(table, values, rated, ratings, bounds, audio, suffix, place),
        *_regressions(values, rated, artists, suffix, place),
    ]
    return Correlated(tuple(sections), tuple(messages), details)


def explanation_section(provenance: Mapping[str, Any], families: Sequence[str]) -> list[Section]:
    """Formulas and weights of the linear maps inside the table's families, from its metadata alone."""
    parts: list[Part] = []
    for family, one in linear_maps(provenance).items():
        if family not in families:
            continue
        unit = UNITS.get(one.scale, one.scale)
        emotions = list(one.weights.columns)
        result = "log-odds of the share of listeners" if one.scale == "log-odds" else unit
        parts += [
            Heading(f"{family}: {unit}"),
            Text(f"Each emotion ({result}) is this weighted sum of the seven features, and nothing else."),
            Formulas(tuple((label_of(name), formula(one, name)) for name in emotions)),
        ]
        labelled = one.weights.set_axis([label_of(str(name)) for name in one.weights.index], axis=0)
        labelled = labelled.set_axis([label_of(name) for name in emotions], axis=1)
        per = "unit of salience (0 to 1)" if one.scale == "log-odds" else "rating point of the feature"
        figure = figures.heat_map(
            labelled,
            title=f"Weights of {family}",
            x_name="emotion",
            y_name="mid-level feature",
            colour_name=f"weight ({unit} a {per})",
        )
        parts.append(Plot(f"weights_{family}", f"Weights of {family}: {unit} a {per}.", figure))
        weights = one.weights.copy()
        weights.loc["constant"] = one.bias
        parts.append(Table(f"weights_{family}", f"Weights of {family}", weights.rename_axis("feature"), collapsed=True))
    return [Section("explanation", "How the models explain an emotion", tuple(parts))] if parts else []


def _correlations(found: pd.DataFrame, grouped: Mapping[str, list[Column]], how: str, suffix: str) -> list[Part]:
    given = found["partial_given"].notna().any()
    by_genre = found["partial_genre"].notna().any()
    parts: list[Part] = [
        Text(
            f"A cell is Pearson's r between an annotated column and a rating over tracks; {MARK}, where q is Benjamini and "
            "Hochberg's adjusted p over the block's family of tests, whose size stands below each map. Intervals are of 95 %. "
            "A correlation is not an agreement: a column of another unit can correlate perfectly."
        ),
        Text(f"Ceiling, the largest r that the raters' own agreement allows: {how}."),
    ]
    if by_genre:
        parts.append(
            Text(
                "Genre alone predicts many ratings. Partial: r given genre (dummy variables). Within genre: the r of each genre, "
                "pooled as Fisher's z with weights n − 3; genres differ p: Cochran's Q test that all genres share one r."
            )
        )
    bounds = found[["rating", "ceiling"]].drop_duplicates().dropna()
    if len(bounds):
        parts.append(Table(f"ceilings{suffix}", "Ceilings", bounds))
    for block in grouped:
        inside = found[found["block"] == block]
        if not inside["pearson"].notna().any():
            parts.append(Text(f"{block_name(block)}: {inside['note'].iloc[0] or 'not evaluable'}."))
            continue
        size = int(inside["family_size"].iloc[0])
        name = block_name(block)
        n = f"{int(inside['n'].min())}" + (f" to {int(inside['n'].max())}" if inside["n"].nunique() > 1 else "")
        missing = int(inside["missing"].max())
        gone = f"at most {missing} missing" if missing else "none missing"
        if not block.endswith(("_sd", "_label")):
            parts.append(Heading(name if name[:2].isupper() else name.capitalize()))
            for kind, words in (("pearson", "Pearson r"), ("partial_genre", "partial r given genre")):
                if not inside[kind].notna().any():
                    continue
                figure = figures.heat_map(
                    _grid(inside, kind),
                    marks=_grid(inside, f"{kind}_q") < ALPHA,
                    title=f"{words[0].upper()}{words[1:]}: {name} ({MARK}, n = {n})",
                    x_name="human rating",
                    y_name="annotated column",
                    colour_name=f"{words} (no unit)",
                    limit=1.0,
                )
                family = int(inside[f"{kind}_q"].notna().sum())
                caption = f"{words} of {name} with ratings; {MARK} over a family of {family} tests; n = {n}, {gone}."
                stem = "correlations" if kind == "pearson" else "partial"
                parts.append(Plot(f"{stem}_{block}{suffix}", caption[0].upper() + caption[1:], figure))
        parts.append(
            Table(
                f"correlations_{block}{suffix}",
                f"Correlations of {name}",
                inside,
                f"Family of {size} tests, Benjamini-Hochberg",
                collapsed=True,
                shown=SHOWN_GIVEN if given else SHOWN,
            )
        )
    return parts


def _grid(found: pd.DataFrame, value: str) -> pd.DataFrame:
    grid = found.pivot(index="column", columns="rating", values=value)
    grid = grid.loc[list(found["column"].unique()), list(found["rating"].unique())]
    labels = [label_of(name) for name in grid.index]
    return grid.set_axis(labels, axis=0).set_axis([name.removeprefix("rated_") for name in grid.columns], axis=1)


def _training(
    counts: pd.DataFrame, grouped: Mapping[str, list[Column]], n: int, has_oof: bool, suffix: str
) -> tuple[tuple[Part, ...], list[str]]:
    """Say of each block how many predictions stand as annotated, were replaced out-of-fold, or were left out."""
    rows = []
    for block, members in grouped.items():
        inside = counts.loc[[column.name for column in members]]
        rows.append({"block": block} | {name: int(inside[name].max()) for name in counts.columns})
    summary = pd.DataFrame(rows)
    replaced, dropped = summary[summary["out_of_fold"] > 0], summary[summary["left_out"] > 0]
    messages = []
    if len(replaced):
        listed = ", ".join(f"{row.block} {row.out_of_fold}" for row in replaced.itertuples())
        messages.append(f"of {n} rated tracks, those that a model was trained on enter with out-of-fold predictions: {listed}")
    if len(dropped):
        listed = ", ".join(f"{row.block} {row.left_out}" for row in dropped.itertuples())
        why = (
            "the bundle has no out-of-fold prediction of them" if has_oof else "the table's bundle is not here (--bundle FOLDER)"
        )
        messages.append(f"of {n} rated tracks, training tracks are left out because {why}: {listed}")
    note = "Tracks of the most affected column of each block; every column: tables/training_columns" + suffix + ".csv"
    return (
        Text(
            "A model that has seen a track's ratings in training agrees with them too well. Such a track counts with the "
            "prediction of a model that never saw it (out of fold), or not at all. A column that learned from other corpora only "
            "stands as annotated."
        ),
        Table(f"training{suffix}", "Predictions by origin", summary, note),
        Table(f"training_columns{suffix}", "Predictions by origin, every column", counts, collapsed=True),
    ), messages


def _agreement(
    table: pd.DataFrame,
    values: pd.DataFrame,
    rated: pd.DataFrame,
    ratings: Ratings,
    bounds: Mapping[str, float],
    audio: Mapping[str, str] | None,
    suffix: str,
    place: str,
) -> list[Section]:
    """Compare columns with the ratings that they predict, and list the tracks where they miss most."""
    pairs = [(str(column), rating) for column in values if (rating := rating_of(str(column))) in rated]
    pairs = [(column, rating) for column, rating in pairs if values[column].notna().sum() >= MIN_TRACKS and rating is not None]
    if not pairs:
        return []
    names, targets = [column for column, _ in pairs], [str(rating) for _, rating in pairs]
    measured = agreement(rated[targets].to_numpy(), values[names].to_numpy(), names)
    same_unit = [_same_scale(column, ratings.units.get(rating)) for column, rating in zip(names, targets, strict=True)]
    measured.loc[[not same for same in same_unit], ["r2", "rmse", "mae", "ccc"]] = np.nan
    measured.insert(0, "rating", targets)
    measured.insert(6, "ceiling", [bounds.get(rating, np.nan) for rating in targets])
    measured = measured.rename_axis("column")
    parts: list[Part] = [
        Text(
            "Columns beside the rating that they predict. r² = 1 − SS of residuals / SS of ratings; errors in the rating's unit, "
            "only where column and rating share it; intervals by 1 000 bootstrap resamples of the tracks."
        ),
        Plot(
            f"agreement{suffix}",
            "Pearson r of each column with the rating that it predicts, 95 % interval.",
            figures.intervals(
                measured[measured["r"].notna()],
                title="Agreement with human ratings",
                x_name="Pearson r (no unit)",
                y_name="annotated column",
                value="r",
                low="r_low",
                high="r_high",
            ),
        ),
        Table(f"agreement{suffix}", "Agreement with the rating of the same name", measured),
    ]
    hardest = _hardest(table, values, rated, pairs)
    if len(hardest):
        block = hardest.attrs["block"]
        parts.append(
            Table(
                f"hardest{suffix}",
                f"Tracks where {block_name(block)} misses most",
                with_players(hardest, audio),
                "error: mean absolute difference over labels of standardised predictions and ratings, in standard deviations",
            )
        )
    return [Section(f"agreement{suffix}", f"Agreement with the same rating{place}", tuple(parts))]


def rating_of(column: str) -> str | None:
    """Name of the rating that a column predicts: ``best_gems_power`` -> ``rated_power``; None for spreads and labels."""
    if column.endswith(("_sd", "_label")) or column.startswith(("midi_", "salient_")):
        return None
    return f"rated_{label_of(column).removesuffix('_mean')}"


def _same_scale(column: str, unit: tuple[str, float, float] | None) -> bool:
    if unit is None:
        return False
    name, low, high = unit
    if name == "share":
        return column.startswith(("gems_", "emotion_", "desc_gems_", "best_gems_"))
    ten = column.startswith(("midlevel_", "joint_", "desc_midlevel_", "best_midlevel_"))
    return (low, high) == ((1.0, 10.0) if ten else (1.0, 9.0)) and not column.startswith("crnn_")


def _hardest(
    table: pd.DataFrame, values: pd.DataFrame, rated: pd.DataFrame, pairs: Sequence[tuple[str, str | None]]
) -> pd.DataFrame:
    """Tracks with the largest standardised error, of the first block that the report trusts most."""
    order = ("best_gems", "best_film", "best_midlevel", "best_va", "desc_gems", "desc_film", "gems", "film", "emotion", "va")
    present = list(dict.fromkeys(block_of(column) for column, _ in pairs))
    block = next((name for name in order if name in present), present[0])
    errors, guesses, truths = {}, {}, {}
    for column, rating in pairs:
        if block_of(column) != block or rating is None:
            continue
        x, y = values[column], rated[rating]
        if x.std() > 0 and y.std() > 0:
            errors[label_of(column)] = ((x - x.mean()) / x.std() - (y - y.mean()) / y.std()).abs()
            guesses[label_of(column)], truths[label_of(column)] = x, y
    if not errors:
        return pd.DataFrame()
    frame = pd.DataFrame(errors)
    mean = frame.mean(axis=1).dropna().sort_values(ascending=False, kind="stable").head(HARDEST)
    worst = frame.loc[mean.index].idxmax(axis=1)
    hardest = pd.DataFrame(
        {
            "track": table.loc[mean.index, "track"],
            "group": table.loc[mean.index, "group"],
            "error": mean,
            "worst_label": [figures.words(label) for label in worst],
            "rated": [float(truths[str(label)].loc[track]) for track, label in zip(worst.index, worst, strict=True)],
            "predicted": [float(guesses[str(label)].loc[track]) for track, label in zip(worst.index, worst, strict=True)],
        }
    )
    hardest.attrs["block"] = block
    return hardest


def _regressions(
    values: pd.DataFrame, rated: pd.DataFrame, artist: pd.Series[str] | None, suffix: str, place: str
) -> list[Section]:
    """Regress each rating on the seven features of each block that has them."""
    parts: list[Part] = []
    for block in ("midlevel", "best_midlevel", "desc_midlevel", "joint"):
        names = [f"{block}_{feature}" for feature in FEATURES]
        if not all(name in values and values[name].notna().sum() >= MIN_TRACKS for name in names):
            continue
        if block == "desc_midlevel" and any("best_midlevel" in str(name) for name in values):
            continue  # best is the descriptor model or better
        features = values[names].set_axis(list(FEATURES), axis=1)
        fits = {rating: regress(features, rated[rating], artist=artist) for rating in rated.columns}
        rows = [
            fit.coefficients.reset_index().assign(rating=rating.removeprefix("rated_"))
            for rating, fit in fits.items()
            if not fit.note
        ]
        notes = [f"{rating}: {fit.note}" for rating, fit in fits.items() if fit.note]
        if not rows:
            parts.append(Text(f"Regression on {block_name(block)}: " + "; ".join(notes) + "."))
            continue
        long = pd.concat(rows, ignore_index=True)
        long["q"] = adjusted_p(long["p"].to_numpy(dtype=float))
        fit = next(fit for fit in fits.values() if not fit.note)
        grid = {key: long.pivot(index="feature", columns="rating", values=key).loc[list(FEATURES)] for key in ("beta", "q")}
        order = [rating.removeprefix("rated_") for rating, fit in fits.items() if not fit.note]
        quality = pd.DataFrame(
            [
                {
                    "rating": rating.removeprefix("rated_"),
                    "n": fit.n,
                    "r2": fit.r2,
                    "r2_adjusted": fit.r2_adjusted,
                    "cv_r2": fit.cv_r2,
                    "cv_r": fit.cv_r,
                    "folds": fit.folds,
                    "artists": fit.groups,
                }
                for rating, fit in fits.items()
                if not fit.note
            ]
        ).set_index("rating")
        kept = f"{fit.groups} artists" if fit.groups else "tracks (no artist is known)"
        robust = "cluster-robust by artist" if fit.groups >= 20 else "heteroscedasticity-robust (HC3)"
        caption = (
            f"Standardised β of each rating on the seven features of {block_name(block)}, n = {fit.n}; {MARK} over a family of "
            f"{len(long)} tests."
        )
        parts += [
            Heading(f"Ratings on the seven features: {block_name(block)}"),
            Text(
                "Least squares, features and rating standardised: β is the change of the rating, in its standard deviations, for "
                f"one standard deviation of the feature, the other six held. Intervals are {robust}. VIF above 5 or 10 warns "
                f"of features alike. Cross-validated figures: {fit.folds} folds over {kept}, none of them in a fold's "
                "training part and its test part."
            ),
            Plot(
                f"regression_{block}{suffix}",
                caption,
                figures.heat_map(
                    grid["beta"][order],
                    marks=grid["q"][order] < ALPHA,
                    title=f"Regression: {block_name(block)}",
                    x_name="human rating",
                    y_name="feature",
                    colour_name="standardised β (SD a SD)",
                ),
            ),
            Plot(
                f"regression_r2_{block}{suffix}",
                "Share of the rating's variance that the seven features explain: fitted, and predicted for unseen artists.",
                figures.bars(
                    quality[["r2", "cv_r2"]].set_axis(["R² fitted", "R² cross-validated"], axis=1),
                    title=f"Variance explained by {block_name(block)}",
                    x_name="R² (share of variance)",
                    y_name="human rating",
                ),
            ),
            Table(f"regression_r2_{block}{suffix}", "Variance explained", quality),
            Table(
                f"regression_{block}{suffix}",
                "Coefficients",
                long[["rating", "feature", "beta", "low", "high", "p", "q", "vif"]],
                f"q: Benjamini-Hochberg, family of {len(long)} tests",
                collapsed=True,
            ),
        ]
        if notes:
            parts.append(Text("; ".join(notes) + "."))
    return [Section(f"regression{suffix}", f"Ratings explained by mid-level features{place}", tuple(parts))] if parts else []
