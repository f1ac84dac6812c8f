"""What batchsweep installs may be used with it, and docs/ says under which terms."""

from __future__ import annotations

import re

import licences
import pytest


def test_no_package_is_under_a_strong_copyleft_or_an_unknown_licence() -> None:
    allowed = licences.PERMISSIVE | licences.WEAK_COPYLEFT
    found = {name: licences.licence_of(p) for name, p in licences.installed().items()}
    assert len(found) > 50
    odd = {name: said for name, said in found.items() if not licences.terms(said) <= allowed}
    assert odd == {}, "look at these, and at what else could be used in their place"


def test_the_page_has_every_package() -> None:
    page = (licences.ROOT / "docs/project/licences.md").read_text()
    rows = dict(re.findall(r"(?m)^\| ([\w.-]+) \| ([^|]+) \|$", page))
    found = {name: licences.licence_of(p) for name, p in licences.installed().items()}
    missing = {name: said for name, said in found.items() if rows.get(name) != said}
    assert missing == {}, "run tests/licences.py"
    prose = page.split("| package |")[0]
    weak = {name for name, said in rows.items() if licences.terms(said) & licences.WEAK_COPYLEFT}
    assert weak == {"certifi", "tqdm"} and all(name in prose for name in weak)
    assert "crc32c" not in rows


@pytest.mark.parametrize("said", ["GPL-3.0-only", "AGPL-3.0-or-later AND MIT", "GPLv2", "unknown"])
def test_a_strong_copyleft_would_be_found(said: str) -> None:
    assert not licences.terms(said) <= licences.PERMISSIVE | licences.WEAK_COPYLEFT
