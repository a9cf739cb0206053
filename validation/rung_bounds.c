/* The enclosures of each rung, laid open for validation/rung_bounds.py. It compiles this file, _ext/exact.c and
 * _ext/threads.c into one library, with the flags of one build of the core.
 *
 * The ladder is the core's own, from `prepare` and `run` down. Some of its functions are intercepted:
 *
 *   refbn_solve    After it, everything is known that a rung's rounding tests are about to see: it is copied out.
 *                  Then, if asked (`forced`), every bound is made infinite, so that the next rung has its turn, too.
 *   refbn_to_odd   Its arguments are the ends hi + (lo -+ e) of an element's enclosure, not yet rounded; so are
 *                  those of refbn_end and refbn_end_w, for combinations from a bias on.
 */
#define REFBN_BUILD probe
#include <stdlib.h>

#include "lanes.h"

static __thread double *probe_trace; /* where the ends go; NULL: let refbn_to_odd do its work */
static __thread int probe_slots;

/* Where the ends in some lanes went: that is what the caller stores in their place. */
#define PROBE_INTERCEPT(vector, otherwise)                                                    \
    if (!probe_trace)                                                                         \
        return otherwise;                                                                     \
    vector slot;                                                                              \
    for (int lane = 0; lane < (int)(sizeof slot / sizeof slot[0]); lane++) {                  \
        slot[lane] = probe_slots;                                                             \
        probe_trace[2 * probe_slots] = hi[lane];                                              \
        probe_trace[2 * probe_slots++ + 1] = tail[lane];                                      \
    }                                                                                         \
    return slot;

static REFBN_INLINE refbn_v probe_to_odd(refbn_v hi, refbn_v tail) { PROBE_INTERCEPT(refbn_v, refbn_to_odd(hi, tail)) }
static REFBN_INLINE refbn_v probe_end(refbn_v hi, refbn_v tail, refbn_v one)
{
    PROBE_INTERCEPT(refbn_v, refbn_end(hi, tail, one))
}
static REFBN_INLINE refbn_w probe_end_w(refbn_w hi, refbn_w tail, refbn_w one)
{
    PROBE_INTERCEPT(refbn_w, refbn_end_w(hi, tail, one))
}

#define refbn_to_odd(hi, tail) probe_to_odd(hi, tail)
#define refbn_end(hi, tail, one) probe_end(hi, tail, one)
#define refbn_end_w(hi, tail, one) probe_end_w(hi, tail, one)
#include "solve.h"

#define refbn_solve(s, lanes) probe_solve(job, &of->unit, is, s, lanes, rung)
static void probe_solve(void *job, const refbn_unit *unit, const void *is, refbn_solution *s, int lanes, int rung);
#include "kernels.c"
#undef refbn_solve

enum { PROBE_RUNGS = 3, PROBE_SETTINGS = 3 };

typedef struct {
    void *data;
    int64_t format, group_stride, stride;
} probe_tensor;

typedef struct {
    void *data;
    int64_t format;
} probe_vector;

/* A call, and where its enclosures go. The fields are those of `_Probe` in rung_bounds.py. */
typedef struct {
    int64_t pass, groups, count, threads, forced, weighs_new, unbiased;
    double eps, momentum[2], weight_new[3], weight_old[3];
    double *state;
    probe_tensor tensor[5];  /* x dy x_dot y dx */
    probe_vector vector[13]; /* as in `refbn_call`, from gamma on */
    /* by rung, then by group: */
    double *setting[PROBE_RUNGS];            /* pivot, exponent, constant of each of x, dy, x_dot */
    double *sum[PROBE_RUNGS];                /* hi, lo, err of each sum */
    double *result[PROBE_RUNGS];             /* the same of each vector result */
    double *ends[PROBE_RUNGS][REFBN_TENSORS]; /* of each element: low in two parts, high in two */
    double *biased[PROBE_RUNGS][REFBN_TENSORS]; /* the same of combinations from a bias on */
} probe;

static const probe *probe_current;

static void probe_balls(const refbn_balls *balls, int lane, double *to)
{
    to[0] = balls->hi[lane], to[1] = balls->lo[lane], to[2] = balls->err[lane];
}

/* A tile's ends, from where they went. */
static void probe_tile(const refbn_work *work, const refbn_ends *kept, const double *trace, int between, double *ends)
{
    const ptrdiff_t count = work->job->call->geometry.count;
    const refbn_unit *unit = &work->turn.unit;
    const refbn_tile tile = work->piece;
    for (int k = 0; k < refbn_numbers_of(&tile); k++) {
        const int row = k / tile.columns, lane = k % tile.columns;
        if (unit->by_groups ? lane >= refbn_row_lanes(unit) : k >= tile.count)
            continue;
        const ptrdiff_t group = unit->group + (unit->by_groups ? lane % unit->groups : 0);
        const ptrdiff_t element = unit->by_groups ? row * unit->copies + lane / unit->groups : k;
        double *to = ends + 4 * (group * count + tile.start + element);
        if (!trace) { /* rounded already */
            to[0] = kept->low[k], to[1] = 0.0, to[2] = kept->high[k], to[3] = 0.0;
            continue;
        }
        const double *low = trace + 2 * (int)kept->low[k];
        const double *high = between ? low + 2 * between : trace + 2 * (int)kept->high[k];
        to[0] = low[0], to[1] = low[1], to[2] = high[0], to[3] = high[1];
    }
}

static void probe_elements(const refbn_job *job, const refbn_unit *unit, const refbn_solution *s, int which, int rung)
{
    double *trace = malloc(sizeof(double) * 4 * REFBN_BLOCK);
    for (int turn = 0; turn < refbn_turns(unit); turn++)
        for (ptrdiff_t index = 0; index < refbn_tiles(job->call, unit); index++) {
            refbn_work work = {.job = job, .s = s, .turn = refbn_turn_at(unit, turn)};
            work.piece = refbn_tile_at(job->call, &work.turn.unit, index);
            refbn_ends kept;
            probe_trace = trace;
            probe_slots = 0;
            refbn_enclose(&work, which, 1, NULL, &kept);
            probe_trace = NULL;
            probe_tile(&work, &kept, s->twofold ? trace : NULL, 0, probe_current->ends[rung][which]);
            const uint64_t every = refbn_every(&work.turn.unit);
            if ((s->biased[which] >> work.turn.lane & every) != every)
                continue;
            double slots[REFBN_BLOCK];
            const int size = s->twofold ? 8 : 4, numbers = refbn_numbers_of(&work.piece);
            probe_trace = trace;
            probe_slots = 0;
            const refbn_rows rows = refbn_in_buffer(&work.piece, slots, size);
            refbn_combine_from_bias(&work, which, &rows, 0);
            probe_trace = NULL;
            for (int k = 0; k < numbers; k++)
                kept.low[k] = s->twofold ? slots[k] : ((float *)slots)[k];
            probe_tile(&work, &kept, trace, REFBN_WIDTH * 8 / size, probe_current->biased[rung][which]);
        }
    free(trace);
}

static void probe_copy(const refbn_job *job, const refbn_unit *unit, const refbn_traits *is, refbn_solution *s, int rung)
{
    const probe *to = probe_current;
    refbn_repeat_solution(unit, s);
    for (int lane = 0; lane < unit->groups; lane++) {
        const ptrdiff_t group = unit->group + lane;
        for (int which = 0; which < 3; which++) {
            double *setting = to->setting[rung] + (group * 3 + which) * PROBE_SETTINGS;
            setting[0] = s->pivot[which][lane];
            setting[1] = s->exponent[which][lane];
            setting[2] = s->constant[which][lane];
        }
        for (int k = 0; k < REFBN_SUMS; k++)
            if (is->sums && refbn_has_sum(k, 1, is->g, is->u))
                probe_balls(&s->sum[k], lane, to->sum[rung] + (group * REFBN_SUMS + k) * 3);
        for (int k = 0; k < REFBN_VECTORS; k++)
            if (is->vectors >> k & 1)
                probe_balls(&s->vector[k], lane, to->result[rung] + (group * REFBN_VECTORS + k) * 3);
    }
    for (int which = 0; which < REFBN_TENSORS; which++)
        if (is->tensors >> which & 1)
            probe_elements(job, unit, s, which, rung);
}

static void probe_solve(void *job, const refbn_unit *unit, const void *is, refbn_solution *s, int lanes, int rung)
{
    refbn_solve(s, lanes);
    if (((const refbn_job *)job)->team->rank == 0)
        probe_copy(job, unit, is, s, rung - 1);
    if (!probe_current->forced)
        return;
    for (int k = 0; k < REFBN_TENSORS; k++)
        s->biased[k] = 0;
    for (int lane = 0; lane < REFBN_LANES; lane++) {
        for (int k = 0; k < REFBN_VECTORS; k++)
            s->vector[k].err[lane] = refbn_infinity();
        for (int k = 0; k < REFBN_TENSORS; k++)
            s->tensor[k].bound[3][lane] = refbn_infinity();
    }
}

static void probe_run(refbn_team *team, void *call) { refbn_kernels_probe.run(call, team); }

/* 0, or 1 where memory was short. */
__attribute__((visibility("default"))) int refbn_probe(const probe *of)
{
    refbn_call call = {.pass = (int)of->pass, .eps = of->eps, .state = of->state, .weighs_new = (int)of->weighs_new,
                       .unbiased = (int)of->unbiased};
    refbn_tensor *const tensors[] = {&call.x, &call.dy, &call.x_dot, &call.y, &call.dx};
    refbn_vector *const vectors[] = {
        &call.gamma,     &call.beta,     &call.mean,     &call.var,     &call.invstd,
        &call.gamma_dot, &call.beta_dot, &call.mean_dot, &call.var_dot,
        &call.dgamma,    &call.dbeta,    &call.dmean,    &call.dvar,
    };
    call.geometry = (refbn_geometry){.groups = of->groups, .count = of->count, .ndim = 1, .extent = {of->count}};
    for (int k = 0; k < 5; k++)
        *tensors[k] = (refbn_tensor){of->tensor[k].data, (int)of->tensor[k].format, of->tensor[k].group_stride,
                                     {of->tensor[k].stride}};
    for (int k = 0; k < 13; k++)
        *vectors[k] = (refbn_vector){of->vector[k].data, (int)of->vector[k].format,
                                     refbn_size((int)of->vector[k].format)};
    __builtin_memcpy(call.momentum, of->momentum, sizeof call.momentum);
    __builtin_memcpy(call.weight_new, of->weight_new, sizeof call.weight_new);
    __builtin_memcpy(call.weight_old, of->weight_old, sizeof call.weight_old);
    probe_current = of;
    refbn_kernels_probe.prepare(&call);
    call.scratch = malloc(refbn_kernels_probe.scratch_size(&call, (int)of->threads));
    if (!call.scratch)
        return 1;
    refbn_parallel((int)of->threads, probe_run, &call);
    free(call.scratch);
    return 0;
}
