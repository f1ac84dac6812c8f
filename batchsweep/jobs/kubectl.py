"""The ``kubectl`` command: requests that are made again while the API server is away."""

from __future__ import annotations

import json
import logging
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from batchsweep.errors import TryAgain, UsageError
from batchsweep.jobs.kubernetes_objects import Object

logger = logging.getLogger(__name__)

POLL_SECONDS = 10.0

#: How long a sweep that is being submitted or followed waits for an API server that is away.
OUTAGE_SECONDS = 900.0

#: What kubectl says of a server, or of a proxy before it, that may be back in a while.
_AWAY = re.compile(
    r"unable to connect|connection refused|was refused|connection reset|no route to host"
    r"|network is unreachable|no such host|timed? ?out|deadline exceeded|TLS handshake|\bEOF\b"
    r"|unable to handle the request|ServiceUnavailable|\b50[234]\b|Too ?Many ?Requests|etcdserver"
    r"|http2: |apiserver not ready|leader changed|failed to download openapi",
    re.IGNORECASE,
)


class Kubectl:
    """The ``kubectl`` command, set to one namespace.

    Args:
        namespace: None: the one that kubectl is set to.
        patience: seconds for which a request is made again while the server is away. All
            requests here may be made twice.
        poll: seconds between two requests, also where something is waited for; default:
            :data:`POLL_SECONDS`.
    """

    def __init__(
        self,
        namespace: str | None = None,
        *,
        command: str = "kubectl",
        patience: float = 0.0,
        poll: float | None = None,
    ) -> None:
        self.command = [command, *(["--namespace", namespace] if namespace else [])]
        self.patience = patience
        self.poll = POLL_SECONDS if poll is None else poll

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Its standard output.

        Raises:
            UsageError: there is no kubectl, it knows no cluster, or that refused the request.
            TryAgain: the cluster didn't answer, for as long as ``patience``.
        """
        return self._patiently(lambda: self._once(arguments, stdin))

    def _patiently(self, request: Callable[[], str]) -> str:
        until = time.monotonic() + self.patience
        while True:
            try:
                return request()
            except TryAgain as error:
                if time.monotonic() >= until:
                    raise
                logger.warning("%s; trying again in %g s", error, self.poll)
            time.sleep(self.poll)

    def _once(self, arguments: Sequence[str], stdin: str | None) -> str:
        try:
            done = subprocess.run(
                [*self.command, *arguments], input=stdin, capture_output=True, text=True
            )
        except FileNotFoundError:
            raise UsageError(
                "no kubectl on the PATH; without --apply the objects are printed, and "
                "'kubectl apply -f -' takes them elsewhere"
            ) from None
        if done.returncode == 0:
            return done.stdout
        errors = done.stderr.strip()
        message = f"kubectl {' '.join(arguments[:2])}: "
        message += (errors.splitlines() or [f"exit {done.returncode}"])[-1]
        if "localhost:8080" in errors:  # Where kubectl looks when nobody told it about a cluster.
            raise UsageError(f"{message}; kubectl knows no cluster: set KUBECONFIG or its context")
        raise TryAgain(message) if _AWAY.search(errors) else UsageError(message)

    def items(self, kind: str, sweep: str) -> list[Object]:
        """The sweep's objects of a kind."""
        return self._listed(kind, "-l", selector(sweep))

    def claims(self, sweep: str) -> list[Object]:
        """The sweep's volume claims; none where they may not be read."""
        return self._if_allowed("persistentvolumeclaims", "-l", selector(sweep))

    def warnings(self) -> list[Object]:
        """The namespace's warning events; none where they may not be read."""
        return self._if_allowed("events", "--field-selector", "type=Warning")

    def _if_allowed(self, kind: str, *which: str) -> list[Object]:
        try:
            return self._listed(kind, *which)
        except UsageError as error:
            logger.debug("%s", error)
            return []

    def _listed(self, kind: str, *which: str) -> list[Object]:
        found: dict[str, Any] = json.loads(self.run("get", kind, *which, "-o", "json"))
        return list(found["items"])

    def apply(self, objects: Sequence[Object]) -> None:
        self.run("apply", "-f", "-", stdin="\n".join(map(json.dumps, objects)))

    def delete_job(self, name: str) -> None:
        """Delete a Job with its pods, and wait until they are gone; none there is no error."""
        self.run("delete", "job", name, "--wait=true", "--cascade=foreground", "--ignore-not-found")

    def change(self, name: str, spec: Object) -> None:
        """Lay this over a Job's spec."""
        self.run("patch", "job", name, "-p", json.dumps({"spec": spec}))

    def release(self, name: str) -> None:
        """Let a suspended Job start its pods."""
        self.run("patch", "job", name, "--type=merge", "-p", '{"spec":{"suspend":false}}')


def selector(sweep: str) -> str:
    """The labels that all objects of a sweep have."""
    return f"app.kubernetes.io/name=batchsweep,app.kubernetes.io/instance={sweep}"


@dataclass(frozen=True)
class Commands:
    """What the user is told to type: complete, and quoted for a shell."""

    config_path: str
    namespace: str | None

    def launch(self, *more: str) -> str:
        """A call of ``batchsweep launch k8s``; all other options are remembered in the cluster."""
        return shlex.join(
            ["batchsweep", "launch", "k8s", "--config", self.config_path, *self._there(), *more]
        )

    def kubectl(self, *words: str) -> str:
        """A call of ``kubectl``."""
        return shlex.join(["kubectl", *self._there(), *words])

    def _there(self) -> list[str]:
        return ["--namespace", self.namespace] if self.namespace else []
