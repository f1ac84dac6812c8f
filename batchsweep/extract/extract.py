"""One index: the corpus's tokens -> forward pass -> pooled states of all layers in the store.

All of its blocks, or those that hold some tasks' rows: a group that is filled pair by pair, in any
order, ends with the bytes of one that is filled at once. What is sealed is never computed again,
so that the same command after a kill goes on where it was and ends with the same bytes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Literal

from batchsweep import __version__
from batchsweep.config import Config
from batchsweep.errors import (
    BatchsweepError,
    IndexFailed,
    StoreCorrupt,
    StoreError,
    StoreFull,
    Terminated,
    Unavailable,
    UsageError,
)
from batchsweep.extract.blocks import Work, sample_metrics, seal_blocks
from batchsweep.extract.figures import Figures
from batchsweep.extract.kept import Kept
from batchsweep.numerics import ARITHMETIC, COMPUTE_THREADS, cores
from batchsweep.plan.plan import PlanEntry
from batchsweep.plan.timings import Record, Stopwatch, Timing, add_timing
from batchsweep.progress import duration
from batchsweep.signals import StopRequest
from batchsweep.store import Corpus, GroupSpec, Store
from batchsweep.store.notes import Ending, forget_refusals, write_note
from batchsweep.store.pairs import TaskBlocks

if TYPE_CHECKING:
    from batchsweep.forward.architecture import LoadedCheckpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extracted:
    """What one run of an index did."""

    key: str
    state: Literal["extracted", "already sealed", "skipped"]
    blocks: int
    """Blocks written by this run."""
    texts: int
    """Texts in them."""
    tokens: int
    """Tokens in them, padding not counted."""
    seconds: float


def group_spec(config: Config, entry: PlanEntry, corpus: Corpus) -> GroupSpec:
    """What the index's group must hold, and what decides its bytes."""
    checkpoint = entry.checkpoint
    return GroupSpec(
        layers=entry.layers,
        poolings=config.embedding.pooling,
        texts=corpus.n_texts,
        hidden=entry.hidden,
        dtype=config.store.dtype,
        block_texts=config.store.block_texts,
        compression=config.store.compression,
        provenance={
            "model": checkpoint.model,
            "revision": checkpoint.revision,
            "step": checkpoint.step,
            **entry.origin(config),
            "layer_output": config.embedding.layer_output,
            "corpus_digest": corpus.digest,
            "tokenizer": entry.tokenizer,
            "compute_dtype": _compute_dtype(config),
            "compute_threads": COMPUTE_THREADS,
            "arithmetic": ARITHMETIC,
            "metrics": config.metrics.model_dump(mode="json"),
            "versions": _versions(),
        },
    )


def extract(
    store: Store,
    config: Config,
    entry: PlanEntry,
    *,
    tasks: Collection[str] | None = None,
    stop: StopRequest,
    strict: bool = False,
    label: str = "",
    figures: Figures | None = None,
) -> Extracted:
    """Write the blocks of one index that are not sealed yet, and note it if that can't be done.

    The label-free metrics come with the first pair. With the last block, the group is complete.

    Args:
        store: holds the corpus with its tokens, and takes the embeddings.
        entry: the index, from the frozen plan.
        tasks: only the blocks that hold some row of these tasks; all blocks by default.
        stop: asked to stop, the open block is finished and sealed if the grace period suffices.
        strict: a checkpoint that is unavailable is an error, not a skip with a warning.
        label: what progress calls this index, such as ``3/8``.
        figures: counted up while it works, for those who watch.

    Raises:
        UsageError: a task that the corpus doesn't have; no such device; a token that is wrong.
        Terminated: ``stop`` was asked; everything sealed is good.
        TryAgain: another process has this index, or the Hub failed in passing.
        Unavailable: with ``strict``, the checkpoint is gone or has no weights.
        IndexFailed: damaged weights, or NaN or inf in a layer.
        StoreError: the group there is of another sweep; a value that the dtype can't hold; a full
            disk.
    """
    forget_refusals(store, entry.key)
    try:
        return _extract(store, config, entry, tasks, stop, label, figures or Figures(entry.key))
    except Unavailable as error:
        _note(store, entry, tasks, "failed" if strict else "skipped", error)
        if strict:
            raise
        logger.warning("skipped: %s", error)
        return Extracted(entry.key, "skipped", 0, 0, 0, 0.0)
    except (UsageError, StoreFull) as error:
        # For this all indexes stop: whoever waits for them should hear of it, and none of it is
        # the checkpoint's own fault.
        with suppress(StoreError, OSError):
            _note(store, entry, tasks, "refused", error)
        raise
    except (IndexFailed, StoreError) as error:
        # A disk that is full can't take the note either: the error itself is what counts.
        with suppress(StoreError, OSError):
            _note(store, entry, tasks, "failed", error)
        raise


def _note(
    store: Store,
    entry: PlanEntry,
    tasks: Collection[str] | None,
    ending: Ending,
    error: BatchsweepError,
) -> None:
    write_note(
        store,
        entry.key,
        ending,
        str(error),
        tasks=tasks,
        exit_code=error.exit_code,
        index=entry.index,
        model=entry.checkpoint.model,
        revision=entry.checkpoint.revision,
    )


def _extract(
    store: Store,
    config: Config,
    entry: PlanEntry,
    tasks: Collection[str] | None,
    stop: StopRequest,
    label: str,
    figures: Figures,
) -> Extracted:
    start, starting = time.monotonic(), Stopwatch()
    key = entry.key
    corpus = store.awaited_corpus()
    spec = group_spec(config, entry, corpus)
    wanted = TaskBlocks(corpus, spec.block_texts).of(tasks)
    if _done(store, key, spec, wanted, config):
        logger.info("%s: already sealed, nothing to do", key)
        return Extracted(key, "already sealed", 0, 0, 0, time.monotonic() - start)
    from batchsweep.forward.loading import check_device

    check_device(config.embedding.device)  # Before a group says that it was made there.
    with store.writer(key, spec) as writer:
        blocks = sorted(wanted - writer.sealed)
        if writer.sealed:
            logger.info("%s: %d of %d blocks are sealed", key, len(writer.sealed), spec.blocks)
        kept = Kept(store, key, spec, config.embedding.batch_tokens)
        for block in writer.sealed:
            kept.drop(block)  # A kill came between its seal and this.
        measure = config.metrics.enabled and not writer.has_metrics()
        texts = tokens = 0
        if blocks or measure:
            work = Work(writer, corpus, config, entry, figures, kept)
            with figures.phase("load"):
                loaded = work.load()
            what = " ".join(part for part in (label, key) if part)
            on_cpu = loaded.device.type == "cpu"
            # What may have been fetched was not waited for in vain.
            waited = starting.waited(1) if on_cpu and entry.checkpoint.local else 0.0
            took = Timing(
                runs=1,
                start_seconds=figures.started + starting.seconds,
                waited_start_seconds=waited,
            )
            add_timing(store, key, took)
            work = replace(work, record=Record(store, key, cores() if on_cpu else 0))
            with figures.phase("blocks"):
                texts, tokens = _sealed(work, loaded, blocks, stop, what)
            if stop.asked and (measure or not writer.sealed.issuperset(blocks)):
                raise Terminated(
                    f"{stop.name}: {key} stopped with {len(writer.sealed)} of {spec.blocks} "
                    "blocks sealed; the same command goes on from there"
                )
            if measure:
                measuring = Stopwatch()
                with figures.phase("metrics"):
                    writer.write_metrics(sample_metrics(work, loaded))
                took = Timing(
                    start_seconds=measuring.seconds,
                    waited_start_seconds=measuring.waited(cores()) if on_cpu else 0.0,
                )
                add_timing(store, key, took)
        if len(writer.sealed) == spec.blocks:
            writer.finish()
    seconds = time.monotonic() - start
    logger.info(
        "%s: %d texts, %d layers in %s (%.0f texts/s, %.0f tokens/s)",
        key,
        texts,
        len(spec.layers),
        duration(seconds),
        texts / seconds,
        tokens / seconds,
        extra={"figures": figures.to_json()},
    )
    return Extracted(key, "extracted", len(blocks), texts, tokens, seconds)


def _sealed(
    work: Work, loaded: LoadedCheckpoint, blocks: Sequence[int], stop: StopRequest, what: str
) -> tuple[int, int]:
    """:func:`seal_blocks`, and what it took is on record, however it ends."""
    assert work.record is not None
    try:
        texts, tokens = seal_blocks(work, loaded, blocks, stop, what)
    except Exception:
        with suppress(StoreError):  # A full disk takes no record either.
            work.record.add(work.figures.tokens, now=True)
        raise
    work.record.add(tokens, now=True)
    return texts, tokens


def _done(store: Store, key: str, spec: GroupSpec, wanted: frozenset[int], config: Config) -> bool:
    """Whether the wanted blocks are sealed, from the same config, corpus and weights."""
    if key not in store:
        return False
    reader = store.reader(key)
    if reader.complete:
        # Another machine's dtype, or an older version's threads and arithmetic, are no reason to
        # compute a finished group again; they are one to refuse to go on with an unfinished one.
        how = ("compute_dtype", "compute_threads", "arithmetic")
        meant = {k: v for k, v in spec.provenance.items() if k not in how}
        there = {k: reader.provenance[k] for k in how if k in reader.provenance}
        return not reader.spec.differences(replace(spec, provenance={**meant, **there}))
    if reader.spec.differences(spec) or not wanted <= reader.sealed:
        return False
    if len(reader.sealed) == spec.blocks:
        return False  # All that is left is to say so.
    try:
        return not config.metrics.enabled or bool(reader.metrics())
    except StoreCorrupt:
        return False


def _compute_dtype(config: Config) -> str:
    """What the forward pass computes in: a name, or ``published`` for ``auto`` on a GPU."""
    import torch

    if config.embedding.dtype != "auto":
        return config.embedding.dtype
    device = config.embedding.device
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    return "float32" if on_cpu else "published"


def _versions() -> dict[str, str]:
    """Of what computes; from the installed packages' metadata, importing none of them."""
    others = {name: version(name) for name in ("torch", "transformers")}
    return {"batchsweep": __version__, **others}
