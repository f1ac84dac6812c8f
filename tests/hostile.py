"""What a stranger might write: values, JSON and bytes for the fuzz tests."""

from __future__ import annotations

import contextlib
import copy
import resource
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from hypothesis import strategies as st

from batchsweep.errors import BatchsweepError

#: Exit codes that bad input may end in: usage, this index, the store, try again.
EXPECTED = {2, 3, 4, 75}
#: What no single example may take: seconds, and KiB that stay.
SECONDS, MEMORY = 20.0, 1 << 20

_SCALARS = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, 1e308, float("nan"), float("inf")),
    *("", ".", "..", "../../x", "/etc/passwd", "a\nb", "\x1b[31m", "\x00", "\ud800", "x" * 300),
    *("<script>", "0", "true", "float64", "zstd", "int8", "c" * 5000),
]

values = st.one_of(
    st.sampled_from(_SCALARS),
    st.integers(),
    st.text(max_size=20),
    st.recursive(
        st.sampled_from(_SCALARS),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=8,
    ),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _places(inner, (*path, key))


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """The value with one or two members replaced, removed, or given twice."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(list(_places(value))))
        new = draw(values)
        if not place:
            return new
        holder = value
        for key in place[:-1]:
            holder = holder[key]
        how = draw(st.sampled_from(["replace", "replace", "remove", "twice"]))
        if how == "remove":
            del holder[place[-1]]
        elif how == "twice" and isinstance(holder, list):
            holder.append(holder[place[-1]])
        else:
            holder[place[-1]] = new
    return value


@st.composite
def damaged(draw: st.DrawFn, body: bytes) -> bytes:
    """The bytes with a part flipped, cut out, put in, or overwritten."""
    start = draw(st.integers(0, len(body)))
    end = draw(st.integers(start, min(len(body), start + 64)))
    how = draw(st.sampled_from(["flip", "cut", "insert", "end", "zeros"]))
    if how == "flip":
        return (
            body[:start]
            + bytes(b ^ draw(st.integers(1, 255)) for b in body[start:end][:4])
            + (body[start + len(body[start:end][:4]) :])
        )
    if how == "insert":
        junk = draw(
            st.sampled_from([b"{", b"[" * 3000, b"\x00" * 9, b'"', b"\xff\xfe", b"- &a *a\n"])
        )
        return body[:start] + junk + body[start:]
    if how == "end":
        return body[:start]
    return body[:start] + (b"\x00" * (end - start) if how == "zeros" else b"") + body[end:]


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail what hangs, and what keeps more memory than it should."""

    def late(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


def refused(function: Callable[[], object]) -> BatchsweepError | None:
    """What the function was refused with, if it was; anything else that it raises is a bug."""
    try:
        function()
    except BatchsweepError as error:
        assert error.exit_code in EXPECTED and "\n" not in str(error), error
        return error
    return None
