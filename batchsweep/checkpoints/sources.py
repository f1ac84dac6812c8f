"""Where checkpoints come from: a Hub repo, a directory, or one repo for each checkpoint.

Each answers the same three questions, from metadata alone: which revisions are there, which
files has one, and what shape is the model.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from batchsweep.checkpoints.checkpoint import PLACEHOLDER, normalise_revision
from batchsweep.checkpoints.hub import Hub, RemoteFile
from batchsweep.checkpoints.json_cache import JsonCache
from batchsweep.checkpoints.weight_files import WeightFile, missing_shards, weight_names
from batchsweep.config import ModelConfig
from batchsweep.errors import ConfigError

#: Files that decide how a text becomes tokens; ``tokenizer.json`` alone does where it exists.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


@dataclass(frozen=True)
class Listing:
    """The files of one checkpoint that matter, known by their content."""

    commit: str
    weights: Mapping[str, tuple[WeightFile, ...]]
    """Format (``.safetensors``, ``.bin``) -> its files, best format first; complete ones only."""
    incomplete: int
    """Shards missing, where no format is complete."""
    config_id: str | None
    """Content of ``config.json``; None: there is none."""
    tokenizer: str
    """16 hex digits; the same for checkpoints that share a tokenizer. Empty: no tokenizer."""
    code: str = ""
    """sha256 (hex) of the Python files, where they may run; empty where there are none."""

    @property
    def settings(self) -> str:
        """What makes a model of the weights: ``config.json``, and the code."""
        return f"{self.config_id} {self.code}".strip()

    @property
    def loaded(self) -> tuple[WeightFile, ...]:
        """The files that loading takes: the best format's."""
        return next(iter(self.weights.values()), ())


class Missing(Exception):
    """A revision that is not there; the text is what is there instead."""


class Suite(Protocol):
    """The checkpoints of one model of the config."""

    local: bool

    def revisions(self) -> Mapping[str, str]:
        """Revision -> where it points (a commit), of all that can be listed.

        Raises:
            ConfigError: no such model, or they can't be listed.
        """

    def listing(self, revision: str) -> Listing:
        """The files of one revision.

        Raises:
            Missing: there is no such revision.
        """

    def model_config(self, revision: str) -> dict[str, Any]:
        """The revision's ``config.json``.

        Raises:
            Missing: no such revision or file.
        """


def open_suite(model: ModelConfig, hub: Hub, digests: JsonCache) -> Suite:
    """The suite that a model's name means: a directory if there is one, else the Hub.

    Raises:
        ConfigError: neither a directory nor a Hub id, such as a mistyped path.
    """
    name = model.name
    if PLACEHOLDER in name:
        return SeparateRepos(model, hub, digests)
    if Path(name).is_dir():
        return LocalSuite(Path(name), digests, code=model.trust_remote_code)
    if not re.fullmatch(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?", name) or name[0] in "./":
        raise ConfigError(
            f"models: '{name}': no such directory, and not a Hub id (owner/name) either"
        )
    return HubSuite(name, hub, code=model.trust_remote_code)


def listing_of(files: Mapping[str, RemoteFile], commit: str, *, code: bool = False) -> Listing:
    """Sort the files of a checkpoint; a format with missing shards does not count.

    Args:
        files: name -> content, of those that matter.
        code: the Python files among them may run, so that they are part of the checkpoint.
    """
    weights: dict[str, tuple[WeightFile, ...]] = {}
    incomplete = 0
    for suffix, names in weight_names(files).items():
        lacking = missing_shards(names)
        if lacking:
            incomplete = incomplete or lacking
        else:
            weights[suffix] = tuple(WeightFile(n, files[n].digest, files[n].size) for n in names)
    config = files.get("config.json")
    return Listing(
        commit=commit,
        weights=weights,
        incomplete=0 if weights else incomplete,
        config_id=config.digest if config else None,
        tokenizer=_tokenizer_key(files),
        code=_code_digest(files) if code else "",
    )


def _code_digest(files: Mapping[str, RemoteFile]) -> str:
    text = "".join(f"{n} {files[n].digest}\n" for n in sorted(files) if n.endswith(".py"))
    return hashlib.sha256(text.encode()).hexdigest() if text else ""


def _tokenizer_key(files: Mapping[str, RemoteFile]) -> str:
    """What the tokenizer is made of, as 16 hex digits; empty if there is none."""
    names = [n for n in _TOKENIZER_FILES if n in files]
    if not names:
        return ""
    if names[0] == "tokenizer.json":
        names = names[:1]
    # Its settings (added special tokens, lower case) are part of it.
    names += [n for n in ("tokenizer_config.json",) if n in files]
    text = "".join(f"{n} {files[n].digest}\n" for n in names)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class HubSuite:
    """The branches, tags and commits of one Hub repo."""

    local = False

    def __init__(self, repo: str, hub: Hub, *, code: bool = False) -> None:
        self.repo = repo
        self._code = code
        self._hub = hub
        self._refs: dict[str, str] | None = None

    def revisions(self) -> Mapping[str, str]:
        if self._refs is None:
            self._refs = self._hub.refs(self.repo)
        return self._refs

    def listing(self, revision: str) -> Listing:
        commit = self._commit(revision)
        return listing_of(self._hub.files(self.repo, commit), commit, code=self._code)

    def model_config(self, revision: str) -> dict[str, Any]:
        # If nobody has asked for the branches yet, one request is enough to plan a sweep.
        commit = (self._refs or {}).get(revision, revision)
        config = self._hub.json_file(self.repo, commit, "config.json")
        if config is None:
            raise Missing(f"no config.json in {self.repo} at {revision}")
        return config

    def _commit(self, revision: str) -> str:
        refs = self.revisions()
        if revision in refs:
            return refs[revision]
        # A commit, or a ref outside branches and tags such as refs/pr/3.
        if re.fullmatch(r"[0-9a-f]{7,40}", revision) or revision.startswith("refs/"):
            commit = self._hub.commit(self.repo, revision)
            if commit is not None:
                return commit
        raise Missing(f"no such branch or tag{nearest(revision, list(refs))}")


class LocalSuite:
    """A directory of revisions (``dir/step0/config.json``), or of one model (``main``)."""

    local = True

    def __init__(self, root: Path, digests: JsonCache, *, code: bool = False) -> None:
        self.root = root
        self._code = code
        self._digests = digests

    def revisions(self) -> Mapping[str, str]:
        return {name: str(folder) for name, folder in self._folders().items()}

    def listing(self, revision: str) -> Listing:
        folder = self._folder(revision)
        names = [entry.name for entry in sorted(folder.iterdir()) if entry.is_file()]
        formats = weight_names(names)
        complete = [n for n in formats.values() if not missing_shards(n)]
        # Only what is loaded is read: hashing a second format would double the wait.
        skipped = {n for other in complete[1:] for n in other}
        wanted = {
            *(n for found in formats.values() for n in found),
            *_TOKENIZER_FILES,
            "config.json",
            "tokenizer_config.json",
        } - skipped
        files = {n: hashed(folder / n, self._digests) for n in names if n in wanted}
        if self._code:
            code = sorted(p for p in folder.rglob("*.py") if p.is_file())
            files |= {p.relative_to(folder).as_posix(): hashed(p, self._digests) for p in code}
        listing = listing_of(files, "", code=self._code)
        content = "".join(f"{f.name} {f.sha256}\n" for f in listing.loaded) + listing.settings
        commit = hashlib.sha256(content.encode()).hexdigest()[:40]
        return Listing(**{**vars(listing), "commit": commit})

    def model_config(self, revision: str) -> dict[str, Any]:
        path = self._folder(revision) / "config.json"
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"models: {path} can't be read: {error}") from None
        if not isinstance(value, dict):
            raise ConfigError(f"models: {path} is not a JSON object")
        return value

    def _folders(self) -> dict[str, Path]:
        if (self.root / "config.json").is_file():
            return {"main": self.root}
        found = {p.name: p for p in sorted(self.root.iterdir()) if (p / "config.json").is_file()}
        if not found:
            raise ConfigError(
                f"models: {self.root} has neither a config.json nor sub-directories with one "
                f"(such as {self.root}/step1000/config.json)"
            )
        return found

    def _folder(self, revision: str) -> Path:
        folders = self._folders()
        if revision in folders:
            return folders[revision]
        # Directories may spell it step-1000 as well.
        other = {normalise_revision(name): path for name, path in folders.items()}
        if revision in other:
            return other[revision]
        raise Missing(f"no such directory{nearest(revision, list(folders))}")


class SeparateRepos:
    """One repo (or directory) for each checkpoint: ``org/model-{revision}``."""

    def __init__(self, model: ModelConfig, hub: Hub, digests: JsonCache) -> None:
        self._model = model
        self._hub = hub
        self._digests = digests
        folder, slash, _ = model.name.split(PLACEHOLDER)[0].rpartition("/")
        self.local = bool(slash) and (folder in ("", ".") or Path(folder).is_dir())
        self._suites: dict[str, Suite] = {}

    def revisions(self) -> Mapping[str, str]:
        raise ConfigError(
            f"models: '{self._model.name}': separate repos can't be listed; "
            "give this model its 'revisions' by name"
        )

    def listing(self, revision: str) -> Listing:
        try:
            return self._suite(revision).listing("main")
        except ConfigError as error:
            raise Missing(str(error).removeprefix("models: ")) from None

    def model_config(self, revision: str) -> dict[str, Any]:
        return self._suite(revision).model_config("main")

    def _suite(self, revision: str) -> Suite:
        if revision not in self._suites:
            name = self._model.name.replace(PLACEHOLDER, revision)
            if self.local and not Path(name).is_dir():
                raise Missing(f"no directory {name}")
            single = self._model.model_copy(update={"name": name})
            self._suites[revision] = open_suite(single, self._hub, self._digests)
        return self._suites[revision]


def nearest(name: str, choices: list[str]) -> str:
    """The hint for a name that is not there: what is there with a similar name."""
    close = difflib.get_close_matches(name, choices, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    shown = ", ".join(choices[:5]) + (", ..." if len(choices) > 5 else "")
    return f"; there are: {shown}" if choices else ""


def hashed(path: Path, digests: JsonCache) -> RemoteFile:
    """A local file by its sha256, remembered by size, times and inode.

    Raises:
        ConfigError: this user may not read it.
    """
    stat = path.stat()
    identity = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    key = str(path.resolve())
    cached = digests.get(key)
    if isinstance(cached, dict) and cached.get("identity") == identity:
        return RemoteFile(str(cached["sha256"]), stat.st_size)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except PermissionError:
        # safetensors makes its files for their owner alone; a container runs as somebody else.
        raise ConfigError(
            f"{path}: this user may not read it; let it be read (chmod a+r), or run as its "
            "owner (docker run --user)"
        ) from None
    # A file that changed within the clock's grain could change again unseen: not remembered.
    if time.time_ns() - stat.st_ctime_ns > 2_000_000_000:
        digests.set(key, {"identity": identity, "sha256": digest})
    return RemoteFile(digest, stat.st_size)
