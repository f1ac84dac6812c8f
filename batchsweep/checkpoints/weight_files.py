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


#: Weight files by format, best first: stem and suffix of their names.
WEIGHT_FORMATS = (("model", ".safetensors"), ("pytorch_model", ".bin"))

_SHARD = re.compile(r"-(\d+)-of-(\d+)$")


def weight_names(names: Iterable[str]) -> dict[str, list[str]]:
    """The top-level weight files of each format that is there (``.safetensors``, ``.bin``).

    One file of all weights goes before shards, as in transformers. Variants
    (``model.fp16-00001-of-00002.safetensors``) are other weights, which nobody loads unasked.
    """
    names = list(names)
    found = {}
    for stem, suffix in WEIGHT_FORMATS:
        whole = stem + suffix
        shards = [
            n
            for n in names
            if n.endswith(suffix) and _SHARD.sub("", n.removesuffix(suffix)) == stem
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


def _weight_files(names: Iterable[str]) -> list[str]:
    """The files to load: the best complete format's, or the best one's if none is complete."""
    found = list(weight_names(names).values())
    complete = [files for files in found if not missing_shards(files)]
    return next(iter(complete or found), [])
