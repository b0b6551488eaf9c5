"""The settings of a run: plain values, checked, and written as TOML."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ..errors import shown, unknown
from ..options import GREATEST
from .rates import schedule
from .settings import Must, check, document, setting

__all__ = ["EVALUATIONS", "PENALTIES", "PLACES", "Config", "read_settings"]

EVALUATIONS = 30  # in a run, unless said otherwise
PLACES = ("worker", "server", "mixed")
PENALTIES = ("squared", "norm")
LONGEST_DOCUMENT = (
    16_000  # characters of a document: a key of that length takes a second, of 100,000 127
)

AT_LEAST_0: Must = ("at least 0", lambda value: value >= 0)
AT_LEAST_1: Must = ("at least 1", lambda value: value >= 1)
ABOVE_0: Must = ("a finite number above 0", lambda value: 0 < value < math.inf)
ABOVE_0_TO_1: Must = ("above 0 and at most 1", lambda value: 0 < value <= 1)
FROM_0: Must = ("at least 0 and finite", lambda value: 0 <= value < math.inf)
FROM_0_BELOW_1: Must = ("at least 0 and below 1", lambda value: 0 <= value < 1)
BELOW_2_63: Must = ("at least 0 and below 2^63", lambda value: 0 <= value < 1 << 63)


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on.

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

    # A setting is declared here and nowhere else: its flag of the command line, its line in a TOML
    # document and its part of the docstring follow.
    workers: int = setting(11, "how many there are", AT_LEAST_1, metavar="N")
    byzantine: int = setting(2, "how many of them attack", AT_LEAST_0, metavar="Q")
    declared: int | None = setting(
        None, "the rule's f (default: as many as attack)", AT_LEAST_0, metavar="F"
    )
    rule: str = setting(
        "mean", "what the server aggregates with",
        doc='As `fastgar.rule` takes it, or "zeno(b=4)" (see `fastgar.train.zeno`).',
    )  # fmt: skip
    attack: str = setting(
        "none", "what the workers that attack send",
        doc='As `fastgar.attacks.attack` takes it, or "none": everybody is honest.',
    )  # fmt: skip
    model: str = setting("mlp", "name, or module:factory", doc="See `fastgar.train.models.build`.")
    data: str = setting(
        "digits", "data set; all others are downloaded, once", doc="See `fastgar.train.data.load`."
    )
    split: str = setting(
        "iid", "iid, extreme, gamma(0.5), dirichlet(0.1)", doc="See `fastgar.train.split.split`."
    )
    validation: float = setting(
        0.0, "share of the samples that the server keeps", FROM_0_BELOW_1, metavar="SHARE",
        doc="Share of the training samples that the server keeps to itself, for rules that ask it: "
        "zeno and rules with a trusted gradient.",
    )  # fmt: skip
    steps: int = setting(300, "updates of the model in each run", AT_LEAST_1)
    batch: int = setting(
        32, "samples per worker and step", AT_LEAST_1,
        doc="Samples for each gradient of a worker, drawn from its own with replacement.",
    )  # fmt: skip
    lr: float = setting(0.05, "learning rate", ABOVE_0)
    schedule: str = setting(
        "constant", "constant, steps(every=100, factor=0.1), inverse(decay=9)",
        doc='What becomes of the learning rate: "constant", "steps(every=1500, factor=0.1)", '
        '"steps(at=(60, 120), factor=0.2)", or "inverse(decay=100)", which divides it by '
        "t/100 + 1.",
    )  # fmt: skip
    momentum: float = setting(0.9, "share of the past that is kept", FROM_0_BELOW_1)
    momentum_at: str = setting(
        "server", "who accumulates", choices=PLACES,
        doc='Who accumulates. "mixed": workers send their gradient plus momentum times what the '
        "rule returned last, and the server moves along what it returns now.",
    )  # fmt: skip
    nesterov: bool = setting(False, "gradients where the momentum alone would lead")
    clip: float | None = setting(
        None, "norm to which longer gradients are scaled", ABOVE_0, metavar="NORM",
        doc="The norm to which longer gradients are scaled down, each before any momentum.",
    )  # fmt: skip
    weight_decay: float = setting(
        0.0, "times the parameters, added to gradients", FROM_0, metavar="W",
        doc="Times the parameters, added to each gradient (before clipping).",
    )  # fmt: skip
    l2: str = setting(
        "squared", "what is decayed: see Config", choices=PENALTIES,
        doc='What weight_decay, w, is a factor of: with "squared" the penalty w/2 |parameters|^2 '
        'is added to the loss; with "norm" w^2 |parameters|, as the code of "Distributed momentum '
        'for Byzantine-resilient SGD" (El Mhamdi et al., ICLR 2021) does.',
    )  # fmt: skip
    eval_mode: bool = setting(False, "no dropout, frozen batch statistics")
    local_steps: int = setting(
        1, "of a worker by itself, before it sends", AT_LEAST_1, metavar="K",
        doc="Steps that a worker makes by itself, from the server's model, before it sends how far "
        "it went, over the learning rate: the sum of its gradients.",
    )  # fmt: skip
    participation: float = setting(
        1.0, "share of the workers in each step", ABOVE_0_TO_1, metavar="SHARE",
        doc="Share of the workers that take part in a step, drawn anew in each.",
    )  # fmt: skip
    seed: int = setting(0, "of initial weights, shares, batches, positions", BELOW_2_63)
    evaluate_every: int | None = setting(
        None, f"steps (default: {EVALUATIONS} times in a run)", AT_LEAST_1, metavar="STEPS",
        doc=f"Steps between evaluations on the test set; by default there are {EVALUATIONS}.",
    )  # fmt: skip
    metrics: bool = setting(
        False, "record norms, cosines, ... of each step", doc="Record `fastgar.train.metrics`."
    )
    checkpoint_every: int | None = setting(
        None, "steps (default: half a minute)", AT_LEAST_1, metavar="STEPS",
        doc="Steps between checkpoints in the run directory; by default half a minute passes.",
    )  # fmt: skip
    device: str = setting("cpu", "where gradients are computed")

    def __post_init__(self) -> None:
        from . import split  # which needs torch, where the declarations do not

        for name, hint in get_type_hints(Config).items():
            object.__setattr__(self, name, _plain(name, getattr(self, name), hint))
        check(self)
        if self.byzantine >= self.taking_part:
            rows = f"{self.taking_part}, the number of workers"
            if self.participation < 1:
                rows += " that take part in a step"
            raise ValueError(
                f"byzantine must leave an honest worker: below {rows}, got {self.byzantine}"
            )
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


document(Config)


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
        return _settings(file.read(LONGEST_DOCUMENT + 1))


def _settings(text: str) -> dict[str, Any]:
    if len(text) > LONGEST_DOCUMENT:
        raise ValueError(f"settings have at most {LONGEST_DOCUMENT:,} characters")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is no TOML document: {error}") from None


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
