"""A table's rows as JAMS files, one a track, for tools that read the standard of music annotation.

What applies is written: `mood_thayer` (valence, arousal, on the table's own scales), `tag_open` (genre; labels that are set),
`vector` (a block of columns of one family), `tempo`, and `note_midi` where notes are given. Every annotation spans the whole
track and says in its metadata which columns it is, by which tool and bundle, in which unit.

Source: Humphrey et al., "JAMS: A JSON Annotated Music Specification for Reproducible MIR Research", ISMIR 2014. Needs the extra
`standards`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from outputs.table import Column

Note = tuple[float, float, float, float]  # onset s, offset s, MIDI pitch, velocity 0-127
WHOLE_RATINGS = ("rating", "share", "probability")  # units of columns that make vectors


def jams_of(row: Mapping[str, Any], columns: Sequence[Column], provenance: Mapping[str, Any], notes: Iterable[Note] = ()) -> Any:
    """Make one track's JAMS object from its row; validated against the schema.

    Parameters
    ----------
    row : mapping
        Column name -> value, None where there is none; needs ``track`` and ``duration_s``.
    columns : sequence of Column
        Of the table, in its order.
    provenance : mapping
        Of the table.
    notes : iterable of Note
        Of the transcription, where there is one.

    Raises
    ------
    jams.exceptions.SchemaError
        If what was made is not valid JAMS.
    """
    import jams

    duration = float(row["duration_s"])
    jam = jams.JAMS()
    jam.file_metadata.duration = duration
    for ours, theirs in (("title", "title"), ("artist", "artist"), ("album", "release")):
        if row.get(ours) is not None:
            setattr(jam.file_metadata, theirs, row[ours])
    jam.sandbox.update(
        track=row["track"],
        track_key=row.get("track_key"),
        corpus=row.get("corpus"),
        audio_sha256=row.get("audio_sha256"),
        in_training=row.get("in_training"),
        warning=row.get("warning"),
    )

    def annotation(namespace: str, family: str, names: Sequence[str], **sandbox: Any) -> Any:
        tool, bundle = str(provenance.get("tool", "annotate")), provenance.get("bundle", {})
        metadata = jams.AnnotationMetadata(
            data_source="program",
            annotation_tools=f"{tool}, family {family}",
            version=f"bundle {bundle.get('name')} {bundle.get('version')}, SHA-256 {bundle.get('digest')}",
            corpus=str(row.get("corpus") or ""),
        )
        made = jams.Annotation(namespace=namespace, annotation_metadata=metadata, time=0.0, duration=duration)
        made.sandbox.update(columns=list(names), **sandbox)
        jam.annotations.append(made)
        return made

    by_name = {column.name: column for column in columns}
    for name, column in by_name.items():
        if not name.endswith(("valence_mean", "crnn_valence")) or name.startswith("rated_"):
            continue
        arousal = name.replace("valence", "arousal")
        if row.get(name) is not None and row.get(arousal) is not None:
            made = annotation("mood_thayer", column.family, (name, arousal), unit=column.unit, description=column.description)
            made.append(time=0.0, duration=duration, value=[float(row[name]), float(row[arousal])], confidence=None)
    for family, names in _vectors(columns).items():
        if all(row.get(name) is not None for name in names):
            made = annotation("vector", by_name[names[0]].family, names, block=family, unit=by_name[names[0]].unit)
            made.append(time=0.0, duration=duration, value=[float(row[name]) for name in names], confidence=None)
    genres = [(f"genre{suffix}", f"genre{suffix}_p") for suffix in ("", "_2", "_3")]
    genres = [pair for pair in genres if row.get(pair[0]) is not None]
    if genres:
        made = annotation("tag_open", by_name["genre"].family, [name for name, _ in genres])
        for name, probability in genres:
            made.append(time=0.0, duration=duration, value=str(row[name]), confidence=float(row[probability]))
    for family in dict.fromkeys(column.family for column in columns if column.type == "bool"):
        names = [column.name for column in columns if column.type == "bool" and column.family == family]
        known = [name for name in names if row.get(name) is not None]
        if known:
            made = annotation("tag_open", family, names)
            for name in known:
                if row[name]:
                    value = name.removesuffix("_label")
                    made.append(time=0.0, duration=duration, value=value, confidence=float(row[value]))
    if row.get("midi_tempo_bpm") is not None:
        made = annotation("tempo", "notes", ("midi_tempo_bpm",), confidence="salience of the only tempo that is given")
        made.append(time=0.0, duration=duration, value=float(row["midi_tempo_bpm"]), confidence=1.0)
    events = list(notes)
    if events:
        made = annotation("note_midi", "notes", (), velocities=[velocity for *_, velocity in events])
        for onset, offset, pitch, _ in events:
            made.append(time=onset, duration=max(offset - onset, 0.0), value=pitch, confidence=None)
    jam.validate(strict=True)
    return jam


def _vectors(columns: Sequence[Column]) -> dict[str, list[str]]:
    """Blocks of columns that are one vector each: those of one family, unit and prefix, in the table's order."""
    blocks: dict[str, list[str]] = {}
    for column in columns:
        unit = column.unit or ""
        if column.type != "float" or not unit.startswith(WHOLE_RATINGS) or column.family in ("notes", "ratings"):
            continue
        if column.name.endswith(("_sd", "_p")) or "valence_" in column.name or "arousal_" in column.name:
            continue
        prefix = (
            column.name.split("_")[0] if column.family not in ("descriptors", "best") else "_".join(column.name.split("_")[:2])
        )
        blocks.setdefault(prefix, []).append(column.name)
    return {prefix: names for prefix, names in blocks.items() if len(names) > 1}


def write_jams(jam: Any, path: Path) -> None:
    """Write a JAMS object; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.tmp")
    try:
        temporary.write_text(jam.dumps(indent=1), encoding="utf-8")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
