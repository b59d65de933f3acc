"""Networks on a GPU: what there is, how many windows fit, and half the bits where that agrees with float32.

Conventions
-----------
- Sizes are bytes; a batch is counted in windows.
- Mixed precision keeps weights and heads in float32 and multiplies in 16 bits; it is used only where it agrees with float32 on
  the bundle's reference windows within the bound that the CPU graphs are held to (`models.export.Agreement`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle, Family, load_network
from models.export import Agreement, agreement
from models.inference import Predict, spectrogram_families

Array = NDArray[np.float32]
log = logging.getLogger("annotate")

SHARE_OF_MEMORY = 0.5  # of what is free: workspaces of the convolutions take their part
MOST_WINDOWS = 256  # in a batch; larger ones gain nothing
CHECK_WINDOWS = 14  # blends of the reference inputs
CHECK_BATCH = 8  # windows at a time when mixed precision is checked


@dataclass(frozen=True)
class Accelerator:
    """The device that Keras uses."""

    kind: str  # gpu | tpu | cpu
    name: str
    free_bytes: int  # now
    backend: str  # of Keras


def find_accelerator() -> Accelerator:
    """The device of Keras's backend (TensorFlow, JAX or torch), and its free memory."""
    import keras

    backend = str(keras.backend.backend())
    if backend == "tensorflow":
        import tensorflow

        found = tensorflow.config.list_physical_devices("GPU")
        if found:
            details = tensorflow.config.experimental.get_device_details(found[0])
            return Accelerator("gpu", str(details.get("device_name", found[0].name)), free_gpu_bytes(), backend)
    elif backend == "jax":
        import jax

        device = jax.devices()[0]
        if device.platform != "cpu":
            held = device.memory_stats() or {}
            free = held.get("bytes_limit", 0) - held.get("bytes_in_use", 0)
            return Accelerator(device.platform, str(device.device_kind), int(free), backend)
    elif backend == "torch":
        import torch

        if torch.cuda.is_available():
            return Accelerator("gpu", str(torch.cuda.get_device_name()), int(torch.cuda.mem_get_info()[0]), backend)
    import platform

    import psutil

    return Accelerator("cpu", platform.processor() or platform.machine(), int(psutil.virtual_memory().available), backend)


def free_gpu_bytes() -> int:
    """Free memory of the first NVIDIA GPU, by its driver's tool; 0 where that says nothing."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        return int(said.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def bytes_per_window(network: Any) -> int:
    """Memory that a window takes on its way through a network: the largest sum of a layer's input and output, float32."""
    sizes = [0]
    for layer in network.layers:
        numbers = 0
        for tensors in (layer.input, layer.output):
            listed = (
                tensors if isinstance(tensors, list | tuple) else tensors.values() if isinstance(tensors, dict) else [tensors]
            )
            numbers += sum(int(np.prod([size or 1 for size in tensor.shape[1:]])) for tensor in listed)
        sizes.append(4 * numbers)
    return max(sizes)


def batch_that_fits(network: Any, free_bytes: int) -> int:
    """Windows of a batch: a power of two that half of the free memory holds, 1 to `MOST_WINDOWS`."""
    fitting = int(SHARE_OF_MEMORY * free_bytes) // max(bytes_per_window(network), 1)
    return min(MOST_WINDOWS, 2 ** (fitting.bit_length() - 1)) if fitting >= 1 else 1


def mixed_network(network: Any, policy: str) -> Any:
    """A copy of a network that multiplies in 16 bits: `policy` is mixed_float16 or mixed_bfloat16; the heads stay float32."""
    import keras

    heads = set(network.output_names) if hasattr(network, "output_names") else set()
    last = {tensor._keras_history.operation.name for tensor in keras.tree.flatten(network.output)} | heads

    def copy(layer: Any) -> Any:
        config = layer.get_config()
        plain = not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.layers.InputLayer)  # masks are operations
        if not plain and layer.name not in last:
            config["dtype"] = policy
        return type(layer).from_config(config)

    cloned = keras.models.clone_model(network, clone_function=copy)
    cloned.set_weights(network.get_weights())
    return cloned


def agreement_of(mixed: Any, network: Any, windows: Array, family: Family) -> list[Agreement]:
    """How the rating heads of a mixed network agree with those of its float32 original on some windows, (window, …, 1)."""
    ranges: dict[str, float] = {}
    for output in family.outputs:
        ranges[output.head] = min((output.high - output.low) / output.scale, ranges.get(output.head, np.inf))
    theirs, ours = run_network(network, windows), run_network(mixed, windows)
    return agreement(ours, theirs, {head: span for head, span in ranges.items() if head in theirs})


def run_network(network: Any, windows: Array, batch: int = CHECK_BATCH) -> dict[str, Array]:
    """Run a network over windows: head -> (window, label), float32."""
    collected: dict[str, list[Array]] = {}
    for start in range(0, len(windows), batch):
        for head, values in as_heads(network.predict_on_batch(windows[start : start + batch])).items():
            collected.setdefault(head, []).append(np.asarray(values, np.float32))
    return {head: np.concatenate(parts) for head, parts in collected.items()}


def as_heads(outputs: Mapping[str, Any] | Any) -> Mapping[str, Any]:
    """Outputs by head; a network of one output has the head ``output``."""
    return outputs if isinstance(outputs, Mapping) else {"output": outputs}


def reference_windows(bundle: Bundle, family: str) -> Array:
    """Windows to measure agreement on: the bundle's reference inputs of a network, and `CHECK_WINDOWS` blends of them.

    The inputs alone are too few for a correlation. A blend is a weighted mean of two of them, for spectrograms shifted in time.
    """
    with np.load(bundle.file("reference.npz"), allow_pickle=False) as reference:
        windows: Array = reference[f"{family}/input"].astype(np.float32)
    blends = [windows]
    for number in range(CHECK_WINDOWS):
        share = np.float32((number + 1) / (CHECK_WINDOWS + 1))
        one, other = windows[number % len(windows)], windows[(number + 1) % len(windows)]
        if one.ndim == 3:
            one = np.roll(one, number * one.shape[-2] // CHECK_WINDOWS, axis=-2)
        blends.append((share * one + (1 - share) * other)[None])
    return np.concatenate(blends)


def predictors(
    bundle: Bundle, families: Sequence[str], device: Accelerator
) -> tuple[dict[str, Predict], dict[str, int], list[str]]:
    """Networks for a GPU: a function a family, the size of its batch, and a line each on what was chosen.

    Spectrogram networks run in mixed precision where that agrees with float32; the others, which are small, in float32.
    """
    predict: dict[str, Predict] = {}
    sizes: dict[str, int] = {}
    said = []
    for name in families:
        network = load_network(bundle, name)
        precision = "float32"
        if name in spectrogram_families(bundle, [name]):
            sizes[name] = batch_that_fits(network, device.free_bytes)
            mixed = mixed_network(network, "mixed_float16")
            found = agreement_of(mixed, network, reference_windows(bundle, name), bundle.families[name])
            if found and all(one.good for one in found):
                network, precision = mixed, "mixed float16"
            compared = (
                f"mixed precision against float32: least r {min(one.least_r for one in found):.5f}, "
                f"largest difference {max(one.largest_share for one in found):.4f} of the range"
                if found
                else "other models read its outputs, so it rates nothing that mixed precision could be judged by"
            )
            said.append(f"{name}: {precision}, {sizes[name]} windows a batch; {compared}")
        predict[name] = _predict(network)
    return predict, sizes, said


def _predict(network: Any) -> Predict:
    return lambda batch: {head: np.asarray(values, np.float32) for head, values in network.predict_on_batch(batch).items()}


def gflop_per_window(network: Any) -> float:
    """Billions of floating-point operations a window: two for each multiply and add of convolutions, dense layers and LSTMs."""
    operations = 0.0
    for layer in network.layers:
        kernels = [weight for weight in layer.weights if len(weight.shape) >= 2]
        if not kernels or not hasattr(layer, "output"):
            continue
        if len(layer.output.shape) == 4:
            places = float(np.prod(layer.output.shape[1:3]))
        else:
            first = layer.input[0] if isinstance(layer.input, list | tuple) else layer.input  # beside it, a mask
            places = float(first.shape[1] or 1) if len(first.shape) == 3 else 1.0  # steps
        operations += 2.0 * places * sum(float(np.prod(kernel.shape)) for kernel in kernels)
    return operations / 1e9
