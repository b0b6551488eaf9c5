"""What a rule declares about itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .errors import require_name, shown, unknown
from .options import Option

__all__ = ["GUARANTEES", "Bound", "Guarantee", "Kind", "Needs", "Options", "Spec", "least", "terms"]

Kind = Literal["column", "distance", "mixing"]
Options = Mapping[str, Any]
Needs = str | tuple[str, ...] | Callable[[Options], tuple[str, ...]]
Bound = Callable[[int, int, Options], float | None]
Guarantee = Literal["(f, kappa)", "bounded", "trusted", "none"]

GUARANTEES: tuple[Guarantee, ...] = get_args(Guarantee)  # the strongest first
FORMER = {"node_limit": "work_limit"}  # options under names that they had


@dataclass(frozen=True, eq=False)
class Spec:
    """Everything that is known about a rule.

    Attributes
    ----------
    name, kind, mathematics
        The function as it was written, and whether it sees columns or distances.
    f : {"required", "optional", "no"}
        Whether it takes f; where optional, the default is (n-1)//2.
    options
        Its keyword-only options with defaults and checks.
    needs
        The least number of rows, such as "2f + 3"; several conditions, or a function of the options
        to them, where one is not enough.
    references
        Extra points whose distances it looks at: "origin", "start" (the origin unless the caller
        passes one) or "reference" (the caller's).
    centre
        For a rule that looks only at the distances of the rows to a column statistic of theirs (n,
        f and the options to the statistic).
    inner
        Whether it forms inner products, so that a row over 1000 times longer than the others costs
        a third read.
    keeps_far
        Whether a row that far may keep a weight.
    guarantee
        What holds whatever f rows hold, or a function of the options to it. Of a mixing rule: what
        is left of the guarantee of the rule after it.

        "(f, kappa)"
            |F - mean of S|^2 <= kappa times the average over S of |x - mean of S|^2, for every set
            S of n-f rows, with a finite kappa of n, f and the options alone.
        "bounded"
            The result is finite and bounded, but by something else: a length, tau, the origin.
        "trusted"
            The result is so if the row or the reference that the rule trusts is honest.
        "none"
            None of these.
    breakdown : str
        The largest share of rows that may hold anything under that guarantee.
    paper : str
    kappa, variance_ratio
        Functions of n, f and the options where a bound is known: None for options without one.
    kappa_with
        For a mixing rule: kappa of it and the rule after it, a function of that rule's kappa, n, f
        and the options.
    variants
        Options as published code has them, by name; "paper" where the paper's are not the defaults.
    selection
        What a backend may make of the distances by itself: n, f and the options to a `Selection`
        (None: nothing).
    queued
        Whether a GPU does, so that a call waits for nothing.
    rows_after
        For a mixing rule that changes the number of rows: the new number from the old.
    takes_f
        Whether the mathematics depends on f. If not, f only says how many faulty rows to survive.
    randomised
        Whether the mathematics takes a step, which a `Rule` counts.
    """

    name: str
    kind: Kind
    mathematics: Callable[..., Any]
    f: Literal["required", "optional", "no"]
    options: Mapping[str, Option]
    sees: str
    needs: Needs
    breakdown: str
    paper: str
    guarantee: Guarantee | Callable[[Options], Guarantee]
    references: tuple[str, ...] = ()
    centre: Callable[..., Any] | None = None
    inner: bool | Callable[[Options], bool] = False
    keeps_far: bool = False
    kappa: Bound | None = None
    variance_ratio: Bound | None = None
    kappa_with: Callable[[float, int, int, Options], float] | None = None
    variants: Mapping[str, Options] = field(default_factory=dict)
    selection: Callable[[int, int, Options], Any] | None = None
    queued: bool = False
    rows_after: Callable[[int, Options], int] | None = None
    takes_f: bool = False
    randomised: bool = False

    @property
    def reads(self) -> int:
        """Passes over the data when the rule stands alone (one more for rows that are far off)."""
        return 1 if self.kind == "column" else 2

    def resolve(self, given: Options) -> dict[str, Any]:
        """Return every option's value: what was given, else the variant's, else the default."""
        given = dict(given)
        variant = given.pop("variant", self.default_variant)
        if variant is not None or self.default_variant is not None:
            require_name(f"variant of {self.name}", variant, self.variant_names)
        for name in given:
            if name == "f" and self.f == "no":
                raise TypeError(f"{self.name} takes no f")
            if name not in self.options:
                former = FORMER.get(name)
                meant = former if former in self.options else None
                raise unknown(f"option of {self.name}", name, self.options, meant)
        preset = self.variants.get(variant, {})
        values = {}
        for name, option in self.options.items():
            value = given.get(name, preset.get(name, option.default))
            if name not in given and name not in preset and option.required:
                raise TypeError(f"{self.name} needs the option {name}")
            values[name] = option.check(self.name, value)
        return values

    @property
    def variant_names(self) -> tuple[str, ...]:
        """What a call may name as variant, if there are any."""
        return tuple(dict.fromkeys(("paper", *self.variants)))

    @property
    def default_variant(self) -> str | None:
        """The variant that has the options' defaults: the paper's, unless that is another."""
        return None if "paper" in self.variants else "paper"

    @property
    def defaults(self) -> dict[str, Any]:
        """The options' defaults."""
        return {name: option.default for name, option in self.options.items()}

    def guaranteed(self, options: Options) -> Guarantee:
        """Return the guarantee with these options."""
        return self.guarantee(options) if callable(self.guarantee) else self.guarantee

    def conditions(self, options: Options) -> tuple[str, ...]:
        """Return the conditions on n, each as a sum such as "2f + 3"."""
        needs = self.needs(options) if callable(self.needs) else self.needs
        return (needs,) if isinstance(needs, str) else needs

    def needs_text(self) -> str:
        """Return what it needs with default options, such as "n >= 2f + 3"."""
        return ", ".join(f"n >= {needs}" for needs in self.conditions(self.defaults))

    def min_n(self, f: int, options: Options) -> int:
        """Return the least number of rows that the rule can aggregate."""
        return max(least(needs, f, options) for needs in self.conditions(options))

    def complaint(self, n: int, f: int, options: Options) -> str | None:
        """Return None if `n` rows are enough, else the sentence that says how many are."""
        for needs in self.conditions(options):
            rows = least(needs, f, options)
            if n < rows:
                known = {"f": f, **options}
                names = [name for _, name in terms(needs) if name]
                given = ", ".join(f"{name}={known[name]}" for name in names)
                reason = f": with {given} that is {rows} rows" if given else ""
                return f"{self.name} needs n >= {needs}{reason}, got {n}"
        return None


def terms(needs: str) -> Iterator[tuple[int, str]]:
    """Split "2f + m + 3" into (2, "f"), (1, "m"), (3, "")."""
    for term in needs.split("+"):
        match = re.fullmatch(r"(\d*)([a-z_]*)", term.strip())
        if match is None or not match[0]:
            raise ValueError(f"needs must be a sum such as '2f + 3', got {shown(needs)}")
        yield int(match[1] or 1), match[2]


def least(needs: str, f: int, options: Options) -> int:
    """Evaluate a condition such as "2f + 3"."""
    known = {"f": f, **options}
    return sum(count * (known[name] if name else 1) for count, name in terms(needs))
