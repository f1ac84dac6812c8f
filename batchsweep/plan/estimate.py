"""What a planned sweep will cost: storage, download, compute, time, pulls; and what would save.

An estimate to decide from, not a measurement: within a factor of two or three for time on a GPU,
within a few per cent for storage once the corpus is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from batchsweep.config import Config, EveryLayers
from batchsweep.corpus.size import CorpusSize, corpus_size
from batchsweep.plan.plan import Plan, PlanEntry, layers_of
from batchsweep.plan.speed import DEFAULT_GPU, Speed, download_bytes, stored_bytes
from batchsweep.plan.timings import Timing

_GIB = 2**30


@dataclass(frozen=True)
class EntryEstimate:
    """The cost of one index."""

    key: str
    store_bytes: int
    download_bytes: int
    flops: float
    start_seconds: float
    """Of the process and of loading weights that are there."""
    gpu_seconds: float
    """The slower of computing and writing, with start and download."""


@dataclass(frozen=True)
class Saving:
    """A change of the config that makes the sweep cheaper, and what is left of it."""

    change: str
    store_bytes: int
    flops: float
    gpu_seconds: float


@dataclass(frozen=True)
class Estimate:
    """The cost of a sweep."""

    entries: tuple[EntryEstimate, ...]
    size: CorpusSize
    corpus_bytes: int
    speed: Speed
    """What times rest on."""
    arms: int
    arms_per_model: dict[str, int]
    exhaustive_pulls: int
    budget: str
    """The bandit's budget, in words."""
    budget_pulls: int | None
    """None where the budget is in seconds."""
    download_exact: bool
    least_seconds: float
    """As ``gpu_seconds``, had the recorded extraction not been kept waiting for its cores."""
    savings: tuple[Saving, ...] = ()

    @property
    def store_bytes(self) -> int:
        """All embeddings and the corpus."""
        return self.corpus_bytes + sum(e.store_bytes for e in self.entries)

    @property
    def download_bytes(self) -> int:
        """Weights to be fetched."""
        return sum(e.download_bytes for e in self.entries)

    @property
    def flops(self) -> float:
        return sum(e.flops for e in self.entries)

    @property
    def gpu_seconds(self) -> float:
        """Of all indexes one after another, starts and downloads included."""
        return sum(e.gpu_seconds for e in self.entries)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **asdict(self),
            "gpu": self.speed.device,
            "store_bytes": self.store_bytes,
            "download_bytes": self.download_bytes,
            "flops": self.flops,
            "gpu_seconds": self.gpu_seconds,
        }


def estimate(
    plan: Plan,
    config: Config,
    size: CorpusSize,
    *,
    gpu: str | None = None,
    measured: Mapping[str, Timing] | None = None,
) -> Estimate:
    """Add up what a plan costs.

    Args:
        gpu: a name of :data:`batchsweep.plan.speed.GPUS`, or ``cpu``.
        measured: checkpoint key -> what extraction took, where times are to follow it.

    Raises:
        UsageError: an unknown GPU.
    """
    speed = Speed((gpu or DEFAULT_GPU).lower()).corrected(
        plan.entries, config, measured or {}, lambda entry: size.mean_length
    )
    entries = tuple(_entry(e, config, size, speed) for e in plan.entries)
    least = sum(_entry(e, config, size, speed.undisturbed).gpu_seconds for e in plan.entries)
    arms = len(plan.arms(config.embedding.transforms))
    tasks = len(size.tasks) + len(size.unknown)
    budget = config.bandit.budget_text(tasks)
    pulls, _ = config.bandit.budget_for(arms, tasks)
    tokenizers = max(len(plan.tokenizers()), 1)
    characters = sum(t.characters for t in size.tasks)
    return Estimate(
        entries=entries,
        size=size,
        # Text, 24 bytes of digest and offset a row, int32 ids and an offset for each tokenizer.
        corpus_bytes=int(
            characters + 24 * size.texts + tokenizers * 4 * (size.tokens + size.texts)
        ),
        speed=speed,
        arms=arms,
        arms_per_model=plan.arms_per_model(config.embedding.transforms),
        exhaustive_pulls=arms * tasks,
        budget=budget,
        budget_pulls=pulls,
        download_exact=all(e.checkpoint.weights for e in plan.entries),
        least_seconds=least,
        savings=_savings(plan, config, size, speed),
    )


def _entry(entry: PlanEntry, config: Config, size: CorpusSize, speed: Speed) -> EntryEstimate:
    stored = stored_bytes(entry, config, size.texts)
    start = speed.start_seconds(entry)
    working = speed.seconds(entry, size.tokens, size.mean_length, stored)
    return EntryEstimate(
        key=entry.key,
        store_bytes=stored,
        download_bytes=download_bytes(entry),
        flops=entry.shape.flops(size.tokens, size.mean_length),
        start_seconds=start,
        gpu_seconds=start + speed.download_seconds(entry) + working,
    )


def _savings(plan: Plan, config: Config, size: CorpusSize, speed: Speed) -> tuple[Saving, ...]:
    """Changes that would make the sweep cheaper, one at a time, the largest first.

    None for a sweep that is small anyway.
    """
    found: list[Saving] = []
    now = sum(_entry(e, config, size, speed).store_bytes for e in plan.entries)
    if now < _GIB:
        return ()

    def consider(change: str, other: Config, other_size: CorpusSize) -> None:
        entries = [_entry(relayered(e, other), other, other_size, speed) for e in plan.entries]
        stored = sum(e.store_bytes for e in entries)
        if stored < 0.9 * now:
            flops = sum(e.flops for e in entries)
            found.append(Saving(change, stored, flops, sum(e.gpu_seconds for e in entries)))

    def with_section(name: str, **values: Any) -> Config:
        section = getattr(config, name).model_copy(update=values)
        return config.model_copy(update={name: section})

    if "layer_by_layer_32" in config.tasks and config.corpus.max_texts_per_task is None:
        tasks = tuple(f"{t}_fast" if t == "layer_by_layer_32" else t for t in config.tasks)
        other = config.model_copy(update={"tasks": tasks})
        consider("tasks: layer_by_layer_32_fast", other, corpus_size(other))
    largest = max((t.texts for t in size.tasks), default=0)
    cap = next((c for c in (20_000, 5000, 1000) if largest > 2 * c), None)
    if cap is not None:
        other = with_section("corpus", max_texts_per_task=cap)
        consider(f"corpus.max_texts_per_task: {cap}", other, size.capped(cap))
    smaller = {"float32": "float16", "float16": "int8"}.get(config.store.dtype)
    if smaller is not None:
        consider(f"store.dtype: {smaller}", with_section("store", dtype=smaller), size)
    if config.embedding.layers == "all":
        other = with_section("embedding", layers=EveryLayers(every=2))
        consider("embedding.layers: {every: 2}", other, size)
    if len(config.embedding.pooling) > 1:
        first = config.embedding.pooling[:1]
        consider(f"embedding.pooling: {first[0]}", with_section("embedding", pooling=first), size)
    return tuple(sorted(found, key=lambda s: s.store_bytes))


def relayered(entry: PlanEntry, config: Config) -> PlanEntry:
    """The entry with the layers that another config asks for."""
    layers = layers_of(config, entry.checkpoint.model, entry.shape.num_layers)
    return PlanEntry(entry.index, entry.checkpoint, layers, entry.shape, entry.tokenizer)


def gib(size: float) -> str:
    """Bytes as people read them: ``64.5 GiB``, ``310 MiB``."""
    for unit, width in (("TiB", 2**40), ("GiB", _GIB), ("MiB", 2**20)):
        if size >= width:
            return (
                f"{size / width:.3g} {unit}"
                if size < 1000 * width
                else f"{size / width:,.0f} {unit}"
            )
    return f"{size / 1024:.3g} KiB"
