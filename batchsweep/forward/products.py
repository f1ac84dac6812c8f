"""Matrix products in float32 on a CPU, with what follows them done in the same step.

oneDNN's products are about a sixth faster than those behind ``torch.addmm`` on weights that were
laid out for the processor beforehand, and add a bias, a GELU or the residual stream while a tile of
the result is still in the cache. PyTorch has them for its own compiler only, under names that it
doesn't promise to keep. So they are tried once, on small numbers: where they aren't there, or give
anything else than ``addmm`` does, ``addmm`` it is.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

#: Of transformers' models, those whose linear layers are called and not otherwise looked into.
PACKED = frozenset({"bert", "gpt_neox", "llama", "olmo", "olmo2"})

#: Numbers in a row from which on more sizes of products are worth their code.
WIDE = 512


def pack(model: nn.Module) -> None:
    """Put a product in the place of each linear layer of a known model in float32 on a CPU.

    For good, and weight by weight: the memory stays what it was. A model of another architecture,
    dtype or device, or where the products aren't fused, is left as it is.
    """
    tensor = next(model.parameters())
    kind = getattr(model.config, "model_type", None)
    if kind not in PACKED or tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        return
    if not fused_products():
        return
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, Product(child.weight, child.bias))


class Product(nn.Module):
    """y = x W' + b for x [row, in], and y with a GELU or added to something.

    Its tensors are buffers: threads that compute beside each other share them. Where it is fused,
    rows are filled up to a number of :func:`filled`, which costs a copy unless they are that many.

    Args:
        weight_OI: W, [out, in] of float32 on a CPU. It is copied into the processor's layout.
        bias_O: b, [out]; None for none.
    """

    def __init__(self, weight_OI: torch.Tensor, bias_O: torch.Tensor | None) -> None:
        super().__init__()
        self._packed = fused_products()
        weight_OI = weight_OI.detach().contiguous()
        if self._packed:
            weight_OI = torch.ops.mkldnn._reorder_linear_weight(weight_OI, None)
        self.register_buffer("weight", weight_OI, persistent=False)
        self.register_buffer("bias", None if bias_O is None else bias_O.detach(), persistent=False)

    @property
    def _tensors(self) -> tuple[Any, Any]:
        return self.weight, self.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """x W' + b: [..., in] to [..., out]."""
        weight, bias = self._tensors
        out: torch.Tensor
        if self._packed:
            flat = rows.reshape(-1, rows.shape[-1])
            full = torch.ops.mkldnn._linear_pointwise(filled(flat), weight, bias, "none", [], "")
            out = full[: len(flat)].view(*rows.shape[:-1], -1)
        else:
            out = functional.linear(rows, weight, bias)
        return out

    def gelu(self, rows: torch.Tensor) -> torch.Tensor:
        """GELU(x W' + b), by the error function."""
        weight, bias = self._tensors
        out: torch.Tensor
        if self._packed:
            out = torch.ops.mkldnn._linear_pointwise(
                filled(rows), weight, bias, "gelu", [], "none"
            )[: len(rows)]
        else:
            out = functional.gelu(functional.linear(rows, weight, bias))
        return out

    def plus(self, states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """``states`` + x W' + b, as a new tensor."""
        weight, bias = self._tensors
        out: torch.Tensor
        if self._packed:
            out = torch.ops.mkldnn._linear_pointwise.binary(
                filled(rows), filled(states), weight, bias, "add"
            )[: len(rows)]
        else:
            out = states.clone() if bias is None else states + bias
            out.addmm_(rows, weight.t())
        return out


def filled(rows: torch.Tensor) -> torch.Tensor:
    """Rows [row, in], with rows of zeros behind them up to one of few numbers.

    oneDNN makes code of its own for each number of rows that it meets, in milliseconds, and keeps
    that of the last thousand products: some hundred MiB, if every batch is of another size.
    """
    count, width = rows.shape
    # Between powers of two 8 numbers, or 32 where a row costs more than the code does.
    numbers = 8 if width < WIDE else 32
    step = max(8, (1 << max(count.bit_length() - 1, 0)) // numbers)
    more = -count % step
    return functional.pad(rows, (0, 0, 0, more)) if more else rows


@functools.cache
def fused_products() -> bool:
    """Whether oneDNN's products are there, take what they are given here, and are right."""
    pick = torch.Generator().manual_seed(0)
    rows, weight, bias, states = (
        torch.randn(size, generator=pick) for size in ((5, 24), (40, 24), (40,), (5, 40))
    )
    expected = functional.linear(rows, weight, bias)
    wanted = (expected, functional.gelu(expected), states + expected)
    try:
        with torch.inference_mode():
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
            product = torch.ops.mkldnn._linear_pointwise
            given = (
                product(rows, packed, bias, "none", [], ""),
                product(rows, packed, bias, "gelu", [], "none"),
                product.binary(rows, states, packed, bias, "add"),
            )
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(given, wanted, strict=True)
    )
