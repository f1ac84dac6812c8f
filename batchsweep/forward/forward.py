"""The forward pass: one pass over each text gives the pooled states of every wanted layer.

Nothing but pooled states is kept: hooks pool each layer's token states the moment its block
returns. Blocks after the last wanted layer don't run.

On a CPU every batch is computed by one thread, and as many batches at once as there are cores: what
a text's states are, to the last bit, depends on neither.

A text without tokens stands for the model's end-of-text token: it has a vector, and every empty
text has the same one. (The corpus has the tokenizer's own end-of-text token there, if it has one.)
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.hooks import RemovableHandle

from batchsweep.errors import IndexFailed, UsageError
from batchsweep.forward.architecture import LoadedCheckpoint, block_input, block_output
from batchsweep.forward.batching import (
    free_padding,
    make_batches,
    pack_batches,
    packed_tokens,
    pad,
    runs_of,
    split,
)
from batchsweep.forward.fused_neox import Known
from batchsweep.forward.gpt_neox import know_tokens, takes_runs
from batchsweep.forward.loading import fetch, load_checkpoint
from batchsweep.forward.pooling import Pooler
from batchsweep.numerics import COMPUTE_THREADS, cores

__all__ = ["LoadedCheckpoint", "fetch", "load_checkpoint", "pooled_states"]

logger = logging.getLogger(__name__)

LAYER_OUTPUTS = ("final_norm", "raw", "hidden_states")

#: Turns the token states [text, token, hidden] of one layer into tensors [text, ...] by name.
Reducer = Callable[[torch.Tensor], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class MakeReducer:
    """What makes the reducer of a batch from its mask [text, token] and its texts' positions."""

    of: Callable[[torch.Tensor, npt.NDArray[np.int64]], Reducer]
    #: Whether its reducers also take states without padding: [token, hidden], text after text.
    without_padding: bool = False


#: Positions of a batch's texts, and by name what the reducers gave: [layer, text, ...].
Reduced = tuple[npt.NDArray[np.int64], dict[str, npt.NDArray[Any]]]
#: Waits for a batch that was started: what it gave by name, None if memory did not suffice.
_Started = Callable[[], dict[str, npt.NDArray[Any]] | None]


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
) -> Iterator[Reduced]:
    """Pooled states of a block of texts, batch by batch, longest texts first.

    Which texts go together depends on nothing but their lengths, ``batch_tokens`` and the model's
    width, so a resumed run repeats the bytes of an uninterrupted one. (Running out of GPU memory
    halves batches, which moves rounding.)

    Args:
        loaded: From :func:`load_checkpoint`. Its model is in use until the iterator is at its
            end or closed.
        token_ids: Token ids of each text, [text] of int [token].
        layers: Which layers: 0 is the embedding output, 1..L the blocks' outputs.
        poolings: Names from :data:`batchsweep.forward.pooling.POOLINGS`.
        layer_output: ``final_norm``: the model's final norm applied to every layer's token
            states before pooling, which is what the model truncated to l blocks returns. (A
            model without a final norm, such as BERT, gives the same as ``raw``.) ``raw``: the
            residual stream as it is. ``hidden_states``: what transformers returns as
            ``hidden_states[layer]``: raw, but normed for the last one; for Mamba, whose tuple
            lacks the embedding output, index l < L is block l + 1.
        batch_tokens: Tokens of one batch, padding included, at most.
        prefix_lengths: Leading tokens of each text to leave out of pooling, int [text].
        first_row: Corpus row of the first text, for messages.

    Yields:
        Positions of the batch's texts in ``token_ids``, and by pooling their float32 states
        [layer, text, hidden], layers in the order of ``layers``.

    Raises:
        IndexFailed: NaN or inf in a layer (the message has layer and row), or a single text
            that doesn't fit the device's memory.
    """
    return reduced_states(
        loaded,
        token_ids,
        layers=layers,
        layer_output=layer_output,
        batch_tokens=batch_tokens,
        make_reducer=pooler(poolings, prefix_lengths),
        first_row=first_row,
    )


def pooler(poolings: Sequence[str], prefix_lengths: npt.ArrayLike | None) -> MakeReducer:
    """What pools a batch's states; arguments as of :func:`pooled_states`."""
    prefixes = None if prefix_lengths is None else np.asarray(prefix_lengths, dtype=np.int64)

    def make_pooler(mask_BT: torch.Tensor, positions: npt.NDArray[np.int64]) -> Reducer:
        prefix_B = None
        if prefixes is not None:
            prefix_B = torch.from_numpy(prefixes[positions]).to(mask_BT.device)
        return Pooler(mask_BT, poolings, prefix_B)

    return MakeReducer(make_pooler, without_padding=True)


def reduced_states(
    loaded: LoadedCheckpoint,
    token_ids: Sequence[npt.ArrayLike],
    *,
    layers: Sequence[int],
    layer_output: str,
    batch_tokens: int,
    make_reducer: MakeReducer,
    first_row: int = 0,
    done: npt.NDArray[np.bool_] | None = None,
) -> Iterator[Reduced]:
    """What reducers make of every wanted layer's token states; see :func:`pooled_states`.

    Of texts that are ``done`` already, bool [text], a batch of none but these is left out; the
    others are what they would be with it.
    """
    sources = _sources(loaded, layers, layer_output)
    texts = [np.asarray(ids) for ids in token_ids]
    texts = [ids if ids.size else np.array([loaded.empty_token]) for ids in texts]
    loaded.check_tokens(texts, first_row)
    lengths = np.array([len(ids) for ids in texts], dtype=np.int64)
    packed = takes_runs(loaded.model) and make_reducer.without_padding
    if packed:
        most = packed_tokens(loaded.hidden, int(lengths.sum()))
        made = pack_batches(lengths, min(batch_tokens, most))
    else:
        made = make_batches(lengths, batch_tokens, free_padding(loaded.hidden))
    # A copy: what is done goes on while this runs.
    there = np.zeros(len(texts), bool) if done is None else done.copy()
    batches = deque(batch for batch in made if not there[batch].all())
    in_flight: deque[tuple[npt.NDArray[np.int64], _Started]] = deque()
    # One batch ahead on a GPU: it computes while the last batch's states come home.
    workers = 1 if loaded.device.type == "cuda" else max(min(cores(), len(batches)), 1)
    with ExitStack() as stack:
        passes = [
            stack.enter_context(_Pass(shell, sources, texts, make_reducer, packed))
            for shell in (loaded, *(_sharing_weights(loaded) for _ in range(workers - 1)))
        ]
        threads = None
        if loaded.device.type != "cuda":
            threads = ThreadPoolExecutor(
                workers, initializer=torch.set_num_threads, initargs=(COMPUTE_THREADS,)
            )
            stack.callback(threads.shutdown, cancel_futures=True)
            known = know_tokens(loaded.model, texts, threads)
            for each in passes:
                each.known = known
        start = _starter(passes, lambda r, p: _finite(r, p, layers, first_row), threads)
        while batches or in_flight:
            if batches and len(in_flight) < workers + 1:
                positions = batches.popleft()
                in_flight.append((positions, start(positions)))
                continue
            positions, started = in_flight.popleft()
            arrays = started()
            if arrays is None:
                tokens = len(positions) * int(lengths[positions].max())
                if len(positions) == 1:
                    raise IndexFailed(
                        f"{loaded.name}, row {first_row + positions[0]}: one text of {tokens} "
                        f"tokens doesn't fit in the memory of {loaded.device}; lower "
                        "embedding.max_length or use a smaller dtype"
                    )
                logger.warning(
                    "%s: out of memory on %s with a batch of %d tokens; going on with half",
                    loaded.name,
                    loaded.device,
                    tokens,
                )
                rest = [positions, *batches]
                batches = deque(part for b in rest for part in split(b, lengths, tokens // 2))
                continue
            yield positions, arrays


def _starter(
    passes: Sequence[_Pass],
    finish: Callable[[_Result, _Pass], dict[str, npt.NDArray[Any]]],
    threads: ThreadPoolExecutor | None,
) -> Callable[[npt.NDArray[np.int64]], _Started]:
    """Starts a batch: in a thread for each of the passes or, without threads, in a GPU's queue."""
    if threads is None:
        (forward,) = passes

        def start_here(positions: npt.NDArray[np.int64]) -> _Started:
            result = forward.try_run(positions)
            return lambda: None if result is None else finish(result, forward)

        return start_here
    free: SimpleQueue[_Pass] = SimpleQueue()
    for each in passes:
        free.put(each)

    def run(positions: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]] | None:
        forward = free.get()
        try:
            result = forward.try_run(positions)
            return None if result is None else finish(result, forward)
        finally:
            free.put(forward)

    return lambda positions: threads.submit(run, positions).result


def _sharing_weights(loaded: LoadedCheckpoint) -> LoadedCheckpoint:
    """Modules of their own, for hooks of their own; parameters and buffers are shared."""
    tensors = (*loaded.model.parameters(), *loaded.model.buffers())
    return copy.deepcopy(loaded, {id(tensor): tensor for tensor in tensors})


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
class _Result:
    """What one batch gave, on its way to the host."""

    positions: npt.NDArray[np.int64]
    states: dict[str, torch.Tensor]
    finite: torch.Tensor
    arrived: torch.cuda.Event | None

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return {name: states.numpy() for name, states in self.states.items()}


class _Pass:
    """Hooks that reduce what the wanted blocks return; a context, so that they come off again."""

    def __init__(
        self,
        loaded: LoadedCheckpoint,
        sources: Sequence[tuple[int, bool]],
        texts: Sequence[npt.NDArray[Any]],
        make_reducer: MakeReducer,
        packed: bool,
    ) -> None:
        self.loaded = loaded
        self._packed = packed
        self._sources = sources
        self._texts = texts
        self._make_reducer = make_reducer
        self._handles: list[RemovableHandle] = []
        #: Of the batch that is running.
        self._reducer: Reducer | None = None
        self._out: dict[str, torch.Tensor] = {}
        self.known: Known | None = None
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
        """Reduce one block's token states into their places in the output."""
        assert self._reducer is not None
        for normed in (False, True):
            places = [i for i, source in enumerate(self._sources) if source == (block, normed)]
            if not places:
                continue
            norm = self.loaded.final_norm if normed else None
            states = states_BTD[0] if self._packed else states_BTD
            reduced = self._reducer(states if norm is None else norm(states))
            for name, values in reduced.items():
                if name not in self._out:
                    self._out[name] = values.new_empty((len(self._sources), *values.shape))
                for place in places:
                    self._out[name][place] = values

    def try_run(self, positions: npt.NDArray[np.int64]) -> _Result | None:
        """Run one batch; None if the device's memory doesn't suffice."""
        try:
            return self.run(positions)
        except torch.OutOfMemoryError:
            self._out, self._reducer = {}, None
        # Outside the handler, where the error's frames no longer hold on to tensors.
        if self._copies is not None:
            torch.cuda.empty_cache()
        return None

    @torch.inference_mode()
    def run(self, positions: npt.NDArray[np.int64]) -> _Result:
        """Run one batch, and start the copy of what it gives to the host."""
        loaded = self.loaded
        texts = [self._texts[i] for i in positions]
        lengths = np.array([len(ids) for ids in texts])
        width = int(lengths.max())
        mask_BT = torch.from_numpy(np.arange(width) < lengths[:, None]).to(loaded.device)
        self._reducer = self._make_reducer.of(mask_BT, positions)
        if self._packed:
            ids_1N = torch.from_numpy(np.concatenate(texts).astype(np.int64))[None]
            loaded.model(input_ids=ids_1N, runs=runs_of(lengths.tolist()), known=self.known)
        else:
            ids_BT = torch.from_numpy(pad(texts, width)).to(loaded.device)
            # Without a mask a causal model takes its fastest attention, and right padding is
            # behind every real token anyway.
            needs_mask = not loaded.causal and bool((lengths < width).any())
            beside = {} if self.known is None else {"known": self.known}
            loaded.model(
                input_ids=ids_BT, attention_mask=mask_BT.long() if needs_mask else None, **beside
            )
        out, self._out, self._reducer = self._out, {}, None
        finite = torch.stack([values.isfinite().all() for values in out.values()]).all()
        if self._copies is None:
            return _Result(positions, out, finite, None)
        self._copies.wait_stream(torch.cuda.current_stream(loaded.device))
        with torch.cuda.stream(self._copies):
            home = {name: _to_host(values, self._copies) for name, values in out.items()}
            finite = _to_host(finite, self._copies)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._copies)
        return _Result(positions, home, finite, arrived)


def _to_host(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Start a copy into page-locked memory, which alone runs beside the next batch."""
    home = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    home.copy_(tensor, non_blocking=True)
    tensor.record_stream(stream)
    return home


def _finite(
    result: _Result, forward: _Pass, layers: Sequence[int], first_row: int
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a batch, once it is sure that they hold no NaN or inf."""
    arrays = result.arrays()
    if bool(result.finite):
        return arrays
    for column, position in enumerate(result.positions):
        if all(np.isfinite(values[:, column]).all() for values in arrays.values()):
            continue
        if len(result.positions) > 1:
            # Padding may overflow where the text itself does not: the text alone decides.
            alone = forward.run(result.positions[column : column + 1]).arrays()
            for name, values in arrays.items():
                values[:, column] = alone[name][:, 0]
        for layer, *per_name in zip(layers, *arrays.values(), strict=True):
            if not all(np.isfinite(values[column]).all() for values in per_name):
                raise IndexFailed(
                    f"{forward.loaded.name}, layer {layer}, row {first_row + position}: NaN or "
                    f"inf in the states computed in {forward.loaded.dtype}; the weights are "
                    "damaged, or the dtype's range is too small (try dtype float32 or bfloat16)"
                )
    return arrays
