"""Extraction against the bare forward pass, and against a layer-by-layer run. Random weights.

    python tests/benchmarks/forward.py [14m 70m 410m] [--seconds 60]

Both sides of every ratio run in turns in one process, so that a busy machine slows both. On a CPU
that other processes share, the ratio of CPU seconds (``by CPU time``) is the one to look at.
Printed for each shape of Pythia:

- ``of bare``: our tokens/s over those of the bare forward pass of transformers' own model. Ours
  pools every layer with the final norm and writes a float16 Zarr store; the bare one runs the same
  texts in batches of its best size, without an attention mask, and drops what comes out.
- ``of the products``: multiply-adds of our matrix products (attention not counted) a CPU second,
  over those of ``functional.linear`` on matrices of the same sizes alone.
- ``padding``: share of the tokens in our batches that is padding.
- ``metrics``: seconds of the label-free metrics on 256 texts, and the share of the pass that they
  are for the 376,000 unique texts of the study's tasks (the big clustering ones apart).
- ``layer by layer``: what evaluating every layer with the model truncated to it costs, sorted
  batches of 32 texts, every task encoding its own copy of shared texts (3.35 rows for a unique
  text): forward passes, multiply-adds of the blocks, and measured CPU time, over ours.

At the end, peak memory of a process for one and for four blocks of texts.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measured
import numpy as np
import torch
from pythia import random_pythia

from batchsweep.forward.architecture import LoadedCheckpoint, describe
from batchsweep.forward.batching import make_batches, pad
from batchsweep.forward.forward import load_checkpoint, pooled_states
from batchsweep.forward.metrics import representation_metrics
from batchsweep.store import GroupSpec, GroupWriter, create_store

#: Blocks, hidden size, attention heads.
SHAPES = {"14m": (6, 128, 4), "70m": (6, 512, 8), "410m": (24, 1024, 16)}
BATCH_TOKENS = 2048
BARE_BATCH_TOKENS = (512, 2048, 8192)
ROWS_PER_TEXT = 3.35
STUDY_TEXTS = 376_000
ROUNDS = 7
#: Seconds of wall time and of CPU time.
Cost = tuple[float, float]


def random_models(shape: str) -> tuple[LoadedCheckpoint, LoadedCheckpoint]:
    """The same checkpoint as extract loads it, and as transformers does."""
    theirs = random_pythia(*SHAPES[shape]).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return load_checkpoint(folder, device="cpu"), describe(shape, theirs)


def make_texts(count: int, seed: int = 0) -> list[np.ndarray]:
    """Token ids with the lengths of MTEB's mixture: mostly sentences, some passages."""
    rng = np.random.default_rng(seed)
    passages = rng.random(count) < 0.15
    lengths = np.where(
        passages, rng.lognormal(np.log(150), 0.6, count), rng.lognormal(np.log(16), 0.6, count)
    )
    return [rng.integers(5, 50_000, n) for n in np.clip(lengths.astype(int), 2, 512)]


@torch.inference_mode()
def bare(loaded: LoadedCheckpoint, texts: list[np.ndarray], batch_tokens: int) -> None:
    lengths = np.array([len(t) for t in texts])
    for batch in make_batches(lengths, batch_tokens):
        ids = torch.from_numpy(pad([texts[i] for i in batch], lengths[batch].max()))
        loaded.model(input_ids=ids.to(loaded.device))
    if loaded.device.type == "cuda":
        torch.cuda.synchronize()


def group(loaded: LoadedCheckpoint, folder: str, block_texts: int, blocks: int) -> GroupWriter:
    """The writer of a new store; one is made for a whole checkpoint, so no ratio counts it."""
    spec = GroupSpec(
        layers=tuple(range(1, loaded.num_layers + 1)),
        poolings=("mean",),
        texts=block_texts * blocks,
        hidden=loaded.hidden,
        dtype="float16",
        block_texts=block_texts,
        compression="none",
        provenance={},
    )
    return create_store(f"{folder}/{time.monotonic_ns()}.zarr").writer("random/main", spec)


def ours(
    loaded: LoadedCheckpoint, texts: list[np.ndarray], writer: GroupWriter, block: int
) -> None:
    """As extract does it: pooled states into a block, the block into the store."""
    layers = writer.spec.layers
    states = np.empty((len(layers), len(texts), loaded.hidden), np.float32)
    for positions, pooled in pooled_states(
        loaded,
        texts,
        layers=layers,
        poolings=("mean",),
        layer_output="final_norm",
        batch_tokens=BATCH_TOKENS,
    ):
        states[:, positions] = pooled["mean"]
    writer.write_block(block, {"mean": states})


@torch.inference_mode()
def layer_by_layer(loaded: LoadedCheckpoint, rows: list[np.ndarray]) -> None:
    """Every layer by itself: the truncated model over all rows, masked mean, batches of 32."""
    every, owner, name = loaded.blocks, loaded.blocks_owner, loaded.blocks_attribute
    order = np.argsort([-len(r) for r in rows], kind="stable")
    for layer in range(1, loaded.num_layers + 1):
        setattr(owner, name, every[:layer])
        for first in range(0, len(rows), 32):
            batch = [rows[i] for i in order[first : first + 32]]
            lengths = torch.tensor([len(t) for t in batch])
            width = int(lengths.max())
            mask = (torch.arange(width) < lengths[:, None]).to(loaded.device)
            ids = torch.from_numpy(pad(batch, width)).to(loaded.device)
            states = loaded.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
            ((states * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)).cpu()
    setattr(owner, name, every)


def cost(run: Callable[..., object], *arguments: object) -> Cost:
    wall, cpu = time.perf_counter(), time.process_time()
    run(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def least(costs: list[Cost]) -> Cost:
    """The least of each: noise only ever adds."""
    return min(wall for wall, _ in costs), min(cpu for _, cpu in costs)


def tokens_in(texts: list[np.ndarray]) -> int:
    return sum(map(len, texts))


def sized(loaded: LoadedCheckpoint, seconds: float) -> list[np.ndarray]:
    """As many texts as one pass does in about ``seconds``."""
    some = make_texts(48, seed=1)
    bare(loaded, some, BATCH_TOKENS)
    rate = len(some) / cost(bare, loaded, some, BATCH_TOKENS)[0]
    return make_texts(int(np.clip(rate * seconds, 64, 4096)))


@torch.inference_mode()
def product_rate(hidden: int) -> float:
    """Multiply-adds a CPU second of a block's four products by themselves, at their best."""
    least_cpu = 0.0
    for inputs, outputs in ((1, 3), (1, 1), (1, 4), (4, 1)):
        rows = torch.randn(BATCH_TOKENS, inputs * hidden)
        weight = torch.randn(outputs * hidden, inputs * hidden)
        costs = [cost(torch.nn.functional.linear, rows, weight) for _ in range(8)]
        least_cpu += least(costs)[1]
    return 12 * hidden**2 * BATCH_TOKENS / least_cpu


def measure(shape: str, seconds: float, folder: str) -> dict[str, object]:
    loaded, theirs = random_models(shape)
    texts = sized(theirs, seconds / (ROUNDS * (1 + len(BARE_BATCH_TOKENS))))
    own: list[Cost] = []
    floors: dict[int, list[Cost]] = {size: [] for size in BARE_BATCH_TOKENS}
    with group(loaded, folder, len(texts), ROUNDS) as writer:
        for block in range(ROUNDS):
            own.append(cost(ours, loaded, texts, writer, block))
            for size, costs in floors.items():
                costs.append(cost(bare, theirs, texts, size))
    best = min(floors, key=lambda size: least(floors[size])[1])
    wall, cpu = least(own)
    floor_wall, floor_cpu = (min(least(costs)[i] for costs in floors.values()) for i in (0, 1))
    rate = tokens_in(texts) / wall
    work = 12 * loaded.hidden**2 * loaded.num_layers * tokens_in(texts)
    of_products = work / cpu / product_rate(loaded.hidden)
    print(
        f"{shape}: {rate:,.0f} tokens/s with the store, {floor_wall / wall:.3f} of bare, by CPU "
        f"time {floor_cpu / cpu:.3f} (its best batch: {best} tokens; {len(texts)} texts, "
        f"{tokens_in(texts)} tokens); {of_products:.0%} of the products",
        flush=True,
    )
    lengths = np.array([len(t) for t in make_texts(4096)])
    batches = make_batches(lengths, BATCH_TOKENS)
    padded = sum(len(b) * lengths[b].max() for b in batches)
    print(f"{shape}: padding {1 - lengths.sum() / padded:.2%}, {len(batches)} batches a block")

    sample = make_texts(256, seed=2)[: len(texts)]
    start = time.perf_counter()
    layers = range(1, loaded.num_layers + 1)
    representation_metrics(
        loaded, sample, layers=layers, layer_output="final_norm", batch_tokens=BATCH_TOKENS
    )
    spent = time.perf_counter() - start
    mean_tokens = tokens_in(texts) / len(texts)
    share = spent / (STUDY_TEXTS * mean_tokens / rate)
    print(f"{shape}: metrics of {len(sample)} texts {spent:.1f} s, {share:.2%} of the study's pass")

    few = texts[: 480 // loaded.num_layers]
    chosen = np.random.default_rng(0).permutation(np.tile(np.arange(len(few)), 4))
    rows = [few[i] for i in chosen[: round(ROWS_PER_TEXT * len(few))]]
    with group(loaded, folder, len(few), 1) as writer:
        old, new = cost(layer_by_layer, theirs, rows)[1], cost(ours, loaded, few, writer, 0)[1]
    count = loaded.num_layers
    passes = count * len(rows) / len(few)
    work = (count + 1) / 2 * tokens_in(rows) / tokens_in(few)
    print(
        f"{shape}: layer by layer {passes:.0f} x the passes, {work:.0f} x the multiply-adds, "
        f"{old / new:.0f} x the CPU time ({len(few)} texts)"
    )
    return {
        "shape": shape,
        "tokens_per_second": rate,
        "of_bare": floor_wall / wall,
        "of_bare_by_processor": floor_cpu / cpu,
        "of_products": of_products,
        "padding": 1 - lengths.sum() / padded,
        "metrics_share": share,
        "layer_by_layer": {"passes": passes, "multiply_adds": work, "processor": old / new},
    }


def peak(blocks: int) -> None:
    """Peak memory in MiB of a process that extracts so many blocks, 14m."""
    loaded, _ = random_models("14m")
    with tempfile.TemporaryDirectory() as folder, group(loaded, folder, 1024, blocks) as writer:
        for block in range(blocks):
            ours(loaded, make_texts(1024, seed=block), writer, block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), help=", ".join(SHAPES))
    parser.add_argument("--seconds", type=float, default=60, help="time for each shape, roughly")
    parser.add_argument("--json", type=Path, default=measured.FOLDER / "forward.json")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak(arguments.peak)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(shape, arguments.seconds, folder) for shape in arguments.shapes]
    command = [sys.executable, str(Path(__file__)), "--peak"]
    one, four = (int(subprocess.check_output([*command, str(n)])) for n in (1, 4))
    versions = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    peaks = {"peak_mib_1_block": one, "peak_mib_4_blocks": four}
    measured.write(arguments.json, {**versions, **peaks, "rows": rows})
    print(f"peak memory, 14m: {one} MiB for one block, {four} MiB for four")


if __name__ == "__main__":
    main()
