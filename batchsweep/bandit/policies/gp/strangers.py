"""Arms that stand out from their neighbours."""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dpotri

from batchsweep.bandit.policies.base import Floats, Ints

#: Standard deviations that an arm's level is off by if its neighbours tell nothing of it, and how
#: many such arms there may be.
STRANGE = 3.0
MOST_STRANGE = 8


def strangers(factor: Floats, resid: Floats, arm: Ints, load: Floats, *, arms: int) -> Floats:
    """[arm] variance to be added to an arm's own term, where its cells contradict all others.

    An arm's cells are predicted from those of all others; if their common level is off by more
    than STRANGE standard deviations, the arm is given the variance that makes that likeliest
    (a variance-shift outlier: Cook, Holschuh & Weisberg, "A Note on an Alternative Outlier
    Model", JRSS B 44, 1982), the strangest first, so that it isn't held against its neighbours.

    Args:
        factor: [cell, cell] Cholesky factor of the covariance of all cells.
        resid: [cell] what was observed less what the prior predicts.
        arm, load: [cell] its arm, and the loading of its task.
        arms: how many there are.
    """
    found = np.zeros(arms)
    inverse, _ = dpotri(factor, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weight = inverse @ resid
    seen, of = np.unique(arm, return_inverse=True)
    i, j = np.nonzero(of[:, None] == of[None, :])
    both = load[i] * load[j]
    for _ in range(MOST_STRANGE):
        told = np.bincount(of[i], both * inverse[i, j])
        strange = np.bincount(of, load * weight) ** 2 / told
        k = int(np.argmax(strange))
        if strange[k] <= STRANGE**2:
            break
        variance = (strange[k] - 1) / told[k]
        found[seen[k]] += variance
        mine = np.flatnonzero(of == k)
        column = inverse[:, mine] @ load[mine]
        shrink = variance / (1 + variance * told[k])
        weight = weight - column * (shrink * (load[mine] @ weight[mine]))
        inverse = inverse - shrink * np.outer(column, column)
    return found
