"""The options of a sweep in a cluster: read, remembered, given anew."""

import json

import pytest

from batchsweep.errors import UsageError
from batchsweep.jobs.cluster import (
    OPTIONS_ANNOTATION,
    Cluster,
    by_job,
    pairs,
    read_patches,
    remembered_options,
    toleration,
)


def test_what_was_submitted_is_what_a_later_call_has():
    first = Cluster(
        image="registry/b:1",
        namespace="sweeps",
        gpu=None,
        workdir="/runs",
        memory={"bandit": "8Gi"},
        tolerations=[toleration("spot")],
        patches=[{"kind": "Job", "spec": {"managedBy": "x/y"}}],
    )
    annotated = {"metadata": {"annotations": {OPTIONS_ANNOTATION: first.remembered()}}}
    options = remembered_options([{"metadata": {}}, annotated])
    again = Cluster.of(options, {"namespace": "sweeps"})
    assert again == first
    assert Cluster.of(options, {"workdir": "/"}).workdir == "/"
    assert "namespace" not in options


def test_only_what_differs_is_remembered_and_the_image():
    assert json.loads(Cluster().remembered()) == {"image": Cluster().image}


def test_options_of_another_version_are_not_dropped_in_silence():
    with pytest.raises(UsageError, match="submitted with colour"):
        Cluster.of({"colour": "red"}, {})


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (by_job, "trainer=1", "no Job 'trainer'; there are prepare, extract, bandit"),
        (by_job, "lots", "'lots' is no quantity"),
        (pairs, "key", "write KEY=VALUE"),
    ],
)
def test_options_that_cannot_be(read, text, message):
    with pytest.raises(UsageError, match=message):
        read("--flag", [text])


def test_a_toleration_is_written_like_a_taint():
    assert toleration("spot") == {"key": "spot", "operator": "Exists"}
    with pytest.raises(UsageError, match="EFFECT one of NoSchedule"):
        toleration("spot=true:Never")


def test_patches_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        read_patches(tmp_path / "none.yaml")
    (tmp_path / "p.yaml").write_text("spec: {}\n")
    with pytest.raises(UsageError, match="needs a kind"):
        read_patches(tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text("a: [\n")
    with pytest.raises(UsageError, match=r"p\.yaml: while parsing"):
        read_patches(tmp_path / "p.yaml")
