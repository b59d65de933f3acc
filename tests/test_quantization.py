"""Folded and quantised graphs against the graph that they come from: a small network with every pattern of the real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models import export, quantization

ROWS, COLUMNS = 41, 37
HEADS = {"rating": 30.0}


def graph_of(*, first_factors: float = 1.0) -> bytes:
    """Convolution 5x5, then two 3x3 that pad, batch norms behind their Relus, a MaxPool, a global mean, two dense layers."""
    random = np.random.default_rng(3)
    constants: dict[str, Any] = {}
    nodes = []

    def constant(name: str, *shape: int, scale: float, offset: float = 0.0) -> str:
        constants[name] = (offset + scale * random.standard_normal(shape)).astype(np.float32)
        return name

    def convolution(entry: str, name: str, channels: tuple[int, int], size: int, **attributes: Any) -> str:
        kernel = constant(f"{name}.w", *channels, size, size, scale=(channels[1] * size**2) ** -0.5)
        bias = constant(f"{name}.b", channels[0], scale=0.3)
        nodes.append(helper.make_node("Conv", [entry, kernel, bias], [name], kernel_shape=[size, size], **attributes))
        nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"]))
        return f"{name}.relu"

    def norm(entry: str, channels: int) -> str:
        factor = constant(f"{entry}.factor", 1, channels, 1, 1, scale=0.3, offset=1.5)
        offset = constant(f"{entry}.offset", 1, channels, 1, 1, scale=1)
        nodes.append(helper.make_node("Mul", [entry, factor], [f"{entry}.scaled"]))
        nodes.append(helper.make_node("Add", [f"{entry}.scaled", offset], [f"{entry}.norm"]))
        return f"{entry}.norm"

    constants["shape"] = np.array([-1, 1, ROWS, COLUMNS])
    nodes.append(helper.make_node("Reshape", ["spectrogram", "shape"], ["picture"]))
    x = norm(convolution("picture", "first", (8, 1), 5, strides=[2, 2]), 8)
    x = norm(convolution(x, "second", (12, 8), 3, pads=[1, 1, 1, 1]), 12)
    constants["second.relu.factor"] *= np.float32(first_factors)
    nodes.append(helper.make_node("MaxPool", [x], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]))
    x = norm(convolution("pooled", "third", (16, 12), 3, pads=[1, 1, 1, 1]), 16)
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"]))
    constants["axes"] = np.array([2, 3])
    nodes.append(helper.make_node("Squeeze", ["mean", "axes"], ["vector"]))
    nodes.append(helper.make_node("MatMul", ["vector", constant("dense.w", 16, 32, scale=0.25)], ["dense"]))
    nodes.append(helper.make_node("Add", ["dense", constant("dense.b", 32, scale=0.1)], ["embedding"]))
    nodes.append(helper.make_node("MatMul", ["embedding", constant("head.w", 32, 3, scale=0.2)], ["head"]))
    nodes.append(helper.make_node("Add", ["head", constant("head.b", 3, scale=0.1)], ["rating"]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("spectrogram", TensorProto.FLOAT, ["batch", ROWS, COLUMNS, 1])],
        [helper.make_tensor_value_info("rating", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized


def windows(count: int, seed: int) -> list[Any]:
    """Pictures that differ in level, slope and roughness, so that outputs do, too."""
    random = np.random.default_rng(seed)
    slope = np.linspace(-1, 1, ROWS)[:, None]
    return [
        (random.normal(0, 2) + random.normal(0, 2) * slope + random.gamma(2) * random.standard_normal((ROWS, COLUMNS))).astype(
            np.float32
        )
        for _ in range(count)
    ]


def operators(graph: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_model_from_string(graph).graph.node]


@pytest.fixture(scope="module")
def plain() -> bytes:
    return graph_of()


@pytest.mark.parametrize(("constant_channels", "norms_left"), [(True, 1), (False, 3)])
def test_folding_changes_no_result(plain: bytes, constant_channels: bool, norms_left: int) -> None:
    folded = quantization.fold(plain, constant_channels=constant_channels)
    assert operators(folded).count("Mul") == norms_left  # the one behind the global mean; the others where it pads
    seen = windows(5, 0)
    assert export.run_graph(folded, seen)["rating"] == pytest.approx(export.run_graph(plain, seen)["rating"], abs=2e-5)


def test_a_norm_that_turns_the_sign_before_a_maximum_stays() -> None:
    turned = graph_of(first_factors=-1.0)
    folded = quantization.fold(turned, constant_channels=True)
    assert operators(folded).count("Mul") == 2
    seen = windows(3, 0)
    assert export.run_graph(folded, seen)["rating"] == pytest.approx(export.run_graph(turned, seen)["rating"], abs=2e-5)


def test_a_norm_directly_behind_a_convolution_is_folded_into_it() -> None:
    model = onnx.load_model_from_string(graph_of())
    for relu in [node for node in model.graph.node if node.op_type == "Relu"]:  # Relu and norm change places
        multiply = next(node for node in model.graph.node if node.input[0] == relu.output[0])
        add = next(node for node in model.graph.node if node.input[0] == multiply.output[0])
        multiply.input[0], relu.input[0] = relu.input[0], add.output[0]
        for user in model.graph.node:
            if user is not relu and add.output[0] in user.input:
                user.input[0] = relu.output[0] if user.op_type != "Relu" else user.input[0]
    nodes = {name: node for node in model.graph.node for name in node.output}
    ordered: list[Any] = []

    def visit(node: Any) -> None:
        for name in node.input:
            if name in nodes:
                visit(nodes[name])
        if node not in ordered:
            ordered.append(node)

    visit(nodes["rating"])
    del model.graph.node[:]
    model.graph.node.extend(ordered)
    graph = model.SerializeToString()
    folded = quantization.fold(graph, constant_channels=False)
    assert "Mul" not in operators(folded)
    seen = windows(3, 0)
    assert export.run_graph(folded, seen)["rating"] == pytest.approx(export.run_graph(graph, seen)["rating"], abs=2e-5)


def test_the_offset_that_crosses_the_padding_is_exact(plain: bytes) -> None:
    folded = quantization.fold(plain, constant_channels=True)
    seen = [np.full((ROWS, COLUMNS), level, np.float32) for level in (-1.0, 0.0, 1.0)]
    derived = quantization.quantize(folded, quantization.calibrate(folded, seen), "largest", 0.0)
    found = export.agreement(export.run_graph(derived, seen), export.run_graph(plain, seen), HEADS)
    assert found[0].largest_share < 0.004
    assert found[0].least_r > 0.99


@pytest.mark.parametrize("clip", quantization.CLIPS)
@pytest.mark.parametrize("balance", quantization.BALANCES)
def test_int8_agrees_and_fits_any_cpu(plain: bytes, clip: str, balance: float) -> None:
    import onnxruntime

    folded = quantization.fold(plain, constant_channels=True)
    activations = quantization.calibrate(folded, windows(40, 1))
    derived = quantization.quantize(folded, activations, clip, balance)
    other = windows(60, 2)
    found = export.agreement(export.run_graph(derived, other), export.run_graph(plain, other), HEADS)
    assert found[0].least_r > 0.99  # clips cost most here: these windows differ more than music
    kernels = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load_model_from_string(derived).graph.initializer
        if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
    ]
    assert len(kernels) == 2  # all but the first
    assert all(np.abs(kernel.astype(int)).max() <= 64 for kernel in kernels)  # no 16-bit saturation without VNNI
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    assert onnxruntime.InferenceSession(derived, options, providers=["CPUExecutionProvider"])


def test_convolutions_run_in_integers(plain: bytes, tmp_path: Any) -> None:
    import onnxruntime

    folded = quantization.fold(plain, constant_channels=True)
    activations = quantization.calibrate(folded, windows(10, 1))
    for kept, expected in (((), 2), ((1,), 1)):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "run.onnx")
        derived = quantization.quantize(folded, activations, "largest", 0.5, kept)
        onnxruntime.InferenceSession(derived, options, providers=["CPUExecutionProvider"])
        assert operators((tmp_path / "run.onnx").read_bytes()).count("QLinearConv") == expected


def test_bias_correction_removes_the_mean_difference(plain: bytes) -> None:
    folded = quantization.fold(plain, constant_channels=True)
    seen = windows(30, 1)
    coarse = quantization.quantize(folded, quantization.calibrate(folded, seen), "percentile", 0.0)
    expected = export.run_graph(folded, seen)["rating"].mean(axis=0)
    before = np.abs(export.run_graph(coarse, seen)["rating"].mean(axis=0) - expected).max()
    corrected = quantization.correct_bias(coarse, folded, seen)
    after = np.abs(export.run_graph(corrected, seen)["rating"].mean(axis=0) - expected).max()
    assert before > 1e-4
    assert after < 1e-5


def test_dense_layers_in_8_bits(plain: bytes) -> None:
    seen = windows(40, 1)
    entries = quantization.largest_entries(plain, seen, from_weights=512)
    assert list(entries) == ["vector"]
    derived = quantization.quantize_dense(plain, entries, from_weights=512)
    assert operators(derived).count("MatMulInteger") == 1
    other = windows(60, 2)
    assert export.agreement(export.run_graph(derived, other), export.run_graph(plain, other), HEADS)[0].least_r > 0.99


@pytest.fixture
def small_family(plain: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """A family whose Keras network is the small graph itself."""
    monkeypatch.setattr(export, "float_graph", lambda network: plain)
    monkeypatch.setattr(export, "run_network", lambda network, seen: export.run_graph(plain, seen))
    monkeypatch.setitem(export.RANGES, "small", HEADS)
    return "small"


def test_the_engine_is_int8_where_it_agrees_on_other_windows(small_family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MIN_R", 0.995)
    monkeypatch.setattr(export, "MAX_SHARE_OF_RANGE", 0.1)
    graph, record = export.engine(None, small_family, windows(40, 1), windows(50, 2), say=lambda line: None)
    assert record["kind"] == "int8"
    measured = record["measured"]["int8"]
    assert [one["head"] for one in measured] == ["rating"]
    assert measured[0]["windows"] == 50
    assert measured[0]["good"]
    assert "DequantizeLinear" in operators(graph)


def test_the_engine_is_float32_where_no_int8_graph_agrees(small_family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MAX_SHARE_OF_RANGE", 1e-6)  # float32 with folded norms still meets it
    graph, record = export.engine(None, small_family, windows(20, 1), windows(20, 2), say=lambda line: None)
    assert record["kind"] == "float32 (float16 weights)"
    assert record["measured"][record["kind"]][0]["good"]
    assert "DequantizeLinear" not in operators(graph)


def test_no_engine_where_nothing_agrees(small_family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MIN_R", 1.1)
    with pytest.raises(ValueError, match="small: no derived graph agrees with the Keras model"):
        export.engine(None, small_family, windows(5, 1), windows(5, 2), say=lambda line: None)


def front_of(sign: float) -> bytes:
    """Convolutions of one channel, wide and only over rows, each with Relu, batch norm and a MaxPool over the columns."""
    random = np.random.default_rng(5)
    constants: dict[str, Any] = {}
    nodes = []
    for name, kernel in (("wide", (6, 1, 5, 9)), ("narrow", (6, 1, 8, 1))):
        width = COLUMNS - kernel[3] + 1
        constants[f"{name}.w"] = random.standard_normal(kernel).astype(np.float32) * (kernel[2] * kernel[3]) ** -0.5
        constants[f"{name}.b"] = random.standard_normal(6).astype(np.float32) * 0.3
        constants[f"{name}.factor"] = (sign ** np.arange(6)).reshape(1, 6, 1, 1).astype(np.float32) * 1.5
        constants[f"{name}.offset"] = random.standard_normal((1, 6, 1, 1)).astype(np.float32)
        nodes += [
            helper.make_node("Conv", ["entry", f"{name}.w", f"{name}.b"], [name], kernel_shape=list(kernel[2:])),
            helper.make_node("Relu", [name], [f"{name}.relu"]),
            helper.make_node("Mul", [f"{name}.relu", f"{name}.factor"], [f"{name}.scaled"]),
            helper.make_node("Add", [f"{name}.scaled", f"{name}.offset"], [f"{name}.norm"]),
            helper.make_node("MaxPool", [f"{name}.norm"], [f"{name}.pool"], kernel_shape=[1, width], strides=[1, width]),
            helper.make_node("GlobalAveragePool", [f"{name}.pool"], [f"{name}.out"]),
        ]
    turn = helper.make_node("Transpose", ["spectrogram"], ["entry"], perm=[0, 3, 1, 2])
    graph = helper.make_graph(
        [turn, *nodes],
        "front",
        [helper.make_tensor_value_info("spectrogram", TensorProto.FLOAT, ["window", ROWS, COLUMNS, 1])],
        [helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, ["window", 6, 1, 1]) for name in ("wide", "narrow")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8).SerializeToString()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_front_end_pools_first_and_is_quantised_where_it_is_wide(sign: float) -> None:
    windows = list(np.random.default_rng(1).standard_normal((8, ROWS, COLUMNS)).astype(np.float32))
    plain = front_of(sign)
    moved = quantization.pool_first(plain)
    expected = export.run_graph(plain, windows)
    for head, values in export.run_graph(moved, windows).items():
        np.testing.assert_allclose(values, expected[head], rtol=0, atol=1e-6)
    users = quantization.Graph(moved)
    assert all(users.only_user(one.output[0], "MaxPool") is not None for one in users.of_type("Conv"))
    derived = quantization.quantize_front(moved, windows[:4])
    whole = [value for value in quantization.Graph(derived).constants.values() if value.dtype == np.int8 and value.ndim == 4]
    assert [value.shape for value in whole] == [(6, 1, 5, 9)]
    assert np.abs(whole[0]).max() <= quantization.LARGEST_WEIGHT
    found = export.run_graph(derived, windows[4:])
    np.testing.assert_allclose(found["wide.out"], expected["wide.out"][4:], rtol=0, atol=0.05)
    np.testing.assert_allclose(found["narrow.out"], expected["narrow.out"][4:], rtol=0, atol=1e-6)
