"""Checkpoints: revision names, the steps in them, schedules, weight files.

No network and no disk here: :mod:`batchsweep.checkpoints.sources` asks the Hub or a directory, and
:mod:`batchsweep.checkpoints.audit` compares what they answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from batchsweep.checkpoints.shape import PYTHIA_FINAL_STEP, is_pythia
from batchsweep.checkpoints.weight_files import WeightFile, weights_digest
from batchsweep.errors import ConfigError

#: No training has as many steps; a branch may be called anything, and arrays hold 64 bits.
MOST_STEPS = 10**18
_STEP_DIGITS = 18
#: How published suites spell the step; the first that is found counts.
_STEPS = (
    # step1000, stage1-step101000-tokens424B, ckpt_356, checkpoint-500, seed_0-step_20k
    r"(?:^|[-_/])(?:global_?step|step|ckpt|checkpoint|iter)[-_]?(\d+[kKmM]?)(?![A-Za-z0-9.])",
    r"^(?:ext|decay)(\d+)$",  # Ettin's second and third stage
    r"^(\d{1,12})$",  # 0000020000 (Tri)
    r"^(\d+[mMbBtT])_tokens$",  # 240b_tokens (RedPajama): the count is of tokens
)
_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}

#: ``stage2-ingredient1-step1000``; Ettin's context extension and decay follow on its ``step``.
_STAGE = re.compile(r"(?:^|[-_/])stage[-_]?(\d+)(?![A-Za-z0-9.])")
_NAMED_STAGES = {"ext": 2, "decay": 3}

#: In a model's name, stands for the revision: checkpoints that are separate repos.
PLACEHOLDER = "{revision}"


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


# Names and steps


def normalise_revision(name: str) -> str:
    """The branch's real name: ``step-1000`` is ``step1000``; all others stay as they are."""
    name = name.strip()
    match = re.fullmatch(r"step-(\d+)", name)
    return f"step{match[1]}" if match else name


def step_of(revision: str, pattern: str | None = None) -> int | None:
    """The training step in a revision's name, or None if there is none (``main``).

    Where training has stages it is the step within its stage; :func:`steps_in` counts through.

    Args:
        revision: such as ``step1000``, ``stage1-step101000-tokens424B``, ``ckpt_356``.
        pattern: regular expression whose first group is the step (``20k`` is 20000); None: the
            spellings of the published suites.

    Raises:
        ConfigError: the pattern is no regular expression, has no group, or finds no number.
    """
    compiled = [re.compile(p) for p in _STEPS] if pattern is None else [_compiled(pattern)]
    match = next((m for p in compiled if (m := p.search(revision))), None)
    if match is None:
        return None
    found = match[1] or ""
    number = re.fullmatch(r"(\d+)([kKmMbBtT]?)", found)
    if number is None:
        raise ConfigError(
            f"step_pattern '{pattern}': its first group finds '{found}' in '{revision}', "
            "which is not a step; a group such as (\\d+) finds one"
        )
    if len(number[1]) > _STEP_DIGITS:
        return None
    step = int(number[1]) * _MULTIPLES[number[2].lower()]
    return step if step < MOST_STEPS else None


def steps_in(names: Iterable[str], pattern: str | None = None) -> dict[str, int]:
    """Revision -> training step, of those names of one model that hold a step.

    Stages stand behind one another: where a stage counts from its own beginning
    (``stage2-ingredient1-step1000-tokens5B``), the last step before it is added. One that counts
    on is left as it is, and so are steps found by a ``pattern``.

    Raises:
        ConfigError: as :func:`step_of`.
    """
    found = {name: step_of(name, pattern) for name in names}
    steps = {name: step for name, step in found.items() if step is not None}
    if pattern is not None:
        return steps
    stages: dict[int, list[str]] = {}
    for name in steps:
        stages.setdefault(_stage_of(name), []).append(name)
    end = -1
    for _, members in sorted(stages.items()):
        begun_anew = min(steps[name] for name in members) <= end
        for name in members:
            steps[name] += end if begun_anew else 0
        end = max(steps[name] for name in members)
    return steps


def _stage_of(revision: str) -> int:
    match = _STAGE.search(revision)
    if match:
        return int(match[1])
    return _NAMED_STAGES.get(revision.rstrip("0123456789"), 1)


def _compiled(pattern: str) -> re.Pattern[str]:
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


def final_step(model: str, steps: Iterable[int]) -> int | None:
    """The training step of a model's last checkpoint, which ``main`` holds."""
    return PYTHIA_FINAL_STEP if is_pythia(model) else max(steps, default=None)
