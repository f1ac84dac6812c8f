# mypy: disallow-subclassing-any=False
"""Any other class of task: mteb's own evaluation, with recorded requests answered from arrays.

Which texts a task asks for, and in which order, doesn't depend on the vectors it gets, as long as
it starts from the same random state: one evaluation with arbitrary vectors records them all.
"""

from __future__ import annotations

from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
from mteb.abstasks import AbsTask, AbsTaskBitextMining
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder

from batchsweep.errors import StoreError
from batchsweep.tasks.evaluators.base import Fetch, PreparedTask, Request, State

#: Hidden size of the vectors that the recording encoder answers with.
RECORDED_HIDDEN = 8


class _Recorder(AbsEncoder):
    """Writes down what it is asked for; answers with seeded noise, which any evaluator accepts."""

    def __init__(self) -> None:
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "batchsweep/recorder"})
        self.requests: list[Request] = []

    def encode(self, inputs: Any, *, prompt_type: Any = None, **kwargs: Any) -> Any:
        texts = inputs.dataset.select_columns(["text"]).with_format("arrow")[:]["text"]
        self.requests.append(Request(texts, None if prompt_type is None else prompt_type.value))
        noise = np.random.default_rng(len(self.requests))
        return noise.standard_normal((len(texts), RECORDED_HIDDEN)).astype(np.float32)


class _Replay(AbsEncoder):
    """Answers each call with the vectors of the request that was recorded in its place."""

    def __init__(self, requests: list[Request], fetch: Fetch) -> None:
        self.mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "batchsweep/replay"})
        self._requests = iter(requests)
        self._fetch = fetch

    def encode(self, inputs: Any, **kwargs: Any) -> npt.NDArray[np.float32]:
        request = next(self._requests, None)
        if request is None or len(request) != len(inputs.dataset):
            raise StoreError(
                "its texts changed between two evaluations: it keeps a random state that "
                "batchsweep doesn't know of"
            )
        return self._fetch(request)


def prepare_through_mteb(task: AbsTask, state: State) -> PreparedTask:
    """Record what the task asks for."""
    recorder = _Recorder()
    _evaluate(task, recorder)

    def evaluate(fetch: Fetch) -> dict[str, dict[str, Any]]:
        state.restore(task)
        return _evaluate(task, _Replay(recorder.requests, fetch))

    return PreparedTask(task, recorder.requests, evaluate, needs_data=True)


def _evaluate(task: AbsTask, encoder: AbsEncoder) -> dict[str, dict[str, Any]]:
    """As ``mteb.evaluate`` does it: subset by subset, bitext mining all subsets at once."""
    datasets.disable_progress_bars()
    results: dict[str, dict[str, Any]] = {}
    subsets = list(task.hf_subsets)
    batches = [subsets] if isinstance(task, AbsTaskBitextMining) else [[s] for s in subsets]
    for split in task.eval_splits:
        results[split] = {}
        for batch in batches:
            found = task.evaluate(
                encoder,
                split,
                subsets_to_run=batch,
                encode_kwargs={"show_progress_bar": False},
            )
            results[split].update(found)
    return results
