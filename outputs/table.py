"""The table: one Parquet file, or a folder of them, that says what its columns mean and where its numbers came from.

Conventions
-----------
- Columns keep the order in which they are given; what does not exist is a null, never a NaN.
- Each field's metadata holds its description, unit, low, high and family, as text; what a column lacks is left out.
- A large table may be a dataset: a folder of files ``part-00000.parquet``, ``part-00001.parquet``, … and nothing else, each
  with the schema and metadata of the table; their rows, in the order of the names, are its rows.
- Schema metadata: ``annotate`` is the provenance as JSON with its ``schema_version``, ``pandas`` is what pandas needs.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION: Final = 1
ROW_GROUP_ROWS: Final = 10_000
DATASET_FILE_ROWS: Final = 200_000  # of one file of a dataset: about 130 MB with every family
DATASET_ROW_GROUP_ROWS: Final = 50_000  # about 30 MB: DuckDB and Polars share row groups among threads, Spark splits at them
BATCH_ROWS: Final = 500  # rows held as Python objects at a time
PROVENANCE_KEY: Final = b"annotate"
LISTED_ROWS: Final = 5  # failed tracks that `describe_table` names
LISTED_NUMBERS: Final = 4  # longer lists of numbers, and matrices, are shown as sizes
LISTED_ITEMS: Final = 20  # longer lists are shown as sizes
LINE_WIDTH: Final = 100  # characters

ColumnType = Literal["string", "bool", "int", "int64", "float"]
_ARROW_TYPES: Final[dict[str, Any]] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
}
_PANDAS_TYPES: Final = {"string": "str", "bool": "boolean", "int": "Int32", "int64": "Int64", "float": "float32"}
PANDAS_TYPES: Final = {
    pa.string(): pd.StringDtype(na_value=math.nan),
    pa.bool_(): pd.BooleanDtype(),
    pa.int32(): pd.Int32Dtype(),
    pa.int64(): pd.Int64Dtype(),
}
COLUMN_NAME: Final = re.compile("[A-Za-z0-9_]{1,200}")
TEXT_COLUMNS: Final = frozenset(
    ("track", "track_key", "corpus", "group", "artist", "album", "title", "audio_sha256", "status", "error", "warning")
) | {"in_training"}
NUMBER_COLUMNS: Final = frozenset(("duration_s", "sample_rate_hz", "channels", "track_id", "rated_n"))
PROVENANCE_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    "tool": str,
    "time_utc": str,
    "bundle": dict,
    "families": list,
    "front_ends": dict,
    "corpus": dict,
    "options": dict,
    "versions": dict,
    "explanation": dict,
}
_Result = TypeVar("_Result")


class TableError(ValueError):
    """A file that is not a table of ours, in one line."""


@dataclass(frozen=True)
class Column:
    """What one column of a table means."""

    name: str
    type: ColumnType  # float: 32 bits; int: 32 bits, for counts; int64: for ids
    description: str
    unit: str | None
    low: float | None  # smallest possible value, in the unit
    high: float | None  # largest possible value, in the unit
    family: str  # what wrote it: a model family, or scan, decode, ratings


def write_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column], provenance: Mapping[str, Any], path: Path) -> None:
    """Write rows to a Parquet file, in row groups of 10 000; memory does not grow with their number.

    The file is written in place: the caller gives a temporary path and replaces. A refused row leaves no file behind.

    Parameters
    ----------
    rows : iterable of mappings
        Column name -> value. None, NaN and an absent key are nulls; every row has a ``track``.
    columns : sequence of Column
        In the order of the file.
    provenance : mapping
        Anything that JSON can say without NaN or infinities; gets the key ``schema_version``.
    path : Path
        Overwritten.

    Raises
    ------
    ValueError
        For a row without ``track``, a key that is no column, a value that its column cannot hold, and columns or
        provenance that cannot be written.
    """
    schema = _schema(columns, provenance)
    try:
        _write_file(_batches(rows, columns, schema), schema, path, ROW_GROUP_ROWS)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_dataset(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[Column],
    provenance: Mapping[str, Any],
    folder: Path,
    *,
    file_rows: int = DATASET_FILE_ROWS,
    row_group_rows: int = DATASET_ROW_GROUP_ROWS,
) -> None:
    """Write rows to a folder of Parquet files; memory holds one row group.

    Parameters
    ----------
    rows, columns, provenance
        As for `write_table`.
    folder : Path
        An empty folder; the caller gives a temporary one and replaces.
    file_rows, row_group_rows : int
        Rows of a file and of a row group, each at least one and a multiple of it; the last ones may be smaller.

    Raises
    ------
    ValueError
        As `write_table`; sizes that do not fit.
    """
    if row_group_rows < 1 or file_rows < row_group_rows or file_rows % row_group_rows:
        raise ValueError(f"file_rows={file_rows} must be a multiple of row_group_rows={row_group_rows}, which must be >= 1")
    schema = _schema(columns, provenance)
    batches = _batches(rows, columns, schema, size=math.gcd(BATCH_ROWS, row_group_rows))
    for number in count():
        first = next(batches, None)
        if first is None and number:
            return
        some = _up_to(file_rows, chain([] if first is None else [first], batches))
        _write_file(some, schema, folder / f"part-{number:05d}.parquet", row_group_rows)


def _up_to(n_rows: int, batches: Iterator[Any]) -> Iterator[Any]:
    """Batches until they hold `n_rows`; batches divide it."""
    held = 0
    while held < n_rows:
        batch = next(batches, None)
        if batch is None:
            return
        held += batch.num_rows
        yield batch


def _write_file(batches: Iterator[Any], schema: Any, path: Path, row_group_rows: int) -> None:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while group := list(_up_to(row_group_rows, batches)):
            writer.write_table(pa.Table.from_batches(group, schema), row_group_size=row_group_rows)


def table_files(path: Path) -> list[Path]:
    """The Parquet files of a table, in the order of its rows: itself, or the files of a dataset.

    Raises
    ------
    TableError
        A folder that holds no dataset of ours, or one that lacks files.
    """
    if not path.is_dir():
        return [path]
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        raise TableError(f"{path}: an empty folder")
    for number, name in enumerate(names):
        if name != f"part-{number:05d}.parquet":
            expected = f"part-{number:05d}.parquet"
            raise TableError(f"{path}: not a dataset of ours: {_printable(name)} where {expected} is expected")
    return [path / name for name in names]


def read_provenance(path: Path) -> dict[str, Any]:
    """Read the provenance of a table.

    Raises
    ------
    TableError
        If the file is not Parquet, was not written by `write_table`, or has a newer schema version.
    """
    return _provenance(_read(table_files(path)[0], lambda file: file.schema_arrow), path)


def read_columns(path: Path) -> tuple[Column, ...]:
    """Read what the columns of a table mean, in their order; errors as `read_provenance`."""
    schema = _read(table_files(path)[0], lambda file: file.schema_arrow)
    _provenance(schema, path)
    return _columns(schema, path)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table one by one, a few hundred of them in memory; errors as `read_provenance`."""
    columns = read_columns(path)
    names = [column.name for column in columns]
    for file in table_files(path):
        with file.open("rb") as stream, _unreadable(path):
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=BATCH_ROWS, columns=names):
                batch.validate(full=True)
                yield from batch.to_pylist()


def read_frame(path: Path) -> pd.DataFrame:
    """Read a whole table, a row a track, in pandas' nullable types where numbers may be absent; errors as `read_provenance`."""
    columns = read_columns(path)
    parts = [_read(file, lambda file: _whole(file.read())) for file in table_files(path)]
    with _unreadable(path):
        whole = pa.concat_tables(parts).replace_schema_metadata(None)
        frame: pd.DataFrame = whole.select([column.name for column in columns]).to_pandas(types_mapper=PANDAS_TYPES.get)
    return frame


def describe_table(path: Path) -> str:
    """Say in words what a table holds and where it came from; errors as `read_provenance`.

    Weights are shown by their size, and the tracks that failed by name (the first five).
    """
    provenance = read_provenance(path)
    columns = read_columns(path)
    names = [column.name for column in columns]
    state = [name for name in ("track", "status", "error", "warning") if name in names]
    files = table_files(path)
    read = [_read(file, lambda file: (file.metadata.num_rows, _whole(file.read(columns=state)))) for file in files]
    n_rows = sum(rows for rows, _ in read)
    with _unreadable(path):
        table = pa.concat_tables([part for _, part in read]) if state else pa.table({})
    in_files = f" in {len(files)} files" if path.is_dir() else ""
    lines = [f"{_printable(str(path))}: {n_rows} rows, {len(columns)} columns{in_files}", *_states(table.to_pydict())]
    lines += ["", "Columns by family"]
    for family in dict.fromkeys(column.family for column in columns):
        members = [column.name for column in columns if column.family == family]
        text = f"  {_printable(family)} ({len(members)}): {_printable(' '.join(members))}"
        lines += textwrap.wrap(text, LINE_WIDTH, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)
    lines += ["", "Provenance", *_tree(provenance, "  ")]
    return "\n".join(lines)


def _schema(columns: Sequence[Column], provenance: Mapping[str, Any]) -> Any:
    twice = [name for name, count in Counter(column.name for column in columns).items() if count > 1]
    if twice:
        raise ValueError(f"columns named twice: {', '.join(twice)}")
    if "track" not in (column.name for column in columns):
        raise ValueError("columns lack 'track', which every row must have")
    for column in columns:
        if column.type not in _ARROW_TYPES:
            raise ValueError(f"column {column.name}: type={column.type!r} must be one of {', '.join(_ARROW_TYPES)}")
    try:
        text = json.dumps({**provenance, "schema_version": SCHEMA_VERSION}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"provenance cannot be written as JSON: {error}") from error
    empty = pd.DataFrame({column.name: pd.Series(dtype=_PANDAS_TYPES[column.type]) for column in columns})
    pandas_key = pa.Schema.from_pandas(empty, preserve_index=False).metadata[b"pandas"]
    fields = [pa.field(column.name, _ARROW_TYPES[column.type], metadata=_field_metadata(column)) for column in columns]
    return pa.schema(fields, metadata={PROVENANCE_KEY: text.encode(), b"pandas": pandas_key})


def _field_metadata(column: Column) -> dict[str, str]:
    known = {"description": column.description, "unit": column.unit, "family": column.family}
    bounds = {"low": column.low, "high": column.high}
    return {key: text for key, text in known.items() if text is not None} | {
        key: repr(float(bound)) for key, bound in bounds.items() if bound is not None
    }


def _batches(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column], schema: Any, size: int | None = None) -> Iterator[Any]:
    names = [column.name for column in columns]
    known = frozenset(names)
    remaining = iter(rows)
    size = BATCH_ROWS if size is None else size
    first = 0
    while batch := list(islice(remaining, size)):
        for number, row in enumerate(batch, start=first):
            if row.get("track") is None:
                raise ValueError(f"row {number} lacks 'track'")
            unknown = [str(key) for key in row if key not in known]
            if unknown:
                raise ValueError(f"row {number} ({row['track']}): {', '.join(unknown)} is no column of the table")
        yield pa.record_batch([_array(batch, column) for column in columns], schema=schema)
        first += len(batch)


def _array(rows: Sequence[Mapping[str, Any]], column: Column) -> Any:
    try:
        return _arrow([row.get(column.name) for row in rows], column.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        for row in rows:
            value = row.get(column.name)
            try:
                _arrow([value], column.type)
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                rule = f"column {column.name} cannot hold {value!r} as {column.type}"
                raise ValueError(f"{rule} (track {row['track']!r})") from error
        raise


def _arrow(values: Sequence[Any], column_type: ColumnType) -> Any:
    # only NaN differs from itself
    present = [None if value is None or value is pd.NA or value != value else value for value in values]
    if column_type in ("int", "int64") and any(value is not None and int(value) != value for value in present):
        raise ValueError("not a whole number")  # Arrow would cut it off
    return pa.array(present, _ARROW_TYPES[column_type])


@contextlib.contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    """Turn what Arrow raises on a damaged file into a `TableError`."""
    try:
        yield
    except TableError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise TableError(f"{path}: not a readable Parquet file ({_first_line(error)})") from error


def _read(path: Path, what: Callable[[Any], _Result]) -> _Result:
    with path.open("rb") as stream, _unreadable(path):
        return what(pq.ParquetFile(stream))


def _whole(table: Any) -> Any:
    """Check a table's values, too: lengths, and that text is UTF-8."""
    table.validate(full=True)
    return table


def _provenance(schema: Any, path: Path) -> dict[str, Any]:
    text = (schema.metadata or {}).get(PROVENANCE_KEY)
    if text is None:
        raise TableError(f"{path}: a Parquet file, but not a table written by annotate (no 'annotate' metadata)")
    try:
        provenance = json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise TableError(f"{path}: its 'annotate' metadata is not JSON ({_first_line(error)})") from error
    version = provenance.get("schema_version") if isinstance(provenance, dict) else None
    if not isinstance(version, int):
        raise TableError(f"{path}: its 'annotate' metadata holds no schema_version")
    if version > SCHEMA_VERSION:
        raise TableError(f"{path}: schema version {version} is newer than {SCHEMA_VERSION}, the newest known here")
    for key, expected in PROVENANCE_TYPES.items():
        if key in provenance and not isinstance(provenance[key], expected):
            raise TableError(f"{path}: its 'annotate' metadata is broken: {key} is of the type {type(provenance[key]).__name__}")
    if not all(isinstance(family, str) for family in provenance.get("families", ())):
        raise TableError(f"{path}: its 'annotate' metadata is broken: families must be names")
    return {str(key): value for key, value in provenance.items()}


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _columns(schema: Any, path: Path) -> tuple[Column, ...]:
    with _unreadable(path):  # names and metadata that are not UTF-8
        columns = tuple(_column(field, path) for field in schema)
    names = [column.name for column in columns]
    if "track" not in names:
        raise TableError(f"{path}: no column track")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TableError(f"{path}: columns there twice: {', '.join(twice)}")
    return columns


def _column(field: Any, path: Path) -> Column:
    if not COLUMN_NAME.fullmatch(field.name):  # names of columns become names of a report's files
        raise TableError(f"{path}: {_printable(field.name)!r} is no column name (letters, digits, _)")
    if field.name in TEXT_COLUMNS and field.type != pa.string():
        raise TableError(f"{path}: column {field.name} has the type {field.type}, it must be string")
    if field.name in NUMBER_COLUMNS and field.type not in (pa.float32(), pa.int32(), pa.int64()):
        raise TableError(f"{path}: column {field.name} has the type {field.type}, it must be a number")
    types = [name for name, arrow_type in _ARROW_TYPES.items() if arrow_type == field.type]
    if not types:
        raise TableError(f"{path}: column {field.name} has the type {field.type}, which no table of ours has")
    metadata = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
    low, high = metadata.get("low"), metadata.get("high")
    for bound in (low, high):
        if bound is not None and not math.isfinite(float(bound)):
            raise TableError(f"{path}: column {field.name} has the bound {bound}, which is no number")
    return Column(
        name=field.name,
        type=types[0],  # type: ignore[arg-type]  # the keys of _ARROW_TYPES are the ColumnTypes
        description=metadata.get("description", ""),
        unit=metadata.get("unit"),
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        family=metadata.get("family", ""),
    )


def _states(table: Mapping[str, Sequence[str | None]]) -> list[str]:
    if "status" not in table:
        return []
    status = Counter("null" if state is None else state for state in table["status"])
    n_warnings = sum(warning is not None for warning in table.get("warning", ()))
    lines = [", ".join(f"{status.pop(state, 0)} {state}" for state in ("ok", "failed")) + f", {n_warnings} warnings"]
    lines += [f"{count} with status {_printable(state)}" for state, count in status.items()]
    nothing = [None] * len(table["status"])
    tracks, errors = table.get("track", nothing), table.get("error", nothing)
    failed = [number for number, state in enumerate(table["status"]) if state == "failed"]
    lines += [
        f"  failed: {_printable(str(tracks[number]))}: {_printable(errors[number] or 'no reason given')}"
        for number in failed[:LISTED_ROWS]
    ]
    if len(failed) > LISTED_ROWS:
        lines.append(f"  and {len(failed) - LISTED_ROWS} more")
    return lines


def _tree(content: Mapping[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for key, value in content.items():
        head = f"{indent}{_printable(str(key))}:"
        if isinstance(value, dict) and value:
            lines += [head, *_tree(value, indent + "  ")]
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            lines += [head, *_tree({str(number): item for number, item in enumerate(value)}, indent + "  ")]
        else:
            lines.append(f"{head} {_text(key, value)}")
    return lines


def _text(key: str, value: Any) -> str:
    if isinstance(value, list):
        shape = _shape(value)
        if shape is not None and (len(shape) > 1 or shape[0] > LISTED_NUMBERS):
            return " × ".join(str(size) for size in shape) + " numbers"
        if "command" in key and all(isinstance(item, str) for item in value):
            return _printable(shlex.join(value))
        if len(value) > LISTED_ITEMS:
            return f"{len(value)} items"
        return ", ".join(_text("", item) for item in value) or "none"
    return _printable(value) if isinstance(value, str) else json.dumps(value)


def _shape(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return ()
    if not isinstance(value, list) or not value:
        return None
    shapes = {_shape(item) for item in value}
    inner = shapes.pop()
    return None if shapes or inner is None else (len(value), *inner)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
