"""The answer after the search: by another aggregate, after the top arms are scored in full.

And what most of its reward comes from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from batchsweep.bandit.policies import Answer, Candidate, Problem
from batchsweep.bandit.rewards import Floats, aggregate


def by_aggregate(answer: Answer, problem: Problem, plane_AT: Floats, how: str) -> Answer:
    """The best arm by an aggregate of the rewards [arm, task] that a policy believes in."""
    value = aggregate(plane_AT, how)
    arm = int(np.argmax(value))
    return replace(
        answer,
        arm=problem.arms[arm],
        mean=float(value[arm]),
        interval=(math.nan, math.nan),
        p_best=None,
        expected_regret=None,
        runners_up=(),
        mean_of=value,
        sd_of=np.full(len(value), np.nan),
        basis=f"{answer.basis}; searched by the mean, chosen by {how}, which has no interval",
    )


def after_full_check(
    answer: Answer,
    problem: Problem,
    plane_AT: Floats,
    checked: Mapping[int, Floats],
    how: str,
) -> tuple[Answer, Floats]:
    """The best of the arms that were scored in full, after a search on subsets of tasks.

    A subset may be easier than its task: each task's beliefs move by the checked arms' mean
    difference, so that the plane that is returned, and with it all means, are on the scale of whole
    tasks. Differences between arms are taken as they are, though a subset may stretch or, of a
    clustering, shrink them: z rewards count in units of the baseline's spread on subsets.

    What the search stated of the arm it put first stays as it was, because it is of differences
    between arms; of an arm that the check put first nothing was stated.

    Args:
        plane_AT: [arm, task] rewards that the policy believes in.
        checked: arm -> [task] rewards on whole tasks, best first; empty if there was no budget.
        how: the aggregate that chooses.
    """
    if not checked:
        basis = "all of it rests on subsets of the larger tasks: nothing was scored in full"
        return replace(answer, basis=f"{answer.basis}; {basis}"), plane_AT
    arms = list(checked)
    full = np.stack([checked[arm] for arm in arms])
    shift_T = (full - plane_AT[arms]).mean(axis=0)
    plane_AT = plane_AT + shift_T
    plane_AT[arms] = full
    value = aggregate(plane_AT, how)
    best = arms[int(np.argmax(value[arms]))]
    kept = problem.arms[best] == answer.arm
    shift = float(shift_T.mean())
    mean_of = answer.mean_of + shift if how == "mean" else value
    mean_of[arms] = value[arms]
    sd_of, pulled = answer.sd_of.copy(), answer.pulled.copy()
    sd_of[arms], pulled[arms] = 0.0, len(problem.tasks)
    names = {problem.arms[arm] for arm in arms}
    basis = (
        f"{answer.basis}; it searched on subsets of the larger tasks. Of the {len(arms)} top arms, "
        "which were then scored in full on all tasks, this one has the best mean, and that is the "
        "mean stated; "
    )
    if not kept:
        basis += f"the search itself had put {answer.arm} first, so that no P(best) is stated"
    elif answer.p_best is not None:
        basis += "P(best) and expected regret are the search's, from before that"
    else:
        basis += "the search had put it first too"
    moved = (
        Candidate(c.arm, c.mean + shift, (c.interval[0] + shift, c.interval[1] + shift), c.p_best)
        for c in answer.runners_up
        if c.arm not in names
    )
    mean = float(value[best])
    return (
        replace(
            answer,
            arm=problem.arms[best],
            mean=mean,
            interval=(mean, mean),
            p_best=answer.p_best if kept else None,
            expected_regret=answer.expected_regret if kept else None,
            runners_up=tuple(moved),
            mean_of=mean_of,
            sd_of=sd_of,
            pulled=pulled,
            basis=basis,
        ),
        plane_AT,
    )


def with_main_task(answer: Answer, problem: Problem, plane_AT: Floats) -> Answer:
    """The answer, whose basis says so if one task supplies most of the best arm's reward.

    Args:
        plane_AT: [arm, task] z rewards that the answer rests on.
    """
    reward_T = plane_AT[problem.arms.index(answer.arm)]
    task = int(np.argmax(reward_T))
    if len(reward_T) < 3 or reward_T[task] <= reward_T.sum() / 2:
        return answer
    without = float(np.delete(reward_T, task).mean())
    basis = (
        f"{answer.basis}; {problem.tasks[task]} alone supplies most of its reward "
        f"({reward_T[task]:+.2f}; the mean of the other tasks is {without:+.2f})"
    )
    return replace(answer, basis=basis)
