import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, r2_score, roc_auc_score

from outputs.metrics import (
    agreement,
    best_thresholds,
    genre_scores,
    mean_r,
    multilabel_scores,
    split_half_ceiling,
)


def correlated(rng: np.random.Generator, n: int, r: float) -> tuple[np.ndarray, np.ndarray]:
    x, noise = rng.standard_normal((2, n))
    return x, r * x + np.sqrt(1 - r * r) * noise


def test_agreement_against_other_implementations():
    rng = np.random.default_rng(1)
    rated = 5 + 2 * rng.standard_normal((60, 3))
    predicted = 0.6 * rated + rng.standard_normal((60, 3)) + 1
    scores = agreement(rated, predicted, ["a", "b", "c"])
    for k, label in enumerate("abc"):
        x, y, row = rated[:, k], predicted[:, k], scores.loc[label]
        assert row["n"] == 60
        assert row["r"] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert row["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)
        assert row["r2"] == pytest.approx(r2_score(x, y))
        assert row["rmse"] == pytest.approx(np.sqrt(np.mean((x - y) ** 2)))
        assert row["mae"] == pytest.approx(np.mean(np.abs(x - y)))
        ccc = 2 * np.cov(x, y, ddof=0)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
        assert row["ccc"] == pytest.approx(ccc)
        assert row["note"] == ""


def test_a_shifted_copy_has_full_r_but_less_ccc():
    rated = np.arange(8.0)[:, None]
    row = agreement(rated, rated + 2, ["a"]).loc["a"]
    assert row["r"] == pytest.approx(1)
    assert row["rmse"] == pytest.approx(2)
    assert row["r2"] == pytest.approx(1 - 4 / 5.25)
    assert row["ccc"] == pytest.approx(2 * 5.25 / (2 * 5.25 + 4))


def test_interval_is_the_bootstrap_of_scipy():
    x, y = correlated(np.random.default_rng(2), 200, 0.7)
    row = agreement(x[:, None], y[:, None], ["a"], resamples=4000).loc["a"]
    expected = stats.bootstrap(
        (x, y),
        lambda a, b, axis: stats.pearsonr(a, b, axis=axis).statistic,
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=3,
    ).confidence_interval
    assert row["r_low"] == pytest.approx(expected.low, abs=0.01)
    assert row["r_high"] == pytest.approx(expected.high, abs=0.01)


def test_interval_does_not_depend_on_unit_and_offset():
    x, y = correlated(np.random.default_rng(3), 50, 0.5)
    plain = agreement(x[:, None], y[:, None], ["a"])
    moved = agreement(1e-3 * x[:, None] + 1e3, 1e6 * y[:, None], ["a"])
    columns = ["r", "r_low", "r_high", "spearman"]
    np.testing.assert_allclose(moved[columns].astype(float), plain[columns].astype(float), atol=1e-6)


def test_resamples_are_seeded_and_drawn_in_bounded_pieces(monkeypatch):
    x, y = correlated(np.random.default_rng(4), 40, 0.5)
    first = agreement(x[:, None], y[:, None], ["a"])
    assert first.equals(agreement(x[:, None], y[:, None], ["a"]))
    assert not first.equals(agreement(x[:, None], y[:, None], ["a"], seed=1))
    monkeypatch.setattr("outputs.metrics.NUMBERS_AT_A_TIME", 1000)
    assert first.equals(agreement(x[:, None], y[:, None], ["a"]))


def test_constant_and_missing_columns_are_said_not_raised():
    x, y = correlated(np.random.default_rng(5), 30, 0.9)
    rated = np.column_stack((x, np.full(30, 0.1), x, x, np.full(30, np.nan)))
    predicted = np.column_stack((np.full(30, 5.0), y, y, y, y))
    rated[10:, 2] = np.nan
    predicted[2:, 3] = np.nan
    scores = agreement(rated, predicted, list("abcde"))
    assert scores["note"].tolist() == [
        "constant predictions",
        "constant ratings",
        "",
        "fewer than 3 pairs",
        "fewer than 3 pairs",
    ]
    assert scores["n"].tolist() == [30, 30, 10, 2, 0]
    assert scores["r"].isna().tolist() == [True, True, False, True, True]
    assert scores.loc["a", "ccc"] == 0
    assert np.isnan(scores.loc["b", "r2"])
    assert scores.loc["c", "r"] == pytest.approx(stats.pearsonr(x[:10], y[:10]).statistic)
    assert scores.loc["c", "r_low"] < scores.loc["c", "r"] < scores.loc["c", "r_high"]
    mean = mean_r(rated, predicted)
    assert mean.n_labels == 1
    assert (mean.r, mean.r_low, mean.r_high) == pytest.approx(tuple(scores.loc["c", ["r", "r_low", "r_high"]]))


def test_mean_r_averages_labels_and_knows_that_they_share_tracks():
    rng = np.random.default_rng(6)
    x, y = correlated(rng, 100, 0.6)
    same = mean_r(np.column_stack((x, x)), np.column_stack((y, y)))
    row = agreement(x[:, None], y[:, None], ["a"]).loc["a"]
    assert (same.r, same.r_low, same.r_high) == pytest.approx((row["r"], row["r_low"], row["r_high"]))
    others = [correlated(rng, 100, 0.6) for _ in range(16)]
    independent = mean_r(np.column_stack([a for a, _ in others]), np.column_stack([b for _, b in others]))
    assert independent.r_high - independent.r_low < 0.5 * (same.r_high - same.r_low)
    assert independent.r == pytest.approx(np.mean([stats.pearsonr(a, b).statistic for a, b in others]))


@pytest.mark.parametrize(
    ("rated", "predicted", "message"),
    [
        (np.zeros((4, 2)), np.zeros((4, 1)), r"rated has shape \(4, 2\), predicted \(4, 1\)"),
        (np.zeros(4), np.zeros(4), r"must be the same \(n, k\)"),
        (np.zeros((4, 3)), np.zeros((4, 3)), r"2 labels for 3 columns"),
        (np.zeros((4, 2)), np.full((4, 2), np.inf), r"infinite"),
    ],
)
def test_bad_arrays_are_refused(rated, predicted, message):
    with pytest.raises(ValueError, match=message):
        agreement(rated, predicted, ["a", "b"])


def listeners_of(shares: np.ndarray, n_listeners: int, rng: np.random.Generator) -> pd.DataFrame:
    rows = [(str(track), rng.random() < share) for track, share in enumerate(shares) for _ in range(n_listeners)]
    return pd.DataFrame(rows, columns=["track_key", "power"]).astype({"power": int}).sample(frac=1, random_state=1)


def test_ceiling_is_the_correlation_with_the_true_share():
    rng = np.random.default_rng(7)
    shares = rng.beta(1, 3, 2000)
    listeners = listeners_of(shares, 9, rng)
    observed = listeners.groupby("track_key")["power"].mean()
    truth = np.corrcoef(observed, shares[observed.index.astype(int)])[0, 1]
    assert split_half_ceiling(listeners)["power"] == pytest.approx(truth, abs=0.02)


def test_ceiling_of_full_and_of_no_agreement():
    rng = np.random.default_rng(8)
    listeners = listeners_of(np.tile([0.0, 1.0], 50), 7, rng)
    listeners["chance"] = rng.integers(0, 2, len(listeners))
    listeners["never"] = 0
    ceiling = split_half_ceiling(listeners)
    assert ceiling["power"] == pytest.approx(1)
    assert ceiling["chance"] < 0.45
    assert np.isnan(ceiling["never"])


def test_ceiling_leaves_out_single_listeners_and_repeats():
    listeners = listeners_of(np.random.default_rng(9).random(40), 5, np.random.default_rng(9))
    single = pd.DataFrame({"track_key": ["x", "y"], "power": [1, 0]})
    alone = split_half_ceiling(listeners)
    assert split_half_ceiling(pd.concat((listeners, single)))["power"] == alone["power"]
    assert np.isnan(split_half_ceiling(single)["power"])


def test_ceiling_refuses_what_is_no_choice():
    with pytest.raises(ValueError, match="must be 0 or 1: power"):
        split_half_ceiling(pd.DataFrame({"track_key": ["a", "a"], "power": [1, 2], "calm": [0, 1]}))
    with pytest.raises(ValueError, match="lack the column 'track_key'"):
        split_half_ceiling(pd.DataFrame({"power": [1]}))


def test_multilabel_scores_against_scikit_learn():
    rng = np.random.default_rng(10)
    truth = rng.random((80, 3)) < 0.3
    probability = np.clip(0.3 * truth + 0.7 * rng.random((80, 3)), 0, 1).round(2)
    thresholds = np.array([0.3, 0.5, 0.7])
    scores = multilabel_scores(truth, probability, thresholds, labels=list("abc"))
    for k, label in enumerate("abc"):
        row = scores.loc[label]
        expected = precision_recall_fscore_support(
            truth[:, k], probability[:, k] >= thresholds[k], average="binary", zero_division=0
        )[:3]
        assert tuple(row[["precision", "recall", "f1"]]) == pytest.approx(expected)
        assert row["auroc"] == pytest.approx(roc_auc_score(truth[:, k], probability[:, k]))
        assert row["ap"] == pytest.approx(average_precision_score(truth[:, k], probability[:, k]))
        assert row["support"] == truth[:, k].sum()


def test_a_label_with_one_class_is_not_evaluable():
    truth = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    probability = np.array([[0.9, 0.1, 0.9], [0.2, 0.9, 0.9], [0.3, 0.2, 0.9]])
    scores = multilabel_scores(truth, probability, [0.5, 0.5, 0.5])
    assert scores["note"].tolist() == ["", "not evaluable: no positives", "not evaluable: no negatives"]
    assert scores.loc[1:, ["precision", "recall", "f1", "auroc", "ap"]].isna().all(axis=None)
    assert scores["support"].tolist() == [2, 0, 3]
    of_the_first = scores.loc[0, ["precision", "recall", "f1", "auroc", "ap"]].to_dict()
    assert of_the_first == pytest.approx({"precision": 1, "recall": 0.5, "f1": 2 / 3, "auroc": 1, "ap": 1})


def test_nothing_predicted_has_precision_zero():
    row = multilabel_scores([[1], [0]], [[0.2], [0.1]], [0.5]).loc[0]
    assert (row["precision"], row["recall"], row["f1"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("truth", "probability", "thresholds", "message"),
    [
        ([[1], [0]], [[0.2], [np.nan]], [0.5], "probability holds NaN"),
        ([[1], [2]], [[0.2], [0.1]], [0.5], "truth must be 0 or 1"),
        ([[1], [0]], [[0.2], [0.1]], [0.5, 0.5], r"thresholds have shape \(2,\), must be \(1,\)"),
        ([[1], [0]], [[0.2]], [0.5], "must be the same"),
        (np.zeros((0, 2)), np.zeros((0, 2)), [0.5, 0.5], "truth is empty"),
    ],
)
def test_bad_decisions_are_refused(truth, probability, thresholds, message):
    with pytest.raises(ValueError, match=message):
        multilabel_scores(truth, probability, thresholds)


def test_genre_scores_by_hand():
    labels = ["classical", "electronic", "pop", "rock"]
    truth = ["rock", "rock", "pop", "classical"]  # places: 1, 4, 3, 1
    probabilities = [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.3, 0.4, 0.2, 0.1], [0.4, 0.4, 0.1, 0.1]]
    scores = genre_scores(truth, probabilities, labels)
    assert (scores.n, scores.accuracy, scores.top3) == (4, 0.5, 0.75)
    assert scores.confusion.loc["rock"].to_dict() == {"classical": 1, "electronic": 0, "pop": 0, "rock": 1}
    assert scores.confusion.loc["pop", "electronic"] == 1
    assert scores.confusion.to_numpy().sum() == 4
    with pytest.raises(ValueError, match="does not know: jazz"):
        genre_scores(["jazz"], [[1, 0, 0, 0]], labels)
    with pytest.raises(ValueError, match=r"shape \(1, 2\), must be \(1, 4\)"):
        genre_scores(["pop"], [[1, 0]], labels)


def test_best_thresholds_are_the_middle_of_the_best():
    truth = np.array([[1, 0], [1, 0], [0, 0], [0, 0]])
    probability = np.array([[0.9, 0.5], [0.62, 0.5], [0.38, 0.5], [0.1, 0.5]])
    grid = np.arange(1, 10) / 10
    np.testing.assert_allclose(best_thresholds(truth, probability, grid), [0.5, 0.5])
    with pytest.raises(ValueError, match="grid must be a rising sequence"):
        best_thresholds(truth, probability, [0.5, 0.5])


def test_no_other_threshold_scores_higher():
    rng = np.random.default_rng(11)
    truth = rng.random((60, 4)) < 0.4
    probability = 0.4 * truth + 0.6 * rng.random((60, 4))
    grid = np.linspace(0.3, 0.7, 41)
    best = multilabel_scores(truth, probability, best_thresholds(truth, probability, grid))["f1"]
    every = [multilabel_scores(truth, probability, np.full(4, threshold))["f1"] for threshold in grid]
    np.testing.assert_allclose(best, np.max(every, axis=0))
