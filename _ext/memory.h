/* Between memory in the four formats and blocks of binary64 numbers.
 *
 * Reading is exact and turns infinities into NaN (rule R1: x + (x - x)). Writing rounds once, to nearest
 * even, subnormals and overflow included. Assumes that conversions between binary64 and binary32 round to
 * nearest even and keep subnormals.
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

/* A tile is REFBN_STEPS rows of REFBN_LANES numbers. A row holds either consecutive elements of one group or
 * one element of as many consecutive groups; what is summed is summed per lane. */
enum { REFBN_LANES = 64, REFBN_STEPS = 16, REFBN_TILE = REFBN_STEPS * REFBN_LANES };

/* A width is a multiple of 16, and the mask tells the compiler so: no loop needs a scalar remainder. */
#define REFBN_EACH_LANE(width) for (int lane = 0; lane < ((width) & -16); lane++)

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

static REFBN_INLINE double refbn_nan(void) { return ((refbn_bits){.i = (int64_t)0x7ff8 << 48}).f; }
static REFBN_INLINE double refbn_infinity(void) { return ((refbn_bits){.i = (int64_t)0x7ff0 << 48}).f; }

/* ---- one number
 * -------------------------------------------------------------------------------------------- */

static REFBN_INLINE double refbn_poison(double a) { return a + (a - a); }

static REFBN_INLINE double refbn_from_f64(double a) { return refbn_poison(a); }
static REFBN_INLINE double refbn_from_f32(float a) { return refbn_poison((double)a); }

static REFBN_INLINE double refbn_from_bf16(uint16_t a)
{
    return refbn_poison((double)((refbn_bits32){.i = (uint32_t)a << 16}).f);
}

static REFBN_INLINE double refbn_from_f16(uint16_t a)
{
    /* The exponent field moves from bias 15 to bias 127, infinity and NaN on to 255; a subnormal is an
     * integer times 2^-24. */
    const uint32_t magnitude = a & 0x7fffu, sign = (uint32_t)(a & 0x8000u) << 16;
    const uint32_t bias = magnitude >= 0x7c00u ? 224u << 23 : 112u << 23;
    const refbn_bits32 normal = {.i = (magnitude << 13) + bias};
    const float value = magnitude < 0x0400u ? (float)(int32_t)magnitude * 0x1p-24f : normal.f;
    refbn_bits32 result = {value};
    result.i |= sign;
    return refbn_poison((double)result.f);
}

static REFBN_INLINE double refbn_to_f64(double a) { return a; }
static REFBN_INLINE float refbn_to_f32(double a) { return (float)a; }

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

/* ---- blocks: `rows` rows of `width` numbers, REFBN_LANES apart in the block, any distance apart in memory
 * --------- */

#define REFBN_EACH_NUMBER(width, statement)                                                                  \
    for (ptrdiff_t k = 0; k < (width); k++)                                                                  \
        statement;

/* Full rows and unit strides have loops of their own, which vectorise best. */
#define REFBN_EACH_ROW(type, unit_stride, any_stride)                                                        \
    for (; rows > 0; rows--, block += REFBN_LANES, data += row_stride) {                                     \
        if (stride != (ptrdiff_t)sizeof(type))                                                               \
            REFBN_EACH_NUMBER(width, any_stride)                                                             \
        else if (width == REFBN_LANES)                                                                       \
            REFBN_EACH_NUMBER(REFBN_LANES, unit_stride)                                                      \
        else                                                                                                 \
            REFBN_EACH_NUMBER(width, unit_stride)                                                            \
    }

#define REFBN_BLOCKS(name, type)                                                                             \
    static inline void refbn_load_##name(double *restrict block, const char *restrict data,                  \
                                         ptrdiff_t row_stride, ptrdiff_t stride, ptrdiff_t rows,             \
                                         ptrdiff_t width)                  \
    {                                                                                                        \
        REFBN_EACH_ROW(type, block[k] = refbn_from_##name(((const type *)data)[k]),                          \
                       block[k] = refbn_from_##name(*(const type *)(data + k * stride)))                     \
    }                                                                                                        \
                                                                                                             \
    static inline void refbn_store_##name(const double *restrict block, char *restrict data,                 \
                                          ptrdiff_t row_stride, ptrdiff_t stride, ptrdiff_t rows,            \
                                          ptrdiff_t width)                 \
    {                                                                                                        \
        REFBN_EACH_ROW(type, ((type *)data)[k] = refbn_to_##name(block[k]),                                  \
                       *(type *)(data + k * stride) = refbn_to_##name(block[k]))                             \
    }

REFBN_BLOCKS(f16, refbn_half_in_memory)
REFBN_BLOCKS(bf16, refbn_half_in_memory)
REFBN_BLOCKS(f32, refbn_float_in_memory)
REFBN_BLOCKS(f64, refbn_double_in_memory)

static inline void refbn_load_block(int format, double *block, const char *data, ptrdiff_t row_stride,
                                    ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t width)
{
    switch (format) {
    case REFBN_F16: refbn_load_f16(block, data, row_stride, stride, rows, width); break;
    case REFBN_BF16: refbn_load_bf16(block, data, row_stride, stride, rows, width); break;
    case REFBN_F32: refbn_load_f32(block, data, row_stride, stride, rows, width); break;
    default: refbn_load_f64(block, data, row_stride, stride, rows, width);
    }
}

static inline void refbn_store_block(int format, const double *block, char *data, ptrdiff_t row_stride,
                                     ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t width)
{
    switch (format) {
    case REFBN_F16: refbn_store_f16(block, data, row_stride, stride, rows, width); break;
    case REFBN_BF16: refbn_store_bf16(block, data, row_stride, stride, rows, width); break;
    case REFBN_F32: refbn_store_f32(block, data, row_stride, stride, rows, width); break;
    default: refbn_store_f64(block, data, row_stride, stride, rows, width);
    }
}

#endif
