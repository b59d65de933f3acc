"""The label sets that the networks predict: names in output order, unit, and range.

Conventions: an output array's last axis follows `labels`; `low` and `high` bound the human scale, not the network's
output. Spellings are those of the annotation table's columns.

Sources: Aljanaki & Soleymani, ISMIR 2018 (mid-level features); Zentner, Grandjean & Scherer, Emotion 2008 (GEMS), as
in Emotify; Eerola & Vuoskoski, Psychology of Music 2011 (film emotions); Warriner, Kuperman & Brysbaert, Behavior
Research Methods 2013 (valence, arousal, dominance of words).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LabelSet:
    """Labels of one output, in the order of its last axis."""

    name: str
    labels: tuple[str, ...]
    unit: str
    low: float  # smallest value of the scale, in `unit`
    high: float  # largest value of the scale, in `unit`


MIDLEVEL = LabelSet(
    name="midlevel",
    labels=(
        "melodiousness",
        "articulation",
        "rhythmic_complexity",
        "rhythmic_stability",
        "dissonance",
        "tonal_stability",
        "minorness",
    ),
    unit="rating",
    low=1.0,
    high=10.0,
)

GEMS = LabelSet(
    name="gems",
    labels=(
        "amazement",
        "solemnity",
        "tenderness",
        "nostalgia",
        "calmness",
        "power",
        "joyful_activation",
        "tension",
        "sadness",
    ),
    unit="share of listeners",
    low=0.0,
    high=1.0,
)

FILM = LabelSet(
    name="film",
    labels=("valence", "energy", "tension", "anger", "fear", "happy", "sad", "tender"),
    unit="rating",
    low=1.0,
    high=9.0,
)

VAD = LabelSet(
    name="vad",
    labels=("valence", "arousal", "dominance"),
    unit="word norm",
    low=1.0,
    high=9.0,
)

GENRES = LabelSet(
    name="genre",
    labels=("classical", "electronic", "pop", "rock"),
    unit="probability",
    low=0.0,
    high=1.0,
)
