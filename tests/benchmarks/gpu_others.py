"""The other side of the GPU benchmark: transformers in a padded loop, and sentence-transformers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from cards import forget, memory
from forward import make_texts, tokens_in
from gpu_figures import SHAPES, Cell, Clock, Row, Texts, flops

from batchsweep.forward.batching import pad

#: Texts of a batch.
THEIR_SIZES = {"cpu": (8, 32), "cuda": (32, 128, 512)}


def until(
    row: Row, batches: Sequence[Texts], run: Callable[[Texts], object], seconds: float
) -> None:
    """Run batches, the largest once before and then in random order, until the time is up.

    ``run`` returns what is on the host, so that it is done when it returns.
    """
    order = np.random.default_rng(0).permutation(len(batches))
    try:
        run(batches[0])
        start = time.perf_counter()
        for number in order:
            run(batches[number])
            row.tokens += tokens_in(batches[number])
            row.flops += flops(row.shape, batches[number])
            row.seconds = time.perf_counter() - start
            if row.seconds > seconds:
                break
    except torch.OutOfMemoryError:
        row.tokens, row.seconds, row.note = 0, 0.0, "out of memory"


@torch.inference_mode()
def padded(model: Any, device: torch.device, batch: Texts) -> npt.NDArray[np.float32]:
    """[layer, text, hidden]: every layer's masked mean, the way model cards show it."""
    lengths = torch.tensor([len(text) for text in batch])
    width = int(lengths.max())
    mask = (torch.arange(width) < lengths[:, None]).to(device)
    ids = torch.from_numpy(pad(batch, width)).to(device)
    out = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    weights = mask[:, :, None].float()
    pooled = [(s * weights).sum(dim=1) / weights.sum(dim=1) for s in out.hidden_states[1:]]
    home: npt.NDArray[np.float32] = torch.stack(pooled).float().cpu().numpy()
    return home


def sorted_batches(texts: Texts, size: int) -> list[Texts]:
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    return [[texts[i] for i in order[n : n + size]] for n in range(0, len(order), size)]


def sizes(cell: Cell, device: torch.device) -> list[int]:
    """Batch sizes to try: the smallest, and those that make two batches or more."""
    smallest, *others = THEIR_SIZES[device.type]
    return [smallest, *(size for size in others if 2 * size <= cell.texts)]


def loops(cell: Cell, model: Path, device: torch.device, clock: Clock) -> None:
    """transformers' own model, with each attention that it has here."""
    texts = make_texts(cell.texts)
    network = transformers.AutoModel.from_pretrained(model, dtype=getattr(torch, cell.dtype))
    network = network.to(device).eval()
    flash = device.type == "cuda" and cell.dtype != "float32" and find_spec("flash_attn")
    for attention in ("eager", "sdpa", *(["flash_attention_2"] if flash else [])):
        network.set_attn_implementation(attention)
        for size in sizes(cell, device):
            row = Row(cell.shape, cell.dtype, f"loop, {attention}", size)
            if not clock.has(clock.seconds / 14, f"{row.shape} {row.dtype} {row.what} {size}"):
                continue
            forget(device)
            until(
                row,
                sorted_batches(texts, size),
                lambda batch: padded(network, device, batch),
                clock.seconds / 14,
            )
            row.peak_mib = memory(device)
            cell.rows.append(row)


def encode(cell: Cell, model: Path, device: torch.device, clock: Clock) -> None:
    """sentence-transformers, which sorts and pads by itself; packed where flash attention is."""
    name = f"{cell.shape} {cell.dtype} encode"
    if find_spec("sentence_transformers") is None or not clock.has(clock.seconds / 5, name):
        return
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    options: dict[str, Any] = {"dtype": getattr(torch, cell.dtype)}
    flash = device.type == "cuda" and cell.dtype != "float32" and find_spec("flash_attn")
    options["attn_implementation"] = "flash_attention_2" if flash else "sdpa"
    transformer = Transformer(str(model), model_kwargs=options)
    whole = SentenceTransformer(
        modules=[transformer, Pooling(SHAPES[cell.shape][1], pooling_mode="mean")],
        device=str(device),
    )
    texts = make_texts(cell.texts)

    def encoded(size: int, some: Texts) -> object:
        sentences = [" ".join(f"w{n}" for n in text) for text in some]
        return whole.encode(sentences, batch_size=size)

    for size in sizes(cell, device):
        if not clock.has(clock.seconds / 14, f"{name} {size}"):
            continue
        row = Row(cell.shape, cell.dtype, "encode", size, note=options["attn_implementation"])
        forget(device)
        # Enough texts a call that sorting them leaves little padding.
        many = max(1024, 8 * size) if device.type == "cuda" else 4 * size
        until(
            row,
            [texts[n : n + many] for n in range(0, len(texts), many)],
            partial(encoded, size),
            clock.seconds / 14,
        )
        row.peak_mib = memory(device)
        cell.rows.append(row)
