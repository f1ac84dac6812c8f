"""The report's pictures as inline SVG: heat maps of the time-layer plane, and the search.

Drawn by hand rather than by matplotlib: the same data give the same bytes, cells carry tooltips,
and text and lines take their colours from the page, so that they read on dark and on light.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: Anchors of viridis (van der Walt and Smith, 2015), even steps from low to high: it rises evenly
#: in lightness, so that it also reads in grey and with any colour vision.
_VIRIDIS = ((68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
            (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37))  # fmt: skip

#: Planes with more columns or rows than this have no room for numbers in their cells.
_ROOM = (16, 26)
_LEFT, _TOP, _BOTTOM = 34, 4, 54

#: What the pictures of a page share: put once into its body.
DEFINITIONS = (
    '<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs>'
    '<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect class="hatch-line" width="1.6" height="5"/></pattern>'
    "</defs></svg>"
)


@dataclass(frozen=True)
class Limits:
    """The values that the two ends of the colour scale stand for."""

    low: float
    high: float

    @classmethod
    def of(cls, *values: Floats) -> Limits:
        """The range of the finite values; 0 to 1 if there are none."""
        flat = np.concatenate([np.ravel(v) for v in values]) if values else np.empty(0)
        flat = flat[np.isfinite(flat)]
        return cls(float(flat.min()), float(flat.max())) if len(flat) else cls(0.0, 1.0)

    def colour(self, value: float) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255."""
        width = self.high - self.low
        place = (value - self.low) / width if width > 0 else 0.5
        place = min(max(place, 0.0), 1.0) * (len(_VIRIDIS) - 1)
        i = min(int(place), len(_VIRIDIS) - 2)
        low, high = _VIRIDIS[i], _VIRIDIS[i + 1]
        red, green, blue = (
            round(x + (y - x) * (place - i)) for x, y in zip(low, high, strict=True)
        )
        return red, green, blue


def heat_map(
    values_LC: Floats,
    *,
    layers: Sequence[int],
    columns: Sequence[str],
    limits: Limits,
    label: str,
    predicted_LC: Bools | None = None,
    best: tuple[int, int] | None = None,
    decimals: int = 2,
    numbers: bool = True,
) -> str:
    """One plane: a column for each checkpoint, a row for each layer, the lowest at the bottom.

    Args:
        values_LC: [layer, checkpoint]; a cell that is NaN stays empty.
        layers, columns: what the axes say.
        limits: of the colours; share them to make planes comparable.
        label: what a screen reader says of the picture.
        predicted_LC: [layer, checkpoint]; such a cell is hatched, and its tooltip says so.
        best: (layer, checkpoint) positions of a cell to outline.
        decimals: of the numbers in the cells.
        numbers: whether cells have numbers, if there is room.
    """
    rows, cols = values_LC.shape
    roomy = cols <= _ROOM[0] and rows <= _ROOM[1]
    numbers = numbers and roomy
    w, h = (40, 26) if numbers else (max(5, min(24, 600 // cols)), max(7, min(18, 420 // rows)))
    out = [_open(_LEFT + cols * w + 22, _TOP + rows * h + _BOTTOM, label)]
    for i, j in np.ndindex(rows, cols):
        x, y = _LEFT + j * w, _TOP + (rows - 1 - i) * h
        out.append(
            _cell(
                float(values_LC[i, j]),
                box=(x, y, w, h),
                where=f"{columns[j]}, layer {layers[i]}",
                limits=limits,
                predicted=predicted_LC is not None and bool(predicted_LC[i, j]),
                decimals=decimals,
                number=numbers,
            )
        )
    if best is not None:
        x, y = _LEFT + best[1] * w, _TOP + (rows - 1 - best[0]) * h
        out.append(f'<rect class="best" x="{x}" y="{y}" width="{w}" height="{h}" rx="2"/>')
    out += _axes(layers, columns, w, h)
    return "".join([*out, "</svg>"])


def _cell(
    value: float,
    *,
    box: tuple[int, int, int, int],
    where: str,
    limits: Limits,
    predicted: bool,
    decimals: int,
    number: bool,
) -> str:
    x, y, w, h = box
    gap = 1 if w >= 12 else 0
    place = f'x="{x}" y="{y}" width="{w - gap}" height="{h - gap}"'
    if not math.isfinite(value):
        return f'<rect class="unknown" {place}><title>{escape(where)}: not known</title></rect>'
    said = f"{where}: {value:.4f}{' (predicted)' if predicted else ''}"
    red, green, blue = limits.colour(value)
    parts = [f"<g><title>{escape(said)}</title>"]
    parts.append(f'<rect {place} fill="#{red:02x}{green:02x}{blue:02x}"/>')
    light = 0.299 * red + 0.587 * green + 0.114 * blue > 120
    if predicted:
        parts.append(f'<rect {place} fill="url(#hatch)"/>')
    if number:
        style = ("dark" if light else "light") + (" predicted" if predicted else "")
        parts.append(
            f'<text class="{style}" x="{x + (w - gap) / 2:g}" y="{y + h / 2 + 3.5:g}" '
            f'text-anchor="middle">{value:.{decimals}f}</text>'
        )
    return "".join([*parts, "</g>"])


def _axes(layers: Sequence[int], columns: Sequence[str], w: int, h: int) -> list[str]:
    """Layer numbers on the left, checkpoints below, thinned to what can be read."""
    out = []
    rows, every = len(layers), max(1, math.ceil(13 / h))
    for i, layer in enumerate(layers):
        if i % every == 0 or i == rows - 1:
            y = _TOP + (rows - 1 - i) * h + h / 2 + 3.5
            out.append(f'<text x="{_LEFT - 5}" y="{y:g}" text-anchor="end">{layer}</text>')
    middle = _TOP + rows * h / 2
    out.append(
        f'<text class="axis" x="10" y="{middle:g}" text-anchor="middle" '
        f'transform="rotate(-90 10 {middle:g})">layer</text>'
    )
    base = _TOP + rows * h
    every = max(1, math.ceil(17 / w))
    for j, column in enumerate(columns):
        # The last checkpoint is always named; the one before it only if there is room for both.
        if j == len(columns) - 1 or (j % every == 0 and len(columns) - 1 - j >= every):
            x, y = _LEFT + j * w + w / 2 + 3, base + 13
            out.append(
                f'<text x="{x:g}" y="{y}" text-anchor="end" transform="rotate(-35 {x:g} {y})">'
                f"{escape(column)}</text>"
            )
    out.append(
        f'<text class="axis" x="{_LEFT + len(columns) * w / 2:g}" y="{base + _BOTTOM - 3}" '
        'text-anchor="middle">checkpoint (training step)</text>'
    )
    return out


def colour_scale(limits: Limits, *, label: str, decimals: int = 2) -> str:
    """The legend of a heat map: a bar with its two ends named."""
    out = [_open(260, 34, f"Colour scale of {label}")]
    n = 64
    for i in range(n):
        red, green, blue = limits.colour(limits.low + (limits.high - limits.low) * i / (n - 1))
        out.append(
            f'<rect x="{i * 260 / n:g}" y="0" width="{260 / n + 0.5:g}" height="12" '
            f'fill="#{red:02x}{green:02x}{blue:02x}"/>'
        )
    out.append(f'<text x="0" y="27">{limits.low:.{decimals}f}</text>')
    out.append(f'<text x="130" y="27" text-anchor="middle">{escape(label)}</text>')
    out.append(f'<text x="260" y="27" text-anchor="end">{limits.high:.{decimals}f}</text></svg>')
    return "".join(out)


@dataclass(frozen=True)
class Dot:
    """One pull of the search."""

    value: float
    kind: str
    """``reference``, ``search`` or ``check``: the dot's class."""
    said: str
    """Its tooltip."""


def trajectory(
    dots: Sequence[Dot], best: Sequence[float], *, total: int, label: str, value_name: str
) -> str:
    """The search: every pull as a dot in its order, and a line of the best so far.

    Args:
        dots: the pulls.
        best: [pull] the best so far after each pull; NaN where there is none yet.
        total: pulls of an exhaustive search; named on the horizontal axis.
        label: what a screen reader says of the picture.
        value_name: what the vertical axis says.
    """
    width, height, left, top, bottom = 640, 270, 44, 10, 40
    values = np.array([d.value for d in dots] + [b for b in best if math.isfinite(b)])
    limits = Limits.of(values)
    margin = 0.06 * ((limits.high - limits.low) or 1.0)
    low, high = limits.low - margin, limits.high + margin
    inner_w, inner_h = width - left - 10, height - top - bottom
    n = max(len(dots), 1)

    def x_of(pull: float) -> float:
        return left + pull / n * inner_w

    def y_of(value: float) -> float:
        return top + (high - value) / (high - low) * inner_h

    out = [_open(width, height, label)]
    for tick in _ticks(low, high):
        y = y_of(tick)
        out.append(f'<line class="grid" x1="{left}" x2="{width - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(0, n):
        x = x_of(tick)
        out.append(f'<text x="{x:.1f}" y="{height - 24}" text-anchor="middle">{tick:g}</text>')
    for number, dot in enumerate(dots, start=1):
        out.append(
            f'<circle class="{dot.kind}" cx="{x_of(number):.1f}" cy="{y_of(dot.value):.1f}" '
            f'r="3"><title>pull {number}: {escape(dot.said)}</title></circle>'
        )
    path = ""
    for number, value in enumerate(best, start=1):
        if math.isfinite(value):
            level = f"{y_of(value):.1f}"
            at = f"{x_of(number):.1f}"
            path += f"H{at}V{level}" if path else f"M{at},{level}"
    if path:
        out.append(f'<path class="best-line" d="{path}"/>')
    out.append(
        f'<text class="axis" x="{left + inner_w / 2:g}" y="{height - 6}" text-anchor="middle">'
        f"pull (an exhaustive search takes {total})</text>"
        f'<text class="axis" x="11" y="{top + inner_h / 2:g}" text-anchor="middle" '
        f'transform="rotate(-90 11 {top + inner_h / 2:g})">{escape(value_name)}</text></svg>'
    )
    return "".join(out)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two values."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step = next((step * m for m in (1, 2, 5) if (high - low) / (step * m) <= 6), step * 10)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def _open(width: float, height: float, label: str) -> str:
    # A width in the style, not only a viewBox: small planes must not be blown up to the page.
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" style="width:{width:g}px" role="img" '
        f'aria-label="{escape(label)}">'
    )
