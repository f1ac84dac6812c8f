"""GPT-NeoX without transformers: its very bits, and nothing that it isn't sure of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from batchsweep.errors import IndexFailed
from batchsweep.forward import gpt_neox, products
from batchsweep.forward.forward import pooled_states
from batchsweep.forward.fused_neox import FusedBlock
from batchsweep.forward.gpt_neox import GPTNeoX, know_tokens, load
from batchsweep.forward.loading import load_checkpoint
from batchsweep.forward.pooling import POOLINGS
from batchsweep.numerics import one_compute_thread

SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
WEIGHTS = ["model.safetensors"]


def saved(folder: Path, *, head: bool = False, **config: Any) -> Path:
    """A checkpoint with random weights, far from the tiny initial ones."""
    torch.manual_seed(0)
    kind = transformers.GPTNeoXForCausalLM if head else transformers.GPTNeoXModel
    model = kind(transformers.GPTNeoXConfig(**{**SIZES, **config}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def edited(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


CONFIGS = pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_parallel_residual": False, "layer_norm_eps": 1e-3},
        {"attention_bias": False, "head": True},
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 500,
                "partial_rotary_factor": 1,
            }
        },
        {"hidden_size": 36},
    ],
    ids=["pythia", "sequential", "no bias, with a head", "all rotated", "an odd number rotated"],
)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@CONFIGS
def test_states_are_transformers_own_to_the_last_bit(
    config: dict[str, Any], dtype: str, tmp_path: Path
) -> None:
    ours = load(saved(tmp_path, **config), WEIGHTS, dtype)
    assert ours is not None
    theirs = transformers.AutoModel.from_pretrained(tmp_path, dtype=getattr(torch, dtype)).eval()
    generator = torch.Generator().manual_seed(1)
    for shape in [(1, 7), (2, 1), (5, 33), (64, 12)]:
        ids = torch.randint(0, 61, shape, generator=generator)
        with torch.inference_mode(), one_compute_thread():
            got = ours(ids, output_hidden_states=True)
            want = theirs(ids, output_hidden_states=True)
        assert got.last_hidden_state.dtype == want.last_hidden_state.dtype
        assert torch.equal(got.last_hidden_state, want.last_hidden_state)
        for one, other in zip(got.hidden_states, want.hidden_states, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("how", ["fused products", "addmm"])
@CONFIGS
def test_fused_states_are_transformers_own_up_to_rounding(
    config: dict[str, Any], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "addmm":
        monkeypatch.setattr(products, "fused_products", lambda: False)
    ours = load_checkpoint(str(saved(tmp_path, **config)), device="cpu").model
    assert isinstance(ours, GPTNeoX) and ours.fused
    theirs = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    exact = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    generator = torch.Generator().manual_seed(1)
    for shape in [(1, 1), (1, 7), (2, 1), (5, 33), (64, 12)]:
        ids = torch.randint(0, 61, shape, generator=generator)
        with torch.inference_mode(), one_compute_thread():
            got = ours(ids, output_hidden_states=True).hidden_states
            assert all(map(torch.equal, got, ours(ids, output_hidden_states=True).hidden_states))
            want = theirs(ids, output_hidden_states=True).hidden_states
            truth = exact(ids, output_hidden_states=True).hidden_states
        for one, other, best in zip(got, want, truth, strict=True):
            # No further from the exact states than a few times what float32 is anyway.
            size, away = best.abs().max(), (one - best).abs().max()
            assert away <= 4 * (other - best).abs().max() + 2**-23 * size


@CONFIGS
def test_what_is_known_of_tokens_beforehand_is_what_the_first_block_makes_of_them(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load_checkpoint(str(saved(tmp_path, **config)), device="cpu").model
    exact = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    theirs = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert isinstance(ours, GPTNeoX)
    monkeypatch.setattr(gpt_neox, "KNOWN_AT_ONCE", 7)
    ids = torch.randint(0, 61, (12, 9), generator=torch.Generator().manual_seed(1))
    several = []
    for threads in (1, 3):
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            several.append(know_tokens(ours, [*ids.numpy(), np.array([60])], pool))
    known, again = several
    if not config.get("use_parallel_residual", True):
        assert known is None
        return
    assert known is not None and again is not None
    assert torch.equal(known.read_NE, again.read_NE)
    assert torch.equal(known.mixed_ND, again.mixed_ND)
    assert len(known.read_NE) == len({60, *ids.flatten().tolist()})
    first = ours.layers[0]
    assert isinstance(first, FusedBlock)
    with torch.inference_mode(), one_compute_thread():
        # Nothing of a token alone is computed again.
        monkeypatch.setattr(first.widen, "gelu", lambda rows: pytest.fail("the perceptron ran"))
        got = ours(ids, output_hidden_states=True, known=known).hidden_states
        assert all(
            map(torch.equal, got, ours(ids, output_hidden_states=True, known=known).hidden_states)
        )
        want = theirs(ids, output_hidden_states=True).hidden_states
        truth = exact(ids, output_hidden_states=True).hidden_states
    for one, other, best in zip(got, want, truth, strict=True):
        size, away = best.abs().max(), (one - best).abs().max()
        assert away <= 4 * (other - best).abs().max() + 2**-23 * size


@pytest.mark.skipif(not products.fused_products(), reason="addmm's bits depend on the rows")
@CONFIGS
def test_texts_of_all_lengths_go_together_without_padding_and_keep_their_bytes(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_checkpoint(str(saved(tmp_path, **config)), device="cpu")
    monkeypatch.setattr(gpt_neox, "TURNS_KEPT", 20)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 61, n) for n in (5, 9, 1, 33, 9, 3, 70, 1, 30, 9)]
    seen: list[torch.Size] = []
    watch = loaded.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )

    def states(some: Sequence[int], batch_tokens: int) -> npt.NDArray[np.float32]:
        out = np.empty((len(POOLINGS), 3, len(some), loaded.hidden), np.float32)
        for positions, pooled in pooled_states(
            loaded,
            [texts[n] for n in some],
            layers=(1, 2, 3),
            poolings=POOLINGS,
            layer_output="final_norm",
            batch_tokens=batch_tokens,
        ):
            out[:, :, positions] = np.stack([pooled[name] for name in POOLINGS])
        return out

    alone = np.concatenate([states([n], 1) for n in range(len(texts))], axis=2)
    for some, tokens in (([*range(10)], 16_384), ([*range(10)], 80), ([8, 3, 1, 0, 4], 40)):
        seen.clear()
        np.testing.assert_array_equal(states(some, tokens), alone[:, :, some])
        # No token is computed that is nobody's, and texts go together.
        assert sum(size.numel() for size in seen) == sum(len(texts[n]) for n in some)
        assert len(seen) < len(some)
    watch.remove()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_computed_as_transformers_does(dtype: str, tmp_path: Path) -> None:
    model = load_checkpoint(str(saved(tmp_path)), device="cpu", dtype=dtype).model
    assert isinstance(model, GPTNeoX) and not model.fused


def test_a_config_in_the_words_of_the_first_checkpoints(tmp_path: Path) -> None:
    saved(tmp_path, rope_parameters={"rope_theta": 500.0, "partial_rotary_factor": 0.5})
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("rope_parameters", "dtype", "attention_bias"):
        config.pop(name)
    config |= {"rotary_pct": 0.5, "rotary_emb_base": 500, "torch_dtype": "float16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = load(tmp_path, WEIGHTS, "auto")
    assert ours is not None
    theirs = transformers.AutoModel.from_pretrained(tmp_path, dtype="auto").eval()
    ids = torch.arange(20)[None]
    with torch.inference_mode(), one_compute_thread():
        got, want = ours(ids).last_hidden_state, theirs(ids).last_hidden_state
    assert got.dtype == torch.float16 and torch.equal(got, want)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "gpt_neox_japanese"},
        {"hidden_act": "gelu_fast"},
        {"a_new_key": 1},
        {"num_attention_heads": 5},
        {"num_attention_heads": 16, "rope_parameters": {"partial_rotary_factor": 1}},
        {"num_hidden_layers": "3"},
        {"quantization_config": {"load_in_8bit": True}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000, "factor": 2}},
        {"layer_norm_eps": None},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_config_that_is_not_understood_is_left_to_transformers(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    edited(saved(tmp_path), **changes)
    assert load(tmp_path, WEIGHTS, "float32") is None


@pytest.mark.parametrize("harm", ["missing", "shape", "integers", "beyond", "cut"])
def test_weights_that_are_not_as_expected_are_left_to_transformers(
    harm: str, tmp_path: Path
) -> None:
    file = saved(tmp_path) / WEIGHTS[0]
    tensors = load_file(file)
    name = "layers.1.mlp.dense_4h_to_h.bias"
    if harm == "missing":
        del tensors[name]
    elif harm == "shape":
        tensors[name] = tensors[name][:-1].clone()
    elif harm == "integers":
        tensors[name] = tensors[name].to(torch.int8)
    elif harm == "beyond":
        tensors["layers.3.mlp.dense_4h_to_h.bias"] = tensors[name].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    assert load(tmp_path, WEIGHTS, "float32") is None
    with pytest.raises(IndexFailed):
        load_checkpoint(str(tmp_path), device="cpu")


def test_pickled_weights_are_left_to_transformers(tmp_path: Path) -> None:
    assert load(saved(tmp_path), ["pytorch_model.bin"], "float32") is None
