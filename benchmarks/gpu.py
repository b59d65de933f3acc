"""Runs every frozen network of a bundle on whatever Keras's backend finds, and prints how fast and how exact it is.

    python benchmarks/gpu.py                       TensorFlow
    KERAS_BACKEND=jax python benchmarks/gpu.py     JAX; likewise torch

The peak is measured too, as a large matrix multiplication of the same precision on the same device.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

PRECISIONS = {"float32": None, "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def rate(call: Callable[[], object], seconds: float) -> float:
    """Calls a second, after one to warm up."""
    call()
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds or calls < 2:
        call()
        calls += 1
    return calls / (time.perf_counter() - began)


def peak_tflops(precision: str, size: int, seconds: float) -> float:
    """Trillions of operations a second of a square matrix multiplication, by the fastest of many."""
    import keras

    ones = keras.ops.ones((size, size), dtype=precision)

    def multiply() -> float:
        return float(keras.ops.convert_to_numpy(keras.ops.cast(keras.ops.matmul(ones, ones)[0, 0], "float32")))

    multiply()
    ends, fastest = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < ends:
        began = time.perf_counter()
        multiply()
        fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * size**3 / fastest / 1e12


def main() -> None:
    """Print a line for each network and precision."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="default")
    parser.add_argument("--batch", type=int, help="windows; default: found from free memory, 8 at most on a CPU")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--precisions", default="float32,bfloat16", help="with commas, of float32, bfloat16, float16")
    arguments = parser.parse_args()

    from models import accelerator
    from models.bundle import FAMILIES, load, load_network

    bundle = load(arguments.bundle)
    device = accelerator.find_accelerator()
    print(f"{device.kind}: {device.name}, {device.free_bytes / 2**30:.1f} GiB free, Keras on {device.backend}")
    if device.kind == "cpu":
        print("no accelerator was available: these figures are of the CPU")
    size = 2048 if device.kind == "cpu" else 8192
    precisions = [name.strip() for name in arguments.precisions.split(",")]
    peaks = {name: peak_tflops(name, size, arguments.seconds) for name in precisions}
    for name, peak in peaks.items():
        print(f"peak, {name}: {peak:.3f} TFLOP/s ({size} x {size} matrices)")
    heads = ("precision", "batch", "windows/s", "GFLOP", "of peak", "least r", "largest")
    print("network    {:9s} {:>5s} {:>10s} {:>7s} {:>8s} {:>8s} {:>8s}".format(*heads))
    for family in FAMILIES:
        if family not in bundle.families or bundle.families[family].weights is None:
            continue
        network = load_network(bundle, family)
        windows = accelerator.reference_windows(bundle, family)
        batch = arguments.batch or min(
            accelerator.batch_that_fits(network, device.free_bytes), 8 if device.kind == "cpu" else 256
        )
        inputs = windows[np.arange(batch) % len(windows)]
        gflop = accelerator.gflop_per_window(network)
        for name in precisions:
            policy = PRECISIONS[name]
            try:
                running = network if policy is None else accelerator.mixed_network(network, policy)
                found = accelerator.agreement_of(running, network, windows, bundle.families[family])
                speed = rate(lambda running=running, inputs=inputs: running.predict_on_batch(inputs), arguments.seconds) * batch
            except Exception as error:  # a backend without a kernel for it: say so and go on
                print(f"{family:10s} {name:9s} cannot run: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
                continue
            share = speed * gflop / 1e3 / peaks[name]
            r, largest = (
                ("rates nothing", "")
                if not found
                else (f"{min(one.least_r for one in found):8.5f}", f"{max(one.largest_share for one in found):8.5f}")
            )
            print(f"{family:10s} {name:9s} {batch:5d} {speed:10.1f} {gflop:7.3f} {share:8.1%} {r} {largest}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
