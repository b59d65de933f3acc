"""How often the reports' 95 % intervals hold the truth, by simulation.

    python benchmarks/interval_coverage.py    prints the table of docs/statistics.md

Tracks are drawn from known populations: two normal variables of correlation ρ; the same with genres whose means differ; shares of
25 listeners instead of normal ratings; artists of four tracks that share a level. Seeded; nothing is read or written.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from outputs.metrics import agreement
from outputs.statistics import partial, pearson, pooled_within, regress, spearman

REPEATS = 2000
FEW = 400  # repeats of what takes long
RHO = (0.0, 0.3, 0.7)


def normal(rng: np.random.Generator, n: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    x = rng.normal(size=n)
    return x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=n)


def share(name: str, n: int, rho: float, held: list[bool]) -> str:
    coverage = np.mean(held)
    error = np.sqrt(coverage * (1 - coverage) / len(held))
    return f"| {name} | {n} | {round(rho, 1) + 0.0:.1f} | {len(held)} | {100 * coverage:.1f} % ± {100 * error:.1f} |"


def spearman_of_normal(rho: float) -> float:
    """Rank correlation of a bivariate normal population (Pearson 1907)."""
    return float(6 / np.pi * np.arcsin(rho / 2))


def main() -> None:
    rng = np.random.default_rng(0)
    print("| interval | tracks | true value | repeats | holds the truth |\n|---|---|---|---|---|")
    for n in (30, 300):
        for rho in RHO:
            found = [pearson(*normal(rng, n, rho)) for _ in range(REPEATS)]
            print(share("Pearson, Fisher's z", n, rho, [one.low <= rho <= one.high for one in found]))
        for rho in RHO:
            truth = spearman_of_normal(rho)
            found = [spearman(*normal(rng, n, rho)) for _ in range(REPEATS)]
            print(share("Spearman, Bonett and Wright", n, truth, [one.low <= truth <= one.high for one in found]))
        for rho in RHO:
            genre = np.arange(n) % 4
            dummies = np.eye(4)[genre][:, 1:]
            partials, pooled = [], []
            for _ in range(REPEATS):
                x, y = normal(rng, n, rho)
                shifted = x + 2 * genre, y - genre
                partials.append(partial(*shifted, dummies))
                pooled.append(pooled_within(*shifted, genre.astype(str)))
            print(share("partial given genre", n, rho, [one.low <= rho <= one.high for one in partials]))
            print(share("within genre, pooled", n, rho, [one.low <= rho <= one.high for one in pooled]))
    for rho in RHO:
        n, listeners = 300, 25
        held = []
        for _ in range(REPEATS):
            x, latent = normal(rng, n, rho)
            rated = rng.binomial(listeners, 1 / (1 + np.exp(-latent))) / listeners
            held.append((pearson(x, rated), rated, x))
        truth = float(np.corrcoef(np.concatenate([x for _, _, x in held]), np.concatenate([y for _, y, _ in held]))[0, 1])
        print(share("Pearson, shares of 25 listeners", n, truth, [one.low <= truth <= one.high for one, _, _ in held]))
    for rho in RHO:
        n = 100
        held = []
        for number in range(FEW):
            x, y = normal(rng, n, rho)
            row = agreement(x[:, None], y[:, None], ["a"], resamples=1000, seed=number).iloc[0]
            held.append(bool(row["r_low"] <= rho <= row["r_high"]))
        print(share("agreement r, percentile bootstrap", n, rho, held))
    artist = np.repeat(np.arange(60), 4)
    names = pd.Series([f"artist {number}" for number in artist])
    robust, plain = [], []
    for _ in range(FEW):
        level, taste = rng.normal(size=60)[artist], rng.normal(size=60)[artist]
        x = level + rng.normal(size=240)
        other = rng.normal(size=240)
        y = 0.5 * x + taste + rng.normal(size=240)
        truth = 0.5 * x.std(ddof=1) / y.std(ddof=1)  # the standardised coefficient of this sample's spreads
        for groups, held in ((names, robust), (None, plain)):
            row = regress(pd.DataFrame({"x": x, "other": other}), pd.Series(y), artist=groups).coefficients.loc["x"]
            held.append(bool(row["low"] <= truth <= row["high"]))
    print(share("regression β, clustered by artist", 240, 0.5, robust))
    print(share("regression β, artists unknown (HC3)", 240, 0.5, plain))


if __name__ == "__main__":
    main()
