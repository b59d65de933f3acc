"""What `annotate report`, `compare` and `explain` read from the user's files, and whom they give it to.

Reports are made in `outputs/`, from tables alone; here the tables are found and joined: the annotation table, the ratings, the
out-of-fold predictions of the bundle that wrote the table, the audio files that players link.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from annotate import ratings as labels_of
from annotate.console import log
from annotate.corpora import path_of
from annotate.ratings import Labels
from models.bundle import Bundle, built_in_bundles, load
from outputs.table import Column, read_columns, read_frame, read_provenance

if TYPE_CHECKING:
    from outputs.report import Report
    from outputs.report_correlations import Ratings

NEEDED: Final = ("track", "track_key", "corpus", "group", "artist", "album", "status", "error", "warning", "duration_s",
                 "audio_sha256", "in_training")  # fmt: skip
ID_COLUMNS: Final = (
    "track",
    "track_key",
    "track_id",
    "track id",
    "trackid",
    "id",
    "song_id",
    "songid",
    "song id",
    "file",
    "filename",
)
LARGEST_RATING: Final = 1e30  # squares of larger ones overflow
KEYS_NAMED: Final = 3  # examples of ids in a message


@dataclass(frozen=True)
class ReportOptions:
    """What `annotate report` is asked for."""

    source: Path  # an annotation table, or a folder that `annotate evaluate` wrote
    out: Path
    ratings: Path | None = None
    audio: Path | None = None
    bundle: str | None = None
    command_line: str = "annotate report"


@dataclass(frozen=True, eq=False)
class Annotated:
    """An annotation table with what its columns mean and where it came from."""

    path: Path
    frame: pd.DataFrame
    columns: tuple[Column, ...]
    provenance: Mapping[str, Any]


def read_annotated(path: Path) -> Annotated:
    """Read an annotation table.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If the file is not a table of ours, has a newer schema version, lacks columns or rows.
    """
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    provenance, columns = read_provenance(path), read_columns(path)
    missing = [name for name in NEEDED if name not in {column.name for column in columns}]
    if missing:
        raise ValueError(f"{path}: not a table of tracks, it lacks {', '.join(missing)}")
    frame = read_frame(path)
    if not len(frame):
        raise ValueError(f"{path}: the table holds no track")
    if frame["track"].isna().any():
        raise ValueError(f"{path}: {int(frame['track'].isna().sum())} rows lack their track")
    strange = set(frame["status"].dropna()) - {"ok", "failed"} if frame["status"].notna().all() else {"null"}
    if strange:
        raise ValueError(f"{path}: status must be ok or failed, not {sorted(strange)[0]!r}")
    for column in columns:
        if column.type == "float" and np.isinf(frame[column.name].to_numpy()).any():
            raise ValueError(f"{path}: {column.name} holds infinite numbers, which no table of ours does")
    return Annotated(path, frame, columns, provenance)


def report(options: ReportOptions) -> list[Path]:
    """Make the report of a table, or of an evaluation folder; returns what was written, the page first.

    Raises
    ------
    FileNotFoundError
        A table, ratings or audio folder that does not exist.
    ValueError
        A source that is neither, ratings that cannot be read or have no id in common with the table.
    """
    from outputs.report import write_report

    if options.audio is not None and not options.audio.is_dir():
        raise FileNotFoundError(f"--audio {options.audio}: no such folder")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file, a folder is needed")
    made = _report_on_folder(options) if options.source.is_dir() else _report_on_table(options)
    for message in made.messages:
        log.log(logging.WARNING, "%s", message)
    return write_report(made, options.out)


def _report_on_folder(options: ReportOptions) -> Report:
    from outputs.report_evaluation import evaluation_report, read_evaluation

    if options.ratings is not None:
        raise ValueError("--ratings has no meaning for an evaluation folder: its ratings are in predictions.parquet")
    evaluation = read_evaluation(options.source)
    tracks = evaluation.predictions["track"].drop_duplicates().tolist()
    return evaluation_report(
        evaluation,
        audio_addresses(tracks, options.audio, options.out),
        tool=tool(),
        time_utc=now(),
        command_line=options.command_line,
    )


def _report_on_table(options: ReportOptions) -> Report:
    from outputs.report import Report, Section
    from outputs.report_corpus import corpus_sections
    from outputs.report_correlations import correlation_sections, explanation_section

    annotated = read_annotated(options.source)
    frame, provenance = annotated.frame, annotated.provenance
    messages: list[str] = []
    bundle = bundle_of(annotated, options.bundle)
    oof = None if bundle is None else out_of_fold(bundle)
    audio = audio_addresses(frame["track"].tolist(), options.audio, options.out)
    if options.audio is not None:
        lacking = len(frame) - len(audio or {})
        if lacking:
            messages.append(f"{lacking} of {len(frame)} audio files are not under {options.audio}")
    failed = int((frame["status"] == "failed").sum())
    if failed == len(frame):
        messages.append(f"all {failed} tracks failed: nothing can be correlated")
    elif failed:
        messages.append(f"{failed} of {len(frame)} tracks failed and enter nothing")
    rated = ratings_of_table(annotated) if options.ratings is None else ratings_of_file(annotated, options.ratings, messages)
    sections: list[Section] = []
    details: list[Mapping[str, Any]] = []
    artist = frame["artist"].where(frame["artist"].notna(), frame["album"])
    if failed < len(frame):
        for number, one in enumerate(rated):
            suffix = "" if len(rated) == 1 else "_" + re.sub("[^A-Za-z0-9]+", "_", one.corpus)
            inside = frame.loc[one.values.index]
            groups = artist.loc[inside.index]
            known = groups.str.split().str.join(" ").str.casefold() if groups.notna().any() else None
            found = correlation_sections(inside, annotated.columns, one, oof, known, audio, suffix=suffix)
            sections += found.sections
            messages += found.messages
            details.append(found.details)
            log.debug("corpus %d of %d: %s", number + 1, len(rated), one.corpus)
    if not rated:
        messages.append("no ratings: the table holds none (say --ratings FILE); the pages about the corpus follow")
    sections += explanation_section(provenance, list(provenance.get("families", [])))
    sections += corpus_sections(frame, annotated.columns, training_range(bundle, oof), audio)
    made = provenance.get("bundle", {})
    facts = {
        "Table": annotated.path.name,
        "Tracks": f"{len(frame)}, {failed} of them failed",
        "Annotated by": f"{provenance.get('tool', 'unknown')}, {provenance.get('time_utc', 'time unknown')}",
        "Bundle": f"{made.get('name', 'unknown')} {made.get('version', '')}, {str(made.get('digest', ''))[:12]}",
        "Families": ", ".join(provenance.get("families", [])) or "unknown",
        "Ratings": "; ".join(one.source for one in rated) or "none",
    }
    return Report(
        title=f"Report on {annotated.path.name}",
        kind="report",
        subtitle="What the annotations are, how they go with human ratings, and how far to trust them.",
        tool=tool(),
        time_utc=now(),
        command_line=options.command_line,
        facts=facts,
        messages=tuple(messages),
        sections=tuple(sections),
        details={"table": _named(annotated), "ratings": [dict(entry) for entry in details]},
    )


def compare(a: Path, b: Path, out: Path, command_line: str) -> list[Path]:
    """Compare two annotations of one corpus; returns what was written, the page first.

    Raises
    ------
    FileNotFoundError
        A table that does not exist.
    ValueError
        A file that is no table, tables that share no track.
    """
    from outputs.compare import comparison_report
    from outputs.report import write_report
    from outputs.table import describe_table

    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file, a folder is needed")
    one, other = read_annotated(a), read_annotated(b)
    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    made = comparison_report(
        (names[0], one.frame, one.columns, one.provenance),
        (names[1], other.frame, other.columns, other.provenance),
        (describe_table(a), describe_table(b)),
        tool=tool(),
        time_utc=now(),
        command_line=command_line,
    )
    for message in made.messages:
        log.log(logging.WARNING, "%s", message)
    return write_report(made, out)


def _named(annotated: Annotated) -> dict[str, Any]:
    """Say which table this is, for report.json; the weights stay in the table."""
    kept = {key: value for key, value in annotated.provenance.items() if key not in ("explanation", "front_ends")}
    with annotated.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": annotated.path.name, "sha256": digest, "rows": len(annotated.frame), "provenance": kept}


def bundle_of(annotated: Annotated, named: str | None) -> Bundle | None:
    """Bundle that wrote a table: the one named, or the built-in one with the table's digest; None where it is not here.

    Raises
    ------
    ValueError
        If the named bundle is another one than the table's.
    """
    digest = str(annotated.provenance.get("bundle", {}).get("digest", ""))
    if named is not None:
        bundle = load(named)
        if bundle.digest != digest:
            raise ValueError(f"--bundle {named} has digest {bundle.digest[:12]}, the table was made with {digest[:12] or 'none'}")
        return bundle
    for folder in built_in_bundles():
        if hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest() == digest:
            return load(str(folder))
    return None


def out_of_fold(bundle: Bundle) -> pd.DataFrame | None:
    """Out-of-fold predictions of a bundle's training tracks; None where it has none."""
    if "oof.parquet" not in bundle.manifest["files"]:
        return None
    return pd.read_parquet(bundle.file("oof.parquet"))


def training_range(bundle: Bundle | None, oof: pd.DataFrame | None) -> pd.DataFrame | None:
    """Smallest and largest value that the training tracks gave, by column: of the bundle's out-of-fold predictions."""
    if bundle is None or oof is None:
        return None
    numbers = oof.drop(columns=["corpus", "track_key", "sha256"]).astype(float)
    known = pd.DataFrame({"low": numbers.min(), "high": numbers.max()}).dropna()
    return known.rename_axis("column")


def audio_addresses(tracks: Sequence[str], root: Path | None, out: Path) -> dict[str, str] | None:
    """Address of each track's file as seen from the page; tracks that are not under the root are left out."""
    from outputs.report import audio_address

    if root is None:
        return None
    found = {track: root / path_of(track) for track in tracks}
    return {track: audio_address(path, out) for track, path in found.items() if path.is_file()}


def ratings_of_table(annotated: Annotated) -> list[Ratings]:
    """Ratings that the table itself holds, by corpus."""
    from outputs.report_correlations import Ratings

    frame = annotated.frame
    held = [column for column in annotated.columns if column.family == "ratings" and column.type in ("float", "int", "int64")]
    if not held:
        return []
    units = {column.name: (column.unit or "", column.low or 0.0, column.high or 0.0) for column in held}
    found = []
    for corpus in frame["corpus"].dropna().unique():
        inside = frame[frame["corpus"] == corpus]
        values = inside[[column.name for column in held]]
        values = values.loc[:, values.notna().any()]
        if values.drop(columns="rated_n", errors="ignore").shape[1]:
            kept = {name: units[name] for name in values.columns if name != "rated_n"}
            found.append(Ratings(str(corpus), f"columns rated_… of the table ({corpus})", values, kept))
    return found


def ratings_of_file(annotated: Annotated, path: Path, messages: list[str]) -> list[Ratings]:
    """Ratings of a file, joined with the table's tracks.

    Emotify's ``data.csv``, Soundtracks' ``mean_ratings_set1.csv``, ``MUSIFEAST17_all.csv``, MuSe's ``muse_v3*.csv``, DEAM's
    annotation folder; any other CSV with a column of ids (track, track_key, track_id, id, song_id) and columns of numbers, where
    several rows of an id are several raters.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, or shares no id with the table.
    """
    from outputs.report_correlations import Ratings

    if not path.exists():
        raise FileNotFoundError(f"--ratings {path}: no such file")
    labels, corpus = _labels(path)
    messages += labels.messages
    frame = annotated.frame
    rated = labels.ratings
    keys = _keys(frame, rated.index, corpus)
    matched = keys.notna()
    if not matched.any():
        ours = ", ".join(frame["track_key"].astype(str).head(KEYS_NAMED))
        theirs = ", ".join(map(str, rated.index[:KEYS_NAMED]))
        raise ValueError(f"--ratings {path}: no id in common with {annotated.path} (ratings: {theirs}; table: {ours})")
    n_ratings = int((~pd.Index(rated.index).isin(keys.dropna())).sum())
    if not matched.all():
        messages.append(f"{int((~matched).sum())} of {len(frame)} tracks have no rating in {path.name}")
    if n_ratings:
        messages.append(f"{n_ratings} of {len(rated)} rated ids of {path.name} are not in the table")
    inside = frame[matched]
    values = rated.loc[keys[matched]].set_axis(inside.index)
    units = {name: unit[1:] for name, unit in labels.rating_units.items() if name != "rated_n"}
    listeners = labels.listeners
    if listeners is not None:
        listeners = listeners[listeners["track_key"].isin(set(keys.dropna()))]
    return [Ratings(corpus, f"{path.name} ({int(matched.sum())} tracks matched)", values, units, listeners)]


def _keys(frame: pd.DataFrame, known: pd.Index[Any], corpus: str) -> pd.Series[Any]:
    """Id of each track among the rated ones: by the corpus's own id, or else by path."""
    plain = [str(key).removeprefix(f"{name}:") for key, name in zip(frame["track_key"], frame["corpus"].astype(str), strict=True)]
    own = pd.Series(plain, index=frame.index, dtype=object)
    if corpus != "other":
        own = own.where(frame["corpus"] == corpus)
    keys = own.where(own.isin(known))
    if keys.notna().any() or corpus != "other":
        return keys
    numbers = frame["track_id"].astype(object).map(str, na_action="ignore") if "track_id" in frame else own
    for candidate in (frame["track"].astype(object), numbers):
        keys = candidate.where(candidate.isin(known))
        if keys.notna().any():
            break
    return keys


def _labels(path: Path) -> tuple[Labels, str]:
    """Read a file of ratings by what it is, with the corpus that its ids belong to."""
    if path.is_dir():
        if labels_of.find_deam(path):
            return labels_of.read_deam(path), "deam"
        raise ValueError(f"--ratings {path}: a folder without DEAM's annotations; name the file")
    if labels_of.is_emotify_csv(path):
        return labels_of.read_emotify(path), "emotify"
    if path.name == "mean_ratings_set1.csv":
        return labels_of.read_soundtracks(path.parent), "soundtracks"
    if path.name == "MUSIFEAST17_all.csv":
        return labels_of.read_musifeast(path), "musifeast"
    if path.name.lower().startswith("muse_v3"):
        return labels_of.read_muse(path), "muse"
    return read_plain_ratings(path), "other"


def read_plain_ratings(path: Path) -> Labels:
    """Read a CSV file with one column of ids and columns of numbers; several rows of an id are several raters.

    Raises
    ------
    ValueError
        If it has no column of ids or no column of numbers.
    """
    try:
        table = labels_of.parse_csv(path, skipinitialspace=True)
    except (ValueError, OSError) as error:
        raise ValueError(f"--ratings {error}") from None
    table.columns = [str(name).strip() for name in table.columns]
    lower = {name.casefold(): name for name in table.columns}
    id_column = next((lower[name] for name in ID_COLUMNS if name in lower), None)
    if id_column is None:
        raise ValueError(f"--ratings {path}: no column of ids, one of {', '.join(ID_COLUMNS[:6])} is needed")
    ids = table[id_column].str.strip().rename("track_key")
    numbers: dict[str, pd.Series[float]] = {}
    for name in table.columns:
        if name == id_column:
            continue
        values = pd.to_numeric(table[name], errors="coerce").astype(float)
        if (values.abs() > LARGEST_RATING).any():
            raise ValueError(f"--ratings {path}: {name} holds numbers beyond {LARGEST_RATING:g}")
        if values.notna().any() and values.notna().sum() == table[name].notna().sum():
            label = name.casefold().replace(" ", "_").removeprefix("rated_")
            numbers[f"rated_{label}"] = values
    if not numbers:
        raise ValueError(f"--ratings {path}: no column of numbers beside {id_column}")
    frame = pd.DataFrame(numbers)[ids.notna()]
    grouped = frame.groupby(ids[ids.notna()], sort=False)
    means = grouped.mean()
    sizes = grouped.size()
    if (sizes > 1).any():
        spread = grouped.std().add_suffix("_std")
        means = means.join(spread)
        means["rated_n"] = sizes.astype("Int64")
    units = {name: (name.removeprefix("rated_"), "points", 0.0, 0.0) for name in numbers}
    return Labels(means, dict(units))


def find_track(annotated: Annotated, wanted: str) -> pd.Series[Any]:
    """Row of a track: by its name, its id, or the end of its path with or without the extension.

    Raises
    ------
    ValueError
        If no track or more than one answers to the name; the message lists likely ones.
    """
    frame = annotated.frame
    names = frame["track"].astype(str)
    stems = names.map(lambda name: name.rpartition(".")[0] or name)
    stem = wanted.rpartition(".")[0] or wanted
    for matches in (
        names == wanted,
        frame["track_key"].astype(str) == wanted,
        names.map(lambda name: f"/{name}".endswith(f"/{wanted}")),
        stems.map(lambda name: f"/{name}".endswith(f"/{wanted}")),
        stems.map(lambda name: f"/{name}".endswith(f"/{stem}")),
    ):
        found = frame[matches.astype(bool)]
        if len(found) == 1:
            return found.iloc[0]
        if len(found) > 1:
            some = ", ".join(found["track"].head(KEYS_NAMED))
            raise ValueError(f"{wanted!r} is the name of {len(found)} tracks, e.g. {some}: say more of the path")
    near = difflib.get_close_matches(wanted, names.tolist(), n=KEYS_NAMED, cutoff=0.4)
    raise ValueError(f"no track {wanted!r} in {annotated.path}" + (f"; near: {', '.join(near)}" if near else ""))


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why one emotion of one track has its value."""

    family: str
    emotion: str  # column of the table
    value: float  # as the table has it; NaN where it has none
    at_mean: float  # of a track with the table's mean features
    unit: str  # of the contributions
    contributions: pd.DataFrame
    residual: float  # the table's value less the map's


def explain(annotated: Annotated, track: pd.Series[Any], emotion: str | None) -> list[Explanation]:
    """Say which mid-level features push the emotions of a track up or down.

    Raises
    ------
    ValueError
        If the track failed, the table holds no explanation, or there is no such emotion in it.
    """
    from outputs.explain import UNITS, contributions, linear_maps, predicted
    from outputs.statistics import label_of

    if track["status"] != "ok":
        raise ValueError(f"{track['track']} failed: {track['error']}")
    numbers = {column.name for column in annotated.columns if column.type == "float"}
    maps = {family: one for family, one in linear_maps(annotated.provenance).items() if set(one.weights.index) <= numbers}
    if not maps:
        raise ValueError(f"{annotated.path} holds no linear family: annotate with --models midlevel,probe or joint")
    found = []
    for family, one in maps.items():
        for name in one.weights.columns:
            if emotion is not None and emotion not in (name, label_of(name)):
                continue
            table = contributions(one, track, annotated.frame, name)
            value = float(track[name]) if name in numbers and pd.notna(track[name]) else float("nan")
            found.append(
                Explanation(
                    family,
                    name,
                    value,
                    predicted(one, table["mean"], name),
                    UNITS.get(one.scale, one.scale),
                    table,
                    value - predicted(one, table["value"], name),
                )
            )
    if not found:
        known = sorted({label_of(name) for one in maps.values() for name in one.weights.columns})
        raise ValueError(f"no emotion {emotion!r}; choose from {', '.join(known)}")
    return found


def explanation_text(track: str, found: Sequence[Explanation]) -> str:
    """Write explanations for people, one bar a feature."""
    from outputs.statistics import label_of

    lines = [track]
    for one in found:
        rows = one.contributions
        widest = max(float(rows["contribution"].abs().max()), 1e-12)
        lines += [
            "",
            f"{one.emotion} = {one.value:.2f}; a track with the table's mean features: {one.at_mean:.2f} ({one.family})",
        ]
        lines.append(f"  {'feature':22s} {'value':>7s} {'mean':>7s} {'weight':>7s} {'pushes by (' + one.unit + ')':>24s}")
        for feature, row in rows.iterrows():
            bar = ("+" if row["contribution"] > 0 else "-") * round(12 * abs(float(row["contribution"])) / widest)
            share = f"  {row['share']:+.3f} of the share" if "share" in rows else ""
            lines.append(
                f"  {label_of(str(feature)):22s} {row['value']:7.2f} {row['mean']:7.2f} {row['weight']:7.2f} "
                f"{row['contribution']:+24.2f}  {bar:12s}{share}".rstrip()
            )
    return "\n".join(lines)


def explanation_json(track: str, found: Sequence[Explanation]) -> str:
    """Write explanations for programs."""
    content = {
        "track": track,
        "explanations": [
            {
                "family": one.family,
                "emotion": one.emotion,
                "value": None if one.value != one.value else one.value,
                "at_mean": one.at_mean,
                "unit": one.unit,
                "residual": None if one.residual != one.residual else one.residual,
                "contributions": one.contributions.reset_index().to_dict("records"),
            }
            for one in found
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def tool() -> str:
    """Name and version of this program."""
    return f"annotate {metadata.version('annotate')}"


def now() -> str:
    """Time of now, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
