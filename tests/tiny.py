"""Tiny models with random weights, their tokenizer, and small local tasks: made in a second."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTNeoXConfig, GPTNeoXModel, PreTrainedTokenizerFast

WORDS = (
    "the a this old new small big red blue green cat dog bird fish tree house river road man woman "
    "child sees likes eats finds takes loses very never often today sun moon star rain wind cold "
    "warm happy sad quick slow under over near far with without bread milk stone paper"
).split()


def sentence(rng: random.Random, low: int = 3, high: int = 14) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def make_tokenizer(folder: Path) -> None:
    vocab = {word: i for i, word in enumerate(["<|endoftext|>", "<|padding|>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|padding|>",
        unk_token="<unk>",
    ).save_pretrained(folder)


def make_model(
    folder: Path, *, seed: int, layers: int = 2, hidden: int = 32, vocab: int | None = None
) -> None:
    """A GPT-NeoX model with random weights and the tokenizer, as a checkpoint's directory."""
    torch.manual_seed(seed)
    config = GPTNeoXConfig(
        vocab_size=vocab or len(WORDS) + 3,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=4 * hidden,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPTNeoXModel(config)
    with torch.no_grad():
        # The default's tiny weights make all layers look alike.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.save_pretrained(folder)
    make_tokenizer(folder)


def make_suite(
    root: Path,
    revisions: tuple[str, ...] = ("step0", "step1", "main"),
    *,
    layers: int = 2,
    hidden: int = 32,
) -> Path:
    """A local suite: one directory per revision, every one with other weights."""
    for seed, revision in enumerate(revisions):
        make_model(root / revision, seed=seed, layers=layers, hidden=hidden)
    return root


def make_tasks(folder: Path, *, n: int = 60, seed: int = 0) -> list[dict[str, str]]:
    """An STS and a clustering task as JSONL files; the config's ``tasks`` entries."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    pairs = []
    for _ in range(n):
        first = sentence(rng)
        words = first.split()
        kept = rng.random()
        second = " ".join(w if rng.random() < kept else rng.choice(WORDS) for w in words)
        pairs.append({"sentence1": first, "sentence2": second, "score": round(kept, 3)})
    _write_jsonl(folder / "pairs.jsonl", pairs)
    groups = []
    for i in range(n):
        topic = WORDS[10 * (i % 4) : 10 * (i % 4) + 10]
        text = " ".join(rng.choice(topic) for _ in range(rng.randint(4, 9)))
        groups.append({"text": text, "label": f"topic{i % 4}"})
    _write_jsonl(folder / "groups.jsonl", groups)
    return [
        {"name": "TinySTS", "type": "sts", "path": str(folder / "pairs.jsonl")},
        {"name": "TinyClustering", "type": "clustering", "path": str(folder / "groups.jsonl")},
    ]


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_config(path: Path, **sections) -> Path:
    """A config file of these sections (JSON is YAML)."""
    path.write_text(json.dumps(sections, default=str, indent=1))
    return path


def write_sweep(folder: Path, name: str, suite: Path, **sections) -> Path:
    """A config of a small suite with blocks of 16 texts; sections given replace whole ones."""
    defaults = {
        "models": [str(suite)],
        "store": {"path": str(folder / name / "store.zarr"), "block_texts": 16},
        "metrics": {"sample": 16},
    }
    return write_config(folder / f"{name}.yaml", **{**defaults, **sections})


def extracted_store(
    folder: Path, suite: Path, revisions: tuple[str, ...], tasks: list[dict], *, sample: int
) -> Path:
    """A store that all indexes were extracted to, one after the other, in this process."""
    from batchsweep.cli.main import main

    config = write_config(
        folder / "sweep.yaml",
        models=[str(suite)],
        revisions=list(revisions),
        tasks=tasks,
        store={"path": str(folder / "store.zarr"), "block_texts": 16},
        metrics={"sample": sample},
    )
    assert main(["prepare", "--config", str(config)]) == 0
    assert main(["extract", "--config", str(config), "--all"]) == 0
    return folder / "store.zarr"


def answer_and_pulls(store: Path) -> tuple[dict, list[dict]]:
    """The bandit's answer and its pulls, less what the clock decides."""
    (folder,) = store.glob("documents/bandit/*")
    pulls = [json.loads(p.read_text()) for p in sorted((folder / "pulls").glob("*.json"))]
    answer = json.loads((folder / "answer.json").read_text())
    for record in (*pulls, answer):
        record.pop("seconds", None)
        record.pop("finished", None)
        record.pop("crc32c")
    return answer, pulls
