"""From tasks to the corpus: unique texts, their digests, task -> rows, token ids per tokenizer.

A text's key is what the model gets to see: what mteb's ``encode`` receives, with the configured
prefix (by prompt type, if it is so configured) in front. Texts are shared between tasks. Token ids
are computed here, once for every tokenizer, because all checkpoints of a suite share them and a
GPU machine should neither tokenise nor load data sets.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from batchsweep.config import CorpusConfig, EmbeddingConfig
from batchsweep.errors import IndexFailed, StoreError, StoreMismatch, TryAgain
from batchsweep.progress import progress
from batchsweep.store.corpus import CorpusWriter, digest_of

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

    from batchsweep.store import Corpus, Store

logger = logging.getLogger(__name__)

Rows = npt.NDArray[np.int64]
Prefix = str | Mapping[Any, str]

#: Texts that are looked up, tokenised and written at once.
CHUNK = 4096


def prefix_of(prefix: Prefix, prompt_type: str | None) -> str:
    """What stands before a text of this prompt type (``query``, ``document`` or None)."""
    return prefix if isinstance(prefix, str) else prefix.get(prompt_type or "", "")


# Tokenizers


def load_tokenizer(model: str, revision: str, *, trust_remote_code: bool = False) -> Any:
    """A checkpoint's tokenizer.

    Args:
        model: Hub repo id or local directory.
        revision: branch, tag or commit; of a local directory, the sub-directory (``main`` may be
            the directory itself).

    Raises:
        IndexFailed: there is none.
        TryAgain: the Hub can't be reached.
    """
    from pathlib import Path

    from transformers import AutoTokenizer

    where: dict[str, Any] = {"revision": revision}
    path = Path(model)
    if path.is_dir():
        where = {}
        path = path / revision if (path / revision).is_dir() else path
        model = str(path)
    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code, **where)
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(":")
        if "couldn't connect" in str(error) or "Connection" in type(error).__name__:
            raise TryAgain(f"tokenizer of {model}@{revision}: {reason}") from None
        raise IndexFailed(
            f"tokenizer of {model}@{revision}: {reason}; is there a tokenizer.json that is whole?"
        ) from None


def tokenize(
    tokenizer: Any, texts: Sequence[str], max_length: int
) -> tuple[list[npt.NDArray[np.int32]], int]:
    """Token ids of each text, cut to ``max_length``; and how many texts were cut."""
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    ids = [np.asarray(one, np.int32) for one in encoded["input_ids"]]
    if encoded.encodings is None:  # a tokenizer without a fast form: full may be cut or just fit
        return ids, sum(len(one) >= max_length for one in ids)
    return ids, sum(bool(one.overflowing) for one in encoded.encodings)


def prefix_lengths(
    corpus: Corpus, tokenizer: str, token_ids: Sequence[npt.NDArray[np.int32]]
) -> Rows:
    """How many leading tokens of each text are the configured prefix's, int64 [text].

    A tokenizer may merge the prefix's last token with the text's first; a token that is not the
    prefix's own counts as the text's.
    """
    prefixes = corpus.attributes["prefix_tokens"].get(tokenizer, [])
    lengths = np.zeros(len(token_ids), np.int64)
    for prefix in prefixes:
        wanted = np.asarray(prefix, np.int32)
        for i, ids in enumerate(token_ids):
            n = min(len(ids), len(wanted))
            differing = np.flatnonzero(ids[:n] != wanted[:n])
            lengths[i] = max(lengths[i], int(differing[0]) if differing.size else n)
    return lengths


# Looking texts up


class TextIndex:
    """Text -> corpus row, by digest."""

    def __init__(self, digests: npt.NDArray[np.uint8], prefix: Prefix, where: str) -> None:
        self.prefix = prefix
        self._where = where
        halves = np.ascontiguousarray(digests).view(">u8").astype(np.uint64)
        self._order = np.lexsort((halves[:, 1], halves[:, 0]))
        self._halves = halves[self._order]

    @classmethod
    def of(cls, store: Store) -> TextIndex:
        """The index of a store's corpus.

        Raises:
            StoreError: the store has no corpus.
        """
        corpus = store.corpus()
        if corpus is None:
            raise StoreError(f"{store.url}: no corpus; run 'batchsweep prepare'")
        return cls(corpus.digests(), corpus.attributes.get("prefix", ""), store.url)

    def rows(self, texts: Sequence[str], *, task: str) -> Rows:
        """The corpus row of each text.

        Raises:
            StoreError: a text is not in the corpus; names the task and the remedy.
        """
        if not texts:
            return np.empty(0, np.int64)
        digests = np.frombuffer(b"".join(map(digest_of, texts)), np.uint8)
        wanted = digests.view(">u8").astype(np.uint64).reshape(-1, 2)
        place = np.searchsorted(self._halves[:, 0], wanted[:, 0])
        found = self._matches(place, wanted)
        # Digests that agree in their first half are a chance in 10^7 for a million texts.
        for i in np.flatnonzero(~found):
            while place[i] < len(self._halves) and self._halves[place[i], 0] == wanted[i, 0]:
                if self._halves[place[i], 1] == wanted[i, 1]:
                    found[i] = True
                    break
                place[i] += 1
        if not found.all():
            missing = texts[int(np.flatnonzero(~found)[0])]
            shown = missing if len(missing) <= 40 else missing[:37] + "..."
            raise StoreError(
                f"{self._where}: task '{task}' asks for {int((~found).sum())} texts that are not "
                f"in the corpus, such as {shown!r}; add the task to the config and run "
                "'batchsweep prepare' with a new store.path"
            )
        return self._order[place].astype(np.int64, copy=False)

    def _matches(
        self, place: npt.NDArray[np.intp], wanted: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.bool_]:
        inside = place < len(self._halves)
        found = np.zeros(len(place), bool)
        found[inside] = (self._halves[place[inside]] == wanted[inside]).all(axis=1)
        return found


# Writing the corpus


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
    number of texts.

    Args:
        store: where to; embeddings that are there must be of the same texts.
        tasks: mteb tasks; their data are loaded here.
        tokenizers: tokenizer key (of the plan) -> tokenizer.
        embedding: ``prefix`` and ``max_length`` are used.
        corpus: the caps.

    Raises:
        StoreMismatch: the store has embeddings of other texts; says what differs.
        TryAgain: another process writes the corpus.
        ConfigError: a task that can't be capped.
    """
    origin = _origin(tasks, embedding, corpus)
    there = store.corpus()
    if there is not None:
        same = there.attributes.get("origin") == origin
        if same and set(tokenizers) <= set(there.tokenizers()):
            return _summary(there)
        if not same and store.keys():
            raise StoreMismatch(_differences(store, there.attributes.get("origin", {}), origin))
        if same:  # for new tokenizers: the same rows again
            place = {name: i for i, name in enumerate(there.tasks())}
            tasks = sorted(tasks, key=lambda task: place[task.metadata.name])
    with store.corpus_writer() as writer:
        recorder = _Recorder(writer, tokenizers, embedding)
        with progress("texts of tasks", total=len(tasks), unit="tasks") as bar:
            for task in tasks:
                recorder.add(task, corpus)
                bar.advance()
        if not recorder.rows:
            raise StoreError("tasks: they ask for no texts at all")
        writer.finish(
            {
                "origin": origin,
                "prefix": _plain(embedding.prefix),
                "prefix_tokens": recorder.prefix_tokens(),
                "asked": recorder.asked,
                "task_texts": recorder.task_texts,
                "tokens": recorder.tokens,
                "cut": recorder.cut,
                "capped": recorder.capped,
            }
        )
    written = store.corpus()
    assert written is not None
    return _summary(written)


class _Recorder:
    """Puts what tasks ask for into the corpus, task by task."""

    def __init__(
        self, writer: CorpusWriter, tokenizers: Mapping[str, Any], embedding: EmbeddingConfig
    ) -> None:
        self._writer = writer
        self._tokenizers = tokenizers
        self._embedding = embedding
        self.rows: dict[bytes, int] = {}
        self.asked = 0
        self.task_texts: dict[str, int] = {}
        self.tokens = dict.fromkeys(tokenizers, 0)
        self.cut = dict.fromkeys(tokenizers, 0)
        self.capped: list[str] = []

    def add(self, task: AbsTask, corpus: CorpusConfig) -> None:
        from batchsweep.prepared import prepare

        prepared = prepare(task, corpus)
        if prepared.cap is not None:
            self.capped.append(prepared.name)
        mine: list[Rows] = []
        with progress(prepared.name, total=sum(map(len, prepared.requests)), unit="texts") as bar:
            for request in prepared.requests:
                prefix = prefix_of(self._embedding.prefix, request.prompt_type)
                mine.extend(self._add(texts) for texts in request.chunks(prefix, CHUNK))
                self.asked += len(request)
                bar.advance(len(request))
        rows = np.unique(np.concatenate(mine)) if mine else np.empty(0, np.int64)
        self.task_texts[prepared.name] = len(rows)
        self._writer.add_task(prepared.name, rows)

    def _add(self, texts: list[str]) -> Rows:
        rows = np.empty(len(texts), np.int64)
        new = []
        for i, text in enumerate(texts):
            known = len(self.rows)
            rows[i] = self.rows.setdefault(digest_of(text), known)
            if rows[i] == known:
                new.append(text)
        self._writer.add_texts(new)
        for key, tokenizer in self._tokenizers.items():
            if new:
                ids, cut = tokenize(tokenizer, new, self._embedding.max_length)
                self._writer.add_tokens(key, ids)
                self.tokens[key] += sum(map(len, ids))
                self.cut[key] += cut
        return rows

    def prefix_tokens(self) -> dict[str, list[list[int]]]:
        """Tokenizer -> the token ids of each prefix."""
        prefix = self._embedding.prefix
        different = [prefix] if isinstance(prefix, str) else list(prefix.values())
        found = {}
        for key, tokenizer in self._tokenizers.items():
            ids = [tokenize(tokenizer, [p], self._embedding.max_length)[0][0] for p in different]
            found[key] = [one.tolist() for one in ids if len(one)]
        return found


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
        capped=tuple(kept["capped"]),
        digest=corpus.digest,
    )
