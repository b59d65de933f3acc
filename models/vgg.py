"""The VGG-style trunk that the mid-level and the film-emotion networks share.

Nine convolutions (first 5x5 stride 2 *valid*, the rest 3x3 *same*), each followed by ReLU and batch normalisation,
two max-poolings, and global average pooling to 256 numbers. Because of that pooling the trunk accepts any input
length: it can be trained on short crops and used on whole windows.

Source: Chowdhury, Vall, Haunschmid, Widmer, "Towards Explainable Music Emotion Recognition: The Route via Mid-level
Features", ISMIR 2019; layer table of the founding document on mid-level multi-label classification.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BATCH_NORM_MOMENTUM = 0.9  # the Keras default of .99 lags far behind the weights at some 50 steps an epoch


def trunk(
    inputs: Any,
    *,
    dropout: float = 0.3,
    weight_decay: float = 0.0,
    normalization: Callable[..., Any] | None = None,
) -> Any:
    """Build the convolutional trunk on `inputs` and return its pooled output.

    Parameters
    ----------
    inputs : keras.KerasTensor
        Spectrogram, shape (batch, bin or frame, frame or band, 1).
    dropout : float
        Dropout rate behind each max-pooling.
    weight_decay : float
        L2 penalty of the convolution kernels; 0 in the founding document.
    normalization : Callable[..., keras.Layer] or None
        Class of the normalisation layer, called as ``normalization(momentum=BATCH_NORM_MOMENTUM)``; None is
        `keras.layers.BatchNormalization`. A replacement must keep its weights and their order: gamma, beta, moving
        mean, moving variance.

    Returns
    -------
    keras.KerasTensor
        Shape (batch, 256), float32: mean over frequency and time of the last 256 maps.
    """
    from keras import layers, regularizers

    normalize = layers.BatchNormalization if normalization is None else normalization
    penalty = regularizers.L2(weight_decay) if weight_decay else None

    def convolution(x: Any, filters: int, size: int = 3, stride: int = 1, padding: str = "same") -> Any:
        x = layers.Conv2D(filters, size, strides=stride, padding=padding, activation="relu", kernel_regularizer=penalty)(x)
        return normalize(momentum=BATCH_NORM_MOMENTUM)(x)

    x = convolution(inputs, 64, size=5, stride=2, padding="valid")
    x = convolution(x, 64)
    x = layers.Dropout(dropout)(layers.MaxPooling2D(2)(x))
    x = convolution(x, 128)
    x = convolution(x, 128)
    x = layers.Dropout(dropout)(layers.MaxPooling2D(2)(x))
    for filters in (256, 256, 384, 512, 256):
        x = convolution(x, filters)
    return layers.GlobalAveragePooling2D(dtype="float32")(x)
