"""A plain textbook batch norm against the golden vectors, without NumPy: ``python validation/vectors_reader.py FILE``.

Prints each result that it gets wrong, with its test's flags; exit status 1 if there are any.
"""

import json
import math
import sys
from pathlib import Path


def batch_norm(x, gamma, beta, dy, eps):
    """Return the results of one channel. The function under test: replace it with yours."""
    m = len(x)
    mean = sum(x) / m
    var = sum((v - mean) * (v - mean) for v in x) / m
    invstd = 1 / math.sqrt(var + eps)
    xhat = [(v - mean) * invstd for v in x]
    dbeta, dgamma = sum(dy), sum(g * h for g, h in zip(dy, xhat, strict=True))
    dx = [gamma * invstd * (g - dbeta / m - h * (dgamma / m)) for g, h in zip(dy, xhat, strict=True)]
    found = {"backward.dx": dx, "backward.dgamma": [dgamma], "backward.dbeta": [dbeta]}
    found |= {"forward.mean": [mean], "forward.var": [var], "forward.invstd": [invstd]}
    return found | {"forward.y": [gamma * h + beta for h in xhat]}


def right(got, value, bound):
    return (
        not math.isfinite(got) if math.isnan(value) else got == value or abs(got - value) <= bound or math.isinf(value)
    )


tests = json.loads(Path(sys.argv[1]).read_text(encoding="ascii"))["tests"]
wrong = 0
for test in tests:
    read = {name: [float.fromhex(v) for v in text.split()] for name, text in test["inputs"].items()}
    channels, inner = test["shape"][1], math.prod(test["shape"][2:])
    for c in range(channels if read["x"] else 0):
        x, dy = ([v for i, v in enumerate(read[name]) if i // inner % channels == c] for name in ("x", "dy"))
        for name, got in batch_norm(x, read["gamma"][c], read["beta"][c], dy, read["eps"][0]).items():
            value, bound = ([float.fromhex(v) for v in test["results"][name][k].split()] for k in ("value", "bound"))
            due = (
                value[c : c + 1]
                if len(got) < len(x)
                else [v for i, v in enumerate(value) if i // inner % channels == c]
            )
            if not all(right(g, v, bound[c]) for g, v in zip(got, due, strict=True)):
                wrong += 1
                print(f"{name} of {test['case']} {test['flags']}, channel {c}")
print(f"{len(tests)} tests, {wrong} results wrong")
sys.exit(wrong > 0)
