"""What a benchmark has to say of where it ran, without naming it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from validation import report

__all__ = ["QUIET", "Load", "commit", "describe"]

QUIET = 0.05
"""With more other work than this, times in two threads above all say little: one waits for the other."""

_ROOT = Path(__file__).parents[2]


class Load:
    """Watches how much other work the machine does, from its making on (Linux)."""

    def __init__(self) -> None:
        self._start = self._now()

    def others(self) -> float | None:
        """Return the share of all cores' time that neither idled nor went to this process and its ended children."""
        now = self._now()
        if now is None or self._start is None:
            return None
        busy, everything, own = (b - a for a, b in zip(self._start, now, strict=True))
        return round(max(0.0, busy - own) / max(everything, 0.01), 3)

    @staticmethod
    def _now() -> tuple[float, float, float] | None:
        """Return seconds of processor time: of work, of work and idling, and of our work."""
        counters = Path("/proc/stat")
        if not counters.exists():
            return None
        words = counters.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]  # guests' time is user's already
        ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in words]
        idle = ticks[3] + ticks[4]
        own = os.times()
        return sum(ticks) - idle, sum(ticks), own.user + own.system + own.children_user + own.children_system


def describe() -> dict[str, object]:
    """Return the processor, the number of cores that this process may use, the system and the versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "versions": report.versions(*filter(_installed, ("torch", "jax", "jaxlib", "ml_dtypes"))),
    }


def commit() -> str | None:
    """Return the checkout's commit, with "+" if it has changes; None without git."""
    try:
        name, changed = (_git(*words) for words in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain")))
    except (OSError, subprocess.CalledProcessError):
        return None
    return name + ("+" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8", check=True
    ).stdout.strip()


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
