"""What files do with tensors while they communicate."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .device import is_host, mark_host, of_same_memory, tensors_in
from .flight import FLIGHTS, never_waited, require_landed
from .frames import ACTIVE, Violation, caller, complain, within_here

__all__ = ["Watch"]

# For which the host waits.
READS = frozenset(
    {"item", "tolist", "__bool__", "__float__", "__int__", "__index__", "__complex__", "equal",
     "allclose", "is_nonzero", "nonzero", "argwhere", "masked_select", "unique"}
)  # fmt: skip
MEMORY = frozenset({"data_ptr", "numpy", "__array__", "__dlpack__"})  # hand the numbers out


class Watch(TorchFunctionMode):
    """Look at what files do with tensors and process groups while a block runs.

    Parameters
    ----------
    *files : module or path
        Whose lines are watched: a package stands for all of its files.

    Attributes
    ----------
    waits : Counter
        How often the host waited for the device, by the line, as in "torch/sendable.py:48 bool".
    calls, bytes : Counter
        How many collectives these files called, by name, and how many bytes this rank put in.
    violations : list of str
        All there were, also those that were caught.

    Raises
    ------
    Violation
        Where the block reads or writes what is on its way, or mixes tensors of host and device. At
        its end, for work that nobody waited for, and for violations that it caught.

    Notes
    -----
    All tensors are in the memory of the CPU, and count as being on the device, but for those that a
    watched file made on the host: without ``device=``, from NumPy, by ``x.cpu()`` or
    ``x.to("cpu")``, and by arithmetic on such. ``x.to(device)`` moves one to the device if
    `device` is a `torch.device`. What other code does, called by that which is watched, is not
    looked at, but for reads and writes of what is on its way.

    A wait is what a GPU would wait for: ``item``, ``bool``, ``float``, ``int``, ``tolist``,
    ``cpu``, ``nonzero`` and the like on the device, and copies between both that are not
    ``non_blocking``.

    What reads or writes memory past torch (a view of NumPy's that was made before) is seen at the
    wait at the latest, if it has changed something. One watch sees one thread.
    """

    def __init__(self, *files: ModuleType | str | Path) -> None:
        super().__init__()
        self.files = tuple(map(_prefix, files))
        self.waits: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.violations: list[str] = []
        self._begun: list[Any] = []

    def watches(self, file: str) -> bool:
        """Say whether a file is watched."""
        return file.startswith(self.files)

    def within(
        self, *, waits: int | None = None, calls: int | None = None, bytes: int | None = None
    ) -> None:
        """Raise an AssertionError, with all that was counted, if there was more than this."""
        for name, most in (("waits", waits), ("calls", calls), ("bytes", bytes)):
            counted: Counter[str] = getattr(self, name)
            if most is not None and counted.total() > most:
                lines = "".join(f"\n{count:>9} {what}" for what, count in counted.most_common())
                raise AssertionError(f"{counted.total()} {name}, and at most {most} may be:{lines}")

    def __enter__(self) -> Watch:
        """Begin to look."""
        if not ACTIVE:
            for module, name, around in UNTOLD:
                setattr(module, name, around(getattr(module, name)))
        ACTIVE.append(self)
        self._begun = list(FLIGHTS)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Look no more, and complain of what was left."""
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        try:
            if error is None:
                never_waited(self._begun)
        finally:
            FLIGHTS[:] = self._begun
            ACTIVE.remove(self)
            if not ACTIVE:
                for module, name, _ in UNTOLD:
                    setattr(module, name, getattr(module, name).__wrapped__)
        if self.violations and not isinstance(error, Violation):
            raise Violation("; ".join(self.violations)) from error

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, and look at what it does."""
        own = within_here()
        return func(*args, **kwargs or {}) if own else self.look(func, args, kwargs or {})

    def look(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Call a function of torch that was not called from here."""
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute
            return func(*args, **kwargs)
        tensors = list(tensors_in((*args, *kwargs.values())))
        hosts = [is_host(tensor) for tensor in tensors]
        file, line = caller()
        if not self.watches(file):
            result = func(*args, **kwargs)
        else:
            result = self._watched(name, func, args, kwargs, tensors, hosts, line)
        made = [each for each in tensors_in([result]) if not any(each is t for t in tensors)]
        if hosts and all(hosts) and name != "to":
            for each in made:
                mark_host(each)
        if FLIGHTS and tensors:
            _look(name, args, kwargs, tensors, made)
        return result

    def _watched(
        self, name: str, func: Any, args: Any, kwargs: Any, tensors: list[Tensor],
        hosts: list[bool], line: str,
    ) -> Any:  # fmt: skip
        """Do what a watched line does, with host and device apart."""
        if not tensors:
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and kwargs.get("device") is None:
                mark_host(result)
            return result
        waits = not kwargs.get("non_blocking")
        target = _target(name, args, kwargs)
        if target is not None:
            if (target == "host") == hosts[0]:
                return func(*args, **kwargs)
            self.waits += Counter({f"{line} {name}": int(waits)})
            moved = func(*args, **kwargs).detach().clone()
            return mark_host(moved) if target == "host" else moved
        if name == "copy_" and hosts[0] != hosts[-1]:
            self.waits += Counter({f"{line} {name}": int(waits)})
        elif name in READS and not all(hosts):
            self.waits[f"{line} {name.strip('_')}"] += 1
        elif name in ("numpy", "__array__") and not hosts[0]:
            complain("numpy cannot read a tensor on the device: take x.cpu()")
        elif (
            name not in ("copy_", "__getitem__", "__setitem__")
            and any(hosts)
            and any(not host and tensor.dim() for host, tensor in zip(hosts, tensors, strict=True))
            and any(host and tensor.dim() for host, tensor in zip(hosts, tensors, strict=True))
        ):
            complain(f"{name} of tensors on the host and on the device")
        return func(*args, **kwargs)


class _Again(TorchFunctionMode):
    """Ask a watch."""

    def __init__(self, watch: Any) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = within_here()
        return func(*args, **kwargs or {}) if own else self.watch.look(func, args, kwargs or {})


def _prefix(file: ModuleType | str | Path) -> str:
    if isinstance(file, ModuleType):
        found = inspect.getfile(file)
        return os.path.dirname(found) + os.sep if hasattr(file, "__path__") else found
    return os.path.abspath(file) + (os.sep if os.path.isdir(file) else "")


def _marking(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a function that marks what it makes for a watched file."""

    @wraps(make)
    def marking(*args: Any, **kwargs: Any) -> Tensor:
        made = make(*args, **kwargs)
        if any(seen.watches(caller()[0]) for seen in ACTIVE):
            mark_host(made)
        return made

    return marking


def _looking(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs a backward pass in which all watches look."""

    @wraps(run)
    def looking(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for seen in ACTIVE:
                stack.enter_context(_Again(seen))
            return run(*args, **kwargs)

    return looking


# What torch tells no mode of; and the backward pass, in which it asks none.
UNTOLD: list[tuple[Any, str, Callable[..., Any]]] = [
    (torch, "from_numpy", _marking), (torch, "frombuffer", _marking),
    (torch.autograd, "_engine_run_backward", _looking),
]  # fmt: skip


def _target(name: str, args: Any, kwargs: Any) -> str | None:
    """Return where a tensor is moved to, if that is what is done."""
    if name == "cpu":
        return "host"
    if name != "to":
        return None
    given = [kwargs.get("device"), kwargs.get("other"), *args[1:2]]
    for each in given:
        if isinstance(each, str):
            return "host" if each.startswith("cpu") else "device"
        if isinstance(each, torch.device):
            return "device"
        if isinstance(each, Tensor):
            return "host" if is_host(each) else "device"
    return None


def _look(name: str, args: Any, kwargs: Any, tensors: list[Tensor], made: list[Tensor]) -> None:
    """Complain of what a function did with tensors that are on their way."""
    places = list(tensors_in([kwargs.get("out")]))
    if (name.endswith("_") and not name.endswith("__")) or name == "__setitem__":
        places += tensors_in(args[:1])  # also of +=, which is add_
    written = [tensor for tensor in tensors if any(tensor is place for place in places)]
    others = [tensor for tensor in tensors if not any(tensor is place for place in places)]
    if name.startswith("new_") or name.endswith("_like"):
        return
    if not written and name not in READS | MEMORY:
        others = [t for t in others if made and not all(of_same_memory(t, each) for each in made)]
    require_landed(others, written, name)
