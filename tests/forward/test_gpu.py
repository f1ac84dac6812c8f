"""The forward pass and the store on a card; what a CPU can show of it runs there as well.

These files need no fixture of conftest.py and nothing of mteb, so that they run on a machine that
has PyTorch, transformers and the few packages of ``tests/gpu_packages.txt``.
"""

from __future__ import annotations

import gc
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from architectures import ARCHITECTURES, VOCABULARY, random_model
from gpu_card import devices, on_a_card

from batchsweep.checkpoints.checkpoint import Checkpoint
from batchsweep.checkpoints.shape import Shape
from batchsweep.config import Config
from batchsweep.errors import IndexFailed
from batchsweep.extract.blocks import Work, seal_blocks
from batchsweep.extract.figures import Figures
from batchsweep.extract.kept import Kept
from batchsweep.forward.architecture import LoadedCheckpoint
from batchsweep.forward.batching import free_padding, make_batches
from batchsweep.forward.forward import load_checkpoint, pooled_states
from batchsweep.forward.metrics import representation_metrics
from batchsweep.forward.pooling import POOLINGS
from batchsweep.plan.plan import PlanEntry
from batchsweep.signals import StopRequest
from batchsweep.store import GroupSpec, create_store

Floats = npt.NDArray[np.float32]
#: Other kernels sum in another order.
ROUNDING: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}
#: Of a vector in half precision, the distance from float32's in spacings of that dtype at its
#: length: three blocks' worth of rounding stays below it.
HALF_ROUNDING = 8.0
MIB = 1 << 20


def texts(count: int, longest: int = 60, seed: int = 0) -> list[npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCABULARY, n) for n in rng.integers(1, longest + 1, count)]


def saved(folder: Path, dtype: str = "float16", **sizes: int) -> Path:
    """A GPT-NeoX with random weights, published in ``dtype``."""
    torch.manual_seed(0)
    config = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, **sizes}
    model = transformers.GPTNeoXModel(
        transformers.GPTNeoXConfig(
            vocab_size=VOCABULARY,
            intermediate_size=4 * config["hidden_size"],
            bos_token_id=0,
            eos_token_id=0,
            **config,
        )
    )
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def embed(
    loaded: LoadedCheckpoint,
    some: list[npt.NDArray[np.int64]],
    batch_tokens: int,
    poolings: tuple[str, ...] = ("mean",),
) -> Floats:
    """[pooling, layer, text, hidden]"""
    layers = range(1, loaded.num_layers + 1)
    states = np.full((len(poolings), len(layers), len(some), loaded.hidden), np.nan, np.float32)
    for positions, pooled in pooled_states(
        loaded,
        some,
        layers=layers,
        poolings=poolings,
        layer_output="final_norm",
        batch_tokens=batch_tokens,
    ):
        for place, name in enumerate(poolings):
            states[place][:, positions] = pooled[name]
    return states


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("gpu") / "model")


@pytest.fixture
def whole_card() -> Iterator[None]:
    """Afterwards the card is as free as before."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("device", devices("a card's states against transformers' tuple"))
def test_every_architecture_gives_transformers_own_tuple(
    name: str, device: str, tmp_path: Path
) -> None:
    random_model(name).save_pretrained(tmp_path)
    loaded = load_checkpoint(str(tmp_path), device=device, dtype="float32")
    assert loaded.causal == ("bert" not in name)
    theirs = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    some = texts(12, 17)
    layers = range(loaded.num_layers + 1)
    for positions, pooled in pooled_states(
        loaded,
        some,
        layers=layers,
        poolings=("mean",),
        layer_output="hidden_states",
        batch_tokens=64,
    ):
        for column, row in enumerate(positions):
            with torch.inference_mode():
                ids = torch.from_numpy(some[row])[None]
                states = theirs(input_ids=ids, output_hidden_states=True).hidden_states
            want = torch.stack([of_layer[0].mean(dim=0) for of_layer in states])
            np.testing.assert_allclose(pooled["mean"][:, column], want, **ROUNDING)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("device", devices("half precision's states against float32's"))
def test_half_precision_is_float32_within_its_rounding(
    folder: Path, device: str, dtype: str
) -> None:
    # The weights are float16's own, so that float32 computes with the same ones; bfloat16 rounds
    # them, once.
    some = texts(48)
    exact, half = (
        embed(load_checkpoint(str(folder), device=device, dtype=d), some, 512, POOLINGS)
        for d in ("float32", dtype)
    )
    spacing = torch.finfo(getattr(torch, dtype)).eps
    distance = np.linalg.norm(half - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    assert 0 < distance.max() < HALF_ROUNDING * spacing


@pytest.mark.parametrize("published", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("device", devices("dtype auto is the published one"))
def test_dtype_auto_is_as_published_on_a_card(published: str, device: str, tmp_path: Path) -> None:
    saved(tmp_path, published, hidden_size=32)
    want = published if device == "cuda" else "float32"
    auto, named = (
        load_checkpoint(str(tmp_path), device=device, dtype=dtype) for dtype in ("auto", want)
    )
    assert auto.dtype == named.dtype == getattr(torch, want)
    np.testing.assert_array_equal(embed(auto, texts(9), 128), embed(named, texts(9), 128))


@pytest.mark.parametrize("device", devices("copies beside the next batch's computing"))
def test_batches_beside_each_other_give_the_bytes_of_each_alone(folder: Path, device: str) -> None:
    loaded = load_checkpoint(str(folder), device=device)
    some = texts(400 if device == "cpu" else 6000)
    beside = embed(loaded, some, 2048, POOLINGS)
    batches = make_batches([len(text) for text in some], 2048, free_padding(loaded.hidden))
    assert len(batches) > 4
    for positions in batches:
        # A call with one batch has nothing in flight but this.
        alone = embed(loaded, [some[i] for i in positions], 2048, POOLINGS)
        np.testing.assert_array_equal(beside[:, :, positions], alone)


@pytest.mark.parametrize("device", devices("the same bytes in two processes"))
def test_two_processes_give_the_same_bytes(folder: Path, device: str) -> None:
    dtypes = ["float32", "bfloat16", "float16"]
    program = (
        "from test_gpu import digest\n"
        "import sys\n"
        "folder, device, *dtypes = sys.argv[1:]\n"
        "print(*(digest(folder, device, dtype) for dtype in dtypes))\n"
    )
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parents[1]), os.environ.get("PYTHONPATH", "")]
    one = subprocess.run(
        [sys.executable, "-c", program, str(folder), device, *dtypes],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert one.returncode == 0, one.stderr
    assert one.stdout.split() == [digest(str(folder), device, dtype) for dtype in dtypes]


def digest(folder: str, device: str, dtype: str) -> str:
    """sha256 (hex) of the states of some texts."""
    loaded = load_checkpoint(folder, device=device, dtype=dtype)
    return hashlib.sha256(embed(loaded, texts(200), 1024, POOLINGS).tobytes()).hexdigest()


def work_of(store: Path, model: Path, some: list[npt.NDArray[np.int64]], device: str) -> Any:
    """What an index is computed from, with token ids that no tokenizer made."""
    config = Config.model_validate(
        {"models": [str(model)], "tasks": ["STS12"], "embedding": {"device": device}}
    )
    at = create_store(store)
    with at.corpus_writer() as corpus:
        corpus.add_texts([f"text {row}" for row in range(len(some))])
        corpus.add_tokens("ids", some)
        corpus.add_task("STS12", range(len(some)))
        corpus.finish({})
    entry = PlanEntry(
        0, Checkpoint(str(model), "main", local=True), (1, 2, 3), Shape(3, 256, 1024, 61), "ids"
    )
    spec = GroupSpec(
        layers=entry.layers,
        poolings=("mean",),
        texts=len(some),
        hidden=256,
        dtype="float32",
        block_texts=64,
        compression="none",
        provenance={},
    )
    return config, at, entry, spec


@pytest.mark.parametrize("device", devices("the bytes of a store, at once and resumed"))
def test_a_store_of_two_runs_and_one_that_was_resumed_have_the_same_bytes(
    folder: Path, device: str, tmp_path: Path
) -> None:
    some = texts(300)
    found = []
    whole = tuple(range(5))
    for name, runs in {"a": [whole], "b": [whole], "resumed": [(3, 0), (4, 1, 2)]}.items():
        config, store, entry, spec = work_of(tmp_path / name, folder, some, device)
        for blocks in runs:
            loaded = load_checkpoint(str(folder), device=device)
            corpus = store.corpus()
            assert corpus is not None
            with store.writer(entry.key, spec) as writer:
                kept = Kept(store, entry.key, spec, config.embedding.batch_tokens)
                work = Work(writer, corpus, config, entry, Figures(entry.key), kept)
                seal_blocks(work, loaded, blocks, StopRequest(60), name)
        with store.writer(entry.key, spec) as writer:
            writer.finish()
        reader = store.reader(entry.key)
        found.append([reader.read("mean", layer=layer).tobytes() for layer in entry.layers])
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("device", devices("the label-free metrics"))
def test_the_metrics_are_those_of_the_cpu(folder: Path, device: str) -> None:
    found = [
        representation_metrics(
            load_checkpoint(str(folder), device=where, dtype="float32"),
            texts(40),
            layers=(1, 2, 3),
            layer_output="final_norm",
            batch_tokens=512,
        )
        for where in ("cpu", device)
    ]
    assert found[0].keys() == found[1].keys()
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, rtol=1e-2, atol=1e-3, err_msg=name)


LARGE_BATCH = 1_200_000
SEEN_BY_NO_CPU = on_a_card("memory that really runs out")


@pytest.mark.parametrize("kept", ["by a limit", "by another tensor"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=SEEN_BY_NO_CPU)])
def test_memory_that_runs_out_halves_batches(
    folder: Path,
    device: str,
    kept: str,
    caplog: pytest.LogCaptureFixture,
    whole_card: None,
) -> None:
    loaded = load_checkpoint(str(folder), device=device, dtype="float32")
    many = [np.arange(3, 59) for _ in range(20_000)]
    want = embed(loaded, many[:64], 4096)  # And kernels and workspaces are there.
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    hog = None
    if kept == "by a limit":
        room = torch.cuda.memory_reserved() + 512 * MIB
        torch.cuda.set_per_process_memory_fraction(room / total)
    else:
        hog = torch.empty(free - 768 * MIB, dtype=torch.uint8, device=device)
    got = embed(loaded, many, LARGE_BATCH)
    del hog
    assert "out of memory" in caplog.text and "going on with half" in caplog.text
    np.testing.assert_allclose(got[:, :, :64], want, **ROUNDING)
    np.testing.assert_allclose(got, np.broadcast_to(got[:, :, :1], got.shape), **ROUNDING)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=SEEN_BY_NO_CPU)])
def test_one_text_that_does_not_fit_is_named_and_the_next_call_works(
    folder: Path, device: str, whole_card: None
) -> None:
    loaded = load_checkpoint(str(folder), device=device, dtype="float32")
    want = embed(loaded, texts(20), 512)
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 128 * MIB) / total)
    long = [np.arange(3, 9), np.full(400_000, 7)]
    with pytest.raises(IndexFailed, match=r"row 1: one text of 400000 tokens.*max_length"):
        embed(loaded, long, 512)
    np.testing.assert_array_equal(embed(loaded, texts(20), 512), want)


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_a_card("TF32 is off"))])
def test_float32_is_not_tensorfloat32(device: str) -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(256, 4096, dtype=torch.float64) for _ in range(2))
    got = (a.float().to(device) @ b.float().to(device).T).double().cpu()
    # TF32 keeps 10 bits: its error would be 1e-3 of the entries' spread.
    assert (got - a @ b.T).abs().max() / (a @ b.T).std() < 1e-4
