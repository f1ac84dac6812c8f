"""The version has one author, ``batchsweep.__version__``; what else spells it follows."""

import re
import tomllib
from pathlib import Path

import yaml
from command_line import parsed

from batchsweep import __version__
from batchsweep.jobs import IMAGE

ROOT = Path(__file__).parents[1]


def test_the_package_takes_its_version_from_the_code():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "batchsweep.__version__"}


def test_the_citation_and_the_image_name_the_same_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == __version__
    label = re.search(r'image\.version="(.*?)"', (ROOT / "Dockerfile").read_text())
    assert label is not None and label[1] == __version__


def test_images_are_named_with_the_version_and_never_latest():
    assert f"batchsweep:{__version__}" == IMAGE
    for name in ("Dockerfile", "docs/guides/clusters.md"):
        text = (ROOT / name).read_text()
        tags = set(re.findall(r"\bbatchsweep:([\w.]+)", text)) - {"cpu", "VERSION"}
        assert tags == {__version__}, name
        assert "latest" not in text and "-t batchsweep " not in text
    assert parsed(["launch", "docker", "--config", "c.yaml"])[1]["image"] == IMAGE
