"""YAML text as plain values, in bounded time and memory, whoever wrote it."""

from __future__ import annotations

import datetime
import logging
import math
import re
from typing import Any, NoReturn

import yaml

from batchsweep.errors import ConfigError, shortened

logger = logging.getLogger(__name__)

MAX_DEPTH = 32
"""Levels of lists and mappings in each other; a config needs about six."""
MAX_NODES = 100_000
"""Values of a file with every alias written out."""

_UNUSABLE = re.compile("[\0\ud800-\udfff]")


def yaml_mapping(text: str, source: str) -> tuple[yaml.MappingNode, dict[str, Any]]:
    """The file's nodes (which know their lines) and its values.

    Raises:
        ConfigError: with ``source`` and the line, for everything that is not a mapping of finite
            numbers, texts, lists and mappings.
    """
    try:
        _check_depth(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{source}:1: a config is a mapping of keys, such as 'models: [...]'")
        _check_size(root)
        _check_repeats(root, source, top=True)
        values: dict[str, Any] = _Loader("").construct_document(root)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{source}:{line}: not valid YAML: the character #x{error.character:04x}"
        ) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{source}:{line}: not valid YAML: {error.problem}") from None
    return root, values


def _refuse(problem: str, mark: Any) -> NoReturn:
    raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _check_depth(text: str) -> None:
    """Before nodes are composed, which takes a level of Python's stack for each level."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                _refuse(f"more than {MAX_DEPTH} levels in each other", event.start_mark)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_size(root: yaml.Node) -> None:
    """Aliases can make a short file endless, or as good as endless."""
    seen = 0

    def walk(node: yaml.Node, above: tuple[yaml.Node, ...]) -> None:
        nonlocal seen
        seen += 1
        if seen > MAX_NODES:
            _refuse(f"more than {MAX_NODES} values, aliases written out", node.start_mark)
        if any(node is outer for outer in above):
            _refuse("an alias of what it is a part of", node.start_mark)
        if len(above) > MAX_DEPTH:
            _refuse(f"more than {MAX_DEPTH} levels in each other", node.start_mark)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                walk(key, (*above, node))
                walk(value, (*above, node))
        elif isinstance(node, yaml.SequenceNode):
            for item in node.value:
                walk(item, (*above, node))

    walk(root, ())


class _Loader(yaml.SafeLoader):
    """Scalars that Python can't take, or that no setting can mean, are errors with a line."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep=deep)
        kind = str(node.tag).rpartition(":")[2]
        try:
            value = super().construct_object(node, deep=deep)
        except (ValueError, KeyError, AttributeError, OverflowError):
            # What PyYAML's own constructors raise for "!!int foo", "!!bool foo", "!!timestamp foo".
            _refuse(f"no {kind} is written {shortened(node.value)!r}", node.start_mark)
        if isinstance(value, float) and math.isinf(value):
            _refuse("a number should be finite", node.start_mark)
        if isinstance(value, int) and value.bit_length() > 63:
            _refuse("a whole number should fit 64 bits", node.start_mark)
        if isinstance(value, datetime.date | bytes):
            _refuse(f"no setting is a {kind}; quote it if it is a name", node.start_mark)
        if isinstance(value, str) and _UNUSABLE.search(value):
            _refuse("a text with NUL or half a surrogate pair", node.start_mark)
        return value


def _check_repeats(node: yaml.Node, source: str, *, top: bool = False) -> None:
    """Repeated keys are errors; a repeated top-level ``revisions`` takes the last one.

    Users append generated lists (``batchsweep checkpoints ... >> config.yaml``), so that one
    repetition is meant.
    """
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_repeats(item, source)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            line, first = key.start_mark.line + 1, seen[name].start_mark.line + 1
            if not (top and name == "revisions"):
                raise ConfigError(
                    f"{source}:{line}: key {name!r} is there twice (first on line {first}); "
                    "keep one of them"
                )
            logger.warning(
                "%s:%d: 'revisions' is there more than once (first on line %d); "
                "the last one is used",
                source,
                line,
                first,
            )
        seen.setdefault(name, key)
        _check_repeats(value, source)
