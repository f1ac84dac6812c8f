"""The plan in the store: frozen before the first index runs, and grown.

Every process of a sweep obeys the frozen plan, whatever the Hub says by then. A plan only grows:
an index never changes its checkpoint.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from batchsweep.checkpoints.same_weights import Duplicates
from batchsweep.config import Config
from batchsweep.errors import StoreMismatch, UsageError, shortened
from batchsweep.plan.differences import differences
from batchsweep.plan.plan import Plan, PlanEntry, deciding
from batchsweep.store import Store

logger = logging.getLogger(__name__)

#: Where the plan is in the store.
PLAN_PATH = "plan.json"


def load_plan(store: Store) -> Plan:
    """The frozen plan.

    Raises:
        UsageError: there is none yet.
        StoreCorrupt: it is damaged.
    """
    value = store.read_json(PLAN_PATH)
    if value is None:
        raise UsageError(f"{store.url}: no plan there yet; run 'batchsweep prepare' first")
    return Plan.from_json(value, source=f"{store.url}: {PLAN_PATH}")


def frozen_plan(store: Store, config: Config, *, scoring: bool = False) -> Plan:
    """The frozen plan, if the config is still the one that it was made from.

    Args:
        scoring: for reading embeddings that are there: other tasks (whose texts the corpus has),
            models and revisions are no difference then.

    Raises:
        UsageError: there is none yet, or models or revisions changed, which ``prepare`` can add.
        StoreMismatch: something changed that the store can't follow.
    """
    plan = load_plan(store)
    check_frozen(plan, config, store.url, scoring=scoring)
    return plan


def check_frozen(plan: Plan, config: Config, where: str, *, scoring: bool = False) -> None:
    """Refuse a config that is not the one that a frozen plan was made from.

    Args:
        plan: from a store.
        config, scoring: as for :func:`frozen_plan`.
        where: the store's URL.

    Raises:
        UsageError, StoreMismatch: as :func:`frozen_plan`.
    """
    if scoring:
        _check_same(plan, config, where, sections=("embedding", "store", "corpus"))
        return
    _check_same(plan, config, where)
    now = deciding(config)
    for section in ("models", "revisions"):
        if plan.config.get(section) != now[section]:
            change = "; ".join(differences(plan.config.get(section), now[section], section))
            raise UsageError(
                f"{where}: the plan was frozen from another config: {change}; "
                "run 'batchsweep prepare' to add indexes (those there stay), or change it back"
            )


def merged(plan: Plan, store: Store, config: Config) -> Plan:
    """What :func:`freeze` would put into the store: the plan, or the one there grown by it.

    Raises:
        StoreMismatch: the config changed in something that the store can't follow.
    """
    if store.read_json(PLAN_PATH) is None:
        return plan
    there = load_plan(store)
    _check_same(there, config, store.url)
    return grow(there, plan, where=store.url)


def freeze(plan: Plan, store: Store, config: Config) -> Plan:
    """Put the plan into the store, or grow the one that is there; what is in the store then.

    Raises:
        StoreMismatch: the config changed in something that the store can't follow.
    """
    if not plan.audited:
        raise ValueError("a plan without an audit can't be frozen")
    before = store.read_json(PLAN_PATH)
    asked = {(e.checkpoint.model, name) for e in plan.entries for name in e.checkpoint.names}
    asked |= {(skipped.model, skipped.revision) for skipped in plan.skipped}
    plan = merged(plan, store, config)
    if more := [e.key for e in plan.entries if not _asked(e, asked)]:
        logger.warning(
            "plan: the config doesn't ask for %s any more, but a plan only grows: they stay in the "
            "sweep; for fewer checkpoints, use another store.path",
            shortened(", ".join(more), 200),
        )
    if before is not None:
        if plan.to_json() == before:
            return plan
        added = len(plan.entries) - len(before["entries"])
        logger.info("plan: %d indexes there, %d added", len(before["entries"]), added)
    store.write_json(PLAN_PATH, plan.to_json())
    return plan


def grow(there: Plan, new: Plan, *, where: str = "the store") -> Plan:
    """Append what ``new`` has and ``there`` lacks; the old indexes stay as they are.

    New names of weights that have an index become its aliases: nothing is extracted twice.

    Raises:
        StoreMismatch: a model was removed, a local checkpoint's weights changed, or a model's
            shape did.
    """
    gone = [m for m in there.models if m not in {c["name"] for c in new.config["models"]}]
    if gone:
        raise StoreMismatch(
            f"{where}: models: {', '.join(gone)} has indexes there but is not in the config any "
            "more; a plan only grows: put it back, or use another store.path"
        )
    entries = list(there.entries)
    for entry in new.entries:
        known = _known(entries, entry, new)
        if known is None:
            entries.append(replace(entry, index=len(entries)))
            continue
        old = known.checkpoint
        if old.weights_digest != entry.checkpoint.weights_digest:
            if old.local:
                raise StoreMismatch(
                    f"{where}: {old.model}@{old.revision}: the weights changed since the plan was "
                    "frozen; put the old ones back, or use another store.path"
                )
            logger.warning(
                "%s@%s moved on the Hub; index %d stays at commit %s",
                old.model,
                old.revision,
                known.index,
                old.commit[:12],
            )
            continue
        then, now = (known.tokenizer, old.commit), (entry.tokenizer, entry.checkpoint.commit)
        if old.local and old.revision == entry.checkpoint.revision and then != now:
            raise StoreMismatch(
                f"{where}: {old.model}@{old.revision}: config.json, the tokenizer or the code "
                "changed since the plan was frozen; put the old one back, or use another store.path"
            )
        added = [n for n in entry.checkpoint.names if n not in old.names]
        entries[known.index] = replace(
            known, checkpoint=replace(old, aliases=(*old.aliases, *added))
        )
    names = {(e.checkpoint.model, n) for e in entries for n in e.checkpoint.names}
    skipped = {(s.model, s.revision): s for s in (*there.skipped, *new.skipped)}
    return replace(
        there,
        entries=tuple(entries),
        config=new.config,
        skipped=tuple(s for place, s in skipped.items() if place not in names),
        duplicates=_newest(there.duplicates, new.duplicates),
        shared=tuple(dict.fromkeys((*there.shared, *new.shared))),
    )


def _asked(entry: PlanEntry, names: set[tuple[str, str]]) -> bool:
    return any((entry.checkpoint.model, name) in names for name in entry.checkpoint.names)


def _known(entries: list[PlanEntry], entry: PlanEntry, new: Plan) -> PlanEntry | None:
    """The entry that has this checkpoint's name or weights already.

    Weights that ``new`` keeps apart, because their configs differ, are not the same.
    """
    checkpoint = entry.checkpoint
    mine = [e for e in entries if e.checkpoint.model == checkpoint.model]
    named = next((e for e in mine if e.checkpoint.revision == checkpoint.revision), None)
    if named is not None:
        return named
    digest = checkpoint.weights_digest
    apart = {e.checkpoint.key for e in new.entries}
    return next(
        (
            e
            for e in mine
            if digest and e.checkpoint.weights_digest == digest and e.key not in apart
        ),
        None,
    )


def _newest(old: tuple[Duplicates, ...], new: tuple[Duplicates, ...]) -> tuple[Duplicates, ...]:
    """All groups, without those that a larger one repeats."""
    found: list[Duplicates] = []
    for group in (*new, *old):
        names = set(group.revisions)
        covered = (g for g in found if g.model == group.model and names <= set(g.revisions))
        if next(covered, None) is None:
            found.append(group)
    return tuple(found)


def _check_same(
    plan: Plan,
    config: Config,
    where: str,
    *,
    sections: tuple[str, ...] = ("embedding", "store", "tasks", "corpus"),
) -> None:
    """Refuse a config that differs in what decides the bytes of every index."""
    now = deciding(config)
    changes = [
        line
        for section in sections
        for line in differences(plan.config.get(section), now[section], section)
    ]
    if changes:
        raise StoreMismatch(
            f"{where}: the config changed since its plan was frozen: {'; '.join(changes)}; "
            "change it back, or use another store.path"
        )
