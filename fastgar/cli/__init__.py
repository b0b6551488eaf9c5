"""The command ``fastgar``: train, bench, rules."""

from __future__ import annotations

from .main import main

__all__ = ["main"]
