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
 * products. An element is first looked at through 128 leading bits of everything; exact numbers are computed
 * for those that this does not decide.
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
    form->leading_offset = refbn_exact_leading_of(&form->offset);
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

/* What the leading bits leave undecided, and exact zeros. */
static uint64_t refbn_exact_element_exactly(refbn_exact_form *form, const double element[3], int format)
{
    refbn_exact_number a, product, sum;
    refbn_exact_copy(&a, &form->coefficient[3]);
    for (int i = 0; i < 3; i++)
        if (form->coefficient[i].sign) {
            refbn_exact_multiply_double(&product, &form->coefficient[i], element[i]);
            refbn_exact_add(&sum, &a, &product);
            refbn_exact_copy(&a, &sum);
        }
    return refbn_exact_quotient(&a, &form->divisor, &form->offset, form->leading_offset, format);
}

double refbn_exact_element(refbn_exact_group *group, int output, double x, double g, double u, int format)
{
    refbn_exact_form *form = &group->form[output];
    const double element[3] = {x, g, u};
    uint64_t bits[3];
    for (int i = 0; i < 3; i++) /* what the formula does not contain counts as 0 */
        bits[i] = form->reads >> i & 1 ? refbn_exact_bits(element[i]) : 0;
    if (!form->present || form->undefined)
        return refbn_exact_double(REFBN_EXACT_NAN);
    if (form->memo_format == format && form->memo_key[0] == bits[0] && form->memo_key[1] == bits[1] &&
        form->memo_key[2] == bits[2])
        return refbn_exact_double(form->memo);
    refbn_exact_leading term[5] = {{0}};
    for (int i = 0; i < 3; i++)
        if (form->reads >> i & 1) {
            if (!refbn_exact_is_finite(bits[i]))
                return refbn_exact_double(REFBN_EXACT_NAN);
            const refbn_exact_leading leading = refbn_exact_leading_of_double(element[i]);
            term[i] = refbn_exact_leading_multiply(form->leading[i], leading);
        }
    term[3] = form->leading[3];
    term[4] = form->leading_offset;
    const refbn_exact_format f = refbn_exact_format_of(format);
    const refbn_exact_range range = refbn_exact_enclose(term, 5, f);
    const uint64_t result = range.sign && range.low == range.high
                                ? refbn_exact_result(range.low, range.sign, f)
                                : refbn_exact_element_exactly(form, element, format);
    for (int i = 0; i < 3; i++)
        form->memo_key[i] = bits[i];
    form->memo = result;
    form->memo_format = format;
    return refbn_exact_double(result);
}

#endif
