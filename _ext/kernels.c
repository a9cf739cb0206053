/* The passes of refbn/backends/_contract.py, for one instruction set (REFBN_BUILD names it): the ladder.
 *
 * Purpose. Every output of every pass is the exact real result rounded once, in any mix of the four formats
 * and in every layout; so its bits do not depend on threads, layout, order of the elements or instruction
 * set.
 *
 * Ladder. Each rung makes sums of a unit (sweep.h), solves for its results (solve.h) and combines tile by
 * tile (rungs.h); what a rounding test does not decide goes on to the next rung: a vector result or a tile of
 * a group, not the tensor.
 *
 *   1  binary32 in two parts, then plain binary64, if nothing of the call is binary64; sums in plain binary64, too, for
 *      groups that are not too long
 *   2  binary64 in two parts, then double-double
 *   3  double-double on tensors scaled by powers of two, for binary64 whose exponents leave the range that
 *      solve.h needs; not with frozen statistics
 *   4  exact integers (exact_rung.h): ties, zeros, NaN and infinities, everything else
 *
 * Assumptions. Round to nearest even, subnormals kept (environment.h sees to that); compiled with
 * -ffp-contract=off and without fast-math; x, dy and x_dot do not overlap the outputs.
 *
 * Error bounds. A result is accepted only if an enclosure [v - e, v + e] of the exact value rounds to one
 * number; e is computed along with v. The proofs stand where the arithmetic is: ball.h, rungs.h, solve.h.
 * Here: a sum over `additions` tiles, threads and lanes is off by (K + 4 additions u) u S, with K of rungs.h
 * and S a bound of the sum of magnitudes by Cauchy and Schwarz, e.g. |sum g t| <= sqrt(sum g^2 sum t^2); and a
 * biased one by what its chains are off by besides.
 *
 * Test: pytest tests/backends/test_native.py; python -m validation.correct_rounding
 */
#include "exact_rung.h"
#include "solve.h"
#include "threads.h"

enum { REFBN_PLAIN = 1, REFBN_TWOFOLD, REFBN_SCALED, REFBN_EXACT };

typedef struct {
    refbn_call *call;
    refbn_team *team;
    int pass, narrow;
    int64_t decided[2][4]; /* elements and vector results, by rung */
} refbn_job;

/* How many of a unit's results are not decided yet; elements only where they are counted. */
typedef struct {
    int64_t elements, vectors;
} refbn_pending;

/* Which groups' vector results are still open, a bit for each. */
typedef struct {
    uint64_t of[REFBN_VECTORS];
} refbn_open;

/* A unit on its way up the ladder, as one member of the team sees it. */
typedef struct {
    refbn_unit unit;
    refbn_open open;
    refbn_pending pending;
    uint64_t undecided;              /* bits of the groups with something open */
    int summed, solved, moments;     /* whether there are sums; a solution of them; whether x is summed, too */
    int brief;                       /* whether some of the sums are brief, also those of x that a forward kept */
    int better;                      /* whether sums from a bias on were not good enough */
    double pivots[3][REFBN_LANES];   /* those chosen, while sums are about 0 */
    refbn_totals *totals;            /* of all members, as are the masks and the flags */
    uint64_t *masks, *flags;         /* flags: of the tiles, then room for those of one group */
    refbn_solution s;
} refbn_ascent;

/* What a pass reads and writes. */
typedef struct {
    int frozen, g, u;     /* frozen statistics; takes dy, x_dot */
    int sums;             /* whether it needs sums (of x at least) */
    int tensors, vectors; /* bits of what it writes */
} refbn_traits;

static refbn_traits refbn_traits_of(int pass)
{
    enum { Y = 1 << REFBN_TO_Y, DX = 1 << REFBN_TO_DX };
    enum { GAMMA = 1 << REFBN_TO_DGAMMA, BETA = 1 << REFBN_TO_DBETA };
    enum { MEAN = 1 << REFBN_TO_DMEAN, VAR = 1 << REFBN_TO_DVAR, INVSTD = 1 << REFBN_TO_INVSTD };
    switch (pass) {
    case REFBN_FORWARD: return (refbn_traits){0, 0, 0, 1, Y, 1 << REFBN_TO_MEAN | 1 << REFBN_TO_VAR | INVSTD};
    case REFBN_BACKWARD: return (refbn_traits){0, 1, 0, 1, DX, GAMMA | BETA};
    case REFBN_JVP: return (refbn_traits){0, 0, 1, 1, Y, 0};
    case REFBN_DOUBLE_BACKWARD: return (refbn_traits){0, 1, 1, 1, Y | DX, GAMMA};
    case REFBN_HVP: return (refbn_traits){0, 1, 1, 1, DX, GAMMA | BETA};
    case REFBN_RUNNING_UPDATE: return (refbn_traits){0, 0, 0, 1, 0, MEAN | VAR};
    case REFBN_INFERENCE: return (refbn_traits){1, 0, 0, 0, Y, INVSTD};
    case REFBN_INFERENCE_BACKWARD: return (refbn_traits){1, 1, 0, 1, DX, GAMMA | BETA | MEAN | VAR};
    case REFBN_INFERENCE_JVP: return (refbn_traits){1, 0, 1, 0, Y, 0};
    case REFBN_INFERENCE_DOUBLE_BACKWARD: return (refbn_traits){1, 1, 1, 1, Y | DX, GAMMA | MEAN | VAR};
    default: return (refbn_traits){1, 1, 1, 1, DX, GAMMA | BETA | MEAN | VAR};
    }
}

static refbn_tensor *refbn_input(refbn_call *call, int which)
{
    return which == 0 ? &call->x : which == 1 ? &call->dy : &call->x_dot;
}

static refbn_vector *refbn_output(refbn_call *call, int which)
{
    refbn_vector *const outputs[] = {&call->mean,  &call->var,   &call->invstd, &call->dgamma,
                                     &call->dbeta, &call->dmean, &call->dvar};
    return outputs[which];
}

/* The tiles of a unit that this member of the team works on. */
static void refbn_share(const refbn_job *job, const refbn_unit *unit, ptrdiff_t *first, ptrdiff_t *last)
{
    const ptrdiff_t tiles = refbn_tiles(job->call, unit), rank = job->team->rank, size = job->team->size;
    *first = tiles / size * rank + (tiles % size < rank ? tiles % size : rank);
    *last = *first + tiles / size + (rank < tiles % size);
}

static void refbn_meet(refbn_job *job)
{
    if (job->team->size > 1) {
        refbn_stream_end(); /* another member may write there, too */
        job->team->barrier(job->team);
    }
}

/* ---- what does not depend on the rung ---- */

static void refbn_fill_parameters(const refbn_job *job, const refbn_unit *unit, const refbn_traits *is,
                                  refbn_solution *s)
{
    const refbn_call *call = job->call;
    const refbn_vector *const vectors[] = {&call->gamma, &call->beta, &call->gamma_dot, &call->beta_dot,
                                           &call->mean,  &call->var,  &call->mean_dot,  &call->var_dot};
    const int reads_statistics = job->pass == REFBN_RUNNING_UPDATE || job->pass == REFBN_INFERENCE;
    for (int k = 0; k < REFBN_PARAMETERS; k++) {
        const refbn_vector *vector = vectors[k];
        int lane = 0;
        if (vector->data && (reads_statistics || (k != REFBN_MEAN && k != REFBN_VAR))) {
            lane = unit->groups;
            refbn_read_double(vector->format, s->parameter[k], vector->data + unit->group * vector->stride,
                              vector->stride, lane);
        }
        for (; lane < refbn_lanes(unit); lane++)
            s->parameter[k][lane] = 0.0;
    }
    for (int lane = 0; is->frozen && lane < unit->groups; lane++) { /* inference hands its statistics on */
        double *row = call->state + (unit->group + lane) * REFBN_STATE_SIZE;
        double *const mean = &row[REFBN_STATE_PIVOT], *const var = &row[REFBN_STATE_VAR];
        if (reads_statistics && job->team->rank == 0) {
            row[REFBN_STATE_RUNG] = 0.0;
            row[REFBN_STATE_COUNT] = s->count;
            row[REFBN_STATE_EPS] = s->eps;
            *mean = s->parameter[REFBN_MEAN][lane];
            *var = s->parameter[REFBN_VAR][lane];
        } else if (!reads_statistics) {
            s->parameter[REFBN_MEAN][lane] = *mean;
            s->parameter[REFBN_VAR][lane] = *var;
        }
    }
}

/* The average of four elements: close to the mean as a rule, and exactly the value of a constant group.
 * Returns whether the pivots might as well be 0: the elements differ by more than 1/32 of them. */
static int refbn_choose_pivots(const refbn_job *job, const refbn_unit *unit, const refbn_tensor *tensor,
                               double *pivot)
{
    int dispensable = 1;
    const ptrdiff_t count = job->call->geometry.count, step = count / 4;
    ptrdiff_t left;
    double sample[4][REFBN_LANES];
    for (int k = 0; k < 4; k++)
        if (k > 0 && step == 0)
            __builtin_memcpy(sample[k], sample[0], sizeof sample[k]);
        else
            refbn_read_double(tensor->format, sample[k],
                              refbn_element(job->call, tensor, unit->group, k * step, &left),
                              tensor->group_stride, unit->groups);
    for (int lane = 0; lane < unit->groups; lane++) {
        const double mean =
            0.25 * ((sample[0][lane] + sample[1][lane]) + (sample[2][lane] + sample[3][lane]));
        const double rounded = job->narrow ? (double)(float)mean : mean;
        pivot[lane] = rounded - rounded == 0.0 ? rounded : sample[0][lane]; /* a sum may overflow */
    }
    for (int lane = 0; lane < unit->groups; lane++) {
        double spread = 0.0;
        for (int k = 0; k < 4; k++) {
            const double from_pivot = sample[k][lane] - pivot[lane];
            spread += from_pivot < 0.0 ? -from_pivot : from_pivot;
        }
        dispensable &= (spread * 32.0 >= pivot[lane]) & (spread * 32.0 >= -pivot[lane]);
    }
    return dispensable;
}

static void refbn_fill_pivots(const refbn_job *job, const refbn_unit *unit, const refbn_traits *is,
                              refbn_solution *s)
{
    refbn_call *call = job->call;
    for (int which = 0; which < 3; which++) {
        const refbn_tensor *tensor = refbn_input(call, which);
        double *pivot = s->pivot[which];
        const int used = tensor->data && call->geometry.count > 0;
        const int broadcast = used && !is->frozen && refbn_is_broadcast(call, tensor);
        s->dispensable[which] = 1;
        if (is->frozen || !used)
            for (int lane = 0; lane < unit->groups; lane++)
                pivot[lane] = is->frozen && which == 0 ? s->parameter[REFBN_MEAN][lane] : 0.0;
        else
            s->dispensable[which] = refbn_choose_pivots(job, unit, tensor, pivot);
        for (int lane = 0; lane < REFBN_LANES; lane++) {
            if (lane >= unit->groups) /* padding */
                pivot[lane] = 0.0;
            s->largest[which][lane] = refbn_infinity();
            s->exponent[which][lane] = 0.0;
            s->constant[which][lane] = broadcast;
        }
    }
}

/* ---- sums ---- */

static void refbn_two_sum_one(double *hi, double *lo, double more_hi, double more_lo)
{
    const double sum = *hi + more_hi, from = sum - *hi;
    const double rest = ((*hi - (sum - from)) + (more_hi - from)) + (*lo + more_lo);
    *hi = sum + rest;
    *lo = rest - (*hi - sum);
}

static double refbn_power(double exponent) /* 2^exponent, -1000 to 1000 */
{
    return ((refbn_bits){.i = (int64_t)(exponent + 1023.0) << 52}).f;
}

/* The part of `tensor` in a tile of a turn, as kernels want it. These and tiles are handed on by reference: a copy of
 * what was just written waits for it. */
static void refbn_part(const refbn_job *job, const refbn_turn *turn, const refbn_tile *tile, int which, int format,
                       const refbn_solution *s, double *buffer, refbn_rows *rows)
{
    double scale[REFBN_LANES];
    if (s->scaled)
        for (int lane = 0; lane < turn->unit.groups; lane++)
            scale[lane] = refbn_power(s->exponent[which][turn->lane + lane]);
    refbn_read(job->call, &turn->unit, tile, refbn_input(job->call, which), format, s->scaled ? scale : NULL,
               s->pivot[which] + turn->lane, buffer, rows);
}

typedef struct {
    double of[3][REFBN_BLOCK];
    refbn_rows rows[3];
} refbn_buffers;

/* Ask for the tile that comes after: that of the next turn; after the last turn the next one; after the last
 * tile, the first one of the unit that comes next as a rule. */
static void refbn_prefetch_next(const refbn_job *job, const refbn_unit *unit, int turn, ptrdiff_t index,
                                ptrdiff_t last, const refbn_tensor *tensor, int write)
{
    refbn_unit of = *unit;
    if (++turn == refbn_turns(unit)) {
        turn = 0;
        if (++index == last) {
            of.group += of.groups;
            if (job->team->size > 1 || of.group + of.groups > job->call->geometry.groups)
                return;
            index = 0;
        }
    }
    const refbn_turn next = refbn_turn_at(&of, turn);
    refbn_prefetch(job->call, &next.unit, index, tensor, write);
}

/* The inputs of a piece of a tile that `wanted` names; the others are x, which is always read. */
static void refbn_read_inputs(const refbn_job *job, const refbn_turn *turn, const refbn_tile *piece,
                              const int *wanted, const refbn_solution *s, const refbn_rows **in,
                              refbn_buffers *buffers)
{
    const int format = job->narrow ? REFBN_F32 : REFBN_F64;
    for (int which = 0; which < 3; which++) {
        const int used = which == 0 || wanted[which];
        in[which] = &buffers->rows[used ? which : 0];
        if (used)
            refbn_part(job, turn, piece, which, format, s, buffers->of[which], &buffers->rows[which]);
    }
}

/* Limits for sums from a bias on: from the first rows; x may be known to be below `largest`. */
static void refbn_choose_limits(const refbn_job *job, const refbn_unit *unit, const refbn_solution *s,
                                const int *wanted, ptrdiff_t index, refbn_totals *totals)
{
    enum { FIRST = 8 }; /* rows */
    refbn_buffers buffers;
    for (int which = 0; which < 3; which++)
        for (int lane = 0; lane < REFBN_LANES; lane++)
            totals->limit[which][lane] = 0x1p-190;
    for (int turn = 0; index < refbn_tiles(job->call, unit) && turn < refbn_turns(unit); turn++) {
        const refbn_turn at = refbn_turn_at(unit, turn);
        refbn_tile rest = refbn_tile_at(job->call, &at.unit, index);
        const refbn_tile piece = refbn_next_piece(job->call, &at.unit, &rest);
        const refbn_rows *in[3];
        refbn_read_inputs(job, &at, &piece, wanted, s, in, &buffers);
        refbn_raise_limits(job->narrow ? REFBN_F32 : REFBN_F64, in, &piece, FIRST, 0, piece.columns, totals, at.lane,
                           unit->by_groups, wanted);
    }
    if (!wanted[0])
        for (int lane = 0; lane < unit->groups; lane++) {
            const refbn_bits largest = {s->largest[0][lane]};
            const double limit = 2.0 * ((refbn_bits){.i = largest.i & ((int64_t)0x7ff << 52)}).f;
            totals->limit[0][lane] = limit > 0x1p-190 ? limit : 0x1p-190;
        }
    if (!wanted[0] && unit->by_groups)
        refbn_repeat(unit, totals->limit[0]);
}

/* How many lanes of totals belong to a group, and which ones. */
static int refbn_spread(const refbn_unit *unit) { return unit->by_groups ? unit->copies : REFBN_WIDTH; }

static int refbn_spread_at(const refbn_unit *unit, int lane, int k)
{
    return unit->by_groups ? lane + k * unit->groups : lane * REFBN_WIDTH + k;
}

/* One sum of all members, from all lanes of each group, to a lane for each group. */
static void refbn_collect_sum(const refbn_job *job, const refbn_unit *unit, const refbn_totals *members, int k,
                              refbn_balls *sum)
{
    const int size = job->team->size, lanes = unit->groups * refbn_spread(unit);
    double hi[REFBN_SPREAD], lo[REFBN_SPREAD];
    for (int lane = 0; lane < lanes; lane += REFBN_WIDTH) {
        refbn_pair all = {refbn_load(members[0].hi[k] + lane), refbn_load(members[0].lo[k] + lane)};
        for (int rank = 1; rank < size; rank++)
            all = refbn_add_pairs(all, (refbn_pair){refbn_load(members[rank].hi[k] + lane),
                                                    refbn_load(members[rank].lo[k] + lane)});
        refbn_store(hi + lane, all.hi);
        refbn_store(lo + lane, all.lo);
    }
    for (int lane = 0; lane < refbn_lanes(unit); lane++) {
        sum->hi[lane] = sum->lo[lane] = 0.0;
        for (int k = 0; lane < unit->groups && k < refbn_spread(unit); k++) {
            const int from = refbn_spread_at(unit, lane, k);
            if (k == 0)
                sum->hi[lane] = hi[from], sum->lo[lane] = lo[from];
            else
                refbn_two_sum_one(&sum->hi[lane], &sum->lo[lane], hi[from], lo[from]);
        }
    }
}

/* Bounds of all |t_k|, and, of sums from a bias on, the limits that held, for each group. */
static void refbn_collect_bounds(const refbn_job *job, const refbn_unit *unit, const refbn_totals *members,
                                 refbn_solution *s, int tensor, double *limit)
{
    double square[REFBN_LANES];
    for (int lane = 0; lane < refbn_lanes(unit); lane++)
        square[lane] = limit[lane] = 0.0;
    for (int rank = 0; rank < job->team->size; rank++) {
        const refbn_totals *member = members + rank;
        for (int lane = 0; lane < unit->groups; lane++)
            for (int k = 0; k < refbn_spread(unit); k++) {
                const double own = member->square[tensor][refbn_spread_at(unit, lane, k)], before = square[lane];
                square[lane] = own <= before || before != before ? before : own; /* a NaN stays */
            }
        for (int lane = 0; s->sums == REFBN_BIASED && lane < unit->groups; lane++)
            for (int k = 0; k < unit->copies; k++) {
                const double own = member->limit[tensor][lane + k * unit->groups];
                limit[lane] = own > limit[lane] ? own : limit[lane];
            }
    }
    for (int lane = 0; lane < refbn_lanes(unit); lane += REFBN_WIDTH)
        refbn_store(s->largest[tensor] + lane, refbn_root(refbn_load(square + lane)) * (1.0 + 0x1p-20));
}

/* Every member's totals, added up to balls. */
static void refbn_collect(const refbn_job *job, const refbn_unit *unit, const refbn_totals *members,
                          refbn_solution *s, int moments, int g, int u)
{
    static const int squares[3] = {REFBN_TT, REFBN_GG, REFBN_UU};
    const int lanes = refbn_lanes(unit), wanted[3] = {moments, g, u};
    double limit[3][REFBN_LANES] = {{0}};
    for (int k = 0; k < REFBN_SUMS; k++)
        if (refbn_has_sum(k, moments, g, u))
            refbn_collect_sum(job, unit, members, k, &s->sum[k]);
    for (int tensor = 0; tensor < 3; tensor++)
        if (wanted[tensor])
            refbn_collect_bounds(job, unit, members, s, tensor, limit[tensor]);
        else if (tensor == 0 && s->sums == REFBN_BIASED)
            for (int lane = 0; lane < unit->groups; lane++)
                limit[0][lane] = members[0].limit[0][lane];
    const double tiles = (double)refbn_tiles(job->call, unit) * (unit->by_groups ? REFBN_ROWS / REFBN_STRIP : 1);
    const double pieces = tiles + (double)refbn_runs(job->call);
    const double additions = pieces + (double)(job->team->size * REFBN_ROW + REFBN_LANES);
    const double chains = s->sums == REFBN_BIASED ? pieces * (double)(unit->by_groups ? unit->copies : REFBN_ROW) : 0.0;
    for (int lane = 0; lane < lanes; lane += REFBN_WIDTH) {
        refbn_v root[4], limits[4]; /* of the sums of 1, t^2, g^2, u^2; of 1, x, dy, x_dot */
        root[0] = refbn_root(refbn_splat(s->count));
        limits[0] = refbn_splat(1.0);
        for (int tensor = 0; tensor < 3; tensor++) {
            root[1 + tensor] = root[0];
            if (tensor == 0 || wanted[tensor])
                root[1 + tensor] = refbn_root(refbn_load(s->sum[squares[tensor]].hi + lane));
            limits[1 + tensor] = refbn_load(limit[tensor] + lane);
        }
        static const int factors[REFBN_SUMS][2] = {{0, 1}, {1, 1}, {0, 2}, {2, 1}, {2, 2},
                                                   {0, 3}, {3, 1}, {3, 3}, {3, 2}};
        for (int k = 0; k < REFBN_SUMS; k++)
            if (refbn_has_sum(k, moments, g, u)) {
                const int plain = k == REFBN_GG || k == REFBN_UU, *of = factors[k];
                const double own = s->sums == REFBN_BRIEF ? REFBN_BRIEF_SUM
                                   : plain                ? REFBN_PLAIN_SQUARES
                                                          : REFBN_DOUBLE_SUM;
                const double factor = own + additions * 0x4p-106;
                const refbn_v biased = 128.0 * REFBN_BIASED_SUM * chains * (limits[of[0]] * limits[of[1]]);
                refbn_store(s->sum[k].err + lane,
                            (root[of[0]] * root[of[1]] * factor + biased) * (1.0 + 0x1p-20));
            }
    }
    /* narrow squares cannot vanish: a sum of squares that is 0 shows a constant */
    for (int tensor = 0; s->narrow && tensor < 3; tensor++)
        for (int lane = 0; lane < lanes && (tensor == 0 || wanted[tensor]); lane++)
            s->constant[tensor][lane] =
                s->sum[squares[tensor]].hi[lane] == 0.0 && s->sum[squares[tensor]].lo[lane] == 0.0;
}

/* Add the sums of one piece of one tile. */
static void refbn_sum_piece(const refbn_job *job, refbn_ascent *of, const refbn_turn *at, const refbn_tile *tile,
                            const refbn_tile *piece, int part, const int *wanted, refbn_buffers *buffers)
{
    const int format = job->narrow ? REFBN_F32 : REFBN_F64, by_groups = at->unit.by_groups;
    refbn_totals *totals = of->totals + job->team->rank;
    const refbn_rows *in[3];
    refbn_read_inputs(job, at, piece, wanted, &of->s, in, buffers);
    const uint32_t exceeding =
        refbn_sum_tile(of->s.sums, format, in, piece, part, of->s.pivot, totals, at->lane, by_groups, wanted);
    if (!exceeding)
        return;
    if (part != REFBN_WHOLE) {
        piece = tile;
        refbn_read_inputs(job, at, piece, wanted, &of->s, in, buffers);
    }
    refbn_sum_exceeding(format, in, piece, exceeding, of->s.pivot, totals, at->lane, by_groups, wanted);
}

/* The sums of the units of a band; all of them the same ones. By groups, units take turns at strips of a tile, and
 * the chains go on from strip to strip. */
static void refbn_sweep_sums(refbn_job *job, refbn_ascent *band, int units, int g, int u)
{
    const int rank = job->team->rank, wanted[3] = {band->moments, g, u}, by_groups = band->unit.by_groups;
    ptrdiff_t first, last;
    refbn_share(job, &band->unit, &first, &last);
    for (int k = 0; k < units; k++) {
        const refbn_unit *unit = &band[k].unit;
        refbn_totals *totals = band[k].totals + rank;
        for (int which = 0; which < 3 && by_groups; which++)
            refbn_repeat(unit, band[k].s.pivot[which]);
        const size_t lanes = (size_t)(by_groups ? refbn_columns(unit) : unit->groups * REFBN_WIDTH);
        for (int sum = 0; sum < REFBN_SUMS; sum++)
            if (refbn_has_sum(sum, band->moments, g, u)) {
                __builtin_memset(totals->hi[sum], 0, sizeof(double) * lanes);
                __builtin_memset(totals->lo[sum], 0, sizeof(double) * lanes);
            }
        __builtin_memset(totals->square, 0, sizeof totals->square);
        if (band[k].s.sums == REFBN_BIASED)
            refbn_choose_limits(job, unit, &band[k].s, wanted, first, totals);
    }
    refbn_buffers buffers;
    for (ptrdiff_t index = first; index < last; index++)
        for (int turn = 0; turn < refbn_turns(&band->unit); turn++) {
            for (int which = 0; which < 3 && units == 1; which++)
                if (which == 0 || wanted[which])
                    refbn_prefetch_next(job, &band->unit, turn, index, last, refbn_input(job->call, which), 0);
            const refbn_tile tile = refbn_tile_at(job->call, &band->unit, index);
            for (refbn_tile rest = tile; rest.count > 0;) {
                const int part = by_groups && rest.count < tile.count ? 0 : REFBN_FIRST;
                const refbn_tile piece = refbn_next_strip(job->call, &band->unit, &rest);
                for (int k = 0; k < units; k++) {
                    const refbn_turn at = refbn_turn_at(&band[k].unit, turn);
                    refbn_tile own_tile = tile, own = piece;
                    own_tile.columns = own.columns = refbn_columns(&at.unit);
                    refbn_sum_piece(job, &band[k], &at, &own_tile, &own,
                                    part | (by_groups && rest.count > 0 ? 0 : REFBN_LAST), wanted, &buffers);
                }
            }
        }
    refbn_meet(job);
    for (int k = 0; k < units; k++)
        refbn_collect(job, &band[k].unit, band[k].totals, &band[k].s, band->moments, g, u);
    refbn_meet(job); /* before the totals are used again */
}

/* Take what is known of x from the state, if every group's is good enough. */
static int refbn_recall(const refbn_job *job, const refbn_unit *unit, refbn_solution *s)
{
    if (s->scaled)
        return 0;
    const double *row = job->call->state + unit->group * REFBN_STATE_SIZE;
    for (int lane = 0; lane < unit->groups; lane++) {
        const double rung = row[lane * REFBN_STATE_SIZE + REFBN_STATE_RUNG];
        if (rung > REFBN_TWOFOLD || (s->twofold && rung < REFBN_TWOFOLD))
            return 0;
    }
    s->dispensable[0] = 1;
    for (int lane = 0; lane < unit->groups; lane++, row += REFBN_STATE_SIZE) {
        s->pivot[0][lane] = row[REFBN_STATE_PIVOT];
        s->largest[0][lane] = row[REFBN_STATE_LARGEST];
        s->dispensable[0] &= row[REFBN_STATE_PIVOT] == 0.0;
        for (int k = 0; k < 2; k++) {
            const double *sum = row + REFBN_STATE_SUM + 3 * k;
            s->sum[REFBN_T + k].hi[lane] = sum[0];
            s->sum[REFBN_T + k].lo[lane] = sum[1];
            s->sum[REFBN_T + k].err[lane] = sum[2];
        }
    }
    for (int lane = unit->groups; lane < refbn_lanes(unit); lane++)
        for (int k = 0; k < 2; k++)
            s->sum[REFBN_T + k].hi[lane] = s->sum[REFBN_T + k].lo[lane] = s->sum[REFBN_T + k].err[lane] = 0.0;
    return 1;
}

/* Whether the sums of x that a forward kept are brief ones. */
static int refbn_kept_briefly(const refbn_job *job, const refbn_unit *unit)
{
    const double *row = job->call->state + unit->group * REFBN_STATE_SIZE;
    int brief = 0;
    for (int lane = 0; lane < unit->groups; lane++)
        brief |= row[lane * REFBN_STATE_SIZE + REFBN_STATE_RUNG] < REFBN_TWOFOLD;
    return brief;
}

/* Keep what the derivatives want to know. A group with which binary64 could do nothing is to begin with the
 * next rung. */
static void refbn_save(const refbn_job *job, const refbn_unit *unit, const refbn_solution *s)
{
    for (int lane = 0; lane < unit->groups; lane++) {
        double *row = job->call->state + (unit->group + lane) * REFBN_STATE_SIZE;
        const int hopeless = s->twofold && !s->narrow && (s->hopeless[REFBN_TO_Y] >> lane & 1);
        row[REFBN_STATE_RUNG] = hopeless ? REFBN_SCALED : s->sums == REFBN_BRIEF ? REFBN_PLAIN : REFBN_TWOFOLD;
        row[REFBN_STATE_COUNT] = s->count;
        row[REFBN_STATE_EPS] = s->eps;
        row[REFBN_STATE_PIVOT] = s->pivot[0][lane];
        row[REFBN_STATE_LARGEST] = s->largest[0][lane];
        for (int k = 0; k < 2; k++) {
            double *sum = row + REFBN_STATE_SUM + 3 * k;
            sum[0] = s->sum[REFBN_T + k].hi[lane];
            sum[1] = s->sum[REFBN_T + k].lo[lane];
            sum[2] = s->sum[REFBN_T + k].err[lane];
        }
    }
}

/* With frozen statistics: from sums of x to sums of x - mean. */
static void refbn_move_pivots(refbn_solution *s, int lanes, int g, int u)
{
    for (int lane = 0; lane < lanes; lane += REFBN_WIDTH) {
        const refbn_v mean = refbn_load(s->parameter[REFBN_MEAN] + lane);
        const refbn_ball pivot = refbn_exactly(mean), t = refbn_sum(s, REFBN_T, lane);
        const refbn_ball moved = refbn_sub(t, refbn_mul(refbn_exactly(refbn_splat(s->count)), pivot));
        const refbn_ball tt = refbn_sub(refbn_sum(s, REFBN_TT, lane), refbn_mul(pivot, refbn_add(t, moved)));
        refbn_balls_set(&s->sum[REFBN_T], lane, moved);
        refbn_balls_set(&s->sum[REFBN_TT], lane, tt);
        if (g)
            refbn_balls_set(&s->sum[REFBN_GT], lane,
                            refbn_sub(refbn_sum(s, REFBN_GT, lane), refbn_mul(pivot, refbn_sum(s, REFBN_G, lane))));
        if (u)
            refbn_balls_set(&s->sum[REFBN_UT], lane,
                            refbn_sub(refbn_sum(s, REFBN_UT, lane), refbn_mul(pivot, refbn_sum(s, REFBN_U, lane))));
        refbn_store(s->pivot[0] + lane, mean);
        refbn_store(s->largest[0] + lane, refbn_load(s->largest[0] + lane) + refbn_abs(mean));
    }
}

/* The part of a mean square about 0 that a variance must be, or the sums tell too little of it. */
static double refbn_least_part(const refbn_solution *s, int frozen)
{
    return s->sums == REFBN_BRIEF ? 0x1p-3 : s->narrow && !frozen ? 0x1p-16 : 0x1p-10;
}

/* Whether a tensor of some group is so far from 0 that its sums about 0 tell too little of what varies. */
static int refbn_is_far(const refbn_solution *s, int groups, int sum, int square)
{
    const double part = refbn_least_part(s, 0);
    int far = 0;
    for (int lane = 0; lane < groups; lane++) {
        const double mean = s->sum[sum].hi[lane] / s->count, mean_square = s->sum[square].hi[lane] / s->count;
        far |= !(mean_square - mean * mean >= part * mean_square);
    }
    return far;
}

/* Whether what was summed about 0 asks for better sums. */
static int refbn_tells_too_little(const refbn_traits *is, refbn_ascent *of)
{
    refbn_solution *s = &of->s;
    const int groups = of->unit.groups;
    if (!is->frozen)
        return refbn_is_far(s, groups, REFBN_T, REFBN_TT) || (is->g && refbn_is_far(s, groups, REFBN_G, REFBN_GG)) ||
               (is->u && refbn_is_far(s, groups, REFBN_U, REFBN_UU));
    const refbn_balls before = s->sum[REFBN_TT];
    const double part = refbn_least_part(s, 1);
    refbn_move_pivots(s, refbn_lanes(&of->unit), is->g, is->u);
    int far = 0;
    for (int lane = 0; lane < groups; lane++)
        far |= !(s->sum[REFBN_TT].hi[lane] >= part * before.hi[lane]);
    return far;
}

/* Whether brief sums will do: in a group that is not too long. What they leave undecided is summed again, and the
 * more elements there are, and the more sums, the likelier that is; by groups, at the price of memory that is far
 * apart, and a tile must be whole strips. */
static int refbn_may_be_brief(const refbn_job *job, const refbn_traits *is, const refbn_ascent *of)
{
    const refbn_geometry *geometry = &job->call->geometry;
    int longest = is->g && is->u ? 13 : 17; /* exponents of 2 */
    if (of->unit.by_groups)
        longest = geometry->ndim > 1 ? 0 : is->g && is->u ? 11 : 13;
    return of->s.narrow && !of->s.twofold && geometry->count <= (ptrdiff_t)1 << longest;
}

/* All sums that the pass needs of the units of a band. About 0 where a unit's tensors allow it, briefly or, from the
 * second rung on, from a bias on; else about pivots. Units whose sums show that they need better ones get them. */
static void refbn_make_sums(refbn_job *job, const refbn_traits *is, refbn_ascent *band, int units)
{
    int moments = 0;
    for (int k = 0; k < units; k++)
        moments |= is->frozen || job->pass == REFBN_FORWARD || band[k].better ||
                   !refbn_recall(job, &band[k].unit, &band[k].s);
    for (int k = 0; k < units; k++) {
        refbn_solution *s = &band[k].s;
        band[k].moments = moments;
        const int dispensable =
            s->dispensable[0] && (!is->g || s->dispensable[1]) && (!is->u || s->dispensable[2]);
        if (s->scaled || band[k].better || !dispensable) {
            s->sums = REFBN_CENTERED;
            continue;
        }
        s->sums = refbn_may_be_brief(job, is, &band[k]) ? REFBN_BRIEF
                  : s->narrow || REFBN_FUSED             ? REFBN_BIASED
                                                         : REFBN_DIRECT;
        __builtin_memcpy(band[k].pivots, s->pivot, sizeof s->pivot);
        __builtin_memset(s->pivot, 0, sizeof s->pivot);
    }
    refbn_sweep_sums(job, band, units, is->g, is->u);
    for (int k = 0; k < units; k++)
        while (band[k].s.sums != REFBN_CENTERED && refbn_tells_too_little(is, &band[k])) {
            refbn_solution *s = &band[k].s;
            if (s->sums == REFBN_BRIEF) {
                s->sums = REFBN_BIASED;
                __builtin_memset(s->pivot, 0, sizeof s->pivot);
            } else {
                s->sums = REFBN_CENTERED;
                __builtin_memcpy(s->pivot, band[k].pivots, sizeof s->pivot);
            }
            refbn_sweep_sums(job, &band[k], 1, is->g, is->u);
        }
    for (int k = 0; k < units; k++)
        band[k].brief = band[k].s.sums == REFBN_BRIEF || (!moments && refbn_kept_briefly(job, &band[k].unit));
}

/* Scale each tensor so that its largest element, or sqrt(eps) with x's, is about 1. Returns whether that is
 * of use: not with infinities or NaN, nor with tensors of subnormal numbers. Each member looks at all
 * elements: this is rare. */
static int refbn_choose_scales(refbn_job *job, const refbn_unit *unit, const refbn_traits *is,
                               refbn_solution *s)
{
    refbn_call *call = job->call;
    int finite = 1;
    for (int which = 0; which < 3; which++) {
        if (which == 1 ? !is->g : which == 2 ? !is->u : 0)
            continue;
        double largest[REFBN_LANES] = {0}, differs[REFBN_LANES] = {0}, buffer[REFBN_BLOCK];
        for (int turn = 0; turn < refbn_turns(unit); turn++) {
            const refbn_turn at = refbn_turn_at(unit, turn);
            for (ptrdiff_t index = 0; index < refbn_tiles(call, unit); index++) {
                const refbn_tile tile = refbn_tile_at(call, unit, index);
                refbn_rows rows;
                refbn_read(call, &at.unit, &tile, refbn_input(call, which), REFBN_F64, NULL, s->pivot[which] + at.lane,
                           buffer, &rows);
                for (int row = 0; row < tile.rows; row++)
                    for (int column = 0; column < tile.columns; column++) {
                        const int lane = unit->by_groups ? column : at.lane;
                        const double value =
                            ((const double *)(const void *)(rows.data + row * rows.stride))[column];
                        const double magnitude = value < 0.0 ? -value : value;
                        if (!(magnitude <= largest[lane]) && largest[lane] == largest[lane]) /* a NaN stays */
                            largest[lane] = magnitude;
                        differs[lane] += value != s->pivot[which][lane];
                    }
            }
        }
        for (int lane = 0; lane < unit->groups; lane++) {
            const double root = which == 0 ? REFBN_SQRT(s->eps) : 0.0;
            const refbn_bits most = {largest[lane] < root ? root : largest[lane]};
            /* subnormal numbers are slower in the machine's arithmetic than in integers */
            finite &=
                largest[lane] - largest[lane] == 0.0 && !(largest[lane] > 0.0 && largest[lane] < 0x1p-1010);
            int exponent = (int)(most.i >> 52) - 1023;
            exponent = exponent < -1000 ? -1000 : exponent;
            s->constant[which][lane] = differs[lane] == 0.0;
            s->exponent[which][lane] = most.f > 0.0 ? -exponent : 0.0;
            if (s->exponent[which][lane] < -1000.0)
                s->exponent[which][lane] = -1000.0;
            const double power = refbn_power(s->exponent[which][lane]);
            const double scaled = s->pivot[which][lane] * power;
            s->constant[which][lane] *=
                scaled / power == s->pivot[which][lane]; /* else it lost bits, or vanished */
            s->pivot[which][lane] = scaled;
        }
        for (int lane = unit->groups; lane < REFBN_LANES; lane++) {
            s->exponent[which][lane] = 0.0;
            s->constant[which][lane] = 1.0;
        }
    }
    return finite;
}

/* ---- results ---- */

/* Both ends of an enclosure, rounded to binary64 or, for a narrower format, to odd. */
static REFBN_INLINE void refbn_round_ends(refbn_ball a, int format, refbn_v *low, refbn_v *high)
{
    const refbn_v err = a.err * REFBN_SAFE;
    *low = (format == REFBN_F64 ? a.hi + (a.lo - err) : refbn_to_odd(a.hi, a.lo - err)) + 0.0; /* R4: +0 */
    *high = format == REFBN_F64 ? a.hi + (a.lo + err) : refbn_to_odd(a.hi, a.lo + err);
}

/* Whether two finite numbers are encoded alike. */
static inline int refbn_alike(double low, double high, int format)
{
    return low - low == 0.0 && high - high == 0.0 && refbn_encode(format, low) == refbn_encode(format, high);
}

static uint64_t refbn_every(const refbn_unit *unit)
{
    return unit->groups == 64 ? ~(uint64_t)0 : ((uint64_t)1 << unit->groups) - 1;
}

/* Bits of the groups with an undecided result; decided ones are left in `value`, to be rounded to the format.
 */
static uint64_t refbn_decide(const refbn_unit *unit, const refbn_balls *balls, int format, double *value)
{
    uint64_t undecided = 0;
    for (int lane = 0; lane < unit->groups; lane += REFBN_WIDTH) {
        refbn_v low, high;
        refbn_round_ends(refbn_balls_get(balls, lane), format, &low, &high);
        refbn_store(value + lane, low);
        refbn_vi bad = (refbn_vi)(low - low != 0.0) | (refbn_vi)(high - high != 0.0);
        if (format == REFBN_F64)
            bad |= (refbn_vi)low ^ (refbn_vi)high;
        else if (format == REFBN_F32)
            bad |= __builtin_convertvector((refbn_vfi)refbn_narrow(low) ^ (refbn_vfi)refbn_narrow(high),
                                           refbn_vi);
        else
            for (int k = 0; k < REFBN_WIDTH; k++)
                bad[k] |= refbn_encode(format, low[k]) != refbn_encode(format, high[k]);
        if (refbn_any(bad))
            undecided |= refbn_lane_bits(bad, lane);
    }
    return undecided & refbn_every(unit);
}

/* The sum of a group's elements, if binary64 additions give it without any rounding. */
static int refbn_sum_exactly(const refbn_call *call, const refbn_tensor *tensor, ptrdiff_t group, double *sum)
{
    const ptrdiff_t inner = tensor->stride[call->geometry.ndim - 1];
    double total = 0.0, buffer[REFBN_LANES];
    int exact = 1;
    ptrdiff_t left = 0;
    const char *data = NULL;
    for (ptrdiff_t done = 0; exact && done < call->geometry.count;) {
        data = left > 0 ? data : refbn_element(call, tensor, group, done, &left);
        const ptrdiff_t n = left < REFBN_LANES ? left : REFBN_LANES;
        refbn_read_double(tensor->format, buffer, data, inner, n);
        for (ptrdiff_t k = 0; k < n; k++) {
            const double before = total;
            total += buffer[k];
            exact &= total - before == buffer[k] && total - buffer[k] == before; /* as in refbn_difference */
        }
        done += n, left -= n, data += n * inner;
    }
    *sum = total;
    return exact && total - total == 0.0;
}

/* The mean of m = 2^k short numbers is a tie once in some hundred times. What is left of `undecided`
 * of a sum, or of the quotient by `divisor`, after exact sums of the groups; narrow formats only. */
static uint64_t refbn_settle_sums(const refbn_job *job, const refbn_unit *unit, const refbn_tensor *tensor,
                                  double divisor, uint64_t undecided, double *value)
{
    for (int lane = 0; lane < unit->groups; lane++) {
        double sum;
        if (!(undecided >> lane & 1) || !refbn_sum_exactly(job->call, tensor, unit->group + lane, &sum))
            continue;
        const refbn_v quotient = refbn_splat(sum / divisor);
        const refbn_pair product = refbn_two_product(quotient, refbn_splat(divisor));
        const refbn_v rest = (refbn_splat(sum) - product.hi) - product.lo; /* exact */
        value[lane] = refbn_to_odd(quotient, rest * 0x1p-60)[0] + 0.0; /* only the sign of `rest` matters */
        undecided &= ~((uint64_t)1 << lane);
    }
    return undecided;
}

/* Write what is open, and leave open what is undecided; returns the bits of all groups with something open.
 */
static uint64_t refbn_write_vectors(refbn_job *job, const refbn_unit *unit, const refbn_traits *is,
                                    const refbn_solution *s, refbn_open *open, refbn_pending *pending)
{
    uint64_t all = 0;
    pending->vectors = 0;
    for (int which = 0; which < REFBN_VECTORS; which++) {
        if (!(is->vectors >> which & 1) || !open->of[which])
            continue;
        const refbn_vector *output = refbn_output(job->call, which);
        double value[REFBN_LANES];
        uint64_t undecided = refbn_decide(unit, &s->vector[which], output->format, value) & open->of[which];
        if (undecided && !s->twofold && which == REFBN_TO_MEAN)
            undecided = refbn_settle_sums(job, unit, &job->call->x, s->count, undecided, value);
        if (undecided && !s->twofold && which == REFBN_TO_DBETA && job->call->dy.data)
            undecided = refbn_settle_sums(job, unit, &job->call->dy, 1.0, undecided, value);
        if (job->team->rank == 0) { /* what is undecided is written again */
            if (open->of[which] == refbn_every(unit))
                refbn_vector_set(output, unit->group, unit->groups, value);
            else
                for (int lane = 0; lane < unit->groups; lane++)
                    if (open->of[which] >> lane & 1)
                        refbn_vector_set(output, unit->group + lane, 1, &value[lane]);
            pending->vectors += __builtin_popcountll(undecided);
        }
        open->of[which] = undecided;
        all |= undecided;
    }
    return all;
}

static const refbn_tensor *refbn_tensor_output(const refbn_call *call, int which)
{
    return which == REFBN_TO_Y ? &call->y : &call->dx;
}

/* What combining a piece of a tile asks for. */
typedef struct {
    const refbn_job *job;
    const refbn_solution *s;
    refbn_turn turn;
    refbn_tile piece;
    refbn_rows in[3]; /* as far as they have been read */
    refbn_buffers buffers;
} refbn_work;

/* The tensors of one output's combination, in the order of its terms. */
static void refbn_take_inputs(refbn_work *work, const refbn_combination *of, const refbn_rows **used)
{
    const int format = work->s->twofold ? REFBN_F64 : REFBN_F32;
    for (int k = 0; k < of->terms; k++) {
        const int tensor = of->tensor[k];
        if (!work->in[tensor].data)
            refbn_part(work->job, &work->turn, &work->piece, tensor, format, work->s, work->buffers.of[tensor],
                       &work->in[tensor]);
        used[k] = &work->in[tensor];
    }
}

static uint64_t refbn_enclose_part(const refbn_work *work, const refbn_rows *const *in, const refbn_tile *part,
                                   int which, int odd, const refbn_rows *out, refbn_ends *ends)
{
    const refbn_solution *s = work->s;
    return refbn_combine_tile(s->twofold, s->sums != REFBN_CENTERED && !refbn_traits_of(s->pass).frozen, in, part,
                              &s->tensor[which], s->center, work->turn.lane, work->turn.unit.by_groups, out, ends,
                              s->scaled || refbn_traits_of(s->pass).frozen, odd);
}

/* One output of a piece, both ends of each enclosure in `ends` unless that is NULL. */
static uint64_t refbn_enclose(refbn_work *work, int which, int odd, const refbn_rows *out, refbn_ends *ends)
{
    const refbn_rows *used[3];
    refbn_take_inputs(work, &work->s->tensor[which], used);
    return refbn_enclose_part(work, used, &work->piece, which, odd, out, ends);
}

/* The same, of some blocks of a piece. */
static uint64_t refbn_enclose_blocks(refbn_work *work, int which, uint64_t blocks, const refbn_rows *out)
{
    const int terms = work->s->tensor[which].terms;
    const refbn_rows *used[3];
    uint64_t undecided = 0;
    refbn_take_inputs(work, &work->s->tensor[which], used);
    for (; blocks; blocks &= blocks - 1) {
        const int index = __builtin_ctzll(blocks);
        const refbn_tile block = refbn_block(&work->piece, index);
        const refbn_rows to = refbn_rows_of_block(&work->piece, out, index);
        refbn_rows from[3];
        const refbn_rows *const in[3] = {&from[0], &from[1], &from[2]};
        for (int k = 0; k < terms; k++)
            from[k] = refbn_rows_of_block(&work->piece, used[k], index);
        undecided |= refbn_enclose_part(work, in, &block, which, 0, &to, NULL);
    }
    return undecided;
}

/* One output of a piece from a bias on, in its own format. Returns bits of the blocks with an undecided element. */
static uint64_t refbn_combine_from_bias(refbn_work *work, int which, const refbn_rows *out, int stream)
{
    const refbn_solution *s = work->s;
    const refbn_unit *unit = &work->turn.unit;
    const int terms = s->tensor[which].terms, lane = work->turn.lane, lanes = refbn_row_lanes(unit);
    const refbn_rows *used[3];
    refbn_take_inputs(work, &s->tensor[which], used);
    return s->twofold ? refbn_combine_tile_biased_f64(used, &work->piece, &s->biased_f64[which], lane, lanes, out,
                                                      terms, unit->by_groups, stream)
                      : refbn_combine_tile_biased_f32(used, &work->piece, &s->biased_f32[which], lane, lanes, out,
                                                      terms, unit->by_groups, stream);
}

/* What combinations want to know of each group, for all its lanes. */
static void refbn_repeat_solution(const refbn_unit *unit, refbn_solution *s)
{
    const int first = unit->groups, lanes = refbn_row_lanes(unit);
    if (lanes == first)
        return;
    for (int which = 0; which < 3; which++)
        refbn_repeat(unit, s->center[which]);
    for (int which = 0; which < REFBN_TENSORS; which++) {
        if (!(refbn_traits_of(s->pass).tensors >> which & 1))
            continue;
        refbn_combination *of = &s->tensor[which];
        refbn_biased_f32 *f32 = &s->biased_f32[which];
        refbn_biased_f64 *f64 = &s->biased_f64[which];
        for (int k = 0; k < 4; k++) {
            if (k >= of->terms && k < 3)
                continue;
            refbn_repeat(unit, of->hi[k]);
            refbn_repeat(unit, of->lo[k]);
            refbn_repeat(unit, of->bound[k]);
        }
        double *const f64_constants[] = {f64->hi[0], f64->lo[0], f64->hi[1], f64->lo[1], f64->hi[2], f64->lo[2]};
        float *const f32_constants[] = {f32->hi[0], f32->lo[0], f32->hi[1], f32->lo[1], f32->hi[2], f32->lo[2]};
        double *const f64_others[] = {f64->start, f64->bias, f64->low, f64->high};
        float *const f32_others[] = {f32->start, f32->bias, f32->low, f32->high};
        for (int k = 0; k < 2 * of->terms + 4; k++) {
            const int other = k - 2 * of->terms;
            if (s->twofold)
                refbn_repeat(unit, other < 0 ? f64_constants[k] : f64_others[other]);
            float *constant = other < 0 ? f32_constants[k] : f32_others[other];
            for (int lane = first; !s->twofold && lane < lanes; lane++)
                constant[lane] = constant[lane - first];
        }
    }
}

/* Bits of groups, from those of all their lanes. */
static uint64_t refbn_fold(const refbn_unit *unit, uint64_t lanes)
{
    uint64_t groups = lanes;
    for (int copy = 1; copy < unit->copies; copy++)
        groups |= lanes >> copy * unit->groups;
    return groups & refbn_every(unit);
}

/* How many blocks were combined from a bias on in a sweep, and in how many something was left undecided. */
typedef struct {
    int64_t tried, failed;
} refbn_trials;

/* Bits of the groups with an undecided element, counted from the turn's first one. */
static uint64_t refbn_write_tensor(refbn_work *work, int which, refbn_trials *trials)
{
    const refbn_job *job = work->job;
    const refbn_solution *s = work->s;
    const refbn_unit *unit = &work->turn.unit;
    const refbn_tensor *output = refbn_tensor_output(job->call, which);
    const int own = s->twofold ? REFBN_F64 : REFBN_F32;
    double encoded[REFBN_BLOCK];
    refbn_rows out;
    if (output->format == own) {
        const int placed = refbn_in_place(job->call, unit, &work->piece, output, own, &out);
        if (!placed)
            out = refbn_in_buffer(&work->piece, encoded, refbn_size(own));
        const uint64_t every = refbn_every(unit);
        uint64_t undecided;
        if ((s->biased[which] >> work->turn.lane & every) == every && trials->failed * 4 <= trials->tried + 32) {
            const uint64_t blocks = refbn_combine_from_bias(work, which, &out, placed && output->stream);
            undecided = refbn_enclose_blocks(work, which, blocks, &out);
            trials->tried += work->piece.runs * refbn_blocks_of_run(&work->piece);
            trials->failed += __builtin_popcountll(blocks);
        } else
            undecided = refbn_enclose(work, which, 0, &out, NULL) | s->hopeless[which] >> work->turn.lane;
        if (!placed)
            refbn_write_tile(job->call, unit, &work->piece, output, encoded);
        return refbn_fold(unit, undecided);
    }
    refbn_ends ends;
    uint64_t undecided = refbn_enclose(work, which, s->twofold, NULL, &ends);
    const int size = refbn_size(output->format);
    for (int k = 0; k < refbn_numbers_of(&work->piece); k++) {
        refbn_put(output->format, (char *)encoded + k * size, ends.low[k] + 0.0);
        if (!refbn_alike(ends.low[k] + 0.0, ends.high[k], output->format))
            undecided |= unit->by_groups ? (uint64_t)1 << k % work->piece.columns : 1;
    }
    refbn_write_tile(job->call, unit, &work->piece, output, encoded);
    return refbn_fold(unit, undecided | s->hopeless[which] >> work->turn.lane);
}

static int64_t refbn_count_undecided(refbn_work *work, int which)
{
    const refbn_unit *unit = &work->turn.unit;
    const refbn_tile *piece = &work->piece;
    refbn_ends ends;
    const int format = refbn_tensor_output(work->job->call, which)->format;
    refbn_enclose(work, which, work->s->twofold && format != REFBN_F64, NULL, &ends);
    int64_t count = 0;
    for (int k = 0; k < refbn_numbers_of(piece); k++) {
        const int inside = unit->by_groups ? k % piece->columns < refbn_row_lanes(unit) : k < piece->count;
        count += inside && !refbn_alike(ends.low[k] + 0.0, ends.high[k], format);
    }
    return count;
}

/* Combine every flagged tile of the units of a band; flags are replaced by bits of the groups that are still
 * undecided, and their union is added to `undecided`. */
static void refbn_sweep_combine(refbn_job *job, const refbn_traits *is, refbn_ascent *band, int units)
{
    refbn_trials trials[REFBN_TENSORS] = {{0, 0}};
    refbn_work work; /* large, therefore not set to 0 */
    work.job = job;
    ptrdiff_t index, last;
    for (int k = 0; k < units; k++)
        band[k].pending.elements = 0;
    for (refbn_share(job, &band->unit, &index, &last); index < last; index++) {
        uint64_t undecided[REFBN_BAND] = {0};
        for (int turn = 0; turn < refbn_turns(&band->unit); turn++) {
            for (int which = 0; which < REFBN_TENSORS && units == 1; which++)
                if (is->tensors >> which & 1 && !refbn_tensor_output(job->call, which)->stream)
                    refbn_prefetch_next(job, &band->unit, turn, index, last, refbn_tensor_output(job->call, which), 1);
            for (refbn_tile rest = refbn_tile_at(job->call, &band->unit, index); rest.count > 0;) {
                const refbn_tile piece = refbn_next_strip(job->call, &band->unit, &rest);
                for (int k = 0; k < units; k++) {
                    work.s = &band[k].s;
                    work.turn = refbn_turn_at(&band[k].unit, turn);
                    work.piece = piece;
                    work.piece.columns = refbn_columns(&work.turn.unit);
                    const uint64_t every = refbn_every(&work.turn.unit);
                    if (!(band[k].flags[index] >> work.turn.lane & every))
                        continue;
                    work.in[0] = work.in[1] = work.in[2] = (refbn_rows){0};
                    for (int which = 0; which < REFBN_TENSORS; which++) {
                        if (!(is->tensors >> which & 1))
                            continue;
                        const uint64_t bad = refbn_write_tensor(&work, which, &trials[which]);
                        if (bad && job->call->decided)
                            band[k].pending.elements += refbn_count_undecided(&work, which);
                        undecided[k] |= bad << work.turn.lane;
                    }
                }
            }
        }
        for (int k = 0; k < units; k++) {
            band[k].flags[index] = undecided[k];
            band[k].undecided |= undecided[k];
        }
    }
}

/* ---- the last rung ---- */

static int refbn_exact_pass(int pass)
{
    switch (pass) {
    case REFBN_BACKWARD: return REFBN_EXACT_BACKWARD;
    case REFBN_JVP: return REFBN_EXACT_JVP;
    case REFBN_DOUBLE_BACKWARD: return REFBN_EXACT_DOUBLE_BACKWARD;
    case REFBN_HVP: return REFBN_EXACT_HVP;
    case REFBN_INFERENCE: return REFBN_EXACT_INFERENCE;
    case REFBN_INFERENCE_BACKWARD: return REFBN_EXACT_INFERENCE_BACKWARD;
    case REFBN_INFERENCE_JVP: return REFBN_EXACT_INFERENCE_JVP;
    case REFBN_INFERENCE_DOUBLE_BACKWARD: return REFBN_EXACT_INFERENCE_DOUBLE_BACKWARD;
    case REFBN_INFERENCE_HVP: return REFBN_EXACT_INFERENCE_HVP;
    default: return REFBN_EXACT_FORWARD; /* running_update, too */
    }
}

/* A tile by elements as it is in memory, side by side in binary64. */
static const double *refbn_numbers(const refbn_job *job, const refbn_unit *unit, const refbn_tile *tile, int which,
                                   double *buffer)
{
    static const double zero[REFBN_LANES];
    refbn_rows rows;
    refbn_read(job->call, unit, tile, refbn_input(job->call, which), REFBN_F64, NULL, zero, buffer, &rows);
    return (const double *)(const void *)rows.data;
}

REFBN_UNALIGNED(uint32_t, refbn_single_in_memory);
REFBN_UNALIGNED(uint64_t, refbn_word_in_memory);

static double refbn_exact_vector_of(const refbn_job *job, const refbn_exact_group *group,
                                    const refbn_solution *s, int which, int format)
{
    static const int outputs[REFBN_VECTORS] = {REFBN_EXACT_MEAN,   REFBN_EXACT_VAR,   REFBN_EXACT_INVSTD,
                                               REFBN_EXACT_DGAMMA, REFBN_EXACT_DBETA, REFBN_EXACT_DMEAN,
                                               REFBN_EXACT_DVAR};
    if (job->pass != REFBN_RUNNING_UPDATE)
        return refbn_exact_vector(group, outputs[which], format);
    const refbn_call *call = job->call;
    const int is_var = which == REFBN_TO_DVAR;
    return refbn_exact_running(group, is_var, call->unbiased, call->momentum[0], call->momentum[1],
                               call->weighs_new, s->parameter[is_var ? REFBN_VAR : REFBN_MEAN][0], format);
}

/* Write encoded numbers to some elements of a tile, in ascending order. */
static void refbn_put_codes(const refbn_call *call, const refbn_unit *unit, refbn_tile tile,
                            const refbn_tensor *output, const uint16_t *index, int n, const uint64_t *code)
{
    const ptrdiff_t stride = output->stride[call->geometry.ndim - 1];
    ptrdiff_t start = 0, left = 0; /* the run that `at` starts */
    char *at = NULL;
    for (int k = 0; k < n; k++) {
        const ptrdiff_t element = index[k];
        if (element >= start + left) {
            start = element;
            at = refbn_element(call, output, unit->group, tile.start + element, &left);
        }
        char *const to = at + (element - start) * stride;
        if (output->format == REFBN_F64)
            *(refbn_word_in_memory *)to = code[k];
        else if (output->format == REFBN_F32)
            *(refbn_single_in_memory *)to = (uint32_t)code[k];
        else
            *(refbn_half_in_memory *)to = (uint16_t)code[k];
    }
}

/* For a group of zeros. The squares lie where other sums did: once the group is solved, these are of no more
 * use. */
static void refbn_gather_squares(const refbn_job *job, const refbn_unit *unit, const refbn_traits *is,
                                 refbn_exact_group *group)
{
    double buffer[2][REFBN_BLOCK];
    refbn_exact_squares_begin(group);
    for (ptrdiff_t index = 0; index < refbn_tiles(job->call, unit) && (is->g || is->u); index++) {
        const refbn_tile tile = refbn_tile_at(job->call, unit, index);
        refbn_exact_squares_gather(group, is->g ? refbn_numbers(job, unit, &tile, 1, buffer[0]) : NULL,
                                   is->u ? refbn_numbers(job, unit, &tile, 2, buffer[1]) : NULL, tile.count);
    }
    refbn_exact_squares_end(group);
}

/* Where frozen statistics leave an element zero at sight: a product with one factor 0 (so no enclosure of finite
 * width decides it, as tiny products may underflow), or x = mean without a shift. Zeros are what activations
 * send back, half of all numbers, and integers would cost them a thousand times as much. */
enum { REFBN_NEVER, REFBN_IF_G, REFBN_IF_U, REFBN_IF_MEAN };

static int refbn_zero_at_sight(int pass, int which, const refbn_exact_parameters *is)
{
    const double all[] = {is->gamma, is->beta, is->mean, is->var,
                          is->gamma_dot, is->beta_dot, is->mean_dot, is->var_dot};
    for (size_t k = 0; k < sizeof all / sizeof *all; k++)
        if (!(all[k] - all[k] == 0.0))
            return REFBN_NEVER;
    const int moves = is->gamma_dot != 0.0 || is->beta_dot != 0.0 || is->mean_dot != 0.0 || is->var_dot != 0.0;
    switch (pass) {
    case REFBN_INFERENCE: return is->beta == 0.0 ? REFBN_IF_MEAN : REFBN_NEVER;
    case REFBN_INFERENCE_JVP: return moves ? REFBN_NEVER : REFBN_IF_U;
    case REFBN_INFERENCE_BACKWARD:
    case REFBN_INFERENCE_HVP: return REFBN_IF_G; /* (I4) */
    case REFBN_INFERENCE_DOUBLE_BACKWARD:
        return which == REFBN_TO_DX ? REFBN_IF_G : moves ? REFBN_NEVER : REFBN_IF_U;
    default: return REFBN_NEVER;
    }
}

/* Take the zeros out of a list of elements, and write them. */
static int refbn_put_zeros(const refbn_call *call, const refbn_unit *unit, refbn_tile tile,
                           const refbn_tensor *output, int zero_if, double mean, const double *x,
                           const double *g, const double *u, uint16_t *index, int n)
{
    static const uint64_t code[REFBN_BLOCK];
    uint16_t zeros[REFBN_BLOCK];
    int found = 0, left = 0;
    for (int k = 0; k < n; k++) {
        const uint16_t at = index[k];
        const int is_zero = zero_if == REFBN_IF_G   ? g[at] == 0.0
                            : zero_if == REFBN_IF_U ? u[at] == 0.0 && x[at] - x[at] == 0.0
                                                    : x[at] == mean;
        zeros[found] = index[left] = at;
        found += is_zero;
        left += !is_zero;
    }
    refbn_put_codes(call, unit, tile, output, zeros, found, code);
    return left;
}

/* One group, by elements. `s` is the solution of the last rung, or of none: then nothing is decided yet. Sums
 * and vector results are the first member's work, elements everybody's. */
static void refbn_run_exact(refbn_job *job, const refbn_unit *unit, const refbn_traits *is,
                            const refbn_solution *s, const refbn_open *open, const uint64_t *flags,
                            int solved)
{
    refbn_call *call = job->call;
    refbn_exact_group group;
    double buffer[3][REFBN_BLOCK];
    refbn_exact_begin(&group, refbn_exact_pass(job->pass), (uint64_t)s->count, s->eps);
    int vectors = 0;
    for (int which = 0; which < REFBN_VECTORS; which++)
        vectors |= (open->of[which] != 0) << which;
    if (is->sums && (!is->frozen || vectors))
        for (ptrdiff_t index = 0; index < refbn_tiles(call, unit); index++) {
            const refbn_tile tile = refbn_tile_at(call, unit, index);
            refbn_exact_gather(&group, refbn_numbers(job, unit, &tile, 0, buffer[0]),
                               is->g ? refbn_numbers(job, unit, &tile, 1, buffer[1]) : NULL,
                               is->u ? refbn_numbers(job, unit, &tile, 2, buffer[2]) : NULL, tile.count);
        }
    const refbn_exact_parameters parameters = {s->parameter[REFBN_GAMMA][0],
                                               s->parameter[REFBN_BETA][0],
                                               is->frozen ? s->parameter[REFBN_MEAN][0] : 0.0,
                                               is->frozen ? s->parameter[REFBN_VAR][0] : 0.0,
                                               s->parameter[REFBN_GAMMA_DOT][0],
                                               s->parameter[REFBN_BETA_DOT][0],
                                               s->parameter[REFBN_MEAN_DOT][0],
                                               s->parameter[REFBN_VAR_DOT][0]};
    refbn_exact_solve(&group, &parameters);
    for (int which = 0; which < REFBN_VECTORS; which++)
        if (vectors >> which & 1 && job->team->rank == 0) {
            const refbn_vector *output = refbn_output(call, which);
            const double value = refbn_exact_vector_of(job, &group, s, which, output->format);
            refbn_vector_set(output, unit->group, 1, &value);
        }
    if (!is->tensors)
        return;
    int hard[REFBN_TENSORS] = {0}, zero_if[REFBN_TENSORS], squares = 0;
    for (int which = 0; which < REFBN_TENSORS; which++)
        zero_if[which] = s->eps + parameters.var > 0.0 ? refbn_zero_at_sight(job->pass, which, &parameters)
                                                       : REFBN_NEVER;
    ptrdiff_t index, last;
    for (refbn_share(job, unit, &index, &last); index < last; index++) {
        if (!flags[index])
            continue;
        const refbn_tile tile = refbn_tile_at(call, unit, index);
        const double *x = refbn_numbers(job, unit, &tile, 0, buffer[0]);
        const double *g = is->g ? refbn_numbers(job, unit, &tile, 1, buffer[1]) : NULL;
        const double *u = is->u ? refbn_numbers(job, unit, &tile, 2, buffer[2]) : NULL;
        for (int which = 0; which < REFBN_TENSORS; which++) {
            if (!(is->tensors >> which & 1))
                continue;
            const refbn_tensor *output = refbn_tensor_output(call, which);
            const int form = which == REFBN_TO_Y ? REFBN_EXACT_Y : REFBN_EXACT_DX;
            uint16_t left[REFBN_BLOCK];
            uint64_t code[REFBN_BLOCK];
            int n = 0;
            if (solved && !hard[which]) {
                refbn_work work = {.job = job, .s = s, .turn = {*unit, 0}, .piece = tile};
                refbn_ends ends;
                refbn_enclose(&work, which, output->format != REFBN_F64, NULL, &ends);
                for (int k = 0; k < tile.count; k++) {
                    left[n] = (uint16_t)k;
                    n += !refbn_alike(ends.low[k] + 0.0, ends.high[k], output->format);
                }
                hard[which] = n > tile.count / 2; /* then it costs more to find out than to decide all */
            } else
                for (; n < tile.count; n++)
                    left[n] = (uint16_t)n;
            if (zero_if[which])
                n = refbn_put_zeros(call, unit, tile, output, zero_if[which], parameters.mean, x, g, u, left, n);
            refbn_exact_elements(&group, form, x, g, u, left, n, output->format, code);
            refbn_put_codes(call, unit, tile, output, left, n, code);
            if (!squares && refbn_exact_suggests_zero(&group, form)) {
                squares = 1;
                refbn_gather_squares(job, unit, is, &group);
            }
        }
    }
}

/* ---- the ladder ---- */

/* What any member left undecided is undecided. */
static void refbn_agree(refbn_job *job, refbn_ascent *band, int units)
{
    if (job->team->size == 1)
        return;
    for (int k = 0; k < units; k++)
        band[k].masks[job->team->rank] = band[k].undecided;
    refbn_meet(job);
    for (int k = 0; k < units; k++)
        for (int rank = 0; rank < job->team->size; rank++)
            band[k].undecided |= band[k].masks[rank];
    refbn_meet(job);
}

static int refbn_first_rung(const refbn_job *job, const refbn_unit *unit, const refbn_traits *is)
{
    if (!is->frozen && job->pass != REFBN_FORWARD && !unit->by_groups && unit->groups == 1 &&
        job->call->state[unit->group * REFBN_STATE_SIZE + REFBN_STATE_RUNG] > REFBN_TWOFOLD)
        return job->pass == REFBN_RUNNING_UPDATE ? REFBN_EXACT : REFBN_SCALED;
    return job->narrow ? REFBN_PLAIN : REFBN_TWOFOLD;
}

/* What a rung has left to the next one is no longer counted as its own. */
static void refbn_pass_on(refbn_job *job, const refbn_pending *pending, int from, int to)
{
    job->decided[0][from - 1] -= pending->elements;
    job->decided[0][to - 1] += pending->elements;
    job->decided[1][from - 1] -= pending->vectors;
    job->decided[1][to - 1] += pending->vectors;
}

/* What a solution has from the call. */
static void refbn_begin(const refbn_job *job, const refbn_traits *is, refbn_ascent *ascent)
{
    const refbn_call *call = job->call;
    const double *row = call->state + ascent->unit.group * REFBN_STATE_SIZE;
    refbn_solution *s = &ascent->s;
    const int first = job->pass == REFBN_FORWARD || job->pass == REFBN_INFERENCE;
    s->pass = job->pass;
    s->narrow = job->narrow;
    s->sums = REFBN_CENTERED;
    s->count = job->pass == REFBN_RUNNING_UPDATE ? row[REFBN_STATE_COUNT] : (double)call->geometry.count;
    s->eps = first ? call->eps : row[REFBN_STATE_EPS];
    s->unbiased = call->unbiased;
    __builtin_memcpy(s->weight[0], call->weight_new, sizeof s->weight[0]);
    __builtin_memcpy(s->weight[1], call->weight_old, sizeof s->weight[1]);
    ascent->summed = ascent->solved = ascent->brief = ascent->better = 0;
    refbn_fill_parameters(job, &ascent->unit, is, s);
}

/* One rung of the ladder, for the units of a band. Returns whether there is such a rung for them. */
static int refbn_step(refbn_job *job, const refbn_traits *is, refbn_ascent *band, int units, int rung)
{
    /* a second time, better */
    const int again = rung == REFBN_SCALED || (rung == REFBN_TWOFOLD && (band->brief || band->better));
    for (int k = 0; k < units; k++) {
        refbn_solution *s = &band[k].s;
        s->twofold = rung >= REFBN_TWOFOLD;
        s->scaled = rung == REFBN_SCALED;
        if (band->summed && !again)
            continue;
        refbn_fill_pivots(job, &band[k].unit, is, s);
        band[k].solved &= !s->scaled; /* what was solved before is no longer to be used */
        if (s->scaled && !refbn_choose_scales(job, &band[k].unit, is, s))
            return 0; /* only one unit comes to this rung at a time */
    }
    if (is->sums && (!band->summed || again))
        refbn_make_sums(job, is, band, units);
    for (int k = 0; k < units; k++) {
        refbn_ascent *of = &band[k];
        of->summed = of->solved = 1;
        refbn_solve(&of->s, refbn_lanes(&of->unit));
        if (of->unit.by_groups)
            refbn_repeat_solution(&of->unit, &of->s);
        of->undecided = refbn_write_vectors(job, &of->unit, is, &of->s, &of->open, &of->pending);
        for (int which = 0; which < REFBN_TENSORS; which++)
            if (is->tensors >> which & 1)
                of->s.hopeless[which] = refbn_hopeless(&of->s.tensor[which], of->unit.groups);
        if (job->pass == REFBN_FORWARD && job->team->rank == 0 && rung != REFBN_SCALED)
            refbn_save(job, &of->unit, &of->s);
    }
    refbn_sweep_combine(job, is, band, units);
    refbn_agree(job, band, units);
    return 1;
}

/* From `rung` on, what is flagged of one unit; `done`: that rung was taken already. `spare` is room for one group that
 * goes on alone. */
static void refbn_climb(refbn_job *job, refbn_ascent *ascent, int rung, int done, refbn_ascent *spare)
{
    const refbn_traits traits = refbn_traits_of(job->pass), *is = &traits;
    const refbn_unit *unit = &ascent->unit;
    const int last =
        is->frozen || job->narrow || job->pass == REFBN_RUNNING_UPDATE ? REFBN_TWOFOLD : REFBN_SCALED;
    const int together = unit->by_groups || unit->groups > 1;
    const int last_together = unit->copies > 1 ? REFBN_TWOFOLD : last; /* scales are not repeated */
    int alone = last; /* where groups begin that go on alone */
    for (; rung <= last; done = 0) {
        if (!done && !refbn_step(job, is, ascent, 1, rung))
            break;
        if (!ascent->undecided)
            return;
        if (together && rung == last)
            break;
        uint64_t hopeless = 0;
        for (int which = 0; which < REFBN_TENSORS; which++)
            hopeless |= is->tensors >> which & 1 ? ascent->s.hopeless[which] & ascent->undecided : 0;
        /* before scales: they cost more than sums in double-double */
        const int better =
            rung == REFBN_TWOFOLD && last == REFBN_SCALED && ascent->s.sums == REFBN_BIASED && !hopeless;
        const int next = better ? rung : rung + 1;
        if (next > rung)
            refbn_pass_on(job, &ascent->pending, rung, rung == last ? REFBN_EXACT : next);
        const int sums_again = ascent->brief || better || next == REFBN_SCALED;
        if (together && ((rung == last_together && next > rung) ||
                         (sums_again && __builtin_popcountll(ascent->undecided) <= 8))) {
            alone = next;
            break;
        }
        ascent->better = better;
        rung = next;
    }
    if (!together) {
        if (rung <= last)
            refbn_pass_on(job, &ascent->pending, rung, REFBN_EXACT);
        refbn_run_exact(job, unit, is, &ascent->s, &ascent->open, ascent->flags, ascent->solved);
        return;
    }
    /* Each of the groups that need more goes on alone. */
    const ptrdiff_t all = refbn_tiles(job->call, unit), size = job->call->tile / refbn_tile_size(job->call, unit);
    for (int lane = 0; lane < unit->groups; lane++) {
        if (!(ascent->undecided >> lane & 1))
            continue;
        spare->unit = (refbn_unit){unit->group + lane, 1, 0, 1};
        spare->totals = ascent->totals;
        spare->masks = ascent->masks;
        spare->flags = ascent->flags + all;
        spare->pending = (refbn_pending){0, 0};
        ptrdiff_t index, end;
        for (refbn_share(job, &spare->unit, &index, &end); index < end; index++) {
            spare->flags[index] = 0;
            for (ptrdiff_t from = index * size; from < (index + 1) * size && from < all; from++)
                spare->flags[index] |= ascent->flags[from] >> lane & 1;
        }
        for (int which = 0; which < REFBN_VECTORS; which++)
            spare->open.of[which] = ascent->open.of[which] >> lane & 1;
        refbn_meet(job); /* whoever goes on to the next unit writes its flags */
        refbn_begin(job, is, spare);
        spare->better = alone == REFBN_TWOFOLD && ascent->s.twofold;
        refbn_climb(job, spare, alone, 0, NULL);
    }
}

/* ---- the passes ---- */

/* Plain binary64 only where nothing is binary64. */
static int refbn_is_narrow(const refbn_call *call)
{
    const refbn_tensor *tensors[] = {&call->x, &call->dy, &call->x_dot, &call->y, &call->dx};
    const refbn_vector *vectors[] = {
        &call->gamma,     &call->beta,     &call->mean,     &call->var,     &call->invstd,
        &call->gamma_dot, &call->beta_dot, &call->mean_dot, &call->var_dot, &call->dgamma,
        &call->dbeta,     &call->dmean,    &call->dvar,
    };
    int wide = 0;
    if (refbn_traits_of(call->pass).frozen &&
        call->pass != REFBN_INFERENCE) /* whose statistics the state hands on */
        for (ptrdiff_t group = 0; group < call->geometry.groups; group++) {
            const double *row = call->state + group * REFBN_STATE_SIZE;
            wide |= (double)(float)row[REFBN_STATE_PIVOT] != row[REFBN_STATE_PIVOT];
            wide |= (double)(float)row[REFBN_STATE_VAR] != row[REFBN_STATE_VAR];
        }
    for (size_t k = 0; k < sizeof tensors / sizeof *tensors; k++)
        wide |= tensors[k]->data && tensors[k]->format == REFBN_F64;
    for (size_t k = 0; k < sizeof vectors / sizeof *vectors; k++)
        wide |= vectors[k]->data && vectors[k]->format == REFBN_F64;
    return !wide;
}

static ptrdiff_t refbn_units(const refbn_call *call)
{
    return (call->geometry.groups + call->unit_groups - 1) / call->unit_groups;
}

static refbn_unit refbn_unit_at(const refbn_call *call, ptrdiff_t index)
{
    const ptrdiff_t group = index * call->unit_groups, left = call->geometry.groups - group;
    return (refbn_unit){group, (int)(left < call->unit_groups ? left : call->unit_groups), call->by_groups,
                        call->copies};
}

/* Flags of a unit's tiles, and of the tiles of one of its groups alone. */
static ptrdiff_t refbn_flags(const refbn_call *call)
{
    const refbn_unit unit = {0, 1, call->by_groups, call->copies};
    return call->geometry.count / refbn_tile_size(call, &unit) + call->geometry.count / call->tile + 2;
}

/* Units of a band. */
static int refbn_band(const refbn_call *call)
{
    return call->by_groups && refbn_units(call) > 1
               ? (int)(refbn_units(call) < REFBN_BAND ? refbn_units(call) : REFBN_BAND)
               : 1;
}

/* Numbers of flags and masks are rounded up, so that what follows lies well. */
static size_t refbn_words(const refbn_call *call, int members)
{
    return ((size_t)refbn_flags(call) + (size_t)members + 7) / 8 * 8;
}

/* For each set of units that is worked on at a time: the members' totals, flags and masks; for each member: its
 * view of them and a spare one. */
static size_t refbn_scratch_size(const refbn_call *call, int members)
{
    const size_t band = (size_t)refbn_band(call);
    const size_t shared = band * (sizeof(refbn_totals) + sizeof(uint64_t) * refbn_words(call, members));
    return (size_t)members * (shared + (band + 1) * sizeof(refbn_ascent));
}

/* One band of units, `index` counted in bands. */
static void refbn_run_band(refbn_job *job, ptrdiff_t index, refbn_ascent *ascents)
{
    const refbn_call *call = job->call;
    const refbn_traits is = refbn_traits_of(job->pass);
    const int band = refbn_band(call);
    const ptrdiff_t first = index * band, left = refbn_units(call) - first;
    const int units = (int)(left < band ? left : band);
    int rung = 0;
    for (int k = 0; k < units; k++) {
        refbn_ascent *of = &ascents[k];
        of->unit = refbn_unit_at(call, first + k);
        of->undecided = 0;
        rung = refbn_first_rung(job, &of->unit, &is);
        int64_t *elements = &job->decided[0][rung - 1], *vectors = &job->decided[1][rung - 1];
        ptrdiff_t tile, last;
        for (refbn_share(job, &of->unit, &tile, &last); tile < last; tile++) {
            *elements += refbn_tile_at(call, &of->unit, tile).count * of->unit.groups *
                         __builtin_popcount((unsigned)is.tensors);
            of->flags[tile] = refbn_every(&of->unit);
        }
        if (job->team->rank == 0)
            *vectors += of->unit.groups * __builtin_popcount((unsigned)is.vectors);
        for (int which = 0; which < REFBN_VECTORS; which++)
            of->open.of[which] = is.vectors >> which & 1 ? refbn_every(&of->unit) : 0;
        refbn_begin(job, &is, of);
    }
    const int done = units > 1; /* a unit alone may begin anywhere */
    if (done)
        refbn_step(job, &is, ascents, units, rung);
    for (int k = 0; k < units; k++)
        refbn_climb(job, &ascents[k], rung, done, &ascents[band]);
}

static void refbn_clear(const refbn_call *call, const refbn_vector *vector)
{
    const double zero = 0.0;
    for (ptrdiff_t group = 0; vector->data && group < call->geometry.groups; group++)
        refbn_vector_set(vector, group, 1, &zero);
}

/* A member's part of a call that was prepared. With enough units each is one member's work; otherwise all
 * members share each unit's tiles. */
static void refbn_run(refbn_call *call, refbn_team *team)
{
    const int members = team->size, band = refbn_band(call);
    refbn_team solo = {.rank = 0, .size = 1};
    const ptrdiff_t bands = (refbn_units(call) + band - 1) / band;
    const int apart = members == 1 || bands >= 4 * (ptrdiff_t)members;
    refbn_job job = {.call = call,
                     .team = apart ? &solo : team,
                     .pass = call->pass,
                     .narrow = refbn_is_narrow(call)};
    /* see refbn_scratch_size; apart, a member has totals of its own, else a part of all members' */
    const size_t words = refbn_words(call, members);
    refbn_totals *totals = call->scratch;
    uint64_t *shared = (uint64_t *)(void *)(totals + members * band);
    refbn_ascent *ascents =
        (refbn_ascent *)(void *)(shared + (size_t)(members * band) * words) + team->rank * (band + 1);
    for (int k = 0; k < band; k++) {
        const int own = apart ? team->rank * band + k : k;
        ascents[k].totals = totals + own * job.team->size;
        ascents[k].masks = shared + (size_t)own * words;
        ascents[k].flags = ascents[k].masks + members;
    }
    if (apart && members > 1)
        for (ptrdiff_t index; (index = refbn_team_next(team)) < bands;)
            refbn_run_band(&job, index, ascents);
    else
        for (ptrdiff_t index = 0; index < bands; index++)
            refbn_run_band(&job, index, ascents);
    refbn_stream_end();
    if (call->decided)
        for (int k = 0; k < 8; k++)
            __atomic_fetch_add(call->decided + k, job.decided[k / 4][k % 4], __ATOMIC_RELAXED);
    if (call->geometry.count == 0 && team->rank == 0) { /* R6: sums over no elements are 0 */
        refbn_clear(call, &call->dgamma);
        refbn_clear(call, &call->dbeta);
        if (call->pass != REFBN_RUNNING_UPDATE) {
            refbn_clear(call, &call->dmean);
            refbn_clear(call, &call->dvar);
        }
    }
}

#define REFBN_JOIN(name, build) REFBN_JOIN_AGAIN(name, build)
#define REFBN_JOIN_AGAIN(name, build) name##_##build
#define REFBN_TEXT(name) REFBN_TEXT_AGAIN(name)
#define REFBN_TEXT_AGAIN(name) #name

extern const refbn_kernels REFBN_JOIN(refbn_kernels, REFBN_BUILD);

const refbn_kernels REFBN_JOIN(refbn_kernels, REFBN_BUILD) = {
    .name = REFBN_TEXT(REFBN_BUILD),
    .prepare = refbn_plan,
    .scratch_size = refbn_scratch_size,
    .run = refbn_run,
};
