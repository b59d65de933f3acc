"""The descriptor model: descriptors and note features of a track to ratings; the plain, strong baseline and the teacher.

For one set of labels it averages three regressors on z-scored targets: ridge (penalty chosen among 1e1..1e5), a support-vector
machine with an RBF kernel on 60 principal components (C 1, epsilon .05), and 400 extremely randomised trees (leaf 2, 30 % of the
features a split). All labels of a set share the trees and the penalty grid. Exported as one ONNX graph: input `descriptors`
(track, feature) float32, output `ratings` (track, label) float32 on the scale of the training labels.

Source: ours; scikit-learn fits, onnxruntime runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class DescriptorRecipe:
    """Arguments of the three regressors."""

    penalties: tuple[float, ...] = (1e1, 1e2, 1e3, 1e4, 1e5)  # of ridge
    components: int = 60  # principal components before the support-vector machine
    cost: float = 1.0  # C
    epsilon: float = 0.05  # of the support-vector machine, in SDs of the target
    trees: int = 400
    leaf: int = 2  # fewest tracks in a leaf
    max_features: float = 0.3  # share of the features tried a split
    jobs: int = 1
    seed: int = 0


@dataclass(frozen=True)
class DescriptorModel:
    """Three fitted regressors and the scale of their targets."""

    center: NDArray[np.float64]  # (feature,)
    scale: NDArray[np.float64]
    ridge: Any
    components: Any
    machines: tuple[Any, ...]  # one a label
    trees: Any
    mean: NDArray[np.float64]  # (label,)
    spread: NDArray[np.float64]

    def predict(self, descriptors: Array) -> Array:
        """Predict ratings, shape (track, label), from descriptors, shape (track, feature)."""
        raw = np.asarray(descriptors, np.float32)
        standard = (raw - self.center) / self.scale
        reduced = self.components.transform(standard)
        average = (
            self.ridge.predict(standard)
            + np.stack([machine.predict(reduced) for machine in self.machines], axis=1)
            + self.trees.predict(raw).reshape(len(raw), -1)
        ) / 3
        ratings: Array = (average * self.spread + self.mean).astype(np.float32)
        return ratings


def fit(descriptors: Array, ratings: Array, recipe: DescriptorRecipe = DescriptorRecipe()) -> DescriptorModel:
    """Fit the descriptor model.

    Parameters
    ----------
    descriptors : numpy.ndarray
        Shape (track, feature), finite.
    ratings : numpy.ndarray
        Shape (track, label), finite.
    recipe : DescriptorRecipe
        Arguments of the regressors.

    Raises
    ------
    ValueError
        If shapes disagree, a value is not finite, or a label is constant.
    """
    from sklearn.decomposition import PCA
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.linear_model import RidgeCV
    from sklearn.svm import SVR

    if descriptors.ndim != 2 or ratings.ndim != 2 or len(descriptors) != len(ratings):
        raise ValueError(f"descriptors {descriptors.shape} and ratings {ratings.shape} must be (track, …) alike")
    if not (np.isfinite(descriptors).all() and np.isfinite(ratings).all()):
        raise ValueError("descriptors and ratings must be finite")
    mean, spread = ratings.mean(axis=0, dtype=float), ratings.std(axis=0, dtype=float)
    if not (spread > 0).all():
        raise ValueError(f"label {int(np.argmin(spread))} is constant, a model cannot learn it")
    raw = descriptors.astype(np.float32)
    center, scale = raw.mean(axis=0, dtype=float), raw.std(axis=0, dtype=float)
    scale[scale == 0] = 1.0
    standard = (raw - center) / scale
    targets = (ratings - mean) / spread
    ridge = RidgeCV(recipe.penalties, alpha_per_target=True).fit(standard, targets)
    components = PCA(min(recipe.components, len(raw) - 1), svd_solver="full").fit(standard)
    reduced = components.transform(standard)
    machines = tuple(SVR(C=recipe.cost, epsilon=recipe.epsilon).fit(reduced, target) for target in targets.T)
    trees = ExtraTreesRegressor(
        recipe.trees,
        min_samples_leaf=recipe.leaf,
        max_features=recipe.max_features,
        n_jobs=recipe.jobs,
        random_state=recipe.seed,
    ).fit(raw, targets)
    trees.n_jobs = 1
    return DescriptorModel(center, scale, ridge, components, machines, trees, mean, spread)


def to_onnx(model: DescriptorModel) -> bytes:
    """Serialise a fitted model as one ONNX graph, `descriptors` (track, feature) to `ratings` (track, label)."""
    from onnx import TensorProto, checker, helper, numpy_helper

    features, labels = len(model.center), len(model.mean)
    constants: dict[str, NDArray[Any]] = {
        "center": model.center,
        "scale": model.scale,
        "ridge_kernel": np.atleast_2d(model.ridge.coef_).T,
        "ridge_bias": np.atleast_1d(model.ridge.intercept_),
        "pca_mean": model.components.mean_,
        "pca_kernel": model.components.components_.T,
        "third": np.array([3.0]),
        "spread": model.spread,
        "mean": model.mean,
    }
    nodes = [
        helper.make_node("Sub", ["descriptors", "center"], ["centered"]),
        helper.make_node("Div", ["centered", "scale"], ["standard"]),
        helper.make_node("MatMul", ["standard", "ridge_kernel"], ["ridge_linear"]),
        helper.make_node("Add", ["ridge_linear", "ridge_bias"], ["ridge"]),
        helper.make_node("Sub", ["standard", "pca_mean"], ["standard_centered"]),
        helper.make_node("MatMul", ["standard_centered", "pca_kernel"], ["reduced"]),
    ]
    for label, machine in enumerate(model.machines):
        nodes.append(
            helper.make_node(
                "SVMRegressor",
                ["reduced"],
                [f"machine{label}"],
                domain="ai.onnx.ml",
                coefficients=machine.dual_coef_[0].astype(np.float32).tolist(),
                support_vectors=machine.support_vectors_.astype(np.float32).ravel().tolist(),
                n_supports=len(machine.support_vectors_),
                rho=[float(machine.intercept_[0])],
                kernel_type="RBF",
                kernel_params=[float(machine._gamma), 0.0, 0.0],
            )
        )
    nodes += [
        helper.make_node("Concat", [f"machine{label}" for label in range(labels)], ["machines"], axis=1),
        helper.make_node(
            "TreeEnsembleRegressor",
            ["descriptors"],
            ["trees"],
            domain="ai.onnx.ml",
            **_tree_attributes(model.trees, labels),
        ),
        helper.make_node("Add", ["ridge", "machines"], ["sum_of_two"]),
        helper.make_node("Add", ["sum_of_two", "trees"], ["sum_of_three"]),
        helper.make_node("Div", ["sum_of_three", "third"], ["average"]),
        helper.make_node("Mul", ["average", "spread"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mean"], ["ratings"]),
    ]
    graph = helper.make_graph(
        nodes,
        "descriptor_model",
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["track", features])],
        [helper.make_tensor_value_info("ratings", TensorProto.FLOAT, ["track", labels])],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    exported = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    checker.check_model(exported)
    serialized: bytes = exported.SerializeToString()
    return serialized


def _tree_attributes(forest: Any, labels: int) -> dict[str, Any]:
    """Flatten a forest into the attributes of ONNX's TreeEnsembleRegressor; leaves hold a value a label, averaged."""
    columns: dict[str, list[NDArray[Any]]] = {}

    def add(name: str, values: NDArray[Any]) -> None:
        columns.setdefault(name, []).append(values)

    for number, estimator in enumerate(forest.estimators_):
        tree = estimator.tree_
        count = tree.node_count
        leaf = tree.children_left < 0
        # x <= threshold with a float32 x holds exactly as long as the threshold is rounded down to float32
        threshold = tree.threshold.astype(np.float32)
        threshold = np.where(threshold > tree.threshold, np.nextafter(threshold, np.float32(-np.inf)), threshold)
        add("nodes_treeids", np.full(count, number))
        add("nodes_nodeids", np.arange(count))
        add("nodes_featureids", np.where(leaf, 0, tree.feature))
        add("nodes_values", np.where(leaf, 0, threshold).astype(np.float32))
        add("nodes_truenodeids", np.where(leaf, 0, tree.children_left))
        add("nodes_falsenodeids", np.where(leaf, 0, tree.children_right))
        add("nodes_modes", np.where(leaf, "LEAF", "BRANCH_LEQ"))
        leaves = np.flatnonzero(leaf)
        add("target_treeids", np.full(len(leaves) * labels, number))
        add("target_nodeids", np.repeat(leaves, labels))
        add("target_ids", np.tile(np.arange(labels), len(leaves)))
        add("target_weights", tree.value[leaves].reshape(-1).astype(np.float32))
    attributes: dict[str, Any] = {name: np.concatenate(parts).tolist() for name, parts in columns.items()}
    return attributes | {"n_targets": labels, "aggregate_function": "AVERAGE", "post_transform": "NONE"}
