"""Networks on an accelerator, as far as a CPU can tell: batches, mixed precision, operations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from models import accelerator
from models.bundle import load, load_network
from outputs.table import read_provenance


@pytest.fixture(scope="module")
def network() -> Any:
    """A small network of the kind that bundles hold: one convolution, a head by name."""
    import keras

    inputs = keras.Input((20, 16, 1))
    hidden = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    heads = {"ratings": keras.layers.Dense(2, name="ratings")(keras.layers.GlobalAveragePooling2D()(hidden))}
    return keras.Model(inputs, heads)


@pytest.fixture
def windows() -> Any:
    return np.random.default_rng(0).normal(size=(16, 20, 16, 1)).astype(np.float32) * np.linspace(1, 5, 16)[:, None, None, None]


FAMILY: Any = SimpleNamespace(front_end="StftSpec", outputs=[SimpleNamespace(head="ratings", low=1.0, high=9.0, scale=1.0)])


def test_batches_are_powers_of_two_that_half_of_the_memory_holds(network: Any) -> None:
    one = accelerator.bytes_per_window(network)
    assert one == 4 * 20 * 16 * (1 + 8)  # what goes into the convolution and what comes out
    assert accelerator.batch_that_fits(network, 0) == 1
    assert accelerator.batch_that_fits(network, 2 * one) == 1
    assert accelerator.batch_that_fits(network, 2 * 11 * one) == 8
    assert accelerator.batch_that_fits(network, 10**15) == accelerator.MOST_WINDOWS


def test_operations_of_known_layers() -> None:
    import keras

    graph = keras.Sequential([keras.Input((10, 8, 1)), keras.layers.Conv2D(4, 3, padding="same"), keras.layers.Flatten()])
    assert accelerator.gflop_per_window(graph) == pytest.approx(2 * 80 * 9 * 4 / 1e9)
    graph.add(keras.layers.Dense(5))
    assert accelerator.gflop_per_window(graph) == pytest.approx((2 * 80 * 9 * 4 + 2 * 320 * 5) / 1e9)


def test_operations_of_every_network_of_the_bundle_are_counted() -> None:
    bundle = load("default")
    counted = {name: accelerator.gflop_per_window(load_network(bundle, name)) for name in ("va", "vaseq", "crnn", "joint")}
    assert counted["joint"] == pytest.approx(8.6, rel=0.05)  # of the documents' layer table
    assert counted["crnn"] == pytest.approx(2.3, rel=0.05)
    assert 0 < counted["va"] < counted["vaseq"] < 1


def test_mixed_precision_is_within_the_bound_and_a_spoiled_network_is_not(network: Any, windows: Any) -> None:
    mixed = accelerator.mixed_network(network, "mixed_float16")
    assert {layer.dtype_policy.name for layer in mixed.layers if layer.weights} == {"mixed_float16", "float32"}  # the head
    (found,) = accelerator.agreement_of(mixed, network, windows.astype(np.float32), FAMILY)
    assert found.good
    assert found.windows == 16
    assert found.largest_share > 0  # it is not the same network
    mixed.set_weights([np.asarray(weight)[..., ::-1] for weight in mixed.get_weights()])
    assert not accelerator.agreement_of(mixed, network, windows.astype(np.float32), FAMILY)[0].good


def test_predictors_take_mixed_precision_where_it_agrees_and_say_so(
    network: Any, windows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle: Any = SimpleNamespace(families={"emotion": FAMILY, "va": SimpleNamespace(front_end="TranscriptionSpec")})
    device = accelerator.Accelerator("gpu", "pretended", 2**33, "tensorflow")
    monkeypatch.setattr(accelerator, "load_network", lambda *_: network)
    monkeypatch.setattr(accelerator, "reference_windows", lambda *_: windows.astype(np.float32))
    predict, sizes, said = accelerator.predictors(bundle, ["emotion", "va"], device)
    assert sizes == {"emotion": accelerator.MOST_WINDOWS}
    assert [line.partition(",")[0] for line in said] == ["emotion: mixed float16"]
    exact = accelerator.run_network(network, windows)["ratings"]
    np.testing.assert_array_equal(predict["va"](windows[:8])["ratings"], exact[:8])
    assert 0 < np.abs(predict["emotion"](windows[:8])["ratings"] - exact[:8]).max() < 0.02
    monkeypatch.setattr("models.export.MIN_R", 1.1)  # nothing agrees
    assert accelerator.predictors(bundle, ["emotion"], device)[2][0].startswith("emotion: float32,")


def test_windows_to_check_on_are_blends_of_the_bundles_own() -> None:
    checked = accelerator.reference_windows(load("default"), "va")
    assert len(checked) >= accelerator.CHECK_WINDOWS + 1
    assert np.isfinite(checked).all()
    assert len(np.unique(checked, axis=0)) > accelerator.CHECK_WINDOWS // 2


def test_the_device_of_this_machine_is_named() -> None:
    device = accelerator.find_accelerator()
    assert device.kind in ("cpu", "gpu", "tpu")
    assert device.free_bytes > 2**20
    assert device.name


@pytest.mark.parametrize("family", ["joint", "crnn", "vaseq"])  # a network without and with LSTMs, and one with a mask
def test_networks_of_the_bundle_keep_to_the_bound_in_mixed_precision(family: str) -> None:
    bundle = load("default")
    network = load_network(bundle, family)
    mixed = accelerator.mixed_network(network, "mixed_float16")
    computed = {layer.compute_dtype for layer in mixed.layers if hasattr(layer, "compute_dtype")}
    assert {"float16", "float32"} <= computed  # and not twice the same
    found = accelerator.agreement_of(mixed, network, accelerator.reference_windows(bundle, family), bundle.families[family])
    assert found
    assert all(one.good for one in found), found


def test_a_network_that_other_models_read_stays_in_float32() -> None:
    device = accelerator.Accelerator("gpu", "pretended", 2**33, "tensorflow")
    predict, _, said = accelerator.predictors(load("default"), ["best"], device)
    assert said[0].startswith("best: float32, ")
    outputs = predict["best"](accelerator.reference_windows(load("default"), "best")[:2])
    assert outputs["embedding"].shape == (2, 200)


def test_the_way_of_a_gpu_gives_the_values_of_the_cpu(
    in_process: Any, demo_corpus: Any, demo_table: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers prepare windows, Keras rates them in the main process in mixed precision: here on a CPU that says it is a GPU."""
    monkeypatch.setattr("annotate.pipeline.choose_device", lambda options: "gpu")
    out = tmp_path / "t.parquet"
    done = in_process("run", demo_corpus, "--out", out, "--models", "joint,best", "--jobs", 1)
    assert done.exit_code == 0, done.stderr
    assert "joint: mixed float16" in done.stderr
    ours, theirs = pd.read_parquet(out), pd.read_parquet(demo_table)
    assert len(ours) == len(theirs) == 8
    for column in (name for name in ours.columns if name.startswith(("joint_", "best_")) and not name.endswith("_sd")):
        span = 8.0 if ours[column].abs().max() > 1 else 1.0  # ratings on 1-9 or near it, shares
        np.testing.assert_allclose(ours[column], theirs[column], atol=0.01 * span, err_msg=column)
    assert read_provenance(out)["engine"] == "keras mixed float16"
