"""Pages about a corpus that need no ratings: what is there, what failed, what is there twice, what the models never met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pandas as pd

from outputs import figures
from outputs.report import AUDIO_COLUMN, Heading, Part, Plot, Section, Table, Text
from outputs.statistics import block_of, label_of
from outputs.table import Column

BESIDE_THE_MODELS: Final = frozenset(("scan", "decode", "ratings"))  # what writes columns that no model gave
QUARTILES: Final = ("lower_quartile", "median", "upper_quartile")
MOST_OUTLYING: Final = 20  # tracks of the table of tracks that lie outside in most columns
BLOCK_NAMES: Final = {
    "midlevel": "mid-level ratings",
    "salient": "mid-level salience",
    "gems": "GEMS emotions (probe)",
    "film": "film emotions (joint)",
    "joint": "mid-level ratings inside joint",
    "emotion": "GEMS emotions (emotion CNN)",
    "va": "valence and arousal from note statistics",
    "vaseq": "valence and arousal from the note sequence",
    "crnn": "valence, arousal, dominance (CRNN, word norms)",
    "midi": "note statistics",
    "desc_midlevel": "mid-level ratings (descriptor model)",
    "desc_film": "film emotions (descriptor model)",
    "desc_gems": "GEMS emotions (descriptor model)",
    "desc_va": "valence and arousal (descriptor model)",
    "best_midlevel": "mid-level ratings (best)",
    "best_film": "film emotions (best)",
    "best_gems": "GEMS emotions (best)",
    "best_va": "valence and arousal (best)",
}


def annotated_columns(columns: Sequence[Column]) -> list[Column]:
    """Columns of numbers and yes/no labels that models wrote."""
    numbers = [column for column in columns if column.type in ("float", "int", "bool") and not column.name.startswith("genre")]
    return [column for column in numbers if column.family not in BESIDE_THE_MODELS]


def blocks(columns: Sequence[Column]) -> dict[str, list[Column]]:
    """Group annotated columns by block, in the table's order; spreads and labels of a block stand apart, at the end."""
    grouped: dict[str, list[Column]] = {}
    for column in annotated_columns(columns):
        grouped.setdefault(block_of(column.name), []).append(column)
    return dict(sorted(grouped.items(), key=lambda item: item[0].endswith(("_sd", "_label"))))


def block_name(block: str) -> str:
    """Words for a block: ``best_gems`` -> ``GEMS emotions (best)``."""
    for ending, words in (("_sd", "spread over windows of "), ("_label", "labels of ")):
        if block.endswith(ending):
            return words + block_name(block.removesuffix(ending))
    return BLOCK_NAMES.get(block, figures.words(block))


def corpus_sections(
    table: pd.DataFrame, columns: Sequence[Column], training: pd.DataFrame | None, audio: Mapping[str, str] | None
) -> list[Section]:
    """Make the sections about the corpus.

    Parameters
    ----------
    table : pandas.DataFrame
        The annotation table.
    columns : sequence of Column
        What its columns mean.
    training : pandas.DataFrame, optional
        Index column, ``low`` and ``high``: the range that the models met in training.
    audio : mapping, optional
        Track -> address of its file, for players.
    """
    ok = table[table["status"] == "ok"]
    return [
        Section("tracks", "Tracks", tuple(_tracks(table, ok))),
        Section("distributions", "Distributions", tuple(_distributions(ok, columns))),
        Section("outliers", "Outside the training range", tuple(_outliers(ok, training, audio))),
    ]


def _tracks(table: pd.DataFrame, ok: pd.DataFrame) -> list[Part]:
    parts: list[Part] = []
    keys = [name for name in ("corpus", "group") if table[name].notna().any()]
    if keys:
        counted = table.assign(
            ok=(table["status"] == "ok").astype(int),
            failed=(table["status"] == "failed").astype(int),
            minutes=table["duration_s"].astype(float) / 60,
        )
        by_group = counted.groupby(keys, dropna=False, sort=False).agg(
            tracks=("track", "size"), ok=("ok", "sum"), failed=("failed", "sum"), minutes=("minutes", "sum")
        )
        parts.append(Table("tracks", "Tracks of each group", by_group.reset_index()))
    failed = table.loc[table["status"] != "ok", ["track", "error"]]
    if len(failed):
        reasons = failed["error"].fillna("no reason given").value_counts().rename_axis("reason").rename("tracks").reset_index()
        parts.append(Table("failure_reasons", "Reasons of failure", reasons))
        parts.append(Table("failed", "Failed tracks", failed.rename(columns={"error": "reason"}), collapsed=len(failed) > 20))
    else:
        parts.append(Text("No track failed."))
    warned = ok.loc[ok["warning"].notna(), ["track", "warning"]]
    if len(warned):
        parts.append(Table("warnings", "Tracks with a warning", warned, collapsed=len(warned) > 20))
    held = table[table["audio_sha256"].notna()]
    twice = held[held["audio_sha256"].duplicated(keep=False)]
    if len(twice):
        shown = twice.assign(copy=pd.factorize(twice["audio_sha256"])[0] + 1).sort_values("copy", kind="stable")
        same = shown[["copy", "track", "duration_s", "audio_sha256"]]
        parts.append(Table("duplicates", "Duplicates", same, "Tracks whose files are the same, byte by byte"))
    else:
        parts.append(Text("No two files are the same, byte by byte."))
    if len(ok):
        figure = figures.histograms(ok[["duration_s"]], {"duration_s": "s"}, title="Length of the tracks")
        parts.append(Plot("durations", "Length of the tracks that were annotated.", figure))
    return parts


def _distributions(ok: pd.DataFrame, columns: Sequence[Column]) -> list[Part]:
    parts: list[Part] = []
    rows = []
    for block, members in blocks(columns).items():
        names = [column.name for column in members]
        values = ok[names].astype("Float64").astype(float)
        for column in members:
            held = values[column.name].dropna()
            if len(held):
                of_column = {"n": len(held), "mean": float(held.mean()), "sd": float(held.std()), "min": float(held.min())}
                quartiles = dict(zip(QUARTILES, held.quantile([0.25, 0.5, 0.75]), strict=True))
                rows.append(
                    {"block": block, "column": column.name, "unit": column.unit or ""}
                    | of_column
                    | {name: float(value) for name, value in quartiles.items()}
                    | {"max": float(held.max())}
                )
        varied = [name for name in names if values[name].nunique() > 1]
        if not varied or block.endswith(("_sd", "_label")):
            continue
        parts.append(Heading(block_name(block).capitalize() if block != "gems" else block_name(block)))
        unit, low, high = members[0].unit or "number", members[0].low, members[0].high
        if len({(column.unit, column.low, column.high) for column in members}) > 1:
            units = {column.name: column.unit or "" for column in members}
            figure = figures.histograms(values[varied], units, title=f"Distribution of {block_name(block)}")
        else:
            if members[0].family == "notes":
                low = high = None
            named = values[varied].set_axis([label_of(name) for name in varied], axis=1)
            figure = figures.distributions(
                named, title=f"Distribution of {block_name(block)}", x_name=f"value ({unit})", low=low, high=high
            )
        parts.append(
            Plot(
                f"distribution_{block}", f"Distribution over the tracks: {block_name(block)}; lines inside are quartiles.", figure
            )
        )
    if not rows:
        return [Text("No track has a value that a model gave.")]
    parts.append(Table("distributions", "All columns", pd.DataFrame(rows), collapsed=True))
    return parts


def _outliers(ok: pd.DataFrame, training: pd.DataFrame | None, audio: Mapping[str, str] | None) -> list[Part]:
    if training is None or not len(training):
        return [Text("The range of the training tracks is not known: the table's bundle is not here (say --bundle FOLDER).")]
    names = [str(name) for name in training.index if name in ok]
    if not names or not len(ok):
        return [Text("No column of this table has a known training range.")]
    values = ok[names].to_numpy(dtype=float, na_value=np.nan)
    low, high = (training.loc[names, bound].to_numpy(dtype=float) for bound in ("low", "high"))
    span = np.where(high > low, high - low, np.nan)
    beyond = np.fmax((low - values) / span, (values - high) / span)
    outside = np.nan_to_num(beyond) > 0
    count = pd.Series(outside.sum(axis=1), index=ok.index)
    parts: list[Part] = [
        Text(
            f"{int((count > 0).sum())} of {len(ok)} tracks have a value outside the range that the training tracks gave, in any "
            f"of {len(names)} columns. The models were not tried there; a track outside in many columns is unlike what they know."
        )
    ]
    if not outside.any():
        return parts
    at_row, at_column = np.nonzero(outside)
    rows = pd.DataFrame(
        {
            "track": ok["track"].to_numpy()[at_row],
            "column": np.array(names, dtype=object)[at_column],
            "value": values[at_row, at_column],
            "low": low[at_column],
            "high": high[at_column],
            "beyond": beyond[at_row, at_column],
        }
    ).sort_values("beyond", ascending=False, kind="stable")
    most = count[count > 0].sort_values(ascending=False, kind="stable").head(MOST_OUTLYING)
    tracks = pd.DataFrame({"track": ok.loc[most.index, "track"], "columns_outside": most})
    parts.append(Table("outlier_tracks", "Tracks outside in most columns", with_players(tracks, audio)))
    note = "beyond: distance from the range, in widths of it"
    parts.append(Table("outliers", "Values outside the training range", rows, note, collapsed=True))
    return parts


def with_players(tracks: pd.DataFrame, audio: Mapping[str, str] | None) -> pd.DataFrame:
    """Add a column of players where the audio is at hand."""
    if audio is None:
        return tracks
    listened = tracks.copy()
    listened[AUDIO_COLUMN] = [audio.get(track) for track in tracks["track"]]
    return listened
