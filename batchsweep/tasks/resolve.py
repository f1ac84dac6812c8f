"""Names to mteb task objects: presets, benchmarks, single tasks and tasks of your own."""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

from batchsweep.checkpoints.hub import REFUSED, answer
from batchsweep.config import LocalTask
from batchsweep.errors import ConfigError, TryAgain, UsageError

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

logger = logging.getLogger(__name__)

#: The English benchmark that single names are looked up in first, so that a name means the same
#: (test split, English) alone and in a preset.
ENGLISH = "MTEB(eng, v1)"

#: The tasks of Skean et al. (2025), "Layer by Layer", arXiv:2502.02013.
LAYER_BY_LAYER_32 = (
    "AmazonCounterfactualClassification",
    "AmazonReviewsClassification",
    "ArxivClusteringS2S",
    "AskUbuntuDupQuestions",
    "BIOSSES",
    "Banking77Classification",
    "BiorxivClusteringS2S",
    "EmotionClassification",
    "MTOPDomainClassification",
    "MTOPIntentClassification",
    "MassiveIntentClassification",
    "MassiveScenarioClassification",
    "MedrxivClusteringS2S",
    "MindSmallReranking",
    "RedditClustering",
    "SICK-R",
    "STS12",
    "STS13",
    "STS14",
    "STS15",
    "STS16",
    "STS17",
    "STSBenchmark",
    "SciDocsRR",
    "SprintDuplicateQuestions",
    "StackExchangeClustering",
    "StackOverflowDupQuestions",
    "ToxicConversationsClassification",
    "TweetSentimentExtractionClassification",
    "TwentyNewsgroupsClustering",
    "TwitterSemEval2015",
    "TwitterURLCorpus",
)

#: Preset -> whether a superseded task gives way to the one that supersedes it.
PRESETS = {"layer_by_layer_32": False, "layer_by_layer_32_fast": True}


def resolve(entries: Sequence[str | LocalTask]) -> list[AbsTask]:
    """The mteb tasks that a config's ``tasks`` names, in order, each once; no data is loaded.

    A preset or benchmark stands for its tasks, an aggregate (``CQADupstackRetrieval``) for its
    parts. A single name that ``MTEB(eng, v1)`` has is taken from there (test split, English
    subset); any other is mteb's own default of that name.

    Raises:
        ConfigError: an unknown name, with the closest ones; two different tasks of one name; a
            task that needs images, audio or video; a local task's file that is wrong.
    """
    tasks: dict[str, AbsTask] = {}
    for entry in entries:
        for task in _expand(entry):
            _check_text_only(task)
            name = task.metadata.name
            earlier = tasks.setdefault(name, task)
            if isinstance(entry, LocalTask) and earlier is not task:
                raise ConfigError(f"tasks: '{name}' names two tasks; give yours another name")
    return list(tasks.values())


def _expand(entry: str | LocalTask) -> Iterable[AbsTask]:
    if isinstance(entry, LocalTask):
        from batchsweep.tasks.local_files import load

        return [load(entry)]
    if entry in PRESETS:
        return [_newest(name) if PRESETS[entry] else _single(name) for name in LAYER_BY_LAYER_32]
    if entry in _benchmark_names():
        import mteb

        return _without_aggregates(copy.copy(t) for t in mteb.get_benchmark(entry).tasks)
    return _without_aggregates([_single(entry)])


def _without_aggregates(tasks: Iterable[AbsTask]) -> list[AbsTask]:
    flat: list[AbsTask] = []
    for task in tasks:
        flat.extend(_without_aggregates(task.metadata.tasks) if task.is_aggregate else [task])
    return flat


def _benchmark_names() -> list[str]:
    import mteb

    return sorted(b.name for b in mteb.get_benchmarks())


def _task_names() -> list[str]:
    from mteb.get_tasks import _TASKS_REGISTRY

    return list(_TASKS_REGISTRY)


def _single(name: str) -> AbsTask:
    import mteb

    for task in mteb.get_benchmark(ENGLISH).tasks:
        if task.metadata.name == name:
            # mteb keeps one object of each benchmark's tasks; data and state are to be our own.
            return copy.copy(task)
    if name not in _task_names():
        raise ConfigError(_unknown(name))
    return mteb.get_task(name)


def _newest(name: str) -> AbsTask:
    """The English form of the task that supersedes ``name``, or the task itself."""
    import mteb

    task = _single(name)
    if task.superseded_by is None:
        return task
    newer = mteb.get_task(task.superseded_by, eval_splits=["test"])
    if "eng" in newer.languages and newer.metadata.is_multilingual:
        newer.filter_languages(["eng"], exclusive_language_filter=True)
    return newer


def _unknown(name: str) -> str:
    choices = [*PRESETS, *_benchmark_names(), *_task_names()]
    by_folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(by_folded[c] for c in close)}? " if close else ""
    return (
        f"tasks: unknown task '{name}'; {hint}Valid: a preset ({', '.join(PRESETS)}), an MTEB "
        "benchmark such as 'MTEB(eng, v2)', an MTEB task such as 'STS12', or a task of your own "
        "({name, type, path})"
    )


def _check_text_only(task: AbsTask) -> None:
    other = sorted(set(task.metadata.modalities) - {"text"})
    if other:
        raise ConfigError(
            f"tasks: '{task.metadata.name}' needs {' and '.join(other)}; "
            "language models embed text only: leave it out"
        )


@contextmanager
def _offline() -> Iterator[None]:
    """Look only into the cache, instead of asking a Hub that doesn't answer again and again."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _find_data(task: AbsTask) -> None:
    """Fails if the data are not to be had; leaves the task as it was."""
    from batchsweep.tasks.evaluators.large_reranking import is_large, tables

    if is_large(task):
        for split in task.eval_splits:
            tables(task, split)
        return
    task.load_data()
    task.dataset, task.data_loaded = None, False


def check_data(tasks: Sequence[AbsTask]) -> None:
    """Find out, before anything else runs, whether the tasks' data can be had.

    With the Hub in reach this asks it one question a data set. Without, every task's data must be
    in the local cache, and all that are not are named at once.

    Raises:
        TryAgain: the Hub is out of reach and some task's data set is not cached.
        UsageError: the same with ``HF_HUB_OFFLINE`` set, or the Hub has no such data set or
            refuses it: no retry can mend that.
    """
    waiting = [task for task in tasks if not task.data_loaded]
    if not waiting:
        return
    from huggingface_hub import constants

    refused: dict[str, str] | None = None
    if not constants.HF_HUB_OFFLINE:
        refused = _refused(sorted({str(task.metadata.dataset["path"]) for task in waiting}))
    if refused is not None:
        waiting = [task for task in waiting if task.metadata.dataset["path"] in refused]
    missing = []
    with _offline():
        for task in waiting:
            try:
                _find_data(task)
            except Exception as error:  # noqa: BLE001 - whatever the loader raises, the data is not to be had
                logger.debug("%s: %s", task.metadata.name, error)
                missing.append(task)
    if not missing:
        return
    if refused is not None:
        named = "; ".join(
            f"'{path}' of {_listed([t for t in missing if t.metadata.dataset['path'] == path])}: "
            f"{refused[path]}"
            for path in sorted({str(task.metadata.dataset["path"]) for task in missing})
        )
        raise UsageError(f"tasks: data set {named}; or leave the task out")
    if constants.HF_HUB_OFFLINE:
        raise UsageError(
            f"tasks: data set not cached and HF_HUB_OFFLINE is set: {_listed(missing)}; unset it, "
            "or run once with network"
        )
    raise TryAgain(
        f"tasks: data set not cached and {constants.ENDPOINT} is out of reach: {_listed(missing)}; "
        "needs the network once"
    )


def _refused(paths: Sequence[str]) -> dict[str, str] | None:
    """Data sets that the Hub does not give out, with the reason; None if it is out of reach."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    refused = {}
    for path in paths:
        try:
            hf_raise_for_status(answer(f"/api/datasets/{quote(path)}/auth-check", seconds=10))
        except GatedRepoError:
            refused[path] = "it is gated: accept its terms on the Hub and set HF_TOKEN"
        except RepositoryNotFoundError:
            refused[path] = "no such data set on the Hub (or private: set HF_TOKEN)"
        except Exception as error:  # noqa: BLE001 - any other answer: what is cached then decides
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if status not in REFUSED:
                logger.debug("Hub out of reach: %s", error)
                return None
            refused[path] = "the Hub refuses access: set HF_TOKEN to a token that may read it"
    return refused


def _listed(tasks: Sequence[AbsTask]) -> str:
    names = [task.metadata.name for task in tasks]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def tasks_of(target: str | None, types: Mapping[str, str]) -> tuple[str, ...]:
    """The tasks that count, in the order of ``types`` (task -> category).

    Case, spaces and underscores don't matter: ``pair_classification`` is ``PairClassification``.

    Raises:
        UsageError: no task has that category; the message lists those there are.
    """
    if target is None:
        return tuple(types)
    wanted = _plain(target)
    chosen = tuple(task for task, category in types.items() if _plain(category) == wanted)
    if not chosen:
        there = ", ".join(sorted(set(types.values())))
        raise UsageError(f"rewards.target '{target}': no such task in this sweep; valid: {there}")
    return chosen


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
