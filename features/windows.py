"""Where the windows of a track lie.

Conventions: windows lie back to back from the first sample. A remainder shorter than half a window is dropped, unless it is the
only window; a remainder that is kept is padded at its end with zeros, as the spec of the front end says. Lengths are in samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float32]


@dataclass(frozen=True)
class WindowPlan:
    """The windows of one signal: how many, how long, and what happened to the end of the signal."""

    count: int
    length: int  # samples
    padded: int  # samples of padding in the last window
    dropped: int  # samples at the end of the signal that no window covers


def plan_windows(n_samples: int, length: int) -> WindowPlan:
    """Lay windows of `length` samples back to back over `n_samples`.

    Raises
    ------
    ValueError
        If either number is not positive.
    """
    if length <= 0:
        raise ValueError(f"length={length} must be > 0 samples")
    if n_samples <= 0:
        raise ValueError(f"n_samples={n_samples} must be > 0")
    whole, remainder = divmod(n_samples, length)
    if remainder and (whole == 0 or 2 * remainder >= length):
        return WindowPlan(whole + 1, length, padded=length - remainder, dropped=0)
    return WindowPlan(whole, length, padded=0, dropped=remainder)


def cut(signal: Signal, start: int, length: int) -> Signal:
    """Return `length` samples from `start` on (which may be negative), zeros where the signal has none."""
    stop = start + length
    inside = signal[max(start, 0) : max(stop, 0)]
    if len(inside) == length:
        return inside
    padded = np.zeros(length, np.float32)
    offset = max(-start, 0)
    padded[offset : offset + len(inside)] = inside
    return padded


def check_signal(signal: Signal) -> None:
    """Refuse what is not a non-empty one-dimensional float32 array of finite samples."""
    if signal.ndim != 1:
        raise ValueError(f"signal has {signal.ndim} dimensions, must be 1 (mono)")
    if signal.size == 0:
        raise ValueError("signal is empty, must hold at least 1 sample")
    if signal.dtype != np.float32:
        raise ValueError(f"signal has dtype {signal.dtype}, must be float32")
    if not np.isfinite(signal).all():
        raise ValueError("signal holds NaN or infinite samples, must be finite")


def leveled(signal: Signal, rms: float) -> Signal:
    """Scale a signal to a root mean square of `rms`, so that what is computed from it does not depend on the recording's gain.

    A signal of zeros stays as it is.
    """
    present = float(np.sqrt(np.mean(np.square(signal, dtype=np.float64))))
    return signal if present == 0 else signal * np.float32(rms / present)
