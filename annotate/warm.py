"""Fill librosa's numba cache once, at installation, so that the first worker does not compile for seconds."""

from __future__ import annotations

import numpy as np


def main() -> None:
    """Run every front end on a second of noise."""
    from features.descriptors import DescriptorSpec, describe
    from models.inference import FRONT_ENDS

    noise = np.random.default_rng(0).standard_normal(44_100).astype(np.float32)
    describe(noise, DescriptorSpec())
    for spec, windows in FRONT_ENDS.values():
        for _ in windows(noise, spec()):
            pass


if __name__ == "__main__":
    main()
