"""Attacks that send copies of one honest row, and so give it too much weight."""

from __future__ import annotations

from typing import Any

import numpy as np

from .registry import register
from .rows import copy
from .trial import ByDistances, ByRows, distances, target
from .view import View

__all__ = ["mimic", "mimic_heuristic"]


@register()
def mimic(honest: Any, q: int, *, view: View | None = None) -> Any:
    """Send copies of the honest row whose copies move the aggregate farthest from the honest mean.

    No rule can tell such attackers from honest workers; it hurts where workers differ.

    View
    ----
    With the rule, which is tried for every row. Without a rule, the row that is farthest from
    the mean is sent (which is what hurts averaging most).

    Returns
    -------
    array, shape (...)
        Of equally harmful rows the first.

    Notes
    -----
    Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
    ICLR 2022, section 3.2, where one worker is copied in all steps. For distance rules the rows
    are read once, for their distances.

    Examples
    --------
    >>> import numpy as np
    >>> mimic(np.array([[1.0], [2.0], [6.0]]))
    array([6.])
    """
    h = len(honest)
    mean = honest.mean(0)
    if view is None or view.rule is None:
        D = distances(honest, mean)
        return copy(honest[int(D[:h, h].argmax())])
    rows = ByRows(honest, mean, target("mimic", honest, view))
    near = ByDistances(honest, (), view) if ByDistances.can(view.rule) else None
    harm = np.zeros(h)
    for i in range(h):
        found = None if near is None else near.deviation(np.eye(near.points)[i])
        harm[i] = rows.deviation(honest[i]) if found is None else found
    return copy(honest[int(np.nan_to_num(harm).argmax())])


@register()
def mimic_heuristic(honest: Any, q: int) -> Any:
    """Send copies of the honest row that is farthest out along the direction of most variance.

    Notes
    -----
    Karimireddy, He and Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
    ICLR 2022, section 3.2. There the direction is learnt over the first steps and then one worker
    is copied for good; here both follow from this step's rows alone, from their distances (the
    direction is an eigenvector of h x h inner products, found exactly).

    Examples
    --------
    >>> import numpy as np
    >>> mimic_heuristic(np.array([[0.0, 1.0], [0.0, -1.0], [5.0, 0.0], [-4.0, 0.0]]))
    array([5., 0.])
    """
    D = distances(honest)
    if not np.isfinite(D).all():
        return copy(honest[0])  # nothing to compare
    to_mean = D.mean(axis=0)
    gram = 0.5 * (to_mean + to_mean[:, None] - D - to_mean.mean())
    _, vectors = np.linalg.eigh(gram)
    out = np.abs(vectors[:, -1])  # in proportion to the projections on the direction
    return copy(honest[int(out.argmax())])
