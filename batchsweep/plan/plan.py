"""The plan: index -> checkpoint and layers. :mod:`batchsweep.plan.frozen` keeps it in a store."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from batchsweep.arm import STORED, Arm, transformed
from batchsweep.checkpoints.audited import Audit, Skipped, warning_lines
from batchsweep.checkpoints.checkpoint import MOST_STEPS, Checkpoint, normalise_revision
from batchsweep.checkpoints.same_weights import Duplicates, SharedFiles
from batchsweep.checkpoints.shape import Shape
from batchsweep.config import Config, EveryLayers
from batchsweep.errors import ConfigError, IndexFailed, StoreCorrupt
from batchsweep.store.validation import MAX_LAYERS, check_version, is_key, name_fault, parsed

logger = logging.getLogger(__name__)

#: Version of the document; readers refuse a newer one.
PLAN_VERSION = 1


@dataclass(frozen=True)
class PlanEntry:
    """One index of the indexed job."""

    index: int
    checkpoint: Checkpoint
    layers: tuple[int, ...]
    """Ascending indexes of ``hidden_states`` that are stored."""
    shape: Shape
    tokenizer: str = ""
    """Names the tokenizer by its content; checkpoints that share one share the corpus's tokens."""

    @property
    def hidden(self) -> int:
        """Numbers in a vector."""
        return self.shape.hidden

    @property
    def key(self) -> str:
        """The checkpoint's key in the store."""
        return self.checkpoint.key

    def origin(self, config: Config) -> dict[str, str]:
        """What its group must be made of, by the names that a group's provenance has."""
        return {
            "commit": self.checkpoint.commit,
            "weights_digest": self.checkpoint.weights_digest,
            "config_digest": config.embedding_digest,
        }


@dataclass(frozen=True)
class Plan:
    """The frozen list of indexes, and what was left out of it and why."""

    entries: tuple[PlanEntry, ...]
    poolings: tuple[str, ...]
    config: Mapping[str, Any]
    """The part of the config that decides indexes and embeddings, as JSON values."""
    skipped: tuple[Skipped, ...] = ()
    duplicates: tuple[Duplicates, ...] = ()
    shared: tuple[SharedFiles, ...] = ()
    audited: bool = True
    """False: Hub models are taken at their word; such a plan can't be frozen."""

    @property
    def models(self) -> tuple[str, ...]:
        """Models in order of their first index."""
        return tuple(dict.fromkeys(e.checkpoint.model for e in self.entries))

    def entry(self, index: int) -> PlanEntry:
        """The entry of an index.

        Raises:
            IndexFailed: there is no such index.
        """
        if not 0 <= index < len(self.entries):
            raise IndexFailed(
                f"index {index}: the plan has {len(self.entries)} indexes, 0 to "
                f"{len(self.entries) - 1}; set the job's completions to {len(self.entries)}"
            )
        return self.entries[index]

    def entry_of(self, key: str) -> PlanEntry | None:
        """The entry of a checkpoint's key; None if there is none."""
        return next((entry for entry in self.entries if entry.key == key), None)

    def find(self, model: str, revision: str) -> PlanEntry | None:
        """The entry of a (model, revision), which may be an alias; None if there is none."""
        revision = normalise_revision(revision)
        mine = [e for e in self.entries if e.checkpoint.model == model]
        exact = (e for e in mine if e.checkpoint.revision == revision)
        return next(exact, None) or next((e for e in mine if revision in e.checkpoint.names), None)

    def arms(self, transforms: Sequence[str] = (STORED,)) -> list[str]:
        """Keys of all arms, ``<checkpoint key>#<layer>``, then ``#<pooling>`` if several."""
        names = transformed(self.poolings, transforms)
        return [
            str(Arm.spelled(e.key, layer, name, self.poolings))
            for e in self.entries
            for layer in e.layers
            for name in names
        ]

    def arms_per_model(self, transforms: Sequence[str] = (STORED,)) -> dict[str, int]:
        """Model -> number of its arms."""
        each = len(self.poolings) * len(transforms)
        counts = dict.fromkeys(self.models, 0)
        for entry in self.entries:
            counts[entry.checkpoint.model] += len(entry.layers) * each
        return counts

    def tokenizers(self) -> dict[str, Checkpoint]:
        """Tokenizer key -> the first checkpoint that has it."""
        found: dict[str, Checkpoint] = {}
        for entry in self.entries:
            found.setdefault(entry.tokenizer, entry.checkpoint)
        return found

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line each: skipped checkpoints, identical weights, shared files."""
        return warning_lines(self.skipped, self.duplicates, self.shared)

    @property
    def digest(self) -> str:
        """sha256 (hex) of the plan; changes when it grows."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_json` is the inverse."""
        return {
            "version": PLAN_VERSION,
            "config": dict(self.config),
            "poolings": list(self.poolings),
            "entries": [
                {
                    "index": e.index,
                    "key": e.key,
                    "checkpoint": e.checkpoint.to_json(),
                    "weights_digest": e.checkpoint.weights_digest,
                    "layers": list(e.layers),
                    "shape": asdict(e.shape),
                    "tokenizer": e.tokenizer,
                }
                for e in self.entries
            ],
            "skipped": [asdict(s) for s in self.skipped],
            "duplicates": [asdict(d) for d in self.duplicates],
            "shared": [asdict(s) for s in self.shared],
        }

    @classmethod
    def from_json(cls, value: Any, *, source: str) -> Plan:
        """Read a frozen plan.

        Raises:
            StoreMismatch: a newer batchsweep wrote it.
            StoreCorrupt: it is damaged.
        """
        try:
            if not isinstance(value, dict) or "version" not in value:
                raise ValueError("no version")
            check_version(value["version"], PLAN_VERSION, where=source, what="plan version")
            plan = parsed(cls, value)
            plan._check()
        except ValueError as error:
            raise StoreCorrupt(
                f"{source} is damaged ({error}); put it back from a backup, or delete it and run "
                "'batchsweep prepare' with the same config"
            ) from None
        return plan

    def _check(self) -> None:
        """Refuse what no plan says, whatever its types: it may come from anybody."""
        if not self.entries:
            raise ValueError("it has no indexes")
        for position, entry in enumerate(self.entries):
            layers = entry.layers
            if entry.index != position or not layers or sorted(set(layers)) != list(layers):
                raise ValueError(f"indexes or layers are out of order at index {position}")
            if not 0 <= layers[0] <= layers[-1] <= entry.shape.num_layers < MAX_LAYERS:
                raise ValueError(f"index {position} has layers that its model doesn't have")
            if not is_key(entry.key):
                raise ValueError(f"index {position} has no checkpoint's name")
            if not 0 <= (entry.checkpoint.step or 0) < MOST_STEPS:
                raise ValueError(f"index {position} has no step of any training")
        if fault := name_fault(self.poolings):
            raise ValueError(f"poolings: {fault}")


def make_plan(config: Config, audit: Audit) -> Plan:
    """Number the usable checkpoints and choose their layers.

    Raises:
        ConfigError: a layer that a model doesn't have.
    """
    entries = []
    for index, checkpoint in enumerate(audit.checkpoints):
        shape = audit.shapes[checkpoint.key]
        entries.append(
            PlanEntry(
                index=index,
                checkpoint=checkpoint,
                layers=layers_of(config, checkpoint.model, shape.num_layers),
                shape=shape,
                tokenizer=audit.tokenizers.get(checkpoint.key, ""),
            )
        )
    return Plan(
        entries=tuple(entries),
        poolings=config.embedding.pooling,
        config=deciding(config),
        skipped=audit.skipped,
        duplicates=audit.duplicates,
        shared=audit.shared,
        audited=audit.asked,
    )


def layers_of(config: Config, model: str, num_layers: int) -> tuple[int, ...]:
    """The layers that the config asks of a model with L layers, ascending.

    Raises:
        ConfigError: a listed layer isn't between 0 and L.
    """
    wanted = config.embedding.layers
    if wanted == "all":
        return tuple(range(1, num_layers + 1))
    if isinstance(wanted, EveryLayers):
        return tuple(sorted(range(num_layers, 0, -wanted.every)))
    outside = [n for n in wanted if not 0 <= n <= num_layers]
    if outside or not wanted:
        raise ConfigError(
            f"embedding.layers: {model} has no layer {', '.join(map(str, outside)) or '(none)'}; "
            f"valid: 0 (the embedding output) to {num_layers}, 'all' or {{every: n}}"
        )
    return tuple(sorted(set(wanted)))


def deciding(config: Config) -> dict[str, Any]:
    """The sections of the config that decide indexes, texts and embeddings, as JSON values."""
    sections = config.model_dump(
        mode="json",
        include={
            "models": True,
            "revisions": True,
            "tasks": True,
            "corpus": True,
            "embedding": True,
            "store": {"dtype", "block_texts"},
        },
    )
    sections["embedding"] = config.embedding.deciding()
    # On what axis the search sees a model decides no embedding.
    sections["models"] = [
        {k: v for k, v in model.items() if k != "tokens_per_step"} for model in sections["models"]
    ]
    # The same plan as before there was such a setting.
    for place in (sections, *sections["models"]):
        wanted = place["revisions"]
        if isinstance(wanted, dict) and wanted["points"] is None:
            place["revisions"] = {k: v for k, v in wanted.items() if k != "points"}
    # Through JSON, so that what was read back from a store compares equal.
    value: dict[str, Any] = json.loads(json.dumps(sections))
    return value
