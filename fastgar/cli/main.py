"""The parser of the command line. Each subcommand has a module, which imports what it needs."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from difflib import get_close_matches

import fastgar as fg

from . import bench, cluster, keys, node, reproduce, rules, simulate, train
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
    for module in (train, cluster, simulate, keys, node, reproduce, bench, rules):
        command = commands.add_parser(
            module.NAME,
            help=module.SUMMARY,
            description=module.SUMMARY,
            formatter_class=_Help,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, name=module.NAME)
    options, odd = parser.parse_known_args(arguments)
    if odd:
        command = commands.choices[options.name]
        close = get_close_matches(odd[0], command._option_string_actions, n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        command.error(f"unrecognized arguments: {' '.join(odd)}{hint}")
    options.command = shlex.join(["fastgar", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        with ExitStack() as options.held:  # until the command is over
            status: int = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # here it can be told that the output is full or closed
    except Refused as error:
        parser.exit(2, f"fastgar {options.name}: {error}\n")
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # there the reader, such as `head`, has gone
            where = f"{error.filename}: " if error.filename else ""
            print(f"fastgar {options.name}: {where}{error.strerror or error}", file=sys.stderr)
        _drop_what_cannot_be_written()
        return 1
    return status


def _drop_what_cannot_be_written() -> None:
    """Keep Python from complaining, at its end, of output that it cannot write."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
