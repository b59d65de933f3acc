"""The card of a bundle: everything in it comes from the bundle's manifest and trials but what is known of a model by its making.

`score_rows` is the one reading of a manifest's scores; the card, the README's table and docs/evaluation.md show the same rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.bundle import Bundle

TRIALS_FILE = "trials.json"
CARD_FILE = "README.md"
CORPORA = {
    "emotify": "Emotify (Aljanaki, Wiering & Veltkamp 2016): shares of listeners who chose each of nine GEMS emotions in a game",
    "soundtracks": "Soundtracks set 1 (Eerola & Vuoskoski 2011), film-emotion ratings; mid-level ratings of the same clips by "
    "Aljanaki & Soleymani 2018",
    "musifeast": "MUSIFEAST-17: mean and spread of valence and arousal ratings, brought from 1-5 to 1-9",
}
GROUPED_BY = {"emotify": " by artist", "soundtracks": " by album", "musifeast": " by artist"}
RESEARCH_USE = "audio and ratings for research use; neither is in the bundle"
NOT_FOR = {
    "midlevel": "comparing single tracks whose values lie closer than the errors below",
    "probe": "an emotion that everyone feels: it predicts shares of the players of one game; nor as the best guess of them",
    "joint": "emotions that listeners feel: film emotions are those that raters heard expressed",
    "a2e": "as `joint`; nor for what speaks for an emotion, which it does not say",
    "a2mid2e": "as `joint`",
    "emotion": "an emotion that everyone feels: it predicts shares of the players of one game",
    "va": "music whose character is not in its notes (sound, voice, words)",
    "vaseq": "music whose character is not in its first 512 notes",
    "vatransfer": "music whose character is not in its notes (sound, voice, words)",
    "crnn": "listeners' ratings: its valence, arousal and dominance come from word norms, its genres are Emotify's four folders",
    "descriptors": "levels on other corpora: ratings of another scale or population shift them",
    "best": "levels on other corpora, as `descriptors`; nor as independent of `descriptors`, whose inputs it reads",
    "notes": "a score: it is an automatic transcription without a measured error on this music",
}


@dataclass(frozen=True)
class ScoreRow:
    """Agreement of one output with the ratings of one corpus, as a manifest states it."""

    family: str
    output: str  # columns' prefix, with the part where only some of its labels are scored
    corpus: str
    tracks: int  # held out
    mean_r: float
    low: float  # of the 95 % interval
    high: float
    mean_r2: float
    baseline: float | None  # mean r of the descriptor model on the same tracks
    ceiling: float | None  # mean over the same labels
    r: Mapping[str, float]  # by label
    bias: Mapping[str, float]  # by label, units of the rating


def score_rows(manifest: Mapping[str, Any]) -> list[ScoreRow]:
    """Read all scores of a manifest, in the order of its families."""
    ceilings: Mapping[str, float] = manifest.get("ceiling_gems") or {}
    rows = []
    for family, entry in manifest["families"].items():
        for name, table in entry.get("scores", {}).items():
            output, _, corpus = name.partition(" on ")
            labels = list(table["r"])
            bounded = corpus == "emotify" and bool(labels) and set(labels) <= set(ceilings)
            low, high = table["mean_r_interval"]
            rows.append(
                ScoreRow(
                    family=family,
                    output=output,
                    corpus=corpus,
                    tracks=int(table["tracks"]),
                    mean_r=float(table["mean_r"]),
                    low=float(low),
                    high=float(high),
                    mean_r2=float(table["mean_r2"]),
                    baseline=table.get("descriptor_baseline_mean_r"),
                    ceiling=sum(ceilings[label] for label in labels) / len(labels) if bounded else None,
                    r=table["r"],
                    bias=table.get("bias", {}),
                )
            )
    return rows


def portable(command_line: str) -> str:
    """Write a command line without the places of one machine: of an absolute path the last part stays."""
    words = (f"…/{PurePosixPath(word).name}" if word.startswith("/") else word for word in shlex.split(command_line))
    return " ".join(f'"{word}"' if " " in word else word for word in words)


def number(value: float | None, digits: int = 2) -> str:
    """Write a number for a table; empty where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def score_table(manifest: Mapping[str, Any], digits: int = 2) -> list[str]:
    """Write the scores as lines of a Markdown table: ours beside baseline and ceiling."""
    lines = [
        "| family | output on corpus | held-out tracks | mean r | descriptor model | ceiling | mean R² |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in score_rows(manifest):
        interval = f"{row.mean_r:.{digits}f} ({row.low:.{digits}f} to {row.high:.{digits}f})"
        lines.append(
            f"| `{row.family}` | {row.output} on {row.corpus} | {row.tracks} | {interval} | "
            f"{number(row.baseline, digits)} | {number(row.ceiling, digits)} | {row.mean_r2:.{digits}f} |"
        )
    return lines


def genre_line(manifest: Mapping[str, Any]) -> str | None:
    """Say how often the genre is right, where the bundle has a model of it."""
    genre = manifest["families"].get("crnn", {}).get("genre")
    if not genre:
        return None
    scores = f"accuracy {genre['accuracy']:.2f}, top-3 {genre['top_3']:.2f}"
    return f"Genre (`crnn`, {genre['tracks']} held-out tracks, by artist): {scores}."


def card(manifest: Mapping[str, Any], trials: Mapping[str, Any] | None = None) -> str:
    """Write the model card from a bundle's manifest and, where they were made, its trials (`annotate bundle trials`)."""
    tracks = ", ".join(f"{count} tracks of {corpus}" for corpus, count in manifest["tracks"].items())
    lines = [
        f"# Bundle {manifest['name']} {manifest['version']}",
        "",
        f"Licence: {manifest['licence']}. Made {manifest['created_utc']} by `annotate train`.",
        "",
        f"Trained and scored on {tracks}. Split: {manifest['split']}. Human ratings are the only truth; a score is over tracks "
        "that the scored model did not see. A network is scored by a copy that was trained without the held-out fold; the "
        "shipped one then saw those tracks, too, unless the table of the models counts fewer.",
        "",
        *(f"- {corpus}: {CORPORA[corpus]}." for corpus in manifest["tracks"] if corpus in CORPORA),
        "",
        "## The models",
        "",
        *_models(manifest),
        "",
        "## Agreement with listeners",
        "",
        "Mean Pearson r over the labels with its 95 % bootstrap interval over tracks; the descriptor model (descriptors + note "
        "features) out of its own grouped folds, on the same tracks; the ceiling that the listeners' own disagreement sets, "
        "√(split-half reliability, Spearman-Brown), where a corpus publishes single listeners; and mean R² (1 - squared error / "
        "variance: what is left when the level counts, too).",
        "",
        *score_table(manifest, digits=3),
        "",
    ]
    genre = genre_line(manifest)
    if genre:
        lines += [genre, ""]
    lines += ["## Per label: r (mean error, in units of the rating)", ""]
    for row in score_rows(manifest):
        labels = ", ".join(f"{label} {r:.2f}{_error(row.bias.get(label))}" for label, r in row.r.items())
        lines.append(f"- {row.family}, {row.output} on {row.corpus}: {labels}")
    lines += [
        "",
        *_trials(trials),
        "",
        "## CPU graphs",
        "",
        *_engines(manifest),
        "",
        "## What to know",
        "",
        *_warnings(manifest, trials),
    ]
    return "\n".join(lines) + "\n"


def _error(bias: float | None) -> str:
    return "" if bias is None else f" ({bias:+.2f})"


def _models(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield a table: data, split, licence and terms, and what each model must not be used for."""
    yield "| model | rated tracks that it learned from | held-out tracks of its scores | licence and terms | not for |"
    yield "|---|---|---|---|---|"
    for family, entry in manifest["families"].items():
        training = entry.get("training", {})
        ids: Mapping[str, Sequence[str]] = training.get("ids", {})
        learned = ", ".join(f"{len(keys)} {corpus}" for corpus, keys in ids.items()) or "none (Basic Pitch as published)"
        pseudo = training.get("pseudo_labelled", {})
        if pseudo:
            learned += "; with a descriptor model's ratings: " + ", ".join(
                f"{count} {corpus}" for corpus, count in pseudo.items()
            )
        terms = f"{manifest['licence'].partition(';')[0]}; {RESEARCH_USE}" if ids else "Apache-2.0 (Spotify)"
        if "notice" in entry:
            terms += f"; {entry['notice']}"
        held = {row.corpus: row.tracks for row in score_rows(manifest) if row.family == family}
        split = ", ".join(f"{count} {corpus}{GROUPED_BY.get(corpus, '')}" for corpus, count in held.items()) or "not scored"
        yield f"| `{family}` | {learned} | {split} | {terms} | {NOT_FOR.get(family, '')} |"


def _engines(manifest: Mapping[str, Any]) -> Iterator[str]:
    for family, entry in manifest["families"].items():
        record = entry.get("engine_agreement")
        if record:
            measured = record.get("measured", {}).get(record["kind"])
            if not measured:
                largest = max(record["largest_difference"].values())
                yield f"- {family}: {record['kind']}, against float32 Keras: outputs differ by {largest:.1e} at most"
                continue
            judged = record.get("judged_by", f"against float32 Keras on {measured[0]['windows']} windows")
            text = "; ".join(
                f"{one['head']}: r ≥ {one['least_r']:.5f}, mean |difference| ≤ {100 * one['largest_share']:.2f} % of the range"
                for one in measured
            )
            yield f"- {family}: {record['kind']}, {judged}: {text}"


def _warnings(manifest: Mapping[str, Any], trials: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what to know of the families that a bundle holds."""
    families = set(manifest["families"])
    yield "- The audio that these weights were trained on is for research use."
    if "crnn" in families:
        yield (
            "- `crnn` valence, arousal and dominance are learned from word norms of the emotion words that listeners chose. We "
            "know of no human dominance ratings of music audio; that column is not validated against any."
        )
    if "probe" in families:
        yield (
            "- The scores of `probe` hold out its 7 to 9 map only: the mid-level network under it is the shipped one; it never "
            "saw an Emotify rating but trained on these tracks with a teacher's mid-level ratings."
        )
    shares = [f"`{name}`" for name in ("probe", "emotion") if name in families]
    if shares:
        predict = "predict" if len(shares) == 2 else "predicts"
        yield f"- {' and '.join(shares)} {predict} the share of listeners in Emotify's game, not an emotion that everyone feels."
    if families & {"descriptors", "best"}:
        yield from _of_the_descriptor_models(manifest)
    if trials is None:
        yield "- Music only. Solo piano, speech, noise, silence and very short clips were not evaluated."
    else:
        yield "- Music only: nothing in a row says that a file was speech or noise, see the trials above."
    yield "- Not for judging people, nor for any decision about a single listener."


def _of_the_descriptor_models(manifest: Mapping[str, Any]) -> Iterator[str]:
    held = [name for name in ("descriptors", "best") if name in manifest["families"]]
    what = "are the same kind of model" if len(held) == 2 else "is a model"
    names = " and ".join(f"`{name}`" for name in held)
    text = f"- {names} {what} (support vectors and ridge) on 535 descriptors and 54 note features"
    if "best" in held:
        text += (
            "; `best` reads the embedding of a frozen music tagging network beside them. Its weights were trained by its authors "
            "on tags of the Million Song Dataset, no rating of ours entered them"
        )
    tried = [manifest["families"][name].get("training", {}).get("configurations_tried") for name in held]
    if None in tried or sum(tried) > len(held):
        over = "some forty" if None in tried else f"{sum(tried)}"  # default-2 was made before they were counted
        text += (
            f". Members and settings were chosen by the scores above, over {over} configurations, so the scores are a little high"
        )
    yield f"{text}."
    if "best" in held:
        yield (
            "- No model of one rating reads a model of another: `best_midlevel`, like `midlevel` and `joint`, never saw a GEMS "
            "rating, so its correlation with GEMS on Emotify is honest as it stands."
        )
    if "soundtracks" in manifest["tracks"]:
        yield (
            f"- Valence and arousal of {names}: Soundtracks asks for energy, so its ratings "
            "are brought to the level of those corpora that ask for arousal, and weigh a fifth of theirs."
        )


def _trials(trials: Mapping[str, Any] | None) -> Iterator[str]:
    if trials is None:
        yield "## Twins, robustness, failures"
        yield ""
        yield "Not measured for this bundle; `annotate bundle trials` measures them."
        return
    yield "## Twins"
    yield ""
    yield from twins_lines(trials["twins"])
    yield ""
    yield "## Robustness"
    yield ""
    yield from robustness_lines(trials["robustness"])
    yield ""
    yield "## Where the models fail"
    yield ""
    yield from failures_lines(trials["failures"])


def twins_lines(twins: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was tried with pairs of pieces that differ in one cue, and a table: model by cue."""
    cues: Mapping[str, Mapping[str, str]] = twins["cues"]
    yield (
        f"{twins['pairs']} pairs of composed pieces of {twins['duration_s']:g} s a cue, which share all but what the cue "
        "changes. How many pairs each model orders as a listener would, by the label that names the cue:"
    )
    yield ""
    yield "| model | " + " | ".join(f"{cue['low']} < {cue['high']}: {cue['label']}" for cue in cues.values()) + " |"
    yield "|---|" + "---|" * len(cues)
    scores = {(one["output"], one["cue"]): one for one in twins["scores"]}
    for output in dict.fromkeys(one["output"] for one in twins["scores"]):
        cells = [f"{scores[output, cue]['ordered']} of {scores[output, cue]['pairs']}" for cue in cues]
        yield f"| `{output}` | " + " | ".join(cells) + " |"


def robustness_lines(robustness: Mapping[str, Any]) -> Iterator[str]:
    """Yield how far predictions move under changes that leave the music as it is: a table, and the labels over the rule."""
    changes: Mapping[str, str] = robustness["changes"]
    rule = robustness["rule"]
    yield (
        f"{robustness['tracks']} tracks of {robustness['music']}, {robustness['seconds']:g} s of each; mean |change| of a "
        "prediction in units of its spread (SD) between the unchanged tracks: mean over the labels, and the label that moves "
        f"most. The rule is < {rule:g}. Changes: {'; '.join(f'{name}: {text}' for name, text in changes.items())}."
    )
    yield ""
    yield "| model | " + " | ".join(changes) + " | labels within the rule |"
    yield "|---|" + "---|" * (len(changes) + 1)
    labels: Sequence[Mapping[str, Any]] = [one for one in robustness["labels"] if one["mean"] is not None]
    over = []
    for family in dict.fromkeys(one["family"] for one in labels):
        cells = []
        for change in changes:
            held = [one for one in labels if (one["family"], one["change"]) == (family, change)]
            worst = max(held, key=lambda one: float(one["mean"]))
            cells.append(f"{sum(one['mean'] for one in held) / len(held):.2f} ({worst['column']} {worst['mean']:.2f})")
        ours = [one for one in labels if one["family"] == family]
        columns = dict.fromkeys(one["column"] for one in ours)
        within = [column for column in columns if all(one["mean"] < rule for one in ours if one["column"] == column)]
        yield f"| `{family}` | " + " | ".join(cells) + f" | {len(within)} of {len(columns)} |"
        worst_of = (
            max((one for one in ours if one["column"] == column), key=lambda one: float(one["mean"])) for column in columns
        )
        over += [one for one in worst_of if one["mean"] >= rule]
    yield ""
    if over:
        yield (
            "Over the rule, at their worst change: "
            + ", ".join(f"{one['column']} {one['mean']:.2f} ({one['change']})" for one in over)
            + "."
        )
    else:
        yield "Every label is within the rule under every change."


def failures_lines(failures: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the models say of what is no music, or too little of it."""
    yield (
        "What comes out where no listener was asked. A position is the distance of the mean output from the mean of the "
        "unchanged tracks above, in their spreads (SD); within ±2 it looks like ordinary music, and nothing in the row warns."
    )
    yield ""
    yield "| clips | rows | warning or error | genre | labels within ±2 | furthest out |"
    yield "|---|---|---|---|---|---|"
    for kind, text in failures["kinds"].items():
        clips = [clip for clip in failures["clips"] if clip["kind"] == kind]
        outputs = [one for one in failures["outputs"] if one["kind"] == kind and one["position"] is not None]
        failed = sum(clip["status"] == "failed" for clip in clips)
        rows = f"{len(clips)}, {failed} failed" if failed else str(len(clips))
        said = "; ".join(dict.fromkeys(clip["error"] or clip["warning"] for clip in clips if clip["error"] or clip["warning"]))
        genres = [clip["genre"] for clip in clips if clip.get("genre")]
        counted = ", ".join(f"{genre} {genres.count(genre)}" for genre in sorted(set(genres)))
        far = sorted(outputs, key=lambda one: -abs(one["position"]))[:3]
        near = f"{sum(abs(one['position']) <= 2 for one in outputs)} of {len(outputs)}" if outputs else ""
        furthest = ", ".join(f"{one['column']} {one['mean']:.2f} ({one['position']:+.1f})" for one in far)
        yield f"| {text} | {rows} | {said} | {counted} | {near} | {furthest} |"
    short: Sequence[Mapping[str, Any]] = failures["short"]
    if short:
        lengths = list(dict.fromkeys(one["seconds"] for one in short))
        yield ""
        yield (
            "Beginnings of the same tracks: mean |change| against the whole excerpt, in spreads, mean over the labels. At 1 and "
            "more a value says less about its track than the mean of all tracks would."
        )
        yield ""
        yield "| model | " + " | ".join(f"{seconds:g} s" for seconds in lengths) + " |"
        yield "|---|" + "---|" * len(lengths)
        for family in dict.fromkeys(one["family"] for one in short):
            cells = []
            for seconds in lengths:
                held = [one["mean"] for one in short if (one["family"], one["seconds"]) == (family, seconds)]
                cells.append(number(sum(held) / len(held) if held else None))
            yield f"| `{family}` | " + " | ".join(cells) + " |"


def models_digest(bundle: Bundle) -> str:
    """SHA-256 over the digests of all files of a bundle but its card and its trials: the models that were tried."""
    files = {name: digest for name, digest in bundle.manifest["files"].items() if name not in (CARD_FILE, TRIALS_FILE)}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def complete(folder: Path, trials: Path) -> None:
    """Put trials into a bundle that is not published yet: `trials.json`, a card with them, and all digests anew.

    Raises
    ------
    BundleError
        If the folder holds no sound bundle.
    ValueError
        If the trials are none, or of other models.
    """
    from models.bundle import load, write_manifest

    held = load(str(folder.resolve()))
    text = trials.read_text(encoding="utf-8")
    measured = json.loads(text)
    if not isinstance(measured, dict) or measured.get("kind") != "trials":
        raise ValueError(f"{trials}: not the trials of a bundle, see annotate bundle trials")
    if measured["bundle"]["models_sha256"] != models_digest(held):
        raise ValueError(f"{trials}: trials of other models than those of {folder}; try this bundle itself")
    manifest = {key: value for key, value in held.manifest.items() if key not in ("format", "files")}
    for name, content in ((TRIALS_FILE, text), (CARD_FILE, card(manifest, measured))):
        temporary = folder / f"{name}.tmp"
        temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, folder / name)
    write_manifest(folder, manifest)
