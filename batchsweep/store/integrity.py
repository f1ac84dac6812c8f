"""Find what is damaged in a store, and take it away so that the next run makes it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from batchsweep.errors import StoreCorrupt, StoreError
from batchsweep.progress import progress
from batchsweep.store.corpus import Corpus
from batchsweep.store.format import Format, spec_of
from batchsweep.store.seals import is_sealed_by
from batchsweep.store.spec import GroupSpec
from batchsweep.store.store import Store

Kind = Literal["document", "corpus", "no corpus", "group", "metadata", "block", "metrics"]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and where."""

    kind: Kind
    """What is damaged; decides what :func:`repair` does."""
    message: str
    """What and where, in one line."""
    path: str = ""
    """Of a document."""
    key: str = ""
    """Checkpoint."""
    block: int = -1
    """Of a block."""

    @property
    def remedy(self) -> str:
        """What :func:`repair` does about it, and what makes it again."""
        return {
            "document": "is removed; the command that made it makes it again",
            "corpus": "is removed; 'batchsweep prepare' makes it again",
            "no corpus": "'batchsweep prepare' makes it again",
            "group": "is removed; 'batchsweep extract' makes it again",
            "metadata": "is written again",
            "block": "is dropped; 'batchsweep extract' makes it again",
            "metrics": "are removed; 'batchsweep extract' makes them again",
        }[self.kind]


def verify(store: Store, *, expected: Mapping[str, Mapping[str, Any]] | None = None) -> list[Fault]:
    """Read everything and check it: checksums, seals, digests, shapes, NaN and infinities.

    Blocks that aren't sealed yet are no fault: see :meth:`Store.status`.

    Args:
        expected: provenance that the groups of some keys must have, such as
            ``{key: {"config_digest": ...}}`` from the plan.
    """
    fmt = store.backend
    faults = _documents(store)
    corpus: Corpus | None = None
    try:
        corpus = store.corpus()
        if corpus is not None:
            damaged = corpus.verify()
            faults += [Fault("corpus", f"corpus/{name}: {what}") for name, what in damaged]
    except StoreCorrupt as error:
        faults.append(Fault("corpus", _what(error)))
    keys = fmt.keys()
    faults += [
        Fault("group", f"{fmt.folder(key)} is missing", key=key)
        for key in sorted(set(fmt.noted_keys()) - set(keys))
    ]
    specs: dict[str, tuple[GroupSpec, bool]] = {}
    for key in keys:
        try:
            there = spec_of(fmt, key)
        except StoreError as error:
            # Corrupt attributes, or (by a changed value) ones that no group can have.
            faults.append(_attribute_fault(fmt, key, _what(error)))
            continue
        if there is not None:
            specs[key] = there
        elif fmt.has_seals(key):
            # Without seals, it is a group that a killed writer had only begun to make.
            faults.append(_attribute_fault(fmt, key, f"{fmt.folder(key)} has no attributes"))
    claims = (spec.provenance.get("corpus_digest") for spec, _ in specs.values())
    if corpus is None and not any(f.kind == "corpus" for f in faults) and any(claims):
        faults.append(Fault("no corpus", "corpus is missing, whose texts the embeddings are of"))
    total = sum(spec.blocks for spec, _ in specs.values())
    with progress("verify", total=total, unit="blocks") as bar:
        for key, (spec, complete) in specs.items():
            faults += _group(fmt, key, spec, complete, corpus, (expected or {}).get(key, {}))
            bar.advance(spec.blocks)
    return faults


def repair(store: Store, faults: list[Fault]) -> None:
    """Take away what is damaged, and write metadata again that follows from the rest.

    What is sound stays. Afterwards :func:`verify` finds nothing but a corpus that is missing, and
    the commands that made the damaged parts make them again.

    Raises:
        TryAgain: a checkpoint with a fault is being written.
    """
    fmt = store.backend
    store.backend.blobs.clean_abandoned()
    for fault in faults:
        if fault.kind == "document":
            store.delete_json(fault.path)
        elif fault.kind == "no corpus":
            continue
        elif fault.kind == "corpus":
            with store.backend.blobs.lease("corpus"):
                fmt.drop_corpus()
        else:
            with store.backend.blobs.lease(fmt.folder(fault.key)):
                _repair_group(fmt, fault)


def _repair_group(fmt: Format, fault: Fault) -> None:
    key = fault.key
    if fault.kind == "group":
        fmt.drop_group(key)
        return
    try:
        there = spec_of(fmt, key)
    except StoreError:
        there = None
    if there is None:
        spec = fmt.recover_spec(key)
        if spec is None:
            fmt.drop_group(key)
            return
        fmt.restore_metadata(key, spec)
        # Whether it was complete isn't known: the next extract finds out, and seals stay.
        return
    spec, complete = there
    if fault.kind == "metadata":
        fmt.restore_metadata(key, spec)
        fmt.mark(key, spec, complete=complete)
        return
    fmt.mark(key, spec, complete=False)
    if fault.kind == "metrics":
        fmt.drop_metrics(key)
    else:
        fmt.drop_block(key, spec, fault.block)


def _what(error: StoreError) -> str:
    """What is wrong, without the remedy for other commands, which is to come here."""
    return str(error).partition("; run 'batchsweep verify")[0]


def _documents(store: Store) -> list[Fault]:
    faults = []
    for path in store.documents():
        try:
            store.read_json(path)
        except StoreCorrupt as error:
            faults.append(Fault("document", _what(error), path=path))
    return faults


def _attribute_fault(fmt: Format, key: str, message: str) -> Fault:
    # With a copy of the attributes, sealed blocks can be kept.
    kind: Kind = "group" if fmt.recover_spec(key) is None else "metadata"
    return Fault(kind, message, key=key)


def _group(
    fmt: Format,
    key: str,
    spec: GroupSpec,
    complete: bool,
    corpus: Corpus | None,
    expected: Mapping[str, Any],
) -> list[Fault]:
    folder = fmt.folder(key)
    if foreign := _foreign(spec, corpus, expected):
        return [Fault("group", f"{folder} {foreign}", key=key)]
    faults = []
    try:
        metrics = fmt.metrics(key, spec)
        count = (fmt.attributes(key) or {}).get("metric_count")
        if complete and len(metrics) != count:
            faults.append(Fault("metrics", f"{folder}: some of {count} metrics miss", key=key))
    except StoreCorrupt as error:
        faults.append(Fault("metrics", _what(error), key=key))
    try:
        if not faults:
            faults += [Fault("metadata", f, key=key) for f in fmt.metadata_faults(key, spec)]
        seals = fmt.seals(key, spec)
        absent = fmt.missing(key, spec)
    except StoreCorrupt as error:
        return [Fault("group", _what(error), key=key)]

    def one(block: int) -> Fault | None:
        what = _block(fmt, key, spec, block, seals[block], block in absent)
        return None if what is None else Fault("block", what, key=key, block=block)

    faults += [f for f in fmt.blobs.map(one, sorted(seals)) if f is not None]
    if complete:
        faults += [
            Fault("block", f"{folder}: block {block}: its seal is missing", key=key, block=block)
            for block in sorted(set(range(spec.blocks)) - seals.keys())
        ]
    return faults


def _foreign(spec: GroupSpec, corpus: Corpus | None, expected: Mapping[str, Any]) -> str:
    """What shows that a group is of another corpus or sweep; empty if nothing does."""
    wanted = dict(expected)
    if corpus is not None:
        wanted.setdefault("corpus_digest", corpus.digest)
        if spec.texts != corpus.n_texts:
            return f"has {spec.texts} texts, the corpus {corpus.n_texts}"
    for name, value in wanted.items():
        # A spec without this provenance makes no claim about it.
        there = spec.provenance.get(name, value)
        if there != value:
            return f"was made from something else: {name} is {there}, not {value}"
    return ""


def _block(
    fmt: Format, key: str, spec: GroupSpec, block: int, seal: bytes, absent: bool
) -> str | None:
    """What is wrong with a sealed block."""
    where = f"{fmt.folder(key)}: block {block}"
    if not seal:
        return f"{where}: its seal is torn or changed"
    if seal[: len(spec.digest)] != spec.digest:
        return f"{where}: its seal is stale (another config, corpus or weights)"
    if absent:
        return f"{where}: its bytes are missing or cut short"
    checksums = []
    try:
        for name in spec.arrays:
            for position, (values, checksum) in enumerate(fmt.chunks(key, spec, name, block)):
                checksums.append(checksum)
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    return f"{where}: {name}, layer {spec.layers[position]}: NaN or infinite"
    except StoreCorrupt as error:
        return f"{where}: {_what(error)}"
    if not is_sealed_by(seal, key, spec, block, checksums):
        return f"{where}: its bytes are not the ones that were sealed"
    return None
