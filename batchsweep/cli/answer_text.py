"""The answer of a search as people read it."""

from __future__ import annotations

import numpy as np

from batchsweep.arm import Arm
from batchsweep.bandit.outcome import Outcome
from batchsweep.bandit.rewards import Floats
from batchsweep.plan.plan import Plan, PlanEntry


def summary(outcome: Outcome, plan: Plan) -> str:
    """The answer as people read it: a few lines."""
    answer = outcome.answer
    lines = [f"best arm: {_named(answer.arm, plan)}"]
    interval = ""
    low, high = answer.interval
    if np.isfinite(low) and high > low:  # A mean that was measured in full has none.
        interval = f", 95 % between {low:.4f} and {high:.4f}"
    lines.append(f"  reward {answer.mean:.4f}{interval}: {outcome.reward}")
    if answer.p_best is not None:
        lines.append(f"  P(best) {answer.p_best:.2f}, expected regret {answer.expected_regret:.5f}")
    arm = outcome.problem.arms.index(answer.arm)
    measured = int(answer.pulled[arm])
    full = " in full" if answer.arm in outcome.checked else ""
    lines.append(
        f"  mean main score {outcome.plane[arm].mean():.4f}, scored{full} on {measured} of "
        f"{len(outcome.problem.tasks)} tasks"
    )
    if answer.runners_up:
        lines.append("can't be told apart from it:")
        lines += [
            f"  {_named(c.arm, plan)}: {c.mean:.4f}"
            + (f", P(best) {c.p_best:.2f}" if c.p_best is not None else "")
            for c in answer.runners_up[:5]
        ]
    exhaustive = len(outcome.problem.arms) * len(outcome.problem.tasks)
    lines.append(
        f"pulls: {outcome.pulls} of the exhaustive {exhaustive} "
        f"({100 * outcome.pulls / exhaustive:.1f} %), {outcome.seconds:.1f} s of scoring; "
        f"stopped: {outcome.stopped}, {100 * outcome.left:.0f} % of the budget left"
    )
    if outcome.texts_per_pull is not None:
        lines.append(_subsets(outcome.texts_per_pull, outcome.noise))
    lines.append(answer.basis)
    return "\n".join(lines)


def _subsets(texts: int, noise: Floats) -> str:
    """What a pull scored, and how noisy that was."""
    divided = noise[noise > 0]
    if not len(divided):
        return f"each pull: a whole task, none has more than {texts:,} texts"
    whole = len(noise) - len(divided)
    others = f" ({whole} smaller tasks: whole, without noise)" if whole else ""
    return (
        f"each pull: {texts:,} texts of a task; measured noise: median "
        f"{100 * np.median(divided):.2f} points{others}"
    )


def _named(arm: str, plan: Plan) -> str:
    """An arm with the other names of its weights."""
    entry: PlanEntry | None = next((e for e in plan.entries if e.key == Arm.parse(arm).key), None)
    aliases = entry.checkpoint.aliases if entry is not None else ()
    return arm + (f" (the same weights as {', '.join(aliases)})" if aliases else "")
