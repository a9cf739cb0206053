/* Double-double arithmetic: a number is hi + lo with hi = RN(hi + lo).
 *
 * Assumes: binary64 operations that round to nearest even, subnormals kept, no contraction, no fast-math; no
 * overflow or underflow (kernels.inc.h guards the exponents).
 *
 * Errors, with u = 2^-53 and A, B the magnitudes of the operands:
 *   add    <= 5 u^2 (A + B)   absolute: the "sloppy" sum. Where a and b cancel this is no relative bound,
 *                             but the passes' bounds are relative to sums of magnitudes: it is enough.
 *   mul    <= 5 u^2 A B       [1], algorithm DWTimesDW1;  mul_double <= 3 u^2 A B, DWTimesFP2
 *   over, root                per group only, done with one more correction than needed: <= 8 u^2
 * Hence one unit roundoff for all: 2^-103 = 8 u^2.
 *
 * [1] M. Joldes, J.-M. Muller, V. Popescu, "Tight and rigorous error bounds for basic building blocks of
 *     double-word arithmetic", ACM TOMS 44 (2017).
 */
#ifndef REFBN_REAL_DD_H
#define REFBN_REAL_DD_H

#include "memory.h"

typedef struct {
    double hi, lo;
} refbn_dd;

static REFBN_INLINE refbn_dd refbn_fast_two_sum(double a, double b)
{
    const double sum = a + b;
    return (refbn_dd){sum, b - (sum - a)};
}

static REFBN_INLINE refbn_dd refbn_two_sum(double a, double b)
{
    const double sum = a + b, from_b = sum - a;
    return (refbn_dd){sum, (a - (sum - from_b)) + (b - from_b)};
}

static REFBN_INLINE refbn_dd refbn_two_product(double a, double b)
{
    const double product = a * b;
#ifdef __FMA__
    return (refbn_dd){product, __builtin_fma(a, b, -product)};
#else
    /* Dekker's product with Veltkamp's splitting: as exact as the fma. */
    const double a_wide = 134217729.0 * a, b_wide = 134217729.0 * b;
    const double a_hi = a_wide - (a_wide - a), a_lo = a - a_hi;
    const double b_hi = b_wide - (b_wide - b), b_lo = b - b_hi;
    return (refbn_dd){product, a_lo * b_lo - (((product - a_hi * b_hi) - a_lo * b_hi) - a_hi * b_lo)};
#endif
}

static REFBN_INLINE refbn_dd refbn_dd_from(double a) { return (refbn_dd){a, 0.0}; }
static REFBN_INLINE refbn_dd refbn_dd_from_two(double hi, double lo) { return refbn_fast_two_sum(hi, lo); }
static REFBN_INLINE refbn_dd refbn_dd_neg(refbn_dd a) { return (refbn_dd){-a.hi, -a.lo}; }
static REFBN_INLINE refbn_dd refbn_dd_times_exact(refbn_dd a, double power) /* a power of two, or 0 */
{
    return (refbn_dd){a.hi * power, a.lo * power};
}

static REFBN_INLINE refbn_dd refbn_dd_add(refbn_dd a, refbn_dd b)
{
    const refbn_dd sum = refbn_two_sum(a.hi, b.hi);
    return refbn_fast_two_sum(sum.hi, sum.lo + (a.lo + b.lo));
}

static REFBN_INLINE refbn_dd refbn_dd_sub(refbn_dd a, refbn_dd b) { return refbn_dd_add(a, refbn_dd_neg(b)); }

static REFBN_INLINE refbn_dd refbn_dd_add_double(refbn_dd a, double b)
{
    const refbn_dd sum = refbn_two_sum(a.hi, b);
    return refbn_fast_two_sum(sum.hi, sum.lo + a.lo);
}

static REFBN_INLINE refbn_dd refbn_dd_mul(refbn_dd a, refbn_dd b)
{
    const refbn_dd product = refbn_two_product(a.hi, b.hi);
    return refbn_fast_two_sum(product.hi, product.lo + (a.hi * b.lo + a.lo * b.hi));
}

static REFBN_INLINE refbn_dd refbn_dd_mul_double(refbn_dd a, double b)
{
    const refbn_dd product = refbn_two_product(a.hi, b);
    return refbn_fast_two_sum(product.hi, product.lo + a.lo * b);
}

static REFBN_INLINE refbn_dd refbn_dd_product(double a, double b) { return refbn_two_product(a, b); }

static REFBN_INLINE refbn_dd refbn_dd_over(refbn_dd a, refbn_dd b)
{
    const double first = a.hi / b.hi;
    refbn_dd rest = refbn_dd_sub(a, refbn_dd_mul_double(b, first));
    const double second = rest.hi / b.hi;
    rest = refbn_dd_sub(rest, refbn_dd_mul_double(b, second));
    const double third = rest.hi / b.hi;
    return refbn_dd_add_double(refbn_fast_two_sum(first, second), third);
}

/* For a > 0 or NaN; one Newton step squares the error of sqrt. */
static REFBN_INLINE refbn_dd refbn_dd_root(refbn_dd a)
{
    const double root = REFBN_SQRT(a.hi);
    const refbn_dd rest = refbn_dd_sub(a, refbn_two_product(root, root));
    return refbn_fast_two_sum(root, rest.hi / (2.0 * root));
}

static REFBN_INLINE int refbn_dd_is_zero(refbn_dd a) { return a.hi == 0.0; }

static REFBN_INLINE int refbn_dd_exceeds(refbn_dd a, refbn_dd b) /* a > b; false for NaN */
{
    return a.hi > b.hi || (a.hi == b.hi && a.lo > b.lo);
}

/* The double to convert to `format`, so that the two steps round as one: hi itself for binary64; else hi + lo
 * rounded to odd. binary32 has 29 bits fewer, and two are enough. Without branches, so that loops vectorise.
 * */
static REFBN_INLINE double refbn_dd_round(refbn_dd a, int format)
{
    refbn_bits hi = {a.hi + 0.0};
    const refbn_bits lo = {a.lo};
    const int64_t narrow = -(int64_t)(format != REFBN_F64), inexact = -(int64_t)(a.lo != 0.0);
    const int64_t even = (hi.i & 1) - 1, toward_lo = ((hi.i ^ lo.i) >> 63) | 1;
    hi.i += toward_lo & even & inexact & narrow;
    return hi.f;
}

/* One number for each lane. */
typedef struct {
    double hi[REFBN_LANES], lo[REFBN_LANES];
} refbn_dd_lanes;

static REFBN_INLINE refbn_dd refbn_dd_at(const refbn_dd_lanes *v, int lane)
{
    return (refbn_dd){v->hi[lane], v->lo[lane]};
}

static REFBN_INLINE void refbn_dd_put(refbn_dd_lanes *v, int lane, refbn_dd a)
{
    v->hi[lane] = a.hi;
    v->lo[lane] = a.lo;
}

/* In a row of the state. */
static REFBN_INLINE void refbn_dd_save(double *row, refbn_dd a)
{
    row[0] = a.hi;
    row[1] = a.lo;
    row[2] = 0.0;
}

static REFBN_INLINE refbn_dd refbn_dd_recall(const double *row) { return (refbn_dd){row[0], row[1]}; }

/* A mean that x is centered by, in three parts: 106 bits of the mean leave 2^-106 |mean| / std of an error in
 * xhat, which at the largest offsets that binary64 data allow, |mean| = 2^53 std and more, is a rounding of
 * binary64 itself. The third part takes it below 2^-106 sqrt(m). */
typedef struct {
    double hi, lo, rest;
} refbn_dd_center;

typedef struct {
    double hi[REFBN_LANES], lo[REFBN_LANES], rest[REFBN_LANES];
} refbn_dd_centers;

static REFBN_INLINE refbn_dd_center refbn_dd_center_at(const refbn_dd_centers *v, int lane)
{
    return (refbn_dd_center){v->hi[lane], v->lo[lane], v->rest[lane]};
}

static REFBN_INLINE void refbn_dd_center_put(refbn_dd_centers *v, int lane, refbn_dd_center a)
{
    v->hi[lane] = a.hi;
    v->lo[lane] = a.lo;
    v->rest[lane] = a.rest;
}

static REFBN_INLINE refbn_dd_center refbn_dd_center_from(double a) { return (refbn_dd_center){a, 0.0, 0.0}; }
static REFBN_INLINE refbn_dd refbn_dd_center_value(refbn_dd_center a) { return (refbn_dd){a.hi, a.lo}; }

/* Exact but for the sums of the last parts, 2^-159 of the larger operand. */
static REFBN_INLINE refbn_dd_center refbn_dd_center_add(refbn_dd_center a, refbn_dd b)
{
    const refbn_dd high = refbn_two_sum(a.hi, b.hi), low = refbn_two_sum(a.lo, b.lo);
    const refbn_dd middle = refbn_two_sum(high.lo, low.hi);
    const refbn_dd tail = refbn_two_sum(middle.hi, middle.lo + (low.lo + a.rest));
    const refbn_dd head = refbn_two_sum(high.hi, tail.hi), last = refbn_two_sum(head.lo, tail.lo);
    return (refbn_dd_center){head.hi, last.hi, last.lo};
}

static REFBN_INLINE void refbn_dd_center_save(double *row, refbn_dd_center a)
{
    refbn_dd_save(row, (refbn_dd){a.hi, a.lo});
    refbn_dd_save(row + 3, refbn_dd_from(a.rest));
}

static REFBN_INLINE refbn_dd_center refbn_dd_center_recall(const double *row)
{
    return (refbn_dd_center){row[0], row[1], row[3]};
}

/* x - hi - lo is exact in two parts where x is near the mean, so the third part is not lost. */
static REFBN_INLINE refbn_dd refbn_dd_diff(double x, refbn_dd_center mean)
{
    const refbn_dd from_hi = refbn_two_sum(x, -mean.hi), from_lo = refbn_two_sum(from_hi.hi, -mean.lo);
    return refbn_fast_two_sum(from_lo.hi, (from_lo.lo + from_hi.lo) - mean.rest);
}

/* The total of many tile sums, in three parts: the error of n additions is below (2 + 2^-40 n) u^2 as long as
 * n < 2^30, so the totals add no depth. */
typedef struct {
    double first[REFBN_LANES], second[REFBN_LANES], third[REFBN_LANES];
} refbn_dd_totals;

static REFBN_INLINE void refbn_dd_total_push(refbn_dd_totals *v, int lane, double a)
{
    const refbn_dd first = refbn_two_sum(v->first[lane], a);
    const refbn_dd second = refbn_two_sum(v->second[lane], first.lo);
    v->first[lane] = first.hi;
    v->second[lane] = second.hi;
    v->third[lane] += second.lo;
}

static REFBN_INLINE void refbn_dd_total_add(refbn_dd_totals *v, const refbn_dd_lanes *sums, int width)
{
    REFBN_EACH_LANE(width) refbn_dd_total_push(v, lane, sums->hi[lane]);
    REFBN_EACH_LANE(width) refbn_dd_total_push(v, lane, sums->lo[lane]);
}

static REFBN_INLINE void refbn_dd_total_join(refbn_dd_totals *v, int into, int from)
{
    refbn_dd_total_push(v, into, v->first[from]);
    refbn_dd_total_push(v, into, v->second[from]);
    refbn_dd_total_push(v, into, v->third[from]);
}

static REFBN_INLINE refbn_dd refbn_dd_total_value(const refbn_dd_totals *v, int lane)
{
    const refbn_dd tail = refbn_two_sum(v->second[lane], v->third[lane]);
    const refbn_dd sum = refbn_two_sum(v->first[lane], tail.hi);
    return refbn_fast_two_sum(sum.hi, sum.lo + tail.lo);
}

#endif
