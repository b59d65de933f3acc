"""The multi-task CRNN: valence, arousal, dominance and genre from 5 s of log-mel spectrogram.

Input `spectrogram` (batch, 128 mel bands, 300 frames, 1): dB, z-scored a chunk, 216 frames zero-padded to 300. Three
convolution blocks, a bidirectional LSTM over the 37 remaining frames, two heads: `reg_output` (batch, 3), scaled to
0-1, and `class_output` (batch, genres), probabilities.

Recurrent dropout acts in training only, and Keras has no fused LSTM with it. For inference load the same weights into
a graph with ``recurrent_dropout=0``: the output is identical.

Source: founding document 004, "Multi-Task Music Emotion & Genre Model".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from models.labels import GENRES, VAD
from models.vgg import BATCH_NORM_MOMENTUM

MEL_BANDS = 128
FRAMES = 300  # 216 of 5 s at 22 050 Hz, hop 512, and zeros


@dataclass(frozen=True)
class CrnnArchitecture:
    """Arguments of the CRNN."""

    genres: int = len(GENRES.labels)
    convolution_dropout: float = 0.3  # behind each pooling
    lstm_dropout: float = 0.3  # on the LSTM's inputs
    recurrent_dropout: float = 0.2  # on the LSTM's state; 0 for inference
    dense_dropout: float = 0.4  # behind Dense 256

    def __post_init__(self) -> None:
        if self.genres < 2:
            raise ValueError(f"genres={self.genres} must be >= 2")


def build(
    architecture: CrnnArchitecture = CrnnArchitecture(),
    *,
    normalization: Callable[..., Any] | None = None,
) -> Any:
    """Build the network with fresh weights.

    Parameters
    ----------
    architecture : CrnnArchitecture
        Its arguments.
    normalization : Callable[..., keras.Layer] or None
        Class of the normalisation behind a convolution, see `models.vgg.trunk`.

    Returns
    -------
    keras.Model
        `spectrogram` (batch, 128, 300, 1) to ``{"reg_output": (batch, 3), "class_output": (batch, genres)}``, float32.
    """
    import keras
    from keras import layers

    spectrogram = keras.Input((MEL_BANDS, FRAMES, 1), name="spectrogram")
    x = spectrogram
    normalize = layers.BatchNormalization if normalization is None else normalization
    for filters in (64, 128, 128):
        x = layers.Conv2D(filters, 3, padding="same")(x)
        x = normalize(momentum=BATCH_NORM_MOMENTUM)(x)
        x = layers.ReLU()(x)
        x = layers.MaxPooling2D(2)(x)
        x = layers.Dropout(architecture.convolution_dropout)(x)
    x = layers.Permute((2, 1, 3))(x)  # (band, frame, map) -> (frame, band, map)
    x = layers.Reshape((FRAMES // 8, MEL_BANDS // 8 * 128))(x)
    lstm = layers.LSTM(128, dropout=architecture.lstm_dropout, recurrent_dropout=architecture.recurrent_dropout)
    x = layers.Bidirectional(lstm)(x)
    x = layers.Dense(256, activation="relu")(x)
    x = layers.Dropout(architecture.dense_dropout)(x)
    reg_output = layers.Dense(len(VAD.labels), name="reg_output", dtype="float32")
    class_output = layers.Dense(architecture.genres, activation="softmax", name="class_output", dtype="float32")
    outputs = {"reg_output": reg_output(x), "class_output": class_output(x)}
    return keras.Model(spectrogram, outputs, name="crnn")
