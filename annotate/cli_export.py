"""`annotate export`: a table in forms that other tools read."""

from __future__ import annotations

from pathlib import Path

import click

from annotate.console import clear_errors


@click.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--jams", type=click.Path(path_type=Path), help="Folder for JAMS files, one a track; needs the extra `standards`.")
@click.option(
    "--midi", type=click.Path(path_type=Path), help="Transcriptions that `run --midi` wrote: their notes go into the JAMS."
)
@click.option(
    "--croissant",
    type=click.Path(path_type=Path),
    help="Croissant description (JSON-LD) of the table; needs the extra `standards`.",
)
@click.option("--licence", default="not stated", show_default=True, help="Licence of the table, for --croissant: a URL or words.")
@click.option("--csv", type=click.Path(path_type=Path), help="The table as CSV; empty where there is no value.")
def export(table: Path, jams: Path | None, midi: Path | None, croissant: Path | None, licence: str, csv: Path | None) -> None:
    """Write a table in other forms: JAMS files, a Croissant description, CSV.

    \b
    annotate export emotify_v1.parquet --csv emotify_v1.csv
    annotate export emotify_v1.parquet --jams jams/ --croissant emotify_v1.json
    """
    if jams is None and croissant is None and csv is None:
        raise click.UsageError("nothing to write: say --jams DIR, --croissant FILE or --csv FILE")
    if midi is not None and jams is None:
        raise click.UsageError("--midi goes with --jams: it says where the notes of the JAMS files are")
    with clear_errors():
        from annotate.export import export_croissant, export_csv, export_jams

        if csv is not None:
            click.echo(export_csv(table, csv))
        if croissant is not None:
            click.echo(export_croissant(table, croissant, licence))
        if jams is not None:
            click.echo(export_jams(table, jams, midi))
