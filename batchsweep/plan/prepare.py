"""What happens once before extraction: audit, corpus and frozen plan into the store."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from batchsweep.checkpoints.audit import audit
from batchsweep.config import Config
from batchsweep.corpus.tokens import load_tokenizer
from batchsweep.corpus.write import Summary, write_corpus
from batchsweep.errors import StoreCorrupt, StoreMismatch, UsageError
from batchsweep.plan.differences import differences
from batchsweep.plan.frozen import freeze, merged
from batchsweep.plan.plan import Plan, make_plan
from batchsweep.plan.preview import refuse_if_too_large
from batchsweep.store import Store, create_store
from batchsweep.store.notes import forget_refusals
from batchsweep.tasks.resolve import check_data, resolve, tasks_of

logger = logging.getLogger(__name__)


def prepare(
    config: Config, *, strict: bool = False, exhaustive: bool = True
) -> tuple[Store, Plan, Summary]:
    """Write the corpus, with its tokens, and the frozen plan; or grow the plan that is there.

    The plan is written last: where there is a plan, an index can be extracted.

    Args:
        strict: an unavailable checkpoint is an error.
        exhaustive: all of the sweep is to be extracted: refuse one that the disk can't take.

    Raises:
        ConfigError: an unknown task or model, a layer that isn't there.
        IndexFailed: a tokenizer is missing, damaged or of no use for these texts; with
            ``strict``, a checkpoint is unavailable.
        StoreMismatch: the store there is of another sweep; says what differs.
        TryAgain: the Hub is out of reach, or another process prepares this store.
        UsageError: the disk is too small for the sweep; says what is needed and what is free.
    """
    tasks = resolve(config.tasks)
    found = audit(config, strict=strict)
    for warning in found.warnings:
        logger.warning("%s", warning)
    plan = make_plan(config, found)
    _check_rewards(config, plan, {t.metadata.name: str(t.metadata.type) for t in tasks})
    if exhaustive:
        refuse_if_too_large(config, plan)
    store = create_store(config.store_url, format=config.store.format)
    # Before the long work: would this plan be refused?
    plan = merged(plan, store, config)
    _check_metrics(store, config)
    check_data(tasks)
    trusted = {model.name for model in config.models if model.trust_remote_code}
    tokenizers = {
        key: load_tokenizer(
            checkpoint.load_model,
            checkpoint.load_revision,
            trust_remote_code=checkpoint.model in trusted,
        )
        for key, checkpoint in plan.tokenizers().items()
    }
    summary = write_corpus(
        store, tasks, tokenizers, embedding=config.embedding, corpus=config.corpus
    )
    for key, count in summary.unknown.items():
        if count:
            logger.warning(
                "tokenizer %s: it knows nothing of %s, whose vectors will all be the same",
                key,
                f"{count:,} of {summary.texts:,} texts",
            )
    if exhaustive:
        refuse_if_too_large(config, plan)  # Now that the texts are counted.
    plan = freeze(plan, store, config)
    forget_refusals(store, *(entry.key for entry in plan.entries))
    return store, plan, summary


def _check_rewards(config: Config, plan: Plan, types: Mapping[str, str]) -> None:
    """``rewards`` must name what there is, now and not when all has been extracted."""
    tasks_of(config.rewards.target, types)
    names = dict.fromkeys(name for entry in plan.entries for name in entry.checkpoint.names)
    if config.rewards.baseline not in {None, *names}:
        raise UsageError(
            f"rewards.baseline '{config.rewards.baseline}': no checkpoint of that name in this "
            f"sweep; valid: {', '.join(names)}"
        )


def _check_metrics(store: Store, config: Config) -> None:
    """Embeddings that are there have metrics, and ``extract`` holds the config to them."""
    now = config.metrics.model_dump(mode="json")
    first = next(iter(store.keys()), None)
    if first is None:
        return
    there = now
    with suppress(StoreCorrupt):  # Damage is for verify to name.
        there = store.reader(first).provenance.get("metrics", now)
    if changes := differences(there, now, "metrics"):
        raise StoreMismatch(
            f"{store.url}: the config changed since {first} was extracted: {'; '.join(changes)}; "
            "change it back, or use another store.path"
        )
