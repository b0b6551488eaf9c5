"""Exact search for the `size` of n rows that lie closest together, on n x n matrices alone.

Three measures of closeness: the diameter (MDA), the trace of the covariance (MVA) and its largest
eigenvalue (SMEA). Each has an oracle: given which rows are kept and which removed, is there a
subset at most this wide? The least width comes from asking for less until the answer is no; then
the rows are walked in order, and each is kept if some subset of that width still has it. What
remains is the lexicographically first of the best subsets.
"""

from __future__ import annotations

from collections.abc import Callable
from math import hypot, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastgar.cpu.bitsets import find_cover, pack
from fastgar.cpu.compile import jit

__all__ = [
    "NODE_LIMIT",
    "SearchLimit",
    "minimum_diameter_subset",
    "minimum_spectral_subset",
    "minimum_variance_subset",
]

NODE_LIMIT = 200_000  # about five seconds at n = 51
FREE, KEPT, REMOVED = 0, 1, 2  # what is decided of a row
TIE = 1e-12  # widths that differ by less, relatively, are equal: sums in different order do


Flags = NDArray[np.bool_]
Matrix = NDArray[np.float64]
Rows = NDArray[np.intp]
Status = NDArray[np.int8]
Find = Callable[[Status], "Flags | None"]  # from what is decided to a subset, if there is one


class SearchLimit(RuntimeError):
    """The search for the best subset was stopped before it was certain of it.

    Attributes
    ----------
    rule : str
        The rule that searches.
    n, f : int
        Rows, and how many of them the subset leaves out.
    nodes : int
        Branches tried.
    """

    def __init__(self, rule: str, n: int, f: int, nodes: int) -> None:
        self.rule, self.n, self.f, self.nodes = rule, n, f, nodes
        super().__init__(
            f"{rule} is exact, and {nodes} branches did not settle which {n - f} of {n} rows "
            f"(f = {f}) are best: pass a larger node_limit, declare a smaller f, or use a rule "
            "that does not search, such as 'nnm | trimmed_mean'"
        )

    def __reduce__(self) -> tuple[type[SearchLimit], tuple[str, int, int, int]]:
        return type(self), (self.rule, self.n, self.f, self.nodes)


class _Limit:
    """How many branches are left to one call."""

    def __init__(self, rule: str, n: int, size: int, node_limit: int) -> None:
        self.rule, self.n, self.f, self.limit, self.spent = rule, n, n - size, node_limit, 0

    @property
    def left(self) -> int:
        return self.limit - self.spent

    def spend(self, nodes: int) -> None:
        """Book the branches of one search; more than were left means that it was cut short."""
        self.spent += nodes
        if self.spent > self.limit:
            raise SearchLimit(self.rule, self.n, self.f, self.limit)


def _usable(allowed: Flags, size: int) -> Rows:
    """Return the indices of the rows that may be chosen, if there are enough."""
    n = allowed.size
    rows = np.flatnonzero(allowed)
    if not 1 <= size <= n:
        raise ValueError(f"a subset of {n} rows has between 1 and {n} of them, not {size}")
    if rows.size < size:
        raise ValueError(f"a subset of {size} rows needs as many usable ones, got {rows.size}")
    return rows


def _among(rows: Rows, matrix: Matrix) -> Matrix:
    """Return a copy of the entries between these rows, in the layout that is compiled for."""
    return np.ascontiguousarray(matrix[np.ix_(rows, rows)], np.float64)


def _first_in_order(subset: Flags, size: int, find: Find) -> Rows:
    """Return the lexicographically first `size` rows that are a subset of those `find` finds.

    `subset` is any of them: while it has the next row, nothing need be searched.
    """
    status = np.zeros(subset.size, np.int8)
    kept = 0
    for row in range(subset.size):
        status[row] = KEPT
        if not subset[row]:
            other = find(status)
            if other is None:
                status[row] = REMOVED
                continue
            subset = other
        kept += 1
        if kept == size:
            break
    return np.flatnonzero(status == KEPT)


def _within(D: Matrix, distance: float, size: int, limit: _Limit) -> Find:
    """Return the search for `size` rows of which no two are further apart than the distance.

    They exist if and only if some cover of the pairs that are holds no more rows than may go.
    """
    far = np.greater(D, distance)
    graph = pack(far)

    def find(status: Status) -> Flags | None:
        present, kept = status != REMOVED, status == KEPT
        covered = present & far[kept].any(axis=0)
        if covered[kept].any():
            return None
        budget = int(np.count_nonzero(present) - np.count_nonzero(covered)) - size
        cover, nodes = find_cover(graph, present & ~kept & ~covered, budget, limit.left)
        limit.spend(nodes)
        return None if cover is None else present & ~covered & ~cover

    return find


def minimum_diameter_subset(D: Matrix, size: int, node_limit: int = NODE_LIMIT) -> Rows:
    """Return the `size` rows with the least largest distance between two of them.

    Ties go to the lexicographically first set of indices; distances are compared as they are.

    Parameters
    ----------
    D : (n, n) float64
        Squared distances, symmetric. A row with an infinite diagonal entry is faulty and never
        chosen; a pair of other rows may be infinitely far apart.
    size : int
        Rows to choose, n - f.
    node_limit : int
        Branches that may be tried.

    Returns
    -------
    rows : (size,) int64
        Indices, ascending.

    Raises
    ------
    SearchLimit
        The limit was met.
    ValueError
        Fewer than `size` rows are usable.

    Notes
    -----
    As at least half of the rows stay, few pairs are far at the threshold that matters, and the
    reductions of `find_cover` leave little to branch on: under a millisecond at n = 100.
    """
    rows = _usable(np.isfinite(np.diagonal(D)), size)
    limit = _Limit("mda", len(D), size, node_limit)
    D = _among(rows, D)
    undecided = np.zeros(len(D), np.int8)
    distances = np.unique(np.append(D[np.triu_indices(len(D), 1)], 0.0))
    low, high, subset = 0, len(distances) - 1, np.ones(len(D), bool)
    while low < high:
        middle = (low + high) // 2
        found = _within(D, distances[middle], size, limit)(undecided)
        if found is None:
            low = middle + 1
        else:
            high, subset = middle, found
    find = _within(D, distances[high], size, limit)
    return rows[_first_in_order(subset, size, find)]


# Least variance. The cost of a subset is the sum of the squared distances inside it (its variance
# times size^2). Removing the set Q from all rows saves
#     sum over i in Q of (sums_i - sum over j in Q of split_ij),
# where sums_i is the sum of row i of D, and split any matrix with split_ij + split_ji = D_ij. So if
# row i alone could choose the other rows of Q it would save at most its `score`, sums_i minus its
# |Q| - 1 smallest split_ij, and the |Q| largest scores bound the saving from above. With the split
# that makes this bound least the gap is so small that most rows are decided without branching.


@jit
def _cost(D: Any, status: Any) -> Any:
    """Return the sum of the squared distances between the kept rows, in the order of indices."""
    total = 0.0
    for i in range(status.size):
        if status[i] == KEPT:
            for j in range(i + 1, status.size):
                if status[j] == KEPT:
                    total += D[i, j]
    return total


@jit
def _swap(D: Any, status: Any, sums: Any) -> None:
    """Exchange the kept and the removed row that lower the cost most, while any two do."""
    n = status.size
    while True:
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
        if leaves < 0:
            return
        status[leaves], status[enters] = REMOVED, KEPT


@jit
def _score(split: Any, order: Any, status: Any, sums: Any, removals: Any, score: Any) -> None:
    """Write the score of every free row, when `removals` of the free rows are to go."""
    for i in range(status.size):
        if status[i] == FREE:
            score[i], left, position = sums[i], removals - 1, 0
            while left > 0:
                j = order[i, position]
                position += 1
                if status[j] == FREE:
                    score[i] -= split[i, j]
                    left -= 1


@jit
def _largest(score: Any, status: Any, count: Any, top: Any) -> None:
    """Write the free rows with the `count` largest scores, in descending order."""
    found = 0
    for i in range(status.size):
        if status[i] == FREE and (found < count or score[i] > score[top[count - 1]]):
            found = min(found + 1, count)
            place = found - 1
            while place > 0 and score[top[place - 1]] < score[i]:
                top[place] = top[place - 1]
                place -= 1
            top[place] = i


@jit
def _sort(split: Any, order: Any) -> None:
    """Sort the neighbours of each row by its part of the distance: quick where little changed."""
    for i in range(len(split)):
        for a in range(1, order.shape[1]):
            j, place = order[i, a], a
            while place > 0 and split[i, order[i, place - 1]] > split[i, j]:
                order[i, place] = order[i, place - 1]
                place -= 1
            order[i, place] = j


@jit
def _balance(split: Any, order: Any, sums: Any, removals: Any, cost: Any, scratch: Any) -> None:
    """Shift the split towards the one with the least bound, and sort `order` by it.

    A hundred subgradient steps: where row i chose row j but not the other way round, i's part
    grows and j's shrinks, by Polyak's step length for a target at the known `cost`.
    """
    score, top, status, chosen = scratch  # all zeros: every row is free
    n = status.size
    total = 0.0
    for i in range(n):
        total += 0.5 * sums[i]
    pace = 1.5
    for step in range(1, 101):
        _sort(split, order)
        _score(split, order, status, sums, removals, score)
        _largest(score, status, removals, top)
        gap = cost - total
        for t in range(removals):
            gap += score[top[t]]
            for u in range(removals - 1):
                chosen[top[t], order[top[t], u]] = step
        pairs = 0
        for i in range(n):
            for j in range(i):
                pairs += (chosen[i, j] == step) != (chosen[j, i] == step)
        if gap <= TIE * cost or pairs == 0:
            return
        length = pace * gap / pairs
        pace *= 0.97
        for i in range(n):
            for j in range(i):
                if (chosen[i, j] == step) != (chosen[j, i] == step):
                    change = length if chosen[i, j] == step else -length
                    split[i, j] += change
                    split[j, i] -= change
    _sort(split, order)


@jit
def _remove(D: Any, status: Any, sums: Any, row: Any) -> Any:
    """Remove a row, and return what that saves."""
    status[row] = REMOVED
    for j in range(status.size):
        sums[j] -= D[row, j]
    return sums[row]


@jit
def _settle(
    problem: Any, status: Any, sums: Any, total: Any, removals: Any, most: Any, scratch: Any
) -> Any:
    """Decide the rows on which every subset of cost at most `most` agrees.

    Returns the cost of all rows still present, how many are yet to go (-1: there is no such
    subset) and the row to branch on (-1: all are decided).
    """
    D, split, order = problem
    score, top = scratch
    while True:
        free = 0
        for i in range(status.size):
            free += status[i] == FREE
        if removals < 0 or free < removals:
            return total, -1, -1
        if removals == 0 or free == removals:
            for i in range(status.size):
                if status[i] == FREE:
                    status[i] = KEPT if removals == 0 else REMOVED
            return total, 0, -1
        _score(split, order, status, sums, removals, score)
        _largest(score, status, removals + 1, top)
        slack = most - total
        for t in range(removals):
            slack += score[top[t]]
        if slack < 0:
            return total, -1, -1
        worst, next_worst = score[top[removals - 1]], score[top[removals]]
        changed = False
        for i in range(status.size):
            if status[i] == FREE and score[i] - next_worst > slack:  # staying costs too much
                total -= _remove(D, status, sums, i)
                removals -= 1
                changed = True
            elif status[i] == FREE and worst - score[i] > slack:  # going saves too little
                status[i] = KEPT
                changed = True
        if not changed:
            return total, removals, top[0]


@jit
def _lighter(problem: Any, levels: Any, most: Any, room: Any, node_limit: Any, scratch: Any) -> Any:
    """Search depth first for a subset of cost at most `most`; each level removes one more row.

    `room` is what rounding may have added to a bound. Returns whether there is such a subset
    (1, 0; -1: the limit came first), the branches tried, and the level of `states` that holds it.
    """
    D = problem[0]
    states, sums, totals, left, choices = levels
    level, nodes = 0, 0
    while True:
        state = states[level]
        totals[level], left[level], row = _settle(
            problem, state, sums[level], totals[level], left[level], most + room, scratch
        )
        if left[level] == 0 and _cost(D, state) <= most:
            return 1, nodes, level
        if left[level] > 0:  # first try without the row, and on return (below) with it
            nodes += 1
            if nodes > node_limit:
                return -1, nodes, level
            choices[level] = row
            for i in range(state.size):
                states[level + 1, i], sums[level + 1, i] = state[i], sums[level, i]
            totals[level + 1] = totals[level] - _remove(D, states[level + 1], sums[level + 1], row)
            left[level + 1] = left[level] - 1
            level += 1
        elif level == 0:
            return 0, nodes, level
        else:
            level -= 1
            states[level, choices[level]] = KEPT


def _ball(D: Matrix, size: int) -> Flags:
    """Return the flags of a row and the `size` - 1 nearest to it, for the row with least radius."""
    centre = np.argmin(np.partition(D, size - 1, axis=1)[:, size - 1])
    flags = np.zeros(len(D), bool)
    flags[np.argsort(D[centre], kind="stable")[:size]] = True
    return flags


def minimum_variance_subset(D: Matrix, size: int, node_limit: int = NODE_LIMIT) -> Rows:
    """Return the `size` rows with the least variance: the trace of their covariance.

    That is the least sum of squared distances inside the subset. Sums within a relative 1e-12 of
    the least are ties, of which the lexicographically first set of indices is taken. A subset with
    an infinitely far pair is worse than any without; where there are no others, the first rows are
    taken.

    Parameters, result and errors are those of `minimum_diameter_subset`. About 1 ms at n = 51,
    f = 12 and 5 ms at n = 100, f = 24, with or without an attack; up to 0.5 s at n = 100, f = 49.
    """
    rows = _usable(np.isfinite(np.diagonal(D)), size)
    limit = _Limit("mva", len(D), size, node_limit)
    D = _among(rows, D)
    n = len(D)
    removals = n - size
    if removals == 0:
        return rows
    subset = _ball(D, size)
    if np.isinf(D[np.ix_(subset, subset)]).any():
        finite = _within(D, np.finfo(float).max, size, limit)(np.zeros(n, np.int8))
        if finite is None:
            return rows[:size]
        subset = finite & (np.cumsum(finite) <= size)
    # In units of the widest pair no sum overflows, and cut off at twice the cost of a subset, which
    # rules out a pair as surely as its true distance, far rows take no digits from the near ones.
    unit = D[np.ix_(subset, subset)].max()
    with np.errstate(over="ignore"):
        D = np.ldexp(D, -np.frexp(unit)[1]) if unit > 0 else np.ceil(np.minimum(D, 1.0))
    status = np.where(subset, KEPT, REMOVED).astype(np.int8)
    D = np.minimum(D, max(2 * _cost(D, status), 1.0))
    score, top = np.zeros(n), np.zeros(n, np.int64)
    _swap(D, status, score)
    cost = _cost(D, status)
    split, order = D / 2, np.argsort(D + np.diag(np.full(n, np.inf)), axis=1)[:, : n - 1]
    undecided, chosen = np.zeros(n, np.int8), np.zeros((n, n), np.int8)
    _balance(split, order, D.sum(axis=1), removals, cost, (score, top, undecided, chosen))

    def search(status: Status, most: float) -> Status | None:
        present = status != REMOVED
        spare = np.count_nonzero(present) - size
        states, sums = np.zeros((spare + 2, n), np.int8), np.zeros((spare + 2, n))
        totals, left = np.zeros(spare + 2), np.zeros(spare + 2, np.int64)
        states[0], sums[0], left[0] = status, D[present].sum(axis=0), spare
        totals[0] = sums[0, present].sum() / 2
        levels = states, sums, totals, left, np.zeros(spare + 2, np.int64)
        room = 1e-15 * n * totals[0]
        found, nodes, level = _lighter(
            (D, split, order), levels, most, room, limit.left, (score, top)
        )
        limit.spend(nodes)
        return states[level] if found == 1 else None

    while cost > 0:
        found = search(undecided, cost * (1 - TIE))
        if found is None:
            break
        status = found
        _swap(D, status, score)
        cost = _cost(D, status)

    def find(status: Status) -> Flags | None:
        found = search(status, cost * (1 + TIE))
        return None if found is None else found == KEPT

    return rows[_first_in_order(status == KEPT, size, find)]


# Least largest eigenvalue. The scatter of a subset S is narrower than w in every direction if and
# only if z'(w I - G)z > 0 for all z != 0 that sum to 0, with G the Gram matrix of S about any
# point. About one of its own rows, the base, this says that M = w (I + 11') - G is positive
# definite on the other rows. Subsets inherit it. So the Schur complement A of the rows kept so far
# tells which others can still join (A_ii > 0) and how much of each other's room they take.


@jit
def _width(G: Any, M: Any) -> Any:
    """Return the largest eigenvalue of the scatter of rows whose Gram matrix about one more is G.

    Bisection with the same test as the search, so that both agree to the last few digits. M is
    scratch.
    """
    n = len(G)
    low, high = 0.0, 0.0
    for i in range(n):
        high += max(0.0, G[i, i])
    while high - low > 1e-14 * high:
        middle = 0.5 * (low + high)
        definite = True
        for i in range(n):
            for j in range(n):
                M[i, j] = middle - G[i, j]
            M[i, i] += middle
        for k in range(n):
            if M[k, k] <= 0:
                definite = False
                break
            for i in range(k + 1, n):
                share = M[i, k] / M[k, k]
                for j in range(k + 1, n):
                    M[i, j] -= share * M[k, j]
        if definite:
            high = middle
        else:
            low = middle
    return high


@jit
def _join(A: Any, status: Any, row: Any) -> None:
    """Keep a row, and make A the Schur complement for the rows that are free after it.

    Inner loops run over all columns, which is quicker than asking which are free: what stands in
    the others is never read.
    """
    status[row] = KEPT
    for i in range(status.size):
        if status[i] == FREE:
            share = A[i, row] / A[row, row]
            for j in range(status.size):
                A[i, j] -= share * A[row, j]


@jit
def _sift(A: Any, status: Any, left: Any) -> Any:
    """Remove the free rows that cannot join; `left` rows may go.

    Returns how many may go then, and the free row with the least A_ii (-1: none is free).
    """
    free, tightest = 0, -1
    for i in range(status.size):
        if status[i] == FREE and A[i, i] > 0:
            free += 1
            if tightest < 0 or A[i, i] < A[tightest, tightest]:
                tightest = i
        elif status[i] == FREE:
            status[i] = REMOVED
            left -= 1
    if free > left:
        return left, tightest
    for i in range(status.size):
        if status[i] == FREE:
            status[i] = REMOVED
    return left - free, -1


@jit
def _times(A: Any, status: Any, z: Any, Az: Any) -> Any:
    """Write A z for the free rows, and return z'Az."""
    n = status.size
    for j in range(n):
        Az[j] = 0.0
    for i in range(n):
        if status[i] == FREE:
            for j in range(n):
                Az[j] += z[i] * A[i, j]
    return _dot(status, z, Az)


@jit
def _dot(status: Any, a: Any, b: Any) -> Any:
    """Return the inner product over the free rows."""
    total = 0.0
    for i in range(status.size):
        if status[i] == FREE:
            total += a[i] * b[i]
    return total


@jit
def _descend(A: Any, status: Any, z: Any, Az: Any, r: Any, Ar: Any) -> Any:
    """Turn z towards the lowest eigenvector over the free rows, by a few steps; return z'Az."""
    n = status.size
    norm = sqrt(_dot(status, z, z))
    for i in range(n):
        z[i] = z[i] / norm if norm > 0 else 1.0
    total = _times(A, status, z, Az)
    for _ in range(3):
        norm = _dot(status, z, z)
        low = total / norm
        for i in range(n):
            r[i] = Az[i] - low * z[i]
        length = _dot(status, r, r)
        if length <= 1e-20 * low * low * norm:
            break
        # The best mixture of z and the residual r is the lower eigenvector of a 2 x 2 matrix.
        half = 0.5 * (_times(A, status, r, Ar) / length - low)
        turn = (half - hypot(half, sqrt(length / norm))) * norm / length
        for i in range(n):
            z[i] += turn * r[i]
            Az[i] += turn * Ar[i]
        total = _dot(status, z, Az)
    return total


@jit
def _agreed(A: Any, status: Any, left: Any, z: Any, scratch: Any) -> Any:
    """Keep the rows that all subsets hold; return how many (-1: there is no subset).

    A subset leaves out a set Q of `left` free rows, and needs z'Az > 0 for what remains of z. That
    is the sum of z_i A_ij z_j, less the rows and columns of Q, plus what was then taken twice: for
    each row of Q at most what it gains where it alone chooses the others.
    """
    n = status.size
    vectors, top = scratch
    gain, terms, Az = vectors[0], vectors[1], vectors[2]
    low = _descend(A, status, z, Az, gain, terms)
    if low >= 0:
        return 0
    if left == 0:
        return -1
    widest, poorest = 0.0, 0.0
    for i in range(n):
        if status[i] == FREE:
            widest = max(widest, A[i, i])
            gain[i] = z[i] * (A[i, i] * z[i] - 2 * Az[i])
            poorest = min(poorest, gain[i])
    room = 1e-12 * widest  # for rounding
    for paired in range(2):
        if paired and left > 1:
            for i in range(n):
                if status[i] == FREE:
                    for j in range(n):
                        terms[j] = z[i] * A[i, j] * z[j]
                    terms[i] = 0.0
                    _largest(terms, status, left - 1, top)
                    for t in range(left - 1):
                        gain[i] += max(0.0, terms[top[t]])
        _largest(gain, status, left, top)
        most = low
        for t in range(left):
            most += max(0.0, gain[top[t]])
        least = max(0.0, gain[top[left - 1]])
        if most - least + poorest >= -room:  # then no row is decided, paired or not
            return 0
    if most < -room:
        return -1
    agreed = 0
    for i in range(n):
        if status[i] == FREE and most - least + gain[i] < -room:
            if A[i, i] <= 0:
                return -1
            _join(A, status, i)
            agreed += 1
    return agreed


@jit
def _busiest(A: Any, status: Any, taken: Any) -> Any:
    """Return the free row that would take the largest shares of the others' room."""
    n = status.size
    for j in range(n):
        taken[j] = 0.0
    for i in range(n):
        if status[i] == FREE:
            for j in range(n):
                taken[j] += A[i, j] * A[i, j] / A[i, i]
    row = -1
    for i in range(n):
        if status[i] == FREE and (row < 0 or taken[i] * A[row, row] > taken[row] * A[i, i]):
            row = i
    return row


@jit
def _duplicate(source: Any, target: Any) -> None:
    """Copy number by number: assigning a slice would cost three more seconds of compilation."""
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j]


@jit
def _narrower(levels: Any, twins: Any, node_limit: Any, scratch: Any) -> Any:
    """Search depth first for rows on which M is positive definite; each level removes one more.

    The Schur complement of level i is matrices[source[i]]: its own once a row was kept there.
    Rows with the same number in `twins` are equal: without one, its twins need not be tried.
    Returns whether there are such rows (1, 0; -1: the limit came first), the branches tried, and
    the level of `states` that holds them.
    """
    matrices, source, states, vectors, left, choices = levels
    level, nodes = 0, 0
    while True:
        if source[level] != level:
            _duplicate(matrices[source[level]], matrices[level])
            source[level] = level
        A, state = matrices[level], states[level]
        left[level], row = _sift(A, state, left[level])
        if left[level] >= 0 and row < 0:
            return 1, nodes, level
        agreed = -1
        if left[level] >= 0:
            agreed = _agreed(A, state, left[level], vectors[level], scratch)
        if agreed > 0:
            continue
        if agreed == 0 and left[level] == 0:
            _join(A, state, row)
        elif agreed == 0:
            # First try without the row that takes most, and on return (below) with it.
            nodes += 1
            if nodes > node_limit:
                return -1, nodes, level
            row = choices[level] = _busiest(A, state, scratch[0][0])
            left[level + 1], source[level + 1] = left[level], source[level]
            for i in range(state.size):
                states[level + 1, i], vectors[level + 1, i] = state[i], vectors[level, i]
                if state[i] == FREE and twins[i] == twins[row]:
                    states[level + 1, i] = REMOVED
                    left[level + 1] -= 1
            level += 1
        elif level == 0:
            return 0, nodes, level
        else:
            level -= 1
            _join(matrices[level], states[level], choices[level])


def _about(base: np.intp, K: Matrix) -> Matrix:
    """Return the Gram matrix about one of the rows."""
    moved: Matrix = K - (K[base] + K[base][:, None]) + K[base, base]
    return moved


def _peel(K: Matrix, size: int) -> Flags:
    """Return the flags of `size` rows: the longest along the widest direction goes, and again."""
    rows = np.arange(len(K))
    while rows.size > size:
        G = K[np.ix_(rows, rows)]
        G = G - G.mean(axis=0)
        G -= G.mean(axis=1, keepdims=True)
        vector = G[:, np.argmax(np.diagonal(G))]
        for _ in range(20):
            longest = np.abs(vector).max()
            if longest == 0:
                break
            vector = G @ (vector / longest)
        length = np.abs(vector)
        rows = np.delete(rows, np.flatnonzero(length == length.max())[-1])
    return np.isin(np.arange(len(K)), rows)


def minimum_spectral_subset(
    K: Matrix, size: int, node_limit: int = NODE_LIMIT, allowed: Flags | None = None
) -> Rows:
    """Return the `size` rows whose covariance has the least largest eigenvalue.

    Eigenvalues within a relative 1e-12 of the least are ties, of which the lexicographically first
    set of indices is taken.

    Parameters
    ----------
    K : (n, n) float64
        Inner products of the rows about any point; its precision is best if that is near the rows
        that stay. Rows of infinite length are chosen only if there are too few others: then the
        first rows are.
    size, node_limit
        As in `minimum_diameter_subset`.
    allowed : (n,) bool, optional
        The rows that may be chosen; by default all. What K holds of the others is not read.

    Returns
    -------
    rows : (size,) int64
        Indices, ascending.

    Raises
    ------
    SearchLimit
        The limit was met.
    ValueError
        Fewer than `size` rows are allowed.

    Notes
    -----
    Up to 3 ms at n = 20, f = 4 and 0.1 s at n = 30, f = 8. At n = 51, f = 12 it takes from 2 ms to
    seconds, the less the more the rows to leave out stand out: where none do, and d is large, the
    search meets the limit.
    """
    n = len(K)
    rows = _usable(np.ones(n, bool) if allowed is None else np.asarray(allowed), size)
    limit = _Limit("smea", n, size, node_limit)
    finite = rows[np.isfinite(np.diagonal(K)[rows])]
    if finite.size < size or rows.size == size:
        return rows[:size]
    rows = finite
    K = np.ldexp(_among(rows, K), -20)  # so that no sum overflows
    n = len(K)
    subset = _peel(K, size)
    K = _about(np.argmax(subset), K)  # rounded here once, and hardly again
    D = np.diagonal(K)[:, None] + np.diagonal(K) - 2 * K
    # A row far from the others rules out the most, so it is the first base.
    bases = np.argsort(-np.partition(D, size - 1, axis=1)[:, :size].sum(axis=1), kind="stable")
    twins = np.unique(K, axis=0, return_inverse=True)[1].reshape(n)
    scratch = np.zeros((3, n)), np.zeros(n, np.int64)

    def search_with(base: np.intp, status: Status, width: float) -> Flags | None:
        left = n - size - np.count_nonzero(status == REMOVED)
        matrices = np.empty((left + 2, n, n))  # pages that are not written take no memory
        states, vectors = np.zeros((left + 2, n), np.int8), np.ones((left + 2, n))
        source, lefts, choices = np.zeros((3, left + 2), np.int64)
        matrices[0], states[0], lefts[0] = width - _about(base, K), status, left
        matrices[0, np.arange(n), np.arange(n)] += width
        kept = np.flatnonzero(status == KEPT)
        states[0, kept], states[0, base] = FREE, KEPT
        for row in kept[kept != base]:
            if matrices[0, row, row] <= 0:
                return None
            _join(matrices[0], states[0], row)
        levels = matrices, source, states, vectors, lefts, choices
        found, nodes, level = _narrower(levels, twins, limit.left, scratch)
        limit.spend(nodes)
        subset: Flags = states[level] == KEPT
        return subset if found == 1 else None

    def search(status: Status, width: float) -> Flags | None:
        kept = np.flatnonzero(status == KEPT)
        if kept.size:
            return search_with(kept[0], status, width)
        status = status.copy()
        for base in bases:
            if np.count_nonzero(status == REMOVED) > n - size:
                break
            if status[base] != REMOVED:
                found = search_with(base, status, width)
                if found is not None:
                    return found
                status[twins == twins[base]] = REMOVED
        return None

    def width(subset: Flags) -> float:
        base, *others = np.flatnonzero(subset)
        G = _about(base, K)[np.ix_(others, others)]
        return float(_width(G, np.empty_like(G)))

    least = width(subset)
    while least > 0:
        found = search(np.zeros(n, np.int8), least * (1 - TIE))
        if found is None or width(found) >= least:
            break
        subset, least = found, width(found)
    if least == 0:  # equal rows: two that differ are wider than this
        if not (D > 0).any():
            return rows[:size]
        least = D[D > 0].min() / 4
    return rows[_first_in_order(subset, size, lambda status: search(status, least * (1 + TIE)))]
