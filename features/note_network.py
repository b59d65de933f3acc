"""Basic Pitch's network, written anew so that onnxruntime runs it in a fraction of the time; the same function but for rounding.

The graph is built from the weights of the package's own `nmp.onnx`, for one window at a time: input `audio` (1, 43 844), outputs
`note` and `onset` (1, 172 frames, 88 pitches). Within it rows are frequencies and columns are frames, so that the harmonics of a
row are other rows, which lie together in memory. onnxruntime fills convolutions up to 16 channels on either side and does their
arithmetic; the network has convolutions of 1 and 8. Each is one of these instead:

- The filters that halve the sample rate give 32 samples at a time, as 32 channels.
- The constant-Q kernels of an octave, cosine and sine, are one convolution, with the square-root-length factors in it. Signs,
  and the square root that would be squared again, are left out; so is the decibel factor, which the normalisation divides out.
- The harmonic stack is one gathering of rows, frequency by frequency; a convolution over frequency is one over its rows.
- The 3 x 39 convolution of 8 harmonics to 8 channels reads 36 to 101 rows of the same spectrogram, most of them several times:
  33 frequencies at a time it is a matrix that adds up what falls on one row, three fifths of the multiplications.
- Convolutions to one channel give their taps in time as channels of their own, which are then shifted and summed.

Source: R. M. Bittner et al., "A lightweight instrument-agnostic model for polyphonic note transcription and multipitch
estimation", ICASSP 2022; the weights are those of basic-pitch 0.4.0 (Apache License 2.0).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

SAMPLES = 43_844  # of a window
FRAMES = 172
OCTAVES = 9
BINS = 309  # frequencies of the spectrogram, three a semitone
CONTOURS = 264  # of which the network reads so many, a harmonic up or down
PITCHES = 88
HARMONIC_ROWS = (-36, 0, 36, 57, 72, 84, 93, 101)  # rows that 1/2, 1, 2 … 7 times the frequency lie above
HOP = 256  # samples
KERNEL = 256  # samples of a constant-Q kernel, and of the halving filter
PHASES = 32  # samples that the halving filter gives at a time
BAND = 33  # frequencies of the 3 x 39 convolution that one matrix gives
GROUP = 11  # frequencies that the convolution behind it gives at a time


class Unknown(ValueError):
    """A file that is not the network this module knows."""


class _Writer:
    """Collects nodes and constants; each method adds nodes and returns the name of their output."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}

    def constant(self, values: Any) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = np.asarray(values)
        return name

    def add(self, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        name = output or f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def shaped(self, tensor: str, shape: list[int], output: str | None = None) -> str:
        return self.add("Reshape", [tensor, self.constant(np.array(shape))], output)

    def padded(self, tensor: str, before: list[int], behind: list[int], mode: str = "constant") -> str:
        return self.add("Pad", [tensor, self.constant(np.array(before + behind))], mode=mode)

    def part(self, tensor: str, axis: int, start: int, stop: int) -> str:
        return self.add("Slice", [tensor, *(self.constant(np.array([value])) for value in (start, stop, axis))])

    def convolved(
        self, tensor: str, kernel: Array, bias: Array | None, stride: tuple[int, int], pads: tuple[int, int] = (0, 0)
    ) -> str:
        """Convolve; `pads` are the zeros around rows and columns."""
        inputs = [tensor, self.constant(np.ascontiguousarray(kernel, np.float32))]
        if bias is not None:
            inputs.append(self.constant(np.asarray(bias, np.float32)))
        return self.add("Conv", inputs, kernel_shape=list(kernel.shape[2:]), strides=list(stride), pads=[*pads, *pads])

    def shifted_sum(self, taps: str, count: int, bias: float) -> str:
        """Sum channel k of (1, count, rows, frames), shifted by k - count // 2 frames: (1, 1, rows, frames)."""
        reach = count // 2
        wide = self.padded(taps, [0, 0, 0, reach], [0, 0, 0, reach])
        shifted = []
        for tap in range(count):
            channel = self.part(wide, 1, tap, tap + 1)
            shifted.append(self.part(channel, 3, tap, tap + FRAMES))
        return self.add("Add", [self.add("Sum", shifted), self.constant(np.float32(bias))])


def build(path: Path) -> bytes:
    """Read the package's network and write the fast one, as an ONNX file's bytes.

    Raises
    ------
    Unknown
        If the file does not hold the convolutions of Basic Pitch.
    """
    import onnx
    from onnx import TensorProto, checker, helper, numpy_helper

    model = onnx.load(str(path))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    by_shape: dict[tuple[int, ...], list[tuple[Array, Array]]] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            kernel, bias = (stored[name] for name in node.input[1:3])
            by_shape.setdefault(kernel.shape, []).append((kernel, bias))

    def only(*shape: int) -> tuple[Array, Array]:
        if not by_shape.get(shape):
            raise Unknown(f"{path}: no convolution of shape {shape}: not the network of basic-pitch 0.4.0")
        return by_shape[shape][0]

    (sine, _), (cosine, _) = by_shape.get((36, 1, 1, KERNEL), [])[:2] or [only(36, 1, 1, KERNEL)] * 2
    root_length = [values for values in stored.values() if values.shape == (BINS, 1, 1)]
    affine = [_constant_of(model, stored, kind, "batch_normalization/FusedBatchNorm") for kind in ("Mul", "Add")]
    if len(root_length) != 1 or None in affine:
        raise Unknown(f"{path}: no lengths of constant-Q kernels, or no batch norm behind: not the network of basic-pitch 0.4.0")

    write = _Writer()
    power = _constant_q(write, np.concatenate([cosine, sine]), only(1, 1, 1, KERNEL)[0], root_length[0].ravel())
    spectrogram = _normalized(write, power, float(affine[0]), float(affine[1]))
    stack = _harmonic_stack(write, spectrogram)

    contour = _contours(write, spectrogram, only(8, 8, 3, 39), only(1, 8, 5, 5))
    kernel, bias = only(32, 1, 7, 7)
    wide = write.padded(contour, [0, 0, 2, 3], [0, 0, 2, 3])
    smooth = write.add("Relu", [write.convolved(wide, kernel.transpose(0, 1, 3, 2), bias, (3, 1))])
    kernel, bias = only(1, 32, 7, 3)
    taps = write.convolved(smooth, kernel[0].transpose(1, 0, 2)[..., None], None, (1, 1), (1, 0))
    note = write.add("Sigmoid", [write.shifted_sum(taps, 7, float(bias[0]))])

    kernel, bias = only(32, 8, 5, 5)  # rows of the stack are frequency by frequency, harmonic by harmonic
    rows = kernel.transpose(0, 3, 1, 2).reshape(32, 1, 5 * len(HARMONIC_ROWS), 5)
    wide = write.padded(stack, [0, 0, len(HARMONIC_ROWS), 2], [0, 0, len(HARMONIC_ROWS), 2])
    attack = write.add("Relu", [write.convolved(wide, rows, bias, (3 * len(HARMONIC_ROWS), 1))])
    kernel, bias = only(1, 33, 3, 3)
    per_tap = kernel[0].transpose(1, 0, 2)[..., None]  # (frame, channel, row, 1)
    taps = write.add(
        "Add",
        [
            write.convolved(note, per_tap[:, :1], None, (1, 1), (1, 0)),
            write.convolved(attack, per_tap[:, 1:], None, (1, 1), (1, 0)),
        ],
    )
    onset = write.add("Sigmoid", [write.shifted_sum(taps, 3, float(bias[0]))])
    for tensor, name in ((note, "note"), (onset, "onset")):
        flat = write.shaped(tensor, [1, PITCHES, FRAMES])
        write.add("Transpose", [flat], name, perm=[0, 2, 1])

    graph = helper.make_graph(
        write.nodes,
        "basic_pitch",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, [1, SAMPLES])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, FRAMES, PITCHES]) for name in ("note", "onset")],
        [
            numpy_helper.from_array(np.ascontiguousarray(values).reshape(np.shape(values)), name)
            for name, values in write.constants.items()
        ],
    )
    fast = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(fast)
    serialized: bytes = fast.SerializeToString()
    return serialized


def _constant_of(model: Any, stored: dict[str, NDArray[Any]], kind: str, part: str) -> Any:
    """The one number that nodes of a kind, whose output is named so, read; None if there is not one."""
    found = [
        stored[name].ravel()
        for node in model.graph.node
        if node.op_type == kind and part in node.output[0]
        for name in node.input
        if name in stored
    ]
    return found[0][0] if len(found) == 1 and len(found[0]) == 1 else None


def _constant_q(write: _Writer, kernels: Array, halving: Array, root_length: Array) -> str:
    """Power of the constant-Q transform, (1, 1, 309 rows, 172 frames)."""
    signal, length = write.shaped("audio", [1, 1, 1, SAMPLES]), SAMPLES
    phases = np.zeros((PHASES, 1, 1, KERNEL + 2 * (PHASES - 1)), np.float32)
    for phase in range(PHASES):
        phases[phase, ..., 2 * phase : 2 * phase + KERNEL] = halving[0]
    octaves = []
    for octave in range(OCTAVES):
        wide = write.padded(signal, [0, 0, 0, KERNEL // 2], [0, 0, 0, KERNEL // 2], mode="reflect")
        first = max(BINS - 36 * (octave + 1), 0)
        factor = root_length[first : BINS - 36 * octave]
        skipped = 36 - len(factor)  # of the lowest octave
        own = (kernels.reshape(2, 36, 1, 1, KERNEL)[:, skipped:] * factor[None, :, None, None, None]).reshape(-1, 1, 1, KERNEL)
        parts = write.convolved(wide, own, None, (1, HOP >> octave))
        square = write.shaped(write.add("Mul", [parts, parts]), [2, len(factor), FRAMES])
        octaves.append(write.add("ReduceSum", [square, write.constant(np.array([0]))], keepdims=0))
        if octave < OCTAVES - 1:
            before, length = length, (length + 254 - KERNEL) // 2 + 1
            blocks = -(-length // PHASES)
            missing = 2 * PHASES * blocks + KERNEL - 2 - (127 + before)
            wide = write.padded(signal, [0, 0, 0, 127], [0, 0, 0, missing])
            halved = write.convolved(wide, phases, None, (1, 2 * PHASES))
            turned = write.add("Transpose", [write.shaped(halved, [PHASES, blocks])], perm=[1, 0])
            signal = write.part(write.shaped(turned, [1, 1, 1, PHASES * blocks]), 3, 0, length)
    return write.shaped(write.add("Concat", octaves[::-1], axis=0), [1, 1, BINS, FRAMES])


def _normalized(write: _Writer, power: str, scale: float, offset: float) -> str:
    """Logarithm, brought to 0-1 over the window, times scale plus offset; a window of one value is 0 before that."""
    logarithm = write.add("Log", [write.add("Add", [power, write.constant(np.float32(1e-10))])])
    least = write.add("ReduceMin", [logarithm], keepdims=1)
    above = write.add("Sub", [logarithm, least])
    largest = write.add("ReduceMax", [above], keepdims=1)
    zero = write.constant(np.float32(0))
    flat = write.add("Equal", [largest, zero])
    divisor = write.add("Where", [flat, write.constant(np.float32(1)), largest])  # what is divided is 0 then
    share = write.add("Div", [above, divisor])
    scaled = write.add("Mul", [share, write.constant(np.float32(scale))])
    return write.add("Add", [scaled, write.constant(np.float32(offset))])


def _harmonic_stack(write: _Writer, spectrogram: str) -> str:
    """Rows of the harmonics, (1, 1, 264 · 8, 172): those of the lowest frequency first; zeros where there is no row."""
    wide = write.padded(spectrogram, [0, 0, 0, 0], [0, 0, 1, 0])
    rows = np.arange(CONTOURS)[:, None] + np.array(HARMONIC_ROWS)
    rows[(rows < 0) | (rows >= BINS)] = BINS
    return write.add("Gather", [wide, write.constant(rows.ravel())], axis=2)


def _contours(write: _Writer, spectrogram: str, first: tuple[Array, Array], second: tuple[Array, Array]) -> str:
    """Two convolutions to the pitch contours, (1, 1, 264 rows, 172 frames)."""
    kernel, bias = first  # (8 channels, 8 harmonics, 3 frames, 39 rows)
    channels, _, frames, reach = kernel.shape
    matrix = np.zeros((CONTOURS, channels, BINS, frames), np.float32)
    for harmonic, above in enumerate(HARMONIC_ROWS):
        for tap in range(reach):
            seen = np.arange(CONTOURS) + tap - reach // 2  # row of the stack
            row = seen + above
            here = np.flatnonzero((seen >= 0) & (seen < CONTOURS) & (row >= 0) & (row < BINS))
            matrix[here, :, row[here]] += kernel[:, harmonic, :, tap]
    flat = write.shaped(spectrogram, [BINS, 1, FRAMES])
    wide = write.padded(flat, [0, 0, 1], [0, 0, 1])
    # (row, frame before · same · behind, frame)
    shifted = write.add("Concat", [write.part(wide, 2, tap, tap + FRAMES) for tap in range(frames)], axis=1)
    bands = []
    for start in range(0, CONTOURS, BAND):
        own = matrix[start : start + BAND]
        used = np.flatnonzero(own.any(axis=(0, 1, 3)))
        low, high = int(used[0]), int(used[-1]) + 1
        weights = own[:, :, low:high].reshape(BAND * channels, -1)
        entry = write.shaped(write.part(shifted, 0, low, high), [(high - low) * frames, FRAMES])
        bands.append(write.add("MatMul", [write.constant(weights), entry]))
    biases = write.constant(np.tile(bias, CONTOURS)[:, None].astype(np.float32))
    features = write.add("Relu", [write.add("Add", [write.add("Concat", bands, axis=0), biases])])

    kernel, bias = second  # (1, 8 channels, 5 frames, 5 rows)
    frames, reach = kernel.shape[2:]
    grouped = np.zeros((GROUP, frames, GROUP + reach - 1, channels), np.float32)
    for row in range(GROUP):
        grouped[row, :, row : row + reach] = kernel[0].transpose(1, 2, 0)
    around = channels * (reach // 2)
    rows = write.padded(write.shaped(features, [1, 1, CONTOURS * channels, FRAMES]), [0, 0, around, 0], [0, 0, around, 0])
    grouped = grouped.transpose(1, 0, 2, 3).reshape(frames * GROUP, 1, -1, 1)
    taps = write.convolved(rows, grouped, None, (GROUP * channels, 1))  # (1, frame · row, group, frame)
    apart = write.shaped(taps, [frames, GROUP, CONTOURS // GROUP, FRAMES])
    ordered = write.shaped(write.add("Transpose", [apart], perm=[0, 2, 1, 3]), [1, frames, CONTOURS, FRAMES])
    return write.add("Sigmoid", [write.shifted_sum(ordered, frames, float(bias[0]))])
