"""What mkdocs shows that Markdown alone doesn't: tables of figures, and the docstrings' roles.

A paragraph that is a link named "Figures" to a JSON file of a benchmark stands for that file's
table (tests/benchmarks/measured.py says what is in it), so that no figure is typed by hand.
"""

from __future__ import annotations

import json
import re
import string
from pathlib import Path
from typing import Any

from batchsweep.progress import duration

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):<code>~?([^<]*)</code>")
_FIGURES = re.compile(r"^\[Figures: [^\]]*\]\(([^)]+\.json)\)$", re.MULTILINE)


class _Cells(string.Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return (
            duration(value)
            if format_spec == "duration"
            else super().format_field(value, format_spec)
        )


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by mkdocs with each page's Markdown."""
    folder = Path(page.file.abs_src_path).parent
    return _FIGURES.sub(lambda link: table(folder / link[1]), markdown)


def table(file: Path) -> str:
    """A file of figures as a table of Markdown, and below it where they are from."""
    figures = json.loads(file.read_text(encoding="utf-8"))
    columns = figures["columns"]
    lines = [[column["title"] for column in columns], ["---"] * len(columns)]
    lines += [[_cell(column, row) for column in columns] for row in figures["rows"]]
    source = (
        f"{figures['date'][:10]}, commit {figures['commit']}, {figures['machine']}: "
        f"`{figures['command']}`"
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n*{source}*"


def _cell(column: dict[str, str], row: dict[str, Any]) -> str:
    text = _Cells().vformat(column["show"], (), row)
    return f"**{text}**" if row.get(column.get("bold", "")) else text


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs with each page's HTML."""
    return _ROLE.sub(r"<code>\1</code>", html)
