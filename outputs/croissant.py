"""A table described as a data set by Croissant: where the file is, what each column means, in JSON-LD.

Source: MLCommons Croissant format specification, https://docs.mlcommons.org/croissant/. Needs the extra `standards`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outputs.table import Column, TableError

CONFORMS_TO = "http://mlcommons.org/croissant/1.1"
PARQUET = "application/x-parquet"


def describe_as_croissant(
    table: Path, columns: Sequence[Column], provenance: Mapping[str, Any], *, name: str, licence: str
) -> dict[str, Any]:
    """Describe a table as Croissant JSON-LD.

    Parameters
    ----------
    table : Path
        The Parquet file; its digest and size are taken from it, its place is relative to the description.
    columns : sequence of Column
        What its columns mean.
    provenance : mapping
        Of the table.
    name : str
        Of the data set.
    licence : str
        Of the data set: a URL or words.
    """
    import mlcroissant as mlc

    types = {
        "string": mlc.DataType.TEXT,
        "bool": mlc.DataType.BOOL,
        "int": mlc.DataType.INTEGER,
        "int64": mlc.DataType.INTEGER,
        "float": mlc.DataType.FLOAT,
    }
    with table.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    ctx = mlc.Context(conforms_to=CONFORMS_TO)
    file = mlc.FileObject(
        ctx=ctx,
        id="table",
        name="table",
        content_url=table.name,
        content_size=f"{table.stat().st_size} B",
        encoding_formats=[PARQUET],
        sha256=digest,
    )
    fields = [
        mlc.Field(
            ctx=ctx,
            id=f"tracks/{column.name}",
            name=column.name,
            description=_sentence(column),
            data_types=[types[column.type]],
            source=mlc.Source(ctx=ctx, file_object="table", extract=mlc.Extract(ctx=ctx, column=column.name)),
        )
        for column in columns
    ]
    records = mlc.RecordSet(ctx=ctx, id="tracks", name="tracks", description="One row a track.", fields=fields)
    bundle = provenance.get("bundle", {})
    metadata = mlc.Metadata(
        ctx=ctx,
        name=name,
        description=(
            f"Annotation of {provenance.get('corpus', {}).get('name', 'music')} by {provenance.get('tool', 'annotate')}, bundle "
            f"{bundle.get('name')} {bundle.get('version')} (SHA-256 {bundle.get('digest')}). Predictions of frozen models; human "
            "ratings only in columns that begin with rated_."
        ),
        license=[licence],
        cite_as=f"{name}, by {provenance.get('tool', 'annotate')} with bundle {bundle.get('name')} {bundle.get('version')}",
        url=table.name,
        date_published=provenance.get("time_utc"),
        version="1.0.0",
        distribution=[file],
        record_sets=[records],
    )
    content: dict[str, Any] = json.loads(json.dumps(metadata.to_json(), default=str))
    return content


def _sentence(column: Column) -> str:
    parts = [column.description or column.name]
    if column.unit:
        parts.append(f"unit: {column.unit}")
    if column.low is not None or column.high is not None:
        low, high = ("" if bound is None else f"{bound:g}" for bound in (column.low, column.high))
        parts.append(f"range: {low} to {high}")
    return "; ".join([*parts, f"from: {column.family}"])


def validate_croissant(path: Path) -> list[str]:
    """Check a description with mlcroissant, which also opens it; its warnings.

    Raises
    ------
    TableError
        With what mlcroissant says is wrong.
    """
    import mlcroissant as mlc

    logger = logging.getLogger("absl")  # where mlcroissant prints what it also returns
    heard, logger.disabled = logger.disabled, True
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = mlc.Dataset(jsonld=path)
    except mlc.ValidationError as error:
        raise TableError(f"{path}: not valid Croissant: {' '.join(str(error).split())}") from None
    finally:
        logger.disabled = heard
    return [line for line in map(str, dataset.metadata.ctx.issues.warnings) if line]
