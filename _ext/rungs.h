/* The two loops over the elements, on one tile: sums, and affine combinations with a rounding test.
 *
 * Every tensor is used less a pivot: t = x - p, and likewise for dy (g) and x_dot (u). Everything that a pass
 * wants to know of a group are sums of t, g, u and their products; every tensor that it writes is a
 * combination  V = a0 t0 + a1 t1 + a2 t2 + c  of them, with coefficients from solve.h.
 *
 * Error bounds, with u = 2^-53, n = REFBN_ROWS = 32 the additions in a row's chain, S the sum of the
 * magnitudes of what is summed, W = |a0 t0| + |a1 t1| + |a2 t2| + |c|:
 *
 *  plain binary64 (narrow data, so that nothing overflows or underflows)
 *   sums    t is rounded (u), a product of two such once more (3u). Squares go through at most n - 1
 * additions: (n + 3) u S (1 + 2^-40) < 40 u S. All others are added with their errors (two_sum), which leaves
 *           2 n^2 u^2 S: 5 u S covers them.
 *   combine at most 6 roundings of partial results <= W (1 + 2^-40), u for each t, u |v| for v -+ e, hence 8
 * u W and the products with the coefficients' errors; 10 u covers it. double-double sums    t = (hi, lo)
 * exactly. A product (hi, lo) drops the product of the tails and rounds four tails: 10 u^2. In the chain
 * two_sum is exact; the tails, each <= u (S + 4 |t|), are added with at most n roundings of numbers <= 2 n u
 * S: (2 n^2 + 10) u^2 S < 2100 u^2 S. combine tails of a product: 10 u^2 |a t|; two_sum exact; adding the
 * tail (<= 4 u W) and to the sum of the tails (<= 16 u W): 20 u^2 W for each of three terms; the last l -+ e:
 * 16 u^2 W. 128 u^2 W covers all. totals   each addition to a total in two parts costs at most 4 u^2 times
 * its magnitude (ball.h, add), and 100 u^2 of a tile's own sum, whose tail is not normalised; the chains,
 * which need 700 u^2, leave that much.
 *
 * Where a coefficient's bound is infinite, nothing is decided: refbn_hopeless, asked before.
 *
 * The rounding test: with |V - v| <= e, rounding being monotone, V is decided if the roundings of both v - e
 * and v + e are the same bits. Where the output is narrower than binary64, the ends are rounded to odd first
 * or, in plain binary64, e includes their first rounding: no double rounding. An end that is infinite or NaN
 * decides nothing in binary64.
 *
 * Test: pytest tests/backends/test_native.py; attacked by python -m validation.rung_bounds
 */
#ifndef REFBN_RUNGS_H
#define REFBN_RUNGS_H

#include "sweep.h"

#define REFBN_PLAIN_SUM 0x5p-53        /* 5 u */
#define REFBN_PLAIN_SQUARES 0x28p-53   /* 40 u */
#define REFBN_PLAIN_COMBINE 0xap-53    /* 10 u */
#define REFBN_DOUBLE_SUM 0x834p-106    /* 2100 u^2 */
#define REFBN_DOUBLE_COMBINE 0x80p-106 /* 128 u^2 */

/* sums of t, t^2, g, g t, g^2, u, u t, u^2, u g */
enum { REFBN_T, REFBN_TT, REFBN_G, REFBN_GT, REFBN_GG, REFBN_U, REFBN_UT, REFBN_UU, REFBN_UG, REFBN_SUMS };

/* By elements the total of a sum is spread over REFBN_ROW lanes. */
typedef struct {
    double hi[REFBN_SUMS][REFBN_LANES], lo[REFBN_SUMS][REFBN_LANES];
    uint64_t
        inexact; /* whether some t, g or u of the sums in plain binary64 was rounded; see refbn_sum_plain */
} refbn_totals;

static REFBN_INLINE void refbn_total(refbn_totals *totals, int sum, int lane, refbn_v hi, refbn_v lo)
{
    const refbn_pair before = {refbn_load(totals->hi[sum] + lane), refbn_load(totals->lo[sum] + lane)};
    const refbn_pair total = refbn_add_pairs(before, (refbn_pair){hi, lo});
    refbn_store(totals->hi[sum] + lane, total.hi);
    refbn_store(totals->lo[sum] + lane, total.lo);
}

static REFBN_INLINE int refbn_has_sum(int sum, int moments, int g, int u)
{
    return sum <= REFBN_TT ? moments : sum <= REFBN_GG ? g : sum == REFBN_UG ? g && u : u;
}

typedef const double refbn_pivots[REFBN_LANES];

static REFBN_INLINE refbn_v refbn_number(const char *row, int lane)
{
    return refbn_load((const double *)(const void *)row + lane);
}

/* Ask for what the loops come to 64 rows later: the hardware alone does not keep up. */
static REFBN_INLINE void refbn_ahead(const char *row, ptrdiff_t stride, int bytes)
{
#pragma GCC unroll 4
    for (int byte = 0; byte < bytes; byte += 64)
        __builtin_prefetch(row + 64 * stride + byte, 0, 2);
}

static REFBN_INLINE void refbn_ahead_to_write(char *row, ptrdiff_t stride, int bytes)
{
#pragma GCC unroll 4
    for (int byte = 0; byte < bytes; byte += 64)
        __builtin_prefetch(row + 64 * stride + byte, 1, 2);
}

/* How a sweep of sums takes its numbers. */
enum {
    REFBN_QUICK,   /* binary32; sums in plain binary64 */
    REFBN_CAREFUL, /* binary32; differences and products in plain binary64, their sums with the errors of
                      additions */
    REFBN_DIRECT,  /* binary64, double-double, all pivots 0 */
    REFBN_CENTERED /* binary64, double-double */
};

typedef struct {
    refbn_v hi, lo;
} refbn_chain;

static REFBN_INLINE void refbn_chain_add(refbn_chain *chain, refbn_v hi, refbn_v lo)
{
    const refbn_pair sum = refbn_two_sum(chain->hi, hi);
    chain->hi = sum.hi;
    chain->lo += sum.lo + lo;
}

/* One number less its pivot. `inexact`, if given, becomes nonzero when that is rounded. */
static REFBN_INLINE refbn_pair refbn_take(const int mode, const char *row, int lane, const double *pivot,
                                          refbn_vi *inexact)
{
    if (mode == REFBN_DIRECT)
        return (refbn_pair){refbn_number(row, lane), {0}};
    if (mode == REFBN_CENTERED)
        return refbn_two_difference(refbn_number(row, lane), refbn_load(pivot + lane));
    const refbn_v a = refbn_widen(row, lane), b = refbn_load(pivot + lane), difference = a - b;
    if (inexact) /* whichever of a and b is larger, one of these is exact (FastTwoSum) and tells */
        *inexact |= ((refbn_vi)(difference + b) ^ (refbn_vi)a) | (refbn_vi)((a - difference) != b);
    return (refbn_pair){difference, {0}};
}

static REFBN_INLINE void refbn_add_number(const int mode, refbn_chain *chain, refbn_pair a)
{
    if (mode == REFBN_QUICK)
        chain->hi += a.hi;
    else if (mode == REFBN_CENTERED)
        refbn_chain_add(chain, a.hi, a.lo);
    else {
        const refbn_pair sum = refbn_two_sum(chain->hi, a.hi);
        chain->hi = sum.hi;
        chain->lo += sum.lo;
    }
}

/* For bounds only. */
static REFBN_INLINE void refbn_add_square(refbn_chain *chain, refbn_pair a)
{
    chain->hi = refbn_multiply_add(a.hi, a.hi, chain->hi);
}

/* `second`: the error of a product in plain binary64 is added, too. */
static REFBN_INLINE void refbn_add_product(const int mode, const int second, refbn_chain *chain, refbn_pair a,
                                           refbn_pair b)
{
    if (mode == REFBN_QUICK)
        chain->hi = refbn_multiply_add(a.hi, b.hi, chain->hi);
    else if (mode == REFBN_CAREFUL && !second)
        refbn_add_number(mode, chain, (refbn_pair){a.hi * b.hi, {0}});
    else {
        const refbn_pair product = refbn_two_product(a.hi, b.hi);
        const refbn_v tail =
            mode == REFBN_CENTERED ? refbn_multiply_add(a.hi, b.lo, a.lo * b.hi) : product.lo;
        refbn_chain_add(chain, product.hi, mode == REFBN_CENTERED ? product.lo + tail : tail);
    }
}

/* The wanted sums of a tile: `moments`, `g`, `u` (refbn_has_sum). All but the data are constants where this
 * is inlined.
 *
 * Sums of the second order are small beside their terms as a rule. So in CAREFUL mode the products' errors
 * are added there, and it is found out whether any difference was rounded: if none was, the sums are as good
 * as those in double-double, but for those of g^2 and u^2. */
static REFBN_INLINE void refbn_sum_rows(const int mode, const refbn_rows *in, refbn_tile tile,
                                        refbn_pivots *pivot, refbn_totals *totals, const int moments,
                                        const int g, const int u, const int unroll)
{
    const int size = mode <= REFBN_CAREFUL ? 4 : 8, second = g && u;
    for (int column = 0; column < tile.columns; column += unroll * REFBN_WIDTH) {
        refbn_chain sum[REFBN_SUMS][4] = {{{{0}, {0}}}};
        refbn_vi inexact = {0}, *const tell = mode == REFBN_CAREFUL && second ? &inexact : NULL;
        const char *x = in[0].data + column * size, *dy = in[1].data + column * size;
        const char *x_dot = in[2].data + column * size;
        for (int row = 0; row < tile.rows; row++) {
            refbn_ahead(x, in[0].stride, unroll * REFBN_WIDTH * size);
            if (g)
                refbn_ahead(dy, in[1].stride, unroll * REFBN_WIDTH * size);
            if (u)
                refbn_ahead(x_dot, in[2].stride, unroll * REFBN_WIDTH * size);
#pragma GCC unroll 4
            for (int j = 0; j < unroll; j++) {
                const int lane = j * REFBN_WIDTH;
                const refbn_pair t = refbn_take(mode, x, lane, pivot[0] + column, tell);
                refbn_pair of_g = t, of_u = t;
                if (moments) {
                    refbn_add_number(mode, &sum[REFBN_T][j], t);
                    if (mode == REFBN_CAREFUL && !second)
                        refbn_add_square(&sum[REFBN_TT][j], t);
                    else
                        refbn_add_product(mode, second, &sum[REFBN_TT][j], t, t);
                }
                if (g) {
                    of_g = refbn_take(mode, dy, lane, pivot[1] + column, tell);
                    refbn_add_number(mode, &sum[REFBN_G][j], of_g);
                    refbn_add_product(mode, second, &sum[REFBN_GT][j], of_g, t);
                    refbn_add_square(&sum[REFBN_GG][j], of_g);
                }
                if (u) {
                    of_u = refbn_take(mode, x_dot, lane, pivot[2] + column, tell);
                    refbn_add_number(mode, &sum[REFBN_U][j], of_u);
                    refbn_add_product(mode, second, &sum[REFBN_UT][j], of_u, t);
                    refbn_add_square(&sum[REFBN_UU][j], of_u);
                    if (g)
                        refbn_add_product(mode, second, &sum[REFBN_UG][j], of_u, of_g);
                }
            }
            x += in[0].stride, dy += in[1].stride, x_dot += in[2].stride;
        }
        if (tell)
            totals->inexact |= (uint64_t)refbn_any(inexact);
#pragma GCC unroll 4
        for (int j = 0; j < unroll; j++)
#pragma GCC unroll 9
            for (int k = 0; k < REFBN_SUMS; k++)
                if (refbn_has_sum(k, moments, g, u))
                    refbn_total(totals, k, column + j * REFBN_WIDTH, sum[k][j].hi, sum[k][j].lo);
    }
}

/* A combination of `terms` tensors, lane by lane; index 3 is the constant. bound[k] >= 0 is what |t_k|, or 1,
 * is multiplied with in e; error[3] may be infinite: then nothing is decided. */
typedef struct {
    int terms, tensor[3]; /* 0: x, 1: dy, 2: x_dot */
    double hi[4][REFBN_LANES], lo[4][REFBN_LANES], bound[4][REFBN_LANES];
} refbn_combination;

/* Where the ends of the enclosures go when no kernel writes the format itself. */
typedef struct {
    double low[REFBN_BLOCK], high[REFBN_BLOCK];
} refbn_ends;

/* Bits of the lanes in which nothing can be decided. */
static uint64_t refbn_hopeless(const refbn_combination *of, int lanes)
{
    uint64_t bits = 0;
    for (int lane = 0; lane < lanes; lane++) {
        double bound = of->bound[3][lane];
        for (int k = 0; k < of->terms; k++)
            bound += of->bound[k][lane];
        bits |= (uint64_t)!(bound < refbn_infinity()) << lane;
    }
    return bits;
}

/* Bits of the lanes that are set in a vector of masks. */
static REFBN_INLINE uint64_t refbn_lane_bits(refbn_vi bad, int lane)
{
    uint64_t bits = 0;
    for (int k = 0; k < REFBN_WIDTH; k++)
        bits |= (uint64_t)(bad[k] != 0) << (lane + k);
    return bits;
}

/* The coefficients of some lanes, in registers. */
typedef struct {
    refbn_v hi[4], lo[4], bound[4], pivot[3];
} refbn_coefficients;

static REFBN_INLINE refbn_coefficients refbn_hoist(const refbn_combination *of, refbn_pivots *pivot, int lane,
                                                   const int terms, const int twofold, const int direct)
{
    refbn_coefficients c;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
        if (k < terms || k == 3) {
            c.hi[k] = refbn_load(of->hi[k] + lane);
            c.bound[k] = refbn_load(of->bound[k] + lane);
            if (twofold)
                c.lo[k] = refbn_load(of->lo[k] + lane);
            if (k < 3 && !direct)
                c.pivot[k] = refbn_load(pivot[k] + lane);
        }
    return c;
}

/* Combine, test and write a tile; the result has a bit for each lane with an undecided element. The output is
 * binary32 at `out`, or with `ends` both ends in binary64. `check`: elements may be infinite or NaN, or
 * overflow. */
static REFBN_INLINE uint64_t refbn_combine_plain(const refbn_rows *in, refbn_tile tile,
                                                 const refbn_combination *of, refbn_pivots *pivot,
                                                 refbn_rows out, refbn_ends *ends, int check, const int terms)
{
    enum { MOST = 4 };
    const int unroll = terms == 1 ? 4 : 2;
    uint64_t undecided = 0;
    for (int column = 0; column < tile.columns; column += unroll * REFBN_WIDTH) {
        refbn_vfi bad[MOST] = {{0}};
        refbn_v poison[MOST] = {{0}};
        refbn_coefficients c[MOST];
        const char *data[3] = {NULL, NULL, NULL};
#pragma GCC unroll 4
        for (int j = 0; j < unroll; j++)
            c[j] = refbn_hoist(of, pivot, column + j * REFBN_WIDTH, terms, 0, 0);
#pragma GCC unroll 3
        for (int k = 0; k < terms; k++)
            data[k] = in[k].data + column * 4;
        char *to = out.data + column * 4;
        for (int row = 0; row < tile.rows; row++) {
#pragma GCC unroll 3
            for (int k = 0; k < terms; k++)
                refbn_ahead(data[k], in[k].stride, unroll * REFBN_WIDTH * 4);
            if (!ends)
                refbn_ahead_to_write(to, out.stride, unroll * REFBN_WIDTH * 4);
#pragma GCC unroll 4
            for (int j = 0; j < unroll; j++) {
                refbn_v v = c[j].hi[3], e = c[j].bound[3];
#pragma GCC unroll 3
                for (int k = 0; k < terms; k++) {
                    const refbn_v t = refbn_widen(data[k], j * REFBN_WIDTH) - c[j].pivot[k];
                    v = refbn_multiply_add(c[j].hi[k], t, v);
                    e = refbn_multiply_add(c[j].bound[k], refbn_abs(t), e);
                }
                const refbn_v low = v - e, high = v + e;
                if (check)
                    poison[j] = refbn_multiply_add(v, (refbn_v){0}, poison[j]);
                if (ends) {
                    refbn_store(ends->low + row * tile.columns + column + j * REFBN_WIDTH, low);
                    refbn_store(ends->high + row * tile.columns + column + j * REFBN_WIDTH, high);
                } else {
                    const refbn_vf from = refbn_narrow(low);
                    bad[j] = refbn_note_difference(bad[j], from, refbn_narrow(high));
                    *(refbn_vf_in_memory *)(void *)(to + j * REFBN_WIDTH * 4) = from;
                }
            }
#pragma GCC unroll 3
            for (int k = 0; k < terms; k++)
                data[k] += in[k].stride;
            to += out.stride;
        }
#pragma GCC unroll 4
        for (int j = 0; j < unroll; j++) {
            const refbn_vi all =
                __builtin_convertvector(bad[j], refbn_vi) | (refbn_vi)(poison[j] != poison[j]);
            if (refbn_any(all))
                undecided |= refbn_lane_bits(all, column + j * REFBN_WIDTH);
        }
    }
    return undecided;
}

/* `direct`: all pivots are 0. */
static REFBN_INLINE uint64_t refbn_combine_double(const refbn_rows *in, refbn_tile tile,
                                                  const refbn_combination *of, refbn_pivots *pivot,
                                                  refbn_rows out, refbn_ends *ends, int check, int odd,
                                                  const int terms, const int direct)
{
    enum { MOST = 2 };
    const int unroll = terms == 1 ? 2 : 1;
    uint64_t undecided = 0;
    for (int column = 0; column < tile.columns; column += unroll * REFBN_WIDTH) {
        refbn_vi bad[MOST] = {{0}};
        refbn_v poison[MOST] = {{0}};
        refbn_coefficients c[MOST];
        const char *data[3] = {NULL, NULL, NULL};
#pragma GCC unroll 2
        for (int j = 0; j < unroll; j++)
            c[j] = refbn_hoist(of, pivot, column + j * REFBN_WIDTH, terms, 1, direct);
#pragma GCC unroll 3
        for (int k = 0; k < terms; k++)
            data[k] = in[k].data + column * 8;
        char *to = out.data + column * 8;
        for (int row = 0; row < tile.rows; row++) {
#pragma GCC unroll 3
            for (int k = 0; k < terms; k++)
                refbn_ahead(data[k], in[k].stride, unroll * REFBN_WIDTH * 8);
            if (!ends)
                refbn_ahead_to_write(to, out.stride, unroll * REFBN_WIDTH * 8);
#pragma GCC unroll 2
            for (int j = 0; j < unroll; j++) {
                refbn_v hi = c[j].hi[3], lo = c[j].lo[3], e = c[j].bound[3];
#pragma GCC unroll 3
                for (int k = 0; k < terms; k++) {
                    const refbn_v a = refbn_number(data[k], j * REFBN_WIDTH);
                    const refbn_pair t =
                        direct ? (refbn_pair){a, {0}} : refbn_two_difference(a, c[j].pivot[k]);
                    const refbn_pair product = refbn_two_product(c[j].hi[k], t.hi);
                    refbn_v tail = refbn_multiply_add(c[j].lo[k], t.hi, product.lo);
                    if (!direct)
                        tail = refbn_multiply_add(c[j].hi[k], t.lo, tail);
                    const refbn_pair sum = refbn_two_sum(hi, product.hi);
                    hi = sum.hi;
                    lo += sum.lo + tail;
                    e = refbn_multiply_add(c[j].bound[k], refbn_abs(t.hi), e);
                }
                if (check)
                    poison[j] = refbn_multiply_add(hi + lo, (refbn_v){0}, poison[j]);
                if (ends) {
                    const refbn_v low = odd ? refbn_to_odd(hi, lo - e) : hi + (lo - e);
                    const refbn_v high = odd ? refbn_to_odd(hi, lo + e) : hi + (lo + e);
                    refbn_store(ends->low + row * tile.columns + column + j * REFBN_WIDTH, low);
                    refbn_store(ends->high + row * tile.columns + column + j * REFBN_WIDTH, high);
                } else {
                    const refbn_v low = hi + (lo - e);
                    bad[j] |= (refbn_vi)low ^ (refbn_vi)(hi + (lo + e));
                    refbn_store((double *)(void *)to + j * REFBN_WIDTH, low);
                }
            }
#pragma GCC unroll 3
            for (int k = 0; k < terms; k++)
                data[k] += in[k].stride;
            to += out.stride;
        }
#pragma GCC unroll 2
        for (int j = 0; j < unroll; j++) {
            const refbn_vi all = bad[j] | (refbn_vi)(poison[j] != poison[j]);
            if (refbn_any(all))
                undecided |= refbn_lane_bits(all, column + j * REFBN_WIDTH);
        }
    }
    return undecided;
}

/* Which of a sweep's variants is wanted; each is a loop of its own. */
static void refbn_sum_tile(int mode, const refbn_rows *in, refbn_tile tile, refbn_pivots *pivot,
                           refbn_totals *totals, int moments, int g, int u)
{
#define REFBN_VARIANT(m, g, u)                                                               \
    case 4 * m + 2 * g + u:                                                                  \
        if (mode == REFBN_QUICK)                                                             \
            refbn_sum_rows(REFBN_QUICK, in, tile, pivot, totals, m, g, u, u &&g ? 2 : 4);    \
        else if (mode == REFBN_CAREFUL)                                                      \
            refbn_sum_rows(REFBN_CAREFUL, in, tile, pivot, totals, m, g, u, u &&g ? 1 : 4);  \
        else if (mode == REFBN_DIRECT)                                                       \
            refbn_sum_rows(REFBN_DIRECT, in, tile, pivot, totals, m, g, u, u &&g ? 1 : 2);   \
        else                                                                                 \
            refbn_sum_rows(REFBN_CENTERED, in, tile, pivot, totals, m, g, u, u &&g ? 1 : 2); \
        break;
    switch (4 * moments + 2 * g + u) {
        REFBN_VARIANT(1, 0, 0)
        REFBN_VARIANT(0, 1, 0)
        REFBN_VARIANT(1, 1, 0)
        REFBN_VARIANT(0, 0, 1)
        REFBN_VARIANT(1, 0, 1)
        REFBN_VARIANT(0, 1, 1)
        REFBN_VARIANT(1, 1, 1)
    }
#undef REFBN_VARIANT
}

static uint64_t refbn_combine_tile(int mode, const refbn_rows *in, refbn_tile tile,
                                   const refbn_combination *of, refbn_pivots *pivot, refbn_rows out,
                                   refbn_ends *ends, int check, int odd)
{
#define REFBN_VARIANT(terms)                                                                     \
    case terms:                                                                                  \
        if (mode <= REFBN_CAREFUL)                                                               \
            return ends ? refbn_combine_plain(in, tile, of, pivot, out, ends, check, terms)      \
                        : refbn_combine_plain(in, tile, of, pivot, out, NULL, check, terms);     \
        if (mode == REFBN_DIRECT && !ends)                                                       \
            return refbn_combine_double(in, tile, of, pivot, out, NULL, check, 0, terms, 1);     \
        return ends ? refbn_combine_double(in, tile, of, pivot, out, ends, check, odd, terms, 0) \
                    : refbn_combine_double(in, tile, of, pivot, out, NULL, check, 0, terms, 0);
    switch (of->terms) {
        REFBN_VARIANT(1)
        REFBN_VARIANT(2)
    default: REFBN_VARIANT(3)
    }
#undef REFBN_VARIANT
}

#endif
