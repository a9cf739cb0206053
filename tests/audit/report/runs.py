"""A run to render: stand-ins of every kind, asked a few cases."""

from refbn.audit.cases import parse
from refbn.audit.compare import VERDICTS
from refbn.audit.report.run import Framework, Run, make_run
from refbn.audit.runner import Finding, run_cases
from tests.audit.stand_ins import Biased, OnePass, Perfect, Raising

CASES = [
    "composition:rev_rev_rev_eval:f64:6x2",
    "conditioning:forward:f32:32x4",
    "conditioning:forward:f32:32x4:offset=4096",
    "conditioning:forward:f32:32x4:offset=100",
    "conditioning:vjp:f32:32x4:offset=100",
    "shape:forward:f32:1x3",
    "shape:vjp:f32:0x3",
    "state:running:f32:8x3x2:scale=3",
    "state:train_eval_train:f32:8x3x2",
    "special:forward:f32:5x3x2:special=nan",
]
ADAPTERS = [Perfect(), OnePass(), Biased(), Raising()]
FINDINGS = run_cases(ADAPTERS, [parse(text) for text in CASES])
RUN = make_run(FINDINGS, ADAPTERS, "quick", len(CASES), "0.1", missing=["tensorstream"])


def one(verdict, operation="forward", family="shape", **fields):
    values = {
        "framework": "frame",
        "version": "9",
        "operation": operation,
        "composition": "",
        "family": family,
        "case": f"{family}:{operation}:f32:2x3",
        "dtype": "float32",
        "check": "",
        "output": "y",
        "verdict": verdict,
        "max_ulp": 1.5,
        "max_scaled_ulp": 0.5,
        "bound_ratio": 0.25,
        "worst": (0, 1),
        "note": "",
    }
    return Finding(**(values | fields))


def run_of(findings, **fields):
    """A run of some findings, without adapters."""
    names = dict.fromkeys(f.framework for f in findings)
    frameworks = tuple(Framework(name, "9", "torch", "3.12.1") for name in names)
    values = {
        "date": "2026-11-28T06:00:00+00:00",
        "refbn": "0.1",
        "environment": {"python": "3.12.1", "numpy": "2.4", "system": "Linux", "machine": "x86_64"},
        "depth": "quick",
        "cases": len({f.case for f in findings}),
        "frameworks": frameworks,
        "missing": (),
        "findings": tuple(findings),
    }
    return Run(**(values | fields))


HOSTILE = '<script>alert(1)</script> & "quotes" `code` | pipe \x00 \x1b[31m'
TOLD = {
    "explanation": "one-pass-variance, to 7.1 of 7.2 digits: E[x²] − E[x]² cancels",
    "smallest": "conditioning:forward:f32:3x1:offset=4096",
    "thread": "https://example.org/threads/1491",
}


def rich_run():
    """A run in which every field is used."""
    findings = [
        one("wrong", "forward", "conditioning", max_ulp=3.5e6, bound_ratio=1e30, **TOLD),
        one("wrong", "vjp", "conditioning", output="dx", bound_ratio=7.0, **TOLD),
        one("lossy", "jvp", output="y_dot", bound_ratio=2.0),
        one("wrong", "rev_fwd", "composition", output="dx", known=True),
        one("raises", "rev", output="", max_ulp=None, max_scaled_ulp=None, bound_ratio=None, note=HOSTILE, worst=None),
        one("nonfinite", "inference", "special"),
        one("exact", "vjp_eval", output="dx"),
        one("dialect", "running", "state", note="matches running_var with m: keras dialect"),
        one("unsupported", "rev_rev", output="", note="no rev_rev"),
        one("accurate", "forward", framework="calm"),
        one("lossy", "forward", framework="loose"),
    ]
    frameworks = (
        Framework("frame", "9", "torch", "3.12.1"),
        Framework("calm", "1.0", "keras", "3.13.0", "other", "bfloat16 is not asked: ml_dtypes is not installed there"),
        Framework(
            "loose",
            "2",
            "flax",
            "3.12.1",
            "own",
            not_asked=("shape:vjp:f32:2x3", "conditioning:jvp:f32:32x4:offset=100"),
            instead=("conditioning:jvp:f32:4x3x5:offset=100",),
        ),
    )
    return run_of(
        findings,
        frameworks=frameworks,
        missing=("tensorstream", "<caffe>"),
        scripts={findings[0].id: f"import numpy as np\nprint('{HOSTILE[:25]}', '```')\n"},
        gone=("frame: rev dx, mended in 9",),
    )


assert set(VERDICTS) == {f.verdict for f in rich_run().findings}
