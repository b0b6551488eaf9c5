"""Momentum at the worker, kept per parameter: DDP cuts its buckets anew after the first step.

FSDP always reduces the parameters of a module together: there it is kept per module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .sendable import is_finite

__all__ = ["Momentum"]

PREFIXES = ("module.", "_orig_mod.")  # that wrappers put before a parameter's name


class Momentum:
    """Sums of past gradients, ``m = factor * m + gradient``, which are sent in their place.

    They are kept in float32 (of float64 gradients in float64). A gradient that is not finite is
    sent as it is, and leaves no trace: the rank is faulty in this step only.
    """

    def __init__(self, factor: float) -> None:
        if not 0 <= factor < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {factor}")
        self.factor = factor
        self.sums: dict[Any, Tensor] = {}  # by parameters, or by FSDP's modules

    def replace(
        self, vector: Tensor, gradients: Sequence[Tensor], parameters: Sequence[Any]
    ) -> None:
        """Put the sums in the place of gradients, which are views of a vector."""
        if not is_finite(vector):
            return
        for parameter, gradient in zip(parameters, gradients, strict=True):
            known = self.sums.get(parameter)
            if known is not None and known.shape != gradient.shape:
                raise ValueError(
                    f"there is momentum of shape {tuple(known.shape)} for a gradient of shape "
                    f"{tuple(gradient.shape)}: in each step the same parameters must get gradients"
                )
            if known is None:
                wide = torch.float64 if gradient.dtype == torch.float64 else torch.float32
                self.sums[parameter] = torch.zeros_like(gradient, dtype=wide)
        sums = [self.sums[parameter] for parameter in parameters]
        torch._foreach_mul_(sums, self.factor)
        torch._foreach_add_(sums, [g.to(m.dtype) for g, m in zip(gradients, sums, strict=True)])
        torch._foreach_copy_(list(gradients), sums)

    def state_dict(self, model: nn.Module | None) -> dict[str, Tensor]:
        """Return the sums by the names of parameters."""
        if not self.sums:
            return {}
        names = {parameter: name for name, parameter in _named(model).items()}
        missing = sum(parameter not in names for parameter in self.sums)
        if missing:
            raise ValueError(f"{missing} parameters or modules with momentum are not in this model")
        return {names[parameter]: m.clone() for parameter, m in self.sums.items()}

    def load_state_dict(self, saved: Mapping[str, Tensor], model: nn.Module | None) -> None:
        """Take sums by the names of parameters."""
        if saved and not self.factor:
            raise ValueError("this state has momentum: make the RobustState with momentum=")
        owners: Mapping[str, Any] = _named(model) if saved else {}
        for name, m in saved.items():
            owner = owners.get(name)
            if owner is None or (isinstance(owner, Tensor) and owner.shape != m.shape):
                raise ValueError(
                    f"the state has momentum of a parameter {name!r} of shape {tuple(m.shape)}, "
                    "and this model has none such"
                )
        self.sums = {owners[name]: _beside(owners[name], m) for name, m in saved.items()}


def _beside(owner: Any, m: Tensor) -> Tensor:
    """Return a copy, laid out as the parameter; a module's is a vector."""
    if not isinstance(owner, Tensor):
        device = next(owner.parameters()).device
        return m.to(device, copy=True)
    return torch.empty_like(owner, dtype=m.dtype).copy_(m)


def _named(model: nn.Module | None) -> dict[str, Any]:
    """Return parameters, and modules as "name.*", by name, whatever the model is wrapped in."""
    if model is None:
        raise TypeError("pass the model: momentum is saved by the names of its parameters")
    named: dict[str, Any] = {
        f"{name}.*".removeprefix("."): module for name, module in model.named_modules()
    }
    named |= model.named_parameters()
    return {_stripped(name): owner for name, owner in named.items()}


def _stripped(name: str) -> str:
    for prefix in PREFIXES * 2:
        name = name.removeprefix(prefix)
    return name
