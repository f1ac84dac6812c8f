"""What is shown of a search while it scores: one bar in all, or one for what each wave brought."""

from __future__ import annotations

from contextlib import ExitStack

from batchsweep.progress import Bar, progress


class ScoringView:
    """One piece of work at a time; extraction between two of them has a view of its own.

    Args:
        quiet: show nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._shown = ExitStack()
        self._bar: Bar | None = None

    def __enter__(self) -> ScoringView:
        return self

    def __exit__(self, *raised: object) -> None:
        self.end()

    def begin(self, what: str, pulls: int) -> None:
        """So many pulls are to be made now, at most."""
        self.end()
        if pulls > 0 and not self._quiet:
            self._bar = self._shown.enter_context(progress(what, total=pulls, unit="pulls"))

    def advance(self, pulls: int) -> None:
        """So many pulls more were scored."""
        if self._bar is not None:
            self._bar.advance(pulls)

    def end(self) -> None:
        """What was shown is over, or is broken off."""
        self._bar = None
        self._shown.close()
