"""Which files of a checkpoint are its weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WeightFile:
    """One file of weights, known by its content."""

    name: str
    sha256: str
    """Hex; ``git:`` and the blob id for a file that the Hub keeps outside LFS."""
    size: int
    """Bytes."""


def weights_digest(files: Iterable[WeightFile]) -> str:
    """sha256 (hex) over names and contents, in order of name."""
    lines = sorted(f"{file.name} {file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


#: Weight files by format, best first: prefix and suffix of their names.
WEIGHT_FORMATS = (("model", ".safetensors"), ("pytorch_model", ".bin"))


_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


def weight_names(names: Iterable[str]) -> dict[str, list[str]]:
    """The top-level weight files of each format that is there (``.safetensors``, ``.bin``).

    One file of all weights goes before shards, as in transformers.
    """
    names = list(names)
    found = {}
    for prefix, suffix in WEIGHT_FORMATS:
        whole = prefix + suffix
        shards = [
            n
            for n in names
            if n.startswith(prefix) and n.endswith(suffix) and _SHARD.search(n.removesuffix(suffix))
        ]
        if whole in names:
            found[suffix] = [whole]
        elif shards:
            found[suffix] = sorted(shards)
    return found


def missing_shards(names: Sequence[str]) -> int:
    """How many shards the names (``model-00001-of-00003.safetensors``) promise but lack."""
    present: dict[int, set[int]] = {}
    for name in names:
        match = _SHARD.search(name.rsplit(".", 1)[0])
        if match:
            present.setdefault(int(match[2]), set()).add(int(match[1]))
    return sum(total - len(shards) for total, shards in present.items())


def _weight_files(names: list[str]) -> list[str]:
    """The weight files of the best format among a repo's top-level files."""
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if stem + suffix in names:
            return [stem + suffix]
        shard = re.compile(rf"{stem}-\d+-of-\d+\{suffix}")
        found = sorted(n for n in names if shard.fullmatch(n))
        if found:
            return found
    return []
