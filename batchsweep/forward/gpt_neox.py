"""GPT-NeoX, which Pythia is, without transformers: its modelling code takes longer to import than
a small checkpoint takes to embed, and every index is a process.

As loaded, the operations are transformers' own, in its order: the same states to the last bit. (One
token on its own is the exception: how a matrix times a vector rounds depends on where the matrix
lies in memory, which is here always the start of a cache line.) :meth:`GPTNeoX.fuse` makes of them,
for float32 on a CPU, fewer and faster ones, which give the same states up to float32's rounding.

What is not exactly as it is understood here, such as a key of config.json that is not listed or a
tensor too many, is left to transformers, which also finds the words for what is wrong with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from batchsweep.forward.fused_neox import FusedBlock, Known, Runs, phases
from batchsweep.forward.tensors import left_out

#: Of config.json: what decides the states.
_USED = frozenset(
    {
        "attention_bias", "bos_token_id", "dtype", "eos_token_id", "hidden_act", "hidden_size",
        "intermediate_size", "layer_norm_eps", "model_type", "num_attention_heads",
        "num_hidden_layers", "pad_token_id", "rope_parameters", "rotary_emb_base", "rotary_pct",
        "torch_dtype", "use_parallel_residual", "vocab_size",
    }
)  # fmt: skip
#: And what doesn't: training, generation, heads, notes.
_UNUSED = frozenset(
    {
        "_name_or_path", "architectures", "attention_dropout", "classifier_dropout",
        "hidden_dropout", "initializer_range", "is_decoder", "max_position_embeddings",
        "tie_word_embeddings", "transformers_version", "use_cache",
    }
)  # fmt: skip
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip
#: Token -> what it is where config.json leaves it out.
_TOKENS = {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": None}
#: Different tokens whose share of the first block is computed at once.
KNOWN_AT_ONCE = 512
#: Positions whose turns a fused model keeps: as many as texts have, unless a config says more.
TURNS_KEPT = 512
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Shape:
    """What config.json says, under transformers' names, with its defaults."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    rotary_dimensions: int
    """Of each head's, how many are rotated; where it is odd, one more is, as transformers does."""
    rope_theta: float
    layer_norm_eps: float
    use_parallel_residual: bool
    attention_bias: bool
    dtype: str | None
    """That the weights were published in; None where it isn't said."""
    eos_token_id: int | None
    bos_token_id: int | None
    pad_token_id: int | None

    def get_text_config(self) -> Shape:
        """Itself, as of transformers' models of text alone."""
        return self


@dataclass(frozen=True)
class Output:
    """What a pass returns, under transformers' names."""

    last_hidden_state: torch.Tensor
    """Final-normed, [text, token, hidden]."""
    hidden_states: tuple[torch.Tensor, ...] | None
    """Where asked for: the embeddings, each block's output, the last one final-normed."""


def load(folder: Path, weights: Sequence[str], dtype: str) -> GPTNeoX | None:
    """The base model of a checkpoint on the CPU, in eval mode; None: leave it to transformers.

    Args:
        folder: the checkpoint's directory.
        weights: names of its weight files.
        dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: as published.
    """
    shape = _shape(folder / "config.json")
    if shape is None or not all(name.endswith(".safetensors") for name in weights):
        return None
    wanted = _DTYPES.get((shape.dtype or "") if dtype == "auto" else dtype)
    if wanted is None:
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    with torch.device("meta"):
        model = GPTNeoX(shape)
    places = {name: parameter.shape for name, parameter in model.named_parameters()}
    found: dict[str, torch.Tensor] = {}
    try:
        for file in weights:
            for name, tensor in load_file(folder / file).items():
                found[name.removeprefix("gpt_neox.")] = tensor
    except (SafetensorError, OSError):
        return None
    if left_out(model, found.keys() - places.keys()):
        return None
    for name, size in places.items():
        tensor = found.get(name, torch.empty(0))
        if tensor.shape != size or tensor.dtype not in _DTYPES.values():
            return None
    model.load_state_dict({name: found[name].to(wanted, copy=True) for name in places}, assign=True)
    return model.eval()


def know_tokens(
    model: nn.Module, texts: Sequence[npt.NDArray[Any]], threads: ThreadPoolExecutor
) -> Known | None:
    """What the first block makes of the tokens of some texts by themselves; None: can't be told.

    In runs of a fixed size, so that it is the same whichever thread does which.

    Args:
        model: of any kind; none but a fused GPT-NeoX knows.
        texts: token ids of each text, [text] of int [token].
        threads: that compute on one thread each.
    """
    # In a block without a parallel residual, the perceptron waits for the attention.
    if not isinstance(model, GPTNeoX) or not model.fused or not texts:
        return None
    if not model.config.use_parallel_residual:
        return None
    ids_N = torch.from_numpy(np.unique(np.concatenate(texts)).astype(np.int64))
    runs = torch.split(ids_N, KNOWN_AT_ONCE)
    parts = list(threads.map(model.alone, runs))
    return Known.join(ids_N, parts)


def takes_runs(model: nn.Module) -> bool:
    """Whether a model takes texts of several lengths behind each other, without padding."""
    return isinstance(model, GPTNeoX) and model.fused


def _shape(config_file: Path) -> Shape | None:
    """What a config.json says; None where anything in it isn't known here."""
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict) or config.get("model_type") != "gpt_neox":
        return None
    if config.keys() - _USED - _UNUSED or config.get("hidden_act", "gelu") != "gelu":
        return None
    rotary = _rotary(config)
    if rotary is None or not all(_is_a(config.get(n), int) for n in _SIZES):
        return None
    share, theta = rotary
    sizes: dict[str, int] = {name: config[name] for name in _SIZES}
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    tokens = {name: config.get(name, usual) for name, usual in _TOKENS.items()}
    switches = {n: config.get(n, True) for n in ("use_parallel_residual", "attention_bias")}
    epsilon = config.get("layer_norm_eps", 1e-5)
    if (
        min(sizes.values()) < 1
        or hidden % heads
        or not all(token is None or _is_a(token, int) for token in tokens.values())
        or not all(_is_a(switch, bool) for switch in switches.values())
        or not _is_a(epsilon, float)
    ):
        return None
    rotated = int(hidden // heads * share)
    # An odd number is rotated with one more, in pairs: there must be one more.
    if rotated == 0 or rotated + rotated % 2 > hidden // heads:
        return None
    known: dict[str, Any] = {**sizes, **switches, **tokens}
    return Shape(
        **known,
        rotary_dimensions=rotated,
        rope_theta=theta,
        layer_norm_eps=epsilon,
        dtype=config.get("dtype", config.get("torch_dtype")),
    )


def _is_a(value: object, *kinds: type) -> bool:
    """Of one of these very types: ``True`` is no int here."""
    return type(value) in kinds


def _rotary(config: Mapping[str, Any]) -> tuple[float, float] | None:
    """(share of a head's dimensions that is rotated, base); None where they can't be told."""
    given = config.get("rope_parameters")
    given = {} if given is None else given
    if not isinstance(given, dict) or given.keys() - {
        "partial_rotary_factor", "rope_theta", "rope_type",
    }:  # fmt: skip
        return None
    share = given.get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    theta = given.get("rope_theta", config.get("rotary_emb_base", 10_000.0))
    if given.get("rope_type", "default") != "default" or not (
        _is_a(share, int, float) and _is_a(theta, int, float) and 0 < share <= 1 and theta > 0
    ):
        return None
    return share, theta


class GPTNeoX(nn.Module):
    """The base model, its modules named as in transformers' ``GPTNeoXModel``."""

    base_model_prefix = "gpt_neox"
    #: Known without a run: one on damaged weights can't show it.
    causal_by_code = True

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.config = shape
        self.fused = False
        # Not by its constructor, whose random numbers, on "meta", import the compiler.
        table_VD = torch.empty(shape.vocab_size, shape.hidden_size)
        self.embed_in: nn.Embedding = nn.Embedding.from_pretrained(table_VD)  # type: ignore[no-untyped-call]
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.num_hidden_layers))
        self.final_layer_norm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        # On the CPU even where the rest has no memory yet: it is no weight, so nothing loads it.
        pairs = torch.arange(0, shape.rotary_dimensions, 2, dtype=torch.float, device="cpu")
        frequencies = 1.0 / (shape.rope_theta ** (pairs / shape.rotary_dimensions))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings."""
        return self.embed_in

    def fuse(self) -> None:
        """Give its blocks the fewest passes over memory, if it computes in float32 on a CPU.

        For good: the weights are moved into a layout of the processor's.
        """
        table_VD = self.embed_in.weight
        here = table_VD.device.type == "cpu" and table_VD.dtype == torch.float32
        if not here or (self.config.hidden_size // self.config.num_attention_heads) % 2:
            return
        for number, block in enumerate(self.layers):
            assert isinstance(block, Block)
            self.layers[number] = FusedBlock(block, self.config)
        self.fused = True
        kept = phases(self._angles(TURNS_KEPT), self.config)
        self.register_buffer("phases", kept, persistent=False)

    @torch.inference_mode()
    def alone(self, ids_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the first block, fused, makes of tokens by themselves, for :class:`Known`."""
        first = self.layers[0]
        assert isinstance(first, FusedBlock)
        return first.alone(self.embed_in(ids_N))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        runs: Runs | None = None,
        known: Known | None = None,
    ) -> Output:
        """One pass over token ids [text, token]; padding, if there is any, is on the right.

        For a fused model only: ``runs``, where the one row of ids holds texts of several lengths
        behind each other; ``known``, of all of these tokens.

        Raises:
            NotImplementedError: a mask is given; the model is causal, so it needs none.
        """
        if attention_mask is not None:
            raise NotImplementedError("GPTNeoX takes no attention mask: pad on the right")
        states_BTD = self.embed_in(input_ids)
        turns = self._turns(runs or [(len(input_ids), input_ids.shape[1])], states_BTD)
        between = [states_BTD]
        for number, block in enumerate(self.layers):
            if known is not None and number == 0:
                states_BTD = block(states_BTD, *turns, known.of(input_ids))
            else:
                states_BTD = block(states_BTD, *turns)
            if output_hidden_states:
                between.append(states_BTD)
        normed_BTD = self.final_layer_norm(states_BTD)
        between[-1] = normed_BTD
        return Output(normed_BTD, tuple(between) if output_hidden_states else None)

    def _turns(self, runs: Runs, like: torch.Tensor) -> tuple[Any, ...]:
        """What its blocks take beside the states: how each position turns queries and keys."""
        longest = max(tokens for _, tokens in runs)
        if self.fused:
            kept = self.get_buffer("phases")
            if longest > TURNS_KEPT:
                kept = phases(self._angles(longest), self.config)
            return runs, torch.cat([kept[:tokens].repeat(texts, 1) for texts, tokens in runs])
        angles = self._angles(longest)
        angles = torch.cat((angles, angles), dim=-1)[None, None]
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    def _angles(self, tokens: int) -> torch.Tensor:
        """By which each pair of dimensions is turned at each position, [token, pair]."""
        frequencies = self.get_buffer("frequencies")
        positions_T = torch.arange(tokens, device=frequencies.device)
        return positions_T[:, None].float() * frequencies


class Block(nn.Module):
    """A block as transformers computes it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.parallel = shape.use_parallel_residual
        self.input_layernorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)
        self.attention = _Attention(shape)
        self.mlp = _Perceptron(shape)

    def forward(
        self, states_BTD: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
    ) -> torch.Tensor:
        attended: torch.Tensor = self.attention(self.input_layernorm(states_BTD), cosine, sine)
        if self.parallel:
            mixed: torch.Tensor = self.mlp(self.post_attention_layernorm(states_BTD))
            return mixed + attended + states_BTD
        attended = attended + states_BTD
        mixed = self.mlp(self.post_attention_layernorm(attended))
        return mixed + attended


class _Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, bias = shape.hidden_size, shape.attention_bias
        self.head = hidden // shape.num_attention_heads
        self.query_key_value = nn.Linear(hidden, 3 * hidden, bias=bias)
        self.dense = nn.Linear(hidden, hidden, bias=bias)

    def forward(
        self, states_BTD: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor
    ) -> torch.Tensor:
        texts, tokens, hidden = states_BTD.shape
        heads = self.query_key_value(states_BTD).view(texts, tokens, -1, 3 * self.head)
        query, key, value = heads.transpose(1, 2).chunk(3, dim=-1)
        out = functional.scaled_dot_product_attention(
            _rotated(query, cosine, sine),
            _rotated(key, cosine, sine),
            value,
            scale=self.head**-0.5,
            is_causal=tokens > 1,
        )
        joined: torch.Tensor = self.dense(out.transpose(1, 2).reshape(texts, tokens, hidden))
        return joined


class _Perceptron(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.dense_h_to_4h = nn.Linear(shape.hidden_size, shape.intermediate_size)
        self.dense_4h_to_h = nn.Linear(shape.intermediate_size, shape.hidden_size)

    def forward(self, states_BTD: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.dense_4h_to_h(functional.gelu(self.dense_h_to_4h(states_BTD)))
        return out


def _rotated(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of the first dimensions of each head; the others stay."""
    width = cosine.shape[-1]
    turned, kept = states[..., :width], states[..., width:]
    half = torch.cat((-turned[..., width // 2 :], turned[..., : width // 2]), dim=-1)
    return torch.cat((turned * cosine + half * sine, kept), dim=-1)
