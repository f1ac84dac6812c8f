"""The two numbers behind the GPU benchmark's utilisation: what is computed, and what a card can."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cards import peak
from gpu_figures import SHAPES, flops
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPTNeoXConfig, GPTNeoXModel


@pytest.mark.parametrize(
    ("card", "half", "single"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA A10G", None, None),
        ("Tesla T4", 65e12, 8.1e12),
        ("CPU", None, None),
    ],
)
def test_a_card_is_found_by_its_drivers_name(
    card: str, half: float | None, single: float | None
) -> None:
    assert peak(card, "bfloat16") == peak(card, "float16") == half
    assert peak(card, "float32") == single


def test_the_work_of_a_text_is_what_pytorch_counts() -> None:
    blocks, hidden, heads = SHAPES["14m"]
    model = GPTNeoXModel(
        GPTNeoXConfig(
            vocab_size=100,
            hidden_size=hidden,
            num_hidden_layers=blocks,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            attn_implementation="eager",
        )
    ).eval()
    length = 50
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(input_ids=torch.ones(1, length, dtype=torch.long))
    # PyTorch counts attention to later tokens as well, which nobody needs.
    later = 2 * blocks * hidden * length * (length - 1)
    ours = flops("14m", [np.zeros(length)])
    assert counter.get_total_flops() == pytest.approx(ours + later, rel=1e-4)
