"""What a sweep takes exhaustively, and what a search is expected to need, side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from batchsweep.bandit.expected import Expected
from batchsweep.plan.estimate import Estimate, gib
from batchsweep.plan.space import Space
from batchsweep.progress import duration
from batchsweep.table import Column, line_width, table_text


def expected_table(
    costs: Estimate, needs: Expected | None, space: Space | None, *, gpu_price: float | None = None
) -> str:
    """As text for a terminal.

    Args:
        needs: what simulated searches had extracted; None: a search extracts everything.
        gpu_price: of a GPU hour, in whatever currency.
    """
    if needs is None:
        if costs.size.unknown:
            unknown = ", ".join(costs.size.unknown)
            return f"No search was simulated: the size of {unknown} isn't known.\n"
        return "A search extracts everything: bandit.policy can't say what should be extracted.\n"
    rows: list[tuple[str, str, str, str]] = []

    def row(title: str, what: str, whole: float | None, text: Callable[[float], str]) -> None:
        least, middle, most = needs.span(what)
        span = text(least) if text(least) == text(most) else f"{text(least)} to {text(most)}"
        rows.append((title, "-" if whole is None else text(whole), text(middle), span))

    checkpoints = len(costs.entries)
    row("(checkpoint, task) pairs", "pairs", checkpoints * len(costs.size.tasks), _whole)
    row("checkpoints", "checkpoints", checkpoints, _whole)
    row("store", "store_bytes", costs.store_bytes, gib)
    if costs.download_bytes:
        row("downloads", "download_bytes", costs.download_bytes, gib)
    row(f"time on {costs.speed.place}", "gpu_seconds", costs.gpu_seconds, duration)
    if gpu_price is not None:
        price = gpu_price / 3600
        row("cost", "gpu_seconds", costs.gpu_seconds, lambda seconds: f"{seconds * price:.2f}")
    row("short of the best arm, in points", "regret", None, lambda r: f"{100 * r:.2f}")
    count = len(needs.searches)
    columns = [Column(""), *(Column(t, right=True) for t in ("exhaustive", "search", "range"))]
    notes = (
        f"Of {count} searches on simulated scores of this size: the median, the least and the most."
        " Other scores need other pairs; bandit.budget says what a search may take at most."
    )
    parts = [table_text(columns, rows), *_lines(notes)]
    most = needs.span("store_bytes")[2]
    if space is not None and most > space.free:
        parts += _lines(
            f"warning: {gib(space.free)} are free on {space.folder}: the search may have to end "
            "with less than it asks for; corpus.max_texts_per_task makes pairs smaller"
        )
    return "".join(parts)


def _lines(text: str) -> list[str]:
    return [f"{line}\n" for line in textwrap.wrap(text, line_width())]


def _whole(number: float) -> str:
    return f"{number:,.0f}"
