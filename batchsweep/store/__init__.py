"""The store: corpus, plan, embeddings, metrics and scores in one directory or URL.

The format is specified in FORMAT.md, next to this file. The store knows arrays and documents; it
knows nothing of torch or mteb.

Example:
    >>> store = create_store("runs/x/store.zarr")
    >>> with store.writer("EleutherAI--pythia-14m/step1000", spec) as writer:
    ...     for block in range(spec.blocks):
    ...         if block not in writer.sealed:
    ...             writer.write_block(block, {"mean": states[:, spec.block_rows(block)]})
    ...     writer.finish()
    >>> store.reader("EleutherAI--pythia-14m/step1000").read("mean", layer=6)
"""

from batchsweep.store.convert import convert
from batchsweep.store.corpus import Corpus, CorpusWriter, digest_of
from batchsweep.store.group_reader import GroupReader
from batchsweep.store.group_writer import GroupWriter
from batchsweep.store.integrity import Fault, repair, verify
from batchsweep.store.spec import GroupSpec
from batchsweep.store.store import GroupStatus, Store, create_store, open_store

__all__ = [
    "Corpus",
    "CorpusWriter",
    "Fault",
    "GroupReader",
    "GroupSpec",
    "GroupStatus",
    "GroupWriter",
    "Store",
    "convert",
    "create_store",
    "digest_of",
    "open_store",
    "repair",
    "verify",
]
