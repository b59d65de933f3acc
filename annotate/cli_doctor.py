"""`annotate doctor`: checks of the installation; `annotate completion`: the shell's tab key."""

from __future__ import annotations

import os

import click

from annotate.console import clear_errors

SHELLS = ("bash", "zsh", "fish")


@click.command()
def doctor() -> None:
    """Check the installation: versions, decoders, device, cache, models, and a self-test of a few seconds.

    Exit status: 0 all is well (a note is no harm), 1 something is wrong (its line says what to do).

    \b
    annotate doctor
    """
    with clear_errors():
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        from annotate.doctor import examine, report

        wrong = 0
        for finding, line in report(examine()):
            colour = {"note": "yellow", "wrong": "red"}.get(finding.state)
            click.echo(click.style(line, fg=colour) if colour else line)  # click takes the colour off where there is no terminal
            wrong += finding.state == "wrong"
        click.echo("something is wrong, see above" if wrong else "all is well")
    raise SystemExit(1 if wrong else 0)


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes the tab key complete commands, options and files of `annotate`.

    \b
    annotate completion bash
    eval "$(annotate completion bash)"     in ~/.bashrc; zsh the same in ~/.zshrc
    annotate completion fish > ~/.config/fish/completions/annotate.fish
    """
    from click.shell_completion import get_completion_class

    context = click.get_current_context().find_root()
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    click.echo(kind(context.command, {}, "annotate", "_ANNOTATE_COMPLETE").source())
