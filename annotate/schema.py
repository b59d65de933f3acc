"""The columns of the annotation table, in their fixed order, and what each of them means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from annotate.corpora import Corpus
from models.bundle import FAMILIES, Bundle, Family
from outputs.table import Column

IDENTITY = (
    Column("track", "string", "path relative to the root, undecodable bytes as \\xNN: the identity", None, None, None, "scan"),
    Column("track_key", "string", "the corpus's own id", None, None, None, "scan"),
    Column("track_id", "int64", "the corpus's own id, where it is a number", None, None, None, "scan"),
    Column("corpus", "string", "layout that was recognised", None, None, None, "scan"),
    Column("group", "string", "genre folder, or the corpus's genre", None, None, None, "scan"),
    Column("artist", "string", "by the corpus's metadata or the file's tags", None, None, None, "scan"),
    Column("album", "string", "by the corpus's metadata or the file's tags", None, None, None, "scan"),
    Column("title", "string", "by the corpus's metadata or the file's tags", None, None, None, "scan"),
    Column("duration_s", "float", "length of what was decoded", "s", 0.0, None, "decode"),
    Column("sample_rate_hz", "int", "of the file", "Hz", 8000.0, 192000.0, "decode"),
    Column("channels", "int", "of the file; the mean of them was analysed", None, 1.0, None, "decode"),
    Column("audio_sha256", "string", "SHA-256 of the file's bytes", None, None, None, "decode"),
    Column("status", "string", "ok or failed", None, None, None, "decode"),
    Column("error", "string", "why a track failed", None, None, None, "decode"),
    Column("warning", "string", "what to know about an ok track: truncated, padded, no notes", None, None, None, "decode"),
    Column(
        "in_training",
        "string",
        "families whose training ratings included this track, with commas; empty: none",
        None,
        None,
        None,
        "decode",
    ),
)
PITCH_CLASSES = ("c", "cs", "d", "ds", "e", "f", "fs", "g", "gs", "a", "as", "b")


def _midi_columns() -> tuple[Column, ...]:
    moments = (
        ("pitch", "MIDI number", 21.0, 108.0, 0.0, 43.5),
        ("duration", "s", 0.0, None, 0.0, None),
        ("velocity", "MIDI velocity", 0.0, 127.0, 0.0, 63.5),
        ("interval", "semitones", -87.0, 87.0, 0.0, 87.0),
    )
    columns = [
        Column("midi_n_notes", "int", "notes that Basic Pitch found", None, 0.0, None, "notes"),
        Column("midi_note_density", "float", "notes a second of audio", "1/s", 0.0, None, "notes"),
        Column("midi_tempo_bpm", "float", "tempo estimated from the onsets; null without a pulse", "BPM", 40.0, 220.0, "notes"),
    ]
    for name, unit, low, high, spread_low, spread_high in moments:
        what = "interval from each note to the next in onset order" if name == "interval" else f"note {name}"
        columns.append(Column(f"midi_{name}_mean", "float", f"mean {what}", unit, low, high, "notes"))
        columns.append(
            Column(f"midi_{name}_std", "float", f"standard deviation of {what}", unit, spread_low, spread_high, "notes")
        )
    columns += [
        Column(
            f"midi_pc_{name}",
            "float",
            f"share of the notes with pitch class {name.replace('s', '#').upper()}",
            "share",
            0.0,
            1.0,
            "notes",
        )
        for name in PITCH_CLASSES
    ]
    return tuple(columns)


def family_columns(family: Family) -> tuple[Column, ...]:
    """Columns that one model family writes."""
    if family.name == "notes":
        return _midi_columns()
    columns: list[Column] = []
    for output in family.outputs:
        if output.head == "class_output":
            continue
        spreads: list[Column] = []
        labelled: list[Column] = []
        for number, (name, label) in enumerate(zip(output.columns, output.labels, strict=True)):
            text = output.description.replace("{}", label.replace("_", " "))
            columns.append(Column(name, "float", text, output.unit, output.low, output.high, family.name))
            if output.spread:
                spread = f"standard deviation over the windows of: {text}; null with one window"
                spreads.append(Column(f"{name}_sd", "float", spread, output.unit, 0.0, output.high - output.low, family.name))
            if output.thresholds is not None:
                rule = f"{name} is at least {output.thresholds[number]:g}"
                labelled.append(Column(f"{name}_label", "bool", rule, None, None, None, family.name))
        columns += spreads + labelled
    if "genres" in family.details:
        held = ", ".join(family.details["genres"])
        for rank, suffix in (("most", ""), ("second most", "_2"), ("third most", "_3")):
            columns.append(Column(f"genre{suffix}", "string", f"{rank} probable genre of {held}", None, None, None, family.name))
            columns.append(Column(f"genre{suffix}_p", "float", "its probability", "probability", 0.0, 1.0, family.name))
    return tuple(columns)


def columns_for(bundle: Bundle, families: Sequence[str], corpus: Corpus) -> tuple[Column, ...]:
    """Columns of the table of one run: identity, decoding, the corpus's ratings, the chosen families in fixed order."""
    rated = tuple(
        Column(name, "int" if name == "rated_n" else "float", *corpus.rating_units[name], "ratings")
        for name in corpus.ratings.columns
    )
    blocks = [family_columns(bundle.families[name]) for name in FAMILIES if name in families]
    return (*IDENTITY, *rated, *(column for block in blocks for column in block))


def window_columns_for(bundle: Bundle, families: Sequence[str]) -> tuple[Column, ...]:
    """Columns of the windows table: one row a window of one network; columns of the other networks are null."""
    from models.inference import WINDOW_FAMILIES

    columns = [
        IDENTITY[0],
        Column("family", "string", "the network whose window this is", None, None, None, "scan"),
        Column("window", "int", "number of the window, from 0", None, 0.0, None, "scan"),
        Column("start_s", "float", "where the window starts", "s", 0.0, None, "scan"),
    ]
    for name in WINDOW_FAMILIES:
        if name in families:
            columns += [
                column
                for column in family_columns(bundle.families[name])
                if not column.name.endswith(("_sd", "_label", "_2", "_3", "_2_p", "_3_p"))
            ]
    return tuple(columns)


def known_tracks(bundle: Bundle) -> dict[str, dict[str, frozenset[str]]]:
    """What tells a training track of each family: ids `corpus:key`, digests, and `artist|title`."""
    known: dict[str, dict[str, frozenset[str]]] = {}
    for name, family in bundle.families.items():
        training = family.details.get("training", {})
        keys = {f"{corpus}:{key}" for corpus, ids in training.get("ids", {}).items() for key in ids}
        if keys:
            known[name] = {
                "keys": frozenset(keys),
                "digests": frozenset(training.get("sha256", ())),
                "titles": frozenset(training.get("titles", ())),
            }
    return known


def title_key(artist: str | None, title: str | None) -> str | None:
    """Artist and title, case-folded, as one key; None where either is missing."""
    if not artist or not title:
        return None
    return "|".join(" ".join(text.split()).casefold() for text in (artist, title))


def was_in_training(row: Mapping[str, Any], known: Mapping[str, Mapping[str, frozenset[str]]]) -> str:
    """Families whose training set held this track: by corpus id, by audio digest, or by artist and title."""
    key = str(row["track_key"])
    identity = key if ":" in key and row["corpus"] != "folder" else f"{row['corpus']}:{key}"
    title = title_key(row.get("artist"), row.get("title"))
    return ",".join(
        name
        for name, tracks in known.items()
        if identity in tracks["keys"] or row.get("audio_sha256") in tracks["digests"] or title in tracks["titles"]
    )
