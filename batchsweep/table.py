"""The one way in which tables are printed: plain text, and nothing in a cell is obeyed.

A model's or a file's name may be anything. Brackets are no markup here, and what would move the
cursor, change a colour or end the line is shown as its escape (``\\x1b``, ``\\n``).
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

#: Characters of a line: at least, where nobody says, and at most.
_WIDTHS = (80, 100, 120)


@dataclass(frozen=True)
class Column:
    """One column; numbers stand at its right."""

    title: str
    right: bool = False
    prose: bool = False
    """Its cells are sentences, which may go on in the next line at any space."""


def visible(text: str) -> str:
    """The text with everything that isn't printed (controls, escapes, line ends) as its escape.

    Example:
        >>> visible("a\\x1b[31mb")
        'a\\\\x1b[31mb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def line_width() -> int:
    """How many characters of a line people are to read: the terminal's, within bounds."""
    least, usual, most = _WIDTHS
    return max(least, min(shutil.get_terminal_size((usual, 24)).columns, most))


def table_text(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    header: bool = True,
    width: int | None = None,
) -> str:
    """A table as lines, each with its line end.

    Args:
        columns: from left to right.
        rows: the cells, as many in each row as there are columns.
        header: whether the columns' titles are shown.
        width: of a line, in characters. None: the terminal's, and without one (a pipe, a file) as
            wide as it takes, since nobody greps for half a name. What doesn't fit goes on in the
            cell's next line, a name after its last ``/``: nothing is left out.
    """
    from rich.console import Console

    if width is None and sys.stdout is not None and sys.stdout.isatty():
        width = line_width()
    out = io.StringIO()
    console = Console(file=out, width=width or 10**6, color_system=None)
    table = _table(columns, rows, header=header)
    if _least_width(columns, rows) > console.width:
        table = _table(columns, rows, header=header, broken=True)
    console.print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([visible(title), *lines] if title else lines) + "\n"


def _least_width(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> int:
    """Characters of a line in which every name and number has one line."""
    from rich.cells import cell_len

    widths = []
    for column, *cells in zip(columns, *rows, strict=True):
        texts = [column.title, *map(visible, cells)]
        pieces = [word for text in texts for word in text.split()] if column.prose else texts
        widths.append(max(map(cell_len, pieces), default=0))
    return sum(widths) + 2 * (len(columns) - 1)


def _table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    *,
    header: bool,
    broken: bool = False,
) -> Table:
    """The table for rich; ``broken``: names go on in the next line after their last slash."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=header)
    for column in columns:
        table.add_column(
            Text(column.title),
            justify="right" if column.right else "left",
            no_wrap=not column.prose and not broken,
            overflow="fold",
        )
    for row in rows:
        cells = [visible(cell) for cell in row]
        if broken:
            cells = [
                cell if column.prose else "/\n".join(cell.rsplit("/", 1))
                for column, cell in zip(columns, cells, strict=True)
            ]
        table.add_row(*map(Text, cells))
    return table
