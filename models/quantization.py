"""From a float32 ONNX graph of a convolutional network to an exact one with fewer steps, and from there to static int8.

Conventions
-----------
Graphs are ONNX files as bytes, as tf2onnx writes them: convolutions `(batch, channel, row, column)`, batch norms as Mul and Add.
Windows are the network's own inputs without batch and channel axes. Weights get 7 bits and activations 8: without VNNI
instructions products of 8-bit weights would saturate, and a graph would give other numbers on another CPU.

Sources: B. Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference",
CVPR 2018; M. Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019 (balancing of
channels, correction of biases); G. Xiao et al., "SmoothQuant", ICML 2023 (the balance between weights and activations).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

LARGEST_WEIGHT = 64  # 7 bits: two products with 8-bit activations fit 16 bits
CLIPS = ("largest", "percentile", "least squares")  # where the scale of an activation ends
PERCENTILE = 99.99
BALANCES = (0.0, 0.5)  # share of a channel's range that its weights take over; 0: none
SAMPLES = 128  # positions of each activation that a window contributes
_STEPS = np.linspace(0.2, 1.0, 41)  # of the largest value, tried by least squares


class Graph:
    """An ONNX graph taken apart: its nodes in order, and its constants by name."""

    def __init__(self, graph: bytes) -> None:
        import onnx
        from onnx import numpy_helper

        self.model = onnx.load_model_from_string(graph)
        self.nodes = list(self.model.graph.node)
        self.constants: dict[str, NDArray[Any]] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in self.model.graph.initializer
        }

    def of_type(self, *kinds: str) -> list[Any]:
        """Nodes of some operators, in order."""
        return [node for node in self.nodes if node.op_type in kinds]

    def users(self, tensor: str) -> list[Any]:
        """Nodes that read a tensor."""
        return [node for node in self.nodes if tensor in node.input]

    def only_user(self, tensor: str, *kinds: str) -> Any:
        """The one node that reads a tensor, if it is of one of these operators and the tensor is no output; else None."""
        users = self.users(tensor)
        outputs = {output.name for output in self.model.graph.output}
        return users[0] if len(users) == 1 and users[0].op_type in kinds and tensor not in outputs else None

    def affine(self, tensor: str) -> tuple[Any, Any, Array, Array] | None:
        """What a batch norm became behind a tensor: Mul, Add, and their constants by channel; None if there is none."""
        multiply = self.only_user(tensor, "Mul")
        if multiply is None or multiply.input[1] not in self.constants:
            return None
        add = self.only_user(multiply.output[0], "Add")
        if add is None or add.input[1] not in self.constants:
            return None
        return multiply, add, self.constants[multiply.input[1]].ravel(), self.constants[add.input[1]].ravel()

    def weights(self, convolution: Any) -> tuple[Array, Array]:
        """Kernel (out, in, row, column) and bias of a convolution."""
        kernel = self.constants[convolution.input[1]]
        bias = self.constants[convolution.input[2]] if len(convolution.input) > 2 else np.zeros(len(kernel), np.float32)
        return kernel, bias

    def set_weights(self, convolution: Any, kernel: Array, bias: Array) -> None:
        """Give a convolution another kernel and bias."""
        names = [f"{convolution.output[0]}/kernel", f"{convolution.output[0]}/bias"]
        self.constants |= dict(zip(names, (kernel.astype(np.float32), bias.astype(np.float32)), strict=True))
        inputs = [convolution.input[0], *names]
        del convolution.input[:]
        convolution.input.extend(inputs)

    def following(self, convolution: Any) -> tuple[Any, Any, Any]:
        """What follows a convolution: its Relu, a MaxPool behind that, and the next convolution; None for what there is not."""
        relu = self.only_user(convolution.output[0], "Relu")
        if relu is None:
            return None, None, None
        pool = self.only_user(relu.output[0], "MaxPool")
        return relu, pool, self.only_user((pool or relu).output[0], "Conv")

    def serialize(self) -> bytes:
        """Put the graph together again."""
        from onnx import numpy_helper

        used = {name for node in self.nodes for name in node.input}
        graph = self.model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in self.constants.items() if name in used
        )
        serialized: bytes = self.model.SerializeToString()
        return serialized


def _padded(convolution: Any) -> bool:
    return any(any(attribute.ints) for attribute in convolution.attribute if attribute.name == "pads")


def fold(graph: bytes, *, constant_channels: bool) -> bytes:
    """Fold batch norms into the convolutions beside them; the results stay the same but for rounding.

    Directly behind a convolution a batch norm scales its weights. Behind a Relu its factors scale the convolution before (a Relu
    passes a positive factor on) and its signs and offsets enter the convolution after. Where that one pads, the zeros around
    the picture would need another offset: with `constant_channels` the convolution before gets one more channel, constant 1
    inside of the picture, which carries the offset; without, such a batch norm stays. Before a global mean it moves behind it.
    """
    parts = Graph(graph)
    for convolution in parts.of_type("Conv"):
        direct = parts.affine(convolution.output[0])
        if direct is not None:
            multiply, add, factor, offset = direct
            kernel, bias = parts.weights(convolution)
            parts.set_weights(convolution, kernel * factor[:, None, None, None], bias * factor + offset)
            convolution.output[0] = add.output[0]
            parts.nodes.remove(multiply)
            parts.nodes.remove(add)
        relu = parts.only_user(convolution.output[0], "Relu")
        if relu is not None:
            _fold_behind(parts, convolution, relu, constant_channels)
    return parts.serialize()


def _fold_behind(parts: Graph, convolution: Any, relu: Any, constant_channels: bool) -> None:
    """Fold the batch norm behind a Relu, or behind its MaxPool, where that is possible."""
    pool = parts.only_user(relu.output[0], "MaxPool")
    before = (pool or relu).output[0]
    found = parts.affine(before)
    if found is None:
        return
    multiply, add, factor, offset = found
    user = parts.only_user(add.output[0], "Conv", "MaxPool", "GlobalAveragePool")
    if user is None:
        return
    if user.op_type == "GlobalAveragePool":
        user.input[0] = before
        mean = user.output[0]
        user.output[0] = multiply.input[0] = f"{mean}/before"
        multiply.output[0] = add.input[0] = f"{mean}/scaled"
        add.output[0] = mean
        at = [node for node in parts.nodes if node not in (multiply, add)]
        place = at.index(user) + 1
        parts.nodes = [*at[:place], multiply, add, *at[place:]]
        return
    following = user if user.op_type == "Conv" else parts.only_user(user.output[0], "Conv")
    if following is None or (user.op_type == "MaxPool" and not (factor > 0).all()):  # the largest becomes the smallest
        return
    if _padded(following) and not constant_channels:
        return
    scale: Array = np.maximum(np.abs(factor), np.float32(1e-6))
    kernel, bias = parts.weights(convolution)
    kernel, bias = kernel * scale[:, None, None, None], bias * scale
    next_kernel, next_bias = parts.weights(following)
    carried: Array = np.einsum("ocij,c->oij", next_kernel, offset)
    next_kernel = (next_kernel * (factor / scale)[None, :, None, None]).astype(np.float32)
    if _padded(following):
        kernel = np.concatenate((kernel, np.zeros((1, *kernel.shape[1:]), np.float32)))
        bias = np.append(bias, np.float32(1))
        next_kernel = np.concatenate((next_kernel, carried[:, None]), axis=1)
    else:
        next_bias = next_bias + carried.sum(axis=(1, 2))
    parts.set_weights(convolution, kernel, bias)
    parts.set_weights(following, next_kernel, next_bias)
    user.input[0] = before
    parts.nodes.remove(multiply)
    parts.nodes.remove(add)


@dataclass(frozen=True, eq=False)
class Activations:
    """What an activation was on the calibration windows; all are outputs of a Relu, so they begin at 0."""

    largest: Array  # of each channel
    samples: Array  # (channel, sample)

    def top(self, clip: str, divisor: Array) -> float:
        """Where the 8-bit scale of the activation ends if each channel is divided by `divisor`."""
        largest = float((self.largest / divisor).max())
        if clip == "largest":
            return largest
        values: NDArray[Any] = (self.samples / divisor[:, None]).ravel()
        if clip == "percentile":
            return float(np.percentile(values, PERCENTILE))
        counts, edges = np.histogram(values, 4096, (0.0, max(largest, 1e-6)))
        middles = (edges[1:] + edges[:-1]) / 2
        errors = []
        for share in _STEPS:
            step = max(largest, 1e-6) * share / 255
            errors.append(float((counts * (np.clip(np.round(middles / step), 0, 255) * step - middles) ** 2).sum()))
        return largest * float(_STEPS[int(np.argmin(errors))])


def run(graph: bytes, windows: Sequence[Array], outputs: Sequence[str] = (), threads: int = 1) -> Iterator[dict[str, Array]]:
    """Run a graph over windows one by one; `outputs` names tensors to give beside the graph's own outputs."""
    import onnxruntime

    if outputs:
        import onnx
        from onnx import TensorProto, helper

        model = onnx.load_model_from_string(graph)
        model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs)
        graph = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    entry = session.get_inputs()[0].name
    for window in windows:
        values = session.run(names, {entry: np.asarray(window, np.float32)[None, ..., None]})
        yield dict(zip(names, values, strict=True))


def calibrate(graph: bytes, windows: Sequence[Array]) -> dict[str, Activations]:
    """Look at the outputs of the Relus (and of the MaxPools behind them) behind every convolution, by name."""
    parts = Graph(graph)
    names = []
    for convolution in parts.of_type("Conv"):
        relu, pool, _ = parts.following(convolution)
        if relu is not None:
            names.append((pool or relu).output[0])
    largest: dict[str, Array] = {}
    samples: dict[str, list[Array]] = {name: [] for name in names}
    random = np.random.default_rng(0)
    for values in run(graph, windows, names):
        for name in names:
            channels = values[name][0].reshape(values[name].shape[1], -1)
            top = channels.max(axis=1)
            largest[name] = np.maximum(largest[name], top) if name in largest else top
            samples[name].append(channels[:, random.integers(0, channels.shape[1], SAMPLES)])
    return {name: Activations(largest[name], np.concatenate(samples[name], axis=1)) for name in names}


def convolutions(graph: bytes) -> int:
    """Number of convolutions of a graph."""
    return len(Graph(graph).of_type("Conv"))


def quantize(graph: bytes, activations: Mapping[str, Activations], clip: str, balance: float, kept: Sequence[int] = ()) -> bytes:
    """Quantise the convolutions of a folded graph, but for the first one and those whose numbers are in `kept`; QDQ, per channel.

    The first convolution reads the spectrogram itself, which 8 bits would blur, and costs next to nothing.
    """
    from onnx import helper

    parts = Graph(graph)
    all_of_them = parts.of_type("Conv")
    chosen = [convolution for number, convolution in enumerate(all_of_them) if number and number not in kept]
    before: list[Any] = []
    scales: dict[str, np.float32] = {}
    quantized: dict[str, str] = {}

    def twice(tensor: str, scale: np.float32) -> list[Any]:
        parts.constants |= {f"{tensor}/scale": np.array(scale, np.float32), f"{tensor}/zero": np.zeros((), np.uint8)}
        constants = [f"{tensor}/scale", f"{tensor}/zero"]
        quantized[tensor] = f"{tensor}/again"
        return [
            helper.make_node("QuantizeLinear", [tensor, *constants], [f"{tensor}/8bit"]),
            helper.make_node("DequantizeLinear", [f"{tensor}/8bit", *constants], [quantized[tensor]]),
        ]

    behind: dict[str, list[Any]] = {}  # nodes to follow a tensor
    for convolution in all_of_them:
        relu, pool, following = parts.following(convolution)
        if relu is None or not (following in chosen or convolution in chosen):
            continue
        name = (pool or relu).output[0]
        seen = activations[name]
        divisor = np.ones_like(seen.largest)
        kernel, bias = parts.weights(convolution)
        if balance and following is not None:
            next_kernel, next_bias = parts.weights(following)
            reach = np.maximum(np.abs(next_kernel).max(axis=(0, 2, 3)), 1e-6)
            divisor = np.maximum(seen.largest, 1e-6) ** balance / reach ** (1 - balance)
            divisor = np.clip(divisor / np.exp(np.log(divisor).mean()), 1 / 64, 64).astype(np.float32)
            kernel, bias = kernel / divisor[:, None, None, None], bias / divisor
            next_kernel = next_kernel * divisor[None, :, None, None]
            parts.set_weights(following, next_kernel, next_bias)
        scale = np.float32(max(seen.top(clip, divisor), 1e-6) / 255)
        if following is not None and not kernel[-1].any() and bias[-1] > 0:  # a constant channel: let it be exact
            next_kernel, next_bias = parts.weights(following)
            next_kernel = next_kernel.copy()
            next_kernel[:, -1] *= bias[-1] / (255 * scale)
            bias = np.append(bias[:-1], 255 * scale)
            parts.set_weights(following, next_kernel, next_bias)
        parts.set_weights(convolution, kernel, bias)
        scales[name] = scale
        for tensor in {relu.output[0], name}:
            behind[tensor] = twice(tensor, scale)
    for convolution in chosen:
        entry, output = convolution.input[0], convolution.output[0]
        if entry not in scales:
            continue
        kernel, bias = parts.weights(convolution)
        before += eight_bit_weights(parts, output, kernel, bias, scales[entry])
        inputs = [entry, f"{output}/kernel/float", f"{output}/bias/float"]
        del convolution.input[:]
        convolution.input.extend(inputs)
    nodes = before
    for node in parts.nodes:
        for place, tensor in enumerate(node.input):
            if tensor in quantized:
                node.input[place] = quantized[tensor]
        nodes.append(node)
        for tensor in node.output:
            nodes += behind.get(tensor, [])
    parts.nodes = nodes
    return parts.serialize()


def eight_bit_weights(parts: Graph, output: str, kernel: Array, bias: Array, scale: np.float32) -> list[Any]:
    """Put a convolution's kernel (8 bits, a step a channel) and bias (32 bits) among the constants; the nodes that read them.

    `scale` is the step of the convolution's 8-bit input. The nodes give ``{output}/kernel/float`` and ``{output}/bias/float``.
    """
    from onnx import helper

    step = np.maximum(np.abs(kernel).max(axis=(1, 2, 3)) / LARGEST_WEIGHT, 1e-12)
    step = np.maximum(step, np.abs(bias) / (scale * 2.0**28)).astype(np.float32)  # the bias must fit 32 bits
    whole = np.clip(np.round(kernel / step[:, None, None, None]), -LARGEST_WEIGHT, LARGEST_WEIGHT)
    bias_step = step * scale
    nodes = []
    for part, values, width, kind in (
        ("kernel", whole, step, np.int8),
        ("bias", np.round(bias.astype(np.float64) / bias_step), bias_step, np.int32),
    ):
        names = [f"{output}/{part}/{name}" for name in ("whole", "step", "zero")]
        parts.constants |= dict(
            zip(names, (values.astype(kind), width.astype(np.float32), np.zeros(len(width), kind)), strict=True)
        )
        nodes.append(helper.make_node("DequantizeLinear", names, [f"{output}/{part}/float"], axis=0))
    return nodes


def quantize_dense(graph: bytes, entries: Mapping[str, float], from_weights: int) -> bytes:
    """Quantise MatMuls with at least `from_weights` weights, per column; `entries` gives the largest magnitude of each input."""
    from onnx import TensorProto, helper

    parts = Graph(graph)
    nodes: list[Any] = []
    for node in parts.nodes:
        weights = parts.constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if weights is None or weights.size < from_weights or node.input[0] not in entries:
            nodes.append(node)
            continue
        output = node.output[0]
        scale = np.float32(max(entries[node.input[0]], 1e-6) / 127)
        step = np.maximum(np.abs(weights).max(axis=0) / LARGEST_WEIGHT, 1e-12).astype(np.float32)
        constants: dict[str, NDArray[Any]] = {
            "scale": np.array(scale, np.float32),
            "zero": np.array(128, np.uint8),
            "whole": np.clip(np.round(weights / step), -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8),
            "unit": (step * scale).astype(np.float32),
        }
        parts.constants |= {f"{output}/{name}": value for name, value in constants.items()}
        nodes += [
            helper.make_node("QuantizeLinear", [node.input[0], f"{output}/scale", f"{output}/zero"], [f"{output}/8bit"]),
            helper.make_node("MatMulInteger", [f"{output}/8bit", f"{output}/whole", f"{output}/zero"], [f"{output}/sum"]),
            helper.make_node("Cast", [f"{output}/sum"], [f"{output}/float"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{output}/float", f"{output}/unit"], [output]),
        ]
    parts.nodes = nodes
    return parts.serialize()


def largest_entries(graph: bytes, windows: Sequence[Array], from_weights: int) -> dict[str, float]:
    """Largest magnitude of the input of every MatMul with at least `from_weights` weights, over windows."""
    parts = Graph(graph)
    names = [
        node.input[0]
        for node in parts.of_type("MatMul")
        if node.input[1] in parts.constants and parts.constants[node.input[1]].size >= from_weights
    ]
    found = dict.fromkeys(names, 0.0)
    if names:
        for values in run(graph, windows, names):
            for name in names:
                found[name] = max(found[name], float(np.abs(values[name]).max()))
    return found


def correct_bias(graph: bytes, exact: bytes, windows: Sequence[Array]) -> bytes:
    """Shift the first bias behind the last convolution so that its output has the exact graph's mean over the windows."""
    parts = Graph(graph)
    start = parts.nodes.index(parts.of_type("Conv")[-1])
    outputs = {output.name for output in parts.model.graph.output}
    for node in parts.nodes[start:]:
        if node.op_type != "Add" or node.input[1] not in parts.constants or node.output[0] in outputs:
            continue
        constant, tensor = parts.constants[node.input[1]], node.output[0]
        means = []
        for each in (exact, graph):
            rows = [values[tensor] for values in run(each, windows, [tensor])]
            if rows[0].size != constant.size:
                break
            means.append(np.mean(rows, axis=0, dtype=np.float64).reshape(constant.shape))
        if len(means) < 2:
            continue
        parts.constants[f"{tensor}/corrected"] = (constant + means[0] - means[1]).astype(np.float32)
        node.input[1] = f"{tensor}/corrected"
        return parts.serialize()
    return graph


def pool_first(graph: bytes) -> bytes:
    """Move what stands between a convolution and its MaxPool over a whole axis behind the pool; the results stay the same.

    Relu and a batch norm's Mul and Add, channel by channel, give the same on the largest value as the largest of what they give;
    where the factor is negative, on the smallest: there the convolution's sign is turned before and after.
    """
    from onnx import helper

    parts = Graph(graph)
    for convolution in parts.of_type("Conv"):
        relu = parts.only_user(convolution.output[0], "Relu")
        found = parts.affine(relu.output[0]) if relu is not None else None
        if relu is None or found is None:
            continue
        multiply, add, factor, offset = found
        pool = parts.only_user(add.output[0], "MaxPool")
        if pool is None:
            continue
        sign = np.where(factor < 0, -1, 1).astype(np.float32)
        kernel, bias = parts.weights(convolution)
        parts.set_weights(convolution, kernel * sign[:, None, None, None], bias * sign)
        name = pool.output[0]
        shape = (1, -1, 1, 1)
        parts.constants |= {
            f"{name}/sign": sign.reshape(shape),
            f"{name}/factor": factor.reshape(shape),
            f"{name}/offset": offset.reshape(shape),
        }
        pool.input[0], pool.output[0] = convolution.output[0], f"{name}/largest"
        behind = [
            helper.make_node("Mul", [f"{name}/largest", f"{name}/sign"], [f"{name}/signed"]),
            helper.make_node("Relu", [f"{name}/signed"], [f"{name}/rectified"]),
            helper.make_node("Mul", [f"{name}/rectified", f"{name}/factor"], [f"{name}/scaled"]),
            helper.make_node("Add", [f"{name}/scaled", f"{name}/offset"], [name]),
        ]
        kept = [node for node in parts.nodes if node not in (relu, multiply, add)]
        place = kept.index(pool) + 1
        parts.nodes = [*kept[:place], *behind, *kept[place:]]
    return parts.serialize()


def quantize_front(graph: bytes, windows: Sequence[Array]) -> bytes:
    """Quantise the convolutions of one channel behind which a MaxPool stands (`pool_first`); QDQ, per channel.

    Those over time alone stay in float32: their 8-bit form is slower, for want of a width to gather their input along.
    Each channel is divided by the largest value that its pool gave on `windows`, so that one scale serves them all; the Mul
    behind multiplies it again.
    """
    from onnx import helper

    parts = Graph(graph)
    chosen = [
        (convolution, pool)
        for convolution in parts.of_type("Conv")
        if parts.weights(convolution)[0].shape[1] == 1 < parts.weights(convolution)[0].shape[3]
        and (pool := parts.only_user(convolution.output[0], "MaxPool")) is not None
    ]
    entries = {convolution.input[0] for convolution, _ in chosen}
    names = [*entries, *(pool.output[0] for _, pool in chosen)]
    lowest: dict[str, Array] = {}
    highest: dict[str, Array] = {}
    for values in run(graph, windows, names):
        for name in names:
            channels = values[name][0].reshape(values[name].shape[1], -1)
            low, high = channels.min(axis=1), channels.max(axis=1)
            lowest[name] = np.minimum(lowest.get(name, low), low)
            highest[name] = np.maximum(highest.get(name, high), high)
    doubled: dict[str, str] = {}
    behind: dict[str, list[Any]] = {}

    def twice(tensor: str, scale: np.float32, zero: int) -> None:
        parts.constants |= {f"{tensor}/scale": np.array(scale, np.float32), f"{tensor}/zero": np.array(zero, np.uint8)}
        constants = [f"{tensor}/scale", f"{tensor}/zero"]
        doubled[tensor] = f"{tensor}/again"
        behind[tensor] = [
            helper.make_node("QuantizeLinear", [tensor, *constants], [f"{tensor}/8bit"]),
            helper.make_node("DequantizeLinear", [f"{tensor}/8bit", *constants], [doubled[tensor]]),
        ]

    scales: dict[str, np.float32] = {}
    for entry in sorted(entries):
        low, high = min(float(lowest[entry].min()), 0.0), max(float(highest[entry].max()), 0.0)
        scales[entry] = np.float32(max(high - low, 1e-6) / 255)
        twice(entry, scales[entry], round(-low / float(scales[entry])))
    before: list[Any] = []
    for convolution, pool in chosen:
        pooled, output, entry = pool.output[0], convolution.output[0], convolution.input[0]
        sign = parts.users(pooled)[0]  # the Mul of pool_first
        low, high = lowest[pooled], highest[pooled]
        signs = parts.constants[sign.input[1]].ravel()
        # behind the sign stands a Relu: below 0, or above it where the sign is turned, nothing matters
        reach: Array = np.maximum(np.where(signs > 0, high, -low), 1e-6).astype(np.float32)
        parts.constants[f"{output}/sign"] = parts.constants[sign.input[1]] * reach.reshape(1, -1, 1, 1)
        sign.input[1] = f"{output}/sign"
        kernel, bias = parts.weights(convolution)
        kernel, bias = kernel / reach[:, None, None, None], bias / reach
        negative = bool((signs < 0).any())
        for tensor in (output, pooled):
            twice(tensor, np.float32((2 if negative else 1) / 255), 128 if negative else 0)
        before += eight_bit_weights(parts, output, kernel, bias, scales[entry])
        del convolution.input[:]
        convolution.input.extend([doubled[entry], f"{output}/kernel/float", f"{output}/bias/float"])
    nodes = before
    for node in parts.nodes:
        for place, tensor in enumerate(node.input):
            if tensor in doubled and tensor not in entries:  # the entry's other readers keep its float32
                node.input[place] = doubled[tensor]
        nodes.append(node)
        for tensor in node.output:
            nodes += behind.get(tensor, [])
    parts.nodes = nodes
    return parts.serialize()
