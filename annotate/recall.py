"""What the feature cache holds of one audio file, under the digest of its bytes.

Kept are results that are small and expensive: the file's properties, notes, descriptors, and the outputs of each spectrogram
network by window. A network's key holds its front end and the digest of its engine, so another bundle with the same network
finds them again. Signals and windows are computed anew where anything that reads them is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotate.audio import Decoded
from annotate.store import FeatureCache, cache_key
from models import inference
from models.bundle import Bundle

Arrays = dict[str, NDArray[Any]]

PROPERTIES = {"properties": 1}


@dataclass(frozen=True)
class Recall:
    """The entries of one file; without a cache nothing is found and nothing kept."""

    cache: FeatureCache | None
    sha256: str | None  # hex, of the file's bytes; None without a cache

    def get(self, what: Mapping[str, Any]) -> Arrays | None:
        """Arrays that were kept under a spec, None where there are none."""
        if self.cache is None or self.sha256 is None:
            return None
        found = self.cache.get(cache_key(self.sha256, what, decoder_version()))
        return None if found is None else dict(found)

    def put(self, what: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Keep arrays under a spec."""
        if self.cache is not None and self.sha256 is not None:
            self.cache.put(cache_key(self.sha256, what, decoder_version()), arrays)

    def properties(self) -> Decoded | None:
        """What is known of a file that was decoded before; without signals."""
        found = self.get(PROPERTIES)
        if found is None:
            return None
        return Decoded(
            signals={},
            duration_s=float(found["duration_s"]),
            sample_rate=int(found["sample_rate"]),
            channels=int(found["channels"]),
            frames=int(found["frames"]),
            sha256=str(self.sha256),
            truncated=str(found["truncated"]) or None,
        )

    def put_properties(self, decoded: Decoded) -> None:
        """Keep what `properties` gives back."""
        numbers = {name: np.array(getattr(decoded, name)) for name in ("duration_s", "sample_rate", "channels", "frames")}
        self.put(PROPERTIES, numbers | {"truncated": np.array(decoded.truncated or "")})


@lru_cache(maxsize=2)
def feature_cache(folder: Path, max_bytes: int) -> FeatureCache:
    """The cache of a folder; one a process."""
    return FeatureCache(folder, max_bytes=max_bytes)


def transcription_of(bundle: Bundle) -> dict[str, Any]:
    """Spec of the notes."""
    return {"transcription": asdict(inference.spec_of(bundle.families["notes"]))}


def descriptors_of(bundle: Bundle) -> dict[str, Any]:
    """Spec of the descriptors."""
    return {"descriptors": asdict(inference.spec_of(bundle.families["descriptors"]))}


def network_of(bundle: Bundle, family: str) -> dict[str, Any]:
    """Spec of the outputs of a network's engine: front end, engine, and what ran it."""
    about = bundle.families[family]
    engine = bundle.manifest["files"][about.engine] if about.engine else None
    return {
        "front_end": about.front_end,
        "spec": asdict(inference.spec_of(about)),
        "engine": engine,
        "onnxruntime": version("onnxruntime"),
    }


@lru_cache(maxsize=1)
def decoder_version() -> str:
    """Versions of what turns bytes into samples and samples into features."""
    import soundfile

    return f"libsndfile {soundfile.__libsndfile_version__}, soxr {version('soxr')} HQ, librosa {version('librosa')}"
