"""`annotate bundle`: looks after bundles of frozen models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from annotate.console import clear_errors

IMPORTED = ("midlevel", "probe", "joint", "a2e", "a2mid2e", "emotion", "crnn", "va", "vaseq")


@click.group()
def bundle() -> None:
    """Look after bundles of frozen models.

    \b
    annotate bundle list
    """


@bundle.command("list")
def bundle_list() -> None:
    """List the bundles that come with the package.

    \b
    annotate bundle list
    """
    with clear_errors():
        from models.bundle import DEFAULT, built_in_bundles, load

        for folder in built_in_bundles():
            held = load(str(folder))
            mark = " (default)" if folder.name == DEFAULT else ""
            click.echo(f"{folder.name}{mark}  version {held.version}  {', '.join(held.families)}")


@bundle.command("show")
@click.argument("name", default="default")
def bundle_show(name: str) -> None:
    """Print a bundle's card: data, licence, scores, what it must not be used for.

    \b
    annotate bundle show default
    """
    with clear_errors():
        from models.bundle import load

        held = load(name)
        click.echo(f"{held.name} version {held.version}\n{held.folder}\nSHA-256 {held.digest}\n")
        click.echo(held.file("README.md").read_text(encoding="utf-8"))


@bundle.command("verify")
@click.argument("name", default="default")
def bundle_verify(name: str) -> None:
    """Check a bundle: digests of all files, and every model against the reference outputs.

    \b
    annotate bundle verify default
    """
    with clear_errors():
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from models.bundle import load, verify

        held = load(name)
        click.echo(f"{held.name} version {held.version}: {len(held.manifest['files'])} files match their digests")
        for line in verify(held):
            click.echo(line)
        click.echo("ok")


def _file_options(command: Any) -> Any:
    for family in reversed(IMPORTED):
        path = click.Path(path_type=Path)
        command = click.option(f"--{family}", type=path, metavar="FILE", help=f"Keras file (.keras, .h5) of family {family}.")(
            command
        )
    return command


def _pairs(option: str, values: tuple[str, ...]) -> dict[str, str]:
    """Values of the form KEY=VALUE, by key."""
    found = {}
    for value in values:
        key, sign, rest = value.partition("=")
        if not sign or not key.strip() or not rest.strip():
            raise click.UsageError(f"{option} {value!r} must have the form NAME=VALUE")
        found[key.strip()] = rest.strip()
    return found


@bundle.command("import")
@_file_options
@click.option("--name", required=True, help="Name of the bundle.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the bundle to write; default: NAME here.")
@click.option("--bundle-version", default="1.0", show_default=True, help="Version of the bundle.")
@click.option("--licence", help="Licence of the files, for the card.")
@click.option(
    "--labels", multiple=True, metavar="FAMILY=A,B,…", help="Labels of a file's outputs in its order, if not ours; genres."
)
@click.option("--rename", multiple=True, metavar="THEIRS=OURS", help="Our spelling of a label that --labels names.")
@click.option(
    "--scale",
    multiple=True,
    metavar="FAMILY=FILE.json",
    help="mean and standard_deviation of the inputs of emotion, va, vaseq, if not in the file; FAMILY=none: raw inputs.",
)
@click.option("--floored", multiple=True, metavar="NAME", help="Name of a custom activation that is max(x, 0.37).")
@click.option(
    "--raw-ratings",
    multiple=True,
    type=click.Choice(["midlevel", "joint", "a2e", "a2mid2e", "crnn"]),
    help="This file predicts ratings themselves; default: ratings / 10 (crnn: 0-1).",
)
def bundle_import(
    name: str,
    out: Path | None,
    bundle_version: str,
    licence: str | None,
    labels: tuple[str, ...],
    rename: tuple[str, ...],
    scale: tuple[str, ...],
    floored: tuple[str, ...],
    raw_ratings: tuple[str, ...],
    **files: Path | None,
) -> None:
    """Make a bundle of frozen Keras files of your own; it is then used like any bundle.

    Keras 3 (.keras) and Keras 2 or 3 (.h5) files whose graph is that of a family. Code in a file is never run. Shapes, layers and
    front end are checked, and the first prediction is compared with the file's own.

    \b
    annotate bundle import --midlevel mid.keras --probe emotify.keras --name mine
    annotate run "Music Data/" --bundle ./mine --out mine.parquet
    """
    with clear_errors():
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from annotate.bundle_import import UNKNOWN_LICENCE, ImportOptions, import_bundle

        scales = _pairs("--scale", scale)
        lists = {family: tuple(part.strip() for part in text.split(",")) for family, text in _pairs("--labels", labels).items()}
        done = import_bundle(
            ImportOptions(
                files={family: path for family, path in files.items() if path is not None},
                out=out or Path(name),
                name=name,
                version=bundle_version,
                licence=licence or UNKNOWN_LICENCE,
                labels=lists,
                renames=_pairs("--rename", rename),
                scales={family: None if text == "none" else Path(text) for family, text in scales.items()},
                floored=floored,
                raw_ratings=raw_ratings,
            )
        )
        for line in done.lines:
            click.echo(line)
        click.echo(f"{done.folder}: bundle {name} {bundle_version}; use it with --bundle {os.path.join('.', done.folder)}")


@bundle.command("export")
@click.argument("name", default="default")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the files; must not hold any.")
@click.option("--models", help="Families, with commas; default: every network of the bundle.")
def bundle_export(name: str, out: Path, models: str | None) -> None:
    """Write a bundle's networks as plain .keras files that Keras opens without this project.

    \b
    annotate bundle export default --out keras/
    """
    with clear_errors():
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from annotate.bundle_import import export_bundle
        from models.bundle import load

        families = tuple(part.strip() for part in (models or "").split(",") if part.strip())
        for line in export_bundle(load(name), out, families):
            click.echo(line)
