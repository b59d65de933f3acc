"""Labels and splits that a user brings: a CSV with an id column, published split files; and what training refuses.

Conventions
-----------
- A label of `Rated.table` is a column ``<target>_<label>`` on the target's own scale: `midlevel` 1-10, `film` 1-9, `gems` share
  0-1, `va` means 1-9 and spreads, `vad` 1-9. A CSV may leave the target out (``tension``) where `--labels-for` names it.
- An id is that of the corpus (``track_key``), the path below the corpus's root, or the file name without its ending; the first of
  these by which any id is found counts for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from annotate.console import log
from models.labels import FILM, GEMS, MIDLEVEL, VAD
from models.va import OUTPUTS as VA

SCALES: dict[str, tuple[tuple[str, ...], float, float]] = {
    "midlevel": (MIDLEVEL.labels, MIDLEVEL.low, MIDLEVEL.high),
    "film": (FILM.labels, FILM.low, FILM.high),
    "gems": (GEMS.labels, GEMS.low, GEMS.high),
    "va": (VA, 0.0, 9.0),  # spreads from 0, means from 1
    "vad": (VAD.labels, VAD.low, VAD.high),
}
GROUPS = ("artist", "album", "genre")  # further columns of a label file that are used


@dataclass(frozen=True)
class LabelFile:
    """Ratings from a CSV."""

    path: Path
    id_column: str
    target: str | None = None  # of the columns that name a label alone


@dataclass(frozen=True)
class Split:
    """A published split: ids of the test part and, where the publication has one, of the validation part."""

    test: Path
    validation: Path | None = None
    train: Path | None = None  # None: all other tracks


def some(items: Iterable[object], most: int = 5) -> str:
    """First few of a list, and how many more there are."""
    shown = [str(item) for item in items]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def columns_of(target: str) -> list[str]:
    """Target columns of `Rated.table`, in the order of a model's output."""
    return [f"{target}_{label}" for label in SCALES[target][0]]


def limits_of(column: str) -> tuple[float, float]:
    """Lowest and highest value that a target column can have."""
    target = column.partition("_")[0]
    _, low, high = SCALES[target]
    if target == "va":
        return (1.0, 9.0) if column.endswith("_mean") else (0.0, 4.0)
    return low, high


def read_label_file(file: LabelFile) -> pd.DataFrame:
    """Read a CSV of ratings: index the ids as text, columns the targets, and artist, album, genre where it has them.

    Raises
    ------
    ValueError
        Without the id column or any label, for ids that are there twice or empty, for cells that are no finite number, and for
        values outside of the label's range; naming the ids.
    """
    try:
        table = pd.read_csv(file.path, dtype="str", keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{file.path}: {' '.join(str(error).split())}") from None
    table.columns = [str(name).strip() for name in table.columns]
    if file.id_column not in table:
        raise ValueError(f"{file.path}: no column {file.id_column!r}; it has {some(table.columns, 12)}")
    ids = table[file.id_column].str.strip()
    if (ids == "").any():
        raise ValueError(f"{file.path}: {file.id_column} is empty in line {some(np.flatnonzero(ids == '') + 2)}")
    if ids.duplicated().any():
        raise ValueError(f"{file.path}: {file.id_column} must be there once: {some(ids[ids.duplicated()].unique())}")
    named: dict[str, str] = {}
    for target in SCALES:
        for column in columns_of(target):
            plain = column.removeprefix(f"{target}_")
            choices = [column, f"rated_{column}"]
            if file.target == target:
                choices += [plain, f"rated_{plain}", plain.removesuffix("_mean")]
            found = [name for name in choices if name in table and name != file.id_column]
            if found:
                named[column] = found[0]
    if not named:
        raise ValueError(
            f"{file.path}: no column holds a label: name columns <target>_<label>, such as film_tension or gems_sadness, or say "
            f"with --labels-for which of {', '.join(SCALES)} the plain names belong to"
        )
    columns: dict[str, object] = {}
    for column, source in named.items():
        text = table[source].str.strip()
        values = pd.to_numeric(text, errors="coerce")
        unknown = ~np.isfinite(values)
        if unknown.any():
            raise ValueError(f"{file.path}: {source} must be a finite number in every row: {_cells(ids, text, unknown)}")
        low, high = limits_of(column)
        outside = ~values.between(low, high)
        if outside.any():
            raise ValueError(f"{file.path}: {source} must be in {low:g}-{high:g}: {_cells(ids, text, outside)}")
        columns[column] = values.astype(float).to_numpy()
    for name in GROUPS:
        if name in table:
            columns[name] = table[name].str.strip().replace("", None).to_numpy()
    return pd.DataFrame(columns, index=pd.Index(ids, name="id"))


def _cells(ids: pd.Series[str], text: pd.Series[str], marked: pd.Series[bool]) -> str:
    return some(f"{key} ({value!r})" for key, value in zip(ids[marked], text[marked], strict=True))


def match_ids(ids: Sequence[str], track_keys: Sequence[str], tracks: Sequence[str], source: str) -> pd.Series[int]:
    """Row of the track that each id belongs to; -1 where none does.

    Raises
    ------
    ValueError
        If no id belongs to any track, or one belongs to several.
    """
    stems = [PurePosixPath(track).stem for track in tracks]
    without = [str(PurePosixPath(track).with_suffix("")) for track in tracks]
    for names in (list(track_keys), list(tracks), without, stems, [_plain_number(stem) for stem in stems]):
        rows = pd.Series(range(len(names)), index=pd.Index(names, dtype=object))
        wanted = [key for key in ids if key in rows.index]
        if wanted:
            twice = sorted({key for key in wanted if names.count(key) > 1})
            if twice:
                raise ValueError(f"{source}: ids that belong to several tracks: {some(twice)}")
            return rows.reindex(list(ids)).fillna(-1).astype(int)
    raise ValueError(
        f"{source}: none of its {len(ids)} ids ({some(ids)}) is that of a track ({some(track_keys)}): "
        "an id is the corpus's own, the path below its folder, or the file name without its ending"
    )


def _plain_number(text: str) -> str:
    return str(int(text)) if text.isdecimal() else text


def read_ids(path: Path) -> list[str]:
    """Ids of a split file, one a line.

    Raises
    ------
    ValueError
        If it is empty or an id is there twice.
    """
    ids = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not ids:
        raise ValueError(f"{path}: holds no id")
    twice = sorted({key for key in ids if ids.count(key) > 1})
    if twice:
        raise ValueError(f"{path}: ids that are there twice: {some(twice)}")
    return ids


def find_split(path: Path) -> Split:
    """Published split at `path`: a folder with ``split_test.txt`` (and train, validation), or the file of the test ids alone.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    if path.is_dir():
        files = {part: path / f"split_{part}.txt" for part in ("test", "validation", "train")}
        if not files["test"].is_file():
            raise FileNotFoundError(f"{path}: no split_test.txt, one id a line, in this folder")
        held = {part: file if file.is_file() else None for part, file in files.items()}
        return Split(files["test"], held["validation"], held["train"])
    if not path.is_file():
        raise FileNotFoundError(f"no such file or folder: {path}")
    return Split(path)


PARTS = {"train": 1, "test": 0, "validation": -1, "none": -2}


def parts_of(split: Split, table: pd.DataFrame) -> pd.Series[str]:
    """Part of a published split that each track of `Rated.table` is in: train, test, validation, or none.

    Raises
    ------
    ValueError
        If parts overlap, or no track is in the test or in the training part.
    """
    part = pd.Series("train" if split.train is None else "none", index=table.index, dtype=object)
    seen: dict[str, Path] = {}
    for name, path in (("train", split.train), ("validation", split.validation), ("test", split.test)):
        if path is None:
            continue
        ids = read_ids(path)
        shared = [key for key in ids if key in seen]
        if shared:
            raise ValueError(f"{path} and {seen[shared[0]]} share ids: {some(shared)}; the parts of a split must be disjoint")
        seen |= dict.fromkeys(ids, path)
        rows = match_ids(ids, table["track_key"].astype(str).tolist(), table["track"].astype(str).tolist(), str(path))
        missing = rows.index[rows < 0]
        if len(missing):
            log.warning("%s: %d of %d ids belong to no track: %s", path, len(missing), len(ids), some(missing))
        part.iloc[rows[rows >= 0].to_numpy()] = name
    for name in ("test", "train"):
        if not (part == name).any():
            raise ValueError(f"{split.test}: no track is left in the {name} part")
    return part


def check_labels(table: pd.DataFrame, columns: Sequence[str], family: str, rows: Sequence[int]) -> None:
    """Refuse labels that nothing can be learned from.

    Raises
    ------
    ValueError
        For a label that is constant over the tracks, or outside its range, naming it.
    """
    for column in columns:
        values = table[column].iloc[list(rows)].dropna() if column in table else pd.Series(dtype=float)
        if not len(values):
            continue
        low, high = limits_of(column)
        outside = values[~values.between(low - 1e-6, high + 1e-6)]
        if len(outside):
            keys = table["track_key"].loc[outside.index]
            raise ValueError(f"{column} must be in {low:g}-{high:g}: {some(keys)} (such as {outside.iloc[0]:g})")
        if len(values) > 1 and float(np.ptp(values)) == 0.0:
            raise ValueError(
                f"{column} is {values.iloc[0]:g} for all {len(values)} tracks: {family} cannot learn a constant label"
            )
