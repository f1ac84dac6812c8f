"""A GPT-NeoX block for float32 on a CPU, and what is known of tokens before a pass begins.

The first block sees embeddings, which are the token's alone. All that it does before tokens look at
each other (queries, keys and values; with a parallel residual also its perceptron, eleven of its
twelve parts of the products) is done once for each different token of a block of texts, where the
same token comes up again and again, and looked up from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from batchsweep.forward.products import Product, filled

if TYPE_CHECKING:
    from batchsweep.forward.gpt_neox import Block, Shape


#: Texts behind each other: (how many of them, tokens of each), in turn.
Runs = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Known:
    """What the first block makes of some tokens by themselves.

    Attributes:
        place_V: int64 [vocabulary], row of a token; of a token that isn't here, any.
        read_NE: queries, keys and values, [row, 3 hidden].
        mixed_ND: the embedding with the perceptron's output added, [row, hidden].
    """

    place_V: torch.Tensor
    read_NE: torch.Tensor
    mixed_ND: torch.Tensor

    @classmethod
    def join(cls, ids_N: torch.Tensor, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Known:
        """Of different tokens, from what :meth:`FusedBlock.alone` made of them run by run."""
        place_V = torch.zeros(int(ids_N.max()) + 1, dtype=torch.long)
        place_V[ids_N] = torch.arange(len(ids_N))
        read, mixed = zip(*parts, strict=True)
        return cls(place_V, torch.cat(read), torch.cat(mixed))

    def of(self, ids_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both, of the tokens of a batch: [text x token, ...]."""
        rows = self.place_V[ids_BT.flatten()]
        return self.read_NE.index_select(0, rows), self.mixed_ND.index_select(0, rows)


class FusedBlock(nn.Module):
    """A block in float32 on a CPU: four products, and between them as little as can be.

    The rows of the first product's weights are sorted: the queries of all heads, their keys, their
    values. In each query and key, a pair of dimensions that is rotated together lies together, as
    a complex number: all of them are turned by one multiplication in place. (The order of a head's
    dimensions is nothing to attention if queries and keys have the same.)
    """

    def __init__(self, block: Block, shape: Shape) -> None:
        super().__init__()
        self.parallel = block.parallel
        self.heads, self.head = shape.num_attention_heads, block.attention.head
        self.input_layernorm = block.input_layernorm
        self.post_attention_layernorm = block.post_attention_layernorm
        joint = block.attention.query_key_value
        self.queries_keys_values = Product(
            self._sorted(joint.weight, shape.rotary_dimensions),
            None if joint.bias is None else self._sorted(joint.bias, shape.rotary_dimensions),
        )
        self.dense = Product(block.attention.dense.weight, block.attention.dense.bias)
        self.widen = Product(block.mlp.dense_h_to_4h.weight, block.mlp.dense_h_to_4h.bias)
        self.narrow = Product(block.mlp.dense_4h_to_h.weight, block.mlp.dense_4h_to_h.bias)

    def _sorted(self, rows: torch.Tensor, rotated: int) -> torch.Tensor:
        """The rows [head, (query, key, value), dimension] of weights or biases in our order."""
        turned = rotated + rotated % 2
        pairs = torch.arange(turned).view(2, -1).t().flatten()
        order = torch.cat((pairs, torch.arange(turned, self.head)))
        by_kind = rows.detach().view(self.heads, 3, self.head, -1).transpose(0, 1)
        return torch.cat((by_kind[:2, :, order], by_kind[2:])).reshape(rows.shape)

    def alone(self, states_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of a parallel block, all that a token takes part in by itself.

        Args:
            states_ND: [token, hidden], of any texts.

        Returns:
            Queries, keys and values, not turned yet, [token, 3 hidden]; the states with the
            perceptron's output added, [token, hidden].
        """
        states = filled(states_ND)
        read = self.queries_keys_values(self.input_layernorm(states))
        wide = self.widen.gelu(self.post_attention_layernorm(states))
        return read[: len(states_ND)], self.narrow.plus(states, wide)[: len(states_ND)]

    def forward(
        self,
        states_BTD: torch.Tensor,
        runs: Runs,
        phases_NC: torch.Tensor,
        known: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """One block's output, shaped as its input, of texts behind each other.

        Args:
            states_BTD: of any shape that ends in [hidden]; the tokens of all texts in turn.
            runs: (texts, tokens of each), in turn.
            phases_NC: of each token.
            known: what :meth:`alone` made of these states, which it may write to.
        """
        count = len(phases_NC)
        if known is not None:
            read, mixed = known
            out = self.dense.plus(mixed, self._attention(read, runs, phases_NC))
            return out.view(states_BTD.shape)
        # Filled up once for all products, and not in each.
        states = filled(states_BTD.flatten(0, -2))
        read = self.queries_keys_values(self.input_layernorm(states))[:count]
        attended = self.dense.plus(states, filled(self._attention(read, runs, phases_NC)))
        del read
        seen = states if self.parallel else attended
        wide = self.widen.gelu(self.post_attention_layernorm(seen))
        return self.narrow.plus(attended, wide)[:count].view(states_BTD.shape)

    def _attention(self, read: torch.Tensor, runs: Runs, phases_NC: torch.Tensor) -> torch.Tensor:
        """[token, 3 hidden], turned in place, to [token, hidden]."""
        hidden = self.heads * self.head
        pairs = torch.view_as_complex(read.view(len(read), -1, 2))
        pairs[:, :hidden].mul_(phases_NC)
        parts = torch.split(read, [texts * tokens for texts, tokens in runs])
        outs = []
        for part, (texts, tokens) in zip(parts, runs, strict=True):
            kinds = part.view(texts, tokens, 3, self.heads, self.head).permute(2, 0, 3, 1, 4)
            query, key, value = kinds.unbind()
            out = functional.scaled_dot_product_attention(
                query, key, value, scale=self.head**-0.5, is_causal=tokens > 1
            )
            outs.append(out.transpose(1, 2).reshape(len(part), hidden))
        return outs[0] if len(outs) == 1 else torch.cat(outs)


def phases(angles_TP: torch.Tensor, shape: Shape) -> torch.Tensor:
    """What turns the queries and keys of all heads at each position: complex [token, pair].

    Dimensions that aren't rotated are turned by nothing.
    """
    tokens, pairs = angles_TP.shape
    of_head = shape.hidden_size // shape.num_attention_heads // 2
    still = angles_TP.new_zeros(tokens, of_head - pairs)
    angles = torch.cat((angles_TP, still), dim=1)
    return torch.polar(torch.ones_like(angles), angles).repeat(1, 2 * shape.num_attention_heads)
