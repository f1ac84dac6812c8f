"""Checkpoints: revision names, the steps in them, schedules, weight files.

No network and no disk here: :mod:`batchsweep.suite` asks the Hub or a directory, and
:mod:`batchsweep.audit` compares what they answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from batchsweep.config import Schedule
from batchsweep.errors import ConfigError
from batchsweep.shapes import PYTHIA_FINAL_STEP, is_pythia

STRATEGIES: tuple[str, ...] = get_args(Schedule.model_fields["strategy"].annotation)

#: Distance between two published late Pythia checkpoints, in steps.
_PYTHIA_SPACING = 1000
_SPARSE = (1000, 2000, 5000, 10_000, 20_000, 40_000, 80_000)
#: "Every 1000 early, every 10000 late".
_LOG = (*range(1000, 6000, 1000), *range(10_000, 150_000, 10_000))
_UNIFORM_INTERVAL = 5000

#: ``step1000``, ``stage1-step101000-tokens424B``, ``ckpt_356``, ``checkpoint-500``, ``step_20k``.
_STEP = r"(?:^|[-_/])(?:global_?step|step|ckpt|checkpoint|iter)[-_]?(\d+[kKmM]?)(?![A-Za-z0-9.])"
_MULTIPLES = {"k": 1000, "m": 1_000_000}

#: In a model's name, stands for the revision: checkpoints that are separate repos.
PLACEHOLDER = "{revision}"


@dataclass(frozen=True)
class WeightFile:
    """One file of weights, known by its content."""

    name: str
    sha256: str
    """Hex; ``git:`` and the blob id for a file that the Hub keeps outside LFS."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class Checkpoint:
    """(model, revision) resolved to a commit."""

    model: str
    """Hub repo id or local directory, as in the config."""
    revision: str
    commit: str = ""
    """Commit sha; of a local directory 40 hex digits derived from the weights' sha256; empty as
    long as nobody asked the Hub."""
    step: int | None = None
    """Training step of the weights; None where no name tells it."""
    weights: tuple[WeightFile, ...] = ()
    """The files that are loaded, by name."""
    aliases: tuple[str, ...] = ()
    """Other revisions of the model that serve the same weights."""
    local: bool = False

    @property
    def key(self) -> str:
        """Where its embeddings are in the store: ``EleutherAI--pythia-410m/step1000``."""
        return f"{model_slug(self.model, local=self.local)}/{_slug(self.revision)}"

    @property
    def names(self) -> tuple[str, ...]:
        """The revision and its aliases."""
        return (self.revision, *self.aliases)

    @property
    def load_model(self) -> str:
        """Repo or directory to load from."""
        return self.model.replace(PLACEHOLDER, self.revision)

    @property
    def load_revision(self) -> str:
        """What to load: the commit, so that a branch that moves can't change a sweep."""
        return (repo_revision(self.model, self.revision)) if self.local else self.commit

    @property
    def weights_digest(self) -> str:
        """sha256 (hex) over names and contents of the weight files; empty if not known."""
        return weights_digest(self.weights) if self.weights else ""

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return sum(file.size for file in self.weights)

    def to_json(self) -> dict[str, Any]:
        value = asdict(self)
        return {
            **value,
            "aliases": list(self.aliases),
            "weights": [asdict(file) for file in self.weights],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Checkpoint:
        return cls(
            **{
                **value,
                "aliases": tuple(value["aliases"]),
                "weights": tuple(WeightFile(**file) for file in value["weights"]),
            }
        )


def model_slug(model: str, *, local: bool) -> str:
    """A model's name as one part of a key: no slash, no character that shells or URLs mind."""
    name = re.sub(r"[-_.]?" + re.escape(PLACEHOLDER), "", model).rstrip("/")
    return _slug(name.rsplit("/", 1)[-1] if local else name)


def _slug(name: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9._-]", "-", name.replace("/", "--"))
    return slug.lstrip("._") or "model"


def repo_revision(model: str, revision: str) -> str:
    """The revision inside the repo that ``model`` and ``revision`` name together."""
    return "main" if PLACEHOLDER in model else revision


def weights_digest(files: Iterable[WeightFile]) -> str:
    """sha256 (hex) over names and contents, in order of name."""
    lines = sorted(f"{file.name} {file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


# Weight files

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


# Names and steps


def normalise_revision(name: str) -> str:
    """The branch's real name: ``step-1000`` is ``step1000``; all others stay as they are."""
    name = name.strip()
    match = re.fullmatch(r"step-(\d+)", name)
    return f"step{match[1]}" if match else name


def step_of(revision: str, pattern: str | None = None) -> int | None:
    """The training step in a revision's name, or None if there is none (``main``).

    Args:
        revision: such as ``step1000``, ``stage1-step101000-tokens424B``, ``ckpt_356``.
        pattern: regular expression whose first group is the step (``20k`` is 20000); None: the
            spellings of the published suites.

    Raises:
        ConfigError: the pattern is no regular expression, has no group, or finds no number.
    """
    match = _compiled(pattern).search(revision)
    if match is None:
        return None
    found = match[1] or ""
    number = re.fullmatch(r"(\d+)([kKmM]?)", found)
    if number is None:
        raise ConfigError(
            f"step_pattern '{pattern}': its first group finds '{found}' in '{revision}', "
            "which is not a step; a group such as (\\d+) finds one"
        )
    return int(number[1]) * _MULTIPLES.get(number[2].lower(), 1)


def _compiled(pattern: str | None) -> re.Pattern[str]:
    if pattern is None:
        return re.compile(_STEP)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"step_pattern '{pattern}' is no regular expression: {error}") from None
    if not compiled.groups:
        raise ConfigError(
            f"step_pattern '{pattern}' has no group; put the step in one: 'step(\\d+)'"
        )
    return compiled


# Schedules


def schedule(strategy: str, interval: int | None = None) -> list[str]:
    """Pythia's revisions by rule, in order of training.

    Args:
        strategy: ``sparse`` (8), ``uniform`` (every ``interval``, default 5000, and main: 29),
            ``log`` (every 1000 early, every 10000 late: 20), ``dense`` (every ``interval``,
            default 1000, to step143000: 143), ``all`` (the 154 branches).
        interval: steps, a multiple of 1000; for ``uniform`` and ``dense``.

    Raises:
        ConfigError: unknown strategy, or an interval that it can't have.
    """
    _check_strategy(strategy, interval)
    if interval is not None and interval % _PYTHIA_SPACING:
        raise ConfigError(
            f"interval {interval}: Pythia's checkpoints are {_PYTHIA_SPACING} steps apart; "
            f"give a multiple of {_PYTHIA_SPACING}"
        )
    if interval is not None and interval > PYTHIA_FINAL_STEP:
        raise ConfigError(f"interval {interval}: training ends at step {PYTHIA_FINAL_STEP}")
    if strategy == "sparse":
        steps = list(_SPARSE)
    elif strategy == "log":
        steps = list(_LOG)
    elif strategy == "uniform":
        every = interval or _UNIFORM_INTERVAL
        steps = list(range(every, PYTHIA_FINAL_STEP, every))
    else:
        every = interval or _PYTHIA_SPACING
        early = [0, *(2**n for n in range(10))] if strategy == "all" else []
        steps = [*early, *range(every, PYTHIA_FINAL_STEP + 1, every)]
    # main is step143000 under another name: it ends every list that does not reach that step.
    last = [] if steps[-1:] == [PYTHIA_FINAL_STEP] else ["main"]
    return [*(f"step{step}" for step in steps), *last]


def schedule_among(
    available: Mapping[str, int], strategy: str, interval: int | None = None
) -> list[str]:
    """The rule of :func:`schedule` on a suite with other steps.

    ``uniform`` and ``dense`` take the revisions whose step is a multiple of ``interval``;
    ``sparse`` and ``log`` the ones nearest to Pythia's fractions of the training; ``all`` takes
    all. The last step always ends the list.

    Args:
        available: revision -> training step.
        strategy, interval: as in :func:`schedule`; here any interval will do, and without one
            ``uniform`` takes 29 evenly spread and ``dense`` all but step 0.

    Raises:
        ConfigError: as :func:`schedule`, or no revision is available.
    """
    _check_strategy(strategy, interval)
    if not available:
        raise ConfigError(
            "no revision's name holds a step; list 'revisions' by name, or give the model a "
            "step_pattern whose first group is the step"
        )
    by_step = sorted(available, key=lambda name: (available[name], name))
    last = available[by_step[-1]]
    if strategy == "all":
        return by_step
    if interval is not None or strategy == "dense":
        every = interval or 1
        kept = [n for n in by_step if available[n] % every == 0 and available[n] > 0]
        return kept if by_step[-1] in kept else [*kept, by_step[-1]]
    if strategy == "uniform":
        steps = list(range(_UNIFORM_INTERVAL, PYTHIA_FINAL_STEP, _UNIFORM_INTERVAL))
    else:
        steps = list(_SPARSE if strategy == "sparse" else _LOG)
    targets = [step / PYTHIA_FINAL_STEP * last for step in steps] + [last]
    nearest = [min(by_step, key=lambda n: abs(available[n] - t)) for t in targets[:-1]]
    return list(dict.fromkeys([*nearest, by_step[-1]]))


def _check_strategy(strategy: str, interval: int | None) -> None:
    if strategy not in STRATEGIES:
        raise ConfigError(f"unknown strategy '{strategy}'; valid: {', '.join(STRATEGIES)}")
    if interval is None:
        return
    if strategy not in ("uniform", "dense"):
        raise ConfigError(f"strategy '{strategy}' has no interval; uniform and dense have one")
    if interval <= 0:
        raise ConfigError(f"interval {interval}: must be above 0")


def final_step(model: str, steps: Iterable[int]) -> int | None:
    """The training step of a model's last checkpoint, which ``main`` holds."""
    return PYTHIA_FINAL_STEP if is_pythia(model) else max(steps, default=None)
