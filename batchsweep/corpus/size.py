"""How many texts and tokens a sweep's tasks ask for, before any data set is downloaded.

From the store's corpus if it is there (exact), from files of your own (texts exact), and from the
statistics that mteb ships with each task.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from batchsweep.config import Config, LocalTask
from batchsweep.store import Store

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

logger = logging.getLogger(__name__)

#: Characters of English a token of the GPT-NeoX tokenizer; short texts have fewer.
CHARACTERS_PER_TOKEN = 4.2
#: Changes with the way in which sizes are taken from statistics: what is remembered is stale then.
_RULES = "rules 1"


@dataclass(frozen=True)
class TaskSize:
    """One task's texts."""

    name: str
    texts: int
    """Unique within the task."""
    characters: float
    """Of all of them."""


@dataclass(frozen=True)
class CorpusSize:
    """The unique texts of a sweep."""

    tasks: tuple[TaskSize, ...]
    texts: int
    tokens: float
    """Of one tokenizer, after cutting."""
    exact: bool
    """True: counted in the store's corpus. False: an estimate."""
    unknown: tuple[str, ...] = ()
    """Tasks that nothing is known of; they are not counted."""

    @property
    def mean_length(self) -> float:
        """Tokens a text."""
        return self.tokens / max(self.texts, 1)

    def tokens_of(self, task: TaskSize, longest: int) -> float:
        """Of one of its tasks: counted ones share their tokens by characters.

        Args:
            longest: tokens at which texts are cut.
        """
        if self.exact:
            characters = sum(t.characters for t in self.tasks)
            return self.tokens * task.characters / characters if characters else 0.0
        return task.texts * min(task.characters / task.texts / CHARACTERS_PER_TOKEN, longest)

    def capped(self, cap: int) -> CorpusSize:
        """The size with at most ``cap`` texts a task."""
        tasks = tuple(
            replace(t, texts=min(t.texts, cap), characters=t.characters * min(1, cap / t.texts))
            for t in self.tasks
            if t.texts
        )
        texts = min(self.texts, sum(t.texts for t in tasks))
        before = sum(t.characters for t in self.tasks)
        share = sum(t.characters for t in tasks) / before if before else texts / self.texts
        return replace(self, tasks=tasks, texts=texts, tokens=self.tokens * share, exact=False)


def corpus_size(config: Config, store: Store | None = None) -> CorpusSize:
    """The texts and tokens of a config's tasks; nothing is downloaded.

    Texts that two tasks share are counted twice in an estimate.

    Args:
        config: ``tasks``, ``corpus`` and ``embedding.max_length`` are used.
        store: one that may hold this sweep's corpus already.

    Raises:
        ConfigError: an unknown task, or a file of your own that is wrong.
    """
    counted = _counted(store) if store is not None else None
    if counted is not None:
        return counted
    names = [task for task in config.tasks if isinstance(task, str)]
    found = _published(names) if len(names) == len(config.tasks) else _all_kinds(config.tasks)
    sizes = [size for size in found if size.texts]
    unknown = tuple(size.name for size in found if not size.texts)
    size = CorpusSize(tuple(sizes), sum(s.texts for s in sizes), 0.0, False, unknown)
    tokens = sum(size.tokens_of(task, config.embedding.max_length) for task in sizes)
    size = replace(size, tokens=tokens)
    cap = config.corpus.max_texts_per_task
    return size if cap is None else size.capped(cap)


def published_sizes(tasks: Iterable[str]) -> list[float] | None:
    """Characters of each task by the statistics in mteb; None if one of them isn't known there."""
    from mteb import get_task

    found = []
    for name in tasks:
        try:
            size = _from_statistics(get_task(name))
        except KeyError:
            return None
        if not size.texts:
            return None
        found.append(size.characters)
    return found


def _counted(store: Store) -> CorpusSize | None:
    """What the corpus in the store holds; None if there is none yet."""
    corpus = store.corpus()
    if corpus is None:
        return None
    kept = corpus.attributes
    tokens = kept.get("tokens") or {}
    mean = sum(tokens.values()) / max(len(tokens), 1)
    share = mean * CHARACTERS_PER_TOKEN / max(corpus.n_texts, 1)
    tasks = tuple(TaskSize(n, t, t * share) for n, t in (kept.get("task_texts") or {}).items())
    return CorpusSize(tasks, corpus.n_texts, mean, exact=True)


def _all_kinds(entries: Sequence[str | LocalTask]) -> list[TaskSize]:
    """The sizes of tasks of which some are one's own; no texts where nothing is known."""
    from batchsweep.tasks.resolve import resolve

    # The data of a task in Python code may be anywhere, such as on the Hub.
    local = {t.name for t in entries if isinstance(t, LocalTask) and t.type != "python"}
    return [
        _own(task) if task.metadata.name in local else _from_statistics(task)
        for task in resolve(entries)
    ]


def _published(names: Sequence[str]) -> list[TaskSize]:
    """The sizes of mteb's tasks and presets, each task once; no texts where nothing is known.

    What a name stands for, and its statistics, belong to a version of mteb. They are remembered,
    because importing mteb takes seconds.
    """
    from batchsweep.checkpoints.json_cache import JsonCache, cache_file

    cache = JsonCache(cache_file("task-sizes"))
    installed = version("mteb")
    sizes: dict[str, TaskSize] = {}
    for name in names:
        key = f"{name} in mteb {installed}, {_RULES}"
        known = cache.get(key)
        if known is None:
            known = [astuple(size) for size in _all_kinds([name])]
            cache.set(key, known)
        for task, texts, characters in known:
            sizes.setdefault(task, TaskSize(task, texts, characters))
    cache.save()
    return list(sizes.values())


def _own(task: AbsTask) -> TaskSize:
    """A local task's texts, counted."""
    from batchsweep.config import CorpusConfig
    from batchsweep.tasks.evaluators import prepare_task

    seen: dict[str, int] = {}
    for request in prepare_task(task, CorpusConfig()).requests:
        for texts in request.chunks(""):
            seen.update((text, len(text)) for text in texts)
    return TaskSize(task.metadata.name, len(seen), float(sum(seen.values())))


def _from_statistics(task: AbsTask) -> TaskSize:
    """A task's texts by the statistics in mteb; none where it has none."""
    statistics = task.metadata.descriptive_stats or {}
    texts = 0
    characters = 0.0
    for split in task.eval_splits:
        for part in _parts(statistics.get(split), task):
            n, mean = _texts_in(part)
            most = _limit(task, "max_document_to_embed")
            n = n if most is None else min(n, most)
            texts += n
            characters += n * mean
    per_label = _limit(task, "samples_per_label")
    if per_label is not None:
        # Classification also embeds the subsets that its classifiers train on.
        for part in _parts(statistics.get(getattr(task, "train_split", "train")), task):
            n, mean = _texts_in(part)
            labels = (part.get("label_statistics") or {}).get("unique_labels") or 2
            drawn = per_label * labels * (_limit(task, "n_experiments") or 1)
            texts += min(n, drawn)
            characters += min(n, drawn) * mean
    return TaskSize(task.metadata.name, texts, characters)


def _parts(split: Mapping[str, Any] | None, task: AbsTask) -> Iterator[Mapping[str, Any]]:
    """The statistics of the subsets that the task uses."""
    if split is None:
        return
    subsets = split.get("hf_subset_descriptive_stats")
    if subsets is None:
        yield split
    else:
        yield from (subsets[name] for name in task.hf_subsets if name in subsets)


def _texts_in(part: Mapping[str, Any]) -> tuple[int, float]:
    """(unique texts, mean characters) of one subset, whatever its columns."""
    columns = [
        value
        for name, value in part.items()
        if name.endswith("statistics") and isinstance(value, dict) and "unique_texts" in value
    ]
    texts = sum(int(c["unique_texts"]) for c in columns)
    characters = sum(c["unique_texts"] * c.get("average_text_length", 0.0) for c in columns)
    return texts, characters / max(texts, 1)


def _limit(task: AbsTask, name: str) -> int | None:
    value = getattr(task, name, None)
    return value if isinstance(value, int) else None
