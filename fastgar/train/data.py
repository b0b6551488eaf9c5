"""Data sets by name, split into a part to train on and a part to test on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import unknown

__all__ = ["DATA", "Data", "load"]

DATA = ("digits",)
HELD_OUT = 360  # of the 1,797 digits


class Data(NamedTuple):
    """Inputs (float32, one row per sample, scaled to [0, 1]) and labels (int64)."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int

    def require(self, workers: int) -> None:
        """Raise a ValueError unless each worker can have a share of the training samples."""
        if workers > len(self.x):
            raise ValueError(f"workers must be at most {len(self.x)}, one sample each")


def load(name: str) -> Data:
    """Return a data set; the split is the same in every run.

    Parameters
    ----------
    name : str
        "digits": 1,797 images of 8 x 8 pixels in 10 classes, part of scikit-learn.

    Raises
    ------
    ValueError
        If there is no such data set.
    """
    if name not in DATA:
        raise unknown("data set", name, DATA)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.from_numpy((pixels[order] / 16).astype(np.float32))
    y = torch.from_numpy(labels[order].astype(np.int64))
    return Data(x[HELD_OUT:], y[HELD_OUT:], x[:HELD_OUT], y[:HELD_OUT], classes=10)
