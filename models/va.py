"""Valence and arousal from notes: a sequence network, a dense network on statistics, and the transfer between them.

- Sequence: `notes` (batch, 512, 4), a row (pitch, onset interval, duration, velocity), zero rows behind the last
  note; Masking of zero rows, two SimpleRNN(64), Dense(4).
- Dense: `note_statistics` (batch, 22); Dense 32, Dense 16, Dense 4 floored at 0.37.
- Transfer: `sequence_features` (batch, 64), the output of the sequence network's second SimpleRNN
  (`feature_extractor`), into the same dense layers.

Output `va` (batch, 4): valence mean, valence standard deviation, arousal mean, arousal standard deviation; means on
DEAM's scale of 1-9, standard deviations between listeners in the same unit. Inputs are raw: the graph standardises
them with the mean and standard deviation of the training part, so that a saved file needs nothing beside it.

The files hold a layer and an activation of ours: call `register` before `keras.saving.load_model`.

Source: founding document 002 (valence and arousal from MIDI, DEAM). The floor of 0.37 is DEAM's smallest arousal
standard deviation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

OUTPUTS = ("valence_mean", "valence_std", "arousal_mean", "arousal_std")
FLOOR = 0.37  # smallest output of the dense networks, DEAM rating unit
NOTES = 512  # the first notes of a track
STATISTICS = 22
SEQUENCE_FEATURES = 64  # units of the second SimpleRNN


def _check(
    mean: tuple[float, ...], standard_deviation: tuple[float, ...], output_bias: tuple[float, ...], *, inputs: int
) -> None:
    if len(mean) != inputs or len(standard_deviation) != inputs:
        raise ValueError(f"mean has {len(mean)} values, standard_deviation {len(standard_deviation)}: both must have {inputs}")
    if not all(deviation > 0 for deviation in standard_deviation):
        raise ValueError(f"standard_deviation={standard_deviation} must be > 0 throughout")
    if len(output_bias) != len(OUTPUTS):
        raise ValueError(f"output_bias={output_bias} must have {len(OUTPUTS)} values")


@dataclass(frozen=True)
class SequenceArchitecture:
    """Arguments of the sequence network."""

    mean: tuple[float, ...] = (0.0,) * 4  # of each note column over the training notes
    standard_deviation: tuple[float, ...] = (1.0,) * 4
    notes: int | None = NOTES  # rows of the input; None: any number
    output_bias: tuple[float, ...] = (5.0, 1.5, 5.0, 1.5)  # at the start of training

    def __post_init__(self) -> None:
        _check(self.mean, self.standard_deviation, self.output_bias, inputs=4)


@dataclass(frozen=True)
class DenseArchitecture:
    """Arguments of the dense network on note statistics."""

    mean: tuple[float, ...] = (0.0,) * STATISTICS  # of each statistic over the training tracks
    standard_deviation: tuple[float, ...] = (1.0,) * STATISTICS
    output_bias: tuple[float, ...] = (5.0, 1.5, 5.0, 1.5)  # above the floor, below which there is no gradient

    def __post_init__(self) -> None:
        _check(self.mean, self.standard_deviation, self.output_bias, inputs=STATISTICS)


@dataclass(frozen=True)
class TransferArchitecture:
    """Arguments of the dense network on the sequence network's features."""

    mean: tuple[float, ...] = (0.0,) * SEQUENCE_FEATURES  # of each feature over the training tracks
    standard_deviation: tuple[float, ...] = (1.0,) * SEQUENCE_FEATURES
    output_bias: tuple[float, ...] = (5.0, 1.5, 5.0, 1.5)  # above the floor, below which there is no gradient

    def __post_init__(self) -> None:
        _check(self.mean, self.standard_deviation, self.output_bias, inputs=SEQUENCE_FEATURES)


@dataclass(frozen=True)
class TransferredArchitecture:
    """Arguments of the sequence network's trunk and the dense network behind it, as one graph."""

    note_mean: tuple[float, ...] = (0.0,) * 4
    note_standard_deviation: tuple[float, ...] = (1.0,) * 4
    mean: tuple[float, ...] = (0.0,) * SEQUENCE_FEATURES
    standard_deviation: tuple[float, ...] = (1.0,) * SEQUENCE_FEATURES
    notes: int | None = NOTES

    @classmethod
    def of(cls, sequence: SequenceArchitecture, transfer: TransferArchitecture) -> TransferredArchitecture:
        """Join the arguments of both parts."""
        return cls(sequence.mean, sequence.standard_deviation, transfer.mean, transfer.standard_deviation, sequence.notes)


def floored(x: Any) -> Any:
    """Return max(x, 0.37), elementwise: the activation of the dense networks' output."""
    from keras import ops

    return ops.maximum(x, FLOOR)


@functools.cache
def register() -> Any:
    """Register `floored` and `MaskedStandardize` with Keras, so that files with them load in safe mode.

    Returns
    -------
    type[keras.Layer]
        `MaskedStandardize`, defined here because its base class is imported only on demand.
    """
    import keras
    from keras import ops

    class MaskedStandardize(keras.Layer):  # type: ignore[misc]
        """(x - mean) / standard deviation on rows with a nonzero value; zero rows stay zero, for Masking to find."""

        def __init__(self, mean: tuple[float, ...], standard_deviation: tuple[float, ...], **keras_arguments: Any):
            super().__init__(**keras_arguments)
            self.mean = tuple(mean)
            self.standard_deviation = tuple(standard_deviation)

        def call(self, x: Any) -> Any:
            present = ops.any(ops.not_equal(x, 0), axis=-1, keepdims=True)
            mean = ops.convert_to_tensor(self.mean, dtype=x.dtype)
            standard_deviation = ops.convert_to_tensor(self.standard_deviation, dtype=x.dtype)
            return ops.where(present, (x - mean) / standard_deviation, ops.zeros_like(x))

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

        def get_config(self) -> dict[str, Any]:
            return {
                **super().get_config(),
                "mean": list(self.mean),
                "standard_deviation": list(self.standard_deviation),
            }

    keras.saving.register_keras_serializable(package="annotate")(floored)
    return keras.saving.register_keras_serializable(package="annotate")(MaskedStandardize)


def build_sequence(architecture: SequenceArchitecture = SequenceArchitecture()) -> Any:
    """Build the sequence network with fresh weights.

    Parameters
    ----------
    architecture : SequenceArchitecture
        Its arguments.

    Returns
    -------
    keras.Model
        `notes` (batch, notes, 4) to ``{"va": (batch, 4)}``, float32.
    """
    import keras
    from keras import layers

    standardize = register()(architecture.mean, architecture.standard_deviation, dtype="float32")
    notes = keras.Input((architecture.notes, 4), name="notes")
    x = layers.Masking(0.0, dtype="float32")(standardize(notes))
    x = layers.SimpleRNN(64, return_sequences=True, name="first_rnn")(x)
    x = layers.SimpleRNN(SEQUENCE_FEATURES, name="second_rnn")(x)
    head = layers.Dense(len(OUTPUTS), name="va", dtype="float32")
    model = keras.Model(notes, {"va": head(x)}, name="va_sequence")
    head.bias.assign(architecture.output_bias)
    return model


def feature_extractor(sequence_model: Any) -> Any:
    """Return the part of a sequence network up to its second SimpleRNN; the weights are shared.

    Parameters
    ----------
    sequence_model : keras.Model
        From `build_sequence`.

    Returns
    -------
    keras.Model
        `notes` (batch, notes, 4) to ``{"sequence_features": (batch, 64)}``.
    """
    import keras

    features = sequence_model.get_layer("second_rnn").output
    return keras.Model(sequence_model.input, {"sequence_features": features}, name="va_features")


def build_dense(architecture: DenseArchitecture = DenseArchitecture()) -> Any:
    """Build the dense network on note statistics, with fresh weights.

    Parameters
    ----------
    architecture : DenseArchitecture
        Its arguments.

    Returns
    -------
    keras.Model
        `note_statistics` (batch, 22) to ``{"va": (batch, 4)}``, float32, never below 0.37.
    """
    return _dense(architecture, inputs="note_statistics", name="va_dense")


def build_transfer(architecture: TransferArchitecture = TransferArchitecture()) -> Any:
    """Build the dense network on the features of the sequence network, with fresh weights.

    Parameters
    ----------
    architecture : TransferArchitecture
        Its arguments.

    Returns
    -------
    keras.Model
        `sequence_features` (batch, 64) to ``{"va": (batch, 4)}``, float32, never below 0.37.
    """
    return _dense(architecture, inputs="sequence_features", name="va_transfer")


def build_transferred(architecture: TransferredArchitecture = TransferredArchitecture()) -> Any:
    """Build the sequence network's trunk with the dense transfer network behind it, with fresh weights.

    Parameters
    ----------
    architecture : TransferredArchitecture
        Its arguments.

    Returns
    -------
    keras.Model
        `notes` (batch, notes, 4) to ``{"va": (batch, 4)}``, float32, never below 0.37.
    """
    import keras

    trunk = feature_extractor(
        build_sequence(
            SequenceArchitecture(architecture.note_mean, architecture.note_standard_deviation, notes=architecture.notes)
        )
    )
    outputs = _dense_layers(
        trunk.output["sequence_features"], TransferArchitecture(architecture.mean, architecture.standard_deviation)
    )
    return keras.Model(trunk.input, {"va": outputs}, name="va_transferred")


def _dense(architecture: DenseArchitecture | TransferArchitecture, *, inputs: str, name: str) -> Any:
    import keras

    numbers = keras.Input((len(architecture.mean),), name=inputs)
    return keras.Model(numbers, {"va": _dense_layers(numbers, architecture)}, name=name)


def _dense_layers(numbers: Any, architecture: DenseArchitecture | TransferArchitecture) -> Any:
    from keras import layers

    register()
    x = layers.Rescaling(  # (x - mean) / standard deviation
        scale=[1 / deviation for deviation in architecture.standard_deviation],
        offset=[-m / deviation for m, deviation in zip(architecture.mean, architecture.standard_deviation, strict=True)],
        dtype="float32",
    )(numbers)
    x = layers.Dense(32, activation="relu")(x)
    x = layers.Dense(16, activation="relu", name="dense_features")(x)
    head = layers.Dense(len(OUTPUTS), activation=floored, name="va", dtype="float32")
    outputs = head(x)
    head.bias.assign(architecture.output_bias)
    return outputs
