"""Spread of a measure, and whether two methods differ in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Values = Sequence[float | None]


@dataclass(frozen=True)
class Spread:
    """Of the values that exist: how many, mean, standard deviation (n - 1; NaN for one value), median."""

    count: int
    mean: float
    sd: float
    median: float


@dataclass(frozen=True)
class Paired:
    """A paired comparison of two methods.

    Attributes:
        count: pairs in which both have a value.
        difference: median of first - second.
        p: two-sided, of Wilcoxon's signed-rank test; 1 where all differences are 0.
        effect: matched-pairs rank-biserial correlation (Kerby 2014), -1 to 1; positive where the first is larger.
    """

    count: int
    difference: float
    p: float
    effect: float


def spread(values: Values) -> Spread:
    """Of a measure over pairs or structures; what is None or NaN does not count."""
    there = _numbers(values)
    there = there[np.isfinite(there)]
    if there.size == 0:
        return Spread(0, math.nan, math.nan, math.nan)
    sd = float(there.std(ddof=1)) if there.size > 1 else math.nan
    return Spread(int(there.size), float(there.mean()), sd, float(np.median(there)))


def wilcoxon(first: Values, second: Values) -> Paired:
    """Wilcoxon's signed-rank test (scipy's) of two lists that belong together item by item."""
    from scipy.stats import rankdata
    from scipy.stats import wilcoxon as test

    difference = _numbers(first) - _numbers(second)
    difference = difference[np.isfinite(difference)]
    if difference.size == 0:
        return Paired(0, math.nan, math.nan, math.nan)
    median = float(np.median(difference))
    moved = difference[difference != 0]
    if moved.size == 0:
        return Paired(int(difference.size), median, 1.0, 0.0)
    ranks = rankdata(np.abs(moved))
    effect = float((np.sign(moved) * ranks).sum() / ranks.sum())
    return Paired(int(difference.size), median, float(test(difference).pvalue), effect)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's step-down method (1979); NaN stays and does not count."""
    order = sorted((p, n) for n, p in enumerate(p_values) if math.isfinite(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, n) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[n] = largest
    return corrected


def _numbers(values: Values) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], float)
