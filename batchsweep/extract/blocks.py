"""The blocks and the metrics of one index: computed by a loaded model, written, sealed."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from batchsweep.config import Config, ModelConfig
from batchsweep.corpus.tokens import load_tokenizer, prefix_lengths, tokenize
from batchsweep.extract.figures import Figures
from batchsweep.extract.kept import Kept, States
from batchsweep.extract.weights import check_weights
from batchsweep.forward.augment import augmented
from batchsweep.plan.plan import PlanEntry
from batchsweep.plan.speed import ITEM_BYTES
from batchsweep.plan.timings import Record
from batchsweep.progress import Bar, duration, progress
from batchsweep.signals import StopRequest
from batchsweep.store import Corpus, GroupSpec, GroupWriter

if TYPE_CHECKING:
    from batchsweep.forward.architecture import LoadedCheckpoint

logger = logging.getLogger(__name__)

#: States that are being written, beside the block that is computed; and in how many blocks.
WRITING_BYTES = 256 << 20
MOST_WRITES = 4
#: Seconds of work that a kill may lose: what was computed since the last write, and a batch.
MOST_LOST = 30

TokenIds = list[npt.NDArray[np.int32]]


@dataclass(frozen=True)
class Work:
    """What an index is computed from, and where it goes."""

    writer: GroupWriter
    corpus: Corpus
    config: Config
    entry: PlanEntry
    figures: Figures
    kept: Kept
    record: Record | None = None

    @property
    def model_config(self) -> ModelConfig:
        found = self.config.model_of(self.entry.checkpoint.model)
        assert found is not None, "the plan was frozen from this config"
        return found

    def load(self) -> LoadedCheckpoint:
        """The model, once what will be loaded is known to be what the plan was frozen with."""
        from batchsweep.forward.forward import load_checkpoint

        check_weights(self.model_config, self.entry)
        return load_checkpoint(
            self.entry.checkpoint.load_model,
            self.entry.checkpoint.load_revision,
            dtype=self.config.embedding.dtype,
            device=self.config.embedding.device,
            trust_remote_code=self.model_config.trust_remote_code,
        )


def seal_blocks(
    work: Work, loaded: LoadedCheckpoint, blocks: Sequence[int], stop: StopRequest, what: str
) -> tuple[int, int]:
    """Compute and seal blocks, in this order; texts and tokens that were done.

    A block is computed while those before it are written and the one after it is read. Asked to
    stop, the open block is finished if the grace period suffices: not all of ``blocks`` are sealed
    then.
    """
    writer = work.writer
    texts = tokens = 0
    todo = sum(_size(writer.spec.block_rows(b)) for b in blocks)
    at_once = _writes_at_once(writer.spec)
    writing: deque[Future[None]] = deque()
    with (
        ThreadPoolExecutor(at_once + 1) as background,
        progress(what, total=todo, unit="texts") as bar,
    ):
        for block, token_ids in _read_ahead(work, blocks, background):
            states = None if stop.asked else _states(work, loaded, block, token_ids, stop, bar)
            while writing and (len(writing) == at_once or writing[0].done()):
                writing.popleft().result()
            if states is None:
                break
            writing.append(background.submit(_write, work, block, token_ids, states))
            if work.record is not None:
                work.record.add(work.figures.tokens)
            texts += len(token_ids)
            tokens += sum(map(len, token_ids))
        for one in writing:
            one.result()
    return texts, tokens


def _write(work: Work, block: int, token_ids: TokenIds, states: States) -> None:
    """Seal a block, and count it."""
    spec = work.writer.spec
    work.writer.write_block(block, states)
    work.kept.drop(block)
    vectors = len(spec.poolings) * len(spec.layers) * len(token_ids)
    work.figures.sealed(
        texts=len(token_ids),
        tokens=sum(map(len, token_ids)),
        size=vectors * spec.hidden * ITEM_BYTES[spec.dtype],
    )


def _writes_at_once(spec: GroupSpec) -> int:
    """Blocks that are written at once: a place far away takes long over each, however small."""
    block = 4 * len(spec.poolings) * len(spec.layers) * spec.chunk_texts * spec.hidden
    return min(max(WRITING_BYTES // block, 1), MOST_WRITES)


def _states(
    work: Work,
    loaded: LoadedCheckpoint,
    block: int,
    token_ids: TokenIds,
    stop: StopRequest,
    bar: Bar,
) -> States | None:
    """The pooled states of a block; None if a stop is asked and the time left doesn't suffice."""
    from batchsweep.forward.forward import pooler, reduced_states

    spec, embedding = work.writer.spec, work.config.embedding
    states = {
        p: np.empty((len(spec.layers), len(token_ids), spec.hidden), np.float32)
        for p in spec.poolings
    }
    done = work.kept.begin(block, states)
    start, before = time.monotonic(), int(done.sum())
    bar.advance(before)
    for positions, pooled in reduced_states(
        loaded,
        token_ids,
        layers=spec.layers,
        layer_output=embedding.layer_output,
        batch_tokens=embedding.batch_tokens,
        make_reducer=pooler(spec.poolings, _prefixes(work, token_ids)),
        first_row=spec.block_rows(block).start,
        done=done,
    ):
        for pooling, values in pooled.items():
            states[pooling][:, positions] = values
        bar.advance(int((~done[positions]).sum()))
        done[positions] = True
        computed = int(done.sum()) - before
        passed = time.monotonic() - start
        slow = computed == len(positions) and passed > MOST_LOST
        if slow and not work.kept.said_slow:
            work.kept.said_slow = True
            taken = min(sum(len(token_ids[n]) for n in positions), embedding.batch_tokens)
            logger.warning(
                "%s: a batch takes %s here, and a kill loses as much; embedding.batch_tokens: %d "
                "would make it %d s",
                work.writer.key,
                duration(passed),
                max(int(taken * MOST_LOST / passed), 1),
                MOST_LOST,
            )
        left = passed / max(computed, 1) * int((~done).sum())
        if left > stop.seconds_left:
            work.kept.keep(block, states, done, now=True)
            logger.warning(
                "%s: block %d is left open, it would take %s more; %d of its texts are kept",
                work.writer.key,
                block,
                duration(left),
                int(done.sum()),
            )
            return None
        if not done.all():
            work.kept.keep(block, states, done)
    return states


def sample_metrics(work: Work, loaded: LoadedCheckpoint) -> dict[str, npt.NDArray[np.float64]]:
    """The label-free metrics of a seeded sample of the corpus, [layer] by name.

    They come from rows and a pass of their own, so that they don't depend on which blocks were
    extracted, or in which order.
    """
    from batchsweep.forward.metrics import representation_metrics, sample_rows

    corpus, entry = work.corpus, work.entry
    embedding, metrics = work.config.embedding, work.config.metrics
    rows = sample_rows(corpus.n_texts, metrics.sample, metrics.seed)
    token_ids = [
        ids for row in rows for ids in corpus.token_ids(entry.tokenizer, slice(row, row + 1))
    ]
    views = None
    if metrics.views:
        tokenizer = load_tokenizer(
            entry.checkpoint.load_model,
            entry.checkpoint.load_revision,
            trust_remote_code=work.model_config.trust_remote_code,
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
    return representation_metrics(
        loaded,
        token_ids,
        layers=entry.layers,
        layer_output=embedding.layer_output,
        batch_tokens=embedding.batch_tokens,
        prefix_lengths=_prefixes(work, token_ids),
        views=views,
    )


def _prefixes(work: Work, token_ids: TokenIds) -> npt.NDArray[np.int64] | None:
    """Leading tokens of each text that take no part in pooling; None: all take part."""
    if work.config.embedding.pool_prefix:
        return None
    return prefix_lengths(work.corpus, work.entry.tokenizer, token_ids)


def _read_ahead(
    work: Work, blocks: Sequence[int], background: ThreadPoolExecutor
) -> Iterator[tuple[int, TokenIds]]:
    """Each block with its token ids; the next block's are read while this one is computed."""

    rows = work.writer.spec.block_rows

    def read(block: int) -> TokenIds:
        return work.corpus.token_ids(work.entry.tokenizer, rows(block))

    coming = [background.submit(read, block) for block in blocks[:1]]
    for position, block in enumerate(blocks):
        token_ids = coming.pop().result()
        coming += [background.submit(read, b) for b in blocks[position + 1 : position + 2]]
        yield block, token_ids


def _size(rows: slice) -> int:
    return int(rows.stop - rows.start)
