"""The same rule on arrays of three libraries: python examples/quickstart.py"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

import fastgar as fg


def main() -> None:
    # Eleven workers send a gradient of five numbers. Nine agree up to noise, two lie.
    draw = np.random.default_rng(0)
    gradients = np.array([1.0, -2.0, 0.5, 0.0, 3.0]) + 0.1 * draw.standard_normal((11, 5))
    gradients[3] = 1e6
    gradients[7] = np.nan
    gradients = gradients.astype(np.float32)

    with np.printoptions(precision=2, suppress=True):
        print("mean                ", gradients.mean(0))
        for name in ("krum", "median", "geometric_median", "nnm | trimmed_mean"):
            print(f"{name:<20}", fg.rule(name, f=2)(gradients))

    # What comes back is of the library that went in, and inputs are never written.
    print("\nnumpy", repr(fg.krum(gradients, f=2)))
    if find_spec("torch"):
        import torch

        print("torch", fg.krum(torch.from_numpy(gradients), f=2))
    if find_spec("jax"):
        import jax.numpy as jnp

        print("jax  ", repr(fg.krum(jnp.asarray(gradients), f=2)))

    # Rows may be separate arrays, too: they are not stacked first.
    print("list ", repr(fg.krum(list(gradients), f=2)))
    print("\nkrum with f = 2 needs", fg.min_n("krum", f=2), "rows; 11 rows survive", end=" ")
    print(fg.max_f("krum", n=11), "liars")


if __name__ == "__main__":
    main()
