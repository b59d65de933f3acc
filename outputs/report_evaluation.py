"""Pages about an evaluation: what `annotate evaluate` wrote into a folder, as curves, confusions, planes and hard tracks.

    scores.json            what was evaluated and how; a headline for each output, with its baselines
    predictions.parquet    one row a track, family and target: rated, predicted, baseline, fold; classes and probabilities
    embeddings.parquet     the penultimate layer of each network, a row a track and family
    histories/             FAMILY.foldN.json, a row an epoch
    scores/                tables that are shown as they are

A family is judged only on tracks that it was not trained on; which these are was decided by the evaluation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from outputs import figures
from outputs.metrics import agreement, decision_scores, multilabel_scores
from outputs.report import Heading, Part, Plot, Report, Section, Table, Text
from outputs.report_corpus import with_players
from outputs.statistics import MIN_TRACKS, label_of

EVALUATION_SCHEMA_VERSION: Final = 1
NEEDED: Final = ("track", "family", "target", "rated", "predicted")
RATED_SHARE: Final = 0.4  # of listeners, from which on a track has a label, where the evaluation does not say
SWEEP: Final = tuple(round(0.05 * step, 2) for step in range(2, 19))
HARDEST: Final = 20
BASELINES: Final = {
    "r": "model",
    "baseline_r": "descriptor baseline",
    "group_mean_r": "mean of the group",
    "group_mean_here_r": "mean of the group, knowing these ratings",
    "shuffled_r": "fitted to shuffled ratings",
    "chance_r": "95 % of random pairings",
    "ceiling_r": "raters' ceiling",
}
PLANES: Final = (("valence_mean", "arousal_mean"), ("valence", "arousal"), ("valence", "energy"))


class EvaluationError(ValueError):
    """A folder that is no evaluation, in one line."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation folder holds."""

    folder: Path
    scores: Mapping[str, Any]
    predictions: pd.DataFrame
    embeddings: pd.DataFrame | None
    histories: Mapping[str, Mapping[str, pd.DataFrame]]  # family -> fold -> a row an epoch
    tables: Mapping[str, pd.DataFrame]  # of scores/


def read_evaluation(folder: Path) -> Evaluation:
    """Read a folder that `annotate evaluate` wrote.

    Raises
    ------
    EvaluationError
        If it is none, is of a newer schema version, or lacks what the pages are made from.
    """
    path = folder / "scores.json"
    if not path.is_file():
        raise EvaluationError(f"{folder}: not an evaluation, it holds no scores.json (annotate evaluate writes one)")
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise EvaluationError(f"{path}: not JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(scores, dict) or scores.get("kind") != "evaluation":
        raise EvaluationError(f"{path}: not the scores of an evaluation")
    version = scores.get("schema_version")
    if not isinstance(version, int) or version > EVALUATION_SCHEMA_VERSION:
        raise EvaluationError(f"{path}: schema version {version!r}, the newest known here is {EVALUATION_SCHEMA_VERSION}")
    if not (folder / "predictions.parquet").is_file():
        raise EvaluationError(f"{folder}: predictions.parquet is missing")
    try:
        predictions = pd.read_parquet(folder / "predictions.parquet")
        embeddings = pd.read_parquet(folder / "embeddings.parquet") if (folder / "embeddings.parquet").is_file() else None
        histories: dict[str, dict[str, pd.DataFrame]] = {}
        for file in sorted((folder / "histories").glob("*.json")):
            family, _, fold = file.stem.partition(".")
            history = pd.DataFrame(json.loads(file.read_text(encoding="utf-8")))
            if "epoch" not in history:
                history["epoch"] = range(1, len(history) + 1)
            histories.setdefault(family, {})[fold or "all tracks"] = history
        tables = {file.stem: pd.read_csv(file) for file in sorted((folder / "scores").glob("*.csv"))}
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{folder}: {str(error).splitlines()[0]}") from None
    missing = [name for name in NEEDED if name not in predictions]
    if missing:
        raise EvaluationError(f"{folder}/predictions.parquet lacks {', '.join(missing)}")
    if not len(predictions):
        raise EvaluationError(f"{folder}/predictions.parquet holds no prediction")
    absent = {name: None for name in ("group", "corpus", "rated_class", "predicted_class") if name not in predictions}
    numbers = {name: np.nan for name in ("baseline", "threshold", "fold") if name not in predictions}
    return Evaluation(folder, scores, predictions.assign(**absent, **numbers), embeddings, histories, tables)


def evaluation_report(
    evaluation: Evaluation, audio: Mapping[str, str] | None, *, tool: str, time_utc: str, command_line: str
) -> Report:
    """Make the report of an evaluation; `audio` maps tracks to addresses of their files."""
    scores, predictions = evaluation.scores, evaluation.predictions
    bundle = scores.get("bundle", {})
    corpora = scores.get("corpora", [])
    folds = scores.get("folds")
    messages = [f"{entry.get('name')}: {text}" for entry in corpora for text in entry.get("messages", [])]
    n_tracks = predictions["track"].nunique()
    if n_tracks < MIN_TRACKS:
        messages.append(f"{n_tracks} tracks were evaluated: figures over fewer than {MIN_TRACKS} say little")
    how = f"retrained on {folds} grouped folds" if scores.get("mode") == "folds" else "as it is, on tracks it was not trained on"
    grouped = ", ".join(
        f"{entry.get('name')}: {entry.get('groups')} by {entry['grouped_by']}" for entry in corpora if entry.get("grouped_by")
    )
    makers = (
        ("headline", "What was found", _headline(evaluation)),
        ("curves", "Training curves", _histories(evaluation)),
        ("agreement", "Agreement with ratings", _agreement(evaluation)),
        ("labels", "Labels", _labels(evaluation)),
        ("plane", "Valence and arousal", _planes(predictions)),
        ("genre", "Genre", _genres(evaluation)),
        ("embeddings", "Embeddings", _embeddings(evaluation)),
        ("weights", "Weights of the linear maps", _weights(evaluation)),
        ("errors", "The hardest tracks", _errors(predictions, audio)),
        ("tables", "Tables of the evaluation", _tables(evaluation)),
    )
    sections = [Section(anchor, title, tuple(parts)) for anchor, title, found in makers if (parts := list(found))]
    return Report(
        title=f"Evaluation of {bundle.get('name', 'a bundle')} {bundle.get('version', '')}".strip(),
        kind="evaluation_report",
        subtitle="How well predictions agree with people, on music that the models had not learned from.",
        tool=tool,
        time_utc=time_utc,
        command_line=command_line,
        facts={
            "Bundle": f"{bundle.get('name', 'unknown')} {bundle.get('version', '')}, {str(bundle.get('digest', ''))[:12]}",
            "Evaluated": how,
            "Corpora": ", ".join(f"{entry.get('name')} ({entry.get('tracks')} tracks)" for entry in corpora) or "unknown",
            "Kept together": grouped or "nothing",
            "Tracks with a prediction": str(n_tracks),
            "Written by": f"{scores.get('tool', 'unknown')}, {scores.get('time_utc', 'time unknown')}, seed {scores.get('seed')}",
        },
        messages=tuple(messages),
        sections=tuple(sections),
        details={"evaluation": {key: scores.get(key) for key in ("bundle", "mode", "folds", "seed", "corpora", "command_line")}},
    )


def _headline(evaluation: Evaluation) -> Iterator[Part]:
    rows = []
    for family, entry in (evaluation.scores.get("families") or {}).items():
        for output in entry.get("outputs", []):
            headline = output.get("headline") or {}
            rows.append(
                {"family": family, "target": output.get("target"), "corpus": output.get("corpus"), "n": output.get("n")}
                | {name: headline.get(name) for name in ("r", "r_low", "r_high", "r2", "auroc", "f1")}
                | {
                    name: output.get(name)
                    for name in ("baseline_r", "group_mean_r", "group_mean_here_r", "shuffled_r", "chance_r", "ceiling_r")
                }
                | {"configurations_tried": entry.get("configurations_tried")}
            )
    if not rows:
        return
    table = pd.DataFrame(rows)
    numbers = [str(name) for name in table if name not in ("family", "target", "corpus")]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce").astype(float)
    about = evaluation.scores.get("about") or {}
    said = "; ".join(f"{BASELINES[name]}: {text}" for name, text in about.items() if name in BASELINES)
    yield Text(
        "Mean Pearson r of each output with human ratings, 95 % interval, beside plain baselines and the raters' ceiling."
        + (f" {said[0].upper()}{said[1:]}." if said else "")
    )
    named = table.set_axis([_output_name(row) for row in table.itertuples()], axis=0)
    drawn = named[named["r"].notna()]
    if len(drawn):
        yield Plot(
            "headline",
            "Mean Pearson r of each output, 95 % interval.",
            figures.intervals(
                drawn,
                title="Agreement of each output",
                x_name="mean Pearson r (no unit)",
                y_name="family, output, corpus",
                value="r",
                low="r_low",
                high="r_high",
            ),
        )
        beside = drawn[list(BASELINES)].rename(columns=BASELINES).dropna(axis=1, how="all")
        if beside.shape[1] > 1:
            figure = figures.bars(beside, title="Beside baselines and ceiling", x_name="Pearson r (no unit)", y_name="output")
            yield Plot("baselines", "Each output beside its baselines and the raters' ceiling.", figure)
    yield Table("headline", "Outputs and baselines", table)


def _output_name(row: Any) -> str:
    return f"{row.family}: {row.target}, {row.corpus}"


def _histories(evaluation: Evaluation) -> Iterator[Part]:
    for family, folds in evaluation.histories.items():
        groups: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
        for fold, history in folds.items():
            lines: dict[str, tuple[Sequence[float], Sequence[float]]] = {
                words: (history["epoch"].tolist(), history[name].astype(float).tolist())
                for name, words in (("loss", "training loss"), ("val_loss", "validation loss"))
                if name in history and history[name].notna().any() and "epoch" in history
            }
            if lines:
                groups[re.sub(r"^fold(\d+)$", r"fold \1", fold)] = lines
        if groups:
            figure = figures.panels(groups, title=f"Training of {family}", x_name="epoch (number)", y_name="loss (no unit)")
            yield Plot(f"curves_{_plain(family)}", f"Loss of {family} over the epochs, fold by fold.", figure)


def _agreement(evaluation: Evaluation) -> Iterator[Part]:
    """Measure each target's agreement from the predictions, beside the baseline's on the same tracks."""
    numbers = evaluation.predictions
    numbers = numbers[numbers["rated"].notna() & numbers["predicted"].notna()]
    for family, inside in numbers.groupby("family", sort=False):
        rows = []
        for (corpus, target), pairs in inside.groupby(["corpus", "target"], sort=False, dropna=False):
            one = agreement(pairs[["rated"]].to_numpy(float), pairs[["predicted"]].to_numpy(float), [str(target)])
            row = one.iloc[0].to_dict()
            both = pairs["baseline"].notna()
            row["baseline_r"] = _r(pairs.loc[both, "rated"], pairs.loc[both, "baseline"])
            rows.append({"target": target, "corpus": corpus} | row)
        table = pd.DataFrame(rows)
        several = table["corpus"].nunique() > 1
        names = [f"{row.target}, {row.corpus}" if several else str(row.target) for row in table.itertuples()]
        drawn = table.set_axis(names, axis=0)
        drawn = drawn[drawn["r"].notna()]
        if len(drawn):
            yield Plot(
                f"agreement_{_plain(str(family))}",
                f"Pearson r of {family} with each rating, 95 % bootstrap interval over tracks.",
                figures.intervals(
                    drawn,
                    title=f"Agreement of {family}",
                    x_name="Pearson r (no unit)",
                    y_name="target",
                    value="r",
                    low="r_low",
                    high="r_high",
                ),
            )
        yield Table(f"agreement_{_plain(str(family))}", f"Agreement of {family}", table, collapsed=True)


def _r(x: pd.Series[float], y: pd.Series[float]) -> float:
    return float(x.corr(y)) if len(x) >= 3 and x.nunique() > 1 and y.nunique() > 1 else float("nan")


def _labels(evaluation: Evaluation) -> Iterator[Part]:
    """Precision, recall and F1, ROC and precision-recall curves, calibration and the sweep, of families with thresholds."""
    from sklearn.calibration import calibration_curve
    from sklearn.metrics import precision_recall_curve, roc_curve

    held = evaluation.predictions
    held = held[held["threshold"].notna() & held["rated"].notna() & held["predicted"].notna()]
    several = {str(kind): part["corpus"].nunique() for kind, part in held.groupby("family")}
    for (kind, corpus), inside in held.groupby(["family", "corpus"], sort=False):
        family = f"{kind!s} on {corpus!s}" if several[str(kind)] > 1 else str(kind)
        name = _plain(family.replace(" on ", "_"))
        score = inside.pivot_table(index="track", columns="target", values="predicted", sort=False).dropna()
        if not len(score):
            continue
        rated, limits = (
            inside.pivot_table(index="track", columns="target", values=value, sort=False).loc[score.index, score.columns]
            for value in ("rated", "threshold")
        )
        truth, rule = _truth(inside, rated, evaluation.tables.get("classification"))
        labels = [label_of(str(target)) for target in score.columns]
        found = decision_scores(truth.to_numpy(), score.to_numpy(float), limits.to_numpy(float), labels)
        chosen = score.to_numpy(float) >= limits.to_numpy(float)
        true = truth.to_numpy(dtype=bool)
        confusion = pd.DataFrame(
            {
                "both": (chosen & true).sum(0),
                "rated only": (~chosen & true).sum(0),
                "predicted only": (chosen & ~true).sum(0),
                "neither": (~chosen & ~true).sum(0),
            },
            index=pd.Index(labels, name="label"),
        )
        yield Heading(f"Labels of {family}")
        yield Text(
            f"{rule} A model gives a label where its prediction reaches the label's threshold, chosen without a look at the "
            "track's fold. Measured against ratings by people."
        )
        evaluable = found[found["f1"].notna()]
        if len(evaluable):
            figure = figures.bars(
                evaluable[["precision", "recall", "f1"]].rename(columns={"f1": "F1"}),
                title=f"Decisions of {family}",
                x_name="precision, recall, F1 (share)",
                y_name="label",
                top=1.0,
            )
            yield Plot(f"decisions_{name}", f"Precision, recall and F1 of {family}, label by label.", figure)
        figure = figures.count_map(
            confusion,
            title=f"Confusion of {family}",
            x_name="who gives the label",
            y_name="label",
            colour_name="share of the label's tracks",
        )
        yield Plot(f"label_confusion_{name}", f"Confusion of each label of {family}, in tracks.", figure)
        yield Table(f"decisions_{name}", f"Decisions of {family}", pd.concat((found, confusion), axis=1).rename_axis("label"))
        roc, recall, calibration = {}, {}, {}
        for label, target in zip(labels, score.columns, strict=True):
            if truth[target].nunique() < 2:
                continue
            false_rate, true_rate, _ = roc_curve(truth[target], score[target])
            precision, found_share, _ = precision_recall_curve(truth[target], score[target])
            roc[label] = (false_rate.tolist(), true_rate.tolist())
            recall[label] = (found_share.tolist(), precision.tolist())
            if score[target].between(0, 1).all():
                observed, predicted = calibration_curve(truth[target], score[target], n_bins=6, strategy="quantile")
                calibration[label] = (predicted.tolist(), observed.tolist())
        if roc:
            yield Plot(
                f"roc_{name}",
                f"Receiver operating characteristic of {family}; dotted: chance.",
                figures.curves(
                    roc,
                    title=f"ROC of {family}",
                    x_name="false positive rate (share)",
                    y_name="true positive rate (share)",
                    diagonal=True,
                    unit_square=True,
                ),
            )
            yield Plot(
                f"precision_recall_{name}",
                f"Precision against recall of {family}.",
                figures.curves(
                    recall,
                    title=f"Precision and recall of {family}",
                    x_name="recall (share)",
                    y_name="precision (share)",
                    unit_square=True,
                ),
            )
        if calibration:
            yield Plot(
                f"calibration_{name}",
                f"Calibration of {family}: share with the label by prediction, six bins of equal size; dotted: perfect.",
                figures.curves(
                    calibration,
                    title=f"Calibration of {family}",
                    x_name="mean prediction of the bin (0 to 1)",
                    y_name="tracks with the label (share)",
                    diagonal=True,
                    unit_square=True,
                    marker=True,
                ),
            )
        sweep = _sweep(true, score.to_numpy(float))
        lines = {
            figures.words(column): (sweep["threshold"].tolist(), sweep[column].tolist())
            for column in sweep
            if column != "threshold"
        }
        figure = figures.curves(
            lines,
            title=f"One threshold for all labels: {family}",
            x_name="threshold (unit of the prediction)",
            y_name="macro average, subset accuracy (share)",
        )
        yield Plot(f"sweep_{name}", f"What one threshold for all labels of {family} would give.", figure)
        yield Table(f"sweep_{name}", f"Threshold sweep of {family}", sweep, collapsed=True)


def _truth(inside: pd.DataFrame, rated: pd.DataFrame, classification: pd.DataFrame | None) -> tuple[pd.DataFrame, str]:
    """Which tracks have which label by their ratings, and by what rule: the evaluation's own where it wrote it."""
    if "rated_label" in inside and inside["rated_label"].notna().all():
        own = inside.pivot_table(index="track", columns="target", values="rated_label", sort=False)
        return own.loc[
            rated.index, rated.columns
        ] >= 0.5, "Which tracks have a label by their ratings was decided by the evaluation."
    cuts = {target: _cut(rated[target], classification, str(target)) for target in rated.columns}
    listed = ", ".join(f"{cut:.2f} ({label_of(str(target))})" for target, cut in cuts.items())
    truth = pd.DataFrame({target: rated[target] >= cuts[target] for target in rated.columns})
    return truth, f"A track has a label where its rating is at least {listed}."


def _cut(rated: pd.Series[float], classification: pd.DataFrame | None, target: str) -> float:
    """Rating from which on a track has a label: 0/1 ratings speak for themselves, else by the evaluation's own support."""
    if rated.isin([0, 1]).all():
        return 1.0
    if classification is not None and {"label", "support"} <= set(classification.columns):
        rows = classification[classification["label"].astype(str).isin([target, label_of(target)])]
        support = int(rows["support"].iloc[0]) if len(rows) == 1 and rows["support"].notna().all() else 0
        if 0 < support <= len(rated):
            cut = float(rated.sort_values(ascending=False).iloc[support - 1])
            if int((rated >= cut).sum()) == support:
                return cut
    return RATED_SHARE


def _sweep(truth: Any, score: Any) -> pd.DataFrame:
    rows = []
    for threshold in SWEEP:
        found = multilabel_scores(truth, score, np.full(truth.shape[1], threshold))
        means = found.loc[found["f1"].notna(), ["precision", "recall", "f1"]].astype(float).mean()
        rows.append(
            {
                "threshold": threshold,
                "macro_precision": float(means["precision"]),
                "macro_recall": float(means["recall"]),
                "macro_F1": float(means["f1"]),
                "subset_accuracy": float(((score >= threshold) == truth).all(axis=1).mean()),
            }
        )
    return pd.DataFrame(rows)


def _planes(predictions: pd.DataFrame) -> Iterator[Part]:
    held = predictions[predictions["rated"].notna() & predictions["predicted"].notna()]
    for (family, corpus), inside in held.groupby(["family", "corpus"], sort=False, dropna=False):
        targets = {label_of(str(target)): target for target in inside["target"].unique()}
        pair = next(((x, y) for x, y in PLANES if x in targets and y in targets), None)
        if pair is None:
            continue
        wide = {
            f"{kind}_{axis}": inside[inside["target"] == targets[label]].set_index("track")[kind]
            for axis, label in zip("xy", pair, strict=True)
            for kind in ("rated", "predicted")
        }
        table = pd.DataFrame(wide).dropna()
        if not len(table):
            continue
        x, y = (figures.words(label).removesuffix(" mean") for label in pair)
        figure = figures.movement(
            table, title=f"{family!s} on {corpus!s}", x_name=f"{x} (rating points)", y_name=f"{y} (rating points)"
        )
        caption = f"Where people and {family!s} put the tracks of {corpus!s}; a line joins a track's points (n = {len(table)})."
        yield Plot(f"plane_{_plain(f'{family!s}_{corpus!s}')}", caption, figure)


def _genres(evaluation: Evaluation) -> Iterator[Part]:
    for family, entry in (evaluation.scores.get("families") or {}).items():
        genre = entry.get("genre")
        if not genre:
            continue
        labels = [str(label) for label in genre["labels"]]
        confusion = pd.DataFrame(genre["confusion"], index=labels, columns=labels)
        yield Text(
            f"{family}: accuracy {float(genre['accuracy']):.2f}; the true genre is among the three most probable for "
            f"{float(genre['top3']):.2f} of {int(confusion.to_numpy().sum())} tracks; {len(labels)} genres."
            + (
                f" Baseline accuracy: {float(genre['baseline_accuracy']):.2f}."
                if genre.get("baseline_accuracy") is not None
                else ""
            )
        )
        figure = figures.count_map(
            confusion,
            title=f"Genre by {family}",
            x_name="predicted genre",
            y_name="true genre",
            colour_name="share of the true genre's tracks",
        )
        yield Plot(f"genre_confusion_{_plain(family)}", f"Genre confusion of {family}, in tracks; rows are true genres.", figure)
        yield Table(f"genre_confusion_{_plain(family)}", "Genre confusion", confusion.rename_axis("true"))
    held = evaluation.predictions
    held = held[held["rated_class"].notna()]
    names = [name for name in held.columns if name.startswith("p_")]
    for family, inside in held.groupby("family", sort=False):
        from sklearn.metrics import roc_curve

        lines = {}
        for name in names:
            known = inside[name].notna()
            truth = inside.loc[known, "rated_class"] == name.removeprefix("p_")
            if truth.nunique() == 2:
                false_rate, true_rate, _ = roc_curve(truth, inside.loc[known, name])
                lines[name.removeprefix("p_")] = (false_rate.tolist(), true_rate.tolist())
        if lines:
            figure = figures.curves(
                lines,
                title=f"Genres of {family!s}: one against the rest",
                x_name="false positive rate (share)",
                y_name="true positive rate (share)",
                diagonal=True,
                unit_square=True,
            )
            yield Plot(f"genre_roc_{_plain(str(family))}", f"ROC of each genre against the rest, {family!s}.", figure)


def _embeddings(evaluation: Evaluation) -> Iterator[Part]:
    """Show each network's penultimate layer in two dimensions, by PCA and t-SNE, coloured by group and by rated emotion."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    if evaluation.embeddings is None:
        return
    predictions = evaluation.predictions
    for family, inside in evaluation.embeddings.groupby("family", sort=False):
        name = _plain(str(family))
        axes = [column for column in inside.columns if re.fullmatch(r"e\d+", column)]
        points = inside.set_index("track")
        folds = predictions[predictions["family"] == family].groupby("track")["fold"].first().reindex(points.index)
        said = ""
        if folds.nunique() > 1:
            chosen = folds.value_counts().index[0]
            points = points[(folds == chosen).to_numpy()]
            said = f" Each fold has a network, and so a space, of its own: the tracks of fold {int(chosen)} are shown."
        values = points[axes].astype(float).dropna(axis=1, how="all").dropna()
        values = values.loc[:, values.std() > 0]
        if len(values) < MIN_TRACKS or values.shape[1] < 2:
            yield Text(f"{family}: too few tracks for a map ({len(values)}).")
            continue
        scaled = StandardScaler().fit_transform(values)
        pca = PCA(2, random_state=0)
        flat = {"PCA": pca.fit_transform(scaled)}
        perplexity = min(30.0, (len(values) - 1) / 3)
        tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=0, learning_rate="auto")
        flat["t-SNE"] = tsne.fit_transform(scaled.astype(np.float32))
        group = points.loc[values.index, "group"]
        emotion = _strongest(predictions, values.index)
        for method, places in flat.items():
            explained = pca.explained_variance_ratio_
            units = (
                [f"component {k + 1} ({explained[k]:.0%} of variance)" for k in range(2)]
                if method == "PCA"
                else ["t-SNE dimension 1 (no unit)", "t-SNE dimension 2 (no unit)"]
            )
            for kind, colours in (("group", group), ("strongest emotion", emotion)):
                if colours is None or colours.nunique() < 2 or colours.nunique() > len(figures.MARKERS):
                    continue
                table = pd.DataFrame({"x": places[:, 0], "y": places[:, 1], "colour": colours.to_numpy()})
                figure = figures.scatter(
                    table,
                    x="x",
                    y="y",
                    title=f"{family}: {method}",
                    x_name=units[0],
                    y_name=units[1],
                    colour="colour",
                    colour_name=kind,
                )
                caption = f"Penultimate layer of {family}, {len(values)} tracks, {method}, by {kind}.{said}"
                yield Plot(f"{method.lower().replace('-', '')}_{name}_{kind.split()[-1]}", caption, figure)
        yield Text(f"t-SNE: perplexity {perplexity:.0f}, started from PCA, seed 0; only neighbourhoods mean something in it.")


def _strongest(predictions: pd.DataFrame, tracks: pd.Index[Any]) -> pd.Series[Any] | None:
    """Emotion of a track whose rating stands out most, in standard deviations of that rating."""
    rated = predictions[predictions["rated"].notna() & predictions["target"].astype(str).str.match(r"(gems|emotion|film)_")]
    if not len(rated):
        return None
    wide = rated.assign(label=rated["target"].map(label_of)).pivot_table(index="track", columns="label", values="rated")
    spread = wide.std()
    standard = ((wide - wide.mean()) / spread.where(spread > 0)).dropna(how="all").dropna(axis=1, how="all")
    return standard.idxmax(axis=1).reindex(tracks)


def _weights(evaluation: Evaluation) -> Iterator[Part]:
    for family, coefficients in (evaluation.scores.get("weights") or {}).items():
        table = pd.DataFrame(coefficients)
        if not {"emotion", "feature", "beta"} <= set(table.columns) or not len(table):
            continue
        grid = table.assign(
            emotion=table["emotion"].map(lambda name: label_of(str(name)) or name),
            feature=table["feature"].map(lambda name: label_of(str(name)) or name),
        ).pivot_table(index="feature", columns="emotion", values="beta", sort=False)
        marks = None
        if {"low", "high"} <= set(table.columns):
            apart = table.assign(apart=(table["low"] > 0) | (table["high"] < 0), order=range(len(table)))
            marks = apart.pivot_table(index="feature", columns="emotion", values="apart", sort=False) > 0
            marks = marks.set_axis(grid.index, axis=0).set_axis(grid.columns, axis=1)
        figure = figures.heat_map(
            grid,
            marks=marks,
            title=f"Weights of {family}",
            x_name="emotion",
            y_name="mid-level feature",
            colour_name="standardised β (SD a SD)",
        )
        yield Plot(f"weights_{_plain(family)}", f"Weights of {family}; * the 95 % interval does not hold zero.", figure)
        yield Table(f"weights_{_plain(family)}", f"Weights of {family}", table, collapsed=True)


def _errors(predictions: pd.DataFrame, audio: Mapping[str, str] | None) -> Iterator[Part]:
    """List the tracks with the largest standardised errors of each family."""
    held = predictions[predictions["rated"].notna() & predictions["predicted"].notna()]
    if len(held):
        yield Text("Error: mean absolute difference over a family's targets of prediction and rating, in SD of the rating.")
    for family, inside in held.groupby("family", sort=False):
        spread = inside.groupby(["corpus", "target"], dropna=False)["rated"].transform("std")
        judged = inside.assign(error=(inside["predicted"] - inside["rated"]).abs() / spread.where(spread > 0)).dropna(
            subset=["error"]
        )
        if not len(judged):
            continue
        mean = judged.groupby("track")["error"].mean().sort_values(ascending=False, kind="stable").head(HARDEST)
        worst = judged.loc[judged.groupby("track")["error"].idxmax()].set_index("track").loc[mean.index]
        table = pd.DataFrame(
            {
                "track": mean.index,
                "group": worst["group"].to_numpy(),
                "error": mean.to_numpy(),
                "worst_target": worst["target"].to_numpy(),
                "rated": worst["rated"].to_numpy(),
                "predicted": worst["predicted"].to_numpy(),
            }
        )
        ratings = inside[inside["track"].isin(mean.index)]
        wide = ratings.pivot_table(index="track", columns="target", values=["rated", "predicted"], sort=False)
        wide.columns = ["_".join(map(str, both)) for both in wide.columns.to_flat_index()]
        name = _plain(str(family))
        yield Table(f"hardest_{name}", f"Hardest tracks of {family}", with_players(table, audio))
        yield Table(
            f"hardest_{name}_all",
            f"Every rating and prediction of them, {family}",
            wide.loc[mean.index].reset_index(),
            collapsed=True,
        )


def _tables(evaluation: Evaluation) -> Iterator[Part]:
    for name, table in evaluation.tables.items():
        yield Table(f"scores_{_plain(name)}", f"scores/{name}.csv", table, collapsed=True)


def _plain(name: str) -> str:
    """Turn a name into one that a file may have."""
    return re.sub(r"[^0-9A-Za-z_.]+", "-", name).strip(".-") or "unnamed"
