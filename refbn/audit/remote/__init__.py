"""Adapters that run in a process of their own: in another interpreter, or in this one with other variables set.

`interpreter` is the audit's side: an interpreter, the processes in it and a proxy that fulfils `Adapter`. `worker` is
the other side, `wire` what goes between, `start` the script with which such a process begins. The truth, the cases and
the comparison stay here, so that the other interpreter needs NumPy and its framework alone (``ml_dtypes`` for
bfloat16).
"""
