/* The passes' outputs, decided exactly.
 *
 * With m elements, S1 = sum x, G1 = sum g, U1 = sum u (g is dy; u is x_dot or ddx) and
 *     X = m x - S1       G = m g - G1       U = m u - U1
 *     D = m sum x^2 - S1^2    Q = D + m^2 eps = m^2 q
 *     W = m sum g x - S1 G1   V = m sum u x - S1 U1   Z = m sum u g - U1 G1
 * the training passes' outputs are
 *     E1  mean = S1 / m    var = D / m^2    invstd = m / sqrt(Q)    dbeta = G1
 *     E2  y = gamma X / sqrt(Q) + beta
 *     E3  dx = gamma (G Q - X W) / (Q sqrt(Q))              dgamma = W / sqrt(Q)
 *     E4  y_dot, ddy = [gamma (U Q - X V) + gamma_dot X Q] / (Q sqrt(Q)) + beta_dot
 *     E5  second-order dx = [-gamma (W U Q + V G Q + X Z Q - 3 X V W) + gamma_dot (G Q - X W) Q]
 *                           / (Q^2 sqrt(Q))
 *         second-order dgamma = (Z Q - V W) / (Q sqrt(Q))
 *     E6  running mean = (a S1 / m + b old), running var = (a D / m^2 + b old) or (a D / (m (m - 1)) + b old)
 * and with frozen statistics, where q = var + eps, GD = sum g (x - mean), GV = sum g (u - mean_dot) and
 * N = 2 gamma_dot q - gamma var_dot,
 *     E7  y = gamma (x - mean) / sqrt(q) + beta    invstd = 1 / sqrt(q)
 *     E8  dx = gamma g / sqrt(q)    dmean = -gamma G1 / sqrt(q)    dgamma = GD / sqrt(q)
 *         dvar = -gamma GD / (2 q sqrt(q))
 *     E9  y_dot, ddy = [2 gamma q (u - mean_dot) + N (x - mean)] / (2 q sqrt(q)) + beta_dot
 *     E10 second-order dx = N g / (2 q sqrt(q))    dmean = -N G1 / (2 q sqrt(q))
 *         dgamma = (2 q GV - var_dot GD) / (2 q sqrt(q))
 *         dvar = -[N GD + gamma (2 q GV - 2 var_dot GD)] / (4 q^2 sqrt(q))
 * Every tensor output is affine in x, g and u: a group computes the coefficients, an element at most three
 * products. An element is first looked at through 128 leading bits of everything, and where terms cancel
 * through 192 bits of the numerator; ties of a rational divisor are told by the lowest limbs of a sum that is
 * known to be small; whole exact numbers are left to what none of this decides. Which way is tried first
 * depends on what the last elements took, and no answer depends on the way.
 *
 * Test: pytest tests/backends/test_exact_rung.py
 */
#ifndef REFBN_EXACT_PASSES_H
#define REFBN_EXACT_PASSES_H

#include "exact.h"

_Static_assert(sizeof(refbn_exact_group) <= REFBN_EXACT_GROUP_BYTES, "a group fits");

/* ---- what a formula contains (rule R1) ----------------------------------------------------------------- */

enum {
    REFBN_EXACT_HAS_X = 1,
    REFBN_EXACT_HAS_G = 2,
    REFBN_EXACT_HAS_U = 4,
    REFBN_EXACT_HAS_GAMMA = 8,
    REFBN_EXACT_HAS_BETA = 16,
    REFBN_EXACT_HAS_MEAN = 32,
    REFBN_EXACT_HAS_VAR = 64,
    REFBN_EXACT_HAS_GAMMA_DOT = 128,
    REFBN_EXACT_HAS_BETA_DOT = 256,
    REFBN_EXACT_HAS_MEAN_DOT = 512,
    REFBN_EXACT_HAS_VAR_DOT = 1024,
    REFBN_EXACT_HAS_ROOT = 2048, /* rule R2: q is not positive */
    REFBN_EXACT_HAS_TENSORS = REFBN_EXACT_HAS_X | REFBN_EXACT_HAS_G | REFBN_EXACT_HAS_U
};

/* Sums, as bits of refbn_exact_group.sums, in the order of its accumulators. */
enum {
    REFBN_EXACT_SUM_X = 1,
    REFBN_EXACT_SUM_G = 2,
    REFBN_EXACT_SUM_U = 4,
    REFBN_EXACT_SUM_XX = 8,
    REFBN_EXACT_SUM_GX = 16,
    REFBN_EXACT_SUM_UX = 32,
    REFBN_EXACT_SUM_UG = 64,
    REFBN_EXACT_SUMS_OF_X = REFBN_EXACT_SUM_X | REFBN_EXACT_SUM_XX,
    REFBN_EXACT_SUMS_OF_G = REFBN_EXACT_SUM_G | REFBN_EXACT_SUM_GX,
    REFBN_EXACT_SUMS_OF_U = REFBN_EXACT_SUM_U | REFBN_EXACT_SUM_UX
};

static int refbn_exact_sums_of(int pass)
{
    switch (pass) {
    case REFBN_EXACT_FORWARD: return REFBN_EXACT_SUMS_OF_X;
    case REFBN_EXACT_BACKWARD: return REFBN_EXACT_SUMS_OF_X | REFBN_EXACT_SUMS_OF_G;
    case REFBN_EXACT_JVP: return REFBN_EXACT_SUMS_OF_X | REFBN_EXACT_SUMS_OF_U;
    case REFBN_EXACT_DOUBLE_BACKWARD:
    case REFBN_EXACT_HVP:
        return REFBN_EXACT_SUMS_OF_X | REFBN_EXACT_SUMS_OF_G | REFBN_EXACT_SUMS_OF_U | REFBN_EXACT_SUM_UG;
    case REFBN_EXACT_INFERENCE_BACKWARD: return REFBN_EXACT_SUMS_OF_G;
    case REFBN_EXACT_INFERENCE_DOUBLE_BACKWARD:
    case REFBN_EXACT_INFERENCE_HVP: return REFBN_EXACT_SUMS_OF_G | REFBN_EXACT_SUM_UG;
    default: return 0;
    }
}

static int refbn_exact_is_frozen(int pass) { return pass >= REFBN_EXACT_INFERENCE; }

static int refbn_exact_is_second_order(int pass)
{
    return pass == REFBN_EXACT_DOUBLE_BACKWARD || pass == REFBN_EXACT_HVP ||
           pass == REFBN_EXACT_INFERENCE_DOUBLE_BACKWARD || pass == REFBN_EXACT_INFERENCE_HVP;
}

static int refbn_exact_has_g(int pass)
{
    return pass == REFBN_EXACT_BACKWARD || pass == REFBN_EXACT_INFERENCE_BACKWARD ||
           refbn_exact_is_second_order(pass);
}

/* ---- sums ---------------------------------------------------------------------------------------------- */

/* Whether the pass uses an accumulator; the others are never touched. */
static int refbn_exact_sums(const refbn_exact_group *group, int i)
{
    return group->sums & REFBN_EXACT_SUM_X << i;
}

static int refbn_exact_multiplies(const refbn_exact_group *group, int i)
{
    return group->sums & REFBN_EXACT_SUM_XX << i;
}

void refbn_exact_begin(refbn_exact_group *group, int pass, uint64_t count, double eps)
{
    group->pass = pass;
    group->sums = refbn_exact_sums_of(pass);
    group->nan = group->root = 0;
    group->count = count;
    group->eps = eps;
    group->sums_pending = group->products_pending = 0;
    for (int i = 0; i < 3; i++)
        if (refbn_exact_sums(group, i))
            REFBN_EXACT_CLEAR(&group->sum[i], sizeof group->sum[i]);
    for (int i = 0; i < 4; i++)
        if (refbn_exact_multiplies(group, i))
            REFBN_EXACT_CLEAR(&group->product[i], sizeof group->product[i]);
}

static void refbn_exact_resolve_sums(refbn_exact_group *group)
{
    for (int i = 0; i < 6; i++)
        if (refbn_exact_sums(group, i / 2))
            refbn_exact_resolve(group->sum[i / 2].part[i % 2], REFBN_EXACT_SUM_PARTS);
    group->sums_pending = 0;
}

static void refbn_exact_resolve_products(refbn_exact_group *group)
{
    for (int i = 0; i < 8; i++)
        if (refbn_exact_multiplies(group, i / 2))
            refbn_exact_resolve(group->product[i / 2].part[i % 2], REFBN_EXACT_PRODUCT_PARTS);
    group->products_pending = 0;
}

/* The loop over elements; `sums` is a constant where it is inlined. */
REFBN_EXACT_INLINE void refbn_exact_gather_block(refbn_exact_group *group, int sums, const double *x,
                                                 const double *g, const double *u, ptrdiff_t n)
{
    const int with_x = sums & (REFBN_EXACT_SUMS_OF_X | REFBN_EXACT_SUM_GX | REFBN_EXACT_SUM_UX);
    const int with_g = sums & (REFBN_EXACT_SUMS_OF_G | REFBN_EXACT_SUM_UG);
    const int with_u = sums & (REFBN_EXACT_SUMS_OF_U | REFBN_EXACT_SUM_UG);
    const refbn_exact_parts zero = {0, 0, 0, 1};
    int finite_x = 1, finite_g = 1, finite_u = 1;
    for (ptrdiff_t i = 0; i < n; i++) {
        const refbn_exact_parts a = with_x ? refbn_exact_unpack(refbn_exact_bits(x[i])) : zero;
        const refbn_exact_parts b = with_g ? refbn_exact_unpack(refbn_exact_bits(g[i])) : zero;
        const refbn_exact_parts c = with_u ? refbn_exact_unpack(refbn_exact_bits(u[i])) : zero;
        finite_x &= a.finite;
        finite_g &= b.finite;
        finite_u &= c.finite;
        if (sums & REFBN_EXACT_SUM_X)
            refbn_exact_sum_add(&group->sum[0], &a);
        if (sums & REFBN_EXACT_SUM_G)
            refbn_exact_sum_add(&group->sum[1], &b);
        if (sums & REFBN_EXACT_SUM_U)
            refbn_exact_sum_add(&group->sum[2], &c);
        if (sums & REFBN_EXACT_SUM_XX)
            refbn_exact_product_add(&group->product[0], &a, &a);
        if (sums & REFBN_EXACT_SUM_GX)
            refbn_exact_product_add(&group->product[1], &b, &a);
        if (sums & REFBN_EXACT_SUM_UX)
            refbn_exact_product_add(&group->product[2], &c, &a);
        if (sums & REFBN_EXACT_SUM_UG)
            refbn_exact_product_add(&group->product[3], &c, &b);
    }
    group->nan |= (finite_x ? 0 : REFBN_EXACT_HAS_X) | (finite_g ? 0 : REFBN_EXACT_HAS_G) |
                  (finite_u ? 0 : REFBN_EXACT_HAS_U);
}

void refbn_exact_gather(refbn_exact_group *group, const double *x, const double *g, const double *u,
                        ptrdiff_t n)
{
    const int sums = group->sums &
                     ~((x ? 0 : REFBN_EXACT_SUMS_OF_X | REFBN_EXACT_SUM_GX | REFBN_EXACT_SUM_UX) |
                       (g ? 0 : REFBN_EXACT_SUMS_OF_G | REFBN_EXACT_SUM_UG) |
                       (u ? 0 : REFBN_EXACT_SUMS_OF_U | REFBN_EXACT_SUM_UG));
    for (ptrdiff_t start = 0; start < n && sums;) {
        if (group->sums_pending == REFBN_EXACT_SUM_PENDING)
            refbn_exact_resolve_sums(group);
        if (group->products_pending >= REFBN_EXACT_PRODUCT_PENDING)
            refbn_exact_resolve_products(group);
        const ptrdiff_t room = REFBN_EXACT_SUM_PENDING - group->sums_pending;
        const ptrdiff_t block = n - start < room ? n - start : room;
        const double *at_x = x ? x + start : x, *at_g = g ? g + start : g, *at_u = u ? u + start : u;
#define REFBN_EXACT_GATHER(pass_sums)                                                                        \
    case pass_sums: refbn_exact_gather_block(group, pass_sums, at_x, at_g, at_u, block); break;
        switch (sums) {
            REFBN_EXACT_GATHER(REFBN_EXACT_SUMS_OF_X)
            REFBN_EXACT_GATHER(REFBN_EXACT_SUMS_OF_X | REFBN_EXACT_SUMS_OF_G)
            REFBN_EXACT_GATHER(REFBN_EXACT_SUMS_OF_X | REFBN_EXACT_SUMS_OF_U)
            REFBN_EXACT_GATHER(REFBN_EXACT_SUMS_OF_X | REFBN_EXACT_SUMS_OF_G | REFBN_EXACT_SUMS_OF_U |
                               REFBN_EXACT_SUM_UG)
            REFBN_EXACT_GATHER(REFBN_EXACT_SUMS_OF_G)
            REFBN_EXACT_GATHER(REFBN_EXACT_SUMS_OF_G | REFBN_EXACT_SUM_UG)
        default: refbn_exact_gather_block(group, sums, at_x, at_g, at_u, block);
        }
#undef REFBN_EXACT_GATHER
        group->sums_pending += (int)block;
        group->products_pending += (int)block;
        start += block;
    }
}

/* Parts of `from` may be as large as 2^63 + 2^44, and still have room for one more. */
void refbn_exact_merge(refbn_exact_group *into, const refbn_exact_group *from)
{
    refbn_exact_resolve_sums(into);
    refbn_exact_resolve_products(into);
    for (int i = 0; i < 6; i++)
        for (int j = 0; j < REFBN_EXACT_SUM_PARTS && refbn_exact_sums(into, i / 2); j++)
            into->sum[i / 2].part[i % 2][j] += from->sum[i / 2].part[i % 2][j];
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < REFBN_EXACT_PRODUCT_PARTS && refbn_exact_multiplies(into, i / 2); j++)
            into->product[i / 2].part[i % 2][j] += from->product[i / 2].part[i % 2][j];
    into->nan |= from->nan;
    refbn_exact_resolve_sums(into);
    refbn_exact_resolve_products(into);
}

/* ---- from sums to coefficients ------------------------------------------------------------------------- */

static void refbn_exact_sum_of_products(refbn_exact_number *into, const refbn_exact_group *group, int i)
{
    refbn_exact_from_accumulator(into, group->product[i].part[0], group->product[i].part[1],
                                 REFBN_EXACT_PRODUCT_PARTS, -34);
}

/* m sum a b - sum a sum b, for tensors a, b whose products are those of accumulator i; 0 if the pass has
 * none. */
static void refbn_exact_comoment(refbn_exact_number *into, const refbn_exact_group *group, int i, int a,
                                 int b)
{
    refbn_exact_number sum, scaled, product;
    if (!refbn_exact_multiplies(group, i)) {
        refbn_exact_zero(into);
        return;
    }
    refbn_exact_sum_of_products(&sum, group, i);
    refbn_exact_multiply_integer(&scaled, &sum, group->count);
    refbn_exact_multiply(&product, &group->total[a], &group->total[b]);
    refbn_exact_subtract(into, &scaled, &product);
}

/* sum g a - b sum g, for the tensor a whose products with g are those of accumulator i; or 0. */
static void refbn_exact_moment_about(refbn_exact_number *into, const refbn_exact_group *group, int i,
                                     double b)
{
    refbn_exact_number sum, product;
    if (!refbn_exact_multiplies(group, i)) {
        refbn_exact_zero(into);
        return;
    }
    refbn_exact_sum_of_products(&sum, group, i);
    refbn_exact_multiply_double(&product, &group->total[1], b);
    refbn_exact_subtract(into, &sum, &product);
}

/* gamma_dot q - gamma b, both doubled or not; the numerator of d(gamma / sqrt q). */
static void refbn_exact_crossed(refbn_exact_number *into, const refbn_exact_number *q,
                                const refbn_exact_number *b, const refbn_exact_parameters *p)
{
    refbn_exact_number left, right;
    refbn_exact_multiply_double(&left, q, p->gamma_dot);
    refbn_exact_multiply_double(&right, b, p->gamma);
    refbn_exact_subtract(into, &left, &right);
}

/* N = 2 gamma_dot q - gamma var_dot. */
static void refbn_exact_frozen_slope(refbn_exact_number *into, const refbn_exact_group *group)
{
    refbn_exact_number var_dot, twice;
    refbn_exact_multiply_integer(&twice, &group->q, 2);
    refbn_exact_from_double(&var_dot, group->parameters.var_dot);
    refbn_exact_crossed(into, &twice, &var_dot, &group->parameters);
}

/* 2 q GV - var_dot GD. */
static void refbn_exact_frozen_dgamma(refbn_exact_number *into, const refbn_exact_group *group)
{
    refbn_exact_number left, twice, right;
    refbn_exact_multiply(&left, &group->q, &group->ug);
    refbn_exact_multiply_integer(&twice, &left, 2);
    refbn_exact_multiply_double(&right, &group->gx, group->parameters.var_dot);
    refbn_exact_subtract(into, &twice, &right);
}

/* q^power times an integer. */
static void refbn_exact_power(refbn_exact_number *into, const refbn_exact_number *q, int power,
                              uint64_t times)
{
    refbn_exact_number product;
    refbn_exact_from_integer(into, times);
    for (; power > 0; power--) {
        refbn_exact_multiply(&product, into, q);
        refbn_exact_copy(into, &product);
    }
}

/* What y's and dx's formulas contain. */
static int refbn_exact_contents(int pass, int output)
{
    const int derivative = REFBN_EXACT_HAS_X | REFBN_EXACT_HAS_GAMMA | REFBN_EXACT_HAS_ROOT |
                           REFBN_EXACT_HAS_U | REFBN_EXACT_HAS_GAMMA_DOT | REFBN_EXACT_HAS_BETA_DOT;
    const int statistics = REFBN_EXACT_HAS_MEAN | REFBN_EXACT_HAS_VAR;
    if (output == REFBN_EXACT_Y)
        switch (pass) {
        case REFBN_EXACT_FORWARD:
            return REFBN_EXACT_HAS_X | REFBN_EXACT_HAS_GAMMA | REFBN_EXACT_HAS_BETA | REFBN_EXACT_HAS_ROOT;
        case REFBN_EXACT_INFERENCE:
            return REFBN_EXACT_HAS_X | REFBN_EXACT_HAS_GAMMA | REFBN_EXACT_HAS_BETA | REFBN_EXACT_HAS_ROOT |
                   statistics;
        case REFBN_EXACT_JVP:
        case REFBN_EXACT_DOUBLE_BACKWARD: return derivative;
        case REFBN_EXACT_INFERENCE_JVP:
        case REFBN_EXACT_INFERENCE_DOUBLE_BACKWARD:
            return derivative | statistics | REFBN_EXACT_HAS_MEAN_DOT | REFBN_EXACT_HAS_VAR_DOT;
        default: return 0;
        }
    switch (pass) {
    case REFBN_EXACT_BACKWARD:
        return REFBN_EXACT_HAS_X | REFBN_EXACT_HAS_GAMMA | REFBN_EXACT_HAS_G | REFBN_EXACT_HAS_ROOT;
    case REFBN_EXACT_DOUBLE_BACKWARD:
    case REFBN_EXACT_HVP:
        return REFBN_EXACT_HAS_X | REFBN_EXACT_HAS_GAMMA | REFBN_EXACT_HAS_G | REFBN_EXACT_HAS_U |
               REFBN_EXACT_HAS_GAMMA_DOT | REFBN_EXACT_HAS_ROOT;
    case REFBN_EXACT_INFERENCE_BACKWARD:
        return REFBN_EXACT_HAS_VAR | REFBN_EXACT_HAS_GAMMA | REFBN_EXACT_HAS_G | REFBN_EXACT_HAS_ROOT;
    case REFBN_EXACT_INFERENCE_DOUBLE_BACKWARD:
    case REFBN_EXACT_INFERENCE_HVP:
        return REFBN_EXACT_HAS_VAR | REFBN_EXACT_HAS_GAMMA | REFBN_EXACT_HAS_G | REFBN_EXACT_HAS_VAR_DOT |
               REFBN_EXACT_HAS_GAMMA_DOT | REFBN_EXACT_HAS_ROOT;
    default: return 0;
    }
}

/* k_x, k_g, k_u of A = k_x X + k_g G + k_u U (E2-E5), and the power of Q in the divisor. */
static int refbn_exact_trained_slopes(refbn_exact_number k[3], const refbn_exact_group *group, int output)
{
    const refbn_exact_parameters *p = &group->parameters;
    refbn_exact_number left, right, part;
    if (group->pass == REFBN_EXACT_FORWARD) { /* E2 */
        refbn_exact_from_double(&k[0], p->gamma);
        return 0;
    }
    if (group->pass == REFBN_EXACT_BACKWARD) { /* E3 */
        refbn_exact_multiply_double(&k[0], &group->gx, p->gamma);
        refbn_exact_negate(&k[0]);
        refbn_exact_multiply_double(&k[1], &group->q, p->gamma);
        return 1;
    }
    refbn_exact_crossed(&part, &group->q, &group->ux, p); /* gamma_dot Q - gamma V */
    if (output == REFBN_EXACT_Y) {                        /* E4 */
        refbn_exact_copy(&k[0], &part);
        refbn_exact_multiply_double(&k[2], &group->q, p->gamma);
        return 1;
    }
    /* E5: k_g = Q (gamma_dot Q - gamma V), k_u = -gamma W Q,
     * k_x = gamma (3 V W - Z Q) - gamma_dot W Q = gamma (2 V W - Z Q) - W (gamma_dot Q - gamma V) */
    refbn_exact_multiply(&k[1], &group->q, &part);
    refbn_exact_multiply(&left, &group->gx, &part);
    refbn_exact_multiply(&part, &group->ux, &group->gx);
    refbn_exact_multiply_integer(&right, &part, 2);
    refbn_exact_multiply(&part, &group->ug, &group->q);
    refbn_exact_subtract(&k[2], &right, &part);
    refbn_exact_multiply_double(&right, &k[2], p->gamma);
    refbn_exact_subtract(&k[0], &right, &left);
    refbn_exact_multiply(&part, &group->gx, &group->q);
    refbn_exact_multiply_double(&k[2], &part, p->gamma);
    refbn_exact_negate(&k[2]);
    return 2;
}

/* The coefficients of x, g, u and 1 with frozen statistics (E7-E10), and the divisor's power and factor. */
static int refbn_exact_frozen_slopes(refbn_exact_number k[4], const refbn_exact_group *group, int output,
                                     int *factor)
{
    const refbn_exact_parameters *p = &group->parameters;
    refbn_exact_number left, right, part;
    *factor = 1;
    if (group->pass == REFBN_EXACT_INFERENCE) { /* E7 */
        refbn_exact_from_double(&k[0], p->gamma);
        refbn_exact_multiply_double(&k[3], &k[0], p->mean);
        refbn_exact_negate(&k[3]);
        return 0;
    }
    if (group->pass == REFBN_EXACT_INFERENCE_BACKWARD) { /* E8 */
        refbn_exact_from_double(&k[1], p->gamma);
        return 0;
    }
    *factor = 2;
    refbn_exact_frozen_slope(&part, group);
    if (output == REFBN_EXACT_DX) { /* E10 */
        refbn_exact_copy(&k[1], &part);
        return 1;
    }
    /* E9 */
    refbn_exact_copy(&k[0], &part);
    refbn_exact_multiply_double(&left, &group->q, p->gamma);
    refbn_exact_multiply_integer(&k[2], &left, 2);
    refbn_exact_multiply_double(&left, &k[2], p->mean_dot);
    refbn_exact_multiply_double(&right, &k[0], p->mean);
    refbn_exact_add(&k[3], &left, &right);
    refbn_exact_negate(&k[3]);
    return 1;
}

enum { REFBN_EXACT_NO_TOP = -(1 << 20) }; /* of zero */

/* The constant part of a form, in the frame of refbn_exact_approximate. */
static void refbn_exact_set_constant(refbn_exact_form *form)
{
    const refbn_exact_leading part[2] = {form->leading[3], form->leading_offset};
    form->constant_top = REFBN_EXACT_NO_TOP;
    form->constant = (refbn_exact_pair){0, 0};
    for (int i = 0; i < 2; i++)
        if (part[i].sign && part[i].top > form->constant_top)
            form->constant_top = part[i].top;
    for (int i = 0; i < 2; i++)
        if (part[i].sign)
            form->constant = refbn_exact_pair_add(
                form->constant,
                refbn_exact_pair_flip(refbn_exact_pair_shift((refbn_exact_pair){part[i].hi, part[i].lo},
                                                             form->constant_top - part[i].top + 4),
                                      0 - (uint64_t)(part[i].sign < 0)));
}

static void refbn_exact_prepare(refbn_exact_group *group, int output)
{
    refbn_exact_form *form = &group->form[output];
    const int contents = refbn_exact_contents(group->pass, output);
    const int frozen = refbn_exact_is_frozen(group->pass);
    form->present = contents != 0;
    form->reads = contents & REFBN_EXACT_HAS_TENSORS;
    /* A frozen element contains no other elements. */
    form->undefined = (group->nan & (frozen ? contents & ~REFBN_EXACT_HAS_TENSORS : contents)) != 0;
    form->memo_format = -1;
    form->zero = 0;
    form->decided = form->zeros = 0;
    form->rational = -1;
    if (!form->present || form->undefined)
        return;
    refbn_exact_number *k = form->coefficient, product, sum, slope;
    int power, factor = 1;
    for (int i = 0; i < 4; i++)
        refbn_exact_zero(&k[i]);
    if (frozen) {
        power = refbn_exact_frozen_slopes(k, group, output, &factor);
    } else {
        power = refbn_exact_trained_slopes(k, group, output);
        for (int i = 0; i < 3; i++) { /* k (m x - S1): m k and -k S1 */
            refbn_exact_multiply(&product, &k[i], &group->total[i]);
            refbn_exact_subtract(&sum, &k[3], &product);
            refbn_exact_copy(&k[3], &sum);
            refbn_exact_copy(&slope, &k[i]);
            refbn_exact_multiply_integer(&k[i], &slope, group->count);
        }
    }
    refbn_exact_power(&product, &group->q, power, (uint64_t)factor);
    refbn_exact_divisor_set(&form->divisor, &product, &group->q);
    for (int i = 0; i < 4; i++)
        form->leading[i] = refbn_exact_leading_multiply(refbn_exact_leading_of(&k[i]), form->divisor.inverse);
    refbn_exact_from_double(&form->offset, contents & REFBN_EXACT_HAS_BETA       ? group->parameters.beta
                                           : contents & REFBN_EXACT_HAS_BETA_DOT ? group->parameters.beta_dot
                                                                                 : 0);
    for (int i = 0; i < 4; i++)
        form->wide[i] = refbn_exact_wide_of(&k[i]);
    form->leading_offset = refbn_exact_leading_of(&form->offset);
    form->active = frozen ? form->reads : 0;
    for (int i = 0; i < 3; i++) {
        form->active |= (k[i].sign != 0) << i;
        if (!k[i].sign)
            form->leading[i].top = REFBN_EXACT_NO_TOP;
    }
    refbn_exact_set_constant(form);
}

void refbn_exact_solve(refbn_exact_group *group, const refbn_exact_parameters *parameters)
{
    const int pass = group->pass, frozen = refbn_exact_is_frozen(pass);
    const uint64_t m = group->count;
    refbn_exact_number scaled, term, eps;
    refbn_exact_parameters *p = &group->parameters;
    *p = *parameters;
    const double values[8] = {p->gamma,     p->beta,     p->mean,     p->var,
                              p->gamma_dot, p->beta_dot, p->mean_dot, p->var_dot};
    for (int i = 0; i < 8; i++)
        if (!refbn_exact_is_finite(refbn_exact_bits(values[i])))
            group->nan |= REFBN_EXACT_HAS_GAMMA << i;
    refbn_exact_resolve_sums(group);
    refbn_exact_resolve_products(group);
    for (int i = 0; i < 3; i++)
        if (refbn_exact_sums(group, i))
            refbn_exact_from_accumulator(&group->total[i], group->sum[i].part[0], group->sum[i].part[1],
                                         REFBN_EXACT_SUM_PARTS, -17);
        else
            refbn_exact_zero(&group->total[i]);
    refbn_exact_from_double(&eps, group->eps);
    if (frozen) {
        refbn_exact_from_double(&term, p->var);
        refbn_exact_add(&group->q, &term, &eps);
        refbn_exact_moment_about(&group->gx, group, 1, p->mean);
        refbn_exact_moment_about(&group->ug, group, 3, p->mean_dot);
    } else {
        refbn_exact_comoment(&group->spread, group, 0, 0, 0);
        refbn_exact_multiply_integer(&scaled, &eps, m);
        refbn_exact_multiply_integer(&term, &scaled, m);
        refbn_exact_add(&group->q, &group->spread, &term);
        refbn_exact_comoment(&group->gx, group, 1, 1, 0);
        refbn_exact_comoment(&group->ux, group, 2, 2, 0);
        refbn_exact_comoment(&group->ug, group, 3, 2, 1);
    }
    group->root = group->q.sign;
    if (group->root <= 0)
        group->nan |= REFBN_EXACT_HAS_ROOT;
    refbn_exact_prepare(group, REFBN_EXACT_Y);
    refbn_exact_prepare(group, REFBN_EXACT_DX);
}

/* ---- vector outputs ------------------------------------------------------------------------------------ */

double refbn_exact_round(const refbn_exact_number *a, const refbn_exact_number *c,
                         const refbn_exact_number *r, const refbn_exact_number *b, int format)
{
    refbn_exact_divisor divisor;
    refbn_exact_number zero;
    refbn_exact_zero(&zero);
    refbn_exact_divisor_set(&divisor, c, r);
    return refbn_exact_double(
        refbn_exact_quotient(a, &divisor, b ? b : &zero, refbn_exact_leading_of(b ? b : &zero), format));
}

static double refbn_exact_round_root(const refbn_exact_group *group, const refbn_exact_number *a, int power,
                                     uint64_t factor, int format)
{
    refbn_exact_number c;
    refbn_exact_power(&c, &group->q, power, factor);
    return refbn_exact_round(a, &c, &group->q, NULL, format);
}

/* Everything that contains dy; a is the numerator. */
static double refbn_exact_gradient(const refbn_exact_group *group, int output, int format)
{
    const refbn_exact_parameters *p = &group->parameters;
    const int frozen = refbn_exact_is_frozen(group->pass), second = refbn_exact_is_second_order(group->pass);
    const int dgamma = output == REFBN_EXACT_DGAMMA;
    refbn_exact_number a, left, right, slope;
    int contents = REFBN_EXACT_HAS_G | REFBN_EXACT_HAS_ROOT;
    if (output != REFBN_EXACT_DMEAN)
        contents |= REFBN_EXACT_HAS_X | (second ? REFBN_EXACT_HAS_U : 0);
    if (frozen) {
        contents |= REFBN_EXACT_HAS_VAR | (second ? REFBN_EXACT_HAS_VAR_DOT : 0);
        if (output != REFBN_EXACT_DMEAN)
            contents |= REFBN_EXACT_HAS_MEAN | (second ? REFBN_EXACT_HAS_MEAN_DOT : 0);
        if (!dgamma)
            contents |= REFBN_EXACT_HAS_GAMMA | (second ? REFBN_EXACT_HAS_GAMMA_DOT : 0);
    }
    if (group->nan & contents)
        return refbn_exact_double(REFBN_EXACT_NAN);
    if (!frozen) {
        if (!second) /* E3 */
            return refbn_exact_round_root(group, &group->gx, 0, 1, format);
        refbn_exact_multiply(&left, &group->ug, &group->q); /* E5 */
        refbn_exact_multiply(&right, &group->ux, &group->gx);
        refbn_exact_subtract(&a, &left, &right);
        return refbn_exact_round_root(group, &a, 1, 1, format);
    }
    if (!second) { /* E8 */
        if (dgamma)
            return refbn_exact_round_root(group, &group->gx, 0, 1, format);
        const int dmean = output == REFBN_EXACT_DMEAN;
        refbn_exact_multiply_double(&a, dmean ? &group->total[1] : &group->gx, p->gamma);
        refbn_exact_negate(&a);
        return refbn_exact_round_root(group, &a, dmean ? 0 : 1, dmean ? 1 : 2, format);
    }
    if (output == REFBN_EXACT_DMEAN) { /* E10 */
        refbn_exact_frozen_slope(&slope, group);
        refbn_exact_multiply(&a, &slope, &group->total[1]);
        refbn_exact_negate(&a);
        return refbn_exact_round_root(group, &a, 1, 2, format);
    }
    refbn_exact_frozen_dgamma(&a, group);
    if (dgamma)
        return refbn_exact_round_root(group, &a, 1, 2, format);
    refbn_exact_multiply_double(&right, &group->gx, p->var_dot);
    refbn_exact_subtract(&left, &a, &right);
    refbn_exact_multiply_double(&right, &left, p->gamma);
    refbn_exact_frozen_slope(&slope, group);
    refbn_exact_multiply(&left, &slope, &group->gx);
    refbn_exact_add(&a, &left, &right);
    refbn_exact_negate(&a);
    return refbn_exact_round_root(group, &a, 2, 4, format);
}

double refbn_exact_vector(const refbn_exact_group *group, int output, int format)
{
    const int frozen = refbn_exact_is_frozen(group->pass);
    refbn_exact_number one, m, square;
    refbn_exact_from_integer(&one, 1);
    refbn_exact_from_integer(&m, group->count);
    switch (output) {
    case REFBN_EXACT_MEAN: /* E1 */
    case REFBN_EXACT_VAR:
        if (frozen || group->nan & REFBN_EXACT_HAS_X)
            return refbn_exact_double(REFBN_EXACT_NAN);
        if (output == REFBN_EXACT_MEAN)
            return refbn_exact_round(&group->total[0], &m, NULL, NULL, format);
        refbn_exact_multiply(&square, &m, &m);
        return refbn_exact_round(&group->spread, &square, NULL, NULL, format);
    case REFBN_EXACT_INVSTD: /* E1, E7 */
        if (group->nan & (frozen ? REFBN_EXACT_HAS_VAR : REFBN_EXACT_HAS_X) || group->root < 0)
            return refbn_exact_double(REFBN_EXACT_NAN);
        if (!group->root)
            return refbn_exact_double(REFBN_EXACT_INFINITY);
        return refbn_exact_round(frozen ? &one : &m, &one, &group->q, NULL, format);
    case REFBN_EXACT_DBETA:
        if (refbn_exact_is_second_order(group->pass))
            return refbn_exact_double(0);
        if (group->nan & REFBN_EXACT_HAS_G)
            return refbn_exact_double(REFBN_EXACT_NAN);
        return refbn_exact_round(&group->total[1], &one, NULL, NULL, format);
    default:
        if (!refbn_exact_has_g(group->pass) || !group->count) /* rule R6 */
            return refbn_exact_double(0);
        return refbn_exact_gradient(group, output, format);
    }
}

double refbn_exact_running(const refbn_exact_group *group, int is_var, int unbiased, double numerator,
                           double denominator, int weighs_new, double old, int format)
{
    refbn_exact_number n, d, rest, m, divisor, product, a;
    if (group->nan & REFBN_EXACT_HAS_X || !refbn_exact_is_finite(refbn_exact_bits(old)))
        return refbn_exact_double(REFBN_EXACT_NAN);
    refbn_exact_from_double(&n, numerator);
    refbn_exact_from_double(&d, denominator);
    refbn_exact_subtract(&rest, &d, &n);
    /* E6: [new statistic / divisor] new_weight / d + old old_weight / d */
    refbn_exact_from_integer(&m, group->count);
    if (is_var)
        refbn_exact_multiply_integer(&divisor, &m, unbiased ? group->count - 1 : group->count);
    else
        refbn_exact_copy(&divisor, &m);
    refbn_exact_multiply(&product, is_var ? &group->spread : &group->total[0], weighs_new ? &n : &rest);
    refbn_exact_multiply_double(&a, &divisor, old);
    refbn_exact_multiply(&m, &a, weighs_new ? &rest : &n);
    refbn_exact_add(&a, &product, &m);
    refbn_exact_multiply(&product, &divisor, &d);
    return refbn_exact_round(&a, &product, NULL, NULL, format);
}

/* ---- elements ------------------------------------------------------------------------------------------ */

/* An element's output is about sum 2^(top - 124): less than 2^error units off. */
typedef struct {
    refbn_exact_pair sum;
    int top, finite, error;
} refbn_exact_approximation;

/* A coefficient is an integer of 128 bits that is off by less than 2^11 + 8 (2^10 + 3 units of 2^-127 of it),
 * an element one of 64 bits. The upper 128 bits of their product are off by no more and 2 for the cut, in
 * the sum's frame by 2^7 + 2; the constant by 2^7 + 5, its own cuts and the last one included; a negative
 * is taken 1 too low. In all less than 2^9 + 2^6. A term is below 2^124 there, the constant below 2^125. */
REFBN_EXACT_INLINE refbn_exact_approximation refbn_exact_approximate(const refbn_exact_form *form, int active,
                                                                     const uint64_t bits[3])
{
    refbn_exact_approximation to = {{0, 0}, form->constant_top, 1, 10};
    refbn_exact_pair product[3] = {{0, 0}};
    uint64_t negative[3] = {0, 0, 0};
    int top[3] = {0, 0, 0};
    for (int i = 0; i < 3; i++) {
        if (!(active >> i & 1))
            continue;
        const refbn_exact_leading *k = &form->leading[i];
        const int biased = (int)(bits[i] >> 52 & 0x7ff);
        uint64_t high, mantissa = bits[i] << 11 | (uint64_t)1 << 63;
        top[i] = k->top + biased - 1022;
        negative[i] = 0 - ((bits[i] >> 63) ^ (k->sign < 0));
        to.finite &= biased != 0x7ff;
        if (!biased) {
            mantissa <<= 1;
            const int shift = mantissa ? 64 - refbn_exact_width(mantissa) : 0;
            top[i] = mantissa ? k->top - 1022 - shift : REFBN_EXACT_NO_TOP;
            mantissa <<= shift;
        }
        (void)refbn_exact_muladd(k->lo, mantissa, 0, 0, &high);
        product[i].lo = refbn_exact_muladd(k->hi, mantissa, high, 0, &product[i].hi);
        to.top = top[i] > to.top ? top[i] : to.top;
    }
    const int behind = to.top - form->constant_top; /* the sign is shifted in */
    const uint64_t sign = 0 - (form->constant.hi >> 63);
    const refbn_exact_pair constant = refbn_exact_pair_flip(form->constant, sign);
    to.sum = refbn_exact_pair_flip(refbn_exact_pair_shift(constant, behind), sign);
    for (int i = 0; i < 3; i++)
        if (active >> i & 1)
            to.sum = refbn_exact_pair_add(
                to.sum,
                refbn_exact_pair_flip(refbn_exact_pair_shift(product[i], to.top - top[i] + 4), negative[i]));
    return to;
}

/* The bit that is the sign in the format's encoding. */
static inline int refbn_exact_sign_bit(refbn_exact_format f)
{
    return f.precision == 53 ? 63 : f.precision == 24 ? 31 : 15;
}

static inline uint64_t refbn_exact_nan_code(refbn_exact_format f)
{
    return refbn_exact_infinite_code(f) | (uint64_t)1 << (f.precision - 2);
}

/* Whether an approximation suffices to round; `code` is the result's with its sign.
 *
 * Both ends of an interval round alike if what follows the bits kept is further from one half than they are
 * from the middle; beyond a power of two, too, since then it is close to 0 or 1 there. */
REFBN_EXACT_INLINE int refbn_exact_round_approximation(refbn_exact_approximation a, refbn_exact_format f,
                                                       uint64_t *code)
{
    const refbn_exact_pair m = refbn_exact_pair_flip(a.sum, 0 - (a.sum.hi >> 63)); /* at most 1 too low */
    if (REFBN_EXACT_IS_BLIND || !m.hi)
        return 0;
    const int shift = 64 - refbn_exact_width(m.hi);
    const uint64_t hi = m.hi << shift | m.lo >> 1 >> (63 - shift), lo = m.lo << shift;
    const int e = a.top + 3 - shift; /* of the first bit */
    int drop = 128 - f.precision;    /* bits behind the last one kept */
    uint64_t magnitude = 0;
    if (e < f.emin)
        drop += f.emin - e;
    else
        magnitude = (uint64_t)(e - f.emin) << (f.precision - 1);
    if (drop > 127 || a.error + shift > 60)
        return 0;
    const uint64_t rest = hi << (128 - drop) | lo >> (drop - 64);
    /* in 2^-64 of the last bit kept */
    const uint64_t error = ((uint64_t)1 << (a.error + shift) >> (drop - 64)) + 3;
    if (rest - ((uint64_t)1 << 63) + error <= 2 * error)
        return 0;
    magnitude += (hi >> (drop - 64)) + (rest >> 63);
    const uint64_t infinity = refbn_exact_infinite_code(f);
    *code = (e > f.emax || magnitude > infinity ? infinity : magnitude) |
            a.sum.hi >> 63 << refbn_exact_sign_bit(f);
    return 1;
}

/* Make the exact root of the divisor, if it has one. */
static int refbn_exact_is_rational(refbn_exact_form *form)
{
    refbn_exact_number root, product;
    if (form->rational < 0) {
        form->rational = refbn_exact_square_root(&root, &form->divisor.radicand);
        if (form->rational) {
            refbn_exact_multiply(&form->root, &root, &form->divisor.factor);
            refbn_exact_multiply(&product, &form->root, &form->offset);
            refbn_exact_add(&form->rational_constant, &form->coefficient[3], &product);
        }
    }
    return form->rational;
}

/* The coefficients that are not 0, and what they are multiplied by. */
static int refbn_exact_terms(const refbn_exact_form *form, const uint64_t bits[3],
                             const refbn_exact_number *factor[], refbn_exact_parts *parts)
{
    int n = 0;
    for (int i = 0; i < 3; i++)
        if (form->coefficient[i].sign) {
            factor[n] = &form->coefficient[i];
            parts[n++] = refbn_exact_unpack(bits[i]);
        }
    return n;
}

/* An element between two neighbours in the format: V is compared with the middle T by
 *     sign(V - T) = sign(k_x x + k_g g + k_u u + (k_1 + B D) - T D),    D the divisor, here rational.
 * T lies where V does, so |V - T| < 2^(top - 113), and D < 2^(2 - inverse.top). Returns whether that was
 * enough. */
static int refbn_exact_try_tie(refbn_exact_form *form, const uint64_t bits[3],
                               refbn_exact_approximation about, refbn_exact_format f, uint64_t *code)
{
    const refbn_exact_number *factor[4];
    refbn_exact_parts parts[4];
    uint64_t low[REFBN_EXACT_LOW_LIMBS], any = 0;
    int exponent, base;
    if (REFBN_EXACT_IS_BLIND || !about.sum.hi || !~about.sum.hi || !refbn_exact_is_rational(form))
        return 0;
    const refbn_exact_range range =
        refbn_exact_range_of(about.sum.hi, about.sum.lo, about.top - 124, 1 << 10, f);
    if (!range.sign || range.high != range.low + 1)
        return 0;
    const uint64_t mantissa = refbn_exact_decode(range.low, f, &exponent);
    const int n = refbn_exact_terms(form, bits, factor, parts);
    factor[n] = &form->root;
    parts[n] = (refbn_exact_parts){2 * mantissa + 1, exponent - 1 + 1088, range.sign > 0, 1};
    const int limbs = refbn_exact_low_sum(low, &base, factor, parts, n + 1, &form->rational_constant,
                                          about.top - 111 - form->divisor.inverse.top);
    if (!limbs)
        return 0;
    for (int i = 0; i < limbs; i++)
        any |= low[i];
    const int above = (int)(low[limbs - 1] >> 63) ^ (range.sign > 0);
    *code = !any ? range.low + (range.low & 1) : above ? range.high : range.low;
    *code |= (uint64_t)(range.sign < 0) << refbn_exact_sign_bit(f);
    return 1;
}

/* a / divisor, for an `a` known to 2^(error - 128) of it. What the division adds is below 2^8 in 2^-124. */
static inline refbn_exact_approximation refbn_exact_divide(refbn_exact_leading a, int error,
                                                           const refbn_exact_divisor *divisor)
{
    const refbn_exact_leading v = refbn_exact_leading_multiply(a, divisor->inverse);
    const refbn_exact_pair whole = {v.hi, v.lo};
    return (refbn_exact_approximation){
        refbn_exact_pair_flip(refbn_exact_pair_shift(whole, 4), 0 - (uint64_t)(v.sign < 0)), v.top, 1,
        error > 10 ? error : 10};
}

/* Add a 2^-shift, or its negative less 1, in units of the last bit of `sum`. */
REFBN_EXACT_INLINE void refbn_exact_wide_add(uint64_t sum[3], const uint64_t a[3], int shift, uint64_t mask)
{
    uint64_t b[3] = {a[0], a[1], a[2]}, carry = 0;
    if (shift >= 192)
        return;
    for (; shift >= 64; shift -= 64) {
        b[0] = b[1];
        b[1] = b[2];
        b[2] = 0;
    }
    b[0] = b[0] >> shift | b[1] << 1 << (63 - shift);
    b[1] = b[1] >> shift | b[2] << 1 << (63 - shift);
    b[2] >>= shift;
    sum[0] = refbn_exact_add_limb(sum[0], b[0] ^ mask, &carry);
    sum[1] = refbn_exact_add_limb(sum[1], b[1] ^ mask, &carry);
    sum[2] += (b[2] ^ mask) + carry;
}

/* An element of a form without offset through 192 bits of its numerator. Like refbn_exact_approximate, in
 * units of 2^(top - 188): of the numerator, each of four terms is off by less than 2, or 3 if it is
 * negative; below 2^4. */
REFBN_EXACT_INLINE int refbn_exact_round_wide(const refbn_exact_form *form, int active,
                                              const uint64_t bits[3], refbn_exact_format f, uint64_t *code)
{
    uint64_t product[3][3] = {{0}}, sum[3] = {0, 0, 0};
    int top[3] = {0, 0, 0}, highest = form->wide[3].sign ? form->wide[3].top : REFBN_EXACT_NO_TOP;
    for (int i = 0; i < 3; i++) {
        if (!(active >> i & 1))
            continue;
        const refbn_exact_wide *k = &form->wide[i];
        const refbn_exact_parts parts = refbn_exact_unpack(bits[i]);
        if (!parts.finite)
            return 0;
        top[i] = REFBN_EXACT_NO_TOP;
        if (!k->sign || !parts.mantissa)
            continue;
        const int shift = 64 - refbn_exact_width(parts.mantissa);
        const uint64_t mantissa = parts.mantissa << shift;
        uint64_t high;
        (void)refbn_exact_muladd(k->limb[0], mantissa, 0, 0, &high);
        product[i][0] = refbn_exact_muladd(k->limb[1], mantissa, high, 0, &high);
        product[i][1] = refbn_exact_muladd(k->limb[2], mantissa, high, 0, &product[i][2]);
        top[i] = k->top + parts.position - 1088 + 64 - shift;
        highest = top[i] > highest ? top[i] : highest;
    }
    for (int i = 0; i < 3; i++)
        if (active >> i & 1 && top[i] != REFBN_EXACT_NO_TOP)
            refbn_exact_wide_add(sum, product[i], highest - top[i] + 4,
                                 0 - ((bits[i] >> 63) ^ (form->wide[i].sign < 0)));
    if (form->wide[3].sign)
        refbn_exact_wide_add(sum, form->wide[3].limb, highest - form->wide[3].top + 4,
                             0 - (uint64_t)(form->wide[3].sign < 0));
    const uint64_t mask = 0 - (sum[2] >> 63);
    uint64_t hi = sum[2] ^ mask, lo = sum[1] ^ mask, next = sum[0] ^ mask;
    int end = highest - 188 + 192; /* of hi */
    if (!hi) {
        hi = lo;
        lo = next;
        next = 0;
        end -= 64;
    }
    if (!hi)
        return 0;
    const int width = refbn_exact_width(hi), shift = 64 - width;
    const refbn_exact_leading a = {hi << shift | lo >> 1 >> (63 - shift),
                                   lo << shift | next >> 1 >> (63 - shift), mask ? -1 : 1, end - shift};
    /* Relative to a >= 2^(a.top - 1), 2^(highest - 184) is 2^(highest - a.top - 59) in 2^-124 of the
     * quotient. */
    const int error = highest - a.top - 55;
    return refbn_exact_round_approximation(refbn_exact_divide(a, error, &form->divisor), f, code);
}

/* The numerator of an element, of which V = `about` 2^(top - 124) is known to 2^(top - 114). |A / D| is at
 * most |V| + |B|. */
static void refbn_exact_numerator(refbn_exact_number *into, const refbn_exact_form *form,
                                  const uint64_t bits[3], refbn_exact_approximation about)
{
    const refbn_exact_number *factor[3];
    refbn_exact_parts parts[3];
    uint64_t low[REFBN_EXACT_LOW_LIMBS];
    int base;
    refbn_exact_number product, sum;
    const int n = refbn_exact_terms(form, bits, factor, parts);
    const refbn_exact_pair m = refbn_exact_pair_flip(about.sum, 0 - (about.sum.hi >> 63));
    int top = about.top - 124 + (m.hi ? 64 + refbn_exact_width(m.hi) : 64);
    if (form->offset.sign && form->leading_offset.top > top)
        top = form->leading_offset.top;
    const int limbs = refbn_exact_low_sum(low, &base, factor, parts, n, &form->coefficient[3],
                                          top + 3 - form->divisor.inverse.top);
    if (limbs && !REFBN_EXACT_IS_BLIND) {
        refbn_exact_from_low(into, low, limbs, base);
        return;
    }
    refbn_exact_copy(into, &form->coefficient[3]);
    for (int i = 0; i < 3; i++)
        if (form->coefficient[i].sign) {
            refbn_exact_multiply_double(&product, &form->coefficient[i], refbn_exact_double(bits[i]));
            refbn_exact_add(&sum, into, &product);
            refbn_exact_copy(into, &sum);
        }
}

/* The code of a binary64 number, which is one of the format. */
static uint64_t refbn_exact_code(uint64_t bits, refbn_exact_format f)
{
    const refbn_exact_leading a = refbn_exact_leading_of_double(refbn_exact_double(bits));
    const uint64_t code = refbn_exact_is_finite(bits) ? refbn_exact_encode(a.hi, a.lo, a.top - 128, f)
                                                      : refbn_exact_infinite_code(f);
    return code | bits >> 63 << refbn_exact_sign_bit(f);
}

static inline size_t refbn_exact_memo_slot(const uint64_t bits[3])
{
    const uint64_t mixed = (bits[0] ^ bits[0] >> 29) * 0x9e3779b97f4a7c15u +
                           (bits[1] ^ bits[1] >> 29) * 0xc2b2ae3d27d4eb4fu +
                           (bits[2] ^ bits[2] >> 29) * 0x165667b19e3779f9u;
    return (size_t)(mixed >> 40) % REFBN_EXACT_MEMOS;
}

static inline int refbn_exact_memo_holds(const refbn_exact_form *form, size_t slot, const uint64_t bits[3])
{
    const uint64_t *key = form->memo_key[slot];
    return form->memo_used[slot] && key[0] == bits[0] && key[1] == bits[1] && key[2] == bits[2];
}

/* What elements have been like; it only says what to try first. */
typedef struct {
    int repeats;  /* the last one was known */
    int failures; /* how many approximations in a row did not decide, nor did the memo */
    int straight; /* how many elements are to come before an approximation is tried again */
} refbn_exact_habit;

/* An element that its approximation does not decide. */
static uint64_t refbn_exact_hard_element(refbn_exact_form *form, const uint64_t bits[3],
                                         refbn_exact_approximation about, int format,
                                         refbn_exact_habit *habit)
{
    const refbn_exact_format f = refbn_exact_format_of(format);
    if (!about.finite)
        return refbn_exact_nan_code(f);
    if (about.top == REFBN_EXACT_NO_TOP)
        return 0;
    const size_t slot = refbn_exact_memo_slot(bits);
    uint64_t *key = form->memo_key[slot], *code = &form->memo[slot];
    habit->repeats = refbn_exact_memo_holds(form, slot, bits);
    if (!habit->repeats) {
        habit->failures++;
        const int plain = !REFBN_EXACT_IS_BLIND && !form->offset.sign;
        if (plain && habit->failures > 4)
            habit->straight = 31;
        if (!refbn_exact_try_tie(form, bits, about, f, code) &&
            !(plain && refbn_exact_round_wide(form, form->active, bits, f, code))) {
            refbn_exact_number a;
            refbn_exact_numerator(&a, form, bits, about);
            *code = refbn_exact_code(
                refbn_exact_quotient(&a, &form->divisor, &form->offset, form->leading_offset, format), f);
        }
        for (int i = 0; i < 3; i++)
            key[i] = bits[i];
        form->memo_used[slot] = 1;
    }
    form->decided++;
    form->zeros += !*code;
    return *code;
}

/* An element of a form without offset, by its numerator. Returns whether that was enough. */
REFBN_EXACT_INLINE int refbn_exact_go_straight(refbn_exact_form *form, int active, const uint64_t bits[3],
                                               refbn_exact_format f, uint64_t *code)
{
    const refbn_exact_number *factor[3];
    refbn_exact_parts parts[3];
    uint64_t low[REFBN_EXACT_LOW_LIMBS];
    int n = 0, base, finite = 1;
    if (refbn_exact_round_wide(form, active, bits, f, code)) {
        form->decided++;
        return 1;
    }
    for (int i = 0; i < 3; i++)
        if (active >> i & 1) {
            factor[n] = &form->coefficient[i];
            parts[n] = refbn_exact_unpack(bits[i]);
            finite &= parts[n++].finite;
        }
    const refbn_exact_number *constant = &form->coefficient[3];
    const int limbs = finite ? refbn_exact_low_sum(low, &base, factor, parts, n, constant, INT_MAX) : 0;
    if (!limbs)
        return 0;
    const uint64_t mask = 0 - (low[limbs - 1] >> 63);
    int top = limbs - 1;
    while (top > 0 && low[top] == mask)
        top--;
    /* Flipped, a negative number is one too small: it does not matter to 128 bits of more, and is put right
     * in less. */
    refbn_exact_leading a;
    if (top >= 2) {
        const int end = 64 * (base + top + 1);
        a = refbn_exact_normalised(low[top] ^ mask, low[top - 1] ^ mask, mask ? -1 : 1, end);
        const int shift = end - a.top;
        a.lo |= shift ? (low[top - 2] ^ mask) >> (64 - shift) : 0;
    } else {
        refbn_exact_pair whole = {top ? low[1] ^ mask : 0, low[0] ^ mask};
        whole = refbn_exact_pair_add(whole, (refbn_exact_pair){0, mask & 1});
        a = refbn_exact_normalised(whole.hi, whole.lo, mask ? -1 : 1, 64 * (base + 2));
    }
    form->decided++;
    if (!a.sign) {
        form->zeros++;
        *code = 0;
        return 1;
    }
    return refbn_exact_round_approximation(refbn_exact_divide(a, 0, &form->divisor), f, code);
}

/* The loop over elements; `active` and `f` are constants where it is inlined. */
REFBN_EXACT_INLINE void refbn_exact_elements_of(refbn_exact_form *form, int active,
                                                const double *const data[3], const uint16_t *index,
                                                ptrdiff_t n, int format, refbn_exact_format f, uint64_t *code)
{
    refbn_exact_habit habit = {0, 0, 0};
    if (form->memo_format != format) {
        REFBN_EXACT_CLEAR(form->memo_used, sizeof form->memo_used);
        form->memo_format = format;
    }
    for (ptrdiff_t j = 0; j < n; j++) {
        uint64_t bits[3] = {0, 0, 0};
        for (int i = 0; i < 3; i++)
            if (active >> i & 1)
                bits[i] = refbn_exact_bits(data[i][index[j]]);
        if (habit.repeats) {
            const size_t slot = refbn_exact_memo_slot(bits);
            habit.repeats = refbn_exact_memo_holds(form, slot, bits);
            if (habit.repeats) {
                code[j] = form->memo[slot];
                form->decided++;
                form->zeros += !code[j];
                continue;
            }
        }
        if (habit.straight) {
            habit.straight--;
            if (refbn_exact_go_straight(form, active, bits, f, &code[j]))
                continue;
        }
        const refbn_exact_approximation a = refbn_exact_approximate(form, active, bits);
        if (a.finite && refbn_exact_round_approximation(a, f, &code[j]))
            habit.failures = 0;
        else
            code[j] = refbn_exact_hard_element(form, bits, a, format, &habit);
    }
}

REFBN_EXACT_INLINE void refbn_exact_elements_in(refbn_exact_form *form, const double *const data[3],
                                                const uint16_t *index, ptrdiff_t n, int format,
                                                refbn_exact_format f, uint64_t *code)
{
    switch (form->active) {
    case 1: refbn_exact_elements_of(form, 1, data, index, n, format, f, code); break;
    case 2: refbn_exact_elements_of(form, 2, data, index, n, format, f, code); break;
    case 3: refbn_exact_elements_of(form, 3, data, index, n, format, f, code); break;
    case 5: refbn_exact_elements_of(form, 5, data, index, n, format, f, code); break;
    case 7: refbn_exact_elements_of(form, 7, data, index, n, format, f, code); break;
    default: refbn_exact_elements_of(form, form->active, data, index, n, format, f, code);
    }
}

void refbn_exact_elements(refbn_exact_group *group, int output, const double *x, const double *g,
                          const double *u, const uint16_t *index, ptrdiff_t n, int format, uint64_t *code)
{
    refbn_exact_form *form = &group->form[output];
    const double *const data[3] = {x, g, u};
    const refbn_exact_format f = refbn_exact_format_of(format);
    if (!form->present || form->undefined || form->zero || !form->active) {
        uint64_t all = 0;
        if (!form->present || form->undefined)
            all = refbn_exact_nan_code(f);
        else if (!form->zero && n)
            refbn_exact_elements_of(form, 0, data, index, 1, format, f, &all);
        for (ptrdiff_t j = 0; j < n; j++)
            code[j] = all;
    } else if (format == REFBN_F64)
        refbn_exact_elements_in(form, data, index, n, format, refbn_exact_format_of(REFBN_F64), code);
    else if (format == REFBN_F32)
        refbn_exact_elements_in(form, data, index, n, format, refbn_exact_format_of(REFBN_F32), code);
    else
        refbn_exact_elements_in(form, data, index, n, format, f, code);
}

double refbn_exact_element(refbn_exact_group *group, int output, double x, double g, double u, int format)
{
    const refbn_exact_format f = refbn_exact_format_of(format);
    const uint16_t index = 0;
    uint64_t code;
    refbn_exact_elements(group, output, &x, &g, &u, &index, 1, format, &code);
    const uint64_t magnitude = code & (((uint64_t)1 << refbn_exact_sign_bit(f)) - 1);
    return refbn_exact_double(magnitude > refbn_exact_infinite_code(f)
                                  ? REFBN_EXACT_NAN
                                  : refbn_exact_result(magnitude, code == magnitude ? 1 : -1, f));
}

/* ---- whether all elements are zero --------------------------------------------------------------------- */

int refbn_exact_suggests_zero(const refbn_exact_group *group, int output)
{
    const refbn_exact_form *form = &group->form[output];
    return form->present && !form->undefined && !form->zero && !form->offset.sign &&
           !refbn_exact_is_frozen(group->pass) && form->zeros >= 32 && form->zeros == form->decided;
}

/* The accumulators of x x and g x are free once the group is solved; here they are those of g g and u u. */
void refbn_exact_squares_begin(refbn_exact_group *group)
{
    for (int i = 0; i < 2; i++)
        REFBN_EXACT_CLEAR(&group->product[i], sizeof group->product[i]);
    group->products_pending = 0;
}

static void refbn_exact_squares_resolve(refbn_exact_group *group)
{
    for (int i = 0; i < 2; i++)
        refbn_exact_resolve(group->product[i].part[0], REFBN_EXACT_PRODUCT_PARTS);
    group->products_pending = 0;
}

void refbn_exact_squares_gather(refbn_exact_group *group, const double *g, const double *u, ptrdiff_t n)
{
    for (ptrdiff_t start = 0; start < n;) {
        const ptrdiff_t block = n - start < REFBN_EXACT_SUM_PENDING ? n - start : REFBN_EXACT_SUM_PENDING;
        if (group->products_pending >= REFBN_EXACT_PRODUCT_PENDING)
            refbn_exact_squares_resolve(group);
        for (int which = 0; which < 2; which++) {
            const double *const from = which ? u : g;
            for (ptrdiff_t i = start; from && i < start + block; i++) {
                const refbn_exact_parts a = refbn_exact_unpack(refbn_exact_bits(from[i]));
                refbn_exact_product_add(&group->product[which], &a, &a);
            }
        }
        group->products_pending += (int)block;
        start += block;
    }
}

/* With A = k_x X + k_g G + k_u U, and all of them centred, sum A^2 / m is
 *     k_x^2 D + k_g^2 E + k_u^2 F + 2 k_x k_g W + 2 k_x k_u V + 2 k_g k_u Z,
 * where E = m sum g^2 - G1^2, and F alike. */
void refbn_exact_squares_end(refbn_exact_group *group)
{
    enum { LONGEST = REFBN_EXACT_LIMBS - 8 };
    refbn_exact_number square[2], sum, scaled, product;
    refbn_exact_squares_resolve(group);
    for (int i = 0; i < 2; i++) {
        refbn_exact_zero(&square[i]);
        if (!refbn_exact_sums(group, i + 1))
            continue;
        refbn_exact_sum_of_products(&sum, group, i);
        refbn_exact_multiply_integer(&scaled, &sum, group->count);
        refbn_exact_multiply(&product, &group->total[i + 1], &group->total[i + 1]);
        refbn_exact_subtract(&square[i], &scaled, &product);
    }
    const struct {
        int a, b;
        const refbn_exact_number *moment;
    } term[6] = {{0, 0, &group->spread}, {1, 1, &square[0]}, {2, 2, &square[1]},
                 {0, 1, &group->gx},     {0, 2, &group->ux}, {1, 2, &group->ug}};
    for (int output = 0; output < 2; output++) {
        refbn_exact_form *form = &group->form[output];
        int low = 1 << 20, high = -(1 << 20), fits = 1;
        if (!form->present || form->undefined || form->offset.sign)
            continue;
        refbn_exact_number total;
        refbn_exact_zero(&total);
        for (int i = 0; i < 6; i++) {
            const refbn_exact_number *a = &form->coefficient[term[i].a], *b = &form->coefficient[term[i].b];
            const refbn_exact_number *moment = term[i].moment;
            if (!a->sign || !b->sign || !moment->sign)
                continue;
            const int start = a->exponent + b->exponent + moment->exponent;
            const int length = a->length + b->length + moment->length + 1; /* 1: twice it */
            low = start < low ? start : low;
            high = start + length > high ? start + length : high;
            fits &= high - low <= LONGEST;
            if (!fits)
                break;
            refbn_exact_multiply(&product, a, b);
            refbn_exact_multiply(&scaled, &product, moment);
            refbn_exact_multiply_integer(&product, &scaled, term[i].a == term[i].b ? 1 : 2);
            refbn_exact_add(&sum, &total, &product);
            refbn_exact_copy(&total, &sum);
        }
        form->zero = fits && !total.sign;
    }
}

#endif
