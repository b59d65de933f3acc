"""Two annotations of one corpus: what moved between them, by how much, and what made them.

Conventions: tracks are joined by their path; where no path is in both tables, by corpus and id. A shift is B − A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import stats

from outputs import figures
from outputs.report import Heading, Part, Plot, Report, Section, Table, Text
from outputs.report_corpus import annotated_columns, block_name
from outputs.statistics import MIN_TRACKS, block_of, label_of, pearson
from outputs.table import Column

MOVERS: Final = 20  # largest movements that the page lists
TOLERANCE: Final = 1e-6  # of a column's range, under which two floats are the same
NOT_COMPARED: Final = frozenset(("run_id", "time_utc", "contents_sha256", "explanation"))


class CompareError(ValueError):
    """Two tables that cannot be compared, in one line."""


def join(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Give the rows of the tracks that both tables hold, in A's order, and by what they were joined.

    Raises
    ------
    CompareError
        If they share no track, or a table holds a track twice.
    """
    for name, table in (("A", a), ("B", b)):
        if table["track"].duplicated().any():
            raise CompareError(f"table {name} holds {table['track'][table['track'].duplicated()].iloc[0]!r} more than once")
    ids = [table["corpus"].astype(str) + ":" + table["track_key"].astype(str) for table in (a, b)]
    for how, left, right in (("path", a["track"], b["track"]), ("corpus and id", ids[0], ids[1])):
        if left.duplicated().any() or right.duplicated().any():
            continue
        left_keyed, right_keyed = a.set_axis(pd.Index(left.to_numpy()), axis=0), b.set_axis(pd.Index(right.to_numpy()), axis=0)
        common = left_keyed.index[left_keyed.index.isin(right_keyed.index)]
        if len(common):
            return left_keyed.loc[common], right_keyed.loc[common], how
    raise CompareError(f"no track is in both tables (A: {a['track'].iloc[0]!r} …, B: {b['track'].iloc[0]!r} …)")


def compare_columns(a: pd.DataFrame, b: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """Compare numbers, column by column, over the tracks that have both.

    Returns
    -------
    pandas.DataFrame
        Index column; ``n``, ``only_a``, ``only_b`` (tracks with a value in one table), ``r`` (Pearson; NaN where it cannot be
        evaluated), ``mean_a``, ``mean_b``, ``shift`` with its 95 % interval (paired t), ``sd_of_shift``, ``largest``,
        ``changed`` (tracks that moved by more than 1e-6 of the column's range).
    """
    rows = {}
    for column in columns:
        x, y = (table[column.name].to_numpy(dtype=float, na_value=np.nan) for table in (a, b))
        both = np.isfinite(x) & np.isfinite(y)
        p, q = x[both], y[both]
        n = len(p)
        moved = q - p
        row: dict[str, float] = {
            "n": n,
            "only_a": int((np.isfinite(x) & ~both).sum()),
            "only_b": int((np.isfinite(y) & ~both).sum()),
        }
        if n:
            span = (
                (column.high - column.low) if column.low is not None and column.high is not None else float(np.abs(p).max() or 1)
            )
            spread = float(moved.std(ddof=1)) if n > 1 else float("nan")
            half = float(stats.t.ppf(0.975, n - 1)) * spread / np.sqrt(n) if n > 1 else float("nan")
            varied = n >= 3 and np.ptp(p) > 0 and np.ptp(q) > 0
            row |= {
                "r": pearson(p, q).r if varied else float("nan"),
                "mean_a": float(p.mean()),
                "mean_b": float(q.mean()),
                "shift": float(moved.mean()),
                "shift_low": float(moved.mean()) - half,
                "shift_high": float(moved.mean()) + half,
                "sd_of_shift": spread,
                "largest": float(moved[np.abs(moved).argmax()]),
                "changed": int((np.abs(moved) > TOLERANCE * span).sum()),
            }
        rows[column.name] = row
    names = [
        "n",
        "only_a",
        "only_b",
        "r",
        "mean_a",
        "mean_b",
        "shift",
        "shift_low",
        "shift_high",
        "sd_of_shift",
        "largest",
        "changed",
    ]
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=names).rename_axis("column")


def movers(a: pd.DataFrame, b: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """List the largest movements, measured in standard deviations of A's column over the tracks."""
    found = []
    for column in columns:
        x, y = (table[column.name].to_numpy(dtype=float, na_value=np.nan) for table in (a, b))
        both = np.isfinite(x) & np.isfinite(y)
        spread = float(np.std(x[both], ddof=1)) if both.sum() > 1 else 0.0
        if spread > 0:
            moved = (y - x) / spread
            places = [place for place in np.argsort(-np.abs(np.where(both, moved, 0)))[:MOVERS] if both[place] and moved[place]]
            found += [
                {
                    "track": a["track"].iloc[place],
                    "column": column.name,
                    "a": float(x[place]),
                    "b": float(y[place]),
                    "shift": float(y[place] - x[place]),
                    "shift_in_sd": float(moved[place]),
                }
                for place in places
            ]
    table = pd.DataFrame(found, columns=["track", "column", "a", "b", "shift", "shift_in_sd"])
    return table.sort_values("shift_in_sd", key=lambda moved: moved.abs(), ascending=False, kind="stable")


def changed_labels(a: pd.DataFrame, b: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """List the labels, genres and states that differ: a row a track and column."""
    rows = []
    for name in names:
        x, y = a[name].astype(object).where(a[name].notna(), None), b[name].astype(object).where(b[name].notna(), None)
        rows += [
            {"track": track, "column": name, "a": _text(p), "b": _text(q)}
            for track, p, q in zip(a["track"], x, y, strict=True)
            if p != q
        ]
    return pd.DataFrame(rows, columns=["track", "column", "a", "b"])


def provenance_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> pd.DataFrame:
    """List what differs between two provenances, by dotted name; run id, times and weights aside."""
    left, right = (_leaves({key: value for key, value in one.items() if key not in NOT_COMPARED}) for one in (a, b))
    names = [*left, *(name for name in right if name not in left)]
    rows = [
        {"name": name, "a": left.get(name, "absent"), "b": right.get(name, "absent")}
        for name in names
        if left.get(name, "absent") != right.get(name, "absent")
    ]
    if a.get("explanation") != b.get("explanation"):
        rows.append({"name": "explanation", "a": "weights of A", "b": "other weights"})
    return pd.DataFrame(rows, columns=["name", "a", "b"])


def comparison_report(
    a: tuple[str, pd.DataFrame, Sequence[Column], Mapping[str, Any]],
    b: tuple[str, pd.DataFrame, Sequence[Column], Mapping[str, Any]],
    described: tuple[str, str],
    *,
    tool: str,
    time_utc: str,
    command_line: str,
) -> Report:
    """Make the report on two annotations.

    Parameters
    ----------
    a, b : tuple
        Name, table, columns and provenance of each.
    described : tuple of str
        What `annotate info` says of each.
    tool, time_utc, command_line : str
        For the page's foot and report.json.

    Raises
    ------
    CompareError
        If they cannot be compared.
    """
    left, right, how = join(a[1], b[1])
    common = [column for column in annotated_columns(a[2]) if column.name in {other.name for other in annotated_columns(b[2])}]
    numbers = [column for column in common if column.type != "bool"]
    bools = [column.name for column in common if column.type == "bool"]
    genres = [name for name in ("genre", "genre_2", "genre_3") if name in left and name in right]
    only = [
        ", ".join(column.name for column in one[2] if column.name not in {found.name for found in other[2]})
        for one, other in ((a, b), (b, a))
    ]
    messages = []
    for name, table, joined in (("A", a[1], left), ("B", b[1], right)):
        if len(table) > len(joined):
            messages.append(f"{len(table) - len(joined)} of {len(table)} tracks are in {name} only")
    for name, columns in zip("AB", only, strict=True):
        if columns:
            messages.append(f"columns in {name} only: {columns}")
    if not numbers:
        messages.append("the tables share no column that a model wrote")
    if len(left) < MIN_TRACKS:
        messages.append(f"{len(left)} tracks are in both tables: figures over fewer than {MIN_TRACKS} say little")
    measured = compare_columns(left, right, numbers)
    moved = movers(left, right, numbers)
    labels = changed_labels(left, right, [*bools, *genres])
    state = changed_labels(left, right, ["status", "error", "warning", "in_training"])
    files = changed_labels(left, right, ["audio_sha256"])
    provenance = provenance_differences(a[3], b[3])
    if len(files):
        messages.append(f"{len(files)} audio files differ between the tables: what moved may be the music, not the models")
    unchanged = int((measured["changed"].fillna(0) == 0).sum())
    sections = [
        Section("columns", "Columns", tuple(_column_parts(measured, numbers, unchanged, len(left)))),
        Section("movers", "Largest movers", tuple(_mover_parts(left, right, moved, measured))),
        Section(
            "labels",
            "Changed labels",
            (
                Text(f"{len(labels)} labels and genres differ; {len(state)} states, reasons or training marks differ."),
                *(
                    (Table("changed_labels", "Labels and genres that differ", labels, collapsed=len(labels) > 50),)
                    if len(labels)
                    else ()
                ),
                *((Table("changed_states", "States that differ", state, collapsed=len(state) > 50),) if len(state) else ()),
                *((Table("changed_files", "Audio files that differ", files, collapsed=len(files) > 50),) if len(files) else ()),
            ),
        ),
        Section(
            "provenance",
            "What made them",
            (
                Text("Run id, time and weights aside." if len(provenance) else "Nothing differs but run id and time."),
                *((Table("provenance", "Differences of provenance", provenance),) if len(provenance) else ()),
                Table("info_a", f"annotate info, A: {a[0]}", _lines(described[0]), collapsed=True),
                Table("info_b", f"annotate info, B: {b[0]}", _lines(described[1]), collapsed=True),
            ),
        ),
    ]
    return Report(
        title=f"{a[0]} and {b[0]}",
        kind="comparison",
        subtitle="Two annotations of one corpus: A is the first, B the second; a shift is B − A.",
        tool=tool,
        time_utc=time_utc,
        command_line=command_line,
        facts={
            "A": f"{a[0]}, {len(a[1])} tracks, bundle {_bundle(a[3])}",
            "B": f"{b[0]}, {len(b[1])} tracks, bundle {_bundle(b[3])}",
            "In both": f"{len(left)} tracks, joined by {how}",
            "Columns compared": f"{len(numbers)} of numbers, {len(bools) + len(genres)} of labels and genres",
        },
        messages=tuple(messages),
        sections=tuple(sections),
        details={"tracks_in_both": len(left), "joined_by": how, "columns_only": {"a": only[0], "b": only[1]}},
    )


def _column_parts(measured: pd.DataFrame, numbers: Sequence[Column], unchanged: int, n: int) -> list[Part]:
    if not len(measured):
        return [Text("No column of numbers is in both tables.")]
    parts: list[Part] = [
        Text(
            f"{unchanged} of {len(measured)} columns are the same for every track (to 1e-6 of their range). Shifts have a 95 % "
            f"interval by the paired t distribution over at most {n} tracks."
        )
    ]
    spans = {
        column.name: column.high - column.low if column.low is not None and column.high is not None else None
        for column in numbers
    }
    for block in dict.fromkeys(block_of(str(name)) for name in measured.index):
        inside = measured[[block_of(str(name)) == block for name in measured.index]]
        inside = inside[inside["shift"].notna()]
        if block.endswith(("_sd", "_label")) or not len(inside) or not inside["changed"].any():
            continue
        spread = [spans[str(name)] for name in inside.index]
        unit = next((column.unit or "number" for column in numbers if column.name == inside.index[0]), "number")
        if len(set(spread)) > 1:
            continue  # note statistics: each has a unit of its own; the table below has them
        labelled = inside.set_axis([label_of(str(name)) for name in inside.index], axis=0)
        figure = figures.intervals(
            labelled,
            title=f"Shift of {block_name(block)}",
            x_name=f"mean shift, B − A ({unit})",
            y_name="column",
            value="shift",
            low="shift_low",
            high="shift_high",
        )
        parts += [
            Heading(block_name(block)),
            Plot(f"shift_{block}", f"Mean shift of {block_name(block)}, 95 % interval.", figure),
        ]
    parts.append(Table("columns", "Every column", measured))
    return parts


def _mover_parts(left: pd.DataFrame, right: pd.DataFrame, moved: pd.DataFrame, measured: pd.DataFrame) -> list[Part]:
    if not len(moved):
        return [Text("No number moved.")]
    parts: list[Part] = [
        Table("movers", "Largest movements", moved.head(MOVERS), "in standard deviations of A's column over the tracks")
    ]
    evaluable = measured[measured["r"].notna() & (measured["changed"] > 0)]
    if len(evaluable):
        column = str(evaluable["r"].idxmin())
        table = pd.DataFrame(
            {"a": left[column].to_numpy(dtype=float, na_value=np.nan), "b": right[column].to_numpy(dtype=float, na_value=np.nan)}
        ).dropna()
        figure = figures.scatter(
            table,
            x="a",
            y="b",
            title=figures.words(column),
            x_name="A (unit of the column)",
            y_name="B (unit of the column)",
            diagonal=True,
        )
        parts.append(
            Plot(
                "least_alike",
                f"The column that agrees least, {figures.words(column)}: r = {float(evaluable['r'].min()):.3f}.",
                figure,
            )
        )
    return parts


def _leaves(content: Mapping[str, Any], stem: str = "") -> dict[str, str]:
    leaves: dict[str, str] = {}
    for key, value in content.items():
        name = f"{stem}{key}"
        if isinstance(value, Mapping):
            leaves |= _leaves(value, f"{name}.")
        elif isinstance(value, list):
            leaves[name] = ", ".join(map(str, value)) or "none"
        else:
            leaves[name] = str(value)
    return leaves


def _lines(text: str) -> pd.DataFrame:
    return pd.DataFrame({"line": text.splitlines()})


def _bundle(provenance: Mapping[str, Any]) -> str:
    bundle = provenance.get("bundle", {})
    return f"{bundle.get('name', 'unknown')} {bundle.get('version', '')} {str(bundle.get('digest', ''))[:12]}".strip()


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return ("yes" if value else "no") if isinstance(value, bool | np.bool_) else str(value)
