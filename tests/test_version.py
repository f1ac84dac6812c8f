"""The version has one author, ``batchsweep.__version__``; what else spells it follows."""

import re
import tomllib
from pathlib import Path

import yaml

from batchsweep import __version__

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
