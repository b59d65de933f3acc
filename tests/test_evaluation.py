"""`annotate evaluate`: the folder that it writes, that no model is scored on a group it saw, and that nothing flatters."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

from annotate import evaluation, evaluation_floor, training, training_data
from annotate.evaluation import EvaluationOptions, evaluate
from annotate.training_teacher import groups_seen, teach
from models import bundle as bundles
from models import networks
from models.descriptors import DescriptorRecipe
from models.labels import GEMS, MIDLEVEL
from outputs.coefficients import standardised_coefficients

TRACKS = 48
QUICK = DescriptorRecipe(components=5)


def made(folder: Path) -> training.Rated:
    """48 tracks of 16 artists whose arrays are random numbers; shares and valence follow from two of the descriptors."""
    rng = np.random.default_rng(0)
    place = folder / training_data.specs_digest()
    cause = rng.normal(size=(TRACKS, 2))
    digests = [f"{number:064d}" for number in range(TRACKS)]
    for number, digest in enumerate(digests):
        (place / digest).mkdir(parents=True)
        descriptors = rng.normal(size=535)
        descriptors[:2] = cause[number]
        arrays = {
            "descriptors": descriptors,
            "features": rng.normal(size=54),
            "statistics": np.concatenate([cause[number], rng.normal(size=20)]),
            "sequence": np.abs(rng.normal(size=(512, 4))) + 0.1,
            "segments": rng.normal(size=(2, 155, 259)).astype(np.float16),
            "length": np.array(5 * 22_050),
        }
        for name, array in arrays.items():
            np.save(place / digest / f"{name}.npy", array)
    logits = cause @ rng.normal(size=(2, 9)) + rng.normal(0, 0.3, (TRACKS, 9))
    table = {
        "corpus": "emotify",
        "track": [f"rock/{k}.mp3" for k in range(TRACKS)],
        "track_key": [str(k) for k in range(TRACKS)],
        "path": "",
        "genre": [("rock", "pop")[k % 2] for k in range(TRACKS)],
        "artist": [f"artist {k // 3}" for k in range(TRACKS)],
        "title": [f"title {k}" for k in range(TRACKS)],
        "sha256": digests,
        "split_group": [f"emotify:artist {k // 3}" for k in range(TRACKS)],
        "grouped": True,
        "va_valence_mean": 5 + cause[:, 0],
        "va_arousal_mean": 5 + cause[:, 1],
    }
    table |= {f"gems_{label}": (1 / (1 + np.exp(-logits[:, k]))).clip(0.02, 0.98) for k, label in enumerate(GEMS.labels)}
    chosen = {label: (rng.random(TRACKS * 10) < np.repeat(table[f"gems_{label}"], 10)).astype(int) for label in GEMS.labels}
    listeners = pd.DataFrame({"track_key": np.repeat(table["track_key"], 10), **chosen})
    return training.Rated(pd.DataFrame(table), folder, listeners, {"emotify": ("a word",)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def rated(folder: Path) -> training.Rated:
    return made(folder / "arrays")


@pytest.fixture(scope="module")
def options(folder: Path) -> EvaluationOptions:
    quick = replace(networks.VA_RECIPE, epochs=2)
    return EvaluationOptions(
        "default",
        (),
        folder / "eval",
        folder / "work",
        folds=2,
        families=("descriptors", "va", "probe"),
        recipes={"descriptors": QUICK, "va": quick, "probe": networks.PROBE_RECIPE},
        resamples=50,
        jobs=1,
    )


@pytest.fixture(scope="module")
def scores(options: EvaluationOptions, rated: training.Rated) -> dict[str, Any]:
    """Scores of three families on three folds; the mid-level salience that the probe reads is made up."""
    salience = rated.stack("descriptors")[:, :7]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "gather", lambda *_, **__: rated)
        named = {f"salient_{label}": salience[:, k] for k, label in enumerate(MIDLEVEL.labels)}
        patch.setattr(training, "_salience_frozen", lambda *_: lambda rows: {name: one[rows] for name, one in named.items()})
        return evaluate(options)


def test_the_folder_is_what_reports_read(scores: dict[str, Any], options: EvaluationOptions) -> None:
    assert json.loads((options.out / "scores.json").read_text()) == scores
    assert (scores["kind"], scores["mode"], scores["folds"]) == ("evaluation", "folds", 2)
    assert scores["corpora"] == [{"name": "emotify", "tracks": 48, "groups": 16, "grouped_by": "artist", "messages": ["a word"]}]
    assert set(scores["families"]) == {"descriptors", "va", "probe"}
    probe = scores["families"]["probe"]["outputs"][0]
    assert probe["columns"] == [f"gems_{label}" for label in GEMS.labels]
    assert probe["headline"]["r"] > 0.4  # the salience holds the cause
    assert probe["headline"]["r_low"] < probe["headline"]["r"] < probe["headline"]["r_high"]
    assert probe["headline"]["auroc"] > 0.6
    for family in ("descriptors", "va", "probe"):
        for output in scores["families"][family]["outputs"]:
            assert -0.35 < output["shuffled_r"] < 0.25  # nothing is left of what the cause tells
            assert 0 < output["chance_r"] < 0.3
    assert 0.3 < probe["ceiling_r"] < 1
    assert probe["baseline_r"] is not None
    assert probe["group_mean_r"] is not None
    assert probe["group_mean_here_r"] > probe["group_mean_r"]  # it knows the ratings
    assert set(scores["families"]["probe"]["thresholds"]) == set(GEMS.labels)
    assert scores["families"]["probe"]["thresholds_chosen_on"] == "validation part of each fold"
    assert scores["families"]["va"]["configurations_tried"] == 1
    assert {row["feature"] for row in scores["weights"]["probe"]} >= {"melodiousness", "minorness"}
    predictions = pd.read_parquet(options.out / "predictions.parquet")
    assert len(predictions) == 48 * (9 + 9 + 2 + 2)
    assert {"track", "track_key", "corpus", "group", "split_group", "fold", "family", "target", "rated", "predicted",
            "baseline", "rated_class", "predicted_class", "p_rock", "threshold"} <= set(predictions)  # fmt: skip
    assert predictions.loc[predictions["family"] == "probe", "threshold"].notna().all()
    assert predictions.loc[predictions["family"] == "va", "threshold"].isna().all()
    embeddings = pd.read_parquet(options.out / "embeddings.parquet")
    assert embeddings.groupby("family").size().to_dict() == {"probe": 48, "va": 48}
    assert embeddings.loc[embeddings["family"] == "va", "e015"].notna().all()
    assert embeddings["e000"].dtype == np.float32
    history = json.loads((options.out / "histories" / "va.fold1.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2]
    agreement = pd.read_csv(options.out / "scores" / "agreement.csv")
    assert {"label", "n", "pearson", "low", "high", "spearman", "r2", "rmse", "mae", "ccc"} <= set(agreement)
    classes = pd.read_csv(options.out / "scores" / "classification.csv")
    assert {"label", "threshold", "auroc", "ap", "f1", "precision", "recall", "mcc", "support"} <= set(classes)
    sweep = pd.read_csv(options.out / "scores" / "threshold_sweep.csv")
    assert {"macro", *GEMS.labels} == set(sweep["label"])
    own = pd.read_csv(options.out / "scores" / "self_agreement.csv")
    assert (own.loc[(own["threshold"] == 0.4) & (own["label"] == "macro"), "f1"] == 1).all()  # which is why it proves nothing


def test_no_track_is_predicted_by_a_model_that_knew_its_artist(
    scores: dict[str, Any], options: EvaluationOptions, rated: training.Rated
) -> None:
    predictions = pd.read_parquet(options.out / "predictions.parquet")
    for (family, _), table in predictions.groupby(["family", "target"]):
        assert (table.groupby("split_group")["fold"].nunique() == 1).all()
        assert sorted(table["fold"].unique()) == [0, 1]
        if family == "va":
            for fold in range(2):
                record = json.loads((options.work / "va" / f"fold{fold}" / "record.json").read_text())
                learned = {key for _, key in record["trained_on"]}
                assert learned.isdisjoint(table.loc[table["fold"] == fold, "track_key"])
                assert len(learned) + (table["fold"] == fold).sum() == 48
    one = predictions[(predictions["family"] == "va") & (predictions["target"] == "va_valence_mean")].set_index("track_key")
    same = predictions[(predictions["family"] == "descriptors") & (predictions["target"] == "va_valence_mean")]
    np.testing.assert_allclose(one["baseline"], same.set_index("track_key")["predicted"].loc[one.index], atol=1e-5)


def test_an_evaluation_is_replaced_and_nothing_else(options: EvaluationOptions, tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("x")
    with pytest.raises(ValueError, match="exists and holds no evaluation"):
        evaluate(replace(options, out=tmp_path))
    assert (tmp_path / "thesis.docx").exists()


@pytest.fixture
def known_bundle(monkeypatch: pytest.MonkeyPatch) -> bundles.Bundle:
    """The built-in bundle, as if its descriptor model and `va` had been trained on the tracks of artists 0 to 7."""
    held = bundles.load("default")
    families = {}
    for name, family in held.families.items():
        ids = [str(k) for k in range(0, 24, 3)] if name in ("descriptors", "va", "best") else []
        record = {"training": {"ids": {"emotify": ids}, "sha256": [], "titles": []}}
        families[name] = replace(family, details={**family.details, **record})
    known = replace(held, families=families)
    monkeypatch.setattr(bundles, "load", lambda _name: known)
    return known


def test_without_folds_only_new_artists_are_scored(
    known_bundle: bundles.Bundle,
    options: EvaluationOptions,
    rated: training.Rated,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "gather", lambda *_, **__: rated)
    unseen = replace(options, folds=None, families=("descriptors", "va"), recipes={}, out=tmp_path / "e", work=tmp_path / "w")
    found = evaluate(unseen)
    assert found["mode"] == "unseen"
    predictions = pd.read_parquet(tmp_path / "e" / "predictions.parquet")
    assert set(predictions["track_key"]) == {
        str(k) for k in range(24, 48)
    }  # one track an artist was known, all three are left out
    assert set(predictions["family"]) == {"descriptors", "va"}
    assert predictions.loc[predictions["family"] == "va", "baseline"].notna().all()
    truth, limits, chosen_on = evaluation._bundle_decisions(
        known_bundle, "probe", "gems", GEMS.labels, rated.table[training.columns_of("gems")].to_numpy(float), np.arange(30, 33)
    )
    assert chosen_on == "fixed by the founding document"
    assert truth is not None
    assert limits is not None
    assert (limits == 0.4).all()
    shares = rated.table[training.columns_of("gems")].to_numpy(float)[30:33]
    assert truth.sum(axis=1).tolist() == np.ceil(10 * shares.std(axis=1)).tolist()  # N highest, by document 000
    written_by_model = replace(unseen, labels_by_model=True)
    found = evaluate(written_by_model)
    assert found["families"] == {}
    assert set(found["self_agreement"]) == {"descriptors", "va"}
    assert sorted(path.name for path in (tmp_path / "e" / "scores").iterdir()) == ["self_agreement_agreement.csv"]


def test_a_bundle_that_saw_everything_is_not_scored(
    options: EvaluationOptions, rated: training.Rated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = bundles.load("default")
    record = {"training": {"ids": {"emotify": [str(k) for k in range(48)]}, "sha256": [], "titles": []}}
    seen = {name: replace(family, details={**family.details, **record}) for name, family in held.families.items()}
    monkeypatch.setattr(bundles, "load", lambda _name: replace(held, families=seen))
    monkeypatch.setattr(training, "gather", lambda *_, **__: rated)
    with pytest.raises(ValueError, match=r"was trained on the artists or albums of these tracks: .*Say --folds 5"):
        evaluate(replace(options, folds=None, families=("va",), recipes={}, out=tmp_path / "e", work=tmp_path / "w"))


def test_a_teacher_never_taught_a_held_out_artist(
    known_bundle: bundles.Bundle, rated: training.Rated, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert groups_seen(rated, known_bundle, "va") == {f"emotify:artist {k}" for k in range(8)}
    rows = np.arange(TRACKS)
    held, fresh = rows[:12], rows[36:]
    plan = training.Plan(jobs=1, recipes={"descriptors": QUICK})
    part = training.Part("fold0", 0, rows[12:], rows[:0], held)
    with pytest.raises(ValueError, match=r"fold0: the teacher x:va was trained on 4 of its artists or albums"):
        teach(rated, "va", part, "x:va", tmp_path, plan)
    clean = training.Part("fold1", 1, rows[:36], rows[:0], fresh)
    taught = teach(rated, "va", clean, "x:va", tmp_path, plan)
    assert np.isfinite(taught).all()
    training.log.propagate = True
    with caplog.at_level("WARNING", logger="annotate"):
        refitted = teach(rated, "va", part, "x:descriptors", tmp_path, plan)
    assert "is fitted without them takes its place" in caplog.text
    np.testing.assert_array_equal(refitted, teach(rated, "va", part, "descriptors", tmp_path, plan))
    with pytest.raises(ValueError, match="va tells va, not film"):
        teach(rated, "film", clean, "x:va", tmp_path, plan)
    with pytest.raises(ValueError, match="say descriptors, none, or BUNDLE:MODEL"):
        teach(rated, "va", clean, "x:nothing", tmp_path, plan)


def test_coefficients_of_a_known_map() -> None:
    rng = np.random.default_rng(0)
    inputs = pd.DataFrame(rng.normal(size=(400, 3)) * [1, 5, 0.1], columns=["a", "b", "c"])
    inputs["c"] += 0.1 * inputs["a"]
    outputs = pd.DataFrame({"y": inputs["a"] + inputs["b"] / 5 + rng.normal(0, 0.5, 400), "flat": 1.0})
    found = standardised_coefficients(inputs, outputs)
    assert set(found["emotion"]) == {"y"}
    beta = found.set_index("feature")
    expected = 1 / outputs["y"].std()
    assert beta.loc["b", "beta"] == pytest.approx(expected, abs=0.05)
    assert (beta["low"] < beta["beta"]).all()
    assert beta.loc["c", "low"] < 0 < beta.loc["c", "high"]
    assert beta.loc["a", "vif"] == pytest.approx(2, abs=0.3)
    assert beta.loc["b", "vif"] == pytest.approx(1, abs=0.05)
    share = 1 / (1 + np.exp(-2 * inputs[["a"]].rename(columns={"a": "y"})))
    odds = standardised_coefficients(inputs, share, shares=True).set_index("feature")
    assert odds.loc["a", "beta"] == pytest.approx(2 * inputs["a"].std(ddof=0), rel=0.01)
    with pytest.raises(ValueError, match="too few"):
        standardised_coefficients(inputs[:4], outputs[:4])


def test_group_means_leave_out_the_tracks_own_artist(rated: training.Rated) -> None:
    values = rated.table[["va_valence_mean"]].to_numpy(float)
    rows = np.arange(TRACKS)
    means = evaluation._means_of_other_groups(rated, values, rows)
    others = rated.table[(rated.table["genre"] == "rock") & (rated.table["artist"] != "artist 0")]
    assert means[0, 0] == pytest.approx(others["va_valence_mean"].mean())


def test_shuffled_ratings_are_dealt_out_among_the_tracks_of_a_corpus(rated: training.Rated) -> None:
    table = rated.table.assign(corpus=["emotify"] * 30 + ["soundtracks"] * 18)
    held = replace(rated, table=table)
    rows = np.array([*range(12), *range(30, 40)])
    dealt = evaluation_floor.shuffled(held, rows, ["va"], 0).table
    columns = ["va_valence_mean", "va_arousal_mean"]
    other = np.setdiff1d(np.arange(TRACKS), rows)
    pd.testing.assert_frame_equal(dealt.iloc[other], table.iloc[other])
    pd.testing.assert_frame_equal(dealt.drop(columns=columns), table.drop(columns=columns))
    for own in (rows[:12], rows[12:]):
        before, after = table[columns].iloc[own].to_numpy(), dealt[columns].iloc[own].to_numpy()
        assert sorted(map(tuple, before)) == sorted(map(tuple, after))  # whole rows, of the same corpus
        assert (before != after).any()


def test_the_floor_is_fitted_to_shuffled_ratings_alone(
    options: EvaluationOptions, rated: training.Rated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = training.Part("fold0", 0, np.arange(12, TRACKS), np.array([], np.intp), np.arange(12))
    plan = training.Plan(recipes=options.recipes, folds=2)
    found = evaluation_floor.shuffled_predictions(rated, "descriptors", "va", part, plan, tmp_path, 0)
    other = rated.table.copy()
    other.loc[:11, "va_valence_mean"] = 1.0  # what the held-out tracks are rated makes no difference
    again = evaluation_floor.shuffled_predictions(replace(rated, table=other), "descriptors", "va", part, plan, tmp_path / "b", 0)
    pd.testing.assert_frame_equal(found, again)
    monkeypatch.setattr(evaluation_floor, "_fit", lambda *_: pytest.fail("it is kept"))
    pd.testing.assert_frame_equal(
        found, evaluation_floor.shuffled_predictions(rated, "descriptors", "va", part, plan, tmp_path, 0)
    )
    assert evaluation_floor.shuffled_predictions(rated, "joint", "film", part, plan, tmp_path, 0) is None


def test_the_tagging_network_runs_where_a_recipe_learns_from_it(
    options: EvaluationOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = bundles.load("default")
    without = replace(held, families={name: family for name, family in held.families.items() if name != "best"})
    made = tmp_path / "tagger.onnx"
    monkeypatch.setattr(training_data, "tagger_engine", lambda _work: made)
    joint = replace(options, families=("joint",), recipes={})
    assert evaluation._tagger_engine(without, joint) == made  # its recipe has hints
    assert evaluation._tagger_engine(without, replace(joint, families=("va",))) is None
    plain = {"joint": replace(networks.JOINT_RECIPE, hint_weight=0.0, course_share=0.0)}
    assert evaluation._tagger_engine(without, replace(joint, recipes=plain)) is None
    assert evaluation._tagger_engine(held, joint) == held.file("best.onnx")


def test_recipes_of_a_bundle_are_those_that_it_was_trained_by(options: EvaluationOptions) -> None:
    held = bundles.load("default")
    recipe = DescriptorRecipe(machines=(("notes",),), ridges=(), components=7)
    stored = {"training": {"recipe": {"recipe": json.loads(json.dumps(asdict(recipe)))}}}
    family = replace(held.families["descriptors"], details=stored)
    told = replace(held, families={**held.families, "descriptors": family})
    assert evaluation._recipes(told, ["descriptors"], replace(options, recipes={}))["descriptors"] == recipe
    assert evaluation._recipes(told, ["descriptors"], options)["descriptors"] == QUICK  # a flag goes first


def test_a_folder_with_ratings_of_its_own_is_new_to_the_built_in_bundle(
    in_process: Callable[..., Result], forty_tracks: Path, tmp_path: Path
) -> None:
    """The command from end to end: audio that no corpus knows, ratings from a CSV, one id of which belongs to no track."""
    rng = np.random.default_rng(0)
    names = sorted(str(path.relative_to(forty_tracks)) for path in forty_tracks.rglob("*.wav"))
    rows = [f"{name},{rng.uniform(2, 8):.2f},{rng.uniform(2, 8):.2f},Artist {k // 4}" for k, name in enumerate(names)]
    labels = tmp_path / "ratings.csv"
    labels.write_text("\n".join(["file,valence,arousal,artist", *rows, "lost.wav,5,5,Nobody"]))
    out = tmp_path / "eval"
    flags = ("--labels", labels, "--id-column", "file", "--labels-for", "va", "--models", "va,descriptors", "--resamples", "20")
    done = in_process("evaluate", "default", forty_tracks, *flags, "--jobs", "1", "--out", out)
    assert done.exit_code == 0, done.output
    assert "1 of 41 ids belong to no track: lost.wav" in done.output
    scores = json.loads((out / "scores.json").read_text())
    assert scores["mode"] == "unseen"
    assert [one["n"] for family in ("va", "descriptors") for one in scores["families"][family]["outputs"]] == [40, 40]
    assert scores["families"]["va"]["outputs"][0]["shuffled_r"] is None  # nothing was trained
    predictions = pd.read_parquet(out / "predictions.parquet")
    found = predictions[(predictions["family"] == "va") & (predictions["target"] == "va_valence_mean")].set_index("track")
    assert found.loc[names[0], "rated"] == pytest.approx(float(rows[0].split(",")[1]))
    assert set(found["split_group"]) == {f"labels:artist {k}" for k in range(10)}
    table = tmp_path / "t.parquet"
    assert in_process("run", forty_tracks, "--models", "va", "--jobs", "1", "--out", table).exit_code == 0
    annotated = pd.read_parquet(table).set_index("track")["va_valence_mean"]
    np.testing.assert_allclose(found["predicted"], annotated.loc[found.index], atol=1e-3)
    labels.write_text("file,valence,arousal\nnowhere.wav,5,5\n")
    refused = in_process("evaluate", "default", forty_tracks, *flags, "--jobs", "1", "--out", tmp_path / "other")
    assert refused.exit_code == 1
    assert "none of its 1 ids (nowhere.wav) is that of a track" in refused.output
