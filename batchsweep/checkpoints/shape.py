"""Sizes of models, and what is known of Pythia without asking anyone: its shapes and steps.

Shapes: Biderman et al. 2023, "Pythia: A Suite for Analyzing Large Language Models", table 1, and
the ``config.json`` of each repo.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchsweep.errors import ConfigError

#: Training steps of every Pythia model; its ``main`` holds the weights of this one.
PYTHIA_FINAL_STEP = 143_000

#: What a store has room for, by its format.
_MAX_LAYERS, _MAX_HIDDEN = (1 << 12) - 1, 1 << 17

_PYTHIA = re.compile(
    r"EleutherAI/pythia-(?P<size>\d+(?:\.\d+)?[mb])(?:-v0)?(?:-deduped)?(?:-v0)?"
    r"(?:-(?:data-|weight-)?seed\d+)?"
)


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer that decide arms, storage and compute."""

    num_layers: int
    """L: blocks."""
    hidden: int
    """Width of the hidden states."""
    ffn: int
    """Width inside a block's feed-forward part."""
    vocab: int
    """Rows of the embedding matrix."""

    @property
    def block_parameters(self) -> int:
        """Parameters of all blocks: 4 h^2 of attention and 2 h ffn a block; an estimate for
        architectures with gates or grouped heads."""
        return self.num_layers * (4 * self.hidden**2 + 2 * self.hidden * self.ffn)

    @property
    def parameters(self) -> int:
        """Parameters with an embedding and an unembedding matrix."""
        return self.block_parameters + 2 * self.vocab * self.hidden

    def flops(self, tokens: float, mean_length: float) -> float:
        """Floating-point operations of a forward pass without the unembedding.

        2 a parameter and token, plus 4 h a layer and attended token (Kaplan et al. 2020, section
        2.1; the causal half is computed by most kernels, so it is counted in full).
        """
        attention = 4 * self.num_layers * self.hidden * mean_length
        return tokens * (2 * self.block_parameters + attention)


#: Pythia's size -> (layers, hidden, rows of the embedding matrix).
_PYTHIA_SHAPES = {
    "14m": (6, 128, 50304),
    "31m": (6, 256, 50304),
    "70m": (6, 512, 50304),
    "160m": (12, 768, 50304),
    "410m": (24, 1024, 50304),
    "1b": (16, 2048, 50304),
    "1.4b": (24, 2048, 50304),
    "2.8b": (32, 2560, 50304),
    "6.9b": (32, 4096, 50432),
    "12b": (36, 5120, 50688),
}


def is_pythia(model: str) -> bool:
    """Whether a Hub id is one of the Pythia suite, whose steps are known."""
    match = _PYTHIA.fullmatch(model)
    return match is not None and match["size"] in _PYTHIA_SHAPES


def known_shape(model: str) -> Shape | None:
    """The shape of a Pythia model, or None for a model that must be asked."""
    match = _PYTHIA.fullmatch(model)
    sizes = _PYTHIA_SHAPES.get(match["size"]) if match else None
    if sizes is None:
        return None
    layers, hidden, vocab = sizes
    return Shape(num_layers=layers, hidden=hidden, ffn=4 * hidden, vocab=vocab)


def shape_of(config: Mapping[str, Any], *, where: str) -> Shape:
    """The shape in a ``config.json``, whichever of the usual names it uses.

    Raises:
        ConfigError: it names no number of layers or no hidden size, or one that no model has.
    """
    inner = config.get("text_config")
    config = {**config, **(inner if isinstance(inner, Mapping) else {})}

    def first(*names: str) -> int | None:
        values = (config.get(name) for name in names)
        return next((v for v in values if type(v) is int and v > 0), None)

    layers = first("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    hidden = first("hidden_size", "n_embd", "d_model", "dim")
    if layers is None or hidden is None:
        raise ConfigError(
            f"{where}: config.json has no num_hidden_layers and hidden_size; "
            "is this a language model's repo?"
        )
    if layers > _MAX_LAYERS or hidden > _MAX_HIDDEN:
        raise ConfigError(
            f"{where}: config.json says {layers} layers of {hidden}; at most {_MAX_LAYERS} of "
            f"{_MAX_HIDDEN} can be stored"
        )
    ffn = first("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "hidden_dim")
    return Shape(layers, hidden, ffn or 4 * hidden, first("vocab_size") or 50_000)
