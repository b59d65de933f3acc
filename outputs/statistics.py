"""How annotated columns go with human ratings: correlations, what is left of them given genre, regressions, ceilings.

Conventions
-----------
- Tracks are rows; tables that are set beside each other share their index. A missing half (NaN) leaves the pair out.
- All intervals are of 95 %. Pearson: Fisher's z, as SciPy's; Spearman: Bonett & Wright (2000), z ± 1.96 √((1 + r²/2) / (n - 3)).
- q is Benjamini & Hochberg's (1995) adjusted p. A *family* of tests is one block of columns against all ratings of one corpus.
- What cannot be evaluated is NaN, with the reason in the column ``note``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from outputs.metrics import CONSTANT, split_half_ceiling

Floats = NDArray[np.float64]

MIN_TRACKS: Final = 10  # pairs below which nothing is correlated
MIN_IN_GENRE: Final = 5  # pairs that a genre needs to have an r of its own
ALPHA: Final = 0.05
CV_FOLDS: Final = 10
UPSTREAM: Final = {"probe": ("midlevel",)}  # a family whose columns are made from another's
CORRELATION_COLUMNS: Final = (
    "block",
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
    "spearman_p",
    "spearman_q",
    "partial_genre",
    "partial_genre_low",
    "partial_genre_high",
    "partial_genre_p",
    "partial_genre_q",
    "within_genre",
    "within_genre_low",
    "within_genre_high",
    "within_genre_p",
    "genres",
    "genres_differ_p",
    "given",
    "partial_given",
    "partial_given_low",
    "partial_given_high",
    "partial_given_p",
    "partial_given_q",
    "ceiling",
    "share_of_ceiling",
    "family",
    "family_size",
    "note",
)


@dataclass(frozen=True)
class Correlation:
    """One correlation coefficient."""

    r: float
    low: float  # 95 % interval
    high: float
    p: float  # two-sided, of r = 0
    n: int


@dataclass(frozen=True)
class PooledCorrelation:
    """Correlations in several groups, averaged as Fisher's z with weights n - 3 (fixed effect)."""

    r: float
    low: float
    high: float
    p: float
    groups: int
    differ_p: float  # Cochran's Q: that all groups have one r


@dataclass(frozen=True, eq=False)
class HonestValues:
    """Predictions that no rating of the same track went into."""

    values: pd.DataFrame  # as the table's columns; out-of-fold or NaN where a track was trained on
    counts: pd.DataFrame  # index column: as_annotated, out_of_fold, left_out (tracks)


@dataclass(frozen=True, eq=False)
class Regression:
    """Least squares of one rating on standardised features."""

    coefficients: pd.DataFrame  # index feature: beta (SD of the rating a SD of the feature), low, high, p, vif
    n: int
    r2: float
    r2_adjusted: float
    cv_r2: float  # of predictions for unseen groups; NaN where it cannot be evaluated
    cv_r: float
    folds: int
    groups: int  # artists; 0: none known, folds drawn over tracks
    note: str


def block_of(column: str) -> str:
    """Block that a column belongs to, by its name: ``best_gems_tension`` -> ``best_gems``; spreads and labels apart."""
    found = re.match(r"(?:(?:desc|best)_)?[^_]+", column)
    block = found[0] if found else column
    ending = re.search(r"_(sd|label)$", column)
    return f"{block}_{ending[1]}" if ending else block


def label_of(column: str) -> str:
    """What a column measures, without its block: ``best_gems_joyful_activation`` -> ``joyful_activation``."""
    block = re.sub(r"_(sd|label)$", "", block_of(column))
    return re.sub(r"_(sd|label)$", "", column.removeprefix(f"{block}_"))


def pearson(x: Floats, y: Floats) -> Correlation:
    """Pearson r of complete pairs, with SciPy's interval (Fisher's z) and p."""
    result = stats.pearsonr(x, y)
    with np.errstate(invalid="ignore"):  # three pairs on a line: ∞ − ∞
        interval = result.confidence_interval(0.95)
    return Correlation(float(result.statistic), float(interval.low), float(interval.high), float(result.pvalue), len(x))


def spearman(x: Floats, y: Floats) -> Correlation:
    """Spearman r of complete pairs; p by SciPy, interval by Bonett & Wright (2000)."""
    result = stats.spearmanr(x, y)
    r = float(result.statistic)
    z = np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))
    half = stats.norm.ppf(0.975) * np.sqrt((1 + r * r / 2) / (len(x) - 3))
    return Correlation(r, float(np.tanh(z - half)), float(np.tanh(z + half)), float(result.pvalue), len(x))


def partial(x: Floats, y: Floats, given: Floats) -> Correlation:
    """Pearson r of what is left of x and y after least squares on `given`, shape (n, k), and a constant.

    With k independent covariates: t = r √((n - 2 - k) / (1 - r²)), interval z ± 1.96 / √(n - k - 3) (Fisher 1924).
    """
    design = np.column_stack((np.ones(len(x)), given))
    solution, _, rank, _ = np.linalg.lstsq(design, np.column_stack((x, y)), rcond=None)
    left = np.column_stack((x, y)) - design @ solution
    k = int(rank) - 1
    freedom = len(x) - 2 - k
    nothing_left = [bool(np.std(rest) <= CONSTANT * np.abs(whole).max()) for rest, whole in ((left[:, 0], x), (left[:, 1], y))]
    if freedom < 2 or any(nothing_left):
        return Correlation(np.nan, np.nan, np.nan, np.nan, len(x))
    r = float(np.clip(_r(left[:, 0], left[:, 1]), -1 + 1e-15, 1 - 1e-15))
    t = r * np.sqrt(freedom / (1 - r * r))
    half = stats.norm.ppf(0.975) / np.sqrt(freedom - 1)
    z = np.arctanh(r)
    return Correlation(r, float(np.tanh(z - half)), float(np.tanh(z + half)), float(2 * stats.t.sf(abs(t), freedom)), len(x))


def pooled_within(x: Floats, y: Floats, groups: Sequence[str] | NDArray[np.object_]) -> PooledCorrelation:
    """Correlate inside each group and pool: the mean of Fisher's z, weighted by n - 3 (Hedges & Olkin 1985, fixed effect).

    Groups of fewer than 5 pairs, or constant in one half, are left out.
    """
    labels: NDArray[np.object_] = np.asarray(groups, dtype=object)
    z, weights = [], []
    for label in dict.fromkeys(labels.tolist()):
        inside = labels == label
        if inside.sum() >= MIN_IN_GENRE and not _is_constant(x[inside]) and not _is_constant(y[inside]):
            z.append(np.arctanh(np.clip(_r(x[inside], y[inside]), -1 + 1e-15, 1 - 1e-15)))
            weights.append(inside.sum() - 3)
    if not z:
        return PooledCorrelation(np.nan, np.nan, np.nan, np.nan, 0, np.nan)
    effects, weight = np.array(z), np.array(weights, dtype=float)
    mean = float((weight * effects).sum() / weight.sum())
    error = float(1 / np.sqrt(weight.sum()))
    half = float(stats.norm.ppf(0.975)) * error
    p = float(2 * stats.norm.sf(abs(mean) / error))
    differ = float(stats.chi2.sf((weight * (effects - mean) ** 2).sum(), len(z) - 1)) if len(z) > 1 else np.nan
    return PooledCorrelation(float(np.tanh(mean)), float(np.tanh(mean - half)), float(np.tanh(mean + half)), p, len(z), differ)


def adjusted_p(p: Floats) -> Floats:
    """Benjamini & Hochberg's q of the p that are not NaN, over their number; the others stay NaN."""
    q = np.full(len(p), np.nan)
    tested = np.isfinite(p)
    if tested.any():
        q[tested] = stats.false_discovery_control(p[tested], method="bh")
    return q


def other_dimension(ratings: Sequence[str]) -> dict[str, str]:
    """What a rating of valence or arousal is to be judged given: valence given arousal (or energy), and the other way."""
    names = set(ratings)
    pairs: dict[str, str] = {}
    for activity in ("rated_arousal", "rated_energy"):
        if {"rated_valence", activity} <= names:
            pairs |= {"rated_valence": activity, activity: "rated_valence"}
            break
    return pairs


def correlate(
    annotated: pd.DataFrame,
    rated: pd.DataFrame,
    *,
    genre: pd.Series[str] | None = None,
    ceilings: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Correlate every annotated column with every rating.

    Parameters
    ----------
    annotated, rated : pandas.DataFrame
        One row a track, the same index, numbers.
    genre : pandas.Series, optional
        Of each track; missing where unknown. Without it (or with one genre) nothing is given genre.
    ceilings : mapping, optional
        Rating -> largest r that its raters' agreement allows.

    Returns
    -------
    pandas.DataFrame
        One row a pair, columns `CORRELATION_COLUMNS`. ``missing`` counts the tracks that lack one half, ``genres`` those with
        an r of their own, ``given`` the rating that ``partial_given`` holds constant.

    Raises
    ------
    ValueError
        If the indexes differ.
    """
    if not annotated.index.equals(rated.index):
        raise ValueError("annotated and rated must hold the same tracks in the same order")
    others = other_dimension(list(rated.columns))
    ratings = {name: rated[name].to_numpy(dtype=float, na_value=np.nan) for name in rated.columns}
    rows = []
    for column in annotated.columns:
        values = annotated[column].to_numpy(dtype=float, na_value=np.nan)
        for rating in rated.columns:
            given = others.get(rating)
            covariate = None if given is None else ratings[given]
            pair = _pair(values, ratings[rating], genre, covariate)
            ceiling = (ceilings or {}).get(rating, np.nan)
            measured = float(pair.get("pearson", np.nan))  # type: ignore[arg-type]
            rows.append(
                {"block": block_of(column), "column": column, "rating": rating, "given": given}
                | pair
                | {"ceiling": ceiling, "share_of_ceiling": measured / ceiling if ceiling and ceiling > 0 else np.nan}
            )
    table = pd.DataFrame(rows).reindex(columns=list(CORRELATION_COLUMNS))
    texts = ["block", "column", "rating", "given", "family", "note"]
    numbers = [name for name in CORRELATION_COLUMNS if name not in texts]
    table = table.astype(dict.fromkeys(numbers, "float64") | {"n": "int64", "missing": "int64"})
    sizes = table["pearson_p"].notna().groupby(table["block"], sort=False).sum()
    table["family_size"] = table["block"].map(sizes).astype("int64")
    table["family"] = [f"{block}: {size} tests" for block, size in zip(table["block"], table["family_size"], strict=True)]
    for kind in ("pearson", "spearman", "partial_genre", "partial_given"):
        table[f"{kind}_q"] = table.groupby("block", sort=False)[f"{kind}_p"].transform(
            lambda p: pd.Series(adjusted_p(p.to_numpy(dtype=float)), index=p.index)
        )
    return table


def _pair(x: Floats, y: Floats, genre: pd.Series[str] | None, covariate: Floats | None) -> dict[str, object]:
    paired = np.isfinite(x) & np.isfinite(y)
    n = int(paired.sum())
    row: dict[str, object] = {"n": n, "missing": len(x) - n}
    a, b = x[paired], y[paired]
    note = _note(a, b)
    row["note"] = note
    if note:
        return row
    row |= _named("pearson", pearson(a, b)) | _named("spearman", spearman(a, b))
    if genre is not None:
        known = paired & genre.notna().to_numpy()
        labels = genre.to_numpy(dtype=object)[known]
        kinds = list(dict.fromkeys(labels.tolist()))
        if len(kinds) > 1 and known.sum() >= MIN_TRACKS:
            dummies = np.column_stack([labels == kind for kind in kinds[1:]]).astype(float)
            row |= _named("partial_genre", partial(x[known], y[known], dummies))
            pooled = pooled_within(x[known], y[known], labels)
            row |= {
                "within_genre": pooled.r,
                "within_genre_low": pooled.low,
                "within_genre_high": pooled.high,
                "within_genre_p": pooled.p,
                "genres": pooled.groups,
                "genres_differ_p": pooled.differ_p,
            }
    if covariate is not None:
        known = paired & np.isfinite(covariate)
        if known.sum() >= MIN_TRACKS:
            row |= _named("partial_given", partial(x[known], y[known], covariate[known, None]))
    return row


def _named(name: str, found: Correlation) -> dict[str, float]:
    return {name: found.r, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_p": found.p}


def _note(x: Floats, y: Floats) -> str:
    if len(x) < MIN_TRACKS:
        return f"not evaluable: {len(x)} tracks with both, {MIN_TRACKS} are needed"
    constant = [name for name, values in (("column", x), ("rating", y)) if _is_constant(values)]
    return f"not evaluable: the {' and the '.join(constant)} has one value" if constant else ""


def _r(x: NDArray[np.floating], y: NDArray[np.floating]) -> float:
    both: Floats = np.corrcoef(np.stack((x, y)))
    return float(both[0, 1])


def _is_constant(values: NDArray[np.floating]) -> bool:
    return bool(np.ptp(values) <= CONSTANT * np.abs(values).max())


def honest_values(table: pd.DataFrame, families: Mapping[str, str], oof: pd.DataFrame | None) -> HonestValues:
    """Put out-of-fold predictions in the place of those for tracks that a family was trained on, or leave them out.

    A column learned from a corpus if the bundle's out-of-fold table holds any value of it for that corpus. Of a track that the
    column's family (or one that it is made from) was trained on: its out-of-fold value counts; without one it is left out; a
    column that learned from other corpora only, such as film emotions on a corpus rated for GEMS, stays as annotated.

    Parameters
    ----------
    table : pandas.DataFrame
        ``track_key``, ``corpus``, ``audio_sha256``, ``in_training`` (families, with commas) and the columns.
    families : mapping
        Column -> family that wrote it; only these are looked at.
    oof : pandas.DataFrame, optional
        The bundle's out-of-fold predictions: ``corpus``, ``track_key``, ``sha256``, columns as in the table.
    """
    trained = [frozenset(text.split(",")) if isinstance(text, str) else frozenset() for text in table["in_training"]]
    matches, learned = _oof_rows(table, oof)
    learners = {column for column, _ in learned}
    corpora = [] if oof is None else oof["corpus"].astype(str).tolist()
    columns, counts = {}, {}
    for column, family in families.items():
        values = table[column].to_numpy(dtype=float, na_value=np.nan).copy()
        present = np.isfinite(values)
        own = np.array([family in names for names in trained], dtype=bool)
        upstream = np.array([not names.isdisjoint(UPSTREAM.get(family, ())) for names in trained], dtype=bool)
        replaced = np.zeros(len(values), dtype=bool)
        dropped = np.zeros(len(values), dtype=bool)
        held = None if oof is None or column not in oof else oof[column].to_numpy(dtype=float, na_value=np.nan)
        for number in np.flatnonzero((own | upstream) & present):
            row = matches[number]
            if held is not None and row >= 0 and np.isfinite(held[row]):
                values[number], replaced[number] = held[row], True
            elif upstream[number] or row < 0 or (column, corpora[row]) in learned or column not in learners:
                values[number], dropped[number] = np.nan, True
        columns[column] = values
        counts[column] = (int((present & ~replaced & ~dropped).sum()), int(replaced.sum()), int(dropped.sum()))
    return HonestValues(
        pd.DataFrame(columns, index=table.index),
        pd.DataFrame.from_dict(counts, orient="index", columns=["as_annotated", "out_of_fold", "left_out"]).rename_axis("column"),
    )


def _oof_rows(table: pd.DataFrame, oof: pd.DataFrame | None) -> tuple[list[int], set[tuple[str, str]]]:
    """Row of the out-of-fold table of each track (-1: none), and the pairs (column, corpus) that hold a value."""
    if oof is None:
        return [-1] * len(table), set()
    by_id = {(str(corpus), str(key)): row for row, (corpus, key) in enumerate(zip(oof["corpus"], oof["track_key"], strict=True))}
    by_digest = {str(digest): row for row, digest in enumerate(oof["sha256"]) if isinstance(digest, str)}
    rows = []
    for corpus, key, digest in zip(table["corpus"], table["track_key"], table["audio_sha256"], strict=True):
        plain = str(key).removeprefix(f"{corpus}:")
        found = by_id.get((str(corpus), plain), -1)
        rows.append(found if found >= 0 else by_digest.get(str(digest), -1))
    numbers = oof.drop(columns=["corpus", "track_key", "sha256"])
    held = numbers.notna().groupby(oof["corpus"]).any()
    return rows, {(str(column), str(corpus)) for corpus in held.index for column in held.columns[held.loc[corpus]]}


def ceilings(
    rated: pd.DataFrame, *, n_raters: pd.Series[float] | None, listeners: pd.DataFrame | None, shares: bool
) -> tuple[dict[str, float], str]:
    """Largest r that the raters' own agreement leaves to any model, by rating, and in words how it was found.

    With the single listeners' choices: √ of the split-half reliability (Spearman-Brown). Else by the variance that sampling n
    raters adds to their mean: √(1 - mean(error variance) / variance of the ratings), where the error variance is
    p (1 - p) / (n - 1) of a share p and SD² / n of a mean whose SD is in ``<rating>_std``.

    Parameters
    ----------
    rated : pandas.DataFrame
        ``rated_<label>`` of each track, and ``rated_<label>_std`` where known.
    n_raters : pandas.Series, optional
        Raters of each track.
    listeners : pandas.DataFrame, optional
        ``track_key`` and one 0/1 column a label.
    shares : bool
        Whether the ratings are shares of raters.
    """
    if listeners is not None:
        found = split_half_ceiling(listeners)
        return {f"rated_{label}": float(value) for label, value in found.items()}, (
            "square root of the split-half reliability of the single listeners' choices (100 halvings, Spearman-Brown)"
        )
    bounds: dict[str, float] = {}
    if n_raters is None:
        return bounds, "unknown: the ratings do not say how many people rated"
    for rating in rated.columns:
        if shares:
            variance = rated[rating] * (1 - rated[rating]) / (n_raters - 1).clip(lower=1)
        elif f"{rating}_std" in rated:
            variance = rated[f"{rating}_std"] ** 2 / n_raters
        else:
            continue
        both = variance.notna() & rated[rating].notna()
        total = float(rated.loc[both, rating].var()) if both.sum() >= MIN_TRACKS else 0.0
        if total > 0:
            bounds[rating] = float(np.sqrt(max(0.0, 1 - float(variance[both].mean()) / total)))
    how = "square root of 1 - mean sampling variance of the raters' mean / variance between tracks"
    return bounds, how if bounds else "unknown: neither shares nor the raters' spread are known"


def regress(features: pd.DataFrame, rating: pd.Series[float], *, artist: pd.Series[str] | None = None) -> Regression:
    """Regress one rating on features, all standardised, and judge it on unseen artists.

    Least squares by statsmodels; the intervals allow for tracks of one artist being alike (cluster-robust covariance) where 20
    artists or more are known, and for unequal variance (HC3) elsewhere. ``cv_r2`` = 1 - SS_residual / SS_total of predictions
    by up to 10 models, each of which saw no track of the artist.

    Parameters
    ----------
    features : pandas.DataFrame
        One row a track.
    rating : pandas.Series
        The same index.
    artist : pandas.Series, optional
        Of each track; a track without one is an artist of its own.
    """
    import statsmodels.api as sm
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from statsmodels.stats.outliers_influence import variance_inflation_factor

    complete = features.notna().all(axis=1) & rating.notna()
    x = features[complete].astype(float)
    y = rating[complete].astype(float)
    n, k = x.shape
    empty = pd.DataFrame(np.nan, index=features.columns.rename("feature"), columns=["beta", "low", "high", "p", "vif"])
    note = ""
    if n < max(MIN_TRACKS, k + 3):
        note = f"not evaluable: {n} complete tracks, {max(MIN_TRACKS, k + 3)} are needed"
    elif _is_constant(y.to_numpy(dtype=np.float64)):
        note = "not evaluable: the rating has one value"
    elif any(_is_constant(x[name].to_numpy(dtype=np.float64)) for name in x):
        note = "not evaluable: a feature has one value"
    elif np.linalg.matrix_rank(x - x.mean()) < k:
        note = "not evaluable: the features depend on each other"
    if note:
        return Regression(empty, n, np.nan, np.nan, np.nan, np.nan, 0, 0, note)
    names = None if artist is None else artist[complete]
    known = 0 if names is None else int(names.nunique())
    groups = np.arange(n)
    if names is not None:
        groups = pd.factorize(names.where(names.notna(), "\0" + pd.Series(x.index, index=x.index).astype(str)))[0]
    design = sm.add_constant((x - x.mean()) / x.std())
    model = sm.OLS((y - y.mean()) / y.std(), design)
    if known >= 20:
        fit = model.fit(cov_type="cluster", cov_kwds={"groups": groups}, use_t=True)
    else:
        fit = model.fit(cov_type="HC3", use_t=True)
    interval = fit.conf_int()
    coefficients = pd.DataFrame(
        {
            "beta": fit.params,
            "low": interval[0],
            "high": interval[1],
            "p": fit.pvalues,
            "vif": [np.nan, *(variance_inflation_factor(design.to_numpy(), place) for place in range(1, k + 1))],
        }
    ).drop(index="const")
    folds = min(CV_FOLDS, len(np.unique(groups)))
    cv_r2 = cv_r = np.nan
    if folds > 1:
        unseen = cross_val_predict(
            make_pipeline(StandardScaler(), LinearRegression()), x.to_numpy(), y.to_numpy(), groups=groups, cv=GroupKFold(folds)
        )
        cv_r2 = float(1 - ((y - unseen) ** 2).sum() / ((y - y.mean()) ** 2).sum())
        cv_r = _r(y.to_numpy(dtype=float), np.asarray(unseen, dtype=float))
    return Regression(
        coefficients.rename_axis("feature"), n, float(fit.rsquared), float(fit.rsquared_adj), cv_r2, cv_r, folds, known, ""
    )
