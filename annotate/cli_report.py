"""The commands that read tables: report, compare, explain."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from annotate.console import clear_errors, set_up_logging


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the report; made where it is missing.")
@click.option("--ratings", type=click.Path(path_type=Path), help="Ratings (CSV); default: those that the table holds.")
@click.option("--audio", type=click.Path(path_type=Path), metavar="ROOT", help="Folder that was annotated: adds players.")
@click.option("--bundle", metavar="FOLDER", help="Bundle that made the table, where it is not a built-in one.")
@click.option("-q", "--quiet", count=True, help="Warnings and errors only.")
@click.option("-v", "--verbose", count=True, help="Say more.")
def report(
    source: Path, out: Path, ratings: Path | None, audio: Path | None, bundle: str | None, quiet: int, verbose: int
) -> None:
    """Make a report: correlations with ratings, explanations, and what the corpus is like.

    SOURCE: a table that `annotate run` wrote, or a folder that `annotate evaluate` wrote. DIR/index.html is one page that needs
    no network; beside it report.json, every table as CSV, every figure as SVG and PNG.

    \b
    annotate report emotify_v1.parquet --ratings "Music Data/data.csv" --out report/
    annotate report emotify_v1.parquet --audio "Music Data/" --out report/
    annotate report eval/ --out eval_report/
    """
    set_up_logging(verbose - quiet, None, "text")
    with clear_errors():
        from annotate.reporting import ReportOptions
        from annotate.reporting import report as make_report

        if not source.exists():
            raise FileNotFoundError(f"no such file or folder: {source}")
        written = make_report(
            ReportOptions(source, out, ratings, audio, bundle, command_line=shlex.join(["annotate", *sys.argv[1:]]))
        )
        click.echo(f"{written[0]}: {len(written)} files")


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for the comparison; made where it is missing."
)
@click.option("-q", "--quiet", count=True, help="Warnings and errors only.")
def compare(a: Path, b: Path, out: Path, quiet: int) -> None:
    """Compare two annotations of one corpus: what moved, which labels changed, what made them.

    A, B: tables that `annotate run` wrote. By column r, mean shift with interval, the largest movers; changed labels and
    provenance; `annotate info` of both sides.

    \b
    annotate compare emotify_v1.parquet emotify_v2.parquet --out diff/
    """
    set_up_logging(-quiet, None, "text")
    with clear_errors():
        from annotate.reporting import compare as compare_tables

        written = compare_tables(a, b, out, shlex.join(["annotate", *sys.argv[1:]]))
        click.echo(f"{written[0]}: {len(written)} files")


@click.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.argument("track")
@click.option("--emotion", help="One emotion, such as happy or gems_tension; default: all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain(table: Path, track: str, emotion: str | None, as_json: bool) -> None:
    """Say which mid-level features push the emotions of a track up or down.

    TRACK: its path in the table, its id, or the end of its path. Emotions of `joint` are explained in rating points, those of
    `probe` in log-odds; a contribution is weight × (feature of the track − mean of the table).

    \b
    annotate explain emotify_v1.parquet rock/7.mp3 --emotion happy
    """
    with clear_errors():
        from annotate.reporting import explain as explain_track
        from annotate.reporting import explanation_json, explanation_text, find_track, read_annotated

        annotated = read_annotated(table)
        row = find_track(annotated, track)
        found = explain_track(annotated, row, emotion)
        write = explanation_json if as_json else explanation_text
        click.echo(write(str(row["track"]), found))
