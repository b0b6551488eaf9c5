"""Exact search for the subset of rows with the least variance (MVA).

The cost of a subset is the sum of the squared distances inside it (its variance
times size^2). Removing the set Q from all rows saves
    sum over i in Q of (sums_i - sum over j in Q of split_ij),
where sums_i is the sum of row i of D, and split any matrix with split_ij + split_ji = D_ij. So if
row i alone could choose the other rows of Q it would save at most its `score`, sums_i minus its
|Q| - 1 smallest split_ij, and the |Q| largest scores bound the saving from above. With the split
that makes this bound least the gap is so small that most rows are decided without branching.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastgar.cpu.compile import SHORT, Tiered, step
from fastgar.search import WORK_LIMIT
from fastgar.search.diameter import within
from fastgar.search.subsets import (
    CLOSEST,
    FREE,
    KEPT,
    REMOVED,
    SLICE,
    SUMMABLE,
    TIE,
    Flags,
    Limit,
    Matrix,
    Rows,
    Status,
    among,
    ball,
    every,
    first_in_order,
    largest,
    least_variance,
    mean_squares,
    usable,
)

__all__ = ["minimum_variance_subset"]


@step
def _cost(D: Any, status: Any) -> Any:
    """Return the sum of the squared distances between the kept rows, in the order of indices."""
    total = 0.0
    for i in range(status.size):
        if status[i] == KEPT:
            for j in range(i + 1, status.size):
                if status[j] == KEPT:
                    total += D[i, j]
    return total


@step
def _swap(D: Any, status: Any, sums: Any, budget: Any) -> Any:
    """Exchange the kept and the removed row that lower the cost most, while any two do.

    Returns the work, which stops at the budget.
    """
    n, work = status.size, 0
    while True:
        work += 3 * n * n
        for i in range(n):
            sums[i] = 0.0
            for j in range(n):
                if status[j] == KEPT:
                    sums[i] += D[i, j]
        best, leaves, enters = 0.0, -1, -1
        for i in range(n):
            if status[i] == KEPT:
                for j in range(n):
                    gain = sums[i] - sums[j] + D[i, j]
                    if status[j] == REMOVED and gain > best + TIE * sums[i]:
                        best, leaves, enters = gain, i, j
        if leaves < 0 or work >= budget:
            return work
        status[leaves], status[enters] = REMOVED, KEPT


@step
def _score(split: Any, order: Any, status: Any, sums: Any, removals: Any, score: Any) -> Any:
    """Write the score of every free row, if `removals` of them are to go; return the work."""
    work = status.size
    for i in range(status.size):
        if status[i] == FREE:
            score[i], left, position = sums[i], removals - 1, 0
            while left > 0:
                j = order[i, position]
                position += 1
                if status[j] == FREE:
                    score[i] -= split[i, j]
                    left -= 1
            work += 2 * position
    return work


@step
def _shift(
    split: Any, order: Any, sums: Any, removals: Any, cost: Any, turn: Any, pace: Any, scratch: Any
) -> Any:
    """Take step number `turn` towards the split with the least bound, and sort `order` by it.

    A subgradient step: where row i chose row j but not the other way round, i's part grows and j's
    shrinks, by `pace` of Polyak's step length for a target at the known `cost`. `order` comes
    sorted. Returns by how much the least cost may be below that, by the split before; the work;
    and whether another step may help.
    """
    score, top, status, chosen = scratch  # all zeros at first: every row is free
    n = status.size
    work = _score(split, order, status, sums, removals, score)
    work += largest(score, status, removals, top) + 6 * removals * removals
    gap = cost
    for i in range(n):
        gap -= 0.5 * sums[i]
    for t in range(removals):
        gap += score[top[t]]
        for u in range(removals - 1):
            chosen[top[t], order[top[t], u]] = turn
    pairs = 0
    for t in range(removals):
        for u in range(removals - 1):
            pairs += chosen[order[top[t], u], top[t]] != turn
    if gap <= TIE * cost or pairs == 0:
        return gap, work, False
    length = pace * gap / pairs
    for t in range(removals):
        for u in range(removals - 1):
            i, j = top[t], order[top[t], u]
            if chosen[j, i] != turn:
                split[i, j] += length
                split[j, i] -= length
    for i in range(n):
        for a in range(1, n - 1):
            j, place = order[i, a], a
            while place > 0 and split[i, order[i, place - 1]] > split[i, j]:
                order[i, place] = order[i, place - 1]
                place -= 1
                work += 1
            order[i, place] = j
    return gap, work + 2 * n * n, True


@step
def _remove(D: Any, status: Any, sums: Any, row: Any) -> Any:
    """Remove a row, and return what that saves."""
    status[row] = REMOVED
    for j in range(status.size):
        sums[j] -= D[row, j]
    return sums[row]


@step
def _settle(
    problem: Any, status: Any, sums: Any, total: Any, removals: Any, most: Any, scratch: Any
) -> Any:
    """Decide the rows on which every subset of cost at most `most` agrees.

    Returns the cost of all rows still present, how many are yet to go (-1: there is no such
    subset), the row to branch on (-1: all are decided) and the work.
    """
    D, split, order = problem
    score, top = scratch
    work = 0
    while True:
        free = 0
        for i in range(status.size):
            free += status[i] == FREE
        if removals < 0 or free < removals:
            return total, -1, -1, work
        if removals == 0 or free == removals:
            for i in range(status.size):
                if status[i] == FREE:
                    status[i] = KEPT if removals == 0 else REMOVED
            return total, 0, -1, work
        work += _score(split, order, status, sums, removals, score)
        work += largest(score, status, removals + 1, top) + 4 * status.size
        slack = most - total
        for t in range(removals):
            slack += score[top[t]]
        if slack < 0:
            return total, -1, -1, work
        worst, next_worst = score[top[removals - 1]], score[top[removals]]
        changed = False
        for i in range(status.size):
            if status[i] == FREE and score[i] - next_worst > slack:  # staying costs too much
                total -= _remove(D, status, sums, i)
                removals -= 1
                work += status.size
                changed = True
            elif status[i] == FREE and worst - score[i] > slack:  # going saves too little
                status[i] = KEPT
                changed = True
        if not changed:
            return total, removals, top[0], work


@step
def _lighter(
    D: Any, split: Any, order: Any, levels: Any, level: Any, most: Any, room: Any, budget: Any,
    scratch: Any,
) -> Any:  # fmt: skip
    """Search depth first for a subset of cost at most `most`; each level removes one more row.

    `room` is what rounding may have added to a bound. Called again at the level that it returned,
    it goes on where the budget stopped it. Returns whether there is such a subset (1, 0; -1: the
    budget was spent first), the work, and the level of `states` that holds it.
    """
    states, sums, totals, left, choices = levels
    problem, work = (D, split, order), 0
    while work < budget:
        state = states[level]
        totals[level], left[level], row, settling = _settle(
            problem, state, sums[level], totals[level], left[level], most + room, scratch
        )
        work += settling + 4 * state.size
        if left[level] == 0:
            work += state.size * state.size
            if _cost(D, state) <= most:
                return 1, work, level
        if left[level] > 0:  # first try without the row, and on return (below) with it
            choices[level] = row
            for i in range(state.size):
                states[level + 1, i], sums[level + 1, i] = state[i], sums[level, i]
            totals[level + 1] = totals[level] - _remove(D, states[level + 1], sums[level + 1], row)
            left[level + 1] = left[level] - 1
            level += 1
        elif level == 0:
            return 0, work, level
        else:
            level -= 1
            states[level, choices[level]] = KEPT
    return -1, work, level


COST = Tiered(_cost, *SHORT)
SWAP = Tiered(_swap, 0.0, 0.01)
SHIFT = Tiered(_shift, 0.0, 0.05)
LIGHTER = Tiered(_lighter)


def minimum_variance_subset(D: Matrix, size: int, work_limit: int = WORK_LIMIT) -> Rows:
    """Return the `size` rows with the least variance: the trace of their covariance.

    That is the least sum of squared distances inside the subset. Sums within a relative 1e-12 of
    the least are ties, of which the lexicographically first set of indices is taken. A subset with
    an infinitely far pair is worse than any without; where there are no others, the first rows are
    taken.

    Parameters, result and errors are those of `minimum_diameter_subset`. Where no row stands out,
    or one far group does, it takes about 3 ms at n = 51, f = 12 and 5 ms at n = 100, f = 24; but
    who chooses f of the rows can have it meet any limit.

    Notes
    -----
    The search starts at the `size` rows nearest to the row for which their mean squared distance to
    it is least. Their variance is at most that, and `least_variance` at least half of it: it is at
    most twice the least.
    """
    rows = usable(np.isfinite(np.diagonal(D)), size)
    limit = Limit("mva", len(D), size, work_limit)
    D = among(rows, D)
    n = len(D)
    removals = n - size
    if removals == 0:
        return rows
    subsets = every(n, size)
    if subsets is not None and D.max() < SUMMABLE:
        best: Rows = subsets[CLOSEST(D, subsets, True, np.empty(len(subsets)))]
        return rows[best]
    squares = mean_squares(D, size)
    subset = ball(D, squares, size)
    limit.found(rows[subset], np.inf)
    limit.bound = least_variance(squares, size)
    if np.isinf(D[np.ix_(subset, subset)]).any():
        finite = within(D, np.finfo(float).max, size, limit)(np.zeros(n, np.int8))
        if finite is None:
            return rows[:size]
        subset = finite & (np.cumsum(finite) <= size)
    # In units of the widest pair no sum overflows, and cut off at twice the cost of a subset, which
    # rules out a pair as surely as its true distance, far rows take no digits from the near ones.
    unit = D[np.ix_(subset, subset)].max()
    exponent = np.frexp(unit)[1]
    with np.errstate(over="ignore"):
        D = np.ldexp(D, -exponent) if unit > 0 else np.ceil(np.minimum(D, 1.0))
    status = np.where(subset, KEPT, REMOVED).astype(np.int8)
    D = np.minimum(D, max(2 * COST(D, status), 1.0))
    score, top = np.zeros(n), np.zeros(n, np.int64)

    def variance(cost: float) -> float:
        return float(np.ldexp(cost / size**2, exponent))

    def improve(status: Status) -> float:
        """Exchange rows until that does not help, and return the cost."""
        work = SWAP(D, status, score, limit.left)
        cost = float(COST(D, status))
        limit.found(rows[status == KEPT], variance(cost))
        limit.spend(work)
        return cost

    cost = improve(status)
    by_distance = np.argsort(D + np.diag(np.full(n, np.inf)), axis=1, kind="stable")
    split, order = D / 2, by_distance[:, : n - 1]
    undecided, chosen = np.zeros(n, np.int8), np.zeros((n, n), np.int8)
    sums, scratch = D.sum(axis=1), (score, top, undecided, chosen)
    room = 1e-15 * n  # what rounding may have added to a bound, in parts of the sum of D
    pace, more, turn = 1.5, True, 0
    while more and turn < 100:
        turn += 1
        gap, work, more = SHIFT(split, order, sums, removals, cost, turn, pace, scratch)
        limit.bound = max(limit.bound, variance(cost - gap - room * sums.sum()))
        limit.spend(work)
        pace *= 0.97

    def search(status: Status, most: float) -> Status | None:
        present = status != REMOVED
        spare = np.count_nonzero(present) - size
        states, sums = np.zeros((spare + 2, n), np.int8), np.zeros((spare + 2, n))
        totals, left = np.zeros(spare + 2), np.zeros(spare + 2, np.int64)
        states[0], sums[0], left[0] = status, D[present].sum(axis=0), spare
        totals[0] = sums[0, present].sum() / 2
        levels = states, sums, totals, left, np.zeros(spare + 2, np.int64)
        limit.spend(n * n)
        found, level = -1, 0
        while found < 0:
            budget = min(SLICE, limit.left)
            found, work, level = LIGHTER(
                D, split, order, levels, level, most, room * totals[0], budget, (score, top)
            )
            limit.spend(work)
        return states[level] if found == 1 else None

    while cost > 0:
        found = search(undecided, cost * (1 - TIE))
        if found is None:
            break
        status = found
        cost = improve(status)
    limit.bound = limit.value

    def find(status: Status) -> Flags | None:
        found = search(status, cost * (1 + TIE))
        return None if found is None else found == KEPT

    return rows[first_in_order(status == KEPT, size, find)]
