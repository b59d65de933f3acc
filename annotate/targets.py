"""Where a table goes: one Parquet file, or a folder that is a dataset of them; either is replaced at once.

Conventions
-----------
- A name that ends in ``/``, or an existing folder, is a folder; any other name is a file.
- A file or folder that holds anything but a table of ours is refused, never overwritten.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from annotate.store import replace_atomically, replace_folder_atomically
from outputs.table import Column, TableError, read_provenance, write_dataset, write_table


class TargetError(ValueError):
    """A place where no table can be written; the message is one line."""


@dataclass(frozen=True)
class Target:
    """The place of one table."""

    path: Path
    is_folder: bool
    option: str  # that named it, for messages

    @classmethod
    def of(cls, path: str | os.PathLike[str], option: str) -> Self:
        """Read a place as the command line states it."""
        text = os.fspath(path)
        return cls(Path(text), text.endswith("/") or Path(text).is_dir(), option)

    def check(self) -> None:
        """Refuse a place that cannot be written, or that holds what is none of ours.

        Raises
        ------
        FileNotFoundError
            The folder above does not exist.
        TargetError
            The place holds something else.
        """
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.option} {self.path}: there is no folder {self.path.parent}; make it first")
        if self.is_folder and self.path.exists() and not self.path.is_dir():
            raise TargetError(f"{self.option} {self.path}/ is a file, not a folder; choose another name")
        self.held()

    def held(self) -> dict[str, Any] | None:
        """Provenance of the table that is there; None where there is nothing, or an empty folder.

        Raises
        ------
        TargetError
            The place holds something else.
        """
        if not self.path.exists() or (self.is_folder and not any(self.path.iterdir())):
            return None
        kind = "is a folder that holds other things" if self.is_folder else "exists"
        try:
            return read_provenance(self.path)
        except TableError as error:
            raise TargetError(
                f"{self.option} {self.path} {kind} and is not an annotation table ({error}); choose another name"
            ) from None

    def replace(
        self,
        rows: Callable[[], Iterable[Mapping[str, Any]]],
        columns: Sequence[Column],
        provenance: Mapping[str, Any],
        *,
        kept: Path | None,
    ) -> None:
        """Write the table in the place of the one that is there; `kept` says in an error where finished work lies."""
        if self.is_folder:
            replace_folder_atomically(self.path, lambda path: write_dataset(rows(), columns, provenance, path), kept=kept)
        else:
            replace_atomically(self.path, lambda path: write_table(rows(), columns, provenance, path), kept=kept)
