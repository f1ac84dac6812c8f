"""What one checkpoint's group holds: its shape, its blocks, and where it comes from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from batchsweep.errors import StoreCorrupt, StoreError, shortened
from batchsweep.store.validation import (
    MAX_BLOCKS,
    MAX_CHUNK_BYTES,
    MAX_HIDDEN,
    MAX_LAYERS,
    MAX_NAMES,
    MAX_TEXTS,
    is_name,
    name_fault,
    parsed,
)

DTYPES = ("float16", "float32", "int8")
COMPRESSIONS = ("none", "zstd")

# Of the provenance as JSON.
_TEXT_BYTES = 1 << 14

#: What else lies beside the arrays of a group, in Zarr or in HDF5.
_RESERVED = frozenset(
    ("layer", "text", "step", "seals", "metrics", "zarr.json", "complete", "metric_count")
)

#: Provenance that is recorded but doesn't decide whether a group may be continued: a newer
#: library on a restarted pod is no reason to throw away what is sealed.
RECORDED_ONLY = frozenset({"versions"})


@dataclass(frozen=True, kw_only=True)
class GroupSpec:
    """The shape and origin of one checkpoint's embeddings.

    Raises:
        StoreError: for a dtype, compression or size that the format doesn't have.
    """

    layers: tuple[int, ...]
    """Layer numbers (indexes of ``hidden_states``), ascending: the first axis."""
    poolings: tuple[str, ...]
    """One array [layer, text, hidden] for each."""
    texts: int
    """Rows of the corpus."""
    hidden: int
    """Size of the model's hidden states."""
    dtype: str = "float16"
    """``float16``, ``float32``, or ``int8`` with one scale a vector."""
    block_texts: int = 4096
    """Texts a block."""
    compression: str = "none"
    """``none`` or ``zstd``."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """model, revision, step, commit, config_digest, corpus_digest, weights_digest, layer_output,
    versions ...: plain JSON values."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            # bfloat16 isn't a type that every Zarr and HDF5 reader has; float32 holds it exactly.
            hint = "; float32 holds bfloat16 values exactly" if self.dtype == "bfloat16" else ""
            raise StoreError(
                f"store.dtype '{self.dtype}' can't be stored; valid: {', '.join(DTYPES)}{hint}"
            )
        if self.compression not in COMPRESSIONS:
            raise StoreError(
                f"store.compression '{self.compression}' isn't known; "
                f"valid: {', '.join(COMPRESSIONS)}"
            )
        layers = list(self.layers)
        if not layers or layers != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < 2**31:
            raise StoreError(f"layers must be ascending and not empty, got {layers[:MAX_NAMES]}")
        if not self.poolings:
            raise StoreError("poolings must not be empty")
        if fault := name_fault(self.arrays, reserved=_RESERVED):
            raise StoreError(f"poolings: {fault}")
        sizes = {
            "layers": (len(layers), MAX_LAYERS),
            "texts": (self.texts, MAX_TEXTS),
            "hidden": (self.hidden, MAX_HIDDEN),
            "block_texts": (self.block_texts, 2**31),
        }
        for name, (size, most) in sizes.items():
            if not 1 <= size <= most:
                raise StoreError(f"{name} must be 1 to {most}, got {size}")
        if self.blocks > MAX_BLOCKS:
            raise StoreError(
                f"{self.texts} texts in blocks of {self.block_texts} are {self.blocks} blocks, at "
                f"most {MAX_BLOCKS} are allowed; set a larger store.block_texts"
            )
        if self.chunk_texts * self.hidden * 4 > MAX_CHUNK_BYTES:
            raise StoreError(
                f"{self.chunk_texts} texts of {self.hidden} values are more than "
                f"{MAX_CHUNK_BYTES >> 30} GiB a layer; set a smaller store.block_texts"
            )

    @property
    def blocks(self) -> int:
        """Number of blocks; the last one may be shorter."""
        return -(-self.texts // self.block_texts)

    @property
    def chunk_texts(self) -> int:
        """Rows of one stored chunk: a corpus shorter than a block isn't padded to a block."""
        return min(self.block_texts, self.texts)

    def block_rows(self, block: int) -> slice:
        """The corpus rows of a block."""
        if not 0 <= block < self.blocks:
            raise StoreError(f"block {block} doesn't exist; valid: 0 to {self.blocks - 1}")
        start = block * self.block_texts
        return slice(start, min(start + self.block_texts, self.texts))

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the stored arrays that have blocks, in the order in which seals cover them."""
        if self.dtype != "int8":
            return self.poolings
        return tuple(name for p in self.poolings for name in (p, f"{p}_scale"))

    @property
    def digest(self) -> bytes:
        """sha256 of what decides the group's bytes: every field, less what is only recorded."""
        return hashlib.sha256(_canonical(_deciding(self.to_json())).encode()).digest()

    def without_compression(self) -> GroupSpec:
        """The same group as HDF5 stores it."""
        return replace(self, compression="none")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as in the group's attributes."""
        value = asdict(self)
        return {**value, "layers": list(self.layers), "poolings": list(self.poolings)}

    @classmethod
    def from_json(cls, value: dict[str, Any], *, source: str) -> GroupSpec:
        """The inverse of :meth:`to_json`; further keys (such as ``complete``) are ignored.

        Raises:
            StoreCorrupt: a key is missing, has a wrong type, or says what no group can be.
        """
        try:
            if missing := sorted({f.name for f in fields(cls)} - value.keys()):
                raise ValueError(f"{missing[0]} is missing")
            spec = parsed(cls, value)
            _check_provenance(spec.provenance)
        except (ValueError, StoreError) as error:
            raise StoreCorrupt(
                f"{source}: the group's attributes are damaged ({error}); "
                "run 'batchsweep verify --repair'"
            ) from None
        return spec

    def differences(self, other: GroupSpec) -> list[str]:
        """What keeps a group with this spec from being continued with ``other``, in words."""
        here, there = _flat(_deciding(self.to_json())), _flat(_deciding(other.to_json()))
        return [
            f"{name} is {_short(here.get(name))} in the store, {_short(there.get(name))} now"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]


def _check_provenance(provenance: dict[str, Any]) -> None:
    """Refuse what readers would stumble over: names that aren't text, a step that's no number."""
    for name in ("model", "revision"):
        if not isinstance(provenance.get(name, ""), str):
            raise ValueError(f"provenance.{name} isn't text")
    step = provenance.get("step")
    if step is not None and (type(step) is not int or abs(step) >= 2**53):
        raise ValueError("provenance.step isn't a number of steps")
    for name, value in provenance.items():
        # As HDF5 can hold them, where they are attributes.
        if not is_name(name):
            raise ValueError(f"provenance: {name[:40]!r} can't be a name in a store")
        if isinstance(value, str) and "\0" in value:
            raise ValueError(f"provenance.{name} has NUL")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise ValueError(f"provenance.{name} is no number of 64 bits")
    if len(_canonical(provenance)) > _TEXT_BYTES:  # Refuses NaN and infinities, too.
        raise ValueError(f"provenance is longer than {_TEXT_BYTES} bytes")


def _deciding(value: dict[str, Any]) -> dict[str, Any]:
    provenance = {k: v for k, v in value["provenance"].items() if k not in RECORDED_ONLY}
    return {**value, "provenance": provenance}


def _flat(value: dict[str, Any]) -> dict[str, Any]:
    # Through JSON, so that a tuple in memory equals the list that was read back.
    plain: dict[str, Any] = json.loads(_canonical(value))
    provenance = plain.pop("provenance")
    members: dict[str, Any] = {}
    for name, there in provenance.items():
        # Of a section (metrics), what differs is named and not the whole.
        inner = there if isinstance(there, dict) else {}
        members |= {f"{name}.{key}": v for key, v in inner.items()} or {name: there}
    return {**plain, **members}


def _short(value: Any) -> str:
    return shortened(json.dumps(value))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
