"""The pages about an evaluation folder: a small one is written here as `annotate evaluate` writes it."""

import json

import numpy as np
import pandas as pd
import pytest

LABELS = ("tenderness", "power", "tension")
GENRES = ("classical", "electronic", "pop", "rock")
TRACKS = [f"{GENRES[k % 4]}/{k}.mp3" for k in range(40)]


def write_evaluation(folder, tracks=TRACKS):
    """Three families: labels with thresholds, valence and arousal, genre; two folds, embeddings, histories."""
    rng = np.random.default_rng(7)
    (folder / "histories").mkdir(parents=True)
    (folder / "scores").mkdir()
    n = len(tracks)
    group = [track.partition("/")[0] for track in tracks]
    base = {
        "track": tracks,
        "track_key": [str(k) for k in range(n)],
        "corpus": "emotify",
        "group": group,
        "split_group": [f"artist {k // 2}" for k in range(n)],
        "fold": [k // 2 % 2 for k in range(n)],
    }
    frames = []
    for label in LABELS:
        rated = rng.uniform(0, 1, n)
        frames.append(
            pd.DataFrame(
                base
                | {
                    "family": "emotion",
                    "target": f"emotion_{label}",
                    "rated": rated,
                    "predicted": np.clip(rated + rng.normal(0, 0.2, n), 0, 1),
                    "baseline": np.clip(rated + rng.normal(0, 0.3, n), 0, 1),
                    "threshold": 0.5,
                }
            )
        )
    for name in ("valence_mean", "arousal_mean"):
        rated = rng.uniform(1, 9, n)
        frames.append(
            pd.DataFrame(
                base | {"family": "va", "target": f"va_{name}", "rated": rated, "predicted": rated + rng.normal(0, 1, n)}
            )
        )
    p = rng.dirichlet(np.ones(4), n)
    frames.append(
        pd.DataFrame(
            base
            | {"family": "crnn", "target": "genre", "rated_class": group, "predicted_class": [GENRES[k] for k in p.argmax(1)]}
            | {f"p_{genre}": p[:, k] for k, genre in enumerate(GENRES)}
        )
    )
    predictions = pd.concat(frames, ignore_index=True)
    predictions.to_parquet(folder / "predictions.parquet")
    embeddings = pd.DataFrame(rng.normal(size=(n, 6)).astype(np.float32), columns=[f"e{k:03d}" for k in range(6)])
    identity = pd.DataFrame({"track": tracks, "corpus": "emotify", "group": group, "family": "emotion"})
    pd.concat((identity, embeddings), axis=1).to_parquet(folder / "embeddings.parquet")
    for fold in range(2):
        history = [{"epoch": k + 1, "loss": 1 / (k + 1), "val_loss": 1.2 / (k + 1)} for k in range(5)]
        (folder / "histories" / f"emotion.fold{fold}.json").write_text(json.dumps(history))
    support = [int((frames[k]["rated"] >= 0.7).sum()) for k in range(3)]
    pd.DataFrame({"label": LABELS, "threshold": 0.5, "support": support}).to_csv(
        folder / "scores" / "classification.csv", index=False
    )
    headline = {"r": 0.6, "r_low": 0.5, "r_high": 0.7, "r2": 0.3, "auroc": 0.8, "f1": None}
    outputs = [
        {
            "target": "emotion",
            "columns": [f"emotion_{label}" for label in LABELS],
            "corpus": "emotify",
            "n": n,
            "headline": headline,
            "baseline_r": 0.55,
            "group_mean_r": 0.2,
            "shuffled_r": 0.01,
            "ceiling_r": 0.81,
        }
    ]
    confusion = pd.crosstab(pd.Series(group), frames[-1]["predicted_class"]).reindex(index=GENRES, columns=GENRES, fill_value=0)
    scores = {
        "schema_version": 1,
        "kind": "evaluation",
        "tool": "annotate 0",
        "bundle": {"name": "<b>tiny</b>", "version": "1", "digest": "cd" * 32},
        "mode": "folds",
        "folds": 2,
        "seed": 0,
        "time_utc": "2026-01-02T03:04:05+00:00",
        "command_line": "annotate evaluate tiny emotify --folds 2",
        "corpora": [{"name": "emotify", "tracks": n, "groups": n // 2, "grouped_by": "artist", "messages": ["one odd id"]}],
        "families": {
            "emotion": {"configurations_tried": 3, "outputs": outputs, "thresholds": dict.fromkeys(LABELS, 0.5)},
            "crnn": {
                "configurations_tried": 1,
                "outputs": [],
                "genre": {"accuracy": 0.25, "top3": 0.75, "labels": list(GENRES), "confusion": confusion.to_numpy().tolist()},
            },
        },
        "weights": {
            "probe": [
                {"emotion": f"gems_{label}", "feature": f"salient_{name}", "beta": 0.1, "low": -0.1, "high": 0.3, "vif": 1.2}
                for label in LABELS
                for name in ("minorness", "dissonance")
            ]
        },
    }
    (folder / "scores.json").write_text(json.dumps(scores))
    return predictions


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from click.testing import CliRunner

    from annotate.cli import main

    folder = tmp_path_factory.mktemp("evaluation")
    predictions = write_evaluation(folder / "eval")
    root = folder / "music"
    for track in TRACKS:
        (root / track).parent.mkdir(parents=True, exist_ok=True)
        (root / track).write_bytes(b"audio")
    result = CliRunner().invoke(main, ["report", str(folder / "eval"), "--out", str(folder / "report"), "--audio", str(root)])
    assert result.exit_code == 0, result.output
    return folder / "report", predictions


def tables(made) -> dict:
    return json.loads((made[0] / "report.json").read_text())["tables"]


def test_every_page_is_there(made):
    figures = set(json.loads((made[0] / "report.json").read_text())["figures"])
    assert figures >= {
        "headline",
        "baselines",
        "curves_emotion",
        "agreement_emotion",
        "agreement_va",
        "decisions_emotion",
        "label_confusion_emotion",
        "roc_emotion",
        "precision_recall_emotion",
        "calibration_emotion",
        "sweep_emotion",
        "plane_va_emotify",
        "genre_confusion_crnn",
        "genre_roc_crnn",
        "pca_emotion_group",
        "pca_emotion_emotion",
        "tsne_emotion_group",
        "weights_probe",
    }
    page = (made[0] / "index.html").read_text()
    assert "&lt;b&gt;tiny&lt;/b&gt;" in page
    assert "one odd id" in page
    assert "0.75 of 40 tracks" in page


def test_agreement_is_of_the_predictions(made):
    rows = {row["target"]: row for row in tables(made)["agreement_emotion"]}
    pairs = made[1].query("target == 'emotion_power'")
    assert rows["emotion_power"]["r"] == pytest.approx(pairs["rated"].corr(pairs["predicted"]))
    assert rows["emotion_power"]["baseline_r"] == pytest.approx(pairs["rated"].corr(pairs["baseline"]))
    assert rows["emotion_power"]["r_low"] < rows["emotion_power"]["r"] < rows["emotion_power"]["r_high"]


def test_labels_are_cut_where_the_evaluation_cut_them(made):
    rows = {row["label"]: row for row in tables(made)["decisions_emotion"]}
    pairs = made[1].query("target == 'emotion_tension'")
    rated, given = pairs["rated"] >= 0.7, pairs["predicted"] >= 0.5
    row = rows["tension"]
    assert row["support"] == rated.sum()
    assert (row["both"], row["rated only"]) == ((rated & given).sum(), (rated & ~given).sum())
    assert row["precision"] == pytest.approx((rated & given).sum() / given.sum())
    assert row["recall"] == pytest.approx((rated & given).sum() / rated.sum())


def test_the_sweep_holds_the_threshold_of_the_decisions(made):
    sweep = {row["threshold"]: row for row in tables(made)["sweep_emotion"]}
    decisions = tables(made)["decisions_emotion"]
    assert sweep[0.5]["macro_precision"] == pytest.approx(np.mean([row["precision"] for row in decisions]))


def test_hardest_tracks_come_first_with_a_player(made):
    rows = tables(made)["hardest_va"]
    pairs = made[1].query("family == 'va'")
    spread = pairs.groupby("target")["rated"].transform("std")
    errors = ((pairs["predicted"] - pairs["rated"]).abs() / spread).groupby(pairs["track"]).mean().sort_values(ascending=False)
    assert [row["track"] for row in rows] == errors.index[:20].tolist()
    assert rows[0]["error"] == pytest.approx(errors.iloc[0])
    assert rows[0]["listen"].endswith(f"/music/{rows[0]['track']}")
    assert "<audio" in (made[0] / "index.html").read_text()


def test_embeddings_of_one_fold_are_shown_and_it_is_said(made):
    captions = json.loads((made[0] / "report.json").read_text())["figures"]
    assert "20 tracks" in captions["pca_emotion_group"]
    assert "the tracks of fold" in captions["pca_emotion_group"]


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: (f / "scores.json").unlink(), "not an evaluation, it holds no scores.json"),
        (lambda f: (f / "scores.json").write_text("{"), "not JSON"),
        (lambda f: (f / "scores.json").write_text("[]"), "not the scores of an evaluation"),
        (lambda f: (f / "scores.json").write_text('{"kind": "evaluation", "schema_version": 2}'), "schema version 2"),
        (lambda f: (f / "predictions.parquet").unlink(), "predictions.parquet is missing"),
        (lambda f: (f / "predictions.parquet").write_text("x"), "annotate: "),
        (lambda f: pd.DataFrame({"track": ["a"]}).to_parquet(f / "predictions.parquet"), "lacks family, target"),
    ],
)
def test_a_folder_that_is_no_evaluation_is_refused(spoil, says, tmp_path, in_process):
    write_evaluation(tmp_path / "eval", TRACKS[:4])
    spoil(tmp_path / "eval")
    result = in_process("report", tmp_path / "eval", "--out", tmp_path / "r")
    assert result.exit_code == 1
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_ratings_have_no_place_beside_an_evaluation(tmp_path, in_process):
    result = in_process("report", tmp_path, "--ratings", tmp_path / "x.csv", "--out", tmp_path / "r")
    assert (result.exit_code, "no meaning for an evaluation folder" in result.stderr) == (1, True)
