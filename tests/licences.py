"""The page docs/project/licences.md, from the metadata of what is installed.

    PYTHONPATH=. python tests/licences.py > docs/project/licences.md

Run it after a change of ``dependencies`` in pyproject.toml, or of a pin in constraints.txt.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]

PERMISSIVE = frozenset(
    (
        *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause"),
        *("BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-CMU", "PSF-2.0", "Zlib"),
        *("Unlicense", "Python-2.0"),
    )
)
#: Their own files stay under their licence; what uses them need not be.
WEAK_COPYLEFT = frozenset(("MPL-2.0", "LGPL-2.1-or-later", "LGPL-3.0-or-later"))

#: How packages without an SPDX expression name their licence, in the field or in a classifier.
_SPDX = {
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}

_HEAD = """\
# Licences

batchsweep is under Apache-2.0. What is installed with it is under these licences, as each package
states it (`tests/licences.py` makes this page, a test holds it to what is installed). All are
permissive but {weak}, whose licence is a weak copyleft: it asks that changes of
their own files be given on, and nothing of what uses them.

Wheels may hold compiled libraries under further licences, which their `*.dist-info` names: those of
scipy and numpy, for example, GCC's Fortran runtime (GPL with the runtime exception). PyTorch for
NVIDIA's GPUs brings NVIDIA's libraries under NVIDIA's own terms. The report's page holds a copy of
Apache ECharts (Apache-2.0; `batchsweep/report/assets/echarts.LICENSE`).

| package | licence |
| --- | --- |
"""


def installed() -> dict[str, metadata.Distribution]:
    """Name -> each package that batchsweep needs to run, directly or not, and that is here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    found: dict[str, metadata.Distribution] = {}
    seen: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        key = f"{name}[{','.join(sorted(wanted.extras))}]"
        if key in seen:
            continue
        seen.add(key)
        found[name] = metadata.distribution(name)
        for text in found[name].requires or ():
            need = Requirement(text)
            extras = ("", *wanted.extras)
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(need)
    return dict(sorted(found.items()))


def licence_of(package: metadata.Distribution) -> str:
    """Its licence as an SPDX expression; what it says itself, where nobody looked at that yet."""
    said: Any = package.metadata  # A message of e-mail, which its type doesn't say.
    if expression := said.get("License-Expression"):
        return str(expression)
    classifiers = [c.split(" :: ") for c in said.get_all("Classifier") or ()]
    classified = [c[-1] for c in classifiers if c[0] == "License" and c[-1] != "OSI Approved"]
    if classified:
        return " OR ".join(dict.fromkeys(_SPDX.get(c, c) for c in classified))
    stated = str(said.get("License") or "unknown").strip().splitlines()[0]
    return _SPDX.get(stated, stated)


def terms(expression: str) -> set[str]:
    """The licences that an SPDX expression names."""
    return set(re.split(r"\s+(?:AND|OR)\s+", expression.replace("(", "").replace(")", "")))


def page() -> str:
    licences = {name: licence_of(package) for name, package in installed().items()}
    weak = [name for name, licence in licences.items() if terms(licence) & WEAK_COPYLEFT]
    rows = "".join(f"| {name} | {licence} |\n" for name, licence in licences.items())
    return _HEAD.format(weak=" and ".join(weak)) + rows


if __name__ == "__main__":
    sys.stdout.write(page())
