"""Products with what follows them: as PyTorch's own linear layer, however they are computed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, random_model
from torch import nn
from torch.nn import functional

from batchsweep.forward import products
from batchsweep.forward.loading import load_checkpoint
from batchsweep.forward.products import Product, filled, fused_products


@pytest.fixture(params=["fused", "not fused"])
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "not fused":
        monkeypatch.setattr(products, "fused_products", lambda: False)
        return False
    if not fused_products():
        pytest.skip("this PyTorch has no fused products")
    return True


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [1, 3, 130])
@torch.inference_mode()
def test_a_product_is_a_linear_layer(fused: bool, bias: bool, rows: int) -> None:
    pick = torch.Generator().manual_seed(rows)
    weight, x, states = (
        torch.randn(size, generator=pick) for size in ((40, 24), (rows, 24), (rows, 40))
    )
    b = torch.randn(40, generator=pick) if bias else None
    before = states.clone()
    expected = functional.linear(x, weight, b)
    own = Product(weight, b)
    # As threads beside each other have them: modules of their own, tensors in common.
    product = copy.deepcopy(own, {id(tensor): tensor for tensor in own.buffers()})
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(product(x), expected, **near)
    torch.testing.assert_close(product.gelu(x), functional.gelu(expected), **near)
    torch.testing.assert_close(product.plus(states, x), states + expected, **near)
    assert torch.equal(states, before)


@pytest.mark.parametrize(("width", "most", "sizes"), [(1, 9 / 8, 90), (512, 33 / 32, 250)])
def test_rows_are_filled_up_to_few_numbers(width: int, most: float, sizes: int) -> None:
    numbers = set()
    for count in [*range(1, 3000), *range(3000, 16_385, 101)]:
        # On "meta", where rows take no memory.
        numbers.add(full := len(filled(torch.empty(count, width, device="meta"))))
        assert count <= full <= max(count + 7, count * most)
    # Four products of each fit into the thousand that oneDNN keeps.
    assert len(numbers) <= sizes
    assert filled(torch.ones(9, 2)).sum(dim=1).tolist() == [2] * 9 + [0] * 7
    rows = torch.ones(64, 2)
    assert filled(rows) is rows


def test_batches_of_all_sizes_take_products_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused_products():
        pytest.skip("this PyTorch has no fused products")
    seen = set()
    own = torch.ops.mkldnn._linear_pointwise

    class Watched:
        _reorder_linear_weight = torch.ops.mkldnn._reorder_linear_weight

        class _linear_pointwise:
            def __new__(cls, rows: torch.Tensor, *more: object) -> torch.Tensor:  # type: ignore[misc]
                seen.add(len(rows))
                return own(rows, *more)

            @staticmethod
            def binary(rows: torch.Tensor, states: torch.Tensor, *more: object) -> torch.Tensor:
                seen.add(len(rows))
                assert len(states) == len(rows)
                return own.binary(rows, states, *more)

    product = Product(torch.ones(4, 8), None)
    monkeypatch.setattr(torch.ops, "mkldnn", Watched)
    with torch.inference_mode():
        for count in range(257, 289):
            x = torch.ones(count, 8)
            assert product(x).shape == product.gelu(x).shape == (count, 4)
            assert product.plus(torch.ones(count, 4), x).tolist() == [[9.0] * 4] * count
            assert product(x.view(1, count, 8)).shape == (1, count, 4)
    assert seen <= {288}


@pytest.mark.parametrize("harm", ["gone", "other arguments", "wrong"])
def test_products_that_are_gone_changed_or_wrong_are_not_used(
    harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Operations:
        @staticmethod
        def _reorder_linear_weight(weight: torch.Tensor, rows: None) -> torch.Tensor:
            return weight

        class _linear_pointwise:
            @staticmethod
            def binary(*given: object) -> torch.Tensor:
                return torch.zeros(5, 40)

            def __new__(cls, *given: object) -> torch.Tensor:  # type: ignore[misc]
                if harm == "other arguments":
                    raise RuntimeError("expected at most 4 arguments")
                return torch.zeros(5, 40)

    monkeypatch.setattr(torch.ops, "mkldnn", object() if harm == "gone" else Operations)
    assert not fused_products.__wrapped__()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_linear_layers_of_known_architectures_alone_are_packed(name: str, tmp_path: Path) -> None:
    random_model(name).save_pretrained(tmp_path)

    def kinds(**how: object) -> set[type[nn.Module]]:
        model = load_checkpoint(str(tmp_path), device="cpu", **how).model  # type: ignore[arg-type]
        return {type(module) for module in model.modules()}

    known = name in {"gpt_neox", "llama", "olmo2", "bert"} and fused_products()
    assert (Product in kinds()) == known
    assert not known or nn.Linear not in kinds()
    assert Product not in kinds(dtype="bfloat16")
    assert Product not in kinds(transformers_own=True)
