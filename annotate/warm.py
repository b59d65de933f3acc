"""Fill librosa's numba cache once, at installation, so that the first worker does not compile for seconds."""

from __future__ import annotations

import numpy as np


def main() -> None:
    """Run every front end on a second of noise."""
    from features.descriptors import DescriptorSpec, describe
    from features.spectrogram import (
        LogFrequencySpec,
        MelMfccContrastSpec,
        MelSpec,
        StftSpec,
        log_frequency_windows,
        mel_mfcc_contrast_windows,
        mel_windows,
        stft_windows,
    )

    noise = np.random.default_rng(0).standard_normal(44_100).astype(np.float32)
    describe(noise, DescriptorSpec())
    for _ in stft_windows(noise, StftSpec()):
        pass
    for _ in log_frequency_windows(noise, LogFrequencySpec()):
        pass
    for _ in mel_windows(noise, MelSpec()):
        pass
    for _ in mel_mfcc_contrast_windows(noise, MelMfccContrastSpec()):
        pass


if __name__ == "__main__":
    main()
