"""Metrics of classification from counts are scikit-learn's of the rows, to the last bit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from mteb.mocks.mock_tasks import MockClassificationTask

from batchsweep.tasks.evaluators.classification import _counted


@pytest.mark.parametrize("labels", [2, 3, 77])
@pytest.mark.parametrize("right", [0.0, 0.4, 1.0])
def test_counts_give_the_very_scores_of_mteb(labels: int, right: float) -> None:
    rng = np.random.default_rng(labels)
    for _ in range(5):
        rows = int(rng.integers(labels, 500))
        gold = np.r_[np.arange(labels), rng.integers(0, labels, rows)]
        # Some labels are never predicted, and one may be that gold has not.
        other = rng.integers(0, rng.integers(1, labels + 2), len(gold))
        predicted = np.where(rng.random(len(gold)) < right, gold, other)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # A precision without predictions is 0, it says.
            expected = MockClassificationTask()._calculate_scores(gold, predicted)
        assert _counted(gold, predicted) == expected
