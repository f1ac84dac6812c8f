"""Pooled states of every layer against a plain transformers forward pass, for every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from batchsweep.architecture import describe
from batchsweep.forward import LoadedCheckpoint, pooled_states

VOCABULARY = 61


def gpt_neox() -> nn.Module:
    return transformers.GPTNeoXModel(
        transformers.GPTNeoXConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )


def gpt2() -> nn.Module:
    return transformers.GPT2Model(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=2, eos_token_id=0, bos_token_id=0
        )
    )


def decoder(kind: str) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        pad_token_id=0,
    )
    return getattr(transformers, f"{kind}Model")(config)


def bert() -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )


def modernbert() -> nn.Module:
    return transformers.ModernBertModel(
        transformers.ModernBertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            global_attn_every_n_layers=2,
            local_attention=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        )
    )


def mamba() -> nn.Module:
    return transformers.MambaModel(
        transformers.MambaConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=3, state_size=4
        )
    )


ARCHITECTURES = {
    "gpt_neox": gpt_neox,
    "gpt2": gpt2,
    "llama": lambda: decoder("Llama"),
    "olmo2": lambda: decoder("Olmo2"),
    "bert": bert,
    "modernbert": modernbert,
    "mamba": mamba,
}


def load(name: str) -> LoadedCheckpoint:
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            # Far from the tiny initial weights, so that a wrong mask or norm shows.
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.config.use_cache = False
    return describe(name, model.eval().requires_grad_(False))


TEXTS = [
    np.random.default_rng(0).integers(3, VOCABULARY, n) for n in (5, 9, 1, 12, 9, 3, 17, 2, 30, 9)
]
ALL_POOLINGS = ("mean", "last", "first", "max", "weighted_mean")


def embed(loaded, texts, *, layers, layer_output="final_norm", batch_tokens=64, **options):
    """All batches put together: {pooling: [layer, text, hidden]}."""
    options = {"poolings": ("mean",), **options}
    out = {
        name: np.full((len(layers), len(texts), loaded.hidden), np.nan, dtype=np.float32)
        for name in options["poolings"]
    }
    for positions, states in pooled_states(
        loaded,
        texts,
        layers=layers,
        layer_output=layer_output,
        batch_tokens=batch_tokens,
        **options,
    ):
        for name, values in states.items():
            out[name][:, positions] = values
    return out


def reference_tuple(loaded, text):
    """transformers' own ``hidden_states`` of one text alone: [index] of [token, hidden]."""
    with torch.inference_mode():
        output = loaded.model(input_ids=torch.tensor(text)[None], output_hidden_states=True)
    return [states[0] for states in output.hidden_states]


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def loaded(request):
    return load(request.param)


def test_hidden_states_are_the_tuple_that_transformers_returns(loaded):
    layers = range(loaded.num_layers + 1)
    got = embed(loaded, TEXTS, layers=layers, layer_output="hidden_states")["mean"]
    for row, text in enumerate(TEXTS):
        want = torch.stack([s.mean(dim=0) for s in reference_tuple(loaded, text)])
        close(got[:, row], want)
