"""The same bytes whatever a process did before, and however many threads it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from tiny import WORDS, make_model

from batchsweep.forward.forward import load_checkpoint, pooled_states
from batchsweep.forward.metrics import representation_metrics
from batchsweep.numerics import cores, one_compute_thread

LAYERS = (1, 2, 3)


def counts() -> dict[str, int]:
    """The thread counts of torch's own libraries; MKL's and OpenMP's are not one."""
    info = torch.__config__.parallel_info()
    found = dict(re.findall(r"(\w+)\(\) : (\d+)", info))
    return {name: int(found[name]) for name in ("mkl_get_max_threads", "omp_get_max_threads")}


@pytest.fixture
def restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("model") / "main"
    make_model(folder, seed=0, layers=3, hidden=256)
    return load_checkpoint(str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def texts() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, len(WORDS), size=n) for n in rng.integers(1, 60, size=60)]


def stored(loaded, texts) -> dict[str, np.ndarray]:
    """What an index writes: pooled states and metrics, by name."""
    out = {name: np.empty((3, len(texts), loaded.hidden), np.float32) for name in ("mean", "max")}
    common: dict[str, Any] = {"layers": LAYERS, "layer_output": "final_norm", "batch_tokens": 512}
    for positions, states in pooled_states(loaded, texts, poolings=["mean", "max"], **common):
        for name, values in states.items():
            out[name][:, positions] = values
    return out | representation_metrics(loaded, texts, **common, views=(texts, texts[::-1]))


def leave_mkl_behind() -> None:
    """torch says as before; MKL inside it is left at one thread."""
    with threadpool_limits(1):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.set_num_threads(before)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bytes_do_not_depend_on_threads_or_on_what_the_process_did(
    loaded, texts, threads, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    expected = stored(loaded, texts)
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    for history in (lambda: None, leave_mkl_behind):
        torch.set_num_threads(threads)
        history()
        found = stored(loaded, texts)
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name].tobytes() == values.tobytes(), name


@pytest.mark.usefixtures("restored")
def test_all_counts_are_one_inside_and_as_before_afterwards():
    torch.set_num_threads(3)
    before = counts()
    assert set(before.values()) == {3}
    with one_compute_thread(), threadpool_limits(1):
        assert set(counts().values()) == {1}
        with one_compute_thread(), threadpool_limits(1):
            assert set(counts().values()) == {1}
    assert counts() == before


@pytest.mark.usefixtures("restored")
def test_one_is_set_even_where_torch_says_one():
    torch.set_num_threads(3)
    with threadpool_limits(1):  # torch reads OpenMP's count, and MKL keeps its own.
        assert torch.get_num_threads() == 1
        assert counts()["mkl_get_max_threads"] == 3
        with one_compute_thread():
            assert set(counts().values()) == {1}


def test_cores_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cores() == 5
    for unset in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", unset)
        assert cores() >= 1
