"""Pooled states of every layer against plain transformers, for every architecture."""

from __future__ import annotations

import weakref
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from architectures import ARCHITECTURES, VOCABULARY, random_model

from batchsweep.errors import IndexFailed, UsageError
from batchsweep.forward.architecture import describe
from batchsweep.forward.forward import load_checkpoint, pooled_states
from batchsweep.forward.pooling import POOLINGS, Pooler

LENGTHS = (5, 9, 1, 12, 9, 3, 17, 2, 30, 9)
TEXTS = [np.random.default_rng(i).integers(3, VOCABULARY, n) for i, n in enumerate(LENGTHS)]
#: Mamba's scan and the batched matrix products sum in another order for another shape.
ROUNDING: dict[str, Any] = {"rtol": 1e-5, "atol": 2e-5}


@pytest.fixture(autouse=True)
def two_at_once(monkeypatch):
    """Batches are computed at once, as on a user's machine."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    """A checkpoint's directory."""
    path = tmp_path_factory.mktemp(request.param)
    random_model(request.param).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder):
    return load_checkpoint(str(folder), device="cpu")


@pytest.fixture(scope="module")
def theirs(folder):
    """transformers' own model of the checkpoint."""
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def neox():
    model = random_model("gpt_neox")
    model.config.use_cache = False
    return describe("tiny@main", model.requires_grad_(False))


def embed(loaded, texts, *, layers=(1, 2, 3), layer_output="final_norm", batch_tokens=64, **more):
    """All batches put together: {pooling: [layer, text, hidden]}."""
    poolings = more.pop("poolings", ("mean",))
    shape = (len(layers), len(texts), loaded.hidden)
    out = {name: np.full(shape, np.nan, dtype=np.float32) for name in poolings}
    batches = pooled_states(
        loaded,
        texts,
        layers=layers,
        poolings=poolings,
        layer_output=layer_output,
        batch_tokens=batch_tokens,
        **more,
    )
    for positions, states in batches:
        for name, values in states.items():
            assert values.dtype == np.float32
            out[name][:, positions] = values
    return out


def transformers_tuple(model, text):
    with torch.inference_mode():
        output = model(input_ids=torch.tensor(text)[None], output_hidden_states=True)
    return [states[0] for states in output.hidden_states]


def block_outputs(loaded, text):
    """What the blocks return, [layer] of [token, hidden]; the embedding output comes first."""
    seen = []
    hooks = [
        loaded.blocks[0].register_forward_pre_hook(
            lambda m, args, kw: seen.append(args[0]), with_kwargs=True
        ),
        *(
            block.register_forward_hook(
                lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)
            )
            for block in loaded.blocks
        ),
    ]
    with torch.inference_mode():
        loaded.model(input_ids=torch.tensor(text)[None])
    for hook in hooks:
        hook.remove()
    return [states[0] for states in seen]


def test_hidden_states_are_the_tuple_that_transformers_returns(loaded, theirs):
    layers = range(loaded.num_layers + 1)
    got = embed(loaded, TEXTS, layers=layers, layer_output="hidden_states")["mean"]
    for row, text in enumerate(TEXTS):
        want = torch.stack([states.mean(dim=0) for states in transformers_tuple(theirs, text)])
        np.testing.assert_allclose(got[:, row], want, **ROUNDING)


def test_raw_is_what_each_block_returns(loaded):
    layers = range(loaded.num_layers + 1)
    got = embed(loaded, TEXTS, layers=layers, layer_output="raw")["mean"]
    for row, text in enumerate(TEXTS):
        want = torch.stack([states.mean(dim=0) for states in block_outputs(loaded, text)])
        np.testing.assert_allclose(got[:, row], want, **ROUNDING)


def test_final_norm_equals_the_model_truncated_to_l_blocks(loaded, folder):
    got = embed(loaded, TEXTS)["mean"]
    for layer in (1, 2, 3):
        config = transformers.AutoConfig.from_pretrained(folder)
        if "layer_types" in vars(config):
            config.layer_types = config.layer_types[:layer]
        config.num_hidden_layers = layer
        truncated = transformers.AutoModel.from_pretrained(folder, config=config).eval()
        for row, text in enumerate(TEXTS):
            with torch.inference_mode():
                states = truncated(input_ids=torch.tensor(text)[None]).last_hidden_state
            np.testing.assert_allclose(got[layer - 1, row], states[0].mean(dim=0), **ROUNDING)


def test_a_model_without_a_final_norm_gives_the_same_as_raw(loaded, folder):
    if "bert" not in folder.name or "modern" in folder.name:
        assert loaded.final_norm is not None
        return
    assert loaded.final_norm is None
    np.testing.assert_array_equal(
        embed(loaded, TEXTS)["mean"], embed(loaded, TEXTS, layer_output="raw")["mean"]
    )


def test_a_text_alone_equals_the_text_in_a_batch(loaded):
    alone = embed(loaded, TEXTS, poolings=POOLINGS, batch_tokens=1)
    mixed = {name: np.zeros_like(values) for name, values in alone.items()}
    # One batch of all lengths, which batching itself would never make.
    from batchsweep.forward import forward

    with pytest.MonkeyPatch.context() as patch:
        for how in ("make_batches", "pack_batches"):
            patch.setattr(forward, how, lambda lengths, *_: [np.arange(len(lengths))])
        mixed = embed(loaded, TEXTS, poolings=POOLINGS)
    for name in POOLINGS:
        np.testing.assert_allclose(mixed[name], alone[name], **ROUNDING)


@pytest.mark.parametrize("side", ["left", "right"])
def test_equal_to_a_padded_batch_of_transformers(loaded, theirs, side):
    width = max(LENGTHS)
    ids = torch.zeros((len(TEXTS), width), dtype=torch.long)
    mask = torch.zeros((len(TEXTS), width), dtype=torch.bool)
    for row, text in enumerate(TEXTS):
        where = slice(width - len(text), None) if side == "left" else slice(len(text))
        ids[row, where] = torch.tensor(text)
        mask[row, where] = True
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if "Mamba" not in type(theirs).__name__:
        inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.inference_mode():
        states = theirs(**inputs, output_hidden_states=True).hidden_states
        want = [Pooler(mask, POOLINGS)(s) for s in states]
    layers = range(loaded.num_layers + 1)
    got = embed(loaded, TEXTS, layers=layers, layer_output="hidden_states", poolings=POOLINGS)
    for name in POOLINGS:
        reference = torch.stack([pooled[name] for pooled in want])
        np.testing.assert_allclose(got[name], reference, rtol=1e-4, atol=5e-5)


def test_causality_is_recognised(loaded, folder):
    assert loaded.causal == ("bert" not in folder.name)


def test_layers_in_any_order_and_twice(neox):
    straight = embed(neox, TEXTS, layers=(1, 3))["mean"]
    np.testing.assert_array_equal(embed(neox, TEXTS, layers=(3, 1, 3))["mean"], straight[[1, 0, 1]])


def test_blocks_after_the_last_wanted_layer_do_not_run(neox):
    ran = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(neox.blocks, start=1)
    ]
    embed(neox, TEXTS[:1], layers=(2,))
    assert ran == [1, 2]
    embed(neox, TEXTS[:1], layers=(0,))
    assert ran == [1, 2, 1]
    for hook in hooks:
        hook.remove()
    assert len(neox.blocks) == 3, "the model is whole again afterwards"


def test_the_model_is_whole_after_an_iterator_that_was_left_early(neox):
    hooks = [len(block._forward_hooks) for block in neox.blocks]
    batches = pooled_states(
        neox, TEXTS, layers=(1,), poolings=("mean",), layer_output="raw", batch_tokens=16
    )
    assert isinstance(batches, Generator)
    next(batches)
    batches.close()
    assert len(neox.blocks) == 3
    assert [len(block._forward_hooks) for block in neox.blocks] == hooks
    assert not torch.is_inference_mode_enabled()


def test_no_layer_outlives_the_next_block(neox):
    alive, most = [], []

    def watch(module, args, output):
        alive.append(weakref.ref(output))
        most.append(sum(ref() is not None for ref in alive))

    hooks = [block.register_forward_hook(watch) for block in neox.blocks]
    embed(neox, TEXTS[:1])
    for hook in hooks:
        hook.remove()
    assert max(most) <= 2, "only a block's input and output are in memory"


def test_prefix_tokens_take_no_part_in_pooling(neox):
    prefix = np.array([7, 8, 9])
    texts = [np.concatenate([prefix, text]) for text in TEXTS]
    got = embed(neox, texts, prefix_lengths=[3] * len(texts), layer_output="raw")["mean"]
    for row, text in enumerate(texts):
        want = torch.stack([s[3:].mean(dim=0) for s in block_outputs(neox, text)[1:]])
        np.testing.assert_allclose(got[:, row], want, **ROUNDING)


def test_an_empty_text_is_the_end_of_text_token(neox):
    texts = [TEXTS[0], np.array([], dtype=np.int64), np.array([neox.empty_token])]
    assert neox.empty_token == neox.model.config.eos_token_id
    got = embed(neox, texts)["mean"]
    np.testing.assert_array_equal(got[:, 1], got[:, 2])
    assert np.abs(got[:, 1]).max() > 0


def test_nan_names_layer_and_row(neox):
    # Token 60 alone drives block 2 to infinity: only the row that has it, only from layer 2 on.
    def poison(module, args, output):
        output[:, :, 0] += torch.where((running["ids"] == 60).any(dim=1), torch.inf, 0.0)[:, None]

    running: dict[str, torch.Tensor] = {}
    watch = neox.model.register_forward_pre_hook(
        lambda m, args, kwargs: running.update(ids=kwargs["input_ids"]), with_kwargs=True
    )
    hook = neox.blocks[1].register_forward_hook(poison)
    texts = [np.array([5, 6, 7]), np.array([5, 60, 7]), np.array([8, 6, 7])]
    try:
        with pytest.raises(IndexFailed, match=r"tiny@main, layer 2, row 4097: NaN or inf.*float32"):
            embed(neox, texts, layers=(1, 2), first_row=4096)
        embed(neox, texts, layers=(1,))
    finally:
        hook.remove()
        watch.remove()


def test_overflow_in_padding_only_is_no_error(neox):
    texts = [np.arange(3, 103) % 61, np.arange(5, 103) % 61]
    want = embed(neox, texts, batch_tokens=1)["mean"]

    def poison_padding(module, args, output):
        if len(output) > 1:
            output[1, len(texts[1]) :] = torch.nan

    hook = neox.blocks[2].register_forward_hook(poison_padding)
    try:
        got = embed(neox, texts, batch_tokens=1000)["mean"]
    finally:
        hook.remove()
    np.testing.assert_allclose(got, want, **ROUNDING)


def test_out_of_memory_halves_the_batch_and_goes_on(neox, monkeypatch, caplog):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # The model that is patched is the one that runs.
    want = embed(neox, TEXTS, batch_tokens=40)["mean"]
    sizes = []
    forward = neox.model.forward

    def small_device(input_ids, **kwargs):
        sizes.append(input_ids.numel())
        if input_ids.numel() > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(neox.model, "forward", small_device)
    texts = [t for t in TEXTS if len(t) <= 20]
    rows = [i for i, t in enumerate(TEXTS) if len(t) <= 20]
    got = embed(neox, texts, batch_tokens=40)["mean"]
    np.testing.assert_allclose(got, want[:, rows], **ROUNDING)
    assert max(sizes) > 20
    assert "out of memory" in caplog.text and "half" in caplog.text
    with pytest.raises(IndexFailed, match=r"row 8: one text of 30 tokens doesn't fit.*max_length"):
        embed(neox, TEXTS, batch_tokens=40)


def test_the_same_call_gives_the_same_bytes(neox):
    first, second = (embed(neox, TEXTS, poolings=POOLINGS) for _ in range(2))
    for name in POOLINGS:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_pools_in_float32(folder, dtype):
    loaded = load_checkpoint(str(folder), device="cpu", dtype=dtype)
    assert loaded.dtype == getattr(torch, dtype)
    assert {p.dtype for p in loaded.blocks.parameters()} == {loaded.dtype}
    text = TEXTS[8]
    got = embed(loaded, [text], layer_output="raw")["mean"][:, 0]
    want = torch.stack([s.float().mean(dim=0) for s in block_outputs(loaded, text)[1:]])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_unknown_layers_and_outputs_are_refused(neox):
    with pytest.raises(UsageError, match=r"no layers \[4\]; it has 1 to 3"):
        embed(neox, TEXTS, layers=(1, 4))
    with pytest.raises(UsageError, match="final_norm, raw, hidden_states"):
        embed(neox, TEXTS, layer_output="normed")


def test_encoder_decoders_are_refused():
    config = transformers.T5Config(vocab_size=61, d_model=16, d_kv=8, d_ff=32, num_layers=2)
    with pytest.raises(IndexFailed, match="encoder-decoder"):
        describe("t5@main", transformers.AutoModel.from_config(config).eval())
