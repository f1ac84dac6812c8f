"""Batches: every text once, within the budget, hardly any padding, always the same."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchsweep.forward.batching import (
    MAX_PADDING,
    free_padding,
    make_batches,
    pack_batches,
    packed_tokens,
    pad,
    runs_of,
    split,
)


def padding_of(lengths, batches):
    padded = sum(len(b) * lengths[b].max() for b in batches)
    return 1 - lengths.sum() / padded


#: Tokens of a text in the kinds of corpora that MTEB has: sentences, questions, passages, posts.
DISTRIBUTIONS = {
    "sentences": lambda rng: rng.lognormal(np.log(14), 0.5, 4096),
    "passages": lambda rng: rng.lognormal(np.log(130), 0.6, 4096),
    "posts": lambda rng: rng.lognormal(np.log(200), 1.0, 4096),
    "titles and bodies": lambda rng: np.concatenate(
        [rng.lognormal(np.log(12), 0.4, 2048), rng.lognormal(np.log(300), 0.8, 2048)]
    ),
    "a small block": lambda rng: rng.lognormal(np.log(25), 0.8, 256),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("batch_tokens", [2048, 16384])
def test_padding_is_under_three_per_cent(name, batch_tokens):
    lengths = np.clip(DISTRIBUTIONS[name](np.random.default_rng(0)).astype(int), 1, 512)
    assert padding_of(lengths, make_batches(lengths, batch_tokens)) < 0.03


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("free", [1, 16, 64, 256])
def test_a_batch_has_the_padding_that_is_free_and_there_are_fewer_of_them(name, free):
    lengths = np.clip(DISTRIBUTIONS[name](np.random.default_rng(0)).astype(int), 1, 512)[:256]
    batches = make_batches(lengths, 16384, free)
    for batch in batches:
        padded = len(batch) * lengths[batch].max()
        assert padded - lengths[batch].sum() <= max(MAX_PADDING * padded, free)
    assert len(batches) <= len(make_batches(lengths, 16384))
    # Another batch must have been worth its padding: the next text would have been too much.
    for batch, later in pairwise(batches):
        more = np.r_[batch, later[:1]]
        padded = len(more) * lengths[more].max()
        assert padded > 16384 or padded - lengths[more].sum() > max(MAX_PADDING * padded, free)


def test_wide_models_have_no_free_padding():
    assert [free_padding(n) for n in (8, 64, 128, 512, 1024, 2048)] == [256, 256, 64, 4, 1, 0]


@given(
    st.lists(st.integers(0, 60), max_size=200), st.integers(1, 500), st.sampled_from([0, 5, 200])
)
def test_every_text_once_within_the_budget_longest_first(lengths, batch_tokens, free):
    lengths = np.array(lengths, dtype=np.int64)
    batches = make_batches(lengths, batch_tokens, free)
    rows = np.concatenate(batches) if batches else np.array([], dtype=np.int64)
    assert sorted(rows) == list(range(len(lengths)))
    assert (np.diff(lengths[rows]) <= 0).all()
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= batch_tokens


def test_composition_depends_on_lengths_alone():
    lengths = np.random.default_rng(0).integers(1, 50, 500)
    for first, second in zip(make_batches(lengths, 512), make_batches(lengths, 512), strict=True):
        np.testing.assert_array_equal(first, second)


def test_split_is_even_and_stops_at_single_texts():
    lengths = np.full(10, 8)
    assert [len(b) for b in split(np.arange(10), lengths, 40)] == [5, 5]
    assert [len(b) for b in split(np.arange(3), lengths, 1)] == [1, 1, 1]


def test_pad_repeats_the_last_token_on_the_right():
    assert pad([[1, 2, 3], [4]], 3).tolist() == [[1, 2, 3], [4, 4, 4]]


@given(st.lists(st.integers(0, 60), max_size=200), st.integers(1, 500))
def test_without_padding_every_text_once_and_batches_as_full_as_can_be(lengths, tokens):
    lengths = np.array(lengths, dtype=np.int64)
    batches = pack_batches(lengths, tokens)
    rows = np.concatenate(batches) if batches else np.array([], dtype=np.int64)
    assert sorted(rows) == list(range(len(lengths)))
    taken = np.maximum(lengths, 1)
    for number, batch in enumerate(batches):
        assert (np.diff(taken[batch]) <= 0).all()
        room = tokens - taken[batch].sum()
        assert room >= 0 or len(batch) == 1
        # What comes later would not have fitted.
        later = [row for other in batches[number + 1 :] for row in other]
        assert all(taken[row] > room for row in later)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("hidden", [128, 1024])
def test_batches_without_padding_are_full(name, hidden):
    lengths = np.clip(DISTRIBUTIONS[name](np.random.default_rng(0)).astype(int), 1, 512)
    tokens = packed_tokens(hidden, lengths.sum())
    batches = pack_batches(lengths, tokens)
    assert len(batches) <= 1.02 * lengths.sum() / tokens + 1
    again = pack_batches(lengths.tolist(), tokens)
    assert all(map(np.array_equal, batches, again))


def test_wider_models_get_fewer_tokens_at_once_and_small_blocks_four_batches():
    widths = (8, 128, 512, 1024, 2048, 8192)
    assert [packed_tokens(n, 10**6) for n in widths] == [2048, 2048, 1024, 512, 256, 256]
    assert [packed_tokens(128, n) for n in (1, 1024, 1025, 6000)] == [256, 256, 257, 1500]


def test_runs_are_texts_of_one_length_behind_each_other():
    assert runs_of([5, 5, 3, 5]) == [(2, 5), (1, 3), (1, 5)]
