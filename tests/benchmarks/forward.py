"""Extraction against the bare forward pass, and against a layer-by-layer run. Random weights.

    python tests/benchmarks/forward.py [14m 70m 410m] [--seconds 60]

Both sides of every ratio run in turns in one process, on one thread, on the same texts, in
processor time. Every round has other texts, so that ours pays for batches of sizes that it hasn't
met. Printed for each shape of Pythia, as medians over the rounds with the lowest and the highest:

- ``of bare``: our tokens a second over those of the bare forward pass of transformers' own model.
  Ours pools every layer with the final norm and writes a float16 Zarr store, in blocks and batches
  of the config's default sizes; the bare one runs the same texts in batches of its best size
  (512 or 2,048 tokens, as much padding as ours or less), without an attention mask, and drops what
  comes out. Lengths are those of MTEB's mixture, token ids as frequent as words are (the r-th
  1 / (r + 2.7)): 45 % of a whole block's are different.
- ``other ids``: the same on ids drawn evenly, 90 % of them different: ours at its worst.
- ``of the products``: multiply-adds of the matrix products (attention not counted) a processor
  second, over those of ``functional.linear`` on matrices of the same sizes alone.
- ``padding``: share of the rows of our products that is no token.
- ``metrics``: seconds of the label-free metrics on 256 texts, and the share of the pass that they
  are for the 376,000 unique texts of the study's tasks (the big clustering ones apart).
- ``layer by layer``: what evaluating every layer with the model truncated to it costs, sorted
  batches of 32 texts, every task encoding its own copy of shared texts (3.35 rows for a unique
  text): forward passes, multiply-adds of the blocks, and measured CPU time, over ours.

At the end, peak memory of a process for 1, 4 and 16 blocks of texts of 14m.
"""

from __future__ import annotations

import argparse
import itertools
import os
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
from batchsweep.forward.batching import free_padding, make_batches, pack_batches, packed_tokens, pad
from batchsweep.forward.forward import load_checkpoint, pooled_states
from batchsweep.forward.metrics import representation_metrics
from batchsweep.forward.products import filled
from batchsweep.store import GroupSpec, GroupWriter, create_store

#: Blocks, hidden size, attention heads.
SHAPES = {"14m": (6, 128, 4), "70m": (6, 512, 8), "410m": (24, 1024, 16)}
#: A config's defaults.
BLOCK_TEXTS, BATCH_TOKENS = 256, 16_384
#: Rows of the matrices that the products' rate is measured with.
PRODUCT_ROWS = 2048
BARE_BATCH_TOKENS = (512, 2048)
ROWS_PER_TEXT = 3.35
IDS = 50_000
STUDY_TEXTS = 376_000
ROUNDS = 7
PEAK_BLOCKS = (1, 4, 16)
COLUMNS = [
    measured.column("Pythia's shape", "{shape}"),
    measured.column(
        "times the bare pass (lowest, highest round)",
        "{of_bare[median]:.2f} ({of_bare[lowest]:.2f}, {of_bare[highest]:.2f})",
    ),
    measured.column(
        "ids that hardly repeat",
        "{of_bare_with_other_ids[median]:.2f} ({of_bare_with_other_ids[lowest]:.2f}, "
        "{of_bare_with_other_ids[highest]:.2f})",
    ),
    measured.column("of the products' rate", "{of_products:.0%}"),
    measured.column("padding", "{padding:.1%}"),
    measured.column("layer by layer", "{layer_by_layer[processor]:.0f} times ours"),
    measured.column("rounds of texts", "{rounds} of {texts}"),
]
#: Seconds of wall time and of CPU time.
Cost = tuple[float, float]


def random_models(shape: str) -> tuple[LoadedCheckpoint, LoadedCheckpoint]:
    """The same checkpoint as extract loads it, and as transformers does."""
    theirs = random_pythia(*SHAPES[shape]).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return load_checkpoint(folder, device="cpu"), describe(shape, theirs)


def make_texts(count: int, seed: int = 0, *, even: bool = False) -> list[np.ndarray]:
    """Token ids with the lengths of MTEB's mixture: mostly sentences, some passages.

    As frequent as words are, or ``even``: each as often as any other.
    """
    rng = np.random.default_rng(seed)
    passages = rng.random(count) < 0.15
    lengths = np.where(
        passages, rng.lognormal(np.log(150), 0.6, count), rng.lognormal(np.log(16), 0.6, count)
    )
    share = np.full(IDS, 1 / IDS) if even else 1 / (np.arange(IDS) + 3.7)
    ids = 5 + rng.permutation(IDS)
    return [
        ids[rng.choice(IDS, n, p=share / share.sum())] for n in np.clip(lengths.astype(int), 2, 512)
    ]


@torch.inference_mode()
def bare(
    loaded: LoadedCheckpoint, texts: list[np.ndarray], batch_tokens: int, free: int = 0
) -> None:
    lengths = np.array([len(t) for t in texts])
    for batch in make_batches(lengths, batch_tokens, free):
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


def tokens_in(texts: list[np.ndarray]) -> int:
    return sum(map(len, texts))


def sized(loaded: LoadedCheckpoint, seconds: float) -> int:
    """As many texts as one pass does in about ``seconds``, a block at most."""
    some = make_texts(48, seed=1)
    bare(loaded, some, 2048)
    rate = len(some) / cost(bare, loaded, some, 2048)[1]
    return int(np.clip(rate * seconds, 24, BLOCK_TEXTS))


@torch.inference_mode()
def product_rate(hidden: int) -> float:
    """Multiply-adds a CPU second of a block's four products by themselves, at their best."""
    least_cpu = 0.0
    for inputs, outputs in ((1, 3), (1, 1), (1, 4), (4, 1)):
        rows = torch.randn(PRODUCT_ROWS, inputs * hidden)
        weight = torch.randn(outputs * hidden, inputs * hidden)
        # The least: noise only ever adds.
        least_cpu += min(cost(torch.nn.functional.linear, rows, weight)[1] for _ in range(8))
    return 12 * hidden**2 * PRODUCT_ROWS / least_cpu


def spread(ratios: list[float]) -> dict[str, float]:
    return {"median": float(np.median(ratios)), "lowest": min(ratios), "highest": max(ratios)}


def _said(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"


def rounds(
    loaded: LoadedCheckpoint, theirs: LoadedCheckpoint, count: int, folder: str
) -> tuple[dict[str, list[float]], int]:
    """Processor seconds of each round, by side; and the tokens of all rounds."""
    sides: dict[str, list[float]] = {}
    floors: dict[tuple[int, int], list[float]] = {}
    tokens = 0
    names = {"ours": False, "other ids": True}
    with (
        group(loaded, folder, count, ROUNDS) as writer,
        group(loaded, folder, count, ROUNDS) as other,
    ):
        for number in range(ROUNDS):
            texts = {name: make_texts(count, number, even=even) for name, even in names.items()}
            tokens += tokens_in(texts["ours"])
            for name, into in (("ours", writer), ("other ids", other)):
                spent = cost(ours, loaded, texts[name], into, number)[1]
                sides.setdefault(name, []).append(spent)
            for way in itertools.product(BARE_BATCH_TOKENS, {0, free_padding(theirs.hidden)}):
                floors.setdefault(way, []).append(cost(bare, theirs, texts["ours"], *way)[1])
    return {**sides, "bare": min(floors.values(), key=sum)}, tokens


def measure(shape: str, seconds: float, folder: str) -> dict[str, object]:
    loaded, theirs = random_models(shape)
    count = sized(theirs, seconds / (ROUNDS * (2 + 2 * len(BARE_BATCH_TOKENS))))
    texts = make_texts(count)
    sides, tokens = rounds(loaded, theirs, count, folder)
    of_bare, others = (
        spread([b / own for b, own in zip(sides["bare"], sides[name], strict=True)])
        for name in ("ours", "other ids")
    )
    cpu = sum(sides["ours"])
    rate = tokens / cpu
    adds = 12 * loaded.hidden**2 * loaded.num_layers * tokens
    of_products = adds / cpu / product_rate(loaded.hidden)
    print(
        f"{shape}: {rate:,.0f} tokens a processor second with the store, "
        f"{_said(of_bare)} of bare, with other ids {_said(others)}; {of_products:.0%} of the "
        f"products ({ROUNDS} rounds of {count} texts)",
        flush=True,
    )
    lengths = np.array([len(t) for t in make_texts(BLOCK_TEXTS)])
    batches = pack_batches(lengths, packed_tokens(loaded.hidden, int(lengths.sum())))
    # On "meta", where rows take no memory.
    taken = (torch.empty(lengths[b].sum(), loaded.hidden, device="meta") for b in batches)
    padding = 1 - lengths.sum() / sum(len(filled(rows)) for rows in taken)
    print(f"{shape}: padding {padding:.2%}, {len(batches)} batches a block")

    sample = make_texts(256, seed=2)[: len(texts)]
    start = time.process_time()
    layers = range(1, loaded.num_layers + 1)
    representation_metrics(
        loaded, sample, layers=layers, layer_output="final_norm", batch_tokens=BATCH_TOKENS
    )
    spent = time.process_time() - start
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
        "rounds": ROUNDS,
        "texts": len(texts),
        "tokens_per_processor_second": rate,
        "of_bare": of_bare,
        "of_bare_with_other_ids": others,
        "of_products": of_products,
        "padding": padding,
        "metrics_share": share,
        "layer_by_layer": {"passes": passes, "multiply_adds": work, "processor": old / new},
    }


def peak(blocks: int) -> None:
    """Peak memory in MiB of a process that extracts so many blocks of 14m, once it is loaded."""
    loaded, _ = random_models("14m")
    # A process's own record: that of getrusage begins with what its parent had.
    Path("/proc/self/clear_refs").write_text("5")
    with tempfile.TemporaryDirectory() as folder, group(loaded, folder, BLOCK_TEXTS, blocks) as w:
        for block in range(blocks):
            ours(loaded, make_texts(BLOCK_TEXTS, seed=block), w, block)
    status = Path("/proc/self/status").read_text()
    [kib] = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    print(int(kib) // 1024)


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
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(shape, arguments.seconds, folder) for shape in arguments.shapes]
    command = [sys.executable, str(Path(__file__)), "--peak"]
    peaks = {n: int(subprocess.check_output([*command, str(n)])) for n in PEAK_BLOCKS}
    print("peak memory, 14m:", ", ".join(f"{mib} MiB for {n} blocks" for n, mib in peaks.items()))
    measured.write(
        arguments.json,
        {"torch": torch.__version__, "peak_mib": peaks, "columns": COLUMNS, "rows": rows},
    )


if __name__ == "__main__":
    main()
