"""How long extraction takes: as the store recorded it, else by rules of thumb for a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from batchsweep.config import Config
from batchsweep.errors import UsageError
from batchsweep.plan.plan import PlanEntry
from batchsweep.plan.timings import Timing

#: GPU -> dense 16-bit peak, in FLOP/s, from the makers' data sheets.
GPUS = {
    "t4": 65e12,
    "v100": 125e12,
    "l4": 121e12,
    "a10g": 70e12,
    "rtx4090": 165e12,
    "l40s": 362e12,
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
    "b200": 2250e12,
}
DEFAULT_GPU = "h100"
#: No GPU, and what a forward pass reaches there in FLOP/s: a few cores of a server.
CPU = "cpu"
CPU_SPEED = 1e11

#: Bytes a second of a weight download, and of writing embeddings.
DOWNLOAD_RATE = 50e6
WRITE_RATE = 500e6
#: Seconds to start a process and load libraries. Measured on a CPU (processor time of ``extract
#: --index`` up to the first block: docs/guides/scale.md); what CUDA adds is a guess.
CPU_START = 2.5
CUDA_START = 6.0
#: Bytes a second of weights that are read, checked and loaded: measured in the same way.
LOAD_RATE = 250e6

#: Bytes of one number of an embedding.
ITEM_BYTES = {"float16": 2, "float32": 4, "int8": 1}


@dataclass(frozen=True)
class Speed:
    """How fast checkpoints are extracted, each index by a process of its own.

    Attributes:
        device: a name of :data:`GPUS`, or ``cpu``.
        slower: how much longer forward passes and writing took than the rules of thumb say.
        started: seconds of a start as the store recorded them, downloads included; None: it has
            recorded nothing, and rules of thumb count alone.
        indexes: of how many that was recorded.
        paces: of these, the slowest index's pace over the quickest one's.
        waited_start, waited: the part of recorded starts, and of recorded work, in which the
            process was kept waiting: others had its cores.

    Raises:
        UsageError: an unknown device.
    """

    device: str
    slower: float = 1.0
    started: float | None = None
    indexes: int = 0
    paces: float = 1.0
    waited_start: float = 0.0
    waited: float = 0.0

    def __post_init__(self) -> None:
        if self.device not in (*GPUS, CPU):
            raise UsageError(f"unknown GPU '{self.device}'; valid: {', '.join((*GPUS, CPU))}")

    def corrected(
        self,
        entries: Sequence[PlanEntry],
        config: Config,
        measured: Mapping[str, Timing],
        mean_length: Callable[[PlanEntry], float],
    ) -> Speed:
        """With what the store recorded, if it has recorded anything of these entries.

        Args:
            measured: checkpoint key -> what it took.
            mean_length: tokens a text.
        """
        known = [(e, measured[e.key]) for e in entries if e.key in measured]
        runs = sum(one.runs for _, one in known)
        if not runs:
            return self
        thought = []
        for entry, one in known:
            mean = mean_length(entry)
            stored = stored_bytes(entry, config, one.tokens / max(mean, 1e-9))
            thought.append(self._thought(entry, one.tokens, mean, stored))
        took = [one.seconds for _, one in known]
        # An index that did next to nothing says nothing of a pace.
        enough = 0.1 * sum(thought) / len(thought)
        paces = [t / x for t, x in zip(took, thought, strict=True) if t and x > enough]
        starts = sum(one.start_seconds for _, one in known)
        waited_start = sum(one.waited_start_seconds for _, one in known)
        waited = sum(one.waited_seconds for _, one in known)
        return Speed(
            self.device,
            slower=sum(took) / sum(thought) if sum(took) and sum(thought) else 1.0,
            started=starts / runs,
            indexes=len(known),
            paces=max(paces) / min(paces) if paces else 1.0,
            waited_start=waited_start / starts if starts else 0.0,
            waited=waited / sum(took) if sum(took) else 0.0,
        )

    @property
    def undisturbed(self) -> Speed:
        """With the cores to itself, as far as the store recorded what it waited for them."""
        if self.started is None:
            return self
        return replace(
            self,
            slower=self.slower * max(1 - self.waited, 0.0),
            started=self.started * max(1 - self.waited_start, 0.0),
        )

    @property
    def place(self) -> str:
        """What times are meant on, in words."""
        return f"one {self.device}" if self.started is None else "one as recorded"

    def start_seconds(self, entry: PlanEntry) -> float:
        """Of an index, from its process's start to loaded weights that were there."""
        if self.started is not None:
            return self.started
        libraries = CPU_START if self.device == CPU else CPU_START + CUDA_START
        return libraries + weight_bytes(entry) / LOAD_RATE

    def download_seconds(self, entry: PlanEntry) -> float:
        """To fetch a checkpoint's weights; none where they are in what was recorded of starts."""
        return 0.0 if self.started is not None else download_bytes(entry) / DOWNLOAD_RATE

    def seconds(self, entry: PlanEntry, tokens: float, mean: float, stored: float) -> float:
        """Of forward passes and writing, whichever takes longer.

        Args:
            tokens: in all.
            mean: tokens a text.
            stored: bytes that are written.
        """
        return self.slower * self._thought(entry, tokens, mean, stored)

    def _thought(self, entry: PlanEntry, tokens: float, mean: float, stored: float) -> float:
        speed = CPU_SPEED if self.device == CPU else GPUS[self.device] * utilisation(entry.hidden)
        return max(entry.shape.flops(tokens, mean) / speed, stored / WRITE_RATE)


def stored_bytes(entry: PlanEntry, config: Config, texts: float) -> int:
    """What the embeddings of so many texts of one index take in the store."""
    vectors = len(entry.layers) * texts * len(config.embedding.pooling)
    scale = 4 if config.store.dtype == "int8" else 0
    return int(vectors * (entry.hidden * ITEM_BYTES[config.store.dtype] + scale))


def weight_bytes(entry: PlanEntry) -> int:
    """Of a checkpoint. Without an audit: two bytes a parameter, as most publish."""
    return entry.checkpoint.size or 2 * entry.shape.parameters


def download_bytes(entry: PlanEntry) -> int:
    """Of a checkpoint's weights."""
    return 0 if entry.checkpoint.local else weight_bytes(entry)


def utilisation(hidden: int) -> float:
    """The part of a GPU's peak that a forward pass of this width is taken to reach.

    A rule of thumb, not a measurement: 40 % for wide models, and the less the narrower their
    matrices are (4 % for 128).
    """
    return 0.4 * hidden / (hidden + 1024)
