"""Derived inference files: ONNX graphs of the networks for onnxruntime on a CPU.

Convolutional networks are converted by Keras and tf2onnx, their batch norms folded, then quantised to static int8
(models.quantization) where that agrees with float32 on real windows; or else they stay in float32. Weights that float16 holds
exactly are stored so and widened when the file is opened. The sequence network is written with ONNX's
own RNN operator, which takes the number of notes where Keras takes a mask. Needs the extra `train`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import quantization
from models.va import FLOOR

Array = NDArray[np.float32]

MIN_R = 0.999  # of each label, derived graph against float32 Keras
MAX_SHARE_OF_RANGE = 0.01  # mean absolute difference, as a share of the label's range
HALF_FROM = 4_096  # numbers: larger weights are stored in float16, where that loses nothing
DENSE_FROM = 2**20  # weights from which a dense layer is quantised
TRIAL_WINDOWS = 24  # of the calibration windows: each way to quantise is judged by them
FEWEST_WINDOWS = 20  # to calibrate int8 on
MAX_MISS = 1.5  # times the rule on trial windows: what is worse is not worth the check, whose bias correction helps a little
MAX_KEPT = 2  # convolutions that may stay in float32 beside the first
# range of the labels of each head, in the network's own units, that differences are measured against
RANGES = {
    "midlevel": {"rating": 0.9, "salience": 1.0},
    "joint": {"film": 0.8, "midlevel": 0.9},
    "a2e": {"film": 0.8},
    "a2mid2e": {"film": 0.8, "midlevel": 0.9},
    "emotion": {"emotion": 1.0},
    "crnn": {"reg_output": 1.0, "class_output": 1.0},
}


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

    @property
    def miss(self) -> float:
        """How far the graph is from float32, 1 where the rule is just met."""
        return max((1 - self.least_r) / (1 - MIN_R), self.largest_share / MAX_SHARE_OF_RANGE)


def float_graph(network: Any) -> bytes:
    """Convert a Keras network with convolutions, dense layers or an LSTM to ONNX, float32."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        network(np.zeros((1, *network.input_shape[1:]), np.float32))  # Keras exports only what has been called
        with _hushed():
            network.export(path, format="onnx", verbose=False)
        return path.read_bytes()


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep back what TensorFlow's C++ writes of an export that goes well, which no setting turns off; show it after an error."""
    with tempfile.TemporaryFile() as held, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="In the future `np.object` will be defined", category=FutureWarning)
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def half_weights(graph: bytes) -> bytes:
    """Store large weights in float16, each behind a Cast to float32 that onnxruntime folds away when it opens the file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_model_from_string(graph)
    casts = []
    for tensor in list(model.graph.initializer):
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= HALF_FROM:
            name, values = tensor.name, numpy_helper.to_array(tensor)
            if not np.array_equal(values.astype(np.float16).astype(np.float32), values):
                continue
            half = numpy_helper.from_array(values.astype(np.float16), f"{name}_half")
            model.graph.initializer.remove(tensor)
            model.graph.initializer.append(half)
            casts.append(helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        model.graph.node.insert(0, cast)
    serialized: bytes = model.SerializeToString()
    return serialized


def run_graph(graph: bytes, windows: Sequence[Array]) -> dict[str, Array]:
    """Run an ONNX graph over windows one by one: head -> (window, label)."""
    rows = list(quantization.run(graph, windows))
    return {head: np.concatenate([row[head] for row in rows]) for head in rows[0]}


def run_network(network: Any, windows: Sequence[Array]) -> dict[str, Array]:
    """Run a Keras network over windows, a few at a time: head -> (window, label)."""
    outputs: dict[str, list[Array]] = {}
    for start in range(0, len(windows), 4):
        batch = np.stack(windows[start : start + 4])[..., None].astype(np.float32)
        for head, values in network.predict_on_batch(batch).items():
            outputs.setdefault(head, []).append(np.asarray(values))
    return {head: np.concatenate(parts) for head, parts in outputs.items()}


def engine(
    network: Any, family: str, calibration: Sequence[Array], checked: Sequence[Array], *, say: Callable[[str], None] = print
) -> tuple[bytes, dict[str, Any]]:
    """Derive the graph that a CPU runs, and the record of its agreement with the float32 Keras network.

    Static int8 is tried in several ways: where each activation's scale ends, whether channels are balanced; the one that agrees
    best on some of the calibration windows gets its bias corrected. If it misses the rule there, the convolution whose rounding
    costs most stays in float32, then the next. What passes must agree on `checked`, too. If nothing does: float32.

    Parameters
    ----------
    network : keras.Model
        In float32, with one input.
    family : str
        One of `RANGES`.
    calibration, checked : sequences of numpy.ndarray
        Windows of real music, as the network takes them, without batch and channel axes; none in both. With fewer than
        `FEWEST_WINDOWS` to calibrate on the graph stays float32.
    say : Callable
        Takes a line for each graph that was tried.

    Returns
    -------
    bytes, dict
        The ONNX file; `kind`, what was `measured` on `checked` for every kind that came so far, and how int8 was made.

    Raises
    ------
    ValueError
        If not even the float32 graph agrees.
    """
    ranges = RANGES[family]
    plain = float_graph(network)
    expected = run_network(network, checked)
    measured: dict[str, Any] = {}
    for kind, derived, made in _candidates(plain, family, calibration, say):
        found = agreement(run_graph(derived, checked), expected, ranges)
        measured[kind] = [asdict(one) | {"good": one.good} for one in found]
        say(f"{family}: {kind}, on other windows: {_text(found)}")
        if all(one.good for one in found):
            return derived, {"kind": kind, "measured": measured} | made
    raise ValueError(f"{family}: no derived graph agrees with the Keras model: {measured}")


def _text(found: Sequence[Agreement]) -> str:
    return ", ".join(
        f"{one.head} r >= {one.least_r:.5f}, difference <= {100 * one.largest_share:.2f} % of the range" for one in found
    )


def _candidates(
    plain: bytes, family: str, calibration: Sequence[Array], say: Callable[[str], None]
) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Graphs worth a check, the cheapest to run first: kind, graph, how it was made."""
    ranges = RANGES[family]
    unrounded: tuple[str, bytes, dict[str, Any]] = (
        "float32 (float16 weights)",
        half_weights(quantization.fold(plain, constant_channels=False)),
        {},
    )
    if len(calibration) < FEWEST_WINDOWS:
        yield unrounded
        return
    folded = quantization.fold(plain, constant_channels=True)
    trial = calibration[:: max(1, len(calibration) // TRIAL_WINDOWS)][:TRIAL_WINDOWS]
    reference = run_graph(folded, trial)
    activations = quantization.calibrate(folded, calibration)
    entries = quantization.largest_entries(folded, calibration, DENSE_FROM)

    def miss(clip: str, balance: float, kept: Sequence[int]) -> tuple[float, bytes]:
        derived = quantization.quantize(folded, activations, clip, balance, kept)
        derived = quantization.quantize_dense(derived, entries, DENSE_FROM)
        found = agreement(run_graph(derived, trial), reference, ranges)
        say(f"{family}: int8, {clip}, balance {balance}, in float32 {list(kept)}: {_text(found)}")
        return max(one.miss for one in found), derived

    ways = [(clip, balance) for clip in quantization.CLIPS for balance in quantization.BALANCES]
    tried = {way: miss(*way, ()) for way in ways}
    clip, balance = min(ways, key=lambda way: tried[way][0])
    score, derived = tried[clip, balance]
    kept: list[int] = []
    left = list(range(1, quantization.convolutions(folded)))
    while left:  # once all are in float32 nothing of this is left
        made = {"made": {"scale_ends_at": clip, "balance": balance, "convolutions_in_float32": [0, *kept]}}
        if score <= MAX_MISS:
            corrected = half_weights(quantization.correct_bias(derived, folded, trial))
            yield "int8" if not kept else f"int8, {len(kept)} more convolutions in float32", corrected, made
        if len(kept) == MAX_KEPT:
            break
        scored = {number: miss(clip, balance, [*kept, number]) for number in left}
        best = min(left, key=lambda number: scored[number][0])
        kept.append(best)
        left.remove(best)
        score, derived = scored[best]
    if entries:
        dense = quantization.quantize_dense(quantization.fold(plain, constant_channels=False), entries, DENSE_FROM)
        yield "int8 (dense layer only)", half_weights(dense), {}
    yield unrounded


def agreement(derived: dict[str, Array], reference: dict[str, Array], ranges: dict[str, float]) -> list[Agreement]:
    """Agreement of a derived graph's outputs with the reference, a head each; `ranges` in the heads' own units."""
    found = []
    for head, span in ranges.items():
        ours, theirs = derived[head].astype(float), reference[head].astype(float)
        r = [
            float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float(a.std() == b.std())
            for a, b in zip(ours.T, theirs.T, strict=True)
        ]
        share = np.abs(ours - theirs).mean(axis=0).max() / span
        found.append(Agreement(head, len(ours), min(r), float(share)))
    return found


def sequence_graph(network: Any) -> bytes:
    """Write the note-sequence network, or the dense one behind its trunk, as ONNX.

    `notes` (track, note, 4), zero rows behind, to `va` (track, 4).
    """
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
        node("Squeeze", ["second_last", "first"], ["second_rnn"]),
    ]
    names = [layer.name for layer in network.layers]
    before = "second_rnn"
    for layer in network.layers[names.index("second_rnn") + 1 :]:
        if type(layer).__name__ == "Rescaling":
            scale, offset, after = np.array(layer.scale, np.float32), np.array(layer.offset, np.float32), "Identity"
            nodes.append(node("Mul", [before, f"{layer.name}_scale"], [f"{layer.name}_scaled"]))
        else:
            scale, offset = layer.get_weights()
            after = {"linear": "Identity", "relu": "Relu", "floored": "Max"}[layer.activation.__name__]
            nodes.append(node("MatMul", [before, f"{layer.name}_scale"], [f"{layer.name}_scaled"]))
        constants |= {f"{layer.name}_scale": scale, f"{layer.name}_offset": offset, "floor": np.array(FLOOR, np.float32)}
        nodes.append(node("Add", [f"{layer.name}_scaled", f"{layer.name}_offset"], [f"{layer.name}_moved"]))
        more = ["floor"] if after == "Max" else []
        nodes.append(node(after, [f"{layer.name}_moved", *more], [layer.name]))
        before = layer.name
    graph = helper.make_graph(
        nodes,
        "va_sequence",
        [helper.make_tensor_value_info("notes", TensorProto.FLOAT, ["track", "note", 4])],
        [helper.make_tensor_value_info("va", TensorProto.FLOAT, ["track", 4])],
        [numpy_helper.from_array(np.asarray(value, order="C"), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def tagger_engine(
    network: Any,
    calibration: Sequence[Array],
    tracks: Sequence[Sequence[Array]],
    rate: Callable[[int, dict[str, Array]], dict[str, Array]],
    ranges: dict[str, float],
    *,
    say: Callable[[str], None] = print,
) -> tuple[bytes, dict[str, Any]]:
    """Derive the graph of the tagging network that a CPU runs: its front end in int8 where the ratings made of it stay the same.

    Parameters
    ----------
    network : keras.Model
        The tagging network, in float32.
    calibration : sequence of numpy.ndarray
        Windows of real music (187, 96).
    tracks : sequence of sequences of numpy.ndarray
        The windows of other tracks, on whose ratings the graph is judged.
    rate : Callable
        Maps the number of a track and the network's outputs for its windows to ratings, target -> (label,).
    ranges : dict
        Range of the labels of each target, in the units of its ratings.
    say : Callable
        Takes a line for each graph that was tried.

    Returns
    -------
    bytes, dict
        The ONNX file; `kind`, the agreement of the ratings `measured` for int8, and the `largest_difference` of each output
        between float32 in Keras and in ONNX.
    """
    plain = quantization.fold(float_graph(network), constant_channels=False)
    shown = list(calibration[:TRIAL_WINDOWS])
    in_keras, in_onnx = run_network(network, shown), run_graph(plain, shown)
    differences = {head: float(np.abs(in_onnx[head] - values).max()) for head, values in in_keras.items()}

    def ratings(graph: bytes) -> dict[str, Array]:
        windows = [window for track in tracks for window in track]
        outputs = run_graph(graph, windows)
        ends = np.cumsum([len(track) for track in tracks])[:-1]
        parts = {head: np.split(values, ends) for head, values in outputs.items()}
        rows = [rate(number, {head: values[number] for head, values in parts.items()}) for number in range(len(tracks))]
        return {target: np.stack([row[target] for row in rows]) for target in ranges}

    moved = quantization.pool_first(plain)
    derived = quantization.quantize_front(moved, calibration)
    found = agreement(ratings(derived), ratings(plain), ranges)
    say(f"best: int8 front end, ratings of {len(tracks)} other tracks: {_text(found)}")
    good = all(one.good for one in found)
    record = {
        "kind": "int8 front end" if good else "float32 (float16 weights)",
        "measured": {"int8 front end": [asdict(one) | {"good": one.good} for one in found]},
        "judged_by": f"ratings of {len(tracks)} tracks, against float32",
        "largest_difference": differences,
    }
    return half_weights(derived if good else moved), record
