"""The commands `annotate train` and `annotate evaluate`: parse, build the plan, call one function, print."""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import sys
import typing
from pathlib import Path
from typing import Any

import click

from annotate.console import clear_errors, set_up_logging

TRAINED = ("midlevel", "probe", "a2e", "a2mid2e", "joint", "emotion", "crnn", "va", "vaseq", "vatransfer", "descriptors", "best")
BUNDLED = ("midlevel", "probe", "joint", "emotion", "crnn", "va", "vaseq", "descriptors", "best")  # what `all` trains
# fields of a recipe that say nothing to some of the families that share its form
CROPS = ("crop_frames", "short_epochs", "short_frames")
OF_WHOLE_WINDOWS = ("emotion", "crnn", "va", "vaseq", "vatransfer")
SPECTROGRAMS = (
    "time_masks",
    "time_mask_frames",
    "frequency_masks",
    "frequency_mask_bins",
    "roll_bins",
    "gain_db",
    "mixup_alpha",
    "recalibration_batches",
    "dtype",
    "hint_weight",
    "course_share",
    "final_epochs",
    "final_rate",
    "trunk_from",
    "crops_per_track",
)
OF_NOTES = ("va", "vaseq", "vatransfer")
RECIPE_PREFIX = "recipe__"  # of the parameters that are made from the recipes' fields


class RecipeCommand(click.Command):
    """A command with an option for every field of every recipe; they are made when they are asked for."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """List the command's own options and those of the recipes, before ``--help``."""
        own = super().get_params(ctx)
        return [*own[:-1], *recipe_options(), own[-1]]


def applies(family: str, field: str) -> bool:
    """Whether a field of a recipe changes the training of a family."""
    return not (field in CROPS and family in OF_WHOLE_WINDOWS) and not (field in SPECTROGRAMS and family in OF_NOTES)


def recipe_options() -> list[click.Parameter]:
    """Make one option a recipe field, for all families that have it."""
    from models.networks import RECIPES

    families: dict[str, list[str]] = {}
    kinds: dict[str, Any] = {}
    for family, recipe in RECIPES.items():
        hints = typing.get_type_hints(type(recipe))
        for field in dataclasses.fields(recipe):
            if applies(family, field.name):
                families.setdefault(field.name, []).append(family)
                kinds[field.name] = hints[field.name]
    options: list[click.Parameter] = []
    for name, kind in kinds.items():
        held = ", ".join(families[name])
        if families[name] == families["epochs"]:
            held = "every network"
        options.append(_recipe_option(name, kind, held))
    return options


def flag_of(field: str) -> str:
    """Option of a recipe's field; `labels` is the ratings' file, so the recipe's own is --target-labels."""
    return "--target-labels" if field == "labels" else f"--{field.replace('_', '-')}"


def _recipe_option(name: str, kind: Any, families: str) -> click.Option:
    flag = flag_of(name)
    text = f"Recipe of {families}."
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return click.Option([flag, f"{RECIPE_PREFIX}{name}"], type=click.Choice(arguments), help=text)
    if typing.get_origin(kind) is tuple:
        return click.Option([flag, f"{RECIPE_PREFIX}{name}"], metavar="A,B,…", help=text)
    plain = next((argument for argument in arguments if argument is not type(None)), kind)
    return click.Option([flag, f"{RECIPE_PREFIX}{name}"], type=plain, help=text)


def recipes_of(families: tuple[str, ...], base: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Recipes of some families, ours or the founding documents', with the fields that flags change.

    Raises
    ------
    click.UsageError
        For a flag that belongs to none of the families, or a value that the recipe refuses.
    """
    from models.networks import DOCUMENT_RECIPES, RECIPES

    recipes: dict[str, Any] = {}
    used: set[str] = set()
    wanted = {*families, "vaseq"} if "vatransfer" in families else set(families)  # a transfer trains its sequence network first
    for family in wanted:
        recipe = (DOCUMENT_RECIPES if base == "document" else RECIPES)[family]
        hints = typing.get_type_hints(type(recipe))
        own = {}
        for field in dataclasses.fields(recipe):
            if field.name in changes and family in families and applies(family, field.name):
                value = changes[field.name]
                if typing.get_origin(hints[field.name]) is tuple:
                    value = _tuple_of(field.name, str(value), hints[field.name])
                own[field.name] = value
                used.add(field.name)
        try:
            recipes[family] = dataclasses.replace(recipe, **own)
        except ValueError as error:
            raise click.UsageError(f"recipe of {family}: {error}") from None
    unused = sorted(set(changes) - used)
    if unused:
        holders = {
            name: [
                family
                for family, recipe in RECIPES.items()
                if name in {f.name for f in dataclasses.fields(recipe)} and applies(family, name)
            ]
            for name in unused
        }
        said = "; ".join(f"{flag_of(name)} belongs to {', '.join(holders[name])}" for name in unused)
        raise click.UsageError(f"{said}, not to {', '.join(families)}")
    return recipes


def _tuple_of(name: str, text: str, kind: Any) -> tuple[Any, ...]:
    """Numbers with commas between them, or members with commas between them and their blocks joined by +."""
    if typing.get_origin(typing.get_args(kind)[0]) is tuple:
        return tuple(tuple(block.strip() for block in member.split("+")) for member in text.split(",") if member.strip())
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"--{name.replace('_', '-')} {text!r} must be numbers with commas") from None


def _tuple_text(value: tuple[Any, ...]) -> str:
    return ",".join("+".join(part) if isinstance(part, tuple) else f"{part:g}" for part in value)


def show_recipe(family: str, recipe: Any) -> str:
    """Print a recipe, a field a line, as its flags take it."""
    from models.networks import TASKS

    lines = [f"{family}: {TASKS[family]}"]
    for field in dataclasses.fields(recipe):
        if not applies(family, field.name):
            continue
        value = getattr(recipe, field.name)
        shown = _tuple_text(value) if isinstance(value, tuple) else "whole windows" if value is None else value
        lines.append(f"  {flag_of(field.name):26s} {shown}")
    return "\n".join(lines)


def families_of(text: str) -> tuple[str, ...]:
    """Families that an argument names.

    Raises
    ------
    click.UsageError
        For a family that is not ours.
    """
    families = BUNDLED if text == "all" else tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [part for part in families if part not in TRAINED]
    if unknown or not families:
        raise click.UsageError(f"unknown family {', '.join(unknown) or repr(text)}; choose from {', '.join(TRAINED)}, all")
    return families


def _set_up() -> None:
    """Send our own log to stderr, and nothing of TensorFlow's but errors."""
    set_up_logging(0, None, "text")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, in GB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@click.command(cls=RecipeCommand)
@click.argument("family", metavar="FAMILY")
@click.argument("corpora", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the bundle to write.")
@click.option("--work", type=click.Path(path_type=Path), help="Working folder, kept between runs; default: OUT.work.")
@click.option("--show-recipe", is_flag=True, help="Print the recipe, with the changes of this command line, and train nothing.")
@click.option(
    "--recipe",
    "base",
    type=click.Choice(["ours", "document"]),
    default="ours",
    show_default=True,
    help="Where the recipe starts from: the bundle's, or the founding document's.",
)
@click.option(
    "--folds-run", type=click.IntRange(0, 20), default=1, show_default=True, help="Held-out folds a network is scored on."
)
@click.option("--folds", type=click.IntRange(2, 20), help="Grouped folds; default: 10, of networks 4.")
@click.option("--split", type=click.Path(path_type=Path), help="Published split: a folder with split_test.txt, or the test ids.")
@click.option("--labels", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Ratings from a CSV.")
@click.option("--id-column", default="id", show_default=True, help="Column of --labels that names the track.")
@click.option(
    "--labels-for",
    type=click.Choice(["midlevel", "film", "gems", "va", "vad"]),
    help="What the plainly named columns of --labels are.",
)
@click.option("--word-norms", type=click.Path(path_type=Path), help="Warriner's norms of the GEMS words (CSV), for crnn.")
@click.option(
    "--teacher",
    metavar="BUNDLE:MODEL",
    help="Who labels music that nobody rated; or descriptors, or none. Weight: --pseudo-weight.",
)
@click.option("--frozen", metavar="BUNDLE", help="Bundle whose mid-level network the probe reads, where none is trained.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Processes for the front ends and the trees.")
@click.option("--name", default="mine", show_default=True, help="Name of the bundle.")
@click.option("--bundle-version", default="1.0", show_default=True, help="Version of the bundle.")
def train(family: str, corpora: tuple[Path, ...], **options: Any) -> None:
    """Train model families on rated corpora and write a bundle; started again, it goes on where it stopped.

    FAMILY: midlevel, probe, a2e, a2mid2e, joint, emotion, crnn, va, vaseq, vatransfer, descriptors, best, several with commas, or
    all (those of the built-in bundle). Splits are by artist or album. Every field of a recipe is an option. Needs the extra
    `train`.

    \b
    annotate train va,descriptors soundtracks/ musifeast17/ --out bundles/mine
    annotate train joint --show-recipe --epochs 40
    annotate train va music/ --labels ratings.csv --id-column file --labels-for va --out bundles/mine
    """
    with clear_errors():
        _set_up()
        families = families_of(family)
        changes = {
            name.removeprefix(RECIPE_PREFIX): value
            for name, value in options.items()
            if name.startswith(RECIPE_PREFIX) and value is not None
        }
        recipes = recipes_of(families, options["base"], changes)
        if options["show_recipe"]:
            click.echo("\n".join(show_recipe(name, recipes[name]) for name in families))
            return
        if not corpora:
            raise click.UsageError("no corpus given: name the folder of the rated music")
        out: Path | None = options["out"]
        if out is None:
            raise click.UsageError("--out is needed: the folder of the bundle to write")
        from annotate.bundling import check_request, write_bundle
        from annotate.training import Plan, check_targets, gather, wants_tagger
        from annotate.training import train as train_families
        from annotate.training_data import tagger_engine
        from annotate.training_labels import LabelFile, find_split

        place = options["work"] or out.with_name(f"{out.name}.work")
        check_request(out, place)
        plan = Plan(
            recipes=recipes,
            folds=options["folds"],
            folds_run=options["folds_run"],
            teacher=options["teacher"],
            frozen=options["frozen"],
            split=None if options["split"] is None else find_split(options["split"]),
            jobs=options["jobs"],
        )
        labels = None
        if options["labels"] is not None:
            labels = LabelFile(options["labels"], options["id_column"], options["labels_for"])
        rated = gather(
            corpora,
            place,
            word_norms=options["word_norms"],
            jobs=options["jobs"],
            labels=labels,
            tagger_engine=tagger_engine(place) if any(wants_tagger(one, recipes[one]) for one in families) else None,
        )
        check_targets(rated, families, place, plan)
        train_families(rated, place, families, plan)
        write_bundle(
            rated, place, out, families, name=options["name"], version=options["bundle_version"], frozen=options["frozen"]
        )
        click.echo(f"{out}: bundle {options['name']} {options['bundle_version']}, peak memory {peak_memory_gb():.1f} GB")


def command_line() -> str:
    """The command as it was typed."""
    return shlex.join(["annotate", *sys.argv[1:]])


@click.command(cls=RecipeCommand)
@click.argument("bundle")
@click.argument("corpora", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the evaluation to write.")
@click.option("--work", type=click.Path(path_type=Path), help="Working folder, kept between runs; default: OUT.work.")
@click.option("--folds", type=click.IntRange(2, 20), help="Train anew on K grouped folds; default: score the bundle itself.")
@click.option("--folds-run", type=click.IntRange(1, 20), help="Train a network on the first N of the folds only.")
@click.option("--split", type=click.Path(path_type=Path), help="Published split: a folder with split_test.txt, or the test ids.")
@click.option("--models", help="Families, with commas; default: all of the bundle that the ratings can score.")
@click.option("--labels", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Ratings from a CSV.")
@click.option("--id-column", default="id", show_default=True, help="Column of --labels that names the track.")
@click.option(
    "--labels-for",
    type=click.Choice(["midlevel", "film", "gems", "va", "vad"]),
    help="What the plainly named columns of --labels are.",
)
@click.option(
    "--labels-written-by",
    type=click.Choice(["people", "model"]),
    default="people",
    show_default=True,
    help="model: all figures are self-agreement, and stand apart.",
)
@click.option("--word-norms", type=click.Path(path_type=Path), help="Warriner's norms of the GEMS words (CSV), for crnn.")
@click.option("--teacher", metavar="BUNDLE:MODEL", help="Who labels music that nobody rated, as for train.")
@click.option("--resamples", type=click.IntRange(1), default=1000, show_default=True, help="Of the bootstrap, over tracks.")
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Processes for the front ends and the trees.")
def evaluate(bundle: str, corpora: tuple[Path, ...], **options: Any) -> None:
    """Compare a bundle, or with --folds its recipes, with people's ratings, and write the evaluation folder.

    Without --folds only tracks are scored whose artist or album the bundle was not trained on. With it, each family is trained
    anew on grouped folds; recipe options change how.

    \b
    annotate evaluate bundles/mine soundtracks/ --folds 5 --out eval/
    annotate evaluate default "Music Data/" --out eval/
    """
    with clear_errors():
        _set_up()
        out: Path = options["out"]
        work = options["work"] or out.with_name(f"{out.name}.work")
        if out.resolve() == work.resolve() or out.resolve() in work.resolve().parents:
            raise click.UsageError(f"--work {work} lies in --out {out}: choose a folder outside of the evaluation")
        families = None
        if options["models"] is not None:
            families = tuple(part.strip() for part in options["models"].split(",") if part.strip())
        changes = {
            name.removeprefix(RECIPE_PREFIX): value
            for name, value in options.items()
            if name.startswith(RECIPE_PREFIX) and value is not None
        }
        retrained = options["folds"] is not None or options["split"] is not None
        if changes and not retrained:
            raise click.UsageError("recipe options need --folds or --split: without them nothing is trained")
        if options["folds_run"] is not None and options["folds"] is None:
            raise click.UsageError("--folds-run needs --folds")
        from annotate.evaluation import EvaluationOptions
        from annotate.evaluation import evaluate as evaluate_bundle
        from annotate.training_labels import LabelFile, find_split

        labels = None
        if options["labels"] is not None:
            labels = LabelFile(options["labels"], options["id_column"], options["labels_for"])
        changed = recipes_of(families_of(",".join(families)) if families else BUNDLED, "ours", changes) if changes else {}
        scores = evaluate_bundle(
            EvaluationOptions(
                bundle=bundle,
                corpora=corpora,
                out=out,
                work=work,
                folds=options["folds"],
                folds_run=options["folds_run"],
                families=families,
                recipes=changed,
                word_norms=options["word_norms"],
                labels=labels,
                labels_by_model=options["labels_written_by"] == "model",
                teacher=options["teacher"],
                split=None if options["split"] is None else find_split(options["split"]),
                resamples=options["resamples"],
                jobs=options["jobs"],
                command_line=command_line(),
            )
        )
        click.echo(headlines(scores))
        click.echo(f"{out}: peak memory {peak_memory_gb():.1f} GB")


def headlines(scores: dict[str, Any]) -> str:
    """The headline figures of an evaluation as a table."""
    found = "self_agreement" if "self_agreement" in scores else "families"
    header = ("family", "target on corpus", "n", "r", "95 %", "R2", "AUROC", "F1", "descriptors", "genre mean", "ceiling")
    rows = [header]
    for family, entry in scores[found].items():
        for one in entry["outputs"]:
            headline = one["headline"]
            interval = "" if headline["r_low"] is None else f"{headline['r_low']:.2f} to {headline['r_high']:.2f}"
            figures = [
                headline["r2"],
                headline["auroc"],
                headline["f1"],
                one["baseline_r"],
                one["group_mean_r"],
                one["ceiling_r"],
            ]
            shown = ["" if value is None else f"{value:.2f}" for value in (headline["r"], *figures)]
            rows.append((family, f"{one['target']} on {one['corpus']}", str(one["n"]), shown[0], interval, *shown[1:]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    title = ["self-agreement, not validity: a model wrote these labels"] if found == "self_agreement" else []
    return "\n".join([*title, *lines])
