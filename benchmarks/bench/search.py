"""The search for a method's parameters: the same for all methods, with the same budget."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import Any

from benchmarks.bench.table import Range

Settings = dict[str, Any]

#: The search ends when steps are smaller than this factor.
SMALLEST_FACTOR = 1.1


def search(ranges: Mapping[str, Range], budget: int) -> Generator[Settings, float, list[tuple[Settings, float]]]:
    """Pattern search: ask for a candidate with ``next`` or ``send(error of the last one)``, until it returns.

    From the ranges' starting values, each parameter in turn is multiplied by its factor as long as the error falls,
    or else divided. When no parameter helps, the factors become their square roots. Candidates that were tried are not
    tried again. An error that is not finite counts as the worst.

    Parameters
    ----------
    ranges
        What may change; empty for nothing.
    budget
        Most candidates to try, at least 1.

    Returns
    -------
    list of tuple
        All candidates with their errors, in the order they were tried.

    Examples
    --------
    >>> run = search({"beta": Range(1.0, 0.01, 100.0)}, budget=12)
    >>> candidate = next(run)
    >>> try:
    ...     while True:
    ...         candidate = run.send(abs(math.log(candidate["beta"] / 10)))
    ... except StopIteration as end:
    ...     tried = end.value
    >>> 8 < best_of(tried)["beta"] < 12.5
    True
    """
    tried: list[tuple[Settings, float]] = []
    best: Settings = {name: r.start for name, r in ranges.items()}
    error = yield best
    lowest = error if math.isfinite(error) else math.inf
    tried.append((best, error))
    factors = {name: r.factor for name, r in ranges.items()}
    while ranges and len(tried) < budget and max(factors.values()) >= SMALLEST_FACTOR:
        improved = False
        for name, r in ranges.items():
            for direction in (factors[name], 1 / factors[name]):
                moved = False
                while len(tried) < budget:
                    candidate = {**best, name: r.moved(best[name], direction)}
                    if any(candidate == known for known, _ in tried):
                        break
                    error = yield candidate
                    tried.append((candidate, error))
                    if not error < lowest:
                        break
                    best, lowest, moved = candidate, error, True
                improved |= moved
                if moved:
                    break
        if not improved:
            factors = {name: math.sqrt(factor) for name, factor in factors.items()}
    return tried


def best_of(tried: list[tuple[Settings, float]]) -> Settings:
    """The candidate with the least finite error.

    Raises
    ------
    ValueError
        If none has one.
    """
    finite = [(error, settings) for settings, error in tried if math.isfinite(error)]
    if not finite:
        raise ValueError("no candidate gave a finite error")
    return min(finite, key=lambda pair: pair[0])[1]
