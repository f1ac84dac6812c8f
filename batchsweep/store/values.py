"""Float32 vectors to what is stored, and back; refusing what the stored type can't hold."""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

from batchsweep.errors import StoreError

Array = npt.NDArray[np.generic]
Float32 = npt.NDArray[np.float32]

#: The largest error of one int8 vector: root mean square of x - stored(x), as a part of the
#: vector's typical value (1.4826 median |x|: the standard deviation, if x is normal). Not of its
#: norm: one huge value makes up the norm, and all others vanish. FORMAT.md has what it does to
#: scores.
INT8_MAX_ERROR = 0.05

# From here on, rounding to nearest gives inf (65504 is the largest finite float16, steps of 32).
_FLOAT16_OVERFLOW = 65520.0

#: Of more values at once, torch would start threads; readers and writers have theirs.
_TORCH_GRAIN = 32768

_STORED: dict[str, np.dtype[np.generic]] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "int8": np.dtype("|i1"),
}


def stored_dtype(dtype: str, array: str) -> np.dtype[np.generic]:
    """The numpy type of a stored array; the scales of int8 are float32."""
    return np.dtype("<f4") if dtype == "int8" and array.endswith("_scale") else _STORED[dtype]


def encode(
    vectors: npt.NDArray[np.floating], dtype: str, *, where: str, first_row: int
) -> tuple[Array, Float32 | None]:
    """The stored form of one layer of a block.

    Args:
        vectors: [text, hidden], finite.
        dtype: ``float16``, ``float32`` or ``int8``.
        where: names checkpoint, pooling and layer in errors.
        first_row: corpus row of ``vectors[0]``, for errors.

    Returns:
        The stored array [text, hidden], and for int8 the scales [text] (else None): a vector is
        ``stored * scale``.

    Raises:
        StoreError: a value is NaN or infinite, too large for float16, or an int8 vector would be
            off by more than ``INT8_MAX_ERROR``. Names the row.
    """
    low, high = vectors.min(), vectors.max()  # NaN if any value is.
    limit = _FLOAT16_OVERFLOW if dtype == "float16" else float(np.finfo(np.float32).max)
    if not (low > -limit and high < limit):
        _refuse(vectors, limit, dtype, where, first_row)
    if dtype == "int8":
        return _quantise(np.asarray(vectors, np.float32), where, first_row)
    if dtype == "float16" and vectors.dtype == np.float32:
        source = np.require(vectors, requirements=["C", "W"])
        half = np.empty(vectors.shape, _STORED["float16"])
        if not _torch_cast(source, half):
            np.copyto(half, source, casting="same_kind")
        return half, None
    return np.ascontiguousarray(vectors, dtype=_STORED[dtype]), None


def decode(stored: Array, scale: Float32 | None, out: npt.NDArray[np.floating]) -> None:
    """Fill ``out`` [text, hidden] from the stored array (and the scales [text] of int8)."""
    widens = stored.dtype == np.float16 and out.dtype == np.float32
    plain = stored.flags.writeable and stored.flags.c_contiguous and out.flags.c_contiguous
    if not (widens and plain and _torch_cast(stored, out)):
        np.copyto(out, stored, casting="same_kind")
    if scale is not None:
        out *= scale[:, None]


def as_bytes(values: Array) -> memoryview[int]:
    """The values' bytes in C order, without a copy where they lie so already."""
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _torch_cast(source: Array, target: Array) -> bool:
    """Fill ``target`` with ``source`` by torch, both contiguous; False where it was never imported.

    numpy casts float16 value by value. torch rounds the same and is eight times as fast, but takes
    seconds to import: it is used where it is there already, as in an extraction and the bandit.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    flat = (torch.from_numpy(a.reshape(-1)) for a in (source, target))
    for of, into in zip(*(t.split(_TORCH_GRAIN) for t in flat), strict=True):
        into.copy_(of)
    return True


def _quantise(vectors: Float32, where: str, first_row: int) -> tuple[Array, Float32]:
    # Symmetric, one scale a vector: x = q * max|x| / 127, so |error| <= max|x| / 254 an element.
    peak = np.abs(vectors).max(axis=1)
    scale = (peak / 127).astype(np.float32)
    stored = np.rint(vectors / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8)
    loss = np.sqrt(np.square(stored * scale[:, None] - vectors).mean(axis=1))
    typical = 1.4826 * np.median(np.abs(vectors), axis=1)
    bad = np.flatnonzero(loss > INT8_MAX_ERROR * typical)
    if bad.size:
        row = bad[0]
        raise StoreError(
            f"{where}, row {first_row + row}: int8 would change the vector's typical value by "
            f"{loss[row] / max(typical[row], 1e-30):.0%} (at most {INT8_MAX_ERROR:.0%} is allowed; "
            "some values are far above the rest); set store.dtype to float16 or float32"
        )
    return stored, scale


def _refuse(
    vectors: npt.NDArray[np.floating], limit: float, dtype: str, where: str, first_row: int
) -> None:
    bad = np.argwhere(~(np.abs(vectors) < limit))
    row, value = bad[0][0], vectors[tuple(bad[0])]
    if not np.isfinite(value):
        raise StoreError(
            f"{where}, row {first_row + row}: the model gave {value}; "
            "try embedding.dtype: float32, or leave this checkpoint out"
        )
    raise StoreError(
        f"{where}, row {first_row + row}: {value:g} doesn't fit {dtype} (largest 65504); "
        "set store.dtype: float32, which also holds every bfloat16 value exactly"
    )
