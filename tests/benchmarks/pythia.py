"""Models of Pythia's shapes with random weights, for benchmarks of the pass."""

from __future__ import annotations

import torch
from transformers import GPTNeoXConfig, GPTNeoXModel

#: Tokens that a Pythia model has embeddings for.
VOCABULARY = 50_304


def random_pythia(blocks: int, hidden: int, heads: int) -> GPTNeoXModel:
    """The same weights for the same sizes, in float32."""
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return GPTNeoXModel(config)
