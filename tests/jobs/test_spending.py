"""What a sweep costs in a cluster: recorded, under way, to come."""

import pytest

from batchsweep.jobs.spending import CostLimit, Spending, gpu_named

#: An hour recorded; of four indexes, one is sealed.
SPENDING = Spending(3600, {0: 0, 1: 3600, 2: 7200, 3: 3600}, known=True)


@pytest.mark.parametrize(
    ("new", "under_way", "most", "chosen"),
    [
        ([1, 2, 3], (), 100, (1, 2, 3)),
        ([1, 2, 3], (), 10, (1, 2, 3)),  # (1 + 1 + 2 + 1) hours at 2: just as much.
        ([1, 2, 3], (), 9.9, (1, 2)),
        ([1, 2, 3], (), 4, (1,)),
        ([1, 2, 3], (), 3.9, ()),
        ([0, 1], (), 2, (0,)),  # What is sealed costs nothing more.
        ([2, 3], (1,), 8, (2,)),
        ([1], (1,), 4, (1,)),  # What is under way is not paid twice.
    ],
)
def test_no_index_passes_the_limit(new, under_way, most, chosen):
    limit = CostLimit(most, price=2.0)
    assert SPENDING.affordable(new, under_way=under_way, limit=limit) == chosen
    if chosen:
        assert limit.cost(SPENDING.seconds({*under_way, *chosen})) <= most


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("NVIDIA-A100-SXM4-80GB", "a100"),
        ("NVIDIA-L40S", "l40s"),
        ("NVIDIA-L4", "l4"),
        ("Tesla-T4", "t4"),
        ("MI300X", None),
        (None, None),
    ],
)
def test_a_label_names_the_gpu_of_the_estimate(label, name):
    assert gpu_named(label) == name
