"""The pins of constraints.txt against advisories that were saved before; asks no network.

    python tests/advisories.py FOLDER

``FOLDER`` has OSV's records, one JSON file each, as in the archive of its PyPI ecosystem. Exit code
1 names each pin that an advisory is about; 2 means that there was nothing to compare with.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def pins(text: str) -> dict[str, str]:
    """Name -> version of a constraints file."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;#]+)", text, re.MULTILINE)
    return {_name(name): version for name, version in found}


def matches(pinned: dict[str, str], records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """One line for each pin that a record that wasn't withdrawn says is affected."""
    for record in records:
        for affected in record.get("affected", ()):
            package = affected.get("package", {})
            version = pinned.get(_name(package.get("name", "")))
            known = package.get("ecosystem") == "PyPI" and not record.get("withdrawn")
            if known and version is not None and _is_affected(version, affected):
                yield f"{package['name']} {version}: {record['id']} {record.get('summary', '')}"


def _is_affected(version: str, affected: dict[str, Any]) -> bool:
    if version in affected.get("versions", ()):
        return True
    ranges = [r["events"] for r in affected.get("ranges", ()) if r.get("type") == "ECOSYSTEM"]
    return any(_in_range(Version(version), events) for events in ranges)


def _in_range(version: Version, events: Iterable[dict[str, str]]) -> bool:
    """By OSV's rule: the last event at or before a version decides."""
    inside = False
    for event in sorted(events, key=lambda e: _version(next(iter(e.values())))):
        ((kind, text),) = event.items()
        if kind == "introduced" and version >= _version(text):
            inside = True
        elif (kind == "fixed" and version >= _version(text)) or (
            kind == "last_affected" and version > _version(text)
        ):
            inside = False
    return inside


def _version(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")  # Too old to be told apart: better named once too often.


def _name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(folder: Path) -> int:
    records = [json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))]
    if not records:
        print(f"{folder}: no advisories there; SECURITY.md says where they come from")
        return 2
    pinned = pins(CONSTRAINTS.read_text())
    found = list(matches(pinned, records))
    print(*found, f"{len(pinned)} pins, {len(records)} advisories: {len(found)} hits", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
