"""Tiny random models of every architecture that the forward pass is tested on."""

from __future__ import annotations

from typing import Any

import torch
import transformers

VOCABULARY = 61

_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 0,
}
_DECODER = {**_ENCODER, "num_key_value_heads": 1}

_CONFIGS: dict[str, Any] = {
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_ENCODER, bos_token_id=0, eos_token_id=0),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    ),
    "llama": lambda: transformers.LlamaConfig(**_DECODER),
    "olmo2": lambda: transformers.Olmo2Config(**_DECODER, bos_token_id=0, eos_token_id=2),
    "bert": lambda: transformers.BertConfig(**_ENCODER),
    "modernbert": lambda: transformers.ModernBertConfig(
        **_ENCODER,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        local_attention=8,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
    "mamba": lambda: transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=3, state_size=4
    ),
}
ARCHITECTURES = tuple(_CONFIGS)


def random_model(name: str) -> transformers.PreTrainedModel:
    """A model whose weights are far from the tiny initial ones, so that a wrong mask shows."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(_CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()
