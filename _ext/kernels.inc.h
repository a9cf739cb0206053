/* The passes on one slab, in one arithmetic. kernels.c includes this file once for each: f64, dd, xd.
 *
 * Every function returns whether the slab's exponents are unfit for the arithmetic (see `refbn_scan`);
 * kernels.c then runs the slab again in the wide one. Lane by lane, so for one group or for many alike:
 *
 *   training   1. a sweep of sums over (x, dy, x_dot)   2. a sweep that writes
 *   frozen     the same; passes without sums have the second sweep only
 *
 * Labels such as (K3) are those of the textbook, refbn/reference.
 */
#define NAME(verb) REFBN_JOIN(refbn_##verb, ARITHMETIC)
#define OP(name) REFBN_JOIN(REAL, name)

#define LANES OP(lanes)
#define CENTERS OP(centers)
#define TOTALS OP(totals)
#define AT(lanes) OP(at)(&(lanes), lane)
#define PUT(lanes, value) OP(put)(&(lanes), lane, (value))
#define ADD OP(add)
#define SUB OP(sub)
#define MUL OP(mul)
#define EACH_LANE REFBN_EACH_LANE(slab->width)
#define EACH_STEP(tile)                                                                                      \
    for (int step = 0, k0 = 0; step < (tile).steps; step++, k0 += REFBN_LANES)

#if GUARDED
#define SCAN(exponents, block, steps) refbn_scan(exponents, slab, block, steps)
#define UNFIT(call, exponents) refbn_unfit(call, exponents)
#define VECTOR_FITS(value) refbn_within(value, 0x1p-100, 0x1p100)
#else
#define SCAN(exponents, block, steps) ((void)(exponents))
#define UNFIT(call, exponents) ((void)(call), (void)(exponents), 0)
#define VECTOR_FITS(value) ((void)(value), 1)
#endif

/* ---- vectors and the state
 * ------------------------------------------------------------------------------------- */

static ptrdiff_t NAME(group)(const refbn_call *call, const refbn_slab *slab, int lane)
{
    return slab->group + (call->by_groups && lane < slab->groups ? lane : 0);
}

static int NAME(get)(const refbn_call *call, const refbn_slab *slab, const refbn_vector *vector,
                     LANES *values)
{
    int unfit = 0;
    double value = 0.0;
    EACH_LANE {
        if (lane == 0 || call->by_groups)
            value = refbn_get(vector, NAME(group)(call, slab, lane));
        unfit |= !VECTOR_FITS(value);
        PUT(*values, OP(from)(value));
    }
    return unfit;
}

static void NAME(set)(const refbn_slab *slab, const refbn_vector *vector, const LANES *values)
{
    for (int lane = 0; lane < slab->groups; lane++)
        refbn_set(vector, slab->group + lane, OP(round)(AT(*values), vector->format));
}

typedef struct {
    CENTERS mean;
    LANES var, invstd; /* invstd is NaN where var + eps == 0 (rule R2) */
} NAME(statistics);

/* (S4), and NaN for the infinity that nothing can be computed with */
static REFBN_INLINE REAL NAME(invstd)(REAL var, double eps)
{
    const REAL q = OP(add_double)(var, eps), one = OP(from)(1.0);
    return OP(exceeds)(q, OP(from)(0.0)) ? OP(over)(one, OP(root)(q)) : OP(from)(refbn_nan());
}

/* R2: infinite where q is 0. */
static void NAME(set_invstd)(const refbn_call *call, const refbn_slab *slab,
                             const NAME(statistics) *statistics)
{
    for (int lane = 0; lane < slab->groups; lane++) {
        const int vanishes = OP(is_zero)(OP(add_double)(AT(statistics->var), call->eps));
        const double invstd = OP(round)(AT(statistics->invstd), call->invstd.format);
        refbn_set(&call->invstd, slab->group + lane, vanishes ? refbn_infinity() : invstd);
    }
}

static void NAME(save)(const refbn_call *call, const refbn_slab *slab, const NAME(statistics) *statistics)
{
    for (int lane = 0; lane < slab->groups; lane++) {
        double *row = call->state + (slab->group + lane) * REFBN_STATE_SIZE;
        row[REFBN_STATE_ARITHMETIC] = LEVEL;
        row[REFBN_STATE_COUNT] = (double)call->geometry.count;
        row[REFBN_STATE_EPS] = call->eps;
        OP(center_save)(row + REFBN_STATE_MEAN, OP(center_at)(&statistics->mean, lane));
        OP(save)(row + REFBN_STATE_VAR, AT(statistics->var));
        OP(save)(row + REFBN_STATE_INVSTD, AT(statistics->invstd));
    }
}

/* ---- training: statistics
 * -------------------------------------------------------------------------------------- */

/* The lanes' totals, or the group's total in every lane. */
static void NAME(collect)(const refbn_call *call, const refbn_slab *slab, TOTALS *totals, LANES *values)
{
    if (!call->by_groups)
        for (int lane = 1; lane < slab->width; lane++)
            OP(total_join)(totals, 0, lane);
    EACH_LANE PUT(*values, OP(total_value)(totals, call->by_groups ? lane : 0));
}

/* mean(x - pivot) and mean((x - pivot)^2), over `tiles` tiles spread evenly over the group. */
static int NAME(moments)(const refbn_call *call, const refbn_slab *slab, const CENTERS *pivot,
                         ptrdiff_t tiles, LANES *mean, LANES *square)
{
    double x[REFBN_TILE] = {0.0}, weight[REFBN_TILE];
    TOTALS total = {0}, total_square = {0};
    refbn_exponents exponents = {{0}};
    const ptrdiff_t all_tiles = refbn_tiles(call);
    ptrdiff_t count = 0;
    for (int k = 0; k < REFBN_TILE; k++)
        weight[k] = 1.0;
    for (ptrdiff_t index = 0; index < tiles; index++) {
        const refbn_tile tile = refbn_tile_at(call, index * all_tiles / tiles);
        LANES sum = {0}, sum_square = {0};
        refbn_load(call, slab, tile, &call->x, x);
        SCAN(&exponents, x, tile.steps);
        if (!call->by_groups)
            for (ptrdiff_t k = tile.count; k < REFBN_TILE; k++)
                weight[k] = 0.0;
        EACH_STEP(tile) EACH_LANE {
            const REAL difference = OP(diff)(x[k0 + lane], OP(center_at)(pivot, lane));
            const REAL d = OP(times_exact)(difference, weight[k0 + lane]);
            PUT(sum, ADD(AT(sum), d));
            PUT(sum_square, ADD(AT(sum_square), MUL(d, d)));
        }
        OP(total_add)(&total, &sum, slab->width);
        OP(total_add)(&total_square, &sum_square, slab->width);
        count += tile.count;
    }
    NAME(collect)(call, slab, &total, mean);
    NAME(collect)(call, slab, &total_square, square);
    EACH_LANE {
        PUT(*mean, OP(over)(AT(*mean), OP(from)((double)count)));
        PUT(*square, OP(over)(AT(*square), OP(from)((double)count)));
    }
    return UNFIT(call, &exponents);
}

/* (S1) to (S4). The pivot is first x's first element, then the mean of a sample about it, so that a constant
 * group has exactly d = 0. A full sweep about the pivot gives (S1) mean = pivot + mean(x - pivot) and (S3)
 * var = mean((x - pivot)^2) - mean(x - pivot)^2, which is accepted once |mean(x - pivot)| <= std / 2;
 * otherwise the mean just found is the next pivot. */
static int NAME(compute_statistics)(const refbn_call *call, const refbn_slab *slab, double eps,
                                    NAME(statistics) *statistics)
{
    const ptrdiff_t tiles = refbn_tiles(call), sample = tiles < 4 ? tiles : 4;
    double x[REFBN_TILE] = {0.0};
    LANES mean, square;
    refbn_tile first = refbn_tile_at(call, 0);
    first.count = 1;
    first.steps = 1;
    refbn_load(call, slab, first, &call->x, x);
    EACH_LANE OP(center_put)(&statistics->mean, lane, OP(center_from)(x[call->by_groups ? lane : 0]));
    if (NAME(moments)(call, slab, &statistics->mean, sample, &mean, &square))
        return 1;
    for (int attempt = 0, repeat = 1; repeat && attempt < 3; attempt++) {
        EACH_LANE OP(center_put)(&statistics->mean, lane,
                                 OP(center_add)(OP(center_at)(&statistics->mean, lane), AT(mean)));
        if (NAME(moments)(call, slab, &statistics->mean, tiles, &mean, &square))
            return 1;
        repeat = 0;
        EACH_LANE {
            const REAL shift = MUL(AT(mean), AT(mean)), var = SUB(AT(square), shift);
            PUT(statistics->var, var);
            repeat |= lane < slab->groups && OP(exceeds)(OP(times_exact)(shift, 4.0), var);
        }
    }
    EACH_LANE {
        OP(center_put)(&statistics->mean, lane,
                       OP(center_add)(OP(center_at)(&statistics->mean, lane), AT(mean)));
        PUT(statistics->invstd, NAME(invstd)(AT(statistics->var), eps));
    }
    return 0;
}

/* The statistics of the forward pass, from the state; computed again where that was in too coarse an
 * arithmetic. */
static int NAME(recall)(const refbn_call *call, const refbn_slab *slab, NAME(statistics) *statistics)
{
    int coarse = 0;
    EACH_LANE {
        const double *row = call->state + NAME(group)(call, slab, lane) * REFBN_STATE_SIZE;
        if (row[REFBN_STATE_ARITHMETIC] == REFBN_XD && LEVEL != REFBN_XD)
            return 1;
        coarse |= row[REFBN_STATE_ARITHMETIC] == REFBN_PLAIN && LEVEL != REFBN_PLAIN;
        OP(center_put)(&statistics->mean, lane, OP(center_recall)(row + REFBN_STATE_MEAN));
        PUT(statistics->var, OP(recall)(row + REFBN_STATE_VAR));
        PUT(statistics->invstd, OP(recall)(row + REFBN_STATE_INVSTD));
    }
    const double eps = call->state[slab->group * REFBN_STATE_SIZE + REFBN_STATE_EPS];
    return coarse ? NAME(compute_statistics)(call, slab, eps, statistics) : 0;
}

/* ---- training: the sums that the derivatives need
 * ----------------------------------------------------------------- */

/* The factors of a projection P u = u - mean - xhat * along (P1): mean = mean(u), along = mean(xhat u). */
typedef struct {
    LANES mean, along;
} NAME(projection);

static REFBN_INLINE REAL NAME(project)(double u, REAL xhat, const NAME(projection) *factors, int lane)
{
    return SUB(OP(add_double)(OP(neg)(AT(factors->mean)), u), MUL(xhat, AT(factors->along)));
}

/* From sum(u) and sum(u d). A constant u is projected to 0, exactly (P2). */
static void NAME(projection_of)(const refbn_call *call, const refbn_slab *slab, const refbn_constancy *u,
                                const LANES *sum, const LANES *sum_d, const LANES *invstd,
                                NAME(projection) *factors)
{
    const REAL count = OP(from)((double)call->geometry.count), zero = OP(from)(0.0);
    EACH_LANE {
        PUT(factors->mean, u->varies[lane] ? OP(over)(AT(*sum), count) : OP(from)(u->first[lane]));
        PUT(factors->along, MUL(AT(*invstd), u->varies[lane] ? OP(over)(AT(*sum_d), count) : zero));
    }
}

/* sum(u) and sum(u (x - mean)) */
static int NAME(sums)(const refbn_call *call, const refbn_slab *slab, const refbn_tensor *tensor,
                      const CENTERS *mean, refbn_constancy *constancy, LANES *sum_u, LANES *sum_ud)
{
    double x[REFBN_TILE] = {0.0}, u[REFBN_TILE] = {0.0};
    TOTALS total_u = {0}, total_ud = {0};
    refbn_exponents exponents_x = {{0}}, exponents_u = {{0}};
    REFBN_EACH_TILE(call) {
        const refbn_tile tile = refbn_tile_at(call, tile_index);
        LANES tile_u = {0}, tile_ud = {0};
        refbn_load(call, slab, tile, &call->x, x);
        refbn_load(call, slab, tile, tensor, u);
        SCAN(&exponents_x, x, tile.steps);
        SCAN(&exponents_u, u, tile.steps);
        refbn_compare(call, slab, tile, constancy, u);
        EACH_STEP(tile) EACH_LANE {
            const REAL d = OP(diff)(x[k0 + lane], OP(center_at)(mean, lane));
            PUT(tile_u, OP(add_double)(AT(tile_u), u[k0 + lane]));
            PUT(tile_ud, ADD(AT(tile_ud), OP(mul_double)(d, u[k0 + lane])));
        }
        OP(total_add)(&total_u, &tile_u, slab->width);
        OP(total_add)(&total_ud, &tile_ud, slab->width);
    }
    NAME(collect)(call, slab, &total_u, sum_u);
    NAME(collect)(call, slab, &total_ud, sum_ud);
    return UNFIT(call, &exponents_x) | UNFIT(call, &exponents_u);
}

/* The five sums of the second order, in one sweep over (x, g = dy, u = x_dot). */
typedef struct {
    LANES g, gd, u, ud, ug;
    refbn_constancy g_is, u_is;
} NAME(second_sums);

static int NAME(sum_second)(const refbn_call *call, const refbn_slab *slab, const CENTERS *mean,
                            NAME(second_sums) *sums)
{
    double x[REFBN_TILE] = {0.0}, g[REFBN_TILE] = {0.0}, u[REFBN_TILE] = {0.0};
    TOTALS total_g = {0}, total_gd = {0}, total_u = {0}, total_ud = {0}, total_ug = {0};
    refbn_exponents exponents_x = {{0}}, exponents_g = {{0}}, exponents_u = {{0}};
    sums->g_is = sums->u_is = (refbn_constancy){.settled = 0};
    REFBN_EACH_TILE(call) {
        const refbn_tile tile = refbn_tile_at(call, tile_index);
        LANES tile_g = {0}, tile_gd = {0}, tile_u = {0}, tile_ud = {0}, tile_ug = {0};
        refbn_load(call, slab, tile, &call->x, x);
        refbn_load(call, slab, tile, &call->dy, g);
        refbn_load(call, slab, tile, &call->x_dot, u);
        SCAN(&exponents_x, x, tile.steps);
        SCAN(&exponents_g, g, tile.steps);
        SCAN(&exponents_u, u, tile.steps);
        refbn_compare(call, slab, tile, &sums->g_is, g);
        refbn_compare(call, slab, tile, &sums->u_is, u);
        EACH_STEP(tile) EACH_LANE {
            const REAL d = OP(diff)(x[k0 + lane], OP(center_at)(mean, lane));
            PUT(tile_g, OP(add_double)(AT(tile_g), g[k0 + lane]));
            PUT(tile_gd, ADD(AT(tile_gd), OP(mul_double)(d, g[k0 + lane])));
            PUT(tile_u, OP(add_double)(AT(tile_u), u[k0 + lane]));
            PUT(tile_ud, ADD(AT(tile_ud), OP(mul_double)(d, u[k0 + lane])));
            PUT(tile_ug, ADD(AT(tile_ug), OP(product)(u[k0 + lane], g[k0 + lane])));
        }
        OP(total_add)(&total_g, &tile_g, slab->width);
        OP(total_add)(&total_gd, &tile_gd, slab->width);
        OP(total_add)(&total_u, &tile_u, slab->width);
        OP(total_add)(&total_ud, &tile_ud, slab->width);
        OP(total_add)(&total_ug, &tile_ug, slab->width);
    }
    NAME(collect)(call, slab, &total_g, &sums->g);
    NAME(collect)(call, slab, &total_gd, &sums->gd);
    NAME(collect)(call, slab, &total_u, &sums->u);
    NAME(collect)(call, slab, &total_ud, &sums->ud);
    NAME(collect)(call, slab, &total_ug, &sums->ug);
    return UNFIT(call, &exponents_x) | UNFIT(call, &exponents_g) | UNFIT(call, &exponents_u);
}

/* ---- training: the passes
 * ------------------------------------------------------------------------------------------ */

static int NAME(forward)(const refbn_call *call, const refbn_slab *slab)
{
    NAME(statistics) statistics;
    LANES gamma, beta;
    int unfit = NAME(get)(call, slab, &call->gamma, &gamma) | NAME(get)(call, slab, &call->beta, &beta);
    if (unfit || NAME(compute_statistics)(call, slab, call->eps, &statistics))
        return 1;
    double x[REFBN_TILE] = {0.0}, y[REFBN_TILE];
    LANES scale;
    EACH_LANE PUT(scale, MUL(AT(gamma), AT(statistics.invstd)));
    REFBN_EACH_TILE(call) {
        const refbn_tile tile = refbn_tile_at(call, tile_index);
        refbn_load(call, slab, tile, &call->x, x);
        EACH_STEP(tile) EACH_LANE {
            const REAL d = OP(diff)(x[k0 + lane], OP(center_at)(&statistics.mean, lane)); /* (S2) */
            const REAL value = ADD(MUL(d, AT(scale)), AT(beta));                         /* (S5, F1) */
            y[k0 + lane] = OP(round)(value, call->y.format);
        }
        refbn_store(call, slab, tile, &call->y, y);
    }
    NAME(save)(call, slab, &statistics);
    LANES mean;
    EACH_LANE PUT(mean, OP(center_value)(OP(center_at)(&statistics.mean, lane)));
    NAME(set)(slab, &call->mean, &mean);
    NAME(set)(slab, &call->var, &statistics.var);
    NAME(set_invstd)(call, slab, &statistics);
    return 0;
}

static int NAME(backward)(const refbn_call *call, const refbn_slab *slab)
{
    NAME(statistics) statistics;
    NAME(projection) of_dy;
    LANES gamma, sum, sum_d, scale, dgamma;
    refbn_constancy dy_is = {.settled = 0};
    if (NAME(get)(call, slab, &call->gamma, &gamma) || NAME(recall)(call, slab, &statistics) ||
        NAME(sums)(call, slab, &call->dy, &statistics.mean, &dy_is, &sum, &sum_d))
        return 1;
    NAME(projection_of)(call, slab, &dy_is, &sum, &sum_d, &statistics.invstd, &of_dy);
    EACH_LANE {
        const REAL xhat_dy = dy_is.varies[lane] ? AT(sum_d) : OP(from)(0.0);
        PUT(dgamma, MUL(AT(statistics.invstd), xhat_dy)); /* (B4) */
        PUT(scale, MUL(AT(gamma), AT(statistics.invstd)));
    }
    NAME(set)(slab, &call->dgamma, &dgamma);
    NAME(set)(slab, &call->dbeta, &sum); /* (B5) */
    double x[REFBN_TILE] = {0.0}, dy[REFBN_TILE] = {0.0}, dx[REFBN_TILE];
    REFBN_EACH_TILE(call) {
        const refbn_tile tile = refbn_tile_at(call, tile_index);
        refbn_load(call, slab, tile, &call->x, x);
        refbn_load(call, slab, tile, &call->dy, dy);
        EACH_STEP(tile) EACH_LANE {
            const REAL d = OP(diff)(x[k0 + lane], OP(center_at)(&statistics.mean, lane));
            const REAL xhat = MUL(d, AT(statistics.invstd));
            const REAL value = MUL(AT(scale), NAME(project)(dy[k0 + lane], xhat, &of_dy, lane)); /* (B3) */
            dx[k0 + lane] = OP(round)(value, call->dx.format);
        }
        refbn_store(call, slab, tile, &call->dx, dx);
    }
    return 0;
}

static int NAME(jvp)(const refbn_call *call, const refbn_slab *slab)
{
    NAME(statistics) statistics;
    NAME(projection) of_x_dot;
    LANES gamma, gamma_dot, beta_dot, sum, sum_d, scale;
    refbn_constancy x_dot_is = {.settled = 0};
    if (NAME(get)(call, slab, &call->gamma, &gamma) || NAME(get)(call, slab, &call->gamma_dot, &gamma_dot) ||
        NAME(get)(call, slab, &call->beta_dot, &beta_dot) || NAME(recall)(call, slab, &statistics) ||
        NAME(sums)(call, slab, &call->x_dot, &statistics.mean, &x_dot_is, &sum, &sum_d))
        return 1;
    NAME(projection_of)(call, slab, &x_dot_is, &sum, &sum_d, &statistics.invstd, &of_x_dot);
    EACH_LANE PUT(scale, MUL(AT(gamma), AT(statistics.invstd)));
    double x[REFBN_TILE] = {0.0}, x_dot[REFBN_TILE] = {0.0}, y_dot[REFBN_TILE];
    REFBN_EACH_TILE(call) {
        const refbn_tile tile = refbn_tile_at(call, tile_index);
        refbn_load(call, slab, tile, &call->x, x);
        refbn_load(call, slab, tile, &call->x_dot, x_dot);
        EACH_STEP(tile) EACH_LANE {
            const REAL d = OP(diff)(x[k0 + lane], OP(center_at)(&statistics.mean, lane));
            const REAL xhat = MUL(d, AT(statistics.invstd));
            const REAL projected = NAME(project)(x_dot[k0 + lane], xhat, &of_x_dot, lane);
            const REAL moved = MUL(AT(scale), projected); /* (J4) */
            const REAL value = ADD(ADD(moved, MUL(AT(gamma_dot), xhat)), AT(beta_dot)); /* (J5) */
            y_dot[k0 + lane] = OP(round)(value, call->y.format);
        }
        refbn_store(call, slab, tile, &call->y, y_dot);
    }
    return 0;
}

/* double_backward, and hvp, which is the same without ddy (call->y.data == NULL): u is ddx or x_dot, g is dy.
 * */
static int NAME(second_order)(const refbn_call *call, const refbn_slab *slab)
{
    const int wants_ddy = call->y.data != NULL;
    NAME(statistics) statistics;
    NAME(second_sums) sums;
    NAME(projection) of_g, of_u;
    LANES gamma, ddgamma, ddbeta = {0};
    if (NAME(get)(call, slab, &call->gamma, &gamma) || NAME(get)(call, slab, &call->gamma_dot, &ddgamma) ||
        (wants_ddy && NAME(get)(call, slab, &call->beta_dot, &ddbeta)) ||
        NAME(recall)(call, slab, &statistics) || NAME(sum_second)(call, slab, &statistics.mean, &sums))
        return 1;
    NAME(projection_of)(call, slab, &sums.g_is, &sums.g, &sums.gd, &statistics.invstd, &of_g);
    NAME(projection_of)(call, slab, &sums.u_is, &sums.u, &sums.ud, &statistics.invstd, &of_u);
    LANES scale, on_pu, on_pg, on_xhat, dgamma;
    const REAL count = OP(from)((double)call->geometry.count);
    EACH_LANE {
        const REAL r = AT(statistics.invstd);
        REAL u_pg = SUB(SUB(OP(over)(AT(sums.ug), count), MUL(AT(of_u.mean), AT(of_g.mean))),
                        MUL(AT(of_u.along), AT(of_g.along))); /* (P6): mean(u P g) */
        if (!sums.u_is.varies[lane] || !sums.g_is.varies[lane])
            u_pg = MUL(AT(of_u.along), AT(of_g.along)); /* (P2): 0, or NaN if the other one is */
        PUT(dgamma, MUL(r, MUL(count, u_pg))); /* (D3, H2) */
        PUT(scale, MUL(AT(gamma), r));
        const REAL minus_gamma_r2 = OP(neg)(MUL(AT(scale), r));
        PUT(on_pu, MUL(minus_gamma_r2, AT(of_g.along)));                                     /* (D5) */
        PUT(on_pg, ADD(MUL(minus_gamma_r2, AT(of_u.along)), MUL(AT(ddgamma), r)));
        PUT(on_xhat, MUL(minus_gamma_r2, u_pg));
    }
    NAME(set)(slab, &call->dgamma, &dgamma);
    double x[REFBN_TILE] = {0.0}, g[REFBN_TILE] = {0.0}, u[REFBN_TILE] = {0.0};
    double ddy[REFBN_TILE], dx[REFBN_TILE];
    REFBN_EACH_TILE(call) {
        const refbn_tile tile = refbn_tile_at(call, tile_index);
        refbn_load(call, slab, tile, &call->x, x);
        refbn_load(call, slab, tile, &call->dy, g);
        refbn_load(call, slab, tile, &call->x_dot, u);
        EACH_STEP(tile) EACH_LANE {
            const REAL d = OP(diff)(x[k0 + lane], OP(center_at)(&statistics.mean, lane));
            const REAL xhat = MUL(d, AT(statistics.invstd));
            const REAL pu = NAME(project)(u[k0 + lane], xhat, &of_u, lane);
            const REAL pg = NAME(project)(g[k0 + lane], xhat, &of_g, lane);
            const REAL kernel = ADD(MUL(AT(on_pg), pg), MUL(AT(on_pu), pu));
            dx[k0 + lane] = OP(round)(ADD(kernel, MUL(AT(on_xhat), xhat)), call->dx.format); /* (D5, H1) */
            const REAL value = ADD(ADD(MUL(AT(scale), pu), MUL(AT(ddgamma), xhat)), AT(ddbeta)); /* (D2) */
            ddy[k0 + lane] = OP(round)(value, call->y.format); /* hvp drops it */
        }
        refbn_store(call, slab, tile, &call->dx, dx);
        if (wants_ddy)
            refbn_store(call, slab, tile, &call->y, ddy);
    }
    return 0;
}

/* (S8, S9) */
static int NAME(running_update)(const refbn_call *call, const refbn_slab *slab)
{
    LANES mean, var, new_mean, new_var;
    if (NAME(get)(call, slab, &call->mean, &mean) || NAME(get)(call, slab, &call->var, &var))
        return 1;
    const REAL on_new = OP(from_two)(call->weight_new[0], call->weight_new[1]);
    const REAL on_old = OP(from_two)(call->weight_old[0], call->weight_old[1]);
    if (!VECTOR_FITS(call->weight_new[0]) || !VECTOR_FITS(call->weight_old[0]))
        return 1;
    EACH_LANE {
        const double *row = call->state + NAME(group)(call, slab, lane) * REFBN_STATE_SIZE;
        if (row[REFBN_STATE_ARITHMETIC] == REFBN_XD && LEVEL != REFBN_XD)
            return 1;
        const double count = row[REFBN_STATE_COUNT];
        const REAL batch_mean = OP(center_value)(OP(center_recall)(row + REFBN_STATE_MEAN));
        REAL batch_var = OP(recall)(row + REFBN_STATE_VAR);
        if (call->unbiased)
            batch_var = OP(over)(OP(mul_double)(batch_var, count), OP(from)(count - 1.0));
        PUT(new_mean, ADD(MUL(on_new, batch_mean), MUL(on_old, AT(mean))));
        PUT(new_var, ADD(MUL(on_new, batch_var), MUL(on_old, AT(var))));
    }
    NAME(set)(slab, &call->dmean, &new_mean);
    NAME(set)(slab, &call->dvar, &new_var);
    return 0;
}

/* ---- frozen statistics
 * ---------------------------------------------------------------------------------------- */

static int NAME(recall_frozen)(const refbn_call *call, const refbn_slab *slab, NAME(statistics) *frozen)
{
    int unfit = 0;
    EACH_LANE {
        const double *row = call->state + NAME(group)(call, slab, lane) * REFBN_STATE_SIZE;
        const double mean = row[REFBN_STATE_MEAN], var = row[REFBN_STATE_VAR], eps = row[REFBN_STATE_EPS];
        OP(center_put)(&frozen->mean, lane, OP(center_from)(mean));
        PUT(frozen->var, OP(from)(var));
        PUT(frozen->invstd, NAME(invstd)(OP(from)(var), eps));
        unfit |= !refbn_within(mean, 0x1p-149, 0x1p128) || !refbn_within(var, 0x1p-149, 0x1p128) ||
                 !refbn_within(var + eps, 0x1p-149, 0x1p200);
    }
    return unfit && LEVEL != REFBN_XD;
}

static int NAME(inference)(const refbn_call *call, const refbn_slab *slab)
{
    NAME(statistics) frozen;
    LANES gamma, beta, scale;
    int unfit = NAME(get)(call, slab, &call->gamma, &gamma) | NAME(get)(call, slab, &call->beta, &beta);
    for (int lane = 0; lane < slab->groups; lane++) { /* exactly what was given, whatever the arithmetic */
        double *row = call->state + (slab->group + lane) * REFBN_STATE_SIZE;
        row[REFBN_STATE_ARITHMETIC] = LEVEL;
        row[REFBN_STATE_COUNT] = (double)call->geometry.count;
        row[REFBN_STATE_EPS] = call->eps;
        refbn_dd_save(row + REFBN_STATE_MEAN, refbn_dd_from(refbn_get(&call->mean, slab->group + lane)));
        refbn_dd_save(row + REFBN_STATE_VAR, refbn_dd_from(refbn_get(&call->var, slab->group + lane)));
        refbn_dd_save(row + REFBN_STATE_INVSTD, refbn_dd_from(0.0));
    }
    if (unfit || NAME(recall_frozen)(call, slab, &frozen))
        return 1;
    EACH_LANE PUT(scale, MUL(AT(gamma), AT(frozen.invstd)));
    double x[REFBN_TILE] = {0.0}, y[REFBN_TILE];
    refbn_exponents exponents = {{0}};
    REFBN_EACH_TILE(call) {
        const refbn_tile tile = refbn_tile_at(call, tile_index);
        refbn_load(call, slab, tile, &call->x, x);
        SCAN(&exponents, x, tile.steps);
        EACH_STEP(tile) EACH_LANE {
            const REAL d = OP(diff)(x[k0 + lane], OP(center_at)(&frozen.mean, lane));
            y[k0 + lane] = OP(round)(ADD(MUL(d, AT(scale)), AT(beta)), call->y.format); /* (I1) */
        }
        refbn_store(call, slab, tile, &call->y, y);
    }
    NAME(set_invstd)(call, slab, &frozen);
    return UNFIT(call, &exponents);
}

/* sum(dy), sum(dy xhat) and, if the call has x_dot, sum(dy x_dot) */
static int NAME(frozen_sums)(const refbn_call *call, const refbn_slab *slab, const NAME(statistics) *frozen,
                             LANES *sum, LANES *sum_xhat, LANES *sum_x_dot)
{
    double x[REFBN_TILE] = {0.0}, dy[REFBN_TILE] = {0.0}, x_dot[REFBN_TILE] = {0.0};
    TOTALS total = {0}, total_d = {0}, total_x_dot = {0};
    refbn_exponents exponents_x = {{0}}, exponents_dy = {{0}}, exponents_x_dot = {{0}};
    REFBN_EACH_TILE(call) {
        const refbn_tile tile = refbn_tile_at(call, tile_index);
        LANES tile_dy = {0}, tile_d = {0}, tile_x_dot = {0};
        refbn_load(call, slab, tile, &call->x, x);
        refbn_load(call, slab, tile, &call->dy, dy);
        SCAN(&exponents_x, x, tile.steps);
        SCAN(&exponents_dy, dy, tile.steps);
        EACH_STEP(tile) EACH_LANE {
            const REAL d = OP(diff)(x[k0 + lane], OP(center_at)(&frozen->mean, lane));
            PUT(tile_dy, OP(add_double)(AT(tile_dy), dy[k0 + lane]));
            PUT(tile_d, ADD(AT(tile_d), OP(mul_double)(d, dy[k0 + lane])));
        }
        if (call->x_dot.data) {
            refbn_load(call, slab, tile, &call->x_dot, x_dot);
            SCAN(&exponents_x_dot, x_dot, tile.steps);
            EACH_STEP(tile) EACH_LANE
                PUT(tile_x_dot, ADD(AT(tile_x_dot), OP(product)(dy[k0 + lane], x_dot[k0 + lane])));
        }
        OP(total_add)(&total, &tile_dy, slab->width);
        OP(total_add)(&total_d, &tile_d, slab->width);
        OP(total_add)(&total_x_dot, &tile_x_dot, slab->width);
    }
    NAME(collect)(call, slab, &total, sum);
    NAME(collect)(call, slab, &total_d, sum_xhat);
    NAME(collect)(call, slab, &total_x_dot, sum_x_dot);
    EACH_LANE PUT(*sum_xhat, MUL(AT(*sum_xhat), AT(frozen->invstd)));
    return UNFIT(call, &exponents_x) | UNFIT(call, &exponents_dy) | UNFIT(call, &exponents_x_dot);
}

/* tensor = factor * dy */
static void NAME(write_scaled_dy)(const refbn_call *call, const refbn_slab *slab, const LANES *factor)
{
    double dy[REFBN_TILE] = {0.0}, dx[REFBN_TILE];
    REFBN_EACH_TILE(call) {
        const refbn_tile tile = refbn_tile_at(call, tile_index);
        refbn_load(call, slab, tile, &call->dy, dy);
        EACH_STEP(tile) EACH_LANE
            dx[k0 + lane] = OP(round)(OP(mul_double)(AT(*factor), dy[k0 + lane]), call->dx.format);
        refbn_store(call, slab, tile, &call->dx, dx);
    }
}

static int NAME(inference_backward)(const refbn_call *call, const refbn_slab *slab)
{
    NAME(statistics) frozen;
    LANES gamma, sum, sum_xhat, unused, scale, dmean, dvar;
    if (NAME(get)(call, slab, &call->gamma, &gamma) || NAME(recall_frozen)(call, slab, &frozen) ||
        NAME(frozen_sums)(call, slab, &frozen, &sum, &sum_xhat, &unused))
        return 1;
    EACH_LANE {
        const REAL r = AT(frozen.invstd);
        PUT(scale, MUL(AT(gamma), r));
        PUT(dmean, OP(neg)(MUL(AT(scale), AT(sum))));                                          /* (I5) */
        PUT(dvar, OP(times_exact)(MUL(MUL(AT(scale), r), AT(sum_xhat)), -0.5));                /* (I6) */
    }
    NAME(set)(slab, &call->dgamma, &sum_xhat); /* (I7) */
    NAME(set)(slab, &call->dbeta, &sum);       /* (I8) */
    NAME(set)(slab, &call->dmean, &dmean);
    NAME(set)(slab, &call->dvar, &dvar);
    NAME(write_scaled_dy)(call, slab, &scale); /* (I4) */
    return 0;
}

/* (I13): y_dot = gamma r (x_dot - mean_dot) + (gamma_dot - gamma r^2 var_dot / 2) xhat + beta_dot */
static int NAME(inference_jvp)(const refbn_call *call, const refbn_slab *slab)
{
    NAME(statistics) frozen;
    LANES gamma, mean_dot, var_dot, gamma_dot, beta_dot, scale, on_xhat;
    if (NAME(get)(call, slab, &call->gamma, &gamma) || NAME(get)(call, slab, &call->mean_dot, &mean_dot) ||
        NAME(get)(call, slab, &call->var_dot, &var_dot) ||
        NAME(get)(call, slab, &call->gamma_dot, &gamma_dot) ||
        NAME(get)(call, slab, &call->beta_dot, &beta_dot) || NAME(recall_frozen)(call, slab, &frozen))
        return 1;
    EACH_LANE {
        const REAL r = AT(frozen.invstd), r2_var_dot = MUL(r, MUL(r, AT(var_dot)));
        PUT(scale, MUL(AT(gamma), r));
        PUT(on_xhat, SUB(AT(gamma_dot), OP(times_exact)(MUL(AT(gamma), r2_var_dot), 0.5)));
    }
    double x[REFBN_TILE] = {0.0}, x_dot[REFBN_TILE] = {0.0}, y_dot[REFBN_TILE];
    refbn_exponents exponents_x = {{0}}, exponents_x_dot = {{0}};
    REFBN_EACH_TILE(call) {
        const refbn_tile tile = refbn_tile_at(call, tile_index);
        refbn_load(call, slab, tile, &call->x, x);
        refbn_load(call, slab, tile, &call->x_dot, x_dot);
        SCAN(&exponents_x, x, tile.steps);
        SCAN(&exponents_x_dot, x_dot, tile.steps);
        EACH_STEP(tile) EACH_LANE {
            const REAL d = OP(diff)(x[k0 + lane], OP(center_at)(&frozen.mean, lane));
            const REAL xhat = MUL(d, AT(frozen.invstd));
            const REAL moved = OP(add_double)(OP(neg)(AT(mean_dot)), x_dot[k0 + lane]);
            const REAL value = ADD(ADD(MUL(AT(scale), moved), MUL(AT(on_xhat), xhat)), AT(beta_dot));
            y_dot[k0 + lane] = OP(round)(value, call->y.format);
        }
        refbn_store(call, slab, tile, &call->y, y_dot);
    }
    return UNFIT(call, &exponents_x) | UNFIT(call, &exponents_x_dot);
}

static int NAME(inference_hvp)(const refbn_call *call, const refbn_slab *slab)
{
    NAME(statistics) frozen;
    LANES gamma, mean_dot, var_dot, gamma_dot, sum, sum_xhat, sum_x_dot, on_dy, dgamma, dmean, dvar;
    if (NAME(get)(call, slab, &call->gamma, &gamma) || NAME(get)(call, slab, &call->mean_dot, &mean_dot) ||
        NAME(get)(call, slab, &call->var_dot, &var_dot) ||
        NAME(get)(call, slab, &call->gamma_dot, &gamma_dot) ||
        NAME(recall_frozen)(call, slab, &frozen) ||
        NAME(frozen_sums)(call, slab, &frozen, &sum, &sum_xhat, &sum_x_dot))
        return 1;
    EACH_LANE {
        const REAL r = AT(frozen.invstd), r2_var_dot = MUL(r, MUL(r, AT(var_dot)));
        const REAL gamma_r2_var_dot = MUL(AT(gamma), r2_var_dot);
        PUT(on_dy, MUL(r, SUB(AT(gamma_dot), OP(times_exact)(gamma_r2_var_dot, 0.5))));
        PUT(dmean, OP(neg)(MUL(AT(on_dy), AT(sum)))); /* (I10) */
        const REAL moved = MUL(r, SUB(AT(sum_x_dot), MUL(AT(mean_dot), AT(sum))));
        const REAL dy_xhat_dot = SUB(moved, OP(times_exact)(MUL(r2_var_dot, AT(sum_xhat)), 0.5));
        PUT(dgamma, dy_xhat_dot); /* (I2, I11) */
        const REAL bracket =
            ADD(MUL(SUB(AT(gamma_dot), gamma_r2_var_dot), AT(sum_xhat)), MUL(AT(gamma), dy_xhat_dot));
        PUT(dvar, OP(times_exact)(MUL(r, MUL(r, bracket)), -0.5)); /* (I12) */
    }
    NAME(set)(slab, &call->dgamma, &dgamma);
    NAME(set)(slab, &call->dmean, &dmean);
    NAME(set)(slab, &call->dvar, &dvar);
    NAME(write_scaled_dy)(call, slab, &on_dy); /* (I9) */
    return 0;
}

/* (I14) */
static int NAME(inference_double_backward)(const refbn_call *call, const refbn_slab *slab)
{
    return NAME(inference_hvp)(call, slab) || NAME(inference_jvp)(call, slab);
}

#undef NAME
#undef OP
#undef LANES
#undef CENTERS
#undef TOTALS
#undef AT
#undef PUT
#undef ADD
#undef SUB
#undef MUL
#undef EACH_LANE
#undef EACH_STEP
#undef SCAN
#undef UNFIT
#undef VECTOR_FITS
