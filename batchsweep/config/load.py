"""A config file read and validated, and one line for what is wrong in it: file, line and key."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from batchsweep.config.models import Config, Section
from batchsweep.config.suites import expand
from batchsweep.config.yaml_text import yaml_mapping
from batchsweep.errors import ConfigError, shortened


def load(path: str | Path) -> Config:
    """Read and validate a config file.

    Relative paths of local models and tasks are relative to the working directory, as in the
    commands that users type, not to the file.

    Raises:
        ConfigError: with file, line, key and the valid choices.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_nearby(path)}") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8: {error.reason}") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read as a config file: {error}") from None
    return parse(text, source=str(path), default_name=path.stem)


def parse(text: str, *, source: str, default_name: str = "sweep") -> Config:
    """Validate the text of a config; ``source`` is what errors call the file."""
    root, values = yaml_mapping(text, source)
    try:
        return Config.model_validate({"name": default_name, **expand(values)})
    except ValidationError as error:
        # One line: the first fault that is not an alternative of a union the user did not mean.
        raise ConfigError(_explain(error, root, source)) from None


def _nearby(path: Path) -> str:
    """The remedy for a file that is not there: what is there with a similar name."""
    folder = path.parent
    if not folder.is_dir():
        return f" (and no folder {folder})"
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
    if not names:
        return f"; {folder} holds no YAML file"
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {folder / close[0]}?" if close else f"; {folder} has {', '.join(names)}"


def _explain(error: ValidationError, root: yaml.MappingNode, source: str) -> str:
    """One line for the fault that is deepest in the file: that is what the user meant to write."""
    faults = error.errors(include_url=False)
    # Of a union's alternatives, pydantic reports all; the one that got furthest is the intended.
    fault = max(faults, key=lambda f: (len(_yaml_path(root, f["loc"])[0]), f["type"] != "missing"))
    keys, line = _yaml_path(root, fault["loc"])
    key = ".".join(str(k) for k in keys) or "(top level)"
    where = f"{source}:{line}: {key}"
    if fault["type"] == "extra_forbidden":
        wrong = str(fault["loc"][-1])
        choices = _choices_at(fault["loc"][:-1])
        close = difflib.get_close_matches(wrong, choices, n=1)
        hint = f"did you mean '{close[0]}'? " if close else ""
        return f"{where}: unknown key; {hint}Valid keys: {', '.join(choices)}"
    if fault["type"] == "missing":
        return f"{where}: missing key '{fault['loc'][-1]}'"
    alternatives = [f for f in faults if _yaml_path(root, f["loc"])[0] == keys]
    reasons = list(dict.fromkeys(_reason(f) for f in alternatives))
    return f"{where}: {' or '.join(reasons)}; got {shortened(repr(fault['input']), 60)}"


def _reason(fault: ErrorDetails) -> str:
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if fault["type"] == "too_short":
        message = "should not be empty"
    return re.sub(r"valid dictionary or instance of \w+|valid tuple", _yaml_word, message)


def _yaml_word(match: re.Match[str]) -> str:
    return "list" if match[0] == "valid tuple" else "mapping"


def _yaml_path(
    root: yaml.MappingNode, loc: tuple[int | str, ...]
) -> tuple[tuple[int | str, ...], int]:
    """The part of a pydantic location that is really in the file, and its line."""
    node: yaml.Node = root
    line = root.start_mark.line + 1
    keys: list[int | str] = []
    for step in loc:
        if isinstance(node, yaml.MappingNode):
            # The last of repeated keys is the one that counts.
            found = [(k, v) for k, v in node.value if str(k.value) == str(step)]
            if found:
                key, node = found[-1]
                line = key.start_mark.line + 1
                keys.append(step)
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line + 1
            keys.append(step)
        # Other steps name the alternative of a union ("Schedule"), not a place in the file.
    return tuple(keys), line


def _choices_at(loc: tuple[int | str, ...]) -> list[str]:
    """The valid keys of the section at a pydantic location."""
    section: Any = Config
    for step in loc:
        nested = (
            _sections_in(section.model_fields[step].annotation)
            if (isinstance(step, str) and step in section.model_fields)
            else [c for c in Section.__subclasses__() if c.__name__ == step]
        )
        if nested:
            section = nested[0]
    return list(section.model_fields)


def _sections_in(annotation: Any) -> list[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [s for argument in get_args(annotation) for s in _sections_in(argument)]
