/* Balls: a number known as hi + lo with |number - (hi + lo)| <= err, one for each lane of a vector.
 *
 * u = 2^-53. A ball is normalised, |lo| <= u |hi|, and err is never too small: every line that computes one
 * ends with SAFE, which outweighs the roundings of that line (at most 16 operations on numbers >= 0).
 * Bounds of the arithmetic itself, for hi and lo as given and A, B the magnitudes of hi:
 *
 *   add   two_sum is exact; a.lo + b.lo and adding it to the tail round numbers below u (A + B) and 2u (A +
 * B). Where the sum's head is smaller than the tail, fast_two_sum loses up to u times the tail. In all below
 *         4 u^2 (A + B) [a bound relative to A + B, not to the sum].
 *   mul   two_product is exact; dropped a.lo b.lo <= u^2 AB; four roundings of numbers <= 3u AB: 8 u^2 AB.
 * The ninth pays for rounding lo -+ err when the result is tested, as the reserves of the others do. over  q
 * = a.hi/b, b exact; the rest a - q b is exact but for its last addition: below 4 u^2 |q|. 24 u^2 |q|.
 *   inverse_root   r0 = 1/sqrt(q) in binary64 has relative error <= 2u (+ u for q.lo). rest = 1 - q r0^2 is
 *         below 7u and known to 13 u^2; one step r0 (1 + rest/2) leaves 3/8 rest^2 <= 18.4 u^2, 6.5 u^2 from
 *         rest and 3.5 u^2 of rounding: 32 u^2. For the ball: |1/sqrt(q + d) - 1/sqrt(q)| <= 0.51 d/q r as
 *         long as d <= 2^-20 q; otherwise nothing is claimed (err is infinite).
 *
 * After a cancellation |lo| may reach 3u |hi|; then err is above u |hi|, and what that changes is below 2^-40
 * of it.
 *
 * These hold where nothing overflows and no product underflows; kernels.c says where that is ("fit").
 * Overflow makes hi or err infinite or NaN, which no rounding test accepts.
 *
 * Test: pytest tests/backends/test_native.py; attacked by python -m validation.rung_bounds
 */
#ifndef REFBN_BALL_H
#define REFBN_BALL_H

#include "lanes.h"

#define REFBN_SAFE (1.0 + 0x1p-40)

typedef struct {
    refbn_v hi, lo, err;
} refbn_ball;

static REFBN_INLINE refbn_ball refbn_exactly(refbn_v a)
{
    return (refbn_ball){a, refbn_splat(0.0), refbn_splat(0.0)};
}

static REFBN_INLINE refbn_ball refbn_neg(refbn_ball a) { return (refbn_ball){-a.hi, -a.lo, a.err}; }

/* Times a power of two. */
static REFBN_INLINE refbn_ball refbn_times(refbn_ball a, double power)
{
    return (refbn_ball){a.hi * power, a.lo * power, a.err * (power < 0.0 ? -power : power)};
}

static REFBN_INLINE refbn_ball refbn_add(refbn_ball a, refbn_ball b)
{
    const refbn_pair result = refbn_add_pairs((refbn_pair){a.hi, a.lo}, (refbn_pair){b.hi, b.lo});
    const refbn_v rounding = 0x4p-106 * (refbn_abs(a.hi) + refbn_abs(b.hi));
    return (refbn_ball){result.hi, result.lo, (a.err + b.err + rounding) * REFBN_SAFE};
}

static REFBN_INLINE refbn_ball refbn_sub(refbn_ball a, refbn_ball b) { return refbn_add(a, refbn_neg(b)); }

static REFBN_INLINE refbn_ball refbn_mul(refbn_ball a, refbn_ball b)
{
    const refbn_pair product = refbn_two_product(a.hi, b.hi);
    const refbn_pair result = refbn_fast_two_sum(product.hi, product.lo + (a.hi * b.lo + a.lo * b.hi));
    const refbn_v inherited = (refbn_abs(a.hi) + a.err) * b.err + refbn_abs(b.hi) * a.err;
    return (refbn_ball){result.hi, result.lo, (inherited + 0x9p-106 * refbn_abs(product.hi)) * REFBN_SAFE};
}

/* b > 0 is exact. */
static REFBN_INLINE refbn_ball refbn_over(refbn_ball a, refbn_v b)
{
    const refbn_v first = a.hi / b;
    const refbn_pair product = refbn_two_product(first, b);
    const refbn_v second = (((a.hi - product.hi) - product.lo) + a.lo) / b;
    const refbn_pair result = refbn_fast_two_sum(first, second);
    return (refbn_ball){result.hi, result.lo, (a.err / b + 0x18p-106 * refbn_abs(first)) * REFBN_SAFE};
}

static REFBN_INLINE refbn_ball refbn_inverse_root(refbn_ball q)
{
    const refbn_v start = 1.0 / refbn_root(q.hi);
    const refbn_pair square = refbn_two_product(start, start);
    const refbn_pair one = refbn_two_product(q.hi, square.hi);
    const refbn_v rest = ((1.0 - one.hi) - one.lo) - (q.hi * square.lo + q.lo * square.hi);
    const refbn_pair result = refbn_fast_two_sum(start, start * (0.5 * rest));
    const refbn_v relative = q.err / q.hi;
    const refbn_v err = start * (0.51 * relative + 0x20p-106) * REFBN_SAFE;
    const refbn_v none = refbn_splat(refbn_infinity());
    return (refbn_ball){result.hi, result.lo, refbn_select((refbn_vi)(relative <= 0x1p-20), err, none)};
}

#endif
