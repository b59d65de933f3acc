"""A report: one HTML page that needs nothing beside it, and the same as JSON, CSV, SVG and PNG.

    DIR/index.html        the page; figures inline, one small script that sorts tables, no request to anywhere
    DIR/report.json       facts, messages and every table
    DIR/tables/NAME.csv   every table in full
    DIR/figures/NAME.svg  every figure, text as text; and NAME.png

Conventions: whatever comes from a table (track names, genres, reasons) is text, escaped by Jinja2; the page's own content policy
allows no script but ours, by its digest, and no source but the page itself and, where players are asked for, audio files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

import pandas as pd
from matplotlib.figure import Figure

from outputs import figures

REPORT_SCHEMA_VERSION: Final = 1
ROWS_SHOWN: Final = 2000  # of a table on the page; the CSV holds all
NAME: Final = re.compile("[A-Za-z0-9_-]{1,200}")  # of a table's or figure's files
AUDIO_COLUMN: Final = "listen"  # the column whose texts are addresses of audio files


class ReportError(ValueError):
    """A report that cannot be made, in one line."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str
    kind: Literal["heading"] = "heading"


@dataclass(frozen=True)
class Formulas:
    """Lines ``name = formula``."""

    formulas: tuple[tuple[str, str], ...]
    kind: Literal["formulas"] = "formulas"


@dataclass(frozen=True, eq=False)
class Plot:
    """A figure with its caption; `name` is its file name."""

    name: str
    caption: str
    figure: Figure
    kind: Literal["figure"] = "figure"


@dataclass(frozen=True, eq=False)
class Table:
    """A table; `name` is its file name. An index of a frame counts only where it has a name.

    `shown` names the columns that stand on the page, all of them if it is empty; the CSV file holds every column.
    """

    name: str
    title: str
    frame: pd.DataFrame
    note: str = ""
    collapsed: bool = False
    shown: tuple[str, ...] = ()
    kind: Literal["table"] = "table"


Part = Text | Heading | Formulas | Plot | Table


@dataclass(frozen=True)
class Section:
    """A part of the page that the navigation names."""

    anchor: str
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Report:
    """All that a page says."""

    title: str
    kind: str
    subtitle: str
    tool: str
    time_utc: str
    command_line: str
    facts: Mapping[str, str]
    messages: tuple[str, ...]
    sections: tuple[Section, ...]
    details: Mapping[str, Any] = field(default_factory=dict)  # for report.json alone


@dataclass(frozen=True)
class _Cell:
    text: str
    number: str | None = None
    audio: str | None = None


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write a report into a folder, which is made; files of the same names are replaced, others stay.

    Returns
    -------
    list of Path
        What was written, the page first.

    Raises
    ------
    ReportError
        If two tables or two figures have one name.
    """
    parts = [part for section in report.sections for part in section.parts]
    plots = [part for part in parts if isinstance(part, Plot)]
    tables = [part for part in parts if isinstance(part, Table)]
    for names in ([plot.name for plot in plots], [table.name for table in tables]):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ReportError(f"two parts of the report are named {', '.join(twice)}")
        odd = [name for name in names if not NAME.fullmatch(name)]
        if odd:
            raise ReportError(f"a part of the report is named {odd[0]!r}, which is no name of a file (letters, digits, _, -)")
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "tables").mkdir(exist_ok=True)
    written = [folder / "index.html", folder / "report.json"]
    for table in tables:
        path = folder / "tables" / f"{table.name}.csv"
        _replace(path, _flat(table.frame).to_csv(index=False).encode(errors="backslashreplace"))
        written.append(path)
    inline = {}
    for plot in plots:
        figures.lay_out(plot.figure)
        drawn = figures.svg(plot.figure, plot.name)
        inline[plot.name] = inline_svg(drawn, plot.name)
        whole = drawn.replace("<svg ", '<svg style="background: #ffffff" ', 1)
        for path, content in (
            (folder / "figures" / f"{plot.name}.svg", whole.encode()),
            (folder / "figures" / f"{plot.name}.png", figures.png(plot.figure)),
        ):
            _replace(path, content)
            written.append(path)
    _replace(folder / "report.json", _as_json(report, tables, plots).encode(errors="backslashreplace"))
    _replace(folder / "index.html", _page(report, inline).encode(errors="backslashreplace"))
    return written


def inline_svg(drawn: str, name: str) -> str:
    """Make a figure part of a page: ids that are its own, ink in the page's colour, no prologue."""
    start = drawn.index("<svg")
    body = drawn[start:]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    prefix = f"{re.sub('[^0-9A-Za-z]', '-', name)}-"
    body = re.sub(r'\bid="([^"]+)"', lambda found: f'id="{prefix}{found[1]}"', body)
    body = re.sub(r'href="#([^"]+)"', lambda found: f'href="#{prefix}{found[1]}"', body)
    body = re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{prefix}{found[1]})", body)
    body = body.replace(figures.INK, "currentColor")
    # text without a colour of its own is black by default
    return body.replace("<svg ", '<svg fill="currentColor" ', 1)


def audio_address(path: Path, folder: Path) -> str:
    """Address of an audio file as seen from a page in `folder`: relative, percent-encoded, undecodable bytes too."""
    relative = os.path.relpath(path.resolve(), folder.resolve())
    return quote(os.fsencode(relative))


def number_text(value: float, digits: int = 3) -> str:
    """Write a number for people: `digits` significant figures behind the point at most, a real minus sign."""
    if not math.isfinite(value):
        return "" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value)}".replace("-", "−")
    if abs(value) < 10**-digits:
        return f"{value:.1e}".replace("-", "−")
    return f"{value:.{digits}f}".replace("-", "−")


def _page(report: Report, inline: Mapping[str, str]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    files = resources.files("outputs") / "templates"
    script = (files / "report.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((files / "report.html").read_text(encoding="utf-8"))
    listens = any(isinstance(part, Table) and AUDIO_COLUMN in part.frame for section in report.sections for part in section.parts)
    sections = [
        {
            "anchor": section.anchor,
            "title": section.title,
            "parts": [_shown(part, inline, Markup) for part in section.parts],
        }
        for section in report.sections
    ]
    content = {name: getattr(report, name) for name in ("title", "subtitle", "facts", "messages", "tool", "time_utc")}
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return template.render(
        report=content | {"sections": sections},
        style=Markup((files / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        media_sources="'self' file:" if listens else "'none'",
    )


def _shown(part: Part, inline: Mapping[str, str], markup: Callable[[str], str]) -> dict[str, Any]:
    if isinstance(part, Plot):
        return {"kind": part.kind, "name": part.name, "caption": part.caption, "svg": markup(inline[part.name])}
    if isinstance(part, Table):
        frame = _flat(part.frame)
        frame = frame[list(part.shown)] if part.shown else frame
        note = part.note
        if len(frame) > ROWS_SHOWN:
            note = f"{note + '; ' if note else ''}the first {ROWS_SHOWN} of {len(frame)} rows"
        return {
            "kind": part.kind,
            "name": part.name,
            "title": part.title,
            "note": note,
            "collapsed": part.collapsed,
            "columns": [{"title": figures.words(name)} for name in frame.columns],
            "rows": [
                [_cell(name, value) for name, value in zip(frame.columns, row, strict=True)]
                for row in frame.head(ROWS_SHOWN).itertuples(index=False)
            ],
        }
    if isinstance(part, Formulas):
        return {"kind": part.kind, "formulas": part.formulas}
    return {"kind": part.kind, "text": part.text}


def _cell(column: str, value: Any) -> _Cell:
    if value is None or value is pd.NA or value != value:
        return _Cell("")
    if column == AUDIO_COLUMN:
        return _Cell("", audio=str(value))
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return _Cell("yes" if value else "no")
    if isinstance(value, (int, float)) or hasattr(value, "dtype"):
        return _Cell(number_text(float(value)), number=repr(float(value)))
    return _Cell(str(value))


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.reset_index() if any(name is not None for name in frame.index.names) else frame


def _as_json(report: Report, tables: Sequence[Table], plots: Sequence[Plot]) -> str:
    content = {
        "schema_version": REPORT_SCHEMA_VERSION,
        "kind": report.kind,
        "tool": report.tool,
        "time_utc": report.time_utc,
        "command_line": report.command_line,
        "title": report.title,
        "facts": dict(report.facts),
        "messages": list(report.messages),
        **report.details,
        "tables": {table.name: _records(_flat(table.frame)) for table in tables},
        "figures": {plot.name: plot.caption for plot in plots},
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): _plain(value) for name, value in row.items()} for row in frame.to_dict("records")]


def _plain(value: Any) -> Any:
    if value is None or value is pd.NA:
        return None
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
