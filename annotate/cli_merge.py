"""`annotate merge`: the table of a run that several machines did."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from annotate.console import clear_errors, set_up_logging


@click.command()
@click.argument("runs", metavar="RUN…", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, help="The table to write (Parquet); a folder, or a name that ends in /: a dataset of files."
)
@click.option("--windows", help="Write the table of windows, too; every shard was run with --windows.")
@click.option("--allow-lost", is_flag=True, help="Go on without shards that are missing or unfinished, and name them.")
def merge(runs: tuple[Path, ...], out: str, windows: str | None, allow_lost: bool) -> None:
    """Put the tables of all shards of a run together; every shard must have ended.

    RUN: the run folder that the shards share (TABLE.run, beside the table that --out of `annotate run` named), or several of
    them, of machines that share no folder. Shards that are missing are named; nothing is counted twice.

    \b
    annotate run "Music Data/" --out t.parquet --shard 1/2      # on one machine
    annotate run "Music Data/" --out t.parquet --shard 2/2      # on another
    annotate merge t.parquet.run --out t.parquet
    """
    set_up_logging(0, None, "text")
    with clear_errors():
        from annotate.shards import merge as merge_shards
        from annotate.targets import Target

        targets = [Target.of(out, "--out")] + ([Target.of(windows, "--windows")] if windows else [])
        merge_shards(runs, *targets, allow_lost=allow_lost, command_line=shlex.join(["annotate", *sys.argv[1:]]))
