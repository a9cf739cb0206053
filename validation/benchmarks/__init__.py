"""The speed of refbn beside PyTorch, JAX and a memory copy, measured in turns: ``python -m validation.benchmarks``.

How it is measured
------------------
For each number of threads there is one process, bound to as many cores, whose environment limits every library to
them. In it each case (shape, memory order, format) and pass brings all contenders together on the same inputs in the
same memory (64-byte aligned; JAX copies if it wants to). After a check that all compute the same, which also compiles,
and a warm-up round, each round calls every contender once, in an order drawn anew, so that a slow spell of the machine
and what the predecessor leaves in the caches meet all alike. A sample is at least `timing.SAMPLE_SECONDS` of calls in
a row, after a pause in which other libraries' threads go to sleep and, unless calls are long, one call that is not
timed. Results are dropped inside the timed region, as `timeit` does. Stated are medians; the minimum and the quartiles
are in the JSON.

What is measured
----------------
Of every library the quickest public way that we know, and where there are several, all; a ratio takes the one with
the lowest median. refbn with results that it allocates is compared with ways that do so too, refbn with ``out=`` with
all of them. Work that a caller does once and keeps is left out for all: refbn's `Saved`, PyTorch's saved statistics
and graphs, JAX's compilation and residuals.

forward
    `refbn.forward`; ``torch.native_batch_norm`` under ``inference_mode``, with and without ``out=``, and on small
    inputs ``F.batch_norm``; jitted jnp that returns y, mean, var and 1/√(var+ε).
backward
    ``torch.ops.aten.native_batch_norm_backward`` from saved statistics; JAX's vjp with x as an argument, which
    recomputes the forward, and the pull-back alone with its residuals computed before.
jvp
    ``F.batch_norm`` of dual numbers (which computes y again), and on small inputs the linear function that
    ``torch.func.linearize`` makes before (on large ones it is no quicker); ``jax.jvp``, and the linear function of
    ``jax.linearize``.
double_backward
    The second ``torch.autograd.grad`` alone, from (dx, dgamma, dbeta) to (dy, x, gamma), on one graph that
    ``retain_graph`` keeps: building it is never timed, and freeing it neither. JAX's vjp of its vjp, whole, and the
    outer pull-back alone.
copy
    ``x.copy(order="K")`` beside results that are allocated, ``numpy.copyto`` beside ``out=``: one tensor read and
    written, on one core always. For scale: what the passes must read and write is 1 (forward), 1.5 (backward, jvp)
    and 2.5 (double backward) such copies, if every tensor came from memory once.

``torch.compile`` is left out: it needs a C++ compiler beside PyTorch. PyTorch's passes beyond the forward have no
``out=`` that saves the allocation. Channels-last is ``torch.channels_last`` for PyTorch, the same memory as a strided
NCHW view for refbn, and an NHWC array for JAX.
"""
