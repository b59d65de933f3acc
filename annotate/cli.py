"""The `annotate` command: each subcommand parses, builds one dataclass, calls one function, prints.

Heavy imports happen inside the commands, so that `annotate --help` answers at once.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from annotate import interrupts
from annotate.cli_bundle import bundle
from annotate.cli_doctor import completion, doctor
from annotate.cli_export import export
from annotate.cli_merge import merge
from annotate.cli_report import compare, explain, report
from annotate.cli_train import evaluate, train
from annotate.cli_trials import trials
from annotate.console import CORPORA, INTERRUPTED, INTERRUPTED_TEXT, clear_errors, fail, set_up_logging

FAILED_ROWS = 3


class Interruptible(click.Group):
    """Ends with one line and status 130 wherever Ctrl-C or SIGTERM comes, also before a command has begun its work."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            fail(INTERRUPTED_TEXT, INTERRUPTED)

    def main(self, *arguments: Any, **more: Any) -> Any:
        """Run the command as a program; after an interrupt the process ends here."""
        status: object = INTERRUPTED
        try:
            return super().main(*arguments, **more)
        except SystemExit as end:
            status = end.code
            raise
        finally:
            if interrupts.came.is_set():
                with contextlib.suppress(OSError, ValueError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                interrupts.leave(status if isinstance(status, int) else INTERRUPTED)


@click.group(cls=Interruptible, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="annotate")
def main() -> None:
    """Annotate music corpora: one row a track, Parquet, models frozen.

    \b
    annotate demo demo/                                     a small corpus to try
    annotate run "Music Data/" --out emotify_v1.parquet     the main job
    annotate info emotify_v1.parquet                        where a table came from
    """
    interrupts.watch()


@main.command()
@click.argument("audio", nargs=-1, required=True, type=click.Path())
@click.option(
    "--out", required=True, help="The table to write (Parquet); a folder, or a name that ends in /: a dataset of files."
)
@click.option("--bundle", default="default", show_default=True, help="Models: name of a built-in bundle, or a folder.")
@click.option("--models", help="Families, with commas; default: all of the bundle.")
@click.option("--corpus", type=click.Choice(CORPORA), default="auto", show_default=True, help="Layout of the folders.")
@click.option("--windows", help="Write a second table, one row a window of each network.")
@click.option("--midi", type=click.Path(path_type=Path), help="Folder for the transcriptions, one MIDI file a track.")
@click.option("--jobs", type=click.IntRange(1), help="Worker processes; default: one a usable core.")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True, help="Where networks run."
)
@click.option("--exact", is_flag=True, help="Run the networks in float32 with Keras instead of the bundle's CPU graphs.")
@click.option("--batch-size", type=click.IntRange(1), help="Windows a batch; default: 1 to 4 by network on a CPU, 16 with Keras.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of the feature cache; default: the user's cache folder.")
@click.option("--no-cache", is_flag=True, help="Neither read nor write the feature cache.")
@click.option("--limit", type=click.IntRange(1), help="Annotate at most N new tracks this time.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only tracks that match; may be given more than once.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Not the tracks that match; may be given more than once.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--retry-failed", is_flag=True, help="Try failed tracks again even though their files are unchanged.")
@click.option("--keep-missing", is_flag=True, help="Keep the rows of tracks whose files are gone.")
@click.option("--verify", is_flag=True, help="Tell changed files by digest instead of size and time.")
@click.option(
    "--timeout", type=click.FloatRange(1, 1e6), default=1800.0, show_default=True, metavar="S", help="Seconds a file may take."
)
@click.option("--restart", is_flag=True, help="Discard what an earlier run of this table has done.")
@click.option("--scheduler", metavar="ADDRESS", help="Scheduler of a Dask cluster that does the work, as tcp://HOST:PORT.")
@click.option(
    "--shard", metavar="I/N", help="Annotate part I of N; the machines share the run folder, `annotate merge` makes the table."
)
@click.option("--deam-as-is", is_flag=True, help="Leave DEAM's exchanged valence and arousal of 2013 as the files have them.")
@click.option("-q", "--quiet", count=True, help="Warnings and errors only.")
@click.option("-v", "--verbose", count=True, help="A line a track.")
@click.option("--log-file", type=click.Path(), help="Write the log to a file, too.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Of the log.")
def run(audio: tuple[str, ...], **options: Any) -> None:
    """Annotate audio files and folders into one table; started again, it goes on where it stopped.

    AUDIO: WAV, FLAC, Ogg, Opus, MP3 or AIFF files, or folders of them, on this machine or at URLs (s3://, gs://, http://; extra
    `remote`). Exit status: 0 no failed row, 3 some rows failed (they
    say why), 1 nothing could be done, 2 wrong usage, 130 interrupted.

    \b
    annotate run "Music Data/" --out emotify_v1.parquet
    annotate run album/ --models midlevel,notes --out album.parquet
    """
    set_up_logging(options["verbose"] - options["quiet"], options["log_file"], options["log_format"])
    with clear_errors():
        from annotate.pipeline import RunOptions
        from annotate.pipeline import run as run_pipeline

        models = None
        if options["models"] is not None:
            models = tuple(name.strip() for name in options["models"].split(",") if name.strip())
            if not models:
                raise click.UsageError(f"--models {options['models']!r} names no family")
        if math.isnan(options["timeout"]):
            raise click.UsageError("--timeout nan must be a number of seconds")
        if options["shard"] is not None:
            from annotate.shards import Shard

            try:
                options["shard"] = str(Shard.parse(options["shard"]))
            except ValueError as error:
                raise click.UsageError(str(error)) from None
        result = run_pipeline(
            RunOptions(
                audio=audio,
                out=Path(options["out"]),
                out_is_folder=options["out"].endswith("/"),
                bundle=options["bundle"],
                models=models,
                corpus=options["corpus"],
                windows=options["windows"] and Path(options["windows"]),
                windows_is_folder=bool(options["windows"]) and options["windows"].endswith("/"),
                midi=options["midi"],
                jobs=options["jobs"] or 0,
                device=options["device"],
                exact=options["exact"],
                batch_size=options["batch_size"],
                cache=options["cache"],
                use_cache=not options["no_cache"],
                limit=options["limit"],
                include=options["include"],
                exclude=options["exclude"],
                dry_run=options["dry_run"],
                retry_failed=options["retry_failed"],
                keep_missing=options["keep_missing"],
                verify=options["verify"],
                timeout_s=options["timeout"],
                restart=options["restart"],
                shard=options["shard"],
                scheduler=options["scheduler"],
                correct_deam=not options["deam_as_is"],
                progress=sys.stderr.isatty() and options["quiet"] == 0,
                command_line=shlex.join(["annotate", *sys.argv[1:]]),
            )
        )
    raise SystemExit(FAILED_ROWS if result.failed else 0)


@main.command()
@click.argument("table", type=click.Path(path_type=Path))
def info(table: Path) -> None:
    """Print what a table holds and where it came from.

    \b
    annotate info emotify_v1.parquet
    """
    with clear_errors():
        from outputs.table import describe_table

        click.echo(describe_table(table))


@main.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path())
@click.option("--corpus", type=click.Choice(CORPORA), default="auto", show_default=True, help="Layout of the folders.")
@click.option("--deam-as-is", is_flag=True, help="Leave DEAM's exchanged valence and arousal of 2013 as the files have them.")
def corpus(folders: tuple[str, ...], corpus: str, deam_as_is: bool) -> None:
    """Say what was recognised: layout, counts, ratings, ids without a match both ways.

    \b
    annotate corpus "Music Data/"
    """
    with clear_errors():
        from annotate.corpora import describe
        from annotate.places import scan_anywhere

        click.echo(describe(scan_anywhere(folders, corpus=corpus, correct_deam=not deam_as_is)))


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--tracks", type=click.IntRange(1, 100), default=2, show_default=True, help="Tracks a genre; there are four.")
@click.option("--duration", type=click.FloatRange(1, 600), default=20.0, show_default=True, metavar="S", help="Seconds a track.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed writes the same bytes.")
@click.option(
    "--format", "file_format", type=click.Choice(["mp3", "flac", "wav"]), default="mp3", show_default=True, help="Of the audio."
)
def demo(folder: Path, tracks: int, duration: float, seed: int, file_format: str) -> None:
    """Compose and render a small corpus in Emotify's layout, with ratings by listeners that do not exist.

    \b
    annotate demo demo/
    annotate run demo/ --out demo.parquet
    """
    with clear_errors():
        from annotate.demo import write_corpus

        paths = write_corpus(folder, tracks_per_genre=tracks, duration_s=duration, seed=seed, file_format=file_format)
        click.echo(f"{len(paths)} tracks of {duration:g} s and data.csv in {folder}")


main.add_command(train)
main.add_command(evaluate)
main.add_command(bundle)
main.add_command(completion)
main.add_command(doctor)
main.add_command(export)
main.add_command(merge)
main.add_command(report)
main.add_command(compare)
main.add_command(explain)
bundle.add_command(trials)

if __name__ == "__main__":
    main()
