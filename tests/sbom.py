"""What batchsweep installs, as a CycloneDX 1.6 document: the same bytes from the same packages.

    PYTHONPATH=.:tests python tests/sbom.py > build/sbom.json

Of the environment that runs it: ``make sbom`` of the venv; of an image, what is in there (Debian's
own packages are not in it: name the base image's SBOM beside it).
"""

from __future__ import annotations

import json
import sys
from typing import Any

from licences import installed, licence_of

from batchsweep import __version__


def sbom() -> dict[str, Any]:
    """The document; batchsweep is its subject, and the packages that it needs are components."""
    packages = installed()
    subject = _component("batchsweep", __version__, "Apache-2.0", "application")
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": subject},
        "components": [
            _component(name, package.version, licence_of(package))
            for name, package in packages.items()
        ],
    }


def _component(name: str, version: str, licence: str, kind: str = "library") -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    return {
        "type": kind,
        "bom-ref": purl,
        "name": name,
        "version": version,
        "licenses": [{"expression": licence}],
        "purl": purl,
    }


if __name__ == "__main__":
    json.dump(sbom(), sys.stdout, indent=1)
    sys.stdout.write("\n")
