"""The forward pass: one pass over each text gives the pooled states of every wanted layer.

Nothing but pooled states is kept: hooks pool each layer's token states the moment its block
returns. Blocks after the last wanted layer don't run.

A text without tokens (many tokenizers of decoders give none for "") stands for the model's
end-of-text token: it has a vector, and every empty text has the same one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.hooks import RemovableHandle

from batchsweep.batching import make_batches, pad, split
from batchsweep.errors import IndexFailed, UsageError
from batchsweep.loading import (
    LoadedCheckpoint,
    block_input,
    block_output,
    fetch,
    load_checkpoint,
)
from batchsweep.pooling import Pooler

__all__ = ["LoadedCheckpoint", "fetch", "load_checkpoint", "pooled_states"]

logger = logging.getLogger(__name__)

LAYER_OUTPUTS = ("final_norm", "raw", "hidden_states")


def pooled_states(
    loaded: LoadedCheckpoint,
    token_ids: Sequence[npt.ArrayLike],
    *,
    layers: Sequence[int],
    poolings: Sequence[str],
    layer_output: str,
    batch_tokens: int,
    prefix_lengths: npt.ArrayLike | None = None,
    first_row: int = 0,
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[np.float32]]]]:
    """Pooled states of a block of texts, batch by batch, longest texts first.

    Args:
        loaded: From :func:`load_checkpoint`.
        token_ids: Token ids of each text, [text] of int [token].
        layers: Which layers: 0 is the embedding output, 1..L the blocks' outputs.
        poolings: Names from :data:`batchsweep.pooling.POOLINGS`.
        layer_output: ``final_norm``: the model's final norm applied to every layer's token
            states before pooling, which is what the model truncated to l blocks returns. (A
            model without a final norm, such as BERT, gives the same as ``raw``.) ``raw``: the
            residual stream as it is. ``hidden_states``: what transformers returns as
            ``hidden_states[layer]``: raw, but normed for the last one; for Mamba, whose tuple
            lacks the embedding output, index l < L is block l + 1.
        batch_tokens: Tokens of one batch, padding included.
        prefix_lengths: Leading tokens of each text to leave out of pooling, int [text].
        first_row: Corpus row of the first text, for messages.

    Yields:
        Positions of the batch's texts in ``token_ids``, and by pooling their float32 states
        [layer, text, hidden], layers in the order of ``layers``.

    Raises:
        IndexFailed: NaN or inf in a layer (the message has layer and row), or a single text
            that doesn't fit the device's memory.
    """
    sources = _sources(loaded, layers, layer_output)
    texts = [np.asarray(ids) for ids in token_ids]
    texts = [ids if ids.size else np.array([loaded.empty_token]) for ids in texts]
    prefixes = None if prefix_lengths is None else np.asarray(prefix_lengths, dtype=np.int64)
    lengths = np.array([len(ids) for ids in texts], dtype=np.int64)
    batches = deque(make_batches(lengths, batch_tokens))
    in_flight: deque[_Pooled] = deque()
    # One batch ahead on a GPU: it computes while the last batch's states come home.
    ahead = 2 if loaded.device.type == "cuda" else 1
    with torch.inference_mode(), _Pass(loaded, sources, poolings, texts, prefixes) as forward:
        while batches or in_flight:
            if batches and len(in_flight) < ahead:
                positions = batches.popleft()
                pooled = forward.try_run(positions)
                if pooled is not None:
                    in_flight.append(pooled)
                    continue
                padded = len(positions) * int(lengths[positions].max())
                if len(positions) == 1:
                    raise IndexFailed(
                        f"{loaded.name}, row {first_row + positions[0]}: one text of {padded} "
                        f"tokens doesn't fit in the memory of {loaded.device}; lower "
                        "embedding.max_length or use a smaller dtype"
                    )
                logger.warning(
                    "%s: out of memory on %s with a batch of %d tokens; going on with half",
                    loaded.name,
                    loaded.device,
                    padded,
                )
                rest = [positions, *batches]
                batches = deque(part for b in rest for part in split(b, lengths, padded // 2))
                continue
            done = in_flight.popleft()
            yield done.positions, _finite(done, forward, layers, first_row)


def _sources(
    loaded: LoadedCheckpoint, layers: Sequence[int], layer_output: str
) -> list[tuple[int, bool]]:
    """For each wanted layer: after which block it is taken (0: before the first), and if normed."""
    if layer_output == "hidden_states":
        choices = loaded.hidden_states
    elif layer_output in ("raw", "final_norm"):
        normed = layer_output == "final_norm" and loaded.final_norm is not None
        choices = tuple((layer, normed) for layer in range(loaded.num_layers + 1))
    else:
        raise UsageError(f"no layer_output '{layer_output}'; use {', '.join(LAYER_OUTPUTS)}")
    wrong = [layer for layer in layers if not 0 <= layer < len(choices)]
    if wrong or not layers:
        raise UsageError(
            f"{loaded.name}: no layers {wrong}; it has 1 to {loaded.num_layers}, and 0, the "
            "embedding output"
        )
    return [choices[layer] for layer in layers]


@dataclass
class _Pooled:
    """The pooled states of one batch, on their way to the host."""

    positions: npt.NDArray[np.int64]
    states: dict[str, torch.Tensor]
    finite: torch.Tensor
    arrived: torch.cuda.Event | None

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return {name: states.numpy() for name, states in self.states.items()}


class _Pass:
    """Hooks on the wanted blocks that pool what passes; a context, so that they come off again."""

    def __init__(
        self,
        loaded: LoadedCheckpoint,
        sources: Sequence[tuple[int, bool]],
        poolings: Sequence[str],
        texts: Sequence[npt.NDArray[Any]],
        prefixes: npt.NDArray[np.int64] | None,
    ) -> None:
        self.loaded = loaded
        self._sources = sources
        self._poolings = poolings
        self._texts = texts
        self._prefixes = prefixes
        self._handles: list[RemovableHandle] = []
        self._pooler: Pooler | None = None
        self._out: dict[str, torch.Tensor] = {}
        #: Copies to the host run beside the next batch's computing.
        self._copies: torch.cuda.Stream | None = None
        if loaded.device.type == "cuda":
            self._copies = torch.cuda.Stream(loaded.device)  # type: ignore[no-untyped-call]

    def __enter__(self) -> _Pass:
        loaded, wanted = self.loaded, {block for block, _ in self._sources}
        self._all_blocks = loaded.blocks
        # Blocks after the last wanted one are left out of the model while the pass lasts.
        kept = self._all_blocks[: max(*wanted, 1)]
        setattr(loaded.blocks_owner, loaded.blocks_attribute, kept)
        if 0 in wanted:
            self._handles.append(
                kept[0].register_forward_pre_hook(
                    lambda module, args, kwargs: self._take(0, block_input(args, kwargs)),
                    with_kwargs=True,
                )
            )
        for number in sorted(wanted - {0}):
            self._handles.append(
                kept[number - 1].register_forward_hook(
                    lambda module, args, output, number=number: self._take(
                        number, block_output(output)
                    )
                )
            )
        return self

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()
        setattr(self.loaded.blocks_owner, self.loaded.blocks_attribute, self._all_blocks)

    def _take(self, block: int, states_BTD: torch.Tensor) -> None:
        """Pool one layer's token states into its place in the output."""
        assert self._pooler is not None
        for want_norm in (False, True):
            rows = [i for i, s in enumerate(self._sources) if s == (block, want_norm)]
            if not rows:
                continue
            norm = self.loaded.final_norm if want_norm else None
            pooled = self._pooler(states_BTD if norm is None else norm(states_BTD))
            for name, states_BD in pooled.items():
                for row in rows:
                    self._out[name][row] = states_BD

    def try_run(self, positions: npt.NDArray[np.int64]) -> _Pooled | None:
        """Run one batch; None if the device's memory doesn't suffice."""
        try:
            return self.run(positions)
        except torch.OutOfMemoryError:
            self._out, self._pooler = {}, None
        # Outside the handler, where the error's frames no longer hold on to tensors.
        if self._copies is not None:
            torch.cuda.empty_cache()
        return None

    def run(self, positions: npt.NDArray[np.int64]) -> _Pooled:
        """Run one batch, and start the copy of its pooled states to the host."""
        loaded = self.loaded
        texts = [self._texts[i] for i in positions]
        lengths = np.array([len(ids) for ids in texts])
        width = int(lengths.max())
        ids_BT = torch.from_numpy(pad(texts, width)).to(loaded.device, non_blocking=True)
        mask = torch.from_numpy(np.arange(width) < lengths[:, None])
        mask_BT = mask.to(loaded.device, non_blocking=True)
        prefix_B = None
        if self._prefixes is not None:
            prefix_B = torch.from_numpy(self._prefixes[positions]).to(loaded.device)
        self._pooler = Pooler(mask_BT, self._poolings, prefix_B)
        shape = (len(self._sources), len(positions), loaded.hidden)
        self._out = {
            name: torch.empty(shape, dtype=torch.float32, device=loaded.device)
            for name in self._poolings
        }
        # Without a mask a causal model takes its fastest attention, and right padding is behind
        # every real token anyway.
        padded = bool((lengths < width).any()) and not loaded.causal
        loaded.model(input_ids=ids_BT, attention_mask=mask_BT.long() if padded else None)
        out, self._out, self._pooler = self._out, {}, None
        finite = torch.stack([states.isfinite().all() for states in out.values()]).all()
        if self._copies is None:
            return _Pooled(positions, out, finite, None)
        self._copies.wait_stream(torch.cuda.current_stream(loaded.device))
        with torch.cuda.stream(self._copies):
            home = {name: _to_host(states, self._copies) for name, states in out.items()}
            finite = _to_host(finite, self._copies)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._copies)
        return _Pooled(positions, home, finite, arrived)


def _to_host(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Start a copy into page-locked memory, which alone runs beside the next batch."""
    home = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    home.copy_(tensor, non_blocking=True)
    tensor.record_stream(stream)
    return home


def _finite(
    pooled: _Pooled, forward: _Pass, layers: Sequence[int], first_row: int
) -> dict[str, npt.NDArray[np.float32]]:
    """The arrays of a batch, once it is sure that they hold no NaN or inf."""
    arrays = pooled.arrays()
    if bool(pooled.finite):
        return arrays
    for name, states in arrays.items():
        for column in np.flatnonzero(~np.isfinite(states).all(axis=(0, 2))):
            position = pooled.positions[column : column + 1]
            if len(pooled.positions) > 1:
                # Padding may overflow where the text itself does not: the text alone decides.
                states[:, column] = forward.run(position).arrays()[name][:, 0]
            bad = np.flatnonzero(~np.isfinite(states[:, column]).all(axis=1))
            if bad.size:
                loaded = forward.loaded
                raise IndexFailed(
                    f"{loaded.name}, layer {layers[bad[0]]}, row {first_row + position[0]}: NaN "
                    f"or inf in the states computed in {loaded.dtype}; the weights are damaged, "
                    "or the dtype's range is too small (try dtype float32 or bfloat16)"
                )
    return arrays
