/* Vectors of binary64 numbers, as wide as the instruction set, and the error-free transformations on them.
 *
 * Assumes: binary64 operations that round to nearest even, subnormals kept, no contraction, no fast-math.
 * two_sum, two_difference: exact unless the sum overflows. fast_two_sum: exact if |a| >= |b| or a = 0.
 * two_product: exact if the product lies within 2^-960 ... 2^960 or is 0; Dekker's product where the
 * instruction set has no fused multiply-add. [J.-M. Muller et al., Handbook of Floating-Point Arithmetic, 2nd
 * ed., ch. 4]
 */
#ifndef REFBN_LANES_H
#define REFBN_LANES_H

#include "memory.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
enum { REFBN_WIDTH = 8 };
#elif defined(__AVX2__)
enum { REFBN_WIDTH = 4 };
#else
enum { REFBN_WIDTH = 2 };
#endif

typedef double refbn_v __attribute__((vector_size(8 * REFBN_WIDTH)));
typedef int64_t refbn_vi __attribute__((vector_size(8 * REFBN_WIDTH)));
typedef float refbn_vf __attribute__((vector_size(4 * REFBN_WIDTH)));
typedef int32_t refbn_vfi __attribute__((vector_size(4 * REFBN_WIDTH)));
typedef double refbn_v_in_memory __attribute__((vector_size(8 * REFBN_WIDTH), aligned(4), may_alias));
typedef float refbn_vf_in_memory __attribute__((vector_size(4 * REFBN_WIDTH), aligned(4), may_alias));

static REFBN_INLINE refbn_v refbn_splat(double a) { return (refbn_v){0} + a; }
static REFBN_INLINE refbn_v refbn_load(const double *p) { return *(const refbn_v_in_memory *)p; }
static REFBN_INLINE void refbn_store(double *p, refbn_v a) { *(refbn_v_in_memory *)p = a; }
static REFBN_INLINE refbn_v refbn_widen(const char *row, int lane) /* of binary32 numbers */
{
    const char *at = row + 4 * lane;
#if defined(__AVX512F__)
    return (refbn_v)_mm512_cvtps_pd(_mm256_loadu_ps((const float *)(const void *)at));
#elif defined(__AVX2__)
    return (refbn_v)_mm256_cvtps_pd(_mm_loadu_ps((const float *)(const void *)at));
#else
    return __builtin_convertvector(*(const refbn_vf_in_memory *)(const void *)at, refbn_v);
#endif
}

static REFBN_INLINE refbn_vf refbn_narrow(refbn_v a)
{
#if defined(__AVX512F__)
    return (refbn_vf)_mm512_cvtpd_ps((__m512d)a);
#elif defined(__AVX2__)
    return (refbn_vf)_mm256_cvtpd_ps((__m256d)a);
#else
    return __builtin_convertvector(a, refbn_vf);
#endif
}

static REFBN_INLINE refbn_v refbn_abs(refbn_v a) { return (refbn_v)((refbn_vi)a & INT64_MAX); }

/* `a` where the mask is set, else `b` */
static REFBN_INLINE refbn_v refbn_select(refbn_vi mask, refbn_v a, refbn_v b)
{
    return (refbn_v)(((refbn_vi)a & mask) | ((refbn_vi)b & ~mask));
}

/* a | (b ^ c) */
static REFBN_INLINE refbn_vfi refbn_note_difference(refbn_vfi a, refbn_vf b, refbn_vf c)
{
#if defined(__AVX512F__)
    return (refbn_vfi)_mm256_ternarylogic_epi32((__m256i)a, (__m256i)b, (__m256i)c, 0xf6);
#else
    return a | ((refbn_vfi)b ^ (refbn_vfi)c);
#endif
}

static REFBN_INLINE int64_t refbn_any(refbn_vi a)
{
    int64_t all = 0;
    for (int lane = 0; lane < REFBN_WIDTH; lane++)
        all |= a[lane];
    return all;
}

static REFBN_INLINE refbn_v refbn_root(refbn_v a)
{
#if defined(__AVX512F__)
    return (refbn_v)_mm512_sqrt_pd((__m512d)a);
#elif defined(__AVX2__)
    return (refbn_v)_mm256_sqrt_pd((__m256d)a);
#else
    refbn_v root;
    for (int lane = 0; lane < REFBN_WIDTH; lane++)
        root[lane] = REFBN_SQRT(a[lane]);
    return root;
#endif
}

/* a b + c, rounded once or twice */
static REFBN_INLINE refbn_v refbn_multiply_add(refbn_v a, refbn_v b, refbn_v c)
{
#if defined(__AVX512F__)
    return (refbn_v)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
    return (refbn_v)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
    return a * b + c;
#endif
}

typedef struct {
    refbn_v hi, lo;
} refbn_pair;

static REFBN_INLINE refbn_pair refbn_two_sum(refbn_v a, refbn_v b)
{
    const refbn_v sum = a + b, from_b = sum - a;
    return (refbn_pair){sum, (a - (sum - from_b)) + (b - from_b)};
}

static REFBN_INLINE refbn_pair refbn_two_difference(refbn_v a, refbn_v b) { return refbn_two_sum(a, -b); }

static REFBN_INLINE refbn_pair refbn_fast_two_sum(refbn_v a, refbn_v b)
{
    const refbn_v sum = a + b;
    return (refbn_pair){sum, b - (sum - a)};
}

static REFBN_INLINE refbn_pair refbn_two_product(refbn_v a, refbn_v b)
{
    const refbn_v product = a * b;
#if defined(__AVX512F__) || defined(__AVX2__)
    return (refbn_pair){product, refbn_multiply_add(a, b, -product)};
#else
    const refbn_v a_wide = 134217729.0 * a, b_wide = 134217729.0 * b;
    const refbn_v a_hi = a_wide - (a_wide - a), a_lo = a - a_hi;
    const refbn_v b_hi = b_wide - (b_wide - b), b_lo = b - b_hi;
    return (refbn_pair){product, a_lo * b_lo - (((product - a_hi * b_hi) - a_lo * b_hi) - a_hi * b_lo)};
#endif
}

/* Sums of pairs; the bound: ball.h, add. */
static REFBN_INLINE refbn_pair refbn_add_pairs(refbn_pair a, refbn_pair b)
{
    const refbn_pair head = refbn_two_sum(a.hi, b.hi);
    return refbn_fast_two_sum(head.hi, head.lo + (a.lo + b.lo));
}

/* hi + lo rounded to odd: what a narrower format then rounds to is what it rounds hi + lo to. */
static REFBN_INLINE refbn_v refbn_to_odd(refbn_v a, refbn_v b)
{
    const refbn_pair sum = refbn_two_sum(a, b);
    const refbn_vi hi = (refbn_vi)sum.hi, lo = (refbn_vi)sum.lo;
    const refbn_vi inexact = (refbn_vi)(sum.lo != 0.0), even = (hi & 1) - 1;
    const refbn_vi toward_lo = ((hi ^ lo) >> 63) | 1;
    return (refbn_v)(hi + (toward_lo & even & inexact));
}

#endif
