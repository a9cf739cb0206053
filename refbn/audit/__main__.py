"""``python -m refbn.audit [FRAMEWORK…]`` is ``refbn audit [FRAMEWORK…]``."""

import sys

from refbn.audit.cli import main

if __name__ == "__main__":  # the jobs of an audit import this module as well
    sys.exit(main(["audit", *sys.argv[1:]]))
