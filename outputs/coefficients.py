"""Linear maps explained: standardised coefficients with intervals, and how far the inputs say the same thing.

Conventions: `inputs` (n, k) and `outputs` (n, m) are tables of the same tracks; a row of the result is one output and one input.
Source: statsmodels (ordinary least squares; binomial regression of shares; variance-inflation factors).
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
from numpy.typing import NDArray

COLUMNS = ("emotion", "feature", "beta", "low", "high", "vif")


def standardised_coefficients(inputs: pd.DataFrame, outputs: pd.DataFrame, *, shares: bool = False) -> pd.DataFrame:
    """Regress each output on all inputs together.

    Parameters
    ----------
    inputs, outputs : pandas.DataFrame
        Same rows, finite.
    shares : bool
        Whether the outputs are shares of listeners: binomial regression, coefficients in log-odds a standard deviation of the
        input. Otherwise least squares, in standard deviations of the output.

    Returns
    -------
    pandas.DataFrame
        `emotion`, `feature`, `beta`, `low` and `high` (95 % interval, heteroscedasticity-robust), `vif` (variance-inflation
        factor of the input: 1 / (1 - R²) of its regression on the others). No rows where an output or input is constant.

    Raises
    ------
    ValueError
        If the tables have different rows, or fewer rows than inputs + 2.
    """
    import statsmodels.api as sm
    from statsmodels.stats.outliers_influence import variance_inflation_factor

    if len(inputs) != len(outputs):
        raise ValueError(f"inputs have {len(inputs)} rows, outputs {len(outputs)}: must be the same tracks")
    if len(inputs) < inputs.shape[1] + 2:
        raise ValueError(f"{len(inputs)} tracks are too few for {inputs.shape[1]} inputs")
    varied = inputs.loc[:, inputs.std(ddof=0) > 0]
    design = sm.add_constant(_standard(varied.to_numpy(float)))
    inflation = [float(variance_inflation_factor(design, column)) for column in range(1, design.shape[1])]
    rows: list[tuple[object, ...]] = []
    for emotion in outputs.columns:
        values = outputs[emotion].to_numpy(float)
        if values.std() == 0:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of shares that are not whole successes, and of a perfect fit
            if shares:
                fitted = sm.GLM(values, design, family=sm.families.Binomial()).fit(cov_type="HC1")
            else:
                fitted = sm.OLS(_standard(values[:, None])[:, 0], design).fit(cov_type="HC1")
            intervals = np.asarray(fitted.conf_int())
        for number, feature in enumerate(varied.columns, start=1):
            beta, (low, high) = float(fitted.params[number]), intervals[number]
            rows.append((emotion, feature, beta, float(low), float(high), inflation[number - 1]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    standard: NDArray[np.float64] = (values - values.mean(axis=0)) / values.std(axis=0)
    return standard
