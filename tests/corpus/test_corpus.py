"""The corpus holds each text that tasks will ask for once, with its token ids."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring import KEY, LiveEncoder, fill, live_score, local_tasks, store_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from batchsweep.config import CorpusConfig, EmbeddingConfig
from batchsweep.corpus.lookup import TextIndex
from batchsweep.corpus.tokens import load_tokenizer, prefix_lengths, tokenize
from batchsweep.corpus.write import write_corpus
from batchsweep.errors import ConfigError, IndexFailed, StoreError, StoreMismatch
from batchsweep.store import create_store, digest_of
from batchsweep.tasks.evaluators.caps import stratified
from batchsweep.tasks.local import from_columns


def tokenizer(words: str = "river stone cloud maple engine") -> Any:
    vocabulary = {w: i for i, w in enumerate(["[UNK]", *words.split()])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")


def write(
    path: Path, tasks: list[Any], tokenizers: dict[str, Any] | None = None, **more: Any
) -> Any:
    store = create_store(path)
    settings = {"embedding": EmbeddingConfig(), "corpus": CorpusConfig(), **more}
    return store, write_corpus(store, tasks, tokenizers or {}, **settings)


def test_every_text_that_encode_gets_is_there_once(tmp_path: Path) -> None:
    store, summary = write(tmp_path / "x.zarr", local_tasks())
    corpus = store.corpus()
    texts = corpus.texts()
    assert len(texts) == len(set(texts)) == summary.texts
    everything = set()
    for task in local_tasks():
        encoder = LiveEncoder()
        live_score(task, encoder)
        asked = set(encoder.texts)
        rows = corpus.rows_of(task.metadata.name)
        assert {texts[row] for row in rows} == asked
        assert summary.tasks[task.metadata.name] == len(asked)
        everything |= asked
    assert set(texts) == everything
    assert summary.asked > summary.texts
    # Rows of a task lie together, but for texts that an earlier task had.
    assert (np.diff(corpus.rows_of("sts")) == 1).all()


def test_tokens_are_the_tokenizer_s(tmp_path: Path) -> None:
    tokenizers = {"one": tokenizer(), "two": tokenizer("stone cloud")}
    store, summary = write(
        tmp_path / "x.zarr",
        local_tasks("sts", "pairs"),
        tokenizers,
        embedding=EmbeddingConfig(max_length=2),
    )
    corpus = store.corpus()
    texts = corpus.texts()
    for key, one in tokenizers.items():
        ids, offsets = corpus.tokens(key)
        for row in range(0, len(texts), 7):
            expected = one(texts[row], truncation=True, max_length=2)["input_ids"]
            assert ids[offsets[row] : offsets[row + 1]].tolist() == expected
        assert summary.tokens[key] == len(ids)
        assert summary.cut[key] == sum(len(t.split()) > 2 for t in texts)


def test_empty_and_strange_texts(tmp_path: Path) -> None:
    strange = [
        "",
        " ",
        "x" * 100_000,
        "line\nbreak\t",
        "\N{SNOWMAN} é \U0001f600",
        "e\u0301",
        "river",
    ]
    columns = {"sentence1": strange, "sentence2": [*strange[1:], "é"], "score": range(7)}
    task = from_columns("strange", "sts", columns)
    store, _ = write(tmp_path / "x.zarr", [task], {"one": tokenizer()})
    texts = store.corpus().texts()
    assert set(texts) == {*strange, "é"}
    ids, offsets = store.corpus().tokens("one")
    assert offsets[texts.index("") + 1] == offsets[texts.index("")]
    assert len(ids) == offsets[-1]


def test_the_prefix_is_part_of_every_text(tmp_path: Path) -> None:
    embedding = EmbeddingConfig(prefix="river stone ")
    store, _ = write(
        tmp_path / "x.zarr", local_tasks("sts"), {"one": tokenizer()}, embedding=embedding
    )
    corpus = store.corpus()
    assert all(text.startswith("river stone ") for text in corpus.texts())
    ids, offsets = corpus.tokens("one")
    each = [ids[a:b] for a, b in pairwise(offsets)]
    assert prefix_lengths(corpus, "one", each).min() == 2
    assert prefix_lengths(corpus, "one", [np.array([1, 4]), np.array([1])]).tolist() == [1, 1]


def test_writing_the_same_corpus_again_does_nothing(tmp_path: Path) -> None:
    store, first = write(tmp_path / "x.zarr", local_tasks("sts", "pairs"), {"one": tokenizer()})
    fill(store)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "x.zarr" / "corpus").rglob("*")}
    _, again = write(tmp_path / "x.zarr", local_tasks("sts", "pairs"), {"one": tokenizer()})
    assert again == first
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "x.zarr" / "corpus").rglob("*")}


def test_a_new_tokenizer_keeps_the_rows(tmp_path: Path) -> None:
    store, first = write(tmp_path / "x.zarr", local_tasks("sts", "pairs"), {"one": tokenizer()})
    fill(store)
    both = {"one": tokenizer(), "two": tokenizer("stone")}
    # Even if the config names the tasks in another order.
    store, again = write(tmp_path / "x.zarr", local_tasks("sts", "pairs")[::-1], both)
    assert again.digest == first.digest
    assert store.corpus().tokenizers() == ["one", "two"]


@pytest.mark.parametrize("lost", [False, True])
def test_embeddings_of_an_older_version_keep_their_rows(
    lost: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = local_tasks("sts", "pairs")
    with monkeypatch.context() as older:
        older.setattr(
            "batchsweep.corpus.write.ordered", lambda tasks, lengths: np.arange(len(lengths))
        )
        store, first = write(tmp_path / "x.zarr", tasks, {"one": tokenizer()})
    fill(store)
    if lost:
        store.backend.drop_corpus()
    both = {"one": tokenizer(), "two": tokenizer("stone")}
    store, again = write(tmp_path / "x.zarr", tasks, both)
    assert again.digest == first.digest
    new, now = write(tmp_path / "new.zarr", tasks, both)
    assert now.digest != first.digest and sorted(new.corpus().texts()) == sorted(
        store.corpus().texts()
    )


def test_data_that_changed_are_no_corpus_of_the_embeddings(tmp_path: Path) -> None:
    store, _ = write(tmp_path / "x.zarr", local_tasks("sts", "pairs"))
    fill(store)
    store.backend.drop_corpus()
    with pytest.raises(StoreMismatch, match="the tasks' data have changed since the embeddings"):
        write(tmp_path / "x.zarr", local_tasks("pairs", "classes"))


def test_other_tasks_do_not_replace_a_corpus_that_has_embeddings(tmp_path: Path) -> None:
    store, first = write(tmp_path / "x.zarr", local_tasks("sts", "pairs"))
    write(tmp_path / "x.zarr", local_tasks("sts", "pairs", "classes"))  # nothing is lost yet
    store, first = write(tmp_path / "x.zarr", local_tasks("sts", "pairs"))
    fill(store)
    for tasks, settings, message in (
        (local_tasks("sts", "pairs", "classes"), {}, "tasks added: classes"),
        (local_tasks("sts"), {}, "tasks removed: pairs"),
        (
            local_tasks("sts", "pairs"),
            {"embedding": EmbeddingConfig(prefix="q: ")},
            "prefix was '', is 'q: '",
        ),
        (
            local_tasks("sts", "pairs"),
            {"embedding": EmbeddingConfig(max_length=9)},
            "max_length was 512, is 9",
        ),
        (
            local_tasks("sts", "pairs"),
            {"corpus": CorpusConfig(max_texts_per_task=30)},
            "max_texts_per_task was None, is 30",
        ),
    ):
        with pytest.raises(StoreMismatch, match=message):
            write(tmp_path / "x.zarr", tasks, **settings)
    assert store.corpus().digest == first.digest


def test_a_failed_write_leaves_no_corpus(tmp_path: Path) -> None:
    class Broken:
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("tokenizer broke")

    store = create_store(tmp_path / "x.zarr")
    with pytest.raises(RuntimeError, match="tokenizer broke"):
        write_corpus(
            store,
            local_tasks("sts"),
            {"one": Broken()},
            embedding=EmbeddingConfig(prefix="a"),
            corpus=CorpusConfig(),
        )
    assert store.corpus() is None
    with pytest.raises(StoreError, match="no corpus; run 'batchsweep prepare'"):
        TextIndex.of(store)


def test_text_index() -> None:
    texts = [f"text {i}" for i in range(1000)]
    digests = np.frombuffer(b"".join(map(digest_of, texts)), np.uint8).reshape(-1, 16).copy()
    index = TextIndex(digests, "", "here")
    order = np.random.default_rng(0).permutation(1000)
    assert (index.rows([texts[i] for i in order], task="t") == order).all()
    assert index.rows([], task="t").tolist() == []
    for missing in ("text 1000", ""):
        with pytest.raises(StoreError, match="task 't' asks for 1 texts"):
            index.rows([texts[0], missing], task="t")


def test_text_index_where_half_a_digest_is_equal() -> None:
    texts = ["a", "b", "c"]
    digests = np.frombuffer(b"".join(map(digest_of, texts)), np.uint8).reshape(-1, 16).copy()
    # Three more rows that share their first eight bytes with "b", before and after it in order.
    twins = np.repeat(digests[1:2], 3, axis=0)
    twins[:, 8:] = np.array([[0] * 8, [255] * 8, [1] * 8], np.uint8)
    index = TextIndex(np.concatenate([twins, digests]), "", "here")
    assert index.rows(["b", "a", "c"], task="t").tolist() == [4, 3, 5]


def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    import tracemalloc

    peaks = []
    for n in (20_000, 60_000):
        rows = {"sentence1": [f"{i} " + "word " * 100 for i in range(n)], "sentence2": ["x"] * n}
        task = from_columns("big", "sts", {**rows, "score": [i % 5 for i in range(n)]})
        del rows
        tracemalloc.start()
        write(tmp_path / f"{n}.zarr", [task])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # 40,000 more of these texts are 20 MB as strings; a digest and a row each are 6 MB.
    assert peaks[1] - peaks[0] < 12e6


def test_tokenizers_are_loaded_from_a_revision(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path / "model" / "step1")
    loaded = load_tokenizer(str(tmp_path / "model"), "step1")
    assert tokenize(loaded, ["river cloud"], 512)[0][0].tolist() == [1, 3]
    (tmp_path / "empty").mkdir()
    with pytest.raises(IndexFailed, match=r"tokenizer of .*empty@main"):
        load_tokenizer(str(tmp_path / "empty"), "main")


@pytest.mark.parametrize("text", ['{"version": ', "{}", '"x"', "[]", "null"])
def test_a_damaged_tokenizer_is_refused(tmp_path: Path, text: str) -> None:
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(IndexFailed, match=r"is there a tokenizer\.json that is whole"):
        load_tokenizer(str(tmp_path), "main")


@pytest.mark.parametrize("prefix", ["", "river "])
def test_texts_that_a_tokenizer_does_not_know_are_counted(tmp_path: Path, prefix: str) -> None:
    texts = ["river", "qq", "qq zz", "", "  ", "stone zz"]
    columns = {"sentence1": texts, "sentence2": texts, "score": range(6)}
    task = from_columns("strange", "sts", columns)
    embedding = EmbeddingConfig(prefix=prefix)
    for tokenizers in ({"one": tokenizer()}, {"one": tokenizer(), "two": tokenizer()}):
        # The second time, for the new tokenizer, all are counted again.
        _, summary = write(tmp_path / "x.zarr", [task], tokenizers, embedding=embedding)
        assert summary.unknown == dict.fromkeys(tokenizers, 2)
    foreign = {"one": tokenizer("river"), "two": tokenizer("moss")}
    texts = ["zz", "qq", "qq zz", "", "  "]
    columns = {"sentence1": texts, "sentence2": texts, "score": range(5)}
    with pytest.raises(IndexFailed, match="knows nothing of any of the 3 texts"):
        write(
            tmp_path / "y.zarr",
            [from_columns("strange", "sts", columns)],
            foreign,
            embedding=embedding,
        )


def test_stratified_keeps_shares_and_every_label() -> None:
    import random

    labels = ["a"] * 80 + ["b"] * 18 + ["c"] * 2
    chosen = stratified(labels, 20, random.Random(1))
    kept = [labels[i] for i in chosen]
    assert len(set(chosen)) == 20 and chosen == sorted(chosen)
    assert (kept.count("a"), kept.count("b"), kept.count("c")) == (16, 3, 1)
    assert chosen == stratified(labels, 20, random.Random(1))
    assert chosen != stratified(labels, 20, random.Random(2))
    assert len(stratified(labels, 2, random.Random(1))) == 2
    assert stratified(labels, 500, random.Random(1)) == list(range(100))


def test_a_class_that_cannot_be_capped(tmp_path: Path) -> None:
    from mteb.mocks.mock_tasks import MockTextZeroShotClassificationTask

    with pytest.raises(ConfigError, match=r"MockTextZeroShotClassification.* can't be capped"):
        store_of(
            tmp_path / "x.zarr",
            [MockTextZeroShotClassificationTask()],
            corpus=CorpusConfig(max_texts_per_task=10),
        )


def test_no_texts_at_all(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no texts"):
        write(tmp_path / "x.zarr", [])
    assert KEY not in create_store(tmp_path / "x.zarr").keys()  # noqa: SIM118 - a store is no dictionary


def test_a_text_without_tokens_is_the_tokenizers_end_of_text() -> None:
    with_end = tokenizer()
    with_end.add_special_tokens({"eos_token": "<end>"})
    ids, cut = tokenize(with_end, ["", "river"], 8)
    assert ids[0].tolist() == [with_end.eos_token_id] and cut == 0
    ids, _ = tokenize(tokenizer(), ["", "river"], 8)
    assert len(ids[0]) == 0 and len(ids[1]) == 1, "the forward pass takes the model's"
