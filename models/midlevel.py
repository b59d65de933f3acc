"""The mid-level network: one VGG trunk, two heads for the seven perceptual features.

Input `spectrogram` (batch, 256 bins, 1292 frames, 1), in dB: 15 s. Outputs `salience` (batch, 7) in 0-1, the founding
document's multi-label head, and `rating` (batch, 7), ratings / 10. Both read the same 256 numbers, so one forward
pass serves both. The salience head alone has the document's 5 056 071 parameters; the rating head adds 1 799.

Source: founding document 000, "Mid-Level Perceptual Features Multi-Label Classification Model" (layer table), after
Chowdhury et al., ISMIR 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.labels import MIDLEVEL
from models.vgg import trunk

BINS = 256  # STFT bins, the Nyquist bin dropped


@dataclass(frozen=True)
class MidlevelArchitecture:
    """Arguments of the mid-level network."""

    frames: int | None = 1292  # frames of a window; None: any length
    dropout: float = 0.3  # behind each pooling and behind Dense1
    weight_decay: float = 0.0  # L2 penalty of the convolution kernels
    heads: tuple[str, ...] = ("salience", "rating")  # which of the two; a user's own file may have one

    def __post_init__(self) -> None:
        if not self.heads or not set(self.heads) <= {"salience", "rating"}:
            raise ValueError(f"heads={self.heads} must be one or both of salience, rating")


def build(
    architecture: MidlevelArchitecture = MidlevelArchitecture(),
    *,
    normalization: Callable[..., Any] | None = None,
) -> Any:
    """Build the network with fresh weights.

    Parameters
    ----------
    architecture : MidlevelArchitecture
        Its arguments.
    normalization : Callable[..., keras.Layer] or None
        See `models.vgg.trunk`.

    Returns
    -------
    keras.Model
        `spectrogram` (batch, 256, frames, 1) to ``{"salience": (batch, 7), "rating": (batch, 7)}``, float32.
    """
    import keras
    from keras import layers

    labels = len(MIDLEVEL.labels)
    spectrogram = keras.Input((BINS, architecture.frames, 1), name="spectrogram")
    x = trunk(
        spectrogram,
        dropout=architecture.dropout,
        weight_decay=architecture.weight_decay,
        normalization=normalization,
    )
    x = layers.Dense(256, name="Dense1")(x)
    x = layers.Dropout(architecture.dropout)(x)
    outputs = {
        "salience": layers.Dense(labels, activation="sigmoid", name="salience", dtype="float32")(x),
        "rating": layers.Dense(labels, name="rating", dtype="float32")(x),
    }
    return keras.Model(spectrogram, {head: outputs[head] for head in architecture.heads}, name="midlevel")
