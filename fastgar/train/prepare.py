"""What several runs share, and whether all of them can be: before the first one begins."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from . import models
from .adversary import Adversary
from .config import Config
from .data import Data, load
from .gradients import Layout
from .roles import Roles
from .room import require_room
from .server import read_rule

__all__ = ["check", "shared"]


def shared(config: Config) -> tuple[nn.Module, Data]:
    """Return the model and the data of runs that differ in rule and attack alone.

    Raises
    ------
    TypeError, ValueError
        If there is no such model or data set, there are too few samples, or too little memory.
    """
    models.check(config.model)
    data = load(config.data)
    data.require(config.workers)
    model = models.build(config.model, data, config.seed)
    require_room(config, data, model)
    return model, data


def check(configs: Iterable[Config], model: nn.Module | None = None) -> None:
    """Raise the error that a run would raise at its beginning.

    Parameters
    ----------
    configs : iterable of Config
    model : nn.Module, optional
        Theirs: with it, attacks are tried on made-up gradients.

    Raises
    ------
    TypeError, ValueError
        If a rule or an attack does not exist, or cannot do its part.
    """
    like = None if model is None else Layout(model).flat(model)
    for config in configs:
        adversary, rule = Adversary(config), read_rule(config)
        if like is not None:
            roles = Roles(
                config.workers, config.taking_part, adversary.liars, adversary.liars_compute,
                torch.Generator(),
            )  # fmt: skip
            adversary.rehearse(roles.everyone, rule, like)
