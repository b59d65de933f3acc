"""Derived inference files: ONNX graphs of the networks for onnxruntime on a CPU.

Convolutional networks are converted by Keras and tf2onnx, then quantised to static int8 where that agrees with float32 on real
windows, or else stored with float16 weights that are widened when the file is opened. The sequence network is written with ONNX's
own RNN operator, which takes the number of notes where Keras takes a mask. Needs the extra `train`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

MIN_R = 0.999  # of each label, derived graph against float32 Keras
MAX_SHARE_OF_RANGE = 0.01  # mean absolute difference, as a share of the label's range
HALF_FROM = 4_096  # numbers: larger weights are stored in float16


@dataclass(frozen=True)
class Agreement:
    """How a derived graph agrees with the float32 Keras model, over the labels of one head."""

    head: str
    windows: int
    least_r: float  # Pearson, over windows
    largest_share: float  # mean |difference| / range of the label

    @property
    def good(self) -> bool:
        """Whether the derived graph may be shipped."""
        return self.least_r >= MIN_R and self.largest_share <= MAX_SHARE_OF_RANGE


def float_graph(network: Any) -> bytes:
    """Convert a Keras network with convolutions, dense layers or an LSTM to ONNX, float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        network(np.zeros((1, *network.input_shape[1:]), np.float32))  # Keras exports only what has been called
        network.export(path, format="onnx", verbose=False)
        return path.read_bytes()


def half_weights(graph: bytes) -> bytes:
    """Store large weights in float16, each behind a Cast to float32 that onnxruntime folds away when it opens the file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_model_from_string(graph)
    casts = []
    for tensor in list(model.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= HALF_FROM:
            name = tensor.name
            half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}_half")
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(half)
            casts.append(helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    serialized: bytes = model.SerializeToString()
    return serialized


def int8_graph(graph: bytes, windows: Sequence[Array]) -> bytes:
    """Quantise a float graph to static int8 (QDQ, per channel), calibrated by min and max on real windows."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            self.batches = iter([{name: window[None, ..., None].astype(np.float32)} for window in windows])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.batches, None)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "float.onnx").write_bytes(graph)
        quant_pre_process(str(folder / "float.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
        import onnx

        inputs = onnx.load(folder / "prepared.onnx").graph.input[0].name
        quantize_static(
            str(folder / "prepared.onnx"),
            str(folder / "int8.onnx"),
            Reader(inputs),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,  # 7-bit weights: without VNNI instructions 8-bit ones would saturate, and differ by machine
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return (folder / "int8.onnx").read_bytes()


def run_graph(graph: bytes, windows: Sequence[Array], threads: int = 2) -> dict[str, Array]:
    """Run an ONNX graph over windows one by one: head -> (window, label)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    inputs = session.get_inputs()[0].name
    rows = [session.run(names, {inputs: window[None, ..., None].astype(np.float32)}) for window in windows]
    return {name: np.concatenate([row[number] for row in rows]) for number, name in enumerate(names)}


def agreement(derived: dict[str, Array], reference: dict[str, Array], ranges: dict[str, float]) -> list[Agreement]:
    """Agreement of a derived graph's outputs with the reference, a head each; `ranges` in the heads' own units."""
    found = []
    for head, span in ranges.items():
        ours, theirs = derived[head].astype(float), reference[head].astype(float)
        r = [
            float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0 for a, b in zip(ours.T, theirs.T, strict=True)
        ]
        share = np.abs(ours - theirs).mean(axis=0).max() / span
        found.append(Agreement(head, len(ours), min(r), float(share)))
    return found


def sequence_graph(network: Any) -> bytes:
    """Write the note-sequence network as ONNX: `notes` (track, note, 4), zero rows behind, to `va` (track, 4)."""
    from onnx import TensorProto, checker, helper, numpy_helper

    standardize = next(layer for layer in network.layers if hasattr(layer, "standard_deviation"))
    constants: dict[str, NDArray[Any]] = {
        "mean": np.array(standardize.mean, np.float32),
        "deviation": np.array(standardize.standard_deviation, np.float32),
        "zero": np.zeros((), np.float32),
        "note_axis": np.array([1]),
        "direction_axis": np.array([1]),
        "first": np.array([0]),
    }
    for name in ("first_rnn", "second_rnn"):
        kernel, recurrent, bias = network.get_layer(name).get_weights()
        constants[f"{name}_w"] = kernel.T[None]
        constants[f"{name}_r"] = recurrent.T[None]
        constants[f"{name}_b"] = np.concatenate([bias, np.zeros_like(bias)])[None]
    constants["kernel"], constants["bias"] = network.get_layer("va").get_weights()
    node = helper.make_node
    nodes = [
        node("Abs", ["notes"], ["magnitude"]),
        node("ReduceMax", ["magnitude"], ["largest"], axes=[2], keepdims=0),
        node("Greater", ["largest", "zero"], ["present"]),
        node("Cast", ["present"], ["counted"], to=TensorProto.INT32),
        node("ReduceSum", ["counted", "note_axis"], ["lengths"], keepdims=0),
        node("Sub", ["notes", "mean"], ["centered"]),
        node("Div", ["centered", "deviation"], ["standard"]),
        node("Transpose", ["standard"], ["steps"], perm=[1, 0, 2]),
        node("RNN", ["steps", "first_rnn_w", "first_rnn_r", "first_rnn_b", "lengths"], ["first_all"], hidden_size=64),
        node("Squeeze", ["first_all", "direction_axis"], ["first_out"]),
        node(
            "RNN",
            ["first_out", "second_rnn_w", "second_rnn_r", "second_rnn_b", "lengths"],
            ["", "second_last"],
            hidden_size=64,
        ),
        node("Squeeze", ["second_last", "first"], ["last"]),
        node("MatMul", ["last", "kernel"], ["linear"]),
        node("Add", ["linear", "bias"], ["va"]),
    ]
    graph = helper.make_graph(
        nodes,
        "va_sequence",
        [helper.make_tensor_value_info("notes", TensorProto.FLOAT, ["track", "note", 4])],
        [helper.make_tensor_value_info("va", TensorProto.FLOAT, ["track", 4])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized
