"""Ratings from the numbers that describe a whole track: the descriptor model (`desc_…`) and `best` (`best_…`).

The numbers of a track lie in named blocks side by side (`Layout`): descriptors and note features for the descriptor model, and
the pooled embedding of a frozen tagging network (models.tagger) beside them for `best`. One model averages a few members on
z-scored targets, each of which reads some of the blocks:

- a support-vector machine whose kernel is the mean of one RBF kernel a block, each on the block's first principal components
  (multiple kernel learning with equal weights),
- a ridge regression, its penalty chosen for each label among 1e1..1e5.

Inputs are standardised by the training tracks and limited to `limit` standard deviations, so that a track unlike any of them
(a new recording chain, a unit of the tagger that film music never wakes) cannot throw a rating out of its scale. Exported as one
ONNX graph: input `descriptors` (track, number) float32, output `ratings` (track, label) float32 on the scale of the training
labels.

Source: ours; scikit-learn fits, onnxruntime runs. Equal kernel weights: Gönen & Alpaydın, JMLR 12, 2011.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

Layout = tuple[tuple[str, int], ...]  # name and width of each block, in order


@dataclass(frozen=True)
class DescriptorRecipe:
    """Members of the average, by the blocks that each reads, and their arguments."""

    machines: tuple[tuple[str, ...], ...] = (("descriptors", "notes"), ("notes",), ("descriptors",))  # a kernel a block
    ridges: tuple[tuple[str, ...], ...] = (("descriptors", "notes"),)
    penalties: tuple[float, ...] = (1e1, 1e2, 1e3, 1e4, 1e5)  # of ridge
    components: int = 80  # principal components of a block
    cost: float = 2.0  # C of the support-vector machine
    epsilon: float = 0.1  # of the support-vector machine, in SDs of the target
    limit: float = 4.0  # SDs that a standardised input may be away from the training tracks' mean

    def __post_init__(self) -> None:
        if not self.machines and not self.ridges:
            raise ValueError("a descriptor model needs at least one member")
        if self.components < 1 or not self.limit > 0:
            raise ValueError(f"components={self.components} and limit={self.limit} must be > 0")


_ALL = ("descriptors", "notes", "embedding", "pooled")
PLAIN = DescriptorRecipe()
BEST = DescriptorRecipe(machines=(_ALL, ("notes",), ("pooled",)), ridges=(_ALL,))


@dataclass(frozen=True)
class Kernel:
    """RBF kernel ``exp(-gamma |x - support|²)`` on the principal components x of one block."""

    columns: NDArray[np.intp]  # of the block
    projection: Floats  # (number, component)
    offset: Floats  # (component,)
    support: Floats  # (training track, component)
    gamma: float

    def __call__(self, standard: Floats) -> Floats:
        """Kernel with the training tracks, shape (track, training track), from standardised numbers."""
        reduced = standard[:, self.columns] @ self.projection + self.offset
        squares = (reduced**2).sum(axis=1)[:, None] + (self.support**2).sum(axis=1) - 2 * reduced @ self.support.T
        values: Floats = np.exp(-self.gamma * np.maximum(squares, 0))
        return values


@dataclass(frozen=True)
class Machine:
    """A support-vector machine a label on the mean of a few kernels."""

    kernels: tuple[Kernel, ...]
    dual: Floats  # (training track, label)
    bias: Floats  # (label,)

    def predict(self, standard: Floats) -> Floats:
        """Z-scored ratings, shape (track, label), from standardised numbers."""
        mean: Floats = np.mean([kernel(standard) for kernel in self.kernels], axis=0)
        return mean @ self.dual + self.bias


@dataclass(frozen=True)
class Ridge:
    """A ridge regression a label."""

    columns: NDArray[np.intp]
    weights: Floats  # (number, label)
    bias: Floats  # (label,)

    def predict(self, standard: Floats) -> Floats:
        """Z-scored ratings, shape (track, label), from standardised numbers."""
        values: Floats = standard[:, self.columns] @ self.weights + self.bias
        return values


@dataclass(frozen=True)
class DescriptorModel:
    """Fitted members and the scales of their inputs and targets."""

    center: Floats  # (number,)
    scale: Floats  # infinite where the training tracks are all alike
    limit: float
    machines: tuple[Machine, ...]
    ridges: tuple[Ridge, ...]
    mean: Floats  # (label,)
    spread: Floats

    def predict(self, descriptors: Array) -> Array:
        """Predict ratings, shape (track, label), from the numbers of each track, shape (track, number)."""
        standard = standardise(descriptors, self.center, self.scale, self.limit)
        members: tuple[Machine | Ridge, ...] = (*self.machines, *self.ridges)
        average = np.mean([member.predict(standard) for member in members], axis=0)
        ratings: Array = (average * self.spread + self.mean).astype(np.float32)
        return ratings


def standardise(descriptors: Array, center: Floats, scale: Floats, limit: float) -> Floats:
    """Z-scores by the training tracks, limited to ``limit``, shape (track, number)."""
    standard: Floats = np.clip((np.asarray(descriptors, np.float32) - center) / scale, -limit, limit)
    return standard


def columns_of(layout: Layout, blocks: tuple[str, ...]) -> NDArray[np.intp]:
    """Columns of some blocks.

    Raises
    ------
    ValueError
        For a block that the layout does not have.
    """
    starts = dict(zip((name for name, _ in layout), np.cumsum([0, *(width for _, width in layout)]).tolist(), strict=False))
    widths = dict(layout)
    missing = [name for name in blocks if name not in widths]
    if missing:
        raise ValueError(f"no block {', '.join(missing)}; there are {', '.join(widths)}")
    return np.concatenate([np.arange(starts[name], starts[name] + widths[name]) for name in blocks])


def fit(
    descriptors: Array,
    ratings: Array,
    layout: Layout,
    recipe: DescriptorRecipe = PLAIN,
    *,
    weights: Array | None = None,
) -> DescriptorModel:
    """Fit the members of a descriptor model.

    Parameters
    ----------
    descriptors : numpy.ndarray
        Shape (track, number), finite; the blocks of `layout` side by side.
    ratings : numpy.ndarray
        Shape (track, label), finite.
    layout : Layout
        Names and widths of the blocks.
    recipe : DescriptorRecipe
        Members and arguments.
    weights : numpy.ndarray or None
        Weight of each track, shape (track,), > 0; None: all alike.

    Raises
    ------
    ValueError
        If shapes disagree, a value is not finite, a label or a block is constant, or the recipe names a block that is not there.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.svm import SVR

    if descriptors.ndim != 2 or ratings.ndim != 2 or len(descriptors) != len(ratings):
        raise ValueError(f"descriptors {descriptors.shape} and ratings {ratings.shape} must be (track, …) alike")
    width = sum(width for _, width in layout)
    if descriptors.shape[1] != width:
        raise ValueError(f"descriptors have {descriptors.shape[1]} columns, the blocks {width}")
    if not (np.isfinite(descriptors).all() and np.isfinite(ratings).all()):
        raise ValueError("descriptors and ratings must be finite")
    mean, spread = ratings.mean(axis=0, dtype=float), ratings.std(axis=0, dtype=float)
    if not (spread > 0).all():
        raise ValueError(f"label {int(np.argmin(spread))} is constant, a model cannot learn it")
    for blocks in (*recipe.machines, *recipe.ridges):
        columns_of(layout, blocks)  # refuses an unknown block
    raw = descriptors.astype(np.float32)
    center, scale = raw.mean(axis=0, dtype=float), raw.std(axis=0, dtype=float)
    scale[scale <= 1e-6 * np.maximum(np.abs(center), 1e-3)] = np.inf
    standard = standardise(raw, center, scale, recipe.limit)
    targets = (ratings - mean) / spread
    machines = []
    for blocks in recipe.machines:
        kernels = tuple(_kernel(standard, columns_of(layout, (block,)), recipe.components) for block in blocks)
        gram = np.mean([kernel(standard) for kernel in kernels], axis=0)
        fitted = [
            SVR(kernel="precomputed", C=recipe.cost, epsilon=recipe.epsilon).fit(gram, target, weights) for target in targets.T
        ]
        dual = np.zeros((len(raw), len(fitted)))
        for label, one in enumerate(fitted):
            dual[one.support_, label] = one.dual_coef_[0]
        machines.append(Machine(kernels, dual, np.array([float(one.intercept_[0]) for one in fitted])))
    ridges = []
    for blocks in recipe.ridges:
        columns = columns_of(layout, blocks)
        ridge = RidgeCV(recipe.penalties, alpha_per_target=True).fit(standard[:, columns], targets, weights)
        ridges.append(Ridge(columns, np.atleast_2d(ridge.coef_).T, np.atleast_1d(ridge.intercept_)))
    return DescriptorModel(center, scale, recipe.limit, tuple(machines), tuple(ridges), mean, spread)


def _kernel(standard: Floats, columns: NDArray[np.intp], components: int) -> Kernel:
    """Principal components of a block, and a kernel as wide as they are spread (scikit-learn's gamma="scale")."""
    from sklearn.decomposition import PCA

    block = standard[:, columns]
    if not block.any():
        raise ValueError(f"the {len(columns)} numbers from {columns[0]} on are the same for all tracks, a model cannot use them")
    found = PCA(min(components, len(columns), len(block) - 1), svd_solver="full").fit(block)
    projection = found.components_.T
    offset = -found.mean_ @ projection
    support = block @ projection + offset
    return Kernel(columns, projection, offset, support, 1 / (support.shape[1] * max(float(support.var()), 1e-12)))


class _Graph:
    """An ONNX graph in the making."""

    def __init__(self) -> None:
        self.constants: dict[str, NDArray[Any]] = {}
        self.nodes: list[Any] = []

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def node(self, operation: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        output = f"{operation.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [output], **attributes))
        return output

    def linear(self, read: str, weights: Floats, bias: Floats) -> str:
        return self.node("Add", self.node("MatMul", read, self.constant(weights)), self.constant(bias))

    def columns(self, standard: str, columns: NDArray[np.intp]) -> str:
        return self.node("Gather", standard, self.constant(columns, np.int64), axis=1)

    def standardise(self, center: Floats, scale: Floats, limit: float) -> str:
        scaled = self.node("Mul", self.node("Sub", "descriptors", self.constant(center)), self.constant(1 / scale))
        return self.node("Clip", scaled, self.constant(-limit), self.constant(limit))

    def kernel(self, standard: str, kernel: Kernel) -> str:
        reduced = self.linear(self.columns(standard, kernel.columns), kernel.projection, kernel.offset)
        squares = self.node("ReduceSumSquare", reduced, axes=[1], keepdims=1)
        ahead = self.node("Add", squares, self.constant((kernel.support**2).sum(axis=1)))
        distance = self.node("Add", ahead, self.node("MatMul", reduced, self.constant(-2 * kernel.support.T)))
        return self.node("Exp", self.node("Mul", self.node("Relu", distance), self.constant(-kernel.gamma)))

    def ratings(self, model: DescriptorModel) -> str:
        standard = self.standardise(model.center, model.scale, model.limit)
        members = [
            self.linear(self.node("Mean", *(self.kernel(standard, one) for one in machine.kernels)), machine.dual, machine.bias)
            for machine in model.machines
        ]
        members += [self.linear(self.columns(standard, one.columns), one.weights, one.bias) for one in model.ridges]
        spread = self.node("Mul", self.node("Mean", *members), self.constant(model.spread))
        return self.node("Add", spread, self.constant(model.mean))


def to_onnx(model: DescriptorModel) -> bytes:
    """Serialise a fitted model as one ONNX graph, `descriptors` (track, number) to `ratings` (track, label)."""
    from onnx import TensorProto, checker, helper, numpy_helper

    graph = _Graph()
    graph.nodes.append(helper.make_node("Identity", [graph.ratings(model)], ["ratings"]))
    made = helper.make_graph(
        graph.nodes,
        "descriptor_model",
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["track", len(model.center)])],
        [helper.make_tensor_value_info("ratings", TensorProto.FLOAT, ["track", len(model.mean)])],
        [numpy_helper.from_array(value, name) for name, value in graph.constants.items()],
    )
    exported = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(exported)
    serialized: bytes = exported.SerializeToString()
    return serialized
