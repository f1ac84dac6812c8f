"""What is installed is listed, and can be held against saved advisories."""

import json
import re
from importlib import metadata
from typing import Any

import advisories
import pytest
from sbom import sbom

ADVISORY: dict[str, Any] = {
    "id": "PYSEC-0000-1",
    "summary": "made up",
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "Jinja2"},
            "ranges": [
                {
                    "type": "ECOSYSTEM",
                    "events": [{"introduced": "2.0"}, {"fixed": "3.1.3"}, {"introduced": "3.2"}],
                }
            ],
        }
    ],
}


def test_the_sbom_lists_every_package_with_version_licence_and_purl():
    document = sbom()
    components = {c["name"]: c for c in document["components"]}
    assert {"torch", "zarr", "mteb", "pydantic-core"} <= components.keys()
    for name, component in components.items():
        assert component["version"] == metadata.version(name)
        assert re.fullmatch(rf"pkg:pypi/{name}@[0-9A-Za-z.%]+", component["purl"])
        assert component["licenses"][0]["expression"] != "unknown"
    references = [c["bom-ref"] for c in document["components"]]
    assert len(set(references)) == len(references)
    assert json.dumps(document) == json.dumps(sbom())


@pytest.mark.parametrize(
    ("version", "hit"),
    [("1.9", False), ("2.0", True), ("3.1.2", True), ("3.1.3", False), ("3.2.1", True)],
)
def test_a_pin_in_an_advisorys_range_is_named(version, hit):
    found = list(advisories.matches({"jinja2": version}, [ADVISORY]))
    assert found == ([f"Jinja2 {version}: PYSEC-0000-1 made up"] if hit else [])


def test_listed_versions_count_and_withdrawn_advisories_do_not():
    listed = {"package": ADVISORY["affected"][0]["package"], "versions": ["9.9"]}
    record = {"id": "X", "affected": [listed]}
    assert list(advisories.matches({"jinja2": "9.9"}, [record])) == ["Jinja2 9.9: X "]
    assert not list(advisories.matches({"jinja2": "9.9"}, [{**record, "withdrawn": "2026"}]))


def test_every_pin_is_read_and_an_empty_folder_is_no_clean_bill(tmp_path, capsys):
    pinned = advisories.pins(advisories.CONSTRAINTS.read_text())
    lines = [x for x in advisories.CONSTRAINTS.read_text().splitlines() if x.strip()]
    assert len(pinned) == len([x for x in lines if not x.startswith("#")])
    assert advisories.main(tmp_path) == 2
    (tmp_path / "one.json").write_text(json.dumps(ADVISORY))
    assert advisories.main(tmp_path) == 0
    old = {**ADVISORY["affected"][0], "ranges": [], "versions": [pinned["jinja2"]]}
    (tmp_path / "one.json").write_text(json.dumps({**ADVISORY, "affected": [old]}))
    assert advisories.main(tmp_path) == 1
    assert f"{len(pinned)} pins, 1 advisories: 1 hits" in capsys.readouterr().out
