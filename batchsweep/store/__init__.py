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

from batchsweep.store.convert import convert as convert
from batchsweep.store.corpus import Corpus as Corpus
from batchsweep.store.corpus import CorpusWriter as CorpusWriter
from batchsweep.store.corpus import digest_of as digest_of
from batchsweep.store.group_reader import GroupReader as GroupReader
from batchsweep.store.group_writer import GroupWriter as GroupWriter
from batchsweep.store.integrity import Fault as Fault
from batchsweep.store.integrity import repair as repair
from batchsweep.store.integrity import verify as verify
from batchsweep.store.spec import GroupSpec as GroupSpec
from batchsweep.store.store import GroupStatus as GroupStatus
from batchsweep.store.store import Store as Store
from batchsweep.store.store import create_store as create_store
from batchsweep.store.store import open_store as open_store
