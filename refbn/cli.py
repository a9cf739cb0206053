"""The command ``refbn``: the subcommands of every room that has one.

A room's subcommand sets ``command``, a function from the options to the exit status, and raises `RefbnError` for what
cannot be done; the message goes to standard error, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import refbn
from refbn._errors import RefbnError
from refbn.audit import command as audit
from refbn.testing.vectors import command as vectors

__all__ = ["main"]

_COMMANDS = (audit.add_command, vectors.add_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.
    """
    parser = _parser()
    try:
        options = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else 2
    if options.command is None:
        parser.print_help()
        return 2
    try:
        status: int = options.command(options)
    except RefbnError as error:
        print(f"refbn: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `refbn audit --list | head`
        sys.stderr.close()
        return 0
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="refbn", description="The ground truth for batch normalization.")
    parser.add_argument("--version", action="version", version=f"refbn {refbn.__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for add in _COMMANDS:
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
