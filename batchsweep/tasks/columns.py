"""Whether the columns of a task of one's own hold what its type needs, row by row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from batchsweep.errors import ConfigError, shortened

Columns = Mapping[str, Sequence[Any]]

#: Column -> what its values must be. Other columns (ids, labels) may be strings or numbers.
_TEXT = ("sentence1", "sentence2", "text", "query", "title")
_TEXTS = ("positive", "negative", "human_summaries", "machine_summaries")
_NUMBERS = ("score",)


def check_columns(
    columns: Columns,
    needed: tuple[str, ...],
    where: str,
    name: str,
    rows: Sequence[str],
    *,
    lists: bool,
) -> None:
    """Refuse columns that no task of the type can be made of.

    Args:
        columns: name -> values, of one part.
        needed: those that it must have.
        where: the part, for messages; ``name``: the task's; ``rows``: each row's.
        lists: labels are lists of labels.

    Raises:
        ConfigError: a column is missing or empty, lengths differ, or a value has the wrong type.
    """
    for column in needed:
        if column not in columns:
            raise ConfigError(
                f"{where}: task '{name}' needs a column '{column}'; there is "
                f"{', '.join(columns) or 'none'}"
            )
    lengths = {column: len(columns[column]) for column in needed}
    if len(set(lengths.values())) > 1:
        raise ConfigError(f"{where}: task '{name}': columns of unequal length: {lengths}")
    if not lengths[needed[0]]:
        raise ConfigError(f"{where}: task '{name}' has no rows")
    for column in [*needed, *(c for c in ("score", "title") if c in columns)]:
        for row, value in enumerate(columns[column]):
            wanted = _misfit(column, value, lists)
            if wanted:
                raise ConfigError(
                    f"{rows[row]}: task '{name}', column '{column}': "
                    f"must be {wanted}, not {shortened(repr(value))}"
                )


def _misfit(column: str, value: Any, lists: bool) -> str | None:
    """What the value should have been, or None if it is that."""
    if column in _TEXT:
        return None if _is_text(value) else "a text"
    if column in _TEXTS:
        listed = isinstance(value, list | tuple) and all(_is_text(x) for x in value)
        return None if listed else "a list of texts"
    if column == "relevance":
        listed = isinstance(value, list | tuple) and all(map(_is_number, value))
        return None if listed else "a list of finite numbers"
    if column in _NUMBERS:
        return None if _is_number(value) else "a finite number"
    if column == "label" and lists:
        return None if _is_list(value, str | int | np.integer) else "a list of labels"
    return None if isinstance(value, str | int | np.integer) else "a name or a whole number"


def _is_text(value: Any) -> bool:
    """Half of a surrogate pair, which JSON lets pass, is no text that can be stored; nor is NUL."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_list(value: Any, of: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(x, of) for x in value)
