"""Correlations, intervals, adjusted p, regressions and ceilings against independent references."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.multitest import multipletests

from outputs.statistics import (
    adjusted_p,
    block_of,
    ceilings,
    correlate,
    honest_values,
    label_of,
    other_dimension,
    partial,
    pearson,
    pooled_within,
    regress,
    spearman,
)

# Benjamini & Hochberg 1995, table 1: p of 15 end points; at q = .05 the four smallest are rejected
BENJAMINI_HOCHBERG = [
    0.0001,
    0.0004,
    0.0019,
    0.0095,
    0.0201,
    0.0278,
    0.0298,
    0.0344,
    0.0459,
    0.3240,
    0.4262,
    0.5719,
    0.6528,
    0.7590,
    1.0,
]
# Anscombe 1973, the first set: r = .816, y = 3.00 + 0.500 x
ANSCOMBE_X = np.array([10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5], dtype=float)
ANSCOMBE_Y = np.array([8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68])


@pytest.fixture(scope="module")
def sample():
    """Sixty tracks in three genres whose means differ, with two covarying numbers and a covariate."""
    rng = np.random.default_rng(5)
    genre = np.repeat(["classical", "pop", "rock"], 20)
    shift = np.repeat([0.0, 2.0, -1.0], 20)
    z = rng.normal(size=60)
    x = shift + z + rng.normal(size=60)
    y = 0.5 * shift + 0.7 * z + rng.normal(size=60)
    return pd.DataFrame({"x": x, "y": y, "z": z, "genre": genre})


def test_pearson_is_scipys_and_the_textbooks():
    found = pearson(ANSCOMBE_X, ANSCOMBE_Y)
    assert found.r == pytest.approx(0.816, abs=5e-4)
    assert found.p == pytest.approx(stats.linregress(ANSCOMBE_X, ANSCOMBE_Y).pvalue)
    # Fisher's z by hand: arctanh(.8164) ± 1.96 / √8
    assert (found.low, found.high) == pytest.approx((0.4244, 0.9507), abs=2e-4)


def test_spearman_has_bonett_and_wrights_interval():
    found = spearman(ANSCOMBE_X, ANSCOMBE_Y)
    assert found.r == pytest.approx(stats.pearsonr(stats.rankdata(ANSCOMBE_X), stats.rankdata(ANSCOMBE_Y)).statistic)
    half = 1.959964 * np.sqrt((1 + found.r**2 / 2) / 8)
    assert np.arctanh(found.high) - np.arctanh(found.r) == pytest.approx(half, rel=1e-6)
    assert np.arctanh(found.r) - np.arctanh(found.low) == pytest.approx(half, rel=1e-6)


def test_spearman_keeps_to_its_bounds_for_a_perfect_order():
    found = spearman(np.arange(12.0), np.exp(np.arange(12.0)))
    assert found.r == pytest.approx(1)
    assert found.low <= found.high <= 1


def test_partial_given_genre_is_the_coefficient_of_a_linear_model(sample):
    dummies = pd.get_dummies(sample["genre"], drop_first=True).to_numpy(dtype=float)
    found = partial(sample["x"].to_numpy(), sample["y"].to_numpy(), dummies)
    fit = sm.OLS(sample["y"], sm.add_constant(np.column_stack((sample["x"], dummies)))).fit()
    t = fit.tvalues.iloc[1]
    assert found.r == pytest.approx(t / np.sqrt(t**2 + fit.df_resid))
    assert found.p == pytest.approx(fit.pvalues.iloc[1])


def test_partial_given_one_number_is_the_textbooks_formula(sample):
    x, y, z = (sample[name].to_numpy() for name in "xyz")
    r = np.corrcoef(np.stack((x, y, z)))
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    found = partial(x, y, z[:, None])
    assert found.r == pytest.approx(expected)
    assert np.arctanh(found.high) - np.arctanh(found.r) == pytest.approx(1.959964 / np.sqrt(60 - 1 - 3))


def test_partial_of_what_the_covariate_says_whole_is_nothing(sample):
    assert np.isnan(partial(sample["x"].to_numpy(), sample["y"].to_numpy(), sample[["x"]].to_numpy()).r)


def test_within_genre_is_the_meta_analysis_of_the_genres(sample):
    found = pooled_within(sample["x"].to_numpy(), sample["y"].to_numpy(), sample["genre"].to_numpy())
    r = [part["x"].corr(part["y"]) for _, part in sample.groupby("genre")]
    reference = combine_effects(np.arctanh(r), np.full(3, 1 / 17))
    fixed = reference.summary_frame().loc["fixed effect"]
    assert np.arctanh([found.r, found.low, found.high]) == pytest.approx(fixed[["eff", "ci_low", "ci_upp"]].to_numpy())
    assert found.differ_p == pytest.approx(reference.test_homogeneity().pvalue)
    assert found.groups == 3


def test_within_genre_leaves_small_and_constant_genres_out(sample):
    x, y, genre = sample["x"].to_numpy().copy(), sample["y"].to_numpy(), sample["genre"].to_numpy().copy()
    x[:20] = 1.0
    genre[-4:] = "jazz"
    assert pooled_within(x, y, genre).groups == 2


def test_a_difference_between_genres_alone_vanishes_within_them():
    rng = np.random.default_rng(1)
    shift = np.repeat([0.0, 3.0, 6.0, 9.0], 50)
    x, y, genre = shift + rng.normal(size=200), shift + rng.normal(size=200), np.repeat(list("abcd"), 50)
    assert pearson(x, y).r > 0.85
    assert abs(pooled_within(x, y, genre).r) < 0.2
    dummies = pd.get_dummies(pd.Series(genre), drop_first=True).to_numpy(dtype=float)
    assert abs(partial(x, y, dummies).r) < 0.2


def test_adjusted_p_is_benjamini_and_hochbergs_example():
    q = adjusted_p(np.array(BENJAMINI_HOCHBERG))
    assert (q < 0.05).sum() == 4
    assert q[3] == pytest.approx(0.0095 * 15 / 4)
    assert q == pytest.approx(multipletests(BENJAMINI_HOCHBERG, method="fdr_bh")[1])


def test_adjusted_p_counts_only_tests_that_were_made():
    q = adjusted_p(np.array([0.01, np.nan, 0.04, np.nan]))
    assert q[[0, 2]] == pytest.approx([0.02, 0.04])
    assert np.isnan(q[[1, 3]]).all()


def test_of_null_correlations_a_twentieth_passes_raw_p_and_hardly_a_family_passes_q():
    """200 families of 7 × 9 independent pairs, n = 60: raw p passes 5 %, q lets any through in at most 5 % of families."""
    rng = np.random.default_rng(0)
    raw, families = [], []
    for _ in range(200):
        x, y = rng.normal(size=(60, 7)), rng.normal(size=(60, 9))
        x, y = (x - x.mean(0)) / x.std(0), (y - y.mean(0)) / y.std(0)
        r = (x.T @ y / 60).ravel()
        p = 2 * stats.t.sf(np.abs(r) * np.sqrt(58 / (1 - r**2)), 58)
        raw.append((p < 0.05).mean())
        families.append((adjusted_p(p) < 0.05).any())
    assert np.mean(raw) == pytest.approx(0.05, abs=0.006)
    assert np.mean(families) < 0.09  # 5 % and three standard errors


def test_a_true_correlation_among_null_ones_is_found_by_correlate():
    rng = np.random.default_rng(3)
    annotated = pd.DataFrame(rng.normal(size=(80, 7)), columns=[f"midlevel_{k}" for k in range(7)])
    rated = pd.DataFrame(rng.normal(size=(80, 3)), columns=["rated_a", "rated_b", "rated_c"])
    rated["rated_a"] += annotated["midlevel_2"]
    found = correlate(annotated, rated).set_index(["column", "rating"])
    assert found.loc[("midlevel_2", "rated_a"), "pearson_q"] < 1e-6
    assert (found["pearson_q"] < 0.05).sum() == 1
    assert (found["family_size"] == 21).all()
    assert set(found["family"]) == {"midlevel: 21 tests"}


def test_correlate_counts_pairs_and_says_why_not():
    rng = np.random.default_rng(2)
    annotated = pd.DataFrame(
        {"gems_a": rng.normal(size=30), "gems_b": np.full(30, 0.3, np.float32), "film_c": [1.0] * 5 + [np.nan] * 25}
    )
    rated = pd.DataFrame({"rated_a": rng.normal(size=30), "rated_b": np.ones(30)})
    rated.loc[:3, "rated_a"] = np.nan
    found = correlate(annotated, rated, ceilings={"rated_a": 0.5}).set_index(["column", "rating"])
    first = found.loc[("gems_a", "rated_a")]
    assert (first["n"], first["missing"]) == (26, 4)
    reference = stats.pearsonr(annotated["gems_a"][4:], rated["rated_a"][4:])
    assert first["pearson"] == pytest.approx(reference.statistic)
    assert first["share_of_ceiling"] == pytest.approx(reference.statistic / 0.5)
    assert found.loc[("gems_a", "rated_b"), "note"] == "not evaluable: the rating has one value"
    assert found.loc[("gems_b", "rated_a"), "note"] == "not evaluable: the column has one value"
    assert found.loc[("film_c", "rated_a"), "note"].startswith("not evaluable: 1 tracks with both, 10 are needed")
    assert found["pearson"].notna().sum() == 1
    assert found.loc[("gems_a", "rated_a"), "family_size"] == 1


def test_valence_is_judged_given_arousal_and_the_other_way(sample):
    assert other_dimension(["rated_valence", "rated_arousal", "rated_energy"]) == {
        "rated_valence": "rated_arousal",
        "rated_arousal": "rated_valence",
    }
    rated = pd.DataFrame({"rated_valence": sample["y"], "rated_energy": sample["z"]})
    found = correlate(sample[["x"]].set_axis(["va_x"], axis=1), rated, genre=sample["genre"]).set_index("rating")
    expected = partial(sample["x"].to_numpy(), sample["y"].to_numpy(), sample[["z"]].to_numpy())
    assert found.loc["rated_valence", "given"] == "rated_energy"
    assert found.loc["rated_valence", "partial_given"] == pytest.approx(expected.r)
    assert found.loc["rated_valence", "genres"] == 3


def test_correlate_wants_the_same_tracks():
    with pytest.raises(ValueError, match="same tracks"):
        correlate(pd.DataFrame({"a": [1.0]}), pd.DataFrame({"b": [1.0]}, index=[7]))


def test_names_of_blocks():
    assert block_of("midlevel_tonal_stability") == "midlevel"
    assert block_of("midlevel_tonal_stability_sd") == "midlevel_sd"
    assert block_of("best_gems_joyful_activation") == "best_gems"
    assert block_of("salient_dissonance_label") == "salient_label"
    assert block_of("midi_pc_cs") == "midi"
    assert label_of("best_gems_joyful_activation") == "joyful_activation"
    assert label_of("midlevel_tonal_stability_sd") == "tonal_stability"
    assert label_of("va_valence_mean") == "valence_mean"


TRACKS = pd.DataFrame(
    {
        "track_key": ["1", "2", "3", "x.wav", "9"],
        "corpus": ["emotify", "emotify", "emotify", "folder", "soundtracks"],
        "audio_sha256": ["a", "b", "c", "d", "e"],
        "in_training": ["probe,descriptors", "probe,descriptors", "", "probe", "midlevel,descriptors"],
        "gems_power": [0.1, 0.2, 0.3, 0.4, 0.5],
        "desc_film_happy": [1.0, 2.0, 3.0, 4.0, 5.0],
        "midlevel_minorness": [1.5, 2.5, 3.5, 4.5, 5.5],
    }
)
OOF = pd.DataFrame(
    {
        "corpus": ["emotify", "emotify", "emotify", "soundtracks"],
        "track_key": ["1", "2", "7", "9"],
        "sha256": ["a", "b", "d", "e"],
        "gems_power": [0.91, np.nan, 0.97, np.nan],
        "desc_film_happy": [np.nan, np.nan, np.nan, 5.9],
        "midlevel_minorness": [np.nan, np.nan, np.nan, 5.9],
    }
)
FAMILIES = {"gems_power": "probe", "desc_film_happy": "descriptors", "midlevel_minorness": "midlevel"}


def test_training_tracks_enter_out_of_fold_or_not_at_all():
    found = honest_values(TRACKS, FAMILIES, OOF)
    # by id; without an out-of-fold value; never trained on; by digest; made from a network that saw the track's ratings
    assert found.values["gems_power"].tolist() == pytest.approx([0.91, np.nan, 0.3, 0.97, np.nan], nan_ok=True)
    # the film head learned from soundtracks alone: emotify stands as annotated
    assert found.values["desc_film_happy"].tolist() == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.9])
    assert found.values["midlevel_minorness"].tolist() == pytest.approx([1.5, 2.5, 3.5, 4.5, 5.9])
    assert found.counts.loc["gems_power"].tolist() == [1, 2, 2]
    assert found.counts.loc["desc_film_happy"].tolist() == [4, 1, 0]


def test_without_the_bundle_training_tracks_are_left_out():
    found = honest_values(TRACKS, FAMILIES, None)
    assert found.counts.loc["gems_power"].tolist() == [1, 0, 4]
    assert found.counts.loc["desc_film_happy"].tolist() == [2, 0, 3]
    assert found.counts.loc["midlevel_minorness"].tolist() == [4, 0, 1]


def test_a_training_track_that_the_bundle_cannot_name_is_left_out():
    unknown = OOF[OOF["track_key"] != "1"]
    assert honest_values(TRACKS, FAMILIES, unknown).counts.loc["gems_power"].tolist() == [1, 1, 3]
    assert np.isnan(honest_values(TRACKS, FAMILIES, unknown).values.loc[0, "desc_film_happy"])


def test_ceiling_by_sampling_is_near_the_truth_it_simulates():
    """Shares of n listeners: true variance over observed variance is the reliability."""
    rng = np.random.default_rng(8)
    truth = rng.beta(2, 4, size=4000)
    n = rng.integers(11, 60, size=4000)
    shares = pd.DataFrame({"rated_a": rng.binomial(n, truth) / n})
    found, how = ceilings(shares, n_raters=pd.Series(n, dtype=float), listeners=None, shares=True)
    assert found["rated_a"] == pytest.approx(np.corrcoef(truth, shares["rated_a"])[0, 1], abs=0.01)
    assert "sampling variance" in how


def test_ceiling_of_means_uses_the_raters_spread():
    rng = np.random.default_rng(9)
    truth = rng.normal(5, 1, size=3000)
    ratings = truth[:, None] + rng.normal(0, 2, size=(3000, 10))
    table = pd.DataFrame({"rated_v": ratings.mean(1), "rated_v_std": ratings.std(1, ddof=1)})
    found, _ = ceilings(table, n_raters=pd.Series(np.full(3000, 10.0)), listeners=None, shares=False)
    assert found["rated_v"] == pytest.approx(np.corrcoef(truth, table["rated_v"])[0, 1], abs=0.01)


def test_no_number_of_raters_no_ceiling():
    assert ceilings(pd.DataFrame({"rated_a": [0.1, 0.2]}), n_raters=None, listeners=None, shares=True)[0] == {}


def test_regression_is_statsmodels_on_fixed_data():
    """Longley's macroeconomic data, in statsmodels; R² = .995479 (NIST certified value)."""
    longley = sm.datasets.longley.load_pandas()
    found = regress(longley.exog, longley.endog)
    assert found.r2 == pytest.approx(0.995479004577296)
    raw = sm.OLS(longley.endog, sm.add_constant(longley.exog)).fit()
    beta = raw.params[longley.exog.columns] * longley.exog.std() / longley.endog.std()
    assert found.coefficients["beta"].to_numpy() == pytest.approx(beta.to_numpy())
    # published VIFs of Longley's data
    assert found.coefficients["vif"].to_numpy() == pytest.approx([135.5, 1788.5, 33.6, 3.59, 399.2, 759.0], rel=2e-3)
    assert (found.groups, found.folds) == (0, 10)


def test_regression_is_judged_on_unseen_artists():
    """A feature that only tells the artist predicts nothing of an artist not seen."""
    rng = np.random.default_rng(4)
    artist = np.repeat(np.arange(30), 8)
    level = rng.normal(size=30)[artist]
    features = pd.DataFrame({"a": rng.normal(size=240), "b": rng.normal(size=240)})
    rating = pd.Series(features["a"] + level + 0.1 * rng.normal(size=240))
    names = pd.Series([f"artist {k}" for k in artist])
    found = regress(features, rating, artist=names)
    reference = sm.OLS(
        (rating - rating.mean()) / rating.std(), sm.add_constant((features - features.mean()) / features.std())
    ).fit(cov_type="cluster", cov_kwds={"groups": artist}, use_t=True)
    assert found.coefficients["low"].to_numpy() == pytest.approx(reference.conf_int()[0].to_numpy()[1:])
    assert found.groups == 30
    assert found.cv_r2 < found.r2


def test_regression_says_why_not():
    features = pd.DataFrame({"a": np.arange(20.0), "b": np.arange(20.0) * 2})
    rating = pd.Series(np.arange(20.0) % 3)
    assert regress(features, rating).note == "not evaluable: the features depend on each other"
    assert regress(features[["a"]], pd.Series(np.ones(20))).note == "not evaluable: the rating has one value"
    assert regress(features[:5], rating[:5]).note == "not evaluable: 5 complete tracks, 10 are needed"
    assert regress(features.assign(b=1.0), rating).note == "not evaluable: a feature has one value"
