"""The tagging network behind `best`: our graph, the authors' checkpoint layout, and what is kept of a track."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import tagger


def published_outputs(stored: dict[str, Any], mel: Any) -> tuple[Any, Any]:
    """The network as the paper's code has it, written out in NumPy for one window of shape (187, 96)."""

    def norm(x: Any, number: int) -> Any:
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        gamma, beta, mean, variance = (stored[f"{name}/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance"))
        return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta

    def convolve(x: Any, number: int) -> Any:
        name = f"conv2d_{number}" if number else "conv2d"
        kernel, bias = stored[f"{name}/kernel"], stored[f"{name}/bias"]
        patches = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(0, 1))  # (t, f, channel, kt, kf)
        return np.maximum(np.einsum("tfcab,abco->tfo", patches, kernel, optimize=True) + bias, 0)

    x = norm(mel[:, :, None], 0)
    around = np.pad(x, ((3, 3), (0, 0), (0, 0)))
    maps = []
    for number, length in enumerate((None, None, 128, 64, 32)):
        before = None if length is None else (length - 1) // 2
        read = around if length is None else np.pad(x, ((before, length - 1 - before), (0, 0), (0, 0)))
        maps.append(norm(convolve(read, number), number + 1).max(axis=1))
    front = np.concatenate(maps, axis=1)
    layers = [front]
    for number in range(3):
        read = np.pad(layers[-1], ((3, 3), (0, 0)))[:, :, None]
        made = norm(convolve(read, number + 5)[:, 0], number + 6)
        layers.append(made if number == 0 else made + layers[-1])
    every = np.concatenate(layers, axis=1)
    pooled = every.mean(axis=0)
    flat = norm(np.stack([every.max(axis=0), pooled], axis=1).ravel(), 9)
    hidden = np.maximum(flat @ stored["dense/kernel"] + stored["dense/bias"], 0)
    return norm(hidden, 10), pooled


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A checkpoint of random weights with the names, shapes and nameless files of the authors'."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    shapes = {"conv2d": (7, 38, 1, 204), "conv2d_1": (7, 67, 1, 204)}
    shapes |= {f"conv2d_{2 + k}": (length, 1, 1, 51) for k, length in enumerate((128, 64, 32))}
    shapes |= {"conv2d_5": (7, 561, 1, 64), "conv2d_6": (7, 64, 1, 64), "conv2d_7": (7, 64, 1, 64), "dense": (1506, 200)}
    stored: dict[str, Any] = {}
    for name, shape in shapes.items():
        stored[f"{name}/kernel"] = rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape).astype(np.float32)
        stored[f"{name}/bias"] = rng.normal(0, 0.1, shape[-1]).astype(np.float32)
    for number, width in enumerate((1, 204, 204, 51, 51, 51, 64, 64, 64, 1506, 200)):
        name = f"batch_normalization_{number}" if number else "batch_normalization"
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            stored[f"{name}/{part}"] = rng.uniform(0.5, 1.5, width).astype(np.float32)
    folder = tmp_path_factory.mktemp("published")
    tf.raw_ops.SaveV2(
        prefix=str(folder / "x"),
        tensor_names=list(stored),
        shape_and_slices=[""] * len(stored),
        tensors=[tf.constant(value) for value in stored.values()],
    )
    for path in list(folder.iterdir()):
        path.rename(folder / path.name[1:])
    return folder, stored


def test_the_graph_is_the_published_network(checkpoint: tuple[Path, dict[str, Any]]) -> None:
    folder, stored = checkpoint
    network = tagger.load_checkpoint(folder)
    mel = np.random.default_rng(1).uniform(0, 4, (187, 96)).astype(np.float32)
    outputs = network.predict_on_batch(mel[None, :, :, None])
    embedding, pooled = published_outputs(stored, mel)
    np.testing.assert_allclose(outputs["pooled"][0], pooled, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(outputs["embedding"][0], embedding, rtol=1e-3, atol=1e-3)


def test_a_track_keeps_mean_and_spread_over_its_windows() -> None:
    windows = {"embedding": np.arange(400, dtype=np.float32).reshape(2, 200), "pooled": np.ones((2, 753), np.float32)}
    embedding, pooled = tagger.pool(windows)
    assert (embedding.shape, pooled.shape) == ((400,), (1506,))
    assert embedding[0] == 100
    assert embedding[200] == 100  # of 0 and 200
    assert not pooled[753:].any()
