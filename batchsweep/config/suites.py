"""Published suites by short names: ``pythia/14m`` is ``EleutherAI/pythia-14m``.

The facts are in ``suites.yaml``, each suite with its source; a file of the same form adds a user's
own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from batchsweep.config.yaml_text import yaml_mapping
from batchsweep.errors import ConfigError

#: ``seed{1-9}``: one model for each number, and how many these may be.
_RANGE = re.compile(r"\{(\d{1,9})-(\d{1,9})\}")
_MOST = 1000

Line = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\n\r\x00-\x1f]+$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Fault(_Frozen):
    """A known fault of what is published."""

    what: Line
    source: Line
    """The issue that reports it."""


class Suite(_Frozen):
    """A family of models with published training checkpoints."""

    title: Line
    source: Line
    """Where the facts are from: a paper, or the model card."""
    checked: Line
    """What of it has been seen on the Hub, and what has not."""
    revisions: Line
    """How its checkpoints are named."""
    models: Mapping[str, Line]
    """Short name -> Hub id (with ``{revision}`` where each checkpoint is a repo)."""
    tokens_per_step: int | None = Field(default=None, gt=0)
    """Tokens of one training step; None: not known, or not the same throughout."""
    step_pattern: str | None = None
    """Finds the step in a revision's name, where batchsweep doesn't by itself."""
    faults: tuple[Fault, ...] = ()

    @field_validator("models")
    @classmethod
    def _ranges(cls, models: Mapping[str, str]) -> Mapping[str, str]:
        for span in map(_RANGE.search, models):
            if span and not 0 <= int(span[2]) - int(span[1]) < _MOST:
                raise ValueError(f"{span[0]} should be from the smaller number, to {_MOST} models")
        return models

    def ids(self) -> dict[str, str]:
        """Short name -> Hub id, ranges (``seed{1-9}``) spelled out."""
        found: dict[str, str] = {}
        for short, model in self.models.items():
            span = _RANGE.search(short)
            if span is None:
                found[short] = model
                continue
            for number in range(int(span[1]), int(span[2]) + 1):
                found[_RANGE.sub(str(number), short)] = _RANGE.sub(str(number), model)
        return found


@cache
def published() -> Mapping[str, Suite]:
    """Name -> suite, of those that come with batchsweep."""
    text = (files(__package__) / "suites.yaml").read_text(encoding="utf-8")
    return _parse(text, "suites.yaml")


def read_suites(path: Path) -> dict[str, Suite]:
    """The suites that come with batchsweep and those of a file, which win.

    Raises:
        ConfigError: the file can't be read, or is no such file; says where.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"suites: {path}: is no regular file; name a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"suites: {path}: can't be read: {error}") from None
    return {**published(), **_parse(text, str(path))}


def _parse(text: str, source: str) -> dict[str, Suite]:
    _, values = yaml_mapping(text, source)
    found = {}
    for name, value in values.items():
        try:
            found[str(name)] = Suite.model_validate(value)
        except ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, (name, *fault["loc"])))
            raise ConfigError(f"{source}: {place}: {fault['msg']}") from None
    return found


def find(name: str, suites: Mapping[str, Suite]) -> tuple[str, Suite] | None:
    """The Hub id and the suite that ``suite/model`` means; None if it is no such name.

    Raises:
        ConfigError: the suite is known, and has no such model; names those that it has.
    """
    suite, _, model = name.partition("/")
    if suite not in suites or not model:
        return None
    ids = suites[suite].ids()
    if model not in ids:
        raise ConfigError(f"models: '{name}': suite '{suite}' has {', '.join(ids)}")
    return ids[model], suites[suite]


def expand(values: dict[str, Any]) -> dict[str, Any]:
    """A config's values with the short names in ``models`` as Hub ids.

    A directory of that name stands for itself. What the suite knows of its models (tokens of a
    step, how a step is found) is filled in where the config doesn't say it.

    Raises:
        ConfigError: as :func:`read_suites` and :func:`find`.
    """
    models, path = values.get("models"), values.get("suites")
    listed = models if isinstance(models, list) else [models]
    names = [m.get("name") if isinstance(m, dict) else m for m in listed]
    if path is None and not any(isinstance(n, str) and "/" in n for n in names):
        return values
    suites = published() if path is None else read_suites(Path(str(path)))
    expanded = []
    for model, name in zip(listed, names, strict=True):
        found = None
        # Path.exists raises where a name is too long for a file.
        if isinstance(name, str) and not os.path.exists(name):  # noqa: PTH110
            found = find(name, suites)
        if found is None:
            expanded.append(model)
            continue
        known = found[1].model_dump(include={"tokens_per_step", "step_pattern"}, exclude_none=True)
        own = model if isinstance(model, dict) else {}
        expanded.append({**known, **own, "name": found[0]})
    return {**values, "models": expanded}
