"""What the forward pass must know of an architecture, found by running the model on three tokens.

Its blocks, its final norm, whether it is causal, what its ``hidden_states`` are: no table of model
names, so whatever ``AutoModel`` loads works, or says at once why it can't.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from batchsweep.errors import IndexFailed


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model in memory and what the forward pass knows of it."""

    #: What messages call it: ``EleutherAI/pythia-14m@step1000``.
    name: str
    model: nn.Module
    #: Module that holds the blocks, and under which attribute.
    blocks_owner: nn.Module
    blocks_attribute: str
    #: L: layers are 1..L, and 0 is the embedding output.
    num_layers: int
    hidden: int
    device: torch.device
    dtype: torch.dtype
    #: The norm between the last block and the model's output; None where there is none (BERT).
    final_norm: nn.Module | None
    #: Whether a token's states depend on no later token: then right padding needs no mask.
    causal: bool
    #: For each index of transformers' ``hidden_states``: (layer, whether final-normed).
    hidden_states: tuple[tuple[int, bool], ...]
    #: The token that stands for a text without tokens.
    empty_token: int

    @property
    def blocks(self) -> nn.ModuleList:
        blocks = getattr(self.blocks_owner, self.blocks_attribute)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def check_tokens(self, texts: Sequence[npt.NDArray[Any]], first_row: int) -> None:
        """Refuse token ids that the model has no embedding for; a GPU would end the process.

        Args:
            texts: Token ids of each text, [text] of int [token].
            first_row: Corpus row of the first text, for the message.

        Raises:
            IndexFailed: names the first such row.
        """
        embeddings: Any = self.model
        vocabulary = int(embeddings.get_input_embeddings().weight.shape[0])
        for row, ids in enumerate(texts, first_row):
            if ids.min() < 0 or ids.max() >= vocabulary:
                raise IndexFailed(
                    f"{self.name}, row {row}: its tokens go up to {ids.max()}, the model has "
                    f"embeddings for 0 to {vocabulary - 1}; the tokenizer is another model's"
                )


def describe(name: str, model: nn.Module) -> LoadedCheckpoint:
    """Find blocks, final norm, causality and the meaning of ``hidden_states`` by a small run.

    Args:
        name: What messages call the model.
        model: Any base model of transformers (without a head), in eval mode.

    Raises:
        IndexFailed: if the model can't be taken apart into layers.
    """
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        raise IndexFailed(
            f"{name}: encoder-decoder models aren't supported; use an encoder or decoder"
        )
    text_config = config.get_text_config()
    count = int(text_config.num_hidden_layers)
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not found:
        raise IndexFailed(
            f"{name}: {type(model).__name__} has no list of its {count} blocks, so its layers "
            "can't be told apart"
        )
    path, blocks = min(found, key=lambda item: item[0].count("."))
    owner_path, _, attribute = path.rpartition(".")

    device = next(model.parameters()).device
    probe = torch.tensor([[1, 2, 3]], device=device) % text_config.vocab_size
    other = torch.tensor([[1, 2, 0]], device=device) % text_config.vocab_size
    trace = _Trace(model, blocks)
    with torch.inference_mode():
        altered = model(input_ids=other).last_hidden_state
        with trace:
            output = model(input_ids=probe, output_hidden_states=True)
    states = trace.states
    final = output.last_hidden_state
    if len(states) != count + 1:
        raise IndexFailed(
            f"{name}: {len(states) - 1} of the {count} blocks of {type(model).__name__} ran, so "
            "its layers can't be told apart"
        )
    norm = None
    if not _same(states[-1], final):
        norm = next((m for m, y in trace.after_blocks if _same(y, final)), None)
        if norm is None:
            raise IndexFailed(
                f"{name}: between the last block and the output of {type(model).__name__} there "
                "is more than one norm, so a layer's final-normed states aren't defined"
            )
    sources = []
    for index, tensor in enumerate(output.hidden_states):
        candidates = [index, *range(count + 1)]
        source = next((i for i in candidates if i <= count and _same(states[i], tensor)), None)
        if _same(tensor, final) and (source is None or index == count):
            sources.append((count, norm is not None))
        elif source is not None:
            sources.append((source, False))
        else:
            raise IndexFailed(
                f"{name}: hidden_states[{index}] of {type(model).__name__} is no block's output"
            )
    return LoadedCheckpoint(
        name=name,
        model=model,
        blocks_owner=model.get_submodule(owner_path),
        blocks_attribute=attribute,
        num_layers=count,
        hidden=int(states[0].shape[-1]),
        device=device,
        dtype=states[0].dtype,
        final_norm=norm,
        # Of NaN it can't be told: with a mask, other layers' states are right in any case.
        causal=getattr(model, "causal_by_code", False) or torch.equal(final[:, :2], altered[:, :2]),
        hidden_states=tuple(sources),
        empty_token=_empty_token(text_config),
    )


class _Trace:
    """Hooks that record, in one run, the states between blocks and what follows the last one."""

    def __init__(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        self.states: list[torch.Tensor] = []
        self.after_blocks: list[tuple[nn.Module, torch.Tensor]] = []
        inside = {id(m) for block in blocks for m in block.modules()}
        self._outside = [m for m in model.modules() if m is not model and id(m) not in inside]
        self._blocks = blocks
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        self._handles = [
            self._blocks[0].register_forward_pre_hook(self._enter_first, with_kwargs=True),
            *(b.register_forward_hook(self._leave_block) for b in self._blocks),
            *(m.register_forward_hook(self._leave_other) for m in self._outside),
        ]

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter_first(self, block: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.states = [block_input(args, kwargs)]
        self.after_blocks = []

    def _leave_block(self, block: nn.Module, args: Any, output: Any) -> None:
        self.states = [*self.states, block_output(output)]

    def _leave_other(self, module: nn.Module, args: Any, output: Any) -> None:
        follows = bool(args and self.states) and args[0] is self.states[-1]
        if follows and isinstance(output, torch.Tensor):
            self.after_blocks.append((module, output))


def block_input(args: Any, kwargs: dict[str, Any]) -> torch.Tensor:
    """The token states that a block is called with."""
    states = args[0] if args else kwargs["hidden_states"]
    assert isinstance(states, torch.Tensor)
    return states


def block_output(output: Any) -> torch.Tensor:
    """The token states that a block returns, alone or first in a tuple."""
    states = output[0] if isinstance(output, tuple) else output
    assert isinstance(states, torch.Tensor)
    return states


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal values; NaN equals NaN, so that damaged weights fail later, with layer and row."""
    # In double: Mamba's residual stream is float32 in a half-precision model.
    return a.shape == b.shape and torch.allclose(
        a.double(), b.double(), rtol=0, atol=0, equal_nan=True
    )


def _empty_token(config: Any) -> int:
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        token = getattr(config, name, None)
        if isinstance(token, list):
            token = token[0] if token else None
        if token is not None:
            return int(token)
    return 0
