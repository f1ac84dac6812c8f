"""Whether what will be loaded is what the plan was frozen with, before any of it is used."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from batchsweep.checkpoints.checkpoint import Checkpoint
from batchsweep.checkpoints.json_cache import JsonCache
from batchsweep.checkpoints.sources import Missing, Suite, hashed
from batchsweep.errors import IndexFailed, Unavailable


def check_unchanged(suite: Suite, checkpoint: Checkpoint, tokenizer: str) -> None:
    """Refuse a local checkpoint whose weights, config or tokenizer are no longer the plan's.

    Raises:
        Unavailable: the weights are gone.
        IndexFailed: something changed; says what.
    """
    from batchsweep.checkpoints.weight_files import weights_digest

    revision, digest = checkpoint.revision, checkpoint.weights_digest
    try:
        listing = suite.listing(revision)
    except Missing as error:
        raise Unavailable(f"{revision}: {error}") from None
    if not listing.loaded:
        raise Unavailable(f"{revision}: its weights are gone since 'prepare'")
    now = weights_digest(listing.loaded)
    if now != digest:
        raise IndexFailed(
            f"{revision}: the weights changed since 'prepare' ({digest[:12]} then, {now[:12]} now)"
            "; put the old ones back, or start another store"
        )
    # Of a local checkpoint, the commit is made of the weights, the config and the code.
    changed = [
        what
        for what, then, found in (
            (
                "config.json" + " or the code" * bool(listing.code),
                checkpoint.commit,
                listing.commit,
            ),
            ("the tokenizer", tokenizer, listing.tokenizer),
        )
        if then != found
    ]
    if changed:
        raise IndexFailed(
            f"{revision}: {' and '.join(changed)} changed since 'prepare'; put back what was "
            "there, or start another store"
        )


def check_download(folder: Path, checkpoint: Checkpoint, digests: JsonCache) -> None:
    """Refuse a downloaded checkpoint whose files are not those that the plan pinned.

    The weights are held against the plan; the other files, which the commit pins, against the
    digest that the Hub's cache calls them by.

    Raises:
        IndexFailed: names the file.
    """
    pinned = {file.name: file.sha256 for file in checkpoint.weights}
    for path in sorted({*folder.iterdir(), *folder.rglob("*.py")}):
        blob, name = path.resolve().name, path.relative_to(folder).as_posix()
        if name not in pinned and path.is_symlink():
            if re.fullmatch("[0-9a-f]{64}", blob):
                pinned[name] = blob
            elif re.fullmatch("[0-9a-f]{40}", blob):
                pinned[name] = f"git:{blob}"
    for name, wanted in pinned.items():
        path = folder / name
        if not path.is_file():
            raise IndexFailed(f"{checkpoint.revision}: {path} is gone; run again to download it")
        found = _git_blob(path) if wanted.startswith("git:") else hashed(path, digests).digest
        if found != wanted:
            raise IndexFailed(
                f"{checkpoint.revision}: {path} is not the file that the plan was frozen with "
                f"({wanted[:16]} then, {found[:16]} now); if the download was damaged, delete "
                f"{folder.parent.parent} and run again"
            )


def _git_blob(path: Path) -> str:
    """What git calls a file's content: so the Hub names files that are not in LFS."""
    content = path.read_bytes()
    header = f"blob {len(content)}\0".encode()
    return f"git:{hashlib.sha1(header + content, usedforsecurity=False).hexdigest()}"
