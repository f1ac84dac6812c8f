"""Where the store notes how an index ended."""

from __future__ import annotations


def outcome_path(key: str) -> str:
    """Where the store notes that an index was skipped or failed; a later success overrules it."""
    return f"outcomes/{key}.json"
