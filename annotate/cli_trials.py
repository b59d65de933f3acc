"""`annotate bundle trials`: what a bundle does where no ratings are needed to judge it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import click

from annotate.console import clear_errors, set_up_logging


@click.command("trials")
@click.argument("bundle")
@click.argument("music", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The trials to write (JSON).")
@click.option("--models", help="Families, with commas; default: all of the bundle.")
@click.option("--tracks", type=click.IntRange(3), default=50, show_default=True, help="Tracks of the music to change.")
@click.option("--seconds", type=click.FloatRange(1, 600), default=20.0, show_default=True, help="Of each track, from its middle.")
@click.option("--pairs", type=click.IntRange(1, 99), default=12, show_default=True, help="Composed pairs a cue.")
@click.option("--twin-seconds", type=click.FloatRange(1, 600), default=20.0, show_default=True, help="Of each composed piece.")
@click.option("--jobs", type=click.IntRange(1), help="Worker processes; default: one a usable core.")
@click.option("--work", type=click.Path(path_type=Path), help="Working folder, kept, to go on from; default: a temporary one.")
@click.option("--complete", is_flag=True, help="Put the trials into BUNDLE, an unpublished folder: card and digests anew.")
def trials(
    bundle: str,
    music: Path,
    out: Path,
    models: str | None,
    tracks: int,
    seconds: float,
    pairs: int,
    twin_seconds: float,
    jobs: int | None,
    work: Path | None,
    complete: bool,
) -> None:
    """Try a bundle: twins that differ in one cue, music that is changed but the same, and sounds that are no music.

    MUSIC is a folder of any music. The working folder holds excerpts of it and is removed at the end unless --work names it.

    \b
    annotate bundle trials default "Music Data/" --out trials.json
    annotate bundle trials bundles/mine "Music Data/" --out mine_trials.json --complete
    """
    set_up_logging(0, None, "text")
    with clear_errors():
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from annotate.card import complete as complete_bundle
        from annotate.trials import TrialOptions, summary, try_bundle
        from models.bundle import find

        found = try_bundle(
            TrialOptions(
                bundle=bundle,
                music=music,
                out=out,
                models=None if models is None else tuple(name.strip() for name in models.split(",") if name.strip()),
                tracks=tracks,
                seconds=seconds,
                pairs=pairs,
                twin_s=twin_seconds,
                jobs=jobs or 0,
                work=work,
                progress=sys.stderr.isatty(),
                command_line=shlex.join(["annotate", *sys.argv[1:]]),
            )
        )
        for line in summary(found):
            click.echo(line)
        if complete:
            folder = find(bundle)
            complete_bundle(folder, out)
            click.echo(f"{folder}: card and digests written anew")
