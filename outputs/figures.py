"""Figures of the reports: heat maps, bars with intervals, curves, planes, distributions.

Conventions
-----------
- Every function takes tables and returns a `matplotlib.figure.Figure`; nothing is written here, pyplot keeps no state.
- Signed values are drawn in ``vlag``, diverging around zero; amounts in ``mako`` or ``viridis``; classes in seaborn's palette
  ``colorblind`` with a marker of their own. The maps are perceptually uniform and keep their order under colour blindness.
- Text and axes are drawn in `INK`, so that a page can set them in its own colour; text stays text in SVG.
- Every axis has a name, and a unit where there is one.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

INK: Final = "#1f2329"
DIVERGING: Final = "vlag"
SEQUENTIAL: Final = "mako_r"
MARKERS: Final = "osD^vPX*<>ph"
STYLE: Final[dict[str, Any]] = {
    "font.size": 9,
    "font.family": ["DejaVu Sans"],
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "grid.color": "#9aa0a6",
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a genre named $x$ is just a name
}
PNG_DPI: Final = 144


def lay_out(figure: Figure) -> None:
    """Find the places of a figure's parts once, so that drawing it in two formats does not do it twice."""
    with _style(), _quiet():
        figure.draw_without_rendering()
    figure.set_layout_engine("none")


def svg(figure: Figure, salt: str, *, background: str = "none") -> str:
    """Draw a figure as SVG with its text as text; `salt` makes its ids its own, the same each time."""
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt, "text.parse_math": False}), _quiet():
        figure.savefig(file, format="svg", facecolor=background, metadata={"Date": None, "Creator": None})
    return file.getvalue()


def png(figure: Figure) -> bytes:
    """Draw a figure as PNG on white."""
    file = io.BytesIO()
    with rc_context({"text.parse_math": False}), _quiet():
        figure.savefig(file, format="png", dpi=PNG_DPI, facecolor="white")
    return file.getvalue()


def heat_map(
    values: pd.DataFrame,
    *,
    marks: pd.DataFrame | None = None,
    title: str,
    x_name: str,
    y_name: str,
    colour_name: str,
    limit: float | None = None,
    digits: int = 2,
) -> Figure:
    """Draw signed values as cells, colours diverging around zero; NaN cells stay empty.

    Parameters
    ----------
    values : pandas.DataFrame
        A cell each; row and column names are written with blanks.
    marks : pandas.DataFrame of bool, optional
        Cells whose number gets a star.
    title, x_name, y_name, colour_name : str
        Colour name with unit.
    limit : float, optional
        Value of the darkest colours; the largest absolute value without it.
    digits : int
        Behind the point.
    """
    with _style():
        return _heat(values, marks, title, (x_name, y_name, colour_name), limit=limit, digits=digits, signed=True)


def count_map(counts: pd.DataFrame, *, title: str, x_name: str, y_name: str, colour_name: str) -> Figure:
    """Draw counts (a confusion matrix) as cells; colour is the share of the row."""
    with _style():
        return _heat(counts, None, title, (x_name, y_name, colour_name), limit=1.0, digits=0, signed=False)


def _heat(
    values: pd.DataFrame,
    marks: pd.DataFrame | None,
    title: str,
    names: tuple[str, str, str],
    *,
    limit: float | None,
    digits: int,
    signed: bool,
) -> Figure:
    import seaborn as sns

    rows, columns = values.shape
    figure = Figure(figsize=(2.6 + 0.58 * columns, 1.7 + 0.36 * max(rows, 4)), layout="constrained")  # room for the scale
    axes = figure.subplots()
    numbers = values.to_numpy(dtype=float)
    sums = numbers.sum(axis=1, keepdims=True)
    shown = numbers if signed else np.divide(numbers, sums, out=np.zeros_like(numbers), where=sums > 0)
    largest = float(np.nanmax(np.abs(shown))) if np.isfinite(shown).any() else 1.0
    top = limit if limit is not None else (largest or 1.0)
    stars = np.zeros(values.shape, dtype=bool) if marks is None else marks.to_numpy(dtype=bool)
    texts = np.empty(values.shape, dtype=object)
    for place in np.ndindex(values.shape):
        texts[place] = (
            "" if not np.isfinite(numbers[place]) else _signed(float(numbers[place]), digits) + ("*" if stars[place] else "")
        )
    sns.heatmap(
        shown,
        ax=axes,
        cmap=DIVERGING if signed else SEQUENTIAL,
        vmin=-top if signed else 0.0,
        vmax=top,
        annot=texts,
        fmt="",
        annot_kws={"fontsize": 8},
        linewidths=0.5,
        linecolor="white",
        cbar_kws={"label": names[2].replace(" (", "\n("), "shrink": 0.9},
        xticklabels=[words(name) for name in values.columns],
        yticklabels=[words(name) for name in values.index],
    )
    axes.set(title=title, xlabel=names[0], ylabel=names[1])
    axes.tick_params(axis="x", rotation=45, length=0)
    axes.tick_params(axis="y", rotation=0, length=0)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    return figure


def _signed(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    if digits and abs(value) < 1:
        text = text.replace("0.", ".", 1)
    return text.replace("-", "−")


def words(name: object) -> str:
    """Turn a column's name into words."""
    return str(name).replace("_", " ")


def intervals(
    table: pd.DataFrame, *, title: str, x_name: str, y_name: str, value: str, low: str, high: str, zero: bool = True
) -> Figure:
    """Draw a point with its interval for each row, one below the other; the index names the rows."""
    with _style():
        figure = Figure(figsize=(5.6, 1.2 + 0.26 * max(len(table), 2)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(table))[::-1]
        middle = table[value].to_numpy(dtype=float)
        spread = np.vstack((middle - table[low].to_numpy(dtype=float), table[high].to_numpy(dtype=float) - middle))
        axes.errorbar(middle, places, xerr=np.abs(spread), fmt="o", color="#2f6c9e", ecolor="#2f6c9e", capsize=3, markersize=4)
        if zero:
            axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(places, [words(name) for name in table.index])
        axes.grid(axis="x")
        axes.set(title=title, xlabel=x_name, ylabel=y_name)
        return figure


def bars(table: pd.DataFrame, *, title: str, x_name: str, y_name: str, top: float | None = None) -> Figure:
    """Draw a group of horizontal bars for each row, a bar a column."""
    with _style():
        rows, columns = table.shape
        figure = Figure(figsize=(5.8, 1.5 + 0.2 * rows * max(columns, 2)), layout="constrained")
        axes = figure.subplots()
        height = 0.8 / max(columns, 1)
        for number, (name, colour) in enumerate(zip(table.columns, _palette(columns), strict=True)):
            places = np.arange(rows)[::-1] + 0.4 - (number + 0.5) * height
            axes.barh(places, table[name].to_numpy(dtype=float), height=height, color=colour, label=words(name))
        axes.set_yticks(np.arange(rows)[::-1], [words(name) for name in table.index])
        axes.grid(axis="x")
        axes.set(title=title, xlabel=x_name, ylabel=y_name)
        if top is not None:
            axes.set_xlim(min(0.0, float(np.nanmin(table.to_numpy(dtype=float), initial=0.0))), top)
        if columns > 1:
            _legend_above(figure, axes, columns)
        return figure


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_name: str,
    y_name: str,
    diagonal: bool = False,
    unit_square: bool = False,
    marker: bool = False,
) -> Figure:
    """Draw named lines; each has a colour and a dash pattern of its own."""
    with _style():
        figure = Figure(figsize=(5.4, 4.2), layout="constrained")
        axes = figure.subplots()
        dashes = ("-", "--", "-.", ":")
        for number, ((name, (x, y)), colour) in enumerate(zip(lines.items(), _palette(len(lines)), strict=True)):
            axes.plot(
                x,
                y,
                color=colour,
                linestyle=dashes[number % 4],
                label=words(name),
                linewidth=1.5,
                marker=MARKERS[number % len(MARKERS)] if marker else None,
                markersize=4,
            )
        if diagonal:
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.7, linestyle=":")
        if unit_square:
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.grid()
        axes.set(title=title, xlabel=x_name, ylabel=y_name)
        if len(lines) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def panels(
    groups: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], *, title: str, x_name: str, y_name: str
) -> Figure:
    """Draw a small plot of named lines for each group, axes named once; the same name has one look throughout."""
    with _style():
        columns = min(3, len(groups))
        rows = -(-len(groups) // columns)
        figure = Figure(figsize=(2.7 * columns + 0.6, 2.1 * rows + 0.9), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        names = list(dict.fromkeys(name for lines in groups.values() for name in lines))
        dashes = [("-", "--", "-.", ":")[number % 4] for number in range(len(names))]
        look = dict(zip(names, zip(_palette(len(names)), dashes, strict=True), strict=True))
        for place, (group, lines) in zip(axes.flat, groups.items(), strict=False):
            for name, (x, y) in lines.items():
                place.plot(x, y, color=look[name][0], linestyle=look[name][1], linewidth=1.3, label=words(name))
            place.set_title(words(group))
            place.grid()
        for place in axes.flat[len(groups) :]:
            place.set_visible(False)
        figure.suptitle(title, fontsize=10)
        figure.supxlabel(x_name, fontsize=9)
        figure.supylabel(y_name, fontsize=9)
        handles = {text: handle for place in axes.flat for handle, text in zip(*place.get_legend_handles_labels(), strict=True)}
        if len(names) > 1:
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(names)))
        return figure


def distributions(table: pd.DataFrame, *, title: str, x_name: str, low: float | None = None, high: float | None = None) -> Figure:
    """Draw how values of one unit spread over the tracks: a violin with quartiles for each column."""
    import seaborn as sns

    with _style():
        figure = Figure(figsize=(5.8, 1.1 + 0.36 * max(2, table.shape[1])), layout="constrained")
        axes = figure.subplots()
        named = table.astype(float).set_axis([words(name) for name in table.columns], axis=1)
        long = named.melt(var_name="column", value_name="value")
        sns.violinplot(
            long.dropna(),
            x="value",
            y="column",
            ax=axes,
            order=[words(name) for name in table.columns],
            inner="quart",
            cut=0,
            density_norm="width",
            color="#7fb2d0",
            linewidth=0.8,
            linecolor=INK,
        )
        if low is not None and high is not None:
            axes.axvline(low, color=INK, linewidth=0.6, linestyle=":")
            axes.axvline(high, color=INK, linewidth=0.6, linestyle=":")
        axes.grid(axis="x")
        axes.set(title=title, xlabel=x_name, ylabel="column")
        return figure


def histograms(table: pd.DataFrame, units: Mapping[str, str], *, title: str) -> Figure:
    """Draw a histogram for each column, each with its own unit."""
    with _style():
        columns = min(3, table.shape[1])
        rows = -(-table.shape[1] // columns)
        figure = Figure(figsize=(2.5 * columns + 0.4, 1.75 * rows + 0.6), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for place, name in zip(axes.flat, table.columns, strict=False):
            place.hist(table[name].dropna().to_numpy(dtype=float), bins=20, color="#7fb2d0", edgecolor=INK, linewidth=0.4)
            place.set_xlabel(f"{words(name)}" + (f" ({units[name]})" if units.get(name) else ""), fontsize=8)
        for place in axes.flat[table.shape[1] :]:
            place.set_visible(False)
        figure.suptitle(title, fontsize=10)
        figure.supylabel("tracks", fontsize=9)
        return figure


def scatter(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    title: str,
    x_name: str,
    y_name: str,
    colour: str | None = None,
    colour_name: str = "",
    diagonal: bool = False,
) -> Figure:
    """Draw a point a track; `colour` names a column of classes (a marker each) or of numbers (a colour bar)."""
    with _style():
        figure = Figure(figsize=(5.6, 4.4), layout="constrained")
        axes = figure.subplots()
        if colour is None:
            axes.scatter(table[x], table[y], s=14, color="#2f6c9e", alpha=0.7, linewidths=0)
        elif pd.api.types.is_numeric_dtype(table[colour]):
            drawn = axes.scatter(table[x], table[y], s=16, c=table[colour].astype(float), cmap="viridis", linewidths=0)
            figure.colorbar(drawn, ax=axes, label=colour_name)
        else:
            kinds = sorted(table[colour].dropna().unique())
            for number, (kind, shade) in enumerate(zip(kinds, _palette(len(kinds)), strict=True)):
                inside = table[table[colour] == kind]
                axes.scatter(
                    inside[x],
                    inside[y],
                    s=18,
                    color=shade,
                    marker=MARKERS[number % len(MARKERS)],
                    alpha=0.8,
                    linewidths=0,
                    label=words(kind),
                )
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), title=colour_name)
        if diagonal:
            ends = [float(np.nanmin(table[[x, y]].to_numpy(dtype=float))), float(np.nanmax(table[[x, y]].to_numpy(dtype=float)))]
            axes.plot(ends, ends, color=INK, linewidth=0.7, linestyle=":")
        axes.grid()
        axes.set(title=title, xlabel=x_name, ylabel=y_name)
        return figure


def movement(table: pd.DataFrame, *, title: str, x_name: str, y_name: str) -> Figure:
    """Draw rated and predicted points of each track in the valence-arousal plane, joined by a line.

    `table` holds the columns rated_x, rated_y, predicted_x, predicted_y.
    """
    with _style():
        figure = Figure(figsize=(5.6, 4.8), layout="constrained")
        axes = figure.subplots()
        axes.plot(
            table[["rated_x", "predicted_x"]].to_numpy(dtype=float).T,
            table[["rated_y", "predicted_y"]].to_numpy(dtype=float).T,
            color="#9aa0a6",
            linewidth=0.4,
            alpha=0.6,
        )
        rated, predicted = _palette(2)
        axes.scatter(table["rated_x"], table["rated_y"], s=16, color=rated, marker="o", linewidths=0, label="rated")
        axes.scatter(
            table["predicted_x"], table["predicted_y"], s=16, color=predicted, marker="^", linewidths=0, label="predicted"
        )
        axes.grid()
        axes.set(title=title, xlabel=x_name, ylabel=y_name)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        return figure


def contributions(table: pd.DataFrame, *, title: str, x_name: str, y_name: str) -> Figure:
    """Draw what each feature adds (column ``contribution``, index: feature): bars to both sides of zero."""
    import matplotlib as mpl

    with _style():
        figure = Figure(figsize=(5.6, 1.2 + 0.3 * len(table)), layout="constrained")
        axes = figure.subplots()
        values = table["contribution"].to_numpy(dtype=float)
        colours = mpl.colormaps[_registered(DIVERGING)](np.where(values < 0, 0.08, 0.92))
        axes.barh(np.arange(len(table))[::-1], values, color=colours)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_yticks(np.arange(len(table))[::-1], [words(name) for name in table.index])
        axes.grid(axis="x")
        axes.set(title=title, xlabel=x_name, ylabel=y_name)
        return figure


def _registered(name: str) -> str:
    import seaborn  # registers its colour maps

    assert seaborn
    return name


def _palette(count: int) -> list[tuple[float, float, float]]:
    import seaborn as sns

    return list(sns.color_palette("colorblind", max(count, 1)))[:count]


def _legend_above(figure: Figure, axes: Any, columns: int) -> None:
    handles, texts = axes.get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside lower center", ncols=min(columns, 4))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Say nothing about letters that the font lacks: in SVG the reader's fonts draw them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def _style() -> Any:
    return rc_context(STYLE)  # type: ignore[arg-type]  # its keys are rcParams
