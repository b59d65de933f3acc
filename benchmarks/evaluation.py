"""Write docs/evaluation.md and the score table of README.md from a bundle: nothing in them is typed by hand but the remarks.

    python benchmarks/evaluation.py                                     the built-in default bundle
    python benchmarks/evaluation.py --data ../shared/data               and references that need the ratings
    python benchmarks/evaluation.py --evaluation eval/film              and takes in folders of `annotate evaluate`
    python benchmarks/evaluation.py --check                             write nothing; exit 1 where the files are out of date

What the page shows of evaluations is kept in benchmarks/evaluations/, a file each, and of memory in benchmarks/memory.json
(benchmarks/memory.py), so that the page can be written again without the folders.

Sources of the published figures: Chowdhury et al. 2019 (A2E, A2Mid2E, Joint); for the mid-level features the means that their
authors state (VGG; RF-ResNet with domain adaptation). The plain rows on the full corpora were computed before this project, in
folds of the same kind, on clips of which part is not at hand here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from annotate.card import (
    TRIALS_FILE,
    ScoreRow,
    failures_lines,
    genre_line,
    number,
    portable,
    robustness_lines,
    score_rows,
    score_table,
    twins_lines,
)
from annotate.evaluation import OUTPUTS
from models.bundle import load
from models.labels import FILM, GEMS, MIDLEVEL

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "evaluation.md"
FIGURE = ROOT / "docs" / "evaluation.svg"
REMARKS = ROOT / "docs" / "evaluation_remarks.toml"
README = ROOT / "README.md"
EVALUATIONS = ROOT / "benchmarks" / "evaluations"
MEMORY = ROOT / "benchmarks" / "memory.json"
MEMORY_RULE_GB = 4.0
BEGIN, END = "<!-- scores: written by make evaluation -->", "<!-- end of scores -->"
TWINS_RULE = 0.8  # share of pairs
NOT_SHIPPED = ("a2e", "a2mid2e", "vatransfer")  # trained and scored, in no bundle of ours
PARTS = (("tried", "Tried"), ("measured", "Measured"), ("holds_back", "What holds it back"))  # of a remark
DEFINITE_CUES = ("articulation", "dissonance", "mode")  # those that the rule is for

Manifest = Mapping[str, Any]
Trials = Mapping[str, Any] | None
Reference = tuple[str, float, tuple[float, ...] | None]  # name, mean r, r by label where it is known

# Pearson r by label, None where only the mean is published
PUBLISHED: Mapping[str, Sequence[Reference]] = {
    "film": (
        ("A2E, published", 0.76, (0.81, 0.79, 0.84, 0.82, 0.81, 0.66, 0.60, 0.75)),
        ("A2Mid2E, published", 0.71, (0.79, 0.74, 0.78, 0.72, 0.77, 0.64, 0.58, 0.67)),
        ("A2Mid2E-Joint, published", 0.75, (0.82, 0.78, 0.82, 0.76, 0.79, 0.65, 0.64, 0.72)),
        ("descriptors + note features, 360 clips", 0.80, (0.84, 0.88, 0.86, 0.81, 0.83, 0.71, 0.70, 0.79)),
        ("linear map of the human mid-levels, 360 clips", 0.78, (0.88, 0.79, 0.84, 0.65, 0.82, 0.81, 0.73, 0.72)),
    ),
    "midlevel": (
        ("VGG, published", 0.60, None),
        ("RF-ResNet with domain adaptation, published", 0.64, None),
        ("descriptors + note features, 360 clips", 0.66, (0.77, 0.85, 0.51, 0.51, 0.75, 0.64, 0.59)),
    ),
    "gems": (
        ("genre mean alone, 400 clips", 0.27, (0.14, 0.42, 0.37, 0.41, 0.14, 0.28, 0.05, 0.42, 0.21)),
        ("descriptors + note features, 400 clips", 0.57, (0.34, 0.50, 0.64, 0.60, 0.63, 0.62, 0.68, 0.66, 0.49)),
    ),
    "va": (("descriptors + note features, MUSIFEAST-17, 356 clips", 0.745, (0.63, 0.86)),),
}
LABELS = {"film": FILM.labels, "midlevel": MIDLEVEL.labels, "gems": GEMS.labels, "va": ("valence_mean", "arousal_mean")}
TITLES = {
    "film": "Film emotions",
    "midlevel": "Mid-level features",
    "gems": "GEMS emotions, share of listeners",
    "va": "Valence and arousal",
}


def score_of(manifest: Manifest, family: str, output: str, corpus: str) -> ScoreRow | None:
    """Find one row of the scores."""
    wanted = (family, output, corpus)
    return next((row for row in score_rows(manifest) if (row.family, row.output, row.corpus) == wanted), None)


@dataclass(frozen=True)
class Found:
    """A measured figure and how it is written."""

    value: float
    text: str


Reader = Callable[[Manifest, Trials], Found | None]


def mean_r(family: str, output: str, corpus: str) -> Reader:
    def read(manifest: Manifest, _: Trials) -> Found | None:
        row = score_of(manifest, family, output, corpus)
        return row and Found(row.mean_r, f"{row.mean_r:.3f} ({row.low:.3f} to {row.high:.3f}, {row.tracks} tracks)")

    return read


def label_r(family: str, output: str, corpus: str, label: str) -> Reader:
    def read(manifest: Manifest, _: Trials) -> Found | None:
        row = score_of(manifest, family, output, corpus)
        return Found(row.r[label], f"{row.r[label]:.3f} ({row.tracks} tracks)") if row and label in row.r else None

    return read


def genre_accuracy(manifest: Manifest, _: Trials) -> Found | None:
    genre = manifest["families"].get("crnn", {}).get("genre")
    return Found(genre["accuracy"], f"{genre['accuracy']:.3f} ({genre['tracks']} tracks)") if genre else None


def least_ordered(_: Manifest, trials: Trials) -> Found | None:
    if trials is None:
        return None
    shares = [(one["ordered"] / one["pairs"], one) for one in trials["twins"]["scores"] if one["cue"] in DEFINITE_CUES]
    share, one = min(shares, key=lambda pair: pair[0])
    return Found(share, f"least: {one['output']}, {one['cue']}: {one['ordered']} of {one['pairs']}")


def most_moved(_: Manifest, trials: Trials) -> Found | None:
    if trials is None:
        return None
    one = max((one for one in trials["robustness"]["labels"] if one["mean"] is not None), key=lambda one: one["mean"])
    return Found(one["mean"], f"most: {one['column']}, {one['change']}: {one['mean']:.2f}")


@dataclass(frozen=True)
class Target:
    """A figure to reach, as the project set it out beforehand."""

    key: str  # of its remark in docs/evaluation_remarks.toml
    model: str
    corpus: str
    beside: str  # published figures and plain baselines
    reach: float
    read: Reader
    dream: float | None = None
    below: bool = False  # whether the figure must stay under `reach`

    def reached(self, found: Found) -> bool:
        return found.value < self.reach if self.below else found.value >= self.reach


TARGETS = (
    Target(
        "midlevel",
        "mid-level VGG, rating head",
        "Soundtracks, 7 features",
        "VGG .60, RF-ResNet .64; descriptors + notes .66",
        0.61,
        mean_r("midlevel", "midlevel", "soundtracks"),
    ),
    Target(
        "joint",
        "A2Mid2E-Joint",
        "Soundtracks, 8 emotions",
        "Joint .75, A2E .76; descriptors + notes .80",
        0.77,
        mean_r("joint", "film", "soundtracks"),
    ),
    Target(
        "best_midlevel",
        "`best` columns",
        "Soundtracks, 7 features",
        "descriptors + notes .66",
        0.67,
        mean_r("best", "best_midlevel", "soundtracks"),
        dream=0.70,
    ),
    Target(
        "best_film",
        "`best` columns",
        "Soundtracks, 8 emotions",
        "descriptors + notes .80, linear map of the human mid-levels .78",
        0.81,
        mean_r("best", "best_film", "soundtracks"),
        dream=0.84,
    ),
    Target(
        "probe",
        "linear probe 7 → 9",
        "Emotify shares",
        ".39 from descriptor mid-levels",
        0.39,
        mean_r("probe", "gems", "emotify"),
    ),
    Target(
        "emotion",
        "emotion CNN",
        "Emotify shares",
        "descriptors + notes .57; three regressors on frozen Joint embeddings .51",
        0.53,
        mean_r("emotion", "emotion", "emotify"),
    ),
    Target(
        "best_gems",
        "`best` columns",
        "Emotify shares",
        "descriptors + notes .57, averaged with Joint embeddings .58, ceiling .81",
        0.59,
        mean_r("best", "best_gems", "emotify"),
        dream=0.64,
    ),
    Target(
        "genre",
        "CRNN genre (accuracy)",
        "Emotify, 4 genres, by artist",
        ".83 (a published CNN on pretrained features, not by artist)",
        0.80,
        genre_accuracy,
    ),
    Target(
        "va_soundtracks_valence",
        "valence from the 22 note statistics",
        "Soundtracks",
        "54 note features .82",
        0.75,
        label_r("va", "va mean", "soundtracks", "valence_mean"),
    ),
    Target(
        "va_soundtracks_energy",
        "energy from the 22 note statistics",
        "Soundtracks",
        "54 note features .76",
        0.70,
        label_r("va", "va mean", "soundtracks", "arousal_mean"),
    ),
    Target(
        "va_musifeast_valence",
        "valence from the 22 note statistics",
        "MUSIFEAST-17",
        "54 note features .48",
        0.45,
        label_r("va", "va mean", "musifeast", "valence_mean"),
    ),
    Target(
        "va_musifeast_arousal",
        "arousal from the 22 note statistics",
        "MUSIFEAST-17",
        "54 note features .72",
        0.70,
        label_r("va", "va mean", "musifeast", "arousal_mean"),
    ),
    Target(
        "best_valence",
        "`best` valence",
        "MUSIFEAST-17",
        "descriptors .63",
        0.65,
        label_r("best", "best_va mean", "musifeast", "valence_mean"),
    ),
    Target(
        "best_arousal",
        "`best` arousal",
        "MUSIFEAST-17",
        "descriptors .86",
        0.87,
        label_r("best", "best_va mean", "musifeast", "arousal_mean"),
    ),
    Target(
        "twins",
        "every mid-level model: pairs ordered as a listener would",
        "composed twins: articulation, dissonance, mode",
        "",
        TWINS_RULE,
        least_ordered,
    ),
    Target(
        "robustness",
        "every label: mean change in spreads between tracks",
        "MP3, Opus, -12 dB, nothing above 8 kHz",
        "",
        0.25,
        most_moved,
        below=True,
    ),
)


def targets_table(manifest: Manifest, trials: Trials) -> Iterator[str]:
    yield "| model | on | beside | reach | measured | |"
    yield "|---|---|---|---|---|---|"
    for target in TARGETS:
        found = target.read(manifest, trials)
        sign = "<" if target.below else "≥"
        reach = f"{sign} {target.reach:.2f}" + ("" if target.dream is None else f", dream {target.dream:.2f}")
        verdict = "not measured" if found is None else verdict_of(target, found)
        text = "" if found is None else found.text
        yield f"| {target.model} | {target.corpus} | {target.beside} | {reach} | {text} | {verdict} |"


def verdict_of(target: Target, found: Found) -> str:
    if not target.reached(found):
        return "not reached"
    return "reached, the dream too" if target.dream is not None and found.value >= target.dream else "reached"


def missed(manifest: Manifest, trials: Trials) -> list[Target]:
    pairs = [(target, target.read(manifest, trials)) for target in TARGETS]
    return [target for target, found in pairs if found is None or not target.reached(found)]


def read_remarks(path: Path) -> dict[str, dict[str, str]]:
    """Read the remarks on targets: what was tried, what was measured, what holds it back."""
    if not path.exists():
        return {}
    remarks = tomllib.loads(path.read_text(encoding="utf-8"))
    keys, parts = {*NOT_SHIPPED, *(target.key for target in TARGETS)}, {part for part, _ in PARTS}
    for key, remark in remarks.items():
        if key not in keys:
            raise SystemExit(
                f"{path}: [{key}] is no target, nor a family that is not shipped; there are {', '.join(sorted(keys))}"
            )
        if not isinstance(remark, dict) or not set(remark) <= parts:
            raise SystemExit(f"{path}: [{key}] must hold nothing but {', '.join(sorted(parts))}")
    return remarks


def remarks_lines(manifest: Manifest, trials: Trials, remarks: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    for target in TARGETS:
        remark = remarks.get(target.key)
        if not remark:
            continue
        yield from remark_lines(f"**{target.model}, {target.corpus}** ({target.key})", remark)
    silent = [target.key for target in missed(manifest, trials) if not remarks.get(target.key)]
    if silent:
        yield f"Missed or not measured, without a remark: {', '.join(silent)}."
        yield ""


def remark_lines(title: str, remark: Mapping[str, str]) -> Iterator[str]:
    yield title
    yield ""
    for part, name in PARTS:
        if remark.get(part):
            yield f"- {name}: {' '.join(remark[part].split())}"
    yield ""


def kind_of(row: ScoreRow) -> str | None:
    """Which of LABELS a row's labels are."""
    return next((kind for kind, labels in LABELS.items() if set(row.r) <= set(labels)), None)


def label_tables(
    manifest: Manifest, references: Mapping[str, Sequence[Reference]], evaluations: Sequence[Mapping[str, Any]] = ()
) -> Iterator[str]:
    """Yield a table a kind of label: our outputs, then references and published figures, then the ceiling."""
    for kind, labels in LABELS.items():
        rows = [row for row in rows_of(manifest, evaluations) if row.r and kind_of(row) == kind]
        if not rows:
            continue
        yield f"### {TITLES[kind]}"
        yield ""
        yield "| | tracks | " + " | ".join(label.replace("_", " ") for label in labels) + " | mean |"
        yield "|---|---|" + "---|" * (len(labels) + 1)
        for row in rows:
            cells = " | ".join(number(row.r.get(label)) for label in labels)
            yield f"| `{row.family}`: {row.output} on {row.corpus} | {row.tracks} | {cells} | {row.mean_r:.2f} |"
        for name, mean, values in (*references.get(kind, ()), *PUBLISHED[kind]):
            cells = " | ".join(number(value) for value in (values or (None,) * len(labels)))
            yield f"| {name} | | {cells} | {mean:.2f} |"
        ceilings = manifest.get("ceiling_gems")
        if kind == "gems" and ceilings:
            cells = " | ".join(number(ceilings.get(label)) for label in labels)
            yield f"| ceiling: √(split-half reliability) | | {cells} | {np.mean(list(ceilings.values())):.2f} |"
        yield ""


def human_references(data: Path) -> dict[str, list[Reference]]:
    """Compute what the ratings alone allow: a linear map from human mid-levels to film emotions, and listeners' own agreement."""
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict

    from annotate.corpora import scan, split_groups
    from outputs.metrics import agreement, split_half_ceiling

    found: dict[str, list[Reference]] = {}
    if (data / "soundtracks").is_dir():
        corpus = scan([data / "soundtracks"])
        by_key = {track.track_key: track.track for track in corpus.tracks}
        groups = split_groups(corpus, {})
        columns = [f"rated_{label}" for label in (*MIDLEVEL.labels, *FILM.labels)]
        rated = corpus.ratings.reindex(list(by_key))[columns].dropna()
        albums = groups.reindex([by_key[key] for key in rated.index]).to_numpy()
        x, y = rated.to_numpy()[:, : len(MIDLEVEL.labels)], rated.to_numpy()[:, len(MIDLEVEL.labels) :]
        predicted = cross_val_predict(LinearRegression(), x, y, groups=albums, cv=GroupKFold(10))
        r = agreement(y, predicted, FILM.labels, resamples=10)["r"].to_numpy(float)
        found["film"] = [(f"linear map of the human mid-levels, {len(rated)} clips here, by album", float(r.mean()), tuple(r))]
    if (data / "emotify").is_dir():
        listeners = scan([data / "emotify"]).listeners
        if listeners is not None:
            r = split_half_ceiling(listeners).reindex(list(GEMS.labels)).to_numpy(float)
            found["gems"] = [("ceiling of the ratings in the data folder", float(r.mean()), tuple(r))]
    return found


def taken(folder: Path) -> dict[str, Any]:
    """Read what the page shows of a folder of `annotate evaluate`: its headline figures and r by label."""
    path = folder / "scores.json"
    if not path.is_file():
        raise SystemExit(f"{folder}: no scores.json: not a folder of annotate evaluate")
    scores = json.loads(path.read_text(encoding="utf-8"))
    if scores.get("kind") != "evaluation" or scores.get("schema_version") != 1:
        raise SystemExit(
            f"{path}: kind {scores.get('kind')!r}, version {scores.get('schema_version')!r}: not an evaluation of version 1"
        )
    kept = {name: scores.get(name) for name in ("bundle", "mode", "folds", "folds_run", "split", "seed", "time_utc", "tool")}
    kept |= {"name": folder.name, "command_line": portable(scores["command_line"])}
    kept["corpora"] = [{key: value for key, value in one.items() if key != "messages"} for one in scores["corpora"]]
    kept["families"] = {
        family: {name: value for name, value in entry.items() if name != "thresholds"}
        for family, entry in scores["families"].items()
    }
    labels = folder / "scores" / "agreement.csv"
    if labels.is_file():
        table = pd.read_csv(labels)
        for family, entry in kept["families"].items():
            for one in entry.get("outputs", []):
                rows = table[
                    (table["family"] == family) & (table["target"] == one["target"]) & (table["corpus"] == one["corpus"])
                ]
                one["labels"] = {str(label): float(r) for label, r in zip(rows["label"], rows["pearson"], strict=True) if r == r}
    return kept


def stored_evaluations() -> list[dict[str, Any]]:
    """Read the evaluations that were taken in, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(EVALUATIONS.glob("*.json"))]


def outputs_of(evaluations: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield family, name of the output as a manifest's scores have it, and figures, of evaluations on folds."""
    for one in evaluations:
        for family, entry in one["families"].items() if one.get("mode") == "folds" else ():
            for output in entry.get("outputs", []):
                target, _, spread = output["target"].partition("_")
                prefix = dict(OUTPUTS[family])[target]
                part = {"va": " std" if spread else " mean"}.get(target, "")
                yield family, f"{prefix}{part}", output


def rows_of(manifest: Manifest, evaluations: Sequence[Mapping[str, Any]]) -> list[ScoreRow]:
    """Scores of the bundle's families, then those of families that are trained and scored, not shipped."""
    rows = score_rows(manifest)
    for family, name, one in outputs_of(evaluations):
        headline = one["headline"]
        if family not in manifest["families"] and headline["r"] is not None:
            figures = (headline["r"], headline["r_low"], headline["r_high"], headline["r2"], one["baseline_r"], one["ceiling_r"])
            rows.append(ScoreRow(family, name, one["corpus"], one["n"], *figures, r=one.get("labels", {}), bias={}))
    return rows


def family_table(manifest: Manifest, evaluations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield every family beside baseline, genre mean, floor, ceiling and the best published figure."""
    beside = {(family, name, one["corpus"]): one for family, name, one in outputs_of(evaluations)}
    yield (
        "| family | output on corpus | held-out tracks | mean r | descriptor model | genre mean | fitted to shuffled ratings | "
        "ceiling | best published | mean R² |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows_of(manifest, evaluations):
        found = beside.get((row.family, row.output, row.corpus), {})
        published = [mean for name, mean, _ in PUBLISHED.get(kind_of(row) or "", ()) if name.endswith("published")]
        family = f"`{row.family}`" + ("" if row.family in manifest["families"] else " (not shipped)")
        cells = (found.get("shuffled_r"), row.ceiling, max(published, default=None), row.mean_r2)
        yield (
            f"| {family} | {row.output} on {row.corpus} | {row.tracks} | {row.mean_r:.3f} ({row.low:.3f} to {row.high:.3f}) | "
            f"{number(row.baseline, 3)} | {genre_means(found)} | {' | '.join(number(value, 3) for value in cells)} |"
        )


def genre_means(output: Mapping[str, Any]) -> str:
    """Write r of the genre mean, and in brackets of that which knows the ratings."""
    here = output.get("group_mean_here_r")
    return number(output.get("group_mean_r"), 3) + ("" if here is None else f" ({here:.3f})")


def floor_range(evaluations: Sequence[Mapping[str, Any]]) -> str:
    """Say between which figures the floors lie."""
    found = [one["shuffled_r"] for _, _, one in outputs_of(evaluations) if one.get("shuffled_r") is not None]
    return f" ({min(found):.2f} to {max(found):.2f})" if found else ""


def memory_lines(memory: Mapping[str, Any]) -> Iterator[str]:
    """Yield the peak memory of training and evaluating each family."""
    most = max(memory, key=lambda part: float(memory[part]["peak_gb"]))
    peak = memory[most]["peak_gb"]
    verdict = "under" if peak < MEMORY_RULE_GB else "over"
    yield (
        f"Most: {peak:.2f} GB (`{most}`), {verdict} the rule of {MEMORY_RULE_GB:.0f} GB. Peak of all processes of one `annotate "
        "evaluate` with `--folds` on the tracks above, which trains a family for an epoch on its longest crops and scores it, by "
        "`benchmarks/memory.py`; shared pages count once. Further epochs and folds take no more: each epoch's crops take the "
        "place of the last ones. In brackets without the pages of mapped files, which the system takes back when it needs them."
    )
    yield ""
    yield "| part | peak, GB | processes |"
    yield "|---|---|---|"
    for part, one in memory.items():
        yield f"| {part} | {one['peak_gb']:.2f} ({one['own_gb']:.2f}) | {one['processes']} |"


def evaluation_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """Yield the headline figures of one evaluation."""
    tried = scores["bundle"]
    run = scores.get("folds_run")
    first = f"the first {run} of " if run and run < scores["folds"] else ""
    how = (
        f"retrained on {first}{scores['folds']} grouped folds, seed {scores['seed']}"
        if scores["folds"]
        else f"retrained on the split {portable(scores['split'])}, seed {scores['seed']}"
        if scores.get("split")
        else "on tracks that the bundle was not trained on"
    )
    corpora = ", ".join(
        f"{one['name']} ({one['tracks']} tracks, {one['groups']} groups by {one['grouped_by'] or 'track'})"
        for one in scores["corpora"]
    )
    yield f"### {scores['name']}: bundle {tried['name']} {tried['version']} {how}"
    yield ""
    yield f"{corpora}; {scores['time_utc']}; `{scores['command_line']}`"
    yield ""
    yield (
        "| family | target | corpus | tracks | r | descriptor model | genre mean | fitted to shuffled ratings | "
        "95 % of random pairings | ceiling | R² | AUROC | F1 |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    said = []
    for family, entry in scores["families"].items():
        for one in entry.get("outputs", []):
            headline = one["headline"]
            r = number(headline.get("r"), 3)
            if headline.get("r_low") is not None:
                r += f" ({headline['r_low']:.3f} to {headline['r_high']:.3f})"
            rest = [one.get(name) for name in ("shuffled_r", "chance_r", "ceiling_r")]
            rest += [headline.get(name) for name in ("r2", "auroc", "f1")]
            cells = " | ".join((number(one.get("baseline_r")), genre_means(one), *(number(value) for value in rest)))
            yield f"| `{family}` | {one['target']} | {one.get('corpus', '')} | {one['n']} | {r} | {cells} |"
        said.append(f"`{family}` {entry.get('configurations_tried') or 'not stated'}")
    yield ""
    yield f"Configurations tried in its working folder: {', '.join(said)}."
    genres = {family: entry["genre"] for family, entry in scores["families"].items() if entry.get("genre")}
    for family, genre in genres.items():
        yield ""
        yield f"Genre (`{family}`): accuracy {genre['accuracy']:.3f}, top-3 {genre['top3']:.3f}."
    yield ""


def readme_block(manifest: Manifest) -> str:
    """Write README's table: scores of the bundle, between the two markers."""
    ceilings = manifest.get("ceiling_gems")
    ceiling = f" The raters' own ceiling on Emotify's shares is r = {np.mean(list(ceilings.values())):.2f}." if ceilings else ""
    said = [line for line in ((genre_line(manifest) or "") + ceiling,) if line]
    title = f"Bundle {manifest['name']} {manifest['version']}:"
    return "\n".join([BEGIN, "", title, "", *score_table(manifest), "", *said, "", END])


def with_block(text: str, block: str) -> str:
    """Put a block in the place of the one between the markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{README}: the markers {BEGIN} and {END} are not there")
    return before + block + after


def page(
    manifest: Manifest,
    digest: str,
    trials: Trials,
    remarks: Mapping[str, Mapping[str, str]],
    references: Mapping[str, Sequence[Reference]],
    evaluations: Sequence[Mapping[str, Any]],
    memory: Mapping[str, Any] | None = None,
) -> str:
    """Write docs/evaluation.md."""
    done = len(TARGETS) - len(missed(manifest, trials))
    lines = [
        "# Evaluation",
        "",
        f"Of bundle {manifest['name']} {manifest['version']} (SHA-256 of bundle.json {digest[:12]}…), made "
        f"{manifest['created_utc']}. Written by `make evaluation`; the remarks are in `evaluation_remarks.toml`.",
        "",
        "Mean Pearson r with human ratings on held-out artists or albums, 95 % bootstrap interval over tracks. The baseline is "
        "the descriptor model (535 descriptors and 54 note features) on the same tracks. A ceiling needs single listeners, which "
        "only Emotify publishes: Soundtracks, MUSIFEAST-17 and the mid-level ratings come as means. Published figures are of "
        "other splits of larger corpora (360 Soundtracks clips, 5 000 mid-level clips) and bound nothing here.",
        "",
        "## Targets",
        "",
        f"{done} of {len(TARGETS)} reached.",
        "",
        *targets_table(manifest, trials),
        "",
        *remarks_lines(manifest, trials, remarks),
        "## Every family",
        "",
        f"![Mean r of every output beside baseline, ceiling and published figures]({FIGURE.name})",
        "",
        "Genre mean and floor are those of the evaluations below. The genre mean is that of the training part; in brackets that "
        "of the scored tracks themselves, which knows their ratings: the fairer rival, as means of other tracks fall where a "
        "track's own rating rises. The floor is the family's own model fitted, on the same folds, to ratings that were shuffled "
        f"among the tracks of each training part, once, so it scatters around 0{floor_range(evaluations)}; the large networks "
        "were not trained for it, and the evaluations give for them what 95 % of random pairings of ratings and predictions "
        "stay under. A family of the bundle stands beside the bundle's descriptor model, which weighs Soundtracks' valence and "
        "energy by .2 against MUSIFEAST-17's; a family that is not shipped beside one fitted to just the tracks that it saw.",
        "",
        *family_table(manifest, evaluations),
        "",
        *filter(None, [genre_line(manifest)]),
        "",
        *(
            line
            for family in NOT_SHIPPED
            if remarks.get(family)
            for line in remark_lines(f"**`{family}`** (not shipped)", remarks[family])
        ),
        "## Per label",
        "",
        *label_tables(manifest, references, evaluations),
    ]
    if evaluations:
        lines += ["## Evaluations", "", *(line for one in evaluations for line in evaluation_lines(one))]
    if memory:
        lines += ["## Memory", "", *memory_lines(memory), ""]
    for title, write in (("Twins", twins_lines), ("Robustness", robustness_lines), ("Where the models fail", failures_lines)):
        part = None if trials is None else trials[{"Twins": "twins", "Robustness": "robustness"}.get(title, "failures")]
        lines += [f"## {title}", "", *(["Not measured for this bundle."] if part is None else write(part)), ""]
    return "\n".join(lines).rstrip() + "\n"


def draw(manifest: Manifest, path: Path, evaluations: Sequence[Mapping[str, Any]] = ()) -> None:
    """Draw mean r with its interval of every output; baseline, ceiling and the best published mean beside it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = list(reversed(rows_of(manifest, evaluations)))
    with matplotlib.rc_context({"svg.hashsalt": "evaluation", "svg.fonttype": "none", "font.size": 9}):
        figure, axis = plt.subplots(figsize=(8.5, 0.3 * len(rows) + 1.3), layout="constrained")
        for place, row in enumerate(rows):
            axis.plot([row.low, row.high], [place, place], color="#1f77b4", linewidth=2)
            axis.plot(row.mean_r, place, "o", color="#1f77b4", label="mean r, 95 % interval")
            if row.baseline is not None:
                axis.plot(row.baseline, place, "|", color="black", markersize=12, label="descriptor model, same tracks")
            if row.ceiling is not None:
                axis.plot(row.ceiling, place, "|", color="#d62728", markersize=12, label="ceiling")
            kind = kind_of(row)
            published = [mean for name, mean, _ in PUBLISHED.get(kind or "", ()) if name.endswith("published")]
            if published:
                axis.plot(max(published), place, "d", markerfacecolor="none", color="#7f7f7f", label="best published mean")
        axis.set_yticks(range(len(rows)), [f"{row.family}: {row.output} on {row.corpus}" for row in rows])
        axis.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
        axis.set_xlabel("mean Pearson r with listeners, held-out artists or albums")
        axis.spines[["top", "right"]].set_visible(False)
        handles = dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/evaluation.md and README's table of scores from a bundle.")
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--data", type=Path, help="folder with soundtracks/ and emotify/: references that need the ratings")
    parser.add_argument("--evaluation", type=Path, nargs="*", default=[], help="folders of annotate evaluate to take in")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where README's table is out of date")
    options = parser.parse_args()
    held = load(options.bundle)
    trials = json.loads(held.file(TRIALS_FILE).read_text(encoding="utf-8")) if TRIALS_FILE in held.manifest["files"] else None
    readme = README.read_text(encoding="utf-8")
    wanted = with_block(readme, readme_block(held.manifest))
    if options.check:
        page_text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        stale = [README.name] if wanted != readme else []
        stale += [PAGE.name] if any(line not in page_text for line in targets_table(held.manifest, trials)) else []
        if stale:
            raise SystemExit(f"out of date with bundle {held.name} {held.version}: {', '.join(stale)}; say make evaluation")
        return
    remarks = read_remarks(REMARKS)
    references = human_references(options.data) if options.data else {}
    EVALUATIONS.mkdir(exist_ok=True)
    for folder in options.evaluation:
        path = EVALUATIONS / f"{folder.name}.json"
        path.write_text(json.dumps(taken(folder), indent=1) + "\n", encoding="utf-8")
    evaluations = stored_evaluations()
    memory = json.loads(MEMORY.read_text(encoding="utf-8")) if MEMORY.exists() else None
    text = page(held.manifest, held.digest, trials, remarks, references, evaluations, memory)
    draw(held.manifest, FIGURE, evaluations)
    PAGE.write_text(text, encoding="utf-8")
    README.write_text(wanted, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}, {FIGURE.relative_to(ROOT)}, the table in {README.name}: bundle {held.name} {held.version}")
    silent = [target.key for target in missed(held.manifest, trials) if target.key not in remarks]
    if silent:
        print(f"no remark in {REMARKS.relative_to(ROOT)} on: {', '.join(silent)}", file=sys.stderr)


if __name__ == "__main__":
    main()
