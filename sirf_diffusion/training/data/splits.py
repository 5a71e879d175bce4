"""Which subjects a model is trained on, and which it is judged on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from .volumes import SPLITS


def assign_splits(
    subjects: Sequence[str], fractions: Sequence[float], seed: int, fixed: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Give every subject one split, at random, with numbers as near to the fractions as they get.

    Parameters
    ----------
    subjects
        With repetitions; the result does not depend on their order.
    fractions
        Shares for training, validation and test; they need not sum to 1. A positive share gets at least one subject as
        long as there are as many subjects as positive shares.
    seed
        Decides who goes where.
    fixed
        Subjects whose split is decided already.

    Examples
    --------
    >>> sorted(assign_splits(["a", "b", "c", "d", "a"], (0.5, 0.25, 0.25), seed=0).values())
    ['test', 'train', 'train', 'validation']
    """
    shares = np.asarray(fractions, float)
    if len(shares) != 3 or shares.min() < 0 or shares.sum() <= 0:
        raise ValueError(f"fractions must be three numbers, none negative and not all zero, found {tuple(fractions)}")
    splits = dict(fixed or {})
    everyone = sorted(set(subjects))
    total = len(everyone)
    exact = shares / shares.sum() * total
    goal = np.floor(exact).astype(int)
    for k in np.argsort(goal - exact, kind="stable")[: total - goal.sum()]:
        goal[k] += 1
    for k in np.flatnonzero((shares > 0) & (goal == 0)):
        if goal.max() > 1:
            goal[int(np.argmax(goal))] -= 1
            goal[k] += 1
    have = Counter(splits[s] for s in everyone if s in splits)
    free = [s for s in everyone if s not in splits]
    order = np.random.default_rng([25, seed]).permutation(len(free))
    room = [k for k in range(3) for _ in range(max(0, goal[k] - have[SPLITS[k]]))]
    for place, index in enumerate(order):
        splits[free[index]] = SPLITS[room[place] if place < len(room) else int(np.argmax(shares))]
    return {s: splits[s] for s in everyone}
