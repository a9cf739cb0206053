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

/* Twice as many binary32 numbers, side by side in the same registers. */
typedef float refbn_w __attribute__((vector_size(8 * REFBN_WIDTH)));
typedef int32_t refbn_wi __attribute__((vector_size(8 * REFBN_WIDTH)));
typedef float refbn_w_in_memory __attribute__((vector_size(8 * REFBN_WIDTH), aligned(4), may_alias));

/* The same number, of which the compiler no longer knows what it is. */
static REFBN_INLINE refbn_v refbn_opaque(refbn_v a)
{
#if defined(__AVX512F__)
    __asm__("" : "+v"(a));
#elif defined(__AVX2__)
    __asm__("" : "+x"(a));
#endif
    return a;
}

static REFBN_INLINE refbn_v refbn_abs(refbn_v a) { return (refbn_v)((refbn_vi)a & INT64_MAX); }

/* `a` where the mask is set, else `b` */
static REFBN_INLINE refbn_v refbn_select(refbn_vi mask, refbn_v a, refbn_v b)
{
    return (refbn_v)(((refbn_vi)a & mask) | ((refbn_vi)b & ~mask));
}

/* The larger one; NaN if either is. */
static REFBN_INLINE refbn_v refbn_larger(refbn_v a, refbn_v b)
{
    return refbn_select((refbn_vi)(b <= a), a, refbn_select((refbn_vi)(a != a), a, b));
}

/* The largest power of two that is not above a > 0; 0 for 0 and for subnormal numbers. */
static REFBN_INLINE refbn_v refbn_power_below(refbn_v a)
{
    return (refbn_v)((refbn_vi)a & ((int64_t)0x7ff << 52));
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

static REFBN_INLINE int refbn_any(refbn_vi a)
{
#if defined(__AVX512F__)
    return _mm512_test_epi64_mask((__m512i)a, (__m512i)a) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)a, (__m256i)a);
#else
    int64_t all = 0;
    for (int lane = 0; lane < REFBN_WIDTH; lane++)
        all |= a[lane];
    return all != 0;
#endif
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

/* Whether refbn_multiply_add rounds once. */
#if defined(__AVX512F__) || defined(__AVX2__)
enum { REFBN_FUSED = 1 };
#else
enum { REFBN_FUSED = 0 };
#endif

/* a b + c, rounded once or, without REFBN_FUSED, twice */
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

static REFBN_INLINE refbn_w refbn_multiply_add_w(refbn_w a, refbn_w b, refbn_w c)
{
#if defined(__AVX512F__)
    return (refbn_w)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (refbn_w)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* Both ends of the enclosures of biased.h, rounded. */
static REFBN_INLINE refbn_v refbn_end(refbn_v hi, refbn_v tail, refbn_v one)
{
    return refbn_multiply_add(tail, one, hi);
}
static REFBN_INLINE refbn_w refbn_end_w(refbn_w hi, refbn_w tail, refbn_w one)
{
    return refbn_multiply_add_w(tail, one, hi);
}

/* Past the caches, to an address that is a multiple of 16: for memory that will not be read soon. Another
 * thread sees it after refbn_stream_end. */
static REFBN_INLINE void refbn_stream(char *to, refbn_v a)
{
#if defined(__AVX512F__) || defined(__AVX2__)
    double *const at = (double *)(void *)to;
    const int whole = ((uintptr_t)to & (sizeof a - 1)) == 0;
#if defined(__AVX512F__)
    if (whole)
        _mm512_stream_pd(at, (__m512d)a);
    else {
        _mm_stream_pd(at, _mm512_castpd512_pd128((__m512d)a));
        _mm_stream_pd(at + 2, _mm512_extractf64x2_pd((__m512d)a, 1));
        _mm_stream_pd(at + 4, _mm512_extractf64x2_pd((__m512d)a, 2));
        _mm_stream_pd(at + 6, _mm512_extractf64x2_pd((__m512d)a, 3));
    }
#else
    if (whole)
        _mm256_stream_pd(at, (__m256d)a);
    else {
        _mm_stream_pd(at, _mm256_castpd256_pd128((__m256d)a));
        _mm_stream_pd(at + 2, _mm256_extractf128_pd((__m256d)a, 1));
    }
#endif
#else
    *(refbn_v_in_memory *)(void *)to = a;
#endif
}

static inline void refbn_stream_end(void)
{
#if defined(__AVX512F__) || defined(__AVX2__)
    _mm_sfence();
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
