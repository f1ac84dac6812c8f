"""What each exit code of a worker means for its index: the one table of retry rules.

``launch local`` and ``launch docker`` act by it, Kubernetes gets it as a ``podFailurePolicy``, and
Slurm and rented machines as the cases of a shell script.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from batchsweep.errors import IndexFailed, StoreError, Terminated, TryAgain, UsageError

Action = Literal["done", "fail job", "fail index", "go on", "retry"]

#: Retries that an index gets (Kubernetes: ``backoffLimitPerIndex``).
RETRIES = 3


@dataclass(frozen=True)
class Rule:
    """What to do after these exit codes."""

    action: Action
    """``fail job``: no index can succeed, stop them all. ``fail index``: this one never will.
    ``go on``: start it again, and don't count it. ``retry``: start it again, while retries last."""
    exit_codes: tuple[int, ...]
    why: str


RULES = (
    Rule("fail job", (UsageError.exit_code,), "wrong usage or config: every index would fail"),
    Rule(
        "fail index",
        (IndexFailed.exit_code, StoreError.exit_code),
        "this index can't succeed; the others may",
    ),
    Rule("go on", (Terminated.exit_code,), "told to stop, sealed what it had: no fault of its own"),
    Rule("retry", (TryAgain.exit_code,), "a passing fault: network, busy index"),
)


def action_of(exit_code: int) -> Action:
    """The rule for an exit code; a code that no rule names (137: out of memory) is retried.

    Example:
        >>> action_of(4), action_of(137)
        ('fail index', 'retry')
    """
    if exit_code == 0:
        return "done"
    return next((rule.action for rule in RULES if exit_code in rule.exit_codes), "retry")


def retry_delay(retries: int) -> float:
    """Seconds before the n-th retry (from 1): 10, 20, 40 ... up to 6 minutes, as in Kubernetes."""
    return float(min(10 * 2 ** (retries - 1), 360))


def max_failed_indexes(indexes: int) -> int:
    """How many indexes may fail before the whole job does: a quarter, and at least one.

    More than that is no longer a matter of single checkpoints, and the GPUs are wanted elsewhere.
    """
    return max(1, indexes // 4)


def shell_cases(actions: Mapping[Action, str], *, indent: str) -> str:
    """The table as the cases of a shell script's ``case $code in``, each with its action."""
    return "\n".join(
        f"{indent}{'|'.join(map(str, sorted(rule.exit_codes)))}) {actions[rule.action]} ;;  "
        f"# {rule.why}"
        for rule in RULES
    )


def pod_failure_policy(*, indexed: bool) -> dict[str, Any]:
    """The table as a Kubernetes ``podFailurePolicy``.

    Codes that no rule names fall through to Kubernetes' own counting of retries. Without
    ``indexed``, an index that can't succeed is the whole Job.
    """
    actions = {
        "fail job": "FailJob",
        "fail index": "FailIndex" if indexed else "FailJob",
        "go on": "Ignore",
        "retry": "Count",
    }
    # First, whatever the exit code: being evicted or preempted isn't the index's fault (137 then
    # says that the grace period ran out). A code that condemns comes back from the replacement.
    disrupted = {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    by_code = [
        {
            "action": actions[rule.action],
            "onExitCodes": {"operator": "In", "values": sorted(rule.exit_codes)},
        }
        for rule in RULES
    ]
    return {"rules": [disrupted, *by_code]}
