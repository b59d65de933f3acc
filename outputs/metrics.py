"""How well predictions agree with people.

Conventions
-----------
- ``n`` tracks × ``k`` labels; every function checks its arrays, measures, and returns tables with one row a label.
- A pair of which one half is missing (NaN) is left out of that label's regression figures; classification takes no NaN.
- What cannot be evaluated is NaN, with the reason in the column ``note``, never an exception and never a flattering 0 or 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn import metrics as sk
from sklearn.metrics import average_precision_score, roc_auc_score

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

AGREEMENT_COLUMNS: Final = (
    "n",
    "r",
    "r_low",
    "r_high",
    "spearman",
    "spearman_low",
    "spearman_high",
    "r2",
    "rmse",
    "mae",
    "ccc",
    "note",
)
DECISION_COLUMNS: Final = ("threshold", "auroc", "ap", "f1", "precision", "recall", "mcc", "support", "note")
MULTILABEL_COLUMNS: Final = ("precision", "recall", "f1", "auroc", "ap", "support", "note")
CONSTANT: Final = 1e-6  # spread relative to magnitude under which a float32 column says nothing
NUMBERS_AT_A_TIME: Final = 2_000_000  # numbers of the bootstrap held in memory


@dataclass(frozen=True)
class MeanR:
    """Mean Pearson r over the labels that can be evaluated."""

    r: float
    r_low: float  # 2.5th percentile of the bootstrap
    r_high: float  # 97.5th percentile
    n_labels: int


@dataclass(frozen=True)
class GenreScores:
    """Agreement of predicted with true genres."""

    n: int  # tracks
    accuracy: float  # 0-1
    top3: float  # 0-1: share of tracks whose genre is among the three most probable
    confusion: pd.DataFrame  # tracks: row = true genre, column = most probable genre


def agreement(
    rated: ArrayLike, predicted: ArrayLike, labels: Sequence[str], *, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Compare predictions with ratings, label by label.

    Parameters
    ----------
    rated, predicted : array_like
        Shape (n, k), same units.
    labels : sequence of str
        The k labels: index of the result.
    resamples : int
        Bootstrap resamples of the tracks.
    seed : int
        Of the bootstrap; all labels share its resamples.

    Returns
    -------
    pandas.DataFrame
        Columns ``n`` (pairs), ``r`` (Pearson) with ``r_low`` and ``r_high`` (95 % percentile interval), ``spearman``,
        ``r2`` = 1 - SS_residual / SS_total, ``rmse`` and ``mae`` (units of the rating), ``ccc`` =
        2 cov / (var + var + (difference of means)²) (Lin, 1989), ``note``.

    Raises
    ------
    ValueError
        If the shapes differ or a value is infinite.
    """
    true, guess = _pairs(rated, predicted, len(labels))
    rows: list[tuple[object, ...]] = []
    for label in range(len(labels)):
        x, y = _complete(true[:, label], guess[:, label])
        note = _note(x, y)
        pearson = spearman = (np.nan, np.nan, np.nan)
        if not note:
            pearson = (float(stats.pearsonr(x, y).statistic), *_bootstrap(_row_pearson, (x, y), resamples, seed))
            spearman = (float(stats.spearmanr(x, y).statistic), *_bootstrap(_row_spearman, (x, y), resamples, seed))
        rows.append((len(x), *pearson, *spearman, *_errors(x, y), note))
    return pd.DataFrame(rows, index=pd.Index(labels, name="label"), columns=list(AGREEMENT_COLUMNS))


def mean_r(rated: ArrayLike, predicted: ArrayLike, *, resamples: int = 1000, seed: int = 0) -> MeanR:
    """Average Pearson r over the labels that can be evaluated, with a 95 % interval over resampled tracks.

    Arrays as for `agreement`; the interval resamples whole tracks, so it respects what the labels have in common.
    """
    true, guess = _pairs(rated, predicted, None)
    usable = [not _note(*_complete(true[:, label], guess[:, label])) for label in range(true.shape[1])]
    true, guess = true[:, usable], guess[:, usable]
    if not any(usable):
        return MeanR(np.nan, np.nan, np.nan, 0)
    r = np.mean([_pearson(*_complete(true[:, label], guess[:, label])) for label in range(true.shape[1])])
    some = np.isfinite(true).any(axis=1)
    true, guess = true[some], guess[some]

    def mean_over_labels(tracks: NDArray[np.intp], axis: int = -1) -> Floats:
        each = [_row_pearson(true[tracks, label], guess[tracks, label], axis) for label in range(true.shape[1])]
        mean: Floats = np.nanmean(each, axis=0)
        return mean

    low, high = _bootstrap(mean_over_labels, (np.arange(len(true)),), resamples, seed)
    return MeanR(float(r), low, high, true.shape[1])


def chance_r(rated: ArrayLike, predicted: ArrayLike, *, shuffles: int = 200, seed: int = 0) -> float:
    """Mean r that 95 % of random pairings of tracks' ratings with other tracks' predictions stay under.

    Arrays as for `agreement`; NaN without a label that can be evaluated.
    """
    true, guess = _pairs(rated, predicted, None)
    complete = np.isfinite(true).all(axis=1)
    usable = [label for label in range(true.shape[1]) if not _note(true[complete, label], guess[complete, label])]
    if not usable:
        return float("nan")
    true, guess = true[complete][:, usable], guess[complete][:, usable]
    rng = np.random.default_rng(seed)
    means = [float(np.nanmean(_column_r(true[rng.permutation(len(true))], guess))) for _ in range(shuffles)]
    return float(np.percentile(means, 95))


def decision_scores(truth: ArrayLike, score: ArrayLike, thresholds: ArrayLike, labels: Sequence[str]) -> pd.DataFrame:
    """Score multi-label decisions ``score >= threshold`` where the threshold may differ from fold to fold, label by label.

    Parameters
    ----------
    truth : array_like of bool
        Shape (n, k).
    score, thresholds : array_like
        Shape (n, k); the score need not be a probability.
    labels : sequence of str
        The k labels: index of the result.

    Returns
    -------
    pandas.DataFrame
        Columns ``threshold`` (mean over tracks), ``auroc``, ``ap``, ``f1``, ``precision``, ``recall``, ``mcc`` (Matthews),
        ``support`` (positives), ``note``; all NaN and "not evaluable" where the truth has one class only.
    """
    true, values = _decisions(truth, score)
    limits = np.asarray(thresholds, dtype=float)
    if limits.shape != true.shape or len(labels) != true.shape[1]:
        raise ValueError(f"thresholds have shape {limits.shape} and there are {len(labels)} labels for scores {true.shape}")
    rows: list[tuple[object, ...]] = []
    for label in range(true.shape[1]):
        y, p, limit = true[:, label], values[:, label], limits[:, label]
        support = int(y.sum())
        if support in (0, len(y)):
            reason = "no positives" if support == 0 else "no negatives"
            rows.append((float(limit.mean()), *(np.nan,) * 6, support, f"not evaluable: {reason}"))
            continue
        chosen = p >= limit
        precision, recall, f1, _ = sk.precision_recall_fscore_support(y, chosen, average="binary", zero_division=0)
        mcc = float(sk.matthews_corrcoef(y, chosen))
        rows.append(
            (float(limit.mean()), roc_auc_score(y, p), average_precision_score(y, p), f1, precision, recall, mcc, support, "")
        )
    return pd.DataFrame(rows, index=pd.Index(labels, name="label"), columns=list(DECISION_COLUMNS))


def label_set_scores(truth: ArrayLike, decided: ArrayLike) -> dict[str, float]:
    """Score whole sets of labels a track: Hamming loss, F1 by samples, micro and macro, subset accuracy.

    Macro F1 is over the labels that have both classes; a track without labels on both sides counts 1 in the F1 by samples.
    """
    true, chosen = np.asarray(truth, dtype=int), np.asarray(decided, dtype=int)
    if true.shape != chosen.shape or true.ndim != 2 or not true.size:
        raise ValueError(f"truth has shape {true.shape}, decisions {chosen.shape}: must be the same (n, k)")
    evaluable = (true.min(axis=0) == 0) & (true.max(axis=0) == 1)
    macro = sk.f1_score(true[:, evaluable], chosen[:, evaluable], average="macro", zero_division=0) if evaluable.any() else np.nan
    return {
        "n": float(len(true)),
        "hamming_loss": float(sk.hamming_loss(true, chosen)),
        "f1_samples": float(sk.f1_score(true, chosen, average="samples", zero_division=1)),
        "f1_micro": float(sk.f1_score(true, chosen, average="micro", zero_division=0)),
        "f1_macro": float(macro),
        "subset_accuracy": float(sk.accuracy_score(true, chosen)),
        "evaluable_labels": float(evaluable.sum()),
    }


def threshold_sweep(truth: ArrayLike, score: ArrayLike, labels: Sequence[str], grid: ArrayLike) -> pd.DataFrame:
    """Precision, recall and F1 of each label, and their macro averages with the subset accuracy, at each threshold.

    Columns ``threshold``, ``label`` (``macro`` for the averages over labels with both classes), ``precision``, ``recall``,
    ``f1``, ``subset_accuracy`` (of the macro rows).
    """
    true, values = _decisions(truth, score)
    evaluable = (true.min(axis=0) == 0) & (true.max(axis=0) == 1)
    rows: list[tuple[object, ...]] = []
    for threshold in np.asarray(grid, dtype=float):
        chosen = values >= threshold
        each = np.full((true.shape[1], 3), np.nan)
        for label in np.flatnonzero(evaluable).tolist():
            scores = sk.precision_recall_fscore_support(true[:, label], chosen[:, label], average="binary", zero_division=0)
            each[label] = scores[:3]
            rows.append((threshold, labels[label], *each[label], np.nan))
        macro = each[evaluable].mean(axis=0) if evaluable.any() else (np.nan,) * 3
        rows.append((threshold, "macro", *macro, float(sk.accuracy_score(true, chosen))))
    return pd.DataFrame(rows, columns=["threshold", "label", "precision", "recall", "f1", "subset_accuracy"])


def split_half_ceiling(listeners: pd.DataFrame, *, splits: int = 100, seed: int = 0) -> pd.Series[float]:
    """Correlation that the listeners' own disagreement leaves to the best possible model.

    Each track's listeners are halved at random; r is the correlation over tracks of the two halves' shares, averaged over
    `splits`; the reliability of the whole is 2r / (1 + r) (Spearman-Brown), and its square root bounds a model's r.

    Parameters
    ----------
    listeners : pandas.DataFrame
        One row a listener and track: ``track_key``, and one 0/1 column an emotion.
    splits : int
        Random halvings.
    seed : int
        Of the halvings.

    Returns
    -------
    pandas.Series
        Emotion -> ceiling (0-1): 0 where the halves do not agree, NaN where a half is constant. Tracks with a single
        listener are left out.

    Raises
    ------
    ValueError
        If ``track_key`` is missing or a value is not 0 or 1.
    """
    if "track_key" not in listeners:
        raise ValueError("listeners lack the column 'track_key'")
    if splits < 1:
        raise ValueError(f"splits={splits} must be >= 1")
    chosen = listeners.drop(columns="track_key")
    choices = chosen.to_numpy(dtype=float, na_value=np.nan)
    allowed = ((choices == 0) | (choices == 1)).all(axis=0)
    wrong = [str(name) for name in chosen.columns[~allowed]]
    if wrong:
        raise ValueError(f"listeners' choices must be 0 or 1: {', '.join(wrong)}")
    codes = pd.factorize(listeners["track_key"])[0]
    if (codes < 0).any():
        raise ValueError("listeners hold a row without 'track_key'")
    several = np.bincount(codes)[codes] > 1
    codes, choices = np.unique(codes[several], return_inverse=True)[1], choices[several]
    sizes = np.bincount(codes)
    if len(sizes) < 3:
        return pd.Series(np.nan, index=chosen.columns, name="ceiling")
    by_track = np.argsort(codes, kind="stable")
    codes, choices = codes[by_track], choices[by_track]
    starts = np.cumsum(sizes) - sizes
    first_half = np.arange(len(codes)) - starts[codes] < (sizes // 2)[codes]
    totals = np.add.reduceat(choices, starts)
    rng = np.random.default_rng(seed)
    correlations = np.empty((splits, choices.shape[1]))
    for split in range(splits):
        order = np.argsort(codes + rng.random(len(codes)))  # shuffles within each track
        first = np.add.reduceat(choices[order] * first_half[:, None], starts)
        halves = first / (sizes // 2)[:, None], (totals - first) / (sizes - sizes // 2)[:, None]
        correlations[split] = _column_r(*halves)
    r = correlations.mean(axis=0)
    ceiling = np.sqrt(np.maximum(2 * r / (1 + np.maximum(r, 0)), 0))
    return pd.Series(ceiling, index=chosen.columns, name="ceiling")


def multilabel_scores(
    truth: ArrayLike, probability: ArrayLike, thresholds: ArrayLike, *, labels: Sequence[str] | None = None
) -> pd.DataFrame:
    """Score multi-label decisions ``probability >= threshold``, label by label.

    Parameters
    ----------
    truth : array_like of bool
        Shape (n, k).
    probability : array_like
        Shape (n, k).
    thresholds : array_like
        Shape (k,).
    labels : sequence of str, optional
        Index of the result; 0 to k - 1 without it.

    Returns
    -------
    pandas.DataFrame
        Columns ``precision`` (0 where nothing is predicted), ``recall``, ``f1``, ``auroc``, ``ap`` (average precision), all
        0-1, ``support`` (positives), ``note``: all NaN and "not evaluable" where the truth has one class only.

    Raises
    ------
    ValueError
        If the shapes differ, the truth is not 0/1 or a probability is not finite.
    """
    true, score = _decisions(truth, probability)
    limits = np.asarray(thresholds, dtype=float)
    if limits.shape != (true.shape[1],):
        raise ValueError(f"thresholds have shape {limits.shape}, must be ({true.shape[1]},)")
    if labels is not None and len(labels) != true.shape[1]:
        raise ValueError(f"{len(labels)} labels for {true.shape[1]} columns")
    rows: list[tuple[object, ...]] = []
    for label in range(true.shape[1]):
        y, p = true[:, label], score[:, label]
        support = int(y.sum())
        if support in (0, len(y)):
            reason = "no positives" if support == 0 else "no negatives"
            rows.append((*(np.nan,) * 5, support, f"not evaluable: {reason}"))
            continue
        chosen = p >= limits[label]
        hits = int((chosen & y).sum())
        precision, recall = hits / max(int(chosen.sum()), 1), hits / support
        f1 = 2 * hits / (int(chosen.sum()) + support)
        rows.append((precision, recall, f1, roc_auc_score(y, p), average_precision_score(y, p), support, ""))
    index = pd.RangeIndex(true.shape[1], name="label") if labels is None else pd.Index(labels, name="label")
    return pd.DataFrame(rows, index=index, columns=list(MULTILABEL_COLUMNS))


def genre_scores(truth: Sequence[str], probabilities: ArrayLike, labels: Sequence[str]) -> GenreScores:
    """Compare true genres with predicted probabilities.

    Parameters
    ----------
    truth : sequence of str
        n genres.
    probabilities : array_like
        Shape (n, k); where two are equal the earlier label counts as the more probable.
    labels : sequence of str
        The k genres.

    Raises
    ------
    ValueError
        If a true genre is not among the labels, the shapes differ, there is no track or a probability is not finite.
    """
    unknown = sorted({str(genre) for genre in truth} - set(labels))
    if unknown:
        raise ValueError(f"true genres that the model does not know: {', '.join(unknown)}")
    scores = np.asarray(probabilities, dtype=float)
    if scores.shape != (len(truth), len(labels)):
        raise ValueError(f"probabilities have shape {scores.shape}, must be ({len(truth)}, {len(labels)})")
    if not len(truth):
        raise ValueError("truth is empty, must hold at least 1 track")
    if not np.isfinite(scores).all():
        raise ValueError("probabilities hold NaN or infinite values")
    codes = np.array([list(labels).index(str(genre)) for genre in truth])
    ranked = np.argsort(-scores, axis=1, kind="stable")
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, (codes, ranked[:, 0]), 1)
    return GenreScores(
        n=len(codes),
        accuracy=float((ranked[:, 0] == codes).mean()),
        top3=float((ranked[:, :3] == codes[:, None]).any(axis=1).mean()),
        confusion=pd.DataFrame(counts, index=pd.Index(labels, name="true"), columns=pd.Index(labels, name="predicted")),
    )


def best_thresholds(truth: ArrayLike, probability: ArrayLike, grid: ArrayLike) -> Floats:
    """Choose for each label the threshold of `grid` with the highest F1, shape (k,).

    Among equals the middle one: least near a decision that would have changed. A label with one class only gets the middle
    of the thresholds that score the same.

    Raises
    ------
    ValueError
        As `multilabel_scores`, and if the grid is empty or does not rise.
    """
    true, score = _decisions(truth, probability)
    candidates = np.asarray(grid, dtype=float)
    if candidates.ndim != 1 or not candidates.size or not (np.diff(candidates) > 0).all():
        raise ValueError("grid must be a rising sequence of at least 1 threshold")
    f1 = np.empty((len(candidates), true.shape[1]))
    for row, threshold in enumerate(candidates):
        chosen = score >= threshold
        f1[row] = 2 * (chosen & true).sum(axis=0) / np.maximum(chosen.sum(axis=0) + true.sum(axis=0), 1)
    equals = [np.flatnonzero(column >= column.max() - 1e-12) for column in f1.T]
    return np.array([candidates[best[(len(best) - 1) // 2]] for best in equals], dtype=float)


def _pairs(rated: ArrayLike, predicted: ArrayLike, n_labels: int | None) -> tuple[Floats, Floats]:
    true, guess = np.array(rated, dtype=float), np.array(predicted, dtype=float)
    if true.ndim != 2 or true.shape != guess.shape:
        raise ValueError(f"rated has shape {true.shape}, predicted {guess.shape}: must be the same (n, k)")
    if n_labels is not None and true.shape[1] != n_labels:
        raise ValueError(f"{n_labels} labels for {true.shape[1]} columns")
    if np.isinf(true).any() or np.isinf(guess).any():
        raise ValueError("rated or predicted holds infinite values")
    missing = np.isnan(true) | np.isnan(guess)
    true[missing] = guess[missing] = np.nan
    return true, guess


def _complete(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    paired = np.isfinite(x)
    return x[paired], y[paired]


def _decisions(truth: ArrayLike, probability: ArrayLike) -> tuple[Bools, Floats]:
    true, score = np.asarray(truth), np.asarray(probability, dtype=float)
    if true.ndim != 2 or true.shape != score.shape:
        raise ValueError(f"truth has shape {true.shape}, probability {score.shape}: must be the same (n, k)")
    if not true.size:
        raise ValueError("truth is empty, must hold at least 1 track and 1 label")
    if not np.isin(true, (0, 1)).all():
        raise ValueError("truth must be 0 or 1")
    if not np.isfinite(score).all():
        raise ValueError("probability holds NaN or infinite values")
    return true.astype(bool), score


def _is_constant(values: Floats) -> bool:
    return bool(np.ptp(values) <= CONSTANT * np.abs(values).max())


def _note(x: Floats, y: Floats) -> str:
    if len(x) < 3:
        return "fewer than 3 pairs"
    constant = [name for name, values in (("ratings", x), ("predictions", y)) if _is_constant(values)]
    return f"constant {' and '.join(constant)}" if constant else ""


def _errors(x: Floats, y: Floats) -> tuple[float, float, float, float]:
    """R², RMSE, MAE and CCC of predictions y of ratings x."""
    if not len(x):
        return np.nan, np.nan, np.nan, np.nan
    mean_square = float(sk.mean_squared_error(x, y))
    variance = 0.0 if _is_constant(x) else float(x.var())
    spread = variance + float(y.var()) + float(x.mean() - y.mean()) ** 2
    covariance = float(((x - x.mean()) * (y - y.mean())).mean())
    r2 = float(sk.r2_score(x, y)) if variance and len(x) > 1 else np.nan
    ccc = 2 * covariance / spread if variance else np.nan
    return r2, mean_square**0.5, float(sk.mean_absolute_error(x, y)), ccc


def _pearson(x: Floats, y: Floats) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def _row_pearson(x: Floats, y: Floats, axis: int = -1) -> Floats:
    """Pearson r along an axis; NaN pairs are left out, and r is NaN where a side is constant."""
    x, y = x - np.nanmean(x, axis=axis, keepdims=True), y - np.nanmean(y, axis=axis, keepdims=True)
    scale = np.sqrt(np.nansum(x**2, axis=axis) * np.nansum(y**2, axis=axis))
    product = np.asarray(np.nansum(x * y, axis=axis))
    r: Floats = np.divide(product, scale, out=np.full(product.shape, np.nan), where=scale > CONSTANT**2)
    return r


def _row_spearman(x: Floats, y: Floats, axis: int = -1) -> Floats:
    return _row_pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)


def _bootstrap(
    statistic: Callable[..., Floats], sample: tuple[NDArray[Any], ...], resamples: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval over resampled tracks (`scipy.stats.bootstrap`); resamples that are constant are left out."""
    if resamples < 1:
        raise ValueError(f"resamples={resamples} must be >= 1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant resamples
        found = stats.bootstrap(
            sample,
            statistic,
            paired=len(sample) > 1,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, min(resamples, NUMBERS_AT_A_TIME // max(len(sample[0]), 1))),
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return _interval(np.asarray(found.bootstrap_distribution))


def _column_r(x: Floats, y: Floats) -> Floats:
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scale = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    r: Floats = np.divide((x * y).sum(axis=0), scale, out=np.full(x.shape[1:], np.nan), where=scale > 1e-9)
    return r


def _interval(draws: Floats) -> tuple[float, float]:
    usable = draws[np.isfinite(draws)]
    if not len(usable):
        return np.nan, np.nan
    low, high = np.percentile(usable, [2.5, 97.5])
    return float(low), float(high)
