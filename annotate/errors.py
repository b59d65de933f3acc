"""The errors that end a command with one line, by exit status."""

from __future__ import annotations

from annotate.cluster import ClusterError
from annotate.corpora import NoAudioFound
from annotate.pipeline import RunError
from annotate.places import PlaceLost
from annotate.store import RunLocked, RunRefused, StoreError
from models.bundle import UnknownNameError

USAGE: tuple[type[Exception], ...] = (FileNotFoundError, UnknownNameError)  # exit 2
FATAL: tuple[type[Exception], ...] = (
    NoAudioFound,
    PlaceLost,
    ClusterError,
    RunError,
    RunLocked,
    RunRefused,
    StoreError,
    ValueError,
    OSError,
)  # exit 1
