"""Running a study and writing what it found, in this process or in a worker."""

from __future__ import annotations

import argparse
import contextlib
import platform
import time
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np

from validation import report, studies
from validation.studies import data
from validation.studies.study import Context, Finding, Study

__all__ = ["Told", "apart", "carry_out"]


@dataclass(frozen=True)
class Told:
    """What is left of a study's run where it was run in another process."""

    id: str
    verdict: str
    because: str
    seconds: float


def apart(options: argparse.Namespace, identity: str) -> Told:
    """Run a study in a worker, and let the others go on if it fails."""
    begun = time.perf_counter()
    try:
        with contextlib.redirect_stdout(None):
            finding, seconds = carry_out(studies.load(identity), options)
    except Exception as error:
        traceback.print_exc()
        return Told(identity, "failed", f"{type(error).__name__}: {error}", time.perf_counter() - begun)
    return Told(identity, finding.verdict, finding.because, seconds)


def carry_out(study: Study, options: argparse.Namespace, shown: Any = None) -> tuple[Finding, float]:
    """Run a study and write its JSON and its figure; return the finding and how long it took."""
    from threadpoolctl import threadpool_limits

    from validation.studies import style

    context = Context(study.id, tuple(range(options.seeds)), options.quick, options.data, shown)
    begun, worked = time.perf_counter(), time.process_time()
    # One thread: the sums of BLAS depend on how many share them.
    with threadpool_limits(1), report.threads(1), style.look():
        finding = study.run(context)
        seconds = time.perf_counter() - begun
        name = f"{study.id}-quick" if options.quick else study.id
        document = {
            "title": study.title,
            "claim": study.claim,
            "source": study.source,
            "settings": {
                "seeds": context.seeds,
                "quick": context.quick,
                "data": None if context.data is None else data.recognize(context.data)[0],
            },
            "finding": finding.document(),
            "seconds": {"wall": round(seconds, 1), "processor": round(time.process_time() - worked, 1)},
            "versions": report.versions("matplotlib", "scikit-learn"),
            "arithmetic": _arithmetic(),
        }
        path = report.write(name, options, document)
        style.save(finding.figure, path.with_suffix(".png"))
    return finding, seconds


def _arithmetic() -> dict[str, Any]:
    """Return what sums and elementary functions may depend on beside the versions."""
    from threadpoolctl import threadpool_info

    blas = [{key: one.get(key) for key in ("internal_api", "version", "architecture")} for one in threadpool_info()]
    simd = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    return {"machine": platform.machine(), "libraries": sorted(blas, key=str), "simd": simd}
