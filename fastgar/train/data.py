"""Data sets by name, split into a part to train on and a part to test on."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import unknown
from . import openml

__all__ = ["DATA", "Data", "load"]

HELD_OUT = 360  # of the 1,797 digits


class Data(NamedTuple):
    """Samples to train on and to test on.

    Attributes
    ----------
    x, x_test : Tensor of float32
        Inputs: (samples, channels, height, width) for images, (samples, features) for tables.
    y, y_test : Tensor of int64
        Labels, from 0 to classes - 1.
    classes : int
    name : str
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    classes: int
    name: str = ""

    def __repr__(self) -> str:
        return (
            f"<Data{f' {self.name}' * bool(self.name)}: {len(self.x)} samples of shape "
            f"{tuple(self.x.shape[1:])} to train on, {len(self.x_test)} to test on, "
            f"{self.classes} classes>"
        )

    def require(self, workers: int) -> None:
        """Raise a ValueError unless each worker can have a share of the training samples."""
        if workers > len(self.x):
            raise ValueError(f"workers must be at most {len(self.x)}, one sample each")


class Source(NamedTuple):
    """A data set of openml.org, and what it must hold to be the one that is meant.

    Attributes
    ----------
    number : int
        Its id there; an id's file never changes.
    shape : tuple of int
        Of a sample.
    train, test : tuple of int
        Samples of each class in the two parts.
    white : int
        The byte that stands for 1.
    mean, deviation : tuple of float
        Of each channel, where the published code normalises.
    shuffled : bool
        Whether the parts are drawn, for want of published ones.
    """

    number: int
    shape: tuple[int, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]
    white: int = 255
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    shuffled: bool = False


CIFAR_MEAN, CIFAR_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

SOURCES = {
    "mnist": Source(
        number=554,
        shape=(1, 28, 28),
        train=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        test=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
        mean=(0.1307,),
        deviation=(0.3081,),
    ),
    "fashion-mnist": Source(40996, (1, 28, 28), train=(6000,) * 10, test=(1000,) * 10),
    "cifar10": Source(
        number=40927,  # 40926 has a third of the images
        shape=(3, 32, 32),
        train=(5000,) * 10,
        test=(1000,) * 10,
        mean=CIFAR_MEAN,
        deviation=CIFAR_DEVIATION,
    ),
    "cifar100": Source(
        number=41983,
        shape=(3, 32, 32),
        train=(500,) * 100,
        test=(100,) * 100,
        mean=CIFAR_MEAN,  # as in the published code
        deviation=CIFAR_DEVIATION,
    ),
    "phishing": Source(
        number=4534,
        shape=(68,),
        train=(3722, 4678),  # 8,400 as in the published code, in the proportion of the classes
        test=(1176, 1479),
        white=1,
        shuffled=True,
    ),
}

DATA = ("digits", *SOURCES)


def load(name: str, folder: str | Path | None = None) -> Data:
    """Return a data set; the split is the same in every run.

    ================== =========== ======= ======= ==============================================
    name               sample      train   test    values
    ================== =========== ======= ======= ==============================================
    ``digits``         1 x 8 x 8   1,437   360     0 to 1; part of scikit-learn, never downloaded
    ``mnist``          1 x 28 x 28 60,000  10,000  0 to 1, then less 0.1307, over 0.3081
    ``fashion-mnist``  1 x 28 x 28 60,000  10,000  0 to 1
    ``cifar10``        3 x 32 x 32 50,000  10,000  0 to 1, then less the mean and over the
                                                   deviation of each of CIFAR-10's channels
    ``cifar100``       3 x 32 x 32 50,000  10,000  the same, with CIFAR-10's numbers
    ``phishing``       68          8,400   2,655   0 and 1: one column per value of 30 features
    ================== =========== ======= ======= ==============================================

    Scales and numbers are those of the code of "Distributed momentum for Byzantine-resilient SGD"
    (El Mhamdi et al., ICLR 2021), which besides mirrors half of the images of all but MNIST at
    random, in training and in testing; here nothing is mirrored. The last samples of each class
    are held out: as OpenML's files of images hold the training set first, these are the published
    test sets. There are none for the digits (a permutation is fixed) and for phishing (the same,
    with the classes in equal proportion).

    All but the digits come from openml.org through `sklearn.datasets.fetch_openml` (no pandas
    needed) and are kept in its cache folder. The first load takes a minute or more and up to 3 GB
    of memory, later ones a second or two and what they return: see `fastgar.train.openml`.

    Parameters
    ----------
    name : str
    folder : path, optional
        The cache folder, which must exist. By default scikit-learn's: what the environment
        variable SCIKIT_LEARN_DATA says, or else ``~/scikit_learn_data``.

    Returns
    -------
    Data

    Raises
    ------
    ValueError
        If there is no such data set, or its files are missing and cannot be fetched, or they are
        damaged or not those that are meant. The message says what to do on a machine without a
        network.

    Examples
    --------
    >>> load("digits").x.shape
    torch.Size([1437, 1, 8, 8])
    """
    if name not in DATA:
        raise unknown("data set", name, DATA)
    return _digits() if name == "digits" else _published(name, SOURCES[name], folder)


def _digits() -> Data:
    pixels, labels = _digits_as_they_are()
    order = np.random.default_rng(0).permutation(len(labels))
    x = torch.from_numpy((pixels[order] / 16).astype(np.float32)).view(-1, 1, 8, 8)
    y = torch.from_numpy(labels[order].astype(np.int64))
    return Data(x[HELD_OUT:], y[HELD_OUT:], x[:HELD_OUT], y[:HELD_OUT], classes=10, name="digits")


def _digits_as_they_are() -> tuple[NDArray[Any], NDArray[Any]]:
    """Return pixels and labels from scikit-learn's file, whose own import would take a second."""
    package = find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            table = np.loadtxt(path, delimiter=",")
            return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits  # it may lie elsewhere, or say what to install

    found: tuple[NDArray[Any], NDArray[Any]] = load_digits(return_X_y=True)
    return found


def _published(name: str, source: Source, folder: str | Path | None) -> Data:
    """Return a data set of openml.org."""
    counts = np.add(source.train, source.test).tolist()
    width = math.prod(source.shape)
    x, y = openml.read(name, source.number, openml.home(folder), width=width, counts=counts)
    order = np.arange(len(y))
    if source.shuffled:
        order = np.random.default_rng(0).permutation(order)
    held_out = np.zeros(len(y), dtype=bool)
    for label, count in enumerate(source.test):
        held_out[np.flatnonzero(y[order] == label)[-count:]] = True
    train, test = order[~held_out], order[held_out]
    return Data(
        _scaled(x[train], source),
        torch.from_numpy(y[train]),
        _scaled(x[test], source),
        torch.from_numpy(y[test]),
        classes=len(source.train),
        name=name,
    )


def _scaled(pixels: NDArray[np.uint8], source: Source) -> Tensor:
    """Return samples in float32, normalised; bytes become floats once, and never doubles."""
    x = torch.from_numpy(pixels).to(torch.float32).view(-1, *source.shape).div_(source.white)
    if source.mean:
        x.sub_(torch.tensor(source.mean).view(-1, 1, 1))
        x.div_(torch.tensor(source.deviation).view(-1, 1, 1))
    return x
