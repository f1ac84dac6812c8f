"""Patches: what is merged, what is replaced, what takes away."""

import pytest

from batchsweep.errors import UsageError
from batchsweep.jobs.patch import patched


def job(name="a-extract", **spec):
    return {"kind": "Job", "metadata": {"name": name, "labels": {"x": "1"}}, "spec": spec}


@pytest.mark.parametrize(
    ("there", "change", "want"),
    [
        ({"a": 1, "b": {"c": 1}}, {"b": {"d": 2}}, {"a": 1, "b": {"c": 1, "d": 2}}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        (
            {"env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "1"}]},
            {"env": [{"name": "Y", "value": "2"}, {"name": "Z", "value": "3"}]},
            {
                "env": [
                    {"name": "X", "value": "1"},
                    {"name": "Y", "value": "2"},
                    {"name": "Z", "value": "3"},
                ]
            },
        ),
        (
            {"volumeMounts": [{"name": "t", "mountPath": "/tmp"}]},
            {"volumeMounts": [{"mountPath": "/tmp", "name": "t", "readOnly": True}]},
            {"volumeMounts": [{"name": "t", "mountPath": "/tmp", "readOnly": True}]},
        ),
        ({"affinity": {}}, {"affinity": {"a": {"b": None, "c": 1}}}, {"affinity": {"a": {"c": 1}}}),
    ],
)
def test_merging(there, change, want):
    (item,) = patched([job(**there)], {"kind": "Job", "spec": change})
    assert item == job(**want)


def test_a_patch_names_its_objects():
    objects = [job("a-prepare"), job("a-extract-1"), {"kind": "ConfigMap", "metadata": {}}]
    patch = {"kind": "Job", "metadata": {"name": "*-extract*", "labels": {"y": "2"}}}
    changed = patched(objects, patch)
    assert changed[1]["metadata"] == {"name": "a-extract-1", "labels": {"x": "1", "y": "2"}}
    assert (changed[0], changed[2]) == (objects[0], objects[2])


def test_a_patch_of_nothing_is_refused_with_what_there_is():
    with pytest.raises(UsageError, match="there is no Job a-extrct; there are Job a-extract"):
        patched([job()], {"kind": "Job", "metadata": {"name": "a-extrct"}})
