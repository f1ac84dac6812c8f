"""The Hub's metadata: refs, file lists and small JSON files, with patience and a cache.

Two requests answer everything about a repo's revision, and neither downloads weights. What belongs
to a commit never changes, so it is cached for ever; refs are asked each time.

huggingface_hub's own back-off waits in each thread for itself, without a patience that they share:
eight threads of an audit would ask a busy Hub eight times as often. So it is not used.
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from batchsweep.checkpoints.json_cache import JsonCache, cache_file
from batchsweep.errors import BatchsweepError, ConfigError, TryAgain, UsageError, first_line
from batchsweep.progress import duration

logger = logging.getLogger(__name__)

#: First parts of a relative path of checkpoints, and of no owner of models on the Hub.
_FOLDERS = frozenset(
    {"checkpoint", "checkpoints", "ckpt", "ckpts", "data", "local", "model", "models", "output"}
    | {"outputs", "run", "runs", "suite", "suites", "tmp", "weights"}
)
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
#: What the Hub answers to a token that is wrong, or may not read what is asked for.
REFUSED = frozenset({401, 403})
#: Files that an audit needs to know of: weights, shape, tokenizer, code.
_WANTED = re.compile(
    r"(model|pytorch_model)[^/]*\.(safetensors|bin)|config\.json|tokenizer[^/]*|vocab\.\w+"
    r"|.*\.py|merges\.txt|spiece\.model|sentencepiece\.bpe\.model"
)


@dataclass(frozen=True)
class RemoteFile:
    """One file of a commit."""

    digest: str
    """sha256 of its content (LFS), or ``git:`` and its blob id."""
    size: int


class Hub:
    """Asks the Hub at ``HF_ENDPOINT`` with the user's token; usable from several threads.

    Args:
        timeout: seconds that one request may take, to the last byte of its answer.
        attempts: requests for one answer, the first included.
        patience: seconds to wait in all, in this process, for a Hub that is busy.
    """

    def __init__(
        self, *, timeout: float = 20.0, attempts: int = 6, patience: float = 330.0
    ) -> None:
        self._timeout = timeout
        self._attempts = attempts
        self._patience = patience
        self._caches: dict[str, JsonCache] = {}
        self._lock = threading.Lock()
        self._resume_at = 0.0
        self._waited = 0.0
        self._failed: str | None = None
        self.requests = 0
        """Requests sent so far, retries included."""

    def refs(self, repo: str) -> dict[str, str]:
        """Branch or tag -> commit.

        Raises:
            ConfigError: no such repo, or no access to it.
            TryAgain: the Hub can't be reached.
        """
        value = self._json(f"/api/models/{repo}/refs", repo)
        try:
            # Of a tag and a branch with one name, the Hub resolves the branch.
            return {
                ref["name"]: ref["targetCommit"]
                for kind in ("tags", "branches")
                for ref in value.get(kind) or []
            }
        except (AttributeError, KeyError, TypeError):
            raise self._strange(repo, "refs") from None

    def commit(self, repo: str, revision: str) -> str | None:
        """The commit sha that a revision resolves to; None if there is none."""
        value = self._json(self._revision_path(repo, revision), repo, absent_ok=True)
        return None if value is None else str(value["sha"])

    def files(self, repo: str, commit: str) -> dict[str, RemoteFile]:
        """The commit's weight, config and tokenizer files at the top level, and all its code."""
        cache = self._cache(repo)
        # Under the commit alone, older versions kept a list without Python files.
        key = f"{commit}/files"
        cached = cache.get(key)
        if cached is None:
            value = self._json(self._revision_path(repo, commit) + "?blobs=true", repo)
            try:
                cached = {
                    file["rfilename"]: _identity(file)
                    for file in value["siblings"]
                    if _WANTED.fullmatch(file["rfilename"])
                }
            except (KeyError, TypeError):
                raise self._strange(repo, commit) from None
            cache.set(key, cached)
        return {name: RemoteFile(digest, size) for name, (digest, size) in cached.items()}

    def json_file(self, repo: str, revision: str, name: str) -> dict[str, Any] | None:
        """A small JSON file of a revision; None if there is no such revision or file.

        Raises:
            ConfigError: the file is not a JSON object.
        """
        key = f"{revision}/{name}"
        pinned = re.fullmatch(r"[0-9a-f]{40}", revision) is not None
        cached = self._cache(repo).get(key) if pinned else None
        if cached is None:
            path = f"/{repo}/resolve/{quote(revision, safe='')}/{name}"
            cached = self._json(path, repo, absent_ok=True, may_be_broken=True)
            if pinned and cached is not None:
                self._cache(repo).set(key, cached)
        if cached is not None and not isinstance(cached, dict):
            raise ConfigError(f"{repo}@{revision}: {name} is not a JSON object")
        return cached

    def save(self) -> None:
        """Write what was learned to the cache."""
        for cache in list(self._caches.values()):
            cache.save()

    def _cache(self, repo: str) -> JsonCache:
        from huggingface_hub import constants

        with self._lock:
            if repo not in self._caches:
                self._caches[repo] = JsonCache(cache_file("hub", constants.ENDPOINT, repo))
            return self._caches[repo]

    @staticmethod
    def _revision_path(repo: str, revision: str) -> str:
        return f"/api/models/{repo}/revision/{quote(revision, safe='')}"

    @staticmethod
    def _strange(repo: str, what: str) -> TryAgain:
        from huggingface_hub import constants

        return TryAgain(
            f"{repo}: {constants.ENDPOINT} sent an answer about {what} that no Hub gives; "
            "check HF_ENDPOINT"
        )

    def _json(
        self, path: str, repo: str, *, absent_ok: bool = False, may_be_broken: bool = False
    ) -> Any:
        """One answer, however many requests it takes.

        Args:
            path: below the endpoint.
            repo: for messages.
            absent_ok: None for a revision or file that is not there, instead of an error.
            may_be_broken: the text itself where it isn't JSON: it is a user's file, not the Hub's.
        """
        from huggingface_hub import constants
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
        from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

        _check_askable(repo)
        reason = ""
        for attempt in range(self._attempts):
            self._wait_turn()
            with self._lock:
                self.requests += 1
            try:
                response = answer(path, seconds=self._timeout)
                if response.status_code in _RETRIED:
                    reason = f"status {response.status_code}"
                    self._back_off(attempt, _asked_wait(response.headers), reason)
                    continue
                if absent_ok and response.status_code == 404 and _absent(response.headers):
                    return None
                hf_raise_for_status(response)
                if may_be_broken and not _is_json(response.text):
                    return response.text
                return response.json()
            except json.JSONDecodeError:
                reason = "an answer that is not JSON"
                self._back_off(attempt, None, reason)
            except (HTTPError, OSError) as error:
                lasting = _lasting(error, repo)
                if lasting is not None:
                    raise lasting from None
                reason = first_line(error, typed=True)
                self._back_off(attempt, None, reason)
        raise self._give_up(
            f"{repo}: {constants.ENDPOINT} failed {self._attempts} times ({reason})"
        )

    def _wait_turn(self) -> None:
        """Sleep while the Hub asked everybody to wait; give up where another thread did."""
        while True:
            with self._lock:
                if self._failed is not None:
                    raise TryAgain(self._failed)
                wait = self._resume_at - time.monotonic()
            if wait <= 0:
                return
            time.sleep(min(wait, 1.0))

    def _back_off(self, attempt: int, asked: float | None, reason: str) -> None:
        """Make all threads wait: for as long as the Hub asked, else twice as long each time."""
        wait = asked if asked is not None else 0.5 * 2**attempt
        with self._lock:
            now = time.monotonic()
            resume_at = max(self._resume_at, now + wait)
            more = resume_at - max(self._resume_at, now)
            self._resume_at = resume_at
            self._waited += more
            too_long = self._waited > self._patience
        if too_long:
            raise self._give_up(
                f"the Hub is busy ({reason}) and asks to wait {duration(wait)}, with "
                f"{duration(self._waited - more)} waited already"
            )
        if wait >= 5 and more > 0:
            logger.warning("the Hub says %s: waiting %s", reason, duration(wait))
        else:
            logger.debug("the Hub says %s: waiting %.1f s", reason, wait)

    def _give_up(self, message: str) -> TryAgain:
        message += "; try again later (what is known already is kept)"
        with self._lock:
            self._failed = self._failed or message
        return TryAgain(message)


def _check_askable(repo: str) -> None:
    """Refuse what no Hub need be asked about."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if constants.HF_HUB_OFFLINE:
        if _looks_like_a_folder(repo):
            raise _no_folder(repo, "HF_HUB_OFFLINE is set")
        raise UsageError(
            f"{repo}: HF_HUB_OFFLINE is set, but revisions must be looked up on the Hub; "
            "unset it for 'prepare', or use a local directory (extract works offline)"
        )
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"models: '{repo}' is not a Hub id: {error}") from None


def _lasting(error: Exception, repo: str) -> BatchsweepError | None:
    """What is wrong, where asking again at once can't mend it; None for a passing fault."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return ConfigError(
            f"models: '{repo}' is gated: accept its terms on the Hub and set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return ConfigError(
            f"models: no repo '{repo}' at {constants.ENDPOINT} (or private: set HF_TOKEN),"
            f" and no such directory in {Path.cwd()}"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in REFUSED:
        return ConfigError(
            f"models: {constants.ENDPOINT} refuses access to '{repo}' (status {status}): set "
            "HF_TOKEN to a valid token that may read it"
        )
    if status is not None and status not in _RETRIED:
        return TryAgain(f"{repo}: {constants.ENDPOINT} said {first_line(error, typed=True)}")
    if status is None and _looks_like_a_folder(repo):
        return _no_folder(repo, f"{constants.ENDPOINT} is out of reach")
    return None


def answer(path: str, *, seconds: float) -> Any:
    """What the Hub says to one request, read to its end: a response of its HTTP client.

    Args:
        path: below the endpoint.
        seconds: for all of it. (A client's own time-out starts anew with every piece that arrives.)

    Raises:
        OSError, huggingface_hub.errors.HTTPError: no whole answer, or none in time.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    end = time.monotonic() + seconds
    with get_session().stream(
        "GET",
        constants.ENDPOINT + path,
        headers=build_hf_headers(),
        timeout=seconds,
        follow_redirects=True,
    ) as response:
        body = bytearray()
        for piece in response.iter_bytes():
            body += piece
            if time.monotonic() > end:
                raise TimeoutError(f"no whole answer within {seconds:g} s")
        # The body is decoded by now, and of the length that it has.
        about_body = ("content-encoding", "content-length", "transfer-encoding")
        headers = [(k, v) for k, v in response.headers.items() if k.lower() not in about_body]
        return type(response)(
            response.status_code, headers=headers, content=bytes(body), request=response.request
        )


def _looks_like_a_folder(repo: str) -> bool:
    """Whether a name that is no directory here, though it may be a Hub id, was meant as one."""
    first, slash, _ = repo.partition("/")
    return bool(slash) and (first in _FOLDERS or Path(first).is_dir())


def _no_folder(repo: str, why: str) -> ConfigError:
    return ConfigError(
        f"models: no directory '{repo}' in {Path.cwd()}, where relative paths start, and no Hub to "
        f"ask for a model of that name ({why}); run the command from the folder that has it"
    )


def _identity(file: Mapping[str, Any]) -> list[Any]:
    lfs = file.get("lfs") or {}
    digest = lfs.get("sha256") or f"git:{file['blobId']}"
    return [digest, int(lfs.get("size") or file.get("size") or 0)]


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds in ``Retry-After``, or in the ``t=`` of a ``RateLimit`` header."""
    for name, pattern in (("retry-after", r"\s*(\d+)"), ("ratelimit", r".*\bt=(\d+)")):
        match = re.match(pattern, headers.get(name) or "")
        if match:
            return float(match[1])
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _absent(headers: Mapping[str, str]) -> bool:
    return headers.get("X-Error-Code") in ("RevisionNotFound", "EntryNotFound")
