"""Which checkpoints are the same: by the content of their weight files, file by file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from batchsweep.checkpoints.checkpoint import Checkpoint, step_of
from batchsweep.checkpoints.sources import Listing
from batchsweep.checkpoints.weight_files import WeightFile


@dataclass(frozen=True)
class Duplicates:
    """Revisions of different steps that serve the same weights."""

    model: str
    kept: str
    """The revision that stands for all."""
    others: tuple[str, ...]
    """The other names that the config asks for."""
    final: bool
    """The weights are those of ``main``: names of earlier steps are wrong."""

    @property
    def revisions(self) -> tuple[str, ...]:
        return (self.kept, *self.others)

    def __str__(self) -> str:
        if self.final:
            return (
                f"{self.model}: {_count(len(self.others))} the weights of {self.kept}: "
                f"{_names(self.others)}; all are one index, and no points of a training curve"
            )
        said = (
            f"{self.model}: {_names(self.revisions)} serve identical weights; they are one index "
            f"({self.kept}), and "
        )
        if {step_of(name) for name in self.revisions} == {0, 1}:
            # Where the learning rate warms up from 0, the first step changes nothing.
            return said + "both names may be right: with a warm-up the first step's rate is 0"
        return said + "at most one of the names is right"


def last_step_twice(checkpoints: Iterable[Checkpoint]) -> list[str]:
    """One line for each model that has its last step under two names, which is one index."""
    lines = []
    for checkpoint in checkpoints:
        names = [n for n in checkpoint.names if n != "main" and step_of(n) == checkpoint.step]
        if "main" in checkpoint.names and names and checkpoint.step is not None:
            lines.append(
                f"{checkpoint.model}: main is {_names(names)} under another name: one index"
            )
    return lines


@dataclass(frozen=True)
class SharedFiles:
    """Revisions that share some weight files, but not all: one of them is partly another."""

    model: str
    revisions: tuple[str, ...]
    files: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.model}: {_names(self.revisions)} share {_names(self.files)} but not the other "
            "weight files; at most one of them is what its name says"
        )


def identical(usable: Mapping[str, Listing]) -> list[list[str]]:
    """Group revisions that serve the same weights, file by file.

    Two are the same if the files that would be loaded are; or, where one has a format that the
    other lacks (``main`` got safetensors later), if the format that both have is.
    """
    by_loaded: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for revision, listing in usable.items():
        suffix, files = next(iter(listing.weights.items()))
        by_loaded.setdefault((suffix, _contents(files)), []).append(revision)
    # A format that is only the second choice somewhere links its group, if to one group only.
    second: dict[tuple[str, tuple[str, ...]], set[tuple[str, tuple[str, ...]]]] = {}
    for loaded, revisions in by_loaded.items():
        for revision in revisions:
            for suffix, files in list(usable[revision].weights.items())[1:]:
                second.setdefault((suffix, _contents(files)), set()).add(loaded)
    for content, targets in second.items():
        if content in by_loaded and len(targets) == 1:
            by_loaded[next(iter(targets))].extend(by_loaded.pop(content))
    return list(by_loaded.values())


def _contents(files: Iterable[WeightFile]) -> tuple[str, ...]:
    return tuple(file.sha256 for file in files)


def partly_shared(
    model: str,
    groups: Sequence[Sequence[str]],
    usable: Mapping[str, Listing],
    asked: Sequence[str],
) -> list[SharedFiles]:
    """Groups that have a weight file in common although they are not identical."""
    holders: dict[str, dict[int, str]] = {}
    for number, group in enumerate(groups):
        for revision in group:
            for files in usable[revision].weights.values():
                for file in files:
                    holders.setdefault(file.sha256, {})[number] = file.name
    # Which groups share -> the names of the files that they share.
    sharing: dict[tuple[int, ...], set[str]] = {}
    for holder in holders.values():
        if len(holder) > 1:
            sharing.setdefault(tuple(sorted(holder)), set()).update(holder.values())
    found = []
    for numbers, names in sharing.items():
        members = [next((r for r in groups[n] if r in asked), groups[n][0]) for n in numbers]
        # A group that nobody asked for (main) still tells whose shard it is.
        if any(r in asked for n in numbers for r in groups[n]):
            found.append(SharedFiles(model, tuple(members), tuple(sorted(names))))
    return found


def _count(n: int) -> str:
    return "1 revision serves" if n == 1 else f"{n} revisions serve"


def _names(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
