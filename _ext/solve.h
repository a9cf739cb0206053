/* From the sums of a group to its results: vector results, and the coefficients of tensor results.
 *
 * All lanes of a vector at a time, in balls (ball.h), for every rung alike. Labels such as (K3) are those of
 * the textbook, refbn/reference. Every tensor result is gathered into one combination of t = x - center, g =
 * dy - center and u = x_dot - center (rungs.h), the textbook's lines multiplied out. A center is the tensor's
 * mean rounded to binary64, and what is left of the mean is delta, g_mean, u_mean: so d = x - mean is t -
 * delta, and where a result is small, so are the terms, and their errors.
 *
 * Scales. The sums may be those of tensors that were multiplied by powers of two, 2^kx, 2^kg, 2^ku. xhat is
 * the same for all of them if eps is scaled along; what else the results are off by is undone by
 * `refbn_shift`.
 *
 * Where this is valid ("fit"): var + eps within 2^-300 ... 2^300; and, unless all data are narrow, root mean
 * squares and parameters 0 or within 2^-120 ... 2^120. Then no product below leaves 2^-920 ... 2^840 (one
 * result has a condition of its own) and no error above 0 falls below 2^-1010: 2^-40 of it, which REFBN_SAFE
 * adds, outweighs what an underflow loses. Everywhere else errors are set to infinity.
 *
 * Test: pytest tests/backends/test_native.py
 */
#ifndef REFBN_SOLVE_H
#define REFBN_SOLVE_H

#include "ball.h"
#include "rungs.h"

enum {
    REFBN_GAMMA,
    REFBN_BETA,
    REFBN_GAMMA_DOT,
    REFBN_BETA_DOT,
    REFBN_MEAN,
    REFBN_VAR,
    REFBN_MEAN_DOT,
    REFBN_VAR_DOT,
    REFBN_PARAMETERS
};

enum {
    REFBN_TO_MEAN,
    REFBN_TO_VAR,
    REFBN_TO_INVSTD,
    REFBN_TO_DGAMMA,
    REFBN_TO_DBETA,
    REFBN_TO_DMEAN,
    REFBN_TO_DVAR,
    REFBN_VECTORS
};

enum { REFBN_TO_Y, REFBN_TO_DX, REFBN_TENSORS };

/* One ball for each lane of a unit. */
typedef struct {
    double hi[REFBN_LANES], lo[REFBN_LANES], err[REFBN_LANES];
} refbn_balls;

static REFBN_INLINE refbn_ball refbn_balls_get(const refbn_balls *balls, int lane)
{
    return (refbn_ball){refbn_load(balls->hi + lane), refbn_load(balls->lo + lane),
                        refbn_load(balls->err + lane)};
}

static REFBN_INLINE void refbn_balls_set(refbn_balls *balls, int lane, refbn_ball a)
{
    refbn_store(balls->hi + lane, a.hi);
    refbn_store(balls->lo + lane, a.lo);
    refbn_store(balls->err + lane, a.err);
}

/* What is known of a unit, and what follows from it. */
typedef struct {
    int pass, narrow;
    int sums;            /* how they are made: rungs.h */
    int twofold, scaled; /* combinations are in double-double; of scaled tensors */
    double count, eps;
    double pivot[3][REFBN_LANES];    /* of x, dy, x_dot in sums; scaled like them */
    double center[3][REFBN_LANES];   /* the same in combinations */
    double largest[3][REFBN_LANES];  /* bounds of |x - pivot| and so on; infinite where none is known */
    int dispensable[3];              /* whether the pivot might as well be 0 */
    double exponent[3][REFBN_LANES]; /* kx, kg, ku */
    double constant[3][REFBN_LANES]; /* 1: every element is the pivot, as far as is known */
    double parameter[REFBN_PARAMETERS][REFBN_LANES];
    double weight[2][3]; /* running_update: hi, lo, err of the new's and the old's */
    int unbiased;
    refbn_balls sum[REFBN_SUMS];
    refbn_balls vector[REFBN_VECTORS];
    refbn_combination tensor[REFBN_TENSORS];
    uint64_t hopeless[REFBN_TENSORS]; /* refbn_hopeless */
    refbn_biased_f32 biased_f32[REFBN_TENSORS]; /* the combinations from a bias on; unless `twofold` */
    refbn_biased_f64 biased_f64[REFBN_TENSORS]; /* if `twofold` */
    uint64_t biased[REFBN_TENSORS];             /* bits of the lanes that have these */
} refbn_solution;

/* Times 2^exponent, one for each lane. */
static REFBN_INLINE refbn_ball refbn_shift(const refbn_solution *s, refbn_ball a, refbn_v exponent)
{
    if (!s->scaled)
        return a;
    const refbn_vi bits = __builtin_convertvector(exponent + 1023.0, refbn_vi) << 52;
    const refbn_vi nothing = (refbn_vi)(a.hi == 0.0) & (refbn_vi)(a.err == 0.0);
    const refbn_v power = (refbn_v)bits, floor = refbn_select(nothing, (refbn_v){0}, refbn_splat(0x1p-1060));
    const refbn_vi moderate = (refbn_vi)(refbn_abs(exponent) <= 1000.0) | nothing;
    return (refbn_ball){a.hi * power, a.lo * power,
                        refbn_select(moderate, a.err * power + floor, refbn_splat(refbn_infinity()))};
}

/* The factors of one group that all passes share. */
typedef struct {
    refbn_v m, kx, kg, ku, unfit; /* unfit: 0 or infinity */
    refbn_ball delta, var, r;     /* mean(t), var, 1/sqrt(var + eps) */
    refbn_ball g_mean, g_along;   /* mean(g), mean(xhat g) */
    refbn_ball u_mean, u_along;
    refbn_ball gr; /* gamma r */
} refbn_factors;

static REFBN_INLINE refbn_v refbn_outside(refbn_v a, double limit)
{
    const refbn_v magnitude = refbn_abs(a);
    const refbn_vi fits =
        ((refbn_vi)(magnitude <= limit) & (refbn_vi)(magnitude >= 1.0 / limit)) | (refbn_vi)(a == 0.0);
    return refbn_select(fits, (refbn_v){0}, refbn_splat(refbn_infinity()));
}

static REFBN_INLINE refbn_ball refbn_parameter(const refbn_solution *s, int which, int lane)
{
    return refbn_exactly(refbn_load(s->parameter[which] + lane));
}

static REFBN_INLINE refbn_ball refbn_sum(const refbn_solution *s, int which, int lane)
{
    return refbn_balls_get(&s->sum[which], lane);
}

/* A mean square that is 0 although the tensor is not known to be constant is unfit: it may have vanished. */
static REFBN_INLINE refbn_v refbn_square_outside(const refbn_solution *s, int sum, int tensor, int lane,
                                                 refbn_v m)
{
    const refbn_v square = refbn_load(s->sum[sum].hi + lane) / m;
    const refbn_vi fits = ((refbn_vi)(square <= 0x1p240) & (refbn_vi)(square >= 0x1p-240)) |
                          (refbn_vi)(refbn_load(s->constant[tensor] + lane) != 0.0);
    return refbn_select(fits, (refbn_v){0}, refbn_splat(refbn_infinity()));
}

static REFBN_INLINE refbn_v refbn_unfit_parameters(const refbn_solution *s, int lane)
{
    refbn_v unfit = {0};
    if (!s->narrow)
        for (int k = 0; k < REFBN_PARAMETERS; k++)
            unfit += refbn_outside(refbn_load(s->parameter[k] + lane), 0x1p120);
    return unfit;
}

static REFBN_INLINE refbn_v refbn_unfit_radicand(refbn_v q)
{
    const refbn_vi fits = (refbn_vi)(q >= 0x1p-300) & (refbn_vi)(q <= 0x1p300);
    return refbn_select(fits, (refbn_v){0}, refbn_splat(refbn_infinity()));
}

/* From a mean about the pivot to the center, and the mean about that. */
static REFBN_INLINE refbn_ball refbn_center(refbn_solution *s, int tensor, int lane, refbn_ball mean)
{
    const refbn_v pivot = refbn_load(s->pivot[tensor] + lane);
    const refbn_v center = s->sums == REFBN_CENTERED ? pivot + mean.hi : pivot;
    const refbn_pair moved = refbn_two_difference(center, pivot);
    refbn_store(s->center[tensor] + lane, center);
    return refbn_sub(mean, (refbn_ball){moved.hi, moved.lo, {0}});
}

/* (S1) to (S4), and the means that the projections need. */
static REFBN_INLINE refbn_factors refbn_factor(refbn_solution *s, int lane, int with_g, int with_u)
{
    refbn_factors f = {.m = refbn_splat(s->count), .unfit = refbn_unfit_parameters(s, lane)};
    f.kx = refbn_load(s->exponent[0] + lane);
    f.kg = refbn_load(s->exponent[1] + lane);
    f.ku = refbn_load(s->exponent[2] + lane);
    if (!s->narrow) {
        f.unfit += refbn_square_outside(s, REFBN_TT, 0, lane, f.m);
        if (with_g)
            f.unfit += refbn_square_outside(s, REFBN_GG, 1, lane, f.m);
        if (with_u)
            f.unfit += refbn_square_outside(s, REFBN_UU, 2, lane, f.m);
    }
    const refbn_ball mean = refbn_over(refbn_sum(s, REFBN_T, lane), f.m);
    f.var = refbn_sub(refbn_over(refbn_sum(s, REFBN_TT, lane), f.m), refbn_mul(mean, mean));
    f.delta = refbn_center(s, 0, lane, mean);
    const refbn_ball eps = refbn_shift(s, refbn_exactly(refbn_splat(s->eps)), 2.0 * f.kx);
    const refbn_ball q = refbn_add(f.var, eps);
    f.unfit += refbn_unfit_radicand(q.hi);
    f.r = refbn_inverse_root(q);
    f.gr = refbn_mul(refbn_parameter(s, REFBN_GAMMA, lane), f.r);
    if (with_g) {
        f.g_mean = refbn_over(refbn_sum(s, REFBN_G, lane), f.m);
        const refbn_ball both = refbn_over(refbn_sum(s, REFBN_GT, lane), f.m);
        f.g_along = refbn_mul(f.r, refbn_sub(both, refbn_mul(f.g_mean, mean)));
        f.g_mean = refbn_center(s, 1, lane, f.g_mean);
    }
    if (with_u) {
        f.u_mean = refbn_over(refbn_sum(s, REFBN_U, lane), f.m);
        const refbn_ball both = refbn_over(refbn_sum(s, REFBN_UT, lane), f.m);
        f.u_along = refbn_mul(f.r, refbn_sub(both, refbn_mul(f.u_mean, mean)));
        f.u_mean = refbn_center(s, 2, lane, f.u_mean);
    }
    return f;
}

/* ---- putting results down ---- */

static REFBN_INLINE void refbn_put_vector(refbn_solution *s, int which, int lane, refbn_ball a, refbn_v unfit)
{
    a.err += unfit;
    refbn_balls_set(&s->vector[which], lane, a);
}

static REFBN_INLINE void refbn_put_term(refbn_solution *s, refbn_combination *of, int k, int lane,
                                        refbn_ball a, refbn_v unfit)
{
    const refbn_v rounding = s->twofold ? REFBN_DOUBLE_COMBINE * refbn_abs(a.hi)
                                        : REFBN_PLAIN_COMBINE * refbn_abs(a.hi) + refbn_abs(a.lo);
    const refbn_v bound = (a.err + rounding) * REFBN_SAFE + unfit;
    const refbn_vi valid = (refbn_vi)(bound < refbn_infinity());
    /* never -0: an exact zero is to come out as +0 (rule R4); never NaN: it would pass the rounding test */
    refbn_store(of->hi[k] + lane, refbn_select(valid, a.hi + 0.0, (refbn_v){0}));
    refbn_store(of->lo[k] + lane, refbn_select(valid, a.lo + 0.0, (refbn_v){0}));
    refbn_store(of->bound[k] + lane, refbn_select(valid, bound, refbn_splat(refbn_infinity())));
}

/* The constants of biased.h, in binary32: each coefficient in two parts, the third goes into e, which is
 * returned. */
static REFBN_INLINE refbn_v refbn_put_biased_f32(refbn_biased_f32 *to, int lane, int terms, const refbn_ball *a,
                                              const refbn_v *largest, refbn_ball c, refbn_v bias, refbn_v e)
{
#pragma GCC unroll 3
    for (int k = 0; k < terms; k++) {
        const refbn_vf hi = refbn_narrow(a[k].hi);
        const refbn_v rest = a[k].hi - __builtin_convertvector(hi, refbn_v);
        const refbn_vf lo = refbn_narrow(rest);
        const refbn_v lost = refbn_abs(rest - __builtin_convertvector(lo, refbn_v)) + refbn_abs(a[k].lo);
        e = refbn_multiply_add(lost, largest[k], e);
        __builtin_memcpy(to->hi[k] + lane, &hi, sizeof hi);
        __builtin_memcpy(to->lo[k] + lane, &lo, sizeof lo);
    }
    const refbn_vf start = refbn_narrow(bias + c.hi), from = refbn_narrow(bias);
    const refbn_v rest = c.hi - (__builtin_convertvector(start, refbn_v) - bias);
    e = (e + refbn_abs(c.lo)) * (1.0 + 0x1p-20);
    const refbn_vf low = refbn_narrow(rest - e), high = refbn_narrow(rest + e);
    __builtin_memcpy(to->start + lane, &start, sizeof start);
    __builtin_memcpy(to->bias + lane, &from, sizeof from);
    __builtin_memcpy(to->low + lane, &low, sizeof low);
    __builtin_memcpy(to->high + lane, &high, sizeof high);
    return e;
}

static REFBN_INLINE void refbn_put_biased_f64(refbn_biased_f64 *to, int lane, int terms, const refbn_ball *a,
                                              refbn_ball c, refbn_v bias, refbn_v e)
{
#pragma GCC unroll 3
    for (int k = 0; k < terms; k++) {
        refbn_store(to->hi[k] + lane, a[k].hi);
        refbn_store(to->lo[k] + lane, a[k].lo);
    }
    const refbn_v start = bias + c.hi, rest = (c.hi - (start - bias)) + c.lo;
    e *= 1.0 + 0x1p-20;
    refbn_store(to->start + lane, start);
    refbn_store(to->bias + lane, bias);
    refbn_store(to->low + lane, rest - e);
    refbn_store(to->high + lane, rest + e);
}

/* What biased.h needs, where bounds of all |t_k| are known, no t_k is centered, and B is moderate. */
static REFBN_INLINE void refbn_put_biased(refbn_solution *s, int which, int lane, int terms, const int *tensors,
                                          const refbn_ball *a, refbn_ball c, refbn_v unfit)
{
    const double unit = s->twofold ? 0x1p-53 : 0x1p-24;
    const double smallest = s->twofold ? 0x1p-400 : 0x1p-60, most = s->twofold ? 0x1p400 : 0x1p100;
    refbn_v size = refbn_abs(c.hi), e = c.err + unfit, largest[3];
    refbn_vi usable = (refbn_vi){0} - 1;
#pragma GCC unroll 3
    for (int k = 0; k < terms; k++) {
        largest[k] = refbn_load(s->largest[tensors[k]] + lane);
        usable &= (refbn_vi)(refbn_load(s->center[tensors[k]] + lane) == 0.0);
        size += refbn_abs(a[k].hi) * largest[k];
        e += a[k].err * largest[k];
    }
    const refbn_vi nothing = (refbn_vi)(size == 0.0) & (refbn_vi)(e == 0.0);
    /* in few bits, so that it is a number of either format; at least 2 (1 + 2^-20) size */
    const refbn_v bias = (refbn_v)(((refbn_vi)(2.0 * (1.0 + 0x1p-8) * size)) & ~(((int64_t)1 << 40) - 1));
    usable &= nothing | ((refbn_vi)(bias >= smallest) & (refbn_vi)(bias <= most));
    e += (terms * (terms + 3) + 3) * (unit * unit) * refbn_power_below(1.5 * bias);
    if (s->twofold)
        refbn_put_biased_f64(&s->biased_f64[which], lane, terms, a, c, bias, e);
    else
        e = refbn_put_biased_f32(&s->biased_f32[which], lane, terms, a, largest, c, bias, e);
    usable &= (refbn_vi)(e <= most);
    s->biased[which] |= refbn_lane_bits(usable, lane);
}

/* The combination a0 t0 + a1 t1 + a2 t2 + c; tensors[k] says which tensor t_k is. */
static REFBN_INLINE void refbn_put_tensor(refbn_solution *s, int which, int lane, int terms,
                                          const int *tensors, const refbn_ball *a, refbn_ball c,
                                          refbn_v unfit)
{
    refbn_combination *of = &s->tensor[which];
    of->terms = terms;
    /* Wherever something is not exactly zero, a product of it may have lost what lies below 2^-1074; not with
     * narrow data, whose products are above 2^-920. */
    refbn_vi nothing = ((refbn_vi)(c.hi == 0.0) & (refbn_vi)(c.err == 0.0));
    for (int k = 0; k < terms; k++) {
        of->tensor[k] = tensors[k];
        nothing &= ((refbn_vi)(a[k].hi == 0.0) & (refbn_vi)(a[k].err == 0.0)) |
                   (refbn_vi)(refbn_load(s->constant[tensors[k]] + lane) != 0.0);
        refbn_put_term(s, of, k, lane, a[k], (refbn_v){0});
    }
    const refbn_v all = unfit + refbn_select(nothing, (refbn_v){0}, refbn_splat(s->narrow ? 0.0 : 0x1p-1050));
    refbn_put_term(s, of, 3, lane, c, all);
    if (REFBN_FUSED && (s->sums == REFBN_BRIEF || s->sums == REFBN_BIASED))
        refbn_put_biased(s, which, lane, terms, tensors, a, c, all);
}

/* ---- training ---- */

static REFBN_INLINE void refbn_solve_forward(refbn_solution *s, int lane)
{
    const refbn_factors f = refbn_factor(s, lane, 0, 0);
    const refbn_ball center = refbn_exactly(refbn_load(s->center[0] + lane));
    refbn_put_vector(s, REFBN_TO_MEAN, lane, refbn_shift(s, refbn_add(center, f.delta), -f.kx), f.unfit);
    refbn_put_vector(s, REFBN_TO_VAR, lane, refbn_shift(s, f.var, -2.0 * f.kx), f.unfit);
    refbn_put_vector(s, REFBN_TO_INVSTD, lane, refbn_shift(s, f.r, f.kx), f.unfit);
    const refbn_ball c = refbn_sub(refbn_parameter(s, REFBN_BETA, lane), refbn_mul(f.gr, f.delta));
    refbn_put_tensor(s, REFBN_TO_Y, lane, 1, (const int[]){0}, (const refbn_ball[]){f.gr}, c,
                     f.unfit); /* (F1) */
}

/* sum(dy), from the sum of g = dy - pivot */
static REFBN_INLINE void refbn_put_dbeta(refbn_solution *s, int lane, const refbn_factors *f)
{
    const refbn_ball pivot = refbn_exactly(refbn_load(s->pivot[1] + lane));
    const refbn_ball sum = refbn_add(refbn_sum(s, REFBN_G, lane), refbn_mul(refbn_exactly(f->m), pivot));
    const refbn_v unfit = s->narrow ? (refbn_v){0} : refbn_square_outside(s, REFBN_GG, 1, lane, f->m);
    refbn_put_vector(s, REFBN_TO_DBETA, lane, refbn_shift(s, sum, -f->kg), unfit); /* (B5) */
}

/* scale (u - u_mean - along xhat) + on_xhat xhat + rest, with xhat = r (t - delta), u being tensor `which` */
static REFBN_INLINE void refbn_put_projected(refbn_solution *s, int output, int lane, const refbn_factors *f,
                                             int which, refbn_ball scale, refbn_ball mean, refbn_ball along,
                                             refbn_ball on_xhat, refbn_ball rest)
{
    const refbn_ball on_t = refbn_mul(f->r, refbn_sub(on_xhat, refbn_mul(scale, along)));
    const refbn_ball c = refbn_sub(rest, refbn_add(refbn_mul(scale, mean), refbn_mul(on_t, f->delta)));
    refbn_put_tensor(s, output, lane, 2, (const int[]){which, 0}, (const refbn_ball[]){scale, on_t}, c,
                     f->unfit);
}

static REFBN_INLINE void refbn_solve_backward(refbn_solution *s, int lane)
{
    const refbn_factors f = refbn_factor(s, lane, 1, 0);
    const refbn_ball zero = refbn_exactly((refbn_v){0});
    refbn_put_dbeta(s, lane, &f);
    refbn_put_vector(s, REFBN_TO_DGAMMA, lane,
                     refbn_shift(s, refbn_mul(refbn_exactly(f.m), f.g_along), -f.kg), f.unfit); /* (B4) */
    const refbn_ball scale = refbn_shift(s, f.gr, f.kx - f.kg);
    refbn_put_projected(s, REFBN_TO_DX, lane, &f, 1, scale, f.g_mean, f.g_along, zero, zero); /* (B3) */
}

/* y_dot, and ddy of double backward (J5, D2) */
static REFBN_INLINE void refbn_put_y_dot(refbn_solution *s, int lane, const refbn_factors *f)
{
    const refbn_ball scale = refbn_shift(s, f->gr, f->kx - f->ku);
    refbn_put_projected(s, REFBN_TO_Y, lane, f, 2, scale, f->u_mean, f->u_along,
                        refbn_parameter(s, REFBN_GAMMA_DOT, lane), refbn_parameter(s, REFBN_BETA_DOT, lane));
}

static REFBN_INLINE void refbn_solve_jvp(refbn_solution *s, int lane)
{
    const refbn_factors f = refbn_factor(s, lane, 0, 1);
    refbn_put_y_dot(s, lane, &f);
}

/* double_backward, and hvp, which has no ddy: u is ddx or x_dot, g is dy. */
static REFBN_INLINE void refbn_solve_second_order(refbn_solution *s, int lane)
{
    const refbn_factors f = refbn_factor(s, lane, 1, 1);
    const refbn_ball means =
        refbn_mul(refbn_over(refbn_sum(s, REFBN_U, lane), f.m), refbn_over(refbn_sum(s, REFBN_G, lane), f.m));
    const refbn_ball both = refbn_sub(refbn_over(refbn_sum(s, REFBN_UG, lane), f.m), means);
    const refbn_ball u_pg = refbn_sub(both, refbn_mul(f.u_along, f.g_along)); /* (P6): mean(u P g) */
    const refbn_v lift = f.kx - f.kg - f.ku;
    refbn_put_vector(s, REFBN_TO_DGAMMA, lane,
                     refbn_shift(s, refbn_mul(f.r, refbn_mul(refbn_exactly(f.m), u_pg)), lift),
                     f.unfit);                                                                 /* (D3, H2) */
    refbn_put_vector(s, REFBN_TO_DBETA, lane, refbn_exactly((refbn_v){0}), (refbn_v){0});      /* (H3) */
    const refbn_ball minus_gr2 = refbn_neg(refbn_shift(s, refbn_mul(f.gr, f.r), f.kx + lift)); /* (D5) */
    const refbn_ball on_pu = refbn_mul(minus_gr2, f.g_along), on_xhat = refbn_mul(minus_gr2, u_pg);
    const refbn_ball gamma_dot_r = refbn_mul(refbn_parameter(s, REFBN_GAMMA_DOT, lane), f.r);
    const refbn_ball on_pg =
        refbn_add(refbn_mul(minus_gr2, f.u_along), refbn_shift(s, gamma_dot_r, f.kx - f.kg));
    const refbn_ball projected = refbn_add(refbn_mul(on_pg, f.g_along), refbn_mul(on_pu, f.u_along));
    const refbn_ball on_t = refbn_mul(f.r, refbn_sub(on_xhat, projected));
    const refbn_ball rest = refbn_add(refbn_mul(on_pg, f.g_mean), refbn_mul(on_pu, f.u_mean));
    const refbn_ball c = refbn_neg(refbn_add(rest, refbn_mul(on_t, f.delta)));
    refbn_put_tensor(s, REFBN_TO_DX, lane, 3, (const int[]){1, 2, 0},
                     (const refbn_ball[]){on_pg, on_pu, on_t}, c, f.unfit);
    if (s->pass == REFBN_DOUBLE_BACKWARD)
        refbn_put_y_dot(s, lane, &f);
}

/* (S8, S9), never scaled */
static REFBN_INLINE void refbn_solve_running_update(refbn_solution *s, int lane)
{
    const refbn_v m = refbn_splat(s->count);
    const refbn_ball pivot = refbn_exactly(refbn_load(s->pivot[0] + lane));
    const refbn_ball delta = refbn_over(refbn_sum(s, REFBN_T, lane), m), mean = refbn_add(pivot, delta);
    refbn_ball var = refbn_sub(refbn_over(refbn_sum(s, REFBN_TT, lane), m), refbn_mul(delta, delta));
    if (s->unbiased)
        var = refbn_over(refbn_mul(var, refbn_exactly(m)), m - 1.0);
    refbn_v unfit = refbn_unfit_parameters(s, lane);
    if (!s->narrow)
        unfit += refbn_square_outside(s, REFBN_TT, 0, lane, m) + refbn_outside(pivot.hi, 0x1p120);
    refbn_ball weight[2];
    for (int k = 0; k < 2; k++) {
        const double hi = s->weight[k][0], lo = s->weight[k][1];
        weight[k] = (refbn_ball){refbn_splat(hi), refbn_splat(lo), refbn_splat(s->weight[k][2])};
        unfit += refbn_outside(weight[k].hi, 0x1p60);
    }
    const refbn_ball old_mean = refbn_mul(weight[1], refbn_parameter(s, REFBN_MEAN, lane));
    const refbn_ball old_var = refbn_mul(weight[1], refbn_parameter(s, REFBN_VAR, lane));
    refbn_put_vector(s, REFBN_TO_DMEAN, lane, refbn_add(refbn_mul(weight[0], mean), old_mean), unfit);
    refbn_put_vector(s, REFBN_TO_DVAR, lane, refbn_add(refbn_mul(weight[0], var), old_var), unfit);
}

/* ---- frozen statistics: pivots are mean, 0 and 0, so t = x - mean, g = dy, u = x_dot ---- */

typedef struct {
    refbn_v unfit;
    refbn_ball r, gr, gamma_dot, g, g_xhat; /* 1/sqrt(q), gamma r, sum(dy), sum(dy xhat) */
    refbn_ball r2_var_dot, gamma_r2_var_dot;
} refbn_frozen;

static REFBN_INLINE refbn_frozen refbn_freeze(refbn_solution *s, int lane)
{
    refbn_frozen f = {.unfit = refbn_unfit_parameters(s, lane)};
    for (int tensor = 0; tensor < 3; tensor++)
        refbn_store(s->center[tensor] + lane, refbn_load(s->pivot[tensor] + lane));
    const refbn_ball eps = refbn_exactly(refbn_splat(s->eps));
    const refbn_ball q = refbn_add(refbn_parameter(s, REFBN_VAR, lane), eps);
    f.unfit += refbn_unfit_radicand(q.hi);
    f.r = refbn_inverse_root(q);
    f.gr = refbn_mul(refbn_parameter(s, REFBN_GAMMA, lane), f.r);
    f.gamma_dot = refbn_parameter(s, REFBN_GAMMA_DOT, lane);
    f.g = refbn_sum(s, REFBN_G, lane);
    f.g_xhat = refbn_mul(f.r, refbn_sum(s, REFBN_GT, lane));
    f.r2_var_dot = refbn_mul(f.r, refbn_mul(f.r, refbn_parameter(s, REFBN_VAR_DOT, lane)));
    f.gamma_r2_var_dot = refbn_mul(refbn_parameter(s, REFBN_GAMMA, lane), f.r2_var_dot);
    return f;
}

/* What vector results need besides: sums that neither vanished nor overflowed. */
static REFBN_INLINE refbn_v refbn_unfit_sums(const refbn_solution *s, int lane, const refbn_frozen *f,
                                             int with_u)
{
    refbn_v unfit = f->unfit;
    if (!s->narrow) {
        const refbn_v m = refbn_splat(s->count);
        unfit +=
            refbn_square_outside(s, REFBN_TT, 0, lane, m) + refbn_square_outside(s, REFBN_GG, 1, lane, m);
        if (with_u)
            unfit += refbn_square_outside(s, REFBN_UU, 2, lane, m);
    }
    return unfit;
}

static REFBN_INLINE void refbn_solve_inference(refbn_solution *s, int lane)
{
    const refbn_frozen f = refbn_freeze(s, lane);
    refbn_put_vector(s, REFBN_TO_INVSTD, lane, f.r, f.unfit);
    refbn_put_tensor(s, REFBN_TO_Y, lane, 1, (const int[]){0}, (const refbn_ball[]){f.gr},
                     refbn_parameter(s, REFBN_BETA, lane), f.unfit); /* (I1) */
}

static REFBN_INLINE void refbn_solve_inference_backward(refbn_solution *s, int lane)
{
    const refbn_frozen f = refbn_freeze(s, lane);
    const refbn_v unfit = refbn_unfit_sums(s, lane, &f, 0);
    const refbn_ball zero = refbn_exactly((refbn_v){0});
    refbn_put_tensor(s, REFBN_TO_DX, lane, 1, (const int[]){1}, (const refbn_ball[]){f.gr}, zero,
                     f.unfit);                                                         /* (I4) */
    refbn_put_vector(s, REFBN_TO_DMEAN, lane, refbn_neg(refbn_mul(f.gr, f.g)), unfit); /* (I5) */
    refbn_put_vector(s, REFBN_TO_DVAR, lane, refbn_times(refbn_mul(refbn_mul(f.gr, f.r), f.g_xhat), -0.5),
                     unfit);                                     /* (I6) */
    refbn_put_vector(s, REFBN_TO_DGAMMA, lane, f.g_xhat, unfit); /* (I7) */
    refbn_put_vector(s, REFBN_TO_DBETA, lane, f.g, unfit);       /* (I8) */
}

/* (I13): y_dot = gamma r (x_dot - mean_dot) + (gamma_dot - gamma r^2 var_dot / 2) xhat + beta_dot */
static REFBN_INLINE void refbn_solve_inference_jvp(refbn_solution *s, int lane)
{
    const refbn_frozen f = refbn_freeze(s, lane);
    const refbn_ball on_xhat = refbn_sub(f.gamma_dot, refbn_times(f.gamma_r2_var_dot, 0.5));
    const refbn_ball c = refbn_sub(refbn_parameter(s, REFBN_BETA_DOT, lane),
                                   refbn_mul(f.gr, refbn_parameter(s, REFBN_MEAN_DOT, lane)));
    refbn_put_tensor(s, REFBN_TO_Y, lane, 2, (const int[]){2, 0},
                     (const refbn_ball[]){f.gr, refbn_mul(on_xhat, f.r)}, c, f.unfit);
}

static REFBN_INLINE void refbn_solve_inference_second_order(refbn_solution *s, int lane)
{
    const refbn_frozen f = refbn_freeze(s, lane);
    const refbn_v unfit = refbn_unfit_sums(s, lane, &f, 1);
    const refbn_ball zero = refbn_exactly((refbn_v){0});
    const refbn_ball on_dy = refbn_mul(f.r, refbn_sub(f.gamma_dot, refbn_times(f.gamma_r2_var_dot, 0.5)));
    refbn_put_tensor(s, REFBN_TO_DX, lane, 1, (const int[]){1}, (const refbn_ball[]){on_dy}, zero,
                     f.unfit);                                                          /* (I9) */
    refbn_put_vector(s, REFBN_TO_DMEAN, lane, refbn_neg(refbn_mul(on_dy, f.g)), unfit); /* (I10) */
    const refbn_ball moving = refbn_mul(refbn_parameter(s, REFBN_MEAN_DOT, lane), f.g);
    const refbn_ball moved = refbn_mul(f.r, refbn_sub(refbn_sum(s, REFBN_UG, lane), moving));
    const refbn_ball g_xhat_dot = refbn_sub(moved, refbn_times(refbn_mul(f.r2_var_dot, f.g_xhat), 0.5));
    refbn_put_vector(s, REFBN_TO_DGAMMA, lane, g_xhat_dot, unfit); /* (I2, I11) */
    refbn_put_vector(s, REFBN_TO_DBETA, lane, zero, (refbn_v){0}); /* (I11) */
    const refbn_ball bracket = refbn_add(refbn_mul(refbn_sub(f.gamma_dot, f.gamma_r2_var_dot), f.g_xhat),
                                         refbn_mul(refbn_parameter(s, REFBN_GAMMA, lane), g_xhat_dot));
    refbn_put_vector(s, REFBN_TO_DVAR, lane, refbn_times(refbn_mul(f.r, refbn_mul(f.r, bracket)), -0.5),
                     unfit + refbn_outside(f.r.hi, 0x1p64)); /* (I12): of r^5 */
    if (s->pass == REFBN_INFERENCE_DOUBLE_BACKWARD)
        refbn_solve_inference_jvp(s, lane); /* (I14) */
}

static void refbn_solve(refbn_solution *s, int lanes)
{
    for (int which = 0; which < REFBN_TENSORS; which++)
        s->biased[which] = 0;
    for (int lane = 0; lane < lanes; lane += REFBN_WIDTH)
        switch (s->pass) {
        case REFBN_FORWARD: refbn_solve_forward(s, lane); break;
        case REFBN_BACKWARD: refbn_solve_backward(s, lane); break;
        case REFBN_JVP: refbn_solve_jvp(s, lane); break;
        case REFBN_DOUBLE_BACKWARD:
        case REFBN_HVP: refbn_solve_second_order(s, lane); break;
        case REFBN_RUNNING_UPDATE: refbn_solve_running_update(s, lane); break;
        case REFBN_INFERENCE: refbn_solve_inference(s, lane); break;
        case REFBN_INFERENCE_BACKWARD: refbn_solve_inference_backward(s, lane); break;
        case REFBN_INFERENCE_JVP: refbn_solve_inference_jvp(s, lane); break;
        default: refbn_solve_inference_second_order(s, lane);
        }
}

#endif
