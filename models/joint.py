"""The film-emotion networks A2E, A2Mid2E and A2Mid2E-Joint: eight emotions, directly or through mid-level features.

Input `spectrogram` (batch, 313 frames, 149 bands, 1): 10 s. All three share the VGG trunk (4 988 480 parameters) and
a linear Dense(256); then

- A2E: Dense(8), output `film`;
- A2Mid2E: Dense(7), output `midlevel`; the regression 7 to 8, trained apart, is a graph of its own
  (`build_midlevel_to_emotion`);
- A2Mid2E-Joint: Dense(7), output `midlevel`, and Dense(8) on that output, output `film`: an emotion is a weighted sum
  of the seven predicted features, and the kernel (7, 8) is its explanation.

All heads are linear. Targets are ratings / 10.

Source: founding document 001, "Music Emotion Detection with Human-Interpretable Mid-Level Features"; Chowdhury, Vall,
Haunschmid, Widmer, ISMIR 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.labels import FILM, MIDLEVEL
from models.vgg import trunk

BANDS = 149  # triangular filters, log-spaced


@dataclass(frozen=True)
class JointArchitecture:
    """Arguments of A2E, A2Mid2E and A2Mid2E-Joint."""

    frames: int | None = 313  # frames of a window; None: any length
    dropout: float = 0.3  # behind each pooling of the trunk
    weight_decay: float = 0.0  # L2 penalty of the convolution kernels


def build_a2e(
    architecture: JointArchitecture = JointArchitecture(),
    *,
    normalization: Callable[..., Any] | None = None,
) -> Any:
    """Build A2E: audio straight to emotions.

    Parameters
    ----------
    architecture : JointArchitecture
        Its arguments.
    normalization : Callable[..., keras.Layer] or None
        See `models.vgg.trunk`.

    Returns
    -------
    keras.Model
        `spectrogram` (batch, frames, 149, 1) to ``{"film": (batch, 8)}``, float32.
    """
    import keras

    spectrogram, x = _embedding(architecture, normalization)
    return keras.Model(spectrogram, {"film": _linear("film", len(FILM.labels))(x)}, name="a2e")


def build_a2mid2e(
    architecture: JointArchitecture = JointArchitecture(),
    *,
    normalization: Callable[..., Any] | None = None,
) -> Any:
    """Build the network of A2Mid2E: audio to mid-level features; `build_midlevel_to_emotion` is its second stage.

    Parameters
    ----------
    architecture : JointArchitecture
        Its arguments.
    normalization : Callable[..., keras.Layer] or None
        See `models.vgg.trunk`.

    Returns
    -------
    keras.Model
        `spectrogram` (batch, frames, 149, 1) to ``{"midlevel": (batch, 7)}``, float32.
    """
    import keras

    spectrogram, x = _embedding(architecture, normalization)
    return keras.Model(spectrogram, {"midlevel": _linear("midlevel", len(MIDLEVEL.labels))(x)}, name="a2mid2e")


def build_midlevel_to_emotion() -> Any:
    """Build the second stage of A2Mid2E: linear regression from mid-level features to emotions, 64 parameters.

    Returns
    -------
    keras.Model
        `midlevel` (batch, 7) to ``{"film": (batch, 8)}``, float32.
    """
    import keras

    midlevel = keras.Input((len(MIDLEVEL.labels),), name="midlevel")
    return keras.Model(midlevel, {"film": _linear("film", len(FILM.labels))(midlevel)}, name="midlevel_to_emotion")


def build_joint(
    architecture: JointArchitecture = JointArchitecture(),
    *,
    normalization: Callable[..., Any] | None = None,
) -> Any:
    """Build A2Mid2E-Joint: audio to mid-level features, and from these alone to emotions, trained as one.

    Parameters
    ----------
    architecture : JointArchitecture
        Its arguments.
    normalization : Callable[..., keras.Layer] or None
        See `models.vgg.trunk`.

    Returns
    -------
    keras.Model
        `spectrogram` (batch, frames, 149, 1) to ``{"midlevel": (batch, 7), "film": (batch, 8)}``, float32.
    """
    import keras

    spectrogram, x = _embedding(architecture, normalization)
    midlevel = _linear("midlevel", len(MIDLEVEL.labels))(x)
    film = _linear("film", len(FILM.labels))(midlevel)
    return keras.Model(spectrogram, {"midlevel": midlevel, "film": film}, name="a2mid2e_joint")


def _embedding(architecture: JointArchitecture, normalization: Callable[..., Any] | None) -> tuple[Any, Any]:
    """Return the input and the 256 numbers that the heads read."""
    import keras
    from keras import layers

    spectrogram = keras.Input((architecture.frames, BANDS, 1), name="spectrogram")
    x = trunk(
        spectrogram,
        dropout=architecture.dropout,
        weight_decay=architecture.weight_decay,
        normalization=normalization,
    )
    return spectrogram, layers.Dense(256, name="Dense1")(x)


def _linear(name: str, units: int) -> Any:
    from keras import layers

    return layers.Dense(units, name=name, dtype="float32")
