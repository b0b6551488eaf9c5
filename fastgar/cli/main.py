"""The parser of the command line. Each subcommand has a module, which imports what it needs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import fastgar as fg

from . import bench, rules, train
from .refuse import Refused

__all__ = ["main"]


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Say the defaults that are values; the others are described in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or not action.option_strings
        return action.help if silent else super()._get_help_string(action)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status: 0, 1 (failed), 2 (bad input), 130 (Ctrl-C)."""
    parser = argparse.ArgumentParser(
        prog="fastgar", description="Robust gradient aggregation at the speed of averaging."
    )
    parser.add_argument("--version", action="version", version=f"fastgar {fg.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (train, bench, rules):
        command = commands.add_parser(
            module.NAME,
            help=module.SUMMARY,
            description=module.SUMMARY,
            formatter_class=_Help,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, name=module.NAME)
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except Refused as error:
        parser.exit(2, f"fastgar {options.name}: {error}\n")
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status
