"""The faults of published checkpoints as a list to publish: what, where, how it is known."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from batchsweep import __version__
from batchsweep.checkpoints.audited import Audit
from batchsweep.checkpoints.same_weights import last_step_twice
from batchsweep.config.suites import Suite
from batchsweep.errors import UsageError, writing

#: What a catalogue can be written as.
SUFFIXES = (".md", ".csv", ".json")


@dataclass(frozen=True)
class CatalogueEntry:
    """One fault.

    Attributes:
        model: Hub id, or the path of a folder.
        revisions: the names concerned.
        fault: ``missing``, ``no weights``, ``incomplete``, ``identical weights``, ``shared files``,
            or ``reported``: by the source, and not looked at here.
        detail: in words.
        evidence: what shows it: digests, commits.
        source: where it can be seen, or who reports it.
    """

    model: str
    revisions: tuple[str, ...]
    fault: str
    detail: str
    evidence: str
    source: str


def catalogue(found: Audit, suites: Mapping[str, Suite]) -> list[CatalogueEntry]:
    """The faults that an audit found, and those that are known of the audited models' suites.

    That ``main`` is the last step under another name is none, and not among them.
    """
    models = _models(found)
    reported = [
        CatalogueEntry(name, (), "reported", fault.what, "not looked at here", fault.source)
        for name, suite in suites.items()
        if models & set(suite.ids().values())
        for fault in suite.faults
    ]
    return [*_audited(found), *reported]


def _audited(found: Audit) -> Iterator[CatalogueEntry]:
    at = {(c.model, name): c for c in found.checkpoints for name in c.names}
    local = {c.model for c in found.checkpoints if c.local}

    def seen(model: str, revision: str) -> str:
        return model if model in local else f"https://huggingface.co/{model}/tree/{revision}"

    for skipped in found.skipped:
        model, name = skipped.model, skipped.revision
        evidence = "names of branches and files"
        yield CatalogueEntry(
            model, (name,), skipped.reason, skipped.detail, evidence, seen(model, name)
        )
    for same in found.duplicates:
        kept = at[same.model, same.kept]
        evidence = f"sha256 over those of the weight files: {kept.weights_digest}"
        evidence += f"; commit {kept.commit} of {same.kept}" if kept.commit else ""
        detail = str(same).removeprefix(f"{same.model}: ")
        source = seen(same.model, same.kept)
        yield CatalogueEntry(
            same.model, same.revisions, "identical weights", detail, evidence, source
        )
    for shared in found.shared:
        detail = str(shared).removeprefix(f"{shared.model}: ")
        evidence = f"equal sha256 of {', '.join(shared.files)}"
        source = seen(shared.model, shared.revisions[0])
        yield CatalogueEntry(
            shared.model, shared.revisions, "shared files", detail, evidence, source
        )


def _models(found: Audit) -> set[str]:
    return {c.model for c in found.checkpoints} | {s.model for s in found.skipped}


def write_catalogue(path: Path, found: Audit, suites: Mapping[str, Suite], *, date: str) -> int:
    """Write the list in the form that the file's name says; how many faults it has.

    Args:
        date: of the audit, such as ``2026-11-25``.

    Raises:
        UsageError: a name that ends otherwise than :data:`SUFFIXES`.
        StoreError: the file can't be written.
    """
    entries = catalogue(found, suites)
    models = sorted(_models(found))
    said = (
        f"{len(models)} models, {len(found.checkpoints)} different checkpoints; metadata of the "
        f"Hub on {date}, by batchsweep {__version__}; no weights were downloaded"
    )
    if path.suffix == ".csv":
        text = _csv(entries)
    elif path.suffix == ".json":
        document = {"audited": models, "how": said, "faults": [asdict(entry) for entry in entries]}
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    elif path.suffix == ".md":
        notes = [f"- {line}" for line in last_step_twice(found.checkpoints)]
        text = _markdown(entries, said, notes)
    else:
        raise UsageError(f"--catalogue {path}: the name should end in {', '.join(SUFFIXES)}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return len(entries)


def _csv(entries: list[CatalogueEntry]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([field.name for field in fields(CatalogueEntry)])
    for entry in entries:
        writer.writerow([" ".join(v) if isinstance(v, tuple) else v for v in _values(entry)])
    return out.getvalue()


def _markdown(entries: list[CatalogueEntry], said: str, notes: list[str]) -> str:
    head = ["model", "revisions", "fault", "detail", "evidence", "source"]
    lines = ["# Faults of published checkpoints", "", f"Audited: {said}.", ""]
    lines += [_row(head), _row(["---"] * len(head))] if entries else ["No fault was found."]
    for entry in entries:
        lines.append(_row([", ".join(v) if isinstance(v, tuple) else v for v in _values(entry)]))
    return "\n".join([*lines, *(["", "No faults:", "", *notes] if notes else [])]) + "\n"


def _values(entry: CatalogueEntry) -> list[str | tuple[str, ...]]:
    return [getattr(entry, field.name) for field in fields(CatalogueEntry)]


def _row(cells: list[str]) -> str:
    plain = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(plain)} |"
