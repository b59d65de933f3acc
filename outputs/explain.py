"""Why a model says what it says: the linear maps of probe and joint, from the table's metadata alone.

Conventions
-----------
- `probe` maps the seven saliences to the log-odds of a GEMS emotion, `joint` seven mid-level ratings to a film emotion in rating
  units; both are weighted sums, so that a track's prediction is the prediction at the table's mean plus its contributions.
- A contribution is weight · (the track's feature - the mean over the table's ok tracks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy.special import expit

from outputs.statistics import label_of

UNITS: Final = {"log-odds": "log-odds", "rating": "rating points"}
TOLERANCE: Final = 0.02  # of the output's own unit, between a sum of contributions and the table's value


@dataclass(frozen=True, eq=False)
class LinearMap:
    """One linear explanation: weights of features (rows) for emotions (columns)."""

    family: str
    scale: str  # log-odds or rating: unit of weight · feature
    weights: pd.DataFrame  # index: feature columns of the table; columns: emotion columns
    bias: pd.Series[float]  # emotion column -> constant


def linear_maps(provenance: Mapping[str, Any]) -> dict[str, LinearMap]:
    """Read the linear maps of a table's families from its provenance.

    Raises
    ------
    ValueError
        If a map's shape contradicts its names.
    """
    maps = {}
    for family, entry in (provenance.get("explanation") or {}).items():
        try:
            inputs, outputs = [str(name) for name in entry["inputs"]], [str(name) for name in entry["outputs"]]
            weights, bias = (np.asarray(entry[name], dtype=float) for name in ("weights", "bias"))
            scale = str(entry["scale"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the table's explanation of {family!r} is broken ({type(error).__name__}: {error})") from None
        if weights.shape == (len(outputs), len(inputs)) and weights.shape != (len(inputs), len(outputs)):
            weights = weights.T
        if weights.shape != (len(inputs), len(outputs)) or bias.shape != (len(outputs),):
            raise ValueError(f"the table's explanation of {family} has weights of shape {weights.shape}")
        if len({*inputs}) < len(inputs) or len({*outputs}) < len(outputs) or not inputs or not outputs:
            raise ValueError(f"the table's explanation of {family} names a feature or an emotion twice, or none")
        maps[family] = LinearMap(
            family,
            scale,
            pd.DataFrame(weights, index=pd.Index(inputs, name="feature"), columns=outputs),
            pd.Series(bias, index=outputs),
        )
    return maps


def formula(one: LinearMap, emotion: str, *, digits: int = 2) -> str:
    """Write an emotion as a sum of features, the heaviest first: ``0.42 tonal_stability − 0.46 dissonance + 1.20``."""
    weights = one.weights[emotion]
    order = weights.abs().sort_values(ascending=False, kind="stable").index
    terms = [(float(weights[name]), label_of(str(name))) for name in order] + [(float(one.bias[emotion]), "")]
    text = ""
    for value, name in terms:
        sign = "−" if value < 0 else "+"
        number = f"{abs(value):.{digits}f}" + (f" {name}" if name else "")
        text += f" {sign} {number}" if text else (f"−{number}" if value < 0 else number)
    return text


def contributions(one: LinearMap, track: pd.Series[Any], table: pd.DataFrame, emotion: str) -> pd.DataFrame:
    """What each feature adds to an emotion of a track, against the mean track of the table.

    Returns
    -------
    pandas.DataFrame
        Index: features, the largest contribution first. Columns ``value`` (of the track), ``mean`` (of the table), ``weight``,
        ``contribution`` in the map's scale and, of log-odds, ``share``: how much the predicted share of listeners would fall if
        this feature alone were at its mean.

    Raises
    ------
    ValueError
        If the table lacks a feature, or the track has no value of it.
    """
    features = list(one.weights.index)
    missing = [str(name) for name in features if name not in table]
    if missing:
        raise ValueError(f"the table lacks {', '.join(missing)}, which {one.family} is made from")
    usable = table[table["status"] == "ok"] if "status" in table else table
    values = track[features].astype(float)
    absent = [str(name) for name in features if not np.isfinite(values[name])]
    if absent:
        raise ValueError(f"{track['track']} has no {', '.join(absent)}")
    means = usable[features].astype(float).mean()
    weights = one.weights[emotion]
    found = pd.DataFrame({"value": values, "mean": means, "weight": weights, "contribution": weights * (values - means)})
    if one.scale == "log-odds":
        total = float((weights * values).sum() + one.bias[emotion])
        found["share"] = expit(total) - expit(total - found["contribution"].to_numpy(dtype=float))
    order = found["contribution"].abs().sort_values(ascending=False, kind="stable").index
    return found.loc[order].rename_axis("feature")


def predicted(one: LinearMap, values: pd.Series[float], emotion: str) -> float:
    """Value of an emotion by the map, in the unit of its column (a share, a rating)."""
    total = float((one.weights[emotion] * values[list(one.weights.index)].astype(float)).sum() + one.bias[emotion])
    return float(expit(total)) if one.scale == "log-odds" else total
