"""Copy a store into the other format, or to another place."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from batchsweep.errors import StoreMismatch
from batchsweep.progress import progress
from batchsweep.store.format import Format, spec_of
from batchsweep.store.spec import GroupSpec
from batchsweep.store.store import Store
from batchsweep.store.values import Array

#: Texts that are in memory at a time.
_BATCH = 10_000


def convert(source: Store, target: Store) -> None:
    """Copy everything that is sealed, verifying each chunk on the way.

    Values stay bit for bit what they are. What the target has already isn't copied again, so that
    a conversion that was killed goes on. Into HDF5, zstd is undone.

    Args:
        target: usually a new one, from :func:`~batchsweep.store.create_store`.

    Raises:
        StoreMismatch: the target holds something else.
        StoreCorrupt: a chunk of the source is damaged; names it.
        TryAgain: the target is being written.
    """
    _copy_corpus(source, target)
    for path in source.documents():
        value = source.read_json(path)
        if target.read_json(path) != value:
            target.write_json(path, value)
    keys = source.keys()
    groups = {key: spec_of(source.backend, key) for key in keys}
    blocks = sum(there[0].blocks for there in groups.values() if there is not None)
    with progress("convert", total=blocks, unit="blocks") as bar:
        for key, there in groups.items():
            if there is not None:
                _copy_group(source.backend, target, key, *there)
                bar.advance(there[0].blocks)


def _copy_corpus(source: Store, target: Store) -> None:
    corpus, there = source.corpus(), target.corpus()
    if corpus is None:
        return
    if there is not None:
        if there.digest != corpus.digest:
            raise StoreMismatch(
                f"{target.url} has another corpus than {source.url}; convert into a new store"
            )
        return
    with target.corpus_writer() as writer:
        for start in range(0, corpus.n_texts, _BATCH):
            writer.add_texts(corpus.texts(slice(start, start + _BATCH)))
        for tokenizer in corpus.tokenizers():
            ids, offsets = corpus.tokens(tokenizer)
            for start in range(0, corpus.n_texts, _BATCH):
                ends = offsets[start : start + _BATCH + 1]
                writer.add_tokens(
                    tokenizer, np.split(ids[ends[0] : ends[-1]], ends[1:-1] - ends[0])
                )
        for task in corpus.tasks():
            writer.add_task(task, corpus.rows_of(task))
        writer.finish(corpus.attributes)


def _copy_group(source: Format, target: Store, key: str, spec: GroupSpec, complete: bool) -> None:
    new = spec if target.format == "zarr" else spec.without_compression()
    with target.writer(key, new) as writer:
        for block, seal in sorted(source.seals(key, spec).items()):
            # A stale or torn seal is not copied: verify is what tells about it.
            if block in writer.sealed or not seal.startswith(spec.digest):
                continue
            writer.write_stored(
                block, {n: _values(source, key, spec, n, block) for n in spec.arrays}
            )
        if writer.complete:
            return
        if metrics := source.metrics(key, spec):
            writer.write_metrics(metrics)
        if complete:
            writer.finish()


def _values(source: Format, key: str, spec: GroupSpec, name: str, block: int) -> Iterator[Array]:
    return (values for values, _ in source.chunks(key, spec, name, block))
