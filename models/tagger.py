"""MusiCNN, a music tagging network, as a frozen feature extractor for `best`.

Input `spectrogram` (batch, 187 frames, 96 mel bands, 1): 3 s of log-mel (features.spectrogram.TaggerMelSpec). Outputs `embedding`
(batch, 200), the penultimate layer, and `pooled` (batch, 753), the mean over time of front end and mid end. The tags themselves
are not used. The weights were trained on tags of the Million Song Dataset by the authors of the paper, and are read from their
package `musicnn` (licence ISC) when a bundle is made; no rating of ours entered them, and nothing here trains them further.

Source: Pons & Serra, "musicnn: pre-trained convolutional neural networks for music audio tagging", ISMIR 2019 late-breaking;
Pons et al., "End-to-end learning for music audio tagging at scale", ISMIR 2018.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAMES = 187  # 3 s
BANDS = 96  # mel bands
EMBEDDING = 200
POOLED = 753
TIMBRAL = ((7, 38), (7, 67))  # frames × bands of the two timbral filters, 204 maps each
TEMPORAL = (128, 64, 32)  # frames of the three temporal filters, 51 maps each
EPSILON = 1e-3  # of batch normalisation
LICENCE = "MusiCNN weights: copyright (c) 2019 Music Technology Group, Universitat Pompeu Fabra; ISC licence"


@dataclass(frozen=True)
class TaggerArchitecture:
    """The published architecture has no arguments."""


def build(architecture: TaggerArchitecture = TaggerArchitecture()) -> Any:
    """Build the network with fresh weights.

    Returns
    -------
    keras.Model
        `spectrogram` (batch, 187, 96, 1) to ``{"embedding": (batch, 200), "pooled": (batch, 753)}``, float32.
    """
    import keras
    from keras import layers

    def normalize(x: Any, name: str) -> Any:
        return layers.BatchNormalization(epsilon=EPSILON, name=name)(x)

    def block(x: Any, number: int, maps: int, size: tuple[int, int], padding: str) -> Any:
        x = layers.Conv2D(maps, size, padding=padding, activation="relu", name=f"front{number}")(x)
        x = normalize(x, f"front{number}_norm")
        x = layers.MaxPooling2D((1, x.shape[2]))(x)  # over frequency
        return layers.Reshape((FRAMES, maps))(x)

    def middle(x: Any, number: int) -> Any:
        x = layers.ZeroPadding1D(3)(x)
        x = layers.Conv1D(64, 7, activation="relu", name=f"middle{number}")(x)
        return normalize(x, f"middle{number}_norm")

    spectrogram = keras.Input((FRAMES, BANDS, 1), name="spectrogram")
    x = normalize(spectrogram, "input_norm")
    padded = layers.ZeroPadding2D(((3, 3), (0, 0)))(x)
    timbral = [block(padded, number, 204, size, "valid") for number, size in enumerate(TIMBRAL)]
    temporal = [block(x, number + 2, 51, (length, 1), "same") for number, length in enumerate(TEMPORAL)]
    front = layers.Concatenate()([*timbral, *temporal])
    first = middle(front, 0)
    second = layers.Add()([middle(first, 1), first])
    third = layers.Add()([middle(second, 2), second])
    every = layers.Concatenate()([front, first, second, third])
    pooled = layers.GlobalAveragePooling1D(name="pooled")(every)
    x = layers.Concatenate()([layers.GlobalMaxPooling1D()(every), pooled])
    x = layers.Dense(EMBEDDING, activation="relu", name="dense")(normalize(x, "pool_norm"))
    return keras.Model(spectrogram, {"embedding": normalize(x, "dense_norm"), "pooled": pooled}, name="musicnn")


def load_published() -> Any:
    """Build the network with the weights that its authors published in the package `musicnn` (extra `train`).

    Raises
    ------
    ValueError
        If the package is not installed.
    """
    found = importlib.util.find_spec("musicnn")  # located, never imported: it wants another TensorFlow
    if found is None or found.origin is None:
        raise ValueError(
            "`best`, and networks with hints of the tagging network, are made with the weights of the package musicnn: install "
            "the extra 'train' (uv sync --extra train); a network can do without: --hint-weight 0 --course-share 0"
        )
    return load_checkpoint(Path(found.origin).parent / "MSD_musicnn")


def load_checkpoint(folder: Path) -> Any:
    """Build the network with the weights of a TensorFlow checkpoint of the authors' code."""
    import tempfile

    import tensorflow as tf

    with tempfile.TemporaryDirectory() as place:
        # the published files have no name before the dot, which TensorFlow takes for a folder
        for suffix in (".index", ".data-00000-of-00001"):
            (Path(place) / f"weights{suffix}").symlink_to((folder / suffix).resolve())
        reader = tf.train.load_checkpoint(str(Path(place) / "weights"))
        stored = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "Adam" not in name}

    def numbered(kind: str, number: int) -> str:
        return f"{kind}_{number}" if number else kind

    def normalization(number: int) -> list[NDArray[Any]]:
        name = numbered("batch_normalization", number)
        return [stored[f"{name}/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance")]

    network = build()
    network.get_layer("input_norm").set_weights(normalization(0))
    for number in range(5):
        name = numbered("conv2d", number)
        network.get_layer(f"front{number}").set_weights([stored[f"{name}/kernel"], stored[f"{name}/bias"]])
        network.get_layer(f"front{number}_norm").set_weights(normalization(number + 1))
    for number in range(3):
        name = numbered("conv2d", number + 5)
        network.get_layer(f"middle{number}").set_weights([stored[f"{name}/kernel"][:, :, 0], stored[f"{name}/bias"]])
        network.get_layer(f"middle{number}_norm").set_weights(normalization(number + 6))
    # the authors flatten (feature, [max, mean]); here all maxima stand before all means
    order = np.arange(2 * POOLED).reshape(POOLED, 2).T.ravel()
    network.get_layer("pool_norm").set_weights([part[order] for part in normalization(9)])
    network.get_layer("dense").set_weights([stored["dense/kernel"][order], stored["dense/bias"]])
    network.get_layer("dense_norm").set_weights(normalization(10))
    return network


def pool(windows: Mapping[str, NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of the outputs over the windows of a track: `embedding` (400,), `pooled` (1506,)."""

    def both(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([values.mean(axis=0), values.std(axis=0)]).astype(np.float32)

    return both(windows["embedding"]), both(windows["pooled"])
