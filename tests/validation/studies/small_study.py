"""A study that takes no time, for the tests of what runs and reports studies."""

from validation.studies import style
from validation.studies.study import Finding, Measured, Study


def run(context):
    values = tuple(context.generator(seed).normal() for seed in context.progress(context.seeds, "seeds"))
    figure, axes = style.figure(1, 2)
    for one, kind in zip(axes, ("BN", "LN"), strict=True):
        one.plot(range(len(values)), values, **style.of(kind))
    style.letter(axes)
    numbers = (
        Measured("normal deviate", values, "units", "0"),
        Measured("infinity", (float("inf"),)),
    )
    verdict = "confirmed" if not context.quick else "partly"
    return Finding(verdict, "it is <so> & so", numbers, figure, "What one sees.", {"values": values})


STUDY = Study("E1", "A small study", "Numbers are normal.", "Gauss 1809", run)


def fail(context):
    raise ArithmeticError("no number came out")


BROKEN = Study("E2", "A broken study", "It breaks.", "nobody", fail)
