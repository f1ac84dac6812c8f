"""Scores that are there already: mteb's result files as pulls that cost a search nothing."""

from __future__ import annotations

import logging
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchsweep.arm import Arm, names_for_mteb
from batchsweep.bandit.ledger import IMPORTED, Observation
from batchsweep.bandit.mteb_results import META, mteb_results, read_result
from batchsweep.bandit.policies import Problem, Pull
from batchsweep.config import Config
from batchsweep.errors import UsageError
from batchsweep.plan.plan import Plan, PlanEntry
from batchsweep.score.record import Score
from batchsweep.tasks.resolve import resolve

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

logger = logging.getLogger(__name__)

#: What the folder of an experiment may say of it.
_KNOWN = {"layer", "pooling", "transform", "max_texts"}
#: No main score is further from zero, in whatever unit, and no evaluation takes longer.
_MOST_SCORE = 100.0
_MOST_SECONDS = 1e9


class _Unfit(Exception):
    """Why a file of results is none of the search's cells."""


def imported(folder: Path, plan: Plan, problem: Problem, config: Config) -> tuple[Observation, ...]:
    """The cells of a search that a folder of mteb's results has, as pulls of the kind ``imported``.

    What of the folder is left out is logged: how many files, and why.

    It has mteb's layout with experiments, which ``batchsweep export`` and mteb itself write:
    ``MODEL/REVISION/experiments/NAME/TASK.json`` with ``model_meta.json`` beside it. A file counts
    if model and revision are a checkpoint's of the plan, if its ``experiment_kwargs`` are a layer
    (and pooling, transform and cap) of the search, and if mteb's version and the task's data
    revision, splits and subsets are those that the search would use. Prefix, ``max_length`` and
    ``layer_output`` no result says: they are taken to be the config's.

    Raises:
        UsageError: no such folder, a file of it can't be read, or none fits; says why.
    """
    if config.bandit.texts_per_pull is not None:
        raise UsageError(
            "--results: mteb's results are scores of whole tasks, and bandit.texts_per_pull asks "
            "for subsets, which are another scale; leave one of them out"
        )
    if not folder.is_dir():
        raise UsageError(f"--results {folder}: no such folder")
    reader = _Reader(plan, problem, config)
    pulls: dict[tuple[str, str], Observation] = {}
    skipped: Counter[str] = Counter()
    for file, content in mteb_results(folder):
        try:
            one = reader.pull(file, content)
            if pulls.setdefault((one.arm, one.task), one) is not one:
                raise _Unfit("of a cell that is there twice")
        except _Unfit as error:
            skipped[str(error)] += 1
    if not pulls:
        why = "; ".join(f"{n} are {reason}" for reason, n in skipped.items())
        raise UsageError(
            f"--results {folder}: none of its results is a cell of this search: "
            f"{why or 'there are no files TASK.json of mteb below it'}"
        )
    for reason, n in skipped.items():
        logger.warning("%s: %d results are left out: %s", folder, n, reason)
    logger.info(
        "%s: %d cells of the search are there already; results don't say prefix, max_length and "
        "layer_output, which are taken to be the config's",
        folder,
        len(pulls),
    )
    return tuple(pulls.values())


class _Reader:
    """Holds files of results against the cells of a search."""

    def __init__(self, plan: Plan, problem: Problem, config: Config) -> None:
        self._plan, self._cap = plan, config.corpus.max_texts_per_task
        self._arms, self._tasks = frozenset(problem.arms), frozenset(problem.tasks)
        self._task_of: dict[str, AbsTask] = {t.metadata.name: t for t in resolve(config.tasks)}
        self._entries: dict[tuple[str, str], PlanEntry] = {}
        for entry in plan.entries:
            model, revision = names_for_mteb(entry.key)
            for name in (revision, *entry.checkpoint.names, entry.checkpoint.commit):
                self._entries.setdefault((model, name), entry)

    def pull(self, file: Path, content: dict[str, Any]) -> Observation:
        """The pull that a file says; refuses one that isn't of the search."""
        from mteb.results import TaskResult

        arm = self._arm(file)
        name = str(content.get("task_name", file.stem))
        if name not in self._tasks:
            raise _Unfit("of tasks that the search doesn't have")
        try:
            result = TaskResult.from_dict(content)
            score = float(result.get_score())
            seconds = float(result.evaluation_time or 0.0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UsageError(f"{file}: no result of mteb: {error}") from None
        if abs(score) > _MOST_SCORE or not 0 <= seconds < _MOST_SECONDS:
            raise UsageError(
                f"{file}: no result of mteb: {score:.3g} in {seconds:.3g} s is no score, or no time"
            )
        self._check(self._task_of[name], result)
        pull = Pull(arm, name, f"{IMPORTED}{file}")
        return Observation.of(pull, Score(score, seconds), "imported")

    def _arm(self, file: Path) -> str:
        if file.parent.parent.name != "experiments":
            raise _Unfit("of whole models: no experiment says which layer they are of")
        meta_file = file.parent / META
        if not meta_file.is_file():
            raise _Unfit(f"without {META}, which says what they are of")
        meta = read_result(meta_file)
        entry = self._entries.get((str(meta.get("name")), str(meta.get("revision"))))
        if entry is None:
            raise _Unfit("of checkpoints that the plan doesn't have")
        says = meta.get("experiment_kwargs") or {}
        if not isinstance(says, dict):
            raise UsageError(f"{meta_file}: experiment_kwargs are no mapping of names to values")
        if unknown := sorted(set(says) - _KNOWN):
            raise _Unfit(f"of experiments with settings of their own ({', '.join(unknown)})")
        if "layer" not in says:
            raise _Unfit("of experiments without a layer")
        if says.get("max_texts") != self._cap:
            raise _Unfit("of tasks with another cap than corpus.max_texts_per_task")
        stored = self._plan.poolings
        pooling = says.get("pooling", stored[0] if len(stored) == 1 else None)
        if "transform" in says:
            pooling = f"{pooling}+{says['transform']}"
        layer = says["layer"]
        arm = str(Arm.spelled(entry.key, layer, str(pooling), stored))
        if type(layer) is not int or arm not in self._arms:
            raise _Unfit("of layers or poolings that the search doesn't have")
        return arm

    @staticmethod
    def _check(task: AbsTask, result: Any) -> None:
        if result.mteb_version != version("mteb"):
            raise _Unfit(f"of mteb {result.mteb_version}, not the {version('mteb')} that is here")
        if result.dataset_revision != str(task.metadata.revision):
            raise _Unfit("of another revision of the task's data")
        subsets = {s: {one["hf_subset"] for one in of} for s, of in result.scores.items()}
        if subsets != {split: set(task.hf_subsets) for split in task.eval_splits}:
            raise _Unfit("of other splits or subsets of the task")
