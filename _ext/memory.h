/* Between memory in the four formats and numbers.
 *
 * Reading is exact. Writing rounds once, to nearest even, subnormals and overflow included. Assumes that
 * conversions between binary64 and binary32 round to nearest even and keep subnormals.
 *
 * Test: pytest tests/backends/test_native.py -k conversion
 */
#ifndef REFBN_MEMORY_H
#define REFBN_MEMORY_H

#include <float.h>

#include "refbn.h"

#if FLT_EVAL_METHOD != 0
#error "refbn needs each operation in its operands' own precision; on 32-bit x86 use -msse2 -mfpmath=sse"
#endif

#if defined(__GNUC__)
#define REFBN_INLINE inline __attribute__((always_inline))
#define REFBN_UNALIGNED(type, name) typedef type name __attribute__((aligned(1), may_alias))
#define REFBN_SQRT(x) __builtin_sqrt(x)
#else
#include <math.h>
#define REFBN_INLINE inline
#define REFBN_UNALIGNED(type, name) typedef type name
#define REFBN_SQRT(x) sqrt(x)
#endif

typedef union {
    double f;
    int64_t i;
} refbn_bits;

typedef union {
    float f;
    uint32_t i;
} refbn_bits32;

REFBN_UNALIGNED(uint16_t, refbn_half_in_memory);
REFBN_UNALIGNED(float, refbn_float_in_memory);
REFBN_UNALIGNED(double, refbn_double_in_memory);

static REFBN_INLINE double refbn_infinity(void) { return ((refbn_bits){.i = (int64_t)0x7ff0 << 48}).f; }

static REFBN_INLINE double refbn_from_f64(double a) { return a; }
static REFBN_INLINE float refbn_from_f32(float a) { return a; }

static REFBN_INLINE float refbn_from_bf16(uint16_t a) { return ((refbn_bits32){.i = (uint32_t)a << 16}).f; }

static REFBN_INLINE float refbn_from_f16(uint16_t a)
{
    /* The exponent field moves from bias 15 to bias 127, infinity and NaN on to 255; a subnormal is an
     * integer times 2^-24. */
    const uint32_t magnitude = a & 0x7fffu, sign = (uint32_t)(a & 0x8000u) << 16;
    const uint32_t bias = magnitude >= 0x7c00u ? 224u << 23 : 112u << 23;
    const refbn_bits32 normal = {.i = (magnitude << 13) + bias};
    const float value = magnitude < 0x0400u ? (float)(int32_t)magnitude * 0x1p-24f : normal.f;
    refbn_bits32 result = {value};
    result.i |= sign;
    return result.f;
}

/* |a| rounded to `precision` significand bits with exponents from `smallest` on: adding 2^(52 - precision + 1
 * + e) for a's exponent e leaves just those bits. Above 2^200 there is nothing but overflow. */
static REFBN_INLINE double refbn_rounded_magnitude(double a, int precision, int smallest)
{
    refbn_bits magnitude = {a};
    magnitude.i &= INT64_MAX;
    const double bounded = magnitude.f < 0x1p200 ? magnitude.f : 0x1p200; /* NaN is left to the caller */
    const refbn_bits lowest = {.i = (int64_t)(smallest + 1023) << 52};
    refbn_bits magic = {bounded < lowest.f ? lowest.f : bounded};
    magic.i = (magic.i & ((int64_t)0x7ff << 52)) + ((int64_t)(53 - precision) << 52);
    return (bounded + magic.f) - magic.f;
}

static REFBN_INLINE uint16_t refbn_to_bf16(double a)
{
    const refbn_bits bits = {a};
    const refbn_bits32 rounded = {(float)refbn_rounded_magnitude(a, 8, -126)}; /* exact, or infinity */
    const uint32_t magnitude = a != a ? 0x7fc0u : rounded.i >> 16;
    return (uint16_t)(magnitude | ((uint32_t)(bits.i >> 63) & 0x8000u));
}

static REFBN_INLINE uint16_t refbn_to_f16(double a)
{
    const refbn_bits bits = {a};
    const double magnitude = refbn_rounded_magnitude(a, 11, -14);
    const refbn_bits32 rounded = {(float)magnitude};
    const uint32_t normal = (rounded.i >> 13) - (112u << 10);
    const uint32_t subnormal = (uint32_t)(int32_t)((magnitude < 1.0 ? magnitude : 1.0) * 0x1p24);
    const uint32_t finite = magnitude < 0x1p-14 ? subnormal : normal;
    const uint32_t result = a != a ? 0x7e00u : magnitude > 65504.0 ? 0x7c00u : finite;
    return (uint16_t)(result | ((uint32_t)(bits.i >> 63) & 0x8000u));
}

/* ---- runs: n numbers, `stride` bytes apart in memory, side by side in a buffer ---- */

#define REFBN_RUNS(format, type, buffer)                                                              \
    static inline void refbn_read_##format##_##buffer(buffer *restrict to, const char *restrict from, \
                                                      ptrdiff_t stride, ptrdiff_t n)                  \
    {                                                                                                 \
        if (stride == (ptrdiff_t)sizeof(type))                                                        \
            for (ptrdiff_t k = 0; k < n; k++)                                                         \
                to[k] = (buffer)refbn_from_##format(((const type *)from)[k]);                         \
        else                                                                                          \
            for (ptrdiff_t k = 0; k < n; k++)                                                         \
                to[k] = (buffer)refbn_from_##format(*(const type *)(from + k * stride));              \
    }

REFBN_RUNS(f16, refbn_half_in_memory, float)
REFBN_RUNS(bf16, refbn_half_in_memory, float)
REFBN_RUNS(f32, refbn_float_in_memory, float)
REFBN_RUNS(f16, refbn_half_in_memory, double)
REFBN_RUNS(bf16, refbn_half_in_memory, double)
REFBN_RUNS(f32, refbn_float_in_memory, double)
REFBN_RUNS(f64, refbn_double_in_memory, double)

static inline void refbn_read_float(int format, float *to, const char *from, ptrdiff_t stride, ptrdiff_t n)
{
    switch (format) {
    case REFBN_F16: refbn_read_f16_float(to, from, stride, n); break;
    case REFBN_BF16: refbn_read_bf16_float(to, from, stride, n); break;
    default:
        if (stride == 4)
            __builtin_memcpy(to, from, (size_t)n * 4);
        else
            refbn_read_f32_float(to, from, stride, n);
    }
}

static inline void refbn_read_double(int format, double *to, const char *from, ptrdiff_t stride, ptrdiff_t n)
{
    switch (format) {
    case REFBN_F16: refbn_read_f16_double(to, from, stride, n); break;
    case REFBN_BF16: refbn_read_bf16_double(to, from, stride, n); break;
    case REFBN_F32: refbn_read_f32_double(to, from, stride, n); break;
    default:
        if (stride == 8)
            __builtin_memcpy(to, from, (size_t)n * 8);
        else
            refbn_read_f64_double(to, from, stride, n);
    }
}

static inline int refbn_size(int format) { return format == REFBN_F64 ? 8 : format == REFBN_F32 ? 4 : 2; }

/* Encoded numbers of `size` bytes, from a buffer. */
static inline void refbn_write(int size, char *restrict to, const char *restrict from, ptrdiff_t stride,
                               ptrdiff_t n)
{
    if (stride == size)
        __builtin_memcpy(to, from, (size_t)(n * size));
    else if (size == 8)
        for (ptrdiff_t k = 0; k < n; k++)
            *(refbn_double_in_memory *)(to + k * stride) = ((const refbn_double_in_memory *)from)[k];
    else if (size == 4)
        for (ptrdiff_t k = 0; k < n; k++)
            *(refbn_float_in_memory *)(to + k * stride) = ((const refbn_float_in_memory *)from)[k];
    else
        for (ptrdiff_t k = 0; k < n; k++)
            *(refbn_half_in_memory *)(to + k * stride) = ((const refbn_half_in_memory *)from)[k];
}

/* What `a` is rounded to, encoded. */
static inline uint64_t refbn_encode(int format, double a)
{
    switch (format) {
    case REFBN_F16: return refbn_to_f16(a);
    case REFBN_BF16: return refbn_to_bf16(a);
    case REFBN_F32: return ((refbn_bits32){(float)a}).i;
    default: return (uint64_t)((refbn_bits){a}).i;
    }
}

static inline void refbn_put(int format, char *to, double a)
{
    const uint64_t code = refbn_encode(format, a);
    if (format == REFBN_F64)
        *(refbn_double_in_memory *)to = a;
    else if (format == REFBN_F32)
        *(refbn_float_in_memory *)to = (float)a;
    else
        *(refbn_half_in_memory *)to = (uint16_t)code;
}

#endif
