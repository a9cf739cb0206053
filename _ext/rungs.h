/* The two loops over the elements, on one tile: sums, and affine combinations with a rounding test.
 *
 * Every tensor is used less a pivot: t = x - p, and likewise for dy (g) and x_dot (u). Everything that a pass
 * wants to know of a group are sums of t, g, u and their products; every tensor that it writes is a
 * combination  V = a0 t0 + a1 t1 + a2 t2 + c  of them, with coefficients from solve.h.
 *
 * Error bounds, with u = 2^-53, n = REFBN_ROWS = 32 the additions in a row's chain, S the sum of the
 * magnitudes of what is summed, W = |a0 t0| + |a1 t1| + |a2 t2| + |c|:
 *
 *  brief sums (all pivots 0, narrow data)
 *   Plain binary64: chains of at most REFBN_BRIEFLY + 1 = 9 terms from 0 on, four of them added up. So a term goes
 *   through 11 roundings at most: 12 u S. By groups these are the 8 rows of a strip and the four strips of a tile.
 *  biased sums (all pivots 0)
 *   Every |x| of a chain is at most a power of two, L (likewise dy and x_dot), or the chain is not used.
 *   It starts at 1.5 b with b = 128 L, or 128 L L' for a product. n terms of at most L change it by less than
 *   b/2, so that it stays in b ... 2b, where numbers are 2 u b apart: the sum rounds to a multiple of that, the
 *   difference d of successive sums is exact, and term - d, at most u b, is exact for a number and for a product
 *   of two binary32 numbers. That of two binary64 numbers is rounded by the fused multiply-add: u^2 b for each.
 *   These rests are added up with at most n roundings of numbers <= n u b. In all (n^2 + n) u^2 b = 1056 u^2 b
 *   for a chain; what chain - 1.5 b gives is exact. Where numbers are larger than L, a sum of squares, started
 *   alike, shows it: each addition to it rounds monotonely, so that it ends above the square of the largest.
 *   Squares that are summed for bounds alone: n + 1 roundings, 40 u S.
 *  double-double sums
 *   t = (hi, lo) exactly. A product (hi, lo) drops the product of the tails and rounds four tails: 10 u^2. In
 *   the chain two_sum is exact; the tails, each <= u (S + 4 |t|), are added with at most n roundings of numbers
 *   <= 2 n u S: (2 n^2 + 10) u^2 S < 2100 u^2 S.
 *  totals
 *   Each addition to a total in two parts costs at most 4 u^2 times its magnitude (ball.h, add), and 100 u^2 of a
 *   tile's own sum, whose tail is not normalised; the chains, which need 700 u^2, leave that much.
 *
 *  combination in plain binary64 (narrow data, so that nothing overflows or underflows)
 *   At most 6 roundings of partial results <= W (1 + 2^-40), u for each t, u |v| for v -+ e, hence 8 u W and the
 *   products with the coefficients' errors; 10 u covers it.
 *  in double-double
 *   Tails of a product: 10 u^2 |a t|; two_sum exact; adding the tail (<= 4 u W) and to the sum of the tails (<=
 *   16 u W): 20 u^2 W for each of three terms; the last l -+ e: 16 u^2 W. 128 u^2 W covers all.
 *  biased: biased.h, with one e for a lane, from bounds of all |t_k|
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

#define REFBN_BRIEF_SUM 0xcp-53        /* 12 u */
#define REFBN_BIASED_SUM 0x420p-106    /* 1056 u^2 */
#define REFBN_PLAIN_SQUARES 0x28p-53   /* 40 u */
#define REFBN_PLAIN_COMBINE 0xap-53    /* 10 u */
#define REFBN_DOUBLE_SUM 0x834p-106    /* 2100 u^2 */
#define REFBN_DOUBLE_COMBINE 0x80p-106 /* 128 u^2 */

/* sums of t, t^2, g, g t, g^2, u, u t, u^2, u g */
enum { REFBN_T, REFBN_TT, REFBN_G, REFBN_GT, REFBN_GG, REFBN_U, REFBN_UT, REFBN_UU, REFBN_UG, REFBN_SUMS };

/* What a member of the team found of a unit. By elements, a group has REFBN_WIDTH lanes of each sum. */
typedef struct {
    double hi[REFBN_SUMS][REFBN_SPREAD], lo[REFBN_SUMS][REFBN_SPREAD];
    double square[3][REFBN_SPREAD]; /* of x, dy, x_dot: a bound of all t^2 */
    double limit[3][REFBN_LANES];   /* of each group: L */
    double open_hi[REFBN_SUMS][REFBN_LANES], open_lo[REFBN_SUMS][REFBN_LANES]; /* chains that go on, by groups */
} refbn_totals;

/* Which part of a tile's rows is at hand: chains begin with the first one and end with the last one. */
enum { REFBN_FIRST = 1, REFBN_LAST = 2, REFBN_WHOLE = 3 };

/* Where the lanes of a group's totals begin. */
static REFBN_INLINE int refbn_spread_lane(int by_groups, int lane)
{
    return by_groups ? lane : lane * REFBN_WIDTH;
}

static REFBN_INLINE void refbn_total(refbn_totals *totals, int sum, int lane, refbn_v hi, refbn_v lo)
{
    const refbn_pair before = {refbn_load(totals->hi[sum] + lane), refbn_load(totals->lo[sum] + lane)};
    const refbn_pair total = refbn_add_pairs(before, (refbn_pair){hi, lo});
    refbn_store(totals->hi[sum] + lane, total.hi);
    refbn_store(totals->lo[sum] + lane, total.lo);
}

/* Squares are bounded by a sum of them. */
static REFBN_INLINE void refbn_total_square(refbn_totals *totals, int tensor, int lane, refbn_v sum)
{
    const refbn_v before = refbn_load(totals->square[tensor] + lane);
    refbn_store(totals->square[tensor] + lane, refbn_larger(before, sum));
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

/* How far ahead of their use the loops ask for memory, since the hardware alone does not keep up: 64 rows, but
 * no more than 8 where these are long; in short runs, the same place of a run to come. */
static REFBN_INLINE ptrdiff_t refbn_distance(const refbn_rows *rows, const refbn_tile *tile)
{
    if (tile->runs > 1)
        return rows->run * (1 + 32 / (tile->rows + 1));
    return rows->stride * (refbn_magnitude(rows->stride) <= 512 ? 64 : 8);
}

static REFBN_INLINE void refbn_ahead(const char *row, ptrdiff_t distance, int bytes)
{
#pragma GCC unroll 4
    for (int byte = 0; byte < bytes; byte += 64)
        __builtin_prefetch(row + distance + byte, 0, 2);
}

static REFBN_INLINE void refbn_ahead_to_write(char *row, ptrdiff_t distance, int bytes)
{
#pragma GCC unroll 4
    for (int byte = 0; byte < bytes; byte += 64)
        __builtin_prefetch(row + distance + byte, 1, 2);
}

/* How a sweep of sums takes its numbers. */
enum {
    REFBN_BRIEF,   /* plain binary64 in short chains, all pivots 0; of narrow data, by elements */
    REFBN_BIASED,  /* all pivots 0, sums from a bias on; what exceeds its limit is summed as in DIRECT mode */
    REFBN_DIRECT,  /* double-double, all pivots 0 */
    REFBN_CENTERED /* double-double */
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

/* From a bias on. `one` is 1: multiplying by it spreads the work over a machine's adders and multipliers. */
static REFBN_INLINE void refbn_chain_add_biased(refbn_chain *chain, refbn_v a, refbn_v one)
{
    const refbn_v sum = refbn_multiply_add(a, one, chain->hi), moved = sum - chain->hi;
    chain->hi = sum;
    chain->lo = refbn_multiply_add(a - moved, one, chain->lo);
}

static REFBN_INLINE void refbn_chain_add_product(refbn_chain *chain, refbn_v a, refbn_v b)
{
    const refbn_v sum = refbn_multiply_add(a, b, chain->hi), moved = sum - chain->hi;
    chain->hi = sum;
    chain->lo += refbn_multiply_add(a, b, -moved);
}

/* A number of a row. */
static REFBN_INLINE refbn_v refbn_take(const int format, const char *row, int lane)
{
    return format == REFBN_F32 ? refbn_widen(row, lane) : refbn_number(row, lane);
}

/* One of the numbers that belong to lanes, for each of these; by elements, that of the turn's only lane. */
static REFBN_INLINE refbn_v refbn_of_lanes(const double *lanes, int lane, int by_groups)
{
    return by_groups ? refbn_load(lanes + lane) : refbn_splat(*lanes);
}

static REFBN_INLINE refbn_pair refbn_times_pair(const int mode, refbn_pair a, refbn_pair b)
{
    refbn_pair product = refbn_two_product(a.hi, b.hi);
    if (mode == REFBN_CENTERED)
        product.lo += refbn_multiply_add(a.hi, b.lo, a.lo * b.hi);
    return product;
}

/* Some lanes of the tail of a run. They are loaded from `at` on, counted from where a next row would be: never past
 * the end of the run, but from the row before where the lanes are not full. `mask` has what belongs to the tail. */
typedef struct {
    int at, any;
    refbn_vi mask;
} refbn_tail;

static REFBN_INLINE refbn_tail refbn_tail_of(const refbn_tile *tile, int lane)
{
    const int left = tile->tail - lane;
    refbn_vi number;
    for (int k = 0; k < REFBN_WIDTH; k++)
        number[k] = k;
    return (refbn_tail){left < REFBN_WIDTH ? tile->tail - REFBN_WIDTH : lane, left > 0,
                        (refbn_vi)(number >= (refbn_vi){0} + (REFBN_WIDTH - left))};
}

static REFBN_INLINE refbn_v refbn_masked(refbn_v a, refbn_vi mask) { return (refbn_v)((refbn_vi)a & mask); }

/* Which tensors the sums are of. */
static const int refbn_factors_of[REFBN_SUMS][2] = {{0, 0}, {0, 0}, {1, 1}, {1, 0}, {1, 1},
                                                    {2, 2}, {2, 0}, {2, 2}, {2, 1}};

/* One vector's terms, added to the chains in double-double. */
static REFBN_INLINE void refbn_add_double(const int mode, const refbn_pair *t, refbn_chain *sum, const int moments,
                                          const int g, const int u)
{
#pragma GCC unroll 9
    for (int k = 0; k < REFBN_SUMS; k++) {
        if (!refbn_has_sum(k, moments, g, u))
            continue;
        const refbn_pair a = t[refbn_factors_of[k][0]], b = t[refbn_factors_of[k][1]];
        if (k == REFBN_T || k == REFBN_G || k == REFBN_U)
            refbn_chain_add(&sum[k], a.hi, a.lo);
        else if (k == REFBN_GG || k == REFBN_UU) /* for bounds only */
            sum[k].hi = refbn_multiply_add(a.hi, a.hi, sum[k].hi);
        else {
            const refbn_pair product = refbn_times_pair(mode, a, b);
            refbn_chain_add(&sum[k], product.hi, product.lo);
        }
    }
}

/* The wanted sums of a vector of columns: `moments`, `g`, `u` (refbn_has_sum), in double-double. All but the data
 * are constants where this is inlined. */
static REFBN_INLINE void refbn_sum_double(const int mode, const int format, const refbn_rows *const *in,
                                          const refbn_tile *tile, int column, refbn_pivots *pivot,
                                          refbn_totals *totals, int lane, int by_groups, const int moments,
                                          const int g, const int u)
{
    const int size = format == REFBN_F32 ? 4 : 8;
    const refbn_tail tail = refbn_tail_of(tile, column);
    refbn_chain sum[REFBN_SUMS] = {{{0}, {0}}};
    refbn_v p[3];
#pragma GCC unroll 3
    for (int k = 0; k < 3; k++)
        p[k] = refbn_of_lanes(pivot[k] + lane, column, by_groups);
    for (int run = 0; run < tile->runs; run++)
        for (int row = 0; row < tile->rows + tail.any; row++) {
            const int whole = row < tile->rows, at = whole ? column : tail.at;
            refbn_pair t[3];
#pragma GCC unroll 3
            for (int k = 0; k < 3; k++)
                if (k == 0 || (k == 1 ? g : u)) {
                    const char *data = in[k]->data + run * in[k]->run + row * in[k]->stride + at * size;
                    t[k] = (refbn_pair){refbn_take(format, data, 0), {0}};
                    if (mode == REFBN_CENTERED)
                        t[k] = refbn_two_difference(t[k].hi, p[k]);
                    if (!whole)
                        t[k] = (refbn_pair){refbn_masked(t[k].hi, tail.mask), refbn_masked(t[k].lo, tail.mask)};
                }
            refbn_add_double(mode, t, sum, moments, g, u);
        }
    const int at = refbn_spread_lane(by_groups, lane) + (by_groups ? column : 0);
#pragma GCC unroll 9
    for (int k = 0; k < REFBN_SUMS; k++)
        if (refbn_has_sum(k, moments, g, u))
            refbn_total(totals, k, at, sum[k].hi, sum[k].lo);
    if (moments)
        refbn_total_square(totals, 0, at, sum[REFBN_TT].hi);
    if (g)
        refbn_total_square(totals, 1, at, sum[REFBN_GG].hi);
    if (u)
        refbn_total_square(totals, 2, at, sum[REFBN_UU].hi);
}

/* Where the chain of a sum begins: at 1.5 b. */
static REFBN_INLINE refbn_v refbn_sum_start(int sum, const refbn_v *limit)
{
    switch (sum) {
    case REFBN_T: return 192.0 * limit[0];
    case REFBN_TT: return 192.0 * (limit[0] * limit[0]);
    case REFBN_G: return 192.0 * limit[1];
    case REFBN_GT: return 192.0 * (limit[1] * limit[0]);
    case REFBN_U: return 192.0 * limit[2];
    case REFBN_UT: return 192.0 * (limit[2] * limit[0]);
    case REFBN_UG: return 192.0 * (limit[2] * limit[1]);
    default: return (refbn_v){0}; /* squares for bounds */
    }
}

/* One vector's terms, added to the chains that `wanted` names. */
static REFBN_INLINE void refbn_add_biased(const int wanted, const refbn_v *t, refbn_chain (*sum)[2], const int j,
                                          refbn_v one)
{
#pragma GCC unroll 9
    for (int k = 0; k < REFBN_SUMS; k++) {
        if (!(wanted >> k & 1))
            continue;
        const refbn_v a = t[refbn_factors_of[k][0]], b = t[refbn_factors_of[k][1]];
        if (k == REFBN_T || k == REFBN_G || k == REFBN_U)
            refbn_chain_add_biased(&sum[k][j], a, one);
        else if (k == REFBN_GG || k == REFBN_UU)
            sum[k][j].hi = refbn_multiply_add(a, a, sum[k][j].hi);
        else
            refbn_chain_add_product(&sum[k][j], a, b);
    }
}

/* The chains that `wanted` names, of the vectors of columns from `first` to `last`. */
static REFBN_INLINE void refbn_run_chains(const int format, const refbn_rows *const *in, const refbn_tile *tile,
                                          int column, const int wanted, refbn_chain (*sum)[2], const int first,
                                          const int last)
{
    enum { OF_X = 1 << REFBN_T | 1 << REFBN_TT | 1 << REFBN_GT | 1 << REFBN_UT };
    enum { OF_DY = 1 << REFBN_G | 1 << REFBN_GT | 1 << REFBN_GG | 1 << REFBN_UG };
    enum { OF_X_DOT = 1 << REFBN_U | 1 << REFBN_UT | 1 << REFBN_UU | 1 << REFBN_UG };
    const int size = format == REFBN_F32 ? 4 : 8, ahead = first == 0 && column * size % 64 == 0;
    const int used[3] = {(wanted & OF_X) != 0, (wanted & OF_DY) != 0, (wanted & OF_X_DOT) != 0};
    const refbn_v one = refbn_opaque(refbn_splat(1.0));
    const ptrdiff_t distance[3] = {refbn_distance(in[0], tile), refbn_distance(in[1], tile),
                                   refbn_distance(in[2], tile)};
    refbn_tail tail[2];
#pragma GCC unroll 2
    for (int j = first; j < last; j++)
        tail[j] = refbn_tail_of(tile, column + j * REFBN_WIDTH);
    for (int run = 0; run < tile->runs; run++) {
        const char *data[3];
#pragma GCC unroll 3
        for (int k = 0; k < 3; k++)
            data[k] = in[k]->data + run * in[k]->run + column * size;
        for (int row = 0; row < tile->rows; row++) {
            if (ahead)
#pragma GCC unroll 3
                for (int k = 0; k < 3; k++)
                    if (used[k])
                        refbn_ahead(data[k], distance[k], 2 * REFBN_WIDTH * size);
#pragma GCC unroll 2
            for (int j = first; j < last; j++) {
                refbn_v t[3];
#pragma GCC unroll 3
                for (int k = 0; k < 3; k++)
                    if (used[k])
                        t[k] = refbn_take(format, data[k], j * REFBN_WIDTH);
                refbn_add_biased(wanted, t, sum, j, one);
            }
#pragma GCC unroll 3
            for (int k = 0; k < 3; k++)
                data[k] += in[k]->stride;
        }
#pragma GCC unroll 2
        for (int j = first; j < last; j++) {
            if (!tail[j].any)
                continue;
            refbn_v t[3];
#pragma GCC unroll 3
            for (int k = 0; k < 3; k++)
                if (used[k])
                    t[k] = refbn_masked(refbn_take(format, data[k], tail[j].at - column), tail[j].mask);
            refbn_add_biased(wanted, t, sum, j, one);
        }
    }
}

/* The same from a bias on. Returns whether something exceeds its limit; then nothing is added to the totals. */
static REFBN_INLINE int refbn_sum_biased(const int format, const refbn_rows *const *in, const refbn_tile *tile,
                                         int part, int column, refbn_totals *totals, int lane, int by_groups,
                                         const int moments, const int g, const int u)
{
    enum { PRODUCTS = 1 << REFBN_TT | 1 << REFBN_GT | 1 << REFBN_UT | 1 << REFBN_UG };
    static const int squares[3] = {REFBN_TT, REFBN_GG, REFBN_UU};
    refbn_chain sum[REFBN_SUMS][2];
    refbn_v limit[2][3];
    int wanted = 0;
#pragma GCC unroll 9
    for (int k = 0; k < REFBN_SUMS; k++)
        wanted |= refbn_has_sum(k, moments, g, u) << k;
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
#pragma GCC unroll 3
        for (int k = 0; k < 3; k++)
            limit[j][k] = refbn_of_lanes(totals->limit[k] + lane, column + j * REFBN_WIDTH, by_groups);
#pragma GCC unroll 9
        for (int k = 0; k < REFBN_SUMS; k++)
            if (part & REFBN_FIRST)
                sum[k][j] = (refbn_chain){refbn_sum_start(k, limit[j]), {0}};
            else {
                sum[k][j].hi = refbn_load(totals->open_hi[k] + column + j * REFBN_WIDTH);
                sum[k][j].lo = refbn_load(totals->open_lo[k] + column + j * REFBN_WIDTH);
            }
    }
    if (g && u && REFBN_WIDTH == 8) { /* as much at a time as 32 registers hold */
        refbn_run_chains(format, in, tile, column, wanted, sum, 0, 1);
        refbn_run_chains(format, in, tile, column, wanted, sum, 1, 2);
    } else if (g && u) { /* 16 registers */
        refbn_run_chains(format, in, tile, column, wanted & ~PRODUCTS, sum, 0, 2);
        refbn_run_chains(format, in, tile, column, wanted & PRODUCTS, sum, 0, 1);
        refbn_run_chains(format, in, tile, column, wanted & PRODUCTS, sum, 1, 2);
    } else
        refbn_run_chains(format, in, tile, column, wanted, sum, 0, 2);
    if (!(part & REFBN_LAST)) {
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++)
#pragma GCC unroll 9
            for (int k = 0; k < REFBN_SUMS; k++)
                if (wanted >> k & 1) {
                    refbn_store(totals->open_hi[k] + column + j * REFBN_WIDTH, sum[k][j].hi);
                    refbn_store(totals->open_lo[k] + column + j * REFBN_WIDTH, sum[k][j].lo);
                }
        return 0;
    }
    refbn_vi exceeds = {0};
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
#pragma GCC unroll 9
        for (int k = 0; k < REFBN_SUMS; k++)
            sum[k][j].hi -= refbn_sum_start(k, limit[j]);
#pragma GCC unroll 3
        for (int k = 0; k < 3; k++)
            if (wanted >> squares[k] & 1)
                exceeds |= ~(refbn_vi)(sum[squares[k]][j].hi <= 0.5 * (limit[j][k] * limit[j][k]));
    }
    if (refbn_any(exceeds))
        return 1;
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
        const int at = refbn_spread_lane(by_groups, lane) + (by_groups ? column + j * REFBN_WIDTH : 0);
#pragma GCC unroll 3
        for (int k = 0; k < 3; k++) /* the chain of x^2 is known to 2^-44 L^2 */
            if (wanted >> squares[k] & 1)
                refbn_total_square(totals, k, at, sum[squares[k]][j].hi + 0x1p-40 * (limit[j][k] * limit[j][k]));
        if (j > 0 && !by_groups)
            continue; /* the first one's has it all */
#pragma GCC unroll 9
        for (int k = 0; k < REFBN_SUMS; k++) {
            if (!(wanted >> k & 1))
                continue;
            refbn_chain all = sum[k][j];
            if (!by_groups) /* the first addition is exact: both are multiples of 2 u b below b/2 */
                all.hi += sum[k][1].hi, all.lo += sum[k][1].lo;
            refbn_total(totals, k, at, all.hi, all.lo);
        }
    }
    return 0;
}

enum { REFBN_BRIEFLY = 8 }; /* terms of a brief chain, but for a tail's */

/* One vector's terms, added to chains in plain binary64. */
static REFBN_INLINE void refbn_add_brief(const refbn_v *t, refbn_v *sum, refbn_v one, const int moments, const int g,
                                         const int u)
{
#pragma GCC unroll 9
    for (int k = 0; k < REFBN_SUMS; k++)
        if (refbn_has_sum(k, moments, g, u)) {
            const int single = k == REFBN_T || k == REFBN_G || k == REFBN_U;
            const refbn_v a = t[refbn_factors_of[k][0]];
            sum[k] = refbn_multiply_add(a, single ? one : t[refbn_factors_of[k][1]], sum[k]);
        }
}

/* The wanted sums of a tile by elements, in short chains. */
static REFBN_INLINE void refbn_sum_brief(const refbn_rows *const *in, const refbn_tile *tile, refbn_totals *totals,
                                         int lane, const int moments, const int g, const int u)
{
    static const int squares[3] = {REFBN_TT, REFBN_GG, REFBN_UU};
    enum { SIZE = 4, VECTORS = REFBN_ROW / REFBN_WIDTH };
    const int unroll = g && u ? REFBN_WIDTH < 8 ? 1 : 2 : VECTORS; /* as many at a time as the registers hold */
    const int used[3] = {moments || g || u, g, u}, squared[3] = {moments, g, u};
    const refbn_v one = refbn_opaque(refbn_splat(1.0));
    const ptrdiff_t distance[3] = {refbn_distance(in[0], tile), refbn_distance(in[1], tile),
                                   refbn_distance(in[2], tile)};
    refbn_chain total[REFBN_SUMS] = {{{0}, {0}}};
    refbn_v largest[3] = {{0}};
    for (int first = 0; first < VECTORS; first += unroll) {
        refbn_v sum[VECTORS][REFBN_SUMS] = {{{0}}};
        int taken = 0;
        for (int run = 0; run < tile->runs; run++) {
            const char *data[3];
#pragma GCC unroll 3
            for (int k = 0; k < 3; k++)
                data[k] = in[k]->data + run * in[k]->run + first * REFBN_WIDTH * SIZE;
            for (int left = tile->rows; left > 0;) {
                const int n = left < REFBN_BRIEFLY - taken ? left : REFBN_BRIEFLY - taken;
                for (int row = 0; row < n; row++) {
#pragma GCC unroll 3
                    for (int k = 0; k < 3; k++)
                        if (used[k] && first == 0)
                            refbn_ahead(data[k], distance[k], REFBN_ROW * SIZE);
#pragma GCC unroll 4
                    for (int j = 0; j < unroll; j++) {
                        refbn_v t[3];
#pragma GCC unroll 3
                        for (int k = 0; k < 3; k++)
                            if (used[k])
                                t[k] = refbn_widen(data[k], j * REFBN_WIDTH);
                        refbn_add_brief(t, sum[j], one, moments, g, u);
                    }
#pragma GCC unroll 3
                    for (int k = 0; k < 3; k++)
                        data[k] += in[k]->stride;
                }
                left -= n;
                taken += n;
                if (left == 0 && tile->tail > 0) {
                    taken++;
#pragma GCC unroll 4
                    for (int j = 0; j < unroll; j++) {
                        const int from = (first + j) * REFBN_WIDTH;
                        const refbn_tail tail = refbn_tail_of(tile, from);
                        if (!tail.any)
                            break;
                        refbn_v t[3];
#pragma GCC unroll 3
                        for (int k = 0; k < 3; k++)
                            if (used[k])
                                t[k] = refbn_masked(refbn_widen(data[k], tail.at - first * REFBN_WIDTH), tail.mask);
                        refbn_add_brief(t, sum[j], one, moments, g, u);
                    }
                }
                if (taken < REFBN_BRIEFLY && (left > 0 || run + 1 < tile->runs))
                    continue;
                taken = 0;
#pragma GCC unroll 9
                for (int k = 0; k < REFBN_SUMS; k++)
                    if (refbn_has_sum(k, moments, g, u)) {
                        refbn_v all = sum[0][k];
                        if (unroll == 2)
                            all += sum[1][k];
                        else if (unroll == 4)
                            all = (all + sum[1][k]) + (sum[2][k] + sum[3][k]);
                        refbn_chain_add(&total[k], all, (refbn_v){0});
#pragma GCC unroll 4
                        for (int j = 0; j < unroll; j++) {
#pragma GCC unroll 3
                            for (int tensor = 0; tensor < 3; tensor++)
                                if (squared[tensor] && k == squares[tensor])
                                    largest[tensor] = refbn_larger(largest[tensor], sum[j][k]);
                            sum[j][k] = (refbn_v){0};
                        }
                    }
            }
        }
    }
    const int at = refbn_spread_lane(0, lane);
#pragma GCC unroll 9
    for (int k = 0; k < REFBN_SUMS; k++)
        if (refbn_has_sum(k, moments, g, u))
            refbn_total(totals, k, at, total[k].hi, total[k].lo);
#pragma GCC unroll 3
    for (int tensor = 0; tensor < 3; tensor++)
        if (squared[tensor])
            refbn_total_square(totals, tensor, at, largest[tensor]);
}

/* The wanted sums of two vectors of columns of a tile by groups, in short chains: one for REFBN_BRIEFLY rows, and one
 * of these, which goes on from strip to strip. */
static REFBN_INLINE void refbn_sum_brief_by_groups(const refbn_rows *const *in, const refbn_tile *tile, int part,
                                                   int column, refbn_totals *totals, const int moments,
                                                   const int g, const int u)
{
    static const int squares[3] = {REFBN_TT, REFBN_GG, REFBN_UU};
    enum { SIZE = 4 };
    const int used[3] = {moments || g || u, g, u}, squared[3] = {moments, g, u}, ahead = column * SIZE % 64 == 0;
    const refbn_v one = refbn_opaque(refbn_splat(1.0));
    const ptrdiff_t distance[3] = {refbn_distance(in[0], tile), refbn_distance(in[1], tile),
                                   refbn_distance(in[2], tile)};
    const char *data[3];
    refbn_v open[2][REFBN_SUMS];
#pragma GCC unroll 3
    for (int k = 0; k < 3; k++)
        data[k] = in[k]->data + column * SIZE;
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++)
#pragma GCC unroll 9
        for (int k = 0; k < REFBN_SUMS; k++)
            if (refbn_has_sum(k, moments, g, u))
                open[j][k] = part & REFBN_FIRST ? (refbn_v){0}
                                                : refbn_load(totals->open_hi[k] + column + j * REFBN_WIDTH);
    for (int first = 0; first < tile->rows; first += REFBN_BRIEFLY) {
        refbn_v sum[2][REFBN_SUMS] = {{{0}}};
        for (int row = first; row < tile->rows && row < first + REFBN_BRIEFLY; row++) {
#pragma GCC unroll 3
            for (int k = 0; k < 3; k++)
                if (used[k] && ahead)
                    refbn_ahead(data[k], distance[k], REFBN_COLUMNS * SIZE);
#pragma GCC unroll 2
            for (int j = 0; j < 2; j++) {
                refbn_v t[3];
#pragma GCC unroll 3
                for (int k = 0; k < 3; k++)
                    if (used[k])
                        t[k] = refbn_widen(data[k], j * REFBN_WIDTH);
                refbn_add_brief(t, sum[j], one, moments, g, u);
            }
#pragma GCC unroll 3
            for (int k = 0; k < 3; k++)
                data[k] += in[k]->stride;
        }
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++)
#pragma GCC unroll 9
            for (int k = 0; k < REFBN_SUMS; k++)
                if (refbn_has_sum(k, moments, g, u))
                    open[j][k] += sum[j][k];
    }
#pragma GCC unroll 2
    for (int j = 0; j < 2; j++) {
        const int at = column + j * REFBN_WIDTH;
#pragma GCC unroll 9
        for (int k = 0; k < REFBN_SUMS; k++)
            if (refbn_has_sum(k, moments, g, u)) {
                if (part & REFBN_LAST)
                    refbn_total(totals, k, at, open[j][k], (refbn_v){0});
                else
                    refbn_store(totals->open_hi[k] + at, open[j][k]);
            }
#pragma GCC unroll 3
        for (int tensor = 0; tensor < 3; tensor++)
            if (squared[tensor] && part & REFBN_LAST)
                refbn_total_square(totals, tensor, at, open[j][squares[tensor]]);
    }
}

/* Raise limits so that they are well above the first `rows` rows of each run, from `column` on for `width` columns;
 * but not beyond what the chains can take. A chain's squares are to stay below half of the limit's: a lane by groups
 * knows few numbers, one by elements those of all lanes. */
static void refbn_raise_limits(int format, const refbn_rows *const *in, const refbn_tile *tile, int rows, int column,
                               int width, refbn_totals *totals, int lane, int by_groups, const int *wanted)
{
    const int size = format == REFBN_F32 ? 4 : 8;
    for (int k = 0; k < 3; k++)
        for (int at = column; wanted[k] && at < column + width; at += REFBN_WIDTH) {
            const refbn_tail tail = refbn_tail_of(tile, at);
            refbn_v largest = {0};
            for (int run = 0; run < tile->runs; run++)
                for (int row = 0; row < tile->rows + tail.any && row < rows; row++) {
                    const char *data = in[k]->data + run * in[k]->run + row * in[k]->stride;
                    const refbn_v magnitude =
                        refbn_abs(refbn_take(format, data + (row < tile->rows ? at : tail.at) * size, 0));
                    largest = refbn_select((refbn_vi)(magnitude > largest), magnitude, largest);
                }
            const refbn_v above = (by_groups ? 32.0 : 8.0) * refbn_power_below(largest);
            const refbn_v limit = refbn_select((refbn_vi)(largest <= 0x1p170), above, (refbn_v){0});
            if (by_groups) {
                double *to = totals->limit[k] + at;
                refbn_store(to, refbn_larger(refbn_load(to), limit));
            } else
                for (int j = 0; j < REFBN_WIDTH; j++)
                    if (limit[j] > totals->limit[k][lane])
                        totals->limit[k][lane] = limit[j];
        }
}

/* Which of a sweep's variants is wanted; each is a loop of its own. */
#define REFBN_VARIANTS       \
    REFBN_VARIANT(1, 0, 0)   \
    REFBN_VARIANT(0, 1, 0)   \
    REFBN_VARIANT(1, 1, 0)   \
    REFBN_VARIANT(0, 0, 1)   \
    REFBN_VARIANT(1, 0, 1)   \
    REFBN_VARIANT(0, 1, 1)   \
    REFBN_VARIANT(1, 1, 1)

static void refbn_sum_columns(int mode, int format, const refbn_rows *const *in, const refbn_tile *tile, int column,
                              refbn_pivots *pivot, refbn_totals *totals, int lane, int by_groups,
                              const int *wanted)
{
#define REFBN_VARIANT(m, g, u)                                                                                     \
    case 4 * m + 2 * g + u:                                                                                        \
        if (mode == REFBN_CENTERED && format == REFBN_F32)                                                         \
            refbn_sum_double(REFBN_CENTERED, REFBN_F32, in, tile, column, pivot, totals, lane, by_groups, m, g, u); \
        else if (mode == REFBN_CENTERED)                                                                           \
            refbn_sum_double(REFBN_CENTERED, REFBN_F64, in, tile, column, pivot, totals, lane, by_groups, m, g, u); \
        else if (format == REFBN_F32)                                                                              \
            refbn_sum_double(REFBN_DIRECT, REFBN_F32, in, tile, column, pivot, totals, lane, by_groups, m, g, u);  \
        else                                                                                                       \
            refbn_sum_double(REFBN_DIRECT, REFBN_F64, in, tile, column, pivot, totals, lane, by_groups, m, g, u);  \
        break;
    switch (4 * wanted[0] + 2 * wanted[1] + wanted[2]) { REFBN_VARIANTS }
#undef REFBN_VARIANT
}

static int refbn_sum_columns_biased(int format, const refbn_rows *const *in, const refbn_tile *tile, int part,
                                    int column, refbn_totals *totals, int lane, int by_groups, const int *wanted)
{
#define REFBN_VARIANT(m, g, u)                                                                              \
    case 4 * m + 2 * g + u:                                                                                 \
        return format == REFBN_F32                                                                          \
                   ? refbn_sum_biased(REFBN_F32, in, tile, part, column, totals, lane, by_groups, m, g, u) \
                   : refbn_sum_biased(REFBN_F64, in, tile, part, column, totals, lane, by_groups, m, g, u);
    switch (4 * wanted[0] + 2 * wanted[1] + wanted[2]) { REFBN_VARIANTS }
#undef REFBN_VARIANT
    return 0;
}

static void refbn_sum_tile_brief(const refbn_rows *const *in, const refbn_tile *tile, int part, refbn_totals *totals,
                                 int lane, int by_groups, const int *wanted)
{
#define REFBN_VARIANT(m, g, u)                                                                        \
    case 4 * m + 2 * g + u:                                                                           \
        if (!by_groups)                                                                               \
            refbn_sum_brief(in, tile, totals, lane, m, g, u);                                         \
        else                                                                                          \
            for (int column = 0; column < tile->columns; column += REFBN_COLUMNS)                     \
                refbn_sum_brief_by_groups(in, tile, part, column, totals, m, g, u);                   \
        break;
    switch (4 * wanted[0] + 2 * wanted[1] + wanted[2]) { REFBN_VARIANTS }
#undef REFBN_VARIANT
}

/* Add the sums that are wanted (of x, with dy, with x_dot) of a part of a tile to the totals of its turn, whose lanes
 * begin at `lane`. Returns bits of the columns, REFBN_COLUMNS at a time, of which nothing was added because something
 * exceeds its limit. */
static uint32_t refbn_sum_tile(int mode, int format, const refbn_rows *const *in, const refbn_tile *tile, int part,
                               refbn_pivots *pivot, refbn_totals *totals, int lane, int by_groups,
                               const int *wanted)
{
    uint32_t exceeding = 0;
    if (mode == REFBN_BRIEF)
        refbn_sum_tile_brief(in, tile, part, totals, lane, by_groups, wanted);
    else if (mode == REFBN_BIASED)
        for (int at = 0; at * REFBN_COLUMNS < tile->columns; at++)
            exceeding |= (uint32_t)refbn_sum_columns_biased(format, in, tile, part, at * REFBN_COLUMNS, totals, lane,
                                                            by_groups, wanted)
                         << at;
    else
        for (int at = 0; at < tile->columns; at += REFBN_WIDTH)
            refbn_sum_columns(mode, format, in, tile, at, pivot, totals, lane, by_groups, wanted);
    return exceeding;
}

/* What exceeded its limit, of a whole tile: with other sums, and higher limits from now on. */
static void refbn_sum_exceeding(int format, const refbn_rows *const *in, const refbn_tile *tile, uint32_t exceeding,
                                refbn_pivots *pivot, refbn_totals *totals, int lane, int by_groups,
                                const int *wanted)
{
    for (int at = 0; at < tile->columns; at += REFBN_WIDTH) {
        if (!(exceeding >> at / REFBN_COLUMNS & 1))
            continue;
        refbn_raise_limits(format, in, tile, REFBN_ROWS, at, REFBN_WIDTH, totals, lane, by_groups, wanted);
        refbn_sum_columns(REFBN_DIRECT, format, in, tile, at, pivot, totals, lane, by_groups, wanted);
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

/* Bits of the undecided lanes of a tile; by elements, bit 0. */
static REFBN_INLINE uint64_t refbn_bad_bits(refbn_vi bad, int lane, int by_groups)
{
    if (!refbn_any(bad))
        return 0;
    return by_groups ? refbn_lane_bits(bad, lane) : 1;
}

/* The coefficients of some lanes, in registers. */
typedef struct {
    refbn_v hi[4], lo[4], bound[4], pivot[3];
} refbn_coefficients;

static REFBN_INLINE refbn_coefficients refbn_hoist(const refbn_combination *of, refbn_pivots *pivot, int lane,
                                                   int column, int by_groups, const int terms,
                                                   const int twofold, const int direct)
{
    refbn_coefficients c;
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++)
        if (k < terms || k == 3) {
            c.hi[k] = refbn_of_lanes(of->hi[k] + lane, column, by_groups);
            c.bound[k] = refbn_of_lanes(of->bound[k] + lane, column, by_groups);
            if (twofold)
                c.lo[k] = refbn_of_lanes(of->lo[k] + lane, column, by_groups);
            if (k < 3 && !direct)
                c.pivot[k] = refbn_of_lanes(pivot[of->tensor[k]] + lane, column, by_groups);
        }
    return c;
}

/* Where a loop over the columns goes on: the last ones are taken along with what is before them, if `width` of them
 * are not left. */
static REFBN_INLINE int refbn_column(const refbn_tile *tile, int next, const int width)
{
    return next + width <= tile->columns ? next : tile->columns - width;
}

/* How far the pointers move back before the tail of a run, in numbers: it is taken along with what is before it, which
 * is written once more. */
static REFBN_INLINE int refbn_back(const refbn_tile *tile) { return tile->columns - tile->tail; }

/* Combine, test and write a tile; `lane` is the first one of its turn. The result has a bit for each lane with
 * an undecided element; by elements, bit 0. The output is binary32 at `out`, or with `ends` both ends in
 * binary64. `check`: elements may be infinite or NaN, or overflow. */
static REFBN_INLINE uint64_t refbn_combine_plain(const refbn_rows *const *in, const refbn_tile *tile,
                                                 const refbn_combination *of, refbn_pivots *pivot, int lane,
                                                 int by_groups, const refbn_rows *out, refbn_ends *ends, int check,
                                                 const int terms)
{
    enum { MOST = 4 };
    const int unroll = terms == 1 ? 4 : 2, rows = tile->rows + (tile->tail > 0);
    uint64_t undecided = 0;
    for (int next = 0; next < tile->columns; next += unroll * REFBN_WIDTH) {
        const int column = refbn_column(tile, next, unroll * REFBN_WIDTH);
        refbn_vfi bad[MOST] = {{0}};
        refbn_v poison[MOST] = {{0}};
        refbn_coefficients c[MOST];
#pragma GCC unroll 4
        for (int j = 0; j < unroll; j++)
            c[j] = refbn_hoist(of, pivot, lane, column + j * REFBN_WIDTH, by_groups, terms, 0, 0);
        for (int run = 0; run < tile->runs; run++) {
            const char *data[3] = {NULL, NULL, NULL};
#pragma GCC unroll 3
            for (int k = 0; k < terms; k++)
                data[k] = in[k]->data + run * in[k]->run + column * 4;
            char *to = ends ? NULL : out->data + run * out->run + column * 4;
            int at = run * refbn_run_length(tile) + column; /* in `ends` */
            for (int row = 0; row < rows; row++) {
                if (row == tile->rows) {
                    const int back = refbn_back(tile);
#pragma GCC unroll 3
                    for (int k = 0; k < terms; k++)
                        data[k] -= back * 4;
                    to -= ends ? 0 : back * 4;
                    at -= back;
                }
#pragma GCC unroll 3
                for (int k = 0; k < terms; k++)
                    refbn_ahead(data[k], refbn_distance(in[k], tile), unroll * REFBN_WIDTH * 4);
                if (!ends)
                    refbn_ahead_to_write(to, refbn_distance(out, tile), unroll * REFBN_WIDTH * 4);
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
                        refbn_store(ends->low + at + j * REFBN_WIDTH, low);
                        refbn_store(ends->high + at + j * REFBN_WIDTH, high);
                    } else {
                        const refbn_vf from = refbn_narrow(low);
                        bad[j] = refbn_note_difference(bad[j], from, refbn_narrow(high));
                        *(refbn_vf_in_memory *)(void *)(to + j * REFBN_WIDTH * 4) = from;
                    }
                }
#pragma GCC unroll 3
                for (int k = 0; k < terms; k++)
                    data[k] += in[k]->stride;
                if (!ends)
                    to += out->stride;
                at += tile->columns;
            }
        }
#pragma GCC unroll 4
        for (int j = 0; j < unroll; j++) {
            const refbn_vi all =
                __builtin_convertvector(bad[j], refbn_vi) | (refbn_vi)(poison[j] != poison[j]);
            undecided |= refbn_bad_bits(all, column + j * REFBN_WIDTH, by_groups);
        }
    }
    return undecided;
}

static REFBN_INLINE uint64_t refbn_combine_double(const refbn_rows *const *in, const refbn_tile *tile,
                                                  const refbn_combination *of, refbn_pivots *pivot, int lane,
                                                  int by_groups, const refbn_rows *out, refbn_ends *ends, int check,
                                                  int odd, const int terms, const int direct)
{
    enum { MOST = 2 };
    const int unroll = terms == 1 ? 2 : 1, rows = tile->rows + (tile->tail > 0);
    uint64_t undecided = 0;
    for (int next = 0; next < tile->columns; next += unroll * REFBN_WIDTH) {
        const int column = refbn_column(tile, next, unroll * REFBN_WIDTH);
        refbn_vi bad[MOST] = {{0}};
        refbn_v poison[MOST] = {{0}};
        refbn_coefficients c[MOST];
#pragma GCC unroll 2
        for (int j = 0; j < unroll; j++)
            c[j] = refbn_hoist(of, pivot, lane, column + j * REFBN_WIDTH, by_groups, terms, 1, direct);
        for (int run = 0; run < tile->runs; run++) {
            const char *data[3] = {NULL, NULL, NULL};
#pragma GCC unroll 3
            for (int k = 0; k < terms; k++)
                data[k] = in[k]->data + run * in[k]->run + column * 8;
            char *to = ends ? NULL : out->data + run * out->run + column * 8;
            int at = run * refbn_run_length(tile) + column; /* in `ends` */
            for (int row = 0; row < rows; row++) {
                if (row == tile->rows) {
                    const int back = refbn_back(tile);
#pragma GCC unroll 3
                    for (int k = 0; k < terms; k++)
                        data[k] -= back * 8;
                    to -= ends ? 0 : back * 8;
                    at -= back;
                }
#pragma GCC unroll 3
                for (int k = 0; k < terms; k++)
                    refbn_ahead(data[k], refbn_distance(in[k], tile), unroll * REFBN_WIDTH * 8);
                if (!ends)
                    refbn_ahead_to_write(to, refbn_distance(out, tile), unroll * REFBN_WIDTH * 8);
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
                        refbn_store(ends->low + at + j * REFBN_WIDTH, low);
                        refbn_store(ends->high + at + j * REFBN_WIDTH, high);
                    } else {
                        const refbn_v low = hi + (lo - e);
                        bad[j] |= (refbn_vi)low ^ (refbn_vi)(hi + (lo + e));
                        refbn_store((double *)(void *)to + j * REFBN_WIDTH, low);
                    }
                }
#pragma GCC unroll 3
                for (int k = 0; k < terms; k++)
                    data[k] += in[k]->stride;
                if (!ends)
                    to += out->stride;
                at += tile->columns;
            }
        }
#pragma GCC unroll 2
        for (int j = 0; j < unroll; j++) {
            const refbn_vi all = bad[j] | (refbn_vi)(poison[j] != poison[j]);
            undecided |= refbn_bad_bits(all, column + j * REFBN_WIDTH, by_groups);
        }
    }
    return undecided;
}

/* `direct`: all pivots are 0. */
static uint64_t refbn_combine_tile(int twofold, int direct, const refbn_rows *const *in, const refbn_tile *tile,
                                   const refbn_combination *of, refbn_pivots *pivot, int lane, int by_groups,
                                   const refbn_rows *out, refbn_ends *ends, int check, int odd)
{
#define REFBN_VARIANT(terms)                                                                                   \
    case terms:                                                                                                \
        if (!twofold)                                                                                          \
            return ends                                                                                        \
                       ? refbn_combine_plain(in, tile, of, pivot, lane, by_groups, out, ends, check, terms)    \
                       : refbn_combine_plain(in, tile, of, pivot, lane, by_groups, out, NULL, check, terms);   \
        if (direct && !ends)                                                                                   \
            return refbn_combine_double(in, tile, of, pivot, lane, by_groups, out, NULL, check, 0, terms, 1);  \
        return ends ? refbn_combine_double(in, tile, of, pivot, lane, by_groups, out, ends, check, odd, terms, 0) \
                    : refbn_combine_double(in, tile, of, pivot, lane, by_groups, out, NULL, check, 0, terms, 0);
    switch (of->terms) {
        REFBN_VARIANT(1)
        REFBN_VARIANT(2)
    default: REFBN_VARIANT(3)
    }
#undef REFBN_VARIANT
}

/* ---- combinations from a bias on ---- */

#define REFBN_NAME(name) name##_f32
#define REFBN_REAL float
#define REFBN_VECTOR refbn_w
#define REFBN_BITS refbn_wi
#define REFBN_FUSE refbn_multiply_add_w
#define REFBN_END refbn_end_w
#include "biased.h"

#define REFBN_NAME(name) name##_f64
#define REFBN_REAL double
#define REFBN_VECTOR refbn_v
#define REFBN_BITS refbn_vi
#define REFBN_FUSE refbn_multiply_add
#define REFBN_END refbn_end
#include "biased.h"

#endif
