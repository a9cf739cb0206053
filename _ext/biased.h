/* One affine combination in numbers of the output's own format, included by rungs.h for binary32 and binary64.
 *
 * V = c + sum a_k t_k, with each a_k in two parts, is added up from a bias B on that is at least twice the sum
 * of all |a_k t_k| and |c|. So every partial sum h lies in B/2 ... 3B/2; let U be the power of two with U <= 3B/2
 * < 2 U. As h is larger than what is added to it, the difference to its successor is exact (FastTwoSum), and so
 * is what a fused multiply-add finds the product less this difference to be, but for its own rounding:
 *
 *   h' = fma(a, t, h)   d = h' - h   l' = l + fma(a, t, -d)
 *
 * In the end V = (h - B) + (l + sum a_lo t + rest of c), the first difference exact (Sterbenz). The test is that
 * of all rungs: both ends of the enclosure must be the same bits, and adding (l -+ e) to it is the only rounding
 * of an end.
 *
 * Error, of everything but the coefficients, with K terms and u the unit roundoff: each product's rest is at most
 * u U, as is the rest of the constant, and all a_lo t together are at most 2/3 u U. A rounding costs u times the
 * power of two below its result. There are those of the rests (u^2 U each), K - 1 of their sums (2 u^2 U each),
 * K of adding an a_lo t (u^2 U if K = 1, else 2 u^2 U), that of the rest of the constant less or plus e (u^2 U + u
 * e), and one of adding that (2 u^2 U, 4 u^2 U if K = 3, and u e): (5, 11, 18) u^2 U + 2 u e. (K^2 + 3 K + 3) u^2 U
 * pays for the constants' own roundings besides, and e is multiplied by 1 + 2^-20.
 *
 * REFBN_REAL is the format, REFBN_VECTOR its vector, REFBN_BITS the same as integers, REFBN_FUSE its fused
 * multiply-add, REFBN_END its refbn_end, REFBN_NAME(name) a name for it.
 */

/* Constants of the lanes; those of a lane are all 0 where V is exactly 0. */
typedef struct {
    REFBN_REAL hi[3][REFBN_LANES], lo[3][REFBN_LANES];
    REFBN_REAL start[REFBN_LANES], bias[REFBN_LANES]; /* B + c, B */
    REFBN_REAL low[REFBN_LANES], high[REFBN_LANES];   /* the rest of c, less and plus e */
} REFBN_NAME(refbn_biased);

/* The constants of some lanes, or one lane's in all of them, in registers. */
static REFBN_INLINE REFBN_VECTOR REFBN_NAME(refbn_biased_get)(const REFBN_REAL *lanes, int lane, const int by_groups)
{
    if (!by_groups)
        return (REFBN_VECTOR){0} + *lanes;
    REFBN_VECTOR a;
    __builtin_memcpy(&a, lanes + lane, sizeof a);
    return a;
}

static REFBN_INLINE REFBN_VECTOR REFBN_NAME(refbn_biased_load)(const char *from)
{
    REFBN_VECTOR a;
    __builtin_memcpy(&a, from, sizeof a);
    return a;
}

/* Combine, test and write a tile; `lane` is the first one of the turn, `lanes` those in use by groups. Returns bits of
 * the blocks (refbn_block) with an undecided element. */
static REFBN_INLINE uint64_t REFBN_NAME(refbn_combine_biased)(const refbn_rows *const *in, const refbn_tile *tile,
                                                              const REFBN_NAME(refbn_biased) *of, int lane, int lanes,
                                                              const refbn_rows *out, const int terms,
                                                              const int by_groups, const int stream)
{
    enum { SIZE = sizeof(REFBN_REAL), WIDTH = sizeof(REFBN_VECTOR) / SIZE, MOST = 2 };
    const int unroll = MOST, sets = by_groups ? MOST : 1; /* of constants */
    const int runs = by_groups ? 1 : tile->runs;
    const ptrdiff_t ahead[3] = {refbn_distance(in[0], tile), terms > 1 ? refbn_distance(in[1], tile) : 0,
                                terms > 2 ? refbn_distance(in[2], tile) : 0};
    const ptrdiff_t ahead_to_write = refbn_distance(out, tile);
    const REFBN_VECTOR one = (REFBN_VECTOR)refbn_opaque((refbn_v)((REFBN_VECTOR){0} + 1)); /* see rungs.h */
    uint64_t undecided = 0;
    for (int next = 0; next < tile->columns; next += unroll * WIDTH) {
        const int column = refbn_column(tile, next, unroll * WIDTH);
        REFBN_VECTOR hi[3][MOST], lo[3][MOST], start[MOST], bias[MOST], low[MOST], high[MOST];
        REFBN_BITS used[MOST];
#pragma GCC unroll 2
        for (int j = 0; j < sets; j++) {
            const int at = column + j * WIDTH;
#pragma GCC unroll 3
            for (int k = 0; k < terms; k++) {
                hi[k][j] = REFBN_NAME(refbn_biased_get)(of->hi[k] + lane, at, by_groups);
                lo[k][j] = REFBN_NAME(refbn_biased_get)(of->lo[k] + lane, at, by_groups);
            }
            start[j] = REFBN_NAME(refbn_biased_get)(of->start + lane, at, by_groups);
            bias[j] = REFBN_NAME(refbn_biased_get)(of->bias + lane, at, by_groups);
            low[j] = REFBN_NAME(refbn_biased_get)(of->low + lane, at, by_groups);
            high[j] = REFBN_NAME(refbn_biased_get)(of->high + lane, at, by_groups);
            for (int k = 0; by_groups && k < WIDTH; k++)
                used[j][k] = at + k < lanes ? -1 : 0;
        }
        uint64_t block = 1;
        for (int run = 0; run < runs; run++) {
            const char *data[3] = {NULL, NULL, NULL};
#pragma GCC unroll 3
            for (int k = 0; k < terms; k++)
                data[k] = in[k]->data + run * in[k]->run + column * SIZE;
            char *to = out->data + run * out->run + column * SIZE;
            for (int row = 0; row < tile->rows; block <<= 1) {
                const int left = tile->rows - row < REFBN_FEW ? tile->rows - row : REFBN_FEW;
                row += left;
                const int with_tail = left + (!by_groups && row == tile->rows && tile->tail > 0);
                REFBN_BITS bad[MOST] = {{0}};
                for (int n = 0; n < with_tail; n++) {
                    if (!by_groups && n == left) {
                        const int back = refbn_back(tile) * SIZE;
#pragma GCC unroll 3
                        for (int k = 0; k < terms; k++)
                            data[k] -= back;
                        to -= back;
                    }
#pragma GCC unroll 3
                    for (int k = 0; k < terms; k++)
                        refbn_ahead(data[k], ahead[k], unroll * (int)sizeof(REFBN_VECTOR));
                    if (!stream)
                        refbn_ahead_to_write(to, ahead_to_write, unroll * (int)sizeof(REFBN_VECTOR));
#pragma GCC unroll 2
                    for (int j = 0; j < unroll; j++) {
                        const int set = by_groups ? j : 0;
                        REFBN_VECTOR t[3], h = start[set], l = {0};
#pragma GCC unroll 3
                        for (int k = 0; k < terms; k++) {
                            t[k] = REFBN_NAME(refbn_biased_load)(data[k] + j * (int)sizeof(REFBN_VECTOR));
                            const REFBN_VECTOR sum = REFBN_FUSE(hi[k][set], t[k], h);
                            const REFBN_VECTOR rest = REFBN_FUSE(hi[k][set], t[k], h - sum);
                            l = k == 0 ? rest : l + rest;
                            h = sum;
                        }
#pragma GCC unroll 3
                        for (int k = 0; k < terms; k++)
                            l = REFBN_FUSE(lo[k][set], t[k], l);
                        h -= bias[set];
                        const REFBN_VECTOR from = REFBN_END(h, l + low[set], one);
                        bad[j] |= (REFBN_BITS)from ^ (REFBN_BITS)REFBN_END(h, l + high[set], one);
                        if (stream)
                            refbn_stream(to + j * (int)sizeof from, (refbn_v)from);
                        else
                            __builtin_memcpy(to + j * (int)sizeof from, &from, sizeof from);
                    }
#pragma GCC unroll 3
                    for (int k = 0; k < terms; k++)
                        data[k] += in[k]->stride;
                    to += out->stride;
                }
                if (by_groups)
                    bad[0] &= used[0], bad[1] &= used[1];
                if (refbn_any((refbn_vi)(bad[0] | bad[1])))
                    undecided |= block;
            }
        }
    }
    return undecided;
}

/* Which variant is wanted; each is a loop of its own. */
static uint64_t REFBN_NAME(refbn_combine_tile_biased)(const refbn_rows *const *in, const refbn_tile *tile,
                                                      const REFBN_NAME(refbn_biased) *of, int lane, int lanes,
                                                      const refbn_rows *out, int terms, int by_groups, int stream)
{
#define REFBN_VARIANT(terms, by_groups, stream) \
    case terms << 2 | by_groups << 1 | stream:  \
        return REFBN_NAME(refbn_combine_biased)(in, tile, of, lane, lanes, out, terms, by_groups, stream);
    switch (terms << 2 | by_groups << 1 | stream) {
        REFBN_VARIANT(1, 0, 0)
        REFBN_VARIANT(1, 0, 1)
        REFBN_VARIANT(1, 1, 0)
        REFBN_VARIANT(1, 1, 1)
        REFBN_VARIANT(2, 0, 0)
        REFBN_VARIANT(2, 0, 1)
        REFBN_VARIANT(2, 1, 0)
        REFBN_VARIANT(2, 1, 1)
        REFBN_VARIANT(3, 0, 0)
        REFBN_VARIANT(3, 0, 1)
        REFBN_VARIANT(3, 1, 0)
    default: REFBN_VARIANT(3, 1, 1)
    }
#undef REFBN_VARIANT
}

#undef REFBN_REAL
#undef REFBN_VECTOR
#undef REFBN_BITS
#undef REFBN_FUSE
#undef REFBN_END
#undef REFBN_NAME
