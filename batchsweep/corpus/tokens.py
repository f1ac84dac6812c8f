"""From texts to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from batchsweep.corpus.lookup import Rows
from batchsweep.errors import IndexFailed, TryAgain, first_line
from batchsweep.store import Corpus


def load_tokenizer(model: str, revision: str, *, trust_remote_code: bool = False) -> Any:
    """A checkpoint's tokenizer.

    Args:
        model: Hub repo id or local directory.
        revision: branch, tag or commit; of a local directory, the sub-directory (``main`` may be
            the directory itself).

    Raises:
        IndexFailed: there is none, it is damaged, or it has no vocabulary.
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
        found = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code, **where)
    except Exception as error:
        # transformers lets every kind of error through, from KeyError to tokenizers' own.
        reason = first_line(error).rstrip(":")
        if "couldn't connect" in str(error) or "Connection" in type(error).__name__:
            raise TryAgain(f"tokenizer of {model}@{revision}: {reason}") from None
        raise IndexFailed(
            f"tokenizer of {model}@{revision}: {reason}; is there a tokenizer.json that is whole?"
        ) from error
    # Without its files, transformers makes one up that turns every text into nothing.
    if set(found.get_vocab().values()) <= set(found.all_special_ids):
        raise IndexFailed(
            f"tokenizer of {model}@{revision}: it has no vocabulary, every text would be empty; "
            "add the tokenizer.json that the model was trained with"
        )
    return found


def tokenize(
    tokenizer: Any, texts: Sequence[str], max_length: int
) -> tuple[list[npt.NDArray[np.int32]], int]:
    """Token ids of each text, cut to ``max_length``; and how many texts were cut.

    A text that the tokenizer has no tokens for (``""``, with many decoders') is its end-of-text
    token; without such a token it stays empty, and the forward pass takes the model's.
    """
    encoded = tokenizer(
        list(texts),
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    try:
        ids = [np.asarray(one or end, np.int32) for one in encoded["input_ids"]]
    except OverflowError:
        raise IndexFailed(
            "the tokenizer gives token ids of 2^31 or more; is its tokenizer.json damaged?"
        ) from None
    if encoded.encodings is None:  # a tokenizer without a fast form: full may be cut or just fit
        return ids, sum(len(one) >= max_length for one in ids)
    return ids, sum(bool(one.overflowing) for one in encoded.encodings)


def is_unknown(tokenizer: Any, ids: npt.NDArray[np.int32], prefix: Sequence[int]) -> bool:
    """Whether nothing of a text reached its tokens: behind the prefix's, none knows a word."""
    own = ids[_shared(ids, np.asarray(prefix, np.int32)) :]
    return set(own.tolist()) <= set(tokenizer.all_special_ids)


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
            lengths[i] = max(lengths[i], _shared(ids, wanted))
    return lengths


def _shared(ids: npt.NDArray[np.int32], prefix: npt.NDArray[np.int32]) -> int:
    """How many leading tokens both have."""
    n = min(len(ids), len(prefix))
    differing = np.flatnonzero(ids[:n] != prefix[:n])
    return int(differing[0]) if differing.size else n
