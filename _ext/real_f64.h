/* Plain binary64 arithmetic, for calls whose operands are all narrower. Unit roundoff 2^-53.
 *
 * Two things are kept in two parts: the mean that x is centered by (so that x - mean does not lose what x and
 * mean share) and the totals of tile sums.
 */
#ifndef REFBN_REAL_F64_H
#define REFBN_REAL_F64_H

#include "real_dd.h"

typedef double refbn_f64;

static REFBN_INLINE double refbn_f64_from(double a) { return a; }
static REFBN_INLINE double refbn_f64_from_two(double hi, double lo) { return hi + lo; }
static REFBN_INLINE double refbn_f64_neg(double a) { return -a; }
static REFBN_INLINE double refbn_f64_times_exact(double a, double power) { return a * power; }
static REFBN_INLINE double refbn_f64_add(double a, double b) { return a + b; }
static REFBN_INLINE double refbn_f64_sub(double a, double b) { return a - b; }
static REFBN_INLINE double refbn_f64_add_double(double a, double b) { return a + b; }
static REFBN_INLINE double refbn_f64_mul(double a, double b) { return a * b; }
static REFBN_INLINE double refbn_f64_mul_double(double a, double b) { return a * b; }
static REFBN_INLINE double refbn_f64_product(double a, double b) { return a * b; }
static REFBN_INLINE double refbn_f64_over(double a, double b) { return a / b; }
static REFBN_INLINE double refbn_f64_root(double a) { return REFBN_SQRT(a); }
static REFBN_INLINE int refbn_f64_is_zero(double a) { return a == 0.0; }
static REFBN_INLINE int refbn_f64_exceeds(double a, double b) { return a > b; }
static REFBN_INLINE double refbn_f64_round(double a, int format)
{
    (void)format;
    return a + 0.0; /* R4: no negative zero */
}

typedef struct {
    double hi[REFBN_LANES];
} refbn_f64_lanes;

static REFBN_INLINE double refbn_f64_at(const refbn_f64_lanes *v, int lane) { return v->hi[lane]; }
static REFBN_INLINE void refbn_f64_put(refbn_f64_lanes *v, int lane, double a) { v->hi[lane] = a; }

static REFBN_INLINE void refbn_f64_save(double *row, double a) { refbn_dd_save(row, refbn_dd_from(a)); }
static REFBN_INLINE double refbn_f64_recall(const double *row) { return row[0]; }

/* Two parts are enough here: data of 24 bits have |mean| below 2^25 sqrt(m) std. */
typedef refbn_dd refbn_f64_center;
typedef refbn_dd_lanes refbn_f64_centers;

static REFBN_INLINE double refbn_f64_diff(double x, refbn_dd mean) { return (x - mean.hi) - mean.lo; }
#define refbn_f64_center_at refbn_dd_at
#define refbn_f64_center_put refbn_dd_put
#define refbn_f64_center_add refbn_dd_add_double
#define refbn_f64_center_from refbn_dd_from
static REFBN_INLINE void refbn_f64_center_save(double *row, refbn_dd a)
{
    refbn_dd_save(row, a);
    refbn_dd_save(row + 3, refbn_dd_from(0.0));
}
#define refbn_f64_center_recall refbn_dd_recall
#define refbn_f64_center_value(center) ((center).hi)

/* The error of n additions is below u + n^2 u^2: less than 2 u as long as n < 2^26. */
typedef struct {
    double first[REFBN_LANES], second[REFBN_LANES];
} refbn_f64_totals;

static REFBN_INLINE void refbn_f64_total_push(refbn_f64_totals *v, int lane, double a)
{
    const refbn_dd first = refbn_two_sum(v->first[lane], a);
    v->first[lane] = first.hi;
    v->second[lane] += first.lo;
}

static REFBN_INLINE void refbn_f64_total_add(refbn_f64_totals *v, const refbn_f64_lanes *sums, int width)
{
    REFBN_EACH_LANE(width) refbn_f64_total_push(v, lane, sums->hi[lane]);
}

static REFBN_INLINE void refbn_f64_total_join(refbn_f64_totals *v, int into, int from)
{
    refbn_f64_total_push(v, into, v->first[from]);
    refbn_f64_total_push(v, into, v->second[from]);
}

static REFBN_INLINE double refbn_f64_total_value(const refbn_f64_totals *v, int lane)
{
    return v->first[lane] + v->second[lane];
}

#endif
