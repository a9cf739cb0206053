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
 *   1  plain binary64, if nothing of the call is binary64
 *   2  double-double
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
 * and S a bound of the sum of magnitudes by Cauchy and Schwarz, e.g. |sum g t| <= sqrt(sum g^2 sum t^2).
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
    refbn_totals *totals; /* one for each member, as are the masks */
    uint64_t *masks;
    int pass, narrow;
    int64_t decided[2][4]; /* elements and vector results, by rung */
} refbn_job;

/* How many of a unit's results are not decided yet; elements only where they are counted. */
typedef struct {
    int64_t elements, vectors;
} refbn_pending;

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
    if (job->team->size > 1)
        job->team->barrier(job->team);
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
 * Returns whether the pivots might as well be 0 in double-double: the elements differ by more than 1/32 of
 * them. */
static int refbn_choose_pivots(const refbn_job *job, const refbn_unit *unit, const refbn_tensor *tensor,
                               int twofold, double *pivot)
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
    for (int lane = 0; twofold && lane < unit->groups; lane++) {
        double spread = 0.0;
        for (int k = 0; k < 4; k++) {
            const double from_pivot = sample[k][lane] - pivot[lane];
            spread += from_pivot < 0.0 ? -from_pivot : from_pivot;
        }
        dispensable &= (spread * 32.0 >= pivot[lane]) & (spread * 32.0 >= -pivot[lane]);
    }
    return dispensable;
}

static int refbn_is_broadcast(const refbn_call *call, const refbn_tensor *tensor)
{
    for (int axis = 0; axis < call->geometry.ndim; axis++)
        if (tensor->stride[axis] != 0 && call->geometry.extent[axis] > 1)
            return 0;
    return 1;
}

static void refbn_fill_pivots(const refbn_job *job, const refbn_unit *unit, const refbn_traits *is,
                              refbn_solution *s)
{
    refbn_call *call = job->call;
    const int lanes = refbn_columns(unit);
    for (int which = 0; which < 3; which++) {
        const refbn_tensor *tensor = refbn_input(call, which);
        double *pivot = s->pivot[which];
        const int used = tensor->data && call->geometry.count > 0;
        const int broadcast = used && !is->frozen && refbn_is_broadcast(call, tensor);
        s->dispensable[which] = !is->frozen;
        if (is->frozen || !used)
            for (int lane = 0; lane < unit->groups; lane++)
                pivot[lane] = is->frozen && which == 0 ? s->parameter[REFBN_MEAN][lane] : 0.0;
        else
            s->dispensable[which] = refbn_choose_pivots(job, unit, tensor, s->twofold, pivot);
        for (int lane = 0; lane < lanes; lane++) {
            if (lane >= unit->groups) /* padding; by elements, the one group's */
                pivot[lane] = unit->by_groups ? 0.0 : pivot[0];
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

/* The part of `tensor` in a tile, as kernels want it. */
static refbn_rows refbn_part(const refbn_job *job, const refbn_unit *unit, refbn_tile tile, int which,
                             const refbn_solution *s, double *buffer)
{
    double scale[REFBN_LANES];
    const int format = s->twofold ? REFBN_F64 : REFBN_F32;
    if (s->scaled)
        for (int lane = 0; lane < unit->groups; lane++)
            scale[lane] = refbn_power(s->exponent[which][lane]);
    return refbn_read(job->call, unit, tile, refbn_input(job->call, which), format, s->scaled ? scale : NULL,
                      s->pivot[which], buffer);
}

typedef struct {
    double of[3][REFBN_BLOCK];
} refbn_buffers;

/* Every member's totals, added up to balls. */
static void refbn_collect(const refbn_job *job, const refbn_unit *unit, refbn_solution *s, int moments, int g,
                          int u)
{
    const refbn_totals *members = job->totals;
    const int lanes = refbn_lanes(unit), size = job->team->size;
    for (int k = 0; k < REFBN_SUMS; k++) {
        if (!refbn_has_sum(k, moments, g, u))
            continue;
        for (int lane = 0; lane < (unit->by_groups ? lanes : REFBN_WIDTH); lane += REFBN_WIDTH) {
            refbn_pair sum = {{0}, {0}};
            for (int rank = 0; rank < size; rank++)
                for (int from = lane; from < (unit->by_groups ? lane + 1 : REFBN_ROW); from += REFBN_WIDTH)
                    sum = refbn_add_pairs(sum, (refbn_pair){refbn_load(members[rank].hi[k] + from),
                                                            refbn_load(members[rank].lo[k] + from)});
            refbn_store(s->sum[k].hi + lane, sum.hi);
            refbn_store(s->sum[k].lo + lane, sum.lo);
        }
        if (!unit->by_groups) {
            double *hi = s->sum[k].hi, *lo = s->sum[k].lo;
            for (int half = REFBN_WIDTH / 2; half > 0; half /= 2)
                for (int lane = 0; lane < half; lane++)
                    refbn_two_sum_one(&hi[lane], &lo[lane], hi[lane + half], lo[lane + half]);
            for (int lane = 1; lane < REFBN_WIDTH; lane++)
                hi[lane] = hi[0], lo[lane] = lo[0];
        }
    }
    const double pieces = (double)refbn_tiles(job->call, unit) + (double)refbn_runs(job->call);
    const double additions = pieces + (double)(size * REFBN_ROW + REFBN_LANES);
    uint64_t inexact = !(g && u);
    for (int rank = 0; rank < size; rank++)
        inexact |= members[rank].inexact;
    s->twofold_sums = s->twofold || (s->mode == REFBN_CAREFUL && !inexact);
    const double sums = s->twofold_sums            ? REFBN_DOUBLE_SUM
                        : s->mode == REFBN_CAREFUL ? REFBN_PLAIN_SUM
                                                   : REFBN_PLAIN_SQUARES;
    for (int lane = 0; lane < lanes; lane += REFBN_WIDTH) {
        refbn_v root[4]; /* of the sums of 1, t^2, g^2, u^2 */
        root[0] = refbn_root(refbn_splat(s->count));
        root[1] = refbn_root(refbn_load(s->sum[REFBN_TT].hi + lane));
        root[2] = g ? refbn_root(refbn_load(s->sum[REFBN_GG].hi + lane)) : root[0];
        root[3] = u ? refbn_root(refbn_load(s->sum[REFBN_UU].hi + lane)) : root[0];
        static const int factors[REFBN_SUMS][2] = {{0, 1}, {1, 1}, {0, 2}, {2, 1}, {2, 2},
                                                   {0, 3}, {3, 1}, {3, 3}, {3, 2}};
        for (int k = 0; k < REFBN_SUMS; k++)
            if (refbn_has_sum(k, moments, g, u)) {
                const int plain = k == REFBN_GG || k == REFBN_UU || (k == REFBN_TT && !s->twofold_sums);
                const double factor = (plain ? REFBN_PLAIN_SQUARES : sums) + additions * 0x4p-106;
                refbn_store(s->sum[k].err + lane,
                            root[factors[k][0]] * root[factors[k][1]] * (factor * (1.0 + 0x1p-20)));
            }
    }
    /* narrow squares cannot vanish: a sum of squares that is 0 shows a constant */
    if (s->narrow)
        for (int lane = 0; lane < lanes; lane++) {
            s->constant[0][lane] = s->sum[REFBN_TT].hi[lane] == 0.0;
            if (g)
                s->constant[1][lane] = s->sum[REFBN_GG].hi[lane] == 0.0;
            if (u)
                s->constant[2][lane] = s->sum[REFBN_UU].hi[lane] == 0.0;
        }
}

/* The tile after `index`; after the last one, the first one of the unit that comes next as a rule. */
static void refbn_prefetch_next(const refbn_job *job, const refbn_unit *unit, ptrdiff_t index, ptrdiff_t last,
                                const refbn_tensor *tensor, int write)
{
    refbn_unit of = *unit;
    index++;
    if (index == last && job->team->size == 1) {
        of.group += of.groups;
        if (of.group + of.groups > job->call->geometry.groups)
            return;
        index = 0;
    }
    refbn_prefetch(job->call, &of, index, tensor, write);
}

static void refbn_sweep_sums(refbn_job *job, const refbn_unit *unit, refbn_solution *s, int moments, int g,
                             int u)
{
    refbn_totals *totals = job->totals + job->team->rank;
    refbn_buffers buffers;
    const int columns = refbn_columns(unit);
    totals->inexact = 0;
    for (int k = 0; k < REFBN_SUMS; k++)
        if (refbn_has_sum(k, moments, g, u)) {
            __builtin_memset(totals->hi[k], 0, sizeof(double) * (size_t)columns);
            __builtin_memset(totals->lo[k], 0, sizeof(double) * (size_t)columns);
        }
    ptrdiff_t index, last;
    for (refbn_share(job, unit, &index, &last); index < last; index++) {
        const refbn_tile tile = refbn_tile_at(job->call, unit, index);
        for (int which = 0; which < 3; which++)
            if (which == 0 || (which == 1 ? g : u))
                refbn_prefetch_next(job, unit, index, last, refbn_input(job->call, which), 0);
        for (refbn_tile rest = tile; rest.count > 0;) {
            const refbn_tile piece = refbn_next_piece(job->call, unit, &rest);
            refbn_rows in[3];
            in[0] = in[1] = in[2] = refbn_part(job, unit, piece, 0, s, buffers.of[0]);
            if (g)
                in[1] = refbn_part(job, unit, piece, 1, s, buffers.of[1]);
            if (u)
                in[2] = refbn_part(job, unit, piece, 2, s, buffers.of[2]);
            refbn_sum_tile(s->mode, in, piece, s->pivot, totals, moments, g, u);
        }
    }
    refbn_meet(job);
    refbn_collect(job, unit, s, moments, g, u);
    refbn_meet(job); /* before the totals are used again */
}

/* Take the pivot and the sums of x from the state, if every group's are good enough. */
static int refbn_recall(const refbn_job *job, const refbn_unit *unit, refbn_solution *s)
{
    if (s->scaled)
        return 0;
    const double *rows = job->call->state + unit->group * REFBN_STATE_SIZE;
    for (int lane = 0; lane < unit->groups; lane++) {
        const double rung = rows[lane * REFBN_STATE_SIZE + REFBN_STATE_RUNG];
        if (rung < (s->twofold ? REFBN_TWOFOLD : REFBN_PLAIN) || rung > REFBN_TWOFOLD)
            return 0;
    }
    s->dispensable[0] = 1;
    for (int lane = 0; lane < refbn_columns(unit); lane++) {
        const double *row = rows + (lane < unit->groups ? lane : 0) * REFBN_STATE_SIZE;
        s->pivot[0][lane] = row[REFBN_STATE_PIVOT];
        s->dispensable[0] &= row[REFBN_STATE_PIVOT] == 0.0;
        for (int k = 0; k < 2; k++) {
            const double *sum = row + REFBN_STATE_SUM + 3 * k;
            s->sum[REFBN_T + k].hi[lane] = sum[0];
            s->sum[REFBN_T + k].lo[lane] = sum[1];
            s->sum[REFBN_T + k].err[lane] = sum[2];
        }
    }
    return 1;
}

static void refbn_save(const refbn_job *job, const refbn_unit *unit, const refbn_solution *s, int rung)
{
    for (int lane = 0; lane < unit->groups; lane++) {
        double *row = job->call->state + (unit->group + lane) * REFBN_STATE_SIZE;
        row[REFBN_STATE_RUNG] = rung;
        row[REFBN_STATE_COUNT] = s->count;
        row[REFBN_STATE_EPS] = s->eps;
        row[REFBN_STATE_PIVOT] = s->pivot[0][lane];
        for (int k = 0; k < 2; k++) {
            double *sum = row + REFBN_STATE_SUM + 3 * k;
            sum[0] = s->sum[REFBN_T + k].hi[lane];
            sum[1] = s->sum[REFBN_T + k].lo[lane];
            sum[2] = s->sum[REFBN_T + k].err[lane];
        }
    }
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
        for (ptrdiff_t index = 0; index < refbn_tiles(call, unit); index++) {
            const refbn_tile tile = refbn_tile_at(call, unit, index);
            const refbn_rows rows = refbn_read(call, unit, tile, refbn_input(call, which), REFBN_F64, NULL,
                                               s->pivot[which], buffer);
            for (int row = 0; row < tile.rows; row++)
                for (int lane = 0; lane < tile.columns; lane++) {
                    const double value =
                        ((const double *)(const void *)(rows.data + row * rows.stride))[lane];
                    const double magnitude = value < 0.0 ? -value : value;
                    largest[lane] = magnitude <= largest[lane] ? largest[lane] : magnitude; /* keeps a NaN */
                    differs[lane] += value != s->pivot[which][lane];
                }
        }
        if (!unit->by_groups)
            for (int lane = 1; lane < REFBN_ROW; lane++) {
                largest[0] = largest[lane] <= largest[0] ? largest[0] : largest[lane];
                differs[0] += differs[lane];
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
            const int like = unit->by_groups ? lane : 0;
            s->exponent[which][lane] = unit->by_groups ? 0.0 : s->exponent[which][0];
            s->constant[which][lane] = unit->by_groups ? 1.0 : s->constant[which][0];
            s->pivot[which][lane] = s->pivot[which][like];
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

/* Which groups' vector results are still open, a bit for each. */
typedef struct {
    uint64_t of[REFBN_VECTORS];
} refbn_open;

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

/* By elements, one group's coefficients in every lane. */
static void refbn_spread(refbn_solution *s, int which)
{
    refbn_combination *of = &s->tensor[which];
    for (int k = 0; k < of->terms; k++)
        for (int lane = 1; lane < REFBN_ROW; lane++)
            s->center[of->tensor[k]][lane] = s->center[of->tensor[k]][0];
    for (int k = 0; k < 4; k++)
        for (int lane = 1; lane < REFBN_ROW; lane++) {
            of->hi[k][lane] = of->hi[k][0];
            of->lo[k][lane] = of->lo[k][0];
            of->bound[k][lane] = of->bound[k][0];
        }
}

/* One output of one tile, both ends of each enclosure in `ends`. */
static uint64_t refbn_enclose(const refbn_job *job, const refbn_unit *unit, refbn_tile tile,
                              const refbn_solution *s, int which, int odd, refbn_rows out, refbn_ends *ends,
                              refbn_rows *in, refbn_buffers *buffers)
{
    const refbn_combination *of = &s->tensor[which];
    refbn_rows used[3];
    double pivots[3][REFBN_LANES];
    for (int k = 0; k < of->terms; k++) {
        const int tensor = of->tensor[k];
        if (!in[tensor].data)
            in[tensor] = refbn_part(job, unit, tile, tensor, s, buffers->of[tensor]);
        used[k] = in[tensor];
        __builtin_memcpy(pivots[k], s->center[tensor], sizeof(double) * (size_t)tile.columns);
    }
    return refbn_combine_tile(s->mode, used, tile, of, (const double (*)[REFBN_LANES])pivots, out, ends,
                              s->scaled || refbn_traits_of(job->pass).frozen, odd);
}

/* Bits of the lanes with an undecided element. */
static uint64_t refbn_write_tensor(const refbn_job *job, const refbn_unit *unit, refbn_tile tile,
                                   const refbn_solution *s, int which, refbn_rows *in, refbn_buffers *buffers)
{
    const refbn_tensor *output = refbn_tensor_output(job->call, which);
    const int own = s->twofold ? REFBN_F64 : REFBN_F32;
    double encoded[REFBN_BLOCK];
    refbn_rows out;
    if (output->format == own) {
        const int placed = refbn_in_place(job->call, unit, tile, output, own, &out);
        if (!placed)
            out = (refbn_rows){(char *)encoded, (ptrdiff_t)tile.columns * refbn_size(own)};
        const uint64_t undecided =
            refbn_enclose(job, unit, tile, s, which, 0, out, NULL, in, buffers) | s->hopeless[which];
        if (!placed)
            refbn_write_tile(job->call, unit, tile, output, encoded);
        return undecided;
    }
    refbn_ends ends;
    uint64_t undecided =
        refbn_enclose(job, unit, tile, s, which, s->twofold, (refbn_rows){0}, &ends, in, buffers);
    const int size = refbn_size(output->format);
    for (int k = 0; k < tile.rows * tile.columns; k++) {
        refbn_put(output->format, (char *)encoded + k * size, ends.low[k] + 0.0);
        if (!refbn_alike(ends.low[k] + 0.0, ends.high[k], output->format))
            undecided |= (uint64_t)1 << k % tile.columns;
    }
    refbn_write_tile(job->call, unit, tile, output, encoded);
    return undecided;
}

static int64_t refbn_count_undecided(const refbn_job *job, const refbn_unit *unit, refbn_tile tile,
                                     const refbn_solution *s, int which)
{
    refbn_buffers buffers;
    refbn_ends ends;
    refbn_rows in[3] = {{0}};
    const int format = refbn_tensor_output(job->call, which)->format;
    refbn_enclose(job, unit, tile, s, which, s->twofold && format != REFBN_F64, (refbn_rows){0}, &ends, in,
                  &buffers);
    int64_t count = 0;
    for (int k = 0; k < tile.rows * tile.columns; k++) {
        const int inside = unit->by_groups ? k % tile.columns < unit->groups : k < tile.count;
        count += inside && !refbn_alike(ends.low[k] + 0.0, ends.high[k], format);
    }
    return count;
}

/* Combine every flagged tile; flags are replaced by bits of the lanes that are still undecided. Returns their
 * union. */
static uint64_t refbn_sweep_combine(refbn_job *job, const refbn_unit *unit, const refbn_traits *is,
                                    const refbn_solution *s, uint64_t *flags, refbn_pending *pending)
{
    pending->elements = 0;
    const uint64_t every = refbn_every(unit);
    uint64_t all = 0;
    ptrdiff_t index, last;
    for (refbn_share(job, unit, &index, &last); index < last; index++) {
        if (!flags[index])
            continue;
        const refbn_tile tile = refbn_tile_at(job->call, unit, index);
        refbn_buffers buffers;
        uint64_t undecided = 0;
        for (int which = 0; which < REFBN_TENSORS; which++)
            if (is->tensors >> which & 1)
                refbn_prefetch_next(job, unit, index, last, refbn_tensor_output(job->call, which), 1);
        for (refbn_tile rest = tile; rest.count > 0;) {
            const refbn_tile piece = refbn_next_piece(job->call, unit, &rest);
            refbn_rows in[3] = {{0}};
            for (int which = 0; which < REFBN_TENSORS; which++) {
                if (!(is->tensors >> which & 1))
                    continue;
                const uint64_t bad = refbn_write_tensor(job, unit, piece, s, which, in, &buffers);
                if (bad && job->call->decided)
                    pending->elements += refbn_count_undecided(job, unit, piece, s, which);
                undecided |= bad;
            }
        }
        flags[index] = unit->by_groups ? undecided & every : undecided != 0;
        all |= flags[index];
    }
    return all;
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
static const double *refbn_numbers(const refbn_job *job, const refbn_unit *unit, refbn_tile tile, int which,
                                   double *buffer)
{
    static const double zero[REFBN_LANES];
    const refbn_rows rows =
        refbn_read(job->call, unit, tile, refbn_input(job->call, which), REFBN_F64, NULL, zero, buffer);
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
        refbn_exact_squares_gather(group, is->g ? refbn_numbers(job, unit, tile, 1, buffer[0]) : NULL,
                                   is->u ? refbn_numbers(job, unit, tile, 2, buffer[1]) : NULL, tile.count);
    }
    refbn_exact_squares_end(group);
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
            refbn_exact_gather(&group, refbn_numbers(job, unit, tile, 0, buffer[0]),
                               is->g ? refbn_numbers(job, unit, tile, 1, buffer[1]) : NULL,
                               is->u ? refbn_numbers(job, unit, tile, 2, buffer[2]) : NULL, tile.count);
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
    int hard[REFBN_TENSORS] = {0}, squares = 0;
    ptrdiff_t index, last;
    for (refbn_share(job, unit, &index, &last); index < last; index++) {
        if (!flags[index])
            continue;
        const refbn_tile tile = refbn_tile_at(call, unit, index);
        const double *x = refbn_numbers(job, unit, tile, 0, buffer[0]);
        const double *g = is->g ? refbn_numbers(job, unit, tile, 1, buffer[1]) : NULL;
        const double *u = is->u ? refbn_numbers(job, unit, tile, 2, buffer[2]) : NULL;
        for (int which = 0; which < REFBN_TENSORS; which++) {
            if (!(is->tensors >> which & 1))
                continue;
            const refbn_tensor *output = refbn_tensor_output(call, which);
            const int form = which == REFBN_TO_Y ? REFBN_EXACT_Y : REFBN_EXACT_DX;
            uint16_t left[REFBN_BLOCK];
            uint64_t code[REFBN_BLOCK];
            int n = 0;
            if (solved && !hard[which]) {
                refbn_buffers buffers;
                refbn_ends ends;
                refbn_rows in[3] = {{0}};
                refbn_enclose(job, unit, tile, s, which, output->format != REFBN_F64, (refbn_rows){0}, &ends,
                              in, &buffers);
                for (int k = 0; k < tile.count; k++) {
                    left[n] = (uint16_t)k;
                    n += !refbn_alike(ends.low[k] + 0.0, ends.high[k], output->format);
                }
                hard[which] = n > tile.count / 2; /* then it costs more to find out than to decide all */
            } else
                for (; n < tile.count; n++)
                    left[n] = (uint16_t)n;
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

static uint64_t refbn_agree(refbn_job *job, uint64_t mask)
{
    if (job->team->size == 1)
        return mask;
    uint64_t *masks = job->masks, all = 0;
    masks[job->team->rank] = mask;
    refbn_meet(job);
    for (int rank = 0; rank < job->team->size; rank++)
        all |= masks[rank];
    refbn_meet(job);
    return all;
}

static int refbn_first_rung(const refbn_job *job, const refbn_unit *unit, const refbn_traits *is)
{
    if (!is->frozen && job->pass != REFBN_FORWARD && !unit->by_groups &&
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

/* How sums and combinations are made. In DIRECT mode the pivots become 0. Where few elements are summed,
 * plain sums seldom leave anything undecided, and it costs little if they do. */
static int refbn_mode(refbn_solution *s, const refbn_traits *is)
{
    enum { FEW = 2048 };
    if (!s->twofold)
        return s->count <= FEW && !(is->g && is->u) ? REFBN_QUICK : REFBN_CAREFUL;
    for (int which = 0; which < 3; which++)
        if (s->scaled || !s->dispensable[which])
            return REFBN_CENTERED;
    for (int which = 0; which < 3; which++)
        for (int lane = 0; lane < REFBN_LANES; lane++)
            s->pivot[which][lane] = 0.0;
    return REFBN_DIRECT;
}

/* From `rung` on, what is flagged. */
static void refbn_climb(refbn_job *job, const refbn_unit *unit, int rung, refbn_open *open, uint64_t *flags)
{
    const refbn_traits traits = refbn_traits_of(job->pass), *is = &traits;
    refbn_call *call = job->call;
    refbn_solution s;
    s.pass = job->pass;
    s.narrow = job->narrow;
    s.count = (double)call->geometry.count;
    s.eps = job->pass == REFBN_FORWARD || job->pass == REFBN_INFERENCE
                ? call->eps
                : call->state[unit->group * REFBN_STATE_SIZE + REFBN_STATE_EPS];
    if (job->pass == REFBN_RUNNING_UPDATE)
        s.count = call->state[unit->group * REFBN_STATE_SIZE + REFBN_STATE_COUNT];
    s.unbiased = call->unbiased;
    s.twofold_sums = 0;
    __builtin_memcpy(s.weight[0], call->weight_new, sizeof s.weight[0]);
    __builtin_memcpy(s.weight[1], call->weight_old, sizeof s.weight[1]);
    refbn_fill_parameters(job, unit, is, &s);
    const int last =
        is->frozen || job->narrow || job->pass == REFBN_RUNNING_UPDATE ? REFBN_TWOFOLD : REFBN_SCALED;
    refbn_pending pending = {0, 0};
    uint64_t undecided = 0;
    int solved = 0;
    for (; rung <= last; rung++) {
        s.twofold = rung >= REFBN_TWOFOLD;
        s.scaled = rung == REFBN_SCALED;
        s.mode = s.twofold ? REFBN_CENTERED : REFBN_CAREFUL;
        const int reuses_sums = is->sums && rung == REFBN_TWOFOLD && s.twofold_sums;
        if (!reuses_sums) {
            refbn_fill_pivots(job, unit, is, &s);
            solved &= !s.scaled; /* what was solved before is no longer to be used */
            if (s.scaled && !refbn_choose_scales(job, unit, is, &s))
                break;
        }
        if (is->sums && !reuses_sums) {
            const int second = is->g && is->u && !s.twofold; /* there sums are worth the effort: rungs.h */
            const int moments =
                is->frozen || job->pass == REFBN_FORWARD || second || !refbn_recall(job, unit, &s);
            s.mode = refbn_mode(&s, is);
            refbn_sweep_sums(job, unit, &s, moments, is->g, is->u);
        }
        refbn_solve(&s, refbn_lanes(unit));
        solved = 1;
        undecided = refbn_write_vectors(job, unit, is, &s, open, &pending);
        if (job->pass == REFBN_FORWARD && job->team->rank == 0)
            refbn_save(job, unit, &s, rung);
        for (int which = 0; which < REFBN_TENSORS; which++)
            if (is->tensors >> which & 1) {
                if (!unit->by_groups)
                    refbn_spread(&s, which);
                s.hopeless[which] = refbn_hopeless(&s.tensor[which], unit->by_groups ? unit->groups : 1);
            }
        undecided |= refbn_sweep_combine(job, unit, is, &s, flags, &pending);
        undecided = refbn_agree(job, undecided);
        if (!undecided)
            return;
        if (unit->by_groups && rung == last)
            break;
        refbn_pass_on(job, &pending, rung, rung == last ? REFBN_EXACT : rung + 1);
        if (unit->by_groups && __builtin_popcountll(undecided) <= 8)
            break;
    }
    if (!unit->by_groups) {
        if (rung <= last)
            refbn_pass_on(job, &pending, rung, REFBN_EXACT);
        refbn_run_exact(job, unit, is, &s, open, flags, solved);
        return;
    }
    /* Each of the groups that need more goes on alone. */
    const ptrdiff_t size = REFBN_TILE / REFBN_TILE_ROWS;
    for (int lane = 0; lane < unit->groups; lane++) {
        if (!(undecided >> lane & 1))
            continue;
        const refbn_unit alone = {unit->group + lane, 1, 0};
        const ptrdiff_t all = refbn_tiles(call, unit);
        uint64_t *own = flags + all;
        ptrdiff_t index, end;
        for (refbn_share(job, &alone, &index, &end); index < end; index++) {
            own[index] = 0;
            for (ptrdiff_t from = index * size; from < (index + 1) * size && from < all; from++)
                own[index] |= flags[from] >> lane & 1;
        }
        refbn_open own_open;
        for (int which = 0; which < REFBN_VECTORS; which++)
            own_open.of[which] = open->of[which] >> lane & 1;
        refbn_meet(job); /* whoever goes on to the next unit writes its flags */
        refbn_climb(job, &alone, rung < last ? rung + 1 : last, &own_open, own);
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
    return call->by_groups ? (call->geometry.groups + REFBN_LANES - 1) / REFBN_LANES : call->geometry.groups;
}

static refbn_unit refbn_unit_at(const refbn_call *call, ptrdiff_t index)
{
    if (!call->by_groups)
        return (refbn_unit){index, 1, 0};
    const ptrdiff_t group = index * REFBN_LANES, left = call->geometry.groups - group;
    return (refbn_unit){group, (int)(left < REFBN_LANES ? left : REFBN_LANES), 1};
}

/* Flags of a unit's tiles, and of the tiles of one of its groups alone. */
static ptrdiff_t refbn_flags(const refbn_call *call)
{
    return call->geometry.count / REFBN_TILE_ROWS + call->geometry.count / REFBN_TILE + 2;
}

static size_t refbn_scratch_size(const refbn_call *call, int members)
{
    return (size_t)members * (sizeof(refbn_totals) + sizeof(uint64_t) * (size_t)(1 + refbn_flags(call)));
}

static void refbn_run_unit(refbn_job *job, ptrdiff_t index, uint64_t *flags)
{
    const refbn_unit unit = refbn_unit_at(job->call, index);
    const refbn_traits is = refbn_traits_of(job->pass);
    const int rung = refbn_first_rung(job, &unit, &is);
    int64_t *elements = &job->decided[0][rung - 1], *vectors = &job->decided[1][rung - 1];
    ptrdiff_t tile, last;
    for (refbn_share(job, &unit, &tile, &last); tile < last; tile++) {
        *elements += refbn_tile_at(job->call, &unit, tile).count * unit.groups *
                     __builtin_popcount((unsigned)is.tensors);
        flags[tile] = 1;
    }
    if (job->team->rank == 0)
        *vectors += unit.groups * __builtin_popcount((unsigned)is.vectors);
    refbn_open open;
    for (int which = 0; which < REFBN_VECTORS; which++)
        open.of[which] = is.vectors >> which & 1 ? refbn_every(&unit) : 0;
    refbn_climb(job, &unit, rung, &open, flags);
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
    const int members = team->size;
    refbn_totals *totals = call->scratch;
    uint64_t *masks = (uint64_t *)(void *)(totals + members), *flags = masks + members;
    refbn_team solo = {.rank = 0, .size = 1};
    const ptrdiff_t units = refbn_units(call);
    const int apart = members == 1 || units >= 4 * (ptrdiff_t)members;
    refbn_job job = {.call = call,
                     .team = apart ? &solo : team,
                     .totals = totals,
                     .masks = masks,
                     .pass = call->pass,
                     .narrow = refbn_is_narrow(call)};
    if (apart) {
        job.totals += team->rank;
        flags += team->rank * refbn_flags(call);
        if (members == 1)
            for (ptrdiff_t index = 0; index < units; index++)
                refbn_run_unit(&job, index, flags);
        else
            for (ptrdiff_t index; (index = refbn_team_next(team)) < units;)
                refbn_run_unit(&job, index, flags);
    } else
        for (ptrdiff_t index = 0; index < units; index++)
            refbn_run_unit(&job, index, flags);
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
