/* The enclosures of each rung, laid open for validation/rung_bounds.py. It compiles this file, _ext/exact.c and
 * _ext/threads.c into one library, with the flags of one build of the core.
 *
 * The ladder is the core's own, from `prepare` and `run` down. Two of its functions are intercepted:
 *
 *   refbn_solve    After it, everything is known that a rung's rounding tests are about to see: it is copied out.
 *                  Then, if asked (`forced`), every bound is made infinite, so that the next rung has its turn, too.
 *   refbn_to_odd   Its arguments are the ends hi + (lo -+ e) of an element's enclosure, not yet rounded.
 */
#define REFBN_BUILD probe
#include <stdlib.h>

#include "lanes.h"

static __thread double *probe_trace; /* where the ends go; NULL: let refbn_to_odd do its work */
static __thread int probe_slots;

/* Returns where they went: that is what the caller stores in their place. */
static REFBN_INLINE refbn_v probe_to_odd(refbn_v hi, refbn_v tail)
{
    if (!probe_trace)
        return (refbn_to_odd)(hi, tail);
    refbn_v slot;
    for (int lane = 0; lane < REFBN_WIDTH; lane++) {
        slot[lane] = (double)probe_slots;
        probe_trace[2 * probe_slots] = hi[lane];
        probe_trace[2 * probe_slots++ + 1] = tail[lane];
    }
    return slot;
}

#define refbn_to_odd(hi, tail) probe_to_odd(hi, tail)
#include "solve.h"

#define refbn_solve(s, lanes) probe_solve(job, unit, is, s, lanes, rung)
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
} probe;

static const probe *probe_current;

static void probe_balls(const refbn_balls *balls, int lane, double *to)
{
    to[0] = balls->hi[lane], to[1] = balls->lo[lane], to[2] = balls->err[lane];
}

static void probe_elements(const refbn_job *job, const refbn_unit *unit, const refbn_solution *s, int which, double *ends)
{
    const ptrdiff_t count = job->call->geometry.count;
    double *trace = malloc(sizeof(double) * 4 * REFBN_BLOCK);
    for (ptrdiff_t index = 0; index < refbn_tiles(job->call, unit); index++) {
        const refbn_tile tile = refbn_tile_at(job->call, unit, index);
        refbn_buffers buffers;
        refbn_ends kept;
        refbn_rows in[3] = {{0}};
        probe_trace = trace;
        probe_slots = 0;
        refbn_enclose(job, unit, tile, s, which, 1, (refbn_rows){0}, &kept, in, &buffers);
        probe_trace = NULL;
        for (int k = 0; k < tile.rows * tile.columns; k++) {
            const int row = k / tile.columns, lane = k % tile.columns;
            if (unit->by_groups ? lane >= unit->groups : k >= tile.count)
                continue;
            const ptrdiff_t group = unit->group + (unit->by_groups ? lane : 0);
            double *to = ends + 4 * (group * count + tile.start + (unit->by_groups ? row : k));
            if (!s->twofold) { /* rounded already */
                to[0] = kept.low[k], to[1] = 0.0, to[2] = kept.high[k], to[3] = 0.0;
                continue;
            }
            const double *low = trace + 2 * (int)kept.low[k], *high = trace + 2 * (int)kept.high[k];
            to[0] = low[0], to[1] = low[1], to[2] = high[0], to[3] = high[1];
        }
    }
    free(trace);
}

static void probe_copy(const refbn_job *job, const refbn_unit *unit, const refbn_traits *is, refbn_solution *s, int rung)
{
    const probe *to = probe_current;
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
        if (is->tensors >> which & 1) {
            if (!unit->by_groups)
                refbn_spread(s, which);
            probe_elements(job, unit, s, which, to->ends[rung][which]);
        }
}

static void probe_solve(void *job, const refbn_unit *unit, const void *is, refbn_solution *s, int lanes, int rung)
{
    refbn_solve(s, lanes);
    if (((const refbn_job *)job)->team->rank == 0)
        probe_copy(job, unit, is, s, rung - 1);
    if (!probe_current->forced)
        return;
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
