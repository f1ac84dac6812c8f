"""The API server as a pod sees it that may make Jobs and look at them, and nothing else."""

from __future__ import annotations

import json
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from batchsweep.errors import TryAgain, UsageError
from batchsweep.jobs.kubectl import OUTAGE_SECONDS, Kubectl, selector
from batchsweep.jobs.kubernetes_objects import Object

#: Where Kubernetes puts a pod's token, the cluster's certificate and the namespace.
#: https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/
FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
#: Of a request.
TIMEOUT = 30.0


class InCluster(Kubectl):
    """What of :class:`Kubectl` a search needs, without the program: Jobs alone.

    Args:
        folder: the pod's service account.
        server: default: as Kubernetes tells every pod.

    Raises:
        UsageError: this is no pod with a service account.
    """

    def __init__(self, folder: Path = FOLDER, server: str | None = None) -> None:
        super().__init__(patience=OUTAGE_SECONDS)
        self._folder = folder
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{x}", "") for x in ("HOST", "PORT"))
        host = f"[{host}]" if ":" in host else host
        self._server = server or f"https://{host}:{port}"
        try:
            self._namespace = (folder / "namespace").read_text(encoding="utf-8").strip()
        except OSError as error:
            raise UsageError(
                f"--wave-job is for the search's own pod: {error.strerror}: {error.filename}; "
                "submit it with 'batchsweep launch k8s --search --driver --apply'"
            ) from None

    def items(self, kind: str, sweep: str) -> list[Object]:
        """The sweep's Jobs; of other kinds none, for it may not see them."""
        if kind != "jobs":
            return []
        query = urllib.parse.urlencode({"labelSelector": selector(sweep)})
        found = json.loads(self._patiently(lambda: self._request(f"?{query}")))
        return list(found["items"])

    def claims(self, sweep: str) -> list[Object]:
        """None: it may not see them."""
        return []

    def warnings(self) -> list[Object]:
        """None: it may not see them."""
        return []

    def apply(self, objects: Sequence[Object]) -> None:
        """Create Jobs; one that is there stays as it is."""
        for item in objects:
            self._patiently(partial(self._request, "", json.dumps(item)))

    def _request(self, query: str, body: str | None = None) -> str:
        url = f"{self._server}/apis/batch/v1/namespaces/{self._namespace}/jobs{query}"
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        # Read each time: it is replaced every hour.
        token = (self._folder / "token").read_text(encoding="utf-8").strip()
        headers["Authorization"] = f"Bearer {token}"
        data = None if body is None else body.encode()
        request = urllib.request.Request(url, data=data, headers=headers)
        context = None
        if url.startswith("https:"):
            context = ssl.create_default_context(cafile=str(self._folder / "ca.crt"))
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT, context=context) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")
            if error.code == 409 and body is not None:
                return said  # A request that was answered too late was made twice.
            message = f"the API server answers {error.code} to Jobs: {_message(said)}"
            away = error.code >= 500 or error.code == 429
            raise TryAgain(message) if away else UsageError(message) from None
        except OSError as error:
            raise TryAgain(f"the API server is away: {error}") from None


def _message(said: str) -> str:
    try:
        return str(json.loads(said)["message"])
    except (ValueError, KeyError, TypeError):
        return said[:200]
