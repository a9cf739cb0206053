"""What other projects import to test against refbn.

`parametrize_with_cases` makes the audit's cases tests of your suite; `assert_accurate` compares results with exact ones
by the bound of a competent implementation, and says what it needs to find a bug; `truth` gives the exact ones for your
own arrays, `make_inputs` the inputs of a case. `refbn.testing.strategies` has strategies for hypothesis,
`refbn.testing.vectors` golden vectors for other languages. The guide is ``docs/testing.md``.
"""

from refbn.audit.adapters._protocol import Inputs, Unsupported
from refbn.audit.cases import Case, parse
from refbn.testing.accuracy import Truth, assert_accurate, make_inputs, truth
from refbn.testing.functions import Functions, adapter_of
from refbn.testing.suite import Check, parametrize_with_cases

__all__ = [
    "Case",
    "Check",
    "Functions",
    "Inputs",
    "Truth",
    "Unsupported",
    "adapter_of",
    "assert_accurate",
    "make_inputs",
    "parametrize_with_cases",
    "parse",
    "truth",
]
