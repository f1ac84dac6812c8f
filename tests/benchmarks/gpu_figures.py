"""What the benchmark on a GPU measures: lines, what belongs to all of them, and how it is shown."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

#: Blocks, hidden size, attention heads.
SHAPES = {"14m": (6, 128, 4), "70m": (6, 512, 8), "410m": (24, 1024, 16), "1b": (16, 2048, 8)}

Texts = list[npt.NDArray[Any]]


@dataclass
class Row:
    """One line of the table."""

    shape: str
    dtype: str
    what: str
    batch: int
    """Tokens of ours, texts of the others."""
    tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    peak_mib: int | None = None
    """Of the card; of the process on a CPU, where it only ever grows."""
    note: str = ""

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass
class Cell:
    """What is measured once for a shape in a dtype."""

    shape: str
    dtype: str
    texts: int
    tokens: int
    peak: float | None
    """FLOP/s by the data sheet."""
    product: float
    """FLOP/s of a large product here."""
    repeats: bool
    """Whether two passes gave the same bytes."""
    extract_seconds: float
    states_seconds: float
    """Without the store, same batches: the difference is what writing held up."""
    copies_seconds: float | None
    """The states' way home if nothing ran beside it."""
    writes_seconds: float
    """The blocks' way into the store if nothing ran beside it."""
    rows: list[Row] = field(default_factory=list)


class Clock:
    """The time that is left, in all and for one run."""

    def __init__(self, limit: float, seconds: float) -> None:
        self._end = time.monotonic() + limit
        self.seconds = seconds
        self.left_out: list[str] = []

    def has(self, seconds: float, what: str) -> bool:
        """Whether so many seconds are left; if not, ``what`` is noted."""
        if self._end - time.monotonic() >= seconds:
            return True
        self.left_out.append(what)
        return False


def flops(shape: str, texts: Sequence[npt.NDArray[Any]]) -> float:
    """What must be computed: a multiply-add is two; embeddings are looked up, norms are free."""
    blocks, hidden, _ = SHAPES[shape]
    lengths = np.array([len(text) for text in texts], dtype=np.float64)
    products = 24.0 * hidden**2 * lengths
    attention = 2.0 * hidden * lengths * (lengths + 1)
    return float(blocks * (products + attention).sum())


def show(cell: Cell) -> None:
    """The cell's lines; of sizes, the best one."""
    copies = "none" if cell.copies_seconds is None else f"{cell.copies_seconds:.2f} s"
    print(
        f"\n{cell.shape} {cell.dtype}: {cell.texts} texts, {cell.tokens} tokens; product "
        f"{cell.product / 1e12:.2f} TFLOP/s; two passes {'the same' if cell.repeats else 'OTHER'} "
        f"bytes\n  extract {cell.extract_seconds:.2f} s = states {cell.states_seconds:.2f} s + "
        f"held up {max(cell.extract_seconds - cell.states_seconds, 0):.2f} s; alone, copies take "
        f"{copies}, writes {cell.writes_seconds:.2f} s"
    )
    base = max((r.rate for r in cell.rows if r.what == "loop, eager"), default=0.0)
    print(f"  {'':24}{'batch':>8}{'tokens/s':>12}{'x eager':>9}{'MFU':>8}{'of prod.':>9}{'MiB':>8}")
    for what in dict.fromkeys(row.what for row in cell.rows):
        row = max((r for r in cell.rows if r.what == what), key=lambda r: r.rate)
        speed = row.flops / row.seconds if row.seconds else 0.0
        print(
            f"  {row.what:24}{row.batch:8}{row.rate:12,.0f}"
            f"{f'{row.rate / base:.2f}' if base else '-':>9}"
            f"{f'{speed / cell.peak:.1%}' if cell.peak else '-':>8}"
            f"{speed / cell.product:>9.1%}{row.peak_mib or 0:>8}  {row.note}",
            flush=True,
        )


def as_json(cell: Cell) -> dict[str, Any]:
    value = asdict(cell)
    for row, line in zip(cell.rows, value["rows"], strict=True):
        speed = row.flops / row.seconds if row.seconds else 0.0
        line["tokens_per_second"] = row.rate
        line["mfu"] = speed / cell.peak if cell.peak else None
        line["of_product"] = speed / cell.product
    return value
