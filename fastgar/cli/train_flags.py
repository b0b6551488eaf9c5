"""The settings of a run as options of ``fastgar train``."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, get_args, get_type_hints

from ..train.config import Config

__all__ = ["DEFAULTS", "add_settings", "given_settings"]

DEFAULTS = {"metrics": True}  # of the command, where they are not those of a run
REPEATABLE = ("rule", "attack")  # the command takes several of them, and says so itself
SETTINGS = tuple(each for each in fields(Config) if each.name not in REPEATABLE)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add an option for each, which is not there unless it was given: a file may say otherwise."""
    hints = get_type_hints(Config)
    for setting in SETTINGS:
        said, hint = setting.metadata, hints[setting.name]
        kind = (get_args(hint) or (hint,))[0]
        default = DEFAULTS.get(setting.name, setting.default)
        more: dict[str, Any] = {"type": kind, "metavar": said["metavar"]}
        if kind is bool:
            more = {"action": argparse.BooleanOptionalAction}
        if said["choices"]:
            more["choices"] = said["choices"]
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=said["help"] + ("" if default is None else f" (default: {default})"),
            **more,
        )


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given."""
    named = vars(options)
    return {each.name: named[each.name] for each in SETTINGS if each.name in named}
