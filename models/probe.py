"""The linear probe: nine GEMS emotions from the seven saliences of the frozen mid-level network.

Input `salience` (batch, 7) in 0-1. Output `gems` (batch, 9): expected share of listeners, 0-1. The kernel (7, 9) is
the explanation: a contribution is salience x weight, in log-odds. 72 parameters.

Source: founding document 000, "Mid-Level Perceptual Features Multi-Label Classification Model" (frozen network +
linear probe).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from models.labels import GEMS, MIDLEVEL


@dataclass(frozen=True)
class ProbeArchitecture:
    """Arguments of the probe."""

    weight_decay: float = 0.0  # L2 penalty of the kernel


def build(architecture: ProbeArchitecture = ProbeArchitecture()) -> Any:
    """Build the probe with fresh weights.

    Parameters
    ----------
    architecture : ProbeArchitecture
        Its arguments.

    Returns
    -------
    keras.Model
        `salience` (batch, 7) to ``{"gems": (batch, 9)}``, float32.
    """
    import keras
    from keras import layers, regularizers

    penalty = regularizers.L2(architecture.weight_decay) if architecture.weight_decay else None
    salience = keras.Input((len(MIDLEVEL.labels),), name="salience")
    head = layers.Dense(len(GEMS.labels), activation="sigmoid", kernel_regularizer=penalty, name="gems", dtype="float32")
    return keras.Model(salience, {"gems": head(salience)}, name="probe")


def on_midlevel(midlevel: Any, probe: Any) -> Any:
    """Put the probe on the mid-level network, as one model.

    Parameters
    ----------
    midlevel : keras.Model
        From `models.midlevel.build`. It is frozen in place (``trainable = False``), since the layers are shared.
    probe : keras.Model
        From `build`; its 72 parameters are all that remains trainable.

    Returns
    -------
    keras.Model
        `spectrogram` (batch, 256, frames, 1) to ``{"gems": (batch, 9)}``; the rating head is left out.
    """
    import keras

    midlevel.trainable = False
    gems = probe.get_layer("gems")(midlevel.output["salience"])
    return keras.Model(midlevel.input, {"gems": gems}, name="midlevel_probe")
