/* Exact arithmetic: integers times powers of two, sums without rounding, and correct rounding of
 * V = A / (C sqrt(R)) + B to the four formats.
 *
 * Method. A number is a sign, an exponent and 64-bit limbs. Sums are taken in 32-bit parts of 64-bit words,
 * one set for each sign, whose carries are resolved now and then. To round V, a 128-bit enclosure is rounded
 * at both ends; while the ends disagree, the point T halfway between two neighbours in the format's order is
 * compared with V, exactly:
 *     sign(V - T) = sign(A - (T - B) C sqrt(R)),
 * and where both terms have one sign that is the sign times that of A^2 - (T - B)^2 C^2 R. So nothing is ever
 * undecided, ties included; the enclosure only has to be right, and how narrow it is decides the speed.
 *
 * Floating-point numbers are read and written as bits and never computed with: the caller's rounding mode,
 * flush-to-zero and denormals-are-zero have nothing to act on.
 *
 * Capacity. A number whose bits lie in 2^(64 l) .. 2^(64 h) takes h - l limbs; a product's l and h are sums
 * of the factors'. With binary64 data (multiples of 2^-1074 below 2^1024) and m < 2^40:
 *     S1, X, G, U            multiples of 2^-1074, below 2^1065           l = -17   h = 17
 *     Q, W, V, Z, S2         multiples of 2^-2148, below 2^2130           l = -34   h = 34
 *     gamma, B, T, T - B     multiples of 2^-1075, at most 2^1025         l = -17   h = 17
 * The largest formula is the second-order dx: A = gamma (W U Q + V G Q + X Z Q - 3 X V W) + gamma_dot (..) Q
 * is a sum of 8 terms below 2^(1024 + 1065 + 2 * 2130) = 2^6349, one of them times 3, so A < 2^6400: l =
 * -102, h = 100. C^2 R = Q^5 < 2^10650: l = -170, h = 167. Then
 *     A^2                    l = -204  h = 200      404 limbs
 *     (T - B)^2 C^2 R        l = -204  h = 201      405 limbs
 * A product is written with as many limbs as its factors have together, before a leading zero goes: for these
 * two 202 + 202 and 68 + 337. A sum is written in the union of the terms' windows and one more limb: less
 * than that of A^2. Coefficients of x, g, u are A without its X, G or U, times m: smaller. The other formulas
 * have smaller divisors: Q, m^2, and with frozen statistics 2 q and 4 q^2, where q is no larger than B. For
 * running statistics A = n D + (d - n) m (m - 1) old is below 2^3300, C = d m (m - 1), and no root is
 * squared. 405 <= REFBN_EXACT_LIMBS = 408.
 *
 * Test: pytest tests/backends/test_exact_rung.py
 */
#ifndef REFBN_EXACT_H
#define REFBN_EXACT_H

#include <limits.h>

#include "exact_rung.h"

#if defined(__GNUC__)
#define REFBN_EXACT_INLINE static inline __attribute__((always_inline))
#define REFBN_EXACT_COPY(to, from, bytes) __builtin_memcpy(to, from, bytes)
#define REFBN_EXACT_CLEAR(to, bytes) __builtin_memset(to, 0, bytes)
#else
#include <string.h>
#define REFBN_EXACT_INLINE static inline
#define REFBN_EXACT_COPY(to, from, bytes) memcpy(to, from, bytes)
#define REFBN_EXACT_CLEAR(to, bytes) memset(to, 0, bytes)
#endif

#ifdef REFBN_EXACT_BLIND /* a test's build, in which every answer comes from comparisons of whole numbers */
#define REFBN_EXACT_IS_BLIND 1
#else
#define REFBN_EXACT_IS_BLIND 0
#endif

_Static_assert(REFBN_EXACT_LIMBS >= 405 + 1, "see the head of this file");

/* ---- bits --------------------------------------------------------------------------------------------- */

REFBN_EXACT_INLINE uint64_t refbn_exact_bits(double a)
{
    uint64_t bits;
    REFBN_EXACT_COPY(&bits, &a, sizeof bits);
    return bits;
}

REFBN_EXACT_INLINE double refbn_exact_double(uint64_t bits)
{
    double a;
    REFBN_EXACT_COPY(&a, &bits, sizeof a);
    return a;
}

#define REFBN_EXACT_NAN ((uint64_t)0x7ff8 << 48)
#define REFBN_EXACT_INFINITY ((uint64_t)0x7ff << 52)

REFBN_EXACT_INLINE int refbn_exact_is_finite(uint64_t bits)
{
    return (bits & REFBN_EXACT_INFINITY) != REFBN_EXACT_INFINITY;
}

/* |a| = mantissa * 2^(position - 1088) for a finite a; 1088 = 17 * 64. */
typedef struct {
    uint64_t mantissa;
    int position, negative, finite;
} refbn_exact_parts;

REFBN_EXACT_INLINE refbn_exact_parts refbn_exact_unpack(uint64_t bits)
{
    const int biased = (int)(bits >> 52 & 0x7ff);
    const uint64_t fraction = bits & (((uint64_t)1 << 52) - 1);
    const int finite = biased != 0x7ff;
    const uint64_t mantissa = fraction | (uint64_t)(biased != 0) << 52;
    return (refbn_exact_parts){finite ? mantissa : 0, biased + (biased == 0) + 13, (int)(bits >> 63), finite};
}

static inline int refbn_exact_width(uint64_t a) /* a > 0; the number of its bits */
{
#if defined(__GNUC__)
    return 64 - __builtin_clzll(a);
#else
    int width = 1;
    for (int step = 32; step; step /= 2)
        if (a >> step) {
            a >>= step;
            width += step;
        }
    return width;
#endif
}

/* ---- one limb ------------------------------------------------------------------------------------------ */

/* a b + c + d = *high 2^64 + the result; it cannot overflow. */
REFBN_EXACT_INLINE uint64_t refbn_exact_muladd(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t *high)
{
#if defined(__SIZEOF_INT128__) && !defined(REFBN_EXACT_HALVES)
    __extension__ typedef unsigned __int128 wide;
    const wide sum = (wide)a * b + c + d;
    *high = (uint64_t)(sum >> 64);
    return (uint64_t)sum;
#else
    const uint64_t half = 0xffffffffu;
    const uint64_t low = (a & half) * (b & half);
    const uint64_t cross = (a >> 32) * (b & half) + (low >> 32);
    const uint64_t other = (a & half) * (b >> 32) + (cross & half);
    uint64_t result = other << 32 | (low & half);
    *high = (a >> 32) * (b >> 32) + (cross >> 32) + (other >> 32);
    result += c;
    *high += result < c;
    result += d;
    *high += result < d;
    return result;
#endif
}

REFBN_EXACT_INLINE uint64_t refbn_exact_add_limb(uint64_t a, uint64_t b, uint64_t *carry) /* of 0 or 1 */
{
    const uint64_t sum = a + b, total = sum + *carry;
    *carry = (uint64_t)(sum < a) | (uint64_t)(total < sum);
    return total;
}

REFBN_EXACT_INLINE uint64_t refbn_exact_subtract_limb(uint64_t a, uint64_t b, uint64_t *borrow)
{
    const uint64_t difference = a - b, total = difference - *borrow;
    *borrow = (uint64_t)(a < b) | (uint64_t)(difference < *borrow);
    return total;
}

/* ---- two limbs ----------------------------------------------------------------------------------------- */

REFBN_EXACT_INLINE refbn_exact_pair refbn_exact_pair_add(refbn_exact_pair a, refbn_exact_pair b)
{
    const uint64_t lo = a.lo + b.lo;
    return (refbn_exact_pair){a.hi + b.hi + (lo < b.lo), lo};
}

/* a, or -1 - a where the mask is all ones. */
REFBN_EXACT_INLINE refbn_exact_pair refbn_exact_pair_flip(refbn_exact_pair a, uint64_t mask)
{
    return (refbn_exact_pair){a.hi ^ mask, a.lo ^ mask};
}

/* floor(a / 2^shift), a not negative; 0 <= shift. */
REFBN_EXACT_INLINE refbn_exact_pair refbn_exact_pair_shift(refbn_exact_pair a, int shift)
{
    if (shift >= 64)
        return (refbn_exact_pair){0, shift >= 128 ? 0 : a.hi >> (shift - 64)};
    return (refbn_exact_pair){a.hi >> shift, a.hi << 1 << (63 - shift) | a.lo >> shift};
}

/* ---- numbers ------------------------------------------------------------------------------------------- */

static inline void refbn_exact_zero(refbn_exact_number *a)
{
    a->sign = a->length = a->exponent = 0;
}

static inline void refbn_exact_copy(refbn_exact_number *into, const refbn_exact_number *a)
{
    into->sign = a->sign;
    into->length = a->length;
    into->exponent = a->exponent;
    REFBN_EXACT_COPY(into->limb, a->limb, (size_t)a->length * sizeof a->limb[0]);
}

/* Drop zero limbs at both ends; sign and exponent are those of the limbs as they stand. */
static void refbn_exact_trim(refbn_exact_number *a)
{
    int length = a->length, low = 0;
    while (length > 0 && !a->limb[length - 1])
        length--;
    if (!length) {
        refbn_exact_zero(a);
        return;
    }
    while (!a->limb[low])
        low++;
    a->length = length - low;
    if (low) {
        a->exponent += low;
        for (int i = 0; i < a->length; i++)
            a->limb[i] = a->limb[i + low];
    }
}

/* sign * mantissa * 2^(position - 1088), position >= 0. */
static inline void refbn_exact_from_parts(refbn_exact_number *into, int sign, uint64_t mantissa, int position)
{
    const int shift = position & 63;
    into->sign = sign;
    into->exponent = (position >> 6) - 17;
    into->length = 2;
    into->limb[0] = mantissa << shift;
    into->limb[1] = mantissa >> 1 >> (63 - shift);
    refbn_exact_trim(into);
}

static inline void refbn_exact_from_double(refbn_exact_number *into, double a) /* 0 if it is not finite */
{
    const refbn_exact_parts parts = refbn_exact_unpack(refbn_exact_bits(a));
    refbn_exact_from_parts(into, parts.negative ? -1 : 1, parts.mantissa, parts.position);
}

static inline void refbn_exact_from_integer(refbn_exact_number *into, uint64_t a)
{
    refbn_exact_from_parts(into, 1, a, 1088);
}

/* The sign of |a| - |b|, neither of which is 0. */
static int refbn_exact_compare_magnitudes(const refbn_exact_number *a, const refbn_exact_number *b)
{
    const int top_a = a->exponent + a->length, top_b = b->exponent + b->length;
    if (top_a != top_b)
        return top_a > top_b ? 1 : -1;
    int i = a->length, j = b->length;
    while (i && j)
        if (a->limb[--i] != b->limb[--j])
            return a->limb[i] > b->limb[j] ? 1 : -1;
    return (i > 0) - (j > 0); /* what is left over ends in a limb that is not 0 */
}

/* a + b, or a - b if sign_b is -1. `into` is neither. */
static void refbn_exact_add_signed(refbn_exact_number *restrict into, const refbn_exact_number *a,
                                   const refbn_exact_number *b, int sign_b)
{
    sign_b *= b->sign;
    if (!a->sign || !sign_b) {
        refbn_exact_copy(into, a->sign ? a : b);
        into->sign = a->sign ? a->sign : sign_b;
        return;
    }
    int sign = a->sign;
    const int subtract = sign != sign_b;
    if (subtract) {
        const int order = refbn_exact_compare_magnitudes(a, b);
        if (!order) {
            refbn_exact_zero(into);
            return;
        }
        if (order < 0) {
            const refbn_exact_number *larger = b;
            b = a;
            a = larger;
            sign = sign_b;
        }
    }
    /* a in a frame that has room for both, then b onto it. */
    const int top_a = a->exponent + a->length, top_b = b->exponent + b->length;
    const int low = a->exponent < b->exponent ? a->exponent : b->exponent;
    const int length = (top_a > top_b ? top_a : top_b) - low + 1;
    const int start_a = a->exponent - low, start_b = b->exponent - low;
    for (int i = 0; i < start_a; i++)
        into->limb[i] = 0;
    for (int i = 0; i < a->length; i++)
        into->limb[start_a + i] = a->limb[i];
    for (int i = start_a + a->length; i < length; i++)
        into->limb[i] = 0;
    uint64_t carry = 0;
    uint64_t *at = into->limb + start_b;
    if (subtract) {
        for (int i = 0; i < b->length; i++)
            at[i] = refbn_exact_subtract_limb(at[i], b->limb[i], &carry);
        for (at += b->length; carry; at++)
            *at = refbn_exact_subtract_limb(*at, 0, &carry);
    } else {
        for (int i = 0; i < b->length; i++)
            at[i] = refbn_exact_add_limb(at[i], b->limb[i], &carry);
        for (at += b->length; carry; at++)
            *at = refbn_exact_add_limb(*at, 0, &carry);
    }
    into->sign = sign;
    into->exponent = low;
    into->length = length;
    refbn_exact_trim(into);
}

static inline void refbn_exact_add(refbn_exact_number *into, const refbn_exact_number *a,
                                   const refbn_exact_number *b)
{
    refbn_exact_add_signed(into, a, b, 1);
}

static inline void refbn_exact_subtract(refbn_exact_number *into, const refbn_exact_number *a,
                                        const refbn_exact_number *b)
{
    refbn_exact_add_signed(into, a, b, -1);
}

static inline void refbn_exact_negate(refbn_exact_number *a) { a->sign = -a->sign; }

/* a b; `into` is neither. */
static void refbn_exact_multiply(refbn_exact_number *restrict into, const refbn_exact_number *a,
                                 const refbn_exact_number *b)
{
    if (!a->sign || !b->sign) {
        refbn_exact_zero(into);
        return;
    }
    if (a->length > b->length) {
        const refbn_exact_number *longer = a;
        a = b;
        b = longer;
    }
    uint64_t carry = 0;
    for (int j = 0; j < b->length; j++)
        into->limb[j] = refbn_exact_muladd(a->limb[0], b->limb[j], carry, 0, &carry);
    into->limb[b->length] = carry;
    for (int i = 1; i < a->length; i++) {
        const uint64_t factor = a->limb[i];
        uint64_t *at = into->limb + i;
        carry = 0;
        for (int j = 0; j < b->length; j++)
            at[j] = refbn_exact_muladd(factor, b->limb[j], at[j], carry, &carry);
        at[b->length] = carry;
    }
    into->sign = a->sign * b->sign;
    into->exponent = a->exponent + b->exponent;
    into->length = a->length + b->length;
    refbn_exact_trim(into);
}

static inline void refbn_exact_multiply_double(refbn_exact_number *into, const refbn_exact_number *a,
                                               double b)
{
    refbn_exact_number factor;
    refbn_exact_from_double(&factor, b);
    refbn_exact_multiply(into, a, &factor);
}

static inline void refbn_exact_multiply_integer(refbn_exact_number *into, const refbn_exact_number *a,
                                                uint64_t b)
{
    refbn_exact_number factor;
    refbn_exact_from_integer(&factor, b);
    refbn_exact_multiply(into, a, &factor);
}

/* ---- sums ---------------------------------------------------------------------------------------------- */

/* A part stands for 32 bits; part i of a sum weighs 2^(32 i - 1088), of a sum of products 2^(32 i - 2176). A
 * number starts at most at position 2046 + 13 and so ends at 2112, and 2^40 of them stay below 2^2152, which
 * is within 68 parts; a product starts at most at 2 * 2059, and 4118 + 106 + 40 = 4264 is within 134 parts.
 * What is not finite counts as 0, one position higher. Between two resolutions of the carries, an addition
 * adds less than 2^32 + 2^52 to any part, that of a product less than 3 * 2^32 + 2^41, and a resolved part is
 * below 2^32. */
enum { REFBN_EXACT_SUM_PENDING = 1 << 11, REFBN_EXACT_PRODUCT_PENDING = 1 << 20 };
_Static_assert(((uint64_t)1 << 52) + ((uint64_t)1 << 33) <= UINT64_MAX / (REFBN_EXACT_SUM_PENDING + 1),
               "parts must not overflow");
_Static_assert(((uint64_t)1 << 41) + ((uint64_t)1 << 34) <=
                   UINT64_MAX / (REFBN_EXACT_PRODUCT_PENDING + REFBN_EXACT_SUM_PENDING + 1),
               "nor here, where a block of up to REFBN_EXACT_SUM_PENDING starts just below the limit");

#define REFBN_EXACT_LOW32 ((uint64_t)0xffffffffu)

REFBN_EXACT_INLINE void refbn_exact_sum_add(refbn_exact_sum *sum, const refbn_exact_parts *a)
{
    uint64_t *part = sum->part[a->negative] + (a->position >> 5);
    const int shift = a->position & 31;
    part[0] += a->mantissa << shift & REFBN_EXACT_LOW32;
    part[1] += a->mantissa >> (32 - shift);
}

REFBN_EXACT_INLINE void refbn_exact_product_add(refbn_exact_product_sum *sum, const refbn_exact_parts *a,
                                                const refbn_exact_parts *b)
{
    const int position = a->position + b->position, shift = position & 31;
    uint64_t *part = sum->part[a->negative ^ b->negative] + (position >> 5);
    uint64_t high;
    const uint64_t low = refbn_exact_muladd(a->mantissa, b->mantissa, 0, 0, &high);
    part[0] += low << shift & REFBN_EXACT_LOW32;
    part[1] += low >> (32 - shift) & REFBN_EXACT_LOW32;
    part[2] += (high << shift | low >> 1 >> (63 - shift)) & REFBN_EXACT_LOW32;
    part[3] += high >> (32 - shift);
}

static void refbn_exact_resolve(uint64_t *part, int parts)
{
    uint64_t carry = 0;
    for (int i = 0; i < parts; i++) {
        carry += part[i];
        part[i] = carry & REFBN_EXACT_LOW32;
        carry >>= 32;
    }
}

/* The difference of both signs' parts, which are resolved; `exponent` is that of the first limb. */
static void refbn_exact_from_accumulator(refbn_exact_number *into, const uint64_t *positive,
                                         const uint64_t *negative, int parts, int exponent)
{
    refbn_exact_number sides[2];
    for (int side = 0; side < 2; side++) {
        const uint64_t *part = side ? negative : positive;
        refbn_exact_number *number = &sides[side];
        for (int i = 0; i < parts / 2; i++)
            number->limb[i] = part[2 * i] | part[2 * i + 1] << 32;
        number->sign = 1;
        number->exponent = exponent;
        number->length = parts / 2;
        refbn_exact_trim(number);
    }
    refbn_exact_subtract(into, &sides[0], &sides[1]);
}

/* ---- leading bits -------------------------------------------------------------------------------------- */

/* A `leading` says what a number is up to a relative error, which the comments count in units of 2^-127: the
 * leading 128 bits of a number are exact to 1 unit, a product to the sum of its factors' and 1. */

/* hi 2^64 + lo, shifted so that its first bit is set; 0 has no leading bit. */
static inline refbn_exact_leading refbn_exact_normalised(uint64_t hi, uint64_t lo, int sign, int top)
{
    if (!hi) {
        hi = lo;
        lo = 0;
        top -= 64;
    }
    if (!hi)
        return (refbn_exact_leading){0, 0, 0, 0};
    const int shift = 64 - refbn_exact_width(hi);
    return (refbn_exact_leading){hi << shift | lo >> 1 >> (63 - shift), lo << shift, sign, top - shift};
}

static inline refbn_exact_leading refbn_exact_leading_of(const refbn_exact_number *a)
{
    const int n = a->length;
    const uint64_t hi = n > 0 ? a->limb[n - 1] : 0, lo = n > 1 ? a->limb[n - 2] : 0;
    const uint64_t next = n > 2 ? a->limb[n - 3] : 0;
    refbn_exact_leading leading = refbn_exact_normalised(hi, lo, a->sign, 64 * (a->exponent + n));
    if (hi)
        leading.lo |= next >> 1 >> (refbn_exact_width(hi) - 1);
    return leading;
}

static inline refbn_exact_wide refbn_exact_wide_of(const refbn_exact_number *a)
{
    const int n = a->length, shift = n ? 64 - refbn_exact_width(a->limb[n - 1]) : 0;
    refbn_exact_wide wide = {{0, 0, 0}, a->sign, 64 * (a->exponent + n) - shift};
    for (int i = 0; i < 3; i++) {
        const uint64_t limb = n > i ? a->limb[n - 1 - i] : 0, next = n > i + 1 ? a->limb[n - 2 - i] : 0;
        wide.limb[2 - i] = limb << shift | next >> 1 >> (63 - shift);
    }
    return wide;
}

static inline refbn_exact_leading refbn_exact_leading_of_double(double a) /* exact */
{
    const refbn_exact_parts parts = refbn_exact_unpack(refbn_exact_bits(a));
    return refbn_exact_normalised(parts.mantissa, 0, parts.negative ? -1 : 1, parts.position - 1088 + 64);
}

/* The upper half of the product of two 128-bit integers, floored, and the bit below. */
static inline void refbn_exact_multiply_high(const uint64_t a[2], const uint64_t b[2], uint64_t out[2],
                                             uint64_t *below)
{
    uint64_t c0, c1, c2, h0, h1, h2, p1, p2;
    (void)refbn_exact_muladd(a[1], b[1], 0, 0, &c0);
    p1 = refbn_exact_muladd(a[0], b[1], c0, 0, &h0);
    p1 = refbn_exact_muladd(a[1], b[0], p1, 0, &h1);
    p2 = refbn_exact_muladd(a[0], b[0], h0, h1, &h2);
    c1 = p2;
    c2 = h2;
    out[0] = c2;
    out[1] = c1;
    *below = p1;
}

static inline refbn_exact_leading refbn_exact_leading_multiply(refbn_exact_leading a, refbn_exact_leading b)
{
    uint64_t product[2], below;
    if (!a.sign || !b.sign)
        return (refbn_exact_leading){0, 0, 0, 0};
    refbn_exact_multiply_high((uint64_t[]){a.hi, a.lo}, (uint64_t[]){b.hi, b.lo}, product, &below);
    const int shift = !(product[0] >> 63); /* a product of two mantissas in [1/2, 1) is at least 1/4 */
    return (refbn_exact_leading){shift ? product[0] << 1 | product[1] >> 63 : product[0],
                                 shift ? product[1] << 1 | below >> 63 : product[1], a.sign * b.sign,
                                 a.top + b.top - shift};
}

/* 1 / sqrt(d), to 2^10 units if d is known to 2^7.
 *
 * d = 4^k D / 2^126 with 2^126 <= D < 2^128, and y = Y / 2^127 approximates 2^k / sqrt(d), which is in (1/2,
 * 1]. Newton's step is y' = y + y rho / 2 with rho = 1 - (D / 2^126) y^2; then rho' = 3/4 rho^2 + rho^3 / 4.
 * The first y = 1.03 - 0.14 D / 2^126 has |rho| < 0.21 (its extremes, at 1, 2.45 and 4, are 0.208, -0.156,
 * 0.117), so after six steps |rho| would be below 1e-50 without rounding. Cutting y^2 at 2^-126 and its
 * product with D at 2^-124 leaves rho 2^-123 off at most, and y' half of that, relatively, and 2^-126 for the
 * last cut: below 2^-123. An error of D counts half: 2^6 units and 2^4, far below 2^10. */
static refbn_exact_leading refbn_exact_inverse_root(refbn_exact_leading d)
{
    /* d.top - 2 is the exponent of its first bit, less 1: an even one leaves D / 2^126 in [2, 4). */
    const int odd = d.top & 1; /* the same for negative exponents, in two's complement */
    const uint64_t D[2] = {odd ? d.hi >> 1 : d.hi, odd ? d.hi << 63 | d.lo >> 1 : d.lo};
    const int k = (d.top + odd) / 2 - 1; /* D / 2^126 4^k = d: D / 2^128 = d / 2^(top + odd) */
    uint64_t high, Y[2], below;
    (void)refbn_exact_muladd(D[0], 5165088340638674452u, 0, 0, &high); /* 0.28 * 2^64 */
    Y[0] = 9500073197960419082u - high;                                /* 1.03 * 2^63 */
    Y[1] = 0;
    for (int step = 0; step < 6; step++) {
        uint64_t square[2], product[2], r[2], change[2], carry = 0;
        refbn_exact_multiply_high(Y, Y, square, &below);       /* y^2 2^126 */
        refbn_exact_multiply_high(D, square, product, &below); /* (1 - rho) 2^124 */
        const uint64_t one = (uint64_t)1 << 60;
        const int grow = product[0] < one; /* rho > 0 */
        r[1] = grow ? refbn_exact_subtract_limb(0, product[1], &carry) : product[1];
        r[0] = grow ? refbn_exact_subtract_limb(one, product[0], &carry) : product[0] - one;
        r[0] = r[0] << 3 | r[1] >> 61;
        r[1] <<= 3;
        refbn_exact_multiply_high(Y, r, change, &below); /* y |rho| / 2 2^127 */
        carry = 0;
        if (grow) {
            Y[1] = refbn_exact_add_limb(Y[1], change[1], &carry);
            Y[0] = refbn_exact_add_limb(Y[0], change[0], &carry);
        } else {
            Y[1] = refbn_exact_subtract_limb(Y[1], change[1], &carry);
            Y[0] = refbn_exact_subtract_limb(Y[0], change[0], &carry);
        }
    }
    return refbn_exact_normalised(Y[0], Y[1], 1, 1 - k);
}

/* ---- divisors ----------------------------------------------------------------------------------------- */

/* C sqrt(R), or C if r is NULL; ready to be divided by. The inverse is known to 2^10 units. */
static void refbn_exact_divisor_set(refbn_exact_divisor *divisor, const refbn_exact_number *c,
                                    const refbn_exact_number *r)
{
    const refbn_exact_leading leading = refbn_exact_leading_of(c);
    refbn_exact_leading square = refbn_exact_leading_multiply(leading, leading); /* 3 units */
    refbn_exact_copy(&divisor->factor, c);
    divisor->rooted = r != NULL;
    divisor->has_square = 0;
    if (r) {
        refbn_exact_copy(&divisor->radicand, r);
        square = refbn_exact_leading_multiply(square, refbn_exact_leading_of(r)); /* 5 units */
    }
    divisor->inverse = refbn_exact_inverse_root(square);
}

/* The sign of a - s C sqrt(R). */
static int refbn_exact_compare_quotient(const refbn_exact_number *a, refbn_exact_divisor *divisor,
                                        const refbn_exact_number *s)
{
    refbn_exact_number left, right;
    if (a->sign != s->sign || !s->sign)
        return a->sign > s->sign ? 1 : a->sign < s->sign ? -1 : 0;
    if (!divisor->rooted) {
        refbn_exact_multiply(&right, s, &divisor->factor);
        return a->sign * refbn_exact_compare_magnitudes(a, &right);
    }
    if (!divisor->has_square) {
        refbn_exact_multiply(&left, &divisor->factor, &divisor->factor);
        refbn_exact_multiply(&divisor->square, &left, &divisor->radicand);
        divisor->has_square = 1;
    }
    refbn_exact_multiply(&left, s, s);
    refbn_exact_multiply(&right, &left, &divisor->square);
    refbn_exact_multiply(&left, a, a);
    return a->sign * refbn_exact_compare_magnitudes(&left, &right);
}

/* ---- sums known to be small ---------------------------------------------------------------------------- */

/* A sum that is known to be below 2^(64 n - 1) units is what its lowest n limbs say, in two's complement. */
enum { REFBN_EXACT_LOW_LIMBS = 16 };

/* Add a * mantissa * 2^(shift + 64 offset), or its negative; a's limbs without its exponent. */
static inline void refbn_exact_low_add(uint64_t *restrict low, int limbs, const refbn_exact_number *a,
                                            uint64_t mantissa, int shift, int offset, int negative)
{
    const uint64_t mask = 0 - (uint64_t)negative;
    const int own = a->length < limbs - offset ? a->length : limbs - offset;
    uint64_t high = 0, before = 0, carry = (uint64_t)negative;
    uint64_t *at = low + offset;
    for (int i = 0; i < own; i++) {
        const uint64_t product = refbn_exact_muladd(a->limb[i], mantissa, high, 0, &high);
        at[i] = refbn_exact_add_limb(at[i], (product << shift | before >> 1 >> (63 - shift)) ^ mask, &carry);
        before = product;
    }
    for (int i = own > 0 ? own : 0; i < limbs - offset; i++) { /* at most two limbs, and the sign's */
        at[i] = refbn_exact_add_limb(at[i], (high << shift | before >> 1 >> (63 - shift)) ^ mask, &carry);
        before = high;
        high = 0;
    }
}

/* The first limb that a * (mantissa 2^(position - 1088)) may reach. */
REFBN_EXACT_INLINE int refbn_exact_low_start(const refbn_exact_number *a, const refbn_exact_parts *b)
{
    return a->exponent + (b->position >> 6) - 17;
}

/* sum a[i] b[i] + c, which is below 2^top in magnitude (INT_MAX if that is not known), in limbs of which the
 * first is number `base`. Returns how many these are; 0 if they would be too many. */
static int refbn_exact_low_sum(uint64_t *restrict low, int *base, const refbn_exact_number *const *a,
                               const refbn_exact_parts *b, int n, const refbn_exact_number *c, int top)
{
    int first = c->sign ? c->exponent : 1 << 20, end = c->sign ? c->exponent + c->length : -(1 << 20);
    for (int i = 0; i < n; i++) {
        const int start = refbn_exact_low_start(a[i], &b[i]);
        if (!a[i]->sign || !b[i].mantissa)
            continue;
        first = start < first ? start : first;
        end = start + a[i]->length + 2 > end ? start + a[i]->length + 2 : end; /* of the product */
    }
    if (top < 64 * end + 63) /* or else one more for the sum and the sign */
        end = top + 1 >= 64 * first ? (top + 1 - 64 * first + 63) / 64 + first - 1 : first;
    const int limbs = end < first ? 1 : end - first + 1;
    if (limbs > REFBN_EXACT_LOW_LIMBS)
        return 0;
    *base = first;
    for (int i = 0; i < limbs; i++)
        low[i] = 0;
    if (c->sign && c->exponent - first < limbs)
        refbn_exact_low_add(low, limbs, c, 1, 0, c->exponent - first, c->sign < 0);
    for (int i = 0; i < n; i++) {
        const int offset = refbn_exact_low_start(a[i], &b[i]) - first;
        if (a[i]->sign && b[i].mantissa && offset < limbs)
            refbn_exact_low_add(low, limbs, a[i], b[i].mantissa, b[i].position & 63, offset,
                                (a[i]->sign < 0) ^ b[i].negative);
    }
    return limbs;
}

static void refbn_exact_from_low(refbn_exact_number *into, const uint64_t *low, int limbs, int base)
{
    const int negative = (int)(low[limbs - 1] >> 63);
    const uint64_t mask = 0 - (uint64_t)negative;
    uint64_t carry = (uint64_t)negative;
    for (int i = 0; i < limbs; i++)
        into->limb[i] = refbn_exact_add_limb(low[i] ^ mask, 0, &carry);
    into->sign = negative ? -1 : 1;
    into->exponent = base;
    into->length = limbs;
    refbn_exact_trim(into);
}

/* ---- rational roots ------------------------------------------------------------------------------------ */

/* a b mod 2^(64 n). */
static void refbn_exact_low_multiply(uint64_t *restrict into, const uint64_t *a, const uint64_t *b, int n)
{
    for (int i = 0; i < n; i++)
        into[i] = 0;
    for (int i = 0; i < n; i++) {
        uint64_t carry = 0;
        for (int j = 0; i + j < n; j++)
            into[i + j] = refbn_exact_muladd(a[i], b[j], into[i + j], carry, &carry);
    }
}

/* Whether a > 0 is the square of `root`, a dyadic number; 0 too if a is long.
 *
 * With N = a 2^-(even) odd, it must be 1 mod 8, and y = N^(-1/2) mod 2^k is found by Newton's method on
 * 2-adic integers, y' = y (3 - N y^2) / 2: N y'^2 is 1 to almost twice as many bits. The root, if there
 * is one, is N y mod 2^k or its negative, and is squared to see. */
static int refbn_exact_square_root(refbn_exact_number *root, const refbn_exact_number *a)
{
    enum { LONGEST = 24, MOST = LONGEST / 2 + 2 };
    if (a->length > LONGEST)
        return 0;
    int trailing = 0;
    while (!(a->limb[0] >> trailing & 1))
        trailing++;
    const int n = a->length, half = (n + 1) / 2, limbs = half + 2;
    if (trailing & 1 || (a->limb[0] >> trailing | (n > 1 ? a->limb[1] << 1 << (63 - trailing) : 0)) % 8 != 1)
        return 0;
    uint64_t N[MOST + 1] = {0}, y[MOST + 1] = {0}, t[MOST + 1], r[MOST + 1];
    for (int i = 0; i < limbs; i++) {
        const uint64_t limb = i < n ? a->limb[i] : 0, next = i + 1 < n ? a->limb[i + 1] : 0;
        N[i] = limb >> trailing | next << 1 << (63 - trailing);
        y[i] = i == 0;
    }
    for (int known = 3; known < 64 * limbs; known = 2 * known - 2) {
        uint64_t carry = 0;
        refbn_exact_low_multiply(t, y, y, limbs);
        refbn_exact_low_multiply(r, t, N, limbs);
        for (int i = 0; i < limbs; i++)
            t[i] = refbn_exact_subtract_limb(i ? 0 : 3, r[i], &carry);
        refbn_exact_low_multiply(r, y, t, limbs);
        for (int i = 0; i < limbs; i++)
            y[i] = r[i] >> 1 | (i + 1 < limbs ? r[i + 1] << 63 : 0);
    }
    refbn_exact_low_multiply(r, N, y, limbs);
    if (r[half] & 1) { /* the negative is the small one */
        uint64_t carry = 0;
        for (int i = 0; i < limbs; i++)
            r[i] = refbn_exact_subtract_limb(0, r[i], &carry);
    }
    refbn_exact_number candidate, square;
    const int shift = trailing / 2 + (a->exponent & 1 ? 32 : 0); /* below 64 */
    candidate.sign = 1;
    candidate.exponent = (a->exponent - (a->exponent & 1)) / 2;
    candidate.length = half + 1;
    for (int i = 0; i <= half; i++) {
        const uint64_t limb = i < half ? r[i] : 0, before = i ? r[i - 1] : 0;
        candidate.limb[i] = shift ? limb << shift | before >> (64 - shift) : limb;
    }
    refbn_exact_trim(&candidate);
    refbn_exact_multiply(&square, &candidate, &candidate);
    if (!square.sign || refbn_exact_compare_magnitudes(&square, a))
        return 0;
    refbn_exact_copy(root, &candidate);
    return 1;
}

/* ---- formats ------------------------------------------------------------------------------------------- */

/* Precision and exponent range as in refbn/_formats.py. Magnitudes are encoded as in IEEE 754: codes have the
 * order of what they stand for, and infinity's code follows that of the largest number. */
typedef struct {
    int precision, emin, emax;
} refbn_exact_format;

static inline refbn_exact_format refbn_exact_format_of(int format)
{
    switch (format) {
    case REFBN_F16: return (refbn_exact_format){11, -14, 15};
    case REFBN_BF16: return (refbn_exact_format){8, -126, 127};
    case REFBN_F32: return (refbn_exact_format){24, -126, 127};
    default: return (refbn_exact_format){53, -1022, 1023};
    }
}

static inline uint64_t refbn_exact_infinite_code(refbn_exact_format f)
{
    return (uint64_t)(f.emax - f.emin + 2) << (f.precision - 1);
}

/* The code that (hi 2^64 + lo) 2^exponent rounds to, ties upwards: what is rounded is an end that the number
 * enclosed does not reach. */
static inline uint64_t refbn_exact_encode(uint64_t hi, uint64_t lo, int exponent, refbn_exact_format f)
{
    const refbn_exact_leading a = refbn_exact_normalised(hi, lo, 1, exponent + 128);
    const uint64_t infinity = refbn_exact_infinite_code(f);
    const int e = a.top - 1; /* of the first bit */
    if (!a.sign)
        return 0;
    if (e > f.emax)
        return infinity;
    const int binade = e > f.emin ? e : f.emin;
    const int drop = 128 - f.precision + (binade - e); /* bits behind the last one kept; at least 75 */
    if (drop > 128)
        return 0; /* below half of the smallest number */
    const uint64_t kept = drop == 128 ? 0 : a.hi >> (drop - 64);
    const uint64_t rest = drop == 128 ? a.hi : a.hi << (128 - drop);
    const uint64_t code = ((uint64_t)(binade - f.emin) << (f.precision - 1)) + kept + (rest >> 63);
    return code < infinity ? code : infinity;
}

/* mantissa 2^exponent is the number with this code, which is finite. */
static inline uint64_t refbn_exact_decode(uint64_t code, refbn_exact_format f, int *exponent)
{
    const uint64_t hidden = (uint64_t)1 << (f.precision - 1);
    const int binades = (int)(code >> (f.precision - 1));
    *exponent = f.emin - f.precision + 1 + (binades ? binades - 1 : 0);
    return (code & (hidden - 1)) | (binades ? hidden : 0);
}

/* The binary64 number equal to the one with this code and sign. */
static inline uint64_t refbn_exact_result(uint64_t code, int sign, refbn_exact_format f)
{
    const uint64_t negative = (uint64_t)(sign < 0) << 63;
    int exponent;
    if (!code || f.precision == 53)
        return negative | code;
    if (code >= refbn_exact_infinite_code(f))
        return negative | REFBN_EXACT_INFINITY;
    const uint64_t mantissa = refbn_exact_decode(code, f, &exponent);
    const int width = refbn_exact_width(mantissa); /* what is subnormal here is normal in binary64 */
    return negative | (((uint64_t)(exponent + width - 1 + 1022) << 52) + (mantissa << (53 - width)));
}

/* ---- rounding ----------------------------------------------------------------------------------------- */

/* The result's sign, 0 if it is not known, and codes of magnitudes that it lies between. */
typedef struct {
    int sign;
    uint64_t low, high;
} refbn_exact_range;

/* Where (hi 2^64 + lo) 2^exponent, in two's complement, rounds to if it is off by up to `error` units. */
static refbn_exact_range refbn_exact_range_of(uint64_t hi, uint64_t lo, int exponent, uint64_t error,
                                              refbn_exact_format f)
{
    uint64_t carry;
    refbn_exact_range range = {1, 0, 0};
    if (hi >> 63) {
        carry = 0;
        lo = refbn_exact_subtract_limb(0, lo, &carry);
        hi = refbn_exact_subtract_limb(0, hi, &carry);
        range.sign = -1;
    }
    if (hi || lo > error)
        range.low = refbn_exact_encode(hi - (lo < error), lo - error, exponent, f);
    else
        range.sign = 0;
    carry = 0;
    lo = refbn_exact_add_limb(lo, error, &carry);
    range.high = refbn_exact_encode(hi + carry, lo, exponent, f);
    return range;
}

/* Where the sum of up to five terms rounds to, each known to 2^11 units.
 *
 * In steps of 2^-124 of a power of two above the largest term, a term is below 2^124 and its own error at
 * most 2^11 2^-127 2^124 = 2^8; cutting it off adds 1. Five terms: below 2^127, less than 1285 off. */
static refbn_exact_range refbn_exact_enclose(const refbn_exact_leading *term, int terms, refbn_exact_format f)
{
    uint64_t hi = 0, lo = 0, carry;
    int any = 0, top = 0;
    for (int i = 0; i < terms; i++)
        if (term[i].sign && (!any || term[i].top > top)) {
            any = 1;
            top = term[i].top;
        }
    for (int i = 0; i < terms; i++) {
        const int shift = top - term[i].top + 4;
        if (!term[i].sign || shift >= 128)
            continue;
        const uint64_t high = shift >= 64 ? 0 : term[i].hi >> shift;
        const uint64_t low = shift >= 64 ? term[i].hi >> (shift - 64)
                                         : term[i].hi << 1 << (63 - shift) | term[i].lo >> shift;
        carry = 0;
        if (term[i].sign > 0) {
            lo = refbn_exact_add_limb(lo, low, &carry);
            hi = refbn_exact_add_limb(hi, high, &carry);
        } else {
            lo = refbn_exact_subtract_limb(lo, low, &carry);
            hi = refbn_exact_subtract_limb(hi, high, &carry);
        }
    }
    if (REFBN_EXACT_IS_BLIND)
        return (refbn_exact_range){0, 0, refbn_exact_infinite_code(f)};
    return refbn_exact_range_of(hi, lo, top - 124, 1285, f);
}

/* a / divisor + b rounded, as bits, given a range that contains it. */
static uint64_t refbn_exact_decide(const refbn_exact_number *a, refbn_exact_divisor *divisor,
                                   const refbn_exact_number *b, refbn_exact_range range, refbn_exact_format f)
{
    refbn_exact_number middle, difference;
    if (!range.sign) {
        refbn_exact_zero(&middle);
        refbn_exact_subtract(&difference, &middle, b);
        range.sign = refbn_exact_compare_quotient(a, divisor, &difference);
        if (!range.sign)
            return 0;
    }
    while (range.low < range.high) {
        const uint64_t code = range.low + (range.high - range.low) / 2;
        int exponent;
        const uint64_t mantissa = refbn_exact_decode(code, f, &exponent);
        refbn_exact_from_parts(&middle, range.sign, 2 * mantissa + 1, exponent - 1 + 1088);
        refbn_exact_subtract(&difference, &middle, b);
        const int side = range.sign * refbn_exact_compare_quotient(a, divisor, &difference);
        if (side > 0)
            range.low = code + 1;
        else if (side < 0)
            range.high = code;
        else
            range.low = range.high = code + (code & 1);
    }
    return refbn_exact_result(range.low, range.sign, f);
}

/* a / divisor + b rounded, as bits; leading_b are b's. */
static uint64_t refbn_exact_quotient(const refbn_exact_number *a, refbn_exact_divisor *divisor,
                                     const refbn_exact_number *b, refbn_exact_leading leading_b, int format)
{
    const refbn_exact_format f = refbn_exact_format_of(format);
    const refbn_exact_leading term[2] = {
        refbn_exact_leading_multiply(refbn_exact_leading_of(a), divisor->inverse), leading_b};
    if (!a->sign && !b->sign)
        return 0;
    const refbn_exact_range range = refbn_exact_enclose(term, 2, f);
    if (range.sign && range.low == range.high)
        return refbn_exact_result(range.low, range.sign, f);
    return refbn_exact_decide(a, divisor, b, range, f);
}

#endif
