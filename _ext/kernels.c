/* The passes of refbn/backends/_contract.py, for one instruction set (REFBN_BUILD names it).
 *
 * Purpose. Every pass in every mix of the four formats and every layout, with a proved error bound.
 *
 * Assumptions. Round to nearest even, subnormals kept; compiled with -ffp-contract=off and without fast-math;
 * x, dy and x_dot do not overlap the outputs.
 *
 * Arithmetic. Plain binary64 (f64) if no tensor or vector of the call is binary64, u = 2^-53; otherwise
 * double-double (dd), u = 2^-103 (real_dd.h); double-double with a wide exponent (xd, same u) for slabs whose
 * exponents do not fit the other two (sweep.h).
 *
 * Error bound. That of refbn/reference/bounds.py: each output, before its one rounding to the output's
 * format, is off by at most K (h + 8) u times its majorant, with h = 24 whatever m is
 * (refbn.backends.native.arithmetic says so to others). Proof:
 *
 *   1. Sums. A summand passes through at most REFBN_STEPS = 16 additions within its lane of a tile. Tile sums
 *      are totalled in two parts (f64), three parts (dd) or with Kahan's compensation (xd), which costs 2 u
 *      together for m up to 2^35 (real_*.h). So h = 18 for every sum but those of `moments`.
 *   2. Statistics. bounds.py asks that the first mean lies within 1.05 std of the true one and that the data
 *      are centered again. Here the pivot p plays the first mean; the sweep is accepted when |mean(x - p)| <=
 *      std / 2, and mean = p + mean(x - p) is kept in two parts (f64) or three (dd, xd; see real_dd.h), so that
 *      x - mean is the second centering with the error of mean(x - p), at most (h + 3) u mean|x - p| <= 1.12
 *      (h + 3) u std. var = mean((x - p)^2) - mean(x - p)^2 subtracts at most a fifth of its first term; its
 *      error is at most 1.25 (h + 5) u var + 3 u var. Both are covered by 32 u = (24 + 8) u in place of (h +
 *      8) u = 26 u with the counts of lemmas 2 and 3 (3 for the mean and for d, 2 for var).
 *   3. Everything else follows the lines that bounds.py counts. Two things differ, both for the better:
 *      products such as mean(xhat u) take u itself in place of C u, which saves the 5 counts of C u and has
 *      the smaller majorant; and dx gathers the factors of P g, P u and xhat as in (D5), at one rounding less
 *      per element.
 *   4. A constant dy or x_dot is recognised, and its projection is 0 by (P2), without error.
 *
 * Test: pytest tests/backends/test_native.py
 */
#include "real_f64.h"
#include "real_xd.h"
#include "sweep.h"

enum { REFBN_PLAIN, REFBN_DD, REFBN_XD };

#define REFBN_JOIN(name, arithmetic) REFBN_JOIN_AGAIN(name, arithmetic)
#define REFBN_JOIN_AGAIN(name, arithmetic) name##_##arithmetic

#define ARITHMETIC f64
#define REAL refbn_f64
#define LEVEL REFBN_PLAIN
#define GUARDED 0
#include "kernels.inc.h"
#undef ARITHMETIC
#undef REAL
#undef LEVEL
#undef GUARDED

#define ARITHMETIC dd
#define REAL refbn_dd
#define LEVEL REFBN_DD
#define GUARDED 1
#include "kernels.inc.h"
#undef ARITHMETIC
#undef REAL
#undef LEVEL
#undef GUARDED

#define ARITHMETIC xd
#define REAL refbn_xd
#define LEVEL REFBN_XD
#define GUARDED 0
#include "kernels.inc.h"

/* Double-double as soon as one operand or output is binary64. */
static int refbn_arithmetic(const refbn_call *call)
{
    const refbn_tensor *tensors[] = {&call->x, &call->dy, &call->x_dot, &call->y, &call->dx};
    const refbn_vector *vectors[] = {
        &call->gamma,     &call->beta,     &call->mean,     &call->var,     &call->invstd,
        &call->gamma_dot, &call->beta_dot, &call->mean_dot, &call->var_dot,
        &call->dgamma,    &call->dbeta,    &call->dmean,    &call->dvar,
    };
    int wide = 0;
    for (size_t k = 0; k < sizeof tensors / sizeof *tensors; k++)
        wide |= tensors[k]->data && tensors[k]->format == REFBN_F64;
    for (size_t k = 0; k < sizeof vectors / sizeof *vectors; k++)
        wide |= vectors[k]->data && vectors[k]->format == REFBN_F64;
    return refbn_within(call->eps, 0x1p-300, 0x1p200) ? (wide ? REFBN_DD : REFBN_PLAIN) : REFBN_XD;
}

typedef int refbn_slab_pass(const refbn_call *call, const refbn_slab *slab);

static void refbn_run(refbn_call *call, refbn_slab_pass *f64, refbn_slab_pass *dd, refbn_slab_pass *xd)
{
    const int arithmetic = refbn_arithmetic(call);
    refbn_plan(call);
    for (refbn_slab slab = {0, 0, 0}; refbn_next_slab(call, &slab);)
        if (arithmetic == REFBN_XD || (arithmetic == REFBN_DD ? dd : f64)(call, &slab))
            xd(call, &slab);
}

static void refbn_clear(const refbn_call *call, const refbn_vector *vector)
{
    for (ptrdiff_t group = 0; vector->data && group < call->geometry.groups; group++)
        refbn_set(vector, group, 0.0);
}

/* `name` is the pass; `slab_pass` what computes it on a slab. (H3, I11): dbeta of a second-order pass is 0.
 * R6: sums over no elements are 0. */
#define REFBN_PASS(name, slab_pass, zero_dbeta)                                                              \
    static void refbn_##name(refbn_call *call)                                                               \
    {                                                                                                        \
        refbn_run(call, refbn_##slab_pass##_f64, refbn_##slab_pass##_dd, refbn_##slab_pass##_xd);            \
        if (zero_dbeta)                                                                                      \
            refbn_clear(call, &call->dbeta);                                                                 \
        if (call->geometry.count == 0) {                                                                     \
            refbn_clear(call, &call->dgamma);                                                                \
            refbn_clear(call, &call->dbeta);                                                                 \
            refbn_clear(call, &call->dmean);                                                                 \
            refbn_clear(call, &call->dvar);                                                                  \
        }                                                                                                    \
    }

REFBN_PASS(forward, forward, 0)
REFBN_PASS(backward, backward, 0)
REFBN_PASS(jvp, jvp, 0)
REFBN_PASS(double_backward, second_order, 0)
REFBN_PASS(hvp, second_order, 1)
REFBN_PASS(running_update, running_update, 0)
REFBN_PASS(inference, inference, 0)
REFBN_PASS(inference_backward, inference_backward, 0)
REFBN_PASS(inference_jvp, inference_jvp, 0)
REFBN_PASS(inference_double_backward, inference_double_backward, 0)
REFBN_PASS(inference_hvp, inference_hvp, 1)

#define REFBN_TEXT(name) REFBN_TEXT_AGAIN(name)
#define REFBN_TEXT_AGAIN(name) #name

extern const refbn_kernels REFBN_JOIN(refbn_kernels, REFBN_BUILD);

const refbn_kernels REFBN_JOIN(refbn_kernels, REFBN_BUILD) = {
    .name = REFBN_TEXT(REFBN_BUILD),
    .forward = refbn_forward,
    .backward = refbn_backward,
    .jvp = refbn_jvp,
    .double_backward = refbn_double_backward,
    .hvp = refbn_hvp,
    .running_update = refbn_running_update,
    .inference = refbn_inference,
    .inference_backward = refbn_inference_backward,
    .inference_jvp = refbn_inference_jvp,
    .inference_double_backward = refbn_inference_double_backward,
    .inference_hvp = refbn_inference_hvp,
};
