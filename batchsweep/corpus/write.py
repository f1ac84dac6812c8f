"""From tasks to the corpus: unique texts, their digests, task -> rows, token ids per tokenizer.

A text's key is what the model gets to see: what mteb's ``encode`` receives, with the configured
prefix (by prompt type, if it is so configured) in front. Texts are shared between tasks. Token ids
are computed here, once for every tokenizer, because all checkpoints of a suite share them and a
GPU machine should neither tokenise nor load data sets.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchsweep.config import CorpusConfig, EmbeddingConfig
from batchsweep.corpus.lookup import CHUNK, Prefix, Rows, prefix_of
from batchsweep.corpus.order import ordered
from batchsweep.corpus.spool import Spool
from batchsweep.corpus.tokens import is_unknown, tokenize
from batchsweep.errors import IndexFailed, StoreError, StoreMismatch
from batchsweep.progress import progress
from batchsweep.store.corpus import CorpusWriter, digest_of
from batchsweep.store.corpus_attributes import DIGEST_BYTES

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from batchsweep.store import Corpus, Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """What a corpus holds."""

    texts: int
    """Unique texts: rows."""
    asked: int
    """Texts that the tasks ask for, repeats included."""
    tasks: dict[str, int]
    """Task -> its unique texts."""
    tokens: dict[str, int]
    """Tokenizer -> tokens of all texts."""
    cut: dict[str, int]
    """Tokenizer -> texts that were longer than ``max_length``."""
    unknown: dict[str, int]
    """Tokenizer -> texts, blank ones aside, of which it knows nothing: they all look alike."""
    capped: tuple[str, ...]
    """Tasks that ``max_texts_per_task`` made smaller."""
    digest: str
    """The corpus's digest."""


def write_corpus(
    store: Store,
    tasks: Sequence[AbsTask],
    tokenizers: Mapping[str, Any],
    *,
    embedding: EmbeddingConfig,
    corpus: CorpusConfig,
) -> Summary:
    """Write the corpus of ``tasks`` into the store, unless just that corpus is there already.

    Memory holds one task's data, a digest per unique text and one chunk of texts, whatever the
    number of texts; texts and tokens wait in the temporary folder until all tasks are seen, for
    the order of rows (:func:`~batchsweep.corpus.order.ordered`) depends on who asks for what.

    Args:
        store: where to; embeddings that are there must be of the same texts.
        tokenizers: tokenizer key (of the plan) -> tokenizer.
        embedding: ``prefix`` and ``max_length`` are used.

    Raises:
        StoreMismatch: the store has embeddings of other texts; says what differs.
        TryAgain: another process writes the corpus.
        UsageError: the temporary folder is too small.
        ConfigError: a task that can't be capped.
        IndexFailed: a tokenizer knows nothing of any text.
    """
    origin = _origin(tasks, embedding, corpus)
    there = store.corpus()
    if there is not None:
        same = there.attributes.get("origin") == origin
        if same and set(tokenizers) <= set(there.tokenizers()):
            return _summary(there)
        if not same and store.keys():
            raise StoreMismatch(_differences(store, there.attributes.get("origin", {}), origin))
    if there is not None and there.attributes.get("origin") == origin:
        # For new tokenizers: the same rows again.
        place = {name: i for i, name in enumerate(there.tasks())}
        tasks = sorted(tasks, key=lambda task: place[task.metadata.name])
    known = _known_digest(store)
    with ExitStack() as stack:
        writer = stack.enter_context(store.corpus_writer())
        recorder = _Recorder(stack, tokenizers, embedding)
        with progress("texts of tasks", total=len(tasks), unit="tasks") as bar:
            for task in tasks:
                recorder.add(task, corpus)
                bar.advance()
        if not recorder.rows:
            raise StoreError("tasks: they ask for no texts at all")
        recorder.refuse_a_foreign_tokenizer()
        recorder.write(writer, recorder.order(known, store.url))
        writer.finish(
            {
                "origin": origin,
                "prefix": _plain(embedding.prefix),
                "prefix_tokens": recorder.prefix_tokens(),
                "asked": recorder.asked,
                "task_texts": {name: len(rows) for name, rows in recorder.tasks.items()},
                "tokens": recorder.tokens,
                "cut": recorder.cut,
                "unknown": recorder.unknown,
                "capped": recorder.capped,
                "categories": {t.metadata.name: str(t.metadata.type) for t in tasks},
            }
        )
    return _summary(store.require_corpus())


class _Recorder:
    """Takes what tasks ask for, task by task, then puts it into the corpus in order."""

    def __init__(
        self, stack: ExitStack, tokenizers: Mapping[str, Any], embedding: EmbeddingConfig
    ) -> None:
        self._tokenizers = tokenizers
        self._embedding = embedding
        #: Digest -> number, in the order of first sight; and the rows of each task by these.
        self.rows: dict[bytes, int] = {}
        self.tasks: dict[str, Rows] = {}
        self._texts = stack.enter_context(Spool())
        self._ids = {key: stack.enter_context(Spool()) for key in tokenizers}
        self._lengths: list[Rows] = []
        self.asked = 0
        self.tokens = dict.fromkeys(tokenizers, 0)
        self.cut = dict.fromkeys(tokenizers, 0)
        self.unknown = dict.fromkeys(tokenizers, 0)
        self._not_blank = 0
        self.capped: list[str] = []
        self._prefix_ids: dict[tuple[str, str], list[int]] = {}

    def add(self, task: AbsTask, corpus: CorpusConfig) -> None:
        from batchsweep.tasks.evaluators import prepare_task

        prepared = prepare_task(task, corpus)
        if prepared.cap is not None:
            self.capped.append(prepared.name)
        mine: list[Rows] = []
        with progress(prepared.name, total=sum(map(len, prepared.requests)), unit="texts") as bar:
            for request in prepared.requests:
                prefix = prefix_of(self._embedding.prefix, request.prompt_type)
                mine.extend(self._add(texts, prefix) for texts in request.chunks(prefix, CHUNK))
                self.asked += len(request)
                bar.advance(len(request))
        rows = np.unique(np.concatenate(mine)) if mine else np.empty(0, np.int64)
        self.tasks[prepared.name] = rows

    def order(self, known: str | None, where: str) -> Rows:
        """The rows as they are to be stored, by number.

        Args:
            known: the digest of a corpus that there was, whose rows must come again.

        Raises:
            StoreMismatch: these are not its texts: a task's data have changed.
        """
        order = ordered(list(self.tasks.values()), np.concatenate(self._lengths))
        # Version 0.1.0 stored texts as they came.
        for candidate in (order, np.arange(len(self.rows))):
            if known in (None, self._digest(candidate)):
                return candidate
        raise StoreMismatch(
            f"{where}: the tasks' data have changed since the embeddings there were made; use "
            "another store.path"
        )

    def _digest(self, order: Rows) -> str:
        """The digest that the corpus will have."""
        digests = np.frombuffer(b"".join(self.rows), np.uint8).reshape(-1, DIGEST_BYTES)
        return hashlib.sha256(digests[order].tobytes()).hexdigest()

    def write(self, writer: CorpusWriter, order: Rows) -> None:
        """Put it all into the corpus."""
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        with progress("corpus", total=len(order), unit="texts") as bar:
            for start in range(0, len(order), CHUNK):
                numbers = order[start : start + CHUNK].tolist()
                writer.add_texts([text.decode() for text in self._texts.read(numbers)])
                for key, spool in self._ids.items():
                    ids = [np.frombuffer(one, np.int32) for one in spool.read(numbers)]
                    writer.add_tokens(key, ids)
                bar.advance(len(numbers))
        for name, rows in self.tasks.items():
            writer.add_task(name, np.sort(place[rows]))

    def refuse_a_foreign_tokenizer(self) -> None:
        """A tokenizer that knows no text would give all of them the same vector."""
        for key, count in self.unknown.items():
            if count and count == self._not_blank:
                raise IndexFailed(
                    f"tokenizer {key}: it knows nothing of any of the {count:,} texts; is its "
                    "tokenizer.json the model's own, and are the tasks in its language?"
                )

    def _add(self, texts: list[str], prefix: str) -> Rows:
        rows = np.empty(len(texts), np.int64)
        new = []
        for i, text in enumerate(texts):
            known = len(self.rows)
            rows[i] = self.rows.setdefault(digest_of(text), known)
            if rows[i] == known:
                new.append(text)
        if not new:
            return rows
        self._texts.append([text.encode() for text in new])
        not_blank = [bool(text[len(prefix) :].strip()) for text in new]
        self._not_blank += sum(not_blank)
        # By the texts themselves where there is no tokenizer.
        lengths = [len(text) for text in new]
        for number, (key, tokenizer) in enumerate(self._tokenizers.items()):
            ids, cut = tokenize(tokenizer, new, self._embedding.max_length)
            self._ids[key].append([one.astype(np.int32).tobytes() for one in ids])
            self.tokens[key] += sum(map(len, ids))
            self.cut[key] += cut
            before = self._ids_of(key, prefix)
            self.unknown[key] += sum(
                has_words and is_unknown(tokenizer, one, before)
                for has_words, one in zip(not_blank, ids, strict=True)
            )
            if number == 0:
                lengths = [len(one) for one in ids]
        self._lengths.append(np.array(lengths, np.int64))
        return rows

    def prefix_tokens(self) -> dict[str, list[list[int]]]:
        """Tokenizer -> the token ids of each prefix."""
        prefix = self._embedding.prefix
        different = [prefix] if isinstance(prefix, str) else list(prefix.values())
        found = {}
        for key in self._tokenizers:
            ids = [self._ids_of(key, p) for p in different]
            found[key] = [one for one in ids if one]
        return found

    def _ids_of(self, key: str, prefix: str) -> list[int]:
        """A prefix's tokens."""
        if (key, prefix) not in self._prefix_ids:
            (ids,), _ = tokenize(self._tokenizers[key], [prefix], self._embedding.max_length)
            self._prefix_ids[key, prefix] = ids.tolist()
        return self._prefix_ids[key, prefix]


def _known_digest(store: Store) -> str | None:
    """The digest of the corpus that the embeddings there are of; None if there are none."""
    keys = store.keys()
    for key in keys:
        with suppress(StoreError):  # Damage is for verify to name.
            digest = store.reader(key).provenance.get("corpus_digest")
            if digest is not None:
                return str(digest)
    return None


def _origin(
    tasks: Sequence[AbsTask], embedding: EmbeddingConfig, corpus: CorpusConfig
) -> dict[str, Any]:
    """What decides the texts and their cutting, as plain JSON values."""
    return {
        "tasks": {
            task.metadata.name: {
                "revision": task.metadata.revision,
                "splits": list(task.eval_splits),
                "subsets": list(task.hf_subsets),
                "source": getattr(task, "source_digest", None),
            }
            for task in tasks
        },
        "prefix": _plain(embedding.prefix),
        "max_length": embedding.max_length,
        "max_texts_per_task": corpus.max_texts_per_task,
        "cap_seed": corpus.seed if corpus.max_texts_per_task is not None else None,
    }


def _plain(prefix: Prefix) -> Any:
    return prefix if isinstance(prefix, str) else dict(prefix)


def _differences(store: Store, there: dict[str, Any], now: dict[str, Any]) -> str:
    before, after = there.get("tasks", {}), now["tasks"]
    parts = [
        f"tasks {verb}: {', '.join(names)}"
        for verb, names in (
            ("added", sorted(after.keys() - before.keys())),
            ("removed", sorted(before.keys() - after.keys())),
            ("changed", sorted(n for n in before.keys() & after.keys() if before[n] != after[n])),
        )
        if names
    ]
    parts += [
        f"{name} was {there.get(name)!r}, is {now[name]!r}"
        for name in now
        if name != "tasks" and there.get(name) != now[name]
    ]
    return (
        f"{store.url}: has embeddings of another corpus ({'; '.join(parts)}). Use another "
        "store.path; scoring on some of the tasks needs no new corpus"
    )


def _summary(corpus: Corpus) -> Summary:
    kept = corpus.attributes
    return Summary(
        texts=corpus.n_texts,
        asked=kept["asked"],
        tasks=dict(kept["task_texts"]),
        tokens=dict(kept["tokens"]),
        cut=dict(kept["cut"]),
        unknown=dict(kept.get("unknown", {})),  # stores of version 0.1.0 don't say
        capped=tuple(kept["capped"]),
        digest=corpus.digest,
    )
