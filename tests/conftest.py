"""Make `tests` and `validation` importable from the checkout, behind the installed refbn, never in front of it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))
