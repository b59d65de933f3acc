"""The emotion CNN: nine GEMS emotions from 3 s of stacked log-mel, MFCC and spectral contrast.

Input `segment` (batch, 155 rows, 259 frames, 1): 128 log-mel bands (dB), 20 MFCC, 7 contrast bands, not standardised.
The graph standardises by one mean and standard deviation of the training part. Output `emotion` (batch, 9) in 0-1:
share of listeners.

Source: founding document 003, "Music Emotion Recognition System" (the layers), with the sizes of its authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.labels import GEMS
from models.vgg import BATCH_NORM_MOMENTUM

ROWS = 155  # 128 mel bands + 20 MFCC + 7 contrast bands
FRAMES = 259  # 3 s at 44 100 Hz, hop 512


@dataclass(frozen=True)
class EmotionArchitecture:
    """Arguments of the emotion CNN."""

    mean: float = 0.0  # of all training segments
    standard_deviation: float = 1.0  # of all training segments
    weight_decay: float = 1e-3  # L2 penalty of the convolution kernels
    convolution_dropout: float = 0.25  # behind each pooling
    dense_dropout: float = 0.5  # behind Dense 256

    def __post_init__(self) -> None:
        if not self.standard_deviation > 0:
            raise ValueError(f"standard_deviation={self.standard_deviation} must be > 0")


def build(
    architecture: EmotionArchitecture = EmotionArchitecture(),
    *,
    normalization: Callable[..., Any] | None = None,
) -> Any:
    """Build the network with fresh weights.

    Parameters
    ----------
    architecture : EmotionArchitecture
        Its arguments.
    normalization : Callable[..., keras.Layer] or None
        Class of the normalisation behind a convolution, see `models.vgg.trunk`.

    Returns
    -------
    keras.Model
        `segment` (batch, 155, 259, 1) to ``{"emotion": (batch, 9)}``, float32.
    """
    import keras
    from keras import layers, regularizers

    segment = keras.Input((ROWS, FRAMES, 1), name="segment")
    x = layers.Rescaling(  # (x - mean) / standard deviation
        scale=1 / architecture.standard_deviation,
        offset=-architecture.mean / architecture.standard_deviation,
        dtype="float32",
    )(segment)
    normalize = layers.BatchNormalization if normalization is None else normalization
    for filters in (32, 64, 128):
        penalty = regularizers.L2(architecture.weight_decay) if architecture.weight_decay else None
        x = layers.Conv2D(filters, 3, activation="relu", kernel_regularizer=penalty)(x)
        x = layers.MaxPooling2D(2)(x)
        x = normalize(momentum=BATCH_NORM_MOMENTUM)(x)
        x = layers.Dropout(architecture.convolution_dropout)(x)
    x = layers.Flatten()(x)
    x = layers.Dense(256, activation="relu")(x)
    x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM)(x)
    x = layers.Dropout(architecture.dense_dropout)(x)
    emotion = layers.Dense(len(GEMS.labels), activation="sigmoid", name="emotion", dtype="float32")(x)
    return keras.Model(segment, {"emotion": emotion}, name="emotion")
