"""A table in other forms: CSV, a Croissant description, and JAMS files beside the transcriptions."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

from annotate.store import replace_atomically
from annotate.worker import beside
from outputs.jams_export import Note, jams_of, write_jams
from outputs.table import TableError, read_columns, read_frame, read_provenance, read_rows


def need(package: str, option: str) -> None:
    """Refuse an option whose package is not installed.

    Raises
    ------
    ValueError
        With how to install it.
    """
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{option} needs {package}: install the extra 'standards' (uv sync --extra standards)")


def check_place(path: Path, option: str, table: Path) -> None:
    """Refuse a place that cannot be written, or that is the table itself.

    Raises
    ------
    FileNotFoundError, ValueError
        With the option.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{option} {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder, it must be a file name")
    if path.exists() and os.path.samefile(path, table):
        raise ValueError(f"{option} {path} is the table itself; choose another name")


def export_csv(table: Path, path: Path) -> str:
    """Write the table as CSV in UTF-8, a header line, empty where there is no value; what was written, in words."""
    check_place(path, "--csv", table)
    frame = read_frame(table)
    replace_atomically(path, lambda temporary: frame.to_csv(temporary, index=False))
    return f"{path}: {len(frame)} rows, {frame.shape[1]} columns"


def export_croissant(table: Path, path: Path, licence: str) -> str:
    """Write and validate the Croissant description of a table, which must lie beside it; what was written, in words."""
    need("mlcroissant", "--croissant")
    from outputs.croissant import describe_as_croissant, validate_croissant

    check_place(path, "--croissant", table)
    columns, provenance = read_columns(table), read_provenance(table)
    if path.parent.resolve() != table.parent.resolve():
        raise ValueError(f"--croissant {path} must lie beside the table ({table.parent}): it names the file without its folder")
    content = describe_as_croissant(table, columns, provenance, name=table.stem, licence=licence)

    def write(temporary: Path) -> None:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        validate_croissant(temporary)

    replace_atomically(path, write)
    return f"{path}: {len(columns)} fields, valid Croissant {content['conformsTo'].rpartition('/')[2]}"


def export_jams(table: Path, folder: Path, midi: Path | None) -> str:
    """Write a JAMS file for each track that is ok, under its whole identity; what was written, in words."""
    need("jams", "--jams")
    columns, provenance = read_columns(table), read_provenance(table)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--jams {folder} is not a folder")
    if midi is not None and not midi.is_dir():
        raise FileNotFoundError(f"--midi {midi}: no such folder; run annotate run … --midi {midi} first")
    written = failed = without_notes = 0
    for row in read_rows(table):
        if row.get("status") == "failed" or row.get("duration_s") is None:
            failed += 1
            continue
        track = str(row["track"])
        notes: list[Note] = []
        if midi is not None:
            path = beside(midi, track, ".mid")
            if path.exists():
                notes = read_notes(path)
            without_notes += not path.exists()
        write_jams(jams_of(row, columns, provenance, notes), beside(folder, track, ".jams"))
        written += 1
    said = f"{folder}: {written} JAMS files"
    if failed:
        said += f", none for {failed} failed tracks"
    if without_notes:
        said += f", {without_notes} without notes (no transcription in {midi})"
    return said


def read_notes(path: Path) -> list[Note]:
    """Notes of a MIDI file: onset and offset in seconds, MIDI pitch, velocity; by onset.

    Raises
    ------
    TableError
        If it is no MIDI file.
    """
    import pretty_midi

    try:
        content = pretty_midi.PrettyMIDI(str(path))
    except (OSError, ValueError, EOFError, KeyError, IndexError) as error:
        raise TableError(f"{path}: not a readable MIDI file ({error}); delete it and run again with --midi") from None
    notes = [note for instrument in content.instruments for note in instrument.notes]
    return sorted((float(note.start), float(note.end), float(note.pitch), float(note.velocity)) for note in notes)
