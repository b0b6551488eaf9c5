"""What Byzantine workers send: formulas on the honest rows, and attacks by name.

Each attack is a function of the honest rows, an (h, ...) array of numpy, torch, jax or another
library with their operators, and of the number of attackers. It returns the one row that all
attackers send, or a row for each of them, in the library and dtype of the honest rows.

>>> import numpy as np
>>> honest = np.array([[1.0, 2.0], [3.0, 2.0]])
>>> empire(honest, q=1, k=2)
array([-2., -2.])
>>> attack("empire(k=2)")(honest)
array([-2., -2.])

Some want to know more: what the attackers would send if honest, or the rule that they are up
against. A `View` holds it, and says what an adversary sees and what not.

>>> import fastgar
>>> view = View(q=1, rule=fastgar.rule("mean"))
>>> attack("optimal(empire, evaluations=5)")(honest, view=view)
array([-28., -28.])
"""

from __future__ import annotations

from .classic import bit_flip, bulyan, empire, empire_strict, little, reverse, sign_flip
from .copies import mimic, mimic_heuristic
from .directed import fang
from .envelope import anti_cge, min_max, min_sum
from .garbage import drop, gaussian, huge, inf, nan, random, zero
from .named import Attack, attack, list_attacks
from .poison import label_flip
from .registry import forget, register
from .search import optimal
from .view import View

__all__ = [
    "Attack", "View", "anti_cge", "attack", "bit_flip", "bulyan", "drop", "empire",
    "empire_strict", "fang", "forget", "gaussian", "huge", "inf", "label_flip", "list_attacks",
    "little", "mimic", "mimic_heuristic", "min_max", "min_sum", "nan", "optimal", "random",
    "register", "reverse", "sign_flip", "zero",
]  # fmt: skip
