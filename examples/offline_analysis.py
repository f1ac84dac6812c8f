"""Which layer is best at each step, and do neighbouring layers hold the same? No GPU, no network.

python examples/offline_analysis.py runs/demo/store.zarr
"""

from __future__ import annotations

import sys

import batchsweep


def main(url: str) -> None:
    """Print the best layer of every scored checkpoint, and the CKA of the last one's layers."""
    sweep = batchsweep.open(url)
    print(sweep)

    # A mean over all tasks, or NaN where an arm was not scored on every one.
    scored = sweep.arms.dropna(subset="score")
    if scored.empty:
        print("no arm is scored on every task: batchsweep bandit --policy exhaustive")
    else:
        best = scored.loc[scored.groupby(["model", "revision"])["score"].idxmax()]
        print(best.sort_values(["model", "step"])[["arm", "step", "layer", "score"]])

    # Linear CKA: 1 where two layers hold the same up to rotation and scale.
    last = sweep.arms.iloc[-1]
    same = (sweep.arms["key"] == last["key"]) & (sweep.arms["pooling"] == last["pooling"])
    print(sweep.cka_table(list(sweep.arms.loc[same, "arm"]), sample=500).round(3))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/offline_analysis.py STORE")
    main(sys.argv[1])
