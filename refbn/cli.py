"""The command ``refbn``: the subcommands of every room that has one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from refbn.audit import cli as audit
from refbn.testing.vectors import command as vectors

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    return audit.main(argv, more=[vectors.add_command])


if __name__ == "__main__":
    sys.exit(main())
