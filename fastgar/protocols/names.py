"""The names of models and data sets, for who only checks them: no torch is imported for that."""

from __future__ import annotations

from ..errors import unknown
from ..train.named import NAMES

__all__ = ["DATA", "MODELS", "check_names"]

MODELS = ("logistic", "mlp", "cnn-digits", "cnn-cifar", "cnn-aggregathor", "resnet18")
DATA = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "phishing")


def check_names(model: str, data: str) -> None:
    """Raise the error that building would, if there is no such model or data set.

    Options of a model, and what a ``module:factory`` is, show when it is built.

    Examples
    --------
    >>> check_names("mlp(hidden=10)", "mnits")
    Traceback (most recent call last):
    ValueError: unknown data set 'mnits': did you mean 'mnist'?
    """
    match = NAMES.fullmatch(model)
    if match is not None and match[1] not in MODELS:
        raise unknown("model", match[1], MODELS)
    if data not in DATA:
        raise unknown("data set", data, DATA)
