"""The weights of an index on this machine: fetched ahead, held against the plan, deleted after."""

from __future__ import annotations

import logging
from collections.abc import Collection
from contextlib import suppress

from batchsweep.config import ModelConfig
from batchsweep.errors import BatchsweepError, IndexFailed
from batchsweep.plan.plan import PlanEntry
from batchsweep.store import Store
from batchsweep.store.pairs import ready_tasks

logger = logging.getLogger(__name__)


def prefetch(store: Store, entry: PlanEntry, tasks: Collection[str] | None = None) -> None:
    """Download the weights of a checkpoint that comes next; an error shows when its turn comes.

    Not if it has all of these tasks (by default: if it is complete).
    """
    from batchsweep.forward.loading import fetch

    checkpoint = entry.checkpoint
    if tasks is None:
        there = entry.key in store and store.reader(entry.key).complete
    else:
        there = set(tasks) <= set(ready_tasks(store, [entry.key]).get(entry.key, ()))
    if there:
        return
    with suppress(BatchsweepError):
        fetch(checkpoint.load_model, checkpoint.load_revision)


def check_weights(model: ModelConfig, entry: PlanEntry) -> None:
    """Hold what will be loaded against the plan: weights, config and tokenizer, wherever from.

    Raises:
        TryAgain: the Hub can't be reached for what is not downloaded yet.
        Unavailable: they are gone.
        IndexFailed: they are not those that the plan was frozen with.
    """
    from batchsweep.checkpoints.hub import Hub
    from batchsweep.checkpoints.json_cache import JsonCache, cache_file
    from batchsweep.checkpoints.sources import open_suite
    from batchsweep.checkpoints.unchanged import check_download, check_unchanged
    from batchsweep.forward.loading import fetch

    checkpoint = entry.checkpoint
    digests = JsonCache(cache_file("digests"))
    folder = None
    if not checkpoint.local:
        folder = fetch(
            checkpoint.load_model,
            checkpoint.load_revision,
            trust_remote_code=model.trust_remote_code,
        )
    try:
        if folder is None:
            check_unchanged(open_suite(model, Hub(), digests), checkpoint, entry.tokenizer)
        else:
            check_download(folder, checkpoint, digests)
    except IndexFailed as error:
        raise type(error)(f"{checkpoint.model}@{error}") from None
    digests.save()


def delete_weights(entry: PlanEntry) -> None:
    """Delete the downloaded weights of a checkpoint from the Hub's cache; local models stay.

    Files that another revision shares stay too, as long as that revision is cached.
    """
    if entry.checkpoint.local:
        return
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        strategy = scan_cache_dir().delete_revisions(entry.checkpoint.commit)
    except CacheNotFound:
        return
    strategy.execute()
    logger.info("%s: deleted %s of weights", entry.key, strategy.expected_freed_size_str)
