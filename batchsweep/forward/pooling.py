"""How the token states of a text become one vector: masked pooling, on the device, in float32.

A :class:`Pooler` is made once per batch and used for every layer, so that masks, weights and
indices are computed once. Only real tokens count, wherever the padding is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch.nn import functional

#: The poolings by name; ``config.Pooling`` lists the same.
POOLINGS = ("mean", "last", "first", "max", "weighted_mean")


class Pooler:
    """Pools the states of one padded batch, layer after layer.

    Args:
        mask_BT: Bool, true where a token is real. Padding may be left or right, or be left out of
            the states: then they are [token, hidden], of all real tokens, text after text.
        poolings: Names from :data:`POOLINGS`.
        prefix_B: How many leading tokens of each text belong to the prefix and are left out of
            pooling. A text of nothing but prefix is pooled over all of its tokens, because a
            text without a vector can't be stored.

    The poolings, over the tokens t of a text that take part (p(t) is the 1-based position in
    the text, the prefix counted):

    - ``mean``: the average.
    - ``last``, ``first``: the state of the last or first token.
    - ``max``: the maximum of each dimension.
    - ``weighted_mean``: sum of p(t) x(t) / sum of p(t): later tokens of a causal model have
      seen more (SGPT; Muennighoff, 2022, "SGPT: GPT Sentence Embeddings for Semantic Search").
    """

    def __init__(
        self,
        mask_BT: torch.Tensor,
        poolings: Sequence[str],
        prefix_B: torch.Tensor | None = None,
    ) -> None:
        position_BT = mask_BT.cumsum(dim=1) * mask_BT
        pooled_BT = mask_BT
        if prefix_B is not None:
            pooled_BT = mask_BT & (position_BT > prefix_B[:, None])
            only_prefix_B = ~pooled_BT.any(dim=1)
            pooled_BT = pooled_BT | (mask_BT & only_prefix_B[:, None])
        position_BT = position_BT * pooled_BT
        #: Bool: which tokens take part.
        self.pooled_BT = pooled_BT

        self._mask_BT = mask_BT
        self._row_B = torch.arange(mask_BT.shape[0], device=mask_BT.device)
        self._index: dict[str, torch.Tensor] = {}
        self._weight_names: list[str] = []
        self._left_out_BT1: torch.Tensor | None = None
        weights = []
        for name in poolings:
            if name in ("mean", "weighted_mean"):
                weight_BT = (pooled_BT if name == "mean" else position_BT).float()
                weights.append(weight_BT / weight_BT.sum(dim=1, keepdim=True))
                self._weight_names.append(name)
            elif name == "last":
                self._index[name] = position_BT.argmax(dim=1)
            elif name == "first":
                self._index[name] = pooled_BT.int().argmax(dim=1)
            elif name == "max":
                self._left_out_BT1 = ~pooled_BT[:, :, None]
            else:
                raise ValueError(f"no pooling '{name}'; there are {', '.join(POOLINGS)}")
        self._weight_BPT = torch.stack(weights, dim=1) if weights else None

    def __call__(self, states: torch.Tensor) -> dict[str, torch.Tensor]:
        """The pooled float32 states [text, hidden] of one layer, by name of the pooling.

        Args:
            states: [text, token, hidden], or [token, hidden] without padding.
        """
        return self._of_texts(states) if states.dim() == 3 else self._of_tokens(states)

    def _of_texts(self, states_BTD: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled: dict[str, torch.Tensor] = {}
        if self._weight_BPT is not None:
            # One matrix product reads the states once for all the weighted poolings.
            sums_BPD = torch.bmm(self._weight_BPT, states_BTD.float())
            pooled.update(zip(self._weight_names, sums_BPD.unbind(dim=1), strict=True))
        for name, index_B in self._index.items():
            pooled[name] = states_BTD[self._row_B, index_B].float()
        if self._left_out_BT1 is not None:
            lowest = torch.finfo(states_BTD.dtype).min
            pooled["max"] = states_BTD.masked_fill(self._left_out_BT1, lowest).amax(dim=1).float()
        return pooled

    def _of_tokens(self, states_ND: torch.Tensor) -> dict[str, torch.Tensor]:
        # A text is a bag of tokens, summed in turn: the same whatever lies beside it.
        states_ND = states_ND.float().contiguous()
        pooled: dict[str, torch.Tensor] = {}
        for name, weight_N in self._weight_N.items():
            pooled[name] = functional.embedding_bag(
                self._every_N, states_ND, self._first_B, mode="sum", per_sample_weights=weight_N
            )
        for name, index_B in self._index.items():
            pooled[name] = states_ND[self._place_BT[self._row_B, index_B]]
        if self._left_out_BT1 is not None:
            left_out_N1 = self._left_out_BT1[self._mask_BT]
            lowest = torch.finfo(states_ND.dtype).min
            pooled["max"] = functional.embedding_bag(
                self._every_N, states_ND.masked_fill(left_out_N1, lowest), self._first_B, mode="max"
            )
        return pooled

    @cached_property
    def _place_BT(self) -> torch.Tensor:
        """Of each real token, how many are before it in all texts."""
        return self._mask_BT.flatten().cumsum(0).view_as(self._mask_BT) - 1

    @cached_property
    def _first_B(self) -> torch.Tensor:
        lengths = self._mask_BT.sum(dim=1)
        return lengths.cumsum(0) - lengths

    @cached_property
    def _every_N(self) -> torch.Tensor:
        return torch.arange(int(self._mask_BT.sum()), device=self._mask_BT.device)

    @cached_property
    def _weight_N(self) -> dict[str, torch.Tensor]:
        if self._weight_BPT is None:
            return {}
        weights = self._weight_BPT.transpose(0, 1)
        return {
            name: weight_BT[self._mask_BT]
            for name, weight_BT in zip(self._weight_names, weights, strict=True)
        }
