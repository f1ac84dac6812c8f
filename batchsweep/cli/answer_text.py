"""The answer of a search as people read it."""

from __future__ import annotations

import numpy as np

from batchsweep.arm import Arm
from batchsweep.bandit.outcome import Outcome
from batchsweep.bandit.rewards import Floats
from batchsweep.plan.plan import Plan

#: Arms that are listed of those that can't be told apart.
LISTED = 5
#: A search was too small to say anything if P(best) is below the one, and the expected regret above
#: the other, in mean main score; or if it scored less than a cell per task.
UNLIKELY, MUCH = 0.05, 0.005


def summary(outcome: Outcome, plan: Plan) -> str:
    """The answer as people read it: a few lines, regret and means in units of the main score."""
    answer, problem = outcome.answer, outcome.problem
    arm = problem.arms.index(answer.arm)
    means = outcome.plane.mean(axis=1)
    measured = int(answer.pulled[arm])
    full = " in full" if answer.arm in outcome.checked else ""
    low, high = answer.interval
    interval = ""
    if np.isfinite(low) and high > low:  # A mean that was measured in full has none.
        interval = f", 95 % between {low:.4f} and {high:.4f}"
    plain = outcome.scale.kind == "raw" and outcome.reward.startswith("mean over")
    lines = [
        f"best arm: {_named(answer.arm, plan)}",
        f"  mean main score {means[arm]:.4f}{interval if plain else ''}, scored{full} on "
        f"{measured} of {len(problem.tasks)} tasks",
        f"  reward{'' if plain else f' {answer.mean:.4f}{interval}'}: {outcome.reward}",
    ]
    regret = answer.expected_regret
    if answer.p_best is not None and regret is not None:
        points = 100 * regret / outcome.scale.unit
        lines.append(
            f"  P(best) {_probability(answer.p_best)}, expected regret {points:.3f} points of "
            "main score"
        )
    if _too_small(outcome):
        lines.append(
            f"the search was too small to tell the arms apart: {outcome.budget.spent_pulls} of "
            f"{outcome.plane.size} cells; take the answer as a guess, or give a larger "
            "bandit.budget"
        )
    if answer.runners_up:
        lines.append("can't be told apart from it:")
        for one in answer.runners_up[:LISTED]:
            mean = means[problem.arms.index(one.arm)]
            sure = "" if one.p_best is None else f", P(best) {_probability(one.p_best)}"
            lines.append(f"  {_named(one.arm, plan)}: {mean:.4f}{sure}")
        if len(answer.runners_up) > LISTED:
            lines.append(f"  and {len(answer.runners_up) - LISTED} more")
    exhaustive = outcome.plane.size
    lines.append(
        f"pulls: {outcome.budget.spent_pulls} of the exhaustive {exhaustive} "
        f"({100 * outcome.budget.spent_pulls / exhaustive:.1f} %), "
        f"{outcome.budget.spent_seconds:.1f} s of scoring; stopped: {outcome.stopped}, "
        f"{100 * outcome.budget.left:.0f} % of the budget left"
    )
    if imported := sum(one.kind == "imported" for one in outcome.observations):
        lines.append(f"{imported} more cells were imported and cost nothing")
    if outcome.texts_per_pull is not None:
        lines.append(_subsets(outcome.texts_per_pull, outcome.noise))
    lines.append(answer.basis)
    return "\n".join(lines)


def _too_small(outcome: Outcome) -> bool:
    answer = outcome.answer
    if answer.p_best is None or answer.expected_regret is None:
        return 0 < outcome.budget.spent_pulls < len(outcome.problem.tasks)
    return answer.p_best < UNLIKELY and answer.expected_regret / outcome.scale.unit > MUCH


def _probability(p: float) -> str:
    """Never certainty, either way, from a model's draws."""
    return "below 0.01" if p < 0.01 else "above 0.99" if 0.99 < p < 1 else f"{p:.2f}"


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
    entry = plan.entry_of(Arm.parse(arm).key)
    aliases = entry.checkpoint.aliases if entry is not None else ()
    return arm + (f" (the same weights as {', '.join(aliases)})" if aliases else "")
