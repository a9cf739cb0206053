"""``refbn vectors DIR``."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from refbn._errors import DomainError

if TYPE_CHECKING:
    from refbn.audit.command import Commands

__all__ = ["add_command"]


def add_command(commands: Commands) -> None:
    """Add the subcommand."""
    vectors = commands.add_parser(
        "vectors",
        help="write golden vectors in JSON, for tests in any language",
        description="Write golden vectors: inputs and correctly rounded results of every pass to second order, in JSON "
        "with a schema and checksums. The files are the same on every machine.",
    )
    vectors.add_argument("folder", metavar="DIR", type=Path, help="where to write them; made if it does not exist")
    vectors.set_defaults(command=_vectors)


def _vectors(options: argparse.Namespace) -> int:
    missing = [package for package in ("jsonschema", "ml_dtypes") if find_spec(package) is None]
    if missing:
        raise DomainError(f"vectors needs {', '.join(missing)}: pip install 'refbn[audit]'")
    from refbn.testing.vectors.generate import write

    try:
        sums = write(options.folder)
    except OSError as error:
        raise DomainError(f"vectors: {options.folder}: {error.strerror}", argument="folder") from error
    for name, digest in sums.items():
        print(f"{digest}  {options.folder / name}")
    return 0
