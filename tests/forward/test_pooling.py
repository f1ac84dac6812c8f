"""Masked pooling against one text at a time, in float64."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from batchsweep.config import Pooling
from batchsweep.forward.pooling import POOLINGS, Pooler

LENGTHS = (4, 1, 7, 3)
WIDTH = 9


def padded(side, *, garbage, dtype=torch.float32):
    """States [text, token, hidden] with garbage where padding is, the mask, and each text alone."""
    generator = torch.Generator().manual_seed(0)
    states = torch.full((len(LENGTHS), WIDTH, 5), garbage, dtype=dtype)
    mask = torch.zeros((len(LENGTHS), WIDTH), dtype=torch.bool)
    texts = []
    for row, length in enumerate(LENGTHS):
        where = slice(length) if side == "right" else slice(WIDTH - length, None)
        states[row, where] = torch.randn((length, 5), generator=generator).to(dtype)
        mask[row, where] = True
        texts.append(states[row, where].double())
    return states, mask, texts


def one_text(name, tokens, prefix=0):
    position = torch.arange(1, len(tokens) + 1, dtype=torch.float64)[prefix:, None]
    tokens = tokens[prefix:]
    return {
        "mean": lambda: tokens.mean(dim=0),
        "last": lambda: tokens[-1],
        "first": lambda: tokens[0],
        "max": lambda: tokens.amax(dim=0),
        "weighted_mean": lambda: (position * tokens).sum(dim=0) / position.sum(),
    }[name]()


@pytest.fixture(params=["padded", "without padding"])
def pool(request):
    """Pools states as they are, or their real tokens alone, text after text."""

    def of(mask, poolings, states, prefix=None):
        pooler = Pooler(mask, poolings, prefix)
        if request.param == "padded":
            return pooler(states)
        first, second = pooler(states[mask]), pooler(states[mask])
        assert all(torch.equal(first[name], second[name]) for name in first)
        return first

    return of


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", POOLINGS)
def test_each_pooling(name, side, pool):
    states, mask, texts = padded(side, garbage=1e4)
    got = pool(mask, [name], states)[name]
    assert got.dtype == torch.float32
    want = torch.stack([one_text(name, tokens) for tokens in texts])
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("side", ["left", "right"])
def test_all_at_once_with_a_prefix(side, pool):
    states, mask, texts = padded(side, garbage=-1e4)
    prefix = [2, 0, 3, 3]  # the last text is nothing but prefix: all of it counts
    got = pool(mask, POOLINGS, states, torch.tensor(prefix))
    assert set(got) == set(POOLINGS)
    for name in POOLINGS:
        want = [one_text(name, t, p % len(t)) for t, p in zip(texts, prefix, strict=True)]
        torch.testing.assert_close(got[name].double(), torch.stack(want), rtol=1e-6, atol=1e-6)


def test_half_precision_states_are_summed_in_float32(pool):
    states = torch.full((1, 4096, 1), 1.0, dtype=torch.float16)
    states[0, 0] = 4096.0
    mask = torch.ones((1, 4096), dtype=torch.bool)
    # In float16, 4096 + 1 + 1 ... stays 4096.
    assert pool(mask, ["mean"], states)["mean"].item() == pytest.approx(8191 / 4096, rel=1e-6)


def test_max_of_negative_states_ignores_padding(pool):
    states, mask, _ = padded("right", garbage=0.0)
    assert (pool(mask, ["max"], states - 100)["max"] < -90).all()


@pytest.mark.parametrize("name", POOLINGS)
def test_without_padding_a_text_is_pooled_to_the_same_bits_beside_any_other(name):
    states, mask, texts = padded("right", garbage=0.0)
    got = Pooler(mask, [name])(states[mask])[name]
    for row, tokens in enumerate(texts):
        alone = Pooler(mask[row : row + 1], [name])(tokens.float())[name]
        assert torch.equal(alone[0], got[row])


def test_without_padding_nan_stays_in_its_text():
    states, mask, _ = padded("right", garbage=0.0)
    states[1, 0, 2] = torch.nan
    got = Pooler(mask, POOLINGS)(states[mask])
    for name in POOLINGS:
        assert got[name].isnan().nonzero().tolist() == [[1, 2]], name


def test_the_config_offers_exactly_these():
    assert set(get_args(Pooling)) == set(POOLINGS)
    with pytest.raises(ValueError, match="mean, last, first, max, weighted_mean"):
        Pooler(torch.ones((1, 1), dtype=torch.bool), ["median"])


def test_sgpt_weights():
    states = torch.tensor([[[3.0], [6.0], [0.0]]])
    mask = torch.tensor([[True, True, False]])
    got = Pooler(mask, ["weighted_mean"])(states)["weighted_mean"]
    np.testing.assert_allclose(got, [[(1 * 3 + 2 * 6) / 3]])
