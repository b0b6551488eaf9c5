"""What Byzantine workers send: each attack sees every honest row and returns one vector.

All attackers of a step send that same vector. Rows may be an array of any library with the usual
operators (numpy, torch, jax); the result is a row of the same library.

>>> import numpy as np
>>> honest = np.array([[1.0, 2.0], [3.0, 2.0]])
>>> empire(honest, k=2)
array([-2., -2.])
"""

from __future__ import annotations

from .classic import empire, little, sign_flip
from .spec import Attack, attack, list_attacks

__all__ = ["Attack", "attack", "empire", "list_attacks", "little", "sign_flip"]
