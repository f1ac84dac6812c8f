"""The demo's models: a miniature of a published suite, trained on the spot.

The layout is that of a Hub repo's branches, one folder per branch::

    SUITE/demo-neox-xs/step0/    config.json, model.safetensors, tokenizer.json, ...
    SUITE/demo-neox-xs/step1/
    ...
    SUITE/demo-neox-xs/main/     the weights of the last step, as with Pythia
    SUITE/demo-neox-s/...

Both models read the same text in the same order, one thread each, so that the weights depend on
the seed alone and not on how many cores there are.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchsweep.demo.language import document, vocabulary
from batchsweep.errors import BatchsweepError
from batchsweep.progress import progress

if TYPE_CHECKING:
    from torch import Tensor

END = "<|endoftext|>"
UNKNOWN = "<|unknown|>"


@dataclass(frozen=True)
class Size:
    """A model of the suite."""

    layers: int
    hidden: int
    heads: int
    peak_rate: float
    """Of the learning rate: the smaller, the higher, as with Pythia."""


SIZES = {"demo-neox-xs": Size(4, 128, 4, 4e-3), "demo-neox-s": Size(6, 144, 4, 2e-3)}


@dataclass(frozen=True)
class Training:
    """What, together with the language, decides the weights. The defaults are the demo's."""

    steps: int = 640
    batch: int = 8
    length: int = 64
    warm_up: int = 32
    seed: int = 0

    @property
    def saved(self) -> tuple[int, ...]:
        """Steps that are saved: 0, the powers of two, then every eighth, and the last.

        Pythia's schedule in small: powers of two while much happens, then regular intervals.
        """
        early = (2**n for n in range(self.steps.bit_length()) if 2**n < self.steps / 8)
        return (0, *early, *(max(1, self.steps * n // 8) for n in range(1, 9)))


def build(folder: Path, training: Training | None = None) -> None:
    """Train all models into ``folder``, two at a time.

    Raises:
        BatchsweepError: a training process died; names the model.
    """
    training = training or Training()
    # Not fork: this process may have started threads (torch, BLAS) that a fork would lose.
    context = multiprocessing.get_context("spawn")
    counts = {name: context.Value("q", 0) for name in SIZES}
    workers = {
        name: context.Process(
            target=_train_process, args=(name, folder, training, counts[name]), daemon=True
        )
        for name in SIZES
    }
    # In units of work, so that the time left is right: a step of the larger model takes longer.
    weight = {name: size.layers * size.hidden**2 for name, size in SIZES.items()}
    total = sum(weight.values())
    with progress("train", total=training.steps, unit="steps") as bar:
        for worker in workers.values():
            worker.start()
        while any(worker.is_alive() for worker in workers.values()):
            for worker in workers.values():
                worker.join(timeout=0.25)
            done = sum(weight[name] * counts[name].value for name in SIZES) // total
            bar.advance(done - bar.done)
    for name, worker in workers.items():
        if worker.exitcode != 0:
            raise BatchsweepError(
                f"training {name} ended with exit code {worker.exitcode}; run the demo again "
                "(a negative code is a signal: -9 often means that memory ran out)"
            )


def _train_process(name: str, folder: Path, training: Training, count: Any) -> None:
    parent = os.getppid()
    for step in train(name, folder, training):
        count.value = step
        if os.getppid() != parent:  # Killed: nobody waits for this suite any more.
            os._exit(1)


def train(name: str, folder: Path, training: Training) -> Iterator[int]:
    """Train one model into ``folder/name/REVISION``, yielding each step that is done."""
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(training.seed)
    tokenizer = build_tokenizer()
    size = SIZES[name]
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.hidden,
            max_position_embeddings=512,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)

    def save(revision: str) -> None:
        _save(model, folder / name / revision)
        tokenizer.save_pretrained(folder / name / revision)

    save("step0")
    batches = _batches(tokenizer.get_vocab(), training)
    for step in range(1, training.steps + 1):
        ids_BT = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = size.peak_rate * _rate(step, training)
        logits_BTV = model(ids_BT).logits
        loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step in training.saved:
            save(f"step{step}")
        yield step
    save("main")


def _rate(step: int, training: Training) -> float:
    """Learning rate over its peak: linear warm-up, then a cosine down to a tenth."""
    if step <= training.warm_up:
        return step / training.warm_up
    part = (step - training.warm_up) / (training.steps - training.warm_up)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * part))


def _batches(vocabulary_ids: dict[str, int], training: Training) -> Iterator[Tensor]:
    """Token ids [batch, length] of endless fresh documents, packed with ``END`` between them."""
    import torch

    rng = random.Random(training.seed)
    n = training.batch * training.length
    stream: list[int] = []
    while True:
        while len(stream) < n:
            stream += [*(vocabulary_ids[word] for word in document(rng).split()), 0]
        yield torch.tensor(stream[:n]).view(training.batch, training.length)
        del stream[:n]


def _save(model: Any, folder: Path) -> None:
    """Weights in float16, as Pythia publishes them."""
    import copy

    copy.deepcopy(model).half().save_pretrained(folder)


def build_tokenizer() -> Any:
    """A word-level tokenizer of exactly the demo's language (a ``PreTrainedTokenizerFast``)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [END, UNKNOWN, *vocabulary()]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=END, eos_token=END, pad_token=END, unk_token=UNKNOWN
    )
