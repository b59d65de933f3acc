r"""A folder of music becomes a table, a row a track; from Python as from the command line.

    import annotate
    table = annotate.run(annotate.RunOptions(audio=("Music Data/",), out=Path("emotify_v1.parquet")))
    table = annotate.read("emotify_v1.parquet")
    table.attrs["annotate"]["bundle"]

Importing this costs nothing: everything heavy is imported when it is used.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from annotate.pipeline import RunOptions

__all__ = ["RunOptions", "read", "run"]


def read(table: str | os.PathLike[str]) -> pd.DataFrame:
    """Read an annotation table, a row a track, with what its columns mean and where its numbers came from.

    Parameters
    ----------
    table : str or path
        A table that `annotate run` wrote.

    Returns
    -------
    pandas.DataFrame
        Its columns in their order; ``attrs["annotate"]`` is the provenance, as `annotate info` prints it, and
        ``attrs["columns"]`` maps each column to its description, unit, low, high and family.

    Raises
    ------
    FileNotFoundError, outputs.table.TableError
        If there is no such file, or it is none of ours.
    """
    from outputs.table import read_columns, read_frame, read_provenance

    path = Path(table)
    provenance, columns = read_provenance(path), read_columns(path)
    frame = read_frame(path)
    frame.attrs["annotate"] = provenance
    frame.attrs["columns"] = {column.name: dataclasses.asdict(column) for column in columns}
    return frame


def run(options: RunOptions) -> pd.DataFrame:
    """Annotate audio into a table, as the command `annotate run` does; started again, it goes on where it stopped.

    Parameters
    ----------
    options : RunOptions
        The same options as the command's.

    Returns
    -------
    pandas.DataFrame
        The table that was written, as `read` gives it. Failed tracks are rows whose ``status`` is ``failed``.

    Raises
    ------
    FileNotFoundError, ValueError, OSError, annotate.pipeline.RunError
        What the command prints as one line, before anything is changed.
    """
    from annotate.pipeline import RunError
    from annotate.pipeline import run as run_pipeline

    if options.dry_run:
        raise RunError("dry_run=True writes no table that could be returned; use the command annotate run --dry-run")
    audio = (options.audio,) if isinstance(options.audio, str | os.PathLike) else options.audio
    said = options.command_line or "annotate.run"
    run_pipeline(
        dataclasses.replace(options, audio=tuple(os.fspath(path) for path in audio), out=Path(options.out), command_line=said)
    )
    return read(options.out)


def __getattr__(name: str) -> Any:
    if name == "RunOptions":
        from annotate.pipeline import RunOptions

        return RunOptions
    raise AttributeError(f"module 'annotate' has no attribute {name!r}")
