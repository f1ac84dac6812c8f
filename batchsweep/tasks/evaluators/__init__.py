"""Prepared tasks: mteb's evaluations with everything done once that doesn't depend on the arm.

:func:`prepare_task` gives one for any mteb text task. Six classes of tasks (all but a few of MTEB)
have evaluations of their own here, which call mteb's and sklearn's functions on arrays; everything
else goes through mteb's own ``evaluate``. The shortcut is taken only for the very code of mteb that
it was tested against: another version of one of the functions it stands for, or a task that
overrides one, goes through mteb.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from mteb._evaluators.any_sts_evaluator import AnySTSEvaluator
from mteb._evaluators.clustering_evaluator import ClusteringEvaluator
from mteb._evaluators.pair_classification_evaluator import PairClassificationEvaluator
from mteb._evaluators.retrieval_evaluator import RetrievalEvaluator
from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores, max_over_subqueries
from mteb._evaluators.sklearn_evaluator import SklearnEvaluator
from mteb.abstasks import (
    AbsTask,
    AbsTaskClassification,
    AbsTaskClustering,
    AbsTaskMultilabelClassification,
    AbsTaskPairClassification,
    AbsTaskRetrieval,
    AbsTaskSTS,
)
from mteb.abstasks import clustering as mteb_clustering
from mteb.abstasks.clustering_legacy import AbsTaskClusteringLegacy
from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader
from mteb.models import search_wrappers

from batchsweep.config import CorpusConfig
from batchsweep.errors import BatchsweepError, ConfigError, TryAgain, first_line
from batchsweep.tasks.evaluators.base import Fetch, PreparedTask, Request, State
from batchsweep.tasks.evaluators.caps import cap_task, forget_cap
from batchsweep.tasks.evaluators.classification import prepare_classification, prepare_multilabel
from batchsweep.tasks.evaluators.clustering import prepare_clustering, prepare_legacy_clustering
from batchsweep.tasks.evaluators.large_reranking import is_large, prepare_large
from batchsweep.tasks.evaluators.pairs import prepare_pair_classification, prepare_sts
from batchsweep.tasks.evaluators.retrieval import prepare_retrieval
from batchsweep.tasks.evaluators.split_halves import Halves, smaller_copies
from batchsweep.tasks.evaluators.through_mteb import prepare_through_mteb

__all__ = ["Fetch", "Halves", "PreparedTask", "Request", "prepare_halves", "prepare_task"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shortcut:
    """An evaluation of our own for one class of mteb tasks."""

    base: type
    prepare: Callable[..., PreparedTask | None]
    #: What the evaluation stands for: a task that overrides one of these is not for it.
    methods: tuple[str, ...]
    #: Further functions of mteb that it stands for.
    functions: tuple[Any, ...]
    #: sha256 (16 hex digits) of the source of all of them, from mteb 2.26.
    source: str
    #: Whether ``prepare`` takes a half: of what the task itself draws. Others are given less data.
    draws: bool = False

    @property
    def source_now(self) -> str:
        """The same of the mteb that is installed."""
        stood_for = [inspect.getattr_static(self.base, name) for name in self.methods]
        texts = [inspect.getsource(f) for f in (*stood_for, *self.functions) if callable(f)]
        return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]

    def fits(self, task: AbsTask) -> bool:
        """Whether the task is of this class and overrides nothing that we stand for."""
        return isinstance(task, self.base) and all(
            inspect.getattr_static(type(task), name) is inspect.getattr_static(self.base, name)
            for name in self.methods
        )


SHORTCUTS = (
    Shortcut(
        base=AbsTaskSTS,
        prepare=prepare_sts,
        methods=("evaluate", "_evaluate_subset"),
        functions=(AnySTSEvaluator.__call__,),
        source="9c9651e5ecac9385",
    ),
    Shortcut(
        base=AbsTaskPairClassification,
        prepare=prepare_pair_classification,
        methods=(
            "evaluate",
            "_evaluate_subset",
            "_compute_metrics",
            "_compute_metrics_values",
            "_find_best_acc_and_threshold",
            "_find_best_f1_and_threshold",
        ),
        functions=(PairClassificationEvaluator.__call__,),
        source="fbd27af5e1a45a6f",
    ),
    Shortcut(
        base=AbsTaskMultilabelClassification,
        prepare=prepare_multilabel,
        methods=("evaluate", "_evaluate_subset", "_calculate_scores", "evaluator"),
        functions=(),
        source="39fe1b6896492a38",
        draws=True,
    ),
    Shortcut(
        base=AbsTaskClassification,
        prepare=prepare_classification,
        methods=(
            "evaluate",
            "_evaluate_subset",
            "_run_experiment",
            "_undersample_data",
            "_calculate_scores",
            "evaluator",
            "is_cross_validation",
        ),
        functions=(SklearnEvaluator.__call__,),
        source="a186187ff4a405fe",
        draws=True,
    ),
    Shortcut(
        base=AbsTaskClustering,
        prepare=prepare_clustering,
        methods=("evaluate", "_evaluate_subset"),
        functions=(mteb_clustering._evaluate_clustering_bootstrapped,),
        source="07e3ee7865d57670",
        draws=True,
    ),
    Shortcut(
        base=AbsTaskClusteringLegacy,
        prepare=prepare_legacy_clustering,
        methods=("evaluate", "_evaluate_subset", "_compute_metrics", "evaluator"),
        functions=(ClusteringEvaluator.__call__,),
        source="893d57f7fe19e7a9",
    ),
    Shortcut(
        base=AbsTaskRetrieval,
        prepare=prepare_retrieval,
        methods=("evaluate", "_evaluate_subset"),
        functions=(
            RetrievalDatasetLoader,
            RetrievalEvaluator.__call__,
            RetrievalEvaluator.evaluate,
            search_wrappers.SearchEncoderWrapper,
            search_wrappers.chunked_full_corpus_search,
            search_wrappers.rerank_top_ranked_documents,
            calculate_retrieval_scores,
            max_over_subqueries,
        ),
        source="dae255f69e17fc40",
    ),
)


@cache
def _is_tested(shortcut: Shortcut) -> bool:
    if shortcut.source_now == shortcut.source:
        return True
    logger.warning(
        "this mteb evaluates %s in a way that batchsweep doesn't know: scores come from mteb "
        "itself, many times slower",
        shortcut.base.__name__,
    )
    return False


def prepare_task(task: AbsTask, corpus: CorpusConfig | None = None) -> PreparedTask:
    """Read a task's data, cap them if the config says so, and draw its subsets.

    The task's random state afterwards is as it was right after its data were loaded.

    Raises:
        TryAgain: the data can't be loaded.
        ConfigError: the cap doesn't know this class of task, or the data are not what mteb's
            evaluation takes; names the task.
    """
    [prepared] = _prepare(task, corpus, None)
    return prepared


def prepare_halves(
    task: AbsTask, corpus: CorpusConfig | None, halves: Halves
) -> tuple[PreparedTask, ...]:
    """The two halves of a task (see :mod:`batchsweep.tasks.evaluators.split_halves`).

    The whole task alone if it asks for no more texts than they take, or can't be divided.

    Raises:
        TryAgain, ConfigError: as :func:`prepare_task`.
    """
    return _prepare(task, corpus, halves)


def _prepare(
    task: AbsTask, corpus: CorpusConfig | None, halves: Halves | None
) -> tuple[PreparedTask, ...]:
    name = task.metadata.name
    if is_large(task) and _is_tested(SHORTCUTS[-1]) and SHORTCUTS[-1].fits(task):
        with _naming(name):
            large = prepare_large(task, corpus, halves)
        if large is not None:
            return _marked(large, large[0].cap, halves)
    loaded_here = not task.data_loaded
    if loaded_here:
        with _naming(name):
            task.load_data()
    if isinstance(task, AbsTaskRetrieval):
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    cap = None
    if corpus is not None and corpus.max_texts_per_task is not None:
        cap = cap_task(task, corpus.max_texts_per_task, corpus.seed)
    state = State.of(task)
    try:
        parts = _halves(task, state, halves) if halves is not None else None
        if parts is None:
            parts = (_prepared(task, state),)
    except BatchsweepError as error:
        raise ConfigError(f"task '{name}': {error}") from error
    state.restore(task)
    _let_go(task, parts, loaded_here)
    return _marked(parts, cap, halves)


def _let_go(task: AbsTask, parts: tuple[PreparedTask, ...], loaded_here: bool) -> None:
    """Drop the data that no part needs: texts and dictionaries of documents."""
    for part in parts:
        if part.task is not task and not part.needs_data:
            part.task.dataset = None
    if loaded_here and not (parts[0].task is task and parts[0].needs_data):
        # Not by mteb's unload_data, which may drop metadata too.
        task.dataset = None
        task.data_loaded = False
        forget_cap(task)


def _marked(
    parts: tuple[PreparedTask, ...], cap: dict[str, int] | None, halves: Halves | None
) -> tuple[PreparedTask, ...]:
    """The parts, which say how they were made smaller."""
    for part in parts:
        part.cap = cap
        if halves is not None and len(parts) == 2:
            part.half = {"texts_per_pull": halves.texts, "seed": halves.seed}
    return parts


def _halves(task: AbsTask, state: State, halves: Halves) -> tuple[PreparedTask, ...] | None:
    """Both halves, or the whole task where it has been prepared to see that it is small; None if
    it can't be divided."""
    shortcut = _shortcut_of(task)
    if shortcut is None or not shortcut.draws:
        copies = smaller_copies(task, halves)
        return None if copies is None else tuple(_prepared(_with(state, c), state) for c in copies)
    whole = _prepared(task, state)
    if sum(len(request) for request in whole.requests) <= halves.texts:
        return (whole,)
    drawn = [shortcut.prepare(_with(state, copy.copy(task)), half) for half in halves.both]
    return tuple(part for part in drawn if part is not None)


def _with(state: State, task: AbsTask) -> AbsTask:
    state.restore(task)
    return task


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Whatever goes wrong while a task's data are loaded is told by the task's name."""
    try:
        yield
    except BatchsweepError as error:
        raise ConfigError(f"task '{name}': {error}") from error
    except Exception as error:
        raise TryAgain(f"task '{name}': its data can't be loaded: {first_line(error)}") from error


def _prepared(task: AbsTask, state: State) -> PreparedTask:
    shortcut = _shortcut_of(task)
    prepared: PreparedTask | None = shortcut.prepare(task) if shortcut is not None else None
    if prepared is not None:
        return prepared
    state.restore(task)
    return prepare_through_mteb(task, state)


def _shortcut_of(task: AbsTask) -> Shortcut | None:
    for shortcut in SHORTCUTS:
        # The first class that the task belongs to decides: multilabel is also classification.
        if isinstance(task, shortcut.base):
            return shortcut if shortcut.fits(task) and _is_tested(shortcut) else None
    return None
