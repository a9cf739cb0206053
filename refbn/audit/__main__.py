"""``python -m refbn.audit [FRAMEWORK…]`` is ``refbn audit [FRAMEWORK…]``."""

import sys

from refbn.audit.cli import main

sys.exit(main(["audit", *sys.argv[1:]]))
