"""Extraction on a GPU against transformers' padded loop and sentence-transformers. Random weights.

    python tests/benchmarks/gpu.py [--shapes 14m 70m] [--dtypes bfloat16] [--seconds 30]

For the shapes of Pythia, in each dtype, on texts with the lengths of MTEB's mixture; tokens that
are padding count on no side. One line each for

- ``extract``: all layers pooled with the final norm, written as a float16 Zarr store, with the
  default ``batch_tokens``: what ``batchsweep extract`` does once a checkpoint is loaded;
- ``states``: the same without a store, at several ``batch_tokens``;
- ``loop, eager`` / ``sdpa`` / ``flash_attention_2``: batches of transformers, sorted by length,
  padded and masked, ``output_hidden_states``, a masked mean of every layer, at several batch sizes;
- ``encode``: sentence-transformers' ``encode`` from strings, the last layer's mean alone.

What needs a package that isn't there is left out, and said. ``MFU`` is what the model must compute
(products of the blocks, and attention to earlier tokens only) over the card's peak by its data
sheet, ``of product`` the same over the rate of a large matrix product measured here. A run stops
where its time is up, and what no time was left for is listed. Figures and machine are written as
JSON.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import measured
import numpy as np
import numpy.typing as npt
import torch
import transformers
from cards import (
    computes_in,
    copy_rate,
    forget,
    machine,
    memory,
    name_of,
    peak,
    product_rate,
    synchronize,
)
from forward import make_texts, tokens_in
from gpu_figures import SHAPES, Cell, Clock, Row, Texts, as_json, flops, show
from gpu_others import encode, loops
from pythia import VOCABULARY, random_pythia

from batchsweep.checkpoints.checkpoint import Checkpoint
from batchsweep.checkpoints.shape import Shape
from batchsweep.config import Config
from batchsweep.extract.blocks import Work, seal_blocks
from batchsweep.extract.figures import Figures
from batchsweep.extract.kept import Kept
from batchsweep.forward.architecture import LoadedCheckpoint
from batchsweep.forward.forward import load_checkpoint, pooled_states
from batchsweep.plan.plan import PlanEntry
from batchsweep.signals import StopRequest
from batchsweep.store import GroupSpec, GroupWriter, create_store

DTYPES = ("float32", "float16", "bfloat16")
BLOCK_TEXTS = 256
#: Tokens of our batches.
OUR_SIZES = {"cpu": (2048, 16_384), "cuda": (4096, 16_384, 65_536)}
TASK = "STS12"


def publish(shape: str, folder: Path) -> Path:
    """A checkpoint of that shape, published in float16, with a tokenizer of one word an id."""
    random_pythia(*SHAPES[shape]).half().save_pretrained(folder)
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="w0", pad_token="w0", eos_token="w0"
    ).save_pretrained(folder)
    return folder


def states(
    loaded: LoadedCheckpoint, texts: Texts, batch_tokens: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]]:
    for positions, pooled in pooled_states(
        loaded,
        texts,
        layers=range(1, loaded.num_layers + 1),
        poolings=("mean",),
        layer_output="final_norm",
        batch_tokens=batch_tokens,
    ):
        yield positions, pooled["mean"]


def by_blocks(loaded: LoadedCheckpoint, texts: Texts, batch_tokens: int) -> None:
    """As extract goes through the corpus, a block of texts at a time, less the store."""
    for first in range(0, len(texts), BLOCK_TEXTS):
        for _ in states(loaded, texts[first : first + BLOCK_TEXTS], batch_tokens):
            pass


def at_once(loaded: LoadedCheckpoint, texts: Texts, batch_tokens: int) -> None:
    for _ in states(loaded, texts, batch_tokens):
        pass


def timed(run: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def repeats(loaded: LoadedCheckpoint, texts: Texts, batch_tokens: int) -> bool:
    first, second = (
        [values.tobytes() for _, values in states(loaded, texts, batch_tokens)] for _ in range(2)
    )
    return first == second


def sized(loaded: LoadedCheckpoint, seconds: float, batch_tokens: int) -> Texts:
    """As many texts as ours does in about so many seconds, in whole blocks if it is one."""
    some = make_texts(BLOCK_TEXTS if loaded.device.type == "cuda" else 16, seed=1)
    by_blocks(loaded, some, batch_tokens)
    pace = len(some) / timed(lambda: by_blocks(loaded, some, batch_tokens), loaded.device)
    count = int(np.clip(pace * seconds, 16, 65_536))
    return make_texts(count if count < BLOCK_TEXTS else count // BLOCK_TEXTS * BLOCK_TEXTS)


def store_of(
    folder: Path, model: Path, loaded: LoadedCheckpoint, texts: Texts, dtype: str
) -> tuple[GroupWriter, Callable[[], object]]:
    """The writer of a new store, and what extracts all of its blocks."""
    store = create_store(folder)
    with store.corpus_writer() as writer:
        writer.add_texts([f"text {row}" for row in range(len(texts))])
        writer.add_tokens("words", texts)
        writer.add_task(TASK, range(len(texts)))
        writer.finish({})
    corpus = store.corpus()
    assert corpus is not None
    device = str(loaded.device)
    config = Config.model_validate(
        {
            "models": [str(model)],
            "tasks": [TASK],
            "embedding": {"device": device, "dtype": dtype},
        }
    )
    shape = Shape(loaded.num_layers, loaded.hidden, 4 * loaded.hidden, VOCABULARY)
    layers = tuple(range(1, loaded.num_layers + 1))
    entry = PlanEntry(0, Checkpoint(str(model), "main", local=True), layers, shape, "words")
    spec = GroupSpec(
        layers=layers,
        poolings=("mean",),
        texts=len(texts),
        hidden=loaded.hidden,
        dtype="float16",
        block_texts=BLOCK_TEXTS,
        compression="none",
        provenance={},
    )
    group = store.writer(entry.key, spec)
    kept = Kept(store, entry.key, spec, config.embedding.batch_tokens)
    work = Work(group, corpus, config, entry, Figures(entry.key), kept)
    stop = StopRequest(60)
    return group, lambda: seal_blocks(work, loaded, range(spec.blocks), stop, "")


def writes(folder: Path, layers: int, hidden: int, texts: int) -> float:
    """Seconds of writing so many texts and nothing else, from a few blocks."""
    size = min(BLOCK_TEXTS, texts)
    blocks = max(min(4, texts // size), 1)
    spec = GroupSpec(
        layers=tuple(range(1, layers + 1)),
        poolings=("mean",),
        texts=blocks * size,
        hidden=hidden,
        dtype="float16",
        block_texts=size,
        compression="none",
        provenance={},
    )
    values = np.random.default_rng(0).standard_normal((layers, size, hidden), dtype=np.float32)
    with create_store(folder).writer("random/main", spec) as writer:
        start = time.perf_counter()
        for block in range(blocks):
            writer.write_block(block, {"mean": values})
        return (time.perf_counter() - start) * texts / (blocks * size)


def ours(shape: str, dtype: str, model: Path, device: str, clock: Clock) -> Cell:
    """Load as extract does, and measure extract and its parts."""
    loaded = load_checkpoint(str(model), dtype=dtype, device=device)
    where = loaded.device
    default = Config.model_validate({"models": ["m"], "tasks": [TASK]}).embedding.batch_tokens
    texts = sized(loaded, clock.seconds / 14, default)
    tokens, work = tokens_in(texts), flops(shape, texts)
    with tempfile.TemporaryDirectory() as folder:
        group, extract = store_of(Path(folder, "all.zarr"), model, loaded, texts, dtype)
        forget(where)
        with group:
            total = timed(extract, where)
        rows = [Row(shape, dtype, "extract", default, tokens, total, work)]
        rows[0].peak_mib = memory(where)
        alone = writes(Path(folder, "some.zarr"), loaded.num_layers, loaded.hidden, len(texts))
    bare = timed(lambda: by_blocks(loaded, texts, default), where)
    rate = copy_rate(where)
    cell = Cell(
        shape=shape,
        dtype=dtype,
        texts=len(texts),
        tokens=tokens,
        peak=peak(name_of(where), dtype),
        product=product_rate(where, loaded.dtype),
        repeats=repeats(loaded, texts[:512], default),
        extract_seconds=total,
        states_seconds=bare,
        copies_seconds=rate and 4.0 * loaded.num_layers * loaded.hidden * len(texts) / rate,
        writes_seconds=alone,
        rows=rows,
    )
    for size in OUR_SIZES[where.type]:
        row = Row(shape, dtype, "states", size)
        if clock.has(clock.seconds / 10, f"{shape} {dtype} states {size}"):
            forget(where)
            at_once(loaded, texts[:BLOCK_TEXTS], size)
            row.seconds = timed(partial(at_once, loaded, texts, size), where)
            row.tokens, row.flops = tokens, work
            row.peak_mib = memory(where)
            cell.rows.append(row)
    return cell


def beside(cell: Cell, model: Path, device: torch.device, clock: Clock) -> None:
    """What others take for the same, as far as they run here."""
    for theirs in (loops, encode):
        try:
            theirs(cell, model, device, clock)
        except (ImportError, ValueError, RuntimeError) as error:
            # Their trouble with this card; our figures are worth having without.
            what = f"{cell.shape} {cell.dtype} {theirs.__name__}"
            clock.left_out.append(f"{what}: {type(error).__name__}: {error}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--seconds", type=float, default=20, help="of a shape in a dtype, roughly")
    parser.add_argument("--limit", type=float, default=480, help="seconds in all; the rest is left")
    parser.add_argument("--json", type=Path, default=Path("build/bench-gpu.json"))
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.device != "cpu" and not torch.cuda.is_available():
        sys.exit("PyTorch sees no GPU here; --device cpu tries the benchmark itself out")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = torch.device(given.device)
    clock = Clock(given.limit, given.seconds)
    result = {**machine(device), "cells": [], "left_out": clock.left_out}
    print(", ".join(f"{k} {v}" for k, v in result.items() if isinstance(v, str | int)))
    for name in ("flash_attn", "sentence_transformers"):
        if find_spec(name) is None:
            clock.left_out.append(f"{name} isn't installed")
    for shape in given.shapes:
        with tempfile.TemporaryDirectory() as folder:
            if not clock.has(given.seconds, shape):
                continue
            model = publish(shape, Path(folder))
            for dtype in given.dtypes:
                if not computes_in(device, dtype):
                    clock.left_out.append(f"{shape}: the card has no {dtype}")
                    continue
                if not clock.has(given.seconds, f"{shape} {dtype}"):
                    continue
                cell = ours(shape, dtype, model, given.device, clock)
                beside(cell, model, device, clock)
                show(cell)
                result["cells"].append(as_json(cell))
                measured.write(given.json, result)
    for what in clock.left_out:
        print(f"left out: {what}")
    print(f"written: {given.json}")


if __name__ == "__main__":
    main()
