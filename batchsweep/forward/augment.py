"""Augmented views of a text: the same text with typing errors, for the metrics of invariance."""

from __future__ import annotations

import random
from collections.abc import Callable

#: Where the three kinds of error strike: this share of the words, and of a struck word's letters.
SHARE = 0.3

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def _neighbours() -> dict[str, str]:
    """Keys beside, above and below each letter on a QWERTY keyboard."""
    at = {key: (r, c) for r, row in enumerate(_ROWS) for c, key in enumerate(row)}
    return {
        key: "".join(k for k, (y, x) in at.items() if k != key and abs(y - r) + abs(x - c) <= 1)
        for key, (r, c) in at.items()
    }


_NEIGHBOURS = _neighbours()


def augmented(text: str, seed: int) -> str:
    """One view of ``text``: words split, letters replaced at random and by neighbouring keys.

    The three augmentations, in this order, that the layer-by-layer study makes its views with
    (Skean et al., 2025). The outcome depends on the two arguments alone; two seeds make two views.
    """
    rng = random.Random(f"{seed}:{text}")
    words = text.split()
    words = [part for word in words for part in _split(word, rng)]
    words = [_replace(word, rng, lambda letter: rng.choice(_LETTERS)) for word in words]
    words = [
        _replace(word, rng, lambda letter: rng.choice(_NEIGHBOURS.get(letter.lower(), letter)))
        for word in words
    ]
    return " ".join(words)


def _split(word: str, rng: random.Random) -> list[str]:
    if len(word) < 4 or rng.random() >= SHARE:
        return [word]
    cut = rng.randrange(1, len(word))
    return [word[:cut], word[cut:]]


def _replace(word: str, rng: random.Random, other: Callable[[str], str]) -> str:
    if rng.random() >= SHARE:
        return word
    return "".join(other(letter) if rng.random() < SHARE else letter for letter in word)
