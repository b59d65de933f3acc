"""Writes the documents that follow from the code: docs/commands.md and docs/columns.md.

Run it from the checkout as `make docs`; a test says when a document no longer is what the code gives.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from annotate.cli import main
from annotate.schema import IDENTITY, family_columns, window_columns_for
from models.bundle import load
from outputs.table import Column

HERE = Path(__file__).parent
FAMILY_TITLES = {
    "scan": "Identity",
    "decode": "Decoding",
    "midlevel": "midlevel: mid-level perceptual features",
    "probe": "probe: GEMS emotions from the saliences",
    "joint": "joint: film-music emotions through mid-level features",
    "emotion": "emotion: GEMS emotions, straight from the sound",
    "va": "va: valence and arousal from note statistics",
    "vaseq": "vaseq: valence and arousal from the note sequence",
    "crnn": "crnn: word norms and genre",
    "descriptors": "descriptors: the strong plain baseline",
    "best": "best: whatever agrees best with listeners",
    "notes": "notes: statistics of the transcription",
}


def leaves(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its whole name, by name."""
    if isinstance(command, click.Group):
        for name in sorted(command.commands):
            yield from leaves(command.commands[name], (*path, name))
    else:
        yield path, command


def examples(command: click.Command) -> list[str]:
    """Lines of a command's help that can be pasted into a shell; what follows two spaces is a remark."""
    lines = (line.strip() for line in inspect.cleandoc(command.help or "").splitlines())
    return [
        line.partition("  ")[0].partition(" #")[0].strip() for line in lines if line.startswith(("annotate ", 'eval "$(annotate'))
    ]


def commands_page() -> str:
    """Reference of all commands, from their own help."""
    lines = ["# Commands", "", "Made by `make docs` from the help of each command; do not edit.", ""]
    everything = list(leaves(main, ("annotate",)))
    lines += [f"- [`{' '.join(path)}`](#{'-'.join(path)}): {command.get_short_help_str(120)}" for path, command in everything]
    for path, command in everything:
        context = click.Context(command, info_name=" ".join(path), max_content_width=100, terminal_width=100)
        lines += ["", f"## {' '.join(path)}", "", "```", command.get_help(context).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def columns_page() -> str:
    """Data dictionary of the table, from the schema with the built-in bundle; what a bundle chooses is said in words."""
    bundle = load("default")
    lines = [
        "# Columns",
        "",
        "Made by `make docs` from the schema; do not edit. One row a track, in this order; a value that does not exist is null.",
        "Each column of a Parquet file carries the same description, unit, range and family in its metadata;",
        '`annotate.read(table).attrs["columns"]` has them. Ranges are those of the human scale: a prediction may lie beyond it.',
    ]
    for family in ("scan", "decode"):
        lines += block(FAMILY_TITLES[family], [column for column in IDENTITY if column.family == family])
    lines += [
        "",
        "## Ratings",
        "",
        "`rated_<label>` and `rated_n`: the corpus's own human ratings, where it has them, joined by id: the mean of the raters,",
        "for Emotify the share of listeners who chose the emotion; `rated_n` is the number of raters. `annotate corpus FOLDER`",
        "lists them with units and ranges.",
    ]
    for name, family in bundle.families.items():
        lines += block(FAMILY_TITLES.get(name, name), family_columns(family))
    plain = [column for column in window_columns_for(bundle, tuple(bundle.families)) if column.family == "scan"]
    lines += block("Windows (`run --windows`), a row a window of one network", plain)
    lines += ["", "Then the columns of the spectrogram networks as above, null where a row is another network's."]
    return "\n".join(lines) + "\n"


def block(title: str, columns: list[Column] | tuple[Column, ...]) -> list[str]:
    """One family's columns as a table."""
    lines = ["", f"## {title}", "", "| column | type | unit | range | what it is |", "|---|---|---|---|---|"]
    for column in columns:
        bounds = ["" if bound is None else f"{bound:g}" for bound in (column.low, column.high)]
        between = "" if bounds == ["", ""] else f"{bounds[0]} to {bounds[1]}".strip()
        text = column.description
        if column.name.endswith("_label") and column.type == "bool":
            text = f"{column.name.removesuffix('_label')} is at least the bundle's threshold for it"
        lines.append(f"| `{column.name}` | {column.type} | {column.unit or ''} | {between} | {text} |")
    return lines


PAGES = {"commands.md": commands_page, "columns.md": columns_page}


def write() -> None:
    """Write every page."""
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write()
