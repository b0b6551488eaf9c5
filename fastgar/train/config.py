"""The settings of a run: plain values, checked, and written as TOML."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..errors import shown, unknown
from ..options import GREATEST, Count, Positive
from . import split
from .named import configured

__all__ = ["EVALUATIONS", "PENALTIES", "PLACES", "Config", "read_settings", "schedule"]

EVALUATIONS = 30  # in a run, unless said otherwise
PLACES = ("worker", "server", "mixed")
PENALTIES = ("squared", "norm")
LONGEST = 16_000  # characters of a document: a key of that length takes a second, of 100,000 127

Rate = Callable[[int], float]


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on.

    Attributes
    ----------
    workers : int
        How many there are.
    byzantine : int
        How many of them attack, if there is an attack.
    declared : int, optional
        The rule's f: how many liars it expects. By default as many as there are.
    rule, attack : str
        As `fastgar.rule` and `fastgar.attacks.attack` take them, ``"zeno(b=4)"`` (see
        `fastgar.train.zeno`), and "none": everybody is honest.
    model, data, split : str
        By name: see `fastgar.train.models.build`, `data.load` and `split.split`.
    validation : float
        Share of the training samples that the server keeps to itself, for rules that ask it: zeno
        and rules with a trusted gradient.
    steps : int
        Updates of the model.
    batch : int
        Samples for each gradient of a worker, drawn from its own with replacement.
    lr : float
    schedule : str
        What becomes of the learning rate: "constant", "steps(every=1500, factor=0.1)",
        "steps(at=(60, 120), factor=0.2)", or "inverse(decay=100)", which divides it by t/100 + 1.
    momentum : float
        Share of the past that is kept.
    momentum_at : {"worker", "server", "mixed"}
        Who accumulates. "mixed": workers send their gradient plus momentum times what the rule
        returned last, and the server moves along what it returns now.
    nesterov : bool
        Whether gradients are taken where the momentum alone would lead.
    clip : float, optional
        The norm to which longer gradients are scaled down, each before any momentum.
    weight_decay : float
        Times the parameters, added to each gradient (before clipping).
    l2 : {"squared", "norm"}
        What weight_decay, w, is a factor of: with "squared" the penalty w/2 |parameters|^2 is added
        to the loss; with "norm" w^2 |parameters|, as the code of "Distributed momentum for
        Byzantine-resilient SGD" (El Mhamdi et al., ICLR 2021) does.
    eval_mode : bool
        Whether the network stays in evaluation mode, as in that code: no dropout, and batch
        normalisation with the statistics that it started with.
    local_steps : int
        Steps that a worker makes by itself, from the server's model, before it sends how far it
        went, over the learning rate: the sum of its gradients.
    participation : float
        Share of the workers that take part in a step, drawn anew in each.
    seed : int
        Of initial parameters, shares, batches, and where the liars sit.
    evaluate_every : int, optional
        Steps between evaluations on the test set; by default there are 30.
    metrics : bool
        Whether to record what `fastgar.train.metrics` tells of each step.
    checkpoint_every : int, optional
        Steps between checkpoints in the run directory; by default half a minute passes.
    device : str
        Where gradients are computed, as torch calls it.

    Raises
    ------
    TypeError, ValueError
        If a value cannot be right.

    Examples
    --------
    >>> config = Config(rule="krum", lr=0.1)
    >>> Config.from_toml(config.to_toml()) == config
    True
    >>> config.difference(Config(rule="krum", lr=0.2))
    {'lr': (0.1, 0.2)}
    """

    workers: int = 11
    byzantine: int = 2
    declared: int | None = None
    rule: str = "mean"
    attack: str = "none"
    model: str = "mlp"
    data: str = "digits"
    split: str = "iid"
    validation: float = 0.0
    steps: int = 300
    batch: int = 32
    lr: float = 0.05
    schedule: str = "constant"
    momentum: float = 0.9
    momentum_at: str = "server"
    nesterov: bool = False
    clip: float | None = None
    weight_decay: float = 0.0
    l2: str = "squared"
    eval_mode: bool = False
    local_steps: int = 1
    participation: float = 1.0
    seed: int = 0
    evaluate_every: int | None = None
    metrics: bool = False
    checkpoint_every: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Config).items():
            object.__setattr__(self, name, _plain(name, getattr(self, name), hint))
        taking_part = f"{self.taking_part}, the number of workers"
        if self.participation < 1:
            taking_part += " that take part in a step"
        checks = {
            "workers must be at least 1": self.workers >= 1,
            "byzantine must be at least 0": self.byzantine >= 0,
            "declared must be at least 0": self.f >= 0,
            "validation must be at least 0 and below 1": 0 <= self.validation < 1,
            "steps must be at least 1": self.steps >= 1,
            "batch must be at least 1": self.batch >= 1,
            "lr must be a finite number above 0": 0 < self.lr < math.inf,
            "momentum must be at least 0 and below 1": 0 <= self.momentum < 1,
            f"momentum-at must be {_listed(PLACES)}": self.momentum_at in PLACES,
            "clip must be a finite number above 0": self.clip is None or 0 < self.clip < math.inf,
            "weight-decay must be at least 0 and finite": 0 <= self.weight_decay < math.inf,
            f"l2 must be {_listed(PENALTIES)}": self.l2 in PENALTIES,
            "local-steps must be at least 1": self.local_steps >= 1,
            "participation must be above 0 and at most 1": 0 < self.participation <= 1,
            f"byzantine must leave an honest worker: below {taking_part}": (
                self.byzantine < self.taking_part
            ),
            "seed must be at least 0 and below 2^63": 0 <= self.seed < 1 << 63,
            "evaluate-every must be at least 1": _at_least_one(self.evaluate_every),
            "checkpoint-every must be at least 1": _at_least_one(self.checkpoint_every),
        }
        for sentence, holds in checks.items():
            if not holds:
                value = getattr(self, sentence.split()[0].replace("-", "_"))
                raise ValueError(f"{sentence}, got {shown(value)}")
        schedule(self.schedule)
        split.check(self.split)

    @property
    def f(self) -> int:
        """How many liars the rule expects."""
        return self.byzantine if self.declared is None else self.declared

    @property
    def taking_part(self) -> int:
        """How many workers take part in a step: the rows that the rule sees."""
        return max(1, round(self.participation * self.workers))

    @property
    def evaluation_interval(self) -> int:
        """Steps from one evaluation to the next."""
        return self.evaluate_every or max(1, self.steps // EVALUATIONS)

    def to_toml(self) -> str:
        """Return the settings as a TOML document; what is None is left out."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        # JSON's strings and numbers are TOML's; only DEL must not stand in a TOML string.
        texts = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
        return "".join(f"{name} = {text}\n" for name, text in texts.items()).replace(
            "\x7f", "\\u007f"
        )

    @classmethod
    def from_toml(cls, text: str) -> Config:
        """Return the settings that a TOML document holds; those that it lacks are the defaults.

        Raises
        ------
        TypeError, ValueError
            If it is no TOML document, or has a setting that does not exist or cannot be right.
        """
        return cls.of(_settings(text))

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Config:
        """Return the settings of these names, the others at their defaults."""
        names = [field.name for field in fields(cls)]
        for name in values:
            if name not in names:
                raise unknown("setting", name, names)
        return cls(**values)

    def difference(self, other: Config) -> dict[str, tuple[Any, Any]]:
        """Return the settings that differ, each with the value here and the value there."""
        ours, theirs = asdict(self), asdict(other)
        return {
            name: (value, theirs[name]) for name, value in ours.items() if value != theirs[name]
        }


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a file.

    Raises
    ------
    ValueError
        If it is no TOML document.
    OSError
        If it cannot be read.
    """
    with path.open() as file:
        return _settings(file.read(LONGEST + 1))


def _settings(text: str) -> dict[str, Any]:
    if len(text) > LONGEST:
        raise ValueError(f"settings have at most {LONGEST:,} characters")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no TOML document: {error}") from None


def schedule(spec: str) -> Rate:
    """Return the function that a string describes: from steps done to a factor of the rate.

    Examples
    --------
    >>> rate = schedule("steps(every=100, factor=0.1)")
    >>> rate(0), rate(99), rate(100)
    (1.0, 1.0, 0.1)
    >>> schedule("inverse(decay=100)")(100)
    0.5
    """
    name, options = configured("schedule", spec, SCHEDULES)
    return SCHEDULES[name](**options)


def constant() -> Rate:
    """Keep the learning rate."""
    return lambda done: 1.0


def steps(
    *,
    factor: Positive,
    every: Count | None = None,
    at: tuple = (),  # type: ignore[type-arg]  # the check is one of the class alone
) -> Rate:
    """Multiply the learning rate by a factor, every so many steps or after certain numbers."""
    if (every is None) == (not at):
        raise ValueError("schedule: steps needs either every=... or at=(..., ...)")
    if not all(type(number) is int and number >= 1 for number in at):
        raise ValueError(f"schedule: steps(at=...) must be numbers of steps, got {shown(at)}")

    def rate(done: int) -> float:
        times = done // every if every else sum(done >= number for number in at)
        try:
            return float(factor**times)
        except OverflowError:
            return math.inf

    return rate


def inverse(*, decay: Positive) -> Rate:
    """Divide the learning rate by t / decay + 1 after t steps."""
    return lambda done: 1.0 / (done / decay + 1.0)


SCHEDULES: dict[str, Callable[..., Rate]] = {
    "constant": constant,
    "steps": steps,
    "inverse": inverse,
}


def _plain(name: str, value: Any, hint: Any) -> Any:
    """Return a value as one of the type that is wanted; a whole number will do for a float."""
    kind, *optional = get_args(hint) or (hint,)
    if optional and value is None:
        return None
    said = name.replace("_", "-")
    if type(value) is int and abs(value) > GREATEST:
        raise ValueError(f"{said} must lie between -2^63 and 2^63, got {shown(value)}")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        words = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
        raise TypeError(f"{said} must be {words[kind]}, got {shown(value)}")
    return value


def _at_least_one(value: int | None) -> bool:
    return value is None or value >= 1


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(repr, names[:-1])) + f" or {names[-1]!r}"
