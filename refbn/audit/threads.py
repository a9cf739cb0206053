"""Public threads about defects that an audit may find: a literal table, matched by framework, operation and mistake."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refbn.audit.runner import Finding

__all__ = ["THREADS", "Thread", "thread_of"]


@dataclass(frozen=True, slots=True)
class Thread:
    """One public report. Empty or ``*`` matches everything; the others are shell patterns.

    Attributes
    ----------
    framework, operation, output : str
        Patterns of the finding's fields.
    mistake : str
        Pattern of the name of the mistake that explains the finding; ``*`` takes unexplained ones as well.
    address : str
        Where it can be read.
    case : str
        Pattern of the descriptor.
    norm : str
        Pattern of the norm, as in descriptors.
    """

    framework: str
    operation: str
    output: str
    mistake: str
    address: str
    case: str = "*"
    norm: str = "batch"


_BATCH_OR_INSTANCE = "[bi]*"  # PyTorch's instance norm calls its batch norm


def _github(repository: str, number: int) -> str:
    return f"https://github.com/{repository}/issues/{number}"


THREADS: tuple[Thread, ...] = (
    *(
        Thread("torch*", operation, output, mistake, _github("pytorch/pytorch", number), norm=norm)
        for norm, nested_jvp, third_order in ((_BATCH_OR_INSTANCE, 196699, 186256), ("layer", 196700, 175754))
        for operation, output, mistake, number in (
            ("rev_fwd", "*", "constant-statistics-in-jvp", nested_jvp),
            ("fwd_fwd", "*", "constant-statistics-in-jvp", nested_jvp),
            ("fwd_fwd_fwd", "value", "*", nested_jvp),
            ("rev_rev_rev", "dx", "*", third_order),
        )
    ),
    Thread("torch*", "*", "*", "unscaled-overflow", _github("pytorch/pytorch", 162489), norm=_BATCH_OR_INSTANCE),
    Thread("torch*", "running", "running_var", "running-variance-of-one-value", _github("pytorch/pytorch", 1381)),
    Thread("torch*", "*_eval", "*", "eval-gradient-with-training-formula", _github("pytorch/pytorch", 586)),
    Thread("flax*", "*", "*", "one-pass-*", _github("google/flax", 1491)),
    Thread("*tensorflow*", "*", "*", "one-pass-*", _github("tensorflow/tensorflow", 118701)),
    Thread("*onnx*", "inference", "y", "inference-read-as-training", _github("onnx/onnx", 5799)),
)
"""The first that matches counts."""


def thread_of(finding: Finding, mistake: str) -> str:
    """Return the address of a public thread about a finding, or an empty string.

    Parameters
    ----------
    finding : Finding
        What was found.
    mistake : str
        The mistake in the zoo that explains it, if one does.
    """
    norm = finding.case.partition("norm=")[2] or "batch"
    for thread in THREADS:
        told = zip(
            (finding.framework, finding.operation, finding.output, mistake, finding.case, norm),
            (thread.framework, thread.operation, thread.output, thread.mistake, thread.case, thread.norm),
            strict=True,
        )
        if all(fnmatchcase(text, pattern) for text, pattern in told):
            return thread.address
    return ""
