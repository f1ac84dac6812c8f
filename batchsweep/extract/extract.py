"""One index: the corpus's tokens -> forward pass -> pooled states of all layers in the store.

A block is computed, written whole and sealed; the next one is computed while it is written. What
is sealed is never computed again, so that the same command after a kill goes on where it was and
ends with the same bytes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from batchsweep import __version__
from batchsweep.config import Config, ModelConfig
from batchsweep.corpus.tokens import load_tokenizer, prefix_lengths, tokenize
from batchsweep.errors import (
    IndexFailed,
    StoreError,
    Terminated,
    TryAgain,
    Unavailable,
)
from batchsweep.extract.weights import check_weights
from batchsweep.forward.augment import augmented
from batchsweep.numerics import COMPUTE_THREADS
from batchsweep.plan.plan import PlanEntry
from batchsweep.progress import duration, progress
from batchsweep.signals import StopRequest
from batchsweep.store import Corpus, GroupSpec, GroupWriter, Store
from batchsweep.store.notes import outcome_path

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
            "commit": checkpoint.commit,
            "layer_output": config.embedding.layer_output,
            "config_digest": config.embedding_digest,
            "corpus_digest": corpus.digest,
            "weights_digest": checkpoint.weights_digest,
            "tokenizer": entry.tokenizer,
            "compute_dtype": _compute_dtype(config),
            "compute_threads": COMPUTE_THREADS,
            "metrics": config.metrics.model_dump(mode="json"),
            "versions": _versions(),
        },
    )


def extract(
    store: Store,
    config: Config,
    entry: PlanEntry,
    *,
    stop: StopRequest,
    strict: bool = False,
    label: str = "",
) -> Extracted:
    """Write all blocks of one index that are not sealed yet, and note it if that can't be done.

    Args:
        store: holds the corpus with its tokens, and takes the embeddings.
        config: the same as at ``prepare``.
        entry: the index, from the frozen plan.
        stop: asked to stop, the open block is finished and sealed if the grace period suffices.
        strict: a checkpoint that is unavailable is an error, not a skip with a warning.
        label: what progress calls this index, such as ``3/8``.

    Raises:
        Terminated: ``stop`` was asked; everything sealed is good.
        TryAgain: another process has this index, or the Hub failed in passing.
        Unavailable: with ``strict``, the checkpoint is gone or has no weights.
        IndexFailed: damaged weights, or NaN or inf in a layer.
        StoreError: the group there is of another sweep; a value that the dtype can't hold; a full
            disk.
    """
    try:
        return _extract(store, config, entry, stop, label)
    except Unavailable as error:
        _note(store, entry, "failed" if strict else "skipped", error)
        if strict:
            raise
        logger.warning("skipped: %s", error)
        return Extracted(entry.key, "skipped", 0, 0, 0, 0.0)
    except (IndexFailed, StoreError) as error:
        # A disk that is full can't take the note either: the error itself is what counts.
        with suppress(StoreError, OSError):
            _note(store, entry, "failed", error)
        raise


def _note(store: Store, entry: PlanEntry, state: str, error: Exception) -> None:
    store.write_json(
        outcome_path(entry.key),
        {
            "state": state,
            "index": entry.index,
            "model": entry.checkpoint.model,
            "revision": entry.checkpoint.revision,
            "message": str(error),
        },
    )


def _extract(
    store: Store, config: Config, entry: PlanEntry, stop: StopRequest, label: str
) -> Extracted:
    start = time.monotonic()
    key = entry.checkpoint.key
    corpus = store.corpus()
    if corpus is None:
        raise TryAgain(f"{store.url}: no corpus yet; run 'batchsweep prepare' first")
    spec = group_spec(config, entry, corpus)
    if _complete(store, key, spec):
        logger.info("%s: already sealed, nothing to do", key)
        return Extracted(key, "already sealed", 0, 0, 0, time.monotonic() - start)
    with store.writer(key, spec) as writer:
        open_blocks = [b for b in range(spec.blocks) if b not in writer.sealed]
        if len(open_blocks) < spec.blocks:
            done = spec.blocks - len(open_blocks)
            logger.info("%s: going on after %d of %d blocks", key, done, spec.blocks)
        texts, tokens = _run(writer, corpus, config, entry, open_blocks, stop, label)
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
    )
    return Extracted(key, "extracted", len(open_blocks), texts, tokens, seconds)


def _complete(store: Store, key: str, spec: GroupSpec) -> bool:
    """Whether the group is sealed to its end, from the same config, corpus and weights."""
    if key not in store:
        return False
    reader = store.reader(key)
    # Another machine's dtype, or an older version's threads, are no reason to compute a finished
    # group again; they are one to refuse to go on with an unfinished one.
    there = {k: reader.provenance.get(k) for k in ("compute_dtype", "compute_threads")}
    same = replace(spec, provenance={**spec.provenance, **there})
    return reader.complete and not reader.spec.differences(same)


def _run(
    writer: GroupWriter,
    corpus: Corpus,
    config: Config,
    entry: PlanEntry,
    open_blocks: Sequence[int],
    stop: StopRequest,
    label: str,
) -> tuple[int, int]:
    """Compute the open blocks one after the other; texts and tokens that were done."""
    from batchsweep.forward.forward import load_checkpoint, pooled_states

    checkpoint, embedding = entry.checkpoint, config.embedding
    model_config = _model_config(config, entry)
    check_weights(model_config, entry)
    loaded = load_checkpoint(
        checkpoint.load_model,
        checkpoint.load_revision,
        dtype=embedding.dtype,
        device=embedding.device,
        trust_remote_code=model_config.trust_remote_code,
    )
    spec = writer.spec
    todo = sum(_size(writer.block_rows(b)) for b in open_blocks)
    n_texts = n_tokens = 0
    what = " ".join(part for part in (label, writer.key) if part)
    with (
        ThreadPoolExecutor(2) as background,
        progress(what, total=todo, unit="texts") as bar,
    ):
        writing: Future[None] | None = None
        for block, token_ids in _blocks(corpus, entry.tokenizer, writer, open_blocks, background):
            if stop.asked:
                break
            rows = writer.block_rows(block)
            shape = (len(spec.layers), _size(rows), spec.hidden)
            states = {p: np.empty(shape, np.float32) for p in spec.poolings}
            prefixes = None
            if not embedding.pool_prefix:
                prefixes = prefix_lengths(corpus, entry.tokenizer, token_ids)
            block_start = time.monotonic()
            done, left = 0, 0.0
            for positions, pooled in pooled_states(
                loaded,
                token_ids,
                layers=spec.layers,
                poolings=spec.poolings,
                layer_output=embedding.layer_output,
                batch_tokens=embedding.batch_tokens,
                prefix_lengths=prefixes,
                first_row=rows.start,
            ):
                for pooling, values in pooled.items():
                    states[pooling][:, positions] = values
                bar.advance(len(positions))
                done += len(positions)
                if stop.asked:
                    rate = done / (time.monotonic() - block_start)
                    left = (len(token_ids) - done) / rate
                    if left > stop.seconds_left:
                        break
            if writing is not None:
                writing.result()
            if done < len(token_ids):
                raise Terminated(
                    f"{stop.name}: left {writer.key} at block {block}, which would take "
                    f"{duration(left)} more; {len(writer.sealed)} of {spec.blocks} blocks are "
                    "sealed, the same command goes on from there"
                )
            writing = background.submit(writer.write_block, block, states)
            n_texts += len(token_ids)
            n_tokens += sum(map(len, token_ids))
            if stop.asked:
                break
        if writing is not None:
            writing.result()
    if stop.asked and (len(writer.sealed) < spec.blocks or config.metrics.enabled):
        raise Terminated(
            f"{stop.name}: {writer.key} stopped with {len(writer.sealed)} of {spec.blocks} blocks "
            "sealed; the same command goes on from there"
        )
    if config.metrics.enabled:
        writer.write_metrics(_metrics(loaded, corpus, config, entry))
    return n_texts, n_tokens


def _metrics(
    loaded: LoadedCheckpoint, corpus: Corpus, config: Config, entry: PlanEntry
) -> dict[str, npt.NDArray[np.float64]]:
    """The label-free metrics of a seeded sample of the corpus, [layer] by name.

    They come last and from rows of their own, so that a resumed index ends with the same ones.
    """
    from batchsweep.forward.metrics import representation_metrics, sample_rows

    embedding, metrics = config.embedding, config.metrics
    rows = sample_rows(corpus.n_texts, metrics.sample, metrics.seed)
    token_ids = [
        ids for row in rows for ids in corpus.token_ids(entry.tokenizer, slice(row, row + 1))
    ]
    views = None
    if metrics.views:
        tokenizer = load_tokenizer(
            entry.checkpoint.load_model,
            entry.checkpoint.load_revision,
            trust_remote_code=_model_config(config, entry).trust_remote_code,
        )
        texts = list(zip(rows.tolist(), corpus.texts(rows), strict=True))
        first, second = (
            tokenize(
                tokenizer,
                [augmented(text, seed=2 * row + n) for row, text in texts],
                embedding.max_length,
            )[0]
            for n in (0, 1)
        )
        views = (first, second)
    prefixes = None
    if not embedding.pool_prefix:
        prefixes = prefix_lengths(corpus, entry.tokenizer, token_ids)
    return representation_metrics(
        loaded,
        token_ids,
        layers=entry.layers,
        layer_output=embedding.layer_output,
        batch_tokens=embedding.batch_tokens,
        prefix_lengths=prefixes,
        views=views,
    )


def _model_config(config: Config, entry: PlanEntry) -> ModelConfig:
    return next(m for m in config.models if m.name == entry.checkpoint.model)


def _blocks(
    corpus: Corpus,
    tokenizer: str,
    writer: GroupWriter,
    blocks: Sequence[int],
    background: ThreadPoolExecutor,
) -> Iterator[tuple[int, list[npt.NDArray[np.int32]]]]:
    """Each block with its token ids; the next block's are read while this one is computed."""

    def read(block: int) -> list[npt.NDArray[np.int32]]:
        return corpus.token_ids(tokenizer, writer.block_rows(block))

    coming = background.submit(read, blocks[0]) if blocks else None
    for position, block in enumerate(blocks):
        assert coming is not None
        token_ids = coming.result()
        if position + 1 < len(blocks):
            coming = background.submit(read, blocks[position + 1])
        yield block, token_ids


def _size(rows: slice) -> int:
    return int(rows.stop - rows.start)


def _compute_dtype(config: Config) -> str:
    """What the forward pass computes in: a name, or ``published`` for ``auto`` on a GPU."""
    import torch

    if config.embedding.dtype != "auto":
        return config.embedding.dtype
    device = config.embedding.device
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    return "float32" if on_cpu else "published"


def _versions() -> dict[str, Any]:
    import torch
    import transformers

    return {
        "batchsweep": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
