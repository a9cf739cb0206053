/* Wide double-double arithmetic: (hi + lo) * 2^exponent with 1 <= |hi| < 2, or 0, or NaN.
 *
 * It neither overflows nor underflows, costs some 50 times more, and serves the groups whose exponents
 * double-double cannot hold (see `refbn_scan` in kernels.c). Products have the error of double-double; sums
 * use the accurate algorithm (AccurateDWPlusDW of [1] in real_dd.h, relative error 3 u^2 also under
 * cancellation), which makes Kahan's summation work: a total's error is (2 + O(n u^2)) units.
 */
#ifndef REFBN_REAL_XD_H
#define REFBN_REAL_XD_H

#include "real_dd.h"

typedef struct {
    double hi, lo;
    int exponent;
} refbn_xd;

static inline double refbn_power_of_two(int exponent) /* -1022 <= exponent <= 1023 */
{
    return ((refbn_bits){.i = (int64_t)(exponent + 1023) << 52}).f;
}

static inline refbn_xd refbn_xd_normal(refbn_dd a, int exponent)
{
    if (a.hi == 0.0 || a.hi != a.hi)
        return (refbn_xd){a.hi + 0.0, 0.0, 0};
    const int shift = (int)((((refbn_bits){a.hi}).i >> 52) & 0x7ff) - 1023;
    const double power = refbn_power_of_two(-shift);
    return (refbn_xd){a.hi * power, a.lo * power, exponent + shift};
}

static inline refbn_xd refbn_xd_from(double a)
{
    const int tiny = a < 0x1p-900 && a > -0x1p-900, huge = a > 0x1p900 || a < -0x1p900;
    const double moderate = tiny ? a * 0x1p120 : huge ? a * 0x1p-200 : a;
    return refbn_xd_normal(refbn_dd_from(moderate), tiny ? -120 : huge ? 200 : 0);
}

static inline refbn_xd refbn_xd_neg(refbn_xd a) { return (refbn_xd){-a.hi, -a.lo, a.exponent}; }

static inline refbn_xd refbn_xd_times_exact(refbn_xd a, double power)
{
    return refbn_xd_normal((refbn_dd){a.hi * power, a.lo * power}, a.exponent);
}

static inline refbn_xd refbn_xd_add(refbn_xd a, refbn_xd b)
{
    if (a.hi == 0.0)
        return b;
    if (b.hi == 0.0)
        return a;
    if (a.exponent < b.exponent) {
        const refbn_xd swap = a;
        a = b;
        b = swap;
    }
    const int shift = a.exponent - b.exponent;
    if (shift > 300 && b.hi == b.hi && a.hi == a.hi)
        return a;
    const double power = shift > 300 ? 1.0 : refbn_power_of_two(-shift);
    refbn_dd high = refbn_two_sum(a.hi, b.hi * power);
    const refbn_dd low = refbn_two_sum(a.lo, b.lo * power);
    high = refbn_fast_two_sum(high.hi, high.lo + low.hi);
    return refbn_xd_normal(refbn_fast_two_sum(high.hi, high.lo + low.lo), a.exponent);
}

static inline refbn_xd refbn_xd_from_two(double hi, double lo)
{
    return refbn_xd_add(refbn_xd_from(hi), refbn_xd_from(lo));
}

static inline refbn_xd refbn_xd_sub(refbn_xd a, refbn_xd b) { return refbn_xd_add(a, refbn_xd_neg(b)); }
static inline refbn_xd refbn_xd_add_double(refbn_xd a, double b) { return refbn_xd_add(a, refbn_xd_from(b)); }

static inline refbn_xd refbn_xd_mul(refbn_xd a, refbn_xd b)
{
    const refbn_dd product = refbn_dd_mul((refbn_dd){a.hi, a.lo}, (refbn_dd){b.hi, b.lo});
    return refbn_xd_normal(product, a.exponent + b.exponent);
}

static inline refbn_xd refbn_xd_mul_double(refbn_xd a, double b) { return refbn_xd_mul(a, refbn_xd_from(b)); }

static inline refbn_xd refbn_xd_product(double a, double b)
{
    return refbn_xd_mul_double(refbn_xd_from(a), b);
}

static inline refbn_xd refbn_xd_over(refbn_xd a, refbn_xd b)
{
    const refbn_dd quotient = refbn_dd_over((refbn_dd){a.hi, a.lo}, (refbn_dd){b.hi, b.lo});
    return refbn_xd_normal(quotient, a.exponent - b.exponent);
}

static inline refbn_xd refbn_xd_root(refbn_xd a)
{
    const int odd = a.exponent & 1;
    const double power = odd ? 2.0 : 1.0;
    return refbn_xd_normal(refbn_dd_root((refbn_dd){a.hi * power, a.lo * power}), (a.exponent - odd) / 2);
}

static inline int refbn_xd_is_zero(refbn_xd a) { return a.hi == 0.0; }

static inline int refbn_xd_exceeds(refbn_xd a, refbn_xd b) { return refbn_xd_sub(a, b).hi > 0.0; }

/* a 2^exponent, exact or overflown, for |a| < 8 and exponent >= -1100. */
static inline double refbn_times_power(double a, int exponent)
{
    if (exponent > 1100)
        exponent = 1100;
    const int part = exponent > 1000 ? 1000 : exponent < -1000 ? -1000 : 0;
    return (a * refbn_power_of_two(part)) * refbn_power_of_two(exponent - part);
}

/* A double that `format` represents exactly, or one beyond its range: rounded once, subnormals included. */
static inline double refbn_xd_round(refbn_xd a, int format)
{
    static const int precision[] = {11, 8, 24, 53}, smallest[] = {-24, -133, -149, -1074};
    if (a.hi == 0.0 || a.hi != a.hi)
        return a.hi + 0.0;
    int quantum = 1 - precision[format]; /* the exponent of the last place, relative to 2^a.exponent */
    if (quantum < smallest[format] - a.exponent)
        quantum = smallest[format] - a.exponent;
    if (quantum > 2) /* below half of the smallest number; its sign survives */
        return a.hi < 0.0 ? -0.0 : 0.0;
    const double sign = a.hi < 0.0 ? -1.0 : 1.0, hi = a.hi * sign, lo = a.lo * sign;
    double rounded = hi;
    if (quantum > -52) {
        /* hi to the nearest multiple of 2^quantum, for hi < 2 <= magic; where hi is a midpoint, lo decides.
         * */
        const double magic = refbn_power_of_two(52 + quantum), half = refbn_power_of_two(quantum - 1);
        rounded = (hi + magic) - magic;
        const double rest = hi - rounded;
        if (rest == half && lo > 0.0)
            rounded += 2.0 * half;
        else if (rest == -half && lo < 0.0)
            rounded -= 2.0 * half;
    }
    return refbn_times_power(rounded * sign, a.exponent);
}

typedef struct {
    refbn_xd value[REFBN_LANES];
} refbn_xd_lanes;

static inline refbn_xd refbn_xd_at(const refbn_xd_lanes *v, int lane) { return v->value[lane]; }
static inline void refbn_xd_put(refbn_xd_lanes *v, int lane, refbn_xd a) { v->value[lane] = a; }

static inline void refbn_xd_save(double *row, refbn_xd a)
{
    row[0] = a.hi;
    row[1] = a.lo;
    row[2] = a.exponent;
}

static inline refbn_xd refbn_xd_recall(const double *row)
{
    return refbn_xd_normal((refbn_dd){row[0], row[1]}, (int)row[2]);
}

/* A mean and what is left of it, for the reason given in real_dd.h. */
typedef struct {
    refbn_xd value, rest;
} refbn_xd_center;

typedef struct {
    refbn_xd_center center[REFBN_LANES];
} refbn_xd_centers;

static inline refbn_xd_center refbn_xd_center_at(const refbn_xd_centers *v, int lane) { return v->center[lane]; }
static inline void refbn_xd_center_put(refbn_xd_centers *v, int lane, refbn_xd_center a) { v->center[lane] = a; }
static inline refbn_xd refbn_xd_center_value(refbn_xd_center a) { return a.value; }

static inline refbn_xd_center refbn_xd_center_from(double a)
{
    return (refbn_xd_center){refbn_xd_from(a), refbn_xd_from(0.0)};
}

/* What b's rounding in the sum lost goes into the rest, to 2^-105 b. */
static inline refbn_xd_center refbn_xd_center_add(refbn_xd_center a, refbn_xd b)
{
    const refbn_xd value = refbn_xd_add(a.value, b), lost = refbn_xd_sub(b, refbn_xd_sub(value, a.value));
    return (refbn_xd_center){value, refbn_xd_add(lost, a.rest)};
}

static inline void refbn_xd_center_save(double *row, refbn_xd_center a)
{
    refbn_xd_save(row, a.value);
    refbn_xd_save(row + 3, a.rest);
}

static inline refbn_xd_center refbn_xd_center_recall(const double *row)
{
    return (refbn_xd_center){refbn_xd_recall(row), refbn_xd_recall(row + 3)};
}

static inline refbn_xd refbn_xd_diff(double x, refbn_xd_center mean)
{
    return refbn_xd_sub(refbn_xd_sub(refbn_xd_from(x), mean.value), mean.rest);
}

typedef struct {
    refbn_xd sum[REFBN_LANES], excess[REFBN_LANES]; /* the true total is sum - excess */
} refbn_xd_totals;

static inline void refbn_xd_total_push(refbn_xd_totals *v, int lane, refbn_xd a)
{
    const refbn_xd term = refbn_xd_sub(a, v->excess[lane]), sum = refbn_xd_add(v->sum[lane], term);
    v->excess[lane] = refbn_xd_sub(refbn_xd_sub(sum, v->sum[lane]), term);
    v->sum[lane] = sum;
}

static inline void refbn_xd_total_add(refbn_xd_totals *v, const refbn_xd_lanes *sums, int width)
{
    REFBN_EACH_LANE(width) refbn_xd_total_push(v, lane, sums->value[lane]);
}

static inline void refbn_xd_total_join(refbn_xd_totals *v, int into, int from)
{
    refbn_xd_total_push(v, into, v->sum[from]);
    refbn_xd_total_push(v, into, refbn_xd_neg(v->excess[from]));
}

static inline refbn_xd refbn_xd_total_value(const refbn_xd_totals *v, int lane)
{
    return refbn_xd_sub(v->sum[lane], v->excess[lane]);
}

#endif
