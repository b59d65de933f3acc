import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from outputs import table
from outputs.table import (
    SCHEMA_VERSION,
    Column,
    TableError,
    describe_table,
    read_columns,
    read_provenance,
    write_table,
)

COLUMNS = (
    Column("track", "string", "path relative to the root", None, None, None, "scan"),
    Column("track_id", "int64", "number of the track in its corpus", None, 1, None, "scan"),
    Column("status", "string", "ok or failed", None, None, None, "decode"),
    Column("error", "string", "why it failed", None, None, None, "decode"),
    Column("warning", "string", "what to know", None, None, None, "decode"),
    Column("channels", "int", "channels of the file", None, 1, None, "decode"),
    Column("midlevel_dissonance", "float", "dissonance", "rating", 1, 10, "midlevel"),
    Column("salient_dissonance_label", "bool", "salience over its threshold", None, None, None, "midlevel"),
)
PROVENANCE: dict[str, Any] = {
    "bundle": {"name": "base", "version": "1", "digest": "ab12"},
    "versions": {"librosa": "0.11.0"},
    "front_ends": {"stft": {"n_fft": 512, "hop_length": 256}},
    "command_line": ["annotate", "run", "Music Data/", "--out", "t.parquet"],
    "device": "cpu",
    "time_utc": "2026-01-02T03:04:05Z",
    "weights": {"probe": {"kernel": [[0.125] * 9] * 7, "bias": [0.0625] * 9}},
    "ids": [f"id{k}" for k in range(309)],
}
OK_ROW: dict[str, Any] = {
    "midlevel_dissonance": 3.25,
    "track": "Musik/ä 1.mp3",
    "track_id": 2**40,
    "status": "ok",
    "channels": 2,
    "salient_dissonance_label": True,
}
FAILED_ROW: dict[str, Any] = {
    "track": "b.mp3",
    "status": "failed",
    "error": "silent \x1b[31m",
    "track_id": None,
    "midlevel_dissonance": math.nan,
}
ROWS = [OK_ROW, FAILED_ROW]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.parquet"


def test_columns_come_back_in_their_order_with_what_they_mean(path):
    write_table(ROWS, COLUMNS, PROVENANCE, path)
    assert read_columns(path) == COLUMNS
    field = pq.read_schema(path).field("midlevel_dissonance")
    assert field.type == pa.float32()
    assert {key: value for key, value in field.metadata.items() if not key.startswith(b"PARQUET")} == {
        b"description": b"dissonance",
        b"unit": b"rating",
        b"low": b"1.0",
        b"high": b"10.0",
        b"family": b"midlevel",
    }


def test_what_does_not_exist_is_null_not_nan(path):
    write_table(ROWS, COLUMNS, PROVENANCE, path)
    failed = pq.read_table(path).slice(1).to_pylist()[0]
    assert failed == {column.name: None for column in COLUMNS} | {key: FAILED_ROW[key] for key in ("track", "status", "error")}
    assert pq.read_table(path).column("midlevel_dissonance").null_count == 1


def test_pandas_reads_proper_dtypes(path):
    write_table(ROWS, COLUMNS, PROVENANCE, path)
    schema = pq.read_schema(path)
    assert {b"pandas", b"annotate"} <= set(schema.metadata)
    frame = pd.read_parquet(path)
    assert list(frame.columns) == [column.name for column in COLUMNS]
    assert frame.dtypes.astype(str).to_dict() == {
        "track": "str",
        "track_id": "Int64",
        "status": "str",
        "error": "str",
        "warning": "str",
        "channels": "Int32",
        "midlevel_dissonance": "float32",
        "salient_dissonance_label": "boolean",
    }
    assert frame.index.equals(pd.RangeIndex(2))
    assert frame.loc[0, "track_id"] == 2**40
    assert frame.loc[0, "midlevel_dissonance"] == np.float32(3.25)
    assert frame["salient_dissonance_label"].isna().tolist() == [False, True]


def test_numpy_scalars_and_missing_values_of_pandas_are_accepted(path):
    row = {
        "track": np.str_("a"),
        "track_id": np.int64(7),
        "channels": pd.NA,
        "midlevel_dissonance": np.float32(0.1),
        "salient_dissonance_label": np.bool_(False),
    }
    write_table([row, {"track": "b", "midlevel_dissonance": 1}], COLUMNS, {}, path)
    first, second = pq.read_table(path).to_pylist()
    assert first == {column.name: None for column in COLUMNS} | {
        "track": "a",
        "track_id": 7,
        "midlevel_dissonance": float(np.float32(0.1)),
        "salient_dissonance_label": False,
    }
    assert second["midlevel_dissonance"] == 1.0


def test_no_rows_still_make_a_table(path):
    write_table(iter(()), COLUMNS, PROVENANCE, path)
    frame = pd.read_parquet(path)
    assert frame.shape == (0, len(COLUMNS))
    assert str(frame["track_id"].dtype) == "Int64"
    assert "0 rows" in describe_table(path)


def test_rows_are_written_in_groups_while_they_come(path, monkeypatch):
    monkeypatch.setattr(table, "ROW_GROUP_ROWS", 100)
    monkeypatch.setattr(table, "BATCH_ROWS", 10)
    pulled = 0
    written: list[tuple[int, int]] = []  # (rows pulled by then, rows of the group)

    class Recorder(pq.ParquetWriter):
        def write_table(self, group, row_group_size=None):
            written.append((pulled, group.num_rows))
            super().write_table(group, row_group_size)

    def rows():
        nonlocal pulled
        for number in range(250):
            pulled += 1
            yield {"track": f"{number:03d}"}

    monkeypatch.setattr(table.pq, "ParquetWriter", Recorder)
    write_table(rows(), COLUMNS, {}, path)
    assert written == [(100, 100), (200, 100), (250, 50)]
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [100, 100, 50]
    assert pd.read_parquet(path)["track"].tolist() == [f"{number:03d}" for number in range(250)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"status": "ok"}, r"row 1 lacks 'track'"),
        ({"track": None}, r"row 1 lacks 'track'"),
        ({"track": "x", "tempo": 1}, r"row 1 \(x\): tempo is no column"),
        ({"track": "x", "track_id": 1.5}, r"column track_id cannot hold 1\.5 as int64 \(track 'x'\)"),
        ({"track": "x", "channels": 2**31}, r"column channels cannot hold 2147483648 as int "),
        ({"track": "x", "status": 3}, r"column status cannot hold 3 as string"),
        ({"track": "x", "midlevel_dissonance": "3"}, r"column midlevel_dissonance cannot hold '3' as float"),
        ({"track": "x", "salient_dissonance_label": 1}, r"column salient_dissonance_label cannot hold 1 as bool"),
        ({"track": "x", "error": "\udcff"}, r"column error cannot hold"),
    ],
)
def test_a_row_that_does_not_fit_is_named_and_leaves_no_file(path, row, message):
    with pytest.raises(ValueError, match=message):
        write_table([OK_ROW, row], COLUMNS, PROVENANCE, path)
    assert not path.exists()


def test_an_interrupted_iterator_leaves_no_file(path):
    def rows():
        yield OK_ROW
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_table(rows(), COLUMNS, PROVENANCE, path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("columns", "provenance", "message"),
    [
        (COLUMNS, {"bias": math.nan}, r"provenance cannot be written as JSON: Out of range float"),
        (COLUMNS, {"bias": np.float32(1)}, r"provenance cannot be written as JSON: .*float32"),
        ((*COLUMNS, COLUMNS[0]), {}, r"columns named twice: track"),
        (COLUMNS[1:], {}, r"columns lack 'track'"),
        ((*COLUMNS, Column("x", "double", "", None, None, None, "")), {}, r"column x: type='double' must be one of"),
    ],
)
def test_bad_columns_and_provenance_are_refused_before_the_file_is_touched(path, columns, provenance, message):
    path.write_bytes(b"kept")
    with pytest.raises(ValueError, match=message):
        write_table(ROWS, columns, provenance, path)
    assert path.read_bytes() == b"kept"


def test_provenance_comes_back_with_the_schema_version(path):
    write_table(ROWS, COLUMNS, PROVENANCE, path)
    provenance = read_provenance(path)
    assert provenance == PROVENANCE | {"schema_version": SCHEMA_VERSION}
    write_table(ROWS, COLUMNS, provenance, path)
    assert read_provenance(path) == provenance


def test_description_says_it_all_and_dumps_no_weights(path):
    write_table([*ROWS, {"track": "c", "status": "ok", "warning": "padded"}], COLUMNS, PROVENANCE, path)
    lines = describe_table(path).splitlines()
    assert lines[0] == f"{path}: 3 rows, 8 columns"
    assert lines[1] == "2 ok, 1 failed, 1 warnings"
    assert lines[2] == r"  failed: b.mp3: silent \x1b[31m"
    assert "  midlevel (2): midlevel_dissonance salient_dissonance_label" in lines
    assert "  command_line: annotate run 'Music Data/' --out t.parquet" in lines
    assert "      kernel: 7 × 9 numbers" in lines
    assert "      bias: 9 numbers" in lines
    assert "      hop_length: 256" in lines
    assert "  device: cpu" in lines
    assert "  ids: 309 items" in lines
    assert "0.125" not in "\n".join(lines)


def test_description_names_the_first_failures_only(path):
    rows = [{"track": f"{k}.mp3", "status": "failed", "error": "cannot be decoded"} for k in range(12)]
    write_table(rows, COLUMNS, {}, path)
    lines = describe_table(path).splitlines()
    assert lines[1] == "0 ok, 12 failed, 0 warnings"
    assert lines[6:8] == ["  failed: 4.mp3: cannot be decoded", "  and 7 more"]


@pytest.mark.parametrize("read", [read_provenance, read_columns, describe_table])
def test_other_files_are_refused_in_one_line(path, read):
    path.write_bytes(b"ID3 no Parquet at all\n" * 10)
    with pytest.raises(TableError, match="not a readable Parquet file") as caught:
        read(path)
    assert "\n" not in str(caught.value)
    pd.DataFrame({"track": ["a"]}).to_parquet(path)
    with pytest.raises(TableError, match="not a table written by annotate"):
        read(path)
    for metadata, message in (
        (b"{", "is not JSON"),
        (b"[]", "holds no schema_version"),
        (json.dumps({"schema_version": SCHEMA_VERSION + 1}).encode(), r"schema version 2 is newer than 1"),
    ):
        pq.write_table(pa.table({"track": ["a"]}).replace_schema_metadata({b"annotate": metadata}), path)
        with pytest.raises(TableError, match=message):
            read(path)


def test_a_truncated_table_is_refused(path):
    write_table(ROWS, COLUMNS, PROVENANCE, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TableError, match="not a readable Parquet file"):
        describe_table(path)


def test_a_missing_file_stays_a_missing_file(path):
    with pytest.raises(FileNotFoundError, match=r"t\.parquet"):
        read_provenance(path)


def test_a_dataset_is_one_table_for_every_reader(tmp_path):
    import duckdb
    import polars

    columns = [Column("track", "string", "", None, None, None, "scan"), Column("value", "float", "", "s", 0.0, None, "scan")]
    rows = [{"track": f"{number:04d}", "value": None if number % 7 == 0 else number / 8} for number in range(1050)]
    folder = tmp_path / "t"
    folder.mkdir()
    table.write_dataset(rows, columns, PROVENANCE, folder, file_rows=500, row_group_rows=125)
    files = sorted(file.name for file in folder.iterdir())
    assert files == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    sizes = [pq.ParquetFile(folder / name).metadata for name in files]
    assert [[one.row_group(k).num_rows for k in range(one.num_row_groups)] for one in sizes] == [[125] * 4, [125] * 4, [50]]
    expected = [row["track"] for row in rows]
    by_pandas = pd.read_parquet(folder)
    assert by_pandas["track"].tolist() == expected
    assert str(by_pandas["value"].dtype) == "float32"
    by_duckdb = duckdb.sql(f"SELECT track, value FROM read_parquet('{folder}/*.parquet') ORDER BY track").fetchall()
    by_polars = polars.read_parquet(folder)
    assert by_duckdb == by_polars.sort("track").rows() == [(row["track"], row["value"]) for row in rows]
    assert by_polars["track"].to_list() == expected
    # ours
    assert [row["track"] for row in table.read_rows(folder)] == expected
    assert table.read_columns(folder) == tuple(columns)
    assert table.read_provenance(folder) == {**PROVENANCE, "schema_version": table.SCHEMA_VERSION}
    assert "1050 rows, 2 columns in 3 files" in describe_table(folder)
    (folder / "part-00001.parquet").unlink()
    with pytest.raises(table.TableError, match=r"part-00002\.parquet where part-00001\.parquet is expected"):
        table.read_provenance(folder)


def test_no_rows_still_make_a_dataset(tmp_path):
    table.write_dataset(iter(()), COLUMNS, PROVENANCE, tmp_path)
    assert pd.read_parquet(tmp_path).shape == (0, len(COLUMNS))


@pytest.mark.parametrize(("file_rows", "row_group_rows"), [(100, 0), (10, 20), (150, 100)])
def test_sizes_of_a_dataset_must_fit(tmp_path, file_rows, row_group_rows):
    with pytest.raises(ValueError, match="must be a multiple of"):
        table.write_dataset([], COLUMNS, {}, tmp_path, file_rows=file_rows, row_group_rows=row_group_rows)
