"""The pytest plugin's first half: options and hooks, and nothing that costs time.

pytest imports it in every run where refbn is installed, used or not. It is installed as a module of its own beside the
package, since importing anything inside a package runs the package's ``__init__`` first, and refbn's imports NumPy. The
second half is `refbn.testing.plugin`, imported when a test with `refbn.testing.parametrize_with_cases` is met.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

MARK = "refbn_cases"
KEY = "refbn"

# Name, what it narrows, help. Each is an option and an ini value.
_LISTS = (
    ("family", "families", "composition, conditioning, shape, layout, structure, state, special, types, exact"),
    ("operation", "operations", "forward, vjp, jvp, rev_rev, inference, …, as in `refbn audit --help`"),
    ("dtype", "dtypes", "f16, bf16, f32, f64"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and ini values."""
    group = parser.getgroup("refbn", "refbn: batch norm against the exact truth")
    group.addoption(
        "--refbn-depth", choices=("quick", "full"), default=None, help="how many cases (default: quick, or refbn_depth)"
    )
    parser.addini("refbn_depth", "how many cases of refbn's audit: quick or full", default="quick")
    for word, ini, choices in _LISTS:
        group.addoption(
            f"--refbn-{word}",
            action="append",
            default=None,
            metavar=word.upper(),
            help=f"only this {word}, may be repeated: {choices}",
        )
        parser.addini(f"refbn_{ini}", f"only these {ini} of refbn's audit", type="args", default=None)
    group.addoption(
        "--refbn-case", action="append", default=None, metavar="DESCRIPTOR", help="only this case, may be repeated"
    )
    group.addoption(
        "--refbn-strict", action="store_true", default=False, help="cases that are lossy fail (default: refbn_strict)"
    )
    parser.addini("refbn_strict", "whether cases of refbn's audit that are lossy fail", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark."""
    config.addinivalue_line("markers", f"{MARK}(suite): one test for each case of refbn's audit")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say what is chosen, if anything is."""
    chosen = [
        f"{name[8:].replace('_', '-')} {', '.join(value) if isinstance(value, list) else value}"
        for name in ("--refbn-depth", "--refbn-family", "--refbn-operation", "--refbn-dtype", "--refbn-case")
        if (value := config.getoption(name))
    ]
    if config.getoption("--refbn-strict"):
        chosen.append("strict")
    return f"refbn: {'; '.join(chosen)}" if chosen else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make the tests of a function that `parametrize_with_cases` has marked."""
    mark = metafunc.definition.get_closest_marker(MARK)
    if mark is not None:
        from refbn.testing import plugin

        plugin.generate(metafunc, mark.args[0])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Sum up refbn's cases, which reports carry, from other processes too."""
    stats = terminalreporter.stats
    records = [
        (report, value)
        for outcome in ("passed", "failed")
        for report in stats.get(outcome, ())
        for name, value in getattr(report, "user_properties", ())
        if name == KEY
    ]
    if records:
        from refbn.testing import plugin

        plugin.summarize(terminalreporter, records)
