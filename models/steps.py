"""A Keras model reduced to plain steps, so that two graphs can be laid on one another.

What a step computes is in its facts and the shapes of its weights; what does not change a prediction (dropout, casts of mixed
precision, an activation as a layer of its own, the epsilon of a batch normalisation) is gone or in one form.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import BundleError
from models.va import FLOOR

Array = NDArray[np.float32]
Scale = tuple[NDArray[np.float64], NDArray[np.float64]]  # mean and standard deviation

EPSILON = 1e-3  # of our batch normalisations; another one is folded into the variance
MASK_OPERATIONS = frozenset(("NotEqual", "Any"))
IDENTITY = frozenset(
    (
        "Dropout",
        "SpatialDropout1D",
        "SpatialDropout2D",
        "GaussianNoise",
        "GaussianDropout",
        "AlphaDropout",
        "ActivityRegularization",
        "Cast",
        "Identity",
    )
)  # layers that leave a prediction as it is


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a graph, reduced to what it computes."""

    name: str  # of its layer
    kind: str
    facts: tuple[tuple[str, Any], ...]
    weights: tuple[Array, ...]
    parent: int | None  # number of the step that it reads

    def __str__(self) -> str:
        return " ".join([self.kind, *(f"{name} {value}" for name, value in self.facts)])


@dataclass(frozen=True, eq=False)
class Graph:
    """A model as plain steps."""

    steps: tuple[Step, ...]
    outputs: tuple[int, ...]  # steps, in the order of the model's outputs
    scale: Scale | None  # mean and standard deviation that the graph itself takes off its input
    ignored: tuple[str, ...]  # layers that leave a prediction as it is


class Mismatch(Exception):
    """Two graphs differ at a step; `depth` steps before it were equal."""

    def __init__(self, message: str, depth: int) -> None:
        super().__init__(message)
        self.depth = depth


def graph_of(model: Any, path: Path) -> Graph:
    """Reduce a Keras model to plain steps; nested models are opened."""
    steps: list[Step] = []
    ignored: list[str] = []
    scales: list[Scale] = []
    places: dict[tuple[int, ...], int] = {}

    def add(name: str, kind: str, parent: int | None, weights: Sequence[Any] = (), **facts: Any) -> int:
        held = tuple(np.asarray(weight, np.float32) for weight in weights)
        steps.append(Step(name, kind, tuple(facts.items()), held, parent))
        return len(steps) - 1

    def visit(tensor: Any, given: Mapping[int, int]) -> int:
        if id(tensor) in given:
            return given[id(tensor)]
        layer, node, number = tensor._keras_history
        key = (id(layer), node, number, *given.values())
        if key not in places:
            places[key] = compute(layer, node, number, given)
        return places[key]

    def compute(layer: Any, node: int, number: int, given: Mapping[int, int]) -> int:
        kind = type(layer).__name__
        sources = layer._inbound_nodes[node].input_tensors
        if kind == "InputLayer":
            return add(layer.name, "input", None, shape=tuple(layer.batch_shape[1:]))
        if hasattr(layer, "outputs") and hasattr(layer, "inputs"):  # a model as a layer
            inner = {id(a): visit(b, given) for a, b in zip(layer.inputs, sources, strict=True)}
            return visit(layer.outputs[number], inner)
        # a stored Masking hands its mask on as a tensor of its own
        sources = [source for source in sources if type(source._keras_history[0]).__name__ not in MASK_OPERATIONS]
        if len(sources) != 1:
            raise BundleError(f"{path}: layer {layer.name!r} reads {len(sources)} layers; no family has such a step")
        parent = visit(sources[0], given)
        if kind in IDENTITY or (kind == "Activation" and layer.activation.__name__ == "linear"):
            ignored.append(layer.name)
            return parent
        if kind in ("Rescaling", "Normalization", "MaskedStandardize"):
            if steps[parent].kind not in ("input", "masking"):
                raise BundleError(f"{path}: layer {layer.name!r} ({kind}) does not stand at the input; no family has such a step")
            scales.append(_scale_of(layer))
            return parent
        return _add_layer(layer, layer._inbound_nodes[node], parent, add, path)

    outputs = tuple(visit(tensor, {}) for tensor in model.outputs)
    if len(scales) > 1:
        raise BundleError(f"{path}: its input is standardised {len(scales)} times; no family has such a graph")
    return Graph(tuple(steps), outputs, scales[0] if scales else None, tuple(ignored))


def _add_layer(layer: Any, node: Any, parent: int, add: Callable[..., int], path: Path) -> int:
    """Add one layer's steps: what it computes, then its activation."""
    kind, name = type(layer).__name__, layer.name
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        raise BundleError(f"{path}: layer {name!r} has channels first; our graphs have them last")

    def with_bias(weights: list[Any], units: int) -> list[Any]:
        return weights if layer.use_bias else [*weights, np.zeros(units, np.float32)]

    if kind == "Conv2D":
        facts = {key: getattr(layer, key) for key in ("filters", "kernel_size", "strides", "padding", "dilation_rate", "groups")}
        place = add(name, "Conv2D", parent, with_bias(layer.get_weights(), layer.filters), **facts)
    elif kind == "Dense":
        place = add(name, "Dense", parent, with_bias(layer.get_weights(), layer.units), units=layer.units)
    elif kind == "BatchNormalization":
        place = add(name, "BatchNormalization", parent, _normalization(layer, path))
    elif kind == "MaxPooling2D":
        place = add(name, kind, parent, pool_size=layer.pool_size, strides=layer.strides, padding=layer.padding)
    elif kind == "GlobalAveragePooling2D":
        place = add(name, kind, parent, keepdims=bool(layer.keepdims))
    elif kind == "Flatten":
        place = add(name, kind, parent)
    elif kind in ("Reshape", "Permute"):
        shape = layer.target_shape if kind == "Reshape" else layer.dims
        place = add(name, kind, parent, to=tuple(shape))
    elif kind == "Masking":
        place = add(name, "masking", parent, value=float(layer.mask_value))
    elif kind == "SimpleRNN":
        place = add(name, kind, parent, layer.get_weights(), **_recurrent(layer))
    elif kind == "Bidirectional" and type(layer.forward_layer).__name__ == "LSTM":
        place = add(
            name, "Bidirectional LSTM", parent, layer.get_weights(), merge=layer.merge_mode, **_recurrent(layer.forward_layer)
        )
    elif kind in ("Activation", "ReLU", "Softmax", "Maximum"):
        place = parent
    else:
        raise BundleError(f"{path}: layer {name!r} ({kind}) is a step that no family has")
    activation = _activation(layer, node) if kind not in ("SimpleRNN", "Bidirectional") else "linear"
    return place if activation == "linear" else add(name, "activation", place, function=activation)


def _recurrent(layer: Any) -> dict[str, Any]:
    facts = {"units": layer.units, "activation": layer.activation.__name__, "return_sequences": bool(layer.return_sequences)}
    facts |= {"backwards": bool(layer.go_backwards), "bias": bool(layer.use_bias)}
    if hasattr(layer, "recurrent_activation"):
        facts["recurrent_activation"] = layer.recurrent_activation.__name__
    return facts


def _activation(layer: Any, node: Any) -> str:
    """Name of what a layer applies last."""
    kind = type(layer).__name__
    if kind == "Softmax":
        return "softmax" if layer.axis in (-1, None) else f"softmax over axis {layer.axis}"
    if kind == "ReLU":
        plain = layer.max_value is None and not layer.negative_slope and not layer.threshold
        return "relu" if plain else f"relu to {layer.max_value}, slope {layer.negative_slope}, from {layer.threshold}"
    if kind == "Maximum":
        floor = next((value for value in node.arguments.args if isinstance(value, int | float)), None)
        return "floored" if floor is not None and np.isclose(floor, FLOOR) else f"maximum with {floor}"
    function = getattr(layer, "activation", None)
    return "linear" if function is None else str(function.__name__)


def _normalization(layer: Any, path: Path) -> list[Any]:
    """Gamma, beta, mean and variance of a batch normalisation as one with our epsilon has them."""
    axis = layer.axis[0] if isinstance(layer.axis, list | tuple) else layer.axis
    if axis not in (-1, len(layer.input.shape) - 1):
        raise BundleError(f"{path}: layer {layer.name!r} normalises axis {axis}; our graphs normalise the last")
    weights = [np.asarray(weight, np.float64) for weight in layer.get_weights()]
    mean, variance = weights[-2:]
    gamma = weights[0] if layer.scale else np.ones_like(mean)
    beta = weights[int(bool(layer.scale))] if layer.center else np.zeros_like(mean)
    return [gamma, beta, mean, variance + (layer.epsilon - EPSILON)]


def _scale_of(layer: Any) -> Scale:
    """Mean and standard deviation that a layer takes off its input."""
    kind = type(layer).__name__
    if kind == "MaskedStandardize":
        mean, deviation = layer.mean, layer.standard_deviation
    elif kind == "Rescaling":
        scale = np.asarray(layer.scale, np.float64)
        mean, deviation = -np.asarray(layer.offset, np.float64) / scale, 1 / scale
    else:
        mean, deviation = np.asarray(layer.mean), np.maximum(np.sqrt(np.asarray(layer.variance)), 1e-7)
    return np.ravel(np.asarray(mean, np.float64)), np.ravel(np.asarray(deviation, np.float64))


def match(ours: Graph, theirs: Graph, path: Path, family: str) -> dict[int, int]:
    """Lay our steps on theirs: number of our step -> number of theirs.

    Raises
    ------
    Mismatch
        At the first step that computes something else.
    """
    below = [_children(graph) for graph in (ours, theirs)]

    def lay(a: int, b: int, depth: int) -> dict[int, int]:
        if _differs(ours.steps[a], theirs.steps[b]):
            raise Mismatch(
                f"{path}: layer {theirs.steps[b].name!r} ({theirs.steps[b]}) where {family} has {ours.steps[a]}", depth
            )
        mine, other = below[0].get(a, []), below[1].get(b, [])
        if len(mine) != len(other):
            named = ", ".join(f"{theirs.steps[k].name!r} ({theirs.steps[k]})" for k in other) or "nothing"
            wanted = ", ".join(str(ours.steps[k]) for k in mine) or "nothing"
            raise Mismatch(
                f"{path}: after layer {theirs.steps[b].name!r} comes {named} where {family} has {wanted}", depth + len(other)
            )
        deepest: Mismatch | None = None
        for order in itertools.permutations(other):
            try:
                found = {a: b}
                for one, another in zip(mine, order, strict=True):
                    found |= lay(one, another, depth + 1)
                return found
            except Mismatch as error:
                if deepest is None or error.depth > deepest.depth:
                    deepest = error
        raise deepest if deepest is not None else AssertionError("a step without children always matches")

    roots = [[k for k, step in enumerate(graph.steps) if step.parent is None] for graph in (ours, theirs)]
    if len(roots[1]) != 1:
        raise Mismatch(f"{path}: {len(roots[1])} inputs; {family} has one", 0)
    return lay(roots[0][0], roots[1][0], 0)


def _children(graph: Graph) -> dict[int, list[int]]:
    below: dict[int, list[int]] = {}
    for number, step in enumerate(graph.steps):
        if step.parent is not None:
            below.setdefault(step.parent, []).append(number)
    return below


def _differs(ours: Step, theirs: Step) -> bool:
    if ours.kind != theirs.kind:
        return True
    if ours.kind == "input":  # a length that the file leaves open fits
        mine, other = dict(ours.facts)["shape"], dict(theirs.facts)["shape"]
        return len(mine) != len(other) or any(
            a != b and b is not None and a is not None for a, b in zip(mine, other, strict=True)
        )
    if ours.facts != theirs.facts:
        return True
    return [weight.shape for weight in ours.weights] != [weight.shape for weight in theirs.weights]


def match_weights(ours: Graph, theirs: Graph, path: Path, family: str) -> dict[int, int]:
    """Lay our layers on theirs by their order and the shapes of their weights; two last heads may be exchanged.

    Raises
    ------
    Mismatch
        At the first layer of another shape.
    """
    mine = [k for k, step in enumerate(ours.steps) if step.weights]
    if len(mine) != len(theirs.steps):
        raise Mismatch(f"{path}: {len(theirs.steps)} layers with weights where {family} has {len(mine)}", 0)

    def shapes(step: Step) -> list[tuple[int, ...]]:
        return [weight.shape for weight in step.weights]

    order = list(range(len(mine)))
    if len(ours.outputs) == 2 and shapes(ours.steps[mine[-1]]) == shapes(theirs.steps[-2]) != shapes(theirs.steps[-1]):
        order[-2:] = order[:-3:-1]
    for depth, (a, b) in enumerate(zip(mine, order, strict=True)):
        if shapes(ours.steps[a]) != shapes(theirs.steps[b]):
            raise Mismatch(
                f"{path}: layer {theirs.steps[b].name!r} has weights of {shapes(theirs.steps[b])} "
                f"where {family} has {shapes(ours.steps[a])} ({ours.steps[a]})",
                depth,
            )
    return dict(zip(mine, order, strict=True))
